package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/services/operate/destinations"
	"github.com/penstock/penstock/services/operate/quarantine"
	"github.com/penstock/penstock/topology"
)

// marked takes events by the marker in them, and refuses those that it is told to.
type marked struct {
	*httptest.Server
	mu     sync.Mutex
	refuse string
	got    map[string]int
	ids    map[string]string // by marker, of what came last
}

func startMarked(t *testing.T) *marked {
	t.Helper()
	m := &marked{got: map[string]int{}, ids: map[string]string{}}
	m.Server = httptest.NewServer(m)
	t.Cleanup(m.Close)
	return m
}

func (m *marked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != "" && bytes.Contains(body, []byte(m.refuse)) {
		http.Error(w, "not this one", http.StatusBadRequest)
		return
	}
	lines := bufio.NewScanner(bytes.NewReader(body))
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var e struct {
			ID    string
			Event struct{ Marker string }
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		m.got[e.Event.Marker]++
		m.ids[e.Event.Marker] = e.ID
	}
}

func (m *marked) refuses(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuse = what
}

func (m *marked) counts() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.got)
}

func (m *marked) id(marker string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ids[marker]
}

// clinic is a pipeline of all stages in this process, beside the demo's AWS and a sink.
type clinic struct {
	t     *testing.T
	dir   string
	cloud *cloud.Cloud
	queue string
	sink  *marked
	p     *pipeline
	stop  func()
	// report is the ledger of when it balanced.
	report ledger.Report
}

func newClinic(t *testing.T) *clinic {
	t.Helper()
	world, err := cloud.Start(t.Context(), cloud.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(world.Close)
	queue, err := world.CreateQueue("notices", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, bucket := range []string{"logs", "other"} {
		if err := world.CreateBucket(bucket, cloud.BucketOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := world.Notify(bucket, cloud.Notification{Queue: "notices"}); err != nil {
			t.Fatal(err)
		}
	}
	return &clinic{t: t, dir: t.TempDir(), cloud: world, queue: queue, sink: startMarked(t)}
}

// run starts the pipeline, with more of a configuration.
func (w *clinic) run(buckets, more string) *topology.Bus {
	w.t.Helper()
	file := defaults()
	text := fmt.Sprintf(`
x-aws: &aws {endpoint_url: %q, access_key: AKIATEST, access_secret: s}
bus: {store: %q, disk: 1 GiB, drain_timeout: 5s}
sources:
  - {name: feed, type: sqs, format: json, queue_url: %q, buckets: [%s], wait_time: 1s, aws: *aws}
destinations:
  - {name: out, type: http, url: %q, backoff: {initial: 100ms}}
%s`, w.cloud.URL(), filepath.Join(w.dir, "streams"), w.queue, buckets, w.sink.URL, more)
	if err := config.Parse("test.yaml", []byte(text), &file); err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(w.t.Context())
	w.p = newPipeline(file, topology.Stages, slog.New(slog.DiscardHandler))
	if err := w.p.start(ctx); err != nil {
		w.t.Fatal(err)
	}
	ended := false
	w.stop = func() {
		if ended {
			return
		}
		ended = true
		stop()
		if err := w.p.wait(); err != nil {
			w.t.Error(err)
		}
	}
	w.t.Cleanup(w.stop)
	// What is redriven needs a destination that has begun to read, and says so.
	await(w.t, time.Minute, "the destination runs", func() bool {
		all, err := destinations.Now(ctx, w.p.buses[0], nil)
		return err == nil && slices.ContainsFunc(all, func(s *destinations.Status) bool { return s.Name == "out" && s.Configured && s.First > 0 })
	})
	return w.p.buses[0]
}

func (w *clinic) put(bucket, key, body string) {
	w.t.Helper()
	if _, err := w.cloud.Put(bucket, key, cloud.Object{Body: []byte(body)}); err != nil {
		w.t.Fatal(err)
	}
}

// entries are all in quarantine, by code.
func entries(t *testing.T, bus *topology.Bus) map[string]int {
	t.Helper()
	page, err := quarantine.List(t.Context(), bus, quarantine.Filter{}, 1000, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]int{}
	for _, e := range page.Entries {
		codes[e.Code]++
	}
	return codes
}

// await polls until ok, and fails the test when that takes too long.
func await(t *testing.T, timeout time.Duration, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited %s for: %s", timeout, what)
		case <-tick.C:
		}
	}
}

func awaitEntries(t *testing.T, bus *topology.Bus, want map[string]int) {
	t.Helper()
	var got map[string]int
	defer func() {
		if t.Failed() {
			t.Logf("in quarantine: %v, want %v", got, want)
		}
	}()
	await(t, time.Minute, fmt.Sprintf("entries %v", want), func() bool {
		got = entries(t, bus)
		return maps.Equal(got, want)
	})
}

// redrive starts a job and waits for its end.
func redrive(t *testing.T, bus *topology.Bus, spec quarantine.Redrive) topology.Job {
	t.Helper()
	job, err := quarantine.StartRedrive(t.Context(), bus, spec, "tester", "command", "mended")
	if err != nil {
		t.Fatal(err)
	}
	return awaitJob(t, bus, job.ID)
}

func awaitJob(t *testing.T, bus *topology.Bus, id string) (job topology.Job) {
	t.Helper()
	await(t, 60*time.Second, "job "+id, func() bool {
		var err error
		if job, err = bus.Job(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		return job.Over()
	})
	return job
}

// awaitMarkers waits until each marker has come, once.
func (w *clinic) awaitMarkers(want ...string) {
	w.t.Helper()
	var missing []string
	defer func() {
		if w.t.Failed() {
			w.t.Logf("missing: %v", missing)
		}
	}()
	await(w.t, time.Minute, fmt.Sprintf("%d events", len(want)), func() bool {
		got := w.sink.counts()
		missing = slices.DeleteFunc(slices.Clone(want), func(m string) bool { return got[m] > 0 })
		return len(missing) == 0
	})
}

// books waits until the ledger balances and nothing is open, and returns what was resolved.
func (w *clinic) books(bus *topology.Bus) (resolved map[string]*messages.Resolved) {
	w.t.Helper()
	var r ledger.Report
	defer func() {
		if w.t.Failed() {
			w.t.Logf("balanced %v, open %d: %q", r.Balanced, r.Total.Open, r.Problems)
		}
	}()
	await(w.t, time.Minute, "a ledger that balances", func() bool {
		fold := ledger.New()
		resolved = map[string]*messages.Resolved{}
		if err := bus.Read(w.t.Context(), topology.Span{Subject: "penstock.ledger.>"}, func(m topology.Stored) error {
			facts, err := messages.DecodeFacts(m.Data)
			if err != nil {
				return err
			}
			for _, f := range facts.GetFacts() {
				if one := f.GetResolved(); one != nil {
					resolved[one.GetEntry()] = one
				}
			}
			return addFacts(fold, m)
		}); err != nil {
			w.t.Fatal(err)
		}
		r = fold.Report()
		return r.Balanced && r.Total.Open == 0
	})
	w.report = r
	return resolved
}

// once fails unless every event has come exactly once.
func (w *clinic) once() {
	w.t.Helper()
	for marker, n := range w.sink.counts() {
		if n != 1 {
			w.t.Errorf("event %s came %d times", marker, n)
		}
	}
}

func records(from, to int, prefix string) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "{\"marker\": \"%s%d\"}\n", prefix, i)
	}
	return b.String()
}

