package formats

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/penstock/penstock/messages/fault"
)

// This file is what the text formats share: they read a line and write one JSON
// document of its fields.
//
//	Start:   layout, err := d.headers.of(head.Header)     // once a frame
//	Decode:  d.w.begin()
//	         d.w.text(col.key, value)                     // or number, auto, json
//	         d.Body = d.w.end(); d.Odd |= d.w.odd()
//
// Names are made into bytes once, with the header; nothing is allocated per record.

var (
	errLine = fault.Define("parse.bad_line", fault.Reject,
		"look at the line in quarantine; if it is another format than the source names, set the source's format and redrive it")
	errColumns = fault.Define("parse.wrong_columns", fault.Reject,
		"look at the line in quarantine: it does not fit the header it came with; have the file written again, or set the source's format and redrive it")
	errNoHeader = fault.Define("parse.no_header", fault.Reject,
		"name the columns in the format's options, or have files written with their header line; then redrive")
	errHeaderLine = fault.Define("parse.header_line", fault.Reject,
		"none needed for a header that is repeated in the middle of a file: it is no event; if the lines behind it were refused, have each file written with one header only")
)

const (
	// maxColumns bounds the columns of a header.
	maxColumns = 4096
	// maxNumber is the longest number that is written as one. Unit: bytes.
	maxNumber = 40
	// maxHeaders bounds the headers that a decoder remembers.
	maxHeaders = 64
	// rawField is the name of the line itself, with keep_raw.
	rawField = "raw"
)

// fieldKey is the name of a field as it stands in a document, with the colon and
// the quote that begins a text: `"name":"`.
type fieldKey []byte

func newKey(name string) fieldKey {
	k, _ := appendText(nil, []byte(name))
	return append(append(fieldKey(`"`), k...), `":"`...)
}

// column is a field of a layout.
type column struct {
	key  fieldKey
	name string
	// numeric values are written as numbers where they are numbers.
	numeric bool
	// slot is what the format itself reads of a record, -1 for nothing.
	slot int
	// unknown: the format has no such column.
	unknown bool
}

// newColumns makes columns of names. A name that comes twice gets a number behind
// it, as does one that is reserved, and an empty one becomes column_<n>, so that
// all can stand in one document. slots tells the slot of a name and whether it is
// numeric; slots are 0 and up, each is given once.
func newColumns(names []string, slots func(name string) (slot int, numeric bool), reserved ...string) []column {
	cols := make([]column, 0, len(names))
	used := make(map[string]bool, len(names))
	for _, r := range reserved {
		used[r] = true
	}
	numbers := map[string]int{} // the last one behind a name
	taken := map[int]bool{}
	for i, name := range names {
		c := column{name: strings.ToValidUTF8(name, "\uFFFD"), slot: -1}
		c.slot, c.numeric = slots(name)
		if c.slot >= 0 && taken[c.slot] {
			c.slot = -1
		}
		taken[c.slot] = true
		if c.name == "" {
			c.name = columnName(i)
		}
		for base := c.name; used[c.name]; {
			n := max(numbers[base], 1) + 1
			c.name, numbers[base] = base+"_"+strconv.Itoa(n), n
		}
		used[c.name] = true
		c.key = newKey(c.name)
		cols = append(cols, c)
	}
	return cols
}

// columnName names a column by its index, which is shown from 1 on.
func columnName(index int) string { return "column_" + strconv.Itoa(index+1) }

// headers remembers what was made of the headers that came last. Not for
// concurrent use.
type headers[T any] struct {
	// parse makes a layout of a header. It must not keep the bytes.
	parse func(header []byte) (T, error)

	last  []byte
	made  madeOf[T]
	ready bool
	known map[string]madeOf[T]
}

type madeOf[T any] struct {
	layout T
	err    error
}

