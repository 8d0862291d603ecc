package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	documents "github.com/penstock/penstock/services/internal/document"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/operate/eventlog"
)

func newTail() *cobra.Command {
	var flags busFlags
	var events jobs.Events
	var asJSON, once, full bool
	lines, rate, since := 10, 50.0, ""
	cmd := &cobra.Command{
		Use: "tail [TYPE]...", Args: cobra.ArbitraryArgs,
		Short: "Show events as they enter the event log",
		Long: `Shows the last events of the log, and then those that come. Types may have wildcards:
* is one word, > at the end one or more, e.g. cloud.aws.> (in quotes: shells know *).

At most --rate events a second are shown; how many were left out is said on standard
error. Where --where, --text or --object choose, some of these would not have been
shown anyway. Lines are cut to the width of the terminal unless --full is given, and
what events hold cannot control the terminal. Following costs the pipeline nothing:
what is left out is not unpacked.

With --json each line is one event, with its document under "doc"; a document that is
not JSON is text.`,
		Example: `  penstock tail --store penstock-data
  penstock tail 'cloud.aws.cloudtrail.*' --where 'event.doc.?errorCode.hasValue()' --store penstock-data
  penstock tail --source umbrella --text evil.example --since 2h --no-follow --nats nats://nats:4222
  penstock tail --json --rate 0 --config penstock.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			events.Types = args
			if lines < 0 || rate < 0 {
				return usageError{errors.New("--lines and --rate must not be negative")}
			}
			if since != "" {
				from, err := moment(since, time.Now())
				if err != nil {
					return usageError{fmt.Errorf("--since %w", err)}
				}
				events.From = from
			}
			bus, _, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			p := newEventPrinter(cmd.OutOrStdout(), cmd.ErrOrStderr(), asJSON, full)
			err = tail(cmd.Context(), eventlog.New(bus), events, lines, rate, !once, p)
			if code := fault.CodeOf(err); strings.HasPrefix(code, "condition.") || strings.HasPrefix(code, "selection.") {
				err = usageError{err}
			}
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().IntVarP(&lines, "lines", "n", lines, "how many of the last events to show first")
	cmd.Flags().Float64Var(&rate, "rate", rate, "show at most so many events a second; 0 shows all")
	cmd.Flags().StringVar(&since, "since", "", "of the past show only what was stored since then: 2h, or 2026-11-20T08:00:00Z")
	cmd.Flags().StringVarP(&events.Where, "where", "w", "", "CEL expression over the event, as in a destination")
	cmd.Flags().StringSliceVar(&events.Sources, "source", nil, "only events of these sources")
	cmd.Flags().StringVar(&events.Object, "object", "", "only events of this object, s3://bucket/key (* at its end stands for the rest), or of an SQS message id")
	cmd.Flags().StringVar(&events.Text, "text", "", "only events whose document has this text, whatever the case of its letters")
	cmd.Flags().BoolVar(&once, "no-follow", false, "end after what is there")
	cmd.Flags().BoolVar(&full, "full", false, "do not cut lines to the width of the terminal")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

// moment reads a time, or a duration back from now.
func moment(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return at, fmt.Errorf("%q: use a duration back from now, e.g. 2h, or a time, e.g. 2026-11-20T08:00:00Z", s)
	}
	return at, nil
}

// tail shows the last events, and follows.
func tail(ctx context.Context, log *eventlog.Log, events jobs.Events, lines int, rate float64, follow bool, p *eventPrinter) error {
	end, err := log.End(ctx)
	if err != nil {
		return err
	}
	found, err := last(ctx, log, events, end, lines)
	if err != nil {
		return err
	}
	for i := range slices.Backward(found) {
		if err := p.event(&found[i]); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	err = log.FollowAfter(ctx, events, end, rate, func(e *eventlog.Found, leftOut uint64) error {
		if leftOut > 0 {
			p.leftOut(leftOut)
		}
		if e == nil {
			return nil
		}
		return p.event(e)
	})
	if ctx.Err() != nil {
		return nil // Ctrl-C is how it ends
	}
	return err
}

// last finds the last events before a place, newest first. Without a beginning it looks
// back as far as one budget goes: who waits for a rare event wants to see it come.
func last(ctx context.Context, log *eventlog.Log, events jobs.Events, before eventlog.Place, n int) ([]eventlog.Found, error) {
	var found []eventlog.Found
	for len(found) < n {
		page, err := log.Search(ctx, events, before, n-len(found), eventlog.Budget{})
		if err != nil {
			return nil, err
		}
		found = append(found, page.Events...)
		if !page.More || events.From.IsZero() {
			break
		}
		before = page.Next
	}
	return found, nil
}

// eventPrinter prints events, each on a line.
type eventPrinter struct {
	out, err io.Writer
	asJSON   bool
	colour   bool
	width    int // 0: lines are not cut
	line     []byte
}

func newEventPrinter(out, errOut io.Writer, asJSON, full bool) *eventPrinter {
	p := &eventPrinter{out: out, err: errOut, asJSON: asJSON, colour: coloured(out)}
	if f, ok := out.(*os.File); ok && !full && term.IsTerminal(int(f.Fd())) {
		p.width, _, _ = term.GetSize(int(f.Fd())) // 0 when unknown
	}
	return p
}

// coloured tells whether colours may go there: to a terminal, unless NO_COLOR is set.
// Source: no-color.org.
func coloured(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

func (p *eventPrinter) leftOut(n uint64) {
	fmt.Fprintf(p.err, "… %d events not shown: --rate shows more\n", n)
}

// shownEvent is an event as --json prints it.
type shownEvent struct {
	eventlog.Found

	Place  string          `json:"place"`
	Object string          `json:"object,omitempty"`
	Doc    json.RawMessage `json:"doc"`
}

func (p *eventPrinter) event(e *eventlog.Found) error {
	if p.asJSON {
		return p.json(e)
	}
	p.line = documents.AppendLine(p.line[:0], e.Doc)
	where := strings.Trim(e.Account+"/"+e.Region, "/")
	head := []struct{ text, colour string }{
		{e.Time.Format("2006-01-02T15:04:05.000Z"), "2"}, {e.Type, "36"}, {e.Source, "33"}, {orDash(where), "2"},
	}
	var b strings.Builder
	for _, h := range head {
		text := flat(h.text)
		if p.colour {
			text = "\x1b[" + h.colour + "m" + text + "\x1b[0m"
		}
		b.WriteString(text + " ")
	}
	doc := p.line
	if p.width > 0 && len(doc) > 8*p.width {
		doc = doc[:8*p.width] // more than fits, however wide its letters
	}
	b.WriteString(flat(string(doc)))
	line := b.String()
	if p.width > 0 {
		line = ansi.Truncate(line, p.width, "…")
	}
	_, err := io.WriteString(p.out, line+"\n")
	return err
}

func (p *eventPrinter) json(e *eventlog.Found) error {
	doc := json.RawMessage(e.Doc)
	if !json.Valid(doc) {
		doc, _ = json.Marshal(string(e.Doc)) // cannot fail
	}
	data, err := json.Marshal(shownEvent{Found: *e, Place: e.Place.String(), Object: objectOf(e.Origin), Doc: doc})
	if err != nil {
		return err
	}
	_, err = p.out.Write(append(harmless(data), '\n'))
	return err
}

// objectOf names what an event came from: an object, a message or a call.
func objectOf(o *messages.Origin) string {
	switch {
	case o.GetBucket() != "":
		return "s3://" + o.GetBucket() + "/" + o.GetKey()
	case o.GetMessageId() != "":
		return o.GetMessageId()
	}
	return strings.Trim(o.GetApi()+" "+o.GetResource(), " ")
}

// flat is printable for what must stay on its line.
func flat(s string) string {
	return strings.NewReplacer("\n", "·", "\t", " ").Replace(printable(s))
}

// harmless escapes what controls a terminal in JSON, where it can only be in texts; line
// breaks can only be between them.
func harmless(data []byte) []byte {
	bad := func(r rune) bool { return unicode.IsControl(r) && r != '\n' || unicode.Is(unicode.Cf, r) }
	if bytes.IndexFunc(data, bad) < 0 {
		return data
	}
	out := make([]byte, 0, len(data)+16)
	for len(data) > 0 {
		r, n := utf8.DecodeRune(data)
		if bad(r) {
			for _, u := range utf16.AppendRune(nil, r) {
				out = fmt.Appendf(out, `\u%04x`, u)
			}
		} else {
			out = append(out, data[:n]...)
		}
		data = data[n:]
	}
	return out
}
