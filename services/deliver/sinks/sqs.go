package sinks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
)

func init() {
	define("sqs", "Sends each event as a message to an SQS queue, standard or FIFO.", defaultSQS, openSQS)
}

var (
	errSQSFailed = fault.Define("deliver.sqs_failed", fault.Retry,
		"see what the queue answers; what was not sent is kept and tried again")
	errSQSDenied = fault.Define("deliver.sqs_denied", fault.Stop,
		"grant sqs:SendMessage on the queue, and kms:GenerateDataKey and kms:Decrypt on its key; or correct queue_url and region")
	errSQSRejected = fault.Define("deliver.sqs_rejected", fault.Reject,
		"see why the queue refuses this message, then redrive it")
	errSQSTooLarge = fault.Define("deliver.sqs_too_large", fault.Reject,
		"set oversize to s3; or raise max_message_bytes, if the queue takes more; then redrive")
)

var (
	sqsReplaced = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_sqs_replaced_characters_total", Help: "Characters that SQS does not take and that went out as U+FFFD.",
	}, []string{"destination"})
	sqsOversize = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_sqs_oversize_total", Help: "Events that are too large for a message, by what became of them: reject, s3.",
	}, []string{"destination", "how"})
)

// SQSFormat is the body of a message.
type SQSFormat string

// The formats. Source: formats F-29.
const (
	// SQSEvent: the document with penstock's id, event_type, time, source, account and
	// region.
	SQSEvent SQSFormat = "event"
	// SQSRow: the bare document, as Censornet's log streaming sends rows.
	SQSRow SQSFormat = "row"
	// SQSVoiso: the bare document, which is Voiso's envelope, and the attribute
	// format_version.
	SQSVoiso SQSFormat = "voiso"
)

// Values implements [config.Enum].
func (SQSFormat) Values() []string {
	return []string{string(SQSEvent), string(SQSRow), string(SQSVoiso)}
}

// Oversize says what becomes of events that are too large for a message.
type Oversize string

// What becomes of them.
const (
	// OversizeReject: they go to quarantine.
	OversizeReject Oversize = "reject"
	// OversizeS3: they are stored in S3, and the message says where.
	OversizeS3 Oversize = "s3"
)

// Values implements [config.Enum].
func (Oversize) Values() []string { return []string{string(OversizeReject), string(OversizeS3)} }

// SQSConfig configures the sqs sink.
type SQSConfig struct {
	// QueueURL of the queue. Region and account come from it when it is one of AWS. Any other host is also where calls go, unless aws.endpoint_url says otherwise. Required.
	QueueURL string `yaml:"queue_url"`
	// Format of a body: event (the document with penstock's id, event_type, time, source, account and region), row (the bare document) or voiso (as row, with the attribute format_version).
	Format SQSFormat `yaml:"format"`
	// Batch bounds what is sent at once, by calls of up to 10 messages.
	Batch Limits `yaml:"batch"`
	// Calls that one batch makes at the same time; a FIFO queue is called once at a time. Range: 1 to 64.
	Calls int `yaml:"calls"`
	// MaxMessageBytes caps a message with its attributes, and all messages of one call. SQS takes 1 MiB today, and used to take 256 KiB. Unit: bytes.
	MaxMessageBytes config.Bytes `yaml:"max_message_bytes"`
	// GroupID of messages to a FIFO queue, whose order is kept; {type}, {source}, {format}, {account} and {region} are filled in.
	GroupID string `yaml:"group_id"`
	// Oversize says what becomes of events that are larger: reject puts them into quarantine, s3 stores them in overflow_bucket and sends where they are.
	Oversize Oversize `yaml:"oversize"`
	// OverflowBucket takes what is too large.
	OverflowBucket string `yaml:"overflow_bucket"`
	// OverflowPrefix that the keys in it begin with. A slash is put behind it.
	OverflowPrefix string `yaml:"overflow_prefix"`
	// Timeout bounds one call, repeats included. Unit: duration.
	Timeout time.Duration `yaml:"timeout"`
	// AWS is the access to the queue.
	AWS awsclient.Config `yaml:"aws"`
	// OverflowAWS is the access to overflow_bucket. Left out, it is the same as aws.
	OverflowAWS awsclient.Config `yaml:"overflow_aws"`
}

