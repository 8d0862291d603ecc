package topology

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
)

// Thin frames that come while another is written are one group: with many event types, or
// sources, there are hundreds of them at a time.
func TestThinFramesAreGrouped(t *testing.T) {
	b := testBus(t, Limits{Disk: 1 << 30})
	var grouped, alone atomic.Int64
	seen, err := b.nc.Subscribe(ParsedSubject(0), func(m *nats.Msg) {
		if m.Header.Get(headerBatchID) == "" {
			alone.Add(1)
		} else {
			grouped.Add(1)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = seen.Unsubscribe() }()
	const n = 2 * groupLeast
	c := b.committerOf(Parsed)
	c.mu.Lock()
	c.busy = true // a write is under way
	c.mu.Unlock()
	out := b.NewOutbox(Parse)
	publish := func(name string, size int) {
		t.Helper()
		if err := out.Publish(t.Context(), Message{Subject: ParsedSubject(0), ID: name, Data: make([]byte, size)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		publish(fmt.Sprint("thin ", i), groupMessage-i)
	}
	publish("large", groupMessage+1)
	waiting := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.pending)
	}
	await(t, "all thin frames to wait", func() bool { return waiting() == n })
	c.run()
	if err := out.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	await(t, "all frames to be seen", func() bool { return grouped.Load()+alone.Load() == n+1 })
	if grouped.Load() != n || alone.Load() != 1 {
		t.Errorf("%d messages in a group and %d alone, want %d and 1", grouped.Load(), alone.Load(), n)
	}
	s, err := b.js.Stream(context.Background(), Parsed)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.CachedInfo().State.Msgs; got != n+1 {
		t.Errorf("%d messages are stored, want %d", got, n+1)
	}
}
