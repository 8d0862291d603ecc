package harness

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/topology"
)

// World is everything around penstock in a test: buckets and a queue to read, a
// sink to write to, and a configuration that joins them.
type World struct {
	T     testing.TB
	Dir   string
	Cloud *cloud.Cloud
	Queue string
	Sink  *Sink
	// Lines of YAML that are put into sections of the configuration.
	Bus, Source, Destination, Extra string
	// Disk is the budget of the streams.
	Disk string
	// Buckets are those that may be read.
	Buckets []string
	// addr is where the endpoint, the sink and penstock listen.
	addr string
}

// QueueName and Bucket of the world.
const (
	QueueName = "trail"
	Bucket    = "trail-logs"
)

// NewWorld starts the endpoint and the sink. attributes are those of the queue.
func NewWorld(t testing.TB, attributes map[string]string) *World {
	t.Helper()
	return newWorld(t, "127.0.0.1", attributes)
}

// NewWorldIn starts them for all hosts of a network.
func NewWorldIn(t testing.TB, n *Network, attributes map[string]string) *World {
	t.Helper()
	return newWorld(t, n.Addr(), attributes)
}

func newWorld(t testing.TB, addr string, attributes map[string]string) *World {
	t.Helper()
	c, err := cloud.Start(t.Context(), cloud.Options{Addr: net.JoinHostPort(addr, "0")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	url, err := c.CreateQueue(QueueName, attributes)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CreateBucket(Bucket, cloud.BucketOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Notify(Bucket, cloud.Notification{Queue: QueueName}); err != nil {
		t.Fatal(err)
	}
	return &World{T: t, Dir: t.TempDir(), Cloud: c, Queue: url, Sink: StartSinkAt(t, addr), Disk: "2GiB", Buckets: []string{Bucket}, addr: addr}
}

// UseQueue has penstock read another queue.
func (w *World) UseQueue(name string) {
	w.T.Helper()
	url, err := w.Cloud.CreateQueue(name, nil)
	if err != nil {
		w.T.Fatal(err)
	}
	w.Queue = url
}

// Config writes the configuration of one process and returns its path and its
// health address. nats is "" for the server inside.
func (w *World) Config(name, nats string) (path, health string) {
	w.T.Helper()
	return w.config(name, nats, FreeAddr(w.T))
}

func (w *World) config(name, nats, health string) (path, _ string) {
	w.T.Helper()
	bus := "  store: " + filepath.Join(w.Dir, "store") + "\n"
	if nats != "" {
		bus = "  url: " + nats + "\n"
	}
	yaml := fmt.Sprintf(`bus:
%s  disk: %s
  drain_timeout: 5s
%ssources:
  - name: trail
    type: sqs
    queue_url: %s
    buckets: [%s]
    visibility_timeout: 20s
    wait_time: 2s
    bucket_aws: {endpoint_url: %q, path_style: true}
%sdestinations:
  - name: web
    type: http
    url: %s
%stelemetry:
  address: %s
  private_address: ""
  log_format: json
%s`, bus, w.Disk, w.Bus, w.Queue, strings.Join(w.Buckets, ", "), w.Cloud.URL(), w.Source, w.Sink.URL, w.Destination, health, w.Extra)
	path = filepath.Join(w.Dir, name+".yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		w.T.Fatal(err)
	}
	return path, health
}

// RunAll starts all stages in one process and waits until it is ready.
func (w *World) RunAll(env ...string) *Process {
	w.T.Helper()
	path, health := w.Config("all", "")
	p := Start(w.T, "penstock", env, "run", "--config", path)
	AwaitReady(w.T, p, health)
	return p
}

// StoreURL is how to reach the server inside a process that RunAll started.
func (w *World) StoreURL() string {
	w.T.Helper()
	data, err := os.ReadFile(filepath.Join(w.Dir, "store", topology.AccessFile))
	if err != nil {
		w.T.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// RunStage starts one stage against a NATS server.
func (w *World) RunStage(stage topology.Stage, replica int, nats string, env ...string) (*Process, string) {
	w.T.Helper()
	name := fmt.Sprintf("%s-%d", stage, replica)
	path, health := w.Config(name, nats)
	return Start(w.T, name, env, "run", "--config", path, "--stage", string(stage), "--nats", nats), health
}

// RunStageOn starts one stage on a host against a NATS server. The configuration is
// that of [World.Config]; program is "" for penstock as it is.
func (w *World) RunStageOn(h *Host, program string, stage topology.Stage, replica int, nats string, env ...string) (*Process, string) {
	w.T.Helper()
	name := fmt.Sprintf("%s-%d", stage, replica)
	path, health := w.config(name, nats, h.FreeAddr())
	if program == "" {
		program = Binary(w.T)
	}
	return h.StartProgram(name, env, program, "run", "--config", path, "--stage", string(stage), "--nats", nats), health
}

// Log is what the event log holds: how often each event is live in it.
func Log(t testing.TB, b *topology.Bus) map[messages.ID]int {
	t.Helper()
	var live map[messages.ID]int
	readAll(t, b, "penstock.event.>", func() { live = map[messages.ID]int{} }, func(m topology.Stored) error {
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			return err
		}
		for i := range v.Len() {
			if v.Fate(i) == messages.Live {
				live[v.ID(i)]++
			}
		}
		return nil
	})
	return live
}

// Quarantined returns the records in quarantine by code.
func Quarantined(t testing.TB, b *topology.Bus) map[string]int {
	t.Helper()
	var n map[string]int
	readAll(t, b, "penstock.quarantine.>", func() { n = map[string]int{} }, func(m topology.Stored) error {
		q, err := messages.DecodeQuarantine(m.Data)
		if err != nil {
			return err
		}
		if q.Reason == "" || q.Code == "" {
			t.Errorf("quarantine entry %s has no reason", q.Id)
		}
		n[q.Code]++
		return nil
	})
	return n
}

// readAll reads a stream from its beginning. Right after a fault the bus may not answer
// yet: then it begins again, a few times.
func readAll(t testing.TB, b *topology.Bus, subject string, begin func(), f func(topology.Stored) error) {
	t.Helper()
	for try := 1; ; try++ {
		begin()
		err := b.Read(t.Context(), topology.Span{Subject: subject}, f)
		if err == nil {
			return
		}
		if try == 5 || fault.CodeOf(err) != "bus.read_failed" {
			t.Fatal(err)
		}
		t.Logf("begin again: %v", err)
	}
}

// Verify checks the event log event by event: each wanted event once, none else.
func Verify(t testing.TB, log map[messages.ID]int, eventIDs []string) {
	t.Helper()
	wanted := make(map[messages.ID]bool, len(eventIDs))
	lost, twice := 0, 0
	for _, id := range eventIDs {
		key := messages.NewID([]byte("cloudtrail"), []byte(id))
		if wanted[key] {
			continue // a duplicate of the input
		}
		wanted[key] = true
		switch n := log[key]; {
		case n == 0:
			if lost++; lost <= 3 {
				t.Errorf("event %s is lost", id)
			}
		case n > 1:
			if twice++; twice <= 3 {
				t.Errorf("event %s is in the log %d times", id, n)
			}
		}
	}
	strange := 0
	for id := range log {
		if !wanted[id] {
			if strange++; strange <= 3 {
				t.Errorf("event %s is in the log and was not sent", id)
			}
		}
	}
	t.Logf("%d events sent, %d in the log, %d lost, %d twice, %d strange", len(wanted), len(log), lost, twice, strange)
}

// Ledger asks penstock whether the books balance.
func Ledger(t testing.TB, url string) (report map[string]any, balanced bool) {
	t.Helper()
	out, errOut, code := Run(t, nil, "ledger", "--json", "--pulls", "--nats", url)
	if code > 1 || out == "" {
		t.Fatalf("penstock ledger ended with %d: %s", code, errOut)
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return report, code == 0
}

// AwaitDelivered waits until the sink has so many different events.
func (w *World) AwaitDelivered(timeout time.Duration, n int) {
	w.T.Helper()
	Await(w.T, timeout, fmt.Sprintf("%d events at the sink", n), func() bool { return w.Sink.Distinct() >= n })
}

// Open is how many pulls of a ledger report are not settled yet.
func Open(report map[string]any) float64 {
	total, _ := report["total"].(map[string]any)
	open, _ := total["open"].(float64)
	return open
}
