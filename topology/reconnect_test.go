package topology

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Pulls that were under way when the connection broke are answered no more: they are
// sent again at the next heartbeat, not after three.
func TestPullsAreSentAgainOnANewConnection(t *testing.T) {
	b := testBus(t, Limits{})
	if err := b.ensureConsumer(t.Context(), consumer(4)); err != nil {
		t.Fatal(err)
	}
	s := newSubscriber(b, consumer(4))
	ctx, stop := context.WithCancel(t.Context())
	if _, err := s.Subscribe(ctx, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(); s.giveUp(); s.settle() })
	s.mu.Lock()
	before := s.nextPull
	s.mu.Unlock()
	s.checkPulls()
	s.mu.Lock()
	same := s.nextPull
	s.mu.Unlock()
	if before == 0 || same != before {
		t.Errorf("%d pulls were sent, then %d with one under way", before, same)
	}
	b.reconnects.Add(1)
	s.checkPulls()
	s.mu.Lock()
	again := s.nextPull
	s.mu.Unlock()
	if again != before+1 {
		t.Errorf("after a reconnect %d pulls were sent in all, want %d", again, before+1)
	}
}

func TestReadersBeginAnewOnANewConnection(t *testing.T) {
	b := testBus(t, Limits{})
	r := &orderedReader{bus: b, subject: ParsedSubject(0), next: 1}
	t.Cleanup(r.Close)
	idle := func() {
		t.Helper()
		if _, _, err := r.Next(t.Context()); !errors.Is(err, errIdle) {
			t.Fatalf("an empty stream gave %v, want %v", err, errIdle)
		}
	}
	idle()
	first := r.consumer
	idle()
	if r.consumer != first || first == "" {
		t.Errorf("consumer %q became %q without need", first, r.consumer)
	}
	b.reconnects.Add(1)
	idle() // sees that the connection is another
	idle()
	if r.consumer == first {
		t.Errorf("consumer %q is still read, which may be gone", first)
	}
}

// refusals counts what a bus logs of logins that the server refused.
type refusals struct {
	slog.Handler
	n atomic.Int32
}

func (r *refusals) Enabled(context.Context, slog.Level) bool { return true }

func (r *refusals) Handle(ctx context.Context, rec slog.Record) error {
	rec.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok && errors.Is(err, nats.ErrAuthorization) {
			r.n.Add(1)
		}
		return true
	})
	return r.Handler.Handle(ctx, rec)
}

// A server that refuses us for a while, as while users are written anew, does not cut us off
// for ever.
func TestRefusedLoginsAreTriedAgain(t *testing.T) {
	t.Parallel()
	options := func(password string, port int) *server.Options {
		return &server.Options{
			Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(),
			Users: []*server.User{{Username: "u", Password: password}},
		}
	}
	first := options("one", -1)
	s, err := server.NewServer(first)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the server takes no connections")
	}
	seen := &refusals{Handler: testLog(t).Handler()}
	b, err := Connect(t.Context(), Options{URL: s.ClientURL(), User: "u", Password: "one", Name: "test", Log: slog.New(seen)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	port := s.Addr().(*net.TCPAddr).Port
	set := func(password string) {
		t.Helper()
		o := options(password, port)
		o.StoreDir = first.StoreDir
		if err := s.ReloadOptions(o); err != nil {
			t.Fatal(err)
		}
	}
	set("two")
	await(t, "the server has refused us more than once", func() bool { return seen.n.Load() > 1 || b.nc.IsClosed() })
	set("one")
	await(t, "we are connected again", b.nc.IsConnected)
}
