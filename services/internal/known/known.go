// Package known is how a stage asks what the ledger knows of objects: the stage puts a
// question on the bus, the process that keeps the ledger answers it.
package known

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/topology"
)

// State is what became of an object, by the ledger.
type State string

// The states.
const (
	// Never: no pull of the object is known.
	Never State = "never_announced"
	// Complete: it was read to its end, and all its records are accounted for.
	Complete State = "complete"
	// Open: it was announced, and is not finished.
	Open State = "not_finished"
	// Quarantined: the object, or records of it, are in the quarantine.
	Quarantined State = "quarantined"
	// Truncated: its end was missing; what was there went on.
	Truncated State = "truncated"
	// Changed: it was read as another version than the bucket has now.
	Changed State = "changed"
)

// Object is a thing to ask for, as a listing shows it.
type Object struct {
	Key     string `json:"key"`
	ETag    string `json:"etag,omitempty"`
	Version string `json:"version,omitempty"`
}

// Of is what the ledger knows of an object: the best of its pulls.
type Of struct {
	State State `json:"state"`
	// Pull is the one that says so, in hex; empty for Never.
	Pull string `json:"pull,omitempty"`
	// Announced is when that was, zero when not known.
	Announced time.Time `json:"announced,omitzero"`
	// Code is why it was quarantined or cut.
	Code string `json:"code,omitempty"`
	// Records that it had.
	Records uint64 `json:"records,omitempty"`
	// ETag is what was read, for Changed.
	ETag string `json:"etag,omitempty"`
}

// Question asks for objects of a bucket.
type Question struct {
	// Source that reads them; those that another source read are known as well.
	Source  string   `json:"source"`
	Bucket  string   `json:"bucket"`
	Objects []Object `json:"objects"`
}

// Ledger knows objects.
type Ledger interface {
	// Known says what became of each object of q, in their order. behind is how many
	// facts the answer does not have yet.
	Known(ctx context.Context, q Question) (all []Of, behind uint64, err error)
}

// most bounds one question: as many objects with the longest keys fit into a message
// of 1 MiB.
const most = 500

const question = "ledger-known"

// askWithin bounds one question.
const askWithin = 30 * time.Second

// ErrNoLedger is that of a bus on which no process keeps the ledger.
var ErrNoLedger = fault.Define("ledger.nobody_keeps", fault.Reject,
	"start a process that keeps the ledger: penstock console, or penstock run without --stage")

var errAsk = fault.Define("ledger.question_failed", fault.Retry,
	"look at the log of the process that keeps the ledger (penstock console, or penstock run without --stage)")

type answer struct {
	All    []Of   `json:"all"`
	Behind uint64 `json:"behind"`
}

// Serve answers questions from l until ctx ends.
func Serve(ctx context.Context, bus *topology.Bus, l Ledger) error {
	return bus.Serve(ctx, question, func(ctx context.Context, data []byte) ([]byte, error) {
		var q Question
		if err := json.Unmarshal(data, &q); err != nil {
			return nil, errAsk.New(err, "read the question")
		}
		all, behind, err := l.Known(ctx, q)
		if err != nil {
			return nil, err
		}
		return json.Marshal(answer{all, behind})
	})
}

// Ask asks the process that keeps the ledger. The answer has an entry for each object
// of q; behind is how many facts the ledger had not read by then. Errors:
// ledger.nobody_keeps, ledger.question_failed.
func Ask(ctx context.Context, bus *topology.Bus, q Question) (all []Of, behind uint64, err error) {
	objects := q.Objects
	for len(objects) > 0 {
		n := min(most, len(objects))
		q.Objects, objects = objects[:n], objects[n:]
		data, err := json.Marshal(q)
		if err != nil {
			return nil, 0, errAsk.New(err, "write the question")
		}
		reply, err := bus.Request(ctx, question, data, askWithin)
		switch {
		case errors.Is(err, topology.ErrNobody):
			return nil, 0, ErrNoLedger.New(nil, "ask the ledger for %d objects of %s", n, q.Bucket)
		case err != nil:
			return nil, 0, errAsk.New(err, "ask the ledger for %d objects of %s", n, q.Bucket)
		}
		var a answer
		if err := json.Unmarshal(reply, &a); err != nil || len(a.All) != n {
			return nil, 0, errAsk.New(err, "read the answer of the ledger")
		}
		all, behind = append(all, a.All...), a.Behind
	}
	return all, behind, nil
}
