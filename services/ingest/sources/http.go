package sources

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/semaphore"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/httpserver"
)

func init() {
	define("http", "Listens for HTTP requests that bring events: multipart forms, JSON, and what Splunk's HTTP Event Collector takes.",
		defaultHTTP, openHTTP)
}

var (
	errHTTPListen = fault.Define("ingest.http_cannot_listen", fault.Stop,
		"use an address of this machine that nobody else listens on, and that this user may open")
	errHTTPServe = fault.Define("ingest.http_not_served", fault.Retry,
		"look at the cause; the listener is opened again")
	errHTTPClosed = fault.Define("ingest.http_not_listening", fault.Retry,
		"wait for the source to start; if it does not, look at the log")
)

// HTTPConfig configures the http source: one listener with endpoints.
type HTTPConfig struct {
	// Address to listen on, host:port. Beyond the loopback interface it needs auth.
	// Required.
	Address string `yaml:"address"`
	// TLS of the listener.
	TLS HTTPTLS `yaml:"tls"`
	// Auth says who may send. Endpoints may have one of their own instead. Nobody
	// needs to prove anything with `auth: none`.
	Auth HTTPAuth `yaml:"auth"`
	// TrustedProxies are the addresses and networks whose X-Forwarded-For is
	// believed, e.g. 10.0.0.0/8. Everybody else's is ignored.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// Endpoints are what requests are sent to. Required.
	Endpoints []HTTPEndpoint `yaml:"endpoints"`
	// Rate bounds all requests together. What is above it is answered with 429.
	Rate HTTPRate `yaml:"rate"`
	// RatePerCaller bounds the requests of each token, user, certificate or
	// signature, and of each address where no proof is asked for.
	RatePerCaller HTTPRate `yaml:"rate_per_caller"`
	// Limits bound what one request, and all of them, may cost.
	Limits HTTPLimits `yaml:"limits"`
	// Timeouts bound how long a request may take.
	Timeouts HTTPTimeouts `yaml:"timeouts"`
}

// HTTPTLS configures TLS of the http source.
type HTTPTLS = httpserver.TLS

// HTTPKind is what an endpoint takes.
type HTTPKind string

// The kinds of endpoints.
const (
	// HTTPForm takes multipart forms, of which every part is read.
	HTTPForm HTTPKind = "form"
	// HTTPJSON takes a body that is what the format says: JSON values, lines of
	// them, an array, or any other format.
	HTTPJSON HTTPKind = "json"
	// HTTPHEC takes what Splunk's HTTP Event Collector takes.
	HTTPHEC HTTPKind = "splunk_hec"
)

// Values implements config.Enum.
func (HTTPKind) Values() []string {
	return []string{string(HTTPForm), string(HTTPJSON), string(HTTPHEC)}
}

// OnBad says what becomes of a body of which a part cannot be read.
type OnBad string

// The ways to treat such bodies.
const (
	// BadAccept: what is good is stored, the rest is quarantined. Only when
	// nothing is good the answer is 400.
	BadAccept OnBad = "accept"
	// BadRefuse: the answer is 400. Nothing is stored; of a body for the HTTP Event
	// Collector what comes before the bad event, as in Splunk.
	BadRefuse OnBad = "refuse"
)

// Values implements config.Enum.
func (OnBad) Values() []string { return []string{string(BadAccept), string(BadRefuse)} }

