package sinks

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/httpserver"
	"github.com/penstock/penstock/topology"
)

var (
	errPullKey = fault.Define("deliver.pull_key_missing", fault.Reject,
		"send the key: Authorization: Bearer <key>")
	errPullUnknown = fault.Define("deliver.pull_key_unknown", fault.Reject,
		"use a key that penstock consumers add has made and nobody has revoked")
	errPullExpired = fault.Define("deliver.pull_key_expired", fault.Reject,
		"ask for a new key: penstock consumers revoke, then penstock consumers add with the same name goes on where this one was")
	errPullForbidden = fault.Define("deliver.pull_not_allowed", fault.Reject,
		"fetch a stream that the key was made for")
	errPullStream = fault.Define("deliver.pull_no_stream", fault.Reject,
		"use a path as /v1/streams/<name> with a stream of the destination")
	errPullMethod  = fault.Define("deliver.pull_method", fault.Reject, "use GET for a stream, and POST for its ack")
	errPullRequest = fault.Define("deliver.pull_bad_request", fault.Reject,
		"correct the parameter that is named")
	errPullAck = fault.Define("deliver.pull_bad_ack", fault.Reject,
		"acknowledge the Penstock-Cursor of the last page that you have worked on, with the key and stream that it came for; or leave ack out to get what is not acknowledged again")
	errPullBusy = fault.Define("deliver.pull_key_in_use", fault.Reject,
		"one request at a time for a key and stream: give each service a key of its own, or wait for the end of the other request")
	errPullTrimmed = fault.Define("deliver.pull_gone_too_long", fault.Reject,
		"the log does not have the events any more: go on with from=oldest, or ack=<oldest>; and fetch more often, or have the log keep more")
	errPullRate = fault.Define("deliver.pull_rate", fault.Retry,
		"come again after Retry-After; wait=30 needs fewer requests")
	errPullFull = fault.Define("deliver.pull_full", fault.Retry,
		"come again after Retry-After; else raise limits of the destination, or run more replicas")
	errPullStopping = fault.Define("deliver.pull_stopping", fault.Retry, "come again: another replica answers, or this one after its start")
	errPullLog      = fault.Define("deliver.pull_log_unavailable", fault.Retry,
		"come again after Retry-After; the operator looks at the bus: penstock topology show")
	errPullPanic = fault.Define("deliver.pull_panicked", fault.Retry, "report it: it is a mistake in penstock")
)

// pullStatuses are the statuses of faults that are not 503.
var pullStatuses = map[*fault.Kind]int{
	errPullRequest: 400, errPullAck: 400, errPullKey: 401, errPullUnknown: 401, errPullExpired: 401, errPullForbidden: 403,
	errPullStream: 404, errPullMethod: 405, errPullBusy: 409, errPullTrimmed: 410, errPullRate: 429, errPullPanic: 500,
}

const (
	// holdRenew is how often a request that is being answered shows that it is, and
	// holdExpiry after how long without that others may take its position.
	holdRenew  = 3 * time.Second
	holdExpiry = 4 * holdRenew
	// pullChunk is what is written at once, in bytes.
	pullChunk = 64 << 10
	// busyAfter is when a consumer is asked to come again.
	busyAfter = 5 * time.Second
	// holdGrace is how long a request waits for a position that is held: who comes again
	// at once may be faster than the end of its own last request, and holdLook how often
	// it looks.
	holdGrace = 2 * time.Second
	holdLook  = 25 * time.Millisecond
)

// pullRequest is what a request asks for.
type pullRequest struct {
	limit   int // 0: all
	array   bool
	ack     *Place
	autoAck bool
	wait    time.Duration
	from    string
}

// pullExchange is one request and its answer.
type pullExchange struct {
	s      *webhookPull
	w      http.ResponseWriter
	r      *http.Request
	began  time.Time
	ip     netip.Addr
	label  string // the stream, for metrics
	query  url.Values
	who    Consumer
	stream string
	events EventLog
	ask    pullRequest
	// compatible tells that the request has the form of Censornet's own webhook.
	compatible bool
	begun      bool // the header is sent
	room       bool // there is room for a page
	out        *pullWriter
	rows       int
}

