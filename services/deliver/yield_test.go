package deliver

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// What live events wait for waits itself, but not for ever, and not beyond its end.
//
// covers: design section 6
func TestYield(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		y := newYield()
		took := func(ctx context.Context) (time.Duration, error) {
			began := time.Now()
			err := y.wait(ctx)
			return time.Since(began), err
		}
		if d, err := took(t.Context()); d != 0 || err != nil {
			t.Errorf("with nothing live: %v, %v", d, err)
		}
		y.hold()
		y.hold()
		if d, err := took(t.Context()); d != yieldLongest || err != nil {
			t.Errorf("always held: %v, %v", d, err)
		}
		time.AfterFunc(time.Second, y.release)
		if d, err := took(t.Context()); d != time.Second || err != nil {
			t.Errorf("held for a second: %v, %v", d, err)
		}
		y.release()
		y.hold()
		end := errors.New("the pass has ended")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(end) })
		if d, err := took(ctx); d != time.Second || !errors.Is(err, end) {
			t.Errorf("ended while held: %v, %v", d, err)
		}
	})
}
