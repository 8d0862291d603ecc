package topology

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
)

// A frame that only a later release can read is kept whole, with the reason, whichever
// stage meets it, and those behind it go on: after an upgrade it is redriven.
func TestFramesOfALaterReleaseAreKept(t *testing.T) {
	b := testBus(t, Limits{Lanes: 2})
	later := func(name string) []byte {
		return protowire.AppendVarint(protowire.AppendTag(testFrame(t, 0, name, 3), 1, protowire.VarintType), 99)
	}
	want := map[string][]byte{
		ParsedSubject(0):    later("parsed"),
		UniqueSubject(1):    later("unique"),
		EventSubject("a.b"): later("event"),
		RecordSubject("s"):  later("record"),
	}
	for subject, data := range want {
		// Of UNIQUE dedupe is the only writer: there it is by an older owner of the lane.
		if subject == UniqueSubject(1) {
			continue
		}
		publish(t, b, Message{Subject: subject, ID: "later", Data: data})
	}
	stale := &Lane{bus: b, number: 1}
	if err := stale.commit(t.Context(), want[UniqueSubject(1)], nil, 0, 0); err != nil {
		t.Fatal(err)
	}
	publish(t, b, Message{Subject: ParsedSubject(0), ID: "now", Data: testFrame(t, 0, "now", 5)})
	passed := make(chan int, 10)
	read := func(c Consumer) {
		run(t, func(ctx context.Context) error {
			return Consume(ctx, b, c, messages.DecodeFrame, func(_ context.Context, in In[messages.View], _ Outbox) error {
				if c.Stage == Route {
					passed <- in.Value.Len()
				}
				return nil
			})
		})
	}
	read(ParseConsumer)
	read(RouteConsumer)
	read(DeliverConsumer("d", nil, Start{}))
	run(t, func(ctx context.Context) error { return b.Lanes(ctx, time.Hour, openMap) })
	for {
		n := 0
		select {
		case n = <-passed:
		case <-time.After(time.Minute):
			t.Fatal("the frame behind did not pass")
		}
		if n == 5 {
			break
		}
	}
	kept := map[string]*messages.Quarantine{}
	await(t, "all are in quarantine", func() bool {
		err := b.Read(t.Context(), Span{Subject: "penstock.quarantine.>"}, func(m Stored) error {
			q, err := messages.DecodeQuarantine(m.Data)
			if err == nil {
				kept[q.GetSubject()] = q
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return len(kept) >= len(want)
	})
	for subject, data := range want {
		q := kept[subject]
		if q == nil {
			t.Errorf("what was in %s is not in quarantine", subject)
			continue
		}
		if q.GetCode() != "messages.newer_version" || q.GetHolds() != messages.Quarantine_HOLDS_FRAME || !bytes.Equal(q.GetPayload(), data) {
			t.Errorf("of %s quarantine has %s %s, %d bytes of %d", subject, q.GetCode(), q.GetHolds(), len(q.GetPayload()), len(data))
		}
	}
}

// A lane does not go on behind a frame of its own output that it cannot read: it would
// not know the ids in it. Whoever can read it takes the lane.
func TestLaneHoldsBeforeWhatItCannotKnow(t *testing.T) {
	b := testBus(t, Limits{Lanes: 1})
	l := &Lane{bus: b, lease: &lease{}}
	frame := protowire.AppendVarint(protowire.AppendTag(testFrame(t, 0, "later", 3), 1, protowire.VarintType), 99)
	if err := l.commit(t.Context(), frame, nil, 7, 0); err != nil {
		t.Fatal(err)
	}
	err := (&Lane{bus: b, lease: &lease{}}).restore(t.Context(), time.Hour, openMap(0))
	if fault.CodeOf(err) != "bus.lane_failed" || !strings.Contains(err.Error(), "messages.newer_version") {
		t.Fatalf("the lane was taken without the ids of a frame that cannot be read: %v", err)
	}
}
