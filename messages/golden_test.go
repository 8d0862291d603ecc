package messages

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

// goldens are one wire form per message and version. The files are for ever: a
// later release must read them and, while the version is the same, write them.
var goldens = []struct {
	name   string
	value  func() proto.Message
	encode func() []byte
	decode func([]byte) (proto.Message, error)
}{
	{
		"notice.v1", func() proto.Message { return goldenNotice() },
		func() []byte { return EncodeNotice(goldenNotice()) },
		func(b []byte) (proto.Message, error) { return DecodeNotice(b) },
	},
	{
		"quarantine.v1", func() proto.Message { return goldenQuarantine() },
		func() []byte { return EncodeQuarantine(goldenQuarantine()) },
		func(b []byte) (proto.Message, error) { return DecodeQuarantine(b) },
	},
	{
		"facts.v1", func() proto.Message { return goldenFacts() },
		func() []byte { return EncodeFacts(goldenFacts()) },
		func(b []byte) (proto.Message, error) { return DecodeFacts(b) },
	},
	{
		"frame_of_events.v1", func() proto.Message { return eventsInput().frame() },
		func() []byte { return encode1(eventsInput()) }, decodeBoth,
	},
	{
		"frame_of_records.v1", func() proto.Message { return recordsInput().frame() },
		func() []byte { return encode1(recordsInput()) }, decodeBoth,
	},
	{
		"frame_of_records_with_gaps.v1", func() proto.Message { return gapsInput().frame() },
		func() []byte { return encode1(gapsInput()) }, decodeBoth,
	},
	{
		"frame_of_records_with_header.v1", func() proto.Message { return headInput().frame() },
		func() []byte { return encode1(headInput()) }, decodeBoth,
	},
	{
		"frame_of_messages.v1", func() proto.Message { return messagesInput().frame() },
		func() []byte { return encode1(messagesInput()) }, decodeBoth,
	},
	{
		"fact_of_destination.v1", func() proto.Message { return goldenDestinationFact() },
		func() []byte { return EncodeFacts(goldenDestinationFact()) },
		func(b []byte) (proto.Message, error) { return DecodeFacts(b) },
	},
	{
		"fact_of_messages.v1", func() proto.Message { return goldenMessagesFact() },
		func() []byte { return EncodeFacts(goldenMessagesFact()) },
		func(b []byte) (proto.Message, error) { return DecodeFacts(b) },
	},
}

// decodeBoth reads a frame by the view and returns it by the generated code.
func decodeBoth(b []byte) (proto.Message, error) {
	v, err := DecodeFrame(b)
	if err != nil {
		return nil, err
	}
	if _, err := v.Body(nil); err != nil {
		return nil, err
	}
	f := &Frame{}
	return f, proto.Unmarshal(b, f)
}

func gapsInput() input {
	in := recordsInput()
	in.skip = []uint64{0, 1, 5}
	return in
}

func headInput() input {
	in := recordsInput()
	in.header.Head = []byte("version account-id interface-id")
	return in
}

func goldenNotice() *Notice {
	return &Notice{Version: 1, Origin: testOrigin(0), Size: 12345, Sequencer: "0055AED6DCD90281E5", Region: "eu-central-1"}
}

func goldenQuarantine() *Quarantine {
	return &Quarantine{
		Version: 1, Id: "q1", Stage: "parse", Source: "trail", Code: "parse.bad_json", Reason: "decode record 7: it ends within a string",
		Origin: testOrigin(0), Record: 7, Records: 1, Offset: 4711, Length: 20, Payload: []byte(`{"eventID":"unfinish`), Cut: true,
		Holds: Quarantine_HOLDS_RECORD, Attempts: 3, Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		Penstock: "v0.1.0", Time: 1_714_521_660_000_000_000, Subject: "penstock.record.trail", Format: "cloudtrail", Destination: "archive",
		Header: []byte("version account-id"),
	}
}

