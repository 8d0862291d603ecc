package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/services/operate/books"
)

func newTrace() *cobra.Command {
	var flags busFlags
	var asJSON bool
	var from, to string
	cmd := &cobra.Command{
		Use: "trace {s3://BUCKET/KEY | MESSAGE-ID | EVENT-ID | PULL}", Args: exactly(1),
		Short: "Tell what became of an object, a message or an event, stage by stage",
		Long: `Tells the way of a thing over all stages, with the times at which the ledger heard of
it: announced, fetched, parsed, what was a duplicate, dropped by which rule,
quarantined why, confirmed by which destination, and what was done with it again.

The id of an event is 32 hex digits, as destinations and penstock tail have it. It is
looked for in the event log, the newest first; --from and --to say when the event was
stored, where that is known. The others come from the books of the ledger: see
penstock ledger.`,
		Example: "  penstock trace s3://trail-logs/AWSLogs/123456789012/CloudTrail/eu-west-1/2026/11/20/x.json.gz\n" +
			"  penstock trace 0d3c9f6e-8f4b-4a55-9d3c-2f1f6a1b7a10\n  penstock trace 5f1e6c0d9b8a7f6e5d4c3b2a19080706 --from 2h --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			var span jobs.Span
			for flag, at := range map[string]struct {
				text string
				into *time.Time
			}{"--from": {from, &span.From}, "--to": {to, &span.To}} {
				if at.text == "" {
					continue
				}
				t, err := moment(at.text, time.Now())
				if err != nil {
					return usageError{fmt.Errorf("%s %w", flag, err)}
				}
				*at.into = t
			}
			bus, r, done, err := openBooks(cmd.Context(), &flags, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer done()
			var j books.Journey
			if bus == nil {
				j, err = r.Trace(cmd.Context(), args[0])
			} else {
				progress, end := bar(cmd.ErrOrStderr(), "looking through the event log", "frames")
				j, err = books.Trace(cmd.Context(), bus, r, args[0], span, progress)
				end()
			}
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), j)
			} else {
				err = printJourney(cmd.OutOrStdout(), &j)
			}
			for i := range j.Pulls {
				if err == nil && j.Pulls[i].Pull.State == ledger.Unbalanced {
					err = errSilent
				}
			}
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&from, "from", "", "of an event: stored since then; a time, or a duration back from now, e.g. 2h")
	cmd.Flags().StringVar(&to, "to", "", "of an event: stored before then")
	return cmd
}

// printJourney prints the steps of a journey.
func printJourney(w io.Writer, j *books.Journey) error {
	if e := j.Event; e != nil {
		fmt.Fprintf(w, "event %s of type %s, source %s\n", e.ID, printable(e.Type), printable(e.Source))
		if !e.Time.IsZero() {
			fmt.Fprintf(w, "  happened %s\n", e.Time.UTC().Format(time.RFC3339Nano))
		}
		fmt.Fprintf(w, "  stored   %s in the event log, frame %d, event %d\n", e.Stored.UTC().Format(time.RFC3339Nano), e.Sequence, e.Index)
		fmt.Fprintf(w, "  record   %d of what it came from\n", e.Record)
		if e.Replay != "" {
			fmt.Fprintf(w, "  replay   %s\n", printable(e.Replay))
		}
		for _, s := range e.Settled {
			state := "waiting"
			if s.Done {
				state = "done with its frame"
			}
			fmt.Fprintf(w, "  %s: %s\n", printable(s.Destination), state)
		}
		fmt.Fprintln(w)
		if len(j.Pulls) == 0 {
			fmt.Fprintln(w, "what it came from is not in the books")
		}
	}
	for i := range j.Pulls {
		p := &j.Pulls[i].Pull
		if i > 0 {
			fmt.Fprintln(w)
		}
		state := string(p.State)
		if !p.Since.IsZero() {
			state += " since " + stamp(p.Since)
		}
		fmt.Fprintf(w, "%s of source %s: %s\n  pull %s\n", printable(dash(p.Origin)), printable(dash(p.Source)), state, p.Pull)
		t := table(w)
		for _, s := range j.Pulls[i].Steps {
			at := "-"
			if !s.At.IsZero() {
				at = s.At.UTC().Format("2006-01-02T15:04:05.000Z")
			}
			if s.Until.Sub(s.At) >= time.Millisecond {
				at += " + " + s.Until.Sub(s.At).Round(time.Millisecond).String()
			}
			stage := s.Stage
			if s.Destination != "" {
				stage += " " + printable(s.Destination)
			}
			mark := " "
			if s.Problem {
				mark = "!"
			}
			fmt.Fprintf(t, "%s %s\t%s\t%s\n", mark, at, stage, printable(s.What))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if j.More {
		_, err := fmt.Fprintln(w, "\nthere are older ones: penstock ledger --object names them")
		return err
	}
	return nil
}
