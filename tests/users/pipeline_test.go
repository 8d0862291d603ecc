package users

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

// pipeline is six processes and a console, each as the user of its role.
type pipeline struct {
	*testing.T
	bus   *bus
	world *harness.World
	// processes are all that were started, ready those that run, by role.
	processes []*harness.Process
	config    string
}

// run executes a command of an operator and reads its JSON into v.
func (p *pipeline) run(wantCode int, v any, args ...string) string {
	p.Helper()
	out, errOut, code := harness.Run(p.T, p.bus.as(topology.RoleOperate), args...)
	if code != wantCode {
		p.Fatalf("penstock %v: exit code %d, want %d: %s%s", args, code, wantCode, out, errOut)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(out), v); err != nil {
			p.Fatalf("%v in %s", err, out)
		}
	}
	return out + errOut
}

// operate is run with the flag that names the server.
func (p *pipeline) operate(v any, args ...string) string {
	p.Helper()
	return p.run(0, v, append(args, "--nats", "nats://"+p.bus.addr)...)
}

func (p *pipeline) stage(s topology.Stage, replica int) (*harness.Process, string) {
	p.Helper()
	process, health := p.world.RunStage(s, replica, "nats://"+p.bus.addr, p.bus.as(topology.Role(s))...)
	p.processes = append(p.processes, process)
	return process, health
}

func (p *pipeline) put(set *feed.Set) (ids []string) {
	p.Helper()
	for o := range set.All() {
		if _, err := p.world.Cloud.Put(o.Bucket, o.Key, cloud.Object{Body: o.Body}); err != nil {
			p.Fatal(err)
		}
		for _, id := range o.EventIDs {
			ids = append(ids, id.String())
		}
	}
	return ids
}

func set(seed uint64, objects, records int) *feed.Set {
	return feed.CloudTrail(feed.Options{Seed: seed, Objects: objects, RecordsPerObject: feed.Fixed(records), DuplicateShare: 0.03, Bucket: harness.Bucket})
}