// ServeHTTP implements [http.Handler].
func (s *webhookPull) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.serving.RLock()
	defer s.serving.RUnlock()
	x := &pullExchange{s: s, w: w, r: r, began: time.Now(), ip: httpserver.AddressOf(r, s.proxies), label: "none"}
	status := 0
	defer func() { pullRequests.WithLabelValues(s.name, x.label, strconv.Itoa(status)).Inc() }()
	defer func() {
		p := recover()
		switch {
		case p == nil:
			return
		case p == http.ErrAbortHandler: //nolint:errorlint // a sentinel of panics, never wrapped
			status = 499 // cut, as some servers call it
		default:
			err := errPullPanic.New(nil, "answer a request: %T", p) // its text may hold what nobody should see
			s.log.ErrorContext(r.Context(), "a request makes penstock fail", "err", err, "stack", string(debug.Stack()))
			if status = http.StatusInternalServerError; !x.begun {
				x.refuse(err)
				return
			}
		}
		panic(http.ErrAbortHandler) // a cut answer must not look like a whole one
	}()
	status = x.answer()
}

// answer does what a request asks for and returns the status.
func (x *pullExchange) answer() int {
	h := x.w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if x.r.URL.Path == "/healthz" {
		return x.health()
	}
	ack, err := x.route()
	if err != nil {
		return x.refuse(err)
	}
	if wait := x.s.rate.Take(x.who.Name, x.began); wait > 0 {
		return x.later(errPullRate.New(nil, "answer a request of %s", x.who.Name), wait)
	}
	if err := x.parse(); err != nil {
		return x.refuse(err)
	}
	// The last request of the same consumer may not have ended quite.
	soon, cancel := context.WithTimeout(x.r.Context(), holdGrace)
	defer cancel()
	if err := x.s.places.Acquire(soon, 1); err != nil {
		return x.refuse(errPullFull.New(err, "answer one more request"))
	}
	defer x.s.places.Release(1)
	if ack {
		return x.acknowledge()
	}
	return x.page()
}

func (x *pullExchange) health() int {
	status, text := http.StatusOK, "ok\n"
	switch {
	case x.r.Method != http.MethodGet && x.r.Method != http.MethodHead:
		return x.refuse(errPullMethod.New(nil, "ask for health with %.20q", x.r.Method))
	case x.isStopping():
		status, text = http.StatusServiceUnavailable, "stopping\n"
	case !x.s.book.ready():
		status, text = http.StatusServiceUnavailable, "keys are not known yet\n"
	}
	x.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	x.short(status)
	_, _ = x.w.Write([]byte(text)) // the caller may have gone
	return status
}

func (x *pullExchange) isStopping() bool {
	select {
	case <-x.s.stopping:
		return true
	default:
		return false
	}
}

// route finds out who asks for which stream, and whether only to acknowledge. Nobody
// without a key learns which streams there are.
func (x *pullExchange) route() (ack bool, err error) {
	if x.query, err = url.ParseQuery(x.r.URL.RawQuery); err != nil {
		x.query = url.Values{} // the key may be in the header; parse says what is wrong
	}
	badQuery := err
	rest, found := strings.CutPrefix(x.r.URL.Path, "/v1/streams")
	if !found || rest != "" && rest[0] != '/' {
		return false, errPullStream.New(nil, "answer a request for %.80q", x.r.URL.Path)
	}
	if x.who, err = x.admit(); err != nil {
		return false, err
	}
	if badQuery != nil {
		return false, errPullRequest.New(badQuery, "read the parameters")
	}
	name, rest, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
	product := x.query.Get("product")
	if name == "" {
		name, x.compatible = product, true
	}
	ack = rest == "ack"
	if rest != "" && !ack || product != "" && product != name {
		return false, errPullStream.New(nil, "answer a request for %.80q with product %.80q", x.r.URL.Path, product)
	}
	if x.events = x.s.streams[name]; x.events == nil {
		return false, errPullStream.New(nil, "find the stream %.80q", name)
	}
	x.stream, x.label = name, name
	if len(x.who.Streams) > 0 && !slices.Contains(x.who.Streams, name) {
		return false, errPullForbidden.New(nil, "let %s fetch the stream %s", x.who.Name, name)
	}
	want := http.MethodGet
	if ack {
		want = http.MethodPost
	}
	if x.r.Method != want {
		x.w.Header().Set("Allow", want)
		return false, errPullMethod.New(nil, "answer a request with %.20q", x.r.Method)
	}
	return ack, nil
}

