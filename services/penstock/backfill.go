package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/operate/backfill"
	"github.com/penstock/penstock/topology"
)

// readFlags say what of a source is to be read.
type readFlags struct {
	source, from, to string
	rate             float64
}

func (f *readFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.from, "from", "", "from when on: a time as 2026-01-31T00:00:00Z, a day as 2026-01-31, or how long ago, e.g. 48h")
	cmd.Flags().StringVar(&f.to, "to", "", "until when, not included; like --from (default now)")
	cmd.Flags().Float64Var(&f.rate, "rate", 0, "at most so many objects, or calls to an API, a second (default as fast as the pipeline has room)")
}

// spec makes a spec of the flags and of s3://bucket/prefix, "" for an API.
func (f *readFlags) spec(object string, file *File) (jobs.Backfill, error) {
	spec := jobs.Backfill{Source: f.source, Rate: f.rate}
	if f.rate < 0 {
		return spec, usageError{errors.New("--rate: use a number above 0")}
	}
	now := time.Now().UTC()
	var err error
	if spec.From, err = instant(f.from, now); err != nil {
		return spec, usageError{fmt.Errorf("--from %w", err)}
	}
	if spec.To, err = instant(f.to, now); err != nil {
		return spec, usageError{fmt.Errorf("--to %w", err)}
	}
	if object != "" {
		rest, ok := strings.CutPrefix(object, "s3://")
		if spec.Bucket, spec.Prefix, _ = strings.Cut(rest, "/"); !ok || spec.Bucket == "" {
			return spec, usageError{fmt.Errorf("%q: write it as s3://bucket/prefix", object)}
		}
		if err := sources.CheckPrefix(spec.Prefix); err != nil {
			return spec, usageError{fmt.Errorf("the prefix %q: %w; write it as in AWSLogs/*/CloudTrail/*/{yyyy}/{MM}/{dd}/", spec.Prefix, err)}
		}
	}
	if err := f.find(&spec, file); err != nil {
		return spec, err
	}
	if err := backfill.Check(spec); err != nil {
		return spec, usageError{err}
	}
	return spec, nil
}

// find names the source where the configuration leaves no doubt.
func (f *readFlags) find(spec *jobs.Backfill, file *File) error {
	var fit []string
	for _, s := range file.Sources {
		reader, objects := s.Options.(sources.ObjectReader)
		switch {
		case s.Name == spec.Source:
			if spec.Bucket != "" && (!objects || !reader.Allows(spec.Bucket)) {
				return usageError{fmt.Errorf("source %s does not read the bucket %s", s.Name, spec.Bucket)}
			}
			return nil
		case spec.Bucket != "" && objects && reader.Allows(spec.Bucket):
			fit = append(fit, s.Name)
		}
	}
	switch {
	case spec.Source != "" && len(file.Sources) > 0:
		return usageError{fmt.Errorf("the configuration has no source %s", spec.Source)}
	case spec.Source != "":
		return nil // the process that has it will say
	case len(fit) == 1:
		spec.Source = fit[0]
		return nil
	case len(fit) > 1:
		return usageError{fmt.Errorf("name one with --source: the bucket %s is read by %s", spec.Bucket, listed(fit))}
	}
	if spec.Bucket != "" && len(file.Sources) > 0 {
		return usageError{fmt.Errorf("no source of the configuration reads the bucket %s; name one with --source", spec.Bucket)}
	}
	return usageError{errors.New("name the source with --source: how objects are read, and in which format, is its configuration")}
}

// instant reads a time, a day, or how long ago; empty is the zero time.
func instant(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("%q: use a time as 2026-01-31T00:00:00Z, a day as 2026-01-31, or how long ago, e.g. 48h", s)
	}
	return t.UTC(), nil
}

// backfillResult is what the command prints as JSON.
type backfillResult struct {
	Counted *topology.Progress `json:"counted,omitempty"`
	Job     *topology.Job      `json:"job,omitempty"`
}

