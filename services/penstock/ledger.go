package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/topology"
)

func newLedger() *cobra.Command {
	var flags busFlags
	var asJSON, pulls bool
	cmd := &cobra.Command{
		Use: "ledger", Args: exactly(0),
		Short: "Add up what became of every record; exit code 1 when the books do not balance",
		Long: `Reads the facts that every stage has left in the ledger, and adds them up: records
cut = skipped + quarantined + unique + duplicates; and what each destination
confirmed against what the event log holds for it. While events are under way they
count as missing: ask again when nothing is open.`,
		Example: "  penstock ledger --store penstock-data\n  penstock ledger --nats nats://nats:4222 --pulls\n  penstock ledger --json | jq .total",
		RunE: func(cmd *cobra.Command, _ []string) error {
			bus, _, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			fold := ledger.New()
			if err := readLedger(cmd.Context(), bus, fold); err != nil {
				return err
			}
			report := fold.Report()
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), report)
			} else {
				err = printReport(cmd.OutOrStdout(), report, pulls)
			}
			if err == nil && !report.Balanced {
				err = errSilent
			}
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&pulls, "pulls", false, "print a line for every object and message")
	return cmd
}

func readLedger(ctx context.Context, bus *topology.Bus, fold *ledger.Fold) error {
	return bus.Read(ctx, topology.Span{Subject: "penstock.ledger.>"}, func(m topology.Stored) error { return addFacts(fold, m) })
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
	if err := printSums(w, r); err != nil {
		return err
	}
	if pulls {
		p := table(w)
		fmt.Fprintln(p, "\nSTATE\tRECORDS\tUNIQUE\tDUPLICATES\tMISSING\tORIGIN")
		for _, l := range r.Pulls {
			fmt.Fprintf(p, "%s\t%d\t%d\t%d\t%d\t%s\n", l.State, l.Records, l.Unique, l.Duplicates, l.Missing, printable(l.Origin))
		}
		if err := p.Flush(); err != nil {
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
func printSums(w io.Writer, r ledger.Report) error {
	t := table(w)
	total := r.Total
	line := func(what string, n uint64, note string) { fmt.Fprintf(t, "%s\t%12d\t%s\n", what, n, note) }
	counts := func(title string, m map[string]uint64) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			line("  "+title+" "+k, m[k], "")
		}
	}
	fmt.Fprintf(t, "objects and messages\t%12d\t%d open\n", total.Pulls, total.Open)
	counts("announced as", total.Announced)
	counts("ended", total.Ended)
	counts("refused whole:", total.PullsQuarantined)
	counts("skipped whole:", total.PullsSkipped)
	line("records in", total.Records, fmt.Sprintf("%s as stored, %s unpacked", size(total.Bytes), size(total.RawBytes)))
	counts("skipped", total.Skipped)
	counts("quarantined", total.Quarantined)
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
	return printSources(w, r)
}

// printSources prints a line for each source, when there are several.
func printSources(w io.Writer, r ledger.Report) error {
	sums := map[string]*ledger.Pull{}
	pulls := map[string]int{}
	for i := range r.Pulls {
		p := &r.Pulls[i]
		s := sums[p.Source]
		if s == nil {
			s = &ledger.Pull{}
			sums[p.Source] = s
		}
		pulls[p.Source]++
		s.Records += p.Records
		s.Unique += p.Unique
		s.Duplicates += p.Duplicates
		s.Logged += p.Logged
		s.Missing += p.Missing
	}
	if len(sums) < 2 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\nSOURCE\tPULLS\tRECORDS\tDUPLICATES\tUNIQUE\tLOGGED\tMISSING\t")
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		s := sums[name]
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t\n", printable(name), pulls[name], s.Records, s.Duplicates, s.Unique, s.Logged, s.Missing)
	}
	return t.Flush()
}
