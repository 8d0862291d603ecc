package deliver

import (
	"context"
	"math/bits"
	"runtime/debug"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/deliver/sinks"
)

var tracer = otel.Tracer("github.com/penstock/penstock/services/deliver")

// batcher regroups the events of the frames in hand into batches. At most one
// batch is open; it is sent when it is full, old, or when nothing can be added.
// A batch keeps its place among Concurrency ones until each of its events is
// settled, retries included; so all is bounded: batches by Concurrency + 1, their
// bytes by mostInHand plus one event. Those that a sink has taken over are bounded by
// the frames in hand, and have no bytes here.
type batcher struct {
	senders sync.WaitGroup

	mu          sync.Mutex
	changed     chan struct{} // closed and replaced when a batch moves on
	frames      map[*frame]struct{}
	waiting     int   // frames whose events are all added and not all settled
	weight      int64 // bytes of those frames, as the bus counts them
	open        *batch
	due         bool // open is to be sent as soon as there is a place for it
	running     map[*batch]struct{}
	free        []*batch
	inHand      int64
	held        int   // batches whose bytes the sink has taken over
	most        int64 // bytes in a batch; below the limit when larger ones were refused
	stalled     int   // batches that wait for a retry
	breaker     breaker
	pace        pace
	deadline    time.Time // of what moves after Drain, for all frames the same
	told        time.Time // when refusals were last logged
	toldSkipped time.Time
}

func (q *batcher) init(cfg Destination) {
	q.breaker.backoff = cfg.Backoff
	q.pace.fixed = !cfg.AdaptiveConcurrency
	q.changed = make(chan struct{})
	q.frames = map[*frame]struct{}{}
	q.running = map[*batch]struct{}{}
}

// wake lets all look again who wait for a change.
func (q *batcher) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// batch is the encoded events of one or more frames.
type batch struct {
	ctx    context.Context //nolint:containedctx // lives as long as the batch is sent
	cancel context.CancelFunc
	timer  *time.Timer
	data   []byte
	items  []sinks.Item
	refs   []ref // in step with items
	bytes  int64

	// todo is what remains to be sent, the last part next. on is set while that
	// part is with the sink.
	todo []part
	on   bool
	// held is set when the sink has taken the bytes over: data is gone.
	held bool
}

// ref leads from an event in a batch to the frame that it came in.
type ref struct {
	frame *frame
	index int
}

// part is a stretch of a batch that is sent as one.
type part struct {
	from, to int
	attempts int
	after    time.Time
	probe    bool
}

// enter takes a frame in hand.
func (q *batcher) enter(f *frame) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.frames[f] = struct{}{}
}

// leave lets go of a frame, settled or not. Batches that nobody waits for any
// more are cancelled.
func (q *batcher) leave(f *frame) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.frames, f)
	if f.added {
		q.waiting--
		q.weight -= f.size
	}
	if f.added && f.pending == 0 {
		return
	}
	f.gone = true
	for b := range q.running {
		if b.ctx.Err() == nil && b.orphaned() {
			b.cancel()
		}
	}
}

func (b *batch) orphaned() bool {
	for _, p := range b.todo {
		for _, r := range b.refs[p.from:p.to] {
			if !r.frame.gone {
				return false
			}
		}
	}
	return true
}

// put adds one event to the open batch. While there is no room it waits, with
// d.mu released. Called with d.mu and the turn.
func (d *Deliver) put(ctx context.Context, f *frame, index int, e *sinks.Event) error {
	for {
		fits := d.inHand == 0 || d.inHand+int64(len(e.Doc)) <= d.mostInHand()
		if fits && !d.due && d.append(ctx, f, index, e) {
			return nil
		}
		d.due = d.open != nil
		d.launch()
		if fits && d.open == nil {
			continue
		}
		changed := d.changed
		d.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		d.mu.Lock()
		if ctx.Err() != nil || d.stops() && (d.stalled > 0 || !time.Now().Before(d.deadline)) {
			return errDrained.New(context.Cause(ctx), "wait for room at destination %s", d.cfg.Name)
		}
	}
}

const (
	// mostOfOne is what a destination may have in hand when nothing is said about it,
	// mostOfAll what all such destinations of a process have together. Unit: bytes.
	mostOfOne = 8 << 20
	mostOfAll = 20 << 20
)

