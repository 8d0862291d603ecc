package topology

import (
	"context"
	"encoding/json"
	"errors"
	"hash/fnv"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/messages/fault"
)

var errLease = fault.Define("bus.lease_failed", fault.Retry,
	"check that the key-value bucket "+leaseBucket+" exists: penstock topology apply")

// leaseBucket holds one key per leased thing and one per member of a group.
const leaseBucket = "penstock_leases"

// A lease is held as long as its key changes: everybody measures with his own
// clock how long it has not, so that clocks may differ. Wrong owners are harmless
// all the same, since dedupe fences every write; a lease saves work, not data.
const (
	leaseRenew  = 2 * time.Second
	leaseExpiry = 3 * leaseRenew
	leaseTick   = 500 * time.Millisecond
	// leaseAlone is how often keys change that nobody else looks at.
	leaseAlone = 30 * time.Second
	// leaseForgotten is for how long a member has been silent that is counted no more.
	leaseForgotten = 3 * leaseAlone
)

// Who waits for lanes waits for events: members of that group show that they live
// more often, and say so, since members of before do not. Three beats that do not
// come are a death, whatever its leases look like.
const (
	fastBeat    = 600 * time.Millisecond
	fastTick    = fastBeat / 3
	beatsMissed = 3
)

// leaseValue is what a key holds. Positions outlive their owner.
type leaseValue struct {
	Owner string `json:"owner"`
	// Input and Output are the positions that a lane's snapshots cover.
	Input  uint64 `json:"input,omitempty"`
	Output uint64 `json:"output,omitempty"`
	// Seen is the last block of ids that the snapshots are made of, in SEEN.
	Seen uint64 `json:"seen,omitempty"`
	Beat uint64 `json:"beat"`
	// Every is how often a member shows that it lives, in milliseconds; 0 stands for
	// the pace of leases. Even says that it knows how to share evenly.
	Every int64 `json:"every,omitempty"`
	Even  bool  `json:"even,omitempty"`
}

// leases shares named things over the members of a group by rendezvous hashing:
// each has one owner, and few move when a member comes or goes.
type leases struct {
	bus   *Bus
	group string
	// fast: deaths are noticed soon, and no member has more than one name more than
	// another. All members need to have the same names for that.
	fast bool
	// list returns the names that there are now.
	list func() []string
	me   string
	// run is called for each thing owned, with a context that ends when it is lost
	// or has to be handed over. The lease is released when it returns.
	run func(ctx context.Context, l *lease) error

	kv   jetstream.KeyValue
	mu   sync.Mutex
	seen map[string]*sighting
	held map[string]*lease
	// ended is told when the work of a lease has ended.
	ended chan struct{}
	wg    sync.WaitGroup
}

// sighting is a key as the watcher saw it last, and when that was.
type sighting struct {
	value    leaseValue
	revision uint64
	at       time.Time
}

// lease is one thing owned.
type lease struct {
	parent   *leases
	kv       jetstream.KeyValue
	name     string
	mu       sync.Mutex
	value    leaseValue
	revision uint64
	end      context.CancelFunc
	// gone: the name is no longer there. parent.mu guards it.
	gone bool
}

// pace is how often this member shows that it lives, and how often it looks at the others.
func (g *leases) pace() (beat, look time.Duration) {
	switch {
	case g.alone():
		return leaseAlone, leaseRenew
	case g.fast && !g.bus.options.Own:
		return fastBeat, fastTick
	}
	return leaseRenew, leaseTick
}

// alone tells whether nobody could take over: the server is inside this process, and ends
// with it, and no other member is there. Who joins takes nothing for [leaseExpiry] by its
// own clock, and is seen before that.
func (g *leases) alone() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.isAlone()
}

// isAlone is alone. g.mu is held.
func (g *leases) isAlone() bool {
	if !g.bus.options.Own {
		return false
	}
	for name, s := range g.seen {
		if strings.HasPrefix(name, "member.") && s.value.Owner != g.me && time.Since(s.at) < leaseForgotten {
			return false
		}
	}
	return true
}

func (g *leases) key(name string) string { return g.group + "." + name }

