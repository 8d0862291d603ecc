package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/selection"
	"github.com/penstock/penstock/topology"
)

var (
	errReplayGone = fault.Define("deliver.replay_without_destination", fault.Retry,
		"put the destination back into the configuration, or cancel the replay: penstock jobs cancel")
	errReplayTypes = fault.Define("deliver.replay_without_types", fault.Reject,
		"see which types the destination has, and start a replay of these")
	errReplayFetched = fault.Define("deliver.replay_fetched", fault.Reject,
		"have those who fetch from it go back in the log: penstock consumers reset")
)

// ReplayDeps is what [Replays] get from the process.
type ReplayDeps struct {
	Bus *topology.Bus
	// Current is the present configuration of a destination that this process has, and
	// whether it is paused, as [Manager.Current].
	Current func(name string) (d Destination, paused, ok bool)
	// Open opens a sink of its own for a replay.
	Open func(ctx context.Context, d Destination, job string) (sinks.Sink, error)
	// Log may be nil.
	Log *slog.Logger
}

// Replays sends events of the log to destinations of this process once more, each by a
// sink, a consumer and a share of the memory of its own: beside live events, and without
// their place in the log. The consumer's acknowledgements are how far a replay is, so
// that another process goes on where this one ended; what was in hand then is sent again.
//
// While the destination is paused, so are its replays; with another configuration they
// go on under that.
func Replays(deps ReplayDeps) topology.JobWorker {
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	return topology.JobWorker{
		Can: func(j *topology.Job) bool {
			name, ok := strings.CutPrefix(j.Needs, jobs.NeedsDestination(""))
			if !ok || j.Kind != jobs.KindReplay {
				return false
			}
			_, _, ok = deps.Current(name)
			return ok
		},
		Run: func(ctx context.Context, run *topology.JobRun) error { return replayJob(ctx, deps, run) },
	}
}

// replayCheckpoint is where a replay goes on. The place is the consumer's; this is what
// was counted up to one.
type replayCheckpoint struct {
	// Floor is the sequence up to which all is settled and counted.
	Floor uint64 `json:"floor"`
	// Settled up to there.
	Done   uint64 `json:"done"`
	Failed uint64 `json:"failed"`
	Bytes  uint64 `json:"bytes"`
	// Finished: nothing is left but to delete the consumer.
	Finished bool `json:"finished,omitempty"`
}

// replay is a job in hand.
type replay struct {
	ReplayDeps
	run     *topology.JobRun
	id      string
	spec    jobs.Replay
	sel     *selection.Selection
	resumed bool

	mu sync.Mutex
	// counted is what was settled, by sequence, as far back as it may be settled again.
	counted map[uint64]*settledFrame
	// before is the sequence up to which processes before this one have counted. A frame
	// of these may come again, when its acknowledgement was lost with its process.
	before uint64
	// total is what was settled, at what of that was up to the last checkpoint.
	total Settled
	at    replayCheckpoint
	note  string
	rooms sync.Pool
}

// settledFrame is what became of a frame; folded tells that it is in the checkpoint.
type settledFrame struct {
	Settled
	folded bool
}

// keepCounted is how many sequences back a frame may come again, because its
// acknowledgement got lost.
const keepCounted = 4096

