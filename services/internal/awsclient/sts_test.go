package awsclient

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/config"
)

const keyARN = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-4000-8000-000000000000"

// account is an emulated AWS with a bucket of encrypted logs.
func account(t *testing.T) *cloud.Cloud {
	t.Helper()
	c, err := cloud.Start(t.Context(), cloud.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.CreateBucket("logs", cloud.BucketOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put("logs", "a/b", cloud.Object{Body: []byte("x"), KMSKey: keyARN}); err != nil {
		t.Fatal(err)
	}
	return c
}

func putRole(t *testing.T, c *cloud.Cloud, r cloud.Role) {
	t.Helper()
	if err := c.PutRole(r); err != nil {
		t.Fatal(err)
	}
}

func read(ctx context.Context, client *s3.Client, key string) error {
	out, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("logs"), Key: &key}, once)
	if err != nil {
		return Explain(err)
	}
	_, err = io.Copy(io.Discard, out.Body)
	return errors.Join(err, out.Body.Close())
}

func policy(statements ...*Statement) string {
	texts := make([]string, len(statements))
	for i, s := range statements {
		texts[i] = s.String()
	}
	return `{"Version": "2012-10-17", "Statement": [` + strings.Join(texts, ",") + `]}`
}

// Each identity reads an encrypted object with the permissions of its last role,
// and with nothing else.
// covers: LIM-28, DEV-33, DEV-35, DEV-36, DEV-37, DEV-63
func TestIdentitiesRead(t *testing.T) {
	dir := isolate(t)
	token := write(t, dir, "token", "a.b.c")
	read1 := policy(Allow("arn:aws:s3:::logs/*", "s3:GetObject"), Allow(keyARN, "kms:Decrypt"))
	nothing := policy(Allow("*", "sts:AssumeRole"))
	pair := Config{AccessKey: "AKIAPAIR", SecretKey: config.NewSecret("hunter2")}
	tests := []struct {
		name  string
		cfg   Config
		user  cloud.User
		roles []cloud.Role
		env   []string
		calls [2]int64 // AssumeRole, AssumeRoleWithWebIdentity
	}{
		{"a key pair", pair, cloud.User{AccessKey: "AKIAPAIR", Policy: read1}, nil, nil, [2]int64{}},
		{
			"a role of the same account",
			Config{AccessKey: "AKIAPAIR", SecretKey: pair.SecretKey, BaseAssumeRole: baseRole},
			cloud.User{AccessKey: "AKIAPAIR", Name: "p", Policy: nothing},
			[]cloud.Role{{ARN: baseRole, Trusts: []string{"arn:aws:iam::123456789012:user/p"}, Policy: read1}},
			nil,
			[2]int64{1, 0},
		},
		{
			"a role of another account",
			Config{BaseAssumeRole: baseRole, TargetAssumeRole: targetRole, AssumeRoleExternalID: "ext"},
			cloud.User{AccessKey: "AKIAMACHINE", Policy: nothing},
			[]cloud.Role{{ARN: baseRole, Policy: nothing}, {ARN: targetRole, Trusts: []string{baseRole}, ExternalID: "ext", Policy: read1}},
			nil,
			[2]int64{2, 0},
		},
		{
			"a web identity",
			Config{WebIdentityTokenFile: token, BaseAssumeRole: baseRole},
			cloud.User{AccessKey: "AKIAMACHINE", Policy: nothing},
			[]cloud.Role{{ARN: baseRole, WebIdentity: "a.b.c", Policy: read1}},
			nil,
			[2]int64{0, 1},
		},
		{
			"a web identity and a role",
			Config{WebIdentityTokenFile: token, BaseAssumeRole: baseRole, TargetAssumeRole: targetRole, AssumeRoleExternalID: "ext"},
			cloud.User{AccessKey: "AKIAMACHINE", Policy: nothing},
			[]cloud.Role{{ARN: baseRole, WebIdentity: "a.b.c", Policy: nothing}, {ARN: targetRole, Trusts: []string{baseRole}, ExternalID: "ext", Policy: read1}},
			nil,
			[2]int64{1, 1},
		},
		{
			"a web identity of the environment",
			Config{},
			cloud.User{AccessKey: "AKIAMACHINE", Policy: nothing},
			[]cloud.Role{{ARN: baseRole, WebIdentity: "a.b.c", Policy: read1}},
			[]string{"AWS_ACCESS_KEY_ID", "", "AWS_SECRET_ACCESS_KEY", "", "AWS_WEB_IDENTITY_TOKEN_FILE", token, "AWS_ROLE_ARN", baseRole},
			[2]int64{0, 1},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := account(t)
			if err := c.PutUser(tt.user); err != nil {
				t.Fatal(err)
			}
			for _, r := range tt.roles {
				putRole(t, c, r)
			}
			for i := 0; i < len(tt.env); i += 2 {
				t.Setenv(tt.env[i], tt.env[i+1])
			}
			t.Setenv("AWS_ENDPOINT_URL_STS", c.URL())
			if err := tt.cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			tt.cfg.EndpointURL, tt.cfg.Region = c.URL(), "us-east-1"
			client, err := S3(t.Context(), tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if err := read(t.Context(), client, "a/b"); err != nil {
					t.Error(err)
				}
			}
			if got := [2]int64{c.Calls("AssumeRole"), c.Calls("AssumeRoleWithWebIdentity")}; got != tt.calls {
				t.Errorf("%v calls to STS, want %v", got, tt.calls)
			}
		})
	}
}

