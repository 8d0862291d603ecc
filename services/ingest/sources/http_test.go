package sources

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/topology"
)

// httpRig is a running http source.
type httpRig struct {
	*httpSource
	t      testing.TB
	url    string
	bus    *topology.Recorder
	client *http.Client
	stop   func() error
}

// chooseHTTP is chooseAuto with the formats that the receivers have of their own.
func chooseHTTP(configured, key string, head []byte) (string, framing.Framing, string) {
	if configured == formatHEC {
		if head = bytes.TrimSpace(head); len(head) > 0 && head[0] == '[' {
			return formatHEC, framing.Framing{Kind: framing.Array}, ""
		}
		return formatHEC, framing.Framing{Kind: framing.Values}, ""
	}
	if configured == "csv" {
		return "csv", framing.Framing{Kind: framing.CSV, Header: framing.FirstLine}, ""
	}
	return chooseAuto(configured, key, head)
}

const (
	tokenA = "token-of-agent-a-0001"
	tokenB = "token-of-agent-b-0002"
)

func httpAt(kind HTTPKind, path string) HTTPEndpoint {
	var e HTTPEndpoint
	e.SetDefaults()
	e.Kind, e.Path = kind, path
	return e
}

// listenHTTP runs a source with an endpoint of each kind.
func listenHTTP(t testing.TB, change func(*HTTPConfig, *Deps)) *httpRig {
	t.Helper()
	r := &httpRig{t: t, bus: &topology.Recorder{}}
	cfg := defaultHTTP()
	cfg.Address = "127.0.0.1:0"
	cfg.Auth.Tokens = []HTTPToken{{Token: config.NewSecret(tokenA), Name: "a"}, {Token: config.NewSecret(tokenB), Name: "b", Account: "tenant-b"}}
	cfg.Endpoints = []HTTPEndpoint{httpAt(HTTPJSON, "/in"), httpAt(HTTPForm, "/form"), httpAt(HTTPHEC, ""), httpAt(HTTPForm, "/hook/{token}")}
	deps := Deps{Name: "push", Choose: chooseHTTP, NewOutbox: func() topology.Outbox { return r.bus }, Drain: 10 * time.Second}
	if change != nil {
		change(&cfg, &deps)
	}
	for _, e := range cfg.Endpoints {
		if err := e.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	src, err := Catalog.Open(t.Context(), "http", cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	r.httpSource = src.(*httpSource)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	r.client = &http.Client{Transport: &http.Transport{DisableCompression: true}}
	t.Cleanup(func() { r.client.CloseIdleConnections(); _ = r.stop() })
	until(t, "the source listens", func() bool { return r.Addr() != nil })
	r.url = "http://" + r.Addr().String()
	return r
}

// until polls for what happens in its own time.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 20_000 {
		if cond() {
			return
		}
		<-tick.C
	}
	t.Fatalf("waited in vain until %s", what)
}

type httpAnswer struct {
	status int
	header http.Header
	body   string
}

func (a httpAnswer) String() string { return strconv.Itoa(a.status) + " " + a.body }

// send sends a request; header is pairs. With no Authorization in it, the token of
// agent a is sent as the endpoint takes it.
func (r *httpRig) send(method, path, body string, header ...string) httpAnswer {
	r.t.Helper()
	return r.sendFrom(strings.NewReader(body), method, path, header...)
}

