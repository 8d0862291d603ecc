// Package sources holds the kinds of things that penstock reads from, one file a
// kind. Adding one is a file with one define.
package sources

import (
	"context"
	"log/slog"
	"time"

	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/catalog"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/topology"
)

// Catalog holds the source kinds.
var Catalog = catalog.New[Deps, Source]("source")

// Source reads one upstream place. Opening one starts nothing.
type Source interface {
	// Name is the configured name.
	Name() string
	// Run reads until ctx ends. Then it takes nothing new, finishes what is in
	// hand within Deps.Drain, gives the rest back upstream, and returns: nil, or
	// ingest.drain_expired when something had to be given back. An outage
	// upstream does not end it. It is called once at a time.
	Run(ctx context.Context) error
	// Health returns nil while the source can be read, else the last error. It
	// may be called at any time.
	Health() error
}

// ChooseFormat names the decoder and the framing of what is to be read.
// Configured is the format of the source, "auto" or empty to find out; key is the
// object's key, empty for the body of a message; head is the beginning of the
// bytes. Skip is the reason code of what is known to hold no events. A format of
// "" means that none fits.
type ChooseFormat func(configured, key string, head []byte) (format string, f framing.Framing, skip string)

// Deps is what a source needs from the process.
type Deps struct {
	// Name of the source, unique. It becomes a subject, a metric label and a part
	// of each origin.
	Name string
	// Format is the configured format of the source, "" or "auto" for none.
	Format string
	// NewOutbox opens an outbox for one piece of work.
	NewOutbox func() topology.Outbox
	// Bus keeps the cursors of pollers and shares their work over replicas. Others do
	// not need it.
	Bus *topology.Bus
	// Choose finds the format of events in message bodies.
	Choose ChooseFormat
	// Drain is how long work in hand may go on after Run's context has ended; 0
	// is 20 seconds.
	Drain time.Duration
	// Log; nil is the default logger.
	Log *slog.Logger
	// SQS makes a client; nil is [awsclient.SQS].
	SQS func(ctx context.Context, cfg awsclient.Config) (SQS, error)
}

// ObjectReader is a source configuration whose notices name S3 objects: what the
// fetch stage must know to read them.
type ObjectReader interface {
	// ObjectAWS is the access to the buckets.
	ObjectAWS() awsclient.Config
	// Allows tells whether objects of the bucket may be read.
	Allows(bucket string) bool
	// Takes tells whether objects with the key are wanted.
	Takes(key string) bool
	// Whole is where all its objects are, "" where the configuration does not name one
	// place alone.
	Whole() (bucket, prefix string)
}

func define[C any](name, doc string, defaults func() C, open func(ctx context.Context, cfg C, deps Deps) (Source, error)) {
	catalog.Define(Catalog, name, doc, defaults, open)
}

// outlive returns a context that goes on for grace after ctx has ended, then
// ends with cause. The function returned ends it and waits for what it started.
func outlive(ctx context.Context, grace time.Duration, cause error) (context.Context, func()) {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-work.Done():
			return
		case <-ctx.Done():
		}
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-work.Done():
		case <-t.C:
			cancel(cause)
		}
	}()
	return work, func() { cancel(nil); <-done }
}

// pause waits for d or the end of ctx; it tells whether d has passed.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
