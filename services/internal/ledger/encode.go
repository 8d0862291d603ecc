package ledger

import (
	"cmp"
	"encoding/binary"
	"errors"
	"iter"
	"maps"
	"slices"

	"github.com/penstock/penstock/messages"
)

// stateVersion is the first byte of the state of a pull. What a later version adds goes
// to the end, so that what an earlier one wrote is read as if it were empty there.
const stateVersion = 1

// ErrState is that of a state that [Row] did not have like that.
var ErrState = errors.New("the state of a pull cannot be read")

// encode appends the state of a pull: numbers as varints, texts and sets with their
// lengths before them.
func (p *pull) encode(dst []byte) []byte {
	w := writer{append(dst, stateVersion)}
	w.text(p.source)
	w.text(p.origin)
	w.flag(p.announced)
	w.number(uint64(p.as))
	w.text(p.asCode)
	w.number(uint64(p.messages))
	w.flag(p.fetched)
	w.number(uint64(p.end))
	w.text(p.endCode)
	w.number(uint64(p.frames))
	w.number(p.cut)
	w.counts(p.refused)
	w.number(p.bytes)
	w.number(p.rawBytes)
	w.number(uint64(p.parsedFrames))
	w.number(p.parsed)
	w.number(p.events)
	w.counts(p.skipped)
	w.counts(p.unparsable)
	w.number(p.unique)
	w.number(p.duplicate)
	w.number(p.republished)
	w.number(p.twice)
	w.counts(p.dropped)
	w.number(uint64(len(p.logged)))
	for _, l := range p.logged {
		w.number(uint64(l.eventType))
		w.signed(l.n)
	}
	w.number(uint64(len(p.settled)))
	for i := range p.settled {
		s := &p.settled[i]
		w.number(uint64(s.destination))
		w.text(s.replay)
		w.between(s.at)
		w.number(s.confirmed)
		w.number(s.filtered)
		w.number(s.skipped)
		w.counts(s.quarantined)
	}
	w.bytes(p.again)
	w.text(p.job)
	for _, at := range p.at {
		w.between(at)
	}
	w.number(uint64(len(p.resolved)))
	for _, r := range p.resolved {
		w.text(r.Stage)
		w.text(r.Code)
		w.text(r.Destination)
		w.number(r.Redriven)
		w.number(r.Discarded)
	}
	w.bytes(p.details)
	w.signed(p.since)
	w.flag(p.open != nil)
	if p.open == nil {
		w.bytes(p.closed.frames)
		w.bytes(p.closed.routed)
		w.bytes(p.closed.duplicate)
		return w.b
	}
	w.number(uint64(len(p.open.frames)))
	for no, n := range inOrder(p.open.frames) {
		w.number(uint64(no))
		w.flag(n != nil)
		if n != nil {
			w.number(n.GetRecords())
			w.number(n.GetEvents())
			w.counts(n.GetSkipped())
			w.counts(n.GetQuarantined())
		}
	}
	w.set(&p.open.unique)
	w.set(&p.open.duplicate)
	return w.b
}

// decode is the reverse of encode.
func (f *Fold) decode(key messages.ID, state []byte) (*pull, error) {
	r := reader{b: state}
	if r.octet() != stateVersion {
		return nil, ErrState
	}
	p := &pull{key: key}
	p.source, p.origin = f.name(r.text()), r.text()
	p.announced, p.as, p.asCode = r.flag(), messages.Announced_As(r.number()), f.name(r.text())
	p.messages = uint32(r.number())
	p.fetched, p.end, p.endCode = r.flag(), messages.Fetched_End(r.number()), f.name(r.text())
	p.frames, p.cut, p.refused = uint32(r.number()), r.number(), r.counts(f)
	p.bytes, p.rawBytes = r.number(), r.number()
	p.parsedFrames, p.parsed, p.events = uint32(r.number()), r.number(), r.number()
	p.skipped, p.unparsable = r.counts(f), r.counts(f)
	p.unique, p.duplicate, p.republished, p.twice = r.number(), r.number(), r.number(), r.number()
	p.dropped = r.counts(f)
	for range r.length() {
		p.logged = append(p.logged, typed{r.index(len(f.inType)), r.signed()})
	}
	for range r.length() {
		s := settled{destination: r.index(len(f.inDest)), replay: r.text(), at: r.between()}
		s.confirmed, s.filtered, s.skipped, s.quarantined = r.number(), r.number(), r.number(), r.counts(f)
		p.settled = append(p.settled, s)
	}
	p.again, p.job = r.bytes(), r.text()
	for i := range p.at {
		p.at[i] = r.between()
	}
	for range r.length() {
		p.resolved = append(p.resolved, Resolved{r.text(), r.text(), r.text(), r.number(), r.number()})
	}
	p.details, p.since = r.bytes(), r.signed()
	if !r.flag() {
		p.closed = closed{frames: r.bytes(), routed: r.bytes(), duplicate: r.bytes()}
		return p, r.err()
	}
	p.open = &progress{}
	if n := r.length(); n > 0 {
		p.open.frames = make(map[uint32]*messages.Parsed, n)
		for range n {
			no := uint32(r.number())
			p.open.frames[no] = nil
			if r.flag() {
				p.open.frames[no] = &messages.Parsed{
					FrameNo: no, Records: r.number(), Events: r.number(), Skipped: r.counts(f), Quarantined: r.counts(f),
				}
			}
		}
	}
	p.open.unique, p.open.duplicate = r.set(), r.set()
	return p, r.err()
}

