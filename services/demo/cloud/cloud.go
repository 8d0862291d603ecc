// Package cloud is a small Amazon S3, SQS and STS of our own, held in memory behind
// one HTTP listener. It serves the demo, the tests and the benchmark, in the
// same process or in another.
//
//	SDK client ──HTTP──▶ cloud ──▶ buckets (s3.go)  ──notices──▶ queues (sqs.go)
//
// Files api_*.go add the APIs that are polled, e.g. CloudTrail's.
//
// It speaks the wire protocols of the current AWS SDK: REST-XML for S3,
// JSON 1.0 for SQS, and for each API its own. It checks that requests are signed and by which access key,
// but not the signature itself. What it does not implement it refuses with
// NotImplemented or UnsupportedOperation, never silently.
//
// Source: Amazon S3 API Reference; Amazon SQS API Reference; S3 event message
// structure 2.1.
package cloud

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/messages/fault"
)

// AccountID is the account that owns every bucket and queue.
const AccountID = "123456789012"

var (
	errListen = fault.Define("demo.listen_failed", fault.Stop,
		"choose a free loopback address, e.g. 127.0.0.1:0")
	errRefused = fault.Define("demo.refused", fault.Reject,
		"name a bucket or queue that exists, and keep to the limits of S3 and SQS")
	errWait = fault.Define("demo.wait_ended", fault.Retry,
		"wait longer, or look at the queue's state for what did not happen")
)

// Options configures a Cloud. The zero value is usable.
type Options struct {
	// Addr is the listener's address. Default: 127.0.0.1:0, a free port.
	Addr string
	// Region appears in ARNs and notices. Default: us-east-1.
	Region string
	// CheckRegion refuses requests that are signed for another region.
	CheckRegion bool
	// AccessKeys are the access key ids that are let in. Empty lets any in. A
	// request without an Authorization header is always refused.
	AccessKeys []string
	// Fault is asked once per request. Nil injects nothing. See [Cloud.SetFault].
	Fault FaultFunc
	// TLS makes the listener speak HTTPS.
	TLS *tls.Config
}

// Cloud is a running endpoint. Its methods may be called concurrently.
type Cloud struct {
	opts   Options
	url    string
	server *http.Server
	served chan struct{}   // closed when Serve has returned
	ctx    context.Context // ends long polls and hanging faults when the endpoint closes
	cancel context.CancelFunc
	detach func() bool

	fault   atomic.Pointer[FaultFunc]
	s3      store
	sqs     queues
	apis    []api
	iam     access
	calls   sync.Map // operation → *atomic.Int64
	changed signal

	handlers handlers
	closing  sync.Once
}

// Start listens and serves until Close is called or ctx ends.
// It fails with demo.listen_failed.
func Start(ctx context.Context, opts Options) (*Cloud, error) {
	if opts.Addr == "" {
		opts.Addr = "127.0.0.1:0"
	}
	if opts.Region == "" {
		opts.Region = "us-east-1"
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", opts.Addr)
	if err != nil {
		return nil, errListen.New(err, "listen on %s", opts.Addr)
	}
	c := &Cloud{opts: opts, served: make(chan struct{}), url: "http://" + ln.Addr().String()}
	if opts.TLS != nil {
		ln, c.url = tls.NewListener(ln, opts.TLS), "https://"+ln.Addr().String()
	}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	c.SetFault(opts.Fault)
	c.s3.init(c)
	c.sqs.init(c)
	for _, open := range apiMakers {
		c.apis = append(c.apis, open(c))
	}
	c.handlers.init()
	c.server = &http.Server{
		Handler:           http.HandlerFunc(c.serve),
		ReadHeaderTimeout: time.Minute,
		BaseContext:       func(net.Listener) context.Context { return c.ctx },
	}
	go func() {
		defer close(c.served)
		_ = c.server.Serve(ln) // always ends with ErrServerClosed, after shutdown
	}()
	c.detach = context.AfterFunc(ctx, c.shutdown)
	return c, nil
}

// URL is the endpoint for both services, e.g. http://127.0.0.1:40001.
func (c *Cloud) URL() string { return c.url }

// Region is the region of every bucket and queue.
func (c *Cloud) Region() string { return c.opts.Region }

// Close ends all requests, long polls included, and returns when none is left.
// It may be called more than once.
func (c *Cloud) Close() {
	c.detach()
	c.shutdown()
}

func (c *Cloud) shutdown() {
	c.closing.Do(func() {
		c.cancel()
		_ = c.server.Close() // the listener's own error: nobody can mend it
		<-c.served
		c.handlers.wait()
		c.sqs.close()
	})
}

// Calls returns how often an operation was asked for, e.g. "GetObject" or
// "ReceiveMessage". Requests that a fault answered count; unsigned ones do not.
func (c *Cloud) Calls(op string) int64 {
	if n, ok := c.calls.Load(op); ok {
		return n.(*atomic.Int64).Load()
	}
	return 0
}

func (c *Cloud) count(op string) {
	n, ok := c.calls.Load(op)
	if !ok {
		n, _ = c.calls.LoadOrStore(op, new(atomic.Int64))
	}
	n.(*atomic.Int64).Add(1)
	c.changed.fire()
}

// Wait returns nil as soon as cond is true. It looks again when a request comes,
// when it has been answered, and when a queue changes by itself; it does not poll. It fails with
// demo.wait_ended when ctx ends. cond may call the Cloud.
func (c *Cloud) Wait(ctx context.Context, cond func() bool) error {
	for {
		next := c.changed.next()
		if cond() {
			return nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return errWait.New(context.Cause(ctx), "wait for a state of the endpoint")
		}
	}
}

func (c *Cloud) serve(w http.ResponseWriter, r *http.Request) {
	if !c.handlers.enter() {
		return
	}
	defer c.handlers.leave()
	defer c.changed.fire()
	if target, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS."); ok {
		c.serveSQS(w, r, target)
		return
	}
	if form, ok := forSTS(r); ok {
		c.serveSTS(w, r, form)
		return
	}
	if a, op := c.apiFor(r); a != nil {
		c.serveAPI(w, r, a, op)
		return
	}
	c.serveS3(w, r)
}

