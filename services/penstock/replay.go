package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/deliver"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/operate/replay"
	"github.com/penstock/penstock/topology"
)

// replayFlags say what is replayed, and where to.
type replayFlags struct {
	busFlags
	from, to, destination, file, object, text, where, reason, goOn string
	types, sources                                                 []string
	rate                                                           float64
	reparse, dryRun, yes, detach, asJSON                           bool
}

func newReplay() *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use: "replay", Args: exactly(0),
		Short: "Send events of the log to one destination once more, or parse records again",
		Long: `Counts the events that fit, asks back, and sends them to one destination once more:
beside the live events, through the same kind of sink with the same settings, and
without the place that the destination has in the log. The destination's own types,
expression and masks hold. Each event carries the id of the replay wherever the
destination has room for it, e.g. as the member "replay" of an envelope or the header
Penstock-Replay.

The replay is a job of a process that has the destination: it goes on when this command
ends, and where it was when that process ends. Towards the destination it is at least
once. While the destination is paused or down the replay waits; the event log is kept
for it until it is done or cancelled, or the log is nine tenths full. See: penstock jobs
--help.

--to-file sends to a destination that is in no configuration of a process that runs: the
only one in the section destinations of that file. This command does the work then, and
goes on where it was with --continue.

--from and --to are about the time at which the log stored the events. What the log does
not have any more is named.

With --reparse the raw records are taken, which the stream RECORDS keeps for a while, and
pass parse, dedupe and route again, e.g. after a parser was mended: apart from live
events, in a dedupe set of their own. Without --to-destination the events enter the
log for all destinations.`,
		Example: `  penstock replay --to-destination siem --from 2026-05-01T10:00:00Z --to 2026-05-01T12:00:00Z --dry-run
  penstock replay --to-destination siem --from 6h --type 'cloud.aws.cloudtrail.>' --rate 5000 --reason "index lost, CHG-1234"
  penstock replay --to-destination siem --where 'event.account == "123456789012"' --yes --detach
  penstock replay --to-file forensics.yaml --object 's3://logs/AWSLogs/123456789012/*' --store penstock-data
  penstock replay --reparse --source vpc --from 30m --to-destination siem`,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.destination, "to-destination", "", "name of a destination that a process has")
	flags.StringVar(&f.file, "to-file", "", "configuration file with one destination, which this command delivers to")
	flags.StringVar(&f.from, "from", "", "when it was stored, from when on: a time as 2026-01-31T00:00:00Z, a day, or how long ago, e.g. 6h (default: the oldest that is kept)")
	flags.StringVar(&f.to, "to", "", "until when, not included; like --from (default: now)")
	flags.StringArrayVar(&f.types, "type", nil, "event types, with * for one word and > for the rest; may be repeated")
	flags.StringArrayVar(&f.sources, "source", nil, "source that it came from; may be repeated")
	flags.StringVar(&f.object, "object", "", "what it came from: s3://bucket/key, whose key may end in *, or the id of an SQS message")
	flags.StringVar(&f.text, "text", "", "what a document has somewhere")
	flags.StringVar(&f.where, "where", "", "CEL expression over event.id, type, time, source, account, region and doc")
	flags.Float64Var(&f.rate, "rate", 0, "events (with --reparse: records) a second at most; 0 is as fast as it goes")
	flags.BoolVar(&f.reparse, "reparse", false, "parse the raw records again, instead of sending the events of the log")
	flags.BoolVar(&f.dryRun, "dry-run", false, "count only")
	flags.BoolVarP(&f.yes, "yes", "y", false, "do not ask back")
	flags.BoolVar(&f.detach, "detach", false, "do not wait for the job")
	flags.StringVar(&f.goOn, "continue", "", "with --to-file: the id of a replay to go on with, whose command has ended")
	flags.StringVar(&f.reason, "reason", "", "why, for the audit")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
	return cmd
}

// check tells what does not go together.
func (f *replayFlags) check() error {
	switch {
	case f.file != "" && f.destination != "":
		return usageError{errors.New("use --to-destination or --to-file, not both")}
	case f.file != "" && f.reparse:
		return usageError{errors.New("--reparse goes through the stages that run: use --to-destination, or no destination for all")}
	case f.file != "" && f.detach:
		return usageError{errors.New("--to-file is done by this command: it cannot be left with --detach")}
	case f.goOn != "" && f.file == "":
		return usageError{errors.New("--continue needs --to-file; others go on with: penstock jobs resume")}
	case f.file == "" && f.destination == "" && !f.reparse:
		return usageError{errors.New("say where to, with --to-destination or --to-file; there are: penstock destinations status")}
	case f.reparse && (len(f.types) > 0 || f.where != "" || f.text != ""):
		return usageError{errors.New("records have no types and no fields yet: with --reparse use --source, --object, --from and --to")}
	}
	return nil
}

