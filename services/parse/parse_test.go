package parse

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/s2"
	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/parse/formats"
	"github.com/penstock/penstock/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const lanes = 8

// bus is where outboxes of groups store. Its hooks may be nil.
type bus struct {
	mu      sync.Mutex
	stored  []topology.Message
	publish func(ctx context.Context, m topology.Message) error
	flush   func(ctx context.Context) error
}

type busOutbox struct {
	topology.Recorder
	bus *bus
}

func (b *bus) outbox() topology.Outbox { return &busOutbox{bus: b} }

func (o *busOutbox) Publish(ctx context.Context, m topology.Message) error {
	if o.bus.publish != nil {
		if err := o.bus.publish(ctx, m); err != nil {
			return err
		}
	}
	m.Data = bytes.Clone(m.Data)
	return o.Recorder.Publish(ctx, m)
}

func (o *busOutbox) Flush(ctx context.Context) error {
	if o.bus.flush != nil {
		if err := o.bus.flush(ctx); err != nil {
			return err
		}
	}
	o.bus.mu.Lock()
	defer o.bus.mu.Unlock()
	o.bus.stored = append(o.bus.stored, o.Messages()...)
	return nil
}

// out is one event as it was stored.
type out struct {
	header          string // source, format, type, replay
	lane            uint32
	id              messages.ID
	time            int64
	account, region string
	pull            string
	record          uint64
	doc             string
}

// events decodes all that was stored, and checks what must hold for every frame.
func (b *bus) events(t testing.TB) []out {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []out
	for _, m := range b.stored {
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject != topology.ParsedSubject(v.Lane()) || len(m.ID) != 32 {
			t.Errorf("subject %s, id %q for lane %d", m.Subject, m.ID, v.Lane())
		}
		var c messages.Columns
		if err := v.Columns(&c); err != nil {
			t.Fatal(err)
		}
		body, err := v.Body(nil)
		if err != nil {
			t.Fatal(err)
		}
		origins, err := v.Origins()
		if err != nil {
			t.Fatal(err)
		}
		for i := range v.Len() {
			if v.ID(i).Lane(lanes) != v.Lane() {
				t.Errorf("event %s in lane %d", v.ID(i), v.Lane())
			}
			n := c.Lengths[i]
			all = append(all, out{
				header: strings.Join([]string{v.Source(), v.Format(), v.EventType(), v.Replay()}, " "),
				lane:   v.Lane(), id: v.ID(i), time: c.Times[i],
				account: c.Accounts[c.AccountOf[i]], region: c.Regions[c.RegionOf[i]],
				pull: string(origins[c.OriginOf[i]].GetPull()), record: c.Records[i], doc: string(body[:n]),
			})
			body = body[n:]
		}
	}
	return all
}

func (b *bus) messages() []topology.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.stored)
}