// inOrder are the entries of a map by their keys. Most maps of a pull are empty or have
// one entry, and many pulls are written.
func inOrder[K cmp.Ordered, V any](m map[K]V) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if len(m) < 2 {
			for k, v := range m {
				yield(k, v)
			}
			return
		}
		var room [16]K
		keys := slices.AppendSeq(room[:0], maps.Keys(m))
		slices.Sort(keys)
		for _, k := range keys {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

// writer appends to b.
type writer struct{ b []byte }

func (w *writer) number(n uint64) { w.b = binary.AppendUvarint(w.b, n) }
func (w *writer) signed(n int64)  { w.b = binary.AppendVarint(w.b, n) }

func (w *writer) flag(is bool) {
	if is {
		w.b = append(w.b, 1)
		return
	}
	w.b = append(w.b, 0)
}

func (w *writer) text(s string) {
	w.number(uint64(len(s)))
	w.b = append(w.b, s...)
}

func (w *writer) bytes(s []byte) {
	w.number(uint64(len(s)))
	w.b = append(w.b, s...)
}

func (w *writer) counts(c counts) {
	w.number(uint64(len(c)))
	for k, n := range inOrder(c) {
		w.text(k)
		w.number(n)
	}
}

func (w *writer) between(b between) {
	w.signed(b.first)
	w.signed(b.last - b.first)
}

// set writes runs, or bits where these are fewer bytes.
func (w *writer) set(s *ordinals) {
	runs := s.pack()
	size := 8*len(s.first) + (8*pageWords+4)*len(s.pages)
	if len(runs) <= size {
		w.flag(false)
		w.bytes(runs)
		return
	}
	w.flag(true)
	w.words(s.first)
	w.number(uint64(len(s.pages)))
	for no, page := range inOrder(s.pages) {
		w.number(no)
		w.words(page[:])
	}
}

func (w *writer) words(words []uint64) {
	w.number(uint64(len(words)))
	for _, word := range words {
		w.b = binary.LittleEndian.AppendUint64(w.b, word)
	}
}

// reader takes from b. Once something does not fit it returns zeros, and err tells.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) err() error {
	if r.bad {
		return ErrState
	}
	return nil
}

func (r *reader) fail() { r.b, r.bad = nil, true }

func (r *reader) octet() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) flag() bool { return r.octet() != 0 }

func (r *reader) number() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) signed() int64 {
	n, size := binary.Varint(r.b)
	if size <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[size:]
	return n
}

// length is how many things follow, each of which takes a byte or more.
func (r *reader) length() int {
	n := r.number()
	if n > uint64(len(r.b)) {
		r.fail()
		return 0
	}
	return int(n)
}

// index is a number below n.
func (r *reader) index(n int) int {
	i := r.number()
	if i >= uint64(n) {
		r.fail()
		return 0
	}
	return int(i)
}

func (r *reader) take() []byte {
	n := r.length()
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) text() string { return string(r.take()) }

// bytes are a copy, nil when there are none.
func (r *reader) bytes() []byte {
	if b := r.take(); len(b) > 0 {
		return slices.Clone(b)
	}
	return nil
}

func (r *reader) counts(f *Fold) counts {
	n := r.length()
	if n == 0 {
		return nil
	}
	c := make(counts, n)
	for range n {
		k := f.name(r.text())
		c[k] = r.number()
	}
	return c
}

func (r *reader) between() between {
	first := r.signed()
	return between{first, first + r.signed()}
}

func (r *reader) set() (s ordinals) {
	if !r.flag() {
		return *unpack(r.take())
	}
	s.first = r.words()
	for range r.length() {
		if s.pages == nil {
			s.pages = map[uint64]*[pageWords]uint64{}
		}
		no, page := r.number(), new([pageWords]uint64)
		copy(page[:], r.words())
		s.pages[no] = page
	}
	return s
}

func (r *reader) words() []uint64 {
	n := r.number()
	if n > uint64(len(r.b)/8) {
		r.fail()
		return nil
	}
	words := make([]uint64, n)
	for i := range words {
		words[i] = binary.LittleEndian.Uint64(r.b[8*i:])
	}
	r.b = r.b[8*n:]
	return words
}

// get and set turn a page of frames into bytes and back.
func (p *framePage) get() []byte {
	b := make([]byte, 0, 8*pageWords)
	for _, w := range p.bits {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

func (p *framePage) set(b []byte) {
	for i := range len(b) / 8 {
		p.bits[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
}

// memory is about how much the set takes, in bytes.
func (s *ordinals) memory() int { return 8*cap(s.first) + (8*pageWords+100)*len(s.pages) }
