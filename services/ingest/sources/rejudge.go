package sources

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"runtime/debug"

	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/topology"
)

var (
	errRejudgeCut = fault.Define("ingest.redrive_cut", fault.Reject,
		"only the beginning of it was kept: have it sent again, and discard the entry")
	errRejudgeHeader = fault.Define("ingest.redrive_no_header", fault.Reject,
		"an older penstock did not keep the line that names the columns: have it sent again, and discard the entry")
	errRejudgeHolds = fault.Define("ingest.redrive_unknown", fault.Reject,
		"update this process to the version of penstock that wrote the entry, then redrive it")
)

// Rejudger is a source that knows better than [Rejudge] what its entries in quarantine
// are.
type Rejudger interface {
	// rejudges returns how the bodies of messages are judged. allow lifts limits.
	rejudges() *admission
}

func (s *sqsSource) rejudges() *admission {
	a := s.admission()
	a.account, a.region = s.account, s.region
	return a
}

// Rejudge judges anew what the source s, which was opened with deps, refused, and hands
// to out what comes of it: notices, frames, or what is refused again. It is done once
// out.Flush has returned. Whatever comes is a pull of its own, whose id follows from the
// entry: done again, it is the same. What makes penstock fail is refused: it must not
// end one process after the other.
func Rejudge(ctx context.Context, s Source, deps Deps, r jobs.Rejudge, out topology.Outbox) (err error) {
	q := r.Entry
	defer func() {
		if p := recover(); p != nil {
			err = errFails.New(errors.New(panicText(p)), "judge entry %s again", q.GetId())
			cmp.Or(deps.Log, slog.Default()).ErrorContext(ctx, "an entry of the quarantine makes penstock fail",
				"entry", q.GetId(), "err", err, "stack", string(debug.Stack()))
		}
	}()
	if q.GetCut() {
		return errRejudgeCut.New(nil, "judge entry %s again, of which %d bytes of %d were kept", q.GetId(), len(q.GetPayload()), q.GetLength())
	}
	var a *admission
	if own, ok := s.(Rejudger); ok {
		a = own.rejudges()
	} else {
		a = &admission{
			source: deps.Name, format: deps.Format, body: BodyEvents, choose: deps.Choose,
			frame: messages.NewBuilder(messages.Header{}), split: framing.New(framing.Framing{}, nil, framing.Limits{}),
		}
	}
	a.alone = true // a frame of its own: its id follows from the entry
	if r.Allow && q.GetCode() == errTooManyBad.Code {
		a.most = math.MaxInt
	}
	l := &letter{
		queue: q.GetOrigin().GetQueue(), id: q.GetOrigin().GetMessageId(), body: string(q.GetPayload()),
		sent: q.GetOrigin().GetCreated(), received: q.GetOrigin().GetReceived(), receives: 1, entry: q,
	}
	var outcomes []outcome
	switch q.GetHolds() {
	case messages.Quarantine_HOLDS_SQS_BODY:
		outcomes = a.admit(l)
	case messages.Quarantine_HOLDS_BYTES, messages.Quarantine_HOLDS_RECORD:
		o, err := a.stretch(l, q)
		if err != nil {
			return err
		}
		outcomes = []outcome{o}
	default:
		return errRejudgeHolds.New(nil, "judge entry %s again, which holds %s", q.GetId(), q.GetHolds())
	}
	for i := range outcomes {
		outcomes[i].again, outcomes[i].job = q.GetOrigin().GetPull(), r.Job
		if err := outcomes[i].send(ctx, out); err != nil {
			return err
		}
	}
	return nil
}

// stretch cuts records out of a stretch of a body that held none.
func (a *admission) stretch(l *letter, q *messages.Quarantine) (outcome, error) {
	body := q.GetPayload()
	o := a.outcome(l, 0, func() []byte { return body })
	named := q.GetFormat()
	if named == "" {
		named = a.format
	}
	format, f, _ := a.choose(named, "", body[:min(len(body), headBytes)])
	switch {
	case format == "":
		o.refuse(errUnreadable.New(nil, "read entry %s: no format fits", q.GetId()))
		return o, nil
	case f.Kind == framing.Array || f.Kind == framing.Auto:
		f = framing.Framing{Kind: framing.Values, Explode: f.Explode} // it is a piece of the array
	case f.Header == framing.FirstLine && len(q.GetHeader()) == 0:
		return o, errRejudgeHeader.New(nil, "read entry %s of format %s", q.GetId(), format)
	}
	if head := q.GetHeader(); len(head) > 0 {
		body = append(append(bytes.Clone(head), '\n'), body...)
	}
	c := cutter{a: a, o: &o, format: format, next: q.GetRecord()}
	c.cut(f, l, body)
	o.as = messages.Announced_AS_EVENTS
	o.fetched = &messages.Fetched{
		Pull: o.origin.GetPull(), Source: a.source, Frames: c.frames, Records: c.next - q.GetRecord(),
		Bytes: uint64(len(q.GetPayload())), RawBytes: uint64(len(q.GetPayload())), End: messages.Fetched_END_COMPLETE, Quarantined: c.codes,
	}
	return o, nil
}

// rejudged is the origin of what comes of an entry: the one it had, but another pull.
func (a *admission) rejudged(q *messages.Quarantine, index int) *messages.Origin {
	o := proto.CloneOf(q.GetOrigin())
	if o == nil {
		o = &messages.Origin{}
	}
	o.Source, o.Pull = a.source, messages.EntryPull(q.GetId(), index)
	return o
}
