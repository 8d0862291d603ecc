package faults

import (
	"sync"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/feed"
)

// tracker knows of each event when it was put and which are still to come, and so how
// long after a fault all flows again.
type tracker struct {
	mu sync.Mutex
	// owner is the object that an event was in first.
	owner map[string]int
	// missing is how many events of an object have not come to the sink yet.
	missing []int
	// low is the first object of which something is missing.
	low   int
	ids   []string
	last  time.Time
	marks []*mark
}

// mark is the end of a fault.
type mark struct {
	at   time.Time
	from int // the first object that was put after it
	// through is when the first event came that was put after the fault, caught when all
	// had come that was put before it.
	through, caught time.Time
	changed, all    chan struct{} // closed when through and caught are set
}

func newTracker() *tracker { return &tracker{owner: map[string]int{}, last: time.Now()} }

// put is called before an object is there to be read.
func (t *tracker) put(o feed.Object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, i := 0, len(t.missing)
	for _, event := range o.EventIDs {
		text := event.String()
		id := messages.NewID([]byte("cloudtrail"), []byte(text)).String()
		t.ids = append(t.ids, text)
		if _, known := t.owner[id]; !known {
			t.owner[id] = i
			n++
		}
	}
	t.missing = append(t.missing, n)
}

// arrived is called for the first arrival of each event.
func (t *tracker) arrived(id string) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	i, known := t.owner[id]
	if !known {
		return // the check at the end tells
	}
	t.last = now
	t.missing[i]--
	for t.low < len(t.missing) && t.missing[t.low] == 0 {
		t.low++
	}
	for _, m := range t.marks {
		if m.through.IsZero() && i >= m.from {
			m.through = now
			close(m.changed)
		}
		if m.caught.IsZero() && t.low >= m.from {
			m.caught = now
			close(m.all)
		}
	}
}

// ended marks the end of a fault.
func (t *tracker) ended() *mark {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := &mark{at: time.Now(), from: len(t.missing), changed: make(chan struct{}), all: make(chan struct{})}
	if t.low >= m.from {
		m.caught = m.at
		close(m.all)
	}
	t.marks = append(t.marks, m)
	return m
}

// times of a mark in seconds; below 0 for what never came.
func (t *tracker) times(m *mark) (through, caught float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	since := func(at time.Time) float64 {
		if at.IsZero() {
			return -1
		}
		return float64(at.Sub(m.at).Milliseconds()) / 1000
	}
	return since(m.through), since(m.caught)
}

// sent is how many different events were put, and all their ids, repeats included.
func (t *tracker) sent() (different int, ids []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.owner), t.ids
}

func (t *tracker) objects() int { t.mu.Lock(); defer t.mu.Unlock(); return len(t.missing) }
