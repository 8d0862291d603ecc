package sinks

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
)

func init() { harnesses["form_post"] = formWorld }

// unform takes the rows out of a form before the far side looks at the request.
func unform(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil {
			w.WriteHeader(http.StatusUnsupportedMediaType)
			return
		}
		part, err := multipart.NewReader(bytes.NewReader(body), params["boundary"]).NextPart()
		if err != nil || part.FormName() != "data" || part.FileName() != "rows.json" || part.Header.Get("Content-Type") != "application/x-ndjson" {
			w.WriteHeader(http.StatusUnsupportedMediaType)
			return
		}
		if body, err = io.ReadAll(part); err != nil {
			w.WriteHeader(http.StatusUnsupportedMediaType)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		h.ServeHTTP(w, r)
	})
}

func formWorld(t *testing.T) *world {
	f := newFarSide(true)
	f.Config.Handler = unform(f.Config.Handler)
	cfg := defaultFormPost()
	cfg.URL = f.URL + "/hook/" + urlToken
	cfg.BearerToken = config.NewSecret(token)
	cfg.Format = RowEnvelope
	cfg.Timeout = 2 * time.Second
	cfg.TLS.CAFile = f.trust(t)
	open := func(cfg FormPostConfig) Sink {
		s, err := openFormPost(t.Context(), cfg, Deps{Destination: "form"})
		must(t, err)
		return s
	}
	status := func(code int) func() func() {
		return func() func() {
			return f.when(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Retry-After", "7")
				w.WriteHeader(code)
				_, _ = fmt.Fprintf(w, "no: %s", r.Header.Get("Authorization"))
			})
		}
	}
	return &world{
		sink:     open(cfg),
		received: f.received,
		secrets:  []string{token, urlToken},
		outage:   status(http.StatusInternalServerError),
		denial:   status(http.StatusForbidden),
		throttle: status(http.StatusTooManyRequests),
		hang: func() func() {
			release := make(chan struct{})
			heal := f.when(func(http.ResponseWriter, *http.Request) { <-release })
			return func() { heal(); close(release) }
		},
		hangs: 15 * time.Second,
		cut: func() func() {
			return f.when(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		},
		partial: func() func() {
			f.bad = third
			return func() { f.bad = nil }
		},
		untrusted: func() (Sink, func() bool) {
			cfg := cfg
			cfg.TLS.CAFile = ""
			return open(cfg), func() bool { return len(f.received()) > 0 }
		},
		done: f.Close,
	}
}

