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
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/known"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/services/operate/books"
	"github.com/penstock/penstock/topology"
)

func newLedger() *cobra.Command {
	var flags busFlags
	var filter books.Filter
	var asJSON, pulls bool
	var state, from, to string
	limit := 100
	cmd := &cobra.Command{
		Use: "ledger", Args: exactly(0),
		Short: "Add up what became of every record; exit code 1 when the books do not balance",
		Long: `Adds up the facts that every stage has left in the ledger: records cut = skipped +
quarantined + unique + duplicates; and what each destination confirmed against what
the event log holds for it. While events are under way they count as missing: ask
again when nothing is open, or look at what is --state overdue: for longer than 15
minutes.

The process that keeps the books answers: penstock run without --stage, or penstock
console. Where none runs, all facts that the ledger still has are read, which takes
its time. With --store, the books of a penstock that has ended are read as it left
them.

With a filter only the objects and messages are listed that it fits, newest first.`,
		Example: "  penstock ledger --store penstock-data\n  penstock ledger --nats nats://nats:4222 --state overdue --from 24h\n" +
			"  penstock ledger --source trail --object 2026/11/20 --limit 1000\n  penstock ledger --json | jq .total",
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case state == "overdue":
				filter.Overdue = true
			case state != "" && !slices.Contains(ledgerStates, state):
				return usageError{fmt.Errorf("--state %q: the states are %s", state, strings.Join(ledgerStates, ", "))}
			default:
				filter.State = ledger.State(state)
			}
			if limit < 1 {
				return usageError{errors.New("--limit must be 1 or more")}
			}
			for flag, at := range map[string]struct {
				text string
				into *time.Time
			}{"--from": {from, &filter.From}, "--to": {to, &filter.To}} {
				if at.text == "" {
					continue
				}
				t, err := moment(at.text, time.Now())
				if err != nil {
					return usageError{fmt.Errorf("%s %w", flag, err)}
				}
				*at.into = t
			}
			_, r, done, err := openBooks(cmd.Context(), &flags, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer done()
			if filter != (books.Filter{}) {
				return listPulls(cmd, r, filter, limit, asJSON)
			}
			return showBooks(cmd, r, pulls, asJSON)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&pulls, "pulls", false, "print a line for every object and message as well")
	cmd.Flags().StringVar(&filter.Source, "source", "", "list those of a source")
	cmd.Flags().StringVar(&state, "state", "", "list those that are "+strings.Join(ledgerStates, ", "))
	cmd.Flags().StringVar(&filter.Text, "object", "", "list those whose address has this in it, e.g. part of a key")
	cmd.Flags().StringVar(&from, "from", "", "list those first heard of since then: a time, or a duration back from now, e.g. 2h")
	cmd.Flags().StringVar(&to, "to", "", "list those first heard of before then")
	cmd.Flags().IntVar(&limit, "limit", limit, "list at most so many")
	return cmd
}

var ledgerStates = []string{"balanced", "unbalanced", "open", "partial", "overdue"}

// openBooks finds the books: in the process that keeps them, else in the database that a
// penstock which has ended left behind, else in what the ledger still has, which is
// folded into a database of our own meanwhile. bus is nil where none runs. Call done.
func openBooks(ctx context.Context, flags *busFlags, messages io.Writer) (bus *topology.Bus, r books.Reader, done func(), err error) {
	bus, file, err := flags.connect(ctx)
	if err != nil {
		if flags.nats != "" || flags.store == "" && file.Bus.Store == "" {
			return nil, nil, nil, err
		}
		left, readErr := books.OpenReadOnly(ctx, file.ledgerFolder())
		if readErr != nil {
			return nil, nil, nil, err
		}
		fmt.Fprintln(messages, "no penstock runs there: these are the books as it left them")
		return nil, left, func() { _ = left.Close() }, nil
	}
	r = books.Ask(bus)
	err = upToDate(ctx, bus, r)
	if err == nil {
		return bus, r, bus.Close, nil
	}
	if !errors.Is(err, known.ErrNoLedger) {
		bus.Close()
		return nil, nil, nil, err
	}
	dir, err := os.MkdirTemp("", "penstock-books-")
	if err != nil {
		bus.Close()
		return nil, nil, nil, err
	}
	b, err := books.Open(ctx, dir, books.Options{KeepBytes: 1 << 40, Log: slog.New(slog.DiscardHandler)})
	done = func() {
		if b != nil {
			_ = b.Close()
		}
		_ = os.RemoveAll(dir)
		bus.Close()
	}
	if err == nil {
		progress, end := bar(messages, "reading the ledger", "messages")
		err = b.CatchUp(ctx, bus, progress)
		end()
	}
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	return bus, b, done, nil
}

