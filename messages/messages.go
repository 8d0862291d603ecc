// Package messages holds what flows between the stages of penstock: notices of
// objects, frames of records and events, what was quarantined, and the facts of
// the ledger. It knows nothing of stages or of the bus.
//
//	Notice ──▶ Frame of records ──▶ Frame of events      Quarantine, Facts
//
// The forms are those of penstock.proto, and any protobuf reader takes them.
// Frames are not read and written by the generated code but by [Builder] and
// [View], which give and take the same bytes without an allocation per event.
package messages

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/penstock/penstock/messages/fault"
)

//go:generate go run ./gen -dir .

// messageVersion is the version of notices, quarantine entries and facts that is
// written, messageKnown the newest that is read. A version is known one release before
// it is written, so that neighbours among releases read each other. Fields are added
// without a new version: that is for what an older reader would misread.
const (
	messageVersion = 1
	messageKnown   = 1
)

var (
	errNotice = fault.Define("messages.bad_notice", fault.Reject,
		"the message is damaged or not from penstock: look at its bytes with penstock quarantine show, and at who else writes to NOTICES")
	errQuarantine = fault.Define("messages.bad_quarantine", fault.Reject,
		"the entry is damaged or not from penstock: look at who else writes to QUARANTINE")
	errFacts = fault.Define("messages.bad_facts", fault.Reject,
		"the facts are damaged or not from penstock: look at who else writes to LEDGER")
	errNewer = fault.Define("messages.newer_version", fault.Reject,
		"upgrade this process to the release that wrote the message, then redrive it from quarantine")
)

// checkVersion tells a message that we can read from one that is none (bad) and
// from one of a later release.
func checkVersion(bad *fault.Kind, what string, version, known uint32) error {
	switch {
	case version == 0:
		return bad.New(nil, "read a %s: it has no version", what)
	case version > known:
		return errNewer.New(nil, "read a %s of version %d, known up to %d", what, version, known)
	}
	return nil
}

// EncodeNotice returns the bytes of n. A version of 0 is written as the current one.
func EncodeNotice(n *Notice) []byte { return encode(n) }

// DecodeNotice reads a notice; faults messages.bad_notice and
// messages.newer_version. It has an origin with a pull, a bucket and a key.
func DecodeNotice(b []byte) (*Notice, error) {
	n := &Notice{}
	if err := decode(b, n, errNotice, "notice"); err != nil {
		return nil, err
	}
	o := n.GetOrigin()
	if len(o.GetPull()) != len(ID{}) || o.GetBucket() == "" || o.GetKey() == "" {
		return nil, errNotice.New(nil, "read a notice: it lacks a pull of %d bytes, a bucket or a key", len(ID{}))
	}
	return n, nil
}

// EncodeQuarantine returns the bytes of q. A version of 0 is written as the current one.
func EncodeQuarantine(q *Quarantine) []byte { return encode(q) }

// DecodeQuarantine reads a quarantine entry; faults messages.bad_quarantine and
// messages.newer_version.
func DecodeQuarantine(b []byte) (*Quarantine, error) {
	q := &Quarantine{}
	if err := decode(b, q, errQuarantine, "quarantine entry"); err != nil {
		return nil, err
	}
	return q, nil
}

// EncodeFacts returns the bytes of f. A version of 0 is written as the current one.
func EncodeFacts(f *Facts) []byte { return encode(f) }

// DecodeFacts reads ledger facts; faults messages.bad_facts and
// messages.newer_version. A fact of a kind that we do not know has a nil Kind.
func DecodeFacts(b []byte) (*Facts, error) {
	f := &Facts{}
	if err := decode(b, f, errFacts, "set of ledger facts"); err != nil {
		return nil, err
	}
	return f, nil
}

type versioned interface {
	proto.Message
	GetVersion() uint32
}

// encode writes the version first where m has none, instead of setting it: m may
// be in use elsewhere.
func encode(m versioned) []byte {
	var dst []byte
	if m.GetVersion() == 0 {
		dst = appendUint(dst, fieldVersion, messageVersion)
	}
	return appendMessage(dst, m)
}

func decode(b []byte, m versioned, bad *fault.Kind, what string) error {
	if err := proto.Unmarshal(b, m); err != nil {
		return bad.New(err, "read a %s of %d bytes", what, len(b))
	}
	return checkVersion(bad, what, m.GetVersion(), messageKnown)
}

// mendUTF8 replaces what is not UTF-8 in the texts of m and below.
func mendUTF8(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsList():
			for i := range v.List().Len() {
				if mended, ok := mendValue(f, v.List().Get(i)); ok {
					v.List().Set(i, mended)
				}
			}
		case f.IsMap():
			mendMap(f, v.Map())
		default:
			if mended, ok := mendValue(f, v); ok {
				m.Set(f, mended)
			}
		}
		return true
	})
}

// mendValue returns the mended text; a message is mended in place.
func mendValue(f protoreflect.FieldDescriptor, v protoreflect.Value) (protoreflect.Value, bool) {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(toUTF8(v.String())), true
	case protoreflect.MessageKind:
		mendUTF8(v.Message())
	default: // nothing to mend
	}
	return v, false
}

// mendMap mends the keys of the counts by reason, whose values are numbers. Keys
// that become equal are counted together.
func mendMap(f protoreflect.FieldDescriptor, m protoreflect.Map) {
	if f.MapKey().Kind() != protoreflect.StringKind || f.MapValue().Kind() != protoreflect.Uint64Kind {
		panic(fmt.Sprintf("messages: no rule to mend map %s", f.FullName())) // found by the test that fills every field
	}
	var broken []protoreflect.MapKey
	m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		if toUTF8(k.String()) != k.String() {
			broken = append(broken, k)
		}
		return true
	})
	for _, k := range broken {
		mended := protoreflect.ValueOfString(toUTF8(k.String())).MapKey()
		sum := m.Get(k).Uint()
		if m.Has(mended) {
			sum += m.Get(mended).Uint()
		}
		m.Clear(k)
		m.Set(mended, protoreflect.ValueOfUint64(sum))
	}
}
