// Package console serves the pages in which people watch a pipeline and operate it:
// server-rendered HTML with htmx for parts that change, server-sent events for what is
// live, and no script or style inside a page.
//
// A page is a Go file and a template that register themselves. All of one:
//
//	func init() { // shelves.go, with templates/shelves.html
//		register(page{
//			path: "/shelves", title: "Shelves", nav: navWatch, order: 40, icon: "box", get: getShelves,
//			routes: []route{
//				{"GET /shelves/{name}/clear", askClear, operator}, // the dialog that asks back
//				{"POST /shelves/{name}/clear", clear, operator},   // what it does
//			},
//		})
//	}
//	func getShelves(r *request) error {
//		bus, err := r.bus() // the error makes the page that says that the bus does not answer
//		if err != nil { return err }
//		return r.page("shelves", shelves(bus)) // {{define "shelves"}}: the data is .Data there
//	}
//	func askClear(r *request) error {
//		return r.confirm(confirm{Title: "Clear the shelf?", Text: "3 boxes are thrown away.", Verb: "Clear", Danger: true})
//	}
//	func clear(r *request) error {
//		if err := r.deed(topology.Deed{Action: "shelf.clear", What: r.PathValue("name"), Count: 3}); err != nil { return err }
//		return r.done("The shelf is clear.", "/shelves")
//	}
//
// The button that opens the dialog is
//
//	<button hx-get="/shelves/a/clear" hx-target="#dialog">Clear …</button>
//
// confirm posts to the path of the question unless told otherwise, with the fields that
// it names and a token against forgery. Parts of a page are rendered by r.fragment. What is live:
// r.stream sends to one client what a function gives it; r.follow sends what
// c.publish gives to all who follow a topic (in HTML: hx-ext="sse" sse-connect sse-swap).
// What people may see is escaped as html/template says, where `go generate` asks it (escaped.tmpl);
// nothing is written into a page by hand.
package console

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/httpserver"
	"github.com/penstock/penstock/services/operate/books"
	"github.com/penstock/penstock/services/operate/status"
	"github.com/penstock/penstock/topology"
)

var (
	errTaken = fault.Define("console.address_in_use", fault.Stop,
		"another program has this address, perhaps a second console: stop it, or change console.address")
	errListen = fault.Define("console.cannot_listen", fault.Stop,
		"use an address of this machine that this user may open, e.g. 127.0.0.1:9180")
	errCertificate = fault.Define("console.bad_certificate", fault.Stop,
		"check console.tls: the files must be there, readable and belong together")
	errServe = fault.Define("console.not_served", fault.Retry, "look at the cause, and start again")
)

// Deps is what the console shows and steers. Functions that return nil say "not there
// yet": the pages that need it say so.
type Deps struct {
	// Bus is the connection, nil until the bus has answered for the first time.
	Bus func() *topology.Bus
	// Configured is what the configuration says of sources and destinations.
	Configured func() status.Configured
	// Books answers what the ledger says, nil while nobody keeps its books.
	Books func() books.Reader
	// Effective is the configuration that counts, as YAML with secrets hidden.
	Effective func() ([]byte, error)
	// Version of penstock.
	Version string
	// Log gets what goes wrong, and who logs in. Default slog.Default().
	Log *slog.Logger
	// Every is how often the state of the pipeline is sampled while somebody looks.
	// Default 5 s.
	Every time.Duration
}

// Console serves the pages. Its methods may be called concurrently.
type Console struct {
	cfg      Config
	deps     Deps
	log      *slog.Logger
	listener net.Listener
	handler  http.Handler
	gate     *gate
	hub      hub
	// stopping is closed when the server stops: streams end then.
	stopping chan struct{}
	// room bounds the requests that are answered at one time.
	room chan struct{}
	// lobby is the same for those who are not logged in: they take no room from others.
	lobby chan struct{}
	// searches bounds those of the event log that run at one time.
	searches chan struct{}
	// key signs what people bring back: tokens against forgery, half-done logins.
	key [32]byte

	// now is the last look at the pipeline, history those before.
	now     atomic.Pointer[sample]
	history history
	// asked is when somebody wanted to see the last look, in Unix nanoseconds; wake has the
	// next one taken now.
	asked atomic.Int64
	wake  chan struct{}
	looks looks
}

// Limits of the server.
const (
	// maxConnections are open at one time, idle ones and streams included.
	maxConnections = 512
	maxRequests    = 64      // at one time, streams apart
	maxStrangers   = 16      // of those who are not logged in, beside these
	maxSearches    = 4       // each takes a processor, and some 32 MiB where events are long
	maxBody        = 1 << 20 // bytes of a form
	maxHeader      = 32 << 10
	requestTime    = 15 * time.Second // of a handler
	writeTime      = 30 * time.Second // for an answer to be taken
	stopTimeout    = 3 * time.Second  // for requests in hand at the end
	sampleEvery    = 5 * time.Second
	sampleUnseen   = coarse // instead, while nobody has looked for unseenAfter
	unseenAfter    = time.Minute
	sampleWithin   = 5 * time.Second
)

// New opens the listener. Errors: those of the configuration, console.address_in_use,
// console.cannot_listen and console.bad_certificate.
func New(cfg Config, deps Deps) (*Console, error) {
	if cfg.Address == "" {
		cfg.Address = DefaultAddress
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	if deps.Every == 0 {
		deps.Every = sampleEvery
	}
	c := &Console{cfg: cfg, deps: deps, log: deps.Log, room: make(chan struct{}, maxRequests), lobby: make(chan struct{}, maxStrangers), searches: make(chan struct{}, maxSearches), stopping: make(chan struct{}), wake: make(chan struct{}, 1)}
	_, _ = rand.Read(c.key[:]) // never fails
	c.gate = newGate(cfg, c.key, c.log)
	c.handler = c.routes()
	if cfg.TLS.CertFile != "" {
		certificates, err := httpserver.OpenCertificates(cfg.TLS, errCertificate, c.log)
		if err != nil {
			return nil, err
		}
		return c, c.listen(certificates)
	}
	return c, c.listen(nil)
}

// Addr is where it listens, host:port.
func (c *Console) Addr() string { return c.listener.Addr().String() }

// URL is where browsers find it on this machine.
func (c *Console) URL() string {
	if c.cfg.TLS.CertFile != "" {
		return "https://" + c.Addr()
	}
	return "http://" + c.Addr()
}

// Run serves until ctx ends, and closes the listener. It watches the pipeline all the
// while, so that opening a page costs the pipeline nothing.
func (c *Console) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	server := &http.Server{
		Handler: c.handler, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: writeTime,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
	server.RegisterOnShutdown(sync.OnceFunc(func() { close(c.stopping) }))
	group.Go(func() error {
		if err := server.Serve(c.listener); !errors.Is(err, http.ErrServerClosed) {
			return errServe.New(err, "serve the console at %s", c.Addr())
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if server.Shutdown(stop) != nil {
			_ = server.Close()
		}
		return nil
	})
	group.Go(func() error { c.watch(ctx); return nil })
	return group.Wait()
}
