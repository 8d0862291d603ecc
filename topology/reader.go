package topology

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
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
	// Events is how many of a frame of the log are live, Bytes what all its documents
	// have before compression, Source their source. Of frames of an older penstock they
	// are not known: 0 and "".
	Events, Bytes int
	Source        string
	// Attempts is that of the Message.
	Attempts uint32
	// input is where the lane was that stored it; 0 for what no lane has stored.
	input uint64
}

// read takes over what the headers say.
func (s *Stored) read(h nats.Header) {
	s.ID = h.Get(nats.MsgIdHdr)
	if n := h[headerEvents]; len(n) == 1 {
		s.Events, _ = strconv.Atoi(n[0])
		s.Bytes, _ = strconv.Atoi(h.Get(headerBytes))
		s.Source = h.Get(headerSource)
	}
	if n := h[headerAttempts]; len(n) == 1 {
		s.Attempts = attemptsOf(n[0])
	}
	if n := h[headerInput]; len(n) == 1 {
		s.input, _ = strconv.ParseUint(n[0], 10, 64)
	}
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
	filters := r.filters
	if len(filters) == 0 {
		filters = []string{r.subject}
	}
	// The reader may live on a server that lags behind: it has to come as far as the leader
	// says there is something.
	last, err := b.lastFor(ctx, streamOf(r.subject), filters, r.from)
	if err != nil {
		return err
	}
	if err := r.open(ctx); err != nil {
		return err
	}
	defer r.Close()
	for left := r.pending; left > 0 || r.next <= last && last > 0; {
		msg, meta, err := r.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return errRead.New(context.Cause(ctx), "read %s", r.subject)
		case errors.Is(err, errIdle):
			// What the keeper has trimmed meanwhile will not come.
			if left = min(left, r.pending); r.consumer != "" && r.idle(ctx) {
				if r.next > last {
					return nil
				}
				// What was removed meanwhile is not waited for.
				if now, err := b.lastFor(ctx, streamOf(r.subject), filters, r.from); err == nil && now < max(1, r.next) {
					return nil
				}
			}
			continue
		case err != nil:
			return err
		}
		left -= min(left, 1)
		if err := f(storedOf(msg, meta)); err != nil {
			return err
		}
	}
	return nil
}

// storedBatch is how many messages stored asks for at once.
const storedBatch = 64

// stored tells whether a message of a subject with that id was stored since a
// time. The server itself knows ids only for the duplicate window. It needs no consumer:
// who writes a stream need not be able to make one there. Source: NATS ADR-31.
func (b *Bus) stored(ctx context.Context, subject, id string, since time.Time) (bool, error) {
	type request struct {
		Seq      uint64     `json:"seq,omitempty"`
		Since    *time.Time `json:"start_time,omitempty"`
		NextFor  string     `json:"next_by_subj"`
		Batch    int        `json:"batch"`
		MaxBytes int        `json:"max_bytes"`
	}
	ask := request{Since: &since, NextFor: subject, Batch: storedBatch, MaxBytes: pullBytes}
	for {
		last, left, found, err := b.storedIn(ctx, subject, id, ask)
		if err != nil || found || left == 0 {
			return found, err
		}
		ask.Since, ask.Seq = nil, last+1
	}
}

// storedIn looks through one batch. last is the last sequence in it, left how many
// messages there are behind.
func (b *Bus) storedIn(ctx context.Context, subject, id string, ask any) (last, left uint64, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	fail := func(err error) (uint64, uint64, bool, error) {
		return 0, 0, false, errRead.New(err, "look for what was stored as %s", subject)
	}
	data, err := json.Marshal(ask)
	if err != nil {
		return fail(err)
	}
	inbox := b.nc.NewInbox()
	sub, err := b.nc.SubscribeSync(inbox)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := b.nc.PublishRequest("$JS.API.DIRECT.GET."+streamOf(subject), inbox, data); err != nil {
		return fail(err)
	}
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return fail(err)
		}
		switch status := m.Header.Get("Status"); status {
		case "":
		case "204": // the end of the batch
			left, err = strconv.ParseUint(m.Header.Get("Nats-Num-Pending"), 10, 64)
			if err != nil {
				return fail(err)
			}
			return last, left, found, nil
		case "404": // there is none
			return last, 0, found, nil
		default:
			return fail(errors.New(status + " " + m.Header.Get("Description")))
		}
		found = found || m.Header.Get(nats.MsgIdHdr) == id
		if last, err = strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64); err != nil {
			return fail(err)
		}
	}
}

// Follow calls f for every message of the span, those to come included, until ctx
// ends or f returns an error.
func (b *Bus) Follow(ctx context.Context, span Span, f func(Stored) error) error {
	_, heartbeat := b.pullPace()
	r := &orderedReader{bus: b, subject: span.Subject, next: span.FromSequence, from: span.From, pause: heartbeat}
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
	s := Stored{Subject: msg.Subject, Sequence: meta.seq, Time: meta.stored, Data: msg.Data}
	s.read(msg.Header)
	return s
}
