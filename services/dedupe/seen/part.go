package seen

import (
	"encoding/binary"
	"math/bits"
)

const (
	// idSize is the length of an id in bytes.
	idSize = 16
	// slots is how many ids make a group.
	slots = 8
	// head is how many words of a group come before the ids: tags and stamps.
	head = 2
	// size is how many words a group has in all.
	size = head + 2*slots
)

// part is a set of ids by open addressing: first the tags and the stamps of each
// group, then the ids of each group. It is one piece of memory without pointers,
// which costs the garbage collector nothing to walk. A lookup reads the tags, and
// an id only where a tag fits. The zero part is empty.
type part struct {
	words  []uint64
	groups uint32
	used   uint32 // slots that are not empty
}

// A tag is 0 for an empty slot, grave for one whose id was taken out, else 0x80
// and seven bits of the hash. A stamp is the number of the stretch of time that
// the id came in; where that is no longer alive, so is the id.
const (
	ones  = 0x0101010101010101
	highs = 0x80 * ones
	grave = 0x01
	full  = 0x80
)

// hash is a 64-bit hash of an id and the id itself.
type hash struct {
	sum, lo, hi uint64
}

// seed makes the hash another one in every process: the ids of one lane have bits
// in common, and a sender may choose some of the others.
type seed struct{ a, b uint64 }

func (s seed) of(id []byte) hash {
	return s.mix(binary.LittleEndian.Uint64(id), binary.LittleEndian.Uint64(id[8:]))
}

func (s seed) mix(lo, hi uint64) hash {
	high, low := bits.Mul64(lo^s.a, hi^s.b)
	return hash{high ^ low, lo, hi}
}

// part is the number of the part: the top 8 bits.
func (h hash) part() int { return int(h.sum >> 56) }

// tag is made of the lowest 7 bits.
func (h hash) tag() uint64 { return h.sum&0x7f | full }

// group is where to begin in a part of n groups: made of the 32 bits between.
func (h hash) group(n uint32) uint32 { return uint32(h.sum >> 8 & 0xffffffff * uint64(n) >> 32) }

// zeros sets bit 7 of each byte of w that is 0. A borrow may set the bit of a 1
// above a 0 as well, so only "is there one" and the lowest are sure.
func zeros(w uint64) uint64 { return (w - ones) &^ w & highs }

// lowest is the number of the lowest byte whose bit 7 is set.
func lowest(m uint64) int { return bits.TrailingZeros64(m) >> 3 }

// id is the index of the id in a slot.
func (p *part) id(g uint32, slot int) int { return int(p.groups)*head + (int(g)*slots+slot)*2 }

// find returns the slot of an id. When it is not there, slot is -1 and g is the
// group that put would put it in.
func (p *part) find(h hash) (g uint32, slot int) {
	if p.groups == 0 {
		return 0, -1
	}
	tags := h.tag() * ones
	for g = h.group(p.groups); ; {
		w := p.words[g*head]
		for m := zeros(w ^ tags); m != 0; m &= m - 1 {
			slot = lowest(m)
			if at := p.id(g, slot); p.words[at] == h.lo && p.words[at+1] == h.hi {
				return g, slot
			}
		}
		if zeros(w) != 0 {
			return g, -1
		}
		if g++; g == p.groups {
			g = 0
		}
	}
}

// put adds an id that is not there in group g, which has an empty slot.
func (p *part) put(g uint32, h hash, stamp uint8) {
	slot := lowest(zeros(p.words[g*head]))
	p.words[g*head] |= h.tag() << (8 * slot)
	p.restamp(g, slot, stamp)
	at := p.id(g, slot)
	p.words[at], p.words[at+1] = h.lo, h.hi
	p.used++
}

// open returns the first group on the way of h that has an empty slot.
func (p *part) open(h hash) uint32 {
	g := h.group(p.groups)
	for zeros(p.words[g*head]) == 0 {
		if g++; g == p.groups {
			g = 0
		}
	}
	return g
}

func (p *part) stamp(g uint32, slot int) uint8 { return uint8(p.words[g*head+1] >> (8 * slot)) }

func (p *part) restamp(g uint32, slot int, stamp uint8) {
	w := &p.words[g*head+1]
	*w = *w&^(0xff<<(8*slot)) | uint64(stamp)<<(8*slot)
}

// remove empties a slot.
func (p *part) remove(g uint32, slot int) {
	// A search ends at a group with an empty slot. Where there is one, another
	// does no harm; a full group must stay full, or what lies behind it is lost.
	w := &p.words[g*head]
	tag := uint64(grave)
	if zeros(*w) != 0 {
		tag = 0
		p.used--
	}
	*w = *w&^(0xff<<(8*slot)) | tag<<(8*slot)
}

// room is how many slots may be in use: four of five, so that a search for an id
// that is not there soon meets an empty one.
func room(groups uint32) uint32 { return groups * slots * 4 / 5 }

// each calls f for all ids of p.
func (p *part) each(f func(lo, hi uint64, stamp uint8)) {
	for g := range p.groups {
		for m := p.words[g*head] & highs; m != 0; m &= m - 1 {
			slot := lowest(m)
			at := p.id(g, slot)
			f(p.words[at], p.words[at+1], p.stamp(g, slot))
		}
	}
}

// rebuild puts the ids that are alive in new memory with room for at least n ids.
func (p *part) rebuild(n int, s seed, alive *[stamps]bool) {
	groups := uint32((n*5/4 + slots) / slots)
	old := *p
	*p = part{words: make([]uint64, int(groups)*size), groups: groups}
	old.each(func(lo, hi uint64, stamp uint8) {
		if alive[stamp] {
			h := s.mix(lo, hi)
			p.put(p.open(h), h, stamp)
		}
	})
}

// alive counts the ids that are alive.
func (p *part) alive(alive *[stamps]bool) int {
	n := 0
	for g := range p.groups {
		for m := p.words[g*head] & highs; m != 0; m &= m - 1 {
			if alive[p.stamp(g, lowest(m))] {
				n++
			}
		}
	}
	return n
}

// bytes returns the memory that p takes.
func (p *part) bytes() int { return 8 * len(p.words) }

// touchTags reads the tags where the search for h begins, touchID the id that the
// search is likely to read or write. Doing so for many ids first lets the
// processor fetch from memory for all of them at the same time.
func (p *part) touchTags(h hash) uint64 {
	if p.groups == 0 {
		return 0
	}
	return p.words[h.group(p.groups)*head]
}

func (p *part) touchID(h hash) uint64 {
	if p.groups == 0 {
		return 0
	}
	g := h.group(p.groups)
	w := p.words[g*head]
	m := zeros(w ^ h.tag()*ones)
	if m == 0 {
		m = zeros(w)
	}
	return p.words[p.id(g, lowest(m|1<<63))]
}
