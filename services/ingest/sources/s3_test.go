package sources

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/topology"
)

// shelf is a bucket on the demo endpoint, and a bus, for s3 sources to be run on.
type shelf struct {
	*cloud.Cloud
	server *topology.Embedded
	ctx    context.Context // ends the waiting of a test that goes wrong
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	c, err := cloud.Start(t.Context(), cloud.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.CreateBucket("logs", cloud.BucketOptions{}); err != nil {
		t.Fatal(err)
	}
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: 256 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	s := &shelf{Cloud: c, server: server}
	var giveUp context.CancelFunc
	s.ctx, giveUp = context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(giveUp)
	return s
}

func (s *shelf) put(t *testing.T, written time.Time, keys ...string) {
	t.Helper()
	for _, k := range keys {
		if _, err := s.Put("logs", k, cloud.Object{Body: []byte("x"), Modified: written}); err != nil {
			t.Fatal(err)
		}
	}
}

// reader is one s3 source at work: a replica.
type reader struct {
	*shelf
	source Source
	out    *topology.Recorder
	stop   func() error
}

func (s *shelf) read(t *testing.T, replica string, change func(*S3Config)) *reader {
	t.Helper()
	bus, err := topology.Connect(t.Context(), s.server.Connect(topology.Options{Name: replica, Log: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bus.Close)
	if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 256 << 20, Lanes: 1}); err != nil {
		t.Fatal(err)
	}
	cfg := defaultS3()
	cfg.Bucket = "logs"
	cfg.AWS = awsclient.Config{EndpointURL: s.URL(), AccessKey: "AKIATEST", SecretKey: config.NewSecret("secret")}
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	cfg.Period = 5 * time.Millisecond // shorter than what users may set
	r := &reader{shelf: s, out: &topology.Recorder{}}
	if r.source, err = Catalog.Open(t.Context(), "s3", cfg, Deps{
		Name: "list", Bus: bus, NewOutbox: func() topology.Outbox { return r.out }, Log: slog.New(slog.DiscardHandler),
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.source.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = r.stop() })
	return r
}

func (r *reader) keys(t *testing.T) []string {
	t.Helper()
	var keys []string
	for _, m := range r.out.Messages() {
		n, err := messages.DecodeNotice(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, n.GetOrigin().GetKey())
	}
	slices.Sort(keys)
	return keys
}

// until waits for a state, then for so many requests more, to see what a listing
// does that should do nothing.
func (r *reader) until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	if err := r.Wait(r.ctx, cond); err != nil {
		t.Fatalf("%s: %v; announced %q", what, err, r.keys(t))
	}
	before := r.Calls("ListObjectsV2")
	if err := r.Wait(r.ctx, func() bool { return r.Calls("ListObjectsV2") > before+8 }); err != nil {
		t.Fatalf("%s, and listings after it: %v", what, err)
	}
}

func (r *reader) has(t *testing.T, n int) func() bool {
	return func() bool { return len(r.keys(t)) >= n }
}

