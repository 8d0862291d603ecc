package sinks

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
)

func init() { harnesses["webhook_push"] = webhookWorld }

const (
	firstSecret  = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	secondSecret = "whsec_cGVuc3RvY2stdGVzdC1zZWNyZXQtbnVtYmVyLXR3bw=="
)

// webhookLine is the envelope of a webhook's payload.
func webhookLine(t *testing.T, payload []byte) string {
	t.Helper()
	var e struct {
		Type, Timestamp, ID, Source, Account, Region string
		Data                                         json.RawMessage
	}
	must(t, json.Unmarshal(payload, &e))
	return fmt.Sprintf(`{"id":%q,"type":%q,"time":%q,"source":%q,"account":%q,"region":%q,"event":%s}`, e.ID, e.Type, e.Timestamp, e.Source, e.Account, e.Region, e.Data)
}

func webhookWorld(t *testing.T) *world {
	f := newFarSide(true)
	cfg := defaultWebhookPush()
	cfg.URL = f.URL + "/hook?key=" + urlToken
	cfg.Secrets = []config.Secret{config.NewSecret(firstSecret)}
	cfg.BearerToken = config.NewSecret(token)
	cfg.OnePerRequest, cfg.Batch.Events = false, 1000
	cfg.Timeout = 2 * time.Second
	cfg.TLS.CAFile = f.trust(t)
	open := func(cfg WebhookPushConfig) Sink {
		s, err := openWebhookPush(t.Context(), cfg, Deps{Destination: "hook"})
		must(t, err)
		return s
	}
	status := func(code int) func() func() {
		return func() func() {
			return f.when(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Retry-After", "7")
				w.WriteHeader(code)
				_, _ = fmt.Fprintf(w, "no: %s %s %s", r.Header.Get("Authorization"), r.URL, firstSecret)
			})
		}
	}
	return &world{
		sink: open(cfg),
		received: func() []string {
			var lines []string
			for _, body := range f.received() {
				var array []json.RawMessage
				must(t, json.Unmarshal([]byte(body), &array))
				for _, payload := range array {
					lines = append(lines, webhookLine(t, payload))
				}
			}
			return lines
		},
		secrets:  []string{token, urlToken, firstSecret},
		outage:   status(http.StatusBadGateway),
		denial:   status(http.StatusUnauthorized),
		throttle: status(http.StatusServiceUnavailable),
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
				panic(http.ErrAbortHandler)
			})
		},
		partial: func() func() {
			f.bad = func(body string) bool {
				var array []struct{ Data struct{ N int } }
				must(t, json.Unmarshal([]byte(body), &array))
				for _, e := range array {
					if e.Data.N%3 == 0 {
						return true
					}
				}
				return false
			}
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

func webhookTo(t *testing.T, f *farSide, change func(*WebhookPushConfig)) Sink {
	t.Helper()
	cfg := defaultWebhookPush()
	cfg.URL, cfg.Secrets = f.URL, []config.Secret{config.NewSecret(firstSecret)}
	if change != nil {
		change(&cfg)
	}
	must(t, cfg.Validate())
	s, err := openWebhookPush(t.Context(), cfg, Deps{Destination: "hook"})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// The reference library accepts what is sent, with the old key and with the new one,
// and nothing that was changed on the way.
// covers: CEN-33
func TestWebhookSignature(t *testing.T) {
	f := newFarSide(false)
	defer f.Close()
	for _, one := range []bool{true, false} {
		s := webhookTo(t, f, func(c *WebhookPushConfig) {
			c.Secrets = append(c.Secrets, config.NewSecret(secondSecret))
			if !one {
				c.OnePerRequest, c.Batch.Events = false, 100
			}
		})
		docs := plain(0, 3)
		if one {
			docs = docs[:1]
		}
		mustDeliver(t, s, batchOf(s, 0, docs...))
		f.mu.Lock()
		body, header := f.lines[len(f.lines)-1], f.header[len(f.header)-1].Clone()
		f.mu.Unlock()
		if n := len(strings.Fields(header.Get("webhook-signature"))); n != 2 {
			t.Errorf("%d signatures: %s", n, header.Get("webhook-signature"))
		}
		for _, secret := range []string{firstSecret, secondSecret} {
			hook, err := webhooks.NewWebhook(secret)
			must(t, err)
			if err := hook.Verify([]byte(body), header); err != nil {
				t.Errorf("refused: %v", err)
			}
			if hook.Verify([]byte(strings.Replace(body, `"n":0`, `"n":1`, 1)), header) == nil {
				t.Error("a changed body is accepted")
			}
			for _, name := range []string{"webhook-id", "webhook-timestamp"} {
				changed := header.Clone()
				old := changed.Get(name)
				changed.Set(name, old[:len(old)-1]+string('0'+(old[len(old)-1]-'0'+1)%10))
				if hook.Verify([]byte(body), changed) == nil {
					t.Errorf("a changed %s is accepted", name)
				}
			}
		}
		stranger, err := webhooks.NewWebhook("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
		must(t, err)
		if stranger.Verify([]byte(body), header) == nil {
			t.Error("another key accepts it")
		}
	}
}

// The id stays through retries, whatever becomes of the request.
// covers: CEN-35, LIM-26
func TestWebhookID(t *testing.T) {
	f := newFarSide(false)
	defer f.Close()
	s := webhookTo(t, f, nil)
	var seen []string
	heal := f.when(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Get("webhook-id"))
		w.WriteHeader(http.StatusInternalServerError)
	})
	b := batchOf(s, 7, plain(7, 1)...)
	for range 2 {
		if res := s.Deliver(t.Context(), b); res.Verdict != Retry {
			t.Errorf("got %v: %v", res.Verdict, res.Err)
		}
	}
	heal()
	mustDeliver(t, s, b)
	seen = append(seen, f.header[0].Get("webhook-id"))
	for _, id := range seen {
		if id != event(7, "").ID.String() {
			t.Errorf("ids %v", seen)
		}
	}
	stamp, err := strconv.ParseInt(f.header[0].Get("webhook-timestamp"), 10, 64)
	if err != nil || time.Since(time.Unix(stamp, 0)).Abs() > time.Minute {
		t.Errorf("timestamp %d: %v", stamp, err)
	}

	many := webhookTo(t, f, func(c *WebhookPushConfig) { c.OnePerRequest, c.Batch.Events = false, 10 })
	for _, first := range []int{0, 0, 1} {
		mustDeliver(t, many, batchOf(many, first, plain(first, 2)...))
	}
	a, b2, c := f.header[1].Get("webhook-id"), f.header[2].Get("webhook-id"), f.header[3].Get("webhook-id")
	if a != b2 || a == c || strings.Contains(a, ".") {
		t.Errorf("ids of arrays %q %q %q", a, b2, c)
	}
}

// A receiver that said 410 is not bothered again, and nothing is lost.
func TestWebhookGone(t *testing.T) {
	f := newFarSide(false)
	defer f.Close()
	s := webhookTo(t, f, nil)
	var calls atomic.Int32
	heal := f.when(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		w.WriteHeader(http.StatusGone)
	})
	b := batchOf(s, 0, plain(0, 1)...)
	for range 3 {
		if res := s.Deliver(t.Context(), b); res.Verdict != Stop || fault.CodeOf(res.Err) != "deliver.webhook_gone" {
			t.Errorf("got %v: %v", res.Verdict, res.Err)
		}
	}
	if calls.Load() != 1 {
		t.Errorf("%d requests", calls.Load())
	}
	heal()
	s.(*webhookPush).rest = time.Now()
	mustDeliver(t, s, b)
	expectLines(t, f.received(), 1)
}

