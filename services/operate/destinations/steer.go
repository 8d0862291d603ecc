package destinations

import (
	"context"
	"fmt"
	"time"

	"github.com/penstock/penstock/services/internal/standing"
	"github.com/penstock/penstock/topology"
)

// Followed is how far the processes followed what an operator said.
type Followed struct {
	// Processes that have the destination, Behind of them have not followed yet.
	Processes, Behind int
}

// Say stores what an operator says about one destination of a list of [Now], in the audit
// first. By and At are the caller's; via is console or command. Processes follow within
// seconds: see [Follow]. Errors: destinations.unknown, bus.audit_failed,
// bus.control_failed.
func Say(ctx context.Context, bus *topology.Bus, list []*Status, c topology.Control, via string) error {
	s, err := Pick(list, c.Destination)
	if err != nil {
		return err
	}
	action := "destination.resume"
	if c.Paused {
		action = "destination.pause"
	}
	if err := bus.WriteAudit(ctx, topology.Deed{
		At: c.At, By: c.By, Via: via, Action: action, Count: 1, Reason: c.Reason,
		What: fmt.Sprintf("destination %s, for which %d frames wait", s.Name, s.LagFrames),
	}); err != nil {
		return err
	}
	return bus.SetControl(ctx, c)
}

// Follow waits until all processes that have the destination follow what was said last,
// for up to within.
func Follow(ctx context.Context, bus *topology.Bus, c topology.Control, within time.Duration) (Followed, error) {
	deadline := time.Now().Add(within)
	for {
		one := New(c.Destination)
		if err := ask(ctx, bus, func(name string) *Status {
			if name == c.Destination {
				return one
			}
			return New(name)
		}); err != nil {
			return Followed{}, err
		}
		f := Followed{Processes: len(one.Processes)}
		for _, p := range one.Processes {
			if (p.State == standing.Paused) != c.Paused {
				f.Behind++
			}
		}
		if f.Behind == 0 || time.Now().After(deadline) {
			return f, nil
		}
		select {
		case <-ctx.Done():
			return f, context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