func formTo(t *testing.T, address string, change func(*FormPostConfig)) Sink {
	t.Helper()
	cfg := defaultFormPost()
	cfg.URL = address
	if change != nil {
		change(&cfg)
	}
	must(t, cfg.Validate())
	s, err := openFormPost(t.Context(), cfg, Deps{Destination: "form"})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// A form is the same to the last byte when it is sent again.
// covers: F-28, CEN-28, CEN-29, CEN-31, CEN-32, CEN-35, LIM-21
func TestFormBody(t *testing.T) {
	var bodies []string
	var keys []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var b strings.Builder
		b.WriteString("Content-Type: " + r.Header.Get("Content-Type") + "\nIdempotency-Key: " + r.Header.Get("Idempotency-Key") + "\n\n")
		_, _ = io.Copy(&b, r.Body)
		bodies, keys = append(bodies, b.String()), append(keys, r.Header.Get("Idempotency-Key"))
		if len(bodies) == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer srv.Close()
	s := formTo(t, srv.URL, nil)
	if s.Limits().Events != 20 {
		t.Errorf("up to %d rows", s.Limits().Events)
	}
	b := batchOf(s, 0,
		`{"utc_timestamp":"2026-01-05 12:20:24.010832","final_action":"Allow"}`, "{\r\n \"a\": 1\n}\n", `{ }`, `{"event_id":"its own"}`, `[1,2]`, `{"x":"event_id"}`)
	if res := s.Deliver(t.Context(), b); res.Verdict != Retry {
		t.Fatalf("got %v: %v", res.Verdict, res.Err)
	}
	mustDeliver(t, s, b)
	if bodies[0] != bodies[1] || len(keys[0]) != 32 {
		t.Errorf("sent %q, then %q", bodies[0], bodies[1])
	}
	golden.Check(t, "testdata/form_post/request.txt", []byte(bodies[1]))
	mustDeliver(t, s, batchOf(s, 1, `{"a":1}`))
	if keys[2] == keys[1] {
		t.Error("other rows have the same key")
	}
}

// What is in a row cannot end the part.
func TestFormBoundary(t *testing.T) {
	f := newFarSide(false)
	f.Config.Handler = unform(f.Config.Handler)
	defer f.Close()
	s := formTo(t, f.URL, func(c *FormPostConfig) { c.Format, c.Gzip = RowDocument, false })
	evil := fmt.Sprintf(`{"a":"--penstock-%s--"}`, key(batchOf(s, 3, "{}")))
	b := batchOf(s, 3, evil)
	if limit := formBoundary(key(b), b.Bytes()); strings.Contains(evil, limit) || limit != formBoundary(key(b), b.Bytes()) {
		t.Errorf("boundary %s", limit)
	}
	mustDeliver(t, s, b)
	if lines := f.received(); len(lines) != 1 || lines[0] != evil {
		t.Errorf("received %q", lines)
	}
}

func TestFormGzip(t *testing.T) {
	f := newFarSide(false)
	defer f.Close()
	s := formTo(t, f.URL, func(c *FormPostConfig) { c.Gzip, c.Field, c.FileName = true, "rows", "a b.ndjson" })
	mustDeliver(t, s, batchOf(s, 0, plain(0, 20)...))
	if text := strings.Join(f.received(), "\n"); !strings.Contains(text, `form-data; name="rows"; filename="a b.ndjson"`) || f.header[0].Get("Content-Encoding") != "gzip" {
		t.Errorf("received %.200q", text)
	}
}

func TestFormConfig(t *testing.T) {
	tests := []struct {
		key    string
		change func(*FormPostConfig)
	}{
		{"url", func(c *FormPostConfig) { c.URL = "" }},
		{"field", func(c *FormPostConfig) { c.Field = "" }},
		{"field", func(c *FormPostConfig) { c.Field = "a\r\nb" }},
		{"file_name", func(c *FormPostConfig) { c.FileName = `a"b` }},
		{"file_name", func(c *FormPostConfig) { c.FileName = strings.Repeat("a", 65) }},
		{"batch.events", func(c *FormPostConfig) { c.Batch.Events = 0 }},
		{"bearer_token", func(c *FormPostConfig) { c.BearerToken, c.Username = config.NewSecret("x"), "u" }},
		{"timeout", func(c *FormPostConfig) { c.Timeout = 0 }},
	}
	for _, tt := range tests {
		cfg := defaultFormPost()
		cfg.URL = "https://example.com/in"
		must(t, cfg.Validate())
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), tt.key+": ") {
			t.Errorf("%s: got %v", tt.key, err)
		}
	}
}

// A form is read back row by row, whatever the documents hold.
func FuzzForm(f *testing.F) {
	f.Add(`{"a":1}`, uint8(3))
	f.Add(`"--penstock-00000000000000000000000000000000--"`, uint8(1))
	f.Add(`{"a":"`+strings.Repeat("\\r\\n--", 40_000)+`"}`, uint8(2))
	f.Fuzz(func(t *testing.T, doc string, n uint8) {
		if !json.Valid([]byte(doc)) {
			return
		}
		s := &formPost{cfg: defaultFormPost()}
		docs := make([]string, 1+n%20)
		for i := range docs {
			docs[i] = doc
		}
		b := batchOf(s, 0, docs...)
		var form bytes.Buffer
		limit := formBoundary(key(b), b.Bytes())
		s.write(&form, limit, b.Bytes())
		parts := multipart.NewReader(&form, limit)
		part, err := parts.NextPart()
		must(t, err)
		rows, err := io.ReadAll(part)
		must(t, err)
		if !bytes.Equal(rows, b.Bytes()) {
			t.Fatalf("rows %q became %q", b.Bytes(), rows)
		}
		if _, err := parts.NextPart(); err != io.EOF {
			t.Fatalf("after the part: %v", err)
		}
		lines := bytes.Split(bytes.TrimSuffix(rows, []byte("\n")), []byte("\n"))
		if len(lines) != len(docs) {
			t.Fatalf("%d lines for %d documents", len(lines), len(docs))
		}
		for _, line := range lines {
			if !json.Valid(line) {
				t.Fatalf("no JSON: %q", line)
			}
		}
	})
}

func BenchmarkFormPost(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	cfg := defaultFormPost()
	cfg.URL = srv.URL
	s, err := openFormPost(b.Context(), cfg, Deps{Destination: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	benchmarkSink(b, s, cfg.Batch.Events, trailEvent)
}
