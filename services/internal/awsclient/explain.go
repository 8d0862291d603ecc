package awsclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/penstock/penstock/messages/fault"
)

// What AWS refuses or cannot do. Refusals that concern one object are
// fault.Reject, so that one object, or one bucket in a forged notice, holds up
// nothing else; it waits in quarantine until the cause is mended. Refusals of all
// calls alike are fault.Stop. Use errors.Is to tell them apart.
// Source: Amazon S3 and SQS API references, error responses; peers, pain 18.
var (
	// AccessDenied: the caller may not do this.
	AccessDenied = fault.Define("aws.access_denied", fault.Stop,
		"grant the action that is named to the identity that penstock uses, or allow it in the resource's policy")
	// ObjectDenied: the caller may not read this object. S3 answers so for a missing
	// key too, unless s3:ListBucket is granted.
	ObjectDenied = fault.Define("aws.object_denied", fault.Reject,
		"grant the action that is named on the bucket's objects (the ARN ends in /*), and s3:ListBucket on the bucket; then redrive")
	// KeyDenied: the KMS key of a queue cannot be used.
	KeyDenied = fault.Define("aws.key_denied", fault.Stop,
		"grant kms:Decrypt and kms:GenerateDataKey on the key of the queue, in its key policy too, and check that it is enabled")
	// ObjectKeyDenied: the KMS key of an object cannot be used.
	ObjectKeyDenied = fault.Define("aws.object_key_denied", fault.Reject,
		"grant kms:Decrypt on the key of the bucket, in its key policy too, and check that it is enabled; then redrive")
	// BadCredentials: the credentials are wrong or have ended.
	BadCredentials = fault.Define("aws.bad_credentials", fault.Stop,
		"check the key pair or log in again; temporary credentials end, roles are renewed")
	// NoCredentials: there are none.
	NoCredentials = fault.Define("aws.no_credentials", fault.Stop,
		"set access_key and access_secret, a profile or a role, or run where an instance, task or pod role is given")
	// WrongClock: this machine's clock is off.
	WrongClock = fault.Define("aws.wrong_clock", fault.Stop, "set the clock of this machine, e.g. by NTP")
	// NoSuchKey: the object or its version is not there.
	NoSuchKey = fault.Define("aws.no_such_key", fault.Reject,
		"look whether the object was deleted or has expired; redrive once it is back")
	// NoSuchBucket: the bucket is not there.
	NoSuchBucket = fault.Define("aws.no_such_bucket", fault.Reject,
		"check the name of the bucket and the account it belongs to")
	// WrongRegion: the bucket is in another region.
	WrongRegion = fault.Define("aws.wrong_region", fault.Reject,
		"set region to that of the bucket, then redrive")
	// ObjectArchived: the object has to be restored before it can be read.
	ObjectArchived = fault.Define("aws.object_archived", fault.Reject,
		"restore the object from its archive, then redrive")
	// ObjectChanged: the object is no longer the one that was meant.
	ObjectChanged = fault.Define("aws.object_changed", fault.Reject,
		"the object was overwritten after its notice; the newer one has a notice of its own")
	// NoSuchQueue: the queue is not there. Source: features DEV-161.
	NoSuchQueue = fault.Define("aws.no_such_queue", fault.Stop,
		"check the URL of the queue, and that it exists in that region and account")
	// Throttled: too many calls.
	Throttled = fault.Define("aws.throttled", fault.Retry, "lower the concurrency, or have the quota raised")
	// Unavailable: the service failed.
	Unavailable = fault.Define("aws.unavailable", fault.Retry, "none needed if it passes; see the AWS Health Dashboard")
	// Unreachable: the network failed.
	Unreachable = fault.Define("aws.unreachable", fault.Retry,
		"check the network, DNS, proxy and endpoint_url between this machine and the service")
	// Untrusted: the certificate of the far side is not trusted.
	Untrusted = fault.Define("aws.untrusted", fault.Stop, "set ca_file to the certificates that signed it, or mend endpoint_url")
	// Refused: the service does not take the request.
	Refused = fault.Define("aws.refused", fault.Reject, "read the reason that the service gives")
	// Failed: none of the above.
	Failed = fault.Define("aws.failed", fault.Retry, "read the reason; it is tried again")
)

