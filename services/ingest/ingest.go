// Package ingest reads the sources and announces what they bring.
//
//	sources ──▶ ingest ──▶ penstock.notice   (an S3 object to fetch)
//	                  ├──▶ penstock.record   (records that came in the message itself)
//	                  └──▶ penstock.quarantine.ingest
//
// In:     messages of the sources in package sources, at least once.
// Out:    a [messages.Notice] per object, frames of raw records, and one
// Announced fact per record of an upstream message.
// Errors: unknown and forged messages are quarantined; outages upstream and of
// the bus are waited for. A message is acknowledged upstream only after its
// result is durable.
// State:  none that matters. Any number of copies may run.
package ingest

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/ingest/sources"
)

var errEnded = fault.Define("ingest.source_ended", fault.Retry,
	"look at the error before it in the log; the source is started again")

// Ingest runs sources side by side.
type Ingest struct {
	sources []sources.Source
}

// New takes opened sources. It starts nothing.
func New(all ...sources.Source) *Ingest { return &Ingest{sources: all} }

// Run runs every source until ctx ends, and waits for what is in hand. A source
// that fails is started again and does not disturb the others. The error tells
// which sources had to give messages back (ingest.drain_expired); nothing is
// lost by that.
func (i *Ingest) Run(ctx context.Context) error {
	errs := make([]error, len(i.sources))
	var wg sync.WaitGroup
	for n, s := range i.sources {
		wg.Go(func() { errs[n] = supervise(ctx, s) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Health returns the trouble of each source by its name, nil where it can be
// read.
func (i *Ingest) Health() map[string]error {
	h := make(map[string]error, len(i.sources))
	for _, s := range i.sources {
		h[s.Name()] = s.Health()
	}
	return h
}

const restartPause = 5 * time.Second

func supervise(ctx context.Context, s sources.Source) error {
	for {
		err := run(ctx, s)
		if ctx.Err() != nil {
			return err
		}
		slog.ErrorContext(ctx, "a source ended and is started again", "source", s.Name(), "err", err)
		t := time.NewTimer(restartPause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// run turns a panic into an error.
func run(ctx context.Context, s sources.Source) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errEnded.New(nil, "run source %s: panic: %v", s.Name(), p)
			slog.ErrorContext(ctx, "a source failed", "source", s.Name(), "stack", string(debug.Stack()))
		}
	}()
	return s.Run(ctx)
}
