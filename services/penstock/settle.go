package main

import (
	"context"
	"runtime/debug"
	"time"
)

// settleAfter is when a process has done what it does only once.
const settleAfter = 3 * time.Second

// settle gives back, once, what only the start needed: garbage, and the parts of the
// program that ran or were read then, which stay mapped otherwise. What is needed again
// comes from the system's cache.
func settle(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(settleAfter):
	}
	debug.FreeOSMemory()
	unmapProgram()
	return nil
}
