package deliver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/httpserver"
	"github.com/penstock/penstock/services/internal/transform"
	"github.com/penstock/penstock/topology"
)

// pullWorld is a bus whose log is fetched by HTTP.
type pullWorld struct {
	t      testing.TB
	dir    string
	server *topology.Embedded
	bus    *topology.Bus
	stored uint64
}

func newPullWorld(t testing.TB, limits topology.Limits) *pullWorld {
	t.Helper()
	w := &pullWorld{t: t, dir: t.TempDir()}
	w.start(limits)
	return w
}

// start starts the server, on what an earlier one has left.
func (w *pullWorld) start(limits topology.Limits) {
	w.t.Helper()
	if limits.Disk == 0 {
		limits.Disk = 256 << 20
	}
	quiet := slog.New(slog.DiscardHandler)
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: w.dir, Disk: limits.Disk, Log: quiet})
	if err != nil {
		w.t.Fatal(err)
	}
	w.server = server
	w.t.Cleanup(server.Stop)
	w.bus = w.connect("one")
	if _, err := w.bus.Apply(w.t.Context(), limits); err != nil {
		w.t.Fatal(err)
	}
}

func (w *pullWorld) connect(name string) *topology.Bus {
	w.t.Helper()
	bus, err := topology.Connect(w.t.Context(), w.server.Connect(topology.Options{Name: name, Log: slog.New(slog.DiscardHandler)}))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(bus.Close)
	return bus
}

// crash ends the server and all that hangs on it.
func (w *pullWorld) crash() {
	w.bus.Close()
	w.server.Stop()
}

// store stores frames of n documents each, whose numbers go on.
func (w *pullWorld) store(eventType string, frames, n int) {
	w.t.Helper()
	out := w.bus.NewOutbox(topology.Route)
	for range frames {
		b := messages.NewBuilder(messages.Header{Source: "src", Format: "json", EventType: eventType})
		origin := b.Origin(&messages.Origin{Pull: messages.NewPull("test", fmt.Sprint(w.stored)), Source: "src"})
		for i := range n {
			number := w.stored*uint64(n) + uint64(i)
			b.Add(messages.Event{ID: messages.NewID(fmt.Append(nil, number)), Time: 1, Origin: origin, Record: uint64(i), Doc: fmt.Appendf(nil, `{"n":%d,"user":"ann"}`, number)})
		}
		w.stored++
		if err := out.Publish(w.t.Context(), topology.Message{Subject: topology.EventSubject(eventType), ID: fmt.Sprint("frame", w.stored), Data: b.Encode(nil)}); err != nil {
			w.t.Fatal(err)
		}
		if frames > 10 && w.stored%100 != 0 {
			continue
		}
		// What is under way together may be stored in another order.
		if err := out.Flush(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
	}
}

// replica is one process that serves.
type replica struct {
	w    *pullWorld
	url  string
	stop func()
}

// serve starts a replica of the destination pull on a bus.
func (w *pullWorld) serve(bus *topology.Bus, change func(*Destination, *sinks.WebhookPullConfig)) *replica {
	w.t.Helper()
	cfg := destination()
	cfg.Name, cfg.Type = "pull", "webhook_pull"
	options, _ := sinks.Catalog.Defaults("webhook_pull")
	kind := options.(*sinks.WebhookPullConfig)
	kind.Address, kind.Rate = "127.0.0.1:0", httpserver.Rate{}
	kind.Streams = map[string][]string{"web": {"web.>"}, "all": {">"}}
	if change != nil {
		change(&cfg, kind)
	}
	events, err := NewEventLog(cfg, bus)
	if err != nil {
		w.t.Fatal(err)
	}
	sink, err := sinks.Catalog.Open(w.t.Context(), cfg.Type, kind, sinks.Deps{Destination: cfg.Name, Bus: bus, Events: events, Drain: 2 * time.Second})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- sink.(sinks.Server).Run(ctx) }()
	r := &replica{w: w}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(r.stop)
	at := sink.(interface{ Addr() net.Addr })
	eventually(w.t, "it listens", func() bool { return at.Addr() != nil })
	r.url = "http://" + at.Addr().String()
	eventually(w.t, "it knows the keys", func() bool { status, _, _ := r.get("/healthz", ""); return status == 200 })
	return r
}

// eventually polls for what the server does in its own time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(2 * time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited too long until %s", what)
		case <-tick.C:
		}
	}
}

// key makes a consumer.
func (w *pullWorld) key(name string, streams ...string) string {
	w.t.Helper()
	key, err := sinks.NewConsumers(w.bus.Consumers(), "pull").Add(w.t.Context(), name, streams, time.Time{})
	if err != nil {
		w.t.Fatal(err)
	}
	return key
}

