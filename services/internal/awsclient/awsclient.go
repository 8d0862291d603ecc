// Package awsclient makes AWS clients from configuration and explains their
// errors.
//
// What the configuration does not say is found as the AWS SDK finds it: from
// environment variables, shared configuration files and profiles, web identity,
// container and instance roles. Sessions of assumed roles are renewed before they
// end.
//
// Source: features DEV-32 to DEV-38 and DEV-63; AWS SDKs and Tools Reference Guide.
package awsclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
)

var (
	errLoad = fault.Define("aws.bad_configuration", fault.Stop,
		"check the profile, the shared AWS configuration files and the AWS_* environment variables")
	errCAFile = fault.Define("aws.bad_ca_file", fault.Stop,
		"set ca_file to a readable file with certificates in PEM form")
	// NoRegion means that a call needs a region and none is known.
	NoRegion = fault.Define("aws.no_region", fault.Stop,
		"set region, or the environment variable AWS_REGION, or a region in the profile")
)

// Limits of the HTTP connections of one client.
const (
	connectTimeout = 10 * time.Second // to dial, and again for the TLS handshake
	// stallTimeout ends a call that gets no byte for so long. SQS answers a long
	// poll after at most 20 seconds.
	stallTimeout    = 30 * time.Second
	idleTimeout     = 90 * time.Second
	maxIdleConns    = 256
	maxIdlePerHost  = 128 // 64 calls at once, and their successors, find a connection
	defaultSession  = "penstock"
	regionOfNowhere = "us-east-1" // signs calls to endpoints that have no regions
)

// Config says where AWS is and who calls it. The zero Config leaves everything to
// the SDK. There are four ways to name the caller, besides that of the SDK: a key
// pair; a key pair with base_assume_role; base_assume_role, with or without
// target_assume_role, assumed by the identity that the SDK finds or that profile
// names; and the same by the token in web_identity_token_file.
// Source: features DEV-33, DEV-63.
type Config struct {
	// Region of the service, e.g. eu-west-1. Empty: as the SDK finds it.
	Region string `yaml:"region"`
	// Profile of the shared configuration files. Empty: as the SDK finds it.
	Profile string `yaml:"profile"`
	// AccessKey is the id of a key pair. Goes with access_secret, not with profile
	// or target_assume_role.
	AccessKey string `yaml:"access_key"`
	// SecretKey is the secret of the key pair. Write ${file:/path} or ${NAME}.
	SecretKey config.Secret `yaml:"access_secret"`
	// SessionToken belongs to a temporary key pair.
	SessionToken config.Secret `yaml:"session_token"`
	// BaseAssumeRole is the ARN of the role to assume, or to assume first.
	BaseAssumeRole string `yaml:"base_assume_role"`
	// TargetAssumeRole is the ARN of a role, often of another account, that the base
	// role assumes.
	TargetAssumeRole string `yaml:"target_assume_role"`
	// WebIdentityTokenFile names a file with an OpenID Connect token, as Kubernetes
	// mounts it, by which base_assume_role is assumed. It is read at each renewal.
	// Empty: as the SDK finds it.
	WebIdentityTokenFile string `yaml:"web_identity_token_file"`
	// AssumeRoleExternalID is sent when the last of the roles is assumed.
	AssumeRoleExternalID string `yaml:"assume_role_external_id"`
	// SessionName marks the calls in the CloudTrail of the account. Empty: penstock.
	SessionName string `yaml:"session_name"`
	// EndpointURL replaces the address of the service, e.g. http://localhost:9000.
	// Empty: AWS, or as AWS_ENDPOINT_URL and its kin say. It does not move the calls
	// that assume roles.
	EndpointURL string `yaml:"endpoint_url"`
	// STSEndpointURL replaces the address at which roles are assumed.
	STSEndpointURL string `yaml:"sts_endpoint_url"`
	// PathStyle puts the bucket into the path instead of the host name. With a
	// replaced address that is always so.
	PathStyle bool `yaml:"path_style"`
	// CAFile names a file of certificates, as PEM, to trust besides those of the
	// system.
	CAFile string `yaml:"ca_file"`
}

