package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/topology"
)

func newJobs() *cobra.Command {
	cmd := &cobra.Command{
		Use: "jobs", Args: exactly(0),
		Short: "List, follow, pause, resume and cancel long work: replays, redrives, backfills, reconciles",
		Long: `Long work that an operator asks for is a job on the bus. It outlives the command that
asked for it: a process that can do it takes it up, and another one goes on where that
was when it ends. An id may be shortened to its end, e.g. 4kd81x for 20260501-4kd81x.`,
		Example: "  penstock jobs list --store penstock-data\n  penstock jobs follow 4kd81x --store penstock-data",
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(newJobsList(), newJobsShow(), newJobsFollow(),
		steerJob("pause", "Have a job wait; it keeps what it has done, and its place", "paused",
			func(ctx context.Context, bus *topology.Bus, id string) (topology.Job, error) {
				return bus.PauseJob(ctx, id)
			}),
		steerJob("resume", "Have a job go on that is paused or has failed", "resumed",
			func(ctx context.Context, bus *topology.Bus, id string) (topology.Job, error) {
				return bus.ResumeJob(ctx, id)
			}),
		steerJob("cancel", "End a job for good; what it has done stays done", "cancelled",
			func(ctx context.Context, bus *topology.Bus, id string) (topology.Job, error) {
				return bus.CancelJob(ctx, id)
			}))
	return cmd
}

func newJobsList() *cobra.Command {
	var flags busFlags
	var all, asJSON bool
	var kind string
	cmd := &cobra.Command{
		Use: "list", Args: exactly(0),
		Short:   "List jobs, the newest first: those that are not over, and with --all the others",
		Example: "  penstock jobs list --store penstock-data\n  penstock jobs list --all --kind replay --nats nats://nats:4222 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			bus, _, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			known, err := bus.Jobs(cmd.Context())
			if err != nil {
				return err
			}
			list := []topology.Job{}
			for _, j := range known {
				if (all || !j.Over()) && (kind == "" || kind == j.Kind) {
					list = append(list, j)
				}
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			return printJobs(cmd.OutOrStdout(), list)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "also those that are over")
	cmd.Flags().StringVar(&kind, "kind", "", "only these: replay, reparse, redrive, discard, backfill or reconcile")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printJobs(w io.Writer, list []topology.Job) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "there are no jobs")
		return err
	}
	t := table(w)
	fmt.Fprintln(t, "ID\tKIND\tSTATE\tDONE\tRATE\tLEFT\tBY\tWHAT")
	for _, j := range list {
		done := strconv.FormatUint(j.Progress.Done, 10)
		if j.Progress.Total > 0 {
			done += fmt.Sprintf("/%d", j.Progress.Total)
		}
		rate, left := "-", "-"
		if j.State == topology.JobRunning && j.Progress.Rate > 0 {
			rate = fmt.Sprintf("%.0f/s", j.Progress.Rate)
		}
		if d := j.Left(); d > 0 {
			left = d.String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s %s\t%s\t%s\t%s\t%s\n", j.ID, j.Kind, jobState(&j), done, j.Progress.Unit, rate, left, printable(j.By), printable(j.What))
	}
	return t.Flush()
}

// jobState says how a job is, and what is asked of it.
func jobState(j *topology.Job) string {
	state := j.State
	switch {
	case j.Over():
	case j.Wanted == topology.WantCancel:
		state += ", to be cancelled"
	case j.Wanted == topology.WantPause && j.State != topology.JobPaused:
		state += ", to be paused"
	}
	if silent := j.Silent(time.Now()); silent > time.Minute {
		state += ", no sign of life for " + silent.Round(time.Second).String()
	}
	return state
}

func newJobsShow() *cobra.Command {
	var flags busFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show ID", Args: exactly(1),
		Short:   "Show all that is known of a job",
		Example: "  penstock jobs show 4kd81x --store penstock-data",
		RunE: func(cmd *cobra.Command, args []string) error {
			bus, _, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			j, err := bus.Job(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), j)
			}
			return printJob(cmd.OutOrStdout(), &j)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printJob(w io.Writer, j *topology.Job) error {
	t := table(w)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, printable(value))
		}
	}
	at := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339)
	}
	line("id", j.ID)
	line("kind", j.Kind)
	line("what", j.What)
	line("state", jobState(j))
	line("note", j.Progress.Note)
	line("error", j.Error)
	p := j.Progress
	done := fmt.Sprintf("%d %s", p.Done, p.Unit)
	if p.Total > 0 {
		done = fmt.Sprintf("%d of %d %s (%.1f %%)", p.Done, p.Total, p.Unit, 100*float64(p.Done)/float64(p.Total))
	}
	line("done", done)
	if p.Bytes > 0 {
		line("bytes", sizeText(p.Bytes))
	}
	if p.Failed > 0 {
		line("refused", fmt.Sprintf("%d; see penstock quarantine list", p.Failed))
	}
	if p.Skipped > 0 {
		line("left out", strconv.FormatUint(p.Skipped, 10))
	}
	if j.State == topology.JobRunning && p.Rate > 0 {
		line("rate", fmt.Sprintf("%.1f %s/s", p.Rate, p.Unit))
	}
	if left := j.Left(); left > 0 {
		line("left", left.String())
	}
	line("by", j.By)
	line("reason", j.Reason)
	line("needs", j.Needs)
	line("process", j.Runner)
	line("tries", strconv.Itoa(j.Tries))
	line("made", at(j.At))
	line("started", at(j.Started))
	if !j.Over() {
		line("tried again", at(j.NotUntil))
	}
	line("ended", at(j.Ended))
	line("details", string(j.Spec))
	return t.Flush()
}