func defaultSQS() SQSConfig {
	return SQSConfig{
		Format: SQSEvent, Batch: Limits{Events: 1000, Bytes: config.MiB, Age: time.Second}, Calls: 16,
		MaxMessageBytes: 256 * config.KiB, GroupID: "{source}", Oversize: OversizeReject, OverflowPrefix: "penstock-overflow", Timeout: 20 * time.Second,
	}
}

// groupPlaceholders are those of group_id.
var groupPlaceholders = eventPlaceholders

// Validate reports every problem, each with the key to change.
func (c SQSConfig) Validate() error {
	var p config.Problems
	u, err := url.Parse(c.QueueURL)
	p.Need(err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "" && len(u.Path) > 1 && u.User == nil,
		"queue_url", "use the URL of the queue, e.g. https://sqs.eu-west-1.amazonaws.com/123456789012/events")
	p.In("batch", c.Batch.Validate())
	p.Need(c.Calls >= 1 && c.Calls <= 64, "calls", "use 1 to 64 calls, e.g. 16")
	p.Need(c.MaxMessageBytes >= config.KiB && c.MaxMessageBytes <= config.MiB, "max_message_bytes", "use 1 KiB to 1 MiB, e.g. 256 KiB")
	if _, err := parsePattern(c.GroupID, groupPlaceholders...); err != nil || c.GroupID == "" {
		why := "it is empty"
		if err != nil {
			why = err.Error()
		}
		p.Add("group_id", why, "use e.g. {source}")
	}
	p.Need(c.Oversize != OversizeS3 || goodBucket(c.OverflowBucket), "overflow_bucket", "set the name of a bucket, without s3://, arn: or a key")
	p.Need(c.Oversize == OversizeS3 || c.OverflowBucket == "", "overflow_bucket", "set oversize to s3, or remove it")
	p.Need(len(c.OverflowPrefix) <= 512 && !strings.HasPrefix(c.OverflowPrefix, "/"), "overflow_prefix", "use up to 512 bytes, without a slash at the beginning")
	p.Need(c.Timeout >= time.Second/10 && c.Timeout <= 10*time.Minute, "timeout", "use 100ms to 10m, e.g. 20s")
	return p.Err()
}

func (c SQSConfig) fifo() bool { return strings.HasSuffix(c.QueueURL, ".fifo") }

// overflowAt is the access to the bucket: without a region of its own that of the queue.
func (c SQSConfig) overflowAt() awsclient.Config {
	at := c.OverflowAWS
	if at == (awsclient.Config{}) {
		at = c.AWS // the host of a queue's URL is no endpoint of S3
	}
	if at.Region == "" {
		at.Region = c.AWS.ForQueue(c.QueueURL).Region
	}
	return at
}

// perCall is the most messages of one call. Source: Amazon SQS API Reference,
// SendMessageBatch.
const perCall = 10

// sqsSink sends each event as one message. An event is confirmed when SQS has said that
// it has stored the message. It keeps nothing: memory is that of the batches in hand, and
// again as much for the messages of the calls that are made.
//
// To a standard queue events go in any order, and an event whose answer was lost goes
// twice: the attribute penstock_id tells. A FIFO queue drops what comes again within
// five minutes, by the id of the event, and keeps the order of a group: when one of its
// events was not taken, those behind it are not sent before it, but for those of the
// same call. That is the order of the log only with concurrency 1 and one process; with
// more, batches overtake each other.
type sqsSink struct {
	cfg    SQSConfig
	name   string
	client *sqs.Client
	bucket *s3.Client // nil without overflow
	group  pattern
}

func openSQS(ctx context.Context, cfg SQSConfig, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	client, err := awsclient.SQS(ctx, cfg.AWS.ForQueue(cfg.QueueURL))
	if err != nil {
		return nil, err
	}
	s := &sqsSink{cfg: cfg, name: deps.Destination, client: sqs.New(client.Options(), func(o *sqs.Options) { o.Retryer = aws.NopRetryer{} })}
	if s.group, err = parsePattern(cfg.GroupID, groupPlaceholders...); err != nil {
		return nil, errSQSDenied.New(err, "open destination %s", deps.Destination) // not reached: validated
	}
	if cfg.Oversize == OversizeS3 {
		bucket, err := awsclient.S3(ctx, cfg.overflowAt())
		if err != nil {
			return nil, err
		}
		s.bucket = s3.New(bucket.Options(), func(o *s3.Options) { o.Retryer = aws.NopRetryer{} })
	}
	return s, nil
}