func TestWebhookStatus(t *testing.T) {
	f := newFarSide(false)
	defer f.Close()
	s := webhookTo(t, f, nil)
	for _, tt := range []struct {
		status  int
		verdict Verdict
		after   time.Duration
	}{
		{204, Done, 0},
		{302, Stop, 0},
		{400, Split, 0},
		{404, Stop, 0},
		{413, TooLarge, 0},
		{429, Retry, 9 * time.Second},
		{502, Retry, 9 * time.Second},
		{504, Retry, 9 * time.Second},
	} {
		calls := 0
		heal := f.when(func(w http.ResponseWriter, _ *http.Request) {
			calls++
			w.Header().Set("Retry-After", "9")
			w.Header().Set("Location", f.URL+"/elsewhere")
			w.WriteHeader(tt.status)
		})
		if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 1)...)); res.Verdict != tt.verdict || res.After != tt.after || calls != 1 {
			t.Errorf("%d: %v after %v in %d requests: %v", tt.status, res.Verdict, res.After, calls, res.Err)
		}
		heal()
	}
}

func TestWebhookBody(t *testing.T) {
	one, err := openWebhookPush(t.Context(), func() WebhookPushConfig {
		c := defaultWebhookPush()
		c.URL, c.Secrets = "https://example.com/", []config.Secret{config.NewSecret(firstSecret)}
		return c
	}(), Deps{Destination: "hook"})
	must(t, err)
	defer one.Close()
	e := event(1, `{"type":"Device","log_type":"added"}`)
	e.Type, e.Source = "opswat.device.added", "opswat"
	body := append(one.Append(nil, e), '\n')
	e.Time, e.Account, e.Region, e.Doc = 0, "", "", nil
	golden.Check(t, "testdata/webhook_push/body.json", append(one.Append(body, e), '\n'))
}

