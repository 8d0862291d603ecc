package topology

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/penstock/penstock/messages/fault"
)

// jobBucket holds the jobs, a key for each.
const jobBucket = "penstock_jobs"

// keepJobs is how many jobs that have ended are kept. Tests have fewer.
var keepJobs = 500

var (
	errJobs = fault.Define("bus.jobs_failed", fault.Retry,
		"check that the key-value bucket "+jobBucket+" exists and has room: penstock topology apply")
	errJobPanic = fault.Define("bus.job_panicked", fault.Reject,
		"report it: it is a mistake in penstock; what was done before its last checkpoint is done")
	// ErrJobMoved is that of a job that somebody else has changed meanwhile.
	ErrJobMoved = fault.Define("bus.job_moved", fault.Retry,
		"look at the job again: somebody else has changed it meanwhile")
	// ErrJobOver is that of a job that has ended, and cannot be changed any more.
	ErrJobOver = fault.Define("bus.job_over", fault.Reject,
		"start it anew; what it has done is done")
	errJobDied = fault.Define("bus.job_died", fault.Reject,
		"see the logs of the processes that had it for why they ended; then resume it: penstock jobs resume")
	// ErrNoJob is that of a job that does not exist.
	ErrNoJob = fault.Define("bus.no_job", fault.Reject,
		"list the jobs: penstock jobs list; those that have ended are kept for a while only")
)

// States of a job.
const (
	JobWaiting   = "waiting" // nobody has taken it yet, or it is tried again
	JobRunning   = "running"
	JobPaused    = "paused"
	JobDone      = "done"
	JobFailed    = "failed"
	JobCancelled = "cancelled"
)

// What an operator wants of a job.
const (
	WantRun    = "run"
	WantPause  = "pause"
	WantCancel = "cancel"
)

