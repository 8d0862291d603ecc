package status

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/operate/freshness"
	"github.com/penstock/penstock/topology"
)

func newBus(t *testing.T) *topology.Bus {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: 256 << 20, SyncInterval: time.Minute, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	bus, err := topology.Connect(t.Context(), server.Connect(topology.Options{Log: quiet}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bus.Close)
	if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 256 << 20, Lanes: 2}); err != nil {
		t.Fatal(err)
	}
	return bus
}

func problems(s Snapshot, severity string) (all []string) {
	for _, p := range s.Problems {
		if p.Severity == severity {
			all = append(all, p.Area+" "+p.Name)
		}
		if p.What == "" || p.Fix == "" {
			all = append(all, "one that does not say what to do")
		}
	}
	return all
}

// covers: design section 8
func TestNow(t *testing.T) {
	bus := newBus(t)
	s, err := Now(t.Context(), bus, Configured{})
	if err != nil || s.Healthy || !slices.Equal(problems(s, Error), []string{"stage "}) || len(s.Stages) != 6 {
		t.Fatalf("without a process: %+v, %v", s, err)
	}

	// One process that parses, one that delivers; somebody watches the sources.
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = Answer(ctx, bus, "p-1", []topology.Stage{topology.Parse, topology.Route}) })
	wg.Go(func() { _ = Answer(ctx, bus, "p-2", []topology.Stage{topology.Parse}) })
	watch := freshness.New(bus, freshness.Config{Silence: map[string]string{"quiet": "1s"}})
	wg.Go(func() { _ = watch.Run(ctx) })
	out := bus.NewOutbox(topology.Parse)
	if err := out.Quarantine(ctx, &messages.Quarantine{Stage: "parse", Source: "s", Code: "parse.bad_json", Payload: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if _, err := bus.Begin(ctx, topology.DeliverConsumer("old", nil, topology.Start{})); err != nil {
		t.Fatal(err)
	}
	var last Snapshot
	for until := time.Now().Add(20 * time.Second); ; {
		if last, err = Now(ctx, bus, Configured{Destinations: map[string]string{"siem": "http"}}); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(problems(last, Error), "source quiet") {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("no alarm for a silent source: %+v", last.Problems)
		}
	}
	wantErrors := []string{"destination siem", "stage ingest", "stage fetch", "stage dedupe", "stage deliver", "source quiet"}
	if got := problems(last, Error); !slices.Equal(got, wantErrors) || last.Healthy {
		t.Errorf("errors %v, want %v", got, wantErrors)
	}
	if got := problems(last, Warning); !slices.Equal(got, []string{"quarantine ", "destination old"}) {
		t.Errorf("warnings %v", got)
	}
	if p := last.Processes; len(p) != 2 || p[0].Name != "p-1" || p[0].Version != topology.ProgramVersion || len(p[0].Stages) != 2 || p[0].Memory == 0 {
		t.Errorf("processes %+v", p)
	}
	if st := last.Stages[2]; st.Name != "parse" || st.Processes != 2 || st.Quarantined == 0 {
		t.Errorf("parse is %+v", st)
	}
	if len(last.Streams) != len(topology.Flow) || last.Streams[0].Limit == 0 {
		t.Errorf("streams %+v", last.Streams)
	}
}

// Metrics of the registry become sums by stage; those of other stages stay out.
func TestCounters(t *testing.T) {
	registry := prometheus.NewRegistry()
	add := func(name string, v float64, labels ...string) {
		var names, values []string
		for i := 0; i < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: "h"}, names)
		if there, ok := errors.AsType[prometheus.AlreadyRegisteredError](registry.Register(c)); ok {
			c = there.ExistingCollector.(*prometheus.CounterVec)
		}
		c.WithLabelValues(values...).Add(v)
	}
	add("penstock_dedupe_events_total", 90, "verdict", "unique")
	add("penstock_dedupe_events_total", 10, "verdict", "duplicate")
	add("penstock_parse_records_total", 5, "source", "a", "format", "json")
	add("penstock_parse_records_total", 6, "source", "b", "format", "json")
	add("penstock_deliver_events_confirmed_total", 40, "destination", "siem")
	add("penstock_deliver_events_confirmed_total", 2, "destination", "archive")
	add("penstock_deliver_events_quarantined_total", 3, "destination", "siem", "code", "x")
	add("penstock_quarantined_records_total", 7, "stage", "parse", "source", "a", "code", "x")
	add("penstock_ingest_source_up", 0, "source", "a")
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	c := read(families, Process{Stages: []string{"parse", "dedupe", "deliver"}})
	if n := c.Stages["dedupe"]; n.In != 100 || n.Out != 90 || n.Duplicates != 10 {
		t.Errorf("dedupe %+v", n)
	}
	if n := c.Stages["parse"]; n.In != 11 || n.Quarantined != 7 {
		t.Errorf("parse %+v", n)
	}
	if n := c.Stages["deliver"]; n.In != 45 || n.Out != 42 || n.Quarantined != 0 {
		t.Errorf("deliver %+v", n)
	}
	if c.Targets["siem"] != (target{40, 3}) || c.Targets["archive"] != (target{2, 0}) || !c.Down["a"] {
		t.Errorf("%+v", c)
	}
	if _, ok := c.Stages["fetch"]; ok {
		t.Error("a stage that does not run here has counters")
	}
}

