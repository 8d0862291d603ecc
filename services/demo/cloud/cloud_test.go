package cloud_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/smithy-go"
	"go.uber.org/goleak"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/demo/cloud"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is an endpoint and clients of the real SDK, without retries, so that a
// test sees every answer.
type fixture struct {
	*cloud.Cloud
	s3  *s3.Client
	sqs *sqs.Client
}

func start(t testing.TB, o cloud.Options) fixture {
	t.Helper()
	c, err := cloud.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	if o.TLS != nil {
		transport.TLSClientConfig = &tls.Config{RootCAs: rootsOf(t, o.TLS), MinVersion: tls.VersionTLS13}
	}
	t.Cleanup(func() {
		c.Close()
		transport.CloseIdleConnections()
	})
	return fixture{c, s3Client(c, plainBodies{transport}, "AKIATEST"), sqsClient(c, plainBodies{transport}, "AKIATEST")}
}

// plainBodies hides the WriteTo of request bodies. That of smithy-go 1.28.8
// returns io.EOF once the answer has come, and net/http takes it for a failed
// request and closes the connection under the answer. An endpoint next door is
// fast enough to meet it every few thousand requests.
type plainBodies struct{ http.RoundTripper }

func (p plainBodies) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		req = req.Clone(req.Context())
		req.Body = struct{ io.ReadCloser }{req.Body}
	}
	return p.RoundTripper.RoundTrip(req)
}

func s3Client(c *cloud.Cloud, tr http.RoundTripper, keyID string) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(c.URL()), Region: "us-east-1", UsePathStyle: true, Retryer: aws.NopRetryer{},
		Credentials: credentials.NewStaticCredentialsProvider(keyID, "secret", ""), HTTPClient: &http.Client{Transport: tr},
	})
}

func sqsClient(c *cloud.Cloud, tr http.RoundTripper, keyID string) *sqs.Client {
	return sqs.New(sqs.Options{
		BaseEndpoint: aws.String(c.URL()), Region: "us-east-1", Retryer: aws.NopRetryer{},
		Credentials: credentials.NewStaticCredentialsProvider(keyID, "secret", ""), HTTPClient: &http.Client{Transport: tr},
	})
}

// serverTLS is a server's TLS configuration with a certificate for 127.0.0.1.
func serverTLS(t testing.TB) *tls.Config {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	return &tls.Config{Certificates: s.TLS.Certificates, MinVersion: tls.VersionTLS13}
}

func rootsOf(t testing.TB, server *tls.Config) *x509.CertPool {
	t.Helper()
	leaf, err := x509.ParseCertificate(server.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return pool
}

// codeOf is the service's error code in err, "" when there is none.
func codeOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// roundTrip sends a request that no SDK would and returns status and body.
func roundTrip(t testing.TB, req *http.Request) (int, string) {
	t.Helper()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestAuthorization(t *testing.T) {
	f := start(t, cloud.Options{AccessKeys: []string{"AKIATEST"}, CheckRegion: true})
	must(f.CreateQueue("q", nil))(t)
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()

	t.Run("known key", func(t *testing.T) {
		must(f.s3.ListBuckets(t.Context(), &s3.ListBucketsInput{}))(t)
		must(f.sqs.ListQueues(t.Context(), &sqs.ListQueuesInput{}))(t)
	})
	t.Run("unknown key", func(t *testing.T) {
		_, err := s3Client(f.Cloud, tr, "AKIAOTHER").ListBuckets(t.Context(), &s3.ListBucketsInput{})
		if got := codeOf(err); got != "InvalidAccessKeyId" {
			t.Errorf("S3 answered %q", got)
		}
		_, err = sqsClient(f.Cloud, tr, "AKIAOTHER").ListQueues(t.Context(), &sqs.ListQueuesInput{})
		if got := codeOf(err); got != "InvalidClientTokenId" {
			t.Errorf("SQS answered %q", got)
		}
	})
	t.Run("another region", func(t *testing.T) {
		_, err := f.s3.ListBuckets(t.Context(), &s3.ListBucketsInput{}, func(o *s3.Options) { o.Region = "eu-west-1" })
		if got := codeOf(err); got != "AuthorizationHeaderMalformed" {
			t.Errorf("S3 answered %q", got)
		}
	})
	t.Run("unsigned", func(t *testing.T) {
		before := f.Calls("ListBuckets")
		for _, target := range []string{"", "AmazonSQS.ListQueues"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL()+"/", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			if target != "" {
				req.Header.Set("X-Amz-Target", target)
			}
			status, body := roundTrip(t, req)
			if status != http.StatusForbidden || !strings.Contains(body, "Denied") && !strings.Contains(body, "MissingAuthenticationToken") {
				t.Errorf("target %q: %d %s", target, status, body)
			}
		}
		if f.Calls("ListBuckets") != before {
			t.Error("an unsigned request was counted")
		}
	})
	t.Run("presigned", func(t *testing.T) {
		if err := f.CreateBucket("signed", cloud.BucketOptions{}); err != nil {
			t.Fatal(err)
		}
		must(f.Put("signed", "k", cloud.Object{Body: []byte("v")}))(t)
		signed := must(s3.NewPresignClient(f.s3).PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("signed"), Key: aws.String("k")}))(t)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, signed.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if status, body := roundTrip(t, req); body != "v" {
			t.Errorf("got %d %s", status, body)
		}
	})
}

func TestStartAndClose(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := must(cloud.Start(ctx, cloud.Options{}))(t)
	_, err := cloud.Start(t.Context(), cloud.Options{Addr: strings.TrimPrefix(c.URL(), "http://")})
	if fault.CodeOf(err) != "demo.listen_failed" {
		t.Errorf("a taken address gave %v", err)
	}
	cancel() // the context ends it as Close does
	c.Close()
	c.Close()
	if _, err := http.Get(c.URL()); err == nil { //nolint:noctx,bodyclose // must not connect
		t.Error("still listening after Close")
	}
}

// Close returns after the last request has left, so that what a hook uses may go.
func TestCloseWaits(t *testing.T) {
	cut := make(chan struct{})
	var finished atomic.Bool
	f := start(t, cloud.Options{Fault: func(string, string, string) cloud.Fault {
		<-cut
		for range 10_000 {
			runtime.Gosched()
		}
		finished.Store(true)
		return cloud.Fault{}
	}})
	go func() {
		_, _ = f.s3.ListBuckets(t.Context(), &s3.ListBucketsInput{})
		close(cut) // Close has begun: it cuts connections first
	}()
	if err := f.Wait(t.Context(), func() bool { return f.Calls("ListBuckets") == 1 }); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if !finished.Load() {
		t.Error("a request was still in work")
	}
}

func TestWaitEnds(t *testing.T) {
	f := start(t, cloud.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Wait(ctx, func() bool { return false }); fault.CodeOf(err) != "demo.wait_ended" || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
