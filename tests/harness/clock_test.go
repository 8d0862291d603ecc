package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// clockProbe prints, for each line it reads, the wall clock and what has passed by
// the monotonic one since it began.
const clockProbe = `package main

import (
	"bufio"
	"fmt"
	"os"
	"time"
)

func main() {
	began := time.Now()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(time.Now().UnixNano(), int64(time.Since(began)))
	}
}
`

// A process sees its clock jump while it runs, forwards, backwards and within a
// second, and measures as before.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{"main.go": clockProbe, "go.mod": "module probe\n\ngo 1.26\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		t.Skipf("a clock that is wrong can be had on linux/amd64, not on %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	args := append([]string{"build", "-o", "probe"}, clockFlags(t, dir, t.TempDir(), ".")...)
	build := exec.CommandContext(t.Context(), "go", append(args, ".")...)
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	clock := NewClock(t)
	clock.Shift(7 * time.Minute) // before the start
	probe := exec.CommandContext(t.Context(), filepath.Join(dir, "probe"))
	probe.Env = append(os.Environ(), clock.Env()...)
	in, err := probe.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := probe.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := probe.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = probe.Wait() })
	began := time.Now()
	for _, jump := range []time.Duration{0, -20 * time.Minute, 3 * time.Hour, -1700 * time.Millisecond, 250 * time.Millisecond} {
		clock.Shift(jump)
		before := clock.Now()
		if _, err := in.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 100)
		n, err := out.Read(answer)
		if err != nil {
			t.Fatal(err)
		}
		after := clock.Now()
		var wall, passed int64
		if _, err := fmt.Sscan(strings.TrimSpace(string(answer[:n])), &wall, &passed); err != nil {
			t.Fatal(err)
		}
		if got := time.Unix(0, wall); got.Before(before) || got.After(after) {
			t.Errorf("after a jump by %s the process takes %s for the time, want %s to %s", jump, got, before, after)
		}
		if passed < 0 || time.Duration(passed) > time.Since(began) {
			t.Errorf("after a jump by %s the process has measured %s in %s", jump, time.Duration(passed), time.Since(began))
		}
	}
}
