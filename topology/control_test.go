package topology

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// What an operator says is there for all processes, over restarts, and those that
// listen hear of each change.
func TestControls(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	a, b := testConnect(t, e, Options{Name: "a"}), testConnect(t, e, Options{Name: "b"})
	if _, err := a.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	if said, err := a.Controls(t.Context()); err != nil || len(said) != 0 {
		t.Fatalf("nobody has said anything: %v, %v", said, err)
	}
	var mu sync.Mutex
	var heard []map[string]Control
	run(t, func(ctx context.Context) error {
		b.FollowControls(ctx, func(said map[string]Control) { mu.Lock(); defer mu.Unlock(); heard = append(heard, said) })
		return nil
	})
	last := func() map[string]Control {
		mu.Lock()
		defer mu.Unlock()
		if len(heard) == 0 {
			return nil
		}
		return heard[len(heard)-1]
	}
	await(t, "it is known that nothing was said", func() bool { return last() != nil })
	pause := Control{Destination: "siem 1", Paused: true, By: "op@host", At: time.Unix(1_700_000_000, 0).UTC(), Reason: "move"}
	if err := a.SetControl(t.Context(), pause); err != nil {
		t.Fatal(err)
	}
	await(t, "the other hears of the pause", func() bool { return reflect.DeepEqual(last()["siem 1"], pause) })
	if said, err := b.Controls(t.Context()); err != nil || !reflect.DeepEqual(said, map[string]Control{"siem 1": pause}) {
		t.Errorf("said: %v, %v", said, err)
	}
	resume := Control{Destination: "siem 1", By: "op@host", At: pause.At.Add(time.Hour)}
	if err := a.SetControl(t.Context(), resume); err != nil {
		t.Fatal(err)
	}
	await(t, "the other hears that it goes on", func() bool { return reflect.DeepEqual(last()["siem 1"], resume) })
	if err := a.ForgetControl(t.Context(), "siem 1"); err != nil {
		t.Fatal(err)
	}
	await(t, "it is forgotten", func() bool { return len(last()) == 0 })
	if err := a.ForgetControl(t.Context(), "never was"); err != nil {
		t.Errorf("forget what was never said: %v", err)
	}
}

