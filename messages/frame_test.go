package messages

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages/fault"
)

func testOrigin(i int) *Origin {
	return &Origin{
		Pull: NewPull("test", fmt.Sprint(i)), Source: "trail", Bucket: "logs",
		Key:  fmt.Sprintf("AWSLogs/111122223333/CloudTrail/eu-central-1/2024/05/01/%d.json.gz", i),
		Etag: "d41d8cd98f00b204e9800998ecf8427e", Queue: "https://sqs.example.com/1/q", MessageId: fmt.Sprint("m-", i),
		Created: 1_714_521_600_000_000_000, Received: 1_714_521_660_000_000_000,
	}
}

// input is what a test hands to a Builder.
type input struct {
	header  Header
	origins []*Origin
	events  []Event
	records [][]byte
	skip    []uint64 // before the record of the same index
	// messages of the records: how many each has. Of ids and times see letter.
	messages []uint32
}

// letter is the id of a message and when it was sent, Unix ns.
func letter(i int) (UUID, int64) {
	return UUID(NewPull("message", fmt.Sprint(i))), 1_714_521_600_123_000_000 + int64(i%7-3)*1_000_000
}

func (in input) build(b *Builder) {
	b.Reset(in.header)
	for i, o := range in.origins {
		if got := b.Origin(o); got != uint32(i) {
			panic(fmt.Sprintf("origin %d became %d", i, got))
		}
	}
	for _, e := range in.events {
		b.Add(e)
	}
	begins, at := map[int]int{}, 0
	for m, n := range in.messages {
		begins[at] = m
		at += int(n)
	}
	for i, doc := range in.records {
		if in.skip != nil {
			b.Skip(in.skip[i])
		}
		if m, ok := begins[i]; ok {
			b.Message(letter(m))
		}
		b.AddRecord(doc)
	}
}

// frame is the same by the generated code: the reference for the builder.
func (in input) frame() *Frame {
	h := in.header
	f := &Frame{
		Version: 1, Source: h.Source, Format: h.Format, EventType: h.EventType, Lane: h.Lane, Origins: in.origins,
		FrameNo: h.FrameNo, FirstRecord: h.FirstRecord, Replay: h.Replay, Header: h.Head, Count: uint32(len(in.events) + len(in.records)),
	}
	var body []byte
	var lastTime int64
	var lastRecord uint64
	for _, e := range in.events {
		f.Ids = append(f.Ids, e.ID[:]...)
		f.Fates = append(f.Fates, 0)
		f.Times = append(f.Times, e.Time-lastTime)
		f.Records = append(f.Records, int64(e.Record-lastRecord))
		lastTime, lastRecord = e.Time, e.Record
		f.OriginOf = append(f.OriginOf, e.Origin)
		f.AccountOf = append(f.AccountOf, number(&f.Accounts, e.Account))
		f.RegionOf = append(f.RegionOf, number(&f.Regions, e.Region))
		f.Lengths = append(f.Lengths, uint32(len(e.Doc)))
		body = append(body, e.Doc...)
	}
	next, gap := h.FirstRecord, false
	for i, doc := range in.records {
		if in.skip != nil {
			next += in.skip[i]
			gap = gap || i > 0 && in.skip[i] > 0
		}
		if i == 0 {
			f.FirstRecord = next
		}
		f.Records = append(f.Records, int64(next-lastRecord))
		lastRecord = next
		next++
		f.Lengths = append(f.Lengths, uint32(len(doc)))
		body = append(body, doc...)
	}
	if len(in.records) > 0 && !gap {
		f.Records = nil
	}
	if len(f.Origins) < 2 {
		f.OriginOf = nil
	}
	if len(f.Accounts) < 2 {
		f.AccountOf = nil
	}
	if len(f.Regions) < 2 {
		f.RegionOf = nil
	}
	if slices.Equal(f.Accounts, []string{""}) {
		f.Accounts = nil
	}
	if slices.Equal(f.Regions, []string{""}) {
		f.Regions = nil
	}
	if len(body) > 0 {
		f.BodySize, f.Body = uint64(len(body)), s2.Encode(nil, body)
	}
	last := int64(0)
	for i := range in.messages {
		id, sent := letter(i)
		f.MessageIds = append(f.MessageIds, id[:]...)
		f.MessageSent = append(f.MessageSent, sent/1e6-last)
		last = sent / 1e6
	}
	if len(in.messages) < len(in.records) {
		f.MessageRecords = in.messages
	}
	return f
}

func number(names *[]string, s string) uint32 {
	i := slices.Index(*names, s)
	if i < 0 {
		i = len(*names)
		*names = append(*names, s)
	}
	return uint32(i)
}

