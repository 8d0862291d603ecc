package ledger

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// ordinals is a set of numbers that are mostly small or near each other: one bit
// each, in pages. The zero value is empty.
type ordinals struct {
	first []uint64 // page 0, no longer than it needs to be: most pulls have no other
	pages map[uint64]*[pageWords]uint64
}

const pageWords = 64 // 4096 numbers in 512 bytes

// word returns the word that holds n, nil when there is none and grow is not set.
func (s *ordinals) word(n uint64, grow bool) *uint64 {
	page, at := n/(64*pageWords), n/64%pageWords
	if page == 0 {
		if at >= uint64(len(s.first)) {
			if !grow {
				return nil
			}
			s.first = append(s.first, make([]uint64, at+1-uint64(len(s.first)))...)
		}
		return &s.first[at]
	}
	p := s.pages[page]
	if p == nil {
		if !grow {
			return nil
		}
		if s.pages == nil {
			s.pages = map[uint64]*[pageWords]uint64{}
		}
		p = new([pageWords]uint64)
		s.pages[page] = p
	}
	return &p[at]
}

func (s *ordinals) has(n uint64) bool {
	w := s.word(n, false)
	return w != nil && *w&(1<<(n%64)) != 0
}

// add returns whether n is new.
func (s *ordinals) add(n uint64) bool {
	w := s.word(n, true)
	before := *w
	*w |= 1 << (n % 64)
	return *w != before
}

// remove returns whether n was there.
func (s *ordinals) remove(n uint64) bool {
	if !s.has(n) {
		return false
	}
	*s.word(n, false) &^= 1 << (n % 64)
	return true
}

func (s *ordinals) count() (n uint64) {
	ones := func(words []uint64) {
		for _, w := range words {
			n += uint64(bits.OnesCount64(w))
		}
	}
	ones(s.first)
	for _, p := range s.pages {
		ones(p[:])
	}
	return n
}

// each calls do with every number, in ascending order.
func (s *ordinals) each(do func(n uint64)) {
	eachOf(0, s.first, do)
	for no, page := range inOrder(s.pages) {
		eachOf(no*64*pageWords, page[:], do)
	}
}

func eachOf(base uint64, words []uint64, do func(n uint64)) {
	for i, w := range words {
		for ; w != 0; w &= w - 1 {
			do(base + uint64(i)*64 + uint64(bits.TrailingZeros64(w)))
		}
	}
}

// pack returns the set as runs, nil when it is empty: few bytes both for single
// numbers far apart and for long stretches.
func (s *ordinals) pack() []byte {
	var out []byte
	var from, length, last uint64 // the run, and where the one before ended
	flush := func() {
		if length > 0 {
			out = binary.AppendUvarint(out, from-last)
			out = binary.AppendUvarint(out, length)
			last = from + length
		}
	}
	s.each(func(n uint64) {
		if length == 0 || n != from+length {
			flush()
			from, length = n, 0
		}
		length++
	})
	flush()
	return slices.Clip(out)
}

// unpack is the reverse of pack. What is broken is left out.
func unpack(runs []byte) *ordinals {
	s := &ordinals{}
	var at uint64
	for len(runs) > 0 {
		gap, n := binary.Uvarint(runs)
		length, m := binary.Uvarint(runs[max(0, n):])
		if n <= 0 || m <= 0 || length > 1<<32 {
			return s
		}
		runs = runs[n+m:]
		at += gap
		for range length {
			s.add(at)
			at++
		}
	}
	return s
}
