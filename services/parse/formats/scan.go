package formats

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// Limits of the scanner. There are at most 64 wanted paths, too: they are bits.
const (
	// maxDepth bounds the nesting of a record, as encoding/json does.
	maxDepth = 10_000
	// maxSteps bounds the steps of a wanted path.
	maxSteps = 16
)

// kind tells what sort of JSON value stands at a wanted path.
type kind uint8

const (
	absent kind = iota
	text        // a string
	number      // a number, as written
	other       // true, false, null, an object or an array
)

// firstOf as a step of a wanted path is the first element of an array.
const firstOf = "\x00first"

// found is the value at one wanted path: rec[start:end], without the quotes of a
// string. For kind other the end is not noted.
type found struct {
	kind       kind
	escaped    bool // the string holds escapes
	start, end int
}

// node is one step on the way to the wanted paths.
type node struct {
	key   string
	slot  int    // index into scanner.found, -1 when only a step on the way
	below uint64 // bit i is set when slot i is here or below
	kids  []*node
	elem  *node  // the step that is the first element of an array, nil for none
	lens  uint64 // bit n&63 is set when a kid's key has n bytes
}

// scanner checks a record against the whole grammar of JSON and notes the values
// at the wanted paths in the same pass, without decoding. It allocates nothing
// once made. Not for concurrent use.
//
// It agrees with encoding/json on what is valid: bytes that are not UTF-8 are
// allowed inside strings. Of equal keys in one object the last one holds, with
// all that is below it. A path passes through objects, and through the first
// element of an array where it says firstOf.
//
// Source: RFC 8259.
type scanner struct {
	root  *node
	found []found
	// high is or-ed from all that strings hold: bit 7 of a byte of it is set when
	// there is a byte that is not ASCII.
	high    uint64
	nodes   [maxSteps + 1]*node
	objects [maxDepth/64 + 1]uint64 // bit d is set when the container at depth d is an object
	scratch []byte
}

// newScanner makes a scanner; the index of a path is its slot in found. The slot of
// an empty path stays absent.
func newScanner(paths ...[]string) *scanner {
	root := &node{slot: -1}
	for slot, path := range paths {
		if len(path) == 0 {
			continue
		}
		at := root
		at.below |= 1 << slot
		for _, key := range path {
			at = at.step(key)
			at.below |= 1 << slot
		}
		at.slot = slot
	}
	return &scanner{root: root, found: make([]found, len(paths))}
}

// step returns the kid for key, made where missing.
func (n *node) step(key string) *node {
	if key == firstOf {
		if n.elem == nil {
			n.elem = &node{key: key, slot: -1}
		}
		return n.elem
	}
	for _, k := range n.kids {
		if k.key == key {
			return k
		}
	}
	k := &node{key: key, slot: -1}
	n.kids = append(n.kids, k)
	n.lens |= 1 << (len(key) & 63)
	return k
}

// match finds the kid for a key as it stands in the record, perhaps with escapes.
func (s *scanner) match(n *node, key []byte, escaped bool) *node {
	if escaped {
		s.scratch = unescape(s.scratch[:0], key)
		key = s.scratch
	}
	if n.lens&(1<<(len(key)&63)) == 0 {
		return nil
	}
	for _, k := range n.kids {
		if k.key == string(key) {
			// Equal keys: this one replaces what an earlier one held.
			for m := k.below; m != 0; m &= m - 1 {
				s.found[bits.TrailingZeros64(m)].kind = absent
			}
			return k
		}
	}
	return nil
}

