package sources

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
)

// history is an emulated CloudTrail and a server for the poller that reads it.
type history struct {
	*cloud.Cloud
	server *pollServer
	now    time.Time
}

func newHistory(t testing.TB) *history {
	t.Helper()
	c, err := cloud.Start(t.Context(), cloud.Options{AccessKeys: []string{"AKIATEST"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return &history{Cloud: c, server: newPollServer(t), now: time.Now().UTC().Truncate(time.Second)}
}

// config reads the last hours in quarters of an hour.
func (h *history) config(regions ...string) CloudTrailConfig {
	cfg := defaultCloudTrail()
	cfg.PollConfig = fastPoll()
	cfg.RequestsPerSecond = 200
	cfg.Regions, cfg.TimeSlot, cfg.SecondLook = regions, 15*time.Minute, 0
	cfg.StartTime = h.now.Add(-3 * time.Hour).Format(time.RFC3339)
	cfg.AWS = awsclient.Config{EndpointURL: h.URL(), AccessKey: "AKIATEST", SecretKey: config.NewSecret("secret")}
	return cfg
}

// happen adds n events to a region, one each minute, the last an hour ago.
func (h *history) happen(region string, n int) (ids []string) {
	for i := range n {
		id := fmt.Sprintf("%s-%04d", region, i)
		name, source := "ListBuckets", "s3.amazonaws.com"
		if i%5 == 0 {
			name, source = "AssumeRole", "sts.amazonaws.com"
		}
		h.CloudTrail().Add(region, cloud.TrailEvent{
			ID: id, Name: name, Source: source, Username: "user-a", Time: h.now.Add(-time.Hour - time.Duration(n-i)*time.Minute/2),
		})
		ids = append(ids, id)
	}
	return ids
}

func (h *history) open(t testing.TB, process string, cfg CloudTrailConfig) Source {
	t.Helper()
	return h.openWith(t, h.server.deps(t, process), cfg)
}

func (h *history) openWith(t testing.TB, deps Deps, cfg CloudTrailConfig) Source {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := Catalog.Open(t.Context(), "cloudtrail_api", cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// idsOf are the event ids of records, once each, in order.
func idsOf(t testing.TB, records []string) []string {
	t.Helper()
	var ids []string
	for _, r := range records {
		var e struct {
			EventID string `json:"eventID"`
		}
		if err := json.Unmarshal([]byte(r), &e); err != nil {
			t.Fatalf("record %q: %v", r, err)
		}
		ids = append(ids, e.EventID)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (h *history) ids(t testing.TB) []string {
	t.Helper()
	return idsOf(t, h.server.stored(t).records)
}

// covers: SYS-9, DEV-14, DEV-71, DEV-72, DEV-91, DEV-92, F-10, LIM-7: the slots of
// two regions are read page by page by two replicas, each event once, and not
// beyond the gap.
func TestCloudTrailSlots(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	want := append(h.happen("eu-west-1", 120), h.happen("us-east-1", 90)...)
	h.CloudTrail().Add("eu-west-1", cloud.TrailEvent{ID: "too young", Name: "X", Source: "s3.amazonaws.com", Time: h.now})
	h.CloudTrail().PageSize(7)
	first, second := newLines(), newLines()
	a, b := h.server.deps(t, "a"), h.server.deps(t, "b")
	a.Log, b.Log = slog.New(first), slog.New(second)
	stopA := begin(t, h.openWith(t, a, h.config("eu-west-1", "us-east-1")))
	stopB := begin(t, h.openWith(t, b, h.config("eu-west-1", "us-east-1")))
	slices.Sort(want)
	eventually(t, "all events are stored", func() bool { return slices.Equal(h.ids(t), want) })
	// A slot that is planned anew at each tick keeps both at work for a while.
	eventually(t, "both have pulled", func() bool { return len(first.with("pull done")) > 0 && len(second.with("pull done")) > 0 })
	if err := errors.Join(stopA(), stopB()); err != nil {
		t.Error(err)
	}
	got := h.server.stored(t)
	if len(got.records) != len(want) {
		t.Errorf("%d records for %d events: slots were read twice", len(got.records), len(want))
	}
	for _, o := range got.origins {
		if o.GetApi() != "cloudtrail:LookupEvents" || o.GetRegion() == "" || !strings.Contains(o.GetResource(), "Z/") {
			t.Errorf("origin %v", o)
		}
	}
	for _, w := range h.CloudTrail().Windows() {
		if w.End.Sub(w.Start) > 15*time.Minute || w.End.After(time.Now().Add(-15*time.Minute)) {
			t.Errorf("asked for %v to %v", w.Start, w.End)
		}
	}
}

// lines is the handler of a log, kept for a test.
type lines struct {
	mu   *sync.Mutex
	text *bytes.Buffer
	slog.Handler
}

func newLines() *lines {
	l := &lines{mu: &sync.Mutex{}, text: &bytes.Buffer{}}
	l.Handler = slog.NewTextHandler(locked{l}, &slog.HandlerOptions{Level: slog.LevelDebug})
	return l
}

type locked struct{ l *lines }

func (w locked) Write(p []byte) (int, error) {
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	return w.l.text.Write(p)
}

// with returns the lines that hold all of some texts.
func (l *lines) with(texts ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			found = append(found, line)
		}
	}
	return found
}

// covers: DEV-3, DEV-96, F-10, LIM-3, LIM-7: throttled in every form, cut off, page
// tokens expired, credentials expired and denied for a while, and the process ended
// in the middle of pages again and again: each event is stored, and what comes twice
// has the same id.
func TestCloudTrailRough(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	want := h.happen("eu-west-1", 150)
	h.CloudTrail().PageSize(9)
	var n atomic.Int64
	h.SetFault(func(op, name, _ string) cloud.Fault {
		if op != "LookupEvents" || name != "eu-west-1" {
			t.Errorf("the fault function was asked about %s of %s", op, name)
		}
		i := n.Add(1)
		if i > 60 {
			return cloud.Fault{}
		}
		switch i % 12 {
		case 2:
			return cloud.Fault{Code: "ThrottlingException"}
		case 3:
			return cloud.Fault{Status: 429, Code: "TooManyRequestsException"}
		case 5:
			h.CloudTrail().ExpireTokens()
		case 7:
			return cloud.Fault{Cut: 100}
		case 8:
			return cloud.Fault{Status: 400, Code: []string{"ExpiredTokenException", "AccessDeniedException", "RequestTimeTooSkewed"}[i%3]}
		case 10:
			return cloud.Fault{Status: 503, Code: "ServiceUnavailable", RetryAfter: "0"}
		}
		return cloud.Fault{}
	})
	cfg := h.config("eu-west-1")
	cfg.TimeSlot = time.Hour // several pages each
	for round := range 6 {
		stop := begin(t, h.open(t, fmt.Sprintf("round %d", round), cfg))
		calls := h.Calls("LookupEvents")
		eventually(t, "some pages are read", func() bool { return h.Calls("LookupEvents") >= calls+4 })
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	begin(t, h.open(t, "last", cfg))
	slices.Sort(want)
	eventually(t, "all events are stored", func() bool { return slices.Equal(h.ids(t), want) })
	got := h.server.stored(t)
	if all := got.distinct(); len(all) != len(want) {
		t.Errorf("%d different records for %d events", len(all), len(want))
	}
	for _, p := range got.report.Pulls {
		if p.As != "events" || p.End != "complete" {
			t.Errorf("pull %+v", p)
		}
	}
}

// covers: DEV-70, DEV-73, DEV-93, DEV-95, F-10: what the configuration leaves out is
// counted by reason in the ledger and the statistics, and nothing else is missing.
func TestCloudTrailLeavesOut(t *testing.T) {
	for _, wide := range []bool{false, true} {
		t.Run(fmt.Sprintf("wide=%v", wide), func(t *testing.T) {
			t.Parallel()
			h := newHistory(t)
			h.happen("us-east-1", 40) // 8 of them AssumeRole of sts
			at := h.now.Add(-90 * time.Minute)
			h.CloudTrail().Add("us-east-1",
				cloud.TrailEvent{ID: "elsewhere", Name: "GetUser", Source: "s3.amazonaws.com", Region: "eu-west-1", Time: at},
				cloud.TrailEvent{ID: "dropped", Name: "GetObject", Source: "s3.amazonaws.com", Time: at},
				cloud.TrailEvent{ID: "outer", Name: "PutX", Source: "s3.amazonaws.com", Username: "user \"b\"", Time: at, Record: "-"},
				cloud.TrailEvent{ID: "other service", Name: "Y", Source: "ec2.amazonaws.com", Time: at},
			)
			cfg := h.config("us-east-1")
			cfg.Sources, cfg.DropEventNames = []string{"s3", "sts.amazonaws.com"}, []string{"GetObject", "AssumeRole"}
			if wide {
				cfg.Sources = append(cfg.Sources, "iam", "kms", "rds")
			}
			log := newLines()
			deps := h.server.deps(t, "a")
			deps.Log = slog.New(log)
			begin(t, h.openWith(t, deps, cfg))
			eventually(t, "all wanted events are stored", func() bool { return len(h.ids(t)) == 33 })
			eventually(t, "all is counted", func() bool {
				skipped := h.server.stored(t).report.Total.Skipped
				return skipped[whyEventName] == 9 && skipped[whyOtherRegion] == 1
			})
			total := h.server.stored(t).report.Total
			services := map[bool]uint64{false: 0, true: 1}[wide] // else it is not asked for
			if total.Skipped[whyEventSource] != services || total.Records != 33+9+1+services {
				t.Errorf("ledger %+v", total)
			}
			if len(log.with("pull done", "other_region=1")) != 1 || len(log.with("time slots are planned", "slots=")) != 1 {
				t.Error("the statistics lack other_region, or the plan")
			}
			for _, w := range h.CloudTrail().Windows() {
				if wide != (w.Attribute == "") {
					t.Errorf("asked for %+v", w)
				}
			}
			i := slices.IndexFunc(h.server.stored(t).records, func(r string) bool { return strings.Contains(r, "outer") })
			var outer map[string]any
			if err := json.Unmarshal([]byte(h.server.stored(t).records[i]), &outer); err != nil || outer["eventName"] != "PutX" || outer["awsRegion"] != "us-east-1" {
				t.Errorf("record made of the outer fields: %v, %v", outer, err)
			}
		})
	}
}

// covers: DEV-14, DEV-97, F-10: a start before the 90 days is cut with a warning, a
// cursor that is older is a gap, and end_time is where it ends.
func TestCloudTrailBounds(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.CloudTrail().Add("eu-west-1",
		cloud.TrailEvent{ID: "old", Name: "X", Source: "s3.amazonaws.com", Time: h.now.Add(-80 * 24 * time.Hour)},
		cloud.TrailEvent{ID: "before the end", Name: "X", Source: "s3.amazonaws.com", Time: h.now.Add(-2*time.Hour - time.Second)},
		cloud.TrailEvent{ID: "from the bucket", Name: "X", Source: "s3.amazonaws.com", Time: h.now.Add(-2 * time.Hour)},
	)
	cfg := h.config("eu-west-1")
	cfg.TimeSlot = 24 * time.Hour
	cfg.StartTime, cfg.EndTime = h.now.Add(-500*24*time.Hour).Format(time.RFC3339), h.now.Add(-2*time.Hour).Format(time.RFC3339)
	log := newLines()
	deps := h.server.deps(t, "a")
	deps.Log = slog.New(log)
	s := h.openWith(t, deps, cfg)
	stop := begin(t, s)
	eventually(t, "it is done", func() bool { return len(log.with("all is read up to end_time")) == 1 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	if got, want := h.ids(t), []string{"before the end", "old"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	if len(log.with("level=WARN", "90 days")) != 1 {
		t.Error("no warning about the 90 days")
	}

	c, err := deps.Bus.Cursor(t.Context(), "poll", "eu-west-1 management")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Set(t.Context(), []byte(`{"until":"2020-01-01T00:00:00Z"}`)); err != nil {
		t.Fatal(err)
	}
	begin(t, h.openWith(t, deps, cfg))
	eventually(t, "the gap is told", func() bool { return len(log.with("level=ERROR", "there is a gap", "from=2020-01-01T00:00:00")) == 1 })
}

// covers: DEV-40, DEV-161, F-10: the refused call is named with the permission it
// needs, for a region alone the others go on.
func TestCloudTrailDenied(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	want := h.happen("us-east-1", 10)
	h.SetFault(func(_, region, _ string) cloud.Fault {
		if region == "eu-west-1" {
			return cloud.Fault{Status: 400, Code: "AccessDeniedException"}
		}
		return cloud.Fault{}
	})
	log := newLines()
	deps := h.server.deps(t, "a")
	deps.Log = slog.New(log)
	s := h.openWith(t, deps, h.config("eu-west-1", "us-east-1"))
	begin(t, s)
	eventually(t, "the other region is read", func() bool { return slices.Equal(h.ids(t), want) })
	eventually(t, "it is said what is denied", func() bool { return len(log.with("level=ERROR", "cloudtrail:LookupEvents", "aws.access_denied")) > 0 })
	eventually(t, "the source counts as up", func() bool { return s.Health() == nil })
}

// covers: F-10: insights are asked for as such.
func TestCloudTrailInsights(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	h.CloudTrail().Add("eu-west-1", cloud.TrailEvent{ID: "insight", Name: "RunInstances", Source: "ec2.amazonaws.com", Insight: true, Time: h.now.Add(-30 * time.Minute)})
	cfg := h.config("eu-west-1")
	cfg.Category, cfg.TimeSlot, cfg.SecondLook, cfg.StartTime = TrailBoth, 15*time.Minute, time.Hour, ""
	cfg.StartTime = h.now.Add(-40 * time.Minute).Format(time.RFC3339)
	begin(t, h.open(t, "a", cfg))
	eventually(t, "the insight is stored", func() bool { return slices.Equal(h.ids(t), []string{"insight"}) })
}

// A slot that was read already is read again when it is old enough.
func TestCloudTrailSecondLook(t *testing.T) {
	t.Parallel()
	h := newHistory(t)
	want := h.happen("eu-west-1", 20)
	cfg := h.config("eu-west-1")
	cfg.TimeSlot, cfg.SecondLook = time.Minute, 20*time.Minute
	deps := h.server.deps(t, "a")
	live, err := deps.Bus.Cursor(t.Context(), "poll", "eu-west-1 management")
	if err != nil {
		t.Fatal(err)
	}
	again, err := deps.Bus.Cursor(t.Context(), "poll", "eu-west-1 management again")
	if err != nil {
		t.Fatal(err)
	}
	value := func(ago time.Duration) []byte {
		return fmt.Appendf(nil, `{"until":%q}`, h.now.Add(-ago).Truncate(time.Minute).Format(time.RFC3339))
	}
	if err := errors.Join(live.Set(t.Context(), value(16*time.Minute)), again.Set(t.Context(), value(75*time.Minute))); err != nil {
		t.Fatal(err)
	}
	begin(t, h.openWith(t, deps, cfg))
	eventually(t, "what became visible late is stored", func() bool { return slices.Equal(h.ids(t), want) })
	for _, w := range h.CloudTrail().Windows() {
		if w.End.After(h.now.Add(-20*time.Minute)) && w.Start.Before(h.now.Add(-16*time.Minute-time.Minute)) {
			t.Errorf("asked for %v to %v, which is neither", w.Start, w.End)
		}
	}
}

func TestTrailCursor(t *testing.T) {
	at := func(m int) time.Time { return time.Unix(1767600000, 0).UTC().Add(time.Duration(m) * time.Minute) }
	c := trailCursor{Until: at(0)}
	steps := []struct {
		from, to int
		changed  bool
		until    int
		done     []stretch
	}{
		{20, 30, true, 0, []stretch{{at(20), at(30)}}},
		{10, 15, true, 0, []stretch{{at(10), at(15)}, {at(20), at(30)}}},
		{15, 20, true, 0, []stretch{{at(10), at(30)}}},
		{12, 18, true, 0, []stretch{{at(10), at(30)}}},
		{0, 10, true, 30, nil},
		{0, 10, false, 30, nil},
		{25, 35, true, 35, nil},
	}
	for i, s := range steps {
		if changed := c.add(at(s.from), at(s.to)); changed != s.changed || !c.Until.Equal(at(s.until)) || !slices.Equal(c.Done, s.done) {
			t.Fatalf("step %d: %v, %+v", i, changed, c)
		}
	}
	tr := &trail{cfg: CloudTrailConfig{TimeSlot: time.Hour}}
	c = trailCursor{Until: at(-20), Done: []stretch{{at(60), at(120)}, {at(130), at(140)}}}
	var got []string
	for _, s := range tr.cut(trailLane{name: "l"}, c, at(200)) {
		slot := s.data.(trailSlot)
		got = append(got, fmt.Sprint(slot.from.Sub(at(0)).Minutes(), " ", slot.to.Sub(at(0)).Minutes()))
	}
	if want := []string{"-20 0", "0 60", "120 130", "140 180", "180 200"}; !slices.Equal(got, want) {
		t.Errorf("slots %q, want %q", got, want)
	}
	// A slot that is being read must stay the same piece of work while time goes on.
	earlier, later := tr.cut(trailLane{name: "l"}, trailCursor{Until: at(0)}, at(1)), tr.cut(trailLane{name: "l"}, trailCursor{Until: at(0)}, at(2))
	if earlier[0].name != later[0].name {
		t.Errorf("the slot that is not full yet is %q, then %q", earlier[0].name, later[0].name)
	}
	if n := len(tr.cut(trailLane{name: "l"}, trailCursor{Until: at(0)}, at(60*1000))); n != openSlots {
		t.Errorf("%d open slots, want %d", n, openSlots)
	}
}

// covers: DEV-148, DEV-162.
func TestCloudTrailConfig(t *testing.T) {
	bad := defaultCloudTrail()
	bad.Period, bad.Jitter, bad.Parallel, bad.RequestsPerSecond = 0, -1, 0, -1
	bad.GapUntilNow, bad.TimeSlot, bad.SecondLook = -1, 0, -1
	bad.StartTime, bad.EndTime = "yesterday", "2026-13-01"
	bad.Regions, bad.Sources, bad.DropEventNames = []string{"eu-west-1", "eu-west-1", "Nowhere"}, []string{""}, []string{""}
	err := bad.Validate()
	for _, key := range []string{
		"period", "jitter", "parallel", "requests_per_second", "gap_until_now", "time_slot", "second_look", "start_time", "end_time",
		"regions[1]", "regions[2]", "sources[0]", "drop_event_names[0]",
	} {
		if err == nil || !strings.Contains(err.Error(), key+":") {
			t.Errorf("%s is not among the problems: %v", key, err)
		}
	}
	if err := defaultCloudTrail().Validate(); err != nil {
		t.Error(err)
	}
}