func (r *httpRig) sendFrom(body io.Reader, method, path string, header ...string) httpAnswer {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.url+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	scheme := "Bearer "
	if strings.HasPrefix(path, hecPath) {
		scheme = "Splunk "
	}
	req.Header.Set("Authorization", scheme+tokenA)
	for i := 0; i < len(header); i += 2 {
		if header[i+1] == "" {
			req.Header.Del(header[i])
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return httpAnswer{resp.StatusCode, resp.Header, strings.TrimSpace(string(text))}
}

func (r *httpRig) post(path, body string, header ...string) httpAnswer {
	r.t.Helper()
	return r.send(http.MethodPost, path, body, header...)
}

// httpFrame is a frame on the bus.
type httpFrame struct {
	id      string
	origin  *messages.Origin
	format  string
	head    string
	frameNo uint32
	records []string
	ordinal []uint64
}

func (r *httpRig) frames() []httpFrame { return framesOf(r.t, r.bus.Messages()) }

func framesOf(t testing.TB, all []topology.Message) []httpFrame {
	t.Helper()
	var out []httpFrame
	for _, m := range all {
		if !strings.HasPrefix(m.Subject, "penstock.record.") {
			continue
		}
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		var c messages.Columns
		if err := v.Columns(&c); err != nil {
			t.Fatal(err)
		}
		body, err := v.Body(nil)
		if err != nil {
			t.Fatal(err)
		}
		origins, err := v.Origins()
		if err != nil || len(origins) != 1 {
			t.Fatalf("%d origins, %v", len(origins), err)
		}
		s := httpFrame{id: m.ID, origin: origins[0], format: v.Format(), head: string(v.Head()), frameNo: v.FrameNo(), ordinal: slices.Clone(c.Records)}
		for _, n := range c.Lengths {
			s.records = append(s.records, string(body[:n]))
			body = body[n:]
		}
		out = append(out, s)
	}
	return out
}

// rows are all records that were stored, in order.
func (r *httpRig) rows() []string {
	var all []string
	for _, f := range r.frames() {
		all = append(all, f.records...)
	}
	return all
}

// balance checks what the ledger is told about each pull: it was announced once or
// more, fetched as often, and its records are those in frames and in quarantine.
func (r *httpRig) balance() {
	r.t.Helper()
	balanceOf(r.t, factsOf(r.t, r.bus), r.frames(), r.bus.Quarantined())
}

// factsOf are all facts of a bus in order, those in messages of their own first.
func factsOf(t testing.TB, bus *topology.Recorder) (all []*messages.Fact) {
	t.Helper()
	for _, m := range bus.Messages() {
		if m.Subject != topology.LedgerSubject(topology.Ingest) {
			continue
		}
		f, err := messages.DecodeFacts(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f.GetFacts()...)
	}
	return append(all, bus.Facts()...)
}

// framesOn are the messages that hold frames.
func framesOn(bus *topology.Recorder) (all []topology.Message) {
	for _, m := range bus.Messages() {
		if strings.HasPrefix(m.Subject, "penstock.record.") {
			all = append(all, m)
		}
	}
	return all
}

func balanceOf(t testing.TB, facts []*messages.Fact, frames []httpFrame, quarantined []*messages.Quarantine) {
	t.Helper()
	announced, records, framesSeen := map[string]bool{}, map[string]uint64{}, map[string]uint32{}
	seen := map[string]bool{}
	for _, f := range frames {
		if pull := string(f.origin.GetPull()); !seen[f.id] {
			seen[f.id] = true
			records[pull] += uint64(len(f.records))
			framesSeen[pull]++
		}
	}
	for _, q := range quarantined {
		records[string(q.GetOrigin().GetPull())] += q.GetRecords()
	}
	fetched := map[string]bool{}
	for _, f := range facts {
		switch k := f.GetKind().(type) {
		case *messages.Fact_Announced:
			announced[string(k.Announced.GetOrigin().GetPull())] = true
			if k.Announced.GetAs() != messages.Announced_AS_EVENTS {
				t.Errorf("announced as %s", k.Announced.GetAs())
			}
		case *messages.Fact_Fetched:
			pull := string(k.Fetched.GetPull())
			if !announced[pull] {
				t.Errorf("pull %x was fetched before it was announced", pull)
			}
			fetched[pull] = true
			if k.Fetched.GetRecords() != records[pull] || k.Fetched.GetFrames() != framesSeen[pull] {
				t.Errorf("pull %x: the ledger has %d records in %d frames, stored are %d in %d",
					pull, k.Fetched.GetRecords(), k.Fetched.GetFrames(), records[pull], framesSeen[pull])
			}
		}
	}
	for pull := range records {
		if !fetched[pull] {
			t.Errorf("pull %x is not in the ledger", pull)
		}
	}
}

func zipped(t testing.TB, body string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(body)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// formOf writes parts: name, file name, type, content.
func formOf(t testing.TB, parts ...[4]string) (body, mediaType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range parts {
		h := map[string][]string{"Content-Disposition": {fmt.Sprintf("form-data; name=%q", p[0])}}
		if p[1] != "" {
			h["Content-Disposition"] = []string{fmt.Sprintf("form-data; name=%q; filename=%q", p[0], p[1])}
		}
		if p[2] != "" {
			h["Content-Type"] = []string{p[2]}
		}
		part, err := w.CreatePart(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(part, p[3]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String(), w.FormDataContentType()
}

const ndjson = "application/x-ndjson"

// covers: F-28, F-4, CEN-4, CEN-20, CEN-27, CEN-28, CEN-29, CEN-31, CEN-32, CEN-34, CEN-35
func TestForms(t *testing.T) {
	var many strings.Builder
	for i := range 57 {
		fmt.Fprintf(&many, `{"utc_timestamp":"2026-01-05 12:20:24.010832","n":%d}`+"\r\n", i)
	}
	tests := []struct {
		name     string
		parts    [][4]string
		rows     []string
		bad      int
		skipped  int
		status   int
		nRows    int
		encoding string
	}{
		{name: "one part", parts: [][4]string{{"data", "rows.json", ndjson, "{\"a\":1}\n{\"a\":2}\n"}}, rows: []string{`{"a":1}`, `{"a":2}`}},
		{name: "no file name, no type", parts: [][4]string{{"whatever", "", "", `{"a":1}`}}, rows: []string{`{"a":1}`}},
		{name: "text type", parts: [][4]string{{"x", "", "text/plain; charset=utf-8", `{"a":1}`}}, rows: []string{`{"a":1}`}},
		{name: "every part is read, the empty one skipped", parts: [][4]string{
			{"", "", "", " \n"}, {"one", "a.txt", "application/octet-stream", `{"a":1}`}, {"two", "", "", "[{\"a\":2},\n{\"a\":3}]"},
		}, rows: []string{`{"a":1}`, `{"a":2}`, `{"a":3}`}},
		{name: "a field that is no JSON", parts: [][4]string{{"submit", "", "", "send"}, {"data", "", "", `{"a":1}`}}, rows: []string{`{"a":1}`}, skipped: 1},
		{name: "only fields that are no JSON", parts: [][4]string{{"submit", "", "", "send"}}, skipped: 1},
		{name: "57 rows", parts: [][4]string{{"data", "rows.json", ndjson, many.String()}}, nRows: 57},
		{name: "gzip body", parts: [][4]string{{"data", "rows.json", ndjson, `{"a":1}`}}, rows: []string{`{"a":1}`}, encoding: "gzip"},
		{name: "gzip part", parts: [][4]string{{"data", "rows.json.gz", "application/gzip", zipped(t, `{"a":1}`)}}, rows: []string{`{"a":1}`}},
		{name: "one bad row between", parts: [][4]string{{"data", "rows.json", ndjson, "{\"a\":1}\n{\"a\":}\n{\"a\":3}\n"}}, rows: []string{`{"a":1}`, `{"a":3}`}, bad: 1},
		{name: "cut row at the end", parts: [][4]string{{"data", "rows.json", ndjson, "{\"a\":1}\n{\"a\":"}, {"more", "", "", `{"a":4}`}}, rows: []string{`{"a":1}`, `{"a":4}`}, bad: 1},
		{name: "a file that is no JSON", parts: [][4]string{{"data", "rows.json", ndjson, "hello"}, {"more", "", "", `{"a":4}`}}, rows: []string{`{"a":4}`}, bad: 1},
		{name: "no row is usable", parts: [][4]string{{"data", "rows.json", ndjson, "hello"}}, bad: 1, status: 400},
		{name: "not UTF-8", parts: [][4]string{{"data", "", "", "{\"a\":\"\xff\xfe\"}"}}, rows: []string{"{\"a\":\"\xff\xfe\"}"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := listenHTTP(t, nil)
			body, mediaType := formOf(t, tt.parts...)
			header := []string{"Content-Type", mediaType}
			if tt.encoding != "" {
				body = zipped(t, body)
				header = append(header, "Content-Encoding", tt.encoding)
			}
			got := r.post("/form", body, header...)
			want := tt.status
			if want == 0 {
				want = http.StatusAccepted
			}
			if got.status != want {
				t.Fatalf("answer %s, want %d", got, want)
			}
			rows := r.rows()
			if tt.nRows > 0 && len(rows) != tt.nRows || tt.nRows == 0 && !slices.Equal(rows, tt.rows) {
				t.Errorf("stored %q", rows)
			}
			if n := len(r.bus.Quarantined()); n != tt.bad {
				t.Errorf("%d quarantined, want %d", n, tt.bad)
			}
			var a httpTaken
			if err := json.Unmarshal([]byte(got.body), &a); err != nil {
				t.Fatal(err)
			}
			if a.Accepted != uint64(len(rows)) || a.Quarantined != tt.bad || a.SkippedParts != tt.skipped || len(a.Errors) != tt.bad {
				t.Errorf("answer %s", got)
			}
			r.balance()
		})
	}
}

// covers: F-28: the token in the path, for senders that can prove nothing else; CEN-33.
func TestPathToken(t *testing.T) {
	r := listenHTTP(t, nil)
	body, mediaType := formOf(t, [4]string{"data", "", "", `{"a":1}`})
	for path, want := range map[string]int{
		"/hook/" + tokenB: 202, "/hook/" + tokenA: 202, "/hook/wrong": 401, "/hook": 404, "/hook/": 404, "/hook/" + tokenA + "/more": 404,
	} {
		if got := r.post(path, body, "Content-Type", mediaType, "Authorization", ""); got.status != want {
			t.Errorf("%s: %s, want %d", path, got, want)
		}
	}
	for _, f := range r.frames() {
		if f.origin.GetResource() != "/hook/{token}" || strings.Contains(f.origin.String(), tokenA) || strings.Contains(f.origin.String(), tokenB) {
			t.Errorf("origin %v", f.origin)
		}
	}
}

// covers: F-4, CEN-20 (as a POST): any framing, any compression.
func TestJSONBodies(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	zst := string(enc.EncodeAll([]byte(`{"a":1}{"a":2}`), nil))
	tests := []struct {
		name, body string
		header     []string
		rows       []string
		status     int
	}{
		{"lines", "{\"a\":1}\n{\"a\":2}\n", []string{"Content-Type", ndjson}, []string{`{"a":1}`, `{"a":2}`}, 202},
		{"one object", `{"a":1}`, []string{"Content-Type", "application/json"}, []string{`{"a":1}`}, 202},
		{"an array, without a type", `[{"a":1},{"a":2}]`, nil, []string{`{"a":1}`, `{"a":2}`}, 202},
		{"values in a row, with curl's type", `{"a":1}{"a":2}`, []string{"Content-Type", "application/x-www-form-urlencoded"}, []string{`{"a":1}`, `{"a":2}`}, 202},
		{"pretty", "\ufeff{\n \"a\": 1\n}\n", nil, []string{"{\n \"a\": 1\n}"}, 202},
		{"gzip", zipped(t, `{"a":1}`), []string{"Content-Encoding", "gzip"}, []string{`{"a":1}`}, 202},
		{"gzip of several members", zipped(t, `{"a":1}`) + zipped(t, `{"a":2}`), []string{"Content-Encoding", "GZIP"}, []string{`{"a":1}`, `{"a":2}`}, 202},
		{"gzip that no header tells of", zipped(t, `{"a":1}`), []string{"Content-Type", "application/gzip"}, []string{`{"a":1}`}, 202},
		{"zstd", zst, []string{"Content-Encoding", "zstd"}, []string{`{"a":1}`, `{"a":2}`}, 202},
		{"nothing", "", nil, nil, 202},
		{"blank", " \r\n", nil, nil, 202},
		{"no JSON", "hello", nil, nil, 400},
		{"another encoding", "x", []string{"Content-Encoding", "br"}, nil, 415},
		{"gzip that is none", "hello", []string{"Content-Encoding", "gzip"}, nil, 400},
		{"gzip cut short", zipped(t, strings.Repeat(`{"a":1}`, 1000))[:40], []string{"Content-Encoding", "gzip"}, nil, 400},
		{"gzip with something behind it", zipped(t, `{"a":1}`) + "garbage", []string{"Content-Encoding", "gzip"}, nil, 400},
		{"zstd cut short", zst[:len(zst)-3], []string{"Content-Encoding", "zstd"}, nil, 400},
		{"a form", "--b\r\n\r\n{}\r\n--b--", []string{"Content-Type", "multipart/form-data; boundary=b"}, nil, 415},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := listenHTTP(t, nil)
			got := r.post("/in", tt.body, tt.header...)
			if got.status != tt.status || !slices.Equal(r.rows(), tt.rows) {
				t.Errorf("answer %s, stored %q", got, r.rows())
			}
			if tt.status == 415 && tt.name != "a form" && got.header.Get("Accept-Encoding") == "" {
				t.Errorf("the answer does not say what is accepted: %v", got.header)
			}
			r.balance()
		})
	}
}

// Columns that a first line names go with each frame.
func TestHTTPFormatOfAnEndpoint(t *testing.T) {
	r := listenHTTP(t, func(c *HTTPConfig, _ *Deps) {
		c.Endpoints[0].Format, c.Endpoints[0].Account, c.Endpoints[0].Region, c.Endpoints[0].SuccessStatus = "csv", "123456789012", "eu-west-1", 204
	})
	if got := r.post("/in", "a,b\n1,2\n\"x\ny\",3\n"); got.status != 204 || got.body != "" {
		t.Fatalf("answer %s", got)
	}
	f := r.frames()
	if len(f) != 1 || f[0].format != "csv" || f[0].head != "a,b" || !slices.Equal(f[0].records, []string{"1,2", "\"x\ny\",3"}) {
		t.Fatalf("frames %+v", f)
	}
	o := f[0].origin
	if o.GetApi() != "http" || o.GetResource() != "/in" || o.GetAccount() != "123456789012" || o.GetRegion() != "eu-west-1" || o.GetReceived() == 0 || o.GetSource() != "push" {
		t.Errorf("origin %v", o)
	}
	if got := r.post("/in", "a,b\n1,2\n", "Authorization", "Bearer "+tokenB); got.status != 204 {
		t.Fatalf("answer %s", got)
	}
	if o := r.frames()[1].origin; o.GetAccount() != "tenant-b" {
		t.Errorf("origin %v, want the account of the token", o)
	}
	// What is bad keeps them, too: a redrive needs them.
	if got := r.post("/in", "a,b\n1,2\n\"x,3\n"); got.status != 204 {
		t.Fatalf("answer %s", got)
	}
	if q := r.bus.Quarantined(); len(q) != 1 || string(q[0].GetHeader()) != "a,b" {
		t.Errorf("quarantined %v", q)
	}
}

// All or nothing, where the operator wants it.
func TestHTTPRefuseBadBodies(t *testing.T) {
	r := listenHTTP(t, func(c *HTTPConfig, _ *Deps) { c.Endpoints[0].OnBad = BadRefuse })
	got := r.post("/in", "{\"a\":1}\n{\"a\":}\n{\"a\":3}\n")
	if got.status != 400 || len(r.bus.Messages())+len(r.bus.Quarantined())+len(r.bus.Facts()) != 0 {
		t.Fatalf("answer %s, %d messages", got, len(r.bus.Messages()))
	}
	for _, want := range []string{`"code":"ingest.http_bad_record"`, `"record":1`, `"offset":8`, `"code":"framing.bad_json"`, `"refused":1`} {
		if !strings.Contains(got.body, want) {
			t.Errorf("answer %s lacks %s", got, want)
		}
	}
	if got := r.post("/in", "{\"a\":1}\n{\"a\":2}\n"); got.status != 202 || len(r.rows()) != 2 {
		t.Errorf("answer %s", got)
	}
}

// Large bodies become several frames, cut by count and bytes, with ordinals that go on.
func TestHTTPManyFrames(t *testing.T) {
	r := listenHTTP(t, nil)
	var b strings.Builder
	const n = 2*messages.TargetCount + 10
	for i := range n {
		if i == 1500 {
			b.WriteString("{\"broken\":}\n")
		}
		fmt.Fprintf(&b, "{\"n\":%d}\n", i)
	}
	if got := r.post("/in", b.String()); got.status != 202 {
		t.Fatal(got)
	}
	frames := r.frames()
	if len(frames) != 3 {
		t.Fatalf("%d frames", len(frames))
	}
	next := uint64(0)
	for i, f := range frames {
		if f.frameNo != uint32(i) || f.id != hex.EncodeToString(f.origin.GetPull())+"/"+strconv.Itoa(i) {
			t.Errorf("frame %d has number %d and id %s", i, f.frameNo, f.id)
		}
		for _, o := range f.ordinal {
			if next == 1500 {
				next++
			}
			if o != next {
				t.Fatalf("ordinal %d, want %d", o, next)
			}
			next++
		}
	}
	if q := r.bus.Quarantined(); len(q) != 1 || q[0].GetRecord() != 1500 || string(q[0].GetPayload()) != `{"broken":}` {
		t.Errorf("quarantined %v", q)
	}
	r.balance()
}

// covers: CEN-35: a key makes every attempt the same; without one each is its own.
func TestIdempotency(t *testing.T) {
	ids := func(r *httpRig) (all []string) {
		for _, m := range framesOn(r.bus) {
			all = append(all, m.ID)
		}
		return all
	}
	t.Run("key", func(t *testing.T) {
		r := listenHTTP(t, nil)
		body, mediaType := formOf(t, [4]string{"data", "", "", `{"a":1}`})
		again, otherBoundary := formOf(t, [4]string{"other", "x", "", `{"a":1}`})
		for _, at := range [][2]string{{body, mediaType}, {again, otherBoundary}} {
			if got := r.post("/form", at[0], "Content-Type", at[1], "Idempotency-Key", `"8e03978e"`); got.status != 202 {
				t.Fatal(got)
			}
		}
		if got := ids(r); len(got) != 2 || got[0] != got[1] {
			t.Errorf("ids %q, want the same twice", got)
		}
		// The same key for something else: a mistake of the sender, but nothing is lost.
		other, mediaType := formOf(t, [4]string{"data", "", "", `{"a":2}`})
		r.post("/form", other, "Content-Type", mediaType, "Idempotency-Key", `"8e03978e"`)
		// The same key of another sender.
		r.post("/form", body, "Content-Type", mediaType, "Idempotency-Key", `"8e03978e"`, "Authorization", "Bearer "+tokenB)
		if got := ids(r); len(got) < 3 || got[2] == got[0] {
			t.Errorf("ids %q", got)
		}
		for _, f := range r.frames() {
			if hex.EncodeToString(f.origin.GetPull())+"/0" != f.id || f.origin.GetMessageId() != `"8e03978e"` {
				t.Errorf("frame %s has origin %v", f.id, f.origin)
			}
		}
		r.balance()
	})
	t.Run("none", func(t *testing.T) {
		r := listenHTTP(t, nil)
		r.post("/in", `{"a":1}`)
		r.post("/in", `{"a":1}`)
		if got := ids(r); len(got) != 2 || got[0] == got[1] {
			t.Errorf("ids %q, want two", got)
		}
	})
	t.Run("same body", func(t *testing.T) {
		r := listenHTTP(t, func(c *HTTPConfig, _ *Deps) { c.Endpoints[0].SameBodyWindow = 24 * time.Hour })
		r.post("/in", `{"a":1}`)
		r.post("/in", `{"a":1}`)
		r.post("/in", `{"a":2}`)
		if got := ids(r); len(got) != 3 || got[0] != got[1] || got[1] == got[2] {
			t.Errorf("ids %q, want the same twice", got)
		}
	})
	t.Run("unfit", func(t *testing.T) {
		r := listenHTTP(t, nil)
		if got := r.post("/in", `{"a":1}`, "Idempotency-Key", strings.Repeat("k", 256)); got.status != 400 {
			t.Error(got)
		}
	})
}

func hmacOf(key, content string) []byte {
	m := hmac.New(sha256.New, []byte(key))
	m.Write([]byte(content))
	return m.Sum(nil)
}

// Who may send, by every kind of proof.
// covers: CEN-33
func TestHTTPAuth(t *testing.T) {
	const body = `{"a":1}`
	now := time.Now()
	stamp, old := strconv.FormatInt(now.Unix(), 10), strconv.FormatInt(now.Add(-10*time.Minute).Unix(), 10)
	whsec := base64.StdEncoding.EncodeToString([]byte("standard-secret"))
	var github, standard, generic HTTPSignature
	github.SetDefaults()
	standard.SetDefaults()
	generic.SetDefaults()
	github.Scheme, github.Secrets = SignGitHub, []config.Secret{config.NewSecret("old-secret"), config.NewSecret("new-secret")}
	standard.Scheme, standard.Secrets = SignStandard, []config.Secret{config.NewSecret("whsec_" + whsec)}
	generic.Secrets, generic.Header, generic.Prefix, generic.TimestampHeader, generic.Before = []config.Secret{config.NewSecret("generic-secret")}, "X-Sig", "v0=", "X-Time", "v0:{timestamp}:"
	basic := base64.StdEncoding.EncodeToString([]byte("alice:wonderland"))
	std := func(id, at string) string {
		return "v1," + base64.StdEncoding.EncodeToString(hmacOf("standard-secret", id+"."+at+"."+body))
	}
	sets := map[string]HTTPAuth{
		"tokens":    {Tokens: []HTTPToken{{Token: config.NewSecret(tokenA)}, {Token: config.NewSecret(tokenB)}}},
		"header":    {Tokens: []HTTPToken{{Token: config.NewSecret(tokenA)}}, TokenHeader: "X-Api-Key"},
		"basic":     {Basic: []HTTPUser{{Username: "alice", Password: config.NewSecret("wonderland")}}},
		"signature": {Signatures: []HTTPSignature{github, standard, generic}},
		"either":    {Tokens: []HTTPToken{{Token: config.NewSecret(tokenA)}}, Basic: []HTTPUser{{Username: "alice", Password: config.NewSecret("wonderland")}}},
		"both":      {Mode: AuthAll, Tokens: []HTTPToken{{Token: config.NewSecret(tokenA)}}, TokenHeader: "X-Api-Key", Signatures: []HTTPSignature{github}},
		"none":      {Mode: AuthNone},
		"network":   {Mode: AuthNone, AllowIPs: []string{"192.0.2.0/24"}},
		"loopback":  {Tokens: []HTTPToken{{Token: config.NewSecret(tokenA)}}, AllowIPs: []string{"127.0.0.0/8", "::1"}},
	}
	tests := []struct {
		set    string
		name   string
		header []string
		status int
	}{
		{"tokens", "first", []string{"Authorization", "Bearer " + tokenA}, 202},
		{"tokens", "second, small letters", []string{"Authorization", "bearer " + tokenB}, 202},
		{"tokens", "none", nil, 401},
		{"tokens", "wrong", []string{"Authorization", "Bearer " + tokenA + "x"}, 401},
		{"tokens", "prefix", []string{"Authorization", "Bearer " + tokenA[:5]}, 401},
		{"tokens", "empty", []string{"Authorization", "Bearer "}, 401},
		{"tokens", "bare", []string{"Authorization", tokenA}, 401},
		{"tokens", "of Splunk", []string{"Authorization", "Splunk " + tokenA}, 401},
		{"tokens", "as a password", []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+tokenA))}, 401},
		{"header", "right", []string{"X-Api-Key", tokenA}, 202},
		{"header", "wrong", []string{"X-Api-Key", tokenB}, 401},
		{"header", "in the other header", []string{"Authorization", "Bearer " + tokenA}, 401},
		{"basic", "right", []string{"Authorization", "Basic " + basic}, 202},
		{"basic", "wrong", []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("alice:cheshire"))}, 401},
		{"basic", "no base64", []string{"Authorization", "Basic %%%"}, 401},
		{"either", "token", []string{"Authorization", "Bearer " + tokenA}, 202},
		{"either", "user", []string{"Authorization", "Basic " + basic}, 202},
		{"either", "neither", nil, 401},
		{"signature", "github", []string{"X-Hub-Signature-256", "sha256=" + hex.EncodeToString(hmacOf("old-secret", body))}, 202},
		{"signature", "github, second secret", []string{"X-Hub-Signature-256", "sha256=" + hex.EncodeToString(hmacOf("new-secret", body))}, 202},
		{"signature", "github, wrong secret", []string{"X-Hub-Signature-256", "sha256=" + hex.EncodeToString(hmacOf("no-secret", body))}, 401},
		{"signature", "github, another body", []string{"X-Hub-Signature-256", "sha256=" + hex.EncodeToString(hmacOf("new-secret", body+" "))}, 401},
		{"signature", "github, no hex", []string{"X-Hub-Signature-256", "sha256=zz"}, 401},
		{"signature", "none", nil, 401},
		{"signature", "standard", []string{"Webhook-Id", "msg_1", "Webhook-Timestamp", stamp, "Webhook-Signature", "v1,AAAA " + std("msg_1", stamp)}, 202},
		{"signature", "standard, another id", []string{"Webhook-Id", "msg_2", "Webhook-Timestamp", stamp, "Webhook-Signature", std("msg_1", stamp)}, 401},
		{"signature", "standard, old", []string{"Webhook-Id", "msg_1", "Webhook-Timestamp", old, "Webhook-Signature", std("msg_1", old)}, 401},
		{"signature", "standard, old with a new time", []string{"Webhook-Id", "msg_1", "Webhook-Timestamp", stamp, "Webhook-Signature", std("msg_1", old)}, 401},
		{"signature", "standard, no time", []string{"Webhook-Id", "msg_1", "Webhook-Signature", std("msg_1", stamp)}, 401},
		{"signature", "generic", []string{"X-Time", stamp, "X-Sig", "v0=" + hex.EncodeToString(hmacOf("generic-secret", "v0:"+stamp+":"+body))}, 202},
		{"signature", "generic, no prefix", []string{"X-Time", stamp, "X-Sig", hex.EncodeToString(hmacOf("generic-secret", "v0:"+stamp+":"+body))}, 401},
		{"both", "both", []string{"X-Api-Key", tokenA, "X-Hub-Signature-256", "sha256=" + hex.EncodeToString(hmacOf("new-secret", body))}, 202},
		{"both", "token alone", []string{"X-Api-Key", tokenA}, 401},
		{"both", "signature alone", []string{"X-Hub-Signature-256", "sha256=" + hex.EncodeToString(hmacOf("new-secret", body))}, 401},
		{"both", "token, wrong signature", []string{"X-Api-Key", tokenA, "X-Hub-Signature-256", "sha256=" + hex.EncodeToString(hmacOf("x", body))}, 401},
		{"none", "nothing", nil, 202},
		{"network", "from elsewhere", nil, 403},
		{"loopback", "right", []string{"Authorization", "Bearer " + tokenA}, 202},
		{"loopback", "wrong", []string{"Authorization", "Bearer " + tokenB}, 401},
	}
	running := map[string]*httpRig{}
	for set, auth := range sets {
		for _, s := range auth.Signatures {
			if err := s.Validate(); err != nil {
				t.Fatal(err)
			}
		}
		if err := auth.Validate(); err != nil {
			t.Fatal(err)
		}
		running[set] = listenHTTP(t, func(c *HTTPConfig, _ *Deps) { c.Auth, c.Endpoints = auth, []HTTPEndpoint{httpAt(HTTPJSON, "/in")} })
	}
	for _, tt := range tests {
		t.Run(tt.set+"/"+tt.name, func(t *testing.T) {
			r := running[tt.set]
			before := len(framesOn(r.bus))
			got := r.post("/in", body, append([]string{"Authorization", ""}, tt.header...)...)
			if got.status != tt.status {
				t.Errorf("answer %s, want %d", got, tt.status)
			}
			if stored := len(framesOn(r.bus)) - before; (stored == 1) != (tt.status == 202) {
				t.Errorf("%d stored", stored)
			}
			if strings.Contains(got.body, "token-of") || strings.Contains(got.body, "secret") {
				t.Errorf("answer %s shows a secret", got)
			}
		})
	}
	// Retries of a signed webhook are one.
	r := running["signature"]
	before := len(framesOn(r.bus))
	for range 2 {
		r.post("/in", body, "Webhook-Id", "msg_9", "Webhook-Timestamp", stamp, "Webhook-Signature", std("msg_9", stamp))
	}
	if m := framesOn(r.bus)[before:]; len(m) != 2 || m[0].ID != m[1].ID {
		t.Errorf("%d messages of a repeated webhook, or of different ids", len(m))
	}
}

