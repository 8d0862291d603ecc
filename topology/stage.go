// Package topology knows where data flows: the table of streams, subjects and
// consumers, the connection to NATS JetStream or the server inside the process,
// and the discipline by which stages take, pass on and acknowledge messages. It
// is the only package that knows Watermill and NATS; stages are plain typed
// functions.
package topology

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
)

var (
	errPanic = fault.Define("bus.handler_panicked", fault.Retry,
		"report it with the quarantined bytes; redrive after an update")
	errDrain = fault.Define("bus.drain_timeout", fault.Retry,
		"nothing is lost: what was in hand is delivered again; raise the drain time if it happens often")

	handled = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_bus_handled_messages_total", Help: "Messages a stage has settled, by consumer and result.",
	}, []string{"consumer", "result"})
	handleSeconds = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "penstock_bus_handle_seconds", Help: "Time from delivery of a message to its settlement, by consumer.",
		Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
	}, []string{"consumer"})
	lagFrames = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_bus_lag_frames", Help: "Messages stored for a consumer and not yet acknowledged.",
	}, []string{"consumer"})
	lagSeconds = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_bus_lag_seconds", Help: "Age of the message that a consumer got last, 0 when it has all.",
	}, []string{"consumer"})
)

// Consume runs h for the messages of c until ctx ends. Up to c.Window messages
// are handled at once. When ctx ends it takes no more, lets the work in hand
// finish for the drain time of the bus, gives the rest back, and returns nil, or
// a bus.drain_timeout error when a handler did not return even then.
func Consume[T any](ctx context.Context, b *Bus, c Consumer, decode func([]byte) (T, error), h Handler[T]) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := b.ensureConsumer(ctx, c)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil // asked to stop before it began
		}
		b.log.Warn("consumer is not to be had yet, trying on", "consumer", c.Durable, "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
	sub := newSubscriber(b, c)
	watched, stopWatching := context.WithCancel(ctx)
	watching := make(chan struct{})
	go func() { defer close(watching); b.watchLag(watched, c, false) }()
	defer func() { stopWatching(); <-watching }()
	w := worker[T]{bus: b, consumer: c, decode: decode, handle: h}
	return b.route(ctx, c.Durable, sub, w.work)
}

// drainable is a subscriber whose messages can be told to hurry.
type drainable interface {
	message.Subscriber
	settle()
	giveUp()
}

func (s *subscriber) giveUp() { s.abandon() }

// route runs a Watermill router with one handler over sub until ctx ends.
func (b *Bus) route(ctx context.Context, name string, sub drainable, work message.NoPublishHandlerFunc) error {
	const grace = 5 * time.Second
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: b.options.Drain + grace}, b.watermillLog())
	if err != nil {
		return errSubscribe.New(err, "make the router of %s", name)
	}
	router.AddConsumerHandler(name, "", sub, work) // sub knows what it reads; each message would carry the topic
	ended := make(chan error, 1)
	// The router must not see ctx: it would end the contexts of messages in hand.
	go func() { ended <- router.Run(context.WithoutCancel(ctx)) }()
	select {
	case <-router.Running():
	case err = <-ended:
		ended <- err
	}
	select {
	case err = <-ended:
		sub.giveUp()
		sub.settle()
		if err != nil {
			return errSubscribe.New(err, "run the router of %s", name)
		}
		return nil
	case <-ctx.Done():
	}
	_ = sub.Close()
	hurry := time.AfterFunc(b.options.Drain, sub.giveUp)
	defer hurry.Stop()
	err = router.Close() // Run returns nil even when the drain was late: only Close tells
	<-ended              //nolint:errcheck // nil, see above
	if err != nil {
		sub.giveUp()
		return errDrain.New(err, "drain %s", name)
	}
	// Watermill counts what is worked on, but not what it has taken and not begun: that may
	// begin even now, with what is left of the drain time.
	sub.settle()
	sub.giveUp()
	return nil
}

// consumerSpan is what the spans of all that is taken from a stream begin with. Attributes
// come after that, and only to what is recorded.
var consumerSpan = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer)}

// worker takes one message through decode, trace, handle, flush and settlement.
type worker[T any] struct {
	bus      *Bus
	consumer Consumer
	decode   func([]byte) (T, error)
	handle   Handler[T]
}