func (d *Deliver) mostInHand() int64 {
	if d.cfg.MaxInHand > 0 {
		return int64(d.cfg.MaxInHand)
	}
	return min(mostOfOne, mostOfAll/int64(max(1, Count())))
}

// stops reports whether Drain was called.
func (d *Deliver) stops() bool {
	select {
	case <-d.draining:
		return true
	default:
		return false
	}
}

// append adds one event unless the open batch has no room for its bytes.
func (d *Deliver) append(ctx context.Context, f *frame, index int, e *sinks.Event) bool {
	if d.open == nil {
		d.begin(ctx)
	}
	b, start := d.open, len(d.open.data)
	b.data = d.sink.Append(b.data, e)
	end := len(b.data)
	if start > 0 && int64(end) > d.mostBytes() {
		b.data = b.data[:start]
		return false
	}
	b.items = append(b.items, sinks.Item{ID: e.ID, Start: start, End: end})
	b.refs = append(b.refs, ref{f, index})
	b.bytes = int64(end)
	d.inHand += int64(end - start)
	f.pending++
	if len(b.items) >= d.limits.Events || int64(end) >= d.mostBytes() {
		d.due = true
		d.launch()
	}
	return true
}

func (d *Deliver) mostBytes() int64 {
	if d.most == 0 {
		d.most = int64(d.limits.Bytes)
	}
	return d.most
}

// batchBytes holds the bytes of batches between uses, for all destinations whose batches
// are of one order of magnitude. A sync.Pool would give them away at each run of the
// garbage collector, which come often where memory is short.
var batchBytes struct {
	sync.Mutex
	free  [64][][]byte
	bytes int
}

// mostSpare bounds what is spare, in bytes.
const mostSpare = 8 << 20

func (d *Deliver) class() int { return bits.Len64(uint64(d.limits.Bytes)) }

func (d *Deliver) takeBuffer() []byte {
	batchBytes.Lock()
	defer batchBytes.Unlock()
	free := &batchBytes.free[d.class()]
	n := len(*free)
	if n == 0 {
		return nil
	}
	b := (*free)[n-1]
	(*free)[n-1] = nil
	*free = (*free)[:n-1]
	batchBytes.bytes -= cap(b)
	return b
}

// giveBuffer takes back the bytes of a batch, unless an event larger than a batch has
// swollen them.
func (d *Deliver) giveBuffer(b []byte) {
	if cap(b) == 0 || int64(cap(b)) > 2*int64(d.limits.Bytes) {
		return
	}
	batchBytes.Lock()
	defer batchBytes.Unlock()
	if batchBytes.bytes+cap(b) > mostSpare {
		return
	}
	batchBytes.bytes += cap(b)
	free := &batchBytes.free[d.class()]
	*free = append(*free, b[:0])
}

// begin opens a batch. It lives in the trace of the first frame, but not with
// its cancellation: other frames share it.
func (d *Deliver) begin(ctx context.Context) {
	b := &batch{}
	if n := len(d.free); n > 0 {
		b, d.free = d.free[n-1], d.free[:n-1]
	}
	b.data = d.takeBuffer()
	b.ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
	d.open = b
	if d.limits.Age > 0 {
		b.timer = time.AfterFunc(d.limits.Age, func() { d.flush(b) })
	}
}

// flush sends b if it is still open.
func (d *Deliver) flush(b *batch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open == b {
		d.due = true
		d.launch()
	}
}

// complete notes that all events of a frame are added.
func (d *Deliver) complete(f *frame) {
	f.added = true
	d.waiting++
	d.weight += f.size
	if f.pending == 0 {
		close(f.settled)
	}
	full := d.full()
	if d.open != nil && (d.limits.Age == 0 || full || d.stops()) {
		d.due = true
		d.launch()
	}
	if full {
		d.hurry()
	}
}

// full tells that no more frames come before one of those in hand is settled.
func (d *Deliver) full() bool {
	return d.window > 0 && d.waiting >= d.window || d.windowBytes > 0 && d.weight >= d.windowBytes
}

// hurryLast hurries the sink once more when the last of the batches that were on their
// way to it has got there: those were not with it when it was hurried before.
func (d *Deliver) hurryLast() {
	if d.held > 0 && len(d.running) == d.held && (d.full() || d.stops()) {
		d.hurry()
	}
}

// hurry tells a sink that holds batches to commit them.
func (d *Deliver) hurry() {
	if d.patient != nil {
		d.patient.Hurry()
	}
}

