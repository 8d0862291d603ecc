package fetch

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/topology"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const bucket = "log-bucket-a"

// stage is a fetch stage over the real SDK and an S3 endpoint over HTTP.
type stage struct {
	*Fetch
	cloud *cloud.Cloud
	api   *client
}

// client is the real one. Its retries are off: they only take time here.
type client struct {
	*s3.Client
	// refuseVersions answers as S3 does where s3:GetObjectVersion is missing.
	refuseVersions atomic.Bool
	ignoreMatch    atomic.Bool
	versions       atomic.Int32
	region         atomic.Value
}

func (c *client) GetObject(ctx context.Context, in *s3.GetObjectInput, region string) (*s3.GetObjectOutput, error) {
	if in.VersionId != nil {
		c.versions.Add(1)
	}
	if c.refuseVersions.Load() && in.VersionId != nil {
		denied := *in
		denied.Bucket, denied.Key, denied.VersionId = aws.String(bucket), aws.String("denied"), nil
		in = &denied
	}
	if c.ignoreMatch.Load() {
		changed := *in
		changed.IfMatch = nil
		in = &changed
	}
	c.region.Store(region)
	return c.Client.GetObject(ctx, in, func(o *s3.Options) {
		o.Retryer = aws.NopRetryer{}
		if region != "" {
			o.Region = region
		}
	})
}

// choose stands in for the formats: digests by key, CloudTrail by key, else as
// the source says.
func choose(configured, key string, head []byte) (string, framing.Framing, string) {
	switch {
	case configured == "panic" && head != nil:
		panic("a bug in a format")
	case configured == "lines":
		return "text", framing.Framing{Kind: framing.Lines}, ""
	case configured == "fields":
		return "text", framing.Framing{Kind: framing.Lines, Header: framing.Directives}, ""
	case strings.Contains(key, "/CloudTrail-Digest/"):
		return "cloudtrail", framing.Framing{}, "parse.cloudtrail_digest"
	case configured == "json":
		return "json", framing.Framing{Kind: framing.Values}, ""
	case configured == "":
		return "cloudtrail", framing.Framing{Kind: framing.Array, Key: "Records"}, ""
	}
	return configured, framing.Framing{}, ""
}

func newStage(tb testing.TB, change func(*Config)) *stage {
	tb.Helper()
	c, err := cloud.Start(tb.Context(), cloud.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	for _, name := range []string{bucket, "other-bucket"} {
		if err := c.CreateBucket(name, cloud.BucketOptions{}); err != nil {
			tb.Fatal(err)
		}
	}
	put(tb, c, "denied", cloud.Object{Body: []byte("x"), Denied: true})
	real, err := awsclient.S3(tb.Context(), awsclient.Config{
		EndpointURL: c.URL(), Region: c.Region(), AccessKey: "test", SecretKey: config.NewSecret("test"),
	})
	if err != nil {
		tb.Fatal(err)
	}
	s := &stage{cloud: c, api: &client{Client: real}}
	cfg := Defaults()
	cfg.MaxRecord, cfg.MaxLine = 20<<10, 100<<10
	if change != nil {
		change(&cfg)
	}
	deps := Deps{Choose: choose, Sources: map[string]Source{}}
	for _, format := range []string{"", "json", "lines", "fields", "panic"} {
		deps.Sources["trail"+format] = Source{
			Format: format, Allows: func(b string) bool { return b == bucket },
			S3: func(context.Context) (S3, error) { return s.api, nil },
		}
	}
	if s.Fetch, err = New(cfg, deps); err != nil {
		tb.Fatal(err)
	}
	s.pause = time.Millisecond
	return s
}

func put(tb testing.TB, c *cloud.Cloud, key string, o cloud.Object) cloud.Stored {
	tb.Helper()
	stored, err := c.Put(bucket, key, o)
	if err != nil {
		tb.Fatal(err)
	}
	return stored
}

// notice is what ingest stores for an object.
func notice(source, key string) topology.In[*messages.Notice] {
	n := &messages.Notice{Version: 1, Origin: &messages.Origin{
		Pull: messages.NewPull("sqs", "queue", key, "0"), Source: source, Bucket: bucket, Key: key, MessageId: "m-1",
	}}
	return topology.In[*messages.Notice]{
		Value: n, Data: messages.EncodeNotice(n), Subject: topology.NoticeSubject(source), Attempt: 1, Stored: time.Now(),
	}
}

// outcome is what Handle made of a notice, in a form that can be compared.
type outcome struct {
	records []string
	places  []uint64 // their ordinals
	frames  []int    // records in each
	ids     []string
	refused []*messages.Quarantine
	fetched *messages.Fetched
	err     error
}

func (s *stage) handle(tb testing.TB, in topology.In[*messages.Notice]) outcome {
	tb.Helper()
	return s.handleCtx(tb.Context(), tb, in, &topology.Recorder{})
}

func (s *stage) handleCtx(ctx context.Context, tb testing.TB, in topology.In[*messages.Notice], out *topology.Recorder) (o outcome) {
	tb.Helper()
	o.err = s.Handle(ctx, in, out)
	var columns messages.Columns
	for n, m := range out.Messages() {
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			tb.Fatalf("frame %s: %v", m.ID, err)
		}
		body, err := v.Body(nil)
		if err == nil {
			err = v.Columns(&columns)
		}
		if err != nil {
			tb.Fatalf("frame %s: %v", m.ID, err)
		}
		var pull []byte
		var from, to uint64
		if _, err := fmt.Sscanf(m.ID, "%x/%d-%d", &pull, &from, &to); err != nil || !bytes.Equal(pull, in.Value.GetOrigin().GetPull()) ||
			from > columns.Records[0] || to <= columns.Records[v.Len()-1] || v.FrameNo() != uint32(n) {
			tb.Errorf("frame %d of number %d and records %d to %d has the message id %s: %v", n, v.FrameNo(), columns.Records[0], columns.Records[v.Len()-1], m.ID, err)
		}
		if want := topology.RecordSubject(in.Value.GetOrigin().GetSource()); m.Subject != want {
			tb.Errorf("frame goes to %s, want %s", m.Subject, want)
		}
		for i, length := range columns.Lengths {
			o.records = append(o.records, string(body[:length]))
			o.places = append(o.places, columns.Records[i])
			body = body[length:]
		}
		o.frames = append(o.frames, v.Len())
		o.ids = append(o.ids, m.ID)
	}
	o.refused = out.Quarantined()
	for _, f := range out.Facts() {
		o.fetched = f.GetFetched()
	}
	if (o.fetched == nil) != (o.err != nil) {
		tb.Errorf("the ledger gets %v with error %v", o.fetched, o.err)
	}
	if o.fetched != nil {
		o.balance(tb)
	}
	return o
}

