package sources

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/topology"
)

func TestMain(m *testing.M) {
	firstBackoff /= 10
	goleak.VerifyTestMain(m)
}

// fakeQueue is a small standard queue in memory. It goes by time.Now, so that in
// a synctest bubble hours pass at once.
type fakeQueue struct {
	mu      sync.Mutex
	waiting []*fakeMessage
	changed chan struct{}
	calls   []string
	// fail, if set, judges every call before it is done.
	fail func(call string) error
	// keep, if set, picks messages whose deletion fails, once each time it is true.
	keep func(id string) bool
	// stale has deletions refused because of their receipts.
	stale bool
	wait  []int32 // WaitTimeSeconds of each receive call
	// uuids has messages sent get ids as SQS gives them; sent counts those.
	uuids bool
	sent  int
	sizes []int // entries of each delete call
}

type fakeMessage struct {
	id, body, handle string
	group            string
	sent, visible    time.Time
	receives         int
}

func newFakeQueue(bodies ...string) *fakeQueue {
	q := &fakeQueue{changed: make(chan struct{})}
	q.send(bodies...)
	return q
}

func (q *fakeQueue) send(bodies ...string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, b := range bodies {
		id := fmt.Sprintf("m-%d", len(q.waiting))
		if q.uuids {
			id = uuidOf(q.sent)
			q.sent++
		}
		q.waiting = append(q.waiting, &fakeMessage{id: id, body: b, sent: time.Now()})
	}
	close(q.changed)
	q.changed = make(chan struct{})
}

// uuidOf is the id of the i-th message.
func uuidOf(i int) string {
	return messages.UUID(messages.NewPull("message", strconv.Itoa(i))).String()
}

// newEventQueue is a queue as SQS makes them, with ids that are UUIDs.
func newEventQueue(bodies ...string) *fakeQueue {
	q := newFakeQueue()
	q.uuids = true
	q.send(bodies...)
	return q
}

// left returns the messages that are not deleted, visible those among them that
// can be received now.
func (q *fakeQueue) left() (all, visible int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.waiting {
		if !m.visible.After(time.Now()) {
			visible++
		}
	}
	return len(q.waiting), visible
}

func (q *fakeQueue) count(call string) (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, c := range q.calls {
		if c == call {
			n++
		}
	}
	return n
}

