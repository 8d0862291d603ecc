package ingest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/digest"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/known"
	"github.com/penstock/penstock/topology"
)

// yard is a bucket, a bus, and processes that do jobs.
type yard struct {
	t      *testing.T
	server *topology.Embedded
	bus    *topology.Bus
	cloud  *cloud.Cloud
	cfg    sources.S3Config
	ledger *books
}

var quiet = slog.New(slog.DiscardHandler)

func newYard(t *testing.T) *yard {
	t.Helper()
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: 256 << 20, SyncInterval: time.Minute, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	c, err := cloud.Start(t.Context(), cloud.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	y := &yard{t: t, server: server, cloud: c, ledger: &books{}}
	y.bus = y.connect("test")
	if _, err := y.bus.Apply(t.Context(), topology.Limits{Disk: 256 << 20, Lanes: 2}); err != nil {
		t.Fatal(err)
	}
	if err := c.CreateBucket("logs", cloud.BucketOptions{}); err != nil {
		t.Fatal(err)
	}
	y.cfg = sources.S3Config{
		Bucket: "logs", SkipKeys: []string{"*.tmp"},
		AWS: awsclient.Config{Region: c.Region(), EndpointURL: c.URL(), PathStyle: true, AccessKey: "AKIATEST", SecretKey: config.NewSecret("secret")},
	}
	return y
}

func (y *yard) connect(name string) *topology.Bus {
	y.t.Helper()
	bus, err := topology.Connect(y.t.Context(), y.server.Connect(topology.Options{Name: name, Log: quiet}))
	if err != nil {
		y.t.Fatal(err)
	}
	y.t.Cleanup(bus.Close)
	return bus
}

// named is a source without work of its own.
type named struct{ sources.Source }

func (named) Name() string { return "trail" }

// process does jobs in a process of its own until the test ends.
func (y *yard) process(name string) *topology.Bus {
	y.t.Helper()
	bus := y.connect(name)
	y.start(func(ctx context.Context) error {
		return NewJobs(bus, quiet, Reader{Source: named{}, Objects: y.cfg, Skip: func(key string) string {
			if strings.Contains(key, "CloudTrail-Digest") {
				return "digest"
			}
			return ""
		}}).Run(ctx)
	})
	return bus
}

func (y *yard) start(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(y.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = run(ctx)
	}()
	y.t.Cleanup(func() { cancel(); <-done })
}

// put puts objects that were written some hours ago.
func (y *yard) put(age time.Duration, keys ...string) {
	y.t.Helper()
	for _, key := range keys {
		body := []byte(nil)
		if !strings.Contains(key, "empty") {
			body = zip([]byte("records of " + key))
		}
		if _, err := y.cloud.Put("logs", key, cloud.Object{Body: body, Modified: time.Now().Add(-age), Quiet: true}); err != nil {
			y.t.Fatal(err)
		}
	}
}

func zip(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b) // into memory
	_ = z.Close()
	return out.Bytes()
}

func numbered(form string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf(form, i)
	}
	return keys
}

func (y *yard) add(kind string, spec any) topology.Job {
	y.t.Helper()
	job, err := y.bus.AddJob(y.t.Context(), topology.Job{Kind: kind, Spec: jobs.Write(spec), Needs: jobs.NeedsSource("trail"), By: "test", What: "a test"})
	if err != nil {
		y.t.Fatal(err)
	}
	return job
}

// until waits for a job to get somewhere.
func (y *yard) until(id, what string, cond func(*topology.Job) bool) topology.Job {
	y.t.Helper()
	ctx, cancel := context.WithTimeout(y.t.Context(), time.Minute)
	defer cancel()
	var last topology.Job
	y.bus.FollowJobs(ctx, func(all []topology.Job) {
		for _, j := range all {
			if j.ID == id {
				if last = j; cond(&j) {
					cancel()
				}
			}
		}
	})
	if !cond(&last) {
		y.t.Fatalf("%s: job %+v", what, last)
	}
	return last
}

func (y *yard) done(id string) topology.Job {
	y.t.Helper()
	job := y.until(id, "the job ends", func(j *topology.Job) bool { return j.Over() })
	if job.State != topology.JobDone {
		y.t.Fatalf("the job is %s: %s", job.State, job.Error)
	}
	return job
}

