// Command scale measures how stages grow with their replicas, and how soon a dedupe
// lane with a full window is taken over. It runs real processes of penstock against
// a real NATS server that syncs every write.
//
//	go run ./tests/scale takeover         50 M ids in 8 lanes; the owner of some is killed
//	go run ./tests/scale curve            parse, fetch, dedupe and deliver with 1, 2 and 4 replicas
//
// On a shared machine times hold only beside each other; CPU time is that of the
// measured processes alone, as the system accounts for it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/penstock/penstock/topology"
)

// natsRole makes this program a NATS server, which has to be a process of its own.
const natsRole = "PENSTOCK_SCALE_NATS"

func main() {
	if spec := os.Getenv(natsRole); spec != "" {
		serve(spec)
		return
	}
	if err := command(); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func command() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	what := "takeover"
	args := os.Args[1:]
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		what, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet(what, flag.ExitOnError)
	binary := flags.String("binary", "", "penstock to measure; empty builds it from this tree")
	ids := flags.Int("ids", 50_000_000, "takeover: ids in the window, over all lanes")
	lanes := flags.Int("lanes", 8, "dedupe lanes")
	rounds := flags.Int("rounds", 3, "takeover: how often an owner is killed")
	replicas := flags.String("replicas", "1,2,4", "curve: how many replicas")
	stages := flags.String("stages", "fetch,parse,dedupe,deliver", "curve: which stages")
	events := flags.Int("events", 400_000, "curve: events that wait for the stage")
	timeout := flags.Duration("timeout", 30*time.Minute, "give up after this time")
	profile := flags.String("profile", "", "takeover: write a CPU profile of who takes the lanes to this file")
	_ = flags.Parse(args) // ExitOnError
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	w, err := newWorld(ctx, *binary)
	if err != nil {
		return err
	}
	defer w.close()
	switch what {
	case "takeover":
		return takeover(ctx, w, *ids, *lanes, *rounds, *profile)
	case "curve":
		return curve(ctx, w, strings.Split(*stages, ","), *replicas, *events, *lanes)
	}
	return fmt.Errorf("%q: use takeover or curve", what)
}

// serve is the NATS server, until its standard input ends.
func serve(spec string) {
	dir, addr, _ := strings.Cut(spec, "|")
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err == nil {
		var s *server.Server
		if s, err = server.NewServer(&server.Options{
			ServerName: "scale", Host: tcp.IP.String(), Port: tcp.Port, JetStream: true, StoreDir: dir, SyncAlways: true,
			MaxPayload: 8 << 20, MaxPending: 128 << 20, NoSigs: true, JetStreamMaxStore: 256 << 30, JetStreamMaxMemory: 64 << 20,
		}); err == nil {
			s.ConfigureLogger()
			s.Start()
			_, _ = os.Stdin.Read(make([]byte, 1))
			s.Shutdown()
			return
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(2)
}

// world is the folder, the server and the program.
type world struct {
	dir, binary, url string
	server           *process
	bus              *topology.Bus
	started          []*process
}

// process is one process under measurement.
type process struct {
	name            string
	cmd             *exec.Cmd
	health, private string
	stdin           io.Closer
	ended           chan error
}

func newWorld(ctx context.Context, binary string) (_ *world, err error) {
	w := &world{binary: binary}
	if w.dir, err = os.MkdirTemp("", "penstock-scale-*"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if binary == "" {
		w.binary = filepath.Join(w.dir, "penstock")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", w.binary, "./services/penstock").CombinedOutput(); err != nil { //nolint:gosec // our own tree
			return nil, fmt.Errorf("build penstock: %w\n%s", err, out)
		}
	}
	return w, nil
}

// serve starts a server with an empty store, and the streams on it.
func (w *world) serve(ctx context.Context, limits topology.Limits) error {
	w.stop()
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	store, err := os.MkdirTemp(w.dir, "store-*")
	if err != nil {
		return err
	}
	if w.server, err = w.start("nats", self, []string{natsRole + "=" + store + "|" + addr}); err != nil {
		return err
	}
	w.url = "nats://" + addr
	if w.bus, err = topology.Connect(ctx, topology.Options{URL: w.url, Name: "scale", PublishWindow: 32 << 20}); err != nil {
		return err
	}
	_, err = w.bus.Apply(ctx, limits)
	return err
}

func (w *world) start(name, path string, env []string, args ...string) (*process, error) {
	p := &process{name: name, cmd: exec.Command(path, args...), ended: make(chan error, 1)} //nolint:gosec // our own program
	p.cmd.Env = append(append(os.Environ(), "AWS_ACCESS_KEY_ID=scale", "AWS_SECRET_ACCESS_KEY=scale", "AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true"), env...)
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p.stdin = in
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.ended <- p.cmd.Wait() }()
	w.started = append(w.started, p)
	return p, nil
}

// stage starts one replica of a stage and does not wait for it.
func (w *world) stage(stage topology.Stage, replica int, extra string, env ...string) (*process, error) {
	health, err := freeAddr()
	if err != nil {
		return nil, err
	}
	private, err := freeAddr()
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s-%d", stage, replica)
	path := filepath.Join(w.dir, name+".yaml")
	yaml := fmt.Sprintf("bus: {url: %q, disk: %s, drain_timeout: 5s}\ntelemetry: {address: %q, private_address: %q, log_level: warn, log_format: json}\n%s", w.url, disk, health, private, extra)
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil { //nolint:gosec // our own folder
		return nil, err
	}
	p, err := w.start(name, w.binary, env, "run", "--config", path, "--stage", string(stage))
	if err == nil {
		p.health, p.private = health, private
	}
	return p, err
}

// disk is the budget of the streams: SEEN gets a 25th of it.
const disk = "40GiB"

// stop ends all processes at once: what they hold is not wanted.
func (w *world) stop() {
	if w.bus != nil {
		w.bus.Close()
		w.bus = nil
	}
	for _, p := range w.started {
		_ = p.cmd.Process.Kill()
		<-p.ended //nolint:errcheck // how it ended does not matter
	}
	w.started = nil
}

func (w *world) close() {
	w.stop()
	_ = os.RemoveAll(w.dir) //nolint:gosec // our own folder
}

// kill is kill -9.
func (w *world) kill(p *process) {
	_ = p.cmd.Process.Kill()
	<-p.ended //nolint:errcheck // how it ended does not matter
	w.forget(p)
}

// end asks a process to stop and waits for it.
func (w *world) end(p *process) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	err := <-p.ended
	w.forget(p)
	return err
}

