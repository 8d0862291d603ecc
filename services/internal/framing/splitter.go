package framing

import (
	"bytes"
	"io"

	"github.com/penstock/penstock/messages/fault"
)

// firstBuffer is the size of the buffer until a record does not fit. Unit: bytes.
const firstBuffer = 128 << 10

// Filler is a reader that writes behind what it gave before and looks back at it, as
// what decompresses does. So it needs no buffer of its own to copy from.
type Filler interface {
	// Fill writes to buf[end:], which has FillRoom bytes at least, and returns how
	// many, and errors, as [io.Reader] does. buf[:end] ends with what it gave before:
	// with LookBack bytes of that at least, or all.
	Fill(buf []byte, end int) (int, error)
}

// What a Filler may count on. Unit: bytes.
const (
	LookBack = 32 << 10
	FillRoom = 4 << 10
)

// plain is a reader that does not look back.
type plain struct{ io.Reader }

// Fill implements Filler.
func (p plain) Fill(buf []byte, end int) (int, error) { return p.Read(buf[end:]) }

// Bounds of what Keys reports, and of what Auto looks at.
const (
	maxKeys   = 32
	maxKeyLen = 128
	sniffLen  = 4 << 10
)

// Splitter cuts one input. Not safe for concurrent use.
//
// The buffer is a window of the input: buf[start:end] must stay, buf[start:pos]
// has been looked at. Where the window ends never changes what comes out, so an
// input gives the same records in reads of any size.
type Splitter struct {
	f   Framing
	lim Limits
	err error // the reader's last word

	from Filler
	r    plain // from, where it was given as a reader
	// look is how much of the input stays before end, least how much room is made.
	look, least int

	buf             []byte
	base            int64 // offset of buf[0] in the input
	start, pos, end int

	at    place
	val   value
	off   int64  // where the last record or span began
	sig   []byte // how records begin, see learn
	keyed bool   // the array stands in an object
	found bool   // the array of this top-level object was met
	topAt int64  // where this top-level object began, or what is left of it
	keys  []string

	parts explosion // what is left of the last value, see Explode

	headed bool   // the first line was met
	header []byte // a copy, made anew for each header
}

// place is where in the input the splitter stands between two records.
type place uint8

const (
	atStart  place = iota // nothing was read
	inLines               // Lines
	inValues              // Values
	atTop                 // Array: outside of all values
	inObject              // Array: in the top-level object, before a key or its end
	inArray               // Array: before an element or the end of the array
	atCut                 // the input ended too early, which is to be told
	atEnd
)

// New returns a Splitter of r. It reads nothing yet.
func New(f Framing, r io.Reader, lim Limits) *Splitter {
	s := new(Splitter)
	s.Reset(f, r, lim)
	return s
}

// Reset begins anew with another input. A buffer of the first size is kept.
func (s *Splitter) Reset(f Framing, r io.Reader, lim Limits) {
	s.reset(f, lim)
	s.r = plain{r}
	s.from, s.least = &s.r, 1
}

// ResetTo is Reset with an input that looks back.
func (s *Splitter) ResetTo(f Framing, from Filler, lim Limits) {
	s.reset(f, lim)
	s.from, s.look, s.least = from, LookBack, FillRoom
}

func (s *Splitter) reset(f Framing, lim Limits) {
	buf := s.buf
	if len(buf) != firstBuffer {
		buf = nil
	}
	s.parts.reset()
	*s = Splitter{f: f, lim: lim.withDefaults(), buf: buf, sig: s.sig[:0], keys: s.keys[:0], parts: s.parts}
}

// Offset is where in the input the record or span begins that Next returned
// last. At the end it is the length of the input.
func (s *Splitter) Offset() int64 { return s.off }

// Keys returns the keys of the top-level object met so far, with an array under
// a key: at most 32, each at most 128 bytes, as written. It is valid until Reset.
func (s *Splitter) Keys() []string { return s.keys }

// Header is the line that names the columns of the record that Next returned
// last, nil where there is none. It is a copy that stays as it is; another header
// is another copy.
func (s *Splitter) Header() []byte { return s.header }