func (r *replica) get(path, key string) (int, http.Header, string) {
	r.w.t.Helper()
	request, err := http.NewRequestWithContext(r.w.t.Context(), http.MethodGet, r.url+path, http.NoBody)
	if err != nil {
		r.w.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+key)
	request.Close = true
	answer, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		r.w.t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		r.w.t.Fatal(err)
	}
	return answer.StatusCode, answer.Header, string(body)
}

// want fetches a path and compares the numbers of the rows; it returns the cursor.
func (r *replica) want(key, path string, status int, numbers ...int) string {
	r.w.t.Helper()
	got, header, body := r.get(path, key)
	if got != status || status == 200 && !slices.Equal(numbersOf(r.w.t, body), numbers) {
		r.w.t.Fatalf("GET %s: %d %.300s, want %d %v", path, got, body, status, numbers)
	}
	return header.Get("Penstock-Cursor")
}

func numbersOf(t testing.TB, body string) (all []int) {
	t.Helper()
	for line := range strings.Lines(body) {
		var row struct{ N int }
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatalf("row %q: %v", line, err)
		}
		all = append(all, row.N)
	}
	return all
}

// Two consumers have their own positions, and see what the destination sees: its
// types, its expression, its masks.
// covers: F-30, CEN-10, CEN-15, LIM-18, LIM-26, LIM-27
func TestPullThroughTheLog(t *testing.T) {
	w := newPullWorld(t, topology.Limits{})
	r := w.serve(w.bus, func(d *Destination, c *sinks.WebhookPullConfig) {
		d.Types, d.Where = []string{"web.*", "mail"}, "event.doc.n % 2 == 0"
		d.Mask = []transform.Mask{{Fields: []string{"user"}, Method: transform.Redact}}
		c.FirstWindow = time.Hour
	})
	one, two := w.key("one"), w.key("two", "web")
	eventually(t, "the keys are known", func() bool { status, _, _ := r.get("/v1/streams/web", two); return status == 204 })
	w.store("web.allow", 2, 4)     // 0 to 7
	w.store("mail", 1, 4)          // 8 to 11
	w.store("web.deep.down", 1, 4) // 12 to 15
	w.store("other", 1, 4)         // 16 to 19
	w.store("web.block", 1, 4)     // 20 to 23
	cursor := r.want(one, "/v1/streams/web?limit=3", 200, 0, 2, 4)
	r.want(two, "/v1/streams/web", 200, 0, 2, 4, 6, 20, 22)
	r.want(one, "/v1/streams/web?ack="+cursor, 200, 6, 20, 22)
	r.want(one, "/v1/streams/all?limit=7", 200, 0, 2, 4, 6, 8, 10, 20)
	if _, _, body := r.get("/v1/streams/web?limit=1", two); body != `{"id":"`+messages.NewID([]byte("0")).String()+`","n":0,"user":"[redacted]"}`+"\n" {
		t.Errorf("row %s", body)
	}
	events, err := NewEventLog(Destination{Name: "pull", Types: []string{"web.*"}}, w.bus)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.Only([]string{"mail"}); err == nil {
		t.Error("a stream that the destination has not")
	}
	web, err := events.Only([]string{">"})
	if err != nil {
		t.Fatal(err)
	}
	if n, oldest, err := web.Behind(t.Context(), sinks.Place{Sequence: 2}); n != 2 || time.Since(oldest) > time.Minute || err != nil {
		t.Errorf("behind %d since %v, %v", n, oldest, err)
	}
}

// What was served and not acknowledged comes again after a crash, what was
// acknowledged does not.
// covers: CEN-19, CEN-22, LIM-19, LIM-20
func TestPullOverCrashes(t *testing.T) {
	w := newPullWorld(t, topology.Limits{})
	r := w.serve(w.bus, nil)
	key := w.key("one")
	w.store("web.allow", 3, 4)
	var first string
	eventually(t, "rows come", func() bool {
		status, header, _ := r.get("/v1/streams/web?limit=6", key)
		first = header.Get("Penstock-Cursor")
		return status == 200
	})
	restart := func() {
		r.stop()
		w.crash()
		w.start(topology.Limits{})
		r = w.serve(w.bus, nil)
	}
	restart()
	again := r.want(key, "/v1/streams/web?limit=6", 200, 0, 1, 2, 3, 4, 5)
	if again != first {
		t.Errorf("cursor %s, was %s", again, first)
	}
	restart()
	r.want(key, "/v1/streams/web?limit=2&ack="+again, 200, 6, 7)
	restart()
	last := r.want(key, "/v1/streams/web?auto_ack=1", 200, 6, 7, 8, 9, 10, 11)
	restart()
	r.want(key, "/v1/streams/web", 204)
	r.want(key, "/v1/streams/web?ack="+last, 204)
}