// work never returns an error: it has nacked the message itself by then, with
// the pause that fits.
func (w *worker[T]) work(msg *message.Message) error {
	ctx := msg.Context()
	d, ok := ctx.Value(deliveryKey{}).(*delivery)
	if !ok {
		return errors.New("message does not come from the bus subscriber")
	}
	began := time.Now()
	in := In[T]{
		Data: msg.Payload, Subject: msg.Metadata[metaSubject], Sequence: d.meta.seq,
		Attempt: int(d.meta.delivered), Redriven: attemptsOf(msg.Metadata[headerAttempts]), Stored: d.meta.stored, Span: trace.SpanContextFromContext(ctx),
	}
	lagSeconds.WithLabelValues(w.consumer.label()).Set(began.Sub(in.Stored).Seconds())
	ctx, span := tracer.Start(ctx, string(w.consumer.Stage), consumerSpan...)
	defer span.End()
	if span.IsRecording() {
		span.SetAttributes(
			attribute.String("messaging.system", "nats"),
			attribute.String("messaging.operation.type", "process"),
			attribute.String("messaging.destination.name", in.Subject),
			attribute.String("messaging.consumer.group.name", w.consumer.Durable),
			attribute.Int64("penstock.sequence", int64(in.Sequence)),
			attribute.Int("penstock.attempt", in.Attempt),
		)
	}

	out := &outbox{bus: w.bus, stage: w.consumer.Stage, redriven: in.Redriven}
	if age := time.Since(in.Stored); in.Attempt > 1 && w.consumer.Stage == Route && (age > w.bus.options.Remembered || age < -clockSlack) {
		// Into the event log, and only there, nothing may go twice: behind it there
		// is no dedupe any more. The clock by which the log has its times may be slow.
		out.again = in.Stored.Add(-clockSlack)
	}
	err := w.attempt(ctx, &in, out)
	result := "done"
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, fault.CodeOf(err))
		result = w.refuse(ctx, &in, d, err)
	}
	if result == "retried" || result == "given_back" {
		msg.Nack()
	}
	handled.WithLabelValues(w.consumer.label(), result).Inc()
	handleSeconds.WithLabelValues(w.consumer.label()).Observe(time.Since(began).Seconds())
	return nil
}

