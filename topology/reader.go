package topology

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/penstock/penstock/messages/fault"
)

var errRead = fault.Define("bus.read_failed", fault.Retry,
	"check that the stream exists and the server answers: penstock topology show")

// Stored is a message as a stream keeps it.
type Stored struct {
	Subject  string
	Sequence uint64
	Time     time.Time
	ID       string
	Data     []byte
}

// Span is a stretch of a stream.
type Span struct {
	// Subject names the stream, and what of it is wanted; wildcards as in NATS.
	Subject string
	// FromSequence or From is where it begins; both zero: at the first message kept.
	FromSequence uint64
	From         time.Time
}

// Read calls f for every message of the span that is stored when it begins, in
// order, and returns. An error of f ends it.
func (b *Bus) Read(ctx context.Context, span Span, f func(Stored) error) error {
	return b.read(ctx, &orderedReader{bus: b, subject: span.Subject, next: span.FromSequence, from: span.From}, f)
}

func (b *Bus) read(ctx context.Context, r *orderedReader, f func(Stored) error) error {
	if err := r.open(ctx); err != nil {
		return err
	}
	defer r.Close()
	for left := r.pending; left > 0; {
		msg, meta, err := r.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return errRead.New(context.Cause(ctx), "read %s", r.subject)
		case errors.Is(err, errIdle):
			// What the keeper has trimmed meanwhile will not come.
			if left = min(left, r.pending); r.consumer != "" && r.idle(ctx) {
				return nil
			}
			continue
		case err != nil:
			return err
		}
		left--
		if err := f(storedOf(msg, meta)); err != nil {
			return err
		}
	}
	return nil
}

// stored tells whether a message of a subject with that id was stored since a
// time. The server itself knows ids only for the duplicate window.
func (b *Bus) stored(ctx context.Context, subject, id string, since time.Time) (bool, error) {
	found := errors.New("found")
	err := b.read(ctx, &orderedReader{bus: b, subject: subject, from: since, headersOnly: true}, func(m Stored) error {
		if m.ID == id {
			return found
		}
		return nil
	})
	if errors.Is(err, found) {
		return true, nil
	}
	return false, err
}

// Follow calls f for every message of the span, those to come included, until ctx
// ends or f returns an error.
func (b *Bus) Follow(ctx context.Context, span Span, f func(Stored) error) error {
	r := &orderedReader{bus: b, subject: span.Subject, next: span.FromSequence, from: span.From}
	if err := r.open(ctx); err != nil {
		return err
	}
	defer r.Close()
	for {
		msg, meta, err := r.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errIdle):
			continue
		case err != nil:
			return err
		}
		if err := f(storedOf(msg, meta)); err != nil {
			return err
		}
	}
}

func storedOf(msg *nats.Msg, meta metadata) Stored {
	return Stored{Subject: msg.Subject, Sequence: meta.seq, Time: meta.stored, ID: msg.Header.Get(nats.MsgIdHdr), Data: msg.Data}
}
