package faults

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

// replicas of each stage that run all the while.
var replicas = map[topology.Stage]int{
	topology.Ingest: 1, topology.Fetch: 2, topology.Parse: 2, topology.Dedupe: 2, topology.Route: 1, topology.Deliver: 2,
}

// stand is the whole system with a handle on each thing that may fail: processes of
// all stages, some of them twice, a NATS server, the S3 and SQS endpoint, and three
// destinations, with a network between any two that the test owns.
type stand struct {
	t     *testing.T
	w     *harness.World
	nats  *harness.Server
	track *tracker
	slots map[string]*slot
	// nets are the networks by name: that of each process to NATS, and s3, sqs, web, out.
	nets map[string]*harness.Proxy
	// binary is penstock; another one when clocks can be shifted.
	binary string
	clocks map[string]*harness.Clock
	// store holds the streams, files what the destination file writes; nil without root.
	store, files *harness.Disk
	filesDir     string
	wrong        atomic.Pointer[cloud.FaultFunc]
	missing      map[string]string // what faults need and is not here, with the reason
	began        time.Time

	mu  sync.Mutex
	log []string // what was injected when
}

// slot is the place of one process: its configuration and network stay while
// processes in it come and go.
type slot struct {
	*harness.Process
	s            *stand
	name         string
	stage        topology.Stage
	config, addr string
	url          string
}

// outQueue is the queue that the third destination sends to.
const outQueue = "out"

func newStand(t *testing.T, clocks bool) *stand {
	t.Helper()
	s := &stand{
		t: t, track: newTracker(), slots: map[string]*slot{}, nets: map[string]*harness.Proxy{}, clocks: map[string]*harness.Clock{},
		missing: map[string]string{},
	}
	if clocks {
		s.binary = harness.ClockBinary(t)
		harness.ClockServer(t)
	} else {
		s.binary = harness.Binary(t)
		s.missing["clock"] = "clocks that can be shifted are part of the long run, on linux/amd64"
	}
	s.began = time.Now() // what the compiler takes is not the run's
	storeDir := t.TempDir()
	s.filesDir = t.TempDir()
	var why string
	if s.store, why = harness.NewDisk(t, 1<<30); s.store != nil {
		storeDir = filepath.Join(s.store.Dir, "nats")
	} else {
		s.missing["disk"] = why
	}
	if s.files, why = harness.NewDisk(t, 1<<30); s.files != nil {
		s.filesDir = s.files.Dir
	} else {
		s.missing["disk"] = why
	}
	if _, why := harness.NewCage(t); why != "" {
		s.missing["cage"] = why
	}
	s.nats = harness.StartServer(t, storeDir, s.clock("nats"))
	s.w = harness.NewWorld(t, nil)
	s.w.Sink.OnArrival(s.track.arrived)
	if _, err := s.w.Cloud.CreateQueue(outQueue, nil); err != nil {
		t.Fatal(err)
	}
	s.w.Cloud.SetFault(func(op, name, key string) cloud.Fault {
		if f := s.wrong.Load(); f != nil {
			return (*f)(op, name, key)
		}
		return cloud.Fault{}
	})
	endpoint := hostOf(t, s.w.Cloud.URL())
	for _, name := range []string{"s3", "sqs", outQueue} {
		s.nets[name] = harness.StartProxy(t, endpoint)
	}
	s.nets["web"] = harness.StartProxy(t, hostOf(t, s.w.Sink.URL))
	for _, stage := range topology.Stages {
		for i := range replicas[stage] {
			s.start(stage, i)
		}
	}
	for _, p := range s.slots {
		harness.AwaitReady(t, p.Process, p.addr)
	}
	t.Cleanup(func() {
		if t.Failed() {
			s.mu.Lock()
			defer s.mu.Unlock()
			t.Logf("what was injected when:\n  %s", strings.Join(s.log, "\n  "))
		}
	})
	return s
}