// scan reads the one value of b and returns its span without the white space
// around it. When b is no valid JSON, why says so and at is the offset.
func (s *scanner) scan(b []byte) (start, end int, why string, at int) {
	for i := range s.found {
		s.found[i].kind = absent
	}
	var (
		high   uint64
		i      = space(b, 0)
		depth  = 0
		live   = 0      // nodes[:live] are the wanted steps of the containers we are in
		want   = s.root // the step that the coming value stands at, nil for none
		object = false  // the innermost container is an object
	)
	start = i
next:
	for {
		// An element begins at b[i]. In an object its key comes first.
		if object {
			if i >= len(b) {
				return 0, 0, whyCut, i
			}
			if b[i] != '"' {
				return 0, 0, "a key in quotes is expected", i
			}
			j, escaped := i+1, false
			for j+8 <= len(b) {
				w := binary.LittleEndian.Uint64(b[j:])
				high |= w
				if m := special(w); m != 0 {
					j += bits.TrailingZeros64(m) >> 3
					break
				}
				j += 8
			}
			if j >= len(b) || b[j] != '"' {
				var more uint64
				if j, escaped, more = readText(b, j); j < 0 {
					return 0, 0, whyText(b, ^j), ^j
				}
				high |= more
			}
			want = nil
			if depth == live {
				want = s.match(s.nodes[live-1], b[i+1:j], escaped)
			}
			i = j + 1
			if i < len(b) && b[i] <= ' ' {
				i = space(b, i)
			}
			if i >= len(b) {
				return 0, 0, whyCut, i
			}
			if b[i] != ':' {
				return 0, 0, "a colon is expected after the key", i
			}
			i++
			if i < len(b) && b[i] <= ' ' {
				i = space(b, i)
			}
		}
		if i >= len(b) {
			return 0, 0, whyCut, i
		}
		switch c := b[i]; {
		case c == '"':
			j, escaped := i+1, false
			for j+8 <= len(b) {
				w := binary.LittleEndian.Uint64(b[j:])
				high |= w
				if m := special(w); m != 0 {
					j += bits.TrailingZeros64(m) >> 3
					break
				}
				j += 8
			}
			if j >= len(b) || b[j] != '"' {
				var more uint64
				if j, escaped, more = readText(b, j); j < 0 {
					return 0, 0, whyText(b, ^j), ^j
				}
				high |= more
			}
			if want != nil && want.slot >= 0 {
				s.found[want.slot] = found{text, escaped, i + 1, j}
			}
			i = j + 1
		case c == '{' || c == '[':
			if depth == maxDepth {
				return 0, 0, "the value is nested too deep", i
			}
			if object {
				s.objects[depth>>6] |= 1 << (depth & 63)
			} else {
				s.objects[depth>>6] &^= 1 << (depth & 63)
			}
			depth++
			object = c == '{'
			if want != nil {
				if want.slot >= 0 {
					s.found[want.slot] = found{kind: other, start: i}
				}
				way := want
				want = nil
				if object && way.kids != nil || !object && way.elem != nil {
					s.nodes[live] = way
					live++
					if !object {
						want = way.elem
					}
				}
			}
			i++
			if i < len(b) && b[i] <= ' ' {
				i = space(b, i)
			}
			if i >= len(b) {
				return 0, 0, whyCut, i
			}
			if b[i] != c+2 { // '{'+2 is '}' and '['+2 is ']'
				continue next
			}
		case c == '-' || c-'0' <= 9:
			j := digits(b, i)
			if j < 0 {
				return 0, 0, "the number is malformed", ^j
			}
			if want != nil && want.slot >= 0 {
				s.found[want.slot] = found{number, false, i, j}
			}
			i = j
		default:
			word := "null"
			switch c {
			case 't':
				word = "true"
			case 'f':
				word = "false"
			case 'n':
			default:
				return 0, 0, "a value is expected", i
			}
			if len(b)-i < len(word) || string(b[i:i+len(word)]) != word {
				return 0, 0, "a value is expected", i
			}
			if want != nil && want.slot >= 0 {
				s.found[want.slot] = found{kind: other, start: i}
			}
			i += len(word)
		}
		// A value has ended, or an empty container is about to: close what closes.
		for depth > 0 {
			if i < len(b) && b[i] <= ' ' {
				i = space(b, i)
			}
			if i >= len(b) {
				return 0, 0, whyCut, i
			}
			switch c := b[i]; {
			case c == ',':
				i++
				if i < len(b) && b[i] <= ' ' {
					i = space(b, i)
				}
				want = nil
				continue next
			case c == '}' && object, c == ']' && !object:
				i++
				depth--
				live = min(live, depth)
				object = s.objects[depth>>6]&(1<<(depth&63)) != 0
			default:
				return 0, 0, "a comma or the end of the container is expected", i
			}
		}
		end = i
		s.high = high
		if i = space(b, i); i < len(b) {
			return 0, 0, "nothing may follow the value", i
		}
		return start, end, "", 0
	}
}

const whyCut = "the value ends too early"

// whyText tells what is wrong with a string at offset at.
func whyText(b []byte, at int) string {
	switch {
	case at >= len(b):
		return whyCut
	case b[at] < ' ':
		return "a control character stands unescaped in a string"
	}
	return "the escape is malformed"
}

