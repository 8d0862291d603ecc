package topology

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages/fault"
)

var errDestinations = fault.Define("bus.destinations_failed", fault.Retry,
	"check that the server answers, and that its user may look at, and delete, the consumers of EVENTS: penstock topology show")

// Reader is how far the reader of a destination is.
type Reader struct {
	Destination string
	// Pending frames were not given out yet, InHand were and are not acknowledged.
	Pending uint64
	InHand  int
	// Waiting requests for frames: 0 when no process reads.
	Waiting int
	// Oldest is when the oldest frame was stored that is not acknowledged; zero when
	// there is none.
	Oldest time.Time
	// First is the first frame that it reads, from when it was made.
	First uint64
}

// Readers returns the readers of all destinations that there are, running or not, in
// the order of their names.
func (b *Bus) Readers(ctx context.Context) ([]Reader, error) {
	stream, err := b.js.Stream(ctx, Events)
	if err != nil {
		return nil, errDestinations.New(err, "look up stream %s", Events)
	}
	var all []Reader
	list := stream.ListConsumers(ctx)
	for info := range list.Info() {
		name, ok := strings.CutPrefix(info.Config.Durable, deliverPrefix)
		if !ok {
			continue
		}
		r := Reader{
			Destination: name, Pending: info.NumPending, InHand: info.NumAckPending, Waiting: info.NumWaiting,
			First: max(1, info.Config.OptStartSeq),
		}
		if r.Oldest, err = b.oldest(ctx, info); err != nil {
			return nil, errDestinations.New(err, "find the oldest frame that destination %s has not confirmed", name)
		}
		all = append(all, r)
	}
	if err := list.Err(); err != nil {
		return nil, errDestinations.New(err, "list the consumers of %s", Events)
	}
	return all, nil
}

// RemoveReader deletes the reader of a destination, and with it its position. One that
// is not there is no error.
func (b *Bus) RemoveReader(ctx context.Context, destination string) error {
	err := b.js.DeleteConsumer(ctx, Events, deliverPrefix+token(destination))
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return errDestinations.New(err, "delete the reader of destination %s", destination)
	}
	return nil
}

// oldest is when the first message was stored that a consumer has not acknowledged, the
// zero time when there is none.
func (b *Bus) oldest(ctx context.Context, info *jetstream.ConsumerInfo) (time.Time, error) {
	if info.NumPending == 0 && info.NumAckPending == 0 {
		return time.Time{}, nil
	}
	_, at, err := b.History(info.Stream, info.Config.FilterSubjects).Pending(ctx, max(info.AckFloor.Stream+1, info.Config.OptStartSeq))
	return at, err
}

// WatchLag keeps the lag of a consumer on the metrics page until ctx ends, while
// nobody reads for it. [Consume] does so itself.
func (b *Bus) WatchLag(ctx context.Context, c Consumer) { b.watchLag(ctx, c, true) }

// ForgetLag takes the lag of a consumer off the metrics page.
func ForgetLag(c Consumer) {
	lagFrames.DeleteLabelValues(c.label())
	lagSeconds.DeleteLabelValues(c.label())
	lagBytes.DeleteLabelValues(c.label())
}

// lagBytes and the lag of lanes are what stages are scaled by, beside what [Consume] sets.
var (
	lagBytes = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_bus_lag_bytes", Help: "Bytes of the messages that a consumer has not acknowledged, by the mean size of those in its stream.",
	}, []string{"consumer"})
	laneFrames = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_dedupe_lag_frames", Help: "Frames before a dedupe lane that this process owns.",
	}, []string{"lane"})
	laneBytes = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_dedupe_lag_bytes", Help: "Bytes of the frames before a dedupe lane, by the mean size of those in PARSED.",
	}, []string{"lane"})
	laneSeconds = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_dedupe_lag_seconds", Help: "Age of the frame that a dedupe lane has in hand, 0 when it has done all.",
	}, []string{"lane"})
)

// meanSize is that of the messages of a stream, in bytes; 0 when it cannot be asked.
func (b *Bus) meanSize(ctx context.Context, stream string) float64 {
	s, err := b.js.Stream(ctx, stream)
	if err != nil || s.CachedInfo().State.Msgs == 0 {
		return 0 // the next round tries again
	}
	return float64(s.CachedInfo().State.Bytes) / float64(s.CachedInfo().State.Msgs)
}

