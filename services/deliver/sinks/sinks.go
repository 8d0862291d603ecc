// Package sinks holds the kinds of destinations. Each is one file: its
// configuration, how it writes an event, and how it hands over a batch.
//
// A new sink is one file with one [define] and a harness in the conformance
// suite, which runs over every sink of the [Catalog].
package sinks

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/catalog"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/tag"
	"github.com/penstock/penstock/topology"
)

// Sink hands batches over to one outside system. Methods may run concurrently,
// but for Close.
type Sink interface {
	// Limits says when a batch is sent.
	Limits() Limits
	// Append writes one event to dst in the form in which Deliver sends it. It
	// adds at least one byte and keeps nothing of e.
	Append(dst []byte, e *Event) []byte
	// Deliver hands b over and says what became of it. What it calls done is
	// durable at the far side, as far as that side can promise it. Nothing of b
	// is used after it returned. It may get the same events again. It returns
	// soon after ctx ended.
	Deliver(ctx context.Context, b Batch) Result
	// Close frees connections and files. Deliver is not called after it.
	Close() error
}

// Server is a sink that also has something to run beside deliveries, e.g. a server
// from which others fetch events.
type Server interface {
	Sink
	// Run works until ctx ends, and returns within Deps.Drain after that. An error ends
	// the process.
	Run(ctx context.Context) error
}

// Patient is a sink that holds batches for minutes before it confirms them together.
// It gets more frames at once.
type Patient interface {
	Sink
	// Frames is how many frames of the log, of any size, may wait to be confirmed.
	Frames() int
	// Hurry tells that no more will come before something held is confirmed, that events
	// get too old to be waited for, or that the process stops: what is held is to be
	// committed now. It does not wait, and may be called from within Release.
	Hurry()
}

// Catalog holds every kind of sink.
var Catalog = catalog.New[Deps, Sink]("destination")

// Deps is what a sink gets from the process.
type Deps struct {
	// Destination is the configured name.
	Destination string
	// Stdout is where the sink stdout writes to; nil is os.Stdout.
	Stdout io.Writer
	// Log carries the name of the destination; it may be nil.
	Log *slog.Logger
	// Bus is the connection of the stage; it may be nil in tests of kinds that do
	// not need it.
	Bus *topology.Bus
	// Events reads the event log as this destination sees it; it may be nil, as Bus.
	Events EventLog
	// Drain is how long Run may go on with what it has in hand after ctx ended.
	Drain time.Duration
	// Replay is the job for which the destination is opened a second time, "" for live
	// events.
	Replay string
	// Tags returns how the events of a source are tagged for Devo. Nil: as a source
	// that says nothing.
	Tags func(source string) *tag.Resolver
}

// ErrLogTrimmed is that of a place whose events the log may not have any more.
var ErrLogTrimmed = fault.Define("deliver.log_trimmed", fault.Reject,
	"read on from the oldest event that is kept; keep events for longer (bus.keep, bus.disk), or fetch them more often")

// ErrNoTypes is that of types none of which the destination has.
var ErrNoTypes = fault.Define("deliver.no_such_types", fault.Stop,
	"let types of the destination and those of its part have something in common")

// EventLog is the event log as one destination sees it: its types, its expression,
// its masks. Methods may be called concurrently.
type EventLog interface {
	// Only is what of the log has one of these types, with the wildcards of NATS; none
	// means all. Errors: deliver.no_such_types.
	Only(types []string) (EventLog, error)
	// Subjects are those that the types have on the bus.
	Subjects() []string
	// Bounds are the first sequence that is kept and the one behind the last, and
	// the first that was stored at or after a time, which may be behind the last; next
	// when there is none.
	Bounds(ctx context.Context, since time.Time) (first, at, next uint64, err error)
	// Read calls f for the events at and after a place, each with its own place, in the
	// order of the log, until f returns false or what is stored when it begins is read. f
	// keeps nothing of the event. Place is before the event for which f returned false,
	// or behind all that was read, also with an error. Errors: deliver.log_trimmed.
	Read(ctx context.Context, from Place, f func(Place, *Event) bool) (Place, error)
	// Wait returns nil as soon as something is stored at or behind a place, and the
	// cause of ctx when that ends before.
	Wait(ctx context.Context, from Place) error
	// Behind counts the frames at and behind a place, before the expression is asked,
	// and says when the first of them was stored.
	Behind(ctx context.Context, from Place) (frames uint64, oldest time.Time, err error)
}

// Place is a place in the event log: before event Index of the frame with a sequence.
type Place struct {
	Sequence uint64
	Index    int
}