// keep owns what falls to this member until ctx ends, then hands all back.
func (g *leases) keep(ctx context.Context) error {
	g.seen, g.held, g.ended = map[string]*sighting{}, map[string]*lease{}, make(chan struct{}, 1)
	for {
		err := g.session(ctx)
		if ctx.Err() != nil {
			g.wg.Wait()
			g.leave(ctx)
			return nil //nolint:nilerr // asked to stop; the session says no more than that
		}
		g.bus.log.Warn("leases are not to be had, trying on", "group", g.group, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// session watches the bucket and acts on what it sees until the watch breaks.
func (g *leases) session(ctx context.Context) error {
	var err error
	if g.kv, err = g.bus.js.KeyValue(ctx, leaseBucket); err != nil {
		return errLease.New(err, "open the bucket %s", leaseBucket)
	}
	watch, err := g.kv.Watch(ctx, g.group+".>")
	if err != nil {
		return errLease.New(err, "watch the leases of %s", g.group)
	}
	defer func() { _ = watch.Stop() }()
	_, pause := g.pace()
	// Beats have a goroutine of their own: taking and renewing waits for answers.
	beating, stop := context.WithCancelCause(ctx)
	var beats sync.WaitGroup
	defer beats.Wait()
	defer stop(nil)
	if err := g.beat(ctx, 1); err != nil {
		return err
	}
	beats.Go(func() { stop(g.beats(beating)) })
	renewed := time.Now()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	known := false
	var again <-chan time.Time
	for {
		moved := false
		select {
		case <-ctx.Done():
			return nil
		case <-beating.Done():
			return context.Cause(beating)
		case entry, ok := <-watch.Updates():
			switch {
			case !ok:
				return errLease.New(nil, "watch the leases of %s", g.group)
			case entry == nil: // all that was there has been shown
				known = true
			default:
				// Looks are rare there: who comes or goes is noticed all the same.
				moved = g.saw(entry) && g.bus.options.Own
			}
			if !known || entry != nil && !moved {
				continue
			}
		case <-tick.C:
			if !known {
				continue
			}
		case <-g.ended:
			// Not at once: it may end at once again, and its key has to be seen as it is now.
			soon := leaseTick
			if g.fast {
				soon = fastTick
			}
			again = time.After(soon)
			continue
		case <-again:
			if !known {
				continue
			}
		}
		beat, look := g.pace()
		if time.Since(renewed) >= max(beat, leaseRenew) {
			renewed = time.Now()
			g.renew(ctx)
		}
		g.balance(ctx)
		if look != pause {
			pause = look
			tick.Reset(pause)
		}
	}
}

// saw takes note of a key, and tells whether a member has come or gone.
func (g *leases) saw(entry jetstream.KeyValueEntry) (moved bool) {
	name := strings.TrimPrefix(entry.Key(), g.group+".")
	g.mu.Lock()
	defer g.mu.Unlock()
	_, known := g.seen[name]
	member := strings.HasPrefix(name, "member.")
	if entry.Operation() != jetstream.KeyValuePut {
		delete(g.seen, name)
		return member && known
	}
	s := &sighting{revision: entry.Revision(), at: time.Now()}
	if json.Unmarshal(entry.Value(), &s.value) == nil {
		g.seen[name] = s
	}
	return member && !known
}

// beats shows that this member is alive, again and again until ctx ends.
func (g *leases) beats(ctx context.Context) error {
	usual := leaseRenew // how soon it shows when somebody joins
	if g.fast && !g.bus.options.Own {
		usual = fastBeat
	}
	tick := time.NewTicker(usual)
	defer tick.Stop()
	last := time.Now()
	for n := uint64(2); ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if every, _ := g.pace(); time.Since(last)+usual/2 < every {
			continue
		}
		last = time.Now()
		if err := g.beat(ctx, n); err != nil {
			return err
		}
	}
}

// beat shows that this member is alive.
func (g *leases) beat(ctx context.Context, n uint64) error {
	v := leaseValue{Owner: g.me, Beat: n}
	if g.fast {
		every, _ := g.pace()
		v.Every, v.Even = every.Milliseconds(), true
	}
	data, _ := json.Marshal(v) // cannot fail
	if _, err := g.kv.Put(ctx, g.key("member."+token(g.me)), data); err != nil {
		return errLease.New(err, "show member %s of %s", g.me, g.group)
	}
	return nil
}

func (g *leases) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if g.kv != nil {
		_ = g.kv.Delete(ctx, g.key("member."+token(g.me)))
	}
}

func (g *leases) renew(ctx context.Context) {
	g.mu.Lock()
	held := make([]*lease, 0, len(g.held))
	for _, l := range g.held {
		held = append(held, l)
	}
	g.mu.Unlock()
	for _, l := range held {
		if err := l.update(ctx, func(v *leaseValue) { v.Beat++ }); errors.Is(err, errFenced) {
			g.bus.log.Warn("lease was taken over", "group", g.group, "name", l.name)
			l.end()
		}
	}
}

// update changes the value of a held lease; errFenced means somebody else did.
func (l *lease) update(ctx context.Context, change func(*leaseValue)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := l.value
	change(&next)
	data, _ := json.Marshal(next) // cannot fail
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	revision, err := l.kv.Update(ctx, l.parent.key(l.name), data, l.revision)
	if err != nil {
		if apiCode(err) == codeWrongLastSequence || errors.Is(err, jetstream.ErrKeyExists) {
			// An answer that got lost leaves our own value with a newer revision.
			if now, getErr := l.kv.Get(ctx, l.parent.key(l.name)); getErr == nil && string(now.Value()) == string(data) {
				l.value, l.revision = next, now.Revision()
				return nil
			}
			return errFenced.New(err, "renew the lease of %s", l.name)
		}
		return errLease.New(err, "renew the lease of %s", l.name)
	}
	l.value, l.revision = next, revision
	return nil
}

// balance takes what falls to this member and is free, and hands over what
// falls to another.
func (g *leases) balance(ctx context.Context) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// Who has not even seen its own signs of life, as after a stop of the process or while
	// the watch lags, cannot tell the dead from the living. Where nobody else is, there are
	// none to tell, and signs are rare.
	if own := g.seen["member."+token(g.me)]; own == nil || !own.lives() && !g.isAlone() {
		return
	}
	members, even := []string{g.me}, g.fast
	dead := map[string]bool{}
	for name, s := range g.seen {
		switch {
		case !strings.HasPrefix(name, "member.") || s.value.Owner == g.me:
		case s.lives():
			members = append(members, s.value.Owner)
			even = even && s.value.Even
		default:
			dead[s.value.Owner] = true
		}
	}
	sort.Strings(members)
	names := g.list()
	heirs := heirsOf(names, members, even)
	for name, l := range g.held {
		if !slices.Contains(names, name) {
			l.end()
			l.gone = true
		}
	}
	for _, name := range names {
		heir := heirs[name]
		if l, mine := g.held[name]; mine {
			if heir != g.me {
				l.end()
			}
			continue
		}
		s := g.seen[name]
		free := s == nil || s.value.Owner == "" || s.value.Owner == g.me || time.Since(s.at) > leaseExpiry || dead[s.value.Owner]
		// What its heir has not taken for long is taken by whoever can.
		if free && (heir == g.me || s != nil && time.Since(s.at) > 3*leaseExpiry) {
			g.take(ctx, name, s)
		}
	}
}

