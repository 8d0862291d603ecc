// Package deliver hands the events of the log to one destination.
//
//	penstock.event.> ──▶ deliver ──▶ a sink
//
// In:     one frame of events, by the destination's own durable consumer, at
// least once.
// Out:    batches to the sink, cut by count, encoded bytes and age, each event
// with its id. One Delivered fact per frame. Events that the sink refuses go to
// quarantine.
// max_backlog may let a destination skip what is too old; that is counted, too.
// Errors: an outage of the destination is no error: its frames stay in hand, and
// the bus keeps the rest. deliver.drained gives back a frame that was not
// confirmed when the process had to stop, deliver.lost_before_commit one of which a
// sink lost bytes that it had taken over.
// State:  none beyond the frames in hand. Several copies may run for one
// destination, on one consumer.
//
// Towards the destination it is at least once: what was sent and not confirmed
// when a process ended is sent again, with the same event ids.
//
// Source: design section 5; formats F-28 for what is retried.
package deliver

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/spare"
	"github.com/penstock/penstock/topology"
)

var (
	errDrained = fault.Define("deliver.drained", fault.Retry,
		"nothing: the frame is delivered after the restart")
	errAgain = fault.Define("deliver.lost_before_commit", fault.Retry,
		"see why the destination lost what it had taken; the events are read from the log again and sent anew")
	errTooOld = fault.Define("deliver.too_old", fault.Retry,
		"nothing: the frame is older than max_backlog.age by now, and is skipped and counted")
	errRefused = fault.Define("deliver.refused", fault.Reject,
		"see why the destination refuses this event, then redrive it")
	errPanic = fault.Define("deliver.sink_panicked", fault.Retry,
		"report it: it is a mistake in penstock; the events are sent again")
	errHangs = fault.Define("deliver.sink_hangs", fault.Retry,
		"see what keeps the destination from answering; events that were not confirmed are sent again")
)

// Deps is what Deliver gets from the process.
type Deps struct {
	// Log carries the name of the destination; it may be nil.
	Log *slog.Logger
	// Window is how many frames the bus has in hand at once. When so many wait, a
	// batch is sent before it is full or old, as nothing would be added. 0 means
	// that this is not known.
	Window int
	// WindowBytes is how many bytes of frames it has in hand at once, 0 when this is
	// not known.
	WindowBytes int64
	// Replay is the job that has events of the log delivered once more, "" for live ones.
	Replay string
	// Rate bounds the events a second; 0 does not.
	Rate float64
	// Settled is called with what became of the live events of a frame, before it is
	// acknowledged. It may be nil.
	Settled func(sequence uint64, s Settled)
}

// Settled is what became of the events of a frame.
type Settled struct {
	// Confirmed, Filtered by the destination's expression, Quarantined.
	Confirmed, Filtered, Quarantined uint64
	// Bytes of the documents that were confirmed.
	Bytes uint64
}

// Deliver serves one destination.
type Deliver struct {
	cfg         Destination
	sink        sinks.Sink
	limits      sinks.Limits
	log         *slog.Logger
	patient     sinks.Patient // the sink, if it is one
	window      int
	windowBytes int64
	rate        throttle
	settled     func(uint64, Settled)

	// turn is held by the one frame whose events are being added.
	turn    chan struct{}
	scratch scratch
	// draining is closed when the process stops.
	draining chan struct{}
	drainNow func()

	lens
	batcher
}

// scratch is what reading a frame needs; reused.
type scratch struct {
	columns messages.Columns
	body    []byte
	fixed   []byte
	masked  maskBuffers
}

// scratches are those not in use.
var scratches = make(spare.Values[scratch], 4)

func takeScratch() *scratch { return scratches.Take(func() *scratch { return new(scratch) }) }

func giveScratch(s *scratch) {
	s.trim()
	scratches.Give(s)
}

// keepScratch is the largest buffer that is kept for reuse, in bytes.
const keepScratch = 4 << 20

