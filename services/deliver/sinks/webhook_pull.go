package sinks

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/semaphore"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/httpserver"
	"github.com/penstock/penstock/services/internal/probe"
	"github.com/penstock/penstock/topology"
)

// Fetched tells whether others fetch events from destinations of a kind, at places of
// their own, so that nothing can be sent to one again.
func Fetched(kind string) bool { return kind == "webhook_pull" }

func init() {
	define("webhook_pull", "Serves events over HTTP to those who fetch them, each at its own pace, from the event log.",
		defaultWebhookPull, openWebhookPull)
}

var (
	errPullListen = fault.Define("deliver.pull_cannot_listen", fault.Stop,
		"use an address of this machine that nobody else listens on, and that this user may open")
	errPullServe = fault.Define("deliver.pull_not_served", fault.Retry,
		"look at the cause, and start penstock again")
	errPullCertificate = fault.Define("deliver.pull_certificate", fault.Stop,
		"correct the files named under tls of the destination: PEM, a key that belongs to the certificate, readable by the user that penstock runs as")
	errPullNoLog = fault.Define("deliver.pull_no_log", fault.Stop,
		"run the destination in a penstock with a bus")
	errPullGone = fault.Define("deliver.pull_gone", fault.Retry,
		"nothing: the events are in the log")
)

// PullRows is what a row is.
type PullRows string

// The kinds of rows.
const (
	// RowsWithID: the document, with penstock's id as one more field.
	RowsWithID PullRows = "with_id"
	// RowsEnvelope: see [Envelope].
	RowsEnvelope PullRows = "envelope"
	// RowsDocument: see [Document].
	RowsDocument PullRows = "document"
)

// Values implements [config.Enum].
func (PullRows) Values() []string {
	return []string{string(RowsWithID), string(RowsEnvelope), string(RowsDocument)}
}

// WebhookPullConfig configures the webhook_pull sink.
type WebhookPullConfig struct {
	// Address to listen on, host:port. Beyond the loopback interface it needs tls, or plaintext. Required.
	Address string `yaml:"address"`
	// TLS of the listener.
	TLS httpserver.TLS `yaml:"tls"`
	// Plaintext lets the listener be reached from other machines without TLS, where keys and events can be read on the way: for a proxy in front that has TLS.
	Plaintext bool `yaml:"plaintext"`
	// TrustedProxies are the addresses and networks whose X-Forwarded-For is believed, e.g. 10.0.0.0/8. Everybody else's is ignored.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// Streams that can be fetched: event types by name, with the wildcards of NATS. Empty means web, email, app, casb and mfa of Censornet, as far as types lets them through.
	Streams map[string][]string `yaml:"streams"`
	// Rows is what a row is: with_id (the document with penstock's id as first field; "penstock_id" where it has an id of its own), envelope (with penstock's id, type, time, source, account and region) or document.
	Rows PullRows `yaml:"rows"`
	// FirstWindow is how far back a consumer begins that is new. Unit: duration.
	FirstWindow time.Duration `yaml:"first_window"`
	// Rate bounds the requests of each consumer to one process. What is above it is answered with 429.
	Rate httpserver.Rate `yaml:"rate"`
	// FailureRate bounds the requests without a good key that are answered with 401, from each address. What is above it is answered with 429; good keys are not held up.
	FailureRate httpserver.Rate `yaml:"failure_rate"`
	// Limits bound what requests may cost.
	Limits PullLimits `yaml:"limits"`
	// Timeouts bound how long requests may take.
	Timeouts PullTimeouts `yaml:"timeouts"`
}

// PullLimits bounds what requests of the webhook_pull sink cost.
type PullLimits struct {
	// Rows of a page when the request does not say how many. Unit: events.
	Rows int `yaml:"rows"`
	// MaxRows of a page, whatever the request says. Unit: events.
	MaxRows int `yaml:"max_rows"`
	// Page bounds a page before compression; a single event that is larger comes alone. Unit: bytes.
	Page config.Bytes `yaml:"page"`
	// InFlight bounds the pages that are being read and sent, counted as their bound. Above it the answer is 503. Unit: bytes.
	InFlight config.Bytes `yaml:"in_flight"`
	// Requests bounds the requests in hand, those that wait for events among them. Above it the answer is 503.
	Requests int `yaml:"requests"`
	// Connections bounds the open connections. More of them wait.
	Connections int `yaml:"connections"`
}

// PullTimeouts bounds how long requests of the webhook_pull sink take.
type PullTimeouts struct {
	// Wait is the longest time that a request may wait for events, whatever it says.
	Wait time.Duration `yaml:"wait"`
	// Read is how long a page may take to read. What was read until then is served.
	Read time.Duration `yaml:"read"`
	// Stall is how long a consumer may take for the next 64 KiB.
	Stall time.Duration `yaml:"stall"`
	// Header is for the header of a request to come.
	Header time.Duration `yaml:"header"`
	// Idle is how long a connection may stay without a request.
	Idle time.Duration `yaml:"idle"`
}

