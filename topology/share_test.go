package topology

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// owners notes who works on which name.
type owners struct {
	mu   sync.Mutex
	at   map[string][]string
	ever map[string]bool
}

func (o *owners) work(me string) func(context.Context, string) error {
	return func(ctx context.Context, name string) error {
		o.mu.Lock()
		o.at[name] = append(o.at[name], me)
		o.ever[me+" "+name] = true
		o.mu.Unlock()
		<-ctx.Done()
		o.mu.Lock()
		defer o.mu.Unlock()
		for i, who := range o.at[name] {
			if who == me {
				o.at[name] = append(o.at[name][:i], o.at[name][i+1:]...)
				break
			}
		}
		return nil
	}
}

// load returns how many names each works on, and whether each name has one owner.
func (o *owners) load(names []string) (load map[string]int, single bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	load, single = map[string]int{}, true
	for _, n := range names {
		if len(o.at[n]) != 1 {
			single = false
			continue
		}
		load[o.at[n][0]]++
	}
	return load, single
}

// covers: DEV-3, LIM-1: names are shared over two processes, change while they run,
// and pass to the one that is left.
func TestShare(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	a, b := testConnect(t, e, Options{Name: "a"}), testConnect(t, e, Options{Name: "b"})
	if _, err := a.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var names []string
	set := func(n ...string) { mu.Lock(); defer mu.Unlock(); names = n }
	list := func() []string { mu.Lock(); defer mu.Unlock(); return append([]string(nil), names...) }
	var first, second []string
	for i := range 12 {
		first = append(first, fmt.Sprintf("/aws/lambda/f.%d", i))
		second = append(second, fmt.Sprintf("late %d", i))
	}
	set(first...)
	o := &owners{at: map[string][]string{}, ever: map[string]bool{}}
	stopA := run(t, func(ctx context.Context) error { return a.Share(ctx, "poll.x", list, o.work("a")) })
	run(t, func(ctx context.Context) error { return b.Share(ctx, "poll.x", list, o.work("b")) })
	shared := func(names []string) func() bool {
		return func() bool {
			load, single := o.load(names)
			return single && load["a"] > 0 && load["b"] > 0
		}
	}
	await(t, "each name has one owner, and both have some", shared(first))
	set(second...)
	await(t, "the old names are left and the new ones shared", func() bool {
		load, _ := o.load(first)
		return len(load) == 0 && shared(second)()
	})
	if err := stopA(); err != nil {
		t.Fatal(err)
	}
	await(t, "the one that is left has all", func() bool {
		load, single := o.load(second)
		return single && load["b"] == len(second)
	})
	kv, err := b.js.KeyValue(t.Context(), leaseBucket)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "no key is left of names that are gone", func() bool {
		keys, err := kv.Keys(t.Context())
		return err == nil && len(keys) == len(second)+1
	})
}

// covers: DEV-105, DEV-110: a cursor outlives its process and is fenced.
func TestCursor(t *testing.T) {
	dir := t.TempDir()
	e := testServer(t, dir, 256<<20)
	b := testConnect(t, e, Options{Name: "a"})
	if _, err := b.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	at := func(b *Bus) *Cursor {
		t.Helper()
		c, err := b.Cursor(t.Context(), "trail", "eu-west-1 /aws/a.b#c")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	old := at(b)
	if old.Value() != nil {
		t.Fatalf("a fresh cursor is %q", old.Value())
	}
	if err := old.Set(t.Context(), []byte("1")); err != nil {
		t.Fatal(err)
	}
	fresh := at(b)
	if err := fresh.Set(t.Context(), []byte("2")); err != nil {
		t.Fatal(err)
	}
	if err := old.Set(t.Context(), []byte("1.5")); !errors.Is(err, ErrCursorMoved) {
		t.Errorf("a stale owner moved the cursor: %v", err)
	}
	if err := old.Load(t.Context()); err != nil || string(old.Value()) != "2" {
		t.Errorf("loaded %q, %v", old.Value(), err)
	}
	b.Close()
	e.Stop()
	again := testConnect(t, testServer(t, dir, 256<<20), Options{Name: "a"})
	if c := at(again); string(c.Value()) != "2" {
		t.Errorf("after a restart the cursor is %q", c.Value())
	}
}

// covers: DEV-76, LIM-1: processes share one rate, and a throttled one holds back all.
func TestBudget(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	a, b := testConnect(t, e, Options{Name: "a"}), testConnect(t, e, Options{Name: "b"})
	if _, err := a.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	const rate, calls = 50, 60
	began := time.Now()
	var wg sync.WaitGroup
	for _, bus := range []*Bus{a, a, b, b} {
		wg.Go(func() {
			for range calls / 4 {
				if err := bus.Budget("123456789012 eu-west-1 cloudtrail", rate).Take(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	// The first second's worth is there at once; what is above it takes its time. A
	// slow machine only takes longer.
	if took, least := time.Since(began), time.Duration(calls-rate)*time.Second/rate; took < least*3/4 {
		t.Errorf("%d calls at %d a second took %v, want %v at least", calls, rate, took, least)
	}
	began = time.Now()
	if err := a.Budget("123456789012 eu-west-1 cloudtrail", rate).Close(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	// The grants that b has in hand are a batch at most.
	for range rate + 1 {
		if err := b.Budget("123456789012 eu-west-1 cloudtrail", rate).Take(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("a closed budget gave calls after %v", took)
	}
	// Another budget does not know of it.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := b.Budget("123456789012 us-east-1 cloudtrail", 0.01).Take(ctx); err != nil {
		t.Error(err)
	}
}

// A clock that is an hour behind or ahead of the server's, or was set since, neither
// stops the calls nor lets them all through.
func TestBudgetClocks(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	a, b := testConnect(t, e, Options{Name: "a"}), testConnect(t, e, Options{Name: "b"})
	if _, err := a.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, off := range []time.Duration{-time.Hour, time.Hour} {
		name := "clocks " + off.String()
		const rate = 10
		for range rate { // all that is there at once
			if err := a.Budget(name, rate).Take(ctx); err != nil {
				t.Fatal(err)
			}
		}
		g := b.Budget(name, rate)
		g.mu.Lock()
		g.ahead = off // as if b's own clock were off by as much, the other way
		g.mu.Unlock()
		began := time.Now()
		for range 3 * rate {
			if err := g.Take(ctx); err != nil {
				t.Fatalf("off by %v: %v", off, err)
			}
		}
		if took := time.Since(began); took < 1500*time.Millisecond {
			t.Errorf("off by %v: %d calls at %d a second took %v", off, 3*rate, rate, took)
		}
	}
}

func TestKeyOf(t *testing.T) {
	long := fmt.Sprintf("%0300d", 1)
	for name, want := range map[string]string{
		"": "=", "a": "a", "a.b c": "a=2eb=20c", "/aws/l": "/aws/l", "ü": "=c3=bc", "a=b": "a=3db",
	} {
		if got := keyOf(name); got != want {
			t.Errorf("keyOf(%q) = %q, want %q", name, got, want)
		}
	}
	if a, b := keyOf(long), keyOf(long+"x"); len(a) > maxKey || a == b {
		t.Errorf("long names: %q and %q", a, b)
	}
}
