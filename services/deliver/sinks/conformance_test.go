package sinks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue { // tests that are parallel wait for servers
		_ = f.Value.Set("8")
	}
	goleak.VerifyTestMain(m)
}

// world is a sink with a far side whose troubles can be switched on. A trouble is
// nil where the kind cannot have it.
type world struct {
	sink Sink
	// received returns the events at the far side, each as a line in the form of the
	// envelope: a kind with another form translates. What was cut is left out.
	received func() []string
	// secrets must not show up anywhere.
	secrets []string
	// Each trouble returns what ends it.
	outage, denial, hang, throttle, cut func() (heal func())
	// partial makes the far side refuse, for good, the events whose number divides by
	// three, and no others.
	partial func() (heal func())
	// untrusted opens the kind towards a far side whose certificate it has no reason to
	// trust; reached tells whether any event got there.
	untrusted func() (s Sink, reached func() bool)
	// hangs is how long a call may take while the far side hangs.
	hangs time.Duration
	// cannot says why a trouble is nil.
	cannot map[string]string
	done   func()
}

// harnesses has one entry per kind, which the test file of the kind puts there in its
// init. A kind without one fails the suite.
var harnesses = map[string]func(t *testing.T) *world{}

func init() {
	harnesses["file"] = fileWorld
	harnesses["stdout"] = stdoutWorld
}

// secretPayload is in every document: errors must not show it.
const secretPayload = "payload-4711"

func event(n int, doc string) *Event {
	return &Event{
		ID: messages.NewID(fmt.Append(nil, n)), Type: "a.b", Source: "src", Account: "123456789012", Region: "eu-west-1",
		Time: 1_767_599_094_120_000_000, Doc: []byte(doc),
	}
}

// batchOf encodes documents as the batcher does. The numbers of the events begin
// at first.
func batchOf(s Sink, first int, docs ...string) Batch {
	var data []byte
	var items []Item
	for i, doc := range docs {
		e := event(first+i, doc)
		start := len(data)
		data = s.Append(data, e)
		items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
	}
	return NewBatch(data, items)
}

func plain(first, n int) []string {
	docs := make([]string, n)
	for i := range docs {
		docs[i] = fmt.Sprintf(`{"n":%d,"p":%q,"pad":%q}`, first+i, secretPayload, strings.Repeat("x", 200))
	}
	return docs
}

// watched checks each result: an error is a fault of the class of the verdict,
// and shows neither secrets nor payload.
type watched struct {
	Sink
	t *testing.T
	w *world
}

func (s watched) Deliver(ctx context.Context, b Batch) Result {
	s.t.Helper()
	before := bytes.Clone(b.Bytes())
	res := s.Sink.Deliver(ctx, b)
	if !bytes.Equal(b.Bytes(), before) {
		s.t.Error("the sink changed the batch")
	}
	clear(b.Bytes()) // what still reads it now would send zeros
	copy(b.Bytes(), before)
	if (res.Verdict == Done) != (res.Err == nil) {
		s.t.Errorf("verdict %v with error %v", res.Verdict, res.Err)
	}
	if res.Err == nil {
		return res
	}
	class := map[Verdict]fault.Class{Retry: fault.Retry, Stop: fault.Stop, Split: fault.Reject, TooLarge: fault.Reject, Reject: fault.Reject}[res.Verdict]
	if fault.CodeOf(res.Err) == "unknown" || fault.ClassOf(res.Err) != class {
		s.t.Errorf("verdict %v with a fault of class %v: %v", res.Verdict, fault.ClassOf(res.Err), res.Err)
	}
	for _, secret := range append([]string{secretPayload}, s.w.secrets...) {
		if strings.Contains(fmt.Sprintf("%v %+v", res.Err, res), secret) {
			s.t.Errorf("the error shows %q: %v", secret, res.Err)
		}
	}
	return res
}

func TestConformance(t *testing.T) {
	cases := []struct {
		name string
		run  func(t *testing.T, w *world, s Sink)
	}{
		{"delivers", delivers},
		{"delivers concurrently", deliversConcurrently},
		{"survives an outage", survivesOutage},
		{"stops when denied", stopsWhenDenied},
		{"is not held by a hanging peer", notHeld},
		{"honours throttling", honoursThrottling},
		{"repeats what was cut", repeatsWhatWasCut},
		{"takes a batch twice", takesTwice},
		{"honours cancellation", honoursCancellation},
		{"closes in the middle", closesInTheMiddle},
		{"judges events one by one", judgesOneByOne},
		{"trusts nobody by default", trustsNobody},
	}
	for _, kind := range Catalog.Names() {
		open, ok := harnesses[kind]
		if !ok {
			t.Errorf("sink %q has no harness: add one to harnesses", kind)
			continue
		}
		t.Run(kind, func(t *testing.T) {
			before := goleak.IgnoreCurrent()
			t.Run("cases", func(t *testing.T) { // they wait more than they compute
				for _, c := range cases {
					t.Run(c.name, func(t *testing.T) {
						t.Parallel()
						w := open(t)
						if err := w.sink.Limits().Validate(); err != nil {
							t.Errorf("limits: %v", err)
						}
						c.run(t, w, watched{w.sink, t, w})
						if err := w.sink.Close(); err != nil {
							t.Errorf("close: %v", err)
						}
						w.done()
					})
				}
			})
			goleak.VerifyNone(t, before)
		})
	}
}

