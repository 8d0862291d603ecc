package formats

import (
	"maps"
	"sync"
	"sync/atomic"
)

const (
	// DefaultTypes is how many event types one process tells apart.
	DefaultTypes = 2000
	// maxTypeSize bounds what a document adds to an event type. Unit: bytes.
	maxTypeSize = 64
)

// Types holds the event types that documents have brought up so far. Event types
// become subjects, which cost server memory, so documents cannot make up as many
// as they like: what comes after the limit is "<base>.other".
// Methods may be called concurrently.
type Types struct {
	limit int
	mu    sync.Mutex // held by who adds
	known atomic.Pointer[map[string]string]
}

// NewTypes makes an empty set of at most limit types, 0 for DefaultTypes.
func NewTypes(limit int) *Types {
	if limit <= 0 {
		limit = DefaultTypes
	}
	t := &Types{limit: limit}
	t.known.Store(&map[string]string{})
	return t
}

// Len returns how many types there are.
func (t *Types) Len() int { return len(*t.known.Load()) }

// find returns the one string that is equal to name, added when it is new; "" when
// there is no room for it.
func (t *Types) find(name []byte) string {
	if s, ok := (*t.known.Load())[string(name)]; ok {
		return s
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	old := *t.known.Load()
	if s, ok := old[string(name)]; ok {
		return s
	}
	if len(old) >= t.limit {
		return ""
	}
	grown := make(map[string]string, len(old)+1) // readers hold the old one
	maps.Copy(grown, old)
	s := string(name)
	grown[s] = s
	t.known.Store(&grown)
	return s
}

// typeNamer makes event types of one base from words of documents. Not for
// concurrent use.
type typeNamer struct {
	types          *Types
	base           string
	unknown, other string
	buf            []byte
	// The last word and what became of it: most records are like the one before.
	word   []byte
	name   string
	odd    Odd
	cached bool
}

func newTypeNamer(types *Types, base string) *typeNamer {
	return &typeNamer{types: types, base: base, unknown: base + ".unknown", other: base + ".other"}
}

// of returns the event type for word, which may have dots.
func (n *typeNamer) of(word []byte) (string, Odd) {
	if n.cached && string(word) == string(n.word) {
		return n.name, n.odd
	}
	n.name, n.odd = n.find(word)
	if n.cached = len(word) <= maxTypeSize; n.cached {
		n.word = append(n.word[:0], word...)
	}
	return n.name, n.odd
}

func (n *typeNamer) find(word []byte) (string, Odd) {
	n.buf = append(append(n.buf[:0], n.base...), '.')
	start := len(n.buf)
	n.buf = appendWords(n.buf, word, maxTypeSize)
	if len(n.buf) == start {
		return n.unknown, NoType
	}
	if name := n.types.find(n.buf); name != "" {
		return name, 0
	}
	return n.other, TypeLimit
}

// appendWords appends s as words of an event type: small letters, digits, - and
// _, any other byte as _, with single dots between words; at most limit bytes.
func appendWords(dst, s []byte, limit int) []byte {
	start := len(dst)
	for _, c := range s {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		case c == '.':
			if len(dst) == start || dst[len(dst)-1] == '.' {
				continue
			}
		default:
			c = '_'
		}
		if len(dst)-start == limit {
			break
		}
		dst = append(dst, c)
	}
	if n := len(dst); n > start && dst[n-1] == '.' {
		dst = dst[:n-1]
	}
	return dst
}