// A question reaches all that answer it, and one that nobody answers costs no time.
func TestAsk(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	a, b := testConnect(t, e, Options{Name: "a"}), testConnect(t, e, Options{Name: "b"})
	await(t, "that nobody is there is known before an answer could be late", func() bool {
		began := time.Now()
		if answers, err := a.Ask(t.Context(), "who"); err != nil || len(answers) != 0 {
			t.Fatalf("nobody is there: %q, %v", answers, err)
		}
		return time.Since(began) < askFirst
	})
	for name, bus := range map[string]*Bus{"a": a, "b": b} {
		run(t, func(ctx context.Context) error { return bus.Answer(ctx, "who", func() []byte { return []byte(name) }) })
	}
	await(t, "both answer", func() bool {
		answers, err := a.Ask(t.Context(), "who")
		var said []string
		for _, x := range answers {
			said = append(said, string(x))
		}
		slices.Sort(said)
		return err == nil && slices.Equal(said, []string{"a", "b"})
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Ask(ctx, "who"); err == nil {
		t.Error("asked beyond the end of ctx")
	}
}

// A reader begins where its Start says, and keeps that.
func TestReadersBeginWhereTheyAreTold(t *testing.T) {
	b := testBus(t, Limits{})
	empty, err := b.Begin(t.Context(), DeliverConsumer("empty", nil, Start{Time: time.Now().Add(-time.Hour)}))
	if err != nil || empty != 1 {
		t.Errorf("an empty log begins at %d, %v", empty, err)
	}
	var times []time.Time
	for i := range 6 {
		publish(t, b, Message{Subject: EventSubject([]string{"a.x", "b"}[i%2]), ID: fmt.Sprint(i), Data: []byte("x")})
		if err := b.Read(t.Context(), Span{Subject: "penstock.event.>", FromSequence: uint64(i + 1)}, func(m Stored) error {
			times = append(times, m.Time)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := b.js.Stream(t.Context(), Events)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSequence(3)); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		start Start
		want  uint64
	}{
		"oldest": {Start{}, 3}, "now": {Start{Now: true}, 7}, "at": {Start{Time: times[4]}, 5}, "between": {Start{Time: times[4].Add(-1)}, 5},
		"after": {Start{Time: times[4].Add(1)}, 6}, "ancient": {Start{Time: times[0].Add(-time.Hour)}, 3}, "future": {Start{Time: time.Now().Add(time.Hour)}, 7},
	} {
		// The second time it is there, and somebody else asks for another place.
		for _, start := range []Start{tt.start, {}, {Now: true}} {
			if first, err := b.Begin(t.Context(), DeliverConsumer(name, nil, start)); err != nil || first != tt.want {
				t.Errorf("%s begins at %d, %v; want %d", name, first, err, tt.want)
			}
		}
	}
}

// The readers tell how far behind they are, and one that is removed holds nothing.
// covers: DEV-133
func TestReaders(t *testing.T) {
	b := testBus(t, Limits{})
	for _, c := range []Consumer{DeliverConsumer("all", nil, Start{}), DeliverConsumer("one", []string{"b", "c.>", "c.d"}, Start{}), DeliverConsumer("none", []string{"z"}, Start{})} {
		if _, err := b.Begin(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, b, events(3, 1, "a")...)
	publish(t, b, events(2, 1, "b")...)
	readers, err := b.Readers(t.Context())
	if err != nil || len(readers) != 3 {
		t.Fatalf("%+v, %v", readers, err)
	}
	at := map[string]Reader{}
	for _, r := range readers {
		at[r.Destination] = r
	}
	stored := map[uint64]time.Time{}
	if err := b.Read(t.Context(), Span{Subject: "penstock.event.>"}, func(m Stored) error { stored[m.Sequence] = m.Time; return nil }); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]Reader{
		"all": {Destination: "all", Pending: 5, Oldest: stored[1], First: 1}, "one": {Destination: "one", Pending: 2, Oldest: stored[4], First: 1}, "none": {Destination: "none", First: 1},
	} {
		got := at[name]
		if !got.Oldest.Equal(want.Oldest) {
			t.Errorf("%s: oldest %v, want %v", name, got.Oldest, want.Oldest)
		}
		if got.Oldest = want.Oldest; got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	for range 2 { // what is gone can be removed again
		if err := b.RemoveReader(t.Context(), "all"); err != nil {
			t.Fatal(err)
		}
	}
	if readers, err = b.Readers(t.Context()); err != nil || len(readers) != 2 {
		t.Errorf("%+v, %v", readers, err)
	}
}

// Other types on a reader that is there take effect at its place in the log.
func TestReadersChangeTheirTypes(t *testing.T) {
	b := testBus(t, Limits{})
	if _, err := b.Begin(t.Context(), DeliverConsumer("d", []string{"a"}, Start{})); err != nil {
		t.Fatal(err)
	}
	publish(t, b, events(3, 1, "a")...)
	publish(t, b, events(2, 1, "b")...)
	first, err := b.Begin(t.Context(), DeliverConsumer("d", []string{"b"}, Start{}))
	if err != nil || first != 1 {
		t.Fatalf("%d, %v", first, err)
	}
	readers, err := b.Readers(t.Context())
	if err != nil || len(readers) != 1 || readers[0].Pending != 2 {
		t.Errorf("%+v, %v", readers, err)
	}
	// What the server refuses to change is no trouble while it is as wanted.
	if _, err := b.js.CreateConsumer(t.Context(), Events, jetstream.ConsumerConfig{Durable: "deliver-other", AckPolicy: jetstream.AckNonePolicy, FilterSubjects: []string{"penstock.event.a", "penstock.again.other"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Begin(t.Context(), DeliverConsumer("other", []string{"a"}, Start{})); err != nil {
		t.Errorf("as wanted: %v", err)
	}
	if _, err := b.Begin(t.Context(), DeliverConsumer("other", []string{"b"}, Start{})); err == nil {
		t.Error("a change that the server refused went unnoticed")
	}
}

// What an older penstock has written can be read, and what a newer one adds is no harm.
func TestControlForm(t *testing.T) {
	var c Control
	const written = `{"destination":"siem","paused":true,"by":"op@host","at":"2026-05-01T10:00:00Z","reason":"move","later":1}`
	if err := json.Unmarshal([]byte(written), &c); err != nil || !c.Paused || c.Destination != "siem" || c.By != "op@host" || c.Reason != "move" || c.At.IsZero() {
		t.Errorf("%+v, %v", c, err)
	}
}
