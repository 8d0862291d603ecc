package console

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/penstock/penstock/services/operate/books"
	"github.com/penstock/penstock/services/operate/freshness"
	"github.com/penstock/penstock/services/operate/status"
	"github.com/penstock/penstock/topology"
)

// wantStrict holds an answer to the headers that each must have.
func wantStrict(t testing.TB, path string, header http.Header) {
	t.Helper()
	if header.Get("Content-Security-Policy") != policy || header.Get("X-Content-Type-Options") != "nosniff" || header.Get("X-Frame-Options") != "DENY" ||
		header.Get("Referrer-Policy") != "same-origin" || header.Get("Cross-Origin-Opener-Policy") != "same-origin" {
		t.Errorf("%s: headers %v", path, header)
	}
	if !strings.HasPrefix(path, "/static/") && header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s may be kept: %q", path, header.Get("Cache-Control"))
	}
}

// wantClean holds a page to having nothing inline, and a label for each input. It returns
// where the page leads.
func wantClean(t testing.TB, path, page string) (leads []string) {
	t.Helper()
	root, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	labelled, ids := map[string]bool{}, map[string]bool{}
	for n := range root.Descendants() {
		for _, a := range n.Attr {
			if n.Data == "label" && a.Key == "for" {
				labelled[a.Val] = true
			}
			if a.Key == "id" {
				if ids[a.Val] {
					t.Errorf("%s: the id %s is there twice", path, a.Val)
				}
				ids[a.Val] = true
			}
		}
	}
	for n := range root.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		attr := map[string]string{}
		for _, a := range n.Attr {
			attr[a.Key] = a.Val
			if a.Key == "style" || strings.HasPrefix(a.Key, "on") || strings.HasPrefix(a.Key, "hx-on") || strings.HasPrefix(a.Key, "data-hx-on") {
				t.Errorf("%s: <%s> has %s=%q", path, n.Data, a.Key, a.Val)
			}
			if strings.HasPrefix(strings.ToLower(strings.TrimSpace(a.Val)), "javascript:") || strings.HasPrefix(a.Val, "js:") {
				t.Errorf("%s: <%s> has %s=%q", path, n.Data, a.Key, a.Val)
			}
		}
		switch n.Data {
		case "style", "iframe", "object", "embed", "base":
			t.Errorf("%s has <%s>", path, n.Data)
		case "script":
			if n.FirstChild != nil || !strings.HasPrefix(attr["src"], "/static/") {
				t.Errorf("%s has a script in the page", path)
			}
		case "input", "select", "textarea":
			within := false
			for p := range n.Ancestors() {
				within = within || p.Data == "label"
			}
			if attr["type"] != "hidden" && !within && !labelled[attr["id"]] && attr["aria-label"] == "" {
				t.Errorf("%s: <%s name=%q> has no label", path, n.Data, attr["name"])
			}
		case "img":
			if _, ok := attr["alt"]; !ok {
				t.Errorf("%s: an image has no text", path)
			}
		}
		for _, key := range []string{"href", "hx-get", "src"} {
			if to := attr[key]; strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "//") {
				leads = append(leads, to)
			} else if to != "" && key != "hx-get" && !strings.HasPrefix(to, "#") && !strings.HasPrefix(to, "?") && !strings.HasPrefix(to, "data:") {
				t.Errorf("%s leads elsewhere: %s=%q", path, key, to)
			}
		}
	}
	return leads
}

