package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/dedupe"
	"github.com/penstock/penstock/services/deliver"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/fetch"
	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/tag"
	"github.com/penstock/penstock/services/parse"
	"github.com/penstock/penstock/services/parse/formats"
	"github.com/penstock/penstock/services/route"
	"github.com/penstock/penstock/topology"
)

// testFlow takes the inputs of one test through the stages of a configuration, one
// message after the other, with a list in the place of the bus.
type testFlow struct {
	test *testFile
	file *File
	log  *slog.Logger

	fetch        *fetch.Fetch
	parse        *parse.Parse
	lane         topology.LaneWork
	route        *route.Route
	destinations []*testDestination
	objects      map[string]string // path by bucket and key
	spooled      []string

	mu    sync.Mutex // parse publishes from goroutines of its own
	queue []topology.Message
	next  uint64
	// order is where an event stands among the inputs.
	order map[messages.ID][2]uint64
	pulls map[string]uint64
	got   testOutcome
}

// testOutcome is what came of a test.
type testOutcome struct {
	Events       int                        `json:"events"`
	Duplicates   int                        `json:"duplicates"`
	Dropped      map[string]int             `json:"dropped,omitempty"`
	Quarantined  []testRefusal              `json:"quarantined,omitempty"`
	Destinations map[string]*testDeliveries `json:"destinations,omitempty"`
}

// testRefusal is one thing that went to quarantine.
type testRefusal struct {
	Stage  string `json:"stage"`
	Code   string `json:"code"`
	Reason string `json:"reason"`
	count  int
}

// testDeliveries are what one destination got.
type testDeliveries struct {
	Filtered int             `json:"filtered"`
	Events   []deliveredTest `json:"events"`
	// Unopened is why the events are the documents as the destination sees them, and not
	// as it writes them; "" when they are.
	Unopened string `json:"unopened,omitempty"`
}

// deliveredTest is one event as a destination writes it.
type deliveredTest struct {
	ID   string `json:"id"`
	Type string `json:"type"`
	Body string `json:"body"`

	event condition.Event
}

// testDestination is a destination whose sink keeps what it gets.
type testDestination struct {
	cfg     deliver.Destination
	types   condition.Types
	deliver *deliver.Deliver
	sink    *keepingSink
}

// testBucket is the bucket of objects that the test announces itself.
const testBucket = "penstock-test"

// runTest runs one test.
func runTest(ctx context.Context, t *testFile, file *File, c *testCase) (*testOutcome, error) {
	f := &testFlow{
		test: t, file: file, log: slog.New(slog.DiscardHandler), objects: map[string]string{}, order: map[messages.ID][2]uint64{}, pulls: map[string]uint64{},
		got: testOutcome{Dropped: map[string]int{}, Destinations: map[string]*testDeliveries{}},
	}
	defer f.close()
	if err := f.open(ctx); err != nil {
		return nil, err
	}
	for i, in := range c.Input {
		if err := f.enter(ctx, uint64(i), in); err != nil {
			return nil, fmt.Errorf("%s:%d: input: %w", t.path, c.node.Get("input").Items()[i].Line(), err)
		}
		if err := f.work(ctx); err != nil {
			return nil, err
		}
	}
	for _, d := range f.destinations {
		events := append([]deliveredTest{}, d.sink.kept...)
		slices.SortStableFunc(events, func(a, b deliveredTest) int {
			x, y := f.order[a.event.ID], f.order[b.event.ID]
			return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1]))
		})
		f.got.Destinations[d.cfg.Name].Events = events
		f.got.Destinations[d.cfg.Name].Unopened = d.sink.unopened
	}
	return &f.got, nil
}