func start(t testing.TB, c Config, window int, b *bus) *Parse {
	t.Helper()
	p, err := New(c, Deps{NewOutbox: b.outbox, Lanes: lanes, Window: window})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func origin(n int) *messages.Origin {
	return &messages.Origin{
		Pull: messages.NewPull("test", fmt.Sprint(n)), Source: "trail", Bucket: "log-bucket-a",
		Key:  fmt.Sprintf("AWSLogs/123456789012/CloudTrail/eu-west-1/2026/01/05/%d.json.gz", n),
		Etag: "etag", Created: 1_767_599_000_000_000_000, Received: 1_767_599_001_000_000_000,
	}
}

// frame makes a RECORDS frame.
func frame(t testing.TB, h messages.Header, o *messages.Origin, recs ...string) topology.In[messages.View] {
	t.Helper()
	b := messages.NewBuilder(h)
	b.Origin(o)
	for _, rec := range recs {
		b.AddRecord([]byte(rec))
	}
	data := b.Encode(nil)
	v, err := messages.DecodeFrame(data)
	if err != nil {
		t.Fatal(err)
	}
	return topology.In[messages.View]{Value: v, Data: data, Subject: topology.RecordSubject(h.Source), Attempt: 1}
}

func trail(frameNo uint32, first uint64) messages.Header {
	return messages.Header{Source: "trail", Format: "cloudtrail", FrameNo: frameNo, FirstRecord: first}
}

func record(id int, service string) string {
	return fmt.Sprintf(`{"eventVersion":"1.11","eventTime":"2026-01-05T07:44:54Z","eventSource":"%s.amazonaws.com","awsRegion":"us-east-1","eventID":"%d","recipientAccountId":"111111111111"}`, service, id)
}

// covers: F-0 (dead-letter per record, ids, observed time), F-9 (account and region of the key)
func TestHandle(t *testing.T) {
	b := &bus{}
	p := start(t, Defaults(), 1, b)
	rec := &topology.Recorder{}
	noID := `{"eventSource":"s3.amazonaws.com","x":"` + "\xff" + `"}`
	msg := frame(t, trail(7, 100), origin(1), record(1, "s3"), `{"eventID":`, "\n  "+record(2, "iam")+" ", `[]`, noID)
	if err := p.Handle(t.Context(), msg, rec); err != nil {
		t.Fatal(err)
	}

	pull := string(origin(1).GetPull())
	at := time.Date(2026, 1, 5, 7, 44, 54, 0, time.UTC).UnixNano()
	var ordinal [8]byte
	binary.BigEndian.PutUint64(ordinal[:], 104)
	byPlace := messages.NewID([]byte("log-bucket-a"), []byte(origin(1).GetKey()), []byte("etag"), ordinal[:])
	want := []out{
		{"trail cloudtrail cloud.aws.cloudtrail.s3 ", 0, messages.NewID([]byte("cloudtrail"), []byte("1")), at, "111111111111", "us-east-1", pull, 100, record(1, "s3")},
		{"trail cloudtrail cloud.aws.cloudtrail.iam ", 0, messages.NewID([]byte("cloudtrail"), []byte("2")), at, "111111111111", "us-east-1", pull, 102, record(2, "iam")},
		{"trail cloudtrail cloud.aws.cloudtrail.s3 ", 0, byPlace, origin(1).GetReceived(), "123456789012", "eu-west-1", pull, 104, noID},
	}
	got := b.events(t)
	slices.SortFunc(got, func(a, b out) int { return int(a.record) - int(b.record) })
	for i := range got {
		got[i].lane = 0
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}

	refused := rec.Quarantined()
	slices.SortFunc(refused, func(a, b *messages.Quarantine) int { return int(a.GetRecord()) - int(b.GetRecord()) })
	if len(refused) != 2 {
		t.Fatalf("%d records in quarantine, want 2", len(refused))
	}
	for i, want := range []struct {
		record        uint64
		code, payload string
	}{{101, "parse.bad_json", `{"eventID":`}, {103, "parse.not_an_object", `[]`}} {
		q := refused[i]
		if q.GetRecord() != want.record || q.GetCode() != want.code || string(q.GetPayload()) != want.payload ||
			q.GetRecords() != 1 || q.GetHolds() != messages.Quarantine_HOLDS_RECORD || q.GetSource() != "trail" ||
			q.GetStage() != "parse" || q.GetFormat() != "cloudtrail" || q.GetSubject() != "penstock.record.trail" ||
			string(q.GetOrigin().GetPull()) != pull || q.GetAttempts() != 1 || q.GetReason() == "" {
			t.Errorf("quarantined: %v", q)
		}
	}

	facts := rec.Facts()
	if len(facts) != 1 {
		t.Fatalf("%d facts, want 1", len(facts))
	}
	f := facts[0].GetParsed()
	if string(f.GetPull()) != pull || f.GetFrameNo() != 7 || f.GetRecords() != 5 || f.GetEvents() != 3 ||
		len(f.GetQuarantined()) != 2 || f.GetQuarantined()["parse.bad_json"] != 1 || f.GetQuarantined()["parse.not_an_object"] != 1 {
		t.Errorf("fact: %v", f)
	}
}

// A bad record says for whom it was parsed again.
func TestQuarantineKeepsTheReplay(t *testing.T) {
	h := trail(0, 0)
	h.Replay = "r@d"
	rec := &topology.Recorder{}
	if err := start(t, Defaults(), 1, &bus{}).Handle(t.Context(), frame(t, h, origin(1), `{"eventID":`), rec); err != nil {
		t.Fatal(err)
	}
	if q := rec.Quarantined(); len(q) != 1 || q[0].GetReplay() != "r@d" {
		t.Errorf("quarantined: %v", q)
	}
}

// A bad record that cannot be kept makes the frame come again.
func TestQuarantineError(t *testing.T) {
	full := errors.New("disk on fire")
	b := &bus{}
	p := start(t, Defaults(), 1, b)
	rec := &refusing{err: full}
	if err := p.Handle(t.Context(), frame(t, trail(0, 0), origin(1), record(1, "s3"), "x"), rec); !errors.Is(err, full) || len(rec.Facts()) != 0 {
		t.Errorf("error %v and %d facts, want that of the outbox and none", err, len(rec.Facts()))
	}
}

// refusing is an outbox whose Quarantine fails.
type refusing struct {
	topology.Recorder
	err error
}

func (r *refusing) Quarantine(context.Context, *messages.Quarantine) error { return r.err }

func TestHandleRefusesWholeFrames(t *testing.T) {
	b := &bus{}
	p := start(t, Defaults(), 1, b)
	damaged := frame(t, trail(0, 0), origin(1), strings.Repeat(record(1, "s3"), 50))
	for i := len(damaged.Data) - 40; i < len(damaged.Data); i++ {
		damaged.Data[i] ^= 0x55 // within the compressed body
	}
	tests := []struct {
		name string
		msg  topology.In[messages.View]
		code string
	}{
		{"unknown format", frame(t, messages.Header{Source: "trail", Format: "klingon"}, origin(1), "{}"), "parse.unknown_format"},
		{"damaged body", damaged, "messages.bad_frame"},
	}
	for _, tt := range tests {
		rec := &topology.Recorder{}
		err := p.Handle(t.Context(), tt.msg, rec)
		if fault.CodeOf(err) != tt.code || fault.ClassOf(err) != fault.Reject || len(rec.Facts()) != 0 {
			t.Errorf("%s: %v and %d facts, want %s and none", tt.name, err, len(rec.Facts()), tt.code)
		}
	}
	if p.grouper.used != 0 || p.grouper.inHand != 0 {
		t.Errorf("%d bytes and %d inputs are held after all", p.grouper.used, p.grouper.inHand)
	}
}

// A frame of bad records only, or of none, is done at once.
func TestHandleWithoutEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bus{}
		p := start(t, Defaults(), 10, b)
		for _, recs := range [][]string{{"x", "y"}, nil} {
			rec := &topology.Recorder{}
			began := time.Now()
			if err := p.Handle(t.Context(), frame(t, trail(0, 0), origin(1), recs...), rec); err != nil {
				t.Fatal(err)
			}
			if len(rec.Quarantined()) != len(recs) || len(rec.Facts()) != 1 || len(b.messages()) != 0 || time.Since(began) != 0 {
				t.Errorf("%d quarantined, %d facts, %d frames after %s", len(rec.Quarantined()), len(rec.Facts()), len(b.messages()), time.Since(began))
			}
		}
	})
}

