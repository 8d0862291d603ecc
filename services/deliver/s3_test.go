package deliver

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/topology"
)

// stored counts the lines of all objects of a bucket.
func stored(t *testing.T, c *cloud.Cloud, bucket string) map[string]int {
	t.Helper()
	lines := map[string]int{}
	for _, key := range c.Keys(bucket) {
		o, _ := c.Get(bucket, key)
		z, err := gzip.NewReader(bytes.NewReader(o.Body))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			lines[line]++
		}
	}
	return lines
}

// Frames are held until their objects are stored: when the window is full, after an
// outage, and when the process stops. Each event is stored once.
// covers: F-31, OPC-10, OPC-24
func TestHeldForS3(t *testing.T) {
	const frames, events = 8, 200
	tests := map[string]struct {
		fault cloud.Fault // of the first calls: one attempt, repeats included
		calls int
		drain bool
	}{
		"window":  {},
		"outage":  {fault: cloud.Fault{Status: 503}, calls: 4},
		"denied":  {fault: cloud.Fault{Code: "AccessDenied"}, calls: 1},
		"stopped": {drain: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := cloud.Start(context.Background(), cloud.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.CreateBucket("out", cloud.BucketOptions{}); err != nil {
				t.Fatal(err)
			}
			sink := openSink(t, "s3", sinks.Deps{Destination: "test"}, func(cfg any) {
				s := cfg.(*sinks.S3Config)
				s.Bucket, s.Timeout, s.Batch.Age = "out", 5*time.Second, time.Hour
				s.AWS = awsclient.Config{Region: "us-east-1", EndpointURL: c.URL(), AccessKey: "AKIATEST", SecretKey: config.NewSecret("s")}
			})
			cfg := destination()
			cfg.Type, cfg.Concurrency = "s3", 2
			deps := Deps{Window: frames}
			if tt.drain {
				deps.Window = 2 * frames // nothing is full
			}
			d := start(t, cfg, sink, deps)
			defer shut(t, d)
			if tt.calls > 0 {
				var mu sync.Mutex
				refused := 0
				c.SetFault(func(string, string, string) cloud.Fault {
					mu.Lock()
					defer mu.Unlock()
					if refused++; refused > tt.calls {
						return cloud.Fault{}
					}
					return tt.fault
				})
			}
			out := &topology.Recorder{}
			var wg sync.WaitGroup
			for seq := range uint64(frames) {
				wg.Go(func() {
					if err := d.Handle(t.Context(), frameOf(t, seq, docs(events, 200)...), out); err != nil {
						t.Error(err)
					}
				})
			}
			if tt.drain {
				d.Drain()
			}
			wg.Wait()
			confirmed, quarantined := totals(out.Facts())
			lines := stored(t, c, "out")
			if confirmed != frames*events || quarantined != 0 || len(lines) != frames*events {
				t.Errorf("confirmed %d, quarantined %d, stored %d", confirmed, quarantined, len(lines))
			}
			for line, n := range lines {
				if n != 1 {
					t.Errorf("stored %d times: %.80s", n, line)
				}
			}
			if n := c.Objects("out"); n > frames {
				t.Errorf("%d objects", n)
			}
		})
	}
}