// open makes the stages with the constructors that run uses.
func (f *testFlow) open(ctx context.Context) (err error) {
	p := &pipeline{file: *f.file, log: f.log}
	fetched := p.fetchDeps(messages.MaxFrame, f.log)
	for _, s := range f.file.Sources {
		from, known := fetched.Sources[s.Name]
		allows := from.Allows
		if !known {
			from = fetch.Source{Format: s.Format.Type, Choose: s.Format.Choose}
		}
		from.Allows = func(bucket string) bool { return bucket == testBucket || known && allows(bucket) }
		from.S3 = func(context.Context) (fetch.S3, error) { return testObjects{f}, nil }
		from.FollowRegion = false
		fetched.Sources[s.Name] = from
	}
	if f.fetch, err = fetch.New(f.file.Fetch, fetched); err != nil {
		return err
	}
	c := f.file.Parse
	c.Linger, c.ThinLinger, c.Idle = 0, 0, 0 // every frame becomes events by itself, so that they come out in order
	deps := parse.Deps{NewOutbox: func() topology.Outbox { return testOutbox{f, topology.Parse} }, Lanes: 1, Window: 1, Settings: map[string]formats.Setting{}, Tags: map[string]*tag.Config{}}
	for _, s := range f.file.Sources {
		deps.Settings[s.Name], deps.Tags[s.Name] = s.Format, &s.Tag
	}
	if f.parse, err = parse.New(c, deps); err != nil {
		return err
	}
	f.lane = dedupe.New(f.file.Dedupe, f.log).Lane(0, 1)
	if f.route, err = route.New(route.Config{Rules: f.file.Routes}, route.Deps{Log: f.log}); err != nil {
		return err
	}
	for _, cfg := range f.file.Destinations {
		d := &testDestination{cfg: cfg, sink: &keepingSink{pending: map[messages.ID]deliveredTest{}}}
		f.got.Destinations[cfg.Name] = &testDeliveries{}
		if d.types, err = condition.ParseTypes(cfg.Types); err != nil {
			return err
		}
		d.sink.open(ctx, cfg, sinks.Deps{Destination: cfg.Name, Log: f.log, Tags: p.tags()})
		if d.deliver, err = deliver.New(cfg, d.sink, deliver.Deps{Log: f.log, Window: 1}); err != nil {
			return errors.Join(err, d.sink.Close())
		}
		f.destinations = append(f.destinations, d)
	}
	return nil
}

func (f *testFlow) close() {
	if f.parse != nil {
		f.parse.Close()
	}
	if f.lane != nil {
		f.lane.Close()
	}
	for _, d := range f.destinations {
		_ = d.deliver.Close(context.Background()) // nothing is under way
	}
	for _, name := range f.spooled {
		remove(name)
	}
}

// enter puts one input before the stages.
func (f *testFlow) enter(ctx context.Context, number uint64, in testInput) error {
	switch {
	case in.Message != nil:
		for _, o := range in.Objects {
			if err := f.put(o.Bucket, o.Key, o.Body, o.File); err != nil {
				return err
			}
		}
		body, err := f.read(in.Message)
		if err != nil {
			return err
		}
		return f.receive(ctx, number, in.Source, body)
	case in.Record != nil:
		return f.announce(ctx, number, in.Source, fmt.Sprint("record-", number), in.Record.Body, in.Record.File, "")
	}
	return f.announce(ctx, number, in.Source, in.Object.Key, in.Object.Body, in.Object.File, in.Object.Bucket)
}

func (f *testFlow) read(t *testText) (string, error) {
	if t.File == "" {
		return t.Body, nil
	}
	data, err := os.ReadFile(f.test.relative(t.File))
	return string(data), err
}

// put makes an object of a text or of a file.
func (f *testFlow) put(bucket, key, body, file string) error {
	path := f.test.relative(file)
	if file == "" {
		var err error
		if path, err = spool(strings.NewReader(body)); err != nil {
			return err
		}
		f.spooled = append(f.spooled, path)
	}
	if _, err := os.Stat(path); err != nil {
		return err
	}
	f.objects[bucket+"/"+key] = path
	return nil
}

