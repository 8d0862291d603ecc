package route

import (
	"testing"

	"github.com/penstock/penstock/topology"
)

// Routing costs a number of allocations for each frame, not for each event.
func TestAllocationsPerEvent(t *testing.T) {
	tests := []struct {
		name string
		rule Rule
	}{
		{"unread", Rule{Name: "other", Types: []string{"sig.>"}, Drop: true}},
		{"a sample", Rule{Name: "half", Sample: &Sample{Keep: 0.5}}},
	}
	for _, tt := range tests {
		r := routeOf(t, tt.rule)
		of := func(n int) float64 {
			in := frameOf(t, n, 4, 7)
			return testing.AllocsPerRun(10, func() {
				if err := r.Handle(t.Context(), in, &topology.Recorder{}); err != nil {
					t.Fatal(err)
				}
			})
		}
		few, many := of(100), of(1000)
		if per := (many - few) / 900; per > 0.05 {
			t.Errorf("%s: %.3f allocations an event more, want none: %v for 100, %v for 1,000", tt.name, per, few, many)
		}
	}
}