// balance checks that every ordinal is accounted for once.
func (o outcome) balance(tb testing.TB) {
	tb.Helper()
	seen := map[uint64]bool{}
	for _, p := range o.places {
		seen[p] = true
	}
	for _, q := range o.refused {
		for i := range q.GetRecords() {
			seen[q.GetRecord()+i] = true
		}
	}
	sum := uint64(len(o.records))
	for _, n := range o.fetched.GetQuarantined() {
		sum += n
	}
	if n := o.fetched.GetRecords(); sum != n || uint64(len(seen)) != n || n > 0 && !seen[n-1] {
		tb.Errorf("%d records by the ledger, %d published or refused at %d places", n, sum, len(seen))
	}
	if int(o.fetched.GetFrames()) != len(o.frames) {
		tb.Errorf("%d frames by the ledger, %d published", o.fetched.GetFrames(), len(o.frames))
	}
}

func pack(tb testing.TB, parts ...string) []byte {
	tb.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		z := gzip.NewWriter(&b)
		if _, err := z.Write([]byte(p)); err != nil {
			tb.Fatal(err)
		}
		if err := z.Close(); err != nil {
			tb.Fatal(err)
		}
	}
	return b.Bytes()
}

func trail(records ...string) string { return `{"Records":[` + strings.Join(records, ",") + `]}` }

