package sinks

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
)

// farSide is a real HTTPS server that keeps whole requests.
type farSide struct {
	*httptest.Server
	mu     sync.Mutex
	lines  []string
	keys   []string
	header []http.Header
	// trouble answers in place of the server when set.
	trouble func(w http.ResponseWriter, r *http.Request)
	// bad tells which lines make it refuse a request, nil none.
	bad func(line string) bool
}

func init() { harnesses["http"] = httpWorld }

const (
	token    = "s3cr3t-t0ken"
	urlToken = "query-t0ken"
)

func newFarSide(secure bool) *farSide {
	f := &farSide{}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	if secure {
		f.StartTLS()
	} else {
		f.Start()
	}
	return f
}

func (f *farSide) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	trouble := f.trouble
	f.mu.Unlock()
	if trouble != nil {
		trouble(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if body, err = io.ReadAll(z); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	lines := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
	if f.bad != nil && slices.ContainsFunc(lines, f.bad) {
		w.WriteHeader(http.StatusUnprocessableEntity)
		return
	}
	f.lines = append(f.lines, lines...)
	f.keys = append(f.keys, r.Header.Get("Idempotency-Key"))
	f.header = append(f.header, r.Header)
	w.WriteHeader(http.StatusAccepted)
}

// when sets the trouble and returns what ends it.
func (f *farSide) when(trouble func(w http.ResponseWriter, r *http.Request)) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.trouble = trouble
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.trouble = nil
	}
}

func (f *farSide) received() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.lines...)
}

// third tells which lines are of events whose number divides by three.
func third(line string) bool {
	var e struct{ Event struct{ N int } }
	return json.Unmarshal([]byte(line), &e) == nil && e.Event.N%3 == 0
}

// trust writes the server's certificate where ca_file finds it.
func (f *farSide) trust(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}), 0o600))
	return path
}

func httpWorld(t *testing.T) *world {
	f := newFarSide(true)
	cfg := defaultHTTP()
	cfg.URL = f.URL + "/in?key=" + urlToken
	cfg.BearerToken = config.NewSecret(token)
	cfg.Timeout = 2 * time.Second
	cfg.TLS.CAFile = f.trust(t)
	s, err := openHTTP(t.Context(), cfg, Deps{Destination: "hook"})
	must(t, err)
	// Every answer tries to give secrets and payload away.
	status := func(code int) func() func() {
		return func() func() {
			return f.when(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Retry-After", "7")
				w.WriteHeader(code)
				_, _ = fmt.Fprintf(w, "no: %s %s", r.Header.Get("Authorization"), r.URL)
			})
		}
	}
	return &world{
		sink:     s,
		received: f.received,
		secrets:  []string{token, urlToken},
		outage:   status(http.StatusInternalServerError),
		denial:   status(http.StatusForbidden),
		throttle: status(http.StatusTooManyRequests),
		hang: func() func() {
			release := make(chan struct{})
			heal := f.when(func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				<-release
			})
			return func() { heal(); close(release) }
		},
		hangs: 15 * time.Second,
		cut: func() func() {
			return f.when(func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.ReadFull(r.Body, make([]byte, 100_000))
				panic(http.ErrAbortHandler) // the connection is gone
			})
		},
		partial: func() func() {
			f.bad = third
			return func() { f.bad = nil }
		},
		untrusted: func() (Sink, func() bool) {
			cfg := cfg
			cfg.TLS.CAFile = ""
			s, err := openHTTP(t.Context(), cfg, Deps{Destination: "hook"})
			must(t, err)
			return s, func() bool { return len(f.received()) > 0 }
		},
		done: f.Close,
	}
}

