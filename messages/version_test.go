package messages

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages/fault"
)

// later is what a newer writer may add to a frame: fields of numbers that are free.
func later() []byte {
	b := protowire.AppendBytes(protowire.AppendTag(nil, 40, protowire.BytesType), []byte("of a later release"))
	b = protowire.AppendVarint(protowire.AppendTag(b, 41, protowire.VarintType), 7)
	return protowire.AppendFixed64(protowire.AppendTag(b, 500, protowire.Fixed64Type), 9)
}

func frameOf(t *testing.T, docs ...string) []byte {
	t.Helper()
	b := NewBuilder(Header{Source: "s", Format: "json", EventType: "a.b"})
	o := b.Origin(&Origin{Pull: NewPull("p")})
	for i, d := range docs {
		b.Add(Event{ID: NewID([]byte(d)), Origin: o, Record: uint64(i), Doc: []byte(d)})
	}
	return b.Encode(nil)
}

// Stages between parse and deliver pass on what they do not know: a newer stage behind
// an older one gets it all.
func TestForwardedFramesKeepWhatIsNewer(t *testing.T) {
	// In front and behind: where fields stand is the writer's choice.
	for name, frame := range map[string][]byte{
		"at the end":   append(frameOf(t, "one", "two"), later()...),
		"at the front": append(later(), frameOf(t, "one", "two")...),
	} {
		t.Run(name, func(t *testing.T) {
			v, err := DecodeFrame(frame)
			if err != nil {
				t.Fatal(err)
			}
			v.SetFate(1, Duplicate)
			check(t, "marked", v.Encoded())
			v.SetFate(0, Duplicate)
			check(t, "without its body", v.WithoutBody(nil))
		})
	}
}

func check(t *testing.T, how string, frame []byte) {
	t.Helper()
	f := &Frame{}
	if err := proto.Unmarshal(frame, f); err != nil {
		t.Fatal(err)
	}
	if got := f.ProtoReflect().GetUnknown(); !bytes.Equal(got, later()) {
		t.Errorf("a frame that is %s has %d bytes of what it does not know, want %d", how, len(got), len(later()))
	}
}

// The versions are a promise: what is written now was readable in the release before,
// so only what the release before could read may be written.
func TestWhatIsWrittenIsReadByTheReleaseBefore(t *testing.T) {
	if frameVersion > frameKnown || messageVersion > messageKnown {
		t.Fatalf("written are versions %d and %d, known %d and %d", frameVersion, messageVersion, frameKnown, messageKnown)
	}
	if frameKnown > frameVersion+1 || messageKnown > messageVersion+1 {
		t.Fatalf("known are versions %d and %d, two beyond what is written", frameKnown, messageKnown)
	}
}

// A message of a version that is not known is refused as such, and not taken for damage.
func TestTooNewIsSaid(t *testing.T) {
	set := func(b []byte, version uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, fieldVersion, protowire.VarintType), version)
	}
	notice := &Notice{Origin: &Origin{Pull: NewPull("p"), Bucket: "b", Key: "k"}}
	for name, read := range map[string]func(later uint64) error{
		"frame":  func(n uint64) error { _, err := DecodeFrame(set(frameOf(t, "one"), frameKnown+n)); return err },
		"notice": func(n uint64) error { _, err := DecodeNotice(set(EncodeNotice(notice), messageKnown+n)); return err },
		"quarantine": func(n uint64) error {
			_, err := DecodeQuarantine(set(EncodeQuarantine(&Quarantine{}), messageKnown+n))
			return err
		},
		"facts": func(n uint64) error { _, err := DecodeFacts(set(EncodeFacts(&Facts{}), messageKnown+n)); return err },
	} {
		if err := read(0); err != nil {
			t.Errorf("%s of the last version that is known: %v", name, err)
		}
		if err := read(1); fault.CodeOf(err) != "messages.newer_version" {
			t.Errorf("%s of a version beyond: %v", name, err)
		}
	}
}
