package main

import (
	"context"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/penstock/penstock/services/dedupe"
	"github.com/penstock/penstock/services/deliver"
	"github.com/penstock/penstock/topology"
)

// Most of what penstock allocates are large buffers that live for a moment, and
// the block caches of the NATS server inside it. The garbage collector would let
// them pile up to twice of what is in use; a limit has it run in time, at little
// cost, since large buffers hold no pointers. The ids of dedupe and what waits for
// destinations come on top: all of that is in use.
const (
	memoryBase        = 220 << 20
	memoryDeliver     = 32 << 20 // instead, in a process with this stage alone
	memoryDestination = 7 << 20
	// memoryLeast is for a process with few destinations: below it the garbage collector
	// runs so often that an event costs twice as much with two of them as with twenty.
	memoryLeast = 72 << 20
)

// limitMemory sets the limit and follows the ids and the destinations, unless
// GOMEMLIMIT says what it is to be.
func (p *pipeline) limitMemory(ctx context.Context) error {
	if os.Getenv("GOMEMLIMIT") != "" {
		<-ctx.Done()
		return nil
	}
	base := int64(memoryBase)
	if slices.Equal(p.stages, []topology.Stage{topology.Deliver}) {
		base = memoryDeliver
	}
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for last := int64(-1); ; {
		if limit := max(memoryLeast, base+dedupe.Held()*5/4+int64(deliver.Count())*memoryDestination); limit != last {
			debug.SetMemoryLimit(limit)
			last = limit
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
