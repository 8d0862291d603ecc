package deliver

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/transform"
	"github.com/penstock/penstock/topology"
)

// gatherer is a sink that commits what it holds only when it is hurried, as one that
// gathers objects does long before they are full or old.
type gatherer struct {
	memory
	commit chan struct{} // closed by Hurry
	hurry  int
}

func newGatherer() *gatherer {
	g := &gatherer{commit: make(chan struct{})}
	g.limits, g.done = sinks.Limits{Events: 10, Bytes: config.MiB, Age: time.Second}, map[messages.ID]int{}
	return g
}

func (g *gatherer) Frames() int { return 8 }

func (g *gatherer) Hurry() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hurry++
	close(g.commit)
	g.commit = make(chan struct{})
}

func (g *gatherer) Deliver(ctx context.Context, b sinks.Batch) sinks.Result {
	g.mu.Lock()
	commit := g.commit
	g.mu.Unlock()
	b.Release()
	select {
	case <-commit:
		return sinks.Result{}
	case <-ctx.Done():
		return sinks.Result{Verdict: sinks.Retry, Err: errOut.New(context.Cause(ctx), "hold on")}
	}
}

// What is on its way to a sink when that is hurried is not left to wait until it is old.
func TestWhatComesBehindHurryIsCommitted(t *testing.T) {
	tests := []struct {
		name string
		deps Deps
		stop bool
	}{
		{"the window is full by count", Deps{Window: 1}, false},
		{"the window is full by bytes", Deps{Window: 8, WindowBytes: 1}, false},
		{"the process stops", Deps{Window: 8}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink := newGatherer()
				d := start(t, destination(), sink, tt.deps)
				defer shut(t, d)
				began := time.Now()
				errs := make(chan error, 1)
				go func() { errs <- d.Handle(t.Context(), frameOf(t, 1, docs(25, 0)...), &topology.Recorder{}) }()
				if tt.stop {
					synctest.Wait()
					d.Drain()
				}
				select {
				case err := <-errs:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(time.Hour):
					t.Error("it is held for ever")
					d.Drain()
					<-errs
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// A batch that a sink has taken over does not keep others from trying whether the
// destination takes events again: it may be held for long.
func TestHeldBatchProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newHolder()
		held := sink.answer
		var up atomic.Bool
		sink.answer = func(ctx context.Context, b sinks.Batch) sinks.Result {
			if !up.Load() {
				return sinks.Result{Verdict: sinks.Retry, Err: errOut.New(nil, "reach it")}
			}
			return held(ctx, b)
		}
		d := start(t, destination(), sink, Deps{})
		defer shut(t, d)
		errs := make(chan error, 4)
		for i := range 4 {
			go func() { errs <- d.Handle(t.Context(), frameOf(t, uint64(i+1), docs(10, 0)...), &topology.Recorder{}) }()
		}
		time.Sleep(10 * time.Minute)
		if d.Breaker() != "open" {
			t.Fatalf("the breaker is %s", d.Breaker())
		}
		up.Store(true)
		time.Sleep(3 * time.Minute)
		d.mu.Lock()
		n := d.held
		d.mu.Unlock()
		if n != 4 {
			t.Errorf("%d batches have been taken", n)
		}
		for range n {
			sink.answers <- sinks.Result{}
		}
		for n < 4 {
			synctest.Wait()
			select {
			case sink.answers <- sinks.Result{}:
				n++
			case <-time.After(time.Minute):
				t.Fatal("a batch is stuck")
			}
		}
		for range 4 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

// Events that a sink has lost are read again, also where it does not say why.
func TestHeldAndLostWithoutReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newHolder()
		d := start(t, destination(), sink, Deps{Window: 1})
		defer shut(t, d)
		errs := make(chan error, 1)
		go func() { errs <- d.Handle(t.Context(), frameOf(t, 1, docs(10, 0)...), &topology.Recorder{}) }()
		sink.answers <- sinks.Result{Items: []sinks.Exception{{Index: 3, Verdict: sinks.Retry}}}
		if err := <-errs; fault.CodeOf(err) != "deliver.lost_before_commit" {
			t.Errorf("got %v", err)
		}
	})
}

// What a sink holds when a frame gets too old is committed rather than skipped.
func TestTooOldHurries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := destination()
		cfg.MaxBacklog = MaxBacklog{Age: time.Minute, Policy: Skip}
		d := start(t, cfg, newGatherer(), Deps{Window: 8})
		defer shut(t, d)
		out := &topology.Recorder{}
		if err := d.Handle(t.Context(), frameOf(t, 1, docs(10, 0)...), out); err != nil {
			t.Error(err)
		}
		if confirmed, _ := totals(out.Facts()); confirmed != 10 {
			t.Errorf("%d confirmed", confirmed)
		}
	})
}

// The buffers of batches that were held are not all kept.
func TestHeldBatchesAreLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newGatherer()
		d := start(t, destination(), sink, Deps{Window: 200})
		defer shut(t, d)
		errs := make(chan error, 100)
		for i := range cap(errs) {
			go func() { errs <- d.Handle(t.Context(), frameOf(t, uint64(i+1), docs(10, 0)...), &topology.Recorder{}) }()
		}
		synctest.Wait()
		d.Drain()
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		d.mu.Lock()
		defer d.mu.Unlock()
		if n := len(d.free); n > d.cfg.Concurrency+1 {
			t.Errorf("%d batches are kept", n)
		}
	})
}

