package quarantine

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/topology"
)

var (
	// ErrNoEntry is that of an entry that is not in quarantine.
	ErrNoEntry = fault.Define("quarantine.no_entry", fault.Reject,
		"list what there is: penstock quarantine list; what was redriven or discarded is there no more, see penstock audit")
	errAmbiguous = fault.Define("quarantine.ambiguous", fault.Reject,
		"give more of the id: penstock quarantine list shows it in full")
)

// Bounds of what is read at once.
const (
	// maxPage is the longest page. Unit: entries.
	maxPage = 1000
	// maxNames bounds the names of one facet; the rest is counted as "other".
	maxNames = 1000
	// firstStretch and longestStretch are how many sequences are read at once backwards.
	firstStretch   = 512
	longestStretch = 32 << 10
)

// errEnough ends a reading.
var errEnough = errors.New("enough")

// matcher tells which entries fit a filter.
type matcher struct {
	Filter
	ids  map[string]bool
	text []byte
}

func newMatcher(f Filter) *matcher {
	m := &matcher{Filter: f, text: bytes.ToLower([]byte(f.Text))}
	if len(f.IDs) > 0 {
		m.ids = make(map[string]bool, len(f.IDs))
		for _, id := range f.IDs {
			m.ids[id] = true
		}
	}
	return m
}

// subject narrows what is read, as far as subjects can.
func (m *matcher) subject() string {
	stage, source := "*", "*"
	if m.Stage != "" {
		stage = m.Stage
	}
	if m.Source != "" {
		source = m.Source
	}
	return topology.QuarantineSubjects(stage, source)
}

func (m *matcher) fits(q *messages.Quarantine) bool {
	switch {
	case m.ids != nil && !m.ids[q.GetId()],
		m.Stage != "" && q.GetStage() != m.Stage,
		m.Source != "" && q.GetSource() != m.Source,
		m.Code != "" && q.GetCode() != m.Code,
		m.Destination != "" && q.GetDestination() != m.Destination,
		!m.From.IsZero() && q.GetTime() < m.From.UnixNano(),
		!m.To.IsZero() && q.GetTime() >= m.To.UnixNano():
		return false
	}
	if len(m.text) == 0 {
		return true
	}
	for _, s := range []string{q.GetId(), q.GetReason(), OriginName(q.GetOrigin()), q.GetEventType()} {
		if strings.Contains(strings.ToLower(s), string(m.text)) {
			return true
		}
	}
	return bytes.Contains(bytes.ToLower(q.GetPayload()), m.text)
}

// stored is an entry with its place.
type stored struct {
	*messages.Quarantine
	sequence uint64
	at       time.Time // when the server stored it
}

