package security

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/html"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/tests/harness"
)

// evil is in every text that strangers choose in these tests: what terminals obey (in
// seven and in eight bits), what turns text round, what ends a line, and what would be an
// element or an attribute of a page.
const evil = "\x1b]0;owned\x07\x1b[2J\u009b31m\u202edesrever\u2066\r\n<x-evil onmouseover=alert(1)>\" onx-evil=\"1\" '><script>alert(1)</script>{{7*7}}=cmd|' /C calc'!A1\x00\x7f"

// hostileWorld is a pipeline at work, of which strangers chose every text they can.
type hostileWorld struct {
	*harness.World
	console, receiver string
	process           *harness.Process
	dest              *harness.Sink
}

func startHostileWorld(t *testing.T) *hostileWorld {
	t.Helper()
	w := &hostileWorld{World: harness.NewWorld(t, nil), dest: harness.StartSink(t)}
	console, receiver := harness.FreeAddr(t), harness.FreeAddr(t)
	w.console, w.receiver = "http://"+console, "http://"+receiver
	w.Source = fmt.Sprintf("  - {name: push, type: http, address: %q, auth: none, endpoints: [{path: /in, kind: json, format: json}, {path: /hec, kind: splunk_hec}, {path: /form, kind: form, format: json}]}\n", receiver)
	w.Destination = fmt.Sprintf("  - {name: refuser, type: http, url: %q, backoff: {initial: 100ms, max: 1s}}\n  - {name: files, type: file, path: %q}\n", w.dest.URL, filepath.Join(w.Dir, "{destination}", "out.ndjson"))
	w.Extra = fmt.Sprintf("console: {address: %q}\n", console)
	w.dest.SetFault(func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.Header().Set("X-Evil", "a")
		rw.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(rw, evil)
		return true
	})
	w.process = w.RunAll()

	// Notices and objects with hostile names and contents; some are not to be had at all.
	for i, key := range []string{"a/" + evil + ".json", "../../../../etc/cron.d/x.json", "a/\u202egnp.json.gz", "..\\..\\x.json"} {
		body := fmt.Sprintf(`{"Records":[{"eventID":"%d","eventTime":"2026-11-20T08:00:00Z","eventName":%s,"eventSource":%s,"awsRegion":%s,"recipientAccountId":%s}]}`,
			i, quoted(evil), quoted("iam."+evil), quoted(evil), quoted(evil))
		if _, err := w.Cloud.Put(harness.Bucket, key, cloud.Object{Body: []byte(body)}); err != nil {
			t.Logf("the bucket takes no such key: %v", err)
		}
	}
	if _, err := w.Cloud.Put(harness.Bucket, "broken.json", cloud.Object{Body: []byte(`{"Records":[{"eventID":` + evil)}); err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{
		strings.NewReplacer("\x1b", "\u009d", "\x00", "", "\x07", "").Replace(evil), `{"a":` + quoted(evil) + `}`, notice("not-allowed-bucket", evil), notice(harness.Bucket, "gone/"+evil), notice(evil, evil),
		strings.Replace(notice(harness.Bucket, "x"), `"awsRegion":"us-east-1"`, `"awsRegion":`+quoted(evil), 1),
	} {
		w.sendMessage(t, body)
	}
	// Senders.
	for path, body := range map[string]string{
		"/in":                     `{"message":` + quoted(evil) + `,` + quoted(evil) + `:` + quoted(evil) + `}` + "\n" + `{"broken":` + evil,
		"/in?" + "x":              `"` + "just text \u202e",
		"/hec/services/collector": `{"event":` + quoted(evil) + `,"host":` + quoted(evil) + `,"source":` + quoted(evil) + `,"sourcetype":` + quoted(evil) + `,"index":` + quoted(evil) + `,"fields":{` + quoted(evil) + `:` + quoted(evil) + `}}`,
	} {
		fetch(t, http.MethodPost, w.receiver+path, body, "Content-Type", "application/json", "Idempotency-Key", "k"+url.QueryEscape(path))
	}
	harness.Await(t, 90*time.Second, "hostile events are delivered, and others are in quarantine", func() bool {
		out, _, _ := harness.Run(t, nil, "quarantine", "list", "--json", "--store", filepath.Join(w.Dir, "store"))
		return strings.Count(out, `"id"`) >= 5 && w.Sink.Distinct() >= 3
	})
	return w
}

