package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/slogtest"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"
	"go.opentelemetry.io/otel/trace"
)

// traced is a context within a span whose ids are known.
func traced(t testing.TB) context.Context {
	t.Helper()
	return trace.ContextWithSpanContext(t.Context(), trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{0xab, 15: 1}, SpanID: trace.SpanID{0xcd, 7: 2},
	}))
}

const (
	tracedTrace = "ab000000000000000000000000000001"
	tracedSpan  = "cd00000000000002"
)

// covers: DEV-122, DEV-145
func TestJSONLinesCarryIdentityAndTrace(t *testing.T) {
	var out page
	log := slog.New(newHandler(&out, "auto", slog.LevelInfo, Identity{Stage: "fetch", Instance: "pod-1", Version: "v1"}))
	log = log.With("source", "trail")
	log.InfoContext(traced(t), "object is read", "records", 3)
	log.WithGroup("aws").With("region", "eu-west-1").InfoContext(traced(t), "grouped", "n", 1)
	log.Info("outside of a batch")
	log.Debug("not asked for")

	got := out.lines(t)
	if len(got) != 3 {
		t.Fatalf("%d lines, want 3: %s", len(got), out.String())
	}
	for i, line := range got {
		want := map[string]any{"service": "penstock-fetch", "stage": "fetch", "instance": "pod-1", "version": "v1", "source": "trail"}
		if i < 2 {
			want["trace_id"], want["span_id"] = tracedTrace, tracedSpan
		}
		for k, v := range want {
			if line[k] != v {
				t.Errorf("line %d: %s = %v, want %v", i, k, line[k], v)
			}
		}
	}
	if aws, _ := got[1]["aws"].(map[string]any); aws["region"] != "eu-west-1" || aws["n"] != 1.0 || len(aws) != 2 {
		t.Errorf("group = %v, want region and n alone", got[1]["aws"])
	}
	if _, ok := got[2]["trace_id"]; ok {
		t.Error("a line outside of a span has a trace id")
	}
}

func TestTextIsForPeople(t *testing.T) {
	var out page
	log := slog.New(newHandler(&out, "text", slog.LevelInfo, Identity{Stage: "fetch", Instance: "pod-1", Version: "v1"}))
	log.WarnContext(traced(t), "object will be retried", "key", "a b")
	clock, rest, _ := strings.Cut(out.String(), " ")
	if want := `level=WARN msg="object will be retried" stage=fetch key="a b" trace_id=` + tracedTrace + " span_id=" + tracedSpan + "\n"; rest != want {
		t.Errorf("line = %q, want %q", rest, want)
	}
	if _, err := time.Parse("time=15:04:05.000", clock); err != nil {
		t.Errorf("time: %v", err)
	}
}

func TestAutoIsJSONInAFile(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	slog.New(newHandler(f, "auto", slog.LevelInfo, Identity{})).Info("x")
	if b, err := os.ReadFile(f.Name()); err != nil || !strings.HasPrefix(string(b), "{") {
		t.Errorf("log = %q, %v; want JSON", b, err)
	}
}

// The rules of slog.Handler hold inside and outside of a span.
func TestHandlerKeepsTheRulesOfSlog(t *testing.T) {
	for _, ctx := range []context.Context{context.Background(), traced(t)} {
		var out *page
		slogtest.Run(t, func(*testing.T) slog.Handler {
			out = new(page)
			return within{newHandler(out, "json", slog.LevelInfo, Identity{}), ctx}
		}, func(t *testing.T) map[string]any {
			t.Helper()
			return out.lines(t)[0]
		})
	}
}

// within replaces the context of each line.
type within struct {
	slog.Handler
	ctx context.Context
}

func (w within) Handle(_ context.Context, r slog.Record) error { return w.Handler.Handle(w.ctx, r) }
func (w within) WithGroup(name string) slog.Handler {
	return within{w.Handler.WithGroup(name), w.ctx}
}

func (w within) WithAttrs(a []slog.Attr) slog.Handler { return within{w.Handler.WithAttrs(a), w.ctx} }

// covers: DEV-79, LIM-14, DEV-137
func TestLevelIsSwitchedWhileRunning(t *testing.T) {
	otelEnv(t)
	tel, out := setup(t, func(c *Config) { c.LogLevel = "Error" })
	early := slog.With("made", "before the switch")
	slog.Info("one")
	tel.Level.Set(slog.LevelDebug)
	early.Debug("two")
	tel.Level.Set(slog.LevelWarn)
	early.Info("three")
	if got := out.lines(t); len(got) != 1 || got[0]["msg"] != "two" {
		t.Errorf("logged %s, want the second line alone", out.String())
	}
}

func TestLinesAreCounted(t *testing.T) {
	log := slog.New(newHandler(new(page), "json", slog.LevelDebug, Identity{}))
	warned := func() float64 {
		var m dto.Metric
		if err := logLines.WithLabelValues("warn").Write(&m); err != nil {
			t.Fatal(err)
		}
		return m.GetCounter().GetValue()
	}
	before := warned()
	log.Warn("a")
	log.With("b", 1).Log(t.Context(), slog.LevelWarn+1, "c")
	log.Error("d")
	if got := warned() - before; got != 2 {
		t.Errorf("%v warnings counted, want 2", got)
	}
}

func TestComplaintsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out page
		c := &complaints{log: slog.New(newHandler(&out, "json", slog.LevelInfo, Identity{})), every: 30 * time.Second}
		for range 50 { // for 49 s
			c.Handle(errors.New("collector is down" + strings.Repeat("!", 1000)))
			time.Sleep(time.Second) // fake time
		}
		got := out.lines(t)
		if len(got) != 2 || got[0]["not_logged"] != 0.0 || got[1]["not_logged"] != 29.0 {
			t.Errorf("logged %v, want 2 lines, the second for 29 more", got)
		}
		if text, _ := got[0]["err"].(string); len(text) > 510 {
			t.Errorf("the error takes %d bytes", len(text))
		}
	})
}
