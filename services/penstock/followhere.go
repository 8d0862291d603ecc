package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/penstock/penstock/topology"
)

// errJobGone is that of a job that somebody has removed meanwhile.
var errJobGone = errors.New("the job is gone; see penstock audit")

// followHere shows a job until it is over or paused, and does it here unless another
// process is faster: nothing else needs to run. When ctx ends before, the job stays.
func followHere(ctx context.Context, bus *topology.Bus, job topology.Job, workers []topology.JobWorker, progress io.Writer) (topology.Job, error) {
	ctx, end := whileAnswering(ctx, bus)
	defer end()
	working, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		stop()
		if !errors.Is(context.Cause(ctx), errBusGone) { // else nothing can be given back
			wg.Wait()
		}
	}()
	id := job.ID // job changes below, while the workers look
	for _, w := range workers {
		can := w.Can
		w.Can = func(j *topology.Job) bool { return j.ID == id && can(j) }
		wg.Go(func() { _ = bus.RunJobs(working, w) }) // what it cannot do, others do
	}
	show := showJob(progress, job)
	watching, seen := context.WithCancel(ctx)
	defer seen()
	gone := false
	bus.FollowJobs(watching, func(all []topology.Job) {
		gone = true
		for _, j := range all {
			if j.ID == job.ID {
				job, gone = j, false
			}
		}
		show(job)
		if gone || job.Over() || job.State == topology.JobPaused {
			seen()
		}
	})
	switch {
	case gone:
		return job, errJobGone
	case job.Over() || job.State == topology.JobPaused:
		return job, nil
	case errors.Is(context.Cause(ctx), errBusGone):
		return job, jobKept(&job)
	}
	stop()
	wg.Wait() // it is given back, with what was done
	fmt.Fprintf(progress, "\njob %s stays: a penstock that runs goes on with it; come back with: penstock jobs follow %s\n", job.ID, job.ID)
	return job, context.Cause(ctx)
}

// showJob returns what shows a job each time that it has changed: a bar on a terminal,
// else a line now and then.
func showJob(w io.Writer, job topology.Job) func(topology.Job) {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		bar := progressbar.NewOptions64(int64(min(job.Progress.Total, math.MaxInt64)), progressbar.OptionSetWriter(w),
			progressbar.OptionSetDescription(job.Kind), progressbar.OptionShowCount(), progressbar.OptionShowIts(),
			progressbar.OptionSetItsString(job.Progress.Unit), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
		return func(j topology.Job) {
			_ = bar.Set64(int64(min(j.Progress.Done, math.MaxInt64)))
			if j.Over() {
				_ = bar.Finish()
			}
		}
	}
	var last time.Time
	return func(j topology.Job) {
		if j.Over() || time.Since(last) < 5*time.Second {
			return
		}
		last = time.Now()
		fmt.Fprintf(w, "job %s %s: %d of %d %s\n", j.ID, j.State, j.Progress.Done, j.Progress.Total, j.Progress.Unit)
	}
}
