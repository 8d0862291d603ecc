package sources

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/topology"
)

// liveBus is an embedded server whose streams exist. It can be stopped and started
// over the same folder.
type liveBus struct {
	t      testing.TB
	dir    string
	disk   int64
	server *topology.Embedded
	*topology.Bus
}

func startBus(t testing.TB, disk int64) *liveBus {
	t.Helper()
	b := &liveBus{t: t, dir: t.TempDir(), disk: disk}
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

func (b *liveBus) start() {
	b.t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	var err error
	if b.server, err = topology.StartEmbedded(topology.EmbeddedOptions{Dir: b.dir, Disk: b.disk, Log: quiet}); err != nil {
		b.t.Fatal(err)
	}
	if b.Bus, err = topology.Connect(context.Background(), b.server.Connect(topology.Options{Name: "test", Log: quiet})); err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.Apply(context.Background(), topology.Limits{Disk: b.disk, Replicas: 1, Lanes: 1}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *liveBus) stop() {
	if b.server != nil {
		b.Close()
		b.server.Stop()
		b.server = nil
	}
}

// holds returns what is stored.
func (b *liveBus) holds() (frames []httpFrame, facts []*messages.Fact, quarantined []*messages.Quarantine) {
	b.t.Helper()
	read := func(subject string, f func(topology.Stored) error) {
		b.t.Helper()
		if err := b.Read(context.Background(), topology.Span{Subject: subject}, f); err != nil {
			b.t.Fatal(err)
		}
	}
	var all []topology.Message
	read("penstock.record.>", func(m topology.Stored) error {
		all = append(all, topology.Message{Subject: m.Subject, ID: m.ID, Data: bytes.Clone(m.Data)})
		return nil
	})
	read("penstock.ledger.>", func(m topology.Stored) error {
		f, err := messages.DecodeFacts(m.Data)
		facts = append(facts, f.GetFacts()...)
		return err
	})
	read("penstock.quarantine.>", func(m topology.Stored) error {
		q, err := messages.DecodeQuarantine(m.Data)
		quarantined = append(quarantined, q)
		return err
	})
	return framesOf(b.t, all), facts, quarantined
}

// What was answered with 2xx is on the disk: after a stop and a start of the bus it
// is there, once, and the ledger knows it.
// covers: CEN-30, CEN-34
func TestHTTPOverTheBus(t *testing.T) {
	bus := startBus(t, 256<<20)
	listen := func() *httpRig {
		return listenHTTP(t, func(_ *HTTPConfig, d *Deps) {
			d.NewOutbox = func() topology.Outbox { return bus.NewOutbox(topology.Ingest) }
		})
	}
	r := listen()
	const senders, each = 8, 10
	var mu sync.Mutex
	var want []string
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for n := range each {
				row := func(i int) string { return fmt.Sprintf(`{"event":"%d-%d-%d"}`, s, n, i) }
				var got httpAnswer
				rows := []string{row(0), row(1), row(2)}
				switch n % 3 {
				case 0:
					got = r.post("/in", strings.Join(rows, "\n")+"\n{\"broken\":}\n")
				case 1:
					got = r.post(hecPath, strings.Join(rows, ""))
				default:
					body, mediaType := formOf(t, [4]string{"a", "", "", rows[0]}, [4]string{"b", "", "", rows[1] + "\n" + rows[2]})
					got = r.post("/form", zipped(t, body), "Content-Type", mediaType, "Content-Encoding", "gzip")
				}
				if got.status >= 300 {
					t.Errorf("answer %s", got)
					return
				}
				mu.Lock()
				want = append(want, rows...)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	key := []string{"Idempotency-Key", "k-1"}
	if got := r.post("/in", `{"event":"key"}`, key...); got.status != 202 {
		t.Fatal(got)
	}
	want = append(want, `{"event":"key"}`)
	if err := r.stop(); err != nil {
		t.Errorf("run: %v", err)
	}

	bus.stop()
	bus.start()
	r = listen()
	if got := r.post("/in", `{"event":"key"}`, key...); got.status != 202 {
		t.Fatal(got)
	}
	frames, facts, quarantined := bus.holds()
	var got []string
	for _, f := range frames {
		got = append(got, f.records...)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%d rows are stored, want %d", len(got), len(want))
	}
	if n := senders * 4; len(quarantined) != n {
		t.Errorf("%d quarantined, want %d", len(quarantined), n)
	}
	balanceOf(t, facts, frames, quarantined)
}

// A bus that is full is not a place to lose things: senders are told to come again,
// and what was taken before stays.
// covers: LIM-21
func TestHTTPFullBus(t *testing.T) {
	bus := startBus(t, 24<<20)
	r := listenHTTP(t, func(c *HTTPConfig, d *Deps) {
		c.Timeouts.Store = 500 * time.Millisecond
		d.Drain = 100 * time.Millisecond
		d.NewOutbox = func() topology.Outbox { return bus.NewOutbox(topology.Ingest) }
	})
	noise := make([]byte, 256<<10)
	taken := 0
	for range 200 {
		if _, err := rand.Read(noise); err != nil {
			t.Fatal(err)
		}
		got := r.post("/in", `{"n":"`+hex.EncodeToString(noise)+`"}`)
		if got.status == 202 {
			taken++
			continue
		}
		if got.status != 503 || got.header.Get("Retry-After") == "" {
			t.Fatalf("answer %s", got)
		}
		break
	}
	if taken == 0 || taken == 200 {
		t.Fatalf("%d requests were taken", taken)
	}
	if got := r.post("/in", `{"n":1}`); got.status != 503 {
		t.Errorf("answer %s, want what comes next refused", got)
	}
	if frames, _, _ := bus.holds(); len(frames) < taken || len(frames) > taken+1 {
		t.Errorf("%d frames are stored, %d requests were taken", len(frames), taken)
	}
	_ = r.stop() // with the last request in hand
}

// quick is an outbox that stores at once and keeps nothing.
type quick struct{}

func (quick) Publish(context.Context, topology.Message) error        { return nil }
func (quick) Quarantine(context.Context, *messages.Quarantine) error { return nil }
func (quick) Fact(*messages.Fact)                                    {}
func (quick) Flush(context.Context) error                            { return nil }

// BenchmarkHTTP sends bodies over loopback from 16 senders: to an outbox that
// stores at once, which is what receiving costs, and to the embedded server.
func BenchmarkHTTP(b *testing.B) {
	pad := strings.Repeat("0123456789abcdef", 25)
	row := func(kind string, i int) string {
		if kind == "hec" {
			return fmt.Sprintf(`{"time":1767599094.%03d,"host":"web-1","sourcetype":"app","event":{"n":%d,"pad":"%s"}}`, i%1000, i, pad)
		}
		return fmt.Sprintf(`{"time":"2026-01-05T07:44:54.%03dZ","n":%d,"pad":"%s"}`, i%1000, i, pad) + "\n"
	}
	for _, bus := range []string{"quick", "nats"} {
		for _, kind := range []string{"ndjson", "ndjson_gzip", "hec"} {
			for _, rows := range []int{1, 1000} {
				b.Run(fmt.Sprintf("%s/%s/%d", bus, kind, rows), func(b *testing.B) {
					outbox := func() topology.Outbox { return quick{} }
					if bus == "nats" {
						live := startBus(b, 4<<30)
						outbox = func() topology.Outbox { return live.NewOutbox(topology.Ingest) }
					}
					r := listenHTTP(b, func(_ *HTTPConfig, d *Deps) { d.NewOutbox = outbox })
					transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
					client := &http.Client{Transport: transport}
					defer transport.CloseIdleConnections()
					var text strings.Builder
					for i := range rows {
						text.WriteString(row(strings.TrimSuffix(kind, "_gzip"), i))
					}
					body, path, scheme := []byte(text.String()), "/in", "Bearer "
					b.SetBytes(int64(len(body)))
					if kind == "ndjson_gzip" {
						body = []byte(zipped(b, text.String()))
					}
					if kind == "hec" {
						path, scheme = hecPath, "Splunk "
					}
					b.SetParallelism(8) // of 2 processors
					b.ReportAllocs()
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, r.url+path, bytes.NewReader(body))
							if err != nil {
								b.Error(err)
								return
							}
							req.Header.Set("Authorization", scheme+tokenA)
							if kind == "ndjson_gzip" {
								req.Header.Set("Content-Encoding", "gzip")
							}
							resp, err := client.Do(req)
							if err != nil {
								b.Error(err)
								return
							}
							_, _ = io.Copy(io.Discard, resp.Body)
							_ = resp.Body.Close()
							if resp.StatusCode >= 300 {
								b.Errorf("status %d", resp.StatusCode)
								return
							}
						}
					})
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
					b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "events/s")
				})
			}
		}
	}
}
