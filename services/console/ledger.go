package console

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/services/operate/books"
)

func init() {
	register(page{
		path: "/ledger", title: "Ledger", nav: navRepair, order: 30, icon: "ledger", get: getLedger,
		routes: []route{
			{"GET /ledger/sum", getLedgerSum, readOnly},
			{"GET /ledger/pulls/{id}", getPull, readOnly},
			{"GET /ledger/trace", getTrace, readOnly},
		},
	})
}

var errBooks = fault.Define("console.no_books", fault.Retry,
	"start a process that keeps the ledger's books: penstock run without --stage does, and so does penstock console")

// shownPulls is how many pulls a page has.
const shownPulls = 50

// ledgerPage is the balance of all, and a stretch of the pulls.
type ledgerPage struct {
	Sum     ledgerSum
	Sources []books.SourceBalance
	Filter  books.Filter
	// Show is the chosen state, which may be overdue.
	Show     string
	From, To string
	Pulls    []ledger.Pull
	Older    string
	First    string
	Filtered bool
	Operator bool
	// Missing says that nobody keeps the books, with what to do.
	Missing string
}

// ledgerSum is the balance at the top of the page, and how it is to be read.
type ledgerSum struct {
	books.Summary
	// Tone and Verdict of it, and why.
	Tone, Verdict, Why string
	// Flow is how many records became what, as parts of a whole.
	Flow []part
}

func readSum(s books.Summary) ledgerSum {
	v := ledgerSum{Summary: s}
	switch {
	case s.Overdue > 0 || len(s.Problems) > 0:
		v.Tone, v.Verdict = "bad", "Not balanced"
		v.Why = "Something is missing or too much, and it is not just under way: see the problems and the pulls that are overdue."
	case s.Behind > 1000:
		v.Tone, v.Verdict = "warn", "Catching up"
		v.Why = "The books have " + plural(s.Behind, "message", "messages") + " of the ledger to read yet."
	case s.Total.Open > 0 || s.Total.Unbalanced > 0:
		v.Tone, v.Verdict = "info", "Under way"
		v.Why = "What has been announced is being worked on; nothing is missing for longer than " + dur(books.Grace) + "."
	case s.Total.Pulls == 0:
		v.Tone, v.Verdict = "off", "Empty"
		v.Why = "Nothing has been announced yet."
	default:
		v.Tone, v.Verdict = "ok", "Balanced"
		v.Why = "Every record is accounted for: confirmed by its destinations, a duplicate, dropped by a rule, skipped, or in quarantine."
	}
	t := s.Total
	v.Flow = []part{
		{"Unique events", t.Unique},
		{"Duplicates", t.Duplicates},
		{"Dropped by rules", sumCounts(t.Dropped)},
		{"Skipped records", sumCounts(t.Skipped)},
		{"Quarantined records", sumCounts(t.Quarantined)},
		{"Missing", t.Missing},
		{"Too much", t.Extra},
	}
	return v
}

