// Package status says how the pipeline is: what flows, what does not, and what to do.
package status

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/penstock/penstock/services/internal/standing"
	"github.com/penstock/penstock/services/operate/destinations"
	"github.com/penstock/penstock/services/operate/freshness"
	"github.com/penstock/penstock/topology"
)

// Snapshot is how all is at one moment.
type Snapshot struct {
	At           time.Time         `json:"at"`
	Healthy      bool              `json:"healthy"`
	Problems     []Problem         `json:"problems"`
	Stages       []Stage           `json:"stages"`
	Streams      []Stream          `json:"streams"`
	Destinations []Destination     `json:"destinations"`
	Sources      []freshness.State `json:"sources"`
	Drift        []freshness.Drift `json:"drift,omitempty"`
	Jobs         []topology.Job    `json:"jobs,omitempty"` // those that have not ended, and those that failed within a day
	// Processes that answer.
	Processes []Process `json:"processes"`
	// Logs are the streams with their consumers, as the bus has them.
	Logs []topology.StreamState `json:"-"`
}

// Problem is something that an operator should look at.
type Problem struct {
	// Severity is error (not healthy) or warning.
	Severity string `json:"severity"`
	// Area is stage, stream, destination, source, job, quarantine or drift; Name which one.
	Area  string    `json:"area"`
	Name  string    `json:"name,omitempty"`
	What  string    `json:"what"`
	Since time.Time `json:"since,omitzero"`
	Fix   string    `json:"fix"`
}

// Stage is one of the six. Counters are sums over the processes that run, since each
// began; rates are a second, from two snapshots (see [Snapshot.Rates]).
type Stage struct {
	Name        string  `json:"name"`
	Processes   int     `json:"processes"`
	In          uint64  `json:"events_in"`
	Out         uint64  `json:"events_out"`
	Bytes       uint64  `json:"bytes"`
	Errors      uint64  `json:"errors"`
	Quarantined uint64  `json:"quarantined"`
	Duplicates  uint64  `json:"duplicates,omitempty"`
	Filtered    uint64  `json:"filtered,omitempty"`
	LagFrames   uint64  `json:"lag_frames"`
	LagSeconds  float64 `json:"lag_seconds"`
	InRate      float64 `json:"in_rate"`
	OutRate     float64 `json:"out_rate"`
	BytesRate   float64 `json:"bytes_rate"`
}

// Stream is one log of the bus.
type Stream struct {
	Name     string    `json:"name"`
	Messages uint64    `json:"messages"`
	Bytes    uint64    `json:"bytes"`
	Limit    uint64    `json:"limit_bytes"`
	First    uint64    `json:"first"`
	Next     uint64    `json:"next"`
	Oldest   time.Time `json:"oldest,omitzero"`
	Keep     string    `json:"keep"`
}

// Destination is what the bus and the processes know of a destination.
type Destination struct {
	Name string `json:"name"`
	Type string `json:"type,omitempty"`
	// State is running, starting, paused, failing, stopping or stopped.
	State string `json:"state"`
	// Configured in a process that runs, or in the configuration that was given.
	Configured        bool              `json:"configured"`
	LagFrames         uint64            `json:"lag_frames"`
	LagSeconds        float64           `json:"lag_seconds"`
	OldestUnconfirmed *time.Time        `json:"oldest_unconfirmed,omitempty"`
	First             uint64            `json:"first,omitempty"`
	Breaker           string            `json:"breaker,omitempty"`
	Error             string            `json:"error,omitempty"`
	Control           *topology.Control `json:"control,omitempty"`
	// Delivered, by the counters of the processes that run; Rate is events a second.
	Delivered   uint64  `json:"delivered"`
	Quarantined uint64  `json:"quarantined"`
	Rate        float64 `json:"rate"`
}

// Process is one that answers.
type Process struct {
	Name    string    `json:"name"`
	Version string    `json:"version"`
	Stages  []string  `json:"stages"`
	Started time.Time `json:"started"`
	// CPU seconds used, memory resident in bytes.
	CPU    float64 `json:"cpu_seconds"`
	Memory uint64  `json:"memory_bytes"`
}

// Configured is what a configuration says of destinations and sources: types by name.
type Configured struct {
	Destinations map[string]string
	Sources      map[string]string
}

// Severities of problems. One error makes the pipeline not healthy.
const (
	Error   = "error"
	Warning = "warning"
)

