// Package quarantine looks into what could not be processed, sends it to the stage that
// refused it, or throws it away.
//
//	QUARANTINE ──▶ redrive ──▶ the subject or the process that the stage takes it from
//	                  └──────▶ ledger: Announced again, Resolved
//
// An entry is deleted once what was made of it is durable, and not before. What is made
// has ids that follow from the entry alone, so that a crash between the two, or another
// operator who does the same, repeats nothing.
package quarantine

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/topology"
)

// Filter says which entries are meant. Empty fields mean all.
type Filter = jobs.Entries

// Entry is one thing in quarantine.
type Entry struct {
	ID string `json:"id"`
	// Sequence is its place in QUARANTINE: newer ones have larger ones.
	Sequence uint64    `json:"sequence"`
	Time     time.Time `json:"time"`
	Stage    string    `json:"stage"`
	Source   string    `json:"source"`
	Code     string    `json:"code"`
	Reason   string    `json:"reason"`
	// Fix is how to mend it, as the catalogue of this version says.
	Fix string `json:"fix,omitempty"`
	// Origin is what it came from, in words: s3://bucket/key, sqs message id.
	Origin      string `json:"origin"`
	Pull        string `json:"pull,omitempty"`
	Destination string `json:"destination,omitempty"`
	// Record is the ordinal of the first record concerned, Records how many: 0 when the
	// thing as a whole failed.
	Record  uint64 `json:"record"`
	Records uint64 `json:"records"`
	// Offset and Length of the bytes concerned in the decompressed object, -1 unknown.
	Offset   int64  `json:"offset"`
	Length   int64  `json:"length"`
	Attempts uint32 `json:"attempts"`
	// Holds is what the payload is: record, frame, notice, sqs_body, event, bytes.
	Holds  string `json:"holds"`
	Format string `json:"format,omitempty"`
	Size   int    `json:"payload_bytes"`
	Cut    bool   `json:"payload_cut"`
	// EventID, EventType and EventTime are those of an event.
	EventID   string     `json:"event_id,omitempty"`
	EventType string     `json:"event_type,omitempty"`
	EventTime *time.Time `json:"event_time,omitempty"`
	Account   string     `json:"account,omitempty"`
	Region    string     `json:"region,omitempty"`
	Subject   string     `json:"subject,omitempty"`
	Trace     string     `json:"traceparent,omitempty"`
	// Version is that of the program that refused it.
	Version string `json:"penstock"`
	// Redrive says where it goes; Blocked why it cannot, "" when it can.
	Redrive string `json:"redrive,omitempty"`
	Blocked string `json:"blocked,omitempty"`
	// Liftable: its limit can be lifted for one time.
	Liftable bool `json:"liftable,omitempty"`
	// Payload are the bytes; Get alone fills it in.
	Payload []byte `json:"payload,omitempty"`
}

// Page is a stretch of the entries, newest first.
type Page struct {
	Entries []Entry `json:"entries"`
	// Next is what List takes for the page after this one, while there is More.
	Next uint64 `json:"next,omitempty"`
	More bool   `json:"more"`
}

// Count is how many entries have a name in common.
type Count struct {
	Name    string `json:"name"`
	Entries uint64 `json:"entries"`
	// Records that they stand for; a thing without records counts 1.
	Records uint64 `json:"records"`
	Bytes   uint64 `json:"bytes"`
}

// Facets counts entries by what they have in common, the largest first, days by day.
type Facets struct {
	Entries       uint64  `json:"entries"`
	Records       uint64  `json:"records"`
	Bytes         uint64  `json:"bytes"`
	ByStage       []Count `json:"by_stage"`
	BySource      []Count `json:"by_source"`
	ByCode        []Count `json:"by_code"`
	ByDestination []Count `json:"by_destination"`
	ByDay         []Count `json:"by_day"`
	// Liftable entries failed over a limit that can be lifted for one time; Blocked
	// cannot be redriven as they are.
	Liftable uint64 `json:"liftable"`
	Blocked  uint64 `json:"blocked"`
	// First and Last are when the oldest and the newest were refused.
	First time.Time `json:"first,omitzero"`
	Last  time.Time `json:"last,omitzero"`
	// Until is the first sequence of QUARANTINE that was not there yet: what
	// StartRedrive takes, so that it concerns what was counted.
	Until uint64 `json:"until"`
}