// randomInput covers: none, one and many of everything, numbers that wrap, empty
// and large documents.
func randomInput(r *rand.Rand) input {
	word := func() string { return strings.Repeat(string(rune('a'+r.IntN(26))), r.IntN(20)) }
	in := input{header: Header{Source: word(), Format: word(), EventType: word(), Replay: word()}}
	in.header.Lane, in.header.FrameNo, in.header.FirstRecord = uint32(r.IntN(9)), r.Uint32()>>r.IntN(32), r.Uint64()>>r.IntN(64)
	origins := 1 + r.IntN(1+r.IntN(40))
	accounts, regions := 1+r.IntN(30), 1+r.IntN(3)
	doc := func() []byte {
		size := r.IntN(1 + r.IntN(1<<r.IntN(13)))
		d := make([]byte, size)
		for i := range d {
			d[i] = byte('a' + r.IntN(1+r.IntN(26)))
		}
		return d
	}
	n := r.IntN(1 + r.IntN(200))
	if r.IntN(3) == 0 {
		n = max(n, 1) // a frame of records has some
		for range n {
			in.records = append(in.records, doc())
		}
		in.origins = []*Origin{testOrigin(0)}
		if r.IntN(3) == 0 {
			in.header.Head = doc()
		}
		if r.IntN(2) == 0 {
			for left := n; left > 0; {
				m := 1 + r.IntN(1+r.IntN(left))
				if r.IntN(3) == 0 {
					m = 1
				}
				in.messages = append(in.messages, uint32(m))
				left -= m
			}
			return in
		}
		if r.IntN(2) == 0 {
			in.skip = make([]uint64, n)
			for i := range in.skip {
				in.skip[i] = uint64(r.IntN(3) / 2 * r.IntN(5))
			}
		}
		return in
	}
	origins = min(origins, max(n, 1))
	for i := range origins {
		in.origins = append(in.origins, testOrigin(i))
	}
	for range n {
		e := Event{
			Time: r.Int64() >> r.IntN(64), Record: r.Uint64() >> r.IntN(64), Origin: uint32(r.IntN(origins)),
			Account: fmt.Sprintf("%012d", r.IntN(accounts))[r.IntN(2)*12:], Region: fmt.Sprint("eu-", r.IntN(regions)), Doc: doc(),
		}
		if r.IntN(2) == 0 {
			e.Time = -e.Time
		}
		for i := range e.ID {
			e.ID[i] = byte(r.Uint32())
		}
		in.events = append(in.events, e)
	}
	return in
}

// A frame by the builder is byte for byte what the generated code makes of the
// same data, and a view of it reads all that was put in.
func TestBuilderAndViewAgreeWithProtobuf(t *testing.T) {
	b := NewBuilder(Header{})
	var cols Columns
	var body []byte
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		in := randomInput(r)
		in.build(b)
		if b.Len() != len(in.events)+len(in.records) {
			t.Fatalf("seed %d: Len = %d", seed, b.Len())
		}
		dst := bytes.Repeat([]byte{0xee}, 3+r.IntN(2)*r.IntN(1<<20)) // both ways to place the body, over old bytes
		got := b.Encode(dst[:3])[3:]
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(in.frame())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			f := &Frame{}
			t.Fatalf("seed %d: encoded\n%x\nwant\n%x\n%v, %v", seed, got, want, proto.Unmarshal(got, f), f)
		}
		if again := b.Encode(nil); !bytes.Equal(again, want) {
			t.Fatalf("seed %d: a second Encode differs", seed)
		}
		v, err := DecodeFrame(got)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		checkView(t, &v, in.frame(), &cols, &body)
		if v.BodySize() != b.BodySize() {
			t.Fatalf("seed %d: body size %d, want %d", seed, v.BodySize(), b.BodySize())
		}
	}
}

