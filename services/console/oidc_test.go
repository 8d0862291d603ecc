package console

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/penstock/penstock/services/internal/config"
)

// idp is a little OpenID provider over HTTP: discovery, keys, the token of a code.
type idp struct {
	t      testing.TB
	server *httptest.Server
	key    *rsa.PrivateKey
	claims map[string]any // of whoever logs in, beside the standard ones
	// What the browser brought to the authorization endpoint, by code.
	asked map[string]url.Values
	// Mischief, each off by default.
	nonce, audience string
	late            bool
	down            bool
}

func newIDP(t testing.TB) *idp {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &idp{t: t, key: key, claims: map[string]any{}, asked: map[string]url.Values{}}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		if p.down {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		answer(w, map[string]any{
			"issuer": p.server.URL, "authorization_endpoint": p.server.URL + "/authorize", "token_endpoint": p.server.URL + "/token",
			"jwks_uri": p.server.URL + "/keys", "id_token_signing_alg_values_supported": []string{"RS256"},
		})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, KeyID: "k", Algorithm: "RS256", Use: "sig"}}})
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		asked, ok := p.asked[r.PostFormValue("code")]
		sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
		id, secret, basic := r.BasicAuth()
		if !basic {
			id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
		}
		if !ok || base64.RawURLEncoding.EncodeToString(sum[:]) != asked.Get("code_challenge") || id != "console" || secret != "s3cret" ||
			r.PostFormValue("redirect_uri") != asked.Get("redirect_uri") {
			w.WriteHeader(http.StatusBadRequest)
			answer(w, map[string]string{"error": "invalid_grant"})
			return
		}
		delete(p.asked, r.PostFormValue("code")) // a code is good once
		answer(w, map[string]any{"access_token": "a", "token_type": "Bearer", "id_token": p.token(asked)})
	})
	p.server = httptest.NewServer(mux)
	t.Cleanup(p.server.Close)
	return p
}

func (p *idp) token(asked url.Values) string {
	claims := map[string]any{
		"iss": p.server.URL, "sub": "u-1", "aud": "console", "nonce": asked.Get("nonce"),
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
	}
	for k, v := range p.claims {
		claims[k] = v
	}
	if p.nonce != "" {
		claims["nonce"] = p.nonce
	}
	if p.audience != "" {
		claims["aud"] = p.audience
	}
	if p.late {
		claims["exp"] = time.Now().Add(-time.Minute).Unix()
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: p.key, KeyID: "k"}}, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		p.t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		p.t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

func (p *idp) config() Config {
	cfg := Defaults()
	cfg.Address = "127.0.0.1:0"
	cfg.OIDC.Issuer, cfg.OIDC.ClientID, cfg.OIDC.ClientSecret, cfg.OIDC.URL = p.server.URL, "console", config.NewSecret("s3cret"), "https://penstock.example.com"
	cfg.OIDC.Operators, cfg.OIDC.ReadOnly = []string{"sec-ops"}, []string{"sec-read"}
	return cfg
}

// begin goes to the provider, and comes back with the query of the answer.
func (p *idp) begin(b *browser) url.Values {
	p.t.Helper()
	r := b.get("/login/oidc?next=/topology")
	wantStatus(p.t, r, http.StatusSeeOther)
	to, err := url.Parse(r.Header.Get("Location"))
	if err != nil || !strings.HasPrefix(to.String(), p.server.URL+"/authorize?") {
		p.t.Fatalf("the browser is sent to %s (%v)", to, err)
	}
	q := to.Query()
	if q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("state") == "" || q.Get("nonce") == "" ||
		q.Get("redirect_uri") != "https://penstock.example.com/login/oidc/callback" || !strings.Contains(q.Get("scope"), "openid") {
		p.t.Errorf("the provider is asked %v", q)
	}
	p.asked["c"] = q
	return url.Values{"code": {"c"}, "state": {q.Get("state")}}
}

