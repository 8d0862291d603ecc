package upgrade

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

// before is the commit of the release before.
const before = "ba8b91e"

// binaryBefore builds penstock as it was, or skips the test: a clone may not have the
// commit, and a machine not the modules of then.
func binaryBefore(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("PENSTOCK_BEFORE"); path != "" && path != "build" {
		return path
	} else if path == "" {
		t.Skip("PENSTOCK_BEFORE is not set: build, or the path of a penstock of the release before")
	}
	dir := t.TempDir()
	tree, path := filepath.Join(dir, "tree"), filepath.Join(dir, "penstock")
	git := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", harness.Root()}, args...)...)
		return cmd.CombinedOutput()
	}
	if out, err := git("worktree", "add", "--detach", tree, before); err != nil {
		t.Skipf("commit %s is not in this clone: %v: %s", before, err, out)
	}
	t.Cleanup(func() {
		cmd := exec.CommandContext(context.Background(), "git", "-C", harness.Root(), "worktree", "remove", "--force", tree) // the test's context has ended
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Logf("remove the worktree: %v: %s", err, out)
		}
	})
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./services/penstock")
	build.Dir = tree
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("%s cannot be built here: %v: %s", before, err, out)
	}
	return path
}

// Two replicas of each stage are replaced one at a time by new ones while objects come,
// the two releases side by side, and then back again. Every event is in the log once.
func TestRollingUpgradeAndBack(t *testing.T) {
	old := binaryBefore(t)
	now := harness.Binary(t)
	w := harness.NewWorld(t, nil)
	w.Bus = "  ack_wait: 10s\n"
	n := harness.StartNATS(t, t.TempDir())

	const replicas = 2
	running := map[topology.Stage][]*harness.Process{}
	count := 0
	start := func(binary string, s topology.Stage) *harness.Process {
		count++
		name := fmt.Sprintf("%s-%d", s, count)
		path, health := w.Config(name, n.URL())
		p := harness.StartBinary(t, binary, name, nil, "run", "--config", path, "--stage", string(s), "--nats", n.URL())
		harness.AwaitReady(t, p, health)
		return p
	}
	for _, s := range topology.Stages {
		for range replicas {
			running[s] = append(running[s], start(old, s))
		}
	}

	feeding, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	var ids []string
	var feeder sync.WaitGroup
	feeder.Go(func() {
		tick := time.NewTicker(150 * time.Millisecond)
		defer tick.Stop()
		set := feed.CloudTrail(feed.Options{Seed: 62, Objects: 5000, RecordsPerObject: feed.Fixed(100), DuplicateShare: 0.05, Bucket: harness.Bucket})
		for o := range set.All() {
			select {
			case <-feeding.Done():
				return
			case <-tick.C:
			}
			if _, err := w.Cloud.Put(o.Bucket, o.Key, cloud.Object{Body: o.Body}); err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			for _, id := range o.EventIDs {
				ids = append(ids, id.String())
			}
			mu.Unlock()
		}
	})
	defer feeder.Wait()
	defer stop()
	flows := func(what string) {
		t.Helper()
		from := w.Sink.Distinct()
		harness.Await(t, 2*time.Minute, "events arrive "+what, func() bool { return w.Sink.Distinct() >= from+100 })
	}
	flows("with the release before")

	replace := func(binary string, s topology.Stage, i int) {
		p := running[s][i]
		p.Signal(os.Interrupt)
		if code := p.Wait(time.Minute); code != 0 {
			t.Errorf("%s ended with %d", p.Name, code)
		}
		running[s][i] = start(binary, s)
	}
	if _, stderr, code := harness.Run(t, nil, "topology", "apply", "--nats", n.URL(), "--config", filepath.Join(w.Dir, "fetch-3.yaml")); code != 0 {
		t.Fatalf("topology apply ended with %d: %s", code, stderr)
	}
	for i := range replicas {
		for _, s := range topology.Stages {
			replace(now, s, i)
		}
		flows(fmt.Sprintf("with %d new of %d replicas", i+1, replicas))
	}
	for i := range replicas {
		for j := range topology.Stages {
			replace(old, topology.Stages[len(topology.Stages)-1-j], i)
		}
		flows(fmt.Sprintf("with %d of %d replicas back", i+1, replicas))
	}
	stop()
	feeder.Wait()
	distinct := map[string]bool{}
	for _, id := range ids {
		distinct[id] = true
	}
	w.AwaitDelivered(2*time.Minute, len(distinct))
	var report map[string]any
	harness.Await(t, 2*time.Minute, "the ledger balances", func() bool {
		var balanced bool
		report, balanced = harness.Ledger(t, n.URL())
		return balanced && harness.Open(report) == 0
	})
	harness.Verify(t, harness.Log(t, harness.Connect(t, n.URL())), ids)
	t.Logf("%d replacements, %d events of %d at the sink, %d of them more than once", 2*replicas*len(topology.Stages), w.Sink.Distinct(), len(distinct), w.Sink.Events()-w.Sink.Distinct())
}
