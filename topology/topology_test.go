package topology

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
)

// testLog is quiet unless the tests run verbosely.
func testLog(t testing.TB) *slog.Logger {
	t.Helper()
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// testServer starts an embedded server that ends with the test.
func testServer(t testing.TB, dir string, disk int64) *Embedded {
	t.Helper()
	e, err := StartEmbedded(EmbeddedOptions{Dir: dir, Disk: disk, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Stop)
	return e
}

// testBus returns a connection to a fresh server whose streams exist.
func testBus(t testing.TB, l Limits) *Bus {
	t.Helper()
	if l.Disk == 0 {
		l.Disk = 256 << 20
	}
	e := testServer(t, t.TempDir(), l.Disk)
	b := testConnect(t, e, Options{Name: "test"})
	if _, err := b.Apply(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	return b
}

func testConnect(t testing.TB, e *Embedded, o Options) *Bus {
	t.Helper()
	o.Log = testLog(t)
	b, err := Connect(t.Context(), e.Connect(o))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// testConnectByURL connects over the network: in process there is no other server to come
// back to when this one has ended.
func testConnectByURL(t testing.TB, e *Embedded, name string) *Bus {
	t.Helper()
	b, err := Connect(t.Context(), Options{Name: name, URL: e.URL(), Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// await polls until ok, for what the server does in its own time.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited too long for: %s", what)
		case <-tick.C:
		}
	}
}

// testFrame is a frame of n events of a source; seed keeps their ids apart.
func testFrame(t testing.TB, lane uint32, seed string, n int) []byte {
	t.Helper()
	b := messages.NewBuilder(messages.Header{Source: "s", Format: "json", EventType: "t.x", Lane: lane})
	o := b.Origin(&messages.Origin{Pull: messages.NewPull("test", seed), Source: "s"})
	for i := range n {
		b.Add(messages.Event{ID: messages.NewID([]byte(seed), []byte{byte(i), byte(i >> 8)}), Time: 1, Origin: o, Record: uint64(i), Doc: []byte(`{"a":1}`)})
	}
	return b.Encode(nil)
}

// run starts f and returns a function that stops it and waits for its end.
func run(t testing.TB, f func(ctx context.Context) error) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(30 * time.Second):
			t.Fatal("did not stop")
			return nil
		}
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return stop
}
