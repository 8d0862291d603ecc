package awsclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/penstock/penstock/services/internal/config"
)

// fakeS3 answers every request, and keeps it.
type fakeS3 struct {
	mu    sync.Mutex
	asked []*http.Request
	// answer may be nil.
	answer func(r *http.Request, n int) *http.Response
}

const objectBody = "what is in the object"

func (s *fakeS3) Do(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r)
	if s.answer != nil {
		if a := s.answer(r, len(s.asked)); a != nil {
			if a.StatusCode == 0 {
				return nil, &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
			}
			a.Request = r
			return a, nil
		}
	}
	return &http.Response{
		StatusCode: http.StatusOK, Request: r, ContentLength: int64(len(objectBody)), Body: io.NopCloser(strings.NewReader(objectBody)),
		Header: http.Header{"Etag": {`"e"`}, "X-Amz-Version-Id": {"v.1"}, "Last-Modified": {"Mon, 02 Jan 2006 15:04:05 GMT"}},
	}, nil
}

func (s *fakeS3) took() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.asked = nil }()
	return s.asked
}

func refusal(status int, code string) *http.Response {
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/xml"}},
		Body: io.NopCloser(strings.NewReader("<Error><Code>" + code + "</Code><Message>no</Message><RequestId>r</RequestId></Error>")),
	}
}

func objects(tb testing.TB, c Config, far aws.HTTPClient) (*Objects, *s3.Client) {
	tb.Helper()
	cfg, err := load(tb.Context(), c, far)
	if err != nil {
		tb.Fatal(err)
	}
	client, err := s3Client(cfg, c)
	if err != nil {
		tb.Fatal(err)
	}
	return NewObjects(client), client
}

// knows tells whether there is an example of a place.
func (o *Objects) knows(bucket, region string) bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.examples[place{region, bucket}] != nil
}

// Requests by example are those that the SDK makes, to the letter of the signature.
func TestObjectsAsTheSDKGetsThem(t *testing.T) {
	isolate(t)
	pair := Config{Region: "eu-west-1", AccessKey: "AKIAPAIR", SecretKey: config.NewSecret("hunter2"), SessionToken: config.NewSecret("token")}
	with := func(change func(c *Config)) Config { c := pair; change(&c); return c }
	keys := []string{
		"AWSLogs/111111111111/CloudTrail/eu-west-1/2026/11/22/111111111111_CloudTrail_eu-west-1_20261122T1005Z_a.json.gz",
		"k", "a b", "a+b", "a%20b", "ä/ö", "日本", "/leading", "a//b", "a/../b", "a/./b", "..", "trailing/", "a=b&c?d#e", "~*'()!$,;:@", "\x01", "a\\b", "%", "💧",
	}
	for _, tt := range []struct {
		name           string
		cfg            Config
		bucket, region string
		version        *string
	}{
		{"of AWS", pair, "logs", "", nil},
		{"a name with dots", pair, "logs.example.com", "", nil},
		{"another region", pair, "logs", "ap-south-1", nil},
		{"a version", pair, "logs", "", aws.String("3HL4kqtJlcpXroDTDmJ.rmSpXd3dIbrHY")},
		{"at an address", with(func(c *Config) { c.EndpointURL = "http://127.0.0.1:9000" }), "logs", "", nil},
		{"at an address with a path", with(func(c *Config) { c.EndpointURL = "https://storage.example.com/s3/v1" }), "logs", "", nil},
		{"path style", with(func(c *Config) { c.PathStyle = true }), "logs", "", nil},
		{"China", with(func(c *Config) { c.Region = "cn-north-1" }), "logs", "", nil},
		{"no token", with(func(c *Config) { c.SessionToken = config.Secret{} }), "logs", "", nil},
		{"an access point", pair, "arn:aws:s3:eu-west-1:111111111111:accesspoint/point", "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			far := new(fakeS3)
			ours, client := objects(t, tt.cfg, far)
			at := ours.at(tt.region)
			input := func(key string) *s3.GetObjectInput {
				return &s3.GetObjectInput{Bucket: &tt.bucket, Key: &key, VersionId: tt.version}
			}
			if _, err := ours.GetObject(t.Context(), input("the first"), tt.region); err != nil {
				t.Fatal(err)
			}
			if !ours.knows(tt.bucket, tt.region) {
				t.Fatalf("nothing was learned from %v", far.took()[0])
			}
			e := ours.examples[place{tt.region, tt.bucket}]
			far.took()
			for _, key := range keys {
				if _, err := client.GetObject(t.Context(), input(key), at...); err != nil {
					t.Fatal(err)
				}
				want := far.took()[0]
				date, err := time.Parse("20060102T150405Z", want.Header.Get(headerDate))
				if err != nil {
					t.Fatal(err)
				}
				got := e.request(t.Context(), input(key), want.Header.Get(headerInvocation))
				creds, err := ours.creds.Retrieve(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := ours.signer.SignHTTP(t.Context(), creds, got, e.payload, "s3", e.region, date); err != nil {
					t.Fatal(err)
				}
				if g, w := wire(t, got), wire(t, want); g != w {
					t.Errorf("key %q\ngot  %s\nwant %s", key, g, w)
				}
				out, err := ours.GetObject(t.Context(), input(key), tt.region)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(out.Body)
				if string(body) != objectBody || *out.ContentLength != int64(len(body)) || *out.ETag != `"e"` || *out.VersionId != "v.1" || out.LastModified.Unix() != 1136214245 {
					t.Errorf("key %q: %q, %+v", key, body, out)
				}
				if asked := far.took(); len(asked) != 1 || asked[0].URL.String() != want.URL.String() || asked[0].Header.Get(headerInvocation) == want.Header.Get(headerInvocation) {
					t.Errorf("key %q: asked for %v", key, asked)
				}
			}
		})
	}
}

