package harness

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// clockFile is the environment variable that names the file a shifted process
// takes its clock's error from.
const clockFile = "PENSTOCK_TEST_CLOCK"

// Clock is the error of a process' wall clock. Several processes may share one.
// Only the wall clock is wrong, as after a step by NTP or by an operator: what a
// program measures between two moments stays right, as it does in life.
type Clock struct {
	t    testing.TB
	path string
	mu   sync.Mutex
	by   time.Duration
}

// NewClock returns a clock that is right as yet. Programs that were built by
// [ClockBinary] or [ClockServer] and get [Clock.Env] go by it.
func NewClock(t testing.TB) *Clock {
	t.Helper()
	c := &Clock{t: t, path: filepath.Join(t.TempDir(), "clock")}
	if err := os.WriteFile(c.path, make([]byte, 8), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// Env is what a process needs in its environment to go by this clock.
func (c *Clock) Env() []string { return []string{clockFile + "=" + c.path} }

// Shift has the clock jump by d, forwards or, when negative, backwards. Processes
// that run see it at their next look at the clock.
func (c *Clock) Shift(d time.Duration) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by += d
	f, err := os.OpenFile(c.path, os.O_WRONLY, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	// Eight bytes at once, which the process has mapped: it sees all or none.
	if _, err := f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(c.by)), 0); err != nil {
		c.t.Fatal(err)
	}
}

// By is by how much the clock is wrong now.
func (c *Clock) By() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.by
}

// Now is what a process that goes by this clock takes for the time.
func (c *Clock) Now() time.Time { return time.Now().Add(c.By()) }

// clockSource is added to the program's package main. Go asks the kernel's page of
// functions (vDSO) for the time; here its variable is pointed at a few instructions
// that ask there and add the clock's error to the wall clock. So nothing but the
// program itself is compiled anew. The instructions are those of amd64.
const clockSource = `package main

import (
	"encoding/binary"
	"os"
	"syscall"
	"unsafe"
)

//go:linkname vdsoClockgettimeSym runtime.vdsoClockgettimeSym
var vdsoClockgettimeSym uintptr

func init() {
	path, ok := os.LookupEnv("` + clockFile + `")
	if !ok {
		return
	}
	must := func(err error) {
		if err != nil {
			panic("` + clockFile + `: " + err.Error())
		}
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	must(err)
	shift, err := syscall.Mmap(fd, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	must(err)
	must(syscall.Close(fd))
	code, err := syscall.Mmap(-1, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	must(err)
	address := func(p uintptr) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(p)) }
	n := 0
	for _, part := range [][]byte{
		{0x57, 0x56, 0x48, 0x83, 0xec, 0x08}, // push rdi, rsi; sub rsp, 8
		{0x48, 0xb8}, address(vdsoClockgettimeSym), {0xff, 0xd0}, // mov rax, …; call rax
		{0x48, 0x83, 0xc4, 0x08, 0x5e, 0x5f}, // add rsp, 8; pop rsi, rdi
		{0x85, 0xff, 0x75, 0x29},             // test edi, edi; jne to the end: not the wall clock
		{0x48, 0x8b, 0x06},                   // mov rax, [rsi]: seconds
		{0xb9, 0x00, 0xca, 0x9a, 0x3b},       // mov ecx, 1000000000
		{0x48, 0x0f, 0xaf, 0xc1},             // imul rax, rcx
		{0x48, 0x03, 0x46, 0x08},             // add rax, [rsi+8]: nanoseconds
		{0x48, 0xba}, address(uintptr(unsafe.Pointer(&shift[0]))), {0x48, 0x03, 0x02}, // mov rdx, …; add rax, [rdx]
		{0x48, 0x99, 0x48, 0xf7, 0xf9}, // cqo; idiv rcx
		{0x48, 0x89, 0x06},             // mov [rsi], rax
		{0x48, 0x89, 0x56, 0x08},       // mov [rsi+8], rdx
		{0x31, 0xc0, 0xc3},             // xor eax, eax; ret
	} {
		n += copy(code[n:], part)
	}
	must(syscall.Mprotect(code, syscall.PROT_READ|syscall.PROT_EXEC))
	vdsoClockgettimeSym = uintptr(unsafe.Pointer(&code[0]))
}
`

var clocked struct {
	mu    sync.Mutex
	dir   string
	paths map[string]string
}

// ClockBinary builds penstock so that it goes by a [Clock]. It skips the test where that
// is not to be had.
func ClockBinary(t testing.TB) string {
	t.Helper()
	return build(t, "penstock", "./services/penstock", true)
}

// ClockServer builds nats-server, of the version that go.mod names, in the same way.
func ClockServer(t testing.TB) string {
	t.Helper()
	return build(t, "nats-server", serverPackage, true)
}

// ServerBinary builds nats-server as it is, of the version that go.mod names.
func ServerBinary(t testing.TB) string {
	t.Helper()
	return build(t, "nats-server", serverPackage, false)
}

const serverPackage = "./tests/harness/natsd"

// build builds a program once per test run.
func build(t testing.TB, name, what string, shifting bool) string {
	t.Helper()
	if shifting {
		if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
			t.Skipf("a clock that is wrong can be had on linux/amd64, not on %s/%s", runtime.GOOS, runtime.GOARCH)
		}
		name += "-clock"
	}
	clocked.mu.Lock()
	defer clocked.mu.Unlock()
	if path := clocked.paths[name]; path != "" {
		return path
	}
	if clocked.dir == "" {
		dir, err := os.MkdirTemp("", "penstock-clock-*") //nolint:usetesting // later tests run what is in it
		if err != nil {
			t.Fatal(err)
		}
		clocked.dir, clocked.paths = dir, map[string]string{}
	}
	path := filepath.Join(clocked.dir, name)
	args := []string{"build", "-o", path}
	if shifting {
		args = append(args, clockFlags(t, Root(), clocked.dir, what)...)
	}
	cmd := exec.Command("go", append(args, what)...) //nolint:gosec // our own tree
	cmd.Dir = Root()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	clocked.paths[name] = path
	return path
}

// clockFlags are the flags of a build in root whose program is what. dir takes the files.
func clockFlags(t testing.TB, root, dir, what string) []string {
	t.Helper()
	list := exec.Command("go", "list", "-f", "{{.Dir}}", what) //nolint:gosec // names of our own
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Fatalf("find %s: %v", what, err)
	}
	pkg := strings.TrimSpace(string(out))
	source, overlay := filepath.Join(dir, "clock.go"), filepath.Join(dir, filepath.Base(pkg)+".json")
	data, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(pkg, "shifted_clock.go"): source}})
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string][]byte{source: []byte(clockSource), overlay: data} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return []string{"-overlay", overlay, "-ldflags", "-checklinkname=0"} // the runtime's variable is not ours
}

func removeClocked() {
	if clocked.dir != "" {
		_ = os.RemoveAll(clocked.dir)
	}
}