// A record that fits into no frame of events is quarantined, one that is as long
// but fits is not.
func TestHandleHugeRecords(t *testing.T) {
	noise := make([]byte, messages.MaxFrame*3/4)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+/"[r.IntN(64)]
	}
	hard := `{"eventID":"1","x":"` + string(noise) + string(noise) + `"}`
	easy := `{"eventID":"2","x":"` + strings.Repeat("x", len(hard)) + `"}`
	if n := len(s2.Encode(nil, []byte(hard))); n < messages.MaxFrame {
		t.Fatalf("the record compresses to %d bytes", n)
	}
	b := &bus{}
	p := start(t, Defaults(), 1, b)
	in := &input{}
	dec := openFormat(t, "cloudtrail", nil)
	fill(in, hard, easy)
	in.decode(p, dec, dec.New())
	if len(in.bad) != 1 || in.bad[0].record != 0 || fault.CodeOf(in.bad[0].err) != "parse.record_too_large" {
		t.Errorf("bad records: %+v", in.bad)
	}
	if len(in.events) != 1 || in.events[0].record != 1 {
		t.Errorf("%d events", len(in.events))
	}
}

func openFormat(t testing.TB, name string, options any) formats.Format {
	t.Helper()
	f, err := formats.Open(t.Context(), name, options, formats.Deps{Source: "trail", Types: formats.NewTypes(0)})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// fill puts records into in as if they had been read from a frame.
func fill(in *input, recs ...string) {
	in.origins = []*messages.Origin{origin(1)}
	for i, rec := range recs {
		in.body = append(in.body, rec...)
		in.columns.Lengths = append(in.columns.Lengths, uint32(len(rec)))
		in.columns.OriginOf = append(in.columns.OriginOf, 0)
		in.columns.Records = append(in.columns.Records, uint64(i))
	}
}

// Inputs that come together become common frames, as soon as nothing more can
// come: no time passes.
func TestInputsAreMerged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const window, size = 4, 200
		b := &bus{}
		p := start(t, Defaults(), window, b)
		began := time.Now()
		var wg sync.WaitGroup
		for i := range window {
			wg.Go(func() {
				recs := make([]string, size)
				for k := range recs {
					recs[k] = record(i*size+k, []string{"s3", "iam"}[k%2])
				}
				if err := p.Handle(t.Context(), frame(t, trail(0, 0), origin(i), recs...), &topology.Recorder{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %s, want no waiting", took)
		}
		if n := len(b.messages()); n != 2*lanes {
			t.Errorf("%d frames, want one for each of 2 types and %d lanes", n, lanes)
		}
		unique := map[messages.ID]int{}
		for _, e := range b.events(t) {
			unique[e.id]++
		}
		if len(unique) != window*size || len(b.events(t)) != window*size {
			t.Errorf("%d events, %d different, want %d", len(b.events(t)), len(unique), window*size)
		}
	})
}

// What is not merged: other sources, formats, replays.
func TestGroupsDoNotMixWhatDiffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bus{}
		headers := []messages.Header{
			{Source: "a", Format: "cloudtrail"},
			{Source: "b", Format: "cloudtrail"},
			{Source: "a", Format: "json"},
			{Source: "a", Format: "cloudtrail", Replay: "r1"},
			{Source: "a", Format: "cloudtrail"},
		}
		p := start(t, Defaults(), len(headers), b)
		var wg sync.WaitGroup
		for i, h := range headers {
			wg.Go(func() {
				if err := p.Handle(t.Context(), frame(t, h, origin(i), record(1, "s3")), &topology.Recorder{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		got := map[string]int{}
		for _, e := range b.events(t) {
			got[e.header]++
		}
		want := map[string]int{
			"a cloudtrail cloud.aws.cloudtrail.s3 ": 2, "b cloudtrail cloud.aws.cloudtrail.s3 ": 1,
			"a json json.a ": 1, "a cloudtrail cloud.aws.cloudtrail.s3 r1": 1,
		}
		if fmt.Sprint(got) != fmt.Sprint(want) || len(b.messages()) != 4 {
			t.Errorf("%d frames: %v, want 4: %v", len(b.messages()), got, want)
		}
	})
}

func TestWaitingTimes(t *testing.T) {
	const ms = time.Millisecond
	tests := []struct {
		name    string
		window  int
		records int
		busy    bool // another input is in hand and does not wait
		every   time.Duration
		took    time.Duration
	}{
		{"alone: until idle", 100, 300 * lanes, false, 0, 20 * ms},
		{"others at work: linger", 100, 300 * lanes, true, 0, 50 * ms},
		{"others at work, thin group: longer linger", 100, lanes, true, 0, 200 * ms},
		{"inputs keep coming: linger", 100, 300 * lanes, false, 9 * ms, 50 * ms},
		{"window is full: at once", 1, lanes, false, 0, 0},
		{"window is full, others at work: at once", 1, lanes, true, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &bus{}
				p := start(t, Defaults(), tt.window, b)
				var wg sync.WaitGroup
				free := make(chan struct{})
				if tt.busy {
					wg.Go(func() {
						rec := &blocking{until: free}
						if err := p.Handle(t.Context(), frame(t, trail(0, 0), origin(0), "x"), rec); err != nil {
							t.Error(err)
						}
					})
				}
				synctest.Wait()
				began := time.Now()
				if tt.every > 0 {
					for i := range 10 {
						wg.Go(func() {
							<-time.After(time.Duration(i+1) * tt.every)
							if err := p.Handle(t.Context(), frame(t, trail(0, 0), origin(2+i), record(i, "iam")), &topology.Recorder{}); err != nil {
								t.Error(err)
							}
						})
					}
				}
				recs := make([]string, tt.records)
				for i := range recs {
					recs[i] = record(i, "s3")
				}
				if err := p.Handle(t.Context(), frame(t, trail(0, 0), origin(1), recs...), &topology.Recorder{}); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took != tt.took {
					t.Errorf("it took %s, want %s", took, tt.took)
				}
				close(free)
				wg.Wait()
			})
		})
	}
}

// blocking is an outbox whose Quarantine takes its time.
type blocking struct {
	topology.Recorder
	until chan struct{}
}

func (b *blocking) Quarantine(ctx context.Context, q *messages.Quarantine) error {
	<-b.until
	return b.Recorder.Quarantine(ctx, q)
}

// Inputs that come while groups are on their way to the bus wait for those, so
// that their groups grow too.
func TestGroupsGrowWhileOthersAreStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		b := &bus{flush: func(context.Context) error { <-gate; return nil }}
		p := start(t, Defaults(), 2, b)
		var wg sync.WaitGroup
		handle := func(i int) {
			wg.Go(func() {
				if err := p.Handle(t.Context(), frame(t, trail(0, 0), origin(i), record(1, "s3")), &topology.Recorder{}); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		for i := range 6 {
			handle(i)
		}
		close(gate)
		wg.Wait()
		var sizes []int
		for _, m := range b.messages() {
			v, err := messages.DecodeFrame(m.Data)
			if err != nil {
				t.Fatal(err)
			}
			sizes = append(sizes, v.Len())
		}
		slices.Sort(sizes)
		if !slices.Equal(sizes, []int{2, 4}) {
			t.Errorf("frames of %v events, want 2 and then 4", sizes)
		}
	})
}

// Groups are cut at their limits; one event above the limit goes alone.
func TestGroupLimits(t *testing.T) {
	c := Defaults()
	c.GroupEvents, c.GroupBytes = 100, 10_000
	b := &bus{}
	p := start(t, c, 1, b)
	r := rand.New(rand.NewPCG(1, 2))
	recs := make([]string, 3000)
	for i := range recs {
		size := r.IntN(300)
		if i%500 == 499 {
			size = 20_000
		}
		recs[i] = fmt.Sprintf(`{"eventID":"%d","x":"%s"}`, i, strings.Repeat("x", size))
	}
	if err := p.Handle(t.Context(), frame(t, trail(0, 0), origin(1), recs...), &topology.Recorder{}); err != nil {
		t.Fatal(err)
	}
	full := 0
	for _, m := range b.messages() {
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if v.Len() > 100 || v.BodySize() > 10_000 && v.Len() > 1 {
			t.Errorf("a frame of %d events, %d bytes", v.Len(), v.BodySize())
		}
		if v.Len() > 40 {
			full++
		}
	}
	if full < 20 {
		t.Errorf("only %d frames are well filled", full)
	}
	if n := len(b.events(t)); n != len(recs) {
		t.Errorf("%d events, want %d", n, len(recs))
	}
}

// Memory is bounded: further inputs wait, and make what is open go out early.
func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Defaults()
		c.Memory = 1 << 20
		c.Idle, c.Linger, c.ThinLinger = time.Second, time.Second, time.Second
		b := &bus{}
		p := start(t, c, 1000, b)
		most := int64(0)
		b.publish = func(context.Context, topology.Message) error {
			p.grouper.mu.Lock()
			defer p.grouper.mu.Unlock()
			most = max(most, p.grouper.used)
			return nil
		}
		big := `{"eventID":"%d","x":"` + strings.Repeat("x", 300_000) + `"}`
		began := time.Now()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				if err := p.Handle(t.Context(), frame(t, trail(0, 0), origin(i), fmt.Sprintf(big, i)), &topology.Recorder{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(b.events(t)) != 20 {
			t.Errorf("%d events, want 20", len(b.events(t)))
		}
		if most > 1<<20+lanes*100_000 {
			t.Errorf("%d bytes were held at once", most)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %s: inputs wait for memory that lingering groups hold", took)
		}
		// An input larger than all memory is let in when it is alone.
		if err := p.Handle(t.Context(), frame(t, trail(0, 0), origin(21), strings.Repeat(" ", 2<<20)+record(1, "s3")), &topology.Recorder{}); err != nil {
			t.Error(err)
		}
		if p.grouper.used != 0 {
			t.Errorf("%d bytes are held after all", p.grouper.used)
		}
	})
}