// checkView compares all that v says with the frame by the generated code.
func checkView(t *testing.T, v *View, f *Frame, cols *Columns, body *[]byte) {
	t.Helper()
	type head struct {
		count                             int
		source, format, eventType, replay string
		lane, frameNo                     uint32
		firstRecord                       uint64
		bodySize                          int
		columns, messages                 string
	}
	got := head{
		v.Len(), v.Source(), v.Format(), v.EventType(), v.Replay(), v.Lane(), v.FrameNo(), v.FirstRecord(), v.BodySize(),
		string(v.Head()), string(v.MessageIDs()),
	}
	want := head{
		int(f.GetCount()), f.GetSource(), f.GetFormat(), f.GetEventType(), f.GetReplay(), f.GetLane(), f.GetFrameNo(),
		f.GetFirstRecord(), int(f.GetBodySize()), string(f.GetHeader()),
		string(f.GetMessageIds()),
	}
	if got != want {
		t.Fatalf("head %+v, want %+v", got, want)
	}
	live := 0
	for i := range v.Len() {
		fate := Live
		if len(f.GetIds()) > 0 {
			if id := ID(f.GetIds()[16*i:]); v.ID(i) != id {
				t.Fatalf("id %d is %s, want %s", i, v.ID(i), id)
			}
			fate = Fate(f.GetFates()[i])
		}
		if v.Fate(i) != fate {
			t.Fatalf("fate %d is %s, want %s", i, v.Fate(i), fate)
		}
		if fate == Live {
			live++
		}
	}
	if v.Live() != live {
		t.Fatalf("%d live, want %d", v.Live(), live)
	}
	origins, err := v.Origins()
	if err != nil || !slices.EqualFunc(origins, f.GetOrigins(), func(a, b *Origin) bool { return proto.Equal(a, b) }) {
		t.Fatalf("origins %v (%v), want %v", origins, err, f.GetOrigins())
	}
	if err := v.Columns(cols); err != nil {
		t.Fatal(err)
	}
	if want := referenceColumns(f); !equalColumns(*cols, want) {
		t.Fatalf("columns %+v\nwant %+v", *cols, want)
	}
	if *body, err = v.Body(*body); err != nil {
		t.Fatal(err)
	}
	var docs []byte
	if len(f.GetBody()) > 0 {
		if docs, err = s2.Decode(nil, f.GetBody()); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(*body, docs) {
		t.Fatalf("body %q, want %q", *body, docs)
	}
}

// equalColumns does not tell nil from empty.
func equalColumns(a, b Columns) bool {
	return slices.Equal(a.Times, b.Times) && slices.Equal(a.Records, b.Records) && slices.Equal(a.Lengths, b.Lengths) &&
		slices.Equal(a.OriginOf, b.OriginOf) && slices.Equal(a.AccountOf, b.AccountOf) && slices.Equal(a.RegionOf, b.RegionOf) &&
		slices.Equal(a.Accounts, b.Accounts) && slices.Equal(a.Regions, b.Regions) &&
		slices.Equal(a.MessageRecords, b.MessageRecords) && slices.Equal(a.MessageSent, b.MessageSent)
}

// referenceColumns is Columns, the simple way.
func referenceColumns(f *Frame) Columns {
	n := int(f.GetCount())
	c := Columns{
		Times: make([]int64, n), OriginOf: make([]uint32, n), Records: make([]uint64, n), AccountOf: make([]uint32, n),
		RegionOf: make([]uint32, n), Lengths: make([]uint32, n), Accounts: f.GetAccounts(), Regions: f.GetRegions(),
	}
	if len(c.Accounts) == 0 {
		c.Accounts = []string{""}
	}
	if len(c.Regions) == 0 {
		c.Regions = []string{""}
	}
	copy(c.OriginOf, f.GetOriginOf())
	copy(c.AccountOf, f.GetAccountOf())
	copy(c.RegionOf, f.GetRegionOf())
	copy(c.Lengths, f.GetLengths())
	var at int64
	for i, d := range f.GetTimes() {
		at += d
		c.Times[i] = at
	}
	at = 0
	for i, d := range f.GetMessageSent() {
		at += d * 1_000_000
		c.MessageSent = append(c.MessageSent, at)
		if c.MessageRecords = f.GetMessageRecords(); len(c.MessageRecords) == 0 {
			c.MessageRecords = slices.Repeat([]uint32{1}, i+1)
		}
	}
	var record uint64
	for i := range c.Records {
		c.Records[i] = f.GetFirstRecord() + uint64(i)
		if len(f.GetRecords()) > 0 {
			record += uint64(f.GetRecords()[i])
			c.Records[i] = record
		}
	}
	return c
}

// eventsInput is a small frame of three events with two origins.
func eventsInput() input {
	return input{
		header:  Header{Source: "trail", Format: "cloudtrail", EventType: "cloud.aws.cloudtrail.iam", Lane: 3, Replay: "r1"},
		origins: []*Origin{testOrigin(0), testOrigin(1)},
		events: []Event{
			{ID: NewID([]byte("a")), Time: 1_714_521_600_000_000_000, Account: "111122223333", Region: "eu-central-1", Record: 7, Doc: []byte(`{"a":1}`)},
			{ID: NewID([]byte("b")), Time: 1_714_521_599_000_000_000, Account: "444455556666", Region: "eu-central-1", Origin: 1, Record: 0, Doc: nil},
			{ID: NewID([]byte("c")), Time: 1_714_521_601_000_000_000, Account: "111122223333", Region: "us-east-1", Record: 9, Doc: []byte(`{"c":3}`)},
		},
	}
}

func recordsInput() input {
	return input{
		header:  Header{Source: "trail", Format: "cloudtrail", FrameNo: 4, FirstRecord: 4000},
		origins: []*Origin{testOrigin(0)},
		records: [][]byte{[]byte(`{"a":1}`), []byte(`not json`), []byte(`{}`)},
	}
}

// messagesInput is a frame of three records that came in two messages.
func messagesInput() input {
	in := recordsInput()
	in.header.FrameNo, in.header.FirstRecord, in.messages = 0, 0, []uint32{2, 1}
	return in
}

func encode1(in input) []byte {
	b := NewBuilder(Header{})
	in.build(b)
	return b.Encode(nil)
}

func mustDecode(t testing.TB, b []byte) View {
	t.Helper()
	v, err := DecodeFrame(b)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestFatesChangeInPlace(t *testing.T) {
	encoded := encode1(eventsInput())
	v := mustDecode(t, encoded)
	copied := v
	v.SetFate(0, Duplicate)
	v.SetFate(2, Sampled)
	if v.Live() != 1 || copied.Live() != 1 || copied.Fate(2) != Sampled {
		t.Errorf("live %d, in the copy %d with fate %s", v.Live(), copied.Live(), copied.Fate(2))
	}
	f := &Frame{}
	if err := proto.Unmarshal(v.Encoded(), f); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.GetFates(), []byte{1, 0, 3}) {
		t.Errorf("fates %v in the encoded frame", f.GetFates())
	}
	want := eventsInput().frame()
	want.Fates = f.GetFates()
	if !proto.Equal(f, want) {
		t.Errorf("SetFate changed more than fates:\n%v\nwant\n%v", f, want)
	}
}

func TestFrameWithoutBody(t *testing.T) {
	encoded := encode1(eventsInput())
	// Fields of a later release stay where they are, one of the body's number too.
	encoded = wire(encoded).uint(77, 5).uint(fieldBody, 6)
	v := mustDecode(t, encoded)
	for i := range v.Len() {
		v.SetFate(i, Duplicate)
	}
	small := v.WithoutBody([]byte("dst"))
	if string(small[:3]) != "dst" {
		t.Fatalf("dst is overwritten: %q", small[:3])
	}
	bare := mustDecode(t, small[3:])
	if body, err := bare.Body(make([]byte, 10)); body != nil || err != nil {
		t.Errorf("body %q, %v", body, err)
	}
	f, want := &Frame{}, &Frame{}
	if err := errors.Join(proto.Unmarshal(small[3:], f), proto.Unmarshal(v.Encoded(), want)); err != nil {
		t.Fatal(err)
	}
	want.Body = nil
	if !proto.Equal(f, want) || len(f.ProtoReflect().GetUnknown()) != 6 {
		t.Errorf("without body\n%v\nwant\n%v", f, want)
	}
}

func TestRecordsWithGapsKeepTheirOrdinals(t *testing.T) {
	b := NewBuilder(Header{FirstRecord: 10})
	b.Origin(testOrigin(0))
	b.Skip(2)
	b.AddRecord([]byte("12"))
	b.AddRecord([]byte("13"))
	b.Skip(1)
	b.AddRecord([]byte("15"))
	b.Skip(3) // at the end: no gap in this frame
	v := mustDecode(t, b.Encode(nil))
	var c Columns
	if err := v.Columns(&c); err != nil {
		t.Fatal(err)
	}
	if v.FirstRecord() != 12 || !slices.Equal(c.Records, []uint64{12, 13, 15}) {
		t.Errorf("first record %d, ordinals %v", v.FirstRecord(), c.Records)
	}
	b.Reset(Header{FirstRecord: 19}) // what was skipped before does not count
	b.Origin(testOrigin(0))
	b.AddRecord([]byte("19"))
	v = mustDecode(t, b.Encode(nil))
	if err := v.Columns(&c); err != nil || v.FirstRecord() != 19 || !slices.Equal(c.Records, []uint64{19}) {
		t.Errorf("after Reset: first record %d, ordinals %v, %v", v.FirstRecord(), c.Records, err)
	}
}

func TestBuilderGivesBackLargeBuffers(t *testing.T) {
	b := NewBuilder(Header{})
	b.Origin(testOrigin(0))
	b.AddRecord(bytes.Repeat([]byte("x"), 5<<20))
	if v := mustDecode(t, b.Encode(nil)); v.BodySize() != 5<<20 {
		t.Fatalf("body size %d", v.BodySize())
	}
	b.Reset(Header{})
	if kept := cap(b.body); kept > keepMax {
		t.Errorf("%d bytes are kept", kept)
	}
	b.AddRecord(bytes.Repeat([]byte("x"), 1<<20))
	b.Reset(Header{})
	if cap(b.body) < 1<<20 {
		t.Error("a buffer of usual size is not kept")
	}
}

// Who counts buffers by what is in them counts on it.
func TestBuilderBuffersAreInProportion(t *testing.T) {
	for _, size := range []int{100, 10_000, 300_000} {
		b := NewBuilder(Header{})
		b.Origin(testOrigin(0))
		rec := bytes.Repeat([]byte("x"), size)
		for b.BodySize()+size <= TargetBody {
			b.AddRecord(rec)
			if has := cap(b.body); has > 4*len(b.body)+1<<10 {
				t.Fatalf("%d bytes for %d in records of %d", has, len(b.body), size)
			}
		}
	}
}

func TestBuilderMendsText(t *testing.T) {
	in := eventsInput()
	in.header.EventType = "cloud.\xff"
	in.origins[0].Key = "a\xfeb"
	in.events[0].Account = "\xff\xff\xff"
	v := mustDecode(t, encode1(in))
	origins, err := v.Origins()
	if err != nil {
		t.Fatal(err)
	}
	var c Columns
	if err := v.Columns(&c); err != nil {
		t.Fatal(err)
	}
	if v.EventType() != "cloud.\uFFFD" || origins[0].GetKey() != "a\uFFFDb" || c.Accounts[0] != "\uFFFD" {
		t.Errorf("type %q, key %q, account %q", v.EventType(), origins[0].GetKey(), c.Accounts[0])
	}
	if in.origins[0].GetKey() != "a\xfeb" {
		t.Error("the caller's origin was changed")
	}
}

// The worst estimates of space: all text needs mending, and the body cannot be
// compressed or compresses to almost nothing.
func TestEncodeIntoAnyRoom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 70_000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	for name, doc := range map[string][]byte{"noise": noise, "zeros": make([]byte, 70_000), "empty": nil, "short": []byte("x")} {
		t.Run(name, func(t *testing.T) {
			b := NewBuilder(Header{Source: strings.Repeat("\xff ", 500)})
			b.Origin(testOrigin(0))
			b.Add(Event{Doc: doc, Account: strings.Repeat("\xff ", 3000), Region: "r"})
			want := b.Encode(nil)
			for room := range 80 {
				dst := b.Encode(append(make([]byte, 0, room*2000), "dst"...))
				if string(dst[:3]) != "dst" || !bytes.Equal(dst[3:], want) {
					t.Fatalf("with room for %d bytes the frame differs", room*2000)
				}
			}
			v := mustDecode(t, want)
			if got, err := v.Body(nil); err != nil || !bytes.Equal(got, doc) {
				t.Errorf("body of %d bytes, %v", len(got), err)
			}
		})
	}
}

