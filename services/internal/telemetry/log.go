package telemetry

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/term"
)

var levels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

var logLines = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "penstock_log_lines_total",
	Help: "Lines logged, by level. Errors mean that a person should look.",
}, []string{"level"})

// newHandler makes the handler of a process. JSON lines carry the whole identity;
// text is for people, who know which program they are looking at.
func newHandler(out io.Writer, format string, level slog.Leveler, id Identity) slog.Handler {
	if format == "auto" {
		format = "json"
		if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			format = "text"
		}
	}
	if format == "text" {
		h := slog.Handler(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level, ReplaceAttr: clockOnly}))
		if id.Stage != "" {
			h = h.WithAttrs([]slog.Attr{slog.String("stage", id.Stage)})
		}
		return &handler{root: h, next: h}
	}
	attrs := []slog.Attr{slog.String("service", id.service()), slog.String("instance", id.Instance), slog.String("version", id.Version)}
	if id.Stage != "" {
		attrs = append(attrs, slog.String("stage", id.Stage))
	}
	h := slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level}).WithAttrs(attrs)
	return &handler{root: h, next: h}
}

// clockOnly leaves the date out of a line for people.
func clockOnly(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
		return slog.String(slog.TimeKey, a.Value.Time().Format("15:04:05.000"))
	}
	return a
}

// handler adds trace_id and span_id of the context to each line, always at the
// top level, where log stores look for them.
type handler struct {
	root  slog.Handler // before any group was opened
	next  slog.Handler
	opens bool // a group is open: next puts attributes into it
	redo  []func(slog.Handler) slog.Handler
}

// Enabled implements [slog.Handler].
func (h *handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// Handle implements [slog.Handler].
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	logLines.WithLabelValues(word(r.Level)).Inc()
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return h.next.Handle(ctx, r)
	}
	ids := []slog.Attr{slog.String("trace_id", sc.TraceID().String()), slog.String("span_id", sc.SpanID().String())}
	if !h.opens {
		r = r.Clone()
		r.AddAttrs(ids...)
		return h.next.Handle(ctx, r)
	}
	next := h.root.WithAttrs(ids)
	for _, f := range h.redo {
		next = f(next)
	}
	return next.Handle(ctx, r)
}

// WithAttrs implements [slog.Handler].
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if !h.opens {
		next := h.next.WithAttrs(attrs)
		return &handler{root: next, next: next}
	}
	return h.then(func(n slog.Handler) slog.Handler { return n.WithAttrs(attrs) })
}

// WithGroup implements [slog.Handler].
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return h.then(func(n slog.Handler) slog.Handler { return n.WithGroup(name) })
}

func (h *handler) then(f func(slog.Handler) slog.Handler) *handler {
	return &handler{root: h.root, next: f(h.next), opens: true, redo: append(h.redo[:len(h.redo):len(h.redo)], f)}
}

// word is one of four metric labels for any level.
func word(l slog.Level) string {
	switch {
	case l < slog.LevelInfo:
		return "debug"
	case l < slog.LevelWarn:
		return "info"
	case l < slog.LevelError:
		return "warn"
	}
	return "error"
}

var exportErrors = promauto.NewCounter(prometheus.CounterOpts{
	Name: "penstock_telemetry_errors_total",
	Help: "Complaints of the OpenTelemetry SDK, most of them spans or metrics that could not be sent.",
})

// complaints logs what the OpenTelemetry SDK has to complain about. A collector
// that is down fails every few seconds, so that only one line goes out in each
// interval, with the number of those kept back.
type complaints struct {
	log   *slog.Logger
	every time.Duration

	mu   sync.Mutex
	last time.Time
	kept int
}

// Handle implements otel.ErrorHandler.
func (c *complaints) Handle(err error) {
	exportErrors.Inc()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if !c.last.IsZero() && now.Sub(c.last) < c.every {
		c.kept++
		return
	}
	c.log.Warn("telemetry was not sent", "err", cut(err.Error(), 500), "not_logged", c.kept)
	c.last, c.kept = now, 0
}

func cut(s string, most int) string {
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// settingsLog takes what the OpenTelemetry SDK says about its own settings. Only
// the words go on: its values and errors quote OTEL_EXPORTER_OTLP_HEADERS, which
// holds credentials.
func settingsLog(log *slog.Logger) logr.Logger { return logr.New(wordsOnly{log}) }

type wordsOnly struct{ log *slog.Logger }

func (wordsOnly) Init(logr.RuntimeInfo) {}

// Enabled lets warnings through, which the SDK logs at 1.
func (wordsOnly) Enabled(level int) bool { return level <= 1 }

func (w wordsOnly) Info(_ int, msg string, _ ...any) {
	w.log.Warn("OpenTelemetry SDK warns", "what", msg)
}

func (w wordsOnly) Error(_ error, msg string, _ ...any) {
	w.log.Error("OpenTelemetry SDK refuses a setting; its value is not shown", "what", msg)
}

func (w wordsOnly) WithValues(...any) logr.LogSink { return w }
func (w wordsOnly) WithName(string) logr.LogSink   { return w }