func (q *fakeQueue) called(ctx context.Context, call string) error {
	q.mu.Lock()
	q.calls = append(q.calls, call)
	fail := q.fail
	q.mu.Unlock()
	if fail != nil {
		if err := fail(call); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (q *fakeQueue) ReceiveMessage(ctx context.Context, in *sqs.ReceiveMessageInput, _ ...func(*sqs.Options)) (*sqs.ReceiveMessageOutput, error) {
	if err := q.called(ctx, "receive"); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(time.Duration(in.WaitTimeSeconds) * time.Second)
	for {
		now := time.Now()
		next := deadline
		out := &sqs.ReceiveMessageOutput{}
		q.mu.Lock()
		if len(q.wait) < 10 {
			q.wait = append(q.wait, in.WaitTimeSeconds)
		}
		for _, m := range q.waiting {
			if m.visible.After(now) {
				if m.visible.Before(next) {
					next = m.visible
				}
				continue
			}
			if len(out.Messages) == int(in.MaxNumberOfMessages) {
				break
			}
			m.receives++
			m.handle = m.id + "/" + strconv.Itoa(m.receives)
			m.visible = now.Add(time.Duration(in.VisibilityTimeout) * time.Second)
			out.Messages = append(out.Messages, types.Message{
				MessageId: &m.id, ReceiptHandle: aws.String(m.handle), Body: &m.body,
				Attributes: map[string]string{
					"SentTimestamp":           strconv.FormatInt(m.sent.UnixMilli(), 10),
					"ApproximateReceiveCount": strconv.Itoa(m.receives),
					"MessageGroupId":          m.group,
				},
			})
		}
		changed := q.changed
		q.mu.Unlock()
		if len(out.Messages) > 0 || !now.Before(deadline) {
			return out, nil
		}
		t := time.NewTimer(next.Sub(now))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		case <-changed:
		case <-t.C:
		}
		t.Stop()
	}
}

func (q *fakeQueue) find(handle *string) int {
	return slices.IndexFunc(q.waiting, func(m *fakeMessage) bool {
		return strings.HasPrefix(aws.ToString(handle), m.id+"/")
	})
}

func (q *fakeQueue) DeleteMessageBatch(ctx context.Context, in *sqs.DeleteMessageBatchInput, _ ...func(*sqs.Options)) (*sqs.DeleteMessageBatchOutput, error) {
	if err := q.called(ctx, "delete"); err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	out := &sqs.DeleteMessageBatchOutput{}
	q.sizes = append(q.sizes, len(in.Entries))
	for _, e := range in.Entries {
		i := q.find(e.ReceiptHandle)
		if q.stale {
			out.Failed = append(out.Failed, types.BatchResultErrorEntry{Id: e.Id, SenderFault: true, Code: aws.String("ReceiptHandleIsInvalid")})
			continue
		}
		if i >= 0 && q.keep != nil && q.keep(q.waiting[i].id) {
			out.Failed = append(out.Failed, types.BatchResultErrorEntry{Id: e.Id, Code: aws.String("InternalError")})
			continue
		}
		if i >= 0 {
			q.waiting = slices.Delete(q.waiting, i, i+1)
		}
		out.Successful = append(out.Successful, types.DeleteMessageBatchResultEntry{Id: e.Id})
	}
	return out, nil
}

func (q *fakeQueue) ChangeMessageVisibilityBatch(ctx context.Context, in *sqs.ChangeMessageVisibilityBatchInput, _ ...func(*sqs.Options)) (*sqs.ChangeMessageVisibilityBatchOutput, error) {
	call := "extend"
	if in.Entries[0].VisibilityTimeout == 0 {
		call = "return"
	}
	if err := q.called(ctx, call); err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	out := &sqs.ChangeMessageVisibilityBatchOutput{}
	for _, e := range in.Entries {
		i := q.find(e.ReceiptHandle)
		if i < 0 || q.waiting[i].handle != aws.ToString(e.ReceiptHandle) {
			out.Failed = append(out.Failed, types.BatchResultErrorEntry{Id: e.Id, SenderFault: true, Code: aws.String("ReceiptHandleIsInvalid")})
			continue
		}
		q.waiting[i].visible = time.Now().Add(time.Duration(e.VisibilityTimeout) * time.Second)
		out.Successful = append(out.Successful, types.ChangeMessageVisibilityBatchResultEntry{Id: e.Id})
	}
	close(q.changed)
	q.changed = make(chan struct{})
	return out, nil
}

// gated is an outbox whose Flush waits at a gate.
type gated struct {
	*topology.Recorder
	gate *gate
}

type gate struct {
	mu   sync.Mutex
	open chan struct{}
	err  error
	slow time.Duration // what each flush takes once it is open
}

func newGate(open bool) *gate {
	g := &gate{open: make(chan struct{})}
	if open {
		close(g.open)
	}
	return g
}

func (g *gate) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = err
}

func (g gated) Flush(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-g.gate.open:
		<-time.After(g.gate.slow)
	}
	g.gate.mu.Lock()
	defer g.gate.mu.Unlock()
	if g.gate.err != nil {
		return g.gate.err
	}
	return g.Recorder.Flush(ctx)
}

// rig is a running source on a fake queue.
type rig struct {
	*sqsSource
	queue *fakeQueue
	bus   *topology.Recorder
	gate  *gate
	log   *lockedBuffer
	stop  func() error
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

// lines returns the messages logged, debug ones excepted.
func (b *lockedBuffer) lines() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var lines []string
	for l := range bytes.Lines(b.Bytes()) {
		var m struct{ Level, Msg string }
		if json.Unmarshal(l, &m) == nil {
			lines = append(lines, m.Level+" "+m.Msg)
		}
	}
	return lines
}

var rigs int

func run(t *testing.T, q *fakeQueue, g *gate, change func(*SQSConfig, *Deps)) *rig {
	t.Helper()
	cfg := defaultSQS()
	cfg.QueueURL, cfg.Buckets, cfg.Receivers, cfg.MaxReceivers = "https://sqs.eu-west-1.amazonaws.com/123456789012/logs", []string{"logs"}, 1, 1
	rigs++
	r := &rig{queue: q, bus: &topology.Recorder{}, gate: g, log: &lockedBuffer{}}
	deps := Deps{
		Name: fmt.Sprintf("src-%d", rigs), Choose: chooseAuto, Drain: time.Minute,
		Log:       slog.New(slog.NewJSONHandler(r.log, nil)),
		NewOutbox: func() topology.Outbox { return gated{r.bus, g} },
		SQS:       func(context.Context, awsclient.Config) (SQS, error) { return q, nil },
	}
	if change != nil {
		change(&cfg, &deps)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	src, err := openSQS(t.Context(), cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	r.sqsSource = src.(*sqsSource)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = r.stop() })
	return r
}

// pass lets d go by in the bubble, and all that it makes happen.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (r *rig) announced() []string {
	var as []string
	for _, f := range r.bus.Facts() {
		if a := f.GetAnnounced(); a != nil {
			as = append(as, strings.TrimSpace(a.GetOrigin().GetMessageId()+" "+a.GetAs().String()+" "+a.GetCode()))
		}
	}
	slices.Sort(as)
	return as
}

