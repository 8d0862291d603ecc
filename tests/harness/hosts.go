package harness

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Network is a small network of hosts, each a network namespace of its own with its
// own address. The test itself is the switch between them: every packet passes through
// it, so that it can drop and delay what it likes, whatever the kernel has or lacks.
// Nothing of it outlives the test, not even one that is killed: devices and namespaces
// have no names in the system and end with the processes that hold them.
//
// The test process is a host as well, [Network.Here]: what it listens at
// [Network.Addr] is reached by all others.
type Network struct {
	t    testing.TB
	net  netip.Prefix
	lock *os.File
	here *Host

	mu    sync.Mutex
	hosts []*Host
	rules map[[2]*Host]rule
	rng   *rand.Rand
}

// rule is what happens to packets from one host to another.
type rule struct {
	cut           bool
	delay, jitter time.Duration
	loss          float64
}

// Host is a network namespace.
type Host struct {
	// Name of the host, and its address.
	Name, Addr string

	network *Network
	ip      [4]byte
	// calls run on a thread that is in the namespace. It lives as long as the host:
	// what it starts dies with it. nil for the namespace of the test itself.
	calls chan func()
	// out takes packets to the host, in the order in which they are due.
	out chan packet
	end chan struct{}

	delay, jitter time.Duration
	loss          float64
	isolated      bool
}

type packet struct {
	data []byte
	due  time.Time
}

// mtu is that of the links. Large packets make a switch in a process cheap.
const mtu = 65000

// NewNetwork makes a network that ends with the test. It skips the test where
// namespaces or TUN devices are not to be had.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	n := &Network{t: t, rules: map[[2]*Host]rule{}, rng: rand.New(rand.NewPCG(1, 2))} //nolint:gosec // which packets get lost
	if err := n.claim(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.lock.Close() })
	here, err := n.add("here", nil)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.ENODEV) {
		t.Skipf("hosts of their own need TUN devices: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.here = here
	return n
}

// claim finds a subnet of the range for tests of networks (RFC 2544) that neither this
// machine nor another test uses.
func (n *Network) claim() error {
	for i := range 256 {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte(i), 0}), 24)
		f, err := os.OpenFile(filepath.Join(os.TempDir(), fmt.Sprintf("penstock-test-net-%d.lock", i)), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		if lockFile(f) && !taken(prefix) {
			n.net, n.lock = prefix, f
			return nil
		}
		_ = f.Close()
	}
	return errors.New("no subnet of 198.19.0.0/16 is free")
}

func taken(p netip.Prefix) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, a := range addrs {
		if have, err := netip.ParsePrefix(a.String()); err == nil && have.Overlaps(p) {
			return true
		}
	}
	return false
}

// Here is the test process as a host of the network.
func (n *Network) Here() *Host { return n.here }

// Addr is the address of the test process in the network.
func (n *Network) Addr() string { return n.here.Addr }

