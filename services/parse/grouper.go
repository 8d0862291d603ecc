package parse

import (
	"context"
	"runtime"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/topology"
)

// groupKey is what all events of a group have in common.
type groupKey struct {
	source, format, eventType, replay string
	lane                              uint32
}

// part is a run of events of one input: in.order[from:to]. ticket is the input's.
type part struct {
	in       *input
	ticket   *ticket
	from, to uint32
}

// ticket is what the Handle of an input waits for. Under the grouper's lock.
type ticket struct {
	// groups are those that hold events of the input; pending counts those that are
	// not yet settled, err is the first error of one. done is closed at 0.
	groups  []*group
	pending int
	err     error
	done    chan struct{}
}

// group is a frame in the making. It refers to the events where they are in the
// inputs; they are copied when the frame is encoded. Under the grouper's lock
// until it is closed.
type group struct {
	key    groupKey
	parts  []part
	events int
	bytes  int64
	began  time.Time
	// waiting counts the tickets that somebody still waits for. At 0 cancel ends
	// the attempt to store the group; it is nil while the group is open.
	waiting int
	cancel  context.CancelFunc
}

// grouper merges the events of several inputs into frames.
//
// A group is closed when it is full, and when it has waited long enough. All are
// closed early when waiting has no more sense: as many inputs wait as the window
// says; or all in hand wait, and one of them for memory, or none has come for a
// while. But not as long as others are on their way to the bus: when those are
// stored more inputs will come, so that groups grow to the size of the window
// instead of going out one by one.
//
// Methods may be called concurrently.
type grouper struct {
	config   Config
	window   int
	outbox   func() topology.Outbox
	release  func(*input)
	encoders chan *encoder // those not in use
	wg       sync.WaitGroup

	mu      sync.Mutex
	open    map[groupKey]*group
	inHand  int // inputs between enter and leave
	waiting int // inputs that wait for their groups
	blocked int // inputs that wait for memory
	flying  int // closed groups that are not settled
	used    int64
	room    chan struct{} // closed when used gets less
	latest  time.Time     // when an input was added last
	timer   *time.Timer   // nil until the first group
	armed   bool
}

func newGrouper(c Config, deps Deps, release func(*input)) *grouper {
	n := runtime.GOMAXPROCS(0)
	g := &grouper{
		config: c, window: deps.Window, outbox: deps.NewOutbox, release: release, encoders: make(chan *encoder, n),
		open: map[groupKey]*group{}, room: make(chan struct{}),
	}
	for range n {
		g.encoders <- &encoder{builder: messages.NewBuilder(messages.Header{})}
	}
	return g
}

// enter takes an input in hand, once there is memory for it, and returns what
// takes it out again. Memory is given back by giveBack.
func (g *grouper) enter(ctx context.Context, size int64) (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inHand++
	for g.used > 0 && g.used+size > int64(g.config.Memory) {
		g.blocked++
		g.check(time.Now())
		room := g.room
		g.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		g.mu.Lock()
		g.blocked--
		if err != nil {
			g.inHand--
			return nil, err
		}
	}
	g.use(size)
	return g.leave, nil
}

func (g *grouper) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inHand--
	g.check(time.Now()) // perhaps the others wait for each other now
}

// use changes the memory in use. It is called under the lock.
func (g *grouper) use(size int64) {
	g.used += size
	grouperBytes.Set(float64(g.used))
	if size < 0 {
		close(g.room)
		g.room = make(chan struct{})
	}
}

func (g *grouper) giveBack(size int64) {
	if size == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.use(-size)
}

// add puts the events of in into groups, and returns what to wait for. in is not
// to be changed until the groups have released it.
func (g *grouper) add(in *input) *ticket {
	t := &ticket{done: make(chan struct{})}
	if len(in.events) == 0 {
		close(t.done)
		return t
	}
	lanes := (len(in.starts) - 1) / len(in.types)
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.latest = now
	for b := range len(in.starts) - 1 {
		from, to := in.starts[b], in.starts[b+1]
		if from == to {
			continue
		}
		key := groupKey{in.source, in.format, in.types[b/lanes], in.replay, uint32(b % lanes)}
		for from < to {
			from = g.fill(key, in, t, from, to, now)
		}
	}
	g.arm(min(g.config.Linger, g.config.Idle))
	return t
}