func define[C any](name, doc string, defaults func() C, open func(context.Context, C, Deps) (Sink, error)) {
	catalog.Define(Catalog, name, doc, defaults, open)
}

// Limits bounds a batch. It is sent when the first of them is met.
type Limits struct {
	// Events caps the events in a batch. Unit: events.
	Events int `yaml:"events"`
	// Bytes caps a batch as it is encoded, before compression. A single event that is larger is sent alone. Unit: bytes.
	Bytes config.Bytes `yaml:"bytes"`
	// Age is how long the first event of a batch waits for more. Unit: duration; 0 sends at once.
	Age time.Duration `yaml:"age"`
}

// Validate reports every problem.
func (l Limits) Validate() error {
	var p config.Problems
	p.Need(l.Events >= 1 && l.Events <= 1_000_000, "events", "use 1 to 1000000 events, e.g. 1000")
	p.Need(l.Bytes >= 1 && l.Bytes <= 256*config.MiB, "bytes", "use 1 B to 256 MiB, e.g. 1 MiB")
	p.Need(l.Age >= 0 && l.Age <= time.Hour, "age", "use 0s to 1h, e.g. 1s")
	return p.Err()
}

// Event is one event as a sink writes it. Its document is valid UTF-8.
type Event struct {
	ID           messages.ID
	Type, Source string
	// Format is the name of the format that the source's records had.
	Format          string
	Account, Region string
	// Time in Unix ns, 0 when unknown.
	Time int64
	// Replay is the job that has the event sent once more, "" for the first time.
	Replay string
	// Doc is one JSON value, perhaps over several lines.
	Doc []byte
}

// Item is the place of one event in the bytes of a batch.
type Item struct {
	ID         messages.ID
	Start, End int
}

// Batch is encoded events, one right after the other.
type Batch struct {
	data    []byte
	items   []Item
	release func()
	replay  string
}

// NewBatch makes a batch of items that lie side by side in data.
func NewBatch(data []byte, items []Item) Batch { return Batch{data: data, items: items} }

// Releasing is the batch with what Release calls.
func (b Batch) Releasing(f func()) Batch {
	b.release = f
	return b
}

// Replaying is the batch of a replay: all its events are sent once more.
func (b Batch) Replaying(job string) Batch {
	b.replay = job
	return b
}

// Replay is the job that has all of the batch sent once more, "" for live events. What a
// receiver knows a repetition by has to differ then: it is meant.
func (b Batch) Replay() string { return b.replay }

// Release tells that the sink has taken the bytes over and holds the batch until more
// have come: it is not counted against concurrency and max_in_hand any more, and
// nothing of b may be used after it. With a verdict other than Done or Reject the
// events are read from the log again, so that a sink with a place to put bytes needs no
// memory for them.
func (b Batch) Release() {
	if b.release != nil {
		b.release()
	}
}

// Len is the number of events, at least 1 when it comes to a sink.
func (b Batch) Len() int { return len(b.items) }

// Bytes of all events.
func (b Batch) Bytes() []byte {
	if len(b.items) == 0 {
		return nil
	}
	return b.data[b.items[0].Start:b.items[len(b.items)-1].End]
}

// Event returns the bytes of event i.
func (b Batch) Event(i int) []byte { return b.data[b.items[i].Start:b.items[i].End] }

// ID returns the id of event i.
func (b Batch) ID(i int) messages.ID { return b.items[i].ID }

// Verdict says what became of events and what to do about them.
type Verdict uint8

// The verdicts.
const (
	// Done: durable at the far side.
	Done Verdict = iota
	// Retry: an outage or throttling; send the same again later. Where it holds for
	// what is left after an item was rejected, the far side has stopped there and not
	// looked at the rest: that is sent again at once.
	Retry
	// Split: refused as a whole, though perhaps not all of it is bad: send halves.
	// A single event is rejected.
	Split
	// TooLarge: as Split, and later batches should be smaller.
	TooLarge
	// Reject: will never be taken: quarantine.
	Reject
	// Stop: nothing will be taken until somebody changes something: alarm, keep
	// all, try again now and then.
	Stop
)

func (v Verdict) String() string {
	return [...]string{"done", "retry", "split", "too_large", "reject", "stop"}[v]
}

// Result is the answer to a batch. The zero Result is: all done.
type Result struct {
	// Verdict holds for every event that Items does not name.
	Verdict Verdict
	// Err is a fault that says why, nil with Done.
	Err error
	// After is how long the far side asked to be left alone, 0 when it did not.
	After time.Duration
	// Items are the exceptions, by rising index; Done, Retry or Reject each.
	Items []Exception
}

// Exception is the verdict on one event of a batch.
type Exception struct {
	Index   int
	Verdict Verdict
	Err     error
}