// covers: OPC-2, F-0 (limits, gzip by bytes, a bad record never fails its object), F-6
// (skips, missing object), F-9 (digests); pains 3, 4, 8, 21, 22.
func TestObjects(t *testing.T) {
	const a, b, c = `{"eventVersion":"1","eventID":"a"}`, `{"eventVersion":"1","eventID":"b"}`, `{"eventVersion":"1","eventID":"c"}`
	huge := `{"eventVersion":"1","eventID":"` + strings.Repeat("h", 20<<20) + `"}`
	var zst bytes.Buffer
	z, err := zstd.NewWriter(&zst)
	if err == nil {
		_, err = z.Write([]byte(trail(a, b)))
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	packed := pack(t, trail(a, b, c))
	damaged := bytes.Clone(pack(t, trail(a, b, c)+strings.Repeat(" ", 1<<20)))
	damaged[len(damaged)-6] ^= 1 // in the checksum
	type refusal struct {
		code    string
		holds   messages.Quarantine_Holds
		record  uint64
		records uint64
		offset  int64
		length  int64
		payload string // its beginning
		cut     bool
	}
	const (
		thing  = messages.Quarantine_HOLDS_NOTICE
		record = messages.Quarantine_HOLDS_RECORD
		span   = messages.Quarantine_HOLDS_BYTES
	)
	tests := []struct {
		name    string
		source  string // trail
		key     string // "k"
		body    []byte // nil: there is no object
		attempt int    // 9: no more patience
		records []string
		refused []refusal
		end     messages.Fetched_End
		code    string
	}{
		{name: "gzip", body: packed, records: []string{a, b, c}, end: messages.Fetched_END_COMPLETE},
		{name: "gzip under a name that says nothing", key: "x.json", body: packed, records: []string{a, b, c}, end: messages.Fetched_END_COMPLETE},
		{name: "not gzip under .gz", key: "x.json.gz", body: []byte(trail(a)), records: []string{a}, end: messages.Fetched_END_COMPLETE},
		{name: "zstd", body: zst.Bytes(), records: []string{a, b}, end: messages.Fetched_END_COMPLETE},
		{name: "bzip2", body: fromHex(t, bzipped), records: []string{`{"eventVersion":"1"}`}, end: messages.Fetched_END_COMPLETE},
		{name: "gzip of several members, cut in a record", body: pack(t, `{"Records":[`+a+`,{"event`, `Version":"1"},`, c+`]}`), records: []string{a, `{"eventVersion":"1"}`, c}, end: messages.Fetched_END_COMPLETE},
		{name: "gzip of whole files", body: pack(t, trail(a), trail(b)), records: []string{a, b}, end: messages.Fetched_END_COMPLETE},
		{name: "padding behind gzip", body: append(bytes.Clone(packed), make([]byte, 5000)...), records: []string{a, b, c}, end: messages.Fetched_END_COMPLETE},
		{
			name: "garbage behind gzip", body: append(bytes.Clone(packed), "\x00\x00not gzip"...), records: []string{a, b, c}, end: messages.Fetched_END_COMPLETE,
			refused: []refusal{{code: "fetch.trailing_garbage", holds: span, record: 3, offset: -1, length: 10, payload: "\x00\x00not gzip"}},
		},
		{
			name: "text that is no JSON", body: []byte("<html>404</html>"), end: messages.Fetched_END_QUARANTINED, code: "framing.bad_json",
			refused: []refusal{{code: "framing.bad_json", holds: span, records: 1, length: 16, payload: "<html>"}},
		},
		{
			name: "truncated gzip", body: pack(t, trail(a, b, random(t, 15<<10)))[:6<<10], records: []string{a, b},
			end: messages.Fetched_END_TRUNCATED, code: "fetch.truncated",
			refused: []refusal{{code: "fetch.truncated", holds: span, record: 2, records: 1, offset: int64(len(trail(a, b)) - 1), length: -1, payload: `{"noise":"`}},
		},
		{
			name: "gzip truncated in its header", body: packed[:5], end: messages.Fetched_END_QUARANTINED, code: "fetch.truncated",
			refused: []refusal{{code: "fetch.truncated", holds: thing, offset: -1, length: -1}},
		},
		{
			name: "checksum of gzip wrong", body: damaged, records: []string{a, b, c}, end: messages.Fetched_END_TRUNCATED, code: "fetch.corrupt",
			refused: []refusal{{code: "fetch.corrupt", holds: thing, record: 3, offset: int64(len(trail(a, b, c)) + 1<<20), length: -1}},
		},
		{
			name: "JSON cut between records", body: []byte(`{"Records":[` + a + `,` + b), records: []string{a, b}, end: messages.Fetched_END_TRUNCATED, code: "fetch.truncated",
			refused: []refusal{{code: "fetch.truncated", holds: thing, record: 2, offset: int64(len(trail(a, b)) - 2), length: 0}},
		},
		{
			name: "JSON that ends in a bad record", body: []byte(`{"Records":[` + a + `,{"eventVersion":!!`), records: []string{a}, end: messages.Fetched_END_COMPLETE,
			refused: []refusal{{code: "framing.bad_json", holds: span, record: 1, records: 1, offset: int64(len(trail(a)) - 1), length: 18, payload: `{"eventVersion":!!`}},
		},
		{
			name: "broken JSON in the middle", body: pack(t, trail(a, `{"eventVersion":"1","eventID":"b}`, c)), records: []string{a, c}, end: messages.Fetched_END_COMPLETE,
			refused: []refusal{{code: "framing.bad_json", holds: span, record: 1, records: 1, offset: int64(len(trail(a)) - 1), length: 33, payload: `{"eventVersion":"1","eventID":"b}`}},
		},
		{
			name: "record of 20 MiB", body: pack(t, trail(a, huge, c)), records: []string{a, c}, end: messages.Fetched_END_COMPLETE,
			refused: []refusal{{code: "framing.record_too_large", holds: record, record: 1, records: 1, offset: int64(len(trail(a)) - 1), length: int64(len(huge)), payload: huge[:100], cut: true}},
		},
		{name: "invalid UTF-8", body: pack(t, trail("{\"eventVersion\":\"\xff\"}", b)), records: []string{"{\"eventVersion\":\"\xff\"}", b}, end: messages.Fetched_END_COMPLETE},
		{name: "duplicate keys", body: pack(t, trail(`{"a":1,"a":2}`, b)), records: []string{`{"a":1,"a":2}`, b}, end: messages.Fetched_END_COMPLETE},
		{name: "lines", source: "traillines", body: []byte("x y\r\n\n" + strings.Repeat("l", 101<<10) + "\nz"), records: []string{"x y", "z"}, end: messages.Fetched_END_COMPLETE, refused: []refusal{
			{code: "framing.record_too_large", holds: record, record: 1, records: 1, offset: 6, length: 101 << 10, payload: "lll", cut: true},
		}},
		{name: "values", source: "trailjson", body: []byte("{\"a\":1}\n{\"a\":}\n{\"a\":3}\n"), records: []string{`{"a":1}`, `{"a":3}`}, end: messages.Fetched_END_COMPLETE, refused: []refusal{
			{code: "framing.bad_json", holds: span, record: 1, records: 1, offset: 8, length: 6, payload: `{"a":}`},
		}},
		{name: "no records", body: pack(t, trail()), end: messages.Fetched_END_COMPLETE},
		{name: "empty", body: []byte{}, end: messages.Fetched_END_SKIPPED, code: "fetch.empty"},
		{name: "gzip of nothing", body: pack(t, ""), end: messages.Fetched_END_SKIPPED, code: "fetch.empty"},
		{name: "folder", key: "AWSLogs/", end: messages.Fetched_END_SKIPPED, code: "fetch.folder"},
		{name: "digest by its key", key: "AWSLogs/1/CloudTrail-Digest/x.json.gz", end: messages.Fetched_END_SKIPPED, code: "parse.cloudtrail_digest"},
		{name: "digest under another key", body: pack(t, `{"awsAccountId":"1","digestStartTime":"x","logFiles":[{"s3Bucket":"b"}]}`), end: messages.Fetched_END_SKIPPED, code: "fetch.cloudtrail_digest"},
		{
			name: "no array of records", body: pack(t, `{"events":[1]}`), end: messages.Fetched_END_QUARANTINED, code: "framing.no_array",
			refused: []refusal{{code: "framing.no_array", holds: thing, offset: 14, length: -1}},
		},
		{
			name: "bomb", body: pack(t, trail(a, b)+strings.Repeat(" ", 54<<20)), records: []string{a, b}, end: messages.Fetched_END_TRUNCATED, code: "fetch.bomb",
			refused: []refusal{{code: "fetch.bomb", holds: thing, record: 2, offset: -2, length: -1}},
		},
		{
			name: "larger than allowed", body: []byte(trail(a, b) + strings.Repeat(" ", 60<<20)), records: []string{a, b}, end: messages.Fetched_END_TRUNCATED, code: "fetch.too_large",
			refused: []refusal{{code: "fetch.too_large", holds: thing, record: 2, offset: 55 << 20, length: -1}},
		},
		{
			name: "more bad records than are kept one by one", body: pack(t, trail(a, `{x}`, `{y}`, `{z}`, `{w}`, c)), records: []string{a}, end: messages.Fetched_END_TRUNCATED, code: "fetch.too_many_bad_records",
			refused: []refusal{
				{code: "framing.bad_json", holds: span, record: 1, records: 1, offset: 47, length: 3, payload: "{x}"},
				{code: "framing.bad_json", holds: span, record: 2, records: 1, offset: 51, length: 3, payload: "{y}"},
				{code: "fetch.too_many_bad_records", holds: span, record: 3, records: 1, offset: 55, length: 3, payload: "{z}"},
			},
		},
		{
			name: "panic", source: "trailpanic", body: packed, end: messages.Fetched_END_QUARANTINED, code: "fetch.panic",
			refused: []refusal{{code: "fetch.panic", holds: thing, offset: int64(len(trail(a, b, c))), length: -1}},
		},
	}
	s := newStage(t, func(c *Config) { c.MaxObject, c.MaxBadRecords = 55<<20, 2 })
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.source == "" {
				tt.source = "trail"
			}
			if tt.key == "" {
				tt.key = "k/" + tt.name
			}
			if tt.body != nil {
				put(t, s.cloud, tt.key, cloud.Object{Body: tt.body})
			}
			in := notice(tt.source, tt.key)
			in.Attempt = 9
			got := s.handle(t, in)
			if got.err != nil {
				t.Fatal(got.err)
			}
			if !slices.Equal(got.records, tt.records) {
				t.Errorf("records %.300q, want %.300q", got.records, tt.records)
			}
			if got.fetched.GetEnd() != tt.end || got.fetched.GetCode() != tt.code {
				t.Errorf("ends as %v %s, want %v %s", got.fetched.GetEnd(), got.fetched.GetCode(), tt.end, tt.code)
			}
			if len(got.refused) != len(tt.refused) {
				t.Fatalf("%d entries in quarantine, want %d: %.300v", len(got.refused), len(tt.refused), got.refused)
			}
			for i, q := range got.refused {
				want := tt.refused[i]
				if want.holds == thing {
					want.payload = string(in.Data)
				}
				if want.length == -1 && want.holds == span {
					want.length = q.GetLength()
				}
				if want.offset == -2 {
					want.offset = q.GetOffset()
				}
				if g := (refusal{
					q.GetCode(), q.GetHolds(), q.GetRecord(), q.GetRecords(), q.GetOffset(), q.GetLength(),
					string(q.GetPayload()[:min(len(q.GetPayload()), len(want.payload))]), q.GetCut(),
				}); g != want {
					t.Errorf("quarantine holds %+v, want %+v", g, want)
				}
				if o := q.GetOrigin(); o.GetKey() != tt.key || o.GetBucket() != bucket || o.GetSource() != tt.source || q.GetAttempts() != 9 || !strings.Contains(q.GetReason(), tt.key) {
					t.Errorf("entry does not tell where it is from: %v, %s", o, q.GetReason())
				}
			}
		})
	}
	if f := s; f.large != nil && !f.large.TryAcquire(1) {
		t.Error("the right to large buffers was not given back")
	}
	if !s.objects.TryAcquire(int64(s.cfg.MaxObjects)) || !s.bytes.TryAcquire(int64(s.cfg.MaxBytesInFlight)) {
		t.Error("what was reserved was not given back")
	}
}

