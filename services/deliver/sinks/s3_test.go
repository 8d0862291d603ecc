package sinks

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
)

func init() { harnesses["s3"] = s3World }

const awsSecret = "aws-s3cr3t"

func awsAt(url string) awsclient.Config {
	return awsclient.Config{Region: "us-east-1", EndpointURL: url, AccessKey: "AKIATEST", SecretKey: config.NewSecret(awsSecret)}
}

func newCloud(t testing.TB, o cloud.Options) *cloud.Cloud {
	t.Helper()
	c, err := cloud.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CreateBucket("out", cloud.BucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return c
}

// when has every call suffer a fault, and returns what ends that.
func when(c *cloud.Cloud, f cloud.Fault) func() {
	c.SetFault(func(string, string, string) cloud.Fault { return f })
	return func() { c.SetFault(nil) }
}

// selfSigned is a TLS server's side with a certificate that nobody vouches for.
func selfSigned() *tls.Config {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: s.TLS.Certificates}
}

func openedS3(t testing.TB, cfg S3Config) *s3Sink {
	t.Helper()
	s, err := openS3(t.Context(), cfg, Deps{Destination: "store"})
	if err != nil {
		t.Fatal(err)
	}
	return s.(*s3Sink)
}

// s3World stores each batch as an object of its own: what is held is in the tests of s3.
func s3World(t *testing.T) *world {
	c := newCloud(t, cloud.Options{})
	cfg := defaultS3()
	cfg.Bucket, cfg.Format, cfg.AWS, cfg.Batch.Age, cfg.Timeout = "out", S3Envelope, awsAt(c.URL()), 0, 2*time.Second
	var other *cloud.Cloud
	return &world{
		sink: openedS3(t, cfg),
		// Keys say nothing of the order in which objects were stored.
		received: func() []string {
			lines := objectLines(t, c)
			number := func(line string) int {
				var e struct{ Event struct{ N int } }
				must(t, json.Unmarshal([]byte(line), &e))
				return e.Event.N
			}
			slices.SortStableFunc(lines, func(a, b string) int { return cmp.Compare(number(a), number(b)) })
			return lines
		},
		secrets:  []string{awsSecret},
		outage:   func() func() { return when(c, cloud.Fault{Status: 503}) },
		denial:   func() func() { return when(c, cloud.Fault{Code: "AccessDenied"}) },
		hang:     func() func() { return when(c, cloud.Fault{Hang: true}) },
		throttle: func() func() { return when(c, cloud.Fault{Code: "SlowDown", RetryAfter: "7"}) },
		// The object is stored, and the answer is lost.
		cut: func() func() { return when(c, cloud.Fault{Cut: -1}) },
		untrusted: func() (Sink, func() bool) {
			other = newCloud(t, cloud.Options{TLS: selfSigned()})
			cfg := cfg
			cfg.AWS = awsAt(other.URL())
			return openedS3(t, cfg), func() bool { return other.Objects("out") > 0 }
		},
		hangs:  15 * time.Second,
		cannot: map[string]string{"partial": "it looks at no event"},
		done: func() {
			c.Close()
			if other != nil {
				other.Close()
			}
		},
	}
}

// objectLines are the lines of all objects.
func objectLines(t testing.TB, c *cloud.Cloud) []string {
	t.Helper()
	var all []string
	for _, key := range c.Keys("out") {
		o, _ := c.Get("out", key)
		all = append(all, linesIn(t, key, o.Body)...)
	}
	return all
}

