package main

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/operate/quarantine"
	"github.com/penstock/penstock/topology"
)

func newQuarantine() *cobra.Command {
	cmd := &cobra.Command{
		Use: "quarantine", Short: "Look at what could not be processed, redrive it or discard it",
		Long: `What a stage could not process is kept in quarantine with its bytes and its reason.
Once that is mended, redrive sends it to the stage that refused it, from where it goes
on as if it came for the first time. What fails again comes back with one attempt more.`,
		Example: `  penstock quarantine list --store penstock-data
  penstock quarantine redrive --code parse.bad_json --dry-run --store penstock-data`,
	}
	cmd.AddCommand(newQuarantineList(), newQuarantineShow(), newQuarantineRedrive(), newQuarantineDiscard(), newQuarantineExport())
	return cmd
}

// entryFlags say which entries are meant.
type entryFlags struct {
	filter   quarantine.Filter
	from, to string
}

func (f *entryFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.filter.Stage, "stage", "", "only of this stage")
	flags.StringVar(&f.filter.Source, "source", "", "only of this source")
	flags.StringVar(&f.filter.Code, "code", "", "only with this code")
	flags.StringVar(&f.filter.Destination, "destination", "", "only what this destination refused")
	flags.StringVar(&f.filter.Text, "text", "", "only with this text in the reason, the origin or the bytes, whatever the case of its letters")
	flags.StringVar(&f.from, "from", "", "only what was refused since then: 2h, or 2026-11-20T08:00:00Z")
	flags.StringVar(&f.to, "to", "", "only what was refused before then")
}

// read reads the times.
func (f *entryFlags) read(now time.Time) (quarantine.Filter, error) {
	for flag, at := range map[string]*time.Time{"from": &f.filter.From, "to": &f.filter.To} {
		text := map[string]string{"from": f.from, "to": f.to}[flag]
		if text == "" {
			continue
		}
		t, err := moment(text, now)
		if err != nil {
			return f.filter, usageError{fmt.Errorf("--%s %w", flag, err)}
		}
		*at = t
	}
	if !f.filter.From.IsZero() && !f.filter.To.IsZero() && !f.filter.From.Before(f.filter.To) {
		return f.filter, usageError{errors.New("--from is not before --to: nothing is in between")}
	}
	return f.filter, nil
}

// any tells whether something narrows the entries.
func (f *entryFlags) any() bool {
	e := f.filter
	return e.Stage != "" || e.Source != "" || e.Code != "" || e.Destination != "" || e.Text != "" || f.from != "" || f.to != ""
}

