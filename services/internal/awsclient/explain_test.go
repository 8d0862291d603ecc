package awsclient

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/penstock/penstock/messages/fault"
)

const s3Error = `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>%s</Message><RequestId>req-9</RequestId></Error>`

// once lets a client try only once.
func once(o *s3.Options) { o.Retryer = aws.NopRetryer{} }

// Every answer is one of a real endpoint, through the real client.
// covers: DEV-161, pain 18
func TestExplain(t *testing.T) {
	isolate(t)
	get := func(ctx context.Context, c Config) error {
		client, err := S3(ctx, c)
		if err != nil {
			return err
		}
		_, err = client.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("b"), Key: aws.String("k")}, once)
		return err
	}
	head := func(ctx context.Context, c Config) error {
		client, err := S3(ctx, c)
		if err != nil {
			return err
		}
		_, err = client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: aws.String("b"), Key: aws.String("k")}, once)
		return err
	}
	headBucket := func(ctx context.Context, c Config) error {
		client, err := S3(ctx, c)
		if err != nil {
			return err
		}
		_, err = client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: aws.String("b")}, once)
		return err
	}
	list := func(ctx context.Context, c Config) error {
		client, err := S3(ctx, c)
		if err != nil {
			return err
		}
		_, err = client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String("b")}, once)
		return err
	}
	receive := func(ctx context.Context, c Config) error {
		client, err := SQS(ctx, c)
		if err != nil {
			return err
		}
		_, err = client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: aws.String(c.EndpointURL + "/q")},
			func(o *sqs.Options) { o.Retryer = aws.NopRetryer{} })
		return err
	}
	remove := func(ctx context.Context, c Config) error {
		client, err := SQS(ctx, c)
		if err != nil {
			return err
		}
		entries := []types.DeleteMessageBatchRequestEntry{{Id: aws.String("0"), ReceiptHandle: aws.String("r")}}
		_, err = client.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: aws.String(c.EndpointURL + "/q"), Entries: entries},
			func(o *sqs.Options) { o.Retryer = aws.NopRetryer{} })
		return err
	}
	const canonical = `The request signature we calculated does not match the signature you provided. The Canonical String should have been 'x-amz-security-token:token-hunter2'`
	tests := []struct {
		name   string
		call   func(context.Context, Config) error
		status int
		code   string
		text   string
		kind   *fault.Kind
		class  fault.Class
		says   string
	}{
		{"object refused", get, 403, "AccessDenied", "Access Denied", ObjectDenied, fault.Reject, "call S3 GetObject: AccessDenied: Access Denied; it needs s3:GetObject, request id req-9 (aws.object_denied; fix: "},
		{"object refused, HEAD", head, 403, "", "", ObjectDenied, fault.Reject, "it needs s3:GetObject"},
		{"list refused", list, 403, "AccessDenied", "Access Denied", AccessDenied, fault.Stop, "call S3 ListObjectsV2: AccessDenied: Access Denied; it needs s3:ListBucket"},
		{"key refused", get, 403, "AccessDenied", "User: arn:aws:iam::1:user/u is not authorized to perform: kms:Decrypt on resource: arn:aws:kms:x", ObjectKeyDenied, fault.Reject, "kms:Decrypt on resource"},
		{"key disabled", get, 400, "KMS.DisabledException", "arn is disabled", ObjectKeyDenied, fault.Reject, "KMS.DisabledException: arn is disabled"},
		{"session ended", get, 400, "ExpiredToken", "The provided token has expired.", BadCredentials, fault.Stop, "ExpiredToken"},
		{"wrong secret", get, 403, "SignatureDoesNotMatch", canonical, BadCredentials, fault.Stop, "does not match the signature you provided"},
		{"wrong key", get, 403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.", BadCredentials, fault.Stop, "InvalidAccessKeyId"},
		{"wrong clock", get, 403, "RequestTimeTooSkewed", "skewed", WrongClock, fault.Stop, ""},
		{"no key", get, 404, "NoSuchKey", "The specified key does not exist.", NoSuchKey, fault.Reject, "call S3 GetObject: NoSuchKey"},
		{"no key, HEAD", head, 404, "", "", NoSuchKey, fault.Reject, ""},
		{"no version", get, 404, "NoSuchVersion", "x", NoSuchKey, fault.Reject, ""},
		{"a delete marker", get, 405, "MethodNotAllowed", "x", NoSuchKey, fault.Reject, ""},
		{"no bucket", get, 404, "NoSuchBucket", "x", NoSuchBucket, fault.Reject, ""},
		{"no bucket, HEAD", headBucket, 404, "", "", NoSuchBucket, fault.Reject, ""},
		{"elsewhere", get, 301, "PermanentRedirect", "use another endpoint", WrongRegion, fault.Reject, ""},
		{"archived", get, 403, "InvalidObjectState", "x", ObjectArchived, fault.Reject, ""},
		{"changed", get, 412, "PreconditionFailed", "x", ObjectChanged, fault.Reject, ""},
		{"bad range", get, 416, "InvalidRange", "x", Refused, fault.Reject, "InvalidRange"},
		{"slow down", get, 503, "SlowDown", "Please reduce your request rate.", Throttled, fault.Retry, ""},
		{"a proxy without words", get, 502, "", "", Unavailable, fault.Retry, ""},
		{"internal", get, 500, "InternalError", "x", Unavailable, fault.Retry, "InternalError"},
		{"a new code", get, 400, "Whatever", "x", Refused, fault.Reject, "Whatever: x"},

		{"queue refused", receive, 403, "AccessDenied", "User: u is not authorized to perform: sqs:receivemessage", AccessDenied, fault.Stop, "it needs sqs:ReceiveMessage"},
		{"delete refused", remove, 403, "AccessDeniedException", "x", AccessDenied, fault.Stop, "it needs sqs:DeleteMessage,"},
		{"no queue", receive, 400, "com.amazonaws.sqs#QueueDoesNotExist", "The specified queue does not exist.", NoSuchQueue, fault.Stop, "call SQS ReceiveMessage: QueueDoesNotExist: The specified"},
		{"no queue, old code", receive, 400, "AWS.SimpleQueueService.NonExistentQueue", "x", NoSuchQueue, fault.Stop, ""},
		{"too many in flight", receive, 403, "OverLimit", "x", Throttled, fault.Retry, ""},
		{"queue's key refused", receive, 400, "com.amazonaws.sqs#KmsAccessDenied", "x", KeyDenied, fault.Stop, ""},
		{"queue's key throttled", receive, 400, "KmsThrottled", "x", Throttled, fault.Retry, ""},
		{"queue throttled", receive, 400, "ThrottlingException", "Rate exceeded", Throttled, fault.Retry, ""},
		{"bad handle", remove, 400, "ReceiptHandleIsInvalid", "x", Refused, fault.Reject, ""},
		{"wrong key for a queue", receive, 403, "InvalidClientTokenId", "The security token included in the request is invalid.", BadCredentials, fault.Stop, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Amz-Request-Id", "req-9")
				w.Header().Set("X-Amzn-Requestid", "req-9")
				if r.Header.Get("X-Amz-Target") != "" {
					w.Header().Set("Content-Type", "application/x-amz-json-1.0")
					w.WriteHeader(tt.status)
					fmt.Fprintf(w, `{"__type": %q, "message": %q}`, tt.code, tt.text)
					return
				}
				w.WriteHeader(tt.status)
				if tt.code != "" {
					fmt.Fprintf(w, s3Error, tt.code, tt.text)
				}
			}))
			defer server.Close()
			raw := tt.call(t.Context(), Config{EndpointURL: server.URL})
			err := Explain(raw)
			if !errors.Is(err, tt.kind) || fault.ClassOf(err) != tt.class || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got  %v\nfrom %v\nwant %s: %s", err, raw, tt.kind, tt.says)
			}
			var op *smithy.OperationError
			if !errors.As(err, &op) {
				t.Error("the error of the SDK is lost")
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret is in %v", err)
			}
		})
	}
}

