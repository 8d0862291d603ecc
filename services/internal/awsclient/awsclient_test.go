package awsclient

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
)

const (
	baseRole   = "arn:aws:iam::111111111111:role/base"
	targetRole = "arn:aws:iam::222222222222:role/path/target"
)

// isolate hides the AWS settings of the machine, and gives an identity of the
// environment.
func isolate(t *testing.T) string {
	t.Helper()
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "") // puts it back afterwards
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	dir := t.TempDir()
	t.Setenv("AWS_CONFIG_FILE", write(t, dir, "config", ""))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", write(t, dir, "credentials", ""))
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIAMACHINE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "machine-hunter2")
	return dir
}

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// fakeSTS answers AssumeRole in the Query protocol, and remembers who asked for what.
// Source: AWS Security Token Service API Reference, AssumeRole.
type fakeSTS struct {
	lasts time.Duration // of the sessions

	mu     sync.Mutex
	calls  []string // caller's key → role [external id] as session
	issued int
	fails  bool
}

func (s *fakeSTS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := r.ParseForm(); err != nil || r.Form.Get("Action") != "AssumeRole" || r.Form.Get("Version") != "2011-06-15" {
		http.Error(w, "not AssumeRole", http.StatusBadRequest)
		return
	}
	_, key, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
	key, _, _ = strings.Cut(key, "/")
	role := r.Form.Get("RoleArn")
	s.calls = append(s.calls, fmt.Sprintf("%s → %s [%s] as %s", key, role[strings.LastIndex(role, "/")+1:], r.Form.Get("ExternalId"), r.Form.Get("RoleSessionName")))
	w.Header().Set("Content-Type", "text/xml")
	if s.fails {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>AccessDenied</Code>`+
			`<Message>User: arn:aws:iam::111111111111:user/x is not authorized to perform: sts:AssumeRole on resource: `+role+`</Message></Error><RequestId>req-1</RequestId></ErrorResponse>`)
		return
	}
	s.issued++
	fmt.Fprintf(w, `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>`+
		`<AccessKeyId>ASIA%d</AccessKeyId><SecretAccessKey>session-hunter2</SecretAccessKey><SessionToken>token-hunter2</SessionToken><Expiration>%s</Expiration>`+
		`</Credentials></AssumeRoleResult><ResponseMetadata><RequestId>req-1</RequestId></ResponseMetadata></AssumeRoleResponse>`,
		s.issued, time.Now().Add(s.lasts).UTC().Format(time.RFC3339))
}

// Do lets it stand in for the network, inside of a synctest bubble.
func (s *fakeSTS) Do(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, r)
	return rec.Result(), nil
}

func (s *fakeSTS) took() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.calls = nil }()
	return s.calls
}

// covers: DEV-33, DEV-35, DEV-36, DEV-37
func TestIdentities(t *testing.T) {
	dir := isolate(t)
	t.Setenv("AWS_CONFIG_FILE", write(t, dir, "config", "[profile p]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = profile-hunter2\nregion = ap-south-1\n"))
	pair := Config{AccessKey: "AKIAPAIR", SecretKey: config.NewSecret("pair-hunter2")}
	with := func(c Config, change func(c *Config)) Config { change(&c); return c }
	tests := []struct {
		name  string
		cfg   Config
		key   string // that calls are made with
		calls []string
	}{
		{"the machine's own", Config{}, "AKIAMACHINE", nil},
		{"a profile", Config{Profile: "p"}, "AKIAPROFILE", nil},
		{"a key pair", pair, "AKIAPAIR", nil},
		{"a key pair and a role", with(pair, func(c *Config) { c.BaseAssumeRole = baseRole }), "ASIA1", []string{"AKIAPAIR → base [] as penstock"}},
		{"a role and an external id", Config{BaseAssumeRole: baseRole, AssumeRoleExternalID: "ext:1"}, "ASIA1", []string{"AKIAMACHINE → base [ext:1] as penstock"}},
		{
			"a chain of roles",
			Config{BaseAssumeRole: baseRole, TargetAssumeRole: targetRole, AssumeRoleExternalID: "ext", SessionName: "me"},
			"ASIA2",
			[]string{"AKIAMACHINE → base [] as me", "ASIA1 → target [ext] as me"},
		},
		{
			"a chain of roles from a profile",
			Config{Profile: "p", BaseAssumeRole: baseRole, TargetAssumeRole: targetRole},
			"ASIA2",
			[]string{"AKIAPROFILE → base [] as penstock", "ASIA1 → target [] as penstock"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			far := &fakeSTS{lasts: time.Hour}
			server := httptest.NewServer(far)
			defer server.Close()
			tt.cfg.STSEndpointURL = server.URL
			tt.cfg.EndpointURL = "http://127.0.0.1:1" // takes no part in assuming roles
			cfg, err := Load(t.Context(), tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			for range 3 { // cached
				creds, err := cfg.Credentials.Retrieve(t.Context())
				if err != nil || creds.AccessKeyID != tt.key {
					t.Fatalf("%s, %v, want %s", creds.AccessKeyID, err, tt.key)
				}
			}
			if got := far.took(); fmt.Sprint(got) != fmt.Sprint(tt.calls) {
				t.Errorf("got  %q\nwant %q", got, tt.calls)
			}
		})
	}
}

// covers: DEV-38
func TestSessionsAreRenewed(t *testing.T) {
	isolate(t)
	tests := []struct {
		name  string
		lasts time.Duration
		keeps time.Duration // no call to STS so long
	}{
		{"an hour", time.Hour, 54 * time.Minute},
		{"the least", 15 * time.Minute, 11 * time.Minute},
		{"shorter than the window", time.Minute, 44 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				far := &fakeSTS{lasts: tt.lasts}
				cfg, err := load(t.Context(), Config{Region: "eu-west-1", BaseAssumeRole: baseRole, TargetAssumeRole: targetRole}, far)
				if err != nil {
					t.Fatal(err)
				}
				key := func() string {
					creds, err := cfg.Credentials.Retrieve(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if left := time.Until(creds.Expires); left <= 0 {
						t.Fatalf("the session ended %s ago", -left)
					}
					return creds.AccessKeyID
				}
				first := key()
				time.Sleep(tt.keeps)
				if key() != first || len(far.took()) != 2 {
					t.Error("the session was renewed too early")
				}
				time.Sleep(tt.lasts - tt.keeps - time.Second) // not ended yet
				if key() == first || len(far.took()) != 2 {
					t.Error("the session was not renewed before its end")
				}
			})
		})
	}
}

// An outage of STS does no harm while the old session lasts.
func TestRenewalFails(t *testing.T) {
	isolate(t)
	synctest.Test(t, func(t *testing.T) {
		far := &fakeSTS{lasts: time.Hour}
		cfg, err := load(t.Context(), Config{Region: "eu-west-1", BaseAssumeRole: baseRole}, far)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cfg.Credentials.Retrieve(t.Context()); err != nil {
			t.Fatal(err)
		}
		far.took()
		far.fails = true
		time.Sleep(56 * time.Minute)
		for range 100 {
			creds, err := cfg.Credentials.Retrieve(t.Context())
			if err != nil || creds.AccessKeyID != "ASIA1" {
				t.Fatalf("%s, %v", creds.AccessKeyID, err)
			}
		}
		if n := len(far.took()); n != 1 {
			t.Errorf("%d calls to STS at once", n)
		}
		time.Sleep(4*time.Minute + time.Second)
		_, err = cfg.Credentials.Retrieve(t.Context())
		if !errors.Is(Explain(err), AccessDenied) {
			t.Errorf("after the end: %v", err)
		}
		far.fails = false
		if creds, err := cfg.Credentials.Retrieve(t.Context()); err != nil || creds.AccessKeyID != "ASIA2" {
			t.Errorf("after the outage: %s, %v", creds.AccessKeyID, err)
		}
	})
}

// covers: DEV-33
func TestValidate(t *testing.T) {
	secret := config.NewSecret("hunter2")
	tests := []struct {
		name string
		cfg  Config
		want string // empty: none
	}{
		{"nothing", Config{}, ""},
		{"everything that goes together", Config{
			Region: "eu-west-1", AccessKey: "a", SecretKey: secret, SessionToken: secret, BaseAssumeRole: baseRole,
			AssumeRoleExternalID: "id", SessionName: "me@x", EndpointURL: "http://localhost:9000", STSEndpointURL: "https://sts.example.com/", PathStyle: true,
		}, ""},
		{"half a pair", Config{AccessKey: "a"}, "access_secret: missing"},
		{"the other half", Config{SecretKey: secret}, "access_key: missing"},
		{"a token alone", Config{SessionToken: secret}, "session_token: stands without a key pair"},
		{"two identities", Config{AccessKey: "a", SecretKey: secret, Profile: "p"}, "profile: two identities"},
		{"a pair and a chain", Config{AccessKey: "a", SecretKey: secret, BaseAssumeRole: baseRole, TargetAssumeRole: targetRole}, "target_assume_role: a key pair does not go with a chain of roles"},
		{"a target alone", Config{TargetAssumeRole: targetRole}, "target_assume_role: no role assumes it"},
		{"an external id alone", Config{AssumeRoleExternalID: "id"}, "assume_role_external_id: no role is assumed"},
		{"a token and a role", Config{WebIdentityTokenFile: "t", BaseAssumeRole: baseRole}, ""},
		{"a token alone", Config{WebIdentityTokenFile: "t"}, "base_assume_role: missing"},
		{"a token and a pair", Config{WebIdentityTokenFile: "t", BaseAssumeRole: baseRole, AccessKey: "a", SecretKey: secret}, "web_identity_token_file: two identities"},
		{"a token and an external id", Config{WebIdentityTokenFile: "t", BaseAssumeRole: baseRole, AssumeRoleExternalID: "id"}, "assume_role_external_id: a web identity sends no external id"},
		{"not a role", Config{BaseAssumeRole: "arn:aws:iam::1:user/x"}, "base_assume_role: the default arn:aws:iam::1:user/x is not acceptable here; fix: write the ARN of a role"},
		{"not an address", Config{EndpointURL: "localhost:9000"}, "endpoint_url: the default localhost:9000 is not"},
		{"a password in an address", Config{EndpointURL: "http://u:hunter2@h"}, "endpoint_url: the default http://[redacted]@h is not"},
		{"not a region", Config{Region: "EU West"}, "region: the default EU West is not"},
		{"not a session name", Config{BaseAssumeRole: baseRole, SessionName: "a b"}, "session_name: the default a b is not"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := fmt.Sprint(config.Check(tt.cfg))
			if tt.want == "" && got != "<nil>" || !strings.Contains(got, tt.want) || strings.Contains(got, "\n") {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if strings.Contains(got+fmt.Sprintf("%+v %#v", tt.cfg, tt.cfg), "hunter2") && tt.cfg.EndpointURL == "" {
				t.Error("a secret is shown")
			}
		})
	}
}

func TestYAMLKeys(t *testing.T) { // covers: DEV-63
	var c struct {
		AWS Config `yaml:"aws"`
	}
	err := config.Parse("p.yaml", []byte("aws: {access_key: a, access_secret: b, base_assume_role: "+baseRole+", assume_role_external_id: xy}"), &c)
	if err != nil || c.AWS.SecretKey.Reveal() != "b" || c.AWS.AssumeRoleExternalID != "xy" {
		t.Errorf("%+v, %v", c, err)
	}
	err = config.Parse("p.yaml", []byte("aws: {target_assume_role: "+targetRole+"}"), &c)
	if err == nil {
		t.Error("Validate was not called")
	}
}

func TestClients(t *testing.T) {
	isolate(t)
	type seen struct{ s3URL, s3Region, sqsURL string }
	tests := []struct {
		name  string
		cfg   Config
		env   []string
		style bool // path style
		want  seen
	}{
		{"AWS", Config{Region: "eu-west-1"}, nil, false, seen{"", "eu-west-1", ""}},
		{"path style", Config{Region: "eu-west-1", PathStyle: true}, nil, true, seen{"", "eu-west-1", ""}},
		{"region of the environment", Config{}, []string{"AWS_REGION", "eu-north-1"}, false, seen{"", "eu-north-1", ""}},
		{"own address", Config{EndpointURL: "http://a"}, nil, true, seen{"http://a", "us-east-1", "http://a"}},
		{"own address wins", Config{EndpointURL: "http://a"}, []string{"AWS_ENDPOINT_URL_S3", "http://b", "AWS_ENDPOINT_URL", "http://c"}, true, seen{"http://a", "us-east-1", "http://a"}},
		{"address of the environment", Config{}, []string{"AWS_ENDPOINT_URL_S3", "http://b", "AWS_ENDPOINT_URL", "http://c"}, true, seen{"http://b", "us-east-1", "http://c"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for i := 0; i < len(tt.env); i += 2 {
				t.Setenv(tt.env[i], tt.env[i+1])
			}
			bucket, err := S3(t.Context(), tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			queue, err := SQS(t.Context(), tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			o := bucket.Options()
			got := seen{aws.ToString(o.BaseEndpoint), o.Region, aws.ToString(queue.Options().BaseEndpoint)}
			if got != tt.want || o.UsePathStyle != tt.style {
				t.Errorf("got %+v, path style %v", got, o.UsePathStyle)
			}
			if o.ResponseChecksumValidation != aws.ResponseChecksumValidationWhenRequired || o.Retryer.MaxAttempts() != 3 {
				t.Errorf("checksums %v, %d attempts", o.ResponseChecksumValidation, o.Retryer.MaxAttempts())
			}
		})
	}
}

func TestLoadFails(t *testing.T) {
	dir := isolate(t)
	tests := []struct {
		name string
		cfg  Config
		want string
	}{
		{"no region", Config{}, "aws.no_region"},
		{"no such profile", Config{Profile: "none", Region: "r"}, "aws.bad_configuration"},
		{"no CA file", Config{CAFile: filepath.Join(dir, "none"), Region: "r"}, "aws.bad_ca_file"},
		{"not a CA file", Config{CAFile: write(t, dir, "ca", "hunter2"), Region: "r"}, "aws.bad_ca_file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := S3(t.Context(), tt.cfg)
			if _, err2 := SQS(t.Context(), tt.cfg); fault.CodeOf(err) != tt.want || fault.CodeOf(err2) != tt.want || fault.ClassOf(err) != fault.Stop {
				t.Errorf("S3: %v\nSQS: %v", err, err2)
			}
			if strings.Contains(fmt.Sprint(err), "hunter2") {
				t.Errorf("content is in the error: %v", err)
			}
		})
	}
}

func TestCAFile(t *testing.T) {
	dir := isolate(t)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "body") }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
	server.StartTLS()
	defer server.Close()
	ca := write(t, dir, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	get := func(c Config) error {
		c.EndpointURL = server.URL
		client, err := S3(t.Context(), c)
		if err != nil {
			return err
		}
		out, err := client.GetObject(t.Context(), &s3.GetObjectInput{Bucket: aws.String("b"), Key: aws.String("k")}, once)
		if err != nil {
			return err
		}
		defer out.Body.Close()
		if body, err := io.ReadAll(out.Body); err != nil || string(body) != "body" {
			return fmt.Errorf("read %q: %w", body, err)
		}
		return nil
	}
	if err := get(Config{CAFile: ca}); err != nil {
		t.Error(err)
	}
	err := get(Config{})
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &unknown) || !errors.Is(Explain(err), Untrusted) {
		t.Errorf("%v", Explain(err))
	}
}

// Sixty-four calls at once need sixty-four connections, and find them again.
func TestConnectionsAreKept(t *testing.T) {
	isolate(t)
	const calls = 64
	var opened atomic.Int32
	var together sync.WaitGroup
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		together.Done()
		together.Wait() // answered when all are there
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		fmt.Fprint(w, "{}")
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	client, err := SQS(t.Context(), Config{EndpointURL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		together.Add(calls)
		var done sync.WaitGroup
		for range calls {
			done.Go(func() {
				if _, err := client.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: aws.String(server.URL + "/q")}); err != nil {
					t.Error(err)
				}
			})
		}
		done.Wait()
	}
	if n := opened.Load(); n > calls+8 { // a dial may lose a race with a connection that comes free
		t.Errorf("%d connections for %d calls at once", n, calls)
	}
	plain, _ := client.Options().HTTPClient.(plainBodies)
	buildable, ok := plain.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		t.Fatalf("the client is a %T", client.Options().HTTPClient)
	}
	if d, ok := buildable.GetReadTimeout(); !ok || d != stallTimeout || buildable.GetDialer().Timeout != connectTimeout {
		t.Errorf("timeouts %s, %s", d, buildable.GetDialer().Timeout)
	}
}

func TestQueueRegion(t *testing.T) { // covers: VOI-4
	tests := map[string]string{
		"https://sqs.eu-west-1.amazonaws.com/123456789012/q":     "eu-west-1",
		"https://sqs.cn-north-1.amazonaws.com.cn/123456789012/q": "cn-north-1",
		"https://sqs-fips.us-gov-west-1.amazonaws.com/1/q":       "us-gov-west-1",
		"https://sqs.eu-central-1.api.aws/1/q":                   "eu-central-1",
		"https://eu-west-1.queue.amazonaws.com/123456789012/q":   "eu-west-1",
		"https://queue.amazonaws.com/123456789012/q":             "us-east-1",
		"http://localhost:9324/000000000000/q":                   "",
		"https://sqs.eu-west-1.amazonaws.com.evil.example/1/q":   "",
		"https://s3.eu-west-1.amazonaws.com/123456789012/q":      "",
		"::": "",
	}
	for in, want := range tests {
		if got := QueueRegion(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}
