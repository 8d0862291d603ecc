package deliver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/topology"
)

// openSink opens a sink of the catalog as main does.
func openSink(t testing.TB, kind string, deps sinks.Deps, change func(cfg any)) sinks.Sink {
	t.Helper()
	cfg, ok := sinks.Catalog.Defaults(kind)
	if !ok {
		t.Fatalf("no sink %s", kind)
	}
	change(cfg)
	s, err := sinks.Catalog.Open(t.Context(), kind, cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A real server that answers badly in every way gets each event all the same,
// but the one that it refuses.
func TestThroughABadServer(t *testing.T) {
	const poison = `"n":13,`
	var mu sync.Mutex
	calls, got := 0, map[string]int{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		calls++
		call := calls
		mu.Unlock()
		if call == 3 {
			_, _ = io.ReadFull(r.Body, make([]byte, 1000))
			panic(http.ErrAbortHandler) // cut in the middle of a batch
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		switch {
		case call == 1:
			w.WriteHeader(http.StatusInternalServerError)
		case call == 2:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		case len(body) > 20_000:
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		case bytes.Contains(body, []byte(poison)):
			w.WriteHeader(http.StatusUnprocessableEntity)
		default:
			mu.Lock()
			defer mu.Unlock()
			for line := range strings.Lines(string(body)) {
				got[line]++
			}
		}
	}))
	srv.Config.ErrorLog = nil
	defer srv.Close()
	sink := openSink(t, "http", sinks.Deps{Destination: "test"}, func(cfg any) {
		c := cfg.(*sinks.HTTPConfig)
		c.URL, c.Batch = srv.URL, sinks.Limits{Events: 150, Bytes: 100_000, Age: 50 * time.Millisecond}
	})
	cfg := destination()
	cfg.Type = "http"
	d := start(t, cfg, sink, Deps{Window: 4})
	defer shut(t, d)
	out := &topology.Recorder{}
	var wg sync.WaitGroup
	for seq := range uint64(4) {
		wg.Go(func() {
			if err := d.Handle(t.Context(), frameOf(t, seq, docs(100, 200)...), out); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	confirmed, quarantined := totals(out.Facts())
	if confirmed != 396 || quarantined != 4 || len(got) != 396 {
		t.Errorf("confirmed %d, quarantined %d, arrived %d", confirmed, quarantined, len(got))
	}
	for line, n := range got {
		if n != 1 {
			t.Errorf("arrived %d times: %.80s", n, line)
		}
	}
	for _, q := range out.Quarantined() {
		if q.GetRecord() != 13 || q.GetCode() != "deliver.http_rejected" || strings.Contains(q.GetReason(), `"pad"`) {
			t.Errorf("entry %v", q)
		}
	}
}

var trailDoc = `{"eventVersion":"1.08","userIdentity":{"type":"AssumedRole","arn":"arn:aws:sts::123456789012:assumed-role/Example/session","accountId":"123456789012"},"eventTime":"2026-01-05T10:11:12Z","eventSource":"s3.amazonaws.com","eventName":"GetObject","awsRegion":"eu-west-1","requestParameters":{"key":"` + strings.Repeat("some/long/key/", 70) + `"},"eventID":"11111111-2222-3333-4444-555555555555"}`

// BenchmarkHandle measures frames to encoded batches, without a destination
// worth the name.
func BenchmarkHandle(b *testing.B) {
	var kept [16]topology.In[messages.View]
	for i := range kept {
		all := make([]string, 1000)
		for j := range all {
			all[j] = trailDoc
		}
		kept[i] = frameOf(b, uint64(i), all...)
	}
	for _, where := range []string{"", `event.region == "r0" || event.account != ""`} {
		b.Run(fmt.Sprintf("where=%v", where != ""), func(b *testing.B) {
			var n counter
			sink := openSink(b, "stdout", sinks.Deps{Destination: "bench", Stdout: &n}, func(cfg any) {
				cfg.(*sinks.StdoutConfig).Batch = sinks.Limits{Events: 1000, Bytes: 2 * config.MiB}
			})
			cfg := destination()
			cfg.Where = where
			d := start(b, cfg, sink, Deps{Window: len(kept)})
			defer shut(b, d)
			b.SetBytes(int64(len(kept) * kept[0].Value.BodySize()))
			b.ReportAllocs()
			rounds := 0
			for b.Loop() {
				rounds++
				var wg sync.WaitGroup
				for _, in := range kept {
					wg.Go(func() {
						if err := d.Handle(context.Background(), in, &topology.Recorder{}); err != nil {
							b.Error(err)
						}
					})
				}
				wg.Wait()
			}
			if want := int64(rounds * len(kept) * 1000); n.lines != want {
				b.Fatalf("%d lines, want %d", n.lines, want)
			}
			b.ReportMetric(float64(n.lines)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

type counter struct{ lines int64 }

// Write is called by one at a time.
func (c *counter) Write(p []byte) (int, error) {
	c.lines += int64(bytes.Count(p, []byte("\n")))
	return len(p), nil
}
