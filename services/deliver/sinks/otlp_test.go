package sinks

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	collogspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
	"github.com/penstock/penstock/services/internal/probe"
)

func init() { harnesses["otlp"] = func(t *testing.T) *world { return otlpWorld(t, OTLPHTTP) } }

// otlpServer is an OTLP receiver over gRPC and HTTP, both with TLS.
type otlpServer struct {
	collogspb.UnimplementedLogsServiceServer
	http *httptest.Server
	grpc *grpc.Server
	addr string // of gRPC

	mu      sync.Mutex
	records []*logspb.LogRecord
	last    *collogspb.ExportLogsServiceRequest
	headers []metadata.MD
	// bad tells which records are rejected, nil none.
	bad func(*logspb.LogRecord) bool
	// trouble answers in place of the server when set; over HTTP with the status that
	// goes with the code.
	trouble func(ctx context.Context) error
	// cut breaks connections after that many bytes, 0 never.
	cut atomic.Int64
}

func newOTLPServer(t testing.TB) *otlpServer {
	t.Helper()
	f := &otlpServer{}
	f.http = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.http.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.http.StartTLS()
	f.start(t, "127.0.0.1:0", f.http.TLS.Clone())
	return f
}

// start begins to serve gRPC; config nil means without TLS.
func (f *otlpServer) start(t testing.TB, address string, config *tls.Config) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	creds := insecure.NewCredentials()
	if config != nil {
		config.NextProtos = []string{"h2"}
		creds = credentials.NewTLS(config)
	}
	f.addr, f.grpc = l.Addr().String(), grpc.NewServer(grpc.Creds(creds))
	collogspb.RegisterLogsServiceServer(f.grpc, f)
	server := f.grpc
	go func() { _ = server.Serve(cuttingListener{l, &f.cut}) }()
}

func (f *otlpServer) close() {
	f.http.Close()
	f.grpc.Stop()
}

// cuttingListener breaks connections after so many bytes.
type cuttingListener struct {
	net.Listener
	after *atomic.Int64
}

func (l cuttingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &cuttingConn{Conn: c, after: l.after}, err
}

type cuttingConn struct {
	net.Conn
	after *atomic.Int64
	n     int64
}

func (c *cuttingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.n += int64(n); c.after.Load() > 0 && c.n > c.after.Load() {
		_ = c.Conn.Close()
	}
	return n, err
}

// Export takes one request.
func (f *otlpServer) Export(ctx context.Context, r *collogspb.ExportLogsServiceRequest) (*collogspb.ExportLogsServiceResponse, error) {
	f.mu.Lock()
	trouble := f.trouble
	f.mu.Unlock()
	if trouble != nil {
		if err := trouble(ctx); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = r
	md, _ := metadata.FromIncomingContext(ctx)
	f.headers = append(f.headers, md)
	rejected := int64(0)
	for _, resource := range r.GetResourceLogs() {
		for _, scope := range resource.GetScopeLogs() {
			for _, record := range scope.GetLogRecords() {
				if f.bad != nil && f.bad(record) {
					rejected++
					continue
				}
				f.records = append(f.records, record)
			}
		}
	}
	out := &collogspb.ExportLogsServiceResponse{}
	if rejected > 0 {
		out.PartialSuccess = &collogspb.ExportLogsPartialSuccess{RejectedLogRecords: rejected, ErrorMessage: "some are bad: " + token}
	}
	return out, nil
}

// serve takes one request over HTTP.
func (f *otlpServer) serve(w http.ResponseWriter, r *http.Request) {
	if n := f.cut.Load(); n > 0 {
		_, _ = io.ReadFull(r.Body, make([]byte, n))
		panic(http.ErrAbortHandler)
	}
	if r.URL.Path != "/v1/logs" || r.Method != http.MethodPost {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	var in io.Reader = r.Body
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(in)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		in = z
	}
	body, err := io.ReadAll(in)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	var request collogspb.ExportLogsServiceRequest
	if r.Header.Get("Content-Type") != "application/x-protobuf" || proto.Unmarshal(body, &request) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	md := metadata.MD{}
	for name, values := range r.Header {
		md.Set(name, values...)
	}
	var out proto.Message
	w.Header().Set("Content-Type", "application/x-protobuf")
	out, err = f.Export(metadata.NewIncomingContext(r.Context(), md), &request)
	if err != nil {
		st := status.Convert(err)
		for _, d := range st.Details() {
			if wait, ok := d.(*durationpb.Duration); ok {
				w.Header().Set("Retry-After", fmt.Sprint(wait.GetSeconds()))
			}
		}
		code := map[codes.Code]int{
			codes.Unavailable: 503, codes.ResourceExhausted: 429, codes.PermissionDenied: 403, codes.InvalidArgument: 400,
		}[st.Code()]
		if code == 0 {
			code = http.StatusInternalServerError
		}
		w.WriteHeader(code)
		out = st.Proto()
	}
	data, _ := proto.Marshal(out)
	_, _ = w.Write(data)
}

// otlpRetryIn is a status with a time to come back, in the form of both protocols.
func otlpRetryIn(code codes.Code, wait time.Duration, message string) error {
	inner, _ := proto.Marshal(durationpb.New(wait))
	info := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), inner)
	st := status.New(code, message).Proto()
	st.Details = append(st.Details, &anypb.Any{TypeUrl: "type.googleapis.com/google.rpc.RetryInfo", Value: info})
	wrapped, _ := anypb.New(durationpb.New(wait)) // for serve, which cannot read the other
	st.Details = append(st.Details, wrapped)
	return status.FromProto(st).Err()
}

