package sources

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/topology"
)

func init() {
	define("censornet", "Asks the webhook of Censornet log streaming for the rows of one or more products.", defaultCensornet, openCensornet)
}

var (
	errHookKey = fault.Define("ingest.webhook_denied", fault.Stop,
		"check key, products and the licence of the product; make a new key under Products > Log Streaming")
	errHookBusy = fault.Define("ingest.webhook_throttled", fault.Retry,
		"none needed if it passes; else use a longer period, and make sure that nobody else uses the key")
	errHookDown = fault.Define("ingest.webhook_unavailable", fault.Retry,
		"check the network, the proxy and url; after a day without an answer rows are lost at the far side")
	errHookRefused = fault.Define("ingest.webhook_refused", fault.Retry,
		"check url: it did not answer as a webhook does")
	errHookCut = fault.Define("ingest.webhook_answer_cut", fault.Retry,
		"none needed: what came was stored; the rest of that answer is lost, since the far side does not give it again")
	errHookShared = fault.Define("ingest.webhook_shared", fault.Stop,
		"use each key and product in one source only, and make a key of its own for every other reader: a webhook has one cursor")
	errHookBody = fault.Define("ingest.webhook_unreadable", fault.Reject,
		"look at the bytes in quarantine: the answer was no JSON; check url, and that no proxy answers in its place")
)

// KeyIn says where a webhook's key is put.
type KeyIn string

// The places.
const (
	KeyInQuery  KeyIn = "query"
	KeyInHeader KeyIn = "header"
)

// Values implements config.Enum.
func (KeyIn) Values() []string { return []string{string(KeyInQuery), string(KeyInHeader)} }

// CensornetConfig configures the censornet source.
type CensornetConfig struct {
	PollConfig
	// URL of the webhook as the vendor's page shows it, without product and key.
	// Required.
	URL string `yaml:"url"`
	// Key is the secret of the webhook. Nobody else may use it: a webhook has one
	// cursor, which moves with each call. Required.
	Key config.Secret `yaml:"key"`
	// KeyIn puts the key into the query, as the vendor describes it, or into a header.
	KeyIn KeyIn `yaml:"key_in"`
	// KeyName of the query parameter or the header.
	KeyName string `yaml:"key_name"`
	// Products to ask for, each by itself: web, email, app, casb, mfa, or others that
	// the vendor may add. Required.
	Products []string `yaml:"products"`
	// MaxRow bounds one row. A larger one goes to quarantine. Unit: bytes, 64 KiB to
	// 8 MiB.
	MaxRow config.Bytes `yaml:"max_row"`
	// Stall ends an answer of which nothing has come for so long. Unit: duration.
	Stall time.Duration `yaml:"stall"`
	// AlarmAfter is how long the webhook may give no answer before that is logged as
	// an error: after a day the far side forgets. Unit: duration.
	AlarmAfter time.Duration `yaml:"alarm_after"`
	// CAFile names a file of certificates, as PEM, to trust besides those of the
	// system.
	CAFile string `yaml:"ca_file"`
}

func defaultCensornet() CensornetConfig {
	return CensornetConfig{
		// Source: features CEN-16.
		PollConfig: defaultPoll(5 * time.Minute), KeyIn: KeyInQuery, KeyName: "key", MaxRow: 4 * config.MiB,
		Stall: time.Minute, AlarmAfter: 12 * time.Hour,
	}
}

