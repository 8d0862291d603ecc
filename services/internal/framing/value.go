package framing

import (
	"encoding/binary"
	"math/bits"
)

// value finds the end of one JSON value. It can stop anywhere in it and go on
// when more bytes have come, at the same byte. Source: RFC 8259.
type value struct {
	want   want
	depth  int
	max    int    // deepest nesting allowed
	reason string // what is wrong, after verdict wrong or deep
	// stack has a bit for each open bracket, 1 for an object.
	stack [MaxDepth / 64]uint64
}

// want is what the grammar allows at the next byte.
type want uint8

const (
	wantValue      want = iota
	wantValueOrEnd      // after '['
	wantKey             // after ',' in an object
	wantKeyOrEnd        // after '{'
	wantColon           // after a key
	wantNext            // after a value
	inKey               // inside the string of a key
	inString            // inside a string
)

// verdict is why value.run stopped.
type verdict uint8

const (
	more  verdict = iota // the bytes ended first
	done                 // behind the last byte of the value
	wrong                // at a byte that cannot be there
	deep                 // at a bracket that nests too deep
)

// maxNumber bounds the bytes of a number, because a number that is cut by the
// end of the buffer is looked at again from its start.
const maxNumber = 64 << 10

func (v *value) reset(max int) { v.want, v.depth, v.max, v.reason = wantValue, 0, max, "" }