// of returns the layout for header, or the error that parse gave for it.
func (h *headers[T]) of(header []byte) (T, error) {
	if h.ready && bytes.Equal(header, h.last) {
		return h.made.layout, h.made.err
	}
	made, ok := h.known[string(header)]
	if !ok {
		made.layout, made.err = h.parse(header)
		if h.known == nil || len(h.known) >= maxHeaders {
			h.known = make(map[string]madeOf[T])
		}
		h.known[string(header)] = made
	}
	h.last, h.made, h.ready = append(h.last[:0], header...), made, true
	return made.layout, made.err
}

// fieldWriter writes documents, one after the other into the same buffer. Not for
// concurrent use.
type fieldWriter struct {
	buf []byte
	bad bool // something was not UTF-8
}

// begin begins a document.
func (w *fieldWriter) begin() {
	w.buf, w.bad = append(w.buf[:0], '{'), false
}

// end ends it. The document is valid until the next begin.
func (w *fieldWriter) end() []byte {
	if last := len(w.buf) - 1; last > 0 {
		w.buf[last] = '}' // for the comma
	} else {
		w.buf = append(w.buf, '}')
	}
	return w.buf
}

// odd is what was strange about the fields: BadUTF8, or nothing.
func (w *fieldWriter) odd() Odd {
	if w.bad {
		return BadUTF8
	}
	return 0
}

// text adds a field. What is not UTF-8 in it becomes U+FFFD.
func (w *fieldWriter) text(k fieldKey, v []byte) {
	if n := plain(v); n < len(v) {
		w.escaped(k, v, n)
		return
	}
	w.plain(k, v)
}

// plain is text for a value that is known to need no escapes, as [plain] tells.
func (w *fieldWriter) plain(k fieldKey, v []byte) {
	w.buf = append(append(append(w.buf, k...), v...), '"', ',')
}

// escaped is text for a value with something to escape at v[from] or behind.
func (w *fieldWriter) escaped(k fieldKey, v []byte, from int) {
	b := append(append(w.buf, k...), v[:from]...)
	b, bad := appendText(b, v[from:])
	w.buf, w.bad = append(b, '"', ','), w.bad || bad
}

// number adds a field as a number, as written, where v is exactly a number of
// JSON; else as text. So "007" and "0x1f" stay what they are.
func (w *fieldWriter) number(k fieldKey, v []byte) {
	if !isNumber(v) {
		w.text(k, v)
		return
	}
	w.digits(k, v)
}

// digits is number for a value that is known to be one.
func (w *fieldWriter) digits(k fieldKey, v []byte) {
	w.buf = append(append(append(w.buf, k[:len(k)-1]...), v...), ',')
}

// reserve makes room for n more bytes, so that what follows need not.
func (w *fieldWriter) reserve(n int) { w.buf = slices.Grow(w.buf, n) }

// addPlain is add for a value that is known to need no escapes.
func (w *fieldWriter) addPlain(c *column, v []byte) {
	if c.numeric && isNumber(v) {
		w.digits(c.key, v)
		return
	}
	w.plain(c.key, v)
}

// add adds the field of a column.
func (w *fieldWriter) add(c *column, v []byte) {
	if c.numeric {
		w.number(c.key, v)
		return
	}
	w.text(c.key, v)
}

// json adds a field whose value is valid JSON.
func (w *fieldWriter) json(k fieldKey, v []byte) {
	w.buf = append(append(append(w.buf, k[:len(k)-1]...), v...), ',')
}

// object begins a field that is an object; the fields that follow are in it until
// close.
func (w *fieldWriter) object(k fieldKey) {
	w.buf = append(append(w.buf, k[:len(k)-1]...), '{')
}

// close ends what object began.
func (w *fieldWriter) close() {
	if last := len(w.buf) - 1; w.buf[last] == ',' {
		w.buf[last] = '}'
	} else {
		w.buf = append(w.buf, '}')
	}
	w.buf = append(w.buf, ',')
}

var rawKey = newKey(rawField)

