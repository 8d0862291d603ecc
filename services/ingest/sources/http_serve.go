package sources

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"mime"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/httpserver"
)

var (
	errHTTPPath = fault.Define("ingest.http_no_endpoint", fault.Reject,
		"have the sender use the path of an endpoint of the source")
	errHTTPMethod = fault.Define("ingest.http_method", fault.Reject, "have the sender use POST")
	errHTTPRate   = fault.Define("ingest.http_rate", fault.Retry,
		"none when it passes: the sender comes again; else raise rate or rate_per_caller of the source")
	errHTTPStopping = fault.Define("ingest.http_stopping", fault.Retry, "none: the sender comes again, to another replica or after the start")
	errHTTPStored   = fault.Define("ingest.http_not_stored", fault.Retry,
		"look at the bus: penstock topology show; nothing is lost, the sender was not told that it is stored")
	errHTTPKey = fault.Define("ingest.http_key", fault.Reject, "have the sender use an Idempotency-Key of 1 to 255 printable characters")
)

var (
	mHTTPRequests = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_ingest_http_requests_total", Help: "HTTP requests answered, by endpoint and status.",
	}, []string{"source", "endpoint", "status"})
	mHTTPRefused = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_ingest_http_refused_total", Help: "HTTP requests that were not taken, by reason.",
	}, []string{"source", "endpoint", "code"})
	mHTTPSeconds = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "penstock_ingest_http_seconds", Help: "Time from the header of an HTTP request to its answer.",
		Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"source"})
	mHTTPBytes = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_ingest_http_bytes_total", Help: "Bytes of the bodies of HTTP requests, as sent.",
	}, []string{"source", "endpoint"})
	mHTTPRecords = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_ingest_http_records_total", Help: "Records in HTTP requests that were stored, by result: accepted, quarantined.",
	}, []string{"source", "endpoint", "result"})
	mHTTPStalled = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_ingest_http_stalled", Help: "Requests that the bus has not stored in time. While there are any, others are answered with 503.",
	}, []string{"source"})
)

// httpStatuses are the statuses of faults that are not 400.
var httpStatuses = map[*fault.Kind]int{
	errHTTPToken: 401, errHTTPAuthorization: 401, errHTTPUnknownToken: 401, errHTTPSignature: 401, errHTTPSignatureAge: 401,
	errHTTPAddress: 403, errHTTPSubject: 403,
	errHTTPPath: 404, errHTTPMethod: 405, errHTTPSlow: 408,
	errHTTPTooLarge: 413, errHTTPRatio: 413, errHTTPEncoding: 415, errHTTPType: 415, errHTTPRate: 429,
	errPanic: 500, errHTTPFull: 503, errHTTPStored: 503, errHTTPStopping: 503,
}

func httpStatusOf(err error) int {
	var f *fault.Error
	if !errors.As(err, &f) {
		return http.StatusInternalServerError
	}
	if status, ok := httpStatuses[f.Kind]; ok {
		return status
	}
	return http.StatusBadRequest
}

// httpEndpoint is an endpoint at work.
type httpEndpoint struct {
	HTTPEndpoint
	path     string
	segments []string
	gate     *httpGate
}

func newHTTPEndpoint(c HTTPEndpoint, auth HTTPAuth) *httpEndpoint {
	if c.Auth != nil {
		auth = *c.Auth
	}
	path := c.base()
	return &httpEndpoint{HTTPEndpoint: c, path: path, segments: strings.Split(path[1:], "/"), gate: newHTTPGate(auth)}
}

// match takes a path apart: the token in it, and what follows the endpoint's own.
func (e *httpEndpoint) match(path string) (rest, token string, ok bool) {
	for _, want := range e.segments {
		if path == "" || path[0] != '/' {
			return "", "", false
		}
		path = path[1:]
		end := strings.IndexByte(path, '/')
		if end < 0 {
			end = len(path)
		}
		switch got := path[:end]; {
		case want == httpTokenSegment && got != "":
			token = got
		case want != got:
			return "", "", false
		}
		path = path[end:]
	}
	if e.Kind != HTTPHEC {
		return "", token, path == "" || path == "/"
	}
	return strings.TrimSuffix(path, "/"), token, true
}

