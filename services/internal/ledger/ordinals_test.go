package ledger

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// Against a map: adding, removing, asking, walking, packing.
func TestOrdinalsAgreeWithAMap(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 3))
		number := func() uint64 { return r.Uint64() >> (64 - r.IntN(20)) } // dense and small
		if seed%3 == 0 {
			number = func() uint64 { return r.Uint64() >> r.IntN(64) } // all over
		}
		s, want := &ordinals{}, map[uint64]bool{}
		for range 2000 {
			n := number()
			switch r.IntN(4) {
			case 0:
				if got := s.remove(n); got != want[n] {
					t.Fatalf("seed %d: remove(%d) = %v", seed, n, got)
				}
				delete(want, n)
			case 1:
				if got := s.has(n); got != want[n] {
					t.Fatalf("seed %d: has(%d) = %v", seed, n, got)
				}
			default:
				if got := s.add(n); got == want[n] {
					t.Fatalf("seed %d: add(%d) = %v", seed, n, got)
				}
				want[n] = true
			}
		}
		sorted := slices.Sorted(maps.Keys(want))
		for name, set := range map[string]*ordinals{"set": s, "unpacked": unpack(s.pack())} {
			var got []uint64
			set.each(func(n uint64) { got = append(got, n) })
			if !slices.Equal(got, sorted) || set.count() != uint64(len(sorted)) {
				t.Fatalf("seed %d: the %s has %d numbers %v\nwant %v", seed, name, set.count(), got, sorted)
			}
		}
	}
}

func TestPackedOrdinalsAreSmall(t *testing.T) {
	all, few := &ordinals{}, &ordinals{}
	for n := range uint64(500_000) {
		all.add(n)
		if n%33 == 0 {
			few.add(n)
		}
	}
	if n := len(all.pack()); n > 8 {
		t.Errorf("half a million in a row take %d bytes", n)
	}
	if n := len(few.pack()); n > 2*500_000/33+2 {
		t.Errorf("3 %% of half a million take %d bytes", n)
	}
	if got := (&ordinals{}).pack(); got != nil {
		t.Errorf("nothing is packed as %v", got)
	}
	if got := (&ordinals{first: []uint64{1 << 63}, pages: nil}).pack(); len(got) != 2 {
		t.Errorf("one number is packed as %v", got)
	}
}

// The last number there is must not make the run after it wrap.
func TestOrdinalsAtTheEnd(t *testing.T) {
	s := &ordinals{}
	for _, n := range []uint64{0, 1<<64 - 1} {
		s.add(n)
	}
	var got []uint64
	unpack(s.pack()).each(func(n uint64) { got = append(got, n) })
	if !slices.Equal(got, []uint64{0, 1<<64 - 1}) {
		t.Errorf("got %v", got)
	}
}
