package spare

import "testing"

func TestBuffers(t *testing.T) {
	b := Buffers{Most: 4 * step}
	first := b.Take(1)
	if len(first) != 0 || cap(first) != step {
		t.Fatalf("a buffer of %d bytes with room for %d, not of 0 with room for %d", len(first), cap(first), step)
	}
	first = append(first, 'x')
	large := b.Take(3*step + 1)
	b.Give(first)
	b.Give(large) // 5 steps together
	b.Give(nil)
	if b.held != step || len(b.free) != 1 {
		t.Errorf("%d bytes in %d buffers are kept, not one of %d", b.held, len(b.free), step)
	}
	if other := b.Take(2 * step); &other[:1][0] == &first[0] {
		t.Error("a buffer was handed out that is too small")
	}
	if again := b.Take(step); len(again) != 0 || &again[:1][0] != &first[0] {
		t.Error("what was given back is not taken again, empty")
	}
	if b.held != 0 || len(b.free) != 0 {
		t.Errorf("%d bytes in %d buffers are kept after all were taken", b.held, len(b.free))
	}
}

func TestNothingIsKept(t *testing.T) {
	var b Buffers
	b.Give(b.Take(10))
	if len(b.free) != 0 {
		t.Error("the zero value keeps a buffer")
	}
}