// trim gives up the buffers that one huge frame or event has swollen: it may be long until
// the next one.
func (s *scratch) trim() {
	for _, buf := range [...]*[]byte{&s.body, &s.fixed, &s.masked[0], &s.masked[1]} {
		if cap(*buf) > keepScratch {
			*buf = nil
		}
	}
}

// New checks and wires; it starts nothing. The sink is closed by Close.
func New(cfg Destination, sink sinks.Sink, deps Deps) (*Deliver, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := &Deliver{cfg: cfg, sink: sink, limits: sink.Limits(), log: deps.Log, window: deps.Window, windowBytes: deps.WindowBytes, turn: make(chan struct{}, 1)}
	if err := d.limits.Validate(); err != nil {
		return nil, err
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if d.lens, err = newLens(cfg); err != nil {
		return nil, err
	}
	d.lens.replay, d.rate.rate, d.settled = deps.Replay, deps.Rate, deps.Settled
	d.patient, _ = sink.(sinks.Patient)
	d.draining = make(chan struct{})
	d.drainNow = sync.OnceFunc(func() { close(d.draining) })
	d.batcher.init(cfg)
	destinations.add(d)
	return d, nil
}

// frame is one EVENTS message in hand.
type frame struct {
	span   trace.SpanContext
	stored time.Time
	size   int64
	// out says for each event whether the expression leaves it out; nil when
	// there is no expression.
	out []bool

	// Guarded by batcher.mu.
	pending  int  // events in batches
	moving   int  // those of them that are with the sink
	added    bool // all events are
	gone     bool // Handle has given up on it
	rejected []rejection
	again    error         // why events have to be read from the log once more
	settled  chan struct{} // closed when added and pending is 0
}

// rejection is one event that the sink refused.
type rejection struct {
	index    int
	attempts int
	err      error
}

// Handle delivers the live events of one frame. It returns when each is
// confirmed or in quarantine. While the destination is down that takes as long as
// it takes. When ctx ends or Drain was called, events that are moving get the
// drain timeout; what waits for a retry is given back at once (deliver.drained).
func (d *Deliver) Handle(ctx context.Context, in topology.In[messages.View], out topology.Outbox) error {
	v := in.Value
	f := &frame{span: trace.SpanContextFromContext(ctx), stored: in.Stored, size: int64(len(in.Data)), settled: make(chan struct{})}
	if f.stored.IsZero() {
		f.stored = time.Now()
	}
	if d.cfg.MaxBacklog.Policy == Skip {
		left := time.Until(f.stored.Add(d.cfg.MaxBacklog.Age))
		if left <= 0 {
			return d.skip(in, out)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, left, errTooOld)
		defer cancel()
	}
	if err := d.filter(&v, f); err != nil {
		return err
	}
	d.enter(f)
	defer d.leave(f)
	if err := d.add(ctx, &v, f); err != nil {
		return err
	}
	if err := d.await(ctx, f); err != nil {
		return err
	}
	if f.again != nil {
		return errAgain.New(f.again, "deliver a frame to destination %s", d.cfg.Name)
	}
	return d.settle(ctx, in, f, out)
}

// skip tells the ledger of a frame that is too old for the destination. Some of its
// events may have got there before, unconfirmed.
func (d *Deliver) skip(in topology.In[messages.View], out topology.Outbox) error {
	v := in.Value
	origins, err := v.Origins()
	if err != nil {
		return err
	}
	s := takeScratch()
	defer giveScratch(s)
	if err := s.read(&v, false); err != nil {
		return err
	}
	fact := &messages.Delivered{Destination: d.cfg.Name, Sequence: in.Sequence, EventType: v.EventType(), Replay: d.again(&v)}
	pulls := make([]*messages.DeliveredPull, len(origins))
	skipped := 0
	for i := range v.Len() {
		if v.Fate(i) != messages.Live {
			continue
		}
		origin := int(s.columns.OriginOf[i])
		if pulls[origin] == nil {
			pulls[origin] = &messages.DeliveredPull{Pull: origins[origin].GetPull()}
			fact.Pulls = append(fact.Pulls, pulls[origin])
		}
		pulls[origin].Skipped++
		skipped++
	}
	eventsSkipped.WithLabelValues(d.cfg.Name).Add(float64(skipped))
	d.tellSkipped(skipped)
	out.Fact(&messages.Fact{Kind: &messages.Fact_Delivered{Delivered: fact}})
	return nil
}

// tellSkipped logs what is skipped, at most once a minute.
func (d *Deliver) tellSkipped(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); now.Sub(d.toldSkipped) >= time.Minute {
		d.toldSkipped = now
		d.log.Warn("events are skipped: they are older than max_backlog.age; the log keeps them for a replay", "events", n, "age", d.cfg.MaxBacklog.Age.String())
	}
}

