// Package jobs holds what operators can have done that takes time: a type for each kind
// of job, which whoever asks for it and whoever does it share.
package jobs

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/topology"
)

// Kinds of jobs.
const (
	// KindReplay sends events of the log to one destination again. Needs deliver.
	KindReplay = "replay"
	// KindReparse sends records through parse again. Needs operate.
	KindReparse = "reparse"
	// KindRedrive sends quarantined things to the stage that refused them. Needs operate.
	KindRedrive = "redrive"
	// KindDiscard throws quarantined things away. Needs operate.
	KindDiscard = "discard"
	// KindBackfill announces the objects of a bucket, or reads a time range of an API.
	// Needs ingest.
	KindBackfill = "backfill"
	// KindReconcile compares a source with the ledger and announces what is missing.
	// Needs ingest.
	KindReconcile = "reconcile"
)

// NeedsOperate is what each process that operates can do.
const NeedsOperate = "operate"

// NeedsAdHoc is what nobody has but the command that made the job.
const NeedsAdHoc = "ad hoc"

// NeedsDestination is what the process must have for a job that delivers.
func NeedsDestination(name string) string { return "deliver " + name }

// NeedsSource is what the process must have for a job that reads a source.
func NeedsSource(name string) string { return "ingest " + name }

var errSpec = fault.Define("jobs.unreadable", fault.Reject,
	"start the job anew with this version of penstock: another one wrote it")

// Read reads the spec of a job.
func Read[T any](j *topology.Job) (T, error) {
	var spec T
	if err := json.Unmarshal(j.Spec, &spec); err != nil {
		return spec, errSpec.New(err, "read what job %s is to do", j.ID)
	}
	return spec, nil
}

// ReadCheckpoint reads where to go on; the zero value at the first time.
func ReadCheckpoint[T any](j *topology.Job) (T, error) {
	var at T
	if len(j.Checkpoint) == 0 {
		return at, nil
	}
	if err := json.Unmarshal(j.Checkpoint, &at); err != nil {
		return at, errSpec.New(err, "read how far job %s is", j.ID)
	}
	return at, nil
}

// Write is the spec of a job as it is stored.
func Write(spec any) json.RawMessage {
	data, err := json.Marshal(spec)
	if err != nil {
		panic(fmt.Sprintf("a spec of type %T cannot be written: %v", spec, err)) // a mistake of ours
	}
	return data
}

// Span is a stretch of time; a zero end is open.
type Span struct {
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
}

// Events says which events of the log are meant. Empty fields mean all.
type Events struct {
	// Span is over the time at which the log stored them.
	Span
	// Types may have the wildcards of NATS.
	Types   []string `json:"types,omitempty"`
	Sources []string `json:"sources,omitempty"`
	// Object is what they came from: s3://bucket/key, or the id of an SQS message. A key
	// may end in *.
	Object string `json:"object,omitempty"`
	// Text is what a document has somewhere, whatever the case of its letters.
	Text string `json:"text,omitempty"`
	// Where is a CEL expression, as in a destination.
	Where string `json:"where,omitempty"`
}

// Replay is what a job of kind replay does.
type Replay struct {
	Events      Events `json:"events"`
	Destination string `json:"destination"`
	// Rate bounds it, in events a second; 0 does not.
	Rate float64 `json:"rate,omitempty"`
	// First is the first sequence of EVENTS that is meant, Until the first behind them.
	// The span was looked up when the job was made: what came later is not meant.
	First uint64 `json:"first"`
	Until uint64 `json:"until"`
	// Total events, of Bytes before compression, as they were counted; 0 when they were not.
	Total uint64 `json:"total,omitempty"`
	Bytes uint64 `json:"bytes,omitempty"`
	// AdHoc: the destination is not configured; only the command that has its
	// configuration does the job.
	AdHoc bool `json:"ad_hoc,omitempty"`
}

// Reparse is what a job of kind reparse does.
type Reparse struct {
	// Span is over the time at which RECORDS stored the records.
	Span
	Sources []string `json:"sources,omitempty"`
	Object  string   `json:"object,omitempty"`
	// Destination gets the events alone; empty: they enter the log, for all.
	Destination string `json:"destination,omitempty"`
	// Rate bounds it, in records a second; 0 does not.
	Rate float64 `json:"rate,omitempty"`
	// First and Until are sequences of RECORDS, as in Replay.
	First uint64 `json:"first"`
	Until uint64 `json:"until"`
	// Total records, as they were counted; 0 when they were not.
	Total uint64 `json:"total,omitempty"`
	Bytes uint64 `json:"bytes,omitempty"`
}

// Entries says which entries of the quarantine are meant. Empty fields mean all.
type Entries struct {
	Span
	IDs         []string `json:"ids,omitempty"`
	Stage       string   `json:"stage,omitempty"`
	Source      string   `json:"source,omitempty"`
	Code        string   `json:"code,omitempty"`
	Destination string   `json:"destination,omitempty"`
	Text        string   `json:"text,omitempty"`
}

