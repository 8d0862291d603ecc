package sources

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("sqs", "Reads an SQS queue: S3 notifications in any envelope, or events in the message bodies.",
		defaultSQS, openSQS)
}

var (
	errSQS = fault.Define("ingest.sqs_refused", fault.Retry,
		"grant sqs:ReceiveMessage, sqs:DeleteMessage and sqs:ChangeMessageVisibility on the queue, and check its URL, region and account")
	errNoAnswer = fault.Define("ingest.no_answer_yet", fault.Retry,
		"wait for the first answer of the queue; if none comes, check the network and the endpoint")
	errBusy = fault.Define("ingest.bus_refused", fault.Retry,
		"look at the bus: penstock topology show; nothing is lost, the messages stay in the queue")
	errDrain = fault.Define("ingest.drain_expired", fault.Retry,
		"allow a longer drain; nothing is lost, the messages were given back to the queue")
	errHeld = fault.Define("ingest.held_too_long", fault.Retry,
		"find out what keeps the bus from storing: a destination that is down, or a full disk; the messages were given back to the queue")
)

// SQSConfig configures the sqs source.
type SQSConfig struct {
	// QueueURL of the queue. Region and account come from it when it is one of
	// AWS. Any other host is also where calls go, unless aws.endpoint_url says
	// otherwise. Required.
	QueueURL string `yaml:"queue_url"`
	// Region of the queue. Empty: aws.region, else as the URL tells.
	Region string `yaml:"region"`
	// Body says what the messages hold. notifications: S3 notifications, direct,
	// through SNS or EventBridge. events: the events themselves. auto:
	// notifications by their shape, and other bodies are events when the source
	// names its format.
	Body Body `yaml:"body"`
	// Buckets whose notifications are followed: names, or patterns with * and ?.
	// Anybody may be able to send to the queue, so the list has to be written
	// even if it is "*". Required unless the messages hold events.
	Buckets []string `yaml:"buckets"`
	// Keys are patterns with * (any run of characters, slashes included) and ?;
	// objects whose key matches none are ignored and counted. Empty takes all.
	Keys []string `yaml:"keys"`
	// SkipKeys are patterns of keys to ignore, also where Keys takes them.
	SkipKeys []string `yaml:"skip_keys"`
	// Receivers that each replica keeps waiting at the queue. Range: 1 to
	// max_receivers.
	Receivers int `yaml:"receivers"`
	// MaxReceivers is how many there may be while batches come full. Range: up to 64.
	MaxReceivers int `yaml:"max_receivers"`
	// VisibilityTimeout hides a message from other readers; it is extended when
	// half of it has passed, until the message is stored. Range: 2s to 11h.
	VisibilityTimeout time.Duration `yaml:"visibility_timeout"`
	// MaxHold is when a message that could not be stored is given back to the
	// queue. SQS itself allows 12 hours from receive on. Range: up to 11h.
	MaxHold time.Duration `yaml:"max_hold"`
	// WaitTime of a receive call for messages to come. Range: 1s to 20s.
	WaitTime time.Duration `yaml:"wait_time"`
	// MaxInFlightBytes bounds the bodies in hand. A receiver first reserves room
	// for the largest batch, so a small bound makes small batches. Unit: bytes,
	// at least 1 MiB.
	MaxInFlightBytes config.Bytes `yaml:"max_in_flight_bytes"`
	// MaxReceives is how often a message on which penstock itself fails is
	// received before it is quarantined. Others are never judged by this count.
	// Unit: receives, at least 1.
	MaxReceives int `yaml:"max_receives"`
	// AWS is the access to the queue.
	AWS awsclient.Config `yaml:"aws"`
	// BucketAWS is the access to the buckets. Left out, it is the same as aws.
	BucketAWS awsclient.Config `yaml:"bucket_aws"`
}

