package topology

import (
	"context"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// The trace context travels as W3C headers, whatever propagator a program sets
// up for its HTTP calls.
var w3c = propagation.TraceContext{}

var tracer = otel.Tracer("github.com/penstock/penstock/topology")

func injectTrace(ctx context.Context, h nats.Header) {
	w3c.Inject(ctx, headerCarrier(h))
}

func extractTrace(ctx context.Context, h nats.Header) context.Context {
	return w3c.Extract(ctx, headerCarrier(h))
}

// headerCarrier keeps the keys' case: nats.Header does not fold it, and
// watermill-nats passes headers on as they are.
type headerCarrier nats.Header

func (c headerCarrier) Get(key string) string { return nats.Header(c).Get(key) }
func (c headerCarrier) Set(key, value string) { c[key] = []string{value} }
func (c headerCarrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for k := range c {
		keys = append(keys, k)
	}
	return keys
}

// traceparent renders the span of ctx as a W3C header, "" when there is none.
func traceparent(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ""
	}
	h := propagation.MapCarrier{}
	w3c.Inject(ctx, h)
	return h["traceparent"]
}
