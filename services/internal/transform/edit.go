package transform

import (
	"bytes"

	"github.com/penstock/penstock/services/internal/document"
)

// mostValues bounds the values that a path may lead to, through lists.
const mostValues = 64

// isKey tells whether a key as it stands in a document is name.
func isKey(key []byte, name string) bool {
	if bytes.IndexByte(key, '\\') < 0 {
		return string(key) == name
	}
	return string(document.AppendUnquoted(nil, key)) == name
}

// appendValues appends the values that path leads to in v, lists walked through:
// the first of a key, at most mostValues. It reports whether v was understood as far
// as it was read.
func appendValues(dst [][]byte, v []byte, path []string) ([][]byte, bool) {
	return appendAt(dst, v, path, 0)
}

func appendAt(dst [][]byte, v []byte, path []string, depth int) (_ [][]byte, ok bool) {
	v = document.Trim(v)
	kind := document.KindOf(v)
	switch {
	case kind == document.None, depth > mostDepth:
		return dst, false
	case kind == document.Array:
		c := document.Members(v)
		for len(dst) < mostValues {
			_, start, end, more := c.Next()
			if !more {
				break
			}
			if dst, ok = appendAt(dst, v[start:end], path, depth+1); !ok {
				return dst, false
			}
		}
		return dst, !c.Bad()
	case len(path) == 0:
		return append(dst, v), true
	case kind != document.Object:
		return dst, true
	}
	c := document.Members(v)
	for {
		key, start, end, more := c.Next()
		if !more {
			return dst, !c.Bad()
		}
		if isKey(key, path[0]) {
			return appendAt(dst, v[start:end], path[1:], depth+1)
		}
	}
}

// target is where a value is put.
type target struct {
	path []string
	// from is what stands before the value when the path is missing from a level on:
	// "a":{"b": and so on.
	from [][]byte
}

func newTarget(path []string) target {
	t := target{path: path}
	for i := range path {
		var b []byte
		for k, name := range path[i:] {
			if k > 0 {
				b = append(b, '{')
			}
			b = append(document.AppendQuoted(b, name), ':')
		}
		t.from = append(t.from, b)
	}
	return t
}

// put is what came of putting a value into a document.
type put uint8

const (
	done put = iota
	// inTheWay: a part of the path is there and is no object.
	inTheWay
	// notJSON: the document was not understood.
	notJSON
)

// set appends doc to dst with value at the target, in the place of what is there.
func (t *target) set(dst, doc, value []byte) ([]byte, put) {
	return t.level(dst, doc, value, 0)
}

func (t *target) level(dst, v, value []byte, at int) ([]byte, put) {
	inner := document.Trim(v)
	switch document.KindOf(inner) {
	case document.Object:
	case document.None:
		return dst, notJSON
	default:
		return dst, inTheWay
	}
	last := 1 // where the last member ended
	c := document.Members(inner)
	for {
		key, start, end, more := c.Next()
		if !more {
			break
		}
		if last = end; !isKey(key, t.path[at]) {
			continue
		}
		dst = append(dst, inner[:start]...)
		if at == len(t.path)-1 {
			dst = append(dst, value...)
		} else {
			var res put
			if dst, res = t.level(dst, inner[start:end], value, at+1); res != done {
				return dst, res
			}
		}
		return append(dst, inner[end:]...), done
	}
	if c.Bad() || c.End() != len(inner) {
		return dst, notJSON
	}
	dst = append(dst, inner[:last]...)
	if last > 1 {
		dst = append(dst, ',')
	}
	dst = append(append(dst, t.from[at]...), value...)
	for range len(t.path) - 1 - at {
		dst = append(dst, '}')
	}
	return append(dst, inner[last:]...), done
}