// forward calls visit for the entries that fit from a sequence on and before until,
// oldest first, until it returns false. What cannot be decoded is passed over.
func forward(ctx context.Context, bus *topology.Bus, m *matcher, from, until uint64, visit func(stored) bool) error {
	if from >= until {
		return nil
	}
	err := bus.Read(ctx, topology.Span{Subject: m.subject(), FromSequence: max(1, from)}, func(s topology.Stored) error {
		if s.Sequence >= until {
			return errEnough
		}
		q, err := messages.DecodeQuarantine(s.Data)
		if err != nil || !m.fits(q) {
			return nil //nolint:nilerr // one that a newer penstock wrote hides no other
		}
		if !visit(stored{q, s.Sequence, s.Time}) {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// backward calls visit for what take makes of the entries that fit before a sequence,
// newest first, until it returns false. At most keep of them are held at once; what is older
// than those in one stretch is read again.
func backward[T any](ctx context.Context, bus *topology.Bus, m *matcher, before uint64, keep int, take func(stored) (T, bool), visit func(T) bool) error {
	first, next, err := bus.History(topology.Quarantine, nil).Bounds(ctx)
	if err != nil {
		return err
	}
	if before == 0 || before > next {
		before = next
	}
	for stretch := uint64(firstStretch); before > first; stretch = min(2*stretch, longestStretch) {
		from := first
		if before-first > stretch {
			from = before - stretch
		}
		type held struct {
			what     T
			sequence uint64
		}
		var found []held
		full := false
		if err := forward(ctx, bus, m, from, before, func(s stored) bool {
			what, ok := take(s)
			if !ok {
				return true
			}
			if found = append(found, held{what, s.sequence}); len(found) > keep {
				found, full = slices.Delete(found, 0, 1), true
			}
			return true
		}); err != nil {
			return err
		}
		for _, h := range slices.Backward(found) {
			if !visit(h.what) {
				return nil
			}
		}
		if full {
			before = found[0].sequence
			continue
		}
		before = from
	}
	return nil
}

func list(ctx context.Context, bus *topology.Bus, f Filter, limit int, after uint64) (Page, error) {
	limit = min(max(1, limit), maxPage)
	page := Page{Entries: []Entry{}}
	take := func(s stored) (Entry, bool) { return entryOf(s.Quarantine, s.sequence), true }
	err := backward(ctx, bus, newMatcher(f), after, limit+1, take, func(e Entry) bool {
		if len(page.Entries) == limit {
			page.More, page.Next = true, page.Entries[limit-1].Sequence
			return false
		}
		page.Entries = append(page.Entries, e)
		return true
	})
	return page, err
}

func get(ctx context.Context, bus *topology.Bus, id string) (Entry, error) {
	if id == "" {
		return Entry{}, ErrNoEntry.New(nil, "find an entry without an id")
	}
	var found *stored
	ambiguous := false
	take := func(s stored) (stored, bool) { return s, strings.HasPrefix(s.GetId(), id) }
	err := backward(ctx, bus, newMatcher(Filter{}), 0, 2, take, func(s stored) bool {
		switch {
		case s.GetId() == id:
			found, ambiguous = &s, false
			return false
		case found == nil:
			found = &s
		case found.GetId() != s.GetId():
			ambiguous = true
		}
		return true
	})
	switch {
	case err != nil:
		return Entry{}, err
	case found == nil:
		return Entry{}, ErrNoEntry.New(nil, "find entry %s", id)
	case ambiguous:
		return Entry{}, errAmbiguous.New(nil, "find entry %s: several begin like that", id)
	}
	e := entryOf(found.Quarantine, found.sequence)
	e.Payload = found.GetPayload()
	return e, nil
}

func export(ctx context.Context, bus *topology.Bus, f Filter, w io.Writer) (n uint64, err error) {
	first, next, err := bus.History(topology.Quarantine, nil).Bounds(ctx)
	if err != nil {
		return 0, err
	}
	encode := json.NewEncoder(w)
	encode.SetEscapeHTML(false)
	var writeErr error
	err = forward(ctx, bus, newMatcher(f), first, next, func(s stored) bool {
		e := entryOf(s.Quarantine, s.sequence)
		e.Payload = s.GetPayload()
		if writeErr = encode.Encode(e); writeErr != nil {
			return false
		}
		n++
		return true
	})
	return n, cmp.Or(err, writeErr)
}

// tally counts by a name.
type tally map[string]*Count

func (t tally) add(name string, records, size uint64) {
	c := t[name]
	if c == nil {
		if len(t) >= maxNames {
			name = "other"
		}
		if c = t[name]; c == nil {
			c = &Count{Name: name}
			t[name] = c
		}
	}
	c.Entries++
	c.Records += records
	c.Bytes += size
}

// sorted puts the largest first.
func (t tally) sorted() []Count {
	all := make([]Count, 0, len(t))
	for _, c := range t {
		all = append(all, *c)
	}
	slices.SortFunc(all, func(a, b Count) int {
		return cmp.Or(cmp.Compare(b.Entries, a.Entries), cmp.Compare(a.Name, b.Name))
	})
	return all
}

// facets counts what is there before a sequence, 0 for all.
func facets(ctx context.Context, bus *topology.Bus, f Filter, until uint64) (Facets, error) {
	first, next, err := bus.History(topology.Quarantine, nil).Bounds(ctx)
	if err != nil {
		return Facets{}, err
	}
	if until > 0 {
		next = min(next, until)
	}
	out := Facets{Until: next}
	stages, sources, codes, dests, days := tally{}, tally{}, tally{}, tally{}, tally{}
	err = forward(ctx, bus, newMatcher(f), first, next, func(s stored) bool {
		records, size := max(1, s.GetRecords()), uint64(len(s.GetPayload()))
		out.Entries++
		out.Records += records
		out.Bytes += size
		stages.add(s.GetStage(), records, size)
		sources.add(s.GetSource(), records, size)
		codes.add(s.GetCode(), records, size)
		if d := s.GetDestination(); d != "" {
			dests.add(d, records, size)
		}
		at := time.Unix(0, s.GetTime()).UTC()
		days.add(at.Format(time.DateOnly), records, size)
		if out.First.IsZero() || at.Before(out.First) {
			out.First = at
		}
		if at.After(out.Last) {
			out.Last = at
		}
		if Liftable(s.GetCode()) {
			out.Liftable++
		}
		if _, blocked := wayOf(s.Quarantine); blocked != "" {
			out.Blocked++
		}
		return true
	})
	out.ByStage, out.BySource, out.ByCode, out.ByDestination = stages.sorted(), sources.sorted(), codes.sorted(), dests.sorted()
	for _, day := range slices.Sorted(maps.Keys(days)) {
		out.ByDay = append(out.ByDay, *days[day])
	}
	return out, err
}