// Next returns the next record, a slice of the splitter's buffer that is valid
// until the next call. The error is a *Bad for a span that is not a record
// (call Next again), io.EOF at the end, or the reader's error, which ends it;
// a record that the end cut is a *Bad before that.
func (s *Splitter) Next() ([]byte, error) {
	if s.parts.value != nil {
		return s.nextPart(), nil
	}
	for {
		s.start = s.pos
		switch s.at {
		case atStart:
			s.open()
			continue
		case inLines:
			if s.f.Kind == CSV {
				return s.row()
			}
			return s.line()
		case atCut:
			s.at, s.off = atEnd, s.base+int64(s.end)
			return nil, s.bad(ErrTruncated, "the input ends before its closing bracket")
		case atEnd:
			s.off = s.base + int64(s.end)
			return nil, s.err
		case inObject:
			if bad := s.object(); bad != nil {
				return nil, bad
			}
			continue
		default: // among values, below
		}

		c, ok := s.peek()
		if !ok {
			s.at, s.pos = s.ended(), s.end
			continue
		}
		switch {
		case c == ',' && s.at != atTop, c == 0x1e && s.at == inValues:
			s.pos++
		case c == ']' && s.at == inArray:
			s.pos++
			s.at = atTop
			if s.keyed {
				s.at = inObject
			}
		case c == '{' && s.at == atTop && s.f.Key != "":
			s.topAt = s.base + int64(s.pos)
			s.at, s.keyed, s.found = inObject, true, false
			s.pos++
		case c == '[' && s.at == atTop:
			s.at, s.keyed = inArray, false
			s.pos++
		case c != '{' && s.at == atTop:
			s.start = s.pos
			s.pos++
			return nil, s.resync(ErrSyntax, "neither an array nor an object begins here")
		default:
			return s.record()
		}
	}
}

// ended tells what follows when the input ended between two records.
func (s *Splitter) ended() place {
	if s.at == inArray || s.at == inObject {
		return atCut
	}
	return atEnd
}

// more reads once. It keeps buf[start:end], moves it to the front or to a larger
// buffer as needed, and reports whether bytes came.
func (s *Splitter) more() bool {
	if s.err != nil {
		return false
	}
	if len(s.buf)-s.end < s.least {
		if err := s.room(); err != nil {
			s.err = err
			return false
		}
	}
	for range 100 {
		n, err := s.from.Fill(s.buf, s.end)
		s.end += n
		s.err = err
		if n > 0 || err != nil {
			return n > 0
		}
	}
	s.err = io.ErrNoProgress
	return false
}

// buffer is the size of the largest buffer. Unit: bytes.
func (l Limits) buffer() int { return int(max(l.Record, l.Keep)) + firstBuffer }

// room makes room in the buffer, FillRoom at least unless start lies too far back.
func (s *Splitter) room() error {
	held := s.end - s.start
	into := s.buf
	if largest := s.lim.buffer(); held > len(s.buf)/2 && len(s.buf) < largest || s.buf == nil {
		size := min(max(2*len(s.buf), firstBuffer), largest)
		if size > firstBuffer && s.lim.Grow != nil {
			if err := s.lim.Grow(size); err != nil {
				return err
			}
		}
		into = make([]byte, size)
	}
	keep := min(s.start, max(0, s.end-s.look))
	copy(into, s.buf[keep:s.end])
	s.buf = into
	s.base += int64(keep)
	s.start, s.pos, s.end = s.start-keep, s.pos-keep, s.end-keep
	return nil
}

// peek steps over white space and returns the byte behind it, false at the end.
func (s *Splitter) peek() (byte, bool) {
	for {
		for ; s.pos < s.end; s.pos++ {
			if c := s.buf[s.pos]; !space(c) {
				return c, true
			}
		}
		s.start = s.pos
		if !s.more() {
			return 0, false
		}
	}
}

// open steps over a byte order mark and settles Auto.
func (s *Splitter) open() {
	const mark = "\xef\xbb\xbf"
	for s.end < len(mark) && s.more() {
	}
	if bytes.HasPrefix(s.buf[:s.end], []byte(mark)) {
		s.pos = len(mark)
	}
	if s.f.Kind == Auto {
		explode := s.f.Explode
		s.f = s.sniff()
		s.f.Explode = explode
	}
	switch s.f.Kind {
	case Lines, CSV:
		s.at = inLines
	case Array:
		s.at = atTop
	default:
		s.at = inValues
	}
}

// sniff looks for `[` or `{..."Records": [` where no other array comes before it.
func (s *Splitter) sniff() Framing {
	c, _ := s.peek()
	if c == '[' {
		return Framing{Kind: Array}
	}
	if c != '{' {
		return Framing{Kind: Values}
	}
	for s.start = s.pos; ; {
		head := s.buf[s.start:min(s.end, s.start+sniffLen)]
		key, known := firstArray(head)
		if known && key == "Records" {
			return Framing{Kind: Array, Key: key}
		}
		if known || len(head) == sniffLen || !s.more() {
			return Framing{Kind: Values}
		}
	}
}

