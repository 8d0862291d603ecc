package cloud_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/demo/cloud"
)

func newBucket(t testing.TB, o cloud.Options) fixture {
	t.Helper()
	f := start(t, o)
	if err := f.CreateBucket("bkt", cloud.BucketOptions{}); err != nil {
		t.Fatal(err)
	}
	return f
}

// get reads a whole object.
func (f fixture) get(t testing.TB, in *s3.GetObjectInput) (string, error) {
	t.Helper()
	out, err := f.s3.GetObject(t.Context(), in)
	if err != nil {
		return "", err
	}
	defer func() { _ = out.Body.Close() }()
	b, err := io.ReadAll(out.Body)
	return string(b), err
}

func TestBuckets(t *testing.T) {
	f := start(t, cloud.Options{})
	ctx := t.Context()
	must(f.s3.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String("log-bucket-a")}))(t)
	_, err := f.s3.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String("log-bucket-a")})
	var owned *types.BucketAlreadyOwnedByYou
	if !errors.As(err, &owned) {
		t.Errorf("second create: %v", err)
	}
	_, err = f.s3.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String("Bad_Name")})
	if codeOf(err) != "InvalidBucketName" {
		t.Errorf("bad name: %v", err)
	}
	must(f.s3.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: aws.String("log-bucket-a")}))(t)
	_, err = f.s3.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: aws.String("nope")})
	var missing *types.NotFound
	if !errors.As(err, &missing) {
		t.Errorf("head of a missing bucket: %v", err)
	}
	must(f.s3.GetBucketLocation(ctx, &s3.GetBucketLocationInput{Bucket: aws.String("log-bucket-a")}))(t)
	list := must(f.s3.ListBuckets(ctx, &s3.ListBucketsInput{}))(t)
	if len(list.Buckets) != 1 || *list.Buckets[0].Name != "log-bucket-a" {
		t.Errorf("listed %+v", list.Buckets)
	}
	must(f.Put("log-bucket-a", "k", cloud.Object{Body: []byte("x")}))(t)
	_, err = f.s3.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: aws.String("log-bucket-a")})
	if codeOf(err) != "BucketNotEmpty" {
		t.Errorf("delete of a full bucket: %v", err)
	}
	must(f.s3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: aws.String("log-bucket-a"), Key: aws.String("k")}))(t)
	must(f.s3.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: aws.String("log-bucket-a")}))(t)
	_, err = f.s3.GetBucketAcl(ctx, &s3.GetBucketAclInput{Bucket: aws.String("log-bucket-a")})
	if codeOf(err) != "NoSuchBucket" {
		t.Errorf("a deleted bucket: %v", err)
	}
}

