package flow

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/tests/harness"
)

// command runs penstock and reads the JSON that it prints into v, unless that is nil.
func command(t *testing.T, url string, wantCode int, v any, args ...string) string {
	t.Helper()
	out, errOut, code := harness.Run(t, nil, append(args, "--nats", url)...)
	if code != wantCode {
		t.Fatalf("penstock %v: exit code %d, want %d: %s%s", args, code, wantCode, out, errOut)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(out), v); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
	}
	return out + errOut
}

// repeated checks that a replay has brought the events of sets, and no others. Twice is
// how many came more than once.
func repeated(t *testing.T, sink *harness.Sink, replay string, sets ...*feed.Set) (twice int) {
	t.Helper()
	got, missing := sink.Replayed(replay), 0
	want := map[string]bool{}
	for _, s := range sets {
		for id := range idsOf(s) {
			want[id] = true
		}
	}
	for id := range want {
		switch n := got[id]; {
		case n == 0:
			missing++
		case n > 1:
			twice++
		}
	}
	if missing > 0 || len(got) != len(want)-missing {
		t.Errorf("replay %s: %d of %d events are missing, and %d others came", replay, missing, len(want), len(got)-(len(want)-missing))
	}
	return twice
}

// A replay goes on beside live events and over kill -9 of all there is: nothing of it is
// missing, and no live event comes twice. Then the records are parsed again, for the one
// destination alone.
//
// covers: pain 4, design section 6
func TestReplayOverKill(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	other := harness.StartSink(t)
	w.Destination = second("other", other.URL)
	w.Bus = "  ack_wait: 3s\n"
	before, during, after := trail(41, 10, 300), trail(42, 4, 200), trail(43, 4, 200)
	path, health := w.Config("all", "")
	p := harness.Start(t, "penstock", nil, "run", "--config", path)
	harness.AwaitReady(t, p, health)
	put(t, w, before)
	arrive(t, "web", w.Sink, before.Unique())
	arrive(t, "other", other, before.Unique())

	type job struct {
		ID         string `json:"id"`
		State      string `json:"state"`
		Progress   struct{ Done, Total, Failed int }
		Checkpoint json.RawMessage
	}
	var counts struct{ Events int }
	command(t, w.StoreURL(), 0, &counts, "replay", "--to-destination", "web", "--dry-run", "--json")
	if counts.Events != before.Unique() {
		t.Errorf("the dry run counts %d events of %d", counts.Events, before.Unique())
	}
	for _, wrong := range []struct {
		says string
		code int
		args []string
	}{
		{"those that run are", 2, []string{"--to-destination", "webb"}},
		{"line 1", 2, []string{"--to-destination", "web", "--where", "event.type = 'x'"}},
		{"nothing to replay", 1, []string{"--to-destination", "web", "--source", "nobody", "--yes"}},
		{"before --to", 2, []string{"--to-destination", "web", "--from", "1h", "--to", "2h"}},
	} {
		if out := command(t, w.StoreURL(), wrong.code, nil, append([]string{"replay"}, wrong.args...)...); !strings.Contains(out, wrong.says) {
			t.Errorf("%v says %q", wrong.args, out)
		}
	}

	var j job
	command(t, w.StoreURL(), 0, &j, "replay", "--to-destination", "web", "--rate", "400", "--yes", "--detach", "--json", "--reason", "a test")
	put(t, w, during) // live, beside it
	arrive(t, "web", w.Sink, before.Unique()+during.Unique())
	arrive(t, "other", other, before.Unique()+during.Unique())
	harness.Await(t, time.Minute, "the live events to be confirmed", func() bool {
		return status(t, w.StoreURL(), "web").LagFrames == 0
	})
	harness.Await(t, time.Minute, "the replay to be in its middle", func() bool { return len(w.Sink.Replayed(j.ID)) > 300 })
	p.Kill()
	middle := len(w.Sink.Replayed(j.ID))
	p = harness.Start(t, "penstock", nil, "run", "--config", path)
	harness.AwaitReady(t, p, health)
	put(t, w, after)
	arrive(t, "web", w.Sink, before.Unique()+during.Unique()+after.Unique())
	command(t, w.StoreURL(), 0, &j, "jobs", "follow", j.ID, "--json")
	twice := repeated(t, w.Sink, j.ID, before)
	if j.State != "done" || j.Progress.Total != before.Unique() || j.Progress.Done != before.Unique() || middle >= before.Unique() {
		t.Errorf("%d came before the kill: %+v", middle, j)
	}
	t.Logf("%d of %d events came before the kill, %d twice", middle, before.Unique(), twice)
	holds(t, "live events", w.Sink, before, during, after)

	var again job
	command(t, w.StoreURL(), 0, &again, "replay", "--reparse", "--to-destination", "web", "--yes", "--json")
	all := before.Unique() + during.Unique() + after.Unique()
	harness.Await(t, time.Minute, "what was parsed again", func() bool { return len(w.Sink.Replayed(again.ID)) >= all })
	repeated(t, w.Sink, again.ID, before, during, after)
	holds(t, "the other destination", other, before, during, after)
	settled(t, w.StoreURL())

	// To a destination that nobody has, by the command itself.
	third, adHoc := harness.StartSink(t), filepath.Join(w.Dir, "forensics.yaml")
	if err := os.WriteFile(adHoc, []byte("destinations:\n"+second("forensics", third.URL)), 0o600); err != nil {
		t.Fatal(err)
	}
	var alone job
	command(t, w.StoreURL(), 0, &alone, "replay", "--to-file", adHoc, "--where", `has(event.doc.eventID)`, "--yes", "--json")
	repeated(t, third, alone.ID, before, during, after)
	if third.Distinct() != 0 || alone.Progress.Done != all {
		t.Errorf("%d live events went to an ad hoc destination: %+v", third.Distinct(), alone)
	}
	if out := command(t, w.StoreURL(), 0, nil, "jobs", "list", "--all"); !strings.Contains(out, j.ID) || !strings.Contains(out, again.ID) {
		t.Errorf("jobs list says %q", out)
	}
}
