package sources

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/framing"
)

var (
	errHTTPTooLarge = fault.Define("ingest.http_too_large", fault.Reject,
		"have the sender split what it sends, or raise limits of the source: max_body, max_decoded, max_rows or max_parts")
	errHTTPRatio = fault.Define("ingest.http_ratio", fault.Reject,
		"find out who sends it: real events compress less; if these do, raise limits.max_ratio")
	errHTTPEncoding = fault.Define("ingest.http_encoding", fault.Reject,
		"have the sender use Content-Encoding gzip or zstd, or none")
	errHTTPType = fault.Define("ingest.http_media_type", fault.Reject,
		"send multipart forms to an endpoint of kind form, and anything else to one of kind json")
	errHTTPBroken = fault.Define("ingest.http_body_broken", fault.Reject,
		"have the sender send the body again, whole and compressed as its header says")
	errHTTPForm = fault.Define("ingest.http_form_broken", fault.Reject,
		"have the sender send a multipart form as in RFC 7578: a boundary, and a header and a body for each part")
	errHTTPSlow = fault.Define("ingest.http_too_slow", fault.Retry,
		"look at the network between the sender and penstock, or raise timeouts of the source")
)

// Coded bodies below this size may be as dense as they like. Unit: bytes.
const httpJudgedFrom = 1 << 20

// httpWire reads a body as it is sent.
type httpWire struct {
	r   io.Reader
	max int64
	n   int64
	sig *httpSigned

	control *http.ResponseController
	stall   time.Duration
	until   time.Time // for the whole body
	set     time.Time // when the deadline was set last
}

// Read implements io.Reader. Errors are faults, but for io.EOF.
func (w *httpWire) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(w.set) > w.stall/8 {
		w.set = now
		deadline := now.Add(w.stall)
		if deadline.After(w.until) {
			deadline = w.until
		}
		_ = w.control.SetReadDeadline(deadline) // where there are none, the server's own holds
	}
	n, err := w.r.Read(p)
	w.n += int64(n)
	if w.n > w.max {
		return 0, errHTTPTooLarge.New(nil, "read a body of more than %d bytes", w.max)
	}
	if w.sig != nil && n > 0 {
		_, _ = w.sig.Write(p[:n])
	}
	if err == nil || err == io.EOF {
		return n, err
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return n, errHTTPSlow.New(nil, "read a body: after %d bytes nothing came for too long", w.n)
	}
	return n, errHTTPBroken.New(nil, "read a body: it broke off after %d bytes", w.n)
}

// end moves the deadline behind what the bus may take. After an error it stays
// where it is, so that the server does not wait for the rest of the body.
func (w *httpWire) end(store time.Duration) {
	_ = w.control.SetReadDeadline(w.until.Add(store))
}

// httpPlain bounds what a body becomes.
type httpPlain struct {
	r    io.Reader
	c    *httpIntake
	what string
}

// Read implements io.Reader. Errors are faults, but for io.EOF.
func (b *httpPlain) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	c := b.c
	c.raw += int64(n)
	limits := &c.s.cfg.Limits
	switch {
	case c.raw > int64(limits.MaxDecoded):
		return 0, errHTTPTooLarge.New(nil, "decode a body to more than %d bytes", limits.MaxDecoded)
	case c.raw > httpJudgedFrom && c.raw/int64(limits.MaxRatio) > c.wire.n:
		return 0, errHTTPRatio.New(nil, "decode %d bytes of a body to more than %d times as many", c.wire.n, limits.MaxRatio)
	case err == nil || err == io.EOF || httpIsFault(err):
		return n, err
	}
	return n, errHTTPBroken.New(nil, "decode a body: it is not whole or no valid %s", b.what)
}

func httpIsFault(err error) bool {
	var f *fault.Error
	return errors.As(err, &f)
}

// decoded is the body without its Content-Encoding.
func (c *httpIntake) decoded(encoding string) (io.Reader, error) {
	encoding = strings.ToLower(strings.TrimSpace(encoding))
	switch encoding {
	case "", "identity":
		return &httpPlain{r: &c.wire, c: c}, nil
	case "gzip", "x-gzip":
		return c.gunzip(&c.wire, 0)
	case "zstd":
		if c.zstd == nil {
			var err error
			c.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
			if err != nil {
				return nil, errHTTPBroken.New(err, "decode a body")
			}
		}
		if err := c.hold(8 << 20); err != nil { // the largest window
			return nil, err
		}
		if err := c.zstd.Reset(&c.wire); err != nil {
			return nil, errHTTPBroken.New(err, "decode a body")
		}
		return &httpPlain{r: c.zstd, c: c, what: "zstd"}, nil
	}
	return nil, errHTTPEncoding.New(nil, "read a body with Content-Encoding %.40q", encoding)
}

