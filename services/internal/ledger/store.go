package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages"
)

// Store keeps what a fold has in memory only for a while.
type Store interface {
	// Pull returns the row and the state of a pull; a nil state when it has none.
	Pull(id messages.ID) (row int64, state []byte, err error)
	// Page returns a page of a set of frames, nil when there is none.
	Page(set string, page uint64) ([]byte, error)
	// HasEntry tells whether the end of an entry of the quarantine is known.
	HasEntry(entry string) (bool, error)
}

// Saved is what a fold on a store begins with.
type Saved struct {
	// Next is the row that the next new pull gets.
	Next int64
	// Destinations and Types in the order of their numbers, as they were written.
	Destinations [][]byte
	Types        []string
	// Gaps are when the first message behind each gap of the ledger was stored.
	Gaps []time.Time
	// Forgot is the latest time that [Fold.Forgot] was called with.
	Forgot time.Time
	// Facts and Unread as in [Fold.Facts].
	Facts  map[string]uint64
	Unread uint64
}

// Row is a pull as it is written.
type Row struct {
	Row   int64
	ID    messages.ID
	State []byte
	// Before is the balance when it was written last, nil for a new one.
	Before *Pull
	After  Pull
	// Origin is what was announced, nil when that is not known.
	Origin *messages.Origin
	Again  []byte
	// MessageIDs of several messages, 16 bytes each, when there are new ones.
	MessageIDs []byte
}

// Writer gets what has changed.
type Writer interface {
	WritePull(r *Row) error
	WritePage(set string, page uint64, bits []byte) error
	WriteDestination(index int, state []byte) error
	WriteType(index int, name string) error
	WriteEntry(entry string, r Resolution) error
}

// kept is the state of a fold on a store.
type kept struct {
	store Store
	// limit bounds the pulls in memory, in bytes, roughly: half of it are those used
	// lately, half (older) those before.
	limit, size int
	older       map[messages.ID]*pull
	changed     []*pull
	next        int64
	types       int // that are written
	// rejudge: what is expected of destinations has changed, and so all balances.
	rejudge bool
	err     error
	buf     []byte
}

// NewOn returns a fold on a store, with about limit bytes of pulls in memory beside what
// changes between two calls of Flush.
func NewOn(store Store, saved Saved, limit int) (*Fold, error) {
	f := New()
	f.kept = kept{store: store, limit: limit, next: saved.Next, types: len(saved.Types)}
	for i, name := range saved.Types {
		f.types[name] = i
		f.inType = append(f.inType, name)
	}
	for _, state := range saved.Destinations {
		var s destinationState
		if err := json.Unmarshal(state, &s); err != nil {
			return nil, fmt.Errorf("read a destination: %w", err)
		}
		d := f.destination(s.Name)
		d.known, d.types, d.first, d.lists, d.removed, d.frames, d.dirty = s.Known, s.Types, s.First, s.Lists, s.Removed, s.Frames, false
	}
	for _, g := range saved.Gaps {
		f.gaps = append(f.gaps, g.UnixNano())
	}
	if !saved.Forgot.IsZero() {
		f.forgot = saved.Forgot.UnixNano()
	}
	if saved.Facts != nil {
		f.facts = maps.Clone(saved.Facts)
	}
	f.unread = saved.Unread
	return f, nil
}

// destinationState is a destination as it is written.
type destinationState struct {
	Name    string     `json:"name"`
	Known   bool       `json:"known"`
	Types   []string   `json:"types,omitempty"`
	First   uint64     `json:"first"`
	Lists   [][]string `json:"lists,omitempty"`
	Removed bool       `json:"removed,omitempty"`
	Frames  uint64     `json:"frames"`
}

// Gap says that facts stored before a time may be lost.
func (f *Fold) Gap(at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gaps = append(f.gaps, at.UnixNano())
	f.kept.rejudge = true
}

// Forgot says that the pulls were deleted which had no facts after a time: what comes
// about one of them after all is no problem.
func (f *Fold) Forgot(until time.Time, ids []messages.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forgot = max(f.forgot, until.UnixNano())
	for _, id := range ids {
		delete(f.pulls, id)
		delete(f.kept.older, id)
	}
}

// Changed is how many pulls have changed since the last Flush.
func (f *Fold) Changed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.kept.changed)
}