// Replicas serve the same positions, one request at a time, and know within moments
// that a key was revoked.
func TestPullReplicas(t *testing.T) {
	w := newPullWorld(t, topology.Limits{})
	a, b := w.serve(w.bus, nil), w.serve(w.connect("two"), nil)
	key := w.key("one")
	known := func(status int) func() bool {
		return func() bool {
			one, _, _ := a.get("/v1/streams/all", key)
			two, _, _ := b.get("/v1/streams/all", key)
			return one == status && two == status
		}
	}
	eventually(t, "both know the key", known(204))
	w.store("web.allow", 4, 5)
	ack := ""
	for i := range 10 {
		r := []*replica{a, b}[i%2]
		ack = "&ack=" + r.want(key, "/v1/streams/web?limit=2"+ack, 200, 2*i, 2*i+1)
	}
	a.want(key, "/v1/streams/web?limit=2"+ack, 204)
	waited := make(chan string, 1)
	go func() {
		_, _, body := a.get("/v1/streams/web?wait=50", key)
		waited <- body
	}()
	eventually(t, "the position is held", func() bool {
		all, err := sinks.NewConsumers(w.bus.Consumers(), "pull").List(t.Context())
		return err == nil && all[0].Positions["web"].Holder != ""
	})
	b.want(key, "/v1/streams/web", 409)
	w.store("web.allow", 1, 5)
	if got := numbersOf(t, <-waited); !slices.Equal(got, []int{20, 21, 22, 23, 24}) {
		t.Errorf("woke with %v", got)
	}
	b.want(key, "/v1/streams/web", 200, 20, 21, 22, 23, 24)
	if err := sinks.NewConsumers(w.bus.Consumers(), "pull").Revoke(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the key is worthless", known(401))
}

// What the keeper has trimmed is told, with where it goes on.
// covers: CEN-5, CEN-17, LIM-17
func TestPullAfterTrimming(t *testing.T) {
	w := newPullWorld(t, topology.Limits{Keep: map[string]time.Duration{topology.Events: time.Millisecond}})
	r := w.serve(w.bus, nil)
	key := w.key("one")
	w.store("web.allow", 3, 4)
	eventually(t, "rows come", func() bool {
		status, _, _ := r.get("/v1/streams/web?limit=6", key)
		return status == 200
	})
	events, err := NewEventLog(Destination{Name: "pull"}, w.bus)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var keeping sync.WaitGroup
	keeping.Go(func() { _ = w.bus.Keep(ctx) })
	eventually(t, "the log is trimmed", func() bool {
		first, _, _, err := events.Bounds(t.Context(), time.Time{})
		return err == nil && first == 4
	})
	cancel()
	keeping.Wait()
	w.store("web.allow", 1, 4)
	status, _, body := r.get("/v1/streams/web", key)
	if status != 410 || !strings.Contains(body, `"oldest":"0000000000040000000"`) {
		t.Fatalf("%d %s", status, body)
	}
	r.want(key, "/v1/streams/web?from=oldest", 200, 12, 13, 14, 15)
	if _, err := events.Read(t.Context(), sinks.Place{Sequence: 100}, nil); err == nil {
		t.Error("a place behind the end of the log is none")
	}
}

// What is trimmed while it is read is told, also when nothing comes behind it.
func TestPullTrimmedInMidRead(t *testing.T) {
	w := newPullWorld(t, topology.Limits{Keep: map[string]time.Duration{topology.Events: time.Millisecond}})
	w.store("web.allow", 3, 1)
	events, err := NewEventLog(Destination{Name: "pull", Types: []string{"web.allow"}}, w.bus)
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	at, err := events.Read(t.Context(), sinks.Place{Sequence: 1}, func(sinks.Place, *sinks.Event) bool {
		if read++; read > 1 {
			return true
		}
		ctx, cancel := context.WithCancel(t.Context())
		var keeping sync.WaitGroup
		keeping.Go(func() { _ = w.bus.Keep(ctx) })
		eventually(t, "the log is trimmed", func() bool {
			first, _, _, err := events.Bounds(t.Context(), time.Time{})
			return err == nil && first == 4
		})
		cancel()
		keeping.Wait()
		return true
	})
	if !errors.Is(err, sinks.ErrLogTrimmed) {
		t.Errorf("read %d events of three up to %s, %v", read, at, err)
	}
}

// The commands of the guide work with the real curl.
// covers: CEN-2
func TestPullGuide(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("the commands of the guide need curl")
	}
	w := newPullWorld(t, topology.Limits{})
	r := w.serve(w.bus, func(_ *Destination, c *sinks.WebhookPullConfig) { c.Timeouts.Wait = time.Second })
	key := w.key("siem")
	eventually(t, "the key is known", func() bool { status, _, _ := r.get("/v1/streams/web", key); return status == 204 })
	text, err := os.ReadFile("../../docs/guides/pull-webhook.md")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(text), "\n```sh\n")[1:]
	if len(parts) < 5 {
		t.Fatalf("%d commands", len(parts))
	}
	for _, part := range parts {
		command, _, _ := strings.Cut(part, "\n```")
		w.store("web.allow", 1, 3)
		w.store("mail", 1, 3)
		run := exec.CommandContext(t.Context(), "sh", "-euc", command)
		run.Dir = t.TempDir()
		run.Env = append(os.Environ(), "PENSTOCK="+r.url, "KEY="+key, "ROUNDS=4")
		out, err := run.CombinedOutput()
		if err != nil || strings.Contains(string(out), `"error"`) || !strings.Contains(string(out), `"n":`) && !strings.Contains(string(out), "ok") && !strings.Contains(string(out), "204") {
			t.Errorf("%s\n%v: %s", command, err, out)
		}
	}
}

