package console

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/alexedwards/argon2id"
	"github.com/alexedwards/scs/v2"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/httpserver"
	"github.com/penstock/penstock/topology"
)

var (
	errForged = fault.Define("console.forged", fault.Reject,
		"load the page again and repeat what you did: the request did not come from a page of this console, or the page is older than your login")
	errLogin = fault.Define("console.login_refused", fault.Reject,
		"check name and password")
	errLimited = fault.Define("console.login_limited", fault.Retry,
		"wait a minute: too many logins were tried")
	errBusy = fault.Define("console.busy", fault.Retry,
		"wait a moment: too many pages are being made at one time")
)

// gate lets people in.
type gate struct {
	cfg      Config
	log      *slog.Logger
	proxies  []netip.Prefix
	sessions *scs.SessionManager
	store    *sessionStore
	users    map[string]User
	// decoy is compared with where there is no such user, which takes as long.
	decoy string
	// hashing bounds the memory that logins use.
	hashing chan struct{}
	// Bounds on tries, by where they come from and by whom they name.
	byAddress, byName *httpserver.Callers
	oidc              *provider
}

// Tries of logins: from one address 10 at once, and then one every 6 seconds. For one
// name more, so that a stranger cannot keep its owner out.
var (
	tries      = httpserver.Rate{PerSecond: 1.0 / 6, Burst: 10}
	triesNamed = httpserver.Rate{PerSecond: 1, Burst: 60}
)

// Bounds on what a login sends, and on what is hashed at one time.
const (
	maxPassword = 1024
	maxHashing  = 2
)

// Keys of a session.
const (
	keyName = "name"
	keyRole = "role"
	keyCSRF = "csrf"
)

func newGate(cfg Config, key [32]byte, log *slog.Logger) *gate {
	g := &gate{
		cfg: cfg, log: log, proxies: httpserver.Networks(cfg.TrustedProxies), users: map[string]User{}, store: &sessionStore{},
		hashing: make(chan struct{}, maxHashing), byAddress: httpserver.NewCallers(tries), byName: httpserver.NewCallers(triesNamed),
	}
	// Not scs.New: that begins to clean a store of its own, and does not end.
	g.sessions = &scs.SessionManager{
		Store: g.store, Codec: scs.GobCodec{}, HashTokenInStore: true, IdleTimeout: cfg.Session.Idle, Lifetime: cfg.Session.Lifetime,
	}
	for _, u := range cfg.Users {
		g.users[u.Name] = u
	}
	if len(cfg.Users) > 0 {
		// As costly as the real ones. Nobody knows its password.
		params, _, _, err := argon2id.DecodeHash(cfg.Users[0].PasswordHash.Reveal())
		if err == nil {
			g.decoy, _ = argon2id.CreateHash(base64.RawStdEncoding.EncodeToString(key[:]), params)
		}
	}
	if cfg.OIDC.Issuer != "" {
		g.oidc = newProvider(cfg.OIDC, key)
	}
	return g
}

// sessionStore keeps sessions in memory, as many as maxSessions.
type sessionStore struct {
	mu  sync.Mutex
	all map[string]stored
}

type stored struct {
	data   []byte
	expiry time.Time
}

const maxSessions = 4096

func (s *sessionStore) Find(token string) ([]byte, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.all[token]
	if !ok || !time.Now().Before(e.expiry) {
		delete(s.all, token)
		return nil, false, nil
	}
	return e.data, true, nil
}

func (s *sessionStore) Commit(token string, data []byte, expiry time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[string]stored{}
	}
	if _, known := s.all[token]; !known && len(s.all) >= maxSessions {
		s.makeRoom()
	}
	s.all[token] = stored{data, expiry}
	return nil
}

// makeRoom forgets the sessions that have expired, or else the one that expires first.
func (s *sessionStore) makeRoom() {
	now, first := time.Now(), ""
	for token, e := range s.all {
		switch {
		case !now.Before(e.expiry):
			delete(s.all, token)
		case first == "" || e.expiry.Before(s.all[first].expiry):
			first = token
		}
	}
	if len(s.all) >= maxSessions {
		delete(s.all, first)
	}
}

