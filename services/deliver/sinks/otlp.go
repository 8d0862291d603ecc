package sinks

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/document"
	"github.com/penstock/penstock/services/internal/probe"
)

func init() {
	define("otlp", "Exports batches as OpenTelemetry log records, over gRPC or HTTP.", defaultOTLP, openOTLP)
}

var (
	errOTLPUnreachable = fault.Define("deliver.otlp_unreachable", fault.Retry,
		"check that the receiver runs, that protocol is the one that it speaks at this port, and that name, proxy and firewall let penstock through")
	errOTLPBusy = fault.Define("deliver.otlp_busy", fault.Retry,
		"nothing, when it passes; else give the receiver more room or lower concurrency")
	errOTLPDenied = fault.Define("deliver.otlp_denied", fault.Stop,
		"renew the headers or the client certificate of the destination, or its permissions at the far side")
	errOTLPAddress = fault.Define("deliver.otlp_wrong_address", fault.Stop,
		"correct endpoint and protocol of the destination: nobody there takes OTLP logs")
	errOTLPExhausted = fault.Define("deliver.otlp_exhausted", fault.Stop,
		"raise the quota at the far side: it says that one is used up, and not when there will be more")
	errOTLPTooLarge = fault.Define("deliver.otlp_too_large", fault.Reject,
		"raise the receiver's limit on messages, or lower batch.bytes")
	errOTLPRejected = fault.Define("deliver.otlp_rejected", fault.Reject,
		"see why the receiver refuses this event, then redrive it")
	errOTLPPartly = fault.Define("deliver.otlp_partly_rejected", fault.Reject,
		"see which of these events are at the far side, by penstock.id, and redrive the others; or set partial_success to split")
)

var (
	otlpRejected = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_otlp_rejected_records_total", Help: "Log records that an OTLP receiver said it rejected, in answers of partial success; each attempt counts.",
	}, []string{"destination"})
	otlpWarnings = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_otlp_warnings_total", Help: "Answers of an OTLP receiver that took all and had something to say about it.",
	}, []string{"destination"})
)

// OTLPProtocol is how requests travel.
type OTLPProtocol string

// The protocols.
const (
	// OTLPGRPC: protobuf over gRPC.
	OTLPGRPC OTLPProtocol = "grpc"
	// OTLPHTTP: protobuf over HTTP/1.1.
	OTLPHTTP OTLPProtocol = "http"
)

// Values implements [config.Enum].
func (OTLPProtocol) Values() []string { return []string{string(OTLPGRPC), string(OTLPHTTP)} }

// OTLPBody is the form of a record's body.
type OTLPBody string

// The forms.
const (
	// OTLPString: the document as it is, as one string.
	OTLPString OTLPBody = "string"
	// OTLPMap: the document parsed, as a map where it is an object.
	OTLPMap OTLPBody = "map"
)

// Values implements [config.Enum].
func (OTLPBody) Values() []string { return []string{string(OTLPString), string(OTLPMap)} }

// OTLPPartial is what to do when a receiver rejects some records of a request.
type OTLPPartial string

// The ways.
const (
	// OTLPSplit sends halves until those that are rejected are alone.
	OTLPSplit OTLPPartial = "split"
	// OTLPQuarantine puts all events of the request into quarantine.
	OTLPQuarantine OTLPPartial = "quarantine"
)

// Values implements [config.Enum].
func (OTLPPartial) Values() []string { return []string{string(OTLPSplit), string(OTLPQuarantine)} }

// OTLPSeverity is the severity of all records of a destination.
type OTLPSeverity string

// otlpSeverities are the first numbers of the ranges. Source: OpenTelemetry Logs Data
// Model, "Field: SeverityNumber".
var otlpSeverities = map[OTLPSeverity]uint64{"none": 0, "trace": 1, "debug": 5, "info": 9, "warn": 13, "error": 17, "fatal": 21}

// Values implements [config.Enum].
func (OTLPSeverity) Values() []string {
	return []string{"none", "trace", "debug", "info", "warn", "error", "fatal"}
}