// launch sends the open batch if it is due and there is a place for it.
func (d *Deliver) launch() {
	if !d.due || d.open == nil || len(d.running)-d.held >= d.pace.now(d.cfg.Concurrency) {
		return
	}
	b := d.open
	d.open, d.due = nil, false
	if b.timer != nil {
		b.timer.Stop()
	}
	b.todo = append(b.todo[:0], part{to: len(b.items)})
	d.running[b] = struct{}{}
	d.senders.Go(func() { d.send(b) })
}

// send works off a batch until each of its events is settled, or nobody waits
// for them.
func (d *Deliver) send(b *batch) {
	for {
		p, more := d.next(b)
		if !more {
			break
		}
		began := time.Now()
		d.judge(b, p, began, d.attempt(b, p))
	}
	b.cancel()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.running, b)
	held := b.held
	if held {
		d.held--
	}
	d.inHand -= b.bytes
	d.giveBuffer(b.data)
	clear(b.refs)
	b.data, b.items, b.refs, b.bytes, b.held = nil, b.items[:0], b.refs[:0], 0, false
	if len(d.free) <= d.cfg.Concurrency { // many may have been held
		d.free = append(d.free, b)
	}
	d.launch()
	if !held {
		d.hurryLast()
	}
	d.wake()
}

// next waits until the next part of b may be sent and takes it off the list. It
// reports false when nothing remains.
func (d *Deliver) next(b *batch) (part, bool) {
	stalled := false
	d.mu.Lock()
	defer d.mu.Unlock()
	defer func() {
		if stalled {
			d.stalled--
		}
	}()
	for {
		d.prune(b)
		if len(b.todo) == 0 {
			return part{}, false
		}
		p := &b.todo[len(b.todo)-1]
		now := time.Now()
		wait, ok := p.after.Sub(now), false
		if wait <= 0 {
			p.probe, wait, ok = d.breaker.admit(now)
		}
		if ok {
			b.on = true
			for _, r := range b.refs[p.from:p.to] {
				r.frame.moving++
			}
			return *p, true
		}
		if !stalled {
			stalled = true
			d.stalled++
			d.wake() // those who drain give up on what stalls
		}
		d.pause(b, wait)
	}
}

// pause waits with d.mu released; below 0 only for a change.
func (d *Deliver) pause(b *batch, wait time.Duration) {
	changed := d.changed
	d.mu.Unlock()
	defer d.mu.Lock()
	var timer <-chan time.Time
	if wait >= 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-timer:
	case <-changed:
	case <-b.ctx.Done():
	}
}

// prune takes out of the next parts what no frame waits for any more.
func (d *Deliver) prune(b *batch) {
	for len(b.todo) > 0 {
		p := &b.todo[len(b.todo)-1]
		d.keep(b, p, func(i int) bool { return !b.refs[i].frame.gone })
		if p.from < p.to {
			return
		}
		b.todo = b.todo[:len(b.todo)-1]
	}
}

// release lets go of the bytes of a batch that the sink has taken over whole. One of
// which other parts are still to be sent keeps them.
func (d *Deliver) release(b *batch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if b.held || len(b.todo) > 1 {
		return
	}
	b.held = true
	d.held++
	d.inHand -= b.bytes
	d.giveBuffer(b.data)
	b.bytes, b.data = 0, nil
	if b.on && b.todo[0].probe {
		d.breaker.probing = false // it may be held for long, and others are to try meanwhile
	}
	d.launch()
	d.hurryLast()
	d.wake()
}

// keep moves the events of p for which wanted says so to its front and cuts off
// the others. The events stay side by side.
func (d *Deliver) keep(b *batch, p *part, wanted func(i int) bool) {
	to, end := p.from, 0
	if p.from < p.to {
		end = b.items[p.from].Start
	}
	for i := p.from; i < p.to; i++ {
		if !wanted(i) {
			continue
		}
		item := b.items[i]
		if item.Start != end && !b.held {
			copy(b.data[end:], b.data[item.Start:item.End])
		}
		size := item.End - item.Start
		b.items[to] = sinks.Item{ID: item.ID, Start: end, End: end + size}
		b.refs[to] = b.refs[i]
		end += size
		to++
	}
	p.to = to
}

