package telemetry

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	metricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	spanpb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages/fault"
)

// collector receives OTLP over HTTP and gRPC and keeps it.
type collector struct {
	tracepb.UnimplementedTraceServiceServer
	metricspb.UnimplementedMetricsServiceServer

	mu        sync.Mutex
	resources []*resourcepb.Resource
	spans     map[string]*spanpb.Span
	metrics   map[string]bool
	auth      map[string]bool // authorization headers that were sent
}

func (c *collector) keepSpans(auth string, req *tracepb.ExportTraceServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spans == nil {
		c.spans, c.auth = map[string]*spanpb.Span{}, map[string]bool{}
	}
	c.auth[auth] = true
	for _, rs := range req.GetResourceSpans() {
		c.resources = append(c.resources, rs.GetResource())
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.spans[s.GetName()] = s
			}
		}
	}
}

func (c *collector) keepMetrics(req *metricspb.ExportMetricsServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.metrics == nil {
		c.metrics = map[string]bool{}
	}
	for _, rm := range req.GetResourceMetrics() {
		for _, sm := range rm.GetScopeMetrics() {
			for _, m := range sm.GetMetrics() {
				c.metrics[m.GetName()] = true
			}
		}
	}
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = z
	}
	b, err := io.ReadAll(body)
	if err == nil && r.URL.Path == "/v1/traces" {
		var req tracepb.ExportTraceServiceRequest
		if err = proto.Unmarshal(b, &req); err == nil {
			c.keepSpans(r.Header.Get("Authorization"), &req)
		}
	} else if err == nil && r.URL.Path == "/v1/metrics" {
		var req metricspb.ExportMetricsServiceRequest
		if err = proto.Unmarshal(b, &req); err == nil {
			c.keepMetrics(&req)
		}
	} else if err == nil {
		err = errors.New("unexpected path " + r.URL.Path)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// The gRPC side. The two services have a method of the same name.
type grpcTraces struct {
	tracepb.UnimplementedTraceServiceServer
	*collector
}

func (g grpcTraces) Export(ctx context.Context, req *tracepb.ExportTraceServiceRequest) (*tracepb.ExportTraceServiceResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	g.keepSpans(strings.Join(md.Get("authorization"), ","), req)
	return &tracepb.ExportTraceServiceResponse{}, nil
}

type grpcMetrics struct {
	metricspb.UnimplementedMetricsServiceServer
	*collector
}

func (g grpcMetrics) Export(_ context.Context, req *metricspb.ExportMetricsServiceRequest) (*metricspb.ExportMetricsServiceResponse, error) {
	g.keepMetrics(req)
	return &metricspb.ExportMetricsServiceResponse{}, nil
}

// start serves c and returns the URL.
func (c *collector) start(t testing.TB, protocol string) string {
	t.Helper()
	if protocol != protocolGRPC {
		s := httptest.NewServer(c)
		t.Cleanup(s.Close)
		return s.URL
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	tracepb.RegisterTraceServiceServer(s, grpcTraces{collector: c})
	metricspb.RegisterMetricsServiceServer(s, grpcMetrics{collector: c})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Errorf("gRPC receiver: %v", err)
		}
	})
	return "http://" + l.Addr().String()
}

func attributes(kvs []*commonpb.KeyValue) map[string]string {
	m := map[string]string{}
	for _, kv := range kvs {
		m[kv.GetKey()] = kv.GetValue().GetStringValue()
	}
	return m
}

// covers: DEV-86, DEV-127, DEV-131, DEV-145
func TestSpansAndMetricsArrive(t *testing.T) {
	const secret = "Bearer s3cret"
	for _, protocol := range []string{protocolGRPC, protocolHTTP, ""} {
		t.Run("protocol "+protocol, func(t *testing.T) {
			var c collector
			otelEnv(t, "OTEL_EXPORTER_OTLP_ENDPOINT", c.start(t, protocol), "OTEL_EXPORTER_OTLP_PROTOCOL", protocol,
				"OTEL_EXPORTER_OTLP_HEADERS", "authorization="+strings.ReplaceAll(secret, " ", "%20"))
			tel, out := setup(t, func(c *Config) { c.LogLevel = "debug" })
			ctx, parent := otel.Tracer("test").Start(t.Context(), "parent")
			_, child := otel.Tracer("test").Start(ctx, "child")
			child.End()
			parent.End()
			if err := tel.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}

			p, ch := c.spans["parent"], c.spans["child"]
			if p == nil || ch == nil {
				t.Fatalf("received spans %v, want parent and child", c.spans)
			}
			if string(ch.GetTraceId()) != string(p.GetTraceId()) || string(ch.GetParentSpanId()) != string(p.GetSpanId()) {
				t.Error("child is not below parent")
			}
			got := attributes(c.resources[0].GetAttributes())
			for k, v := range map[string]string{
				"service.name": "penstock-parse", "service.namespace": "penstock", "service.version": "v9",
				"service.instance.id": "one", "penstock.stage": "parse",
			} {
				if got[k] != v {
					t.Errorf("resource: %s = %q, want %q", k, got[k], v)
				}
			}
			for k := range got {
				if strings.HasPrefix(k, "process.command") {
					t.Errorf("resource has %s, which may show a password", k)
				}
			}
			if !c.metrics["penstock_build_info"] || !c.metrics["go_goroutines"] {
				t.Errorf("received metrics %v, want those of the default registry", c.metrics)
			}
			if !c.auth[secret] {
				t.Errorf("headers = %v, want the one that was set", c.auth)
			}
			if strings.Contains(out.String(), "s3cret") {
				t.Errorf("the log shows the header: %s", out.String())
			}
		})
	}
}