// HTTPEndpoint configures one endpoint of the http source.
type HTTPEndpoint struct {
	// Path of the endpoint, e.g. /in/web. One segment may be {token}, for senders
	// that can prove themselves by nothing but the address. For splunk_hec it is
	// what comes before /event, /raw, /ack and /health.
	Path string `yaml:"path"`
	// Kind is what the endpoint takes. form: multipart forms, every part of them.
	// json: bodies of JSON values one after the other, a line each, or an array, or
	// of another format. splunk_hec: what Splunk's HTTP Event Collector takes.
	Kind HTTPKind `yaml:"kind"`
	// Format of the records, instead of the source's. Options of formats are those
	// of the source. splunk_hec has its own.
	Format string `yaml:"format"`
	// Auth for this endpoint, instead of the source's.
	Auth *HTTPAuth `yaml:"auth"`
	// OnBad says what becomes of a body of which a part cannot be read. accept: the
	// good records are stored and the others quarantined. refuse: the answer is 400
	// and nothing is stored; with splunk_hec the events before the bad one are.
	OnBad OnBad `yaml:"on_bad"`
	// SuccessStatus is the answer to what is stored: 200, 201, 202 or 204. splunk_hec
	// always answers 200.
	SuccessStatus int `yaml:"success_status"`
	// SameBodyWindow: requests with the same body within this time are taken for one
	// that was sent again. For senders that repeat themselves without an
	// Idempotency-Key, and whose events never are equal. 0s: never. Unit: duration.
	SameBodyWindow time.Duration `yaml:"same_body_window"`
	// Acknowledge offers indexer acknowledgement, and demands a channel. For
	// splunk_hec only.
	Acknowledge bool `yaml:"acknowledge"`
	// QueryToken accepts the token as ?token=, where proxies may log it. For
	// splunk_hec only.
	QueryToken bool `yaml:"query_token"`
	// Account of records that do not tell theirs, e.g. the tenant.
	Account string `yaml:"account"`
	// Region of records that do not tell theirs.
	Region string `yaml:"region"`
}

// SetDefaults implements config.Defaulter.
func (e *HTTPEndpoint) SetDefaults() {
	e.Kind, e.OnBad, e.SuccessStatus = HTTPJSON, BadAccept, http.StatusAccepted
}

// HTTPRate is a bound on requests.
type HTTPRate = httpserver.Rate

// HTTPLimits bounds what requests cost.
type HTTPLimits struct {
	// MaxBody bounds a body as sent. Unit: bytes.
	MaxBody config.Bytes `yaml:"max_body"`
	// MaxDecoded bounds a body after decompression. Unit: bytes.
	MaxDecoded config.Bytes `yaml:"max_decoded"`
	// MaxRatio bounds how many times larger than sent a body of more than 1 MiB may
	// become.
	MaxRatio int `yaml:"max_ratio"`
	// MaxRecord bounds one record; a larger one is quarantined. Unit: bytes, up to 4 MiB.
	MaxRecord config.Bytes `yaml:"max_record"`
	// MaxRows bounds the records of one request.
	MaxRows int `yaml:"max_rows"`
	// MaxParts bounds the parts of one form.
	MaxParts int `yaml:"max_parts"`
	// MaxBad bounds the bad records of one request; with more it is refused.
	MaxBad int `yaml:"max_bad"`
	// MaxHeader bounds the header of a request, and that of a part. Unit: bytes.
	MaxHeader config.Bytes `yaml:"max_header"`
	// Requests bounds the requests in hand. Above it the answer is 503.
	Requests int `yaml:"requests"`
	// Connections bounds the open connections. More of them wait.
	Connections int `yaml:"connections"`
	// InFlight bounds what is held of all requests. Above it the answer is 503.
	// Unit: bytes, at least 8 MiB.
	InFlight config.Bytes `yaml:"in_flight"`
}

// HTTPTimeouts bounds how long requests take.
type HTTPTimeouts struct {
	// Header is for the header of a request to come.
	Header time.Duration `yaml:"header"`
	// Read is for a whole request to come.
	Read time.Duration `yaml:"read"`
	// Stall is for the next bytes of a body to come.
	Stall time.Duration `yaml:"stall"`
	// Store is for the bus to store a request, before the answer is 503.
	Store time.Duration `yaml:"store"`
	// Idle is how long a connection may stay without a request.
	Idle time.Duration `yaml:"idle"`
	// RetryAfter is when senders are asked to come back after a 503.
	RetryAfter time.Duration `yaml:"retry_after"`
}

func defaultHTTP() HTTPConfig {
	return HTTPConfig{
		Limits: HTTPLimits{
			MaxBody: 16 * config.MiB, MaxDecoded: 128 * config.MiB, MaxRatio: 200, MaxRecord: config.MiB,
			MaxRows: 200_000, MaxParts: 100, MaxBad: 100, MaxHeader: 32 * config.KiB,
			Requests: 256, Connections: 1024, InFlight: 128 * config.MiB,
		},
		Timeouts: HTTPTimeouts{
			Header: 5 * time.Second, Read: time.Minute, Stall: 10 * time.Second, Store: 15 * time.Second,
			Idle: time.Minute, RetryAfter: 5 * time.Second,
		},
	}
}

