package books

import (
	"context"
	"time"

	"github.com/penstock/penstock/services/internal/ledger"
)

// Summary is what the books say about all pulls that they hold.
type Summary struct {
	// Balanced: no pull is unbalanced, and of each destination is known what it reads. What
	// is under way is not balanced yet: see Overdue. Since is when that began to be so.
	Balanced bool      `json:"balanced"`
	Since    time.Time `json:"since,omitzero"`
	// Overdue pulls are unbalanced for longer than Grace: something is wrong with them.
	Overdue int `json:"overdue"`
	// Problems, in sentences, are of destinations and of the books themselves; those of
	// a pull are with the pull.
	Problems []string `json:"problems"`
	// Total has the counts of pulls, also those open and unbalanced.
	Total        ledger.Total         `json:"total"`
	Destinations []ledger.Destination `json:"destinations"`
	// Facts that were read, by stage, and those of an unknown kind among them.
	Facts  map[string]uint64 `json:"facts"`
	Unread uint64            `json:"facts_unread,omitempty"`
	// Position is the sequence of LEDGER that was folded last, Behind how many messages
	// there are after it, and At when the one at Position was stored.
	Position uint64    `json:"position"`
	Behind   uint64    `json:"behind"`
	At       time.Time `json:"at,omitzero"`
	// From is when the oldest pull that is kept was first heard of.
	From time.Time `json:"from,omitzero"`
	// Gaps are stretches of LEDGER that were trimmed before they were folded.
	Gaps []Gap `json:"gaps,omitempty"`
	// Bytes is the size of the database.
	Bytes int64 `json:"bytes"`
}

// Gap is a stretch of LEDGER that nobody folded.
type Gap struct {
	// First and Last sequence that are missing, and when that was found out.
	First uint64    `json:"first"`
	Last  uint64    `json:"last"`
	At    time.Time `json:"at"`
}

// SourceBalance is the balance of the pulls of one source.
type SourceBalance struct {
	Source string       `json:"source"`
	Total  ledger.Total `json:"total"`
	// Destinations that settled, or owe, events of the source.
	Destinations []ledger.Settled `json:"destinations,omitempty"`
	// Last is when a fact of it was stored last, Since since when a pull is unbalanced.
	Last  time.Time `json:"last,omitzero"`
	Since time.Time `json:"since,omitzero"`
}

// Filter says which pulls are meant. Empty fields mean all.
type Filter struct {
	Source string       `json:"source,omitempty"`
	State  ledger.State `json:"state,omitempty"`
	// Overdue: only those unbalanced for longer than Grace.
	Overdue bool `json:"overdue,omitempty"`
	// Text is part of the origin, whatever the case of its letters.
	Text string `json:"text,omitempty"`
	// From and To are about when a pull was first heard of.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
	// Limit is at most MaxPulls, 0 is 100. After is the Next of the page before.
	Limit int    `json:"limit,omitempty"`
	After string `json:"after,omitempty"`
}

// MaxPulls bounds one page.
const MaxPulls = 1000

// Page is a stretch of pulls, newest first. Next is "" at the end. Where a search takes
// long, a page may have fewer than Limit, and still a Next.
type Page struct {
	Pulls []ledger.Pull `json:"pulls"`
	Next  string        `json:"next,omitempty"`
}

// Journey is what became of a thing, stage by stage.
type Journey struct {
	// What was asked for, and what it is: object, message, pull or event.
	What string `json:"what"`
	Kind string `json:"kind"`
	// Event, where one was asked for.
	Event *Event `json:"event,omitempty"`
	// Pulls are all announcements of it, oldest first, at most maxJourney; More, where
	// there are more.
	Pulls []Trail `json:"pulls"`
	More  bool    `json:"more,omitempty"`
}

// Trail is the journey of one pull.
type Trail struct {
	Pull  ledger.Pull `json:"pull"`
	Steps []Step      `json:"steps"`
}

// Step is what a stage did.
type Step struct {
	Stage string `json:"stage"`
	// At is when the ledger had the first word of it, Until the last.
	At    time.Time `json:"at,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// What was done, in words.
	What string `json:"what"`
	// Destination, for stage deliver.
	Destination string `json:"destination,omitempty"`
	// Problem: it is missing, or in the quarantine.
	Problem bool `json:"problem,omitempty"`
}

// Event is where an event is in the log, and who has it.
type Event struct {
	ID       string    `json:"id"`
	Type     string    `json:"type"`
	Source   string    `json:"source"`
	Time     time.Time `json:"time"`
	Stored   time.Time `json:"stored"`
	Sequence uint64    `json:"sequence"`
	Index    int       `json:"index"`
	Record   uint64    `json:"record"`
	Replay   string    `json:"replay,omitempty"`
	// Settled says for each destination that reads its type whether the frame of the
	// event is done there.
	Settled []SettledFrame `json:"settled"`
}

// SettledFrame tells whether a destination has done with a frame.
type SettledFrame struct {
	Destination string `json:"destination"`
	Done        bool   `json:"done"`
}

// Reader is what answers questions about the books: [Books] itself, or over the bus the
// process that keeps them.
type Reader interface {
	Summary(ctx context.Context) (Summary, error)
	Sources(ctx context.Context) ([]SourceBalance, error)
	// Pulls returns a page, newest first.
	Pulls(ctx context.Context, f Filter) (Page, error)
	// Pull returns one, by its id of 32 hex digits. Errors: books.unknown.
	Pull(ctx context.Context, id string) (Trail, error)
	// Trace follows an object (s3://bucket/key), a message or a pull by its id. For an
	// event see [Trace]. Errors: books.unknown.
	Trace(ctx context.Context, what string) (Journey, error)
	// Settled says for each destination that reads events of a type whether it has done
	// with the frame of a sequence of EVENTS.
	Settled(ctx context.Context, eventType string, sequence uint64) ([]SettledFrame, error)
}

// Progress is told how many of how many messages are done.
type Progress func(done, total uint64)