var (
	productForm = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	keyNameForm = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$|^[A-Za-z0-9_-]{1,64}$`)
)

// Validate reports every problem, each with the key to change.
func (c CensornetConfig) Validate() error {
	var p config.Problems
	c.check(&p)
	u, err := url.Parse(c.URL)
	p.Need(err == nil && (u.Scheme == "https" || u.Scheme == "http" && loopback(u.Hostname())) && u.Host != "" && u.User == nil && u.Fragment == "",
		"url", "use the https address of the webhook; the key would be readable on the way otherwise")
	p.Need(!c.Key.IsZero(), "key", "set the key of the webhook, e.g. ${file:/run/secrets/censornet}")
	p.Need(c.KeyIn == KeyInQuery || c.KeyIn == KeyInHeader, "key_in", "use query or header")
	p.Need(keyNameForm.MatchString(c.KeyName), "key_name", "use letters, digits, - and _, e.g. key or X-Api-Key")
	p.Need(len(c.Products) > 0, "products", "name at least one, e.g. [web, email]")
	for i, product := range c.Products {
		p.Need(productForm.MatchString(product) && !slices.Contains(c.Products[:i], product), "products["+strconv.Itoa(i)+"]",
			"name each product once: web, email, app, casb, mfa")
	}
	p.Need(c.MaxRow >= 64*config.KiB && c.MaxRow <= 8*config.MiB, "max_row", "use 64 KiB to 8 MiB")
	p.Need(c.Stall >= time.Second && c.Stall <= 10*time.Minute, "stall", "use 1s to 10m")
	p.Need(c.AlarmAfter >= time.Minute && c.AlarmAfter <= 24*time.Hour, "alarm_after", "use 1m to 24h, e.g. 12h")
	return p.Err()
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

const (
	hookCall = "censornet:webhook"
	// hookForgets is when the far side resets its cursor, to hookAfter before the
	// call; hookFirst is what the first call gives. Source: features CEN-14, CEN-17.
	hookForgets = 24 * time.Hour
	hookAfter   = 5 * time.Minute
	// hookLongest bounds one call, however steadily the answer comes.
	hookLongest = 6 * time.Hour
	// hookConnect bounds the wait for the head of the answer.
	hookConnect = 2 * time.Minute
)

// webhook asks for rows, a shard a product. The far side holds the cursor and moves
// it when it is asked: an answer comes once. So rows are stored while they come, and
// what an answer brought no more is noted as a gap, never passed over.
//
// Source: features CEN-9 to CEN-20, formats F-4.
type webhook struct {
	cfg    CensornetConfig
	deps   Deps
	client *http.Client
	who    string // digest of address and key

	mu      sync.Mutex
	alarmed map[string]bool
}

// hookCursor is what is known of the far side's cursor.
type hookCursor struct {
	// Source that uses the key.
	Source string `json:"source"`
	// Calls so far.
	Calls uint64 `json:"calls"`
	// Called is when the last one began that the far side may have seen.
	Called time.Time `json:"called"`
	// Answered is the same of the last one whose answer was stored whole: all rows
	// before it have been asked for.
	Answered time.Time `json:"answered"`
	// Open: the last call has no end yet.
	Open bool `json:"open,omitempty"`
}

func openCensornet(_ context.Context, cfg CensornetConfig, deps Deps) (Source, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // nobody replaces it
	transport.ResponseHeaderTimeout = hookConnect
	transport.MaxIdleConnsPerHost = 4
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("source %s: read ca_file: %w", deps.Name, err)
		}
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("source %s: ca_file %s holds no certificate", deps.Name, cfg.CAFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	w := &webhook{
		cfg: cfg, deps: deps, alarmed: map[string]bool{},
		who: messages.NewID([]byte(cfg.URL), []byte(cfg.Key.Reveal())).String(),
		client: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // the key goes nowhere else
		}},
	}
	cfg.who = w.who
	return openPoller(deps, cfg.PollConfig, w)
}

// plan implements poller.
func (w *webhook) plan(context.Context, *caller) (plan, error) {
	var p plan
	for _, product := range w.cfg.Products {
		p.shards = append(p.shards, shard{name: product})
	}
	return p, nil
}

// cursor is the one of a product and key, whatever source has it: two sources with
// the same would take each other's rows. Source: features CEN-10.
func (w *webhook) cursor(ctx context.Context, product string) (*position, error) {
	c, err := w.deps.Bus.Cursor(ctx, "censornet", product+" "+w.who)
	if err != nil {
		return nil, err
	}
	return &position{cursor: c}, nil
}

// pull implements poller: one call.
func (w *webhook) pull(ctx context.Context, p *pull) error {
	pos, err := w.cursor(ctx, p.shard.name)
	if err != nil {
		return err
	}
	var at hookCursor
	known := pos.read(&at)
	now := time.Now().UTC()
	if known && at.Source != w.deps.Name && now.Sub(at.Called) < 3*w.cfg.Period {
		return errHookShared.New(nil, "ask for %s: the source %s uses the same key", p.shard.name, at.Source)
	}
	at.Source = w.deps.Name
	if at.Open {
		if err := w.lost(ctx, p, at, "the process ended before the answer was stored"); err != nil {
			return err
		}
	}
	w.alarm(ctx, p, at, now)
	before := at
	at.Calls, at.Called, at.Open = at.Calls+1, now, true
	// From here on the far side's cursor may have moved.
	if err := pos.move(ctx, at); err != nil {
		return err
	}
	a := &answer{w: w, p: p, at: at}
	callErr := p.call(ctx, target{api: hookCall, limit: hookCall + " " + p.shard.name, rate: 1, timeout: hookLongest}, a.ask)
	err = cmp.Or(callErr, a.err)
	at.Open = false
	switch {
	case err == nil:
		if known && !before.Called.IsZero() && now.Sub(before.Called) > hookForgets {
			p.gap(ctx, before.Called, now.Add(-hookAfter), "nobody has asked for more than a day, and the far side has forgotten its cursor")
		}
		if a.unanswered {
			if err = w.lost(ctx, p, at, "a call got no answer, the next one did"); err != nil {
				return err
			}
		}
		at.Answered = now
		p.reached(now)
	case errors.Is(err, topology.ErrCursorMoved):
		return err
	case a.mayHaveMoved:
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
		lostErr := w.lost(within, p, at, "the answer broke off")
		cancel()
		if lostErr != nil {
			return lostErr // Open stays set: the next pull notes it
		}
	default:
		at.Called = before.Called // it was not seen
	}
	// What has been stored must not be forgotten because the source is to end.
	return cmp.Or(err, pos.move(context.WithoutCancel(ctx), at), nil)
}

// lost notes an answer of which rows are missing: in the log, the metrics and the
// ledger. Source: features CEN-19.
func (w *webhook) lost(ctx context.Context, p *pull, at hookCursor, why string) error {
	from := at.Answered
	if from.IsZero() {
		from = at.Called.Add(-2 * hookAfter)
	}
	p.gap(ctx, from, at.Called, why)
	out := w.deps.NewOutbox()
	origin := &messages.Origin{
		Pull:   messages.NewPull("api", w.deps.Name, hookCall, p.shard.name, "lost", strconv.FormatUint(at.Calls, 10), at.Called.Format(time.RFC3339Nano)),
		Source: w.deps.Name, Api: hookCall, Resource: p.shard.name, Account: w.cfg.Account, Created: at.Called.UnixNano(), Received: time.Now().UnixNano(),
	}
	out.Fact(&messages.Fact{Kind: &messages.Fact_Announced{Announced: &messages.Announced{Origin: origin, As: messages.Announced_AS_EVENTS}}})
	out.Fact(&messages.Fact{Kind: &messages.Fact_Fetched{Fetched: &messages.Fetched{
		Pull: origin.GetPull(), Source: w.deps.Name, End: messages.Fetched_END_TRUNCATED, Code: errHookCut.Code,
	}}})
	return out.Flush(ctx)
}

// alarm says once that there was no answer for long. Source: features CEN-5.
func (w *webhook) alarm(ctx context.Context, p *pull, at hookCursor, now time.Time) {
	since := at.Answered
	w.mu.Lock()
	long := !since.IsZero() && now.Sub(since) > w.cfg.AlarmAfter
	first := long && !w.alarmed[p.shard.name]
	w.alarmed[p.shard.name] = long
	w.mu.Unlock()
	if first {
		p.log.ErrorContext(ctx, "the webhook has given no answer for long; after a day it forgets where it was",
			"since", since, "hours", now.Sub(since).Hours())
	}
}

// answer is one call and what comes of it.
type answer struct {
	w  *webhook
	p  *pull
	at hookCursor
	// mayHaveMoved: the far side has seen a request, so its cursor may have moved;
	// unanswered: one of them got no answer.
	mayHaveMoved, unanswered bool
	// err is what happened to an answer that had begun: not to be asked for again.
	err    error
	chunks int
}

// ask makes the call and stores what comes. Its error may be tried again.
func (a *answer) ask(work context.Context) error {
	ctx, cancel := context.WithCancelCause(work)
	defer cancel(nil)
	wrote := false
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(i httptrace.WroteRequestInfo) { wrote = i.Err == nil }})
	response, err := a.w.client.Do(a.request(ctx))
	if err != nil {
		if wrote {
			a.mayHaveMoved, a.unanswered = true, true
		}
		return errHookDown.New(withoutURL(err), "ask for %s", a.p.shard.name)
	}
	defer func() { _ = response.Body.Close() }()
	if err := a.judge(response); err != nil {
		return err
	}
	if response.StatusCode == http.StatusNoContent {
		return nil
	}
	a.mayHaveMoved = true
	stall := time.AfterFunc(a.w.cfg.Stall, func() { cancel(errHookCut.New(nil, "nothing has come for %v", a.w.cfg.Stall)) })
	defer stall.Stop()
	// What has come is stored in work: also once the answer has stalled.
	err = a.read(work, &stallReader{r: response.Body, timer: stall, stall: a.w.cfg.Stall})
	if err != nil {
		if because := context.Cause(ctx); because != nil {
			err = because
		}
		a.err = err
	}
	return nil
}

// request makes the request, which holds the key.
func (a *answer) request(ctx context.Context) *http.Request {
	u, _ := url.Parse(a.w.cfg.URL) // Validate has looked
	q := u.Query()
	q.Set("product", a.p.shard.name)
	if a.w.cfg.KeyIn == KeyInQuery {
		q.Set(a.w.cfg.KeyName, a.w.cfg.Key.Reveal())
	}
	u.RawQuery = q.Encode()
	r := (&http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: http.Header{}}).WithContext(ctx)
	r.Header.Set("Accept", "application/json, application/x-ndjson")
	r.Header.Set("User-Agent", "penstock")
	if a.w.cfg.KeyIn == KeyInHeader {
		r.Header.Set(a.w.cfg.KeyName, a.w.cfg.Key.Reveal())
	}
	return r
}

// withoutURL takes the address, and the key in it, out of an error.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// hookStatus is the status of an answer that is an error.
type hookStatus struct {
	code int
	wait time.Duration
}

func (s *hookStatus) Error() string {
	return "the far side answered with status " + strconv.Itoa(s.code)
}
func (s *hookStatus) RetryAfter() time.Duration { return s.wait }

// judge looks at the status. Bodies of errors are not read: they may hold anything.
func (a *answer) judge(r *http.Response) error {
	status := &hookStatus{code: r.StatusCode, wait: readRetryAfter(r.Header.Get("Retry-After"), time.Now())}
	doing := "ask for " + a.p.shard.name
	switch code := r.StatusCode; {
	case code == http.StatusOK || code == http.StatusNoContent:
		return nil
	case code == http.StatusUnauthorized || code == http.StatusForbidden || code == http.StatusPaymentRequired: // Source: features CEN-7
		return errHookKey.New(status, "%s", doing)
	case code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable:
		return errHookBusy.New(status, "%s", doing)
	case code >= http.StatusInternalServerError:
		return errHookDown.New(status, "%s", doing)
	}
	return errHookRefused.New(status, "%s", doing)
}

// stallReader has a timer run while it waits for bytes, and not while what came is
// stored.
type stallReader struct {
	r     io.Reader
	timer *time.Timer
	stall time.Duration
}

func (s *stallReader) Read(b []byte) (int, error) {
	s.timer.Reset(s.stall)
	defer s.timer.Stop()
	return s.r.Read(b)
}

// read stores the rows of an answer while they come: an array, one object, or
// objects one after the other. Source: features CEN-18, CEN-20.
func (a *answer) read(ctx context.Context, body io.Reader) error {
	in := bufio.NewReaderSize(body, 64<<10)
	kind := framing.Values
	if first := firstByte(in); first == '[' {
		kind = framing.Array
	}
	split := framing.New(framing.Framing{Kind: kind}, in, framing.Limits{Record: int64(a.w.cfg.MaxRow), Keep: maxPayload})
	pg := a.page()
	size, bads, cut := 0, 0, false
	var surplus []byte // of bad spans beyond the first hundred
	flush := func() error {
		if err := a.p.store(ctx, pg); err != nil {
			return err
		}
		a.chunks++
		pg, size = a.page(), 0
		return nil
	}
	end := func(err error) error {
		if len(surplus) > 0 {
			pg.bad = append(pg.bad, badPart{bytes: surplus, err: errHookBody.New(nil, "read the answer for %s: %d parts of it are no rows", a.p.shard.name, bads)})
		}
		if err == nil && cut {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			err = errHookCut.New(withoutURL(err), "read the answer for %s", a.p.shard.name)
		}
		return cmp.Or(flush(), err)
	}
	for {
		rec, err := split.Next()
		var bad *framing.Bad
		switch {
		case err == nil:
			if size+len(rec) > messages.TargetBody && size > 0 {
				if err := flush(); err != nil {
					return err
				}
			}
			pg.records = append(pg.records, bytes.Clone(rec))
			size += len(rec)
		case errors.As(err, &bad):
			cut = cut || bad.Kind == framing.ErrTruncated
			if bads++; bads > maxBad {
				surplus = append(surplus, bad.Bytes[:min(len(bad.Bytes), maxPayload-len(surplus))]...)
				continue
			}
			// The raw bytes are kept. Source: features CEN-19.
			pg.bad = append(pg.bad, badPart{bytes: bad.Bytes, err: bad.Kind.New(nil, "read the answer for %s: %s, %d bytes at offset %d",
				a.p.shard.name, bad.Reason, bad.Length, bad.Offset)})
			size += len(bad.Bytes)
		case errors.Is(err, io.EOF):
			return end(nil)
		default:
			return end(err)
		}
		if len(pg.records)+len(pg.bad) >= messages.TargetCount || size > messages.TargetBody {
			if err := flush(); err != nil {
				return err
			}
		}
	}
}

// page begins a stretch of the answer.
func (a *answer) page() *page {
	format := a.w.deps.Format
	if format == "" || format == "auto" {
		format = "censornet"
	}
	return &page{
		api: hookCall, resource: a.p.shard.name, format: format, created: a.at.Called, unrepeatable: true,
		salt: a.w.who[:8] + " " + strconv.FormatUint(a.at.Calls, 10) + " " + strconv.Itoa(a.chunks),
	}
}

// firstByte peeks at the first byte that is no space nor byte order mark, 0 for none.
func firstByte(in *bufio.Reader) byte {
	for n := 1; n <= 1024; n++ {
		head, err := in.Peek(n)
		if rest := strings.TrimLeft(strings.TrimPrefix(string(head), "\xef\xbb\xbf"), " \t\r\n"); rest != "" && !strings.HasPrefix("\xef\xbb\xbf", rest) {
			return rest[0]
		}
		if err != nil {
			return 0
		}
	}
	return 0
}
