package topology

import (
	"fmt"
	"testing"
)

// A destination has done with what it acknowledged, and waits for the rest; what is older
// than it, or of types that it does not read, is no business of its.
func TestSettled(t *testing.T) {
	b := testBus(t, Limits{})
	ctx := t.Context()
	store := func(n int) {
		t.Helper()
		out := b.NewOutbox(Route)
		if err := out.Publish(ctx, Message{Subject: EventSubject("a.b"), ID: fmt.Sprint("settled", n), Data: testFrame(t, 0, fmt.Sprint(n), 3), Events: 3, Bytes: 21, Source: "s"}); err != nil {
			t.Fatal(err)
		}
		if err := out.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	}
	begin := func(c Consumer) {
		t.Helper()
		if _, err := b.Begin(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	begin(DeliverConsumer("siem", nil, Start{}))
	begin(DeliverConsumer("dns", []string{"sig.>"}, Start{}))
	store(1)
	begin(DeliverConsumer("late", []string{"a.*"}, Start{Now: true}))
	store(2)
	consumer, err := b.js.Consumer(ctx, Events, deliverPrefix+"siem")
	if err != nil {
		t.Fatal(err)
	}
	batch, err := consumer.Fetch(1)
	if err != nil {
		t.Fatal(err)
	}
	for m := range batch.Messages() {
		if err := m.DoubleAck(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for sequence, want := range map[uint64][]Settled{
		1: {{Destination: "late", Before: true}, {Destination: "siem", Done: true}},
		2: {{Destination: "late"}, {Destination: "siem"}},
	} {
		got, err := b.Settled(ctx, sequence, "a.b")
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("frame %d: %+v, %v; want %+v", sequence, got, err, want)
		}
	}
	for destination, want := range map[string][2]uint64{"siem": {3, 1}, "late": {3, 1}, "dns": {0, 0}} {
		if events, frames, err := b.Unconfirmed(ctx, destination); err != nil || events != want[0] || frames != want[1] {
			t.Errorf("%s: %d events in %d frames, %v; want %v", destination, events, frames, err, want)
		}
	}
	if _, _, err := b.Unconfirmed(ctx, "nobody"); err == nil {
		t.Error("a destination that is not there has a backlog")
	}
}