// Job is a piece of long work that an operator asked for. It outlives commands and
// processes: any process that can do the work takes it up where it was.
type Job struct {
	ID   string `json:"id"`
	Kind string `json:"kind"`
	// Spec says what is to be done; services/internal/jobs has a type for each kind.
	Spec json.RawMessage `json:"spec"`
	// Needs is what a process must be able to do for it: "operate", "ingest <source>" or
	// "deliver <destination>".
	Needs string    `json:"needs"`
	By    string    `json:"by"`
	At    time.Time `json:"at"`
	// What it does, in words, and why.
	What   string `json:"what"`
	Reason string `json:"reason,omitempty"`

	// Wanted is run, pause or cancel.
	Wanted string `json:"wanted"`
	State  string `json:"state"`
	// Runner is the process that has it, Beat changes while that lives.
	Runner string `json:"runner,omitempty"`
	Beat   uint64 `json:"beat,omitempty"`
	// Tries counts the times that it was taken up.
	Tries    int       `json:"tries,omitempty"`
	NotUntil time.Time `json:"not_until,omitzero"`
	Started  time.Time `json:"started,omitzero"`
	Updated  time.Time `json:"updated,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
	Progress Progress  `json:"progress"`
	// Error is why it failed, or why it is tried again.
	Error string `json:"error,omitempty"`
	// Checkpoint is where to go on. It moves together with Progress.
	Checkpoint json.RawMessage `json:"checkpoint,omitempty"`

	revision uint64
}

// Progress is how far a job is.
type Progress struct {
	// Done of Total, in Unit: events, objects, entries. Total is 0 while it is not known.
	Done  uint64 `json:"done"`
	Total uint64 `json:"total"`
	Unit  string `json:"unit,omitempty"`
	// Failed of Done went to quarantine or were refused, Skipped did not fit.
	Failed  uint64 `json:"failed,omitempty"`
	Skipped uint64 `json:"skipped,omitempty"`
	Bytes   uint64 `json:"bytes,omitempty"`
	// Rate is in units a second over the last while.
	Rate float64 `json:"rate,omitempty"`
	// Note is what else there is to say.
	Note string `json:"note,omitempty"`
}

// Silent is for how long the job has given no sign of life, while it is said to run: after
// a minute its process is gone, and the job waits for another that can do it.
func (j *Job) Silent(now time.Time) time.Duration {
	if j.State != JobRunning {
		return 0
	}
	return max(0, now.Sub(j.Updated))
}

// Over tells whether a job has ended for good.
func (j *Job) Over() bool {
	return j.State == JobDone || j.State == JobFailed || j.State == JobCancelled
}

// Left is how long it will take at the present rate, 0 when that is not known.
func (j *Job) Left() time.Duration {
	p := j.Progress
	if j.State != JobRunning || p.Rate <= 0 || p.Total <= p.Done {
		return 0
	}
	return time.Duration(float64(p.Total-p.Done) / p.Rate * float64(time.Second)).Round(time.Second)
}

// NewJobID makes the id of a job. Ids begin with the day, so that people can tell them
// apart.
func NewJobID() string {
	id := nuid.Next()
	return time.Now().UTC().Format("20060102") + "-" + strings.ToLower(id[len(id)-6:])
}

// AddJob stores a new job. ID unless it has one, At, Wanted and State are filled in.
func (b *Bus) AddJob(ctx context.Context, j Job) (Job, error) {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := b.bucket(ctx, jobBucket)
	if err != nil {
		return j, errJobs.New(err, "open the bucket %s", jobBucket)
	}
	now := time.Now().UTC()
	if j.ID == "" {
		j.ID = NewJobID()
	}
	j.At, j.Updated, j.State = now, now, JobWaiting
	if j.Wanted == "" {
		j.Wanted = WantRun
	}
	data, err := json.Marshal(j)
	if err != nil {
		return j, errJobs.New(err, "write a job of kind %s", j.Kind)
	}
	if j.revision, err = kv.Create(ctx, j.ID, data); err != nil {
		return j, errJobs.New(err, "store a job of kind %s", j.Kind)
	}
	b.forgetOldJobs(ctx, kv)
	return j, nil
}

// forgetOldJobs keeps the bucket small. What it cannot delete stays until the next time.
func (b *Bus) forgetOldJobs(ctx context.Context, kv jetstream.KeyValue) {
	all, err := b.Jobs(ctx)
	if err != nil {
		return
	}
	over := 0
	for _, j := range all { // newest first
		if !j.Over() {
			continue
		}
		if over++; over > keepJobs {
			_ = kv.Purge(ctx, j.ID)
		}
	}
}

// getJob reads the job of an id.
func (b *Bus) getJob(ctx context.Context, id string) (j Job, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := b.bucket(ctx, jobBucket)
	if err != nil {
		return j, false, errJobs.New(err, "open the bucket %s", jobBucket)
	}
	entry, err := kv.Get(ctx, id)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrInvalidKey):
		return j, false, nil
	case err != nil:
		return j, false, errJobs.New(err, "read job %s", id)
	}
	if err := json.Unmarshal(entry.Value(), &j); err != nil {
		return j, false, errJobs.New(err, "read job %s", id)
	}
	j.revision = entry.Revision()
	return j, true, nil
}

// Job returns one job. An id may be shortened as long as it fits one job alone.
func (b *Bus) Job(ctx context.Context, id string) (Job, error) {
	// A list may miss one that is changed while it is read.
	if j, found, err := b.getJob(ctx, id); err != nil || found {
		return j, err
	}
	all, err := b.Jobs(ctx)
	if err != nil {
		return Job{}, err
	}
	var found []Job
	for _, j := range all {
		if j.ID == id {
			return j, nil
		}
		if id != "" && (strings.HasPrefix(j.ID, id) || strings.HasSuffix(j.ID, "-"+id)) {
			found = append(found, j)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	if len(found) > 1 {
		return Job{}, ErrNoJob.New(nil, "find job %s: %d begin like that", id, len(found))
	}
	return Job{}, ErrNoJob.New(nil, "find job %s", id)
}

// Jobs returns all jobs, newest first.
func (b *Bus) Jobs(ctx context.Context) ([]Job, error) {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	var all []Job
	known := errors.New("known")
	err := b.watchJobs(ctx, func(jobs []Job) error {
		all = jobs
		return known
	})
	if errors.Is(err, known) {
		return all, nil
	}
	return nil, err
}

// FollowJobs calls f with all jobs, newest first, now and after each change, until ctx
// ends. What f gets is its own.
func (b *Bus) FollowJobs(ctx context.Context, f func([]Job)) {
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := b.watchJobs(ctx, func(jobs []Job) error {
			wait = 250 * time.Millisecond
			f(jobs)
			return nil
		})
		if ctx.Err() != nil {
			return
		}
		b.log.Warn("jobs are not to be had, trying on", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// watchJobs calls f until it returns an error, ctx ends or the watch breaks.
func (b *Bus) watchJobs(ctx context.Context, f func([]Job) error) error {
	read := func(entry jetstream.KeyValueEntry) (Job, error) {
		j := Job{revision: entry.Revision()}
		err := json.Unmarshal(entry.Value(), &j)
		return j, err
	}
	return watchBucket(ctx, b, jobBucket, ">", errJobs, read, func(byID map[string]Job) error {
		all := slices.Collect(maps.Values(byID))
		slices.SortFunc(all, func(x, y Job) int {
			if c := y.At.Compare(x.At); c != 0 {
				return c
			}
			return strings.Compare(y.ID, x.ID)
		})
		return f(all)
	})
}

// putJob stores a job under the condition that nobody else has changed it.
func (b *Bus) putJob(ctx context.Context, j *Job) error {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := b.bucket(ctx, jobBucket)
	if err != nil {
		return errJobs.New(err, "open the bucket %s", jobBucket)
	}
	j.Updated = time.Now().UTC()
	data, err := json.Marshal(j)
	if err != nil {
		return errJobs.New(err, "write job %s", j.ID)
	}
	revision, err := kv.Update(ctx, j.ID, data, j.revision)
	switch {
	case err == nil:
		j.revision = revision
		return nil
	case apiCode(err) == codeWrongLastSequence, errors.Is(err, jetstream.ErrKeyExists):
		return ErrJobMoved.New(err, "change job %s", j.ID)
	}
	return errJobs.New(err, "change job %s", j.ID)
}

// ChangeJob reads a job, has change make of it what is wanted, and stores it; when
// somebody else was faster, again. An error of change ends it.
func (b *Bus) ChangeJob(ctx context.Context, id string, change func(*Job) error) (Job, error) {
	for {
		j, err := b.Job(ctx, id)
		if err != nil {
			return j, err
		}
		if err := change(&j); err != nil {
			return j, err
		}
		if err := b.putJob(ctx, &j); !errors.Is(err, ErrJobMoved) {
			return j, err
		}
	}
}

// A process that has taken a job shows every jobBeat that it lives. Others measure with
// their own clocks how long it has not. Tests have it go faster.
var (
	jobBeat   = 2 * time.Second
	jobExpiry = 4 * jobBeat
	jobTick   = 500 * time.Millisecond
)

// Why the context of a job ends while its process goes on.
var (
	errJobPause  = errors.New("the job is paused")
	errJobCancel = errors.New("the job is cancelled")
	errJobLost   = errors.New("another process has taken the job over")
)

// JobWasCancelled tells, within a job's work, whether ctx has ended because an operator has
// cancelled it.
func JobWasCancelled(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errJobCancel) }

// JobRun is a job in the hands of this process. Methods may be called concurrently.
type JobRun struct {
	bus *Bus
	end context.CancelCauseFunc
	// before is what was done when the process took it up.
	before uint64

	// storing is held by the one who stores.
	storing sync.Mutex

	mu    sync.Mutex
	job   Job
	rated rate
}

// Job is the job as this process knows it: as it was when it took it up, with what was
// reported since.
func (r *JobRun) Job() Job {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.job
}

// Report says how far the job is, without storing it at once: that is done with the next
// sign of life. Rate is filled in.
func (r *JobRun) Report(p Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report(p)
}

func (r *JobRun) report(p Progress) {
	p.Rate = r.rated.of(p.Done, time.Now())
	r.job.Progress = p
}

// Save stores how far the job is and where to go on, and returns once that is durable.
// Errors: bus.job_moved when another process has the job by now, bus.jobs_failed.
func (r *JobRun) Save(ctx context.Context, p Progress, checkpoint any) error {
	data, err := json.Marshal(checkpoint)
	if err != nil {
		return errJobs.New(err, "write the checkpoint of job %s", r.job.ID)
	}
	return r.store(ctx, func(j *Job) {
		r.report(p)
		j.Checkpoint = data
	})
}

// store changes the job. What operators wanted meanwhile is kept, and heeded.
func (r *JobRun) store(ctx context.Context, change func(*Job)) error {
	r.storing.Lock()
	defer r.storing.Unlock()
	r.mu.Lock()
	was := r.job
	r.job.Beat++
	change(&r.job)
	next := r.job
	r.mu.Unlock()
	for {
		err := r.bus.putJob(ctx, &next)
		if err == nil {
			r.mu.Lock()
			r.job.revision, r.job.Updated, r.job.Wanted = next.revision, next.Updated, next.Wanted
			r.mu.Unlock()
			return nil
		}
		if !errors.Is(err, ErrJobMoved) {
			return err
		}
		// An operator has said something, or an answer got lost and it was us.
		now, readErr := r.bus.Job(ctx, next.ID)
		if readErr != nil {
			return readErr
		}
		if now.Runner != was.Runner || now.State != JobRunning {
			if now.State == next.State && now.Beat == next.Beat { // it was us
				r.mu.Lock()
				r.job.revision = now.revision
				r.mu.Unlock()
				return nil
			}
			r.end(errJobLost)
			return err
		}
		next.Wanted, next.revision = now.Wanted, now.revision
	}
}

// heed ends the work when an operator wants that. now may be older than what we know.
func (r *JobRun) heed(now *Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case now.revision < r.job.revision:
	case r.job.State != JobRunning: // its end is stored, or about to be
	case now.Runner != r.job.Runner || now.State != JobRunning:
		r.end(errJobLost)
	case now.Wanted == WantPause:
		r.end(errJobPause)
	case now.Wanted == WantCancel:
		r.end(errJobCancel)
	}
}

// rate is a rate over the last ten seconds or so.
type rate struct {
	at   time.Time
	done uint64
	last float64
}

func (r *rate) of(done uint64, now time.Time) float64 {
	span := now.Sub(r.at)
	switch {
	case r.at.IsZero() || done < r.done:
		r.at, r.done = now, done
	case span >= 2*time.Second:
		now2 := float64(done-r.done) / span.Seconds()
		if r.last == 0 {
			r.last = now2
		}
		r.last = 0.7*now2 + 0.3*r.last
		r.at, r.done = now, done
	case r.last == 0 && span > 200*time.Millisecond:
		return float64(done-r.done) / span.Seconds()
	}
	return r.last
}

// JobWorker takes up jobs.
type JobWorker struct {
	// Can tells whether this process can do a job.
	Can func(*Job) bool
	// Run does it, from its checkpoint on, until it is done or ctx ends; then it returns
	// the cause of ctx. It must be safe to do again what came after the last checkpoint.
	// An error that is fault.Retry has it tried again after a pause, any other ends it.
	Run func(ctx context.Context, r *JobRun) error
	// Tries bounds how often a job is taken up that fails with errors that may pass; 0 is 20.
	Tries int
	// Jobs bounds how many run here at once; 0 is 4.
	Jobs int
}

// RunJobs takes up jobs that wait, or whose process has died, until ctx ends. Then it
// gives back what it has: others go on from the checkpoints. What is cancelled and in
// nobody's hands it ends, also where it cannot do it.
func (b *Bus) RunJobs(ctx context.Context, w JobWorker) error {
	if w.Tries == 0 {
		w.Tries = 20
	}
	if w.Jobs == 0 {
		w.Jobs = 4
	}
	p := &jobPool{bus: b, worker: w, changed: map[string]seenJob{}, running: map[string]*JobRun{}}
	defer p.wg.Wait()
	updates := make(chan []Job, 1)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	p.wg.Go(func() {
		b.FollowJobs(watching, func(jobs []Job) {
			select {
			case <-updates:
			default:
			}
			updates <- jobs // there is room: nobody else sends
		})
	})
	tick := time.NewTicker(jobTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case p.known = <-updates:
			p.heed()
			tick.Stop() // while all are over, there is nothing to wait for but news
			if slices.ContainsFunc(p.known, func(j Job) bool { return !j.Over() }) {
				tick.Reset(jobTick)
			}
		case <-tick.C:
		}
		if !b.nc.IsConnected() {
			p.deaf()
			continue
		}
		for i := len(p.known) - 1; i >= 0; i-- { // the oldest first
			p.consider(ctx, p.known[i])
		}
	}
}

// jobPool is the jobs that one call of RunJobs knows and runs.
type jobPool struct {
	bus     *Bus
	worker  JobWorker
	known   []Job // newest first
	changed map[string]seenJob
	wg      sync.WaitGroup

	mu      sync.Mutex
	running map[string]*JobRun
}

// seenJob is when a revision of a job was seen first, by our clock.
type seenJob struct {
	revision uint64
	at       time.Time
}

// heed takes note of what has changed.
func (p *jobPool) heed() {
	now, next := time.Now(), make(map[string]seenJob, len(p.known))
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.known {
		j := &p.known[i]
		seen := p.changed[j.ID]
		if seen.revision != j.revision {
			seen = seenJob{j.revision, now}
		}
		next[j.ID] = seen
		if r := p.running[j.ID]; r != nil {
			r.heed(j)
		}
	}
	p.changed = next
}

// deaf notes that no signs of life can be heard: nobody is dead for that.
func (p *jobPool) deaf() {
	now := time.Now()
	for id, seen := range p.changed {
		p.changed[id] = seenJob{seen.revision, now}
	}
}

// consider takes a job up, if it is there to be taken.
func (p *jobPool) consider(ctx context.Context, j Job) {
	if j.Over() {
		return
	}
	dead := j.State == JobRunning && time.Since(p.changed[j.ID].at) > jobExpiry
	idle := dead || j.State != JobRunning
	switch {
	case !idle:
		return
	case j.Wanted == WantCancel, j.Wanted == WantPause && j.State != JobPaused:
		// Anybody can say so.
	case j.Wanted == WantPause, j.State == JobWaiting && time.Now().Before(j.NotUntil), !p.worker.Can(&j):
		return
	}
	p.mu.Lock()
	free := p.running[j.ID] == nil && (len(p.running) < p.worker.Jobs || j.Wanted != WantRun)
	p.mu.Unlock()
	if !free {
		return
	}
	r, run := p.take(ctx, j, dead)
	if r == nil {
		return
	}
	p.mu.Lock()
	p.running[j.ID] = r
	p.mu.Unlock()
	p.wg.Go(func() {
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.running, j.ID)
		}()
		r.work(run, p.worker)
	})
}

// take makes a job ours. It returns nil when somebody was faster, or when there is
// nothing to be done any more.
func (p *jobPool) take(ctx context.Context, j Job, dead bool) (*JobRun, context.Context) {
	now := time.Now().UTC()
	switch {
	case j.Wanted == WantCancel:
		j.State, j.Runner, j.Ended = JobCancelled, "", now
	case j.Wanted == WantPause:
		j.State, j.Runner = JobPaused, ""
	case dead && j.Tries >= p.worker.Tries:
		j.State, j.Runner, j.Ended = JobFailed, "", now
		j.Error = errJobDied.New(nil, "do job %s, which was taken up %d times", j.ID, j.Tries).Error()
	default:
		if j.Started.IsZero() {
			j.Started = now
		}
		j.State, j.Runner = JobRunning, p.bus.options.Name
		j.Tries++
		j.Beat++
	}
	if err := p.bus.putJob(ctx, &j); err != nil {
		if !errors.Is(err, ErrJobMoved) && ctx.Err() == nil {
			p.bus.log.Warn("a job could not be taken", "job", j.ID, "err", err)
		}
		return nil, nil
	}
	if j.State != JobRunning {
		p.bus.tellEnd(ctx, &j)
		return nil, nil
	}
	run, end := context.WithCancelCause(ctx)
	return &JobRun{bus: p.bus, job: j, end: end, before: j.Progress.Done}, run
}

// tellEnd writes down that a job is over.
func (b *Bus) tellEnd(ctx context.Context, j *Job) {
	if !j.Over() {
		return
	}
	if err := b.WriteAudit(ctx, Deed{
		By: j.By, Via: "job", Action: j.Kind + "." + j.State, What: j.What, Count: j.Progress.Done, Job: j.ID, Result: j.Error,
	}); err != nil {
		b.log.Warn("the end of a job could not be written down", "job", j.ID, "err", err)
	}
}

// work does the job and says how it ended.
func (r *JobRun) work(ctx context.Context, w JobWorker) {
	defer r.end(nil)
	log := r.bus.log.With("job", r.job.ID, "kind", r.job.Kind)
	log.Info("job taken", "what", r.job.What, "try", r.job.Tries)
	// Signs of life are given until the work has ended, also after it was asked to: nobody
	// else is to begin meanwhile.
	beating, stopBeating := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { r.beat(beating) })
	err := runJob(ctx, w, r)
	stopBeating()
	wg.Wait()
	cause := context.Cause(ctx)
	if errors.Is(cause, errJobLost) {
		log.Warn("the job is no longer in the hands of this process")
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cursorTimeout)
	defer cancel()
	if err := r.store(ctx, func(j *Job) { r.ended(j, w, err, cause) }); err != nil {
		log.Warn("the end of a job could not be stored; it is taken up again", "err", err)
		return
	}
	j := r.Job()
	log.Info("job left", "state", j.State, "done", j.Progress.Done, "total", j.Progress.Total, "err", err)
	r.bus.tellEnd(ctx, &j)
}

// beat gives signs of life until ctx ends.
func (r *JobRun) beat(ctx context.Context) {
	tick := time.NewTicker(jobBeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := r.store(ctx, func(*Job) {})
		switch {
		case errors.Is(err, ErrJobMoved):
			return // lost
		case err != nil && ctx.Err() == nil:
			r.bus.log.Warn("the progress of a job could not be stored, trying on", "job", r.job.ID, "err", err)
		}
	}
}

// ended says how the work ended: with err, and cause, why its context did.
func (r *JobRun) ended(j *Job, w JobWorker, err, cause error) {
	j.Runner, j.Error, j.Progress.Rate = "", "", 0
	now := time.Now().UTC()
	switch {
	case err == nil:
		j.State, j.Ended = JobDone, now
	case errors.Is(cause, errJobCancel):
		j.State, j.Ended = JobCancelled, now
	case errors.Is(cause, errJobPause):
		j.State = JobPaused
	case cause != nil: // this process ends
		j.State = JobWaiting
		j.Tries--
	case fault.ClassOf(err) == fault.Retry:
		if j.Progress.Done > r.before {
			j.Tries = 1 // it gets on
		}
		if j.Tries >= w.Tries {
			j.State, j.Error, j.Ended = JobFailed, err.Error(), now
			return
		}
		j.State, j.Error = JobWaiting, err.Error()
		j.NotUntil = now.Add(min(time.Minute, time.Second<<min(j.Tries, 6)))
	default:
		j.State, j.Error, j.Ended = JobFailed, err.Error(), now
	}
}

// runJob turns a panic into an error: other work in this process goes on.
func runJob(ctx context.Context, w JobWorker, r *JobRun) (err error) {
	defer func() {
		if p := recover(); p != nil {
			r.bus.log.Error("job panicked", "job", r.job.ID, "panic", p, "stack", string(debug.Stack()))
			err = errJobPanic.New(nil, "do job %s", r.job.ID)
		}
	}()
	return w.Run(ctx, r)
}

// PauseJob asks for a pause. A job that is over is left alone: bus.job_over.
func (b *Bus) PauseJob(ctx context.Context, id string) (Job, error) {
	return b.want(ctx, id, func(j *Job) {
		j.Wanted = WantPause
		if j.State == JobWaiting {
			j.State = JobPaused
		}
	})
}

// ResumeJob has a job go on that is paused or has failed, or that waits for its next try.
func (b *Bus) ResumeJob(ctx context.Context, id string) (Job, error) {
	j, err := b.ChangeJob(ctx, id, func(j *Job) error {
		switch {
		case j.State == JobDone, j.State == JobCancelled:
			return ErrJobOver.New(nil, "resume job %s, which is %s", j.ID, j.State)
		case j.State != JobFailed && j.Wanted == WantCancel: // cancelled for good, by somebody else
			return ErrJobOver.New(nil, "resume job %s, which is being cancelled", j.ID)
		case j.State == JobFailed, j.State == JobPaused:
			j.State = JobWaiting
		}
		j.Wanted, j.Tries, j.NotUntil, j.Ended, j.Error = WantRun, 0, time.Time{}, time.Time{}, ""
		return nil
	})
	return j, err
}

// CancelJob ends a job for good. What it has done stays. One that nobody has in hand is
// over at once.
func (b *Bus) CancelJob(ctx context.Context, id string) (Job, error) {
	j, err := b.want(ctx, id, func(j *Job) {
		j.Wanted = WantCancel
		if j.State != JobRunning {
			j.State, j.Ended = JobCancelled, time.Now().UTC()
		}
	})
	if err == nil {
		b.tellEnd(ctx, &j)
	}
	return j, err
}

func (b *Bus) want(ctx context.Context, id string, change func(*Job)) (Job, error) {
	return b.ChangeJob(ctx, id, func(j *Job) error {
		if j.Over() {
			return ErrJobOver.New(nil, "change job %s, which is %s", j.ID, j.State)
		}
		cancelled := j.Wanted == WantCancel
		if change(j); cancelled && j.Wanted != WantCancel {
			return ErrJobOver.New(nil, "change job %s, which is being cancelled", j.ID)
		}
		return nil
	})
}
