package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/topology"
)

func newTopology() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "topology",
		Short: "Create, show and compare the streams of the bus, and write its users and certificates",
	}
	cmd.AddCommand(newTopologyApply(), newTopologyShow(), newTopologyDiff(), newTopologyUsers(), newTopologyCertificates(), newTopologyRoutes())
	return cmd
}

func writeJSON(w io.Writer, v any) error {
	return encodeHarmless(w, v, func(e *json.Encoder) { e.SetIndent("", "  ") })
}

// writeLine writes v as one line of JSON.
func writeLine(w io.Writer, v any) error {
	return encodeHarmless(w, v, func(e *json.Encoder) { e.SetEscapeHTML(false) })
}

// table aligns columns; write tab-separated lines to it and flush it.
func table(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 4, 2, ' ', 0) }

func newTopologyApply() *cobra.Command {
	var flags busFlags
	var asJSON, dry bool
	cmd := &cobra.Command{
		Use: "apply", Args: exactly(0),
		Short: "Create the streams and consumers, or bring them up to date",
		Long: `Creates the streams and consumers, or brings them up to date with the configuration.
It is safe to repeat, and safe while penstock runs. What the server cannot change in
place is refused before anything is changed.`,
		Example: `  penstock topology apply --config penstock.yaml --nats nats://nats:4222
  penstock topology apply --config penstock.yaml --nats nats://nats:4222 --dry-run`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bus, file, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			limits := file.Bus.limits(file.Dedupe.Lanes)
			if dry {
				diffs, err := bus.Preview(cmd.Context(), limits)
				if err != nil {
					return err
				}
				return printDifferences(cmd.OutOrStdout(), diffs, asJSON, "nothing would change", "would change")
			}
			changed, err := bus.Apply(cmd.Context(), limits)
			if err != nil {
				return err
			}
			return printDifferences(cmd.OutOrStdout(), changed, asJSON, "everything was as it should be", "changed")
		},
	}
	flags.add(cmd)
	cmd.Flags().DurationVar(&flags.wait, "wait", answerWithin, "how long to wait for servers that do not answer yet")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would change")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newTopologyDiff() *cobra.Command {
	var flags busFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "diff", Args: exactly(0),
		Short:   "Compare the streams with the configuration; exit code 1 when they differ",
		Example: "  penstock topology diff --config penstock.yaml --nats nats://nats:4222",
		RunE: func(cmd *cobra.Command, _ []string) error {
			bus, file, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			diffs, err := bus.Diff(cmd.Context(), file.Bus.limits(file.Dedupe.Lanes))
			if err != nil {
				return err
			}
			if err := printDifferences(cmd.OutOrStdout(), diffs, asJSON, "no differences", "differs"); err != nil || len(diffs) == 0 {
				return err
			}
			return errSilent
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printDifferences(w io.Writer, diffs []topology.Difference, asJSON bool, none, some string) error {
	if asJSON {
		if diffs == nil {
			diffs = []topology.Difference{}
		}
		return writeJSON(w, diffs)
	}
	if len(diffs) == 0 {
		_, err := fmt.Fprintln(w, none)
		return err
	}
	t := table(w)
	fmt.Fprintf(t, "STREAM\tSETTING\tIS\tWANTED\t(%s)\n", some)
	for _, d := range diffs {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t\n", d.Stream, d.Field, d.Is, d.Want)
	}
	return t.Flush()
}

func newTopologyShow() *cobra.Command {
	var flags busFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show", Args: exactly(0),
		Short:   "Show what each stream holds and how far each consumer is",
		Example: "  penstock topology show --store penstock-data\n  penstock topology show --nats nats://nats:4222 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			bus, _, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			states, err := bus.Show(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), states)
			}
			t := table(cmd.OutOrStdout())
			fmt.Fprintln(t, "STREAM\tSUBJECTS\tMESSAGES\tSIZE\tOF\tKEEPS\tSINCE\tREADER\tBEHIND\tIN HAND")
			for _, s := range states {
				since := "-"
				if s.Messages > 0 {
					since = s.FirstTime.UTC().Format(time.DateTime)
				}
				head := fmt.Sprintf("%s\t%s\t%d\t%s\t%s\t%s\t%s", s.Stream, s.Subjects, s.Messages, size(s.Bytes), size(uint64(s.MaxBytes)), shortDuration(s.Keep), since)
				if len(s.Consumers) == 0 {
					fmt.Fprintf(t, "%s\t-\t\t\n", head)
				}
				for i, c := range s.Consumers {
					if i > 0 {
						head = strings.Repeat("\t", 6)
					}
					fmt.Fprintf(t, "%s\t%s\t%d\t%d\n", head, c.Consumer, c.Pending, c.InHand)
				}
			}
			return t.Flush()
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// shortDuration drops the zero parts that Go prints: 1h0m0s is 1h.
func shortDuration(s string) string {
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// size prints bytes with a binary unit.
func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	div, exp := uint64(unit), 0
	for m := n / unit; m >= unit; m /= unit {
		div *= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", float64(n)/float64(div), "KMGTPE"[exp])
}