// covers: DEV-61, DEV-100, OPC-23, LIM-6: what is there and what comes is announced,
// each object once however often the bucket is listed, and late names too.
func TestListingAnnouncesOnce(t *testing.T) {
	s := newShelf(t)
	now := time.Now()
	want := []string{"a b+c%20.json", "ü/é"}
	for i := range 1100 { // two pages
		want = append(want, fmt.Sprintf("t/%05d", i))
	}
	s.put(t, now.Add(-time.Hour), want...)
	s.put(t, now.Add(-7*time.Hour), "old")
	s.put(t, now, "folder/", "skip.tmp")
	if _, err := s.Put("logs", "empty", cloud.Object{}); err != nil {
		t.Fatal(err)
	}
	r := s.read(t, "one", func(c *S3Config) { c.SkipKeys = []string{"*.tmp"} })
	r.until(t, "all announced", r.has(t, len(want)))
	late := []string{"a", "t/00000.5", "zz"}
	s.put(t, now.Add(-time.Minute), late...)
	want = append(want, late...)
	r.until(t, "what came later announced", r.has(t, len(want)))
	s.put(t, now, "a") // the same content, written again
	want = append(want, "a")
	r.until(t, "what was written again announced", r.has(t, len(want)))
	slices.Sort(want)
	if got := r.keys(t); !slices.Equal(got, want) {
		t.Errorf("%d keys, want %d", len(got), len(want))
	}
	pulls := map[string]bool{}
	for _, f := range r.out.Facts() {
		a := f.GetAnnounced()
		if a.GetAs() != messages.Announced_AS_OBJECT {
			t.Errorf("fact %v", f)
		}
		pulls[string(a.GetOrigin().GetPull())] = true
	}
	if len(pulls) != len(want) {
		t.Errorf("%d pulls for %d objects", len(pulls), len(want))
	}
	if err := r.source.Health(); err != nil {
		t.Error(err)
	}
	n, err := messages.DecodeNotice(r.out.Messages()[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	if o := n.GetOrigin(); o.GetSource() != "list" || o.GetBucket() != "logs" || o.GetEtag() != "9dd4e461268c8034f5c8564e155c67a6" || n.GetSize() != 1 ||
		o.GetCreated() != now.Add(-time.Hour).Truncate(time.Second).UnixNano() || o.GetVersion() != "" {
		t.Errorf("notice %v", n)
	}
}

// A source that starts again goes on where the one before stopped, also when that
// was in the middle of a listing or the last page's answer was lost.
func TestListingGoesOn(t *testing.T) {
	s := newShelf(t)
	var want []string
	for i := range 3500 {
		want = append(want, fmt.Sprintf("k%05d", i))
	}
	s.put(t, time.Now().Add(-30*24*time.Hour), want...)
	all := func(c *S3Config) { c.StartTime = "1970-01-01T00:00:00Z" }
	var pages atomic.Int64
	s.SetFault(func(op, _, _ string) cloud.Fault {
		if op == "ListObjectsV2" && pages.Add(1) > 3 {
			return cloud.Fault{Status: 403}
		}
		return cloud.Fault{}
	})
	one := s.read(t, "one", all)
	if err := one.Wait(one.ctx, func() bool {
		err := one.source.Health()
		return err != nil && strings.Contains(err.Error(), "it needs s3:ListBucket")
	}); err != nil {
		t.Fatalf("%v; health: %v", err, one.source.Health())
	}
	if err := one.stop(); err != nil {
		t.Error(err)
	}
	s.SetFault(nil)
	two := s.read(t, "two", all)
	two.until(t, "the rest announced", two.has(t, len(want)-len(one.keys(t))))
	if err := two.stop(); err != nil {
		t.Error(err)
	}
	got := append(one.keys(t), two.keys(t)...)
	if first := len(one.keys(t)); first != 2000 {
		t.Errorf("%d announced before the break, want two pages", first)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("%d keys, want %d, each once", len(got), len(want))
	}
	three := s.read(t, "three", nil)
	three.until(t, "listed again", func() bool { return three.source.Health() == nil })
	if got := three.keys(t); len(got) != 0 {
		t.Errorf("announced again: %d", len(got))
	}
	s.put(t, time.Now(), "a")
	three.until(t, "what is new announced", three.has(t, 1))
}

// Objects of the look-back are known to the next process too.
// covers: DEV-120
func TestListingRemembersOverARestart(t *testing.T) {
	s := newShelf(t)
	s.put(t, time.Now(), "a", "b")
	one := s.read(t, "one", nil)
	one.until(t, "announced", one.has(t, 2))
	if err := one.stop(); err != nil {
		t.Error(err)
	}
	s.put(t, time.Now(), "0")
	two := s.read(t, "one", nil)
	two.until(t, "the new one announced", two.has(t, 1))
	if got := two.keys(t); !slices.Equal(got, []string{"0"}) {
		t.Errorf("announced %q", got)
	}
}

// covers: DEV-61, OPC-24: folders by date, below folders of any name. Only those of
// late are listed.
func TestListingOfFolders(t *testing.T) {
	s := newShelf(t)
	now := time.Now().UTC()
	day := func(n int) string { return now.AddDate(0, 0, n).Format("2006-01-02") }
	want := []string{}
	add := func(written time.Time, wanted bool, key string) {
		s.put(t, written, key)
		if wanted {
			want = append(want, key)
		}
	}
	for _, who := range []string{"1234567_0abc", "2345678_1bcd"} {
		for _, kind := range []string{"dnslogs", "proxylogs"} {
			p := "managed/" + who + "/" + kind + "/"
			add(now.Add(-time.Minute), true, p+day(0)+"/"+day(0)+"-10-00-0001.csv.gz")
			add(now.Add(-time.Minute), true, p+day(-1)+"/late.csv.gz")
			add(now.Add(-48*time.Hour), false, p+day(-2)+"/old.csv.gz")
			add(now.Add(-time.Minute), false, p+day(-9)+"/much-too-late.csv.gz")
			add(now.Add(-time.Minute), false, p+"no-day.csv.gz")
			add(now.Add(-time.Minute), false, p+day(0)+"/readme.txt")
		}
	}
	s.put(t, now, "else/"+day(0)+"/x.csv.gz", "managed/x.csv.gz")
	r := s.read(t, "one", func(c *S3Config) {
		c.Prefixes, c.Keys = []string{"managed/*/dnslogs/{yyyy}-{MM}-{dd}/", "managed/*/proxylogs/{yyyy}-{MM}-{dd}/"}, []string{"*.csv.gz"}
	})
	r.until(t, "all announced", r.has(t, len(want)))
	add(now, true, "managed/3456789_2cde/dnslogs/"+day(0)+"/new.csv.gz") // a folder that is new
	r.until(t, "the new folder's announced", r.has(t, len(want)))
	slices.Sort(want)
	if got := r.keys(t); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// covers: DEV-69, DEV-100
func TestListingFromAStart(t *testing.T) {
	s := newShelf(t)
	now := time.Now().UTC().Truncate(time.Second)
	day := func(n int) time.Time { return now.AddDate(0, 0, -n) }
	for n := range 40 {
		s.put(t, day(n), "x/"+day(n).Format("2006/01/02")+"/k")
	}
	from := func(n int) func(*S3Config) {
		return func(c *S3Config) {
			c.Prefixes, c.StartTime = []string{"x/{yyyy}/{MM}/{dd}/"}, day(n).Format(time.RFC3339)
		}
	}
	one := s.read(t, "one", from(10))
	one.until(t, "from the start on", one.has(t, 11))
	if n := len(one.keys(t)); n != 11 {
		t.Errorf("%d announced", n)
	}
	if err := one.stop(); err != nil {
		t.Error(err)
	}
	two := s.read(t, "one", from(20))
	two.until(t, "from an earlier start on", two.has(t, 20))
	if n := len(two.keys(t)); n != 20 { // what is of late is remembered
		t.Errorf("%d announced", n)
	}
	if err := two.stop(); err != nil {
		t.Error(err)
	}
	three := s.read(t, "one", from(5))
	three.until(t, "listed", func() bool { return three.source.Health() == nil })
	if n := len(three.keys(t)); n != 0 {
		t.Errorf("a later start announced %d", n)
	}
}

// An object that is too young is announced when it is old enough; here it never is.
func TestListingWaitsForAge(t *testing.T) {
	s := newShelf(t)
	s.put(t, time.Now().Add(-time.Hour), "old")
	s.put(t, time.Now().Add(-time.Minute), "young")
	r := s.read(t, "one", func(c *S3Config) { c.MinAge = 30 * time.Minute })
	r.until(t, "the old one announced", r.has(t, 1))
	if got := r.keys(t); !slices.Equal(got, []string{"old"}) {
		t.Errorf("announced %q", got)
	}
	_ = r.stop()
	r = s.read(t, "one", nil)
	r.until(t, "the young one announced too", r.has(t, 1))
	if got := r.keys(t); !slices.Equal(got, []string{"young"}) {
		t.Errorf("announced %q", got)
	}
}

// More objects than are remembered: all are announced, some again, with the same
// ids, which the bus and dedupe know.
func TestListingSpills(t *testing.T) {
	s := newShelf(t)
	const count = 2000
	for i := range count {
		s.put(t, time.Now(), fmt.Sprintf("k%04d", i))
	}
	r := s.read(t, "one", func(c *S3Config) { c.Remember = 64 * config.KiB })
	r.until(t, "all announced", r.has(t, count))
	ids := map[string]int{}
	again := 0
	for _, m := range r.out.Messages() {
		if ids[m.ID]++; ids[m.ID] > 1 {
			again++
		}
	}
	if len(ids) != count || again == 0 {
		t.Errorf("%d objects, %d announced again", len(ids), again)
	}
	remembered := 64 << 10 / seenBytes
	for _, key := range r.keys(t) {
		var n int
		if _, err := fmt.Sscanf(key, "k%d", &n); err != nil {
			t.Fatal(err)
		}
		if n < remembered {
			ids[key]++
		}
		if ids[key] > 1 {
			t.Fatalf("%s was remembered, and announced again", key)
		}
	}
}

// Where keys are in order of time, a listing begins where the last one got to.
func TestListingInOrder(t *testing.T) {
	s := newShelf(t)
	now := time.Now()
	for i := range 3000 {
		s.put(t, now.Add(-30*24*time.Hour).Add(time.Duration(i)*time.Second), fmt.Sprintf("k%05d", i))
	}
	r := s.read(t, "one", func(c *S3Config) { c.StartTime, c.Ordered = "1970-01-01T00:00:00Z", true })
	r.until(t, "all announced", r.has(t, 3000))
	s.put(t, now, "k99999")
	r.until(t, "the new one announced", r.has(t, 3001))
	s.put(t, now, "k00000.5") // where nobody looks any more
	s.put(t, now, "k99998")   // behind, but within the look-back
	r.until(t, "one behind announced", r.has(t, 3002))
	if got := r.keys(t); len(got) != 3002 || slices.Contains(got, "k00000.5") {
		t.Errorf("%d announced: the listing does not begin where it got to", len(got))
	}
}

// Replicas share the prefixes; one that goes is replaced, and nothing is announced
// twice.
func TestListingIsShared(t *testing.T) {
	s := newShelf(t)
	prefixes := func(c *S3Config) {
		c.Prefixes = nil
		for i := range 8 {
			c.Prefixes = append(c.Prefixes, fmt.Sprintf("p%d/", i))
		}
	}
	put := func(name string) {
		for i := range 8 {
			s.put(t, time.Now(), fmt.Sprintf("p%d/%s", i, name))
		}
	}
	put("a")
	one, two := s.read(t, "one", prefixes), s.read(t, "two", prefixes)
	both := func() int { return len(one.keys(t)) + len(two.keys(t)) }
	one.until(t, "all announced", func() bool { return both() >= 8 })
	put("b")
	one.until(t, "all announced", func() bool { return both() >= 16 })
	if err := two.stop(); err != nil {
		t.Error(err)
	}
	put("c")
	one.until(t, "all announced by the one left", func() bool { return both() >= 24 })
	got := append(one.keys(t), two.keys(t)...)
	slices.Sort(got)
	if len(slices.Compact(got)) != 24 || both() != 24 {
		t.Errorf("announced %q", got)
	}
}

// covers: DEV-61: listing refused, then allowed.
func TestListingRefused(t *testing.T) {
	s := newShelf(t)
	if err := s.PutUser(cloud.User{AccessKey: "AKIATEST", Policy: `{"Version": "2012-10-17", "Statement": [` +
		awsclient.Allow("arn:aws:s3:::logs/*", "s3:GetObject").String() + `]}`}); err != nil {
		t.Fatal(err)
	}
	s.put(t, time.Now(), "a")
	r := s.read(t, "one", nil)
	if err := r.Wait(r.ctx, func() bool {
		err := r.source.Health()
		return err != nil && strings.Contains(err.Error(), awsclient.Allow("arn:aws:s3:::logs", "s3:ListBucket").String())
	}); err != nil {
		t.Fatalf("%v; health %v", err, r.source.Health())
	}
	if err := s.PutUser(cloud.User{AccessKey: "AKIATEST"}); err != nil {
		t.Fatal(err)
	}
	r.until(t, "announced", r.has(t, 1))
	if err := r.source.Health(); err != nil {
		t.Error(err)
	}
}

// covers: DEV-61
func TestLayouts(t *testing.T) {
	from := time.Date(2026, 2, 28, 22, 30, 0, 0, time.UTC)
	to := time.Date(2026, 3, 1, 1, 10, 0, 0, time.UTC)
	tests := []struct {
		prefix string
		want   string // the prefixes from and to, or the error
	}{
		{"", ""},
		{"a/b", "a/b"},
		{"a/*/b/", "a/*/b/"},
		{"*/", "*/"},
		{"a/{yyyy}-{MM}-{dd}/", "a/2026-02-27/ a/2026-02-28/ a/2026-03-01/"},
		{"{dd}.{MM}.{yyyy}/*/", "27.02.2026/*/ 28.02.2026/*/ 01.03.2026/*/"},
		{"{yyyy}/{MM}/{dd}/{HH}", "2026/02/28/21 2026/02/28/22 2026/02/28/23 2026/03/01/00 2026/03/01/01"},
		{"{yyyy}/{MM}/x{yyyy}", "2026/01/x2026 2026/02/x2026 2026/03/x2026"},
		{"y{yyyy}/", "y2025/ y2026/"},
		{"{yyyy}/{dd}/", errGap.Error()},
		{"{HH}/", errGap.Error()},
		{"{yyyy}/{mm}/", errPlaceholder.Error()},
		{"{yyyy", errPlaceholder.Error()},
		{"a*/", errStar.Error()},
		{"a/*", errStar.Error()},
		{"a/**/", errStar.Error()},
		{"/a", errSlash.Error()},
	}
	for _, tt := range tests {
		l, err := parseLayout(tt.prefix)
		var got []string
		if err != nil {
			got = append(got, err.Error())
		} else {
			for at := range l.times(from, to) {
				got = append(got, l.render(at))
				if !strings.HasPrefix(l.render(at), l.head()) {
					t.Errorf("%q does not begin with %q", l.render(at), l.head())
				}
			}
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%q: %q, want %q", tt.prefix, s, tt.want)
		}
	}
}

// covers: DEV-69
func TestS3Validate(t *testing.T) {
	tests := map[string]string{
		"bucket: logs": "",
		"{bucket: logs, prefixes: [a/, 'b/{yyyy}/'], start_time: 2026-01-31T00:00:00Z, min_age: 30s, keys: ['*.gz']}": "",
		"{bucket: logs, start_time: '2026-01-31T01:00:00+01:00'}":                                                     "",
		"{}":                                  "bucket: missing",
		"{bucket: s3://logs}":                 "bucket: \"s3://logs\":",
		"{bucket: logs, prefixes: [a/, a/]}":  "prefixes[1]: \"a/\":",
		"{bucket: logs, prefixes: ['{yy}/']}": "prefixes[0]: \"{yy}/\": there is a brace",
		"{bucket: logs, prefixes: ['*/'], ordered: true}":  "ordered: true:",
		"{bucket: logs, start_time: yesterday}":            "start_time: \"yesterday\":",
		"{bucket: logs, start_time: 1969-01-01T00:00:00Z}": "start_time:",
		"{bucket: logs, period: 1ms}":                      "period: \"1ms\":",
		"{bucket: logs, look_back: 10s}":                   "look_back: \"10s\":",
		"{bucket: logs, look_back: 1h, min_age: 2h}":       "min_age: \"2h\":",
		"{bucket: logs, remember: 1KiB}":                   "remember: \"1KiB\":",
		"{bucket: logs, keys: ['']}":                       "keys[0]",
		"{bucket: logs, aws: {access_key: x}}":             "aws.access_secret: missing",
	}
	for text, want := range tests {
		cfg := defaultS3()
		err := config.Parse("p.yaml", []byte(text), &cfg)
		if got := fmt.Sprint(err); want == "" && err != nil || !strings.Contains(got, want) {
			t.Errorf("%s:\ngot  %s\nwant %s", text, got, want)
		}
	}
}

// A cursor that is read and written again is the same, and what is none does not
// make anything up.
func FuzzS3Cursor(f *testing.F) {
	s := newSeen(1 << 20)
	for i := range 3 * maxSaved / 2 {
		s.add(mark{id: messages.NewID([]byte{byte(i), byte(i >> 8)}), at: uint32(i)})
	}
	l := listing{Start: 1, Floor: 5, Began: 7, After: "k\x00ü"}
	f.Add(l.write(s))
	f.Add(l.write(newSeen(0)))
	f.Add([]byte("{}\n123"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var l, again listing
		s, s2 := newSeen(1<<20), newSeen(1<<20)
		if l.read(b, s) != nil {
			return
		}
		out := l.write(s)
		if err := again.read(out, s2); err != nil || again != l || s2.len() != min(s.len(), maxSaved) {
			t.Fatalf("%+v with %d marks became %+v with %d, %v", l, s.len(), again, s2.len(), err)
		}
		for id, at := range s2.marks {
			if !s.has(mark{id, at}) {
				t.Fatalf("mark %s was made up", id)
			}
		}
	})
}

// A bus that takes nothing holds the listing up, and a stop in the middle of that
// says so.
func TestListingWaitsForTheBus(t *testing.T) {
	s := newShelf(t)
	s.put(t, time.Now(), "a")
	bus, err := topology.Connect(t.Context(), s.server.Connect(topology.Options{Name: "one", Log: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 256 << 20, Lanes: 1}); err != nil {
		t.Fatal(err)
	}
	g, opened := newGate(false), make(chan struct{}, 1)
	cfg := defaultS3()
	cfg.Bucket, cfg.AWS = "logs", awsclient.Config{EndpointURL: s.URL(), AccessKey: "AKIATEST", SecretKey: config.NewSecret("secret")}
	source, err := Catalog.Open(t.Context(), "s3", cfg, Deps{
		Name: "list", Bus: bus, Drain: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
		NewOutbox: func() topology.Outbox {
			opened <- struct{}{}
			return gated{&topology.Recorder{}, g}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	<-opened
	cancel()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "ingest.drain_expired") {
		t.Errorf("run: %v", err)
	}
	r := s.read(t, "two", nil)
	r.until(t, "announced by the next", r.has(t, 1))
}