// admit finds out who asks.
func (x *pullExchange) admit() (Consumer, error) {
	if x.isStopping() {
		x.w.Header().Set("Connection", "close")
		return Consumer{}, errPullStopping.New(nil, "answer a request")
	}
	if !x.s.book.ready() {
		return Consumer{}, errPullLog.New(nil, "look up a key: they are not known yet")
	}
	key, err := x.key()
	if err == nil {
		who, found := x.s.book.find(key)
		switch {
		case !found:
			err = errPullUnknown.New(nil, "look up a key")
		case !x.s.book.valid(who, x.began):
			err = errPullExpired.New(nil, "admit %s", who.Name)
		default:
			return who, nil
		}
	}
	// Only those who fail are held up: a neighbour behind the same address is not.
	if wait := x.s.failures.Take(x.ip.String(), x.began); wait > 0 {
		x.retryAfter(wait)
		return Consumer{}, errPullRate.New(nil, "look up one more wrong key from this address")
	}
	return Consumer{}, err
}

func (x *pullExchange) key() (string, error) {
	header, query := x.r.Header.Values("Authorization"), x.query["key"]
	switch {
	case len(header)+len(query) == 0:
		return "", errPullKey.New(nil, "admit a request without a key")
	case len(header)+len(query) > 1:
		return "", errPullKey.New(nil, "admit a request with several keys")
	case len(query) == 1:
		return query[0], nil
	}
	scheme, key, _ := strings.Cut(header[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", errPullKey.New(nil, "read the header Authorization")
	}
	return strings.TrimSpace(key), nil
}

// parse reads the parameters. Source: formats F-30.
func (x *pullExchange) parse() error {
	if x.r.ContentLength != 0 && x.r.Method == http.MethodGet {
		x.w.Header().Set("Connection", "close")
		return errPullRequest.New(nil, "answer a GET with a body")
	}
	if x.r.Method == http.MethodPost && x.r.ContentLength != 0 {
		x.r.Body = http.MaxBytesReader(x.w, x.r.Body, 4<<10)
		if err := x.r.ParseForm(); err != nil {
			return errPullRequest.New(err, "read the form")
		}
		for name, values := range x.r.PostForm {
			x.query[name] = append(x.query[name], values...)
		}
	}
	ask := pullRequest{limit: x.s.cfg.Limits.Rows}
	if x.compatible {
		ask.limit, ask.array, ask.autoAck = 0, true, true
	}
	for _, name := range []string{"limit", "format", "ack", "auto_ack", "wait", "from"} {
		values := x.query[name]
		if len(values) == 0 {
			continue
		}
		value := values[0]
		good := len(values) == 1
		switch name {
		case "limit":
			n, err := strconv.Atoi(value)
			good = good && err == nil && n >= 0
			ask.limit = min(n, x.s.cfg.Limits.MaxRows)
		case "format":
			ask.array = value == "json" || value == "array"
			good = good && (ask.array || value == "ndjson")
		case "ack":
			at, err := ParsePlace(value)
			if err != nil {
				return errPullAck.New(err, "read ack")
			}
			ask.ack = &at
		case "auto_ack":
			on, err := strconv.ParseBool(value)
			good = good && err == nil
			ask.autoAck = on
		case "wait":
			n, err := strconv.ParseUint(value, 10, 31)
			good = good && err == nil
			ask.wait = min(time.Duration(n)*time.Second, x.s.cfg.Timeouts.Wait)
		case "from":
			_, err := time.Parse(time.RFC3339, value)
			good = good && (err == nil || value == "oldest" || value == "now")
			ask.from = value
		}
		if !good {
			return errPullRequest.New(nil, "read %s: use limit=0.., format=ndjson|json, ack=<cursor>, auto_ack=0|1, wait=<seconds>, from=oldest|now|<RFC 3339>, each once", name)
		}
	}
	if ask.limit == 0 && !ask.autoAck {
		return errPullRequest.New(nil, "read limit: use 1 or more, or auto_ack=1 with limit=0: its cursor comes too late to be acknowledged")
	}
	x.ask = ask
	return nil
}

// hold is a position that is held while a request is answered. Its methods may be
// called concurrently.
type hold struct {
	x  *pullExchange
	mu sync.Mutex
	e  topology.Entry
	Position
}

// start is the place where a consumer begins that has no position, or one that is gone.
func (x *pullExchange) start(ctx context.Context) (Place, error) {
	since := x.began.Add(-x.s.cfg.FirstWindow)
	switch x.ask.from {
	case "":
	case "oldest":
		since = time.Time{}
	case "now":
		_, _, next, err := x.events.Bounds(ctx, time.Time{})
		return Place{Sequence: next}, err
	default:
		since, _ = time.Parse(time.RFC3339, x.ask.from) // parse has seen to it
	}
	_, at, _, err := x.events.Bounds(ctx, since)
	return Place{Sequence: at}, err
}

// take moves the position to what the request acknowledges, and holds it unless it
// only does that. The two are one change: nobody can come in between.
func (x *pullExchange) take(ctx context.Context, keep bool) (*hold, error) {
	for until := x.began.Add(holdGrace); ; {
		h, err := x.tryTake(ctx, keep)
		if h != nil || err != nil {
			return h, err
		}
		if time.Now().After(until) {
			return nil, errPullBusy.New(nil, "answer a request of %s for %s", x.who.Name, x.stream)
		}
		select {
		case <-ctx.Done():
			return nil, errPullBusy.New(context.Cause(ctx), "answer a request of %s for %s", x.who.Name, x.stream)
		case <-time.After(holdLook):
		}
	}
}

// tryTake returns nil when somebody else holds the position or was faster.
func (x *pullExchange) tryTake(ctx context.Context, keep bool) (*hold, error) {
	e, err := x.s.consumers.register.Get(ctx, x.s.consumers.positionPath(x.who.Name, x.stream))
	if err != nil {
		return nil, errPullLog.New(err, "look up how far %s is", x.who.Name)
	}
	h := &hold{x: x, e: e}
	if e.Value != nil {
		if err := json.Unmarshal(e.Value, &h.Position); err != nil {
			return nil, errPullLog.New(err, "read how far %s is", x.who.Name)
		}
	}
	if h.Holder != "" && !x.s.book.expired(e, time.Now()) {
		return nil, nil
	}
	if e.Value == nil {
		at, err := x.start(ctx)
		if err != nil {
			return nil, errPullLog.New(err, "look up where %s begins", x.who.Name)
		}
		h.Acked, h.Served, h.Last = at, at, at
	}
	if x.ask.ack != nil {
		if err := h.acknowledge(ctx, *x.ask.ack); err != nil {
			return nil, err
		}
	}
	h.Holder = ""
	if keep {
		var id [8]byte
		_, _ = rand.Read(id[:]) // never fails (crypto/rand)
		h.Holder = hex.EncodeToString(id[:])
	}
	h.Seen, h.Address, h.Subjects = x.began.UTC().Truncate(time.Millisecond), x.ip.String(), x.events.Subjects()
	switch err = h.store(ctx); {
	case errors.Is(err, topology.ErrEntryMoved):
		return nil, nil
	case err != nil:
		return nil, errPullLog.New(err, "note how far %s is", x.who.Name)
	}
	return h, nil
}

// acknowledge moves the position to a place that was served, and never back in the same
// log.
func (h *hold) acknowledge(ctx context.Context, at Place) error {
	if !at.Before(h.Last) && !h.Served.Before(at) {
		h.Acked, h.Last, h.Rewound = later(h.Acked, at), at, nil
		return nil
	}
	first, _, next, err := h.x.events.Bounds(ctx, time.Time{})
	if err != nil {
		return errPullLog.New(err, "look up the bounds of the log")
	}
	anew := h.Acked.Sequence > next
	gone := anew || h.Acked.Sequence < first && !at.Before(h.Last)
	switch {
	case gone && at.Sequence <= first && at.Index == 0: // the oldest that is kept, after a 410 that named it
		h.x.gap(ctx, h.Acked, at)
		h.restart(at)
		return nil
	case h.Rewound != nil && !h.Rewound.Before(at):
		return nil // of before an operator moved the position, which is newer
	case at.Before(h.Last):
		return errPullAck.New(nil, "acknowledge %s: %s and what comes before is acknowledged already", at, h.Last)
	}
	return errPullAck.New(nil, "acknowledge %s: only what comes before %s was served for this key and stream", at, h.Served)
}

// restart begins at a place as if nothing had been served before.
func (p *Position) restart(at Place) {
	p.Acked, p.Served, p.Last, p.Rewound = at, at, at, nil
}

// gap tells that a consumer goes on behind events that the log does not have.
func (x *pullExchange) gap(ctx context.Context, from, to Place) {
	x.w.Header().Set("Penstock-Gap", from.String()+"-"+to.String())
	pullGaps.WithLabelValues(x.s.name, x.stream, x.who.Name).Inc()
	x.s.log.WarnContext(ctx, "a consumer goes on behind events that it has not got and that the log does not have any more",
		"consumer", x.who.Name, "stream", x.stream, "from", from.String(), "to", to.String())
}

// store writes the position. The caller holds mu, or is alone.
func (h *hold) store(ctx context.Context) error {
	value, _ := json.Marshal(h.Position) // cannot fail
	e, err := h.x.s.consumers.register.Put(ctx, h.e, value)
	if err == nil {
		h.e = e
	}
	return err
}

// ours tells whether the position is held all the same when it has moved: by a change
// of our own whose answer got lost, or nobody waited for.
func (h *hold) ours(ctx context.Context, holder string) bool {
	e, err := h.x.s.consumers.register.Get(ctx, h.e.Path)
	var p Position
	if err != nil || json.Unmarshal(e.Value, &p) != nil || holder == "" || p.Holder != holder {
		return false
	}
	h.e = e
	return true
}

// change writes what f changes, as long as the position is held.
func (h *hold) change(ctx context.Context, f func(*Position)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.Position
	f(&h.Position)
	err := h.store(ctx)
	if errors.Is(err, topology.ErrEntryMoved) && h.ours(ctx, before.Holder) {
		err = h.store(ctx)
	}
	if err == nil {
		return nil
	}
	h.Position = before
	if errors.Is(err, topology.ErrEntryMoved) {
		return errPullBusy.New(err, "go on answering %s: its position was taken or moved by somebody else", h.x.who.Name)
	}
	return errPullLog.New(err, "note how far %s is", h.x.who.Name)
}

// keep shows that the position is held until ctx ends, and ends ctx when it is not any
// more, or the key is not good any more.
func (h *hold) keep(ctx context.Context, lose context.CancelCauseFunc) {
	tick := time.NewTicker(holdRenew)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if !h.x.s.book.valid(h.x.who, now) {
				lose(errPullUnknown.New(nil, "go on answering %s", h.x.who.Name))
				return
			}
			if err := h.change(ctx, func(p *Position) { p.Beat++ }); errors.Is(err, errPullBusy) {
				lose(err)
				return
			}
		}
	}
}

