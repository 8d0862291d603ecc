package console

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/penstock/penstock/tests/harness"
)

// patience is how long the browser waits for something to show.
const patience = 10 * time.Second

// chromium finds a browser, or skips the test.
func chromium(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("SKIPPED: no chromium on this machine; .ci/run test installs it")
	return ""
}

// browser starts a browser that ends with the test. Each tab of it has cookies of its own.
func browser(t testing.TB) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], //nolint:gocritic // a copy is what is wanted
		chromedp.ExecPath(chromium(t)), chromedp.NoSandbox, chromedp.DisableGPU, // containers have neither
		chromedp.Flag("lang", "en-GB"), chromedp.Flag("hide-scrollbars", true), chromedp.Flag("disable-component-update", true),
	)
	ctx, cancel := chromedp.NewExecAllocator(context.WithoutCancel(t.Context()), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx)
		cancel()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// tab is a tab of the browser, with what an operator does in it.
type tab struct {
	testing.TB
	ctx  context.Context
	base string

	mu sync.Mutex
	// trouble is what the page complained of: errors in its console, exceptions, what the
	// policy of its content forbade.
	trouble []string
	// allowed are the statuses of answers that are not trouble, beside 2xx and 3xx.
	allowed []int64
}

// newTab opens a tab at 1280 pixels in the light theme. base is the console's address.
func newTab(t testing.TB, browser context.Context, base string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	b := &tab{TB: t, ctx: ctx, base: base}
	if err := chromedp.Listen(ctx, b.heard); err != nil {
		t.Fatal(err)
	}
	b.size(1280)
	b.prefer("light")
	return b
}

// heard keeps what the page complains of.
func (b *tab) heard(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if x := e.ExceptionDetails.Exception; x != nil {
			text += " " + x.Description
		}
		b.trouble = append(b.trouble, "exception: "+text)
	case *runtime.EventConsoleAPICalled:
		if e.Type == "error" || e.Type == "warning" || e.Type == "assert" {
			text := ""
			for _, a := range e.Args {
				text += " " + string(a.Value) + a.Description
			}
			// htmx says each answer that is no success, too.
			if slices.ContainsFunc(b.allowed, func(status int64) bool { return strings.Contains(text, fmt.Sprintf("Status Error Code %d ", status)) }) {
				return
			}
			b.trouble = append(b.trouble, "console "+string(e.Type)+":"+text)
		}
	case *log.EventEntryAdded:
		if e.Entry.Source == "network" { // its own status is judged below
			return
		}
		if e.Entry.Level == "error" || e.Entry.Level == "warning" {
			b.trouble = append(b.trouble, fmt.Sprintf("%s %s: %s (%s)", e.Entry.Source, e.Entry.Level, e.Entry.Text, e.Entry.URL))
		}
	case *network.EventResponseReceived:
		if s := e.Response.Status; s >= 400 && !slices.Contains(b.allowed, s) {
			b.trouble = append(b.trouble, fmt.Sprintf("%s answered %d", e.Response.URL, s))
		}
	}
}

// quiet fails the test when the page complained of something since the last time.
func (b *tab) quiet() {
	b.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, what := range b.trouble {
		b.Errorf("the page complains: %s", what)
	}
	b.trouble = nil
}

// allow lets answers have a status that would be trouble.
func (b *tab) allow(status int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.allowed = append(b.allowed, status)
}

// do runs actions and fails the test with a picture of the page when they fail.
func (b *tab) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.fail("%s: %v", what, err)
	}
}

// fail ends the test, and keeps a picture of the page.
func (b *tab) fail(format string, args ...any) {
	b.Helper()
	what := fmt.Sprintf(format, args...)
	if picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot()); err == nil {
		path := filepath.Join(os.TempDir(), "penstock-console-"+strings.NewReplacer("/", "-", " ", "_").Replace(b.Name())+".png")
		if os.WriteFile(path, picture, 0o600) == nil {
			what += "\nthe page is in " + path
		}
	}
	text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("location.href + '\\n' + document.body.innerText.slice(0, 3000)"))
	b.mu.Lock()
	trouble := b.trouble
	b.mu.Unlock()
	b.Fatalf("%s\nthe page complained of: %q\nit shows:\n%s", what, trouble, text)
}

// eval runs JavaScript in the page.
func eval[T any](b *tab, js string) T {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](js))
	if err != nil {
		b.fail("%s: %v", js, err)
	}
	return v
}