func quoted(s string) string {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// notice announces an object as S3 does.
func notice(bucket, key string) string {
	return fmt.Sprintf(`{"Records":[{"eventVersion":"2.1","eventName":"ObjectCreated:Put","awsRegion":"us-east-1","eventTime":"2026-11-20T08:00:00Z","s3":{"bucket":{"name":%s},"object":{"key":%s,"size":5,"eTag":%s,"versionId":%s,"sequencer":%s}}}]}`,
		quoted(bucket), quoted(url.QueryEscape(key)), quoted(evil), quoted(""), quoted(evil))
}

// sendMessage puts a message into the queue, as anybody may.
func (w *hostileWorld) sendMessage(t *testing.T, body string) {
	t.Helper()
	if _, err := w.Cloud.Send(harness.QueueName, body); err != nil {
		t.Logf("the queue takes no such message: %v", err)
	}
}

// obeyed is what a terminal would obey, or turn text round with.
func obeyed(r rune) bool {
	return r != '\n' && r != '\t' && unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == utf8.RuneError
}

// What strangers write controls no terminal, in no command, and makes no line of a log.
//
// covers: design section 8
func TestNoTerminalIsControlled(t *testing.T) {
	takesLong(t)
	w := startHostileWorld(t)
	store := filepath.Join(w.Dir, "store")
	ids := idsOf(t, store)
	commands := [][]string{
		{"status"},
		{"status", "--json"},
		{"destinations", "status"},
		{"destinations", "status", "--json"},
		{"quarantine", "list"},
		{"quarantine", "list", "--json"},
		{"quarantine", "list", "--facets"},
		{"quarantine", "export"},
		{"jobs", "list"},
		{"jobs", "list", "--json"},
		{"topology", "show"},
		{"ledger", "--pulls"},
		{"ledger", "--json", "--pulls"},
		{"tail", "--no-follow"},
		{"tail", "--no-follow", "--json"},
		{"tail", "--no-follow", "--full"},
		{"top", "--once"},
		{"freshness"},
		{"freshness", "--json"},
		{"audit"},
		{"audit", "--json"},
		{"trace", "s3://" + harness.Bucket + "/a/" + strings.ReplaceAll(evil, "\x00", "")},
		{"trace", "s3://" + harness.Bucket + "/../../../../etc/cron.d/x.json"},
		{"destinations", "pause", "web", "--reason", strings.ReplaceAll(evil, "\x00", "")},
		{"destinations", "status"},
		{"audit"},
		{"audit", "--json"},
		{"destinations", "resume", "web"},
		{"replay", "--to-destination", "web", "--yes", "--detach", "--reason", strings.ReplaceAll(evil, "\x00", ""), "--where", "event.doc.x == " + quoted("\u202e")},
		{"jobs", "list"},
		{"jobs", "list", "--json"},
		{"tail", "--no-follow", "--where", "event." + strings.ReplaceAll(evil, "\x00", "")},
		{"replay", "--to-destination", "\x1b[2J\u202e", "--yes"},
		{"\x1b[2Jcommand"},
	}
	for _, id := range ids {
		commands = append(commands, []string{"quarantine", "show", id}, []string{"quarantine", "show", id, "--json"})
	}
	for _, args := range commands {
		if len(args) > 0 && args[0][0] != '\x1b' {
			args = append(slices.Clone(args), "--store", store)
		}
		out, errOut, _ := harness.Run(t, nil, args...)
		checkHarmless(t, "penstock "+strings.Join(args[:min(2, len(args))], " "), out+errOut)
	}
	// Files that strangers made, and configurations that one was talked into.
	hostile := filepath.Join(w.Dir, "hostile.json")
	if err := os.WriteFile(hostile, []byte(`{"Records":[{"eventID":"1","eventTime":"2026-11-20T08:00:00Z","eventName":`+quoted(evil)+`,"eventSource":`+quoted(evil)+`,"awsRegion":`+quoted(evil)+"}]}\n"+evil), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"parse", hostile}, {"parse", "--json", hostile}, {"parse", "--format", "json", hostile}, {"config", "check", hostile}, {"config", "import", "devo", hostile}, {"test", hostile}} {
		out, errOut, _ := harness.Run(t, nil, args...)
		checkHarmless(t, "penstock "+args[0], out+errOut)
	}
	for line := range strings.Lines(w.process.Log()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("a line of the log is forged: %.200q", line)
		}
	}
}

func checkHarmless(t *testing.T, who, text string) {
	t.Helper()
	if at := strings.IndexFunc(text, obeyed); at >= 0 {
		r, _ := utf8.DecodeRuneInString(text[at:])
		t.Errorf("%s prints %U: %.150q", who, r, text[max(0, at-60):])
	}
}

// idsOf are entries of the quarantine.
func idsOf(t *testing.T, store string) []string {
	t.Helper()
	out, _, _ := harness.Run(t, nil, "quarantine", "list", "--json", "--store", store)
	var ids []string
	for _, m := range regexp.MustCompile(`"id": ?"([0-9A-Za-z_-]+)"`).FindAllStringSubmatch(out, 8) {
		ids = append(ids, m[1])
	}
	return ids
}