// Every page, and all that can be reached from them by links and by buttons that open
// dialogs, has nothing inline, and every answer the strict policy.
//
// covers: design section 8
func TestNothingInline(t *testing.T) {
	d := newDesk(t, status.Configured{Destinations: map[string]string{"siem": "http"}, Sources: map[string]string{"trail": "sqs"}})
	d.process("one", running("siem"))
	kept, err := books.Open(t.Context(), t.TempDir(), books.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	d.console.deps.Books = func() books.Reader { return kept }
	d.console.deps.Effective = func() ([]byte, error) { return []byte("bus:\n  url: \"\"\n  token: \"[redacted]\"\n"), nil }
	d.store(event{kind: "cloud.aws.cloudtrail.iam", doc: `{"a":"<script>alert(1)</script>","b":"\" onload=\"x"}`})
	for i := range 3 {
		if err := d.bus.WriteAudit(t.Context(), topology.Deed{By: `<img src=x onerror=alert(1)>`, Via: "console", Action: "replay.start", What: `" onmouseover="x`, Count: uint64(i), Job: "20260101-abcdef"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.bus.AddJob(t.Context(), topology.Job{Kind: "reparse", Spec: []byte(`{}`), Needs: "operate", By: "<b>", What: `<style>x</style>`}); err != nil {
		t.Fatal(err)
	}
	d.console.look(t.Context())
	var todo []string
	for _, p := range pages {
		if p.get != nil {
			todo = append(todo, p.path)
		}
	}
	seen := map[string]bool{}
	for len(todo) > 0 && len(seen) < 300 {
		path := todo[0]
		todo = todo[1:]
		key, _, _ := strings.Cut(path, "#")
		if seen[key] || strings.Contains(key, "/live") || strings.Contains(key, "/follow") {
			continue
		}
		seen[key] = true
		for _, htmx := range []bool{false, true} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, key, nil)
			r.Host = "localhost"
			if htmx {
				r.Header.Set("HX-Request", "true")
			}
			w := httptest.NewRecorder()
			d.console.handler.ServeHTTP(w, r)
			answer := w.Result()
			wantStrict(t, key, answer.Header)
			if w.Code >= 500 {
				t.Errorf("%s: status %d: %s", key, w.Code, cut(w.Body.String(), 300))
			}
			if strings.HasPrefix(answer.Header.Get("Content-Type"), "text/html") {
				todo = append(todo, wantClean(t, key, w.Body.String())...)
			}
		}
	}
	if len(seen) < 2*len(pages)/3 {
		t.Errorf("only %d addresses were seen", len(seen))
	}
	// What is not found, not allowed and not understood is strict, too.
	for _, path := range []string{"/nowhere", "/static/x/app.css", "/events/%00", "/login", "/"} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, nil)
		r.Host = "localhost"
		w := httptest.NewRecorder()
		d.console.handler.ServeHTTP(w, r)
		wantStrict(t, path, w.Result().Header)
	}
}

// The console starts without NATS: each page loads, with the way to the others, and says
// what is the matter.
//
// covers: design section 8
func TestWithoutBus(t *testing.T) {
	cfg := Defaults()
	cfg.Address = "127.0.0.1:0"
	c := bare(t, cfg)
	c.look(t.Context())
	b := newBrowser(t, c)
	for _, p := range pages {
		if p.nav == navNone || p.get == nil {
			continue
		}
		began := time.Now()
		page := b.get(p.path).text
		wantClean(t, p.path, page)
		if !strings.Contains(page, "The bus does not answer") || !strings.Contains(page, `href="/pipeline"`) || !strings.Contains(page, "<h1>") {
			t.Errorf("%s does not say that the bus is away: %s", p.path, cut(page, 400))
		}
		if d := time.Since(began); d > requestTime {
			t.Errorf("%s took %s", p.path, d)
		}
	}
}

// A server that is lost while the console runs is missed, and pages show what was seen last.
func TestBusIsLost(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: 512 << 20, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(server.Stop)
	defer stop()
	bus, err := topology.Connect(t.Context(), server.Connect(topology.Options{Name: "lost", Log: quiet}))
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 512 << 20}); err != nil {
		t.Fatal(err)
	}
	cfg := Defaults()
	cfg.Address = "127.0.0.1:0"
	c := bare(t, cfg)
	c.deps.Bus = func() *topology.Bus { return bus }
	c.look(t.Context())
	b := newBrowser(t, c)
	if page := b.get("/topology").text; !strings.Contains(page, "penstock.event.") || strings.Contains(page, "does not answer") {
		t.Fatalf("the streams are not shown: %s", page)
	}
	stop()
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c.look(short)
	if c.now.Load().err == nil {
		// look gave up with its context: what it found then does not count.
		c.look(t.Context())
	}
	page := b.get("/topology").text
	if !strings.Contains(page, "penstock.event.") || !strings.Contains(page, "The bus does not answer") {
		t.Errorf("what was seen last is not shown, or not that it is old: %s", cut(page, 3000))
	}
}

