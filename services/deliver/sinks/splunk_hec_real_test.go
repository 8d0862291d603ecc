package sinks

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/config"
)

// The HEC receiver of the OpenTelemetry Collector offers no acknowledgements, refuses a
// request as a whole, and reads time as a float.
//
// covers: F-25
func TestHECCollector(t *testing.T) {
	receiver(t, "otelcol")
	folder, address := t.TempDir(), freeAddress(t)
	cert, key, out := filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem"), filepath.Join(folder, "logs.jsonl")
	serverCertificate(t, cert, key)
	path := filepath.Join(folder, "collector.yaml")
	must(t, os.WriteFile(path, fmt.Appendf(nil, `
receivers:
  splunk_hec: {endpoint: %q, access_token_passthrough: true, tls: {cert_file: %q, key_file: %q}}
exporters:
  file: {path: %q, flush_interval: 50ms}
service:
  telemetry: {metrics: {level: none}, logs: {level: error}}
  pipelines: {logs: {receivers: [splunk_hec], exporters: [file]}}
`, address, cert, key, out), 0o600))
	stop := startReceiver(t, address, "otelcol", "--config", "file:"+path)
	cfg := defaultSplunkHEC()
	cfg.URL, cfg.Token, cfg.TLS.CAFile, cfg.Index = "https://"+address, config.NewSecret(hecToken), cert, "aws_{region}"
	s := openHEC(t, cfg, Deps{})
	mustDeliver(t, s, batchOf(s, 0, plain(0, 1000)...))
	// An empty event among good ones, which this receiver refuses without its number.
	b := batchOf(s, 1000, `{"n":1000}`, ``, `{"n":1002}`)
	refused := map[messages.ID]bool{}
	settle(t, s, b.data, b.items, 10, func(id messages.ID, v Verdict) { refused[id] = v == Reject })
	if !refused[b.ID(1)] || refused[b.ID(0)] || refused[b.ID(2)] {
		t.Errorf("refused %v", refused)
	}
	s.Close()
	stop()

	data, err := os.ReadFile(out)
	must(t, err)
	seen := map[string]bool{}
	for line := range bytes.Lines(data) {
		var logs struct {
			ResourceLogs []struct {
				Resource  struct{ Attributes []hecAttribute }
				ScopeLogs []struct {
					LogRecords []struct {
						TimeUnixNano json.Number
						Attributes   []hecAttribute
					}
				}
			}
		}
		must(t, json.Unmarshal(line, &logs))
		for _, r := range logs.ResourceLogs {
			resource := attributesOf(r.Resource.Attributes)
			for _, want := range []string{"com.splunk.index=aws_eu-west-1", "com.splunk.source=src", "com.splunk.sourcetype=penstock", "com.splunk.hec.access_token=" + hecToken} {
				if !strings.Contains(resource, want) {
					t.Fatalf("resource %q, want %q in it", resource, want)
				}
			}
			for _, sc := range r.ScopeLogs {
				for _, rec := range sc.LogRecords {
					ns, _ := rec.TimeUnixNano.Int64()
					if off := time.Duration(ns - 1_767_599_094_120_000_000).Abs(); off > time.Millisecond {
						t.Fatalf("time is off by %v", off)
					}
					attributes := attributesOf(rec.Attributes)
					_, id, _ := strings.Cut(attributes, "penstock_id=")
					seen[id[:32]] = true
				}
			}
		}
	}
	for i := range 1003 {
		if id := messages.NewID(fmt.Append(nil, i)).String(); seen[id] != (i != 1001) {
			t.Errorf("event %d is there: %v", i, seen[id])
		}
	}
}

type hecAttribute struct {
	Key   string
	Value struct{ StringValue string }
}

func attributesOf(all []hecAttribute) string {
	var b strings.Builder
	for _, a := range all {
		b.WriteString(a.Key + "=" + a.Value.StringValue + " ")
	}
	return b.String()
}
