package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/internal/digest"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/operate/reconcile"
	"github.com/penstock/penstock/topology"
)

// reconcileResult is what the command prints as JSON.
type reconcileResult struct {
	Complete bool         `json:"complete"`
	Job      topology.Job `json:"job"`
	Report   jobs.Report  `json:"report"`
}

func newReconcile() *cobra.Command {
	var flags busFlags
	var read readFlags
	var object, keys, reason string
	var digests, requeue, yes, asJSON bool
	grace := time.Duration(0)
	cmd := &cobra.Command{
		Use: "reconcile SOURCE", Args: exactly(1),
		Short: "Compare a source's bucket with the ledger, and announce what is missing",
		Long: `The objects of a bucket are listed and the ledger is asked for each: was it announced,
was it read to its end, are all its records accounted for. --requeue announces again what
never was, what was not finished, and what has changed since, as penstock backfill does.
What is in quarantine is redriven from there: penstock quarantine redrive.

--digests goes by the digest files of CloudTrail instead of the listing. They name every
log file that CloudTrail has written, with its hash; each is signed, and names the one
before. So a log file or a digest file that was deleted or altered is proven, not only
not seen. All log files are read for that. The public keys come from CloudTrail
(cloudtrail:ListPublicKeys), or from a file.

A process that runs the source does the work; one that keeps the ledger answers (penstock
run with all stages, or penstock console). What is younger than --grace may be under way
and is not called missing.

Exit code 1: something is missing, or was altered.`,
		Example: `  penstock reconcile trail --from 2026-01-01 --to 2026-02-01
  penstock reconcile trail --bucket 's3://logs/AWSLogs/*/CloudTrail/*/{yyyy}/{MM}/{dd}/' --from 48h --requeue
  penstock reconcile trail --bucket s3://logs/ --from 168h --digests --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			bus, file, err := flags.connect(ctx)
			if err != nil {
				return err
			}
			defer bus.Close()
			read.source = args[0]
			spec := jobs.Reconcile{Digests: digests, Requeue: requeue, Grace: grace}
			if spec.Backfill, err = read.spec(object, &file); err != nil {
				return err
			}
			if keys != "" {
				data, err := os.ReadFile(keys)
				if err != nil {
					return usageError{fmt.Errorf("--public-keys: %w", err)}
				}
				if spec.PublicKeys, err = digest.ReadKeys(data); err != nil {
					return usageError{fmt.Errorf("--public-keys %s: %w", keys, err)}
				}
			}
			if requeue && !yes {
				// What is missing is not known before: it is said first, then asked.
				found, err := runReconcile(cmd, bus, lookOnly(spec), reason, asJSON)
				if err != nil {
					return err
				}
				n := requeueable(&found.Report)
				if n == 0 {
					return printReconcile(cmd.OutOrStdout(), found, asJSON)
				}
				if !asJSON {
					if err := printReconcile(cmd.OutOrStdout(), found, false); err != nil && !errors.Is(err, errSilent) {
						return err
					}
				}
				if err := ask(cmd, fmt.Sprintf("Announce %s again?", plural(int(n), "object", "objects"))); err != nil {
					return err
				}
			}
			found, err := runReconcile(cmd, bus, spec, reason, asJSON)
			if err != nil {
				return err
			}
			return printReconcile(cmd.OutOrStdout(), found, asJSON)
		},
	}
	flags.add(cmd)
	read.add(cmd)
	cmd.Flags().StringVar(&object, "bucket", "", "s3://bucket/prefix to compare (default that of the source, where it has one alone)")
	cmd.Flags().BoolVar(&digests, "digests", false, "go by CloudTrail's digest files, and check them")
	cmd.Flags().StringVar(&keys, "public-keys", "", "`file` with the keys as aws cloudtrail list-public-keys prints them, instead of asking CloudTrail")
	cmd.Flags().BoolVar(&requeue, "requeue", false, "announce again what is missing")
	cmd.Flags().DurationVar(&grace, "grace", 10*time.Minute, "how long an object may take until it is called missing")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask back")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func lookOnly(spec jobs.Reconcile) jobs.Reconcile {
	spec.Requeue = false
	return spec
}

// requeueable is how many objects of a report can be announced again.
func requeueable(r *jobs.Report) uint64 {
	return r.States["never_announced"] + r.States["not_finished"] + r.States["changed"]
}

func runReconcile(cmd *cobra.Command, bus *topology.Bus, spec jobs.Reconcile, reason string, asJSON bool) (*reconcileResult, error) {
	ctx := cmd.Context()
	job, err := reconcile.Start(ctx, bus, spec, operator(), "command", reason)
	if err != nil {
		return nil, err
	}
	f := follower{bus: bus, out: cmd.ErrOrStderr(), quiet: asJSON}
	if job, err = f.follow(ctx, job); err != nil {
		return nil, err
	}
	r, err := reconcile.Report(ctx, bus, job.ID)
	if err != nil {
		return nil, err
	}
	result := &reconcileResult{Job: job, Report: r, Complete: r.Missing == 0}
	if r.Digests != nil {
		result.Complete = result.Complete && len(r.Digests.Bad) == 0
	}
	return result, nil
}

// shownFindings bounds the rows of the table; JSON has all.
const shownFindings = 100

// printReconcile prints what was found; errSilent when something is missing.
func printReconcile(out io.Writer, result *reconcileResult, asJSON bool) error {
	if asJSON {
		if err := writeJSON(out, result); err != nil {
			return err
		}
	} else if err := reconcileText(out, result); err != nil {
		return err
	}
	if !result.Complete {
		return errSilent
	}
	return nil
}

func reconcileText(out io.Writer, result *reconcileResult) error {
	r := &result.Report
	spec, err := jobs.Read[jobs.Reconcile](&result.Job)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, printable(reconcile.What(spec)))
	if d := r.Digests; d != nil {
		fmt.Fprintf(out, "digest files: %d in %s; %d log files named, %d of them as they were signed\n", d.Files, plural(d.Chains, "chain", "chains"), d.LogFiles, d.Verified)
		for _, what := range slices.Sorted(maps.Keys(d.Bad)) {
			fmt.Fprintf(out, "  %s: %d\n", printable(what), d.Bad[what])
		}
	}
	if r.NoLedger {
		fmt.Fprintln(out, "the ledger was not asked: no process keeps it; start penstock console, or penstock run with all stages")
	} else {
		fmt.Fprintf(out, "objects: %d, %s", r.Objects, sizeText(r.Bytes))
		for _, state := range slices.Sorted(maps.Keys(r.States)) {
			fmt.Fprintf(out, "; %s %d", printable(strings.ReplaceAll(state, "_", " ")), r.States[state])
		}
		fmt.Fprintf(out, "; under way %d; not wanted by the source %d\n", r.UnderWay, r.NotWanted)
	}
	if len(r.Findings) > 0 {
		t := table(out)
		fmt.Fprintln(t, "WHAT\tOBJECT\tWRITTEN\tBYTES\tWHY")
		for _, f := range r.Findings[:min(len(r.Findings), shownFindings)] {
			why := f.Detail
			if f.Code != "" {
				why = strings.TrimSuffix(f.Code+": "+why, ": ")
			}
			if f.Requeued {
				why = strings.TrimPrefix(why+"; announced again", "; ")
			}
			written := "-"
			if !f.Written.IsZero() {
				written = f.Written.UTC().Format(time.DateTime)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\n", printable(f.What), printable("s3://"+f.Bucket+"/"+f.Key), written, f.Size, printable(why))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if more := uint64(max(0, len(r.Findings)-shownFindings)); more > 0 {
		fmt.Fprintf(out, "… %d more: --json prints them\n", more)
	}
	if r.Cut > 0 {
		fmt.Fprintf(out, "%d more had no room in the report: compare a shorter time\n", r.Cut)
	}
	switch {
	case result.Complete && r.NoLedger:
		_, err = fmt.Fprintln(out, "every log file is there as it was signed")
	case result.Complete:
		_, err = fmt.Fprintln(out, "nothing is missing")
	case r.Requeued > 0:
		_, err = fmt.Fprintf(out, "%d missing, %d of them announced again: compare once more when they are through\n", r.Missing, r.Requeued)
	case r.Missing > 0:
		_, err = fmt.Fprintf(out, "%d missing\n", r.Missing)
	}
	return err
}
