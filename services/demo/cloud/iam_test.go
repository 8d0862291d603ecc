package cloud_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"

	"github.com/penstock/penstock/services/demo/cloud"
)

const role = "arn:aws:iam::210987654321:role/log-reader"

// pair are the credentials of a user, or of a session.
func pair(key, token string) aws.CredentialsProvider {
	return credentials.NewStaticCredentialsProvider(key, "secret", token)
}

func (f fixture) sts(who aws.CredentialsProvider) *sts.Client {
	return sts.New(sts.Options{
		BaseEndpoint: aws.String(f.URL()), Region: "us-east-1", Retryer: aws.NopRetryer{}, Credentials: who,
		HTTPClient: f.s3.Options().HTTPClient,
	})
}

func (f fixture) as(c *types.Credentials) func(*s3.Options) {
	return func(o *s3.Options) { o.Credentials = pair(*c.AccessKeyId, *c.SessionToken) }
}

// covers: DEV-35, DEV-36, DEV-37
func TestSessions(t *testing.T) {
	f := newBucket(t, cloud.Options{AccessKeys: []string{"AKIATEST"}})
	must(f.Put("bkt", "k", cloud.Object{Body: []byte("x")}))(t)
	ok(t, f.PutRole(cloud.Role{ARN: role, Trusts: []string{"arn:aws:iam::*:role/base"}, ExternalID: "ext"}))
	ok(t, f.PutRole(cloud.Role{ARN: "arn:aws:iam::123456789012:role/base", Trusts: []string{"*:user/AKIATEST"}, WebIdentity: "a.b.c"}))
	ctx := t.Context()
	assume := func(who aws.CredentialsProvider, arn, external string, seconds int32) (*types.Credentials, error) {
		in := &sts.AssumeRoleInput{RoleArn: &arn, RoleSessionName: aws.String("test"), DurationSeconds: &seconds}
		if external != "" {
			in.ExternalId = &external
		}
		out, err := f.sts(who).AssumeRole(ctx, in)
		if err != nil {
			return nil, err
		}
		return out.Credentials, nil
	}
	base, err := assume(pair("AKIATEST", ""), "arn:aws:iam::123456789012:role/base", "", 3600)
	if err != nil {
		t.Fatal(err)
	}
	asBase := pair(*base.AccessKeyId, *base.SessionToken)
	for name, try := range map[string]struct {
		who           aws.CredentialsProvider
		arn, external string
		seconds       int32
		code          string
	}{
		"no external id":    {asBase, role, "", 3600, "AccessDenied"},
		"not trusted":       {pair("AKIATEST", ""), role, "ext", 3600, "AccessDenied"},
		"no such role":      {asBase, role + "x", "ext", 3600, "AccessDenied"},
		"too long a chain":  {asBase, role, "ext", 7200, "ValidationError"},
		"too short":         {asBase, role, "ext", 60, "ValidationError"},
		"not a role":        {asBase, "arn:aws:iam::123456789012:user/x", "", 3600, "ValidationError"},
		"key of nobody":     {pair("AKIANOBODY", ""), role, "ext", 3600, "InvalidClientTokenId"},
		"token of another":  {pair(*base.AccessKeyId, "x"), role, "ext", 3600, "InvalidClientTokenId"},
		"session of nobody": {pair("ASIA-X", "x"), role, "ext", 3600, "InvalidClientTokenId"},
	} {
		if _, err := assume(try.who, try.arn, try.external, try.seconds); codeOf(err) != try.code {
			t.Errorf("%s: %v, want %s", name, err, try.code)
		}
	}
	target, err := assume(asBase, role, "ext", 3600)
	if err != nil {
		t.Fatal(err)
	}
	who, err := f.sts(pair(*target.AccessKeyId, *target.SessionToken)).GetCallerIdentity(ctx, nil)
	if err != nil || *who.Arn != "arn:aws:sts::210987654321:assumed-role/log-reader/test" || *who.Account != "210987654321" {
		t.Errorf("identity %v, %v", who, err)
	}
	if _, err := f.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("bkt"), Key: aws.String("k")}, f.as(target)); err != nil {
		t.Error(err)
	}

	web, err := f.sts(nil).AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: aws.String("arn:aws:iam::123456789012:role/base"), RoleSessionName: aws.String("pod"), WebIdentityToken: aws.String("a.b.c"),
	})
	if err != nil || *web.AssumedRoleUser.Arn != "arn:aws:sts::123456789012:assumed-role/base/pod" {
		t.Errorf("web identity: %+v, %v", web, err)
	}
	_, err = f.sts(nil).AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: aws.String("arn:aws:iam::123456789012:role/base"), RoleSessionName: aws.String("pod"), WebIdentityToken: aws.String("x.y.z"),
	})
	if codeOf(err) != "InvalidIdentityToken" {
		t.Errorf("another token: %v", err)
	}
	_, err = f.sts(nil).AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: aws.String(role), RoleSessionName: aws.String("pod"), WebIdentityToken: aws.String("a.b.c"),
	})
	if codeOf(err) != "AccessDenied" {
		t.Errorf("a role without web identity: %v", err)
	}
}

// bubble serves requests without a network, so that time can be that of synctest.
type bubble struct{ http.Handler }

func (b bubble) Do(r *http.Request) (*http.Response, error) { return inProcess(b.Handler, r), nil }