// quote makes a string one of JavaScript.
func quote(s string) string {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// at waits until the browser is at a page, for which a JavaScript expression is true.
func (b *tab) at(what, js string) {
	b.Helper()
	b.await(what, js)
	b.settled()
}

// await waits until an expression is true in the page, also across loads.
func (b *tab) await(what, js string) {
	b.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(30 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool]("!!("+js+")"))
		if err == nil && ok {
			return
		}
		select {
		case <-deadline.C:
			b.fail("waited %s for %s (%s): %v", patience, what, js, err)
		case <-b.ctx.Done():
			b.Fatal(context.Cause(b.ctx))
		case <-tick.C:
		}
	}
}

// goTo opens a page of the console and waits until it is there.
func (b *tab) goTo(path string) {
	b.Helper()
	b.do("open "+path, chromedp.Navigate(b.base+path))
	b.settled()
}

// settled waits until the page is there and htmx has nothing under way.
func (b *tab) settled() {
	b.Helper()
	b.await("the page", "document.readyState === 'complete' && !document.querySelector('.htmx-request, .htmx-swapping, .htmx-settling')")
}

// shows waits until the text is to be seen within what the CSS selector finds.
func (b *tab) shows(css, text string) {
	b.Helper()
	b.await(fmt.Sprintf("%q in %s", text, css), fmt.Sprintf(
		"[...document.querySelectorAll(%s)].some(e => e.checkVisibility() && e.innerText.replace(/\\s+/g, ' ').toLowerCase().includes(%s.toLowerCase()))", quote(css), quote(text)))
}

// lacks waits until no such text is to be seen.
func (b *tab) lacks(css, text string) {
	b.Helper()
	b.await(fmt.Sprintf("no %q in %s", text, css), fmt.Sprintf(
		"![...document.querySelectorAll(%s)].some(e => e.checkVisibility() && e.innerText.replace(/\\s+/g, ' ').toLowerCase().includes(%s.toLowerCase()))", quote(css), quote(text)))
}

// exists tells whether something is in the page and to be seen.
func (b *tab) exists(css string) bool {
	b.Helper()
	return eval[bool](b, "[...document.querySelectorAll("+quote(css)+")].some(e => e.checkVisibility())")
}

// click clicks what the CSS selector finds, with the mouse, once it is there.
func (b *tab) click(css string) {
	b.Helper()
	b.await(css+" to click on", "(e => e && e.checkVisibility() && !e.disabled)(document.querySelector("+quote(css)+"))")
	b.settled()
	b.do("click "+css, chromedp.ScrollIntoView(chromedp.CSS(css)), chromedp.Click(chromedp.CSS(css)))
	b.settled()
}

// press clicks the button or link whose whole text it is, within css ("" anywhere).
func (b *tab) press(css, text string) {
	b.Helper()
	find := fmt.Sprintf("[...document.querySelectorAll(%s)].find(e => e.checkVisibility() && !e.disabled && (e.innerText || e.value || '').trim().replace(/\\s+/g, ' ').toLowerCase() === %s.toLowerCase())",
		quote(strings.TrimSpace(css)+" :is(button, a, summary, input[type=submit])"), quote(text))
	b.await("the button "+text, find)
	b.settled()
	b.do("mark "+text, chromedp.Evaluate[chromedp.Void](
		"document.querySelectorAll('[data-test-press]').forEach(e => e.removeAttribute('data-test-press')); ("+find+").setAttribute('data-test-press', '1')"))
	b.do("press "+text, chromedp.ScrollIntoView(chromedp.CSS("[data-test-press]")), chromedp.Click(chromedp.CSS("[data-test-press]")))
	b.settled()
}

// fill puts a value into a field, with the keyboard, or chooses it.
func (b *tab) fill(css, value string) {
	b.Helper()
	b.await(css+" to fill in", "(e => e && e.checkVisibility() && !e.disabled)(document.querySelector("+quote(css)+"))")
	switch eval[string](b, "(e => e.tagName === 'SELECT' ? 'select' : e.type)(document.querySelector("+quote(css)+"))") {
	case "select", "datetime-local", "date", "time":
		b.do("choose "+value, chromedp.Evaluate[chromedp.Void](fmt.Sprintf(
			"(e => { e.value = %s; if (e.value !== %[1]s) throw new Error('no such choice: ' + [...(e.options || [])].map(o => o.value)); e.dispatchEvent(new Event('input', {bubbles: true})); e.dispatchEvent(new Event('change', {bubbles: true})) })(document.querySelector(%s))", quote(value), quote(css))))
	case "checkbox", "radio":
		if on := eval[bool](b, "document.querySelector("+quote(css)+").checked"); on != (value != "") {
			b.do("tick "+css, chromedp.ScrollIntoView(chromedp.CSS(css)), chromedp.Click(chromedp.CSS(css)))
		}
	default:
		b.do("fill in "+css, chromedp.Evaluate[chromedp.Void]("(e => { e.focus(); e.select && e.select() })(document.querySelector("+quote(css)+"))"))
		if value == "" {
			b.do("empty "+css, chromedp.KeyEvent(kb.Delete))
			return
		}
		b.do("type into "+css, chromedp.KeyEvent(value))
	}
}