func newBackfill() *cobra.Command {
	var flags busFlags
	var read readFlags
	var reason string
	var dryRun, yes, noCount, detach, asJSON, skipKnown bool
	cmd := &cobra.Command{
		Use: "backfill [s3://BUCKET/PREFIX]", Args: atMostOne,
		Short: "Read older objects of a bucket, or a time range of an API, behind live traffic",
		Long: `The objects below a prefix are listed and announced to the stage fetch as if they had
just been written, or an API is asked for a time range. A process that runs the source
does so, as a job: it goes on when this command ends, and takes up its place when that
process dies.

Live traffic goes first: only a few objects are announced ahead, and none while a stage
or a destination is behind. What came live already is dropped as a duplicate, as long as
dedupe remembers it (dedupe.window); objects that the ledger knows as complete are left
out, so that older ones do not come twice. --skip-known=false reads them all again.

In a prefix * stands for one folder, and {yyyy}, {MM}, {dd} and {HH} for parts of a time
in UTC: then only the folders from --from to --to are listed. --from and --to are about
when objects were written, or when the events of an API happened.`,
		Example: `  penstock backfill s3://logs/AWSLogs/ --source trail --from 2026-01-01 --to 2026-02-01 --dry-run
  penstock backfill 's3://logs/AWSLogs/*/CloudTrail/*/{yyyy}/{MM}/{dd}/' --source trail --from 720h --rate 50
  penstock backfill --source trail-api --from 2026-01-01 --to 2026-01-08 --yes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			bus, file, err := flags.connect(ctx)
			if err != nil {
				return err
			}
			defer bus.Close()
			object := ""
			if len(args) > 0 {
				object = args[0]
			}
			spec, err := read.spec(object, &file)
			if err != nil {
				return err
			}
			if object == "" && spec.From.IsZero() {
				return usageError{errors.New("say from when on with --from")}
			}
			spec.SkipKnown = skipKnown && spec.Bucket != ""
			f := follower{bus: bus, out: cmd.ErrOrStderr(), quiet: asJSON}
			var result backfillResult
			if !noCount || dryRun {
				counted, err := count(ctx, bus, spec, &f)
				if err != nil {
					return err
				}
				result.Counted = &counted
				spec.Total, spec.TotalBytes = counted.Total, counted.Bytes
				if !asJSON {
					fmt.Fprintln(cmd.OutOrStdout(), countedText(spec, counted))
				}
				if dryRun || spec.Total == 0 {
					if asJSON {
						return writeJSON(cmd.OutOrStdout(), result)
					}
					return nil
				}
			}
			if !yes {
				if err := ask(cmd, fmt.Sprintf("Read %s?", amount(spec))); err != nil {
					return err
				}
			}
			job, err := backfill.Start(ctx, bus, spec, operator(), "command", reason)
			if err != nil {
				return err
			}
			if !detach {
				if job, err = f.follow(ctx, job); err != nil {
					return err
				}
			}
			result.Job = &job
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), result)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), doneText(&job))
			return err
		},
	}
	flags.add(cmd)
	read.add(cmd)
	cmd.Flags().StringVar(&read.source, "source", "", "the source as which it is read; with a configuration found by the bucket")
	cmd.Flags().BoolVar(&skipKnown, "skip-known", true, "leave out objects that the ledger knows as complete")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "count only")
	cmd.Flags().BoolVar(&noCount, "no-count", false, "do not count first: then there is no total and no time left")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask back")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait for the job")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the audit")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// count has a job count.
func count(ctx context.Context, bus *topology.Bus, spec jobs.Backfill, f *follower) (topology.Progress, error) {
	spec.Count = true
	job, err := backfill.Start(ctx, bus, spec, operator(), "command", "")
	if err != nil {
		return topology.Progress{}, err
	}
	f.cancel = true // nobody else has use for it
	job, err = f.follow(ctx, job)
	f.cancel = false
	p := job.Progress
	p.Total = max(p.Total, p.Done)
	return p, err
}

// amount says how much is to be read.
func amount(spec jobs.Backfill) string {
	switch {
	case spec.Bucket == "" && spec.Total > 0:
		return fmt.Sprintf("%s in %s", backfill.What(spec), plural(int(spec.Total), "piece", "pieces"))
	case spec.Bucket == "":
		return backfill.What(spec)
	case spec.Total > 0:
		return fmt.Sprintf("%s of %s (%s)", plural(int(spec.Total), "object", "objects"), sizeText(spec.TotalBytes), backfill.What(spec))
	}
	return "all of " + backfill.What(spec)
}

func countedText(spec jobs.Backfill, p topology.Progress) string {
	text := amount(spec)
	if spec.Total == 0 {
		text = "nothing to read: " + backfill.What(spec)
	}
	if p.Skipped > 0 {
		text += fmt.Sprintf("; %d left out", p.Skipped)
	}
	if p.Note != "" {
		text += "; " + p.Note
	}
	return printable(text)
}

// doneText says what became of a job.
func doneText(j *topology.Job) string {
	p := j.Progress
	text := fmt.Sprintf("job %s is %s", j.ID, j.State)
	if p.Done > 0 || j.State == topology.JobDone {
		text += fmt.Sprintf(": %d %s", p.Done, p.Unit)
		if p.Bytes > 0 {
			text += ", " + sizeText(p.Bytes)
		}
	}
	if !j.Started.IsZero() && !j.Ended.IsZero() {
		text += " in " + j.Ended.Sub(j.Started).Round(100*time.Millisecond).String()
	}
	if p.Note != "" {
		text += "; " + p.Note
	}
	return printable(text)
}

// sizeText writes bytes for people.
func sizeText(n uint64) string {
	const units = "KMGTP"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// ask asks back on the terminal.
func ask(cmd *cobra.Command, question string) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s [y/N] ", printable(question))
	line, _ := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 1024)).ReadString('\n')
	if word := strings.ToLower(strings.TrimSpace(line)); word != "y" && word != "yes" {
		return usageError{errors.New("nothing was done: say y, or use --yes")}
	}
	return nil
}

// follower shows how far a job is until it ends.
type follower struct {
	bus   *topology.Bus
	out   io.Writer
	quiet bool
	// cancel has the job cancelled when the command ends before it.
	cancel bool
}

// takenWithin is how long a job may wait for a process that can do it until that is said.
var takenWithin = 5 * time.Second

// follow waits until a job ends. A job that fails, or is paused, is an error.
func (f *follower) follow(ctx context.Context, job topology.Job) (topology.Job, error) {
	bar := f.bar(&job)
	ctx, end := whileAnswering(ctx, f.bus)
	defer end()
	watch, stop := context.WithCancel(ctx)
	defer stop()
	updates, id := make(chan topology.Job, 1), job.ID
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.bus.FollowJobs(watch, func(all []topology.Job) {
			now := topology.Job{} // it is gone
			if i := slices.IndexFunc(all, func(j topology.Job) bool { return j.ID == id }); i >= 0 {
				now = all[i]
			}
			select {
			case <-updates:
			default:
			}
			updates <- now
		})
	}()
	defer func() { stop(); <-done }()
	waits := time.NewTimer(takenWithin)
	defer waits.Stop()
	told := time.Now()
	for {
		select {
		case <-ctx.Done():
			f.end(bar)
			if errors.Is(context.Cause(ctx), errBusGone) {
				return job, jobKept(&job)
			}
			return job, f.leave(&job)
		case <-waits.C:
			if job.State == topology.JobWaiting && job.Tries == 0 && !f.quiet {
				fmt.Fprintln(f.out, printable(fmt.Sprintf("job %s waits for a process with %q: start penstock run with that source, or look for its name: penstock freshness", job.ID, job.Needs)))
			}
			if f.cancel && job.State == topology.JobWaiting && job.Tries == 0 {
				_ = f.leave(&job)
				return job, fmt.Errorf("no process on the bus takes up what needs %q: start penstock run with that source", job.Needs)
			}
		case now := <-updates:
			if now.ID == "" {
				f.end(bar)
				return job, errJobGone
			}
			job = now
			f.show(bar, &job, &told)
			if !job.Over() && job.State != topology.JobPaused {
				continue
			}
			f.end(bar)
			switch {
			case job.State == topology.JobPaused:
				return job, fmt.Errorf("job %s was paused; have it go on: penstock jobs resume %s, and come back to it: penstock jobs follow %s", id, id, id)
			case job.State == topology.JobFailed:
				return job, fmt.Errorf("job %s failed: %s", job.ID, printable(job.Error))
			case job.State == topology.JobCancelled:
				return job, fmt.Errorf("job %s was cancelled", job.ID)
			}
			return job, nil
		}
	}
}

// leave says how to come back to a job, or cancels it when it is of no use to others.
func (f *follower) leave(job *topology.Job) error {
	if f.cancel {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := f.bus.ChangeJob(ctx, job.ID, func(j *topology.Job) error {
			j.Wanted = topology.WantCancel
			if j.State == topology.JobWaiting {
				j.State, j.Ended = topology.JobCancelled, time.Now().UTC()
			}
			return nil
		})
		return errors.Join(errors.New("broken off"), err)
	}
	fmt.Fprintf(f.out, "job %s goes on without this command; come back to it: penstock jobs follow %s\n", job.ID, job.ID)
	return errSilent
}

// bar is a progress bar, nil where there is no terminal.
func (f *follower) bar(job *topology.Job) *progressbar.ProgressBar {
	file, ok := f.out.(*os.File)
	if f.quiet || !ok || !term.IsTerminal(int(file.Fd())) {
		return nil
	}
	total := int64(-1)
	if job.Progress.Total > 0 {
		total = int64(job.Progress.Total)
	}
	return progressbar.NewOptions64(total, progressbar.OptionSetWriter(file), progressbar.OptionSetDescription(job.Kind), progressbar.OptionShowCount(),
		progressbar.OptionShowIts(), progressbar.OptionSetItsString("objects"), progressbar.OptionSetWidth(30), progressbar.OptionThrottle(100*time.Millisecond))
}

// show shows how far a job is.
func (f *follower) show(bar *progressbar.ProgressBar, job *topology.Job, told *time.Time) {
	p := job.Progress
	switch {
	case f.quiet:
	case bar != nil:
		if p.Total > 0 && bar.GetMax64() != int64(p.Total) {
			bar.ChangeMax64(int64(p.Total))
		}
		bar.Describe(printable(job.Kind + " " + job.State))
		_ = bar.Set64(int64(p.Done)) // a terminal that is gone
	case time.Since(*told) >= 10*time.Second:
		*told = time.Now()
		line := fmt.Sprintf("%s: %d", job.State, p.Done)
		if p.Total > 0 {
			line += fmt.Sprintf(" of %d", p.Total)
		}
		line += fmt.Sprintf(" %s, %s, %.1f/s", p.Unit, sizeText(p.Bytes), p.Rate)
		if left := job.Left(); left > 0 {
			line += ", " + left.String() + " left"
		}
		if p.Note != "" {
			line += "; " + p.Note
		}
		if job.Error != "" {
			line += "; " + job.Error
		}
		fmt.Fprintln(f.out, printable(line))
	}
}

func (f *follower) end(bar *progressbar.ProgressBar) {
	if bar != nil {
		_ = bar.Exit() // a terminal that is gone
		fmt.Fprintln(f.out)
	}
}
