package messages

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/penstock/penstock/messages/fault"
)

func TestDecodeRefuses(t *testing.T) {
	notice := func(change func(*Notice)) []byte {
		n := goldenNotice()
		change(n)
		return EncodeNotice(n)
	}
	version := func(v uint64) []byte { return wire{}.uint(fieldVersion, v) }
	decodeNotice := func(b []byte) error { _, err := DecodeNotice(b); return err }
	decodeQuarantine := func(b []byte) error { _, err := DecodeQuarantine(b); return err }
	decodeFacts := func(b []byte) error { _, err := DecodeFacts(b); return err }
	tests := []struct {
		name   string
		decode func([]byte) error
		data   []byte
		kind   *fault.Kind
		says   string
	}{
		{"no notice", decodeNotice, nil, errNotice, "no version"},
		{"damaged notice", decodeNotice, EncodeNotice(goldenNotice())[:40], errNotice, "of 40 bytes"},
		{"notice of a later release", decodeNotice, version(2), errNewer, "notice of version 2, known up to 1"},
		{"notice without origin", decodeNotice, version(1), errNotice, "lacks a pull"},
		{"notice with a short pull", decodeNotice, notice(func(n *Notice) { n.Origin.Pull = []byte("short") }), errNotice, "lacks a pull"},
		{"notice without bucket", decodeNotice, notice(func(n *Notice) { n.Origin.Bucket = "" }), errNotice, "bucket"},
		{"notice without key", decodeNotice, notice(func(n *Notice) { n.Origin.Key = "" }), errNotice, "key"},
		{"no quarantine entry", decodeQuarantine, nil, errQuarantine, "no version"},
		{"damaged quarantine entry", decodeQuarantine, []byte{0xff}, errQuarantine, "of 1 bytes"},
		{"quarantine entry of a later release", decodeQuarantine, version(9), errNewer, "version 9"},
		{"no facts", decodeFacts, nil, errFacts, "no version"},
		{"damaged facts", decodeFacts, []byte{0xff}, errFacts, "of 1 bytes"},
		{"facts of a later release", decodeFacts, version(9), errNewer, "version 9"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.decode(tt.data)
			if !errors.Is(err, tt.kind) || fault.ClassOf(err) != fault.Reject || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want %s that says %q", err, tt.kind.Code, tt.says)
			}
		})
	}
}

func TestEncodeSetsTheVersionButNotInItsArgument(t *testing.T) {
	n, q, f := goldenNotice(), goldenQuarantine(), goldenFacts()
	n.Version, q.Version, f.Version = 0, 0, 0
	gotN, errN := DecodeNotice(EncodeNotice(n))
	gotQ, errQ := DecodeQuarantine(EncodeQuarantine(q))
	gotF, errF := DecodeFacts(EncodeFacts(f))
	if err := errors.Join(errN, errQ, errF); err != nil {
		t.Fatal(err)
	}
	if n.GetVersion()+q.GetVersion()+f.GetVersion() != 0 {
		t.Error("the argument was changed")
	}
	if !proto.Equal(gotN, goldenNotice()) || !proto.Equal(gotQ, goldenQuarantine()) || !proto.Equal(gotF, goldenFacts()) {
		t.Errorf("came back as %v, %v, %v", gotN, gotQ, gotF)
	}
}

// A fact of a kind that is not known yet is no reason to refuse those around it.
func TestFactsOfALaterReleaseAreKept(t *testing.T) {
	unknown := wire{}.bytes(90, 1, 2, 3)
	data := append(EncodeFacts(goldenFacts()), wire{}.bytes(3, unknown...)...)
	f, err := DecodeFacts(data)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(goldenFacts().GetFacts()); len(f.GetFacts()) != n+1 || f.GetFacts()[n].GetKind() != nil {
		t.Errorf("facts %v", f.GetFacts())
	}
}

// Reasons, keys and codes hold bytes from outside. Protobuf refuses text that is
// not UTF-8, and a quarantine entry must not be lost for that.
func TestEncodeMendsEveryText(t *testing.T) {
	n, q, f := goldenNotice(), goldenQuarantine(), goldenFacts()
	for _, m := range []proto.Message{n, q, f} {
		if spoil(m.ProtoReflect()) == 0 {
			t.Fatal("nothing was spoilt")
		}
	}
	gotN, errN := DecodeNotice(EncodeNotice(n))
	gotQ, errQ := DecodeQuarantine(EncodeQuarantine(q))
	gotF, errF := DecodeFacts(EncodeFacts(f))
	if err := errors.Join(errN, errQ, errF); err != nil {
		t.Fatal(err)
	}
	if got, want := gotN.GetOrigin().GetKey(), strings.ReplaceAll(n.GetOrigin().GetKey(), "\xff", "\uFFFD"); got != want {
		t.Errorf("key %q, want %q", got, want)
	}
	if string(gotQ.GetPayload()) != string(goldenQuarantine().GetPayload()) {
		t.Errorf("payload became %q", gotQ.GetPayload())
	}
	// Every key of the map is spoilt, two of them to the same text.
	if got := gotF.GetFacts()[2].GetParsed().GetSkipped(); len(got) != 3 || got["other\uFFFD"] != 3+1000 {
		t.Errorf("skipped %v", got)
	}
	if utf8.ValidString(q.GetReason()) {
		t.Error("the argument was changed")
	}
}

// spoil appends a byte to every text in m and below that makes it bad UTF-8.
func spoil(m protoreflect.Message) (n int) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		text, message := f.Kind() == protoreflect.StringKind, f.Kind() == protoreflect.MessageKind
		switch {
		case f.IsMap():
			var keys []string
			v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
				keys = append(keys, k.String())
				return true
			})
			for _, k := range keys {
				count := v.Map().Get(protoreflect.ValueOfString(k).MapKey())
				v.Map().Clear(protoreflect.ValueOfString(k).MapKey())
				v.Map().Set(protoreflect.ValueOfString(k+"\xff").MapKey(), count)
				n++
			}
			v.Map().Set(protoreflect.ValueOfString("other\xfe").MapKey(), protoreflect.ValueOfUint64(1000))
		case f.IsList() && text:
			for i := range v.List().Len() {
				v.List().Set(i, protoreflect.ValueOfString(v.List().Get(i).String()+"\xff"))
				n++
			}
		case f.IsList() && message:
			for i := range v.List().Len() {
				n += spoil(v.List().Get(i).Message())
			}
		case text:
			m.Set(f, protoreflect.ValueOfString(v.String()+"\xff"))
			n++
		case message:
			n += spoil(v.Message())
		}
		return true
	})
	return n
}
