package cloud

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strings"
	"time"
)

// Shape is the envelope in which a notice travels. Source: formats F-5, F-6, F-7.
type Shape uint8

// The shapes.
const (
	// Direct: S3 writes its event message into the queue.
	Direct Shape = iota
	// SNS: the event message as a string inside an SNS notification.
	SNS
	// SNSRaw: through SNS with raw message delivery; the body is as in Direct.
	SNSRaw
	// EventBridge: one event per object, whose key is not URL-encoded.
	EventBridge
)

func (s Shape) String() string {
	return [...]string{"direct", "sns", "sns_raw", "eventbridge"}[s]
}

// Event is something that happened to an object.
type Event struct {
	// Name as in event messages, without "s3:", e.g. "ObjectCreated:Put".
	Name        string
	Bucket, Key string
	Region      string
	Size        int64
	// ETag without quotes. VersionID may be empty.
	ETag, VersionID string
	Sequencer       string
	Time            time.Time
}

// Notification sends a bucket's events to a queue.
type Notification struct {
	// Queue is the name of a standard queue of this endpoint.
	Queue string
	Shape Shape
	// Prefix and Suffix choose keys. Both may be empty.
	Prefix, Suffix string
	// Removals also sends ObjectRemoved events.
	Removals bool
	// Records is how many events share one message; 0 and 1 mean one. Events
	// wait until so many are there, or for [Cloud.FlushNotices]. Not with EventBridge.
	Records int
}

type rule struct {
	Notification
	held []Event
}

// Notify adds a notification to a bucket. Unlike S3 it sends no test message;
// [TestEvent] makes one. Fails with demo.refused.
func (c *Cloud) Notify(bucket string, n Notification) error {
	c.sqs.mu.Lock()
	q, e := c.sqs.find(n.Queue)
	c.sqs.mu.Unlock()
	if e == nil && q.fifo {
		e = &apiError{status: 400, code: "InvalidArgument", message: "Unable to validate the following destination configurations"}
	}
	c.s3.mu.Lock()
	defer c.s3.mu.Unlock()
	b, missing := c.s3.bucket(bucket)
	if e == nil {
		e = missing
	}
	if e != nil {
		return errRefused.New(e, "notify queue %s of bucket %s", n.Queue, bucket)
	}
	b.rules = append(b.rules, &rule{Notification: n})
	return nil
}

// FlushNotices sends the events that wait for a fuller message.
func (c *Cloud) FlushNotices() {
	defer c.changed.fire()
	c.s3.mu.Lock()
	defer c.s3.mu.Unlock()
	for _, b := range c.s3.buckets {
		for _, r := range b.rules {
			if len(r.held) > 0 {
				c.s3.send(r)
			}
		}
	}
}

// announce sends an event by the bucket's rules. The caller holds the lock.
func (s *store) announce(b *bucket, e Event) {
	for _, r := range b.rules {
		if !strings.HasPrefix(e.Key, r.Prefix) || !strings.HasSuffix(e.Key, r.Suffix) ||
			!r.Removals && strings.HasPrefix(e.Name, "ObjectRemoved") {
			continue
		}
		if r.held = append(r.held, e); len(r.held) >= r.Records || r.Shape == EventBridge {
			s.send(r)
		}
	}
}

func (s *store) send(r *rule) {
	body := Message(r.Shape, r.held...)
	r.held = nil
	s.cloud.sqs.mu.Lock()
	defer s.cloud.sqs.mu.Unlock()
	if q, e := s.cloud.sqs.find(r.Queue); e == nil { // S3 does not report a lost queue either
		_, _ = s.cloud.sqs.send(q, &entry{MessageBody: string(body)}, Fault{})
	}
}

// Message is the body of a queue message that tells of events. EventBridge takes
// one event.
func Message(shape Shape, events ...Event) []byte {
	switch shape {
	case EventBridge:
		return eventBridge(events[0])
	case SNS:
		return WrapSNS(eventMessage(events))
	case Direct, SNSRaw:
	}
	return eventMessage(events)
}

// Fields in the order of the event message structure 2.1.
type (
	principal struct {
		PrincipalID string `json:"principalId"`
	}
	bucketEntity struct {
		Name          string    `json:"name"`
		OwnerIdentity principal `json:"ownerIdentity"`
		ARN           string    `json:"arn"`
	}
	objectEntity struct {
		Key       string `json:"key"`
		Size      int64  `json:"size,omitempty"`
		ETag      string `json:"eTag,omitempty"`
		VersionID string `json:"versionId,omitempty"`
		Sequencer string `json:"sequencer"`
	}
	s3Entity struct {
		SchemaVersion   string       `json:"s3SchemaVersion"`
		ConfigurationID string       `json:"configurationId"`
		Bucket          bucketEntity `json:"bucket"`
		Object          objectEntity `json:"object"`
	}
	eventRecord struct {
		EventVersion      string            `json:"eventVersion"`
		EventSource       string            `json:"eventSource"`
		AWSRegion         string            `json:"awsRegion"`
		EventTime         string            `json:"eventTime"`
		EventName         string            `json:"eventName"`
		UserIdentity      principal         `json:"userIdentity"`
		RequestParameters map[string]string `json:"requestParameters"`
		ResponseElements  map[string]string `json:"responseElements"`
		S3                s3Entity          `json:"s3"`
	}
)

