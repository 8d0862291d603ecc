package topology

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
)

var (
	errLane = fault.Define("bus.lane_failed", fault.Retry,
		"check the streams PARSED, UNIQUE and SEEN: penstock topology show")
	errHandedOver = errors.New("the lane is handed over")

	lanesOwned = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "penstock_dedupe_lanes_owned", Help: "Dedupe lanes that this process owns.",
	})
	laneRestore = promauto.NewHistogram(prometheus.HistogramOpts{
		Name: "penstock_dedupe_restore_seconds", Help: "How long the ids of a lane took to load when this process took it over.",
		Buckets: prometheus.ExponentialBuckets(0.01, 4, 8),
	})
	laneSnapshots = promauto.NewCounter(prometheus.CounterOpts{
		Name: "penstock_dedupe_snapshots_total", Help: "Snapshots of lanes written.",
	})
)

// laneGroup is what the keys of lanes begin with.
const laneGroup = "lane"

// laneRequest names what the owner of a lane answers: how many frames are before it.
func laneRequest(lane uint32) string { return "lane/" + strconv.FormatUint(uint64(lane), 10) }

// headerInput is the position in PARSED up to which the lane is done once the
// message that carries it is stored.
const headerInput = "Penstock-Input"

// Ids that are not in a snapshot yet are bounded, since a takeover reads their
// frames again.
const (
	snapshotIDs   = 64 << 10
	snapshotEvery = 30 * time.Second
	idBytes       = 16
)

// How often an idle lane sees to it that it holds nothing back: while others put frames
// into PARSED, and while nobody does.
const (
	advanceEvery = 5 * time.Second
	advanceCalm  = 30 * time.Second
)

// Lane is a dedupe lane that this process owns: an ordered log of frames in, one
// frame out for each, and one position that moves with the output.
//
// Output, position and new ids are one publish under the condition that no other
// owner has published since. So a crash at any point repeats or loses nothing.
type Lane struct {
	bus    *Bus
	number uint32
	lease  *lease
	// input is the sequence in PARSED of the last frame done, output that of the
	// lane's last message in UNIQUE.
	input, output uint64
	fresh         []byte
	// alone is set where this lane is the only one, on one server. Then outputs are under
	// way side by side: flights, of flying bytes, behind the message with the id lastID.
	alone   bool
	lastID  string
	flights []flight
	flying  int
	// refused is set when one of them had to be stored again.
	refused bool
	// seen is the sequence of the last block in SEEN.
	seen  uint64
	saved time.Time
	// advanced is when the lane was last seen to that it holds nothing back, parsed what
	// there was in PARSED then, calm how soon that is done again.
	advanced time.Time
	parsed   uint64
	calm     time.Duration
	hurry    atomic.Bool
	lag      laneLag
	// behind is how many frames there are before the lane, as it knows.
	behind atomic.Uint64
}

// LaneWork is what the dedupe stage does for one lane. Its methods are not
// called concurrently.
type LaneWork interface {
	// Restore takes ids that were seen at a time: all of the window, oldest first,
	// before the first frame. The same id may come again.
	Restore(ids []byte, at time.Time)
	// Frame marks the duplicates of a frame and commits it. commit has the output
	// stored: it may return before that is durable, and when it does not get so, the
	// work is closed. fresh are the ids, 16 bytes each, that it saw first. It is called
	// once, last, and its error is returned. Unlike the bytes of in, output and fresh
	// may be used again then.
	Frame(ctx context.Context, in In[messages.View], commit func(ctx context.Context, output, fresh []byte) error) error
	// Close ends the work, when the lane is lost or handed over.
	Close()
}

// LaneReserver is a [LaneWork] that wants to know about how many ids Restore will bring,
// before it does.
type LaneReserver interface {
	Reserve(ids int)
}

// idsIn estimates how many ids n blocks of SEEN have: what blocks have on average, and
// rather too few.
func (b *Bus) idsIn(ctx context.Context, n uint64) int {
	s, err := b.js.Stream(ctx, Seen)
	if err != nil {
		return 0 // it is a hint
	}
	state := s.CachedInfo().State
	const overhead = 100 // what a block has besides ids, at most
	each := state.Bytes/max(1, state.Msgs) - min(overhead, state.Bytes/max(1, state.Msgs))
	return int(n * each / idBytes)
}

