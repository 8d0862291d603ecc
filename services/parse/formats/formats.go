// Package formats knows the formats of records: how each is recognised, where
// its records are cut, and where in a record its id, time, account, region and
// event type stand.
//
//	record ──▶ Decoder ──▶ Doc
//
// Add a format by adding a file with one define in its init, a test and a folder
// of cases under testdata.
//
// Decoders scan, they do not decode: the document is a slice of the record, and
// nothing is allocated per record.
package formats

import (
	"bytes"
	"context"
	"math/bits"
	"strings"
	"unicode/utf8"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/catalog"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/services/internal/tag"
)

var (
	errJSON = fault.Define("parse.bad_json", fault.Reject,
		"look at the record in quarantine; if it is another format than the source names, set the source's format and redrive it")
	errObject = fault.Define("parse.not_an_object", fault.Reject,
		"look at the record in quarantine; if it is another format than the source names, set the source's format and redrive it")
)

// Doc is what a Decoder reads from one record.
type Doc struct {
	// Body is the document: a slice of the record, as unchanged as that, which
	// begins at Offset in the record; or, where Made, one that the decoder wrote
	// into a buffer of its own, which is valid until the next Decode.
	Body   []byte
	Offset int
	Made   bool
	// ID is the dedupe id made of the record's natural id, where HasID.
	ID    messages.ID
	HasID bool
	// ByContent: without an ID, the document's content is the identity wherever it
	// comes from. For formats whose rows carry a precise time and come repeatedly.
	ByContent bool
	// Time is when the event happened, Unix ns, where HasTime.
	Time    int64
	HasTime bool
	// Account and Region are "" where the record does not tell.
	Account, Region string
	// Type is the event type, never "".
	Type string
	// Odd tells what is strange about the record. Such records are events all
	// the same.
	Odd Odd
	// New is what the format does not know of the record, each thing once; only read.
	New []News
}

// Odd is a set of oddities.
type Odd uint8

// The oddities. Their names in metrics are those of Oddities.
const (
	// NoID: the natural id that the format promises is missing; another rule
	// made the id.
	NoID Odd = 1 << iota
	// NoTime: the time that the format promises is missing.
	NoTime
	// BadTime: there is a time, but not in a form that we read.
	BadTime
	// NoType: what makes the event type is missing; it is "<base>.unknown".
	NoType
	// TypeLimit: there are too many event types; it is "<base>.other".
	TypeLimit
	// NewVersion: the record is of a newer major version of its format.
	NewVersion
	// BadUTF8: the record is not UTF-8. Its bytes stay as they are.
	BadUTF8
	// BadShape: fields that records of this kind have are missing.
	BadShape
)

// Oddities names each oddity as the metrics do, in the order of the bits.
var Oddities = [...]string{"no_id", "no_time", "bad_time", "no_type", "type_limit", "new_version", "bad_utf8", "bad_shape"}

// First returns the number of the first oddity in o, an index into Oddities.
func (o Odd) First() int { return bits.TrailingZeros8(uint8(o)) }

// Decoder reads records of one format. Not for concurrent use.
type Decoder interface {
	// Decode reads rec into d, which it overwrites. The error is a fault of class
	// Reject when rec is no record of this format.
	Decode(rec []byte, d *Doc) error
}

// Starter is a Decoder that needs to know where records come from.
type Starter interface {
	Decoder
	// Start is called before the records of a frame. Its error refuses each of
	// them, so it is a fault of class Reject; Decode is not called then.
	Start(h Head) error
}

// Head is what the records of a frame have in common.
type Head struct {
	// Key of the object, "" for what came in a message.
	Key string
	// Columns is the line that names the columns, nil where there is none. It is
	// valid while the frame is decoded.
	Columns []byte
	// Origin is that of the first record. It is never nil, and only read.
	Origin *messages.Origin
}

// Format is an opened format of one source. Methods may be called concurrently.
type Format struct {
	// New makes a decoder.
	New func() Decoder
	// Place reads account and region off the key of an object, "" where it does
	// not tell. nil when keys of this format never tell.
	Place func(key string) (account, region string)
	// Base is what all event types begin with, before a dot. Table is the one that
	// events have unless the source says auto_event_type; "" where they are told
	// apart in any case.
	Base, Table string
	// Grows is how many times larger than the records the documents are that its
	// decoders make, about; 0 where they make none. It keeps the memory that parse
	// takes within its bound.
	Grows int
}

// Deps is what a format needs besides its options.
type Deps struct {
	// Source is the name of the source that the records come from.
	Source string
	// Types is shared by all formats of the process.
	Types *Types
	// Tag says how the source names its tables; nil leaves events the types that the
	// format makes.
	Tag *tag.Config
}

