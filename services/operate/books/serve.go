package books

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/known"
	"github.com/penstock/penstock/topology"
)

// request is the name of our questions, askWithin bounds one.
const (
	request   = "books"
	askWithin = 15 * time.Second
)

// maxAnswer bounds an answer: every server takes that, headers included. askPulls is how
// many pulls are asked for at most.
const (
	maxAnswer = 900 << 10
	askPulls  = 200
)

var errAsk = fault.Define("books.question_failed", fault.Retry,
	"look at the log of the process that keeps the books (penstock console, or penstock run without --stage)")

type question struct {
	What     string `json:"what"`
	ID       string `json:"id,omitempty"`
	Filter   Filter `json:"filter,omitzero"`
	Sequence uint64 `json:"sequence,omitempty"`
}

type answer struct {
	Body json.RawMessage `json:"body,omitempty"`
	// Unknown is the error of what the books do not have.
	Unknown string `json:"unknown,omitempty"`
}

// serve answers questions until ctx ends.
func (b *Books) serve(ctx context.Context, bus *topology.Bus) error {
	return bus.Serve(ctx, request, func(ctx context.Context, data []byte) ([]byte, error) {
		var q question
		if err := json.Unmarshal(data, &q); err != nil {
			return nil, errAsk.New(err, "read the question")
		}
		ctx, cancel := context.WithTimeout(ctx, askWithin)
		defer cancel()
		for {
			body, err := b.answer(ctx, &q)
			var a answer
			if errors.Is(err, ErrUnknown) {
				a.Unknown, err = err.Error(), nil
			}
			if err != nil {
				return nil, err
			}
			if body != nil {
				if a.Body, err = json.Marshal(body); err != nil {
					return nil, errAsk.New(err, "answer")
				}
			}
			if len(a.Body) > maxAnswer && q.Filter.Limit > 1 {
				q.Filter.Limit /= 2
				continue
			}
			return json.Marshal(a)
		}
	})
}

func (b *Books) answer(ctx context.Context, q *question) (any, error) {
	switch q.What {
	case "summary":
		return b.Summary(ctx)
	case "sources":
		return b.Sources(ctx)
	case "pulls":
		return b.Pulls(ctx, q.Filter)
	case "pull":
		return b.Pull(ctx, q.ID)
	case "trace":
		return b.Trace(ctx, q.ID)
	case "settled":
		return b.Settled(ctx, q.ID, q.Sequence)
	}
	return nil, errAsk.New(nil, "answer the question %.40q, which this version does not know", q.What)
}

// remote has the process that keeps the books answer.
type remote struct{ bus *topology.Bus }

// Ask reads over the bus, from the process that keeps the books. Errors:
// ledger.nobody_keeps, books.question_failed.
func Ask(bus *topology.Bus) Reader { return remote{bus} }

func ask[T any](ctx context.Context, r remote, q question) (t T, err error) {
	data, err := json.Marshal(q)
	if err != nil {
		return t, errAsk.New(err, "ask for %s", q.What)
	}
	reply, err := r.bus.Request(ctx, request, data, askWithin)
	switch {
	case errors.Is(err, topology.ErrNobody):
		return t, known.ErrNoLedger.New(nil, "ask for %s", q.What)
	case err != nil:
		return t, errAsk.New(err, "ask for %s", q.What)
	}
	var a answer
	if err := json.Unmarshal(reply, &a); err != nil {
		return t, errAsk.New(err, "read the answer about %s", q.What)
	}
	if a.Unknown != "" {
		return t, ErrUnknown.New(nil, "look in the books for the %s %.300q", q.What, q.ID)
	}
	if err := json.Unmarshal(a.Body, &t); err != nil {
		return t, errAsk.New(err, "read the answer about %s", q.What)
	}
	return t, nil
}

// Summary implements [Reader].
func (r remote) Summary(ctx context.Context) (Summary, error) {
	return ask[Summary](ctx, r, question{What: "summary"})
}

// Sources implements [Reader].
func (r remote) Sources(ctx context.Context) ([]SourceBalance, error) {
	return ask[[]SourceBalance](ctx, r, question{What: "sources"})
}

// Pulls implements [Reader]. A page may have fewer than Limit.
func (r remote) Pulls(ctx context.Context, f Filter) (Page, error) {
	f.Limit = min(f.Limit, askPulls)
	return ask[Page](ctx, r, question{What: "pulls", Filter: f})
}

// Pull implements [Reader].
func (r remote) Pull(ctx context.Context, id string) (Trail, error) {
	return ask[Trail](ctx, r, question{What: "pull", ID: id})
}

// Trace implements [Reader].
func (r remote) Trace(ctx context.Context, what string) (Journey, error) {
	return ask[Journey](ctx, r, question{What: "trace", ID: what})
}

// Settled implements [Reader].
func (r remote) Settled(ctx context.Context, eventType string, sequence uint64) ([]SettledFrame, error) {
	return ask[[]SettledFrame](ctx, r, question{What: "settled", ID: eventType, Sequence: sequence})
}