// wire is what goes over the connection.
func wire(t *testing.T, r *http.Request) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// What is not plain goes the client's way, each time.
func TestObjectsThatAreNotPlain(t *testing.T) {
	isolate(t)
	pair := Config{Region: "eu-west-1", AccessKey: "AKIAPAIR", SecretKey: config.NewSecret("hunter2")}
	for _, tt := range []struct {
		name string
		in   s3.GetObjectInput
	}{
		{"a range", s3.GetObjectInput{Range: aws.String("bytes=1-2")}},
		{"a condition", s3.GetObjectInput{IfMatch: aws.String(`"e"`)}},
		{"paid by who asks", s3.GetObjectInput{RequestPayer: types.RequestPayerRequester}},
		{"a checksum", s3.GetObjectInput{ChecksumMode: types.ChecksumModeEnabled}},
		{"an owner", s3.GetObjectInput{ExpectedBucketOwner: aws.String("111111111111")}},
		{"a version that has to be escaped", s3.GetObjectInput{VersionId: aws.String("a b&c")}},
		{"a multi-region access point", s3.GetObjectInput{Bucket: aws.String("arn:aws:s3::111111111111:accesspoint/mfzwi23gnjvgw.mrap")}},
		{"an object lambda", s3.GetObjectInput{Bucket: aws.String("arn:aws:s3-object-lambda:eu-west-1:111111111111:accesspoint/l")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			far := new(fakeS3)
			ours, _ := objects(t, pair, far)
			in := tt.in
			in.Key = aws.String("k")
			if in.Bucket == nil {
				in.Bucket = aws.String("logs")
			}
			for range 3 {
				if _, err := ours.GetObject(t.Context(), &in, ""); err != nil {
					t.Fatal(err)
				}
			}
			if ours.knows(*in.Bucket, "") || len(far.took()) != 3 {
				t.Error("it was taken for plain")
			}
		})
	}
	t.Run("an identity that signs nothing", func(t *testing.T) {
		far := new(fakeS3)
		_, client := objects(t, pair, far)
		ours := NewObjects(s3.New(client.Options(), func(o *s3.Options) { o.Credentials = aws.AnonymousCredentials{} }))
		for range 3 {
			if _, err := ours.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("logs"), Key: aws.String("k")}, ""); err != nil {
				t.Fatal(err)
			}
		}
		if ours.knows("logs", "") {
			t.Error("it was taken for plain")
		}
	})
}

