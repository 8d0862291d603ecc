package topology

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/penstock/penstock/messages"
)

// stuckWork does not commit before it is let.
type stuckWork struct {
	LaneWork
	let chan struct{}
}

func (w stuckWork) Frame(ctx context.Context, in In[messages.View], commit func(context.Context, []byte, []byte) error) error {
	<-w.let
	return w.LaneWork.Frame(ctx, in, commit)
}

func lagValue(g prometheus.Gauge) float64 {
	var m dto.Metric
	if g.Write(&m) != nil {
		return -1
	}
	return m.GetGauge().GetValue()
}

// What stages are scaled by: while one stands still, frames, bytes and seconds of lag are
// on its metrics page, of each consumer and of each lane, and they go to 0 afterwards.
func TestLagIsThereAndGoes(t *testing.T) {
	b := testBus(t, Limits{Lanes: 2})
	let := make(chan struct{})
	run(t, func(ctx context.Context) error {
		return b.Lanes(ctx, time.Hour, func(n uint32) LaneWork { return stuckWork{openMap(n), let} })
	})
	c := Consumer{Stage: Route, Stream: Unique, Durable: "route", Window: 1, WindowBytes: 1 << 20}
	run(t, func(ctx context.Context) error {
		return Consume(ctx, b, c, raw, func(context.Context, In[[]byte], Outbox) error { return nil })
	})
	const frames = 12
	for i := range frames {
		publish(t, b, Message{Subject: ParsedSubject(1), ID: fmt.Sprint(i), Data: testFrame(t, 1, fmt.Sprint(i), 4)})
	}
	size := float64(len(testFrame(t, 1, "0", 4)))
	await(t, "the lag of the lane is there", func() bool {
		return lagValue(laneFrames.WithLabelValues("1")) == frames &&
			lagValue(laneBytes.WithLabelValues("1")) > frames*size &&
			lagValue(laneSeconds.WithLabelValues("1")) > 0
	})
	if got := lagValue(laneFrames.WithLabelValues("0")); got != 0 {
		t.Errorf("the lane that has nothing to do is %v frames behind", got)
	}
	close(let)
	await(t, "the lane has done all", func() bool {
		return lagValue(laneFrames.WithLabelValues("1")) == 0 &&
			lagValue(laneBytes.WithLabelValues("1")) == 0 &&
			lagValue(laneSeconds.WithLabelValues("1")) == 0
	})

	// A consumer whose handler stands still.
	hold := make(chan struct{})
	d := DeliverConsumer("lagging", nil, Start{})
	run(t, func(ctx context.Context) error {
		return Consume(ctx, b, d, raw, func(context.Context, In[[]byte], Outbox) error { <-hold; return nil })
	})
	for i := range frames {
		publish(t, b, Message{Subject: EventSubject("a.b"), ID: fmt.Sprint(i), Data: testFrame(t, 1, fmt.Sprint(i), 4)})
	}
	await(t, "the lag of the destination is there", func() bool {
		return lagValue(lagFrames.WithLabelValues(d.label())) == frames && lagValue(lagBytes.WithLabelValues(d.label())) > frames*size
	})
	close(hold)
	await(t, "the destination has all", func() bool {
		return lagValue(lagFrames.WithLabelValues(d.label())) == 0 && lagValue(lagBytes.WithLabelValues(d.label())) == 0 &&
			lagValue(lagSeconds.WithLabelValues(d.label())) == 0
	})
}
