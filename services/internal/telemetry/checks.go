package telemetry

import (
	"context"
	"fmt"
	"sort"
	"sync"
	"time"
)

// probeAge is how old an answer of /readyz may be. Whoever may reach the address
// must not be able to have the parts asked more often.
const probeAge = time.Second

// grace is what a check gets to say why, after its context has ended.
const grace = 100 * time.Millisecond

// failure is one check that did not pass.
type failure struct {
	Check string `json:"check"`
	Error string `json:"error"`
}

// checks runs the readiness checks.
type checks struct {
	timeout time.Duration
	running sync.WaitGroup

	mu    sync.Mutex // held while probing: others wait and take the same answer
	list  []*check
	at    time.Time // when last was found out
	last  []failure
	asked bool
}

// check is one of them. busy holds a token while it runs, so that one that hangs
// is not started again beside itself.
type check struct {
	name  string
	run   func(context.Context) error
	busy  chan struct{}
	since time.Time
}

func newChecks(ready map[string]func(context.Context) error, timeout time.Duration) *checks {
	if timeout <= 0 {
		timeout = Defaults().CheckTimeout
	}
	c := &checks{timeout: timeout}
	for name, run := range ready {
		c.list = append(c.list, &check{name: name, run: run, busy: make(chan struct{}, 1)})
	}
	sort.Slice(c.list, func(i, j int) bool { return c.list[i].name < c.list[j].name })
	return c
}

// probe returns the checks that fail, in order of their names. It does not end
// early with ctx, since others share the answer.
func (c *checks) probe(ctx context.Context) []failure {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asked && time.Since(c.at) < probeAge {
		return c.last
	}
	all, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.timeout+grace)
	defer cancel()
	each, cancel := context.WithTimeout(all, c.timeout)
	defer cancel()
	results := make([]<-chan error, len(c.list))
	for i, ch := range c.list {
		results[i] = c.start(each, ch)
	}
	c.last = nil
	for i, ch := range c.list {
		if err := ch.wait(all, results[i]); err != nil {
			c.last = append(c.last, failure{ch.name, err.Error()})
		}
	}
	c.at, c.asked = time.Now(), true
	return c.last
}

// start runs ch, unless its last run has not come back: then there is no result.
func (c *checks) start(ctx context.Context, ch *check) <-chan error {
	select {
	case ch.busy <- struct{}{}:
	default:
		return nil
	}
	ch.since = time.Now()
	result := make(chan error, 1)
	c.running.Go(func() {
		defer func() { <-ch.busy }()
		result <- ch.run(ctx)
	})
	return result
}

func (ch *check) wait(ctx context.Context, result <-chan error) error {
	if result == nil {
		return fmt.Errorf("no answer for %s", time.Since(ch.since).Round(time.Second))
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-result: // it was there while an earlier check was waited for
		return err
	default:
		return fmt.Errorf("no answer within %s", time.Since(ch.since).Round(time.Millisecond))
	}
}

// stop waits for the checks that still run, at most so long.
func (c *checks) stop(most time.Duration) {
	done := make(chan struct{})
	go func() { c.running.Wait(); close(done) }()
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}
