package sources

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/topology"
)

// vendor is a webhook as the vendor describes it: it holds one cursor for a product
// and key, which moves with each call.
type vendor struct {
	t   testing.TB
	url string
	// answer writes what a call gives; nil gives the rows as an array.
	answer func(w http.ResponseWriter, r *http.Request, call int, rows []string)

	mu    sync.Mutex
	rows  []string
	next  int
	calls int
}

const hookSecret = "not-to-be-seen-0123456789"

func newVendor(t testing.TB) *vendor {
	t.Helper()
	v := &vendor{t: t}
	s := httptest.NewServer(http.HandlerFunc(v.serve))
	t.Cleanup(s.Close)
	v.url = s.URL + "/stream"
	return v
}

func (v *vendor) serve(w http.ResponseWriter, r *http.Request) {
	key := r.URL.Query().Get("key")
	if key == "" {
		key = r.Header.Get("X-Api-Key")
	}
	if r.Method != http.MethodGet || r.URL.Path != "/stream" || key != hookSecret || r.URL.Query().Get("product") != "web" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	v.mu.Lock()
	v.calls++
	call := v.calls
	rows := slices.Clone(v.rows[v.next:])
	v.mu.Unlock()
	moved := func() { v.mu.Lock(); v.next += len(rows); v.mu.Unlock() }
	if v.answer != nil {
		rec := &noted{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			if rec.status == http.StatusOK {
				moved()
			}
		}()
		v.answer(rec, r, call, rows)
		return
	}
	moved()
	fmt.Fprintf(w, "[%s]", strings.Join(rows, ",\n"))
}

type noted struct {
	http.ResponseWriter
	status int
}

func (n *noted) WriteHeader(status int) { n.status = status; n.ResponseWriter.WriteHeader(status) }
func (n *noted) Flush()                 { n.ResponseWriter.(http.Flusher).Flush() } //nolint:forcetypeassert // it is one

func (v *vendor) add(rows ...string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rows = append(v.rows, rows...)
}

func row(n int) string {
	return fmt.Sprintf(`{"utc_timestamp":"2026-01-05 12:20:24.%06d","final_action":"Allow","url_path":"/a/%d","web_categories":["News"]}`, n%1000000, n)
}

func rowsOf(n int) []string {
	rows := make([]string, n)
	for i := range rows {
		rows[i] = row(i)
	}
	return rows
}

func (v *vendor) config() CensornetConfig {
	cfg := defaultCensornet()
	cfg.PollConfig = fastPoll()
	cfg.URL, cfg.Key, cfg.Products = v.url, config.NewSecret(hookSecret), []string{"web"}
	return cfg
}

func openHook(t testing.TB, deps Deps, cfg CensornetConfig) Source {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := Catalog.Open(t.Context(), "censornet", cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// covers: CEN-14, CEN-1, CEN-9, CEN-12, CEN-13, CEN-16, CEN-20, F-4: an array, rows one
// after the other, a single object, with and without compression, the key in the
// query or a header; each row once, and the key in no log line.
func TestCensornetShapes(t *testing.T) {
	t.Parallel()
	gz := func(b string) []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		_, _ = z.Write([]byte(b))
		_ = z.Close()
		return out.Bytes()
	}
	shapes := map[string]func(w http.ResponseWriter, rows []string){
		"array": func(w http.ResponseWriter, rows []string) { fmt.Fprintf(w, " \n[%s]\n", strings.Join(rows, " ,\n")) },
		"ndjson": func(w http.ResponseWriter, rows []string) {
			fmt.Fprint(w, "\xef\xbb\xbf"+strings.Join(rows, "\n"))
		},
		"one by one": func(w http.ResponseWriter, rows []string) { fmt.Fprint(w, strings.Join(rows[:min(1, len(rows))], "")) },
		"gzip": func(w http.ResponseWriter, rows []string) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(gz("[" + strings.Join(rows, ",") + "]"))
		},
	}
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v, server := newVendor(t), newPollServer(t)
			want := rowsOf(25)
			if name == "one by one" {
				want = want[:1]
			}
			v.add(want...)
			v.answer = func(w http.ResponseWriter, _ *http.Request, _ int, rows []string) {
				if len(rows) == 0 {
					w.WriteHeader(http.StatusNoContent)
					return
				}
				shape(w, rows)
			}
			cfg := v.config()
			if name == "ndjson" {
				cfg.KeyIn, cfg.KeyName = KeyInHeader, "X-Api-Key"
			}
			log := newLines()
			deps := server.deps(t, "a")
			deps.Log = slog.New(log)
			s := openHook(t, deps, cfg)
			stop := begin(t, s)
			slices.Sort(want)
			eventually(t, "all rows are stored", func() bool { return slices.Equal(server.stored(t).distinct(), want) })
			eventually(t, "it is up", func() bool { return s.Health() == nil })
			if err := stop(); err != nil {
				t.Error(err)
			}
			got := server.stored(t)
			if len(got.records) != len(want) || len(log.with(hookSecret)) > 0 || len(log.with("gap")) > 0 {
				t.Errorf("%d records; log with the key %q, with gaps %q", len(got.records), log.with(hookSecret), log.with("gap"))
			}
			for _, o := range got.origins {
				if o.GetApi() != hookCall || o.GetResource() != "web" {
					t.Errorf("origin %v", o)
				}
			}
		})
	}
}

