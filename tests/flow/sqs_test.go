package flow

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

// voices makes the bodies of n messages with one event each, all different.
func voices(n int) []string {
	bodies := make([]string, n)
	for i := range bodies {
		bodies[i] = fmt.Sprintf(`{"timestamp":"2026-01-05T12:12:%02d.%02dZ","type":"user","event":"user_added","callcenter":"tenant-1",`+
			`"params":{"who":"op1@example.org","user":"user%d@example.org","access_group":"agent"}}`, i/100%60, i%100, i)
	}
	return bodies
}

func voiceWorld(t *testing.T) *harness.World {
	t.Helper()
	w := harness.NewWorld(t, nil)
	w.UseQueue("voice")
	w.Source = "    body: events\n    format: voiso\n    max_receivers: 4\n"
	return w
}

func emptied(t *testing.T, w *harness.World, timeout time.Duration) {
	t.Helper()
	harness.Await(t, timeout, "the queue is empty", func() bool {
		q := w.Cloud.Queue("voice")
		return q.Visible+q.InFlight+q.Delayed == 0
	})
}

// once checks that the event log has n events, each once.
func once(t *testing.T, bus *topology.Bus, n int) {
	t.Helper()
	log := harness.Log(t, bus)
	if len(log) != n {
		t.Errorf("%d events are in the log, want %d", len(log), n)
	}
	for id, times := range log {
		if times != 1 {
			t.Errorf("event %s is in the log %d times", id, times)
		}
	}
}

// Events in messages that are delivered twice, out of order, whose deletion fails
// in part, and with broken ones among them: each good event arrives once, each bad
// message is in quarantine with its own id, the books balance, and the ledger knows
// every message by its id.
// covers: VOI-28, CEN-21, F-0, F-1, F-5, VOI-5
func TestEventsInMessages(t *testing.T) {
	t.Parallel()
	w := voiceWorld(t)
	var n atomic.Int64
	w.Cloud.SetFault(func(op, _, _ string) cloud.Fault {
		switch i := n.Add(1); {
		case op == "ReceiveMessage":
			return cloud.Fault{Duplicate: i%5 == 0, Shuffle: true}
		case op == "DeleteMessageBatch" && i%7 == 0:
			return cloud.Fault{FailEntries: 3}
		case op == "DeleteMessageBatch" && i%11 == 0:
			return cloud.Fault{Status: 500}
		}
		return cloud.Fault{}
	})
	const good, bad = 3000, 5
	ids, err := w.Cloud.Send("voice", voices(good)...)
	if err != nil {
		t.Fatal(err)
	}
	poison := map[string]bool{}
	for i := range bad {
		id, err := w.Cloud.Send("voice", fmt.Sprintf(`{"type":"user","event":%d,`, i))
		if err != nil {
			t.Fatal(err)
		}
		poison[id[0]] = true
	}
	w.RunAll()
	w.AwaitDelivered(2*time.Minute, good)
	emptied(t, w, time.Minute)
	bus := harness.Connect(t, w.StoreURL())
	once(t, bus, good)
	report := settled(t, w.StoreURL())
	pulls, _ := report["pulls"].([]any)
	if len(pulls) >= good/2 {
		t.Errorf("%d pulls for %d messages: they do not share frames", len(pulls), good)
	}
	err = bus.Read(t.Context(), topology.Span{Subject: "penstock.quarantine.>"}, func(m topology.Stored) error {
		q, err := messages.DecodeQuarantine(m.Data)
		if err == nil && !poison[q.GetOrigin().GetMessageId()] {
			t.Errorf("entry %s is of message %q", q.GetCode(), q.GetOrigin().GetMessageId())
		}
		delete(poison, q.GetOrigin().GetMessageId())
		return err
	})
	if err != nil || len(poison) > 0 {
		t.Errorf("%d of %d broken messages are not in quarantine: %v", len(poison), bad, err)
	}
	var known strings.Builder
	err = bus.Read(t.Context(), topology.Span{Subject: "penstock.ledger.>"}, func(m topology.Stored) error {
		facts, err := messages.DecodeFacts(m.Data)
		for _, f := range facts.GetFacts() {
			a := f.GetAnnounced()
			known.WriteString(a.GetOrigin().GetMessageId() + " ")
			for rest := a.GetMessageIds(); len(rest) > 0; rest = rest[16:] {
				known.WriteString(messages.UUID(rest).String() + " ")
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if !strings.Contains(known.String(), id) {
			t.Fatalf("the ledger does not know message %s", id)
		}
	}
}

// Killed while messages are stored and none can be deleted: they come again in
// other company, are found to be duplicates, and the books balance: also those of
// frames that were stored without a word to the ledger.
// covers: F-0, F-5
func TestKilledBetweenStoreAndDelete(t *testing.T) {
	t.Parallel()
	w := voiceWorld(t)
	w.Bus = "  ack_wait: 3s\n" // what a dead process had in hand comes back soon
	var refuse atomic.Bool
	refuse.Store(true)
	w.Cloud.SetFault(func(op, _, _ string) cloud.Fault {
		if op == "DeleteMessageBatch" && refuse.Load() {
			return cloud.Fault{Status: 500}
		}
		return cloud.Fault{}
	})
	const n = 4000
	bodies := voices(n)
	p := w.RunAll()
	for i := 0; i < n; i += 100 {
		if _, err := w.Cloud.Send("voice", bodies[i:i+100]...); err != nil {
			t.Fatal(err)
		}
	}
	harness.Await(t, time.Minute, "some events arrived", func() bool { return w.Sink.Distinct() > n/4 })
	p.Kill()
	refuse.Store(false)
	if q := w.Cloud.Queue("voice"); q.Deleted > 0 {
		t.Fatalf("%d messages were deleted: the case itself is wrong", q.Deleted)
	}
	w.RunAll()
	w.AwaitDelivered(2*time.Minute, n)
	emptied(t, w, 2*time.Minute)
	once(t, harness.Connect(t, w.StoreURL()), n)
	report := settled(t, w.StoreURL())
	total, _ := report["total"].(map[string]any)
	if d, _ := total["duplicates"].(float64); d == 0 {
		t.Error("no event came again: the case itself is wrong")
	}
	t.Logf("%v pulls, %v records, %v duplicates", total["pulls"], total["records"], total["duplicates"])
}
