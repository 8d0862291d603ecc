package console

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/penstock/penstock/messages/fault"
)

var (
	errProvider = fault.Define("console.oidc_failed", fault.Retry,
		"check that the identity provider runs and that console.oidc has its issuer and client; then log in again")
	errRefused = fault.Define("console.oidc_refused", fault.Reject,
		"log in again from the start; if it stays so, see what the identity provider has in its log")
	errNoRole = fault.Define("console.oidc_no_role", fault.Reject,
		"ask whoever runs penstock: none of your groups is named in console.oidc.operators or console.oidc.read_only")
)

// provider is an identity provider. It is looked up when the first person logs in, so
// that the console starts without it.
type provider struct {
	cfg    OIDC
	seal   cipher.AEAD
	client *http.Client

	// turn is for one at a time to look it up; what it guards is what was found.
	turn     chan struct{}
	verifier *oidc.IDTokenVerifier
	oauth    *oauth2.Config
}

const (
	// loginCookie holds what a login that has begun needs at its end, sealed.
	loginCookie   = "penstock_login"
	loginTime     = 10 * time.Minute
	providerTime  = 10 * time.Second
	callbackPath  = "/login/oidc/callback"
	maxProvidings = 1 << 20
)

// begun is a login that has begun.
type begun struct {
	State, Nonce, Verifier, Next string
	Until                        time.Time
}

func newProvider(cfg OIDC, key [32]byte) *provider {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the length of the key is right
	}
	p := &provider{cfg: cfg, turn: make(chan struct{}, 1), client: &http.Client{Timeout: providerTime, CheckRedirect: sameHost}}
	if p.seal, err = cipher.NewGCM(block); err != nil {
		panic(err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // it is one
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	transport.MaxResponseHeaderBytes = maxProvidings
	if cfg.CAFile != "" {
		if pool, err := readPool(cfg.CAFile); err == nil { // else it was said when the configuration was checked
			transport.TLSClientConfig.RootCAs = pool
		}
	}
	p.client.Transport = transport
	return p
}

// sameHost follows redirects at one place only: a request carries the client's secret or a
// code, and nobody may be led to addresses that only this machine reaches.
func sameHost(r *http.Request, via []*http.Request) error {
	if first := via[0].URL; r.URL.Host != first.Host || r.URL.Scheme != first.Scheme || len(via) > 3 {
		return errors.New("it leads elsewhere, to " + r.URL.Host)
	}
	return nil
}

// open looks the provider up, once it answers.
func (p *provider) open(ctx context.Context) (context.Context, *oauth2.Config, *oidc.IDTokenVerifier, error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return ctx, nil, nil, errProvider.New(context.Cause(ctx), "look up the identity provider %s", p.cfg.Issuer)
	}
	// The keys of the provider are fetched later with the context given here.
	ctx = oidc.ClientContext(ctx, p.client)
	if p.oauth == nil {
		found, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), p.client), p.cfg.Issuer)
		if err != nil {
			return ctx, nil, nil, errProvider.New(err, "look up the identity provider %s", p.cfg.Issuer)
		}
		p.verifier = found.Verifier(&oidc.Config{ClientID: p.cfg.ClientID})
		p.oauth = &oauth2.Config{
			ClientID: p.cfg.ClientID, ClientSecret: p.cfg.ClientSecret.Reveal(), Endpoint: found.Endpoint(),
			RedirectURL: strings.TrimSuffix(p.cfg.URL, "/") + callbackPath,
			Scopes:      append([]string{oidc.ScopeOpenID}, p.cfg.Scopes...),
		}
	}
	return ctx, p.oauth, p.verifier, nil
}