func (s *sessionStore) Delete(token string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, token)
	return nil
}

// secure tells whether the browser speaks TLS, to us or to a proxy that we trust.
func (g *gate) secure(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && httpserver.Within(g.proxies, at.Addr().Unmap().WithZone("")) && strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")
}

// cookie names: with TLS the browser holds others off setting it.
func (g *gate) cookieName(r *http.Request) string {
	if g.secure(r) {
		return "__Host-penstock"
	}
	return "penstock"
}

// setCookie sets one that scripts do not see and other sites do not send. Unit of age:
// seconds; 0 until the browser ends, -1 deletes it.
func (g *gate) setCookie(w http.ResponseWriter, r *http.Request, name, value, path string, age int) {
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // Secure wherever the browser has TLS: without, it would not come back
		Name: name, Value: value, Path: path, MaxAge: age, HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: g.secure(r),
	})
}

// token of the session as the browser sent it.
func (g *gate) token(r *http.Request) string {
	if c, err := r.Cookie(g.cookieName(r)); err == nil && len(c.Value) <= 128 {
		return c.Value
	}
	return ""
}

// alive tells whether the session of a request is still there. It looks anew: the context
// of the request has the session as it was at its beginning.
func (g *gate) alive(r *http.Request) bool {
	if !g.cfg.guarded() {
		return true
	}
	ctx, err := g.sessions.Load(context.Background(), g.token(r))
	return err == nil && g.sessions.GetString(ctx, keyName) != ""
}

// local is everybody where nobody has to log in.
const local = "local"

// authenticate finds out who asks, and sends those who have to log in there.
func (r *request) authenticate() bool {
	g := r.c.gate
	if !g.cfg.guarded() {
		r.user = user{local, Operator}
		r.csrf = r.c.sign(local)
		return true
	}
	if token := g.token(r.Request); token != "" {
		ctx, err := g.sessions.Load(r.Context(), token)
		if name := ""; err == nil {
			if name = g.sessions.GetString(ctx, keyName); name != "" {
				r.Request, r.base = r.WithContext(ctx), ctx
				r.user, r.csrf = user{name, Role(g.sessions.GetString(ctx, keyRole))}, g.sessions.GetString(ctx, keyCSRF)
				// What pages fetch by themselves does not keep people logged in.
				if r.Header.Get("X-Background") == "" && !strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
					_, _, _ = g.sessions.Commit(ctx)
				}
				return true
			}
		}
	}
	r.csrf = r.c.sign("nobody")
	if r.p.open {
		return true
	}
	to := "/login"
	switch {
	case r.htmx(): // where the person is, not what a part of the page asked for
		if at, err := url.Parse(r.Header.Get("HX-Current-URL")); err == nil {
			to += next(at.RequestURI())
		}
		r.w.Header().Set("HX-Redirect", to)
		r.w.WriteHeader(http.StatusUnauthorized)
	case r.Method != http.MethodGet || strings.Contains(r.Header.Get("Accept"), "text/event-stream") || strings.Contains(r.Header.Get("Accept"), "application/json"):
		http.Error(r.w, "Log in first.", http.StatusUnauthorized)
	default:
		http.Redirect(r.w, r.Request, to+next(r.URL.RequestURI()), http.StatusSeeOther)
	}
	return false
}

// next is the query that names where to go after the login.
func next(to string) string {
	if to = inside(to); to == "/" {
		return ""
	}
	return "?next=" + url.QueryEscape(to)
}

// inside is a path of this console, "/" for all else: nobody is to be sent elsewhere.
func inside(to string) string {
	u, err := url.Parse(to)
	if err != nil || u.IsAbs() || u.Host != "" || u.User != nil || len(to) > 4096 || !strings.HasPrefix(to, "/") ||
		strings.HasPrefix(to, "//") || strings.ContainsAny(to, "\\\r\n\t") || strings.HasPrefix(u.Path, "/login") || strings.HasPrefix(u.Path, "/logout") {
		return "/"
	}
	return to
}