// bzipped is {"Records":[{"eventVersion":"1"}]} as bzip2.
const bzipped = "425a68393141592653595659d21800000f1b8010002010110a0e219d0a20002221a68310cd429931320c8cb37649108a303b2a1f4c3224cc2c1bca8f8bb9229c28482b2ce90c00"

func fromHex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// random is a record that does not compress, of about n bytes, the same each time.
func random(tb testing.TB, n int) string {
	tb.Helper()
	x := uint64(88172645463325252)
	b := make([]byte, n/2)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return `{"noise":"` + hex.EncodeToString(b) + `"}`
}

// What the notice itself is refused for, before anything is read.
func TestNotices(t *testing.T) {
	s := newStage(t, nil)
	put(t, s.cloud, "k", cloud.Object{Body: []byte(trail(`{}`))})
	tests := []struct {
		name   string
		change func(*messages.Origin)
		code   string
	}{
		{"forged bucket", func(o *messages.Origin) { o.Bucket = "other-bucket" }, "fetch.bucket_not_allowed"},
		{"source taken out of the configuration", func(o *messages.Origin) { o.Source = "gone" }, "fetch.no_such_source"},
		{"no bucket", func(o *messages.Origin) { o.Bucket = "" }, "fetch.bad_notice"},
		{"no key", func(o *messages.Origin) { o.Key = "" }, "fetch.bad_notice"},
		{"no pull", func(o *messages.Origin) { o.Pull = nil }, "fetch.bad_notice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := notice("trail", "k")
			tt.change(in.Value.Origin)
			got := s.handle(t, in)
			if got.err != nil || len(got.refused) != 1 || got.refused[0].GetCode() != tt.code || got.refused[0].GetHolds() != messages.Quarantine_HOLDS_NOTICE ||
				got.fetched.GetEnd() != messages.Fetched_END_QUARANTINED || got.fetched.GetCode() != tt.code {
				t.Errorf("got %v, %v, %v", got.err, got.refused, got.fetched)
			}
		})
	}
	if n := s.cloud.Calls("GetObject"); n != 0 {
		t.Errorf("S3 was asked %d times", n)
	}
}

// What S3 refuses. covers: DEV-111, DEV-112, F-6 (missing object), pain 18.
func TestRefusals(t *testing.T) {
	tests := []struct {
		name    string
		key     string
		fault   cloud.Fault
		attempt int
		age     time.Duration // of the notice
		err     string        // code, "" settles
		class   fault.Class
		code    string // in quarantine
		says    string
	}{
		{name: "missing, just announced", key: "missing", age: 4 * time.Minute, attempt: 50, err: "fetch.key_missing_yet"},
		{name: "missing for long", key: "missing", age: 6 * time.Minute, code: "fetch.no_such_key", says: "NoSuchKey"},
		{name: "denied", key: "denied", attempt: 9, err: "fetch.access_denied_yet"},
		{name: "denied often", key: "denied", attempt: 10, code: "fetch.access_denied", says: "s3:GetObject"},
		{name: "key of KMS denied", fault: cloud.Fault{Status: 400, Code: "KMS.DisabledException"}, attempt: 10, code: "fetch.access_denied", says: "KMS"},
		{name: "throttled", fault: cloud.Fault{Status: 503}, attempt: 99, age: time.Hour, err: "aws.throttled"},
		{name: "failing", fault: cloud.Fault{Status: 500}, attempt: 99, err: "aws.unavailable"},
		{name: "no answer", fault: cloud.Fault{Cut: -1}, attempt: 99, err: "aws.unreachable"},
		{name: "credentials wrong", fault: cloud.Fault{Status: 403, Code: "InvalidAccessKeyId"}, attempt: 99, err: "aws.bad_credentials", class: fault.Stop},
		{name: "archived", fault: cloud.Fault{Status: 403, Code: "InvalidObjectState"}, code: "aws.object_archived", says: "InvalidObjectState"},
	}
	s := newStage(t, nil)
	put(t, s.cloud, "k", cloud.Object{Body: []byte(trail(`{}`))})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.cloud.SetFault(func(string, string, string) cloud.Fault { return tt.fault })
			in := notice("trail", cmpOr(tt.key, "k"))
			in.Attempt, in.Stored = max(tt.attempt, 1), time.Now().Add(-tt.age)
			got := s.handle(t, in)
			if len(got.records) > 0 {
				t.Errorf("records %q", got.records)
			}
			if tt.err != "" {
				if fault.CodeOf(got.err) != tt.err || fault.ClassOf(got.err) != tt.class || len(got.refused) > 0 {
					t.Errorf("got %v, %v, want %s", got.err, got.refused, tt.err)
				}
				return
			}
			if got.err != nil || len(got.refused) != 1 || got.refused[0].GetCode() != tt.code || !strings.Contains(got.refused[0].GetReason(), tt.says) ||
				got.fetched.GetEnd() != messages.Fetched_END_QUARANTINED || got.fetched.GetCode() != tt.code {
				t.Errorf("got %v, %v, %v", got.err, got.refused, got.fetched)
			}
		})
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// The answer of S3 fills in what the notice does not know.
func TestOrigin(t *testing.T) {
	s := newStage(t, nil)
	if err := s.cloud.CreateBucket("versioned", cloud.BucketOptions{Versioned: true}); err != nil {
		t.Fatal(err)
	}
	s.sources["trail"].Allows = func(string) bool { return true }
	first, err := s.cloud.Put("versioned", "a b+c", cloud.Object{Body: []byte(trail(`{"n":1}`))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.cloud.Put("versioned", "a b+c", cloud.Object{Body: []byte(trail(`{"n":2}`))}); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name           string
		key            string
		version, etag  string
		refuseVersions bool
		records        []string
		err            string
	}{
		{name: "latest", key: "a b+c", records: []string{`{"n":2}`}},
		{name: "version", key: "a b+c", version: first.VersionID, records: []string{`{"n":1}`}},
		{name: "key that came encoded", key: "a+b%2Bc", records: []string{`{"n":2}`}},
		{name: "version without the permission, overwritten", key: "a b+c", version: first.VersionID, etag: first.ETag, refuseVersions: true, err: "fetch.access_denied_yet"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.api.refuseVersions.Store(tt.refuseVersions)
			in := notice("trail", tt.key)
			in.Value.Origin.Bucket, in.Value.Origin.Version, in.Value.Origin.Etag = "versioned", tt.version, tt.etag
			out := &topology.Recorder{}
			got := s.handleCtx(t.Context(), t, in, out)
			if !slices.Equal(got.records, tt.records) || fault.CodeOf(got.err) != cmpOr(tt.err, "unknown") {
				t.Fatalf("got %q, %v", got.records, got.err)
			}
			if tt.err != "" {
				return
			}
			v, err := messages.DecodeFrame(out.Messages()[0].Data)
			if err != nil {
				t.Fatal(err)
			}
			origins, err := v.Origins()
			if err != nil || len(origins) != 1 {
				t.Fatal(origins, err)
			}
			o := origins[0]
			if o.GetKey() != "a b+c" || o.GetVersion() == "" || tt.version != "" && o.GetVersion() != tt.version || len(o.GetEtag()) != 32 ||
				o.GetCreated() == 0 || o.GetMessageId() != "m-1" || v.Source() != "trail" || v.Format() != "cloudtrail" {
				t.Errorf("origin %v of source %s, format %s", o, v.Source(), v.Format())
			}
		})
	}
}