func TestVariablesOverruleTheIdentity(t *testing.T) {
	var c collector
	otelEnv(t, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", c.start(t, "")+"/v1/traces",
		"OTEL_SERVICE_NAME", "mine", "OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,service.instance.id=two")
	tel, _ := setup(t, nil)
	_, span := otel.Tracer("test").Start(t.Context(), "x")
	span.End()
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := attributes(c.resources[0].GetAttributes())
	if got["service.name"] != "mine" || got["deployment.environment.name"] != "prod" || got["service.instance.id"] != "two" {
		t.Errorf("resource = %v", got)
	}
	if len(c.metrics) != 0 {
		t.Error("metrics were sent, although only traces have an endpoint")
	}
}

func TestSampling(t *testing.T) {
	sampled := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, Remote: true})
	tests := []struct {
		name   string
		ratio  float64
		env    []string
		parent trace.SpanContext
		want   int
	}{
		{"every one", 1, nil, trace.SpanContext{}, 1},
		{"none", 0, nil, trace.SpanContext{}, 0},
		{"the stage before decides", 0, nil, sampled, 1},
		{"the stage before decides against", 1, nil, sampled.WithTraceFlags(0), 0},
		{"variable says never", 1, []string{"OTEL_TRACES_SAMPLER", "always_off"}, trace.SpanContext{}, 0},
		{"variable says always", 0, []string{"OTEL_TRACES_SAMPLER", "always_on"}, trace.SpanContext{}, 1},
		{"variable says by ratio", 1, []string{"OTEL_TRACES_SAMPLER", "traceidratio", "OTEL_TRACES_SAMPLER_ARG", "0"}, trace.SpanContext{}, 0},
		{"exporter is none", 1, []string{"OTEL_TRACES_EXPORTER", "none"}, trace.SpanContext{}, 0},
		{"SDK is disabled", 1, []string{"OTEL_SDK_DISABLED", "true"}, trace.SpanContext{}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c collector
			otelEnv(t, append([]string{"OTEL_EXPORTER_OTLP_ENDPOINT", c.start(t, ""), "OTEL_METRICS_EXPORTER", "none"}, tt.env...)...)
			before := otel.GetTracerProvider()
			tel, _ := setup(t, func(c *Config) { c.SampleRatio = tt.ratio })
			if after := otel.GetTracerProvider(); tt.name == "SDK is disabled" && after != before {
				t.Error("a provider was set, although the SDK is disabled")
			}
			ctx := t.Context()
			if tt.parent.IsValid() {
				ctx = trace.ContextWithSpanContext(ctx, tt.parent)
			}
			_, span := otel.Tracer("test").Start(ctx, "x")
			span.End()
			if err := tel.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(c.spans) != tt.want {
				t.Errorf("%d spans received, want %d", len(c.spans), tt.want)
			}
		})
	}
}

func TestWithoutEndpointSpansHaveIDs(t *testing.T) {
	otelEnv(t)
	tel, out := setup(t, nil)
	ctx, span := otel.Tracer("test").Start(t.Context(), "x")
	defer span.End()
	tel.Log.InfoContext(ctx, "in a batch")
	if got := out.lines(t)[0]["trace_id"]; got != span.SpanContext().TraceID().String() || !span.SpanContext().IsSampled() {
		t.Errorf("trace_id = %v of span %+v", got, span.SpanContext())
	}
	inner, child := otel.Tracer("test").Start(ctx, "y")
	if c, p := child.SpanContext(), span.SpanContext(); c.TraceID() != p.TraceID() || c.SpanID() == p.SpanID() || !c.IsValid() || !c.IsSampled() || c.IsRemote() {
		t.Errorf("below %+v is %+v", p, c)
	}
	if trace.SpanFromContext(inner) != child || child.IsRecording() {
		t.Error("the context has another span, or one that records for nobody")
	}
	if _, root := otel.Tracer("test").Start(ctx, "z", trace.WithNewRoot()); root.SpanContext().TraceID() == span.SpanContext().TraceID() {
		t.Error("a new root is in the trace of before")
	}
	// What the stage before has decided is passed on.
	before := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, Remote: true})
	if _, s := otel.Tracer("test").Start(trace.ContextWithRemoteSpanContext(t.Context(), before), "z"); s.SpanContext().IsSampled() || s.SpanContext().TraceID() != before.TraceID() {
		t.Errorf("after %+v comes %+v", before, s.SpanContext())
	}
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestWithoutEndpointSamplingCounts(t *testing.T) {
	otelEnv(t)
	setup(t, func(c *Config) { c.SampleRatio = 0 })
	if _, s := otel.Tracer("test").Start(t.Context(), "x"); s.SpanContext().IsSampled() || !s.SpanContext().IsValid() {
		t.Errorf("sampled: %+v", s.SpanContext())
	}
}

