package topology

import (
	"context"
	"encoding/json"
	"time"

	"github.com/nats-io/nuid"

	"github.com/penstock/penstock/messages/fault"
)

var errAudit = fault.Define("bus.audit_failed", fault.Retry,
	"check that the stream "+Audit+" exists and has room: penstock topology apply; nothing is done that cannot be written down")

// AuditSubject is where what operators do is written down.
const AuditSubject = "penstock.audit"

// Deed is something that an operator had done, as the audit has it.
type Deed struct {
	ID string    `json:"id"`
	At time.Time `json:"at"`
	// By is who: the name in the console, or user@host of a command.
	By string `json:"by"`
	// Via is console or command.
	Via string `json:"via"`
	// Action is a verb with its object, e.g. quarantine.redrive, destination.pause.
	Action string `json:"action"`
	// What it was done to, in words or as the filter that was given.
	What string `json:"what"`
	// Count is how many things it concerned, by the count that was shown before.
	Count uint64 `json:"count"`
	// Reason is what the operator gave as such.
	Reason string `json:"reason,omitempty"`
	// Job does it, when it takes time.
	Job string `json:"job,omitempty"`
	// Result is how it ended, where that is known: a job writes another deed then.
	Result string `json:"result,omitempty"`
}

// WriteAudit stores a deed, and returns once it is durable. Do so before the deed. ID and
// At are filled in when empty. Errors: bus.audit_failed.
func (b *Bus) WriteAudit(ctx context.Context, d Deed) error {
	if d.ID == "" {
		d.ID = nuid.Next()
	}
	if d.At.IsZero() {
		d.At = time.Now().UTC()
	}
	data, err := json.Marshal(d)
	if err != nil {
		return errAudit.New(err, "write down %s", d.Action)
	}
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	if err := b.storeSlow(ctx, Message{Subject: AuditSubject, ID: d.ID, Data: data}); err != nil {
		return errAudit.New(err, "write down %s", d.Action)
	}
	return nil
}

// ReadAudit calls f for the deeds since a time, oldest first, until it returns false.
func (b *Bus) ReadAudit(ctx context.Context, since time.Time, f func(Deed) bool) error {
	h := b.History(Audit, nil)
	first, next, err := h.Bounds(ctx)
	if err != nil {
		return err
	}
	if !since.IsZero() {
		at, found, err := h.Since(ctx, since)
		if err != nil || !found {
			return err
		}
		first = at
	}
	return h.Read(ctx, first, next, func(m Stored) (bool, error) {
		var d Deed
		if err := json.Unmarshal(m.Data, &d); err != nil {
			return true, nil //nolint:nilerr // one that cannot be read hides no other
		}
		return f(d), nil
	})
}
