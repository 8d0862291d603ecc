package books

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/known"
	"github.com/penstock/penstock/topology"
)

func startBus(t testing.TB) *topology.Bus {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: 512 << 20, SyncInterval: time.Minute, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	bus, err := topology.Connect(t.Context(), server.Connect(topology.Options{Log: quiet}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bus.Close)
	if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 512 << 20}); err != nil {
		t.Fatal(err)
	}
	return bus
}

func publish(t testing.TB, bus *topology.Bus, all []topology.Stored) {
	t.Helper()
	for _, m := range all {
		put(t, bus, topology.LedgerSubject(topology.Parse), m.Data)
	}
}

var puts int

func put(t testing.TB, bus *topology.Bus, subject string, data []byte) {
	t.Helper()
	puts++
	out := bus.NewOutbox(topology.Parse)
	if err := errors.Join(out.Publish(t.Context(), topology.Message{Subject: subject, ID: fmt.Sprint("m", puts), Data: data}), out.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// stored reads LEDGER: with the times at which the server stored it.
func stored(t testing.TB, bus *topology.Bus) (all []topology.Stored) {
	t.Helper()
	if err := bus.Read(t.Context(), topology.Span{Subject: "penstock.ledger.>"}, func(m topology.Stored) error {
		all = append(all, m)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// await waits until the books are as far as the ledger.
func await(t testing.TB, r Reader, bus *topology.Bus) Summary {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		extent, err := bus.Extent(ctx, topology.Ledger)
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.Summary(ctx)
		if err == nil && s.Position+1 == extent.Next {
			return s
		}
		if err != nil && !errors.Is(err, known.ErrNoLedger) {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the books are at %d of %d", s.Position, extent.Next-1)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// fold folds in the background and returns how to end that.
func fold(t testing.TB, b *Books, bus *topology.Bus) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Fold(ctx, bus) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestFollow(t *testing.T) {
	bus := startBus(t)
	r := rand.New(rand.NewPCG(3, 3))
	all := store(r, random(r, 60))
	publish(t, bus, all[:len(all)/2])
	dir := t.TempDir()
	b := openBooks(t, dir, Options{})
	end := fold(t, b, bus)
	await(t, b, bus)
	publish(t, bus, all[len(all)/2:])
	s := await(t, Ask(bus), bus)
	if s.Behind != 0 {
		t.Errorf("%d behind", s.Behind)
	}
	same(t, b, inMemory(t, stored(t, bus)))

	// Over the bus all is the same.
	ask := Ask(bus)
	mine, err := b.Pulls(t.Context(), Filter{Limit: 30})
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := ask.Pulls(t.Context(), Filter{Limit: 30})
	if err != nil || fmt.Sprint(mine) != fmt.Sprint(theirs) {
		t.Errorf("%v: %v\nwant %v", err, theirs, mine)
	}
	if trail, err := ask.Pull(t.Context(), mine.Pulls[0].Pull); err != nil || trail.Pull.Origin != mine.Pulls[0].Origin {
		t.Errorf("%v: %+v", err, trail)
	}
	if j, err := ask.Trace(t.Context(), mine.Pulls[0].Origin); err != nil || len(j.Pulls) == 0 {
		t.Errorf("%v: %+v", err, j)
	}
	if _, err := ask.Trace(t.Context(), "s3://no/thing"); !errors.Is(err, ErrUnknown) {
		t.Errorf("%v", err)
	}
	if sources, err := ask.Sources(t.Context()); err != nil || len(sources) < 3 {
		t.Errorf("%v: %v", err, sources)
	}
	if of, behind, err := known.Ask(t.Context(), bus, known.Question{Bucket: "logs", Objects: []known.Object{{Key: "never"}}}); err != nil || behind != 0 || of[0].State != known.Never {
		t.Errorf("%v, %d: %v", of, behind, err)
	}

	// Another process may read the file meanwhile.
	other, err := OpenReadOnly(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if s2, err := other.Summary(t.Context()); err != nil || s2.Position != s.Position {
		t.Errorf("%v: %+v", err, s2)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	end()
	if _, err := ask.Summary(t.Context()); !errors.Is(err, known.ErrNoLedger) {
		t.Errorf("nobody keeps the books: %v", err)
	}
}

// A stream that was made anew has other messages under the same sequences: the books
// begin anew, and what they were is kept aside.
func TestLedgerMadeAnew(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	all := store(r, random(r, 40))
	dir := t.TempDir()
	b := openBooks(t, dir, Options{Log: slog.New(slog.DiscardHandler)})
	before := startBus(t)
	publish(t, before, all)
	if err := b.CatchUp(t.Context(), before, nil); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{len(all) / 2, len(all) * 2} { // fewer messages than folded, and more
		bus := startBus(t)
		for range n/len(all) + 1 {
			publish(t, bus, all[:min(n, len(all))])
		}
		var done, total uint64
		if err := b.CatchUp(t.Context(), bus, func(d, of uint64) { done, total = d, of }); err != nil {
			t.Fatal(err)
		}
		now := stored(t, bus)
		same(t, b, inMemory(t, now))
		if done != total || total != uint64(len(now)) {
			t.Errorf("progress %d of %d, want %d", done, total, len(now))
		}
		if aside, _ := filepath.Glob(filepath.Join(dir, "books-until-*.db")); len(aside) != 1 {
			t.Errorf("put aside: %v", aside)
		}
	}
}

// Where the log has an event and the books what it came from, the way is told as a whole.
func TestTraceEvent(t *testing.T) {
	bus := startBus(t)
	pull := messages.NewPull("a")
	origin := &messages.Origin{Pull: pull, Source: "trail", Bucket: "logs", Key: "a.json"}
	build := messages.NewBuilder(messages.Header{})
	var sought messages.ID
	for frame := range 3 {
		build.Reset(messages.Header{Source: "trail", Format: "json", EventType: types[0]})
		build.Origin(origin)
		for i := range 5 {
			id := messages.NewID([]byte{byte(frame), byte(i)})
			if frame == 1 && i == 3 {
				sought = id
			}
			build.Add(messages.Event{ID: id, Record: uint64(frame*5 + i), Doc: []byte("{}")})
		}
		put(t, bus, topology.EventSubject(types[0]), build.Encode(nil))
	}
	w := &writer{}
	w.add(&messages.Destination{Name: "archive", First: 1})
	w.add(&messages.Announced{Origin: origin, As: messages.Announced_AS_OBJECT})
	w.add(&messages.Delivered{Destination: "archive", Sequence: 2, EventType: types[0], Pulls: []*messages.DeliveredPull{{Pull: pull, Confirmed: 5}}})
	publish(t, bus, store(rand.New(rand.NewPCG(1, 1)), w.facts))
	b := openBooks(t, t.TempDir(), Options{})
	if err := b.CatchUp(t.Context(), bus, nil); err != nil {
		t.Fatal(err)
	}
	j, err := Trace(t.Context(), bus, b, strings.ToUpper(sought.String()), jobs.Span{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	e := j.Event
	if j.Kind != "event" || e == nil || e.Sequence != 2 || e.Index != 3 || e.Record != 8 || len(j.Pulls) != 1 || j.Pulls[0].Pull.Pull != hex.EncodeToString(pull) {
		t.Fatalf("%+v %+v", j, e)
	}
	if len(e.Settled) != 1 || e.Settled[0] != (SettledFrame{"archive", true}) {
		t.Errorf("settled %+v", e.Settled)
	}
	if _, err := Trace(t.Context(), bus, b, strings.Repeat("12", 16), jobs.Span{}, nil); err == nil {
		t.Error("an event that is nowhere was found")
	}
}

// childDir and childURL are how the process that is killed gets to know what to fold.
const (
	childDir = "PENSTOCK_TEST_BOOKS_DIR"
	childURL = "PENSTOCK_TEST_BOOKS_BUS"
)

// TestMain is also the process that TestKilled kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := foldUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func foldUntilKilled(dir string) error {
	ctx := context.Background()
	bus, err := topology.Connect(ctx, topology.Options{URL: os.Getenv(childURL), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	b, err := Open(ctx, dir, Options{})
	if err != nil {
		return err
	}
	fmt.Println("folding")
	return b.Fold(ctx, bus)
}

// However often the process is killed, each fact counts once.
// covers: design promise 4
func TestKilled(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: 512 << 20, SyncInterval: time.Minute, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	options := server.Connect(topology.Options{Log: quiet})
	bus, err := topology.Connect(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bus.Close)
	if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 512 << 20}); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(7, 7))
	all := store(r, random(r, 400))
	publish(t, bus, all)
	dir := t.TempDir()
	positions := map[uint64]bool{}
	for range 8 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir, childURL+"="+options.URL)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "folding"; {
		}
		<-time.After(time.Duration(r.IntN(300)) * time.Millisecond) // anywhere in what it does
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		b := openBooks(t, dir, Options{})
		s, err := b.Summary(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		positions[s.Position] = true
	}
	if len(positions) < 2 {
		t.Logf("it was never killed while it folded: %v", positions)
	}
	b := openBooks(t, dir, Options{})
	if err := b.CatchUp(t.Context(), bus, nil); err != nil {
		t.Fatal(err)
	}
	same(t, b, inMemory(t, stored(t, bus)))
}