func openTo(t *testing.T, f *farSide, change func(*HTTPConfig)) Sink {
	t.Helper()
	cfg := defaultHTTP()
	cfg.URL = f.URL
	if change != nil {
		change(&cfg)
	}
	must(t, cfg.Validate())
	s, err := openHTTP(t.Context(), cfg, Deps{Destination: "hook"})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func TestHTTPStatus(t *testing.T) {
	// covers: F-28, peers section 6 "General rules" and "Webhook out"
	f := newFarSide(false)
	defer f.Close()
	s := openTo(t, f, nil)
	tests := []struct {
		status  int
		header  string
		verdict Verdict
		code    string
		after   time.Duration
	}{
		{200, "", Done, "", 0},
		{202, "", Done, "", 0},
		{204, "", Done, "", 0},
		{301, "", Stop, "deliver.http_wrong_request", 0},
		{307, "", Stop, "deliver.http_wrong_request", 0},
		{400, "", Split, "deliver.http_rejected", 0},
		{401, "", Stop, "deliver.http_denied", 0},
		{403, "", Stop, "deliver.http_denied", 0},
		{404, "", Stop, "deliver.http_wrong_request", 0},
		{405, "", Stop, "deliver.http_wrong_request", 0},
		{407, "", Stop, "deliver.http_denied", 0},
		{408, "", Retry, "deliver.http_busy", 0},
		{409, "", Split, "deliver.http_rejected", 0},
		{410, "", Stop, "deliver.http_wrong_request", 0},
		{413, "", TooLarge, "deliver.http_too_large", 0},
		{415, "", Stop, "deliver.http_wrong_request", 0},
		{422, "", Split, "deliver.http_rejected", 0},
		{425, "", Retry, "deliver.http_busy", 0},
		{429, "3", Retry, "deliver.http_busy", 3 * time.Second},
		{429, "99999999", Retry, "deliver.http_busy", time.Hour},
		{429, "soon", Retry, "deliver.http_busy", 0},
		{429, "-5", Retry, "deliver.http_busy", 0},
		{500, "", Retry, "deliver.http_busy", 0},
		{503, "12", Retry, "deliver.http_busy", 12 * time.Second},
		{599, "", Retry, "deliver.http_busy", 0},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.status, tt.header), func(t *testing.T) {
			calls := 0
			defer f.when(func(w http.ResponseWriter, _ *http.Request) {
				calls++
				if tt.header != "" {
					w.Header().Set("Retry-After", tt.header)
				}
				w.Header().Set("Location", f.URL+"/elsewhere")
				w.WriteHeader(tt.status)
			})()
			res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 2)...))
			if res.Verdict != tt.verdict || res.After != tt.after || calls != 1 {
				t.Errorf("%v after %v in %d calls; want %v after %v in 1: %v", res.Verdict, res.After, calls, tt.verdict, tt.after, res.Err)
			}
			if tt.code != "" && fault.CodeOf(res.Err) != tt.code {
				t.Errorf("code %s, want %s", fault.CodeOf(res.Err), tt.code)
			}
		})
	}
}

func TestRetryAfterDate(t *testing.T) {
	now := time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"Mon, 05 Jan 2026 12:01:30 GMT": 90 * time.Second,
		"Mon, 05 Jan 2026 11:00:00 GMT": 0,
		"Tue, 05 Jan 2027 12:00:00 GMT": time.Hour,
		" 5 ":                           5 * time.Second,
		"":                              0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

func TestHTTPRequest(t *testing.T) {
	f := newFarSide(false)
	defer f.Close()
	s := openTo(t, f, func(c *HTTPConfig) {
		c.Method, c.Format, c.Gzip = http.MethodPut, Document, true
		c.Username, c.Password = "ann", config.NewSecret("pass")
		c.Headers = map[string]config.Secret{"x-api-key": config.NewSecret("k")}
	})
	first, second := batchOf(s, 0, plain(0, 300)...), batchOf(s, 300, plain(300, 2)...)
	mustDeliver(t, s, first)
	mustDeliver(t, s, second)
	mustDeliver(t, s, first)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.lines) != 602 || f.lines[0] != plain(0, 1)[0] {
		t.Errorf("%d lines, the first %q", len(f.lines), f.lines[0])
	}
	if f.keys[0] != f.keys[2] || f.keys[0] == f.keys[1] || len(f.keys[0]) != 32 {
		t.Errorf("idempotency keys %v", f.keys)
	}
	h := f.header[0]
	if h.Get("Authorization") != "Basic YW5uOnBhc3M=" || h.Get("X-Api-Key") != "k" || h.Get("Content-Type") != "application/x-ndjson" || h.Get("User-Agent") != "penstock" {
		t.Errorf("header %v", h)
	}
}

func TestHTTPReusesConnections(t *testing.T) {
	f := &farSide{}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	var mu sync.Mutex
	opened := 0
	f.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		if s == http.StateNew {
			opened++
		}
	}
	f.Start()
	defer f.Close()
	s := openTo(t, f, nil)
	for i := range 20 {
		mustDeliver(t, s, batchOf(s, i, plain(i, 1)...))
	}
	mu.Lock()
	defer mu.Unlock()
	if opened != 1 {
		t.Errorf("%d connections for 20 calls in turn", opened)
	}
}

