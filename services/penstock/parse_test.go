package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
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
