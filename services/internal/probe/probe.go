// Package probe holds what sources and destinations find out about themselves when
// they are asked whether they would work: each call that they make is tried once,
// without changing anything, and what is refused is named with the way to mend it.
//
// In:     the configuration of one source or destination.
// Out:    findings, in the order in which they were made.
// Errors: none; what goes wrong is a finding.
// State:  none.
package probe

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
)

// Prober is a configuration that can be tried. Sources and destinations whose
// configuration is none are only checked for what it says.
type Prober interface {
	// Probe makes each call that the part makes when it runs, and changes nothing:
	// what it takes it gives back at once. It ends soon after ctx.
	Probe(ctx context.Context) []Finding
}

// Level says how bad a finding is.
type Level string

// The levels.
const (
	// OK: it works.
	OK Level = "ok"
	// Warn: it works, but something should be looked at, or could not be tried.
	Warn Level = "warn"
	// Fail: it will not work.
	Fail Level = "fail"
)

// Finding is the result of one check.
type Finding struct {
	Level Level `json:"level"`
	// Check is what was tried: an action as IAM names it, or a word or two.
	Check string `json:"check"`
	// Resource is what it was tried on.
	Resource string `json:"resource,omitempty"`
	// Detail says what was found.
	Detail string `json:"detail,omitempty"`
	// Code of the fault catalogue, for what failed.
	Code string `json:"code,omitempty"`
	// Fix says what to do.
	Fix string `json:"fix,omitempty"`
	// Policy is the statement to add to the policy of the caller.
	Policy *awsclient.Statement `json:"policy,omitempty"`
}

// Good is a finding that something works.
func Good(check, resource, detail string) Finding {
	return Finding{Level: OK, Check: check, Resource: resource, Detail: detail}
}

// Doubt is a finding that something should be looked at.
func Doubt(check, resource, detail, fix string) Finding {
	return Finding{Level: Warn, Check: check, Resource: resource, Detail: detail, Fix: fix}
}

// Bad is a finding that something will not work.
func Bad(check, resource, detail, fix string) Finding {
	return Finding{Level: Fail, Check: check, Resource: resource, Detail: detail, Fix: fix}
}

// Error is the finding for an error; faults bring their code and fix.
func Error(check, resource string, err error) Finding {
	f := Finding{Level: Fail, Check: check, Resource: resource, Detail: err.Error()}
	var known *fault.Error
	if errors.As(err, &known) {
		f.Code, f.Fix, f.Detail = known.Kind.Code, known.Kind.Fix, known.Doing
		if known.Cause != nil {
			f.Detail += ": " + known.Cause.Error()
		}
	}
	return f
}

// Call is the finding about a call to AWS that returned err. Arn is what a policy
// should name; what the service itself says is missing goes before action and arn.
func Call(action, arn string, err error) Finding {
	if err == nil {
		return Good(action, arn, "")
	}
	err = awsclient.Explain(err)
	f := Error(action, arn, err)
	if !refused(err) {
		return f
	}
	lacks, on := awsclient.Lacks(err)
	f.Check = cmp.Or(lacks, action)
	switch {
	case on != "":
		f.Resource = on
	case f.Check != action:
		f.Resource = "*"
	}
	if f.Resource != "" {
		f.Policy = awsclient.Allow(f.Resource, f.Check)
	}
	return f
}

// refused tells whether err is about what the caller may do.
func refused(err error) bool {
	for _, kind := range []*fault.Kind{awsclient.AccessDenied, awsclient.ObjectDenied, awsclient.KeyDenied, awsclient.ObjectKeyDenied} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// Allowed tells whether a call was let through as far as permissions go: the answer
// is a success, or an error of another kind that kinds lists.
func Allowed(err error, kinds ...error) bool {
	err = awsclient.Explain(err)
	if err == nil {
		return true
	}
	for _, kind := range kinds {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// Reach finds out whether somebody listens at the address of u, and with https
// whether the certificate is good. Config may be nil.
func Reach(ctx context.Context, u *url.URL, config *tls.Config) Finding {
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	address := net.JoinHostPort(host, port)
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return Bad("connect", address, err.Error(), "check name, port, network and firewall; a proxy is not used for this check")
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	if u.Scheme != "https" {
		return Good("connect", address, "")
	}
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	config = config.Clone()
	if config.ServerName == "" {
		config.ServerName = host
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return Bad("TLS", address, err.Error(), "check the certificate of the far side, the authorities that are trusted, and the client certificate if it asks for one")
	}
	state := secure.ConnectionState()
	detail := tls.VersionName(state.Version)
	if len(state.PeerCertificates) > 0 {
		end := state.PeerCertificates[0].NotAfter
		detail += ", certificate until " + end.UTC().Format(time.DateOnly)
		if time.Until(end) < soon {
			return Doubt("TLS", address, detail, "have the certificate renewed: it ends soon")
		}
	}
	return Good("TLS", address, detail)
}

const (
	reachTimeout = 10 * time.Second
	// soon is how long before its end a certificate is spoken of.
	soon = 14 * 24 * time.Hour
)

// Certificate judges a pair of PEM files.
func Certificate(certFile, keyFile string) Finding {
	const check = "certificate"
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return Bad(check, certFile, err.Error(), "name PEM files of a certificate and its key that this user may read")
	}
	end := pair.Leaf.NotAfter
	detail := "until " + end.UTC().Format(time.DateOnly)
	switch {
	case time.Until(end) <= 0:
		return Bad(check, certFile, detail, "renew the certificate")
	case time.Until(end) < soon:
		return Doubt(check, certFile, detail, "renew the certificate soon")
	}
	return Good(check, certFile, detail)
}

// Identity finds out as whom calls are made. It says nothing where services are at
// an address of their own and STS is not. False: nothing else will work.
func Identity(ctx context.Context, c awsclient.Config, what string) ([]Finding, bool) {
	replaced := c.EndpointURL != "" || os.Getenv("AWS_ENDPOINT_URL") != ""
	if replaced && c.STSEndpointURL == "" && os.Getenv("AWS_ENDPOINT_URL_STS") == "" && os.Getenv("AWS_ENDPOINT_URL") == "" {
		return nil, true
	}
	const check = "sts:GetCallerIdentity"
	client, err := awsclient.STS(ctx, c)
	if err != nil {
		return []Finding{Error(check, what, err)}, false
	}
	out, err := client.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		f := Call(check, "", err)
		f.Resource = cmp.Or(f.Resource, what)
		return []Finding{f}, false
	}
	return []Finding{Good(check, what, aws.ToString(out.Arn))}, true
}