// Now takes a snapshot. It asks all processes, so it takes some 0.3 s or longer. Problems
// are in the order of their severity.
func Now(ctx context.Context, bus *topology.Bus, configured Configured) (Snapshot, error) {
	s := Snapshot{At: time.Now().UTC(), Problems: []Problem{}, Processes: []Process{}}
	var (
		streams []topology.StreamState
		targets []*destinations.Status
		jobs    []topology.Job
		said    []counters
		lanes   uint32
		watched bool
	)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { streams, err = bus.Show(ctx); return err })
	g.Go(func() (err error) {
		targets, err = destinations.Now(ctx, bus, listOf(configured.Destinations))
		return err
	})
	g.Go(func() (err error) { jobs, err = bus.Jobs(ctx); return err })
	g.Go(func() (err error) { said, err = ask(ctx, bus); return err })
	g.Go(func() (err error) { lanes, err = bus.LaneCount(ctx); return err })
	g.Go(func() error {
		a, found, err := freshness.Ask(ctx, bus)
		s.Sources, s.Drift, watched = a.Sources, a.Drift, found
		return err
	})
	if err := g.Wait(); err != nil {
		return s, err
	}
	for _, one := range said {
		s.Processes = append(s.Processes, one.Process)
	}
	slices.SortFunc(s.Processes, func(a, b Process) int { return cmp.Compare(a.Name, b.Name) })
	s.Logs = streams
	s.addStreams(streams)
	s.addDestinations(targets, said)
	s.addStages(streams, said)
	s.addJobs(jobs)
	s.judgeProcesses(said, lanes, watched)
	s.judgeSources()
	slices.SortStableFunc(s.Problems, func(a, b Problem) int { return cmp.Compare(rank(a), rank(b)) })
	s.Healthy = !slices.ContainsFunc(s.Problems, func(p Problem) bool { return p.Severity == Error })
	return s, nil
}

func rank(p Problem) int {
	if p.Severity == Error {
		return 0
	}
	return 1
}

func listOf(types map[string]string) (list []destinations.Configured) {
	for _, name := range slices.Sorted(maps.Keys(types)) {
		list = append(list, destinations.Configured{Name: name, Type: types[name]})
	}
	return list
}

// ask asks all processes for their counters. One that answers what cannot be read, of
// another version, is left out.
func ask(ctx context.Context, bus *topology.Bus) ([]counters, error) {
	answers, err := bus.Ask(ctx, question)
	if err != nil {
		return nil, err
	}
	var said []counters
	for _, data := range answers {
		var c counters
		if json.Unmarshal(data, &c) == nil {
			said = append(said, c)
		}
	}
	return said, nil
}

func (s *Snapshot) problem(severity, area, name string, since time.Time, fix, what string, args ...any) {
	s.Problems = append(s.Problems, Problem{Severity: severity, Area: area, Name: name, What: fmt.Sprintf(what, args...), Since: since, Fix: fix})
}

// How full a stream may be before it is told of.
const (
	fullWarning = 0.8
	fullError   = 0.95
)

func (s *Snapshot) addStreams(streams []topology.StreamState) {
	for _, st := range streams {
		s.Streams = append(s.Streams, Stream{
			Name: st.Stream, Messages: st.Messages, Bytes: st.Bytes, Limit: uint64(max(0, st.MaxBytes)), First: st.First, Next: st.Last + 1,
			Oldest: st.FirstTime, Keep: st.Keep,
		})
		if st.Stream == topology.Quarantine && st.Messages > 0 {
			s.problem(Warning, "quarantine", "", st.FirstTime, "look at them: penstock quarantine list; then redrive or discard them",
				"%d entries are in quarantine", st.Messages)
		}
		// The keeper trims what nobody needs, so a full stream is full of what is needed.
		held := uint64(0)
		for _, c := range st.Consumers {
			held = max(held, c.Pending+uint64(max(0, c.InHand)))
		}
		fill := float64(st.Bytes) / float64(max(1, st.MaxBytes))
		if full := st.MaxBytes > 0 && fill >= fullWarning && (held*2 > st.Messages || st.Stream == topology.Quarantine); full {
			severity := Warning
			if fill >= fullError {
				severity = Error
			}
			s.problem(severity, "stream", st.Stream, time.Time{}, "see what holds it: penstock topology show, penstock destinations status; or raise bus.disk",
				"stream %s is %.0f %% full of what is still needed; when it is full, sources are not read any more", st.Stream, 100*fill)
		}
	}
}

// lagWarning is how old may be what a stage or destination has not done.
const lagWarning = 5 * time.Minute