// OTLPConfig configures the otlp sink.
type OTLPConfig struct {
	// Endpoint is the base address of the receiver, e.g. https://collector.example.com:4318. With protocol http, /v1/logs is added unless it ends in it. Required.
	Endpoint string `yaml:"endpoint"`
	// Protocol is grpc (usual port 4317) or http (usual port 4318, protobuf in the body).
	Protocol OTLPProtocol `yaml:"protocol"`
	// Insecure allows http:// towards other hosts than this one: events and headers can be read on their way.
	Insecure bool `yaml:"insecure"`
	// Body of a record: string (the document as it is) or map (parsed).
	Body OTLPBody `yaml:"body"`
	// Severity that every record carries: none, trace, debug, info, warn, error or fatal.
	Severity OTLPSeverity `yaml:"severity"`
	// ResourceAttributes say where the records come from; added to those of the default.
	ResourceAttributes map[string]string `yaml:"resource_attributes"`
	// PartialSuccess tells what to do when the receiver rejects some records of a request without saying which: split sends halves until the bad ones are alone, at the cost of duplicates of the good ones; quarantine sends nothing twice and puts the whole request into quarantine.
	PartialSuccess OTLPPartial `yaml:"partial_success"`
	// Batch bounds one request. Receivers usually take up to 4 MiB over gRPC and 20 MiB over HTTP.
	Batch Limits `yaml:"batch"`

	HTTPClient `yaml:",inline"`
}

func defaultOTLP() OTLPConfig {
	return OTLPConfig{
		Protocol:           OTLPHTTP,
		Body:               OTLPString,
		Severity:           "none",
		ResourceAttributes: map[string]string{"service.name": "penstock"},
		PartialSuccess:     OTLPSplit,
		Batch:              Limits{Events: 1000, Bytes: config.MiB, Age: 200 * time.Millisecond},
		HTTPClient:         HTTPClient{Timeout: 10 * time.Second},
	}
}