// Validate reports every problem, each with the key to change.
func (c HTTPConfig) Validate() error {
	var p config.Problems
	host, port, err := net.SplitHostPort(c.Address)
	n, portErr := strconv.ParseUint(port, 10, 16)
	p.Need(err == nil && portErr == nil && n <= 65535, "address", "use host:port, e.g. 127.0.0.1:8088, or :8088 for all interfaces")
	tls := c.TLS
	tls.Problems(&p)
	for i, s := range c.TrustedProxies {
		_, err := httpserver.Network(s)
		p.Need(err == nil, "trusted_proxies["+strconv.Itoa(i)+"]", "use an address or a network, e.g. 10.0.0.0/8")
	}
	public := err == nil && !httpserver.Loopback(host)
	p.Need(len(c.Endpoints) > 0, "endpoints", "name at least one, e.g. {path: /in, kind: json}")
	paths := map[string]bool{}
	for i, e := range c.Endpoints {
		key := "endpoints[" + strconv.Itoa(i) + "]"
		base := e.base()
		p.Need(!paths[base], key+".path", "give each endpoint a path of its own")
		paths[base] = true
		auth, at := c.Auth, "auth"
		if e.Auth != nil {
			auth, at = *e.Auth, key+".auth"
		}
		p.Need(!public || auth.decided(), at,
			"say who may send (tokens, basic, signatures or client_subjects), write `auth: none` to let in everybody who reaches the address, or listen on 127.0.0.1")
		p.Need(len(auth.ClientSubjects) == 0 || tls.ClientCAFile != "", "tls.client_ca_file", "client_subjects need the authorities that vouch for them")
		p.Need(!strings.Contains(base, httpTokenSegment) || len(auth.Tokens) > 0, at+".tokens", "list the tokens that may stand for {token} in the path")
	}
	p.In("rate", c.Rate.Validate())
	p.In("rate_per_caller", c.RatePerCaller.Validate())
	c.Limits.validate(&p)
	t := c.Timeouts
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"header", t.Header}, {"read", t.Read}, {"stall", t.Stall}, {"store", t.Store}, {"idle", t.Idle}, {"retry_after", t.RetryAfter},
	} {
		p.Need(d.value > 0 && d.value <= time.Hour, "timeouts."+d.key, "use a duration above 0s and up to 1h, e.g. 30s")
	}
	return p.Err()
}

func (l HTTPLimits) validate(p *config.Problems) {
	p.Need(l.MaxBody >= 1 && l.MaxBody <= config.GiB, "limits.max_body", "use 1 B to 1 GiB")
	p.Need(l.MaxDecoded >= l.MaxBody && l.MaxDecoded <= 16*config.GiB, "limits.max_decoded", "use max_body or more, up to 16 GiB")
	p.Need(l.MaxRatio >= 1, "limits.max_ratio", "use 1 or more, e.g. 200")
	p.Need(l.MaxRecord >= 1 && l.MaxRecord <= 4*config.MiB, "limits.max_record", "use 1 B to 4 MiB: the bus carries no larger ones")
	p.Need(l.MaxRows >= 1, "limits.max_rows", "use 1 or more")
	p.Need(l.MaxParts >= 1, "limits.max_parts", "use 1 or more")
	p.Need(l.MaxBad >= 1 && l.MaxBad <= 10_000, "limits.max_bad", "use 1 to 10000")
	p.Need(l.MaxHeader >= 4*config.KiB && l.MaxHeader <= config.MiB, "limits.max_header", "use 4 KiB to 1 MiB")
	p.Need(l.Requests >= 1 && l.Requests <= 100_000, "limits.requests", "use 1 to 100000")
	p.Need(l.Connections >= 1 && l.Connections <= 1_000_000, "limits.connections", "use 1 to 1000000")
	p.Need(l.InFlight >= 8*config.MiB, "limits.in_flight", "use 8 MiB or more")
}

