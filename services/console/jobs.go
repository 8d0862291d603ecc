package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/known"
	"github.com/penstock/penstock/services/operate/reconcile"
	"github.com/penstock/penstock/topology"
)

func init() {
	register(page{
		path: "/replays", title: "Replays and backfills", nav: navRepair, order: 10, icon: "replay", get: getJobs,
		routes: []route{
			{"GET /replays/live", liveJobs, readOnly},
			{"GET /replays/{id}", getJob, readOnly},
			{"GET /replays/{id}/live", liveJob, readOnly},
			{"GET /replays/{id}/{verb}", askSteerJob, operator},
			{"POST /replays/{id}/{verb}", steerJob, operator},
		},
	})
}

// Bounds of what is shown of jobs.
const (
	shownJobs = 100
	shownHits = 200
	mostJobID = 100 // bytes
	// jobTick is how often progress is sent to a browser at most.
	jobTick = 500 * time.Millisecond
)

// jobKinds are the kinds of jobs, as people call them.
var jobKinds = []struct{ Kind, One, Many string }{
	{jobs.KindReplay, "Replay", "Replays"},
	{jobs.KindReparse, "Re-parse", "Re-parses"},
	{jobs.KindBackfill, "Backfill", "Backfills"},
	{jobs.KindReconcile, "Reconciliation", "Reconciliations"},
	{jobs.KindRedrive, "Redrive", "Redrives"},
	{jobs.KindDiscard, "Discard", "Discards"},
}

func jobKind(kind string) string {
	for _, k := range jobKinds {
		if k.Kind == kind {
			return k.One
		}
	}
	return kind
}

// jobView is a job as pages show it.
type jobView struct {
	topology.Job
	// Operator tells whether actions are shown.
	Operator bool
}

// Over tells whether it has ended for good.
func (j jobView) Over() bool { return j.Job.Over() }

// Left is how long it will take at the present rate, 0 when that is not known.
func (j jobView) Left() time.Duration { return j.Job.Left() }

// Title is its kind in words.
func (j jobView) Title() string { return jobKind(j.Kind) }

// Tone is the colour of its state.
func (j jobView) Tone() string {
	switch {
	case j.State == topology.JobFailed, j.Error != "" && !j.Over():
		return "bad"
	case j.State == topology.JobDone && j.Progress.Failed > 0, j.State == topology.JobCancelled, j.State == topology.JobPaused:
		return "warn"
	case j.State == topology.JobDone:
		return "ok"
	case j.State == topology.JobRunning:
		return "info"
	}
	return "off"
}

// Status is its state, and what an operator wants of it where that has not come about yet.
func (j jobView) Status() string {
	switch {
	case j.Over():
	case j.Wanted == topology.WantPause && j.State != topology.JobPaused:
		return "pausing"
	case j.Wanted == topology.WantCancel:
		return "cancelling"
	case j.State == topology.JobPaused && j.Wanted == topology.WantRun:
		return "resuming"
	case j.State == topology.JobWaiting && j.Error != "":
		return "retrying"
	}
	return j.State
}

// Percent is how much of it is done, -1 when the total is not known.
func (j jobView) Percent() int {
	switch p := j.Progress; {
	case j.State == topology.JobDone:
		return 100
	case p.Total == 0:
		return -1
	default:
		return int(min(100, 100*p.Done/p.Total))
	}
}

// Took is how long it has run, or took.
func (j jobView) Took() time.Duration {
	switch {
	case j.Started.IsZero():
		return 0
	case j.Over():
		return j.Ended.Sub(j.Started).Round(time.Second)
	}
	return time.Since(j.Started).Round(time.Second)
}

// View is the job alone.
func (j jobView) View() jobView { return j }

// Verbs are what an operator can do with it now.
func (j jobView) Verbs() []string {
	switch {
	case j.Over() || j.Wanted == topology.WantCancel || !j.Operator:
		return nil
	case j.Wanted == topology.WantPause:
		return []string{"resume", "cancel"}
	}
	return []string{"pause", "cancel"}
}

// Amount is how much of how much is done, with its unit.
func (j jobView) Amount() string {
	p := j.Progress
	if p.Total == 0 {
		return num(p.Done) + " " + unitOf(p.Done, p.Unit)
	}
	return num(p.Done) + " of " + num(p.Total) + " " + unitOf(p.Total, p.Unit)
}

// unitOf is a unit in the plural, or of one thing.
func unitOf(n uint64, unit string) string {
	if n != 1 {
		return unit
	}
	if stem, ok := strings.CutSuffix(unit, "ies"); ok {
		return stem + "y"
	}
	return strings.TrimSuffix(unit, "s")
}