// Lanes runs work for the lanes that fall to this process until ctx ends. Lanes
// are shared evenly over all processes that call it.
func (b *Bus) Lanes(ctx context.Context, window time.Duration, open func(lane uint32) LaneWork) error {
	lanes, err := b.LaneCount(ctx)
	if ctx.Err() != nil {
		return nil // asked to stop before it began
	}
	if err != nil {
		return err
	}
	stream, err := b.awaitStream(ctx, Unique)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	alone := lanes == 1 && stream.CachedInfo().Config.Replicas <= 1
	var mu sync.Mutex
	owned := map[*Lane]struct{}{}
	full, err := b.nc.Subscribe(fullSubject+"*", func(*nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		for l := range owned {
			l.hurry.Store(true)
		}
	})
	if err != nil {
		return errLane.New(err, "listen for full streams")
	}
	defer func() { _ = full.Unsubscribe() }()
	// As many lanes are restored at a time as there are processors: the first of them
	// goes on while the others wait, and none is later for it.
	restoring := semaphore.NewWeighted(int64(runtime.GOMAXPROCS(0)))
	group := &leases{bus: b, group: laneGroup, fast: true, me: b.options.Name, run: func(ctx context.Context, le *lease) error {
		n, err := strconv.ParseUint(le.name, 10, 32)
		if err != nil {
			return errLane.New(err, "read the number of lane %q", le.name)
		}
		l := &Lane{bus: b, number: uint32(n), lease: le, saved: time.Now(), alone: alone}
		work := open(l.number)
		defer work.Close()
		if restoring.Acquire(ctx, 1) != nil {
			return nil // the lane has to be handed over before it was begun
		}
		began := time.Now()
		err = l.restore(ctx, window, work)
		restoring.Release(1)
		if err != nil {
			return err
		}
		laneRestore.Observe(time.Since(began).Seconds())
		mu.Lock()
		owned[l] = struct{}{}
		mu.Unlock()
		lanesOwned.Inc()
		b.log.Info("lane taken", "lane", l.number, "input", l.input, "output", l.output)
		defer func() {
			lanesOwned.Dec()
			mu.Lock()
			delete(owned, l)
			mu.Unlock()
			b.log.Info("lane left", "lane", l.number, "input", l.input, "output", l.output)
		}()
		return l.run(ctx, work)
	}}
	names := make([]string, lanes)
	for i := range names {
		names[i] = strconv.Itoa(i)
	}
	group.list = func() []string { return names }
	return group.keep(ctx)
}

// LaneCount reads the number of lanes from the streams. It waits for them.
func (b *Bus) LaneCount(ctx context.Context) (uint32, error) {
	s, err := b.awaitStream(ctx, Parsed)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(s.CachedInfo().Config.Metadata[metaLanes], 10, 32)
	if err != nil || n == 0 {
		return 0, errNoTopology.New(err, "read the number of lanes of stream %s", Parsed)
	}
	return uint32(n), nil
}

// awaitStream looks up a stream, again and again until it is there.
func (b *Bus) awaitStream(ctx context.Context, name string) (jetstream.Stream, error) {
	for {
		s, err := b.js.Stream(ctx, name)
		if err == nil {
			return s, nil
		}
		b.log.Warn("streams are not there yet, trying on", "err", err)
		select {
		case <-ctx.Done():
			return nil, errNoTopology.New(err, "look up stream %s", name)
		case <-time.After(time.Second):
		}
	}
}

// restore finds the lane's position and loads the ids of the window: the blocks
// of SEEN, and the frames of UNIQUE that no block covers yet.
func (l *Lane) restore(ctx context.Context, window time.Duration, work LaneWork) error {
	l.lease.mu.Lock()
	covered := l.lease.value
	l.lease.mu.Unlock()
	l.input = covered.Input
	last, err := l.bus.last(ctx, UniqueSubject(l.number))
	if err != nil {
		return err
	}
	placed := last == nil // or else the last is no lane's, and frames before it say where this one is
	if last != nil {
		l.output = last.Sequence
		if n, err := inputOf(last.Header); err == nil {
			l.input, placed = n, true
		}
	}
	blocks := &orderedReader{bus: l.bus, subject: SeenSubject(l.number), from: time.Now().Add(-window)}
	if r, ok := work.(LaneReserver); ok {
		blocks.opened = func(n uint64) {
			if n > 0 {
				r.Reserve(l.bus.idsIn(ctx, n))
			}
		}
	}
	read := uint64(0)
	if err := l.bus.read(ctx, blocks, func(m Stored) error {
		read = m.Sequence
		work.Restore(m.Data[:len(m.Data)/idBytes*idBytes], m.Time)
		return nil
	}); err != nil {
		return err
	}
	if err := l.complete(ctx, Seen, read, covered.Seen, window); err != nil {
		return err
	}
	l.seen = covered.Seen
	var ids []byte
	read = 0
	if err := l.bus.Read(ctx, Span{Subject: UniqueSubject(l.number), FromSequence: covered.Output + 1}, func(m Stored) error {
		read = m.Sequence
		if m.input == 0 {
			l.bus.log.WarnContext(ctx, "passed over what no lane has stored", "lane", l.number, "stream", Unique, "sequence", m.Sequence)
			return nil
		}
		if !placed {
			l.input = m.input
		}
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			return errLane.New(err, "read frame %d of %s", m.Sequence, Unique)
		}
		all := v.AppendSeenIDs(nil)
		ids = ids[:0]
		for i := range v.Len() {
			if v.Fate(i) != messages.Duplicate {
				ids = append(ids, all[idBytes*i:idBytes*(i+1)]...)
			}
		}
		work.Restore(ids, m.Time)
		// They are in no block yet: the next snapshot has to hold them.
		l.fresh = append(l.fresh, ids...)
		return nil
	}); err != nil || l.output <= covered.Output {
		return err
	}
	return l.complete(ctx, Unique, read, l.output, 0)
}