// raw adds the line itself, for keep_raw.
func (w *fieldWriter) raw(line []byte) { w.text(rawKey, line) }

// isDash tells whether v is what many formats write for "absent".
func isDash(v []byte) bool { return len(v) == 1 && v[0] == '-' }

// isNumber tells whether v is a number of JSON, and not an absurdly long one.
func isNumber(v []byte) bool {
	if len(v) == 0 || len(v) > maxNumber || v[0]-'0' > 9 && v[0] != '-' {
		return false
	}
	return digits(v, 0) == len(v)
}

// isInteger tells whether v is a whole number from 0 to 10^16-1, as JSON writes it.
func isInteger(v []byte) bool {
	switch n := len(v); {
	case n == 0 || n > 16 || v[0] == '0' && n > 1:
		return false
	case n >= 8:
		return eightDigits(binary.LittleEndian.Uint64(v)) && eightDigits(binary.LittleEndian.Uint64(v[n-8:]))
	}
	for _, c := range v {
		if c-'0' > 9 {
			return false
		}
	}
	return true
}

// eightDigits tells whether all bytes of w are decimal digits.
func eightDigits(w uint64) bool {
	const high, six, threes = 0xf0 * ones, 0x06 * ones, 0x33 * ones
	return w&high|(w+six)&high>>4 == threes
}

// nextSpace returns where the next space in b is from i on, len(b) if there is none.
func nextSpace(b []byte, i int) int {
	for ; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:]) ^ spaces
		if m := (w - ones) &^ w & eighths; m != 0 { // a borrow sets bits above the first one only
			return i + bits.TrailingZeros64(m)>>3
		}
	}
	for i < len(b) && b[i] != ' ' {
		i++
	}
	return i
}

// plain returns how many bytes of v, from its first on, can stand in a JSON string
// as they are and are ASCII.
func plain(v []byte) int {
	i := 0
	for ; i+8 <= len(v); i += 8 {
		w := binary.LittleEndian.Uint64(v[i:])
		if (((w^quotes)-ones)|((w^slashes)-ones)|(w-spaces)|w)&eighths != 0 {
			break
		}
	}
	for i < len(v) && v[i] >= ' ' && v[i] != '"' && v[i] != '\\' && v[i] < utf8.RuneSelf {
		i++
	}
	return i
}

// plainBut tells whether all of v is ASCII that can stand in a JSON string as it is, but for
// one byte that separates values, e.g. a tab or a quote. It may say no where the answer is yes.
func plainBut(v []byte, separator byte) bool {
	separators := uint64(separator) * ones
	i := 0
	for ; i+8 <= len(v); i += 8 {
		w := binary.LittleEndian.Uint64(v[i:])
		// A borrow may flag a byte above one that is flagged rightly, also by the separator:
		// that is the wrong no. Where the separator itself is, must be known exactly.
		odd := ((w ^ quotes) - ones) | ((w ^ slashes) - ones) | (w - spaces) | w
		at := w ^ separators
		others := (at&^eighths + (eighths - ones)) | at // bit 7 is set where no separator is
		if odd&others&eighths != 0 {
			return false
		}
	}
	for ; i < len(v); i++ {
		if c := v[i]; c != separator && (c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf) {
			return false
		}
	}
	return true
}

const hexDigits = "0123456789abcdef"

// appendText appends v as what stands between the quotes of a JSON string. What is
// not UTF-8 becomes U+FFFD, and bad tells so.
func appendText(dst, v []byte) (_ []byte, bad bool) {
	for len(v) > 0 {
		n := plain(v)
		dst, v = append(dst, v[:n]...), v[n:]
		if len(v) == 0 {
			break
		}
		c := v[0]
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRune(v)
			if r == utf8.RuneError && size == 1 {
				dst, bad = append(dst, "\uFFFD"...), true
			} else {
				dst = append(dst, v[:size]...)
			}
			v = v[size:]
			continue
		}
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		v = v[1:]
	}
	return dst, bad
}