// X-Forwarded-For counts from trusted proxies only, and from the right.
func TestForwardedFor(t *testing.T) {
	for _, tt := range []struct {
		name    string
		trusted []string
		header  string
		status  int
	}{
		{"not trusted", nil, "192.0.2.7", 403},
		{"trusted", []string{"127.0.0.1"}, "192.0.2.7", 202},
		{"trusted, from elsewhere", []string{"127.0.0.1"}, "198.51.100.1", 403},
		{"forged on the left", []string{"127.0.0.1"}, "192.0.2.7, 198.51.100.1", 403},
		{"through two proxies", []string{"127.0.0.0/8", "10.0.0.0/8"}, "203.0.113.9, 192.0.2.7, 10.1.2.3", 202},
		{"garbage", []string{"127.0.0.1"}, "192.0.2.7, who", 403},
		{"none", []string{"127.0.0.1"}, "", 403},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := listenHTTP(t, func(c *HTTPConfig, _ *Deps) {
				c.TrustedProxies, c.Auth.AllowIPs = tt.trusted, []string{"192.0.2.0/24"}
			})
			if got := r.post("/in", `{"a":1}`, "X-Forwarded-For", tt.header); got.status != tt.status {
				t.Errorf("answer %s, want %d", got, tt.status)
			}
		})
	}
}