// sign makes the token against forgery of a session: only this process can.
func (c *Console) sign(session string) string {
	m := hmac.New(sha256.New, c.key[:])
	m.Write([]byte("csrf\x00" + session))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// tokenFits checks the token against forgery, in a header or a field of the form.
func (r *request) tokenFits() bool {
	got := r.Header.Get("X-CSRF-Token")
	if got == "" {
		got = r.PostFormValue("csrf")
	}
	return r.csrf != "" && subtle.ConstantTimeCompare([]byte(got), []byte(r.csrf)) == 1
}

// password checks name and password. It takes as long for names that do not exist.
func (g *gate) password(ctx context.Context, address, name, password string) (user, error) {
	now := time.Now()
	// By the address first: one that is past its bound must not use up the tries of a name.
	if g.byAddress.Take(network(address), now) > 0 || g.byName.Take(name, now) > 0 {
		loginsTotal.WithLabelValues("password", "limited").Inc()
		return user{}, errLimited.New(nil, "log in")
	}
	select {
	case g.hashing <- struct{}{}:
		defer func() { <-g.hashing }()
	case <-ctx.Done():
		return user{}, errBusy.New(context.Cause(ctx), "log in")
	}
	known, ok := g.users[name]
	hash := g.decoy
	if ok {
		hash = known.PasswordHash.Reveal()
	}
	fits, err := argon2id.ComparePasswordAndHash(password, hash)
	if err != nil || !fits || !ok || len(password) > maxPassword {
		loginsTotal.WithLabelValues("password", "refused").Inc()
		return user{}, errLogin.New(nil, "log in")
	}
	loginsTotal.WithLabelValues("password", "ok").Inc()
	return user{name, known.Role}, nil
}

// network is what counts as one address: of IPv6, whoever has one has the /64 around it.
func network(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil || !ip.Is6() {
		return address
	}
	around, err := ip.Prefix(64)
	if err != nil {
		return address
	}
	return around.String()
}

// enter logs somebody in: under a new token, so that one which was known before is
// worth nothing.
func (r *request) enter(u user, way string) error {
	g := r.c.gate
	if old := g.token(r.Request); old != "" {
		if ctx, err := g.sessions.Load(r.Context(), old); err == nil {
			_ = g.sessions.Destroy(ctx)
		}
	}
	ctx, err := g.sessions.Load(r.Context(), "")
	if err != nil {
		return err
	}
	if err := g.sessions.RenewToken(ctx); err != nil {
		return err
	}
	g.sessions.Put(ctx, keyName, u.name)
	g.sessions.Put(ctx, keyRole, string(u.role))
	g.sessions.Put(ctx, keyCSRF, r.c.sign(g.sessions.Token(ctx)))
	token, _, err := g.sessions.Commit(ctx)
	if err != nil {
		return err
	}
	g.setCookie(r.w, r.Request, g.cookieName(r.Request), token, "/", 0)
	r.c.log.Info("somebody logged in to the console", "user", u.name, "role", string(u.role), "way", way, "address", r.address())
	r.user = u
	// People are let in while the bus is away: then the log alone has it.
	if bus := r.c.deps.Bus(); bus != nil {
		short, cancel := context.WithTimeout(r.Context(), 2*time.Second)
		defer cancel()
		if err := bus.WriteAudit(short, topology.Deed{By: u.name, Via: "console", Action: "session.login", What: "by " + way + ", as " + string(u.role), Count: 1}); err != nil {
			r.c.log.Warn("a login could not be written down", "user", u.name, "err", err)
		}
	}
	return nil
}

// address is where a request comes from, behind proxies that are trusted.
func (r *request) address() string { return httpserver.AddressOf(r.Request, r.c.gate.proxies).String() }

// readSmall reads a file of a configuration.
func readSmall(path string) ([]byte, error) { return os.ReadFile(path) }
