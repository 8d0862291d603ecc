package telemetry

import (
	"context"
	"log/slog"
	"net/url"
	"os"
	"strconv"
	"strings"

	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/penstock/penstock/messages/fault"
)

var (
	errVariable = fault.Define("telemetry.bad_otel_variable", fault.Stop,
		"correct the environment variable that is named, or unset it")
	errExporter = fault.Define("telemetry.no_exporter", fault.Stop,
		"check the OTEL_EXPORTER_OTLP_* variables, the certificate files among them")
)

// The two protocols of OTLP that are spoken. Source: OpenTelemetry Protocol
// Exporter specification, "Specify Protocol".
const (
	protocolGRPC = "grpc"
	protocolHTTP = "http/protobuf"
)

// otlp is what the OTEL_* variables ask for, as far as the SDK leaves it to its
// caller. All else (headers, TLS, compression, queue sizes) the SDK reads itself.
type otlp struct {
	disabled bool
	sampler  bool   // OTEL_TRACES_SAMPLER is set
	traces   string // protocol; empty for off
	metrics  string // protocol; empty for off
}

// otlpFromEnv refuses at start-up what the SDK would only complain about later,
// such as an endpoint without a scheme, which it takes for no endpoint.
func otlpFromEnv() (otlp, error) {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return otlp{disabled: true}, nil
	}
	var o otlp
	var err error
	if o.sampler, err = samplerSet(); err != nil {
		return otlp{}, err
	}
	if o.traces, err = protocolOf("TRACES"); err != nil {
		return otlp{}, err
	}
	o.metrics, err = protocolOf("METRICS")
	return o, err
}

func samplerSet() (bool, error) {
	switch name := os.Getenv("OTEL_TRACES_SAMPLER"); name {
	case "":
		return false, nil
	case "always_on", "always_off", "parentbased_always_on", "parentbased_always_off":
		return true, nil
	case "traceidratio", "parentbased_traceidratio":
		arg := os.Getenv("OTEL_TRACES_SAMPLER_ARG")
		if arg == "" {
			return true, nil
		}
		if ratio, err := strconv.ParseFloat(arg, 64); err != nil || !(ratio >= 0 && ratio <= 1) {
			return false, errVariable.New(nil, "read OTEL_TRACES_SAMPLER_ARG %q: want a number from 0 to 1", arg)
		}
		return true, nil
	default:
		return false, errVariable.New(nil, "read OTEL_TRACES_SAMPLER %q: want always_on, always_off, traceidratio, or one of these after parentbased_", name)
	}
}

// protocolOf returns how to send signal, "" for not at all. The signal's own
// variables come before the general ones.
func protocolOf(signal string) (string, error) {
	name, endpoint := either("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
	switch exporter := os.Getenv("OTEL_" + signal + "_EXPORTER"); {
	case exporter == "none":
		return "", nil
	case exporter != "" && exporter != "otlp":
		return "", errVariable.New(nil, "read OTEL_%s_EXPORTER %q: want otlp or none", signal, exporter)
	case exporter == "" && endpoint == "":
		return "", nil
	}
	if endpoint != "" {
		// The value is not shown: it may hold a password.
		u, err := url.Parse(endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return "", errVariable.New(nil, "read %s: want a URL such as http://127.0.0.1:4318", name)
		}
	}
	name, protocol := either("OTEL_EXPORTER_OTLP_"+signal+"_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
	switch protocol {
	case "":
		return protocolHTTP, nil
	case protocolGRPC, protocolHTTP:
		return protocol, nil
	}
	return "", errVariable.New(nil, "read %s %q: want %s or %s", name, protocol, protocolGRPC, protocolHTTP)
}

// either returns the first variable that is set, with its name.
func either(first, second string) (name, value string) {
	if v := os.Getenv(first); v != "" {
		return first, v
	}
	return second, os.Getenv(second)
}

func traceExporter(ctx context.Context, protocol string) (sdktrace.SpanExporter, error) {
	if protocol == protocolGRPC {
		return otlptracegrpc.New(ctx)
	}
	return otlptracehttp.New(ctx)
}

// meterProvider sends what /metrics shows, every OTEL_METRIC_EXPORT_INTERVAL (60 s)
// and once at the end.
func meterProvider(ctx context.Context, protocol string, res *resource.Resource) (*sdkmetric.MeterProvider, error) {
	var exporter sdkmetric.Exporter
	var err error
	if protocol == protocolGRPC {
		exporter, err = otlpmetricgrpc.New(ctx)
	} else {
		exporter, err = otlpmetrichttp.New(ctx)
	}
	if err != nil {
		return nil, err
	}
	reader := sdkmetric.NewPeriodicReader(exporter, sdkmetric.WithProducer(bridge.NewMetricProducer()))
	return sdkmetric.NewMeterProvider(sdkmetric.WithResource(res), sdkmetric.WithReader(reader)), nil
}

// identify makes the resource that spans and metrics are of. The command line is
// left out: it may hold a password. OTEL_SERVICE_NAME and
// OTEL_RESOURCE_ATTRIBUTES come last and overrule the rest.
func identify(ctx context.Context, id Identity, log *slog.Logger) *resource.Resource {
	attrs := []attribute.KeyValue{
		attribute.String("service.name", id.service()),
		attribute.String("service.namespace", "penstock"),
		attribute.String("service.instance.id", id.Instance),
		attribute.String("service.version", id.Version),
	}
	if id.Stage != "" {
		attrs = append(attrs, attribute.String("penstock.stage", id.Stage))
	}
	res, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(), resource.WithProcessPID(),
		resource.WithProcessRuntimeVersion(), resource.WithAttributes(attrs...), resource.WithFromEnv())
	if err != nil { // what could be found out is in res
		log.WarnContext(ctx, "part of the telemetry identity is unknown", "err", err)
	}
	return res
}
