package transform

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"sync"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/document"
)

// Mask hides the values of fields.
type Mask struct {
	// Fields are dotted paths into the document, e.g. userIdentity.userName. * stands for any key, \. for a dot in a key. Lists are walked through. Required.
	Fields []string `yaml:"fields"`
	// Method is hash (HMAC-SHA256, the same value gives the same 32 hex digits, so that joins still work), redact ("[redacted]" in its place) or remove (the field goes as a whole).
	Method Method `yaml:"method"`
	// Key of the hash, 16 bytes or more. Required with hash.
	Key config.Secret `yaml:"key"`
}

// SetDefaults implements [config.Defaulter].
func (m *Mask) SetDefaults() { m.Method = Hash }

// Method of a mask.
type Method string

// The methods.
const (
	Hash   Method = "hash"
	Redact Method = "redact"
	Remove Method = "remove"
)

// Values implements [config.Enum].
func (Method) Values() []string { return []string{string(Hash), string(Redact), string(Remove)} }

// minKey is the least length of a key that cannot be guessed, in bytes.
const minKey = 16

// Validate reports every problem, each with the key to change.
func (m Mask) Validate() error {
	var p config.Problems
	p.Need(len(m.Fields) > 0, "fields", "name at least one field, e.g. userIdentity.userName")
	for i, f := range m.Fields {
		for _, word := range splitPath(f) {
			p.Need(word != "", fmt.Sprintf("fields[%d]", i), "use keys with dots between them, e.g. userIdentity.userName")
		}
	}
	switch m.Method {
	case Hash:
		p.Need(len(m.Key.Reveal()) >= minKey, "key", "set a random key of 16 bytes or more, e.g. ${file:/run/secrets/mask}")
	case Redact, Remove:
		p.Need(m.Key.IsZero(), "key", "remove the key: "+string(m.Method)+" needs none")
	default:
		p.Need(false, "method", "use hash, redact or remove")
	}
	return p.Err()
}

// Masker is a compiled [Mask]. It may be used concurrently.
type Masker struct {
	fields  *fields
	key     []byte
	method  Method
	hashers sync.Pool
}

// NewMasker compiles a mask, which must be valid.
func NewMasker(cfg Mask) *Masker {
	m := &Masker{fields: &fields{}, key: []byte(cfg.Key.Reveal()), method: cfg.Method}
	m.hashers.New = func() any { return &hasher{mac: hmac.New(sha256.New, m.key)} }
	for _, path := range cfg.Fields {
		m.fields.add(splitPath(path))
	}
	m.fields.merge()
	return m
}

// Apply appends doc to dst with the fields masked. It reports whether anything
// was, and whether doc was understood: what was not must not go on as it is. Only
// where both are true is out worth keeping.
func (m *Masker) Apply(dst, doc []byte) (out []byte, changed, ok bool) {
	h := m.hashers.Get().(*hasher)
	defer m.hashers.Put(h)
	return m.walk(h, dst, doc, m.fields, 0)
}

// fields is a tree of the paths to mask.
type fields struct {
	leaf  bool
	named map[string]*fields
	any   *fields // what holds for every key
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

// mostDepth bounds how deep a mask looks for its fields: each level is scanned
// once more.
const mostDepth = 64

// walk appends v, which is one value with perhaps space around it, depth levels
// down.
func (m *Masker) walk(h *hasher, dst, v []byte, at *fields, depth int) (out []byte, changed, ok bool) {
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
	done, last := 0, 1 // what is written, and where the last member ended
	kept, comma := false, false
	c := document.Members(inner)
	for {
		key, start, end, more := c.Next()
		if !more {
			break
		}
		next := at // the elements of a list are seen as what the list is
		if kind == document.Object {
			next = at.find(h, key)
			if next != nil && next.leaf && m.method == Remove {
				dst = append(dst, inner[done:last]...)
				done, last = end, end
				changed, comma = true, !kept // without one before it, the next member has no comma
				continue
			}
		}
		if comma {
			done += bytes.IndexByte(inner[done:start], ',') + 1
			comma = false
		}
		kept, last = true, end
		if next == nil {
			continue
		}
		dst = append(dst, inner[done:start]...)
		var here bool
		if dst, here, ok = m.walk(h, dst, inner[start:end], next, depth+1); !ok {
			return dst, false, false
		}
		changed = changed || here
		done = end
	}
	if c.Bad() || c.End() != len(inner) {
		return dst, false, false
	}
	return append(dst, inner[done:]...), changed, true
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
func (m *Masker) hide(h *hasher, dst, v []byte, kind document.Kind) []byte {
	if m.method == Redact {
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
