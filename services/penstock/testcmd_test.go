package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/services/internal/config"
)

const testedConfig = `sources:
  - {name: trail, type: sqs, queue_url: "https://sqs.eu-west-1.amazonaws.com/123456789012/q", buckets: [logs], auto_event_type: true}
  - {name: app, type: sqs, format: json, queue_url: "https://sqs.eu-west-1.amazonaws.com/123456789012/app", buckets: [apps]}
routes:
  - {name: reads, types: [cloud.>], where: 'event.doc.readOnly', drop: true}
  - {name: owner, enrich: {fields: [account], table: {file: /etc/owners.csv, key: id}}}
  - {name: secret, mask: {fields: [secret], method: remove}}
destinations:
  - {name: all, type: file, path: /nowhere/events, format: document}
  - {name: iam, type: http, url: "https://${HOST}/in", types: [cloud.aws.cloudtrail.iam], where: 'event.doc.eventName != "GetUser"'}
  - {name: pull, type: webhook_pull, address: "127.0.0.1:0", streams: {s: [">"]}}
`

// testConfiguration writes a configuration and a file of tests, and runs them.
func testConfiguration(t *testing.T, tests string, args ...string) (out string, dir string, err error) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range map[string]string{"penstock.yaml": testedConfig, "owners.csv": "id,owner\n1,ann\n", "t.yaml": tests} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, _, err = command(t, "", append([]string{"test", filepath.Join(dir, "t.yaml")}, args...)...)
	return out, dir, err
}

const testsHead = "config: penstock.yaml\nenv: {HOST: siem.example.org}\nfiles: {/etc/owners.csv: owners.csv}\ntests:\n"

const trailRecords = `'{"Records":[{"eventID":"1","eventName":"CreateUser","eventSource":"iam.amazonaws.com","account":1,"secret":"x"},{"eventID":"2","eventName":"GetUser","eventSource":"iam.amazonaws.com"},{"eventID":"3","readOnly":true,"eventSource":"s3.amazonaws.com"}]}'`

