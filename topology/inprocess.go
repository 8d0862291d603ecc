package topology

import (
	"net"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
)

// inProcess connects to a server in this process without the operating system between: no
// system calls, and no copies into the kernel and out of it.
//
// The server's own in-process connection is a net.Pipe, on which a write waits until the
// other side reads. Both sides write while they hold what their reader needs: the client
// its lock, the server the loop that reads. So they can wait for each other for ever, and
// in chains of several stages they do. Here what the server writes is taken at once, and
// waits in memory until the client reads it, as it would in the kernel. Source: decision
// 0034.
type inProcess struct{ server *server.Server }

// InProcessConn implements nats.InProcessConnProvider.
func (p inProcess) InProcessConn() (net.Conn, error) {
	conn, err := p.server.InProcessConn()
	if err != nil {
		return nil, err
	}
	c := &readAhead{Conn: conn}
	c.changed.L = &c.mu
	go c.fill()
	return c, nil
}

const (
	// aheadChunk is how many bytes are taken from the server at a time.
	aheadChunk = 64 << 10
	// aheadBytes bounds what waits to be read. Consumers ask for less than that together
	// (pullBytes each); beyond it the server waits, as it would for a full socket.
	aheadBytes = 64 << 20
)

var aheadPool = sync.Pool{New: func() any { return new([aheadChunk]byte) }}

// readAhead is a connection that reads before anybody asks.
type readAhead struct {
	net.Conn
	mu      sync.Mutex
	changed sync.Cond
	queue   []piece
	held    int // bytes of the pieces in the queue, their unused parts included
	err     error
	closed  bool
}

// piece is what waits to be read: from start to end.
type piece struct {
	data       *[aheadChunk]byte
	start, end int
}

// fill reads until the connection ends.
func (c *readAhead) fill() {
	buf := aheadPool.Get().(*[aheadChunk]byte)
	for {
		n, err := c.Conn.Read(buf[:])
		c.mu.Lock()
		if n > 0 && !c.join(buf[:n]) {
			c.queue = append(c.queue, piece{buf, 0, n})
			c.held += aheadChunk
			buf = nil
		}
		c.err = err
		c.changed.Broadcast()
		for c.held >= aheadBytes && err == nil && !c.closed {
			c.changed.Wait()
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
		if buf == nil {
			buf = aheadPool.Get().(*[aheadChunk]byte)
		}
	}
}

// join adds a little to the last piece, so that many small ones do not take a buffer each.
func (c *readAhead) join(data []byte) bool {
	if len(c.queue) == 0 {
		return false
	}
	last := &c.queue[len(c.queue)-1]
	if len(data) > aheadChunk/4 || aheadChunk-last.end < len(data) {
		return false
	}
	last.end += copy(last.data[last.end:], data)
	return true
}

// Close implements net.Conn.
func (c *readAhead) Close() error {
	c.mu.Lock()
	c.closed = true
	c.changed.Broadcast()
	c.mu.Unlock()
	return c.Conn.Close()
}

// Read implements net.Conn. What was read ahead comes before the error that ended it.
func (c *readAhead) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		c.changed.Wait()
	}
	n := 0
	for n < len(p) && len(c.queue) > 0 {
		first := &c.queue[0]
		k := copy(p[n:], first.data[first.start:first.end])
		n += k
		if first.start += k; first.start == first.end {
			aheadPool.Put(first.data)
			c.queue = c.queue[1:]
			c.held -= aheadChunk
		}
	}
	if len(c.queue) == 0 {
		c.queue = nil
	}
	c.changed.Broadcast()
	return n, nil
}
