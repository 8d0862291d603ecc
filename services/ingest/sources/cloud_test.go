package sources

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/topology"
)

// live is a source that reads the demo endpoint through the real SDK.
type live struct {
	*cloud.Cloud
	source Source
	bus    *topology.Recorder
	ctx    context.Context // ends the waiting of a test that goes wrong
	stop   func() error
}

func runLive(t *testing.T, change func(*SQSConfig, *Deps)) *live {
	t.Helper()
	return runWithin(t.Context(), t, change)
}

func runWithin(within context.Context, t *testing.T, change func(*SQSConfig, *Deps)) *live {
	t.Helper()
	c, err := cloud.Start(t.Context(), cloud.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	url, err := c.CreateQueue("logs", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CreateBucket("logs", cloud.BucketOptions{}); err != nil {
		t.Fatal(err)
	}
	l := &live{Cloud: c, bus: &topology.Recorder{}}
	cfg := defaultSQS()
	cfg.QueueURL, cfg.Buckets, cfg.VisibilityTimeout, cfg.WaitTime = url, []string{"logs"}, 2*time.Second, time.Second
	cfg.AWS = awsclient.Config{Region: c.Region(), AccessKey: "AKIATEST", SecretKey: config.NewSecret("secret")}
	deps := Deps{Name: t.Name(), Choose: chooseAuto, NewOutbox: func() topology.Outbox { return l.bus }}
	if change != nil {
		change(&cfg, &deps)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	if l.source, err = Catalog.Open(t.Context(), "sqs", cfg, deps); err != nil {
		t.Fatal(err)
	}
	var giveUp context.CancelFunc
	l.ctx, giveUp = context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(giveUp)
	ctx, cancel := context.WithCancel(within)
	done := make(chan error, 1)
	go func() { done <- l.source.Run(ctx) }()
	l.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = l.stop() }) // before the endpoint closes
	return l
}

// until waits for something to become true of the endpoint.
func (l *live) until(t *testing.T, what string, cond func(cloud.QueueState) bool) {
	t.Helper()
	if err := l.Wait(l.ctx, func() bool { return cond(l.Queue("logs")) }); err != nil {
		t.Fatalf("%s: %v; queue %+v", what, err, l.Queue("logs"))
	}
}

func settled(s cloud.QueueState) bool { return s.Visible+s.InFlight+s.Delayed == 0 }

// keys returns the keys of the notices, repeats included, in order.
func (l *live) keys(t *testing.T) []string {
	t.Helper()
	var keys []string
	for _, m := range l.bus.Messages() {
		n, err := messages.DecodeNotice(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, n.GetOrigin().GetKey())
	}
	slices.Sort(keys)
	return keys
}

// covers: F-5, F-6, F-7, DEV-55: every envelope leads to the same notice.
func TestEnvelopes(t *testing.T) {
	for _, shape := range []cloud.Shape{cloud.Direct, cloud.SNS, cloud.SNSRaw, cloud.EventBridge} {
		t.Run(shape.String(), func(t *testing.T) {
			l := runLive(t, nil)
			if err := l.Notify("logs", cloud.Notification{Queue: "logs", Shape: shape, Removals: true, Records: 3}); err != nil {
				t.Fatal(err)
			}
			want := []string{"a b+c%20.json", "plain", "ü/é"}
			for _, k := range want {
				if _, err := l.Put("logs", k, cloud.Object{Body: []byte("x")}); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.Delete("logs", "plain"); err != nil {
				t.Fatal(err)
			}
			l.FlushNotices()
			l.until(t, "all deleted", func(s cloud.QueueState) bool { return s.Sent > 0 && settled(s) })
			if got := l.keys(t); !slices.Equal(got, want) {
				t.Errorf("keys %q, want %q", got, want)
			}
			if len(l.bus.Quarantined()) != 0 {
				t.Errorf("quarantined %v", l.bus.Quarantined())
			}
			if err := l.source.Health(); err != nil {
				t.Errorf("health: %v", err)
			}
		})
	}
}

// SQS answering with errors, delivering twice, out of order and losing answers:
// each object is announced, and nothing stays in the queue.
func TestRoughQueue(t *testing.T) {
	l := runLive(t, func(c *SQSConfig, _ *Deps) { c.Receivers, c.MaxReceivers = 4, 8 })
	var n atomic.Int64
	l.SetFault(func(op, _, _ string) cloud.Fault {
		switch i := n.Add(1); {
		case op == "ReceiveMessage" && i%11 == 0:
			return cloud.Fault{Cut: -1} // handed out, never arrived
		case op == "ReceiveMessage":
			return cloud.Fault{Duplicate: i%3 == 0, Shuffle: true}
		case op == "DeleteMessageBatch" && i%4 == 0:
			return cloud.Fault{FailEntries: 3}
		case op == "DeleteMessageBatch" && i%5 == 0:
			return cloud.Fault{Status: 500}
		}
		return cloud.Fault{}
	})
	const count = 120
	var want []string
	for i := range count {
		key := fmt.Sprintf("k%03d", i)
		want = append(want, key)
		if _, err := l.Send("logs", string(cloud.Message(cloud.Direct, cloud.Event{
			Name: "ObjectCreated:Put", Bucket: "logs", Key: key, Region: "us-east-1", Size: 1, ETag: "e", Time: time.Now(),
		}))); err != nil {
			t.Fatal(err)
		}
	}
	l.until(t, "all deleted", func(s cloud.QueueState) bool { return s.Sent == count && settled(s) })
	if err := l.stop(); err != nil {
		t.Errorf("run: %v", err)
	}
	if got := slices.Compact(l.keys(t)); !slices.Equal(got, want) {
		t.Errorf("%d keys, want %d", len(got), count)
	}
	ids := map[string]int{}
	for _, m := range l.bus.Messages() {
		ids[m.ID]++
	}
	if len(ids) != count {
		t.Errorf("%d message ids for %d objects: a redelivery must have the same", len(ids), count)
	}
}

// covers: DEV-161, through the real SDK: one that has no permission at first, and
// a queue that is not there.
func TestQueueComesBack(t *testing.T) {
	for _, code := range []string{"AccessDeniedException", "ExpiredToken", "ThrottlingException", "AWS.SimpleQueueService.NonExistentQueue"} {
		t.Run(code, func(t *testing.T) {
			var refuse atomic.Bool
			refuse.Store(true)
			l := runLive(t, nil)
			l.SetFault(func(op, _, _ string) cloud.Fault {
				if op == "ReceiveMessage" && refuse.Load() {
					return cloud.Fault{Status: 400, Code: code}
				}
				return cloud.Fault{}
			})
			// A poll that began before is over once a message has come.
			if _, err := l.Send("logs", string(cloud.TestEvent("logs")), "garbage"); err != nil {
				t.Fatal(err)
			}
			l.until(t, "refused", func(cloud.QueueState) bool {
				err := l.source.Health()
				return err != nil && strings.Contains(err.Error(), callReceive) && !strings.Contains(err.Error(), errNoAnswer.Code)
			})
			refuse.Store(false)
			l.until(t, "all deleted, and well again", func(s cloud.QueueState) bool { return settled(s) && l.source.Health() == nil })
			if len(l.bus.Facts()) != 2 || len(l.bus.Quarantined()) != 1 {
				t.Errorf("%d facts, %d quarantined", len(l.bus.Facts()), len(l.bus.Quarantined()))
			}
		})
	}
}

// The visibility is really extended: while the bus takes nothing, nobody else
// gets the message, and at the end it is given back at once.
func TestHeartbeatAndReturn(t *testing.T) {
	g := newGate(false)
	l := runLive(t, func(c *SQSConfig, d *Deps) {
		bus := &topology.Recorder{}
		c.VisibilityTimeout = 9 * time.Second // a machine that is busy may come late to extend it
		d.Drain = 10 * time.Millisecond
		d.NewOutbox = func() topology.Outbox { return gated{bus, g} }
	})
	if _, err := l.Send("logs", string(cloud.TestEvent("logs"))); err != nil {
		t.Fatal(err)
	}
	l.until(t, "extended past its first timeout", func(cloud.QueueState) bool { return l.Calls("ChangeMessageVisibilityBatch") >= 3 })
	if s := l.Queue("logs"); s.Received != 1 || s.InFlight != 1 {
		t.Errorf("queue %+v, want the message received once and in flight", s)
	}
	if err := l.stop(); err == nil {
		t.Error("run gave a message back without an error")
	}
	if s := l.Queue("logs"); s.Visible != 1 || s.InFlight != 0 {
		t.Errorf("queue %+v, want the message visible", s)
	}
}

// contextOutbox notes the span under which things are published.
type contextOutbox struct {
	*topology.Recorder
	spans *sync.Map
}

func (o contextOutbox) Publish(ctx context.Context, m topology.Message) error {
	o.spans.Store(m.ID, trace.SpanContextFromContext(ctx))
	return o.Recorder.Publish(ctx, m)
}

// One batch is one trace, whose root is the span "ingest".
func TestTrace(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	before := otel.GetTracerProvider()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	otel.SetTracerProvider(provider)
	t.Cleanup(func() { otel.SetTracerProvider(before); _ = provider.Shutdown(context.WithoutCancel(t.Context())) })
	var under sync.Map
	outer := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}, TraceFlags: trace.FlagsSampled})
	l := runWithin(trace.ContextWithSpanContext(t.Context(), outer), t, func(_ *SQSConfig, d *Deps) {
		bus := &topology.Recorder{}
		d.NewOutbox = func() topology.Outbox { return contextOutbox{bus, &under} }
	})
	if _, err := l.Send("logs", s3Event(created("logs", "a"), created("logs", "b"))); err != nil {
		t.Fatal(err)
	}
	l.until(t, "deleted", settled)
	if err := l.stop(); err != nil {
		t.Fatal(err)
	}
	got := spans.GetSpans()
	if len(got) != 1 || got[0].Name != "ingest" || got[0].Parent.IsValid() || got[0].SpanKind != trace.SpanKindConsumer {
		t.Fatalf("spans %+v", got)
	}
	n := 0
	for _, sc := range under.Range {
		if sc.(trace.SpanContext).SpanID() != got[0].SpanContext.SpanID() {
			t.Errorf("published under %v", sc)
		}
		n++
	}
	if n != 2 {
		t.Errorf("%d published, want 2", n)
	}
	attrs := fmt.Sprint(got[0].Attributes)
	for _, want := range []string{"penstock.source", "aws_sqs", "messaging.batch.message_count"} {
		if !strings.Contains(attrs, want) {
			t.Errorf("attributes %s lack %s", attrs, want)
		}
	}
}