func value(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetCounter().GetValue() + d.GetGauge().GetValue()
}

func (r *rig) expect(t *testing.T, name string, m prometheus.Metric, want float64) {
	t.Helper()
	if got := value(t, m); got != want {
		t.Errorf("%s is %v, want %v", name, got, want)
	}
}

// covers: VOI-2, F-5 (delete only after the publish ack), pain 2, 5, 7, LIM-11.
func TestDeletedOnlyWhenStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(
			s3Event(created("logs", "a"), created("logs", "b")), s3Event(created("forged", "c")), "garbage",
			`{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"logs"}`, `{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"logs"}`,
		)
		r := run(t, q, newGate(false), nil)
		synctest.Wait()
		if all, visible := q.left(); all != 5 || visible != 0 || q.count("delete") != 0 {
			t.Fatalf("before the flush: %d messages, %d visible, %d deletes", all, visible, q.count("delete"))
		}
		r.expect(t, "in flight", mInFlight.WithLabelValues(r.Name()), 5)
		close(r.gate.open)
		synctest.Wait()
		if all, _ := q.left(); all != 0 || q.count("delete") != 1 {
			t.Fatalf("after it: %d messages, %d deletes", all, q.count("delete"))
		}
		want := []string{
			"m-0 AS_OBJECT", "m-0 AS_OBJECT", "m-1 AS_QUARANTINED ingest.bucket_not_allowed",
			"m-2 AS_QUARANTINED ingest.unknown_notification", "m-3 AS_TEST", "m-4 AS_TEST",
		}
		if got := r.announced(); !reflect.DeepEqual(got, want) {
			t.Errorf("announced %q, want %q", got, want)
		}
		if len(r.bus.Messages()) != 2 || len(r.bus.Quarantined()) != 2 {
			t.Errorf("%d notices, %d quarantined", len(r.bus.Messages()), len(r.bus.Quarantined()))
		}
		if got := r.log.lines(); !reflect.DeepEqual(got, []string{"INFO the queue is wired: a test event came"}) {
			t.Errorf("logged %q", got)
		}
		r.expect(t, "in flight", mInFlight.WithLabelValues(r.Name()), 0)
		r.expect(t, "in flight bytes", mInFlightBytes.WithLabelValues(r.Name()), 0)
		r.expect(t, "deleted", mDeleted.WithLabelValues(r.Name()), 5)
		r.expect(t, "objects", mAnnounced.WithLabelValues(r.Name(), "object"), 2)
		r.expect(t, "up", mUp.WithLabelValues(r.Name()), 1)
		if err := r.Health(); err != nil {
			t.Errorf("health: %v", err)
		}
		if err := r.stop(); err != nil {
			t.Errorf("run: %v", err)
		}
		if q.wait[0] != 0 || q.wait[1] != 5 {
			t.Errorf("receive calls waited %v s, want 0 and then 5", q.wait)
		}
	})
}

// covers: pain 1; the pressure of a full bus reaches the queue.
func TestBlockedBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bodies []string
		for range 25 {
			bodies = append(bodies, s3Event(created("logs", "k")))
		}
		q := newFakeQueue(bodies...)
		r := run(t, q, newGate(false), nil)
		pass(10*time.Hour + 30*time.Second)
		if n := q.count("receive"); n != 1 {
			t.Errorf("%d receive calls while the bus took nothing, want 1", n)
		}
		if n := q.count("extend"); n != 600 {
			t.Errorf("visibility extended %d times in 10 h, want one a minute", n)
		}
		if _, visible := q.left(); visible != 15 {
			t.Errorf("%d messages are visible to others, want the 15 that were not received", visible)
		}
		close(r.gate.open)
		pass(time.Minute)
		if all, _ := q.left(); all != 0 || len(r.bus.Messages()) != 25 {
			t.Errorf("%d messages are left, %d notices", all, len(r.bus.Messages()))
		}
	})
}

func TestHeldTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(s3Event(created("logs", "k")))
		r := run(t, q, newGate(false), nil)
		pass(11*time.Hour - time.Second)
		if q.count("return") != 0 {
			t.Fatal("given back before 11 h")
		}
		pass(2 * time.Minute)
		if q.count("return") != 1 || q.count("receive") != 2 {
			t.Errorf("%d times given back, %d receive calls; want 1 and 2", q.count("return"), q.count("receive"))
		}
		if got := r.log.lines(); len(got) != 1 {
			t.Errorf("logged %q", got)
		}
		close(r.gate.open)
		pass(time.Minute)
		if all, _ := q.left(); all != 0 {
			t.Errorf("%d messages are left", all)
		}
	})
}