func TestHTTPLimits(t *testing.T) {
	rows := strings.Repeat("{\"a\":1}\n", 100)
	bomb := zipped(t, strings.Repeat(" ", 8<<20))
	nested, mediaType := formOf(t, [4]string{"data", "x.gz", "", bomb})
	wide, wideType := formOf(t, [4]string{"data", strings.Repeat("n", 100<<10), "", `{"a":1}`})
	many, manyType := formOf(t, [4]string{"a", "", "", `{"a":1}`}, [4]string{"b", "", "", `{"a":2}`}, [4]string{"c", "", "", `{"a":3}`}, [4]string{"d", "", "", `{"a":4}`})
	tests := []struct {
		name   string
		change func(*HTTPLimits)
		path   string
		body   string
		header []string
		status int
		code   string
	}{
		{"body", func(l *HTTPLimits) { l.MaxBody = 799 }, "/in", rows, nil, 413, "ingest.http_too_large"},
		{"body that fits", func(l *HTTPLimits) { l.MaxBody, l.MaxDecoded = 800, 800 }, "/in", rows, nil, 202, ""},
		{"decoded body", func(l *HTTPLimits) { l.MaxBody, l.MaxDecoded = 400, 799 }, "/in", zipped(t, rows), []string{"Content-Encoding", "gzip"}, 413, "ingest.http_too_large"},
		{"bomb", nil, "/in", bomb, []string{"Content-Encoding", "gzip"}, 413, "ingest.http_ratio"},
		{"bomb in a part", nil, "/form", nested, []string{"Content-Type", mediaType}, 413, "ingest.http_ratio"},
		{"bomb in a bomb", nil, "/in", zipped(t, bomb), []string{"Content-Encoding", "gzip"}, 413, "ingest.http_ratio"},
		{"rows", func(l *HTTPLimits) { l.MaxRows = 99 }, "/in", rows, nil, 413, "ingest.http_too_large"},
		{"rows that fit", func(l *HTTPLimits) { l.MaxRows = 100 }, "/in", rows, nil, 202, ""},
		{"parts", func(l *HTTPLimits) { l.MaxParts = 3 }, "/form", many, []string{"Content-Type", manyType}, 413, "ingest.http_too_large"},
		{"parts that fit", func(l *HTTPLimits) { l.MaxParts = 4 }, "/form", many, []string{"Content-Type", manyType}, 202, ""},
		{"header of a part", nil, "/form", wide, []string{"Content-Type", wideType}, 400, "ingest.http_form_broken"},
		{"no boundary", nil, "/form", many, []string{"Content-Type", "multipart/form-data"}, 400, "ingest.http_form_broken"},
		{"another boundary", nil, "/form", many, []string{"Content-Type", "multipart/form-data; boundary=zz"}, 400, "ingest.http_form_broken"},
		{"form cut short", nil, "/form", many[:len(many)-80], []string{"Content-Type", manyType}, 400, "ingest.http_form_broken"},
		{"no form", nil, "/form", `{"a":1}`, []string{"Content-Type", "application/json"}, 415, "ingest.http_media_type"},
		{"bad records", func(l *HTTPLimits) { l.MaxBad = 2 }, "/in", strings.Repeat("{\"a\":}\n", 3) + rows, nil, 400, "ingest.http_too_many_bad"},
		{"bytes in flight", func(l *HTTPLimits) { l.InFlight = 8 << 20 }, "/in", "{\"a\":1}\n", nil, 202, ""},
		{"deep", nil, "/in", strings.Repeat("[", 5000), nil, 400, "ingest.http_bad_record"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := listenHTTP(t, func(c *HTTPConfig, _ *Deps) {
				if tt.change != nil {
					tt.change(&c.Limits)
				}
			})
			got := r.post(tt.path, tt.body, tt.header...)
			if got.status != tt.status || !strings.Contains(got.body, tt.code) {
				t.Errorf("answer %s, want %d %s", got, tt.status, tt.code)
			}
			if tt.status == 413 && len(r.bus.Messages())+len(r.bus.Facts())+len(r.bus.Quarantined()) > 0 {
				t.Error("something of a refused request was stored")
			}
			if !r.room.TryAcquire(int64(r.cfg.Limits.InFlight)) {
				t.Error("bytes are still held")
			}
			if !r.places.TryAcquire(int64(r.cfg.Limits.Requests)) {
				t.Error("a place is still held")
			}
		})
	}
}

