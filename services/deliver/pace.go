package deliver

import (
	"time"

	"github.com/penstock/penstock/services/deliver/sinks"
)

// startAt is how many batches are sent at once before a destination has shown what it
// stands.
const startAt = 4

// pace finds how many batches a destination takes at once: one more after as many
// full batches as are under way, as long as they do not take longer than they did;
// fewer when they do, and half when it asks to be left alone. That is additive increase
// and multiplicative decrease, as in TCP. Deliver.mu guards it.
type pace struct {
	fixed   bool
	allowed float64
	// mean is a moving average of what a full batch takes.
	mean time.Duration
	// lowered is when allowed last fell: what began before says nothing new.
	lowered time.Time
}

const (
	// slower than the mean by this factor, and by at least slack, is a queue that grows.
	slower = 2
	slack  = 20 * time.Millisecond
	// recent is over how many batches the mean goes.
	recent = 16
)

// now is how many batches may be sent at once; most bounds it.
func (p *pace) now(most int) int {
	if p.fixed {
		return most
	}
	if p.allowed == 0 {
		p.allowed = startAt
	}
	return max(1, min(most, int(p.allowed)))
}

// record takes note of an attempt: when it began, whether the batch was full, and how
// many were under way.
func (p *pace) record(began, now time.Time, full bool, busy, most int, verdict sinks.Verdict) {
	switch {
	case p.fixed:
	case verdict == sinks.Retry:
		p.lower(began, now, 0.5)
	case verdict == sinks.Done && full:
		took := now.Sub(began)
		if p.mean == 0 {
			p.mean = took
		}
		late := took > slower*p.mean && took > p.mean+slack
		p.mean += (took - p.mean) / recent
		if late {
			p.lower(began, now, 0.8)
		} else if busy >= p.now(most) {
			p.allowed = min(float64(most), p.allowed+1/p.allowed)
		}
	}
}

func (p *pace) lower(began, now time.Time, by float64) {
	if began.After(p.lowered) {
		p.allowed, p.lowered = max(1, p.allowed*by), now
	}
}