// Encode into a nil dst must not keep the room that the worst case would need:
// what is published stays in memory until the bus has confirmed it.
func TestEncodeGrowsToSize(t *testing.T) {
	b := NewBuilder(Header{})
	b.Origin(testOrigin(0))
	b.AddRecord(make([]byte, 1<<20))
	if got := b.Encode(nil); cap(got) > 16<<10 {
		t.Errorf("%d bytes in a buffer of %d", len(got), cap(got))
	}
}

// wire builds frames by hand, the way other protobuf writers may.
type wire []byte

func (w wire) uint(num protowire.Number, v uint64) wire {
	return protowire.AppendVarint(protowire.AppendTag(w, num, protowire.VarintType), v)
}

func (w wire) bytes(num protowire.Number, v ...byte) wire {
	return protowire.AppendBytes(protowire.AppendTag(w, num, protowire.BytesType), v)
}

func (w wire) text(num protowire.Number, s string) wire { return w.bytes(num, []byte(s)...) }

func (w wire) packed(num protowire.Number, vs ...uint64) wire {
	var p []byte
	for _, v := range vs {
		p = protowire.AppendVarint(p, v)
	}
	return w.bytes(num, p...)
}

// twoEvents is a frame of two events without the columns named.
func twoEvents(without ...protowire.Number) wire {
	origin, _ := proto.Marshal(testOrigin(0))
	var w wire
	for _, f := range []struct {
		num protowire.Number
		add func(wire) wire
	}{
		{fieldVersion, func(w wire) wire { return w.uint(fieldVersion, 1) }},
		{fieldCount, func(w wire) wire { return w.uint(fieldCount, 2) }},
		{fieldSource, func(w wire) wire { return w.text(fieldSource, "trail") }},
		{fieldOrigins, func(w wire) wire { return w.bytes(fieldOrigins, origin...) }},
		{fieldIDs, func(w wire) wire { return w.bytes(fieldIDs, make([]byte, 32)...) }},
		{fieldFates, func(w wire) wire { return w.bytes(fieldFates, 0, 1) }},
		{fieldTimes, func(w wire) wire { return w.packed(fieldTimes, 4, 300) }},
		{fieldRecords, func(w wire) wire { return w.packed(fieldRecords, 2, 1) }},
		{fieldLengths, func(w wire) wire { return w.packed(fieldLengths, 3, 2) }},
		{fieldBodySize, func(w wire) wire { return w.uint(fieldBodySize, 5) }},
		{fieldBody, func(w wire) wire { return w.bytes(fieldBody, s2.Encode(nil, []byte("abcde"))...) }},
	} {
		if !slices.Contains(without, f.num) {
			w = f.add(w)
		}
	}
	return w
}

