package formats

import (
	"sync"
	"unsafe"

	"github.com/penstock/penstock/services/internal/framing"
)

// Auto as the configured format means that each object tells by itself.
const Auto = "auto"

// fallback is the format of what no other one knows as its own.
const fallback = "json"

// Choose finds the format of an object or of an SQS body, and where its records
// are. configured is the source's setting, "" or Auto for none; it wins. Else the
// key decides ("" for a body), else head, the first bytes after decompression: a
// kilobyte is plenty. skip is the reason when the thing is known to hold no
// events: it is counted, not parsed.
// Source: formats F-9.
func Choose(configured, key string, head []byte) (format string, f framing.Framing, skip string) {
	format = configured
	if format == "" || format == Auto {
		format = guess(key, head)
	}
	sh, ok := shapes[format]
	if !ok { // not reached with a checked configuration; parse quarantines the frames
		return format, framing.Framing{}, ""
	}
	if sh.skip != nil {
		skip = sh.skip(key, head)
	}
	return format, sh.framing(head), skip
}

// Choose is the Choose of a source with this setting: its options may say where
// records are, too. configured is s.Type.
func (s Setting) Choose(configured, key string, head []byte) (format string, f framing.Framing, skip string) {
	format, f, skip = Choose(configured, key, head)
	if sh := shapes[format]; format == s.Type && sh.configure != nil && s.Options != nil {
		f = sh.configure(s.Options, f)
	}
	return format, f, skip
}

// guess asks every format, in the order of the alphabet so that the answer is
// always the same.
func guess(key string, head []byte) string {
	for _, s := range sniffs() {
		if s.sniff(key, head) {
			return s.name
		}
	}
	return fallback
}

// sniff is how a format is recognised.
type sniff struct {
	name  string
	sniff func(key string, head []byte) bool
}

// sniffs are those of all formats that have one. The formats are defined by then.
var sniffs = sync.OnceValue(func() (all []sniff) {
	for _, name := range known.Names() {
		if sh := shapes[name]; sh.sniff != nil {
			all = append(all, sniff{name, sh.sniff})
		}
	}
	return all
})

// peek walks over the keys of the object that begins b, as far as b goes, until
// visit returns false. rest begins with the value of the key. The key is a part of b: who
// keeps it makes a copy. Each format looks at the keys of each object, and at most of them
// in vain.
func peek(b []byte, visit func(key string, rest []byte) bool) {
	b = trimSpace(b)
	if len(b) == 0 || b[0] != '{' {
		return
	}
	for {
		b = b[1:]
		b = b[space(b, 0):]
		if len(b) == 0 || b[0] != '"' {
			return
		}
		end, _, _ := readText(b, 1)
		if end < 0 {
			return
		}
		key := ""
		if end > 1 {
			key = unsafe.String(&b[1], end-1) //nolint:gosec // within b, which nobody writes to meanwhile
		}
		b = b[end+1:]
		if b = b[space(b, 0):]; len(b) == 0 || b[0] != ':' {
			return
		}
		b = b[1+space(b[1:], 0):]
		if !visit(key, b) {
			return
		}
		if b = b[skip(b):]; len(b) == 0 || b[0] != ',' {
			return
		}
	}
}

// skip returns the index of the comma or bracket behind the value that begins b,
// len(b) when b ends before. It does not check the value.
func skip(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			depth--
		case ',':
			if depth == 0 {
				return i
			}
		}
	}
	return len(b)
}

// first returns where the first record begins: in an array, under "Records" when
// that is the first key, or at the start. wrapped tells the middle case.
func first(head []byte) (rec []byte, wrapped bool) {
	rec = trimSpace(head)
	if len(rec) > 0 && rec[0] == '[' {
		return rec[1:], false
	}
	peek(rec, func(key string, rest []byte) bool {
		if key == "Records" && len(rest) > 0 && rest[0] == '[' {
			rec, wrapped = rest[1:], true
		}
		return false
	})
	return rec, wrapped
}
