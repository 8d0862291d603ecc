package cloud

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

// FaultFunc chooses what goes wrong with one request. op is the operation
// ("GetObject", "DeleteMessageBatch"), name the bucket or queue, key the object
// key, empty for SQS. For the other APIs name is the region and key what the
// request is about, e.g. a log group. It is called from many goroutines.
type FaultFunc func(op, name, key string) Fault

// Fault is what goes wrong with one request. The zero value: nothing. Fields
// combine: Delay comes first, then Hang, then the error answer; the others
// change an operation that is carried out.
type Fault struct {
	// Status and Code make an error answer instead of the operation. Either may
	// be left out: 503 is SlowDown, 500 InternalError, 403 AccessDenied for S3.
	Status int
	Code   string
	// Message of the error answer. Empty: "injected fault".
	Message string
	// RetryAfter is the header of that name beside an error answer.
	RetryAfter string
	// Delay holds the request before anything else happens to it.
	Delay time.Duration
	// Hang keeps the client waiting for as long as it likes. The operation is
	// not carried out.
	Hang bool
	// Cut resets the connection after so many bytes of the answer's body. At
	// most Cut bytes reach the client; a shorter body passes whole. A negative
	// Cut resets before the first byte: the operation is carried out, its answer
	// is lost.
	Cut int64
	// CutClean closes the connection in order where Cut would reset it, so that
	// exactly Cut bytes reach the client before the unexpected end.
	CutClean bool
	// FailEntries has the first so many entries of a batch refused with Code,
	// "InternalError" when Code is empty; the rest are carried out. Then Status
	// is not used.
	FailEntries int
	// Refuse has entries of a SendMessageBatch refused, as the sender's fault, with the
	// code that it returns for their body; empty lets one pass.
	Refuse func(body string) (code string)
	// Duplicate has each message of a ReceiveMessage answer arrive once more,
	// with the same MessageId, even when it is deleted. Standard queues only.
	Duplicate bool
	// Shuffle has ReceiveMessage take messages from anywhere in the queue.
	// Standard queues only.
	Shuffle bool
	// Late keeps the messages of a SendMessage or SendMessageBatch out of sight
	// for so much longer.
	Late time.Duration
}

// SetFault replaces the hook. Nil injects nothing. Requests in work keep the
// fault that they drew.
func (c *Cloud) SetFault(f FaultFunc) {
	if f == nil {
		f = func(string, string, string) Fault { return Fault{} }
	}
	c.fault.Store(&f)
}

// suffer counts the request, draws its fault and applies what precedes the
// operation. It returns false when the operation must not be carried out; with
// an error to answer, or nil when there is nobody to answer.
func (c *Cloud) suffer(ctx context.Context, op, name, key string) (Fault, *apiError, bool) {
	c.count(op)
	f := (*c.fault.Load())(op, name, key)
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return f, nil, false
		}
	}
	if f.Hang {
		<-ctx.Done()
		return f, nil, false
	}
	if f.FailEntries > 0 || f.Status == 0 && f.Code == "" {
		return f, nil, true
	}
	e := injected(f.Status, f.Code)
	if f.Message != "" {
		e.message = f.Message
	}
	return f, e, false
}

func (f Fault) retryAfter(w http.ResponseWriter) {
	if f.RetryAfter != "" {
		w.Header().Set("Retry-After", f.RetryAfter)
	}
}

// injected fills in what a fault left out.
func injected(status int, code string) *apiError {
	if status == 0 {
		status = statusOf(code)
	}
	if code == "" {
		code = map[int]string{
			http.StatusForbidden:           "AccessDenied",
			http.StatusNotFound:            "NoSuchKey",
			http.StatusTooManyRequests:     "TooManyRequests",
			http.StatusInternalServerError: "InternalError",
			http.StatusServiceUnavailable:  "SlowDown",
		}[status]
	}
	if code == "" {
		code = "InternalError"
	}
	return &apiError{status: status, code: code, message: "injected fault"}
}

func statusOf(code string) int {
	switch code {
	case "SlowDown", "ServiceUnavailable":
		return http.StatusServiceUnavailable
	case "AccessDenied", "RequestThrottled", "OverLimit":
		return http.StatusForbidden
	case "NoSuchKey", "NoSuchBucket", "NoSuchUpload", "ReceiptHandleIsInvalid":
		return http.StatusNotFound
	case "ThrottlingException", "Throttling", "RequestLimitExceeded", "TooManyRequestsException", "LimitExceededException",
		"ExpiredTokenException", "AccessDeniedException", "InvalidNextTokenException", "QueueDoesNotExist":
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// cutter breaks the connection after some bytes of the body.
type cutter struct {
	http.ResponseWriter
	left  int64 // bytes that may still pass; negative: the whole answer is lost
	clean bool
	done  bool
}

// cut wraps w when f asks for it. finish must be called after the handler.
func cut(w http.ResponseWriter, f Fault) (_ http.ResponseWriter, finish func()) {
	if f.Cut == 0 {
		return w, func() {}
	}
	c := &cutter{ResponseWriter: w, left: f.Cut, clean: f.CutClean}
	return c, func() {
		if c.left < 0 {
			c.sever()
		}
	}
}

func (c *cutter) WriteHeader(status int) {
	if c.left >= 0 {
		c.ResponseWriter.WriteHeader(status)
	}
}

func (c *cutter) Write(p []byte) (int, error) {
	switch {
	case c.left < 0:
		return len(p), nil // carried out, never told
	case c.done:
		return 0, net.ErrClosed
	case int64(len(p)) <= c.left:
		n, err := c.ResponseWriter.Write(p)
		c.left -= int64(n)
		return n, err
	}
	n, err := c.ResponseWriter.Write(p[:c.left])
	if err != nil {
		return n, err
	}
	c.sever()
	return n, net.ErrClosed
}

func (c *cutter) sever() {
	c.done = true
	rc := http.NewResponseController(c.ResponseWriter)
	if c.left >= 0 {
		_ = rc.Flush() // the client may be gone already
	}
	conn, _, err := rc.Hijack()
	if err != nil {
		return
	}
	raw := conn
	if t, ok := conn.(*tls.Conn); ok {
		raw = t.NetConn()
	}
	if tcp, ok := raw.(*net.TCPConn); ok && !c.clean {
		_ = tcp.SetLinger(0) // close sends a reset
	}
	_ = raw.Close()
}
