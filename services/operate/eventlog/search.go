package eventlog

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/document"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/selection"
	"github.com/penstock/penstock/topology"
)

// What bounds one page when nothing is said.
const (
	defaultLimit  = 100
	mostLimit     = 10_000
	defaultFrames = 2000
	defaultTime   = 3 * time.Second
	// mostPage is what the documents of a page may have together, unless it is but one.
	mostPage = 16 << 20
)

// The log can only be read forwards. So it is gone through backwards in stretches, each
// read forwards: short ones where much is found, long ones where nothing is. A stretch is
// short enough to be given up when time is over; only the first is read to its end, so
// that each search gets on.
const (
	firstStretch = 4
	mostStretch  = 1024
)

// Search returns up to limit events that are meant, before a place (the zero value: from
// the newest on), newest first. The order is that of the log.
func (l *Log) Search(ctx context.Context, e jobs.Events, before Place, limit int, budget Budget) (Page, error) {
	sel, err := selection.New(e)
	if err != nil {
		return Page{}, err
	}
	if limit <= 0 {
		limit = defaultLimit
	}
	if budget.Frames <= 0 {
		budget.Frames = defaultFrames
	}
	if budget.Time <= 0 {
		budget.Time = defaultTime
	}
	s := &search{sel: sel, history: l.bus.History(topology.Events, sel.Subjects()), limit: min(limit, mostLimit), frames: uint64(budget.Frames), deadline: time.Now().Add(budget.Time)}
	first, end, err := bounds(ctx, s.history, e.Span)
	if err != nil {
		return Page{}, err
	}
	if !e.From.IsZero() && before == (Place{}) {
		_, oldest, err := l.bus.History(topology.Events, nil).Pending(ctx, 1)
		if err != nil {
			return Page{}, err
		}
		switch {
		case oldest.After(e.From):
			s.page.Kept = oldest.UTC()
		case oldest.IsZero() && end > 1: // all that there was is gone
			s.page.Kept = time.Now().UTC()
		}
	}
	if before.Sequence > 0 && before.Sequence < end {
		end = before.Sequence
		if before.Index > 0 {
			s.within, end = before, end+1
		}
	}
	err = s.run(ctx, first, end)
	return s.page, err
}

// bounds are the first sequence of a span and the one behind its last.
func bounds(ctx context.Context, h *topology.History, span jobs.Span) (first, end uint64, err error) {
	first, end, err = h.Bounds(ctx)
	if err != nil {
		return 0, 0, err
	}
	if !span.To.IsZero() {
		if at, found, err := h.Since(ctx, span.To); err != nil {
			return 0, 0, err
		} else if found {
			end = min(end, at)
		}
	}
	if !span.From.IsZero() {
		at, found, err := h.Since(ctx, span.From)
		if err != nil {
			return 0, 0, err
		}
		if !found {
			at = end
		}
		first = max(first, at)
	}
	return first, max(first, end), nil
}

// search is one search under way.
type search struct {
	sel      *selection.Selection
	history  *topology.History
	room     selection.Scratch
	limit    int
	frames   uint64
	deadline time.Time
	// within bounds what is read of its frame.
	within Place

	page  Page
	bytes int
	found []Found // in a stretch, oldest first
}

// errBudget ends the reading of a stretch.
var errBudget = errors.New("the budget is used up")

// run fills the page with what lies between two sequences.
func (s *search) run(ctx context.Context, first, end uint64) error {
	for stretch := uint64(firstStretch); end > first; {
		from := first
		if end-first > stretch {
			from = end - stretch
		}
		before, read := s.page.Frames, s.page
		full, err := s.stretch(ctx, from, end)
		if errors.Is(err, errBudget) {
			// What was found in a part of a stretch would leave out what is newer.
			s.page.Events, s.page.Failed = read.Events, read.Failed
			s.page.Next, s.page.More = Place{Sequence: end}, true
			return nil
		}
		if err != nil || full {
			return err
		}
		end = from
		switch n := s.page.Frames - before; {
		case end == first:
			return nil
		case s.page.Frames >= s.frames || !time.Now().Before(s.deadline):
			s.page.Next, s.page.More = Place{Sequence: end}, true
			return nil
		case n*4 < stretch || len(s.found) == 0:
			stretch = min(2*stretch, mostStretch)
		}
	}
	return nil
}