func (s *Snapshot) addDestinations(targets []*destinations.Status, said []counters) {
	sums := map[string]target{}
	for _, c := range said {
		for name, t := range c.Targets {
			sums[name] = target{sums[name].Delivered + t.Delivered, sums[name].Quarantined + t.Quarantined}
		}
	}
	for _, t := range targets {
		d := Destination{
			Name: t.Name, Type: t.Type, State: t.State, Configured: t.Configured, LagFrames: t.LagFrames, LagSeconds: t.LagSeconds,
			OldestUnconfirmed: t.OldestUnconfirmed, First: t.First, Breaker: t.Breaker, Control: t.Control,
			Delivered: uint64(sums[t.Name].Delivered), Quarantined: uint64(sums[t.Name].Quarantined),
		}
		var since time.Time
		for _, name := range slices.Sorted(maps.Keys(t.Processes)) {
			if p := t.Processes[name]; p.Error != "" {
				d.Error, since = p.Error, p.Since
			}
		}
		s.Destinations = append(s.Destinations, d)
		late := time.Duration(t.LagSeconds*float64(time.Second)) > lagWarning
		switch {
		case !t.Configured && t.First > 0:
			s.problem(Warning, "destination", t.Name, time.Time{}, "put it back into the configuration, or let go of it: penstock destinations remove "+t.Name,
				"the event log is kept for destination %s, which no process has", t.Name)
		case t.State == destinations.Stopped && t.Configured:
			s.problem(Error, "destination", t.Name, since, "start a process that delivers: penstock run, or penstock run --stage deliver",
				"no process runs destination %s", t.Name)
		case t.State == standing.Failing:
			what := "destination " + t.Name + " takes nothing"
			if d.Error != "" {
				what += ": " + d.Error
			}
			s.problem(Error, "destination", t.Name, oldestOf(t, since), "nothing is lost meanwhile; mend the far side or the configuration: penstock doctor, penstock destinations status "+t.Name, "%s", what)
		case t.Paused():
			what := "destination " + t.Name + " is paused by " + t.Control.By
			if t.Control.Reason != "" {
				what += ": " + t.Control.Reason
			}
			s.problem(Warning, "destination", t.Name, t.Control.At, "when it may go on: penstock destinations resume "+t.Name, "%s", what)
		case late:
			s.problem(Warning, "destination", t.Name, oldestOf(t, since), "see whether it catches up: penstock top; the far side may be too slow for what comes",
				"destination %s is behind: the oldest of %d frames waits for %s", t.Name, t.LagFrames, time.Duration(t.LagSeconds*float64(time.Second)).Round(time.Second))
		}
	}
}

func oldestOf(t *destinations.Status, since time.Time) time.Time {
	if t.OldestUnconfirmed != nil {
		return *t.OldestUnconfirmed
	}
	return since
}

func (s *Snapshot) addStages(streams []topology.StreamState, said []counters) {
	waiting := map[string]uint64{}
	for _, st := range streams {
		for _, c := range st.Consumers {
			waiting[c.Consumer] = c.Pending + uint64(max(0, c.InHand))
		}
	}
	for _, name := range topology.Stages {
		stage := Stage{Name: string(name)}
		var sum count
		for _, c := range said {
			n, ok := c.Stages[stage.Name]
			if !ok {
				continue
			}
			stage.Processes++
			sum.add(n)
			if waiting[stage.Name] > 0 {
				stage.LagSeconds = max(stage.LagSeconds, c.Lag[stage.Name].Seconds)
			}
		}
		stage.In, stage.Out, stage.Bytes, stage.Errors = uint64(sum.In), uint64(sum.Out), uint64(sum.Bytes), uint64(sum.Errors)
		stage.Quarantined, stage.Duplicates, stage.Filtered = uint64(sum.Quarantined), uint64(sum.Duplicates), uint64(sum.Filtered)
		stage.LagFrames = waiting[stage.Name]
		if name == topology.Deliver {
			for _, d := range s.Destinations {
				stage.LagFrames, stage.LagSeconds = max(stage.LagFrames, d.LagFrames), max(stage.LagSeconds, d.LagSeconds)
			}
		} else if lag := time.Duration(stage.LagSeconds * float64(time.Second)); lag > lagWarning {
			s.problem(Warning, "stage", stage.Name, time.Time{}, "see whether it catches up: penstock top; else run more processes of it: penstock run --stage "+stage.Name,
				"stage %s is behind: %d frames, what it works on is %s old", stage.Name, stage.LagFrames, lag.Round(time.Second))
		}
		s.Stages = append(s.Stages, stage)
	}
}

func (c *count) add(n count) {
	c.In += n.In
	c.Out += n.Out
	c.Bytes += n.Bytes
	c.Errors += n.Errors
	c.Quarantined += n.Quarantined
	c.Duplicates += n.Duplicates
	c.Filtered += n.Filtered
}

// recent is for how long what is over is told of.
const recent = 24 * time.Hour

