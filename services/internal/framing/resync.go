package framing

import (
	"bytes"

	"github.com/penstock/penstock/messages/fault"
)

// Going on after broken JSON. First the record is looked at with some patience:
// when only a token is wrong and the brackets hold, its end is certain. Else the
// next place is searched where a record plausibly begins: with the same bracket
// and first key as the records before, or at the start of a line.

const (
	// maxSig bounds how much of the beginning of a record is remembered.
	maxSig = 64
	// lookBack is how far before the broken byte the next record may begin: a
	// string that lost its end runs into the first key of the next record.
	lookBack = maxSig
	// retain is what a search keeps of the bytes behind it.
	retain = 2 * maxSig
	// patience bounds the repairs in one record, control characters in strings
	// aside; maxJunk bounds the bytes of each.
	patience = 4
	maxJunk  = 256
	// mendAhead bounds how far behind the broken byte its record may end.
	mendAhead = 1 << 20
)

// learn remembers how records begin: `{"eventVersion":`.
func (s *Splitter) learn(rec []byte) {
	if len(s.sig) > 0 && bytes.HasPrefix(rec, s.sig) {
		return
	}
	if n := signature(rec); n > 0 {
		s.sig = append(s.sig[:0], rec[:n]...)
	}
}

// signature returns the length of `{"key":` at the beginning of rec, 0 when it
// begins otherwise.
func signature(rec []byte) int {
	rec = rec[:min(len(rec), maxSig)]
	if len(rec) == 0 || rec[0] != '{' {
		return 0
	}
	i := after(rec, 1, ' ')
	if i == len(rec) || rec[i] != '"' {
		return 0
	}
	var v value
	v.reset(1)
	i, got := v.run(rec, i, false)
	if got != done {
		return 0
	}
	if i = after(rec, i, ' '); i == len(rec) || rec[i] != ':' {
		return 0
	}
	return i + 1
}

// broken makes a Bad of the record at start, in which the byte at pos cannot be,
// and leaves pos where the next record begins.
func (s *Splitter) broken(got verdict) *Bad {
	kind, reason := kindOf(got), s.val.reason
	if len(s.sig) == 0 {
		s.learn(s.buf[s.start:s.pos])
	}
	at := s.pos - s.start
	if got == wrong && s.val.depth > 0 && s.mend() {
		return s.bad(kind, reason)
	}
	s.pos = s.start + max(min(1, s.end-s.start), at-lookBack)
	return s.resync(kind, reason)
}

// mend looks for the end of the record at start behind the broken byte at pos.
// It succeeds when brackets and strings hold and something follows that can
// follow a record.
func (s *Splitter) mend() bool {
	limit := s.pos - s.start + mendAhead
	for left := patience; left > 0; {
		if s.val.want != inString && s.val.want != inKey {
			left--
		}
		if !s.stepOver() {
			return false
		}
		at := s.pos - s.start
		got := more
		for got == more {
			bound, full := s.window(min(int64(limit), s.lim.Record))
			s.pos, got = s.val.run(s.buf[:bound], s.pos, false)
			if got == more && (full || !s.more()) {
				return false
			}
		}
		if got == done {
			return s.follows(limit)
		}
		if got == deep || s.pos-s.start == at {
			return false
		}
	}
	return false
}

// stepOver moves pos behind what cannot be there and sets the state in which the
// grammar holds again. It gives up where that is a guess.
func (s *Splitter) stepOver() bool {
	for junk := 0; junk <= maxJunk; junk++ {
		if s.pos == s.end && !s.more() {
			return false
		}
		c := s.buf[s.pos]
		switch {
		case s.val.want == inString || s.val.want == inKey:
			// A control character in a string.
			if s.pos++; s.pos == s.end && !s.more() {
				return false
			}
			if s.buf[s.pos] >= ' ' {
				return true
			}
			continue
		case c == ',' || c == '}' || c == ']':
			s.val.want = wantNext
			return true
		case c == '"' && junk == 0 && s.val.want == wantNext: // a comma is missing
			s.val.want = wantValue
			if s.val.inObject() {
				s.val.want = wantKey
			}
			return true
		case c == '"' || c == '{' || c == '[':
			return false
		}
		s.pos++
	}
	return false
}

