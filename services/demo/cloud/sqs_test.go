package cloud_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/demo/cloud"
)

// queue is one queue as a test talks to it.
type queue struct {
	fixture
	name string
	url  *string
}

func newQueue(t testing.TB, name string, attrs map[string]string) queue {
	t.Helper()
	f := start(t, cloud.Options{})
	return queue{f, name, aws.String(must(f.CreateQueue(name, attrs))(t))}
}

func (q queue) send(t testing.TB, bodies ...string) {
	t.Helper()
	must(q.Send(*q.url, bodies...))(t)
}

// receive takes up to 10 messages; wait and visibility in seconds, 0 means the queue's.
func (q queue) receive(t testing.TB, wait, visibility int32) []types.Message {
	t.Helper()
	out := must(q.sqs.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{
		QueueUrl: q.url, MaxNumberOfMessages: 10, WaitTimeSeconds: wait, VisibilityTimeout: visibility,
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameAll}, MessageAttributeNames: []string{"All"},
	}))(t)
	return out.Messages
}

func (q queue) delete(t testing.TB, m types.Message) {
	t.Helper()
	must(q.sqs.DeleteMessage(t.Context(), &sqs.DeleteMessageInput{QueueUrl: q.url, ReceiptHandle: m.ReceiptHandle}))(t)
}

// until waits for a state of the queue.
func (q queue) until(t testing.TB, cond func(cloud.QueueState) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := q.Wait(ctx, func() bool { return cond(q.Queue(q.name)) }); err != nil {
		t.Fatalf("%v: state is %+v", err, q.Queue(q.name))
	}
}

func bodies(list []types.Message) []string {
	var out []string
	for _, m := range list {
		out = append(out, *m.Body)
	}
	return out
}

func TestQueues(t *testing.T) {
	f := start(t, cloud.Options{})
	ctx := t.Context()

	t.Run("create, find, list, delete", func(t *testing.T) {
		made := must(f.sqs.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("a-1"), Attributes: map[string]string{"VisibilityTimeout": "7"}}))(t)
		if want := f.URL() + "/123456789012/a-1"; *made.QueueUrl != want {
			t.Errorf("URL %s, want %s", *made.QueueUrl, want)
		}
		found := must(f.sqs.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: aws.String("a-1")}))(t)
		if *found.QueueUrl != *made.QueueUrl {
			t.Errorf("found %s", *found.QueueUrl)
		}
		again := must(f.sqs.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("a-1"), Attributes: map[string]string{"VisibilityTimeout": "7"}}))(t)
		if *again.QueueUrl != *made.QueueUrl {
			t.Errorf("created again as %s", *again.QueueUrl)
		}
		_, err := f.sqs.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("a-1"), Attributes: map[string]string{"VisibilityTimeout": "8"}})
		var exists *types.QueueNameExists
		if !errors.As(err, &exists) {
			t.Errorf("other attributes: %v", err)
		}
		for i := range 4 {
			must(f.CreateQueue(fmt.Sprintf("b-%d", i), nil))(t)
		}
		var names []string
		pages := sqs.NewListQueuesPaginator(f.sqs, &sqs.ListQueuesInput{QueueNamePrefix: aws.String("b-"), MaxResults: aws.Int32(3)})
		for pages.HasMorePages() {
			page := must(pages.NextPage(ctx))(t)
			names = append(names, page.QueueUrls...)
		}
		if len(names) != 4 || !strings.HasSuffix(names[3], "/b-3") {
			t.Errorf("listed %v", names)
		}
		must(f.sqs.DeleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: made.QueueUrl}))(t)
		_, err = f.sqs.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: aws.String("a-1")})
		var missing *types.QueueDoesNotExist
		if !errors.As(err, &missing) || codeOf(err) != "AWS.SimpleQueueService.NonExistentQueue" {
			t.Errorf("deleted queue: %v", err)
		}
	})

	t.Run("attributes", func(t *testing.T) {
		url := aws.String(must(f.CreateQueue("attrs", nil))(t))
		must(f.sqs.SetQueueAttributes(ctx, &sqs.SetQueueAttributesInput{QueueUrl: url, Attributes: map[string]string{"VisibilityTimeout": "11", "DelaySeconds": "2"}}))(t)
		must(f.Send("attrs", "x"))(t)
		out := must(f.sqs.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: url, AttributeNames: []types.QueueAttributeName{"All"}}))(t)
		for name, want := range map[string]string{
			"QueueArn": "arn:aws:sqs:us-east-1:123456789012:attrs", "VisibilityTimeout": "11", "DelaySeconds": "2", "MaximumMessageSize": "1048576",
			"ApproximateNumberOfMessages": "0", "ApproximateNumberOfMessagesNotVisible": "0", "ApproximateNumberOfMessagesDelayed": "1",
			"MessageRetentionPeriod": "345600", "ReceiveMessageWaitTimeSeconds": "0",
		} {
			if got := out.Attributes[name]; got != want {
				t.Errorf("%s = %q, want %q", name, got, want)
			}
		}
		one := must(f.sqs.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: url, AttributeNames: []types.QueueAttributeName{"QueueArn"}}))(t)
		if len(one.Attributes) != 1 {
			t.Errorf("asked for one, got %v", one.Attributes)
		}
		_, err := f.sqs.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: url, AttributeNames: []types.QueueAttributeName{"Nope"}})
		var badName *types.InvalidAttributeName
		if !errors.As(err, &badName) {
			t.Errorf("unknown attribute: %v", err)
		}
		_, err = f.sqs.SetQueueAttributes(ctx, &sqs.SetQueueAttributesInput{QueueUrl: url, Attributes: map[string]string{"VisibilityTimeout": "99999"}})
		var badValue *types.InvalidAttributeValue
		if !errors.As(err, &badValue) {
			t.Errorf("value out of range: %v", err)
		}
	})

	t.Run("names", func(t *testing.T) {
		for _, name := range []string{"", "with space", strings.Repeat("x", 81), "a.fifo"} {
			_, err := f.sqs.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String(name)})
			if codeOf(err) != "InvalidParameterValue" {
				t.Errorf("name %q: %v", name, err)
			}
		}
	})

	t.Run("missing queue in every call", func(t *testing.T) {
		url := aws.String(f.QueueURL("nope"))
		_, e1 := f.sqs.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: url, MessageBody: aws.String("x")})
		_, e2 := f.sqs.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: url})
		_, e3 := f.sqs.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: url, ReceiptHandle: aws.String("x")})
		_, e4 := f.Send("nope", "x")
		for i, err := range []error{e1, e2, e3} {
			var missing *types.QueueDoesNotExist
			if !errors.As(err, &missing) {
				t.Errorf("call %d: %v", i, err)
			}
		}
		if fault.CodeOf(e4) != "demo.refused" || !strings.Contains(e4.Error(), "QueueDoesNotExist") {
			t.Errorf("Send: %v", e4)
		}
	})

	t.Run("unsupported operation", func(t *testing.T) {
		url := aws.String(must(f.CreateQueue("tags", nil))(t))
		_, err := f.sqs.TagQueue(ctx, &sqs.TagQueueInput{QueueUrl: url, Tags: map[string]string{"a": "b"}})
		var unsupported *types.UnsupportedOperation
		if !errors.As(err, &unsupported) {
			t.Errorf("got %v", err)
		}
	})
}

