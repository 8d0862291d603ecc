package topology

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/messages/fault"
)

// cursorBucket holds how far sources have read, a key for each.
const cursorBucket = "penstock_cursors"

var (
	errCursor = fault.Define("bus.cursor_failed", fault.Retry,
		"check that the key-value bucket "+cursorBucket+" exists and has room: penstock topology apply")
	// ErrCursorMoved is that of a cursor which somebody else has set meanwhile.
	ErrCursorMoved = fault.Define("bus.cursor_moved", fault.Retry,
		"none needed: another process has taken the work over, and goes on from there")
)

// cursorTimeout bounds one call to the bucket.
const cursorTimeout = 10 * time.Second

// Cursor is how far somebody has read something. It outlives processes, and moves
// under the condition that nobody else has moved it since it was read: a stale owner
// cannot put it back. Not for concurrent use.
type Cursor struct {
	bus      *Bus
	key      string
	value    []byte
	revision uint64
}

// Cursor reads the cursor of a thing that a source reads; any names will do. One
// that was never set has no value.
func (b *Bus) Cursor(ctx context.Context, source, name string) (*Cursor, error) {
	c := &Cursor{bus: b, key: keyOf(source) + "." + keyOf(name)}
	return c, c.Load(ctx)
}

// Load reads the value anew, e.g. after bus.cursor_moved.
func (c *Cursor) Load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := c.bus.bucket(ctx, cursorBucket)
	if err != nil {
		return errCursor.New(err, "open the bucket %s", cursorBucket)
	}
	entry, err := kv.Get(ctx, c.key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		c.value, c.revision = nil, 0
	case err != nil:
		return errCursor.New(err, "read the cursor %s", c.key)
	default:
		c.value, c.revision = entry.Value(), entry.Revision()
	}
	return nil
}

// Value is what was read or set last, nil when there is none. It is not to be
// changed.
func (c *Cursor) Value() []byte { return c.value }

// Set moves the cursor. Do so only once what it passes is durable. Errors:
// bus.cursor_moved when somebody else has set it since, bus.cursor_failed.
func (c *Cursor) Set(ctx context.Context, value []byte) error {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := c.bus.bucket(ctx, cursorBucket)
	if err != nil {
		return errCursor.New(err, "open the bucket %s", cursorBucket)
	}
	revision, err := c.put(ctx, kv, value)
	if err != nil {
		if apiCode(err) != codeWrongLastSequence && !errors.Is(err, jetstream.ErrKeyExists) {
			return errCursor.New(err, "move the cursor %s", c.key)
		}
		// An answer that got lost leaves our own value with a newer revision.
		now, getErr := kv.Get(ctx, c.key)
		if getErr != nil || string(now.Value()) != string(value) {
			return ErrCursorMoved.New(err, "move the cursor %s", c.key)
		}
		revision = now.Revision()
	}
	c.value, c.revision = append([]byte(nil), value...), revision
	return nil
}

func (c *Cursor) put(ctx context.Context, kv jetstream.KeyValue, value []byte) (uint64, error) {
	if c.revision == 0 {
		return kv.Create(ctx, c.key, value)
	}
	return kv.Update(ctx, c.key, value, c.revision)
}

// bucket opens a key-value bucket, once for each connection.
func (b *Bus) bucket(ctx context.Context, name string) (jetstream.KeyValue, error) {
	b.bucketsMu.Lock()
	defer b.bucketsMu.Unlock()
	if kv := b.buckets[name]; kv != nil {
		return kv, nil
	}
	kv, err := b.js.KeyValue(ctx, name)
	if err != nil {
		return nil, err
	}
	if b.buckets == nil {
		b.buckets = map[string]jetstream.KeyValue{}
	}
	b.buckets[name] = kv
	return kv, nil
}
