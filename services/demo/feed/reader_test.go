package feed_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/smithy-go"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
)

// reader is the plainest program that does what penstock promises with a queue
// of notices: the expected counts of scenarios are held against what it finds.
// It knows nothing of feed but the words for the kinds.
type reader struct {
	testing.TB
	s3     *s3.Client
	sqs    *sqs.Client
	bucket string
	counts feed.Counts
	seen   map[string]int // event id → times read
	opened map[string]bool
}

func newReader(t testing.TB, c *cloud.Cloud, bucket string) *reader {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	client := &http.Client{Transport: plainBodies{tr}}
	keys := credentials.NewStaticCredentialsProvider("AKIATEST", "secret", "")
	return &reader{
		TB: t, bucket: bucket, seen: map[string]int{}, opened: map[string]bool{},
		counts: feed.Counts{Quarantined: map[string]int{}, Ignored: map[string]int{}},
		s3:     s3.New(s3.Options{BaseEndpoint: aws.String(c.URL()), Region: "us-east-1", UsePathStyle: true, Credentials: keys, Retryer: aws.NopRetryer{}, HTTPClient: client}),
		sqs:    sqs.New(sqs.Options{BaseEndpoint: aws.String(c.URL()), Region: "us-east-1", Credentials: keys, Retryer: aws.NopRetryer{}, HTTPClient: client}),
	}
}

// plainBodies hides the WriteTo of request bodies: that of smithy-go 1.28.8 makes
// net/http close a connection whose answer comes very fast.
type plainBodies struct{ http.RoundTripper }

func (p plainBodies) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		req = req.Clone(req.Context())
		req.Body = struct{ io.ReadCloser }{req.Body}
	}
	return p.RoundTripper.RoundTrip(req)
}

// drain reads the queue until it is empty.
func (r *reader) drain(queueURL string) feed.Counts {
	for {
		out, err := r.sqs.ReceiveMessage(r.Context(), &sqs.ReceiveMessageInput{QueueUrl: &queueURL, MaxNumberOfMessages: 10})
		if err != nil {
			r.Fatal(err)
		}
		if len(out.Messages) == 0 {
			break
		}
		for _, m := range out.Messages {
			r.counts.Messages++
			r.notice([]byte(*m.Body))
			if _, err := r.sqs.DeleteMessage(r.Context(), &sqs.DeleteMessageInput{QueueUrl: &queueURL, ReceiptHandle: m.ReceiptHandle}); err != nil {
				r.Fatal(err)
			}
		}
	}
	r.counts.Objects, r.counts.Unique = len(r.opened), len(r.seen)
	r.counts.Duplicates = r.counts.Events - r.counts.Unique
	return r.counts
}

func (r *reader) notice(body []byte) {
	var n struct {
		Type, Message, Service, Event string
		Records                       []struct {
			EventSource, EventName string
			S3                     struct {
				Bucket struct{ Name string }
				Object struct{ Key string }
			}
		}
		DetailType string `json:"detail-type"`
		Detail     struct {
			Bucket struct{ Name string }
			Object struct{ Key string }
		}
	}
	err := json.Unmarshal(body, &n)
	switch {
	case err == nil && n.Type == "Notification" && n.Message != "":
		r.notice([]byte(n.Message))
	case err == nil && n.Service == "Amazon S3" && n.Event == "s3:TestEvent":
		r.counts.Ignored[feed.TestEvent]++
	case err == nil && len(n.Records) > 0 && n.Records[0].EventSource == "aws:s3":
		for _, rec := range n.Records {
			if !strings.HasPrefix(rec.EventName, "ObjectCreated:") {
				r.counts.Ignored[feed.Removed]++
				continue
			}
			key, err := url.QueryUnescape(rec.S3.Object.Key)
			if err != nil {
				r.Errorf("key %s: %v", rec.S3.Object.Key, err)
			}
			r.object(rec.S3.Bucket.Name, key)
		}
	case err == nil && n.DetailType == "Object Created":
		r.object(n.Detail.Bucket.Name, n.Detail.Object.Key)
	case err == nil && strings.HasPrefix(n.DetailType, "Object "):
		r.counts.Ignored[feed.Removed]++
	default:
		r.counts.Quarantined[feed.UnknownNotice]++
	}
}

