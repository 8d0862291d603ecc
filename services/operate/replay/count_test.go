package replay

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/topology"
)

// testLog is a bus with its streams. disk in bytes.
func testLog(t testing.TB, disk int64) *topology.Bus {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: disk, SyncInterval: time.Minute, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	bus, err := topology.Connect(t.Context(), server.Connect(topology.Options{Name: "test", Log: quiet}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bus.Close)
	if _, err := bus.Apply(t.Context(), topology.Limits{Disk: disk}); err != nil {
		t.Fatal(err)
	}
	return bus
}

// frame is an encoded frame of n events; user is in each document.
func frame(source, eventType, key, user string, n int) []byte {
	b := messages.NewBuilder(messages.Header{Source: source, Format: "json", EventType: eventType})
	origin := b.Origin(&messages.Origin{Pull: messages.NewPull("test", source, key), Source: source, Bucket: "logs", Key: key})
	for i := range n {
		b.Add(messages.Event{ID: messages.NewID(fmt.Appendf(nil, "%s%s%d", source, key, i)), Time: int64(i + 1), Origin: origin, Record: uint64(i), Doc: fmt.Appendf(nil, `{"n":%d,"user":%q,"pad":"xxxxx"}`, i, user)})
	}
	return b.Encode(nil)
}

// log stores a frame as route does, or as an older one did.
func store(t testing.TB, bus *topology.Bus, id, source, eventType string, data []byte, events, bytes int) {
	t.Helper()
	out := bus.NewOutbox(topology.Route)
	if err := out.Publish(t.Context(), topology.Message{Subject: topology.EventSubject(eventType), ID: id, Data: data, Events: events, Bytes: bytes, Source: source}); err != nil {
		t.Fatal(err)
	}
	if err := out.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// covers: pain 4, design section 6
func TestCount(t *testing.T) {
	bus := testLog(t, 256<<20)
	store(t, bus, "1", "s", "a.b", frame("s", "a.b", "k1", "ann", 10), 10, 300)
	store(t, bus, "2", "s", "a.c", frame("s", "a.c", "k2", "bob", 20), 20, 600)
	store(t, bus, "3", "other", "a.b", frame("other", "a.b", "k3", "ann", 30), 0, 0) // by an older penstock
	if err := publishAgain(t, bus); err != nil {
		t.Fatal(err)
	}
	_, middle, err := bus.History(topology.Events, nil).Pending(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		events jobs.Events
		lens   Lens
		want   uint64
		code   string
	}{
		{"all", jobs.Events{}, Lens{}, 60, ""},
		{"a type", jobs.Events{Types: []string{"*.b"}}, Lens{}, 40, ""},
		{"a source", jobs.Events{Sources: []string{"other"}}, Lens{}, 30, ""},
		{"an object", jobs.Events{Object: "s3://logs/k2"}, Lens{}, 20, ""},
		{"objects", jobs.Events{Object: "s3://logs/k*"}, Lens{}, 60, ""},
		{"an expression", jobs.Events{Where: `event.doc.user == "ann" && event.doc.n < 5`}, Lens{}, 10, ""},
		{"a text", jobs.Events{Text: "BOB"}, Lens{}, 20, ""},
		{"from", jobs.Events{Span: jobs.Span{From: middle}}, Lens{}, 50, ""},
		{"to", jobs.Events{Span: jobs.Span{To: middle}}, Lens{}, 10, ""},
		{"from before all", jobs.Events{Span: jobs.Span{From: middle.Add(-time.Hour)}}, Lens{}, 60, ""},
		{"after all", jobs.Events{Span: jobs.Span{From: time.Now().Add(-time.Nanosecond)}}, Lens{}, 0, ""},
		{"what the destination has", jobs.Events{Types: []string{"a.>"}}, Lens{Types: []string{"*.b"}, Where: `event.doc.n % 2 == 0`}, 20, ""},
		{"where the destination's expression fails", jobs.Events{}, Lens{Where: `event.doc.none == 1`}, 60, ""},
		{"what it has not", jobs.Events{Types: []string{"x.>"}}, Lens{Types: []string{"a.>"}}, 0, "replay.no_such_types"},
		{"a malformed expression", jobs.Events{Where: `event.type ==`}, Lens{}, 0, "condition.bad_expression"},
		{"a span that is none", jobs.Events{Span: jobs.Span{From: middle, To: middle}}, Lens{}, 0, "replay.bad_span"},
		{"the future", jobs.Events{Span: jobs.Span{From: time.Now().Add(time.Hour)}}, Lens{}, 0, "replay.bad_span"},
	} {
		c, err := CountFor(t.Context(), bus, tt.events, tt.lens, nil)
		if fault.CodeOf(err) != tt.code && (err != nil || tt.code != "") || c.Events != tt.want {
			t.Errorf("%s: %d events, want %d: %v", tt.name, c.Events, tt.want, err)
		}
		sum := uint64(0)
		for _, n := range c.ByType {
			sum += n
		}
		if sum != c.Events || c.Gone != nil || tt.want > 0 && (c.Bytes == 0 || c.Frames == 0 || c.First.IsZero() || c.Last.Before(c.First)) {
			t.Errorf("%s: %+v", tt.name, c)
		}
	}
	if _, err := CountFor(t.Context(), bus, jobs.Events{Where: "event.type =! 'a'"}, Lens{}, nil); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("an expression's place is not told: %v", err)
	}
	c, _ := Count(t.Context(), bus, jobs.Events{Where: `event.doc.none == 1`}, nil)
	if c.Events != 0 || c.Failed != 60 {
		t.Errorf("an expression that fails: %+v", c)
	}
}

// publishAgain stores what is for one destination alone, which no count sees.
func publishAgain(t testing.TB, bus *topology.Bus) error {
	t.Helper()
	out := bus.NewOutbox(topology.Route)
	if err := out.Publish(t.Context(), topology.Message{Subject: topology.AgainSubject("d"), ID: "again", Data: frame("s", "a.b", "k9", "x", 5), Events: 5, Bytes: 5, Source: "s"}); err != nil {
		return err
	}
	return out.Flush(t.Context())
}

// What the keeper has trimmed of a span is said, with its bounds.
func TestCountOfWhatIsGone(t *testing.T) {
	bus := testLog(t, 256<<20)
	before := time.Now()
	for i := range 4 {
		store(t, bus, fmt.Sprint(i), "s", "a.b", frame("s", "a.b", fmt.Sprint(i), "ann", 10), 10, 300)
	}
	if err := bus.Trim(t.Context(), topology.Events, 3); err != nil {
		t.Fatal(err)
	}
	_, oldest, err := bus.History(topology.Events, nil).Pending(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Count(t.Context(), bus, jobs.Events{Span: jobs.Span{From: before}}, nil)
	if err != nil || c.Events != 20 || c.Gone == nil || !c.Gone.From.Equal(before) || !c.Gone.To.Equal(oldest) || !strings.Contains(c.Gone.String(), "is gone") {
		t.Errorf("%+v %v, %v", c, c.Gone, err)
	}
	c, err = Count(t.Context(), bus, jobs.Events{Span: jobs.Span{From: before, To: before.Add(time.Nanosecond)}}, nil)
	if err != nil || c.Events != 0 || c.Gone == nil || !c.Gone.To.Equal(before.Add(time.Nanosecond)) {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err = Count(t.Context(), bus, jobs.Events{Span: jobs.Span{From: oldest}}, nil); err != nil || c.Gone != nil || c.Events != 20 {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err = Count(t.Context(), bus, jobs.Events{}, nil); err != nil || c.Gone != nil || c.Events != 20 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := Start(t.Context(), bus, jobs.Replay{Destination: "d", Events: jobs.Events{Span: jobs.Span{To: before}}}, "op", "command", ""); fault.CodeOf(err) != "replay.empty" {
		t.Error(err)
	}
	// A replay is written down before it is made, and has the log kept from its first event on.
	spec := jobs.Replay{Destination: "d"}
	c.Into(&spec)
	j, err := Start(t.Context(), bus, spec, "op", "command", "why")
	if err != nil || j.Progress.Total != 20 || j.Needs != "deliver d" {
		t.Fatalf("%+v, %v", j, err)
	}
	var deeds []topology.Deed
	if err := bus.ReadAudit(t.Context(), time.Time{}, func(d topology.Deed) bool { deeds = append(deeds, d); return true }); err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(deeds, func(d topology.Deed) bool { return d.Job == j.ID }); i < 0 || deeds[i].Count != 20 || deeds[i].By != "op" || deeds[i].Reason != "why" || deeds[i].Action != "replay.start" {
		t.Errorf("%+v", deeds)
	}
	if p, err := bus.Replayed(t.Context(), j.ID, spec.Until); err != nil || !p.Found || !p.Left {
		t.Errorf("%+v, %v", p, err)
	}
}

// cloudFrame has documents of 1.3 KB that compress as those of CloudTrail do, by 4.
func cloudFrame(n int) []byte {
	b := messages.NewBuilder(messages.Header{Source: "s", Format: "json", EventType: "cloud.aws.cloudtrail.iam"})
	origin := b.Origin(&messages.Origin{Pull: messages.NewPull("test"), Source: "s", Bucket: "logs", Key: "k"})
	source := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		var noise [150]byte
		for k := range noise {
			noise[k] = byte(source.Uint32())
		}
		b.Add(messages.Event{ID: messages.NewID(noise[:]), Time: int64(i + 1), Origin: origin, Record: uint64(i), Doc: fmt.Appendf(nil, `{"n":%d,"noise":"%x","pad":%q}`, i, noise, strings.Repeat("pad", 320))})
	}
	return b.Encode(nil)
}

// BenchmarkDryRun counts 10 million events in the log: 10,000 frames of 1,000.
func BenchmarkDryRun(b *testing.B) {
	const frames, each = 10_000, 1000
	bus := testLog(b, 8<<30)
	data := cloudFrame(each)
	out := bus.NewOutbox(topology.Route)
	for i := range frames {
		if err := out.Publish(b.Context(), topology.Message{Subject: topology.EventSubject("cloud.aws.cloudtrail.iam"), ID: fmt.Sprint(i), Data: data, Events: each, Bytes: each * 1230, Source: "s"}); err != nil {
			b.Fatal(err)
		}
	}
	if err := out.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer b.ReportMetric(float64(len(data)), "B/frame")
	for b.Loop() {
		c, err := Count(b.Context(), bus, jobs.Events{}, nil)
		if err != nil || c.Events != frames*each {
			b.Fatalf("%d events, %v", c.Events, err)
		}
	}
}
