package flow

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

// second is a destination beside the one that every world has.
func second(name, url string, more ...string) string {
	return fmt.Sprintf("  - name: %s\n    type: http\n    url: %s\n", name, url) + strings.Join(more, "")
}

// status asks penstock how a destination is.
func status(t *testing.T, url, name string) (s struct {
	State      string  `json:"state"`
	LagFrames  int     `json:"lag_frames"`
	LagSeconds float64 `json:"lag_seconds"`
	Confirmed  int     `json:"confirmed"`
	Breaker    string  `json:"breaker"`
	Control    struct {
		By     string    `json:"by"`
		At     time.Time `json:"at"`
		Reason string    `json:"reason"`
	} `json:"control"`
	Processes map[string]struct{ State, Error string } `json:"processes"`
},
) {
	t.Helper()
	out, errOut, code := harness.Run(t, nil, "destinations", "status", name, "--json", "--nats", url)
	if code != 0 {
		t.Fatalf("status of %s: %d: %s", name, code, errOut)
	}
	list := []any{&s}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return s
}

// steer runs penstock destinations and returns what it says.
func steer(t *testing.T, url string, wantCode int, args ...string) string {
	t.Helper()
	out, errOut, code := harness.Run(t, nil, append(append([]string{"destinations"}, args...), "--nats", url)...)
	if code != wantCode {
		t.Fatalf("penstock destinations %v: exit code %d, want %d: %s%s", args, code, wantCode, out, errOut)
	}
	return out + errOut
}

// idsOf are the ids that the events of a set have.
func idsOf(set *feed.Set) map[string]bool {
	ids := map[string]bool{}
	for o := range set.All() {
		for _, id := range o.EventIDs {
			ids[messages.NewID([]byte("cloudtrail"), []byte(id.String())).String()] = true
		}
	}
	return ids
}

// holds checks that a sink has these events, each so often, and none else.
func holds(t *testing.T, what string, sink *harness.Sink, sets ...*feed.Set) {
	t.Helper()
	want := map[string]bool{}
	for _, s := range sets {
		for id := range idsOf(s) {
			want[id] = true
		}
	}
	missing, twice := 0, 0
	for id := range want {
		switch n := sink.Has(id); {
		case n == 0:
			missing++
		case n > 1:
			twice++
		}
	}
	if missing > 0 || twice > 0 || sink.Distinct() != len(want) {
		t.Errorf("%s: %d of %d events are missing, %d came twice, and %d others", what, missing, len(want), twice, sink.Distinct()-(len(want)-missing))
	}
}

func arrive(t *testing.T, what string, sink *harness.Sink, n int) {
	t.Helper()
	harness.Await(t, 2*time.Minute, fmt.Sprintf("%d events at %s", n, what), func() bool { return sink.Distinct() >= n })
}

