package awsclient

import (
	"context"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/encoding/httpbinding"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Objects reads objects over a client of S3. The client's own way to an answer, through
// fifty steps that are put together anew for each call, costs as much as all else that a
// small object goes through on its way to a frame. So the client makes the first call to
// each bucket, and for the plain calls behind it the same request is made by its example: at the
// same address, with the same headers, the client's connections and its credentials,
// signed by the SDK's signer. Whatever else there is to a call, and any answer but 200,
// is left to the client: its retries, its redirects, its errors. Source: decision 0040;
// Amazon S3 API Reference, GetObject.
//
// Methods may be called concurrently.
type Objects struct {
	client *s3.Client
	creds  aws.CredentialsProvider
	http   s3.HTTPClient
	signer v4.HTTPSigner
	// rests is until when all calls are left to the client: where the client gets what
	// was not to be had by example, something is not as plain as it looked. Unit: Unix ns.
	rests atomic.Int64

	mu       sync.RWMutex
	examples map[place]*example // nil for a place whose calls are not plain
}

// place is what the address of an object depends on, besides its key.
type place struct{ region, bucket string }

const (
	mostPlaces = 256
	restsFor   = time.Minute
)

// NewObjects reads objects over client.
func NewObjects(client *s3.Client) *Objects {
	o := client.Options()
	return &Objects{
		client: client, creds: o.Credentials, http: o.HTTPClient,
		signer:   v4.NewSigner(func(s *v4.SignerOptions) { s.DisableURIPathEscaping = true }), // S3 does not take it escaped twice
		examples: map[place]*example{},
	}
}

// GetObject gets an object from a region; "" is the client's own. Of the answer to a plain
// call it tells Body, ContentLength, ETag, VersionId and LastModified alone. Errors are
// those of the client.
func (o *Objects) GetObject(ctx context.Context, in *s3.GetObjectInput, region string) (*s3.GetObjectOutput, error) {
	if !isPlain(in) || time.Now().UnixNano() < o.rests.Load() {
		return o.client.GetObject(ctx, in, o.at(region)...)
	}
	at := place{region, *in.Bucket}
	o.mu.RLock()
	e, known := o.examples[at]
	o.mu.RUnlock()
	if !known {
		return o.learn(ctx, in, at)
	}
	if e != nil {
		if out := o.get(ctx, in, e); out != nil {
			return out, nil
		}
	}
	out, err := o.client.GetObject(ctx, in, o.at(region)...)
	if err == nil && e != nil {
		o.rests.Store(time.Now().Add(restsFor).UnixNano())
		o.mu.Lock()
		delete(o.examples, at) // to be learned anew
		o.mu.Unlock()
	}
	return out, err
}

// isPlain tells whether a call says no more than which object is wanted.
func isPlain(in *s3.GetObjectInput) bool {
	return in.Bucket != nil && in.Key != nil && *in.Key != "" && *in == (s3.GetObjectInput{Bucket: in.Bucket, Key: in.Key, VersionId: in.VersionId}) &&
		(in.VersionId == nil || url.QueryEscape(*in.VersionId) == *in.VersionId)
}

// at are the client's options for a region.
func (o *Objects) at(region string) []func(*s3.Options) {
	if region == "" {
		return nil
	}
	return []func(*s3.Options){func(opts *s3.Options) { opts.Region = region }}
}

// learn has the client make the call, and keeps its request as the example of the place.
func (o *Objects) learn(ctx context.Context, in *s3.GetObjectInput, at place) (*s3.GetObjectOutput, error) {
	var sent *http.Request
	watch := func(opts *s3.Options) {
		opts.APIOptions = append(opts.APIOptions, func(stack *middleware.Stack) error {
			return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("penstock:example",
				func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
					if r, ok := in.Request.(*smithyhttp.Request); ok {
						sent = r.Request.Clone(ctx) // the last attempt's, which is the one that succeeds
					}
					return next.HandleDeserialize(ctx, in)
				}), middleware.After)
		})
	}
	out, err := o.client.GetObject(ctx, in, append(o.at(at.region), watch)...)
	if err == nil && sent != nil {
		e := exampleOf(sent, in)
		o.mu.Lock()
		if len(o.examples) >= mostPlaces {
			clear(o.examples)
		}
		o.examples[at] = e
		o.mu.Unlock()
	}
	return out, err
}

// example is what the requests for all objects of a place have in common.
type example struct {
	scheme, host string
	path, raw    string // before the key, plain and escaped
	header       http.Header
	payload      string // the hash of the body, as it is signed
	region       string // that it is signed for
}

// Headers that are made for each request; of all others an example has the values.
const (
	headerAuthorization = "Authorization"
	headerInvocation    = "Amz-Sdk-Invocation-Id"
	headerAttempt       = "Amz-Sdk-Request"
	headerDate          = "X-Amz-Date"
	headerToken         = "X-Amz-Security-Token" //nolint:gosec // a name
	headerPayload       = "X-Amz-Content-Sha256"
)

