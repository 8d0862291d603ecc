package topology

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages/fault"
)

// budgetBucket holds one token bucket for each limit that processes share.
const budgetBucket = "penstock_budgets"

var (
	errBudget = fault.Define("bus.budget_failed", fault.Retry,
		"check that the key-value bucket "+budgetBucket+" exists: penstock topology apply")

	budgetGrants = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_budget_grants_total", Help: "Grants of calls fetched from the shared budgets, by result: ok, empty, contended, error.",
	}, []string{"result"})
	budgetWaits = promauto.NewCounter(prometheus.CounterOpts{
		Name: "penstock_budget_wait_seconds_total", Help: "Time for which calls waited for their share of a budget.",
	})
)

// Budget is a rate that all processes share, e.g. of the calls to one API of an
// account in a region: a token bucket in a key of the bus. Grants are fetched
// several at once, so that the bus is not asked for each call; a process that dies
// loses those it has, at most a second's worth. Its methods may be called
// concurrently.
type Budget struct {
	bus  *Bus
	key  string
	turn chan struct{} // held by whoever looks for a grant

	mu   sync.Mutex
	rate float64
	// have are grants in hand, good until stale.
	have  int
	stale time.Time
	// ahead is by how much the server's clock is ahead of ours, as measured last: a
	// clock may be set.
	ahead    time.Duration
	measured time.Time
}

// budgetValue is what the key holds: what was left when it was written, as the
// server's clock tells it. Below 0 the bucket is closed for a while.
type budgetValue struct {
	Left float64 `json:"left"`
}

// grantsLast is for how long grants are good. Later they could make a burst.
const grantsLast = 3 * time.Second

// Budget is the shared budget of a name at rate calls a second, which is above 0.
// In one process the same name is the same budget; the last rate holds. The bucket
// holds a second's worth, and at least one.
func (b *Bus) Budget(name string, rate float64) *Budget {
	b.bucketsMu.Lock()
	defer b.bucketsMu.Unlock()
	key := keyOf(name)
	g := b.budgets[key]
	if g == nil {
		g = &Budget{bus: b, key: key, turn: make(chan struct{}, 1)}
		if b.budgets == nil {
			b.budgets = map[string]*Budget{}
		}
		b.budgets[key] = g
	}
	g.mu.Lock()
	g.rate = rate
	g.mu.Unlock()
	return g
}

// Take waits until a call may be made. Errors: bus.budget_failed when the bus does
// not answer, and those of ctx.
func (g *Budget) Take(ctx context.Context) error {
	if g.spend() {
		return nil
	}
	began := time.Now()
	defer func() { budgetWaits.Add(time.Since(began).Seconds()) }()
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		if g.spend() {
			return nil
		}
		wait, err := g.change(ctx, g.grant)
		if err != nil {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// Close holds back the calls of all processes for d from now on: the far side has
// said that there were too many. Longer than ten minutes is cut.
func (g *Budget) Close(ctx context.Context, d time.Duration) error {
	g.mu.Lock()
	g.have = 0
	g.mu.Unlock()
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		wait, err := g.change(ctx, func(left float64) (float64, int, time.Duration) {
			return min(left, -g.rate*min(d, 10*time.Minute).Seconds()), 0, 0
		})
		if err != nil || wait == 0 {
			return err
		}
	}
}

// spend takes a grant that is in hand.
func (g *Budget) spend() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.have == 0 || time.Now().After(g.stale) {
		g.have = 0
		return false
	}
	g.have--
	return true
}

// grant takes what there is of a second's worth, or says how long to wait for one.
func (g *Budget) grant(left float64) (after float64, granted int, wait time.Duration) {
	if left < 1 {
		return left, 0, time.Duration((1 - left) / g.rate * float64(time.Second))
	}
	n := math.Floor(min(left, max(1, g.rate)))
	return left - n, int(n), 0
}

// measureAgain is how long a comparison of the clocks is good.
const measureAgain = 30 * time.Second

// contended is the pause after somebody else was faster.
const contended = 20 * time.Millisecond

// change applies f to what is left now. f says what is left afterwards, what was
// granted, and how long to wait when nothing was changed. A wait of 0 means that
// the change is stored.
func (g *Budget) change(ctx context.Context, f func(left float64) (float64, int, time.Duration)) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	fail := func(err error) (time.Duration, error) {
		budgetGrants.WithLabelValues("error").Inc()
		return 0, errBudget.New(err, "take from the budget %s", g.key)
	}
	kv, err := g.bus.bucket(ctx, budgetBucket)
	if err != nil {
		return fail(err)
	}
	entry, err := kv.Get(ctx, g.key)
	if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return fail(err)
	}
	g.mu.Lock()
	most := max(1, g.rate)
	left, revision := most, uint64(0)
	if entry != nil {
		revision = entry.Revision()
		var v budgetValue
		if json.Unmarshal(entry.Value(), &v) == nil {
			// Both times are the server's, so that the clocks of processes may differ.
			passed := time.Now().Add(g.ahead).Sub(entry.Created())
			left = min(most, v.Left+g.rate*max(0, passed.Seconds()))
		}
	}
	after, granted, wait := f(left)
	// Written back also where there is nothing to grant: by clocks that differ there
	// might never be.
	measure := g.measured.IsZero() || time.Since(g.measured) > measureAgain
	g.mu.Unlock()
	if wait > 0 && !measure {
		budgetGrants.WithLabelValues("empty").Inc()
		return wait, nil
	}
	data, err := json.Marshal(budgetValue{Left: after})
	if err != nil {
		return fail(err)
	}
	sent := time.Now()
	if revision == 0 {
		revision, err = kv.Create(ctx, g.key, data)
	} else {
		revision, err = kv.Update(ctx, g.key, data, revision)
	}
	if err != nil {
		if apiCode(err) == codeWrongLastSequence || errors.Is(err, jetstream.ErrKeyExists) {
			budgetGrants.WithLabelValues("contended").Inc()
			return contended, nil
		}
		return fail(err)
	}
	if measure {
		g.compare(ctx, kv, revision, sent.Add(time.Since(sent)/2))
	}
	if wait > 0 {
		budgetGrants.WithLabelValues("empty").Inc()
		return wait, nil
	}
	budgetGrants.WithLabelValues("ok").Inc()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.have, g.stale = granted, time.Now().Add(grantsLast)
	return 0, nil
}

// compare finds out how far the server's clock is ahead, from the time at which it
// stored what we wrote.
func (g *Budget) compare(ctx context.Context, kv jetstream.KeyValue, revision uint64, written time.Time) {
	entry, err := kv.GetRevision(ctx, g.key, revision)
	if err != nil {
		return // somebody has written since: the next time
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ahead, g.measured = entry.Created().Sub(written), time.Now()
}