// firstArray returns the first key of the object at b[0] whose value is an
// array, "" when there is none; known is false when b ends too early to tell.
func firstArray(b []byte) (key string, known bool) {
	var v value
	var got verdict
	for i := 1; ; {
		from := after(b, i, ',')
		v.reset(MaxDepth)
		i, got = v.run(b, from, false)
		if got != done || b[from] != '"' {
			return "", got != more
		}
		name := b[from+1 : i-1]
		if i = after(b, i, ':'); i < len(b) && b[i] == '[' {
			return string(name), true
		}
		v.reset(MaxDepth)
		if i, got = v.run(b, i, false); got != done {
			return "", got != more
		}
	}
}

// after steps over white space and sep.
func after(b []byte, i int, sep byte) int {
	for i < len(b) && (space(b[i]) || b[i] == sep) {
		i++
	}
	return i
}

// object reads on in the top-level object: a key and its value, unless that is
// the array, or the end of the object.
func (s *Splitter) object() *Bad {
	for {
		c, ok := s.peek()
		switch {
		case !ok:
			s.at, s.pos = atCut, s.end
			return nil
		case c == ',':
			s.pos++
			continue
		case c == '}':
			s.pos++
			s.at = atTop
			if s.found {
				return nil
			}
			s.off = s.topAt
			return &Bad{
				Offset: s.off, Length: s.base + int64(s.pos) - s.off, Kind: ErrNoArray,
				Reason: "the object has no array " + s.f.Key,
			}
		}
		s.start = s.pos
		s.off = s.base + int64(s.pos)
		if c != '"' {
			return s.resync(ErrSyntax, "a key should be here")
		}
		key, bad := s.key()
		if bad != nil || s.at == atCut {
			return bad
		}
		c, ok = s.peek()
		if ok && c == ':' {
			s.pos++
			c, ok = s.peek()
		} else if ok {
			s.start = s.pos
			s.off = s.base + int64(s.pos)
			return s.resync(ErrSyntax, "a colon should be here")
		}
		if !ok {
			continue
		}
		if key && c == '[' {
			s.pos++
			s.at, s.found = inArray, true
			return nil
		}
		if key && c == 'n' {
			s.found = true // null: an array of nothing
		}
		if bad := s.skipValue(); bad != nil || s.at == atCut {
			return bad
		}
	}
}

// key reads a key and tells whether it is the array's.
func (s *Splitter) key() (array bool, bad *Bad) {
	s.val.reset(s.lim.Depth)
	for {
		i, got := s.val.run(s.buf[:min(s.end, s.start+maxNumber)], s.pos, false)
		s.pos = i
		switch {
		case got == done:
			key := s.buf[s.start+1 : i-1]
			if len(s.keys) < maxKeys && len(key) <= maxKeyLen {
				s.keys = append(s.keys, string(key))
			}
			return string(key) == s.f.Key, nil
		case got != more || s.end-s.start >= maxNumber:
			return false, s.resync(ErrSyntax, "a key is not closed")
		case !s.more():
			s.at, s.pos = atCut, s.end
			return false, nil
		}
	}
}

// skipValue steps over a value of any size.
func (s *Splitter) skipValue() *Bad {
	s.off = s.base + int64(s.pos)
	s.val.reset(s.lim.Depth)
	for {
		i, got := s.val.run(s.buf[:s.end], s.pos, false)
		s.start, s.pos = i, i
		switch {
		case got == done:
			return nil
		case got != more:
			s.off = s.base + int64(s.pos)
			return s.resync(kindOf(got), s.val.reason)
		case !s.more():
			s.at, s.pos = atCut, s.end
			return nil
		}
	}
}

func kindOf(v verdict) *fault.Kind {
	if v == deep {
		return ErrTooDeep
	}
	return ErrSyntax
}

// record reads the value at pos.
func (s *Splitter) record() ([]byte, error) {
	s.start = s.pos
	s.off = s.base + int64(s.pos)
	s.val.reset(s.lim.Depth)
	for {
		bound, full := s.window(s.lim.Record + 1)
		last := s.err == io.EOF && !full
		i, got := s.val.run(s.buf[:bound], s.pos, last)
		s.pos = i
		switch {
		case got == done && int64(i-s.start) <= s.lim.Record:
			rec := s.buf[s.start:i:i]
			s.learn(rec)
			if s.f.Explode != "" {
				return s.explode(rec)
			}
			return rec, nil
		case got == done || got == more && full:
			return nil, s.large(got == done)
		case got != more:
			return nil, s.broken(got)
		case !s.more() && (last || s.err != io.EOF): // else again, with last
			return nil, s.cut()
		}
	}
}

