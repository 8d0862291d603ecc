package replay

import (
	"context"
	"testing"

	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/topology"
)

// Who takes the job at once narrows its reader to what the destination has. Start does not
// widen it again.
func TestStartLeavesTheReaderToTheWorker(t *testing.T) {
	bus := testLog(t, 256<<20)
	store(t, bus, "1", "s", "a.b", frame("s", "a.b", "k1", "ann", 10), 10, 300)
	following, cancel := context.WithCancel(t.Context())
	narrowed := make(chan error, 1)
	go bus.FollowJobs(following, func(all []topology.Job) {
		if len(all) > 0 && cap(narrowed) > len(narrowed) {
			_, err := bus.Begin(following, topology.ReplayConsumer(all[0].ID, "d", []string{"c.>"}, topology.Start{Sequence: 1}))
			narrowed <- err
		}
	})
	j, err := Start(t.Context(), bus, jobs.Replay{Destination: "d"}, "op", "command", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := <-narrowed; err != nil {
		t.Fatal(err)
	}
	cancel()
	if p, err := bus.Replayed(t.Context(), j.ID, 2); err != nil || !p.Found || p.Left {
		t.Errorf("the reader has types that the destination has not: %+v, %v", p, err)
	}
}