func newQuarantineList() *cobra.Command {
	var flags busFlags
	var which entryFlags
	var asJSON, counts bool
	limit := 100
	cmd := &cobra.Command{
		Use: "list", Args: exactly(0), Short: "List what was refused, the newest first, with the reasons",
		Example: `  penstock quarantine list --store penstock-data
  penstock quarantine list --facets --store penstock-data
  penstock quarantine list --stage parse --code parse.bad_json --from 24h --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := which.read(time.Now())
			if err != nil {
				return err
			}
			if limit < 1 {
				return usageError{errors.New("--limit: use 1 or more")}
			}
			bus, _, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			out := cmd.OutOrStdout()
			if counts {
				c, err := quarantine.FacetsOf(cmd.Context(), bus, f)
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(out, c)
				}
				return printFacets(out, c)
			}
			entries := []quarantine.Entry{}
			more := false
			for after := uint64(0); len(entries) < limit; {
				page, err := quarantine.List(cmd.Context(), bus, f, limit-len(entries), after)
				if err != nil {
					return err
				}
				entries = append(entries, page.Entries...)
				if more, after = page.More, page.Next; !more {
					break
				}
			}
			if asJSON {
				return writeJSON(out, entries)
			}
			return printEntries(out, entries, more)
		},
	}
	flags.add(cmd)
	which.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the reasons")
	cmd.Flags().BoolVar(&counts, "facets", false, "count them by stage, source, code, destination and day")
	cmd.Flags().IntVar(&limit, "limit", limit, "list at most so many")
	return cmd
}

func printEntries(out io.Writer, entries []quarantine.Entry, more bool) error {
	if len(entries) == 0 {
		_, err := fmt.Fprintln(out, "quarantine is empty, or nothing fits")
		return err
	}
	t := table(out)
	fmt.Fprintln(t, "ID\tTIME\tSTAGE\tSOURCE\tCODE\tATTEMPTS\tRECORD\tBYTES\tORIGIN")
	for i := range entries {
		e := &entries[i]
		record := "-"
		if e.Records > 0 {
			record = strconv.FormatUint(e.Record, 10)
		}
		stage := e.Stage
		if e.Destination != "" {
			stage += " " + e.Destination
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%d\t%s\n", printable(e.ID), e.Time.Format(time.DateTime), printable(stage), printable(e.Source),
			printable(e.Code), e.Attempts, record, e.Size, printable(e.Origin))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if more {
		_, err := fmt.Fprintln(out, "there are more: raise --limit, or count them with --facets")
		return err
	}
	return nil
}

func printFacets(out io.Writer, c quarantine.Facets) error {
	if c.Entries == 0 {
		_, err := fmt.Fprintln(out, "quarantine is empty, or nothing fits")
		return err
	}
	fmt.Fprintf(out, "%d entries, %d records, %s, from %s to %s UTC\n", c.Entries, c.Records, size(c.Bytes), c.First.Format(time.DateTime), c.Last.Format(time.DateTime))
	t := table(out)
	for _, facet := range []struct {
		name   string
		counts []quarantine.Count
	}{
		{"STAGE", c.ByStage}, {"SOURCE", c.BySource}, {"CODE", c.ByCode}, {"DESTINATION", c.ByDestination}, {"DAY", c.ByDay},
	} {
		if len(facet.counts) == 0 {
			continue
		}
		fmt.Fprintf(t, "\n%s\tENTRIES\tRECORDS\tBYTES\n", facet.name)
		for _, n := range facet.counts {
			fmt.Fprintf(t, "%s\t%d\t%d\t%s\n", printable(n.Name), n.Entries, n.Records, size(n.Bytes))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if c.Liftable+c.Blocked > 0 {
		fmt.Fprintln(out)
	}
	if c.Liftable > 0 {
		fmt.Fprintf(out, "%d failed over a limit: if they are genuine, redrive them with --allow-once\n", c.Liftable)
	}
	if c.Blocked > 0 {
		fmt.Fprintf(out, "%d cannot be redriven as they are: penstock quarantine show tells why\n", c.Blocked)
	}
	return nil
}

func newQuarantineShow() *cobra.Command {
	var flags busFlags
	var rawBytes, asJSON bool
	cmd := &cobra.Command{
		Use: "show ID", Args: exactly(1), Short: "Show one entry with its reason, where a redrive sends it, and its bytes",
		Example: `  penstock quarantine show 0a1b2c --store penstock-data
  penstock quarantine show 0a1b2c --raw --store penstock-data > record.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			bus, _, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			e, err := quarantine.Get(cmd.Context(), bus, args[0])
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if rawBytes {
				_, err := out.Write(e.Payload)
				return err
			}
			if asJSON {
				return writeJSON(out, e)
			}
			payload := e.Payload
			e.Payload = nil
			if err := printEntry(out, &e); err != nil {
				return err
			}
			return showPayload(out, payload)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&rawBytes, "raw", false, "print the bytes alone, as they are")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the bytes in base64")
	return cmd
}

// printEntry prints what there is to know, a line each.
func printEntry(out io.Writer, e *quarantine.Entry) error {
	t := table(out)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, strings.ReplaceAll(printable(value), "\n", " "))
		}
	}
	line("id", e.ID)
	line("time", e.Time.Format(time.RFC3339))
	line("stage", e.Stage)
	line("source", e.Source)
	line("destination", e.Destination)
	line("code", e.Code)
	line("reason", e.Reason)
	line("fix", e.Fix)
	line("origin", e.Origin)
	if e.Records > 0 {
		line("records", fmt.Sprintf("%d, from ordinal %d on", e.Records, e.Record))
	}
	if e.Offset >= 0 {
		line("bytes at", fmt.Sprintf("%d, %d of them", e.Offset, e.Length))
	}
	line("attempts", strconv.FormatUint(uint64(e.Attempts), 10))
	line("holds", e.Holds)
	line("format", e.Format)
	line("event id", e.EventID)
	line("event type", e.EventType)
	if e.EventTime != nil {
		line("event time", e.EventTime.Format(time.RFC3339Nano))
	}
	line("account", e.Account)
	line("region", e.Region)
	line("trace", e.Trace)
	line("penstock", e.Version)
	line("redrive", e.Redrive)
	line("no redrive", e.Blocked)
	if e.Liftable {
		line("limit", "can be lifted for one time: penstock quarantine redrive "+e.ID+" --allow-once")
	}
	if e.Cut {
		line("cut", fmt.Sprintf("only the first %d bytes were kept", e.Size))
	}
	fmt.Fprintln(t)
	return t.Flush()
}

