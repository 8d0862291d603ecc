package replay

import (
	"context"
	"fmt"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/selection"
	"github.com/penstock/penstock/topology"
)

// Counts is what there is in the log of what is meant.
type Counts struct {
	Events uint64 `json:"events"`
	// Bytes of their documents before compression. Of a frame of which only some events
	// are meant, those of these.
	Bytes  uint64            `json:"bytes"`
	Frames uint64            `json:"frames"`
	ByType map[string]uint64 `json:"by_type"`
	// First and Last are when the log stored the first and the last frame of them.
	First time.Time `json:"first,omitzero"`
	Last  time.Time `json:"last,omitzero"`
	// Failed is for how many events the expression failed: these are not meant.
	Failed uint64 `json:"failed,omitempty"`
	// Gone is the part of the span that the log does not have any more, nil when it has all.
	Gone *Gone `json:"gone,omitempty"`
	// FirstSequence and Until are the place of the span in the log.
	FirstSequence uint64 `json:"first_sequence"`
	Until         uint64 `json:"until"`
}

// Into has a replay concern just what was counted.
func (c *Counts) Into(r *jobs.Replay) {
	r.First, r.Until, r.Total, r.Bytes = c.FirstSequence, c.Until, c.Events, c.Bytes
}

// Gone is a part of a span that the log does not have any more.
type Gone struct {
	// From and To bound it. To is when the oldest frame was stored that is kept.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// String says it in words.
func (g *Gone) String() string {
	return fmt.Sprintf("the part from %s to %s is gone: the log has nothing older than %s",
		g.From.UTC().Format(time.RFC3339), g.To.UTC().Format(time.RFC3339), g.To.UTC().Format(time.RFC3339))
}

// stretch is a span's place in a log.
type stretch struct {
	first, until uint64
	gone         *Gone
}

// locate finds a span in a log.
func locate(ctx context.Context, bus *topology.Bus, stream string, span jobs.Span) (stretch, error) {
	h := bus.History(stream, nil)
	first, next, err := h.Bounds(ctx)
	if err != nil {
		return stretch{}, err
	}
	s := stretch{first: first, until: next}
	if !span.From.IsZero() {
		at, found, err := h.Since(ctx, span.From)
		if err != nil {
			return stretch{}, err
		}
		if !found {
			at = next
		}
		s.first = max(first, at)
		if first > 1 && s.first == first && first < next {
			// Something was trimmed, and nothing says that it was older than the span.
			if _, oldest, err := h.Pending(ctx, first); err != nil {
				return stretch{}, err
			} else if span.From.Before(oldest) {
				s.gone = &Gone{From: span.From, To: oldest}
			}
		}
	}
	if !span.To.IsZero() {
		at, found, err := h.Since(ctx, span.To)
		if err != nil {
			return stretch{}, err
		}
		if found {
			s.until = min(s.until, at)
		}
		if s.gone != nil && span.To.Before(s.gone.To) {
			s.gone.To = span.To
		}
	}
	return s, nil
}

// Count counts events of the log exactly. Where nothing but span, types and sources is
// asked for, it reads no frames but their headers. progress is called now and then with
// how much of the span is read, in frames; it may be nil.
func Count(ctx context.Context, bus *topology.Bus, e jobs.Events, progress func(done, total uint64)) (Counts, error) {
	return CountFor(ctx, bus, e, Lens{}, progress)
}

// CountFor counts what of the events a destination has. Errors: those of
// [selection.New], replay.bad_span, replay.no_such_types.
func CountFor(ctx context.Context, bus *topology.Bus, e jobs.Events, l Lens, progress func(done, total uint64)) (Counts, error) {
	if err := checkSpan(e.Span); err != nil {
		return Counts{}, err
	}
	sel, err := selection.New(e)
	if err != nil {
		return Counts{}, err
	}
	if e.Types, err = narrow(e.Types, l); err != nil {
		return Counts{}, err
	}
	c := counter{counts: Counts{ByType: map[string]uint64{}}, sel: sel}
	if l.Where != "" {
		if c.where, err = condition.Compile(l.Where); err != nil {
			return Counts{}, err
		}
	}
	s, err := locate(ctx, bus, topology.Events, e.Span)
	if err != nil {
		return Counts{}, err
	}
	c.counts.FirstSequence, c.counts.Until, c.counts.Gone = s.first, s.until, s.gone
	if progress == nil {
		progress = func(uint64, uint64) {}
	}
	types := e.Types
	if len(types) == 0 {
		types = []string{">"}
	}
	c.history = bus.History(topology.Events, topology.EventSubjects(types))
	told := time.Now()
	err = c.history.Scan(ctx, s.first, s.until, sel.Whole() && c.where == nil, func(m topology.Stored) (bool, error) {
		if now := time.Now(); now.Sub(told) > progressEvery {
			told = now
			progress(m.Sequence-s.first, s.until-s.first)
		}
		return true, c.add(ctx, m)
	})
	if err == nil {
		progress(s.until-min(s.first, s.until), s.until-min(s.first, s.until))
	}
	return c.counts, err
}

// progressEvery is how often who counts is told how far it is.
const progressEvery = 100 * time.Millisecond

type counter struct {
	counts  Counts
	sel     *selection.Selection
	where   *condition.Condition // of the destination
	history *topology.History
	room    selection.Scratch
}

// add counts what is meant of one frame.
func (c *counter) add(ctx context.Context, m topology.Stored) error {
	if c.sel.Whole() && c.where == nil && m.Events > 0 {
		if c.sel.HasSource(m.Source) {
			c.found(m, m.Subject[len(eventPrefix):], uint64(m.Events), uint64(m.Bytes))
		}
		return nil
	}
	if len(m.Data) == 0 { // written by an older penstock: its headers do not tell
		at, found, err := c.history.Get(ctx, m.Sequence)
		if err != nil || !found || at.Sequence != m.Sequence {
			return err
		}
		m = at
	}
	v, err := messages.DecodeFrame(m.Data)
	if err != nil {
		return nil //nolint:nilerr // a destination's reader puts it into quarantine
	}
	var events, bytes uint64
	failed, err := c.sel.Each(&v, &c.room, c.where != nil && c.where.NeedsDoc(), func(e *selection.Event) bool {
		if c.where != nil {
			// As in deliver: an event for which the destination's expression fails stays in.
			ok, err := c.where.Match(&condition.Event{
				ID: e.ID, Type: e.Type, Source: e.Source, Account: e.Account, Region: e.Region, Time: e.Time, Doc: e.Doc,
			})
			if !ok && err == nil {
				return true
			}
		}
		events++
		bytes += uint64(c.room.Length(e.Index))
		return true
	})
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	c.counts.Failed += uint64(failed)
	if events > 0 {
		c.found(m, v.EventType(), events, bytes)
	}
	return nil
}

const eventPrefix = "penstock.event."

func (c *counter) found(m topology.Stored, eventType string, events, bytes uint64) {
	c.counts.Events += events
	c.counts.Bytes += bytes
	c.counts.Frames++
	c.counts.ByType[eventType] += events
	if c.counts.First.IsZero() {
		c.counts.First = m.Time.UTC()
	}
	c.counts.Last = m.Time.UTC()
}