func defaultSQS() SQSConfig {
	return SQSConfig{
		Body: BodyAuto, Receivers: 2, MaxReceivers: 8, VisibilityTimeout: 2 * time.Minute, MaxHold: 11 * time.Hour,
		WaitTime: 20 * time.Second, MaxInFlightBytes: 128 * config.MiB, MaxReceives: 5,
	}
}

// Validate reports every problem, each with the key to change.
func (c SQSConfig) Validate() error {
	var p config.Problems
	u, err := url.Parse(c.QueueURL)
	p.Need(err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && len(u.Path) > 1,
		"queue_url", "use the URL of the queue, e.g. https://sqs.eu-west-1.amazonaws.com/123456789012/logs")
	p.Need(c.Body == BodyAuto || c.Body == BodyNotifications || c.Body == BodyEvents, "body", "use auto, notifications or events")
	if c.Body == BodyNotifications {
		p.Need(len(c.Buckets) > 0, "buckets",
			`name the buckets whose objects may be fetched, e.g. [my-logs, "my-logs-*"]; "*" takes every bucket that the credentials can read`)
		p.Need(!strings.HasSuffix(c.QueueURL, ".fifo"), "queue_url",
			"use a standard queue: S3 notifies no FIFO queue; if EventBridge sends the notifications, use body: auto")
	}
	for i, pattern := range c.Buckets {
		bare := strings.NewReplacer("*", "", "?", "").Replace(pattern)
		p.Need(pattern != "" && bucketName("aaa"+bare), "buckets["+strconv.Itoa(i)+"]",
			"use a bucket's name or a pattern of it, without s3://, arn: or a key")
	}
	for i, pattern := range c.Keys {
		p.Need(pattern != "", "keys["+strconv.Itoa(i)+"]", "write a pattern, or leave the entry out")
	}
	for i, pattern := range c.SkipKeys {
		p.Need(pattern != "", "skip_keys["+strconv.Itoa(i)+"]", "write a pattern, or leave the entry out")
	}
	p.Need(c.MaxReceivers >= 1 && c.MaxReceivers <= 64, "max_receivers", "use 1 to 64 receivers")
	p.Need(c.Receivers >= 1 && c.Receivers <= c.MaxReceivers, "receivers", "use 1 or more receivers, at most max_receivers")
	p.Need(c.VisibilityTimeout >= 2*time.Second && c.VisibilityTimeout <= 11*time.Hour, "visibility_timeout", "use 2s to 11h, e.g. 120s")
	p.Need(c.MaxHold >= c.VisibilityTimeout && c.MaxHold <= 11*time.Hour, "max_hold", "use 11h or less, and no less than visibility_timeout")
	p.Need(c.WaitTime >= time.Second && c.WaitTime <= 20*time.Second, "wait_time", "use 1s to 20s")
	p.Need(c.MaxInFlightBytes >= maxBody, "max_in_flight_bytes", "use 1 MiB or more: a message can be as large as that")
	p.Need(c.MaxReceives >= 1, "max_receives", "use 1 or more receives")
	return p.Err()
}

// ObjectAWS implements [ObjectReader]. Without a region of its own it has that of
// the queue, where S3 wants the two together.
func (c SQSConfig) ObjectAWS() awsclient.Config {
	bucket := c.BucketAWS
	if bucket == (awsclient.Config{}) {
		bucket = c.AWS // not queueAt: the host of a queue's URL is no endpoint of S3
	}
	if bucket.Region == "" {
		bucket.Region = queueAt(c).Region
	}
	return bucket
}

// Allows implements [ObjectReader].
func (c SQSConfig) Allows(bucket string) bool { return patterns(c.Buckets).match(bucket) }

