package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
	"github.com/penstock/penstock/services/internal/probe"
	"github.com/penstock/penstock/topology"
)

const doctorKey = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-4000-8000-000000000000"

// ward is an emulated AWS with a queue, a bucket of encrypted objects and what the
// API sources read.
type ward struct {
	*cloud.Cloud
	queue string
}

func newWard(t *testing.T) *ward {
	t.Helper()
	for _, name := range []string{"AWS_PROFILE", "AWS_REGION", "AWS_ENDPOINT_URL"} {
		t.Setenv(name, "")
	}
	c, err := cloud.Start(t.Context(), cloud.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	w := &ward{Cloud: c}
	if w.queue, err = c.CreateQueue("penstock-logs", nil); err != nil {
		t.Fatal(err)
	}
	if err := c.CreateBucket("example-logs", cloud.BucketOptions{Versioned: true}); err != nil {
		t.Fatal(err)
	}
	if err := c.Notify("example-logs", cloud.Notification{Queue: "penstock-logs"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put("example-logs", "a/b.json", cloud.Object{Body: []byte("{}"), KMSKey: doctorKey}); err != nil {
		t.Fatal(err)
	}
	c.FlushNotices()
	return w
}

// fill puts something into the APIs that are polled.
func (w *ward) fill(t *testing.T) {
	t.Helper()
	now := time.Now().Truncate(time.Minute)
	if _, err := feed.FillAPIs(w.Cloud, 1, now.Add(-10*time.Minute), now); err != nil {
		t.Fatal(err)
	}
}

// allow gives the caller a policy.
func (w *ward) allow(t *testing.T, policy string) {
	t.Helper()
	if err := w.PutUser(cloud.User{AccessKey: "AKIATEST", Name: "penstock", Policy: policy}); err != nil {
		t.Fatal(err)
	}
}

// ask runs the doctor over a configuration in which AWS stands for the access and
// QUEUE for the queue.
func (w *ward) ask(t *testing.T, text string) (diagnosis, error) {
	t.Helper()
	text = strings.NewReplacer(
		"AWS", fmt.Sprintf("{endpoint_url: %q, sts_endpoint_url: %q, region: us-east-1, access_key: AKIATEST, access_secret: s}", w.URL(), w.URL()),
		"QUEUE", w.queue, "STORE", filepath.Join(t.TempDir(), "store"),
	).Replace(text)
	file := defaults()
	if err := config.Parse("test.yaml", []byte(text), &file); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := runDoctor(t.Context(), &out, file, doctorOptions{json: true, timeout: defaultTimeout})
	var d diagnosis
	if jsonErr := json.Unmarshal(out.Bytes(), &d); jsonErr != nil {
		t.Fatalf("%v in %s", jsonErr, out.Bytes())
	}
	return d, err
}

// of returns the findings of a level about a source or destination.
func (d diagnosis) of(name string, levels ...probe.Level) []probe.Finding {
	var list []probe.Finding
	for _, p := range d.Patients {
		for _, f := range p.Findings {
			if p.Name == name && slices.Contains(levels, f.Level) {
				list = append(list, f)
			}
		}
	}
	return list
}

// policyFile reads a policy of deploy/aws.
func policyFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "aws", "policies", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// without takes one action out of a policy.
func without(t *testing.T, policy, action string) string {
	t.Helper()
	var p struct {
		Version   string
		Statement []map[string]any
	}
	if err := json.Unmarshal([]byte(policy), &p); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, s := range p.Statement {
		list, many := s["Action"].([]any)
		if !many {
			list = []any{s["Action"]}
		}
		rest := []any{"none:None"}
		for _, a := range list {
			if a == action {
				found = true
				continue
			}
			rest = append(rest, a)
		}
		s["Action"] = rest
	}
	if !found {
		t.Fatalf("the policy has no %s", action)
	}
	out, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

var doctored = map[string]string{
	"sqs":                "{name: s, type: sqs, queue_url: QUEUE, buckets: [example-logs], aws: AWS}",
	"s3":                 "{name: s, type: s3, bucket: example-logs, prefixes: ['a/'], aws: AWS}",
	"cloudtrail_api":     "{name: s, type: cloudtrail_api, aws: AWS}",
	"cloudwatch_logs":    "{name: s, type: cloudwatch_logs, log_groups: ['/ecs/*'], aws: AWS}",
	"cloudwatch_metrics": "{name: s, type: cloudwatch_metrics, metric_namespaces: ['*'], aws: AWS}",
	"guardduty":          "{name: s, type: guardduty, aws: AWS}",
}

// With the policy that is shipped each kind of source works; without any one of its
// actions the doctor says which one is missing, and on what.
// covers: DEV-83, DEV-140, DEV-39, DEV-40, DEV-41, DEV-42, DEV-43, DEV-44
func TestDoctorNamesWhatIsMissing(t *testing.T) {
	w := newWard(t)
	w.fill(t)
	for kind, source := range doctored {
		t.Run(kind, func(t *testing.T) {
			text := "bus: {store: STORE}\nsources: [" + source + "]"
			policy := policyFile(t, kind)
			w.allow(t, policy)
			d, err := w.ask(t, text)
			if err != nil {
				t.Errorf("with the policy: %v", err)
			}
			for _, f := range d.of("s", probe.Warn, probe.Fail) {
				t.Errorf("with the policy: %+v", f)
			}
			for _, action := range sources.Permissions[kind] {
				w.allow(t, without(t, policy, action))
				d, err := w.ask(t, text)
				found := false
				for _, f := range d.of("s", probe.Warn, probe.Fail) {
					found = found || f.Check == action && f.Policy != nil && f.Policy.Action[0] == action && f.Fix != ""
				}
				if !found {
					t.Errorf("without %s: %+v", action, d.of("s", probe.OK, probe.Warn, probe.Fail))
				}
				if warned := slices.Contains([]string{"sqs:GetQueueAttributes", "s3:GetObjectVersion"}, action) || action == "s3:ListBucket" && kind == "sqs"; warned != (err == nil) {
					t.Errorf("without %s: exit %v", action, err)
				}
			}
		})
	}
}

// A message is given back, and none is taken where that would be its last time.
func TestDoctorLosesNoMessage(t *testing.T) {
	w := newWard(t)
	text := "bus: {store: STORE}\nsources: [{name: s, type: sqs, queue_url: QUEUE, buckets: ['*'], aws: AWS}]"
	for range 3 {
		d, err := w.ask(t, text)
		if err != nil || len(d.of("s", probe.Fail, probe.Warn)) > 0 {
			t.Errorf("%v, %+v", err, d.of("s", probe.Fail, probe.Warn))
		}
		if q := w.Queue("penstock-logs"); q.Visible != 1 || q.InFlight != 0 || q.Deleted != 0 {
			t.Errorf("queue %+v", q)
		}
		// The message named the object that was read.
		if got := d.of("s", probe.OK); !slices.ContainsFunc(got, func(f probe.Finding) bool { return f.Check == "s3:GetObject" && f.Detail == "a/b.json" }) {
			t.Errorf("%+v", got)
		}
	}
	before := w.Queue("penstock-logs").Received
	if _, err := w.CreateQueue("dead", nil); err != nil {
		t.Fatal(err)
	}
	strict, err := w.CreateQueue("strict", map[string]string{"RedrivePolicy": `{"deadLetterTargetArn": "arn:aws:sqs:us-east-1:123456789012:dead", "maxReceiveCount": "1"}`})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Send("strict", "x"); err != nil {
		t.Fatal(err)
	}
	w.queue = strict
	d, err := w.ask(t, text)
	if err != nil {
		t.Errorf("%v, %+v", err, d.of("s", probe.Fail))
	}
	if q := w.Queue("strict"); q.Received != 0 || q.Visible != 1 {
		t.Errorf("queue %+v", q)
	}
	if got := fmt.Sprint(d.of("s", probe.Warn)); !strings.Contains(got, "maxReceiveCount is 1") {
		t.Error(got)
	}
	if w.Queue("penstock-logs").Received != before {
		t.Error("another queue was read")
	}
}

// covers: DEV-7, DEV-53, DEV-57, DEV-58, LIM-11
func TestDoctorJudgesSettings(t *testing.T) {
	const (
		open   = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"SQS:SendMessage","Resource":"*"}]}`
		open2  = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":["*"]},"Action":["sqs:*"],"Resource":"*","Condition":{"ArnLike":{"aws:SourceArn":"arn:aws:s3:*:*:*"}}}}`
		shut   = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"sqs:SendMessage","Resource":"*","Condition":{"StringEquals":{"aws:SourceAccount":"123456789012"}}}]}`
		s3     = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"s3.amazonaws.com"},"Action":"sqs:SendMessage","Resource":"*"}]}`
		reader = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"sqs:ReceiveMessage","Resource":"*"}]}`
	)
	tests := []struct {
		name, queue, policy string
		level               probe.Level
		says                string
	}{
		{"open", "q1", open, probe.Warn, `Principal "*" may send`},
		{"open by a wide condition", "q2", open2, probe.Warn, `Principal "*" may send`},
		{"narrowed", "q3", shut, probe.OK, ""},
		{"of S3", "q4", s3, probe.OK, ""},
		{"to read", "q5", reader, probe.OK, ""},
		{"S3 to FIFO", "q6.fifo", s3, probe.Fail, "S3 sends no notifications to a FIFO queue"},
		{"FIFO", "q7.fifo", "", probe.Warn, "only EventBridge does"},
	}
	w := newWard(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			url, err := w.CreateQueue(tt.queue, map[string]string{"Policy": tt.policy})
			if err != nil {
				t.Fatal(err)
			}
			w.queue = url
			d, _ := w.ask(t, "bus: {store: STORE}\nsources: [{name: s, type: sqs, queue_url: QUEUE, buckets: [example-logs], aws: AWS}]")
			if d.Worst != tt.level || !strings.Contains(fmt.Sprint(d.of("s", probe.Warn, probe.Fail)), tt.says) {
				t.Errorf("%s: %+v", d.Worst, d.of("s", probe.Warn, probe.Fail))
			}
		})
	}
	w.fill(t)
	d, err := w.ask(t, "bus: {store: STORE}\nsources: [{name: s, type: cloudtrail_api, regions: [eu-west-1], aws: AWS}]")
	if got := fmt.Sprint(d.of("s", probe.Warn)); err != nil || !strings.Contains(got, "recorded in us-east-1") {
		t.Errorf("%v: %s", err, got)
	}
}

// covers: DEV-33, DEV-161: another role for the bucket than for the queue, each with
// no more than it needs; and what goes wrong on the way to them.
func TestDoctorAndRoles(t *testing.T) {
	w := newWard(t)
	role := func(name string, statements ...*awsclient.Statement) cloud.Role {
		var lines []string
		for _, s := range statements {
			lines = append(lines, s.String())
		}
		return cloud.Role{ARN: "arn:aws:iam::123456789012:role/" + name, Policy: `{"Version": "2012-10-17", "Statement": [` + strings.Join(lines, ",") + `]}`}
	}
	for _, r := range []cloud.Role{
		role("queue", awsclient.Allow("arn:aws:sqs:us-east-1:123456789012:penstock-*", "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes")),
		role("bucket", awsclient.Allow("arn:aws:s3:::example-logs/*", "s3:GetObject", "s3:GetObjectVersion"), awsclient.Allow("arn:aws:s3:::example-logs", "s3:ListBucket"), awsclient.Allow(doctorKey, "kms:Decrypt")),
	} {
		if err := w.PutRole(r); err != nil {
			t.Fatal(err)
		}
	}
	access := func(role string) string {
		return strings.Replace("{endpoint_url: URL, sts_endpoint_url: URL, region: us-east-1, access_key: AKIATEST, access_secret: s, base_assume_role: 'arn:aws:iam::123456789012:role/ROLE'}", "ROLE", role, 1)
	}
	ask := func(queue, bucket string) (diagnosis, error) {
		return w.ask(t, strings.ReplaceAll("bus: {store: STORE}\nsources: [{name: s, type: sqs, queue_url: QUEUE, buckets: [example-logs], aws: "+access(queue)+", bucket_aws: "+access(bucket)+"}]", "URL", w.URL()))
	}
	d, err := ask("queue", "bucket")
	if err != nil || len(d.of("s", probe.Warn, probe.Fail)) > 0 {
		t.Errorf("%v, %+v", err, d.of("s", probe.Warn, probe.Fail))
	}
	got := fmt.Sprint(d.of("s", probe.OK))
	if !strings.Contains(got, "assumed-role/queue/penstock") || !strings.Contains(got, "assumed-role/bucket/penstock") {
		t.Errorf("identities in %s", got)
	}
	for name, roles := range map[string][2]string{"sqs:ReceiveMessage": {"bucket", "bucket"}, "s3:GetObject": {"queue", "queue"}, "sts:AssumeRole": {"nobody", "bucket"}} {
		d, err := ask(roles[0], roles[1])
		found := slices.ContainsFunc(d.of("s", probe.Fail), func(f probe.Finding) bool {
			return f.Check == name && f.Policy != nil && strings.HasPrefix(f.Policy.Resource, "arn:aws:")
		})
		if !errors.Is(err, errSilent) || !found {
			t.Errorf("%s: %v, %+v", name, err, d.of("s", probe.Fail))
		}
	}
	w.queue += "-gone"
	d, err = ask("queue", "bucket")
	if list := d.of("s", probe.Fail); !errors.Is(err, errSilent) || len(list) != 1 || list[0].Code != "aws.no_such_queue" {
		t.Errorf("%v, %+v", err, list)
	}
}

func TestDoctorLooksAtDestinations(t *testing.T) {
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead || r.ContentLength > 0 || r.Header.Get("Authorization") != "Bearer t" {
			t.Errorf("%s with %d bytes", r.Method, r.ContentLength)
		}
		rw.WriteHeader(status)
	}))
	defer server.Close()
	secure := httptest.NewUnstartedServer(nil)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
	secure.StartTLS()
	defer secure.Close()

	w := newWard(t)
	look := func(destination string) (probe.Level, string) {
		d, _ := w.ask(t, "bus: {store: STORE}\ndestinations: [{name: d, "+destination+"}]")
		worst := probe.OK
		for _, f := range d.of("d", probe.Warn, probe.Fail) {
			if worst = f.Level; worst == probe.Fail {
				break
			}
		}
		return worst, fmt.Sprint(d.of("d", probe.OK, probe.Warn, probe.Fail))
	}
	for code, want := range map[int]probe.Level{200: probe.OK, 405: probe.OK, 401: probe.Fail, 403: probe.Fail, 404: probe.Warn, 503: probe.Warn, 302: probe.Warn} {
		status = code
		if level, text := look("type: http, bearer_token: t, url: '" + server.URL + "/in?k=hunter2'"); level != want || strings.Contains(text, "hunter2") {
			t.Errorf("%d: %s: %s", code, level, text)
		}
	}
	if level, text := look("type: http, url: 'http://127.0.0.1:1'"); level != probe.Fail || !strings.Contains(text, "refused") {
		t.Errorf("%s: %s", level, text)
	}
	if level, text := look("type: http, url: '" + secure.URL + "'"); level != probe.Fail || !strings.Contains(text, "certificate") {
		t.Errorf("%s: %s", level, text)
	}
	if level, text := look("type: file, path: '" + filepath.Join(t.TempDir(), "a", "b", "{destination}.ndjson") + "'"); level != probe.OK {
		t.Errorf("%s: %s", level, text)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if level, text := look("type: file, path: '" + filepath.Join(file, "x") + "'"); level != probe.Fail {
		t.Errorf("%s: %s", level, text)
	}
	if level, _ := look("type: stdout"); level != probe.OK {
		t.Error("stdout")
	}
}

// The table says what to do below what is not as it should be.
func TestDoctorTable(t *testing.T) {
	d := diagnosis{Patients: []*patient{
		{Kind: "bus", Findings: []probe.Finding{probe.Good("bus.store", "penstock-data", "can be written; no penstock runs on it")}},
		{Kind: "source", Name: "trail", Type: "sqs", Findings: []probe.Finding{
			probe.Good("sqs:ReceiveMessage", "arn:aws:sqs:eu-west-1:123456789012:trail", "took a message and gave it back"),
			probe.Doubt("queue policy", "arn:aws:sqs:eu-west-1:123456789012:trail", `Principal "*" may send`, "name the service"),
			{
				Level: probe.Fail, Check: "s3:GetObject", Resource: "arn:aws:s3:::example-logs/*", Detail: "call S3 GetObject: AccessDenied",
				Code: "aws.object_denied", Fix: "grant the action that is named", Policy: awsclient.Allow("arn:aws:s3:::example-logs/*", "s3:GetObject"),
			},
		}},
	}}
	var out bytes.Buffer
	if err := d.print(&out); err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "testdata/doctor.golden", out.Bytes())
}

func TestDoctorRefusesUnknownSources(t *testing.T) {
	err := runDoctor(t.Context(), &bytes.Buffer{}, defaults(), doctorOptions{source: "x", timeout: defaultTimeout})
	if exitCode(err) != exitUsage {
		t.Error(err)
	}
}

func TestDoctorLooksAtTheBus(t *testing.T) {
	look := func(file File) []probe.Finding {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return lookAtBus(ctx, file)
	}
	file := defaults()
	file.Bus.Store, file.Bus.Disk = filepath.Join(t.TempDir(), "a", "b"), 256*config.MiB
	if got := look(file); len(got) != 1 || got[0].Level != probe.OK {
		t.Errorf("a folder to be made: %+v", got)
	}
	if _, err := os.Stat(filepath.Dir(file.Bus.Store)); !os.IsNotExist(err) {
		t.Error("the doctor made a folder")
	}
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: file.Bus.Store, Disk: 256 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	if got := look(file); len(got) != 2 || got[0].Level != probe.OK || got[1].Level != probe.Warn || !strings.Contains(got[1].Detail, "not there yet") {
		t.Errorf("a server without streams: %+v", got)
	}
	bus, err := topology.Connect(t.Context(), server.Connect(topology.Options{Log: slog.New(slog.DiscardHandler)}))
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	if _, err := bus.Apply(t.Context(), file.Bus.limits(1)); err != nil {
		t.Fatal(err)
	}
	if got := look(file); len(got) != 2 || got[1].Level != probe.OK {
		t.Errorf("a server with streams: %+v", got)
	}
	other := file
	other.Dedupe.Lanes = 4
	if got := look(other); got[1].Level != probe.Fail || !strings.Contains(got[1].Detail, "lanes") {
		t.Errorf("other lanes: %+v", got)
	}
	gone := defaults()
	gone.Bus.URL = "nats://127.0.0.1:1"
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if got := lookAtBus(ctx, gone); len(got) != 1 || got[0].Level != probe.Fail || got[0].Code != "bus.connect_failed" {
		t.Errorf("no server: %+v", got)
	}
}

// Sources that are no part of AWS: a listener is opened and closed, a webhook is not
// called, since that would move its cursor.
func TestDoctorLooksAtOtherSources(t *testing.T) {
	called := false
	hook := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called = true }))
	defer hook.Close()
	busy := hook.Listener.Addr().String()
	w := newWard(t)
	d, err := w.ask(t, `
bus: {store: STORE}
sources:
  - {name: hook, type: censornet, url: '`+hook.URL+`/x', key: a-key-that-is-long-enough, products: [web]}
  - {name: free, type: http, address: '127.0.0.1:0', auth: none, endpoints: [{path: /in, kind: json}]}
  - {name: busy, type: http, address: '`+busy+`', auth: none, endpoints: [{path: /in, kind: json}]}
`)
	if err != nil || called {
		t.Errorf("%v, called %v", err, called)
	}
	for name, want := range map[string]probe.Level{"hook": probe.Warn, "free": probe.OK, "busy": probe.Warn} {
		worst := probe.OK
		if len(d.of(name, probe.Warn)) > 0 {
			worst = probe.Warn
		}
		if worst != want || len(d.of(name, probe.Fail)) > 0 {
			t.Errorf("%s: %+v", name, d.of(name, probe.OK, probe.Warn, probe.Fail))
		}
	}
}
