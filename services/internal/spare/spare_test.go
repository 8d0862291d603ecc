package spare

import "testing"

func TestBuffers(t *testing.T) {
	b := Buffers{Most: 4 * step}
	first := b.Take(small + 1)
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

// A thousand frames of a few events each are under way at a time where there are many
// event types: each takes what it needs.
func TestSmallOnesAreSmall(t *testing.T) {
	b := Buffers{Most: 64 * step}
	b.Give(make([]byte, 0, 16*step))
	for _, size := range []int{1, 100, small} {
		buf := b.Take(size)
		if cap(buf) != size {
			t.Errorf("%d bytes for %d", cap(buf), size)
		}
		b.Give(buf)
	}
	if len(b.free) != 1 {
		t.Errorf("%d buffers are kept, not one", len(b.free))
	}
	if buf := b.Take(small + 1); cap(buf) != step {
		t.Errorf("%d bytes for %d", cap(buf), small+1)
	}
	if buf := b.Take(5 * step); cap(buf) != 16*step {
		t.Errorf("%d bytes for %d: what was spare is not used", cap(buf), 5*step)
	}
}

func TestNothingIsKept(t *testing.T) {
	var b Buffers
	b.Give(b.Take(2 * small))
	if len(b.free) != 0 {
		t.Error("the zero value keeps a buffer")
	}
}

func TestValues(t *testing.T) {
	v, made := make(Values[int], 1), 0
	fresh := func() *int { made++; return new(int) }
	first, second := v.Take(fresh), v.Take(fresh)
	v.Give(first)
	v.Give(second) // one too many
	if v.Take(fresh) != first || made != 2 {
		t.Errorf("what was given back is not taken again; %d were made", made)
	}
	if v.Take(fresh); made != 3 {
		t.Errorf("%d were made, although more than one was kept", made)
	}
}