func BenchmarkSpanThatIsSentNowhere(b *testing.B) {
	tracer := (&idTracers{sampler: sdktrace.ParentBased(sdktrace.TraceIDRatioBased(1))}).Tracer("test")
	b.ReportAllocs()
	for b.Loop() {
		_, s := tracer.Start(b.Context(), "x", trace.WithSpanKind(trace.SpanKindConsumer))
		s.End()
	}
}

func TestBadVariables(t *testing.T) {
	tests := []struct {
		name string
		env  []string
		says string
	}{
		{"protocol", []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:1", "OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"}, `OTEL_EXPORTER_OTLP_PROTOCOL "http/json"`},
		{"protocol of one signal", []string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://h:1", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "x"}, `OTEL_EXPORTER_OTLP_METRICS_PROTOCOL "x"`},
		{"endpoint without scheme", []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT: want a URL"},
		{"endpoint without host", []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http:///v1/traces"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: want a URL"},
		{"endpoint with a password", []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://me:s3cret@h:1"}, "want a URL"},
		{"exporter", []string{"OTEL_TRACES_EXPORTER", "zipkin"}, `OTEL_TRACES_EXPORTER "zipkin"`},
		{"sampler", []string{"OTEL_TRACES_SAMPLER", "sometimes"}, `OTEL_TRACES_SAMPLER "sometimes"`},
		{"sampler ratio", []string{"OTEL_TRACES_SAMPLER", "traceidratio", "OTEL_TRACES_SAMPLER_ARG", "NaN"}, `OTEL_TRACES_SAMPLER_ARG "NaN"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			otelEnv(t, tt.env...)
			c := Defaults()
			c.Output = new(page)
			_, err := Setup(t.Context(), c)
			if !errors.Is(err, errVariable) || fault.ClassOf(err) != fault.Stop {
				t.Fatalf("Setup: %v, want %v", err, errVariable)
			}
			if !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("Setup: %v, want %q in it", err, tt.says)
			}
		})
	}
}

// The SDK quotes headers that it cannot read.
func TestBadHeadersAreNotShown(t *testing.T) {
	var c collector
	for _, headers := range []string{"authorization Bearer s3cret", "authorization=%zzs3cret", "auth s3cret=x"} {
		t.Run(headers, func(t *testing.T) {
			otelEnv(t, "OTEL_EXPORTER_OTLP_ENDPOINT", c.start(t, ""), "OTEL_EXPORTER_OTLP_HEADERS", headers)
			_, out := setup(t, nil)
			if got := out.String(); !strings.Contains(got, "refuses a setting") || strings.Contains(got, "s3cret") {
				t.Errorf("log = %s, want a complaint that does not show the value", got)
			}
		})
	}
}

func TestShutdownReportsWhatWasNotSent(t *testing.T) {
	asked := make(chan struct{}, 8)
	hang := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-hang
	}))
	defer s.Close()
	defer close(hang)
	refuse := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) }))
	defer refuse.Close()
	for name, url := range map[string]string{"hangs": s.URL, "refuses": refuse.URL} {
		t.Run(name, func(t *testing.T) {
			otelEnv(t, "OTEL_EXPORTER_OTLP_ENDPOINT", url, "OTEL_METRICS_EXPORTER", "none")
			tel, _ := setup(t, func(c *Config) { c.FlushTimeout = 100 * time.Millisecond })
			_, span := otel.Tracer("test").Start(t.Context(), "x")
			span.End()
			start := time.Now()
			err := tel.Shutdown(t.Context())
			if !errors.Is(err, errFlush) {
				t.Errorf("Shutdown: %v, want %v", err, errFlush)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("Shutdown took %s, 100 ms are allowed", took)
			}
			if again := tel.Shutdown(t.Context()); !errors.Is(again, errFlush) {
				t.Errorf("second Shutdown: %v", again)
			}
		})
	}
	select {
	case <-asked:
	default:
		t.Error("nothing was sent to the collector that hangs")
	}
}
