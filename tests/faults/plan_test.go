package faults

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// step is one fault of a plan.
type step struct {
	// N counts from 1.
	N int
	// Pause is how long the system is left alone before the fault begins.
	Pause time.Duration
	// Kind is what goes wrong, Target where, For how long.
	Kind, Target string
	For          time.Duration
	// Rush has the next fault begin as soon as this one ends, before all flows again.
	Rush bool
	// Draw seeds what the fault itself draws.
	Draw uint64
}

func (s step) String() string {
	rush := ""
	if s.Rush {
		rush = ", then at once the next"
	}
	return fmt.Sprintf("%2d. after %s: %s %s for %s%s", s.N, s.Pause, s.Kind, s.Target, s.For, rush)
}

// plan draws n faults. Kinds come as from a deck of cards: each that is possible here
// once before any comes again, in an order that the seed decides.
func plan(seed uint64, n int, kinds []kind) []step {
	rng := rand.New(rand.NewPCG(seed, 5))
	var deck []kind
	steps := make([]step, 0, n)
	for i := range n {
		if len(deck) == 0 {
			for _, k := range kinds {
				for range max(1, k.often) {
					deck = append(deck, k)
				}
			}
			rng.Shuffle(len(deck), func(a, b int) { deck[a], deck[b] = deck[b], deck[a] })
		}
		k := deck[0]
		deck = deck[1:]
		s := step{N: i + 1, Kind: k.name, Pause: between(rng, 300*time.Millisecond, 1200*time.Millisecond), Rush: rng.IntN(5) == 0 && i+1 < n, Draw: rng.Uint64()}
		s.Target = k.targets[rng.IntN(len(k.targets))]
		s.For = between(rng, k.least, k.most)
		steps = append(steps, s)
	}
	return steps
}

// between draws a time, to the millisecond so that it can be read.
func between(rng *rand.Rand, least, most time.Duration) time.Duration {
	if most <= least {
		return least
	}
	return (least + time.Duration(rng.Int64N(int64(most-least)))).Truncate(time.Millisecond)
}

func lines(steps []step) string {
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "\n  %s", s)
	}
	return b.String()
}