var (
	roleARN     = regexp.MustCompile(`^arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+$`)
	sessionName = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
	externalID  = regexp.MustCompile(`^[\w+=,.@:/-]{2,}$`)
	regionName  = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)
)

// Validate reports every problem, each with the key to change.
// Source: features DEV-33.
func (c Config) Validate() error {
	var p config.Problems
	pair := c.AccessKey != "" || !c.SecretKey.IsZero()
	p.Need(!pair || c.AccessKey != "", "access_key", "set the id that belongs to access_secret")
	p.Need(!pair || !c.SecretKey.IsZero(), "access_secret", "set the secret that belongs to access_key, e.g. ${file:/run/secrets/aws}")
	if !c.SessionToken.IsZero() && !pair {
		p.Add("session_token", "stands without a key pair", "set access_key and access_secret too, or remove it")
	}
	if pair && c.Profile != "" {
		p.Add("profile", "two identities: a profile and a key pair", "remove profile, or access_key and access_secret")
	}
	if pair && c.TargetAssumeRole != "" {
		p.Add("target_assume_role", "a key pair does not go with a chain of roles",
			"remove access_key and access_secret, so that the machine's own identity or a profile assumes base_assume_role; or remove target_assume_role")
	}
	if c.WebIdentityTokenFile != "" {
		if pair || c.Profile != "" {
			p.Add("web_identity_token_file", "two identities: a token and a key pair or profile", "remove it, or access_key, access_secret and profile")
		}
		p.Need(c.BaseAssumeRole != "", "base_assume_role", "set the role that web_identity_token_file assumes")
		if c.AssumeRoleExternalID != "" && c.TargetAssumeRole == "" {
			p.Add("assume_role_external_id", "a web identity sends no external id", "remove it, or set target_assume_role, to which it belongs")
		}
	}
	if c.TargetAssumeRole != "" && c.BaseAssumeRole == "" {
		p.Add("target_assume_role", "no role assumes it", "set base_assume_role too; for a single role set only that")
	}
	if c.AssumeRoleExternalID != "" && c.BaseAssumeRole == "" && c.TargetAssumeRole == "" {
		p.Add("assume_role_external_id", "no role is assumed", "set base_assume_role, or remove it")
	}
	const arn = "write the ARN of a role, e.g. arn:aws:iam::123456789012:role/penstock"
	p.Need(c.BaseAssumeRole == "" || roleARN.MatchString(c.BaseAssumeRole), "base_assume_role", arn)
	p.Need(c.TargetAssumeRole == "" || roleARN.MatchString(c.TargetAssumeRole), "target_assume_role", arn)
	p.Need(c.AssumeRoleExternalID == "" || externalID.MatchString(c.AssumeRoleExternalID) && len(c.AssumeRoleExternalID) <= 1224, "assume_role_external_id",
		"use 2 to 1224 letters, digits and _+=,.@:/-")
	p.Need(c.SessionName == "" || sessionName.MatchString(c.SessionName), "session_name", "use 2 to 64 letters, digits and _+=,.@-")
	p.Need(c.Region == "" || regionName.MatchString(c.Region), "region", "write the name of a region, e.g. eu-west-1")
	const address = "write an http or https address, e.g. http://localhost:9000"
	p.Need(c.EndpointURL == "" || isAddress(c.EndpointURL), "endpoint_url", address)
	p.Need(c.STSEndpointURL == "" || isAddress(c.STSEndpointURL), "sts_endpoint_url", address)
	return p.Err()
}

func isAddress(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil
}

// Load makes the configuration of the SDK for the identity and the connections
// that c describes. It calls no AWS service; the first call of a client does. All
// clients made from one aws.Config share its connections and its session.
// Errors: aws.bad_configuration and aws.bad_ca_file, both fault.Stop.
func Load(ctx context.Context, c Config) (aws.Config, error) {
	client, err := httpClient(c.CAFile)
	if err != nil {
		return aws.Config{}, err
	}
	return load(ctx, c, client)
}