func TestWebhookConfig(t *testing.T) {
	secret := func(s string) func(*WebhookPushConfig) {
		return func(c *WebhookPushConfig) { c.Secrets = append(c.Secrets, config.NewSecret(s)) }
	}
	tests := []struct {
		key    string
		change func(*WebhookPushConfig)
	}{
		{"url", func(c *WebhookPushConfig) { c.URL = "" }},
		{"secrets", func(c *WebhookPushConfig) { c.Secrets = nil }},
		{"secrets[1]", secret("")},
		{"secrets[1]", secret("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")},
		{"secrets[1]", secret("whsec_c2hvcnQ=")},
		{"secrets[1]", secret("whsec_" + strings.Repeat("AAAA", 22))},
		{"secrets[1]", secret("whsec_%%%")},
		{"batch.events", func(c *WebhookPushConfig) { c.Batch.Events = 2 }},
		{"batch.bytes", func(c *WebhookPushConfig) { c.Batch.Bytes = 0 }},
		{"gzip", func(c *WebhookPushConfig) { c.Gzip = true }},
		{"headers.Webhook-Id", func(c *WebhookPushConfig) {
			c.Headers = map[string]config.Secret{"Webhook-Id": config.NewSecret("x")}
		}},
		{"username", func(c *WebhookPushConfig) { c.Password = config.NewSecret("x") }},
		{"timeout", func(c *WebhookPushConfig) { c.Timeout = 0 }},
	}
	for _, tt := range tests {
		cfg := defaultWebhookPush()
		cfg.URL, cfg.Secrets = "https://example.com/in", []config.Secret{config.NewSecret(firstSecret)}
		must(t, cfg.Validate())
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), tt.key+": ") {
			t.Errorf("%s: got %v", tt.key, err)
		}
	}
}

func BenchmarkWebhookPush(b *testing.B) {
	for _, one := range []bool{true, false} {
		b.Run(fmt.Sprintf("one_per_request=%v", one), func(b *testing.B) {
			srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
			defer srv.Close()
			cfg := defaultWebhookPush()
			cfg.URL, cfg.Secrets, cfg.OnePerRequest = srv.URL, []config.Secret{config.NewSecret(firstSecret)}, one
			n := 1
			if !one {
				n, cfg.Batch.Events = 500, 500
			}
			s, err := openWebhookPush(b.Context(), cfg, Deps{Destination: "bench"})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			benchmarkSink(b, s, n, trailEvent)
		})
	}
}

// benchmarkSink measures Append and Deliver of batches of n times one document.
func benchmarkSink(b *testing.B, s Sink, n int, doc string) {
	b.Helper()
	e := event(1, doc)
	var data []byte
	var items []Item
	b.SetBytes(int64(n * len(doc)))
	b.ReportAllocs()
	calls := 0
	for b.Loop() {
		calls++
		data, items = data[:0], items[:0]
		for range n {
			start := len(data)
			data = s.Append(data, e)
			items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
		}
		if res := s.Deliver(b.Context(), NewBatch(data, items)); res.Verdict != Done {
			b.Fatal(res.Err)
		}
	}
	b.ReportMetric(float64(calls*n)/b.Elapsed().Seconds(), "events/s")
}
