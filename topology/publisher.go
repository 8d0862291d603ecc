package topology

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages/fault"
)

var (
	errTooLarge = fault.Define("bus.message_too_large", fault.Reject,
		"raise max_payload of the NATS server (penstock's own configuration uses 8MB), or lower the record limit of the source")
	errFenced = fault.Define("bus.fenced", fault.Stop,
		"nothing to mend: another replica took the lane over")
	errPublish = fault.Define("bus.publish_failed", fault.Retry,
		"check the NATS servers: penstock topology show")

	published = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_bus_published_messages_total", Help: "Messages stored, by stream.",
	}, []string{"stream"})
	publishedBytes = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_bus_published_bytes_total", Help: "Bytes of messages stored, by stream.",
	}, []string{"stream"})
	publishRetries = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_bus_publish_retries_total", Help: "Attempts to publish that failed and were repeated, by reason.",
	}, []string{"reason"})
	publishBlocked = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "penstock_bus_publish_blocked", Help: "Messages that wait because their stream is full: the backpressure.",
	})
)

// JetStream's error codes, as the server documents them.
const (
	codeStoreFailed       = 10077 // maximum bytes exceeded, or the disk refuses
	codeWrongLastSequence = 10071
	codeWrongLastID       = 10070
	codeMessageTooLarge   = 10054
	codeNoResources       = 10023
	codeStorageExceeded   = 10047
)

// fullSubject is told which stream refuses publishes, so that whoever can make
// room does it now rather than at its next round.
const fullSubject = "penstock.control.full."

// headerUUID is where Watermill's NATS marshaler keeps a message's UUID; headers
// stay wire-compatible with it, so that any Watermill program can read the streams.
const headerUUID = wmnats.WatermillUUIDHdr

// Headers by which the events of a log can be counted without reading the frames.
const (
	headerEvents = "Penstock-Events"
	headerBytes  = "Penstock-Bytes"
	headerSource = "Penstock-Source"
)

func toNATS(ctx context.Context, m Message) *nats.Msg {
	h, id := make(nats.Header, 8), []string{m.ID}
	h[headerUUID], h[nats.MsgIdHdr] = id, id
	if m.Events > 0 {
		of := []string{strconv.Itoa(m.Events), strconv.Itoa(m.Bytes), m.Source}
		h[headerEvents], h[headerBytes], h[headerSource] = of[:1:1], of[1:2:2], of[2:]
	}
	setAttempts(h, m.Attempts)
	injectTrace(ctx, h)
	return &nats.Msg{Subject: m.Subject, Data: m.Data, Header: h}
}

// store publishes msg and returns once it is stored, with its sequence. It
// repeats what may succeed later, with the same message id, until ctx ends.
func (b *Bus) store(ctx context.Context, msg *nats.Msg) (uint64, error) {
	wait := 20 * time.Millisecond
	blocked := false
	defer func() {
		if blocked {
			publishBlocked.Dec()
		}
	}()
	for {
		seq, err := b.publish(ctx, msg)
		if err == nil {
			countPublished(msg)
			return seq, nil
		}
		reason := ""
		switch code := apiCode(err); {
		case ctx.Err() != nil:
			return 0, errPublish.New(context.Cause(ctx), "publish to %s", msg.Subject)
		case code == codeWrongLastSequence, code == codeWrongLastID:
			return 0, errFenced.New(err, "publish to %s", msg.Subject)
		case code == codeMessageTooLarge, errors.Is(err, nats.ErrMaxPayload):
			return 0, errTooLarge.New(err, "publish %d bytes to %s", len(msg.Data), msg.Subject)
		case code == codeStoreFailed, code == codeNoResources, code == codeStorageExceeded:
			reason = "full"
			if !blocked {
				blocked = true
				publishBlocked.Inc()
			}
			_ = b.nc.Publish(fullSubject+streamOf(msg.Subject), nil) // a hint: the keeper looks by itself, too
			wait = min(wait, 500*time.Millisecond)
		case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrNoResponders):
			reason = "no_stream"
		default:
			reason = "connection"
		}
		publishRetries.WithLabelValues(reason).Inc()
		select {
		case <-ctx.Done():
			return 0, errPublish.New(errors.Join(err, context.Cause(ctx)), "publish to %s", msg.Subject)
		case <-time.After(wait):
		}
		wait = min(2*wait, 2*time.Second)
	}
}

func countPublished(msg *nats.Msg) {
	stream := streamOf(msg.Subject)
	published.WithLabelValues(stream).Inc()
	publishedBytes.WithLabelValues(stream).Add(float64(len(msg.Data)))
}

// publish sends msg once and waits for its acknowledgement, which tells its sequence.
func (b *Bus) publish(ctx context.Context, msg *nats.Msg) (uint64, error) {
	t, err := b.send(msg)
	if err != nil {
		return 0, err
	}
	return t.wait(ctx)
}