// SQS is what the sqs source calls. [*sqs.Client] is one.
type SQS interface {
	ReceiveMessage(context.Context, *sqs.ReceiveMessageInput, ...func(*sqs.Options)) (*sqs.ReceiveMessageOutput, error)
	DeleteMessageBatch(context.Context, *sqs.DeleteMessageBatchInput, ...func(*sqs.Options)) (*sqs.DeleteMessageBatchOutput, error)
	ChangeMessageVisibilityBatch(context.Context, *sqs.ChangeMessageVisibilityBatchInput, ...func(*sqs.Options)) (*sqs.ChangeMessageVisibilityBatchOutput, error)
}

// The calls, as an IAM policy names them.
const (
	callReceive = "sqs:ReceiveMessage"
	callDelete  = "sqs:DeleteMessage"
	callChange  = "sqs:ChangeMessageVisibility"
)

const (
	// batchMax is the most messages that one call takes or gives.
	batchMax = 10
	// callTimeout bounds a call beside the time it is asked to wait.
	callTimeout = 20 * time.Second
	// settleTimeout bounds deleting and giving back, which go on during shutdown.
	settleTimeout = 10 * time.Second
	// recentMax is how many stored messages are remembered. About 2 MiB.
	recentMax = 16 << 10
)

// sqsSource reads one queue:
//
//	receive ≤ 10 ─▶ admit each ─▶ publish, quarantine, facts ─▶ flush ─▶ delete
//	  └──────────── visibility extended all the while ──────────────────┘
//
// Nothing is deleted before flush has returned nil. While the bus takes nothing,
// publish or flush blocks: the receiver holds its batch and receives no more.
type sqsSource struct {
	cfg    SQSConfig
	deps   Deps
	client SQS
	log    *slog.Logger
	tracer trace.Tracer
	budget *semaphore.Weighted
	recent *recent
	health *health

	mu        sync.Mutex
	receivers int
	undrained bool // a drain ran out of time
	tested    bool // a test event was logged
}

func openSQS(ctx context.Context, cfg SQSConfig, deps Deps) (Source, error) {
	at := queueAt(cfg)
	if deps.SQS == nil {
		deps.SQS = func(ctx context.Context, c awsclient.Config) (SQS, error) { return awsclient.SQS(ctx, c) }
	}
	client, err := deps.SQS(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", deps.Name, err)
	}
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	if deps.Drain <= 0 {
		deps.Drain = 20 * time.Second
	}
	log := deps.Log.With("source", deps.Name)
	return &sqsSource{
		cfg: cfg, deps: deps, client: client, log: log,
		tracer: otel.Tracer("github.com/penstock/penstock/services/ingest/sources"),
		budget: semaphore.NewWeighted(int64(cfg.MaxInFlightBytes)),
		recent: newRecent(recentMax), health: newHealth(deps.Name, cfg.QueueURL, log),
	}, nil
}

// queueAt completes the access to the queue by what its URL tells. Calls do not
// go to the URL's host by themselves: the SDK goes by region and endpoint.
func queueAt(cfg SQSConfig) awsclient.Config {
	c := cfg.AWS
	u, err := url.Parse(cfg.QueueURL)
	if err != nil {
		return c // Validate has reported it
	}
	region := awsclient.QueueRegion(cfg.QueueURL)
	if c.EndpointURL == "" && (region == "" || strings.HasPrefix(u.Host, "sqs-fips.")) {
		c.EndpointURL = u.Scheme + "://" + u.Host
	}
	if region == "" {
		region = privateRegion(u.Hostname())
	}
	switch {
	case cfg.Region != "":
		c.Region = cfg.Region
	case c.Region == "":
		c.Region = region
	}
	return c
}

// privateRegion tells the region from the host of an interface endpoint,
// <id>.sqs.<region>.vpce.amazonaws.com; "" for another host. Source: Amazon SQS
// Developer Guide, internetwork traffic privacy.
func privateRegion(host string) string {
	front, private := strings.CutSuffix(strings.TrimSuffix(host, ".cn"), ".vpce.amazonaws.com")
	_, region, sqs := strings.Cut(front, ".sqs.")
	if !private || !sqs {
		return ""
	}
	return region
}