// Without s3:GetObjectVersion objects are read by ETag, and asked for once only.
// covers: DEV-41.
func TestNoPermissionForVersions(t *testing.T) {
	s := newStage(t, nil)
	stored := put(t, s.cloud, "k", cloud.Object{Body: []byte(trail(`{"n":1}`))})
	s.api.refuseVersions.Store(true)
	for range 3 {
		in := notice("trail", "k")
		in.Value.Origin.Version, in.Value.Origin.Etag = "v1", stored.ETag
		if got := s.handle(t, in); got.err != nil || len(got.records) != 1 {
			t.Fatalf("got %q, %v", got.records, got.err)
		}
	}
	if n := s.api.versions.Load(); n != 1 {
		t.Errorf("a version was asked for %d times", n)
	}
}

func TestFollowRegion(t *testing.T) {
	s := newStage(t, nil)
	put(t, s.cloud, "k", cloud.Object{Body: []byte(trail(`{}`))})
	for _, tt := range []struct {
		follow       bool
		region, want string
	}{
		{true, "eu-central-1", "eu-central-1"},
		{true, "us-gov-west-1", "us-gov-west-1"},
		{true, "", ""},
		{true, "evil.example.com/x", ""},
		{false, "eu-central-1", ""},
	} {
		s.sources["trail"].FollowRegion = tt.follow
		in := notice("trail", "k")
		in.Value.Region = tt.region
		if got := s.handle(t, in); got.err != nil {
			t.Fatal(got.err)
		}
		if got := s.api.region.Load(); got != tt.want {
			t.Errorf("a notice of region %q is read in %q, want %q", tt.region, got, tt.want)
		}
	}
}

func numbered(n, size int) []string {
	recs := make([]string, n)
	for i := range recs {
		recs[i] = fmt.Sprintf(`{"eventVersion":"1","n":%d,"pad":"%s"}`, i, strings.Repeat("p", size))
	}
	return recs
}

// Frames are cut by count and bytes only, so a second attempt makes the same.
// covers: pain 12.
func TestFramesAreTheSameEachTime(t *testing.T) {
	s := newStage(t, nil)
	small, large := numbered(2*messages.LargeCount+2000, 10), numbered(1000, 5000)
	small[6000] = `{"eventVersion":bad}`
	put(t, s.cloud, "small", cloud.Object{Body: pack(t, trail(small...))})
	put(t, s.cloud, "large", cloud.Object{Body: pack(t, trail(large...))})
	tests := []struct {
		key    string
		recs   []string
		frames []int
	}{
		{"small", small, []int{messages.LargeCount, messages.LargeCount, 1999}},
		{"large", large, []int{416, 416, 168}},
	}
	for _, tt := range tests {
		first, second := &topology.Recorder{}, &topology.Recorder{}
		got := s.handleCtx(t.Context(), t, notice("trail", tt.key), first)
		again := s.handleCtx(t.Context(), t, notice("trail", tt.key), second)
		if got.err != nil || again.err != nil || !slices.Equal(got.frames, tt.frames) {
			t.Fatalf("%s: frames of %v records, want %v; %v, %v", tt.key, got.frames, tt.frames, got.err, again.err)
		}
		for i, rec := range got.records {
			if rec != tt.recs[got.places[i]] {
				t.Fatalf("%s: record %d is %.80q", tt.key, got.places[i], rec)
			}
		}
		a, b := first.Messages(), second.Messages()
		for i := range a {
			if a[i].ID != b[i].ID || !bytes.Equal(a[i].Data, b[i].Data) {
				t.Errorf("%s: frame %d differs in a second attempt", tt.key, i)
			}
		}
		if fa, fb := got.fetched, again.fetched; fa.GetRecords() != uint64(len(tt.recs)) || fa.GetRecords() != fb.GetRecords() || fa.GetBytes() == 0 ||
			fa.GetRawBytes() != uint64(len(trail(tt.recs...))) || !maps.Equal(fa.GetQuarantined(), fb.GetQuarantined()) {
			t.Errorf("%s: the ledger gets %v, then %v", tt.key, fa, fb)
		}
	}
}

// Every frame of records has the header that names their columns, and one only.
// covers: F-11, F-21
func TestFramesCarryTheHeader(t *testing.T) {
	s := newStage(t, nil)
	put(t, s.cloud, "log", cloud.Object{Body: pack(t, "#Version: 1.0\n#Fields: a b\n1 2\n3 4\n#Fields: a c\n"+strings.Repeat("5 6\n", messages.LargeCount+500))})
	out := &topology.Recorder{}
	got := s.handleCtx(t.Context(), t, notice("trailfields", "log"), out)
	if !slices.Equal(got.frames, []int{2, messages.LargeCount, 500}) {
		t.Fatalf("frames of %v records, %v", got.frames, got.err)
	}
	for i, want := range []string{"#Fields: a b", "#Fields: a c", "#Fields: a c"} {
		v, err := messages.DecodeFrame(out.Messages()[i].Data)
		if err != nil || string(v.Head()) != want {
			t.Errorf("frame %d has the header %q, want %q, %v", i, v.Head(), want, err)
		}
	}
}