// usage makes what the user has written wrong a wrong usage.
func usage(err error) error {
	code := fault.CodeOf(err)
	if strings.HasPrefix(code, "condition.") || strings.HasPrefix(code, "selection.") || strings.HasPrefix(code, "replay.") && code != "replay.empty" {
		return usageError{err}
	}
	return err
}

func (f *replayFlags) run(cmd *cobra.Command) error {
	if err := f.check(); err != nil {
		return err
	}
	now := time.Now()
	var span jobs.Span
	var err error
	if span.From, err = instant(f.from, now); err != nil {
		return usageError{fmt.Errorf("--from %w", err)}
	}
	if span.To, err = instant(f.to, now); err != nil {
		return usageError{fmt.Errorf("--to %w", err)}
	}
	bus, _, err := f.connect(cmd.Context())
	if err != nil {
		return err
	}
	defer bus.Close()
	if f.reparse {
		return f.records(cmd, bus, jobs.Reparse{Span: span, Sources: f.sources, Object: f.object, Destination: f.destination, Rate: f.rate})
	}
	return f.events(cmd, bus, jobs.Replay{
		Events:      jobs.Events{Span: span, Types: f.types, Sources: f.sources, Object: f.object, Text: f.text, Where: f.where},
		Destination: f.destination, Rate: f.rate,
	})
}

// events replays events of the log.
func (f *replayFlags) events(cmd *cobra.Command, bus *topology.Bus, spec jobs.Replay) error {
	ctx := cmd.Context()
	var lens replay.Lens
	var workers []topology.JobWorker
	var err error
	if f.file != "" {
		var d deliver.Destination
		if d, workers, err = f.adHoc(bus); err != nil {
			return err
		}
		spec.Destination, spec.AdHoc, lens = d.Name, true, replay.Lens{Types: d.Types, Where: d.Where}
		if f.goOn != "" {
			return f.again(cmd, bus, d.Name, workers)
		}
	} else if lens, err = replay.Destination(ctx, bus, spec.Destination); err != nil {
		return usage(err)
	}
	if err := replay.Check(spec); err != nil {
		return usage(err)
	}
	counts, err := f.count(cmd, func(progress func(done, total uint64)) (replay.Counts, error) {
		return replay.CountFor(ctx, bus, spec.Events, lens, progress)
	})
	if err != nil {
		return usage(err)
	}
	if f.dryRun {
		return f.report(cmd.OutOrStdout(), &counts, "events")
	}
	if err := f.agree(cmd, &counts, "events", replay.What(spec)); err != nil {
		return err
	}
	counts.Into(&spec)
	job, err := replay.Start(ctx, bus, spec, operator(), "command", f.reason)
	if err != nil {
		return usage(err)
	}
	return f.follow(cmd, bus, job, workers)
}

// records has records parsed again.
func (f *replayFlags) records(cmd *cobra.Command, bus *topology.Bus, spec jobs.Reparse) error {
	ctx := cmd.Context()
	if spec.Destination != "" {
		if _, err := replay.Destination(ctx, bus, spec.Destination); err != nil {
			return usage(err)
		}
	}
	counts, err := f.count(cmd, func(progress func(done, total uint64)) (replay.Counts, error) {
		return replay.CountRecords(ctx, bus, spec, progress)
	})
	if err != nil {
		return usage(err)
	}
	if f.dryRun {
		return f.report(cmd.OutOrStdout(), &counts, "records")
	}
	if err := f.agree(cmd, &counts, "records", replay.WhatRecords(spec)); err != nil {
		return err
	}
	counts.IntoReparse(&spec)
	job, err := replay.StartReparse(ctx, bus, spec, operator(), "command", f.reason)
	if err != nil {
		return usage(err)
	}
	return f.follow(cmd, bus, job, replay.Workers(bus))
}

// adHoc is the destination of --to-file, and what replays to it.
func (f *replayFlags) adHoc(bus *topology.Bus) (deliver.Destination, []topology.JobWorker, error) {
	file, err := loadFile(f.file)
	if err != nil {
		return deliver.Destination{}, nil, err
	}
	if len(file.Destinations) != 1 {
		return deliver.Destination{}, nil, usageError{fmt.Errorf("%s has %s: --to-file takes a file with one", f.file, plural(len(file.Destinations), "destination", "destinations"))}
	}
	d := file.Destinations[0]
	p := newPipeline(file, []topology.Stage{topology.Deliver}, slog.New(slog.DiscardHandler))
	w := p.replays(bus, func(name string) (deliver.Destination, bool, bool) { return d, false, name == d.Name }, p.log)
	w.Can = func(j *topology.Job) bool { return j.Kind == jobs.KindReplay && j.Needs == jobs.NeedsAdHoc } // followHere looks which
	return d, []topology.JobWorker{w}, nil
}