// filter evaluates the destination's expression.
func (d *Deliver) filter(v *messages.View, f *frame) error {
	if d.where == nil && !d.others(v) {
		return nil
	}
	s := takeScratch()
	defer giveScratch(s)
	if err := s.read(v, d.where != nil && d.where.NeedsDoc()); err != nil {
		return err
	}
	f.out = d.leftOut(v, s)
	return nil
}

// read reads the columns and, if asked for, the documents. DecodeFrame has seen
// to it that their lengths fit the body.
func (s *scratch) read(v *messages.View, body bool) (err error) {
	if err = v.Columns(&s.columns); err != nil || !body {
		return err
	}
	if s.body, err = v.Body(s.body[:0]); err != nil {
		s.body = nil
	}
	return err
}

func (s *scratch) account(i int) string { return named(s.columns.Accounts, s.columns.AccountOf, i) }
func (s *scratch) region(i int) string  { return named(s.columns.Regions, s.columns.RegionOf, i) }

func named(names []string, of []uint32, i int) string {
	if i < len(of) && int(of[i]) < len(names) {
		return names[of[i]]
	}
	return ""
}

// add puts the live events into batches, as far as there is room for them.
// Frames take turns, so that only one is decompressed at a time.
func (d *Deliver) add(ctx context.Context, v *messages.View, f *frame) error {
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return errDrained.New(context.Cause(ctx), "wait for room at destination %s", d.cfg.Name)
	}
	defer func() { <-d.turn }()
	s := &d.scratch
	defer s.trim() // before it is another frame's turn
	if err := s.read(v, true); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	d.each(v, s, f.out, 0, func(i int, e *sinks.Event) bool {
		if e == nil {
			d.reject(ref{f, i}, 1, errMask.New(nil, "mask an event for destination %s: the document is not valid JSON", d.cfg.Name))
			return true
		}
		if err = d.slow(ctx); err == nil {
			err = d.put(ctx, f, i, e)
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	d.complete(f)
	return nil
}

// settle quarantines what was refused and tells the ledger. The events are with
// the destination now, so this is not given up when ctx has ended.
func (d *Deliver) settle(ctx context.Context, in topology.In[messages.View], f *frame, out topology.Outbox) error {
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), d.cfg.DrainTimeout)
		defer cancel()
	}
	v := in.Value
	s := takeScratch()
	defer giveScratch(s)
	if err := s.read(&v, len(f.rejected) > 0); err != nil {
		return err
	}
	origins, err := v.Origins()
	if err != nil {
		return err
	}
	refused := make(map[int]*rejection, len(f.rejected))
	for i := range f.rejected {
		refused[f.rejected[i].index] = &f.rejected[i]
	}
	pulls := make([]*messages.DeliveredPull, len(origins))
	var sum Settled
	again := d.again(&v)
	at := 0
	for i := range v.Len() {
		from := at
		at += int(s.columns.Lengths[i])
		if v.Fate(i) != messages.Live {
			continue
		}
		origin := int(s.columns.OriginOf[i])
		if pulls[origin] == nil {
			pulls[origin] = &messages.DeliveredPull{Pull: origins[origin].GetPull()}
		}
		p := pulls[origin]
		r := refused[i]
		switch {
		case f.out != nil && f.out[i]:
			p.Filtered++
			sum.Filtered++
		case r != nil:
			if p.Quarantined == nil {
				p.Quarantined = map[string]uint64{}
			}
			p.Quarantined[fault.CodeOf(r.err)]++
			sum.Quarantined++
			if err := out.Quarantine(ctx, d.quarantine(&in, origins[origin], s, i, s.body[from:at], r)); err != nil {
				return err
			}
			eventsQuarantined.WithLabelValues(d.cfg.Name, fault.CodeOf(r.err)).Inc()
		default:
			p.Confirmed++
			sum.Confirmed++
			sum.Bytes += uint64(at - from)
		}
	}
	if again == "" {
		eventsConfirmed.WithLabelValues(d.cfg.Name).Add(float64(sum.Confirmed))
		eventsFiltered.WithLabelValues(d.cfg.Name).Add(float64(sum.Filtered))
	} else {
		eventsReplayed.WithLabelValues(d.cfg.Name).Add(float64(sum.Confirmed))
	}
	fact := &messages.Delivered{Destination: d.cfg.Name, Sequence: in.Sequence, EventType: v.EventType(), Replay: again}
	now, latency := time.Now(), latencySeconds.WithLabelValues(d.cfg.Name)
	for i, p := range pulls {
		if p == nil {
			continue
		}
		fact.Pulls = append(fact.Pulls, p)
		// What is there again says nothing of how long things take.
		if created := origins[i].GetCreated(); created > 0 && p.Confirmed > 0 && again == "" && v.Replay() == "" {
			latency.Observe(now.Sub(time.Unix(0, created)).Seconds())
		}
	}
	out.Fact(&messages.Fact{Kind: &messages.Fact_Delivered{Delivered: fact}})
	if d.settled != nil {
		d.settled(in.Sequence, sum)
	}
	return nil
}