func TestAssets(t *testing.T) {
	b := newBrowser(t, bare(t, guarded(t))) // not logged in: the login page needs them
	for name, a := range assets() {
		path, err := assetPath(name)
		if err != nil {
			t.Fatal(err)
		}
		b.header.Set("Accept-Encoding", "gzip")
		r := b.get(path)
		wantStatus(t, r, http.StatusOK)
		wantStrict(t, path, r.Header)
		if r.Header.Get("Cache-Control") != "public, max-age=31536000, immutable" {
			t.Errorf("%s is kept %q", name, r.Header.Get("Cache-Control"))
		}
		if r.Header.Get("Content-Encoding") == "gzip" {
			unzip, err := gzip.NewReader(strings.NewReader(r.text))
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(unzip)
			if err != nil || string(data) != string(a.data) {
				t.Errorf("%s: %d bytes of %d (%v)", name, len(data), len(a.data), err)
			}
		}
		b.header.Del("Accept-Encoding")
		if got := b.get(path).text; got != string(a.data) {
			t.Errorf("%s without gzip: %d bytes of %d", name, len(got), len(a.data))
		}
		wantStatus(t, b.get("/static/000000000000/"+name), http.StatusNotFound)
	}
	// Each library comes with its licence.
	files, err := os.ReadDir("static")
	if err != nil {
		t.Fatal(err)
	}
	for _, lib := range []string{"htmx.LICENSE", "htmx-ext-sse.LICENSE", "uPlot.LICENSE"} {
		if !slices.ContainsFunc(files, func(f os.DirEntry) bool { return f.Name() == lib }) {
			t.Errorf("%s is missing", lib)
		}
	}
}

// served runs a console with a page of the test's own.
func served(t *testing.T, cfg Config, more ...page) *Console {
	t.Helper()
	before := pages
	pages = append(slices.Clone(pages), more...)
	defer func() { pages = before }()
	c, err := New(cfg, Deps{Bus: func() *topology.Bus { return nil }, Log: slog.New(slog.DiscardHandler), Every: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func open(t *testing.T) Config {
	t.Helper()
	cfg := Defaults()
	cfg.Address = "127.0.0.1:0"
	return cfg
}

// stream opens a stream, and returns its lines.
func stream(t *testing.T, c *Console, path, cookie string) (<-chan string, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "text/event-stream")
	if cookie != "" {
		r.AddCookie(&http.Cookie{Name: "penstock", Value: cookie})
	}
	answer, err := http.DefaultClient.Do(r) //nolint:bodyclose // what reads the lines closes it
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("status %d, %s", answer.StatusCode, answer.Header.Get("Content-Type"))
	}
	lines := make(chan string, 100)
	go func() {
		defer close(lines)
		defer answer.Body.Close()
		for scan := bufio.NewScanner(answer.Body); scan.Scan(); {
			lines <- scan.Text()
		}
	}()
	t.Cleanup(cancel)
	return lines, cancel
}

func next1(t *testing.T, lines <-chan string, want string) {
	t.Helper()
	for {
		select {
		case l, ok := <-lines:
			if !ok {
				t.Fatalf("the stream ended before %q", want)
			}
			if l == want {
				return
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%q never came", want)
		}
	}
}

// Who follows a topic gets what is published, each line of it as data; when the console
// stops, streams end.
func TestFollow(t *testing.T) {
	c := served(t, open(t), page{routes: []route{{"GET /test/live", func(r *request) error { return r.follow("test") }, readOnly}}})
	if c.followed("test") {
		t.Error("somebody follows already")
	}
	lines, leave := stream(t, c, "/test/live", "")
	next1(t, lines, "retry: 2000")
	await(t, func() bool { return c.followed("test") })
	c.publish("test", "news", "<p>one</p>\r\n<p>two</p>")
	c.publish("other", "news", "not this")
	next1(t, lines, "event: news")
	next1(t, lines, "data: <p>one</p>")
	next1(t, lines, "data: <p>two</p>")
	leave()
	await(t, func() bool { return !c.followed("test") })
}

// Whoever looks after nobody did sees something new soon, however old the last sample is
// when they come.
func TestLooksAgainWhenAsked(t *testing.T) {
	d := newDesk(t, status.Configured{})
	for name, test := range map[string]struct{ every, age time.Duration }{
		"just sampled": {time.Second, 0}, "long ago": {20 * time.Millisecond, 200 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Defaults()
			cfg.Address = "127.0.0.1:0"
			c, err := New(cfg, Deps{Bus: func() *topology.Bus { return d.bus }, Log: slog.New(slog.DiscardHandler), Every: test.every})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.listener.Close() })
			ctx, cancel := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			wg.Go(func() { c.watch(ctx) })
			await(t, func() bool { s := c.now.Load(); return s != nil && time.Since(s.tried) > test.age })
			before := c.latest()
			for giveUp := time.Now().Add(sampleUnseen / 2); c.now.Load() == before; {
				if time.Now().After(giveUp) {
					t.Fatal("the same is still shown")
				}
				time.Sleep(time.Millisecond) // between two looks
			}
		})
	}
}