// fetch takes notices, and tells their keys in order.
func (y *yard) fetch() (keys func() []string) {
	var mu sync.Mutex
	var all []string
	bus := y.connect("fetch")
	y.start(func(ctx context.Context) error {
		return topology.Consume(ctx, bus, topology.FetchConsumer, messages.DecodeNotice, func(_ context.Context, in topology.In[*messages.Notice], _ topology.Outbox) error {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, in.Value.GetOrigin().GetKey())
			return nil
		})
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

func (y *yard) wait(what string, cond func() bool) {
	y.t.Helper()
	ctx, cancel := context.WithTimeout(y.t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			y.t.Fatal(what)
		case <-tick.C:
		}
	}
}

// notices are all that were stored, in order.
func (y *yard) notices() (all []*messages.Notice) {
	y.t.Helper()
	if err := y.bus.Read(y.t.Context(), topology.Span{Subject: "penstock.notice.>"}, func(m topology.Stored) error {
		n, err := messages.DecodeNotice(m.Data)
		all = append(all, n)
		return err
	}); err != nil {
		y.t.Fatal(err)
	}
	return all
}

// announced are the pulls that the ledger was told of, with how often.
func (y *yard) announced() map[string]int {
	y.t.Helper()
	pulls := map[string]int{}
	if err := y.bus.Read(y.t.Context(), topology.Span{Subject: "penstock.ledger.ingest"}, func(m topology.Stored) error {
		facts, err := messages.DecodeFacts(m.Data)
		for _, f := range facts.GetFacts() {
			if a := f.GetAnnounced(); a != nil {
				pulls[string(a.GetOrigin().GetPull())]++
			}
		}
		return err
	}); err != nil {
		y.t.Fatal(err)
	}
	return pulls
}

// books are a ledger that knows what it is told.
type books struct {
	mu    sync.Mutex
	of    map[string]known.Of
	asked int
	fail  error
}

func (b *books) Known(_ context.Context, q known.Question) (all []known.Of, behind uint64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	for _, o := range q.Objects {
		of, ok := b.of[o.Key]
		if !ok {
			of = known.Of{State: known.Never}
		}
		all = append(all, of)
	}
	return all, 7, b.fail
}

func (y *yard) keepLedger(of map[string]known.Of) {
	y.ledger.of = of
	bus := y.connect("operator")
	y.start(func(ctx context.Context) error { return known.Serve(ctx, bus, y.ledger) })
	y.wait("nobody answers", func() bool {
		_, _, err := known.Ask(y.t.Context(), y.bus, known.Question{Bucket: "logs", Objects: []known.Object{{Key: "x"}}})
		return err == nil
	})
}

// covers: pain 9, design section 6
func TestBackfillStaysBehindLive(t *testing.T) {
	y := newYard(t)
	keys := numbered("AWSLogs/a/%04d.json.gz", 500)
	y.put(time.Hour, keys...)
	y.put(time.Hour, "AWSLogs/a/empty.gz", "AWSLogs/a/x.tmp", "AWSLogs/a/CloudTrail-Digest/x.gz", "elsewhere/x.gz")
	y.put(-time.Hour, "AWSLogs/a/of the future.gz")
	y.process("ingest")
	job := y.add(jobs.KindBackfill, jobs.Backfill{Source: "trail", Bucket: "logs", Prefix: "AWSLogs/", Total: 500})

	// Nobody fetches: it must not run ahead.
	y.until(job.ID, "it waits for fetch", func(j *topology.Job) bool {
		return j.Progress.Done >= topology.EaseNotices && j.Progress.Note == "waits for fetch"
	})
	if n := len(y.notices()); n != topology.EaseNotices {
		t.Fatalf("%d notices are stored while nobody fetches, want %d", n, topology.EaseNotices)
	}
	live := &messages.Notice{Origin: &messages.Origin{Pull: messages.NewPull("live"), Source: "trail", Bucket: "logs", Key: "live"}}
	out := y.bus.NewOutbox(topology.Ingest)
	if err := errors.Join(out.Publish(t.Context(), topology.Message{Subject: topology.NoticeSubject("trail"), ID: "live", Data: messages.EncodeNotice(live)}), out.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	fetched := y.fetch()
	ended := y.done(job.ID)
	y.wait("not all was fetched", func() bool { return len(fetched()) == len(keys)+1 })
	all := fetched()
	if i := slices.Index(all, "live"); i < 0 || i > topology.EaseNotices {
		t.Errorf("the live notice is number %d of %d", i, len(all))
	}
	slices.Sort(all)
	if all = slices.Compact(all); len(all) != len(keys)+1 {
		t.Errorf("%d different objects were announced, want %d", len(all), len(keys)+1)
	}
	if p := ended.Progress; p.Done != 500 || p.Skipped != 3 || p.Total != 500 || p.Bytes == 0 || p.Note != "" {
		t.Errorf("progress %+v", p)
	}
	for pull, n := range y.announced() {
		if n != 1 {
			t.Errorf("pull %x was announced %d times", pull, n)
		}
	}
}

// covers: pain 9, design section 6
func TestBackfillGoesOnAfterAKill(t *testing.T) {
	y := newYard(t)
	keys := numbered("a/%04d.gz", 200)
	y.put(time.Hour, keys...)
	y.put(time.Hour, "a/0005.tmp", "a/0150.tmp")
	y.keepLedger(map[string]known.Of{"a/0003.gz": {State: known.Complete}, "a/0160.gz": {State: known.Complete}, "a/0161.gz": {State: known.Quarantined}})
	first := y.process("first")
	job := y.add(jobs.KindBackfill, jobs.Backfill{Source: "trail", Bucket: "logs", Prefix: "a/", SkipKnown: true})
	y.until(job.ID, "it is on its way", func(j *topology.Job) bool { return j.Progress.Done >= topology.EaseNotices && j.Checkpoint != nil })
	first.Close() // as when the process is killed: nothing is given back
	y.fetch()
	y.process("second")
	ended := y.done(job.ID)
	seen := map[string]int{}
	pulls := map[string]bool{}
	for _, n := range y.notices() {
		seen[n.GetOrigin().GetKey()]++
		pulls[string(n.GetOrigin().GetPull())] = true
	}
	if len(seen) != 198 || len(pulls) != 198 || seen["a/0003.gz"]+seen["a/0160.gz"] > 0 {
		t.Errorf("%d objects by %d pulls, want 198 by as many", len(seen), len(pulls))
	}
	for key, n := range seen {
		if n != 1 { // within the time in which the server knows ids
			t.Errorf("%s was announced %d times", key, n)
		}
	}
	if p := ended.Progress; p.Done != 198 || p.Skipped != 4 || ended.Tries != 2 {
		t.Errorf("tries %d, progress %+v", ended.Tries, p)
	}
	// The same job makes the same pulls, another one others.
	again := y.add(jobs.KindBackfill, jobs.Backfill{Source: "trail", Bucket: "logs", Prefix: "a/000", Span: jobs.Span{From: time.Now().Add(-2 * time.Hour)}})
	y.done(again.ID)
	for _, n := range y.notices() {
		pulls[string(n.GetOrigin().GetPull())] = true
	}
	if len(pulls) != 198+10 {
		t.Errorf("%d pulls after another job of 10 objects, want %d", len(pulls), 198+10)
	}
}

// Keys may have whatever UTF-8 has, also what XML has not.
// covers: pain 9
func TestBackfillOddKeys(t *testing.T) {
	y := newYard(t)
	want := []string{"a/\x01/b.gz", "a/ /+%2B.gz", "a/*/b.gz", "a/<&>\u2028/\".gz", "a/ü/{yyyy}.gz"}
	slices.Sort(want)
	y.put(time.Hour, want...)
	y.fetch()
	y.process("ingest")
	for i, prefix := range []string{"a/", "a/*/"} {
		job := y.add(jobs.KindBackfill, jobs.Backfill{Source: "trail", Bucket: "logs", Prefix: prefix})
		y.done(job.ID)
		var keys []string
		for _, n := range y.notices() {
			keys = append(keys, n.GetOrigin().GetKey())
		}
		if keys = keys[i*len(want):]; !slices.Equal(slices.Sorted(slices.Values(keys)), want) {
			t.Errorf("below %s %q are announced, want %q", prefix, keys, want)
		}
	}
}

// covers: pain 9
func TestBackfillCounts(t *testing.T) {
	y := newYard(t)
	y.put(10*time.Hour, numbered("a/%d.gz", 5)...)
	y.put(30*time.Hour, numbered("a/old%d.gz", 3)...)
	y.process("ingest")
	spec := jobs.Backfill{Source: "trail", Bucket: "logs", Count: true}
	for name, c := range map[string]struct {
		from, to time.Duration
		want     uint64
	}{"all": {0, 0, 8}, "young": {20 * time.Hour, 0, 5}, "old": {0, 20 * time.Hour, 3}, "none": {20 * time.Hour, 15 * time.Hour, 0}} {
		s := spec
		if c.from > 0 {
			s.From = time.Now().Add(-c.from)
		}
		if c.to > 0 {
			s.To = time.Now().Add(-c.to)
		}
		job := y.add(jobs.KindBackfill, s)
		if p := y.done(job.ID).Progress; p.Done != c.want {
			t.Errorf("%s: %+v, want %d objects", name, p, c.want)
		}
	}
	if n := y.notices(); len(n) > 0 {
		t.Errorf("%d objects were announced by counting", len(n))
	}
	for name, c := range map[string]struct {
		spec jobs.Backfill
		want string
	}{
		"other bucket": {jobs.Backfill{Source: "trail", Bucket: "other"}, "backfill.bucket_not_allowed"},
		"no API":       {jobs.Backfill{Source: "trail"}, "backfill.source_has_no_api"},
		"no ledger":    {jobs.Backfill{Source: "trail", Bucket: "logs", SkipKnown: true}, "ledger.nobody_keeps"},
	} {
		job := y.add(jobs.KindBackfill, c.spec)
		if j := y.until(job.ID, name, func(j *topology.Job) bool { return j.Over() }); j.State != topology.JobFailed || !strings.Contains(j.Error, c.want) {
			t.Errorf("%s: job is %s: %s", name, j.State, j.Error)
		}
	}
}

// covers: pain 9
func TestBackfillFolders(t *testing.T) {
	y := newYard(t)
	day := time.Now().UTC().AddDate(0, 0, -20).Truncate(24 * time.Hour)
	var want []string
	for d := range 15 {
		at := day.AddDate(0, 0, d)
		for _, account := range []string{"111", "222"} {
			key := "AWSLogs/" + account + at.Format("/2006/01/02/") + "x.gz"
			if d >= 5 && d < 10 {
				want = append(want, key)
			}
			y.put(time.Since(at.Add(time.Hour)), key)
		}
	}
	y.fetch()
	y.process("ingest")
	calls := y.cloud.Calls("ListObjectsV2")
	job := y.add(jobs.KindBackfill, jobs.Backfill{
		Source: "trail", Bucket: "logs", Prefix: "AWSLogs/*/{yyyy}/{MM}/{dd}/", Span: jobs.Span{From: day.AddDate(0, 0, 5), To: day.AddDate(0, 0, 10)}, Rate: 200,
	})
	y.done(job.ID)
	var keys []string
	for _, n := range y.notices() {
		keys = append(keys, n.GetOrigin().GetKey())
	}
	slices.Sort(keys)
	slices.Sort(want)
	if !slices.Equal(keys, want) {
		t.Errorf("announced %v, want %v", keys, want)
	}
	if n := y.cloud.Calls("ListObjectsV2") - calls; n > 1+2*7 {
		t.Errorf("%d pages were listed, of the days asked for there are %d", n, 2*7)
	}
}

func (y *yard) report(job string) jobs.Report {
	y.t.Helper()
	parts, err := y.bus.Report(y.t.Context(), job)
	if err != nil || len(parts) == 0 {
		y.t.Fatal(len(parts), err)
	}
	var r jobs.Report
	for i, part := range parts {
		var more jobs.Report
		if err := json.Unmarshal(part, &more); err != nil {
			y.t.Fatal(err)
		}
		if i == 0 {
			r = more
		}
		r.Findings = append(r.Findings, more.Findings...)
	}
	return r
}

// found tells what was found of each key.
func whats(r jobs.Report) map[string]string {
	all := map[string]string{}
	for _, f := range r.Findings {
		all[f.Key] = strings.TrimPrefix(all[f.Key]+","+f.What, ",")
	}
	return all
}

// covers: pain 9, design section 6
func TestReconcile(t *testing.T) {
	y := newYard(t)
	y.put(time.Hour, "a/complete", "a/never", "a/open", "a/truncated", "a/changed", "a/quarantined", "a/skipped.tmp", "a/empty")
	y.put(time.Minute, "a/young", "a/just announced")
	old := time.Now().Add(-time.Hour)
	y.keepLedger(map[string]known.Of{
		"a/complete": {State: known.Complete}, "a/open": {State: known.Open, Announced: old, Pull: "00112233"},
		"a/truncated": {State: known.Truncated, Code: "fetch.truncated"}, "a/changed": {State: known.Changed, ETag: "before"},
		"a/quarantined": {State: known.Quarantined, Code: "fetch.bomb"}, "a/just announced": {State: known.Open, Announced: time.Now()},
	})
	y.fetch()
	y.process("ingest")
	for _, requeue := range []bool{false, true} {
		job := y.add(jobs.KindReconcile, jobs.Reconcile{Backfill: jobs.Backfill{Source: "trail", Bucket: "logs", Prefix: "a/"}, Requeue: requeue})
		p := y.done(job.ID).Progress
		r := y.report(job.ID)
		want := map[string]string{
			"a/never": "never_announced", "a/open": "not_finished", "a/truncated": "truncated", "a/changed": "changed", "a/quarantined": "quarantined",
		}
		if got := whats(r); !maps.Equal(got, want) {
			t.Errorf("found %v, want %v", got, want)
		}
		if r.Objects != 8 || r.Missing != 5 || r.UnderWay != 2 || r.NotWanted != 2 || r.States["complete"] != 1 || r.Behind != 7 || p.Failed != 5 {
			t.Errorf("report %+v, progress %+v", r, p)
		}
		var again []string
		for _, n := range y.notices() {
			again = append(again, n.GetOrigin().GetKey())
		}
		slices.Sort(again)
		if requeue != slices.Equal(again, []string{"a/changed", "a/never", "a/open"}) || !requeue && len(again) > 0 || requeue != (r.Requeued == 3) {
			t.Errorf("requeue %v: announced again %v, %d", requeue, again, r.Requeued)
		}
	}
	// The ledger can see that the open one is worked on once more.
	found := false
	if err := y.bus.Read(t.Context(), topology.Span{Subject: "penstock.ledger.ingest"}, func(m topology.Stored) error {
		facts, err := messages.DecodeFacts(m.Data)
		for _, f := range facts.GetFacts() {
			a := f.GetAnnounced()
			found = found || a.GetOrigin().GetKey() == "a/open" && string(a.GetAgain()) == "\x00\x11\x22\x33" && a.GetJob() != ""
		}
		return err
	}); err != nil || !found {
		t.Errorf("the fact of the open object does not name its pull: %v", err)
	}
}

// covers: pain 9
func TestReconcileReportsMany(t *testing.T) {
	y := newYard(t)
	y.put(time.Hour, numbered("a/"+strings.Repeat("long name ", 20)+"%04d", 1500)...)
	y.keepLedger(nil)
	first := y.process("first")
	job := y.add(jobs.KindReconcile, jobs.Reconcile{Backfill: jobs.Backfill{Source: "trail", Bucket: "logs"}, Requeue: true})
	y.until(job.ID, "it waits for fetch", func(j *topology.Job) bool { return j.Beat > 0 && len(y.notices()) >= topology.EaseNotices })
	first.Close()
	y.fetch()
	y.process("second")
	y.done(job.ID)
	r := y.report(job.ID)
	if r.Objects != 1500 || r.Missing != 1500 || r.Requeued != 1500 || len(whats(r))+int(r.Cut) != 1500 || len(r.Findings)+int(r.Cut) != 1500 {
		t.Errorf("objects %d, missing %d, requeued %d, findings %d of %d keys, cut %d", r.Objects, r.Missing, r.Requeued, len(r.Findings), len(whats(r)), r.Cut)
	}
	if parts, err := y.bus.Report(t.Context(), job.ID); err != nil || len(parts) < 5 {
		t.Errorf("%d parts, %v: the test is to have several", len(parts), err)
	}
}

// trail has digest files for the last hours, three log files each.
type trail struct {
	y *yard
	*cloud.TrailDigests
	begin   time.Time
	logs    [][]string
	digests []string
}

func (y *yard) trail(hours int, each func(t *trail, hour int)) *trail {
	y.t.Helper()
	d, err := y.cloud.StartTrail("logs", "", "111122223333", "eu-west-1", "my_trail")
	if err != nil {
		y.t.Fatal(err)
	}
	tr := &trail{y: y, TrailDigests: d, begin: time.Now().UTC().Truncate(time.Hour).Add(-time.Duration(hours+1) * time.Hour)}
	for h := range hours {
		if each != nil {
			each(tr, h)
		}
		start := tr.begin.Add(time.Duration(h) * time.Hour)
		var keys []string
		for i := range 3 {
			key := tr.LogKey(start.Add(time.Minute), fmt.Sprintf("log%d", i))
			y.put(time.Since(start.Add(6*time.Minute)), key)
			keys = append(keys, key)
		}
		digest, err := tr.Digest(start, start.Add(time.Hour), keys...)
		if err != nil {
			y.t.Fatal(err)
		}
		tr.logs, tr.digests = append(tr.logs, keys), append(tr.digests, digest)
	}
	return tr
}

// change changes an object without a trace.
func (y *yard) change(key string, change func(*cloud.Object)) {
	y.t.Helper()
	o, ok := y.cloud.Get("logs", key)
	if !ok {
		y.t.Fatal("no object", key)
	}
	change(&o)
	o.Quiet = true
	if _, err := y.cloud.Put("logs", key, o); err != nil {
		y.t.Fatal(err)
	}
}

func (y *yard) remove(key string) {
	y.t.Helper()
	if err := y.cloud.Delete("logs", key); err != nil {
		y.t.Fatal(err)
	}
}

// covers: pain 9
func TestReconcileDigests(t *testing.T) {
	const hours = 6
	tests := []struct {
		name string
		each func(*trail, int)
		harm func(*testing.T, *trail)
		// want are findings by what and key.
		want func(*trail) map[string]string
		from time.Duration // after the begin
	}{
		{name: "all is there"},
		{name: "folders named like patterns", harm: func(_ *testing.T, tr *trail) {
			tr.y.put(time.Hour, "AWSLogs/*/CloudTrail-Digest/*/2026/01/01/x", "AWSLogs/{MM}/CloudTrail-Digest/{/2026/01/01/x")
		}},
		{
			name: "log deleted", harm: func(t *testing.T, tr *trail) { tr.y.remove(tr.logs[2][1]) },
			want: func(tr *trail) map[string]string { return map[string]string{tr.logs[2][1]: digest.LogMissing} },
		},
		{
			name: "log altered", harm: func(t *testing.T, tr *trail) {
				tr.y.change(tr.logs[3][0], func(o *cloud.Object) { o.Body = zip([]byte("other records")) })
				tr.y.change(tr.logs[3][1], func(o *cloud.Object) { o.Body = []byte("no gzip") })
			},
			want: func(tr *trail) map[string]string {
				return map[string]string{tr.logs[3][0]: digest.LogAltered, tr.logs[3][1]: digest.LogAltered}
			},
		},
		{
			name: "log and its digest file deleted", harm: func(t *testing.T, tr *trail) {
				tr.y.remove(tr.logs[2][1])
				tr.y.remove(tr.digests[2])
			},
			want: func(tr *trail) map[string]string { return map[string]string{tr.digests[2]: digest.Missing} },
		},
		{
			name: "digest file altered", harm: func(t *testing.T, tr *trail) {
				tr.y.change(tr.digests[2], func(o *cloud.Object) { // a log file less
					o.Body = zip(bytes.Replace(unzip(t, o.Body), []byte(tr.logs[2][1]), []byte(tr.logs[2][0]), 1))
				})
			},
			want: func(tr *trail) map[string]string { return map[string]string{tr.digests[2]: digest.Altered} },
		},
		{
			name: "digest file signed anew with another key", harm: func(t *testing.T, tr *trail) {
				forger, err := tr.y.cloud.StartTrail("logs", "", "111122223333", "us-east-1", "forger")
				if err != nil {
					t.Fatal(err)
				}
				key, err := forger.Digest(tr.begin, tr.begin.Add(time.Hour), tr.logs[0]...)
				if err != nil {
					t.Fatal(err)
				}
				o, _ := tr.y.cloud.Get("logs", key)
				tr.y.remove(key)
				tr.y.change(tr.digests[2], func(was *cloud.Object) { was.Body, was.Metadata = o.Body, o.Metadata })
			},
			want: func(tr *trail) map[string]string { return map[string]string{tr.digests[2]: digest.KeyUnknown} },
		},
		{
			name: "signature gone", harm: func(t *testing.T, tr *trail) {
				tr.y.change(tr.digests[5], func(o *cloud.Object) { o.Metadata = nil })
			},
			want: func(tr *trail) map[string]string { return map[string]string{tr.digests[5]: digest.Altered} },
		},
		{
			name: "digest file garbled", harm: func(t *testing.T, tr *trail) {
				tr.y.change(tr.digests[4], func(o *cloud.Object) { o.Body = []byte("what is this") })
			},
			want: func(tr *trail) map[string]string { return map[string]string{tr.digests[4]: digest.Altered} },
		},
		{
			name: "older digest file in the place of another", harm: func(t *testing.T, tr *trail) {
				o, _ := tr.y.cloud.Get("logs", tr.digests[1])
				tr.y.change(tr.digests[3], func(was *cloud.Object) { was.Body, was.Metadata = o.Body, o.Metadata })
			},
			want: func(tr *trail) map[string]string { return map[string]string{tr.digests[3]: digest.Altered} },
		},
		{
			name: "the trail was stopped", each: func(tr *trail, hour int) {
				if hour == 3 {
					tr.Break()
				}
			},
			want: func(tr *trail) map[string]string { return map[string]string{tr.digests[3]: digest.Gap} },
		},
		{
			name: "the last ones deleted", harm: func(t *testing.T, tr *trail) {
				for _, key := range tr.digests[2:] {
					tr.y.remove(key)
				}
			},
			want: func(tr *trail) map[string]string { return map[string]string{tr.digests[1]: digest.Gap} },
		},
		{
			name: "all since the time asked for deleted", from: 2 * time.Hour, harm: func(t *testing.T, tr *trail) {
				for _, key := range tr.digests[2:] {
					tr.y.remove(key)
				}
			},
			want: func(tr *trail) map[string]string { return map[string]string{tr.digests[1]: digest.Gap} },
		},
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			y := newYard(t)
			tr := y.trail(hours, c.each)
			if c.harm != nil {
				c.harm(t, tr)
			}
			y.process("ingest")
			want := map[string]string{}
			if c.want != nil {
				want = c.want(tr)
			}
			for _, given := range []bool{false, true} { // by ListPublicKeys, and by a file
				spec := jobs.Reconcile{Backfill: jobs.Backfill{Source: "trail", Bucket: "logs", Span: jobs.Span{From: tr.begin.Add(c.from)}}, Digests: true}
				if given {
					var err error
					if spec.PublicKeys, err = digest.ReadKeys(tr.PublicKeys()); err != nil {
						t.Fatal(err)
					}
				}
				job := y.add(jobs.KindReconcile, spec)
				y.done(job.ID)
				r := y.report(job.ID)
				if got := whats(r); !maps.Equal(got, want) {
					t.Errorf("keys given %v: found %v, want %v", given, r.Findings, want)
				}
				if r.Digests == nil || r.Digests.Chains != 1 || len(want) == 0 && (r.Digests.Files != hours || r.Digests.Verified != 3*hours) || r.NoLedger != (r.Digests.LogFiles > 0) {
					t.Errorf("keys given %v: %+v of %+v", given, r.Digests, r)
				}
			}
		})
	}
}

