package security

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

// pages of the console that an operator sees.
var pages = []string{
	"/", "/pipeline", "/pipeline/plots", "/sources", "/sources/trail", "/sources/push", "/destinations", "/destinations/web", "/destinations/mail", "/destinations/splunk",
	"/destinations/web/pause", "/events", "/events/more", "/replays", "/replays/new", "/replays/new/backfill", "/replays/new/reconcile", "/quarantine", "/quarantine/export",
	"/ledger", "/ledger/sum", "/topology", "/topology/table", "/settings", "/audit", "/login", "/login/oidc", "/nowhere",
}

// A process with a secret in every key that takes one talks to far sides that tell back
// all they were told, in answers of every kind, and ends in crashes. No secret is in its
// log, its traces, metrics, pages, profiles, commands, files, streams and dumps. Memory is
// not looked at: a heap holds what is in use, and a core file is for the operator to switch off.
//
// covers: design section 8
func TestSecretsStayWhereTheyAre(t *testing.T) {
	takesLong(t)
	v, e, dir := &vault{}, &evidence{}, t.TempDir()
	makeCertificate(t, v, dir)
	hash := strings.Split(passwordHash, "$")
	v.add("password hash", hash[len(hash)-1])
	v.add("password", "correct horse battery staple")
	v.add("webhook secret", "Q255bm90YXJlYWxr")
	v.add("webhook key", "Cnynotarealkeybut")
	far := startMalice(t)
	var spans atomic.Int64
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		spans.Add(1)
		e.take("OTLP "+r.URL.Path, body)
	}))
	t.Cleanup(collector.Close)
	given := stage(t, dir, map[string]string{
		"far": far.URL, "far tls": strings.Replace(far.URL, "http:", "https:", 1), "smtp": startMail(t, dir), "nats": startBus(t), "deaf": harness.FreeAddr(t),
	})
	f := fill(t, v, everySecret, dir, "live", given)
	private, public, console := "http://"+given["private"], "http://"+given["health"], "http://"+given["console"]
	env := append(
		slices.Clone(f.env), "OTEL_EXPORTER_OTLP_ENDPOINT="+collector.URL, "OTEL_EXPORTER_OTLP_HEADERS=x-key="+v.plant("otel header"), "OTEL_BSP_SCHEDULE_DELAY=200",
		"OTEL_TRACES_SAMPLER=always_on", "OTEL_METRIC_EXPORT_INTERVAL=1000", "HTTP_PROXY=http://u:"+v.plant("proxy password")+"@"+startProxy(t),
		"AWS_SECRET_ACCESS_KEY="+v.plant("environment secret"), "AWS_SESSION_TOKEN="+v.plant("environment session"),
	)
	p := start(t, dir, "first", env, "run", "--config", f.path)
	p.awaitAnswer(console + "/login")
	fetch(t, http.MethodPut, private+"/loglevel", "debug")

	// Senders with the right secret, in each place, and with wrong ones.
	insecure := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	good, wrong := v.words["live http token scalar"], v.plant("a sender's wrong secret")
	for i, to := range []struct{ path, name, value string }{
		{"/in", "Authorization", "Bearer " + good},
		{"/in", "Authorization", "Bearer " + wrong},
		{"/in", "Authorization", "Basic " + wrong},
		{"/in", "Authorization", wrong},
		{"/t/" + good, "", ""},
		{"/t/" + wrong, "", ""},
		{"/services/collector/event?token=" + good, "", ""},
		{"/services/collector/event?token=" + wrong, "", ""},
		{"/" + wrong, "", ""},
		{"/in?" + wrong, "X-Sign", wrong},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+given["listen"]+to.path, strings.NewReader(fmt.Sprintf(`{"event":"n%d","who":"me","mine":"it"}`, i)))
		if err != nil {
			t.Fatal(err)
		}
		if to.name != "" {
			req.Header.Set(to.name, to.value)
		}
		r, err := insecure.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		e.take("answer of the receiver", body)
		if strings.Contains(to.path+to.value, good) != (r.StatusCode < 300) {
			t.Errorf("%s is answered with %s: %s", to.path, r.Status, body)
		}
	}

	// Far sides that fail, lead elsewhere, say yes to nothing, and refuse.
	everybody := []string{"form", "in", "hook", "_bulk", "v1", "services", "streaming", "some-bucket", "POST amz"}
	for _, status := range []int{http.StatusInternalServerError, http.StatusTemporaryRedirect, http.StatusOK, http.StatusBadRequest, http.StatusUnauthorized} {
		far.status.Store(int64(status))
		far.mu.Lock()
		clear(far.seen)
		far.mu.Unlock()
		code, _ := fetch(t, http.MethodPost, "http://"+given["listen"]+"/in", "{}") // plain HTTP to TLS
		_ = code
		most := 20 * time.Second
		if status == http.StatusInternalServerError {
			most = 90 * time.Second // each of them has something to send by then
		}
		want := everybody
		if status != http.StatusInternalServerError {
			want = []string{"streaming", "POST amz"} // others may have stopped for good
		}
		far.await(t, most, status, want)
	}
	harness.Await(t, time.Minute, "spans come to the collector", func() bool { return spans.Load() > 2 })

	// All that can be asked.
	ada := visit(t, console, "ada", password)
	for _, path := range pages {
		r, body := ada.get(path) //nolint:bodyclose // get has closed it
		var head strings.Builder
		_ = r.Header.Write(&head)
		e.take("page "+path, []byte(head.String()+r.Request.URL.String()+body))
	}
	for _, path := range []string{"/pipeline/live", "/events/stream"} {
		e.take("stream "+path, []byte(ada.listenTo(path, 4)))
	}
	for _, address := range []string{public + "/metrics", public + "/readyz", public + "/healthz", private + "/debug/pprof/goroutine?debug=2", private + "/debug/pprof/cmdline", private + "/debug/pprof/heap?debug=1", private + "/debug/pprof/"} {
		_, text := fetch(t, http.MethodGet, address, "")
		e.take(address[strings.LastIndex(address, "/"):], []byte(text))
	}
	store := filepath.Join(dir, "store")
	for _, args := range [][]string{
		{"status"},
		{"status", "--json"},
		{"destinations", "status"},
		{"destinations", "status", "--json"},
		{"quarantine", "list"},
		{"quarantine", "export"},
		{"jobs", "list"},
		{"topology", "show"},
		{"ledger", "--pulls"},
		{"ledger", "--json", "--pulls"},
		{"tail", "--no-follow"},
		{"tail", "--no-follow", "--json"},
		{"top", "--once"},
		{"freshness"},
		{"destinations", "pause", "web", "--reason", "try"},
		{"destinations", "resume", "web"},
		{"replay", "--to-destination", "web", "--yes", "--detach", "--reason", "try"},
		{"audit"},
		{"audit", "--json"},
		{"consumers", "list"},
	} {
		e.say(t, nil, append(args, "--store", store)...)
	}
	e.say(t, env, "doctor", "--config", f.path, "--timeout", "3s", "--json")
	e.say(t, env, "destinations", "status", "--config", f.path)
	bus := harness.Connect(t, readAccess(t, store))
	for _, subject := range []string{"penstock.>"} {
		_ = bus.Read(t.Context(), topology.Span{Subject: subject}, func(m topology.Stored) error {
			e.take("stream of the bus", m.Data)
			return nil
		})
	}
	p.end(syscall.SIGQUIT)
	if !strings.Contains(p.said(), "goroutine ") {
		t.Error("SIGQUIT dumps nothing")
	}
	// Once more, with logs for people, to the other signal.
	given["log format"] = "text"
	f2 := fill(t, v, everySecret, dir, "live", given)
	p = start(t, dir, "second", append(env, f2.env...), "run", "--config", f2.path)
	p.awaitAnswer(console + "/login")
	p.end(syscall.SIGABRT)

	e.takeFolder(t, dir, append(append(f.files, f2.files...), filepath.Join(dir, "key.pem"))...)
	if size := len(e.said["file /first.log"]); size < 10_000 {
		t.Errorf("the log has %d bytes: did it do what it was to do?", size)
	}
	e.search(t, v)
}
