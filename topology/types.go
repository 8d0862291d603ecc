package topology

import (
	"context"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// EventTypes returns the event types that the log has, with how many frames of each.
func (b *Bus) EventTypes(ctx context.Context) (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	const all = "penstock.event.>"
	stream, err := b.js.Stream(ctx, Events)
	if err != nil {
		return nil, errRead.New(err, "look up stream %s", Events)
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(all))
	if err != nil {
		return nil, errRead.New(err, "list the event types of %s", Events)
	}
	types := make(map[string]uint64, len(info.State.Subjects))
	for subject, n := range info.State.Subjects {
		types[strings.TrimPrefix(subject, strings.TrimSuffix(all, ">"))] = n
	}
	return types, nil
}