func TestHTTPAnswers(t *testing.T) {
	tests := []struct {
		name    string
		answer  func(w http.ResponseWriter, r *http.Request)
		verdict Verdict
		shows   string
	}{
		{"413 before the body is read", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		}, TooLarge, ""},
		{"yes, and then broken off", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(http.StatusOK)
			_, _ = io.WriteString(w, "almost")
			panic(http.ErrAbortHandler)
		}, Retry, ""},
		{"yes, and then silence", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, Retry, "no full answer within the timeout"},
		{"an endless answer", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusOK)
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}, Done, ""},
		{"a binary answer", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, "bad\x00\x1b[31m\r\n\r\n row\u00e4 "+strings.Repeat("z", 10_000))
		}, Split, "it says: bad [31m row z"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFarSide(false)
			defer f.Close()
			s := openTo(t, f, func(c *HTTPConfig) { c.Timeout = 2 * time.Second })
			defer f.when(tt.answer)()
			b := batchOf(s, 0, plain(0, 3000)...)
			res := s.Deliver(t.Context(), b)
			clear(b.Bytes()) // the race detector sees who still reads it
			if res.Verdict != tt.verdict {
				t.Errorf("got %v: %v", res.Verdict, res.Err)
			}
			if tt.shows != "" && (res.Err == nil || !strings.Contains(res.Err.Error(), tt.shows)) {
				t.Errorf("error %v, want %q in it", res.Err, tt.shows)
			}
			if res.Err != nil && len(res.Err.Error()) > 500 {
				t.Errorf("an error of %d bytes", len(res.Err.Error()))
			}
		})
	}
}

// lateReader answers at once and reads the body later, as a connection pool may.
type lateReader struct {
	http.Transport
	read chan struct{}
	got  []byte
}

func (l *lateReader) RoundTrip(r *http.Request) (*http.Response, error) {
	go func() {
		<-l.read
		l.got, _ = io.ReadAll(r.Body)
		_ = r.Body.Close()
	}()
	return &http.Response{StatusCode: http.StatusBadRequest, Header: http.Header{}, Body: http.NoBody}, nil
}

func TestHTTPWaitsForLateReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := defaultHTTP()
		cfg.URL = "http://example.com/"
		s, err := openHTTP(t.Context(), cfg, Deps{Destination: "hook"})
		must(t, err)
		late := &lateReader{read: make(chan struct{})}
		s.(*httpSink).transport = late
		b := batchOf(s, 0, plain(0, 3)...)
		want := bytes.Clone(b.Bytes())
		var returned atomic.Bool
		go func() {
			s.Deliver(t.Context(), b)
			clear(b.Bytes())
			returned.Store(true)
		}()
		synctest.Wait()
		if returned.Load() {
			t.Error("returned while the body is still read")
		}
		close(late.read)
		synctest.Wait()
		if !returned.Load() || !bytes.Equal(late.got, want) {
			t.Errorf("returned %v, sent %.40q", returned.Load(), late.got)
		}
	})
}

func TestHTTPPeerDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := l.Addr().String()
	must(t, l.Close())
	cfg := defaultHTTP()
	cfg.URL = "http://" + address + "/in?key=" + urlToken
	s, err := openHTTP(t.Context(), cfg, Deps{Destination: "hook"})
	must(t, err)
	res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 2)...))
	if res.Verdict != Retry || !strings.Contains(res.Err.Error(), "connection refused") || strings.Contains(res.Err.Error(), urlToken) {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
}

func TestTLS(t *testing.T) {
	f := newFarSide(true)
	defer f.Close()
	ca := f.trust(t)
	t.Run("unknown authority stops", func(t *testing.T) {
		s := openTo(t, f, nil)
		if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 1)...)); res.Verdict != Stop {
			t.Errorf("got %v: %v", res.Verdict, res.Err)
		}
	})
	t.Run("another name stops", func(t *testing.T) {
		s := openTo(t, f, func(c *HTTPConfig) { c.TLS.CAFile, c.TLS.ServerName = ca, "other.example" })
		if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 1)...)); res.Verdict != Stop {
			t.Errorf("got %v: %v", res.Verdict, res.Err)
		}
	})
	t.Run("files that are not there", func(t *testing.T) {
		cfg := defaultHTTP()
		cfg.URL = f.URL
		for _, c := range []TLSConfig{{CAFile: "absent"}, {CertFile: "absent", KeyFile: "absent"}, {CAFile: "http_test.go"}} {
			cfg.TLS = c
			if _, err := openHTTP(t.Context(), cfg, Deps{}); fault.CodeOf(err) != "deliver.tls_setup" {
				t.Errorf("%+v: %v", c, err)
			}
		}
	})
}

