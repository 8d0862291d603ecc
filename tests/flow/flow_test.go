// Package flow runs penstock end to end: the real binary, a real NATS server,
// real HTTP.
package flow

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

func TestMain(m *testing.M) { harness.Main(m) }

// put stores the objects of a set, whose notices go to the queue, and returns the
// ids of all its events, duplicates included.
func put(t *testing.T, w *harness.World, set *feed.Set) (ids []string) {
	t.Helper()
	for o := range set.All() {
		if _, err := w.Cloud.Put(o.Bucket, o.Key, cloud.Object{Body: o.Body}); err != nil {
			t.Fatal(err)
		}
		for _, id := range o.EventIDs {
			ids = append(ids, id.String())
		}
	}
	return ids
}

func trail(seed uint64, objects, records int) *feed.Set {
	return feed.CloudTrail(feed.Options{Seed: seed, Objects: objects, RecordsPerObject: feed.Fixed(records), DuplicateShare: 0.03, Bucket: harness.Bucket})
}

// settled waits until the books balance with nothing open, which is when facts of
// the last stage are stored, too.
func settled(t *testing.T, url string) map[string]any {
	t.Helper()
	var report map[string]any
	harness.Await(t, time.Minute, "the ledger balances", func() bool {
		var balanced bool
		report, balanced = harness.Ledger(t, url)
		open := harness.Open(report)
		return balanced && open == 0
	})
	return report
}

// All stages in one process and six processes over a NATS server do the same:
// every event once, counted, with nothing left in the queue.
// covers: DEV-1, DEV-51, VOI-31
func TestObjectsReachTheSink(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"all in one", "six processes"} {
		t.Run(mode, func(t *testing.T) {
			w := harness.NewWorld(t, nil)
			set := trail(1, 12, 400)
			url := ""
			if mode == "all in one" {
				w.RunAll()
				url = w.StoreURL()
			} else {
				url = startSix(t, w)
			}
			ids := put(t, w, set)
			w.AwaitDelivered(2*time.Minute, set.Unique())
			bus := harness.Connect(t, url)
			harness.Verify(t, harness.Log(t, bus), ids)
			if n := w.Sink.Events(); n != set.Unique() {
				t.Errorf("the sink got %d events, want %d, each once", n, set.Unique())
			}
			settled(t, url)
			harness.Await(t, time.Minute, "the queue is empty", func() bool {
				q := w.Cloud.Queue(harness.QueueName)
				return q.Visible == 0 && q.InFlight == 0
			})
			if q := harness.Quarantined(t, bus); len(q) != 0 {
				t.Errorf("in quarantine: %v", q)
			}
		})
	}
}

func startSix(t *testing.T, w *harness.World) string {
	t.Helper()
	nats := harness.StartNATS(t, t.TempDir())
	for _, s := range topology.Stages {
		p, health := w.RunStage(s, 0, nats.URL())
		harness.AwaitReady(t, p, health)
	}
	return nats.URL()
}

// A restart in the middle, in order, loses and doubles nothing, and ends with
// exit code 0.
// covers: DEV-114, DEV-138
func TestRestartGoesOn(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	w.Bus = "  ack_wait: 3s\n" // what was given back when the server stopped comes again soon
	set := trail(2, 10, 1000)
	first := w.RunAll()
	ids := put(t, w, set)
	harness.Await(t, time.Minute, "some events arrived", func() bool { return w.Sink.Distinct() > 0 })
	first.Signal(syscall.SIGTERM)
	if code := first.Wait(30 * time.Second); code != 0 {
		t.Errorf("SIGTERM in mid-flow: exit code %d, want 0", code)
	}
	w.RunAll()
	w.AwaitDelivered(2*time.Minute, set.Unique())
	harness.Verify(t, harness.Log(t, harness.Connect(t, w.StoreURL())), ids)
	settled(t, w.StoreURL())
}

