package deliver

import (
	"context"
	"testing"

	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/topology"
)

// taker takes all and keeps nothing.
type taker struct{}

func (taker) Limits() sinks.Limits { return sinks.Limits{Events: 1000, Bytes: config.MiB} }

func (taker) Append(dst []byte, e *sinks.Event) []byte { return append(append(dst, e.Doc...), '\n') }

func (taker) Deliver(context.Context, sinks.Batch) sinks.Result { return sinks.Result{} }

func (taker) Close() error { return nil }

// Delivering costs a number of allocations for each frame and batch, not for each event.
func TestAllocationsPerEvent(t *testing.T) {
	d := start(t, destination(), taker{}, Deps{})
	defer shut(t, d)
	seq := uint64(0)
	of := func(n int) float64 {
		in := frameOf(t, 1, docs(n, 200)...)
		return testing.AllocsPerRun(20, func() {
			seq++
			in.Sequence = seq
			if err := d.Handle(t.Context(), in, &topology.Recorder{}); err != nil {
				t.Fatal(err)
			}
		})
	}
	of(1000) // buffers grow
	few, many := of(100), of(1000)
	if per := (many - few) / 900; per > 0.05 {
		t.Errorf("%.3f allocations an event more, want none: %v for 100, %v for 1,000", per, few, many)
	}
}