// trouble returns the way to switch it on, or nil after seeing to it that there
// is a reason.
func trouble(t *testing.T, w *world, name string, f func() func()) func() func() {
	t.Helper()
	if f == nil && w.cannot[name] == "" {
		t.Errorf("no %s, and no reason why", name)
	}
	return f
}

func mustDeliver(t *testing.T, s Sink, b Batch) {
	t.Helper()
	if res := s.Deliver(t.Context(), b); res.Verdict != Done {
		t.Fatalf("got %v: %v", res.Verdict, res.Err)
	}
}

// expect compares the far side with the events numbered from 0 on, in any order.
func expect(t *testing.T, w *world, n int) {
	t.Helper()
	seen := map[string]int{}
	for _, line := range w.received() {
		var e struct {
			ID, Type, Time, Source, Account, Region string
			Event                                   struct{ N int }
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		if e.ID != messages.NewID(fmt.Append(nil, e.Event.N)).String() || e.Type != "a.b" || e.Source != "src" || e.Time != "2026-01-05T07:44:54.12Z" || e.Account != "123456789012" || e.Region != "eu-west-1" {
			t.Fatalf("line %q", line)
		}
		seen[e.ID]++
	}
	for i := range n {
		if c := seen[messages.NewID(fmt.Append(nil, i)).String()]; c != 1 {
			t.Errorf("event %d is there %d times", i, c)
		}
	}
	if len(seen) != n {
		t.Errorf("%d events, want %d", len(seen), n)
	}
}

func delivers(t *testing.T, w *world, s Sink) {
	mustDeliver(t, s, batchOf(s, 0, plain(0, 3)...))
	mustDeliver(t, s, batchOf(s, 3, "{\n  \"n\": 3,\n  \"s\": \"a b\"\n}"))
	mustDeliver(t, s, batchOf(s, 4, plain(4, 500)...))
	expect(t, w, 504)
	if lines := w.received(); len(lines) > 3 && !strings.HasSuffix(lines[3], `"event":{"n":3,"s":"a b"}}`) {
		t.Errorf("a document of several lines went out as %q", lines[3])
	}
}

func deliversConcurrently(t *testing.T, w *world, s Sink) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 5 {
				first := (i*5 + j) * 20
				if res := s.Deliver(t.Context(), batchOf(s, first, plain(first, 20)...)); res.Verdict != Done {
					t.Errorf("got %v: %v", res.Verdict, res.Err)
				}
			}
		})
	}
	wg.Wait()
	expect(t, w, 800)
}

func survivesOutage(t *testing.T, w *world, s Sink) {
	outage := trouble(t, w, "outage", w.outage)
	if outage == nil {
		return
	}
	mustDeliver(t, s, batchOf(s, 0, plain(0, 10)...))
	heal := outage()
	b := batchOf(s, 10, plain(10, 10)...)
	for range 3 {
		if res := s.Deliver(t.Context(), b); res.Verdict != Retry && res.Verdict != Stop {
			t.Errorf("got %v: %v", res.Verdict, res.Err)
		}
	}
	heal()
	mustDeliver(t, s, b)
	expect(t, w, 20)
}