// The call that was refused is the one to STS, not the one that needs the role.
func TestExplainNamesTheRefusedCall(t *testing.T) {
	isolate(t)
	server := httptest.NewServer(&fakeSTS{fails: true})
	defer server.Close()
	client, err := S3(t.Context(), Config{Region: "eu-west-1", BaseAssumeRole: baseRole, STSEndpointURL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("b"), Key: aws.String("k")}, once)
	err = Explain(err)
	want := "call STS AssumeRole: AccessDenied: User: arn:aws:iam::111111111111:user/x is not authorized to perform: sts:AssumeRole on resource: " + baseRole + "; it needs sts:AssumeRole"
	if !errors.Is(err, AccessDenied) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got  %v\nwant %v", err, want)
	}
}

func TestExplainNetwork(t *testing.T) {
	isolate(t)
	gone := httptest.NewServer(nil)
	gone.Close()
	cut := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer cut.Close()
	hold := make(chan struct{})
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hold }))
	defer silent.Close()
	defer close(hold)
	call := func(ctx context.Context, url string) error {
		client, err := S3(ctx, Config{EndpointURL: url})
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("b"), Key: aws.String("k")}, once)
		return err
	}
	for name, url := range map[string]string{"nobody listens": gone.URL, "cut": cut.URL, "no such host": "http://none.invalid"} {
		if err := Explain(call(t.Context(), url)); !errors.Is(err, Unreachable) || fault.ClassOf(err) != fault.Retry || !strings.HasPrefix(err.Error(), "call S3 GetObject: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	late, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := Explain(call(late, silent.URL)); !errors.Is(err, Unreachable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a deadline: %v", err)
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := Explain(call(stopped, silent.URL)); !errors.Is(err, context.Canceled) || fault.CodeOf(err) != "unknown" {
		t.Errorf("a stop is no fault: %v", err)
	}
}