// A heartbeat that fails is repeated before the message becomes visible.
func TestExtensionFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(s3Event(created("logs", "k")))
		failures := 2
		q.fail = func(call string) error {
			if call == "extend" && failures > 0 {
				failures--
				return errors.New("connection reset")
			}
			return nil
		}
		r := run(t, q, newGate(false), nil)
		for range 30 {
			pass(10 * time.Second)
			if _, visible := q.left(); visible != 0 {
				t.Fatal("the message became visible")
			}
		}
		if failures != 0 || q.count("receive") != 1 {
			t.Errorf("%d failures left, %d receive calls", failures, q.count("receive"))
		}
		close(r.gate.open)
		synctest.Wait()
		if err := r.Health(); err != nil {
			t.Errorf("health: %v", err)
		}
	})
}

func TestPartialDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(s3Event(created("logs", "a")), s3Event(created("logs", "b")), s3Event(created("logs", "c")))
		failures := 2
		q.keep = func(id string) bool {
			if id == "m-1" && failures > 0 {
				failures--
				return true
			}
			return false
		}
		r := run(t, q, newGate(true), nil)
		pass(5 * time.Second)
		if all, _ := q.left(); all != 0 || q.count("delete") != 3 || len(r.bus.Messages()) != 3 {
			t.Errorf("%d messages left, %d deletes, %d notices; want 0, 3, 3", all, q.count("delete"), len(r.bus.Messages()))
		}
		r.expect(t, "deleted", mDeleted.WithLabelValues(r.Name()), 3)
	})
}

// A receipt that does not count any more is not tried again.
func TestStaleReceipt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(s3Event(created("logs", "a")), s3Event(created("logs", "b")))
		q.stale = true
		r := run(t, q, newGate(true), nil)
		pass(time.Minute)
		if q.count("delete") != 1 || r.Health() != nil {
			t.Errorf("%d deletes, health %v; want 1 and none", q.count("delete"), r.Health())
		}
	})
}

// A message whose deletion is lost comes again, and is not stored again.
func TestRedelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(s3Event(created("logs", "a")))
		denied := true
		q.fail = func(call string) error {
			if call == "delete" && denied {
				return &smithy.GenericAPIError{Code: "AccessDenied", Message: "no"}
			}
			return nil
		}
		r := run(t, q, newGate(true), nil)
		pass(5 * time.Minute)
		if all, _ := q.left(); all != 1 || q.count("receive") < 3 {
			t.Fatalf("%d messages left after %d receive calls", all, q.count("receive"))
		}
		if n := len(r.bus.Messages()); n != 1 {
			t.Errorf("stored %d times, want once", n)
		}
		if err := r.Health(); err == nil || !strings.Contains(err.Error(), callDelete) {
			t.Errorf("health %v does not name %s", err, callDelete)
		}
		r.expect(t, "up", mUp.WithLabelValues(r.Name()), 0)
		q.mu.Lock()
		denied = false
		q.mu.Unlock()
		pass(5 * time.Minute)
		if all, _ := q.left(); all != 0 || len(r.bus.Messages()) != 1 {
			t.Errorf("%d messages left, %d notices", all, len(r.bus.Messages()))
		}
		if value(t, mRedelivered.WithLabelValues(r.Name())) == 0 {
			t.Error("no redelivery was counted")
		}
	})
}

// covers: DEV-E48, DEV-161.
func TestAccessDeniedAndBack(t *testing.T) {
	firstBackoff *= 10 // in a bubble, hours take no time
	defer func() { firstBackoff /= 10 }()
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(s3Event(created("logs", "a")))
		err := error(&smithy.OperationError{ServiceID: "SQS", OperationName: "ReceiveMessage", Err: &smithy.GenericAPIError{Code: "AccessDenied", Message: "no"}})
		q.fail = func(string) error { return err }
		r := run(t, q, newGate(true), nil)
		pass(time.Hour)
		n := q.count("receive")
		if n < 60 || n > 140 { // half a minute to a minute apart in the end
			t.Errorf("%d attempts in an hour", n)
		}
		if err := r.Health(); err == nil || !strings.Contains(err.Error(), callReceive) || !strings.Contains(err.Error(), "aws.access_denied") {
			t.Errorf("health %v", err)
		}
		q.mu.Lock()
		err = &types.QueueDoesNotExist{Message: aws.String("gone")}
		q.mu.Unlock()
		pass(time.Hour)
		q.mu.Lock()
		err = nil
		q.mu.Unlock()
		pass(2 * time.Minute)
		want := []string{
			"ERROR the source refuses a call; it is tried again", "ERROR the source refuses a call; it is tried again",
			"INFO the source takes the call again",
		}
		if got := r.log.lines(); !reflect.DeepEqual(got, want) {
			t.Errorf("logged %q, want %q", got, want)
		}
		if all, _ := q.left(); all != 0 || r.Health() != nil {
			t.Errorf("%d messages left, health %v", all, r.Health())
		}
		r.expect(t, "up", mUp.WithLabelValues(r.Name()), 1)
	})
}

