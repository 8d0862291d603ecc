package topology

import (
	"strconv"
	"strings"
	"time"
)

// Stage names one of the six services, in the order in which data passes them.
type Stage string

// The stages.
const (
	Ingest  Stage = "ingest"
	Fetch   Stage = "fetch"
	Parse   Stage = "parse"
	Dedupe  Stage = "dedupe"
	Route   Stage = "route"
	Deliver Stage = "deliver"
)

// Stages lists them in the order of the flow.
var Stages = []Stage{Ingest, Fetch, Parse, Dedupe, Route, Deliver}

// Streams of the bus. Each is a log that is trimmed by the keeper, not a queue.
const (
	Notices    = "NOTICES"
	Records    = "RECORDS"
	Parsed     = "PARSED"
	Unique     = "UNIQUE"
	Events     = "EVENTS"
	Seen       = "SEEN"
	Quarantine = "QUARANTINE"
	Ledger     = "LEDGER"
	Audit      = "AUDIT"
)

// Stream is one row of the flow: a log, who writes it, who reads it, and how
// long it is kept.
type Stream struct {
	Name string
	// Subjects are what it stores. Whoever reads it without a filter gets the first.
	Subjects []string
	// From and To are the stages that write and read it.
	From, To []Stage
	// Share of the disk budget, in per mille; all together make 1000.
	Share int64
	// Keep is the age up to which history stays, when the disk allows.
	Keep time.Duration
	// History bounds the history in bytes where nobody looks at it again; 0 does
	// not. The server keeps what was written in memory for ten seconds, unless it
	// is gone by then.
	History int64
	// Hold says what the keeper must not trim: what consumers have not
	// acknowledged, what a dedupe lane needs to start again, or nothing.
	Hold Hold
}

// Hold is what protects messages from the keeper.
type Hold uint8

// The holds.
const (
	// HoldNothing: trimmed by age and bytes alone.
	HoldNothing Hold = iota
	// HoldAcks: never past the ack floor of a durable consumer.
	HoldAcks
	// HoldLanes: never past what the dedupe lanes have committed and snapshotted,
	// nor past an ack floor.
	HoldLanes
	// HoldAll: never by bytes: a full stream refuses instead.
	HoldAll
)

const day = 24 * time.Hour

// Flow is the whole pipeline. Subjects come from the functions below.
var Flow = []Stream{
	{Notices, []string{"penstock.notice.>"}, []Stage{Ingest}, []Stage{Fetch}, 10, time.Hour, 0, HoldAcks},
	{Records, []string{"penstock.record.>"}, []Stage{Ingest, Fetch}, []Stage{Parse}, 170, time.Hour, 0, HoldAcks},
	{Parsed, []string{"penstock.parsed.>"}, []Stage{Parse}, []Stage{Dedupe}, 130, 15 * time.Minute, 32 << 20, HoldLanes},
	{Unique, []string{"penstock.unique.>"}, []Stage{Dedupe}, []Stage{Route}, 130, 15 * time.Minute, 32 << 20, HoldLanes},
	{Events, []string{"penstock.event.>", "penstock.again.>"}, []Stage{Route}, []Stage{Deliver}, 455, 3 * day, 0, HoldAcks},
	{Seen, []string{"penstock.seen.>"}, []Stage{Dedupe}, []Stage{Dedupe}, 40, day, 0, HoldNothing},
	{Quarantine, []string{"penstock.quarantine.>"}, Stages, nil, 40, 14 * day, 0, HoldAll},
	{Ledger, []string{"penstock.ledger.>"}, Stages, nil, 20, 7 * day, 0, HoldNothing},
	{Audit, []string{"penstock.audit"}, nil, nil, 5, 365 * day, 0, HoldNothing},
}

// Consumer is one durable reader of a stream.
type Consumer struct {
	Stage   Stage
	Stream  string
	Durable string
	// Filters are subjects; none means all of the stream.
	Filters []string
	// Start is where it begins when it is made; afterwards it has its own position.
	Start Start
	// Window bounds the messages in hand in one process, WindowBytes their bytes.
	Window      int
	WindowBytes int64
	// Destination is for whom it reads the event log, "" for no such.
	Destination string
	// Replay is the job that it reads for, "" for live events.
	Replay string
}

// label is the consumer's name in metrics: replays come and go, and share one.
func (c Consumer) label() string {
	if c.Replay != "" {
		return replayPrefix + c.Destination
	}
	return c.Durable
}