// Whatever goes wrong, the client is asked, and its answer or its error is the caller's.
func TestObjectsByExampleFail(t *testing.T) {
	isolate(t)
	synctest.Test(t, func(t *testing.T) {
		far := new(fakeS3)
		ours, _ := objects(t, Config{Region: "eu-west-1", AccessKey: "AKIAPAIR", SecretKey: config.NewSecret("hunter2")}, far)
		get := func() error {
			out, err := ours.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("logs"), Key: aws.String("k")}, "")
			if err == nil {
				_, err = io.ReadAll(out.Body)
			}
			return err
		}
		learn := func() {
			t.Helper()
			time.Sleep(2 * restsFor)
			far.answer = nil
			for !ours.knows("logs", "") {
				if err := get(); err != nil {
					t.Fatal(err)
				}
			}
			far.took()
		}
		for _, tt := range []struct {
			name    string
			answer  func(n int) *http.Response
			calls   int // at least; the client's retries among them
			err     error
			forgets bool
		}{
			{"no such key", func(int) *http.Response { return refusal(404, "NoSuchKey") }, 2, NoSuchKey, false},
			{"denied", func(int) *http.Response { return refusal(403, "AccessDenied") }, 2, ObjectDenied, false},
			{"broken always", func(int) *http.Response { return &http.Response{} }, 4, Unreachable, false},
			{"slow down, once", func(n int) *http.Response {
				if n == 1 {
					return refusal(503, "SlowDown")
				}
				return nil
			}, 2, nil, true},
			{"broken once", func(n int) *http.Response {
				if n == 1 {
					return &http.Response{}
				}
				return nil
			}, 2, nil, true},
			{"part of it", func(n int) *http.Response {
				if n == 1 {
					return refusal(http.StatusPartialContent, "")
				}
				return nil
			}, 2, nil, true},
		} {
			learn()
			far.answer = func(_ *http.Request, n int) *http.Response { return tt.answer(n) }
			if err := get(); !errors.Is(Explain(err), tt.err) || (err == nil) != (tt.err == nil) {
				t.Errorf("%s: %v", tt.name, err)
			}
			if n := len(far.took()); n < tt.calls {
				t.Errorf("%s: %d calls", tt.name, n)
			}
			if ours.knows("logs", "") == tt.forgets {
				t.Errorf("%s: known %v", tt.name, !tt.forgets)
			}
			if far.answer = nil; tt.forgets {
				if err := get(); err != nil || ours.knows("logs", "") {
					t.Errorf("%s: right afterwards it is not left to the client: %v", tt.name, err)
				}
			}
		}
		learn()
		stopped, stop := context.WithCancel(t.Context())
		stop()
		far.answer = func(r *http.Request, _ int) *http.Response {
			if r.Context().Err() != nil {
				return &http.Response{}
			}
			return nil
		}
		if _, err := ours.GetObject(stopped, &s3.GetObjectInput{Bucket: aws.String("logs"), Key: aws.String("k")}, ""); !errors.Is(err, context.Canceled) {
			t.Errorf("after a stop: %v", err)
		}
		if far.answer = nil; get() != nil || !ours.knows("logs", "") {
			t.Error("a stop has it forgotten")
		}
	})
}

// Credentials are those of the moment.
func TestObjectsWithRenewedSessions(t *testing.T) {
	isolate(t)
	synctest.Test(t, func(t *testing.T) {
		sts := &fakeSTS{lasts: time.Hour}
		cfg, err := load(t.Context(), Config{Region: "eu-west-1", BaseAssumeRole: baseRole}, sts)
		if err != nil {
			t.Fatal(err)
		}
		far := new(fakeS3)
		cfg.HTTPClient = far
		client, err := s3Client(cfg, Config{})
		if err != nil {
			t.Fatal(err)
		}
		ours := NewObjects(client)
		for i, want := range []string{"ASIA1", "ASIA1", "ASIA2"} {
			if i == 2 {
				time.Sleep(2 * time.Hour)
			}
			if _, err := ours.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("logs"), Key: aws.String("k")}, ""); err != nil {
				t.Fatal(err)
			}
			r := far.took()[0]
			if !strings.Contains(r.Header.Get(headerAuthorization), "Credential="+want+"/") || r.Header.Get(headerToken) != "token-hunter2" {
				t.Errorf("call %d: %v", i, r.Header)
			}
		}
	})
}

func TestInvocationsAreUUIDs(t *testing.T) {
	a, b := invocation(), invocation()
	if len(a) != 36 || a[14] != '4' || !strings.ContainsRune("89ab", rune(a[19])) || strings.Count(a, "-") != 4 || a == b {
		t.Errorf("%s, %s", a, b)
	}
}

func BenchmarkGetObject(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Etag", `"e"`)
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		_, _ = io.WriteString(w, objectBody)
	}))
	defer server.Close()
	c := Config{Region: "eu-west-1", AccessKey: "AKIAPAIR", SecretKey: config.NewSecret("hunter2"), EndpointURL: server.URL}
	client, err := S3(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	in := &s3.GetObjectInput{Bucket: aws.String("logs"), Key: aws.String("AWSLogs/111111111111/CloudTrail/eu-west-1/2026/11/22/x.json.gz")}
	read := func(out *s3.GetObjectOutput, err error) {
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, out.Body); err != nil || n != int64(len(objectBody)) {
			b.Fatalf("%d bytes, %v", n, err)
		}
		_ = out.Body.Close()
	}
	b.Run("client", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			read(client.GetObject(b.Context(), in))
		}
	})
	b.Run("example", func(b *testing.B) {
		ours := NewObjects(client)
		b.ReportAllocs()
		for b.Loop() {
			read(ours.GetObject(b.Context(), in, ""))
		}
	})
}