// Redrive tells what StartRedrive is to do.
type Redrive = jobs.Redrive

// List returns up to limit entries that fit f, the newest first; after is 0, or what the
// page before said.
func List(ctx context.Context, bus *topology.Bus, f Filter, limit int, after uint64) (Page, error) {
	return list(ctx, bus, f, limit, after)
}

// FacetsOf counts the entries that fit f.
func FacetsOf(ctx context.Context, bus *topology.Bus, f Filter) (Facets, error) {
	return facets(ctx, bus, f, 0)
}

// Get returns one entry with its bytes. The id may be shortened as long as it fits one
// entry alone. Errors: quarantine.no_entry, quarantine.ambiguous.
func Get(ctx context.Context, bus *topology.Bus, id string) (Entry, error) {
	return get(ctx, bus, id)
}

// Export writes the entries that fit f to w, oldest first, a JSON document a line, with
// their bytes in base64. It returns how many.
func Export(ctx context.Context, bus *topology.Bus, f Filter, w io.Writer) (uint64, error) {
	return export(ctx, bus, f, w)
}

// StartRedrive has the entries redriven by a job. Who, why and how many is written down
// first. Via is console or command. Spec.Until 0 means what is there now.
func StartRedrive(ctx context.Context, bus *topology.Bus, spec Redrive, by, via, reason string) (topology.Job, error) {
	return start(ctx, bus, jobs.KindRedrive, spec, by, via, reason)
}

// StartDiscard has the entries thrown away by a job, as StartRedrive. A reason is needed.
func StartDiscard(ctx context.Context, bus *topology.Bus, spec Redrive, by, via, reason string) (topology.Job, error) {
	return start(ctx, bus, jobs.KindDiscard, spec, by, via, reason)
}

// Workers do the jobs, in a process that operates.
func Workers(bus *topology.Bus) []topology.JobWorker {
	return []topology.JobWorker{{
		Can: func(j *topology.Job) bool {
			return (j.Kind == jobs.KindRedrive || j.Kind == jobs.KindDiscard) && j.Needs == jobs.NeedsOperate
		},
		Run: func(ctx context.Context, r *topology.JobRun) error { return run(ctx, bus, r) },
	}}
}

// entryOf is an entry as people see it, without its bytes.
func entryOf(q *messages.Quarantine, sequence uint64) Entry {
	e := Entry{
		ID: q.GetId(), Sequence: sequence, Time: time.Unix(0, q.GetTime()).UTC(), Stage: q.GetStage(), Source: q.GetSource(),
		Code: q.GetCode(), Reason: q.GetReason(), Origin: OriginName(q.GetOrigin()), Pull: hex.EncodeToString(q.GetOrigin().GetPull()),
		Destination: q.GetDestination(), Record: q.GetRecord(), Records: q.GetRecords(), Offset: q.GetOffset(), Length: q.GetLength(),
		Attempts: q.GetAttempts(), Holds: strings.ToLower(strings.TrimPrefix(q.GetHolds().String(), "HOLDS_")), Format: q.GetFormat(),
		Size: len(q.GetPayload()), Cut: q.GetCut(), EventID: hex.EncodeToString(q.GetEventId()), EventType: q.GetEventType(),
		Account: q.GetAccount(), Region: q.GetRegion(), Subject: q.GetSubject(), Trace: q.GetTraceparent(), Version: q.GetPenstock(),
	}
	e.Fix = fixes()[q.GetCode()]
	e.Liftable = Liftable(q.GetCode())
	var way way
	way, e.Blocked = wayOf(q)
	e.Redrive = way.words(q)
	if q.GetEventTime() != 0 {
		t := time.Unix(0, q.GetEventTime()).UTC()
		e.EventTime = &t
	}
	return e
}

// OriginName is how people name what an origin means.
func OriginName(o *messages.Origin) string {
	switch {
	case o.GetKey() != "" && o.GetVersion() != "":
		return fmt.Sprintf("s3://%s/%s?versionId=%s", o.GetBucket(), o.GetKey(), o.GetVersion())
	case o.GetKey() != "":
		return "s3://" + o.GetBucket() + "/" + o.GetKey()
	case o.GetMessageId() != "":
		return "sqs message " + o.GetMessageId()
	case o.GetApi() != "":
		return strings.TrimSpace(o.GetApi() + " " + o.GetResource())
	}
	return "-"
}
