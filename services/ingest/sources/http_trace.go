package sources

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// httpRemoteSpan is the span of the sender, where it tells one. It is linked, not
// continued: who may send need not decide what is sampled here.
func httpRemoteSpan(r *http.Request) trace.SpanContext {
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.HeaderCarrier(r.Header))
	return trace.SpanContextFromContext(ctx)
}