// What does not fit into memory is refused for now, whoever came first goes on.
func TestHTTPInFlight(t *testing.T) {
	g := newGate(false)
	r := listenHTTP(t, func(c *HTTPConfig, d *Deps) {
		c.Limits.InFlight, c.Limits.Requests = 8<<20, 3
		bus := &topology.Recorder{}
		d.NewOutbox = func() topology.Outbox { return gated{bus, g} }
	})
	first := make(chan httpAnswer, 3)
	for range 3 {
		go func() { first <- r.post("/in", `{"a":1}`) }()
	}
	until(t, "all three are in hand", func() bool {
		free := r.places.TryAcquire(1)
		if free {
			r.places.Release(1)
		}
		return !free
	})
	if got := r.post("/in", `{"a":2}`); got.status != 503 || got.header.Get("Retry-After") != "5" {
		t.Errorf("answer %s, Retry-After %q", got, got.header.Get("Retry-After"))
	}
	close(g.open)
	for range 3 {
		if got := <-first; got.status != 202 {
			t.Errorf("answer %s", got)
		}
	}
	big := bytes.Repeat([]byte("{\"a\":\"0123456789\"}\n"), 10)
	held := int64(8<<20) - httpIntakeBase - 100
	if !r.room.TryAcquire(held) {
		t.Fatal("bytes are still held")
	}
	if got := r.post("/in", string(big)); got.status != 503 || !strings.Contains(got.body, "ingest.http_full") {
		t.Errorf("answer %s", got)
	}
	r.room.Release(held)
	if got := r.post("/in", string(big)); got.status != 202 {
		t.Errorf("answer %s", got)
	}
}

