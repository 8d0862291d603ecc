package topology

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/penstock/penstock/messages"
)

// Message is one thing to store on the bus.
type Message struct {
	// Subject comes from the functions in flow.go.
	Subject string
	// ID is the Nats-Msg-Id: the same for every attempt to publish the same thing.
	ID string
	// Data is the encoded message. It belongs to the bus until Stored is called, or until
	// Flush returns nil; after an error for good.
	Data []byte
	// Stored is called when the message is stored and Data is not looked at any more. It
	// may be nil, and is not called after an error or where an earlier attempt had stored
	// the message.
	Stored func()
	// Events, Bytes and Source go into the headers of what enters the event log: how
	// many events are live, what all documents have before compression, in bytes, and
	// their source. 0 events leave them out.
	Events, Bytes int
	Source        string
	// Attempts is how often what comes from quarantine was tried before.
	Attempts uint32
}

// Outbox takes what a piece of work results in. Once Flush has returned nil, all
// that was handed over is durable, and only then may the input be acknowledged.
// Methods may be called concurrently.
type Outbox interface {
	// Publish hands m to the bus. It may return before m is stored. It blocks
	// while the window of unconfirmed bytes is full, which is the backpressure;
	// a full stream is waited for, not reported. It fails only when ctx ends or
	// the message can never be stored (fault.Reject).
	Publish(ctx context.Context, m Message) error
	// Quarantine keeps what was refused. Version, id, time, trace and program
	// version are filled in when empty.
	Quarantine(ctx context.Context, q *messages.Quarantine) error
	// Fact adds to the ledger. Facts are stored after all that was published.
	Fact(f *messages.Fact)
	// Flush waits until all is stored.
	Flush(ctx context.Context) error
}

// In is one message of the bus as a handler gets it.
type In[T any] struct {
	// Value is the decoded message.
	Value T
	// Data is its encoded form; a View points into it.
	Data    []byte
	Subject string
	// Sequence in its stream.
	Sequence uint64
	// Attempt counts deliveries from 1.
	Attempt int
	// Redriven is how often it was tried before it went to quarantine, from where it
	// comes; 0 where it does not.
	Redriven uint32
	// Stored is when the bus stored it.
	Stored time.Time
	// Span is the remote parent, to be linked to where inputs merge.
	Span trace.SpanContext
}

// Handler does one stage's work on one message. The input is acknowledged after
// it returned nil and out was flushed. It must be safe to run twice on one
// message. A fault.Retry error has it delivered again after a pause; a
// fault.Reject error quarantines the input with its bytes.
type Handler[T any] func(ctx context.Context, in In[T], out Outbox) error

// Recorder is an Outbox that keeps all in memory: for tests of stages.
type Recorder struct {
	mu          sync.Mutex
	messages    []Message
	quarantined []*messages.Quarantine
	facts       []*messages.Fact
	flushed     int
}

// Publish implements Outbox.
func (r *Recorder) Publish(ctx context.Context, m Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.messages = append(r.messages, m)
	return ctx.Err()
}

// Quarantine implements Outbox.
func (r *Recorder) Quarantine(ctx context.Context, q *messages.Quarantine) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.quarantined = append(r.quarantined, q)
	return ctx.Err()
}

// Fact implements Outbox.
func (r *Recorder) Fact(f *messages.Fact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.facts = append(r.facts, f)
}

// Flush implements Outbox.
func (r *Recorder) Flush(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flushed++
	return ctx.Err()
}

// Messages returns what was published, in order.
func (r *Recorder) Messages() []Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Message(nil), r.messages...)
}

// Quarantined returns what was refused, in order.
func (r *Recorder) Quarantined() []*messages.Quarantine {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*messages.Quarantine(nil), r.quarantined...)
}

// Facts returns the ledger facts, in order.
func (r *Recorder) Facts() []*messages.Fact {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*messages.Fact(nil), r.facts...)
}

// Flushed returns how often Flush was called.
func (r *Recorder) Flushed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.flushed
}

// outbox is the Outbox of one piece of work on a live bus.
type outbox struct {
	bus   *Bus
	stage Stage
	wg    sync.WaitGroup
	// again is set when an earlier attempt may have published the same longer ago
	// than the server remembers ids: since when it could have.
	again time.Time
	// redriven is In.Redriven of the input.
	redriven uint32

	mu    sync.Mutex
	err   error
	facts []*messages.Fact
}

// NewOutbox returns an Outbox for work that has no input on the bus, or that
// merges several inputs. Use a new one for each piece of work.
func (b *Bus) NewOutbox(stage Stage) Outbox { return &outbox{bus: b, stage: stage} }

func (o *outbox) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
}

func (o *outbox) failed() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// headerRoom is what the headers of a message may take of the largest message that
// the server takes: its id and the trace. Unit: bytes.
const headerRoom = 4096

// Publish implements Outbox.
func (o *outbox) Publish(ctx context.Context, m Message) error {
	if err := o.failed(); err != nil {
		return err
	}
	if int64(len(m.Data))+headerRoom > o.bus.MaxPayload() {
		return errTooLarge.New(nil, "publish %d bytes to %s, the server takes %d", len(m.Data), m.Subject, o.bus.MaxPayload())
	}
	size := min(int64(len(m.Data))+512, o.bus.options.PublishWindow)
	if err := o.bus.window.Acquire(ctx, size); err != nil {
		return errPublish.New(context.Cause(ctx), "wait for room in the publish window")
	}
	o.wg.Go(func() {
		defer o.bus.window.Release(size)
		if !o.again.IsZero() {
			if done, err := o.bus.stored(ctx, m.Subject, m.ID, o.again); err != nil || done {
				if err != nil {
					o.fail(err)
				}
				return
			}
		}
		if err := o.bus.storeGrouped(ctx, toNATS(ctx, m)); err != nil {
			o.fail(err)
			return
		}
		if m.Stored != nil {
			m.Stored()
		}
	})
	return nil
}

// Quarantine implements Outbox.
func (o *outbox) Quarantine(ctx context.Context, q *messages.Quarantine) error {
	fillQuarantine(ctx, o.stage, o.redriven, q)
	data := messages.EncodeQuarantine(q)
	if most := o.bus.MaxPayload() - headerRoom; int64(len(data)) > most {
		keep := max(0, int64(len(q.Payload))-(int64(len(data))-most))
		q.Payload, q.Cut = q.Payload[:keep], true
		data = messages.EncodeQuarantine(q)
	}
	quarantined.WithLabelValues(string(o.stage), q.Source, q.Code).Add(float64(max(1, q.Records)))
	return o.bus.storeSlow(ctx, Message{Subject: QuarantineSubject(o.stage, q.Source), ID: q.Id, Data: data})
}

// Fact implements Outbox.
func (o *outbox) Fact(f *messages.Fact) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.facts = append(o.facts, f)
}

// Flush implements Outbox.
func (o *outbox) Flush(ctx context.Context) error {
	o.wg.Wait()
	if err := o.failed(); err != nil {
		return err
	}
	o.mu.Lock()
	facts := o.facts
	o.facts = nil
	o.mu.Unlock()
	if len(facts) == 0 {
		return nil
	}
	return o.bus.ledger[o.stage].add(ctx, facts)
}