// covers: F-5
func TestSendAndReceive(t *testing.T) {
	q := newQueue(t, "q", nil)
	body := "line\n\ttab \"quote\" back\\slash é 😀 \u2028 <&> \r"
	sent := must(q.sqs.SendMessage(t.Context(), &sqs.SendMessageInput{
		QueueUrl: q.url, MessageBody: &body,
		MessageAttributes: map[string]types.MessageAttributeValue{
			"penstock_id": {DataType: aws.String("String"), StringValue: aws.String("0a1b")},
			"count":       {DataType: aws.String("Number.int"), StringValue: aws.String("7")},
			"blob":        {DataType: aws.String("Binary"), BinaryValue: []byte{0, 1, 0xff}},
		},
		MessageSystemAttributes: map[string]types.MessageSystemAttributeValue{
			"AWSTraceHeader": {DataType: aws.String("String"), StringValue: aws.String("Root=1-5759e988-bd862e3fe1be46a994272793")},
		},
	}))(t) // the SDK checks MD5OfMessageBody
	if q.Queue(q.name).Visible != 1 {
		t.Fatalf("state %+v", q.Queue(q.name))
	}
	before := time.Now().UnixMilli()
	got := q.receive(t, 0, 0)
	if len(got) != 1 || *got[0].Body != body || *got[0].MessageId != *sent.MessageId {
		t.Fatalf("received %+v", got)
	}
	m := got[0]
	if *m.MD5OfMessageAttributes != *sent.MD5OfMessageAttributes {
		t.Errorf("attribute digests %s and %s", *m.MD5OfMessageAttributes, *sent.MD5OfMessageAttributes)
	}
	if a := m.MessageAttributes; *a["penstock_id"].StringValue != "0a1b" || *a["count"].DataType != "Number.int" || !bytes.Equal(a["blob"].BinaryValue, []byte{0, 1, 0xff}) {
		t.Errorf("attributes %+v", a)
	}
	stamp, err := strconv.ParseInt(m.Attributes["SentTimestamp"], 10, 64)
	if err != nil || stamp > before || stamp < before-60_000 {
		t.Errorf("SentTimestamp %q, now %d", m.Attributes["SentTimestamp"], before)
	}
	if m.Attributes["ApproximateReceiveCount"] != "1" || m.Attributes["SenderId"] == "" || m.Attributes["ApproximateFirstReceiveTimestamp"] == "" ||
		m.Attributes["AWSTraceHeader"] != "Root=1-5759e988-bd862e3fe1be46a994272793" {
		t.Errorf("system attributes %v", m.Attributes)
	}
	if s := q.Queue(q.name); s.InFlight != 1 || s.Visible != 0 {
		t.Errorf("state %+v", s)
	}
	q.delete(t, m)
	q.delete(t, m) // deleting again is no error
	if s := q.Queue(q.name); s.InFlight != 0 || s.Deleted != 1 {
		t.Errorf("state %+v", s)
	}
}