// key presses keys where the focus is.
func (b *tab) key(keys string) {
	b.Helper()
	b.do("press a key", chromedp.KeyEvent(keys))
}

// focused describes what has the focus.
func (b *tab) focused() string {
	b.Helper()
	return eval[string](b, "(e => e.tagName.toLowerCase() + (e.id ? '#' + e.id : '') + ' ' + (e.getAttribute('aria-label') || e.innerText || e.name || '').trim().slice(0, 60))(document.activeElement || document.body)")
}

// tabTo presses Tab until what the CSS selector finds has the focus, as one does without
// a mouse, and checks that the focus can be seen.
func (b *tab) tabTo(css string) {
	b.Helper()
	var seen []string
	for range 200 {
		b.key(kb.Tab)
		if eval[bool](b, "!!document.activeElement && document.activeElement.matches("+quote(css)+")") {
			if !eval[bool](b, `(e => { const s = getComputedStyle(e); return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0 || s.boxShadow !== 'none' })(document.activeElement)`) {
				b.Errorf("%s has the focus and does not show it", css)
			}
			return
		}
		seen = append(seen, b.focused())
	}
	b.fail("Tab never comes to %s, only to %q", css, seen)
}

// size makes the window so many pixels wide.
func (b *tab) size(width int64) {
	b.Helper()
	height := int64(900)
	if width < 700 {
		height = 844
	}
	b.do("resize", chromedp.EmulateViewport(width, height))
}

// prefer says which colours the machine of the operator prefers: light or dark.
func (b *tab) prefer(theme string) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if _, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}, {Name: "prefers-reduced-motion", Value: "reduce"}},
	}); err != nil {
		b.Fatal(err)
	}
}

// shown are the pictures that the documentation has.
var shown = []string{
	"console-pipeline-light-1280", "console-pipeline-dark-1280", "console-pipeline-light-390", "console-pipeline-dark-390",
	"console-sources-light-1280", "console-destinations-dark-1280", "console-events-light-390",
	"console-quarantine-light-1280", "console-quarantine-dark-390", "console-ledger-light-1280", "console-ledger-dark-1280",
	"console-trace-light-1280", "console-count-light-1280", "console-confirm-light-1280", "console-running-light-1280",
	"console-jobs-light-1280", "console-reconcile-light-1280", "console-settings-dark-1280",
}

// shot keeps a picture of the page when pictures are asked for: all in the folder
// SCREENSHOTS, or those of the documentation with UPDATE_SCREENSHOTS=1.
func (b *tab) shot(name string) {
	b.Helper()
	folder := os.Getenv("SCREENSHOTS")
	if os.Getenv("UPDATE_SCREENSHOTS") == "1" && slices.Contains(shown, name) {
		folder = filepath.Join(harness.Root(), "docs", "images")
	}
	if folder == "" {
		return
	}
	if err := os.MkdirAll(folder, 0o750); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, name+".png"), picture, 0o600); err != nil {
		b.Fatal(err)
	}
}

// fits fails the test when the page is wider than its window, or text in it is cut off.
func (b *tab) fits() {
	b.Helper()
	if wide := eval[int](b, "document.scrollingElement.scrollWidth - innerWidth"); wide > 0 {
		b.Errorf("%s is %d pixels wider than its window: %s", eval[string](b, "location.pathname"), wide, eval[string](b, `(() => {
			const over = [...document.body.querySelectorAll('*')].filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1)
			return over.slice(0, 5).map(e => e.outerHTML.slice(0, 120)).join('\n')
		})()`))
	}
	// Text that neither wraps nor scrolls, in a box that is too small for it.
	for _, cut := range eval[[]string](b, `[...document.body.querySelectorAll('*')].filter(e => {
		if (!e.checkVisibility() || !e.innerText || e.children.length) return false
		const s = getComputedStyle(e)
		return s.clipPath === 'none' && s.overflowX === 'hidden' && s.textOverflow !== 'ellipsis' && e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 1
	}).slice(0, 5).map(e => e.outerHTML.slice(0, 160))`) {
		b.Errorf("%s: cut off: %s", eval[string](b, "location.pathname"), cut)
	}
}

