package sources

import (
	"sync"
	"time"
)

// httpBucket is a token bucket. It may be used concurrently.
type httpBucket struct {
	rate, burst float64

	mu     sync.Mutex
	tokens float64
	last   time.Time
}

// newHTTPBucket returns a full bucket, nil where there is no bound.
func newHTTPBucket(r HTTPRate) *httpBucket {
	if r.PerSecond <= 0 {
		return nil
	}
	burst := float64(r.Burst)
	if r.Burst == 0 {
		burst = max(1, r.PerSecond)
	}
	return &httpBucket{rate: r.PerSecond, burst: burst, tokens: burst}
}

// take takes a token, and returns how long to wait where there is none.
func (b *httpBucket) take(now time.Time) time.Duration {
	if b == nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	if b.tokens >= 1 {
		b.tokens--
		return 0
	}
	return max(time.Millisecond, time.Duration((1-b.tokens)/b.rate*float64(time.Second)))
}

func (b *httpBucket) fill(now time.Time) {
	if !b.last.IsZero() {
		b.tokens = min(b.burst, b.tokens+b.rate*max(0, now.Sub(b.last).Seconds()))
	}
	b.last = now
}

// full tells whether b is as good as new.
func (b *httpBucket) full(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	return b.tokens >= b.burst
}

// maxHTTPCallers bounds the callers that are told apart.
const maxHTTPCallers = 4096

// httpCallers has a bucket for each caller.
type httpCallers struct {
	rate HTTPRate

	mu   sync.Mutex
	by   map[string]*httpBucket
	rest *httpBucket // of those for whom there is no room
}

func newHTTPCallers(r HTTPRate) *httpCallers {
	return &httpCallers{rate: r, by: map[string]*httpBucket{}, rest: newHTTPBucket(r)}
}

// take is [httpBucket.take] for a caller.
func (c *httpCallers) take(name string, now time.Time) time.Duration {
	if c.rest == nil {
		return 0
	}
	return c.of(name, now).take(now)
}

func (c *httpCallers) of(name string, now time.Time) *httpBucket {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.by[name]; b != nil {
		return b
	}
	if len(c.by) >= maxHTTPCallers {
		for known, b := range c.by {
			if b.full(now) {
				delete(c.by, known)
			}
		}
	}
	if len(c.by) >= maxHTTPCallers {
		return c.rest
	}
	b := newHTTPBucket(c.rate)
	c.by[name] = b
	return b
}

// httpAgainMax is how many requests are remembered that were not stored in time.
const httpAgainMax = 4096

// httpAgain remembers the pulls of requests that the bus began to store without
// telling that it has. When the sender comes again with the same body, it gets the
// same pull, so that what was stored is not stored twice.
type httpAgain struct {
	mu    sync.Mutex
	pulls map[[32]byte][]byte
	ring  [][32]byte
	next  int
}

func newHTTPAgain(size int) *httpAgain {
	return &httpAgain{pulls: map[[32]byte][]byte{}, ring: make([][32]byte, size)}
}

func (a *httpAgain) get(body [32]byte) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pulls[body]
}

func (a *httpAgain) add(body [32]byte, pull []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.pulls[body]; known {
		a.pulls[body] = pull
		return
	}
	delete(a.pulls, a.ring[a.next])
	a.pulls[body] = pull
	a.ring[a.next] = body
	a.next = (a.next + 1) % len(a.ring)
}

// drop forgets a body whose sender knows that it is stored.
func (a *httpAgain) drop(body [32]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pulls, body)
}