// complete fails when a stream was not read as far as it has to be: in a cluster, who
// answers may lag behind, and an id that is not known lets a duplicate pass. Then the lane
// is taken up again. What was stored before the window need not be there.
func (l *Lane) complete(ctx context.Context, stream string, read, until uint64, window time.Duration) error {
	if read >= until {
		return nil
	}
	s, err := l.bus.js.Stream(ctx, stream)
	if err != nil {
		return errLane.New(err, "look up stream %s", stream)
	}
	state := s.CachedInfo().State
	if until < state.FirstSeq {
		return nil // trimmed
	}
	if until > state.LastSeq && s.CachedInfo().Config.Replicas <= 1 {
		// Nobody lags where there is one server: its disk forgot, or the stream was made anew.
		l.bus.log.Warn("ids of a lane are lost, the lane goes on without them: duplicates of that time may pass", "lane", l.number, "stream", stream, "last", state.LastSeq, "wanted", until)
		return nil
	}
	if window > 0 {
		m, err := s.GetMsg(ctx, until)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound) && until <= state.LastSeq:
			// by one that lags, too, or not any more
		case err != nil:
			return errLane.New(err, "read message %d of %s", until, stream)
		case time.Since(m.Time) > window:
			return nil
		}
	}
	return errLane.New(nil, "read %s up to %d for lane %d, of %d: a replica lags", stream, read, l.number, until)
}

func inputOf(h nats.Header) (uint64, error) { return strconv.ParseUint(h.Get(headerInput), 10, 64) }

// run hands the lane's frames to work, in order, until ctx ends or the lane is
// lost, and leaves a snapshot.
func (l *Lane) run(ctx context.Context, work LaneWork) error {
	defer l.ditch()
	asked, unserve := context.WithCancel(ctx)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer unserve()
	serving.Go(func() {
		if err := l.bus.Serve(asked, laneRequest(l.number), func(context.Context, []byte) ([]byte, error) {
			return strconv.AppendUint(nil, l.behind.Load(), 10), nil
		}); err != nil {
			l.bus.log.Warn("nobody can be told how far a lane is", "lane", l.number, "err", err)
		}
	})
	sub := newLaneSubscriber(l)
	watched, stopWatching := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { l.watchLag(watched) })
	defer watching.Wait()
	defer stopWatching()
	err := l.bus.route(ctx, "dedupe-"+strconv.Itoa(int(l.number)), sub, func(msg *message.Message) error {
		if err := l.frame(msg, work); err != nil {
			sub.abandon(err)
			msg.Nack()
		}
		return nil
	})
	if sub.err != nil && err == nil {
		err = sub.err
	}
	if errors.Is(err, errFenced) {
		return err
	}
	save, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if landErr := l.landAll(save); landErr != nil {
		l.ditch()
		err = errors.Join(err, landErr)
		if errors.Is(err, errFenced) {
			return err
		}
	}
	return errors.Join(err, l.saveLanded(save))
}

