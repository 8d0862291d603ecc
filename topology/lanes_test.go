package topology

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"

	"github.com/penstock/penstock/messages"
)

// mapWork is dedupe with a map, for one lane.
type mapWork struct {
	mu   sync.Mutex
	seen map[messages.ID]bool
}

func (w *mapWork) Restore(ids []byte, _ time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ; len(ids) > 0; ids = ids[16:] {
		w.seen[messages.ID(ids)] = true
	}
}

func (w *mapWork) Frame(ctx context.Context, in In[messages.View], commit func(context.Context, []byte, []byte) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var fresh []byte
	for i := range in.Value.Len() {
		id := in.Value.ID(i)
		if w.seen[id] {
			in.Value.SetFate(i, messages.Duplicate)
			continue
		}
		fresh = append(fresh, id[:]...)
	}
	if err := commit(ctx, in.Value.Encoded(), fresh); err != nil {
		return err
	}
	for ; len(fresh) > 0; fresh = fresh[16:] {
		w.seen[messages.ID(fresh)] = true
	}
	return nil
}

func (w *mapWork) Close() {}

func openMap(uint32) LaneWork { return &mapWork{seen: map[messages.ID]bool{}} }

// uniques reads UNIQUE and returns how often each id is live in it, and how many
// events it holds at all.
func uniques(t testing.TB, b *Bus) (live map[messages.ID]int, all int) {
	t.Helper()
	live = map[messages.ID]int{}
	if err := b.Read(t.Context(), Span{Subject: "penstock.unique.>"}, func(m Stored) error {
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			return err
		}
		for i := range v.Len() {
			all++
			if v.Fate(i) == messages.Live {
				live[v.ID(i)]++
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return live, all
}

func publish(t testing.TB, b *Bus, ms ...Message) {
	t.Helper()
	out := b.NewOutbox(Parse)
	for _, m := range ms {
		if err := out.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Every event is live once, across restarts and hand-overs of the lanes; the
// window comes back from SEEN and the tail of UNIQUE.
// covers: DEV-52
func TestLanesPassEachEventOnceAcrossRestarts(t *testing.T) {
	for _, lanes := range []uint32{1, 2} { // one lane has several outputs under way
		t.Run(fmt.Sprint(lanes), func(t *testing.T) {
			b := testBus(t, Limits{Lanes: lanes})
			const frames, each = 20, 50
			for round := range 3 {
				send := func() {
					for f := range frames {
						lane := uint32(f) % lanes
						publish(t, b, Message{Subject: ParsedSubject(lane), ID: fmt.Sprintf("r%d-%d", round, f), Data: testFrame(t, lane, fmt.Sprint("frame", f), each)})
					}
				}
				if round == 1 {
					send() // they wait, and come one behind the other
				}
				stop := run(t, func(ctx context.Context) error { return b.Lanes(ctx, time.Hour, openMap) })
				if round != 1 {
					send()
				}
				if round == 1 && lanes == 1 {
					await(t, "some frames are marked", func() bool { _, all := uniques(t, b); return all > (round*frames+4)*each })
				} else {
					await(t, "all frames marked", func() bool { _, all := uniques(t, b); return all == (round+1)*frames*each })
				}
				if err := stop(); err != nil {
					t.Fatal(err)
				}
			}
			live, _ := uniques(t, b)
			if len(live) != frames*each {
				t.Errorf("%d ids are live, want %d", len(live), frames*each)
			}
			for id, n := range live {
				if n != 1 {
					t.Errorf("event %s is live %d times", id, n)
				}
			}
		})
	}
}

// A process that lost its lane without knowing is refused at its next publish.
func TestStaleLaneOwnerIsFenced(t *testing.T) {
	b := testBus(t, Limits{Lanes: 1})
	stale := &Lane{bus: b}
	if err := stale.commit(t.Context(), emptyFrame(), nil, 1, 0); err != nil {
		t.Fatal(err)
	}
	current := &Lane{bus: b, output: stale.output, input: stale.input}
	if err := current.commit(t.Context(), emptyFrame(), nil, 2, 0); err != nil {
		t.Fatal(err)
	}
	if err := stale.commit(t.Context(), emptyFrame(), nil, 3, 0); err == nil {
		t.Fatal("a stale owner could publish")
	}
	// Its own last publish again, as after a lost answer, is no offence.
	again := &Lane{bus: b, output: stale.output, input: 1}
	if err := again.commit(t.Context(), emptyFrame(), nil, 2, 0); err != nil {
		t.Fatalf("repeat of a publish that was stored: %v", err)
	}
	if again.output != current.output {
		t.Fatalf("repeat has sequence %d, want %d", again.output, current.output)
	}
}

// Outputs that are under way are fenced as those that are waited for: all of a stale owner
// are refused.
func TestStaleOutputsUnderWayAreFenced(t *testing.T) {
	b := testBus(t, Limits{Lanes: 1})
	stale := &Lane{bus: b, alone: true}
	for i := range uint64(4) {
		if err := stale.commit(t.Context(), emptyFrame(), nil, 1+i, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := stale.landAll(t.Context()); err != nil || stale.input != 4 || stale.output != 4 {
		t.Fatalf("input %d, output %d after four: %v", stale.input, stale.output, err)
	}
	current := &Lane{bus: b, alone: true, output: stale.output, input: stale.input}
	if err := current.commit(t.Context(), emptyFrame(), nil, 5, 0); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(4) {
		if err := stale.commit(t.Context(), emptyFrame(), nil, 6+i, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := stale.landAll(t.Context()); !errors.Is(err, errFenced) {
		t.Errorf("the stale owner's outputs: %v, want %v", err, errFenced)
	}
	if last, err := b.last(t.Context(), UniqueSubject(0)); err != nil || last.Sequence != current.output {
		t.Errorf("the last output is %+v, want that of the current owner: %v", last, err)
	}
}

// When an output under way is not stored, those behind it are not, either; then all are, in
// order, and those that were stored after all only once.
func TestOutputsUnderWayAreStoredInOrder(t *testing.T) {
	b := testBus(t, Limits{Lanes: 1})
	l := &Lane{bus: b, alone: true}
	for i := range uint64(6) {
		before := l.lastID
		if i == 2 { // the server refuses it, for whatever reason
			l.lastID = "nobody's"
		}
		if err := l.commit(t.Context(), emptyFrame(), []byte("0123456789abcdef"), 1+i, 0); err != nil {
			t.Fatal(err)
		}
		switch f := l.flights; i {
		case 1: // stored, and nobody heard of it
			if _, err := f[len(f)-1].ticket.wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			f[len(f)-1].ticket = nil
		case 2:
			f[len(f)-1].msg.Header.Set(nats.ExpectedLastMsgIdHdr, before)
		}
	}
	if err := l.landAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l.input != 6 || len(l.fresh) != 6*idBytes || l.flights != nil || l.flying != 0 {
		t.Errorf("input %d, %d bytes of ids, %d under way of %d bytes", l.input, len(l.fresh), len(l.flights), l.flying)
	}
	var inputs []uint64
	if err := b.Read(t.Context(), Span{Subject: UniqueSubject(0)}, func(m Stored) error {
		inputs = append(inputs, m.input)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := []uint64{1, 2, 3, 4, 5, 6}; !slices.Equal(inputs, want) {
		t.Errorf("outputs %v, want %v", inputs, want)
	}
}

// When one output was refused and all under way were stored again, the next are under way
// side by side as before.
func TestOutputsGoOnSideBySide(t *testing.T) {
	b := testBus(t, Limits{Lanes: 1})
	l := &Lane{bus: b, alone: true}
	for i := range uint64(3 * flightMost) {
		before := l.lastID
		if i == 1 { // the server refuses it, for whatever reason
			l.lastID = "nobody's"
		}
		if err := l.commit(t.Context(), emptyFrame(), nil, 1+i, 0); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			l.flights[0].msg.Header.Set(nats.ExpectedLastMsgIdHdr, before)
		}
	}
	if len(l.flights) < 2 {
		t.Fatalf("%d outputs are under way", len(l.flights))
	}
	last := &l.flights[len(l.flights)-1]
	if _, err := last.ticket.wait(t.Context()); err != nil {
		t.Errorf("the last output: %v", err)
	}
	last.ticket = nil
}

// Lanes wait for their streams, which another process may be about to make.
func TestLanesWaitForTheirStreams(t *testing.T) {
	b := testBus(t, Limits{Lanes: 1})
	if err := b.js.DeleteStream(t.Context(), Unique); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- b.Lanes(ctx, time.Hour, openMap) }()
	select {
	case err := <-ended:
		t.Fatalf("ended with %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if _, err := b.Apply(t.Context(), Limits{Disk: 256 << 20, Lanes: 1}); err != nil {
		t.Fatal(err)
	}
	publish(t, b, Message{Subject: ParsedSubject(0), ID: "a", Data: testFrame(t, 0, "a", 3)})
	await(t, "the frame is marked", func() bool { _, all := uniques(t, b); return all == 3 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// reusingWork puts all its outputs into one buffer, as work may that stores them one by one.
type reusingWork struct{ buffer []byte }

func (w *reusingWork) Restore([]byte, time.Time) {}
func (w *reusingWork) Close()                    {}
func (w *reusingWork) Frame(ctx context.Context, in In[messages.View], commit func(context.Context, []byte, []byte) error) error {
	w.buffer = append(w.buffer[:0], in.Value.Encoded()...)
	return commit(ctx, w.buffer, nil)
}

// An output under way that has to be stored again is what it was, whatever the work does
// with its buffers meanwhile.
func TestOutputsUnderWayStayAsTheyAre(t *testing.T) {
	b := testBus(t, Limits{Lanes: 1})
	l := &Lane{bus: b, alone: true}
	work := &reusingWork{}
	var want []string
	for i := range uint64(5) {
		data := testFrame(t, 0, fmt.Sprint("frame", i), 1+int(i))
		want = append(want, string(data))
		before := l.lastID
		if i == 1 { // the server refuses it, for whatever reason
			l.lastID = "nobody's"
		}
		stored := Stored{Subject: ParsedSubject(0), Sequence: 1 + i, Data: data}
		if err := l.frame(message.NewMessageWithContext(context.WithValue(t.Context(), deliveryKey{}, &stored), fmt.Sprint(i), data), work); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			l.flights[0].msg.Header.Set(nats.ExpectedLastMsgIdHdr, before)
		}
	}
	if err := l.landAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := b.Read(t.Context(), Span{Subject: UniqueSubject(0)}, func(m Stored) error {
		got = append(got, string(m.Data))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d outputs were stored, and not all as they were", len(got))
	}
}

// A second process that joins the server inside the first gets its share, and what it had
// when it died without a word goes back.
func TestLanesWithAServerInside(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	own := testConnect(t, e, Options{Name: "embedded", Own: true})
	if _, err := own.Apply(t.Context(), Limits{Disk: 256 << 20, Lanes: 1}); err != nil {
		t.Fatal(err)
	}
	second := ""
	for i := 0; second == "" || rendezvous("0", []string{own.options.Name, second}) != second; i++ {
		second = fmt.Sprint("second-", i)
	}
	joined := testConnectByURL(t, e, second)
	var mu sync.Mutex
	owner := ""
	open := func(name string) func(uint32) LaneWork {
		return func(n uint32) LaneWork {
			mu.Lock()
			defer mu.Unlock()
			owner = name
			return openMap(n)
		}
	}
	frames := 0
	marks := func(who string) {
		t.Helper()
		await(t, who+" has the lane", func() bool { mu.Lock(); defer mu.Unlock(); return owner == who })
		for range 3 {
			frames++
			publish(t, own, Message{Subject: ParsedSubject(0), ID: fmt.Sprint(frames), Data: testFrame(t, 0, fmt.Sprint(frames), 2)})
		}
		await(t, who+" marks frames", func() bool { _, all := uniques(t, own); return all == 2*frames })
	}
	run(t, func(ctx context.Context) error { return own.Lanes(ctx, time.Hour, open("own")) })
	marks("own")
	ctx, cancel := context.WithCancel(t.Context())
	var ended sync.WaitGroup
	ended.Go(func() { _ = joined.Lanes(ctx, time.Hour, open("second")) })
	marks("second")
	joined.nc.Close() // as if it were killed
	began := time.Now()
	marks("own")
	t.Log("taken after", time.Since(began))
	cancel()
	ended.Wait()
	live, _ := uniques(t, own)
	for id, n := range live {
		if n != 1 {
			t.Errorf("event %s is live %d times", id, n)
		}
	}
	if len(live) != 2*frames {
		t.Errorf("%d events are live, want %d", len(live), 2*frames)
	}
}

// Lanes spread over members, and move when one goes.
func TestLanesMoveWhenAMemberGoes(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	a := testConnect(t, e, Options{Name: "a"})
	if _, err := a.Apply(t.Context(), Limits{Disk: 256 << 20, Lanes: 8}); err != nil {
		t.Fatal(err)
	}
	c := testConnect(t, e, Options{Name: "c"})
	var mu sync.Mutex
	owners := map[string]map[uint32]bool{"a": {}, "c": {}}
	open := func(name string) func(uint32) LaneWork {
		return func(n uint32) LaneWork {
			mu.Lock()
			defer mu.Unlock()
			for _, lanes := range owners {
				delete(lanes, n)
			}
			owners[name][n] = true
			return openMap(n)
		}
	}
	count := func(name string) int {
		mu.Lock()
		defer mu.Unlock()
		return len(owners[name])
	}
	stopA := run(t, func(ctx context.Context) error { return a.Lanes(ctx, time.Hour, open("a")) })
	await(t, "a owns all", func() bool { return count("a") == 8 })
	run(t, func(ctx context.Context) error { return c.Lanes(ctx, time.Hour, open("c")) })
	await(t, "c got its share", func() bool { return count("c") > 0 && count("a") > 0 && count("a")+count("c") == 8 })
	if err := stopA(); err != nil {
		t.Fatal(err)
	}
	await(t, "c owns all", func() bool { return count("c") == 8 })
}

// A lane that fills UNIQUE before its next snapshot is due makes room by itself.
// covers: LIM-13
func TestLaneMakesRoomForItself(t *testing.T) {
	b := testBus(t, Limits{Disk: 64 << 20, Lanes: 1}) // UNIQUE: 8 MiB
	run(t, b.Keep)
	run(t, func(ctx context.Context) error { return b.Lanes(ctx, time.Hour, openMap) })
	run(t, func(ctx context.Context) error {
		return Consume(ctx, b, RouteConsumer, raw, func(context.Context, In[[]byte], Outbox) error { return nil })
	})
	const frames = 24
	noise := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{})
	published := make(chan error, 1)
	go func() {
		out := b.NewOutbox(Parse)
		for i := range frames {
			_, _ = random.Read(noise)
			f := messages.NewBuilder(messages.Header{Source: "s", Format: "json", EventType: "a.b"})
			f.Origin(&messages.Origin{Pull: messages.NewPull("p")})
			f.Add(messages.Event{ID: messages.NewID([]byte(strconv.Itoa(i))), Doc: noise})
			if err := out.Publish(t.Context(), Message{Subject: ParsedSubject(0), ID: strconv.Itoa(i), Data: f.Encode(nil)}); err != nil {
				published <- err
				return
			}
		}
		published <- out.Flush(t.Context())
	}()
	await(t, "all frames went through", func() bool {
		last, err := b.last(t.Context(), UniqueSubject(0))
		return err == nil && last != nil && last.Header.Get(headerInput) == strconv.Itoa(frames)
	})
	if err := <-published; err != nil {
		t.Fatal(err)
	}
}

// What somebody who stole dedupe's credentials leaves in its streams ends no lane: the lane
// goes on where its own frames say.
func TestLanesOutliveWhatIsNotTheirs(t *testing.T) {
	b := testBus(t, Limits{Lanes: 1})
	lanes := func() func() error {
		return run(t, func(ctx context.Context) error { return b.Lanes(ctx, time.Hour, openMap) })
	}
	const each = 10
	frame := func(round int) {
		publish(t, b, Message{Subject: ParsedSubject(0), ID: strconv.Itoa(round), Data: testFrame(t, 0, "the same", each)})
		await(t, "the frame is marked", func() bool {
			last, err := b.last(t.Context(), UniqueSubject(0))
			return err == nil && last != nil && last.Header.Get(headerInput) == strconv.Itoa(round)
		})
	}
	strangers := func() {
		for _, data := range [][]byte{nil, []byte("{}"), []byte("a text that is longer than an id")} {
			for _, subject := range []string{UniqueSubject(0), SeenSubject(0)} {
				if _, err := b.js.Publish(t.Context(), subject, data); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	strangers() // before the lane has a position
	stop := lanes()
	frame(1)
	strangers() // it has one, and publishes behind theirs
	frame(2)
	strangers() // and they are the last when another takes the lane
	if err := stop(); err != nil && !errors.Is(err, errFenced) {
		t.Fatal(err)
	}
	strangers()
	lanes()
	frame(3)
	live := 0
	if err := b.Read(t.Context(), Span{Subject: UniqueSubject(0)}, func(m Stored) error {
		if v, err := messages.DecodeFrame(m.Data); err == nil {
			for i := range v.Len() {
				if v.Fate(i) == messages.Live {
					live++
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if live != each {
		t.Errorf("%d events are live, want %d", live, each)
	}
}