// A passing outage is counted and not logged.
func TestPassingOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue()
		failures := patience - 1
		q.fail = func(string) error {
			if failures > 0 {
				failures--
				return &smithy.GenericAPIError{Code: "ThrottlingException", Message: "slow down"}
			}
			return nil
		}
		r := run(t, q, newGate(true), nil)
		pass(time.Minute)
		if got := r.log.lines(); got != nil || r.Health() != nil {
			t.Errorf("logged %q, health %v", got, r.Health())
		}
		r.expect(t, "errors", mCallErrors.WithLabelValues(r.Name(), callReceive, "aws.throttled"), patience-1)
		q.mu.Lock()
		failures = 100
		q.mu.Unlock()
		pass(5 * time.Minute)
		if got := r.log.lines(); !reflect.DeepEqual(got, []string{"WARN the source refuses a call; it is tried again"}) {
			t.Errorf("logged %q", got)
		}
	})
}

// covers: pain 3, 4. A message that makes penstock fail waits, then is kept in
// quarantine; its neighbours are stored at once.
func TestPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(`{"a":1}`, `{"panic":1}`, `{"b":1}`)
		r := run(t, q, newGate(true), func(c *SQSConfig, d *Deps) {
			c.Body, c.MaxReceives = BodyEvents, 3
			d.Choose = func(configured, key string, head []byte) (string, framing.Framing, string) {
				if strings.Contains(string(head), "panic") {
					panic(string(head))
				}
				return chooseAuto(configured, key, head)
			}
		})
		synctest.Wait()
		if all, visible := q.left(); all != 1 || visible != 0 || len(r.bus.Messages()) != 2 {
			t.Fatalf("%d messages left (%d visible), %d stored; want 1 (0), 2", all, visible, len(r.bus.Messages()))
		}
		pass(time.Minute)
		if all, _ := q.left(); all != 0 {
			t.Fatalf("%d messages left", all)
		}
		bad := r.bus.Quarantined()
		if len(bad) != 1 || bad[0].GetCode() != "ingest.message_fails" || string(bad[0].GetPayload()) != `{"panic":1}` {
			t.Errorf("quarantined %v", bad)
		}
		if got := r.log.lines(); len(got) != 3 {
			t.Errorf("logged %q", got)
		}
		if strings.Contains(strings.ReplaceAll(r.log.String(), "panic.go", ""), `\"panic\":1`) {
			t.Error("the payload is in the log")
		}
	})
}

// A healthy message is stored however often it was received.
func TestReceiveCountAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(s3Event(created("logs", "a")))
		q.waiting[0].receives = 1000
		r := run(t, q, newGate(true), nil)
		synctest.Wait()
		if len(r.bus.Messages()) != 1 || len(r.bus.Quarantined()) != 0 {
			t.Errorf("%d stored, %d quarantined", len(r.bus.Messages()), len(r.bus.Quarantined()))
		}
	})
}

func TestBusRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(s3Event(created("logs", "a")))
		g := newGate(true)
		g.fail(errors.New("no responders"))
		r := run(t, q, g, nil)
		synctest.Wait()
		if _, visible := q.left(); visible != 0 {
			t.Error("given back without a pause: another replica would take it at once")
		}
		pass(10 * time.Minute)
		n := q.count("receive")
		if all, _ := q.left(); all != 1 || n < 8 || n > 120 {
			t.Errorf("%d messages left after %d receive calls in 10 min", all, n)
		}
		g.fail(nil)
		pass(2 * time.Minute)
		if all, _ := q.left(); all != 0 || r.announced() == nil {
			t.Errorf("%d messages left, announced %q", all, r.announced())
		}
	})
}

