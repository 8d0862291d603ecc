// Package harness runs penstock as its users do: as processes of the real binary,
// with a real NATS server, real HTTP and the S3 and SQS endpoint of the demo
// around it. Tests of whole flows, of faults and of speed share it.
package harness

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/penstock/penstock/topology"
)

// natsRole makes this test binary a NATS server: see Main.
const natsRole = "PENSTOCK_TEST_NATS"

// Main is the TestMain of every package that uses the harness. A NATS server
// that can be killed has to be a process of its own; the test binary itself is
// that process, so that nothing has to be installed.
func Main(m *testing.M) {
	if spec := os.Getenv(natsRole); spec != "" {
		serveNATS(spec)
		return
	}
	if !flag.Parsed() {
		flag.Parse()
	}
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue { // tests of processes mostly wait for them
		_ = f.Value.Set(strconv.Itoa(2 * runtime.GOMAXPROCS(0)))
	}
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	removeClocked()
	os.Exit(code)
}

func serveNATS(spec string) {
	dir, addr, _ := strings.Cut(spec, "|")
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	s, err := server.NewServer(&server.Options{
		ServerName: "test", Host: tcp.IP.String(), Port: tcp.Port, JetStream: true, StoreDir: dir, SyncAlways: true,
		MaxPayload: 8 << 20, MaxPending: 128 << 20, NoSigs: true, JetStreamMaxStore: 8 << 30, JetStreamMaxMemory: 64 << 20,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	s.ConfigureLogger()
	s.Start()
	// The test holds our standard input open: when it dies, so do we.
	_, _ = os.Stdin.Read(make([]byte, 1))
	s.Shutdown()
}

var built struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// Binary builds penstock once per test run, with the race detector when the test
// has it, and returns its path.
func Binary(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		if built.path = os.Getenv("PENSTOCK_TEST_BINARY"); built.path != "" {
			return
		}
		if built.dir, built.err = os.MkdirTemp("", "penstock-bin-*"); built.err != nil { //nolint:usetesting // later tests run it too
			return
		}
		built.path = filepath.Join(built.dir, "penstock")
		args := []string{"build", "-o", built.path}
		if raceOn {
			args = append(args, "-race")
		}
		cmd := exec.Command("go", append(args, "./services/penstock")...) //nolint:gosec // our own tree
		cmd.Dir = Root()
		var out []byte
		if out, built.err = cmd.CombinedOutput(); built.err != nil {
			built.err = fmt.Errorf("build penstock: %w\n%s", built.err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

// Root is the top of the source tree.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Process is a process under test. Its output goes to the test's log when the
// test fails.
type Process struct {
	t     testing.TB
	Name  string
	cmd   *exec.Cmd
	log   *tail
	ended chan struct{}
	err   error
	stdin *os.File
}

// tail keeps the last bytes of a process' output.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (l *tail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf = append(l.buf, p...); len(l.buf) > 256<<10 {
		l.buf = append([]byte(nil), l.buf[len(l.buf)-128<<10:]...)
	}
	return len(p), nil
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.buf)
}

// Start runs penstock with arguments and extra environment. The test's end stops it.
func Start(t testing.TB, name string, env []string, args ...string) *Process {
	t.Helper()
	return launch(t, name, env, Binary(t), args...)
}

func launch(t testing.TB, name string, env []string, path string, args ...string) *Process {
	t.Helper()
	return launchOn(t, nil, name, env, path, args...)
}

// launchOn starts a program on a host of a test's network, or beside the test when
// host is nil.
func launchOn(t testing.TB, host *Host, name string, env []string, path string, args ...string) *Process {
	t.Helper()
	p := &Process{t: t, Name: name, cmd: exec.Command(path, args...), log: &tail{}, ended: make(chan struct{})} //nolint:gosec // our own binary
	p.cmd.Env = append(append(os.Environ(), "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=canary-secret", "AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true"), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = dieWithParent()
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin, _ = in.(*os.File)
	if err := startOn(host, p.cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		if p.Running() {
			_ = p.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-p.ended:
			case <-time.After(30 * time.Second):
				p.Kill()
				t.Errorf("%s did not stop within 30 s of SIGTERM", name)
			}
		}
		out := p.log.String()
		if strings.Contains(out, "DATA RACE") {
			t.Errorf("%s: the race detector speaks:\n%s", name, out)
		}
		if strings.Contains(out, "canary-secret") {
			t.Errorf("%s: a secret is in the log", name)
		}
		if t.Failed() {
			t.Logf("--- %s ---\n%s", name, lastLines(out, 40))
		}
	})
	return p
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Running tells whether the process lives.
func (p *Process) Running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Kill is kill -9. It returns when the process is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) { _ = p.cmd.Process.Signal(s) }

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Wait returns the exit code, or fails the test when the process does not end in time.
func (p *Process) Wait(timeout time.Duration) int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(timeout):
		p.t.Fatalf("%s did not end within %s:\n%s", p.Name, timeout, lastLines(p.log.String(), 40))
	}
	return p.cmd.ProcessState.ExitCode()
}

// Log returns what the process has written lately.
func (p *Process) Log() string { return p.log.String() }

// Usage returns the CPU time and the largest resident size of a process that ended.
func (p *Process) Usage() (cpu time.Duration, peakRSS int64) {
	<-p.ended
	state := p.cmd.ProcessState
	if u, ok := state.SysUsage().(*syscall.Rusage); ok {
		peakRSS = u.Maxrss << 10
	}
	return state.UserTime() + state.SystemTime(), peakRSS
}

// NATS is a NATS server in a process of its own.
type NATS struct {
	t    testing.TB
	dir  string
	addr string
	*Process
}

// StartNATS starts a server that keeps its streams in dir.
func StartNATS(t testing.TB, dir string) *NATS {
	t.Helper()
	n := &NATS{t: t, dir: dir, addr: FreeAddr(t)}
	n.Restart()
	return n
}

// Restart starts the server again after Kill, at the same address with the same streams.
func (n *NATS) Restart() {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	n.Process = launch(n.t, "nats", []string{natsRole + "=" + n.dir + "|" + n.addr}, self, "-test.run=^$")
}

// URL of the server.
func (n *NATS) URL() string { return "nats://" + n.addr }

// FreeAddr returns a loopback address that nobody listens at.
func FreeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// Connect opens a connection to the bus that ends with the test.
func Connect(t testing.TB, url string) *topology.Bus {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	b, err := topology.Connect(ctx, topology.Options{URL: url, Name: "test-" + filepath.Base(t.TempDir())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// Await polls until ok, and fails the test when that takes longer than timeout.
func Await(t testing.TB, timeout time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited %s for: %s", timeout, what)
		case <-t.Context().Done():
			t.Fatalf("test ended while it waited for: %s", what)
		case <-tick.C:
		}
	}
}

// AwaitReady waits for /readyz of a process.
func AwaitReady(t testing.TB, p *Process, addr string) {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	Await(t, time.Minute, p.Name+" is ready", func() bool {
		if !p.Running() {
			t.Fatalf("%s ended with %d:\n%s", p.Name, p.cmd.ProcessState.ExitCode(), lastLines(p.Log(), 40))
		}
		r, err := client.Get("http://" + addr + "/readyz")
		if err != nil {
			return false
		}
		_ = r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
}

// Run executes penstock to its end and returns its output and exit code.
func Run(t testing.TB, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), Binary(t), args...) //nolint:gosec // our own binary
	cmd.Env = append(os.Environ(), env...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}
