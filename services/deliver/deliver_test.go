package deliver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/transform"
	"github.com/penstock/penstock/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errOut  = fault.Define("test.out", fault.Retry, "wait")
	errBad  = fault.Define("test.bad", fault.Reject, "mend it")
	errAuth = fault.Define("test.auth", fault.Stop, "renew it")
)

// memory is a sink that keeps what it is given. answer, when set, says what
// becomes of a call; without it all is done.
type memory struct {
	limits sinks.Limits
	answer func(ctx context.Context, b sinks.Batch) sinks.Result

	mu     sync.Mutex
	calls  []time.Time
	sizes  []int
	bytes  []int
	now    int // calls under way
	most   int // at once
	done   map[messages.ID]int
	lines  [][]byte
	closed bool
}

func newMemory() *memory {
	return &memory{limits: sinks.Limits{Events: 100, Bytes: config.MiB, Age: time.Second}, done: map[messages.ID]int{}}
}

func (m *memory) Limits() sinks.Limits { return m.limits }

func (m *memory) Append(dst []byte, e *sinks.Event) []byte {
	return append(append(dst, e.Doc...), '\n')
}

func (m *memory) Deliver(ctx context.Context, b sinks.Batch) sinks.Result {
	m.mu.Lock()
	m.calls = append(m.calls, time.Now())
	m.sizes = append(m.sizes, b.Len())
	m.bytes = append(m.bytes, len(b.Bytes()))
	m.now++
	m.most = max(m.most, m.now)
	m.mu.Unlock()
	var res sinks.Result
	if m.answer != nil {
		res = m.answer(ctx, b)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now--
	for i := range b.Len() {
		verdict := res.Verdict
		for _, x := range res.Items {
			if x.Index == i {
				verdict = x.Verdict
			}
		}
		if verdict == sinks.Done {
			m.done[b.ID(i)]++
			m.lines = append(m.lines, bytes.Clone(b.Event(i)))
		}
	}
	return res
}

func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// state reads under the lock.
func (m *memory) state(read func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	read()
}

func destination() Destination {
	cfg := Defaults()
	cfg.Name, cfg.Type = "test", "memory"
	return cfg
}

// start opens a destination whose counts begin at 0.
func start(t testing.TB, cfg Destination, sink sinks.Sink, deps Deps) *Deliver {
	t.Helper()
	for _, v := range []interface {
		DeletePartialMatch(labels prometheus.Labels) int
	}{eventsConfirmed, eventsFiltered, eventsQuarantined, conditionErrors, replacedBytes, latencySeconds} {
		v.DeletePartialMatch(prometheus.Labels{"destination": cfg.Name})
	}
	d, err := New(cfg, sink, deps)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func shut(t testing.TB, d *Deliver) {
	t.Helper()
	if err := d.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.inHand != 0 || len(d.frames) != 0 || len(d.running) != 0 || d.waiting != 0 || d.stalled != 0 {
		t.Errorf("left over: %d bytes, %d frames, %d batches, %d waiting, %d stalled", d.inHand, len(d.frames), len(d.running), d.waiting, d.stalled)
	}
}

// frameOf makes an EVENTS message of docs, of two pulls in turn.
func frameOf(t testing.TB, seq uint64, docs ...string) topology.In[messages.View] {
	t.Helper()
	b := messages.NewBuilder(messages.Header{Source: "src", Format: "json", EventType: "a.b"})
	var origins [2]uint32
	for i := range min(len(docs), len(origins)) {
		origins[i] = b.Origin(&messages.Origin{Pull: messages.NewPull("test", fmt.Sprint(seq), fmt.Sprint(i)), Source: "src", Key: fmt.Sprint(i), Created: time.Now().Add(-3 * time.Second).UnixNano()})
	}
	for i, doc := range docs {
		b.Add(messages.Event{
			ID: idOf(seq, i), Time: int64(i + 1), Account: "acct", Region: []string{"r0", "r1"}[i%2],
			Origin: origins[i%2], Record: uint64(i), Doc: []byte(doc),
		})
	}
	data := b.Encode(nil)
	v, err := messages.DecodeFrame(data)
	if err != nil {
		t.Fatal(err)
	}
	return topology.In[messages.View]{Value: v, Data: data, Subject: "penstock.event.a.b", Sequence: seq, Attempt: 1, Stored: time.Now()}
}

func idOf(seq uint64, i int) messages.ID {
	return messages.NewID(fmt.Appendf(nil, "%d/%d", seq, i))
}

func docs(n int, pad int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf(`{"n":%d,"pad":%q}`, i, strings.Repeat("x", pad))
	}
	return out
}

func read(t testing.TB, metric prometheus.Metric) *dto.Metric {
	t.Helper()
	var m dto.Metric
	if err := metric.Write(&m); err != nil {
		t.Fatal(err)
	}
	return &m
}

// series counts the destinations whose state is told.
func series(t testing.TB) int {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Error(err)
	}
	for _, f := range families {
		if f.GetName() == "penstock_deliver_breaker_state" {
			return len(f.GetMetric())
		}
	}
	return 0
}

// totals sums up what the facts say, over pulls.
func totals(facts []*messages.Fact) (confirmed, quarantined uint64) {
	for _, f := range facts {
		for _, p := range f.GetDelivered().GetPulls() {
			confirmed += p.GetConfirmed()
			for _, n := range p.GetQuarantined() {
				quarantined += n
			}
		}
	}
	return
}

