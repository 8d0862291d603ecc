package route

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"sync"

	"github.com/penstock/penstock/services/internal/document"
)

// mask rewrites documents. It may be used concurrently.
type mask struct {
	fields  *fields
	key     []byte
	redact  bool
	hashers sync.Pool
}

// fields is a tree of the paths to mask.
type fields struct {
	leaf  bool
	named map[string]*fields
	any   *fields // what holds for every key
}

func newMask(cfg *Mask) *mask {
	m := &mask{fields: &fields{}, key: []byte(cfg.Key.Reveal()), redact: cfg.Method == Redact}
	m.hashers.New = func() any { return &hasher{mac: hmac.New(sha256.New, m.key)} }
	for _, path := range cfg.Fields {
		m.fields.add(splitPath(path))
	}
	m.fields.merge()
	return m
}

func (f *fields) add(path []string) {
	if len(path) == 0 {
		f.leaf = true
		return
	}
	next := &f.any
	if path[0] != "*" {
		if f.named == nil {
			f.named = map[string]*fields{}
		}
		n := f.named[path[0]]
		next = &n
	}
	if *next == nil {
		*next = &fields{}
	}
	if path[0] != "*" {
		f.named[path[0]] = *next
	}
	(*next).add(path[1:])
}

// merge makes what holds for every key hold for the named ones as well, so that
// one look-up is enough.
func (f *fields) merge() {
	for _, n := range f.named {
		n.take(f.any)
		n.merge()
	}
	if f.any != nil {
		f.any.merge()
	}
}

// take adds all paths of g to f.
func (f *fields) take(g *fields) {
	if g == nil {
		return
	}
	f.leaf = f.leaf || g.leaf
	for key, n := range g.named {
		if f.named == nil {
			f.named = map[string]*fields{}
		}
		if f.named[key] == nil {
			f.named[key] = &fields{}
		}
		f.named[key].take(n)
	}
	if g.any != nil {
		if f.any == nil {
			f.any = &fields{}
		}
		f.any.take(g.any)
	}
}

// hasher is what masking one document needs.
type hasher struct {
	mac  hash.Hash
	sum  []byte
	text []byte
	key  []byte
}

// apply appends doc to dst with the fields masked. It reports whether anything
// was, and whether doc was understood: what was not must not go on as it is.
func (m *mask) apply(dst, doc []byte) (out []byte, masked, ok bool) {
	h := m.hashers.Get().(*hasher)
	defer m.hashers.Put(h)
	return m.walk(h, dst, doc, m.fields, 0)
}

// mostDepth bounds how deep a mask looks for its fields: each level is scanned
// once more.
const mostDepth = 64

// walk appends v, which is one value with perhaps space around it, depth levels
// down.
func (m *mask) walk(h *hasher, dst, v []byte, at *fields, depth int) (out []byte, masked, ok bool) {
	inner := document.Trim(v)
	kind := document.KindOf(inner)
	switch {
	case kind == document.None, depth > mostDepth:
		return dst, false, false
	case kind == document.Null:
		return append(dst, v...), false, document.Whole(inner) // hides nothing
	case at.leaf && kind != document.Array:
		return m.hide(h, dst, inner, kind), true, true
	case kind != document.Object && kind != document.Array:
		return append(dst, v...), false, document.Whole(inner)
	}
	done := 0
	c := document.Members(inner)
	for {
		key, start, end, more := c.Next()
		if !more {
			break
		}
		next := at // the elements of a list are seen as what the list is
		if kind == document.Object {
			if next = at.find(h, key); next == nil {
				continue
			}
		}
		dst = append(dst, inner[done:start]...)
		var here bool
		if dst, here, ok = m.walk(h, dst, inner[start:end], next, depth+1); !ok {
			return dst, false, false
		}
		masked = masked || here
		done = end
	}
	if c.Bad() || c.End() != len(inner) {
		return dst, false, false
	}
	return append(dst, inner[done:]...), masked, true
}

// find returns what holds for a key, given as it stands in the document: an
// escape in it hides nothing from us.
func (f *fields) find(h *hasher, key []byte) *fields {
	for _, c := range key {
		if c == '\\' {
			h.key = document.AppendUnquoted(h.key[:0], key)
			key = h.key
			break
		}
	}
	if n := f.named[string(key)]; n != nil {
		return n
	}
	return f.any
}

// hide appends what stands in place of v. Strings are hashed by their text and
// all else by its JSON on one line, so that equal values stay equal.
func (m *mask) hide(h *hasher, dst, v []byte, kind document.Kind) []byte {
	if m.redact {
		return append(dst, `"[redacted]"`...)
	}
	if kind == document.String {
		h.text = document.AppendUnquoted(h.text[:0], v[1:len(v)-1])
	} else {
		h.text = document.AppendLine(h.text[:0], v)
	}
	h.mac.Reset()
	h.mac.Write(h.text)
	h.sum = h.mac.Sum(h.sum[:0])
	dst = append(dst, '"')
	dst = hex.AppendEncode(dst, h.sum[:16])
	return append(dst, '"')
}