func TestGetObject(t *testing.T) {
	f := newBucket(t, cloud.Options{})
	bkt, key := aws.String("bkt"), aws.String("a+b/ü 1%2F=&.json")
	put := must(f.s3.PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: bkt, Key: key, Body: strings.NewReader("0123456789"), ContentType: aws.String("application/json"), Metadata: map[string]string{"origin": "x"},
	}))(t)

	tests := []struct {
		name string
		in   s3.GetObjectInput
		want string
		code string
	}{
		{name: "whole", want: "0123456789"},
		{name: "with checksum", in: s3.GetObjectInput{ChecksumMode: types.ChecksumModeEnabled}, want: "0123456789"},
		{name: "middle", in: s3.GetObjectInput{Range: aws.String("bytes=2-4")}, want: "234"},
		{name: "from", in: s3.GetObjectInput{Range: aws.String("bytes=7-")}, want: "789"},
		{name: "last two", in: s3.GetObjectInput{Range: aws.String("bytes=-2")}, want: "89"},
		{name: "beyond the end", in: s3.GetObjectInput{Range: aws.String("bytes=8-100")}, want: "89"},
		{name: "more than all", in: s3.GetObjectInput{Range: aws.String("bytes=-100")}, want: "0123456789"},
		{name: "after the end", in: s3.GetObjectInput{Range: aws.String("bytes=10-")}, code: "InvalidRange"},
		{name: "match", in: s3.GetObjectInput{IfMatch: put.ETag}, want: "0123456789"},
		{name: "no match", in: s3.GetObjectInput{IfMatch: aws.String(`"00"`)}, code: "PreconditionFailed"},
		{name: "not modified", in: s3.GetObjectInput{IfNoneMatch: put.ETag}, code: "NotModified"},
		{name: "no such key", in: s3.GetObjectInput{Key: aws.String("nope")}, code: "NoSuchKey"},
		{name: "no such bucket", in: s3.GetObjectInput{Bucket: aws.String("nope")}, code: "NoSuchBucket"},
		{name: "no such version", in: s3.GetObjectInput{VersionId: aws.String("nope")}, code: "NoSuchVersion"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.in.Bucket == nil {
				tt.in.Bucket = bkt
			}
			if tt.in.Key == nil {
				tt.in.Key = key
			}
			if got, err := f.get(t, &tt.in); got != tt.want || codeOf(err) != tt.code || (err == nil) != (tt.code == "") {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	t.Run("typed errors", func(t *testing.T) {
		_, err := f.get(t, &s3.GetObjectInput{Bucket: bkt, Key: aws.String("nope")})
		var key *types.NoSuchKey
		if !errors.As(err, &key) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("head", func(t *testing.T) {
		h := must(f.s3.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: bkt, Key: key}))(t)
		if *h.ContentLength != 10 || *h.ETag != *put.ETag || *h.ContentType != "application/json" || h.Metadata["origin"] != "x" || h.LastModified == nil {
			t.Errorf("got %+v", h)
		}
		_, err := f.s3.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: bkt, Key: aws.String("nope")})
		var missing *types.NotFound
		if !errors.As(err, &missing) {
			t.Errorf("missing: %v", err)
		}
	})
	t.Run("etag is the md5", func(t *testing.T) {
		if *put.ETag != `"781e5e245d69b566979b86e28d23f2c7"` {
			t.Errorf("got %s", *put.ETag)
		}
	})
	t.Run("denied", func(t *testing.T) {
		must(f.Put("bkt", "secret", cloud.Object{Body: []byte("x"), Denied: true}))(t)
		if _, err := f.get(t, &s3.GetObjectInput{Bucket: bkt, Key: aws.String("secret")}); codeOf(err) != "AccessDenied" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("unknown operations are refused", func(t *testing.T) {
		_, err := f.s3.GetObjectTagging(t.Context(), &s3.GetObjectTaggingInput{Bucket: bkt, Key: key})
		if codeOf(err) != "NotImplemented" {
			t.Errorf("tagging: %v", err)
		}
		_, err = f.s3.CopyObject(t.Context(), &s3.CopyObjectInput{Bucket: bkt, Key: aws.String("copy"), CopySource: aws.String("bkt/x")})
		if codeOf(err) != "NotImplemented" {
			t.Errorf("copy: %v", err)
		}
	})
	t.Run("virtual host", func(t *testing.T) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL()+"/secret-free", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		must(f.Put("bkt", "secret-free", cloud.Object{Body: []byte("by host")}))(t)
		req.Host = "bkt.localhost"
		req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIATEST/20260105/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0")
		if status, body := roundTrip(t, req); body != "by host" {
			t.Errorf("got %d %s", status, body)
		}
	})
}

// A generated object is never whole in memory, and reads like any other.
func TestGeneratedObject(t *testing.T) {
	f := newBucket(t, cloud.Options{})
	const size = 3_000_000
	write := func(w io.Writer) error {
		for i := range size / 10 {
			if _, err := fmt.Fprintf(w, "%09d\n", i); err != nil {
				return err
			}
		}
		return nil
	}
	stored := must(f.Put("bkt", "big", cloud.Object{Write: write, Size: size}))(t)
	whole, err := f.get(t, &s3.GetObjectInput{Bucket: aws.String("bkt"), Key: aws.String("big"), IfMatch: &stored.ETag})
	if err != nil || len(whole) != size || !strings.HasSuffix(whole, "000299999\n") {
		t.Fatalf("got %d bytes, %v", len(whole), err)
	}
	part, err := f.get(t, &s3.GetObjectInput{Bucket: aws.String("bkt"), Key: aws.String("big"), Range: aws.String("bytes=1000005-1000024")})
	if err != nil || part != whole[1_000_005:1_000_025] {
		t.Errorf("got %q, %v", part, err)
	}
	must(f.Put("bkt", "short", cloud.Object{Write: func(w io.Writer) error { _, err := w.Write([]byte("abc")); return err }, Size: 5}))(t)
	if got, err := f.get(t, &s3.GetObjectInput{Bucket: aws.String("bkt"), Key: aws.String("short")}); err == nil {
		t.Errorf("a generator that stops early gave a whole object: %q", got)
	}
}

func TestPutObject(t *testing.T) {
	body := make([]byte, 300_000)
	_, _ = rand.Read(body)
	for _, scheme := range []string{"http", "https"} { // over TLS the SDK sends aws-chunked bodies with a trailer
		t.Run(scheme, func(t *testing.T) {
			o := cloud.Options{}
			if scheme == "https" {
				o.TLS = serverTLS(t)
			}
			f := newBucket(t, o)
			for _, algorithm := range []types.ChecksumAlgorithm{"", "CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"} {
				for _, n := range []int{0, 1, 70_000, len(body)} {
					key := aws.String(fmt.Sprint(algorithm, "/", n))
					must(f.s3.PutObject(t.Context(), &s3.PutObjectInput{
						Bucket: aws.String("bkt"), Key: key, Body: bytes.NewReader(body[:n]), ChecksumAlgorithm: algorithm, ContentEncoding: aws.String("gzip"),
					}))(t)
					out := must(f.s3.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("bkt"), Key: key}))(t)
					got := must(io.ReadAll(out.Body))(t)
					_ = out.Body.Close()
					if !bytes.Equal(got, body[:n]) || *out.ContentEncoding != "gzip" {
						t.Errorf("%s: got %d bytes, encoding %s", *key, len(got), *out.ContentEncoding)
					}
				}
			}
		})
	}
	t.Run("conditions", func(t *testing.T) {
		f := newBucket(t, cloud.Options{})
		put := func(in s3.PutObjectInput) error {
			in.Bucket, in.Key, in.Body = aws.String("bkt"), aws.String("k"), strings.NewReader("x")
			_, err := f.s3.PutObject(t.Context(), &in)
			return err
		}
		if err := put(s3.PutObjectInput{IfMatch: aws.String(`"0"`)}); codeOf(err) != "NoSuchKey" {
			t.Errorf("if-match without an object: %v", err)
		}
		if err := put(s3.PutObjectInput{IfNoneMatch: aws.String("*")}); err != nil {
			t.Error(err)
		}
		if err := put(s3.PutObjectInput{IfNoneMatch: aws.String("*")}); codeOf(err) != "PreconditionFailed" {
			t.Errorf("second write-once put: %v", err)
		}
	})
}