// stretch reads from a sequence to before another and puts what it finds onto the page,
// newest first. full tells that the page is.
func (s *search) stretch(ctx context.Context, from, end uint64) (full bool, err error) {
	begun := s.page.Frames == 0
	room := s.limit - len(s.page.Events)
	s.found = s.found[:0]
	size := 0
	cut := false
	var oldest time.Time
	err = s.history.Read(ctx, from, end, func(m topology.Stored) (bool, error) {
		if !begun && (s.page.Frames >= s.frames || !time.Now().Before(s.deadline)) {
			return false, errBudget
		}
		s.page.Frames++
		if oldest.IsZero() {
			oldest = m.Time
		}
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			return true, nil //nolint:nilerr // deliver has put it into quarantine; it hides no other
		}
		was := len(s.found)
		failed, err := s.sel.Each(&v, &s.room, true, func(e *selection.Event) bool {
			if m.Sequence == s.within.Sequence && e.Index >= s.within.Index {
				return false
			}
			s.found = append(s.found, found(m, e))
			return true
		})
		if err != nil {
			s.found = s.found[:was]
			return true, nil //nolint:nilerr // as above
		}
		s.page.Failed += failed
		s.page.Looked += uint64(v.Live())
		// Only the newest ones will do: the others lose their place before their
		// documents are copied.
		if over := len(s.found) - room; over > 0 {
			for i := range min(over, was) {
				size -= len(s.found[i].Doc)
			}
			s.found = append(s.found[:0], s.found[over:]...)
			was, cut = max(0, was-over), true
		}
		for i := was; i < len(s.found); i++ {
			s.found[i].Doc = copyDoc(s.found[i].Doc)
			size += len(s.found[i].Doc)
		}
		for len(s.found) > 1 && s.bytes+size > mostPage {
			size -= len(s.found[0].Doc)
			s.found, cut = append(s.found[:0], s.found[1:]...), true
		}
		return true, nil
	})
	if err != nil {
		return false, err
	}
	if !oldest.IsZero() {
		s.page.Reached = oldest
	}
	s.bytes += size
	for i := len(s.found) - 1; i >= 0; i-- {
		s.page.Events = append(s.page.Events, s.found[i])
	}
	if n := len(s.page.Events); n > 0 && (cut || n >= s.limit || s.bytes >= mostPage) {
		s.page.Next, s.page.More = s.page.Events[n-1].Place, true
		return true, nil
	}
	return false, nil
}

// found is an event of a frame. Its document still is in the scratch.
func found(m topology.Stored, e *selection.Event) Found {
	return Found{
		Place: Place{Sequence: m.Sequence, Index: e.Index}, ID: e.ID.String(), Type: e.Type, Source: e.Source, Format: e.Format,
		Account: e.Account, Region: e.Region, Time: time.Unix(0, e.Time).UTC(), Stored: m.Time.UTC(),
		Origin: e.Origin, Record: e.Record, Replay: e.Replay, Doc: e.Doc,
	}
}

// At returns the event at a place. Errors: eventlog.gone.
func (l *Log) At(ctx context.Context, p Place) (Found, error) {
	if p.Sequence == 0 {
		return Found{}, ErrGone.New(nil, "look up the event at %s", p)
	}
	return l.one(ctx, p.Sequence, p.Sequence+1, func(e *selection.Event) bool { return e.Index == p.Index }, nil, nil,
		func() error { return ErrGone.New(nil, "look up the event at %s", p) })
}

// ByID finds an event by its id (32 hex digits) in a span; progress (may be nil) is told
// how many of how many frames were looked at. It reads all of the span, unless it is
// found before. Errors: eventlog.gone.
func (l *Log) ByID(ctx context.Context, id string, span jobs.Span, progress func(done, total uint64)) (Found, error) {
	var want messages.ID
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) != len(want) {
		return Found{}, errID.New(nil, "look for the event %q", id)
	}
	copy(want[:], raw)
	first, end, err := bounds(ctx, l.bus.History(topology.Events, topology.EventSubjects([]string{">"})), span)
	if err != nil {
		return Found{}, err
	}
	has := func(v *messages.View) bool {
		for i := range v.Len() {
			if v.ID(i) == want {
				return true
			}
		}
		return false
	}
	gone := func() error { return ErrGone.New(nil, "look for the event %s", id) }
	total := end - first
	// The newest first: that is what is asked for most.
	for end > first {
		from := first
		if end-first > mostStretch {
			from = end - mostStretch
		}
		f, err := l.one(ctx, from, end, func(e *selection.Event) bool { return e.ID == want }, has, func(at uint64) {
			if progress != nil {
				progress(min(total, total-(end-first)+at-from), total)
			}
		}, gone)
		if !errors.Is(err, ErrGone) {
			return f, err
		}
		end = from
	}
	return Found{}, gone()
}

// one returns the first event between two sequences that fits. has (may be nil) says of a
// frame whether it can have it, at (may be nil) is told where the reading is.
func (l *Log) one(ctx context.Context, from, end uint64, fits func(*selection.Event) bool, has func(*messages.View) bool, at func(uint64), gone func() error) (f Found, err error) {
	all, err := selection.New(jobs.Events{})
	if err != nil {
		return f, err
	}
	var room selection.Scratch
	known := false
	err = l.bus.History(topology.Events, all.Subjects()).Read(ctx, from, end, func(m topology.Stored) (bool, error) {
		if at != nil {
			at(m.Sequence)
		}
		v, err := messages.DecodeFrame(m.Data)
		if err != nil || has != nil && !has(&v) {
			return true, nil //nolint:nilerr // one that cannot be read hides no other
		}
		_, err = all.Each(&v, &room, true, func(e *selection.Event) bool {
			if known = fits(e); known {
				f = found(m, e)
				f.Doc = copyDoc(f.Doc)
			}
			return !known
		})
		return !known, err
	})
	if err == nil && !known {
		err = gone()
	}
	return f, err
}

// copyDoc copies a document, as valid UTF-8.
func copyDoc(doc []byte) []byte {
	valid, _ := document.AppendValid(make([]byte, 0, len(doc)), doc)
	return valid
}