// No element and no attribute of a page of the console comes from what strangers wrote,
// no page runs or loads anything of others, and no download chooses its name.
//
// covers: design section 8
func TestNoPageIsChangedByData(t *testing.T) {
	takesLong(t)
	w := startHostileWorld(t)
	v := &visitor{t: t, base: w.console, client: &http.Client{Timeout: 30 * time.Second}}
	store := filepath.Join(w.Dir, "store")
	paths := append(slices.Clone(pages), "/events?text="+url.QueryEscape(evil), "/events?where="+url.QueryEscape(evil), "/events?type="+url.QueryEscape(evil), "/quarantine?text="+url.QueryEscape(evil),
		"/ledger?object="+url.QueryEscape(evil), "/ledger/trace?of="+url.QueryEscape(evil), "/ledger/trace?q=s3://"+harness.Bucket+"/a/"+url.QueryEscape(evil), "/login?next="+url.QueryEscape(evil), "/audit?text="+url.QueryEscape(evil),
		"/"+url.PathEscape(evil), "/destinations/"+url.PathEscape(evil), "/sources/"+url.PathEscape(evil), "/quarantine/"+url.PathEscape(evil), "/events/"+url.PathEscape(evil), "/replays/new/replay?destination="+url.QueryEscape(evil), "/events/check?where="+url.QueryEscape(evil))
	for _, id := range idsOf(t, store) {
		paths = append(paths, "/quarantine/"+id)
	}
	seen := map[string]bool{}
	for n := 0; n < len(paths) && n < 160; n++ {
		path := paths[n]
		if seen[path] {
			continue
		}
		seen[path] = true
		r, body := v.get(path) //nolint:bodyclose // get has closed it
		if d := r.Header.Get("Content-Disposition"); d != "" && !regexp.MustCompile(`^attachment; filename="[A-Za-z0-9._-]+"$`).MatchString(d) {
			t.Errorf("%s is downloaded as %q", path, d)
		}
		if !strings.HasPrefix(r.Header.Get("Content-Type"), "text/html") {
			if r.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s is of type %q and may be taken for a page", path, r.Header.Get("Content-Type"))
			}
			continue
		}
		if csp := r.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") && !strings.Contains(csp, "default-src 'self'") || strings.Contains(csp, "unsafe-inline") || strings.Contains(csp, "unsafe-eval") {
			t.Errorf("%s has the policy %q", path, csp)
		}
		for _, link := range checkPage(t, path, body) {
			for _, into := range []string{"/events/", "/quarantine/", "/ledger/pulls/", "/replays/"} {
				if strings.HasPrefix(link, into) && len(paths) < 150 {
					paths = append(paths, link)
				}
			}
		}
	}
	if len(seen) < 60 {
		t.Errorf("%d pages were seen", len(seen))
	}
	for _, path := range []string{"/pipeline/live", "/events/stream"} {
		said := v.listenTo(path, 12)
		var data strings.Builder
		for line := range strings.Lines(said) {
			data.WriteString(strings.TrimPrefix(line, "data: "))
		}
		checkPage(t, path, data.String())
	}
}

// own are the elements that the console's pages are made of.
var own = regexp.MustCompile(`^(html|head|body|meta|title|link|script|header|footer|nav|main|section|article|aside|div|span|p|a|b|i|em|strong|small|code|pre|kbd|ul|ol|li|dl|dt|dd|h[1-6]|table|caption|colgroup|col|thead|tbody|tfoot|tr|th|td|form|label|input|select|option|optgroup|textarea|button|fieldset|legend|datalist|details|summary|dialog|progress|meter|time|img|figure|figcaption|svg|g|path|circle|rect|line|polyline|polygon|text|defs|use|symbol|title|ellipse|br|wbr|hr|noscript|template|output|abbr|mark|search|tspan|marker|lineargradient|stop|clippath)$`)

// checkPage reports what data made of a page, and returns where it leads.
func checkPage(t *testing.T, path, body string) (links []string) {
	t.Helper()
	top, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for n := range top.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		if !own.MatchString(strings.ToLower(n.Data)) {
			t.Errorf("%s has an element <%s>", path, n.Data)
		}
		source := ""
		for _, a := range n.Attr {
			value := strings.ToLower(strings.TrimSpace(a.Val))
			switch {
			case strings.HasPrefix(a.Key, "on"), strings.Contains(a.Key, "evil"), a.Key == "style", a.Key == "srcdoc", strings.HasPrefix(a.Key, "hx-on"):
				t.Errorf("%s has an attribute %s=%.60q in <%s>", path, a.Key, a.Val, n.Data)
			case (a.Key == "href" || a.Key == "src" || a.Key == "action" || a.Key == "formaction" || strings.HasPrefix(a.Key, "hx-")) &&
				(strings.HasPrefix(value, "javascript:") || strings.HasPrefix(value, "data:") || strings.HasPrefix(value, "//") || strings.HasPrefix(value, "http")):
				t.Errorf("%s leads elsewhere: %s=%.80q", path, a.Key, a.Val)
			}
			switch a.Key {
			case "src":
				source = a.Val
			case "href":
				links = append(links, a.Val)
			}
		}
		if n.Data == "script" && (source == "" || !strings.HasPrefix(source, "/static/")) {
			t.Errorf("%s has a script of its own: %.60q", path, source)
		}
	}
	return links
}
