// Package console operates a real pipeline through the console, in a real browser: the
// binary with all stages, the demo's AWS, and Debian's Chromium. Each page has to load
// without a complaint, each action has to do what it says.
package console

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

func TestMain(m *testing.M) { harness.Main(m) }

// The people of these tests have one password, of which this is the argon2id hash.
const (
	password     = "correct horse battery staple"
	passwordHash = "$argon2id$v=19$m=65536,t=1,p=1$tNAtKohP/B4db5eYWKLKKg$d8mb8Zpsz/XstCmyae7gZuxWAf6eDjAnStS8472vLUI"
)

// world is a pipeline at work, and its console.
type world struct {
	*harness.World
	story *feed.Scenario
	// events are the different events that there are to deliver.
	events int
	// lake is a second destination.
	lake *harness.Sink
	// process runs all stages and the console.
	process *harness.Process
	config  string
	env     []string
	// console is its address: http://127.0.0.1:1.
	console string
	bus     *topology.Bus
}

// newWorld starts a pipeline that reads samples of every system, with a few mishaps.
func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{World: harness.NewWorld(t, nil), story: feed.DemoOf(1, 0.05), lake: harness.StartSink(t)}
	now := time.Now().Truncate(time.Minute)
	since := now.Add(-20 * time.Minute)
	if _, err := w.Cloud.CreateQueue(w.story.Queue, nil); err != nil {
		t.Fatal(err)
	}
	systems := feed.Systems(1, 200)
	for i := range systems {
		w.events += systems[i].Events
		if err := systems[i].Install(t.Context(), w.Cloud); err != nil {
			t.Fatal(err)
		}
	}
	watched, err := feed.FillAPIs(w.Cloud, 1, since, now.Add(-10*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	w.events += w.story.Want.Unique + watched.LogEvents + watched.Points + watched.Findings + feed.FillTrail(w.Cloud, 1, 200, since.Add(time.Minute))
	for i := range w.story.Steps {
		if err := feed.InstallStep(t.Context(), w.Cloud, w.story, i); err != nil {
			t.Fatal(err)
		}
	}
	w.env = []string{"DEMO_ENDPOINT=" + w.Cloud.URL(), "DEMO_SINCE=" + since.UTC().Format(time.RFC3339)}
	w.start()
	w.AwaitDelivered(time.Minute, w.events)
	return w
}

// start starts the process, and waits until it is ready.
func (w *world) start() {
	w.T.Helper()
	sources, err := os.ReadFile(filepath.Join(harness.Root(), "services", "penstock", "demo.yaml"))
	if err != nil {
		w.T.Fatal(err)
	}
	health, console := harness.FreeAddr(w.T), harness.FreeAddr(w.T)
	w.console = "http://" + console
	yaml := string(sources) + fmt.Sprintf(`
bus:
  store: %s
  disk: 2GiB
  drain_timeout: 5s
fetch:
  missing_key_wait: 1s
destinations:
  - name: siem
    type: http
    url: %s
  - name: lake
    type: http
    url: %s
    types: [cloud.aws.>]
  - name: archive
    type: file
    path: %s
telemetry:
  address: %s
  private_address: ""
  log_format: json
console:
  address: %s
  users:
    - {name: ada, role: operator, password_hash: "%s"}
    - {name: ben, role: operator, password_hash: "%[7]s"}
    - {name: eve, role: read-only, password_hash: "%[7]s"}
`, filepath.Join(w.Dir, "store"), w.Sink.URL, w.lake.URL, filepath.Join(w.Dir, "events.ndjson"), health, console, passwordHash)
	w.config = filepath.Join(w.Dir, "console.yaml")
	if err := os.WriteFile(w.config, []byte(yaml), 0o600); err != nil {
		w.T.Fatal(err)
	}
	w.process = harness.Start(w.T, "penstock", w.env, "run", "--config", w.config)
	harness.AwaitReady(w.T, w.process, health)
	w.bus = harness.Connect(w.T, w.StoreURL())
}

// object is another object of CloudTrail.
func (w *world) object(seed uint64, records int) feed.Object {
	return feed.CloudTrail(feed.Options{Seed: seed, Objects: 1, RecordsPerObject: feed.Fixed(records), Bucket: w.story.Bucket}).Object(0)
}

// put stores another object, which is announced.
func (w *world) put(t testing.TB, seed uint64, records int) feed.Object {
	t.Helper()
	o := w.object(seed, records)
	if err := w.Cloud.Notify(w.story.Bucket, cloud.Notification{Queue: w.story.Queue}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Cloud.Put(o.Bucket, o.Key, cloud.Object{Body: o.Body}); err != nil {
		t.Fatal(err)
	}
	return o
}

// arrived is how many events of an object of CloudTrail a destination has.
func arrived(s *harness.Sink, o feed.Object) (n int) {
	replayed := s.AllReplayed()
	for _, id := range o.EventIDs {
		key := messages.NewID([]byte("cloudtrail"), []byte(id.String())).String()
		if s.Has(key)+replayed[key] > 0 {
			n++
		}
	}
	return n
}

// arrives waits until a destination has all events of an object.
func arrives(t testing.TB, s *harness.Sink, o feed.Object) {
	t.Helper()
	harness.Await(t, time.Minute, fmt.Sprintf("the %d events of an object", o.Records), func() bool { return arrived(s, o) == o.Records })
}

// mark is what a destination had at some time. APIs bring something new at any time, so
// that what came twice is what counts.
type mark struct {
	sink  *harness.Sink
	twice int
}

func markOf(s *harness.Sink) mark { return mark{s, twice(s)} }

// twice is how many events came that a destination had already, or for a replay.
func twice(s *harness.Sink) int {
	n := s.Events() - s.Distinct()
	for _, times := range s.AllReplayed() {
		n += times
	}
	return n
}

// again is how many events came since then that the destination had already.
func (m mark) again() int { return twice(m.sink) - m.twice }

// refuse has a destination refuse everything with a status.
func refuse(s *harness.Sink, status int) {
	s.SetFault(func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(status)
		return true
	})
}

// reachable tells whether somebody listens at an address.
func reachable(address string) bool {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return false
	}
	return c.Close() == nil
}