// The digest's reference value is worked out by hand from the Developer Guide's
// encoding, so that sender and receiver cannot be wrong together.
func TestAttributeDigest(t *testing.T) {
	q := newQueue(t, "q", nil)
	sent := must(q.sqs.SendMessage(t.Context(), &sqs.SendMessageInput{
		QueueUrl: q.url, MessageBody: aws.String("x"),
		MessageAttributes: map[string]types.MessageAttributeValue{
			"c": {DataType: aws.String("Binary"), BinaryValue: []byte{0, 0xff}},
			"a": {DataType: aws.String("String"), StringValue: aws.String("b")},
		},
	}))(t)
	// md5("\0\0\0\1a" "\0\0\0\6String" "\1" "\0\0\0\1b" "\0\0\0\1c" "\0\0\0\6Binary" "\2" "\0\0\0\2\0\xff")
	if want := "3e0f2ad47b1bb6bc05e83367ea2010b7"; *sent.MD5OfMessageAttributes != want {
		t.Errorf("got %s, want %s", *sent.MD5OfMessageAttributes, want)
	}
}

func TestAttributeSelection(t *testing.T) {
	q := newQueue(t, "q", nil)
	value := types.MessageAttributeValue{DataType: aws.String("String"), StringValue: aws.String("v")}
	tests := []struct {
		name   string
		attrs  []string
		system []types.MessageSystemAttributeName
		old    []types.QueueAttributeName
		want   []string
		wantS  int
	}{
		{name: "nothing asked"},
		{name: "one name", attrs: []string{"a"}, want: []string{"a"}},
		{name: "prefix", attrs: []string{"b.*"}, want: []string{"b.1", "b.2"}},
		{name: "all by pattern", attrs: []string{".*"}, want: []string{"a", "b.1", "b.2"}},
		{name: "system by new name", system: []types.MessageSystemAttributeName{"ApproximateReceiveCount"}, wantS: 1},
		{name: "system by old name", old: []types.QueueAttributeName{"SentTimestamp", "ApproximateReceiveCount"}, wantS: 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			must(q.sqs.SendMessage(t.Context(), &sqs.SendMessageInput{
				QueueUrl: q.url, MessageBody: aws.String("x"), MessageAttributes: map[string]types.MessageAttributeValue{"a": value, "b.1": value, "b.2": value},
			}))(t)
			in := &sqs.ReceiveMessageInput{QueueUrl: q.url, MessageAttributeNames: tt.attrs, MessageSystemAttributeNames: tt.system}
			//lint:ignore SA1019 older clients send it
			in.AttributeNames = tt.old //nolint:staticcheck // older clients send it
			out := must(q.sqs.ReceiveMessage(t.Context(), in))(t)
			m := out.Messages[0]
			for _, name := range tt.want {
				if _, ok := m.MessageAttributes[name]; !ok {
					t.Errorf("%s is missing", name)
				}
			}
			if len(m.MessageAttributes) != len(tt.want) || len(m.Attributes) != tt.wantS {
				t.Errorf("got %v and %v", m.MessageAttributes, m.Attributes)
			}
			q.delete(t, m)
		})
	}
}

