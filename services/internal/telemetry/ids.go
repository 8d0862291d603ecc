package telemetry

import (
	"context"
	"encoding/binary"
	"math/rand/v2"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/embedded"
	"go.opentelemetry.io/otel/trace/noop"
)

// idTracers makes spans that are sent nowhere, so they record nothing: they have ids, for
// log lines and for the processes behind, and are sampled as others would be.
type idTracers struct {
	embedded.TracerProvider
	sampler sdktrace.Sampler
}

// Tracer implements trace.TracerProvider.
func (p *idTracers) Tracer(string, ...trace.TracerOption) trace.Tracer {
	return idTracer{sampler: p.sampler}
}

type idTracer struct {
	embedded.Tracer
	sampler sdktrace.Sampler
}

// Start implements trace.Tracer. Of the options only that of a new root matters to a span
// that records nothing.
func (t idTracer) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	parent := trace.SpanContextFromContext(ctx)
	if c := trace.NewSpanStartConfig(options...); c.NewRoot() {
		parent = trace.SpanContext{}
	}
	s := &idSpan{context: trace.SpanContextConfig{TraceID: parent.TraceID(), TraceFlags: parent.TraceFlags(), TraceState: parent.TraceState()}}
	binary.NativeEndian.PutUint64(s.context.SpanID[:], rand.Uint64()|1) //nolint:gosec // an id, no secret; never 0
	if !parent.IsValid() {
		binary.NativeEndian.PutUint64(s.context.TraceID[:8], rand.Uint64()|1) //nolint:gosec // as above
		binary.NativeEndian.PutUint64(s.context.TraceID[8:], rand.Uint64())   //nolint:gosec // as above
		result := t.sampler.ShouldSample(sdktrace.SamplingParameters{ParentContext: context.Background(), TraceID: s.context.TraceID, Name: name})
		s.context.TraceFlags = trace.TraceFlags(0).WithSampled(result.Decision == sdktrace.RecordAndSample)
	}
	return trace.ContextWithSpan(ctx, s), s
}

// idSpan is one of these spans.
type idSpan struct {
	noop.Span
	context trace.SpanContextConfig
}

// SpanContext implements trace.Span.
func (s *idSpan) SpanContext() trace.SpanContext { return trace.NewSpanContext(s.context) }
