package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/operate/freshness"
	"github.com/penstock/penstock/services/operate/status"
	"github.com/penstock/penstock/topology"
)

// configuredIn is what a configuration says, for who asks how all is.
func configuredIn(file File) status.Configured {
	c := status.Configured{Destinations: map[string]string{}, Sources: map[string]string{}}
	for _, d := range file.Destinations {
		c.Destinations[d.Name] = d.Type
	}
	for _, s := range file.Sources {
		c.Sources[s.Name] = s.Type
	}
	return c
}

func newStatus() *cobra.Command {
	var flags busFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status", Args: exactly(0),
		Short: "Show on one screen how the pipeline is; exit code 1 when it is not healthy",
		Long: `Shows what is wrong and what to do about it, and then stages, destinations and
sources. Counts are those of the processes that run, since each began. Warnings are
things to look at; errors mean that something does not flow, and exit code 1.`,
		Example: `  penstock status --store penstock-data
  penstock status --nats nats://nats:4222 --json
  penstock status --config penstock.yaml > /dev/null || echo "look at penstock"`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bus, file, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			s, err := status.Now(cmd.Context(), bus, configuredIn(file))
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), s)
			} else {
				err = printSnapshot(cmd.OutOrStdout(), s)
			}
			if err == nil && !s.Healthy {
				err = errSilent
			}
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printSnapshot(w io.Writer, s status.Snapshot) error {
	if _, err := fmt.Fprintln(w, headline(s)); err != nil {
		return err
	}
	for _, p := range s.Problems {
		since := ""
		if !p.Since.IsZero() {
			since = " (since " + p.Since.UTC().Format(time.DateTime) + ")"
		}
		fmt.Fprintf(w, "%-7s %s%s\n        → %s\n", strings.ToUpper(p.Severity), flat(p.What), since, flat(p.Fix))
	}
	fmt.Fprintln(w)
	t := table(w)
	fmt.Fprintln(t, "STAGE\tPROCESSES\tIN\tOUT\tWAITING\tLAG\tERRORS\tQUARANTINED")
	for _, st := range s.Stages {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%s\t%d\t%d\n", st.Name, st.Processes, st.In, st.Out, st.LagFrames, lagOf(st.LagSeconds), st.Errors, st.Quarantined)
	}
	if len(s.Destinations) > 0 {
		fmt.Fprintln(t, "\nDESTINATION\tSTATE\tDELIVERED\tWAITING\tLAG\tQUARANTINED")
		for _, d := range s.Destinations {
			fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%d\n", flat(d.Name), d.State, d.Delivered, d.LagFrames, lagOf(d.LagSeconds), d.Quarantined)
		}
	}
	if len(s.Sources) > 0 {
		fmt.Fprintln(t, "\nSOURCE\tLAST\tSILENT FOR\tUSUAL GAP\tALARM AFTER")
		for _, src := range worstFirst(s.Sources, mostSources) {
			fmt.Fprintln(t, sourceLine(src))
		}
		if n := len(s.Sources) - mostSources; n > 0 {
			fmt.Fprintf(t, "and %d more: penstock freshness\n", n)
		}
	}
	return t.Flush()
}

// mostSources is how many sources are on the screen.
const mostSources = 12

// worstFirst returns up to most sources: silent ones, then those that were silent longest.
func worstFirst(all []freshness.State, most int) []freshness.State {
	list := slices.Clone(all)
	slices.SortStableFunc(list, func(a, b freshness.State) int {
		switch {
		case a.Silent != b.Silent && a.Silent:
			return -1
		case a.Silent != b.Silent:
			return 1
		}
		return cmp.Compare(b.Silence, a.Silence)
	})
	return list[:min(len(list), most)]
}

func sourceLine(s freshness.State) string {
	last, silence := "-", "-"
	if !s.Last.IsZero() {
		last, silence = s.Last.UTC().Format(time.DateTime), shortAge(s.Silence)
	}
	usual, allowed := "-", s.Setting
	if s.Usual > 0 {
		usual = shortAge(s.Usual)
	}
	switch {
	case s.Allowed > 0:
		allowed = shortAge(s.Allowed)
	case s.Setting == freshness.Auto:
		allowed = "learning"
	}
	if s.Silent {
		silence += " !"
	}
	return strings.Join([]string{flat(s.Source), last, silence, usual, allowed}, "\t")
}