// find returns the endpoint of a path: the one without a token, where two fit.
func (s *httpSource) find(path string) (e *httpEndpoint, rest, token string) {
	for _, candidate := range s.endpoints {
		r, t, ok := candidate.match(path)
		if ok && (e == nil || len(candidate.segments) > len(e.segments) || token != "" && t == "") {
			e, rest, token = candidate, r, t
		}
	}
	return e, rest, token
}

// httpHandler serves one run of the source.
type httpHandler struct {
	s *httpSource
	// work outlives the run by the drain.
	work context.Context //nolint:containedctx // requests end with the run, not with their senders
	// serving is held by each request while it is answered.
	serving sync.RWMutex
	// storing waits for what the bus stores, lost counts what it did not.
	storing sync.WaitGroup
	lost    atomic.Int64
}

// ServeHTTP implements http.Handler.
func (h *httpHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.serving.RLock()
	defer h.serving.RUnlock()
	x := &httpExchange{h: h, w: w, r: r, began: time.Now(), ip: httpserver.AddressOf(r, h.s.proxies), label: "none"}
	rest := ""
	x.e, rest, x.token = h.s.find(r.URL.Path)
	status := 0
	defer func() {
		name := h.s.deps.Name
		mHTTPRequests.WithLabelValues(name, x.label, strconv.Itoa(status)).Inc()
		mHTTPSeconds.WithLabelValues(name).Observe(time.Since(x.began).Seconds())
	}()
	if x.e == nil {
		mHTTPRefused.WithLabelValues(h.s.deps.Name, x.label, errHTTPPath.Code).Inc()
		status = x.json(http.StatusNotFound, hecNotFound)
		return
	}
	x.label = x.e.path
	defer func() {
		if p := recover(); p != nil {
			err := errPanic.New(nil, "take a request: %s", panicText(p))
			h.s.log.ErrorContext(h.work, "a request makes penstock fail", "endpoint", x.label, "err", err, "stack", string(debug.Stack()))
			status = x.refuse(err)
		}
	}()
	if x.e.Kind == HTTPHEC {
		status = x.hec(rest)
		return
	}
	status = x.receive(false)
}

// httpExchange is one request and its answer.
type httpExchange struct {
	h     *httpHandler
	e     *httpEndpoint
	w     http.ResponseWriter
	r     *http.Request
	began time.Time
	ip    netip.Addr
	token string // that stood in the path
	label string
	done  bool // answered
}

// json answers.
func (x *httpExchange) json(status int, body any) int {
	if x.done {
		return status
	}
	x.done = true
	h := x.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	text, err := json.Marshal(body)
	if err != nil { // not reached
		status, text = http.StatusInternalServerError, nil
	}
	if status == http.StatusNoContent {
		text = nil
		h.Del("Content-Type")
	}
	x.w.WriteHeader(status)
	_, _ = x.w.Write(text) // the sender may have gone
	return status
}

func (x *httpExchange) retryAfter() { x.wait(x.h.s.cfg.Timeouts.RetryAfter) }

func (x *httpExchange) wait(d time.Duration) {
	x.w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(d.Seconds())))))
}

func (x *httpExchange) limited(wait time.Duration) int {
	x.wait(wait)
	return x.refuse(errHTTPRate.New(nil, "take a request"))
}

// httpError is the answer to a request that is not taken.
type httpError struct {
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
	*httpTaken
}

// refuse answers a request that is not taken.
func (x *httpExchange) refuse(err error) int { return x.refuseWith(err, nil, nil) }

func (x *httpExchange) refuseWith(err error, number *uint64, taken *httpTaken) int {
	mHTTPRefused.WithLabelValues(x.h.s.deps.Name, x.label, fault.CodeOf(err)).Inc()
	status := httpStatusOf(err)
	h := x.w.Header()
	if status == http.StatusServiceUnavailable && h.Get("Retry-After") == "" {
		x.retryAfter()
	}
	if status == http.StatusUnsupportedMediaType {
		h.Set("Accept-Encoding", "gzip, zstd") // Source: RFC 7694
	}
	if x.e.Kind == HTTPHEC {
		word := hecWordOf(err)
		word.Number = number
		if word.status == http.StatusUnauthorized {
			h.Set("WWW-Authenticate", `Basic realm="Splunk"`)
		}
		return x.json(word.status, word)
	}
	if status == http.StatusUnauthorized {
		if len(x.e.gate.tokens) > 0 {
			h.Add("WWW-Authenticate", "Bearer")
		}
		if len(x.e.gate.users) > 0 {
			h.Add("WWW-Authenticate", `Basic realm="penstock"`)
		}
	}
	answer := httpError{httpTaken: taken}
	answer.Error.Code, answer.Error.Message = fault.CodeOf(err), httpPlainText(err)
	return x.json(status, answer)
}