// messagesWire is messagesInput without some of its fields.
func messagesWire(without ...protowire.Number) (w wire) {
	for rest := encode1(messagesInput()); len(rest) > 0; {
		f, more, _ := nextField(rest)
		if rest = more; !slices.Contains(without, f.num) {
			w = append(w, f.raw...)
		}
	}
	return w
}

// What the protobuf encoding allows, the view reads as protobuf does.
func TestViewReadsEveryLegalEncoding(t *testing.T) {
	origin1, _ := proto.Marshal(testOrigin(1))
	tests := []struct {
		name string
		data wire
	}{
		{"as the builder writes it", twoEvents()},
		{"columns not packed", twoEvents(fieldTimes, fieldLengths).
			uint(fieldTimes, 4).uint(fieldLengths, 3).uint(fieldTimes, 300).uint(fieldLengths, 2)},
		{"columns in two pieces", twoEvents(fieldTimes, fieldLengths).
			packed(fieldTimes, 4).packed(fieldLengths, 3).packed(fieldTimes, 300).packed(fieldLengths, 2)},
		{"columns mixed, with empty pieces", twoEvents(fieldTimes).
			packed(fieldTimes).uint(fieldTimes, 1<<40).packed(fieldTimes).packed(fieldTimes, 1)},
		{"the last scalar wins", twoEvents().uint(fieldLane, 1).uint(fieldLane, 2).
			text(fieldSource, "other").bytes(fieldFates, 1, 1)},
		{"the last count wins", append(wire{}.uint(fieldCount, 99), twoEvents()...)},
		{"the last body wins", append(wire{}.bytes(fieldBody, 1, 2, 3), twoEvents()...)},
		{"unknown fields of every wire type", append(protowire.AppendFixed64(protowire.AppendTag(protowire.AppendFixed32(
			protowire.AppendTag(twoEvents().uint(100, 7).bytes(101, 1, 2), 102, protowire.Fixed32Type), 9),
			103, protowire.Fixed64Type), 9), protowire.AppendGroup(protowire.AppendTag(nil, 104, protowire.StartGroupType), 104, nil)...)},
		{"known fields of the wrong wire type are unknown", protowire.AppendFixed32(protowire.AppendTag(
			append(wire{}.uint(fieldOrigins, 9), twoEvents()...).bytes(fieldCount, 9).uint(fieldSource, 1).uint(fieldBody, 3), fieldLane, protowire.Fixed32Type), 9)},
		{"numbers above 32 bits are cut", twoEvents(fieldLengths).packed(fieldLengths, 3|1<<40, 2).uint(fieldLane, 5|1<<33)},
		{"wide varints", append(twoEvents(fieldLengths), 0xa2, 1, 5, 0x83, 0x80, 0x80, 0, 2)},
		{"index columns where they could be absent", twoEvents().packed(fieldOriginOf, 0, 0).packed(fieldAccountOf, 0, 0).packed(fieldRegionOf, 0, 0)},
		{"two of each", twoEvents().bytes(fieldOrigins, origin1...).packed(fieldOriginOf, 1, 0).
			text(fieldAccounts, "a").text(fieldAccounts, "b").packed(fieldAccountOf, 1, 1).
			text(fieldRegions, "r").bytes(fieldRegions).packed(fieldRegionOf, 0, 1)},
		{"fields in reverse order", func() (w wire) {
			var fields []wire
			for rest := []byte(twoEvents()); len(rest) > 0; {
				f, more, err := nextField(rest)
				if err != nil {
					panic(err)
				}
				fields, rest = append(fields, f.raw), more
			}
			slices.Reverse(fields)
			return slices.Concat(fields...)
		}()},
		{"no events", wire{}.uint(fieldVersion, 1)},
		{"all dropped and no body", twoEvents(fieldFates, fieldBody).bytes(fieldFates, 1, 2)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := &Frame{}
			if err := proto.Unmarshal(tt.data, f); err != nil {
				t.Fatalf("the case itself is wrong: %v", err)
			}
			before := slices.Clone(tt.data)
			v := mustDecode(t, tt.data)
			checkView(t, &v, f, &Columns{}, new([]byte))
			if !bytes.Equal(tt.data, before) {
				t.Error("reading changed the frame")
			}
		})
	}
}