// upToDate waits, but not long, until the books have what the ledger has now.
func upToDate(ctx context.Context, bus *topology.Bus, r books.Reader) error {
	extent, err := bus.Extent(ctx, topology.Ledger)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(answerWithin); ; {
		s, err := r.Summary(ctx)
		if err != nil || s.Position+1 >= extent.Next || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// bar shows progress on a terminal, and nothing elsewhere. Call end.
func bar(w io.Writer, what, unit string) (progress books.Progress, end func()) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, func() {}
	}
	b := progressbar.NewOptions64(-1, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(what), progressbar.OptionShowCount(),
		progressbar.OptionShowIts(), progressbar.OptionSetItsString(unit), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
	return func(done, total uint64) {
		if int64(total) != b.GetMax64() && total > 0 {
			b.ChangeMax64(int64(total))
		}
		_ = b.Set64(int64(done))
	}, func() { _ = b.Finish() }
}

// balances is what penstock ledger prints as JSON.
type balances struct {
	books.Summary
	Sources []books.SourceBalance `json:"sources"`
	// Pulls, when they were asked for.
	Pulls []ledger.Pull `json:"pulls,omitempty"`
}

// shownProblems is how many problems of pulls are printed.
const shownProblems = 100

func showBooks(cmd *cobra.Command, r books.Reader, pulls, asJSON bool) error {
	ctx := cmd.Context()
	var all balances
	var err error
	if all.Summary, err = r.Summary(ctx); err != nil {
		return err
	}
	if all.Sources, err = r.Sources(ctx); err != nil {
		return err
	}
	err = eachPull(ctx, r, books.Filter{State: ledger.Unbalanced}, shownProblems, func(p *ledger.Pull) {
		for _, problem := range p.Problems {
			all.Problems = append(all.Problems, p.Name()+": "+problem)
		}
	})
	if err != nil {
		return err
	}
	if more := all.Total.Unbalanced - shownProblems; more > 0 {
		all.Problems = append(all.Problems, fmt.Sprintf("and %d more of the kind: penstock ledger --state unbalanced", more))
	}
	if pulls {
		all.Pulls = []ledger.Pull{}
		if err := eachPull(ctx, r, books.Filter{}, math.MaxInt, func(p *ledger.Pull) { all.Pulls = append(all.Pulls, *p) }); err != nil {
			return err
		}
		slices.Reverse(all.Pulls) // in the order in which they were first heard of
	}
	w := cmd.OutOrStdout()
	if asJSON {
		err = writeJSON(w, all)
	} else {
		err = printBooks(w, ledger.Report{
			Balanced: all.Balanced, Problems: all.Problems, Total: all.Total, Destinations: all.Destinations, Pulls: all.Pulls,
		}, all.Sources, pulls)
	}
	if err == nil && !asJSON {
		err = printSince(w, &all.Summary)
	}
	if err == nil && !all.Balanced {
		err = errSilent
	}
	return err
}

// printSince says since when, and how far the books are.
func printSince(w io.Writer, s *books.Summary) error {
	if s.Since.IsZero() {
		return nil
	}
	line := "so since " + s.Since.Format(time.RFC3339)
	grace := plural(int(books.Grace.Minutes()), "minute", "minutes")
	switch {
	case s.Overdue > 0:
		line += fmt.Sprintf("; %d for longer than %s, which something is wrong with: penstock ledger --state overdue", s.Overdue, grace)
	case s.Total.Unbalanced > 0:
		line += fmt.Sprintf("; none for longer than %s: what is under way does not balance yet", grace)
	}
	if s.Behind > 0 {
		line += fmt.Sprintf("; %d messages of the ledger are not read yet", s.Behind)
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

// eachPull calls f for those that a filter fits, newest first, at most limit.
func eachPull(ctx context.Context, r books.Reader, filter books.Filter, limit int, f func(*ledger.Pull)) error {
	for n := 0; n < limit; {
		filter.Limit = min(books.MaxPulls, limit-n)
		page, err := r.Pulls(ctx, filter)
		if err != nil {
			return err
		}
		for i := range page.Pulls {
			f(&page.Pulls[i])
		}
		n += len(page.Pulls)
		if page.Next == "" {
			return nil
		}
		filter.After = page.Next
	}
	return nil
}

// listPulls prints those that a filter fits; the exit code says whether one of them is
// unbalanced.
func listPulls(cmd *cobra.Command, r books.Reader, filter books.Filter, limit int, asJSON bool) error {
	pulls, unbalanced := []ledger.Pull{}, false
	err := eachPull(cmd.Context(), r, filter, limit, func(p *ledger.Pull) {
		pulls = append(pulls, *p)
		unbalanced = unbalanced || p.State == ledger.Unbalanced
	})
	if err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	if asJSON {
		err = writeJSON(w, pulls)
	} else {
		err = printPulls(w, pulls)
		for i := range pulls {
			for _, problem := range pulls[i].Problems {
				fmt.Fprintln(w, "problem:", printable(pulls[i].Name()+": "+problem))
			}
		}
		if len(pulls) == limit {
			fmt.Fprintf(cmd.ErrOrStderr(), "these are the newest %d; more with --limit\n", limit)
		}
	}
	if err == nil && unbalanced {
		err = errSilent
	}
	return err
}

// printPulls prints a line for each.
func printPulls(w io.Writer, pulls []ledger.Pull) error {
	p := table(w)
	fmt.Fprintln(p, "STATE\tSINCE\tRECORDS\tUNIQUE\tDUPLICATES\tMISSING\tSOURCE\tORIGIN")
	for i := range pulls {
		l := &pulls[i]
		since := l.First
		if !l.Since.IsZero() {
			since = l.Since
		}
		fmt.Fprintf(p, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", l.State, stamp(since), l.Records, l.Unique, l.Duplicates, l.Missing, printable(l.Source), printable(l.Origin))
	}
	return p.Flush()
}

// stamp is a time in a table.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

func addFacts(fold *ledger.Fold, m topology.Stored) error {
	facts, err := messages.DecodeFacts(m.Data)
	if err == nil {
		fold.Add(facts.Stage, facts)
	}
	return err
}

// printReport prints the books and whether they balance.
func printReport(w io.Writer, r ledger.Report, pulls bool) error {
	return printBooks(w, r, sourcesOf(r), pulls)
}

func printBooks(w io.Writer, r ledger.Report, sources []books.SourceBalance, pulls bool) error {
	if err := printTotals(w, r, sources); err != nil {
		return err
	}
	if pulls {
		fmt.Fprintln(w)
		if err := printPulls(w, r.Pulls); err != nil {
			return err
		}
	}
	for _, problem := range r.Problems {
		fmt.Fprintln(w, "problem:", printable(problem))
	}
	verdict := "the books balance"
	if !r.Balanced {
		verdict = "the books do NOT balance"
	}
	_, err := fmt.Fprintln(w, verdict)
	return err
}

// printSums prints the books, top down as the records went.
func printSums(w io.Writer, r ledger.Report) error { return printTotals(w, r, sourcesOf(r)) }

func printTotals(w io.Writer, r ledger.Report, sources []books.SourceBalance) error {
	t := table(w)
	total := r.Total
	line := func(what string, n uint64, note string) { fmt.Fprintf(t, "%s\t%12d\t%s\n", what, n, note) }
	counts := func(title string, m map[string]uint64) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			line("  "+title+" "+k, m[k], "")
		}
	}
	state := fmt.Sprintf("%d open", total.Open)
	if total.Partial > 0 {
		state += fmt.Sprintf(", %d of which not all facts are kept", total.Partial)
	}
	fmt.Fprintf(t, "objects and messages\t%12d\t%s\n", total.Pulls, state)
	counts("announced as", total.Announced)
	counts("ended", total.Ended)
	counts("refused whole:", total.PullsQuarantined)
	counts("skipped whole:", total.PullsSkipped)
	line("records in", total.Records, fmt.Sprintf("%s as stored, %s unpacked", size(total.Bytes), size(total.RawBytes)))
	counts("skipped", total.Skipped)
	counts("quarantined", total.Quarantined)
	if total.Redriven > 0 {
		line("  of all quarantined, redriven", total.Redriven, "")
	}
	if total.Discarded > 0 {
		line("  of all quarantined, discarded", total.Discarded, "")
	}
	line("events", total.Events, "")
	line("  duplicates", total.Duplicates, "")
	line("  unique", total.Unique, "")
	counts("dropped by rule", total.Dropped)
	line("event log", total.Logged, "")
	for _, d := range r.Destinations {
		note := ""
		switch {
		case d.Removed:
			note = "removed"
		case len(d.Types) > 0:
			note = "of " + strings.Join(d.Types, ", ")
		}
		line("delivered to "+d.Name, d.Confirmed, note)
		if d.Filtered > 0 {
			line("  filtered", d.Filtered, "")
		}
		if d.Skipped > 0 {
			line("  skipped", d.Skipped, "too old for max_backlog")
		}
		counts("quarantined", d.Quarantined)
		if d.Waiting > 0 {
			line("  waiting", d.Waiting, "")
		}
		if d.Before > 0 {
			line("  perhaps older", d.Before, "than the destination, or than its types")
		}
		if d.Abandoned > 0 {
			line("  abandoned", d.Abandoned, "logged and not delivered to it when it was removed, or later")
		}
		if d.Missing > 0 {
			line("  missing", d.Missing, "")
		}
	}
	line("missing", total.Missing, "")
	if err := t.Flush(); err != nil {
		return err
	}
	return printSources(w, sources)
}

// sourcesOf adds up the pulls of a report by source.
func sourcesOf(r ledger.Report) []books.SourceBalance {
	sums := map[string]*books.SourceBalance{}
	for i := range r.Pulls {
		p := &r.Pulls[i]
		if sums[p.Source] == nil {
			sums[p.Source] = &books.SourceBalance{Source: p.Source}
		}
		sums[p.Source].Total.Add(p, 1)
	}
	var all []books.SourceBalance
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		all = append(all, *sums[name])
	}
	return all
}

// printSources prints a line for each source, when there are several.
func printSources(w io.Writer, sources []books.SourceBalance) error {
	if len(sources) < 2 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\nSOURCE\tPULLS\tRECORDS\tDUPLICATES\tUNIQUE\tLOGGED\tMISSING\t")
	for i := range sources {
		s := &sources[i].Total
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t\n", printable(sources[i].Source), s.Pulls, s.Records, s.Duplicates, s.Unique, s.Logged, s.Missing)
	}
	return t.Flush()
}
