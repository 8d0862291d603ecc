// Package document works on the JSON document of an event where it stands:
// nothing is decoded into Go values and nothing but the result is written.
//
// The functions expect one valid JSON value, which parse has seen to. Where it
// matters, a document that is not one is reported; none of them panics on it.
//
// Source: RFC 8259.
package document

import (
	"bytes"
	"unicode/utf8"
)

// AppendValid appends text to dst with every byte that is not part of valid
// UTF-8 replaced by U+FFFD, and tells how many bytes that were.
// Source: features DEV-143.
func AppendValid(dst, text []byte) ([]byte, int) {
	replaced := 0
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if r == utf8.RuneError && size == 1 {
			dst = append(dst, "\uFFFD"...)
			replaced++
		} else {
			dst = append(dst, text[:size]...)
		}
		text = text[size:]
	}
	return dst, replaced
}

// AppendLine appends doc to dst as one line. Space between tokens goes; a line
// break inside a string, which JSON does not allow, is escaped.
func AppendLine(dst, doc []byte) []byte {
	for i := 0; i < len(doc); {
		switch c := doc[i]; c {
		case ' ', '\t', '\r', '\n':
			i++
		case '"':
			end, ok := skipString(doc, i)
			if !ok {
				end = len(doc)
			}
			dst = appendString(dst, doc[i:end])
			i = end
		default:
			dst = append(dst, c)
			i++
		}
	}
	return dst
}

