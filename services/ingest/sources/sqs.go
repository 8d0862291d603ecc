package sources

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net/url"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

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
	// WaitTime of a receive call for messages to come. Stopping takes as long, at
	// most: SQS may hand out messages to a call that is broken off, and then they
	// would be hidden until their visibility timeout has passed. Range: 1s to 20s.
	WaitTime time.Duration `yaml:"wait_time"`
	// Linger is how long events wait for those of other messages to share a frame
	// with, while message after message comes. Range: 0s to 1s.
	Linger time.Duration `yaml:"linger"`
	// MaxInFlightBytes bounds the bodies in hand. A receiver first reserves room
	// for the largest batch that is likely, so a small bound makes small batches.
	// Unit: bytes, at least 1 MiB.
	MaxInFlightBytes config.Bytes `yaml:"max_in_flight_bytes"`
	// MaxInFlight bounds the messages in hand; SQS itself allows 120000 for a
	// queue. Unit: messages, at least 10.
	MaxInFlight int `yaml:"max_in_flight"`
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
		Body: BodyAuto, Receivers: 1, MaxReceivers: 16, VisibilityTimeout: 2 * time.Minute, MaxHold: 11 * time.Hour,
		WaitTime: 5 * time.Second, Linger: 50 * time.Millisecond, MaxInFlightBytes: 128 * config.MiB, MaxInFlight: 10_000,
		MaxReceives: 5,
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
	p.Need(c.Linger >= 0 && c.Linger <= time.Second, "linger", "use 0s to 1s, e.g. 50ms")
	p.Need(c.MaxInFlight >= batchMax && c.MaxInFlight <= 120_000, "max_in_flight", "use 10 to 120000 messages")
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

// Whole implements [ObjectReader].
func (c SQSConfig) Whole() (bucket, prefix string) {
	if len(c.Buckets) == 1 && !strings.ContainsAny(c.Buckets[0], "*?") {
		return c.Buckets[0], ""
	}
	return "", ""
}

// Takes implements [ObjectReader].
func (c SQSConfig) Takes(key string) bool { return takes(c.Keys, c.SkipKeys, key) }

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
	// recentMax is how many stored messages are remembered. About 8 MiB.
	recentMax = 64 << 10
)

// sqsSource reads one queue:
//
//	receive ≤ 10 ─▶ admit each ─┬▶ events ─▶ a frame of many messages ─▶ flush ─┬▶ delete
//	  │                         └▶ notices, quarantine, large bodies ─▶ flush ──┤
//	  └──────────────────── visibility extended all the while ──────────────────┘
//
// Nothing is deleted before flush has returned nil. While the bus takes nothing,
// flush blocks: what is in hand fills its room, and nothing more is received.
type sqsSource struct {
	cfg    SQSConfig
	deps   Deps
	client SQS
	log    *slog.Logger
	tracer trace.Tracer
	room   *room
	keeper *keeper
	packer *packer
	recent *recent
	health *health
	m      counters
	// account and region of the queue, as far as its URL tells.
	account, region string
	fifo            bool

	mu        sync.Mutex
	receivers int
	undrained bool // a drain ran out of time
	tested    bool // a test event was logged
	// unstored is why and until when nothing is received: the bus has refused what
	// came last.
	unstored backoff
	resume   time.Time
}

// counters are the metrics that every message touches.
type counters struct {
	received, deleted, redelivered, events prometheus.Counter
	inFlight, inFlightBytes                prometheus.Gauge
	receiveTime, age                       prometheus.Observer
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
	s := &sqsSource{
		cfg: cfg, deps: deps, client: client, log: log,
		tracer: otel.Tracer("github.com/penstock/penstock/services/ingest/sources"),
		room:   newRoom(int64(cfg.MaxInFlightBytes), cfg.MaxInFlight),
		recent: newRecent(recentMax), health: newHealth(deps.Name, cfg.QueueURL, log),
		account: queueAccount(cfg.QueueURL), region: at.Region, fifo: strings.HasSuffix(cfg.QueueURL, ".fifo"),
		m: counters{
			received: mReceived.WithLabelValues(deps.Name), deleted: mDeleted.WithLabelValues(deps.Name),
			redelivered: mRedelivered.WithLabelValues(deps.Name), events: mAnnounced.WithLabelValues(deps.Name, "events"),
			inFlight: mInFlight.WithLabelValues(deps.Name), inFlightBytes: mInFlightBytes.WithLabelValues(deps.Name),
			receiveTime: mReceiveTime.WithLabelValues(deps.Name), age: mAge.WithLabelValues(deps.Name),
		},
	}
	s.keeper, s.packer = newKeeper(s), newPacker(s)
	return s, nil
}