// Bodies as a client that errs would send them.
func TestPutObjectChecks(t *testing.T) {
	f := newBucket(t, cloud.Options{})
	tests := []struct {
		name   string
		header map[string]string
		body   string
		want   string // error code; "" = stored as "hello"
	}{
		{"plain", nil, "hello", ""},
		{"chunked", map[string]string{
			"X-Amz-Content-Sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "X-Amz-Decoded-Content-Length": "5", "X-Amz-Trailer": "x-amz-checksum-crc32", "Content-Encoding": "aws-chunked",
		}, "3\r\nhel\r\n2\r\nlo\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n", ""},
		{"signed chunks", map[string]string{
			"X-Amz-Content-Sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "X-Amz-Decoded-Content-Length": "5",
		}, "5;chunk-signature=00\r\nhello\r\n0;chunk-signature=00\r\n\r\n", ""},
		{"wrong trailer", map[string]string{
			"X-Amz-Content-Sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "X-Amz-Decoded-Content-Length": "5", "X-Amz-Trailer": "x-amz-checksum-crc32",
		}, "5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n", "BadDigest"},
		{"no trailer", map[string]string{
			"X-Amz-Content-Sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "X-Amz-Decoded-Content-Length": "5", "X-Amz-Trailer": "x-amz-checksum-crc32",
		}, "5\r\nhello\r\n0\r\n\r\n", "MalformedTrailerError"},
		{"wrong length", map[string]string{
			"X-Amz-Content-Sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "X-Amz-Decoded-Content-Length": "6",
		}, "5\r\nhello\r\n0\r\n\r\n", "IncompleteBody"},
		{"cut chunk", map[string]string{
			"X-Amz-Content-Sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "X-Amz-Decoded-Content-Length": "5",
		}, "5\r\nhel", "IncompleteBody"},
		{"no chunk size", map[string]string{
			"X-Amz-Content-Sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "X-Amz-Decoded-Content-Length": "5",
		}, "hello", "IncompleteBody"},
		{"wrong md5", map[string]string{"Content-Md5": "AAAAAAAAAAAAAAAAAAAAAA=="}, "hello", "BadDigest"},
		{"wrong sha256", map[string]string{"X-Amz-Content-Sha256": strings.Repeat("0", 64)}, "hello", "XAmzContentSHA256Mismatch"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, f.URL()+"/bkt/"+strings.ReplaceAll(tt.name, " ", "-"), strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=AKIATEST/20260105/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0")
			for k, v := range tt.header {
				req.Header.Set(k, v)
			}
			status, answer := roundTrip(t, req)
			if tt.want != "" {
				if status != http.StatusBadRequest || !strings.Contains(answer, "<Code>"+tt.want+"</Code>") {
					t.Errorf("got %d %s, want %s", status, answer, tt.want)
				}
				return
			}
			got, err := f.get(t, &s3.GetObjectInput{Bucket: aws.String("bkt"), Key: aws.String(strings.ReplaceAll(tt.name, " ", "-"))})
			if got != "hello" || err != nil {
				t.Errorf("stored %q, %v", got, err)
			}
		})
	}
}

