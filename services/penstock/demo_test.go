package main

import (
	"reflect"
	"testing"
	"time"

	"github.com/penstock/penstock/services/ingest/sources"
)

// The compose file's demo reads what penstock demo reads, but for the APIs, whose
// samples are of the last minutes.
func TestDemoOfComposeHasTheSameSources(t *testing.T) {
	demo, err := demoFile("http://demo:9000", time.Now(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	compose, err := loadFile("../../deploy/penstock.demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]Source{}
	for _, s := range compose.Sources {
		have[s.Name] = s
	}
	for _, s := range demo.Sources {
		if s.Type != "sqs" && s.Type != "s3" {
			continue
		}
		got, ok := have[s.Name]
		if !ok {
			t.Errorf("deploy/penstock.demo.yaml has no source %s", s.Name)
			continue
		}
		if s.Type == "sqs" { // penstock demo waits less, so that it stops sooner
			defaults, _ := sources.Catalog.Defaults("sqs")
			s.Options.(*sources.SQSConfig).WaitTime = defaults.(*sources.SQSConfig).WaitTime
		}
		if !reflect.DeepEqual(got, s) {
			t.Errorf("source %s differs:\n%+v\n%+v", s.Name, got.Options, s.Options)
		}
	}
}