// attempt gives one part to the sink, in a span that links to the spans of all
// frames in it.
func (d *Deliver) attempt(b *batch, p part) sinks.Result {
	sent := sinks.NewBatch(b.data, b.items[p.from:p.to]).Releasing(func() { d.release(b) }).Replaying(d.lens.replay)
	ctx := b.ctx
	if trace.SpanContextFromContext(ctx).IsSampled() {
		var span trace.Span
		ctx, span = tracer.Start(ctx, "deliver batch", trace.WithSpanKind(trace.SpanKindClient), trace.WithLinks(links(b, p)...),
			trace.WithAttributes(
				attribute.String("penstock.destination", d.cfg.Name), attribute.String("penstock.sink", d.cfg.Type),
				attribute.Int("penstock.events", sent.Len()), attribute.Int("penstock.bytes", len(sent.Bytes())),
				attribute.Int("penstock.attempt", p.attempts+1)))
		defer span.End()
		res := d.call(ctx, sent)
		span.SetAttributes(attribute.String("penstock.verdict", res.Verdict.String()))
		if res.Err != nil {
			span.SetStatus(codes.Error, fault.CodeOf(res.Err))
		}
		return res
	}
	return d.call(ctx, sent)
}

func (d *Deliver) call(ctx context.Context, sent sinks.Batch) (res sinks.Result) {
	began, size := time.Now(), len(sent.Bytes())
	defer func() { d.count(began, size, &res) }()
	defer func() {
		if p := recover(); p != nil { // of one destination, not of all the process
			res = sinks.Result{Verdict: sinks.Retry, Err: errPanic.New(nil, "deliver to destination %s: %T", d.cfg.Name, p)}
			d.log.Error("sink panicked", "err", res.Err, "stack", string(debug.Stack()))
		}
	}()
	res = d.sink.Deliver(ctx, sent)
	if res.Verdict != sinks.Done && res.Err == nil {
		res.Err = errRefused.New(nil, "deliver to destination %s", d.cfg.Name)
	}
	return res
}

func (d *Deliver) count(began time.Time, size int, res *sinks.Result) {
	batchSeconds.WithLabelValues(d.cfg.Name).Observe(time.Since(began).Seconds())
	batchesSent.WithLabelValues(d.cfg.Name, res.Verdict.String()).Inc()
	bytesSent.WithLabelValues(d.cfg.Name).Add(float64(size))
}

// links leads to the frames in p.
func links(b *batch, p part) []trace.Link {
	var out []trace.Link
	seen := map[*frame]bool{}
	for _, r := range b.refs[p.from:p.to] {
		if !seen[r.frame] {
			seen[r.frame] = true
			if r.frame.span.IsValid() {
				out = append(out, trace.Link{SpanContext: r.frame.span})
			}
		}
	}
	return out
}

// judge settles what a result settles and lines up the rest.
func (d *Deliver) judge(b *batch, p part, began time.Time, res sinks.Result) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	defer d.wake()
	if !b.held && b.ctx.Err() == nil && len(res.Items) == 0 {
		size := b.items[p.to-1].End - b.items[p.from].Start
		full := 2*(p.to-p.from) >= d.limits.Events || 2*int64(size) >= d.mostBytes()
		d.pace.record(began, now, full, len(d.running)-d.held, d.cfg.Concurrency, res.Verdict)
	}
	b.on = false
	for _, r := range b.refs[p.from:p.to] {
		r.frame.moving--
	}
	b.todo = b.todo[:len(b.todo)-1]
	n := p.to - p.from
	p.attempts++
	if b.held && (res.Verdict == sinks.Split || res.Verdict == sinks.TooLarge) {
		res.Verdict = sinks.Retry // there is nothing left to cut in halves
	}
	if (res.Verdict == sinks.Split || res.Verdict == sinks.TooLarge) && n > 1 {
		d.report(b, p, now, false, &res)
		if res.Verdict == sinks.TooLarge {
			d.most = max(1, min(d.mostBytes(), int64(b.items[p.to-1].End-b.items[p.from].Start)/2))
		}
		half := p.from + n/2
		b.todo = append(b.todo, part{from: half, to: p.to}, part{from: p.from, to: half})
		return
	}
	settled, taken, refused, next := 0, 0, 0, 0
	d.keep(b, &p, func(i int) bool {
		verdict, err := res.Verdict, res.Err
		if next < len(res.Items) && res.Items[next].Index == i-p.from {
			verdict, err = res.Items[next].Verdict, res.Items[next].Err
			next++
		}
		switch verdict {
		case sinks.Retry, sinks.Stop:
			if !b.held {
				return true
			}
			if err == nil {
				err = errRefused.New(nil, "deliver to destination %s", d.cfg.Name)
			}
			b.refs[i].frame.again = err
		case sinks.Reject, sinks.Split, sinks.TooLarge:
			d.reject(b.refs[i], p.attempts, err)
			taken++
			refused++
		case sinks.Done:
			taken++
		}
		settled++
		d.confirm(b.refs[i].frame)
		return false
	})
	d.report(b, p, now, taken == 0, &res)
	if res.Verdict == sinks.Done && d.most < int64(d.limits.Bytes) {
		d.most = min(int64(d.limits.Bytes), d.mostBytes()+d.mostBytes()/256+1) // feel out whether more is taken again
	}
	if p.from == p.to {
		return
	}
	retries.WithLabelValues(d.cfg.Name, fault.CodeOf(cause(&res))).Inc()
	if settled > 0 {
		p.attempts = 1
	}
	p.after = now // the breaker knows when after Retry-After and Stop
	if res.Verdict != sinks.Stop && (res.Verdict != sinks.Retry || refused == 0) {
		p.after = now.Add(d.cfg.Backoff.after(p.attempts))
	}
	p.probe = false
	b.todo = append(b.todo, p)
}

