package flow

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/tests/harness"
)

// badKinds maps what the feed calls a refusal to the codes under which penstock
// keeps it.
var badKinds = map[string][]string{
	feed.BadRecord:       {"framing.bad_json", "parse.bad_json"}, // also what is neither gzip nor JSON
	feed.RecordTooLarge:  {"framing.record_too_large"},
	feed.Truncated:       {"fetch.truncated"},
	feed.TrailingGarbage: {"fetch.trailing_garbage"},
	feed.Bomb:            {"fetch.bomb"},
	feed.MissingKey:      {"fetch.no_such_key"},
	feed.AccessDenied:    {"fetch.access_denied"},
	feed.UnknownNotice:   {"ingest.unknown_notification"},
	feed.ForgedBucket:    {"ingest.bucket_not_allowed"},
}

// Every bad input of the issue, each beside good records: the good ones arrive
// once, the bad ones are in quarantine with a reason, and the books balance.
// covers: F-0, F-5, F-6, F-9, LIM-11
func TestBadInputIsKeptAndGoodRecordsArrive(t *testing.T) {
	t.Parallel()
	w := harness.NewWorld(t, nil)
	w.Extra = "fetch: {missing_key_wait: 2s, denied_attempts: 2}\n"
	w.Buckets = []string{harness.Bucket, "penstock-demo-trail"}
	story := feed.NewScenario(feed.Bad(7)...)
	w.UseQueue(story.Queue)
	w.RunAll()
	if _, err := feed.Install(t.Context(), w.Cloud, story); err != nil {
		t.Fatal(err)
	}
	w.AwaitDelivered(2*time.Minute, story.Want.Unique)
	bus := harness.Connect(t, w.StoreURL())
	want, got := map[string]int{}, map[string]int{}
	for kind, n := range story.Want.Quarantined {
		if kind == feed.Unreadable {
			kind = feed.BadRecord
		}
		want[kind] += n
	}
	defer func() {
		if t.Failed() {
			t.Logf("want %v, got %v; codes %v", want, got, harness.Quarantined(t, bus))
		}
	}()
	harness.Await(t, time.Minute, "all refusals are in quarantine", func() bool {
		got = map[string]int{}
		for code, n := range harness.Quarantined(t, bus) {
			kind := code
			for k, codes := range badKinds {
				for _, c := range codes {
					if c == code {
						kind = k
					}
				}
			}
			got[kind] += n
		}
		for kind, n := range want {
			if got[kind] < n {
				return false
			}
		}
		return true
	})
	atLeast := map[string]bool{}
	for _, s := range story.Steps {
		if s.AtLeast {
			for kind := range s.Want.Quarantined {
				atLeast[kind] = true
			}
		}
	}
	for kind := range maps.Keys(got) {
		if got[kind] != want[kind] && !atLeast[kind] {
			t.Errorf("%d refusals of kind %s, want %d", got[kind], kind, want[kind])
		}
	}
	log := harness.Log(t, bus)
	if len(log) < story.Want.Unique {
		t.Errorf("%d events are in the log, want %d", len(log), story.Want.Unique)
	}
	for id, n := range log {
		if n != 1 {
			t.Errorf("event %s is in the log %d times", id, n)
		}
	}
	report := settled(t, w.StoreURL())
	t.Log(fmt.Sprint("quarantined: ", got, "; pulls skipped: ", report["total"].(map[string]any)["pulls_skipped"]))
}
