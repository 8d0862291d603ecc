package console

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/penstock/penstock/services/operate/status"
	"github.com/penstock/penstock/topology"
)

// sample is the last look at the pipeline. Nothing in it changes any more.
type sample struct {
	status.Snapshot
	// err is why there is no newer one; the rest is what was seen before.
	err error
	// tried is when that was, seen when all of it was still so.
	tried, seen time.Time
}

// watch looks at the pipeline every few seconds until ctx ends, more rarely while nobody
// sees it. Pages show what it saw: however many are open, the pipeline is asked no more
// often.
func (c *Console) watch(ctx context.Context) {
	for {
		c.look(ctx)
		wait := c.deps.Every
		if c.deps.Bus() == nil {
			wait = min(wait, time.Second)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if c.deps.Bus() == nil || !c.unseen() {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(sampleUnseen - wait):
		case <-c.wake:
		}
	}
}

// unseen tells whether nobody has looked for a while.
func (c *Console) unseen() bool {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	return c.hub.open == 0 && time.Since(time.Unix(0, c.asked.Load())) > unseenAfter
}

// latest is the last sample, nil before the first. Where it is older than samples are while
// somebody looks, the next one is taken now.
func (c *Console) latest() *sample {
	now := c.now.Load()
	c.asked.Store(time.Now().UnixNano())
	if now != nil && time.Since(now.tried) >= c.deps.Every {
		select {
		case c.wake <- struct{}{}:
		default: // it will be
		}
	}
	return now
}

// look takes one sample.
func (c *Console) look(ctx context.Context) {
	before := c.now.Load()
	next := &sample{tried: time.Now()}
	if before != nil {
		next.Snapshot, next.seen = before.Snapshot, before.seen
	}
	bus := c.deps.Bus()
	if bus == nil {
		next.err = errBus.New(nil, "look at the pipeline")
	} else {
		look, cancel := context.WithTimeout(ctx, sampleWithin)
		defer cancel()
		var configured status.Configured
		if c.deps.Configured != nil {
			configured = c.deps.Configured()
		}
		snapshot, err := status.Now(look, bus, configured)
		if err != nil {
			next.err = err
		} else {
			if before != nil && before.err == nil {
				snapshot.Rates(&before.Snapshot)
			}
			next.Snapshot, next.seen = snapshot, time.Now()
			c.history.add(next)
		}
	}
	if ctx.Err() != nil {
		return
	}
	switch lost, was := next.err != nil, before != nil && before.err != nil; {
	case lost && !was && before != nil:
		c.log.Warn("the pipeline cannot be looked at; the console shows what it saw last, and tries on", "err", next.err)
	case was && !lost:
		c.log.Info("the pipeline can be looked at again")
	}
	c.now.Store(next)
	c.tell()
}

// tell shows the sample to those who have the page of the pipeline open.
func (c *Console) tell() {
	if !c.followed("pipeline") {
		return
	}
	html, err := c.render("pipeline-live", view{Data: c.pipeline()})
	if err != nil {
		c.log.Error("the picture of the pipeline could not be made", "err", err)
		return
	}
	c.publish("pipeline", "picture", string(html))
}

// Bounds of what is kept of the past: about 0.5 MiB. Each ring has points of one width.
const (
	fineFor   = 2 * time.Hour
	coarse    = time.Minute
	coarseFor = 24 * time.Hour
)

// measures are kept of each of the six stages.
const (
	measureIn = iota
	measureOut
	measureLag
	measureErrors
	measureBytes
	measures
)

// point is all that is kept of one moment.
type point struct {
	at     int64 // Unix seconds
	values [6][measures]float32
	// delivered and quarantined a second, over all.
	delivered, quarantined float32
}

// ring has the last points.
type ring struct {
	points []point
	next   int
}

func (r *ring) add(p point, most int) {
	if len(r.points) < most {
		r.points = append(r.points, p)
		return
	}
	r.points[r.next] = p
	r.next = (r.next + 1) % most
}

// since returns the points after a time, oldest first.
func (r *ring) since(t int64) []point {
	all := slices.Concat(r.points[r.next:], r.points[:r.next])
	i, _ := slices.BinarySearchFunc(all, t, func(p point, t int64) int { return int(p.at - t) })
	return all[i:]
}

// history is the past of the pipeline as plots show it: each sample for two hours, and
// the mean of each minute for a day.
type history struct {
	mu           sync.Mutex
	fine, coarse ring
	// minute gathers what the next coarse point is made of.
	minute []point
	before *sample
}

// add takes a sample. Rates of the first one are not known.
func (h *history) add(s *sample) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.before
	h.before = s
	if before == nil {
		return
	}
	p := point{at: s.At.Unix()}
	seconds := s.At.Sub(before.At).Seconds()
	if seconds <= 0 {
		return
	}
	for i, name := range topology.Stages {
		now, was := s.stage(string(name)), before.stage(string(name))
		p.values[i] = [measures]float32{
			measureIn: float32(now.InRate), measureOut: float32(now.OutRate), measureLag: float32(now.LagSeconds),
			measureErrors: perSecond(was.Errors, now.Errors, seconds), measureBytes: float32(now.BytesRate),
		}
		p.quarantined += perSecond(was.Quarantined, now.Quarantined, seconds)
	}
	for _, d := range s.Destinations {
		p.delivered += float32(d.Rate)
	}
	h.fine.add(p, int(fineFor/sampleEvery))
	if len(h.minute) > 0 && p.at/60 != h.minute[0].at/60 {
		h.coarse.add(mean(h.minute), int(coarseFor/coarse))
		h.minute = h.minute[:0]
	}
	if len(h.minute) < 120 {
		h.minute = append(h.minute, p)
	}
}

// perSecond is by how much a counter rose; one that began anew rose by what it has.
func perSecond(was, now uint64, seconds float64) float32 {
	if now < was {
		was = 0
	}
	return float32(float64(now-was) / seconds)
}

func mean(points []point) point {
	m := point{at: points[0].at / 60 * 60}
	n := float32(len(points))
	for _, p := range points {
		for i := range p.values {
			for j, v := range p.values[i] {
				m.values[i][j] += v / n
			}
		}
		m.delivered += p.delivered / n
		m.quarantined += p.quarantined / n
	}
	return m
}

// span returns the points of the last while, at most so many.
func (h *history) span(d time.Duration, most int) []point {
	h.mu.Lock()
	defer h.mu.Unlock()
	from := time.Now().Add(-d).Unix()
	if d > fineFor {
		points := h.coarse.since(from)
		return thin(points, most)
	}
	return thin(h.fine.since(from), most)
}

// thin takes the mean of neighbours where there are more points than are drawn.
func thin(points []point, most int) []point {
	each := (len(points) + most - 1) / most
	if each <= 1 {
		return points
	}
	var out []point
	for group := range slices.Chunk(points, each) {
		m := mean(group)
		m.at = group[0].at
		out = append(out, m)
	}
	return out
}

// stage of a snapshot by name; zero when it is not there.
func (s *sample) stage(name string) status.Stage {
	for _, st := range s.Stages {
		if st.Name == name {
			return st
		}
	}
	return status.Stage{Name: name}
}