// load is Load over any way to send requests.
func load(ctx context.Context, c Config, client aws.HTTPClient) (aws.Config, error) {
	cfg, err := loadSelf(ctx, c, client)
	if err != nil {
		return aws.Config{}, err
	}
	assumeRoles(&cfg, c)
	return addressed(cfg, c), nil
}

// loadSelf is load without the roles and the address of c.
func loadSelf(ctx context.Context, c Config, client aws.HTTPClient) (aws.Config, error) {
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithHTTPClient(client),
		awsconfig.WithLogger(sdkLog{}),
		// To check a body costs CPU time that the codec's own checksum makes needless.
		awsconfig.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
		awsconfig.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
	}
	if c.Region != "" {
		options = append(options, awsconfig.WithRegion(c.Region))
	}
	if c.Profile != "" {
		options = append(options, awsconfig.WithSharedConfigProfile(c.Profile))
	}
	if c.AccessKey != "" {
		options = append(options, awsconfig.WithCredentialsProvider(
			credentials.NewStaticCredentialsProvider(c.AccessKey, c.SecretKey.Reveal(), c.SessionToken.Reveal())))
	}
	cfg, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return aws.Config{}, errLoad.New(err, "load the AWS configuration")
	}
	cfg.HTTPClient = plainBodies{cfg.HTTPClient}
	return cfg, nil
}

// addressed adds the address of c to what is loaded.
func addressed(cfg aws.Config, c Config) aws.Config {
	if c.EndpointURL != "" {
		cfg.BaseEndpoint = aws.String(c.EndpointURL)
	}
	if cfg.Region == "" && cfg.BaseEndpoint != nil {
		cfg.Region = regionOfNowhere
	}
	return cfg
}

// S3 makes a client of S3. Errors: those of [Load], and aws.no_region.
func S3(ctx context.Context, c Config) (*s3.Client, error) {
	cfg, err := Load(ctx, c)
	if err != nil {
		return nil, err
	}
	return s3Client(cfg, c)
}

func s3Client(cfg aws.Config, c Config) (*s3.Client, error) {
	client := s3.NewFromConfig(cfg, func(o *s3.Options) {
		if c.EndpointURL != "" { // also over AWS_ENDPOINT_URL_S3
			o.BaseEndpoint = aws.String(c.EndpointURL)
		}
		o.Region = regionFor(o.Region, o.BaseEndpoint)
		o.UsePathStyle = c.PathStyle || o.BaseEndpoint != nil
		o.DisableLogOutputChecksumValidationSkipped = true
	})
	if client.Options().Region == "" {
		return nil, NoRegion.New(nil, "make a client of S3")
	}
	return client, nil
}

// SQS makes a client of SQS. Errors: those of [Load], and aws.no_region.
func SQS(ctx context.Context, c Config) (*sqs.Client, error) {
	cfg, err := Load(ctx, c)
	if err != nil {
		return nil, err
	}
	return sqsClient(cfg, c)
}

func sqsClient(cfg aws.Config, c Config) (*sqs.Client, error) {
	client := sqs.NewFromConfig(cfg, func(o *sqs.Options) {
		if c.EndpointURL != "" {
			o.BaseEndpoint = aws.String(c.EndpointURL)
		}
		o.Region = regionFor(o.Region, o.BaseEndpoint)
	})
	if client.Options().Region == "" {
		return nil, NoRegion.New(nil, "make a client of SQS")
	}
	return client, nil
}

// STS makes a client of STS, at the address at which roles are assumed. Errors:
// those of [Load].
func STS(ctx context.Context, c Config) (*sts.Client, error) {
	c.EndpointURL = ""
	cfg, err := Load(ctx, c)
	if err != nil {
		return nil, err
	}
	return sts.NewFromConfig(cfg, func(o *sts.Options) {
		if c.STSEndpointURL != "" {
			o.BaseEndpoint = aws.String(c.STSEndpointURL)
		}
		if o.Region == "" {
			o.Region = regionOfNowhere
		}
	}), nil
}

// regionFor gives calls to a replaced address a region to be signed for.
func regionFor(region string, endpoint *string) string {
	if region == "" && endpoint != nil {
		return regionOfNowhere
	}
	return region
}

