package harness

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Trouble is what a proxy does to what passes through it. The zero value: nothing.
// It takes effect at once, on connections that are open as well.
type Trouble struct {
	// Delay holds each piece back, in both directions, and Jitter adds up to so much.
	Delay, Jitter time.Duration
	// Stall holds a piece back by StallFor with this probability: what a lost packet
	// and its repetition look like to who reads.
	Stall    float64
	StallFor time.Duration
	// Rate lets so many bytes a second through, in each direction. 0: no limit.
	Rate int
	// Refuse closes new connections, and resets those that are open.
	Refuse bool
	// Silent lets nothing pass and says nothing: connections stay open and are even
	// accepted. What was held back passes when it ends.
	Silent bool
}

// Proxy passes a TCP connection on to another address, and is the network between the
// two that can be cut, slowed down or made to lose its memory, without being root.
type Proxy struct {
	t      testing.TB
	target string
	listen net.Listener
	ended  sync.WaitGroup
	done   chan struct{}

	mu      sync.Mutex
	trouble Trouble
	changed chan struct{} // closed when trouble changes
	links   map[*link]struct{}
	closed  bool
	bytes   atomic.Int64
}

// link is one connection through a proxy.
type link struct {
	in, out net.Conn
	// dead connections stay open and carry nothing any more.
	dead atomic.Bool
	// resetAfter cuts the link once so many more bytes have come back; 0: never.
	resetAfter atomic.Int64
	gone       chan struct{}
	once       sync.Once
}

func (l *link) close() {
	l.once.Do(func() { close(l.gone); _ = l.in.Close(); _ = l.out.Close() })
}

// reset closes both sides so that each sees a reset, not an end.
func (l *link) reset() {
	for _, c := range []net.Conn{l.in, l.out} {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
	}
	l.close()
}

// StartProxy starts a proxy to an address, host:port. It ends with the test.
func StartProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{t: t, target: target, listen: l, done: make(chan struct{}), changed: make(chan struct{}), links: map[*link]struct{}{}}
	p.ended.Go(p.accept)
	t.Cleanup(p.Close)
	return p
}

// Addr is where the proxy listens, host:port.
func (p *Proxy) Addr() string { return p.listen.Addr().String() }

// Bytes that have passed, in both directions.
func (p *Proxy) Bytes() int64 { return p.bytes.Load() }

// Links is how many connections are open.
func (p *Proxy) Links() int { p.mu.Lock(); defer p.mu.Unlock(); return len(p.links) }

// Close ends the proxy and all connections through it.
func (p *Proxy) Close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.done)
		_ = p.listen.Close()
	}
	links := p.all()
	p.mu.Unlock()
	for _, l := range links {
		l.close()
	}
	p.ended.Wait()
}

// all links. p.mu is held.
func (p *Proxy) all() []*link {
	links := make([]*link, 0, len(p.links))
	for l := range p.links {
		links = append(links, l)
	}
	return links
}

// Set changes what goes wrong.
func (p *Proxy) Set(t Trouble) {
	p.mu.Lock()
	p.trouble = t
	close(p.changed)
	p.changed = make(chan struct{})
	var links []*link
	if t.Refuse {
		links = p.all()
	}
	p.mu.Unlock()
	for _, l := range links {
		l.reset()
	}
}

// Heal ends all trouble. Connections that were made dead stay so.
func (p *Proxy) Heal() { p.Set(Trouble{}) }

// Reset cuts every open connection in the middle of what it carries next: after so
// many more bytes towards who connected, 0 at once.
func (p *Proxy) Reset(after int64) int {
	p.mu.Lock()
	links := p.all()
	p.mu.Unlock()
	for _, l := range links {
		if after == 0 {
			l.reset()
			continue
		}
		l.resetAfter.Store(after)
	}
	return len(links)
}

// Forget has every open connection dead for good, while neither side is told: what is
// left of it when a firewall between them has lost its state. New ones pass.
func (p *Proxy) Forget() int {
	p.mu.Lock()
	links := p.all()
	p.mu.Unlock()
	for _, l := range links {
		l.dead.Store(true)
	}
	return len(links)
}

func (p *Proxy) now() (Trouble, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.trouble, p.changed
}

func (p *Proxy) accept() {
	for {
		c, err := p.listen.Accept()
		if err != nil {
			return
		}
		p.ended.Go(func() { p.join(c) })
	}
}

// join connects c to the target, once nothing keeps it silent.
func (p *Proxy) join(c net.Conn) {
	for {
		t, changed := p.now()
		if t.Refuse {
			l := &link{in: c, out: c, gone: make(chan struct{})}
			l.reset()
			return
		}
		if !t.Silent {
			break
		}
		select {
		case <-changed:
		case <-p.done:
			_ = c.Close()
			return
		}
	}
	out, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil {
		_ = c.Close()
		return
	}
	l := &link{in: c, out: out, gone: make(chan struct{})}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		l.close()
		return
	}
	p.links[l] = struct{}{}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.pass(l, c, out, false) })
	both.Go(func() { p.pass(l, out, c, true) })
	both.Wait()
	l.close()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// pass copies one direction until either side ends; back is towards who connected.
func (p *Proxy) pass(l *link, from, to net.Conn, back bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !p.hand(l, to, buf[:n], back) {
			return
		}
		if err == nil {
			continue
		}
		if l.dead.Load() { // the other side must not hear of it
			<-l.gone
			return
		}
		if tcp, ok := to.(*net.TCPConn); ok && err == io.EOF {
			_ = tcp.CloseWrite()
			return
		}
		l.reset()
		return
	}
}

// hand writes one piece as the trouble of the moment allows. false: the link is over.
func (p *Proxy) hand(l *link, to net.Conn, data []byte, back bool) bool {
	for len(data) > 0 {
		if l.dead.Load() {
			return true // swallowed
		}
		t, changed := p.now()
		if t.Silent {
			select {
			case <-changed:
				continue
			case <-l.gone:
				return false
			}
		}
		pause := t.Delay
		if t.Jitter > 0 {
			pause += rand.N(t.Jitter) //nolint:gosec // no secret
		}
		if t.Stall > 0 && rand.Float64() < t.Stall { //nolint:gosec // no secret
			pause += t.StallFor
		}
		piece := data
		if t.Rate > 0 {
			piece = data[:min(len(data), max(1, t.Rate/10))]
			pause += time.Duration(float64(len(piece)) / float64(t.Rate) * float64(time.Second))
		}
		if pause > 0 {
			wait := time.NewTimer(pause)
			select {
			case <-wait.C:
			case <-l.gone:
				wait.Stop()
				return false
			}
			if now, _ := p.now(); now.Silent || l.dead.Load() {
				continue
			}
		}
		if left := l.resetAfter.Load(); back && left > 0 {
			if left <= int64(len(piece)) {
				_, _ = to.Write(piece[:left])
				l.reset()
				return false
			}
			l.resetAfter.Add(-int64(len(piece)))
		}
		n, err := to.Write(piece)
		p.bytes.Add(int64(n))
		if err != nil {
			l.reset()
			return false
		}
		data = data[len(piece):]
	}
	return true
}
