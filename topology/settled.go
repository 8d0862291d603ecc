package topology

import (
	"context"
	"slices"
	"strings"
)

// Settled tells whether a destination has done with a frame of the event log.
type Settled struct {
	Destination string
	// Done: all that it reads up to the frame is confirmed, or was refused for good.
	Done bool
	// Before: the frame is older than where the destination began to read.
	Before bool
}

// Settled returns for every destination that reads an event type whether it has done with
// the frame at a sequence, in the order of their names.
func (b *Bus) Settled(ctx context.Context, sequence uint64, eventType string) ([]Settled, error) {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	stream, err := b.js.Stream(ctx, Events)
	if err != nil {
		return nil, errDestinations.New(err, "look up stream %s", Events)
	}
	subject := EventSubject(eventType)
	var all []Settled
	list := stream.ListConsumers(ctx)
	for info := range list.Info() {
		name, ok := strings.CutPrefix(info.Config.Durable, deliverPrefix)
		filters := info.Config.FilterSubjects
		if info.Config.FilterSubject != "" {
			filters = append(filters, info.Config.FilterSubject)
		}
		if !ok || len(filters) > 0 && !slices.ContainsFunc(filters, func(f string) bool { return covers(f, subject) }) {
			continue
		}
		before := sequence < info.Config.OptStartSeq
		all = append(all, Settled{
			Destination: name, Before: before,
			Done: !before && (info.AckFloor.Stream >= sequence || info.NumPending == 0 && info.NumAckPending == 0),
		})
	}
	if err := list.Err(); err != nil {
		return nil, errDestinations.New(err, "list the consumers of %s", Events)
	}
	slices.SortFunc(all, func(a, b Settled) int { return strings.Compare(a.Destination, b.Destination) })
	return all, nil
}

// Unconfirmed counts the live events that wait for a destination, by the headers of their
// frames. Frames that an older penstock wrote have none: they are not in events.
func (b *Bus) Unconfirmed(ctx context.Context, destination string) (events, frames uint64, err error) {
	consumer, err := b.js.Consumer(ctx, Events, deliverPrefix+token(destination))
	if err != nil {
		return 0, 0, errDestinations.New(err, "look up the reader of destination %s", destination)
	}
	info := consumer.CachedInfo()
	if info.NumPending == 0 && info.NumAckPending == 0 {
		return 0, 0, nil
	}
	filters := info.Config.FilterSubjects
	if info.Config.FilterSubject != "" {
		filters = []string{info.Config.FilterSubject}
	}
	h := b.History(Events, filters)
	_, next, err := h.Bounds(ctx)
	if err != nil {
		return 0, 0, err
	}
	err = h.Scan(ctx, max(info.AckFloor.Stream+1, info.Config.OptStartSeq), next, true, func(m Stored) (bool, error) {
		events += uint64(max(0, m.Events))
		frames++
		return true, ctx.Err()
	})
	return events, frames, err
}