// A long header makes documents many times larger than their records: an input
// takes so much of the memory.
// covers: F-0
func TestMemoryOfLongHeaders(t *testing.T) {
	for name, head := range map[string]string{
		"csv":        "a," + strings.Repeat("\x01", 10_000),
		"vpcflow":    "version " + strings.Repeat("x", 60_000),
		"cloudfront": "#Fields: date " + strings.Repeat("x", 60_000),
	} {
		between := map[string]string{"csv": ",", "vpcflow": " ", "cloudfront": "\t"}[name]
		in := &input{head: []byte(head)}
		for range 100 {
			fill(in, "2"+between+"b")
		}
		f := openFormat(t, name, nil)
		in.decode(start(t, Defaults(), 1, &bus{}), f, f.New())
		size := need(len(in.body), len(in.columns.Lengths), in.head, f.Grows)
		if len(in.events) != 100 || len(in.made) < 100*60_000 || size < int64(len(in.body)+len(in.made)) {
			t.Errorf("%s: %d events take %d bytes, %d were reserved", name, len(in.events), len(in.body)+len(in.made), size)
		}
	}
}

// What cannot be stored fails the inputs concerned, and only those.
func TestOutboxErrorReachesAllConcerned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := errors.New("disk on fire")
		for _, at := range []string{"publish", "flush"} {
			bad := topology.ParsedSubject(messages.NewID([]byte("cloudtrail"), []byte("1")).Lane(lanes))
			b := &bus{}
			var mu sync.Mutex
			failing := false
			b.publish = func(_ context.Context, m topology.Message) error {
				if m.Subject != bad {
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				failing = true
				if at == "publish" {
					return full
				}
				return nil
			}
			if at == "flush" {
				b.flush = func(context.Context) error {
					mu.Lock()
					defer mu.Unlock()
					if failing {
						failing = false
						return full
					}
					return nil
				}
			}
			p := start(t, Defaults(), 3, b)
			other := 2
			for messages.NewID([]byte("cloudtrail"), fmt.Append(nil, other)).Lane(lanes) == messages.NewID([]byte("cloudtrail"), []byte("1")).Lane(lanes) {
				other++
			}
			inputs := [][]string{{record(1, "s3"), record(other, "s3")}, {record(1, "s3")}, {record(other, "iam")}}
			errs := make([]error, len(inputs))
			recs := make([]topology.Recorder, len(inputs))
			var wg sync.WaitGroup
			for i, in := range inputs {
				wg.Go(func() { errs[i] = p.Handle(t.Context(), frame(t, trail(0, 0), origin(i), in...), &recs[i]) })
			}
			wg.Wait()
			if at == "publish" && (!errors.Is(errs[0], full) || !errors.Is(errs[1], full) || errs[2] != nil) {
				t.Errorf("%s: errors %v, want those of the first two", at, errs)
			}
			if failed := 0; at == "flush" {
				for _, err := range errs {
					if errors.Is(err, full) {
						failed++
					}
				}
				if failed == 0 {
					t.Errorf("%s: nobody heard of the error", at)
				}
			}
			for i := range errs {
				if (errs[i] == nil) != (len(recs[i].Facts()) == 1) {
					t.Errorf("%s: input %d has %d facts with error %v", at, i, len(recs[i].Facts()), errs[i])
				}
			}
			if p.grouper.used != 0 {
				t.Errorf("%s: %d bytes are held after all", at, p.grouper.used)
			}
		}
	})
}

