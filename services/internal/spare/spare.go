// Package spare keeps byte buffers, and values that hold some, between uses.
//
// A sync.Pool gives what it has away at each run of the garbage collector, which come
// often where memory is short: large buffers then are garbage themselves, and their pages
// go back to the system to be taken again.
package spare

import "sync"

// Values are values that nobody uses, as many as the channel has room for. Methods may be
// called concurrently.
type Values[T any] chan *T

// Take returns a value that was given back, else what fresh makes.
func (v Values[T]) Take(fresh func() *T) *T {
	select {
	case x := <-v:
		return x
	default:
		return fresh()
	}
}

// Give takes back a value that nobody uses any more, or forgets it where enough are kept.
func (v Values[T]) Give(x *T) {
	select {
	case v <- x:
	default:
	}
}

// Buffers is a list of buffers that nobody uses. Methods may be called concurrently. The
// zero value keeps nothing.
type Buffers struct {
	// Most bounds what is kept, in bytes. It is set before the first use.
	Most int

	mu   sync.Mutex
	free [][]byte
	held int
}

// step is what sizes are multiples of, so that buffers fit again. Unit: bytes.
const step = 64 << 10

// small is up to where a buffer is made just as large as is asked, and not kept: there may
// be a thousand of them at a time, and steps of room for each would be most of all memory.
// Unit: bytes.
const small = 16 << 10

// most is how many times larger than asked a buffer may be.
const most = 4

// Take returns an empty buffer with room for size bytes.
func (b *Buffers) Take(size int) []byte {
	if size <= small {
		return make([]byte, 0, size)
	}
	b.mu.Lock()
	for i := len(b.free) - 1; i >= 0; i-- {
		if buf := b.free[i]; cap(buf) >= size && cap(buf) <= max(step, most*size) {
			last := len(b.free) - 1
			b.free[i], b.free[last] = b.free[last], nil
			b.free = b.free[:last]
			b.held -= cap(buf)
			b.mu.Unlock()
			return buf
		}
	}
	b.mu.Unlock()
	return make([]byte, 0, (size+step-1)/step*step)
}

// Give takes back a buffer that nobody uses any more, or forgets it where enough are kept.
func (b *Buffers) Give(buf []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if cap(buf) <= small || b.held+cap(buf) > b.Most {
		return
	}
	b.free = append(b.free, buf[:0])
	b.held += cap(buf)
}
