package topology

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"
)

// logOf stores events of types in turns: a at 1, 4, 7, …, a.b at 2, 5, …, c at 3, 6, ….
func logOf(t testing.TB, n int) *Bus {
	t.Helper()
	b := testBus(t, Limits{})
	types := []string{"a", "a.b", "c"}
	ms := make([]Message, n)
	for i := range ms {
		ms[i] = Message{Subject: EventSubject(types[i%3]), ID: fmt.Sprint(i), Data: fmt.Append(nil, i)}
		publish(t, b, ms[i])
	}
	return b
}

func sequences(t testing.TB, h *History, from, until uint64, most int) (all []uint64) {
	t.Helper()
	if err := h.Read(t.Context(), from, until, func(m Stored) (bool, error) {
		if string(m.Data) != fmt.Sprint(m.Sequence-1) || m.Time.IsZero() {
			t.Errorf("message %+v", m)
		}
		all = append(all, m.Sequence)
		return len(all) < most, nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// A log is read in order from a place on, whatever the filters, and no message is
// fetched that is not handed over.
func TestHistoryRead(t *testing.T) {
	b := logOf(t, 12)
	for _, tt := range []struct {
		name        string
		filters     []string
		from, until uint64
		want        []uint64
	}{
		{"all", nil, 1, 13, []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}},
		{"one type", []string{"penstock.event.c"}, 1, 13, []uint64{3, 6, 9, 12}},
		{"two types merged", []string{"penstock.event.c", "penstock.event.a"}, 4, 13, []uint64{4, 6, 7, 9, 10, 12}},
		{"one that covers another", []string{"penstock.event.a", "penstock.event.>", "penstock.event.>"}, 9, 12, []uint64{9, 10, 11}},
		{"overlap", []string{"penstock.event.*.b", "penstock.event.a.*"}, 1, 13, []uint64{2, 5, 8, 11}},
		{"nothing there", []string{"penstock.event.x"}, 1, 13, nil},
		{"behind the end", nil, 13, 100, nil},
		{"from zero", []string{"penstock.event.a"}, 0, 2, []uint64{1}},
	} {
		h := b.History(Events, tt.filters)
		if got := sequences(t, h, tt.from, tt.until, 1000); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
	if got := sequences(t, b.History(Events, nil), 5, 13, 2); !slices.Equal(got, []uint64{5, 6}) {
		t.Errorf("stopped after two: %v", got)
	}
	m, ok, err := b.History(Events, nil).getFromLeader(t.Context(), 4, "penstock.event.c")
	if err != nil || !ok || m.Sequence != 6 || string(m.Data) != "5" || m.Subject != "penstock.event.c" || m.Time.IsZero() {
		t.Errorf("from the leader: %+v, %v, %v", m, ok, err)
	}
}

func TestHistoryBoundsPendingSince(t *testing.T) {
	b := testBus(t, Limits{})
	h := b.History(Events, []string{"penstock.event.c"})
	if first, next, err := h.Bounds(t.Context()); first != 1 || next != 1 || err != nil {
		t.Errorf("bounds of an empty log: %d to %d, %v", first, next, err)
	}
	if n, _, err := h.Pending(t.Context(), 1); n != 0 || err != nil {
		t.Errorf("pending in an empty log: %d, %v", n, err)
	}
	if _, ok, err := h.Since(t.Context(), time.Now().Add(-time.Hour)); ok || err != nil {
		t.Errorf("since an hour in an empty log: %v, %v", ok, err)
	}
	for i, subject := range []string{"c", "a", "c", "a", "c"} {
		publish(t, b, Message{Subject: EventSubject(subject), ID: fmt.Sprint(i), Data: fmt.Append(nil, i)})
	}
	third, _, err := h.get(t.Context(), 3, "penstock.event.c")
	if err != nil {
		t.Fatal(err)
	}
	if at, ok, err := h.Since(t.Context(), third.Time); at != 3 || !ok || err != nil {
		t.Errorf("since the third: %d, %v, %v", at, ok, err)
	}
	if n, oldest, err := h.Pending(t.Context(), 2); n != 2 || !oldest.Equal(third.Time) || err != nil {
		t.Errorf("pending from 2: %d since %v, want %v, %v", n, oldest, third.Time, err)
	}
	stream, err := b.js.Stream(t.Context(), Events)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if first, next, err := h.Bounds(t.Context()); first != 6 || next != 6 || err != nil {
		t.Errorf("bounds of a trimmed log: %d to %d, %v", first, next, err)
	}
}

// Who waits for a message wakes when one that fits is stored, and not for others.
func TestHistoryWait(t *testing.T) {
	b := logOf(t, 3)
	h := b.History(Events, []string{"penstock.event.c"})
	if err := h.Wait(t.Context(), 3); err != nil {
		t.Errorf("what is there: %v", err)
	}
	woken := make(chan error, 1)
	go func() { woken <- h.Wait(t.Context(), 4) }()
	publish(t, b, Message{Subject: EventSubject("a"), ID: "other", Data: []byte("x")})
	select {
	case err := <-woken:
		t.Fatalf("woken for another type: %v", err)
	default:
	}
	publish(t, b, Message{Subject: EventSubject("c"), ID: "mine", Data: []byte("x")})
	if err := <-woken; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Wait(ctx, 100); err == nil {
		t.Error("waited beyond the end of ctx")
	}
	await(t, "no consumer is left", func() bool {
		stream, err := b.js.Stream(t.Context(), Events)
		return err == nil && stream.CachedInfo().State.Consumers == 0
	})
}

// Reading from anywhere costs what is read: no more is fetched, wherever it is.
func TestHistorySeeks(t *testing.T) {
	b := testBus(t, Limits{})
	publish(t, b, events(500, 1000, "a.x")...)
	publish(t, b, events(500, 1000, "a.y")...)
	h := b.History(Events, []string{"penstock.event.a.x", "penstock.event.a.y"})
	for _, from := range []uint64{1, 400, 900} {
		before := b.nc.Stats()
		n := 0
		if err := h.Read(t.Context(), from, 1001, func(m Stored) (bool, error) {
			if n++; m.Sequence != from+uint64(n)-1 {
				t.Errorf("got %d", m.Sequence)
			}
			return n < 20, nil
		}); err != nil {
			t.Fatal(err)
		}
		after := b.nc.Stats()
		if messages, bytes := after.InMsgs-before.InMsgs, after.InBytes-before.InBytes; messages > 30 || bytes > 40_000 {
			t.Errorf("from %d: %d messages and %d bytes for 20 of 1000 bytes", from, messages, bytes)
		}
	}
}