// again goes on with a replay whose command has ended.
func (f *replayFlags) again(cmd *cobra.Command, bus *topology.Bus, destination string, workers []topology.JobWorker) error {
	job, err := bus.Job(cmd.Context(), f.goOn)
	if err != nil {
		return usageError{err}
	}
	spec, err := jobs.Read[jobs.Replay](&job)
	switch {
	case err != nil:
		return err
	case job.Kind != jobs.KindReplay || !spec.AdHoc || spec.Destination != destination:
		return usageError{fmt.Errorf("job %s is no replay to the destination %s of %s", job.ID, destination, f.file)}
	}
	if job.State != topology.JobRunning || job.Wanted != topology.WantRun {
		if job, err = bus.ResumeJob(cmd.Context(), job.ID); err != nil {
			return err
		}
	}
	return f.follow(cmd, bus, job, workers)
}

// count counts, with a bar on a terminal.
func (f *replayFlags) count(cmd *cobra.Command, do func(progress func(done, total uint64)) (replay.Counts, error)) (replay.Counts, error) {
	var bar *progressbar.ProgressBar
	if w, ok := cmd.ErrOrStderr().(*os.File); ok && !f.asJSON && term.IsTerminal(int(w.Fd())) {
		bar = progressbar.NewOptions64(1, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription("counting"),
			progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
	}
	c, err := do(func(done, total uint64) {
		if bar != nil && total > 0 {
			bar.ChangeMax64(int64(min(total, math.MaxInt64)))
			_ = bar.Set64(int64(min(done, total))) // a terminal that is gone
		}
	})
	if bar != nil {
		_ = bar.Finish()
	}
	return c, err
}

// report prints what was counted.
func (f *replayFlags) report(w io.Writer, c *replay.Counts, unit string) error {
	if f.asJSON {
		return writeJSON(w, c)
	}
	t := table(w)
	for _, name := range slices.Sorted(maps.Keys(c.ByType)) {
		fmt.Fprintf(t, "%d\t%s\n", c.ByType[name], printable(name))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, printable(countText(c, unit)))
	return err
}

// countText says how much there is.
func countText(c *replay.Counts, unit string) string {
	text := fmt.Sprintf("%d %s of %s in %s", c.Events, unit, sizeText(c.Bytes), plural(int(min(c.Frames, math.MaxInt)), "frame", "frames"))
	if c.Events > 0 {
		text += fmt.Sprintf(", stored from %s to %s", c.First.Format(time.RFC3339), c.Last.Format(time.RFC3339))
	}
	if c.Failed > 0 {
		text += fmt.Sprintf("; the expression fails for %d others, which are left out", c.Failed)
	}
	if c.Gone != nil {
		text += "; " + c.Gone.String()
	}
	return text
}

// agree asks back.
func (f *replayFlags) agree(cmd *cobra.Command, c *replay.Counts, unit, what string) error {
	if c.Events == 0 {
		text := "nothing to replay: " + what
		if c.Gone != nil {
			text += "; " + c.Gone.String()
		}
		return replay.ErrEmpty.New(nil, "%s", printable(text))
	}
	if f.yes {
		if !f.asJSON {
			fmt.Fprintln(cmd.ErrOrStderr(), printable(countText(c, unit)))
		}
		return nil
	}
	return ask(cmd, countText(c, unit)+"\nReplay "+what+"?")
}

// follow shows the job until it ends.
func (f *replayFlags) follow(cmd *cobra.Command, bus *topology.Bus, job topology.Job, workers []topology.JobWorker) error {
	out := cmd.OutOrStdout()
	if f.detach {
		if f.asJSON {
			return writeJSON(out, job)
		}
		_, err := fmt.Fprintf(out, "job %s is made; look at it: penstock jobs follow %s\n", job.ID, job.ID)
		return err
	}
	return watchJob(cmd.Context(), out, cmd.ErrOrStderr(), bus, job, workers, f.asJSON)
}

// watchJob shows a job until it is over or paused, and prints what became of it.
func watchJob(ctx context.Context, out, progress io.Writer, bus *topology.Bus, job topology.Job, workers []topology.JobWorker, asJSON bool) error {
	if asJSON {
		progress = io.Discard
	}
	job, err := followHere(ctx, bus, job, workers, progress)
	if err != nil {
		if ctx.Err() != nil {
			return errSilent // it was said that the job stays
		}
		return err
	}
	if asJSON {
		err = writeJSON(out, job)
	} else {
		_, err = fmt.Fprintln(out, doneText(&job))
	}
	if err == nil && job.State == topology.JobFailed {
		return fmt.Errorf("job %s failed: %s", job.ID, printable(job.Error))
	}
	return err
}