// Facts are how many facts were read, by stage, and those of an unknown kind among them.
func (f *Fold) Facts() (byStage map[string]uint64, unread uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.facts), f.unread
}

// Destinations are all destinations, without their sums, and what cannot be told of them.
func (f *Fold) Destinations() (all []Destination, problems []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.inDest {
		all = append(all, d.report())
		if problem := d.problem(); problem != "" {
			problems = append(problems, problem)
		}
	}
	return all, problems
}

// fail keeps the first error of the store: facts go on being added to what is lost
// anyway, until Flush returns it.
func (f *Fold) fail(err error) {
	if f.kept.err == nil {
		f.kept.err = err
	}
}

// load looks a pull up, nil when there is none.
func (f *Fold) load(key messages.ID) *pull {
	if p := f.kept.older[key]; p != nil {
		f.pulls[key] = p
		delete(f.kept.older, key)
		return p
	}
	row, state, err := f.kept.store.Pull(key)
	if err != nil {
		f.fail(err)
		return nil
	}
	if state == nil {
		return nil
	}
	p, err := f.decode(key, state)
	if err != nil {
		f.fail(err)
		return nil
	}
	p.row = row
	f.pulls[key] = p
	return p
}

// touch notes that a pull is about to change.
func (f *Fold) touch(p *pull) {
	if f.kept.store == nil || p.used {
		return
	}
	p.used, p.touched = true, f.now
	f.kept.changed = append(f.kept.changed, p)
	if p.row != 0 {
		before := f.written(p)
		p.before = &before
	}
}

// knowsEntry tells whether an entry was resolved before.
func (f *Fold) knowsEntry(entry string) bool {
	if _, ok := f.resolved[entry]; ok || f.kept.store == nil {
		return ok
	}
	has, err := f.kept.store.HasEntry(entry)
	if err != nil {
		f.fail(err)
	}
	return has
}

// Flush writes all that has changed, and lets go of what was not used for a while. After
// an error the fold is of no use any more. rejudge says that all other pulls have to be
// judged again as well: see [Fold.Judge].
func (f *Fold) Flush(w Writer) (rejudge bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := &f.kept
	if k.err != nil {
		return false, k.err
	}
	// In the order of an index that would be written all over the place.
	slices.SortFunc(k.changed, func(a, b *pull) int { return bytes.Compare(a.key[:], b.key[:]) })
	for _, p := range k.changed {
		if p.row == 0 {
			p.row = k.next
			k.next++
		}
		if err := f.writePull(w, p); err != nil {
			return false, err
		}
	}
	clear(k.changed)
	k.changed = k.changed[:0]
	for name, s := range f.sets {
		if err := s.flush(w); err != nil {
			return false, err
		}
		if len(s.pages) == 0 {
			delete(f.sets, name)
		}
	}
	for _, d := range f.inDest {
		if !d.dirty {
			continue
		}
		state, err := json.Marshal(destinationState{d.name, d.known, d.types, d.first, d.lists, d.removed, d.frames})
		if err != nil {
			return false, err
		}
		if err := w.WriteDestination(d.index, state); err != nil {
			return false, err
		}
		d.dirty = false
	}
	for ; k.types < len(f.inType); k.types++ {
		if err := w.WriteType(k.types, f.inType[k.types]); err != nil {
			return false, err
		}
	}
	for entry, r := range f.resolved {
		if err := w.WriteEntry(entry, r); err != nil {
			return false, err
		}
	}
	clear(f.resolved)
	if k.size > k.limit/2 {
		k.older, f.pulls, k.size = f.pulls, map[messages.ID]*pull{}, 0
	}
	rejudge, k.rejudge = k.rejudge, false
	return rejudge, k.err
}

func (f *Fold) writePull(w Writer, p *pull) error {
	r := Row{Row: p.row, ID: p.key, Before: p.before, After: f.judge(p, p.touched), Origin: originOf(p.details), Again: p.again, MessageIDs: p.messageIDs}
	f.kept.buf = p.encode(f.kept.buf[:0])
	r.State = f.kept.buf
	f.kept.size += p.memory(len(r.State))
	p.used, p.before, p.messageIDs = false, nil, nil
	return w.WritePull(&r)
}