// announce publishes the notice of an object, as ingest would.
func (f *testFlow) announce(ctx context.Context, number uint64, source, key, body, file, bucket string) error {
	bucket = cmp.Or(bucket, testBucket)
	if err := f.put(bucket, key, body, file); err != nil {
		return err
	}
	info, err := os.Stat(f.objects[bucket+"/"+key])
	if err != nil {
		return err
	}
	notice := &messages.Notice{Version: 1, Size: info.Size(), Origin: &messages.Origin{
		Pull: messages.NewPull("test", strconv.FormatUint(number, 10)), Source: source, Bucket: bucket, Key: key, Received: time.Now().UnixNano(), Created: time.Now().UnixNano(),
	}}
	return testOutbox{f, topology.Ingest}.Publish(ctx, topology.Message{Subject: topology.NoticeSubject(source), Data: messages.EncodeNotice(notice)})
}

// receive has the source read a message from its queue.
func (f *testFlow) receive(ctx context.Context, number uint64, name, body string) error {
	i := slices.IndexFunc(f.file.Sources, func(s Source) bool { return s.Name == name })
	s := f.file.Sources[i] // fits has seen to it
	queue := &oneMessage{id: fmt.Sprint("test-", number), body: body, settled: make(chan struct{})}
	source, err := sources.Catalog.Open(ctx, s.Type, s.Options, sources.Deps{
		Name: s.Name, Format: s.Format.Type, Choose: s.Format.Choose, Drain: time.Second, Log: f.log,
		NewOutbox: func() topology.Outbox { return testOutbox{f, topology.Ingest} },
		SQS:       func(context.Context, awsclient.Config) (sources.SQS, error) { return queue, nil },
	})
	if err != nil {
		return err
	}
	const most = 30 * time.Second
	run, stop := context.WithTimeout(ctx, most)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- source.Run(run) }()
	select {
	case <-queue.settled:
		stop()
		err = <-ended
	case err = <-ended:
		if err == nil {
			err = fmt.Errorf("the source has not read the message within %v", most)
		}
	}
	if err == nil && queue.refused {
		return errors.New("the source has given the message back")
	}
	return err
}

// work takes messages through the stages until none is left.
func (f *testFlow) work(ctx context.Context) error {
	for {
		f.mu.Lock()
		if len(f.queue) == 0 {
			f.mu.Unlock()
			return ctx.Err()
		}
		m := f.queue[0]
		f.queue = f.queue[1:]
		f.next++
		sequence := f.next
		f.mu.Unlock()
		if err := f.handle(ctx, m, sequence); err != nil {
			return err
		}
	}
}

// hopeless is the attempt, and the age of a message, after which a stage hopes for
// nothing more: what would come right in time is not waited for in a test.
const (
	hopeless    = 1 << 20
	hopelessAge = 30 * 24 * time.Hour
)

