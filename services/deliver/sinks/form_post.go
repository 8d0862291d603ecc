package sinks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/document"
	"github.com/penstock/penstock/services/internal/probe"
)

func init() {
	define("form_post", "POSTs multipart forms with newline-delimited JSON in one part, as Censornet does.", defaultFormPost, openFormPost)
}

// RowFormat is how a row of a form is written.
type RowFormat string

// The formats of rows.
const (
	// RowWithID: the document with event_id added, so that receivers know repeats.
	RowWithID RowFormat = "row"
	// RowDocument: the bare document.
	RowDocument RowFormat = "document"
	// RowEnvelope: as [Envelope].
	RowEnvelope RowFormat = "envelope"
)

// Values implements [config.Enum].
func (RowFormat) Values() []string {
	return []string{string(RowWithID), string(RowDocument), string(RowEnvelope)}
}

// appendLine writes one event as one line of JSON. A document that is no object, or
// has an event_id of its own, stays as it is.
func (f RowFormat) appendLine(dst []byte, e *Event) []byte {
	if f != RowWithID {
		return Format(f).appendLine(dst, e)
	}
	start := len(dst)
	dst = appendDoc(dst, document.Trim(e.Doc))
	if row := dst[start:]; document.KindOf(row) != document.Object || row[len(row)-1] != '}' || rowHas(row, "event_id") {
		return append(dst, '\n')
	}
	dst = bytes.TrimRight(dst[:len(dst)-1], " \t")
	if dst[len(dst)-1] != '{' {
		dst = append(dst, ',')
	}
	dst = append(dst, `"event_id":"`...)
	dst = hex.AppendEncode(dst, e.ID[:])
	return append(dst, "\"}\n"...)
}

// rowHas tells whether an object has a member of this name.
func rowHas(object []byte, name string) bool {
	if !bytes.Contains(object, []byte(name)) {
		return false
	}
	members := document.Members(object)
	for {
		key, _, _, ok := members.Next()
		if !ok {
			return false
		}
		if string(key) == name {
			return true
		}
	}
}

// FormPostConfig configures the form_post sink.
type FormPostConfig struct {
	// URL receives one request per batch: http or https, without user and password. Required.
	URL string `yaml:"url"`
	// Field is the name of the part.
	Field string `yaml:"field"`
	// FileName is the file name of the part.
	FileName string `yaml:"file_name"`
	// Format of a row: row (the document with penstock's id as event_id), document, or envelope (with penstock's id, type, time, source, account and region).
	Format RowFormat `yaml:"format"`
	// Batch bounds one request.
	Batch Limits `yaml:"batch"`

	HTTPAuth   `yaml:",inline"`
	HTTPClient `yaml:",inline"`
}

func defaultFormPost() FormPostConfig {
	return FormPostConfig{
		Field:      "data",
		FileName:   "rows.json",
		Format:     RowWithID,
		Batch:      Limits{Events: 20, Bytes: config.MiB, Age: time.Second},
		HTTPClient: HTTPClient{Timeout: 30 * time.Second},
	}
}

// Validate reports every problem, each with the key to change.
func (c FormPostConfig) Validate() error {
	var p config.Problems
	needURL(&p, "url", c.URL)
	p.Need(c.Field != "" && plainParameter(c.Field), "field", `use up to 64 printable ASCII characters without " and \, e.g. data`)
	p.Need(c.FileName != "" && plainParameter(c.FileName), "file_name", `use up to 64 printable ASCII characters without " and \, e.g. rows.json`)
	p.In("batch", c.Batch.Validate())
	c.HTTPAuth.problems(&p)
	c.HTTPClient.problems(&p, c.HTTPAuth.given())
	return p.Err()
}

// plainParameter tells whether a value can stand between quotes as it is. Forms
// escape others in ways that receivers do not agree about.
func plainParameter(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return len(s) <= 64
}

// formPost sends one form per batch, with one part.
//
//   - An event is confirmed when the answer to its request is 2xx.
//   - Idempotency-Key is made of the ids in the form and stays the same when the
//     request is sent again, and so does each byte of it.
//   - No order: requests run side by side. No redirect is followed.
//   - Memory: a form for each request that is under way.
//
// Source: formats F-28; RFC 7578; RFC 2046 section 5.1.1.
type formPost struct {
	*httpClient
	cfg FormPostConfig
	url *url.URL
}

func openFormPost(_ context.Context, cfg FormPostConfig, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, errHTTPAddress.New(nil, "open destination %s", deps.Destination) // not reached: validated
	}
	client, err := newHTTPClient(deps.Destination, cfg.HTTPClient, cfg.HTTPAuth)
	if err != nil {
		return nil, err
	}
	client.hideQuery(u)
	return &formPost{httpClient: client, cfg: cfg, url: u}, nil
}

func (s *formPost) Limits() Limits { return s.cfg.Batch }

func (s *formPost) Append(dst []byte, e *Event) []byte { return s.cfg.Format.appendLine(dst, e) }

func (s *formPost) Close() error {
	s.close()
	return nil
}

// formBodies holds bodies.
var formBodies = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// Deliver sends one request.
func (s *formPost) Deliver(ctx context.Context, b Batch) Result {
	form := formBodies.Get().(*bytes.Buffer)
	defer formBodies.Put(form)
	form.Reset()
	id := key(b)
	limit := formBoundary(id, b.Bytes())
	s.write(form, limit, b.Bytes())
	r := call{method: http.MethodPost, url: s.url, body: form.Bytes(), header: replayed(http.Header{
		"Content-Type":    {"multipart/form-data; boundary=" + limit},
		"Idempotency-Key": {id},
	}, b)}
	a, res, ok := s.do(ctx, r)
	if !ok {
		return res
	}
	return s.judge(r, a)
}

// write makes the form. Rows end in a line break; the one before the delimiter
// belongs to the delimiter.
func (s *formPost) write(form *bytes.Buffer, limit string, rows []byte) {
	form.WriteString("--" + limit + "\r\nContent-Disposition: form-data; name=\"" + s.cfg.Field + "\"; filename=\"" + s.cfg.FileName +
		"\"\r\nContent-Type: application/x-ndjson\r\n\r\n")
	form.Write(rows)
	form.WriteString("\r\n--" + limit + "--\r\n")
}

// formBoundary returns one that does not occur in rows: the same for the same events.
func formBoundary(id string, rows []byte) string {
	limit := "penstock-" + id
	for bytes.Contains(rows, []byte(limit)) {
		sum := sha256.Sum256([]byte(limit))
		limit = "penstock-" + hex.EncodeToString(sum[:16])
	}
	return limit
}

// Probe implements [probe.Prober]: the way there and one HEAD request.
func (c FormPostConfig) Probe(ctx context.Context) []probe.Finding {
	return HTTPConfig{
		URL: c.URL, Method: http.MethodPost, Format: Envelope, Batch: c.Batch, ContentType: "multipart/form-data",
		HTTPAuth: c.HTTPAuth, HTTPClient: c.HTTPClient,
	}.Probe(ctx)
}