// lives tells whether a member has shown lately that it is alive.
func (s *sighting) lives() bool {
	expiry := leaseExpiry
	if s.value.Every > 0 {
		expiry = beatsMissed * time.Duration(s.value.Every) * time.Millisecond
	}
	return time.Since(s.at) < expiry
}

// heirsOf says to which member each name falls. Even: all get as many, or one more.
func heirsOf(names, members []string, even bool) map[string]string {
	heirs := make(map[string]string, len(names))
	if !even {
		for _, name := range names {
			heirs[name] = rendezvous(name, members)
		}
		return heirs
	}
	each, more := len(names)/len(members), len(names)%len(members)
	load := make(map[string]int, len(members))
	for _, name := range slices.Sorted(slices.Values(names)) {
		// Those that may take one: nobody is passed over for want of room in all.
		open := slices.DeleteFunc(slices.Clone(members), func(m string) bool { return load[m] > each || load[m] == each && more == 0 })
		heir := rendezvous(name, open)
		if load[heir] == each {
			more--
		}
		load[heir]++
		heirs[name] = heir
	}
	return heirs
}

func rendezvous(name string, members []string) string {
	best, heir := uint64(0), ""
	for _, m := range members {
		h := fnv.New64a()
		_, _ = h.Write([]byte(name + "\x00" + m))
		// FNV alone leaves its high bits alike for names that differ at the end.
		x := h.Sum64()
		x ^= x >> 33
		x *= 0xff51afd7ed558ccd
		x ^= x >> 33
		if heir == "" || x > best {
			best, heir = x, m
		}
	}
	return heir
}

// take acquires a free lease and runs its work. g.mu is held.
func (g *leases) take(ctx context.Context, name string, s *sighting) {
	l := &lease{parent: g, kv: g.kv, name: name, value: leaseValue{Owner: g.me}}
	if s != nil {
		l.revision = s.revision
		l.value = s.value
		l.value.Owner = g.me
	}
	data, _ := json.Marshal(l.value) // cannot fail
	call, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var err error
	if s == nil {
		l.revision, err = g.kv.Create(call, g.key(name), data)
	} else {
		l.revision, err = g.kv.Update(call, g.key(name), data, l.revision)
	}
	if err != nil {
		return // somebody was faster, or no connection: the next tick sees
	}
	run, end := context.WithCancel(ctx)
	l.end = end
	g.held[name] = l
	g.wg.Go(func() {
		defer end()
		err := g.run(run, l)
		if err != nil && run.Err() == nil && !errors.Is(err, errFenced) {
			g.bus.log.Error("leased work ended with an error", "group", g.group, "name", name, "err", err)
			// Not at once again with what fails at once.
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
		release, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		g.mu.Lock()
		gone := l.gone
		g.mu.Unlock()
		if gone {
			l.mu.Lock()
			_ = l.kv.Delete(release, g.key(name), jetstream.LastRevision(l.revision))
			l.mu.Unlock()
		} else {
			_ = l.update(release, func(v *leaseValue) { v.Owner = "" })
		}
		g.mu.Lock()
		delete(g.held, name)
		g.mu.Unlock()
		select {
		case g.ended <- struct{}{}:
		default:
		}
	})
}
