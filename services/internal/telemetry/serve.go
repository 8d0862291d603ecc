package telemetry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/httpserver"
)

var (
	errTaken = fault.Define("telemetry.address_in_use", fault.Stop,
		"another program has this address, perhaps a second penstock: stop it, or change telemetry.address or telemetry.private_address")
	errListen = fault.Define("telemetry.cannot_listen", fault.Stop,
		"use an address of this machine that this user may open, e.g. 127.0.0.1:8080")
	errPublic = fault.Define("telemetry.not_private", fault.Stop,
		"profiles and the log level are for this machine only: use a loopback address, e.g. 127.0.0.1:8081")
	errCertificate = fault.Define("telemetry.bad_certificate", fault.Stop,
		"give telemetry.tls a certificate and its key as PEM files that this user may read")
	errServe = fault.Define("telemetry.not_served", fault.Retry, "look at the cause, and start again")
)

// stopTimeout is what requests in hand get to end in.
const stopTimeout = 3 * time.Second

// Health is what to serve about this process.
type Health struct {
	// Ready holds the checks behind /readyz by name. A check returns nil when its
	// part can do its work, and should return soon after its context ends. Checks
	// run at the same time, at most once a second however many ask.
	Ready map[string]func(context.Context) error
	// Timeout bounds each check. Zero: 2 s.
	Timeout time.Duration
	// TLS of the public address. Without a certificate: none.
	TLS httpserver.TLS
	// Private is the address for /debug/pprof and /loglevel, on a loopback
	// interface. Empty: not served.
	Private string
	// Level is switched by PUT /loglevel. Nil: no /loglevel.
	Level *slog.LevelVar
}

// Serve opens addr (unless it is empty) and the private address (likewise) and
// serves both until ctx ends. Both are open, or neither is.
func Serve(ctx context.Context, addr string, h Health) error {
	s, err := Listen(ctx, addr, h)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// Server holds open addresses. [Server.Run] must be called, it closes them.
type Server struct {
	checks          *checks
	public, private *listener
}

// listener is one address and what it serves.
type listener struct {
	net.Listener
	http *http.Server
}

// Listen opens the addresses as [Serve] does, and serves nothing yet.
func Listen(ctx context.Context, addr string, h Health) (*Server, error) {
	s := &Server{checks: newChecks(h.Ready, h.Timeout)}
	var err error
	if addr != "" {
		if s.public, err = listen(ctx, addr, s.publicMux()); err != nil {
			return nil, err
		}
		if h.TLS.CertFile != "" {
			certificates, err := httpserver.OpenCertificates(h.TLS, errCertificate, slog.Default())
			if err != nil {
				return nil, errors.Join(err, s.public.Close())
			}
			s.public.Listener = tls.NewListener(s.public.Listener, certificates.Server())
		}
	}
	if h.Private == "" {
		return s, nil
	}
	s.private, err = listen(ctx, h.Private, privateMux(h.Level))
	if err == nil {
		if tcp, ok := s.private.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
			err = errPublic.New(s.private.Close(), "open %s for profiles", h.Private)
		}
	}
	if err != nil {
		if s.public != nil {
			err = errors.Join(err, s.public.Close())
		}
		return nil, err
	}
	// A profile lasts as long as its reader asks.
	s.private.http.WriteTimeout = 10 * time.Minute
	return s, nil
}

func listen(ctx context.Context, addr string, h http.Handler) (*listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, errTaken.New(err, "open %s for health and metrics", addr)
	case err != nil:
		return nil, errListen.New(err, "open %s for health and metrics", addr)
	}
	return &listener{l, &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}}, nil
}

// Addr returns the public address, with the port that was found for port 0.
// Empty when there is none.
func (s *Server) Addr() string { return s.public.addr() }

// PrivateAddr returns the private address likewise.
func (s *Server) PrivateAddr() string { return s.private.addr() }

func (l *listener) addr() string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

// Run serves until ctx ends, then gives the requests in hand 3 s to end.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, 4)
	for _, l := range []*listener{s.public, s.private} {
		if l == nil {
			continue
		}
		wg.Go(func() {
			if err := l.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				errs <- errServe.New(err, "serve %s", l.addr())
				cancel()
			}
		})
		wg.Go(func() {
			<-ctx.Done()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()
			if l.http.Shutdown(ctx) != nil { // a reader that will not end is no fault of ours
				_ = l.http.Close()
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	s.checks.stop(stopTimeout)
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

func (s *Server) publicMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if failures := s.checks.probe(r.Context()); len(failures) > 0 {
			answer(w, http.StatusServiceUnavailable, map[string]any{"status": "not ready", "failures": failures})
			return
		}
		answer(w, http.StatusOK, map[string]string{"status": "ready"})
	})
	mux.Handle("GET /metrics", promhttp.InstrumentMetricHandler(prometheus.DefaultRegisterer,
		promhttp.HandlerFor(prometheus.DefaultGatherer, promhttp.HandlerOpts{
			MaxRequestsInFlight: 4,
			Timeout:             20 * time.Second,
			EnableOpenMetrics:   true, // exemplars need it
			ErrorHandling:       promhttp.ContinueOnError,
		})))
	return mux
}

// privateMux refuses what a web page in a browser of this machine sends: requests
// from another origin, and those to a name that was made to point here.
func privateMux(level *slog.LevelVar) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	if level != nil {
		mux.HandleFunc("GET /loglevel", func(w http.ResponseWriter, _ *http.Request) {
			answer(w, http.StatusOK, map[string]string{"level": word(level.Level())})
		})
		mux.HandleFunc("PUT /loglevel", func(w http.ResponseWriter, r *http.Request) { switchLevel(w, r, level) })
	}
	return http.NewCrossOriginProtection().Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := (&url.URL{Host: r.Host}).Hostname()
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			answer(w, http.StatusForbidden, map[string]string{"error": "address this as localhost"})
			return
		}
		mux.ServeHTTP(w, r)
	}))
}

// switchLevel takes one word, as in: curl -X PUT -d debug 127.0.0.1:8081/loglevel.
func switchLevel(w http.ResponseWriter, r *http.Request, level *slog.LevelVar) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64))
	if err != nil {
		answer(w, http.StatusBadRequest, map[string]string{"error": "the body is too long or broken off"})
		return
	}
	to, known := levels[strings.ToLower(strings.TrimSpace(string(body)))]
	if !known {
		answer(w, http.StatusBadRequest, map[string]string{"error": "the body must be debug, info, warn or error"})
		return
	}
	// Logged as a warning, so that it shows at nearly every level.
	slog.WarnContext(r.Context(), "log level is switched", "from", word(level.Level()), "to", word(to))
	level.Set(to)
	answer(w, http.StatusOK, map[string]string{"level": word(to)})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the reader has gone
}

func hostPort(addr string) bool {
	_, port, err := net.SplitHostPort(addr)
	return err == nil && port != ""
}