func TestBatches(t *testing.T) {
	// covers: peers pain 24
	tests := []struct {
		name   string
		limits sinks.Limits
		window int
		frames [][]string
		sizes  []int
		after  time.Duration
	}{
		{"by age", sinks.Limits{Events: 100, Bytes: config.MiB, Age: time.Second}, 0, [][]string{docs(3, 0), docs(4, 0)}, []int{7}, time.Second},
		{"by count, over frames", sinks.Limits{Events: 5, Bytes: config.MiB, Age: time.Second}, 0, [][]string{docs(3, 0), docs(9, 0)}, []int{5, 5, 2}, time.Second},
		{"by encoded bytes", sinks.Limits{Events: 100, Bytes: 2500, Age: time.Second}, 0, [][]string{docs(5, 1000)}, []int{2, 2, 1}, time.Second},
		{"a large event alone", sinks.Limits{Events: 100, Bytes: 100, Age: time.Second}, 0, [][]string{append(docs(1, 0), docs(2, 1000)...)}, []int{1, 1, 1}, 0},
		{"at once without age", sinks.Limits{Events: 100, Bytes: config.MiB}, 0, [][]string{docs(3, 0)}, []int{3}, 0},
		{"early when all frames in hand wait", sinks.Limits{Events: 100, Bytes: config.MiB, Age: time.Hour}, 2, [][]string{docs(3, 0), docs(4, 0)}, []int{7}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink := newMemory()
				sink.limits = tt.limits
				cfg := destination()
				cfg.Concurrency = 1
				d := start(t, cfg, sink, Deps{Window: tt.window})
				defer shut(t, d)
				began := time.Now()
				var wg sync.WaitGroup
				out, want := &topology.Recorder{}, 0
				for i, f := range tt.frames {
					want += len(f)
					wg.Go(func() {
						if err := d.Handle(t.Context(), frameOf(t, uint64(i), f...), out); err != nil {
							t.Error(err)
						}
					})
					synctest.Wait()
				}
				wg.Wait()
				if took := time.Since(began); took != tt.after {
					t.Errorf("took %v, want %v", took, tt.after)
				}
				if !slices.Equal(sink.sizes, tt.sizes) {
					t.Errorf("batches of %v events, want %v", sink.sizes, tt.sizes)
				}
				if confirmed, _ := totals(out.Facts()); int(confirmed) != want || len(sink.done) != want {
					t.Errorf("%d confirmed, %d with the sink; want %d", confirmed, len(sink.done), want)
				}
				for i, n := range sink.bytes {
					if n > int(tt.limits.Bytes) && sink.sizes[i] > 1 {
						t.Errorf("batch %d has %d bytes, limit %d", i, n, tt.limits.Bytes)
					}
				}
			})
		})
	}
}

// covers: DEV-98
func TestFacts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		cfg := destination()
		cfg.Name = "facts"
		cfg.Where = `event.region == "r0" || event.doc.n == 1`
		d := start(t, cfg, sink, Deps{})
		defer shut(t, d)
		in := frameOf(t, 7, docs(6, 0)...) // r0 r1 r0 r1 r0 r1; pulls 0 1 0 1 0 1
		in.Value.SetFate(4, messages.Duplicate)
		out := &topology.Recorder{}
		if err := d.Handle(t.Context(), in, out); err != nil {
			t.Fatal(err)
		}
		if len(sink.done) != 3 || sink.done[idOf(7, 1)] != 1 || sink.done[idOf(7, 3)] != 0 || sink.done[idOf(7, 4)] != 0 {
			t.Errorf("the sink has %v", sink.done)
		}
		facts := out.Facts()
		if len(facts) != 1 {
			t.Fatalf("%d facts", len(facts))
		}
		fact := facts[0].GetDelivered()
		if fact.GetDestination() != "facts" || fact.GetSequence() != 7 || fact.GetEventType() != "a.b" || len(fact.GetPulls()) != 2 {
			t.Fatalf("fact %v", fact)
		}
		for i, want := range [][2]uint64{{2, 0}, {1, 2}} {
			p := fact.GetPulls()[i]
			if !bytes.Equal(p.GetPull(), messages.NewPull("test", "7", fmt.Sprint(i))) || p.GetConfirmed() != want[0] || p.GetFiltered() != want[1] {
				t.Errorf("pull %d: %v, want confirmed and filtered %v", i, p, want)
			}
		}
		if n := read(t, eventsFiltered.WithLabelValues("facts")).GetCounter().GetValue(); n != 2 {
			t.Errorf("%v filtered", n)
		}
		if m := read(t, latencySeconds.WithLabelValues("facts").(prometheus.Metric)); m.GetHistogram().GetSampleCount() != 2 || m.GetHistogram().GetSampleSum() != 8 {
			t.Errorf("latencies %v, want 4 s for each origin", m)
		}
		// Throughput: events, bytes, attempts and their time.
		if n := read(t, eventsConfirmed.WithLabelValues("facts")).GetCounter().GetValue(); n != 3 {
			t.Errorf("%v confirmed", n)
		}
		if n := read(t, bytesSent.WithLabelValues("facts")).GetCounter().GetValue(); n != float64(sink.bytes[0]) {
			t.Errorf("%v bytes, want %d", n, sink.bytes[0])
		}
		if n := read(t, batchesSent.WithLabelValues("facts", "done")).GetCounter().GetValue(); n != 1 {
			t.Errorf("%v batches", n)
		}
		if m := read(t, batchSeconds.WithLabelValues("facts").(prometheus.Metric)); m.GetHistogram().GetSampleCount() != 1 {
			t.Errorf("times %v", m)
		}
	})
}

func TestFrameWithoutLiveEvents(t *testing.T) {
	sink := newMemory()
	d := start(t, destination(), sink, Deps{})
	defer shut(t, d)
	in := frameOf(t, 1, docs(2, 0)...)
	in.Value.SetFate(0, messages.Filtered)
	in.Value.SetFate(1, messages.Duplicate)
	out := &topology.Recorder{}
	if err := d.Handle(t.Context(), in, out); err != nil || len(sink.calls) != 0 || len(out.Facts()) != 1 {
		t.Errorf("%v, %d calls, %d facts", err, len(sink.calls), len(out.Facts()))
	}
}

func TestExpressionErrorsLetEventsPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		cfg := destination()
		cfg.Name, cfg.Where = "where-errors", `event.doc.absent == 1`
		d := start(t, cfg, sink, Deps{})
		defer shut(t, d)
		if err := d.Handle(t.Context(), frameOf(t, 1, docs(2, 0)...), &topology.Recorder{}); err != nil || len(sink.done) != 2 {
			t.Errorf("%v, %d delivered", err, len(sink.done))
		}
		if n := read(t, conditionErrors.WithLabelValues("where-errors")).GetCounter().GetValue(); n != 2 {
			t.Errorf("%v counted", n)
		}
	})
}