// follows tells whether what comes behind pos can follow a record. It moves
// nothing.
func (s *Splitter) follows(limit int) bool {
	limit = min(limit, s.lim.buffer()-FillRoom)
	for i := s.pos - s.start; i < limit; i++ {
		if s.start+i == s.end && !s.more() {
			return s.at == inValues
		}
		switch c := s.buf[s.start+i]; {
		case space(c):
		case c == ',':
			return true
		case c == ']':
			return s.at == inArray
		default:
			return s.at == inValues && (c == '{' || c == '[' || c == 0x1e)
		}
	}
	return false
}

// resync makes a Bad of what lies between start and the next plausible beginning
// of a record at pos or behind it. It is nil when a record begins at start.
func (s *Splitter) resync(kind *fault.Kind, reason string) *Bad {
	s.off = s.base + int64(s.start)
	bad := &Bad{Offset: s.off, Kind: kind, Reason: reason}
	bad.Bytes = s.seek()
	if s.base+int64(s.pos) == s.off {
		return nil
	}
	s.topAt = s.base + int64(s.pos) // what is said about the object is about the rest of it
	// The separator before the next record belongs to nobody.
	end := s.pos
	for low := max(s.start, end-maxSig); end > low && s.base+int64(end) > s.off+1 &&
		(space(s.buf[end-1]) || s.buf[end-1] == ','); {
		end--
	}
	bad.Length = s.base + int64(end) - s.off
	if int64(len(bad.Bytes)) > bad.Length {
		bad.Bytes = bad.Bytes[:bad.Length]
	}
	return bad
}

// seek moves pos to the next place where a record, or the key of the array,
// plausibly begins, or to the end. It returns a copy of the bytes from start on.
func (s *Splitter) seek() (head []byte) {
	saved := false
	for {
		if s.find() {
			break
		}
		if !saved && int64(s.end-s.start) > s.lim.Keep+retain {
			head, saved = s.head(s.end), true
		}
		if saved {
			s.start = max(s.start, s.pos-retain)
		}
		if !s.more() {
			// The brackets that are missing now may well be in the span.
			s.at, s.pos = atEnd, s.end
			break
		}
	}
	if !saved {
		head = s.head(s.pos - s.start)
	}
	return head
}

// find looks through the buffer from pos on. When it finds nothing, it leaves
// pos where the next look must begin.
func (s *Splitter) find() bool {
	b := s.buf[:s.end]
	best := -1
	overlap := 1
	consider := func(pattern []byte, ok func(p int) bool, skip int) {
		overlap = max(overlap, len(pattern)-1)
		for p := s.pos; p < len(b); p++ {
			i := bytes.Index(b[p:], pattern)
			if i < 0 {
				return
			}
			if p += i; ok(p) {
				best = p + skip
				b = b[:best] // only what comes before it is of interest
				return
			}
		}
	}
	inside := func(p int) bool { c := s.before(&p); return c != ':' && c != '[' }
	switch {
	case len(s.sig) > 0:
		consider(s.sig, inside, 0)
	case s.at == inArray || s.at == atTop:
		consider([]byte{'{'}, func(p int) bool { return s.before(&p) == ',' && s.before(&p) == '}' }, 0)
	}
	if s.at == inValues {
		consider([]byte("\n{"), always, 1)
		consider([]byte("\n["), always, 1)
	}
	if s.at == inObject && !s.found {
		consider([]byte(`"`+s.f.Key+`"`), always, 0)
	}
	if best < 0 {
		s.pos = max(s.pos, s.end-overlap)
		return false
	}
	s.pos = best
	if s.buf[best] != '"' && (s.at == atTop || s.at == inObject) {
		s.at, s.found = inArray, true
	}
	return true
}

func always(int) bool { return true }

// before moves *p to the byte before it that is not white space and returns it,
// 0 when there is none near.
func (s *Splitter) before(p *int) byte {
	for low := max(s.start, *p-maxSig); *p > low; {
		*p--
		if c := s.buf[*p]; !space(c) {
			return c
		}
	}
	return 0
}