func TestLimits(t *testing.T) {
	q := newQueue(t, "q", map[string]string{"MaximumMessageSize": "2048"})
	big := newQueue(t, "big", nil)
	ctx := t.Context()
	entries := func(n int, body string) []types.SendMessageBatchRequestEntry {
		list := []types.SendMessageBatchRequestEntry{} // empty, not nil: the SDK refuses nil by itself
		for i := range n {
			list = append(list, types.SendMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), MessageBody: &body})
		}
		return list
	}
	tests := []struct {
		name string
		call func() error
		code string // "" = accepted
	}{
		{"largest message", func() error {
			_, err := q.sqs.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: q.url, MessageBody: aws.String(strings.Repeat("x", 2048))})
			return err
		}, ""},
		{"message too large", func() error {
			_, err := q.sqs.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: q.url, MessageBody: aws.String(strings.Repeat("x", 2049))})
			return err
		}, "InvalidParameterValue"},
		{"attributes count", func() error {
			_, err := q.sqs.SendMessage(ctx, &sqs.SendMessageInput{
				QueueUrl: q.url, MessageBody: aws.String(strings.Repeat("x", 2040)),
				MessageAttributes: map[string]types.MessageAttributeValue{"a": {DataType: aws.String("String"), StringValue: aws.String("bbb")}},
			})
			return err
		}, "InvalidParameterValue"},
		{"batch of 1 MiB", func() error {
			_, err := big.sqs.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: big.url, Entries: entries(8, strings.Repeat("x", 1<<17))})
			return err
		}, ""},
		{"batch too long", func() error {
			_, err := big.sqs.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: big.url, Entries: entries(9, strings.Repeat("x", 1<<17))})
			return err
		}, "AWS.SimpleQueueService.BatchRequestTooLong"},
		{"empty batch", func() error {
			_, err := q.sqs.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: q.url, Entries: entries(0, "x")})
			return err
		}, "AWS.SimpleQueueService.EmptyBatchRequest"},
		{"11 entries", func() error {
			_, err := q.sqs.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: q.url, Entries: entries(11, "x")})
			return err
		}, "AWS.SimpleQueueService.TooManyEntriesInBatchRequest"},
		{"repeated id", func() error {
			_, err := q.sqs.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: q.url, Entries: append(entries(1, "x"), entries(1, "y")...)})
			return err
		}, "AWS.SimpleQueueService.BatchEntryIdsNotDistinct"},
		{"illegal id", func() error {
			list := entries(1, "x")
			list[0].Id = aws.String("a b")
			_, err := q.sqs.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: q.url, Entries: list})
			return err
		}, "AWS.SimpleQueueService.InvalidBatchEntryId"},
		{"illegal characters", func() error {
			_, err := q.sqs.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: q.url, MessageBody: aws.String("a\x01b")})
			return err
		}, "InvalidMessageContents"},
		{"11 messages asked for", func() error {
			_, err := q.sqs.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: q.url, MaxNumberOfMessages: 11})
			return err
		}, "InvalidParameterValue"},
		{"wait of 21 s", func() error {
			_, err := q.sqs.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: q.url, WaitTimeSeconds: 21})
			return err
		}, "InvalidParameterValue"},
		{"delay of 901 s", func() error {
			_, err := q.sqs.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: q.url, MessageBody: aws.String("x"), DelaySeconds: 901})
			return err
		}, "InvalidParameterValue"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.call(); codeOf(err) != tt.code || (err == nil) != (tt.code == "") {
				t.Errorf("got %v, want code %q", err, tt.code)
			}
		})
	}
}

func TestBatches(t *testing.T) {
	q := newQueue(t, "q", nil)
	ctx := t.Context()
	huge := strings.Repeat("x", 1<<20)
	must(q.sqs.SetQueueAttributes(ctx, &sqs.SetQueueAttributesInput{QueueUrl: q.url, Attributes: map[string]string{"MaximumMessageSize": "1024"}}))(t)
	sent := must(q.sqs.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: q.url, Entries: []types.SendMessageBatchRequestEntry{
		{Id: aws.String("a"), MessageBody: aws.String("one")},
		{Id: aws.String("b"), MessageBody: aws.String(huge[:1025])},
		{Id: aws.String("c"), MessageBody: aws.String("three")},
	}}))(t)
	if len(sent.Successful) != 2 || len(sent.Failed) != 1 || *sent.Failed[0].Id != "b" || !sent.Failed[0].SenderFault {
		t.Fatalf("sent %+v, failed %+v", sent.Successful, sent.Failed)
	}
	got := q.receive(t, 0, 0)
	if !slices.Equal(bodies(got), []string{"one", "three"}) {
		t.Fatalf("received %v", bodies(got))
	}
	changed := must(q.sqs.ChangeMessageVisibilityBatch(ctx, &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: q.url, Entries: []types.ChangeMessageVisibilityBatchRequestEntry{
		{Id: aws.String("a"), ReceiptHandle: got[0].ReceiptHandle, VisibilityTimeout: 60},
		{Id: aws.String("x"), ReceiptHandle: aws.String("bogus"), VisibilityTimeout: 60},
	}}))(t)
	if len(changed.Successful) != 1 || len(changed.Failed) != 1 || *changed.Failed[0].Code != "ReceiptHandleIsInvalid" {
		t.Errorf("changed %+v, failed %+v", changed.Successful, changed.Failed)
	}
	deleted := must(q.sqs.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: q.url, Entries: []types.DeleteMessageBatchRequestEntry{
		{Id: aws.String("a"), ReceiptHandle: got[0].ReceiptHandle},
		{Id: aws.String("x"), ReceiptHandle: aws.String("bogus")},
		{Id: aws.String("c"), ReceiptHandle: got[1].ReceiptHandle},
	}}))(t)
	if len(deleted.Successful) != 2 || len(deleted.Failed) != 1 || *deleted.Failed[0].Id != "x" || *deleted.Failed[0].Code != "ReceiptHandleIsInvalid" || !deleted.Failed[0].SenderFault {
		t.Errorf("deleted %+v, failed %+v", deleted.Successful, deleted.Failed)
	}
	_, err := q.sqs.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: q.url, ReceiptHandle: aws.String("bogus")})
	var bad *types.ReceiptHandleIsInvalid
	if !errors.As(err, &bad) {
		t.Errorf("single delete: %v", err)
	}
	if s := q.Queue(q.name); s.Deleted != 2 || s.InFlight+s.Visible != 0 {
		t.Errorf("state %+v", s)
	}
}

