package sources

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/topology"
)

// watched is an emulated CloudWatch and GuardDuty, and a server for what polls them.
type watched struct {
	*cloud.Cloud
	server *pollServer
	now    time.Time
}

func newWatched(t testing.TB) *watched {
	t.Helper()
	c, err := cloud.Start(t.Context(), cloud.Options{AccessKeys: []string{"AKIATEST"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return &watched{Cloud: c, server: newPollServer(t), now: time.Now().UTC()}
}

func (w *watched) aws() awsclient.Config {
	return awsclient.Config{EndpointURL: w.URL(), Region: "us-east-1", AccessKey: "AKIATEST", SecretKey: config.NewSecret("secret")}
}

// run runs a source in a process of its own, with a change to its dependencies.
func (w *watched) run(t testing.TB, process, kind string, cfg interface{ Validate() error }, change func(*Deps)) (Source, func() error) {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	deps := w.server.deps(t, process)
	if change != nil {
		change(&deps)
	}
	s, err := Catalog.Open(t.Context(), kind, cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	return s, begin(t, s)
}

// frail is an outbox that fails some of its flushes: after all is stored, as when a
// process is killed before it can move the cursor, or before.
type frail struct {
	topology.Outbox
	n *atomic.Int64
}

func (f frail) Publish(ctx context.Context, m topology.Message) error {
	if f.n.Load()%4 == 1 {
		f.n.Add(1)
		return errors.New("killed before the page was stored")
	}
	return f.Outbox.Publish(ctx, m)
}

func (f frail) Flush(ctx context.Context) error {
	err := f.Outbox.Flush(ctx)
	if f.n.Add(1)%4 == 3 {
		return errors.New("killed before the cursor was moved")
	}
	return err
}

// frailOutboxes makes a source's process die often, up to a number of times.
func frailOutboxes(most int64) func(*Deps) {
	var n atomic.Int64
	return func(d *Deps) {
		sound := d.NewOutbox
		d.NewOutbox = func() topology.Outbox {
			if n.Load() > most {
				return sound()
			}
			return frail{sound(), &n}
		}
	}
}

func (w *watched) logsConfig(groups ...string) CloudWatchLogsConfig {
	cfg := defaultCloudWatchLogs()
	cfg.PollConfig = fastPoll()
	cfg.RequestsPerSecond = 500
	cfg.LogGroups, cfg.AWS = groups, w.aws()
	cfg.StartTime = w.now.Add(-3 * time.Hour).Format(time.RFC3339)
	return cfg
}

// writeLogs puts n events into each group, over the last two hours.
func (w *watched) writeLogs(t testing.TB, region string, n int, groups ...string) (messages []string) {
	t.Helper()
	for _, g := range groups {
		for i := range n {
			at := w.now.Add(-2*time.Hour + time.Duration(i)*2*time.Hour/time.Duration(n))
			text := fmt.Sprintf("%s %s %04d <&>\n\tat \"line\" two", region, g, i)
			if err := w.PutLogEvents(region, g, fmt.Sprintf("stream-%d", i%3), cloud.LogEvent{Time: at, Ingested: at.Add(time.Second), Message: text}); err != nil {
				t.Fatal(err)
			}
			messages = append(messages, text)
		}
		if err := w.CreateLogStream(region, g, "empty"); err != nil {
			t.Fatal(err)
		}
	}
	return messages
}

// messagesOf are the messages of log records, once each, in order.
func messagesOf(t testing.TB, records []string) []string {
	t.Helper()
	var texts []string
	for _, r := range records {
		var d logDocument
		if err := json.Unmarshal([]byte(r), &d); err != nil {
			t.Fatalf("record %q: %v", r, err)
		}
		texts = append(texts, d.Message)
	}
	slices.Sort(texts)
	return slices.Compact(texts)
}

func (w *watched) untilLogs(t testing.TB, want []string) *stored {
	t.Helper()
	want = slices.Clone(want)
	slices.Sort(want)
	var got *stored
	eventually(t, "all log events are stored", func() bool {
		got = w.server.stored(t)
		return slices.Equal(messagesOf(t, got.records), want)
	})
	return got
}

// covers: SYS-10, DEV-18, DEV-74, DEV-75, DEV-107, DEV-108, DEV-110, F-16, LIM-2: all
// groups of two regions are read by two replicas, through empty pages; a group that
// comes up later too, and nothing is lost or read again after a restart.
func TestLogsAllGroups(t *testing.T) {
	w := newWatched(t)
	w.SetLogPaging(cloud.LogPaging{Events: 9, EmptyFirst: 1})
	groups := []string{"/app/a", "/app/b", "other"}
	want := append(w.writeLogs(t, "us-east-1", 40, groups...), w.writeLogs(t, "eu-west-1", 25, groups...)...)
	w.writeLogs(t, "eu-west-1", 5, "/private/x")
	cfg := w.logsConfig("/")
	cfg.Regions, cfg.SkipLogGroups, cfg.Discovery = []string{"us-east-1", "eu-west-1"}, []string{"/private/*"}, 10*time.Second
	_, stopA := w.run(t, "a", "cloudwatch_logs", cfg, nil)
	_, stopB := w.run(t, "b", "cloudwatch_logs", cfg, nil)
	got := w.untilLogs(t, want)
	if len(got.records) != len(want) {
		t.Errorf("%d records for %d events", len(got.records), len(want))
	}
	for _, o := range got.origins {
		if o.GetApi() != "logs:FilterLogEvents" || !slices.Contains(groups, o.GetResource()) || o.GetRegion() == "" {
			t.Errorf("origin %v", o)
		}
	}
	var d logDocument
	if err := json.Unmarshal([]byte(got.records[0]), &d); err != nil {
		t.Fatal(err)
	}
	if d.LogGroupIdentifier != "arn:aws:logs:"+strings.Fields(d.Message)[0]+":123456789012:log-group:"+d.LogGroup || d.EventID == "" || d.IngestionTime-d.Timestamp != 1000 {
		t.Errorf("document %+v", d)
	}
	if err := errors.Join(stopA(), stopB()); err != nil {
		t.Error(err)
	}

	// While nothing runs, events go on, and a group comes up.
	w.now = time.Now().UTC()
	for _, g := range []string{"/app/a", "/new"} {
		text := "while it was down, in " + g
		if err := w.PutLogEvents("eu-west-1", g, "s", cloud.LogEvent{Time: w.now, Message: text}); err != nil {
			t.Fatal(err)
		}
		want = append(want, text)
	}
	calls := w.Calls("FilterLogEvents")
	w.run(t, "c", "cloudwatch_logs", cfg, nil)
	w.untilLogs(t, want)
	if n := w.Calls("FilterLogEvents") - calls; n > 100 {
		t.Errorf("%d calls after the restart: it began from the start", n)
	}
}

// covers: DEV-76, DEV-161, F-16: a poller that is killed again and again in the
// middle of a page, throttled, and whose page tokens expire, loses nothing; and it
// stores few events again.
func TestLogsTrouble(t *testing.T) {
	w := newWatched(t)
	w.SetLogPaging(cloud.LogPaging{Events: 10})
	want := w.writeLogs(t, "us-east-1", 150, "/app/a", "/app/b")
	var n atomic.Int64
	w.SetFault(func(op, _, _ string) cloud.Fault {
		if op != "FilterLogEvents" {
			return cloud.Fault{}
		}
		switch i := n.Add(1); {
		case i == 5 || i == 17:
			w.ExpirePageTokens()
		case i == 9:
			return cloud.Fault{Code: "ThrottlingException"}
		case i == 12:
			return cloud.Fault{Cut: 700} // the answer breaks off
		case i == 14:
			return cloud.Fault{Status: 503, Code: "ServiceUnavailableException"}
		}
		return cloud.Fault{}
	})
	w.run(t, "a", "cloudwatch_logs", w.logsConfig("/app/*"), frailOutboxes(14))
	got := w.untilLogs(t, want)
	if extra := len(got.records) - len(want); extra > 60 {
		t.Errorf("%d events were stored again", extra)
	}
}

// covers: F-16, DEV-95: events that arrive late are found within the overlap, those
// that arrive later still by the look at late events; what is known is not stored again.
func TestLogsLate(t *testing.T) {
	w := newWatched(t)
	now := time.Now()
	event := func(text string, age, late time.Duration) cloud.LogEvent {
		return cloud.LogEvent{Time: now.Add(-age), Ingested: now.Add(-age + late), Message: text}
	}
	err := w.PutLogEvents("", "g", "s",
		event("known", 30*time.Minute, 0), event("young", time.Second, 0), event("late", time.Minute, time.Minute+2*time.Second),
		event("very late", 50*time.Minute, 45*time.Minute), event("other", time.Second, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.PutLogEvents("", "g", "debug-1", event("of another stream", time.Second, 0)); err != nil {
		t.Fatal(err)
	}
	cfg := w.logsConfig("g")
	cfg.LateWindow, cfg.LateEvery, cfg.SkipLogStreams = time.Hour, time.Minute, []string{"debug-*"}
	at, err := w.server.connect(t, "setup").Cursor(t.Context(), "poll", "us-east-1:g")
	if err != nil {
		t.Fatal(err)
	}
	before, _ := json.Marshal(logCursor{Read: now.Add(-10 * time.Minute).UnixMilli(), Swept: now.Add(-20 * time.Minute).UnixMilli()})
	if err := at.Set(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	w.run(t, "a", "cloudwatch_logs", cfg, nil)
	got := w.untilLogs(t, []string{"young", "late", "very late", "other"})
	if len(got.records) != 4 {
		t.Errorf("%d records, want 4: %q", len(got.records), got.records)
	}
	dropped := uint64(0)
	for _, p := range got.report.Pulls {
		dropped += sumOf(p.Skipped)
	}
	if dropped != 1 {
		t.Errorf("%d events were left out by their stream, want 1", dropped)
	}
}

// covers: DEV-75, DEV-108, DEV-109: the first retrieval stream by stream; streams
// without events are not asked for.
func TestLogsByStream(t *testing.T) {
	w := newWatched(t)
	w.SetLogPaging(cloud.LogPaging{Events: 7})
	want := w.writeLogs(t, "us-east-1", 60, "g")
	var order []string
	cfg := w.logsConfig("g")
	cfg.UseFirstOptimizedRetrieval = false
	_, stop := w.run(t, "a", "cloudwatch_logs", cfg, frailOutboxes(9))
	got := w.untilLogs(t, want)
	for _, r := range got.records {
		var d logDocument
		if err := json.Unmarshal([]byte(r), &d); err != nil {
			t.Fatal(err)
		}
		if len(order) == 0 || order[len(order)-1] != d.LogStreamName {
			order = append(order, d.LogStreamName)
		}
	}
	if len(order) < 3 || !slices.IsSorted(order[:3]) || w.Calls("DescribeLogStreams") == 0 {
		t.Errorf("streams were read in the order %v", order)
	}
	// Then it goes on as ever.
	if err := w.PutLogEvents("", "g", "stream-0", cloud.LogEvent{Time: time.Now(), Message: "live"}); err != nil {
		t.Fatal(err)
	}
	w.untilLogs(t, append(want, "live"))
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// covers: DEV-74, F-16: CloudWatch Logs itself leaves out what does not match, and a
// group that is deleted while it is read is no trouble.
func TestLogsPatternAndDeletedGroup(t *testing.T) {
	w := newWatched(t)
	w.writeLogs(t, "us-east-1", 30, "/app/a", "/app/gone")
	var n atomic.Int64
	w.SetFault(func(op, _, group string) cloud.Fault {
		if op == "FilterLogEvents" && group == "/app/gone" && n.Add(1) == 1 {
			w.DeleteLogGroup("us-east-1", "/app/gone")
		}
		return cloud.Fault{}
	})
	cfg := w.logsConfig("/app/*")
	cfg.FilterPattern = "0007"
	s, stop := w.run(t, "a", "cloudwatch_logs", cfg, nil)
	w.untilLogs(t, []string{"us-east-1 /app/a 0007 <&>\n\tat \"line\" two"})
	eventually(t, "the group is not pulled any more", func() bool {
		all, _ := s.(*polling).shardsOf(groupOf("us-east-1:/app/gone"))
		return n.Load() > 0 && !slices.ContainsFunc(all, func(sh shard) bool { return sh.name == "us-east-1:/app/gone" })
	})
	if err := errors.Join(s.Health(), stop()); err != nil {
		t.Error(err)
	}
}

// covers: F-16: a group that is deleted while much of it is yet to be read keeps no
// pull busy, also when its lease goes on for another group.
func TestLogsDeletedBehind(t *testing.T) {
	w := newWatched(t)
	gone, other := "/app/gone", ""
	for i := 0; other == ""; i++ {
		if name := fmt.Sprintf("/app/%d", i); groupOf("us-east-1:"+name) == groupOf("us-east-1:"+gone) {
			other = name
		}
	}
	want := w.writeLogs(t, "us-east-1", 10, other)
	w.writeLogs(t, "us-east-1", 10, gone)
	var n atomic.Int64
	w.SetFault(func(op, _, group string) cloud.Fault {
		if op == "FilterLogEvents" && group == gone && n.Add(1) == 1 {
			w.DeleteLogGroup("us-east-1", gone)
		}
		return cloud.Fault{}
	})
	s, _ := w.run(t, "a", "cloudwatch_logs", w.logsConfig("/app/*"), nil)
	w.untilLogs(t, want)
	p, _ := s.(*polling)
	eventually(t, "the group is planned no more, and nothing is at work", func() bool {
		all, _ := p.shardsOf(groupOf("us-east-1:" + gone))
		return n.Load() > 0 && len(all) == 1 && len(p.slots) == 0
	})
}

// covers: DEV-69: a group without events is read from the first start on, however
// often it is planned anew before the first event comes.
func TestLogsQuietStart(t *testing.T) {
	w := newWatched(t)
	if err := w.CreateLogStream("us-east-1", "/app/quiet", "s"); err != nil {
		t.Fatal(err)
	}
	cfg := w.logsConfig("/app/quiet")
	cfg.StartTime = ""
	var calls atomic.Int64
	w.SetFault(func(op, _, _ string) cloud.Fault {
		if op == "FilterLogEvents" {
			calls.Add(1)
		}
		return cloud.Fault{}
	})
	s, _ := w.run(t, "a", "cloudwatch_logs", cfg, nil)
	p, _ := s.(*polling)
	eventually(t, "it was pulled", func() bool { return calls.Load() > 0 })
	at := time.Now()
	eventually(t, "it was planned later than that", func() bool {
		p.planNow()
		all, _ := p.shardsOf(groupOf("us-east-1:/app/quiet"))
		g, _ := all[0].data.(logGroup)
		return g.from.After(at.Add(time.Millisecond))
	})
	if err := w.PutLogEvents("us-east-1", "/app/quiet", "s", cloud.LogEvent{Time: at, Ingested: time.Now(), Message: "first"}); err != nil {
		t.Fatal(err)
	}
	w.untilLogs(t, []string{"first"})
}

// covers: DEV-65, DEV-161: a region that denies does not stop the others, is named,
// and is read once it is allowed.
func TestLogsDeniedRegion(t *testing.T) {
	w := newWatched(t)
	want := w.writeLogs(t, "us-east-1", 5, "/app/a")
	late := w.writeLogs(t, "eu-west-1", 5, "/app/a")
	var denied atomic.Bool
	denied.Store(true)
	w.SetFault(func(_, region, _ string) cloud.Fault {
		if region == "eu-west-1" && denied.Load() {
			return cloud.Fault{Status: 400, Code: "AccessDeniedException"}
		}
		return cloud.Fault{}
	})
	cfg := w.logsConfig("/app/*")
	cfg.Regions = []string{"eu-west-1", "us-east-1"}
	s, _ := w.run(t, "a", "cloudwatch_logs", cfg, nil)
	w.untilLogs(t, want)
	if err := s.Health(); err != nil {
		t.Errorf("one of two regions can be read: %v", err)
	}
	eventually(t, "the region that denies is known", func() bool {
		h := s.(*polling).health
		h.mu.Lock()
		defer h.mu.Unlock()
		bad := h.shards["eu-west-1:"]
		return bad != nil && errors.Is(bad.err, awsclient.AccessDenied) && strings.Contains(bad.err.Error(), "logs:DescribeLogGroups")
	})
	denied.Store(false)
	w.untilLogs(t, append(want, late...))
}

// covers: F-16, LIM-2: whatever the windows are, each event that arrives within the
// overlap is in a window that is read after it has arrived.
func TestLogWindows(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		cfg := defaultCloudWatchLogs()
		cfg.Overlap = time.Duration(r.IntN(300)) * time.Second
		cfg.Slice = time.Duration(1+r.IntN(120)) * time.Minute
		now := time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)
		cur := logCursor{Read: now.Add(-time.Duration(r.IntN(48*3600)) * time.Second).UnixMilli()}
		start := cur.Read
		type event struct{ at, arrives int64 }
		var missing []event
		for range 200 {
			at := start + r.Int64N(50*3600_000)
			missing = append(missing, event{at, at + r.Int64N(cfg.Overlap.Milliseconds()+1)})
		}
		for range 300 {
			now = now.Add(time.Duration(r.IntN(200)) * time.Second)
			before := cur.Read
			cur.next(now, &cfg)
			w := *cur.Open
			if w.From != before || w.To < w.From || w.To > now.UnixMilli() {
				t.Fatalf("seed %d: window %+v at %d from %d", seed, w, now.UnixMilli(), before)
			}
			missing = slices.DeleteFunc(missing, func(e event) bool { return e.at >= w.From && e.at <= w.To && e.arrives <= w.Began })
			cur.Open.Pages = r.IntN(40)
			cur.end(&cfg)
			if cur.Read < before || cur.Open != nil {
				t.Fatalf("seed %d: the cursor went back from %d to %d", seed, before, cur.Read)
			}
		}
		for _, e := range missing {
			if e.at < cur.Read {
				t.Fatalf("seed %d: event %+v was not in any window, cursor %d", seed, e, cur.Read)
			}
		}
	}
}

// covers: DEV-74, DEV-149, DEV-162: every problem at once, each with its key.
func TestLogsValidate(t *testing.T) {
	cfg := CloudWatchLogsConfig{Regions: []string{"Mars 1"}, LogStreams: []string{""}, StartTime: "yesterday", Overlap: -1, LateWindow: 15 * 24 * time.Hour}
	err := cfg.Validate()
	if err == nil {
		t.Fatal("no problem was found")
	}
	for _, key := range []string{"period", "parallel", "regions[0]", "log_groups", "log_streams[0]", "start_time", "slice", "overlap", "late_window", "late_every", "discovery"} {
		if !strings.Contains(err.Error(), key) {
			t.Errorf("nothing about %s in %v", key, err)
		}
	}
	ok := defaultCloudWatchLogs()
	ok.LogGroups = []string{"/"}
	if err := ok.Validate(); err != nil {
		t.Error(err)
	}
}

// Ids are remembered up to a bound, the youngest half of it in every case.
func TestIDSet(t *testing.T) {
	s := newIDSet(10)
	id := func(i int) messages.ID { return messages.NewID([]byte{byte(i)}) }
	for i := range 100 {
		s.add([]messages.ID{id(i)})
		for j := max(0, i-4); j <= i; j++ {
			if !s.has(id(j)) {
				t.Fatalf("after %d, %d is forgotten", i, j)
			}
		}
		if len(s.young)+len(s.old) > 10 {
			t.Fatalf("%d ids are kept", len(s.young)+len(s.old))
		}
	}
}

// covers: DEV-16, DEV-18, DEV-22: what the demo puts into the APIs comes out of the
// pollers, all of it.
func TestWatchedFeed(t *testing.T) {
	w := newWatched(t)
	from := w.now.Add(-2 * time.Hour).Truncate(time.Minute)
	fed, err := feed.FillAPIs(w.Cloud, 1, from, w.now.Add(-10*time.Minute).Truncate(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	logs, metrics, findings := w.logsConfig(fed.LogGroups...), w.metricsConfig(fed.Namespaces...), w.findingsConfig()
	metrics.StartTime, findings.StartTime = from.Format(time.RFC3339), from.Format(time.RFC3339)
	metrics.Statistics, metrics.RequestPeriod = []string{"Average"}, 60
	named := func(name string) func(*Deps) { return func(d *Deps) { d.Name = name } }
	w.run(t, "a", "cloudwatch_logs", logs, named("logs"))
	w.run(t, "b", "cloudwatch_metrics", metrics, named("metrics"))
	w.run(t, "c", "guardduty", findings, named("findings"))
	apis := map[string]int{}
	eventually(t, "all is stored", func() bool {
		clear(apis)
		for _, p := range w.server.stored(t).report.Pulls {
			apis[p.Source] += int(p.Records)
		}
		return apis["logs"] >= fed.LogEvents && apis["metrics"] >= fed.Points && apis["findings"] >= fed.Findings
	})
	if apis["logs"] != fed.LogEvents || apis["metrics"] != fed.Points || apis["findings"] != fed.Findings {
		t.Errorf("stored %v, fed %+v", apis, fed)
	}
}