// Start is where a durable reader begins. The zero value is the oldest message kept.
type Start struct {
	// Now begins behind what is stored when the reader is made.
	Now bool
	// Sequence begins with the first message at or after it.
	Sequence uint64
	// Time begins with the first message that was stored at or after it: the oldest
	// one kept when they are all newer, and as Now when they are all older.
	Time time.Time
}

// The consumers of the stages. Dedupe has none: it reads its lanes by position.
var (
	FetchConsumer = Consumer{Stage: Fetch, Stream: Notices, Durable: "fetch", Window: 48, WindowBytes: 1 << 20}
	ParseConsumer = Consumer{Stage: Parse, Stream: Records, Durable: "parse", Window: 256, WindowBytes: 6 << 20}
	RouteConsumer = Consumer{Stage: Route, Stream: Unique, Durable: "route", Window: 64, WindowBytes: 4 << 20}
)

// deliverPrefix is what the names of the readers of destinations begin with.
const deliverPrefix = "deliver-"

// replayPrefix is what the names of the readers of replays begin with.
const replayPrefix = "replay-"

// DeliverConsumer is the reader of a destination: of its types, and of what is sent
// again to it alone. types are event types with NATS wildcards; none means all.
func DeliverConsumer(destination string, types []string, start Start) Consumer {
	c := Consumer{Stage: Deliver, Stream: Events, Durable: deliverPrefix + token(destination), Start: start, Window: 16, WindowBytes: 2 << 20, Destination: destination}
	c.Filters = append(logSubjects(types), AgainSubject(destination))
	return c
}

// ReplayConsumer is the reader of a job that sends events of the log to a destination
// once more. It reads no other replays. Delete it when the job is over: [Bus.EndReplay].
func ReplayConsumer(job, destination string, types []string, start Start) Consumer {
	return Consumer{
		Stage: Deliver, Stream: Events, Durable: replayPrefix + token(job), Filters: logSubjects(types), Start: start,
		Window: 16, WindowBytes: 2 << 20, Destination: destination, Replay: job,
	}
}

// logSubjects are the subjects of event types, none of which another covers: the server
// takes no such filters. None means all.
func logSubjects(types []string) []string {
	if len(types) == 0 {
		types = []string{">"}
	}
	return distinct(EventSubjects(types))
}

// EventSubjects are the subjects of event types, which may have the wildcards of NATS.
func EventSubjects(types []string) []string {
	var subjects []string
	for _, t := range types {
		subjects = append(subjects, "penstock.event."+t)
	}
	return subjects
}

// NoticeSubject is where ingest announces an object of source.
func NoticeSubject(source string) string { return "penstock.notice." + token(source) }

// RecordSubject is where raw records of source go.
func RecordSubject(source string) string { return "penstock.record." + token(source) }

// ParsedSubject is where parse puts events of a dedupe lane.
func ParsedSubject(lane uint32) string { return "penstock.parsed." + strconv.Itoa(int(lane)) }

// UniqueSubject is where dedupe puts the same frames, duplicates marked.
func UniqueSubject(lane uint32) string { return "penstock.unique." + strconv.Itoa(int(lane)) }

// SeenSubject is where dedupe keeps the ids of a lane.
func SeenSubject(lane uint32) string { return "penstock.seen." + strconv.Itoa(int(lane)) }

// EventSubject is the event log's subject of an event type, whose dots stay.
func EventSubject(eventType string) string {
	parts := strings.Split(eventType, ".")
	for i, p := range parts {
		parts[i] = token(p)
	}
	return "penstock.event." + strings.Join(parts, ".")
}

// AgainSubject is the event log's subject of events that go to one destination once
// more: nobody else reads them.
func AgainSubject(destination string) string { return "penstock.again." + token(destination) }

// QuarantineSubject is where a stage puts what it refuses from source.
func QuarantineSubject(stage Stage, source string) string {
	return "penstock.quarantine." + string(stage) + "." + token(source)
}

// LedgerSubject is where a stage puts its counts.
func LedgerSubject(stage Stage) string { return "penstock.ledger." + string(stage) }

// token makes s one legal subject token: what is not a letter, digit, '-' or '_'
// becomes '_', and an empty one "unknown".
func token(s string) string {
	if s == "" {
		return "unknown"
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '_'
	}, s)
}