// One mask reads what another has written, whatever those between them find.
func TestMasksInTurn(t *testing.T) {
	redact := func(field string) transform.Mask {
		return transform.Mask{Fields: []string{field}, Method: transform.Redact}
	}
	m := newMasks([]transform.Mask{redact("a"), redact("absent"), redact("b"), redact("absent"), redact("c")})
	var b maskBuffers
	for range 3 {
		got, ok := m.apply(&b, []byte(`{"a":1,"b":2,"c":"a secret","d":[1,2,3]}`))
		if want := `{"a":"[redacted]","b":"[redacted]","c":"[redacted]","d":[1,2,3]}`; !ok || string(got) != want {
			t.Errorf("got %s, %v", got, ok)
		}
	}
}

// BenchmarkDrainOfHeld is how long a stop takes with thousands of frames at a sink that
// does not confirm them, and some that wait for a retry. drain_timeout is in it.
func BenchmarkDrainOfHeld(b *testing.B) {
	const frames, events = 4000, 100
	b.ReportAllocs()
	for range b.N {
		b.StopTimer()
		sink := newHolder()
		sink.limits = sinks.Limits{Events: events, Bytes: config.MiB}
		held, calls := sink.answer, atomic.Int32{}
		sink.answer = func(ctx context.Context, b sinks.Batch) sinks.Result {
			if calls.Add(1) <= 3 {
				return sinks.Result{Verdict: sinks.Retry, Err: errOut.New(nil, "reach it")}
			}
			return held(ctx, b)
		}
		cfg := destination()
		cfg.Backoff = Backoff{Initial: time.Hour, Max: time.Hour}
		cfg.AdaptiveConcurrency, cfg.DrainTimeout = false, 100*time.Millisecond
		d := start(b, cfg, sink, Deps{})
		errs := make(chan error, frames)
		body := docs(events, 0)
		for i := range frames {
			in := frameOf(b, uint64(i+1), body...)
			go func() { errs <- d.Handle(b.Context(), in, &topology.Recorder{}) }()
		}
		for {
			d.mu.Lock()
			ready, changed := d.waiting == frames && d.held+d.stalled == frames, d.changed
			d.mu.Unlock()
			if ready {
				break
			}
			<-changed
		}
		b.StartTimer()
		d.Drain()
		for range frames {
			<-errs
		}
		b.StopTimer()
		shut(b, d)
	}
}

// A peer that takes connections and never answers: what waited behind the first frames
// does not begin a drain of its own when those are given back.
func TestDrainEndsForAllAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newMemory()
		sink.limits.Events = 10
		sink.answer = func(ctx context.Context, _ sinks.Batch) sinks.Result {
			<-ctx.Done()
			return sinks.Result{Verdict: sinks.Retry, Err: errOut.New(context.Cause(ctx), "wait for an answer")}
		}
		cfg := destination()
		cfg.Concurrency, cfg.MaxInHand = 1, config.MiB
		d := start(t, cfg, sink, Deps{Window: 16})
		defer shut(t, d)
		errs := make(chan error, 16)
		for i := range cap(errs) {
			go func() {
				errs <- d.Handle(t.Context(), frameOf(t, uint64(i+1), docs(10, 90_000)...), &topology.Recorder{})
			}()
		}
		synctest.Wait()
		began := time.Now()
		d.Drain()
		for range cap(errs) {
			if err := <-errs; !errors.Is(err, errDrained) {
				t.Errorf("got %v", err)
			}
		}
		if took := time.Since(began); took > cfg.DrainTimeout {
			t.Errorf("the last frame was given back after %v", took)
		}
	})
}

// Destinations of which nothing is said share what a process has in hand, and what
// buffers it keeps between batches is bounded.
func TestMemoryIsShared(t *testing.T) {
	cfg := destination()
	one := start(t, cfg, newMemory(), Deps{})
	defer shut(t, one)
	if n := one.mostInHand(); n != mostOfOne {
		t.Errorf("alone it has %d bytes", n)
	}
	for range 9 {
		defer shut(t, start(t, cfg, newMemory(), Deps{}))
	}
	if n := one.mostInHand(); n != mostOfAll/10 {
		t.Errorf("among ten it has %d bytes", n)
	}
	cfg.MaxInHand = 3 * config.MiB
	told := start(t, cfg, newMemory(), Deps{})
	defer shut(t, told)
	if n := told.mostInHand(); n != 3<<20 {
		t.Errorf("of 3 MiB it takes %d bytes", n)
	}
	for range 64 {
		one.giveBuffer(make([]byte, 0, 1<<20))
	}
	if batchBytes.bytes > mostSpare {
		t.Errorf("%d bytes are spare", batchBytes.bytes)
	}
	before := batchBytes.bytes
	one.giveBuffer(make([]byte, 0, 3<<20)) // swollen by a large event
	if batchBytes.bytes != before {
		t.Error("a swollen buffer is kept")
	}
	if b := one.takeBuffer(); cap(b) != 1<<20 || len(b) != 0 || batchBytes.bytes != before-1<<20 {
		t.Errorf("got %d bytes, %d are left", cap(b), batchBytes.bytes)
	}
}