// frame takes one message through decode, trace, mark and commit.
func (l *Lane) frame(msg *message.Message, work LaneWork) error {
	ctx := msg.Context()
	m, ok := ctx.Value(deliveryKey{}).(*Stored)
	if !ok {
		return errLane.New(nil, "handle a message that does not come from lane %d", l.number)
	}
	in := In[messages.View]{Data: m.Data, Subject: m.Subject, Sequence: m.Sequence, Attempt: 1, Redriven: m.Attempts, Stored: m.Time, Span: trace.SpanContextFromContext(ctx)}
	ctx, span := tracer.Start(ctx, string(Dedupe), consumerSpan...)
	defer span.End()
	if span.IsRecording() {
		span.SetAttributes(
			attribute.String("messaging.system", "nats"),
			attribute.String("messaging.destination.name", m.Subject),
			attribute.Int64("penstock.sequence", int64(m.Sequence)),
			attribute.Int("penstock.lane", int(l.number)),
		)
	}
	lagSeconds.WithLabelValues("dedupe").Set(time.Since(in.Stored).Seconds())
	var err error
	if in.Value, err = messages.DecodeFrame(m.Data); err != nil {
		return l.refuse(ctx, &in, err)
	}
	return work.Frame(ctx, in, func(ctx context.Context, output, fresh []byte) error {
		if l.alone && len(output) > 0 && (len(m.Data) == 0 || &output[0] != &m.Data[0]) {
			output = bytes.Clone(output) // work may use it again before it is stored
		}
		return l.commit(ctx, output, fresh, m.Sequence, m.Attempts)
	})
}

// refuse quarantines a frame that cannot be read and goes on behind it.
func (l *Lane) refuse(ctx context.Context, in *In[messages.View], cause error) error {
	out := &outbox{bus: l.bus, stage: Dedupe, redriven: in.Redriven}
	q := &messages.Quarantine{
		Code: fault.CodeOf(cause), Reason: cause.Error(), Payload: in.Data, Subject: in.Subject,
		Holds: messages.Quarantine_HOLDS_FRAME, Offset: -1, Length: -1, Attempts: 1,
	}
	if err := out.Quarantine(ctx, q); err != nil {
		return err
	}
	return l.commit(ctx, emptyFrame(), nil, in.Sequence, 0)
}

// emptyFrame is a frame without events: it only carries a position.
func emptyFrame() []byte { return messages.NewBuilder(messages.Header{}).Encode(nil) }

// commit stores an output. Where outputs may be under way side by side, it returns before
// that: what comes of it shows when the lane's position is needed.
func (l *Lane) commit(ctx context.Context, output, fresh []byte, input uint64, attempts uint32) error {
	msg := toNATS(ctx, Message{Subject: UniqueSubject(l.number), ID: outputID(l.number, input), Data: output, Attempts: attempts})
	msg.Header[headerInput] = []string{strconv.FormatUint(input, 10)}
	if l.alone && l.lastID != "" {
		return l.depart(ctx, msg, input, fresh)
	}
	last := l.output
	seq, err := l.unstuck(ctx, func() (uint64, error) { return l.bus.storeAfter(ctx, msg, last) })
	if err != nil {
		return err
	}
	l.output, l.input = seq, input
	l.lastID = msg.Header.Get(nats.MsgIdHdr)
	l.fresh = append(l.fresh, fresh...)
	return nil
}

// laneStuck is how long a lane waits for room in UNIQUE before it makes some.
const laneStuck = time.Second

// due says whether it is time for a snapshot.
func (l *Lane) due() bool {
	age := time.Since(l.saved)
	return len(l.fresh) >= snapshotIDs*idBytes || age > snapshotEvery || l.hurry.Load() && age > 200*time.Millisecond
}

// snapshot waits for what is under way, and saves the lane.
func (l *Lane) snapshot(ctx context.Context) error {
	if err := l.landAll(ctx); err != nil {
		return err
	}
	return l.saveLanded(ctx)
}

// saveLanded stores the fresh ids in SEEN and then moves the positions behind which the
// keeper may trim: an id must not be in SEEN before its event is in UNIQUE.
func (l *Lane) saveLanded(ctx context.Context) error {
	for start := 0; start < len(l.fresh); start += snapshotIDs * idBytes {
		block := l.fresh[start:min(start+snapshotIDs*idBytes, len(l.fresh))]
		id := fmt.Sprintf("s%d/%d/%d", l.number, l.output, start)
		seen, err := l.bus.store(ctx, toNATS(ctx, Message{Subject: SeenSubject(l.number), ID: id, Data: append([]byte(nil), block...)}))
		if err != nil {
			return err
		}
		l.seen = seen
	}
	l.lease.mu.Lock()
	same := l.lease.value.Input == l.input && l.lease.value.Output == l.output
	l.lease.mu.Unlock()
	if !same {
		if err := l.lease.update(ctx, func(v *leaseValue) { v.Input, v.Output, v.Seen = l.input, l.output, l.seen }); err != nil {
			return err
		}
		laneSnapshots.Inc()
	}
	if cap(l.fresh) > 2*snapshotIDs*idBytes {
		l.fresh = nil
	}
	l.fresh, l.saved = l.fresh[:0], time.Now()
	l.hurry.Store(false)
	return nil
}

