// Package replay sends events of the log to a destination once more, and records through
// parse again. The work is a job: of a replay in a process that has the destination, see
// package deliver; of records in a process that operates, here.
package replay

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/selection"
	"github.com/penstock/penstock/services/internal/standing"
	"github.com/penstock/penstock/topology"
)

var (
	// ErrEmpty is that of a span in which there is nothing of what is meant.
	ErrEmpty = fault.Define("replay.empty", fault.Reject,
		"widen the span or the filters; nothing was started")
	// ErrUnknown is that of a destination that no process has.
	ErrUnknown = fault.Define("replay.unknown_destination", fault.Reject,
		"see which there are: penstock destinations status; one that is in no configuration can be given with --to-file")
	errFetched = fault.Define("replay.fetched", fault.Reject,
		"have those who fetch from it go back in the log: penstock consumers reset")
	errTypes = fault.Define("replay.no_such_types", fault.Reject,
		"use types that the destination has, or --to-file with a destination that has these")
	errSpan = fault.Define("replay.bad_span", fault.Reject,
		"use a --from that is before --to, and not in the future")
	errRate = fault.Define("replay.bad_rate", fault.Reject,
		"use a rate of 0 (as fast as it goes) or more")
)

// Lens is what a destination has of the log. The zero Lens has all.
type Lens struct {
	Types []string
	Where string
}

// Destination asks the processes what a destination has of the log. Errors:
// replay.unknown_destination when none has it, replay.fetched when it is one from which
// others fetch.
func Destination(ctx context.Context, bus *topology.Bus, name string) (Lens, error) {
	answers, err := bus.Ask(ctx, standing.Question)
	if err != nil {
		return Lens{}, err
	}
	var known []string
	for _, data := range answers {
		var a standing.Answer
		if json.Unmarshal(data, &a) != nil {
			continue // of another version: one that is said to be unknown is asked for again
		}
		for _, d := range a.Destinations {
			switch {
			case d.State == standing.Stopping:
			case d.Destination != name:
				known = append(known, d.Destination)
			case d.Fetched:
				return Lens{}, errFetched.New(nil, "replay to destination %s, from which others fetch", name)
			default:
				return Lens{Types: d.Types, Where: d.Where}, nil
			}
		}
	}
	if len(known) == 0 {
		return Lens{}, ErrUnknown.New(nil, "replay to destination %q: no process that runs has any", name)
	}
	return Lens{}, ErrUnknown.New(nil, "replay to destination %q: those that run are %s", name, strings.Join(distinct(known), ", "))
}

// narrow is what of the types a lens has. Errors: replay.no_such_types.
func narrow(types []string, l Lens) ([]string, error) {
	both, ok := condition.Narrow(l.Types, types)
	if !ok {
		return nil, errTypes.New(nil, "replay %s to a destination that has %s", strings.Join(types, ", "), strings.Join(l.Types, ", "))
	}
	return both, nil
}

func distinct(names []string) []string {
	var list []string
	seen := map[string]bool{}
	for _, n := range names {
		if !seen[n] {
			seen[n] = true
			list = append(list, n)
		}
	}
	return list
}

// Check tells what is wrong with what is to be replayed.
func Check(r jobs.Replay) error {
	if _, err := selection.New(r.Events); err != nil {
		return err
	}
	if r.Rate < 0 {
		return errRate.New(nil, "replay %g events a second", r.Rate)
	}
	return checkSpan(r.Events.Span)
}

func checkSpan(s jobs.Span) error {
	if !s.From.IsZero() && !s.To.IsZero() && !s.From.Before(s.To) || s.From.After(time.Now()) {
		return errSpan.New(nil, "read the log %s", spanText(s))
	}
	return nil
}

// Start stores the job and writes down who had it made and why; via is console or
// command. r has the counts of [Counts.Into], else the span is looked up now. From then
// on the log is kept for it.
func Start(ctx context.Context, bus *topology.Bus, r jobs.Replay, by, via, reason string) (topology.Job, error) {
	if err := Check(r); err != nil {
		return topology.Job{}, err
	}
	if r.Until == 0 {
		s, err := locate(ctx, bus, topology.Events, r.Events.Span)
		if err != nil {
			return topology.Job{}, err
		}
		r.First, r.Until = s.first, s.until
	}
	if r.First >= r.Until {
		return topology.Job{}, ErrEmpty.New(nil, "replay %s", What(r))
	}
	j := topology.Job{
		ID: topology.NewJobID(), Kind: jobs.KindReplay, Spec: jobs.Write(r), Needs: jobs.NeedsDestination(r.Destination), By: by,
		What: What(r), Reason: reason, Progress: topology.Progress{Total: r.Total, Unit: "events"},
	}
	if r.AdHoc {
		j.Needs = jobs.NeedsAdHoc
	}
	if err := bus.WriteAudit(ctx, topology.Deed{By: by, Via: via, Action: "replay.start", What: j.What, Count: r.Total, Reason: reason, Job: j.ID}); err != nil {
		return topology.Job{}, err
	}
	// Until somebody takes the job the keeper might trim what it is about. Who takes it
	// leaves of the types what the destination has: that is not to be undone.
	if _, err := bus.Begin(ctx, topology.ReplayConsumer(j.ID, r.Destination, r.Events.Types, topology.Start{Sequence: r.First})); err != nil {
		return topology.Job{}, err
	}
	return bus.AddJob(ctx, j)
}

// What says in words what is replayed.
func What(r jobs.Replay) string {
	what := "events"
	if r.Events.Types != nil {
		what += " of " + strings.Join(r.Events.Types, ", ")
	}
	if len(r.Events.Sources) > 0 {
		what += " of source " + strings.Join(r.Events.Sources, ", ")
	}
	if r.Events.Object != "" {
		what += " of " + r.Events.Object
	}
	if r.Events.Text != "" {
		what += " with " + strconv.Quote(r.Events.Text)
	}
	if r.Events.Where != "" {
		what += " where " + r.Events.Where
	}
	return what + " stored " + spanText(r.Events.Span) + " to " + r.Destination
}

func spanText(s jobs.Span) string {
	text := "from the oldest on"
	if !s.From.IsZero() {
		text = "from " + s.From.UTC().Format(time.RFC3339)
	}
	if s.To.IsZero() {
		return text + " until now"
	}
	return fmt.Sprintf("%s until %s", text, s.To.UTC().Format(time.RFC3339))
}