func defaultWebhookPull() WebhookPullConfig {
	return WebhookPullConfig{
		Rows: RowsWithID, FirstWindow: 10 * time.Minute,
		Rate:        httpserver.Rate{PerSecond: 20, Burst: 40},
		FailureRate: httpserver.Rate{PerSecond: 1, Burst: 10},
		Limits: PullLimits{
			Rows: 1000, MaxRows: 10_000, Page: 4 * config.MiB, InFlight: 64 * config.MiB, Requests: 128, Connections: 512,
		},
		Timeouts: PullTimeouts{
			Wait: time.Minute, Read: 20 * time.Second, Stall: 30 * time.Second, Header: 5 * time.Second, Idle: 2 * time.Minute,
		},
	}
}

// Validate reports every problem, each with the key to change.
func (c WebhookPullConfig) Validate() error {
	var p config.Problems
	host, port, err := net.SplitHostPort(c.Address)
	_, portErr := strconv.ParseUint(port, 10, 16)
	p.Need(err == nil && portErr == nil, "address", "use host:port, e.g. 127.0.0.1:8090, or :8090 for all interfaces")
	c.TLS.Problems(&p)
	p.Need(err != nil || httpserver.Loopback(host) || c.TLS.CertFile != "" || c.Plaintext, "tls.cert_file",
		"set cert_file and key_file, listen on 127.0.0.1, or write `plaintext: true` when a proxy in front has TLS")
	for i, s := range c.TrustedProxies {
		_, err := httpserver.Network(s)
		p.Need(err == nil, "trusted_proxies["+strconv.Itoa(i)+"]", "use an address or a network, e.g. 10.0.0.0/8")
	}
	p.Need(len(c.Streams) <= 64, "streams", "use up to 64 streams")
	for _, name := range slices.Sorted(maps.Keys(c.Streams)) {
		key := "streams." + name
		p.Need(goodConsumer.MatchString(name), key, "use a name of 1 to 64 letters, digits, - and _")
		p.Need(len(c.Streams[name]) > 0, key, `list event types, e.g. [censornet.web.>], or [">"] for all`)
		if _, err := condition.ParseTypes(c.Streams[name]); err != nil {
			why, fix := condition.Explain(err)
			p.Add(key, why, fix)
			continue
		}
		for i, a := range c.Streams[name] {
			for _, b := range c.Streams[name][:i] {
				_, overlap := condition.Both(a, b)
				p.Need(!overlap, key, "use types of which no event fits two: "+a+" and "+b+" overlap")
			}
		}
	}
	p.Need(c.Rows == RowsWithID || c.Rows == RowsEnvelope || c.Rows == RowsDocument, "rows", "use with_id, envelope or document")
	p.Need(c.FirstWindow >= 0 && c.FirstWindow <= 365*24*time.Hour, "first_window", "use 0s to 8760h, e.g. 10m")
	p.In("rate", c.Rate.Validate())
	p.In("failure_rate", c.FailureRate.Validate())
	l := c.Limits
	p.Need(l.Rows >= 1 && l.Rows <= l.MaxRows, "limits.rows", "use 1 to limits.max_rows")
	p.Need(l.MaxRows <= 1_000_000, "limits.max_rows", "use up to 1000000")
	p.Need(l.Page >= config.KiB && l.Page <= 256*config.MiB, "limits.page", "use 1 KiB to 256 MiB")
	p.Need(l.InFlight >= l.Page, "limits.in_flight", "use limits.page or more")
	p.Need(l.Requests >= 1 && l.Requests <= 100_000, "limits.requests", "use 1 to 100000")
	p.Need(l.Connections >= 1 && l.Connections <= 1_000_000, "limits.connections", "use 1 to 1000000")
	t := c.Timeouts
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"wait", t.Wait}, {"read", t.Read}, {"stall", t.Stall}, {"header", t.Header}, {"idle", t.Idle},
	} {
		p.Need(d.value > 0 && d.value <= time.Hour, "timeouts."+d.key, "use a duration above 0s and up to 1h, e.g. 30s")
	}
	return p.Err()
}

// censornetStreams are those of Censornet's own webhook. Source: features CEN-12.
var censornetStreams = map[string][]string{
	"web":   {"censornet.web", "censornet.web.>"},
	"email": {"censornet.email", "censornet.email.>"},
	"app":   {"censornet.app", "censornet.app.>"},
	"casb":  {"censornet.casb", "censornet.casb.>"},
	"mfa":   {"censornet.mfa", "censornet.mfa.>"},
}

func (c WebhookPullConfig) streams() map[string][]string {
	if len(c.Streams) == 0 {
		return censornetStreams
	}
	return c.Streams
}

