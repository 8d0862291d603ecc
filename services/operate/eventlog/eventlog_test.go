package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/topology"
)

// world is a bus with an event log.
type world struct {
	t      testing.TB
	bus    *topology.Bus
	frames int
	build  *messages.Builder
}

func newWorld(t testing.TB) *world {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: 4 << 30, SyncInterval: time.Minute, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	bus, err := topology.Connect(t.Context(), server.Connect(topology.Options{Log: quiet}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bus.Close)
	if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 4 << 30}); err != nil {
		t.Fatal(err)
	}
	return &world{t: t, bus: bus, build: messages.NewBuilder(messages.Header{})}
}

// frame stores a frame of n events whose documents are numbered on from first.
func (w *world) frame(eventType, source, key string, first, n int, doc func(i int) string) {
	w.t.Helper()
	b := w.build
	b.Reset(messages.Header{Source: source, Format: "json", EventType: eventType})
	b.Origin(&messages.Origin{Source: source, Pull: messages.NewPull(key), Bucket: "bucket", Key: key})
	for i := first; i < first+n; i++ {
		b.Add(messages.Event{ID: messages.NewID([]byte(fmt.Sprint(i))), Time: int64(i) * 1e9, Account: "123456789012", Record: uint64(i - first), Doc: []byte(doc(i))})
	}
	w.frames++
	out := w.bus.NewOutbox(topology.Route)
	if err := out.Publish(w.t.Context(), topology.Message{Subject: topology.EventSubject(eventType), ID: fmt.Sprint("frame", w.frames), Data: b.Encode(nil)}); err != nil {
		w.t.Fatal(err)
	}
	if err := out.Flush(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func numbered(i int) string { return fmt.Sprintf(`{"n":%d,"name":"Ann-%d"}`, i, i) }

// number is which event it is.
func number(f Found) int { return int(f.Time.UnixNano() / 1e9) }

func numbersOf(page []Found) (all []int) {
	for _, f := range page {
		all = append(all, number(f))
	}
	return all
}

// fill stores 40 frames of 10 events: a.x, a.y and b in turns, of two sources.
func (w *world) fill() {
	for i := range 40 {
		w.frame([]string{"a.x", "a.y", "b"}[i%3], []string{"one", "two"}[i%2], fmt.Sprintf("logs/%02d.gz", i), 10*i, 10, numbered)
	}
}

// covers: pain 14, design section 8
func TestSearch(t *testing.T) {
	w := newWorld(t)
	w.fill()
	log := New(w.bus)
	down := func(from, to, step int) (all []int) { // descending, both ends included
		for i := from; i >= to; i -= step {
			all = append(all, i)
		}
		return all
	}
	ofFrames := func(frames ...int) (all []int) {
		for _, f := range frames {
			all = append(all, down(10*f+9, 10*f, 1)...)
		}
		return all
	}
	every := func(match func(frame int) bool) (frames []int) {
		for f := 39; f >= 0; f-- {
			if match(f) {
				frames = append(frames, f)
			}
		}
		return frames
	}
	for _, tt := range []struct {
		name   string
		events jobs.Events
		want   []int
	}{
		{"all", jobs.Events{}, down(399, 0, 1)},
		{"one type", jobs.Events{Types: []string{"b"}}, ofFrames(every(func(f int) bool { return f%3 == 2 })...)},
		{"a wildcard", jobs.Events{Types: []string{"a.*"}}, ofFrames(every(func(f int) bool { return f%3 != 2 })...)},
		{"two types", jobs.Events{Types: []string{"b", "a.y"}}, ofFrames(every(func(f int) bool { return f%3 != 0 })...)},
		{"a source", jobs.Events{Sources: []string{"two"}}, ofFrames(every(func(f int) bool { return f%2 == 1 })...)},
		{"an object", jobs.Events{Object: "s3://bucket/logs/07.gz"}, ofFrames(7)},
		{"objects", jobs.Events{Object: "s3://bucket/logs/1*"}, ofFrames(down(19, 10, 1)...)},
		{"a text in other letters", jobs.Events{Text: "aNN-123"}, []int{123}},
		{"an expression over the document", jobs.Events{Where: "event.doc.n % 100 == 7"}, []int{307, 207, 107, 7}},
		{"an expression over the event", jobs.Events{Where: `event.time < timestamp("1970-01-01T00:00:03Z")`}, []int{2, 1, 0}},
		{"all together", jobs.Events{Types: []string{"a.>"}, Sources: []string{"one"}, Text: "ann", Where: "event.doc.n < 45", Object: "s3://bucket/*"}, ofFrames(4, 0)[5:]},
		{"nothing", jobs.Events{Types: []string{"c"}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, limit := range []int{1000, 7} {
				var all []Found
				before := Place{}
				for pages := 0; ; pages++ {
					page, err := log.Search(t.Context(), tt.events, before, limit, Budget{Frames: 5, Time: time.Minute})
					if err != nil {
						t.Fatal(err)
					}
					if len(page.Events) > limit {
						t.Fatalf("%d events on a page of %d", len(page.Events), limit)
					}
					all = append(all, page.Events...)
					if !page.More {
						break
					}
					if pages > 500 {
						t.Fatal("there is no end of pages")
					}
					before = page.Next
				}
				if got := numbersOf(all); !slices.Equal(got, tt.want) {
					t.Fatalf("limit %d: got %v, want %v", limit, got, tt.want)
				}
				for _, f := range all {
					if string(f.Doc) != numbered(number(f)) || f.Origin.GetBucket() != "bucket" || f.Stored.IsZero() || f.Account != "123456789012" {
						t.Fatalf("found %+v", f)
					}
				}
			}
		})
	}
	for _, tt := range []struct {
		events jobs.Events
		code   string
	}{
		{jobs.Events{Where: "event.doc.n ="}, "condition.bad_expression"},
		{jobs.Events{Types: []string{"a b"}}, "condition.bad_type_pattern"},
		{jobs.Events{Object: "s3://"}, "selection.bad_object"},
		{jobs.Events{Object: "bucket/key"}, "selection.bad_object"},
	} {
		if _, err := log.Search(t.Context(), tt.events, Place{}, 10, Budget{}); fault.CodeOf(err) != tt.code {
			t.Errorf("%+v: %v, want %s", tt.events, err, tt.code)
		}
		if err := log.Follow(t.Context(), tt.events, 0, nil); fault.CodeOf(err) != tt.code {
			t.Errorf("follow %+v: %v, want %s", tt.events, err, tt.code)
		}
	}
}

// An expression that fails leaves its event out, and that is told.
func TestSearchTellsWhatFailed(t *testing.T) {
	w := newWorld(t)
	w.frame("a", "one", "k", 0, 10, numbered)
	page, err := New(w.bus).Search(t.Context(), jobs.Events{Where: "event.doc.absent == 1"}, Place{}, 5, Budget{})
	if err != nil || page.Failed != 10 || len(page.Events) != 0 {
		t.Errorf("%+v, %v", page, err)
	}
}

func TestSearchSpan(t *testing.T) {
	w := newWorld(t)
	w.frame("a", "one", "k", 0, 10, numbered)
	page, err := New(w.bus).Search(t.Context(), jobs.Events{}, Place{}, 1, Budget{})
	if err != nil || len(page.Events) != 1 {
		t.Fatalf("%+v, %v", page, err)
	}
	first := page.Events[0].Stored
	w.frame("a", "one", "k", 10, 10, numbered)
	for _, tt := range []struct {
		span jobs.Span
		want int
		kept bool
	}{
		{jobs.Span{}, 20, false},
		{jobs.Span{From: first.Add(time.Nanosecond)}, 10, false},
		{jobs.Span{To: first.Add(time.Nanosecond)}, 10, false},
		{jobs.Span{From: first.Add(-time.Hour)}, 20, true},
		{jobs.Span{From: time.Now().Add(time.Hour)}, 0, false},
		{jobs.Span{To: first.Add(-time.Hour)}, 0, false},
	} {
		page, err := New(w.bus).Search(t.Context(), jobs.Events{Span: tt.span}, Place{}, 100, Budget{})
		if err != nil || len(page.Events) != tt.want || page.Kept.IsZero() == tt.kept {
			t.Errorf("%v: %d events, kept %v, %v; want %d", tt.span, len(page.Events), page.Kept, err, tt.want)
		}
	}
}

func TestAtAndByID(t *testing.T) {
	w := newWorld(t)
	w.fill()
	log := New(w.bus)
	f, err := log.At(t.Context(), Place{Sequence: 3, Index: 4})
	if err != nil || number(f) != 24 || string(f.Doc) != numbered(24) {
		t.Errorf("%+v, %v", f, err)
	}
	told := uint64(0)
	g, err := log.ByID(t.Context(), f.ID, jobs.Span{}, func(done, total uint64) { told = max(told, done, total) })
	if err != nil || g.Place != f.Place || g.ID != f.ID || told == 0 || told > 40 {
		t.Errorf("%+v, %v, told %d", g, err, told)
	}
	for _, p := range []Place{{}, {Sequence: 3, Index: 10}, {Sequence: 41}, {Sequence: 1 << 40}} {
		if _, err := log.At(t.Context(), p); !errors.Is(err, ErrGone) {
			t.Errorf("at %s: %v", p, err)
		}
	}
	if _, err := log.ByID(t.Context(), strings.Repeat("0", 32), jobs.Span{}, nil); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	if _, err := log.ByID(t.Context(), "x", jobs.Span{}, nil); fault.CodeOf(err) != "eventlog.bad_id" {
		t.Error(err)
	}
}

func TestPlaces(t *testing.T) {
	for _, p := range []Place{{1, 0}, {1 << 40, 999}} {
		if got, err := ParsePlace(p.String()); err != nil || got != p {
			t.Errorf("%s: %v, %v", p, got, err)
		}
	}
	for _, s := range []string{"1", "1.", ".1", "1.-1", "x.1", "1.1.1", "-1.0"} {
		if _, err := ParsePlace(s); fault.CodeOf(err) != "eventlog.bad_place" {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// covers: design section 8
func TestFollow(t *testing.T) {
	w := newWorld(t)
	w.frame("a", "one", "k", 0, 10, numbered)
	log := New(w.bus)
	end, err := log.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.frame("b", "one", "k", 10, 10, numbered)
	w.frame("a", "two", "k", 20, 10, numbered)
	var all []int
	done := errors.New("done")
	err = log.FollowAfter(t.Context(), jobs.Events{Types: []string{"a"}}, end, 0, func(e *Found, leftOut uint64) error {
		if all = append(all, number(*e)); leftOut != 0 || string(e.Doc) != numbered(number(*e)) {
			t.Errorf("left out %d, %+v", leftOut, e)
		}
		if len(all) == 10 {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) || !slices.Equal(all, []int{20, 21, 22, 23, 24, 25, 26, 27, 28, 29}) {
		t.Errorf("%v, %v", all, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(done)
	if err := log.Follow(ctx, jobs.Events{}, 0, nil); err == nil {
		t.Error("following goes on after its context")
	}
}

// With a rate all is either shown or counted, also when nothing comes behind it.
func TestFollowCountsWhatItLeavesOut(t *testing.T) {
	w := newWorld(t)
	end := Place{Sequence: 1}
	for i := range 20 {
		w.frame("a", "one", "k", 10*i, 10, numbered)
	}
	shown, left := 0, uint64(0)
	done := errors.New("done")
	err := New(w.bus).FollowAfter(t.Context(), jobs.Events{}, end, 15, func(e *Found, leftOut uint64) error {
		if left += leftOut; e != nil {
			shown++
		}
		if shown+int(left) == 200 {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) || shown < 15 || shown > 60 {
		t.Errorf("shown %d, left out %d: %v", shown, left, err)
	}
}

// What is no frame, and a frame that is damaged, hide nothing behind them.
func TestBadFramesHideNothing(t *testing.T) {
	w := newWorld(t)
	w.frame("a", "one", "k", 0, 10, numbered)
	out := w.bus.NewOutbox(topology.Route)
	if err := errors.Join(out.Publish(t.Context(), topology.Message{Subject: topology.EventSubject("a"), ID: "bad", Data: []byte("no frame")}), out.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	w.frame("a", "one", "k", 10, 10, numbered)
	page, err := New(w.bus).Search(t.Context(), jobs.Events{}, Place{}, 100, Budget{})
	if err != nil || len(page.Events) != 20 {
		t.Errorf("%d events, %v", len(page.Events), err)
	}
}

// The first page of a search, in a log of a million events: one that
// finds at once, one of a rare type, one whose text is nowhere, which its budget ends.
func BenchmarkSearch(b *testing.B) {
	w := newWorld(b)
	frames := 1000
	doc := func(i int) string {
		return fmt.Sprintf(`{"n":%d,"eventName":"GetObject","user":{"name":"ann","arn":"arn:aws:iam::123456789012:user/ann"},"requestParameters":{"bucketName":"data","key":"a/b/c/%d"},"filler":"%s"}`, i, i*7919, strings.Repeat("x", 500))
	}
	for i := range frames {
		eventType := "cloud.aws.cloudtrail.s3"
		if i == 10 {
			eventType = "rare"
		}
		w.frame(eventType, "one", fmt.Sprint(i), 1000*i, 1000, doc)
	}
	for _, bb := range []struct {
		name   string
		events jobs.Events
	}{
		{"newest", jobs.Events{}},
		{"rare", jobs.Events{Types: []string{"rare"}}},
		{"nowhere", jobs.Events{Text: "nowhere to be found"}},
		{"where", jobs.Events{Where: "event.doc.n == 5"}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			var page Page
			for b.Loop() {
				var err error
				if page, err = New(w.bus).Search(b.Context(), bb.events, Place{}, 50, Budget{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(page.Frames), "frames")
			b.ReportMetric(float64(len(page.Events)), "found")
		})
	}
	b.Run("id", func(b *testing.B) {
		id := messages.NewID([]byte("500000")).String()
		for b.Loop() {
			if _, err := New(w.bus).ByID(b.Context(), id, jobs.Span{}, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
