package upgrade

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

// New stages go on where those of the release before have stopped, wherever that was:
// with what had come as far as one stream and no further, with half of what dedupe had to
// do, and with all of it, where nothing may come a second time.
func TestNewStagesTakeOver(t *testing.T) {
	r := load(t)
	half := map[string]uint64{}
	for _, s := range r.Streams {
		if n := len(s.Messages); n > 0 {
			half[s.Config.Name] = s.Messages[n/2].Sequence
		}
	}
	told := func(m message, stages ...topology.Stage) bool {
		for _, s := range stages {
			if m.Subject == topology.LedgerSubject(s) {
				return true
			}
		}
		return false
	}
	for _, c := range []struct {
		name string
		keep func(m message, stream string) bool
	}{
		{"NOTICES", func(m message, s string) bool { return s == topology.Notices || told(m, topology.Ingest) }},
		{"RECORDS", func(m message, s string) bool {
			return s == topology.Records || s == topology.Quarantine || told(m, topology.Ingest, topology.Fetch)
		}},
		{"PARSED", func(m message, s string) bool {
			return s == topology.Parsed || s == topology.Quarantine || told(m, topology.Ingest, topology.Fetch, topology.Parse)
		}},
		{"half of UNIQUE", func(m message, s string) bool {
			return s == topology.Parsed || s == topology.Quarantine || s == topology.Unique && m.Sequence <= half[s] ||
				told(m, topology.Ingest, topology.Fetch, topology.Parse)
		}},
		{"UNIQUE and SEEN", func(m message, s string) bool {
			return slices.Contains([]string{topology.Parsed, topology.Unique, topology.Seen, topology.Quarantine, "KV_penstock_leases"}, s) ||
				told(m, topology.Ingest, topology.Fetch, topology.Parse)
		}},
		{"EVENTS", func(m message, s string) bool {
			return slices.Contains([]string{topology.Parsed, topology.Unique, topology.Seen, topology.Events, topology.Quarantine, "KV_penstock_leases"}, s) ||
				told(m, topology.Ingest, topology.Fetch, topology.Parse, topology.Route)
		}},
		{"all, and nothing acknowledged", func(message, string) bool { return true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := harness.NewWorld(t, nil)
			for _, o := range r.Objects {
				if _, err := w.Cloud.Put(harness.Bucket, o.Key, cloud.Object{Body: o.Body, Quiet: true}); err != nil {
					t.Fatal(err)
				}
			}
			n := harness.StartNATS(t, t.TempDir())
			r.restore(t, connect(t, n.URL()), c.keep)
			for _, s := range topology.Stages {
				p, health := w.RunStage(s, 0, n.URL())
				harness.AwaitReady(t, p, health)
			}
			distinct := slices.Compact(slices.Sorted(slices.Values(r.EventIDs)))
			w.AwaitDelivered(2*time.Minute, len(distinct))
			var report map[string]any
			harness.Await(t, time.Minute, "the ledger balances", func() bool {
				var balanced bool
				report, balanced = harness.Ledger(t, n.URL())
				return balanced && harness.Open(report) == 0
			})
			b := harness.Connect(t, n.URL())
			harness.Verify(t, harness.Log(t, b), r.EventIDs)
			if q := harness.Quarantined(t, b); len(q) == 0 {
				t.Error("quarantine is empty, but one record is no event")
			}
		})
	}
}

// topology apply brings the streams of the release before up to date while they are in
// use, and says before what it will do.
func TestApplyMigrates(t *testing.T) {
	t.Parallel()
	r := load(t)
	w := harness.NewWorld(t, nil)
	n := harness.StartNATS(t, t.TempDir())
	js := connect(t, n.URL())
	r.restore(t, js, func(message, string) bool { return true })
	path, _ := w.Config("apply", n.URL())
	diff, _, code := harness.Run(t, nil, "topology", "diff", "--config", path)
	if code != 1 {
		t.Fatalf("diff ended with %d and says %q", code, diff)
	}
	for _, want := range []string{"AUDIT", "penstock.again.>", "penstock_jobs"} {
		if !strings.Contains(diff, want) {
			t.Errorf("diff does not name %s:\n%s", want, diff)
		}
	}
	dry, _, code := harness.Run(t, nil, "topology", "apply", "--config", path, "--dry-run")
	if again, _, _ := harness.Run(t, nil, "topology", "diff", "--config", path); code != 0 || again != diff || !strings.Contains(dry, "penstock.again.>") {
		t.Fatalf("a dry run ended with %d, says %q, and what differs was %q and is %q", code, dry, diff, again)
	}
	if _, stderr, code := harness.Run(t, nil, "topology", "apply", "--config", path); code != 0 {
		t.Fatalf("apply ended with %d: %s", code, stderr)
	}
	if diff, _, code = harness.Run(t, nil, "topology", "diff", "--config", path); code != 0 {
		t.Errorf("after apply there are still differences:\n%s", diff)
	}
	// Nothing is gone, and who read goes on where it was.
	for _, s := range r.Streams {
		now, err := js.Stream(t.Context(), s.Config.Name)
		if err != nil {
			t.Fatal(err)
		}
		if got := now.CachedInfo().State.Msgs; got < uint64(len(s.Messages)) {
			t.Errorf("%s has %d messages and had %d", s.Config.Name, got, len(s.Messages))
		}
		for _, c := range s.Consumers {
			if _, err := now.Consumer(t.Context(), c.Durable); err != nil {
				t.Errorf("consumer %s of %s: %v", c.Durable, s.Config.Name, err)
			}
		}
	}
}