func TestCancel(t *testing.T) {
	enough := errors.New("enough")
	t.Run("while its group is open", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := &bus{}
			p := start(t, Defaults(), 10, b)
			ctx, cancel := context.WithCancelCause(t.Context())
			var err error
			var wg sync.WaitGroup
			wg.Go(func() { err = p.Handle(ctx, frame(t, trail(0, 0), origin(1), record(1, "s3")), &topology.Recorder{}) })
			synctest.Wait()
			cancel(enough)
			wg.Wait()
			if !errors.Is(err, enough) || len(p.grouper.open) != 0 || p.grouper.used != 0 {
				t.Errorf("error %v, %d open groups, %d bytes", err, len(p.grouper.open), p.grouper.used)
			}
			<-time.After(time.Second)
			if len(b.messages()) != 0 {
				t.Error("a group that nobody waits for was stored")
			}
		})
	})
	t.Run("while its group is stored", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := &bus{publish: func(ctx context.Context, _ topology.Message) error { <-ctx.Done(); return context.Cause(ctx) }}
			p := start(t, Defaults(), 1, b)
			ctx, cancel := context.WithCancelCause(t.Context())
			var err error
			var wg sync.WaitGroup
			wg.Go(func() { err = p.Handle(ctx, frame(t, trail(0, 0), origin(1), record(1, "s3")), &topology.Recorder{}) })
			synctest.Wait()
			cancel(enough)
			wg.Wait()
			p.Close() // or it would hang: the group is given up
			if !errors.Is(err, enough) || p.grouper.used != 0 {
				t.Errorf("error %v, %d bytes", err, p.grouper.used)
			}
		})
	})
	t.Run("while another input shares its group", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			gate := make(chan struct{})
			b := &bus{publish: func(ctx context.Context, _ topology.Message) error {
				select {
				case <-gate:
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}}
			p := start(t, Defaults(), 2, b)
			ctx, cancel := context.WithCancelCause(t.Context())
			errs := make([]error, 2)
			var wg sync.WaitGroup
			for i, ctx := range []context.Context{ctx, t.Context()} {
				wg.Go(func() {
					errs[i] = p.Handle(ctx, frame(t, trail(0, 0), origin(i), record(1, "s3")), &topology.Recorder{})
				})
				synctest.Wait()
			}
			cancel(enough)
			synctest.Wait()
			close(gate)
			wg.Wait()
			if !errors.Is(errs[0], enough) || errs[1] != nil || len(b.events(t)) != 2 {
				t.Errorf("errors %v, %d events stored", errs, len(b.events(t)))
			}
		})
	})
	t.Run("while it waits for memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := Defaults()
			c.Memory = 1 << 20
			gate := make(chan struct{})
			b := &bus{flush: func(context.Context) error { <-gate; return nil }}
			p := start(t, c, 10, b)
			p.grouper.use(1 << 20)
			ctx, cancel := context.WithCancelCause(t.Context())
			var err error
			var wg sync.WaitGroup
			wg.Go(func() { err = p.Handle(ctx, frame(t, trail(0, 0), origin(1), record(1, "s3")), &topology.Recorder{}) })
			synctest.Wait()
			cancel(enough)
			wg.Wait()
			if !errors.Is(err, enough) || p.grouper.inHand != 0 || p.grouper.blocked != 0 || p.grouper.used != 1<<20 {
				t.Errorf("error %v, %d in hand, %d blocked, %d bytes", err, p.grouper.inHand, p.grouper.blocked, p.grouper.used)
			}
			close(gate)
		})
	})
}