// linesIn decompresses an object by the ending of its key.
func linesIn(t testing.TB, key string, body []byte) []string {
	t.Helper()
	var r io.Reader = bytes.NewReader(body)
	var err error
	switch {
	case strings.HasSuffix(key, ".gz"):
		r, err = gzip.NewReader(r)
	case strings.HasSuffix(key, ".zst"):
		r, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
	}
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	text, err := io.ReadAll(r)
	if err != nil || len(text) == 0 || text[len(text)-1] != '\n' {
		t.Fatalf("%s: %d bytes, not whole lines: %v", key, len(text), err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// bench is an s3 sink that holds, and its far side.
type s3Bench struct {
	*cloud.Cloud
	*s3Sink
	sent int
}

func newS3Bench(t testing.TB, change func(*S3Config)) *s3Bench {
	t.Helper()
	c := newCloud(t, cloud.Options{})
	cfg := defaultS3()
	cfg.Bucket, cfg.Format, cfg.AWS, cfg.Batch.Age, cfg.Timeout = "out", S3Envelope, awsAt(c.URL()), time.Hour, 5*time.Second
	if change != nil {
		change(&cfg)
	}
	b := &s3Bench{Cloud: c, s3Sink: openedS3(t, cfg)}
	t.Cleanup(func() {
		must(t, b.s3Sink.Close())
		c.Close()
	})
	return b
}

// s3Held is a batch that is with the sink.
type s3Held struct {
	released chan struct{}
	result   chan Result
}

// give delivers a batch, and returns once the sink has taken it over or refused it.
func (b *s3Bench) give(ctx context.Context, batch Batch) s3Held {
	h := s3Held{make(chan struct{}), make(chan Result, 1)}
	batch = NewBatch(bytes.Clone(batch.data), batch.items)
	released := sync.OnceFunc(func() {
		clear(batch.data) // what still reads it now would store zeros
		close(h.released)
	})
	go func() {
		res := b.Deliver(ctx, batch.Releasing(released))
		h.result <- res
		released()
	}()
	<-h.released
	return h
}

// next is a batch of n events whose documents are so long, and do not compress.
func (b *s3Bench) next(n, size int) Batch {
	docs := make([]string, n)
	for i := range docs {
		docs[i] = fmt.Sprintf(`{"n":%d,"p":%q,"pad":%q}`, b.sent+i, secretPayload, s3Noise(uint64(b.sent+i+1), size))
	}
	batch := batchOf(b.s3Sink, b.sent, docs...)
	b.sent += n
	return batch
}

// s3Noise is text of up to 512 KiB that does not compress to less than three quarters,
// another one for each seed.
func s3Noise(seed uint64, size int) string {
	base := s3NoiseBase()
	at := int(seed * 104729 % uint64(len(base)-size))
	return base[at : at+size]
}

var s3NoiseBase = sync.OnceValue(func() string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"
	seed := uint64(4711)
	out := make([]byte, 1<<20)
	for i := range out {
		seed ^= seed << 13
		seed ^= seed >> 7
		seed ^= seed << 17
		out[i] = letters[seed%64]
	}
	return string(out)
})

func (h s3Held) want(t *testing.T, v Verdict) Result {
	t.Helper()
	res := <-h.result
	if res.Verdict != v {
		t.Fatalf("got %v: %v", res.Verdict, res.Err)
	}
	return res
}

// once fails unless each of the events sent is stored once.
func (b *s3Bench) once(t *testing.T) {
	t.Helper()
	expect(t, &world{received: func() []string { return objectLines(t, b.Cloud) }}, b.sent)
}

// wait waits for a state of the far side.
func (b *s3Bench) wait(t *testing.T, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	must(t, b.Wait(ctx, cond))
}

// Batches that are held become one object, which tells what is in it.
// covers: F-31, OPC-5, OPC-10, OPC-12, LIM-24
func TestS3Holds(t *testing.T) {
	b := newS3Bench(t, nil)
	var all []s3Held
	for range 5 {
		all = append(all, b.give(t.Context(), b.next(100, 100)))
	}
	if n := b.Objects("out"); n != 0 {
		t.Fatalf("%d objects before anything is due", n)
	}
	b.Hurry()
	for _, h := range all {
		h.want(t, Done)
	}
	b.once(t)
	keys := b.Keys("out")
	if len(keys) != 1 || !strings.HasPrefix(keys[0], "2026/01/05/0744-") || !strings.HasSuffix(keys[0], ".json.gz") {
		t.Fatalf("keys %q", keys)
	}
	o, _ := b.Get("out", keys[0])
	sum := sha256.Sum256(o.Body)
	want := map[string]string{
		"Event-Count": "500", "Sha256": hex.EncodeToString(sum[:]), "First-Event-Time": "2026-01-05T07:44:54.12Z", "Last-Event-Time": "2026-01-05T07:44:54.12Z",
	}
	if fmt.Sprint(o.Metadata) != fmt.Sprint(want) || o.ContentType != "application/gzip" || o.ContentEncoding != "" {
		t.Errorf("%v %q %q", o.Metadata, o.ContentType, o.ContentEncoding)
	}
	if n := b.Calls("CreateMultipartUpload"); n != 0 {
		t.Errorf("%d uploads in parts", n)
	}
}

// An object is due when it is old, or has as much as it may have, whatever comes first.
// covers: F-31, OPC-10
func TestS3Due(t *testing.T) {
	for name, change := range map[string]func(*S3Config){
		"age":          func(c *S3Config) { c.Batch.Age = 100 * time.Millisecond },
		"events":       func(c *S3Config) { c.Batch.Events = 30 },
		"bytes":        func(c *S3Config) { c.Batch.Bytes = 3 * config.KiB },
		"stored bytes": func(c *S3Config) { c.ObjectBytes = config.MiB; c.Compression = S3Plain },
	} {
		t.Run(name, func(t *testing.T) {
			b := newS3Bench(t, change)
			size := 200
			if name == "stored bytes" {
				size = 60_000
			}
			first := b.give(t.Context(), b.next(20, size))
			second := b.give(t.Context(), b.next(10, size))
			first.want(t, Done) // nobody hurries
			b.Hurry()
			second.want(t, Done)
			b.once(t)
		})
	}
}

// No object is larger than it may be, as it is stored and before compression.
// Guards against batches that end far from their limits.
func TestS3LimitsHold(t *testing.T) {
	b := newS3Bench(t, func(c *S3Config) { c.ObjectBytes = 2 * config.MiB; c.Batch.Bytes = 5 * config.MiB })
	var all []s3Held
	for range 40 {
		all = append(all, b.give(t.Context(), b.next(20, 20_000)))
	}
	b.Hurry()
	for _, h := range all {
		h.want(t, Done)
	}
	b.once(t)
	keys := b.Keys("out")
	for i, key := range keys {
		o, _ := b.Get("out", key)
		if len(o.Body) > 2<<20 || len(o.Body) < 1<<20 && i > 0 && i < len(keys)-1 {
			t.Errorf("%s has %d bytes", key, len(o.Body))
		}
	}
}

// fails waits until an upload has failed.
func (b *s3Bench) fails() {
	for {
		b.mu.Lock()
		failing, changed := b.failing(), b.changed
		b.mu.Unlock()
		if failing != nil {
			return
		}
		<-changed
	}
}

// A large object is uploaded while it grows, in equal parts, and memory does not grow
// with it.
// covers: F-31
func TestS3Parts(t *testing.T) {
	b := newS3Bench(t, func(c *S3Config) { c.Compression = S3Plain })
	var all []s3Held
	most := int64(0)
	for range 20 {
		all = append(all, b.give(t.Context(), b.next(30, 100_000)))
		most = max(most, b.pending.Load())
	}
	b.wait(t, func() bool { return b.Calls("UploadPart") >= 6 })
	if n := b.Objects("out"); n != 0 {
		t.Fatalf("%d objects before anything is due", n)
	}
	b.Hurry()
	for _, h := range all {
		h.want(t, Done)
	}
	b.once(t)
	if b.Objects("out") != 1 || len(b.Uploads("out")) != 0 || b.Calls("UploadPart") != 8 {
		t.Errorf("%d objects, %d uploads left, %d parts", b.Objects("out"), len(b.Uploads("out")), b.Calls("UploadPart"))
	}
	if most > mostOfS3 || b.pending.Load() != 0 {
		t.Errorf("%d bytes in memory at most, %d at the end", most, b.pending.Load())
	}
}

// While an object cannot be uploaded no batch is taken, so that the outage shows; what
// is held stays, and gets there when the outage ends.
// covers: OPC-24, VOI-29
func TestS3Outage(t *testing.T) {
	for name, tt := range map[string]struct {
		fault   cloud.Fault
		verdict Verdict
	}{
		"outage": {cloud.Fault{Status: 503}, Retry},
		"denied": {cloud.Fault{Code: "AccessDenied"}, Stop},
		"KMS":    {cloud.Fault{Status: 400, Code: "KMS.DisabledException"}, Stop},
		"gone":   {cloud.Fault{Code: "NoSuchBucket"}, Stop},
	} {
		t.Run(name, func(t *testing.T) {
			b := newS3Bench(t, func(c *S3Config) { c.Compression = S3Plain })
			heal := when(b.Cloud, tt.fault)
			var all []s3Held
			for range 3 { // 9 MB: a part is full with the last
				all = append(all, b.give(t.Context(), b.next(30, 100_000)))
			}
			b.fails()
			batch := b.next(30, 100_000)
			for range 3 {
				res := b.give(t.Context(), batch).want(t, tt.verdict)
				if class := map[Verdict]fault.Class{Retry: fault.Retry, Stop: fault.Stop}[tt.verdict]; fault.ClassOf(res.Err) != class {
					t.Errorf("class %v: %v", fault.ClassOf(res.Err), res.Err)
				}
			}
			for _, h := range all {
				if len(h.result) > 0 {
					t.Fatalf("what was held came back: %v", <-h.result)
				}
			}
			heal()
			last := b.give(t.Context(), batch)
			for _, h := range all { // completed at once, so that the breaker closes
				h.want(t, Done)
			}
			b.Hurry()
			last.want(t, Done)
			b.once(t)
		})
	}
}

// A lifecycle rule has aborted the upload: its events are to be read again.
func TestS3LostUpload(t *testing.T) {
	b := newS3Bench(t, func(c *S3Config) { c.Compression = S3Plain })
	first, second := b.next(100, 100_000), b.next(10, 100)
	one := b.give(t.Context(), first)
	b.wait(t, func() bool { return b.Calls("UploadPart") == 1 && len(b.Uploads("out")) == 1 })
	two := b.give(t.Context(), second)
	b.AbortUploads("out")
	b.Hurry()
	for _, h := range []s3Held{one, two} {
		if res := h.want(t, Retry); fault.CodeOf(res.Err) != "deliver.s3_upload_lost" {
			t.Errorf("%v", res.Err)
		}
	}
	one, two = b.give(t.Context(), first), b.give(t.Context(), second)
	b.Hurry()
	one.want(t, Done)
	two.want(t, Done)
	b.once(t)
}

// The object is completed and the answer lost: it is found again.
func TestS3LostAnswer(t *testing.T) {
	for _, op := range []string{"CompleteMultipartUpload", "UploadPart", "CreateMultipartUpload", "PutObject"} {
		t.Run(op, func(t *testing.T) {
			b := newS3Bench(t, func(c *S3Config) { c.Compression = S3Plain })
			var once sync.Once
			b.SetFault(func(asked, _, _ string) (f cloud.Fault) {
				if asked == op {
					once.Do(func() { f.Cut = -1 })
				}
				return f
			})
			size := 100_000
			if op == "PutObject" {
				size = 100
			}
			h := b.give(t.Context(), b.next(200, size))
			b.Hurry()
			h.want(t, Done)
			b.once(t)
			if n := b.Objects("out"); n != 1 {
				t.Errorf("%d objects", n)
			}
		})
	}
}

// When all who wait have gone, the object is given up, and nothing of it stays.
func TestS3Abandoned(t *testing.T) {
	for name, end := range map[string]func(b *s3Bench, cancel func()){
		"cancelled": func(_ *s3Bench, cancel func()) { cancel() },
		"closed":    func(b *s3Bench, cancel func()) { cancel(); _ = b.s3Sink.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			b := newS3Bench(t, func(c *S3Config) { c.Compression = S3Plain })
			ctx, cancel := context.WithCancel(t.Context())
			h := b.give(ctx, b.next(100, 100_000))
			b.wait(t, func() bool { return b.Calls("UploadPart") == 1 })
			end(b, cancel)
			if res := h.want(t, Retry); !errors.Is(res.Err, context.Canceled) {
				t.Errorf("%v", res.Err)
			}
			b.wait(t, func() bool { return len(b.Uploads("out")) == 0 })
			if n := b.Objects("out"); n != 0 {
				t.Errorf("%d objects", n)
			}
		})
	}
}

// One that gives up does not take others along.
func TestS3OthersStay(t *testing.T) {
	b := newS3Bench(t, nil)
	stays := b.give(t.Context(), b.next(10, 100))
	ctx, cancel := context.WithCancel(t.Context())
	goes := b.give(ctx, batchOf(b.s3Sink, 5, plain(5, 5)...))
	cancel()
	goes.want(t, Retry)
	b.Hurry()
	stays.want(t, Done)
	if lines := objectLines(t, b.Cloud); len(lines) != 15 { // again, with the same ids
		t.Errorf("%d lines", len(lines))
	}
}

// Events of different folders go to different objects; when there are too many, the
// oldest are completed.
// covers: F-31
func TestS3Partitions(t *testing.T) {
	const sources = 3 * mostOpen
	b := newS3Bench(t, func(c *S3Config) {
		c.Prefix, c.Key = "siem/tenant-a", "{source}/{type}/{account}/{region}/{yyyy}-{MM}-{dd}/{HH}{mm}-{id}"
	})
	var data []byte
	var items []Item
	for i := range 2 * sources {
		e := event(i, plain(i, 1)[0])
		e.Source = fmt.Sprintf("s %d", i%sources)
		start := len(data)
		data = b.Append(data, e)
		items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
	}
	h := b.give(t.Context(), NewBatch(data, items))
	if open := len(b.open); open > mostOpen {
		t.Errorf("%d objects are open", open)
	}
	b.Hurry()
	h.want(t, Done)
	keys := b.Keys("out")
	if len(keys) != sources || !strings.HasPrefix(keys[0], "siem/tenant-a/s_0/a.b/123456789012/eu-west-1/2026-01-05/0744-") {
		t.Errorf("%d objects: %s", len(keys), keys[0])
	}
	if n := len(objectLines(t, b.Cloud)); n != 2*sources {
		t.Errorf("%d lines", n)
	}
}

// The same events stored again replace the object; others never do.
// covers: F-31
func TestS3KeysAreOfEvents(t *testing.T) {
	store := func(t *testing.T, b *s3Bench, batches ...Batch) []string {
		t.Helper()
		var all []s3Held
		for _, batch := range batches {
			all = append(all, b.give(t.Context(), batch))
		}
		b.Hurry()
		for _, h := range all {
			h.want(t, Done)
		}
		return b.Keys("out")
	}
	b := newS3Bench(t, nil)
	first, second := b.next(10, 100), b.next(10, 100)
	one := store(t, b, first, second)
	if again := store(t, b, first, second); !slices.Equal(one, again) || len(one) != 1 {
		t.Errorf("keys %q and then %q", one, again)
	}
	if fewer := store(t, b, first); len(fewer) != 2 {
		t.Errorf("an object of fewer events replaced one: %q", fewer)
	}
	large := newS3Bench(t, func(c *S3Config) { c.Compression = S3Plain })
	first, second = large.next(100, 100_000), large.next(10, 100)
	store(t, large, first, second)
	if keys := store(t, large, first); len(keys) != 2 {
		t.Errorf("an object of fewer events replaced one: %q", keys)
	}
}

// Nothing is stored where there is nothing to store.
// covers: OPC-11
func TestS3NothingIsEmpty(t *testing.T) {
	b := newS3Bench(t, func(c *S3Config) { c.Batch.Age = 10 * time.Millisecond })
	b.Hurry()
	h := b.give(t.Context(), b.next(1, 10))
	h.want(t, Done)
	b.Hurry()
	must(t, b.s3Sink.Close())
	if n := b.Calls("PutObject"); n != 1 {
		t.Errorf("%d puts", n)
	}
}

// covers: F-31, OPC-5
func TestS3Asks(t *testing.T) {
	const key = "arn:aws:kms:us-east-1:123456789012:key/k"
	for _, large := range []bool{false, true} {
		b := newS3Bench(t, func(c *S3Config) {
			c.SSE, c.KMSKeyID, c.BucketKey, c.StorageClass, c.ACL, c.Compression = S3KMS, key, true, "STANDARD_IA", "bucket-owner-full-control", S3Plain
		})
		size := 10
		if large {
			size = 100_000
		}
		h := b.give(t.Context(), b.next(100, size))
		b.Hurry()
		h.want(t, Done)
		o, _ := b.Get("out", b.Keys("out")[0])
		if o.Encryption != "aws:kms" || o.KMSKey != key || !o.BucketKey || o.StorageClass != "STANDARD_IA" || o.ACL != "bucket-owner-full-control" || o.ContentType != "application/x-ndjson" {
			t.Errorf("large %v: %+v", large, o)
		}
	}
}

// covers: F-31, F-3, MDA-2, MDA-4, MDA-9, MDA-10, MDA-11, MDA-20, OPC-6, LIM-25, LIM-26
func TestS3Lines(t *testing.T) {
	id := messages.NewID([]byte("x"))
	tests := []struct{ name, doc, json, syslog string }{
		{"object", `{"type":"Device","log_type":"added"}`, `{"type":"Device","log_type":"added","event_id":"ID"}`, `"type":"Device","log_type":"added","event_id":"ID"`},
		{"empty", `{}`, `{"event_id":"ID"}`, `"event_id":"ID"`},
		{"spaces", " { \"a\" : \"b, c\" } ", `{ "a" : "b, c","event_id":"ID"}`, `"a":"b, c","event_id":"ID"`},
		{"several lines", "{\n\"a\": 1,\n\"b\": [1, 2]\n}\n", `{"a":1,"b":[1,2],"event_id":"ID"}`, `"a":1,"b":[1,2],"event_id":"ID"`},
		{"quotes", `{"details":"a \"b\" \\ {c}"}`, `{"details":"a \"b\" \\ {c}","event_id":"ID"}`, `"details":"a \"b\" \\ {c}","event_id":"ID"`},
		{"has one", `{"event_id":"7"}`, `{"event_id":"7","penstock_id":"ID"}`, `"event_id":"7","penstock_id":"ID"`},
		{"has one inside", `{"a":{"event_id":"7"}}`, `{"a":{"event_id":"7"},"event_id":"ID"}`, `"a":{"event_id":"7"},"event_id":"ID"`},
		{"array", `[1]`, `{"event":[1],"event_id":"ID"}`, `"event":[1],"event_id":"ID"`},
		{"text", `"{"`, `{"event":"{","event_id":"ID"}`, `"event":"{","event_id":"ID"`},
		{"nothing", ``, `{"event":null,"event_id":"ID"}`, `"event":null,"event_id":"ID"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for bare, want := range map[bool]string{false: tt.json, true: tt.syslog} {
				got := string(appendIdentified([]byte("before"), &Event{ID: id, Doc: []byte(tt.doc)}, bare))
				if want = "before" + strings.ReplaceAll(want, "ID", id.String()) + "\n"; got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
			}
		})
	}
}

// What is written is one line and valid JSON with the id, and with the braces put back
// both forms hold the same.
func FuzzS3Lines(f *testing.F) {
	for _, doc := range []string{`{}`, `{"a":"\u0000"}`, `{"event_id":1}`, `[{}]`, `" "`, "{\n}", `{"a":{"event_id":"\""}}`} {
		f.Add(doc)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		if !json.Valid([]byte(doc)) {
			return // no document
		}
		e := &Event{ID: messages.NewID([]byte(doc)), Doc: []byte(doc)}
		line, bare := appendIdentified(nil, e, false), appendIdentified(nil, e, true)
		if bytes.Count(line, []byte("\n")) != 1 || bytes.Count(bare, []byte("\n")) != 1 || bytes.ContainsAny(line[:len(line)-1], "\r\n") {
			t.Fatalf("%q, %q", line, bare)
		}
		var one, two map[string]any
		if err := json.Unmarshal(line, &one); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if err := json.Unmarshal([]byte("{"+strings.TrimSuffix(string(bare), "\n")+"}"), &two); err != nil {
			t.Fatalf("%q: %v", bare, err)
		}
		if fmt.Sprint(one) != fmt.Sprint(two) || one["event_id"] != e.ID.String() && one["penstock_id"] != e.ID.String() {
			t.Errorf("%q, %q", line, bare)
		}
	})
}

// covers: F-31
func TestS3Compressions(t *testing.T) {
	for _, packing := range []S3Compression{S3Auto, S3Gzip, S3Zstd, S3Plain} {
		t.Run(string(packing), func(t *testing.T) {
			b := newS3Bench(t, func(c *S3Config) { c.Compression = packing })
			one, two := b.give(t.Context(), b.next(100, 1000)), b.give(t.Context(), b.next(100, 1000))
			b.Hurry()
			one.want(t, Done)
			two.want(t, Done)
			b.once(t)
			if key := b.Keys("out")[0]; !strings.HasSuffix(key, map[S3Compression]string{S3Auto: ".json.gz", S3Gzip: ".json.gz", S3Zstd: ".json.zst", S3Plain: ".json"}[packing]) {
				t.Error(key)
			}
		})
	}
}

// covers: F-31
func TestS3Parquet(t *testing.T) {
	for _, packing := range []S3Compression{S3Auto, S3Zstd, S3Gzip, S3Snappy, S3Plain} {
		t.Run(string(packing), func(t *testing.T) {
			b := newS3Bench(t, func(c *S3Config) { c.Format, c.Compression = S3Parquet, packing })
			size := 100
			if packing == S3Auto {
				size = 200_000 // several row groups
			}
			one, two := b.give(t.Context(), b.next(100, size)), b.give(t.Context(), b.next(100, 100))
			strange := event(b.sent, "[]")
			strange.Time, strange.Account, strange.Region, strange.Type = 0, "", "", "x.y"
			three := b.give(t.Context(), NewBatch(b.Append(nil, strange), []Item{{ID: strange.ID, End: len(b.Append(nil, strange))}}))
			b.Hurry()
			for _, h := range []s3Held{one, two} {
				h.want(t, Done)
			}
			three.want(t, Done)
			rows := 0
			for _, key := range b.Keys("out") {
				if !strings.HasSuffix(key, ".parquet") {
					t.Error(key)
				}
				o, _ := b.Get("out", key)
				f, err := parquet.OpenFile(bytes.NewReader(o.Body), int64(len(o.Body)))
				must(t, err)
				if got := f.Schema().String(); strings.Contains(key, "0744") && got != parquetSchema {
					t.Errorf("schema %s", got)
				}
				all, err := parquet.Read[s3Row](bytes.NewReader(o.Body), int64(len(o.Body)))
				must(t, err)
				for _, r := range all {
					rows++
					if r.ID == strange.ID.String() {
						if r.Time != 0 || r.Account != "" || r.Type != "x.y" || string(r.Event) != "[]" {
							t.Errorf("%+v", r)
						}
						continue
					}
					var doc struct{ N int }
					must(t, json.Unmarshal(r.Event, &doc))
					if r.ID != messages.NewID(fmt.Append(nil, doc.N)).String() || r.Type != "a.b" || r.Source != "src" || r.Account != "123456789012" || r.Region != "eu-west-1" || r.Time != 1_767_599_094_120_000 {
						t.Errorf("row %+v", r)
					}
				}
			}
			if rows != b.sent+1 {
				t.Errorf("%d rows, want %d", rows, b.sent+1)
			}
		})
	}
}

const parquetSchema = `message s3Row {
	required binary id (STRING);
	required binary type (STRING);
	optional int64 time (TIMESTAMP(isAdjustedToUTC=true,unit=MICROS));
	required binary source (STRING);
	required binary account (STRING);
	required binary region (STRING);
	required binary event (STRING);
}`

// covers: OPC-5, OPC-6
func TestS3Problems(t *testing.T) {
	tests := []struct {
		name   string
		change func(*S3Config)
		want   string // empty: none
	}{
		{"nothing but a bucket", func(*S3Config) {}, ""},
		{"no bucket", func(c *S3Config) { c.Bucket = "" }, "bucket: missing"},
		{"an address", func(c *S3Config) { c.Bucket = "s3://logs" }, "bucket: "},
		{"a placeholder in the prefix", func(c *S3Config) { c.Prefix = "{yyyy}" }, "prefix: "},
		{"no such placeholder", func(c *S3Config) { c.Key = "{day}-{id}" }, "key: there is a brace"},
		{"a brace", func(c *S3Config) { c.Key = "a}{id}" }, "key: there is a brace"},
		{"an open brace", func(c *S3Config) { c.Key = "{id}{yyyy" }, "key: there is a brace"},
		{"no id", func(c *S3Config) { c.Key = "{yyyy}" }, "key: {id} is not in the last part"},
		{"an id too early", func(c *S3Config) { c.Key = "{id}/x" }, "key: {id} is not in the last part"},
		{"a slash first", func(c *S3Config) { c.Key = "/{id}" }, "key: a key begins with no slash"},
		{"a slash first in the prefix", func(c *S3Config) { c.Prefix = "/a" }, "key: a key begins with no slash"},
		{"long", func(c *S3Config) { c.Prefix = strings.Repeat("x", 600) }, "key: more than 512 bytes"},
		{"snappy lines", func(c *S3Config) { c.Compression = S3Snappy }, "compression: "},
		{"snappy", func(c *S3Config) { c.Compression, c.Format = S3Snappy, S3Parquet }, ""},
		{"no events", func(c *S3Config) { c.Batch.Events = 0 }, "batch.events: "},
		{"small", func(c *S3Config) { c.ObjectBytes = 1 }, "object_bytes: "},
		{"a key without kms", func(c *S3Config) { c.KMSKeyID, c.BucketKey = "k", true }, "kms_key_id: "},
		{"no such class", func(c *S3Config) { c.StorageClass = "COLD" }, "storage_class: "},
		{"public", func(c *S3Config) { c.ACL = "public-read" }, "acl: "},
		{"no time", func(c *S3Config) { c.Timeout = 0 }, "timeout: "},
		{"half a key pair", func(c *S3Config) { c.AWS.AccessKey = "a" }, "aws.access_secret: missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := defaultS3()
			c.Bucket = "logs"
			tt.change(&c)
			got := fmt.Sprint(config.Check(c))
			if tt.want == "" && got != "<nil>" || !strings.Contains(got, tt.want) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// covers: F-31
func TestS3Keys(t *testing.T) {
	tests := []struct{ name, prefix, key, want string }{
		{"default", "", defaultS3().Key, "2026/01/05/0744-ID"},
		{"prefix", "a/b/", "{id}", "a/b/ID"},
		{"all", "p", "{type}/{source}/{account}/{region}/{yyyy}/{MM}/{dd}/{HH}/{mm}/{yyyy}{MM}{dd}T{HH}{mm}-{region}-{id}", "p/a.b/src_/unknown/_._etc/2026/01/05/07/44/20260105T0744-_._etc-ID"},
		{"twice", "", "{id}-{id}", "ID-ID"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := parseKey(tt.prefix, tt.key)
			must(t, err)
			e := &Event{Type: "a.b", Source: "src ", Region: "../etc", Time: 1_767_599_094_120_000_000}
			if got := keyOf(l.partition(e), e.Time, "ID"); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if l.partition(e) != l.partition(&Event{Type: "a.b", Source: "src ", Region: "../etc", Time: e.Time}) {
				t.Error("the second one differs")
			}
		})
	}
}

// A value of an event opens no folder and stays short, whatever it is.
func FuzzS3Keys(f *testing.F) {
	f.Add("a/b", int64(0))
	f.Add("{id}", int64(-1))
	f.Add("..", int64(1<<62))
	f.Fuzz(func(t *testing.T, source string, at int64) {
		l, err := parseKey("p", "{source}/{yyyy}{MM}{dd}/{source}-{id}")
		must(t, err)
		key := keyOf(l.partition(&Event{Source: source, Time: at}), at, "ID")
		folders := strings.Split(key, "/")
		if len(folders) != 4 || folders[0] != "p" || folders[1] == "" || folders[1][0] == '.' || !strings.HasSuffix(key, "-ID") || len(key) > 250 || strings.ContainsAny(key, "{} ") {
			t.Errorf("%q", key)
		}
	})
}

func BenchmarkS3(b *testing.B) {
	for _, tt := range []struct {
		format  S3Format
		packing S3Compression
	}{{S3Envelope, S3Gzip}, {S3Envelope, S3Zstd}, {S3Envelope, S3Plain}, {S3JSON, S3Gzip}, {S3Syslog, S3Gzip}, {S3Parquet, S3Zstd}} {
		b.Run(string(tt.format)+"/"+string(tt.packing), func(b *testing.B) { benchS3(b, tt.format, tt.packing) })
	}
}

func benchS3(b *testing.B, format S3Format, packing S3Compression) {
	b.Helper()
	server := httptest.NewServer(http.HandlerFunc(s3Swallow))
	defer server.Close()
	cfg := defaultS3()
	cfg.Bucket, cfg.Format, cfg.Compression, cfg.AWS, cfg.Batch.Age = "out", format, packing, awsAt(server.URL), time.Hour
	s := openedS3(b, cfg)
	size := 0
	events := make([]*Event, 20_000)
	for i, doc := range s3Trails(len(events)) {
		events[i] = event(i, "")
		events[i].Doc = doc
		size += len(doc)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	began := time.Now()
	rounds := 0
	var held sync.WaitGroup
	slots := make(chan struct{}, 4)
	for b.Loop() {
		rounds++
		for at := 0; at < len(events); {
			data := make([]byte, 0, 5<<20)
			items := make([]Item, 0, 8000)
			for ; at < len(events) && len(data) < int(s.Limits().Bytes); at++ {
				e := events[at]
				start := len(data)
				data = s.Append(data, e)
				items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
			}
			slots <- struct{}{}
			free := sync.OnceFunc(func() { <-slots })
			held.Go(func() {
				defer free()
				if res := s.Deliver(b.Context(), NewBatch(data, items).Releasing(free)); res.Verdict != Done {
					b.Errorf("%v: %v", res.Verdict, res.Err)
				}
			})
		}
	}
	for range 4 { // all are taken
		slots <- struct{}{}
	}
	s.Hurry()
	held.Wait()
	b.ReportMetric(float64(rounds*len(events))/time.Since(began).Seconds(), "events/s")
	must(b, s.Close())
}

// s3Swallow is the least of an S3.
func s3Swallow(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	q := r.URL.Query()
	w.Header().Set("Etag", `"e"`)
	switch {
	case q.Has("uploads"):
		_, _ = io.WriteString(w, `<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>`)
	case r.Method == http.MethodPost:
		_, _ = io.WriteString(w, `<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>`)
	}
}

// trails are documents of the size and shape of CloudTrail's.
func s3Trails(n int) [][]byte {
	all := make([][]byte, n)
	for i := range all {
		all[i] = fmt.Appendf(nil, `{"eventVersion":"1.08","userIdentity":{"type":"AssumedRole","principalId":"AROA%s:session-%d","arn":"arn:aws:sts::123456789012:assumed-role/role-%d/session-%d","accountId":"123456789012","accessKeyId":"ASIA%s"},"eventTime":"2026-01-05T07:%02d:%02dZ","eventSource":"ec2.amazonaws.com","eventName":"DescribeInstances","awsRegion":"eu-west-1","sourceIPAddress":"192.0.2.%d","userAgent":"aws-sdk-go-v2/1.47.7 os/linux lang/go#1.26","requestParameters":{"instancesSet":{"items":[{"instanceId":"i-%s"}]},"filterSet":{}},"responseElements":null,"requestID":"%s","eventID":"%s","readOnly":true,"eventType":"AwsApiCall","managementEvent":true,"recipientAccountId":"123456789012","eventCategory":"Management","tlsDetails":{"tlsVersion":"TLSv1.3","cipherSuite":"TLS_AES_128_GCM_SHA256","clientProvidedHostHeader":"ec2.eu-west-1.amazonaws.com"}}`,
			s3Noise(uint64(i%97+1), 16), i%13, i%17, i%13, s3Noise(uint64(i%89+1), 16), i/60%60, i%60, i%250, s3Noise(uint64(i+1), 17), s3Noise(uint64(i+7), 36), s3Noise(uint64(i+9), 36))
	}
	return all
}

// Two destinations that write to one place do not replace each other's objects, though
// they hold the same events.
// covers: F-31
func TestS3KeysAreOfDestinations(t *testing.T) {
	for name, age := range map[string]time.Duration{"held": time.Hour, "each": 0} {
		t.Run(name, func(t *testing.T) {
			b := newS3Bench(t, func(c *S3Config) { c.Batch.Age = age })
			other, err := openS3(t.Context(), b.cfg, Deps{Destination: "masked"})
			must(t, err)
			defer func() { must(t, other.Close()) }()
			batch := b.next(10, 100)
			for _, s := range []*s3Sink{b.s3Sink, other.(*s3Sink)} {
				h := (&s3Bench{Cloud: b.Cloud, s3Sink: s}).give(t.Context(), batch)
				s.Hurry()
				h.want(t, Done)
			}
			if keys := b.Keys("out"); len(keys) != 2 {
				t.Errorf("one destination has replaced the object of the other: %q", keys)
			}
		})
	}
}

// An attempt that is asked for right after one has failed is made, however long the
// pause is that was begun then.
func TestS3AskedInPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &s3Sink{cfg: defaultS3(), log: slog.New(slog.DiscardHandler), changed: make(chan struct{}), open: map[string]*s3Object{}, objects: map[*s3Object]struct{}{}}
		o := s.object(&s3Group{partition: "p"})
		o.ctx = t.Context()
		began := time.Now()
		o.poke() // asked for before it failed
		o.fail(errS3Failed.New(nil, "store"))
		o.rest(time.Hour)
		if time.Since(began) < time.Hour {
			t.Error("what was asked for before the attempt had it repeated")
		}
		began = time.Now()
		o.fail(errS3Failed.New(nil, "store"))
		o.poke()
		o.rest(time.Hour)
		if took := time.Since(began); took != 0 {
			t.Errorf("it waited for %v", took)
		}
	})
}

// What objects of parquet need before a row is in them counts, too.
func TestS3ParquetCounts(t *testing.T) {
	b := newS3Bench(t, func(c *S3Config) { c.Format, c.Key = S3Parquet, "{source}/{id}" })
	h := b.give(t.Context(), b.next(1, 100))
	if n := b.pending.Load(); n < rowsBytes {
		t.Errorf("%d bytes count", n)
	}
	b.Hurry()
	h.want(t, Done)
	if n := b.pending.Load(); n != 0 {
		t.Errorf("%d bytes count at the end", n)
	}
}

// What may be in memory is shared by all destinations of the kind.
func TestS3Share(t *testing.T) {
	b := newS3Bench(t, nil)
	open := s3Sinks.Load()
	before := b.mostPending()
	var all []Sink
	for range 9 {
		s, err := openS3(t.Context(), b.cfg, Deps{Destination: "more"})
		must(t, err)
		all = append(all, s)
	}
	if most := b.mostPending(); most != mostOfAllS3/(open+9) {
		t.Errorf("%d bytes for each of %d", most, open+9)
	}
	for _, s := range all {
		must(t, s.Close())
		must(t, s.Close())
	}
	if most := b.mostPending(); most != before {
		t.Errorf("%d bytes when the others are closed, %d before they were opened", most, before)
	}
}