// Host adds a host.
func (n *Network) Host(name string) *Host {
	n.t.Helper()
	calls, err := newNamespace()
	if errors.Is(err, syscall.EPERM) {
		n.t.Skipf("network namespaces are not allowed here: %v", err)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	h, err := n.add(name, calls)
	if err != nil {
		n.t.Fatal(err)
	}
	return h
}

func (n *Network) add(name string, calls chan func()) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &Host{Name: name, network: n, calls: calls, out: make(chan packet, 4096), end: make(chan struct{})}
	h.ip = n.net.Addr().As4()
	h.ip[3] = byte(len(n.hosts) + 1)
	h.Addr = netip.AddrFrom4(h.ip).String()
	var device *os.File
	err := h.Do(func() (err error) { device, err = openTUN(h.ip); return err })
	if err != nil {
		if calls != nil {
			close(calls)
		}
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	n.hosts = append(n.hosts, h)
	var ended sync.WaitGroup
	ended.Go(func() { h.read(device) })
	ended.Go(func() { h.write(device) })
	n.t.Cleanup(func() {
		close(h.end)
		_ = device.Close()
		ended.Wait()
		if calls != nil {
			close(calls)
		}
	})
	return h, nil
}

// read takes the packets that the host sends and passes them on.
func (h *Host) read(device *os.File) {
	buf := make([]byte, mtu+64)
	for {
		k, err := device.Read(buf)
		if err != nil {
			return
		}
		p := buf[:k]
		if k < 20 || p[0]>>4 != 4 {
			continue // IPv6 wants to know its neighbours; there are none
		}
		h.network.pass(h, [4]byte(p[16:20]), p)
	}
}

func (n *Network) pass(from *Host, dst [4]byte, p []byte) {
	to, due, ok := n.judge(from, dst)
	if !ok {
		return
	}
	select {
	case to.out <- packet{append([]byte(nil), p...), due}:
	default: // a full queue drops, as in any switch
	}
}

func (n *Network) judge(from *Host, dst [4]byte) (*Host, time.Time, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := int(dst[3]) - 1
	if i < 0 || i >= len(n.hosts) || n.hosts[i].ip != dst {
		return nil, time.Time{}, false
	}
	to := n.hosts[i]
	r := n.rules[[2]*Host{from, to}]
	loss := 1 - (1-r.loss)*(1-from.loss)*(1-to.loss)
	if r.cut || from.isolated || to.isolated || loss > 0 && n.rng.Float64() < loss {
		return nil, time.Time{}, false
	}
	wait := r.delay + from.delay + to.delay
	if jitter := r.jitter + from.jitter + to.jitter; jitter > 0 {
		wait += time.Duration(n.rng.Int64N(int64(jitter)))
	}
	if wait == 0 {
		return to, time.Time{}, true
	}
	return to, time.Now().Add(wait), true
}

// write hands the host its packets when they are due, in the order in which they were
// sent: jitter delays, it does not reorder.
func (h *Host) write(device *os.File) {
	for {
		select {
		case <-h.end:
			return
		case p := <-h.out:
			if wait := time.Until(p.due); !p.due.IsZero() && wait > 0 {
				select {
				case <-h.end:
					return
				case <-time.After(wait):
				}
			}
			_, _ = device.Write(p.data) // a device that is going down takes none
		}
	}
}

// Cut drops all packets between two hosts, both ways and without a word: neither side
// gets an error, as when a cable is pulled somewhere between them.
func (n *Network) Cut(a, b *Host) {
	n.t.Logf("network: cut %s from %s", a.Name, b.Name)
	n.change(a, b, func(r *rule) { r.cut = true })
}

// CutOneWay drops the packets from one host to another only.
func (n *Network) CutOneWay(from, to *Host) {
	n.t.Logf("network: nothing gets from %s to %s", from.Name, to.Name)
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.rules[[2]*Host{from, to}]
	r.cut = true
	n.rules[[2]*Host{from, to}] = r
}

// Heal ends [Network.Cut], both ways.
func (n *Network) Heal(a, b *Host) {
	n.t.Logf("network: heal %s and %s", a.Name, b.Name)
	n.change(a, b, func(r *rule) { r.cut = false })
}

// Isolate cuts a host from all others.
func (n *Network) Isolate(h *Host) {
	n.t.Logf("network: isolate %s", h.Name)
	n.mu.Lock()
	defer n.mu.Unlock()
	h.isolated = true
}

// Rejoin ends [Network.Isolate].
func (n *Network) Rejoin(h *Host) {
	n.t.Logf("network: %s is back", h.Name)
	n.mu.Lock()
	defer n.mu.Unlock()
	h.isolated = false
}

// HealAll ends all cuts, isolation, delay and loss.
func (n *Network) HealAll() {
	n.t.Log("network: heal all")
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.rules)
	for _, h := range n.hosts {
		h.isolated, h.delay, h.jitter, h.loss = false, 0, 0, 0
	}
}

// Delay has every packet from and to a host take delay longer, and up to jitter more.
func (n *Network) Delay(h *Host, delay, jitter time.Duration) {
	n.t.Logf("network: delay %s by %s + %s", h.Name, delay, jitter)
	n.mu.Lock()
	defer n.mu.Unlock()
	h.delay, h.jitter = delay, jitter
}

// Loss drops a share of the packets from and to a host, in percent.
func (n *Network) Loss(h *Host, percent float64) {
	n.t.Logf("network: %s loses %g %%", h.Name, percent)
	n.mu.Lock()
	defer n.mu.Unlock()
	h.loss = percent / 100
}

func (n *Network) change(a, b *Host, f func(*rule)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range [][2]*Host{{a, b}, {b, a}} {
		r := n.rules[k]
		f(&r)
		n.rules[k] = r
	}
}

// Do runs f on a thread of the host: sockets that f itself opens, not those of other
// goroutines, belong to the host. One f runs at a time.
func (h *Host) Do(f func() error) error {
	if h.calls == nil {
		return f()
	}
	ended := make(chan error)
	h.calls <- func() { ended <- f() }
	return <-ended
}

// Run starts a command in the host's namespace, in place of cmd.Start.
func (h *Host) Run(cmd *exec.Cmd) error { return h.Do(cmd.Start) }

// Command runs a program in the host to its end and returns what it printed.
func (h *Host) Command(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...) //nolint:gosec // what a test says
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Run(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// Start starts penstock on the host. The test's end stops it.
func (h *Host) Start(name string, env []string, args ...string) *Process {
	h.network.t.Helper()
	return launchOn(h.network.t, h, name, env, Binary(h.network.t), args...)
}

// StartProgram starts any program on the host. The test's end stops it.
func (h *Host) StartProgram(name string, env []string, path string, args ...string) *Process {
	h.network.t.Helper()
	return launchOn(h.network.t, h, name, env, path, args...)
}

// Listen opens a listener at a free port of the host, for all of the network.
func (h *Host) Listen() (l net.Listener, err error) {
	err = h.Do(func() error { l, err = net.Listen("tcp", h.Addr+":0"); return err })
	return l, err
}

// FreeAddr returns an address of the host that nobody listens at.
func (h *Host) FreeAddr() string {
	h.network.t.Helper()
	l, err := h.Listen()
	if err != nil {
		h.network.t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func startOn(h *Host, cmd *exec.Cmd) error {
	if h == nil {
		return cmd.Start()
	}
	return h.Run(cmd)
}
