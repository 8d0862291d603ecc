package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// command runs penstock with args in this process.
func command(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, log bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&log)
	err = root.ExecuteContext(t.Context())
	return out.String(), log.String(), err
}

const trial3 = `{"eventVersion":"1.11","eventTime":"2026-01-05T07:44:54Z","eventSource":"s3.amazonaws.com","awsRegion":"us-east-1","eventID":"x1","recipientAccountId":"123456789012"}
{"a":x}
{"eventVersion":"1.11","eventTime":"2026-01-05T07:44:55Z","eventSource":"iam.amazonaws.com","awsRegion":"us-east-1","eventID":"x2"}
`

// A file becomes what the stages would make of it, and bad records are told apart.
func TestParse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.json.gz")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write([]byte(trial3))
	if err := errors.Join(z.Close(), os.WriteFile(path, packed.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	out, log, err := command(t, "", "parse", path, "--json")
	if !errors.Is(err, errSilent) {
		t.Errorf("a refused record should make exit code 1, got %v", err)
	}
	var types, refused []string
	for line := range strings.Lines(out) {
		var got struct {
			Record                uint64
			Type, Refused, Reason string
			Event                 json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if got.Refused != "" {
			refused = append(refused, got.Refused+" "+got.Reason)
			continue
		}
		types = append(types, got.Type)
		if !strings.Contains(trial3, string(got.Event)) {
			t.Errorf("record %d is not what the file holds: %s", got.Record, got.Event)
		}
	}
	if strings.Join(types, " ") != "cloud.aws.cloudtrail.s3 cloud.aws.cloudtrail.iam" {
		t.Errorf("events %v", types)
	}
	if len(refused) != 1 || !strings.HasPrefix(refused[0], "framing.bad_json record 1 of ") {
		t.Errorf("refused %q", refused)
	}
	if !strings.Contains(log, "format cloudtrail: 2 events, 1 refused") {
		t.Errorf("the sum says %q", log)
	}
}

// With a source, events have the tables that they have when it runs.
func TestParseTables(t *testing.T) {
	records, file := filepath.Join(t.TempDir(), "records.json"), filepath.Join(t.TempDir(), "penstock.yaml")
	for auto, want := range map[string]string{"false": "cloud.aws.cloudtrail.events", "true": "cloud.aws.cloudtrail.s3"} {
		if err := errors.Join(
			os.WriteFile(records, []byte(strings.SplitAfter(trial3, "\n")[0]), 0o600),
			os.WriteFile(file, []byte("sources: [{name: trail, type: sqs, queue_url: https://sqs.eu-west-1.amazonaws.com/123456789012/q, auto_event_type: "+auto+"}]\n"), 0o600),
		); err != nil {
			t.Fatal(err)
		}
		out, _, err := command(t, "", "parse", "-c", file, "--source", "trail", records)
		if err != nil || !strings.Contains(out, "\t"+want+"\t") {
			t.Errorf("auto_event_type %s: %v, %s", auto, err, out)
		}
	}
}

// Refusals come in the order of the records, with a word on what to try.
func TestParseRefusals(t *testing.T) {
	text := strings.Repeat("CEF:0|V|P|1|2|n|3|src=192.0.2.1\nno CEF\nneither\n", 10)
	out, log, err := command(t, text, "parse", "-", "--json")
	if !errors.Is(err, errSilent) || !strings.Contains(log, "name it with\n--format") {
		t.Errorf("%v, %q", err, log)
	}
	last := -1
	for line := range strings.Lines(out) {
		var got struct{ Where string }
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatal(err)
		}
		if n := -1; got.Where != "" {
			if _, err := fmt.Sscanf(got.Where, "record %d", &n); err != nil || n <= last {
				t.Fatalf("%q comes after record %d", got.Where, last)
			}
			last = n
		}
	}
	if last < 0 {
		t.Error("nothing is refused")
	}
}

func TestParseStandardInput(t *testing.T) {
	out, log, err := command(t, `{"a":1}{"a":2}`, "parse", "-", "--limit", "1")
	if err != nil || !strings.Contains(out, `{"a":1}`) || strings.Contains(out, `{"a":2}`) || !strings.Contains(log, "2 events, 0 refused") {
		t.Errorf("%v, %q, %q", err, out, log)
	}
}

func TestParseRefusesWrongUse(t *testing.T) {
	for _, args := range [][]string{
		{"parse"},
		{"parse", "/nowhere"},
		{"parse", t.TempDir()},
		{"parse", "--format", "cloudtail", "-"},
		{"parse", "--source", "trail", "--config", "/nowhere", "-"},
	} {
		if _, _, err := command(t, "", args...); exitCode(err) != exitUsage {
			t.Errorf("%v gives exit code %d, %v", args, exitCode(err), err)
		}
	}
}