// Name implements [Source].
func (s *sqsSource) Name() string { return s.deps.Name }

// Health implements [Source].
func (s *sqsSource) Health() error { return s.health.err() }

// Run implements [Source].
func (s *sqsSource) Run(ctx context.Context) error {
	work, end := outlive(ctx, s.deps.Drain, errDrain.New(nil, "finish the messages in hand of source %s", s.deps.Name))
	defer end()
	var wg sync.WaitGroup
	var spawn func()
	spawn = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.receivers >= s.cfg.MaxReceivers {
			return
		}
		s.receivers++
		mReceivers.WithLabelValues(s.deps.Name).Inc()
		r := s.receiver(s.receivers > s.cfg.Receivers, spawn)
		wg.Go(func() {
			defer func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.receivers--
				mReceivers.WithLabelValues(s.deps.Name).Dec()
			}()
			r.run(ctx, work)
		})
	}
	for range s.cfg.Receivers {
		spawn()
	}
	wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.undrained {
		s.undrained = false
		return context.Cause(work)
	}
	return nil
}

// receiver takes batch after batch, one at a time.
type receiver struct {
	s     *sqsSource
	admit *admission
	// most is how many messages it may ask for.
	most int
	// wait of the next receive call.
	wait time.Duration
	// spare ones end when there is nothing to receive; spawn adds one.
	spare bool
	spawn func()
}

func (s *sqsSource) receiver(spare bool, spawn func()) *receiver {
	return &receiver{
		s: s, spare: spare, spawn: spawn, most: min(batchMax, int(s.cfg.MaxInFlightBytes/maxBody)),
		admit: &admission{
			source: s.deps.Name, format: s.deps.Format, body: s.cfg.Body,
			buckets: s.cfg.Buckets, keys: s.cfg.Keys, skipKeys: s.cfg.SkipKeys, choose: s.deps.Choose,
			frame: messages.NewBuilder(messages.Header{}), split: framing.New(framing.Framing{}, nil, framing.Limits{}),
		},
	}
}

// run goes on until ctx ends; work outlives ctx by the drain.
func (r *receiver) run(ctx, work context.Context) {
	var refused, unstored backoff
	for ctx.Err() == nil {
		began := time.Now()
		got, err := r.cycle(ctx, work)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, errSQS):
			pause(ctx, refused.next())
			r.wait = 0
			continue
		case err != nil:
			pause(ctx, unstored.next())
		case got == r.most:
			unstored = backoff{}
			r.spawn()
		case got > 0:
			unstored = backoff{}
		case r.spare:
			return
		case r.wait > 0:
			// An endpoint that does not wait must not be asked all the time.
			pause(ctx, time.Second-time.Since(began))
		}
		refused = backoff{}
		// Only the first call, also after an outage, does not wait for messages, so
		// that it is soon known whether the queue can be read.
		r.wait = r.s.cfg.WaitTime
	}
}

// cycle receives one batch and settles it. The error is ingest.sqs_refused when
// nothing could be received, else the messages are back in the queue.
func (r *receiver) cycle(ctx, work context.Context) (got int, err error) {
	s := r.s
	room := int64(r.most) * maxBody
	if err := s.budget.Acquire(ctx, room); err != nil {
		return 0, err
	}
	defer func() { s.budget.Release(room) }()
	defer func() {
		if p := recover(); p != nil {
			err = errPanic.New(nil, "receive messages: %s", panicText(p))
			s.log.ErrorContext(work, "a receiver failed; its messages will come again", "err", err, "stack", string(debug.Stack()))
		}
	}()
	// A call that ends with ctx may leave messages hidden that SQS handed out at
	// that moment; they come again when their visibility timeout has passed.
	posts, err := s.next(ctx, r.most, r.wait)
	if err != nil {
		if ctx.Err() == nil {
			s.health.failed(ctx, callReceive, err)
		}
		return 0, errSQS.New(err, "receive messages from %s", s.cfg.QueueURL)
	}
	s.health.worked(ctx, callReceive)
	if len(posts) == 0 {
		return 0, nil
	}
	size := int64(0)
	for _, p := range posts {
		size += int64(len(p.body))
	}
	if size < room {
		s.budget.Release(room - size)
		room = size
	}
	return len(posts), s.settle(work, r.admit, posts, size)
}

