package parse

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/topology"
)

// longRecord is a CloudTrail record of common size and shape.
func longRecord(n int) string {
	return fmt.Sprintf(`{"eventVersion":"1.11","userIdentity":{"type":"AssumedRole","principalId":"AROAEXAMPLEEXAMPLEXYZ:session-%[1]d","arn":"arn:aws:sts::123456789012:assumed-role/deploy-role/session-%[1]d","accountId":"123456789012","accessKeyId":"ASIAEXAMPLEEXAMPLE01","sessionContext":{"sessionIssuer":{"type":"Role","principalId":"AROAEXAMPLEEXAMPLEXYZ","arn":"arn:aws:iam::123456789012:role/deploy-role","accountId":"123456789012","userName":"deploy-role"},"attributes":{"creationDate":"2026-01-05T07:00:00Z","mfaAuthenticated":"false"}}},"eventTime":"2026-01-05T07:44:%02[2]dZ","eventSource":"%[3]s.amazonaws.com","eventName":"GetObject","awsRegion":"us-east-1","sourceIPAddress":"192.0.2.%[4]d","userAgent":"[aws-cli/2.15.30 md/awscrt#0.20.5 ua/2.0 os/linux#5.10 md/arch#x86_64 lang/python#3.11.8]","requestParameters":{"bucketName":"log-bucket-a","Host":"log-bucket-a.s3.us-east-1.amazonaws.com","key":"data/part-%08[1]d.parquet"},"responseElements":null,"additionalEventData":{"SignatureVersion":"SigV4","CipherSuite":"TLS_AES_128_GCM_SHA256","bytesTransferredIn":0,"bytesTransferredOut":%[5]d,"AuthenticationMethod":"AuthHeader"},"requestID":"REQ%013[1]d","eventID":"00000000-0000-4000-8000-%012[1]d","readOnly":true,"eventType":"AwsApiCall","managementEvent":false,"recipientAccountId":"123456789012","eventCategory":"Data"}`,
		n, n%60, []string{"s3", "iam", "sts", "ec2", "kms", "lambda", "logs", "dynamodb"}[n%8], n%250, n*7919)
}

// count is an outbox that forgets all but how much it was.
type count struct {
	topology.Recorder
	frames, bytes *atomic.Int64
}

func (c *count) Publish(_ context.Context, m topology.Message) error {
	c.frames.Add(1)
	c.bytes.Add(int64(len(m.Data)))
	return nil
}

// BenchmarkHandle is the whole stage but the bus: 16 inputs at a time of 750
// records of 1.4 KB, 8 event types, 8 lanes.
func BenchmarkHandle(b *testing.B) {
	const window, size = 16, 750
	var frames, stored atomic.Int64
	p, err := New(Defaults(), Deps{
		NewOutbox: func() topology.Outbox { return &count{frames: &frames, bytes: &stored} }, Lanes: lanes, Window: window,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	inputs := make([]topology.In[messages.View], window)
	total := 0
	for i := range inputs {
		recs := make([]string, size)
		for k := range recs {
			recs[k] = longRecord(i*size + k)
			total += len(recs[k])
		}
		inputs[i] = frame(b, trail(0, 0), origin(i), recs...)
	}
	b.SetBytes(int64(total))
	b.ReportAllocs()
	for b.Loop() {
		frames.Store(0)
		var wg sync.WaitGroup
		for _, msg := range inputs {
			wg.Go(func() {
				if err := p.Handle(b.Context(), msg, &topology.Recorder{}); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		if n := frames.Load(); n < 8*lanes || n > 8*lanes*4 {
			b.Fatalf("%d frames for %d events", n, window*size)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/window/size, "ns/event")
	b.ReportMetric(window*size/float64(frames.Load()), "events/frame")
}

// Handling costs a number of allocations for each frame, not for each event.
func TestAllocationsPerEvent(t *testing.T) {
	var frames, stored atomic.Int64
	p, err := New(Defaults(), Deps{
		NewOutbox: func() topology.Outbox { return &count{frames: &frames, bytes: &stored} }, Lanes: lanes, Window: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	recs := make([]string, 4000)
	for k := range recs {
		recs[k] = `{"eventID":"` + fmt.Sprint(k) + `","eventSource":"s3.amazonaws.com","recipientAccountId":"123456789012"}`
	}
	msg := frame(t, trail(0, 0), origin(1), recs...)
	n := testing.AllocsPerRun(20, func() {
		if err := p.Handle(t.Context(), msg, &topology.Recorder{}); err != nil {
			t.Fatal(err)
		}
	})
	if per := n / float64(len(recs)); per > 0.2 {
		t.Errorf("%.3f allocations an event, want far below 1", per)
	}
}