func newJobsFollow() *cobra.Command {
	var flags busFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "follow ID", Args: exactly(1),
		Short: "Show how far a job is until it is over or paused",
		Long: `Shows how far a job is until it is over or paused. Ctrl-C ends this command, not the
job. The exit code is 1 when the job fails.`,
		Example: "  penstock jobs follow 4kd81x --store penstock-data",
		RunE: func(cmd *cobra.Command, args []string) error {
			bus, _, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			j, err := bus.Job(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return watchJob(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), bus, j, nil, asJSON)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// steerJob is a command that tells a job something.
func steerJob(verb, short, done string, do func(context.Context, *topology.Bus, string) (topology.Job, error)) *cobra.Command {
	var flags busFlags
	var yes, asJSON bool
	var reason string
	cmd := &cobra.Command{
		Use: verb + " ID", Args: exactly(1),
		Short:   short,
		Example: fmt.Sprintf("  penstock jobs %s 4kd81x --reason \"CHG-1234\" --store penstock-data", verb),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			bus, _, err := flags.connect(ctx)
			if err != nil {
				return err
			}
			defer bus.Close()
			j, err := bus.Job(ctx, args[0])
			if err != nil {
				return err
			}
			left := j.Progress.Total - min(j.Progress.Total, j.Progress.Done)
			if verb == "cancel" && !yes {
				question := fmt.Sprintf("Cancel job %s (%s)? %d %s are done", j.ID, j.What, j.Progress.Done, j.Progress.Unit)
				if left > 0 {
					question += fmt.Sprintf(", %d are not", left)
				}
				if err := ask(cmd, question+"."); err != nil {
					return err
				}
			}
			if err := bus.WriteAudit(ctx, topology.Deed{By: operator(), Via: "command", Action: "job." + verb, What: j.What, Count: left, Reason: reason, Job: j.ID}); err != nil {
				return err
			}
			if j, err = do(ctx, bus, j.ID); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), j)
			}
			text := fmt.Sprintf("job %s is %s", j.ID, jobState(&j))
			if j.State == topology.JobRunning {
				text = fmt.Sprintf("job %s is to be %s; its process does so in a moment", j.ID, done)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), printable(text))
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	if verb == "cancel" {
		cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask back")
	}
	return cmd
}