// post is one received message.
type post struct {
	letter
	handle string
	// failed: penstock itself failed on it.
	failed bool
}

// next receives up to n messages.
func (s *sqsSource) next(ctx context.Context, n int, wait time.Duration) ([]*post, error) {
	ctx, cancel := context.WithTimeout(ctx, wait+callTimeout)
	defer cancel()
	began := time.Now()
	out, err := s.client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl: &s.cfg.QueueURL, MaxNumberOfMessages: int32(n), WaitTimeSeconds: seconds(wait),
		VisibilityTimeout: seconds(s.cfg.VisibilityTimeout),
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{
			types.MessageSystemAttributeNameSentTimestamp, types.MessageSystemAttributeNameApproximateReceiveCount,
		},
	}, func(o *sqs.Options) { o.RetryMaxAttempts = 1 }) // run is the retry
	if err != nil || len(out.Messages) == 0 {
		return nil, err
	}
	now := time.Now()
	mReceiveTime.WithLabelValues(s.deps.Name).Observe(now.Sub(began).Seconds())
	mReceived.WithLabelValues(s.deps.Name).Add(float64(len(out.Messages)))
	posts := make([]*post, len(out.Messages))
	for i := range out.Messages {
		m := &out.Messages[i]
		p := &post{handle: aws.ToString(m.ReceiptHandle), letter: letter{
			queue: s.cfg.QueueURL, id: aws.ToString(m.MessageId), body: aws.ToString(m.Body),
			sent:     unixMilli(m.Attributes[string(types.MessageSystemAttributeNameSentTimestamp)]),
			received: now.UnixNano(),
		}}
		// A count that is no number is taken for the first receive.
		p.receives, _ = strconv.Atoi(m.Attributes[string(types.MessageSystemAttributeNameApproximateReceiveCount)])
		if p.sent > 0 {
			mAge.WithLabelValues(s.deps.Name).Observe(max(0, now.Sub(time.Unix(0, p.sent)).Seconds()))
		}
		posts[i] = p
	}
	return posts, nil
}

// settle stores a batch and deletes it. When it cannot be stored, it is given
// back and the reason returned.
func (s *sqsSource) settle(work context.Context, a *admission, posts []*post, size int64) error {
	mInFlight.WithLabelValues(s.deps.Name).Add(float64(len(posts)))
	mInFlightBytes.WithLabelValues(s.deps.Name).Add(float64(size))
	defer func() {
		mInFlight.WithLabelValues(s.deps.Name).Sub(float64(len(posts)))
		mInFlightBytes.WithLabelValues(s.deps.Name).Sub(float64(size))
	}()
	// The root of the trace that everything in this batch becomes part of.
	ctx, span := s.tracer.Start(work, "ingest", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(
			attribute.String("penstock.source", s.deps.Name),
			attribute.String("messaging.system", "aws_sqs"),
			attribute.String("messaging.destination.name", s.cfg.QueueURL[strings.LastIndexByte(s.cfg.QueueURL, '/')+1:]),
			attribute.Int("messaging.batch.message_count", len(posts)),
		))
	defer span.End()
	h, held := s.hold(ctx, posts)
	defer h.end()
	err := s.store(held, a, posts)
	if err == nil {
		h.remove(ctx)
		h.end()
		// What failed alone waits longer each time.
		h.giveBack(ctx, func(p *post) (time.Duration, bool) {
			return min(time.Second<<min(max(p.receives, 0), 10), 15*time.Minute), p.failed
		})
		return nil
	}
	wait := 5 * time.Second // not at once, lest they go round and round
	if held.Err() != nil {
		err, wait = context.Cause(held), 0
	}
	span.SetStatus(codes.Error, fault.CodeOf(err))
	h.end()
	s.log.WarnContext(ctx, "messages were not stored and are given back", "messages", len(posts), "err", err)
	h.giveBack(ctx, func(*post) (time.Duration, bool) { return wait, true })
	if work.Err() != nil {
		s.mu.Lock()
		s.undrained = true
		s.mu.Unlock()
	}
	return err
}

