package topology

import (
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/messages/fault"
)

// What a newer penstock needs of the streams, one of before that starts beside it must
// not take back.
func TestApplyLeavesWhatIsNewer(t *testing.T) {
	b := testBus(t, Limits{Lanes: 2})
	stream, err := b.js.Stream(t.Context(), Events)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.Subjects = append(cfg.Subjects, "penstock.later.>")
	cfg.Metadata[metaTable] = strconv.Itoa(tableVersion + 1)
	if _, err := b.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	// Even when it is set up otherwise in all else.
	changed, err := b.Apply(t.Context(), Limits{Lanes: 2, Disk: 1 << 30})
	if err != nil || len(changed) != 0 {
		t.Fatalf("an older program changed %v, %v", changed, err)
	}
	now, err := b.streamConfig(t.Context(), Events)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(now.Subjects, " "); !strings.Contains(got, "penstock.later.>") {
		t.Errorf("the stream has the subjects %s: what is newer is gone", got)
	}
	diffs, err := b.Diff(t.Context(), Limits{Lanes: 2})
	if err != nil || len(diffs) != 1 || diffs[0].Field != "table" {
		t.Errorf("diff says %v, %v", diffs, err)
	}
}

// What the server cannot change in place is refused before anything is changed.
func TestApplyRefusesWhatCannotBe(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*jetstream.StreamConfig)
		limits Limits
		code   string
	}{
		{"lanes", func(*jetstream.StreamConfig) {}, Limits{Lanes: 3}, "bus.lanes_changed"},
		{"storage", func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, Limits{Lanes: 2}, "bus.not_in_place"},
		{"retention", func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy }, Limits{Lanes: 2}, "bus.not_in_place"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := testServer(t, t.TempDir(), 256<<20)
			b := testConnect(t, e, Options{})
			made := Limits{Disk: 256 << 20, Lanes: 2}
			for _, s := range Flow {
				cfg := made.withDefaults().config(s)
				if s.Name == Ledger { // the last but one
					c.change(&cfg)
				}
				if _, err := b.js.CreateStream(t.Context(), cfg); err != nil {
					t.Fatal(err)
				}
			}
			c.limits.Disk = 128 << 20 // this could be changed
			if _, err := b.Apply(t.Context(), c.limits); fault.CodeOf(err) != c.code {
				t.Fatalf("got %v, want %s", err, c.code)
			}
			is, err := b.streamConfig(t.Context(), Notices)
			if err != nil {
				t.Fatal(err)
			}
			if want := made.config(Flow[0]).MaxBytes; is.MaxBytes != want {
				t.Errorf("%s has %d bytes: it was changed although something else could not be", Notices, is.MaxBytes)
			}
		})
	}
}

// Buckets and consumers are compared, too.
func TestDiffSeesBucketsAndConsumers(t *testing.T) {
	b := testBus(t, Limits{Lanes: 2})
	if err := b.js.DeleteKeyValue(t.Context(), reportBucket); err != nil {
		t.Fatal(err)
	}
	if err := b.js.DeleteConsumer(t.Context(), Records, ParseConsumer.Durable); err != nil {
		t.Fatal(err)
	}
	limits := Limits{Lanes: 2, Disk: 256 << 20}
	diffs, err := b.Diff(t.Context(), limits)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, d := range diffs {
		found[d.Stream+" "+d.Field] = true
	}
	if !found[reportBucket+" bucket"] || !found[Records+" consumer parse"] {
		t.Errorf("the differences are %v", diffs)
	}
	if _, err := b.Apply(t.Context(), limits); err != nil {
		t.Fatal(err)
	}
	if diffs, err = b.Diff(t.Context(), limits); err != nil || len(diffs) != 0 {
		t.Errorf("after apply: %v, %v", diffs, err)
	}
}