// gunzip uses one of two readers: a part of a form may be gzip within gzip.
func (c *httpIntake) gunzip(r io.Reader, level int) (io.Reader, error) {
	z := &c.gz[level]
	if *z == nil {
		*z = new(gzip.Reader)
	}
	if err := (*z).Reset(r); err != nil {
		if httpIsFault(err) {
			return nil, err
		}
		return nil, errHTTPBroken.New(nil, "decode a body: it is not whole or no valid gzip")
	}
	return &httpPlain{r: *z, c: c, what: "gzip"}, nil
}

// peeked returns r from its first byte on, and its head. What is gzip by its first
// bytes is decoded, whatever the header says: no text begins like that.
func (c *httpIntake) peeked(r io.Reader, level int) (io.Reader, []byte, error) {
	b := c.peek[level]
	if b == nil {
		b = bufio.NewReaderSize(nil, 2*headBytes)
		c.peek[level] = b
	}
	b.Reset(r)
	head, err := b.Peek(headBytes)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	if level == 0 && len(head) > 2 && head[0] == 0x1f && head[1] == 0x8b && head[2] == 8 {
		z, err := c.gunzip(b, 1)
		if err != nil {
			return nil, nil, err
		}
		return c.peeked(z, 1)
	}
	return b, head, nil
}

// httpBudgeted bounds what is read between two parts of a form: the part's header.
// It also looks for the end of the form, because a form that ends in the header of
// a part looks whole to [multipart.Reader].
type httpBudgeted struct {
	r     io.Reader
	left  int64  // negative: no bound
	last  []byte // the delimiter that ends the form
	tail  []byte // the last bytes read, less than last has
	ended bool
}

// Read implements io.Reader.
func (b *httpBudgeted) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, errHTTPForm.New(nil, "read the header of a part: it is larger than allowed")
	}
	if b.left > 0 {
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.r.Read(p)
	if b.left > 0 {
		b.left -= int64(n)
	}
	if !b.ended {
		b.tail = append(b.tail, p[:n]...)
		b.ended = bytes.Contains(b.tail, b.last)
		b.tail = append(b.tail[:0], b.tail[max(0, len(b.tail)-len(b.last)+1):]...)
	}
	return n, err
}

// httpAheadOfPart is what the form reader may have read before it needs more.
const httpAheadOfPart = 8 << 10

// form reads every part of a form.
func (c *httpIntake) form(body io.Reader, boundary string) error {
	limits := &c.s.cfg.Limits
	in := &httpBudgeted{r: body, last: []byte("--" + boundary + "--")}
	parts := multipart.NewReader(in, boundary)
	for n := 0; ; n++ {
		in.left = int64(limits.MaxHeader) + httpAheadOfPart
		part, err := parts.NextPart()
		switch {
		case err == io.EOF && in.ended:
			return nil
		case err != nil && httpIsFault(err):
			return err
		case err != nil:
			return errHTTPForm.New(nil, "read part %d of a form: no such part, or it is not whole", n)
		case n >= limits.MaxParts:
			return errHTTPTooLarge.New(nil, "read a form of more than %d parts", limits.MaxParts)
		}
		in.left = -1
		if err := c.part(part, n); err != nil {
			var f *fault.Error
			if !errors.As(err, &f) {
				return errHTTPForm.New(nil, "read part %d of a form: it is not whole", n)
			}
			return err
		}
	}
}

// part reads one part, whatever its name is. A field of a form that clearly holds
// no events, like a button, is left out and counted. Source: formats F-28.
func (c *httpIntake) part(part *multipart.Part, n int) error {
	r, head, err := c.peeked(part, 0)
	if err != nil {
		return err
	}
	if len(httpTrimmed(head)) == 0 && len(head) < headBytes {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	f, err := c.choose(head)
	if err != nil {
		return err
	}
	text := f.Kind == framing.Lines || f.Kind == framing.CSV
	first := httpTrimmed(head)
	if !text && len(first) > 0 && first[0] != '{' && first[0] != '[' && part.FileName() == "" && !httpJSONType(part.Header.Get("Content-Type")) {
		c.skippedParts++
		_, err := io.Copy(io.Discard, r)
		return err
	}
	c.where = "part " + strconv.Itoa(n) + ", "
	return c.cut(f, r)
}

func httpJSONType(mediaType string) bool { return strings.Contains(strings.ToLower(mediaType), "json") }

// httpTrimmed is head without the white space and byte order mark before it.
func httpTrimmed(head []byte) []byte {
	return bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\ufeff")), " \t\r\n")
}

// drain reads what is left of the body, so that its signature covers all of it.
func (w *httpWire) drain() error {
	_, err := io.Copy(io.Discard, w)
	return err
}

// lines reads a raw body of the HTTP Event Collector, an event a line.
func (c *httpIntake) lines(body io.Reader) error {
	r, _, err := c.peeked(body, 0)
	if err != nil {
		return err
	}
	c.format = formatHEC
	return c.cut(framing.Framing{Kind: framing.Lines}, r)
}
