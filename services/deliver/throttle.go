package deliver

import (
	"context"
	"errors"
	"time"
)

var errStops = errors.New("the process stops, or the replay does")

// throttle spaces events out evenly. Deliver.mu guards it.
type throttle struct {
	rate float64 // events a second; 0 is no bound
	next time.Time
}

const (
	// catchUp is how much of a pause may be made up for: as if it had not been.
	catchUp = 100 * time.Millisecond
	// ahead is by how much an event may be early, so that timers need not be fine.
	ahead = 10 * time.Millisecond
)

// take lets one event pass, after a pause.
func (t *throttle) take(now time.Time) (pause time.Duration) {
	if t.rate <= 0 {
		return 0
	}
	if earliest := now.Add(-catchUp); t.next.Before(earliest) {
		t.next = earliest
	}
	pause = t.next.Sub(now)
	t.next = t.next.Add(time.Duration(float64(time.Second) / t.rate))
	if pause < ahead {
		return 0
	}
	return pause
}

// slow waits until the rate has room for one event, with d.mu released. Called with d.mu
// and the turn.
func (d *Deliver) slow(ctx context.Context) error {
	if d.rate.rate <= 0 { // mostly: the clock need not be asked for each event
		return nil
	}
	wait := d.rate.take(time.Now())
	if wait == 0 {
		return nil
	}
	d.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var cause error
	select {
	case <-timer.C:
	case <-ctx.Done():
		cause = context.Cause(ctx)
	case <-d.draining:
		cause = errStops
	}
	d.mu.Lock()
	if cause != nil {
		return errDrained.New(cause, "wait for the rate of destination %s", d.cfg.Name)
	}
	return nil
}
