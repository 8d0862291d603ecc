package console

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

// login logs somebody in.
func (b *tab) login(name string) {
	b.Helper()
	b.goTo("/login")
	b.fill("#name", name)
	b.fill("#password", password)
	b.press("main", "Log in")
	b.at("the first page", "location.pathname === '/pipeline'")
	b.settled()
}

// as opens a tab in which somebody is logged in.
func (w *world) as(t testing.TB, root browserContext, name string) *tab {
	t.Helper()
	b := newTab(t, root, w.console)
	b.login(name)
	return b
}

// submit agrees to what a dialog asks.
func (b *tab) submit() {
	b.Helper()
	b.click("#dialog[open] button[type=submit]")
}

// job waits until the page of a job shows a state, and returns the job.
func (b *tab) job(w *world, state string) topology.Job {
	b.Helper()
	b.at("the page of a job", "/^\\/replays\\/[0-9]{8}-/.test(location.pathname)")
	b.shows("main .lead", state)
	id := eval[string](b, "location.pathname.split('/')[2]")
	j, err := w.bus.Job(b.ctx, id)
	if err != nil {
		b.Fatal(err)
	}
	return j
}

// deeds are what the audit has since a time.
func (w *world) deeds(t testing.TB, since time.Time) (list []topology.Deed) {
	t.Helper()
	if err := w.bus.ReadAudit(t.Context(), since, func(d topology.Deed) bool {
		list = append(list, d)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

// audited fails the test unless a deed of ada was written down.
func (w *world) audited(t testing.TB, since time.Time, action string, count uint64) {
	t.Helper()
	list := w.deeds(t, since)
	for _, d := range list {
		if d.By == "ada" && d.Via == "console" && d.Action == action && d.Count == count {
			return
		}
	}
	t.Errorf("the audit has no %s of %d by ada: %+v", action, count, list)
}

// All of the console, over one pipeline. The parts follow each other: each leaves the
// pipeline as it found it.
// covers: design section 8
func TestConsole(t *testing.T) {
	root := browser(t)
	w := newWorld(t)
	ada := w.as(t, root, "ada")

	t.Run("login", func(t *testing.T) { testLogin(t, newTab(t, root, w.console)) })
	t.Run("pages", func(t *testing.T) { testPages(t, w, ada.in(t)) })
	t.Run("keyboard", func(t *testing.T) { testKeyboard(t, ada.in(t)) })
	t.Run("search", func(t *testing.T) { testSearch(t, w, ada.in(t)) })
	t.Run("destination", func(t *testing.T) { testDestination(t, w, ada.in(t)) })
	t.Run("replay", func(t *testing.T) { testReplay(t, w, ada.in(t)) })
	t.Run("steering", func(t *testing.T) { testSteering(t, w, ada.in(t)) })
	t.Run("ledger", func(t *testing.T) { testLedger(t, w, ada.in(t)) })
	t.Run("redrive", func(t *testing.T) { testRedrive(t, w, ada.in(t)) })
	t.Run("refused", func(t *testing.T) { testRefused(t, w, ada.in(t)) })
	t.Run("two operators", func(t *testing.T) { testTwoOperators(t, w, ada.in(t), w.as(t, root, "ben")) })
	t.Run("discard", func(t *testing.T) { testDiscard(t, w, ada.in(t)) })
	t.Run("backfill", func(t *testing.T) { testBackfill(t, w, ada.in(t)) })
	t.Run("reconcile", func(t *testing.T) { testReconcile(t, w, ada.in(t)) })
	t.Run("reparse", func(t *testing.T) { testReparse(t, w, ada.in(t)) })
	t.Run("read-only", func(t *testing.T) { testReadOnly(t, w.as(t, root, "eve")) })
}

// Nobody gets in without name and password, and out is out.
func testLogin(t *testing.T, b *tab) {
	b.goTo("/quarantine?stage=fetch")
	b.at("the login", "location.pathname === '/login'")
	b.named()
	b.readable()
	b.fits()
	b.shot("console-login-light-1280")
	b.allow(401)
	b.allow(403)
	b.allow(422)
	b.fill("#name", "ada")
	b.fill("#password", "wrong")
	b.press("main", "Log in")
	b.shows("[role=alert]", "password")
	b.fill("#password", password)
	b.press("main", "Log in")
	b.at("the page that was asked for", "location.pathname + location.search === '/quarantine?stage=fetch'")
	b.quiet()

	// The theme is there at once, and after a load, too.
	for _, theme := range []string{"dark", "light"} {
		b.do("choose "+theme, clickJS("input[name=theme][value="+theme+"]"))
		b.await(theme, "document.documentElement.dataset.theme === '"+theme+"'")
		b.settled()
		b.goTo("/replays")
		if got := eval[string](b, "document.documentElement.dataset.theme"); got != theme {
			t.Errorf("after a load the theme is %q, want %q", got, theme)
		}
	}
	b.quiet()

	b.press(".who", "Log out")
	b.at("the login", "location.pathname === '/login'")
	b.goTo("/ledger")
	b.at("the login", "location.pathname === '/login'")
}

// pagesOf are the pages, by the names of their pictures.
func pagesOf(t *testing.T, w *world, b *tab) map[string]string {
	t.Helper()
	b.goTo("/events")
	event := eval[string](b, "document.querySelector('table.events td a').getAttribute('href')")
	b.goTo("/quarantine")
	entry := eval[string](b, "document.querySelector('table.entries a').getAttribute('href')")
	b.goTo("/ledger")
	pull := eval[string](b, "document.querySelector('a[href^=\"/ledger/pulls/\"]').getAttribute('href')")
	object := w.story.Steps[1].Objects[0]
	return map[string]string{
		"pipeline": "/pipeline", "sources": "/sources", "source": "/sources/cloudtrail", "destinations": "/destinations", "destination": "/destinations/siem",
		"events": "/events", "event": event, "live": "/events/live", "replays": "/replays", "new-replay": "/replays/new?destination=lake",
		"new-backfill": "/replays/new/backfill?source=umbrella", "new-reparse": "/replays/new/reparse", "new-reconcile": "/replays/new/reconcile",
		"quarantine": "/quarantine", "entry": entry, "ledger": "/ledger", "pull": pull,
		"trace":    "/ledger/trace?what=s3%3A%2F%2F" + object.Bucket + "%2F" + strings.ReplaceAll(object.Key, "/", "%2F"),
		"topology": "/topology", "settings": "/settings", "audit": "/audit",
	}
}

// Each page loads without a complaint, at both widths and in both themes; nothing is cut
// off or hard to read, and all that can be operated has a name.
func testPages(t *testing.T, w *world, b *tab) {
	defer func() { b.size(1280); b.prefer("light") }()
	for name, path := range pagesOf(t, w, b) {
		b.size(1280)
		b.prefer("light")
		b.goTo(path)
		if name == "pipeline" {
			b.await("the plots", "document.querySelector('[data-plot] canvas')")
		}
		if !eval[bool](b, "!!document.querySelector('main h1') && document.title.endsWith('penstock')") {
			t.Errorf("%s has no heading or title", path)
		}
		b.named()
		for _, width := range []int64{1280, 390} { // a page follows both without being loaded again
			b.size(width)
			b.fits()
			for _, theme := range []string{"light", "dark"} {
				b.prefer(theme)
				if width == 1280 {
					b.readable()
				}
				b.shot(fmt.Sprintf("console-%s-%s-%d", name, theme, width))
			}
			b.prefer("light")
		}
		b.quiet()
		if html := eval[string](b, "document.documentElement.outerHTML"); strings.Contains(html, "canary-secret") {
			t.Errorf("%s shows a secret", path)
		}
	}
}

// The main ways go without a mouse, and the focus is always to be seen.
func testKeyboard(t *testing.T, b *tab) {
	b.goTo("/pipeline")
	b.key(kb.Tab)
	if at := b.focused(); !strings.Contains(at, "Skip to the content") {
		t.Errorf("the first Tab comes to %q, want the link that skips the navigation", at)
	}
	b.key(kb.Enter)
	b.await("the content has the focus", "document.activeElement.id === 'main'")
	b.goTo("/pipeline")
	b.tabTo("a[href='/quarantine']")
	b.key(kb.Enter)
	b.at("the quarantine", "location.pathname === '/quarantine'")
	b.settled()
	b.tabTo("#redrive")
	b.key(kb.Enter)
	b.await("the dialog", "document.querySelector('#dialog').open")
	b.await("the focus is in the dialog", "document.querySelector('#dialog').contains(document.activeElement)")
	for range 12 { // the focus stays in the dialog, or goes to the browser's own frame
		b.key(kb.Tab)
		if !eval[bool](b, "document.activeElement === document.body || document.querySelector('#dialog').contains(document.activeElement)") {
			t.Errorf("Tab left the dialog to %q", b.focused())
		}
	}
	b.key(kb.Escape)
	b.await("the dialog is closed", "!document.querySelector('#dialog').open")
	b.await("the focus is where it was", "document.activeElement.id === 'redrive'")
	b.quiet()
}

// Events are found by text and by expression, one is looked at, and those that come are
// followed.
func testSearch(t *testing.T, w *world, b *tab) {
	b.goTo("/events")
	b.fill("input[name=text]", "eu-west-1")
	b.press("form[action='/events']", "Search")
	b.shows("table.events mark", "eu-west-1")
	b.goTo("/events?where=event.region+%3D%3D")
	b.shows("main", "line 1")
	b.goTo("/events?types=cloud.aws.cloudtrail.%3E")
	b.do("open the first event", clickJS("table.events td a"))
	b.at("an event", "/^\\/events\\/[0-9]+\\.[0-9]+$/.test(location.pathname)")
	b.settled()
	b.shows("main", "eventName")
	b.quiet()

	b.goTo("/events/live?types=cloud.aws.cloudtrail.%3E&rate=50")
	b.shows("main", "following")
	w.put(t, 7700, 3)
	b.await("an event that comes", "document.querySelectorAll('[data-live-rows] tr').length > 0")
	b.shot("console-following-light-1280")
	b.quiet()

	// While it is paused the page stays as it is, and counts what passes.
	b.click("[data-live-pause]")
	b.shows("[data-live-state]", "paused")
	shown := eval[int](b, "document.querySelectorAll('[data-live-rows] tr').length")
	w.put(t, 7704, 2)
	b.shows("[data-live-state]", "passed meanwhile")
	b.lacks("[data-live-state]", ": 0 passed")
	if now := eval[int](b, "document.querySelectorAll('[data-live-rows] tr').length"); now != shown {
		t.Errorf("while it is paused the list grew from %d to %d", shown, now)
	}
	b.click("[data-live-pause]")
	b.lacks("[data-live-state]", "paused")
	b.press("[data-live]", "Clear the list")
	b.await("an empty list", "document.querySelectorAll('[data-live-rows] tr').length === 0")
	b.quiet()
}

// A destination is paused, and gets nothing until it goes on; others do.
func testDestination(t *testing.T, w *world, b *tab) {
	began := time.Now()
	b.goTo("/destinations")
	b.click("#pause-siem")
	b.shows("#dialog", "siem")
	b.fill("#field-reason", "index migration")
	b.submit()
	b.shows("#notices", "siem is paused")
	b.shows("main table", "paused")
	w.audited(t, began, "destination.pause", 1)
	o := w.put(t, 7701, 5)
	arrives(t, w.lake, o)
	if n := arrived(w.Sink, o); n != 0 {
		t.Errorf("the paused destination got %d events", n)
	}
	b.goTo("/destinations")
	b.click("#resume-siem")
	b.await("the dialog", "document.querySelector('#dialog').open")
	if b.exists("#field-reason[required]") {
		b.fill("#field-reason", "it is done")
	}
	b.submit()
	arrives(t, w.Sink, o)
	b.lacks("main table", "paused")
	w.audited(t, began, "destination.resume", 1)
	b.quiet()
}

// What a replay concerns is counted first; then the destination gets just that once more.
func testReplay(t *testing.T, w *world, b *tab) {
	began := time.Now()
	b.goTo("/destinations")
	b.do("replay to lake", clickJS("#replay-lake"))
	b.at("the form", "location.pathname === '/replays/new'")
	b.settled()
	if got := eval[string](b, "document.querySelector('[name=destination]').value"); got != "lake" {
		t.Errorf("the form is for destination %q", got)
	}
	// What is wrong is said at the field.
	b.fill("[name=where]", "event.region ==")
	b.press("#start-form", "Count first")
	b.shows("#start-form", "cannot be used")
	b.fill("[name=where]", "")
	b.fill("[name=types]", "no.such.type")
	b.press("#start-form", "Count first")
	b.shows("#count", "types")
	b.fill("[name=types]", "cloud.aws.cloudtrail.>")
	b.fill("[name=where]", "event.region == 'eu-west-1'")
	b.press("#start-form", "Count first")
	b.await("the count", "document.querySelector('#start')")
	b.shot("console-count-light-1280")
	count := uint64(eval[int](b, "parseInt(new URLSearchParams(document.querySelector('#start').getAttribute('hx-get').split('?')[1]).get('count'))"))
	if count == 0 || count >= uint64(w.events) {
		t.Fatalf("%d events were counted", count)
	}
	lake, siem := markOf(w.lake), markOf(w.Sink)
	b.click("#start")
	b.shows("#dialog", grouped(count)+" events")
	b.shot("console-confirm-light-1280")
	b.fill("#field-reason", "the lake lost a day")
	b.submit()
	j := b.job(w, topology.JobDone)
	if j.Progress.Done != count || j.Progress.Total != count || j.By != "ada" {
		t.Errorf("the job says %+v by %s, want %d of %[3]d by ada", j.Progress, j.By, count)
	}
	if got := lake.again(); got != int(count) {
		t.Errorf("the destination got %d events again, want %d", got, count)
	}
	if got := siem.again(); got != 0 {
		t.Errorf("the other destination got %d events again, want none", got)
	}
	b.shows("main", "the lake lost a day")
	b.shows("main table", "replay.start")
	w.audited(t, began, "replay.start", count)
	b.shot("console-job-light-1280")
	b.fits()
	b.quiet()
}

// A job is paused, goes on and is cancelled, and its page shows how it goes.
func testSteering(t *testing.T, w *world, b *tab) {
	began := time.Now()
	b.goTo("/replays/new?destination=lake&types=cloud.aws.%3E&rate=400")
	b.press("#start-form", "Count first")
	b.click("#start")
	b.submit()
	j := b.job(w, topology.JobRunning)
	b.await("progress", "/\\d\\/s/.test(document.querySelector('.progress').innerText)")
	b.shot("console-running-light-1280")
	b.press("main", "Pause")
	b.shows("#dialog", j.ID)
	b.submit()
	b.shows("main .lead", topology.JobPaused)
	b.press("main", "Resume")
	b.submit()
	b.shows("main .lead", topology.JobRunning)
	b.goTo("/replays")
	b.shows("table.jobs", "running")
	b.shot("console-jobs-light-1280")
	b.click("#cancel-" + j.ID)
	b.fill("#field-reason", "enough")
	b.submit()
	b.shows("table.jobs", topology.JobCancelled)
	for _, action := range []string{"job.pause", "job.resume", "job.cancel"} {
		found := false
		for _, d := range w.deeds(t, began) {
			found = found || d.Action == action && d.Job == j.ID && d.By == "ada"
		}
		if !found {
			t.Errorf("the audit has no %s", action)
		}
	}
	b.allow(422)
	b.goTo("/replays/" + j.ID + "/pause") // somebody who still had the page open
	b.shows("main", "cancelled meanwhile")
	b.quiet()
}

// The books balance, and each thing can be followed.
func testLedger(t *testing.T, w *world, b *tab) {
	b.goTo("/ledger")
	b.shows("#sum", "Balanced")
	object := w.story.Steps[1].Objects[3]
	b.fill("#what", "s3://"+object.Bucket+"/"+object.Key)
	b.press("main", "Trace")
	for _, step := range []string{"ingest", "fetch", "parse", "route", "deliver"} {
		b.shows(".journey", step)
	}
	b.goTo("/events?types=cloud.aws.cloudtrail.%3E")
	b.do("open the first event", clickJS("table.events td a"))
	b.at("an event", "/^\\/events\\/[0-9]+\\.[0-9]+$/.test(location.pathname)")
	id := eval[string](b, "(document.body.innerText.match(/\\b[0-9a-f]{32}\\b/) || [''])[0]")
	b.goTo("/ledger/trace?what=" + id)
	b.shows("main", "siem")
	b.shows(".journey", "deliver")
	b.goTo("/ledger/trace?what=s3://nowhere/nothing")
	b.shows("main [role=alert]", "nothing")
	b.goTo("/ledger?source=cloudtrail&state=balanced#pulls")
	if n := eval[int](b, "document.querySelectorAll('a[href^=\"/ledger/pulls/\"]').length"); n == 0 {
		t.Error("no pull of cloudtrail is balanced")
	}
	b.quiet()
}

// entry is the first entry of a filter, by its page.
func (b *tab) entry(query string) {
	b.Helper()
	b.goTo("/quarantine?" + query)
	b.do("open the first entry", clickJS("table.entries a"))
	b.at("an entry", "location.pathname.split('/').length === 3 && document.querySelector('#bytes')")
	b.settled()
}

// What failed is sent again: an object that is there by now arrives; a record that is
// still broken comes back with one attempt more, once.
// covers: pain 14
func testRedrive(t *testing.T, w *world, b *tab) {
	began := time.Now()
	missing := missingObject(t, w)
	set := w.object(77200, 7)
	if _, err := w.Cloud.Put(missing.Bucket, missing.Key, cloud.Object{Body: set.Body, Quiet: true}); err != nil {
		t.Fatal(err)
	}
	b.entry("code=fetch.no_such_key")
	b.shows("main", missing.Key)
	b.click("#redrive")
	b.shows("#dialog", "1 entry")
	b.submit()
	b.job(w, topology.JobDone)
	w.audited(t, began, "quarantine.redrive", 1)
	arrives(t, w.Sink, set)

	// A record that is broken stays so.
	b.entry("code=framing.bad_json")
	id := eval[string](b, "location.pathname.split('/')[2]")
	before := attempts(t, w, "framing.bad_json")
	b.press("#bytes", "Show as hex")
	b.await("hex", "document.querySelector('pre.bytes')")
	b.click("#redrive")
	b.submit()
	b.job(w, topology.JobDone)
	harness.Await(t, time.Minute, "it is back with one attempt more", func() bool {
		now := attempts(t, w, "framing.bad_json")
		return len(now) == 1 && len(before) == 1 && now[0] == before[0]+1
	})
	b.allow(404)
	b.goTo("/quarantine/" + id)
	b.shows("main", "not found")
	b.entry("code=framing.bad_json")
	b.shows("main", fmt.Sprintf("%d attempts", before[0]+1))
	b.quiet()
}

// What a destination refused goes to it, and to no other, once it takes it.
func testRefused(t *testing.T, w *world, b *tab) {
	refuse(w.lake, 400)
	o := w.put(t, 7703, 4)
	arrives(t, w.Sink, o)
	harness.Await(t, time.Minute, "the refused events are in quarantine", func() bool {
		return len(quarantinedFor(t, w, "lake")) >= 4
	})
	w.lake.SetFault(nil)
	siem := markOf(w.Sink)
	b.goTo("/quarantine")
	b.do("choose the destination", clickJS(".facets a[href*='destination=lake']"))
	b.at("the choice", "location.search.includes('destination=lake')")
	n := len(quarantinedFor(t, w, "lake"))
	b.shows("main", fmt.Sprintf("these %d", n))
	b.click("#redrive")
	b.shows("#dialog", "Redrive "+entries(n)+"?")
	b.fill("#field-rate", "100")
	b.submit()
	b.job(w, topology.JobDone)
	arrives(t, w.lake, o)
	if n := siem.again(); n != 0 {
		t.Errorf("the other destination got %d events again, want none", n)
	}
	b.goTo("/ledger")
	b.shows("#sum", "Balanced")
	b.quiet()
}

// Two people act on one entry: the second is told that the first was faster.
func testTwoOperators(t *testing.T, w *world, ada, ben *tab) {
	ada.entry("code=framing.bad_json")
	id := eval[string](ada, "location.pathname.split('/')[2]")
	ada.click("#redrive")
	ada.shows("#dialog", "Redrive")
	ben.goTo("/quarantine/" + id)
	ben.click("#discard")
	ben.fill("#field-reason", "nobody needs it")
	ben.submit()
	ben.job(w, topology.JobDone)
	ada.allow(422)
	ada.submit()
	ada.await("the answer", "location.pathname.startsWith('/replays/') || document.querySelector('.dialog-error').innerText !== ''")
	if eval[bool](ada, "location.pathname.startsWith('/replays/')") { // the job finds nothing to do
		if j := ada.job(w, topology.JobDone); j.Progress.Done != 0 {
			t.Errorf("the second operator's job did %d entries, want none", j.Progress.Done)
		}
	}
	ada.allow(404)
	ada.goTo("/quarantine/" + id)
	ada.shows("main", "not found")
	ada.quiet()
	ben.quiet()
}

// What nobody needs is thrown away, with a reason; before, it can be taken away.
func testDiscard(t *testing.T, w *world, b *tab) {
	began := time.Now()
	before := len(quarantined(t, w.bus))
	b.goTo("/quarantine")
	if got := fetchText(b, "/quarantine/export?"); strings.Count(got, "\n") != before {
		t.Errorf("the export has %d lines, want %d: %.200s", strings.Count(got, "\n"), before, got)
	}
	w.audited(t, began, "quarantine.export", uint64(before))
	b.click("#discard")
	b.shows("#dialog", "Discard "+entries(before)+"?")
	b.submit() // without a reason nothing happens
	b.await("the dialog stays", "document.querySelector('#dialog').open && document.querySelector('#field-reason:invalid')")
	b.fill("#field-reason", "old samples")
	b.submit()
	j := b.job(w, topology.JobDone)
	if j.Kind != "discard" || j.Progress.Done != uint64(before) || j.Reason != "old samples" {
		t.Errorf("the job is %+v", j)
	}
	w.audited(t, began, "quarantine.discard", uint64(before))
	harness.Await(t, time.Minute, "the quarantine is empty", func() bool { return len(quarantined(t, w.bus)) == 0 })
	b.goTo("/quarantine")
	b.shows("main", "is empty")
	b.shot("console-empty-light-1280")
	b.goTo("/ledger")
	b.shows("#sum", "Balanced")
	b.quiet()
}

// What a bucket holds is counted first, and read again behind what is live: all of it came
// before, and counts as duplicates.
func testBackfill(t *testing.T, w *world, b *tab) {
	siem := markOf(w.Sink)
	b.goTo("/replays/new/backfill?source=umbrella")
	if got := eval[string](b, "document.querySelector('[name=bucket]').value"); got != "penstock-demo-umbrella" {
		t.Errorf("the form has the bucket %q, want the one that the source reads", got)
	}
	b.fill("[name=bucket]", "")
	b.press("#start-form", "Count first")
	b.shows(".wrong", "name the bucket")
	b.fill("[name=bucket]", "penstock-demo-umbrella")
	b.press("#start-form", "Count first")
	j := b.job(w, topology.JobDone)
	if j.Progress.Done == 0 {
		t.Fatalf("nothing was counted: %+v", j)
	}
	b.press("main", fmt.Sprintf("Backfill %d object …", j.Progress.Done))
	b.shows("#dialog", "1 object")
	b.submit()
	b.at("another job", "!location.pathname.endsWith("+quote(j.ID)+")")
	if again := b.job(w, topology.JobDone); again.Progress.Done != j.Progress.Done {
		t.Errorf("%d objects were announced, want %d", again.Progress.Done, j.Progress.Done)
	}
	b.goTo("/ledger?source=umbrella#pulls")
	b.shows("#sum", "Balanced")
	if n := siem.again(); n != 0 {
		t.Errorf("%d events arrived again, want none", n)
	}
	b.quiet()
}

// A bucket is compared with the ledger; what was never announced is found, and announced
// when somebody says so.
func testReconcile(t *testing.T, w *world, b *tab) {
	o := w.object(77300, 9)
	if _, err := w.Cloud.Put(o.Bucket, o.Key, cloud.Object{Body: o.Body, Quiet: true, Modified: time.Now().Add(-time.Hour)}); err != nil {
		t.Fatal(err)
	}
	b.goTo("/replays/new/reconcile?source=cloudtrail")
	b.press("#start-form", "Compare …")
	b.submit()
	b.job(w, topology.JobDone)
	b.shows("main table", o.Key)
	b.shot("console-reconcile-light-1280")
	missing := eval[string](b, "[...document.querySelectorAll('main button')].map(e => e.innerText).find(s => s.startsWith('Announce')) || ''")
	if missing == "" {
		b.fail("nothing is said to be missing")
	}
	b.press("main", missing)
	b.submit()
	b.job(w, topology.JobDone)
	arrives(t, w.Sink, o)
	b.quiet()
}

// Records are parsed again, for one destination.
func testReparse(t *testing.T, w *world, b *tab) {
	lake, siem := markOf(w.lake), markOf(w.Sink)
	object := w.story.Steps[1].Objects[3]
	b.goTo("/replays/new/reparse?destination=lake&object=s3%3A%2F%2F" + object.Bucket + "%2F" + strings.ReplaceAll(object.Key, "/", "%2F"))
	b.press("#start-form", "Count first")
	b.click("#start")
	b.submit()
	b.job(w, topology.JobDone)
	harness.Await(t, time.Minute, "the destination has the events again", func() bool { return lake.again() == object.Records })
	if n := siem.again(); n != 0 {
		t.Errorf("the other destination got %d events again, want none", n)
	}
	b.quiet()
}

// Who may only look sees no actions, and can do none.
func testReadOnly(t *testing.T, b *tab) {
	for _, path := range []string{"/destinations", "/replays", "/quarantine", "/ledger"} {
		b.goTo(path)
		for _, css := range []string{"main [hx-get*='/pause']", "main [hx-get*='/cancel']", "main a[href^='/replays/new']", "#redrive", "#discard"} {
			if b.exists(css) {
				t.Errorf("%s shows %s to somebody who may only look", path, css)
			}
		}
	}
	b.quiet()
	b.allow(403)
	b.goTo("/replays/new")
	b.shows("main", "not allowed")
	for _, path := range []string{"/quarantine/discard", "/quarantine/redrive", "/destinations/siem/pause", "/replays/new/replay/start"} {
		status := postStatus(b, path, "reason=x&until=1&count=1")
		if status != 403 {
			t.Errorf("POST %s answers %d to somebody who may only look, want 403", path, status)
		}
	}
	b.quiet()
}

// quarantined are the entries.
func quarantined(t testing.TB, bus *topology.Bus) (list []*messages.Quarantine) {
	t.Helper()
	if err := bus.Read(t.Context(), topology.Span{Subject: "penstock.quarantine.>"}, func(m topology.Stored) error {
		q, err := messages.DecodeQuarantine(m.Data)
		list = append(list, q)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

// attempts of the entries with a code.
func attempts(t testing.TB, w *world, code string) (list []uint32) {
	t.Helper()
	for _, q := range quarantined(t, w.bus) {
		if q.Code == code {
			list = append(list, q.Attempts)
		}
	}
	return list
}

// quarantinedFor are the entries that a destination refused.
func quarantinedFor(t testing.TB, w *world, destination string) (list []*messages.Quarantine) {
	t.Helper()
	for _, q := range quarantined(t, w.bus) {
		if q.Destination == destination {
			list = append(list, q)
		}
	}
	return list
}

// entries counts entries as pages do.
func entries(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

// grouped is a number as pages write it.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// missingObject is the object of the story that is announced and not there.
func missingObject(t testing.TB, w *world) *messages.Origin {
	t.Helper()
	for _, q := range quarantined(t, w.bus) {
		if q.Code == "fetch.no_such_key" {
			return q.Origin
		}
	}
	t.Fatal("no object is missing in the quarantine")
	return nil
}