func TestDecodeFrameRefuses(t *testing.T) {
	origin, _ := proto.Marshal(testOrigin(0))
	tests := []struct {
		name string
		data wire
		kind *fault.Kind
		says string
	}{
		{"nothing", nil, errFrame, "no version"},
		{"no version", twoEvents(fieldVersion), errFrame, "no version"},
		{"a later version", twoEvents().uint(fieldVersion, 2), errNewer, "version 2, known up to 1"},
		{"text", wire("nope, not a frame"), errFrame, ""},
		{"cut in the middle", twoEvents()[:60], errFrame, "unexpected EOF"},
		{"too long", make(wire, MaxFrame+1), errFrame, "more than 8388608"},
		{"an end without a group", protowire.AppendTag(twoEvents(), 99, protowire.EndGroupType), errFrame, "mismatching end group"},
		{"field 0", append(twoEvents(), 0), errFrame, "invalid field number"},
		{"field number out of range", append(protowire.AppendVarint(twoEvents(), 1<<32), 0), errFrame, "field number 536870912"},
		{"too many events", wire{}.uint(fieldVersion, 1).uint(fieldCount, MaxCount+1), errFrame, "more than 65536"},
		{"ids for fewer events", twoEvents(fieldIDs).bytes(fieldIDs, make([]byte, 31)...), errFrame, "31 bytes of ids"},
		{"fates for fewer events", twoEvents(fieldFates).bytes(fieldFates, 0), errFrame, "1 fates"},
		{"no fates", twoEvents(fieldFates), errFrame, "0 fates"},
		{"fates without ids", twoEvents(fieldIDs), errFrame, "2 fates for 0 ids"},
		{"no times", twoEvents(fieldTimes), errFrame, "no column times"},
		{"times for fewer events", twoEvents(fieldTimes).packed(fieldTimes, 1), errFrame, "1 entries in column times"},
		{"times end within a number", twoEvents(fieldTimes).bytes(fieldTimes, 1, 2, 0x80), errFrame, "ends within"},
		{"times of raw records", twoEvents(fieldIDs, fieldFates), errFrame, "raw records"},
		{"no records", twoEvents(fieldRecords), errFrame, "no column records"},
		{"no lengths", twoEvents(fieldLengths), errFrame, "0 entries in column lengths"},
		{"lengths for more events", twoEvents(fieldLengths).packed(fieldLengths, 1, 1, 3), errFrame, "3 entries in column lengths"},
		{"lengths end within a number", twoEvents(fieldLengths).bytes(fieldLengths, 5, 0x80), errFrame, "column lengths: unexpected EOF"},
		{"a length beyond 64 bits", twoEvents(fieldLengths).bytes(fieldLengths, bytes.Repeat([]byte{0xff}, 12)...), errFrame, "column lengths"},
		{"lengths that miss the body size", twoEvents(fieldLengths).packed(fieldLengths, 3, 3), errFrame, "documents of 6 bytes in a body of 5"},
		{"body size above the cap", twoEvents().uint(fieldBodySize, MaxBody+1), errFrame, "more than 67108864"},
		{"body of another size", twoEvents().bytes(fieldBody, s2.Encode(nil, []byte("abcd"))...), errFrame, "a body of 4 bytes, announced as 5"},
		{"body that is none", twoEvents().bytes(fieldBody, 0xff), errFrame, "body: "},
		{"live events without body", twoEvents(fieldBody), errFrame, "1 events are live"},
		{"no origin", twoEvents(fieldOrigins), errFrame, "no origin"},
		{"an origin without pull", twoEvents(fieldOrigins).bytes(fieldOrigins), errFrame, "too few to name a pull"},
		{"more origins than events", twoEvents().bytes(fieldOrigins, origin...).bytes(fieldOrigins, origin...), errFrame, "3 origins"},
		{"two origins and nothing that picks", twoEvents().bytes(fieldOrigins, origin...), errFrame, "no column origin_of"},
		{"two accounts and nothing that picks", twoEvents().bytes(fieldAccounts).bytes(fieldAccounts), errFrame, "no column account_of"},
		{"more accounts than events", twoEvents().bytes(fieldAccounts).bytes(fieldAccounts).bytes(fieldAccounts).packed(fieldAccountOf, 1, 0), errFrame, "3 accounts"},
		{"more regions than events", twoEvents().bytes(fieldRegions).bytes(fieldRegions).bytes(fieldRegions), errFrame, "3 regions"},
		{"half a message id", messagesWire(fieldMessageIDs).bytes(fieldMessageIDs, make([]byte, 24)...), errFrame, "24 bytes of message ids"},
		{"no message ids", messagesWire(fieldMessageIDs), errFrame, "message_records"},
		{"more messages than records", messagesWire(fieldMessageIDs).bytes(fieldMessageIDs, make([]byte, 64)...), errFrame, "4 messages for 3"},
		{"messages of events", twoEvents().bytes(fieldMessageIDs, make([]byte, 16)...), errFrame, "messages in a frame of events"},
		{"messages without their records", messagesWire(fieldMessageRecords), errFrame, "no column message_records"},
		{"messages without their times", messagesWire(fieldMessageSent), errFrame, "no column message_sent"},
		{"an empty message", messagesWire(fieldMessageRecords).packed(fieldMessageRecords, 3, 0), errFrame, "a message without records"},
		{"messages of fewer records", messagesWire(fieldMessageRecords).packed(fieldMessageRecords, 1, 1), errFrame, "2 records in messages, of 3"},
		{"text that is not UTF-8", twoEvents().bytes(fieldSource, 0xff), errFrame, "not UTF-8"},
		{"an account that is not UTF-8", twoEvents().bytes(fieldAccounts, 0xff), errFrame, "not UTF-8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodeFrame(tt.data)
			if !errors.Is(err, tt.kind) || fault.ClassOf(err) != fault.Reject || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want %s that says %q", err, tt.kind.Code, tt.says)
			}
		})
	}
}