// release gives the position back, changed by f, also when the consumer has gone.
func (h *hold) release(ctx context.Context, f func(*Position)) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return h.change(ctx, func(p *Position) {
		p.Holder = ""
		f(p)
	})
}

// acknowledge answers a request that does no more.
func (x *pullExchange) acknowledge() int {
	if x.ask.ack == nil {
		return x.refuse(errPullRequest.New(nil, "acknowledge without ack"))
	}
	h, err := x.take(x.r.Context(), false)
	if err != nil {
		return x.refuse(err)
	}
	x.w.Header().Set("Penstock-Cursor", h.Acked.String())
	x.short(http.StatusNoContent)
	return http.StatusNoContent
}

// short sends the header of an answer that is written at once. Who does not read it is
// cut; what sends pages sees to that itself.
func (x *pullExchange) short(status int) {
	_ = http.NewResponseController(x.w).SetWriteDeadline(time.Now().Add(x.s.cfg.Timeouts.Stall)) // HTTP/1 and HTTP/2 have it
	x.w.WriteHeader(status)
}

// page answers with rows, at once or as soon as there are some.
func (x *pullExchange) page() int {
	// The deadline of the request's header would end a request that waits.
	_ = http.NewResponseController(x.w).SetReadDeadline(time.Time{})
	defer x.giveRoom()
	ctx, lose := context.WithCancelCause(x.r.Context())
	h, err := x.take(ctx, true)
	if err != nil {
		lose(nil)
		return x.refuse(err)
	}
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		h.keep(ctx, lose)
	}()
	at := func(*Position) {} // what the answer changes
	defer func() {
		lose(nil)
		<-kept
		if err := h.release(ctx, at); err != nil {
			x.s.log.WarnContext(ctx, "a position could not be given back; it is free again in seconds", "consumer", x.who.Name, "stream", x.stream, "err", err)
		}
	}()
	x.out = x.newWriter()
	defer x.out.close()
	end, more, err := x.collect(ctx, h)
	if cause := context.Cause(ctx); err != nil && cause != nil && fault.CodeOf(cause) != "unknown" {
		err = cause
	}
	if err == nil && !x.s.book.valid(x.who, time.Now()) {
		err = errPullUnknown.New(nil, "answer %s", x.who.Name)
	}
	switch {
	case err != nil && x.begun:
		panic(http.ErrAbortHandler) // at gives the position back as it was
	case err != nil:
		return x.refuseRead(ctx, err)
	case x.rows == 0:
		// Nothing lies between, so that a stream in which little happens does not fall
		// behind what the log keeps.
		at = func(p *Position) { p.Acked, p.Served = end, later(p.Served, end) }
		return x.nothing(end, more)
	}
	if !x.begun {
		// Known before the consumer can acknowledge it, at whatever replica.
		if err := h.change(ctx, func(p *Position) { p.Served = later(p.Served, end) }); err != nil {
			return x.refuse(err)
		}
	}
	if err := x.send(end, more); err != nil {
		panic(http.ErrAbortHandler)
	}
	pullRows.WithLabelValues(x.s.name, x.stream, x.who.Name).Add(float64(x.rows))
	if x.ask.autoAck {
		at = func(p *Position) { p.Acked, p.Served, p.Last, p.Rewound = end, later(p.Served, end), end, nil }
	}
	return http.StatusOK
}