// valid tells whether b, which was just scanned, is UTF-8.
func (s *scanner) valid(b []byte) bool { return s.high&eighths == 0 || utf8.Valid(b) }

// space returns the index of the first byte from i on that is no white space.
func space(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// Eight bytes at a time: a constant holds one byte eight times.
const (
	ones    = 0x0101010101010101
	eighths = 0x80 * ones
	quotes  = '"' * ones
	slashes = '\\' * ones
	spaces  = ' ' * ones
)

// special flags the bytes of w that end the plain part of a string: quotes,
// backslashes and control characters. Only the lowest flag is sure: a borrow may set
// those above it.
func special(w uint64) uint64 {
	return ((w ^ quotes - ones) | (w ^ slashes - ones) | (w - spaces)) &^ w & eighths
}

// readText returns the index of the quote that ends the string that goes on at b[i], or
// ^offset of what is wrong; whether there are escapes before it; and what scanner.high
// is to have of it.
func readText(b []byte, i int) (end int, escaped bool, high uint64) {
	for {
		if i+8 <= len(b) {
			w := binary.LittleEndian.Uint64(b[i:])
			high |= w
			m := special(w)
			if m == 0 {
				i += 8
				continue
			}
			i += bits.TrailingZeros64(m) >> 3
		} else {
			for i < len(b) && b[i] != '"' && b[i] != '\\' && b[i] >= ' ' {
				high |= uint64(b[i])
				i++
			}
			if i >= len(b) {
				return ^len(b), escaped, high
			}
		}
		switch b[i] {
		case '"':
			return i, escaped, high
		case '\\':
			escaped = true
			j := escape(b, i)
			if j < 0 {
				return j, escaped, high
			}
			i = j
		default:
			return ^i, escaped, high
		}
	}
}

// escape returns the index behind the escape at b[i], or ^offset of what is wrong.
func escape(b []byte, i int) int {
	if i+1 >= len(b) {
		return ^len(b)
	}
	switch b[i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 2
	case 'u':
		for j := i + 2; j < i+6; j++ {
			if j >= len(b) {
				return ^len(b)
			}
			if hex(b[j]) < 0 {
				return ^i
			}
		}
		return i + 6
	}
	return ^i
}

// hex returns the value of a hex digit, -1 for another byte.
func hex(c byte) rune {
	switch {
	case '0' <= c && c <= '9':
		return rune(c - '0')
	case 'a' <= c && c <= 'f':
		return rune(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return rune(c-'A') + 10
	}
	return -1
}

// digits returns the index behind the number at b[i], or ^offset of what is wrong.
func digits(b []byte, i int) int {
	if b[i] == '-' {
		i++
	}
	j := run(b, i)
	if j == i || b[i] == '0' && j > i+1 {
		return ^i
	}
	i = j
	if i < len(b) && b[i] == '.' {
		if j = run(b, i+1); j == i+1 {
			return ^j
		}
		i = j
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if j = run(b, i); j == i {
			return ^j
		}
		i = j
	}
	return i
}

// run returns the index behind the decimal digits at b[i].
func run(b []byte, i int) int {
	for i < len(b) && b[i]-'0' <= 9 {
		i++
	}
	return i
}

// unescape appends the text of a valid JSON string to dst. A surrogate without
// its partner becomes U+FFFD, as in encoding/json.
func unescape(dst, b []byte) []byte {
	for i := 0; i < len(b); i++ {
		c := b[i]
		if c != '\\' {
			dst = append(dst, c)
			continue
		}
		i++
		switch b[i] {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := hex4(b[i+1:])
			i += 4
			if r&^0x3ff == 0xd800 && i+6 < len(b) && b[i+1] == '\\' && b[i+2] == 'u' {
				if low := hex4(b[i+3:]); low&^0x3ff == 0xdc00 {
					r = 0x10000 + (r&0x3ff)<<10 + low&0x3ff
					i += 6
				}
			}
			dst = utf8.AppendRune(dst, r) // U+FFFD for a lone surrogate
		default:
			dst = append(dst, b[i])
		}
	}
	return dst
}

func hex4(b []byte) rune {
	return hex(b[0])<<12 | hex(b[1])<<8 | hex(b[2])<<4 | hex(b[3])
}