func (s *Snapshot) addJobs(jobs []topology.Job) {
	for _, j := range jobs {
		failed := j.State == topology.JobFailed && s.At.Sub(j.Ended) < recent
		if j.Over() && !failed {
			continue
		}
		s.Jobs = append(s.Jobs, j)
		switch {
		case failed:
			s.problem(Warning, "job", j.ID, j.Ended, "see penstock jobs show "+j.ID, "a job has failed (%s): %s", j.What, j.Error)
		case j.State == topology.JobWaiting && j.Wanted == topology.WantRun && s.At.Sub(j.Updated) > time.Minute && s.At.After(j.NotUntil):
			s.problem(Warning, "job", j.ID, j.At, "it needs "+j.Needs+": start such a process, or cancel it: penstock jobs cancel "+j.ID,
				"nobody has taken up a job (%s)", j.What)
		}
	}
}

func (s *Snapshot) judgeProcesses(said []counters, lanes uint32, watched bool) {
	// A console answers without having a stage.
	if !slices.ContainsFunc(said, func(c counters) bool { return len(c.Process.Stages) > 0 }) {
		s.problem(Error, "stage", "", time.Time{}, "start one: penstock run", "no process answers: nothing flows")
		return
	}
	owned, blocked, bad, restart := 0.0, false, false, false
	down := map[string]bool{}
	for _, c := range said {
		owned += c.Lanes
		blocked, bad, restart = blocked || c.Blocked, bad || c.BadFile, restart || c.Restart
		for name := range c.Down {
			down[name] = true
		}
	}
	for _, stage := range s.Stages {
		if stage.Processes == 0 {
			s.problem(Error, "stage", stage.Name, time.Time{}, "start one: penstock run --stage "+stage.Name, "no process runs stage %s", stage.Name)
		}
		if stage.Name == string(topology.Dedupe) && stage.Processes > 0 && owned < float64(lanes) {
			s.problem(Warning, "stage", stage.Name, time.Time{}, "wait some seconds: another process takes them over; else look at the logs of dedupe",
				"%d of %d lanes of dedupe have no owner", int(float64(lanes)-owned), lanes)
		}
	}
	if blocked {
		s.problem(Error, "stream", "", time.Time{}, "see which is full: penstock topology show; a dead destination holds the log, bus.disk is its room",
			"a stream is full: what comes waits at the sources")
	}
	if bad {
		s.problem(Warning, "stage", "", time.Time{}, "see penstock config check", "a process could not take over its configuration file and goes on with the one before")
	}
	if restart {
		s.problem(Warning, "stage", "", time.Time{}, "restart it when it suits", "a process needs a restart to take over all of its configuration")
	}
	for _, name := range slices.Sorted(maps.Keys(down)) {
		s.problem(Error, "source", name, time.Time{}, "see which call is refused: penstock doctor", "source %s cannot be read", name)
	}
	if !watched {
		s.problem(Warning, "source", "", time.Time{}, "run penstock console, or penstock run without --stage", "nobody watches how fresh the sources are")
	}
}

func (s *Snapshot) judgeSources() {
	for _, src := range s.Sources {
		if !src.Silent {
			continue
		}
		usual := ""
		if src.Usual > 0 {
			usual = ", its usual gap is " + src.Usual.String()
		}
		s.problem(Error, "source", src.Source, src.Last, "see whether the far side still writes, and whether the source can be read: penstock doctor; if it may be silent, set its silence",
			"source %s is silent for %s%s", src.Source, src.Silence.Round(time.Second), usual)
	}
	news := 0
	var last time.Time
	for _, d := range s.Drift {
		if s.At.Sub(d.Last) < recent {
			news++
			if d.Last.After(last) {
				last = d.Last
			}
		}
	}
	if news > 0 {
		s.problem(Warning, "drift", "", last, "look at them: penstock status --json, under drift; see whether a newer penstock knows them",
			"formats have met %d things within a day that they do not know; the records went on as they are", news)
	}
}

// Rates fills in the rates from a snapshot that was taken before. What was counted anew
// since then, by a process that began again, counts as nothing.
func (s *Snapshot) Rates(before *Snapshot) {
	seconds := s.At.Sub(before.At).Seconds()
	if seconds <= 0 {
		return
	}
	rate := func(now, then uint64) float64 {
		if now < then {
			return 0
		}
		return float64(now-then) / seconds
	}
	for i := range s.Stages {
		for _, b := range before.Stages {
			if st := &s.Stages[i]; b.Name == st.Name {
				st.InRate, st.OutRate, st.BytesRate = rate(st.In, b.In), rate(st.Out, b.Out), rate(st.Bytes, b.Bytes)
			}
		}
	}
	for i := range s.Destinations {
		for _, b := range before.Destinations {
			if d := &s.Destinations[i]; b.Name == d.Name {
				d.Rate = rate(d.Delivered, b.Delivered)
			}
		}
	}
}
