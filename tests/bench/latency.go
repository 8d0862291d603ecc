package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/services/demo/feed"
)

// Latency is the time from an object's creation, which is when its notice is sent, until
// the receiver has all of the request with the event and confirms it: each event's own,
// by the clock of this process.
type Latency struct {
	// Objects and Events a second that were announced.
	Objects float64 `json:"objects_per_second"`
	Events  float64 `json:"events_per_second"`
	// Count of events that were timed.
	Count int     `json:"count"`
	P50   float64 `json:"p50_seconds"`
	P90   float64 `json:"p90_seconds"`
	P99   float64 `json:"p99_seconds"`
	Max   float64 `json:"max_seconds"`
	// CPU of penstock meanwhile, as a share of one core.
	CPU float64 `json:"cpu_cores"`
	// Curve are the latencies of 0, 1, 2, … 100 % of events, for the plot.
	Curve []float64 `json:"curve"`
}

// eventID is CloudTrail's eventID as it stands in a document.
type eventID [36]byte

// stopwatch times events from their objects' creation.
type stopwatch struct {
	object  map[eventID]int32 // by event
	created []atomic.Int64    // of each object, ns
	warm    int               // so many objects come first and are not timed

	mu    sync.Mutex
	times []time.Duration
	odd   error // what should not have come
}

var idMark = []byte(`"eventID":"`)

