package topology

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/messages/fault"
)

// consumerBucket holds who may fetch events from destinations, and how far they are.
const consumerBucket = "penstock_consumers"

var (
	errRegister = fault.Define("bus.register_failed", fault.Retry,
		"check that the key-value bucket "+consumerBucket+" exists and has room: penstock topology apply")
	// ErrEntryMoved is that of an entry which somebody else has changed meanwhile.
	ErrEntryMoved = fault.Define("bus.entry_moved", fault.Retry,
		"none when it passes: somebody else has changed the same entry; read it again")
)

// Register is a set of small entries that outlive processes and are changed under the
// condition that nobody else has changed them since they were read. Its methods may be
// called concurrently.
type Register struct{ bus *Bus }

// Entry is one entry of a [Register].
type Entry struct {
	// Path names the entry; each part may be any text that [Register.Put] was given.
	Path string
	// Value is nil when the entry was removed.
	Value []byte
	// Revision grows with each change; 0 when the entry never was there.
	Revision uint64
}

// Consumers is the register of those who fetch events from destinations.
func (b *Bus) Consumers() *Register { return &Register{b} }

// RegisterPath names an entry. Parts of up to 200 bytes of letters, digits, - and _
// are told apart.
func RegisterPath(parts ...string) string {
	keys := make([]string, len(parts))
	for i, p := range parts {
		keys[i] = keyOf(p)
	}
	return strings.Join(keys, ".")
}

func (r *Register) open(ctx context.Context) (jetstream.KeyValue, error) {
	kv, err := r.bus.bucket(ctx, consumerBucket)
	if err != nil {
		return nil, errRegister.New(err, "open the bucket %s", consumerBucket)
	}
	return kv, nil
}

// Get reads an entry. One that is not there has no value; its revision is then 0.
func (r *Register) Get(ctx context.Context, path string) (Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := r.open(ctx)
	if err != nil {
		return Entry{}, err
	}
	e, err := kv.Get(ctx, path)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return Entry{Path: path}, nil
	case err != nil:
		return Entry{}, errRegister.New(err, "read the entry %s", path)
	}
	return Entry{path, e.Value(), e.Revision()}, nil
}

// Put changes the entry that was read as e, or makes it when e has no revision, and
// returns it as it is now. Errors: bus.entry_moved when somebody else has changed it
// since, bus.register_failed.
func (r *Register) Put(ctx context.Context, e Entry, value []byte) (Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := r.open(ctx)
	if err != nil {
		return e, err
	}
	var revision uint64
	if e.Revision == 0 {
		revision, err = kv.Create(ctx, e.Path, value)
	} else {
		revision, err = kv.Update(ctx, e.Path, value, e.Revision)
	}
	if err != nil {
		if apiCode(err) != codeWrongLastSequence && !errors.Is(err, jetstream.ErrKeyExists) {
			return e, errRegister.New(err, "change the entry %s", e.Path)
		}
		// An answer that got lost leaves our own value with a newer revision.
		now, getErr := kv.Get(ctx, e.Path)
		if getErr != nil || string(now.Value()) != string(value) {
			return e, ErrEntryMoved.New(err, "change the entry %s", e.Path)
		}
		revision = now.Revision()
	}
	return Entry{e.Path, value, revision}, nil
}

// List reads all entries below a path.
func (r *Register) List(ctx context.Context, path string) ([]Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	var all []Entry
	err := r.watch(ctx, path, func(e Entry) {
		if e.Value != nil {
			all = append(all, e)
		}
	}, func() bool { return false })
	return all, err
}

// Watch calls f for every entry below a path, then known, then f for every change, in
// the order of the changes, until ctx ends. While the bus does not answer it tries on,
// and begins anew.
func (r *Register) Watch(ctx context.Context, path string, f func(Entry), known func()) error {
	for {
		err := r.watch(ctx, path, f, func() bool { known(); return true })
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to stop; the watch says no more than that
		}
		r.bus.log.Warn("entries cannot be watched, trying on", "path", path, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// watch ends when ctx does, the watch breaks, or known returns false.
func (r *Register) watch(ctx context.Context, path string, f func(Entry), known func() bool) error {
	kv, err := r.open(ctx)
	if err != nil {
		return err
	}
	w, err := kv.Watch(ctx, path+".>")
	if err != nil {
		return errRegister.New(err, "watch the entries of %s", path)
	}
	defer func() { _ = w.Stop() }()
	for {
		select {
		case <-ctx.Done():
			return errRegister.New(context.Cause(ctx), "watch the entries of %s", path)
		case e, ok := <-w.Updates():
			switch {
			case !ok:
				return errRegister.New(context.Cause(ctx), "watch the entries of %s", path)
			case e == nil:
				if !known() {
					return nil
				}
			case e.Operation() != jetstream.KeyValuePut:
				f(Entry{Path: e.Key(), Revision: e.Revision()})
			default:
				f(Entry{e.Key(), e.Value(), e.Revision()})
			}
		}
	}
}