func goldenFacts() *Facts {
	pull := NewPull("test", "0")
	counts := func() map[string]uint64 { return map[string]uint64{"parse.bad_json": 2, "digest": 1, "other": 3} }
	return &Facts{Version: 1, Stage: "parse", Facts: []*Fact{
		{Kind: &Fact_Announced{Announced: &Announced{Origin: testOrigin(0), As: Announced_AS_OBJECT, Code: "c"}}},
		{Kind: &Fact_Fetched{Fetched: &Fetched{Pull: pull, Source: "trail", Frames: 2, Records: 1500, Bytes: 100, RawBytes: 1000, End: Fetched_END_TRUNCATED, Code: "fetch.cut", Quarantined: counts()}}},
		{Kind: &Fact_Parsed{Parsed: &Parsed{Pull: pull, FrameNo: 1, Records: 500, Events: 494, Skipped: counts(), Quarantined: counts()}}},
		{Kind: &Fact_Routed{Routed: &Routed{Lane: 3, Sequence: 99, EventType: "cloud.aws.cloudtrail.iam", Source: "trail", Pulls: []*RoutedPull{
			{Pull: pull, Unique: []int64{5, 1, -2}, Duplicate: []int64{9, 1}, Dropped: counts(), Retyped: map[string]uint64{"app.audit": 1}},
		}}}},
		{Kind: &Fact_Delivered{Delivered: &Delivered{Destination: "archive", Sequence: 98, EventType: "cloud.aws.cloudtrail.iam", Pulls: []*DeliveredPull{
			{Pull: pull, Confirmed: 3, Filtered: 1, Quarantined: counts()},
		}}}},
		{Kind: &Fact_Destination{Destination: &Destination{Name: "archive", Types: []string{"cloud.aws.>"}, First: 1}}},
	}}
}

func goldenDestinationFact() *Facts {
	return &Facts{Version: 1, Stage: "deliver", Facts: []*Fact{
		{Kind: &Fact_Destination{Destination: &Destination{Name: "archive", First: 7, Time: 1_714_521_660_000_000_000}}},
		{Kind: &Fact_Destination{Destination: &Destination{Name: "archive", Removed: true, Time: 1_714_521_661_000_000_000}}},
	}}
}

func goldenMessagesFact() *Facts {
	return &Facts{Version: 1, Stage: "parse", Facts: []*Fact{{Kind: &Fact_Announced{Announced: &Announced{
		Origin: testOrigin(0), As: Announced_AS_EVENTS, Messages: 2, MessageIds: messagesInput().frame().GetMessageIds(), MessageRecords: []uint32{2, 1},
	}}}}}
}

func TestGolden(t *testing.T) {
	for _, tt := range goldens {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join("testdata", tt.name+".hex")
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(path, hexLines(tt.encode()), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			golden, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
			if err != nil {
				t.Fatal(err)
			}
			if got := tt.encode(); !bytes.Equal(got, golden) {
				t.Errorf("encoded as\n%s\nwant\n%s", hexLines(got), hexLines(golden))
			}
			got, err := tt.decode(golden)
			if err != nil || !proto.Equal(got, tt.value()) {
				t.Errorf("decoded as %v (%v)\nwant %v", got, err, tt.value())
			}
		})
	}
}

// hexLines writes 32 bytes a line, so that a change shows where it is.
func hexLines(b []byte) []byte {
	var out []byte
	for len(b) > 0 {
		n := min(32, len(b))
		out = append(hex.AppendEncode(out, b[:n]), '\n')
		b = b[n:]
	}
	return out
}

// A compressed body as this release writes it. Another compressor may write other
// bytes, so only reading is promised.
func TestGoldenCompressedBody(t *testing.T) {
	path := filepath.Join("testdata", "frame_compressed.v1.hex")
	want := strings.Repeat(`{"eventVersion":"1.11","userIdentity":{"type":"AssumedRole"}}`, 20)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		b := NewBuilder(Header{Source: "trail", Format: "cloudtrail"})
		b.Origin(testOrigin(0))
		for doc := want; doc != ""; doc = doc[len(want)/20:] {
			b.AddRecord([]byte(doc[:len(want)/20]))
		}
		if err := os.WriteFile(path, hexLines(b.Encode(nil)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	golden, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	v := mustDecode(t, golden)
	if body, err := v.Body(nil); err != nil || string(body) != want || v.Len() != 20 || len(golden) > len(want)/2 {
		t.Errorf("%d records, body %q, %v", v.Len(), body, err)
	}
}
