package topology

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/messages/fault"
)

// hasten has jobs show and miss signs of life sooner.
func hasten(t *testing.T) {
	beat, expiry, tick := jobBeat, jobExpiry, jobTick
	jobBeat, jobExpiry, jobTick = 100*time.Millisecond, 800*time.Millisecond, 20*time.Millisecond
	t.Cleanup(func() { jobBeat, jobExpiry, jobTick = beat, expiry, tick })
}

// runJobs runs a worker on a bus until stop is called, or the test ends. stop waits.
func runJobs(t *testing.T, b *Bus, w JobWorker) (stop func()) {
	t.Helper()
	if w.Can == nil {
		w.Can = func(*Job) bool { return true }
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := b.RunJobs(ctx, w); err != nil {
			t.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	t.Cleanup(stop)
	return stop
}

func addJob(t *testing.T, b *Bus, kind string) Job {
	t.Helper()
	j, err := b.AddJob(t.Context(), Job{Kind: kind, Spec: json.RawMessage(`{}`), Needs: "operate", By: "op", What: "a test"})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func awaitJob(t *testing.T, b *Bus, id, what string, ok func(Job) bool) Job {
	t.Helper()
	var j Job
	await(t, what, func() bool {
		var err error
		if j, err = b.Job(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		return ok(j)
	})
	return j
}

func inState(state string) func(Job) bool { return func(j Job) bool { return j.State == state } }

// A job is done once, by one of two that could, and its end is written down.
//
// covers: pain 4, design section 6
func TestJobIsDoneOnce(t *testing.T) {
	hasten(t)
	e := testServer(t, t.TempDir(), 256<<20)
	b := testConnect(t, e, Options{Name: "one"})
	if _, err := b.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	var done, running atomic.Int64
	work := JobWorker{Run: func(ctx context.Context, r *JobRun) error {
		if running.Add(1) > 1 {
			t.Error("two have the same job in hand")
		}
		defer running.Add(-1)
		for i := range uint64(10) {
			if err := r.Save(ctx, Progress{Done: i + 1, Total: 10, Unit: "things"}, i+1); err != nil {
				return err
			}
		}
		done.Add(1)
		return nil
	}}
	runJobs(t, b, work)
	runJobs(t, testConnect(t, e, Options{Name: "two"}), work)
	for n := range int64(5) {
		j := addJob(t, b, "test")
		j = awaitJob(t, b, j.ID, "the job to be done", inState(JobDone))
		if done.Load() != n+1 || j.Progress.Done != 10 || string(j.Checkpoint) != "10" || j.Runner != "" || j.Started.IsZero() || j.Ended.IsZero() || j.Tries != 1 {
			t.Errorf("done %d times: %+v", done.Load(), j)
		}
	}
	var deeds []string
	await(t, "the audit", func() bool {
		deeds = nil
		if err := b.ReadAudit(t.Context(), time.Time{}, func(d Deed) bool {
			deeds = append(deeds, d.Via+" "+d.Action+fmt.Sprint(" ", d.Count))
			return true
		}); err != nil {
			t.Fatal(err)
		}
		return len(deeds) == 5
	})
	if deeds[0] != "job test.done 10" {
		t.Errorf("%q", deeds)
	}
}

// A job goes on from its checkpoint in another process when the first is gone without a
// word, and the first notices when it comes back.
func TestJobSurvivesItsProcess(t *testing.T) {
	hasten(t)
	e := testServer(t, t.TempDir(), 256<<20)
	watcher := testConnect(t, e, Options{Name: "watcher"})
	if _, err := watcher.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	dead, alive := testConnect(t, e, Options{Name: "dead"}), testConnect(t, e, Options{Name: "alive"})
	var began, cause atomic.Value
	runJobs(t, dead, JobWorker{Run: func(ctx context.Context, r *JobRun) error {
		if err := r.Save(ctx, Progress{Done: 7}, 7); err != nil {
			return err
		}
		began.Store(true)
		<-ctx.Done()
		cause.Store(context.Cause(ctx))
		return context.Cause(ctx)
	}})
	j := addJob(t, watcher, "test")
	await(t, "the first to begin", func() bool { return began.Load() != nil })
	var at atomic.Int64
	runJobs(t, alive, JobWorker{Run: func(_ context.Context, r *JobRun) error {
		var n int64
		job := r.Job()
		if err := json.Unmarshal(job.Checkpoint, &n); err != nil {
			return err
		}
		at.Store(n)
		return nil
	}})
	// While the first lives nobody else takes the job, however long it takes.
	alone := time.NewTimer(3 * jobExpiry)
	defer alone.Stop()
	<-alone.C
	if at.Load() != 0 {
		t.Fatal("a job was taken from a process that lives")
	}
	dead.nc.Close() // as a machine that is cut off
	got := awaitJob(t, watcher, j.ID, "the second to take over", inState(JobDone))
	if at.Load() != 7 || got.Tries != 2 {
		t.Errorf("went on at %d: %+v", at.Load(), got)
	}
}

// Who was given up for dead and is not ends its work when it hears of it.
func TestJobLost(t *testing.T) {
	hasten(t)
	b := testBus(t, Limits{})
	cause := make(chan error, 1)
	runJobs(t, b, JobWorker{Run: func(ctx context.Context, _ *JobRun) error {
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return context.Cause(ctx)
	}})
	j := addJob(t, b, "test")
	awaitJob(t, b, j.ID, "it to run", inState(JobRunning))
	if _, err := b.ChangeJob(t.Context(), j.ID, func(j *Job) error { j.Runner = "somebody else"; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := <-cause; !errors.Is(err, errJobLost) {
		t.Error(err)
	}
	if got, _ := b.Job(t.Context(), j.ID); got.State == JobDone || got.Error != "" {
		t.Errorf("who had lost the job changed it: %+v", got)
	}
}

// Operators pause, resume and cancel, whoever has the job, and also when nobody has.
func TestJobPauseResumeCancel(t *testing.T) {
	hasten(t)
	b := testBus(t, Limits{})
	var starts, checkpoint atomic.Int64
	stop := runJobs(t, b, JobWorker{Run: func(ctx context.Context, r *JobRun) error {
		starts.Add(1)
		job, n := r.Job(), int64(0)
		_ = json.Unmarshal(job.Checkpoint, &n)
		checkpoint.Store(n)
		if err := r.Save(ctx, Progress{Done: uint64(n + 1)}, n+1); err != nil {
			return err
		}
		<-ctx.Done()
		return context.Cause(ctx)
	}})
	j := addJob(t, b, "test")
	running := func(n int64) func(Job) bool {
		return func(j Job) bool { return j.State == JobRunning && starts.Load() == n && len(j.Checkpoint) > 0 }
	}
	awaitJob(t, b, j.ID, "it to run", running(1))
	if _, err := b.PauseJob(t.Context(), j.ID[9:]); err != nil { // the end of an id is enough
		t.Fatal(err)
	}
	if got := awaitJob(t, b, j.ID, "the pause", inState(JobPaused)); got.Progress.Done != 1 || got.Error != "" || got.Progress.Rate != 0 {
		t.Errorf("%+v", got)
	}
	if _, err := b.ResumeJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	awaitJob(t, b, j.ID, "it to run again", running(2))
	if checkpoint.Load() != 1 {
		t.Errorf("went on at %d", checkpoint.Load())
	}
	if _, err := b.CancelJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	if got := awaitJob(t, b, j.ID, "the end", inState(JobCancelled)); got.Ended.IsZero() || got.Progress.Done != 2 {
		t.Errorf("%+v", got)
	}
	for _, change := range []func(context.Context, string) (Job, error){b.PauseJob, b.CancelJob, b.ResumeJob} {
		if _, err := change(t.Context(), j.ID); !errors.Is(err, ErrJobOver) {
			t.Errorf("a job that is over: %v", err)
		}
	}
	stop()
	// Nobody is there: what is asked holds at once.
	j = addJob(t, b, "test")
	if got, err := b.PauseJob(t.Context(), j.ID); err != nil || got.State != JobPaused {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := b.CancelJob(t.Context(), j.ID); err != nil || got.State != JobCancelled || got.Ended.IsZero() {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := b.Job(t.Context(), "nope"); !errors.Is(err, ErrNoJob) {
		t.Error(err)
	}
}

// A job whose process died is ended when it is cancelled, also where nobody else can do it.
func TestJobCancelOfTheDead(t *testing.T) {
	hasten(t)
	b := testBus(t, Limits{})
	j := addJob(t, b, "test")
	if _, err := b.ChangeJob(t.Context(), j.ID, func(j *Job) error {
		j.State, j.Runner, j.Wanted = JobRunning, "who is dead", WantCancel
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	runJobs(t, b, JobWorker{Can: func(*Job) bool { return false }, Run: func(context.Context, *JobRun) error {
		t.Error("a job was done by one who cannot")
		return nil
	}})
	awaitJob(t, b, j.ID, "the end", inState(JobCancelled))
}

// Errors that may pass have a job tried again, others and panics end it; one that keeps
// failing, or killing its process, ends as well.
func TestJobFails(t *testing.T) {
	hasten(t)
	b := testBus(t, Limits{})
	passes := fault.Define("test.passes", fault.Retry, "wait")
	stays := fault.Define("test.stays", fault.Reject, "give up")
	var tries atomic.Int64
	runJobs(t, b, JobWorker{Tries: 2, Run: func(_ context.Context, r *JobRun) error {
		job := r.Job()
		switch job.Kind {
		case "panics":
			panic("for the test")
		case "stays":
			return stays.New(nil, "do it")
		case "passes":
			if tries.Add(1) == 1 {
				return passes.New(nil, "do it")
			}
			return nil
		}
		return passes.New(nil, "do it")
	}})
	for _, tt := range []struct{ kind, state, says string }{
		{"panics", JobFailed, "bus.job_panicked"},
		{"stays", JobFailed, "test.stays"},
		{"passes", JobDone, ""},
		{"never", JobFailed, "test.passes"},
	} {
		j := addJob(t, b, tt.kind)
		j = awaitJob(t, b, j.ID, tt.kind+" to end", func(j Job) bool { return j.Over() })
		if j.State != tt.state || !strings.Contains(j.Error, tt.says) || tt.says == "" && j.Error != "" {
			t.Errorf("%s: %+v", tt.kind, j)
		}
	}
	j := addJob(t, b, "deadly")
	if _, err := b.ChangeJob(t.Context(), j.ID, func(j *Job) error {
		j.State, j.Runner, j.Tries = JobRunning, "who is dead", 2
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	j = awaitJob(t, b, j.ID, "a deadly job to end", inState(JobFailed))
	if !strings.Contains(j.Error, "bus.job_died") {
		t.Errorf("%+v", j)
	}
	// An operator may try again, when what was wrong is mended.
	tries.Store(1)
	if _, err := b.ChangeJob(t.Context(), j.ID, func(j *Job) error { j.Kind = "passes"; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ResumeJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	awaitJob(t, b, j.ID, "it to be done at last", inState(JobDone))
}

// Many processes that change one job lose no change.
func TestJobRaces(t *testing.T) {
	b := testBus(t, Limits{})
	j := addJob(t, b, "test")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				if _, err := b.ChangeJob(t.Context(), j.ID, func(j *Job) error { j.Tries++; return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got, _ := b.Job(t.Context(), j.ID); got.Tries != 40 {
		t.Errorf("%d changes of 40", got.Tries)
	}
	// What was read before a change of somebody else cannot be stored over it.
	if err := b.putJob(t.Context(), &j); !errors.Is(err, ErrJobMoved) {
		t.Error(err)
	}
}

// A pause that is asked for while progress is stored is not lost, nor is the progress.
func TestJobSavesWhileOperatorsSpeak(t *testing.T) {
	hasten(t)
	b := testBus(t, Limits{})
	runJobs(t, b, JobWorker{Run: func(ctx context.Context, r *JobRun) error {
		job, n := r.Job(), uint64(0)
		_ = json.Unmarshal(job.Checkpoint, &n)
		for ctx.Err() == nil && n < 1_000_000 {
			n++
			if err := r.Save(context.WithoutCancel(ctx), Progress{Done: n}, n); err != nil {
				return err
			}
		}
		return context.Cause(ctx)
	}})
	j := addJob(t, b, "test")
	last := uint64(0)
	for range 5 {
		awaitJob(t, b, j.ID, "it to get on", func(j Job) bool { return j.State == JobRunning && j.Progress.Done > last })
		if _, err := b.PauseJob(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
		got := awaitJob(t, b, j.ID, "the pause", inState(JobPaused))
		if string(got.Checkpoint) != fmt.Sprint(got.Progress.Done) || got.Progress.Done <= last {
			t.Errorf("after %d: %+v", last, got)
		}
		last = got.Progress.Done
		if _, err := b.ResumeJob(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.CancelJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	awaitJob(t, b, j.ID, "the end", inState(JobCancelled))
}

// A server that restarts costs no job its runner.
func TestJobsOutliveTheServer(t *testing.T) {
	hasten(t)
	dir, listen := t.TempDir(), ""
	start := func() *Embedded {
		e, err := startWithPassword(EmbeddedOptions{Dir: dir, Listen: listen, Disk: 256 << 20, Log: testLog(t)}, "secret")
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := start()
	listen = e.server.Addr().(*net.TCPAddr).String()
	t.Cleanup(func() { e.Stop() })
	one, two := testConnectByURL(t, e, "one"), testConnectByURL(t, e, "two")
	if _, err := one.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	var starts atomic.Int64
	finish := make(chan struct{})
	work := JobWorker{Run: func(ctx context.Context, _ *JobRun) error {
		starts.Add(1)
		select {
		case <-finish:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}}
	runJobs(t, one, work)
	runJobs(t, two, work)
	j := addJob(t, one, "test")
	awaitJob(t, one, j.ID, "it to run", inState(JobRunning))
	e.Stop()
	await(t, "both to notice", func() bool { return !one.nc.IsConnected() && !two.nc.IsConnected() })
	away := time.NewTimer(2 * jobExpiry)
	defer away.Stop()
	<-away.C
	e = start()
	await(t, "both to be back", func() bool { return one.nc.IsConnected() && two.nc.IsConnected() })
	before, err := one.Job(t.Context(), j.ID)
	if err != nil {
		t.Fatal(err)
	}
	awaitJob(t, one, j.ID, "signs of life", func(j Job) bool { return j.Beat > before.Beat+3 })
	close(finish)
	awaitJob(t, one, j.ID, "the end", inState(JobDone))
	if starts.Load() != 1 {
		t.Errorf("the job was begun %d times", starts.Load())
	}
}

// Jobs that are over are forgotten, the oldest first, those that are not never are.
func TestOldJobsAreForgotten(t *testing.T) {
	b := testBus(t, Limits{})
	waiting := addJob(t, b, "waits")
	kept := keepJobs
	keepJobs = 3
	t.Cleanup(func() { keepJobs = kept })
	var ids []string
	for range 6 {
		j := addJob(t, b, "test")
		ids = append(ids, j.ID)
		if _, err := b.CancelJob(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
	}
	last := addJob(t, b, "test")
	all, err := b.Jobs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, j := range all {
		got = append(got, j.ID)
	}
	want := []string{last.ID, ids[5], ids[4], ids[3], waiting.ID}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestJobRate(t *testing.T) {
	var r rate
	at := time.Unix(1000, 0)
	if got := r.of(0, at); got != 0 {
		t.Error(got)
	}
	for range 30 {
		at = at.Add(time.Second)
		if got := r.of(uint64(at.Unix()-1000)*50, at); got < 49 || got > 51 {
			t.Errorf("at %v: %v", at, got)
		}
	}
	j := Job{State: JobRunning, Progress: Progress{Done: 1500, Total: 2000, Rate: 50}}
	if j.Left() != 10*time.Second {
		t.Error(j.Left())
	}
	j.State = JobPaused
	if j.Left() != 0 {
		t.Error("a job that is paused has no end in sight")
	}
}

// Who cancels a job is not overruled by who pauses or resumes it before its process has
// heard of it.
func TestCancelIsForGood(t *testing.T) {
	b := testBus(t, Limits{})
	j := addJob(t, b, "replay")
	if _, err := b.ChangeJob(t.Context(), j.ID, func(j *Job) error { j.State, j.Runner = JobRunning, "slow"; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := b.CancelJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func(context.Context, string) (Job, error){"pause": b.PauseJob, "resume": b.ResumeJob} {
		if _, err := do(t.Context(), j.ID); !errors.Is(err, ErrJobOver) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if j, err := b.Job(t.Context(), j.ID); err != nil || j.Wanted != WantCancel {
		t.Errorf("%+v, %v", j, err)
	}
}