func (f *otlpServer) when(trouble func(ctx context.Context) error) func() {
	set := func(trouble func(ctx context.Context) error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.trouble = trouble
	}
	set(trouble)
	return func() { set(nil) }
}

func otlpAttributes(attributes []*commonpb.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range attributes {
		out[a.GetKey()] = a.GetValue().GetStringValue()
	}
	return out
}

// received returns the records as envelopes.
func (f *otlpServer) received() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	lines := make([]string, len(f.records))
	for i, r := range f.records {
		lines[i] = otlpEnvelope(r)
	}
	return lines
}

func otlpEnvelope(r *logspb.LogRecord) string {
	a := otlpAttributes(r.GetAttributes())
	e := &Event{
		Type: a["event.type"], Source: a["penstock.source"], Account: a["cloud.account.id"], Region: a["cloud.region"],
		Time: int64(r.GetTimeUnixNano()),
	}
	var doc bytes.Buffer
	if json.Compact(&doc, []byte(r.GetBody().GetStringValue())) == nil {
		e.Doc = doc.Bytes()
	}
	_, _ = fmt.Sscanf(a["penstock.id"], "%32x", (*otlpID)(&e.ID))
	return strings.TrimSuffix(string(Envelope.appendLine(nil, e)), "\n")
}

// otlpID reads an id.
type otlpID [16]byte

func (id *otlpID) Scan(s fmt.ScanState, _ rune) error {
	var b []byte
	if _, err := fmt.Fscanf(s, "%32x", &b); err != nil {
		return err
	}
	copy(id[:], b)
	return nil
}

func otlpWorld(t *testing.T, protocol OTLPProtocol) *world {
	f := newOTLPServer(t)
	cfg := defaultOTLP()
	cfg.Protocol = protocol
	cfg.Endpoint = f.http.URL
	if protocol == OTLPGRPC {
		cfg.Endpoint = "https://" + f.addr
	}
	cfg.Headers = map[string]config.Secret{"x-api-key": config.NewSecret(token)}
	cfg.Timeout = 2 * time.Second
	cfg.TLS.CAFile = (&farSide{Server: f.http}).trust(t)
	s, err := openOTLP(t.Context(), cfg, Deps{Destination: "otel"})
	must(t, err)
	failing := func(err error) func() func() {
		return func() func() { return f.when(func(context.Context) error { return err }) }
	}
	return &world{
		sink:     s,
		received: f.received,
		secrets:  []string{token},
		outage:   failing(status.Error(codes.Unavailable, "no room for "+token)),
		denial:   failing(status.Error(codes.PermissionDenied, "not with "+token)),
		throttle: failing(otlpRetryIn(codes.Unavailable, 7*time.Second, "later, "+token)),
		hang: func() func() {
			release := make(chan struct{})
			heal := f.when(func(context.Context) error {
				<-release
				return status.Error(codes.Unavailable, "was asleep")
			})
			return func() { heal(); close(release) }
		},
		hangs: 15 * time.Second,
		cut: func() func() {
			f.cut.Store(100_000)
			return func() { f.cut.Store(0) }
		},
		partial: func() func() {
			set := func(bad func(*logspb.LogRecord) bool) {
				f.mu.Lock()
				defer f.mu.Unlock()
				f.bad = bad
			}
			set(func(r *logspb.LogRecord) bool { return third(otlpEnvelope(r)) })
			return func() { set(nil) }
		},
		untrusted: func() (Sink, func() bool) {
			cfg := cfg
			cfg.TLS.CAFile = ""
			s, err := openOTLP(t.Context(), cfg, Deps{Destination: "otel"})
			must(t, err)
			return s, func() bool { return len(f.received()) > 0 }
		},
		done: f.close,
	}
}

