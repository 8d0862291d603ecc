package known

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/penstock/penstock/topology"
)

type ledger struct {
	asked []int
	fail  error
}

func (l *ledger) Known(_ context.Context, q Question) (all []Of, behind uint64, err error) {
	l.asked = append(l.asked, len(q.Objects))
	for _, o := range q.Objects {
		all = append(all, Of{State: Complete, Pull: o.Key})
	}
	return all, 3, l.fail
}

// covers: pain 9, design section 6
func TestAsk(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: 64 << 20, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	bus, err := topology.Connect(t.Context(), server.Connect(topology.Options{Name: "test", Log: quiet}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bus.Close)
	q := Question{Source: "s", Bucket: "b"}
	for i := range 1200 {
		q.Objects = append(q.Objects, Object{Key: fmt.Sprint(i)})
	}
	if _, _, err := Ask(t.Context(), bus, q); !errors.Is(err, ErrNoLedger) {
		t.Errorf("nobody keeps a ledger: %v", err)
	}
	l := &ledger{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, bus, l) }()
	var all []Of
	var behind uint64
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if all, behind, err = Ask(t.Context(), bus, q); err == nil {
			break
		}
	}
	if err != nil || len(all) != 1200 || behind != 3 || all[1199].Pull != "1199" || len(l.asked) != 3 {
		t.Errorf("%d answers in %v, behind %d: %v", len(all), l.asked, behind, err)
	}
	l.fail = errors.New("no")
	if _, _, err := Ask(t.Context(), bus, q); err == nil || errors.Is(err, ErrNoLedger) {
		t.Errorf("the ledger fails: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