// exampleOf returns nil for a request that has anything to it that is not known to be the
// same for all objects: another way of signing, another header, another query.
func exampleOf(r *http.Request, in *s3.GetObjectInput) *example {
	escaped := httpbinding.EscapePath(*in.Key, false)
	path, ok := strings.CutSuffix(r.URL.Path, "/"+*in.Key)
	raw, okRaw := strings.CutSuffix(r.URL.EscapedPath(), "/"+escaped)
	if r.Method != http.MethodGet || r.URL.User != nil || r.URL.Opaque != "" || r.URL.RawQuery != query(in) || !ok || !okRaw {
		return nil
	}
	e := &example{
		scheme: r.URL.Scheme, host: r.URL.Host, path: path + "/", raw: raw + "/", header: http.Header{}, payload: r.Header.Get(headerPayload),
	}
	for name, values := range r.Header {
		switch name {
		case headerAuthorization, headerInvocation, headerDate, headerToken:
		case headerAttempt: // attempt=2; max=3, and how much time there is, if that is limited
			_, most, _ := strings.Cut(values[0], "max=")
			most, _, _ = strings.Cut(most, ";")
			e.header[name] = []string{"attempt=1; max=" + most}
		case "Accept-Encoding", "User-Agent", headerPayload:
			e.header[name] = values
		default:
			return nil
		}
	}
	// AWS4-HMAC-SHA256 Credential=<key>/<date>/<region>/s3/aws4_request, SignedHeaders=…
	credential, ok := strings.CutPrefix(r.Header.Get(headerAuthorization), "AWS4-HMAC-SHA256 Credential=")
	scope, _, _ := strings.Cut(credential, ",")
	parts := strings.Split(scope, "/")
	n := len(parts)
	if !ok || n < 5 || parts[n-1] != "aws4_request" || parts[n-2] != "s3" || r.Host != "" && r.Host != r.URL.Host {
		return nil
	}
	e.region = parts[n-3]
	return e
}

// query is that of the client's requests.
func query(in *s3.GetObjectInput) string {
	if in.VersionId == nil {
		return "x-id=GetObject"
	}
	return "versionId=" + *in.VersionId + "&x-id=GetObject"
}

// request makes a request by example, not yet signed.
func (e *example) request(ctx context.Context, in *s3.GetObjectInput, invocation string) *http.Request {
	header := make(http.Header, len(e.header)+4)
	for name, values := range e.header {
		header[name] = values
	}
	header[headerInvocation] = []string{invocation}
	r := http.Request{
		Method: http.MethodGet, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: e.host, Header: header,
		URL: &url.URL{
			Scheme: e.scheme, Host: e.host, RawQuery: query(in),
			Path: e.path + *in.Key, RawPath: e.raw + httpbinding.EscapePath(*in.Key, false),
		},
	}
	return r.WithContext(ctx)
}

// get makes a call by example. It returns nil when that does not answer with the object,
// for whatever reason.
func (o *Objects) get(ctx context.Context, in *s3.GetObjectInput, e *example) *s3.GetObjectOutput {
	creds, err := o.creds.Retrieve(ctx)
	if err != nil {
		return nil
	}
	r := e.request(ctx, in, invocation())
	if err := o.signer.SignHTTP(ctx, creds, r, e.payload, "s3", e.region, time.Now()); err != nil {
		return nil
	}
	answer, err := o.http.Do(r)
	if err != nil {
		return nil
	}
	if answer.StatusCode != http.StatusOK {
		_, _ = io.CopyN(io.Discard, answer.Body, 64<<10) // so that the connection is used again
		_ = answer.Body.Close()
		return nil
	}
	out := &s3.GetObjectOutput{Body: answer.Body}
	if answer.ContentLength >= 0 {
		out.ContentLength = &answer.ContentLength
	}
	if v := answer.Header["Etag"]; len(v) > 0 {
		out.ETag = &v[0]
	}
	if v := answer.Header["X-Amz-Version-Id"]; len(v) > 0 {
		out.VersionId = &v[0]
	}
	if t, err := http.ParseTime(answer.Header.Get("Last-Modified")); err == nil {
		out.LastModified = &t
	}
	return out
}

// invocation is a random UUID, by which AWS tells calls apart.
func invocation() string {
	var id [16]byte
	for i := 0; i < len(id); i += 8 {
		for j, n := 0, rand.Uint64(); j < 8; j, n = j+1, n>>8 { //nolint:gosec // an id, no secret
			id[i+j] = byte(n)
		}
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	var text [36]byte
	for i, at := 0, 0; i < len(id); i++ {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			text[at] = '-'
			at++
		}
		hex.Encode(text[at:], id[i:i+1])
		at += 2
	}
	return string(text[:])
}
