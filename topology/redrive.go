package topology

import (
	"context"
	"errors"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/messages/fault"
)

var errDelete = fault.Define("bus.delete_failed", fault.Retry,
	"check that the NATS user may delete messages of the stream "+Quarantine+", and that the server answers: penstock topology show")

// headerAttempts is how often what a message holds was tried before it went to
// quarantine, from where it comes. Without it, what fails again would look as if it
// failed for the first time, and be the same entry.
const headerAttempts = "Penstock-Attempts"

// attemptsOf reads the header.
func attemptsOf(value string) uint32 {
	if value == "" {
		return 0
	}
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// setAttempts writes the header.
func setAttempts(h nats.Header, n uint32) {
	if n > 0 {
		h[headerAttempts] = []string{strconv.FormatUint(uint64(n), 10)}
	}
}

// NewRedriveOutbox returns an Outbox for what comes from quarantine and is judged without
// a message of the bus: what it refuses again has that many more attempts.
func (b *Bus) NewRedriveOutbox(stage Stage, attempts uint32) Outbox {
	return &outbox{bus: b, stage: stage, redriven: attempts}
}

// Unquarantine deletes the entry with a sequence from QUARANTINE. It reports whether it
// was still there. Errors: bus.delete_failed.
func (b *Bus) Unquarantine(ctx context.Context, sequence uint64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	s, err := b.History(Quarantine, nil).open(ctx)
	if err != nil {
		return false, err
	}
	if err = s.DeleteMsg(ctx, sequence); err == nil {
		return true, nil
	}
	// The server says in words alone why not.
	if _, getErr := s.GetMsg(ctx, sequence); errors.Is(getErr, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	return false, errDelete.New(err, "delete entry %d of %s", sequence, Quarantine)
}

// IDs calls f with the id and the time of every message of a span that is stored when it
// begins, in order, without reading what they hold. An error of f ends it.
func (b *Bus) IDs(ctx context.Context, span Span, f func(Stored) error) error {
	return b.read(ctx, &orderedReader{bus: b, subject: span.Subject, next: span.FromSequence, from: span.From, headersOnly: true}, f)
}

// QuarantineSubjects are those of what a stage refused from a source; * stands for any.
func QuarantineSubjects(stage, source string) string {
	if source != "*" {
		source = token(source)
	}
	if stage != "*" {
		stage = token(stage)
	}
	return "penstock.quarantine." + stage + "." + source
}

// Prefixes of subjects, for what tells only by its subject what it is.
const (
	ParsedPrefix = "penstock.parsed."
	EventPrefix  = "penstock.event."
)

// DestinationToken is the name of a destination as [Bus.Readers] has it.
func DestinationToken(name string) string { return token(name) }