// Validate reports every problem, each with the key to change.
func (c OTLPConfig) Validate() error {
	var p config.Problems
	needURL(&p, "endpoint", c.Endpoint)
	u, err := url.Parse(c.Endpoint)
	if err == nil {
		p.Need(u.Scheme != "http" || c.Insecure || otlpLoopback(u.Hostname()), "endpoint", "use https, or set insecure: true if everybody on the way may read events and headers")
		p.Need(c.Protocol != OTLPGRPC || strings.Trim(u.Path, "/") == "" && u.RawQuery == "", "endpoint", "leave out path and query: gRPC has none")
	}
	p.Need(slices.Contains(c.Protocol.Values(), string(c.Protocol)), "protocol", "use grpc or http")
	p.Need(slices.Contains(c.Body.Values(), string(c.Body)), "body", "use string or map")
	p.Need(slices.Contains(c.Severity.Values(), string(c.Severity)), "severity", "use none, trace, debug, info, warn, error or fatal")
	p.Need(slices.Contains(c.PartialSuccess.Values(), string(c.PartialSuccess)), "partial_success", "use split or quarantine")
	for name, value := range c.ResourceAttributes {
		p.Need(name != "" && utf8.ValidString(name) && utf8.ValidString(value), "resource_attributes", "use names and values of valid UTF-8; a name is not empty")
	}
	p.In("batch", c.Batch.Validate())
	c.HTTPClient.problems(&p, false)
	if c.Protocol == OTLPGRPC {
		for name := range c.Headers {
			lower := strings.ToLower(name)
			p.Need(!strings.HasPrefix(lower, "grpc-") && !strings.HasSuffix(lower, "-bin") && strings.Trim(lower, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == "",
				"headers."+name, "use letters, digits, - _ and .; over gRPC a name neither begins with grpc- nor ends in -bin")
		}
	}
	return p.Err()
}

func otlpLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// logsURL is where requests over HTTP go. Source: OpenTelemetry Protocol Exporter,
// "Endpoint URLs for OTLP/HTTP".
func (c OTLPConfig) logsURL() (*url.URL, error) {
	u, err := url.Parse(c.Endpoint)
	if err == nil && !strings.HasSuffix(u.Path, "/v1/logs") {
		u.Path, u.RawPath = strings.TrimRight(u.Path, "/")+"/v1/logs", ""
	}
	return u, err
}

// otlpSink exports log records.
//
// An event is confirmed when the receiver has answered its request with success, and
// rejected no record of it. OTLP promises nothing beyond the receiver: a Collector
// answers when its pipeline has the records, which may be in memory.
//
// Requests travel side by side, so records arrive in any order; each carries its time.
// After a lost answer the same records are sent again: a receiver can tell by the
// attribute penstock.id.
//
// A receiver may accept a request in part, and says how many records it rejected but
// not which (partial success). OTLP then forbids to send the request again, so that
// what was rejected is lost. Penstock loses nothing: with partial_success split, the
// default, halves are sent until the rejected records stand alone. That costs up to
// log2(batch) copies of the accepted ones, with the same ids. No half is taken for
// delivered because of what the other half's answer said, as a receiver may reject for
// reasons that pass. With quarantine nothing is sent twice, and the whole request goes
// to quarantine.
//
// Memory: a copy of each batch that is being sent, and its compressed form.
//
// Source: OTLP specification 1.9; formats F-27.
type otlpSink struct {
	*httpClient
	cfg  OTLPConfig
	log  *slog.Logger
	url  *url.URL  // HTTP only
	grpc *otlpGRPC // gRPC only
	now  func() time.Time

	severity        []byte // fields of every record
	resource, scope []byte // fields that come before the records
	buffers         sync.Pool

	mu   sync.Mutex
	told time.Time // when a warning of the receiver was last logged
}

func openOTLP(_ context.Context, cfg OTLPConfig, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	client, err := newHTTPClient(deps.Destination, cfg.HTTPClient, HTTPAuth{})
	if err != nil {
		return nil, err
	}
	s := &otlpSink{httpClient: client, cfg: cfg, log: deps.Log, now: time.Now}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.buffers.New = func() any { return new([]byte) }
	if s.url, err = cfg.logsURL(); err != nil {
		return nil, errOTLPAddress.New(nil, "open destination %s", deps.Destination) // not reached: validated
	}
	client.hideQuery(s.url)
	client.header.Set("Content-Type", "application/x-protobuf")
	if cfg.Protocol == OTLPGRPC {
		if s.grpc, err = newOTLPGRPC(deps.Destination, cfg, client); err != nil {
			return nil, err
		}
	}
	if n := otlpSeverities[cfg.Severity]; n > 0 {
		s.severity = protowire.AppendTag(s.severity, 2, protowire.VarintType)
		s.severity = protowire.AppendVarint(s.severity, n)
		s.severity = pbText(s.severity, 3, strings.ToUpper(string(cfg.Severity)))
	}
	// ResourceLogs.resource
	s.resource, _ = pbBegin(nil, 1)
	for _, name := range slices.Sorted(maps.Keys(cfg.ResourceAttributes)) {
		s.resource = pbAttribute(s.resource, 1, name, cfg.ResourceAttributes[name])
	}
	s.resource = pbEnd(s.resource, 1)
	// ScopeLogs.scope
	s.scope, _ = pbBegin(nil, 1)
	s.scope = pbText(s.scope, 1, "penstock.deliver")
	s.scope = pbEnd(s.scope, 1)
	return s, nil
}

func (s *otlpSink) Limits() Limits { return s.cfg.Batch }

func (s *otlpSink) Close() error {
	if s.grpc != nil {
		s.grpc.close()
	}
	s.close()
	return nil
}

// Append writes one LogRecord as a field of ScopeLogs, so that a request is some
// bytes and then those of the batch. Source: opentelemetry/proto/logs/v1/logs.proto.
func (s *otlpSink) Append(dst []byte, e *Event) []byte {
	dst, record := pbBegin(dst, 2)
	if e.Time > 0 {
		dst = protowire.AppendTag(dst, 1, protowire.Fixed64Type)
		dst = protowire.AppendFixed64(dst, uint64(e.Time))
	}
	dst = append(dst, s.severity...)
	dst, body := pbBegin(dst, 5)
	done := false
	if s.cfg.Body == OTLPMap {
		dst, done = pbAny(dst, document.Trim(e.Doc), 0)
	}
	if !done {
		dst = protowire.AppendTag(dst[:body], 1, protowire.BytesType)
		dst = protowire.AppendBytes(dst, e.Doc)
	}
	dst = pbEnd(dst, body)
	var id [2 * len(e.ID)]byte
	hex.Encode(id[:], e.ID[:])
	dst = pbAttribute(dst, 6, "penstock.id", id[:])
	dst = pbAttribute(dst, 6, "event.type", e.Type)
	dst = pbAttribute(dst, 6, "penstock.source", e.Source)
	if e.Account != "" {
		dst = pbAttribute(dst, 6, "cloud.account.id", e.Account)
	}
	if e.Region != "" {
		dst = pbAttribute(dst, 6, "cloud.region", e.Region)
	}
	if e.Replay != "" {
		dst = pbAttribute(dst, 6, "penstock.replay", e.Replay)
	}
	dst = protowire.AppendTag(dst, 11, protowire.Fixed64Type)
	dst = protowire.AppendFixed64(dst, uint64(s.now().UnixNano()))
	return pbEnd(dst, record)
}

// pbBegin begins a field of a length that pbEnd will know.
func pbBegin(dst []byte, field protowire.Number) ([]byte, int) {
	dst = protowire.AppendTag(dst, field, protowire.BytesType)
	return dst, len(dst)
}

// pbEnd writes the length in front of what was appended since start.
func pbEnd(dst []byte, start int) []byte {
	var length [binary.MaxVarintLen64]byte
	n := len(dst) - start
	size := binary.PutUvarint(length[:], uint64(n))
	dst = append(dst, length[:size]...)
	copy(dst[start+size:], dst[start:start+n])
	copy(dst[start:], length[:size])
	return dst
}

func pbText(dst []byte, field protowire.Number, text string) []byte {
	dst = protowire.AppendTag(dst, field, protowire.BytesType)
	return protowire.AppendString(dst, text)
}

// pbAttribute writes a KeyValue with a string.
func pbAttribute[T string | []byte](dst []byte, field protowire.Number, name string, value T) []byte {
	text := protowire.SizeTag(1) + protowire.SizeBytes(len(value))
	dst = protowire.AppendTag(dst, field, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(protowire.SizeTag(1)+protowire.SizeBytes(len(name))+protowire.SizeTag(2)+protowire.SizeBytes(text)))
	dst = pbText(dst, 1, name)
	dst = protowire.AppendTag(dst, 2, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(text))
	dst = protowire.AppendTag(dst, 1, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(len(value)))
	return append(dst, value...)
}

// otlpLevels bounds how deep values are nested; what is deeper goes out as its JSON. A
// level of JSON takes three of protobuf, and decoders in C++ and Java take no more than
// 100 unless told to.
const otlpLevels = 30

// pbAny writes the fields of an AnyValue for a JSON value, false where it is none.
func pbAny(dst, v []byte, level int) ([]byte, bool) {
	switch document.KindOf(v) {
	case document.Object, document.Array:
		return pbNested(dst, v, level)
	case document.String:
		if len(v) < 2 {
			return dst, false
		}
		dst, at := pbBegin(dst, 1)
		return pbEnd(document.AppendUnquoted(dst, v[1:len(v)-1]), at), true
	case document.Number:
		return pbNumber(dst, v), true
	case document.Bool:
		dst = protowire.AppendTag(dst, 2, protowire.VarintType)
		return protowire.AppendVarint(dst, protowire.EncodeBool(v[0] == 't')), true
	case document.Null:
		return dst, true // a value without any field
	case document.None:
	}
	return dst, false
}

// pbNested writes a kvlist_value or an array_value.
func pbNested(dst, v []byte, level int) ([]byte, bool) {
	if level >= otlpLevels {
		dst = protowire.AppendTag(dst, 1, protowire.BytesType)
		return protowire.AppendBytes(dst, v), true
	}
	field := protowire.Number(5)
	if v[0] == '{' {
		field = 6
	}
	dst, list := pbBegin(dst, field)
	members := document.Members(v)
	for {
		key, start, end, ok := members.Next()
		if !ok {
			break
		}
		dst, ok = pbMember(dst, key, v[start:end], level, v[0] == '{')
		if !ok {
			return dst, false
		}
	}
	return pbEnd(dst, list), !members.Bad()
}

// pbMember writes one KeyValue or one AnyValue of a list.
func pbMember(dst, key, value []byte, level int, named bool) ([]byte, bool) {
	dst, member := pbBegin(dst, 1)
	if !named {
		dst, ok := pbAny(dst, value, level+1)
		return pbEnd(dst, member), ok
	}
	dst, at := pbBegin(dst, 1)
	dst = pbEnd(document.AppendUnquoted(dst, key), at)
	dst, at = pbBegin(dst, 2)
	dst, ok := pbAny(dst, value, level+1)
	return pbEnd(pbEnd(dst, at), member), ok
}

// pbNumber writes whole numbers as int64 and decimals as double, as far as that
// keeps every pbDigit: any 15 survive in a double. The others go out as strings.
// Source: formats F-0.
func pbNumber(dst, v []byte) []byte {
	text := string(v)
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		dst = protowire.AppendTag(dst, 3, protowire.VarintType)
		return protowire.AppendVarint(dst, uint64(n))
	}
	digits := strings.TrimLeft(strings.Map(pbDigit, strings.ToLower(text)), "0")
	digits, _, _ = strings.Cut(digits, "e")
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || len(digits) > 15 || f == 0 && digits != "" || !strings.ContainsAny(text, ".eE") {
		return pbText(dst, 1, text)
	}
	dst = protowire.AppendTag(dst, 4, protowire.Fixed64Type)
	return protowire.AppendFixed64(dst, math.Float64bits(f))
}

