package awsclient

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/penstock/penstock/services/internal/config"
)

// A service leads nobody to another place: not to addresses that only this machine
// reaches, and not to somebody who would be told the session token.
func TestRedirectsStayWithTheService(t *testing.T) {
	var elsewhere, followed atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	t.Cleanup(other.Close)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/away"):
			http.Redirect(w, r, other.URL+"/latest/meta-data/", http.StatusTemporaryRedirect)
		case strings.HasSuffix(r.URL.Path, "/near"):
			http.Redirect(w, r, "/some-bucket/there", http.StatusTemporaryRedirect)
		default:
			followed.Add(1)
		}
	}))
	t.Cleanup(service.Close)
	client, err := S3(t.Context(), Config{
		EndpointURL: service.URL, Region: "eu-west-1", AccessKey: "AKIAEXAMPLE", SecretKey: config.NewSecret("s"), SessionToken: config.NewSecret("t"),
	})
	if err != nil {
		t.Fatal(err)
	}
	get := func(key string) error {
		out, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("some-bucket"), Key: aws.String(key)}, func(o *s3.Options) { o.RetryMaxAttempts = 1 })
		if err == nil {
			err = out.Body.Close()
		}
		return err
	}
	if err := get("away"); err == nil || !strings.Contains(err.Error(), "leads away") || elsewhere.Load() != 0 {
		t.Errorf("a redirect elsewhere: %v, and %d requests came there", err, elsewhere.Load())
	}
	if err := get("near"); err != nil || followed.Load() != 1 {
		t.Errorf("a redirect within the service: %v, followed %d times", err, followed.Load())
	}
	for _, to := range []struct {
		from, to string
		ok       bool
	}{
		{"https://b.s3.amazonaws.com/k", "https://b.s3-eu-west-1.amazonaws.com/k", true},
		{"https://b.s3.amazonaws.com/k", "http://b.s3-eu-west-1.amazonaws.com/k", false},
		{"https://b.s3.amazonaws.com/k", "https://169.254.169.254/latest", false},
		{"https://b.s3.amazonaws.com/k", "http://[fd00:ec2::254]/latest", false},
		{"https://b.s3.amazonaws.com/k", "https://amazonaws.com.evil.example/k", false},
		{"https://b.s3.amazonaws.com/k", "https://evilamazonaws.com/k", false},
		{"https://store.example.com/k", "https://b.s3.amazonaws.com/k", false},
		{"https://store.example.com/k", "http://store.example.com/k", false},
		{"https://store.example.com/k", "https://store.example.com:444/k", false},
	} {
		from, _ := url.Parse(to.from)
		target, _ := url.Parse(to.to)
		if got := samePlace(from, target); got != to.ok {
			t.Errorf("from %s to %s: %v", to.from, to.to, got)
		}
	}
}

// A service that says back what it was told makes no error show it.
func TestErrorsTellNoSessionToken(t *testing.T) {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "<Error><Code>AccessDenied</Code><Message>you said "+r.Header.Get("X-Amz-Security-Token")+" and "+r.Header.Get("Authorization")+"</Message></Error>")
	}))
	t.Cleanup(service.Close)
	client, err := S3(t.Context(), Config{
		EndpointURL: service.URL, Region: "eu-west-1", AccessKey: "AKIAEXAMPLE", SecretKey: config.NewSecret("s"), SessionToken: config.NewSecret("CANARYTOKEN"),
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("some-bucket"), Key: aws.String("k")}, func(o *s3.Options) { o.RetryMaxAttempts = 1 })
	if text := Explain(err).Error(); !strings.Contains(text, "you said [redacted]") || strings.Contains(text, "CANARY") || strings.Contains(text, "Signature=") {
		t.Errorf("the error is: %s", text)
	}
}
