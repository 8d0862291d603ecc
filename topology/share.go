package topology

import (
	"context"
	"encoding/hex"
	"strings"
	"sync"

	"github.com/penstock/penstock/messages"
)

// Share divides named pieces of work over all processes that call it with the same
// group, until ctx ends. Each name has one owner, the load is even, and few names
// move when a process comes or goes.
//
// names is asked about twice a second, from one goroutine, for what there is to be
// done now, and every other second where nobody could share; it must be quick and may change. Processes that see different names
// for a while do no harm.
//
// run does the work of a name. Its context ends when the name has been lost, has to
// be handed over or is no longer among the names; another process begins when run
// has returned, or six seconds after this one was last heard of. So for a moment two
// may be at it: what moves a position must be fenced, as [Cursor.Set] is. When run
// returns while the name is still there, it is called again, here or elsewhere.
//
// Share returns when every run has returned. While leases are not to be had it tries
// on, so its error is nil.
func (b *Bus) Share(ctx context.Context, group string, names func() []string, run func(ctx context.Context, name string) error) error {
	s := &share{names: map[string]string{}}
	g := &leases{bus: b, group: sharePrefix + token(group), me: b.options.Name, list: func() []string { return s.encode(names()) }}
	g.run = func(ctx context.Context, l *lease) error { return run(ctx, s.decode(l.name)) }
	return g.keep(ctx)
}

// sharePrefix is what the keys of shared work begin with, so that who shares may be kept
// from the leases of others.
const sharePrefix = "share."

// share translates names to keys and back.
type share struct {
	mu    sync.Mutex
	names map[string]string
}

func (s *share) encode(names []string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.names) > 4*len(names)+64 {
		clear(s.names) // of those that are long gone
	}
	keys := make([]string, len(names))
	for i, n := range names {
		keys[i] = keyOf(n)
		if _, known := s.names[keys[i]]; !known {
			s.names[keys[i]] = n
		}
	}
	return keys
}

func (s *share) decode(key string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names[key]
}

// maxKey bounds the part of a key that a name makes. Unit: bytes.
const maxKey = 200

// keyOf makes a legal, single token of a key of any name: what is no letter, digit,
// - or _ is written as = and two hex digits. Long names end in a digest.
func keyOf(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '/':
			b.WriteByte(c)
		default:
			b.WriteByte('=')
			b.WriteString(hex.EncodeToString([]byte{c}))
		}
	}
	key := b.String()
	switch {
	case key == "":
		return "="
	case len(key) > maxKey:
		return key[:maxKey-33] + "=" + messages.NewID([]byte(name)).String()
	}
	return key
}
