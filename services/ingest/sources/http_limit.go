package sources

import "sync"

// httpAgainMax is how many requests are remembered that were not stored in time.
const httpAgainMax = 4096

// httpAgain remembers the pulls of requests that the bus began to store without
// telling that it has. When the sender comes again with the same body, it gets the
// same pull, so that what was stored is not stored twice.
type httpAgain struct {
	mu    sync.Mutex
	pulls map[[32]byte][]byte
	ring  [][32]byte
	next  int
}

func newHTTPAgain(size int) *httpAgain {
	return &httpAgain{pulls: map[[32]byte][]byte{}, ring: make([][32]byte, size)}
}

func (a *httpAgain) get(body [32]byte) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pulls[body]
}

func (a *httpAgain) add(body [32]byte, pull []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.pulls[body]; known {
		a.pulls[body] = pull
		return
	}
	delete(a.pulls, a.ring[a.next])
	a.pulls[body] = pull
	a.ring[a.next] = body
	a.next = (a.next + 1) % len(a.ring)
}

// drop forgets a body whose sender knows that it is stored.
func (a *httpAgain) drop(body [32]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.pulls, body)
}