// Counted tells whether it was a count of something that can be started now.
func (j jobView) Counted() bool {
	spec, err := jobs.Read[jobs.Backfill](&j.Job)
	return err == nil && j.Kind == jobs.KindBackfill && spec.Count && j.State == topology.JobDone && j.Progress.Done > 0
}

// jobList is the page of all jobs.
type jobList struct {
	Kind  string
	Kinds []jobTab
	Jobs  []jobView
	// Left out because there are too many.
	Left int
}

type jobTab struct {
	Kind, Name string
	Count      int
	Here       bool
}

// listJobs picks those of a kind: what runs and waits first, then what has ended.
func listJobs(all []topology.Job, kind string, acts bool) jobList {
	list := jobList{Kind: kind, Kinds: []jobTab{{Name: "All", Count: len(all), Here: kind == ""}}}
	for _, k := range jobKinds {
		n := 0
		for _, j := range all {
			if j.Kind == k.Kind {
				n++
			}
		}
		list.Kinds = append(list.Kinds, jobTab{k.Kind, k.Many, n, kind == k.Kind})
	}
	for _, over := range []bool{false, true} {
		for _, j := range all {
			switch {
			case j.Over() != over || kind != "" && j.Kind != kind:
			case len(list.Jobs) == shownJobs:
				list.Left++
			default:
				list.Jobs = append(list.Jobs, jobView{j, acts})
			}
		}
	}
	return list
}

func getJobs(r *request) error {
	bus, err := r.bus()
	if err != nil {
		return err
	}
	all, err := bus.Jobs(r.Context())
	if err != nil {
		return err
	}
	return r.page("jobs", listJobs(all, r.FormValue("kind"), r.user.role == operator))
}

