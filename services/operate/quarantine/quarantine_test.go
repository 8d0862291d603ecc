package quarantine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/topology"
)

func object(key, etag string) *messages.Origin {
	return &messages.Origin{Pull: messages.NewPull(key), Source: "s", Bucket: "b", Key: key, Etag: etag}
}

// Where entries go, and why some cannot.
func TestWays(t *testing.T) {
	const holds = "HOLDS_"
	tests := []struct {
		stage, holds string
		change       func(*messages.Quarantine)
		want         way
		why          string
	}{
		{"ingest", "SQS_BODY", nil, asked, ""},
		{"ingest", "SQS_BODY", func(q *messages.Quarantine) { q.Cut = true }, blocked, "only the first"},
		{"ingest", "FRAME", nil, records, ""},
		{"fetch", "NOTICE", nil, notice, ""},
		{"fetch", "BYTES", nil, notice, ""},
		{"fetch", "BYTES", func(q *messages.Quarantine) { q.Cut = true }, notice, ""},
		{"fetch", "BYTES", func(q *messages.Quarantine) { q.Origin = nil }, blocked, "which object"},
		{"parse", "RECORD", nil, records, ""},
		{"parse", "RECORD", func(q *messages.Quarantine) { q.Cut = true }, notice, ""},
		{"parse", "RECORD", func(q *messages.Quarantine) { q.Cut, q.Origin = true, nil }, blocked, "only the first"},
		{"parse", "FRAME", nil, frame, ""},
		{"dedupe", "FRAME", func(q *messages.Quarantine) { q.Subject = "penstock.parsed.3" }, frame, ""},
		{"dedupe", "FRAME", nil, blocked, "which lane"},
		{"route", "EVENT", nil, records, ""},
		{"route", "EVENT", func(q *messages.Quarantine) { q.EventId, q.EventType = make([]byte, 16), "x" }, parsed, ""},
		{"route", "FRAME", nil, parsed, ""},
		{"deliver", "EVENT", func(q *messages.Quarantine) { q.Destination = "d" }, again, ""},
		{"deliver", "FRAME", func(q *messages.Quarantine) { q.Destination = "d" }, again, ""},
		{"deliver", "FRAME", nil, blocked, "which destination"},
		{"future", "EVENT", nil, blocked, "no stage"},
	}
	for _, tt := range tests {
		q := &messages.Quarantine{
			Id: "x", Stage: tt.stage, Holds: messages.Quarantine_Holds(messages.Quarantine_Holds_value[holds+tt.holds]), Origin: object("k", ""),
		}
		if tt.change != nil {
			tt.change(q)
		}
		got, why := wayOf(q)
		if got != tt.want || (why == "") != (tt.why == "") || !strings.Contains(why, tt.why) || (got == blocked) != (got.words(q) == "") {
			t.Errorf("%s %s: %d %q, words %q", tt.stage, tt.holds, got, why, got.words(q))
		}
	}
}

