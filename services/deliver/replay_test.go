package deliver

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/selection"
	"github.com/penstock/penstock/topology"
)

// tagged is a sink that keeps each event with its replay.
type tagged struct{ *memory }

func (s tagged) Append(dst []byte, e *sinks.Event) []byte {
	return append(append(append(dst, e.Replay...), ' '), append(e.Doc, '\n')...)
}

// repeats counts the documents by what they have in front.
func (m *memory) repeats(replay string) map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[string]int{}
	for _, line := range m.lines {
		if doc, ok := bytes.CutPrefix(line, []byte(replay+" ")); ok {
			all[string(doc)]++
		}
	}
	return all
}

// replayWorld is a log, and destinations that are replayed to.
type replayWorld struct {
	*pullWorld
	sink *memory

	mu     sync.Mutex
	cfg    Destination
	paused bool
	gone   bool
	opened atomic.Int64
}

func newReplayWorld(t *testing.T) *replayWorld {
	w := &replayWorld{pullWorld: newPullWorld(t, topology.Limits{}), sink: newMemory(), cfg: destination()}
	w.sink.limits.Age = 10 * time.Millisecond
	return w
}

// fill stores frames one after the other, as store does with few.
func (w *replayWorld) fill(eventType string, frames, n int) {
	w.t.Helper()
	for ; frames > 0; frames -= 10 {
		w.store(eventType, min(frames, 10), n)
	}
}

// impatient is a connection whose frames come again soon.
func (w *replayWorld) impatient(name string) *topology.Bus {
	w.t.Helper()
	bus, err := topology.Connect(w.t.Context(), w.server.Connect(topology.Options{Name: name, AckWait: 5 * time.Second, Log: slog.New(slog.DiscardHandler)}))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(bus.Close)
	return bus
}

func (w *replayWorld) current(name string) (Destination, bool, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cfg, w.paused, name == w.cfg.Name && !w.gone
}

func (w *replayWorld) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// process takes up replays until the test ends.
func (w *replayWorld) process(bus *topology.Bus) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = bus.RunJobs(ctx, Replays(ReplayDeps{Bus: bus, Current: w.current, Open: func(context.Context, Destination, string) (sinks.Sink, error) {
			w.opened.Add(1)
			return tagged{w.sink}, nil
		}}))
	}()
	w.t.Cleanup(func() { cancel(); <-ended })
}