// liveJobs sends the table when jobs come, go or change state, and the progress of those
// that run in between: so buttons stay where they are while somebody reaches for them.
func liveJobs(r *request) error {
	bus, err := r.bus()
	if err != nil {
		return err
	}
	kind, shape, acts := r.FormValue("kind"), r.FormValue("shape"), r.user.role == operator
	return r.stream(func(ctx context.Context, send func(event, html string) error) error {
		return followJobs(ctx, bus, func(all, changed []topology.Job) error {
			list := listJobs(all, kind, acts)
			if now := list.Shape(); now != shape {
				shape = now
				return r.send(send, "jobs", "jobs-table", list)
			}
			for _, j := range changed {
				if err := r.send(send, "progress-"+j.ID, "job-figures", jobView{j, acts}); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// send renders a template into an event.
func (r *request) send(send func(event, html string) error, event, name string, data any) error {
	html, err := r.c.render(name, view{Data: data, Operator: r.user.role == operator, User: r.user.name})
	if err != nil {
		return err
	}
	return send(event, string(html))
}

// Shape changes with everything but the progress. Who follows says which shape the page
// has, so that nothing is missed in between, and nothing moves without need.
func (l jobList) Shape() string { return shapeOf(l.Jobs...) }

// Shape is that of the page of one job.
func (j jobView) Shape() string { return shapeOf(j) }

func shapeOf(list ...jobView) string {
	h := fnv.New64a()
	for _, j := range list {
		fmt.Fprintln(h, j.ID, j.Status(), j.Error, j.Verbs())
	}
	return strconv.FormatUint(h.Sum64(), 36)
}

// followJobs calls f with all jobs and those that have changed since the last time, at
// most every jobTick, until f fails or ctx ends.
func followJobs(ctx context.Context, bus *topology.Bus, f func(all, changed []topology.Job) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	updates := make(chan []topology.Job, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		bus.FollowJobs(ctx, func(all []topology.Job) {
			select { // only the latest counts
			case <-updates:
			default:
			}
			updates <- all
		})
	}()
	defer func() { cancel(); <-ended }()
	seen := map[string]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case all := <-updates:
			var changed []topology.Job
			next := make(map[string]time.Time, len(all))
			for _, j := range all {
				next[j.ID] = j.Updated
				if at, ok := seen[j.ID]; ok && !at.Equal(j.Updated) {
					changed = append(changed, j)
				}
			}
			seen = next
			if err := f(all, changed); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(jobTick):
		}
	}
}

// jobPage is the page of one job.
type jobPage struct {
	jobView
	// Facts are what it is to do.
	Facts []fact
	// Audit is what operators did with it, and how it ended.
	Audit []topology.Deed
	// Report of a reconciliation, nil for others or while there is none.
	Report *jobs.Report
	States []part
	Bad    []part
	// Missing objects of it can be announced again; those in quarantine are redriven there.
	Missing uint64
}

// part of a sum.
type part struct {
	Name  string
	Count uint64
}

func oneJob(r *request) (*topology.Bus, topology.Job, error) {
	bus, err := r.bus()
	if err != nil {
		return nil, topology.Job{}, err
	}
	id := r.PathValue("id")
	if len(id) > mostJobID { // the bus would say that it cannot be asked
		return nil, topology.Job{}, errNotFound.New(nil, "show job %s", legible(id, mostJobID))
	}
	j, err := bus.Job(r.Context(), id)
	if errors.Is(err, topology.ErrNoJob) {
		return nil, j, errNotFound.New(err, "show job %s", id)
	}
	return bus, j, err
}

func getJob(r *request) error {
	bus, j, err := oneJob(r)
	if err != nil {
		return err
	}
	p, err := describeJob(r.Context(), bus, j, r.user.role == operator)
	if err != nil {
		return err
	}
	return r.page("job", p)
}

func describeJob(ctx context.Context, bus *topology.Bus, j topology.Job, acts bool) (jobPage, error) {
	p := jobPage{jobView: jobView{j, acts}, Facts: factsOf(&j)}
	err := bus.ReadAudit(ctx, j.At.Add(-time.Minute), func(d topology.Deed) bool {
		if d.Job == j.ID {
			p.Audit = append(p.Audit, d)
		}
		return true
	})
	if err != nil {
		return p, err
	}
	if j.Kind == jobs.KindReconcile {
		report, err := reconcile.Report(ctx, bus, j.ID)
		switch {
		case err == nil:
			p.Report = &report
			p.States, p.Missing = sharesOf(report.States), announceable(&report)
			if report.Digests != nil {
				p.Bad = sharesOf(report.Digests.Bad)
			}
			if cut := len(report.Findings) - shownHits; cut > 0 {
				report.Cut += uint64(cut)
				report.Findings = report.Findings[:shownHits]
			}
		case fault.CodeOf(err) != "reconcile.no_report":
			return p, err
		}
	}
	return p, nil
}

// announceable is how many objects of a report can be announced again.
func announceable(r *jobs.Report) (n uint64) {
	for _, s := range []known.State{known.Never, known.Open, known.Changed} {
		n += r.States[string(s)]
	}
	return n
}

func sharesOf(m map[string]uint64) []part {
	list := make([]part, 0, len(m))
	for name, n := range m {
		list = append(list, part{strings.ReplaceAll(name, "_", " "), n})
	}
	slices.SortFunc(list, func(a, b part) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// factsOf says what a job is to do. A job that this version cannot read is shown as it is.
func factsOf(j *topology.Job) []fact {
	var list []fact
	add := func(name, format string, args ...any) {
		if value := fmt.Sprintf(format, args...); value != "" {
			list = append(list, fact{Name: name, Value: value})
		}
	}
	span := func(s jobs.Span) {
		if !s.From.IsZero() {
			add("From", "%s", s.From.UTC().Format(timeShown))
		}
		if !s.To.IsZero() {
			add("To", "%s", s.To.UTC().Format(timeShown))
		}
	}
	rate := func(rate float64, unit string) {
		if rate > 0 {
			add("At most", "%g %s a second", rate, unit)
		}
	}
	switch j.Kind {
	case jobs.KindReplay:
		s, err := jobs.Read[jobs.Replay](j)
		if err != nil {
			break
		}
		add("Destination", "%s", s.Destination)
		span(s.Events.Span)
		add("Types", "%s", strings.Join(s.Events.Types, ", "))
		add("Sources", "%s", strings.Join(s.Events.Sources, ", "))
		add("Object", "%s", s.Events.Object)
		add("Text", "%s", s.Events.Text)
		add("Where", "%s", s.Events.Where)
		rate(s.Rate, "events")
	case jobs.KindReparse:
		s, err := jobs.Read[jobs.Reparse](j)
		if err != nil {
			break
		}
		if s.Destination == "" {
			add("Destination", "all, through the event log")
		} else {
			add("Destination", "%s", s.Destination)
		}
		span(s.Span)
		add("Sources", "%s", strings.Join(s.Sources, ", "))
		add("Object", "%s", s.Object)
		rate(s.Rate, "records")
	case jobs.KindRedrive, jobs.KindDiscard:
		s, err := jobs.Read[jobs.Redrive](j)
		if err != nil {
			break
		}
		e := s.Entries
		span(e.Span)
		if n := len(e.IDs); n > 3 {
			add("Entries", "%d that were chosen", n)
		} else {
			add("Entries", "%s", strings.Join(e.IDs, ", "))
		}
		add("Stage", "%s", e.Stage)
		add("Source", "%s", e.Source)
		add("Reason", "%s", e.Code)
		add("Destination", "%s", e.Destination)
		add("Text", "%s", e.Text)
		rate(s.Rate, "entries")
		if s.AllowOnce {
			add("Limits", "lifted for this one time")
		}
	case jobs.KindBackfill, jobs.KindReconcile:
		s, err := jobs.Read[jobs.Reconcile](j) // it has all of the other
		if err != nil {
			break
		}
		add("Source", "%s", s.Source)
		if s.Bucket != "" {
			add("Bucket", "s3://%s/%s", s.Bucket, s.Prefix)
		}
		span(s.Span)
		rate(s.Rate, "objects")
		if s.Count {
			add("Mode", "only counts, announces nothing")
		}
		if s.SkipKnown {
			add("Leaves out", "what the ledger has as complete")
		}
		if s.Digests {
			add("Compares with", "CloudTrail's digest files")
		}
		if s.Requeue {
			add("Missing objects", "are announced again")
		}
	}
	if list == nil {
		var indented strings.Builder
		if data, err := json.MarshalIndent(j.Spec, "", "  "); err == nil {
			indented.Write(data)
		}
		add("Spec", "%s", indented.String())
	}
	return list
}

// timeShown is how times are written in words. All are UTC.
const timeShown = "2006-01-02 15:04:05"

// liveJob sends one job's progress, and the whole of it when its state has changed.
func liveJob(r *request) error {
	bus, j, err := oneJob(r)
	if err != nil {
		return err
	}
	shape, acts := r.FormValue("shape"), r.user.role == operator
	return r.stream(func(ctx context.Context, send func(event, html string) error) error {
		return followJobs(ctx, bus, func(all, changed []topology.Job) error {
			i := slices.IndexFunc(all, func(x topology.Job) bool { return x.ID == j.ID })
			if i < 0 {
				return nil
			}
			now := jobView{all[i], acts}
			if s := now.Shape(); s != shape {
				shape = s
				p, err := describeJob(ctx, bus, now.Job, acts)
				if err != nil {
					return err
				}
				return r.send(send, "job", "job-body", p)
			}
			if slices.ContainsFunc(changed, func(x topology.Job) bool { return x.ID == j.ID }) {
				return r.send(send, "progress-"+j.ID, "job-figures", now)
			}
			return nil
		})
	})
}

// steering is what an operator can do with a job.
var steering = map[string]struct{ wanted, title, text, done string }{
	"pause": {
		topology.WantPause, "Pause this job?",
		"It stops at its next checkpoint, keeps its place, and holds what it still needs of the log until it goes on.", "The job pauses.",
	},
	"resume": {topology.WantRun, "Go on with this job?", "It goes on where it stopped.", "The job goes on."},
	"cancel": {
		topology.WantCancel, "Cancel this job?",
		"It ends for good. What it has done already stays done; the rest is not done.", "The job is cancelled.",
	},
}

func askSteerJob(r *request) error {
	_, j, err := oneJob(r)
	if err != nil {
		return err
	}
	s, ok := steering[r.PathValue("verb")]
	if !ok {
		return errNotFound.New(nil, "do %q with job %s", r.PathValue("verb"), j.ID)
	}
	if j.Over() {
		return errInput.New(nil, "%s job %s: it is %s meanwhile", r.PathValue("verb"), j.ID, j.State)
	}
	p := j.Progress
	left := p.Total - min(p.Done, p.Total)
	unit := p.Unit
	if unit == "" {
		unit = "items"
	}
	text := fmt.Sprintf("%s of %s (%s). %s", jobKind(j.Kind), j.What, j.ID, s.text)
	if p.Total == 0 {
		left, text = p.Done, text+" The count is of what it has done so far."
	}
	return r.confirm(confirm{
		Title: s.title, Text: text, Count: left, Unit: unitOf(left, unit), Verb: strings.ToUpper(s.title[:1]) + strings.Split(s.title[1:], " ")[0] + " job",
		Danger: s.wanted == topology.WantCancel, Fields: []field{{Name: "reason", Label: "Reason (for the audit)", Type: "text"}},
	})
}

func steerJob(r *request) error {
	bus, j, err := oneJob(r)
	if err != nil {
		return err
	}
	verb := r.PathValue("verb")
	s, ok := steering[verb]
	if !ok {
		return errNotFound.New(nil, "do %q with job %s", verb, j.ID)
	}
	if j.Over() {
		return errInput.New(nil, "%s job %s: it is %s meanwhile", verb, j.ID, j.State)
	}
	if err := r.deed(topology.Deed{
		Action: "job." + verb, What: jobKind(j.Kind) + " of " + j.What, Count: j.Progress.Total - min(j.Progress.Done, j.Progress.Total), Reason: r.FormValue("reason"), Job: j.ID,
	}); err != nil {
		return err
	}
	_, err = bus.ChangeJob(r.Context(), j.ID, func(j *topology.Job) error {
		if j.Over() { // another operator, or its end, was faster
			return errInput.New(nil, "%s job %s: it is %s meanwhile", verb, j.ID, j.State)
		}
		j.Wanted = s.wanted
		return nil
	})
	if err != nil {
		return err
	}
	return r.done(s.done, "")
}
