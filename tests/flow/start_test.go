package flow

import (
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

// Stages that start while the bus is away, or while it cannot make streams yet, wait
// for it instead of ending: nobody has to start machines in order.
func TestStagesStartBeforeTheBus(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	addr := harness.FreeAddr(t)
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	start := func(jetStream bool) *server.Server {
		t.Helper()
		s, err := server.NewServer(&server.Options{Host: host, Port: port, NoSigs: true, NoLog: true, MaxPayload: 8 << 20, JetStream: jetStream, StoreDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		if !s.ReadyForConnections(30 * time.Second) {
			t.Fatal("the server does not start")
		}
		return s
	}
	url := "nats://" + addr
	processes := map[*harness.Process]string{}
	for _, s := range topology.Stages {
		p, health := w.RunStage(s, 0, url)
		processes[p] = health
	}
	gives := func(p *harness.Process, line string) {
		t.Helper()
		harness.Await(t, time.Minute, p.Name+" says: "+line, func() bool {
			if !p.Running() {
				t.Fatalf("%s has ended:\n%s", p.Name, p.Log())
			}
			return strings.Contains(p.Log(), line)
		})
	}
	for p := range processes {
		gives(p, "the bus does not answer yet")
	}
	useless := start(false)
	for p := range processes {
		gives(p, "the bus does not let this process start yet")
	}
	useless.Shutdown()
	useless.WaitForShutdown()
	start(true)
	for p, health := range processes {
		harness.AwaitReady(t, p, health)
	}
	set := trail(9, 4, 100)
	ids := put(t, w, set)
	w.AwaitDelivered(time.Minute, set.Unique())
	harness.Verify(t, harness.Log(t, harness.Connect(t, url)), ids)
}

// A process that waits for the bus stops when it is asked to, and one whose
// credentials are wrong does not wait.
func TestStartThatCannotBe(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	p, _ := w.RunStage(topology.Parse, 0, "nats://"+harness.FreeAddr(t))
	harness.Await(t, time.Minute, "it waits", func() bool { return strings.Contains(p.Log(), "the bus does not answer yet") })
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(20 * time.Second); code != 0 {
		t.Errorf("stopped while it waited, it ended with %d:\n%s", code, p.Log())
	}
	guarded, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(guarded.Stop)
	at := guarded.URL()
	p, _ = w.RunStage(topology.Parse, 1, "nats://penstock:wrong"+at[strings.LastIndex(at, "@"):])
	if code := p.Wait(30 * time.Second); code == 0 || !strings.Contains(p.Log(), "bus.refused") {
		t.Errorf("with a wrong password it ended with %d:\n%s", code, p.Log())
	}
	if strings.Contains(p.Log(), "wrong@") {
		t.Error("the password is in the log")
	}
}