func TestHTTPRates(t *testing.T) {
	r := listenHTTP(t, func(c *HTTPConfig, _ *Deps) {
		c.RatePerCaller = HTTPRate{PerSecond: 0.01, Burst: 2}
		c.Rate = HTTPRate{PerSecond: 0.01, Burst: 3}
	})
	var got []int
	for range 3 {
		got = append(got, r.post("/in", `{"a":1}`).status)
	}
	last := r.post("/in", `{"a":1}`)
	if wait, err := strconv.Atoi(last.header.Get("Retry-After")); err != nil || wait < 50 || wait > 101 {
		t.Errorf("Retry-After %q", last.header.Get("Retry-After"))
	}
	got = append(got, last.status)
	for range 2 {
		got = append(got, r.post("/in", `{"a":1}`, "Authorization", "Bearer "+tokenB).status)
	}
	if want := []int{202, 202, 429, 429, 202, 429}; !slices.Equal(got, want) {
		t.Errorf("answers %v, want %v", got, want)
	}
}

func TestHTTPMethodsAndPaths(t *testing.T) {
	r := listenHTTP(t, nil)
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/in", 405},
		{"DELETE", "/in", 405},
		{"PUT", "/in", 202},
		{"POST", "/in/", 202},
		{"POST", "/in/more", 404},
		{"POST", "/", 404},
		{"POST", "/inn", 404},
		{"POST", "//in", 404},
		{"POST", "/x/../in", 404},
		{"GET", hecPath, 405},
		{"PUT", hecPath, 405},
	} {
		if got := r.send(tt.method, tt.path, `{"a":1}`); got.status != tt.status {
			t.Errorf("%s %s: %s, want %d", tt.method, tt.path, got, tt.status)
		}
	}
}

