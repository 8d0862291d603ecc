package sources

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/penstock/penstock/messages"
)

// listing is how far the listing of a prefix is. Times are Unix seconds, of the
// service's clock.
type listing struct {
	// Start is the configured start, 0 for none.
	Start int64 `json:"start,omitempty"`
	// Floor: what was written before is done.
	Floor int64 `json:"floor"`
	// Began is when the pass under way began, 0 when none is.
	Began int64 `json:"began,omitempty"`
	// Time and After are where the pass is: the time of its folder, and the last key.
	Time  int64  `json:"time,omitempty"`
	After string `json:"after,omitempty"`
	// From is the last key up to which all were below the floor to be, in the pass
	// before; and Firm the same of the pass under way, as far as it got.
	From string `json:"from,omitempty"`
	Firm string `json:"firm,omitempty"`
	// Loose is set once the pass has met a key that is not below the floor to be.
	Loose bool `json:"loose,omitempty"`
}

func (l *listing) fresh() bool { return l.Floor == 0 && l.Start == 0 && l.Began == 0 }

// firm notes a key that was listed.
func (l *listing) firm(key string, written int64, lookBack time.Duration) {
	if !l.Loose && written < l.Began-int64(lookBack/time.Second) {
		l.Firm = key
		return
	}
	l.Loose = true
}

// finish ends a pass.
func (l *listing) finish(lookBack time.Duration) {
	floor := max(l.Floor, l.Began-int64(lookBack/time.Second))
	from := max(l.From, l.Firm)
	*l = listing{Start: l.Start, Floor: floor, From: from}
}

// errNoCursor says that a cursor is none.
var errNoCursor = errors.New("it is not what a listing writes")

// maxSaved bounds what a cursor keeps of the memory over a restart: the latest
// objects. Unit: objects, of markBytes each.
const maxSaved = 12_000

// write makes a cursor: one line of JSON, then the memory.
func (l *listing) write(s *seen) []byte {
	b, _ := json.Marshal(l) // cannot fail
	b = append(b, '\n')
	return s.append(b, maxSaved)
}

// read is the reverse of write. No cursor leaves l as it is.
func (l *listing) read(b []byte, s *seen) error {
	if len(b) == 0 {
		return nil
	}
	head, rest, ok := bytes.Cut(b, []byte("\n"))
	if !ok || json.Unmarshal(head, l) != nil || len(rest)%markBytes != 0 {
		return errNoCursor
	}
	for ; len(rest) > 0; rest = rest[markBytes:] {
		m := mark{at: binary.BigEndian.Uint32(rest)}
		copy(m.id[:], rest[4:markBytes])
		s.add(m)
	}
	return nil
}

// mark stands for one content of one key.
type mark struct {
	id messages.ID
	at uint32 // when it was written, Unix seconds
}

// markBytes is the size of a mark in a cursor.
const markBytes = 4 + 16

// seenBytes is what a mark costs in memory, about.
const seenBytes = 40

// seen remembers objects that were announced, up to a bound.
type seen struct {
	marks map[messages.ID]uint32
	most  int
}

func newSeen(bytes int) *seen { return &seen{marks: map[messages.ID]uint32{}, most: bytes / seenBytes} }

func (s *seen) len() int { return len(s.marks) }

// has tells whether this content was announced when it was written at the same time:
// the same content written once more is announced again, as a queue would.
func (s *seen) has(m mark) bool {
	at, ok := s.marks[m.id]
	return ok && at == m.at
}

// add remembers m; false when there is no room.
func (s *seen) add(m mark) bool {
	if _, known := s.marks[m.id]; !known && len(s.marks) >= s.most {
		return false
	}
	s.marks[m.id] = m.at
	return true
}

// forget drops what was written before a time.
func (s *seen) forget(before int64) {
	for id, at := range s.marks {
		if int64(at) < before {
			delete(s.marks, id)
		}
	}
}

// append writes the latest marks, at most so many.
func (s *seen) append(dst []byte, most int) []byte {
	all := make([]mark, 0, len(s.marks))
	for id, at := range s.marks {
		all = append(all, mark{id, at})
	}
	slices.SortFunc(all, func(a, b mark) int {
		if a.at != b.at {
			return int(int64(b.at) - int64(a.at))
		}
		return bytes.Compare(a.id[:], b.id[:])
	})
	for _, m := range all[:min(most, len(all))] {
		dst = append(binary.BigEndian.AppendUint32(dst, m.at), m.id[:]...)
	}
	return dst
}