func later(p, q Place) Place {
	if p.Before(q) {
		return q
	}
	return p
}

// collect reads rows until there are some, time is up or penstock stops. More tells
// whether there are further ones.
func (x *pullExchange) collect(ctx context.Context, h *hold) (end Place, more bool, err error) {
	until := time.Now().Add(x.ask.wait)
	h.mu.Lock()
	end = h.Acked
	h.mu.Unlock()
	for gone := false; ; {
		if err := x.takeRoom(ctx); err != nil {
			return end, false, err
		}
		from := end
		end, more, err = x.read(ctx, from)
		if errors.Is(err, ErrLogTrimmed) && x.ask.from != "" && !gone && !x.begun {
			gone = true
			x.rows = 0
			x.out.reset()
			if end, err = x.start(ctx); err != nil {
				return end, false, err
			}
			if end.Before(from) { // the log was made anew: what it had served says nothing
				if err := h.change(ctx, func(p *Position) { p.restart(end) }); err != nil {
					return end, false, err
				}
			}
			x.gap(ctx, from, end)
			continue
		}
		if err != nil || x.rows > 0 {
			return end, more, err
		}
		left := time.Until(until)
		if left <= 0 || x.isStopping() {
			return end, more, nil
		}
		if more {
			continue // the time for reading was up before there was a row
		}
		x.giveRoom() // who waits needs none
		if err := x.await(ctx, end, left); err != nil {
			return end, false, err
		}
	}
}