// One reading of an object serves all that was refused of it, as far as it fits one notice;
// what had not been read takes all of it.
func TestGroups(t *testing.T) {
	record := func(key string, n uint64, size int) stored {
		return stored{&messages.Quarantine{
			Id: fmt.Sprint(key, n), Stage: "fetch", Source: "s", Code: "framing.bad_json", Origin: object(key, "e"), Format: "json", Record: n, Records: 1,
			Holds: messages.Quarantine_HOLDS_BYTES, Payload: make([]byte, size),
		}, n, time.Time{}}
	}
	whole := stored{&messages.Quarantine{Id: "w", Stage: "fetch", Code: "fetch.access_denied", Origin: object("a", ""), Holds: messages.Quarantine_HOLDS_NOTICE}, 9, time.Time{}}
	tail := stored{&messages.Quarantine{
		Id: "t", Stage: "fetch", Code: "fetch.bomb", Origin: object("a", "e"), Format: "json", Record: 40, Holds: messages.Quarantine_HOLDS_NOTICE,
		Payload: messages.EncodeNotice(&messages.Notice{Origin: object("a", "e")}),
	}, 10, time.Time{}}
	var got []string
	for _, g := range groups([]stored{
		record("a", 1, 10), record("b", 2, 10), record("a", 3, 10), whole, tail, record("a", 4, noticeBytes), record("a", 5, 10),
	}) {
		ids := make([]string, len(g.entries))
		for i, q := range g.entries {
			ids[i] = q.GetId()
		}
		got = append(got, fmt.Sprintf("%s: %d parts %v", strings.Join(ids, " "), len(g.parts), g.allow(true)))
	}
	want := []string{"a1 a3 t: 3 parts [fetch.bomb]", "b2: 1 parts []", "w: 0 parts []", "a4: 1 parts []", "a5: 1 parts []"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// A reading of parts that ends early leaves those behind its end.
func TestRest(t *testing.T) {
	parts := []*messages.Part{{Record: 1, Records: 2}, {Record: 5, Records: 4}, {Record: 20}}
	for at, want := range map[uint64]string{0: "1+2 5+4 20+0", 2: "2+1 5+4 20+0", 3: "5+4 20+0", 7: "7+2 20+0", 9: "20+0", 30: "30+0"} {
		var got []string
		for _, p := range rest(parts, at) {
			got = append(got, fmt.Sprintf("%d+%d", p.GetRecord(), p.GetRecords()))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("behind %d: %v, want %s", at, got, want)
		}
	}
}

// What of an object is read again: what went on before is not, as dedupe knows the last day
// only.
// covers: pain 3
func TestPartsOf(t *testing.T) {
	wanted := messages.EncodeNotice(&messages.Notice{Origin: object("k", "e"), Parts: []*messages.Part{{Record: 3, Records: 1}, {Record: 9, Records: 1}}})
	tests := []struct {
		code   string
		record uint64
		holds  messages.Quarantine_Holds
		notice []byte
		want   string
	}{
		{"framing.bad_json", 7, messages.Quarantine_HOLDS_BYTES, nil, "7+1"},
		{"fetch.truncated", 7, messages.Quarantine_HOLDS_BYTES, nil, "7+0"},
		{"fetch.access_denied", 0, messages.Quarantine_HOLDS_NOTICE, nil, ""},
		{"fetch.bomb", 7, messages.Quarantine_HOLDS_NOTICE, nil, "7+0"},
		{"fetch.too_many_bad_records", 5, messages.Quarantine_HOLDS_NOTICE, wanted, "9+1"},
		{"fetch.parquet_unsupported", 7, messages.Quarantine_HOLDS_NOTICE, nil, "7+0"},
		{"aws.no_such_key", 7, messages.Quarantine_HOLDS_NOTICE, nil, "7+0"},
		{"aws.no_such_key", 5, messages.Quarantine_HOLDS_NOTICE, wanted, "9+1"},
		{"aws.no_such_key", 7, messages.Quarantine_HOLDS_BYTES, nil, "7+0"},
		{"aws.no_such_key", 0, messages.Quarantine_HOLDS_NOTICE, wanted, "3+1 9+1"},
		{"fetch.panic", 7, messages.Quarantine_HOLDS_NOTICE, nil, ""},
		{"fetch.panic", 7, messages.Quarantine_HOLDS_NOTICE, wanted, "3+1 9+1"},
	}
	for _, tt := range tests {
		payload := []byte("bytes")
		if tt.holds == messages.Quarantine_HOLDS_NOTICE {
			if payload = tt.notice; payload == nil {
				payload = messages.EncodeNotice(&messages.Notice{Origin: object("k", "e")})
			}
		}
		format := "json"
		if tt.record == 0 {
			format = "" // it was not read
		}
		var got []string
		for _, p := range partsOf(&messages.Quarantine{
			Stage: "fetch", Code: tt.code, Record: tt.record, Records: 1, Holds: tt.holds, Payload: payload, Origin: object("k", "e"), Format: format,
		}) {
			got = append(got, fmt.Sprintf("%d+%d", p.GetRecord(), p.GetRecords()))
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s at %d: %v, want %q", tt.code, tt.record, got, tt.want)
		}
	}
}

// Every limit that can be lifted is one that some stage has.
func TestLiftable(t *testing.T) {
	for _, code := range liftable {
		if strings.HasPrefix(code, "fetch.") || strings.HasPrefix(code, "ingest.") || strings.HasPrefix(code, "framing.") {
			continue
		}
		t.Errorf("%s is of no stage that knows how to lift it", code)
	}
	if Liftable("bus.message_too_large") {
		t.Error("what the bus carries cannot be lifted")
	}
}

func testBus(t testing.TB) *topology.Bus {
	t.Helper()
	e, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: 1 << 30, SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Stop)
	b, err := topology.Connect(t.Context(), e.Connect(topology.Options{Name: "test"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if _, err := b.Apply(t.Context(), topology.Limits{Disk: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	return b
}

// Pages go from the newest to the oldest and miss nothing, filters narrow, facets count,
// and an id may be shortened as long as it is clear.
// covers: pain 3
func TestLook(t *testing.T) {
	b := testBus(t)
	const n = 1300 // more than one stretch
	var g errgroup.Group
	g.SetLimit(32)
	for i := range n {
		q := &messages.Quarantine{
			Source: fmt.Sprint("s", i%3), Code: fmt.Sprint("parse.c", i%5), Reason: fmt.Sprint("reason ", i), Origin: object(fmt.Sprint("k", i), ""),
			Records: 1, Payload: fmt.Appendf(nil, "PayLoad %d.", i), Time: time.Unix(int64(1e9+i*3600), 0).UnixNano(), Attempts: 1,
		}
		if i%10 == 0 {
			q.Code = "fetch.bomb"
		}
		g.Go(func() error { return b.NewOutbox(topology.Parse).Quarantine(t.Context(), q) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	var last uint64
	for after := uint64(0); ; {
		page, err := List(t.Context(), b, Filter{}, 77, after)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Entries {
			if seen[e.ID] || last > 0 && e.Sequence >= last {
				t.Fatalf("entry %d after %d", e.Sequence, last)
			}
			seen[e.ID], last = true, e.Sequence
		}
		if !page.More {
			break
		}
		after = page.Next
	}
	if len(seen) != n {
		t.Errorf("%d of %d entries", len(seen), n)
	}
	for _, tt := range []struct {
		f    Filter
		want int
	}{
		{Filter{Source: "s1"}, 433},
		{Filter{Code: "fetch.bomb"}, 130},
		{Filter{Stage: "parse", Source: "s2", Code: "parse.c1"}, 86},
		{Filter{Stage: "route"}, 0},
		{Filter{Text: "payload 7."}, 1},
		{Filter{Text: "REASON 12"}, 111},
		{Filter{Destination: "x"}, 0},
		{Filter{Span: span(1e9, 1e9+3600*10)}, 10},
	} {
		f, err := FacetsOf(t.Context(), b, tt.f)
		if err != nil || int(f.Entries) != tt.want || int(f.Records) != tt.want {
			t.Errorf("%+v: %d entries, %v, want %d", tt.f, f.Entries, err, tt.want)
		}
	}
	f, err := FacetsOf(t.Context(), b, Filter{})
	if err != nil || len(f.BySource) != 3 || f.ByCode[0].Name != "parse.c1" || f.Liftable != 130 || len(f.ByDay) != 55 || f.ByDay[0].Name != "2001-09-09" || f.Until != n+1 {
		t.Errorf("facets %+v, %v", f, err)
	}
	page, _ := List(t.Context(), b, Filter{Text: "payload 700."}, 1, 0)
	e, err := Get(t.Context(), b, page.Entries[0].ID[:12])
	if err != nil || string(e.Payload) != "PayLoad 700." || e.ID != page.Entries[0].ID {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := Get(t.Context(), b, e.ID[:1]); fault.CodeOf(err) != errAmbiguous.Code {
		t.Errorf("an id that fits several: %v", err)
	}
	var out bytes.Buffer
	if n, err := Export(t.Context(), b, Filter{Code: "fetch.bomb"}, &out); n != 130 || err != nil {
		t.Errorf("exported %d, %v", n, err)
	}
	var first Entry
	if err := json.NewDecoder(&out).Decode(&first); err != nil || !strings.HasSuffix(string(first.Payload), "0.") {
		t.Errorf("exported %+v, %v", first, err)
	}
	if _, err := StartRedrive(t.Context(), b, Redrive{Entries: Filter{Code: "none"}}, "x", "command", ""); fault.CodeOf(err) != ErrNothing.Code {
		t.Errorf("nothing fits: %v", err)
	}
	if _, err := StartDiscard(t.Context(), b, Redrive{}, "x", "command", "  "); fault.CodeOf(err) != errNoReason.Code {
		t.Errorf("no reason: %v", err)
	}
}

// Who dies between the publishing and the deleting has what is left done by the next, and
// nothing goes to a destination twice, though the server has forgotten the ids.
// covers: pain 3, design section 6
func TestDeathBeforeTheDeleting(t *testing.T) {
	b := testBus(t)
	if _, err := b.Begin(t.Context(), topology.DeliverConsumer("out", nil, topology.Start{})); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Apply(t.Context(), topology.Limits{Disk: 1 << 30, DuplicateWindow: 100 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	const n = 20
	for i := range n {
		id := messages.NewID([]byte{byte(i)})
		if err := b.NewOutbox(topology.Deliver).Quarantine(t.Context(), &messages.Quarantine{
			Code: "deliver.http_rejected", Source: "s", Origin: object(fmt.Sprint(i), ""), Destination: "out", EventId: id[:], EventType: "x", EventTime: 1,
			Format: "json", Holds: messages.Quarantine_HOLDS_EVENT, Records: 1, Payload: []byte("{}"),
		}); err != nil {
			t.Fatal(err)
		}
	}
	deaths := 0
	published = func() error {
		if deaths++; deaths == 1 {
			<-time.After(300 * time.Millisecond) // the server forgets meanwhile: its clock is no fake
			return errDied.New(nil, "die")
		}
		return nil
	}
	defer func() { published = func() error { return nil } }()
	job, err := StartRedrive(t.Context(), b, Redrive{}, "x", "command", "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	var worker errgroup.Group
	worker.Go(func() error { return b.RunJobs(ctx, Workers(b)[0]) })
	b.FollowJobs(ctx, func(all []topology.Job) {
		if job = all[0]; job.Over() {
			stop()
		}
	})
	if err := worker.Wait(); err != nil || job.State != topology.JobDone || job.Progress.Failed != 0 || deaths != 2 {
		t.Fatalf("job %+v, %d deaths, %v", job, deaths, err)
	}
	sent := map[string]int{}
	if err := b.Read(t.Context(), topology.Span{Subject: topology.AgainSubject("out")}, func(m topology.Stored) error {
		v, err := messages.DecodeFrame(m.Data)
		if err == nil {
			sent[v.ID(0).String()]++
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for id, k := range sent {
		if k != 1 {
			t.Errorf("event %s was sent %d times", id, k)
		}
	}
	if f, err := FacetsOf(t.Context(), b, Filter{}); err != nil || f.Entries != 0 || len(sent) != n {
		t.Errorf("%d entries are left, %d events were sent, %v", f.Entries, len(sent), err)
	}
}

var errDied = fault.Define("quarantine.test_died", fault.Retry, "none: it is a test")

func span(from, to int64) (s jobs.Span) {
	s.From, s.To = time.Unix(from, 0), time.Unix(to, 0)
	return s
}

// How fast entries are counted, listed and discarded.
func BenchmarkQuarantine(b *testing.B) {
	bus := testBus(b)
	var g errgroup.Group
	g.SetLimit(32)
	const n = 20_000
	for i := range n {
		g.Go(func() error {
			return bus.NewOutbox(topology.Parse).Quarantine(b.Context(), &messages.Quarantine{
				Source: "s", Code: "parse.bad_json", Reason: "a reason of some length, as they are", Origin: object(fmt.Sprint(i), "e"), Records: 1,
				Payload: make([]byte, 1000),
			})
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	b.Run("facets", func(b *testing.B) {
		for b.Loop() {
			if f, err := FacetsOf(b.Context(), bus, Filter{}); err != nil || f.Entries != n {
				b.Fatal(f.Entries, err)
			}
		}
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	})
	b.Run("page", func(b *testing.B) {
		for b.Loop() {
			if p, err := List(b.Context(), bus, Filter{}, 50, 0); err != nil || len(p.Entries) != 50 {
				b.Fatal(len(p.Entries), err)
			}
		}
	})
	b.Run("discard", func(b *testing.B) {
		ctx, stop := context.WithCancel(b.Context())
		defer stop()
		var worker errgroup.Group
		worker.Go(func() error { return bus.RunJobs(ctx, Workers(bus)[0]) })
		for b.Loop() {
			j, err := StartDiscard(b.Context(), bus, Redrive{}, "b", "command", "a measurement")
			if err != nil {
				b.Skip("all are gone")
			}
			bus.FollowJobs(ctx, func(all []topology.Job) {
				if all[0].ID == j.ID && all[0].Over() {
					stop()
				}
			})
		}
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		_ = worker.Wait()
	})
}