// cause is the error for which events are sent again.
func cause(res *sinks.Result) error {
	if res.Err != nil {
		return res.Err
	}
	for _, x := range res.Items {
		if x.Verdict == sinks.Retry {
			return x.Err
		}
	}
	return nil
}

func (d *Deliver) confirm(f *frame) {
	f.pending--
	if f.added && f.pending == 0 {
		close(f.settled)
	}
}

func (d *Deliver) reject(r ref, attempts int, err error) {
	if err == nil {
		err = errRefused.New(nil, "deliver to destination %s", d.cfg.Name)
	}
	r.frame.rejected = append(r.frame.rejected, rejection{r.index, attempts, err})
	if now := time.Now(); now.Sub(d.told) >= time.Minute {
		d.told = now
		d.log.Warn("destination refuses events; they are in quarantine", "err", err)
	}
}

// report tells the breaker of a result and the log of what that changed. An
// attempt that was cancelled says nothing about the destination.
func (d *Deliver) report(b *batch, p part, now time.Time, nothing bool, res *sinks.Result) {
	if b.ctx.Err() != nil && res.Verdict != sinks.Done {
		if p.probe {
			d.breaker.probing = false
		}
		return
	}
	down := nothing && res.Verdict == sinks.Retry
	switch d.breaker.record(now, p.probe, down, res) {
	case alarm:
		d.log.Error("destination is stopped until somebody acts; nothing is lost, it is tried again slowly", "err", res.Err)
	case broke:
		d.log.Warn("destination fails; one batch at a time is tried", "err", res.Err)
	case healed:
		d.log.Info("destination takes events again", "outage_seconds", now.Sub(d.breaker.since).Seconds())
	case same:
	}
}

// await waits until all events of f are settled.
func (d *Deliver) await(ctx context.Context, f *frame) error {
	select {
	case <-f.settled:
		return nil
	case <-ctx.Done():
	case <-d.draining:
	}
	// The process stops, or the frame gets too old. What moves is waited for; what waits
	// for a retry is not.
	d.mu.Lock()
	if d.open != nil {
		d.due = true
		d.launch()
	}
	if !d.stops() { // else Drain has done it
		d.hurry()
	}
	left := d.cfg.DrainTimeout
	if d.stops() {
		left = time.Until(d.deadline)
	}
	d.mu.Unlock()
	grace := time.NewTimer(left)
	defer grace.Stop()
	for {
		d.mu.Lock()
		moves, changed := d.stalled == 0 || f.moving == f.pending, d.changed
		d.mu.Unlock()
		if moves {
			select {
			case <-f.settled:
				return nil
			case <-changed:
				continue
			case <-grace.C:
			}
		}
		select {
		case <-f.settled:
			return nil
		default:
			return errDrained.New(context.Cause(ctx), "deliver a frame to destination %s", d.cfg.Name)
		}
	}
}

// drop lets go of an open batch whose frames have left.
func (d *Deliver) drop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if b := d.open; b != nil {
		if b.timer != nil {
			b.timer.Stop()
		}
		b.cancel()
		d.open, d.due = nil, false
	}
	for b := range d.running {
		b.cancel()
	}
}
