package sinks

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip" // reads answers that are compressed
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/penstock/penstock/messages/fault"
)

// exportLogs is the method. Source: opentelemetry/proto/collector/logs/v1/logs_service.proto.
const exportLogs = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"

// otlpGRPC makes the calls. Each failed connection is let go of, so that the next
// attempt makes a new one at once: when to try again the batcher knows, and the
// back-off of gRPC would only stand in its way. Methods may be called concurrently.
type otlpGRPC struct {
	client  *httpClient // for its name, timeout and secrets
	target  string
	headers metadata.MD
	tls     *tls.Config // nil without
	codec   rawCodec

	mu   sync.Mutex
	conn *otlpConn // nil before the first call and after a failure
}

func newOTLPGRPC(destination string, cfg OTLPConfig, client *httpClient) (*otlpGRPC, error) {
	u, err := url.Parse(cfg.Endpoint)
	if err != nil {
		return nil, errOTLPAddress.New(nil, "open destination %s", destination) // not reached: validated
	}
	g := &otlpGRPC{client: client, headers: metadata.MD{}, codec: rawCodec{compressed: cfg.Gzip}}
	port := u.Port()
	if u.Scheme == "https" {
		if port == "" {
			port = "443"
		}
		if g.tls, err = cfg.TLS.client(destination); err != nil {
			return nil, err
		}
	} else if port == "" {
		port = "80"
	}
	g.target = "dns:///" + net.JoinHostPort(u.Hostname(), port)
	for name, value := range cfg.Headers {
		g.headers.Set(name, value.Reveal())
	}
	return g, nil
}

// otlpConn is a connection that is closed when nobody uses it any more.
type otlpConn struct {
	*grpc.ClientConn
	uses int  // guarded by otlpGRPC.mu
	left bool // guarded by otlpGRPC.mu
	// distrust is why the last connection failed, where that was a lack of trust.
	distrust atomic.Pointer[error]
}

func (g *otlpGRPC) use() (*otlpConn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conn == nil {
		c := &otlpConn{}
		opts := []grpc.DialOption{
			grpc.WithUserAgent("penstock"), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(g.codec), grpc.MaxCallRecvMsgSize(mostAnswer)),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
		}
		if g.tls != nil {
			opts = append(opts, grpc.WithTransportCredentials(watchedTLS{credentials.NewTLS(g.tls), c}))
		}
		if g.codec.compressed {
			//lint:ignore SA1019 the other way to say so is one compressor for the whole process
			opts = append(opts, grpc.WithCompressor(zippingCompressor{&g.client.zippers})) //nolint:staticcheck // as above
		}
		var err error
		if c.ClientConn, err = grpc.NewClient(g.target, opts...); err != nil {
			return nil, err
		}
		g.conn = c
	}
	g.conn.uses++
	return g.conn, nil
}

// release ends a use; leave tells that no other should begin.
func (g *otlpGRPC) release(c *otlpConn, leave bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.uses--
	g.let(c, leave)
}

func (g *otlpGRPC) let(c *otlpConn, leave bool) {
	if leave {
		c.left = true
		if g.conn == c {
			g.conn = nil
		}
	}
	if c.left && c.uses == 0 {
		_ = c.Close() // of a connection without calls
	}
}

// close frees the connection. No call may follow.
func (g *otlpGRPC) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conn != nil {
		g.let(g.conn, true)
	}
}

// export makes one call with head and records as its message. Without success ok is
// false and res says why.
func (g *otlpGRPC) export(ctx context.Context, head, records []byte) (said otlpSaid, res Result, ok bool) {
	c, err := g.use()
	if err != nil {
		return said, g.result(Stop, errOTLPAddress, err.Error()), false
	}
	call, cancel := context.WithTimeoutCause(ctx, g.client.timeout, errHTTPSlow)
	defer cancel()
	if len(g.headers) > 0 {
		call = metadata.NewOutgoingContext(call, g.headers)
	}
	var answer []byte
	err = c.Invoke(call, exportLogs, &rawRequest{head, records}, &answer)
	// The state may still be that before the failure: anything but Ready is down. And after
	// silence the connection may be dead without anybody having noticed.
	down := err != nil && c.GetState() != connectivity.Ready
	leave := down || err != nil && ctx.Err() == nil && call.Err() != nil
	distrust := c.distrust.Load()
	g.release(c, leave)
	switch {
	case err == nil:
		return otlpPartialOf(answer), Result{}, true
	case call.Err() != nil:
		return said, Result{Verdict: Retry, Err: errOTLPUnreachable.New(context.Cause(call), "%s", g.doing())}, false
	case distrust != nil && status.Code(err) == codes.Unavailable:
		return said, g.result(Stop, errOTLPDenied, (*distrust).Error()), false
	case down && status.Code(err) == codes.Unavailable:
		return said, g.result(Retry, errOTLPUnreachable, status.Convert(err).Message()), false
	}
	return said, g.judge(status.Convert(err)), false
}

func (g *otlpGRPC) doing() string {
	return fmt.Sprintf("export to destination %s at %s", g.client.name, strings.TrimPrefix(g.target, "dns:///"))
}

func (g *otlpGRPC) result(v Verdict, kind *fault.Kind, text string) Result {
	return Result{Verdict: v, Err: kind.New(errors.New(g.client.sanitise(text)), "%s", g.doing())}
}