// Validate reports every problem, each with the key to change.
func (e HTTPEndpoint) Validate() error {
	var p config.Problems
	hec := e.Kind == HTTPHEC
	p.Need(e.Kind == HTTPForm || e.Kind == HTTPJSON || hec, "kind", "use form, json or splunk_hec")
	p.Need(e.OnBad == BadAccept || e.OnBad == BadRefuse, "on_bad", "use accept or refuse")
	base := e.base()
	p.Need(httpGoodPath(base), "path", "use a path of plain segments, e.g. /in/web, of which one may be {token}")
	p.Need(e.SuccessStatus == 200 || e.SuccessStatus == 201 || e.SuccessStatus == 202 || e.SuccessStatus == 204, "success_status", "use 200, 201, 202 or 204")
	p.Need(e.SameBodyWindow >= 0 && e.SameBodyWindow <= 24*time.Hour, "same_body_window", "use 0s to 24h")
	p.Need(hec || !e.Acknowledge, "acknowledge", "leave it out: only splunk_hec has it")
	p.Need(hec || !e.QueryToken, "query_token", "leave it out: only splunk_hec has it")
	p.Need(!hec || e.Format == "" || e.Format == formatHEC, "format", "leave it out: splunk_hec has a format of its own")
	p.Need(len(e.Account) <= 128, "account", "use up to 128 bytes")
	p.Need(len(e.Region) <= 128, "region", "use up to 128 bytes")
	return p.Err()
}

// httpTokenSegment stands in a path for the token.
const httpTokenSegment = "{token}"

// hecPath is where Splunk has its HTTP Event Collector.
const hecPath = "/services/collector"

// base is the path without what the kind adds.
func (e HTTPEndpoint) base() string {
	if e.Path == "" && e.Kind == HTTPHEC {
		return hecPath
	}
	return e.Path
}

func httpGoodPath(path string) bool {
	if len(path) < 2 || len(path) > 512 || path[0] != '/' || strings.Count(path, httpTokenSegment) > 1 {
		return false
	}
	for segment := range strings.SplitSeq(path[1:], "/") {
		if segment == httpTokenSegment {
			continue
		}
		if segment == "" || segment == "." || segment == ".." {
			return false
		}
		for _, c := range []byte(segment) {
			if c <= ' ' || c >= 0x7f || strings.IndexByte(`{}?#%\"<>|^;`+"`", c) >= 0 {
				return false
			}
		}
	}
	return true
}

// httpSource is one listener:
//
//	header ─▶ who, how often, room ─▶ body: decompress, cut, hash ─▶ proof
//	  ─▶ announce ─▶ frames, quarantine ─▶ facts ─▶ flush ─▶ 2xx
//
// A request is read to its end before anything of it goes to the bus, so that one
// which is refused leaves nothing behind. Only its frames are held, compressed.
// Once the bus has begun to store it, it is not given up when the sender goes.
type httpSource struct {
	cfg       HTTPConfig
	deps      Deps
	log       *slog.Logger
	tracer    trace.Tracer
	endpoints []*httpEndpoint
	proxies   []netip.Prefix
	certs     *httpserver.Certificates

	rate    *httpserver.Bucket
	callers *httpserver.Callers
	room    *semaphore.Weighted // bytes
	places  *semaphore.Weighted // requests
	intakes sync.Pool           // *httpIntake
	again   *httpAgain
	acks    atomic.Int64

	// stalled counts requests that the bus has not stored within Timeouts.Store.
	stalled  atomic.Int64
	stopping atomic.Bool

	mu   sync.Mutex
	addr net.Addr
	down error
}