// The suite runs over HTTP; here is all of it over gRPC.
func TestOTLPOverGRPC(t *testing.T) {
	// covers: F-27
	for name, run := range map[string]func(*testing.T, *world, Sink){
		"delivers": delivers, "delivers concurrently": deliversConcurrently, "survives an outage": survivesOutage,
		"stops when denied": stopsWhenDenied, "is not held by a hanging peer": notHeld, "honours throttling": honoursThrottling,
		"repeats what was cut": repeatsWhatWasCut, "takes a batch twice": takesTwice, "honours cancellation": honoursCancellation,
		"closes in the middle": closesInTheMiddle, "judges events one by one": judgesOneByOne, "trusts nobody by default": trustsNobody,
	} {
		for _, zip := range []bool{false, true} {
			if zip && name == "repeats what was cut" {
				continue // its events compress to less than what is let through
			}
			t.Run(fmt.Sprintf("%s/gzip=%v", name, zip), func(t *testing.T) {
				w := otlpWorld(t, OTLPGRPC)
				defer w.done()
				w.sink.(*otlpSink).grpc.codec.compressed = zip
				run(t, w, watched{w.sink, t, w})
				must(t, w.sink.Close())
			})
		}
	}
}

// openOTLPTo opens a sink that trusts f.
func openOTLPTo(t testing.TB, f *otlpServer, protocol OTLPProtocol, change func(*OTLPConfig)) *otlpSink {
	t.Helper()
	cfg := defaultOTLP()
	cfg.Protocol, cfg.Endpoint = protocol, f.http.URL
	if protocol == OTLPGRPC {
		cfg.Endpoint = "https://" + f.addr
	}
	if tt, ok := t.(*testing.T); ok && f.http.Certificate() != nil {
		cfg.TLS.CAFile = (&farSide{Server: f.http}).trust(tt)
	}
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := openOTLP(context.Background(), cfg, Deps{Destination: "otel"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.(*otlpSink)
}

// requestOf is what goes out for events, read by the library for the protocol.
func requestOf(t testing.TB, s *otlpSink, events ...*Event) *collogspb.ExportLogsServiceRequest {
	t.Helper()
	var records []byte
	for _, e := range events {
		records = s.Append(records, e)
	}
	var out collogspb.ExportLogsServiceRequest
	if err := proto.Unmarshal(append(s.head(nil, len(records)), records...), &out); err != nil {
		t.Fatal(err)
	}
	return &out
}

func otlpNow() time.Time { return time.Unix(1_767_599_099, 0) }

func TestOTLPGolden(t *testing.T) {
	// covers: F-27
	tests := map[string]struct {
		change func(*OTLPConfig)
		events []*Event
	}{
		"string": {nil, []*Event{event(1, `{"eventName":"ListBuckets"}`), {Type: "a", Source: "s", Doc: []byte("{\n\"x\":\t\"\u00e9\"}")}}},
		"map": {func(c *OTLPConfig) {
			c.Body, c.Severity = OTLPMap, "info"
			c.ResourceAttributes["deployment.environment.name"] = "test"
		}, []*Event{
			event(1, ` {"s":"a\"\u00e9\n","i":-7,"big":9223372036854775807,"more":9223372036854775808,"f":1.5,"long":1.2345678901234567,`+
				`"e":1e3,"huge":1e999,"t":true,"n":null,"o":{"":{}},"a":[1,"x",[],null]} `),
			event(2, `"text"`), event(3, `[1]`), event(4, `{"broken":`),
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := defaultOTLP()
			cfg.Endpoint = "https://example.com"
			if tt.change != nil {
				tt.change(&cfg)
			}
			opened, err := openOTLP(t.Context(), cfg, Deps{Destination: "otel"})
			must(t, err)
			s := opened.(*otlpSink)
			s.now = otlpNow
			text, err := protojson.Marshal(requestOf(t, s, tt.events...))
			must(t, err)
			var indented bytes.Buffer
			must(t, json.Indent(&indented, text, "", "  ")) // the spaces of protojson change from build to build
			golden.Check(t, filepath.Join("testdata", "otlp", name+".json"), append(indented.Bytes(), '\n'))
		})
	}
}

func TestOTLPStatus(t *testing.T) {
	// covers: F-27, peers section 6 "General rules"
	f := newOTLPServer(t)
	defer f.close()
	s := openOTLPTo(t, f, OTLPGRPC, nil)
	tests := []struct {
		err     error
		verdict Verdict
		code    string
		after   time.Duration
	}{
		{status.Error(codes.Canceled, ""), Retry, "deliver.otlp_busy", 0},
		{status.Error(codes.Unknown, ""), Split, "deliver.otlp_rejected", 0},
		{status.Error(codes.Unknown, "unexpected HTTP status code received from server: 413 (Request Entity Too Large)"), TooLarge, "deliver.otlp_too_large", 0},
		{status.Error(codes.InvalidArgument, ""), Split, "deliver.otlp_rejected", 0},
		{status.Error(codes.DeadlineExceeded, ""), Retry, "deliver.otlp_busy", 0},
		{status.Error(codes.NotFound, ""), Stop, "deliver.otlp_wrong_address", 0},
		{status.Error(codes.AlreadyExists, ""), Split, "deliver.otlp_rejected", 0},
		{status.Error(codes.PermissionDenied, ""), Stop, "deliver.otlp_denied", 0},
		{status.Error(codes.Unauthenticated, ""), Stop, "deliver.otlp_denied", 0},
		{status.Error(codes.ResourceExhausted, "quota"), Stop, "deliver.otlp_exhausted", 0},
		{status.Error(codes.ResourceExhausted, "grpc: received message larger than max (5 vs. 4)"), TooLarge, "deliver.otlp_too_large", 0},
		{status.Error(codes.ResourceExhausted, "gRPC message exceeds maximum size 4: 5"), TooLarge, "deliver.otlp_too_large", 0},
		{status.Error(codes.OutOfRange, "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes"), TooLarge, "deliver.otlp_too_large", 0},
		{otlpRetryIn(codes.ResourceExhausted, 3*time.Second, ""), Retry, "deliver.otlp_busy", 3 * time.Second},
		{otlpRetryIn(codes.ResourceExhausted, 0, ""), Retry, "deliver.otlp_busy", 0},
		{otlpRetryIn(codes.Unavailable, 1500*time.Millisecond, ""), Retry, "deliver.otlp_busy", 1500 * time.Millisecond},
		{otlpRetryIn(codes.Unavailable, 100*time.Hour, ""), Retry, "deliver.otlp_busy", time.Hour},
		{otlpRetryIn(codes.Unavailable, -time.Second, ""), Retry, "deliver.otlp_busy", 0},
		{otlpRetryIn(codes.Unavailable, math.MaxInt64, ""), Retry, "deliver.otlp_busy", time.Hour},
		{status.Error(codes.FailedPrecondition, ""), Stop, "deliver.otlp_wrong_address", 0},
		{status.Error(codes.Aborted, ""), Retry, "deliver.otlp_busy", 0},
		{status.Error(codes.OutOfRange, ""), Retry, "deliver.otlp_busy", 0},
		{status.Error(codes.Unimplemented, ""), Stop, "deliver.otlp_wrong_address", 0},
		{status.Error(codes.Internal, ""), Split, "deliver.otlp_rejected", 0},
		{status.Error(codes.Unavailable, ""), Retry, "deliver.otlp_busy", 0},
		{status.Error(codes.DataLoss, ""), Retry, "deliver.otlp_busy", 0},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(status.Code(tt.err), tt.after), func(t *testing.T) {
			defer f.when(func(context.Context) error { return tt.err })()
			res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 2)...))
			if res.Verdict != tt.verdict || res.After != tt.after || fault.CodeOf(res.Err) != tt.code {
				t.Errorf("%v after %v, %s; want %v after %v, %s: %v", res.Verdict, res.After, fault.CodeOf(res.Err), tt.verdict, tt.after, tt.code, res.Err)
			}
		})
	}
}

