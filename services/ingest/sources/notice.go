package sources

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of the notice reader. A body within them costs at most a few times its
// own size in memory.
const (
	// maxBody is what an SQS message can hold. Unit: bytes.
	maxBody = 1 << 20
	// maxNesting bounds the envelopes around a notification. Unit: levels.
	maxNesting = 8
	// maxNamed bounds what one message may name. S3 puts one record in a message;
	// more than this is not S3. Unit: records.
	maxNamed = 1000
	// maxKey is the longest object key that S3 allows. Unit: bytes.
	maxKey = 1024
)

// verdict says what a record of a notification asks for.
type verdict uint8

const (
	unknown verdict = iota // no shape that is known
	object                 // an object was created: fetch it
	test                   // proof that the queue is wired
	ignored                // a removal or another event that needs no fetch
	broken                 // a known shape without what it must have
)

// Reasons why nothing is read: a closed list, they are metric labels.
const (
	whyRemoved  = "object_removed"
	whyOther    = "other_event"
	whyEmpty    = "empty_object"
	whyFolder   = "folder_marker"
	whyFiltered = "key_filtered"
	whyNothing  = "no_records"
)

// named is one record of a notification: each has a fate of its own.
type named struct {
	verdict verdict
	bucket  string
	// key is decoded.
	key, version, etag, sequencer, region string
	// size in bytes as claimed, -1 where the notification names none.
	size int64
	// created is when it happened, Unix ns, 0 where unknown.
	created int64
	// why: for ignored one of the reasons above, for broken and unknown words for
	// a person. Never a piece of the body.
	why string
	// raw is the part of the body that says this, form how to make a body of it.
	raw  []byte
	form form
}

// form says how a piece of a notification becomes a notification of its own.
type form uint8

const (
	whole      form = iota // it is one
	s3Record               // an element of Records
	trailEntry             // an element of s3ObjectKey, as a JSON string
)

// body returns a message body that announces n alone, so that what was
// quarantined can be sent again without its neighbours.
func (n *named) body() []byte {
	switch n.form {
	case s3Record:
		return append(append([]byte(`{"Records":[`), n.raw...), `]}`...)
	case trailEntry:
		bucket, err := json.Marshal(n.bucket)
		if err != nil { // strings always marshal
			return n.raw
		}
		b := append([]byte(`{"s3Bucket":`), bucket...)
		return append(append(append(b, `,"s3ObjectKey":[`...), n.raw...), `]}`...)
	case whole:
	}
	return n.raw
}

// notification is what a message body turned out to be.
type notification struct {
	// records is empty when the body is no notification by its shape.
	records []named
	// inner is the body without its SNS envelopes: where there are no records, it
	// may hold events.
	inner []byte
	// id is that of the outermost SNS envelope, with its topic; "" without one.
	id string
	// why tells what kept inner from being a notification.
	why string
}

// mayAnnounce tells without decoding whether readNotice can find an announcement or
// an envelope in body: each has one of these words, unless its keys are escaped.
func mayAnnounce(body []byte) bool {
	for _, word := range announcing {
		if bytes.Contains(body, word) {
			return true
		}
	}
	return false
}

var announcing = [][]byte{
	[]byte("Records"), []byte("Message"), []byte("s3:TestEvent"), []byte("aws.s3"), []byte("s3ObjectKey"), []byte("SubscribeURL"), []byte(`\u`),
}

// readNotice finds out by shape alone what a message body announces, through any
// envelopes: S3 events, direct or by SNS (raw or not) or by EventBridge, S3's
// test event, and CloudTrail's own notice. It never fails: what it does not know
// has no records. The result points into body.
// Source: formats F-5, F-6, F-7; F-9 for CloudTrail's notice.
func readNotice(body []byte) notification {
	n := notification{inner: body}
	for range maxNesting {
		next := n.step()
		if next == nil {
			return n
		}
		n.inner = next
	}
	n.why = "it is nested deeper than " + strconv.Itoa(maxNesting) + " envelopes"
	return n
}