func (v *value) inObject() bool {
	return v.depth > 0 && v.stack[(v.depth-1)>>6]>>((v.depth-1)&63)&1 != 0
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// special flags the bytes of x that end the plain part of a string: quote,
// backslash, control characters. Only the lowest flag is to be trusted.
func special(x uint64) uint64 {
	return ((x ^ ones*'"' - ones) | (x ^ ones*'\\' - ones) | (x - ones*' ')) &^ x & highs
}

func space(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

// run goes on at b[i]. last says that no bytes follow b. It returns where it
// stopped: after more, where to go on.
//
// One function with jumps instead of one for each state, because this loop sees
// every byte that enters penstock.
func (v *value) run(b []byte, i int, last bool) (int, verdict) {
	var (
		n   = len(b)
		obj = v.inObject()
		c   byte
		f   uint64
		j   int
	)
	switch v.want {
	case wantValueOrEnd:
		goto firstValue
	case wantKey:
		goto key
	case wantKeyOrEnd:
		goto firstKey
	case wantColon:
		goto colon
	case wantNext:
		goto next
	case inKey:
		goto keyText
	case inString:
		goto text
	default: // wantValue
	}

value:
	if i >= n {
		v.want = wantValue
		return i, more
	}
	c = b[i]
	if c == '"' {
		i++
		goto text
	}
	if c == '{' || c == '[' {
		if v.depth >= v.max {
			v.want, v.reason = wantValue, "brackets nest too deep"
			return i, deep
		}
		f = 1 << (v.depth & 63)
		obj = c == '{'
		if obj {
			v.stack[v.depth>>6] |= f
		} else {
			v.stack[v.depth>>6] &^= f
		}
		v.depth++
		i++
		if obj {
			goto firstKey
		}
		goto firstValue
	}
	if space(c) {
		i++
		goto value
	}
	switch c {
	case 't':
		j = literal(b, i, "true")
	case 'f':
		j = literal(b, i, "false")
	case 'n':
		j = literal(b, i, "null")
	default:
		j = number(b, i, last)
	}
	if j > 0 {
		i = j
		goto next
	}
	v.want = wantValue
	if j == 0 && n-i <= maxNumber {
		return i, more
	}
	v.reason = "a value should be here"
	return i, wrong

text:
	for i+8 <= n {
		f = special(binary.LittleEndian.Uint64(b[i:]))
		if f == 0 {
			i += 8
			continue
		}
		i += bits.TrailingZeros64(f) >> 3
		c = b[i]
		if c == '"' {
			i++
			goto next
		}
		if c != '\\' {
			goto badText
		}
		if i+1 >= n {
			v.want = inString
			return i, more
		}
		i += 2
	}
	for i < n {
		c = b[i]
		if c == '"' {
			i++
			goto next
		}
		if c < ' ' {
			goto badText
		}
		if c == '\\' {
			if i+1 >= n {
				break
			}
			i++
		}
		i++
	}
	v.want = inString
	return i, more

next:
	if v.depth == 0 {
		return i, done
	}
	if i >= n {
		v.want = wantNext
		return i, more
	}
	c = b[i]
	if c == ',' {
		i++
		if obj {
			goto key
		}
		goto value
	}
	if c == '}' && obj || c == ']' && !obj {
		i++
		goto closed
	}
	if space(c) {
		i++
		goto next
	}
	v.want, v.reason = wantNext, "a comma or the closing bracket should be here"
	return i, wrong

closed:
	v.depth--
	obj = v.inObject()
	goto next

firstKey:
	if i < n && b[i] == '}' {
		i++
		goto closed
	}
	if i < n && space(b[i]) {
		i++
		goto firstKey
	}
	if i >= n {
		v.want = wantKeyOrEnd
		return i, more
	}
key:
	if i >= n {
		v.want = wantKey
		return i, more
	}
	c = b[i]
	if c != '"' {
		if space(c) {
			i++
			goto key
		}
		v.want, v.reason = wantKey, "a key should be here"
		return i, wrong
	}
	i++
keyText:
	for i+8 <= n {
		f = special(binary.LittleEndian.Uint64(b[i:]))
		if f == 0 {
			i += 8
			continue
		}
		i += bits.TrailingZeros64(f) >> 3
		c = b[i]
		if c == '"' {
			i++
			goto colon
		}
		if c != '\\' {
			goto badKey
		}
		if i+1 >= n {
			v.want = inKey
			return i, more
		}
		i += 2
	}
	for i < n {
		c = b[i]
		if c == '"' {
			i++
			goto colon
		}
		if c < ' ' {
			goto badKey
		}
		if c == '\\' {
			if i+1 >= n {
				break
			}
			i++
		}
		i++
	}
	v.want = inKey
	return i, more

colon:
	if i >= n {
		v.want = wantColon
		return i, more
	}
	c = b[i]
	if c == ':' {
		i++
		goto value
	}
	if space(c) {
		i++
		goto colon
	}
	v.want, v.reason = wantColon, "a colon should be here"
	return i, wrong

firstValue:
	if i < n && b[i] == ']' {
		i++
		goto closed
	}
	if i < n && space(b[i]) {
		i++
		goto firstValue
	}
	if i >= n {
		v.want = wantValueOrEnd
		return i, more
	}
	goto value

badText:
	v.want, v.reason = inString, "a string is not closed"
	return i, wrong
badKey:
	v.want, v.reason = inKey, "a string is not closed"
	return i, wrong
}

// literal returns the end of word at b[i], 0 when b ends before it does, -1 when
// it is another word.
func literal(b []byte, i int, word string) int {
	rest := b[i:]
	if len(rest) >= len(word) {
		if string(rest[:len(word)]) == word {
			return i + len(word)
		}
		return -1
	}
	if string(rest) == word[:len(rest)] {
		return 0
	}
	return -1
}

// number returns the end of the number at b[i], 0 when b ends before that is
// known, -1 when there is none.
func number(b []byte, i int, last bool) int {
	j, n := i, len(b)
	if n-i > maxNumber {
		n = i + maxNumber
	}
	if j < n && b[j] == '-' {
		j++
	}
	switch {
	case j >= n:
	case b[j] == '0':
		j++
	case b[j] >= '1' && b[j] <= '9':
		j = digits(b[:n], j)
	default:
		return -1
	}
	if j < n && b[j] == '.' {
		k := digits(b[:n], j+1)
		if k == j+1 && k < n {
			return -1
		}
		if j = k; b[j-1] == '.' {
			return 0
		}
	}
	if j < n && b[j]|0x20 == 'e' {
		j++
		if j < n && (b[j] == '+' || b[j] == '-') {
			j++
		}
		k := digits(b[:n], j)
		if k == j {
			if k < n {
				return -1
			}
			return 0
		}
		j = k
	}
	switch {
	case j < n:
		return j
	case n < len(b):
		return -1 // too long
	case last && j > i && b[j-1] >= '0' && b[j-1] <= '9':
		return j
	}
	return 0
}

func digits(b []byte, i int) int {
	for i < len(b) && b[i]-'0' <= 9 {
		i++
	}
	return i
}