func TestOTLPHTTPStatus(t *testing.T) {
	// covers: F-27
	tests := []struct {
		status  int
		kind    string
		body    string
		verdict Verdict
		shows   string
	}{
		{200, "", "", Done, ""},
		{202, "application/x-protobuf", "", Done, ""},
		{200, "application/json", `{}`, Done, ""},
		{200, "application/json", `{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"old"}}`, Split, "rejects 1 of 2 records and does not say which: it says: old"},
		{200, "application/json", `{"partialSuccess":{"rejectedLogRecords":2}}`, Reject, "rejects all of 2"},
		{200, "application/x-protobuf", "garbage \xff", Done, ""},
		{200, "text/html; charset=utf-8", "<html>sign in", Stop, "sign in"},
		{400, "application/x-protobuf", "\x12\x03bad", Split, "it says: bad"},
		{400, "application/x-protobuf", "\x12\x1chttp: request body too large", TooLarge, "too large"},
		{401, "", "", Stop, ""},
		{403, "", "", Stop, ""},
		{404, "", "", Stop, ""},
		{405, "", "", Stop, ""},
		{413, "", "", TooLarge, ""},
		{415, "", "", Stop, ""},
		{429, "", "", Retry, ""},
		{500, "application/x-protobuf", "\x12\x04oops", Split, "it says: oops"},
		{501, "", "", Stop, ""},
		{502, "", "", Retry, ""},
		{503, "", "", Retry, ""},
		{504, "", "", Retry, ""},
		{507, "", "", Split, ""},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.status, tt.kind), func(t *testing.T) {
			f := newFarSide(false)
			defer f.Close()
			defer f.when(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", tt.kind)
				w.Header().Set("Retry-After", "4")
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			})()
			s := openOTLPTo(t, &otlpServer{http: f.Server}, OTLPHTTP, nil)
			res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 2)...))
			if res.Verdict != tt.verdict || res.Verdict == Retry && res.After != 4*time.Second {
				t.Errorf("got %v after %v: %v", res.Verdict, res.After, res.Err)
			}
			if tt.shows != "" && !strings.Contains(fmt.Sprint(res.Err), tt.shows) {
				t.Errorf("got %v, want %q in it", res.Err, tt.shows)
			}
		})
	}
}

