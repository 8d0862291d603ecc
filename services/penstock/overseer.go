package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/penstock/penstock/services/console"
	"github.com/penstock/penstock/services/operate/books"
	"github.com/penstock/penstock/services/operate/freshness"
	"github.com/penstock/penstock/services/operate/quarantine"
	"github.com/penstock/penstock/services/operate/replay"
	"github.com/penstock/penstock/topology"
)

// overseer looks after a pipeline: it keeps the books of the ledger, watches how fresh
// sources are, does the jobs that need no stage, and serves the console. It runs beside
// all stages in one process, or alone as penstock console. Nothing of it can end the stages
// beside it: what fails is begun again.
type overseer struct {
	// file is the configuration that it began with, shown that which counts now: a
	// reload changes some of it.
	file  File
	shown atomic.Pointer[File]
	log   *slog.Logger

	// What there is by now; the console asks.
	bus   atomic.Pointer[topology.Bus]
	books atomic.Pointer[books.Books]
	watch atomic.Pointer[freshness.Watch]
}

func newOverseer(file File, log *slog.Logger) *overseer {
	o := &overseer{file: file, log: log}
	o.shown.Store(&file)
	return o
}

// run works until ctx ends.
func (o *overseer) run(ctx context.Context, bus *topology.Bus) error {
	watch := freshness.New(bus, o.freshness())
	o.watch.Store(watch)
	o.bus.Store(bus)
	var group errgroup.Group
	tend := func(what string, run func(context.Context) error) {
		group.Go(func() error { o.tend(ctx, what, run); return nil })
	}
	tend("books", func(ctx context.Context) error { return o.keepBooks(ctx, bus) })
	tend("freshness", watch.Run)
	tend("jobs", func(ctx context.Context) error { return bus.RunJobs(ctx, oneOf(operateWorkers(bus))) })
	return group.Wait()
}

// operateWorkers do what needs no stage.
func operateWorkers(bus *topology.Bus) []topology.JobWorker {
	return slices.Concat(quarantine.Workers(bus), replay.Workers(bus))
}

// oneOf makes one worker of several: each does what it can.
func oneOf(workers []topology.JobWorker) topology.JobWorker {
	pick := func(j *topology.Job) *topology.JobWorker {
		for i := range workers {
			if workers[i].Can(j) {
				return &workers[i]
			}
		}
		return nil
	}
	return topology.JobWorker{
		Can: func(j *topology.Job) bool { return pick(j) != nil },
		Run: func(ctx context.Context, r *topology.JobRun) error {
			j := r.Job()
			w := pick(&j)
			if w == nil {
				return fmt.Errorf("nobody here can do job %s any more", j.ID)
			}
			return w.Run(ctx, r)
		},
	}
}

// serve serves the console until ctx ends. The listener is open already, so that a
// wrong address is told at the start; should serving fail, it is opened anew.
func (o *overseer) serve(ctx context.Context, c *console.Console, configured bool) {
	o.tend(ctx, "console", func(ctx context.Context) (err error) {
		if c == nil {
			if c, err = o.openConsole(configured); err != nil {
				return err
			}
		}
		now := c
		c = nil
		return now.Run(ctx)
	})
}

// keepBooks folds the ledger into the database.
func (o *overseer) keepBooks(ctx context.Context, bus *topology.Bus) error {
	b, err := books.Open(ctx, o.file.ledgerFolder(), books.Options{
		KeepFor: o.file.Ledger.Keep, KeepBytes: int64(o.file.Ledger.Disk), Log: o.log,
	})
	if err != nil {
		return err
	}
	o.books.Store(b)
	defer o.books.Store(nil)
	err = b.Fold(ctx, bus)
	return errors.Join(err, b.Close())
}

func (o *overseer) freshness() freshness.Config {
	c := freshness.Config{Log: o.log}
	if len(o.file.Sources) > 0 { // else all that are seen count
		c.Silence = map[string]string{}
	}
	for _, s := range o.file.Sources {
		c.Silence[s.Name] = s.Silence
	}
	return c
}

// How soon is begun again what has failed.
const (
	tendFirst = time.Second
	tendLast  = time.Minute
)

// tend runs something until ctx ends, and again when it fails.
func (o *overseer) tend(ctx context.Context, what string, run func(context.Context) error) {
	for wait := tendFirst; ; wait = min(2*wait, tendLast) {
		began := time.Now()
		err := protect(ctx, run)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > tendLast {
			wait = tendFirst
		}
		o.log.Error("what looks after the pipeline has ended, beginning again; stages go on", "what", what, "wait", wait.String(), "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// protect turns a panic into an error.
func protect(ctx context.Context, run func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return run(ctx)
}
