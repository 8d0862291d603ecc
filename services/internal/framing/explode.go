package framing

import (
	"strings"

	"github.com/penstock/penstock/services/internal/document"
)

// maxGrowth bounds how many times its own size a value may become when it is
// taken apart. What would become more stays in one piece: an envelope of half a
// megabyte around a hundred thousand short elements is no feed, but an attack.
const maxGrowth = 16

// explosion hands out the elements of an array, each in the whole value around it.
// It refers to the splitter's buffer, from which nothing is read meanwhile.
type explosion struct {
	value    []byte // nil when there is nothing to hand out
	from, to int    // the array, with its brackets
	elements document.Cursor
	left     int
	// out is value[:from], a bracket, and what changes.
	out []byte
}

// reset gives up what is left, and a buffer of unusual size.
func (e *explosion) reset() {
	out := e.out
	if cap(out) > firstBuffer {
		out = nil
	}
	*e = explosion{out: out[:0]}
}

// explode takes rec, which was just cut, apart at Framing.Explode. What has no
// array with several elements there is its only record.
func (s *Splitter) explode(rec []byte) ([]byte, error) {
	e := &s.parts
	from, to, ok := s.f.array(rec)
	if !ok {
		return rec, nil
	}
	n := 0
	for c := document.Members(rec[from:to]); ; n++ {
		if _, _, _, more := c.Next(); !more {
			break
		}
	}
	if around := len(rec) - (to - from); n < 2 || around > 0 && n > maxGrowth*len(rec)/around {
		return rec, nil
	}
	if cap(e.out) < len(rec) {
		if len(rec) > firstBuffer && s.lim.Grow != nil {
			if err := s.lim.Grow(len(s.buf) + len(rec)); err != nil {
				s.err, s.at = err, atEnd
				return nil, err
			}
		}
		e.out = make([]byte, 0, max(len(rec), firstBuffer/4))
	}
	e.value, e.from, e.to, e.left = rec, from, to, n
	e.elements = document.Members(rec[from:to])
	e.out = append(append(e.out[:0], rec[:from]...), '[')
	return s.nextPart(), nil
}

// nextPart returns the next record of the value in hand. Its offset is that of
// the value.
func (s *Splitter) nextPart() []byte {
	e := &s.parts
	_, from, to, _ := e.elements.Next()
	out := append(e.out[:e.from+1], e.value[e.from+from:e.from+to]...)
	out = append(append(out, ']'), e.value[e.to:]...)
	e.out = out[:e.from+1]
	if e.left--; e.left == 0 {
		e.value = nil
	}
	return out[:len(out):len(out)]
}

// array finds the array at Explode in rec. Of equal keys the last one holds, as it
// does for those who read the record. Keys are compared as written.
func (f *Framing) array(rec []byte) (from, to int, ok bool) {
	to = len(rec)
	for path := f.Explode; ; {
		key, rest, deeper := strings.Cut(path, ".")
		object, at, found := rec[from:to], from, false
		if document.KindOf(object) != document.Object {
			return 0, 0, false
		}
		for c := document.Members(object); ; {
			name, start, end, more := c.Next()
			if !more {
				break
			}
			if string(name) == key {
				from, to, found = at+start, at+end, true
			}
		}
		switch {
		case !found:
			return 0, 0, false
		case !deeper:
			return from, to, document.KindOf(rec[from:to]) == document.Array
		}
		path = rest
	}
}