// Redrive is what the jobs of the kinds redrive and discard do.
type Redrive struct {
	Entries Entries `json:"entries"`
	// Rate bounds it, in entries a second; 0 does not.
	Rate float64 `json:"rate,omitempty"`
	// AllowOnce lifts the limit over which an entry failed, for this one time.
	AllowOnce bool `json:"allow_once,omitempty"`
	// Until is the first sequence of QUARANTINE that is not meant, so that what fails
	// again is not taken up again by the same job.
	Until uint64 `json:"until"`
}

// Backfill is what a job of kind backfill does.
type Backfill struct {
	Source string `json:"source"`
	// Span is over the time of writing of objects, or of the events of an API.
	Span
	// Bucket and Prefix, for sources that read objects.
	Bucket string `json:"bucket,omitempty"`
	Prefix string `json:"prefix,omitempty"`
	// Rate bounds it, in objects or API calls a second; 0 leaves it to the pipeline.
	Rate float64 `json:"rate,omitempty"`
	// SkipKnown leaves out objects of which the ledger says that they are complete: they
	// would come twice, if they are older than what dedupe remembers.
	SkipKnown bool `json:"skip_known,omitempty"`
	// Count only counts; nothing is announced.
	Count bool `json:"count,omitempty"`
	// Total and TotalBytes are what was counted before, 0 when nobody did.
	Total      uint64 `json:"total,omitempty"`
	TotalBytes uint64 `json:"total_bytes,omitempty"`
}

// Reconcile is what a job of kind reconcile does.
type Reconcile struct {
	Backfill
	// Digests has CloudTrail's digest files compared, not the listing of the bucket.
	Digests bool `json:"digests,omitempty"`
	// PublicKeys are those that digest files were signed with, by their fingerprints:
	// PKCS #1, DER. Without any CloudTrail is asked for them.
	PublicKeys map[string][]byte `json:"public_keys,omitempty"`
	// Requeue announces what is missing; else it is only said.
	Requeue bool `json:"requeue,omitempty"`
	// Grace is how old an object must be, or how long ago it was announced, to be called
	// missing before it is finished; 0 is ten minutes.
	Grace time.Duration `json:"grace,omitempty"`
}

// Report is what a reconciliation came to.
type Report struct {
	// Objects that were compared, and their bytes.
	Objects uint64 `json:"objects"`
	Bytes   uint64 `json:"bytes"`
	// States counts them by what the ledger knows: see package known.
	States map[string]uint64 `json:"states"`
	// Missing are those that are not complete, Requeued what was announced of them.
	Missing  uint64 `json:"missing"`
	Requeued uint64 `json:"requeued"`
	// NotWanted were left out, as the source has it: by its keys, or because they are
	// empty.
	NotWanted uint64 `json:"not_wanted"`
	// Digests is what digest files prove; nil without them.
	Digests *Digests `json:"digests,omitempty"`
	// UnderWay are too young to be called missing.
	UnderWay uint64 `json:"under_way"`
	// NoLedger: nobody keeps one, so that States are empty.
	NoLedger bool `json:"no_ledger,omitempty"`
	// Behind is how many facts the ledger had not read when it was asked last.
	Behind uint64 `json:"behind,omitempty"`
	// Findings are what is wrong, one by one, and Cut how many had no room.
	Findings []Finding `json:"findings,omitempty"`
	Cut      uint64    `json:"cut,omitempty"`
}

// Digests is what a chain of CloudTrail's digest files proves.
type Digests struct {
	// Chains are those of regions and accounts, Files all digest files in them.
	Chains int    `json:"chains"`
	Files  uint64 `json:"files"`
	// LogFiles are named by them, and Verified have the bytes that were signed.
	LogFiles uint64 `json:"log_files"`
	Verified uint64 `json:"verified"`
	// Bad counts what is wrong, by what that is: see package digest.
	Bad map[string]uint64 `json:"bad,omitempty"`
}

// Finding is one thing that is wrong.
type Finding struct {
	// What is a state of package known, or what a digest file proves to be wrong.
	What   string `json:"what"`
	Bucket string `json:"bucket"`
	Key    string `json:"key"`
	ETag   string `json:"etag,omitempty"`
	Size   int64  `json:"size,omitempty"`
	// Written is when the object was.
	Written time.Time `json:"written,omitzero"`
	// Pull of the ledger, in hex, and the code of why it is not complete.
	Pull string `json:"pull,omitempty"`
	Code string `json:"code,omitempty"`
	// Detail in words.
	Detail   string `json:"detail,omitempty"`
	Requeued bool   `json:"requeued,omitempty"`
}