// fill puts events of in into the open group of key, as many as fit, and returns
// the first one that does not. A whole input is not divided. It is called under the lock.
func (g *grouper) fill(key groupKey, in *input, t *ticket, from, to uint32, now time.Time) uint32 {
	gr := g.open[key]
	if gr != nil && in.whole && (gr.events+len(in.events) > g.config.GroupEvents || gr.bytes+in.bytes > int64(g.config.GroupBytes)) {
		g.shut(gr, "full")
		gr = nil
	}
	if gr == nil {
		gr = &group{key: key, began: now, parts: make([]part, 0, min(g.window, 16))}
		g.open[key] = gr
	}
	at := from
	for ; at < to && gr.events < g.config.GroupEvents; at++ {
		e := &in.events[in.order[at]]
		size := int64(e.to - e.from)
		if gr.events > 0 && gr.bytes+size > int64(g.config.GroupBytes) {
			break
		}
		gr.events++
		gr.bytes += size
	}
	if at > from {
		in.refs.Add(1)
		t.pending++
		t.groups = append(t.groups, gr)
		gr.parts = append(gr.parts, part{in, t, from, at})
		gr.waiting++
	}
	if at < to || gr.events >= g.config.GroupEvents || gr.bytes >= int64(g.config.GroupBytes) {
		g.shut(gr, "full")
	}
	return at
}

// wait returns when all groups of t are settled, with the first of their errors.
// When ctx ends first, groups that nobody else waits for are given up: their
// inputs will come again.
func (g *grouper) wait(ctx context.Context, t *ticket) error {
	g.mu.Lock()
	g.waiting++
	g.check(time.Now())
	g.mu.Unlock()
	var err error
	select {
	case <-t.done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	var orphans []*group
	g.mu.Lock()
	g.waiting--
	if err == nil {
		err = t.err
	} else {
		for _, gr := range t.groups {
			if gr.waiting--; gr.waiting > 0 {
				continue
			}
			if gr.cancel != nil {
				gr.cancel()
				continue
			}
			delete(g.open, gr.key)
			orphans = append(orphans, gr)
		}
	}
	g.mu.Unlock()
	for _, gr := range orphans {
		g.letGo(gr)
	}
	return err
}

// letGo releases the inputs of a group. It is not called under the lock.
func (g *grouper) letGo(gr *group) {
	for _, p := range gr.parts {
		g.release(p.in)
	}
}

// check closes all groups when waiting for more has no sense. It is called under
// the lock, whenever something has changed that it looks at.
func (g *grouper) check(now time.Time) {
	if len(g.open) == 0 || g.flying > 0 {
		return
	}
	stuck := g.waiting+g.blocked == g.inHand
	why := ""
	switch {
	case g.waiting >= g.window:
		why = "window"
	case stuck && g.blocked > 0:
		why = "memory"
	case stuck && now.Sub(g.latest) >= g.config.Idle:
		why = "idle"
	default:
		return
	}
	for _, gr := range g.open {
		g.shut(gr, why)
	}
}

// tick closes the groups that have lingered long enough, and looks when the next
// ones will have.
func (g *grouper) tick() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed = false
	now := time.Now()
	g.check(now)
	next := g.config.ThinLinger
	for _, gr := range g.open {
		linger := g.config.Linger
		if gr.events < g.config.ThinEvents {
			linger = g.config.ThinLinger
		}
		left := linger - now.Sub(gr.began)
		if left <= 0 {
			g.shut(gr, "linger")
			continue
		}
		next = min(next, left)
	}
	if idle := g.config.Idle - now.Sub(g.latest); idle > 0 {
		next = min(next, idle)
	}
	if len(g.open) > 0 {
		g.arm(next)
	}
}

// arm lets tick be called after d, unless it will be anyhow.
func (g *grouper) arm(d time.Duration) {
	if g.armed {
		return
	}
	g.armed = true
	if g.timer == nil {
		g.timer = time.AfterFunc(d, g.tick)
		return
	}
	g.timer.Reset(d)
}

// shut closes an open group and sends it on its way. It is called under the lock.
func (g *grouper) shut(gr *group, why string) {
	delete(g.open, gr.key)
	g.flying++
	groupsTotal.WithLabelValues(why).Inc()
	ctx, cancel := context.WithCancel(trace.ContextWithSpanContext(context.Background(), gr.parts[0].in.span))
	gr.cancel = cancel
	g.wg.Go(func() {
		defer cancel()
		g.settle(gr, g.store(ctx, gr))
	})
}

// settle tells those who wait for gr how it ended.
func (g *grouper) settle(gr *group, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range gr.parts {
		t := p.ticket
		if t.err == nil {
			t.err = err
		}
		if t.pending--; t.pending == 0 {
			close(t.done)
		}
	}
	g.flying--
	g.check(time.Now())
}

// close closes what is still open, and waits until all is settled.
func (g *grouper) close() {
	g.mu.Lock()
	for _, gr := range g.open {
		g.shut(gr, "close")
	}
	if g.timer != nil {
		g.timer.Stop()
	}
	g.mu.Unlock()
	g.wg.Wait()
}