// judge makes the balance of a pull, and notes since when it is unbalanced.
func (f *Fold) judge(p *pull, now int64) Pull {
	b := f.balance(p)
	switch {
	case b.State != Unbalanced:
		p.since = 0
	case p.since == 0:
		p.since = now
	}
	b.Since = timeOf(p.since)
	return b
}

// Judge makes the balance of a pull from its state, and the state when that has to be
// written again because it is unbalanced now (as of a time), or not any more.
func (f *Fold) Judge(id messages.ID, state []byte, now time.Time) (b Pull, changed []byte, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.decode(id, state)
	if err != nil {
		return Pull{}, nil, err
	}
	since := p.since
	b = f.judge(p, now.UnixNano())
	if p.since != since {
		changed = p.encode(nil)
		if cached := f.pulls[id]; cached != nil {
			cached.since = p.since
		}
		if cached := f.kept.older[id]; cached != nil {
			cached.since = p.since
		}
	}
	return b, changed, nil
}

// Balance makes the balance of a pull from its state as it was written, and what was
// announced.
func (f *Fold) Balance(id messages.ID, state []byte) (Pull, *messages.Origin, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, err := f.decode(id, state)
	if err != nil {
		return Pull{}, nil, err
	}
	return f.written(p), originOf(p.details), nil
}

// SettledFrame tells whether a destination has settled a frame of EVENTS.
func (f *Fold) SettledFrame(destination string, sequence uint64) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	has := f.set(deliveredSet(destination, "")).has(sequence)
	return has, f.kept.err
}

// Reads tells whether a destination reads events of a type now, and is not gone.
func (f *Fold) Reads(name, eventType string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.dests[name]
	return d != nil && d.known && !d.removed && (&destination{lists: [][]string{d.types}}).reads(eventType) == always
}

// detailsOf is what is kept of an origin: all but the pull and the source.
func detailsOf(o *messages.Origin) []byte {
	if o == nil {
		return nil
	}
	o = proto.CloneOf(o)
	o.Pull, o.Source = nil, ""
	data, _ := proto.Marshal(o) // texts that are not UTF-8 were mended when they came
	return data
}

// originOf is the reverse of detailsOf.
func originOf(details []byte) *messages.Origin {
	if len(details) == 0 {
		return nil
	}
	o, err := messages.DecodeOrigin(details)
	if err != nil {
		return nil
	}
	return o
}

// frames is a set of sequences of frames, in pages that are in the store while they are
// not in use.
type frames struct {
	fold  *Fold
	name  string
	pages map[uint64]*framePage
}

type framePage struct {
	bits        [pageWords]uint64
	dirty, used bool
}

func (f *Fold) set(name string) *frames {
	s := f.sets[name]
	if s == nil {
		s = &frames{fold: f, name: name, pages: map[uint64]*framePage{}}
		f.sets[name] = s
	}
	return s
}

func (s *frames) page(n uint64) *framePage {
	no := n / (64 * pageWords)
	p := s.pages[no]
	if p == nil {
		p = &framePage{}
		s.pages[no] = p
		if store := s.fold.kept.store; store != nil {
			data, err := store.Page(s.name, no)
			if err == nil && data != nil && len(data) != 8*pageWords {
				err = fmt.Errorf("page %d of %s has %d bytes", no, s.name, len(data))
			}
			if err != nil {
				s.fold.fail(err)
				return p
			}
			p.set(data)
		}
	}
	p.used = true
	return p
}

func (s *frames) has(n uint64) bool {
	return s.page(n).bits[n/64%pageWords]&(1<<(n%64)) != 0
}

// add returns whether n is new.
func (s *frames) add(n uint64) bool {
	p := s.page(n)
	w := &p.bits[n/64%pageWords]
	before := *w
	*w |= 1 << (n % 64)
	p.dirty = p.dirty || *w != before
	return *w != before
}

func (s *frames) flush(w Writer) error {
	for no, p := range s.pages {
		switch {
		case p.dirty:
			if err := w.WritePage(s.name, no, p.get()); err != nil {
				return err
			}
		case !p.used:
			delete(s.pages, no)
		}
		p.dirty, p.used = false, false
	}
	return nil
}

// memory is about how much a pull takes.
func (p *pull) memory(encoded int) int {
	size := 1000 + 2*encoded
	if p.open != nil {
		size += p.open.unique.memory() + p.open.duplicate.memory() + 300*len(p.open.frames)
	}
	return size
}