// beginOIDC sends a person to the provider.
func beginOIDC(r *request) error {
	p := r.c.gate.oidc
	if p == nil {
		return errNotFound.New(nil, "log in at an identity provider: none is configured")
	}
	_, oauth, _, err := p.open(r.Context())
	if err != nil {
		loginsTotal.WithLabelValues("oidc", "failed").Inc()
		return err
	}
	b := begun{State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier(), Next: inside(r.FormValue("next")), Until: time.Now().Add(loginTime)}
	plain, err := json.Marshal(b)
	if err != nil {
		return err
	}
	nonce := make([]byte, p.seal.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	sealed := p.seal.Seal(nonce, nonce, plain, []byte(loginCookie))
	p.setCookie(r, base64.RawURLEncoding.EncodeToString(sealed), int(loginTime.Seconds()))
	http.Redirect(r.w, r.Request, oauth.AuthCodeURL(b.State, oidc.Nonce(b.Nonce), oauth2.S256ChallengeOption(b.Verifier)), http.StatusSeeOther)
	return nil
}

func (p *provider) setCookie(r *request, value string, age int) {
	r.c.gate.setCookie(r.w, r.Request, loginCookie, value, "/login", age)
}

// unseal reads what the browser brings back.
func (p *provider) unseal(r *http.Request) (b begun, ok bool) {
	c, err := r.Cookie(loginCookie)
	if err != nil {
		return b, false
	}
	sealed, err := base64.RawURLEncoding.DecodeString(c.Value)
	if err != nil || len(sealed) < p.seal.NonceSize() {
		return b, false
	}
	plain, err := p.seal.Open(nil, sealed[:p.seal.NonceSize()], sealed[p.seal.NonceSize():], []byte(loginCookie))
	return b, err == nil && json.Unmarshal(plain, &b) == nil && time.Now().Before(b.Until)
}

// endOIDC takes a person back from the provider.
func endOIDC(r *request) (err error) {
	p := r.c.gate.oidc
	if p == nil {
		return errNotFound.New(nil, "log in at an identity provider: none is configured")
	}
	defer func() {
		if err != nil {
			loginsTotal.WithLabelValues("oidc", "refused").Inc()
			r.c.log.Warn("a login by OIDC was refused", "address", r.address(), "err", err)
		}
	}()
	b, ok := p.unseal(r.Request)
	p.setCookie(r, "", -1) // whatever comes of it, it was tried once
	if !ok || subtle.ConstantTimeCompare([]byte(b.State), []byte(r.FormValue("state"))) != 1 {
		return errRefused.New(nil, "log in: the answer is not to a login that this browser began in the last %s", loginTime)
	}
	if iss := r.FormValue("iss"); iss != "" && iss != p.cfg.Issuer { // RFC 9207
		return errRefused.New(nil, "log in: the answer comes from another provider")
	}
	if e := r.FormValue("error"); e != "" {
		return errRefused.New(nil, "log in: the provider says %q", cut(e, 100))
	}
	ctx, oauth, verifier, err := p.open(r.Context())
	if err != nil {
		return err
	}
	token, err := oauth.Exchange(ctx, r.FormValue("code"), oauth2.VerifierOption(b.Verifier))
	if err != nil {
		return errProvider.New(tokenError(err), "get the token of a login")
	}
	raw, _ := token.Extra("id_token").(string)
	id, err := verifier.Verify(ctx, raw)
	if err != nil {
		return errRefused.New(err, "check the token of a login")
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(b.Nonce)) != 1 {
		return errRefused.New(nil, "check the token of a login: it was made for another one")
	}
	claims := map[string]any{}
	if err := id.Claims(&claims); err != nil {
		return errRefused.New(err, "read the token of a login")
	}
	role, ok := p.cfg.role(claims)
	if !ok {
		return errNoRole.New(nil, "log in")
	}
	if err := r.enter(user{p.cfg.name(claims, id.Subject), role}, "oidc"); err != nil {
		return err
	}
	loginsTotal.WithLabelValues("oidc", "ok").Inc()
	http.Redirect(r.w, r.Request, inside(b.Next), http.StatusSeeOther)
	return nil
}

// tokenError leaves out the body of the provider's answer, which may hold secrets.
func tokenError(err error) error {
	if failed, ok := err.(*oauth2.RetrieveError); ok { //nolint:errorlint // Exchange returns it bare
		return errProvider.New(nil, "the provider answered %s %q", failed.Response.Status, cut(failed.ErrorCode, 100))
	}
	return err
}

// believed is a claim, but for an e-mail address that the provider says is unverified:
// anybody may have typed that of somebody else.
func believed(claims map[string]any, claim string) any {
	if verified, said := claims["email_verified"]; claim == "email" && said && verified != true && verified != "true" {
		return nil
	}
	return claims[claim]
}

// role of a person by the claims.
func (o OIDC) role(claims map[string]any) (Role, bool) {
	var has []string
	switch v := believed(claims, o.RoleClaim).(type) {
	case string:
		has = []string{v}
	case []any:
		for _, e := range v {
			if s, ok := e.(string); ok {
				has = append(has, s)
			}
		}
	}
	among := func(list []string) bool {
		return slices.ContainsFunc(has, func(s string) bool { return slices.Contains(list, s) })
	}
	switch {
	case among(o.Operators):
		return Operator, true
	case among(o.ReadOnly), slices.Contains(o.ReadOnly, "*"):
		return ReadOnly, true
	}
	return "", false
}

// name of a person by the claims; what is no name is replaced by the subject.
func (o OIDC) name(claims map[string]any, subject string) string {
	for _, claim := range []string{o.NameClaim, "email"} {
		if s, ok := believed(claims, claim).(string); ok && strings.TrimSpace(s) != "" {
			return cut(s, 128)
		}
	}
	return cut(subject, 128)
}

// cut shortens a text to so many bytes.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