func TestVisibility(t *testing.T) {
	t.Parallel()
	t.Run("returns after its timeout and counts receives", func(t *testing.T) {
		t.Parallel()
		q := newQueue(t, "q", nil)
		q.send(t, "x")
		first := q.receive(t, 0, 1)
		if len(q.receive(t, 0, 1)) != 0 {
			t.Fatal("received while in flight")
		}
		began := time.Now()
		second := q.receive(t, 20, 1) // a long poll is woken by the timeout
		if len(second) != 1 || second[0].Attributes["ApproximateReceiveCount"] != "2" || time.Since(began) > 15*time.Second {
			t.Fatalf("after %v received %+v", time.Since(began), second)
		}
		if *second[0].MessageId != *first[0].MessageId || *second[0].ReceiptHandle == *first[0].ReceiptHandle {
			t.Error("a redelivery has the same id and a handle of its own")
		}
		q.delete(t, first[0]) // the old handle deletes nothing
		if q.Queue(q.name).InFlight != 1 {
			t.Error("an old handle deleted the message")
		}
		q.delete(t, second[0])
		if s := q.Queue(q.name); s.InFlight+s.Visible != 0 {
			t.Errorf("state %+v", s)
		}
	})
	t.Run("change really extends", func(t *testing.T) {
		t.Parallel()
		q := newQueue(t, "q", nil)
		q.send(t, "x", "y")
		got := q.receive(t, 0, 1)
		must(q.sqs.ChangeMessageVisibility(t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: q.url, ReceiptHandle: got[0].ReceiptHandle, VisibilityTimeout: 60}))(t)
		q.until(t, func(s cloud.QueueState) bool { return s.Visible == 1 })
		if back := q.receive(t, 0, 60); !slices.Equal(bodies(back), []string{"y"}) {
			t.Errorf("came back: %v", bodies(back))
		}
	})
	t.Run("zero wakes a long poll", func(t *testing.T) {
		q := newQueue(t, "q", nil)
		q.send(t, "x")
		m := q.receive(t, 0, 60)[0]
		got := make(chan []types.Message)
		go func() { got <- q.receive(t, 20, 60) }()
		q.until(t, func(s cloud.QueueState) bool { return s.Waiting == 1 })
		must(q.sqs.ChangeMessageVisibility(t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: q.url, ReceiptHandle: m.ReceiptHandle, VisibilityTimeout: 0}))(t)
		if again := <-got; len(again) != 1 {
			t.Errorf("received %v", bodies(again))
		}
	})
	t.Run("zero returns it at once", func(t *testing.T) {
		q := newQueue(t, "q", nil)
		q.send(t, "x")
		got := q.receive(t, 0, 60)
		must(q.sqs.ChangeMessageVisibility(t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: q.url, ReceiptHandle: got[0].ReceiptHandle, VisibilityTimeout: 0}))(t)
		if again := q.receive(t, 0, 60); len(again) != 1 {
			t.Fatal("still in flight")
		}
		_, err := q.sqs.ChangeMessageVisibility(t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: q.url, ReceiptHandle: got[0].ReceiptHandle, VisibilityTimeout: 5})
		var not *types.MessageNotInflight
		if !errors.As(err, &not) {
			t.Errorf("the old handle: %v", err)
		}
	})
	t.Run("delete after the timeout", func(t *testing.T) {
		t.Parallel()
		q := newQueue(t, "q", nil)
		q.send(t, "x", "y", "z")
		got := q.receive(t, 0, 1)
		q.until(t, func(s cloud.QueueState) bool { return s.Visible == 3 })
		q.delete(t, got[1])
		if s := q.Queue(q.name); s.Visible != 2 || s.Deleted != 1 {
			t.Errorf("state %+v", s)
		}
		left := bodies(q.receive(t, 0, 0))
		if slices.Contains(left, "y") || len(left) != 2 {
			t.Errorf("left %v", left)
		}
	})
}

