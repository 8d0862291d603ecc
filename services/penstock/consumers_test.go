package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/topology"
)

const pullConfig = `
bus:
  store: %q
telemetry:
  address: ""
destinations:
  - name: pull
    type: webhook_pull
    address: %s
    streams: {web: [web.>], all: [">"]}
  - name: other
    type: stdout
`

// freeAddress is one that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// A consumer is made, fetches from the stage that delivers, is seen, rewound and
// revoked.
// covers: F-30, CEN-9
func TestConsumers(t *testing.T) {
	dir, address := t.TempDir(), freeAddress(t)
	store, path := filepath.Join(dir, "store"), filepath.Join(dir, "penstock.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, pullConfig, store, address), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := loadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	p := newPipeline(file, []topology.Stage{topology.Deliver}, quiet)
	ctx, cancel := context.WithCancel(t.Context())
	if err := p.start(ctx); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		if err := p.wait(); err != nil {
			t.Error(err)
		}
	}()
	run := func(args ...string) string {
		t.Helper()
		out, _, err := command(t, "", append([]string{"consumers"}, args...)...)
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return out
	}
	if out := run("list", "-d", "pull", "--store", store); !strings.Contains(out, "no consumers") {
		t.Errorf("nobody is listed as %q", out)
	}
	out, hint, err := command(t, "", "consumers", "add", "siem", "--config", path, "--streams", "web", "--expires", "1h")
	key := strings.TrimSpace(out)
	if err != nil || !regexp.MustCompile(`^penstock_[0-9a-f]{16}_[0-9a-f]{64}$`).MatchString(key) || !strings.Contains(hint, "not shown again") {
		t.Fatalf("added %q, %q, %v", out, hint, err)
	}
	var added struct{ Key, Destination string }
	if err := json.Unmarshal([]byte(run("add", "second", "-d", "pull", "--store", store, "--json")), &added); err != nil || added.Destination != "pull" || len(added.Key) != len(key) {
		t.Errorf("added %+v, %v", added, err)
	}
	store3(t, store)
	get := func(query string) (int, string, string) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/v1/streams/web?"+query, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "Bearer "+key)
		request.Close = true
		answer, err := http.DefaultTransport.RoundTrip(request)
		if err != nil {
			return 0, "", "" // not yet
		}
		defer func() { _ = answer.Body.Close() }()
		body, _ := io.ReadAll(answer.Body)
		return answer.StatusCode, answer.Header.Get("Penstock-Cursor"), string(body)
	}
	until := func(status int, query string) (cursor, body string) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for got := 0; got != status; {
			if time.Now().After(deadline) {
				t.Fatalf("%s answers %d %s, want %d", query, got, body, status)
			}
			got, cursor, body = get(query)
		}
		return cursor, body
	}
	cursor, body := until(200, "limit=2")
	if strings.Count(body, "\n") != 2 {
		t.Errorf("fetched %q", body)
	}
	until(200, "limit=1&ack="+cursor)
	var listed []consumerState
	if err := json.Unmarshal([]byte(run("list", "--config", path, "--count", "--json")), &listed); err != nil {
		t.Fatal(err)
	}
	if len(listed) != 2 || listed[1].Name != "siem" || listed[1].State != "active" || len(listed[1].Positions) != 1 {
		t.Fatalf("listed %+v", listed)
	}
	if at := listed[1].Positions[0]; at.Stream != "web" || at.Frames != 1 || *at.Events != 1 || at.Gone || at.Address != "127.0.0.1" || at.Acked.String() != cursor || time.Since(at.Seen) > time.Minute {
		t.Errorf("position %+v", at)
	}
	if out := run("list", "--config", path, "--count"); !regexp.MustCompile(`siem +active +web +web +1 frame +1 `).MatchString(out) || strings.Contains(out, key[26:]) {
		t.Errorf("listed\n%s", out)
	}
	for _, to := range []string{"oldest", "1h", "0000000000010000000", time.Now().Add(-time.Hour).Format(time.RFC3339)} {
		run("rewind", "siem", "--config", path, "--to", to)
		if _, body := until(200, "limit=3&ack="+cursor); strings.Count(body, "\n") != 3 {
			t.Errorf("after --to %s: %q", to, body)
		}
	}
	run("rewind", "siem", "--config", path, "--to", "now", "--stream", "web")
	until(204, "")
	run("revoke", "siem", "--config", path)
	until(401, "")
	if out := run("list", "--config", path); !strings.Contains(out, "revoked") {
		t.Errorf("listed\n%s", out)
	}
	key = strings.TrimSpace(run("add", "siem", "--config", path))
	until(204, "")

	// Without streams in the configuration there are those of Censornet.
	plain := filepath.Join(dir, "plain.yaml")
	if err := os.WriteFile(plain, fmt.Appendf(nil, strings.Replace(pullConfig, "    streams: {web: [web.>], all: [\">\"]}\n", "", 1), store, address), 0o600); err != nil {
		t.Fatal(err)
	}
	run("add", "mailer", "--streams", "email", "--config", plain)

	for _, tt := range []struct {
		args string
		code int
	}{
		{"add new --config " + plain + " --streams mail", exitUsage},
		{"rewind siem --to now --stream wbe --config " + path, exitUsage},
		{"rewind siem --to now --stream wbe --config " + plain, exitUsage},
		{"add siem --config " + path, exitFailed},
		{"add a.b --config " + path, exitUsage},
		{"add new --config " + path + " --streams mail", exitUsage},
		{"add new --config " + path + " --expires yesterday", exitUsage},
		{"add new --config " + path + " --expires -1h", exitUsage},
		{"add new --config " + path + " -d other", exitUsage},
		{"add new --store " + store, exitUsage},
		{"add --config " + path, exitUsage},
		{"revoke nobody --config " + path, exitFailed},
		{"rewind nobody --to now --config " + path, exitFailed},
		{"rewind siem --config " + path, exitUsage},
		{"rewind siem --to yesterday --config " + path, exitUsage},
		{"rewind siem --to 9999999999990000000 --config " + path, exitUsage},
		{"rewind second --to now --config " + path, exitUsage},
	} {
		if _, _, err := command(t, "", append([]string{"consumers"}, strings.Fields(tt.args)...)...); exitCode(err) != tt.code {
			t.Errorf("consumers %s: %v", tt.args, err)
		}
	}
}

// store3 stores a frame of three events.
func store3(t *testing.T, store string) {
	t.Helper()
	access, err := os.ReadFile(filepath.Join(store, topology.AccessFile))
	if err != nil {
		t.Fatal(err)
	}
	bus, err := topology.Connect(t.Context(), topology.Options{URL: strings.TrimSpace(string(access)), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	b := messages.NewBuilder(messages.Header{Source: "src", Format: "json", EventType: "web.allow"})
	origin := b.Origin(&messages.Origin{Pull: messages.NewPull("test", "consumers"), Source: "src"})
	for i := range 3 {
		b.Add(messages.Event{ID: messages.NewID([]byte{byte(i)}), Time: 1, Origin: origin, Record: uint64(i), Doc: fmt.Appendf(nil, `{"n":%d}`, i)})
	}
	out := bus.NewOutbox(topology.Route)
	if err := out.Publish(t.Context(), topology.Message{Subject: topology.EventSubject("web.allow"), ID: "frame", Data: b.Encode(nil)}); err != nil {
		t.Fatal(err)
	}
	if err := out.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}