func (s *sqsSink) Limits() Limits { return s.cfg.Batch }

func (s *sqsSink) Close() error { return nil }

// Append writes the attributes and the group, each with its length, and then the body.
func (s *sqsSink) Append(dst []byte, e *Event) []byte {
	replaced := 0
	for _, text := range []string{e.Type, e.Source} {
		legal, n := appendLegal(nil, []byte(text))
		dst, replaced = appendLong(dst, string(legal)), replaced+n
	}
	group := ""
	if s.cfg.fifo() {
		group = groupID(s.group, e)
	}
	dst = appendLong(dst, group)
	from := len(dst)
	if dst = s.appendBody(dst, e); !isLegal(dst[from:]) {
		legal, n := appendLegal(nil, dst[from:])
		dst, replaced = append(dst[:from], legal...), replaced+n
	}
	if replaced > 0 {
		sqsReplaced.WithLabelValues(s.name).Add(float64(replaced))
	}
	return dst
}

func (s *sqsSink) appendBody(dst []byte, e *Event) []byte {
	if s.cfg.Format != SQSEvent {
		return appendDoc(dst, e.Doc)
	}
	return appendEnvelope(dst, e, `","event_type":`)
}

// groupID is the group of e: up to 128 letters, digits and punctuation of ASCII. Source:
// Amazon SQS API Reference, SendMessageBatchRequestEntry.
func groupID(p pattern, e *Event) string {
	out := p.append(nil, e, time.Time{}, func(dst []byte, value string) []byte {
		if value == "" {
			value = "unknown"
		}
		return append(dst, value...)
	})
	out = out[:min(len(out), 128)]
	for i, c := range out {
		if c <= ' ' || c > '~' {
			out[i] = '_'
		}
	}
	return string(out)
}

// isLegal tells whether SQS takes all characters of valid UTF-8: #x9, #xA, #xD, #x20 to
// #xD7FF, #xE000 to #xFFFD and #x10000 to #x10FFFF. Source: Amazon SQS API Reference,
// SendMessageBatch.
func isLegal(text []byte) bool {
	for i, c := range text {
		if c < ' ' && c != '\t' && c != '\n' && c != '\r' || c == 0xEF && i+2 < len(text) && text[i+1] == 0xBF && text[i+2] >= 0xBE {
			return false
		}
	}
	return true
}

// appendLegal appends text with U+FFFD for each character that SQS does not take, and
// tells how many those were.
func appendLegal(dst, text []byte) ([]byte, int) {
	n := 0
	for _, r := range string(text) {
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0xFFFE || r == 0xFFFF {
			r = utf8.RuneError
			n++
		}
		dst = utf8.AppendRune(dst, r)
	}
	return dst, n
}

// sqsMessage is one message to send.
type sqsMessage struct {
	at                  int // place in the batch
	id                  messages.ID
	kind, source, group string
	body                string
}

// attributes of a message, none of which may be empty.
func (s *sqsSink) attributes(m *sqsMessage) map[string]types.MessageAttributeValue {
	all := make(map[string]types.MessageAttributeValue, 4)
	s.eachAttribute(m, func(name, value string) {
		all[name] = types.MessageAttributeValue{DataType: aws.String(attributeType), StringValue: &value}
	})
	return all
}

const attributeType = "String"

func (s *sqsSink) eachAttribute(m *sqsMessage, f func(name, value string)) {
	f("penstock_id", m.id.String())
	if m.kind != "" {
		f("event_type", m.kind)
	}
	if m.source != "" {
		f("source", m.source)
	}
	if s.cfg.Format == SQSVoiso {
		f("format_version", "1")
	}
}

// size is what counts against the limit: the body, and name, type and value of each
// attribute. Source: Amazon SQS Developer Guide, message attributes.
func (s *sqsSink) size(m *sqsMessage) int {
	n := len(m.body)
	s.eachAttribute(m, func(name, value string) { n += len(name) + len(attributeType) + len(value) })
	return n
}

// sqsRun is one call of Deliver.
type sqsRun struct {
	s      *sqsSink
	replay string
	mu     sync.Mutex
	each   []*Result
	// broken is set when a call has failed as a whole: no more are made.
	broken *Result
	// behind holds the groups of which an event was not taken.
	behind map[string]*Result
}