func TestClientCertificate(t *testing.T) {
	f := &farSide{}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	pool := x509.NewCertPool()
	f.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12}
	folder := t.TempDir()
	cert, key := filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	pool.AddCert(newCertificate(t, cert, key))
	good, err := os.ReadFile(cert)
	must(t, err)
	goodKey, err := os.ReadFile(key)
	must(t, err)
	f.StartTLS()
	defer f.Close()
	s := openTo(t, f, func(c *HTTPConfig) { c.TLS = TLSConfig{CAFile: f.trust(t), CertFile: cert, KeyFile: key} })
	mustDeliver(t, s, batchOf(s, 0, plain(0, 1)...))

	// A certificate that the server does not know stops the destination; putting
	// the right one in place heals it without a restart.
	s.(*httpSink).transport.CloseIdleConnections()
	newCertificate(t, cert, key)
	stopped := false
	for range 50 { // the closing of the connection may overtake the reason
		res := s.Deliver(t.Context(), batchOf(s, 1, plain(1, 1)...))
		if stopped = res.Verdict == Stop; stopped {
			break
		}
		if res.Verdict != Retry {
			t.Fatalf("got %v: %v", res.Verdict, res.Err)
		}
	}
	if !stopped {
		t.Error("a refused certificate does not stop the destination")
	}
	must(t, os.WriteFile(cert, good, 0o600))
	must(t, os.WriteFile(key, goodKey, 0o600))
	mustDeliver(t, s, batchOf(s, 1, plain(1, 1)...))
	expectLines(t, f.received(), 2)
}

func expectLines(t *testing.T, lines []string, n int) {
	t.Helper()
	if len(lines) != n {
		t.Errorf("%d lines, want %d", len(lines), n)
	}
}

// newCertificate writes a self-signed client certificate and its key.
func newCertificate(t *testing.T, certPath, keyPath string) *x509.Certificate {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "penstock"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	must(t, err)
	must(t, os.WriteFile(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return cert
}

func TestHTTPConfig(t *testing.T) {
	tests := []struct {
		key    string
		change func(*HTTPConfig)
	}{
		{"url", func(c *HTTPConfig) { c.URL = "" }},
		{"url", func(c *HTTPConfig) { c.URL = "ftp://x/" }},
		{"url", func(c *HTTPConfig) { c.URL = "https://u:p@x/" }},
		{"method", func(c *HTTPConfig) { c.Method = "GET" }},
		{"batch.events", func(c *HTTPConfig) { c.Batch.Events = 0 }},
		{"batch.bytes", func(c *HTTPConfig) { c.Batch.Bytes = 0 }},
		{"batch.age", func(c *HTTPConfig) { c.Batch.Age = -1 }},
		{"content_type", func(c *HTTPConfig) { c.ContentType = "" }},
		{"headers.a b", func(c *HTTPConfig) { c.Headers = map[string]config.Secret{"a b": config.NewSecret("x")} }},
		{"headers.host", func(c *HTTPConfig) { c.Headers = map[string]config.Secret{"host": config.NewSecret("x")} }},
		{"headers.X", func(c *HTTPConfig) { c.Headers = map[string]config.Secret{"X": config.NewSecret("x\ny")} }},
		{"headers.authorization", func(c *HTTPConfig) {
			c.Headers, c.BearerToken = map[string]config.Secret{"authorization": config.NewSecret("x")}, config.NewSecret("y")
		}},
		{"bearer_token", func(c *HTTPConfig) { c.BearerToken, c.Username = config.NewSecret("x"), "u" }},
		{"bearer_token", func(c *HTTPConfig) { c.BearerToken = config.NewSecret("x\n") }},
		{"username", func(c *HTTPConfig) { c.Password = config.NewSecret("x") }},
		{"username", func(c *HTTPConfig) { c.Username = "a:b" }},
		{"timeout", func(c *HTTPConfig) { c.Timeout = 0 }},
		{"tls.key_file", func(c *HTTPConfig) { c.TLS.CertFile = "x" }},
	}
	for _, tt := range tests {
		cfg := defaultHTTP()
		cfg.URL = "https://example.com/in"
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), tt.key+": ") {
			t.Errorf("%s: got %v", tt.key, err)
		}
	}
}

func BenchmarkHTTP(b *testing.B) {
	for _, zip := range []bool{false, true} {
		b.Run(fmt.Sprintf("gzip=%v", zip), func(b *testing.B) {
			var mu sync.Mutex
			received := int64(0)
			srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				n, _ := io.Copy(io.Discard, r.Body)
				mu.Lock()
				received += n
				mu.Unlock()
			}))
			defer srv.Close()
			cfg := defaultHTTP()
			cfg.URL, cfg.Gzip = srv.URL, zip
			s, err := openHTTP(context.Background(), cfg, Deps{Destination: "bench"})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			docs := make([]string, 700)
			for i := range docs {
				docs[i] = trailEvent
			}
			batch := batchOf(s, 0, docs...)
			b.SetBytes(int64(len(batch.Bytes())))
			b.ReportAllocs()
			calls := int64(0)
			for b.Loop() {
				calls++
				if res := s.Deliver(b.Context(), batch); res.Verdict != Done {
					b.Fatal(res.Err)
				}
			}
			if !zip && received != calls*int64(len(batch.Bytes())) {
				b.Fatalf("%d bytes arrived of %d", received, calls*int64(len(batch.Bytes())))
			}
			b.ReportMetric(float64(calls)*700/b.Elapsed().Seconds(), "events/s")
		})
	}
}
