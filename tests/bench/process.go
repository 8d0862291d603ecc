package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a program under measurement.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended
	err   error         // how, once it has
	said  *tail         // what it wrote to standard error
	// health and private are its addresses, host:port.
	health, private string
}

// start runs a program and returns when it says that it is ready. It answers
// /readyz on health and /debug/pprof/ on private.
func start(ctx context.Context, cmd *exec.Cmd, health, private string) (*process, error) {
	said := &tail{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, said: said, ended: make(chan struct{}), health: health, private: private}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	if err := p.await(ctx, func() bool { return get("http://"+health+"/readyz", io.Discard) == nil }); err != nil {
		p.kill()
		return nil, fmt.Errorf("%s does not become ready: %w\n%s", cmd.Path, err, said)
	}
	return p, nil
}

// await asks every 5 ms until ok says yes, or the process has ended.
func (p *process) await(ctx context.Context, ok func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.ended:
			return fmt.Errorf("it ended: %w\n%s", cmp.Or(p.err, io.EOF), p.said)
		case <-tick.C:
		}
	}
	return nil
}

// stop ends the process as an operator does, and returns the CPU seconds of all of its
// life, user and system.
func (p *process) stop() (user, system float64, err error) {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return 0, 0, err
	}
	<-p.ended
	if p.err != nil {
		return 0, 0, fmt.Errorf("%s ended badly: %w\n%s", p.cmd.Path, p.err, p.said)
	}
	return p.cmd.ProcessState.UserTime().Seconds(), p.cmd.ProcessState.SystemTime().Seconds(), nil
}

// kill ends a process of which nothing is wanted any more. It may have ended before.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// cpu is what the process has used so far, in seconds of user and system time.
func (p *process) cpu() (float64, error) { return cpuOf(p.cmd.Process.Pid) }

// cpuOf reads the CPU clock of a process, to the nanosecond; pid 0 is this one.
// Source: clock_getcpuclockid(3), whose ids glibc makes like this.
func cpuOf(pid int) (float64, error) {
	clock := int32(unix.CLOCK_PROCESS_CPUTIME_ID)
	if pid != 0 {
		clock = int32(^pid<<3 | 2)
	}
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0, fmt.Errorf("read the CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()).Seconds(), nil
}

// ownCPU is what this process has used so far.
func ownCPU() float64 {
	s, _ := cpuOf(0) // there is always one
	return s
}

// tail keeps the last that a process has said.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-16<<10):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

// memStats is what the Go runtime of a process has allocated since it began.
type memStats struct{ mallocs, bytes float64 }

// allocated asks the process by its heap profile, which ends with runtime.MemStats.
func (p *process) allocated() (m memStats, err error) {
	var text bytes.Buffer
	if err := get("http://"+p.private+"/debug/pprof/heap?debug=1", &text); err != nil {
		return m, err
	}
	lines := bufio.NewScanner(&text)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "# "), " = ")
		switch name {
		case "Mallocs":
			m.mallocs, err = strconv.ParseFloat(value, 64)
		case "TotalAlloc":
			m.bytes, err = strconv.ParseFloat(value, 64)
		}
		if err != nil {
			return m, err
		}
	}
	return m, lines.Err()
}

// memory reads a line of a process's status, in MiB: VmHWM is the most that it has had
// so far, VmRSS what it has. What the system tells of a process that has ended is of no
// use: that begins with what its parent, this program, had when it started it. 0 says
// that it is not known. Source: proc(5); getrusage(2).
func (p *process) memory(line string) float64 {
	return memoryOf(strconv.Itoa(p.cmd.Process.Pid), line)
}

// memoryOf is the same of a process id, or "self".
func memoryOf(pid, line string) float64 {
	data, _ := os.ReadFile("/proc/" + pid + "/status") // absent elsewhere than on Linux
	_, rest, _ := strings.Cut(string(data), line+":")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	kib, _ := strconv.ParseFloat(fields[0], 64)
	return kib / 1024
}

// written is what the process has had written to disk so far, in bytes; 0 says that it is
// not known. Source: proc(5), io.
func (p *process) written() int64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(data), "\nwrite_bytes: ")
	value, _, _ := strings.Cut(rest, "\n")
	n, _ := strconv.ParseInt(value, 10, 64)
	return n
}

// profile writes one of the process's profiles, e.g. heap.
func (p *process) profile(path, name string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(get("http://"+p.private+"/debug/pprof/"+name, f), f.Close())
}

func get(url string, to io.Writer) error {
	response, err := http.Get(url) //nolint:gosec,noctx // loopback, bounded by the caller
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	_, err = io.Copy(to, response.Body)
	return err
}

// twoAddrs returns addresses that nothing listens on.
func twoAddrs() (a, b string, err error) {
	one, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	two, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", errors.Join(err, one.Close())
	}
	return one.Addr().String(), two.Addr().String(), errors.Join(one.Close(), two.Close())
}

// build makes penstock of this tree, as a binary in a folder.
func build(ctx context.Context, binary string) error {
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "./services/penstock").CombinedOutput(); err != nil { //nolint:gosec // our own tree
		return fmt.Errorf("build penstock: %w\n%s", err, out)
	}
	return nil
}

func machine() string {
	cpu := "unknown CPU"
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d × %s, %s/%s, %s", runtime.NumCPU(), cpu, runtime.GOOS, runtime.GOARCH, runtime.Version())
}