// step judges n.inner. It returns the content of an envelope to go on with, nil
// when all is said.
func (n *notification) step() []byte {
	body := bytes.TrimSpace(bytes.TrimPrefix(n.inner, []byte("\xef\xbb\xbf")))
	if len(body) == 0 {
		n.why = "it is empty"
		return nil
	}
	if s, ok := text(body); ok && strings.HasPrefix(strings.TrimSpace(s), "{") {
		return []byte(s)
	}
	// A map and not a struct: encoding/json matches struct fields whatever their
	// case, and an event with "type" and "message" is no SNS envelope.
	var top map[string]json.RawMessage
	if body[0] != '{' || json.Unmarshal(body, &top) != nil {
		n.why = "it is not one JSON object"
		return nil
	}

	if message, ok := top["Message"]; ok && is(top["Type"], "Notification") {
		if id, ok := text(top["MessageId"]); ok && n.id == "" && id != "" {
			topic, _ := text(top["TopicArn"])
			n.id = topic + " " + id
		}
		if s, ok := text(message); ok {
			if strings.TrimSpace(s) == "CloudTrail validation message." {
				n.records = []named{{verdict: test, size: -1, raw: body}}
				return nil
			}
			return []byte(s)
		}
		return message
	}

	switch {
	case is(top["Event"], "s3:TestEvent") && is(top["Service"], "Amazon S3"):
		bucket, _ := text(top["Bucket"])
		n.records = []named{{verdict: test, bucket: bucket, size: -1, raw: body}}
	case top["Records"] != nil:
		n.direct(body, top["Records"])
	case is(top["source"], "aws.s3") && top["detail"] != nil:
		n.bridged(body, top)
	case top["s3Bucket"] != nil && top["s3ObjectKey"] != nil:
		n.trail(body, top)
	case top["SubscribeURL"] != nil:
		n.records = []named{{
			verdict: unknown, why: "SNS asks for its subscription to be confirmed: visit its SubscribeURL", size: -1, raw: body,
		}}
	default:
		n.why = "its shape is none that announces objects"
	}
	return nil
}

// direct reads S3's own event message. Bodies with other Records (a CloudTrail
// file, say) are no notification.
func (n *notification) direct(body []byte, list json.RawMessage) {
	var records []json.RawMessage
	if json.Unmarshal(list, &records) != nil {
		n.why = "its Records is no array"
		return
	}
	switch {
	case len(records) == 0:
		n.records = []named{{verdict: unknown, why: "its Records is empty", size: -1, raw: body}}
		return
	case len(records) > maxNamed && hasS3(records[:maxNamed]):
		n.records = []named{tooMany(body)}
		return
	}
	all, some := make([]named, 0, min(len(records), maxNamed)), false
	if len(records) <= maxNamed {
		for _, raw := range records {
			r, isS3 := readS3(raw)
			r.raw, r.form = raw, s3Record
			all, some = append(all, r), some || isS3
		}
	}
	if !some {
		n.why = "its Records hold no S3 event"
		return
	}
	n.records = all
}

func tooMany(body []byte) named {
	return named{
		verdict: broken, why: "it names more than " + strconv.Itoa(maxNamed) + " objects", size: -1, raw: body,
	}
}

// hasS3 tells whether at least one record has what makes an S3 event.
func hasS3(records []json.RawMessage) bool {
	var shape struct {
		S3 json.RawMessage `json:"s3"`
	}
	for _, raw := range records {
		shape.S3 = nil
		if json.Unmarshal(raw, &shape) == nil && len(shape.S3) > 0 && shape.S3[0] == '{' {
			return true
		}
	}
	return false
}

// s3Entity says which object a record is about.
type s3Entity struct {
	Bucket struct {
		Name string `json:"name"`
	} `json:"bucket"`
	Object struct {
		Key       string          `json:"key"`
		Size      json.RawMessage `json:"size"`
		ETag      string          `json:"eTag"`
		Version   string          `json:"versionId"`
		Sequencer string          `json:"sequencer"`
	} `json:"object"`
}

// readS3 reads one element of Records, and tells whether it has what makes an S3 event.
// Source: S3 event message structure 2.1 to 2.3.
func readS3(raw []byte) (n named, isS3 bool) {
	var r struct {
		EventVersion string    `json:"eventVersion"`
		EventName    string    `json:"eventName"`
		EventTime    string    `json:"eventTime"`
		Region       string    `json:"awsRegion"`
		S3           *s3Entity `json:"s3"`
	}
	if json.Unmarshal(raw, &r) != nil {
		return named{verdict: broken, why: "a field of it has the wrong type", size: -1}, hasS3([]json.RawMessage{raw})
	}
	if isS3 = r.S3 != nil; !isS3 {
		r.S3 = &s3Entity{}
	}
	n = named{
		verdict: object, bucket: r.S3.Bucket.Name, key: formDecoded(r.S3.Object.Key),
		version: r.S3.Object.Version, etag: strings.Trim(r.S3.Object.ETag, `"`), sequencer: r.S3.Object.Sequencer,
		region: r.Region, size: number(r.S3.Object.Size), created: instant(r.EventTime),
	}
	// MinIO writes the prefix, S3 does not.
	name := strings.TrimPrefix(r.EventName, "s3:")
	major, _, _ := strings.Cut(r.EventVersion, ".")
	switch {
	case major != "" && major != "2":
		n.verdict, n.why = unknown, "its event version is not 2.x"
	case name == "":
		n.verdict, n.why = broken, "it has no eventName"
	case strings.HasPrefix(name, "ObjectCreated:"):
		n.check()
	case strings.HasPrefix(name, "ObjectRemoved:"), strings.HasPrefix(name, "LifecycleExpiration:"):
		n.verdict, n.why = ignored, whyRemoved
	default:
		n.verdict, n.why = ignored, whyOther
	}
	return n, isS3
}