// takeRoom makes room for a page. Those who were woken by the same frame take turns.
func (x *pullExchange) takeRoom(ctx context.Context) error {
	if x.room {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, x.s.cfg.Timeouts.Read)
	defer cancel()
	if err := x.s.room.Acquire(wait, int64(x.s.cfg.Limits.Page)); err != nil {
		return errPullFull.New(err, "make room for a page")
	}
	x.room = true
	return nil
}

func (x *pullExchange) giveRoom() {
	if x.room {
		x.s.room.Release(int64(x.s.cfg.Limits.Page))
		x.room = false
	}
}

// await waits for something to be stored behind a place, as long as there is time.
func (x *pullExchange) await(ctx context.Context, at Place, left time.Duration) error {
	wait, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-x.s.stopping:
			cancel()
		case <-stop:
		}
	}()
	err := x.events.Wait(wait, at)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if wait.Err() != nil {
		return nil
	}
	return err
}

// read reads rows from a place on into the answer, as many as it may have.
func (x *pullExchange) read(ctx context.Context, from Place) (end Place, more bool, err error) {
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	enough := time.AfterFunc(x.s.cfg.Timeouts.Read, cancel)
	defer enough.Stop()
	var writeErr error
	end, err = x.events.Read(within, from, func(_ Place, e *Event) bool {
		if x.ask.limit > 0 && x.rows == x.ask.limit {
			more = true
			return false
		}
		var full bool
		if full, writeErr = x.out.row(e); full || writeErr != nil {
			more = true
			return false
		}
		if x.rows++; x.ask.limit == 0 {
			enough.Stop() // from now on the consumer sees that it goes on
		}
		return true
	})
	switch {
	case writeErr != nil:
		return end, more, writeErr
	case x.rows > 0 && !from.Before(end): // it is not known how far they go
		return end, more, err
	case err != nil && within.Err() != nil && ctx.Err() == nil && !errors.Is(err, ErrLogTrimmed):
		return end, true, nil // what was read until time was up
	}
	return end, more, err
}

