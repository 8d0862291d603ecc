package topology

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

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
	lagFrames.DeleteLabelValues(c.Durable)
	lagSeconds.DeleteLabelValues(c.Durable)
}

// lagTick is how often the lag is looked at.
const lagTick = 5 * time.Second

// watchLag asks the server how many messages there are for a consumer, and when idle
// how old they are: else that is known from those that come.
func (b *Bus) watchLag(ctx context.Context, c Consumer, idle bool) {
	tick := time.NewTicker(lagTick)
	defer tick.Stop()
	// The oldest message stays the same while nobody reads: it is looked for once.
	var since time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		look, cancel := context.WithTimeout(ctx, 3*time.Second)
		consumer, err := b.js.Consumer(look, c.Stream, c.Durable)
		if err == nil {
			info := consumer.CachedInfo()
			lagFrames.WithLabelValues(c.Durable).Set(float64(info.NumPending) + float64(info.NumAckPending))
			switch {
			case info.NumPending == 0 && info.NumAckPending == 0:
				since = time.Time{}
				lagSeconds.WithLabelValues(c.Durable).Set(0)
			case idle:
				if since.IsZero() {
					since, _ = b.oldest(look, info) // the next round tries again
				}
				if !since.IsZero() {
					lagSeconds.WithLabelValues(c.Durable).Set(max(0, time.Since(since).Seconds()))
				}
			}
		}
		cancel()
	}
}