// pbDigit keeps digits and the e of an exponent.
func pbDigit(r rune) rune {
	if r >= '0' && r <= '9' || r == 'e' {
		return r
	}
	return -1
}

// head is what comes before the records in an ExportLogsServiceRequest: the tag and
// length of resource_logs, the resource, the tag and length of scope_logs, the scope.
func (s *otlpSink) head(dst []byte, records int) []byte {
	scope := len(s.scope) + records
	dst = protowire.AppendTag(dst, 1, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(len(s.resource)+protowire.SizeTag(2)+protowire.SizeBytes(scope)))
	dst = append(dst, s.resource...)
	dst = protowire.AppendTag(dst, 2, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(scope))
	return append(dst, s.scope...)
}

// Deliver sends one request.
func (s *otlpSink) Deliver(ctx context.Context, b Batch) Result {
	if s.grpc != nil {
		said, res, ok := s.grpc.export(ctx, s.head(nil, len(b.Bytes())), b.Bytes())
		if !ok {
			return res
		}
		return s.accepted(b.Len(), said)
	}
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	*buf = append(s.head((*buf)[:0], len(b.Bytes())), b.Bytes()...)
	r := call{method: http.MethodPost, url: s.url, body: *buf}
	a, res, ok := s.do(ctx, r)
	if !ok {
		return res
	}
	return s.answered(b.Len(), r, a)
}

