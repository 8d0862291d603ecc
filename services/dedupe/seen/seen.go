// Package seen holds the event ids of one dedupe lane over a window of time.
//
//	ids of a frame ──▶ Mark ──▶ which are duplicates ──▶ Commit or Discard
//
// The set is in memory: one table by open addressing, with a stamp beside each id
// that tells in which stretch of time it came. Forgetting a stretch is forgetting
// its stamp; the slots of forgotten ids are cleared when their part of the table
// is rebuilt, which happens part by part and always before it would grow. At 18
// bytes a slot and a load of 60 to 80 % an id takes 22 to 30 bytes.
//
// A Set is not for concurrent use: a lane has one owner.
package seen

import (
	"encoding/binary"
	"iter"
	"math/rand/v2"
	"slices"
	"time"
)

// Limits bound a Set.
type Limits struct {
	// Window is how long an id is remembered, at least; a twelfth longer at most.
	Window time.Duration
	// MaxIDs bounds the ids that are held, give or take a few dozen. When there
	// are more the oldest are forgotten before their time, see Set.Window.
	MaxIDs int
}

const (
	// parts is how many parts the table has. They grow one by one, so that neither
	// the time nor the memory of growing is ever that of the whole.
	parts = 256
	// stretches is how many stretches of time make a window.
	stretches = 12
	// shares is how many parts of MaxIDs there are: a stretch that holds one part
	// is followed by the next before its time is over, so that being over the
	// limit costs a share, not all.
	shares = 16
	// stamps is how many different stamps there are.
	stamps = 256
	// sweep is how many parts are rebuilt for each stretch that is forgotten.
	sweep = parts / 8
	// block is how many ids are looked up together.
	block = 32
)

// Set is a set of ids, each with the time when it came, roughly.
type Set struct {
	width  int64 // of a stretch, ns
	window int64 // ns
	max    int
	seed   seed

	parts [parts]part
	live  int
	bytes int
	// times are the stretches by time, the oldest first.
	times []*stretch
	alive [stamps]bool
	// A stamp is used again when all parts were rebuilt since it was forgotten:
	// when swept, the parts rebuilt so far, has come to free.
	swept uint64
	free  [stamps]uint64
	// whole is from when on nothing was forgotten for want of room.
	whole int64
	// marked are the ids added since the last Commit or Discard.
	marked []mark
	hashes [block]hash
	sink   uint64
}

// stretch is the ids that came from start until end.
type stretch struct {
	start, end int64
	live       int
	stamp      uint8
}

// mark remembers one added id.
type mark struct {
	in   *stretch
	hash hash
}

// New makes an empty set. Window and MaxIDs must be positive.
func New(l Limits) *Set {
	return &Set{
		width:  max(int64(l.Window)/stretches, 1),
		window: int64(l.Window),
		max:    max(l.MaxIDs, 1),
		seed:   seed{rand.Uint64(), rand.Uint64()}, //nolint:gosec // no secret, only different in every process
	}
}

// Mark adds ids, 16 bytes each, and calls dup with the index of each that is a
// duplicate: in the set already or before in ids. It returns how many are. now is
// when they came. What Mark added stays only with Commit; several Marks may come
// before one. It allocates nothing but the room for new ids.
func (s *Set) Mark(ids []byte, now time.Time, dup func(i int)) int {
	at := now.UnixNano()
	s.expire(at)
	duplicates := 0
	for i := 0; len(ids) > 0; i += block {
		n := min(len(ids)/idSize, block)
		s.prepare(ids[:n*idSize])
		into := s.current(at)
		for k, h := range s.hashes[:n] {
			if !s.add(h, into) {
				dup(i + k)
				duplicates++
				continue
			}
			s.marked = append(s.marked, mark{into, h})
		}
		ids = ids[n*idSize:]
	}
	return duplicates
}

// prepare hashes up to a block of ids and brings what belongs to them near.
func (s *Set) prepare(ids []byte) {
	n := len(ids) / idSize
	for i := range n {
		s.hashes[i] = s.seed.of(ids[i*idSize:][:idSize])
	}
	sum := s.sink
	for _, h := range s.hashes[:n] {
		sum ^= s.parts[h.part()].touchTags(h)
	}
	for _, h := range s.hashes[:n] {
		sum ^= s.parts[h.part()].touchID(h)
	}
	s.sink = sum // or the reads would be left out
}