// queueAccount returns the account in a queue's URL, "" where there is none.
func queueAccount(queueURL string) string {
	u, err := url.Parse(queueURL)
	if err != nil {
		return ""
	}
	account, _, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if len(account) != 12 || strings.Trim(account, "0123456789") != "" {
		return ""
	}
	return account
}

// queueAt completes the access to the queue by what its URL tells.
func queueAt(cfg SQSConfig) awsclient.Config {
	c := cfg.AWS.ForQueue(cfg.QueueURL)
	if cfg.Region != "" {
		c.Region = cfg.Region
	}
	return c
}

// Name implements [Source].
func (s *sqsSource) Name() string { return s.deps.Name }

// Health implements [Source].
func (s *sqsSource) Health() error { return s.health.err() }

// Run implements [Source].
func (s *sqsSource) Run(ctx context.Context) error {
	work, end := outlive(ctx, s.deps.Drain, errDrain.New(nil, "finish the messages in hand of source %s", s.deps.Name))
	defer end()
	keep, release := context.WithCancel(work)
	kept := make(chan struct{})
	go func() { defer close(kept); s.keeper.run(keep) }()
	defer func() { release(); <-kept }()
	var wg sync.WaitGroup
	var spawn func()
	spawn = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.receivers >= s.cfg.MaxReceivers || ctx.Err() != nil {
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
	s.packer.drain(work)
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
	// busy counts the calls in a row that brought many messages.
	busy int
	// attempt names a receive call of a FIFO queue: repeated after an error, SQS
	// answers as it did before, instead of hiding the messages of the lost answer.
	attempt string
	// spare ones end when there is nothing to receive; spawn adds one.
	spare bool
	spawn func()
}

func (s *sqsSource) receiver(spare bool, spawn func()) *receiver {
	return &receiver{
		s: s, spare: spare, spawn: spawn, most: min(batchMax, int(s.cfg.MaxInFlightBytes/maxBody)), admit: s.admission(),
	}
}

func (s *sqsSource) admission() *admission {
	return &admission{
		source: s.deps.Name, format: s.deps.Format, body: s.cfg.Body, account: s.account, region: s.region,
		buckets: s.cfg.Buckets, keys: s.cfg.Keys, skipKeys: s.cfg.SkipKeys, choose: s.deps.Choose,
		frame: messages.NewBuilder(messages.Header{}), split: framing.New(framing.Framing{}, nil, framing.Limits{}),
	}
}

// run goes on until ctx ends; work outlives ctx by the drain.
func (r *receiver) run(ctx, work context.Context) {
	var refused backoff
	for ctx.Err() == nil {
		if wait := r.s.heldOff(); wait > 0 {
			pause(ctx, wait)
			continue
		}
		began := time.Now()
		got, err := r.cycle(ctx, work)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, errSQS):
			pause(ctx, refused.next())
			r.wait = 0
			continue
		case err != nil: // heldOff tells for how long
		case r.isBusy(got):
			r.spawn()
		case got > 0:
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

// isBusy tells whether one more receiver may be of use: SQS does not fill every
// batch even of a queue with many messages.
func (r *receiver) isBusy(got int) bool {
	if 2*got < r.most {
		r.busy = 0
		return false
	}
	r.busy++
	return got == r.most || r.busy >= 3
}

// cycle receives one batch and sees to it: what it announces is stored and settled
// when cycle returns, the events in it are on their way. The error is
// ingest.sqs_refused when nothing could be received.
func (r *receiver) cycle(ctx, work context.Context) (got int, err error) {
	s := r.s
	room, err := s.room.reserve(ctx, r.most)
	if err != nil {
		return 0, err
	}
	var posts []*post
	defer func() {
		if p := recover(); p != nil {
			err = s.failed(work, p, slices.DeleteFunc(posts, func(p *post) bool { return p.packed }))
		}
	}()
	// Not ctx: a call that is broken off may leave messages hidden.
	posts, err = s.next(work, r)
	s.room.exchange(room, r.most, posts)
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
	s.keeper.take(posts, time.Unix(0, posts[0].received))
	got = len(posts)
	own, outcomes := r.sort(work, posts)
	if len(own) > 0 {
		err = s.settle(work, own, func(ctx context.Context) error { return s.store(ctx, own, outcomes) })
	}
	return got, err
}

// failed says that penstock itself failed on posts, which will come again.
func (s *sqsSource) failed(ctx context.Context, p any, posts []*post) error {
	err := errPanic.New(nil, "receive messages: %s", panicText(p))
	s.log.ErrorContext(ctx, "a receiver failed; its messages will come again", "err", err, "stack", string(debug.Stack()))
	if len(posts) > 0 {
		s.keeper.done(posts)
	}
	return err
}

// sort hands events to the packer. It returns the other posts and what is to be
// stored of them.
func (r *receiver) sort(work context.Context, posts []*post) (own []*post, outcomes []outcome) {
	s := r.s
	own = make([]*post, 0, len(posts))
	packed := false
	var failed map[string]bool // groups
	for _, p := range posts {
		if failed[p.group] {
			p.failed = true // lest it overtake
			own = append(own, p)
			continue
		}
		if s.recent.has(p.id) { // only its deletion was lost
			s.m.redelivered.Inc()
			own = append(own, p)
			continue
		}
		c, some := s.judge(work, r.admit, p)
		switch {
		case p.failed && p.group != "":
			if failed == nil {
				failed = map[string]bool{}
			}
			failed[p.group] = true
		case p.failed:
		case p.again != "" && s.recent.has(p.again): // SNS has sent it twice
			s.m.redelivered.Inc()
		case c != nil:
			s.packer.add(work, p, c)
			packed = true
			continue
		default:
			outcomes = append(outcomes, some...)
		}
		own = append(own, p)
	}
	if packed {
		s.packer.received(work, len(posts) == r.most)
	}
	return own, outcomes
}

// next receives up to r.most messages.
func (s *sqsSource) next(ctx context.Context, r *receiver) ([]*post, error) {
	ctx, cancel := context.WithTimeout(ctx, r.wait+callTimeout)
	defer cancel()
	began := time.Now()
	in := sqs.ReceiveMessageInput{
		QueueUrl: &s.cfg.QueueURL, MaxNumberOfMessages: int32(r.most), WaitTimeSeconds: seconds(r.wait),
		VisibilityTimeout: seconds(s.cfg.VisibilityTimeout), MessageSystemAttributeNames: wanted[:2],
	}
	if s.fifo {
		in.MessageSystemAttributeNames = wanted
		if r.attempt == "" {
			r.attempt = rand.Text()
		}
		in.ReceiveRequestAttemptId = &r.attempt
	}
	out, err := s.client.ReceiveMessage(ctx, &in, receiveOptions)
	if err != nil {
		return nil, err
	}
	r.attempt = ""
	if len(out.Messages) == 0 {
		return nil, nil
	}
	now := time.Now()
	s.m.receiveTime.Observe(now.Sub(began).Seconds())
	s.m.received.Add(float64(len(out.Messages)))
	all, posts := make([]post, len(out.Messages)), make([]*post, len(out.Messages))
	for i := range out.Messages {
		m, p := &out.Messages[i], &all[i]
		*p = post{handle: aws.ToString(m.ReceiptHandle), letter: letter{
			queue: s.cfg.QueueURL, id: aws.ToString(m.MessageId), body: aws.ToString(m.Body),
			sent:     unixMilli(m.Attributes[string(types.MessageSystemAttributeNameSentTimestamp)]),
			received: now.UnixNano(),
		}}
		p.size = int64(len(p.body))
		// A count that is no number is taken for the first receive.
		p.receives, _ = strconv.Atoi(m.Attributes[string(types.MessageSystemAttributeNameApproximateReceiveCount)])
		p.group = m.Attributes[string(types.MessageSystemAttributeNameMessageGroupId)]
		if p.sent > 0 {
			s.m.age.Observe(max(0, now.Sub(time.Unix(0, p.sent)).Seconds()))
		}
		posts[i] = p
	}
	return posts, nil
}

// receiveOptions: run is the retry; and the MD5 of each body would find only what the
// connection has let pass.
func receiveOptions(o *sqs.Options) {
	o.RetryMaxAttempts, o.DisableMessageChecksumValidation = 1, true
}

// wanted are the attributes to ask for; the last one of FIFO queues only.
var wanted = []types.MessageSystemAttributeName{
	types.MessageSystemAttributeNameSentTimestamp, types.MessageSystemAttributeNameApproximateReceiveCount,
	types.MessageSystemAttributeNameMessageGroupId,
}

// settle has posts stored and deletes them. When they cannot be stored, they are
// given back and the reason returned.
func (s *sqsSource) settle(work context.Context, posts []*post, store func(ctx context.Context) error) error {
	// The root of the trace that everything in this batch becomes part of.
	ctx, span := s.tracer.Start(work, "ingest", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(
			attribute.String("penstock.source", s.deps.Name),
			attribute.String("messaging.system", "aws_sqs"),
			attribute.String("messaging.destination.name", s.cfg.QueueURL[strings.LastIndexByte(s.cfg.QueueURL, '/')+1:]),
			attribute.Int("messaging.batch.message_count", len(posts)),
		))
	defer span.End()
	held, cancel := context.WithDeadlineCause(ctx, posts[0].lot.until,
		errHeld.New(nil, "store %d messages of source %s within %s", len(posts), s.deps.Name, s.cfg.MaxHold))
	defer cancel()
	err := store(held)
	if err == nil {
		s.storedAgain()
		stored, failed := apart(posts)
		s.keeper.remove(ctx, stored)
		// What failed alone waits longer each time.
		s.keeper.giveBack(ctx, failed, func(p *post) time.Duration {
			return min(time.Second<<min(max(p.receives, 0), 10), 15*time.Minute)
		})
		return nil
	}
	wait := 5 * time.Second // not at once, lest they go round and round
	if held.Err() != nil {
		err, wait = context.Cause(held), 0
	}
	span.SetStatus(codes.Error, fault.CodeOf(err))
	s.log.WarnContext(ctx, "messages were not stored and are given back", "messages", len(posts), "err", err)
	s.notStored()
	s.keeper.giveBack(ctx, posts, func(*post) time.Duration { return wait })
	if work.Err() != nil {
		s.mu.Lock()
		s.undrained = true
		s.mu.Unlock()
	}
	return err
}

// apart divides posts into those that were stored and those that failed.
func apart(posts []*post) (stored, failed []*post) {
	for i, p := range posts {
		if p.failed {
			stored, failed = slices.Clone(posts[:i]), []*post{p}
			for _, p := range posts[i+1:] {
				if p.failed {
					failed = append(failed, p)
				} else {
					stored = append(stored, p)
				}
			}
			return stored, failed
		}
	}
	return posts, nil
}

// heldOff tells for how long to receive nothing.
func (s *sqsSource) heldOff() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resume.IsZero() {
		return 0
	}
	return time.Until(s.resume)
}

// notStored and storedAgain note whether the bus takes what is received.
func (s *sqsSource) notStored() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.resume.Before(now) { // once for all that fails together
		s.resume = now.Add(s.unstored.next())
	}
}