func TestLongPoll(t *testing.T) {
	t.Parallel()
	t.Run("empty wait ends in time", func(t *testing.T) {
		t.Parallel()
		q := newQueue(t, "q", nil)
		began := time.Now()
		got := q.receive(t, 1, 0)
		if took := time.Since(began); len(got) != 0 || took < 900*time.Millisecond || took > 30*time.Second {
			t.Errorf("got %d messages after %v", len(got), took)
		}
	})
	t.Run("the queue's own wait", func(t *testing.T) {
		t.Parallel()
		q := newQueue(t, "q", map[string]string{"ReceiveMessageWaitTimeSeconds": "1"})
		began := time.Now()
		if q.receive(t, 0, 0); time.Since(began) < 900*time.Millisecond {
			t.Errorf("answered after %v", time.Since(began))
		}
	})
	t.Run("wakes at once", func(t *testing.T) {
		q := newQueue(t, "q", nil)
		got := make(chan []types.Message)
		go func() { got <- q.receive(t, 20, 0) }()
		q.until(t, func(s cloud.QueueState) bool { return s.Waiting == 1 })
		began := time.Now()
		q.send(t, "x")
		if m := <-got; len(m) != 1 || time.Since(began) > 15*time.Second {
			t.Errorf("%d messages after %v", len(m), time.Since(began))
		}
	})
	t.Run("a poller that left gets nothing", func(t *testing.T) {
		q := newQueue(t, "q", nil)
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error)
		go func() {
			_, err := q.sqs.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: q.url, WaitTimeSeconds: 20})
			left <- err
		}()
		q.until(t, func(s cloud.QueueState) bool { return s.Waiting == 1 })
		cancel()
		<-left
		q.until(t, func(s cloud.QueueState) bool { return s.Waiting == 0 })
		q.send(t, "x")
		if m := q.receive(t, 0, 0); len(m) != 1 || m[0].Attributes["ApproximateReceiveCount"] != "1" {
			t.Errorf("received %+v", m)
		}
	})
	t.Run("Close ends it", func(t *testing.T) {
		q := newQueue(t, "q", nil)
		ended := make(chan error)
		go func() {
			_, err := q.sqs.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: q.url, WaitTimeSeconds: 20})
			ended <- err
		}()
		q.until(t, func(s cloud.QueueState) bool { return s.Waiting == 1 })
		began := time.Now()
		q.Close()
		if <-ended; time.Since(began) > 15*time.Second {
			t.Errorf("took %v", time.Since(began))
		}
	})
	t.Run("deleting the queue ends it", func(t *testing.T) {
		q := newQueue(t, "q", nil)
		got := make(chan []types.Message)
		go func() { got <- q.receive(t, 20, 0) }()
		q.until(t, func(s cloud.QueueState) bool { return s.Waiting == 1 })
		must(q.sqs.DeleteQueue(t.Context(), &sqs.DeleteQueueInput{QueueUrl: q.url}))(t)
		if m := <-got; len(m) != 0 {
			t.Errorf("received %v", m)
		}
	})
}

func TestDelay(t *testing.T) {
	t.Parallel()
	q := newQueue(t, "q", nil)
	must(q.sqs.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: q.url, MessageBody: aws.String("later"), DelaySeconds: 1}))(t)
	if len(q.receive(t, 0, 0)) != 0 || q.Queue(q.name).Delayed != 1 {
		t.Fatalf("not delayed: %+v", q.Queue(q.name))
	}
	if got := q.receive(t, 5, 0); len(got) != 1 {
		t.Error("never came")
	}
}

func TestPurge(t *testing.T) {
	q := newQueue(t, "q", nil)
	q.send(t, "a", "b", "c")
	must(q.sqs.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: q.url}))(t)
	must(q.sqs.PurgeQueue(t.Context(), &sqs.PurgeQueueInput{QueueUrl: q.url}))(t)
	if s := q.Queue(q.name); s.Visible+s.InFlight+s.Delayed != 0 {
		t.Errorf("state %+v", s)
	}
	_, err := q.sqs.PurgeQueue(t.Context(), &sqs.PurgeQueueInput{QueueUrl: q.url})
	var busy *types.PurgeQueueInProgress
	if !errors.As(err, &busy) {
		t.Errorf("second purge: %v", err)
	}
	q.send(t, "d")
	if got := q.receive(t, 0, 0); !slices.Equal(bodies(got), []string{"d"}) {
		t.Errorf("after the purge: %v", bodies(got))
	}
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	q := newQueue(t, "q", nil)
	dead := queue{q.fixture, "dead", aws.String(must(q.CreateQueue("dead", nil))(t))}
	ctx := t.Context()
	for _, policy := range []string{
		`{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:123456789012:nope","maxReceiveCount":"2"}`,
		`{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:123456789012:dead","maxReceiveCount":0}`,
	} {
		_, err := q.sqs.SetQueueAttributes(ctx, &sqs.SetQueueAttributesInput{QueueUrl: q.url, Attributes: map[string]string{"RedrivePolicy": policy}})
		if codeOf(err) != "InvalidParameterValue" {
			t.Errorf("policy %s: %v", policy, err)
		}
	}
	must(q.sqs.SetQueueAttributes(ctx, &sqs.SetQueueAttributesInput{QueueUrl: q.url, Attributes: map[string]string{
		"RedrivePolicy": `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:123456789012:dead","maxReceiveCount":"2"}`,
	}}))(t)
	sources := must(q.sqs.ListDeadLetterSourceQueues(ctx, &sqs.ListDeadLetterSourceQueuesInput{QueueUrl: dead.url}))(t)
	if !slices.Equal(sources.QueueUrls, []string{*q.url}) {
		t.Errorf("sources %v", sources.QueueUrls)
	}

	q.send(t, "poison")
	var id string
	for range 2 {
		got := q.receive(t, 0, 60)
		if len(got) != 1 {
			t.Fatal("not received")
		}
		id = *got[0].MessageId
		must(q.sqs.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{QueueUrl: q.url, ReceiptHandle: got[0].ReceiptHandle}))(t)
	}
	if got := q.receive(t, 0, 60); len(got) != 0 {
		t.Fatalf("a third receive gave %v", bodies(got))
	}
	got := dead.receive(t, 0, 60)
	if len(got) != 1 || *got[0].MessageId != id || got[0].Attributes["DeadLetterQueueSourceArn"] != "arn:aws:sqs:us-east-1:123456789012:q" {
		t.Fatalf("dead letters %+v", got)
	}
	if q.Queue(q.name).DeadLettered != 1 {
		t.Errorf("state %+v", q.Queue(q.name))
	}
}