// inProcess calls the endpoint without a network, so that time can be that of synctest.
type inProcess struct{ http.Handler }

func (h inProcess) Do(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result(), nil
}

// Six hours of reading every half minute, over sessions of every length: none is used
// after its end, which both services would refuse.
// covers: DEV-38
func TestSessionsNeverEndInUse(t *testing.T) {
	isolate(t)
	c := account(t)
	url, err := c.CreateQueue("q", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, life := range []time.Duration{time.Hour, 15 * time.Minute, 2 * time.Minute} {
		t.Run(life.String(), func(t *testing.T) {
			putRole(t, c, cloud.Role{ARN: baseRole, Life: life})
			putRole(t, c, cloud.Role{ARN: targetRole, Life: life})
			before := c.Calls("AssumeRole")
			synctest.Test(t, func(t *testing.T) {
				cfg := Config{Region: "us-east-1", EndpointURL: c.URL(), STSEndpointURL: c.URL(), BaseAssumeRole: baseRole, TargetAssumeRole: targetRole}
				loaded, err := load(t.Context(), cfg, inProcess{c.Handler()})
				if err != nil {
					t.Fatal(err)
				}
				bucket, err := s3Client(loaded, cfg)
				if err != nil {
					t.Fatal(err)
				}
				queue, err := sqsClient(loaded, cfg)
				if err != nil {
					t.Fatal(err)
				}
				for range 6 * 60 * 2 {
					if err := read(t.Context(), bucket, "a/b"); err != nil {
						t.Fatal(err)
					}
					if _, err := queue.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: &url}); err != nil {
						t.Fatal(Explain(err))
					}
					time.Sleep(30 * time.Second)
				}
			})
			sessions := (c.Calls("AssumeRole") - before) / 2
			if least := int64(6 * time.Hour / life); sessions < least || sessions > 2*least {
				t.Errorf("%d sessions of %s", sessions, life)
			}
		})
	}
}

// What is refused is named with the line to add to the policy.
// covers: DEV-41
func TestExplainNamesThePolicyLine(t *testing.T) {
	isolate(t)
	c := account(t)
	c.SetFault(nil)
	objects, list := Allow("arn:aws:s3:::logs/*", "s3:GetObject"), Allow("arn:aws:s3:::logs", "s3:ListBucket")
	key := Allow(keyARN, "kms:Decrypt")
	tests := []struct {
		name string
		has  []*Statement
		key  string
		kind error
		says string
		add  *Statement
	}{
		{"all", []*Statement{objects, list, key}, "a/b", nil, "", nil},
		{"no key", []*Statement{objects, list}, "a/b", ObjectKeyDenied, "it needs kms:Decrypt; add to its policy: ", key},
		{"no object", []*Statement{list, key}, "a/b", ObjectDenied, "it needs s3:GetObject; add to its policy: ", objects},
		{"not there", []*Statement{objects, list, key}, "a/c", NoSuchKey, "", nil},
		{"not there, no list", []*Statement{objects, key}, "a/c", ObjectDenied, "it needs s3:ListBucket, without which S3 does not tell a missing key from a refused one; add to its policy: ", list},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := c.PutUser(cloud.User{AccessKey: "AKIAMACHINE", Policy: policy(tt.has...)}); err != nil {
				t.Fatal(err)
			}
			client, err := S3(t.Context(), Config{EndpointURL: c.URL()})
			if err != nil {
				t.Fatal(err)
			}
			err = read(t.Context(), client, tt.key)
			if !errors.Is(err, tt.kind) || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("got %v", err)
			}
			if tt.add == nil {
				return
			}
			action, resource := Lacks(err)
			if got := Allow(resource, action).String(); got != tt.add.String() || !strings.Contains(err.Error(), got) {
				t.Errorf("got  %s in %v\nwant %s", got, err, tt.add)
			}
		})
	}
}

func TestWebIdentityFails(t *testing.T) {
	dir := isolate(t)
	c := account(t)
	putRole(t, c, cloud.Role{ARN: baseRole, WebIdentity: "a.b.c"})
	for name, want := range map[string]error{write(t, dir, "token", "old"): BadCredentials, filepath.Join(dir, "none"): Failed} {
		client, err := S3(t.Context(), Config{EndpointURL: c.URL(), STSEndpointURL: c.URL(), WebIdentityTokenFile: name, BaseAssumeRole: baseRole})
		if err != nil {
			t.Fatal(err)
		}
		if err := read(t.Context(), client, "a/b"); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
