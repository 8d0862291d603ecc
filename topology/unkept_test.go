package topology

import (
	"context"
	"testing"
	"time"
)

// Users of stages may not trim LEDGER and AUDIT. Where nobody runs as operate, the stages
// go on all the same when these are full: the oldest goes.
func TestWhatNobodyKeepsHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	b := testBus(t, Limits{Disk: 64 << 20}) // LEDGER: 1.3 MiB
	for _, subject := range []string{LedgerSubject(Parse), AuditSubject} {
		limit := row(streamOf(subject)).Share * (64 << 20 / 1000)
		block := make([]byte, 64<<10)
		for n := int64(0); n < 2*limit; n += int64(len(block)) {
			if _, err := b.js.Publish(t.Context(), subject, block); err != nil {
				t.Fatalf("%s took %d bytes of %d: %v", subject, n, limit, err)
			}
		}
	}
}

// Ids that are not in SEEN any more, as after a disk that forgot or a stream that was made
// anew, are not waited for: a stream without replicas has nobody that lags.
func TestLaneGoesOnWhenItsIdsAreLost(t *testing.T) {
	t.Parallel()
	b := testBus(t, Limits{Lanes: 1})
	publish(t, b, Message{Subject: SeenSubject(0), ID: "1", Data: make([]byte, idBytes)})
	l := &Lane{bus: b, lease: &lease{value: leaseValue{Seen: 9}}}
	if err := l.restore(t.Context(), time.Hour, openMap(0)); err != nil {
		t.Fatalf("the lane can never be taken: %v", err)
	}
}

// A subscription that is made after the connection broke once has no pull of before.
func TestFirstPullsAreKept(t *testing.T) {
	b := testBus(t, Limits{})
	if err := b.ensureConsumer(t.Context(), consumer(4)); err != nil {
		t.Fatal(err)
	}
	b.reconnects.Add(1)
	s := newSubscriber(b, consumer(4))
	ctx, stop := context.WithCancel(t.Context())
	if _, err := s.Subscribe(ctx, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(); s.giveUp(); s.settle() })
	s.checkPulls()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nextPull != 1 {
		t.Errorf("%d pulls were sent, of which one is under way that nobody counts", s.nextPull)
	}
}

// Who has not seen its own sign of life for long, as after a stop of the whole process,
// cannot tell that others are dead: it takes nothing from them.
func TestWhoWasAwayTakesNothing(t *testing.T) {
	b := testBus(t, Limits{Lanes: 1})
	kv, err := b.bucket(t.Context(), leaseBucket)
	if err != nil {
		t.Fatal(err)
	}
	revision, err := kv.Create(t.Context(), laneGroup+".0", []byte(`{"owner":"other"}`))
	if err != nil {
		t.Fatal(err)
	}
	taken := false
	for _, c := range []struct {
		name  string
		own   time.Duration // since our own sign of life
		taken bool
	}{{"we were away", 3 * time.Second, false}, {"the other is dead", 0, true}} {
		g := &leases{
			bus: b, group: laneGroup, fast: true, me: "me", kv: kv, held: map[string]*lease{},
			list: func() []string { return []string{"0"} },
			run:  func(context.Context, *lease) error { taken = true; return nil },
		}
		ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
		g.seen = map[string]*sighting{
			"member.me":    {value: leaseValue{Owner: "me", Every: 600, Even: true}, at: ago(c.own)},
			"member.other": {value: leaseValue{Owner: "other", Every: 600, Even: true}, at: ago(3 * time.Second)},
			"0":            {value: leaseValue{Owner: "other"}, revision: revision, at: ago(time.Second)},
		}
		g.balance(t.Context())
		g.wg.Wait()
		if taken != c.taken {
			t.Errorf("%s: taken is %t", c.name, taken)
		}
	}
}
