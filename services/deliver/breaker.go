package deliver

import (
	"math/rand/v2"
	"time"

	"github.com/penstock/penstock/services/deliver/sinks"
)

const (
	// stopPause is how often a destination is tried that needs somebody to act.
	stopPause = 30 * time.Second
	// breakAfter is how many failures in a row open the breaker.
	breakAfter = 5
)

// after is the pause after the nth failure, n from 1: doubling, with a jitter down to
// the half.
func (b Backoff) after(n int) time.Duration {
	pause := b.Max
	if n <= 20 {
		pause = min(pause, b.Initial<<(n-1))
	}
	return pause/2 + rand.N(pause/2+1) //nolint:gosec // no secret depends on it
}

// health of a destination, as the metric shows it.
type health int

const (
	// closed: all goes through.
	closed health = iota
	// open: it fails; one batch at a time tries whether it still does.
	open
	// stopped: as open, but somebody has to change something.
	stopped
)

// breaker is the view of a destination as a whole. Deliver.mu guards it.
type breaker struct {
	backoff Backoff
	state   health
	// fails counts failures in a row, probes those while open.
	fails, probes int
	// next is the earliest time of any attempt.
	next time.Time
	// probing is set while one batch is trying.
	probing bool
	// since is when the trouble began.
	since time.Time
	// alarmed is set from the first stop to the next success.
	alarmed bool
}

// admit says whether an attempt may begin now; probe marks the one that tries
// for all. Else wait tells for how long to wait; below 0, until something changes.
func (b *breaker) admit(now time.Time) (probe bool, wait time.Duration, ok bool) {
	if now.Before(b.next) {
		return false, b.next.Sub(now), false
	}
	if b.state == closed {
		return false, 0, true
	}
	if b.probing {
		return false, -1, false
	}
	b.probing = true
	return true, 0, true
}

// change is what a result did to the state of a destination.
type change int

const (
	same change = iota
	broke
	alarm
	healed
)

// record takes note of the result of an attempt. down says that the destination
// took nothing and answered nothing about single events.
func (b *breaker) record(now time.Time, probe, down bool, res *sinks.Result) change {
	if probe {
		b.probing = false
	}
	switch {
	case res.Verdict == sinks.Stop:
		b.fail(now)
		b.state, b.next = stopped, now.Add(stopPause)
		if !b.alarmed {
			b.alarmed = true
			return alarm
		}
		return same
	case down:
		return b.down(now, probe, res.After)
	}
	was := *b
	*b = breaker{backoff: b.backoff}
	if was.state != closed {
		b.since = was.since
		return healed
	}
	if res.After > 0 { // some events were throttled
		b.next = now.Add(res.After)
	}
	return same
}

func (b *breaker) fail(now time.Time) {
	if b.fails == 0 {
		b.since = now
	}
	b.fails++
}

func (b *breaker) down(now time.Time, probe bool, after time.Duration) change {
	b.fail(now)
	if next := now.Add(after); after > 0 && next.After(b.next) {
		b.next = next
	}
	opens := b.state == closed && b.fails >= breakAfter
	if !opens && !probe {
		return same
	}
	b.probes++
	if next := now.Add(b.backoff.after(b.probes)); next.After(b.next) {
		b.next = next
	}
	b.state = open
	if opens && !b.alarmed {
		return broke
	}
	return same
}