// httpPlainText says what was wrong, without how the operator mends it.
func httpPlainText(err error) string {
	var f *fault.Error
	if !errors.As(err, &f) {
		return "an error within penstock"
	}
	text := f.Doing
	if f.Cause != nil && f.Kind.Class == fault.Reject {
		text += ": " + httpPlainText(f.Cause)
	}
	return text
}

// httpTaken is the answer to a request that was stored.
type httpTaken struct {
	// Request is the pull, for the ledger.
	Request      string         `json:"request,omitempty"`
	Accepted     uint64         `json:"accepted"`
	Quarantined  int            `json:"quarantined,omitempty"`
	Refused      int            `json:"refused,omitempty"`
	SkippedParts int            `json:"skipped_parts,omitempty"`
	Errors       []httpBadEntry `json:"errors,omitempty"`
}

// httpBadEntry tells about a record that cannot be read.
type httpBadEntry struct {
	Record  uint64 `json:"record"`
	Offset  int64  `json:"offset"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// maxHTTPEntries bounds the bad records that an answer tells about.
const maxHTTPEntries = 10

func (l *httpLoad) taken() *httpTaken {
	t := &httpTaken{Accepted: l.accepted, SkippedParts: l.skippedParts, Request: hex.EncodeToString(l.origin.GetPull())}
	for _, b := range l.bad[:min(len(l.bad), maxHTTPEntries)] {
		t.Errors = append(t.Errors, httpBadEntry{b.record, b.offset, fault.CodeOf(b.err), httpPlainText(b.err)})
	}
	return t
}

// receive takes a body.
func (x *httpExchange) receive(raw bool) int {
	s := x.h.s
	if x.r.Method != http.MethodPost && (x.r.Method != http.MethodPut || x.e.Kind == HTTPHEC) {
		x.w.Header().Set("Allow", http.MethodPost)
		return x.refuse(errHTTPMethod.New(nil, "take a request with %.20s", x.r.Method))
	}
	who, sig, err := x.e.gate.admit(x.r, x.e, x.token, x.ip, x.began)
	if err != nil {
		return x.refuse(err)
	}
	if s.stopping.Load() {
		x.w.Header().Set("Connection", "close")
		return x.refuse(errHTTPStopping.New(nil, "take a request"))
	}
	if wait := s.callers.Take(who.name, x.began); wait > 0 {
		return x.limited(wait)
	}
	if wait := s.rate.Take(x.began); wait > 0 {
		return x.limited(wait)
	}
	if x.e.Kind == HTTPHEC {
		if err := x.channel(); err != nil {
			return x.refuse(err)
		}
	}
	if s.stalled.Load() > 0 {
		return x.refuse(errHTTPStored.New(nil, "take a request: the bus does not answer"))
	}
	if x.r.ContentLength > int64(s.cfg.Limits.MaxBody) {
		return x.refuse(errHTTPTooLarge.New(nil, "take a body of more than %d bytes", s.cfg.Limits.MaxBody))
	}
	key, err := x.key(sig)
	if err != nil {
		return x.refuse(err)
	}
	if !s.places.TryAcquire(1) {
		return x.refuse(errHTTPFull.New(nil, "take one more request"))
	}
	c := s.intakes.Get().(*httpIntake) //nolint:forcetypeassert // nothing else is in it
	free := sync.OnceFunc(func() {
		s.places.Release(1)
		mInFlight.WithLabelValues(s.deps.Name).Dec()
	})
	mInFlight.WithLabelValues(s.deps.Name).Inc()
	kept := false // by what stores it
	defer func() {
		if !kept {
			s.release(c.held)
			free()
		}
		c.end()
		s.intakes.Put(c)
	}()
	if err := c.begin(x.origin(who, key), x.configured()); err != nil {
		return x.refuse(err)
	}
	if x.e.Kind == HTTPHEC {
		if c.check = hecCheck; raw {
			c.check, c.wrap = nil, hecWrap(x.r.URL.Query())
		}
		c.stopAtBad = x.e.OnBad == BadRefuse
	}
	if err := x.read(c, sig, raw); err != nil {
		return x.refuse(err)
	}
	mHTTPBytes.WithLabelValues(s.deps.Name, x.label).Add(float64(c.sent))
	first, badErr := c.firstBad()
	refusing := x.e.OnBad == BadRefuse
	switch {
	case c.records == 0 && x.e.Kind == HTTPHEC:
		return x.refuse(errHECNoData.New(nil, "take a request"))
	case c.records == 0:
		return x.success(&httpTaken{SkippedParts: c.skippedParts})
	case refusing && badErr != nil && (x.e.Kind != HTTPHEC || c.accepted == 0):
		taken := c.taken()
		taken.Request, taken.Accepted, taken.Refused = "", 0, len(c.bad)
		return x.refuseWith(x.summary(badErr), first, taken)
	case refusing && badErr != nil: // what comes before is taken, as by Splunk
		c.records--
		c.bad, c.codes = nil, nil
	}
	c.seal(x.e, who, key, x.began)
	l := c.httpLoad
	kept = true
	c.httpLoad = httpLoad{}
	if err := x.store(&l, free); err != nil {
		return x.refuse(err)
	}
	x.count(&l)
	if badErr != nil && (refusing || l.accepted == 0) {
		taken := l.taken()
		taken.Quarantined = len(l.bad)
		return x.refuseWith(x.summary(badErr), first, taken)
	}
	taken := l.taken()
	taken.Quarantined = len(l.bad)
	return x.success(taken)
}

// summary is the reason of a body that is refused for its records. For the HTTP
// Event Collector it is that of the first bad one.
func (x *httpExchange) summary(err error) error {
	if x.e.Kind == HTTPHEC {
		return err
	}
	return errHTTPBad.New(err, "read the records of a request")
}

func (l *httpLoad) firstBad() (*uint64, error) {
	if len(l.bad) == 0 {
		return nil, nil
	}
	return &l.bad[0].record, l.bad[0].err
}

// configured is the format of the endpoint, else that of the source.
func (x *httpExchange) configured() string {
	switch {
	case x.e.Kind == HTTPHEC:
		return formatHEC
	case x.e.Format != "":
		return x.e.Format
	}
	return x.h.s.deps.Format
}

// key names what the sender sends, the same at each attempt; "" for none.
func (x *httpExchange) key(sig *httpSigned) (string, error) {
	key := x.r.Header.Get("Idempotency-Key")
	if key == "" && (sig != nil || x.r.Header.Get("Webhook-Signature") != "") {
		key = x.r.Header.Get("Webhook-Id")
	}
	if len(key) > 255 {
		return "", errHTTPKey.New(nil, "read a key of %d bytes", len(key))
	}
	for i := range len(key) {
		if key[i] < ' ' || key[i] > '~' {
			return "", errHTTPKey.New(nil, "read a key of %d bytes", len(key))
		}
	}
	return key, nil
}

func (x *httpExchange) origin(who httpCaller, key string) *messages.Origin {
	o := &messages.Origin{
		Pull: newHTTPPull(), Source: x.h.s.deps.Name, Api: "http", Resource: x.e.path,
		Account: x.e.Account, Region: x.e.Region, MessageId: key, Received: x.began.UnixNano(),
	}
	if who.account != "" {
		o.Account = who.account
	}
	if key == "" {
		o.MessageId = hex.EncodeToString(o.GetPull())
	}
	return o
}

// read reads the body, and compares its signature.
func (x *httpExchange) read(c *httpIntake, sig *httpSigned, raw bool) error {
	s := x.h.s
	c.wire = httpWire{
		r: x.r.Body, max: int64(s.cfg.Limits.MaxBody), sig: sig,
		control: http.NewResponseController(x.w), stall: s.cfg.Timeouts.Stall, until: x.began.Add(s.cfg.Timeouts.Read),
	}
	body, err := c.decoded(x.r.Header.Get("Content-Encoding"))
	if err != nil {
		return err
	}
	mediaType, params, typeErr := mime.ParseMediaType(x.r.Header.Get("Content-Type"))
	form := strings.HasPrefix(mediaType, "multipart/")
	switch {
	case x.e.Kind == HTTPForm && !form, x.e.Kind == HTTPJSON && form:
		return errHTTPType.New(nil, "take a body of type %.60q at an endpoint of kind %s", mediaType, x.e.Kind)
	case form && x.e.Kind == HTTPForm && (typeErr != nil || params["boundary"] == ""):
		return errHTTPForm.New(nil, "read a form without a boundary")
	case x.e.Kind == HTTPForm:
		err = c.form(body, params["boundary"])
	case raw:
		err = c.lines(body)
	default:
		err = c.whole(body)
	}
	if err == nil || errors.Is(err, errHTTPEnough) {
		err = c.flush()
	}
	if err == nil && sig != nil {
		err = c.wire.drain()
	}
	if err == nil && sig != nil {
		err = sig.check()
	}
	c.sent = c.wire.n
	if err == nil {
		c.wire.end(s.cfg.Timeouts.Store + time.Second)
	}
	return err
}

// success answers a request that was stored.
func (x *httpExchange) success(t *httpTaken) int {
	if x.e.Kind != HTTPHEC {
		return x.json(x.e.SuccessStatus, t)
	}
	word := hecSuccess
	if x.e.Acknowledge {
		id := x.h.s.acks.Add(1) - 1
		word.AckID = &id
	}
	if t.Quarantined > 0 {
		x.w.Header().Set("Penstock-Quarantined", strconv.Itoa(t.Quarantined))
	}
	return x.json(word.status, word)
}

// store has the bus store l, and waits for that as long as a sender may have to
// wait. Then the sender is told to come again, while the bus goes on: what it has
// stored by then must not be left half. free is called when it is done.
func (x *httpExchange) store(l *httpLoad, free func()) error {
	h, s := x.h, x.h.s
	name := s.deps.Name
	stored := make(chan error, 1)
	h.storing.Go(func() {
		ctx, span := s.tracer.Start(h.work, "ingest", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer),
			trace.WithLinks(trace.Link{SpanContext: httpRemoteSpan(x.r)}), trace.WithAttributes(
				attribute.String("penstock.source", name),
				attribute.String("http.route", x.e.path),
				attribute.Int64("http.request.body.size", l.sent),
			))
		err := l.store(ctx, s.deps.NewOutbox())
		if err != nil {
			span.SetStatus(codes.Error, fault.CodeOf(err))
			s.again.add(l.body, l.origin.GetPull())
			if h.work.Err() != nil {
				h.lost.Add(1)
			}
		}
		span.End()
		s.release(l.held)
		free()
		stored <- err
	})
	t := time.NewTimer(s.cfg.Timeouts.Store)
	defer t.Stop()
	select {
	case err := <-stored:
		if err != nil {
			s.log.WarnContext(h.work, "a request was not stored", "endpoint", x.label, "err", err)
			return errHTTPStored.New(err, "store a request")
		}
		s.again.drop(l.body)
		return nil
	case <-t.C:
	}
	s.again.add(l.body, l.origin.GetPull())
	if s.stalled.Add(1) == 1 {
		s.log.WarnContext(h.work, "the bus does not store what comes; senders are asked to come again", "endpoint", x.label)
	}
	mHTTPStalled.WithLabelValues(name).Inc()
	h.storing.Go(func() {
		err := <-stored
		mHTTPStalled.WithLabelValues(name).Dec()
		if s.stalled.Add(-1) == 0 && err == nil {
			s.log.InfoContext(h.work, "the bus has stored what had waited")
		}
	})
	return errHTTPStored.New(nil, "store a request within %s", s.cfg.Timeouts.Store)
}

// count adds what was stored to the metrics.
func (x *httpExchange) count(l *httpLoad) {
	name := x.h.s.deps.Name
	mReceived.WithLabelValues(name).Inc()
	mAnnounced.WithLabelValues(name, "events").Inc()
	mHTTPRecords.WithLabelValues(name, x.label, "accepted").Add(float64(l.accepted))
	mHTTPRecords.WithLabelValues(name, x.label, "quarantined").Add(float64(len(l.bad)))
}