func await(t *testing.T, what func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !what(); {
		if time.Now().After(end) {
			t.Fatal("it never happened")
		}
		time.Sleep(time.Millisecond) // between two looks
	}
}

// Who does not keep up loses the connection and holds nobody up; what waits is bounded.
func TestSlowFollowersAreDropped(t *testing.T) {
	var c Console
	slow, leaveSlow := c.hub.join("t")
	defer leaveSlow()
	fast, leaveFast := c.hub.join("t")
	defer leaveFast()
	for i := range maxQueue + 1 {
		c.publish("t", "e", fmt.Sprint(i))
		if got := <-fast; got.html != fmt.Sprint(i) {
			t.Fatalf("got %s, want %d", got.html, i)
		}
	}
	n := 0
	for range slow { // ends: it was closed
		n++
	}
	if n != maxQueue {
		t.Errorf("%d events waited, want %d", n, maxQueue)
	}
}

// As many streams are open as are allowed, and places come back.
func TestStreamsAreBounded(t *testing.T) {
	var h hub
	for range maxStreams {
		if !h.enter() {
			t.Fatal("too few streams are allowed")
		}
	}
	if h.enter() {
		t.Error("too many streams are allowed")
	}
	h.leave()
	if !h.enter() {
		t.Error("a place did not come back")
	}
}

// As many requests are answered at one time as are allowed; streams do not count.
func TestRequestsAreBounded(t *testing.T) {
	hold := make(chan struct{})
	var in sync.WaitGroup
	in.Add(maxRequests)
	c := served(t, open(t), page{path: "/test", routes: []route{
		{"GET /test/hold", func(*request) error { in.Done(); <-hold; return nil }, readOnly},
		{"GET /test/live", func(r *request) error { return r.follow("test") }, readOnly},
	}})
	lines, _ := stream(t, c, "/test/live", "")
	next1(t, lines, "retry: 2000")
	var all sync.WaitGroup
	for range maxRequests {
		all.Go(func() {
			if r, err := http.Get(c.URL() + "/test/hold"); err == nil { //nolint:noctx // it ends with the test
				r.Body.Close()
			}
		})
	}
	in.Wait()
	r, err := http.Get(c.URL() + "/topology") //nolint:noctx // it ends with the test
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" {
		t.Errorf("one too many gets status %d", r.StatusCode)
	}
	close(hold)
	all.Wait()
}

