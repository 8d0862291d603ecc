package harness

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// echo answers each line at an address of the host.
func echo(t *testing.T, h *Host) string {
	t.Helper()
	l, err := h.Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	return l.Addr().String()
}

func dialFrom(t *testing.T, h *Host, addr string, timeout time.Duration) (c net.Conn, err error) {
	t.Helper()
	err = h.Do(func() error { c, err = net.DialTimeout("tcp", addr, timeout); return err })
	if err == nil {
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// say sends a line and waits until it comes back. What was sent before and comes back
// late is passed over.
func say(c net.Conn, line string, timeout time.Duration) error {
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(timeout))
	for in := bufio.NewReaderSize(c, 1); ; {
		answer, err := in.ReadString('\n')
		if err != nil || strings.TrimSpace(answer) == line {
			return err
		}
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	n := NewNetwork(t)
	a, b, c := n.Host("a"), n.Host("b"), n.Host("c")
	addr := echo(t, b)
	fromA, err := dialFrom(t, a, addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	fromC, err := dialFrom(t, c, addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	fromHere, err := dialFrom(t, n.Here(), addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	hears := func(c net.Conn, line string) {
		t.Helper()
		if err := say(c, line, 20*time.Second); err != nil {
			t.Fatalf("said %q and did not hear it: %v", line, err)
		}
	}
	deaf := func(c net.Conn, line string) {
		t.Helper()
		if err := say(c, line, 300*time.Millisecond); err == nil {
			t.Fatalf("said %q and heard it through a cut", line)
		}
	}
	hears(fromA, "a")
	hears(fromC, "c")
	hears(fromHere, "here")

	n.Cut(a, b)
	deaf(fromA, "cut")
	hears(fromC, "others go on")
	if _, err := dialFrom(t, a, addr, 300*time.Millisecond); err == nil {
		t.Error("a new connection came through a cut")
	}
	n.Heal(a, b)
	hears(fromA, "after")

	n.Isolate(b)
	deaf(fromC, "isolated")
	deaf(fromHere, "isolated")
	n.Rejoin(b)

	n.Delay(c, 150*time.Millisecond, 50*time.Millisecond)
	slow, err := dialFrom(t, c, addr, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	hears(slow, "late")
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("there and back took %s, delayed by 150 ms each way", took)
	}
	n.HealAll()

	n.Loss(c, 30)
	lossy, err := dialFrom(t, c, addr, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		hears(lossy, fmt.Sprint("in spite of loss ", i))
	}
	n.HealAll()

	out, err := a.Command("cat", "/proc/net/dev")
	if err != nil || strings.Contains(out, "eth0") {
		t.Errorf("a command on the host is not in a network of its own: %v\n%s", err, out)
	}
	// A process lives on when the call that started it is over.
	p := a.StartProgram("cat", nil, "/bin/cat")
	hears(fromA, "meanwhile")
	if !p.Running() {
		t.Error("a process of the host ended by itself")
	}
	p.Kill()
	hears(fromA, "on") // and so does the host
	spaces := map[string]string{}
	for _, h := range []*Host{n.Here(), a, b, c} {
		if err := h.Do(func() error {
			space, err := os.Readlink("/proc/thread-self/ns/net")
			if other := spaces[space]; other != "" {
				t.Errorf("%s is in the network namespace of %s", h.Name, other)
			}
			spaces[space] = h.Name
			return err
		}); err != nil {
			t.Error(err)
		}
	}
}
