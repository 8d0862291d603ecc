// Package reconcile has a source's bucket compared with the ledger, so that what was
// never announced or never finished is known, and can be announced again. The work is a
// job in a process that has the source; see package ingest.
package reconcile

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/operate/backfill"
	"github.com/penstock/penstock/topology"
)

var errReport = fault.Define("reconcile.no_report", fault.Reject,
	"start the reconciliation anew: reports are kept for the latest ones only")

// Start stores the job, and writes down who had it made and why. Via is console or
// command.
func Start(ctx context.Context, bus *topology.Bus, spec jobs.Reconcile, by, via, reason string) (topology.Job, error) {
	if err := backfill.Check(spec.Backfill); err != nil {
		return topology.Job{}, err
	}
	what := What(spec)
	if spec.Digests {
		what += ", by digest files"
	}
	action := "reconcile.start"
	if spec.Requeue {
		action = "reconcile.requeue"
	}
	if err := bus.WriteAudit(ctx, topology.Deed{By: by, Via: via, Action: action, What: what, Reason: reason}); err != nil {
		return topology.Job{}, err
	}
	return bus.AddJob(ctx, topology.Job{
		Kind: jobs.KindReconcile, Spec: jobs.Write(spec), Needs: jobs.NeedsSource(spec.Source), By: by, What: what, Reason: reason,
		Progress: topology.Progress{Unit: "objects"},
	})
}

// What says it in words.
func What(spec jobs.Reconcile) string {
	what := backfill.What(spec.Backfill)
	if spec.Bucket == "" {
		what = "the objects" + strings.TrimPrefix(what, "the API")
	}
	return what
}

// Report is what a job has found: so far while it runs, all of it once it is done.
func Report(ctx context.Context, bus *topology.Bus, job string) (jobs.Report, error) {
	var r jobs.Report
	parts, err := bus.Report(ctx, job)
	if err != nil {
		return r, err
	}
	if len(parts) == 0 {
		return r, errReport.New(nil, "read the report of job %s", job)
	}
	for i, part := range parts {
		var more jobs.Report
		if err := json.Unmarshal(part, &more); err != nil {
			return r, errReport.New(err, "read the report of job %s", job)
		}
		if i == 0 { // the sums; the others hold findings only
			r = more
			continue
		}
		r.Findings = append(r.Findings, more.Findings...)
	}
	return r, nil
}