func (w *world) forget(p *process) {
	for i, q := range w.started {
		if p == q {
			w.started = append(w.started[:i], w.started[i+1:]...)
			return
		}
	}
}

// metric sums a metric of a process over its labels that contain with; 0 when it
// does not answer.
func (p *process) metric(name, with string) float64 {
	page, err := get("http://" + p.health + "/metrics")
	if err != nil {
		return 0
	}
	sum := 0.0
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' || !strings.Contains(rest, with) {
			continue
		}
		at := strings.LastIndexByte(rest, ' ')
		if v, err := strconv.ParseFloat(strings.TrimSpace(rest[at+1:]), 64); err == nil {
			sum += v
		}
	}
	return sum
}

func (p *process) ready() bool {
	_, err := get("http://" + p.health + "/readyz")
	return err == nil
}

var client = &http.Client{Timeout: 3 * time.Second}

func get(url string) (string, error) {
	answer, err := client.Get(url) //nolint:noctx // bounded by the client
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return "", errors.New(answer.Status)
	}
	var b bytes.Buffer
	_, err = io.Copy(&b, answer.Body)
	return b.String(), err
}

// rss is the resident size of a process in bytes, hwm the largest that it had.
func (p *process) rss() (now, hwm int64) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(status)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			now = kib << 10
		}
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			hwm = kib << 10
		}
	}
	return now, hwm
}

// cpu is the CPU time that a running process has used.
func (p *process) cpu() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid)) //nolint:gosec // our own process
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond // a tick of Linux is 10 ms
}

// await asks until ok.
func await(ctx context.Context, what string, ok func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String(), nil
}

func machine() string {
	model := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if strings.HasPrefix(line, "model name") {
				_, model, _ = strings.Cut(strings.TrimSpace(line), ": ")
				break
			}
		}
	}
	load := ""
	if l, err := os.ReadFile("/proc/loadavg"); err == nil {
		load, _, _ = strings.Cut(string(l), " ")
	}
	return fmt.Sprintf("%d × %s, load %s, %s, %s", runtime.NumCPU(), model, load, runtime.Version(), time.Now().UTC().Format(time.DateOnly))
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