// A destination that is down for long and a small disk: the bus fills, ingest
// stops receiving, memory stays flat, and all flows again when it returns.
// covers: LIM-13, DEV-144
func TestBackpressureReachesTheQueue(t *testing.T) {
	w := harness.NewWorld(t, nil)
	w.Disk = "64MiB"
	w.Sink.SetFault(func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	// What the streams cannot hold, and then so many more notices of one small
	// object that those do not fit either.
	set := trail(3, 150, 2000)
	p := w.RunAll()
	ids := put(t, w, set)
	const again = 2500
	small := feed.CloudTrail(feed.Options{Seed: 5, Objects: 1, RecordsPerObject: feed.Fixed(5), Bucket: harness.Bucket}).Object(0)
	if _, err := w.Cloud.Put(small.Bucket, small.Key, cloud.Object{Body: small.Body, Quiet: true}); err != nil {
		t.Fatal(err)
	}
	for range again / 100 {
		batch := make([]string, 100)
		for i := range batch {
			batch[i] = string(cloud.Message(cloud.Direct, cloud.Event{Name: "ObjectCreated:Put", Bucket: small.Bucket, Key: small.Key, Region: "us-east-1", Size: 1, Time: time.Now()}))
		}
		if _, err := w.Cloud.Send(harness.QueueName, batch...); err != nil {
			t.Fatal(err)
		}
	}
	want := set.Unique() + len(small.EventIDs)
	for _, id := range small.EventIDs {
		ids = append(ids, id.String())
	}
	// Full is when neither the number of deleted messages nor that of fetched
	// objects moves any more, though many wait.
	quiet := func() func() bool {
		last, since := int64(-1), time.Now()
		return func() bool {
			now := w.Cloud.Queue(harness.QueueName).Deleted + w.Cloud.Calls("GetObject")
			if now != last {
				last, since = now, time.Now()
			}
			return last > 0 && time.Since(since) > 5*time.Second
		}
	}
	harness.Await(t, 2*time.Minute, "the flow stands still", quiet())
	q := w.Cloud.Queue(harness.QueueName)
	if q.Visible+q.InFlight == 0 {
		t.Fatal("all notices were taken although nothing can be delivered")
	}
	rss := residentBytes(t, p.PID())
	harness.Await(t, time.Minute, "it still stands still", quiet())
	if now := residentBytes(t, p.PID()); now > rss+64<<20 {
		t.Errorf("memory grew from %d to %d MiB while everything stood still", rss>>20, now>>20)
	}
	t.Logf("standing still: %d of %d notices wait in the queue, %d MiB resident", q.Visible+q.InFlight, set.Len()+again, rss>>20)
	w.Sink.SetFault(nil)
	w.AwaitDelivered(4*time.Minute, want)
	if got := w.Sink.Distinct(); got != want {
		t.Errorf("%d events arrived, want %d", got, want)
	}
	missing := 0
	for _, id := range ids {
		key := messages.NewID([]byte("cloudtrail"), []byte(id))
		if w.Sink.Has(key.String()) == 0 {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%d events are missing at the sink", missing)
	}
	harness.Await(t, time.Minute, "the queue is empty", func() bool {
		q := w.Cloud.Queue(harness.QueueName)
		return q.Visible == 0 && q.InFlight == 0
	})
}

func residentBytes(t *testing.T, pid int) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Skipf("this system does not tell a process' memory: %v", err)
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			return kib << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// collector is an OTLP/HTTP receiver of traces.
type collector struct {
	mu    sync.Mutex
	spans []*tracepb.Span
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var request coltrace.ExportTraceServiceRequest
	if err == nil && strings.HasSuffix(r.URL.Path, "/traces") {
		err = proto.Unmarshal(body, &request)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range request.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			c.spans = append(c.spans, ss.Spans...)
		}
	}
	w.WriteHeader(http.StatusOK)
}

func (c *collector) all() []*tracepb.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*tracepb.Span(nil), c.spans...)
}

