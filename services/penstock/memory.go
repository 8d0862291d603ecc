package main

import (
	"context"
	"os"
	"runtime/debug"
	"time"

	"github.com/penstock/penstock/services/dedupe"
)

// Most of what penstock allocates are large buffers that live for a moment, and
// the block caches of the NATS server inside it. The garbage collector would let
// them pile up to twice of what is in use; a limit has it run in time, at little
// cost, since large buffers hold no pointers. The ids of dedupe come on top: all of
// them are in use.
const memoryBase = 320 << 20

// limitMemory sets the limit and follows the ids, unless GOMEMLIMIT says what it
// is to be.
func limitMemory(ctx context.Context) error {
	if os.Getenv("GOMEMLIMIT") != "" {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for last := int64(-1); ; {
		if limit := memoryBase + dedupe.Held()*5/4; limit != last {
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