func (d *Deliver) quarantine(in *topology.In[messages.View], origin *messages.Origin, s *scratch, i int, doc []byte, r *rejection) *messages.Quarantine {
	id := in.Value.ID(i)
	return &messages.Quarantine{
		Stage: string(topology.Deliver), Source: in.Value.Source(), Code: fault.CodeOf(r.err), Reason: r.err.Error(),
		Origin: origin, Record: s.columns.Records[i], Records: 1, Offset: -1, Length: -1,
		Payload: append([]byte(nil), doc...), Holds: messages.Quarantine_HOLDS_EVENT,
		Attempts: uint32(r.attempts),
		Subject:  in.Subject, Format: in.Value.Format(), Destination: d.cfg.Name,
		EventId: id[:], EventType: in.Value.EventType(), EventTime: s.columns.Times[i], Account: s.account(i), Region: s.region(i),
	}
}

// Drain tells that the process stops and no more frames will come: what is open
// is sent at once, and frames that stall are given back. It does not wait.
func (d *Deliver) Drain() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.deadline.IsZero() {
		d.deadline = time.Now().Add(d.cfg.DrainTimeout)
	}
	d.drainNow()
	d.due = d.open != nil
	d.launch()
	d.hurry()
	d.wake()
}

// Close waits for batches that are still being sent, which no frame waits for
// any more, and closes the sink. Call it once, after the last Handle returned.
func (d *Deliver) Close(ctx context.Context) error {
	destinations.remove(d)
	d.drop()
	ended := make(chan struct{})
	go func() {
		d.senders.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return d.sink.Close()
	case <-ctx.Done():
		return errHangs.New(context.Cause(ctx), "close destination %s", d.cfg.Name)
	}
}