// handle gives one message to the stage that reads its subject.
func (f *testFlow) handle(ctx context.Context, m topology.Message, sequence uint64) error {
	kind, _, _ := strings.Cut(strings.TrimPrefix(m.Subject, "penstock."), ".")
	if kind == "notice" {
		notice, err := messages.DecodeNotice(m.Data)
		if err != nil {
			return err
		}
		in := topology.In[*messages.Notice]{Value: notice, Data: m.Data, Subject: m.Subject, Sequence: sequence, Attempt: hopeless, Stored: time.Now().Add(-hopelessAge)}
		return f.judge(ctx, topology.Fetch, f.fetch.Handle(ctx, in, testOutbox{f, topology.Fetch}))
	}
	view, err := messages.DecodeFrame(m.Data)
	if err != nil {
		return err
	}
	in := topology.In[messages.View]{Value: view, Data: m.Data, Subject: m.Subject, Sequence: sequence, Attempt: 1, Stored: time.Now()}
	switch kind {
	case "record":
		return f.judge(ctx, topology.Parse, f.parse.Handle(ctx, in, testOutbox{f, topology.Parse}))
	case "parsed":
		if err := f.remember(&in.Value); err != nil {
			return err
		}
		return f.lane.Frame(ctx, in, func(ctx context.Context, output, _ []byte) error {
			return testOutbox{f, topology.Dedupe}.Publish(ctx, topology.Message{Subject: topology.UniqueSubject(0), Data: output})
		})
	case "unique":
		for i := range view.Len() {
			if view.Fate(i) == messages.Duplicate {
				f.got.Duplicates++
			} else {
				f.got.Events++
			}
		}
		return f.judge(ctx, topology.Route, f.route.Handle(ctx, in, testOutbox{f, topology.Route}))
	case "event":
		for _, d := range f.destinations {
			if !d.types.Has(view.EventType()) {
				continue
			}
			in := in
			if in.Value, err = messages.DecodeFrame(m.Data); err != nil {
				return err
			}
			if err := f.judge(ctx, topology.Deliver, d.deliver.Handle(ctx, in, testOutbox{f, topology.Deliver})); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("no stage reads %s", m.Subject)
}

// judge does what the bus does with the error of a stage: what will never pass goes to
// quarantine.
func (f *testFlow) judge(ctx context.Context, stage topology.Stage, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return testOutbox{f, stage}.Quarantine(ctx, &messages.Quarantine{Code: fault.CodeOf(err), Reason: err.Error()})
}

// remember notes where the events of a frame stand among the inputs.
func (f *testFlow) remember(v *messages.View) error {
	var c messages.Columns
	if err := v.Columns(&c); err != nil {
		return err
	}
	origins, err := v.Origins()
	if err != nil {
		return err
	}
	for i := range v.Len() {
		if _, known := f.order[v.ID(i)]; known {
			continue
		}
		pull := string(origins[c.OriginOf[i]].GetPull())
		if _, known := f.pulls[pull]; !known {
			f.pulls[pull] = uint64(len(f.pulls))
		}
		f.order[v.ID(i)] = [2]uint64{f.pulls[pull], c.Records[i]}
	}
	return nil
}

// testOutbox is the outbox of a stage.
type testOutbox struct {
	*testFlow
	stage topology.Stage
}

// Publish implements topology.Outbox. The message is only lent.
func (o testOutbox) Publish(ctx context.Context, m topology.Message) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	m.Data = bytes.Clone(m.Data)
	o.queue = append(o.queue, m)
	return ctx.Err()
}

// Quarantine implements topology.Outbox.
func (o testOutbox) Quarantine(_ context.Context, q *messages.Quarantine) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.got.Quarantined = append(o.got.Quarantined, testRefusal{Stage: string(o.stage), Code: q.GetCode(), Reason: q.GetReason(), count: int(max(1, q.GetRecords()))})
	return nil
}

// Fact implements topology.Outbox.
func (o testOutbox) Fact(fact *messages.Fact) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range fact.GetRouted().GetPulls() {
		for rule, n := range p.GetDropped() {
			o.got.Dropped[rule] += int(n)
		}
	}
	if d := fact.GetDelivered(); d != nil {
		for _, p := range d.GetPulls() {
			o.got.Destinations[d.GetDestination()].Filtered += int(p.GetFiltered())
		}
	}
}

// Flush implements topology.Outbox.
func (o testOutbox) Flush(context.Context) error { return nil }

// testObjects are the buckets.
type testObjects struct{ *testFlow }

// GetObject implements fetch.S3.
func (o testObjects) GetObject(ctx context.Context, in *s3.GetObjectInput, region string) (*s3.GetObjectOutput, error) {
	path, ok := o.objects[aws.ToString(in.Bucket)+"/"+aws.ToString(in.Key)]
	if !ok {
		return nil, &s3types.NoSuchKey{Message: aws.String("the test has no object of that bucket and key")}
	}
	return fileObject{path}.GetObject(ctx, in, region)
}

// oneMessage is a queue with one message.
type oneMessage struct {
	id, body string
	settled  chan struct{} // closed when the message is deleted or given back
	refused  bool

	mu    sync.Mutex
	given bool
	once  sync.Once
}