// What stages refuse in earnest is redriven once it is mended: each event arrives once, the
// ledger balances, and limits are lifted for one time only.
// covers: pain 3, pain 4, pain 14, design section 6
func TestRedriveWhatStagesRefuse(t *testing.T) {
	w := newClinic(t)
	bus := w.run("logs", "fetch: {max_record: 4 KiB, max_line: 4 KiB, max_bad_records: 2, max_object: 1 MiB, missing_key_wait: 0s}\n")
	big := fmt.Sprintf(`{"marker": "big", "pad": %q}`+"\n", strings.Repeat("x", 8<<10))
	w.put("other", "not-allowed.json", records(0, 3, "other"))
	w.put("logs", "big.json", records(0, 5, "before")+big+records(0, 5, "after"))
	w.put("logs", "bad.json", records(0, 4, "fine")+"{\"marker\": bad1}\n{\"marker\": bad2}\n{\"marker\": bad3}\n"+records(4, 8, "fine"))
	var large strings.Builder
	pad := strings.Repeat("y", 1000)
	for i := range 1500 {
		fmt.Fprintf(&large, "{\"marker\": \"large%d\", \"pad\": %q}\n", i, pad)
	}
	w.put("logs", "large.json", large.String())
	w.sink.refuses(`"poison0"`)
	w.put("logs", "poison.json", records(0, 3, "poison"))
	awaitEntries(t, bus, map[string]int{
		"ingest.bucket_not_allowed": 1, "framing.record_too_large": 1, "framing.bad_json": 2, "fetch.too_many_bad_records": 1,
		"fetch.too_large": 1, "deliver.http_rejected": 1,
	})
	w.awaitMarkers("before4", "after4", "fine3", "large0", "poison2")

	page, err := quarantine.List(t.Context(), bus, quarantine.Filter{Stage: "deliver"}, 10, 0)
	if err != nil || len(page.Entries) != 1 {
		t.Fatalf("%+v, %v", page, err)
	}
	if e := page.Entries[0]; e.EventID == "" || e.EventType == "" || e.EventTime == nil || e.Blocked != "" || e.Destination != "out" {
		t.Errorf("entry of deliver %+v", e)
	}
	poison := page.Entries[0].EventID

	// Without the limits lifted, the same comes back with one attempt more, and the job
	// does not take it up again.
	job := redrive(t, bus, quarantine.Redrive{Entries: quarantine.Filter{Code: "framing.record_too_large"}})
	if job.State != topology.JobDone || job.Progress.Done != 1 || job.Progress.Failed != 0 {
		t.Errorf("job %+v", job)
	}
	var again []quarantine.Entry
	await(t, time.Minute, "the entry that comes back", func() bool {
		page, err := quarantine.List(t.Context(), bus, quarantine.Filter{Code: "framing.record_too_large"}, 10, 0)
		if err != nil {
			t.Fatal(err)
		}
		again = page.Entries
		return len(again) == 1
	})
	if again[0].Attempts != 2 || again[0].Sequence < job.Progress.Done {
		t.Errorf("came back as %+v", again[0])
	}

	// The bucket is added, the destination takes it, and limits are lifted for those that
	// are named.
	w.sink.refuses("")
	w.stop()
	bus = w.run("logs, other", "fetch: {max_record: 4 KiB, max_line: 4 KiB, max_bad_records: 2, max_object: 1 MiB, missing_key_wait: 0s}\n")
	if job := redrive(t, bus, quarantine.Redrive{AllowOnce: true}); job.State != topology.JobDone || job.Progress.Done != 7 || job.Progress.Failed != 0 {
		t.Errorf("job %+v", job)
	}
	// What is no JSON is none the second time.
	awaitEntries(t, bus, map[string]int{"framing.bad_json": 3})
	w.awaitMarkers("big", "other0", "other2", "fine7", "large1499", "poison0")
	resolved := w.books(bus)
	w.once()
	// Of objects that were read in part, only what was refused was taken again.
	if n := w.report.Total.Duplicates; n != 0 {
		t.Errorf("%d events were read again", n)
	}
	if got := w.sink.counts(); len(got) != 3+11+8+1500+3 {
		t.Errorf("%d different events", len(got))
	}
	if id := w.sink.id("poison0"); id != poison {
		t.Errorf("the event came with id %s, it had %s", id, poison)
	}
	if len(resolved) != 8 {
		t.Errorf("%d entries are resolved: %v", len(resolved), resolved)
	}
	page, err = quarantine.List(t.Context(), bus, quarantine.Filter{}, 10, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range page.Entries {
		if e.Attempts != 2 || e.Pull == "" {
			t.Errorf("came back as %+v", e)
		}
	}
}

// synth puts an entry into quarantine as a stage would.
func synth(t *testing.T, bus *topology.Bus, stage topology.Stage, q *messages.Quarantine) string {
	t.Helper()
	q.Source = "feed"
	if q.Origin == nil {
		q.Origin = &messages.Origin{Pull: messages.NewPull(string(q.GetPayload())), Source: "feed", Queue: "q", MessageId: "m"}
	}
	out := bus.NewOutbox(stage)
	if err := out.Quarantine(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if o := q.GetOrigin(); q.GetHolds() == messages.Quarantine_HOLDS_FRAME && o.GetMessageId() == "" && q.GetRecords() > 0 {
		// It goes on as the pull that it was: the ledger knows that.
		out.Fact(&messages.Fact{Kind: &messages.Fact_Announced{Announced: &messages.Announced{Origin: o, As: messages.Announced_AS_EVENTS}}})
		out.Fact(&messages.Fact{Kind: &messages.Fact_Fetched{Fetched: &messages.Fetched{
			Pull: o.GetPull(), Source: "feed", Frames: 1, Records: q.GetRecords(), End: messages.Fetched_END_COMPLETE,
		}}})
		parsed := &messages.Parsed{Pull: o.GetPull(), Records: q.GetRecords(), Events: q.GetRecords()}
		if stage == topology.Parse {
			parsed.Events, parsed.Quarantined = 0, map[string]uint64{q.GetCode(): q.GetRecords()}
		}
		out.Fact(&messages.Fact{Kind: &messages.Fact_Parsed{Parsed: parsed}})
	}
	if err := out.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return q.GetId()
}

func doc(marker string) []byte { return fmt.Appendf(nil, `{"marker": %q}`, marker) }

// eventFrame is a frame of events, the last of which was dropped as a duplicate.
func eventFrame(lane uint32, markers ...string) []byte {
	b := messages.NewBuilder(messages.Header{Source: "feed", Format: "json", EventType: "feed.json", Lane: lane})
	o := b.Origin(&messages.Origin{Pull: messages.NewPull(markers...), Source: "feed", Queue: "q", MessageId: markers[0]})
	for i, m := range markers {
		b.Add(messages.Event{ID: messages.NewID([]byte(m)), Time: 1e18, Origin: o, Record: uint64(i), Doc: doc(m)})
	}
	return b.Encode(nil)
}

func recordFrame(markers ...string) []byte {
	b := messages.NewBuilder(messages.Header{Source: "feed", Format: "json"})
	b.Origin(&messages.Origin{Pull: messages.NewPull(markers...), Source: "feed", Queue: "q", MessageId: markers[0]})
	for _, m := range markers {
		b.AddRecord(doc(m))
	}
	return b.Encode(nil)
}

// kinds are entries of every stage and of all that they hold, and what arrives when they are
// redriven.
func kinds() map[string]struct {
	stage topology.Stage
	entry *messages.Quarantine
	want  []string
} {
	type kind = struct {
		stage topology.Stage
		entry *messages.Quarantine
		want  []string
	}
	id := func(m string) []byte { i := messages.NewID([]byte(m)); return i[:] }
	lane := func(m string) uint32 { return messages.NewID([]byte(m)).Lane(8) }
	return map[string]kind{
		"ingest body": {topology.Ingest, &messages.Quarantine{
			Code: "ingest.unreadable_body", Holds: messages.Quarantine_HOLDS_SQS_BODY, Payload: []byte(records(0, 2, "body")),
		}, []string{"body0", "body1"}},
		"ingest bytes": {topology.Ingest, &messages.Quarantine{
			Code: "framing.bad_json", Holds: messages.Quarantine_HOLDS_BYTES, Format: "json", Record: 7, Records: 1, Payload: doc("bytes"),
		}, []string{"bytes"}},
		"ingest frame": {topology.Ingest, &messages.Quarantine{
			Code: "ingest.record_too_large", Holds: messages.Quarantine_HOLDS_FRAME, Format: "json", Records: 2, Payload: recordFrame("page0", "page1"),
		}, []string{"page0", "page1"}},
		"parse record": {topology.Parse, &messages.Quarantine{
			Code: "parse.bad_json", Holds: messages.Quarantine_HOLDS_RECORD, Format: "json", Record: 3, Records: 1, Payload: doc("record"),
		}, []string{"record"}},
		"parse frame": {topology.Parse, &messages.Quarantine{
			Code: "parse.unknown_format", Holds: messages.Quarantine_HOLDS_FRAME, Format: "json", Records: 2, Payload: recordFrame("frame0", "frame1"),
			Subject: topology.RecordSubject("feed"), Origin: &messages.Origin{Pull: messages.NewPull("frame0", "frame1"), Source: "feed"},
		}, []string{"frame0", "frame1"}},
		"dedupe frame": {topology.Dedupe, &messages.Quarantine{
			Code: "messages.newer_version", Holds: messages.Quarantine_HOLDS_FRAME, Records: 2, Payload: eventFrame(0, "dedupe0", "dedupe1"),
			Subject: topology.ParsedSubject(0), Origin: &messages.Origin{Pull: messages.NewPull("dedupe0", "dedupe1"), Source: "feed"},
		}, []string{"dedupe0", "dedupe1"}},
		"route event": {topology.Route, &messages.Quarantine{
			Code: "route.mask_failed", Holds: messages.Quarantine_HOLDS_EVENT, Format: "json", Record: 5, Records: 1, Payload: doc("route"),
			Subject: topology.UniqueSubject(lane("route")), EventId: id("route"), EventType: "feed.json", EventTime: 1e18, Account: "1", Region: "eu",
		}, []string{"route"}},
		"route event without id": {topology.Route, &messages.Quarantine{
			Code: "route.mask_failed", Holds: messages.Quarantine_HOLDS_EVENT, Format: "json", Record: 5, Records: 1, Payload: doc("oldroute"),
			Subject: topology.UniqueSubject(2),
		}, []string{"oldroute"}},
		"route frame": {topology.Route, &messages.Quarantine{
			Code: "bus.handler_panicked", Holds: messages.Quarantine_HOLDS_FRAME, Records: 2, Payload: eventFrame(0, "unique0", "unique1"),
			Subject: topology.UniqueSubject(0),
		}, []string{"unique0", "unique1"}},
		"deliver event": {topology.Deliver, &messages.Quarantine{
			Code: "deliver.refused", Holds: messages.Quarantine_HOLDS_EVENT, Format: "json", Records: 1, Payload: doc("deliver"), Destination: "out",
			Subject: topology.EventSubject("feed.json"), EventId: id("deliver"), EventType: "feed.json", EventTime: 1e18,
		}, []string{"deliver"}},
		"deliver event without id": {topology.Deliver, &messages.Quarantine{
			Code: "deliver.refused", Holds: messages.Quarantine_HOLDS_EVENT, Format: "json", Records: 1, Payload: doc("olddeliver"), Destination: "out",
			Subject: topology.EventSubject("feed.json"),
		}, []string{"olddeliver"}},
		"deliver frame": {topology.Deliver, &messages.Quarantine{
			Code: "messages.bad_frame", Holds: messages.Quarantine_HOLDS_FRAME, Records: 2, Payload: eventFrame(1, "log0", "log1"), Destination: "out",
			Subject: topology.EventSubject("feed.json"),
		}, []string{"log0", "log1"}},
	}
}

// Every kind of entry finds its way to the stage that refused it, however often and by how
// many operators it is redriven, and whenever somebody dies between the publishing and
// the deleting.
// covers: pain 3, pain 4, design section 6
func TestRedriveEveryKind(t *testing.T) {
	w := newClinic(t)
	bus := w.run("logs", "")
	all := kinds()
	dead := false
	fill := func() (want []string) {
		for _, k := range all {
			if k.stage == topology.Deliver && dead {
				continue // who sees to that looks when an entry was refused: see package quarantine
			}
			synth(t, bus, k.stage, k.entry)
			want = append(want, k.want...)
		}
		return want
	}
	want := fill()
	dead = true
	// Two operators at once, and one of them only some.
	first, err := quarantine.StartRedrive(t.Context(), bus, quarantine.Redrive{}, "one", "command", "")
	if err != nil {
		t.Fatal(err)
	}
	second, err := quarantine.StartRedrive(t.Context(), bus, quarantine.Redrive{Rate: 1000}, "two", "console", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{first.ID, second.ID} {
		if job := awaitJob(t, bus, id); job.State != topology.JobDone || job.Progress.Failed != 0 {
			t.Errorf("job %+v", job)
		}
	}
	w.awaitMarkers(want...)
	awaitEntries(t, bus, map[string]int{})
	resolved := w.books(bus)
	for name, k := range all {
		r := resolved[k.entry.GetId()]
		if r == nil || r.GetHow() != messages.Resolved_HOW_REDRIVEN || r.GetCode() != k.entry.GetCode() || r.GetStage() != string(k.stage) {
			t.Errorf("%s: resolved as %v", name, r)
		}
	}

	// The same entries are there once more, as after a death before the deleting, and the
	// server has forgotten all ids.
	limits := w.p.file.Bus.limits(w.p.file.Dedupe.Lanes)
	limits.DuplicateWindow = 100 * time.Millisecond
	if _, err := bus.Apply(t.Context(), limits); err != nil {
		t.Fatal(err)
	}
	forgotten := time.Now().Add(10 * time.Second) // on a busy machine its timer is late
	await(t, 20*time.Second, "the server to forget", func() bool { return time.Now().After(forgotten) })
	fill()
	const delivered = 3
	awaitEntriesCount(t, bus, len(all)-delivered)
	if job := redrive(t, bus, quarantine.Redrive{}); job.State != topology.JobDone || job.Progress.Failed != 0 || job.Progress.Done != uint64(len(all)-delivered) {
		t.Errorf("job %+v", job)
	}
	awaitEntries(t, bus, map[string]int{})
	w.put("logs", "last.json", records(0, 1, "last")) // what is on its way comes before
	w.awaitMarkers("last0")
	w.books(bus)
	w.once()
	for _, k := range all {
		if m := k.want[0]; k.entry.GetEventId() != nil && w.sink.id(m) != fmt.Sprintf("%x", k.entry.GetEventId()) {
			t.Errorf("%s came with id %s", m, w.sink.id(m))
		}
	}
}

// What was parsed again for one destination and refused goes to that one alone when it is
// redriven: nobody else has asked for it.
// covers: pain 3, design section 6
func TestRedriveForOneDestination(t *testing.T) {
	w := newClinic(t)
	other := startMarked(t)
	bus := w.run("logs", fmt.Sprintf("  - {name: other, type: http, url: %q}\n", other.URL))
	id := messages.NewID([]byte("routed"))
	b := messages.NewBuilder(messages.Header{Source: "feed", Format: "json", EventType: "feed.json", Replay: "j1@out"})
	o := b.Origin(&messages.Origin{Pull: messages.NewPull("framed"), Source: "feed", Queue: "q", MessageId: "framed"})
	b.Add(messages.Event{ID: messages.NewID([]byte("framed")), Time: 1e18, Origin: o, Doc: doc("framed")})
	synth(t, bus, topology.Parse, &messages.Quarantine{
		Code: "parse.bad_json", Holds: messages.Quarantine_HOLDS_RECORD, Format: "json", Records: 1, Payload: doc("parsed"), Replay: "j1@out",
	})
	synth(t, bus, topology.Route, &messages.Quarantine{
		Code: "route.mask_failed", Holds: messages.Quarantine_HOLDS_EVENT, Format: "json", Records: 1, Payload: doc("routed"), Replay: "j1@out",
		EventId: id[:], EventType: "feed.json", EventTime: 1e18,
	})
	synth(t, bus, topology.Route, &messages.Quarantine{
		Code: "bus.handler_panicked", Holds: messages.Quarantine_HOLDS_FRAME, Records: 1, Payload: b.Encode(nil), Subject: topology.UniqueSubject(0),
	})
	if job := redrive(t, bus, quarantine.Redrive{}); job.State != topology.JobDone || job.Progress.Failed != 0 {
		t.Fatalf("job %+v", job)
	}
	w.awaitMarkers("parsed", "routed", "framed")
	w.put("logs", "last.json", records(0, 1, "last"))
	w.awaitMarkers("last0")
	await(t, time.Minute, "the other destination", func() bool { return other.counts()["last0"] > 0 })
	w.books(bus)
	w.once()
	if got := other.counts(); len(got) != 1 {
		t.Errorf("the other destination got %v", got)
	}
}

func awaitEntriesCount(t *testing.T, bus *topology.Bus, n int) {
	t.Helper()
	await(t, time.Minute, fmt.Sprintf("%d entries", n), func() bool {
		sum := 0
		for _, k := range entries(t, bus) {
			sum += k
		}
		return sum == n
	})
}

// What fails again comes back with one attempt more, time and again, and nothing of it is
// taken up twice by one job. What has nowhere to go stays, and the job says why.
// covers: pain 3, design section 6
func TestRedriveThatFails(t *testing.T) {
	w := newClinic(t)
	bus := w.run("logs", "")
	synth(t, bus, topology.Parse, &messages.Quarantine{
		Code: "parse.bad_json", Holds: messages.Quarantine_HOLDS_RECORD, Format: "json", Records: 1, Payload: []byte(`{"marker": `),
	})
	synth(t, bus, topology.Ingest, &messages.Quarantine{
		Code: "framing.bad_json", Holds: messages.Quarantine_HOLDS_BYTES, Format: "json", Records: 1, Payload: []byte(`{"x": tru}`),
	})
	stubborn := messages.NewID([]byte("stubborn"))
	w.sink.refuses(`"stubborn"`)
	synth(t, bus, topology.Deliver, &messages.Quarantine{
		Code: "deliver.http_rejected", Holds: messages.Quarantine_HOLDS_EVENT, Format: "json", Records: 1, Payload: doc("stubborn"), Destination: "out",
		EventId: stubborn[:], EventType: "feed.json", EventTime: 1e18,
	})
	for n := uint32(2); n < 5; n++ {
		if job := redrive(t, bus, quarantine.Redrive{}); job.State != topology.JobDone || job.Progress.Done != 3 || job.Progress.Failed != 0 {
			t.Fatalf("job %+v", job)
		}
		await(t, time.Minute, "the entries to come back", func() bool {
			page, err := quarantine.List(t.Context(), bus, quarantine.Filter{}, 10, 0)
			if err != nil {
				t.Fatal(err)
			}
			return len(page.Entries) == 3 && !slices.ContainsFunc(page.Entries, func(e quarantine.Entry) bool { return e.Attempts != n })
		})
	}
	job, err := quarantine.StartDiscard(t.Context(), bus, quarantine.Redrive{}, "tester", "command", "rubbish")
	if err != nil {
		t.Fatal(err)
	}
	awaitJob(t, bus, job.ID)
	awaitEntries(t, bus, map[string]int{})
	discarded := 0
	for _, r := range w.books(bus) {
		if r.GetHow() == messages.Resolved_HOW_DISCARDED {
			discarded++
		}
	}
	if discarded != 3 {
		t.Errorf("%d entries are discarded", discarded)
	}

	stay := map[string]*messages.Quarantine{
		"destination gone is": {
			Stage: "deliver", Code: "deliver.refused", Holds: messages.Quarantine_HOLDS_EVENT, Format: "json", Records: 1, Payload: doc("d"), Destination: "gone",
		},
		"no process that ingests has source former": {
			Stage: "ingest", Code: "ingest.unreadable_body", Holds: messages.Quarantine_HOLDS_SQS_BODY, Payload: doc("i"),
			Origin: &messages.Origin{Source: "former", Pull: messages.NewPull("i")},
		},
		"source former is in the configuration of no process of stage fetch": {
			Stage: "fetch", Code: "fetch.no_such_source", Holds: messages.Quarantine_HOLDS_NOTICE,
			Origin:  &messages.Origin{Source: "former", Pull: messages.NewPull("f"), Bucket: "logs", Key: "k"},
			Payload: messages.EncodeNotice(&messages.Notice{Origin: &messages.Origin{Source: "former", Pull: messages.NewPull("f"), Bucket: "logs", Key: "k"}}),
		},
	}
	for why, q := range stay {
		stage := topology.Stage(q.GetStage())
		if q.Source = q.GetOrigin().GetSource(); q.Source == "" {
			q.Source, q.Origin = "feed", &messages.Origin{Source: "feed", Pull: messages.NewPull(why)}
		}
		out := bus.NewOutbox(stage)
		if err := out.Quarantine(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	job = redrive(t, bus, quarantine.Redrive{})
	if job.State != topology.JobDone || job.Progress.Failed != uint64(len(stay)) || job.Progress.Done != uint64(len(stay)) {
		t.Errorf("job %+v", job)
	}
	for why := range stay {
		if !strings.Contains(job.Progress.Note, why) {
			t.Errorf("note %q lacks %q", job.Progress.Note, why)
		}
	}
	awaitEntriesCount(t, bus, len(stay))
	if got := w.sink.counts(); len(got) != 0 {
		t.Errorf("events came: %v", got)
	}

	var deeds []topology.Deed
	if err := bus.ReadAudit(t.Context(), time.Time{}, func(d topology.Deed) bool {
		deeds = append(deeds, d)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if len(deeds) == 0 || deeds[0].Action != "quarantine."+jobs.KindRedrive || deeds[0].By != "tester" || deeds[0].Count != 3 || deeds[0].Reason != "mended" {
		t.Errorf("audit %+v", deeds)
	}
}

// The commands show what there is, ask back, do it here or leave it to others, and all of it
// is in the audit.
// covers: pain 3, pain 14
func TestQuarantineCommands(t *testing.T) {
	w := newClinic(t)
	bus := w.run("logs", "")
	for i := range 3 {
		synth(t, bus, topology.Parse, &messages.Quarantine{
			Code: "parse.bad_json", Reason: "broken \x1b[31mred", Holds: messages.Quarantine_HOLDS_RECORD, Format: "json", Record: uint64(i), Records: 1,
			Payload: doc(fmt.Sprint("c", i)),
		})
	}
	id := synth(t, bus, topology.Fetch, &messages.Quarantine{
		Code: "fetch.bomb", Holds: messages.Quarantine_HOLDS_NOTICE, Origin: &messages.Origin{Pull: messages.NewPull("b"), Source: "feed", Bucket: "logs", Key: "k"},
		Payload: messages.EncodeNotice(&messages.Notice{Origin: &messages.Origin{Pull: messages.NewPull("b"), Source: "feed", Bucket: "logs", Key: "k"}}),
	})
	store := filepath.Join(w.dir, "streams")
	command := func(stdin string, code int, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		root := newRoot()
		root.SetArgs(append(args, "--store", store))
		root.SetIn(strings.NewReader(stdin))
		root.SetOut(&out)
		root.SetErr(&out)
		if err := root.ExecuteContext(t.Context()); exitCode(err) != code {
			t.Errorf("%v: %v; %s", args, err, out.String())
		} else if err != nil {
			fmt.Fprintln(&out, err)
		}
		if strings.ContainsRune(out.String(), 0x1b) {
			t.Errorf("%v lets a stranger write to the terminal", args)
		}
		return out.String()
	}
	has := func(out string, parts ...string) {
		t.Helper()
		for _, p := range parts {
			if !strings.Contains(out, p) {
				t.Errorf("%q is not in\n%s", p, out)
			}
		}
	}
	has(command("", exitOK, "quarantine", "list"), "parse.bad_json", "fetch.bomb", "s3://logs/k")
	has(command("", exitOK, "quarantine", "list", "--limit", "1"), "there are more")
	has(command("", exitOK, "quarantine", "list", "--facets"), "4 entries", "--allow-once")
	has(command("", exitOK, "quarantine", "show", id[:8]), "fetch reads the object again", "for one time", "raise fetch.max_ratio")
	has(command("", exitFailed, "quarantine", "show", "nothing"), "quarantine.no_entry")
	if out := command("", exitOK, "quarantine", "export", "--stage", "parse"); strings.Count(out, `"payload":`) != 3 {
		t.Errorf("export %s", out)
	}
	for _, wrong := range [][]string{
		{"quarantine", "redrive"},
		{"quarantine", "redrive", "--all", "--code", "x", id},
		{"quarantine", "redrive", "--all", "--rate", "-1"},
		{"quarantine", "redrive", "--from", "1h", "--to", "2h"},
		{"quarantine", "redrive", "--from", "yesterday"},
		{"quarantine", "discard", "--all", "--yes"},
		{"quarantine", "list", "--limit", "0"},
	} {
		command("", exitUsage, wrong...)
	}
	has(command("", exitFailed, "quarantine", "discard", "nothing", "--reason", "x", "--yes"), "quarantine.no_entry")
	has(command("", exitOK, "quarantine", "redrive", "--code", "nothing"), "nothing fits")
	has(command("", exitOK, "quarantine", "redrive", "--code", "parse.bad_json", "--dry-run"), "3 entries")
	has(command("n\n", exitUsage, "quarantine", "redrive", "--code", "parse.bad_json"), "3 entries", "nothing was done")
	awaitEntriesCount(t, bus, 4)
	has(command("y\n", exitOK, "quarantine", "redrive", "--code", "parse.bad_json", "--reason", "mended it"), "3 of 3 entries redriven")
	w.awaitMarkers("c0", "c1", "c2")
	has(command("", exitOK, "quarantine", "discard", id[:8], "--reason", "a test", "--yes"), "1 of 1 entries discarded")
	has(command("", exitOK, "quarantine", "list"), "quarantine is empty")

	has(command("", exitOK, "audit"), operator(), "quarantine.redrive", "mended it", "quarantine.discard", "a test", "quarantine.export", "redrive.done")
	var deeds []topology.Deed
	out := command("", exitOK, "audit", "--action", "quarantine.redrive", "--json")
	if err := json.Unmarshal([]byte(out), &deeds); err != nil || len(deeds) != 1 || deeds[0].Count != 3 || deeds[0].Via != "command" {
		t.Errorf("audit %s: %v", out, err)
	}
	for _, none := range [][]string{{"--by", "nobody else"}, {"--since", "2100-01-01T00:00:00Z"}, {"--until", "1h"}, {"--via", "console"}, {"--text", "unheard of"}} {
		has(command("", exitOK, append([]string{"audit"}, none...)...), "nothing fits")
	}
}

// Limits are lifted once: for the bytes of an object that grow too much, and for the records
// of a message of which too many are bad. What failed for itself comes back alone.
// covers: pain 3, pain 14, design section 6
func TestAllowOnce(t *testing.T) {
	w := newClinic(t)
	bus := w.run("logs", "fetch: {max_ratio: 2}\n")
	var body, packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	pad := strings.Repeat("z", 16<<10)
	const n = 40 << 6 // 40 MiB: the ratio counts from 32 MiB on
	for i := range n {
		fmt.Fprintf(zip, "{\"marker\": \"bomb%d\", \"pad\": %q}\n", i, pad)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	w.put("logs", "bomb.json.gz", packed.String())
	const bad = 150
	for i := range bad {
		fmt.Fprintf(&body, "{\"marker\": bad%d}\n", i)
	}
	body.WriteString(records(0, 5, "good"))
	if _, err := w.cloud.Send("notices", records(0, 3, "first")+body.String()); err != nil {
		t.Fatal(err)
	}
	awaitEntries(t, bus, map[string]int{"fetch.bomb": 1, "framing.bad_json": 99, "ingest.too_many_bad_records": 1})
	w.awaitMarkers("bomb0", "first0", "first2")
	if got := len(w.sink.counts()); got >= n {
		t.Fatalf("%d events came of what grew too much", got)
	}

	// Not lifted: the same again.
	if job := redrive(t, bus, quarantine.Redrive{Entries: quarantine.Filter{Code: "fetch.bomb"}}); job.State != topology.JobDone || job.Progress.Failed != 0 {
		t.Fatalf("job %+v", job)
	}
	await(t, time.Minute, "the entry that comes back", func() bool {
		page, err := quarantine.List(t.Context(), bus, quarantine.Filter{Code: "fetch.bomb"}, 10, 0)
		if err != nil {
			t.Fatal(err)
		}
		return len(page.Entries) == 1 && page.Entries[0].Attempts == 2
	})
	for _, code := range []string{"fetch.bomb", "ingest.too_many_bad_records"} {
		job := redrive(t, bus, quarantine.Redrive{Entries: quarantine.Filter{Code: code}, AllowOnce: true})
		if job.State != topology.JobDone || job.Progress.Done != 1 || job.Progress.Failed != 0 {
			t.Fatalf("job %+v", job)
		}
	}
	awaitEntries(t, bus, map[string]int{"framing.bad_json": bad})
	w.awaitMarkers(fmt.Sprint("bomb", n-1), "good0", "good4")
	w.books(bus)
	w.once()
	if got := len(w.sink.counts()); got != n+3+5 || w.report.Total.Duplicates != 0 {
		t.Errorf("%d events came, %d duplicates", got, w.report.Total.Duplicates)
	}
}