// StreamNames are those of the streams that can be fetched, in order.
func (c WebhookPullConfig) StreamNames() []string { return slices.Sorted(maps.Keys(c.streams())) }

// Probe implements [probe.Prober]: whether the address can be opened and the
// certificate be read.
func (c WebhookPullConfig) Probe(ctx context.Context) []probe.Finding {
	var all []probe.Finding
	if c.TLS.CertFile != "" {
		if _, err := httpserver.OpenCertificates(c.TLS, errPullCertificate, slog.New(slog.DiscardHandler)); err != nil {
			return []probe.Finding{probe.Error("tls", c.TLS.CertFile, err)}
		}
		all = append(all, probe.Certificate(c.TLS.CertFile, c.TLS.KeyFile))
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", c.Address)
	if err != nil {
		return append(all, probe.Doubt("listen", c.Address, err.Error(), "nothing, when penstock runs already; else "+errPullListen.Fix))
	}
	_ = l.Close()
	return append(all, probe.Good("listen", c.Address, "keys are made with penstock consumers add"))
}

var (
	pullRequests = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_pull_requests_total", Help: "Requests of consumers that were answered, by stream and status.",
	}, []string{"destination", "stream", "status"})
	pullRows = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_pull_rows_total", Help: "Events that were sent to a consumer, those that were sent again included.",
	}, []string{"destination", "stream", "consumer"})
	pullGaps = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_pull_gaps_total", Help: "Times that a consumer went on behind events that the log does not have any more.",
	}, []string{"destination", "stream", "consumer"})
	pullOldest = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_deliver_pull_oldest_unacknowledged_seconds", Help: "Age of the oldest frame of the log that a consumer has not acknowledged; 0 when there is none. Measured every 15 seconds.",
	}, []string{"destination", "stream", "consumer"})
	pullBehind = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_deliver_pull_behind_frames", Help: "Frames of the log that a consumer has not acknowledged.",
	}, []string{"destination", "stream", "consumer"})
)

// webhookPull serves what the event log holds to consumers that ask for it.
//
// Confirmed: Deliver confirms at once, as the events are durable in the log by then.
// How far each consumer is stands in the register, by consumer and stream, and moves
// when the consumer acknowledges; nothing is served to a consumer that it could not
// ask for again until then. Events leave the log by its retention alone: a consumer
// that stays away for longer is told so (410) and goes on from where it says.
//
// Order: that of the log. Retry: a consumer that does not acknowledge gets the same
// rows again, with the same ids. Several replicas may serve; a position is held by one
// request at a time.
//
// Memory: limits.in_flight for pages, and for each request at most a frame of the log
// and its documents.
type webhookPull struct {
	cfg       WebhookPullConfig
	name      string
	log       *slog.Logger
	drain     time.Duration
	streams   map[string]EventLog
	consumers *Consumers
	book      *book
	proxies   []netip.Prefix
	certs     *httpserver.Certificates
	rate      *httpserver.Callers
	failures  *httpserver.Callers
	places    *semaphore.Weighted // requests
	room      *semaphore.Weighted // bytes
	pages     sync.Pool           // *[]byte
	zippers   sync.Pool           // *gzip.Writer
	stopping  chan struct{}       // closed when Run is to end
	stop      func()
	serving   sync.RWMutex // held by each request while it is answered

	mu   sync.Mutex
	addr net.Addr
}

func openWebhookPull(_ context.Context, cfg WebhookPullConfig, deps Deps) (Sink, error) {
	if deps.Bus == nil {
		return nil, errPullNoLog.New(nil, "open destination %s", deps.Destination)
	}
	return newWebhookPull(cfg, deps, deps.Bus.Consumers())
}