// Deliver sends b by calls of up to 10 messages.
func (s *sqsSink) Deliver(ctx context.Context, b Batch) Result {
	if ctx.Err() != nil {
		return s.judge(context.Cause(ctx))
	}
	run := &sqsRun{s: s, replay: b.Replay(), each: make([]*Result, b.Len()), behind: map[string]*Result{}}
	room := make(chan struct{}, s.cfg.Calls)
	if s.cfg.fifo() {
		room = make(chan struct{}, 1)
	}
	var calls sync.WaitGroup
	var call []sqsMessage
	size := 0
	send := func() {
		if len(call) == 0 {
			return
		}
		now := call
		call, size = nil, 0
		room <- struct{}{}
		calls.Go(func() {
			defer func() { <-room }()
			run.send(ctx, now)
		})
	}
	for i := range b.Len() {
		m := readSQS(b, i)
		n := s.size(&m)
		if n > int(s.cfg.MaxMessageBytes) {
			if !run.overflow(ctx, &m) {
				continue
			}
			n = s.size(&m)
		}
		if len(call) == perCall || size+n > int(s.cfg.MaxMessageBytes) {
			send()
		}
		call, size = append(call, m), size+n
	}
	send()
	calls.Wait()
	return combined(run.each)
}

// readSQS reads what Append wrote.
func readSQS(b Batch, i int) sqsMessage {
	kind, rest := cutLong(b.Event(i))
	source, rest := cutLong(rest)
	group, body := cutLong(rest)
	return sqsMessage{at: i, id: b.ID(i), kind: string(kind), source: string(source), group: string(group), body: string(body)}
}

// set notes the result on one event.
func (r *sqsRun) set(m *sqsMessage, res Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.each[m.at] = &res
	if res.Verdict != Done && res.Verdict != Reject {
		r.behind[m.group] = &res
	}
}

// held returns the messages that may be sent. The others wait for one before them, or
// for the queue.
func (r *sqsRun) held(call []sqsMessage) []sqsMessage {
	r.mu.Lock()
	defer r.mu.Unlock()
	rest := call[:0]
	for _, m := range call {
		switch before := r.behind[m.group]; {
		case r.broken != nil:
			r.each[m.at] = r.broken
		case before != nil && r.s.cfg.fifo():
			r.each[m.at] = before
		default:
			rest = append(rest, m)
		}
	}
	return rest
}

// once is what the queue knows a repetition of the message by.
func (r *sqsRun) once(m *sqsMessage) string {
	if r.replay != "" {
		return m.id.String() + "-" + r.replay
	}
	return m.id.String()
}

// send makes one call.
func (r *sqsRun) send(ctx context.Context, call []sqsMessage) {
	if call = r.held(call); len(call) == 0 {
		return
	}
	s := r.s
	in := &sqs.SendMessageBatchInput{QueueUrl: &s.cfg.QueueURL}
	for i := range call {
		m := &call[i]
		entry := types.SendMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), MessageBody: &m.body, MessageAttributes: s.attributes(m)}
		if s.cfg.fifo() {
			entry.MessageGroupId, entry.MessageDeduplicationId = &m.group, aws.String(r.once(m))
		}
		in.Entries = append(in.Entries, entry)
	}
	var out *sqs.SendMessageBatchOutput
	err := callAWS(ctx, s.cfg.Timeout, func(ctx context.Context) (err error) {
		out, err = s.client.SendMessageBatch(ctx, in)
		return err
	})
	switch {
	case err == nil:
		r.read(call, out)
	case aboutContent(awsCode(err)) && len(call) > 1: // of one of them, perhaps
		half := len(call) / 2
		r.send(ctx, call[:half:half])
		r.send(ctx, call[half:])
	default:
		res := s.judge(err)
		for i := range call {
			r.set(&call[i], res)
		}
		if res.Verdict != Reject {
			r.mu.Lock()
			r.broken = &res
			r.mu.Unlock()
		}
	}
}