// Names that no service takes, as a forged notice may have, are not tried for ever.
func TestExplainBadNames(t *testing.T) {
	isolate(t)
	for _, c := range []Config{{Region: "eu-west-1"}, {EndpointURL: "http://127.0.0.1:1"}} {
		client, err := S3(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range [][2]string{{"b", ""}, {"arn:aws:s3:x", "k"}} {
			_, err = client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &name[0], Key: &name[1]}, once)
			if err = Explain(err); !errors.Is(err, Refused) {
				t.Errorf("%q: %v", name, err)
			}
		}
	}
}

func TestExplainBadInput(t *testing.T) {
	isolate(t)
	client, err := SQS(t.Context(), Config{Region: "eu-west-1"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{})
	if err = Explain(err); !errors.Is(err, Refused) || !strings.Contains(err.Error(), "QueueUrl") {
		t.Errorf("%v", err)
	}
}

func TestExplainNoCredentials(t *testing.T) {
	isolate(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	client, err := S3(t.Context(), Config{Region: "eu-west-1"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("b"), Key: aws.String("k")}, once)
	if err = Explain(err); !errors.Is(err, NoCredentials) || fault.ClassOf(err) != fault.Stop {
		t.Errorf("%v", err)
	}
}

func TestExplainLeavesAlone(t *testing.T) {
	if Explain(nil) != nil {
		t.Error("nil became an error")
	}
	known := fmt.Errorf("around: %w", NoSuchKey.New(nil, "x"))
	if got := Explain(known); got != known { //nolint:errorlint // the same one
		t.Errorf("a fault was wrapped: %v", got)
	}
	odd := Explain(errors.New("https://b.s3.amazonaws.com/k?X-Amz-Signature=hunter2 " + strings.Repeat("x", 1000)))
	if !errors.Is(odd, Failed) || strings.Contains(odd.Error(), "hunter2") || len(odd.Error()) > 500 {
		t.Errorf("%v", odd)
	}
}