// covers: CEN-17, CEN-18, CEN-19, CEN-20, LIM-19, LIM-22: an answer that breaks off is
// stored as far as it came, its last bytes are kept, and the rest is a gap in the log
// and the ledger.
func TestCensornetBreaksOff(t *testing.T) {
	t.Parallel()
	v, server := newVendor(t), newPollServer(t)
	v.add(rowsOf(3000)...)
	v.answer = func(w http.ResponseWriter, _ *http.Request, call int, rows []string) {
		if call > 1 {
			fmt.Fprintf(w, "[%s]", strings.Join(rows, ","))
			return
		}
		whole := "[" + strings.Join(rows, ",") + "]"
		w.Header().Set("Content-Length", fmt.Sprint(len(whole)))
		fmt.Fprint(w, whole[:len(whole)*2/3])
		panic(http.ErrAbortHandler)
	}
	log := newLines()
	deps := server.deps(t, "a")
	deps.Log = slog.New(log)
	begin(t, openHook(t, deps, v.config()))
	eventually(t, "the gap is told", func() bool { return len(log.with("level=ERROR", "there is a gap", "broke off")) == 1 })
	v.add(row(5000))
	eventually(t, "it goes on", func() bool { return slices.Contains(server.stored(t).records, row(5000)) })
	got := server.stored(t)
	if n := len(got.records) - 1; n < 1900 || n > 2100 {
		t.Errorf("%d rows of the answer are stored, want about two thirds of 3000", n)
	}
	if got.report.Total.Ended["truncated"] != 1 {
		t.Errorf("the ledger says %+v", got.report.Total.Ended)
	}
	eventually(t, "what was left of the last row is in quarantine", func() bool { return len(quarantined(t, server)) == 1 })
	if q := quarantined(t, server)[0]; q.GetCode() != "framing.truncated" || !strings.HasPrefix(string(q.GetPayload()), `{"utc_timestamp"`) {
		t.Errorf("quarantined %v", q)
	}
}

// covers: CEN-19: an answer that stalls is given up, and what had come of it is stored;
// while the bus is slow, it is not the answer that stalls.
func TestCensornetStalls(t *testing.T) {
	t.Parallel()
	for name, slow := range map[string]bool{"far side": false, "bus": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v, server := newVendor(t), newPollServer(t)
			v.add(rowsOf(3000)...)
			v.answer = func(w http.ResponseWriter, r *http.Request, call int, rows []string) {
				switch {
				case call > 1:
					fmt.Fprint(w, "[]")
					return
				case slow:
					fmt.Fprintf(w, "[%s]", strings.Join(rows, ","))
					return
				}
				fmt.Fprintf(w, "[%s,", strings.Join(rows, ","))
				w.(http.Flusher).Flush() //nolint:forcetypeassert // it is one
				<-r.Context().Done()
			}
			cfg := v.config()
			cfg.Stall = time.Second
			deps := server.deps(t, "a")
			if slow {
				sound := deps.NewOutbox
				deps.NewOutbox = func() topology.Outbox { return slowOutbox{sound(), 3 * cfg.Stall / 2} }
			}
			begin(t, openHook(t, deps, cfg))
			eventually(t, "all rows are stored", func() bool { return len(server.stored(t).distinct()) == 3000 })
		})
	}
}

// While the bus takes nothing, a source that has rows in hand ends all the same.
func TestCensornetEnds(t *testing.T) {
	t.Parallel()
	v, server := newVendor(t), newPollServer(t)
	v.add(rowsOf(3)...)
	deps := server.deps(t, "a")
	deps.Drain = time.Millisecond
	var n atomic.Int64
	deps.NewOutbox = func() topology.Outbox { n.Add(1); return fullOutbox{} }
	stop := begin(t, openHook(t, deps, v.config()))
	eventually(t, "there are rows to store", func() bool { return n.Load() > 0 })
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	eventually(t, "it ends", func() bool { return len(ended) > 0 })
}