func (s *sqsSource) storedAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unstored, s.resume = backoff{}, time.Time{}
}

// store publishes what the messages result in. It returns nil once all is durable.
func (s *sqsSource) store(ctx context.Context, posts []*post, outcomes []outcome) error {
	out := s.deps.NewOutbox()
	for i := range outcomes {
		if err := outcomes[i].send(ctx, out); err != nil {
			return errBusy.New(err, "store message %s", outcomes[i].origin.GetMessageId())
		}
	}
	if err := out.Flush(ctx); err != nil {
		return errBusy.New(err, "store %d messages", len(posts))
	}
	for _, p := range posts {
		if !p.failed {
			s.remember(p)
		}
	}
	s.count(ctx, outcomes)
	return nil
}

// remember notes that p is stored.
func (s *sqsSource) remember(p *post) {
	s.recent.add(p.id)
	if p.again != "" {
		s.recent.add(p.again)
	}
}

// judge admits one message. One on which the program itself fails is marked, and
// quarantined when that has happened too often: others must not wait for it.
//
// The events of one that may share a frame are returned as cargo, instead.
func (s *sqsSource) judge(ctx context.Context, a *admission, p *post) (c *cargo, outcomes []outcome) {
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		err := errPanic.New(nil, "read message %s: %s", p.id, panicText(r))
		s.log.ErrorContext(ctx, "a message makes penstock fail", "message_id", p.id, "receives", p.receives,
			"err", err, "stack", string(debug.Stack()))
		if p.receives < s.cfg.MaxReceives {
			p.failed, c, outcomes = true, nil, nil
			return
		}
		o := a.outcome(&p.letter, 0, func() []byte { return []byte(p.body) })
		o.refuse(errFails.New(err, "read message %s, received %d times", p.id, p.receives))
		c, outcomes = nil, []outcome{o}
	}()
	if c := a.quick(&p.letter); c != nil {
		return c, nil
	}
	outcomes = a.admit(&p.letter)
	if len(outcomes) == 1 && outcomes[0].cargo != nil {
		return outcomes[0].cargo, nil
	}
	return nil, outcomes
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

// firstBackoff is shorter in tests, which wait for it in real time.
var firstBackoff = 500 * time.Millisecond

// backoff doubles a pause from half a second to a minute, with jitter.
type backoff struct{ n int }

func (b *backoff) next() time.Duration {
	d := min(firstBackoff<<min(b.n, 7), time.Minute)
	b.n++
	return d/2 + mathrand.N(d/2+1) //nolint:gosec // jitter needs no secret
}

// seconds rounds up, as SQS counts in whole seconds.
func seconds(d time.Duration) int32 { return int32((d + time.Second - 1) / time.Second) }