// codes that AWS services use, and what they mean.
var codes = map[string]*fault.Kind{
	"AccessDenied":                            AccessDenied,
	"AccessDeniedException":                   AccessDenied,
	"AllAccessDisabled":                       AccessDenied,
	"AccountProblem":                          AccessDenied,
	"UnauthorizedOperation":                   AccessDenied,
	"UnauthorizedAccess":                      AccessDenied,
	"AuthorizationError":                      AccessDenied,
	"InvalidSecurity":                         AccessDenied,
	"Forbidden":                               AccessDenied, // HEAD has no body with a code
	"KMS.DisabledException":                   KeyDenied,
	"KMS.NotFoundException":                   KeyDenied,
	"KMS.KMSInvalidStateException":            KeyDenied,
	"KmsAccessDenied":                         KeyDenied,
	"KmsDisabled":                             KeyDenied,
	"KmsInvalidKeyUsage":                      KeyDenied,
	"KmsInvalidState":                         KeyDenied,
	"KmsNotFound":                             KeyDenied,
	"KmsOptInRequired":                        KeyDenied,
	"KmsThrottled":                            Throttled,
	"ExpiredToken":                            BadCredentials,
	"ExpiredTokenException":                   BadCredentials,
	"TokenRefreshRequired":                    BadCredentials,
	"InvalidToken":                            BadCredentials,
	"InvalidClientTokenId":                    BadCredentials,
	"UnrecognizedClientException":             BadCredentials,
	"InvalidAccessKeyId":                      BadCredentials,
	"InvalidIdentityToken":                    BadCredentials,
	"SignatureDoesNotMatch":                   BadCredentials,
	"IncompleteSignature":                     BadCredentials,
	"MissingAuthenticationToken":              BadCredentials,
	"AuthFailure":                             BadCredentials,
	"NotSignedUp":                             BadCredentials,
	"RequestTimeTooSkewed":                    WrongClock,
	"RequestExpired":                          WrongClock,
	"RequestInTheFuture":                      WrongClock,
	"NoSuchKey":                               NoSuchKey,
	"NoSuchVersion":                           NoSuchKey,
	"NotFound":                                NoSuchKey,
	"MethodNotAllowed":                        NoSuchKey, // the version is a delete marker
	"NoSuchBucket":                            NoSuchBucket,
	"PermanentRedirect":                       WrongRegion,
	"MovedPermanently":                        WrongRegion,
	"TemporaryRedirect":                       Unavailable,
	"AuthorizationHeaderMalformed":            WrongRegion,
	"IllegalLocationConstraintException":      WrongRegion,
	"InvalidObjectState":                      ObjectArchived,
	"PreconditionFailed":                      ObjectChanged,
	"QueueDoesNotExist":                       NoSuchQueue,
	"AWS.SimpleQueueService.NonExistentQueue": NoSuchQueue,
	"ReceiptHandleIsInvalid":                  Refused,
	"MessageNotInflight":                      Refused,
	"QueueDeletedRecently":                    Throttled, // it can be made again after a minute
	"OverLimit":                               Throttled,
	"SlowDown":                                Throttled,
	"Throttling":                              Throttled,
	"ThrottlingException":                     Throttled,
	"ThrottledException":                      Throttled,
	"RequestThrottled":                        Throttled,
	"RequestThrottledException":               Throttled,
	"RequestLimitExceeded":                    Throttled,
	"TooManyRequestsException":                Throttled,
	"BandwidthLimitExceeded":                  Throttled,
	"LimitExceededException":                  Throttled,
	"PriorRequestNotComplete":                 Throttled,
	"ServiceUnavailable":                      Unavailable,
	"InternalError":                           Unavailable,
	"InternalFailure":                         Unavailable,
	"RequestTimeout":                          Unavailable,
	"RequestTimeoutException":                 Unavailable,
	"OperationAborted":                        Unavailable,
}

// ofObject is what a kind becomes in a call about one object.
var ofObject = map[*fault.Kind]*fault.Kind{AccessDenied: ObjectDenied, KeyDenied: ObjectKeyDenied}

// actions are the permissions that calls need, where the names differ.
var actions = map[string]string{
	"S3 HeadObject":                    "s3:GetObject",
	"S3 GetObject":                     "s3:GetObject", // and s3:GetObjectVersion for a version
	"S3 HeadBucket":                    actionList,
	"S3 ListObjectsV2":                 actionList,
	"S3 CreateMultipartUpload":         "s3:PutObject",
	"S3 UploadPart":                    "s3:PutObject",
	"S3 CompleteMultipartUpload":       "s3:PutObject",
	"SQS ReceiveMessage":               "sqs:ReceiveMessage",
	"SQS GetQueueAttributes":           "sqs:GetQueueAttributes",
	"SQS DeleteMessageBatch":           "sqs:DeleteMessage",
	"SQS SendMessageBatch":             "sqs:SendMessage",
	"SQS ChangeMessageVisibilityBatch": "sqs:ChangeMessageVisibility",
}