// add adds an id unless it is there.
func (s *Set) add(h hash, into *stretch) bool {
	p := &s.parts[h.part()]
	g, slot := p.find(h)
	switch {
	case slot >= 0 && s.alive[p.stamp(g, slot)]:
		return false
	case slot >= 0: // forgotten, but still in its slot
		p.restamp(g, slot, into.stamp)
	default:
		if p.used >= room(p.groups) {
			s.rebuild(p)
			g = p.open(h)
		}
		p.put(g, h, into.stamp)
	}
	s.live++
	into.live++
	return true
}

// rebuild clears p of forgotten ids and, unless that gave a quarter of the room
// back, makes it a third larger. A part that is mostly empty shrinks.
func (s *Set) rebuild(p *part) {
	s.bytes -= p.bytes()
	live := p.alive(&s.alive)
	p.rebuild(live+live/3, s.seed, &s.alive)
	s.bytes += p.bytes()
}

// Commit keeps what was marked.
func (s *Set) Commit() { s.marked = s.forget() }

// Discard takes out what was marked since the last Commit or Discard: the frames
// were not stored.
func (s *Set) Discard() {
	for _, m := range s.marked {
		p := &s.parts[m.hash.part()]
		g, slot := p.find(m.hash)
		if slot < 0 || p.stamp(g, slot) != m.in.stamp || !s.alive[m.in.stamp] {
			continue // forgotten for want of room
		}
		p.remove(g, slot)
		s.live--
		m.in.live--
	}
	s.marked = s.forget()
}

// forget empties marked, without keeping the room of a huge frame.
func (s *Set) forget() []mark {
	const keep = 1 << 16
	if cap(s.marked) > keep {
		return nil
	}
	clear(s.marked)
	return s.marked[:0]
}

// Load adds ids that came at a time, for rebuilding the set. Those that are there
// already stay as they are. Loads may come in any order of time; what the window
// or MaxIDs no longer covers is left out.
func (s *Set) Load(ids []byte, came time.Time) {
	at := came.UnixNano()
	for len(ids) >= idSize {
		n := min(len(ids)/idSize, block)
		into := s.past(at)
		if into == nil {
			return
		}
		s.prepare(ids[:n*idSize])
		for _, h := range s.hashes[:n] {
			s.add(h, into)
		}
		ids = ids[n*idSize:]
	}
}

// Reserve makes room for n ids in all, so that loading them costs no growing.
func (s *Set) Reserve(n int) {
	n = min(n, s.max)
	for i := range s.parts {
		p := &s.parts[i]
		if each := n/parts + n/parts/8; each > int(room(p.groups)) {
			s.bytes -= p.bytes()
			p.rebuild(each, s.seed, &s.alive)
			s.bytes += p.bytes()
		}
	}
}

// current returns the stretch for ids that come now: the last one, or a new one
// when its time is over or it holds its share. A clock that goes back goes on with
// the last one.
func (s *Set) current(at int64) *stretch {
	s.fit()
	end := s.boundary(at)
	start := end - s.width
	if n := len(s.times); n > 0 {
		last := s.times[n-1]
		switch {
		case at >= last.end:
			start = max(start, last.end)
		case last.live < (s.max+shares-1)/shares:
			return last
		default: // its share is full
			last.end = max(at, last.start)
			start, end = last.end, s.boundary(last.end)
		}
	}
	return s.insert(len(s.times), start, end)
}

// insert adds a stretch.
func (s *Set) insert(i int, start, end int64) *stretch {
	t := &stretch{start: start, end: end, stamp: s.stamp()}
	s.alive[t.stamp] = true
	s.times = slices.Insert(s.times, i, t)
	return t
}

// stamp returns one that no id has. There are far more than stretches.
func (s *Set) stamp() uint8 {
	for {
		for i, alive := range s.alive {
			if !alive && s.free[i] <= s.swept {
				return uint8(i)
			}
		}
		s.sweep(parts)
	}
}