func sumCounts(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

// nobodyKeeps tells that no process keeps the books.
func nobodyKeeps(err error) bool {
	return errors.Is(err, errBooks) || fault.CodeOf(err) == "ledger.nobody_keeps" || fault.CodeOf(err) == "bus.nobody_serves"
}

// keptBooks are the books of this process, or those that another one keeps.
func (r *request) keptBooks() (books.Reader, error) {
	if _, err := r.bus(); err != nil {
		return nil, err
	}
	if b := r.books(); b != nil {
		return b, nil
	}
	return nil, errBooks.New(nil, "look into the ledger")
}

func getLedger(r *request) error {
	if _, err := r.bus(); err != nil {
		return err
	}
	span, err := spanOf(r)
	if err != nil {
		return err
	}
	p := ledgerPage{Operator: r.user.role == operator, Show: r.FormValue("state"), From: formTime(span.From), To: formTime(span.To)}
	p.Filter = books.Filter{
		Source: r.FormValue("source"), Text: strings.TrimSpace(r.FormValue("text")), From: span.From, To: span.To, Limit: shownPulls, After: r.FormValue("after"),
	}
	switch p.Show {
	case "overdue":
		p.Filter.Overdue = true
	case string(ledger.Open), string(ledger.Balanced), string(ledger.Unbalanced):
		p.Filter.State = ledger.State(p.Show)
	default:
		p.Show = ""
	}
	b := r.books()
	var s books.Summary
	if b == nil {
		err = errBooks.New(nil, "look into the ledger")
	} else {
		s, err = b.Summary(r.Context())
	}
	if nobodyKeeps(err) {
		p.Missing = "No process that runs keeps the ledger's books. A penstock run without --stage does, and so does penstock console: start one of them."
		return r.page("ledger", p)
	}
	if err != nil {
		return err
	}
	p.Sum = readSum(s)
	if p.Sources, err = b.Sources(r.Context()); err != nil {
		return err
	}
	pulls, err := b.Pulls(r.Context(), p.Filter)
	if err != nil {
		return err
	}
	p.Pulls = pulls.Pulls
	q := url.Values{}
	for name, value := range map[string]string{"source": p.Filter.Source, "text": p.Filter.Text, "state": p.Show, "from": p.From, "to": p.To} {
		if value != "" {
			q.Set(name, value)
		}
	}
	p.Filtered = len(q) > 0
	if p.Filter.After != "" {
		p.First = "/ledger?" + q.Encode() + "#pulls"
	}
	if pulls.Next != "" {
		q.Set("after", pulls.Next)
		p.Older = "/ledger?" + q.Encode() + "#pulls"
	}
	return r.page("ledger", p)
}

// getLedgerSum is the part that is loaded again and again.
func getLedgerSum(r *request) error {
	b, err := r.keptBooks()
	if err != nil {
		return err
	}
	s, err := b.Summary(r.Context())
	if err != nil {
		return err
	}
	return r.fragment("ledger-sum", readSum(s))
}

// pullPage is one pull, from the announcement to the destinations.
type pullPage struct {
	books.Trail
	// Object tells that Origin is the address of an object.
	Object bool
	// Took is the time from the first word of it to the last.
	Took     time.Duration
	Operator bool
}

func pullOf(t books.Trail, acts bool) pullPage {
	p := pullPage{Trail: t, Operator: acts, Object: strings.HasPrefix(t.Pull.Origin, "s3://")}
	var first, last time.Time
	for _, s := range t.Steps {
		if !s.At.IsZero() && (first.IsZero() || s.At.Before(first)) {
			first = s.At
		}
		for _, at := range []time.Time{s.At, s.Until} {
			if at.After(last) {
				last = at
			}
		}
	}
	if !first.IsZero() {
		p.Took = last.Sub(first)
	}
	return p
}

func getPull(r *request) error {
	b, err := r.keptBooks()
	if err != nil {
		return err
	}
	t, err := b.Pull(r.Context(), r.PathValue("id"))
	if fault.CodeOf(err) == "books.unknown" {
		return errNotFound.New(err, "show pull %s", r.PathValue("id"))
	}
	if err != nil {
		return err
	}
	return r.page("pull", pullOf(t, r.user.role == operator))
}

// tracePage is the journey of what was asked for.
type tracePage struct {
	What    string
	Journey *books.Journey
	Pulls   []pullPage
	// Unknown says why nothing was found.
	Unknown string
}

// traceWithin bounds the search for an event in the log.
const traceWithin = 12 * time.Second

func getTrace(r *request) error {
	p := tracePage{What: strings.TrimSpace(r.FormValue("what"))}
	if p.What == "" {
		return r.page("trace", p)
	}
	b, err := r.keptBooks()
	if err != nil {
		return err
	}
	bus, err := r.bus()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), traceWithin)
	defer cancel()
	j, err := books.Trace(ctx, bus, b, p.What, jobs.Span{}, nil)
	switch code := fault.CodeOf(err); {
	case err == nil:
		p.Journey = &j
		for _, t := range j.Pulls {
			p.Pulls = append(p.Pulls, pullOf(t, r.user.role == operator))
		}
	case code == "books.unknown" || code == "eventlog.gone":
		what, fix := explain(err)
		p.Unknown = what + ". " + capital(fix) + "."
	case ctx.Err() != nil && r.Context().Err() == nil:
		p.Unknown = "It was not found in " + dur(traceWithin) + ", and the log is long. Look for it with penstock trace, which has more time."
	default:
		return err
	}
	return r.page("trace", p)
}
