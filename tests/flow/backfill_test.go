package flow

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

// older stores the objects of a set as they would lie there from before: nobody is told.
func older(t *testing.T, w *harness.World, set *feed.Set) (ids []string) {
	t.Helper()
	for o := range set.All() {
		if _, err := w.Cloud.Put(o.Bucket, o.Key, cloud.Object{Body: o.Body, Quiet: true, Modified: time.Now().Add(-3 * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		for _, id := range o.EventIDs {
			ids = append(ids, id.String())
		}
	}
	return ids
}

// latency is how long it takes for what is written now to be at the sink.
func latency(t *testing.T, w *harness.World, o feed.Object) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := w.Cloud.Put(o.Bucket, o.Key, cloud.Object{Body: o.Body}); err != nil {
		t.Fatal(err)
	}
	last := messages.NewID([]byte("cloudtrail"), []byte(o.EventIDs[len(o.EventIDs)-1].String())).String()
	harness.Await(t, time.Minute, "a live event at the sink", func() bool { return w.Sink.Has(last) > 0 })
	return time.Since(began)
}

func job(t *testing.T, bus *topology.Bus, id string) *topology.Job {
	t.Helper()
	j, err := bus.Job(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return &j
}

// A backfill of many objects is killed with its process and goes on; each event is there
// once, also of objects that had come live; and what is written meanwhile does not wait
// behind it.
// covers: pain 9, design section 6
func TestBackfillBehindLive(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	w.Bus = "  ack_wait: 3s\n"
	p := w.RunAll()
	config := filepath.Join(w.Dir, "all.yaml")
	var live []feed.Object
	for o := range trail(901, 60, 20).All() {
		live = append(live, o)
	}
	var ids []string
	take := func() feed.Object {
		o := live[0]
		live = live[1:]
		for _, id := range o.EventIDs {
			ids = append(ids, id.String())
		}
		return o
	}
	took := func() time.Duration { return latency(t, w, take()) }
	took() // all stages have worked once
	before := took()
	objects := 800
	if testing.Short() {
		objects = 250
	}
	old := trail(902, objects, 500)
	ids = append(ids, older(t, w, old)...)
	slow := map[string]bool{}
	for o := range old.All() {
		slow[o.Key] = true
	}
	w.Cloud.SetFault(func(op, _, key string) cloud.Fault { // so that even a fast machine has something to do
		if op == "GetObject" && slow[key] {
			return cloud.Fault{Delay: 200 * time.Millisecond}
		}
		return cloud.Fault{}
	})

	out, errOut, code := harness.Run(t, nil, "backfill", "s3://"+harness.Bucket+"/", "--config", config, "--from", "6h", "--dry-run", "--json")
	var counted struct {
		Counted topology.Progress
		Job     topology.Job
	}
	if err := json.Unmarshal([]byte(out), &counted); code != 0 || err != nil || counted.Counted.Done < uint64(objects) {
		t.Fatalf("dry run ended with %d, %v: %s %s", code, err, out, errOut)
	}
	out, errOut, code = harness.Run(t, nil, "backfill", "s3://"+harness.Bucket+"/", "--config", config, "--from", "6h", "--no-count", "--yes", "--detach", "--json", "--skip-known=false")
	if err := json.Unmarshal([]byte(out), &counted); code != 0 || err != nil {
		t.Fatalf("backfill ended with %d, %v: %s %s", code, err, out, errOut)
	}
	id := counted.Job.ID
	bus := harness.Connect(t, w.StoreURL())
	began := time.Now()
	harness.Await(t, time.Minute, "the backfill begins", func() bool { return job(t, bus, id).Progress.Done > uint64(objects/10) })
	// Where live objects stood behind the backfill, all of what is announced would go
	// first; a wave of it is announced at a time. They are counted in its first half.
	var during []time.Duration
	ahead := 0
	pass := func() {
		first := job(t, bus, id)
		during = append(during, took())
		if last := job(t, bus, id); first.Progress.Done < uint64(objects/2) {
			if last.Over() || last.Progress.Done-first.Progress.Done > uint64(objects/2) {
				t.Errorf("a live object waited for %d of %d objects of the backfill", last.Progress.Done-first.Progress.Done, objects)
			}
			ahead++
		}
	}
	for range 3 {
		pass()
	}
	p.Kill()
	bus.Close()
	w.RunAll()
	bus = harness.Connect(t, w.StoreURL())
	harness.Await(t, time.Minute, "the backfill goes on", func() bool { return job(t, bus, id).Tries > 1 })
	for !job(t, bus, id).Over() && len(live) > 0 {
		pass()
	}
	harness.Await(t, 3*time.Minute, "the backfill ends", func() bool { return job(t, bus, id).Over() })
	whole := time.Since(began)
	if j := job(t, bus, id); j.State != topology.JobDone || j.Progress.Done < uint64(objects) {
		t.Errorf("job %s: %s, %+v", j.State, j.Error, j.Progress)
	}
	slices.Sort(during)
	t.Logf("live latency: %v before; during the backfill median %v, worst %v of %d, %d of them counted; the backfill took %v",
		before, during[len(during)/2], during[len(during)-1], len(during), ahead, whole)
	if ahead == 0 {
		t.Errorf("no live object met the backfill")
	}
	distinct := map[string]bool{}
	for _, id := range ids {
		distinct[id] = true
	}
	w.AwaitDelivered(2*time.Minute, len(distinct))
	settled(t, w.StoreURL())
	harness.Verify(t, harness.Log(t, bus), ids)
}

// What nobody announced is found by a comparison with the ledger of the running process,
// and announced again.
// covers: pain 9, pain 11, design section 6
func TestReconcileFindsWhatIsMissing(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	w.RunAll()
	config := filepath.Join(w.Dir, "all.yaml")
	ids := put(t, w, trail(911, 10, 20))
	ids = append(ids, older(t, w, trail(912, 7, 20))...)
	if _, err := w.Cloud.Put(harness.Bucket, "AWSLogs/garbage.json.gz", cloud.Object{Body: []byte("\x1f\x8b\x08 this is no gzip")}); err != nil {
		t.Fatal(err)
	}
	reconcile := func(want int, args ...string) (r struct {
		Complete bool
		Job      topology.Job
		Report   struct {
			Objects, Missing, Requeued uint64
			States                     map[string]uint64
		}
	},
	) {
		t.Helper()
		out, errOut, code := harness.Run(t, nil, append([]string{"reconcile", "trail", "--config", config, "--grace", "1ms", "--json"}, args...)...)
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != want || r.Complete != (code == 0) {
			t.Fatalf("reconcile ended with %d, %v: %s %s", code, err, out, errOut)
		}
		return r
	}
	harness.Await(t, time.Minute, "all that was announced is complete or in quarantine", func() bool {
		r := reconcile(1).Report
		return r.States["complete"] == 10 && r.States["never_announced"] == 7 && r.Missing == 8 && r.States["quarantined"]+r.States["truncated"] == 1
	})
	if r := reconcile(1, "--requeue", "--yes").Report; r.Requeued != 7 {
		t.Errorf("announced again: %+v", r)
	}
	harness.Await(t, time.Minute, "what was announced again is complete", func() bool {
		r := reconcile(1).Report
		return r.States["complete"] == 17 && r.Missing == 1
	})
	harness.Verify(t, harness.Log(t, harness.Connect(t, w.StoreURL())), ids)
	if r := reconcile(0, "--bucket", "s3://"+harness.Bucket+"/", "--from", "4h", "--to", "2h").Report; r.Objects != 7 {
		t.Errorf("the older ones alone: %+v", r)
	}
	for _, c := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"reconcile", "trail"}, 1, []string{"complete 17", "AWSLogs/garbage.json.gz", "1 missing"}},
		{[]string{"reconcile", "trail", "--from", "4h", "--to", "2h"}, 0, []string{"objects: 7", "nothing is missing"}},
		{[]string{"reconcile", "trail", "--digests", "--from", "4h"}, 1, []string{"reconcile.no_digest_files"}},
		{[]string{"reconcile", "other"}, 2, []string{"no source other"}},
		{[]string{"backfill", "s3://" + harness.Bucket + "/", "--dry-run"}, 0, []string{"1 object of", "17 complete already"}},
		{[]string{"backfill", "s3://" + harness.Bucket + "/"}, 2, []string{"[y/N]", "nothing was done"}},
		{[]string{"backfill", "s3://elsewhere/"}, 2, []string{"--source"}},
		{[]string{"backfill", "s3://" + harness.Bucket + "/{dd}/"}, 2, []string{"a part of the time is missing"}},
		{[]string{"backfill", "--source", "trail", "--from", "1h"}, 1, []string{"backfill.source_has_no_api"}},
		{[]string{"backfill", "s3://" + harness.Bucket + "/", "--from", "1h", "--to", "2h"}, 2, []string{"--from"}},
	} {
		out, errOut, code := harness.Run(t, nil, append(c.args, "--config", config)...)
		for _, want := range c.want {
			if !strings.Contains(out+errOut, want) {
				t.Errorf("%v does not say %q", c.args, want)
			}
		}
		if t.Logf("penstock %v (%d)\n%s%s", c.args, code, out, errOut); code != c.code {
			t.Errorf("%v ended with %d, want %d", c.args, code, c.code)
		}
	}
}