// With partial success nothing is lost and nothing that was rejected is taken for
// delivered, whatever it costs in copies.
func TestOTLPPartialSuccess(t *testing.T) {
	// covers: F-27, peers pain 20
	for _, protocol := range []OTLPProtocol{OTLPHTTP, OTLPGRPC} {
		t.Run(string(protocol), func(t *testing.T) {
			f := newOTLPServer(t)
			defer f.close()
			f.bad = func(r *logspb.LogRecord) bool { return third(otlpEnvelope(r)) }
			quarantine := openOTLPTo(t, f, protocol, func(c *OTLPConfig) { c.PartialSuccess = OTLPQuarantine })
			res := quarantine.Deliver(t.Context(), batchOf(quarantine, 0, plain(0, 30)...))
			if res.Verdict != Reject || fault.CodeOf(res.Err) != "deliver.otlp_partly_rejected" || !strings.Contains(res.Err.Error(), "rejects 10 of 30 records") {
				t.Errorf("got %v: %v", res.Verdict, res.Err)
			}
			if len(f.received()) != 20 {
				t.Errorf("%d records are there, want 20", len(f.received()))
			}
			split := openOTLPTo(t, f, protocol, nil)
			if res := split.Deliver(t.Context(), batchOf(split, 0, plain(0, 30)...)); res.Verdict != Split {
				t.Errorf("got %v: %v", res.Verdict, res.Err)
			}
			f.bad = func(*logspb.LogRecord) bool { return true }
			if res := split.Deliver(t.Context(), batchOf(split, 0, plain(0, 30)...)); res.Verdict != Reject || fault.CodeOf(res.Err) != "deliver.otlp_rejected" {
				t.Errorf("got %v: %v", res.Verdict, res.Err)
			}
		})
	}
}

func TestOTLPRequest(t *testing.T) {
	// covers: F-27
	for _, protocol := range []OTLPProtocol{OTLPHTTP, OTLPGRPC} {
		for _, zip := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/gzip=%v", protocol, zip), func(t *testing.T) {
				f := newOTLPServer(t)
				defer f.close()
				s := openOTLPTo(t, f, protocol, func(c *OTLPConfig) {
					c.Gzip = zip
					c.Headers = map[string]config.Secret{"X-Api-Key": config.NewSecret("k")}
				})
				mustDeliver(t, s, batchOf(s, 0, plain(0, 700)...))
				f.mu.Lock()
				defer f.mu.Unlock()
				if len(f.records) != 700 || f.headers[0].Get("x-api-key")[0] != "k" {
					t.Errorf("%d records, headers %v", len(f.records), f.headers)
				}
				resource := f.last.GetResourceLogs()[0]
				if got := otlpAttributes(resource.GetResource().GetAttributes()); !maps.Equal(got, map[string]string{"service.name": "penstock"}) {
					t.Errorf("resource %v", got)
				}
				if got := resource.GetScopeLogs()[0].GetScope().GetName(); got != "penstock.deliver" {
					t.Errorf("scope %q", got)
				}
				r := f.records[0]
				if r.GetTraceId() != nil || r.GetSpanId() != nil || r.GetSeverityNumber() != 0 || r.GetObservedTimeUnixNano() == 0 {
					t.Errorf("record %v", r)
				}
			})
		}
	}
}