// see times the events of a request.
func (s *stopwatch) see(body []byte) {
	now := time.Now().UnixNano()
	var times []time.Duration
	var odd error
	for line := range bytes.Lines(body) {
		_, rest, found := bytes.Cut(line, idMark)
		if !found || len(rest) < len(eventID{}) {
			odd = errNoID
			continue
		}
		object, known := s.object[eventID(rest)]
		created := int64(0)
		if known {
			created = s.created[object].Load()
		}
		if created == 0 {
			odd = fmt.Errorf("event %s came, but nobody had announced it", rest[:36])
			continue
		}
		if int(object) >= s.warm {
			times = append(times, time.Duration(now-created))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.times = append(s.times, times...)
	s.odd = errors.Join(s.odd, odd)
}

// pace has penstock deliver objects at a fixed rate, and times their events. The first
// ones, warm, are not timed.
func pace(ctx context.Context, c Contender, o Options, warm, objects, records int, rate float64, say io.Writer) (*Latency, error) {
	options := feed.Options{Objects: warm + objects, RecordsPerObject: feed.Fixed(records)}
	w, err := generate(options)
	if err != nil {
		return nil, err
	}
	options.Seed = 1 // as generate has it
	ids := feed.CloudTrail(options)
	watch := &stopwatch{object: make(map[eventID]int32, w.Records), created: make([]atomic.Int64, len(w.Objects)), warm: warm}
	for i := range w.Objects {
		for id := range ids.EventIDs(i) {
			watch.object[eventID([]byte(id.String()))] = int32(i)
		}
	}
	s, err := openSite(ctx, w, o, watch.see)
	if err != nil {
		return nil, err
	}
	defer s.close()
	set, err := setNamed("million")
	if err != nil {
		return nil, err
	}
	p, err := s.start(ctx, set, w, c, o)
	if err != nil {
		return nil, err
	}
	defer p.kill()
	runtime.GC()
	fmt.Fprintf(say, "bench: %d objects with %d events each, %.2f objects a second\n", len(w.Objects), records, rate)
	tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer tick.Stop()
	var began time.Time
	cpu := 0.0
	for i := range w.Objects {
		if i == warm {
			began = time.Now()
			if cpu, err = p.cpu(); err != nil {
				return nil, err
			}
		}
		now := time.Now()
		watch.created[i].Store(now.UnixNano())
		if _, err := s.aws.Send(queueName(0), s.message(w, i, now)); err != nil {
			return nil, err
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return nil, fmt.Errorf("penstock ended: %w\n%s", p.err, p.said)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	took := time.Since(began).Seconds()
	used, err := p.cpu()
	if err != nil {
		return nil, err
	}
	if err := p.await(ctx, func() bool { return s.received() >= int64(w.Unique) }); err != nil {
		return nil, fmt.Errorf("%d of %d events arrived: %w", s.received(), w.Unique, err)
	}
	if _, _, err := p.stop(); err != nil {
		return nil, err
	}
	watch.mu.Lock()
	defer watch.mu.Unlock()
	if watch.odd != nil {
		return nil, watch.odd
	}
	if len(watch.times) != objects*records {
		return nil, fmt.Errorf("%d events were timed, want %d", len(watch.times), objects*records)
	}
	slices.Sort(watch.times)
	at := func(q float64) float64 { return watch.times[int(q*float64(len(watch.times)-1))].Seconds() }
	l := &Latency{
		Objects: float64(objects) / took, Events: float64(objects*records) / took, Count: len(watch.times),
		P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: at(1), CPU: (used - cpu) / took,
	}
	for i := range 101 {
		l.Curve = append(l.Curve, at(float64(i)/100))
	}
	return l, nil
}

// Load is the latency at a share of what penstock can do.
type Load struct {
	// Full is what it took beforehand when all was announced at once.
	FullEvents  float64 `json:"full_events_per_second"`
	FullObjects float64 `json:"full_objects_per_second"`
	Latency
}

// halfLoad finds out what penstock takes, and times events at half of that for a time.
func halfLoad(ctx context.Context, c Contender, o Options, scale float64, say io.Writer) (*Load, error) {
	const records = 2000
	set, err := setNamed("million")
	if err != nil {
		return nil, err
	}
	w, err := set.Make(max(0.05, 0.3*scale))
	if err != nil {
		return nil, err
	}
	full, err := measure(ctx, set, w, c, o)
	if err != nil {
		return nil, err
	}
	l := &Load{FullEvents: full.Rate(), FullObjects: full.Rate() / records}
	rate := l.FullObjects / 2
	fmt.Fprintf(say, "bench: full load is %.0f events/s; now half of it\n", l.FullEvents)
	half, err := pace(ctx, c, o, int(rate*2)+1, max(50, int(rate*30*scale)), records, rate, say)
	if err != nil {
		return nil, err
	}
	l.Latency = *half
	return l, nil
}

// steady times single events, one a second.
func steady(ctx context.Context, c Contender, o Options, scale float64, say io.Writer) (*Latency, error) {
	return pace(ctx, c, o, 5, max(20, int(300*scale)), 1, 1, say)
}

// Idle is what penstock uses when there is nothing to do.
type Idle struct {
	Seconds float64 `json:"seconds"`
	// CPU as a share of one core.
	CPU    float64 `json:"cpu_cores"`
	RSSMiB float64 `json:"rss_mib"`
	// Settle is how long it was let alone before.
	Settle float64 `json:"settle_seconds"`
}

// idle watches penstock, with one source and one destination, after it has delivered one
// object and been let alone for a time.
func idle(ctx context.Context, c Contender, o Options, scale float64, say io.Writer) (*Idle, error) {
	set, err := setNamed("million")
	if err != nil {
		return nil, err
	}
	w, err := trail(1, 10, 0)(1)
	if err != nil {
		return nil, err
	}
	s, err := openSite(ctx, w, o, nil)
	if err != nil {
		return nil, err
	}
	defer s.close()
	p, err := s.start(ctx, set, w, c, o)
	if err != nil {
		return nil, err
	}
	defer p.kill()
	if err := s.announce(w); err != nil {
		return nil, err
	}
	if err := p.await(ctx, func() bool { return s.received() >= int64(w.Unique) }); err != nil {
		return nil, err
	}
	r := &Idle{Settle: max(15, 60*min(1, scale))}
	length := max(30, 120*min(1, scale))
	fmt.Fprintf(say, "bench: idle: %.0f s to settle, %.0f s to watch\n", r.Settle, length)
	wait := func(seconds float64) error {
		select {
		case <-time.After(time.Duration(seconds * float64(time.Second))):
			return nil
		case <-p.ended:
			return fmt.Errorf("penstock ended: %w\n%s", p.err, p.said)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := wait(r.Settle); err != nil {
		return nil, err
	}
	cpu, err := p.cpu()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := wait(length); err != nil {
		return nil, err
	}
	now, err := p.cpu()
	if err != nil {
		return nil, err
	}
	r.Seconds = time.Since(began).Seconds()
	r.CPU, r.RSSMiB = (now-cpu)/r.Seconds, p.memory("VmRSS")
	_, _, err = p.stop()
	return r, err
}