// A connection that breaks costs only what was under way, compressed or not.
func TestResume(t *testing.T) {
	s := newStage(t, nil)
	recs := numbered(3000, 300)
	objects := map[string][]byte{"plain": []byte(trail(recs...)), "gzip": pack(t, trail(append(recs, random(t, 18<<10), random(t, 19<<10))...))}
	for name, body := range objects {
		for _, clean := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, clean %t", name, clean), func(t *testing.T) {
				put(t, s.cloud, name, cloud.Object{Body: body})
				before := s.cloud.Calls("GetObject")
				step := int64(len(body) / 3)
				var calls atomic.Int32
				s.cloud.SetFault(func(string, string, string) cloud.Fault {
					if calls.Add(1) > 3 {
						return cloud.Fault{}
					}
					return cloud.Fault{Cut: step, CutClean: clean}
				})
				got := s.handle(t, notice("trail", name))
				if got.err != nil {
					t.Fatal(got.err)
				}
				if !slices.Equal(got.records[:len(recs)], recs) || got.fetched.GetBytes() != uint64(len(body)) || len(got.refused) > 0 {
					t.Errorf("%d records of %d, %d bytes of %d", len(got.records), len(recs), got.fetched.GetBytes(), len(body))
				}
				if n := s.cloud.Calls("GetObject") - before; n < 3 || n > 4 {
					t.Errorf("%d requests", n)
				}
			})
		}
	}
}

// When it cannot be resumed the object is tried again, and nothing was published
// that the next attempt would cut differently.
func TestBrokenConnection(t *testing.T) {
	s := newStage(t, nil)
	body := []byte(trail(numbered(3000, 1000)...))
	t.Run("resumes used up", func(t *testing.T) {
		put(t, s.cloud, "k", cloud.Object{Body: body})
		s.cloud.SetFault(func(string, string, string) cloud.Fault {
			return cloud.Fault{Cut: int64(len(body)) / 5, CutClean: true}
		})
		in := notice("trail", "k")
		in.Attempt = 99 // it is never given up for that
		got := s.handle(t, in)
		if fault.CodeOf(got.err) != "fetch.connection_broken" || fault.ClassOf(got.err) != fault.Retry {
			t.Fatalf("got %v", got.err)
		}
		if !slices.Equal(got.frames, []int{2021}) || len(got.refused) > 0 { // 2 MiB
			t.Errorf("published %v, refused %v", got.frames, got.refused)
		}
	})
	for _, ignored := range []bool{false, true} {
		overwritten(t, s, body, ignored)
	}
}

// overwritten has an object replaced while it is read. ignored: by a service that
// does not look at If-Match.
func overwritten(t *testing.T, s *stage, body []byte, ignored bool) {
	t.Helper()
	t.Run(fmt.Sprintf("overwritten meanwhile, If-Match ignored %t", ignored), func(t *testing.T) {
		s.api.ignoreMatch.Store(ignored)
		put(t, s.cloud, "k", cloud.Object{Body: body})
		var calls atomic.Int32
		s.cloud.SetFault(func(string, string, string) cloud.Fault {
			if calls.Add(1) > 1 {
				put(t, s.cloud, "k", cloud.Object{Body: []byte(trail(numbered(1500, 1001)...))})
				return cloud.Fault{}
			}
			return cloud.Fault{Cut: int64(len(body)) / 2, CutClean: true}
		})
		got := s.handle(t, notice("trail", "k"))
		if fault.CodeOf(got.err) != "fetch.connection_broken" || !ignored && !errors.Is(got.err, awsclient.ObjectChanged) || len(got.refused) > 0 {
			t.Fatalf("got %v, %v", got.err, got.refused)
		}
	})
}

// A truncated object is read again before it is settled. The part of a frame
// that its end left must not stand in the way of the whole one.
func TestTruncatedThenWhole(t *testing.T) {
	s := newStage(t, nil)
	recs := numbered(7*messages.LargeCount/4, 60)
	whole := pack(t, trail(recs...))
	cut := whole[:len(whole)*4/5]
	put(t, s.cloud, "k", cloud.Object{Body: cut})
	bus := map[string]int{} // stores a message id once
	store := func(o outcome) {
		for i, id := range o.ids {
			if _, there := bus[id]; !there {
				bus[id] = o.frames[i]
			}
		}
	}
	in := notice("trail", "k")
	for in.Attempt = 1; in.Attempt <= 2; in.Attempt++ {
		got := s.handle(t, in)
		if fault.CodeOf(got.err) != "fetch.truncated_yet" || fault.ClassOf(got.err) != fault.Retry || len(got.refused) > 0 {
			t.Fatalf("attempt %d: %v, %v", in.Attempt, got.err, got.refused)
		}
		if !slices.Equal(got.frames, []int{messages.LargeCount}) {
			t.Errorf("attempt %d published frames of %v records: only whole ones should be", in.Attempt, got.frames)
		}
		store(got)
	}
	got := s.handle(t, in)
	if got.err != nil || got.fetched.GetEnd() != messages.Fetched_END_TRUNCATED || len(got.refused) != 1 ||
		len(got.records) < messages.LargeCount || !slices.Equal(got.records, recs[:len(got.records)]) {
		t.Fatalf("settled with %v, %v, %d records", got.err, got.fetched, len(got.records))
	}
	if q := got.refused[0]; q.GetOffset() != int64(len(trail(recs[:len(got.records)]...))-1) || q.GetRecord() != uint64(len(got.records)) {
		t.Errorf("the entry says record %d at offset %d", q.GetRecord(), q.GetOffset())
	}
	store(got)
	put(t, s.cloud, "k", cloud.Object{Body: whole})
	in.Attempt = 1 // a redrive
	got = s.handle(t, in)
	store(got)
	if got.err != nil || !slices.Equal(got.records, recs) {
		t.Fatalf("redriven: %v, %d records", got.err, len(got.records))
	}
	sum := 0
	for i, id := range got.ids {
		if bus[id] != got.frames[i] {
			t.Errorf("frame %s has %d records on the bus, %d in the whole object", id, bus[id], got.frames[i])
		}
		sum += bus[id]
	}
	if sum != len(recs) {
		t.Errorf("%d records on the bus, want %d", sum, len(recs))
	}
}

// outbox is a Recorder that can fail, wait or look on.
type outbox struct {
	topology.Recorder
	onPublish func(m topology.Message) error
}

func (o *outbox) Publish(ctx context.Context, m topology.Message) error {
	if err := o.onPublish(m); err != nil {
		return err
	}
	return o.Recorder.Publish(ctx, m)
}