// covers: DEV-38
func TestSessionsEnd(t *testing.T) {
	f := newBucket(t, cloud.Options{})
	must(f.CreateQueue("q", nil))(t)
	must(f.Put("bkt", "k", cloud.Object{Body: []byte("x")}))(t)
	synctest.Test(t, func(t *testing.T) {
		far := bubble{f.Handler()}
		client := sts.New(sts.Options{BaseEndpoint: aws.String(f.URL()), Region: "us-east-1", HTTPClient: far, Credentials: pair("AKIATEST", "")})
		out, err := client.AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: aws.String(role), RoleSessionName: aws.String("test"), DurationSeconds: aws.Int32(900)})
		if err != nil || !out.Credentials.Expiration.Equal(time.Now().Add(15*time.Minute)) {
			t.Fatalf("%+v, %v", out, err)
		}
		get := func() error {
			_, err := f.s3.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("bkt"), Key: aws.String("k")}, f.as(out.Credentials),
				func(o *s3.Options) { o.HTTPClient = far })
			return err
		}
		receive := func() error {
			_, err := f.sqs.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: aws.String(f.QueueURL("q"))}, func(o *sqs.Options) {
				o.Credentials, o.HTTPClient = pair(*out.Credentials.AccessKeyId, *out.Credentials.SessionToken), far
			})
			return err
		}
		time.Sleep(15*time.Minute - time.Second)
		if get() != nil || receive() != nil {
			t.Errorf("ended too early: %v, %v", get(), receive())
		}
		time.Sleep(time.Second)
		if codeOf(get()) != "ExpiredToken" || codeOf(receive()) != "ExpiredToken" {
			t.Errorf("still in force: %v, %v", get(), receive())
		}
	})
}

// covers: DEV-39, DEV-41
func TestPolicies(t *testing.T) {
	const key = "arn:aws:kms:us-east-1:123456789012:key/00000000-0000-4000-8000-000000000000"
	const policy = `{"Version": "2012-10-17", "Statement": [
		{"Effect": "Allow", "Action": "sqs:GetQueueAttributes", "Resource": "arn:aws:sqs:*:123456789012:q"},
		{"Effect": "Allow", "Action": ["s3:GetObject", "s3:getobjectversion"], "Resource": ["arn:aws:s3:::bkt/logs/*", "arn:aws:s3:::other/*"]},
		{"Effect": "Deny", "Action": "s3:*", "Resource": "arn:aws:s3:::bkt/logs/secret*"},
		{"Effect": "Allow", "Action": "kms:Decrypt", "Resource": "` + key + `", "Condition": {"StringEquals": {"kms:ViaService": "s3.us-east-1.amazonaws.com"}}}
	]}`
	f := newBucket(t, cloud.Options{})
	must(f.CreateQueue("q", nil))(t)
	for _, k := range []string{"logs/a", "logs/secret", "else"} {
		must(f.Put("bkt", k, cloud.Object{Body: []byte("x")}))(t)
	}
	must(f.Put("bkt", "logs/mine", cloud.Object{Body: []byte("x"), KMSKey: key}))(t)
	must(f.Put("bkt", "logs/theirs", cloud.Object{Body: []byte("x"), KMSKey: key + "9"}))(t)
	ok(t, f.PutUser(cloud.User{AccessKey: "AKIATEST", Name: "reader", Policy: policy}))
	get := func(key string) string {
		_, err := f.get(t, &s3.GetObjectInput{Bucket: aws.String("bkt"), Key: &key})
		if err == nil {
			return ""
		}
		return err.Error()
	}
	const denied = "User: arn:aws:iam::123456789012:user/reader is not authorized to perform: "
	for k, want := range map[string]string{
		"logs/a": "", "logs/mine": "",
		"else":        denied + `s3:GetObject on resource: "arn:aws:s3:::bkt/else" because no identity-based policy`,
		"logs/secret": denied + `s3:GetObject on resource: "arn:aws:s3:::bkt/logs/secret" with an explicit deny`,
		"logs/theirs": denied + `kms:Decrypt on resource: "` + key + `9"`,
		"logs/none":   denied + `s3:ListBucket on resource: "arn:aws:s3:::bkt"`,
	} {
		if got := get(k); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: %s", k, got)
		}
	}
	if _, err := f.s3.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("bkt")}); codeOf(err) != "AccessDenied" {
		t.Errorf("list: %v", err)
	}
	url := aws.String(f.QueueURL("q"))
	must(f.sqs.GetQueueAttributes(t.Context(), &sqs.GetQueueAttributesInput{QueueUrl: url}))(t)
	if _, err := f.sqs.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: url}); codeOf(err) != "AccessDenied" {
		t.Errorf("receive: %v", err)
	}
	for name, bad := range map[string]string{
		"not JSON": "x", "no statement": `{"Version": "2012-10-17"}`, "old": `{"Version": "2008-10-17", "Statement": []}`,
		"a word more": strings.Replace(policy, `"Effect": "Deny"`, `"Effect": "Deny", "NotAction": "x"`, 1),
		"a condition": strings.Replace(policy, `StringEquals`, `IpAddress`, 1),
	} {
		if f.PutUser(cloud.User{AccessKey: "k", Policy: bad}) == nil || f.PutRole(cloud.Role{ARN: role, Policy: bad}) == nil {
			t.Errorf("%s was taken for a policy", name)
		}
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func inProcess(h http.Handler, r *http.Request) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}