// appendString appends the raw string s with line breaks escaped.
func appendString(dst, s []byte) []byte {
	if bytes.IndexByte(s, '\n') < 0 && bytes.IndexByte(s, '\r') < 0 {
		return append(dst, s...)
	}
	for _, c := range s {
		switch c {
		case '\n':
			dst = append(dst, `\n`...)
		case '\r':
			dst = append(dst, `\r`...)
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

// Kind of a JSON value.
type Kind uint8

// The kinds. None is what is not a JSON value.
const (
	None Kind = iota
	Object
	Array
	String
	Number
	Bool
	Null
)

// KindOf tells the kind of the value that begins v, by its first byte.
func KindOf(v []byte) Kind {
	if len(v) == 0 {
		return None
	}
	switch c := v[0]; {
	case c == '{':
		return Object
	case c == '[':
		return Array
	case c == '"':
		return String
	case c == '-' || c >= '0' && c <= '9':
		return Number
	case c == 't' || c == 'f':
		return Bool
	case c == 'n':
		return Null
	}
	return None
}

// Depth returns how deep objects and arrays are nested in v, 0 for a scalar.
func Depth(v []byte) int {
	depth, most := 0, 0
	for i := 0; i < len(v); i++ {
		switch v[i] {
		case '"':
			end, ok := skipString(v, i)
			if !ok {
				return most
			}
			i = end - 1
		case '{', '[':
			depth++
			most = max(most, depth)
		case '}', ']':
			depth--
		}
	}
	return most
}

// Whole reports whether v is one value from its first byte to its last, as far as
// strings and brackets tell.
func Whole(v []byte) bool {
	end, ok := skipValue(v, 0)
	return ok && end == len(v)
}

// Trim returns doc without the space around it.
func Trim(doc []byte) []byte {
	i, end := skipSpace(doc, 0), len(doc)
	for end > i && isSpace(doc[end-1]) {
		end--
	}
	return doc[i:end]
}

// Cursor walks over the members of one object or the elements of one array. It
// does not descend.
type Cursor struct {
	doc  []byte
	i    int
	obj  bool
	done bool
	bad  bool
}

// Members walks over the object or array v, which has no space before it.
func Members(v []byte) Cursor {
	k := KindOf(v)
	return Cursor{doc: v, i: 1, obj: k == Object, done: k != Object && k != Array, bad: k != Object && k != Array}
}

// Next returns the next member: its key between the quotes, escapes unresolved
// (nil in an array), and the place of its value in what Members was given. At
// the end, and where the text is not JSON, ok is false; then see Bad.
func (c *Cursor) Next() (key []byte, start, end int, ok bool) {
	if c.done {
		return nil, 0, 0, false
	}
	first := c.i == 1
	i := skipSpace(c.doc, c.i)
	closing := byte(']')
	if c.obj {
		closing = '}'
	}
	if i < len(c.doc) && c.doc[i] == closing {
		c.i, c.done = i+1, true
		return nil, 0, 0, false
	}
	if !first {
		if i >= len(c.doc) || c.doc[i] != ',' {
			return c.fail()
		}
		i = skipSpace(c.doc, i+1)
	}
	if c.obj {
		if i >= len(c.doc) || c.doc[i] != '"' {
			return c.fail()
		}
		after, ok := skipString(c.doc, i)
		if !ok {
			return c.fail()
		}
		key = c.doc[i+1 : after-1]
		i = skipSpace(c.doc, after)
		if i >= len(c.doc) || c.doc[i] != ':' {
			return c.fail()
		}
		i = skipSpace(c.doc, i+1)
	}
	end, ok = skipValue(c.doc, i)
	if !ok {
		return c.fail()
	}
	c.i = end
	return key, i, end, true
}

func (c *Cursor) fail() ([]byte, int, int, bool) {
	c.done, c.bad = true, true
	return nil, 0, 0, false
}

// Bad reports whether the walk ended at something that is not JSON.
func (c *Cursor) Bad() bool { return c.bad }

// End is where the value ended, once Next has said so.
func (c *Cursor) End() int { return c.i }

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func skipSpace(b []byte, i int) int {
	for i < len(b) && isSpace(b[i]) {
		i++
	}
	return i
}

// skipString returns the place after the string that begins at b[i].
func skipString(b []byte, i int) (int, bool) {
	begin := i + 1
	for j := begin; ; {
		n := bytes.IndexByte(b[j:], '"')
		if n < 0 {
			return 0, false
		}
		j += n
		back := j
		for back > begin && b[back-1] == '\\' {
			back--
		}
		j++
		if (j-1-back)%2 == 0 {
			return j, true
		}
		begin = j // counted backslashes are not counted again
	}
}

// skipValue returns the place after the value that begins at b[i]. Inside of
// containers only strings and brackets are looked at.
func skipValue(b []byte, i int) (int, bool) {
	if i >= len(b) {
		return 0, false
	}
	switch KindOf(b[i:]) {
	case String:
		return skipString(b, i)
	case Object, Array:
		return skipContainer(b, i)
	case Number, Bool, Null:
		j := i + 1
		for j < len(b) && isScalar(b[j]) {
			j++
		}
		return j, true
	case None:
	}
	return 0, false
}

func isScalar(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c == '.' || c == '-' || c == '+' || c == 'E'
}

func skipContainer(b []byte, i int) (int, bool) {
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			end, ok := skipString(b, i)
			if !ok {
				return 0, false
			}
			i = end
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
			if depth == 0 {
				return i + 1, true
			}
		}
		i++
	}
	return 0, false
}

// AppendUnquoted appends the text of a string, given what stands between its
// quotes. Escapes that are not valid become U+FFFD.
func AppendUnquoted(dst, raw []byte) []byte {
	for {
		n := bytes.IndexByte(raw, '\\')
		if n < 0 || n+1 >= len(raw) {
			return append(dst, raw...)
		}
		dst = append(dst, raw[:n]...)
		c := raw[n+1]
		raw = raw[n+2:]
		switch c {
		case '"', '\\', '/':
			dst = append(dst, c)
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
			var r rune
			r, raw = unicodeEscape(raw)
			dst = utf8.AppendRune(dst, r)
		default:
			dst = utf8.AppendRune(dst, utf8.RuneError)
		}
	}
}

// unicodeEscape reads what follows \u, a second half of a surrogate pair
// included. A lone half becomes U+FFFD.
func unicodeEscape(raw []byte) (rune, []byte) {
	r, ok := hex4(raw)
	if !ok {
		return utf8.RuneError, raw
	}
	raw = raw[4:]
	if r < 0xD800 || r > 0xDFFF {
		return r, raw
	}
	if r < 0xDC00 && len(raw) >= 6 && raw[0] == '\\' && raw[1] == 'u' {
		if low, ok := hex4(raw[2:]); ok && low >= 0xDC00 && low <= 0xDFFF {
			return (r-0xD800)<<10 | (low - 0xDC00) + 0x10000, raw[6:]
		}
	}
	return utf8.RuneError, raw
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

const hexDigits = "0123456789abcdef"

// AppendQuoted appends s as a JSON string. What is not valid UTF-8 becomes
// U+FFFD; '<', '>' and '&' stay as they are.
func AppendQuoted(dst []byte, s string) []byte {
	i := plain(s)
	dst = append(append(dst, '"'), s[:i]...)
	from := i
	for i < len(s) {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				dst = append(append(dst, s[from:i]...), "\uFFFD"...)
				from = i + 1
			}
			i += size
			continue
		}
		dst = append(dst, s[from:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, `\n`...)
		case '\r':
			dst = append(dst, `\r`...)
		case '\t':
			dst = append(dst, `\t`...)
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		from = i
	}
	return append(append(dst, s[from:]...), '"')
}

// plain returns how many bytes of s, from its first on and in steps of eight, are ASCII
// and can stand in a JSON string as they are.
func plain(s string) int {
	const (
		ones    = 0x0101010101010101
		eighths = 0x80 * ones
	)
	i := 0
	for ; i+8 <= len(s); i += 8 {
		w := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
			uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		if (((w^'"'*ones)-ones)|((w^'\\'*ones)-ones)|(w-' '*ones)|w)&eighths != 0 {
			break
		}
	}
	return i
}
