package topology

import (
	"context"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/messages/fault"
)

// watchBucket calls f with all that is under the keys of a bucket, first with what there
// is and then after each change, until f returns an error, ctx ends or the watch breaks,
// which is an error of kind. An entry that cannot be read is logged and left as it was. f
// does not keep the map.
func watchBucket[T any](ctx context.Context, b *Bus, bucket, keys string, kind *fault.Kind,
	read func(jetstream.KeyValueEntry) (T, error), f func(map[string]T) error,
) error {
	kv, err := b.bucket(ctx, bucket)
	if err != nil {
		return kind.New(err, "open the bucket %s", bucket)
	}
	watch, err := kv.Watch(ctx, keys)
	if err != nil {
		return kind.New(err, "watch the bucket %s", bucket)
	}
	defer func() { _ = watch.Stop() }()
	byKey, complete := map[string]T{}, false
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case entry, ok := <-watch.Updates():
			switch {
			case !ok:
				return kind.New(nil, "watch the bucket %s", bucket)
			case entry == nil: // all that was there has been shown
				complete = true
			case entry.Operation() != jetstream.KeyValuePut:
				delete(byKey, entry.Key())
			default:
				v, err := read(entry)
				if err != nil {
					b.log.Warn("an entry of a bucket cannot be read", "bucket", bucket, "key", entry.Key(), "err", err)
					continue
				}
				byKey[entry.Key()] = v
			}
		}
		if !complete {
			continue
		}
		if err := f(byKey); err != nil {
			return err
		}
	}
}