func TestVersions(t *testing.T) {
	f := newBucket(t, cloud.Options{})
	ctx, bkt, key := t.Context(), aws.String("bkt"), aws.String("k")
	must(f.s3.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: bkt, VersioningConfiguration: &types.VersioningConfiguration{Status: "Enabled"}}))(t)
	if v := must(f.s3.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: bkt}))(t); v.Status != "Enabled" {
		t.Errorf("versioning is %q", v.Status)
	}
	one := must(f.s3.PutObject(ctx, &s3.PutObjectInput{Bucket: bkt, Key: key, Body: strings.NewReader("one")}))(t)
	two := must(f.s3.PutObject(ctx, &s3.PutObjectInput{Bucket: bkt, Key: key, Body: strings.NewReader("two")}))(t)
	if *one.VersionId == *two.VersionId {
		t.Fatal("two versions share an id")
	}
	read := func(id *string) string {
		got, err := f.get(t, &s3.GetObjectInput{Bucket: bkt, Key: key, VersionId: id})
		return got + codeOf(err)
	}
	if read(nil) != "two" || read(one.VersionId) != "one" || read(two.VersionId) != "two" {
		t.Errorf("latest %s, one %s, two %s", read(nil), read(one.VersionId), read(two.VersionId))
	}
	gone := must(f.s3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bkt, Key: key}))(t)
	if !*gone.DeleteMarker || read(nil) != "NoSuchKey" || read(one.VersionId) != "one" || read(gone.VersionId) != "MethodNotAllowed" {
		t.Errorf("after the delete: latest %s, one %s, marker %s", read(nil), read(one.VersionId), read(gone.VersionId))
	}
	if list := must(f.s3.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: bkt}))(t); f.Objects("bkt") != 0 || len(list.Contents) != 0 {
		t.Errorf("a deleted key counts: %d, %d listed", f.Objects("bkt"), len(list.Contents))
	}
	must(f.s3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bkt, Key: key, VersionId: gone.VersionId}))(t)
	if read(nil) != "two" {
		t.Errorf("without the marker: %s", read(nil))
	}
}

