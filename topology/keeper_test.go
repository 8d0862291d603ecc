package topology

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

func stream(t testing.TB, b *Bus, name string) jetstream.StreamState {
	t.Helper()
	s, err := b.js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State
}

func streamRow(name string) Stream {
	for _, s := range Flow {
		if s.Name == name {
			return s
		}
	}
	panic(name)
}

func events(n, size int, eventType string) []Message {
	ms := make([]Message, n)
	for i := range ms {
		ms[i] = Message{Subject: EventSubject(eventType), ID: fmt.Sprint(eventType, i), Data: make([]byte, size)}
	}
	return ms
}

// The keeper removes what is older than the stream keeps, up to the slowest
// durable consumer and not further. A consumer whose filter matches nothing, and a
// reader of history, hold nothing back.
func TestKeeperTrimsByAgeUpToTheSlowestConsumer(t *testing.T) {
	b := testBus(t, Limits{})
	ctx := t.Context()
	row := streamRow(Events)
	publish(t, b, events(10, 10, "a.x")...)
	publish(t, b, events(10, 10, "a.y")...)
	later := time.Now().Add(row.Keep + time.Hour)

	for _, c := range []Consumer{
		DeliverConsumer("all", nil, Start{}), DeliverConsumer("none", []string{"no.such.type"}, Start{}), DeliverConsumer("y", []string{"a.y"}, Start{}),
	} {
		if err := b.ensureConsumer(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.trim(ctx, row, later); err != nil {
		t.Fatal(err)
	}
	if s := stream(t, b, Events); s.FirstSeq != 1 {
		t.Fatalf("undelivered events were trimmed up to %d", s.FirstSeq-1)
	}
	take := func(durable string, n int) {
		t.Helper()
		c, err := b.js.Consumer(ctx, Events, durable)
		if err != nil {
			t.Fatal(err)
		}
		batch, err := c.Fetch(n)
		if err != nil {
			t.Fatal(err)
		}
		for m := range batch.Messages() {
			if err := m.DoubleAck(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	take("deliver-all", 20)
	take("deliver-y", 3)
	if err := b.trim(ctx, row, later); err != nil {
		t.Fatal(err)
	}
	if s := stream(t, b, Events); s.FirstSeq != 14 {
		t.Fatalf("first sequence is %d, want 14: behind the third of a.y", s.FirstSeq)
	}
	take("deliver-y", 7)
	if err := b.trim(ctx, row, later); err != nil {
		t.Fatal(err)
	}
	if s := stream(t, b, Events); s.Msgs != 0 {
		t.Fatalf("%d messages stayed, though all was delivered and is old", s.Msgs)
	}
}

// What is young stays, whatever has been delivered: that is the history.
func TestKeeperKeepsYoungHistory(t *testing.T) {
	b := testBus(t, Limits{})
	publish(t, b, events(10, 10, "a.x")...)
	if err := b.trim(t.Context(), streamRow(Events), time.Now()); err != nil {
		t.Fatal(err)
	}
	if s := stream(t, b, Events); s.Msgs != 10 {
		t.Fatalf("%d messages stayed, want 10", s.Msgs)
	}
}

// Above four fifths of its bytes a stream loses its oldest history, and the age of
// what stays is found between the messages.
func TestKeeperTrimsByBytes(t *testing.T) {
	b := testBus(t, Limits{Disk: 100 << 20}) // EVENTS: 46 MB
	row := streamRow(Events)
	publish(t, b, events(40, 1<<20, "a.x")...)
	if err := b.trim(t.Context(), row, time.Now()); err != nil {
		t.Fatal(err)
	}
	s := stream(t, b, Events)
	limit := float64(int64(100<<20) / 1000 * row.Share)
	if used := float64(s.Bytes) / limit; used > trimTo+0.03 || used < trimTo-0.06 {
		t.Fatalf("%.2f of the stream is used, want about %.2f", used, trimTo)
	}
}

// A replay that does not get on, or that nobody can do any more, keeps the log while there
// is room. It does not stop what is live.
func TestKeeperLetsNoReplayFillTheLog(t *testing.T) {
	b := testBus(t, Limits{Disk: 100 << 20}) // EVENTS: 46 MB
	row := streamRow(Events)
	job := addJob(t, b, "replay")
	if _, err := b.Begin(t.Context(), ReplayConsumer(job.ID, "gone", nil, Start{})); err != nil {
		t.Fatal(err)
	}
	publish(t, b, events(38, 1<<20, "a.x")...)
	if err := b.trim(t.Context(), row, time.Now()); err != nil {
		t.Fatal(err)
	}
	if s := stream(t, b, Events); s.FirstSeq != 1 {
		t.Fatalf("what is to be replayed was trimmed up to %d, and there is room", s.FirstSeq-1)
	}
	publish(t, b, events(4, 1<<20, "a.y")...)
	if err := b.trim(t.Context(), row, time.Now()); err != nil {
		t.Fatal(err)
	}
	if s := stream(t, b, Events); s.FirstSeq == 1 {
		t.Fatalf("a replay holds a log of %d bytes, which is full at %d", s.Bytes, (int64(100<<20)/1000)*row.Share)
	}
	if err := b.ensureConsumer(t.Context(), DeliverConsumer("live", nil, Start{})); err != nil {
		t.Fatal(err)
	}
	first := stream(t, b, Events).FirstSeq
	publish(t, b, events(12, 1<<20, "a.z")...)
	if err := b.trim(t.Context(), row, time.Now()); err != nil {
		t.Fatal(err)
	}
	if s := stream(t, b, Events); s.FirstSeq != first {
		t.Errorf("what is live was trimmed up to %d", s.FirstSeq-1)
	}
}

func TestKeeperFindsTheAgeByHalving(t *testing.T) {
	b := testBus(t, Limits{})
	publish(t, b, events(50, 10, "a.x")...)
	var times []time.Time
	if err := b.Read(t.Context(), Span{Subject: "penstock.event.>"}, func(m Stored) error { times = append(times, m.Time); return nil }); err != nil {
		t.Fatal(err)
	}
	s, err := b.js.Stream(t.Context(), Events)
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{1, 17, 49} {
		got, err := b.lastBefore(t.Context(), s.CachedInfo().Config.Name, s.CachedInfo().State, times[cut])
		if err != nil || got != uint64(cut) {
			t.Errorf("before message %d: %d, %v", cut+1, got, err)
		}
	}
}

// Quarantine is never trimmed for want of room.
func TestKeeperLeavesQuarantineAlone(t *testing.T) {
	b := testBus(t, Limits{Disk: 64 << 20})
	for i := range 20 {
		publish(t, b, Message{Subject: QuarantineSubject(Parse, "s"), ID: fmt.Sprint(i), Data: make([]byte, 110<<10)})
	}
	if err := b.trim(t.Context(), streamRow(Quarantine), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if s := stream(t, b, Quarantine); s.Msgs != 20 {
		t.Fatalf("%d entries stayed, want 20", s.Msgs)
	}
}

// One busy lane and seven idle ones: the idle ones' positions move along, so that
// many times the budget of PARSED and UNIQUE flows through.
func TestIdleLanesDoNotHoldTheKeeperBack(t *testing.T) {
	b := testBus(t, Limits{Disk: 64 << 20, Lanes: 8}) // PARSED: 8.7 MB
	run(t, b.Keep)
	run(t, func(ctx context.Context) error { return b.Lanes(ctx, time.Hour, openMap) })
	run(t, func(ctx context.Context) error {
		return Consume(ctx, b, RouteConsumer, raw, func(context.Context, In[[]byte], Outbox) error { return nil })
	})
	frame := testFrame(t, 3, "busy", 20_000) // 320 kB of ids
	const n = 100
	for i := range n {
		publish(t, b, Message{Subject: ParsedSubject(3), ID: fmt.Sprint("busy", i), Data: frame})
	}
	if total := n * len(frame); total < 3*int(64<<20/1000*streamRow(Parsed).Share) {
		t.Fatalf("%d bytes do not exceed the budget", total)
	}
	await(t, "the lane is done", func() bool {
		last, err := b.last(t.Context(), UniqueSubject(3))
		if err != nil || last == nil {
			return false
		}
		input, err := inputOf(last.Header)
		return err == nil && input >= stream(t, b, Parsed).LastSeq-8
	})
}

func TestApplyIsRepeatableAndTellsDifferences(t *testing.T) {
	b := testBus(t, Limits{})
	l := Limits{Disk: 256 << 20}
	diffs, err := b.Diff(t.Context(), l)
	if err != nil || len(diffs) != 0 {
		t.Fatalf("after apply: %v, %v", diffs, err)
	}
	l.Keep = map[string]time.Duration{Events: time.Hour}
	diffs, err = b.Apply(t.Context(), l)
	if err != nil || len(diffs) != 1 || diffs[0] != (Difference{Events, "keep", "72h0m0s", "1h0m0s"}) {
		t.Fatalf("change of keep: %v, %v", diffs, err)
	}
	l.Lanes = 4
	if _, err := b.Apply(t.Context(), l); err == nil {
		t.Fatal("the number of lanes could be changed")
	}
	states, err := b.Show(t.Context())
	if err != nil || len(states) != len(Flow) {
		t.Fatalf("show: %d streams, %v", len(states), err)
	}
}

// covers: DEV-125
func TestFlowSharesTheWholeBudget(t *testing.T) {
	sum := int64(0)
	for _, s := range Flow {
		sum += s.Share
	}
	if sum != 1000 {
		t.Errorf("shares sum to %d per mille", sum)
	}
}

func TestSubjects(t *testing.T) {
	for got, want := range map[string]string{
		NoticeSubject("a b.c"):                       "penstock.notice.a_b_c",
		RecordSubject(""):                            "penstock.record.unknown",
		EventSubject("cloud.aws.cloudtrail.s3"):      "penstock.event.cloud.aws.cloudtrail.s3",
		EventSubject("a..*.>.b"):                     "penstock.event.a.unknown._._.b",
		QuarantineSubject(Parse, "x"):                "penstock.quarantine.parse.x",
		streamOf("penstock.event.a.b"):               Events,
		streamOf("penstock.notice.x"):                Notices,
		streamOf("penstock.nothing"):                 "unknown",
		DeliverConsumer("a b", nil, Start{}).Durable: "deliver-a_b",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// One look at all streams says the same as a look at each.
func TestStreamsAreLookedAtOnce(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	each, own := testConnect(t, e, Options{Name: "a"}), testConnect(t, e, Options{Name: "b", Own: true})
	if _, err := each.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	publish(t, each, Message{Subject: ParsedSubject(1), ID: "a", Data: []byte("x")}, Message{Subject: EventSubject("a.b"), ID: "b", Data: []byte("y")})
	want, err := each.infos(t.Context(), Flow)
	if err != nil {
		t.Fatal(err)
	}
	got, err := own.infos(t.Context(), Flow)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(Flow) || len(want) != len(Flow) {
		t.Errorf("%d and %d streams, want %d", len(got), len(want), len(Flow))
	}
	for name, w := range want {
		g := got[name]
		if g == nil {
			t.Errorf("%s is missing", name)
			continue
		}
		if w.State.Consumers = g.State.Consumers; !reflect.DeepEqual(w.State, g.State) || w.Config.MaxBytes != g.Config.MaxBytes || w.Config.Metadata[metaKeep] != g.Config.Metadata[metaKeep] {
			t.Errorf("%s: %+v, want %+v", name, g, w)
		}
	}
}

// While streams have the same bytes they are looked at less often, and never where that
// is not known.
func TestUnchangedStreamsAreSpared(t *testing.T) {
	b := testConnect(t, testServer(t, t.TempDir(), 256<<20), Options{Name: "own", Own: true})
	if _, err := b.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	publish(t, b, Message{Subject: RecordSubject("s"), ID: "a", Data: []byte("x")})
	var calm idleBytes
	now := time.Now()
	look := func(name string, after time.Duration, want bool) {
		t.Helper()
		now = now.Add(after)
		if got := calm.passOver(b.usedBytes(t.Context()), now); got != want {
			t.Errorf("%s: spared %v", name, got)
		}
	}
	look("the first", 0, false)
	look("nothing new", keeperCalm, true)
	look("nothing new again", keeperCalm, true)
	publish(t, b, Message{Subject: RecordSubject("s"), ID: "b", Data: []byte("y")})
	look("one more", keeperCalm, false)
	look("nothing new", keeperCalm, true)
	look("for long", keeperSure, false)
	b.options.Own = false
	look("a server elsewhere", keeperCalm, false)
	look("a server elsewhere, again", keeperCalm, false)
}