// The whole pipeline works as users of least privilege: it waits for the streams, and then
// delivers, pauses, replays, parses again, redrives, backfills, hands lanes over and trims;
// the books balance, and nobody is refused anything.
//
// covers: design section 9
func TestPipelineOfUsers(t *testing.T) {
	if os.Getenv("PENSTOCK_TEST_USERS") == "" {
		t.Skip("takes a minute: PENSTOCK_TEST_USERS=1")
	}
	t.Parallel()
	p := &pipeline{T: t, bus: start(t, withStreams)}
	p.world = harness.NewWorld(t, nil)
	w := p.world
	w.Disk = "1GiB"
	w.Extra = "ledger: {store: " + filepath.Join(w.Dir, "ledger") + "}\n"
	w.Bus = "  ack_wait: 3s\n  keep: {NOTICES: 2s, PARSED: 2s, UNIQUE: 2s}\n"
	healths := map[*harness.Process]string{}
	for _, s := range topology.Stages {
		process, health := p.stage(s, 0)
		healths[process] = health
	}
	dedupe := p.processes[3]
	p.config, _ = w.Config("operate", "nats://"+p.bus.addr)
	console := harness.Start(t, "console", p.bus.as(topology.RoleOperate), "console", "--config", p.config, "--address", harness.FreeAddr(t))
	p.processes = append(p.processes, console)

	// Nobody but admin makes the streams: the others wait, and say for what.
	harness.Await(t, time.Minute, "the stages say what they wait for", func() bool {
		for _, process := range p.processes[:len(topology.Stages)] {
			if !process.Running() {
				t.Fatalf("%s ended: %s", process.Name, process.Log())
			}
			if !strings.Contains(process.Log(), "waiting until the user admin does") {
				return false
			}
		}
		return true
	})
	if out, errOut, code := harness.Run(t, p.bus.as(topology.RoleAdmin), "topology", "apply", "--config", p.config); code != 0 {
		t.Fatalf("topology apply as admin ended with %d: %s%s", code, out, errOut)
	}
	for process, health := range healths {
		harness.AwaitReady(t, process, health)
	}

	first, paused, last := set(71, 12, 300), set(72, 4, 300), set(73, 6, 300)
	ids := p.put(first)
	w.AwaitDelivered(2*time.Minute, first.Unique())

	// A pause holds, and ends.
	p.operate(nil, "destinations", "pause", "web", "--reason", "a test")
	ids = append(ids, p.put(paused)...)
	want := first.Unique() + paused.Unique()
	operate := harness.Connect(t, p.bus.url(topology.RoleOperate))
	harness.Await(t, time.Minute, "the log has what the paused destination has not", func() bool { return len(harness.Log(t, operate)) == want })
	if n := w.Sink.Distinct(); n != first.Unique() {
		t.Errorf("%d events came to a paused destination, want %d", n, first.Unique())
	}
	p.operate(nil, "destinations", "resume", "web")
	w.AwaitDelivered(time.Minute, want)

	// A lane goes to another process when its own dies.
	heir, health := p.stage(topology.Dedupe, 1)
	harness.AwaitReady(t, heir, health)
	dedupe.Kill()
	ids = append(ids, p.put(last)...)
	want += last.Unique()
	w.AwaitDelivered(2*time.Minute, want)
	if !strings.Contains(heir.Log(), "lane taken") {
		t.Error("no lane was taken over")
	}

	// An entry of each kind of stage: an object that is none, and its redrive.
	if _, err := w.Cloud.Put(harness.Bucket, "AWSLogs/123456789012/CloudTrail/eu-central-1/2026/01/01/broken.json.gz", cloud.Object{Body: []byte("this is no gzip")}); err != nil {
		t.Fatal(err)
	}
	harness.Await(t, time.Minute, "an entry in quarantine", func() bool { return len(harness.Quarantined(t, operate)) == 1 })
	p.operate(nil, "quarantine", "list", "--json")
	if out := p.operate(nil, "quarantine", "redrive", "--all", "--yes", "--json", "--reason", "a test"); !strings.Contains(out, `"done"`) {
		t.Errorf("redrive says %s", out)
	}
	harness.Await(t, time.Minute, "the entry comes back", func() bool { return len(harness.Quarantined(t, operate)) == 1 })
	p.operate(nil, "quarantine", "discard", "--all", "--yes", "--json", "--reason", "a test")
	if n := len(harness.Quarantined(t, operate)); n != 0 {
		t.Errorf("%d kinds are in quarantine after a discard", n)
	}

	var job struct{ ID, State string }
	p.operate(&job, "replay", "--to-destination", "web", "--yes", "--json", "--reason", "a test")
	if got := len(w.Sink.Replayed(job.ID)); got != want || job.State != "done" {
		t.Errorf("the replay brought %d events of %d: %+v", got, want, job)
	}
	p.operate(&job, "replay", "--reparse", "--to-destination", "web", "--yes", "--json")
	harness.Await(t, time.Minute, "what was parsed again", func() bool { return len(w.Sink.Replayed(job.ID)) >= want })
	adHoc := filepath.Join(w.Dir, "file.yaml")
	other := harness.StartSink(t)
	if err := os.WriteFile(adHoc, []byte(fmt.Sprintf("destinations:\n  - {name: forensics, type: http, url: %q}\n", other.URL)), 0o600); err != nil {
		t.Fatal(err)
	}
	p.operate(&job, "replay", "--to-file", adHoc, "--yes", "--json")
	if got := len(other.Replayed(job.ID)); got != want {
		t.Errorf("the replay to a file brought %d events of %d", got, want)
	}

	// What was there before is announced again, and known by dedupe; what was discarded is
	// named.
	var backfill struct{ Job topology.Job }
	p.run(0, &backfill, "backfill", "s3://"+harness.Bucket+"/", "--config", p.config, "--from", "6h", "--yes", "--json", "--skip-known=false")
	if backfill.Job.State != topology.JobDone || backfill.Job.Progress.Done == 0 {
		t.Errorf("backfill: %+v", backfill.Job)
	}
	p.run(1, nil, "reconcile", "trail", "--bucket", "s3://"+harness.Bucket+"/", "--config", p.config, "--from", "6h", "--yes", "--json")
	harness.Await(t, time.Minute, "the broken object in quarantine once more", func() bool { return len(harness.Quarantined(t, operate)) == 1 })
	p.operate(nil, "quarantine", "discard", "--all", "--yes", "--json", "--reason", "a test")

	harness.Await(t, time.Minute, "the ledger balances", func() bool {
		report, balanced := harness.Ledger(t, p.bus.url(topology.RoleOperate))
		return balanced && harness.Open(report) == 0
	})
	harness.Verify(t, harness.Log(t, operate), ids)
	if n := w.Sink.Events(); n < want || w.Sink.Distinct() != want {
		t.Errorf("the sink has %d different events, want %d", w.Sink.Distinct(), want)
	}

	// Each keeps its own streams.
	harness.Await(t, time.Minute, "the keepers trim", func() bool {
		for _, s := range []string{topology.Notices, topology.Parsed, topology.Unique} {
			if e, err := operate.Extent(t.Context(), s); err != nil || e.First == 1 {
				return false
			}
		}
		return true
	})

	for _, args := range [][]string{
		{"status", "--json"},
		{"topology", "show", "--json"},
		{"jobs", "list", "--all", "--json"},
		{"audit", "--json"},
		{"destinations", "status", "--json"},
		{"freshness", "--json"},
		{"consumers", "list", "--destination", "web", "--json"},
	} {
		p.operate(nil, args...)
	}
	p.run(0, nil, "topology", "diff", "--config", p.config)
	// Of doctor the bus alone is of interest: what it says of AWS is another's matter.
	if out, errOut, _ := harness.Run(t, p.bus.as(topology.RoleOperate), "doctor", "--config", p.config); !strings.Contains(out, "bus\n") {
		t.Errorf("doctor says %s%s", out, errOut)
	}

	if v := p.bus.log.violations(); len(v) != 0 {
		t.Errorf("%d violations, the first: %s", len(v), strings.Join(v[:min(10, len(v))], "\n"))
	}
	for _, process := range p.processes {
		for line := range strings.Lines(process.Log()) {
			if strings.Contains(line, "not_permitted") || strings.Contains(strings.ToLower(line), "permissions violation") {
				t.Errorf("%s says: %s", process.Name, line)
			}
		}
	}
	p.refusedToFetch()
}

// refusedToFetch has fetch's user work as parse: it is refused, and both logs say what to do.
func (p *pipeline) refusedToFetch() {
	p.Helper()
	path, _ := p.world.Config("wrong", "nats://"+p.bus.addr)
	wrong := harness.Start(p.T, "wrong", p.bus.as("fetch"), "run", "--config", path, "--stage", "parse")
	harness.Await(p.T, time.Minute, "a refusal is told", func() bool { return strings.Contains(wrong.Log(), "bus.not_permitted") })
	log := wrong.Log()
	for _, says := range []string{`"user":"fetch"`, "penstock topology users", "$JS.API."} {
		if !strings.Contains(log, says) {
			p.Errorf("the log does not say %s: %s", says, log)
		}
	}
	wrong.Kill()
	if len(p.bus.log.violations()) == 0 {
		p.Error("the server does not tell of violations: the test above cannot fail")
	}
}