// A receiver that goes away and comes back at the same address is found at the next
// attempt, and a certificate that is not trusted is no outage.
func TestOTLPReconnects(t *testing.T) {
	f := newOTLPServer(t)
	defer f.close()
	secure := f.http.TLS.Clone()
	s := openOTLPTo(t, f, OTLPGRPC, nil)
	mustDeliver(t, s, batchOf(s, 0, plain(0, 1)...))
	f.grpc.Stop()
	b := batchOf(s, 1, plain(1, 1)...)
	var res Result
	for range 3 { // the first may still meet the old connection
		if res = s.Deliver(t.Context(), b); res.Verdict != Retry {
			t.Fatalf("got %v: %v", res.Verdict, res.Err)
		}
	}
	if fault.CodeOf(res.Err) != "deliver.otlp_unreachable" || !strings.Contains(res.Err.Error(), "connection refused") {
		t.Errorf("got %v", res.Err)
	}
	f.start(t, f.addr, secure)
	mustDeliver(t, s, b)
	expectLines(t, f.received(), 2)
}

func TestOTLPClientCertificate(t *testing.T) {
	// covers: DEV-131
	f := newOTLPServer(t)
	defer f.close()
	folder := t.TempDir()
	cert, key := filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	pool := x509.NewCertPool()
	pool.AddCert(newCertificate(t, cert, key))
	secure := f.http.TLS.Clone()
	secure.ClientAuth, secure.ClientCAs = tls.RequireAndVerifyClientCert, pool
	f.grpc.Stop()
	f.start(t, "127.0.0.1:0", secure)
	s := openOTLPTo(t, f, OTLPGRPC, func(c *OTLPConfig) { c.TLS.CertFile, c.TLS.KeyFile = cert, key })
	mustDeliver(t, s, batchOf(s, 0, plain(0, 1)...))

	newCertificate(t, cert, key) // one that the server does not know
	stranger := openOTLPTo(t, f, OTLPGRPC, func(c *OTLPConfig) { c.TLS.CertFile, c.TLS.KeyFile = cert, key })
	for range 50 { // the closing of the connection may overtake the reason
		res := stranger.Deliver(t.Context(), batchOf(s, 1, plain(1, 1)...))
		if res.Verdict == Stop {
			return
		}
		if res.Verdict != Retry {
			t.Fatalf("got %v: %v", res.Verdict, res.Err)
		}
	}
	t.Error("a refused certificate does not stop the destination")
}

func TestOTLPProbe(t *testing.T) {
	for _, protocol := range []OTLPProtocol{OTLPHTTP, OTLPGRPC} {
		t.Run(string(protocol), func(t *testing.T) {
			f := newOTLPServer(t)
			defer f.close()
			s := openOTLPTo(t, f, protocol, nil)
			last := func() probe.Finding {
				all := s.cfg.Probe(t.Context())
				return all[len(all)-1]
			}
			if got := last(); got.Level != probe.OK {
				t.Errorf("got %+v", got)
			}
			defer f.when(func(context.Context) error { return status.Error(codes.PermissionDenied, "") })()
			if got := last(); got.Level != probe.Fail || got.Code == "" || got.Fix == "" {
				t.Errorf("got %+v", got)
			}
			if len(f.received()) != 0 {
				t.Error("the probe left something behind")
			}
		})
	}
}