// sweep rebuilds the next n parts, as far as that frees memory.
func (s *Set) sweep(n int) {
	for range n {
		p := &s.parts[s.swept%parts]
		if p.groups > 0 {
			s.rebuild(p)
		}
		s.swept++
	}
}

// boundary is the end of the stretch of time that at is in.
func (s *Set) boundary(at int64) int64 {
	b := at - at%s.width
	if at%s.width < 0 {
		b -= s.width
	}
	return b + s.width
}

// past returns the stretch for ids that came at a time, nil when they are too old.
func (s *Set) past(at int64) *stretch {
	n := len(s.times)
	if n == 0 || at >= s.times[n-1].start {
		s.expire(at)
		return s.current(at)
	}
	end := s.boundary(at)
	if at < s.whole || end < s.times[n-1].start-s.window {
		return nil
	}
	if s.live+block > s.max {
		if at < s.times[0].end { // there is nothing older that could go instead
			s.whole = max(s.whole, at+1)
			return nil
		}
		s.fit()
		n = len(s.times)
	}
	i := 0 // the first stretch that begins after at
	for i < n && s.times[i].start <= at {
		i++
	}
	if i > 0 && at < s.times[i-1].end {
		return s.times[i-1]
	}
	start := end - s.width
	if i > 0 {
		start = max(start, s.times[i-1].end)
	}
	if i < n {
		end = min(end, s.times[i].start)
	}
	return s.insert(i, start, end)
}

// expire forgets the stretches whose time is over.
func (s *Set) expire(now int64) {
	for len(s.times) > 0 && s.times[0].end < now-s.window {
		s.drop()
	}
}

// fit forgets the oldest stretches until a block has room.
func (s *Set) fit() {
	for len(s.times) > 1 && s.live+block > s.max {
		s.whole = max(s.whole, s.times[0].end+1) // its last ids may have come at its end
		s.drop()
	}
}

func (s *Set) drop() {
	t := s.times[0]
	s.times = slices.Delete(s.times, 0, 1)
	s.live -= t.live
	s.alive[t.stamp] = false
	s.free[t.stamp] = s.swept + parts
	if len(s.times) == 0 {
		s.parts, s.bytes = [parts]part{}, 0
		s.swept += parts
		return
	}
	s.sweep(sweep)
}

// Expire forgets what is older than the window. Mark does so, too.
func (s *Set) Expire(now time.Time) { s.expire(now.UnixNano()) }

// Len returns how many ids are held.
func (s *Set) Len() int { return s.live }

// Bytes returns the memory that the table takes.
func (s *Set) Bytes() int64 { return int64(s.bytes) }

// Window returns how far back from now duplicates are surely found: the window of
// the limits, or less when MaxIDs made the set forget earlier. It comes back to
// the full one as time goes on.
func (s *Set) Window(now time.Time) time.Duration {
	if s.whole == 0 {
		return time.Duration(s.window)
	}
	return time.Duration(min(s.window, max(now.UnixNano()-s.whole, 0)))
}

// Blocks yields all ids, 16 bytes each, in blocks of up to 64 Ki ids that came in
// one stretch of time: what Load takes. The set must not change meanwhile; the
// block is reused.
func (s *Set) Blocks() iter.Seq2[time.Time, []byte] {
	const most = 64 << 10 * idSize
	return func(yield func(time.Time, []byte) bool) {
		var came [stamps]time.Time
		var blocks [stamps][]byte
		for _, t := range s.times {
			came[t.stamp] = time.Unix(0, t.start)
		}
		going := true
		for i := range s.parts {
			s.parts[i].each(func(lo, hi uint64, stamp uint8) {
				if !going || !s.alive[stamp] {
					return
				}
				b := binary.LittleEndian.AppendUint64(blocks[stamp], lo)
				b = binary.LittleEndian.AppendUint64(b, hi)
				if len(b) >= most {
					going = yield(came[stamp], b)
					b = b[:0]
				}
				blocks[stamp] = b
			})
		}
		for stamp, b := range blocks {
			if going && len(b) > 0 {
				going = yield(came[stamp], b)
			}
		}
	}
}