// A form has its bound, a page that panics harms no other, and an error says what to do.
func TestFailures(t *testing.T) {
	c := served(t, open(t), page{path: "/test", title: "Test", routes: []route{
		{"GET /test/panic", func(*request) error { panic("secret") }, readOnly},
		{"GET /test/input", func(*request) error { return errInput.New(nil, "read the rate %q", "<b>x") }, readOnly},
		{"GET /test/error", func(*request) error { return errors.New("plain") }, readOnly},
		{"POST /test/form", func(r *request) error { return r.ParseForm() }, operator},
		{"POST /test/done", func(r *request) error { return r.done("Ünïcode ✓ 😀", r.FormValue("to")) }, operator},
	}})
	await(t, c.away)
	b := newBrowser(t, c)
	r := b.get("/test/panic")
	wantStatus(t, r, http.StatusInternalServerError)
	if strings.Contains(r.text, "secret") {
		t.Error("a panic shows what it is about")
	}
	r = b.get("/test/input")
	wantStatus(t, r, http.StatusUnprocessableEntity)
	if page := r.text; !strings.Contains(page, "Read the rate &#34;&lt;b&gt;x&#34;") || !strings.Contains(page, "correct the field") {
		t.Errorf("the error of an input: %s", page)
	}
	wantStatus(t, b.get("/test/error"), http.StatusServiceUnavailable) // it may be for lack of the bus
	token := c.sign(local)
	b.header.Set("X-CSRF-Token", token)
	wantStatus(t, b.do(http.MethodPost, "/test/form", url.Values{"a": {strings.Repeat("x", maxBody)}}), http.StatusRequestEntityTooLarge)
	// htmx gets a notice, in ASCII, and the page that follows shows it once.
	b.header.Set("HX-Request", "true")
	r = b.do(http.MethodPost, "/test/done", url.Values{})
	wantStatus(t, r, http.StatusNoContent)
	if got := r.Header.Get("HX-Trigger"); !strings.Contains(got, `\u00dcn\u00efcode \u2713 \ud83d\ude00`) || !strings.Contains(got, `"refresh":true`) {
		t.Errorf("the notice is %s", got)
	}
	r = b.do(http.MethodPost, "/test/done", url.Values{"to": {"/topology"}})
	if r.Header.Get("HX-Redirect") != "/topology" {
		t.Errorf("htmx is sent to %q", r.Header.Get("HX-Redirect"))
	}
	b.header.Del("HX-Request")
	if page := b.get("/topology").text; !strings.Contains(page, "Ünïcode ✓ 😀") {
		t.Error("the notice is not on the page that follows")
	}
	if page := b.get("/topology").text; strings.Contains(page, "Ünïcode") {
		t.Error("the notice is shown twice")
	}
	b.header.Set("HX-Request", "true")
	r = b.get("/test/input")
	wantStatus(t, r, http.StatusUnprocessableEntity)
	if got := r.Header.Get("HX-Trigger"); !strings.Contains(got, `"kind":"error"`) || strings.Contains(got, "refresh") {
		t.Errorf("the notice of an error is %s", got)
	}
}

// The audit is paged and filtered, newest first.
//
// covers: design section 6
func TestAuditPage(t *testing.T) {
	d := newDesk(t, status.Configured{})
	for i := range auditPage + 5 {
		by, action := "olga", "quarantine.redrive"
		if i%5 == 0 {
			by, action = "rita", "destination.pause"
		}
		if err := d.bus.WriteAudit(t.Context(), topology.Deed{By: by, Via: "console", Action: action, What: fmt.Sprintf("thing-%03d", i), Count: 1234567, Reason: "because"}); err != nil {
			t.Fatal(err)
		}
	}
	d.shows("/audit", "thing-054", "thing-005", "!thing-004", "55 entries", "1,234,567", "skip=50")
	d.shows("/audit?skip=50", "thing-004", "!thing-005", "Newest")
	d.shows("/audit?by=rita", "thing-050", "!thing-051", "11 entries")
	d.shows("/audit?action=quarantine.redrive&text=THING-051", "thing-051", "!thing-052", "1 entry")
	d.shows("/audit?text=nothing+like+it", "No entry fits", "!thing-0")
	d.shows("/audit?skip=-5", "thing-054")
}

// Settings are shown with secrets hidden.
func TestSettingsPage(t *testing.T) {
	d := newDesk(t, status.Configured{})
	d.console.deps.Effective = func() ([]byte, error) {
		return []byte("bus:\n  url: nats://x\n  token: \"[redacted]\"\nsources:\n  - name: trail\n"), nil
	}
	d.shows("/settings", `id="set-bus"`, `id="set-sources"`, "nats://x", "hidden-secret", "!redacted", "<b>trail</b>", "1 entry")
}