// replay makes a job of all that is stored.
func (w *replayWorld) replay(change func(*jobs.Replay)) topology.Job {
	w.t.Helper()
	_, next, err := w.bus.History(topology.Events, nil).Bounds(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	spec := jobs.Replay{Destination: w.cfg.Name, First: 1, Until: next}
	if change != nil {
		change(&spec)
	}
	j, err := w.bus.AddJob(w.t.Context(), topology.Job{Kind: jobs.KindReplay, Spec: jobs.Write(spec), Needs: jobs.NeedsDestination(spec.Destination), By: "op", What: "a test"})
	if err != nil {
		w.t.Fatal(err)
	}
	return j
}

func (w *replayWorld) await(id, what string, ok func(topology.Job) bool) topology.Job {
	w.t.Helper()
	var j topology.Job
	eventually(w.t, what, func() bool {
		var err error
		if j, err = w.bus.Job(w.t.Context(), id); err != nil {
			w.t.Fatal(err)
		}
		if j.State == topology.JobFailed && !ok(j) {
			w.t.Fatalf("job failed: %s", j.Error)
		}
		return ok(j)
	})
	return j
}

func state(s string) func(topology.Job) bool {
	return func(j topology.Job) bool { return j.State == s }
}

// facts are what was said of deliveries, by replay.
func (w *replayWorld) facts() map[string]uint64 {
	w.t.Helper()
	all := map[string]uint64{}
	if err := w.bus.Read(w.t.Context(), topology.Span{Subject: topology.LedgerSubject(topology.Deliver)}, func(m topology.Stored) error {
		facts, err := messages.DecodeFacts(m.Data)
		if err != nil {
			return err
		}
		for _, f := range facts.GetFacts() {
			d := f.GetDelivered()
			for _, p := range d.GetPulls() {
				all[d.GetReplay()] += p.GetConfirmed()
				for _, n := range p.GetQuarantined() {
					all[d.GetReplay()] += n
				}
			}
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	return all
}

func (w *replayWorld) left(job string) topology.ReplayPlace {
	w.t.Helper()
	p, err := w.bus.Replayed(w.t.Context(), job, 1<<62)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// A replay sends what it is about, once, with its id, beside live events and without
// their place; then it holds the log no more.
//
// covers: design section 6, pain 4
func TestReplay(t *testing.T) {
	w := newReplayWorld(t)
	w.fill("a.b", 20, 10)
	w.fill("c.d", 20, 10)
	if _, err := w.bus.Begin(t.Context(), topology.DeliverConsumer("test", nil, topology.Start{})); err != nil {
		t.Fatal(err)
	}
	before, err := w.bus.Readers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := w.replay(func(r *jobs.Replay) { r.Total = 400 })
	part := w.replay(func(r *jobs.Replay) {
		r.Events = jobs.Events{Types: []string{"a.*"}, Where: "event.doc.n < 55", Sources: []string{"src"}}
		r.First, r.Until, r.Total = 3, 15, 35 // documents 20 to 139
	})
	other := w.replay(func(r *jobs.Replay) { r.Events.Sources = []string{"another"} })
	w.fill("a.b", 3, 10) // afterwards: not meant
	w.process(w.bus)
	for _, tt := range []struct {
		job  topology.Job
		docs int
	}{{all, 400}, {part, 35}, {other, 0}} {
		j := w.await(tt.job.ID, "the replay is done", state(topology.JobDone))
		got := w.sink.repeats(tt.job.ID)
		if len(got) != tt.docs || j.Progress.Done != uint64(tt.docs) || j.Progress.Failed != 0 || j.Progress.Unit != "events" {
			t.Errorf("%d documents of %d: %+v", len(got), tt.docs, j.Progress)
		}
		for doc, n := range got {
			if n != 1 {
				t.Errorf("%d times %s", n, doc)
			}
		}
		if w.left(tt.job.ID).Found {
			t.Error("the log is still kept for a replay that is done")
		}
	}
	if got := w.facts(); !maps.Equal(got, map[string]uint64{all.ID: 400, part.ID: 35}) {
		t.Errorf("the ledger has %v", got)
	}
	after, err := w.bus.Readers(t.Context())
	if err != nil || len(after) != 1 || after[0].First != before[0].First || after[0].Pending != before[0].Pending+3 || after[0].InHand != 0 {
		t.Errorf("the place of live events: %+v, was %+v, %v", after, before, err)
	}
}

// A destination's own types, expression and masks hold for its replays; what it refuses is
// quarantined and counted.
func TestReplayAsTheDestinationSees(t *testing.T) {
	w := newReplayWorld(t)
	w.fill("a.b", 5, 10)
	w.fill("c.d", 5, 10)
	w.cfg.Types, w.cfg.Where = []string{"a.>"}, "event.doc.n % 2 == 0"
	w.sink.answer = func(_ context.Context, b sinks.Batch) sinks.Result {
		var res sinks.Result
		for i := range b.Len() {
			if bytes.Contains(b.Event(i), []byte(`"n":4,`)) {
				res.Items = append(res.Items, sinks.Exception{Index: i, Verdict: sinks.Reject, Err: errBad.New(nil, "take it")})
			}
		}
		return res
	}
	w.process(w.bus)
	j := w.replay(func(r *jobs.Replay) { r.Events.Types = []string{"*.b", "c.d"} })
	j = w.await(j.ID, "the replay is done", state(topology.JobDone))
	if got := w.sink.repeats(j.ID); len(got) != 24 || j.Progress.Done != 25 || j.Progress.Failed != 1 {
		t.Errorf("%d documents: %+v", len(got), j.Progress)
	}
	j = w.replay(func(r *jobs.Replay) { r.Events.Types = []string{"c.>"} })
	j = w.await(j.ID, "the end", func(j topology.Job) bool { return j.Over() })
	if j.State != topology.JobFailed || !strings.Contains(j.Error, "deliver.replay_without_types") {
		t.Errorf("%+v", j)
	}
}

// A process that is killed in the middle leaves its replay to another: nothing is
// missing, little comes twice, and the count is right.
//
// covers: design section 6
func TestReplaySurvivesAKill(t *testing.T) {
	w := newReplayWorld(t)
	w.fill("a.b", 300, 10)
	first := w.impatient("first")
	w.process(first)
	j := w.replay(func(r *jobs.Replay) { r.Total, r.Rate = 3000, 600 })
	w.await(j.ID, "a checkpoint in the middle", func(j topology.Job) bool { return len(j.Checkpoint) > 0 && j.Progress.Done > 500 })
	first.Close() // it says no more to anybody
	middle := len(w.sink.repeats(j.ID))
	w.process(w.impatient("second"))
	j = w.await(j.ID, "the replay is done", state(topology.JobDone))
	got := w.sink.repeats(j.ID)
	twice := 0
	for _, n := range got {
		twice += n - 1
	}
	if len(got) != 3000 || j.Progress.Done != 3000 || middle >= 3000 || j.Tries < 2 {
		t.Errorf("%d documents, %d before the kill: %+v", len(got), middle, j)
	}
	// What was in hand: no more than the window of frames, and the batches on their way.
	if twice > 16*10+8*100 {
		t.Errorf("%d came twice", twice)
	}
	t.Logf("%d of 3000 were there before the kill, %d came twice", middle, twice)
}

// An operator pauses a replay and it goes on where it was; one that is cancelled holds
// the log no more.
func TestReplayPauseAndCancel(t *testing.T) {
	w := newReplayWorld(t)
	w.fill("a.b", 40, 10)
	w.process(w.impatient("first")) // what the pause finds asked for comes again after the time of waiting
	j := w.replay(func(r *jobs.Replay) { r.Total, r.Rate = 400, 100 })
	w.await(j.ID, "it to get on", func(j topology.Job) bool { return j.Progress.Done >= 100 })
	if _, err := w.bus.PauseJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	paused := w.await(j.ID, "the pause", state(topology.JobPaused))
	// The pause may cut a frame of ten in the middle: it is counted when it is whole.
	if n := uint64(len(w.sink.repeats(j.ID))); paused.Progress.Done > n || n-paused.Progress.Done >= 10 || !w.left(j.ID).Found {
		t.Errorf("%d documents: %+v", n, paused)
	}
	if _, err := w.bus.ResumeJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	j = w.await(j.ID, "the end", state(topology.JobDone))
	got := w.sink.repeats(j.ID)
	if len(got) != 400 || j.Progress.Done != 400 {
		t.Errorf("%d documents: %+v", len(got), j.Progress)
	}
	twice := 0
	for _, n := range got {
		twice += n - 1
	}
	if twice > 20 { // of the frame that the pause cut in the middle
		t.Errorf("%d came twice", twice)
	}
	j = w.replay(func(r *jobs.Replay) { r.Rate = 40 })
	w.await(j.ID, "it to get on", func(j topology.Job) bool { return j.Progress.Done > 0 })
	if _, err := w.bus.CancelJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	w.await(j.ID, "the end", state(topology.JobCancelled))
	eventually(t, "the log is let go of", func() bool { return !w.left(j.ID).Found })
}

// The rate holds over frames, evenly.
func TestReplayRate(t *testing.T) {
	w := newReplayWorld(t)
	w.fill("a.b", 10, 100)
	w.process(w.bus)
	began := time.Now()
	j := w.replay(func(r *jobs.Replay) { r.Rate = 500 })
	w.await(j.ID, "the end", state(topology.JobDone))
	if took := time.Since(began); took < 1800*time.Millisecond {
		t.Errorf("1000 events at 500 a second took %v", took)
	}
	w.sink.state(func() {
		if n := slices.Max(w.sink.sizes); n > 90 {
			t.Errorf("%d events went out at once", n)
		}
	})
}

// While a destination is paused its replays are, and they go on under another
// configuration of it. While it is down they wait.
func TestReplayFollowsItsDestination(t *testing.T) {
	w := newReplayWorld(t)
	w.fill("a.b", 50, 10)
	w.paused = true
	var down atomic.Bool
	down.Store(true)
	w.sink.answer = func(context.Context, sinks.Batch) sinks.Result {
		if down.Load() {
			return sinks.Result{Verdict: sinks.Retry, Err: errOut.New(nil, "be there")}
		}
		return sinks.Result{}
	}
	// What a pull had asked for when its pass ended comes again after the time of waiting.
	w.process(w.impatient("first"))
	j := w.replay(func(r *jobs.Replay) { r.Total = 500 })
	w.await(j.ID, "it is paused", func(j topology.Job) bool { return strings.Contains(j.Progress.Note, "paused") })
	if n := len(w.sink.repeats(j.ID)); n != 0 {
		t.Errorf("%d documents went to a destination that is paused", n)
	}
	w.change(func() {
		w.paused, w.cfg.Backoff = false, Backoff{Initial: 10 * time.Millisecond, Max: 50 * time.Millisecond}
	})
	w.await(j.ID, "it is seen to be down", func(j topology.Job) bool { return strings.Contains(j.Progress.Note, "breaker") })
	opened := w.opened.Load()
	w.change(func() { w.cfg.Concurrency = 1 })
	eventually(t, "it is opened anew", func() bool { return w.opened.Load() > opened })
	w.change(func() { w.gone = true })
	w.await(j.ID, "it waits for its destination", func(j topology.Job) bool {
		return j.State == topology.JobWaiting && strings.Contains(j.Error, "deliver.replay_without_destination")
	})
	down.Store(false)
	w.change(func() { w.gone = false })
	j = w.await(j.ID, "the end", state(topology.JobDone))
	if got := w.sink.repeats(j.ID); len(got) != 500 || j.Progress.Done != 500 || j.Progress.Note != "" {
		t.Errorf("%d documents: %+v", len(got), j.Progress)
	}
}

// Two replays to one destination know nothing of each other.
func TestTwoReplays(t *testing.T) {
	w := newReplayWorld(t)
	w.fill("a.b", 100, 10)
	w.process(w.bus)
	w.process(w.connect("second"))
	var all []topology.Job
	for range 3 {
		all = append(all, w.replay(nil))
	}
	for _, j := range all {
		w.await(j.ID, "the end", state(topology.JobDone))
		if got := w.sink.repeats(j.ID); len(got) != 1000 {
			t.Errorf("%d documents", len(got))
		}
	}
}

// What is sent to a destination alone it gets by its own reader, if it is of its types,
// and the ledger knows it from what came first.
func TestSentAgainToOne(t *testing.T) {
	cfg := destination()
	cfg.Types = []string{"a.b"}
	sink := newMemory()
	d := start(t, cfg, tagged{sink}, Deps{})
	defer shut(t, d)
	for _, tt := range []struct {
		eventType, replay, fact string
		confirmed, filtered     uint64
	}{
		{"a.b", "job@test", "job", 2, 0},
		{"x.y", "job@test", "job", 0, 2},
		{"a.b", "job", "", 2, 0},
	} {
		b := messages.NewBuilder(messages.Header{Source: "src", Format: "json", EventType: tt.eventType, Replay: tt.replay})
		origin := b.Origin(&messages.Origin{Pull: messages.NewPull("test"), Source: "src"})
		for i := range 2 {
			b.Add(messages.Event{ID: idOf(1, i), Origin: origin, Record: uint64(i), Doc: fmt.Appendf(nil, `{"n":%d}`, i)})
		}
		v, err := messages.DecodeFrame(b.Encode(nil))
		if err != nil {
			t.Fatal(err)
		}
		var out topology.Recorder
		if err := d.Handle(t.Context(), topology.In[messages.View]{Value: v, Data: v.Encoded(), Sequence: 1, Stored: time.Now()}, &out); err != nil {
			t.Fatal(err)
		}
		fact := out.Facts()[0].GetDelivered()
		if p := fact.GetPulls()[0]; fact.GetReplay() != tt.fact || p.GetConfirmed() != tt.confirmed || p.GetFiltered() != tt.filtered {
			t.Errorf("%+v: %v", tt, fact)
		}
	}
	if got := sink.repeats("job"); len(got) != 2 || got["{\"n\":0}\n"] != 2 {
		t.Errorf("%v", got)
	}
}

// The checkpoint is behind what is not settled, also where that has not begun.
func TestReplayCheckpointWaitsForWhatHasNotBegun(t *testing.T) {
	w := newReplayWorld(t)
	w.fill("a.b", 2, 10)
	j := w.replay(nil)
	if _, err := w.bus.Begin(t.Context(), topology.ReplayConsumer(j.ID, w.cfg.Name, nil, topology.Start{Sequence: 1})); err != nil {
		t.Fatal(err)
	}
	second, _, err := w.bus.History(topology.Events, nil).Get(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	var floor uint64
	ctx, cancel := context.WithCancel(t.Context())
	if err := w.bus.RunJobs(ctx, topology.JobWorker{Can: func(*topology.Job) bool { return true }, Run: func(ctx context.Context, run *topology.JobRun) error {
		defer cancel()
		r := &replay{ReplayDeps: ReplayDeps{Bus: w.bus}, run: run, id: j.ID, spec: jobs.Replay{First: 1, Until: 3}, counted: map[uint64]*settledFrame{}}
		var err error
		if r.sel, err = selection.New(r.spec.Events); err != nil {
			return err
		}
		d, err := New(w.cfg, tagged{w.sink}, Deps{Window: 16, WindowBytes: 1 << 20, Replay: j.ID, Settled: r.settled})
		if err != nil {
			return err
		}
		v, err := messages.DecodeFrame(second.Data)
		if err != nil {
			return err
		}
		if err := r.handle(ctx, d, topology.In[messages.View]{Value: v, Data: second.Data, Sequence: 2, Stored: second.Time}, &topology.Recorder{}); err != nil {
			return err
		}
		if err := r.save(ctx); err != nil {
			return err
		}
		floor = r.at.Floor
		if r.total.Confirmed != 10 {
			t.Errorf("%+v", r.total)
		}
		return d.Close(ctx)
	}}); err != nil {
		t.Fatal(err)
	}
	if floor != 0 {
		t.Errorf("it goes on behind %d, and the first frame was not sent", floor)
	}
}

// What the log has let go of before it was sent is said to be missing.
func TestReplayTellsWhatIsGone(t *testing.T) {
	w := newReplayWorld(t)
	w.fill("a.b", 2, 10)
	j := w.replay(func(r *jobs.Replay) { r.Total = 20 })
	if err := w.bus.Trim(t.Context(), topology.Events, 2); err != nil {
		t.Fatal(err)
	}
	w.process(w.bus)
	j = w.await(j.ID, "the replay is done", state(topology.JobDone))
	if j.Progress.Done != 10 || !strings.HasPrefix(j.Progress.Note, "10 events of those counted were not sent") {
		t.Errorf("%+v", j.Progress)
	}
}