func TestInvalidUTF8(t *testing.T) {
	// covers: DEV-143
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		cfg := destination()
		cfg.Name = "utf8"
		d := start(t, cfg, sink, Deps{})
		defer shut(t, d)
		if err := d.Handle(t.Context(), frameOf(t, 1, "{\"a\":\"\xff\xfe\"}", `{"a":"b"}`), &topology.Recorder{}); err != nil {
			t.Fatal(err)
		}
		if got := string(bytes.Join(sink.lines, nil)); got != "{\"a\":\"\uFFFD\uFFFD\"}\n{\"a\":\"b\"}\n" {
			t.Errorf("sent %q", got)
		}
		if n := read(t, replacedBytes.WithLabelValues("utf8")).GetCounter().GetValue(); n != 2 {
			t.Errorf("%v bytes counted", n)
		}
	})
}

func TestRetry(t *testing.T) {
	// covers: F-28 retry, peers pains 13 and 25
	tests := []struct {
		name     string
		results  []sinks.Result
		min, max time.Duration // from the first to the last call
		calls    int
	}{
		{"one failure", []sinks.Result{{Verdict: sinks.Retry, Err: errOut}}, 250 * time.Millisecond, 500 * time.Millisecond, 2},
		{"Retry-After", []sinks.Result{{Verdict: sinks.Retry, Err: errOut, After: 7 * time.Second}}, 7 * time.Second, 7 * time.Second, 2},
		{"two failures", slices.Repeat([]sinks.Result{{Verdict: sinks.Retry, Err: errOut}}, 2), 750 * time.Millisecond, 1500 * time.Millisecond, 3},
		{"a long outage, at most a minute between", slices.Repeat([]sinks.Result{{Verdict: sinks.Retry, Err: errOut}}, 100), 40 * time.Minute, 100 * time.Minute, 101},
		{"stop every 30 s", slices.Repeat([]sinks.Result{{Verdict: sinks.Stop, Err: errAuth}}, 20), 10 * time.Minute, 10 * time.Minute, 21},
		{"an error without a fault", []sinks.Result{{Verdict: sinks.Retry}}, 250 * time.Millisecond, 500 * time.Millisecond, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink := newMemory()
				results := slices.Clone(tt.results)
				sink.answer = func(context.Context, sinks.Batch) (r sinks.Result) {
					if len(results) > 0 {
						r, results = results[0], results[1:]
					}
					return r
				}
				d := start(t, destination(), sink, Deps{})
				defer shut(t, d)
				out := &topology.Recorder{}
				if err := d.Handle(t.Context(), frameOf(t, 1, docs(3, 0)...), out); err != nil {
					t.Fatal(err)
				}
				took := sink.calls[len(sink.calls)-1].Sub(sink.calls[0])
				if len(sink.calls) != tt.calls || took < tt.min || took > tt.max {
					t.Errorf("%d calls in %v; want %d in %v to %v", len(sink.calls), took, tt.calls, tt.min, tt.max)
				}
				confirmed, quarantined := totals(out.Facts())
				if confirmed != 3 || quarantined != 0 || len(out.Quarantined()) != 0 {
					t.Errorf("confirmed %d, quarantined %d", confirmed, quarantined)
				}
			})
		})
	}
}

func TestPartialResults(t *testing.T) {
	// covers: peers pain 20
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		call := 0
		sink.answer = func(_ context.Context, b sinks.Batch) sinks.Result {
			call++
			switch call {
			case 1: // 1 and 4 again, 2 refused
				return sinks.Result{Items: []sinks.Exception{
					{Index: 1, Verdict: sinks.Retry, Err: errOut}, {Index: 2, Verdict: sinks.Reject, Err: errBad.New(nil, "take it")}, {Index: 4, Verdict: sinks.Retry, Err: errOut},
				}}
			case 2:
				if b.Len() != 2 || b.ID(0) != idOf(1, 1) || b.ID(1) != idOf(1, 4) || string(b.Bytes()) != "{\"n\":1,\"pad\":\"\"}\n{\"n\":4,\"pad\":\"\"}\n" {
					t.Errorf("second call has %q", b.Bytes())
				}
				return sinks.Result{Verdict: sinks.Retry, Err: errOut, Items: []sinks.Exception{{Index: 0, Verdict: sinks.Done}}}
			}
			return sinks.Result{}
		}
		d := start(t, destination(), sink, Deps{})
		defer shut(t, d)
		out := &topology.Recorder{}
		if err := d.Handle(t.Context(), frameOf(t, 1, docs(6, 0)...), out); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(sink.sizes, []int{6, 2, 1}) {
			t.Errorf("batches of %v", sink.sizes)
		}
		if confirmed, quarantined := totals(out.Facts()); confirmed != 5 || quarantined != 1 {
			t.Errorf("confirmed %d, quarantined %d", confirmed, quarantined)
		}
		if len(out.Quarantined()) != 1 {
			t.Fatalf("%d quarantined", len(out.Quarantined()))
		}
		q := out.Quarantined()[0]
		if q.GetCode() != "test.bad" || q.GetDestination() != "test" || q.GetHolds() != messages.Quarantine_HOLDS_EVENT || string(q.GetPayload()) != `{"n":2,"pad":""}` ||
			q.GetRecord() != 2 || q.GetOrigin().GetKey() != "0" || q.GetSubject() != "penstock.event.a.b" || q.GetSource() != "src" || !strings.Contains(q.GetReason(), "take it") {
			t.Errorf("quarantine entry %v", q)
		}
		for id, n := range sink.done {
			if n != 1 {
				t.Errorf("%v delivered %d times", id, n)
			}
		}
	})
}

func TestSplitFindsTheBadEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := map[messages.ID]bool{idOf(1, 17): true, idOf(1, 63): true}
		sink := newMemory()
		sink.answer = func(_ context.Context, b sinks.Batch) sinks.Result {
			for i := range b.Len() {
				if bad[b.ID(i)] {
					return sinks.Result{Verdict: sinks.Split, Err: errBad.New(nil, "take a batch")}
				}
			}
			return sinks.Result{}
		}
		d := start(t, destination(), sink, Deps{})
		defer shut(t, d)
		out := &topology.Recorder{}
		if err := d.Handle(t.Context(), frameOf(t, 1, docs(100, 0)...), out); err != nil {
			t.Fatal(err)
		}
		if confirmed, quarantined := totals(out.Facts()); confirmed != 98 || quarantined != 2 || len(sink.done) != 98 {
			t.Errorf("confirmed %d, quarantined %d, with the sink %d", confirmed, quarantined, len(sink.done))
		}
		for _, q := range out.Quarantined() {
			if q.GetRecord() != 17 && q.GetRecord() != 63 {
				t.Errorf("record %d in quarantine", q.GetRecord())
			}
		}
		if len(sink.calls) > 30 {
			t.Errorf("%d calls to find two of a hundred", len(sink.calls))
		}
		if took := sink.calls[len(sink.calls)-1].Sub(sink.calls[0]); took != 0 {
			t.Errorf("halves waited %v", took)
		}
	})
}

func TestTooLargeIsLearned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 3000
		sink := newMemory()
		refusals := 0
		sink.answer = func(_ context.Context, b sinks.Batch) sinks.Result {
			if len(b.Bytes()) > takes {
				refusals++
				return sinks.Result{Verdict: sinks.TooLarge, Err: errBad.New(nil, "take so much")}
			}
			return sinks.Result{}
		}
		cfg := destination()
		cfg.Concurrency = 1
		d := start(t, cfg, sink, Deps{Window: 1})
		defer shut(t, d)
		out := &topology.Recorder{}
		for seq := range uint64(5) {
			if err := d.Handle(t.Context(), frameOf(t, seq, append(docs(49, 500), docs(1, 5000)...)...), out); err != nil {
				t.Fatal(err)
			}
		}
		confirmed, quarantined := totals(out.Facts())
		if confirmed != 5*49 || quarantined != 5 {
			t.Errorf("confirmed %d, quarantined %d", confirmed, quarantined)
		}
		if refusals > 25 {
			t.Errorf("%d refusals: the size is not learned", refusals)
		}
	})
}

func TestStopAlarmsOnceAndHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		sink := newMemory()
		denied := true
		sink.answer = func(context.Context, sinks.Batch) sinks.Result {
			sink.mu.Lock()
			defer sink.mu.Unlock()
			if denied {
				return sinks.Result{Verdict: sinks.Stop, Err: errAuth.New(nil, "log in")}
			}
			return sinks.Result{}
		}
		sink.limits.Events = 1
		cfg := destination()
		cfg.Name = "stopping"
		d := start(t, cfg, sink, Deps{Log: slog.New(slog.NewTextHandler(&log, nil))})
		defer shut(t, d)
		var wg sync.WaitGroup
		out := &topology.Recorder{}
		for seq := range uint64(6) {
			wg.Go(func() {
				if err := d.Handle(t.Context(), frameOf(t, seq, docs(2, 0)...), out); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		time.Sleep(10 * time.Minute) // the clock of the bubble
		if r := d.read(time.Now()); r.state != stopped || r.oldest != 10*time.Minute || r.inFlight != 4 || r.inHand == 0 {
			t.Errorf("state %+v", r)
		}
		sink.state(func() {
			if n := len(sink.calls); n < 20 || n > 4+20 {
				t.Errorf("%d calls in ten minutes", n)
			}
			if sink.most > 4 {
				t.Errorf("%d calls at once", sink.most)
			}
			denied = false
		})
		wg.Wait()
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d alarms:\n%s", n, log.String())
		}
		if !strings.Contains(log.String(), "takes events again") {
			t.Errorf("recovery not told:\n%s", log.String())
		}
		if confirmed, quarantined := totals(out.Facts()); confirmed != 12 || quarantined != 0 || d.read(time.Now()).state != closed {
			t.Errorf("confirmed %d, quarantined %d", confirmed, quarantined)
		}
	})
}

func TestBreakerLetsOneBatchProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		sink.limits.Events = 1
		down := true
		sink.answer = func(context.Context, sinks.Batch) sinks.Result {
			time.Sleep(time.Second) // a slow failure: calls overlap
			sink.mu.Lock()
			defer sink.mu.Unlock()
			if down {
				return sinks.Result{Verdict: sinks.Retry, Err: errOut.New(nil, "reach it")}
			}
			return sinks.Result{}
		}
		cfg := destination()
		cfg.Concurrency, cfg.AdaptiveConcurrency = 8, false
		d := start(t, cfg, sink, Deps{})
		defer shut(t, d)
		done := make(chan error)
		go func() { done <- d.Handle(t.Context(), frameOf(t, 1, docs(40, 0)...), &topology.Recorder{}) }()
		time.Sleep(time.Minute)
		sink.state(func() {
			if sink.most != 8 {
				t.Errorf("%d calls at once before the breaker opened", sink.most)
			}
			sink.most = 0
		})
		if s := d.read(time.Now()).state; s != open {
			t.Errorf("state %v", s)
		}
		time.Sleep(10 * time.Minute)
		sink.state(func() {
			if sink.most != 1 {
				t.Errorf("%d calls at once while open", sink.most)
			}
			down = false
		})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		// How many meet depends on when the one that probed is told.
		if sink.most < 4 || sink.most > 8 || len(sink.done) != 40 {
			t.Errorf("afterwards %d calls at once, %d delivered", sink.most, len(sink.done))
		}
	})
}

func TestBytesInHandAreBounded(t *testing.T) {
	// covers: peers "bounded in-flight bytes"
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		release := make(chan struct{})
		sink.answer = func(context.Context, sinks.Batch) sinks.Result {
			<-release
			return sinks.Result{}
		}
		cfg := destination()
		cfg.MaxInHand = 2 * config.MiB
		cfg.Concurrency = 64
		sink.limits.Bytes = 800 * config.KiB
		d := start(t, cfg, sink, Deps{})
		defer shut(t, d)
		var wg sync.WaitGroup
		out := &topology.Recorder{}
		for seq := range uint64(16) {
			wg.Go(func() {
				if err := d.Handle(t.Context(), frameOf(t, seq, docs(10, 50_000)...), out); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Hour)
		if r := d.read(time.Now()); r.inHand > int64(2*config.MiB)+60_000 || r.inHand < int64(config.MiB) {
			t.Errorf("%d bytes in hand", r.inHand)
		}
		close(release)
		wg.Wait()
		if len(sink.done) != 160 {
			t.Errorf("%d delivered", len(sink.done))
		}
	})
}