// judge turns the status of a failed call into a verdict. RESOURCE_EXHAUSTED without a
// time to come back means a message that is too large, or a quota: for the latter
// nothing is quarantined. Source: OTLP specification, "OTLP/gRPC Response".
func (g *otlpGRPC) judge(st *status.Status) Result {
	text := st.Code().String() + ": " + st.Message()
	after, told := otlpRetryInfo(st)
	switch code := st.Code(); {
	case code != codes.Unavailable && speaksOfSize(st.Message()):
		return g.result(TooLarge, errOTLPTooLarge, text)
	case code == codes.ResourceExhausted && !told:
		return g.result(Stop, errOTLPExhausted, text)
	case code == codes.Unavailable, code == codes.ResourceExhausted, code == codes.Aborted, code == codes.OutOfRange,
		code == codes.DataLoss, code == codes.Canceled, code == codes.DeadlineExceeded:
		res := g.result(Retry, errOTLPBusy, text)
		res.After = after
		return res
	case code == codes.Unauthenticated, code == codes.PermissionDenied:
		return g.result(Stop, errOTLPDenied, text)
	case code == codes.Unimplemented, code == codes.NotFound, code == codes.FailedPrecondition:
		return g.result(Stop, errOTLPAddress, text)
	}
	return g.result(Split, errOTLPRejected, text)
}

// speaksOfSize reports whether a text says that a message is too large, in the words
// of the implementations in Go, C++ and Python ("received message larger than max"),
// Java and .NET ("exceeds maximum size", "exceeds the maximum configured message size"),
// Rust ("message length too large", as OUT_OF_RANGE) and of proxies (status 413).
func speaksOfSize(text string) bool {
	text = strings.ToLower(text)
	return strings.Contains(text, "larger than max") || strings.Contains(text, "too large") ||
		strings.Contains(text, "exceeds") && strings.Contains(text, "maximum") && strings.Contains(text, "size")
}

// otlpRetryInfo returns for how long the receiver wants to be left alone, at most
// mostAfter, and whether it said anything about that. Source:
// google/rpc/error_details.proto, RetryInfo; google/protobuf/duration.proto.
func otlpRetryInfo(st *status.Status) (time.Duration, bool) {
	for _, detail := range st.Proto().GetDetails() {
		if !strings.HasSuffix(detail.GetTypeUrl(), "/google.rpc.RetryInfo") {
			continue
		}
		delay, _ := pbField(detail.GetValue(), 1)
		_, seconds := pbField(delay, 1)
		_, nanos := pbField(delay, 2)
		limit := uint64(mostAfter / time.Second)
		if seconds > limit && int64(seconds) > 0 {
			seconds = limit
		}
		d := time.Duration(seconds)*time.Second + time.Duration(nanos)
		return min(max(0, d), mostAfter), true
	}
	return 0, false
}

// rawRequest is a message that is encoded already.
type rawRequest struct{ head, records []byte }

// rawCodec hands messages over as they are.
type rawCodec struct{ compressed bool }

var errNotRaw = errors.New("not a message of the otlp sink")

// Marshal copies the records unless they are compressed, and so read, before the call
// goes on: gRPC may still send after a call has ended, and they are the caller's.
func (c rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	r, ok := v.(*rawRequest)
	if !ok {
		return nil, errNotRaw
	}
	if c.compressed {
		return mem.BufferSlice{mem.SliceBuffer(r.head), mem.SliceBuffer(r.records)}, nil
	}
	return mem.BufferSlice{mem.SliceBuffer(r.head), mem.Copy(r.records, mem.DefaultBufferPool())}, nil
}

// Unmarshal hands over the bytes of an answer.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	to, ok := v.(*[]byte)
	if !ok {
		return errNotRaw
	}
	*to = data.Materialize()
	return nil
}

// Name of what the bytes are.
func (rawCodec) Name() string { return "proto" }

// zippingCompressor compresses as all sinks do, some four times as fast as the default
// of gRPC.
type zippingCompressor struct{ zippers *sync.Pool }

// Do compresses p.
func (z zippingCompressor) Do(w io.Writer, p []byte) error {
	zipper := z.zippers.Get().(*zipper)
	defer z.zippers.Put(zipper)
	_, err := w.Write(zipper.zip(p))
	return err
}

// Type of the compression.
func (zippingCompressor) Type() string { return gzip.Name }

// watchedTLS notes why a connection was not trusted: gRPC tells it as text only.
type watchedTLS struct {
	credentials.TransportCredentials
	conn *otlpConn
}

func (w watchedTLS) note(err error) {
	if distrusts(err) {
		w.conn.distrust.Store(&err)
	}
}

// ClientHandshake implements [credentials.TransportCredentials].
func (w watchedTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := w.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		w.note(err)
		return conn, info, err
	}
	w.conn.distrust.Store(nil)
	return watchedConn{conn, w}, info, nil
}

// Clone implements [credentials.TransportCredentials].
func (w watchedTLS) Clone() credentials.TransportCredentials {
	return watchedTLS{w.TransportCredentials.Clone(), w.conn}
}

// watchedConn sees the alert by which a server refuses our certificate: with TLS 1.3
// that comes after the handshake.
type watchedConn struct {
	net.Conn
	tls watchedTLS
}

func (c watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.tls.note(err)
	}
	return n, err
}
