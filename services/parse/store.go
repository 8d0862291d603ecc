package parse

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/spare"
	"github.com/penstock/penstock/topology"
)

var tracer = otel.Tracer("github.com/penstock/penstock/services/parse")

// maxLinks bounds the links of a span to other inputs.
const maxLinks = 128

// store encodes gr, releases its inputs, and returns once the frame is durable.
// ctx has the span of the first input.
func (g *grouper) store(ctx context.Context, gr *group) (err error) {
	ctx, span := g.span(ctx, gr)
	defer func() {
		if err != nil {
			span.RecordError(err)
			span.SetStatus(codes.Error, fault.CodeOf(err))
		}
		span.End()
	}()
	var e *encoder
	select {
	case e = <-g.encoders:
	case <-ctx.Done():
		g.letGo(gr)
		return context.Cause(ctx)
	}
	data := e.frame(gr)
	m := topology.Message{
		Subject: topology.ParsedSubject(gr.key.lane), ID: e.id(gr), Data: data, Stored: func() { encoded.Give(data) },
	}
	g.encoders <- e
	g.hold(int64(len(m.Data)))
	defer g.giveBack(int64(len(m.Data)))
	g.letGo(gr)
	groupEvents.Observe(float64(gr.events))
	groupBytes.Observe(float64(gr.bytes))

	out := g.outbox()
	if err := out.Publish(ctx, m); err != nil {
		return err
	}
	return out.Flush(ctx)
}

// hold takes memory without waiting: that of an encoded frame, in exchange for
// the inputs.
func (g *grouper) hold(size int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.use(size)
}

// span begins the span of a group: a child of the first input's span that links
// to those of the others.
func (g *grouper) span(ctx context.Context, gr *group) (context.Context, trace.Span) {
	ctx, span := tracer.Start(ctx, "parse.group", trace.WithSpanKind(trace.SpanKindProducer))
	if !span.IsRecording() {
		return ctx, span
	}
	links, first := 0, gr.parts[0].in.span
	for _, p := range gr.parts[1:] {
		if sc := p.in.span; sc.IsValid() && !sc.Equal(first) && links < maxLinks {
			span.AddLink(trace.Link{SpanContext: sc})
			links++
		}
	}
	span.SetAttributes(
		attribute.String("penstock.source", gr.key.source),
		attribute.String("penstock.event_type", gr.key.eventType),
		attribute.Int("penstock.lane", int(gr.key.lane)),
		attribute.Int("penstock.events", gr.events),
		attribute.Int64("penstock.bytes", gr.bytes),
	)
	return ctx, span
}

// encoded are buffers of frames that are stored.
var encoded = spare.Buffers{Most: 4 << 20}

// encoder makes frames of groups. Not for concurrent use.
type encoder struct {
	builder *messages.Builder
	origins []uint32
	hash    []byte
}

// frame returns the encoded frame of gr, in a buffer of encoded.
func (e *encoder) frame(gr *group) []byte {
	k := &gr.key
	b := e.builder
	b.Reset(messages.Header{Source: k.source, Format: k.format, EventType: k.eventType, Replay: k.replay, Lane: k.lane})
	for _, p := range gr.parts {
		in := p.in
		if in.whole {
			b.AddBlock(in.block, int(in.bytes))
		}
		e.origins = e.origins[:0]
		for range in.origins {
			e.origins = append(e.origins, none)
		}
		for _, i := range in.order[p.from:p.to] {
			ev := &in.events[i]
			if e.origins[ev.origin] == none {
				e.origins[ev.origin] = b.Origin(in.origins[ev.origin])
			}
			event := messages.Event{
				ID: ev.id, Time: ev.time, Account: ev.account, Region: ev.region,
				Origin: e.origins[ev.origin], Record: ev.record,
			}
			if in.whole {
				b.AddStored(event, int(ev.to-ev.from))
				continue
			}
			event.Doc = in.doc(ev)
			b.Add(event)
		}
	}
	data := b.EncodeInto(encoded.Take)
	b.Reset(messages.Header{}) // it would hold the frames that came in until the next group
	return data
}

const none = 1<<32 - 1

// id returns the message id: a hash of what the frame is of and of which records
// of which pulls are in it. The same records in the same groups are the same
// message, so that the bus drops what a second attempt repeats. Another pull of
// the same object is another message, although the event ids are the same: that
// is for dedupe to judge and for the ledger to see.
func (e *encoder) id(gr *group) string {
	k := &gr.key
	h := e.hash[:0]
	for _, s := range [...]string{k.source, k.format, k.eventType, k.replay} {
		h = append(append(h, s...), 0)
	}
	h = binary.BigEndian.AppendUint32(h, k.lane)
	for _, p := range gr.parts {
		last := uint32(none)
		for _, i := range p.in.order[p.from:p.to] {
			ev := &p.in.events[i]
			if ev.origin != last {
				last = ev.origin
				h = append(h, p.in.origins[last].GetPull()...)
			}
			h = append(h, ev.id[:]...)
			h = binary.BigEndian.AppendUint64(h, ev.record)
		}
	}
	e.hash = h
	sum := sha256.Sum256(h)
	return hex.EncodeToString(sum[:16])
}
