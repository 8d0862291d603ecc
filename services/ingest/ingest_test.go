package ingest

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type source struct {
	name string
	runs atomic.Int64
	run  func(ctx context.Context, n int64) error
	sick error
}

func (s *source) Name() string                  { return s.name }
func (s *source) Health() error                 { return s.sick }
func (s *source) Run(ctx context.Context) error { return s.run(ctx, s.runs.Add(1)) }

func steady(ctx context.Context, _ int64) error { <-ctx.Done(); return nil }

func TestSupervision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		well := &source{name: "well", run: steady}
		panics := &source{name: "panics", run: func(ctx context.Context, n int64) error {
			if n < 3 {
				panic("oh")
			}
			return steady(ctx, n)
		}}
		fails := &source{name: "fails", run: func(context.Context, int64) error { return errors.New("no") }}
		ctx, cancel := context.WithTimeout(t.Context(), 63*time.Second) // not a multiple of the pause
		defer cancel()
		if err := New(well, panics, fails).Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
		if well.runs.Load() != 1 || panics.runs.Load() != 3 {
			t.Errorf("well ran %d times, panics %d; want 1 and 3", well.runs.Load(), panics.runs.Load())
		}
		if n := fails.runs.Load(); n < 10 || n > 14 {
			t.Errorf("fails ran %d times in a minute", n)
		}
	})
}

func TestDrainErrors(t *testing.T) {
	late := errors.New("late")
	slow := &source{name: "slow", run: func(ctx context.Context, _ int64) error { <-ctx.Done(); return late }}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := New(&source{name: "well", run: steady}, slow).Run(ctx); !errors.Is(err, late) {
		t.Errorf("got %v, want the error of the drain", err)
	}
}

func TestHealth(t *testing.T) {
	i := New(&source{name: "a"}, &source{name: "b", sick: errors.New("denied")})
	h := i.Health()
	if len(h) != 2 || h["a"] != nil || h["b"] == nil || !strings.Contains(h["b"].Error(), "denied") {
		t.Errorf("health %v", h)
	}
}