// People log in at a provider: with the role that their groups give, once for each time
// that they went there, and never with what was made for somebody else.
func TestOIDC(t *testing.T) {
	p := newIDP(t)
	c := bare(t, p.config())
	back := func(b *browser, q url.Values) reply {
		t.Helper()
		return b.get("/login/oidc/callback?" + q.Encode())
	}
	p.claims = map[string]any{"preferred_username": "olga", "groups": []string{"all", "sec-ops"}}
	b := newBrowser(t, c)
	if page := b.get("/login").text; !strings.Contains(page, "/login/oidc") || strings.Contains(page, `type="password"`) {
		t.Error("the login page does not offer the provider alone")
	}
	q := p.begin(b)
	r := back(b, q)
	wantStatus(t, r, http.StatusSeeOther)
	if to := r.Header.Get("Location"); to != "/topology" {
		t.Errorf("after the login she is sent to %s", to)
	}
	if page := b.get("/topology").text; !strings.Contains(page, "<b>olga</b>") || !strings.Contains(page, "<small>operator</small>") {
		t.Error("she is not logged in as an operator with her name")
	}
	if got := back(b, q).StatusCode; got != http.StatusForbidden {
		t.Errorf("the same answer a second time: status %d", got)
	}

	p.claims = map[string]any{"groups": "sec-read", "email": "rita@example.com"}
	b = newBrowser(t, c)
	wantStatus(t, back(b, p.begin(b)), http.StatusSeeOther)
	if page := b.get("/topology").text; !strings.Contains(page, "<b>rita@example.com</b>") || !strings.Contains(page, "<small>read-only</small>") {
		t.Error("a reader is not logged in as one")
	}

	for name, test := range map[string]struct {
		twist func(b *browser, q url.Values)
		want  int
	}{
		"no group of ours":      {func(*browser, url.Values) { p.claims = map[string]any{"groups": []string{"all"}} }, http.StatusForbidden},
		"no claim":              {func(*browser, url.Values) { p.claims = nil }, http.StatusForbidden},
		"another state":         {func(_ *browser, q url.Values) { q.Set("state", "x") }, http.StatusForbidden},
		"another browser":       {func(b *browser, _ url.Values) { clear(b.cookies) }, http.StatusForbidden},
		"a cookie of its own":   {func(b *browser, _ url.Values) { b.cookies[loginCookie] = "AAAA" + b.cookies[loginCookie] }, http.StatusForbidden},
		"a nonce of another":    {func(*browser, url.Values) { p.nonce = "x" }, http.StatusForbidden},
		"a token for another":   {func(*browser, url.Values) { p.audience = "grafana" }, http.StatusForbidden},
		"a token that is old":   {func(*browser, url.Values) { p.late = true }, http.StatusForbidden},
		"another verifier":      {func(*browser, url.Values) { p.asked["c"].Set("code_challenge", "x") }, http.StatusBadGateway},
		"another provider":      {func(_ *browser, q url.Values) { q.Set("iss", "https://evil.example") }, http.StatusForbidden},
		"the provider says no":  {func(_ *browser, q url.Values) { q.Set("error", "access_denied"); q.Del("code") }, http.StatusForbidden},
		"a code of nobody":      {func(_ *browser, q url.Values) { q.Set("code", "y") }, http.StatusBadGateway},
		"all is as it is to be": {func(*browser, url.Values) {}, http.StatusSeeOther},
	} {
		t.Run(name, func(t *testing.T) {
			p.claims, p.nonce, p.audience, p.late = map[string]any{"groups": []string{"sec-ops"}}, "", "", false
			b := newBrowser(t, c)
			q := p.begin(b)
			test.twist(b, q)
			r := back(b, q)
			if r.StatusCode != test.want || (b.cookies["penstock"] != "") != (test.want == http.StatusSeeOther) {
				t.Errorf("status %d, want %d; cookies %v", r.StatusCode, test.want, b.cookies)
			}
		})
	}
}

// A provider that is away keeps nobody from the console's start, and is asked again.
func TestOIDCProviderComesBack(t *testing.T) {
	p := newIDP(t)
	p.down = true
	b := newBrowser(t, bare(t, p.config()))
	wantStatus(t, b.get("/login/oidc"), http.StatusBadGateway)
	p.down = false
	p.begin(b)
}

// A login that was begun has to end soon.
func TestOIDCLoginExpires(t *testing.T) {
	p := newProvider(OIDC{}, [32]byte{1})
	seal := func(until time.Time) *http.Request {
		plain, err := json.Marshal(begun{State: "s", Until: until})
		if err != nil {
			t.Fatal(err)
		}
		nonce := make([]byte, p.seal.NonceSize())
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/login/oidc/callback", nil)
		r.AddCookie(&http.Cookie{Name: loginCookie, Value: base64.RawURLEncoding.EncodeToString(p.seal.Seal(nonce, nonce, plain, []byte(loginCookie)))})
		return r
	}
	if _, ok := p.unseal(seal(time.Now().Add(time.Minute))); !ok {
		t.Error("a login that has just begun is not known")
	}
	if _, ok := p.unseal(seal(time.Now().Add(-time.Second))); ok {
		t.Error("a login that began long ago is still good")
	}
}

// Nobody is led elsewhere with the client's secret, nor to an address that only this
// machine reaches.
func TestOIDCFollowsNobodyElsewhere(t *testing.T) {
	came := 0
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { came++ }))
	t.Cleanup(other.Close)
	near := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/near" {
			return
		}
		http.Redirect(w, r, map[string]string{"/away": other.URL + "/latest/meta-data", "/here": "/near"}[r.URL.Path], http.StatusTemporaryRedirect)
	}))
	t.Cleanup(near.Close)
	p := newProvider(OIDC{Issuer: near.URL}, [32]byte{})
	if r, err := p.client.PostForm(near.URL+"/away", url.Values{"client_secret": {"s3cret"}}); err == nil || came != 0 { //nolint:bodyclose // there is none: it fails
		t.Errorf("it is followed: %v", r)
	}
	r, err := p.client.PostForm(near.URL+"/here", url.Values{"a": {"b"}})
	if err != nil {
		t.Fatalf("a redirect at one place is not followed: %v", err)
	}
	_ = r.Body.Close()
}
