package console

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/net/netutil"

	"github.com/penstock/penstock/services/internal/httpserver"
)

var (
	requestsTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_console_requests_total", Help: "Requests to the console by class of the answer: 2xx, 3xx, 4xx or 5xx.",
	}, []string{"status"})
	streamsOpen = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "penstock_console_streams", Help: "Browsers that follow what is live in the console.",
	})
	loginsTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_console_logins_total", Help: "Logins to the console by way (password, oidc) and result (ok, refused, limited, failed).",
	}, []string{"way", "result"})
)

// policy lets a page load what this server has, and nothing that stands in the page.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// listen opens the listener, with TLS where there are certificates.
func (c *Console) listen(certificates *httpserver.Certificates) error {
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", c.cfg.Address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return errTaken.New(err, "open %s for the console", c.cfg.Address)
	case err != nil:
		return errListen.New(err, "open %s for the console", c.cfg.Address)
	}
	// Connections that do nothing must not use up the files that stages beside it open.
	l = netutil.LimitListener(l, maxConnections)
	if certificates != nil {
		l = tls.NewListener(l, certificates.Server())
	}
	c.listener = l
	return nil
}

// routes puts all pages behind what every request passes.
func (c *Console) routes() http.Handler {
	mux := http.NewServeMux()
	for _, p := range pages {
		if p.get != nil {
			mux.Handle("GET "+p.path, c.serve(p, p.get, ReadOnly))
		}
		for _, r := range p.routes {
			role := r.role
			if role == "" {
				role = ReadOnly
			}
			if !strings.HasPrefix(r.pattern, "GET ") && !p.open {
				role = Operator
			}
			mux.Handle(r.pattern, c.serve(p, r.do, role))
		}
	}
	mux.Handle("GET /static/{hash}/{name}", http.HandlerFunc(serveAsset))
	mux.Handle("/", c.serve(page{open: true}, func(r *request) error {
		if r.Method == http.MethodGet && r.URL.Path == "/" {
			http.Redirect(r.w, r.Request, "/pipeline", http.StatusSeeOther)
			return nil
		}
		return errNotFound.New(nil, "find a page at this address")
	}, ReadOnly))
	return c.outer(mux)
}

// outer is what every request passes, whatever it asks for.
func (c *Console) outer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=(), payment=(), usb=()")
		h.Set("Cache-Control", "no-store")
		if r.TLS != nil {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		answer := &answer{ResponseWriter: w}
		defer func() {
			if cause := recover(); cause != nil {
				if cause == http.ErrAbortHandler { //nolint:errorlint // it is compared so in net/http, too
					panic(cause)
				}
				c.log.Error("a page of the console panicked", "path", r.URL.Path, "cause", fmt.Sprint(cause), "stack", string(debug.Stack()))
				if answer.status == 0 {
					http.Error(answer, "This page has a mistake; it is in the log.", http.StatusInternalServerError)
				}
			}
			requestsTotal.WithLabelValues(fmt.Sprintf("%dxx", max(answer.status, 200)/100)).Inc()
		}()
		// Without login, a page of a stranger could reach us under a name of its own that
		// leads to this machine (DNS rebinding): only names of this machine count.
		if !c.cfg.guarded() && !localHost(r.Host) {
			http.Error(answer, "This console is for this machine only: open it as localhost.", http.StatusMisdirectedRequest)
			return
		}
		r.Body = http.MaxBytesReader(answer, r.Body, maxBody)
		next.ServeHTTP(answer, r)
	})
}

func localHost(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	return httpserver.Loopback(host)
}

// answer knows which status was sent.
type answer struct {
	http.ResponseWriter
	status int
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

var strange http.CrossOriginProtection

// serve makes a handler of a page out of ours: who asks, may they, and what became of it.
func (c *Console) serve(p page, do handler, least Role) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		r := &request{Request: hr, c: c, w: w, p: p, base: hr.Context()}
		err := strange.Check(hr)
		// A page of a stranger may lead here; it may not have us search in the background,
		// where nobody has to log in.
		if hr.Header.Get("Sec-Fetch-Site") == "cross-site" && hr.Header.Get("Sec-Fetch-Mode") != "navigate" {
			err = errors.New("it is no navigation")
		}
		if err != nil {
			r.fail(errForged.New(err, "take a request from another site"))
			return
		}
		if !r.authenticate() {
			return
		}
		if least == Operator && r.user.role != Operator {
			r.fail(errRole.New(nil, "do this as %s", r.user.name))
			return
		}
		if hr.Method != http.MethodGet && hr.Method != http.MethodHead && !r.tokenFits() {
			r.fail(errForged.New(nil, "take a request without the token of this page"))
			return
		}
		if err := r.fieldsFit(); err != nil {
			r.fail(err)
			return
		}
		room := c.room
		if r.user.name == "" {
			room = c.lobby
		}
		select {
		case room <- struct{}{}:
			defer r.leave()
		default:
			w.Header().Set("Retry-After", "1")
			r.fail(errBusy.New(nil, "answer more than %d requests at one time", cap(room)))
			return
		}
		r.room = room
		ctx, cancel := context.WithTimeout(r.Context(), requestTime)
		defer cancel()
		r.Request = r.WithContext(ctx) //nolint:contextcheck // not hr: the form of r was read already
		if err := do(r); err != nil {
			r.fail(err)
		}
	})
}

// fieldsFit bounds each field that is posted: reasons and filters are kept in the audit and
// in jobs for as long as these are, and read by whoever looks at them.
func (r *request) fieldsFit() error {
	if r.Method != http.MethodPost {
		return nil
	}
	err := r.ParseForm()
	if err == nil {
		if err = r.ParseMultipartForm(maxBody); errors.Is(err, http.ErrNotMultipart) {
			err = nil
		}
	}
	if err != nil {
		return errInput.New(err, "read what was posted")
	}
	for name, values := range r.Form {
		for _, v := range values {
			if len(v) > mostTyped {
				return errInput.New(nil, "take the field %s: use at most %d bytes", legible(name, 40), mostTyped)
			}
		}
	}
	return nil
}

// leave gives the place of a request free; those that stream do so early.
func (r *request) leave() {
	if r.room != nil {
		<-r.room
		r.room = nil
	}
}