// window returns the end of what may be looked at when no more than n bytes from
// start count, and whether all n are there.
func (s *Splitter) window(n int64) (bound int, full bool) {
	if int64(s.end-s.start) >= n {
		return s.start + int(n), true
	}
	return s.end, false
}

// cut ends the splitter in the middle of a record.
func (s *Splitter) cut() *Bad {
	s.at, s.pos = atEnd, s.end
	return s.bad(ErrTruncated, "the input ends inside a record")
}

// bad makes a Bad of what lies between off and pos, all of it in the buffer.
func (s *Splitter) bad(kind *fault.Kind, reason string) *Bad {
	b := &Bad{Offset: s.off, Length: s.base + int64(s.pos) - s.off, Kind: kind, Reason: reason}
	if b.Length > 0 {
		b.Bytes = s.head(int(b.Length))
	}
	return b
}

// head copies the first n bytes behind start, as far as they are kept.
func (s *Splitter) head(n int) []byte {
	n = int(min(int64(n), int64(s.end-s.start), s.lim.Keep))
	return bytes.Clone(s.buf[s.start : s.start+n])
}

// large steps over a record above the limit; whole means that pos is behind it.
func (s *Splitter) large(whole bool) *Bad {
	bad := &Bad{Offset: s.off, Bytes: s.head(int(s.lim.Record) + 1), Kind: ErrTooLarge, Reason: "the record is larger than allowed"}
	for !whole {
		last := s.err == io.EOF
		i, got := s.val.run(s.buf[:s.end], s.pos, last)
		s.start, s.pos = i, i
		switch {
		case got == done:
			whole = true
		case got != more:
			s.seek()
			whole = true
		case !s.more() && (last || s.err != io.EOF):
			s.at, s.pos = atCut, s.end
			whole = true
		}
	}
	bad.Length = s.base + int64(s.pos) - bad.Offset
	return bad
}

// line reads a line.
func (s *Splitter) line() ([]byte, error) {
	for {
		s.off = s.base + int64(s.start)
		i := bytes.IndexByte(s.buf[s.pos:s.end], '\n')
		if i < 0 {
			s.pos = s.end
			if int64(s.end-s.start) > s.lim.Record {
				return nil, s.largeLine()
			}
			if s.more() {
				continue
			}
			if s.err != io.EOF && s.end > s.start {
				return nil, s.cut()
			}
			s.at = atEnd
		} else {
			s.pos += i
		}
		line := s.buf[s.start:s.pos:s.pos]
		if s.at != atEnd {
			s.pos++
		}
		if int64(len(line)) > s.lim.Record {
			return nil, &Bad{
				Offset: s.off, Length: int64(len(line)), Bytes: s.head(int(s.lim.Record) + 1),
				Kind: ErrTooLarge, Reason: "the line is longer than allowed",
			}
		}
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line = line[: n-1 : n-1]
		}
		if len(line) > 0 {
			record, bad := s.judge(line)
			if bad != nil {
				return nil, bad
			}
			if record {
				return line, nil
			}
		}
		if s.start = s.pos; s.at == atEnd {
			s.off = s.base + int64(s.end)
			return nil, s.err
		}
	}
}

// judge tells whether a line is a record, and keeps it when it is the header.
func (s *Splitter) judge(line []byte) (record bool, bad *Bad) {
	switch s.f.Header {
	case FirstLine:
		if s.headed {
			return true, nil
		}
		s.headed = true
	case Directives:
		if line[0] != '#' {
			return true, nil
		}
		if !bytes.HasPrefix(line, []byte("#Fields:")) {
			return false, nil
		}
	default:
		return true, nil
	}
	if len(line) > MaxHeader {
		s.header = nil
		return false, &Bad{
			Offset: s.off, Length: int64(len(line)), Bytes: s.head(len(line)),
			Kind: ErrHeader, Reason: "the line that should name the columns is longer than allowed",
		}
	}
	s.header = bytes.Clone(line)
	return false, nil
}

// largeLine steps over a line above the limit.
func (s *Splitter) largeLine() *Bad {
	bad := &Bad{Offset: s.off, Bytes: s.head(int(s.lim.Record) + 1), Kind: ErrTooLarge, Reason: "the line is longer than allowed"}
	for {
		i := bytes.IndexByte(s.buf[s.pos:s.end], '\n')
		if i >= 0 {
			s.pos += i
			bad.Length = s.base + int64(s.pos) - bad.Offset
			s.pos++
			return bad
		}
		s.pos, s.start = s.end, s.end
		if !s.more() {
			s.at = atEnd
			bad.Length = s.base + int64(s.end) - bad.Offset
			return bad
		}
	}
}
