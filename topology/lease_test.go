package topology

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Lanes fall evenly: with eight lanes no replica may have three while another has one.
func TestHeirsAreEven(t *testing.T) {
	for lanes := 1; lanes <= 17; lanes++ {
		names := make([]string, lanes)
		for i := range names {
			names[i] = fmt.Sprint(i)
		}
		for n := 1; n <= 9; n++ {
			members := make([]string, n)
			load := map[string]int{}
			for i := range members {
				members[i] = fmt.Sprintf("host-%d-dedupe", i)
			}
			for name, heir := range heirsOf(names, members, true) {
				if load[heir]++; load[heir] > (lanes+n-1)/n {
					t.Errorf("%d lanes, %d members: %s has lane %s as its %d.", lanes, n, heir, name, load[heir])
				}
			}
			for _, m := range members {
				if load[m] < lanes/n {
					t.Errorf("%d lanes, %d members: %s has %d", lanes, n, m, load[m])
				}
			}
		}
	}
}

// A member says how often it shows that it lives; one of before does not, and has the
// time that leases have.
func TestMembersLiveByTheirOwnPace(t *testing.T) {
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	for _, c := range []struct {
		name  string
		s     sighting
		lives bool
	}{
		{"fast and fresh", sighting{value: leaseValue{Every: 600}, at: ago(time.Second)}, true},
		{"fast and silent", sighting{value: leaseValue{Every: 600}, at: ago(3 * time.Second)}, false},
		{"of before, and silent for as long", sighting{at: ago(3 * time.Second)}, true},
		{"of before, and dead", sighting{at: ago(7 * time.Second)}, false},
	} {
		if got := c.s.lives(); got != c.lives {
			t.Errorf("%s: lives is %v", c.name, got)
		}
	}
}

// With the server inside the process, one that is alone beats rarely, and must not take
// itself for dead for that: what there is to be done changes all the same.
func TestAloneSharesWhatIsNew(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	b := testConnect(t, e, Options{Name: "a", Own: true})
	if _, err := b.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	for _, fast := range []bool{false, true} {
		taken := make(chan string, 2)
		ctx, cancel := context.WithCancel(t.Context())
		g := &leases{
			bus: b, group: fmt.Sprint("share.", fast), fast: fast, me: "a", seen: map[string]*sighting{}, held: map[string]*lease{},
			list: func() []string { return []string{"late"} },
			run: func(ctx context.Context, l *lease) error {
				taken <- l.name
				<-ctx.Done()
				return nil
			},
		}
		var err error
		if g.kv, err = b.js.KeyValue(t.Context(), leaseBucket); err != nil {
			t.Fatal(err)
		}
		// The last beat was made while another was there, and has to do for long.
		g.seen["member.a"] = &sighting{value: leaseValue{Owner: "a", Every: leaseRenew.Milliseconds()}, at: time.Now().Add(-leaseAlone)}
		g.balance(ctx)
		if len(g.held) != 1 {
			t.Errorf("fast %v: what is new was not taken", fast)
		}
		cancel()
		g.wg.Wait()
	}
}

// Who comes and who goes is not waited for until it is time to look: a process that starts
// begins at once, and hands over at once.
func TestMembersAreSeenAtOnce(t *testing.T) {
	g := &leases{me: "a", group: "x", bus: &Bus{options: Options{Own: true}}, seen: map[string]*sighting{}}
	entry := func(name string, operation jetstream.KeyValueOp) testEntry {
		return testEntry{key: "x." + name, value: `{"owner":"` + name + `"}`, operation: operation}
	}
	for i, c := range []struct {
		entry testEntry
		moved bool
	}{
		{entry("member.a", jetstream.KeyValuePut), true},
		{entry("member.a", jetstream.KeyValuePut), false},
		{entry("one", jetstream.KeyValuePut), false},
		{entry("member.b", jetstream.KeyValuePut), true},
		{entry("member.b", jetstream.KeyValueDelete), true},
		{entry("member.b", jetstream.KeyValueDelete), false},
		{entry("one", jetstream.KeyValueDelete), false},
	} {
		if moved := g.saw(c.entry); moved != c.moved {
			t.Errorf("entry %d: somebody has come or gone: %v", i, moved)
		}
	}
}

type testEntry struct {
	jetstream.KeyValueEntry
	key, value string
	operation  jetstream.KeyValueOp
}

func (e testEntry) Key() string                     { return e.key }
func (e testEntry) Value() []byte                   { return []byte(e.value) }
func (e testEntry) Revision() uint64                { return 1 }
func (e testEntry) Operation() jetstream.KeyValueOp { return e.operation }

// Who has been silent for long does not count, or the key that a process leaves which was
// killed would be listened to for ever.
func TestAloneForgetsTheDead(t *testing.T) {
	g := &leases{me: "a", bus: &Bus{options: Options{Own: true}}}
	for silent, alone := range map[time.Duration]bool{0: false, leaseExpiry: false, 5 * leaseAlone: true} {
		g.seen = map[string]*sighting{"member.b": {value: leaseValue{Owner: "b", Every: 600}, at: time.Now().Add(-silent)}}
		if g.alone() != alone {
			t.Errorf("another silent for %v: alone is %v", silent, !alone)
		}
	}
}

// What has ended is taken up again at once, not when it is time to look.
func TestLeasesAreTakenAgainAtOnce(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	b := testConnect(t, e, Options{Name: "a", Own: true})
	if _, err := b.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	const rounds = 6
	var n atomic.Int64
	run(t, func(ctx context.Context) error {
		return b.Share(ctx, "x", func() []string { return []string{"one"} }, func(context.Context, string) error {
			n.Add(1)
			return errFenced.New(nil, "go on")
		})
	})
	deadline, cancel := context.WithTimeout(t.Context(), rounds*leaseRenew*3/4)
	defer cancel()
	for n.Load() < rounds && deadline.Err() == nil {
		<-time.After(10 * time.Millisecond)
	}
	if n.Load() < rounds {
		t.Errorf("%d rounds in the time of %d looks", n.Load(), rounds*3/4)
	}
}