// One object makes one trace through all six stages, over six processes: each
// stage's span descends from the one before, and where frames merge the spans are
// linked.
func TestOneTraceThroughAllStages(t *testing.T) {
	t.Parallel()
	c := &collector{}
	otlp := httptest.NewServer(c)
	defer otlp.Close()
	env := []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + otlp.URL, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "OTEL_BSP_SCHEDULE_DELAY=200"}
	w := harness.NewWorld(t, nil)
	nats := harness.StartNATS(t, t.TempDir())
	for _, s := range topology.Stages {
		p, health := w.RunStage(s, 0, nats.URL(), env...)
		harness.AwaitReady(t, p, health)
	}
	set := feed.CloudTrail(feed.Options{Seed: 4, Objects: 1, RecordsPerObject: feed.Fixed(30), Bucket: harness.Bucket})
	put(t, w, set)
	w.AwaitDelivered(time.Minute, set.Unique())

	stages := map[string]bool{}
	for _, s := range topology.Stages {
		stages[string(s)] = true
	}
	var trace []byte
	seen := map[string][]*tracepb.Span{}
	harness.Await(t, time.Minute, "spans of all six stages in one trace", func() bool {
		byTrace := map[string]map[string][]*tracepb.Span{}
		for _, s := range c.all() {
			if stages[s.Name] {
				id := string(s.TraceId)
				if byTrace[id] == nil {
					byTrace[id] = map[string][]*tracepb.Span{}
				}
				byTrace[id][s.Name] = append(byTrace[id][s.Name], s)
			}
		}
		for id, names := range byTrace {
			if len(names) == len(stages) {
				trace, seen = []byte(id), names
				return true
			}
		}
		return false
	})
	// Each stage's span descends from one of the stage before it, whose process tells of it
	// in its own time.
	harness.Await(t, time.Minute, "each stage's spans to descend from one of the stage before", func() bool {
		parents := map[string]*tracepb.Span{}
		for _, s := range c.all() {
			if string(s.TraceId) == string(trace) {
				parents[string(s.SpanId)] = s
			}
		}
		for i, stage := range topology.Stages[1:] {
			before := string(topology.Stages[i])
			for _, s := range seen[string(stage)] {
				p := parents[string(s.ParentSpanId)]
				for p != nil && p.Name != before {
					p = parents[string(p.ParentSpanId)]
				}
				if p == nil {
					return false
				}
			}
		}
		return true
	})
	if root := seen[string(topology.Ingest)][0]; len(root.ParentSpanId) != 0 {
		t.Errorf("the span of ingest has a parent")
	}
	// Every span that sent a batch to the sink is linked to the deliver spans whose
	// frames it carried, or is a child of the only one.
	linked := 0
	for _, s := range c.all() {
		linked += len(s.Links)
		for _, l := range s.Links {
			if len(l.TraceId) != 16 || len(l.SpanId) != 8 {
				t.Errorf("span %s has a link without ids", s.Name)
			}
		}
	}
	if linked == 0 {
		t.Error("no span is linked: merged frames have lost their other parents")
	}
}

// SIGTERM while nothing flows ends the process quickly, with exit code 0; a
// wrong configuration is exit code 2.
// covers: DEV-140
func TestExitCodes(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	p := w.RunAll()
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(15 * time.Second); code != 0 {
		t.Errorf("SIGTERM: exit code %d, want 0", code)
	}
	bad := w.Dir + "/bad.yaml"
	if err := os.WriteFile(bad, []byte("sorces: []\nbus: {disk: 1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := harness.Run(t, nil, "run", "--config", bad)
	if code != 2 || !strings.Contains(stderr, "sorces") || !strings.Contains(stderr, "disk") {
		t.Errorf("bad configuration: exit code %d, output %s", code, stderr)
	}
	for _, args := range [][]string{{"run", "--nope"}, {"run", "--stage", "x", "--config", bad}, {"nope"}} {
		if _, stderr, code := harness.Run(t, nil, args...); code != 2 {
			t.Errorf("penstock %v: exit code %d, want 2: %s", args, code, stderr)
		}
	}
}

// The README's first command.
func TestDemoOnceBalances(t *testing.T) {
	out, stderr, code := harness.Run(t, nil, "demo", "--once")
	if code != 0 || !strings.Contains(out, "balance") {
		t.Fatalf("exit code %d\n%s\n%s", code, out, stderr)
	}
}
