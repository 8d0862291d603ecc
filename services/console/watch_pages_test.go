package console

import (
	"bufio"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/services/internal/standing"
	"github.com/penstock/penstock/services/operate/books"
	"github.com/penstock/penstock/services/operate/freshness"
	"github.com/penstock/penstock/services/operate/status"
	"github.com/penstock/penstock/topology"
)

// desk is a console over a bus of its own, as the pages see it.
type desk struct {
	t       testing.TB
	console *Console
	bus     *topology.Bus
	url     string
	frames  int
	// books are what the ledger is said to say.
	books *paper
	conf  status.Configured
}

// newDesk starts a console without login over a fresh bus.
func newDesk(t testing.TB, conf status.Configured) *desk {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: 4 << 30, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	bus, err := topology.Connect(t.Context(), server.Connect(topology.Options{Name: "desk", Log: quiet}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bus.Close)
	if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 4 << 30}); err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t, bus: bus, books: &paper{}, conf: conf}
	cfg := Defaults()
	cfg.Address = "127.0.0.1:0"
	d.console, err = New(cfg, Deps{
		Bus: func() *topology.Bus { return bus }, Configured: func() status.Configured { return d.conf },
		Books: func() books.Reader { return d.books }, Log: quiet, Every: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	d.url = d.console.URL()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.console.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return d
}

// event is one to be stored.
type event struct {
	kind, source, doc string
	origin            *messages.Origin
}

// store puts events into the log, a frame of one event for each, and returns their ids.
func (d *desk) store(events ...event) []string {
	d.t.Helper()
	var ids []string
	out := d.bus.NewOutbox(topology.Route)
	for _, e := range events {
		d.frames++
		if e.source == "" {
			e.source = "trail"
		}
		b := messages.NewBuilder(messages.Header{Source: e.source, Format: "json", EventType: e.kind})
		o := e.origin
		if o == nil {
			o = &messages.Origin{Bucket: "logs", Key: fmt.Sprintf("a/%d.json", d.frames)}
		}
		o.Source, o.Pull = e.source, messages.NewPull("desk", fmt.Sprint(d.frames))
		id := messages.NewID([]byte(fmt.Sprint("desk", d.frames)))
		b.Add(messages.Event{
			ID: id, Time: time.Date(2026, 5, 1, 10, 0, d.frames, 0, time.UTC).UnixNano(), Origin: b.Origin(o), Record: 7,
			Account: "123456789012", Region: "eu-west-1", Doc: []byte(e.doc),
		})
		ids = append(ids, id.String())
		subject := topology.EventSubject(e.kind)
		if err := out.Publish(d.t.Context(), topology.Message{Subject: subject, ID: "desk-" + fmt.Sprint(d.frames), Data: b.Encode(nil), Events: 1, Bytes: len(e.doc), Source: e.source}); err != nil {
			d.t.Fatal(err)
		}
		// One after the other, so that their order is known.
		if err := out.Flush(d.t.Context()); err != nil {
			d.t.Fatal(err)
		}
	}
	return ids
}

// get asks for a page as a browser does.
func (d *desk) get(path string) (int, string) { return d.do(http.MethodGet, path, nil) }

func (d *desk) do(method, path string, form url.Values) (int, string) {
	d.t.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(d.t.Context(), method, d.url+path, body)
	if err != nil {
		d.t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("HX-Request", "true")
	}
	// What an action leads to is for the caller to see.
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, string(data) + resp.Header.Get("HX-Trigger") + resp.Header.Get("Location")
}

var tokenField = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// act opens a dialog and sends it, as a person does.
func (d *desk) act(path string, form url.Values) (int, string) {
	d.t.Helper()
	code, page := d.get(path)
	token := tokenField.FindStringSubmatch(page)
	if code != http.StatusOK || token == nil {
		d.t.Fatalf("GET %s: %d, no dialog: %s", path, code, page)
	}
	form.Set("csrf", token[1])
	return d.do(http.MethodPost, path, form)
}

// shows holds a page to what it has to say, and must not.
func (d *desk) shows(path string, want ...string) string {
	d.t.Helper()
	code, page := d.get(path)
	if code != http.StatusOK {
		d.t.Fatalf("GET %s: %d: %s", path, code, page)
	}
	for _, w := range want {
		no, hidden := strings.CutPrefix(w, "!")
		if hidden == strings.Contains(page, no) {
			_, content, _ := strings.Cut(page, "<main")
			d.t.Errorf("GET %s: %q: shown %v, in %s", path, no, !hidden, cmp.Or(content, page))
		}
	}
	return page
}

// await polls until a page shows something.
func (d *desk) await(path, want string) {
	d.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, page := d.get(path)
		if strings.Contains(page, want) {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("GET %s never shows %q: %s", path, want, page)
		}
		select {
		case <-d.t.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// paper is a ledger that says what it was given.
type paper struct {
	books.Reader
	summary books.Summary
	sources []books.SourceBalance
	trails  map[string]books.Trail
}

func (p *paper) Summary(context.Context) (books.Summary, error)         { return p.summary, nil }
func (p *paper) Sources(context.Context) ([]books.SourceBalance, error) { return p.sources, nil }
func (p *paper) Pull(_ context.Context, id string) (books.Trail, error) {
	if t, ok := p.trails[id]; ok {
		return t, nil
	}
	return books.Trail{}, books.ErrUnknown.New(nil, "find the pull")
}

// covers: design section 8
func TestEventsPage(t *testing.T) {
	d := newDesk(t, status.Configured{Sources: map[string]string{"trail": "sqs"}})
	d.shows("/events", "There are no events in the log yet", "!Older ones")
	ids := d.store(
		event{kind: "cloud.aws.cloudtrail.iam", doc: `{"eventName":"CreateUser","user":{"name":"Ann"}}`},
		event{kind: "cloud.aws.vpc.flow", source: "vpc", doc: `{"action":"REJECT"}`},
		event{kind: "sig.dns", source: "umbrella", doc: `{"query":"example.org"}`},
	)
	page := d.shows("/events", "CreateUser", "REJECT", "example.org", "Looked at 3 events in 3 frames", "The log began at", "nothing was ever stored before")
	if strings.Index(page, "example.org") > strings.Index(page, "CreateUser") {
		t.Error("the oldest comes first")
	}
	for _, tt := range []struct {
		name, query string
		want        []string
	}{
		{"type with wildcards", "types=cloud.aws.*.iam,sig.>", []string{"CreateUser", "!REJECT", "example.org"}},
		{"source", "source=vpc", []string{"!CreateUser", "REJECT"}},
		{"text, whatever its case", "text=ann", []string{"<mark>Ann</mark>", "!REJECT"}},
		{"expression", "where=" + url.QueryEscape(`event.doc.?action.orValue("") == "REJECT"`), []string{"REJECT", "!CreateUser"}},
		{"expression that fails", "where=" + url.QueryEscape(`event.doc.action == "REJECT"`), []string{"REJECT", "The expression failed for 2 events"}},
		{"object", "object=" + url.QueryEscape("s3://logs/a/1*"), []string{"CreateUser", "!REJECT"}},
		{"nothing fits", "text=zebra", []string{"No event fits.", "Looked at 3 events"}},
		{"long ago", "from=2020-01-01&to=2020-01-02", []string{"No event fits.", "!CreateUser"}},
		{"nothing is gone", "from=2020-01-01", []string{"CreateUser", "!The log has a part of this time range no more", "The log began at"}},
		{"last hour", "last=1h", []string{"CreateUser"}},
		{"malformed expression", "where=" + url.QueryEscape("event.type == &&"), []string{"Line 1, column 15: did not expect &#39;&amp;&amp;&#39;<", "did not expect the end here", "event.type == &amp;&amp;", "              <b>^</b>", "!CreateUser", `aria-invalid="true"`}},
		{"not a bool", "where=event.type", []string{"It gives string, not a bool"}},
		{"bad type", "types=a..b", []string{"use dotted words", "!CreateUser"}},
		{"bad object", "object=s3:/x", []string{"name an object as s3://bucket/key"}},
		{"bad time", "from=yesterday", []string{"use a time in UTC"}},
		{"turned round", "from=2026-05-02&to=2026-05-01", []string{"nothing can be in between"}},
		{"too long", "text=" + strings.Repeat("x", mostTyped+1), []string{"use at most 4,096 bytes"}},
		{"bad id", "id=xyz", []string{"an id has 32 hex digits"}},
		{"unknown id", "id=" + strings.Repeat("0", 32), []string{"No event with this id"}},
		{"filters stay", "types=sig.%3E&source=umbrella", []string{`value="sig.&gt;"`, `value="umbrella"`, "/replays/new?source=umbrella&amp;types=sig.%3E"}},
	} {
		t.Run(tt.name, func(t *testing.T) { d.t = t; d.shows("/events?"+tt.query, tt.want...) })
	}
	d.t = t
	if code, to := d.get("/events?id=" + ids[0]); code != http.StatusSeeOther || !strings.Contains(to, "/events/1.0") {
		t.Errorf("by its id: %d, %s", code, to)
	}
	d.shows("/events/check?where="+url.QueryEscape("event.x"), "undeclared reference", "!<html")
	d.shows("/events/check?where="+url.QueryEscape(`event.type == "a"`), "!mistake")
	for _, path := range []string{"/events/99.0", "/events/1.99", "/events/nonsense", "/events/0.0"} {
		if code, page := d.get(path); code != http.StatusNotFound {
			t.Errorf("GET %s: %d %s", path, code, page)
		}
	}
}

// More than fits on a page comes page by page, each event once.
func TestEventsPaging(t *testing.T) {
	d := newDesk(t, status.Configured{})
	var all []event
	for i := range 3*eventsAtOnce - 20 {
		all = append(all, event{kind: "a.b", doc: fmt.Sprintf(`{"n":"<%d>"}`, i)})
	}
	d.store(all...)
	next := regexp.MustCompile(`hx-get="(/events/more\?[^"]+)"`)
	number := regexp.MustCompile(`&lt;(\d+)&gt;`)
	seen := map[string]bool{}
	_, page := d.get("/events?types=a.*")
	for pages := 1; ; pages++ {
		for _, m := range number.FindAllStringSubmatch(page, -1) {
			if seen[m[1]] {
				t.Errorf("event %s comes twice", m[1])
			}
			seen[m[1]] = true
		}
		more := next.FindStringSubmatch(page)
		if more == nil {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		_, page = d.get(strings.ReplaceAll(more[1], "&amp;", "&"))
		if strings.Contains(page, "<html") {
			t.Fatal("more is not a fragment")
		}
	}
	if len(seen) != len(all) {
		t.Errorf("%d of %d events were shown", len(seen), len(all))
	}
	if code, _ := d.get("/events/more?before=x"); code != http.StatusUnprocessableEntity {
		t.Errorf("a cursor that is none: %d", code)
	}
}

// What strangers write stays text, wherever it is shown.
//
// covers: design section 8
func TestHostileEvents(t *testing.T) {
	const evil = `"><script>alert(1)</script><img src=x onerror=alert(2)>'{{.}}`
	quoted, _ := json.Marshal(evil)
	d := newDesk(t, status.Configured{Destinations: map[string]string{}})
	d.store(event{
		kind: "a.b", source: evil, doc: `{` + string(quoted) + `:` + string(quoted) + `,"raw":"</pre><script>x</script>\u202e"}`,
		origin: &messages.Origin{Bucket: "b", Key: evil, Version: evil, Etag: evil, Queue: evil, Api: evil, Resource: evil, Account: evil, Region: evil},
	}, event{kind: "a.b", doc: "not json <script>y</script>\x00\x1b[31m\u202e"})
	pull := hex.EncodeToString(messages.NewPull("desk", "1"))
	d.books.trails = map[string]books.Trail{pull: {
		Pull:  ledger.Pull{Pull: pull, State: ledger.Unbalanced, Problems: []string{evil}},
		Steps: []books.Step{{Stage: "fetch", What: evil, Destination: evil, At: time.Now()}},
	}}
	d.books.sources = []books.SourceBalance{{Source: evil, Total: ledger.Total{Counts: ledger.Counts{Quarantined: map[string]uint64{evil: 1}}}}}
	q := url.QueryEscape(evil)
	for _, path := range []string{
		"/events", "/events?text=script", "/events?text=" + q + "&source=" + q + "&types=" + q + "&object=" + q + "&from=" + q + "&where=" + q,
		"/events/live?text=" + q, "/events/check?where=" + q, "/events/1.0", "/events/1.0/journey", "/events/2.0",
		"/sources", "/sources?q=" + q, "/sources/" + url.PathEscape(evil), "/sources/" + url.PathEscape(evil+"x"), "/destinations", "/destinations/" + url.PathEscape(evil),
	} {
		_, page := d.get(path)
		for _, bad := range []string{"<script>alert", "<img src=x", "<script>x", "<script>y", "onerror=alert(2)>'", "\u202e", "\x1b", "\x00"} {
			// In the text of an attribute, quotes are escaped: what is left cannot get out.
			if strings.Contains(page, bad) {
				t.Errorf("GET %s lets %q through: %s", path, bad, page)
			}
		}
	}
	code, page := d.get("/events/1.0/document")
	if code != http.StatusOK || !strings.HasPrefix(page, `{"\"\u003e`) && !strings.HasPrefix(page, `{"\"`) {
		t.Errorf("the download: %d %s", code, page)
	}
}

func TestEventPage(t *testing.T) {
	d := newDesk(t, status.Configured{})
	d.store(event{kind: "cloud.aws.cloudtrail.iam", doc: `{"eventName":"CreateUser","n":12345678901234567890}`})
	pull := hex.EncodeToString(messages.NewPull("desk", "1"))
	at := time.Date(2026, 5, 1, 10, 0, 0, 0, time.UTC)
	d.books.trails = map[string]books.Trail{pull: {
		Pull: ledger.Pull{Pull: pull, State: ledger.Balanced},
		Steps: []books.Step{
			{Stage: "ingest", At: at, What: "announced as object"},
			{Stage: "deliver", At: at.Add(1500 * time.Millisecond), What: "confirmed 1", Destination: "siem"},
		},
	}}
	for _, c := range []topology.Consumer{
		topology.DeliverConsumer("siem", nil, topology.Start{}), topology.DeliverConsumer("dns", []string{"sig.>"}, topology.Start{}), topology.DeliverConsumer("late", nil, topology.Start{Now: true}),
	} {
		if _, err := d.bus.Begin(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	d.shows("/events/1.0", "CreateUser", "12345678901234567890", `<span class="j-key">`, "s3://logs/a/1.json"[5:9], "a/1.json", "eu-west-1", "123456789012",
		"/ledger/trace?what=s3%3A%2F%2Flogs%2Fa%2F1.json", "/replays/new?object=s3%3A%2F%2Flogs%2Fa%2F1.json", "2026-05-01 10:00:01")
	d.shows("/events/1.0/journey", "announced as object", "+1.5s", "deliver → siem", "balanced", "!dns", "!<html")
	page := d.shows("/events/1.0/journey", `>siem</a> <span class="badge info">waiting`, `>late</a> <span class="badge off">older`)
	if strings.Contains(page, `siem</a> <span class="badge ok">`) {
		t.Error("siem is said to have it")
	}
	d.books.trails = nil
	d.shows("/events/1.0/journey", "does not know this event&#39;s object")
	d.console.deps.Books = nil
	d.shows("/events/1.0/journey", "No process keeps the ledger&#39;s books", "penstock trace")
}

// Live events come over server-sent events, at most as many a second as were asked for,
// and what was left out is counted.
func TestLiveEvents(t *testing.T) {
	d := newDesk(t, status.Configured{})
	d.shows("/events/live?types=a.>", `sse-connect="/events/stream?rate=5&amp;types=a.%3E"`, `sse-swap="event"`, "data-live-pause")
	d.shows("/events/live?where=event.x", "undeclared reference", "!sse-connect=\"/events/stream")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.url+"/events/stream?types=a.>&rate=2", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req) //nolint:bodyclose // it is closed, but read elsewhere
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || kind != "text/event-stream" {
		t.Fatalf("%d %s", resp.StatusCode, kind)
	}
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(resp.Body); s.Scan(); {
			lines <- s.Text()
		}
	}()
	shown, began := 0, time.Now()
	var count string
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := 0; shown < 5 || !strings.Contains(count, "left out by the rate"); {
		select {
		case <-tick.C:
			d.store(event{kind: "a.b", doc: fmt.Sprintf(`{"n":%d,"x":"</tr><script>"}`, i)}, event{kind: "c.d", doc: `{"other":1}`})
			i++
		case line, ok := <-lines:
			switch {
			case !ok:
				t.Fatal("the stream ended")
			case strings.Contains(line, "<script>") || strings.Contains(line, "other"):
				t.Fatalf("got %s", line)
			case strings.Contains(line, `class="doc"`):
				shown++
			case strings.Contains(line, "shown"):
				count = line
			}
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("%d shown, %q", shown, count)
		}
	}
	if most := 3 + 2*int(time.Since(began).Seconds()+1); shown > most {
		t.Errorf("%d events in %s, more than 2 a second", shown, time.Since(began))
	}
}

// process is a process that delivers, as far as the bus sees it.
func (d *desk) process(name string, states func(paused map[string]bool) []standing.State) {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	paused := map[string]bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		d.bus.FollowControls(ctx, func(said map[string]topology.Control) {
			mu.Lock()
			defer mu.Unlock()
			for n, c := range said {
				paused[n] = c.Paused
			}
		})
	})
	wg.Go(func() {
		_ = d.bus.Answer(ctx, standing.Question, func() []byte {
			mu.Lock()
			defer mu.Unlock()
			data, _ := json.Marshal(standing.Answer{Process: name, Destinations: states(paused)})
			return data
		})
	})
	d.t.Cleanup(func() { cancel(); wg.Wait() })
}

func running(name string) func(map[string]bool) []standing.State {
	return func(paused map[string]bool) []standing.State {
		s := standing.State{Destination: name, Type: "http", State: standing.Running, Breaker: standing.BreakerClosed}
		if paused[name] {
			s.State, s.Breaker = standing.Paused, ""
		}
		return []standing.State{s}
	}
}

// covers: design section 8
func TestDestinationsPages(t *testing.T) {
	d := newDesk(t, status.Configured{Destinations: map[string]string{"idle": "file"}})
	d.books.summary.Destinations = []ledger.Destination{{Settled: ledger.Settled{Name: "siem", Confirmed: 1234, Quarantined: map[string]uint64{"deliver.refused": 3}}}}
	d.shows("/destinations", "idle", "stopped")
	d.store(event{kind: "a.b", doc: `{}`}, event{kind: "a.b", doc: `{}`})
	if _, err := d.bus.Begin(t.Context(), topology.DeliverConsumer("siem", nil, topology.Start{})); err != nil {
		t.Fatal(err)
	}
	d.process("p1", running("siem"))
	d.process("p2", func(map[string]bool) []standing.State {
		return []standing.State{{Destination: "siem", Type: "http", State: standing.Failing, Error: "connection <refused>", Breaker: standing.BreakerOpen}}
	})
	d.await("/destinations/list", "connection &lt;refused&gt;")
	d.shows("/destinations", "siem", "failing", "2 frames", "1,234", `/quarantine?destination=siem">3`, "/replays/new?destination=siem", "!<html><html")
	d.shows("/destinations/siem", "p1", "p2", "running", "failing", `2<small> events</small>`, "deliver.refused", "Pause …")
	if code, _ := d.get("/destinations/nobody"); code != http.StatusNotFound {
		t.Errorf("a destination that is not there: %d", code)
	}
}

// Pause asks back with what waits, wants a reason, is written down, and is followed.
//
// covers: design section 8, design section 6
func TestPauseAndResume(t *testing.T) {
	d := newDesk(t, status.Configured{})
	d.store(event{kind: "a.b", doc: `{}`})
	if _, err := d.bus.Begin(t.Context(), topology.DeliverConsumer("siem", nil, topology.Start{})); err != nil {
		t.Fatal(err)
	}
	d.process("p1", running("siem"))
	d.await("/destinations/list", ">running<")
	// The list is swapped as a whole; what a button loads goes into the dialog.
	d.shows("/destinations", `hx-get="/destinations/siem/pause" hx-target="#dialog" hx-swap="innerHTML"`)
	d.shows("/destinations/siem/pause", "Pause siem?", "<b>1</b> frames wait", "1 process delivers to it", `name="reason"`)
	if code, page := d.act("/destinations/siem/pause", url.Values{"reason": {" "}}); code != http.StatusUnprocessableEntity {
		t.Errorf("without a reason: %d %s", code, page)
	}
	if code, page := d.do(http.MethodPost, "/destinations/siem/pause", url.Values{"reason": {"x"}}); code != http.StatusForbidden {
		t.Errorf("without the token: %d %s", code, page)
	}
	if code, page := d.act("/destinations/siem/pause", url.Values{"reason": {"CHG-1234"}}); code != http.StatusNoContent || !strings.Contains(page, "siem is paused.") {
		t.Fatalf("pause: %d %s", code, page)
	}
	d.shows("/destinations", "paused by local", "CHG-1234", "Resume …", "!Pause …")
	if code, page := d.get("/destinations/siem/pause"); code != http.StatusUnprocessableEntity || !strings.Contains(page, "was paused by local") {
		t.Errorf("pause again: %d %s", code, page)
	}
	if code, page := d.act("/destinations/siem/resume", url.Values{}); code != http.StatusNoContent || !strings.Contains(page, "siem goes on.") {
		t.Fatalf("resume: %d %s", code, page)
	}
	d.shows("/destinations", ">running<", "Pause …")
	var deeds []topology.Deed
	if err := d.bus.ReadAudit(t.Context(), time.Time{}, func(deed topology.Deed) bool { deeds = append(deeds, deed); return true }); err != nil {
		t.Fatal(err)
	}
	if len(deeds) != 2 || deeds[0].Action != "destination.pause" || deeds[0].By != "local" || deeds[0].Via != "console" || deeds[0].Reason != "CHG-1234" || deeds[1].Action != "destination.resume" {
		t.Errorf("the audit: %+v", deeds)
	}
}

// Of two operators who pause at once, one is told that the other was faster.
func TestTwoOperatorsPause(t *testing.T) {
	d := newDesk(t, status.Configured{Destinations: map[string]string{"siem": "http"}})
	_, page := d.get("/destinations/siem/pause")
	token := tokenField.FindStringSubmatch(page)[1]
	if err := d.bus.SetControl(t.Context(), topology.Control{Destination: "siem", Paused: true, By: "bob", At: time.Now(), Reason: "mine"}); err != nil {
		t.Fatal(err)
	}
	code, page := d.do(http.MethodPost, "/destinations/siem/pause", url.Values{"csrf": {token}, "reason": {"also"}})
	if code != http.StatusUnprocessableEntity || !strings.Contains(page, "was paused by bob") {
		t.Errorf("%d %s", code, page)
	}
	said, err := d.bus.Controls(t.Context())
	if err != nil || said["siem"].By != "bob" {
		t.Errorf("%v %v", said, err)
	}
}

// covers: design section 8
func TestSourcesPages(t *testing.T) {
	conf := status.Configured{Sources: map[string]string{}}
	for i := range 1000 {
		conf.Sources[fmt.Sprintf("source-%04d", i)] = "sqs"
	}
	d := newDesk(t, conf)
	now := time.Now()
	d.books.sources = []books.SourceBalance{
		{Source: "source-0001", Total: ledger.Total{Pulls: 5, Open: 2, PullsQuarantined: map[string]uint64{"fetch.no_object": 1}, Counts: ledger.Counts{Records: 4321, Unique: 4000, Duplicates: 321, Quarantined: map[string]uint64{"parse.bad_json": 7}}}},
		{Source: "source-0002", Since: now.Add(-time.Hour), Total: ledger.Total{Unbalanced: 1}},
		{Source: "source-0003", Since: now.Add(-time.Minute), Total: ledger.Total{Unbalanced: 1}},
	}
	set := func(s *status.Snapshot) {
		s.Sources = []freshness.State{
			{Source: "source-0001", First: now.Add(-time.Hour), Last: now.Add(-time.Minute), Usual: 90 * time.Second, Allowed: 9 * time.Minute, Samples: 40, Setting: "auto"},
			{Source: "source-0003", First: now.Add(-time.Hour), Last: now.Add(-time.Minute), Usual: 90 * time.Second, Allowed: 9 * time.Minute, Setting: "auto"},
			{Source: "source-0004", First: now.Add(-48 * time.Hour), Last: now.Add(-5 * time.Hour), Usual: time.Minute, Allowed: 9 * time.Minute, Silent: true, Since: now.Add(-4 * time.Hour), Setting: "auto"},
		}
		s.Drift = []freshness.Drift{{Source: "source-0003", Format: "umbrella", Kind: "column", Name: "new<col>", Records: 12, First: now, Last: now, Sample: `a,b,"<script>"`}}
	}
	// The next look of the console is far away: what it saw last is what we say.
	hold := func() {
		d.await("/sources", "1,000 sources")
		for d.console.now.Load() == nil {
			runtime.Gosched()
		}
		s := &sample{tried: now, seen: now}
		set(&s.Snapshot)
		d.console.now.Store(s)
	}
	hold()
	page := d.shows("/sources", "1,000 sources", "source-0004", "silent", "since", "source-0002", "unbalanced", "Page 1 of 10")
	if strings.Index(page, ">source-0004<") > strings.Index(page, ">source-0002<") || strings.Index(page, ">source-0003<") > strings.Index(page, ">source-0000<") {
		t.Error("the worst does not come first")
	}
	d.shows("/sources?page=10", "Page 10 of 10", "source-0999", "!source-0500")
	d.shows("/sources?page=99", "Page 10 of 10")
	d.shows("/sources?q=SOURCE-000", "10 of 1,000 sources", "!Page 1")
	d.shows("/sources?state=silent", "1 of 1,000 sources", "source-0004", "!source-0001")
	d.shows("/sources?q=nothing", "No source fits")
	d.shows("/sources/list?sort=records", "!<html", "source-0001", "4,321", "7 + 1 whole")
	if code, _ := d.get("/sources?sort=x"); code != http.StatusUnprocessableEntity {
		t.Errorf("an order that is none: %d", code)
	}
	d.shows("/sources/source-0003", "new&lt;col&gt;", "12 records", `a,b,&#34;&lt;script&gt;&#34;`, "drift", "1m 30s", "balanced")
	d.shows("/sources/source-0001", "fetch.no_object", "parse.bad_json", "learned from 40 gaps", "4,321")
	if code, _ := d.get("/sources/nobody"); code != http.StatusNotFound {
		t.Errorf("a source that is not there: %d", code)
	}
}

// Without a bus the pages say so, and come back.
func TestWatchPagesWithoutBus(t *testing.T) {
	cfg := Defaults()
	cfg.Address = "127.0.0.1:0"
	c, err := New(cfg, Deps{Bus: func() *topology.Bus { return nil }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	d := &desk{t: t, console: c, url: c.URL()}
	for _, path := range []string{"/events", "/events/live", "/events/1.0", "/events/stream", "/sources", "/destinations", "/destinations/a"} {
		if code, page := d.get(path); code != http.StatusServiceUnavailable || !strings.Contains(page, "The bus does not answer") {
			t.Errorf("GET %s: %d %s", path, code, page)
		}
	}
}