// The consumer of the guide gets every row whole, and none twice, when an answer is cut
// in the middle and penstock is away for a moment.
func TestPullGuideCut(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("the commands of the guide need curl")
	}
	w := newPullWorld(t, topology.Limits{})
	r := w.serve(w.bus, func(_ *Destination, c *sinks.WebhookPullConfig) { c.Limits.Rows = 2 })
	key := w.key("siem")
	eventually(t, "the key is known", func() bool { status, _, _ := r.get("/v1/streams/web", key); return status == 204 })
	w.store("web.allow", 1, 6)
	asked := 0
	front := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, in *http.Request) {
		if asked++; asked == 3 { // before it comes to penstock
			http.Error(out, "away", http.StatusServiceUnavailable)
			return
		}
		status, header, body := r.get(in.URL.RequestURI(), key)
		maps.Copy(out.Header(), header)
		out.WriteHeader(status)
		if asked == 1 {
			_, _ = io.WriteString(out, body[:len(body)/2])
			_ = http.NewResponseController(out).Flush()
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(out, body)
	}))
	defer front.Close()
	text, err := os.ReadFile("../../docs/guides/pull-webhook.md")
	if err != nil {
		t.Fatal(err)
	}
	for part := range strings.SplitSeq(string(text), "\n```sh\n") {
		command, _, _ := strings.Cut(part, "\n```")
		if !strings.Contains(command, "ROUNDS") {
			continue
		}
		command = strings.ReplaceAll(command, "sleep 5", "sleep 0")
		run := exec.CommandContext(t.Context(), "sh", "-uc", command)
		run.Dir = t.TempDir()
		run.Env = append(os.Environ(), "PENSTOCK="+front.URL, "KEY="+key, "ROUNDS=5")
		out, err := run.Output()
		if err != nil || !slices.Equal(numbersOf(t, string(out)), []int{0, 1, 2, 3, 4, 5}) {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// Fetching a long log costs the same for each page, wherever it is.
func BenchmarkPull(b *testing.B) {
	const perFrame = 1000
	for _, limit := range []int{1000, 10_000} {
		b.Run(fmt.Sprint(limit), func(b *testing.B) {
			w := newPullWorld(b, topology.Limits{Disk: 1 << 30})
			frames := 1000
			w.store("web.allow", frames, perFrame)
			r := w.serve(w.bus, func(_ *Destination, c *sinks.WebhookPullConfig) {
				c.FirstWindow, c.Limits.Page = time.Hour, 16*config.MiB
			})
			key := w.key("one")
			eventually(b, "the key is known", func() bool {
				status, _, _ := r.get("/v1/streams/all?from=now", key)
				return status == 204
			})
			b.ResetTimer()
			for b.Loop() {
				rows, cursor, began := 0, "", time.Now()
				var tenth, last time.Duration
				for page := 0; ; page++ {
					start := time.Now()
					status, header, body := r.get(fmt.Sprintf("/v1/streams/web?limit=%d%s", limit, cursor), key)
					if status == 204 {
						break
					}
					rows += strings.Count(body, "\n")
					cursor = "&ack=" + header.Get("Penstock-Cursor")
					if took := time.Since(start); rows <= frames*perFrame/10 {
						tenth += took
					} else if rows > frames*perFrame*9/10 {
						last += took
					}
				}
				if rows != frames*perFrame {
					b.Fatalf("%d rows", rows)
				}
				b.ReportMetric(float64(rows)/time.Since(began).Seconds(), "rows/s")
				b.ReportMetric(tenth.Seconds(), "first-tenth-s")
				b.ReportMetric(last.Seconds(), "last-tenth-s")
				if err := sinks.NewConsumers(w.bus.Consumers(), "pull").Rewind(b.Context(), "one", "web", sinks.Place{Sequence: 1}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