// Setting selects a format and its options. In a file it is the name alone
// (format: cloudtrail) or a mapping (format: {type: json, time_field: ts}).
type Setting struct {
	// Type of the format; auto finds it out for each object.
	Type string `yaml:"type,scalar"`
	// Options are the keys of that format.
	Options any `yaml:",kind"`
}

// Kinds implements config.Kinded.
func (Setting) Kinds() config.Kinds { return settings{} }

// SetDefaults implements config.Defaulter.
func (s *Setting) SetDefaults() { s.Type = Auto }

// settings are the formats, and Auto, which has no keys.
type settings struct{}

type noKeys struct{}

func (settings) What() string    { return known.What() }
func (settings) Names() []string { return append([]string{Auto}, known.Names()...) }

func (settings) Doc(name string) string {
	if name == Auto {
		return "Finds the format of each object by its key and its first bytes."
	}
	return known.Doc(name)
}

func (settings) Defaults(name string) (any, bool) {
	if name == Auto {
		return &noKeys{}, true
	}
	return known.Defaults(name)
}

// Names of all formats, in the order of the alphabet.
func Names() []string { return known.Names() }

// Known tells whether there is a format of that name.
func Known(name string) bool { _, ok := shapes[name]; return ok }

// About is the sentence that describes a format, "" for an unknown one.
func About(name string) string { return known.Doc(name) }

// Open opens format name. options is its struct or a pointer to it; nil means
// the defaults. Its events have the tables that deps.Tag says.
func Open(ctx context.Context, name string, options any, deps Deps) (Format, error) {
	if options == nil {
		options, _ = known.Defaults(name)
	}
	f, err := known.Open(ctx, name, options, deps)
	if err != nil {
		return f, err
	}
	return inTables(ctx, f, name, options, deps)
}

var (
	known  = catalog.New[Deps, Format]("format")
	shapes = map[string]shape{}
)

// shape is what Choose needs to know about a format before it is opened.
type shape struct {
	// framing tells where the records are in an object that begins with head.
	framing func(head []byte) framing.Framing
	// sniff tells whether an object is of this format.
	sniff func(key string, head []byte) bool
	// skip returns the reason why the object holds no events, "" when it may.
	skip func(key string, head []byte) string
	// configure changes the framing as the options say, a pointer to their struct.
	// nil when they never do.
	configure func(options any, f framing.Framing) framing.Framing
}

// newID is called by way of a variable: inlined here, messages.NewID would put its
// buffer on the heap for each record. Callers keep the slice that they pass.
var newID = messages.NewID

// define adds a format.
func define[C any](name, doc string, sh shape, defaults func() C, open func(cfg C, deps Deps) (Format, error)) {
	catalog.Define(known, name, doc, defaults, func(_ context.Context, cfg C, deps Deps) (Format, error) {
		return open(cfg, deps)
	})
	shapes[name] = sh
}

// badJSON is the fault for a record that is not valid JSON.
func badJSON(rec []byte, why string, at int) error {
	return errJSON.New(nil, "read a record of %d bytes: %s at byte %d", len(rec), why, at)
}

// names keeps the strings of accounts and regions, so that equal ones are not
// allocated again for each record. It is bounded: when full it begins anew.
type names struct {
	last  string
	known map[string]string
}

const (
	maxNames    = 4096
	maxNameSize = 128 // bytes
)

// of returns b as a string, made UTF-8; "" when it is too long to be a name.
func (n *names) of(b []byte) string {
	if string(b) == n.last {
		return n.last
	}
	name, ok := n.known[string(b)]
	if !ok {
		if len(b) > maxNameSize {
			return ""
		}
		if len(n.known) >= maxNames || n.known == nil {
			n.known = make(map[string]string)
		}
		name = string(b)
		if !utf8.Valid(b) {
			name = strings.ToValidUTF8(name, "\uFFFD")
		}
		n.known[string(b)] = name
	}
	n.last = name
	return name
}

// value returns what was found at slot, unescaped; nil for what is neither text
// nor a number. It is valid until the next call for a slot with escapes.
func (s *scanner) value(rec []byte, slot int) []byte {
	f := &s.found[slot]
	if f.kind != text && f.kind != number {
		return nil
	}
	if !f.escaped {
		return rec[f.start:f.end]
	}
	s.scratch = unescape(s.scratch[:0], rec[f.start:f.end])
	return s.scratch
}

// textAt is value for what must be text.
func (s *scanner) textAt(rec []byte, slot int) []byte {
	if s.found[slot].kind != text {
		return nil
	}
	return s.value(rec, slot)
}

// trimSpace returns b without JSON's white space and a byte order mark before it.
func trimSpace(b []byte) []byte {
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	return b[space(b, 0):]
}
