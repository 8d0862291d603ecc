package sources

import (
	"context"
	"sync"
)

// room bounds what is received and not yet settled, in bytes and in messages. It
// may be used concurrently.
//
// A receive call reserves before it knows what will come. The size of bodies is
// guessed from those that came before: at twice the largest of late. When larger
// ones come all at once, the bound is passed by what the calls under way bring, and
// no call begins before it holds again.
type room struct {
	mostBytes    int64
	mostMessages int

	mu       sync.Mutex
	bytes    int64
	messages int
	largest  int64
	freed    chan struct{} // closed when something was given back
}

func newRoom(bytes int64, messages int) *room {
	return &room{mostBytes: bytes, mostMessages: messages, largest: maxBody, freed: make(chan struct{})}
}

// reserve waits until n messages fit, and returns the bytes that are reserved for
// them. One call is always let in.
func (r *room) reserve(ctx context.Context, n int) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		size := int64(n) * min(2*r.largest, maxBody)
		if r.messages == 0 || r.bytes+size <= r.mostBytes && r.messages+n <= r.mostMessages {
			r.bytes += size
			r.messages += n
			return size, nil
		}
		freed := r.freed
		r.mu.Unlock()
		select {
		case <-freed:
			r.mu.Lock()
		case <-ctx.Done():
			r.mu.Lock()
			return 0, context.Cause(ctx)
		}
	}
}

// exchange turns a reservation of size bytes for n messages into what came.
func (r *room) exchange(size int64, n int, posts []*post) {
	came, largest := int64(0), int64(0)
	for _, p := range posts {
		came += p.size
		largest = max(largest, p.size)
	}
	r.mu.Lock()
	if len(posts) > 0 {
		r.largest = max(largest, r.largest-r.largest/16, 1)
	}
	r.mu.Unlock()
	r.release(size-came, n-len(posts))
}

// release gives back.
func (r *room) release(size int64, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes -= size
	r.messages -= n
	close(r.freed)
	r.freed = make(chan struct{})
}
