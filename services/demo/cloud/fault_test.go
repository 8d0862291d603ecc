package cloud_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	awshttp "github.com/aws/smithy-go/transport/http"

	"github.com/penstock/penstock/services/demo/cloud"
)

// only is a hook that breaks one operation.
func only(op string, f cloud.Fault) cloud.FaultFunc {
	return func(o, _, _ string) cloud.Fault {
		if o == op {
			return f
		}
		return cloud.Fault{}
	}
}

func TestErrorFaults(t *testing.T) {
	f := newBucket(t, cloud.Options{})
	must(f.Put("bkt", "k", cloud.Object{Body: []byte("x")}))(t)
	url := aws.String(must(f.CreateQueue("q", nil))(t))
	tests := []struct {
		name   string
		op     string
		fault  cloud.Fault
		status int
		code   string
	}{
		{"slow down", "GetObject", cloud.Fault{Status: 503}, 503, "SlowDown"},
		{"internal error", "GetObject", cloud.Fault{Status: 500}, 500, "InternalError"},
		{"denied by code alone", "GetObject", cloud.Fault{Code: "AccessDenied"}, 403, "AccessDenied"},
		{"own code", "GetObject", cloud.Fault{Status: 400, Code: "ExpiredToken"}, 400, "ExpiredToken"},
		{"throttled queue", "ReceiveMessage", cloud.Fault{Code: "RequestThrottled"}, 403, "RequestThrottled"},
		{"queue outage", "ReceiveMessage", cloud.Fault{Status: 503, Code: "ServiceUnavailable"}, 503, "ServiceUnavailable"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.SetFault(only(tt.op, tt.fault))
			before := f.Calls(tt.op)
			var err error
			if tt.op == "GetObject" {
				_, err = f.get(t, &s3.GetObjectInput{Bucket: aws.String("bkt"), Key: aws.String("k")})
			} else {
				_, err = f.sqs.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: url})
			}
			var res *awshttp.ResponseError
			if codeOf(err) != tt.code || !errors.As(err, &res) || res.HTTPStatusCode() != tt.status {
				t.Errorf("got %v", err)
			}
			if f.Calls(tt.op) != before+1 {
				t.Errorf("counted %d calls", f.Calls(tt.op)-before)
			}
		})
	}
}

// The SDK's own retries get over errors that S3 gives under load.
func TestRetriesGetThrough(t *testing.T) {
	var calls atomic.Int32
	f := newBucket(t, cloud.Options{Fault: func(op, bucket, key string) cloud.Fault {
		if op == "GetObject" && bucket == "bkt" && key == "k" && calls.Add(1) <= 2 {
			return cloud.Fault{Status: 503}
		}
		return cloud.Fault{}
	}})
	must(f.Put("bkt", "k", cloud.Object{Body: []byte("x")}))(t)
	out := must(f.s3.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("bkt"), Key: aws.String("k")}, func(o *s3.Options) {
		o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) {
			o.Backoff = retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return 0, nil })
		})
	}))(t)
	_ = out.Body.Close()
	if f.Calls("GetObject") != 3 {
		t.Errorf("%d calls", f.Calls("GetObject"))
	}
}

func TestCutBodies(t *testing.T) {
	body := strings.Repeat("0123456789", 100_000)
	tests := []struct {
		name  string
		fault cloud.Fault
		bytes func(n int) bool // that arrive
		err   error            // nil: whole
	}{
		{"reset", cloud.Fault{Cut: 500_000}, func(n int) bool { return n <= 500_000 }, syscall.ECONNRESET},
		{"closed", cloud.Fault{Cut: 500_000, CutClean: true}, func(n int) bool { return n == 500_000 }, io.ErrUnexpectedEOF},
		{"closed after a byte", cloud.Fault{Cut: 1, CutClean: true}, func(n int) bool { return n == 1 }, io.ErrUnexpectedEOF},
		{"at the end", cloud.Fault{Cut: 1_000_000}, func(n int) bool { return n == 1_000_000 }, nil},
		{"beyond the end", cloud.Fault{Cut: 2_000_000}, func(n int) bool { return n == 1_000_000 }, nil},
	}
	for _, scheme := range []string{"http", "https"} {
		o := cloud.Options{}
		if scheme == "https" {
			o.TLS = serverTLS(t)
		}
		f := newBucket(t, o)
		must(f.Put("bkt", "k", cloud.Object{Body: []byte(body)}))(t)
		must(f.Put("bkt", "generated", cloud.Object{Size: int64(len(body)), Write: func(w io.Writer) error {
			for i := 0; i < len(body); i += 1000 {
				if _, err := io.WriteString(w, body[i:i+1000]); err != nil {
					return err
				}
			}
			return nil
		}}))(t)
		for _, key := range []string{"k", "generated"} {
			for _, tt := range tests {
				t.Run(scheme+", "+key+", "+tt.name, func(t *testing.T) {
					f.SetFault(only("GetObject", tt.fault))
					got, err := f.get(t, &s3.GetObjectInput{Bucket: aws.String("bkt"), Key: &key})
					if !tt.bytes(len(got)) || !errors.Is(err, tt.err) {
						t.Errorf("got %d bytes and %v", len(got), err)
					}
				})
			}
		}
	}
}

// An answer that is lost after the operation was carried out.
func TestLostAnswer(t *testing.T) {
	q := newQueue(t, "q", nil)
	q.send(t, "x")
	m := q.receive(t, 0, 0)[0]
	q.SetFault(only("DeleteMessage", cloud.Fault{Cut: -1}))
	if _, err := q.sqs.DeleteMessage(t.Context(), &sqs.DeleteMessageInput{QueueUrl: q.url, ReceiptHandle: m.ReceiptHandle}); err == nil {
		t.Fatal("the answer came")
	}
	if s := q.Queue(q.name); s.Deleted != 1 {
		t.Errorf("not carried out: %+v", s)
	}
}

