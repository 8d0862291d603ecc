// Package telemetry is how a running penstock is watched: logs, traces, metrics,
// health.
//
//	slog ──▶ stderr, one JSON object a line, or text on a terminal
//	spans, metrics ──▶ OTLP, as the OTEL_* variables say
//	/metrics /healthz /readyz ◀── anyone who may reach the address
//	/debug/pprof /loglevel    ◀── this machine only
//
// Stages know nothing of this package: they log with slog, make spans with
// otel.Tracer and count with promauto, and [Setup] decides what becomes of it.
// Source: features DEV-83 to DEV-88, DEV-122 to DEV-147.
package telemetry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/httpserver"
)

var errFlush = fault.Define("telemetry.not_flushed", fault.Retry,
	"the last spans or metrics are lost; check that the OTLP collector answers, or raise telemetry.flush_timeout")

// Config says what is logged and traced, and where health is served. The OTLP
// side is set by the standard OTEL_* variables: OTEL_EXPORTER_OTLP_ENDPOINT
// switches it on.
type Config struct {
	// LogLevel is the least level that is logged: debug, info, warn or error. PUT
	// /loglevel on the private address changes it without a restart.
	LogLevel string `yaml:"log_level"`
	// LogFormat is json, text, or auto: text on a terminal, json elsewhere.
	LogFormat string `yaml:"log_format"`
	// SampleRatio is the share of traces that are recorded, 0 to 1. One trace is
	// one batch on its way through all stages. OTEL_TRACES_SAMPLER overrules it.
	SampleRatio float64 `yaml:"sample_ratio"`
	// Address serves /healthz, /readyz and /metrics, as host:port; ":8080" is
	// every interface. Empty: not served.
	Address string `yaml:"address"`
	// TLS of Address. With client certificates required, only those who have one get
	// metrics, and probes of health need one as well.
	TLS httpserver.TLS `yaml:"tls"`
	// PrivateAddress serves /debug/pprof and /loglevel. Its host must be a
	// loopback one. Empty: not served.
	PrivateAddress string `yaml:"private_address"`
	// CheckTimeout bounds each check behind /readyz. Unit: duration.
	CheckTimeout time.Duration `yaml:"check_timeout"`
	// FlushTimeout bounds the sending of the last spans and metrics at the end.
	// Unit: duration.
	FlushTimeout time.Duration `yaml:"flush_timeout"`

	// Identity is filled in by the program.
	Identity Identity `yaml:"-"`
	// Output takes the log. Nil: standard error.
	Output io.Writer `yaml:"-"`
}

// Identity tells one process from the others, on log lines, spans and metrics.
type Identity struct {
	// Stage that runs here. Empty: all of them.
	Stage string
	// Instance tells replicas apart. Empty: the host name.
	Instance string
	// Version of the program. Empty: that of [BuildInfo].
	Version string
}

// service is the name that traces are listed under. OTEL_SERVICE_NAME overrules it.
func (id Identity) service() string {
	if id.Stage == "" {
		return "penstock"
	}
	return "penstock-" + id.Stage
}

func (id Identity) filled() Identity {
	if id.Instance == "" {
		id.Instance, _ = os.Hostname() // without a name, replicas are told apart by address
	}
	if id.Version == "" {
		id.Version = BuildInfo().Version
	}
	return id
}

// Defaults returns the configuration of an empty telemetry section.
func Defaults() Config {
	return Config{
		LogLevel:       "info",
		LogFormat:      "auto",
		SampleRatio:    1,
		Address:        "127.0.0.1:8080",
		PrivateAddress: "127.0.0.1:8081",
		CheckTimeout:   2 * time.Second,
		FlushTimeout:   5 * time.Second,
	}
}

// Validate reports every problem, each with the key to change.
func (c Config) Validate() error {
	var p config.Problems
	c.TLS.Problems(&p)
	_, known := levels[strings.ToLower(c.LogLevel)]
	p.Need(known, "log_level", "use debug, info, warn or error")
	p.Need(c.LogFormat == "auto" || c.LogFormat == "json" || c.LogFormat == "text", "log_format", "use auto, json or text")
	p.Need(c.SampleRatio >= 0 && c.SampleRatio <= 1, "sample_ratio", "use a number from 0 (no trace) to 1 (every trace)")
	p.Need(c.Address == "" || hostPort(c.Address), "address", "use host:port, e.g. :8080, or nothing to serve nothing")
	p.Need(c.PrivateAddress == "" || hostPort(c.PrivateAddress), "private_address", "use host:port, e.g. 127.0.0.1:8081, or nothing to serve nothing")
	p.Need(c.CheckTimeout > 0, "check_timeout", "use a positive duration, e.g. 2s")
	p.Need(c.FlushTimeout > 0, "flush_timeout", "use a positive duration, e.g. 5s")
	return p.Err()
}