// The same records of the same pull are the same message; of another pull they
// are another one with the same event ids.
func TestMessageIDs(t *testing.T) {
	ids := func(o *messages.Origin, h messages.Header) (list []string, events []messages.ID) {
		b := &bus{}
		p := start(t, Defaults(), 1, b)
		if err := p.Handle(t.Context(), frame(t, h, o, record(1, "s3"), record(2, "s3"), record(3, "s3")), &topology.Recorder{}); err != nil {
			t.Fatal(err)
		}
		for _, m := range b.messages() {
			list = append(list, m.ID)
		}
		for _, e := range b.events(t) {
			events = append(events, e.id)
		}
		slices.Sort(list)
		slices.SortFunc(events, func(a, b messages.ID) int { return bytes.Compare(a[:], b[:]) })
		return list, events
	}
	first, events := ids(origin(1), trail(0, 0))
	again, _ := ids(origin(1), trail(0, 0))
	other, same := ids(origin(2), trail(0, 0))
	replayed := trail(0, 0)
	replayed.Replay = "r1"
	replay, _ := ids(origin(1), replayed)
	if !slices.Equal(first, again) {
		t.Errorf("message ids %v, then %v for the same", first, again)
	}
	if slices.Equal(first, other) || !slices.Equal(events, same) {
		t.Errorf("another pull has message ids %v and events %v", other, same)
	}
	if slices.Equal(first, replay) {
		t.Error("a replay has the message ids of the original")
	}
	if len(slices.Compact(first)) != len(first) {
		t.Errorf("two lanes have one message id: %v", first)
	}
}