// What is kept of the past has its bounds, and what is drawn has, too.
func TestHistory(t *testing.T) {
	var h history
	now := time.Now().Add(-26 * time.Hour)
	for i := range int(26 * time.Hour / sampleEvery) {
		s := &sample{Snapshot: status.Snapshot{At: now.Add(time.Duration(i) * sampleEvery)}}
		s.Stages = []status.Stage{{Name: "parse", OutRate: 100, Errors: uint64(10 * i)}}
		s.Destinations = []status.Destination{{Rate: 40}, {Rate: 2}}
		h.add(s)
	}
	if fine, rough := len(h.fine.points), len(h.coarse.points); fine != int(fineFor/sampleEvery) || rough != int(coarseFor/coarse) {
		t.Errorf("%d fine and %d coarse points are kept", fine, rough)
	}
	for _, d := range spans {
		points := h.span(d, maxPoints)
		if len(points) == 0 || len(points) > maxPoints || time.Since(time.Unix(points[0].at, 0)) > d+time.Minute || time.Since(time.Unix(points[0].at, 0)) < d*9/10 {
			t.Errorf("%s: %d points, the first from %s", d, len(points), time.Unix(points[0].at, 0))
		}
		for i, p := range points {
			if i > 0 && p.at <= points[i-1].at {
				t.Fatalf("%s: point %d is not after the one before", d, i)
			}
			if v := p.values[2]; near(v[measureOut], 100) || near(v[measureErrors], 2) || near(p.delivered, 42) {
				t.Fatalf("%s: point %d is %+v", d, i, p)
			}
		}
	}
}

func near(got, want float32) bool { return got < want*0.999 || got > want*1.001 }

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		num(uint64(1234567)): "1,234,567", num(-1000): "-1,000", num(0): "0", num(999): "999",
		rate(0): "0", rate(0.25): "0.25", rate(12.34): "12.3", rate(45_678): "45.7 k", rate(1_234_567): "1.23 M", rate(1230): "1,230",
		brief(9999): "9,999", brief(16_628): "16.6 k", brief(12_345_678): "12.35 M", size(0): "0 B", size(1023): "1023 B", size(1536): "1.5 KiB", size(uint64(5 << 30)): "5.0 GiB",
		dur(0): "0s", dur(350 * time.Millisecond): "350ms", dur(4200 * time.Millisecond): "4.2s", dur(192 * time.Second): "3m 12s", dur(99 * time.Hour): "4d 3h", dur(time.Microsecond): "1ms",
		plural(1, "entry", "entries"): "1 entry", plural(2000, "entry", "entries"): "2,000 entries",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// thousand is a pipeline with so many sources, as a sample.
func thousand() *sample {
	s := &sample{Snapshot: status.Snapshot{At: time.Now()}, seen: time.Now()}
	for _, name := range topology.Stages {
		s.Stages = append(s.Stages, status.Stage{Name: string(name), Processes: 3, In: 1e7, Out: 1e7, InRate: 5000, OutRate: 5000, LagFrames: 10})
	}
	for i := range 1000 {
		s.Sources = append(s.Sources, freshness.State{Source: fmt.Sprintf("source-%04d", i), Silent: i%100 == 0, Last: time.Now()})
		if i%100 == 0 {
			s.Problems = append(s.Problems, status.Problem{Severity: "error", Area: "source", Name: fmt.Sprint(i), What: "is silent", Fix: "look at it"})
		}
	}
	for i := range 20 {
		s.Destinations = append(s.Destinations, status.Destination{Name: fmt.Sprint(i), State: "running", Rate: 5000})
	}
	s.Streams = []status.Stream{{Name: topology.Events, Messages: 20_000, Bytes: 5 << 30, Oldest: time.Now().Add(-time.Hour)}}
	return s
}

// BenchmarkPipelinePage is the whole answer over HTTP with 1,000 sources; events in the
// log do not matter, since nothing is asked for a page.
func BenchmarkPipelinePage(b *testing.B) {
	cfg := Defaults()
	cfg.Address = "127.0.0.1:0"
	c, err := New(cfg, Deps{Bus: func() *topology.Bus { return nil }, Log: slog.New(slog.DiscardHandler), Every: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	defer c.listener.Close()
	for i := range 1440 {
		s := &sample{Snapshot: status.Snapshot{At: time.Now().Add(time.Duration(i-1440) * sampleEvery)}}
		c.history.add(s)
	}
	c.now.Store(thousand())
	server := httptest.NewServer(c.handler)
	defer server.Close()
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		r, err := http.Get(server.URL + "/pipeline") //nolint:noctx // it ends with the benchmark
		if err != nil {
			b.Fatal(err)
		}
		first := make([]byte, 1)
		if _, err := r.Body.Read(first); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
		_, _ = io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
	slices.Sort(took)
	b.ReportMetric(took[len(took)*99/100].Seconds()*1000, "p99-first-byte-ms")
}