// deedFlags are those of commands that do something with entries.
type deedFlags struct {
	busFlags
	entryFlags
	spec                             quarantine.Redrive
	all, dryRun, yes, detach, asJSON bool
	reason                           string
}

func (d *deedFlags) addTo(cmd *cobra.Command, verb string) {
	d.busFlags.add(cmd)
	d.entryFlags.add(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&d.all, "all", false, verb+" all that is there")
	flags.BoolVar(&d.dryRun, "dry-run", false, "only say how many it would concern")
	flags.Float64Var(&d.spec.Rate, "rate", 0, "at most so many entries a second; 0 sets no limit")
	flags.StringVar(&d.reason, "reason", "", "why, for the audit")
	flags.BoolVarP(&d.yes, "yes", "y", false, "do not ask back")
	flags.BoolVar(&d.detach, "detach", false, "leave the job to a penstock that runs, and do not wait for it")
	flags.BoolVar(&d.asJSON, "json", false, "print JSON")
}

// run does what the command is for.
func (d *deedFlags) run(cmd *cobra.Command, kind string, ids []string) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	f, err := d.read(time.Now())
	if err != nil {
		return err
	}
	switch {
	case len(ids) > 0 && (d.any() || d.all):
		return usageError{errors.New("give ids, or filters, or --all")}
	case len(ids) == 0 && !d.any() && !d.all:
		return usageError{fmt.Errorf("say which entries to %s: ids, filters such as --code, or --all", kind)}
	}
	if !d.dryRun {
		if err := quarantine.Check(kind, d.spec, d.reason); err != nil {
			return usageError{err}
		}
	}
	bus, _, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer bus.Close()
	for _, id := range ids {
		e, err := quarantine.Get(ctx, bus, id)
		if err != nil {
			return err
		}
		f.IDs = append(f.IDs, e.ID)
	}
	counts, err := quarantine.FacetsOf(ctx, bus, f)
	if err != nil {
		return err
	}
	if d.dryRun || counts.Entries == 0 {
		if d.asJSON {
			return writeJSON(out, counts)
		}
		return printFacets(out, counts)
	}
	if !d.yes {
		if !d.asJSON {
			if err := printFacets(out, counts); err != nil {
				return err
			}
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s%s %s? [y/N] ", strings.ToUpper(kind[:1]), kind[1:], plural(int(counts.Entries), "entry", "entries"))
		line, _ := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 1024)).ReadString('\n')
		if word := strings.ToLower(strings.TrimSpace(line)); word != "y" && word != "yes" {
			return usageError{errors.New("nothing was done: say y, or use --yes")}
		}
	}
	d.spec.Entries, d.spec.Until = f, counts.Until
	start := quarantine.StartRedrive
	if kind == jobs.KindDiscard {
		start = quarantine.StartDiscard
	}
	job, err := start(ctx, bus, d.spec, operator(), "command", d.reason)
	if err != nil {
		return err
	}
	if d.detach {
		if d.asJSON {
			return writeJSON(out, job)
		}
		_, err := fmt.Fprintf(out, "job %s; see penstock jobs follow %s\n", job.ID, job.ID)
		return err
	}
	job, err = followHere(ctx, bus, job, quarantine.Workers(bus), cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	return d.report(out, job, kind)
}

// report says how it ended.
func (d *deedFlags) report(out io.Writer, job topology.Job, kind string) error {
	p := job.Progress
	if d.asJSON {
		if err := writeJSON(out, job); err != nil {
			return err
		}
	} else {
		done := map[string]string{jobs.KindRedrive: "redriven", jobs.KindDiscard: "discarded"}[kind]
		fmt.Fprintf(out, "job %s is %s: %d of %d entries %s\n", job.ID, job.State, p.Done-p.Failed, p.Total, done)
		for _, text := range []string{p.Note, job.Error} {
			if text != "" {
				fmt.Fprintln(out, printable(text))
			}
		}
		if p.Failed > 0 {
			fmt.Fprintf(out, "%d stay in quarantine\n", p.Failed)
		}
	}
	if job.State != topology.JobDone || p.Failed > 0 {
		return errSilent
	}
	return nil
}