func TestShutdown(t *testing.T) {
	t.Run("finishes what is in hand", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			q := newFakeQueue(s3Event(created("logs", "a")))
			r := run(t, q, newGate(false), nil)
			synctest.Wait()
			go func() { <-time.After(30 * time.Second); close(r.gate.open) }()
			if err := r.stop(); err != nil {
				t.Errorf("run: %v", err)
			}
			if all, _ := q.left(); all != 0 || q.count("return") != 0 || q.count("receive") != 1 {
				t.Errorf("%d messages left, %d times given back, %d receive calls", all, q.count("return"), q.count("receive"))
			}
		})
	})
	t.Run("gives back what it cannot finish", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			q := newFakeQueue(s3Event(created("logs", "a")), s3Event(created("logs", "b")))
			r := run(t, q, newGate(false), nil)
			synctest.Wait()
			began := time.Now()
			err := r.stop()
			if fault.CodeOf(err) != "ingest.drain_expired" || time.Since(began) != time.Minute {
				t.Errorf("run ended after %s: %v", time.Since(began), err)
			}
			if all, visible := q.left(); all != 2 || visible != 2 {
				t.Errorf("%d messages left, %d visible; want 2 and 2", all, visible)
			}
			r.expect(t, "returned", mReturned.WithLabelValues(r.Name()), 2)
		})
	})
	// SQS may hand out messages to a call that is broken off: it is not.
	t.Run("while it waits for messages", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			q := newFakeQueue()
			r := run(t, q, newGate(true), nil)
			pass(7 * time.Second) // two seconds into a call
			began := time.Now()
			go func() { <-time.After(time.Second); q.send(s3Event(created("logs", "a"))) }()
			if err := r.stop(); err != nil || time.Since(began) > 3*time.Second {
				t.Errorf("run ended after %s: %v", time.Since(began), err)
			}
			if all, _ := q.left(); all != 0 || len(r.bus.Messages()) != 1 {
				t.Errorf("%d messages left, %d stored", all, len(r.bus.Messages()))
			}
			if got := r.log.lines(); got != nil {
				t.Errorf("logged %q", got)
			}
		})
	})
}

func TestReceiversAdapt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, g := newFakeQueue(), newGate(false)
		g.slow = 50 * time.Millisecond
		r := run(t, q, g, func(c *SQSConfig, _ *Deps) { c.Receivers, c.MaxReceivers = 2, 5 })
		pass(time.Minute)
		receivers := mReceivers.WithLabelValues(r.Name())
		r.expect(t, "receivers", receivers, 2)
		var bodies []string
		for range 200 {
			bodies = append(bodies, s3Event(created("logs", "k")))
		}
		q.send(bodies...)
		pass(time.Minute)
		r.expect(t, "receivers of a blocked bus", receivers, 2)
		close(r.gate.open)
		pass(120 * time.Millisecond)
		r.expect(t, "receivers with a backlog", receivers, 5)
		pass(2 * time.Minute)
		r.expect(t, "receivers after it", receivers, 2)
		if all, _ := q.left(); all != 0 || len(r.bus.Messages()) != 200 {
			t.Errorf("%d messages left, %d notices", all, len(r.bus.Messages()))
		}
	})
}

// The bytes in hand stay below the bound whatever the receivers do.
func TestBytesInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bodies []string
		for range 20 {
			bodies = append(bodies, s3Event(created("logs", "k"))+strings.Repeat(" ", 900_000))
		}
		q := newFakeQueue(bodies...)
		r := run(t, q, newGate(false), func(c *SQSConfig, _ *Deps) {
			c.Receivers, c.MaxReceivers, c.MaxInFlightBytes = 4, 4, 2*config.MiB
		})
		pass(time.Minute)
		if got := value(t, mInFlightBytes.WithLabelValues(r.Name())); got > 2<<20 || got < 1<<20 {
			t.Errorf("%v bytes in flight, bound 2 MiB", got)
		}
		close(r.gate.open)
		pass(time.Hour)
		if all, _ := q.left(); all != 0 {
			t.Errorf("%d messages left", all)
		}
	})
}

// An endpoint that answers at once without messages is not asked in a circle.
func TestEndpointThatDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue()
		impatient := impatientQueue{q}
		run(t, q, newGate(true), func(_ *SQSConfig, d *Deps) {
			d.SQS = func(context.Context, awsclient.Config) (SQS, error) { return impatient, nil }
		})
		pass(time.Minute)
		if n := q.count("receive"); n > 70 {
			t.Errorf("%d receive calls in a minute", n)
		}
	})
}

type impatientQueue struct{ *fakeQueue }

func (q impatientQueue) ReceiveMessage(ctx context.Context, in *sqs.ReceiveMessageInput, _ ...func(*sqs.Options)) (*sqs.ReceiveMessageOutput, error) {
	in.WaitTimeSeconds = 0
	return q.fakeQueue.ReceiveMessage(ctx, in)
}

// rejecting is an outbox that can never store frames.
type rejecting struct{ *topology.Recorder }

var errNeverFits = fault.Define("test.never_fits", fault.Reject, "")

func (r rejecting) Publish(context.Context, topology.Message) error {
	return errNeverFits.New(nil, "publish")
}

func TestNeverStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newFakeQueue(s3Event(created("logs", "a")))
		bus := &topology.Recorder{}
		r := run(t, q, newGate(true), func(_ *SQSConfig, d *Deps) { d.NewOutbox = func() topology.Outbox { return rejecting{bus} } })
		synctest.Wait()
		r.bus = bus
		if got := r.announced(); !reflect.DeepEqual(got, []string{"m-0 AS_QUARANTINED test.never_fits"}) {
			t.Errorf("announced %q", got)
		}
		if all, _ := q.left(); all != 0 || len(bus.Quarantined()) != 1 {
			t.Errorf("%d messages left, %d quarantined", all, len(bus.Quarantined()))
		}
	})
}

func TestRecentIsBounded(t *testing.T) {
	r := newRecent(3)
	for _, id := range []string{"a", "b", "b", "c", "d"} {
		r.add(id)
	}
	for id, want := range map[string]bool{"a": false, "b": true, "c": true, "d": true} {
		if r.has(id) != want {
			t.Errorf("%s is remembered: %v, want %v", id, !want, want)
		}
	}
	if len(r.ids) != 3 {
		t.Errorf("%d ids, want 3", len(r.ids))
	}
}

// covers: VOI-4, DEV-53, DEV-58.
func TestSQSConfig(t *testing.T) {
	good := func() SQSConfig {
		c := defaultSQS()
		c.QueueURL, c.Body, c.Buckets = "https://sqs.eu-west-1.amazonaws.com/123456789012/logs", BodyNotifications, []string{"logs-*"}
		return c
	}
	tests := []struct {
		name   string
		change func(*SQSConfig)
		key    string // "" for no problem
	}{
		{"good", func(*SQSConfig) {}, ""},
		{"no URL", func(c *SQSConfig) { c.QueueURL = "" }, "queue_url"},
		{"a queue's name", func(c *SQSConfig) { c.QueueURL = "logs" }, "queue_url"},
		{"no buckets", func(c *SQSConfig) { c.Buckets = nil }, "buckets"},
		{"no buckets for events", func(c *SQSConfig) { c.Buckets, c.Body = nil, BodyEvents }, ""},
		{"every bucket", func(c *SQSConfig) { c.Buckets = []string{"*"} }, ""},
		{"a URL as bucket", func(c *SQSConfig) { c.Buckets = []string{"s3://logs"} }, "buckets[0]"},
		{"an empty bucket", func(c *SQSConfig) { c.Buckets = []string{"a", ""} }, "buckets[1]"},
		{"an empty key", func(c *SQSConfig) { c.Keys = []string{""} }, "keys[0]"},
		{"FIFO", func(c *SQSConfig) { c.QueueURL += ".fifo" }, "queue_url"},
		{"FIFO for EventBridge", func(c *SQSConfig) { c.QueueURL += ".fifo"; c.Body = BodyAuto }, ""},
		{"unknown body", func(c *SQSConfig) { c.Body = "x" }, "body"},
		{"no receivers", func(c *SQSConfig) { c.Receivers = 0 }, "receivers"},
		{"more receivers than most", func(c *SQSConfig) { c.Receivers = 17 }, "receivers"},
		{"long linger", func(c *SQSConfig) { c.Linger = time.Minute }, "linger"},
		{"few messages", func(c *SQSConfig) { c.MaxInFlight = 9 }, "max_in_flight"},
		{"short visibility", func(c *SQSConfig) { c.VisibilityTimeout = time.Second }, "visibility_timeout"},
		{"long hold", func(c *SQSConfig) { c.MaxHold = 12 * time.Hour }, "max_hold"},
		{"no wait", func(c *SQSConfig) { c.WaitTime = 0 }, "wait_time"},
		{"few bytes", func(c *SQSConfig) { c.MaxInFlightBytes = 1000 }, "max_in_flight_bytes"},
		{"no receives", func(c *SQSConfig) { c.MaxReceives = 0 }, "max_receives"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := good()
			tt.change(&c)
			var problems *config.Error
			err := c.Validate()
			switch {
			case tt.key == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.key != "" && (!errors.As(err, &problems) || problems.Problems[0].Path != tt.key):
				t.Errorf("got %v, want a problem with %s", err, tt.key)
			}
		})
	}
}

// As main writes it: the common keys and those of the kind in one mapping.
type sourceEntry struct {
	// Name of the source.
	Name string `yaml:"name"`
	// Type is its kind.
	Type string `yaml:"type"`
	// Options are the keys of the kind.
	Options any `yaml:",kind"`
}

func (sourceEntry) Kinds() config.Kinds { return Catalog }