// A sender that goes on too slowly, or stops in the middle, holds nothing for long.
func TestSlowSenders(t *testing.T) {
	r := listenHTTP(t, func(c *HTTPConfig, _ *Deps) {
		c.Timeouts.Stall, c.Timeouts.Header, c.Timeouts.Read = 50*time.Millisecond, 50*time.Millisecond, 5*time.Second
	})
	dial := func(text string) string {
		t.Helper()
		c, err := net.Dial("tcp", r.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(c) // until the server ends it
		return string(answer)
	}
	head := "POST /in HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + tokenA + "\r\nContent-Length: 100\r\n"
	if got := dial(head + "\r\n{\"a\":1}\n"); !strings.Contains(got, " 408 ") {
		t.Errorf("a body that stops: %q", got)
	}
	if got := dial(head); strings.Contains(got, " 2") && !strings.Contains(got, "408") {
		t.Errorf("a header that stops: %q", got)
	}
	if got := dial("POST /in HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n"); !strings.Contains(got, " 431 ") {
		t.Errorf("a large header: %q", got)
	}
	if got := dial("POST /in HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + tokenA + "\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"); !strings.Contains(got, " 400 ") {
		t.Errorf("broken chunks: %q", got)
	}
	if len(r.bus.Messages())+len(r.bus.Facts()) != 0 {
		t.Error("something of a cut request was stored")
	}
	// A sender that hangs up in the middle.
	c, err := net.Dial("tcp", r.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, head+"\r\n{\"a\":1}\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Errorf("run: %v", err)
	}
	if len(r.bus.Messages())+len(r.bus.Facts()) != 0 {
		t.Error("something of a cut request was stored")
	}
}

// The bus stops answering: the sender is told to come again, others are refused at
// once, and what comes again is the same for the bus.
func TestHTTPStalledBus(t *testing.T) {
	g := newGate(false)
	bus := &topology.Recorder{}
	r := listenHTTP(t, func(c *HTTPConfig, d *Deps) {
		c.Timeouts.Store = 20 * time.Millisecond
		d.NewOutbox = func() topology.Outbox { return gated{bus, g} }
	})
	if got := r.post("/in", `{"a":1}`); got.status != 503 || !strings.Contains(got.body, "ingest.http_not_stored") {
		t.Fatalf("answer %s", got)
	}
	if got := r.post("/in", `{"a":2}`); got.status != 503 || got.header.Get("Retry-After") == "" {
		t.Errorf("answer %s, want another refused at once", got)
	}
	if got := r.send("GET", hecPath+"/health", ""); got.status != 503 || !strings.Contains(got.body, `"code":18`) {
		t.Errorf("health %s", got)
	}
	if err := r.Health(); err != nil {
		t.Errorf("health: %v; the listener is open", err)
	}
	close(g.open)
	until(t, "the bus has stored what waited", func() bool { return r.stalled.Load() == 0 })
	r.cfg.Timeouts.Store = 10 * time.Second
	for range 2 {
		if got := r.post("/in", `{"a":1}`); got.status != 202 {
			t.Fatalf("answer %s", got)
		}
	}
	m := framesOn(bus)
	if len(m) != 3 || m[0].ID != m[1].ID || m[1].ID == m[2].ID {
		t.Errorf("%d messages; the retry must have the id of the first, and one after it another", len(m))
	}
	balanceOf(t, factsOf(t, bus), framesOf(t, m), bus.Quarantined())
}

// What the bus will never take is quarantined, the rest goes on.
func TestFrameThatTheBusRefuses(t *testing.T) {
	bus := &choosy{Recorder: &topology.Recorder{}}
	r := listenHTTP(t, func(_ *HTTPConfig, d *Deps) { d.NewOutbox = func() topology.Outbox { return bus } })
	body := strings.Repeat("{\"a\":1}\n", messages.TargetCount) + "{\"a\":2}\n"
	if got := r.post("/in", body); got.status != 202 {
		t.Fatal(got)
	}
	q := bus.Quarantined()
	if len(framesOn(bus.Recorder)) != 1 || len(q) != 1 || q[0].GetRecords() != messages.TargetCount || q[0].GetHolds() != messages.Quarantine_HOLDS_FRAME {
		t.Fatalf("%d messages, quarantined %v", len(bus.Messages()), q)
	}
	balanceOf(t, factsOf(t, bus.Recorder), framesOf(t, bus.Messages()), q)
}

// choosy refuses the first frame.
type choosy struct {
	*topology.Recorder
	n int
}

func (c *choosy) Publish(ctx context.Context, m topology.Message) error {
	if c.n++; c.n == 2 { // after the announcement
		return errHTTPTooLarge.New(nil, "publish %d bytes", len(m.Data))
	}
	return c.Recorder.Publish(ctx, m)
}

func TestHTTPConfigValidate(t *testing.T) {
	good := func() HTTPConfig {
		c := defaultHTTP()
		c.Address, c.Endpoints = "127.0.0.1:8088", []HTTPEndpoint{httpAt(HTTPJSON, "/in")}
		return c
	}
	tests := []struct {
		name   string
		change func(*HTTPConfig)
		keys   []string
	}{
		{"loopback without proof", func(*HTTPConfig) {}, nil},
		{"localhost", func(c *HTTPConfig) { c.Address = "localhost:1" }, nil},
		{"all interfaces without proof", func(c *HTTPConfig) { c.Address = ":8088" }, []string{"auth"}},
		{"another address without proof", func(c *HTTPConfig) { c.Address = "192.0.2.1:8088" }, []string{"auth"}},
		{"IPv6, all", func(c *HTTPConfig) { c.Address = "[::]:8088" }, []string{"auth"}},
		{"only networks are no proof", func(c *HTTPConfig) { c.Address, c.Auth.AllowIPs = ":8088", []string{"192.0.2.0/24"} }, []string{"auth"}},
		{"written none", func(c *HTTPConfig) { c.Address, c.Auth.Mode = ":8088", AuthNone }, nil},
		{"proof for one endpoint only", func(c *HTTPConfig) {
			c.Address = ":8088"
			e := httpAt(HTTPJSON, "/other")
			e.Auth = &HTTPAuth{Tokens: []HTTPToken{{Token: config.NewSecret(tokenA)}}}
			c.Endpoints = append(c.Endpoints, e)
		}, []string{"auth"}},
		{"tokens", func(c *HTTPConfig) {
			c.Address, c.Auth.Tokens = ":8088", []HTTPToken{{Token: config.NewSecret(tokenA)}}
		}, nil},
		{"no endpoints", func(c *HTTPConfig) { c.Endpoints = nil }, []string{"endpoints"}},
		{"the same path twice", func(c *HTTPConfig) { c.Endpoints = append(c.Endpoints, c.Endpoints[0]) }, []string{"endpoints[1].path"}},
		{"a token in the path without tokens", func(c *HTTPConfig) { c.Endpoints[0].Path = "/x/{token}" }, []string{"auth.tokens"}},
		{"no port", func(c *HTTPConfig) { c.Address = "127.0.0.1" }, []string{"address"}},
		{"key without certificate", func(c *HTTPConfig) { c.TLS.KeyFile = "k" }, []string{"tls.key_file"}},
		{"subjects without authorities", func(c *HTTPConfig) { c.Auth.ClientSubjects = []string{"x"} }, []string{"tls.client_ca_file"}},
		{"limits", func(c *HTTPConfig) { c.Limits = HTTPLimits{} }, []string{"limits.max_body", "limits.max_record", "limits.in_flight"}},
		{"times", func(c *HTTPConfig) { c.Timeouts = HTTPTimeouts{} }, []string{"timeouts.store", "timeouts.read"}},
		{"proxies", func(c *HTTPConfig) { c.TrustedProxies = []string{"10.0.0.0/33"} }, []string{"trusted_proxies[0]"}},
	}
	for _, tt := range tests {
		c := good()
		tt.change(&c)
		err := c.Validate()
		if (err != nil) != (len(tt.keys) > 0) {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		for _, key := range tt.keys {
			if !strings.Contains(err.Error(), key) {
				t.Errorf("%s: %v, want %s in it", tt.name, err, key)
			}
		}
	}
	for _, e := range []HTTPEndpoint{
		{Kind: "x", OnBad: BadAccept, Path: "/in", SuccessStatus: 200},
		httpAt(HTTPJSON, ""), httpAt(HTTPJSON, "in"), httpAt(HTTPJSON, "/a//b"),
		httpAt(HTTPJSON, "/a/../b"), httpAt(HTTPJSON, "/{token}/{token}"), httpAt(HTTPJSON, "/a?b"), httpAt(HTTPForm, "/x{token}"),
	} {
		if e.Validate() == nil {
			t.Errorf("endpoint %+v is accepted", e)
		}
	}
}

// The words of the file lead to this configuration.
func TestHTTPConfigFile(t *testing.T) {
	cfg := defaultHTTP()
	err := config.Parse("x.yaml", []byte(`
address: 0.0.0.0:8443
auth: none
endpoints:
  - {path: /a, kind: form, auth: {tokens: [short-form-token, {token: long-form-token, name: x}]}}
  - {kind: splunk_hec, acknowledge: true, on_bad: refuse}
`), &cfg)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Auth.Mode != AuthNone || len(cfg.Endpoints) != 2 || len(cfg.Endpoints[0].Auth.Tokens) != 2 ||
		cfg.Endpoints[0].Auth.Tokens[0].Token.Reveal() != "short-form-token" || cfg.Endpoints[1].base() != hecPath || cfg.Endpoints[0].SuccessStatus != 202 {
		t.Errorf("read %+v", cfg)
	}
}

// A second source on the same address says so, and the first goes on.
func TestHTTPAddressInUse(t *testing.T) {
	r := listenHTTP(t, nil)
	cfg := r.cfg
	cfg.Address = r.Addr().String()
	second, err := openHTTP(t.Context(), cfg, r.deps)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Health(); err == nil {
		t.Error("healthy before it listens")
	}
	if err := second.Run(t.Context()); err == nil || second.Health() == nil || !strings.Contains(second.Health().Error(), errHTTPListen.Code) {
		t.Errorf("run %v, health %v", err, second.Health())
	}
	if r.Health() != nil {
		t.Errorf("health of the first: %v", r.Health())
	}
	if err := r.stop(); err != nil || r.Health() == nil {
		t.Errorf("stopped with %v, health %v", err, r.Health())
	}
}

// A stop takes nothing new and finishes what is in hand.
func TestHTTPStop(t *testing.T) {
	for _, drained := range []bool{true, false} {
		t.Run(fmt.Sprint(drained), func(t *testing.T) {
			g := newGate(false)
			bus := &topology.Recorder{}
			r := listenHTTP(t, func(_ *HTTPConfig, d *Deps) {
				if !drained {
					d.Drain = 20 * time.Millisecond
				}
				d.NewOutbox = func() topology.Outbox { return gated{bus, g} }
			})
			first := make(chan error, 1)
			go func() {
				req, _ := http.NewRequestWithContext(context.WithoutCancel(t.Context()), http.MethodPost, r.url+"/in", strings.NewReader(`{"a":1}`))
				req.Header.Set("Authorization", "Bearer "+tokenA)
				resp, err := r.client.Do(req)
				if err == nil {
					_ = resp.Body.Close()
					if resp.StatusCode != 202 {
						err = fmt.Errorf("status %d", resp.StatusCode)
					}
				}
				first <- err
			}()
			until(t, "the request is in hand", func() bool {
				free := r.room.TryAcquire(int64(r.cfg.Limits.InFlight))
				if free {
					r.room.Release(int64(r.cfg.Limits.InFlight))
				}
				return !free
			})
			stopped := make(chan error, 1)
			go func() { stopped <- r.stop() }()
			until(t, "nobody listens", func() bool {
				c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
				if err == nil {
					_ = c.Close()
				}
				return err != nil
			})
			if drained {
				close(g.open)
				if err := <-first; err != nil {
					t.Errorf("the request in hand: %v", err)
				}
				if err := <-stopped; err != nil {
					t.Errorf("run: %v", err)
				}
				return
			}
			if err := <-stopped; err == nil || !strings.Contains(err.Error(), errDrain.Code) {
				t.Errorf("run: %v, want %s", err, errDrain.Code)
			}
			if err := <-first; err == nil {
				t.Error("the sender was told that it is stored")
			}
		})
	}
}
