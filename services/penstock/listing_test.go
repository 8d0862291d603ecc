package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/topology"
)

// The same bucket, read by its notifications and by listing it: each event enters
// the event log once, though a notification names the version of an object and a
// listing does not.
// covers: DEV-61, DEV-100, LIM-3
func TestListingAndNotificationsTogether(t *testing.T) {
	tests := []struct {
		name      string
		versioned bool
		policy    []*awsclient.Statement
	}{
		{"versions", true, nil},
		{"no versions", false, nil},
		{"versions that may not be asked for", true, []*awsclient.Statement{
			awsclient.Allow("arn:aws:s3:::logs/*", "s3:GetObject"), awsclient.Allow("arn:aws:s3:::logs", "s3:ListBucket"),
			awsclient.Allow("*", "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility"),
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			world, err := cloud.Start(t.Context(), cloud.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer world.Close()
			if tt.policy != nil {
				var lines []string
				for _, s := range tt.policy {
					lines = append(lines, s.String())
				}
				if err := world.PutUser(cloud.User{AccessKey: "AKIATEST", Policy: `{"Version": "2012-10-17", "Statement": [` + strings.Join(lines, ",") + `]}`}); err != nil {
					t.Fatal(err)
				}
			}
			if err := world.CreateBucket("logs", cloud.BucketOptions{Versioned: tt.versioned}); err != nil {
				t.Fatal(err)
			}
			queue, err := world.CreateQueue("notices", nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := world.Notify("logs", cloud.Notification{Queue: "notices"}); err != nil {
				t.Fatal(err)
			}
			const objects, records = 40, 25
			for i := range objects {
				var b strings.Builder
				for range records { // equal records in one object are different events
					fmt.Fprintf(&b, "{\"object\": %d}\n", i%7)
				}
				if _, err := world.Put("logs", fmt.Sprintf("k%02d.json", i), cloud.Object{Body: []byte(b.String())}); err != nil {
					t.Fatal(err)
				}
			}
			dir := t.TempDir()
			file := defaults()
			text := fmt.Sprintf(`
x-aws: &aws {endpoint_url: %q, access_key: AKIATEST, access_secret: s}
bus: {store: %q, disk: 1 GiB}
sources:
  - {name: live, type: sqs, format: json, queue_url: %q, buckets: [logs], wait_time: 1s, aws: *aws}
  - {name: list, type: s3, format: json, bucket: logs, period: 1s, aws: *aws}
destinations:
  - {name: out, type: file, path: %q}
`, world.URL(), filepath.Join(dir, "streams"), queue, filepath.Join(dir, "events.ndjson"))
			if err := config.Parse("test.yaml", []byte(text), &file); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithTimeout(t.Context(), time.Minute)
			defer stop()
			p := newPipeline(file, topology.Stages, slog.New(slog.DiscardHandler))
			if err := p.start(ctx); err != nil {
				t.Fatal(err)
			}
			fold := ledger.New()
			var r ledger.Report
			watched, done := context.WithCancel(ctx)
			err = p.buses[0].Follow(watched, topology.Span{Subject: "penstock.ledger.>"}, func(m topology.Stored) error {
				err := addFacts(fold, m)
				if r = fold.Report(); r.Total.Announced["object"] == 2*objects && r.Total.Open == 0 && confirmed(r) >= objects*records && r.Total.Unique+r.Total.Duplicates == 2*objects*records {
					done()
				}
				return err
			})
			if err != nil && watched.Err() == nil {
				t.Error(err)
			}
			done()
			stop()
			if err := p.wait(); err != nil {
				t.Error(err)
			}
			if r.Total.Unique != objects*records || r.Total.Duplicates != objects*records || confirmed(r) != objects*records || !r.Balanced {
				t.Errorf("%d unique, %d duplicates, %d delivered of %d; %v", r.Total.Unique, r.Total.Duplicates, confirmed(r), objects*records, r.Problems)
			}
		})
	}
}
