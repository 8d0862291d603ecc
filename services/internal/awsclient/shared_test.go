package awsclient

import (
	"errors"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/penstock/penstock/services/internal/config"
)

func TestShared(t *testing.T) {
	isolate(t)
	far := &fakeSTS{lasts: time.Hour}
	server := httptest.NewServer(far)
	defer server.Close()
	var s Shared
	role := Config{Region: "eu-west-1", BaseAssumeRole: baseRole, STSEndpointURL: server.URL}
	at := func(c Config, address string) Config { c.EndpointURL = address; return c }

	one, err := s.load(t.Context(), at(role, "http://a"))
	if err != nil {
		t.Fatal(err)
	}
	same, err := s.load(t.Context(), at(role, "http://b"))
	if err != nil {
		t.Fatal(err)
	}
	other := role
	other.AssumeRoleExternalID = "ext"
	third, err := s.load(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	if *one.BaseEndpoint != "http://a" || *same.BaseEndpoint != "http://b" || third.BaseEndpoint != nil {
		t.Error("addresses are mixed up")
	}
	if one.HTTPClient != same.HTTPClient || one.HTTPClient != third.HTTPClient {
		t.Error("connections are not shared")
	}
	for _, cfg := range []aws.Config{one, same, third} {
		if _, err := cfg.Credentials.Retrieve(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"AKIAMACHINE → base [] as penstock", "AKIAMACHINE → base [ext] as penstock"}
	if got := far.took(); !slices.Equal(got, want) {
		t.Errorf("roles assumed: %q, want %q", got, want)
	}

	// Of equal secrets, and of different ones.
	pair := func(secret string) Config { return Config{AccessKey: "AKIAPAIR", SecretKey: config.NewSecret(secret)} }
	a, errA := s.load(t.Context(), pair("one"))
	b, errB := s.load(t.Context(), pair("one"))
	c, errC := s.load(t.Context(), pair("two"))
	if err := errors.Join(errA, errB, errC); err != nil {
		t.Fatal(err)
	}
	if a.HTTPClient != b.HTTPClient || a.HTTPClient == c.HTTPClient {
		t.Error("secrets are not compared by what they say")
	}
	creds, err := c.Credentials.Retrieve(t.Context())
	if err != nil || creds.SecretAccessKey != "two" {
		t.Errorf("the secret of another is used, %v", err)
	}

	// Each client counts its own retries.
	x, errX := s.SQS(t.Context(), at(role, "http://a"))
	y, errY := s.SQS(t.Context(), at(role, "http://a"))
	if err := errors.Join(errX, errY); err != nil {
		t.Fatal(err)
	}
	if x.Options().Retryer == y.Options().Retryer {
		t.Error("two clients have one budget of retries")
	}
	if _, err := s.S3(t.Context(), Config{}); !errors.Is(err, NoRegion) {
		t.Errorf("without a region: %v", err)
	}
	if _, err := s.S3(t.Context(), Config{Region: "eu-west-1", CAFile: "nowhere"}); !errors.Is(err, errCAFile) {
		t.Errorf("without certificates: %v", err)
	}
}