func TestStopping(t *testing.T) {
	tests := []struct {
		name string
		// stop ends the work one second in.
		stop   func(d *Deliver, cancel context.CancelFunc)
		answer func(ctx context.Context) sinks.Result
		err    error
		after  time.Duration // from the stop to the return
	}{
		{
			"what is being sent gets the time it needs", nil,
			func(ctx context.Context) sinks.Result { return wait(ctx, 5*time.Second) }, nil, 4 * time.Second,
		},
		{
			"but not for ever", nil,
			func(ctx context.Context) sinks.Result { return wait(ctx, time.Hour) }, errDrained, 8 * time.Second,
		},
		{
			"what waits for a retry is given back at once", nil,
			func(context.Context) sinks.Result { return sinks.Result{Verdict: sinks.Stop, Err: errAuth} }, errDrained, 0,
		},
		{
			"as Drain: what is being sent", func(d *Deliver, _ context.CancelFunc) { d.Drain() },
			func(ctx context.Context) sinks.Result { return wait(ctx, 5*time.Second) }, nil, 4 * time.Second,
		},
		{
			"as Drain: what waits for a retry", func(d *Deliver, _ context.CancelFunc) { d.Drain() },
			func(context.Context) sinks.Result { return sinks.Result{Verdict: sinks.Stop, Err: errAuth} }, errDrained, 0,
		},
		{
			"a failure while stopping", nil,
			func(ctx context.Context) sinks.Result {
				wait(ctx, 3*time.Second)
				return sinks.Result{Verdict: sinks.Retry, Err: errOut}
			}, errDrained, 2 * time.Second,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink := newMemory()
				sink.limits.Age = 0
				sink.answer = func(ctx context.Context, _ sinks.Batch) sinks.Result { return tt.answer(ctx) }
				d := start(t, destination(), sink, Deps{})
				defer shut(t, d)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var stopped time.Time
				time.AfterFunc(time.Second, func() {
					stopped = time.Now()
					if tt.stop != nil {
						tt.stop(d, cancel)
					} else {
						cancel()
					}
				})
				out := &topology.Recorder{}
				err := d.Handle(ctx, frameOf(t, 1, docs(3, 0)...), out)
				if !errors.Is(err, tt.err) {
					t.Errorf("got %v, want %v", err, tt.err)
				}
				if took := time.Since(stopped); took != tt.after {
					t.Errorf("returned after %v, want %v", took, tt.after)
				}
				if (tt.err == nil) != (len(out.Facts()) == 1) {
					t.Errorf("%d facts", len(out.Facts()))
				}
			})
		})
	}
}

func wait(ctx context.Context, dur time.Duration) sinks.Result {
	select {
	case <-time.After(dur):
		return sinks.Result{}
	case <-ctx.Done():
		return sinks.Result{Verdict: sinks.Retry, Err: errOut.New(ctx.Err(), "send")}
	}
}

func TestDrainSendsWhatIsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		sink.limits.Age = time.Hour
		d := start(t, destination(), sink, Deps{})
		defer shut(t, d)
		time.AfterFunc(time.Second, d.Drain)
		began := time.Now()
		if err := d.Handle(t.Context(), frameOf(t, 1, docs(3, 0)...), &topology.Recorder{}); err != nil {
			t.Fatal(err)
		}
		if time.Since(began) != time.Second || len(sink.done) != 3 {
			t.Errorf("%v, %d delivered", time.Since(began), len(sink.done))
		}
	})
}

// What nobody waits for any more is not sent to the end.
func TestGivenUpBatchIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		sink.limits.Age = 0
		ended := make(chan time.Time, 1)
		sink.answer = func(ctx context.Context, _ sinks.Batch) sinks.Result {
			res := wait(ctx, time.Hour)
			ended <- time.Now()
			return res
		}
		d := start(t, destination(), sink, Deps{})
		defer shut(t, d)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if err := d.Handle(ctx, frameOf(t, 1, docs(3, 0)...), &topology.Recorder{}); !errors.Is(err, errDrained) {
			t.Errorf("got %v", err)
		}
		if took := (<-ended).Sub(began); took != 9*time.Second {
			t.Errorf("the call ended after %v, want 9s", took)
		}
		if s := d.read(time.Now()).state; s != closed || d.breaker.fails != 0 {
			t.Errorf("a cancelled call counts as a failure: state %v", s)
		}
	})
}

// A frame that was given up takes its events out of batches that it shares.
func TestGivenUpFrameIsNotSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		fail := true
		sink.answer = func(context.Context, sinks.Batch) sinks.Result {
			sink.mu.Lock()
			defer sink.mu.Unlock()
			if fail {
				return sinks.Result{Verdict: sinks.Retry, Err: errOut, After: time.Minute}
			}
			return sinks.Result{}
		}
		d := start(t, destination(), sink, Deps{Window: 2})
		defer shut(t, d)
		ctx, cancel := context.WithCancel(t.Context())
		gone, kept := make(chan error), make(chan error)
		out := &topology.Recorder{}
		go func() { gone <- d.Handle(ctx, frameOf(t, 1, docs(3, 0)...), out) }()
		synctest.Wait()
		go func() { kept <- d.Handle(t.Context(), frameOf(t, 2, docs(4, 0)...), out) }()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, errDrained) || fault.ClassOf(err) != fault.Retry {
			t.Errorf("given up with %v", err)
		}
		sink.state(func() { fail = false })
		if err := <-kept; err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(sink.sizes, []int{7, 4}) || sink.done[idOf(1, 0)] != 0 || sink.done[idOf(2, 0)] != 1 {
			t.Errorf("batches %v, delivered %v", sink.sizes, sink.done)
		}
	})
}

func TestSinkPanicIsARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		first := true
		sink.answer = func(context.Context, sinks.Batch) sinks.Result {
			if first {
				first = false
				sink.mu.Lock()
				sink.now--
				sink.mu.Unlock()
				panic("boom")
			}
			return sinks.Result{}
		}
		d := start(t, destination(), sink, Deps{})
		defer shut(t, d)
		if err := d.Handle(t.Context(), frameOf(t, 1, docs(3, 0)...), &topology.Recorder{}); err != nil || len(sink.done) != 3 {
			t.Errorf("%v, %d delivered", err, len(sink.done))
		}
	})
}

func TestCorruptFrames(t *testing.T) {
	d := start(t, destination(), newMemory(), Deps{})
	defer shut(t, d)
	in := frameOf(t, 1, docs(50, 1000)...)
	for i := len(in.Data) - 400; i < len(in.Data); i++ { // the body comes last
		in.Data[i] = 0xff
	}
	if err := d.Handle(t.Context(), in, &topology.Recorder{}); fault.ClassOf(err) != fault.Reject {
		t.Errorf("got %v, want a rejection", err)
	}
}

// Whatever a destination answers, each live event is confirmed once or in
// quarantine once, and the ledger says so.
func TestNothingIsLostWhateverIsAnswered(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rnd, feed := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))
				var mu sync.Mutex // of rnd
				sink := newMemory()
				sink.limits = sinks.Limits{Events: 1 + rnd.IntN(70), Bytes: config.Bytes(1 + rnd.IntN(5000)), Age: time.Duration(rnd.IntN(3)) * time.Second}
				sink.answer = func(ctx context.Context, b sinks.Batch) sinks.Result {
					mu.Lock()
					pause := time.Duration(rnd.IntN(2000)) * time.Millisecond
					roll := rnd.IntN(12)
					var items []sinks.Exception
					for i := range b.Len() {
						if v := []sinks.Verdict{sinks.Retry, sinks.Done, sinks.Reject}; rnd.IntN(4) == 0 {
							items = append(items, sinks.Exception{Index: i, Verdict: v[rnd.IntN(3)], Err: errBad})
						}
					}
					mu.Unlock()
					wait(ctx, pause)
					switch roll {
					case 0:
						return sinks.Result{Verdict: sinks.Retry, Err: errOut}
					case 1:
						return sinks.Result{Verdict: sinks.Retry, Err: errOut, Items: items}
					case 2:
						return sinks.Result{Verdict: sinks.Split, Err: errBad}
					case 3:
						return sinks.Result{Verdict: sinks.TooLarge, Err: errBad}
					case 4:
						return sinks.Result{Verdict: sinks.Stop, Err: errAuth}
					case 5:
						return sinks.Result{Items: items}
					}
					return sinks.Result{}
				}
				cfg := destination()
				cfg.Concurrency = 1 + feed.IntN(5)
				d := start(t, cfg, sink, Deps{Window: 8})
				defer shut(t, d)
				out := &topology.Recorder{}
				var wg sync.WaitGroup
				slots := make(chan struct{}, 8)
				want := 0
				for seq := range uint64(40) {
					n := 1 + feed.IntN(120)
					want += n
					giveUp := feed.IntN(5) == 0
					slots <- struct{}{}
					wg.Go(func() {
						defer func() { <-slots }()
						if giveUp { // the first delivery is cut off, the second is not
							ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
							err := d.Handle(ctx, frameOf(t, seq, docs(n, 20)...), out)
							cancel()
							if err == nil {
								return
							}
						}
						if err := d.Handle(t.Context(), frameOf(t, seq, docs(n, 20)...), out); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				confirmed, quarantined := totals(out.Facts())
				if int(confirmed+quarantined) != want || len(out.Facts()) != 40 {
					t.Errorf("confirmed %d + quarantined %d, want %d", confirmed, quarantined, want)
				}
				refused := len(out.Quarantined())
				if refused != int(quarantined) || len(sink.done) < int(confirmed) {
					t.Errorf("%d in quarantine, the ledger says %d; %d with the sink, the ledger says %d", refused, quarantined, len(sink.done), confirmed)
				}
				if sink.most > cfg.Concurrency {
					t.Errorf("%d calls at once, limit %d", sink.most, cfg.Concurrency)
				}
			})
		})
	}
}

