package topology

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
)

// An entry changes on condition that nobody else has changed it, and who watches sees
// all of them.
func TestRegister(t *testing.T) {
	b := testBus(t, Limits{})
	r := b.Consumers()
	path := RegisterPath("at", "siem 1", "web/π")
	e, err := r.Get(t.Context(), path)
	if err != nil || e.Value != nil || e.Revision != 0 {
		t.Fatalf("an entry that never was: %+v, %v", e, err)
	}
	one, err := r.Put(t.Context(), e, []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Put(t.Context(), e, []byte("2")); !errors.Is(err, ErrEntryMoved) {
		t.Errorf("made twice: %v", err)
	}
	if again, err := r.Put(t.Context(), e, []byte("1")); err != nil || again.Revision != one.Revision {
		t.Errorf("an answer that got lost: %+v, %v", again, err)
	}
	two, err := r.Put(t.Context(), one, []byte("2"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Put(t.Context(), one, []byte("3")); !errors.Is(err, ErrEntryMoved) {
		t.Errorf("changed from a stale revision: %v", err)
	}
	if now, err := r.Get(t.Context(), path); err != nil || string(now.Value) != "2" || now.Revision != two.Revision {
		t.Errorf("got %+v, %v", now, err)
	}
	for i := range 3 {
		if _, err := r.Put(t.Context(), Entry{Path: RegisterPath("key", fmt.Sprint(i))}, []byte("k")); err != nil {
			t.Fatal(err)
		}
	}
	all, err := r.List(t.Context(), "key")
	if err != nil || len(all) != 3 {
		t.Errorf("listed %v, %v", all, err)
	}
	if all, err := r.List(t.Context(), "none"); err != nil || len(all) != 0 {
		t.Errorf("listed %v, %v", all, err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	known, seen := make(chan struct{}, 1), make(chan string, 10)
	var watching sync.WaitGroup
	watching.Go(func() {
		if err := r.Watch(ctx, "at", func(e Entry) { seen <- string(e.Value) }, func() { known <- struct{}{} }); err != nil {
			t.Error(err)
		}
	})
	<-known
	if _, err := r.Put(t.Context(), two, []byte("3")); err != nil {
		t.Fatal(err)
	}
	if got := []string{<-seen, <-seen}; !slices.Equal(got, []string{"2", "3"}) {
		t.Errorf("watched %v", got)
	}
	cancel()
	watching.Wait()
}