// Cancellation is nobody's fault: no quarantine, no fact.
func TestCancel(t *testing.T) {
	s := newStage(t, nil)
	put(t, s.cloud, "k", cloud.Object{Body: []byte(trail(numbered(3000, 10)...))})
	t.Run("while publishing", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		out := &outbox{onPublish: func(topology.Message) error { cancel(); return ctx.Err() }}
		in := notice("trail", "k")
		in.Attempt = 99
		if err := s.Handle(ctx, in, out); !errors.Is(err, context.Canceled) || len(out.Quarantined())+len(out.Facts()) > 0 {
			t.Errorf("got %v, %v, %v", err, out.Quarantined(), out.Facts())
		}
	})
	t.Run("when there is something to refuse", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		out := &outbox{onPublish: func(topology.Message) error { cancel(); return errBomb.New(nil, "publish") }}
		if err := s.Handle(ctx, notice("trail", "k"), out); !errors.Is(err, context.Canceled) || len(out.Quarantined())+len(out.Facts()) > 0 {
			t.Errorf("got %v, %v, %v", err, out.Quarantined(), out.Facts())
		}
	})
	t.Run("while S3 hangs", func(t *testing.T) {
		asked := make(chan struct{})
		s.cloud.SetFault(func(string, string, string) cloud.Fault { close(asked); return cloud.Fault{Hang: true} })
		defer s.cloud.SetFault(nil)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-asked; cancel() }()
		in := notice("trail", "k")
		in.Attempt = 99
		out := &topology.Recorder{}
		if err := s.Handle(ctx, in, out); !errors.Is(err, context.Canceled) || len(out.Quarantined())+len(out.Facts()) > 0 {
			t.Errorf("got %v, %v, %v", err, out.Quarantined(), out.Facts())
		}
	})
	t.Run("while waiting to begin", func(t *testing.T) {
		if err := s.objects.Acquire(t.Context(), int64(s.cfg.MaxObjects)); err != nil {
			t.Fatal(err)
		}
		defer s.objects.Release(int64(s.cfg.MaxObjects))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Handle(ctx, notice("trail", "k"), &topology.Recorder{}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

// The bus may refuse a frame for good: then its one record is quarantined by
// reference and the others go on.
func TestBusRefusesHugeRecord(t *testing.T) {
	s := newStage(t, func(c *Config) { c.MaxRecord = 16 << 20 })
	refused := fault.Define("test.message_too_large", fault.Reject, "")
	huge, bigger := random(t, 3<<20), random(t, 15<<20)
	put(t, s.cloud, "k", cloud.Object{Body: []byte(trail(`{"n":0}`, huge, `{"n":2}`, bigger, `{"n":4}`))})
	out := &outbox{onPublish: func(m topology.Message) error {
		if len(m.Data) > messages.MaxFrame {
			t.Errorf("a frame of %d bytes", len(m.Data))
		}
		if len(m.Data) > 1<<20 {
			return refused.New(nil, "publish")
		}
		return nil
	}}
	if err := s.Handle(t.Context(), notice("trail", "k"), out); err != nil {
		t.Fatal(err)
	}
	qs, fetched := out.Quarantined(), out.Facts()[0].GetFetched()
	if len(qs) != 2 || len(out.Messages()) != 3 || fetched.GetRecords() != 5 || fetched.GetFrames() != 3 || fetched.GetQuarantined()["framing.record_too_large"] != 2 {
		t.Fatalf("%d entries, %d frames, %v", len(qs), len(out.Messages()), fetched)
	}
	if q := qs[0]; q.GetRecord() != 1 || q.GetOffset() != 20 || q.GetLength() != int64(len(huge)) || !q.GetCut() || len(q.GetPayload()) != keepBad {
		t.Errorf("entry of the huge record: %d at %d+%d", q.GetRecord(), q.GetOffset(), q.GetLength())
	}
	for i, want := range []uint64{0, 2, 4} {
		v, err := messages.DecodeFrame(out.Messages()[i].Data)
		if err != nil || v.FirstRecord() != want || v.FrameNo() != uint32(i) || v.Len() != 1 {
			t.Errorf("frame %d begins at record %d, %v", i, v.FirstRecord(), err)
		}
	}
}

// A record that the bus takes goes out in a frame of its own.
func TestHugeRecord(t *testing.T) {
	s := newStage(t, func(c *Config) { c.MaxRecord = 16 << 20 })
	huge := random(t, 6<<20)
	put(t, s.cloud, "k", cloud.Object{Body: []byte(trail(`{"n":0}`, huge, `{"n":2}`))})
	got := s.handle(t, notice("trail", "k"))
	if got.err != nil || !slices.Equal(got.frames, []int{1, 1, 1}) || got.records[1] != huge {
		t.Fatalf("frames of %v records, %v", got.frames, got.err)
	}
}

// However many notices come at once, what is read at once stays bounded.
func TestBounds(t *testing.T) {
	s := newStage(t, func(c *Config) { c.MaxObjects, c.MaxBytesInFlight = 3, 8<<20 })
	body := []byte(trail(numbered(messages.LargeCount+1, 10)...))
	const objects = 12
	var now, most atomic.Int32
	var wg sync.WaitGroup
	for i := range objects {
		key := fmt.Sprintf("k%d", i)
		put(t, s.cloud, key, cloud.Object{Body: body})
		wg.Go(func() {
			out := &outbox{}
			seen := false
			out.onPublish = func(topology.Message) error {
				if !seen {
					seen = true
					if n := now.Add(1); n > most.Load() {
						most.Store(n)
					}
				} else {
					now.Add(-1)
				}
				return nil
			}
			if err := s.Handle(t.Context(), notice("trail", key), out); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// Three by count, but two of unknown size fill the bytes.
	if n := most.Load(); n < 1 || n > 2 {
		t.Errorf("%d objects were read at once", n)
	}
	if _, err := s.reserve(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	if !s.bytes.TryAcquire(8<<20 - readerWeight - 100*expected) {
		t.Error("a small object reserves more than it needs")
	}
}

// Large buffers are had by one object at a time.
func TestLargeBuffersOneAtATime(t *testing.T) {
	s := newStage(t, func(c *Config) { c.MaxRecord = 16 << 20 })
	put(t, s.cloud, "large", cloud.Object{Body: []byte(trail(random(t, 3<<20)))})
	if !s.large.TryAcquire(1) {
		t.Fatal("somebody has them")
	}
	put(t, s.cloud, "small", cloud.Object{Body: []byte(trail(`{}`))})
	if got := s.handle(t, notice("trail", "small")); got.err != nil {
		t.Fatal(got.err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := s.Handle(ctx, notice("trail", "large"), &topology.Recorder{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the large object did not wait: %v", err)
	}
	s.large.Release(1)
	if got := s.handle(t, notice("trail", "large")); got.err != nil || len(got.records) != 1 {
		t.Errorf("got %v, %d records", got.err, len(got.records))
	}
	if !s.large.TryAcquire(1) {
		t.Error("the right to large buffers was not given back")
	}
}

// The client is made once, and again only after it failed.
func TestClientIsMadeOnce(t *testing.T) {
	s := newStage(t, nil)
	put(t, s.cloud, "k", cloud.Object{Body: []byte(trail(`{}`))})
	broken := fault.Define("test.no_client", fault.Stop, "")
	made := 0
	s.sources["trail"].S3 = func(context.Context) (S3, error) {
		if made++; made == 1 {
			return nil, broken.New(nil, "make a client")
		}
		return s.api, nil
	}
	if got := s.handle(t, notice("trail", "k")); !errors.Is(got.err, broken) || len(got.refused) > 0 {
		t.Fatalf("got %v", got.err)
	}
	for range 3 {
		if got := s.handle(t, notice("trail", "k")); got.err != nil {
			t.Fatal(got.err)
		}
	}
	if made != 2 {
		t.Errorf("made %d times", made)
	}
}

func TestConfig(t *testing.T) {
	if err := Defaults().Validate(); err != nil {
		t.Fatal(err)
	}
	var zero Config
	err := zero.Validate()
	for _, key := range []string{"max_objects", "max_bytes_in_flight", "max_object", "max_ratio", "max_record", "max_line", "denied_attempts"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s is not refused: %v", key, err)
		}
	}
	if _, err := New(zero, Deps{}); err == nil {
		t.Error("New takes a wrong configuration")
	}
}

// bytesS3 gives the same object to everybody.
type bytesS3 []byte

func (b bytesS3) GetObject(context.Context, *s3.GetObjectInput, string) (*s3.GetObjectOutput, error) {
	return &s3.GetObjectOutput{
		Body: io.NopCloser(bytes.NewReader(b)), ContentLength: aws.Int64(int64(len(b))), ETag: aws.String(`"e"`),
	}, nil
}

// Whatever an object holds, it is settled, every record is accounted for once,
// and a second attempt comes to the same.
func FuzzObject(f *testing.F) {
	packed := pack(f, trail(`{"a":1}`, `{"a":x}`, `{"a":"`+strings.Repeat("long", 1000)+`"}`), trail(`{"a":4}`))
	for _, format := range []string{"", "json", "lines"} {
		f.Add(packed, format)
		f.Add(packed[:len(packed)-20], format)
		f.Add(append(bytes.Clone(packed), "garbage"...), format)
		f.Add(fromHex(f, bzipped), format)
		f.Add([]byte("\x28\xb5\x2f\xfd\x04\x00\x99\x00\x00\x7b\x22\x61\x22\x3a\x31\x7d"), format)
		f.Add([]byte("{\"a\":1}\n{\"a\":\n{\"a\":3}"), format)
		f.Add([]byte(trail(numbered(1200, 90)...)), format) // larger than the buffers
	}
	f.Fuzz(func(t *testing.T, body []byte, format string) {
		cfg := Defaults()
		cfg.MaxRecord, cfg.MaxLine, cfg.MaxObject = 2<<10, 2<<10, 1<<20
		st, err := New(cfg, Deps{Choose: choose, Sources: map[string]Source{"trail": {
			Format: format, Allows: func(string) bool { return true },
			S3: func(context.Context) (S3, error) { return bytesS3(body), nil },
		}}})
		if err != nil {
			t.Fatal(err)
		}
		if format == "panic" {
			return
		}
		s := &stage{Fetch: st}
		in := notice("trail", "k")
		in.Attempt = 9
		first, second := s.handle(t, in), s.handle(t, in)
		if first.err != nil || second.err != nil {
			t.Fatal(first.err, second.err)
		}
		if !slices.Equal(first.records, second.records) || !slices.Equal(first.ids, second.ids) || len(first.refused) != len(second.refused) ||
			first.fetched.GetEnd() != second.fetched.GetEnd() {
			t.Errorf("%v, then %v", first.fetched, second.fetched)
		}
	})
}

// wanted is a notice for some records of an object.
func wanted(in topology.In[*messages.Notice], o cloud.Stored, format string, records ...uint64) topology.In[*messages.Notice] {
	n := in.Value
	n.Origin.Etag = o.ETag
	for _, r := range records {
		n.Parts = append(n.Parts, &messages.Part{Record: r, Records: 1, Format: format})
	}
	in.Data = messages.EncodeNotice(n)
	return in
}

// Where some records of an object are wanted, what is wrong behind the last is nothing
// new: it was refused when all was read.
// covers: pain 3, design section 6
func TestReadsNoFurtherThanWanted(t *testing.T) {
	s := newStage(t, nil)
	recs := numbered(3000, 100)
	whole := pack(t, trail(recs...))
	stored := put(t, s.cloud, "k", cloud.Object{Body: whole[:len(whole)*4/5]})
	in := wanted(notice("trail", "k"), stored, "cloudtrail", 3, 7)
	in.Attempt = 9
	out := &topology.Recorder{}
	if err := s.Handle(t.Context(), in, out); err != nil || len(out.Messages()) != 1 || len(out.Quarantined()) != 0 {
		t.Fatalf("%v, %d frames, refused %v", err, len(out.Messages()), out.Quarantined())
	}
	v, err := messages.DecodeFrame(out.Messages()[0].Data)
	f := out.Facts()[0].GetFetched()
	if err != nil || v.Len() != 2 || v.FirstRecord() != 3 || f.GetEnd() != messages.Fetched_END_COMPLETE || f.GetRecords() != 2 {
		t.Errorf("%v, %d records from %d on, %v", err, v.Len(), v.FirstRecord(), f)
	}
}

// What is refused of a reading of some records keeps which others were wanted.
// covers: pain 3, design section 6
func TestRefusedPartsStayParts(t *testing.T) {
	s := newStage(t, func(c *Config) { c.MaxBadRecords = 1 })
	body := "{\"a\":0}\n{bad1}\n{\"a\":2}\n{bad3}\n{\"a\":4}\n{bad5}\n{\"a\":6}\n"
	stored := put(t, s.cloud, "k", cloud.Object{Body: []byte(body)})
	out := &topology.Recorder{}
	if err := s.Handle(t.Context(), wanted(notice("trailjson", "k"), stored, "json", 1, 3, 5), out); err != nil || len(out.Messages()) != 0 {
		t.Fatal(err, out.Messages())
	}
	all := out.Quarantined()
	if len(all) != 2 || all[1].GetCode() != errTooManyBad.Code || all[1].GetRecord() != 3 || all[1].GetHolds() != messages.Quarantine_HOLDS_NOTICE {
		t.Fatalf("refused %v", all)
	}
	n, err := messages.DecodeNotice(all[1].GetPayload())
	if err != nil || len(n.GetParts()) != 3 {
		t.Errorf("the entry holds %v, %v", n, err)
	}
}

// Where the bus takes less, frames are smaller.
func TestFrameBytes(t *testing.T) {
	s := newStage(t, nil)
	s.Fetch.frameBytes = messages.TargetBody
	put(t, s.cloud, "large", cloud.Object{Body: pack(t, trail(numbered(500, 5000)...))})
	if got := s.handle(t, notice("trail", "large")); got.err != nil || !slices.Equal(got.frames, []int{208, 208, 84}) {
		t.Errorf("frames of %v records, %v", got.frames, got.err)
	}
}
