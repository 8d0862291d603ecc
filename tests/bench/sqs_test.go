package main

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmsqs "github.com/ThreeDotsLabs/watermill-aws/sqs"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/parse/formats"
	"github.com/penstock/penstock/topology"
)

// testQueue is a queue and how Watermill's AWS package reaches it.
func testQueue(tb testing.TB) (*cloud.Cloud, string, aws.Config, []func(*sqs.Options)) {
	tb.Helper()
	c, err := cloud.Start(context.Background(), cloud.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	url, err := c.CreateQueue("q", nil)
	if err != nil {
		tb.Fatal(err)
	}
	cfg := aws.Config{Region: c.Region(), Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")}
	return c, url, cfg, []func(*sqs.Options){func(o *sqs.Options) { o.BaseEndpoint = aws.String(c.URL()) }}
}

func testNotice(i int) string {
	return string(cloud.Message(cloud.Direct, cloud.Event{
		Name: "ObjectCreated:Put", Bucket: bucket, Key: fmt.Sprintf("AWSLogs/%d.json.gz", i), Region: "us-east-1", Size: 1000, Time: time.Unix(1_767_600_000, 0),
	}))
}

// openSource opens our own reader of the queue, whose results stay in memory.
func openSource(tb testing.TB, url string, out *topology.Recorder) sources.Source {
	tb.Helper()
	tb.Setenv("AWS_ACCESS_KEY_ID", "test")
	tb.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	defaults, _ := sources.Catalog.Defaults("sqs")
	cfg, ok := defaults.(*sources.SQSConfig)
	if !ok {
		tb.Fatalf("defaults are a %T", defaults)
	}
	cfg.QueueURL, cfg.Region, cfg.Buckets, cfg.WaitTime = url, "us-east-1", []string{bucket}, time.Second
	s, err := sources.Catalog.Open(context.Background(), "sqs", cfg, sources.Deps{
		Name: "bench", Choose: formats.Choose, NewOutbox: func() topology.Outbox { return out },
	})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// What Watermill's AWS publisher sends, our source reads: programs that announce
// objects themselves may use it.
func TestSourceReadsWhatWatermillPublishes(t *testing.T) {
	c, url, cfg, opts := testQueue(t)
	publisher, err := wmsqs.NewPublisher(wmsqs.PublisherConfig{AWSConfig: cfg, OptFns: opts, DoNotCreateQueueIfNotExists: true}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	const n = 25
	for i := range n {
		if err := publisher.Publish("q", message.NewMessage(fmt.Sprint(i), []byte(testNotice(i)))); err != nil {
			t.Fatal(err)
		}
	}
	out := &topology.Recorder{}
	drain(t, c, openSource(t, url, out), n)
	if got := len(out.Messages()); got != n {
		t.Errorf("%d notices, want %d", got, n)
	}
}

// drain runs a source until n messages are deleted.
func drain(tb testing.TB, c *cloud.Cloud, s sources.Source, n int64) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	run, stop := context.WithCancel(ctx)
	go func() { ended <- s.Run(run) }()
	err := c.Wait(ctx, func() bool { return c.Queue("q").Deleted >= n })
	stop()
	if runErr := <-ended; err != nil || runErr != nil {
		tb.Fatal(err, runErr)
	}
}

// BenchmarkReceive reads and deletes messages from SQS: through Watermill's AWS
// subscriber, which handles and deletes one message at a time in each worker, and
// through our own, which works in batches. The measurement behind
// docs/decisions/0009-batched-sqs-source.md.
func BenchmarkReceive(b *testing.B) {
	const n = 2000
	fill := func(b *testing.B, c *cloud.Cloud) {
		b.Helper()
		b.StopTimer()
		for i := 0; i < n; i += 100 {
			batch := make([]string, 100)
			for k := range batch {
				batch[k] = testNotice(i + k)
			}
			if _, err := c.Send("q", batch...); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
	}
	b.Run("watermill-aws", func(b *testing.B) {
		for b.Loop() {
			c, _, cfg, opts := testQueue(b)
			fill(b, c)
			subscriber, err := wmsqs.NewSubscriber(wmsqs.SubscriberConfig{
				AWSConfig: cfg, OptFns: opts, DoNotCreateQueueIfNotExists: true, ConsumeWorkers: 8,
			}, watermill.NopLogger{})
			if err != nil {
				b.Fatal(err)
			}
			messages, err := subscriber.Subscribe(b.Context(), "q")
			if err != nil {
				b.Fatal(err)
			}
			for range n {
				(<-messages).Ack()
			}
			if err := c.Wait(b.Context(), func() bool { return c.Queue("q").Deleted >= n }); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			_ = subscriber.Close()
			c.Close()
			b.StartTimer()
		}
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	})
	b.Run("penstock", func(b *testing.B) {
		for b.Loop() {
			c, url, _, _ := testQueue(b)
			fill(b, c)
			drain(b, c, openSource(b, url, &topology.Recorder{}), n)
			b.StopTimer()
			c.Close()
			b.StartTimer()
		}
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	})
}