// nothing answers that there are no rows.
func (x *pullExchange) nothing(end Place, more bool) int {
	x.cursor(x.w.Header(), end, more)
	if x.compatible { // whose consumers know no 204
		x.w.Header().Set("Content-Type", "application/json")
		x.short(http.StatusOK)
		_, _ = x.w.Write([]byte("[]\n")) // the consumer may have gone
		return http.StatusOK
	}
	x.short(http.StatusNoContent)
	return http.StatusNoContent
}

func (x *pullExchange) cursor(h http.Header, end Place, more bool) {
	h.Set("Penstock-Cursor", end.String())
	h.Set("Penstock-More", strconv.FormatBool(more))
}

// refuseRead answers a request for which the log could not be read.
func (x *pullExchange) refuseRead(ctx context.Context, err error) int {
	var known *fault.Error
	switch {
	case errors.Is(err, ErrLogTrimmed):
		first, _, _, boundsErr := x.events.Bounds(ctx, time.Time{})
		if boundsErr != nil {
			return x.refuse(errPullLog.New(boundsErr, "look up the bounds of the log"))
		}
		oldest := Place{Sequence: first}
		return x.refuseWith(errPullTrimmed.New(err, "answer %s", x.who.Name), &oldest)
	case errors.As(err, &known) && pullStatuses[known.Kind] != 0:
		return x.refuse(err)
	}
	return x.refuse(errPullLog.New(err, "read the log"))
}

// pullError is the answer to a request that is refused.
type pullError struct {
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Fix     string `json:"fix"`
	} `json:"error"`
	// Oldest is the cursor of the oldest event that is kept.
	Oldest *Place `json:"oldest,omitempty"`
}

func (x *pullExchange) retryAfter(d time.Duration) {
	x.w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(d.Seconds())))))
}

// later answers a request that came too early.
func (x *pullExchange) later(err error, wait time.Duration) int {
	x.retryAfter(wait)
	return x.refuse(err)
}

func (x *pullExchange) refuse(err error) int { return x.refuseWith(err, nil) }

func (x *pullExchange) refuseWith(err error, oldest *Place) int {
	answer := pullError{Oldest: oldest}
	answer.Error.Code, answer.Error.Message = fault.CodeOf(err), "an error within penstock"
	status := http.StatusServiceUnavailable
	var f *fault.Error
	if errors.As(err, &f) {
		answer.Error.Message, answer.Error.Fix = f.Doing, f.Kind.Fix
		if s := pullStatuses[f.Kind]; s != 0 {
			status = s
		}
	}
	h := x.w.Header()
	switch status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="penstock"`) // Source: RFC 6750, section 3
	case http.StatusServiceUnavailable, http.StatusConflict:
		if h.Get("Retry-After") == "" {
			x.retryAfter(busyAfter)
		}
	}
	if status >= 500 && x.r.Context().Err() == nil {
		x.s.log.WarnContext(x.r.Context(), "a request was not answered", "consumer", x.who.Name, "stream", x.stream, "err", err)
	}
	h.Set("Content-Type", "application/json")
	text, _ := json.Marshal(answer) // cannot fail
	x.begun = true
	x.short(status)
	_, _ = x.w.Write(append(text, '\n')) // the consumer may have gone
	return status
}