// Each case is one test: what it puts in, and what of it fails, if anything does.
func TestTestCommand(t *testing.T) {
	event := `{"eventID":"1","eventName":"CreateUser","eventSource":"iam.amazonaws.com","account":1,"penstock":{"owners":{"owner":"ann"}}}`
	tests := []struct {
		name, input, expect string
		fails               []string // line, key, expected, actual
	}{
		{"all as expected", "{source: trail, record: " + trailRecords + "}", `
      events: 3
      duplicates: 0
      dropped: {reads: 1}
      destinations:
        all: {count: 2, bodies: ['` + event + `', '{"eventID":"2","eventName":"GetUser","eventSource":"iam.amazonaws.com"}']}
        iam: {count: 1, filtered: 1, types: {cloud.aws.cloudtrail.iam: 1}, where: ['!has(event.doc.secret) && event.doc.account == 1']}
        pull: 2`, nil},
		{"numbers", "{source: trail, record: " + trailRecords + "}", `
      events: 4
      duplicates: 1
      dropped: {reads: 2, secret: 1}
      destinations:
        all: 3
        iam:
          count: 0
          filtered: 0`, []string{"10 events 4 3", "11 duplicates 1 0", "12 dropped.reads 2 1", "12 dropped.secret 1 0", "14 destinations.all.count 3 2", "16 destinations.iam.count 0 1", "17 destinations.iam.filtered 0 1"}},
		{"types", "{source: trail, record: " + trailRecords + "}", `
      destinations:
        all:
          types: {a.b: 2}`, []string{"12 destinations.all.types 2 a.b 2 cloud.aws.cloudtrail.iam"}},
		{"expressions", "{source: trail, record: " + trailRecords + "}", `
      destinations:
        all:
          where:
            - event.type.startsWith("cloud.")
            - event.doc.eventName == "CreateUser"
            - event.doc.absent`, []string{
			`14 destinations.all.where[1] event.doc.eventName == "CreateUser" it does not hold for`,
			"15 destinations.all.where[2] event.doc.absent evaluate a condition: no such key",
		}},
		{"an expression for nothing", "{source: app, record: '{\"a\":1}'}", `
      destinations:
        iam:
          where: ['true']`, []string{"12 destinations.iam.where[0] true there is no event"}},
		{"bodies", "{source: trail, record: " + trailRecords + "}", `
      destinations:
        all:
          bodies:
            - '{}'
            - '{"eventID":"2","eventName":"GetUser","eventSource":"iam.amazonaws.com"}'
            - one more`, []string{"13 destinations.all.bodies[0] {} " + event, "15 destinations.all.bodies[2] one more (none)"}},
		{"too few bodies", "{source: trail, record: " + trailRecords + "}", `
      destinations:
        all:
          bodies: []`, []string{"12 destinations.all.bodies[0] (none) {", "12 destinations.all.bodies[1] (none) {"}},
		{"what cannot be written here", "{source: app, record: '{\"a\":1}'}", `
      destinations:
        pull: {count: 1, where: ['event.doc.a == 1'], bodies: [x]}`, []string{"11 destinations.pull events as the destination writes them it cannot be opened here"}},
		{"unexpected quarantine", "{source: app, record: '{\"a\":x}'}", `
      events: 0`, []string{"6 quarantined.framing.bad_json 0 1"}},
		{"expected quarantine", "{source: app, record: '{\"a\":x}'}", `
      quarantined: {framing.bad_json: 1}`, nil},
		{"quarantine that did not come", "{source: app, record: '{\"a\":1}'}", `
      quarantined: {framing.bad_json: 1}`, []string{"10 quarantined.framing.bad_json 1 0"}},
		{"events in a message", "{source: app, message: '{\"a\":1}'}", `
      destinations: {all: {bodies: ['{"a":1}']}}`, nil},
		{"a notification", `{source: trail, message: '{"Records":[{"eventSource":"aws:s3","eventName":"ObjectCreated:Put","s3":{"bucket":{"name":"logs"},"object":{"key":"a+b.json","size":9}}}]}', objects: [{bucket: logs, key: a b.json, body: '{"Records":[{"eventID":"9","eventName":"PutObject","eventSource":"s3.amazonaws.com"}]}'}]}`, `
      destinations: {all: {types: {cloud.aws.cloudtrail.s3: 1}}}`, nil},
		{"an object that is not there", `{source: trail, message: '{"Records":[{"eventSource":"aws:s3","eventName":"ObjectCreated:Put","s3":{"bucket":{"name":"logs"},"object":{"key":"a","size":9}}}]}'}`, `
      quarantined: {fetch.no_such_key: 1}`, nil},
		{"a bucket that is not read", `{source: trail, message: '{"Records":[{"eventSource":"aws:s3","eventName":"ObjectCreated:Put","s3":{"bucket":{"name":"other"},"object":{"key":"a","size":9}}}]}'}`, `
      quarantined: {ingest.bucket_not_allowed: 1}`, nil},
		{"an object twice", `{source: trail, object: {bucket: logs, key: a, body: '{"Records":[{"eventID":"1","eventName":"PutObject","eventSource":"s3.amazonaws.com"}]}'}}
      - {source: trail, object: {bucket: logs, key: b, body: '{"Records":[{"eventID":"1","eventName":"PutObject","eventSource":"s3.amazonaws.com"}]}'}}`, `
      events: 1
      duplicates: 1`, nil},
		{"records of no id", `{source: app, record: '{"a":1}'}
      - {source: app, record: '{"a":1}'}`, `
      events: 2
      destinations: {all: {bodies: ['{"a":1}', '{"a":1}']}}`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, dir, err := testConfiguration(t, testsHead+"  -\n    name: "+tt.name+"\n    input:\n      - "+strings.TrimSpace(tt.input)+"\n"+
				"    expect:"+tt.expect+"\n", "--json")
			if (err != nil) != (tt.fails != nil) || err != nil && !errors.Is(err, errSilent) {
				t.Fatalf("%v\n%s", err, out)
			}
			if _, err := os.Stat(filepath.Join(dir, "nowhere")); err == nil {
				t.Error("a destination has written")
			}
			var results []testResult
			if err := json.Unmarshal([]byte(out), &results); err != nil || len(results) != 1 || results[0].Passed != (tt.fails == nil) || results[0].Got == nil {
				t.Fatalf("%v\n%s", err, out)
			}
			var fails []string
			for _, f := range results[0].Failures {
				b, _ := json.Marshal(f.Line)
				fails = append(fails, strings.Join([]string{string(b), f.What, f.Expected, f.Actual}, " "))
			}
			if !slices.EqualFunc(fails, tt.fails, strings.HasPrefix) {
				t.Errorf("got  %q\nwant %q", fails, tt.fails)
			}
		})
	}
}