// One span for each group: a child of the first input's, linked to the others'.
func TestTrace(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	before := otel.GetTracerProvider()
	otel.SetTracerProvider(provider)
	t.Cleanup(func() { otel.SetTracerProvider(before) })

	var seen []trace.SpanContext
	b := &bus{publish: func(ctx context.Context, _ topology.Message) error {
		seen = append(seen, trace.SpanContextFromContext(ctx))
		return nil
	}}
	p := start(t, Defaults(), 3, b)
	var inputs []trace.SpanContext
	var wg sync.WaitGroup
	for i := range 3 {
		ctx, span := provider.Tracer("test").Start(t.Context(), "parse")
		inputs = append(inputs, span.SpanContext())
		wg.Go(func() {
			if err := p.Handle(ctx, frame(t, trail(0, 0), origin(i), record(1, "s3")), &topology.Recorder{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	ended := spans.Ended()
	if len(ended) != 1 || len(seen) != 1 {
		t.Fatalf("%d spans, %d frames, want 1", len(ended), len(seen))
	}
	s := ended[0]
	related := []trace.SpanContext{s.Parent()}
	for _, l := range s.Links() {
		related = append(related, l.SpanContext)
	}
	for _, in := range inputs {
		if !slices.ContainsFunc(related, in.Equal) {
			t.Errorf("the span of the group is not related to %v", in.SpanID())
		}
	}
	if len(related) != 3 || s.SpanContext().TraceID() != s.Parent().TraceID() || !seen[0].Equal(s.SpanContext()) {
		t.Errorf("%d related spans, published under %v", len(related), seen[0].SpanID())
	}
}

// Many inputs at once, a bus that fails now and then, attempts that are repeated:
// what was acknowledged has every event stored, and nothing is made up.
func TestNothingIsLost(t *testing.T) {
	const inputs, window = 200, 16
	c := Defaults()
	c.Memory, c.Linger, c.ThinLinger, c.Idle = 1<<20, 2*time.Millisecond, 4*time.Millisecond, time.Millisecond
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(1, 2))
	b := &bus{flush: func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if r.IntN(50) == 0 {
			return errors.New("connection lost")
		}
		return nil
	}}
	p := start(t, c, window, b)
	want := map[string]string{} // by document
	work := make(chan topology.In[messages.View], inputs)
	for i := range inputs {
		recs := make([]string, 1+r.IntN(100))
		for k := range recs {
			recs[k] = fmt.Sprintf(`{"eventID":"%d-%d","eventSource":"svc%d.x","pad":"%s"}`, i, k, r.IntN(5), strings.Repeat("x", r.IntN(3000)))
			want[recs[k]] = fmt.Sprint(i, " ", k)
		}
		work <- frame(t, trail(0, 0), origin(i), recs...)
	}
	close(work)
	var wg sync.WaitGroup
	for range window {
		wg.Go(func() {
			for msg := range work {
				for {
					ctx, cancel := context.WithCancel(t.Context())
					mu.Lock()
					early := r.IntN(20) == 0
					mu.Unlock()
					if early {
						cancel()
					}
					err := p.Handle(ctx, msg, &topology.Recorder{})
					cancel()
					if err == nil {
						break
					}
				}
			}
		})
	}
	wg.Wait()
	p.Close()
	got := map[string]string{}
	for _, e := range b.events(t) {
		got[e.doc] = e.pull
	}
	for doc, place := range want {
		var i int
		if _, err := fmt.Sscan(place, &i); err != nil {
			t.Fatal(err)
		}
		if got[doc] != string(origin(i).GetPull()) {
			t.Fatalf("event %s is not stored with its origin", place)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d different events are stored, want %d", len(got), len(want))
	}
	if p.grouper.used != 0 || p.grouper.inHand != 0 || p.grouper.flying != 0 || len(p.grouper.open) != 0 {
		t.Errorf("left over: %d bytes, %d inputs, %d groups on their way, %d open", p.grouper.used, p.grouper.inHand, p.grouper.flying, len(p.grouper.open))
	}
}

// Whatever stands in a frame, every record is accounted for.
func FuzzHandle(f *testing.F) {
	seed := func(h messages.Header, recs ...string) { f.Add(frame(f, h, origin(1), recs...).Data) }
	seed(trail(1, 7), record(1, "s3"), "x", `{"eventID":"1"`, record(2, "iam"))
	seed(messages.Header{Source: "q", Format: "json"}, `{"a":1}`, `7`, ``)
	seed(messages.Header{Source: "q", Format: "json", Replay: "r"})
	b := messages.NewBuilder(messages.Header{Source: "q", Format: "json", EventType: "x"})
	b.Add(messages.Event{Origin: b.Origin(origin(1)), Doc: []byte("{}"), Time: 1})
	f.Add(b.Encode(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := messages.DecodeFrame(data)
		if err != nil {
			return
		}
		b := &bus{}
		p := start(t, Defaults(), 1, b)
		rec := &topology.Recorder{}
		if err := p.Handle(t.Context(), topology.In[messages.View]{Value: v, Data: data}, rec); err != nil {
			if fault.ClassOf(err) != fault.Reject {
				t.Fatalf("the frame will come again: %v", err)
			}
			return
		}
		events, refused := len(b.events(t)), len(rec.Quarantined())
		if events+refused != v.Len() {
			t.Fatalf("%d records became %d events and %d bad ones", v.Len(), events, refused)
		}
		if p.grouper.used != 0 {
			t.Fatalf("%d bytes are held after all", p.grouper.used)
		}
	})
}