// fullOutbox is one of a bus that is full.
type fullOutbox struct{}

func (fullOutbox) Publish(ctx context.Context, _ topology.Message) error { return block(ctx) }
func (fullOutbox) Quarantine(ctx context.Context, _ *messages.Quarantine) error {
	return block(ctx)
}
func (fullOutbox) Fact(*messages.Fact)             {}
func (fullOutbox) Flush(ctx context.Context) error { return block(ctx) }

func block(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// slowOutbox takes its time for frames.
type slowOutbox struct {
	topology.Outbox
	takes time.Duration
}

func (o slowOutbox) Publish(ctx context.Context, m topology.Message) error {
	pause(ctx, o.takes)
	return o.Outbox.Publish(ctx, m)
}

func quarantined(t testing.TB, s *pollServer) (all []*messages.Quarantine) {
	t.Helper()
	if err := s.connect(t, "reader").Read(t.Context(), topology.Span{Subject: "penstock.quarantine.>"}, func(m topology.Stored) error {
		q, err := messages.DecodeQuarantine(m.Data)
		all = append(all, q)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// covers: CEN-19: what is no JSON is kept as it came, the rows around it go on.
func TestCensornetBadAnswer(t *testing.T) {
	t.Parallel()
	v, server := newVendor(t), newPollServer(t)
	v.answer = func(w http.ResponseWriter, _ *http.Request, call int, _ []string) {
		switch call {
		case 1:
			fmt.Fprint(w, row(1)+"\n{\"utc_timestamp\":oops}\n"+row(2)+"\n")
		case 2:
			fmt.Fprint(w, "<html>Sign in to the proxy</html>")
		case 3:
			fmt.Fprint(w, strings.Repeat("{bad}\n", 300)+row(3))
		}
	}
	begin(t, openHook(t, server.deps(t, "a"), v.config()))
	eventually(t, "the rows are stored", func() bool {
		return slices.Equal(server.stored(t).distinct(), []string{row(1), row(2), row(3)})
	})
	eventually(t, "the rest is in quarantine", func() bool {
		var all bytes.Buffer
		for _, q := range quarantined(t, server) {
			_, _ = all.Write(q.GetPayload())
		}
		return bytes.Contains(all.Bytes(), []byte("oops")) && bytes.Contains(all.Bytes(), []byte("Sign in")) && bytes.Count(all.Bytes(), []byte("{bad}")) == 300
	})
	if n := len(quarantined(t, server)); n > 2+maxBad+1 {
		t.Errorf("%d entries in quarantine", n)
	}
}

// covers: CEN-7, CEN-13, CEN-18, DEV-161: refused and throttled calls are waited for and lose
// nothing, since the far side's cursor has not moved; the key is in no error.
func TestCensornetRefused(t *testing.T) {
	t.Parallel()
	v, server := newVendor(t), newPollServer(t)
	want := rowsOf(5)
	v.add(want...)
	var denied atomic.Bool
	denied.Store(true)
	v.answer = func(w http.ResponseWriter, _ *http.Request, call int, rows []string) {
		switch {
		case call == 1:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		case call == 2:
			w.WriteHeader(http.StatusBadGateway)
		case denied.Load():
			w.WriteHeader(http.StatusForbidden)
		default:
			fmt.Fprintf(w, "[%s]", strings.Join(rows, ","))
		}
	}
	log := newLines()
	deps := server.deps(t, "a")
	deps.Log = slog.New(log)
	s := openHook(t, deps, v.config())
	begin(t, s)
	eventually(t, "it says that the key is refused", func() bool { return errors.Is(s.Health(), errHookKey) })
	if text := s.Health().Error(); strings.Contains(text, hookSecret) {
		t.Errorf("the error holds the key: %s", text)
	}
	denied.Store(false)
	eventually(t, "all rows are stored", func() bool { return slices.Equal(server.stored(t).distinct(), want) })
	if len(log.with("gap")) > 0 || len(log.with(hookSecret)) > 0 {
		t.Errorf("gaps %q", log.with("gap"))
	}
}

// covers: CEN-5, CEN-10, CEN-15, CEN-17, LIM-17, LIM-18: more than a day without a
// call is a gap, half a day an alarm, an answer that nobody stored is a gap, and a
// key that another source uses is refused.
func TestCensornetGaps(t *testing.T) {
	t.Parallel()
	v, server := newVendor(t), newPollServer(t)
	cfg := v.config()
	log := newLines()
	deps := server.deps(t, "a")
	deps.Log = slog.New(log)
	cur, err := deps.Bus.Cursor(t.Context(), "censornet", "web "+hookID(cfg))
	if err != nil {
		t.Fatal(err)
	}
	set := func(c hookCursor) {
		t.Helper()
		if err := errors.Join(cur.Load(t.Context()), cur.Set(t.Context(), mustJSON(t, c))); err != nil {
			t.Fatal(err)
		}
	}
	longAgo := time.Now().UTC().Add(-30 * time.Hour)
	set(hookCursor{Source: "poll", Calls: 7, Called: longAgo, Answered: longAgo})
	stop := begin(t, openHook(t, deps, cfg))
	eventually(t, "the gap and the alarm are told", func() bool {
		return len(log.with("level=ERROR", "there is a gap", "more than a day")) == 1 && len(log.with("level=ERROR", "no answer for long")) == 1
	})
	if err := stop(); err != nil {
		t.Error(err)
	}
	now := time.Now().UTC()
	set(hookCursor{Source: "poll", Calls: 9, Called: now, Answered: now.Add(-time.Minute), Open: true})
	stop = begin(t, openHook(t, deps, cfg))
	eventually(t, "the lost answer is told", func() bool { return len(log.with("level=ERROR", "there is a gap", "process ended")) == 1 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	set(hookCursor{Source: "another", Calls: 9, Called: time.Now().UTC().Add(time.Minute)})
	s := openHook(t, deps, cfg)
	begin(t, s)
	eventually(t, "the shared key is refused", func() bool { return errors.Is(s.Health(), errHookShared) })
}

func hookID(cfg CensornetConfig) string {
	return messages.NewID([]byte(cfg.URL), []byte(cfg.Key.Reveal())).String()
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// covers: CEN-18: the memory for an answer of any length is bounded.
func TestCensornetLongAnswer(t *testing.T) {
	v, server := newVendor(t), newPollServer(t)
	const rows = 60_000 // some 30 MB
	filler := strings.Repeat("x", 400)
	v.answer = func(w http.ResponseWriter, _ *http.Request, call int, _ []string) {
		if call > 1 {
			fmt.Fprint(w, "[]")
			return
		}
		fmt.Fprint(w, "[")
		for i := range rows {
			if i > 0 {
				fmt.Fprint(w, ",")
			}
			fmt.Fprintf(w, `{"utc_timestamp":"2026-01-05 12:20:24","n":%d,"url_query":%q}`, i, filler)
		}
		fmt.Fprint(w, "]")
	}
	log := newLines()
	deps := server.deps(t, "a")
	deps.Log = slog.New(log)
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	sink := &heapOutbox{}
	deps.NewOutbox = func() topology.Outbox { return sink }
	begin(t, openHook(t, deps, v.config()))
	eventually(t, "the whole answer is read", func() bool { return len(log.with("pull done", fmt.Sprintf("records=%d ", rows))) == 1 })
	if grew := (sink.most.Load() - int64(before.HeapAlloc)) >> 20; grew > 24 {
		t.Errorf("the heap grew by %d MiB for an answer of 30 MB", grew)
	}
}

// heapOutbox stores nothing and notes the largest heap.
type heapOutbox struct {
	topology.Recorder
	most atomic.Int64
}

func (o *heapOutbox) Publish(context.Context, topology.Message) error { return nil }
func (o *heapOutbox) Fact(*messages.Fact)                             {}
func (o *heapOutbox) Flush(context.Context) error {
	var now runtime.MemStats
	runtime.ReadMemStats(&now)
	o.most.Store(max(o.most.Load(), int64(now.HeapAlloc)))
	return nil
}

// covers: CEN-11, DEV-148, CEN-6, CEN-13.
func TestCensornetConfig(t *testing.T) {
	bad := defaultCensornet()
	bad.URL, bad.KeyIn, bad.KeyName = "http://logs.example.org/x?key=1", "body", "a key"
	bad.Products, bad.MaxRow, bad.Stall, bad.AlarmAfter = []string{"web", "web", "a b"}, 1, 0, 0
	err := bad.Validate()
	for _, key := range []string{"url", "key", "key_in", "key_name", "products[1]", "products[2]", "max_row", "stall", "alarm_after"} {
		if err == nil || !strings.Contains(err.Error(), key+":") {
			t.Errorf("%s is not among the problems: %v", key, err)
		}
	}
}