func TestOTLPConfig(t *testing.T) {
	for _, endpoint := range []string{"https://example.com", "http://localhost:4318", "http://127.0.0.1:4318/", "http://[::1]:4317"} {
		cfg := defaultOTLP()
		cfg.Endpoint = endpoint
		must(t, cfg.Validate())
	}
	for endpoint, want := range map[string]string{
		"https://x": "https://x/v1/logs", "https://x/": "https://x/v1/logs", "https://x/otlp/": "https://x/otlp/v1/logs",
		"https://x/otlp/v1/logs": "https://x/otlp/v1/logs", "https://x:4318?key=1": "https://x:4318/v1/logs?key=1",
	} {
		u, err := OTLPConfig{Endpoint: endpoint}.logsURL()
		must(t, err)
		if u.String() != want || u.Path[0] != '/' {
			t.Errorf("%s goes to %s, want %s", endpoint, u, want)
		}
	}
	tests := []struct {
		key    string
		change func(*OTLPConfig)
	}{
		{"endpoint", func(c *OTLPConfig) { c.Endpoint = "" }},
		{"endpoint", func(c *OTLPConfig) { c.Endpoint = "collector:4317" }},
		{"endpoint", func(c *OTLPConfig) { c.Endpoint = "http://collector.example.com:4317" }},
		{"endpoint", func(c *OTLPConfig) { c.Endpoint = "https://u:p@x" }},
		{"endpoint", func(c *OTLPConfig) { c.Protocol, c.Endpoint = OTLPGRPC, "https://x/v1/logs" }},
		{"protocol", func(c *OTLPConfig) { c.Protocol = "http/json" }},
		{"body", func(c *OTLPConfig) { c.Body = "" }},
		{"severity", func(c *OTLPConfig) { c.Severity = "loud" }},
		{"partial_success", func(c *OTLPConfig) { c.PartialSuccess = "drop" }},
		{"resource_attributes", func(c *OTLPConfig) { c.ResourceAttributes = map[string]string{"": "x"} }},
		{"batch.bytes", func(c *OTLPConfig) { c.Batch.Bytes = 0 }},
		{"timeout", func(c *OTLPConfig) { c.Timeout = 0 }},
		{"headers.host", func(c *OTLPConfig) { c.Headers = map[string]config.Secret{"host": config.NewSecret("x")} }},
		{"headers.x-bin", func(c *OTLPConfig) {
			c.Protocol, c.Headers = OTLPGRPC, map[string]config.Secret{"x-bin": config.NewSecret("x")}
		}},
		{"headers.grpc-x", func(c *OTLPConfig) {
			c.Protocol, c.Headers = OTLPGRPC, map[string]config.Secret{"grpc-x": config.NewSecret("x")}
		}},
	}
	for _, tt := range tests {
		cfg := defaultOTLP()
		cfg.Endpoint = "https://example.com"
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), tt.key+": ") {
			t.Errorf("%s: got %v", tt.key, err)
		}
	}
}

// otlpJSON is the JSON of a value, with numbers as they are written.
func otlpJSON(v *commonpb.AnyValue) any {
	switch x := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return x.StringValue
	case *commonpb.AnyValue_BoolValue:
		return x.BoolValue
	case *commonpb.AnyValue_IntValue:
		return float64(x.IntValue)
	case *commonpb.AnyValue_DoubleValue:
		return x.DoubleValue
	case *commonpb.AnyValue_ArrayValue:
		list := []any{}
		for _, e := range x.ArrayValue.GetValues() {
			list = append(list, otlpJSON(e))
		}
		return list
	case *commonpb.AnyValue_KvlistValue:
		m := map[string]any{}
		for _, e := range x.KvlistValue.GetValues() {
			m[e.GetKey()] = otlpJSON(e.GetValue())
		}
		return m
	}
	return nil
}

// sameJSON compares with what encoding/json reads: a number may have become a string, and
// what is nested deeply its text.
func sameJSON(got any, want any) bool {
	switch w := want.(type) {
	case map[string]any:
		if text, ok := got.(string); ok {
			return json.Valid([]byte(text))
		}
		g, ok := got.(map[string]any)
		if !ok || len(g) != len(w) {
			return false
		}
		for k := range w {
			if !sameJSON(g[k], w[k]) {
				return false
			}
		}
		return true
	case []any:
		if text, ok := got.(string); ok {
			return json.Valid([]byte(text))
		}
		g, ok := got.([]any)
		return ok && slices.EqualFunc(g, w, sameJSON)
	case json.Number:
		if text, ok := got.(string); ok {
			return text == w.String()
		}
		f, err := w.Float64()
		return err == nil && got == f
	default:
		return got == want
	}
}

