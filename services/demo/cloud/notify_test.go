package cloud_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
)

// notice is every field of formats F-5, F-6 and F-7 that a reader may use.
type notice struct {
	Type, MessageId, Message, TopicArn string //nolint:revive // as on the wire
	Service, Event, Bucket             string
	Records                            []struct {
		EventVersion, EventSource, AwsRegion, EventName string
		EventTime                                       time.Time
		S3                                              struct {
			Bucket struct{ Name, Arn string }
			Object struct {
				Key, ETag, VersionId, Sequencer string //nolint:revive // as on the wire
				Size                            int64
			}
		}
	}
	DetailType string `json:"detail-type"`
	Source     string
	ID         string
	Time       time.Time
	Detail     struct {
		Bucket struct{ Name string }
		Object struct {
			Key, Etag, Sequencer string
			Size                 int64
			VersionID            string `json:"version-id"`
		}
		Reason string
	}
}

func read(t *testing.T, body string) notice {
	t.Helper()
	var n notice
	if err := json.Unmarshal([]byte(body), &n); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return n
}

// covers: F-5, F-6
func TestNotices(t *testing.T) {
	const key = "logs 1/a+b=ü/x.json.gz"
	for _, shape := range []cloud.Shape{cloud.Direct, cloud.SNS, cloud.SNSRaw, cloud.EventBridge} {
		t.Run(shape.String(), func(t *testing.T) {
			q := newQueue(t, "q", nil)
			if err := q.CreateBucket("bkt", cloud.BucketOptions{Versioned: true}); err != nil {
				t.Fatal(err)
			}
			if err := q.Notify("bkt", cloud.Notification{Queue: "q", Shape: shape, Prefix: "logs ", Suffix: ".gz", Removals: true}); err != nil {
				t.Fatal(err)
			}
			stored := must(q.Put("bkt", key, cloud.Object{Body: []byte("content")}))(t)
			if stat, ok := q.Stat("bkt", key); !ok || stat != stored {
				t.Errorf("Stat gives %+v, Put gave %+v", stat, stored)
			}
			if stat, ok := q.Stat("bkt", "nope"); ok {
				t.Errorf("Stat of nothing gives %+v", stat)
			}
			must(q.Put("bkt", "other/x.json.gz", cloud.Object{Body: []byte("content")}))(t)
			must(q.Put("bkt", "logs 1/digest", cloud.Object{Body: []byte("content")}))(t)
			must(q.Put("bkt", "logs 2/x.gz", cloud.Object{Body: []byte("content"), Quiet: true}))(t)
			if err := q.Delete("bkt", key); err != nil {
				t.Fatal(err)
			}
			got := q.receive(t, 0, 0)
			if len(got) != 2 {
				t.Fatalf("%d notices, want those of the put and of the delete", len(got))
			}
			made, gone := read(t, *got[0].Body), read(t, *got[1].Body)
			if shape == cloud.SNS {
				if made.Type != "Notification" || made.MessageId == "" || made.TopicArn == "" {
					t.Errorf("envelope %s", *got[0].Body)
				}
				made, gone = read(t, made.Message), read(t, gone.Message)
			}
			if shape == cloud.EventBridge {
				o := made.Detail.Object
				if made.DetailType != "Object Created" || made.Source != "aws.s3" || made.ID == "" || made.Detail.Bucket.Name != "bkt" || made.Detail.Reason != "PutObject" ||
					o.Key != key || o.Etag != stored.ETag || o.VersionID != stored.VersionID || o.Size != 7 || o.Sequencer == "" {
					t.Errorf("event %s", *got[0].Body)
				}
				if gone.DetailType != "Object Deleted" || gone.Detail.Object.Key != key {
					t.Errorf("event %s", *got[1].Body)
				}
				return
			}
			r := made.Records[0]
			if r.EventSource != "aws:s3" || r.EventName != "ObjectCreated:Put" || r.EventVersion != "2.1" || r.AwsRegion != "us-east-1" || time.Since(r.EventTime) > time.Minute {
				t.Errorf("record %+v", r)
			}
			if strings.Contains(r.S3.Object.Key, " ") || must(url.QueryUnescape(r.S3.Object.Key))(t) != key {
				t.Errorf("key %s", r.S3.Object.Key)
			}
			if o := r.S3.Object; o.Size != 7 || o.ETag != stored.ETag || o.VersionId != stored.VersionID || o.Sequencer != stored.Sequencer || r.S3.Bucket.Name != "bkt" || r.S3.Bucket.Arn != "arn:aws:s3:::bkt" {
				t.Errorf("object %+v", o)
			}
			if g := gone.Records[0]; g.EventName != "ObjectRemoved:DeleteMarkerCreated" || g.S3.Object.Sequencer <= r.S3.Object.Sequencer {
				t.Errorf("removal %+v", g)
			}
		})
	}
}

// covers: F-6
func TestSeveralRecordsInOneMessage(t *testing.T) {
	q := newQueue(t, "q", nil)
	if err := q.CreateBucket("bkt", cloud.BucketOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := q.Notify("bkt", cloud.Notification{Queue: "q", Records: 3}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a", "b", "c", "d"} {
		must(q.Put("bkt", key, cloud.Object{Body: []byte(key)}))(t)
	}
	if got := q.receive(t, 0, 0); len(got) != 1 || len(read(t, *got[0].Body).Records) != 3 {
		t.Fatalf("received %v", bodies(got))
	}
	q.FlushNotices()
	q.FlushNotices() // nothing left to send
	if got := q.receive(t, 0, 0); len(got) != 1 || read(t, *got[0].Body).Records[0].S3.Object.Key != "d" {
		t.Fatalf("received %v", bodies(got))
	}
	if n := read(t, string(cloud.TestEvent("bkt"))); n.Service != "Amazon S3" || n.Event != "s3:TestEvent" || n.Bucket != "bkt" || n.Records != nil {
		t.Errorf("test event %+v", n)
	}
}