const millis = "2006-01-02T15:04:05.000Z"

// EncodeKey encodes a key as event messages do: form encoding that leaves slashes.
func EncodeKey(key string) string {
	return strings.ReplaceAll(url.QueryEscape(key), "%2F", "/")
}

func eventMessage(events []Event) []byte {
	m := struct{ Records []eventRecord }{make([]eventRecord, 0, len(events))}
	for _, e := range events {
		id := uuid()
		m.Records = append(m.Records, eventRecord{
			EventVersion: "2.1", EventSource: "aws:s3", AWSRegion: e.Region, EventTime: e.Time.UTC().Format(millis), EventName: e.Name,
			UserIdentity:      principal{"AWS:AROAPENSTOCKDEMO00001:regional-delivery-session"},
			RequestParameters: map[string]string{"sourceIPAddress": "198.51.100.7"},
			ResponseElements:  map[string]string{"x-amz-request-id": strings.ToUpper(id[:8] + id[9:13]), "x-amz-id-2": id},
			S3: s3Entity{
				SchemaVersion: "1.0", ConfigurationID: "penstock",
				Bucket: bucketEntity{e.Bucket, principal{"A3NL1KOZZKEXAM"}, "arn:aws:s3:::" + e.Bucket},
				Object: objectEntity{EncodeKey(e.Key), e.Size, e.ETag, e.VersionID, e.Sequencer},
			},
		})
	}
	return plain(m)
}

// WrapSNS puts a body into the envelope of an SNS notification.
func WrapSNS(body []byte) []byte {
	return plain(struct {
		Type                                  string
		ID                                    string `json:"MessageId"`
		TopicArn, Subject, Message, Timestamp string
		SignatureVersion, Signature           string
		SigningCertURL, UnsubscribeURL        string
	}{
		"Notification", uuid(), "arn:aws:sns:us-east-1:" + AccountID + ":trail-notices", "Amazon S3 Notification", string(body), time.Now().UTC().Format(millis),
		"1", "c2lnbmF0dXJl", "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0000.pem", "https://sns.us-east-1.amazonaws.com/?Action=Unsubscribe",
	})
}

func eventBridge(e Event) []byte {
	object := map[string]any{"key": e.Key, "sequencer": e.Sequencer}
	if e.VersionID != "" {
		object["version-id"] = e.VersionID
	}
	detail := map[string]any{
		"version": "0", "bucket": map[string]string{"name": e.Bucket}, "object": object,
		"request-id": strings.ToUpper(uuid()[:8]), "requester": AccountID, "source-ip-address": "198.51.100.7",
	}
	kind := "Object Created"
	if strings.HasPrefix(e.Name, "ObjectRemoved") {
		kind = "Object Deleted"
		detail["reason"], detail["deletion-type"] = "DeleteObject", "Permanently Deleted"
		if strings.HasSuffix(e.Name, "DeleteMarkerCreated") {
			detail["deletion-type"] = "Delete Marker Created"
		}
	} else {
		object["size"], object["etag"] = e.Size, e.ETag
		detail["reason"] = "PutObject"
	}
	return plain(struct {
		Version    string         `json:"version"`
		ID         string         `json:"id"`
		DetailType string         `json:"detail-type"`
		Source     string         `json:"source"`
		Account    string         `json:"account"`
		Time       string         `json:"time"`
		Region     string         `json:"region"`
		Resources  []string       `json:"resources"`
		Detail     map[string]any `json:"detail"`
	}{"0", uuid(), kind, "aws.s3", AccountID, e.Time.UTC().Format(time.RFC3339), e.Region, []string{"arn:aws:s3:::" + e.Bucket}, detail})
}

// TestEvent is the body that S3 sends when a notification is configured.
func TestEvent(bucket string) []byte {
	return plain(struct {
		Service, Event, Time, Bucket string
		Request                      string `json:"RequestId"`
		Host                         string `json:"HostId"`
	}{
		"Amazon S3", "s3:TestEvent", time.Now().UTC().Format(millis), bucket, strings.ToUpper(uuid()[:8]), uuid(),
	})
}

// plain is JSON without the escapes for HTML, as AWS writes it.
func plain(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // only strings and numbers are given to it
	}
	return bytes.TrimSpace(b.Bytes())
}