func openHTTP(_ context.Context, cfg HTTPConfig, deps Deps) (Source, error) {
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	if deps.Drain <= 0 {
		deps.Drain = 20 * time.Second
	}
	s := &httpSource{
		cfg: cfg, deps: deps, log: deps.Log.With("source", deps.Name),
		tracer:  otel.Tracer("github.com/penstock/penstock/services/ingest/sources"),
		proxies: httpserver.Networks(cfg.TrustedProxies),
		rate:    httpserver.NewBucket(cfg.Rate), callers: httpserver.NewCallers(cfg.RatePerCaller),
		room: semaphore.NewWeighted(int64(cfg.Limits.InFlight)), places: semaphore.NewWeighted(int64(cfg.Limits.Requests)),
		again: newHTTPAgain(httpAgainMax),
		down:  errHTTPClosed.New(nil, "listen on %s", cfg.Address),
	}
	s.intakes.New = func() any { return newHTTPIntake(s) }
	for _, e := range cfg.Endpoints {
		s.endpoints = append(s.endpoints, newHTTPEndpoint(e, cfg.Auth))
	}
	if cfg.TLS.CertFile != "" {
		var err error
		if s.certs, err = httpserver.OpenCertificates(cfg.TLS, errHTTPCertificate, s.log); err != nil {
			return nil, err
		}
	}
	host, _, _ := net.SplitHostPort(cfg.Address)
	if s.certs == nil && !httpserver.Loopback(host) {
		s.log.Warn("the listener has no TLS: tokens and events can be read on the way unless a proxy in front of it has",
			"address", cfg.Address)
	}
	mUp.WithLabelValues(deps.Name).Set(0)
	return s, nil
}

// Name implements [Source].
func (s *httpSource) Name() string { return s.deps.Name }

// Health implements [Source]: nil while the listener is open.
func (s *httpSource) Health() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down
}

// Addr is where the source listens, nil while it does not.
func (s *httpSource) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// opened notes whether the listener is open.
func (s *httpSource) opened(addr net.Addr, down error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addr, s.down = addr, down
	up := 0.0
	if down == nil {
		up = 1
	}
	mUp.WithLabelValues(s.deps.Name).Set(up)
}

// Run implements [Source].
func (s *httpSource) Run(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.cfg.Address)
	if err != nil {
		err = errHTTPListen.New(err, "listen on %s for source %s", s.cfg.Address, s.deps.Name)
		s.opened(nil, err)
		return err
	}
	defer s.opened(nil, errHTTPClosed.New(nil, "listen on %s", s.cfg.Address))
	work, end := outlive(ctx, s.deps.Drain, errDrain.New(nil, "finish the requests in hand of source %s", s.deps.Name))
	defer end()
	h := &httpHandler{s: s, work: work}
	t := s.cfg.Timeouts
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: t.Header, ReadTimeout: t.Read, IdleTimeout: t.Idle,
		WriteTimeout:   t.Read + t.Store + 10*time.Second,
		MaxHeaderBytes: int(s.cfg.Limits.MaxHeader),
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	s.stopping.Store(false)
	served := make(chan error, 1)
	limited := netutil.LimitListener(l, s.cfg.Limits.Connections)
	go func() {
		if s.certs != nil {
			server.TLSConfig = s.certs.Server()
			served <- server.ServeTLS(limited, "", "")
			return
		}
		served <- server.Serve(limited)
	}()
	s.opened(l.Addr(), nil)
	s.log.InfoContext(ctx, "the source listens", "address", l.Addr().String(), "tls", s.certs != nil)

	select {
	case <-ctx.Done():
		err = nil
	case err = <-served:
		err = errHTTPServe.New(err, "serve %s for source %s", s.cfg.Address, s.deps.Name)
		s.opened(nil, err)
	}
	s.stopping.Store(true)
	// Requests in hand go on as long as work does; then their connections are cut.
	if server.Shutdown(work) != nil {
		_ = server.Close()
	}
	h.serving.Lock() // a cut connection does not end its handler at once
	//lint:ignore SA2001 nothing is guarded, only waited for
	h.serving.Unlock() //nolint:staticcheck // as above
	h.storing.Wait()   // what is stored after its sender was answered
	if err == nil {
		if served := <-served; !errors.Is(served, http.ErrServerClosed) {
			err = errHTTPServe.New(served, "serve %s for source %s", s.cfg.Address, s.deps.Name)
		}
	}
	if h.lost.Load() > 0 && errors.Is(context.Cause(work), errDrain) {
		return errors.Join(err, context.Cause(work))
	}
	return err
}
