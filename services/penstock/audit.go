package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/topology"
)

// auditFilter says which deeds are meant; empty fields mean all.
type auditFilter struct {
	by, via, action, text, job string
	to                         time.Time
}

func (f *auditFilter) fits(d *topology.Deed) bool {
	has := func(s, part string) bool { return strings.Contains(strings.ToLower(s), strings.ToLower(part)) }
	switch {
	case f.by != "" && !has(d.By, f.by), f.via != "" && d.Via != f.via, f.job != "" && d.Job != f.job,
		f.action != "" && d.Action != f.action && !strings.HasPrefix(d.Action, f.action+"."),
		!f.to.IsZero() && !d.At.Before(f.to):
		return false
	}
	return f.text == "" || has(d.What, f.text) || has(d.Reason, f.text) || has(d.Result, f.text)
}

func newAudit() *cobra.Command {
	var flags busFlags
	var f auditFilter
	var asJSON bool
	since, until, limit := "", "", 1000
	cmd := &cobra.Command{
		Use: "audit", Args: exactly(0), Short: "Show what operators have done: who, when, what, how many and why",
		Long: `Whatever an operator has done, by a command or in the console, is written down before it
is done, and how a job ended as well. It is kept for a year, as far as the disk allows.`,
		Example: `  penstock audit --store penstock-data
  penstock audit --action quarantine --since 720h --store penstock-data
  penstock audit --by alice --action destination.pause --json --store penstock-data`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usageError{errors.New("--limit: use 1 or more")}
			}
			now := time.Now()
			var from time.Time
			for _, at := range []struct {
				flag, text string
				to         *time.Time
			}{{"since", since, &from}, {"until", until, &f.to}} {
				if at.text == "" {
					continue
				}
				t, err := moment(at.text, now)
				if err != nil {
					return usageError{fmt.Errorf("--%s %w", at.flag, err)}
				}
				*at.to = t
			}
			bus, _, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			deeds := []topology.Deed{}
			left := 0
			if err := bus.ReadAudit(cmd.Context(), from, func(d topology.Deed) bool {
				if !f.fits(&d) {
					return true
				}
				if deeds = append(deeds, d); len(deeds) > limit {
					deeds = append(deeds[:0], deeds[1:]...)
					left++
				}
				return true
			}); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), deeds)
			}
			return printDeeds(cmd.OutOrStdout(), deeds, left)
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&since, "since", "", "only since then: 24h, or 2026-11-20T08:00:00Z")
	cmd.Flags().StringVar(&until, "until", "", "only before then")
	cmd.Flags().StringVar(&f.by, "by", "", "only of who has this in the name")
	cmd.Flags().StringVar(&f.via, "via", "", "only by way of: command, console or job")
	cmd.Flags().StringVar(&f.action, "action", "", "only this action, e.g. quarantine.redrive, or all of one thing, e.g. quarantine")
	cmd.Flags().StringVar(&f.job, "job", "", "only of this job")
	cmd.Flags().StringVar(&f.text, "text", "", "only with this text in what was done, the reason or the result")
	cmd.Flags().IntVar(&limit, "limit", limit, "show at most so many, the newest")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printDeeds(out io.Writer, deeds []topology.Deed, left int) error {
	if len(deeds) == 0 {
		_, err := fmt.Fprintln(out, "nobody has done anything, or nothing fits")
		return err
	}
	if left > 0 {
		fmt.Fprintf(out, "%d older ones are left out: raise --limit\n", left)
	}
	line := func(s string) string { return strings.ReplaceAll(orDash(printable(s)), "\n", " ") }
	t := table(out)
	fmt.Fprintln(t, "TIME\tBY\tVIA\tACTION\tCOUNT\tWHAT\tREASON\tJOB\tRESULT")
	for _, d := range deeds {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", d.At.UTC().Format(time.DateTime), line(d.By), line(d.Via), line(d.Action), d.Count,
			line(d.What), line(d.Reason), line(d.Job), line(d.Result))
	}
	return t.Flush()
}