func replayJob(ctx context.Context, deps ReplayDeps, run *topology.JobRun) (err error) {
	j := run.Job()
	r := &replay{ReplayDeps: deps, run: run, id: j.ID, counted: map[uint64]*settledFrame{}}
	r.rooms.New = func() any { return new(selection.Scratch) }
	defer func() {
		// Nobody goes on with it: the log need not be kept.
		if err != nil && (topology.JobWasCancelled(ctx) || ctx.Err() == nil && fault.ClassOf(err) != fault.Retry) {
			r.end(ctx)
		}
	}()
	if r.spec, err = jobs.Read[jobs.Replay](&j); err != nil {
		return err
	}
	if r.at, err = jobs.ReadCheckpoint[replayCheckpoint](&j); err != nil {
		return err
	}
	if r.sel, err = selection.New(r.spec.Events); err != nil {
		return err
	}
	r.resumed = j.Tries > 1 || len(j.Checkpoint) > 0
	if err = r.recount(ctx); err != nil {
		return err
	}
	r.before = r.at.Floor
	r.total = Settled{Confirmed: r.at.Done - r.at.Failed, Quarantined: r.at.Failed, Bytes: r.at.Bytes}
	for !r.at.Finished {
		if err = r.pass(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	r.end(ctx)
	return nil
}

// end deletes the consumer; the keeper does so when that fails.
func (r *replay) end(ctx context.Context) {
	if err := r.Bus.EndReplay(context.WithoutCancel(ctx), r.id); err != nil {
		r.Log.Warn("the reader of a replay could not be deleted; the keeper will", "job", r.id, "err", err)
	}
}

// recount adds what was settled after the last checkpoint, when the process before died.
func (r *replay) recount(ctx context.Context) error {
	if !r.resumed {
		return nil
	}
	place, err := r.Bus.Replayed(ctx, r.id, r.spec.Until)
	if err != nil || !place.Found {
		return err
	}
	from, until := max(r.at.Floor+1, r.spec.First), min(place.Settled+1, r.spec.Until)
	if from >= until {
		return nil
	}
	cfg, _, ok := r.Current(r.spec.Destination)
	if !ok {
		return r.gone()
	}
	l, err := newLens(cfg)
	if err != nil {
		return err
	}
	c, err := r.consumer(cfg)
	if err != nil {
		return err
	}
	var s scratch
	err = r.Bus.History(topology.Events, c.Filters).Scan(ctx, from, until, false, func(m topology.Stored) (bool, error) {
		v, err := messages.DecodeFrame(m.Data)
		if err == nil {
			err = r.choose(&v)
		}
		if err == nil {
			err = s.read(&v, l.where != nil && l.where.NeedsDoc())
		}
		if err != nil {
			return true, nil //nolint:nilerr // it went to quarantine
		}
		out := l.leftOut(&v, &s)
		for i := range v.Len() {
			if v.Fate(i) == messages.Live && (out == nil || !out[i]) {
				r.at.Done++
				r.at.Bytes += uint64(s.columns.Lengths[i])
			}
		}
		return true, nil
	})
	if err == nil {
		r.at.Floor = until - 1
	}
	return err
}

func (r *replay) gone() error {
	return errReplayGone.New(nil, "replay to destination %s, which this process has not any more", r.spec.Destination)
}

// consumer is the reader of the replay: of the types that are asked for and that the
// destination has.
func (r *replay) consumer(cfg Destination) (topology.Consumer, error) {
	types, ok := condition.Narrow(cfg.Types, r.spec.Events.Types)
	if !ok {
		return topology.Consumer{}, errReplayTypes.New(nil, "replay %s to destination %s, which has %s",
			strings.Join(r.spec.Events.Types, ", "), cfg.Name, strings.Join(cfg.Types, ", "))
	}
	return topology.ReplayConsumer(r.id, cfg.Name, types, topology.Start{Sequence: max(r.spec.First, r.at.Floor+1)}), nil
}

// Why a pass ends while the job goes on.
var (
	errPassDone    = errors.New("all is settled")
	errPassChanged = errors.New("the destination was paused, resumed or configured anew")
)

// replayTick is how often a replay looks how far it is, and what has become of its
// destination.
const replayTick = 250 * time.Millisecond

// pass delivers under one configuration of the destination, until all is settled, ctx
// ends, or the destination changes.
func (r *replay) pass(ctx context.Context) error {
	cfg, paused, ok := r.Current(r.spec.Destination)
	switch {
	case !ok:
		return r.gone()
	case sinks.Fetched(cfg.Type):
		return errReplayFetched.New(nil, "replay to destination %s, from which others fetch", cfg.Name)
	case paused:
		r.say("the destination is paused, and so is its replay")
		return r.until(ctx, func() bool {
			now, paused, ok := r.Current(cfg.Name)
			return !ok || !paused || !reflect.DeepEqual(now, cfg)
		})
	}
	r.say("")
	consumer, err := r.consumer(cfg)
	if err != nil {
		return err
	}
	// The sink lives until it is closed: what is in hand is finished after ctx has ended.
	life, die := context.WithCancel(context.WithoutCancel(ctx))
	defer die()
	sink, err := r.Open(life, cfg, r.id)
	if err != nil {
		return err
	}
	if patient, ok := sink.(sinks.Patient); ok {
		consumer.Window, consumer.WindowBytes = max(consumer.Window, patient.Frames()), 16<<20
	}
	// Old is what a replay is about, and its memory comes from what all share.
	own := cfg
	own.MaxBacklog, own.MaxInHand = MaxBacklog{Policy: Hold}, 0
	d, err := New(own, sink, Deps{
		Log: r.Log.With("destination", cfg.Name, "job", r.id), Window: consumer.Window, WindowBytes: consumer.WindowBytes,
		Replay: r.id, Rate: r.spec.Rate, Settled: r.settled,
	})
	if err != nil {
		return errors.Join(err, sink.Close())
	}
	during, end := context.WithCancelCause(ctx)
	defer end(nil)
	var wg sync.WaitGroup
	wg.Go(func() { r.watch(during, end, cfg, d) })
	live := newYield()
	wg.Go(func() { live.watch(during, r.Bus) })
	stop := context.AfterFunc(during, d.Drain)
	err = topology.Consume(during, r.Bus, consumer, messages.DecodeFrame, func(ctx context.Context, in topology.In[messages.View], out topology.Outbox) error {
		if err := live.wait(during); err != nil {
			return errDrained.New(err, "wait with a replay until live events have passed")
		}
		return r.handle(ctx, d, in, out)
	})
	end(nil)
	stop()
	wg.Wait()
	topology.ForgetLag(consumer)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if closeErr := d.Close(closing); closeErr != nil {
		r.Log.Warn("destination did not close cleanly after a replay", "destination", cfg.Name, "job", r.id, "err", closeErr)
	}
	if errors.Is(context.Cause(during), errPassDone) {
		r.finish()
		return r.save(ctx)
	}
	if err != nil && ctx.Err() == nil {
		return err
	}
	return r.save(context.WithoutCancel(ctx))
}

// handle delivers what is meant of one frame.
func (r *replay) handle(ctx context.Context, d *Deliver, in topology.In[messages.View], out topology.Outbox) error {
	if in.Sequence >= r.spec.Until {
		return nil // it came after the job was made
	}
	if err := r.choose(&in.Value); err != nil {
		return err
	}
	if in.Value.Live() == 0 {
		return nil
	}
	return d.Handle(ctx, in, out)
}

// choose marks the events of a frame that are not meant: as if rules had dropped them.
func (r *replay) choose(v *messages.View) error {
	if r.sel.Whole() {
		if !r.sel.HasSource(v.Source()) {
			drop(v, 0, v.Len())
		}
		return nil
	}
	room := r.rooms.Get().(*selection.Scratch)
	defer r.rooms.Put(room)
	next := 0
	_, err := r.sel.Each(v, room, false, func(e *selection.Event) bool {
		drop(v, next, e.Index)
		next = e.Index + 1
		return true
	})
	if err == nil {
		drop(v, next, v.Len())
	}
	return err
}

// drop marks the live events of a stretch.
func drop(v *messages.View, from, to int) {
	for i := from; i < to; i++ {
		if v.Fate(i) == messages.Live {
			v.SetFate(i, messages.Filtered)
		}
	}
}

// settled takes note of what became of a frame.
func (r *replay) settled(sequence uint64, s Settled) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if sequence <= r.before || r.counted[sequence] != nil {
		return
	}
	r.counted[sequence] = &settledFrame{Settled: s}
	r.total.Confirmed += s.Confirmed
	r.total.Quarantined += s.Quarantined
	r.total.Bytes += s.Bytes
}

// mostInHand is how many events a window of usual frames has.
const mostInHand = 16 * messages.TargetCount

// finish: the consumer has acknowledged all, so that what was in hand when a process died,
// and was not counted, is settled as well.
func (r *replay) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at.Finished = true
	done := r.total.Confirmed + r.total.Quarantined
	missing := r.spec.Total - min(r.spec.Total, done)
	switch {
	case missing == 0:
	case r.resumed && missing <= mostInHand:
		r.total.Confirmed += missing
	default:
		r.note = fmt.Sprintf("%d events of those counted were not sent: the log has let go of them, or the destination was configured anew", missing)
	}
}