func TestFIFO(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	newFIFO := func(t *testing.T, attrs map[string]string) (queue, func(body, group, dedup string) *sqs.SendMessageOutput) {
		t.Helper()
		q := newQueue(t, "q.fifo", attrs)
		return q, func(body, group, dedup string) *sqs.SendMessageOutput {
			in := &sqs.SendMessageInput{QueueUrl: q.url, MessageBody: &body, MessageGroupId: &group}
			if dedup != "" {
				in.MessageDeduplicationId = &dedup
			}
			return must(q.sqs.SendMessage(ctx, in))(t)
		}
	}

	t.Run("order and group lock", func(t *testing.T) {
		q, send := newFIFO(t, nil)
		last := ""
		for i := range 12 {
			out := send(fmt.Sprintf("a%02d", i), "a", fmt.Sprint("a", i))
			if *out.SequenceNumber <= last {
				t.Errorf("sequence %s after %s", *out.SequenceNumber, last)
			}
			last = *out.SequenceNumber
		}
		send("b00", "b", "b0")
		first := q.receive(t, 0, 60)
		if want := []string{"a00", "a01", "a02", "a03", "a04", "a05", "a06", "a07", "a08", "a09"}; !slices.Equal(bodies(first), want) {
			t.Fatalf("first %v", bodies(first))
		}
		if m := first[0]; m.Attributes["MessageGroupId"] != "a" || m.Attributes["MessageDeduplicationId"] != "a0" || m.Attributes["SequenceNumber"] == "" {
			t.Errorf("attributes %v", m.Attributes)
		}
		second := q.receive(t, 0, 60)
		if !slices.Equal(bodies(second), []string{"b00"}) {
			t.Fatalf("group a is locked, received %v", bodies(second))
		}
		// The third goes back, the others are done: it comes before a10.
		for i, m := range first {
			if i != 2 {
				q.delete(t, m)
			}
		}
		if got := q.receive(t, 0, 60); len(got) != 0 {
			t.Fatalf("one is in flight, received %v", bodies(got))
		}
		must(q.sqs.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{QueueUrl: q.url, ReceiptHandle: first[2].ReceiptHandle}))(t)
		if got := q.receive(t, 0, 60); !slices.Equal(bodies(got), []string{"a02", "a10", "a11"}) {
			t.Fatalf("then %v", bodies(got))
		}
	})
	t.Run("deleting the last one unlocks the group", func(t *testing.T) {
		q, send := newFIFO(t, nil)
		for i := range 11 {
			send(fmt.Sprint(i), "g", fmt.Sprint(i))
		}
		first := q.receive(t, 0, 60)
		got := make(chan []types.Message)
		go func() { got <- q.receive(t, 20, 60) }() // woken by the last delete
		q.until(t, func(s cloud.QueueState) bool { return s.Waiting == 1 })
		for _, m := range first {
			if s := q.Queue(q.name); s.Waiting != 1 {
				t.Fatalf("woken early: %+v", s)
			}
			q.delete(t, m)
		}
		if rest := <-got; !slices.Equal(bodies(rest), []string{"10"}) {
			t.Errorf("then %v", bodies(rest))
		}
	})
	t.Run("deduplication id", func(t *testing.T) {
		q, send := newFIFO(t, nil)
		one, two := send("x", "g", "d1"), send("y", "g", "d1")
		if *one.MessageId != *two.MessageId || *one.SequenceNumber != *two.SequenceNumber {
			t.Error("a repeated send is another message")
		}
		got := q.receive(t, 0, 60)
		if !slices.Equal(bodies(got), []string{"x"}) {
			t.Fatalf("received %v", bodies(got))
		}
		q.delete(t, got[0])
		send("z", "g", "d1") // still known after the delete
		if got := q.receive(t, 0, 60); len(got) != 0 {
			t.Errorf("received %v", bodies(got))
		}
	})
	t.Run("content deduplication", func(t *testing.T) {
		q, send := newFIFO(t, map[string]string{"ContentBasedDeduplication": "true"})
		send("x", "g", "")
		send("x", "g", "")
		send("y", "g", "")
		if got := q.receive(t, 0, 60); !slices.Equal(bodies(got), []string{"x", "y"}) {
			t.Errorf("received %v", bodies(got))
		}
	})
	t.Run("what it must be given", func(t *testing.T) {
		q, _ := newFIFO(t, nil)
		_, err := q.sqs.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: q.url, MessageBody: aws.String("x"), MessageDeduplicationId: aws.String("d")})
		if codeOf(err) != "MissingParameter" {
			t.Errorf("without group: %v", err)
		}
		_, err = q.sqs.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: q.url, MessageBody: aws.String("x"), MessageGroupId: aws.String("g")})
		if codeOf(err) != "InvalidParameterValue" {
			t.Errorf("without deduplication id: %v", err)
		}
		if err := q.CreateBucket("bkt", cloud.BucketOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := q.Notify("bkt", cloud.Notification{Queue: "q.fifo"}); fault.CodeOf(err) != "demo.refused" {
			t.Errorf("S3 notifies a FIFO queue: %v", err)
		}
	})
	t.Run("visibility timeout unlocks the group", func(t *testing.T) {
		t.Parallel()
		q, send := newFIFO(t, nil)
		send("x", "g", "1")
		send("y", "g", "2")
		q.receive(t, 0, 1)
		if got := q.receive(t, 5, 60); !slices.Equal(bodies(got), []string{"x", "y"}) {
			t.Errorf("received %v", bodies(got))
		}
	})
}