// readable fails the test when a text has less contrast than WCAG 2.2 asks for: 4.5, or 3
// where it is large. Texts over pictures and what is switched off are left out.
func (b *tab) readable() {
	b.Helper()
	for _, low := range eval[[]string](b, `(() => {
		const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
		const rgba = c => { // whatever way a colour is written
			canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1)
			const d = canvas.getImageData(0, 0, 1, 1).data
			return [d[0], d[1], d[2], d[3] / 255]
		}
		const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1)
		const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0)
		const behind = e => {
			const layers = []
			for (; e; e = e.parentElement) {
				const s = getComputedStyle(e)
				if (s.backgroundImage !== 'none') return null
				const c = rgba(s.backgroundColor)
				if (c[3] > 0) layers.push(c)
				if (c[3] === 1) break
			}
			return layers.reverse().reduce((a, c) => over(c, a), [255, 255, 255, 1])
		}
		const low = []
		for (const e of document.body.querySelectorAll('*')) {
			if (!e.checkVisibility({opacityProperty: true, visibilityProperty: true}) || e.closest('[disabled], [aria-disabled=true], svg, canvas')) continue
			if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue
			const s = getComputedStyle(e), back = behind(e)
			if (!back || e.clientWidth + e.offsetWidth < 4) continue
			const size = parseFloat(s.fontSize), large = size >= 24 || size >= 18.66 && s.fontWeight >= 700
			const a = light(over(rgba(s.color), back)), z = light(back)
			const ratio = (Math.max(a, z) + .05) / (Math.min(a, z) + .05)
			if (ratio < (large ? 3 : 4.5) - .05) low.push(ratio.toFixed(2) + ' ' + s.color + ' on ' + back.slice(0, 3).map(Math.round) + ': ' + e.outerHTML.slice(0, 120))
		}
		return low.slice(0, 8)
	})()`) {
		b.Errorf("%s: too little contrast: %s", eval[string](b, "location.pathname"), low)
	}
}

// named fails the test when something to operate has no name for those who do not see it.
func (b *tab) named() {
	b.Helper()
	for _, bare := range eval[[]string](b, `[...document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a[href]')].filter(e => {
		if (!e.checkVisibility()) return false
		if (e.labels && e.labels.length) return ![...e.labels].some(l => l.textContent.trim())
		return !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.title || e.textContent.trim() || e.value && /^(submit|button|reset)$/.test(e.type))
	}).slice(0, 5).map(e => e.outerHTML.slice(0, 160))`) {
		b.Errorf("%s: no label: %s", eval[string](b, "location.pathname"), bare)
	}
	for _, twice := range eval[[]string](b, `(ids => [...new Set(ids.filter((id, i) => ids.indexOf(id) !== i))])([...document.querySelectorAll('[id]')].map(e => e.id))`) {
		b.Errorf("%s: the id %s is there more than once", eval[string](b, "location.pathname"), twice)
	}
}

// browserContext is that of a browser, for which tabs are opened.
type browserContext = context.Context

// in is the tab for a part of a test.
func (b *tab) in(t testing.TB) *tab {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.TB, b.allowed, b.trouble = t, nil, nil
	return b
}

// clickJS clicks without a mouse: for what another part is in front of, or what is tiny.
func clickJS(css string) chromedp.Action[chromedp.Void] {
	return chromedp.Evaluate[chromedp.Void]("document.querySelector(" + quote(css) + ").click()")
}

// fetchText is the answer to a GET from the page, with its cookies.
func fetchText(b *tab, path string) string {
	b.Helper()
	return promised[string](b, "fetch("+quote(path)+").then(r => r.text())")
}

// postStatus is the status of the answer to a POST from the page, with its cookies and
// its token.
func postStatus(b *tab, path, body string) int {
	b.Helper()
	return promised[int](b, `fetch(`+quote(path)+`, {method: 'POST', redirect: 'manual', body: `+quote(body)+`, headers: Object.assign(
		{'Content-Type': 'application/x-www-form-urlencoded', 'HX-Request': 'true'}, JSON.parse(document.body.getAttribute('hx-headers') || '{}'))}).then(r => r.status)`)
}

// promised is the value of a promise.
func promised[T any](b *tab, js string) T {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](js, chromedp.EvalAwaitPromise))
	if err != nil {
		b.fail("%s: %v", js, err)
	}
	return v
}
