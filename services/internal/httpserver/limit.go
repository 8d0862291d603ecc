package httpserver

import (
	"sync"
	"time"

	"github.com/penstock/penstock/services/internal/config"
)

// Rate is a bound on requests.
type Rate struct {
	// PerSecond is how many requests a second may come on average. 0: no bound.
	PerSecond float64 `yaml:"per_second"`
	// Burst is how many may come at once. 0: as many as in a second.
	Burst int `yaml:"burst"`
}

// Validate reports every problem, each with the key to change.
func (r Rate) Validate() error {
	var p config.Problems
	p.Need(r.PerSecond >= 0 && r.PerSecond <= 1e6, "per_second", "use 0 to 1000000 requests a second")
	p.Need(r.Burst >= 0 && r.Burst <= 1e6, "burst", "use 0 to 1000000 requests")
	return p.Err()
}

// Bucket is a token bucket. It may be used concurrently.
type Bucket struct {
	rate, burst float64

	mu     sync.Mutex
	tokens float64
	last   time.Time
}

// NewBucket returns a full bucket, nil where there is no bound.
func NewBucket(r Rate) *Bucket {
	if r.PerSecond <= 0 {
		return nil
	}
	burst := float64(r.Burst)
	if r.Burst == 0 {
		burst = max(1, r.PerSecond)
	}
	return &Bucket{rate: r.PerSecond, burst: burst, tokens: burst}
}

// Take takes a token, and returns how long to wait where there is none.
func (b *Bucket) Take(now time.Time) time.Duration {
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

func (b *Bucket) fill(now time.Time) {
	if !b.last.IsZero() {
		b.tokens = min(b.burst, b.tokens+b.rate*max(0, now.Sub(b.last).Seconds()))
	}
	b.last = now
}

// full tells whether b is as good as new.
func (b *Bucket) full(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(now)
	return b.tokens >= b.burst
}

// maxCallers bounds the callers that are told apart.
const maxCallers = 4096

// Callers has a bucket for each caller.
type Callers struct {
	rate Rate

	mu   sync.Mutex
	by   map[string]*Bucket
	rest *Bucket // of those for whom there is no room
}

// NewCallers makes a bucket for each caller when it is first seen.
func NewCallers(r Rate) *Callers {
	return &Callers{rate: r, by: map[string]*Bucket{}, rest: NewBucket(r)}
}

// Take is [Bucket.Take] for a caller.
func (c *Callers) Take(name string, now time.Time) time.Duration {
	if c.rest == nil {
		return 0
	}
	return c.of(name, now).Take(now)
}

func (c *Callers) of(name string, now time.Time) *Bucket {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.by[name]; b != nil {
		return b
	}
	if len(c.by) >= maxCallers {
		for known, b := range c.by {
			if b.full(now) {
				delete(c.by, known)
			}
		}
	}
	if len(c.by) >= maxCallers {
		return c.rest
	}
	b := NewBucket(c.rate)
	c.by[name] = b
	return b
}
