package deliver

import (
	"context"
	"sync"
	"time"

	"github.com/penstock/penstock/topology"
)

// A replay looks every yieldEvery whether live events wait. While they do, each of its
// frames waits for at most yieldLongest: a pipeline that is always at its limit gets its
// replays done all the same.
const (
	yieldEvery   = 500 * time.Millisecond
	yieldLongest = 5 * time.Second
)

// yield has a replay wait while live events do: it takes the disk, the network and the
// time of the processor from them.
type yield struct {
	mu sync.Mutex
	// gate is closed while nothing live waits.
	gate chan struct{}
}

func newYield() *yield {
	y := &yield{gate: make(chan struct{})}
	close(y.gate)
	return y
}

// watch looks at the pipeline until ctx ends. A bus that does not tell holds up nothing.
func (y *yield) watch(ctx context.Context, bus *topology.Bus) {
	ease := bus.Ease()
	ease.Tell = y.hold
	tick := time.NewTicker(yieldEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		_, _ = ease.Wait(ctx)
		y.release()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (y *yield) hold() {
	y.mu.Lock()
	defer y.mu.Unlock()
	select {
	case <-y.gate:
		y.gate = make(chan struct{})
	default:
	}
}

func (y *yield) release() {
	y.mu.Lock()
	defer y.mu.Unlock()
	select {
	case <-y.gate:
	default:
		close(y.gate)
	}
}

// wait returns when nothing live waits, or after a while. Errors: the cause of ctx.
func (y *yield) wait(ctx context.Context) error {
	y.mu.Lock()
	gate := y.gate
	y.mu.Unlock()
	select {
	case <-gate:
		return nil
	default:
	}
	longest := time.NewTimer(yieldLongest)
	defer longest.Stop()
	select {
	case <-gate:
	case <-longest.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}