// edit changes a configuration file.
func edit(t *testing.T, path, from, to string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), from) {
		t.Fatalf("%q is not in %s", from, path)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(data), from, to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// metric is the value of a line of the metrics page, "" when it is not there.
func metric(t *testing.T, health, name string) string {
	t.Helper()
	for line := range strings.Lines(get(t, "http://"+health+"/metrics")) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func get(t *testing.T, url string) string {
	t.Helper()
	r, err := http.Get(url) //nolint:noctx // our own address
	if err != nil {
		return ""
	}
	defer func() { _ = r.Body.Close() }()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// While a destination is paused its lag grows and the others go on, also over kill -9
// of all there is; afterwards everything arrives, each event once.
// covers: DEV-139, LIM-27, OPC-4
func TestPauseHoldsTheLog(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	other := harness.StartSink(t)
	w.Destination = second("other", other.URL)
	w.Bus = "  ack_wait: 3s\n" // what a dead process had in hand comes back soon
	before, during, after := trail(31, 3, 200), trail(32, 4, 300), trail(33, 3, 200)
	path, health := w.Config("all", "")
	p := harness.Start(t, "penstock", nil, "run", "--config", path)
	harness.AwaitReady(t, p, health)
	put(t, w, before)
	arrive(t, "web", w.Sink, before.Unique())
	if out := steer(t, w.StoreURL(), 0, "pause", "web", "--reason", "change 42"); !strings.Contains(out, "destination web is paused in 1 process\n") {
		t.Errorf("pause says %q", out)
	}
	put(t, w, during)
	arrive(t, "other", other, before.Unique()+during.Unique())
	holds(t, "the paused destination", w.Sink, before)
	s := status(t, w.StoreURL(), "web")
	if s.State != "paused" || s.LagFrames == 0 || s.LagSeconds <= 0 || s.Control.Reason != "change 42" || !strings.Contains(s.Control.By, "@") || s.Control.At.IsZero() {
		t.Errorf("status while paused: %+v", s)
	}
	if s := status(t, w.StoreURL(), "other"); s.State != "running" || s.Breaker != "closed" || len(s.Processes) != 1 {
		t.Errorf("status of the other: %+v", s)
	}

	harness.Await(t, time.Minute, "the metrics tell of the lag", func() bool {
		frames, _ := strconv.ParseFloat(metric(t, health, `penstock_bus_lag_frames{consumer="deliver-web"}`), 64)
		seconds, _ := strconv.ParseFloat(metric(t, health, `penstock_bus_lag_seconds{consumer="deliver-web"}`), 64)
		return frames > 0 && seconds > 1 && metric(t, health, `penstock_deliver_destination_paused{destination="web"}`) == "1"
	})

	p.Kill()
	p = harness.Start(t, "penstock", nil, "run", "--config", path)
	harness.AwaitReady(t, p, health) // a pause is no trouble
	put(t, w, after)
	arrive(t, "other", other, before.Unique()+during.Unique()+after.Unique())
	holds(t, "the destination paused over kill -9", w.Sink, before)

	if out := steer(t, w.StoreURL(), 0, "resume", "web"); !strings.Contains(out, "destination web goes on in 1 process\n") {
		t.Errorf("resume says %q", out)
	}
	arrive(t, "web", w.Sink, before.Unique()+during.Unique()+after.Unique())
	settled(t, w.StoreURL())
	holds(t, "the destination that went on", w.Sink, before, during, after)
	if s := status(t, w.StoreURL(), "web"); s.State != "running" || s.LagFrames != 0 || s.Confirmed != w.Sink.Distinct() {
		t.Errorf("status afterwards: %+v", s)
	}
	steer(t, w.StoreURL(), 2, "pause", "nobody")
}

// Two replicas obey a pause, and go on together.
// covers: DEV-139
func TestReplicasObeyAPause(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	other := harness.StartSink(t)
	w.Destination = second("other", other.URL)
	url := startSix(t, w)
	p, health := w.RunStage(topology.Deliver, 1, url)
	harness.AwaitReady(t, p, health)
	first, more := trail(34, 3, 200), trail(35, 6, 300)
	put(t, w, first)
	arrive(t, "web", w.Sink, first.Unique())
	if out := steer(t, url, 0, "pause", "web"); !strings.Contains(out, "is paused in 2 processes") {
		t.Errorf("pause says %q", out)
	}
	put(t, w, more)
	arrive(t, "other", other, first.Unique()+more.Unique())
	holds(t, "the paused destination", w.Sink, first)
	if out := steer(t, url, 0, "resume", "web"); !strings.Contains(out, "goes on in 2 processes") {
		t.Errorf("resume says %q", out)
	}
	arrive(t, "web", w.Sink, first.Unique()+more.Unique())
	settled(t, url)
	holds(t, "the destination that went on", w.Sink, first, more)
}

// SIGHUP adds a destination that begins in the past and gets exactly what came since,
// changes nothing when the file has a mistake, and lets a destination go; removed, it is
// not expected to deliver any more.
// covers: DEV-137, OPC-9
func TestReloadAddsAndRemoves(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	late, old := harness.StartSink(t), harness.StartSink(t)
	w.Destination = second("old", old.URL)
	path, health := w.Config("all", "")
	p := harness.Start(t, "penstock", nil, "run", "--config", path)
	harness.AwaitReady(t, p, health)
	url := w.StoreURL()
	sets := []*feed.Set{trail(36, 3, 200), trail(37, 3, 200), trail(38, 3, 200), trail(39, 3, 200)}
	put(t, w, sets[0])
	arrive(t, "web", w.Sink, sets[0].Unique())
	since := time.Now()
	put(t, w, sets[1])
	arrive(t, "web", w.Sink, sets[0].Unique()+sets[1].Unique())

	// A mistake.
	edit(t, path, "destinations:\n", "destinations:\n"+second("late", late.URL, "    start: yesterday\n    no_such_key: 1\n"))
	p.Signal(syscall.SIGHUP)
	harness.Await(t, time.Minute, "the mistake is told", func() bool {
		return metric(t, health, "penstock_config_last_reload_successful") == "0"
	})
	for _, want := range []string{"destinations[0].start: ", "destinations[0].no_such_key: ", path + ":17:", path + ":18:"} {
		harness.Await(t, time.Minute, fmt.Sprintf("the log says %q", want), func() bool { return strings.Contains(p.Log(), want) })
	}
	if s := status(t, url, "web"); s.State != "running" || s.LagFrames != 0 {
		t.Errorf("a file with a mistake changed something: %+v", s)
	}

	// Mended: it begins in the past.
	edit(t, path, "start: yesterday\n    no_such_key: 1\n", "start: "+since.UTC().Format(time.RFC3339Nano)+"\n")
	edit(t, path, "drain_timeout: 5s", "drain_timeout: 6s")
	p.Signal(syscall.SIGHUP)
	arrive(t, "late", late, sets[1].Unique())
	put(t, w, sets[2])
	arrive(t, "late", late, sets[1].Unique()+sets[2].Unique())
	arrive(t, "web", w.Sink, sets[0].Unique()+sets[1].Unique()+sets[2].Unique())
	holds(t, "the destination that began in the past", late, sets[1], sets[2])
	settled(t, url)
	if metric(t, health, "penstock_config_last_reload_successful") != "1" || metric(t, health, "penstock_config_restart_needed") != "1" {
		t.Error("the metrics do not tell of the reload, or that bus needs a restart")
	}
	if up := metric(t, health, `penstock_deliver_destination_up{destination="late"}`); up != "1" {
		t.Errorf("up is %q", up)
	}

	// One is let go, with events that it never got.
	arrive(t, "old", old, sets[0].Unique()+sets[1].Unique()+sets[2].Unique())
	steer(t, url, 0, "pause", "old")
	put(t, w, sets[3])
	arrive(t, "web", w.Sink, sets[0].Unique()+sets[1].Unique()+sets[2].Unique()+sets[3].Unique())
	arrive(t, "late", late, sets[1].Unique()+sets[2].Unique()+sets[3].Unique())
	if out := steer(t, url, 1, "remove", "old", "--yes"); !strings.Contains(out, "still configured in 1 process") {
		t.Errorf("remove of what runs says %q", out)
	}
	if _, balanced := harness.Ledger(t, url); balanced {
		t.Error("the books balance although a destination has not got all")
	}
	edit(t, path, second("old", old.URL), "")
	p.Signal(syscall.SIGHUP)
	harness.Await(t, time.Minute, "it is gone from the process", func() bool { return len(status(t, url, "old").Processes) == 0 })
	if s := status(t, url, "old"); s.State != "paused" || s.LagFrames == 0 {
		t.Errorf("a destination that was taken out: %+v", s)
	}
	if out := steer(t, url, 2, "remove", "old"); !strings.Contains(out, "will not be delivered to it. [y/N]") {
		t.Errorf("remove asks %q", out)
	}
	if out := steer(t, url, 0, "remove", "old", "--yes"); !strings.Contains(out, "of the event log, the oldest of") {
		t.Errorf("remove says %q", out)
	}
	settled(t, url)
	steer(t, url, 2, "status", "old")
	readers, err := harness.Connect(t, url).Readers(t.Context())
	if err != nil || len(readers) != 2 {
		t.Errorf("the log is kept for %+v, %v", readers, err)
	}
	holds(t, "the destination that stays", w.Sink, sets...)
	holds(t, "the destination that was removed", old, sets[:3]...)
	if up := metric(t, health, `penstock_deliver_destination_up{destination="old"}`); up != "" {
		t.Errorf("up is still there: %q", up)
	}
}

// A destination whose file cannot be read when penstock starts keeps no other from
// working, is named by /readyz and the metrics, and heals without a restart, with all
// its events.
func TestDestinationHeals(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	sink := harness.StartSink(t)
	secure := httptest.NewTLSServer(sink)
	defer secure.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	w.Destination = second("secure", secure.URL, "    tls: {ca_file: "+ca+"}\n")
	path, health := w.Config("all", "")
	p := harness.Start(t, "penstock", nil, "run", "--config", path)
	set := trail(40, 3, 200)
	put(t, w, set)
	arrive(t, "web", w.Sink, set.Unique())
	if ready := get(t, "http://"+health+"/readyz"); !strings.Contains(ready, "destination secure: ") || !strings.Contains(ready, "deliver.tls_setup") || strings.Contains(ready, "destination web") {
		t.Errorf("/readyz says %s", ready)
	}
	if up := metric(t, health, `penstock_deliver_destination_up{destination="secure"}`); up != "0" {
		t.Errorf("up is %q", up)
	}
	if s := status(t, w.StoreURL(), "secure"); s.State != "failing" || s.LagFrames == 0 {
		t.Errorf("%+v", s)
	}
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	arrive(t, "secure", sink, set.Unique())
	harness.AwaitReady(t, p, health)
	settled(t, w.StoreURL())
	holds(t, "the destination that healed", sink, set)
}

// With --watch a change of the file is enough, and rules of routes are taken over too.
func TestWatchTakesChangesOver(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	path, health := w.Config("all", "")
	p := harness.Start(t, "penstock", nil, "run", "--config", path, "--watch")
	harness.AwaitReady(t, p, health)
	first, second := trail(41, 2, 100), trail(42, 2, 100)
	put(t, w, first)
	arrive(t, "web", w.Sink, first.Unique())
	edit(t, path, "destinations:\n", "routes:\n  - {name: all, drop: true}\ndestinations:\n")
	harness.Await(t, time.Minute, "the change is seen", func() bool {
		return metric(t, health, `penstock_config_reloads_total{result="ok"}`) == "1"
	})
	put(t, w, second)
	harness.Await(t, time.Minute, "all are dropped", func() bool {
		return metric(t, health, `penstock_route_dropped_total{rule="all"}`) == fmt.Sprint(second.Unique())
	})
	settled(t, w.StoreURL())
	holds(t, "the destination", w.Sink, first)
}