func (r *replay) say(note string) {
	r.mu.Lock()
	r.note = note
	r.mu.Unlock()
	r.run.Report(r.progress())
}

func (r *replay) progress() topology.Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return topology.Progress{
		Done: r.total.Confirmed + r.total.Quarantined, Total: r.spec.Total, Unit: "events",
		Failed: r.total.Quarantined, Bytes: r.total.Bytes, Note: r.note,
	}
}

// save stores how far the replay is. The checkpoint has what was settled up to its floor:
// who takes over counts from there on.
func (r *replay) save(ctx context.Context) error {
	// Only the reader knows what is behind all that waits, is in hand or comes again.
	place, err := r.Bus.Replayed(ctx, r.id, r.spec.Until)
	p := r.progress()
	r.mu.Lock()
	if err == nil && place.Found {
		r.at.Floor = max(r.at.Floor, min(place.Settled, r.spec.Until-1))
	}
	for sequence, f := range r.counted {
		if sequence <= r.at.Floor && !f.folded {
			f.folded = true
			r.at.Done += f.Confirmed + f.Quarantined
			r.at.Failed += f.Quarantined
			r.at.Bytes += f.Bytes
		}
		if sequence+keepCounted < r.at.Floor {
			delete(r.counted, sequence)
		}
	}
	at := r.at
	r.mu.Unlock()
	return r.run.Save(ctx, p, at)
}

// saveEvery is how often a replay stores how far it is.
const saveEvery = 2 * time.Second

// watch ends a pass when all is settled, or the destination has changed, and tells how
// far it is.
func (r *replay) watch(ctx context.Context, end context.CancelCauseFunc, cfg Destination, d *Deliver) {
	saved := time.Now()
	_ = r.until(ctx, func() bool {
		now, paused, ok := r.Current(cfg.Name)
		if !ok || paused || !reflect.DeepEqual(now, cfg) {
			end(errPassChanged)
			return true
		}
		place, err := r.Bus.Replayed(ctx, r.id, r.spec.Until)
		if err == nil && place.Found && !place.Left {
			end(errPassDone)
			return true
		}
		note := ""
		if b := d.Breaker(); b != "closed" {
			note = "the destination takes nothing: its breaker is " + b
		}
		r.say(note)
		if time.Since(saved) >= saveEvery {
			saved = time.Now()
			if err := r.save(ctx); err != nil && ctx.Err() == nil {
				r.Log.Warn("how far a replay is could not be stored, trying on", "job", r.id, "err", err)
			}
		}
		return false
	})
}

// until waits until ok says so, and returns the cause of ctx when that ends before.
func (r *replay) until(ctx context.Context, ok func() bool) error {
	tick := time.NewTicker(replayTick)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}
