package flow

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/penstock/penstock/tests/harness"
)

// posts is a process that delivers its events to itself, as forms and as webhooks, and
// mails some.
const posts = `bus:
  store: %[1]s/store
  disk: 1 GiB
sources:
  - name: in
    type: http
    format: {type: json, event_type: made.here}
    address: %[2]s
    auth: none
    endpoints: [{path: /in, kind: json}]
  - name: posted
    type: http
    format: {type: json, event_type: came.as.form}
    address: %[3]s
    auth: {tokens: [{name: form, token: form-secret}]}
    endpoints: [{path: /form, kind: form}]
  - name: hooked
    type: http
    format: {type: json, event_type: came.as.hook}
    address: %[6]s
    auth: {signatures: [{scheme: standard_webhooks, secrets: [whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw]}]}
    endpoints: [{path: /hook, kind: json}]
destinations:
  - {name: form, type: form_post, types: [made.here], url: "http://%[3]s/form", bearer_token: form-secret, gzip: true}
  - {name: hook, type: webhook_push, types: [made.here], url: "http://%[6]s/hook", secrets: [whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw, whsec_cGVuc3RvY2stdGVzdC1zZWNyZXQtbnVtYmVyLXR3bw==]}
  - {name: kept, type: file, types: ["came.>"], path: %[1]s/kept.ndjson}
  - name: mail
    type: email
    types: ["came.>"]
    address: %[4]s
    encryption: none
    from: penstock@example.org
    to: [soc@example.org]
    select: {types: [came.as.form]}
    group_wait: 1h
    details: [n]
telemetry: {address: %[5]s, private_address: "", log_format: json}
`

// What penstock posts penstock takes: forms at an endpoint for forms, webhooks at one
// that checks their signatures. What is held for a mail goes out when the process stops.
// covers: F-28, CEN-28, CEN-33, OPC-26
func TestPostsReachPenstock(t *testing.T) {
	t.Parallel()
	dir, in, out, health := t.TempDir(), harness.FreeAddr(t), harness.FreeAddr(t), harness.FreeAddr(t)
	o := openOffice(t)
	path := filepath.Join(dir, "posts.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, posts, dir, in, out, o.address, health, harness.FreeAddr(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	p := harness.Start(t, "penstock", nil, "run", "--config", path)
	harness.AwaitReady(t, p, health)
	var body strings.Builder
	for i := range 45 {
		fmt.Fprintf(&body, "{\"n\":%d,\"text\":\"--boundary\\r\\n\"}\n", i)
	}
	resp, err := http.Post("http://"+in+"/in", "application/x-ndjson", strings.NewReader(body.String()))
	if err != nil || resp.StatusCode/100 != 2 {
		t.Fatalf("%v: %v", resp, err)
	}
	resp.Body.Close()
	var kept string
	harness.Await(t, time.Minute, "all came back twice", func() bool {
		data, _ := os.ReadFile(filepath.Join(dir, "kept.ndjson"))
		kept = string(data)
		return strings.Count(kept, "\n") == 90
	})
	for i := range 45 {
		row := fmt.Sprintf(`"event":{"n":%d,"text":"--boundary\r\n","event_id":`, i)
		hook := fmt.Sprintf(`"data":{"n":%d,"text":"--boundary\r\n"}`, i)
		if strings.Count(kept, row) != 1 || strings.Count(kept, hook) != 1 {
			t.Errorf("event %d came back %d times in a form and %d times in a webhook", i, strings.Count(kept, row), strings.Count(kept, hook))
		}
	}
	if n := len(o.taken()); n != 0 {
		t.Errorf("%d mails before group_wait", n)
	}
	p.Signal(syscall.SIGTERM)
	if code := p.Wait(30 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	mails := o.taken()
	if len(mails) != 1 || !strings.Contains(mails[0], "Subject: penstock: 45 selected events from posted") || !strings.Contains(mails[0], "\r\n    44\r\n") {
		t.Errorf("mails %v\n%s", mails, p.Log())
	}
}

// office is a mail server.
type office struct {
	address string
	mu      sync.Mutex
	mails   []string
}

func openOffice(t *testing.T) *office {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &office{address: l.Addr().String()}
	server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return o, nil }))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		_ = l.Close()
		_ = server.Close()
		<-ended
	})
	return o
}

func (o *office) taken() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.mails...)
}

func (o *office) Reset()                               {}
func (o *office) Logout() error                        { return nil }
func (o *office) Mail(string, *smtp.MailOptions) error { return nil }
func (o *office) Rcpt(string, *smtp.RcptOptions) error { return nil }

func (o *office) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mails = append(o.mails, string(raw))
	return err
}