func (r *reader) object(bucket, key string) {
	r.counts.Pulls++
	if bucket != r.bucket {
		r.counts.Quarantined[feed.ForgedBucket]++
		return
	}
	out, err := r.s3.GetObject(r.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	var api smithy.APIError
	switch {
	case errors.As(err, &api) && api.ErrorCode() == "NoSuchKey":
		r.counts.Quarantined[feed.MissingKey]++
		return
	case errors.As(err, &api) && api.ErrorCode() == "AccessDenied":
		r.counts.Quarantined[feed.AccessDenied]++
		return
	case err != nil:
		r.Fatal(err)
	}
	defer func() { _ = out.Body.Close() }()
	switch {
	case *out.ContentLength == 0 || strings.HasSuffix(key, "/"):
		r.counts.Ignored[feed.EmptyObject]++
		return
	case strings.Contains(key, "/CloudTrail-Digest/"):
		r.counts.Ignored[feed.Digest]++
		return
	}
	stored, err := io.ReadAll(out.Body)
	if err != nil {
		r.Fatal(err)
	}
	if n := r.content(stored); n > 0 {
		r.opened[bucket+"/"+key] = true
	}
}

// content reads an object and returns how many records it holds.
func (r *reader) content(stored []byte) int {
	plain := stored
	if bytes.HasPrefix(stored, []byte{0x1f, 0x8b}) {
		var kind string
		if plain, kind = unzip(stored); kind != "" {
			r.counts.Quarantined[kind]++
		}
	}
	switch {
	case bytes.HasPrefix(plain, []byte(`{"awsAccountId"`)) && bytes.Contains(plain, []byte(`"digestStartTime"`)):
		r.counts.Ignored[feed.Digest]++
		return 0
	case !bytes.HasPrefix(plain, []byte(`{"Records":[`)):
		r.counts.Quarantined[feed.Unreadable]++
		return 0
	}
	records := cut(plain[len(`{"Records":[`):])
	for _, rec := range records {
		r.counts.Records++
		var e struct{ EventID string }
		switch {
		case len(rec) > 16<<20:
			r.counts.Quarantined[feed.RecordTooLarge]++
		case json.Unmarshal(rec, &e) != nil:
			r.counts.Quarantined[feed.BadRecord]++
		default:
			r.counts.Events++
			r.seen[e.EventID]++
		}
	}
	return len(records)
}

// unzip decompresses all members, and tells what is wrong after what it got.
func unzip(stored []byte) (plain []byte, kind string) {
	br := bufio.NewReader(bytes.NewReader(stored))
	z, err := gzip.NewReader(br)
	for err == nil {
		z.Multistream(false)
		var part []byte
		part, err = io.ReadAll(io.LimitReader(z, 200*int64(len(stored))))
		plain = append(plain, part...)
		if len(plain) >= 200*len(stored) {
			return plain, feed.Bomb
		}
		if err == nil {
			err = z.Reset(br)
		}
	}
	switch {
	case errors.Is(err, io.EOF):
		return plain, ""
	case errors.Is(err, gzip.ErrHeader):
		return plain, feed.TrailingGarbage
	case errors.Is(err, io.ErrUnexpectedEOF):
		return plain, feed.Truncated
	}
	panic(fmt.Sprint("unexpected: ", err))
}

// cut takes whole objects out of the inside of an array, by braces and quotes.
func cut(b []byte) (records [][]byte) {
	depth, start, quoted := 0, 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{':
			if depth++; depth == 1 {
				start = i
			}
		case c == '}':
			if depth--; depth == 0 {
				records = append(records, b[start:i+1])
			}
		}
	}
	return records
}