func stopsWhenDenied(t *testing.T, w *world, s Sink) {
	denial := trouble(t, w, "denial", w.denial)
	if denial == nil {
		return
	}
	heal := denial()
	b := batchOf(s, 0, plain(0, 10)...)
	if res := s.Deliver(t.Context(), b); res.Verdict != Stop {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
	heal()
	mustDeliver(t, s, b)
	expect(t, w, 10)
}

func notHeld(t *testing.T, w *world, s Sink) {
	hang := trouble(t, w, "hang", w.hang)
	if hang == nil {
		return
	}
	heal := hang()
	b := batchOf(s, 0, plain(0, 10)...)
	began := time.Now()
	if res := s.Deliver(t.Context(), b); res.Verdict != Retry {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
	if took := time.Since(began); took > w.hangs {
		t.Errorf("held for %v", took)
	}
	heal()
	mustDeliver(t, s, b)
	expect(t, w, 10)
}

func honoursThrottling(t *testing.T, w *world, s Sink) {
	throttle := trouble(t, w, "throttle", w.throttle)
	if throttle == nil {
		return
	}
	heal := throttle()
	b := batchOf(s, 0, plain(0, 10)...)
	if res := s.Deliver(t.Context(), b); res.Verdict != Retry || res.After != 7*time.Second {
		t.Errorf("got %v after %v, want retry after 7s: %v", res.Verdict, res.After, res.Err)
	}
	heal()
	mustDeliver(t, s, b)
	expect(t, w, 10)
}

func repeatsWhatWasCut(t *testing.T, w *world, s Sink) {
	cut := trouble(t, w, "cut", w.cut)
	if cut == nil {
		return
	}
	mustDeliver(t, s, batchOf(s, 0, plain(0, 10)...))
	heal := cut()
	b := batchOf(s, 10, plain(10, 5000)...)
	for range 2 {
		if res := s.Deliver(t.Context(), b); res.Verdict != Retry {
			t.Errorf("got %v: %v", res.Verdict, res.Err)
		}
	}
	heal()
	mustDeliver(t, s, b)
	expect(t, w, 5010)
}

func takesTwice(t *testing.T, w *world, s Sink) {
	b := batchOf(s, 0, plain(0, 3)...)
	mustDeliver(t, s, b)
	mustDeliver(t, s, b)
	lines := w.received()
	slices.Sort(lines)
	if lines = slices.Compact(lines); len(lines) != 3 {
		t.Errorf("the second copy differs from the first: %d different lines of 3", len(lines))
	}
}

func honoursCancellation(t *testing.T, w *world, s Sink) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if res := s.Deliver(ctx, batchOf(s, 0, plain(0, 3)...)); res.Verdict != Retry || !errors.Is(res.Err, context.Canceled) {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
	if w.hang == nil {
		return
	}
	heal := w.hang()
	defer heal()
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	began := time.Now()
	if res := s.Deliver(ctx, batchOf(s, 0, plain(0, 3)...)); res.Verdict != Retry || !errors.Is(res.Err, context.Canceled) {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
	if took := time.Since(began); took > w.hangs {
		t.Errorf("returned after %v", took)
	}
}

// judgesOneByOne: of a batch with bad events only those are refused, for whatever
// reason the far side has, and all others get there.
func judgesOneByOne(t *testing.T, w *world, s Sink) {
	partial := trouble(t, w, "partial", w.partial)
	if partial == nil {
		return
	}
	heal := partial()
	defer heal()
	var data []byte
	var items []Item
	for i, doc := range plain(0, 30) {
		e := event(i, doc)
		start := len(data)
		data = s.Append(data, e)
		items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
	}
	refused := map[string]bool{}
	settle(t, s, data, items, 100, func(id messages.ID, v Verdict) {
		if v == Reject {
			refused[id.String()] = true
		}
	})
	there := map[string]bool{}
	for _, line := range w.received() {
		var e struct{ ID string }
		must(t, json.Unmarshal([]byte(line), &e))
		there[e.ID] = true
	}
	for i := range 30 {
		id, bad := messages.NewID(fmt.Append(nil, i)).String(), i%3 == 0
		if refused[id] != bad || there[id] == bad {
			t.Errorf("event %d: refused %v, there %v", i, refused[id], there[id])
		}
	}
}

// settle sends events as the batcher does until each is done or refused.
func settle(t *testing.T, s Sink, data []byte, items []Item, tries int, judged func(messages.ID, Verdict)) {
	t.Helper()
	for tries > 0 && len(items) > 0 {
		tries--
		res := s.Deliver(t.Context(), sideBySide(data, items))
		if (res.Verdict == Split || res.Verdict == TooLarge) && len(items) > 1 {
			half := len(items) / 2
			settle(t, s, data, items[:half:half], tries, judged)
			settle(t, s, data, items[half:], tries, judged)
			return
		}
		var left []Item
		next := 0
		for i, item := range items {
			v := res.Verdict
			if next < len(res.Items) && res.Items[next].Index == i {
				v = res.Items[next].Verdict
				next++
			}
			switch v {
			case Retry, Stop:
				left = append(left, item)
				continue
			case Split, TooLarge:
				v = Reject
			case Done, Reject:
			}
			judged(item.ID, v)
		}
		items = left
	}
	if len(items) > 0 {
		t.Fatalf("%d events are not settled", len(items))
	}
}

// sideBySide makes a batch of some of the events in data.
func sideBySide(data []byte, items []Item) Batch {
	var moved []byte
	places := make([]Item, len(items))
	for i, item := range items {
		places[i] = Item{ID: item.ID, Start: len(moved), End: len(moved) + item.End - item.Start}
		moved = append(moved, data[item.Start:item.End]...)
	}
	return NewBatch(moved, places)
}

func trustsNobody(t *testing.T, w *world, _ Sink) {
	if w.untrusted == nil {
		if w.cannot["untrusted"] == "" {
			t.Error("no untrusted, and no reason why")
		}
		return
	}
	inner, reached := w.untrusted()
	s := watched{inner, t, w}
	defer s.Close()
	if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 1)...)); res.Verdict != Stop {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
	if reached() {
		t.Error("an event got to a server that nobody vouches for")
	}
}

// closesInTheMiddle: what was confirmed is there after Close, and whole.
func closesInTheMiddle(t *testing.T, w *world, s Sink) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	confirmed := map[string]bool{}
	for i := range 4 {
		wg.Go(func() {
			for j := range 50 {
				first := (i*50 + j) * 10
				b := batchOf(s, first, plain(first, 10)...)
				if s.Deliver(ctx, b).Verdict != Done {
					return
				}
				mu.Lock()
				for k := range b.Len() {
					confirmed[b.ID(k).String()] = true
				}
				if len(confirmed) > 100 {
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	cancel()
	if err := w.sink.Close(); err != nil {
		t.Error(err)
	}
	for _, line := range w.received() {
		var e struct{ ID string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		delete(confirmed, e.ID)
	}
	if len(confirmed) > 0 {
		t.Errorf("%d confirmed events are not there", len(confirmed))
	}
	w.sink = closed{w.sink}
}

// closed is a sink that was closed already.
type closed struct{ Sink }

func (closed) Close() error { return nil }

func fileWorld(t *testing.T) *world {
	folder := filepath.Join(t.TempDir(), "out")
	cfg := defaultFile()
	cfg.Path = filepath.Join(folder, "{destination}.ndjson")
	s, err := openFile(t.Context(), cfg, Deps{Destination: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	sink := s.(*fileSink)
	path := filepath.Join(folder, "disk.ndjson")
	return &world{
		sink:     s,
		received: func() []string { return linesOf(t, path) },
		// The folder is away and a file is in its place: works for root as well.
		outage: func() func() {
			must(t, os.Rename(folder, folder+".away"))
			must(t, os.WriteFile(folder, nil, 0o600))
			return func() { must(t, os.Remove(folder)); must(t, os.Rename(folder+".away", folder)) }
		},
		// The disk is full in the middle of a batch.
		cut: func() func() {
			wrap := sink.wrap
			sink.wrap = func(h handle) handle { return &fullDisk{h, 100_000} }
			sink.mu.Lock()
			sink.file = sink.wrap(sink.file)
			sink.mu.Unlock()
			return func() {
				sink.wrap = wrap
				sink.mu.Lock()
				sink.file = sink.file.(*fullDisk).handle
				sink.mu.Unlock()
			}
		},
		cannot: map[string]string{
			"denial":    "root may write everywhere; see TestFileDenied",
			"hang":      "a local disk does not hang, or the whole system does",
			"throttle":  "a disk does not throttle",
			"partial":   "it looks at no event",
			"untrusted": "there is no server",
		},
		done: func() {},
	}
}

func stdoutWorld(t *testing.T) *world {
	out := &pipe{}
	s, err := openStdout(t.Context(), defaultStdout(), Deps{Destination: "out", Stdout: out})
	if err != nil {
		t.Fatal(err)
	}
	return &world{
		sink:     s,
		received: out.lines,
		outage:   func() func() { return out.fail(errors.New("no room")) },
		denial:   func() func() { return out.fail(os.ErrClosed) },
		cannot: map[string]string{
			"hang":      "a blocked write to a pipe cannot be taken back; said in the doc comment",
			"throttle":  "a pipe does not throttle",
			"cut":       "what was printed cannot be taken back",
			"partial":   "it looks at no event",
			"untrusted": "there is no server",
		},
		done: func() {},
	}
}

type pipe struct {
	mu  sync.Mutex
	buf bytes.Buffer
	err error
}

func (p *pipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, p.err
	}
	return p.buf.Write(b)
}

func (p *pipe) fail(err error) func() {
	set := func(err error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.err = err
	}
	set(err)
	return func() { set(nil) }
}

func (p *pipe) lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Split(strings.TrimSuffix(p.buf.String(), "\n"), "\n")
}

func linesOf(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) == 0 {
		return nil
	}
	if data[len(data)-1] != '\n' {
		t.Errorf("%s ends within a line", path)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