// BenchmarkQueue is a backlog of a thousand notices, through HTTP and the real
// SDK, to an outbox that stores at once.
func BenchmarkQueue(b *testing.B) {
	const backlog = 1000
	c, err := cloud.Start(b.Context(), cloud.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	cfg := defaultSQS()
	cfg.Buckets = []string{"logs"}
	cfg.AWS = awsclient.Config{Region: c.Region(), AccessKey: "AKIATEST", SecretKey: config.NewSecret("secret")}
	bodies := make([]string, backlog)
	size := 0
	for i := range bodies {
		bodies[i] = s3Event(created("logs", fmt.Sprintf("AWSLogs/1/CloudTrail/%d.json.gz", i)))
		size += len(bodies[i])
	}
	b.SetBytes(int64(size))
	for n := 0; b.Loop(); n++ {
		// A queue of its own: the poll that the run before broke off could still
		// take messages of this one out of sight.
		name := fmt.Sprintf("logs-%d", n)
		if cfg.QueueURL, err = c.CreateQueue(name, nil); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Send(name, bodies...); err != nil {
			b.Fatal(err)
		}
		bus := &topology.Recorder{}
		src, err := openSQS(b.Context(), cfg, Deps{
			Name: "bench", Choose: chooseAuto, NewOutbox: func() topology.Outbox { return bus },
		})
		if err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- src.Run(ctx) }()
		if err := c.Wait(ctx, func() bool { return settled(c.Queue(name)) }); err != nil {
			b.Fatal(err)
		}
		cancel()
		if err := <-done; err != nil || len(bus.Messages()) != backlog {
			b.Fatalf("%d notices (%v), want %d", len(bus.Messages()), err, backlog)
		}
	}
	b.ReportMetric(float64(b.N)*backlog/b.Elapsed().Seconds(), "messages/s")
}

// recordsIn counts the records of all frames that were stored.
func recordsIn(tb testing.TB, bus *topology.Recorder) (n int) {
	tb.Helper()
	for _, m := range bus.Messages() {
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			tb.Fatal(err)
		}
		n += v.Len()
	}
	return n
}
