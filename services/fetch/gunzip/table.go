package gunzip

import "math/bits"

// A table turns the next bits of the input into symbols. It is looked up by its
// first root bits; codes longer than that go on in a table of their own behind
// them. An entry says all that is to be done:
//
//	bits  0–5   how many bits to use up: those of the code and of what follows it
//	bits  6–7   of literals: how many there are, 1 or 2
//	bits  8–11  how many of the bits are the code's (of two literals: the first's;
//	            of a link: by how many its table is looked up)
//	bits 12–15  flags
//	bits 16–31  the base of a length or distance; of literals: one byte each; of a
//	            link: where its table begins
//
// Source: RFC 1951, 3.2.
const (
	widthMask  = 1<<6 - 1
	oneLiteral = 1 << 6

	isLiteral = 1 << 15
	isLink    = 1 << 14 // the code goes on in another table
	isEnd     = 1 << 13 // of the block
	isBad     = 1 << 12 // no code begins so, or its symbol is reserved
)

// By how many bits tables are looked up, and how large they can get with complete
// codes. Source: zlib, examples/enough.c.
const (
	litRoot  = 10
	distRoot = 8
	preRoot  = 7
	litSize  = 1 << 11 // 1334 are needed for 286 symbols
	distSize = 1 << 9  // 402 are needed for 30 symbols
	preSize  = 1 << preRoot
)

// How many symbols there are. Of the fixed codes some are reserved.
const (
	litSymbols   = 286
	distSymbols  = 30
	fixedLits    = 288
	fixedDists   = 32
	preSymbols   = 19
	endOfBlock   = 256
	longestCode  = 15 // bits
	longestMatch = 258
)

// What symbols mean, as entries without a code.
var (
	litMeaning  = meaningOfLits()
	distMeaning = meaningOfDists()
	preMeaning  = meaningOfPres()
)

func meaningOfLits() (all [fixedLits]uint32) {
	for i := range endOfBlock {
		all[i] = isLiteral | oneLiteral | uint32(i)<<16
	}
	all[endOfBlock] = isEnd
	base := uint32(3)
	for i := endOfBlock + 1; i < litSymbols-1; i++ {
		extra := uint32(0)
		if i > 264 {
			extra = uint32(i-261) / 4
		}
		all[i] = base<<16 | extra
		base += 1 << extra
	}
	all[litSymbols-1] = longestMatch << 16
	all[litSymbols], all[litSymbols+1] = isBad, isBad
	return all
}

func meaningOfDists() (all [fixedDists]uint32) {
	base := uint32(1)
	for i := range distSymbols {
		extra := uint32(0)
		if i > 3 {
			extra = uint32(i-2) / 2
		}
		all[i] = base<<16 | extra
		base += 1 << extra
	}
	all[distSymbols], all[distSymbols+1] = isBad, isBad
	return all
}

func meaningOfPres() (all [preSymbols]uint32) {
	for i := range all {
		all[i] = uint32(i) << 16
	}
	return all
}

// build makes the table of the code whose symbols have codes of so many bits, 0
// for those that do not occur. It is false for what is no code: a complete one is,
// one of a single code of one bit, and one without any.
func build(table []uint32, root int, sizes []uint8, meaning []uint32) bool {
	var count, next [longestCode + 1]int
	for _, n := range sizes {
		count[n]++
	}
	longest := longestCode
	for longest > 0 && count[longest] == 0 {
		longest--
	}
	left, sum := 1, 0
	for n := 1; n <= longest; n++ {
		if left = left<<1 - count[n]; left < 0 {
			return false
		}
		next[n] = sum
		sum += count[n]
	}
	if left > 0 {
		if longest > 1 {
			return false
		}
		for i := range table[:1<<root] {
			table[i] = isBad
		}
	}
	var sorted [fixedLits]uint16 // symbols by the length of their codes
	for s, n := range sizes {
		if n > 0 {
			sorted[next[n]] = uint16(s)
			next[n]++
		}
	}

	// Code by code in order. code has the first bit lowest, as it is looked up. When
	// codes have n bits the table has 2^n entries; for longer ones it is doubled.
	code, done := uint32(0), 0
	for n := 1; n <= root; n++ {
		if done > 0 {
			copy(table[1<<(n-1):1<<n], table[:1<<(n-1)])
		}
		for range count[n] {
			table[code] = entry(meaning[sorted[done]], n)
			code = following(code, n)
			done++
		}
	}
	var sub []uint32 // the table that codes beginning with prefix go on in
	prefix, end := ^uint32(0), 1<<root
	for n := root + 1; n <= longest; n++ {
		for k := count[n]; k > 0; k-- {
			if p := code & (1<<root - 1); p != prefix {
				prefix = p
				// So large that the code is complete in it.
				width := n - root
				for m, free := n+1, 1<<width-k; free > 0; m++ {
					free = free<<1 - count[m]
					width++
				}
				table[p] = isLink | uint32(root) | uint32(width)<<8 | uint32(end)<<16
				sub = table[end : end+1<<width]
				end += 1 << width
			}
			e := entry(meaning[sorted[done]], n-root)
			for i := int(code >> root); i < len(sub); i += 1 << (n - root) {
				sub[i] = e
			}
			code = following(code, n)
			done++
		}
	}
	return true
}

// entry is a symbol's entry with a code of n bits.
func entry(meaning uint32, n int) uint32 { return meaning + uint32(n)<<8 + uint32(n) }

// following is the code of n bits after code; after the last one, that one.
func following(code uint32, n int) uint32 {
	zeros := code ^ (1<<n - 1)
	if zeros == 0 {
		return code
	}
	// The code's last bit is the highest here.
	carried := uint32(1) << (31 - bits.LeadingZeros32(zeros))
	return code&(carried-1) | carried
}

// pair lets a lookup give two literals where their codes are short enough. It goes
// downwards, so that what it looks up is not a pair yet, and without branches,
// since they could not be foreseen.
func pair(table *[1 << litRoot]uint32) {
	for i := len(table) - 1; i >= 0; i-- {
		e := table[i]
		n := e & widthMask
		next := table[i>>(n&15)]
		m := next & widthMask
		both := e & next / isLiteral & ((n + m - litRoot - 1) >> 31)
		table[i] = e + -both&(next<<8&0xff000000|oneLiteral|m)
	}
}