// storeAfter publishes under the condition that the last message of the subject
// has the sequence last: a writer that does not know of a newer one is refused
// with errFenced. An earlier attempt of this very message counts as success.
func (b *Bus) storeAfter(ctx context.Context, msg *nats.Msg, last uint64) (uint64, error) {
	msg.Header.Set(nats.ExpectedLastSubjSeqHdr, strconv.FormatUint(last, 10))
	seq, err := b.store(ctx, msg)
	if err == nil || !errors.Is(err, errFenced) {
		return seq, err
	}
	stored, lookErr := b.last(ctx, msg.Subject)
	if lookErr == nil && stored != nil && stored.Header.Get(nats.MsgIdHdr) == msg.Header.Get(nats.MsgIdHdr) {
		return stored.Sequence, nil
	}
	return 0, errors.Join(err, lookErr)
}

// last returns the newest message of a subject, nil when there is none.
func (b *Bus) last(ctx context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	s, err := b.js.Stream(ctx, streamOf(subject))
	if err != nil {
		return nil, errConnect.New(err, "look up the stream of %s", subject)
	}
	m, err := s.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, errConnect.New(err, "read the last message of %s", subject)
	}
	return m, nil
}

func apiCode(err error) int {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return int(api.ErrorCode)
	}
	var old *nats.APIError
	if errors.As(err, &old) {
		return int(old.ErrorCode)
	}
	return 0
}

// streamOf names the stream of a subject.
func streamOf(subject string) string {
	for _, s := range Flow {
		for _, filter := range s.Subjects {
			if covers(filter, subject) {
				return s.Name
			}
		}
	}
	return "unknown"
}

// Publisher is the Watermill publisher for frames: it publishes all messages at
// once and returns when the last is stored. A message's UUID is its Nats-Msg-Id.
// The stock publishers wait for each message before they send the next.
//
// Close leaves the connection open: Watermill closes the publisher of a handler
// that stops, also a shared one.
type Publisher struct{ bus *Bus }

// Publisher returns a Watermill publisher over this connection.
func (b *Bus) Publisher() *Publisher { return &Publisher{b} }

// Publish implements message.Publisher.
func (p *Publisher) Publish(topic string, msgs ...*message.Message) error {
	var wg sync.WaitGroup
	errs := make([]error, len(msgs))
	for i, m := range msgs {
		msg := toNATS(m.Context(), Message{Subject: topic, ID: m.UUID, Data: m.Payload})
		for k, v := range m.Metadata {
			msg.Header.Set(k, v)
		}
		size := min(int64(len(m.Payload)), p.bus.options.PublishWindow)
		if err := p.bus.window.Acquire(m.Context(), size); err != nil {
			errs[i] = errPublish.New(err, "wait for room in the publish window")
			break
		}
		wg.Go(func() {
			defer p.bus.window.Release(size)
			errs[i] = p.bus.storeGrouped(m.Context(), msg)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Close implements message.Publisher.
func (p *Publisher) Close() error { return nil }

// slowPublisher is watermill-nats itself, for the subjects of low rate:
// quarantine and ledger.
type slowPublisher struct{ stock *wmnats.Publisher }

func newSlowPublisher(b *Bus) (*slowPublisher, error) {
	stock, err := wmnats.NewPublisherWithNatsConn(b.nc, wmnats.PublisherPublishConfig{
		Marshaler:         &wmnats.NATSMarshaler{},
		SubjectCalculator: wmnats.DefaultSubjectCalculator,
		JetStream:         wmnats.JetStreamConfig{TrackMsgId: true},
	}, b.watermillLog())
	if err != nil {
		return nil, err
	}
	return &slowPublisher{stock}, nil
}

// storeSlow publishes through watermill-nats and repeats until it is stored.
func (b *Bus) storeSlow(ctx context.Context, m Message) error {
	h := nats.Header{}
	injectTrace(ctx, h)
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		msg := message.NewMessageWithContext(ctx, m.ID, m.Data)
		for k := range h {
			msg.Metadata.Set(k, h.Get(k))
		}
		err := b.slow.stock.Publish(m.Subject, msg)
		if err == nil {
			published.WithLabelValues(streamOf(m.Subject)).Inc()
			publishedBytes.WithLabelValues(streamOf(m.Subject)).Add(float64(len(m.Data)))
			return nil
		}
		switch code := apiCode(err); {
		case code == codeMessageTooLarge, errors.Is(err, nats.ErrMaxPayload):
			return errTooLarge.New(err, "publish %d bytes to %s", len(m.Data), m.Subject)
		case code == codeStoreFailed:
			_ = b.nc.Publish(fullSubject+streamOf(m.Subject), nil)
		}
		publishRetries.WithLabelValues("slow").Inc()
		select {
		case <-ctx.Done():
			return errPublish.New(errors.Join(err, context.Cause(ctx)), "publish to %s", m.Subject)
		case <-time.After(wait):
		}
	}
}