// ReceiveMessage implements sources.SQS.
func (q *oneMessage) ReceiveMessage(ctx context.Context, in *sqs.ReceiveMessageInput, _ ...func(*sqs.Options)) (*sqs.ReceiveMessageOutput, error) {
	q.mu.Lock()
	given := q.given
	q.given = true
	q.mu.Unlock()
	if !given {
		sent := strconv.FormatInt(time.Now().UnixMilli(), 10)
		return &sqs.ReceiveMessageOutput{Messages: []types.Message{{
			MessageId: &q.id, ReceiptHandle: &q.id, Body: &q.body,
			Attributes: map[string]string{"SentTimestamp": sent, "ApproximateReceiveCount": "1"},
		}}}, nil
	}
	select {
	case <-q.settled:
	case <-time.After(time.Duration(in.WaitTimeSeconds) * time.Second):
	case <-ctx.Done():
	}
	return &sqs.ReceiveMessageOutput{}, nil
}

// DeleteMessageBatch implements sources.SQS.
func (q *oneMessage) DeleteMessageBatch(_ context.Context, in *sqs.DeleteMessageBatchInput, _ ...func(*sqs.Options)) (*sqs.DeleteMessageBatchOutput, error) {
	out := &sqs.DeleteMessageBatchOutput{}
	for _, e := range in.Entries {
		out.Successful = append(out.Successful, types.DeleteMessageBatchResultEntry{Id: e.Id})
	}
	q.once.Do(func() { close(q.settled) })
	return out, nil
}

// ChangeMessageVisibilityBatch implements sources.SQS. The message stays hidden while
// it is in work; to show it again is to give it back.
func (q *oneMessage) ChangeMessageVisibilityBatch(_ context.Context, in *sqs.ChangeMessageVisibilityBatchInput, _ ...func(*sqs.Options)) (*sqs.ChangeMessageVisibilityBatchOutput, error) {
	out := &sqs.ChangeMessageVisibilityBatchOutput{}
	for _, e := range in.Entries {
		out.Successful = append(out.Successful, types.ChangeMessageVisibilityBatchResultEntry{Id: e.Id})
		if e.VisibilityTimeout == 0 {
			q.once.Do(func() {
				q.refused = true
				close(q.settled)
			})
		}
	}
	return out, nil
}

// keepingSink writes events as a sink does, and keeps them instead of handing them
// over.
type keepingSink struct {
	real     sinks.Sink // nil when it could not be opened
	unopened string

	mu      sync.Mutex
	pending map[messages.ID]deliveredTest
	kept    []deliveredTest
}

// open opens the sink that writes. Opening one connects to nothing; a kind that needs a
// bus for it cannot be had here, and its events are kept as their documents.
func (k *keepingSink) open(ctx context.Context, cfg deliver.Destination, deps sinks.Deps) {
	sink, err := sinks.Catalog.Open(ctx, cfg.Type, cfg.Options, deps)
	if err != nil {
		k.unopened = err.Error()
		return
	}
	k.real = sink
}

// Limits implements sinks.Sink. A batch is not waited for.
func (k *keepingSink) Limits() sinks.Limits {
	if k.real == nil {
		return sinks.Limits{Events: 1000, Bytes: 1 << 20}
	}
	l := k.real.Limits()
	l.Age = 0
	return l
}

// Append implements sinks.Sink.
func (k *keepingSink) Append(dst []byte, e *sinks.Event) []byte {
	from := len(dst)
	if k.real != nil {
		dst = k.real.Append(dst, e)
	} else {
		dst = append(append(dst, e.Doc...), '\n')
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pending[e.ID] = deliveredTest{
		ID: e.ID.String(), Type: e.Type, Body: string(dst[from:]),
		event: condition.Event{ID: e.ID, Type: e.Type, Source: e.Source, Account: e.Account, Region: e.Region, Time: e.Time, Doc: bytes.Clone(e.Doc)},
	}
	return dst
}

// Deliver implements sinks.Sink.
func (k *keepingSink) Deliver(_ context.Context, b sinks.Batch) sinks.Result {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range b.Len() {
		k.kept = append(k.kept, k.pending[b.ID(i)])
		delete(k.pending, b.ID(i))
	}
	return sinks.Result{}
}

// Close implements sinks.Sink.
func (k *keepingSink) Close() error {
	if k.real == nil {
		return nil
	}
	return k.real.Close()
}