func TestListObjectsV2(t *testing.T) {
	f := newBucket(t, cloud.Options{})
	keys := []string{"a/1", "a/2", "a/b/3", "a/b/4", "a/c/5", "a.txt", "b", "c/6", "ü+ &", "z"}
	for i := range keys { // not in order
		must(f.Put("bkt", keys[(i*7)%len(keys)], cloud.Object{Body: []byte("x")}))(t)
	}
	must(f.Put("bkt", "gone", cloud.Object{Body: []byte("x")}))(t)
	if err := f.Delete("bkt", "gone"); err != nil {
		t.Fatal(err)
	}
	slices.Sort(keys)

	tests := []struct {
		name     string
		in       s3.ListObjectsV2Input
		keys     []string
		prefixes []string
	}{
		{name: "all", keys: keys},
		{name: "prefix", in: s3.ListObjectsV2Input{Prefix: aws.String("a/b")}, keys: []string{"a/b/3", "a/b/4"}},
		{name: "no match", in: s3.ListObjectsV2Input{Prefix: aws.String("x")}},
		{name: "start after", in: s3.ListObjectsV2Input{StartAfter: aws.String("b")}, keys: []string{"c/6", "z", "ü+ &"}},
		{name: "start after a key that is not there", in: s3.ListObjectsV2Input{StartAfter: aws.String("bb")}, keys: []string{"c/6", "z", "ü+ &"}},
		{name: "delimiter", in: s3.ListObjectsV2Input{Delimiter: aws.String("/")}, keys: []string{"a.txt", "b", "z", "ü+ &"}, prefixes: []string{"a/", "c/"}},
		{name: "delimiter and prefix", in: s3.ListObjectsV2Input{Delimiter: aws.String("/"), Prefix: aws.String("a/")}, keys: []string{"a/1", "a/2"}, prefixes: []string{"a/b/", "a/c/"}},
	}
	for _, tt := range tests {
		for _, size := range []int32{1, 2, 3, 1000} {
			t.Run(fmt.Sprintf("%s, pages of %d", tt.name, size), func(t *testing.T) {
				in := tt.in
				in.Bucket, in.MaxKeys = aws.String("bkt"), &size
				var got, prefixes []string
				pages := s3.NewListObjectsV2Paginator(f.s3, &in)
				for pages.HasMorePages() {
					page := must(pages.NextPage(t.Context()))(t)
					if n := len(page.Contents) + len(page.CommonPrefixes); n > int(size) || n != int(*page.KeyCount) {
						t.Fatalf("%d items, KeyCount %d", n, *page.KeyCount)
					}
					for _, o := range page.Contents {
						got = append(got, *o.Key)
					}
					for _, p := range page.CommonPrefixes {
						prefixes = append(prefixes, *p.Prefix)
					}
				}
				if !slices.Equal(got, tt.keys) || !slices.Equal(prefixes, tt.prefixes) {
					t.Errorf("got %v and %v", got, prefixes)
				}
			})
		}
	}
	t.Run("missing bucket", func(t *testing.T) {
		_, err := f.s3.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("nope")})
		var missing *types.NoSuchBucket
		if !errors.As(err, &missing) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("encoded keys", func(t *testing.T) {
		out := must(f.s3.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("bkt"), Prefix: aws.String("ü"), EncodingType: "url"}))(t)
		if len(out.Contents) != 1 || *out.Contents[0].Key != "%C3%BC%2B+%26" {
			t.Errorf("got %s", *out.Contents[0].Key)
		}
	})
}

func TestRefusals(t *testing.T) {
	f := newBucket(t, cloud.Options{})
	tests := []struct {
		name string
		call func() error
	}{
		{"put into no bucket", func() error { _, err := f.Put("nope", "k", cloud.Object{}); return err }},
		{"put without key", func() error { _, err := f.Put("bkt", "", cloud.Object{}); return err }},
		{"delete from no bucket", func() error { return f.Delete("nope", "k") }},
		{"bad bucket name", func() error { return f.CreateBucket("X", cloud.BucketOptions{}) }},
		{"notify no queue", func() error { return f.Notify("bkt", cloud.Notification{Queue: "nope"}) }},
		{"bad queue name", func() error { _, err := f.CreateQueue("a b", nil); return err }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.call(); fault.CodeOf(err) != "demo.refused" {
				t.Errorf("got %v", err)
			}
		})
	}
}