// headline says in a line how all is.
func headline(s status.Snapshot) string {
	errors, warnings := 0, 0
	for _, p := range s.Problems {
		if p.Severity == status.Error {
			errors++
		} else {
			warnings++
		}
	}
	state := "healthy"
	if !s.Healthy {
		state = "NOT HEALTHY"
	}
	var what []string
	if errors > 0 {
		what = append(what, plural(errors, "error", "errors"))
	}
	if warnings > 0 {
		what = append(what, plural(warnings, "warning", "warnings"))
	}
	if len(what) > 0 {
		state += ": " + listed(what)
	}
	return fmt.Sprintf("penstock is %s · %s · %s", state, plural(len(s.Processes), "process", "processes"), s.At.UTC().Format("2006-01-02 15:04:05 UTC"))
}

func lagOf(seconds float64) string {
	if seconds <= 0 {
		return "-"
	}
	return shortAge(time.Duration(seconds * float64(time.Second)))
}

// shortAge is a duration for people.
func shortAge(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d < time.Hour:
		d = d.Round(time.Second)
	default:
		d = d.Round(time.Minute)
	}
	return shortDuration(d.String())
}

func newFreshness() *cobra.Command {
	var flags busFlags
	var asJSON, samples bool
	cmd := &cobra.Command{
		Use: "freshness", Args: exactly(0),
		Short: "Show how fresh each source is, and what its formats do not know",
		Long: `Shows for each source when it last brought something, its usual gap as it was
learned, and after how much silence there is an alarm: of the source's setting silence,
or learned from its gaps and from how silent it usually is at that hour of the week.

Drift is what records have that their format does not know: columns, types of events
and versions, with how many records, since when and until when. Such records go on as
they are. --samples shows the beginning of one of them.`,
		Example: `  penstock freshness --store penstock-data
  penstock freshness --samples --nats nats://nats:4222
  penstock freshness --json --config penstock.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bus, _, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			a, found, err := freshness.Ask(cmd.Context(), bus)
			if err != nil {
				return err
			}
			if !found {
				return errors.New("no process watches how fresh sources are; run penstock console, or penstock run without --stage")
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), a)
			}
			return printFreshness(cmd.OutOrStdout(), a, samples)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&samples, "samples", false, "show the beginning of a record with each thing that is not known")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printFreshness(w io.Writer, a freshness.Answer, samples bool) error {
	t := table(w)
	fmt.Fprintln(t, "SOURCE\tLAST\tSILENT FOR\tUSUAL GAP\tALARM AFTER\tANNOUNCED\tRECORDS")
	for _, s := range a.Sources {
		fmt.Fprintf(t, "%s\t%d\t%d\n", sourceLine(s), s.Announced, s.Records)
	}
	if len(a.Drift) > 0 {
		fmt.Fprintln(t, "\nDRIFT\tNAME\tFORMAT\tSOURCE\tRECORDS\tFIRST\tLAST")
		for _, d := range a.Drift {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", flat(d.Kind), flat(d.Name), flat(d.Format), flat(d.Source), d.Records,
				d.First.UTC().Format(time.DateTime), d.Last.UTC().Format(time.DateTime))
		}
	}
	if err := t.Flush(); err != nil || !samples {
		return err
	}
	for _, d := range a.Drift {
		if d.Sample != "" {
			fmt.Fprintf(w, "\n%s %s of %s:\n%s\n", flat(d.Kind), flat(d.Name), flat(d.Format), flat(d.Sample))
		}
	}
	return nil
}

// ratesOf takes two snapshots some time apart.
func ratesOf(ctx context.Context, bus *topology.Bus, c status.Configured, apart time.Duration) (status.Snapshot, error) {
	before, err := status.Now(ctx, bus, c)
	if err != nil {
		return before, err
	}
	select {
	case <-ctx.Done():
		return before, context.Cause(ctx)
	case <-time.After(apart):
	}
	now, err := status.Now(ctx, bus, c)
	now.Rates(&before)
	return now, err
}