// Explain turns an error of an AWS client into a fault that names the call that
// was refused, also when it is one made on the way, such as assuming a role, and
// the permission it needs. Nil, faults, and errors of a context that was cancelled
// come back as they are. The text holds what the service said, shortened, and no
// secrets; the original error is behind it for errors.As.
func Explain(err error) error {
	var f *fault.Error
	if err == nil || errors.As(err, &f) || errors.Is(err, context.Canceled) {
		return err
	}
	e := &callError{err: err, call: "AWS"}
	if op := innermost(err); op != nil {
		e.call = op.ServiceID + " " + op.OperationName
	}
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		e.request = response.ServiceRequestID()
	}
	kind := e.classify()
	if object, ok := ofObject[kind]; ok && strings.HasPrefix(e.call, "S3 ") && strings.Contains(e.call, "Object") && !strings.Contains(e.call, "List") {
		kind = object
	}
	switch kind {
	case AccessDenied, ObjectDenied:
		if e.action == "" {
			e.action = e.permission()
		}
	case ObjectKeyDenied, KeyDenied:
		if e.action == "" {
			e.action = actionDecrypt
		}
	}
	return kind.New(e, "call %s", e.call)
}

// innermost finds the call that failed: one to assume a role fails inside of the
// one that needs the role.
func innermost(err error) *smithy.OperationError {
	var found *smithy.OperationError
	for err != nil {
		var op *smithy.OperationError
		if !errors.As(err, &op) {
			break
		}
		found, err = op, op.Err
	}
	return found
}

// inner is err without the words of the SDK on which call it was.
func inner(err error) error {
	if op := innermost(err); op != nil && op.Err != nil {
		return op.Err
	}
	return err
}

// callError says in one line what a call failed of.
type callError struct {
	err     error
	call    string // e.g. "S3 GetObject"
	code    string // that the service gave
	message string // that the service gave, or the network
	// action is what the caller lacks, resource on what, as far as it is known.
	action, resource string
	request          string // id of the request, for AWS support
}

func (e *callError) Error() string {
	parts := []string{}
	for _, s := range []string{e.code, e.message} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	s := strings.Join(parts, ": ")
	if e.action != "" {
		s += "; it needs " + e.action
	}
	if e.action == actionList && e.call == "S3 GetObject" {
		s += ", without which S3 does not tell a missing key from a refused one"
	}
	if e.resource != "" {
		s += "; add to its policy: " + Allow(e.resource, e.action).String()
	}
	if e.request != "" {
		s += ", request id " + e.request
	}
	return s
}

// Unwrap returns the error of the SDK.
func (e *callError) Unwrap() error { return e.err }

// classify finds the kind and fills in code and message.
func (e *callError) classify() *fault.Kind {
	status := 0
	var response *smithyhttp.ResponseError
	if errors.As(e.err, &response) {
		status = response.HTTPStatusCode()
	}
	var api smithy.APIError
	if errors.As(e.err, &api) {
		e.code, e.message = shortCode(api.ErrorCode()), say(untold(response, api.ErrorMessage()))
		if m := lacking.FindStringSubmatch(api.ErrorMessage()); m != nil {
			e.action = properAction(m[1])
			e.resource = policyResource(e.action, strings.TrimRight(m[2], `".,`))
		}
		if strings.Contains(api.ErrorMessage(), "kms:") && codes[e.code] == AccessDenied {
			return KeyDenied
		}
		if kind := codes[e.code]; kind != nil {
			if kind == BadCredentials { // these messages quote the signed headers
				e.message, _, _ = strings.Cut(e.message, ". ")
			}
			if kind == NoSuchKey && strings.HasPrefix(e.call, "S3 ") && strings.HasSuffix(e.call, "Bucket") {
				return NoSuchBucket // HEAD has no body with a code
			}
			return kind
		}
		return byStatus(status)
	}
	if kind := e.network(); kind != nil {
		return kind
	}
	e.message = say(inner(e.err).Error())
	var (
		params smithy.InvalidParamsError
		serial *smithy.SerializationError
	)
	if errors.As(e.err, &params) || errors.As(e.err, &serial) || strings.Contains(e.err.Error(), "endpoint rule error") {
		return Refused // never sent: something in it is not a name
	}
	if status != 0 {
		e.message = "the service answered with status " + strconv.Itoa(status)
		return byStatus(status)
	}
	return Failed
}

func byStatus(status int) *fault.Kind {
	switch {
	case status == 429 || status == 503:
		return Throttled
	case status >= 500:
		return Unavailable
	case status == 401 || status == 403:
		return AccessDenied
	case status == 301:
		return WrongRegion
	case status == 404:
		return NoSuchKey
	case status == 412:
		return ObjectChanged
	case status >= 400:
		return Refused
	}
	return Failed
}