// departed is up to where in PARSED outputs are stored or under way.
func (l *Lane) departed() uint64 {
	if n := len(l.flights); n > 0 {
		return l.flights[n-1].input
	}
	return l.input
}

// advance moves the position of a lane that has nothing to do, so that it does
// not hold the keeper back: it stores an empty frame that carries the position.
func (l *Lane) advance(ctx context.Context) error {
	hurry := l.hurry.Load()
	if time.Since(l.advanced) < l.calm && !hurry {
		return nil
	}
	l.advanced = time.Now()
	parsed, err := l.bus.lastSequence(ctx, Parsed)
	if err != nil {
		return err
	}
	unique, err := l.bus.lastSequence(ctx, Unique)
	if err != nil {
		return err
	}
	if l.calm = advanceEvery; parsed == l.parsed {
		l.calm = advanceCalm
	}
	l.parsed = parsed
	const slack = 256
	if parsed <= l.input || !hurry && parsed-l.input < slack && unique-l.output < slack {
		return nil
	}
	// Both by one replica: one that lags does not show frames that the stream's leader counts.
	last, upTo, err := l.bus.lastUpTo(ctx, ParsedSubject(l.number), "penstock.parsed.*")
	if err != nil {
		return err
	}
	if last > l.input || upTo <= l.input {
		return nil // there is work after all, or nothing is certain
	}
	return l.commit(ctx, emptyFrame(), nil, upTo, 0)
}

func (b *Bus) lastSequence(ctx context.Context, stream string) (uint64, error) {
	s, err := b.js.Stream(ctx, stream)
	if err != nil {
		return 0, errConnect.New(err, "look up stream %s", stream)
	}
	return s.CachedInfo().State.LastSeq, nil
}

// laneSubscriber is the Watermill subscriber of a lane: strictly one message
// after the other, from the lane's position on. Between messages it saves and
// advances the lane.
type laneSubscriber struct {
	lane *Lane
	// open ends when the subscriber is closed, work when it has to give up.
	open    context.Context
	close   context.CancelFunc
	work    context.Context
	abandon context.CancelCauseFunc
	ended   sync.WaitGroup
	err     error
}

func newLaneSubscriber(l *Lane) *laneSubscriber {
	s := &laneSubscriber{lane: l}
	s.open, s.close = context.WithCancel(context.Background())
	s.work, s.abandon = context.WithCancelCause(context.Background())
	return s
}

// Subscribe implements message.Subscriber.
func (s *laneSubscriber) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.open, cancel)
	out := make(chan *message.Message)
	s.ended.Go(func() {
		defer cancel()
		defer stop()
		defer close(out)
		if err := s.read(ctx, out); err != nil && ctx.Err() == nil {
			s.err = err
		}
	})
	return out, nil
}

// Close implements message.Subscriber.
func (s *laneSubscriber) Close() error {
	s.close()
	return nil
}

func (s *laneSubscriber) settle() { s.ended.Wait() }
func (s *laneSubscriber) giveUp() { s.abandon(errHandedOver) }

func (s *laneSubscriber) read(ctx context.Context, out chan<- *message.Message) error {
	l := s.lane
	frames := &orderedReader{bus: l.bus, subject: ParsedSubject(l.number), next: l.input + 1}
	defer frames.Close()
	for {
		if l.due() {
			if err := l.snapshot(s.work); err != nil {
				return err
			}
		}
		if frames.pause = 0; len(l.flights) > 0 {
			frames.pause = flightPause
		}
		msg, meta, err := frames.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errIdle) && len(l.flights) > 0:
			if err := l.landAll(s.work); err != nil {
				return err
			}
			continue
		case errors.Is(err, errIdle):
			l.behind.Store(0)
			l.lag.set(frames.consumer, frames.queue, time.Time{})
			if err := l.advance(s.work); err != nil {
				return err
			}
			// What an idle lane was moved past need not be asked for again.
			frames.next = max(frames.next, l.input+1)
			continue
		case err != nil:
			l.bus.log.Warn("lane cannot be read, trying on", "lane", l.number, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
			continue
		}
		if meta.seq <= l.departed() {
			continue
		}
		l.behind.Store(meta.pending + 1)
		l.lag.set(frames.consumer, meta.queue-1, meta.stored)
		stored := storedOf(msg, meta)
		wm := message.NewMessageWithContext(extractTrace(context.WithValue(s.work, deliveryKey{}, &stored), msg.Header), msg.Header.Get(headerUUID), stored.Data)
		select {
		case out <- wm:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-wm.Acked():
			l.behind.Store(meta.pending)
		case <-wm.Nacked():
			return context.Cause(s.work)
		}
	}
}