// Handler serves requests without a connection, as inside of a synctest bubble.
func (c *Cloud) Handler() http.Handler { return http.HandlerFunc(c.serve) }

// credential checks the Authorization header, or its presigned form, of a
// request for service ("s3", "sqs", "sts"), and that a session has not ended. It
// returns why the request is refused.
func (c *Cloud) credential(r *http.Request, service string) *apiError {
	var scope string
	switch auth := r.Header.Get("Authorization"); {
	case auth == "" && r.URL.Query().Has("X-Amz-Credential"):
		scope = r.URL.Query().Get("X-Amz-Credential")
	case auth == "" && service == "s3":
		return &apiError{status: http.StatusForbidden, code: "AccessDenied", message: "Access Denied"}
	case auth == "":
		return &apiError{status: http.StatusForbidden, code: "MissingAuthenticationToken", message: "Missing Authentication Token"}
	default:
		params, ok := strings.CutPrefix(auth, "AWS4-HMAC-SHA256 ")
		if !ok {
			break // no scope: malformed
		}
		for param := range strings.SplitSeq(params, ",") {
			if v, ok := strings.CutPrefix(strings.TrimSpace(param), "Credential="); ok {
				scope = v
			}
		}
	}
	parts := strings.Split(scope, "/") // key id / date / region / service / aws4_request
	if len(parts) != 5 || parts[3] != service || parts[4] != "aws4_request" ||
		c.opts.CheckRegion && parts[2] != c.opts.Region {
		if service == "s3" {
			return &apiError{status: http.StatusBadRequest, code: "AuthorizationHeaderMalformed", message: "The authorization header is malformed; expecting '" + c.opts.Region + "'"}
		}
		return &apiError{status: http.StatusForbidden, code: "InvalidSignatureException", message: "Credential should be scoped to a valid region and service."}
	}
	if e := c.current(r, service); e != nil || len(c.opts.AccessKeys) == 0 || strings.HasPrefix(parts[0], "ASIA-") {
		return e
	}
	for _, id := range c.opts.AccessKeys {
		if id == parts[0] {
			return nil
		}
	}
	if service == "s3" {
		return &apiError{status: http.StatusForbidden, code: "InvalidAccessKeyId", message: "The AWS Access Key Id you provided does not exist in our records."}
	}
	return &apiError{status: http.StatusForbidden, code: "InvalidClientTokenId", message: "The security token included in the request is invalid."}
}

// apiError is an error as a service answers it.
type apiError struct {
	status  int
	code    string
	query   string // SQS: the code of the older protocol, when it differs
	message string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

// signal wakes all who wait for the next change.
type signal struct {
	mu sync.Mutex
	ch chan struct{} // nil while nobody waits
}

func (s *signal) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// handlers counts requests in work. A WaitGroup will not do: a connection may
// hand over its request while Close already waits.
type handlers struct {
	mu     sync.Mutex
	n      int
	closed bool
	idle   chan struct{}
}

func (h *handlers) init() { h.idle = make(chan struct{}) }

func (h *handlers) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.n++
	return true
}

func (h *handlers) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n--; h.closed && h.n == 0 {
		close(h.idle)
	}
}

// wait lets nobody in any more and returns when the last has left.
func (h *handlers) wait() {
	h.mu.Lock()
	h.closed = true
	if h.n == 0 {
		close(h.idle)
	}
	h.mu.Unlock()
	<-h.idle
}