func newQuarantineRedrive() *cobra.Command {
	d := &deedFlags{}
	cmd := &cobra.Command{
		Use: "redrive [ID...]", Short: "Send entries to the stage that refused them",
		Long: `Each entry goes to the stage that refused it, and on from there: an object is read
again, and only the records that were refused are taken from it; a record is parsed
again; an event goes through the rules again, or to the one destination that refused
it, with the id that it had. An entry is deleted once that is durable. What fails again
comes back as a new entry with one attempt more, and is not taken up again by the same
job. What cannot go anywhere, because its source or its destination is no longer
configured, stays, and the reason is shown.

--allow-once lifts the limit over which an entry failed (fetch.bomb, fetch.too_large,
fetch.too_many_bad_records, framing.record_too_large, ingest.too_many_bad_records) for
this one time, for these entries.

It is done by a job: penstock run or penstock console go on with it when this command
ends, and so does this command itself while it lives.`,
		Example: `  penstock quarantine redrive 0a1b2c --store penstock-data
  penstock quarantine redrive --code parse.bad_json --dry-run --store penstock-data
  penstock quarantine redrive --destination siem --rate 200 --yes --reason "index is back, CHG-1234" --store penstock-data
  penstock quarantine redrive --code fetch.bomb --allow-once --store penstock-data`,
		RunE: func(cmd *cobra.Command, args []string) error { return d.run(cmd, jobs.KindRedrive, args) },
	}
	d.addTo(cmd, "redrive")
	cmd.Flags().BoolVar(&d.spec.AllowOnce, "allow-once", false, "lift the limits over which they failed, for this time")
	return cmd
}

func newQuarantineDiscard() *cobra.Command {
	d := &deedFlags{}
	cmd := &cobra.Command{
		Use: "discard [ID...]", Short: "Throw entries away, for a reason",
		Long: `Discarded entries are gone for ever; the audit keeps who did that, when, how many and
for what reason, and the ledger that they were discarded. Export them first if they may
be asked for.`,
		Example: `  penstock quarantine discard 0a1b2c --reason "test file of the vendor" --store penstock-data
  penstock quarantine discard --source trial --yes --reason "trial is over" --store penstock-data`,
		RunE: func(cmd *cobra.Command, args []string) error { return d.run(cmd, jobs.KindDiscard, args) },
	}
	d.addTo(cmd, "discard")
	return cmd
}

func newQuarantineExport() *cobra.Command {
	var flags busFlags
	var which entryFlags
	file := ""
	cmd := &cobra.Command{
		Use: "export", Args: exactly(0), Short: "Write entries with their bytes to a file, a JSON document a line",
		Example: `  penstock quarantine export --store penstock-data > quarantine.ndjson
  penstock quarantine export --stage parse --output refused.ndjson --store penstock-data`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			f, err := which.read(time.Now())
			if err != nil {
				return err
			}
			bus, _, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			w := cmd.OutOrStdout()
			if file != "" {
				// Payloads are as confidential as the events themselves.
				to, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				if err != nil {
					return usageError{fmt.Errorf("--output: %w", err)}
				}
				defer func() { err = errors.Join(err, to.Close()) }()
				w = to
			}
			// Written down first: who takes bytes out of the quarantine is worth knowing.
			counts, err := quarantine.FacetsOf(cmd.Context(), bus, f)
			if err != nil {
				return err
			}
			if err := bus.WriteAudit(cmd.Context(), topology.Deed{
				By: operator(), Via: "command", Action: "quarantine.export", What: "export " + quarantine.What(f), Count: counts.Entries,
			}); err != nil {
				return err
			}
			buffered := bufio.NewWriterSize(w, 256<<10)
			n, err := quarantine.Export(cmd.Context(), bus, f, harmlessLines{buffered})
			if err = errors.Join(err, buffered.Flush()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "%d entries written\n", n)
			return err
		},
	}
	flags.add(cmd)
	which.add(cmd)
	cmd.Flags().StringVarP(&file, "output", "o", "", "write to this new file instead of the standard output")
	return cmd
}

// showPayload prints text as text and the rest as a hex dump, at most 4 KiB.
func showPayload(w io.Writer, payload []byte) error {
	const most = 4 << 10
	part := payload[:min(len(payload), most)]
	text := printable(string(part))
	if strings.Count(text, "·") > len(text)/10 {
		text = hex.Dump(part)
	}
	if _, err := fmt.Fprintln(w, text); err != nil {
		return err
	}
	if len(payload) > most {
		_, err := fmt.Fprintf(w, "… %d more bytes: --raw prints all\n", len(payload)-most)
		return err
	}
	return nil
}

// printable keeps what a stranger wrote from controlling the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) && r != '\n' && r != '\t' {
			return '·'
		}
		return r
	}, s)
}
