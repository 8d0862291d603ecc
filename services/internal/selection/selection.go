// Package selection picks the events of the log that jobs.Events means: by type, source,
// object, text and expression. The span is for whoever reads the log.
package selection

import (
	"bytes"
	"slices"
	"strings"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/topology"
)

var errObject = fault.Define("selection.bad_object", fault.Reject,
	"name an object as s3://bucket/key, whose key may end in *, or give the id of an SQS message")

// Selection is a compiled [jobs.Events]. Methods may be called concurrently.
type Selection struct {
	types    []string
	fits     condition.Types
	sources  []string
	object   Object
	text     []byte // lower case
	where    *condition.Condition
	needsDoc bool
}

// New compiles. Errors say what is wrong and how to mend it: condition.bad_expression
// (with line and column), condition.bad_type_pattern, selection.bad_object.
func New(e jobs.Events) (*Selection, error) {
	s := &Selection{types: e.Types, sources: e.Sources, text: lower(nil, []byte(e.Text))}
	var err error
	if s.fits, err = condition.ParseTypes(e.Types); err != nil {
		return nil, err
	}
	if s.object, err = ParseObject(e.Object); err != nil {
		return nil, err
	}
	if strings.TrimSpace(e.Where) != "" {
		if s.where, err = condition.Compile(e.Where); err != nil {
			return nil, err
		}
	}
	s.needsDoc = len(s.text) > 0 || s.where != nil && s.where.NeedsDoc()
	return s, nil
}

// Object is what events came from. The zero value is anything.
type Object struct {
	bucket, key string
	prefix      bool // key is where keys begin
	message     string
}

// ParseObject reads s3://bucket/key, with * at the end for all keys that begin so, or the
// id of an SQS message. Errors: selection.bad_object.
func ParseObject(s string) (Object, error) {
	rest, isS3 := strings.CutPrefix(s, "s3://")
	if !isS3 {
		if strings.Contains(s, "/") {
			return Object{}, errObject.New(nil, "read the object %q", s)
		}
		return Object{message: s}, nil
	}
	var o Object
	o.bucket, o.key, _ = strings.Cut(rest, "/")
	o.key, o.prefix = strings.CutSuffix(o.key, "*")
	if o.bucket == "" || o.key == "" && !o.prefix {
		return Object{}, errObject.New(nil, "read the object %q", s)
	}
	return o, nil
}

// Any tells whether every origin fits.
func (o Object) Any() bool { return o == Object{} }

// Has tells whether an origin fits. Of events whose messages became one frame, the origin
// names no message: these fit no message id.
func (o Object) Has(origin *messages.Origin) bool {
	switch {
	case o.message != "":
		return origin.GetMessageId() == o.message
	case o.bucket == "":
		return true
	case o.bucket != origin.GetBucket():
		return false
	case o.prefix:
		return strings.HasPrefix(origin.GetKey(), o.key)
	}
	return origin.GetKey() == o.key
}

// Subjects are the filters of EVENTS that the types need.
func (s *Selection) Subjects() []string {
	if len(s.types) == 0 {
		return topology.EventSubjects([]string{">"})
	}
	return topology.EventSubjects(s.types)
}

// Whole tells whether all events of the types and sources are meant, so that nothing but
// type and source of a frame need be known.
func (s *Selection) Whole() bool { return s.object.Any() && s.where == nil && len(s.text) == 0 }

// HasSource tells whether events of a source are meant.
func (s *Selection) HasSource(source string) bool {
	return len(s.sources) == 0 || slices.Contains(s.sources, source)
}

// Event is one event of a frame. Doc points into the scratch.
type Event struct {
	Index           int
	ID              messages.ID
	Type, Source    string
	Format          string
	Account, Region string
	Replay          string
	// Time in Unix ns.
	Time int64
	// Origin is what it came from, Record its ordinal in that.
	Origin *messages.Origin
	Record uint64
	Doc    []byte
}

// Scratch is room for reading frames, to be used again, by one at a time. The zero value
// is ready.
type Scratch struct {
	columns messages.Columns
	body    []byte
	lower   []byte
}

// Length is how many bytes the document of event i has, of the frame that was read last.
func (room *Scratch) Length(i int) int { return int(room.columns.Lengths[i]) }

// keepScratch is the largest body that is kept for reuse, in bytes.
const keepScratch = 8 << 20

// Each calls f for the live events of a frame that are meant, until it returns false.
// With docs each has its document; else those have whose selection needs it. f may keep
// the event's origin, and nothing else of it. An event for which the expression fails does
// not fit; failed counts these. Errors are those of a frame that cannot be read.
func (s *Selection) Each(v *messages.View, room *Scratch, docs bool, f func(*Event) bool) (failed int, err error) {
	e := Event{Type: v.EventType(), Source: v.Source(), Format: v.Format(), Replay: v.Replay()}
	if !s.fits.Has(e.Type) || !s.HasSource(e.Source) || v.Live() == 0 {
		return 0, nil
	}
	origins, err := v.Origins()
	if err != nil {
		return 0, err
	}
	if !s.object.Any() && !slices.ContainsFunc(origins, s.object.Has) {
		return 0, nil
	}
	if err := room.read(v, docs || s.needsDoc); err != nil {
		return 0, err
	}
	if len(s.text) > 0 {
		// Most frames have it nowhere.
		if room.lower = lower(room.lower[:0], room.body); !bytes.Contains(room.lower, s.text) {
			return 0, nil
		}
	}
	at := 0
	c := &room.columns
	for i := range v.Len() {
		from := at
		at += int(c.Lengths[i])
		if v.Fate(i) != messages.Live {
			continue
		}
		e.Origin = nil
		if n := int(c.OriginOf[i]); n < len(origins) {
			e.Origin = origins[n]
		}
		if !s.object.Any() && !s.object.Has(e.Origin) {
			continue
		}
		if docs || s.needsDoc {
			e.Doc = room.body[from:at]
		}
		if len(s.text) > 0 && !bytes.Contains(room.lower[from:at], s.text) {
			continue
		}
		e.Index, e.ID, e.Time, e.Record = i, v.ID(i), c.Times[i], c.Records[i]
		e.Account, e.Region = c.Accounts[c.AccountOf[i]], c.Regions[c.RegionOf[i]]
		if s.where != nil {
			ok, err := s.where.Match(&condition.Event{
				ID: e.ID, Type: e.Type, Source: e.Source, Account: e.Account, Region: e.Region, Time: e.Time, Doc: e.Doc,
			})
			if err != nil {
				failed++
			}
			if err != nil || !ok {
				continue
			}
		}
		if !f(&e) {
			break
		}
	}
	return failed, nil
}

// read reads the columns and, if asked for, the documents. DecodeFrame has seen to it
// that their lengths fit the body.
func (room *Scratch) read(v *messages.View, body bool) (err error) {
	if err = v.Columns(&room.columns); err != nil || !body {
		return err
	}
	if cap(room.body) > keepScratch {
		room.body, room.lower = nil, nil
	}
	if room.body, err = v.Body(room.body[:0]); err != nil {
		room.body = nil
	}
	return err
}

// lower appends text with ASCII letters in lower case. What else there is stays, so that
// places in the one are places in the other.
func lower(dst, text []byte) []byte {
	dst = append(dst, text...)
	for i, c := range dst[len(dst)-len(text):] {
		if 'A' <= c && c <= 'Z' {
			dst[len(dst)-len(text)+i] = c + ('a' - 'A')
		}
	}
	return dst
}