// covers: DEV-8
func TestYAML(t *testing.T) {
	parse := func(text string) (SQSConfig, error) {
		var file struct {
			Sources []sourceEntry `yaml:"sources"`
		}
		err := config.Parse("test.yaml", []byte(text), &file)
		if err != nil {
			return SQSConfig{}, err
		}
		return *file.Sources[0].Options.(*SQSConfig), nil
	}
	got, err := parse(`
sources:
  - name: trail
    type: sqs
    queue_url: https://sqs.eu-west-1.amazonaws.com/123456789012/logs
    body: notifications
    buckets: ["logs-*"]
    visibility_timeout: 5m
    max_in_flight_bytes: 64 MiB
    aws: {access_key: AKIATEST, access_secret: s}
`)
	want := defaultSQS()
	want.QueueURL, want.Body, want.Buckets = "https://sqs.eu-west-1.amazonaws.com/123456789012/logs", BodyNotifications, []string{"logs-*"}
	want.VisibilityTimeout, want.MaxInFlightBytes = 5*time.Minute, 64*config.MiB
	want.AWS.AccessKey, want.AWS.SecretKey = "AKIATEST", config.NewSecret("s")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v (%v), want %+v", got, err, want)
	}
	_, err = parse("sources:\n  - {name: a, type: sqs, queue_url: 'http://q/1/q', body: notices, reciever: 2}\n")
	for _, key := range []string{"body", "reciever"} {
		if err == nil || !strings.Contains(err.Error(), "sources[0]."+key) {
			t.Errorf("no problem with %s: %v", key, err)
		}
	}
}

func TestQueueAt(t *testing.T) {
	tests := []struct {
		name             string
		c                SQSConfig
		region, endpoint string
	}{
		{"standard", SQSConfig{QueueURL: "https://sqs.eu-west-1.amazonaws.com/1/q"}, "eu-west-1", ""},
		{"legacy", SQSConfig{QueueURL: "https://eu-west-1.queue.amazonaws.com/1/q"}, "eu-west-1", ""},
		{"FIPS", SQSConfig{QueueURL: "https://sqs-fips.us-gov-west-1.amazonaws.com/1/q"}, "us-gov-west-1", "https://sqs-fips.us-gov-west-1.amazonaws.com"},
		{"private", SQSConfig{QueueURL: "https://vpce-1-2.sqs.eu-west-1.vpce.amazonaws.com/1/q"}, "eu-west-1", "https://vpce-1-2.sqs.eu-west-1.vpce.amazonaws.com"},
		{"emulator", SQSConfig{QueueURL: "http://localhost:4566/1/q"}, "", "http://localhost:4566"},
		{"endpoint written down", SQSConfig{QueueURL: "http://other/1/q", AWS: awsclient.Config{EndpointURL: "http://here"}}, "", "http://here"},
		{"region of the access", SQSConfig{QueueURL: "http://localhost/1/q", AWS: awsclient.Config{Region: "eu-north-1"}}, "eu-north-1", "http://localhost"},
		{"region overridden", SQSConfig{QueueURL: "https://sqs.eu-west-1.amazonaws.com/1/q", Region: "eu-south-1"}, "eu-south-1", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if at := queueAt(tt.c); at.Region != tt.region || at.EndpointURL != tt.endpoint {
				t.Errorf("region %q at %q, want %q at %q", at.Region, at.EndpointURL, tt.region, tt.endpoint)
			}
			if b := tt.c.ObjectAWS(); b.Region != tt.region || b.EndpointURL != tt.c.AWS.EndpointURL {
				t.Errorf("buckets in %q at %q", b.Region, b.EndpointURL)
			}
		})
	}
}

// The source is in the catalog, and its defaults lack only what nobody can guess.
func TestCatalog(t *testing.T) {
	cfg, ok := Catalog.Defaults("sqs")
	if !ok || Catalog.Doc("sqs") == "" {
		t.Fatal("there is no source sqs")
	}
	var problems *config.Error
	if err := cfg.(*SQSConfig).Validate(); !errors.As(err, &problems) || len(problems.Problems) != 1 {
		t.Errorf("defaults: %v", err)
	}
	var _ ObjectReader = cfg.(*SQSConfig)
	cfg.(*SQSConfig).QueueURL = "http://127.0.0.1:1/1/q"
	src, err := Catalog.Open(t.Context(), "sqs", cfg, Deps{
		Name: "s", NewOutbox: func() topology.Outbox { return &topology.Recorder{} }, Choose: chooseAuto,
		SQS: func(_ context.Context, c awsclient.Config) (SQS, error) {
			if c.EndpointURL != "http://127.0.0.1:1" {
				t.Errorf("endpoint %q", c.EndpointURL)
			}
			return newFakeQueue(), nil
		},
	})
	if err != nil || src.Name() != "s" || src.Health() == nil {
		t.Errorf("opened %v (%v)", src, err)
	}
}