// answered judges an answer over HTTP. Other than in general, a server error that is
// not one of a gateway is no outage: it is what the receiver says of data that it
// cannot take. Source: OTLP specification, "OTLP/HTTP Response".
func (s *otlpSink) answered(n int, r call, a answer) Result {
	kind := a.header.Get("Content-Type")
	switch code := a.status; {
	case a.ok() && strings.HasPrefix(kind, "text/html"):
		return s.because(r, a, Stop, errOTLPAddress) // a login page, perhaps
	case a.ok() && strings.HasPrefix(kind, "application/json"):
		return s.accepted(n, otlpPartialOfJSON(a.body))
	case a.ok():
		return s.accepted(n, otlpPartialOf(a.body))
	case code == http.StatusBadRequest && speaksOfSize(string(a.body)):
		return s.because(r, s.plain(a), TooLarge, errOTLPTooLarge) // as the Collector says it, in place of 413
	case code == http.StatusNotImplemented || code == http.StatusHTTPVersionNotSupported:
		return s.because(r, s.plain(a), Stop, errOTLPAddress)
	case code >= 500 && code != http.StatusBadGateway && code != http.StatusServiceUnavailable && code != http.StatusGatewayTimeout:
		return s.because(r, s.plain(a), Split, errOTLPRejected)
	}
	return s.judge(r, s.plain(a))
}

// plain has the text of a google.rpc.Status in place of its bytes.
func (s *otlpSink) plain(a answer) answer {
	if !strings.HasPrefix(a.header.Get("Content-Type"), "application/x-protobuf") {
		return a
	}
	text, _ := pbField(a.body, 2)
	a.body = text
	return a
}

// otlpSaid is what a receiver says of a request that it took.
type otlpSaid struct {
	rejected int64
	message  string
}

