package harness

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Server is a NATS server in a process of its own that faults are done to.
type Server struct {
	*Process
	t     testing.TB
	addr  string
	dir   string
	clock *Clock
	conf  string
}

// StartServer starts a server that keeps its streams in dir. With a clock it goes by
// that, and is the nats-server that everybody has; without, the test binary is it.
func StartServer(t testing.TB, dir string, clock *Clock) *Server {
	t.Helper()
	s := &Server{t: t, addr: KeepAddr(t), dir: dir, clock: clock}
	if clock != nil {
		s.conf = filepath.Join(t.TempDir(), "nats.conf")
		text := fmt.Sprintf("server_name: test\nlisten: %q\nmax_payload: 8MB\nmax_pending: 128MB\njetstream {\n  store_dir: %q\n  sync_interval: always\n  max_file_store: 8GB\n  max_memory_store: 64MB\n}\n", s.addr, dir)
		if err := os.WriteFile(s.conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.Restart()
	return s
}

// Addr of the server, host:port.
func (s *Server) Addr() string { return s.addr }

// URL of the server.
func (s *Server) URL() string { return "nats://" + s.addr }

// Restart starts the server again after Kill or Stop, at the same address with the
// same streams.
func (s *Server) Restart() {
	s.t.Helper()
	if s.clock != nil {
		s.Process = launch(s.t, "nats", s.clock.Env(), ClockServer(s.t), "-c", s.conf)
		return
	}
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	s.Process = launch(s.t, "nats", []string{natsRole + "=" + s.dir + "|" + s.addr}, self, "-test.run=^$")
}

// Stop ends the server in order.
func (s *Server) Stop() {
	s.t.Helper()
	if s.clock != nil {
		s.Signal(syscall.SIGTERM)
	} else {
		_ = s.stdin.Close() // see serveNATS
	}
	s.Wait(30 * time.Second)
}

// StartFrom starts penstock as Start does, from another binary, such as one of
// [ClockBinary].
func StartFrom(t testing.TB, path, name string, env []string, args ...string) *Process {
	t.Helper()
	return launch(t, name, env, path, args...)
}

// KeepAddr returns a loopback address for a server that is stopped and started again.
// It is one that the system hands out to nobody meanwhile: not to who asks for any free
// port, nor to who connects to elsewhere.
func KeepAddr(t testing.TB) string {
	t.Helper()
	const low, high = 12_000, 32_000 // below the ports that systems hand out
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", low+rand.IntN(high-low)) //nolint:gosec // no secret
		if l, err := net.Listen("tcp", addr); err == nil {
			_ = l.Close()
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}

// Race tells whether the race detector is on, in the test and in what it builds.
func Race() bool { return raceOn }
