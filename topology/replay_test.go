package topology

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/messages"
)

// What is sent to one destination alone reaches its reader, also one that an older
// penstock has made, and no other, nor who reads the log.
func TestAgainReachesOne(t *testing.T) {
	b := testBus(t, Limits{})
	for durable, filters := range map[string][]string{"deliver-old": nil, "deliver-typed": {"penstock.event.a"}} {
		if _, err := b.js.CreateConsumer(t.Context(), Events, jetstream.ConsumerConfig{
			Durable: durable, AckPolicy: jetstream.AckExplicitPolicy, FilterSubjects: filters, AckWait: 30 * time.Second, MaxDeliver: -1,
		}); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, b, events(3, 1, "a")...)
	publish(t, b, events(2, 1, "b")...)
	for name, types := range map[string][]string{"old": nil, "typed": {"a"}, "new": {"b"}} {
		if _, err := b.Begin(t.Context(), DeliverConsumer(name, types, Start{})); err != nil {
			t.Fatal(err)
		}
	}
	for _, to := range []string{"old", "typed", "typed", "new"} {
		publish(t, b, Message{Subject: AgainSubject(to), ID: to + time.Now().String(), Data: testFrame(t, 0, "s", 1)})
	}
	want := map[string]uint64{"old": 5 + 1, "typed": 3 + 2, "new": 2 + 1}
	// The server tells a consumer of what is stored a moment after it has confirmed it.
	await(t, "each reader has what is its own", func() bool {
		readers, err := b.Readers(t.Context())
		if err != nil || len(readers) != 3 {
			t.Fatalf("%+v, %v", readers, err)
		}
		for _, r := range readers {
			if r.Pending != want[r.Destination] || r.First != 1 {
				return false
			}
		}
		return true
	})
	n := 0
	if err := b.Read(t.Context(), Span{Subject: "penstock.event.>"}, func(Stored) error { n++; return nil }); err != nil || n != 5 {
		t.Errorf("the log shows %d frames, %v", n, err)
	}
}

// The keeper lets go of what was kept for replays that are over, or not there any more,
// and of no other.
func TestKeeperForgetsReplays(t *testing.T) {
	b := testBus(t, Limits{})
	publish(t, b, events(3, 1, "a")...)
	waits, over, silent := addJob(t, b, "replay"), addJob(t, b, "replay"), addJob(t, b, "replay")
	for _, id := range []string{waits.ID, over.ID, silent.ID, "20260101-nojob1"} {
		if _, err := b.Begin(t.Context(), ReplayConsumer(id, "d", nil, Start{Sequence: 2})); err != nil {
			t.Fatal(err)
		}
		if p, err := b.Replayed(t.Context(), id, 4); err != nil || !p.Found || !p.Left {
			t.Fatalf("%+v, %v", p, err)
		}
	}
	if _, err := b.CancelJob(t.Context(), over.ID); err != nil {
		t.Fatal(err)
	}
	stream, err := b.js.Stream(t.Context(), Events)
	if err != nil {
		t.Fatal(err)
	}
	if floor, _, err := b.floor(t.Context(), Flow[4], stream.CachedInfo(), 3); err != nil || floor != 1 {
		t.Errorf("a replay from 2 on holds the log at %d, %v", floor, err)
	}
	if err := b.tidyReplays(t.Context(), stream); err != nil {
		t.Fatal(err)
	}
	for id, kept := range map[string]bool{waits.ID: true, silent.ID: true, over.ID: false, "20260101-nojob1": false} {
		if p, err := b.Replayed(t.Context(), id, 4); err != nil || p.Found != kept {
			t.Errorf("%s: %+v, %v", id, p, err)
		}
	}
}

// A replay is over when all before its end is acknowledged, whatever comes behind.
func TestReplayed(t *testing.T) {
	b := testBus(t, Limits{})
	publish(t, b, events(3, 1, "a")...)
	publish(t, b, events(2, 1, "b")...)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Consume(ctx, b, ReplayConsumer("job", "d", []string{"a"}, Start{}), messages.DecodeFrame, func(context.Context, In[messages.View], Outbox) error { return nil })
	}()
	await(t, "all to be acknowledged", func() bool {
		p, err := b.Replayed(t.Context(), "job", 6)
		return err == nil && p.Found && !p.Left
	})
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	publish(t, b, Message{Subject: EventSubject("a"), ID: "later", Data: []byte("x")})
	await(t, "what came later to be seen", func() bool {
		p, err := b.Replayed(t.Context(), "job", 8)
		return err == nil && p.Left
	})
	for range 2 { // what is gone can be ended again
		if err := b.EndReplay(t.Context(), "job"); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := b.Replayed(t.Context(), "job", 8); err != nil || p.Found || !p.Left {
		t.Errorf("%+v, %v", p, err)
	}
}