// otlpPartialOf reads an ExportLogsServiceResponse. What cannot be read says nothing.
func otlpPartialOf(body []byte) otlpSaid {
	inner, _ := pbField(body, 1)
	_, rejected := pbField(inner, 1)
	message, _ := pbField(inner, 2)
	return otlpSaid{int64(rejected), string(message)}
}

// otlpPartialOfJSON reads it from a receiver that answers in JSON all the same.
func otlpPartialOfJSON(body []byte) otlpSaid {
	var says struct {
		PartialSuccess struct {
			RejectedLogRecords json.Number `json:"rejectedLogRecords"`
			ErrorMessage       string      `json:"errorMessage"`
		} `json:"partialSuccess"`
	}
	if json.Unmarshal(body, &says) != nil {
		return otlpSaid{}
	}
	n, _ := says.PartialSuccess.RejectedLogRecords.Int64() // what is no number says nothing
	return otlpSaid{n, says.PartialSuccess.ErrorMessage}
}

// pbField returns the last bytes and the last number of one field of a message, as far
// as it can be read.
func pbField(message []byte, field protowire.Number) (text []byte, number uint64) {
	for len(message) > 0 {
		num, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return text, number
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(num, kind, message); n < 0 {
			return text, number
		}
		switch {
		case num == field && kind == protowire.BytesType:
			text, _ = protowire.ConsumeBytes(message)
		case num == field && kind == protowire.VarintType:
			number, _ = protowire.ConsumeVarint(message)
		}
		message = message[n:]
	}
	return text, number
}

// accepted judges a request of n records that was answered with success.
func (s *otlpSink) accepted(n int, said otlpSaid) Result {
	var cause error
	if text := s.sanitise(said.message); text != "" {
		cause = errors.New("it says: " + text)
	}
	switch {
	case said.rejected <= 0:
		if cause != nil {
			otlpWarnings.WithLabelValues(s.name).Inc()
			s.tell(cause)
		}
		return Result{}
	case said.rejected >= int64(n):
		otlpRejected.WithLabelValues(s.name).Add(float64(n))
		return Result{Verdict: Reject, Err: errOTLPRejected.New(cause, "export to destination %s: it rejects all of %d records", s.name, n)}
	}
	otlpRejected.WithLabelValues(s.name).Add(float64(said.rejected))
	err := errOTLPPartly.New(cause, "export to destination %s: it rejects %d of %d records and does not say which", s.name, said.rejected, n)
	if s.cfg.PartialSuccess == OTLPQuarantine {
		return Result{Verdict: Reject, Err: err}
	}
	return Result{Verdict: Split, Err: err}
}

// tell logs a warning of the receiver, at most one a minute.
func (s *otlpSink) tell(warning error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.now(); now.Sub(s.told) >= time.Minute {
		s.told = now
		s.log.Warn("receiver took all and warns", "err", warning)
	}
}

// Probe implements [probe.Prober]: a request without records, which a receiver answers
// with success. Source: OTLP specification, "Full Success".
func (c OTLPConfig) Probe(ctx context.Context) []probe.Finding {
	opened, err := openOTLP(ctx, c, Deps{Destination: "doctor"})
	if err != nil {
		return []probe.Finding{probe.Error("open", c.Endpoint, err)}
	}
	s, _ := opened.(*otlpSink)
	defer s.Close() //nolint:errcheck // frees connections
	var all []probe.Finding
	if c.TLS.CertFile != "" {
		all = append(all, probe.Certificate(c.TLS.CertFile, c.TLS.KeyFile))
	}
	shown := (&url.URL{Scheme: s.url.Scheme, Host: s.url.Host, Path: s.url.Path}).String()
	var res Result
	if s.grpc != nil {
		shown = s.url.Scheme + "://" + s.url.Host
		_, res, _ = s.grpc.export(ctx, nil, nil)
	} else {
		r := call{method: http.MethodPost, url: s.url}
		a, failed, ok := s.do(ctx, r)
		if res = failed; ok {
			res = s.answered(1, r, a)
		}
	}
	switch res.Verdict {
	case Done:
		return append(all, probe.Good("export", shown, "an empty request is taken"))
	case Split, TooLarge, Reject:
		return append(all, probe.Doubt("export", shown, res.Err.Error(), "an empty request is refused, which proves the way there; see whether the receiver takes logs"))
	case Retry, Stop:
	}
	return append(all, probe.Error("export", shown, res.Err))
}