func hostOf(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// clock of a slot, nil when clocks cannot be shifted here.
func (s *stand) clock(name string) *harness.Clock {
	if s.missing["clock"] != "" {
		return nil
	}
	if s.clocks[name] == nil {
		s.clocks[name] = harness.NewClock(s.t)
	}
	return s.clocks[name]
}

// start opens a slot and starts a process in it.
func (s *stand) start(stage topology.Stage, n int) *slot {
	name := fmt.Sprintf("%s/%d", stage, n)
	net := harness.StartProxy(s.t, s.nats.Addr())
	p := &slot{s: s, name: name, stage: stage, addr: harness.KeepAddr(s.t), url: "nats://" + net.Addr()}
	p.config = filepath.Join(s.w.Dir, strings.ReplaceAll(name, "/", "-")+".yaml")
	via := func(address, proxy string) string {
		return strings.Replace(address, hostOf(s.t, address), s.nets[proxy].Addr(), 1)
	}
	yaml := fmt.Sprintf(`bus:
  url: %s
  disk: 4GiB
  drain_timeout: 5s
  ack_wait: %s
sources:
  - name: trail
    type: sqs
    queue_url: %s
    buckets: [%s]
    visibility_timeout: 20s
    wait_time: 1s
    bucket_aws: {endpoint_url: %q, path_style: true}
destinations:
  - name: web
    type: http
    url: %s
    timeout: 3s
    backoff: {max: 5s}
  - name: file
    type: file
    path: %s
    backoff: {max: 5s}
  - name: queue
    type: sqs
    queue_url: %s
    timeout: 5s
    backoff: {max: 5s}
telemetry:
  address: %s
  private_address: ""
  log_format: json
`, p.url, ackWait, via(s.w.Queue, "sqs"), harness.Bucket, via(s.w.Cloud.URL(), "s3"), via(s.w.Sink.URL, "web"),
		filepath.Join(s.filesDir, fmt.Sprintf("events-%d.ndjson", n)), via(s.w.Cloud.QueueURL(outQueue), outQueue), p.addr)
	if err := os.WriteFile(p.config, []byte(yaml), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.slots[name], s.nets[name] = p, net
	p.launch()
	return p
}

// ackWait is short, so that what a dead process had in hand comes back soon.
const ackWait = "3s"

// launch starts a process in the slot.
func (p *slot) launch(env ...string) {
	if c := p.s.clock(p.name); c != nil {
		env = append(env, c.Env()...)
	}
	p.Process = harness.StartFrom(p.s.t, p.s.binary, p.name, env, "run", "--config", p.config, "--stage", string(p.stage))
}

// end stops the process with SIGTERM, and fails the test when that does not end well.
func (p *slot) end() {
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(40 * time.Second); code != 0 {
		p.s.t.Logf("%s ended with %d after SIGTERM", p.name, code)
	}
}

// alive fails the test for each process that has ended by itself.
func (s *stand) alive() {
	s.t.Helper()
	for name, p := range s.slots {
		if !p.Running() {
			s.t.Errorf("%s ended by itself:\n%s", name, tailOf(p.Log(), 15))
			p.launch()
		}
	}
}

func tailOf(text string, n int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-n):], "\n")
}

func (s *stand) note(format string, args ...any) {
	line := fmt.Sprintf("%7.2f s  %s", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
	s.mu.Lock()
	s.log = append(s.log, line)
	s.mu.Unlock()
	s.t.Log(line)
}

// setCloud has the endpoint misbehave; nil ends it.
func (s *stand) setCloud(f cloud.FaultFunc) {
	if f == nil {
		s.wrong.Store(nil)
		return
	}
	s.wrong.Store(&f)
}

// setWeb has the HTTP destination misbehave; nil ends it.
func (s *stand) setWeb(f func(http.ResponseWriter, *http.Request) bool) { s.w.Sink.SetFault(f) }

// delivered is how often each event is at each destination.
func (s *stand) delivered() map[string]map[string]int {
	s.t.Helper()
	queue, file := map[string]int{}, map[string]int{}
	var line struct{ ID string }
	for _, m := range s.w.Cloud.Messages(outQueue) {
		if err := json.Unmarshal([]byte(m.Body), &line); err != nil {
			s.t.Errorf("a message in the queue is no event: %v", err)
		}
		queue[line.ID]++
	}
	paths, _ := filepath.Glob(filepath.Join(s.filesDir, "events-*"))
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			s.t.Fatal(err)
		}
		text := bufio.NewScanner(f)
		text.Buffer(nil, 64<<20)
		for text.Scan() {
			if err := json.Unmarshal(text.Bytes(), &line); err != nil {
				s.t.Errorf("a line in %s is no event: %v", filepath.Base(path), err)
			}
			file[line.ID]++
		}
		_ = f.Close()
	}
	return map[string]map[string]int{"web": s.w.Sink.IDs(), "file": file, "queue": queue}
}

// fileBytes is how much the destination file has written.
func (s *stand) fileBytes() (n int64) {
	paths, _ := filepath.Glob(filepath.Join(s.filesDir, "events-*"))
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil {
			n += info.Size()
		}
	}
	return n
}