// read takes the answer apart. What it does not name is sent again.
func (r *sqsRun) read(call []sqsMessage, out *sqs.SendMessageBatchOutput) {
	answered := make([]bool, len(call))
	at := func(id *string) (int, bool) {
		i, err := strconv.Atoi(aws.ToString(id))
		return i, err == nil && i >= 0 && i < len(call)
	}
	for i := range out.Successful {
		if n, ok := at(out.Successful[i].Id); ok {
			answered[n] = true
		}
	}
	for i := range out.Failed {
		f := &out.Failed[i]
		n, ok := at(f.Id)
		if !ok {
			continue
		}
		answered[n] = true
		r.set(&call[n], r.s.refused(f))
	}
	for i := range call {
		if !answered[i] {
			r.set(&call[i], Result{Verdict: Retry, Err: errSQSFailed.New(nil, "send to the queue of destination %s: the answer leaves a message out", r.s.name)})
		}
	}
}

// awsCode is the code of an error that a service gave.
func awsCode(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		code := api.ErrorCode()
		return code[strings.LastIndexByte(code, '.')+1:]
	}
	return ""
}

// aboutContent tells whether an error speaks of what is in the messages.
func aboutContent(code string) bool {
	return code == "InvalidMessageContents" || code == "BatchRequestTooLong"
}

// judge makes the result of a call that failed.
func (s *sqsSink) judge(err error) Result {
	const doing = "send to the queue of destination %s"
	code := awsCode(err)
	known := awsclient.Explain(err)
	switch {
	case code == "BatchRequestTooLong":
		return Result{Verdict: Reject, Err: errSQSTooLarge.New(known, doing, s.name)}
	case aboutContent(code):
		return Result{Verdict: Reject, Err: errSQSRejected.New(known, doing, s.name)}
	case fault.ClassOf(known) == fault.Retry:
		return Result{Verdict: Retry, Err: errSQSFailed.New(known, doing, s.name), After: askedFor(err)}
	}
	return Result{Verdict: Stop, Err: errSQSDenied.New(known, doing, s.name)}
}

// refused judges one message that was not taken. What speaks of the caller or the queue,
// and not of the message, is no reason to give the message up.
func (s *sqsSink) refused(f *types.BatchResultErrorEntry) Result {
	api := &smithy.GenericAPIError{Code: aws.ToString(f.Code), Message: aws.ToString(f.Message)}
	if known := awsclient.Explain(api); f.SenderFault && errors.Is(known, awsclient.Failed) { // a code that nobody knows
		return Result{Verdict: Reject, Err: errSQSRejected.New(known, "send to the queue of destination %s", s.name)}
	}
	return s.judge(api)
}

// overflow makes the message of an event that is too large: it is stored, and the
// message says where. It reports false when there is nothing to send.
func (r *sqsRun) overflow(ctx context.Context, m *sqsMessage) bool {
	s := r.s
	sqsOversize.WithLabelValues(s.name, string(s.cfg.Oversize)).Inc()
	if s.bucket == nil {
		r.set(m, Result{Verdict: Reject, Err: errSQSTooLarge.New(nil, "send %d bytes to the queue of destination %s, which takes %d", s.size(m), s.name, s.cfg.MaxMessageBytes)})
		return false
	}
	if one := r.held([]sqsMessage{*m}); len(one) == 0 {
		return false
	}
	key := m.id.String() + ".json"
	if s.cfg.OverflowPrefix != "" {
		key = strings.TrimSuffix(s.cfg.OverflowPrefix, "/") + "/" + key
	}
	sum := sha256.Sum256([]byte(m.body))
	size := int64(len(m.body))
	err := callAWS(ctx, s.cfg.Timeout, func(ctx context.Context) error {
		_, err := s.bucket.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &s.cfg.OverflowBucket, Key: &key, Body: bytes.NewReader([]byte(m.body)), ContentLength: &size, ContentType: aws.String("application/json"),
		})
		return err
	})
	if err != nil {
		known := awsclient.Explain(err)
		res := Result{Verdict: Stop, Err: errSQSDenied.New(known, "store what is too large for the queue of destination %s", s.name)}
		if fault.ClassOf(known) == fault.Retry {
			res = Result{Verdict: Retry, Err: errSQSFailed.New(known, "store what is too large for the queue of destination %s", s.name), After: askedFor(err)}
		}
		r.set(m, res)
		return false
	}
	pointer, _ := json.Marshal(map[string]any{"penstock_overflow": sqsOverflow{s.cfg.OverflowBucket, key, hex.EncodeToString(sum[:]), size}}) // text and a number
	m.body = string(pointer)
	return true
}

// sqsOverflow says where the body of a message is. Source: formats F-29.
type sqsOverflow struct {
	Bucket string `json:"bucket"`
	Key    string `json:"key"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}