// A crowd of senders and receivers: each message is received and deleted exactly
// once, and nothing is left.
func TestCrowd(t *testing.T) {
	const messages = 4000
	q := newQueue(t, "q", nil)
	var seen sync.Map
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range messages / 40 {
				var list []types.SendMessageBatchRequestEntry
				for j := range 10 {
					list = append(list, types.SendMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(j)), MessageBody: aws.String(fmt.Sprint(w, "-", i, "-", j))})
				}
				if _, err := q.sqs.SendMessageBatch(t.Context(), &sqs.SendMessageBatchInput{QueueUrl: q.url, Entries: list}); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for q.Queue(q.name).Deleted < messages {
				out, err := q.sqs.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: q.url, MaxNumberOfMessages: 10, WaitTimeSeconds: 1})
				if err != nil {
					t.Error(err)
					return
				}
				if len(out.Messages) == 0 {
					continue
				}
				var list []types.DeleteMessageBatchRequestEntry
				for j, m := range out.Messages {
					if _, twice := seen.LoadOrStore(*m.Body, true); twice {
						t.Errorf("%s came twice", *m.Body)
					}
					list = append(list, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(j)), ReceiptHandle: m.ReceiptHandle})
				}
				if _, err := q.sqs.DeleteMessageBatch(t.Context(), &sqs.DeleteMessageBatchInput{QueueUrl: q.url, Entries: list}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if s := q.Queue(q.name); s.Visible+s.InFlight != 0 || s.Deleted != messages || s.Sent != messages || s.Received != messages {
		t.Errorf("state %+v", s)
	}
}

// Raw requests would show the endpoint alone; with the SDK the client's own cost
// is in the figure, as it is for every user of the endpoint.
func BenchmarkReceiveDelete(b *testing.B) {
	q := newQueue(b, "q", nil)
	body := strings.Repeat("x", 1000)
	var sent int64
	b.SetBytes(10 * 1000)
	for b.Loop() {
		for range 10 {
			q.send(b, body)
		}
		sent += 10
		got := must(q.sqs.ReceiveMessage(b.Context(), &sqs.ReceiveMessageInput{QueueUrl: q.url, MaxNumberOfMessages: 10}))(b)
		var list []types.DeleteMessageBatchRequestEntry
		for j, m := range got.Messages {
			list = append(list, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(j)), ReceiptHandle: m.ReceiptHandle})
		}
		must(q.sqs.DeleteMessageBatch(b.Context(), &sqs.DeleteMessageBatchInput{QueueUrl: q.url, Entries: list}))(b)
	}
	if s := q.Queue(q.name); s.Deleted != sent {
		b.Fatalf("deleted %d of %d", s.Deleted, sent)
	}
	b.ReportMetric(float64(sent)/b.Elapsed().Seconds(), "messages/s")
}