// laneLag is how far a lane is, for who looks from outside.
type laneLag struct {
	mu       sync.Mutex
	consumer string
	done     uint64 // in the order of the consumer
	inHand   time.Time
}

func (g *laneLag) set(consumer string, done uint64, inHand time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.consumer, g.done, g.inHand = consumer, done, inHand
}

// watchLag keeps the lag of a lane on the metrics page until ctx ends. The lane itself
// may stand still meanwhile: that is when it matters.
func (l *Lane) watchLag(ctx context.Context) {
	lane := strconv.FormatUint(uint64(l.number), 10)
	defer func() {
		laneFrames.DeleteLabelValues(lane)
		laneBytes.DeleteLabelValues(lane)
		laneSeconds.DeleteLabelValues(lane)
	}()
	tick := time.NewTicker(laneTick)
	defer tick.Stop()
	var calm lagCalm
	for {
		l.lag.mu.Lock()
		consumer, done, inHand := l.lag.consumer, l.lag.done, l.lag.inHand
		l.lag.mu.Unlock()
		frames, size, look := 0.0, 0.0, true
		if consumer != "" {
			ask, cancel := context.WithTimeout(ctx, 3*time.Second)
			c, err := l.bus.js.Consumer(ask, Parsed, consumer)
			if look = err == nil; look {
				info := c.CachedInfo()
				frames = float64(info.NumPending) + float64(info.Delivered.Consumer-min(done, info.Delivered.Consumer))
				calm.saw(frames, info.Delivered.Stream)
			}
			if frames > 0 {
				size = l.bus.meanSize(ask, Parsed)
			}
			cancel()
		}
		if look {
			laneFrames.WithLabelValues(lane).Set(frames)
			laneBytes.WithLabelValues(lane).Set(frames * size)
		}
		switch {
		case !inHand.IsZero():
			laneSeconds.WithLabelValues(lane).Set(max(0, time.Since(inHand).Seconds()))
		case look && frames == 0:
			laneSeconds.WithLabelValues(lane).Set(0)
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if !calm.passOver() {
				break
			}
		}
	}
}

// laneTick is how often the lag of a lane is looked at.
const laneTick = 3 * time.Second

// lagTick is how often the lag is looked at.
const lagTick = 5 * time.Second

// lagCalm tells which looks at a lag are spared: two of three, while nothing is behind
// and nothing comes.
type lagCalm struct {
	delivered uint64 // the last sequence that was given out
	calm      bool
	spared    int
}

func (l *lagCalm) saw(behind float64, delivered uint64) {
	l.calm = behind == 0 && delivered == l.delivered
	l.delivered = delivered
}

func (l *lagCalm) passOver() bool {
	if !l.calm || l.spared == 2 {
		l.spared = 0
		return false
	}
	l.spared++
	return true
}

// watchLag asks the server how many messages there are for a consumer, and when idle
// how old they are: else that is known from those that come.
func (b *Bus) watchLag(ctx context.Context, c Consumer, idle bool) {
	tick := time.NewTicker(lagTick)
	defer tick.Stop()
	// The oldest message stays the same while nobody reads: it is looked for once.
	var since time.Time
	var calm lagCalm
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if calm.passOver() {
			continue
		}
		look, cancel := context.WithTimeout(ctx, 3*time.Second)
		consumer, err := b.js.Consumer(look, c.Stream, c.Durable)
		if err == nil {
			info := consumer.CachedInfo()
			behind := float64(info.NumPending) + float64(info.NumAckPending)
			calm.saw(behind, info.Delivered.Stream)
			lagFrames.WithLabelValues(c.label()).Set(behind)
			if behind == 0 {
				lagBytes.WithLabelValues(c.label()).Set(0)
			} else if size := b.meanSize(look, c.Stream); size > 0 {
				lagBytes.WithLabelValues(c.label()).Set(behind * size)
			}
			switch {
			case info.NumPending == 0 && info.NumAckPending == 0:
				since = time.Time{}
				lagSeconds.WithLabelValues(c.label()).Set(0)
			case idle:
				if since.IsZero() {
					since, _ = b.oldest(look, info) // the next round tries again
				}
				if !since.IsZero() {
					lagSeconds.WithLabelValues(c.label()).Set(max(0, time.Since(since).Seconds()))
				}
			}
		}
		cancel()
	}
}