func TestDelayAndHang(t *testing.T) {
	t.Parallel()
	f := newBucket(t, cloud.Options{})
	must(f.Put("bkt", "k", cloud.Object{Body: []byte("x")}))(t)
	in := &s3.GetObjectInput{Bucket: aws.String("bkt"), Key: aws.String("k")}
	f.SetFault(only("GetObject", cloud.Fault{Delay: 200 * time.Millisecond}))
	began := time.Now()
	if got, err := f.get(t, in); got != "x" || time.Since(began) < 200*time.Millisecond {
		t.Errorf("delayed: got %q, %v after %v", got, err, time.Since(began))
	}

	f.SetFault(only("GetObject", cloud.Fault{Hang: true}))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := f.s3.GetObject(ctx, in)
		ended <- err
	}()
	if err := f.Wait(t.Context(), func() bool { return f.Calls("GetObject") == 2 }); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		t.Fatalf("did not hang: %v", err)
	default:
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	// One more hangs while the endpoint closes.
	go func() {
		_, err := f.s3.GetObject(t.Context(), in)
		ended <- err
	}()
	if err := f.Wait(t.Context(), func() bool { return f.Calls("GetObject") == 3 }); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := <-ended; err == nil {
		t.Error("hanging request was answered")
	}
}

func TestQueueFaults(t *testing.T) {
	t.Parallel()
	t.Run("duplicates come although deleted", func(t *testing.T) {
		q := newQueue(t, "q", nil)
		q.SetFault(only("ReceiveMessage", cloud.Fault{Duplicate: true}))
		q.send(t, "x", "y")
		seen := map[string]int{}
		for s := q.Queue(q.name); s.Visible+s.InFlight > 0; s = q.Queue(q.name) {
			for _, m := range q.receive(t, 0, 0) {
				seen[*m.MessageId]++
				q.delete(t, m)
			}
		}
		if len(seen) != 2 {
			t.Fatalf("seen %v", seen)
		}
		for id, n := range seen {
			if n != 2 {
				t.Errorf("%s came %d times", id, n)
			}
		}
	})
	t.Run("reorder", func(t *testing.T) {
		q := newQueue(t, "q", nil)
		q.SetFault(only("ReceiveMessage", cloud.Fault{Shuffle: true}))
		var sent, got []string
		for i := range 100 {
			sent = append(sent, strconv.Itoa(i))
		}
		q.send(t, sent...)
		for range 10 {
			got = append(got, bodies(q.receive(t, 0, 0))...)
		}
		if slices.Equal(got, sent) {
			t.Error("came in order")
		}
		slices.SortFunc(got, func(a, b string) int { return len(a)*1000 - len(b)*1000 + strings.Compare(a, b) })
		if !slices.Equal(got, sent) {
			t.Errorf("got %v", got)
		}
	})
	t.Run("late", func(t *testing.T) {
		q := newQueue(t, "q", nil)
		q.SetFault(only("SendMessage", cloud.Fault{Late: 300 * time.Millisecond}))
		must(q.sqs.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: q.url, MessageBody: aws.String("x")}))(t)
		if len(q.receive(t, 0, 0)) != 0 {
			t.Fatal("came at once")
		}
		if len(q.receive(t, 5, 0)) != 1 {
			t.Error("never came")
		}
	})
	t.Run("some entries of a batch fail", func(t *testing.T) {
		q := newQueue(t, "q", nil)
		q.SetFault(only("SendMessageBatch", cloud.Fault{FailEntries: 1, Code: "ServiceUnavailable"}))
		out := must(q.sqs.SendMessageBatch(t.Context(), &sqs.SendMessageBatchInput{QueueUrl: q.url, Entries: []types.SendMessageBatchRequestEntry{
			{Id: aws.String("a"), MessageBody: aws.String("one")}, {Id: aws.String("b"), MessageBody: aws.String("two")},
		}}))(t)
		if len(out.Failed) != 1 || *out.Failed[0].Id != "a" || out.Failed[0].SenderFault || *out.Failed[0].Code != "ServiceUnavailable" || len(out.Successful) != 1 {
			t.Errorf("failed %+v, successful %+v", out.Failed, out.Successful)
		}
		if got := q.receive(t, 0, 0); !slices.Equal(bodies(got), []string{"two"}) {
			t.Errorf("received %v", bodies(got))
		}
	})
}

// Many requests are cut and dropped at once: nothing leaks (TestMain), and the
// endpoint goes on.
func TestAbuse(t *testing.T) {
	f := newBucket(t, cloud.Options{})
	must(f.Put("bkt", "k", cloud.Object{Body: make([]byte, 1<<20)}))(t)
	var n atomic.Int64
	f.SetFault(func(string, string, string) cloud.Fault {
		return []cloud.Fault{{}, {Cut: 1000}, {Cut: -1}, {Status: http.StatusInternalServerError}, {Cut: 5000, CutClean: true}}[n.Add(1)%5]
	})
	good := 0
	for range 50 {
		if got, err := f.get(t, &s3.GetObjectInput{Bucket: aws.String("bkt"), Key: aws.String("k")}); err == nil && len(got) == 1<<20 {
			good++
		}
	}
	if good != 10 {
		t.Errorf("%d of 50 came whole, want 10", good)
	}
}