// What only shows in the content of a column or of the body is an error there.
func TestViewRefusesBadContent(t *testing.T) {
	broken := s2.Encode(nil, bytes.Repeat([]byte("abcde"), 100))
	broken[len(broken)-2] ^= 0xff
	ff := bytes.Repeat([]byte{0xff}, 10)
	columns := func(v *View) error { return v.Columns(&Columns{}) }
	tests := []struct {
		name string
		data wire
		read func(*View) error
		says string
	}{
		{"origin index out of range", twoEvents().packed(fieldOriginOf, 0, 1), columns, "origin_of"},
		{"account index out of range", twoEvents().packed(fieldAccountOf, 0, 1), columns, "account_of"},
		{"region index out of range", twoEvents().bytes(fieldRegions).packed(fieldRegionOf, 0, 1), columns, "region_of"},
		{"a time beyond 64 bits", twoEvents(fieldTimes).bytes(fieldTimes, append(slices.Clone(ff), 1, 1)...), columns, "times"},
		{"an ordinal beyond 64 bits", twoEvents(fieldRecords).bytes(fieldRecords, append(slices.Clone(ff), 1, 1)...), columns, "records"},
		{
			"a damaged origin", twoEvents(fieldOrigins).bytes(fieldOrigins, bytes.Repeat([]byte{0xff}, 20)...),
			func(v *View) error { _, err := v.Origins(); return err }, "origin 0",
		},
		{
			"a damaged body", twoEvents(fieldBodySize, fieldBody, fieldLengths).packed(fieldLengths, 500, 0).uint(fieldBodySize, 500).bytes(fieldBody, broken...),
			func(v *View) error { _, err := v.Body(nil); return err }, "decompress",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := mustDecode(t, tt.data)
			if err := tt.read(&v); !errors.Is(err, errFrame) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v, want %s that says %q", err, errFrame.Code, tt.says)
			}
		})
	}
}

// A hostile frame must not make its reader allocate out of proportion.
func TestHostileFramesStaySmall(t *testing.T) {
	tests := []struct {
		name string
		data wire
	}{
		{"a huge count", wire{}.uint(fieldVersion, 1).uint(fieldCount, 1<<31)},
		{"a huge body that is not there", wire{}.uint(fieldVersion, 1).uint(fieldCount, 1).uint(fieldBodySize, 1<<40).packed(fieldLengths, 1<<31)},
		{"a body block that claims 60 MiB", twoEvents(fieldBodySize, fieldLengths).uint(fieldBodySize, 60<<20).packed(fieldLengths, 60<<20, 0).
			bytes(fieldBody, protowire.AppendVarint(nil, 1<<31)...)},
		{"a million pieces of a column", func() wire {
			w := twoEvents()
			for range 1 << 18 {
				w = w.uint(fieldTimes, 1)
			}
			return w
		}()},
		{"a million origins", func() wire {
			w := twoEvents()
			for range 1 << 18 {
				w = w.bytes(fieldOrigins, bytes.Repeat([]byte{1}, 18)...)
			}
			return w
		}()},
		{"a million accounts", func() wire {
			w := twoEvents()
			for range 1 << 18 {
				w = w.bytes(fieldAccounts)
			}
			return w
		}()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var err error
			used := allocated(func() { _, err = DecodeFrame(tt.data) })
			if err == nil {
				t.Error("no error")
			}
			if limit := uint64(8*len(tt.data) + 64<<10); used > limit {
				t.Errorf("%d bytes allocated for a frame of %d, want at most %d", used, len(tt.data), limit)
			}
		})
	}
}

// The middle stages read and mark a frame without an allocation, whatever its size.
func TestMiddleStagesAllocateNothing(t *testing.T) {
	encoded := benchFrame(500)
	first := mustDecode(t, encoded)
	var cols Columns
	if err := first.Columns(&cols); err != nil {
		t.Fatal(err)
	}
	body, err := first.Body(nil)
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]byte, 0, len(encoded))
	tests := []struct {
		name string
		do   func(v *View) bool
	}{
		{"decode", func(v *View) bool { return v.Len() == 500 }},
		{"ids", func(v *View) bool {
			var sum byte
			for i := range v.Len() {
				id := v.ID(i)
				sum |= id[0]
			}
			return sum != 0
		}},
		{"fates", func(v *View) bool {
			for i := range v.Len() {
				v.SetFate(i, Fate(i%2))
			}
			return v.Live() == 250 && v.Fate(1) == Duplicate
		}},
		{"forward", func(v *View) bool { return len(v.Encoded()) == len(encoded) }},
		{"columns", func(v *View) bool { return v.Columns(&cols) == nil && len(cols.Times) == 500 }},
		{"body", func(v *View) bool {
			var err error
			body, err = v.Body(body)
			return err == nil && len(body) == v.BodySize()
		}},
		{"without body", func(v *View) bool { return len(v.WithoutBody(dst[:0])) < len(encoded) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var v View // outside, as calling through do makes it escape
			allocs := testing.AllocsPerRun(20, func() {
				var err error
				if v, err = DecodeFrame(encoded); err != nil || !tt.do(&v) {
					t.Fatal("wrong result", err)
				}
			})
			if allocs != 0 {
				t.Errorf("%v allocations", allocs)
			}
		})
	}
}

func TestBuildingAllocatesNothingPerEvent(t *testing.T) {
	events, origin := benchEvents(500), testOrigin(0)
	b := NewBuilder(Header{})
	var dst []byte
	build := func() {
		b.Reset(Header{Source: "trail", Format: "cloudtrail", EventType: "cloud.aws.cloudtrail.iam", Lane: 3})
		for _, e := range events {
			e.Origin = b.Origin(origin)
			b.Add(e)
		}
		dst = b.Encode(dst[:0])
	}
	build()
	if allocs := testing.AllocsPerRun(20, build); allocs > 2 {
		t.Errorf("%v allocations for a frame of %d events", allocs, len(events))
	}
	if v := mustDecode(t, dst); v.Len() != 500 {
		t.Errorf("%d events", v.Len())
	}
}