func newWebhookPull(cfg WebhookPullConfig, deps Deps, register Register) (*webhookPull, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Events == nil {
		return nil, errPullNoLog.New(nil, "open destination %s", deps.Destination)
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	s := &webhookPull{
		cfg: cfg, name: deps.Destination, log: deps.Log, drain: deps.Drain, streams: map[string]EventLog{},
		consumers: NewConsumers(register, deps.Destination), book: newBook(), proxies: httpserver.Networks(cfg.TrustedProxies),
		rate: httpserver.NewCallers(cfg.Rate), failures: httpserver.NewCallers(cfg.FailureRate),
		places: semaphore.NewWeighted(int64(cfg.Limits.Requests)), room: semaphore.NewWeighted(int64(cfg.Limits.InFlight)),
		stopping: make(chan struct{}),
	}
	s.stop = sync.OnceFunc(func() { close(s.stopping) })
	for name, types := range cfg.streams() {
		events, err := deps.Events.Only(types)
		if errors.Is(err, ErrNoTypes) && len(cfg.Streams) == 0 {
			continue
		}
		if err != nil {
			return nil, err
		}
		s.streams[name] = events
	}
	if len(s.streams) == 0 {
		return nil, ErrNoTypes.New(nil, "find a stream of destination %s", deps.Destination)
	}
	if cfg.TLS.CertFile != "" {
		var err error
		if s.certs, err = httpserver.OpenCertificates(cfg.TLS, errPullCertificate, s.log); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Limits implements [Sink]: batches are only counted.
func (s *webhookPull) Limits() Limits { return Limits{Events: 100_000, Bytes: config.MiB} }

// Append implements [Sink]: the events stay where they are.
func (s *webhookPull) Append(dst []byte, _ *Event) []byte { return append(dst, 0) }

// Deliver implements [Sink]: what the log holds is there for consumers.
func (s *webhookPull) Deliver(ctx context.Context, _ Batch) Result {
	if ctx.Err() != nil {
		return Result{Verdict: Retry, Err: errPullGone.New(context.Cause(ctx), "confirm for destination %s", s.name)}
	}
	return Result{}
}

// Close implements [Sink].
func (s *webhookPull) Close() error { return nil }

// Addr is where the sink listens, nil while it does not.
func (s *webhookPull) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

// Run implements [Server].
func (s *webhookPull) Run(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.cfg.Address)
	if err != nil {
		return errPullListen.New(err, "listen on %s for destination %s", s.cfg.Address, s.name)
	}
	s.mu.Lock()
	s.addr = l.Addr()
	s.mu.Unlock()
	// What watches goes on until the last request was answered.
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	var watching sync.WaitGroup
	defer watching.Wait()
	defer end()
	watching.Go(func() { s.watch(work) })
	watching.Go(func() { s.measure(work) })

	t := s.cfg.Timeouts
	server := &http.Server{
		Handler: s, ReadHeaderTimeout: t.Header, ReadTimeout: 2 * t.Header, IdleTimeout: t.Idle, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
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
	s.log.InfoContext(ctx, "the destination listens", "address", l.Addr().String(), "tls", s.certs != nil)
	select {
	case <-ctx.Done():
	case err = <-served:
		err = errPullServe.New(err, "serve %s for destination %s", s.cfg.Address, s.name)
	}
	s.stop() // who waits for events is answered
	drain, cancel := context.WithTimeout(work, s.drain)
	defer cancel()
	if server.Shutdown(drain) != nil {
		_ = server.Close()
	}
	s.serving.Lock() // a cut connection does not end its handler at once
	//lint:ignore SA2001 nothing is guarded, only waited for
	s.serving.Unlock() //nolint:staticcheck // as above
	if err == nil {
		if served := <-served; !errors.Is(served, http.ErrServerClosed) {
			err = errPullServe.New(served, "serve %s for destination %s", s.cfg.Address, s.name)
		}
	}
	return err
}

// watch keeps the book of consumers.
func (s *webhookPull) watch(ctx context.Context) {
	path := topology.RegisterPath(s.name)
	_ = s.consumers.register.Watch(ctx, path, func(e topology.Entry) { s.book.saw(e, time.Now()) }, s.book.complete) // ends with ctx alone
}

// measureEvery is how often the lag of consumers is looked up.
const measureEvery = 15 * time.Second

// measure keeps the gauges of what consumers have not acknowledged.
func (s *webhookPull) measure(ctx context.Context) {
	tick := time.NewTicker(measureEvery)
	defer tick.Stop()
	of := prometheus.Labels{"destination": s.name}
	defer pullOldest.DeletePartialMatch(of)
	defer pullBehind.DeletePartialMatch(of)
	var shown map[[2]string]bool
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			shown = s.lags(ctx, shown)
		}
	}
}

// lags sets the gauges. Those of consumers that are gone go.
func (s *webhookPull) lags(ctx context.Context, before map[[2]string]bool) map[[2]string]bool {
	now := map[[2]string]bool{}
	for _, at := range s.book.standing() {
		events := s.streams[at.stream]
		if events == nil {
			continue
		}
		frames, oldest, err := events.Behind(ctx, at.position.Acked)
		if err != nil {
			maps.Copy(now, before) // what is not known stays as it was
			return now
		}
		age := 0.0
		if frames > 0 {
			age = max(0, time.Since(oldest).Seconds())
		}
		pullOldest.WithLabelValues(s.name, at.stream, at.consumer).Set(age)
		pullBehind.WithLabelValues(s.name, at.stream, at.consumer).Set(float64(frames))
		now[[2]string{at.stream, at.consumer}] = true
	}
	for gone := range before {
		if !now[gone] {
			pullOldest.DeleteLabelValues(s.name, gone[0], gone[1])
			pullBehind.DeleteLabelValues(s.name, gone[0], gone[1])
		}
	}
	return now
}
