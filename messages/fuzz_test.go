package messages

import (
	"bytes"
	"testing"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/proto"
)

// FuzzDecodeFrame: what the view takes, protobuf takes as well and reads alike;
// what it refuses costs no more memory than the input accounts for.
func FuzzDecodeFrame(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte(twoEvents()))
	f.Add(encode1(eventsInput()))
	f.Add(encode1(recordsInput()))
	f.Add(encode1(messagesInput()))
	f.Add([]byte(twoEvents(fieldTimes).uint(fieldTimes, 1).packed(fieldTimes, 1).uint(99, 1)))
	f.Add([]byte(twoEvents(fieldFates, fieldBody).bytes(fieldFates, 1, 2)))
	f.Add([]byte(twoEvents().bytes(fieldAccounts, 'a').bytes(fieldAccounts, 'b').packed(fieldAccountOf, 0, 1)))
	f.Add(benchFrame(50))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		before := bytes.Clone(data)
		var (
			v       View
			cols    Columns
			origins []*Origin
			body    []byte
			err     error
		)
		used := allocated(func() {
			if v, err = DecodeFrame(data); err != nil {
				return
			}
			if err = v.Columns(&cols); err != nil {
				return
			}
			if origins, err = v.Origins(); err != nil {
				return
			}
			body, err = v.Body(nil)
		})
		// Errors, strings, origins (some 250 bytes for 20) and columns (36 bytes for 1).
		if limit := uint64(64*len(data) + v.BodySize() + 256<<10); used > limit {
			t.Errorf("%d bytes allocated for a frame of %d with a body of %d", used, len(data), v.BodySize())
		}
		if !bytes.Equal(data, before) {
			t.Fatal("reading changed the frame")
		}
		if err != nil {
			return
		}
		frame := &Frame{}
		if err := proto.Unmarshal(data, frame); err != nil {
			t.Fatalf("protobuf refuses it: %v", err)
		}
		if len(origins) != len(frame.GetOrigins()) || !equalColumns(cols, referenceColumns(frame)) {
			t.Fatalf("columns %+v\nof %v", cols, frame)
		}
		var docs []byte
		if len(frame.GetBody()) > 0 {
			if docs, err = s2.Decode(nil, frame.GetBody()); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(body, docs) {
			t.Fatalf("body %q, want %q", body, docs)
		}
		checkMarking(t, v, frame)
	})
}

// checkMarking: a frame with all events dropped is readable with and without its body.
func checkMarking(t *testing.T, v View, frame *Frame) {
	t.Helper()
	if len(frame.GetIds()) == 0 {
		return
	}
	for i := range v.Len() {
		v.SetFate(i, Filtered)
		frame.Fates[i] = byte(Filtered)
	}
	for _, encoded := range [][]byte{v.Encoded(), v.WithoutBody(nil)} {
		w, err := DecodeFrame(encoded)
		if err != nil || w.Live() != 0 {
			t.Fatalf("%d live after all were dropped, %v", w.Live(), err)
		}
		got := &Frame{}
		if err := proto.Unmarshal(encoded, got); err != nil {
			t.Fatal(err)
		}
		if len(w.body) == 0 {
			frame.Body = nil
		}
		if !proto.Equal(got, frame) {
			t.Fatalf("frame %v\nwant %v", got, frame)
		}
	}
}

// FuzzBuild: what is put in comes out, by the view and by protobuf.
func FuzzBuild(f *testing.F) {
	f.Add([]byte(`{"a":1}`), int64(1_714_521_600), uint64(3), "111122223333", uint8(3))
	f.Add([]byte{}, int64(-1), uint64(1<<63), "\xff", uint8(40))
	f.Add(bytes.Repeat([]byte("large "), 60_000), int64(1), uint64(1), "", uint8(2))
	f.Fuzz(func(t *testing.T, doc []byte, time int64, record uint64, account string, n uint8) {
		b := NewBuilder(Header{Source: account, Lane: uint32(n)})
		b.Origin(testOrigin(0))
		for i := range int(n) {
			b.Add(Event{
				ID: NewID(doc, []byte{byte(i)}), Time: time * int64(i), Account: account[:i%(len(account)+1)],
				Origin: b.Origin(testOrigin(i % 11)), Record: record + uint64(i*i), Doc: doc[i%(len(doc)+1):],
			})
		}
		encoded := b.Encode(nil)
		v := mustDecode(t, encoded)
		frame := &Frame{}
		if err := proto.Unmarshal(encoded, frame); err != nil {
			t.Fatal(err)
		}
		var cols Columns
		var body []byte
		checkView(t, &v, frame, &cols, &body)
		for i := range int(n) {
			want := doc[i%(len(doc)+1):]
			if cols.Times[i] != time*int64(i) || cols.Records[i] != record+uint64(i*i) || cols.OriginOf[i] != uint32(i%11) ||
				cols.Accounts[cols.AccountOf[i]] != toUTF8(account[:i%(len(account)+1)]) || int(cols.Lengths[i]) != len(want) ||
				v.ID(i) != NewID(doc, []byte{byte(i)}) || !bytes.Equal(body[:len(want)], want) {
				t.Fatalf("event %d: %+v", i, cols)
			}
			body = body[len(want):]
		}
	})
}

// FuzzDecodeMessages: what decodes encodes to something that decodes to the same.
func FuzzDecodeMessages(f *testing.F) {
	for _, g := range goldens {
		f.Add(g.encode())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := DecodeNotice(data); err == nil {
			again, err := DecodeNotice(EncodeNotice(m))
			sameMessage(t, m, again, err)
		}
		if m, err := DecodeQuarantine(data); err == nil {
			again, err := DecodeQuarantine(EncodeQuarantine(m))
			sameMessage(t, m, again, err)
		}
		if m, err := DecodeFacts(data); err == nil {
			again, err := DecodeFacts(EncodeFacts(m))
			sameMessage(t, m, again, err)
		}
	})
}

func sameMessage(t *testing.T, want, got proto.Message, err error) {
	t.Helper()
	if err != nil || !proto.Equal(want, got) {
		t.Fatalf("came back as %v (%v), want %v", got, err, want)
	}
}