func TestTestUpdates(t *testing.T) {
	const one = "  - name: one\n    input: [{source: app, record: '{\"a\":1}'}]\n    expect: {destinations: {all: {bodies_file: want/all.txt}}}\n"
	out, dir, err := testConfiguration(t, testsHead+one)
	if !errors.Is(err, errSilent) || !strings.Contains(out, "t.yaml:7: destinations.all.bodies_file") || !strings.Contains(out, "write it with: penstock test --update") || !strings.Contains(out, "0 passed, 1 failed") {
		t.Errorf("%v\n%s", err, out)
	}
	name := filepath.Join(dir, "t.yaml")
	if out, _, err := command(t, "", "test", "--update", name); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out, _, err := command(t, "", "test", name, name); err != nil || !strings.Contains(out, "2 passed, 0 failed") {
		t.Errorf("%v\n%s", err, out)
	}
	want := filepath.Join(dir, "want", "all.txt")
	if text, err := os.ReadFile(want); err != nil || string(text) != "{\"a\":1}\n" {
		t.Errorf("%q, %v", text, err)
	}
	if err := os.WriteFile(want, []byte("{\"a\":2}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, err := command(t, "", "test", name); !errors.Is(err, errSilent) || !strings.Contains(out, "bodies_file, line 1 of want/all.txt\n    expected {\"a\":2}\n    actual   {\"a\":1}\n  what came: 1 events, 0 duplicates, 1 to all, 0 to iam, 1 to pull") {
		t.Errorf("%v\n%s", err, out)
	}
}

// What is wrong with the files is told with its line, and ends with exit code 2.
func TestTestFilesThatAreWrong(t *testing.T) {
	const input, expect = "input: [{source: app, record: x}], ", "expect: {}"
	tests := []struct{ name, text, want string }{
		{"no configuration", "tests: [{name: a, " + input + expect + "}]", "config: "},
		{"an absent one", "config: absent.yaml\ntests: [{name: a, " + input + expect + "}]", "absent.yaml"},
		{"no tests", "config: penstock.yaml", "tests: "},
		{"an unknown key", testsHead + "  - {name: a, " + input + "expct: {}}", "t.yaml:5:"},
		{"a name twice", testsHead + "  - {name: a, " + input + expect + "}\n  - {name: a, " + input + expect + "}", "tests[1].name"},
		{"no input", testsHead + "  - {name: a, " + expect + "}", "tests[0].input"},
		{"two in one", testsHead + "  - {name: a, input: [{source: app, record: x, message: y}]}", "use exactly one of object, record and message"},
		{"no key", testsHead + "  - {name: a, input: [{source: app, object: {body: x}}]}", "object.key"},
		{"body and file", testsHead + "  - {name: a, input: [{source: app, record: {body: x, file: y}}]}", "use exactly one of body and file"},
		{"no such source", testsHead + "  - {name: a, input: [{source: other, record: x}]}", "there is no such source in penstock.yaml"},
		{"no such rule", testsHead + "  - {name: a, " + input + "expect: {dropped: {other: 1}}}", "there is no such rule"},
		{"no such destination", testsHead + "  - {name: a, " + input + "expect: {destinations: {other: 1}}}", "t.yaml:5:"},
		{"a bad expression", testsHead + "  - {name: a, " + input + "expect: {destinations: {all: {where: ['event.x']}}}}", "column 1: undeclared reference"},
		{"bodies twice", testsHead + "  - {name: a, " + input + "expect: {destinations: {all: {bodies: [x], bodies_file: y}}}}", "use one of bodies and bodies_file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, _, err := testConfiguration(t, tt.text)
			if err == nil || exitCode(err) != exitUsage || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("exit code %d, want 2 and %q: %v\n%s", exitCode(err), tt.want, err, out)
			}
		})
	}
	for _, args := range [][]string{{"test"}, {"test", filepath.Join(t.TempDir(), "absent.yaml")}} {
		if _, _, err := command(t, "", args...); exitCode(err) != exitUsage {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// A configuration with a problem is a wrong file, too, and so is one for which a
// variable is missing.
func TestTestOfAWrongConfiguration(t *testing.T) {
	_, _, err := testConfiguration(t, strings.Replace(testsHead, "HOST:", "OTHER:", 1)+"  - {name: a, input: [{source: app, record: x}]}")
	var wrong *config.Error
	if !errors.As(err, &wrong) || !strings.Contains(err.Error(), "penstock.yaml:10") {
		t.Errorf("got %v", err)
	}
}

// A file that an input names and that is not there is told with its line; so is one for
// enrichment. Neither is a test that failed.
func TestTestInputsThatAreMissing(t *testing.T) {
	var usage usageError
	if _, _, err := testConfiguration(t, testsHead+"  - name: a\n    input:\n      - {source: app, record: {file: absent}}\n"); !errors.As(err, &usage) || !strings.Contains(err.Error(), "t.yaml:7: input: ") {
		t.Errorf("got %v", err)
	}
	if _, _, err := testConfiguration(t, strings.Replace(testsHead, "owners.csv}", "absent.csv}", 1)+"  - {name: a, input: [{source: app, record: x}]}"); !errors.As(err, &usage) || !strings.Contains(err.Error(), "absent.csv for enrichment") {
		t.Errorf("got %v", err)
	}
}

// The example of the guide passes, as a whole and as it is printed there.
func TestTestingGuide(t *testing.T) {
	if out, _, err := command(t, "", "test", "../../deploy/testing/penstock.test.yaml"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	guide, err := os.ReadFile("../../docs/guides/testing-configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(guide), "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	dir := t.TempDir()
	for _, name := range []string{"penstock.yaml", "accounts.csv"} {
		data, err := os.ReadFile("../../deploy/testing/" + name)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Join(dir, "t.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, err := command(t, "", "test", name); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// Each rule in the guides is one that loads.
func TestRulesInGuides(t *testing.T) {
	t.Setenv("MASK_KEY", "0123456789abcdef")
	for _, guide := range []string{"routing", "enrichment", "ocsf"} {
		text, err := os.ReadFile("../../docs/guides/" + guide + ".md")
		if err != nil {
			t.Fatal(err)
		}
		blocks := strings.Split(string(text), "```yaml\n")[1:]
		if len(blocks) == 0 {
			t.Errorf("%s has no example", guide)
		}
		for n, block := range blocks {
			block, _, _ = strings.Cut(block, "```")
			name := filepath.Join(t.TempDir(), "penstock.yaml")
			if err := os.WriteFile(name, []byte(block), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := loadFile(name); err != nil {
				t.Errorf("%s, example %d: %v", guide, n+1, err)
			}
		}
	}
}