func unzip(t *testing.T, b []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// covers: pain 9
func TestReconcileDigestsWithLedger(t *testing.T) {
	y := newYard(t)
	tr := y.trail(4, nil)
	of := map[string]known.Of{}
	for _, hour := range tr.logs {
		for _, key := range hour {
			of[key] = known.Of{State: known.Complete}
		}
	}
	delete(of, tr.logs[3][2])
	y.keepLedger(of)
	y.fetch()
	y.process("ingest")
	// The second half only: the one before it is read for the sake of the chain.
	job := y.add(jobs.KindReconcile, jobs.Reconcile{
		Backfill: jobs.Backfill{Source: "trail", Bucket: "logs", Prefix: "AWSLogs/111122223333/", Span: jobs.Span{From: tr.begin.Add(2 * time.Hour)}}, Digests: true, Requeue: true,
	})
	y.done(job.ID)
	r := y.report(job.ID)
	if !maps.Equal(whats(r), map[string]string{tr.logs[3][2]: "never_announced"}) || r.Digests.Files != 2 || r.Digests.Verified != 6 || r.Objects != 6 || r.Requeued != 1 {
		t.Errorf("report %+v, digests %+v", r, r.Digests)
	}
	if n := y.notices(); len(n) != 1 || n[0].GetOrigin().GetKey() != tr.logs[3][2] {
		t.Errorf("announced again: %v", n)
	}
	none := y.add(jobs.KindReconcile, jobs.Reconcile{
		Backfill: jobs.Backfill{Source: "trail", Bucket: "logs", Prefix: "nowhere/", Span: jobs.Span{From: tr.begin}}, Digests: true,
	})
	if j := y.until(none.ID, "it ends", func(j *topology.Job) bool { return j.Over() }); j.State != topology.JobFailed || !strings.Contains(j.Error, "reconcile.no_digest_files") {
		t.Errorf("without digest files: %s %s", j.State, j.Error)
	}
}

// clock is a source whose API has a piece for each minute.
type clock struct {
	named
	mu   sync.Mutex
	read []string
	// hang has a piece wait for the end.
	hang string
}

func (c *clock) Range(ctx context.Context, r sources.Range) error {
	var pieces []string
	for at := r.From; at.Before(r.To); at = at.Add(time.Minute) {
		pieces = append(pieces, at.UTC().Format(time.RFC3339))
	}
	if err := r.Plan(len(pieces), "what is too old"); err != nil {
		return err
	}
	for i, p := range pieces {
		if p <= r.After {
			continue
		}
		if err := r.Wait(ctx, 1000); err != nil {
			return err
		}
		c.mu.Lock()
		c.read = append(c.read, r.Job+" "+p)
		hangs := p == c.hang
		c.mu.Unlock()
		if hangs {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		if err := r.Done(p, i+1, 10, 1000); err != nil {
			return err
		}
	}
	return nil
}

// covers: pain 9: a time range of an API is a job, too, which can be paused and goes on
// where it was.
func TestBackfillTimeRange(t *testing.T) {
	y := newYard(t)
	from := time.Now().Add(-time.Hour).Truncate(time.Minute)
	c := &clock{hang: from.Add(12 * time.Minute).UTC().Format(time.RFC3339)}
	y.start(func(ctx context.Context) error { return NewJobs(y.bus, quiet, Reader{Source: c}).Run(ctx) })
	spec := jobs.Backfill{Source: "trail", Span: jobs.Span{From: from, To: from.Add(20 * time.Minute)}, Rate: 500}
	counting := spec
	counting.Count = true
	if p := y.done(y.add(jobs.KindBackfill, counting).ID).Progress; p.Total != 20 || p.Done != 0 || p.Note != "what is too old" {
		t.Errorf("counted %+v", p)
	}
	job := y.add(jobs.KindBackfill, spec)
	want := func(what string) func(*topology.Job) error {
		return func(j *topology.Job) error { j.Wanted = what; return nil }
	}
	y.until(job.ID, "it hangs", func(j *topology.Job) bool { return j.Progress.Done == 12 })
	if _, err := y.bus.ChangeJob(t.Context(), job.ID, want(topology.WantPause)); err != nil {
		t.Fatal(err)
	}
	y.until(job.ID, "it is paused", func(j *topology.Job) bool { return j.State == topology.JobPaused })
	c.mu.Lock()
	c.hang = ""
	c.mu.Unlock()
	if _, err := y.bus.ChangeJob(t.Context(), job.ID, want(topology.WantRun)); err != nil {
		t.Fatal(err)
	}
	if p := y.done(job.ID).Progress; p.Done != 20 || p.Total != 20 || p.Bytes != 20_000 || !strings.Contains(p.Note, "200 records") || !strings.Contains(p.Note, "too old") {
		t.Errorf("progress %+v", p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.read) > 21 || len(slices.Compact(c.read)) != 20 || !strings.HasPrefix(c.read[0], job.ID) {
		t.Errorf("%d pieces were read: %v", len(c.read), c.read)
	}
}