// queueHost matches the hosts of queue URLs, also of the older forms.
var queueHost = regexp.MustCompile(`^(?:sqs(?:-fips)?\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?|sqs\.([a-z0-9-]+)\.api\.aws|(?:([a-z0-9-]+)\.)?queue\.amazonaws\.com(?:\.cn)?)$`)

// QueueRegion returns the region that a queue URL names, empty for one that is not
// of AWS. Source: features VOI-4; Amazon SQS Developer Guide, queue identifiers.
func QueueRegion(queueURL string) string {
	u, err := url.Parse(queueURL)
	if err != nil {
		return ""
	}
	m := queueHost.FindStringSubmatch(strings.ToLower(u.Hostname()))
	if m == nil {
		return ""
	}
	if region := m[1] + m[2] + m[3]; region != "" {
		return region
	}
	return "us-east-1"
}

// httpClient makes connections that end when nothing arrives for long, and are kept
// for many calls at once.
func httpClient(caFile string) (aws.HTTPClient, error) {
	var roots *x509.CertPool
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, errCAFile.New(err, "read ca_file")
		}
		if roots, err = x509.SystemCertPool(); err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, errCAFile.New(nil, "read ca_file %s: there is no certificate in it", caFile)
		}
	}
	return awshttp.NewBuildableClient().
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = connectTimeout }).
		WithTransportOptions(func(tr *http.Transport) {
			tr.TLSHandshakeTimeout = connectTimeout
			tr.MaxIdleConns = maxIdleConns
			tr.MaxIdleConnsPerHost = maxIdlePerHost
			tr.IdleConnTimeout = idleTimeout
			tr.Proxy = staying(tr.Proxy)
			if roots != nil {
				if tr.TLSClientConfig == nil {
					tr.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
				}
				tr.TLSClientConfig.RootCAs = roots
			}
		}).
		WithReadTimeout(stallTimeout), nil
}

// staying asks for the proxy of a request, unless that is where a redirect leads away from
// the service: the SDK follows those, with the session token in a header, and nobody may
// be led to addresses that only this machine reaches, such as that of its metadata. The
// SDK leaves no other place to look at them.
func staying(proxy func(*http.Request) (*url.URL, error)) func(*http.Request) (*url.URL, error) {
	return func(r *http.Request) (*url.URL, error) {
		if from := r.Response; from != nil && from.Request != nil && !samePlace(from.Request.URL, r.URL) {
			return nil, fmt.Errorf("a redirect from %s leads away, to %s, and is not followed", from.Request.URL.Host, r.URL.Host)
		}
		if proxy == nil {
			return nil, nil //nolint:nilnil // as http.ProxyFromEnvironment
		}
		return proxy(r)
	}
}

// samePlace tells whether to is the service at from, or another address of AWS.
func samePlace(from, to *url.URL) bool {
	if from.Host == to.Host {
		return from.Scheme == to.Scheme || to.Scheme == "https"
	}
	for _, domain := range []string{".amazonaws.com", ".amazonaws.com.cn", ".api.aws"} {
		if strings.HasSuffix(from.Hostname(), domain) && strings.HasSuffix(to.Hostname(), domain) && to.Scheme == "https" {
			return true
		}
	}
	return false
}

// sdkLog passes the SDK's words to slog: by itself it writes plain lines to stderr.
type sdkLog struct{}

// Logf implements logging.Logger.
func (sdkLog) Logf(c logging.Classification, format string, v ...any) {
	level := slog.LevelDebug
	if c == logging.Warn {
		level = slog.LevelWarn
	}
	slog.Log(context.Background(), level, "aws sdk", "text", fmt.Sprintf(format, v...))
}

// plainBodies hides the WriteTo of the SDK's request bodies. It ends with io.EOF
// when the answer comes before the body is sent, and then the connection is closed
// under that answer: a received batch of messages would stay hidden for a
// visibility timeout. Seen with smithy-go 1.28.8.
type plainBodies struct{ aws.HTTPClient }

// Do implements aws.HTTPClient.
func (c plainBodies) Do(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = struct{ io.ReadCloser }{r.Body}
	}
	return c.HTTPClient.Do(r)
}