// formDecoded undoes the encoding of a key in a direct event, once: '+' is a
// space, %2B a plus. A key that is not encoded like that is taken as it is: some
// stores that are not S3 do not encode.
func formDecoded(key string) string {
	if decoded, err := url.QueryUnescape(key); err == nil {
		return decoded
	}
	return key
}

// bridged reads an EventBridge envelope of S3. Its keys are not encoded.
func (n *notification) bridged(body []byte, top map[string]json.RawMessage) {
	kind, said := text(top["detail-type"])
	if said && !strings.HasPrefix(kind, "Object ") {
		// Say, "AWS API Call via CloudTrail": an event and no notice.
		n.why = "it is an EventBridge event about something else"
		return
	}
	var d struct {
		Bucket struct {
			Name string `json:"name"`
		} `json:"bucket"`
		Object struct {
			Key       string          `json:"key"`
			Size      json.RawMessage `json:"size"`
			ETag      string          `json:"etag"`
			Version   string          `json:"version-id"`
			Sequencer string          `json:"sequencer"`
		} `json:"object"`
	}
	fits := json.Unmarshal(top["detail"], &d) == nil
	if !said && (!fits || d.Object.Key == "") {
		n.why = "it is an EventBridge event about something else"
		return
	}
	region, _ := text(top["region"])
	at, _ := text(top["time"])
	r := named{
		verdict: object, bucket: d.Bucket.Name, key: d.Object.Key, version: d.Object.Version,
		etag: strings.Trim(d.Object.ETag, `"`), sequencer: d.Object.Sequencer, region: region,
		size: number(d.Object.Size), created: instant(at), raw: body,
	}
	switch {
	case said && kind == "Object Deleted":
		r.verdict, r.why = ignored, whyRemoved
	case said && kind != "Object Created":
		r.verdict, r.why = ignored, whyOther
	case !fits:
		r.verdict, r.why = broken, "a field of its detail has the wrong type"
	default: // also Security Lake's notices, which name no detail-type
		r.check()
	}
	n.records = []named{r}
}

// trail reads the notice that CloudTrail itself sends through SNS. Its keys are
// not encoded, and it names no size.
func (n *notification) trail(body []byte, top map[string]json.RawMessage) {
	bucket, _ := text(top["s3Bucket"])
	var keys []json.RawMessage
	if json.Unmarshal(top["s3ObjectKey"], &keys) != nil {
		keys = []json.RawMessage{top["s3ObjectKey"]}
	}
	switch {
	case len(keys) == 0:
		n.records = []named{{verdict: unknown, why: "its s3ObjectKey is empty", size: -1, raw: body}}
		return
	case len(keys) > maxNamed:
		n.records = []named{tooMany(body)}
		return
	}
	n.records = make([]named, len(keys))
	for i, raw := range keys {
		key, _ := text(raw)
		r := named{verdict: object, bucket: bucket, key: key, size: -1, raw: raw, form: trailEntry}
		r.check()
		n.records[i] = r
	}
}

// check refuses what no S3 object can be called, and lets go what holds nothing.
func (n *named) check() {
	switch {
	case !bucketName(n.bucket):
		n.verdict, n.why = broken, "it names no legal bucket"
	case n.key == "" || len(n.key) > maxKey || !utf8.ValidString(n.key):
		n.verdict, n.why = broken, "it names no legal object key"
	case strings.HasSuffix(n.key, "/"):
		n.verdict, n.why = ignored, whyFolder
	case n.size == 0:
		n.verdict, n.why = ignored, whyEmpty
	}
}

// bucketName keeps ARNs, URLs and paths out of what will become a request. It is
// laxer than S3, whose oldest buckets have upper case letters, underscores and
// up to 255 characters.
func bucketName(s string) bool {
	if len(s) < 3 || len(s) > 255 || s[0] == '.' || strings.Contains(s, "..") {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// text decodes a JSON string.
func text(raw json.RawMessage) (string, bool) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	var s string
	return s, json.Unmarshal(raw, &s) == nil
}

func is(raw json.RawMessage, want string) bool {
	s, ok := text(raw)
	return ok && s == want
}

// number reads a size, quoted or not; -1 is none.
func number(raw json.RawMessage) int64 {
	v, err := strconv.ParseInt(strings.Trim(string(raw), `"`), 10, 64)
	if err != nil || v < 0 {
		return -1
	}
	return v
}

// instant reads an RFC 3339 time into Unix ns; 0 is none.
func instant(s string) int64 {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() < 1970 || t.Year() > 2261 {
		return 0
	}
	return t.UnixNano()
}