func TestBatchSpansLinkTheirFrames(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	before := tracer
	tracer = provider.Tracer("test")
	defer func() { tracer = before }()
	sink := newMemory()
	sink.limits.Age = time.Hour
	d := start(t, destination(), sink, Deps{Window: 2})
	defer shut(t, d)
	var wg sync.WaitGroup
	var spans [2]trace.SpanContext
	for i := range spans {
		ctx, span := provider.Tracer("test").Start(t.Context(), "deliver")
		spans[i] = span.SpanContext()
		wg.Go(func() {
			defer span.End()
			if err := d.Handle(ctx, frameOf(t, uint64(i), docs(2, 0)...), &topology.Recorder{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, s := range recorder.Ended() {
		if s.Name() != "deliver batch" {
			continue
		}
		linked := map[trace.SpanID]bool{}
		for _, l := range s.Links() {
			linked[l.SpanContext.SpanID()] = true
		}
		if !linked[spans[0].SpanID()] || !linked[spans[1].SpanID()] || !linked[s.Parent().SpanID()] {
			t.Errorf("parent %v, links %v; want both of %v", s.Parent().SpanID(), linked, spans)
		}
		return
	}
	t.Error("no span for the batch")
}

func TestGaugesOfOneName(t *testing.T) {
	a, b := start(t, destination(), newMemory(), Deps{}), start(t, destination(), newMemory(), Deps{})
	if n := series(t); n != 1 {
		t.Errorf("%d series", n)
	}
	shut(t, a)
	shut(t, b)
	if n := series(t); n != 0 {
		t.Errorf("%d series after Close", n)
	}
}

func TestCloseReportsAHangingSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		sink.limits.Age = 0
		release := make(chan struct{})
		sink.answer = func(context.Context, sinks.Batch) sinks.Result { <-release; return sinks.Result{} }
		d := start(t, destination(), sink, Deps{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.Handle(ctx, frameOf(t, 1, docs(1, 0)...), &topology.Recorder{}); !errors.Is(err, errDrained) {
			t.Errorf("Handle: %v", err)
		}
		if err := d.Close(ctx); !errors.Is(err, errHangs) {
			t.Errorf("Close: %v", err)
		}
		close(release)
	})
}

func TestConfig(t *testing.T) {
	valid := destination()
	valid.Types, valid.Where = []string{"cloud.>", "a.*"}, `event.region == "x"`
	if err := valid.Validate(); err != nil {
		t.Errorf("valid configuration: %v", err)
	}
	tests := []struct {
		key    string
		change func(*Destination)
	}{
		{"name", func(d *Destination) { d.Name = "a b" }},
		{"name", func(d *Destination) { d.Name = "" }},
		{"type", func(d *Destination) { d.Type = "" }},
		{"types", func(d *Destination) { d.Types = []string{"a..b"} }},
		{"where", func(d *Destination) { d.Where = "event.x" }},
		{"concurrency", func(d *Destination) { d.Concurrency = 0 }},
		{"max_in_hand", func(d *Destination) { d.MaxInHand = 1 }},
		{"drain_timeout", func(d *Destination) { d.DrainTimeout = -1 }},
	}
	for _, tt := range tests {
		cfg := valid
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), tt.key+": ") {
			t.Errorf("%s: got %v", tt.key, err)
		}
	}
}

func TestConfigFromFile(t *testing.T) {
	var file struct {
		Destinations []Destination `yaml:"destinations"`
	}
	err := config.Parse("test.yaml", []byte(`
destinations:
  - name: hook
    type: http
    url: https://example.com/in
    bearer_token: secret
    types: [cloud.aws.>]
    concurrency: 2
    batch: {events: 10, bytes: 64 KiB}
  - {name: disk, type: file, path: "/data/{destination}.ndjson", format: document}
`), &file, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	hook, disk := file.Destinations[0], file.Destinations[1]
	http, ok := hook.Options.(*sinks.HTTPConfig)
	if !ok || hook.Concurrency != 2 || http.Batch != (sinks.Limits{Events: 10, Bytes: 64 * config.KiB, Age: 200 * time.Millisecond}) || http.BearerToken.Reveal() != "secret" {
		t.Errorf("hook is %+v with %+v", hook, hook.Options)
	}
	if f, ok := disk.Options.(*sinks.FileConfig); !ok || f.Format != sinks.Document || disk.MaxInHand != 0 {
		t.Errorf("disk is %+v with %+v", disk, disk.Options)
	}
}

// holder is a sink that takes bytes over and confirms them when it is hurried.
type holder struct {
	memory
	answers chan sinks.Result
	hurried chan struct{}
}

func newHolder() *holder {
	h := &holder{answers: make(chan sinks.Result), hurried: make(chan struct{}, 64)}
	h.limits, h.done = sinks.Limits{Events: 10, Bytes: config.MiB, Age: time.Second}, map[messages.ID]int{}
	h.answer = func(ctx context.Context, b sinks.Batch) sinks.Result {
		b.Release()
		select {
		case res := <-h.answers:
			return res
		case <-ctx.Done():
			return sinks.Result{Verdict: sinks.Retry, Err: errOut.New(context.Cause(ctx), "hold on")}
		}
	}
	return h
}

func (h *holder) Frames() int { return 8 }

func (h *holder) Hurry() {
	select {
	case h.hurried <- struct{}{}:
	default:
	}
}

// Deliver of a holder does not look at the bytes that it has released.
func (h *holder) Deliver(ctx context.Context, b sinks.Batch) sinks.Result {
	n := b.Len()
	res := h.answer(ctx, b)
	if res.Verdict == sinks.Done {
		h.mu.Lock()
		defer h.mu.Unlock()
		for i := range n {
			h.done[b.ID(i)]++
		}
	}
	return res
}

// A sink that holds batches gets more than concurrency and max_in_hand allow, as it
// has taken the bytes over; what it then loses is read from the log again.
func TestHeldBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newHolder()
		cfg := destination()
		cfg.Concurrency, cfg.MaxInHand = 1, config.MiB
		d := start(t, cfg, sink, Deps{Window: 8})
		defer shut(t, d)
		errs := make(chan error, 8)
		outs := make([]*topology.Recorder, 8)
		for i := range outs {
			outs[i] = &topology.Recorder{}
			go func() { errs <- d.Handle(t.Context(), frameOf(t, uint64(i+1), docs(10, 50_000)...), outs[i]) }()
		}
		synctest.Wait()
		if r := d.read(time.Now()); r.inFlight != 8 || r.inHand != 0 {
			t.Errorf("%d batches under way with %d bytes in hand", r.inFlight, r.inHand)
		}
		if len(sink.hurried) == 0 {
			t.Error("the window is full, and the sink was not told")
		}
		for i := range 8 {
			var res sinks.Result
			if i%2 == 1 {
				res = sinks.Result{Verdict: sinks.Retry, Err: errOut.New(nil, "keep what was uploaded")}
			}
			sink.answers <- res
		}
		done, again := 0, 0
		for range 8 {
			switch err := <-errs; fault.CodeOf(err) {
			case "deliver.lost_before_commit":
				again++
			default:
				if err != nil {
					t.Error(err)
				}
				done++
			}
		}
		var facts []*messages.Fact
		for _, out := range outs {
			facts = append(facts, out.Facts()...)
		}
		if confirmed, _ := totals(facts); done != 4 || again != 4 || confirmed != 40 || len(sink.done) != 40 {
			t.Errorf("%d frames done, %d again, %d confirmed, %d at the sink", done, again, confirmed, len(sink.done))
		}
		if r := d.read(time.Now()); r.inFlight != 0 || r.inHand != 0 || d.held != 0 {
			t.Errorf("%d batches, %d bytes, %d held are left", r.inFlight, r.inHand, d.held)
		}
	})
}

// What is held when the process stops gets the drain time to be committed.
func TestDrainHurries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newHolder()
		d := start(t, destination(), sink, Deps{Window: 8})
		defer shut(t, d)
		errs := make(chan error, 1)
		go func() { errs <- d.Handle(t.Context(), frameOf(t, 1, docs(10, 0)...), &topology.Recorder{}) }()
		synctest.Wait()
		d.Drain()
		<-sink.hurried
		sink.answers <- sinks.Result{}
		if err := <-errs; err != nil {
			t.Error(err)
		}
	})
}