func TestRates(t *testing.T) {
	at := time.Unix(1000, 0)
	before := Snapshot{At: at, Stages: []Stage{{Name: "parse", In: 100, Out: 50}, {Name: "route", In: 100}}, Destinations: []Destination{{Name: "a", Delivered: 10}}}
	now := Snapshot{At: at.Add(2 * time.Second), Stages: []Stage{{Name: "parse", In: 300, Out: 60, Bytes: 8}, {Name: "route", In: 20}}, Destinations: []Destination{{Name: "a", Delivered: 30}, {Name: "b", Delivered: 5}}}
	now.Rates(&before)
	if p := now.Stages[0]; p.InRate != 100 || p.OutRate != 5 || p.BytesRate != 4 {
		t.Errorf("parse %+v", p)
	}
	if r := now.Stages[1]; r.InRate != 0 { // its process began anew
		t.Errorf("route %+v", r)
	}
	if now.Destinations[0].Rate != 10 || now.Destinations[1].Rate != 0 {
		t.Errorf("destinations %+v", now.Destinations)
	}
	now.Rates(&now)
}

// A stream that is full of what is needed is a problem, one that is full of history is not.
func TestStreams(t *testing.T) {
	consumer := func(pending uint64) []topology.ConsumerState {
		return []topology.ConsumerState{{Consumer: "deliver-a", Pending: pending}}
	}
	for _, tt := range []struct {
		name  string
		state topology.StreamState
		want  string
	}{
		{"history", topology.StreamState{Stream: "EVENTS", Bytes: 99, MaxBytes: 100, Messages: 10, Consumers: consumer(0)}, ""},
		{"needed", topology.StreamState{Stream: "EVENTS", Bytes: 99, MaxBytes: 100, Messages: 10, Consumers: consumer(9)}, "error"},
		{"needed, room left", topology.StreamState{Stream: "EVENTS", Bytes: 85, MaxBytes: 100, Messages: 10, Consumers: consumer(9)}, "warning"},
		{"half", topology.StreamState{Stream: "EVENTS", Bytes: 50, MaxBytes: 100, Messages: 10, Consumers: consumer(9)}, ""},
		{"no limit", topology.StreamState{Stream: "EVENTS", Bytes: 50, MaxBytes: -1, Messages: 10, Consumers: consumer(9)}, ""},
	} {
		var s Snapshot
		s.addStreams([]topology.StreamState{tt.state})
		var got []string
		for _, p := range s.Problems {
			got = append(got, p.Severity)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %v, want %s", tt.name, got, tt.want)
		}
	}
}

// A console is listed among the processes, and makes no stage run.
func TestAConsoleIsNoStage(t *testing.T) {
	bus := newBus(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = Answer(ctx, bus, "c-1-console", nil) })
	for until := time.Now().Add(20 * time.Second); ; {
		s, err := Now(ctx, bus, Configured{})
		if err != nil || time.Now().After(until) {
			t.Fatalf("%+v, %v", s.Processes, err)
		}
		if len(s.Processes) == 0 {
			continue // it does not listen yet
		}
		if s.Healthy || !slices.Equal(problems(s, Error), []string{"stage "}) {
			t.Errorf("a console alone: %+v", s.Problems)
		}
		return
	}
}
