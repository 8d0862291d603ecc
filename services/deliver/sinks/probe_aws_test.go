package sinks

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/probe"
)

// With all permissions the destinations work; without any one of them the doctor says
// which one is missing. Nothing stays behind.
// covers: DEV-140
func TestAWSProbes(t *testing.T) {
	const key = "arn:aws:kms:us-east-1:123456789012:key/k"
	c := newCloud(t, cloud.Options{})
	defer c.Close()
	bucket := defaultS3()
	bucket.Bucket, bucket.Prefix, bucket.SSE, bucket.KMSKeyID, bucket.AWS = "out", "a", S3KMS, key, awsAt(c.URL())
	queue := sqsQueue(t, c, "out")
	queue.Oversize, queue.OverflowBucket = OversizeS3, "out"
	fifo := sqsQueue(t, c, "out.fifo")
	tests := map[string]struct {
		prober probe.Prober
		asked  []string
	}{
		"s3": {bucket, Permissions["s3"]},
		// The queue is not encrypted by a key of KMS.
		"sqs":      {queue, []string{callSend, callAttributes, callPutObject, callAbort}},
		"sqs fifo": {fifo, []string{callSend, callAttributes}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, missing := range append([]string{""}, tt.asked...) {
				allowed := slices.DeleteFunc(slices.Clone(tt.asked), func(a string) bool { return a == missing })
				policy, err := json.Marshal(map[string]any{
					"Version": "2012-10-17", "Statement": []any{map[string]any{"Effect": "Allow", "Action": allowed, "Resource": "*"}},
				})
				must(t, err)
				must(t, c.PutUser(cloud.User{AccessKey: "AKIATEST", Name: "penstock", Policy: string(policy)}))
				found := missing == ""
				for _, f := range tt.prober.Probe(t.Context()) {
					if f.Level == probe.OK {
						continue
					}
					if missing == "" {
						t.Errorf("with all: %+v", f)
					}
					found = found || f.Check == missing && f.Policy != nil && f.Policy.Action[0] == missing && f.Fix != ""
					if level := map[bool]probe.Level{true: probe.Warn, false: probe.Fail}[missing == callAttributes || missing == callAbort]; f.Level != level {
						t.Errorf("without %s: %+v", missing, f)
					}
				}
				if !found {
					t.Errorf("nobody says that %s is missing", missing)
				}
				if missing != callAbort && len(c.Uploads("out")) > 0 {
					t.Error("an upload stays")
				}
				c.AbortUploads("out")
			}
		})
	}
	if n := c.Objects("out") + len(c.Messages("out")) + len(c.Messages("out.fifo")); n > 0 {
		t.Errorf("%d objects and messages stay", n)
	}
}

// What will not work for other reasons than permissions is found too.
func TestAWSProbesFind(t *testing.T) {
	c := newCloud(t, cloud.Options{})
	defer c.Close()
	url, err := c.CreateQueue("small", map[string]string{"MaximumMessageSize": "65536"})
	must(t, err)
	small := sqsQueue(t, c, "other")
	small.QueueURL = url
	none := small
	none.QueueURL = c.QueueURL("none")
	bucket := defaultS3()
	bucket.Bucket, bucket.AWS = "none-such", awsAt(c.URL())
	for name, tt := range map[string]struct {
		prober probe.Prober
		check  string
		level  probe.Level
	}{
		"small queue": {small, "message size", probe.Warn},
		"no queue":    {none, callAttributes, probe.Fail},
		"no bucket":   {bucket, callPutObject, probe.Fail},
	} {
		if all := tt.prober.Probe(t.Context()); !slices.ContainsFunc(all, func(f probe.Finding) bool { return f.Check == tt.check && f.Level == tt.level && f.Fix != "" }) {
			t.Errorf("%s: %+v", name, all)
		}
	}
}