// A destination that was down for longer than max_backlog.age goes on with what is
// newer; what it leaves out is counted, and so are frames that get too old in hand.
func TestMaxBacklogSkips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		sink.answer = func(context.Context, sinks.Batch) sinks.Result {
			return sinks.Result{Verdict: sinks.Retry, Err: errOut.New(nil, "reach it")}
		}
		cfg := destination()
		cfg.MaxBacklog = MaxBacklog{Age: time.Hour, Policy: Skip}
		d := start(t, cfg, sink, Deps{})
		defer shut(t, d)
		in := frameOf(t, 1, docs(10, 0)...)
		in.Stored = time.Now().Add(-time.Minute)
		out := &topology.Recorder{}
		began := time.Now()
		if err := d.Handle(t.Context(), in, out); fault.CodeOf(err) != "deliver.drained" || len(out.Facts()) != 0 {
			t.Errorf("in hand: %v, %d facts", err, len(out.Facts()))
		}
		if waited := time.Since(began); waited < 58*time.Minute || waited > time.Hour {
			t.Errorf("given up after %v", waited)
		}
		time.Sleep(time.Second) // until the bus brings it again
		if err := d.Handle(t.Context(), in, out); err != nil {
			t.Error(err)
		}
		skipped := uint64(0)
		for _, p := range out.Facts()[0].GetDelivered().GetPulls() {
			skipped += p.GetSkipped()
		}
		if confirmed, _ := totals(out.Facts()); skipped != 10 || confirmed != 0 {
			t.Errorf("skipped %d, confirmed %d", skipped, confirmed)
		}
		sink.state(func() { sink.answer = nil })
		in = frameOf(t, 2, docs(10, 0)...)
		in.Stored = time.Now()
		out = &topology.Recorder{}
		if err := d.Handle(t.Context(), in, out); err != nil {
			t.Error(err)
		}
		if confirmed, _ := totals(out.Facts()); confirmed != 10 {
			t.Errorf("after the outage %d confirmed", confirmed)
		}
	})
}

// A far side with room for six at once: the pace goes there and stays near, halves
// when it is throttled, and finds back.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pace
		if n := p.now(32); n != startAt {
			t.Errorf("begins with %d", n)
		}
		round := func(verdict sinks.Verdict) {
			n := p.now(32)
			began := time.Now()
			took := 100 * time.Millisecond
			if n > 6 {
				took *= time.Duration(n) // all wait for all
			}
			time.Sleep(took)
			for range n {
				p.record(began, time.Now(), true, n, 32, verdict)
			}
		}
		seen := map[int]bool{}
		for range 100 {
			round(sinks.Done)
			seen[p.now(32)] = true
		}
		for n := range seen {
			if n < 4 || n > 8 {
				t.Errorf("went to %d", n)
			}
		}
		before := p.now(32)
		round(sinks.Retry)
		if n := p.now(32); n != max(1, before/2) {
			t.Errorf("from %d to %d when throttled", before, n)
		}
		for range 20 {
			round(sinks.Retry)
		}
		if n := p.now(32); n != 1 {
			t.Errorf("%d after many failures", n)
		}
		for range 100 {
			round(sinks.Done)
		}
		if n := p.now(32); n < 4 {
			t.Errorf("%d after the outage", n)
		}
	})
}

// A mask hides fields from this destination; a document that it does not understand
// goes to quarantine and not to the destination.
func TestMask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		cfg := destination()
		cfg.Mask = []transform.Mask{
			{Fields: []string{"user.name", "pad"}, Method: transform.Redact},
			{Fields: []string{"user.mail"}, Method: transform.Remove},
		}
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		d := start(t, cfg, sink, Deps{})
		defer shut(t, d)
		out := &topology.Recorder{}
		in := frameOf(t, 1, `{"user":{"name":"ann","mail":"a@example.com"},"n":1}`, `{"user":{"na`, `{"n":3,"pad":"x"}`)
		if err := d.Handle(t.Context(), in, out); err != nil {
			t.Fatal(err)
		}
		got := string(bytes.Join(sink.lines, nil))
		if want := "{\"user\":{\"name\":\"[redacted]\"},\"n\":1}\n{\"n\":3,\"pad\":\"[redacted]\"}\n"; got != want {
			t.Errorf("got %s", got)
		}
		if confirmed, quarantined := totals(out.Facts()); confirmed != 2 || quarantined != 1 {
			t.Errorf("%d confirmed, %d quarantined", confirmed, quarantined)
		}
		if q := out.Quarantined(); len(q) != 1 || q[0].GetCode() != "deliver.mask_failed" || string(q[0].GetPayload()) != `{"user":{"na` {
			t.Errorf("quarantine holds %v", q)
		}
	})
}

// covers: F-25
// A far side that stops at the first bad event, as Splunk does: those before it are
// done, it is refused, and the rest is sent at once, without the pause of an outage.
func TestGoesOnBehindARefusedEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		sink.answer = func(_ context.Context, b sinks.Batch) sinks.Result {
			for i := range b.Len() {
				if !bytes.Contains(b.Event(i), []byte(`"n":3,`)) && !bytes.Contains(b.Event(i), []byte(`"n":7,`)) {
					continue
				}
				res := sinks.Result{Verdict: sinks.Retry, Err: errOut.New(nil, "look at the rest")}
				for k := range i {
					res.Items = append(res.Items, sinks.Exception{Index: k, Verdict: sinks.Done})
				}
				res.Items = append(res.Items, sinks.Exception{Index: i, Verdict: sinks.Reject, Err: errBad.New(nil, "take event %d", i)})
				return res
			}
			return sinks.Result{}
		}
		d := start(t, destination(), sink, Deps{Window: 1})
		defer shut(t, d)
		out := &topology.Recorder{}
		began := time.Now()
		if err := d.Handle(t.Context(), frameOf(t, 1, docs(10, 0)...), out); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %v", took)
		}
		if confirmed, quarantined := totals(out.Facts()); confirmed != 8 || quarantined != 2 || !slices.Equal(sink.sizes, []int{10, 6, 2}) {
			t.Errorf("%d confirmed, %d quarantined in calls of %v", confirmed, quarantined, sink.sizes)
		}
	})
}