// store publishes what the messages result in. It returns nil once all is
// durable, except for messages marked as failed.
func (s *sqsSource) store(ctx context.Context, a *admission, posts []*post) error {
	out := s.deps.NewOutbox()
	var sent []outcome
	for _, p := range posts {
		if s.recent.has(p.id) {
			mRedelivered.WithLabelValues(s.deps.Name).Inc()
			continue // only its deletion was lost
		}
		outcomes := s.judge(ctx, a, p)
		for i := range outcomes {
			if err := outcomes[i].send(ctx, out); err != nil {
				return errBusy.New(err, "store message %s", p.id)
			}
		}
		sent = append(sent, outcomes...)
	}
	if err := out.Flush(ctx); err != nil {
		return errBusy.New(err, "store %d messages", len(posts))
	}
	for _, p := range posts {
		if !p.failed {
			s.recent.add(p.id)
		}
	}
	s.count(ctx, sent)
	return nil
}

// judge admits one message. One on which the program itself fails is marked, and
// quarantined when that has happened too often: others must not wait for it.
func (s *sqsSource) judge(ctx context.Context, a *admission, p *post) (outcomes []outcome) {
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		err := errPanic.New(nil, "read message %s: %s", p.id, panicText(r))
		s.log.ErrorContext(ctx, "a message makes penstock fail", "message_id", p.id, "receives", p.receives,
			"err", err, "stack", string(debug.Stack()))
		if p.receives < s.cfg.MaxReceives {
			p.failed, outcomes = true, nil
			return
		}
		o := a.outcome(&p.letter, 0, func() []byte { return []byte(p.body) })
		o.refuse(errFails.New(err, "read message %s, received %d times", p.id, p.receives))
		outcomes = []outcome{o}
	}()
	return a.admit(&p.letter)
}

// panicText says what was recovered. Errors of the run-time hold no payload;
// other values might.
func panicText(r any) string {
	if err, ok := r.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("a panic of type %T", r)
}

// count adds what was stored to the metrics.
func (s *sqsSource) count(ctx context.Context, outcomes []outcome) {
	for i := range outcomes {
		o := &outcomes[i]
		mAnnounced.WithLabelValues(s.deps.Name, strings.ToLower(strings.TrimPrefix(o.as.String(), "AS_"))).Inc()
		if o.as == messages.Announced_AS_IGNORED {
			mIgnored.WithLabelValues(s.deps.Name, o.code).Inc()
		}
		if o.as == messages.Announced_AS_TEST {
			s.mu.Lock()
			first := !s.tested
			s.tested = true
			s.mu.Unlock()
			if first {
				s.log.InfoContext(ctx, "the queue is wired: a test event came", "bucket", o.origin.GetBucket())
			}
		}
	}
}

// backoff doubles a pause from half a second to a minute, with jitter.
type backoff struct{ n int }

func (b *backoff) next() time.Duration {
	d := min(500*time.Millisecond<<min(b.n, 7), time.Minute)
	b.n++
	return d/2 + rand.N(d/2+1) //nolint:gosec // jitter needs no secret
}

// seconds rounds up, as SQS counts in whole seconds.
func seconds(d time.Duration) int32 { return int32((d + time.Second - 1) / time.Second) }
