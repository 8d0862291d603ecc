package freshness

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/penstock/penstock/messages"
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
	if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	return bus
}

// tell stores facts as a stage does.
func tell(t *testing.T, bus *topology.Bus, stage topology.Stage, facts ...*messages.Fact) {
	t.Helper()
	out := bus.NewOutbox(stage)
	for _, f := range facts {
		out.Fact(f)
	}
	if err := out.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func announced(source string, as messages.Announced_As, job string) *messages.Fact {
	return &messages.Fact{Kind: &messages.Fact_Announced{Announced: &messages.Announced{
		Origin: &messages.Origin{Source: source, Pull: messages.NewPull(source, fmt.Sprint(time.Now().UnixNano()))}, As: as, Job: job,
	}}}
}

// watch runs a Watch until the returned function is called.
func watch(t *testing.T, bus *topology.Bus, c Config) (*Watch, func()) {
	t.Helper()
	w := New(bus, c)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.Run(ctx) })
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return w, stop
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for until := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(until) {
			t.Fatalf("waited in vain until %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// gauge is what the metrics page says of a source's silence.
func gauge(t *testing.T, source string) float64 {
	t.Helper()
	var m dto.Metric
	if err := silentNow.WithLabelValues(source).Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetGauge().GetValue()
}

func state(w *Watch, source string) State {
	for _, s := range w.States() {
		if s.Source == source {
			return s
		}
	}
	return State{}
}

// covers: pain 11, pain 13, design section 8
func TestWatch(t *testing.T) {
	bus := newBus(t)
	w, stop := watch(t, bus, Config{Silence: map[string]string{"a": "2s", "b": Auto, "never": Off}, Process: "p"})
	tell(t, bus, topology.Ingest, announced("a", messages.Announced_AS_OBJECT, ""), announced("b", messages.Announced_AS_EVENTS, ""), announced("gone", messages.Announced_AS_OBJECT, ""))
	tell(t, bus, topology.Fetch, &messages.Fact{Kind: &messages.Fact_Fetched{Fetched: &messages.Fetched{Source: "a", Records: 7}}})
	// None of these shows that a source is alive: what parse says again, tests, a backfill.
	tell(t, bus, topology.Parse, announced("b", messages.Announced_AS_EVENTS, ""))
	tell(t, bus, topology.Ingest, announced("b", messages.Announced_AS_TEST, ""), announced("b", messages.Announced_AS_OBJECT, "job-1"))
	sample := strings.Repeat("x", 3<<10) + "\xff"
	for _, n := range []uint64{4, 6} {
		tell(t, bus, topology.Parse, &messages.Fact{Kind: &messages.Fact_Parsed{Parsed: &messages.Parsed{
			Drift: []*messages.Drift{{Kind: "column", Name: "mood", Format: "vpcflow", Source: "a", Records: n, Sample: []byte(sample)}},
		}}})
	}
	await(t, "all is read", func() bool {
		d := w.Drift()
		return len(d) == 1 && d[0].Records == 10 && state(w, "a").Records == 7
	})
	if d := w.Drift()[0]; d.Name != "mood" || d.Source != "a" || d.First.After(d.Last) || len(d.Sample) != 2<<10 {
		t.Errorf("drift %+v", d)
	}
	if b := state(w, "b"); b.Announced != 1 || b.Silent || b.Setting != Auto {
		t.Errorf("b is %+v", b)
	}
	if s := state(w, "gone"); s.Source != "" {
		t.Errorf("a source that is not configured is %+v", s)
	}
	await(t, "a is silent", func() bool { return state(w, "a").Silent && gauge(t, "a") == 1 })
	a, found, err := Ask(t.Context(), bus)
	if err != nil || !found || a.Process != "p" || len(a.Sources) != 3 || len(a.Drift) != 1 {
		t.Errorf("asked: %+v, %v, %v", a, found, err)
	}
	if s := state(w, "never"); s.Silent || !s.Last.IsZero() {
		t.Errorf("never is %+v", s)
	}

	// What was learned outlives the process, the alarm as well.
	stop()
	if _, found, err := Ask(t.Context(), bus); found || err != nil {
		t.Errorf("somebody answers who has stopped: %v", err)
	}
	w, stop = watch(t, bus, Config{Silence: map[string]string{"a": "2s", "b": Auto}})
	await(t, "a is silent again", func() bool { s := state(w, "a"); return s.Silent && s.Records == 7 && s.Announced == 1 })
	if d := w.Drift(); len(d) != 1 || d[0].Records != 10 {
		t.Errorf("drift after a restart: %+v", d)
	}
	tell(t, bus, topology.Ingest, announced("a", messages.Announced_AS_OBJECT, ""))
	await(t, "a speaks", func() bool { s := state(w, "a"); return !s.Silent && s.Announced == 2 })
	stop()
}

func TestStateThatCannotBeRead(t *testing.T) {
	for _, data := range [][]byte{[]byte("x"), []byte("\x1f\x8b\x08\x00")} {
		if _, err := decode(data); !errors.Is(err, errState) {
			t.Errorf("%q: %v", data, err)
		}
	}
	k := newKept()
	for i := range 1000 {
		s := &source{Announced: uint64(i)}
		for b := range 40 {
			s.batch(week.Add(time.Duration(b*i) * time.Minute))
		}
		k.Sources[fmt.Sprint("source-", i)] = s
	}
	data := k.encode()
	if len(data) > 512<<10 {
		t.Errorf("a thousand sources take %d bytes: too many for a message", len(data))
	}
	back, err := decode(data)
	if err != nil || len(back.Sources) != 1000 || back.Sources["source-7"].Samples != k.Sources["source-7"].Samples || back.Sources["source-7"].usual() != k.Sources["source-7"].usual() {
		t.Errorf("%d sources, %v", len(back.Sources), err)
	}
}

func TestDriftIsBounded(t *testing.T) {
	w := New(nil, Config{})
	sample := []byte(strings.Repeat("x", maxSample))
	for i := range 2 * maxDrift {
		w.drift(&messages.Drift{Kind: "column", Name: fmt.Sprint(i), Records: 1, Sample: sample}, week.Add(time.Duration(i)*time.Second))
	}
	all, bytes := w.Drift(), 0
	for _, d := range all {
		bytes += len(d.Sample)
	}
	if len(all) != maxDrift || bytes > maxSamples || all[0].Name != fmt.Sprint(2*maxDrift-1) || all[0].Sample == "" {
		t.Errorf("%d things with %d bytes of samples, the first is %s", len(all), bytes, all[0].Name)
	}
}

func TestSettings(t *testing.T) {
	for s, want := range map[string]bool{"": true, "auto": true, "off": true, "45m": true, "1h30m": true, "0s": false, "-1m": false, "10": false, "never": false} {
		if IsSetting(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}