func (w *worker[T]) attempt(ctx context.Context, in *In[T], out *outbox) (err error) {
	defer func() {
		if r := recover(); r != nil {
			w.bus.log.ErrorContext(ctx, "handler panicked", "stage", string(w.consumer.Stage), "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			// What was handed over before must not be under way any more when the
			// message is tried again or quarantined.
			out.wg.Wait()
			err = errPanic.New(nil, "handle message %d of %s", in.Sequence, w.consumer.Stream)
		}
	}()
	if in.Value, err = w.decode(in.Data); err != nil {
		return err
	}
	if err = w.handle(ctx, *in, out); err != nil {
		out.wg.Wait()
		return err
	}
	return out.Flush(ctx)
}

// Pauses between attempts of one message, and how many a panicking one gets.
const (
	firstPause    = 500 * time.Millisecond
	longestPause  = time.Minute
	stopPause     = 30 * time.Second
	panicAttempts = 3
)

// refuse decides what becomes of a message whose attempt failed, and says how it
// was settled.
func (w *worker[T]) refuse(ctx context.Context, in *In[T], d *delivery, err error) string {
	if ctx.Err() != nil {
		return "given_back" // a stop, and nobody's fault
	}
	switch {
	case fault.ClassOf(err) == fault.Stop:
		d.delay = stopPause
	case hopeless(w.consumer.Stage, err, in.Attempt, time.Since(in.Stored), w.bus.options.GiveUpAfter):
		if qErr := w.quarantine(ctx, in, err); qErr != nil {
			w.bus.log.WarnContext(ctx, "quarantine is not to be had, message will be retried", "stage", string(w.consumer.Stage), "err", qErr)
			d.delay = firstPause
			return "retried"
		}
		return "quarantined"
	default:
		d.delay = min(firstPause<<min(in.Attempt-1, 10), longestPause)
	}
	d.delay += rand.N(d.delay/4 + 1) //nolint:gosec // jitter
	w.bus.log.WarnContext(ctx, "message will be retried", "stage", string(w.consumer.Stage), "sequence", in.Sequence,
		"attempt", in.Attempt, "pause", d.delay.String(), "err", err)
	return "retried"
}

// hopeless says whether a message whose attempt failed is not to be tried again. What
// a destination does not take never gets too old for that here: its max_backlog says
// what becomes of it.
func hopeless(stage Stage, err error, attempt int, age, giveUpAfter time.Duration) bool {
	switch {
	case fault.ClassOf(err) == fault.Reject:
		return true
	case errors.Is(err, errPanic):
		return attempt >= panicAttempts
	}
	return stage != Deliver && age > giveUpAfter && attempt > panicAttempts
}

// quarantine keeps the whole message, and tells the ledger what that means for
// the records in it.
func (w *worker[T]) quarantine(ctx context.Context, in *In[T], err error) error {
	q := &messages.Quarantine{
		Code: fault.CodeOf(err), Reason: err.Error(), Payload: in.Data, Subject: in.Subject,
		Attempts: uint32(in.Attempt), Offset: -1, Length: -1, Destination: w.consumer.Destination,
	}
	out := &outbox{bus: w.bus, stage: w.consumer.Stage, redriven: in.Redriven}
	switch v := any(in.Value).(type) {
	case *messages.Notice:
		q.Holds, q.Origin = messages.Quarantine_HOLDS_NOTICE, v.GetOrigin()
		out.Fact(&messages.Fact{Kind: &messages.Fact_Fetched{Fetched: &messages.Fetched{
			Pull: v.GetOrigin().GetPull(), Source: v.GetOrigin().GetSource(), End: messages.Fetched_END_QUARANTINED, Code: q.Code,
		}}})
	case messages.View:
		q.Holds, q.Source, q.Format, q.Records = messages.Quarantine_HOLDS_FRAME, v.Source(), v.Format(), uint64(v.Len())
		if origins, oErr := v.Origins(); oErr == nil && len(origins) > 0 {
			q.Origin = origins[0]
		}
		if fact := quarantinedFrame(w.consumer, in.Sequence, &v, q.Code); fact != nil {
			out.Fact(fact)
		}
	}
	w.bus.log.ErrorContext(ctx, "message goes to quarantine", "stage", string(w.consumer.Stage), "sequence", in.Sequence, "code", q.Code, "err", err)
	if err := out.Quarantine(ctx, q); err != nil {
		return err
	}
	return out.Flush(ctx)
}

// quarantinedFrame is the ledger's fact about a frame that was refused whole.
func quarantinedFrame(c Consumer, sequence uint64, v *messages.View, code string) *messages.Fact {
	origins, err := v.Origins()
	if err != nil || len(origins) == 0 {
		return nil
	}
	n := uint64(v.Len())
	var columns messages.Columns
	if c.Stage != Parse {
		if err := v.Columns(&columns); err != nil {
			return nil
		}
	}
	switch c.Stage {
	case Route:
		return quarantinedUnique(sequence, v, origins, &columns, code)
	case Parse:
		return &messages.Fact{Kind: &messages.Fact_Parsed{Parsed: &messages.Parsed{
			Pull: origins[0].GetPull(), FrameNo: v.FrameNo(), Records: n, Quarantined: map[string]uint64{code: n},
		}}}
	case Deliver:
		pulls := make([]*messages.DeliveredPull, len(origins))
		for i, o := range origins {
			pulls[i] = &messages.DeliveredPull{Pull: o.GetPull(), Quarantined: map[string]uint64{}}
		}
		for i, o := range columns.OriginOf {
			if v.Fate(i) == messages.Live {
				pulls[o].Quarantined[code]++
			}
		}
		return &messages.Fact{Kind: &messages.Fact_Delivered{Delivered: &messages.Delivered{
			Destination: c.Destination, Sequence: sequence, EventType: v.EventType(), Pulls: pulls, Replay: c.replayOf(v),
		}}}
	default: // the others consume no frames
		return nil
	}
}

// replayOf is the job for which the consumer's destination gets the frame once more, ""
// when it gets it for the first time.
func (c Consumer) replayOf(v *messages.View) string {
	if c.Replay != "" {
		return c.Replay
	}
	if r := messages.ParseReplay(v.Replay()); r.Destination != "" {
		return r.Job
	}
	return ""
}

// quarantinedUnique tells of a frame that route refused: its live events are
// dropped, under the code as the rule.
func quarantinedUnique(sequence uint64, v *messages.View, origins []*messages.Origin, columns *messages.Columns, code string) *messages.Fact {
	pulls := make([]*messages.RoutedPull, len(origins))
	last := make([][2]uint64, len(origins)) // the ordinals before, for the differences
	for i, o := range origins {
		pulls[i] = &messages.RoutedPull{Pull: o.GetPull(), Dropped: map[string]uint64{}}
	}
	for i, o := range columns.OriginOf {
		record, p := columns.Records[i], pulls[o]
		if v.Fate(i) == messages.Duplicate {
			p.Duplicate = append(p.Duplicate, int64(record-last[o][1]))
			last[o][1] = record
			continue
		}
		p.Unique = append(p.Unique, int64(record-last[o][0]))
		last[o][0] = record
		p.Dropped[code]++
	}
	return &messages.Fact{Kind: &messages.Fact_Routed{Routed: &messages.Routed{
		Lane: v.Lane(), Sequence: sequence, EventType: v.EventType(), Source: v.Source(), Pulls: pulls,
	}}}
}