// Names are looked up in two ways, by count; both must number alike.
func TestManyOriginsAndAccounts(t *testing.T) {
	b := NewBuilder(Header{})
	for n := range 3 * manyNames {
		b.Reset(Header{})
		for i := range 2 * n {
			o := b.Origin(testOrigin(i % n))
			b.Add(Event{Account: fmt.Sprint(i % n)})
			if o != uint32(i%n) || b.accounts.last != o || len(b.accounts.names) != min(i+1, n) {
				t.Fatalf("of %d, %d became origin %d and account %d", n, i%n, o, b.accounts.last)
			}
		}
	}
	b.Reset(Header{})
	for round := range 3 {
		for i := range 100 {
			o := b.Origin(testOrigin(i))
			if o != uint32(i) {
				t.Fatalf("round %d: origin %d became %d", round, i, o)
			}
			b.Add(Event{Origin: o, Account: fmt.Sprint(i), Region: fmt.Sprint(i % 20)})
		}
	}
	var c Columns
	v := mustDecode(t, b.Encode(nil))
	if err := v.Columns(&c); err != nil {
		t.Fatal(err)
	}
	for i := range v.Len() {
		if c.OriginOf[i] != uint32(i%100) || c.Accounts[c.AccountOf[i]] != fmt.Sprint(i%100) || c.Regions[c.RegionOf[i]] != fmt.Sprint(i%100%20) {
			t.Fatalf("event %d: origin %d, account %s, region %s", i, c.OriginOf[i], c.Accounts[c.AccountOf[i]], c.Regions[c.RegionOf[i]])
		}
	}
	if len(c.Accounts) != 100 || len(c.Regions) != 20 {
		t.Errorf("%d accounts, %d regions", len(c.Accounts), len(c.Regions))
	}
	b.Reset(Header{})
	if got := b.Origin(testOrigin(57)); got != 0 {
		t.Errorf("after Reset the first origin is %d", got)
	}
}

// Reused columns keep no value of the frame before.
func TestColumnsAreFilledAnew(t *testing.T) {
	var c Columns
	events, records := mustDecode(t, encode1(eventsInput())), mustDecode(t, encode1(recordsInput()))
	if err := events.Columns(&c); err != nil {
		t.Fatal(err)
	}
	accounts := slices.Clone(c.Accounts)
	if err := records.Columns(&c); err != nil {
		t.Fatal(err)
	}
	want := Columns{
		Times: make([]int64, 3), OriginOf: make([]uint32, 3), Records: []uint64{4000, 4001, 4002}, AccountOf: make([]uint32, 3),
		RegionOf: make([]uint32, 3), Accounts: []string{""}, Regions: []string{""}, Lengths: []uint32{7, 8, 2},
	}
	if !equalColumns(c, want) {
		t.Errorf("columns %+v, want %+v", c, want)
	}
	if accounts[0] != "111122223333" {
		t.Errorf("an account handed out before became %q", accounts[0])
	}
}

func TestFateNames(t *testing.T) {
	for fate, want := range map[Fate]string{Live: "live", Duplicate: "duplicate", Filtered: "filtered", Sampled: "sampled", 200: "unknown"} {
		if fate.String() != want {
			t.Errorf("fate %d is %q, want %q", fate, fate, want)
		}
	}
	v := mustDecode(t, twoEvents(fieldFates).bytes(fieldFates, 200, 0))
	if v.Live() != 1 {
		t.Errorf("%d live: a fate of a later release counts as dropped", v.Live())
	}
}

// Documents that stand compressed in other frames and documents that do not share a frame,
// in the order in which they were added.
func TestBlocksShareABody(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	doc := func() []byte {
		size := 1 << r.IntN(12)
		if r.IntN(2) == 0 {
			return bytes.Repeat([]byte{byte(r.IntN(4))}, size)
		}
		doc := make([]byte, size)
		for i := range doc {
			doc[i] = byte(r.IntN(1 + r.IntN(256)))
		}
		return doc
	}
	b, other := NewBuilder(Header{}), NewBuilder(Header{})
	for range 300 {
		b.Reset(Header{Source: "s", EventType: "a.b"})
		o := b.Origin(testOrigin(0))
		var want []byte
		add := func(alone bool) {
			other.Reset(Header{Source: "s"})
			other.Origin(testOrigin(0))
			var sizes []int
			for range 1 + r.IntN(5) {
				d := doc()
				want = append(want, d...)
				if alone {
					b.Add(Event{ID: ID{1}, Origin: o, Doc: d})
					continue
				}
				other.AddRecord(d)
				sizes = append(sizes, len(d))
			}
			if alone {
				return
			}
			v := mustDecode(t, other.Encode(nil))
			b.AddBlock(v.Block(), v.BodySize())
			for _, size := range sizes {
				b.AddStored(Event{ID: ID{1}, Origin: o}, size)
			}
		}
		for range 1 + r.IntN(4) {
			add(r.IntN(2) == 0)
		}
		if b.BodySize() != len(want) {
			t.Fatalf("%d bytes of documents, want %d", b.BodySize(), len(want))
		}
		v := mustDecode(t, b.Encode([]byte("before"))[len("before"):])
		if body, err := v.Body(nil); err != nil || !bytes.Equal(body, want) {
			t.Fatalf("another body of %d bytes, want %d: %v", len(body), len(want), err)
		}
		if again := mustDecode(t, b.Encode(nil)); !bytes.Equal(again.Block(), v.Block()) {
			t.Fatal("the second encoding differs")
		}
	}
}