func FuzzOTLPBody(f *testing.F) {
	cfg := defaultOTLP()
	cfg.Endpoint, cfg.Body = "https://example.com", OTLPMap
	opened, err := openOTLP(f.Context(), cfg, Deps{Destination: "otel"})
	if err != nil {
		f.Fatal(err)
	}
	s := opened.(*otlpSink)
	f.Add([]byte(trailEvent))
	f.Add([]byte(` {"a":[1,2.5,-0,1e400,123456789012345678901234567890,{"b":null}],"a":"\u00e9\ud83d\ude00\ud800"} `))
	f.Add([]byte(strings.Repeat(`[{"x":`, 200) + "1" + strings.Repeat("}]", 200)))
	f.Add([]byte(`"` + strings.Repeat("x", 70_000) + `"`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		if !utf8.Valid(doc) {
			return // deliver has seen to that
		}
		e := event(1, string(doc))
		r := requestOf(t, s, e).GetResourceLogs()[0].GetScopeLogs()[0].GetLogRecords()[0]
		if !bytes.Equal(e.Doc, doc) {
			t.Fatal("the document was changed")
		}
		if len(r.GetAttributes()) != 5 {
			t.Fatalf("record %v", r)
		}
		d := json.NewDecoder(bytes.NewReader(doc))
		d.UseNumber()
		var want any
		if !json.Valid(doc) || d.Decode(&want) != nil {
			return // anything that can be read will do
		}
		if got := otlpJSON(r.GetBody()); !sameJSON(got, want) {
			t.Fatalf("%q became %v", doc, got)
		}
	})
}

func FuzzOTLPAnswer(f *testing.F) {
	seed, _ := proto.Marshal(&collogspb.ExportLogsServiceResponse{PartialSuccess: &collogspb.ExportLogsPartialSuccess{RejectedLogRecords: 3, ErrorMessage: "x"}})
	f.Add(seed)
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, body []byte) {
		got := otlpPartialOf(body)
		var want collogspb.ExportLogsServiceResponse
		if err := proto.Unmarshal(body, &want); err != nil || bytes.Count(body, []byte{0x0a}) > 1 {
			return // several partial_success would be merged by the library
		}
		if p := want.GetPartialSuccess(); got.rejected != p.GetRejectedLogRecords() || got.message != p.GetErrorMessage() {
			t.Fatalf("got %+v, want %v", got, p)
		}
	})
}

// unread is a server that answers without reading what it gets.
type unread struct{}

func (unread) Marshal(any) ([]byte, error)        { return nil, nil }
func (unread) Unmarshal(data []byte, v any) error { *v.(*int) = len(data); return nil }
func (unread) Name() string                       { return "proto" }

func BenchmarkOTLP(b *testing.B) {
	var received atomic.Int64
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		received.Add(n)
	}))
	defer web.Close()
	server := grpc.NewServer(grpc.ForceServerCodec(unread{}))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "opentelemetry.proto.collector.logs.v1.LogsService", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Export", Handler: func(_ any, _ context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			n := 0
			err := dec(&n)
			received.Add(int64(n))
			return protoadapt.MessageV1Of(&emptypb.Empty{}), err
		}}},
	}, struct{}{})
	l, err := (&net.ListenConfig{}).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	for _, protocol := range []OTLPProtocol{OTLPHTTP, OTLPGRPC} {
		for _, body := range []OTLPBody{OTLPString, OTLPMap} {
			for _, zip := range []bool{false, true} {
				b.Run(fmt.Sprintf("%s/%s/gzip=%v", protocol, body, zip), func(b *testing.B) {
					cfg := defaultOTLP()
					cfg.Protocol, cfg.Body, cfg.Gzip, cfg.Endpoint = protocol, body, zip, web.URL
					if protocol == OTLPGRPC {
						cfg.Endpoint = "http://" + l.Addr().String()
					}
					s, err := openOTLP(b.Context(), cfg, Deps{Destination: "bench"})
					if err != nil {
						b.Fatal(err)
					}
					defer s.Close()
					e := event(1, trailEvent)
					const n = 700
					data, items := make([]byte, 0, 4<<20), make([]Item, 0, n)
					b.SetBytes(n * int64(len(trailEvent)))
					b.ReportAllocs()
					received.Store(0)
					calls := int64(0)
					for b.Loop() {
						data, items = data[:0], items[:0]
						for range n {
							start := len(data)
							data = s.Append(data, e)
							items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
						}
						calls++
						if res := s.Deliver(b.Context(), NewBatch(data, items)); res.Verdict != Done {
							b.Fatal(res.Err)
						}
					}
					if !zip && received.Load() < calls*int64(len(data)) {
						b.Fatalf("%d bytes arrived of %d", received.Load(), calls*int64(len(data)))
					}
					b.ReportMetric(float64(calls)*n/b.Elapsed().Seconds(), "events/s")
				})
			}
		}
	}
}
