// Package backfill has a source read again what is older than it, or what it missed:
// the objects below a prefix, or a time range of an API. The work is a job in a process
// that has the source; see package ingest.
package backfill

import (
	"context"
	"fmt"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/topology"
)

var errSpan = fault.Define("backfill.bad_span", fault.Reject, "use a --from that is before --to, and not in the future")

// Start stores the job, and writes down who had it made and why. Via is console or
// command.
func Start(ctx context.Context, bus *topology.Bus, spec jobs.Backfill, by, via, reason string) (topology.Job, error) {
	if err := Check(spec); err != nil {
		return topology.Job{}, err
	}
	action := "backfill.start"
	if spec.Count {
		action = "backfill.count"
	}
	what := What(spec)
	if err := bus.WriteAudit(ctx, topology.Deed{By: by, Via: via, Action: action, What: what, Count: spec.Total, Reason: reason}); err != nil {
		return topology.Job{}, err
	}
	return bus.AddJob(ctx, topology.Job{
		Kind: jobs.KindBackfill, Spec: jobs.Write(spec), Needs: jobs.NeedsSource(spec.Source), By: by, What: what, Reason: reason,
		Progress: topology.Progress{Total: spec.Total, Unit: "objects"},
	})
}

// Check tells what is wrong with a span.
func Check(spec jobs.Backfill) error {
	if !spec.From.IsZero() && !spec.To.IsZero() && !spec.From.Before(spec.To) || spec.From.After(time.Now()) {
		return errSpan.New(nil, "read %s", What(spec))
	}
	return nil
}

// What says it in words.
func What(spec jobs.Backfill) string {
	what := "the API of source " + spec.Source
	if spec.Bucket != "" {
		what = fmt.Sprintf("s3://%s/%s as source %s", spec.Bucket, spec.Prefix, spec.Source)
	}
	if !spec.From.IsZero() {
		what += " from " + spec.From.UTC().Format(time.RFC3339)
	}
	if !spec.To.IsZero() {
		what += " to " + spec.To.UTC().Format(time.RFC3339)
	}
	return what
}