// The actions that need words of their own.
const (
	actionDecrypt = "kms:Decrypt"
	actionList    = "s3:ListBucket"
)

// lacking matches what services say who know better than the name of the call what
// is missing. Source: IAM User Guide, access denied error messages.
var lacking = regexp.MustCompile(`is not authorized to perform: ([a-z0-9-]+:[A-Za-z]+)(?: on resource: "?([^\s"]+))?`)

// properAction writes an action as policies do: SQS says it in small letters.
func properAction(said string) string {
	for _, known := range actions {
		if strings.EqualFold(said, known) {
			return known
		}
	}
	return said
}

// policyResource is what a policy should name: all objects of a bucket and not one.
func policyResource(action, resource string) string {
	if !strings.HasPrefix(resource, "arn:") {
		return ""
	}
	if bucket, _, ok := strings.Cut(resource, "/"); ok && strings.HasPrefix(action, "s3:") {
		return bucket + "/*"
	}
	return resource
}

// Statement is one statement of an IAM policy.
type Statement struct {
	Effect   string   `json:"Effect"`
	Action   []string `json:"Action"`
	Resource string   `json:"Resource"`
}

// Allow makes a statement that allows actions on a resource, an ARN or *.
func Allow(resource string, actions ...string) *Statement {
	return &Statement{Effect: "Allow", Action: actions, Resource: resource}
}

// String is the statement as JSON.
func (s *Statement) String() string {
	b, _ := json.Marshal(s) // cannot fail: text only
	return string(b)
}

// Lacks tells which action the caller lacks according to err, which [Explain]
// returned, and on which resource; empty for what is not known.
func Lacks(err error) (action, resource string) {
	var e *callError
	if errors.As(err, &e) {
		return e.action, e.resource
	}
	return "", ""
}

// network classes what failed before there was an answer, or in the middle of it.
func (e *callError) network() *fault.Kind {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		record   tls.RecordHeaderError
		verify   *tls.CertificateVerificationError
		netErr   net.Error
		urlErr   *url.Error
	)
	text := e.err.Error()
	switch {
	case errors.As(e.err, &unknown), errors.As(e.err, &hostname), errors.As(e.err, &invalid), errors.As(e.err, &record), errors.As(e.err, &verify):
		e.message = say(root(e.err).Error())
		return Untrusted
	case strings.HasPrefix(e.call, "ec2imds"), strings.Contains(text, "EC2 IMDS"), strings.Contains(text, "static credentials are empty"):
		// The instance role is the last that is tried.
		e.message = "no credentials were found"
		return NoCredentials
	case errors.Is(e.err, context.DeadlineExceeded):
		e.message = "the deadline passed"
		return Unreachable
	case errors.As(e.err, &urlErr), errors.As(e.err, &netErr), errors.Is(e.err, io.ErrUnexpectedEOF), errors.Is(e.err, net.ErrClosed):
		e.message = say(root(e.err).Error())
		return Unreachable
	}
	return nil
}

// root is the innermost error: addresses in the outer ones may be signed.
func root(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op
	}
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// permission names what the caller lacks.
func (e *callError) permission() string {
	if a := actions[e.call]; a != "" {
		return a
	}
	at := strings.LastIndexByte(e.call, ' ')
	if at < 0 {
		return ""
	}
	service := strings.ToLower(e.call[:at])
	if service == "cloudwatch logs" { // its name has two words, its permissions one
		service = "logs"
	}
	return service + ":" + e.call[at+1:]
}

// shortCode cuts the namespace from codes like com.amazonaws.sqs#QueueDoesNotExist.
func shortCode(code string) string {
	_, after, found := strings.Cut(code, "#")
	if found {
		return after
	}
	return code
}

var (
	queryOfURL = regexp.MustCompile(`\?[^\s"]*`)
	spaces     = regexp.MustCompile(`\s+`)
)

// untold takes out of a message what the request told in secret: a far side may say it back.
func untold(response *smithyhttp.ResponseError, s string) string {
	if response == nil || response.Response == nil || response.Response.Response == nil || response.Response.Request == nil {
		return s
	}
	for _, name := range []string{"X-Amz-Security-Token", "Authorization", "Proxy-Authorization"} {
		if secret := response.Response.Request.Header.Get(name); secret != "" {
			s = strings.ReplaceAll(s, secret, "[redacted]")
		}
	}
	return s
}

// say makes a message of somebody else one short line without signatures.
func say(s string) string {
	s = spaces.ReplaceAllString(strings.TrimSpace(s), " ")
	s = queryOfURL.ReplaceAllString(s, "?...")
	if r := []rune(s); len(r) > 300 {
		s = string(r[:300]) + "..."
	}
	return s
}