// Telemetry is what [Setup] has put in place.
type Telemetry struct {
	// Log is also slog.Default.
	Log *slog.Logger
	// Level may be set at any time.
	Level *slog.LevelVar

	timeout  time.Duration
	once     sync.Once
	closers  []func(context.Context) error
	shutdown error
}

// Setup makes slog.Default, the OpenTelemetry providers and the propagator of
// this process. c must be valid. It is called once, before anything is started:
// what it sets is global. No connection is made yet; a collector that is down
// costs a warning now and then, never a batch. With no endpoint set, spans still
// have ids, so that the log lines of a batch can be found by its trace id.
func Setup(ctx context.Context, c Config) (*Telemetry, error) {
	c.Identity = c.Identity.filled()
	t := &Telemetry{Level: new(slog.LevelVar), timeout: c.FlushTimeout}
	t.Level.Set(levels[strings.ToLower(c.LogLevel)])
	out := c.Output
	if out == nil {
		out = os.Stderr
	}
	t.Log = slog.New(newHandler(out, c.LogFormat, t.Level, c.Identity))
	slog.SetDefault(t.Log)

	otel.SetTextMapPropagator(propagation.TraceContext{})
	otel.SetErrorHandler(&complaints{log: t.Log, every: 30 * time.Second})
	otel.SetLogger(settingsLog(t.Log))
	o, err := otlpFromEnv()
	if err != nil {
		return nil, err
	}
	if o.disabled {
		return t, nil
	}
	if err := t.export(ctx, o, c); err != nil {
		return nil, err
	}
	return t, nil
}

// export starts the providers. What was started before an error is stopped again.
func (t *Telemetry) export(ctx context.Context, o otlp, c Config) error {
	res := identify(ctx, c.Identity, t.Log)
	sampler := sdktrace.ParentBased(sdktrace.TraceIDRatioBased(c.SampleRatio))
	switch {
	case o.traces != "":
		if err := t.exportTraces(ctx, o, res, sampler); err != nil {
			return err
		}
	case o.sampler: // the SDK reads the variable
		otel.SetTracerProvider(sdktrace.NewTracerProvider())
	default:
		otel.SetTracerProvider(&idTracers{sampler: sampler})
	}
	if o.metrics != "" {
		metrics, err := meterProvider(ctx, o.metrics, res)
		if err != nil {
			return errors.Join(errExporter.New(err, "prepare to send metrics"), t.Shutdown(ctx))
		}
		otel.SetMeterProvider(metrics)
		t.closers = append(t.closers, metrics.Shutdown)
	}
	return nil
}

// exportTraces sends spans to where the variables say.
func (t *Telemetry) exportTraces(ctx context.Context, o otlp, res *resource.Resource, sampler sdktrace.Sampler) error {
	exporter, err := traceExporter(ctx, o.traces)
	if err != nil {
		return errExporter.New(err, "prepare to send traces")
	}
	// The queue is bounded (OTEL_BSP_MAX_QUEUE_SIZE, 2048 spans); what does not
	// fit is dropped, since a trace must never hold a batch up.
	opts := []sdktrace.TracerProviderOption{sdktrace.WithResource(res), sdktrace.WithBatcher(exporter)}
	if !o.sampler { // else the SDK reads the variable
		opts = append(opts, sdktrace.WithSampler(sampler))
	}
	traces := sdktrace.NewTracerProvider(opts...)
	otel.SetTracerProvider(traces)
	t.closers = append(t.closers, func(ctx context.Context) error {
		// Shutdown alone would not report that the last batch was refused, and does
		// nothing at all once its context has ended.
		err := traces.ForceFlush(ctx)
		if ctx.Err() != nil {
			late, cancel := context.WithTimeout(context.WithoutCancel(ctx), lateStop)
			defer cancel()
			ctx = late
		}
		return errors.Join(err, traces.Shutdown(ctx))
	})
	return nil
}

// lateStop is what the tracer gets to stop in when flushing has used up the time.
const lateStop = 100 * time.Millisecond

// Shutdown sends what is still held, within FlushTimeout and the deadline of ctx,
// and reports what could not be sent. Logging goes on working. A second call
// returns the same.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	t.once.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, t.timeout)
		defer cancel()
		errs := make([]error, len(t.closers))
		var wg sync.WaitGroup
		for i, closer := range t.closers { // at once: a dead collector must not use up the other's time
			wg.Go(func() { errs[i] = closer(ctx) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.shutdown = errFlush.New(err, "send the last traces and metrics")
		}
	})
	return t.shutdown
}
