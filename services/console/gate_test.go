package console

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alexedwards/argon2id"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/topology"
)

// thin hashes are cheap: their strength is not what is tested.
var thin4 = argon2id.Params{Memory: 64, Iterations: 1, Parallelism: 1, SaltLength: 16, KeyLength: 32}

func hashOf(t testing.TB, password string) config.Secret {
	t.Helper()
	hash, err := argon2id.CreateHash(password, &thin4)
	if err != nil {
		t.Fatal(err)
	}
	return config.NewSecret(hash)
}

// guarded is a configuration with two people.
func guarded(t testing.TB) Config {
	t.Helper()
	cfg := Defaults()
	cfg.Address = "127.0.0.1:0"
	cfg.Users = []User{
		{Name: "olga", PasswordHash: hashOf(t, "open sesame"), Role: Operator},
		{Name: "rita", PasswordHash: hashOf(t, "only looking"), Role: ReadOnly},
	}
	return cfg
}

// bare opens a console without a bus.
func bare(t testing.TB, cfg Config) *Console {
	t.Helper()
	c, err := New(cfg, Deps{Bus: func() *topology.Bus { return nil }, Log: slog.New(slog.DiscardHandler), Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.listener.Close() })
	return c
}

// browser keeps cookies, as one does.
type browser struct {
	t       testing.TB
	c       *Console
	cookies map[string]string
	// header goes with each request, from is where it comes from.
	header http.Header
	from   string
}

// reply is one that was read to its end.
type reply struct {
	StatusCode int
	Header     http.Header
	text       string
}

func newBrowser(t testing.TB, c *Console) *browser {
	t.Helper()
	return &browser{t: t, c: c, cookies: map[string]string{}, header: http.Header{}, from: "127.0.0.1:4321"}
}

func (b *browser) do(method, path string, form url.Values) reply {
	b.t.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	r := httptest.NewRequestWithContext(b.t.Context(), method, path, body)
	r.Host, r.RemoteAddr = "127.0.0.1:9180", b.from
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for k, v := range b.header {
		r.Header[k] = v
	}
	for k, v := range b.cookies {
		r.AddCookie(&http.Cookie{Name: k, Value: v})
	}
	w := httptest.NewRecorder()
	b.c.handler.ServeHTTP(w, r)
	result := w.Result()
	defer result.Body.Close()
	for _, c := range result.Cookies() {
		if c.MaxAge < 0 {
			delete(b.cookies, c.Name)
		} else {
			b.cookies[c.Name] = c.Value
		}
	}
	return reply{result.StatusCode, result.Header, w.Body.String()}
}

func (b *browser) get(path string) reply { return b.do(http.MethodGet, path, nil) }

// post posts with the token of the page that the browser is on.
func (b *browser) post(path string, form url.Values) reply {
	b.t.Helper()
	if form == nil {
		form = url.Values{}
	}
	form.Set("csrf", b.token())
	return b.do(http.MethodPost, path, form)
}

func (b *browser) token() string {
	b.t.Helper()
	page := b.get("/login").text
	if b.cookies["penstock"] != "" || b.cookies["__Host-penstock"] != "" {
		page = b.get("/topology").text
	}
	_, rest, _ := strings.Cut(page, `name="csrf" value="`)
	token, _, _ := strings.Cut(rest, `"`)
	return token
}

func (b *browser) login(name, password string) reply {
	b.t.Helper()
	return b.post("/login", url.Values{"name": {name}, "password": {password}})
}

func cookiesOf(r reply) []*http.Cookie { return (&http.Response{Header: r.Header}).Cookies() }

func wantStatus(t testing.TB, r reply, want int) {
	t.Helper()
	if r.StatusCode != want {
		t.Fatalf("got status %d, want %d: %s", r.StatusCode, want, cut(r.text, 600))
	}
}

// Nobody gets in without a password that fits, and with one only after a login.
func TestLogin(t *testing.T) {
	c := bare(t, guarded(t))
	b := newBrowser(t, c)
	r := b.get("/topology?x=1")
	wantStatus(t, r, http.StatusSeeOther)
	if to := r.Header.Get("Location"); to != "/login?next=%2Ftopology%3Fx%3D1" {
		t.Errorf("a stranger is sent to %s", to)
	}
	for _, try := range []struct{ name, password string }{
		{"olga", "open sesam"}, {"olga", ""}, {"nobody", "open sesame"}, {"", ""}, {"olga", strings.Repeat("x", maxPassword+1)}, {"rita", "open sesame"},
	} {
		if r := b.login(try.name, try.password); r.StatusCode != http.StatusUnauthorized || b.cookies["penstock"] != "" {
			t.Errorf("%q with %q: status %d", try.name, cut(try.password, 20), r.StatusCode)
		}
	}
	r = b.post("/login", url.Values{"name": {"olga"}, "password": {"open sesame"}, "next": {"/topology?x=1"}})
	wantStatus(t, r, http.StatusSeeOther)
	if to := r.Header.Get("Location"); to != "/topology?x=1" {
		t.Errorf("after the login she is sent to %s", to)
	}
	var session *http.Cookie
	for _, cookie := range cookiesOf(r) {
		if cookie.Name == "penstock" {
			session = cookie
		}
	}
	if session == nil || !session.HttpOnly || session.SameSite != http.SameSiteLaxMode || session.Secure || session.Path != "/" {
		t.Errorf("the cookie of the session is %+v", session)
	}
	wantStatus(t, b.get("/topology"), http.StatusOK)
	// The login page sends those who are in where they wanted to.
	wantStatus(t, b.get("/login"), http.StatusSeeOther)
	// After the logout the old cookie is worth nothing.
	old := b.cookies["penstock"]
	wantStatus(t, b.post("/logout", nil), http.StatusSeeOther)
	b.cookies["penstock"] = old
	wantStatus(t, b.get("/topology"), http.StatusSeeOther)
	// Parts of pages are told to go to the login, streams and data get a plain answer.
	b.header.Set("HX-Request", "true")
	b.header.Set("HX-Current-URL", "http://127.0.0.1:9180/topology?y=2")
	r = b.get("/topology/table")
	wantStatus(t, r, http.StatusUnauthorized)
	if to := r.Header.Get("HX-Redirect"); to != "/login?next=%2Ftopology%3Fy%3D2" {
		t.Errorf("a part of a page is sent to %s", to)
	}
	b.header = http.Header{"Accept": {"text/event-stream"}}
	wantStatus(t, b.get("/pipeline/live"), http.StatusUnauthorized)
}

// A name that does not exist costs as much as one that does: both are compared with a
// hash of the same cost.
func TestUnknownNamesAreComparedToo(t *testing.T) {
	cfg := guarded(t)
	g := bare(t, cfg).gate
	real, _, _, err := argon2id.DecodeHash(cfg.Users[0].PasswordHash.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	decoy, _, _, err := argon2id.DecodeHash(g.decoy)
	if err != nil || *decoy != *real {
		t.Errorf("the decoy costs %+v, a user %+v (%v)", decoy, real, err)
	}
	// Were it not compared, this would return without error, or at once: break the decoy.
	g.decoy = "broken"
	if _, err := g.password(t.Context(), "192.0.2.1", "nobody", "x"); err == nil {
		t.Error("an unknown name got in")
	}
}

// A session that a stranger planted is not the one that a login makes, and a new login
// ends the old session.
func TestSessionFixation(t *testing.T) {
	c := bare(t, guarded(t))
	b := newBrowser(t, c)
	planted := strings.Repeat("A", 43)
	b.cookies["penstock"] = planted
	page := b.get("/login").text
	_, rest, _ := strings.Cut(page, `name="csrf" value="`)
	csrf, _, _ := strings.Cut(rest, `"`)
	wantStatus(t, b.do(http.MethodPost, "/login", url.Values{"name": {"olga"}, "password": {"open sesame"}, "csrf": {csrf}}), http.StatusSeeOther)
	first := b.cookies["penstock"]
	if first == planted {
		t.Fatal("the planted token became a session")
	}
	stranger := newBrowser(t, c)
	stranger.cookies["penstock"] = planted
	wantStatus(t, stranger.get("/topology"), http.StatusSeeOther)
	// The same browser logs in again: the session before is gone, tokens against forgery too.
	token := b.token()
	r := b.do(http.MethodPost, "/login", url.Values{"name": {"rita"}, "password": {"only looking"}, "csrf": {token}})
	wantStatus(t, r, http.StatusSeeOther)
	if b.cookies["penstock"] == first {
		t.Fatal("a login kept the token of the one before")
	}
	stranger.cookies["penstock"] = first
	wantStatus(t, stranger.get("/topology"), http.StatusSeeOther)
	if again := b.token(); again == token {
		t.Error("the token against forgery outlived the session")
	}
}

// Sessions end after a while without a request, and after a while in any case. What a page
// fetches by itself does not count as a request.
func TestSessionsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := guarded(t)
		cfg.Session = Session{Idle: time.Hour, Lifetime: 3 * time.Hour}
		b := newBrowser(t, bare(t, cfg))
		in := func() bool { return b.get("/topology").StatusCode == http.StatusOK }
		b.login("olga", "open sesame")
		for range 5 { // 2.5 h with a request each half hour
			time.Sleep(30 * time.Minute)
			if !in() {
				t.Fatal("a session in use has ended")
			}
		}
		time.Sleep(31 * time.Minute)
		if in() {
			t.Fatal("a session outlived its lifetime")
		}
		delete(b.cookies, "penstock")
		b.login("olga", "open sesame")
		for range 7 {
			time.Sleep(10 * time.Minute)
			b.header.Set("X-Background", "true")
			b.get("/topology/table")
			b.header.Del("X-Background")
		}
		if in() {
			t.Fatal("what a page fetched by itself kept a session")
		}
	})
}

func TestSessionsAreBounded(t *testing.T) {
	var s sessionStore
	now := time.Now()
	for i := range maxSessions + 10 {
		if err := s.Commit(fmt.Sprint(i), nil, now.Add(time.Hour+time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.all) != maxSessions {
		t.Errorf("%d sessions are kept", len(s.all))
	}
	if _, ok, _ := s.Find("0"); ok {
		t.Error("the one that expires first stayed")
	}
	if _, ok, _ := s.Find(fmt.Sprint(maxSessions + 9)); !ok {
		t.Error("the newest one is not there")
	}
}

// What changes something needs the token of the page and must not come from another site.
func TestForgery(t *testing.T) {
	b := newBrowser(t, bare(t, guarded(t)))
	b.login("olga", "open sesame")
	token := b.token()
	post := func(csrf string, header http.Header) int {
		b.header = header
		defer func() { b.header = http.Header{} }()
		return b.do(http.MethodPost, "/theme", url.Values{"csrf": {csrf}, "theme": {"dark"}}).StatusCode
	}
	for _, test := range []struct {
		name, csrf string
		header     http.Header
		want       int
	}{
		{"the page itself", token, http.Header{"Sec-Fetch-Site": {"same-origin"}}, http.StatusSeeOther},
		{"an old browser", token, http.Header{"Origin": {"http://127.0.0.1:9180"}}, http.StatusSeeOther},
		{"no token", "", nil, http.StatusForbidden},
		{"another token", b.c.sign("nobody"), nil, http.StatusForbidden},
		{"another site with the token", token, http.Header{"Sec-Fetch-Site": {"cross-site"}}, http.StatusForbidden},
		{"a neighbour with the token", token, http.Header{"Sec-Fetch-Site": {"same-site"}}, http.StatusForbidden},
		{"another origin with the token", token, http.Header{"Origin": {"http://evil.example"}}, http.StatusForbidden},
	} {
		if got := post(test.csrf, test.header); got != test.want {
			t.Errorf("%s: status %d, want %d", test.name, got, test.want)
		}
	}
	b.header.Set("X-CSRF-Token", token) // as htmx sends it
	if got := b.do(http.MethodPost, "/theme", url.Values{"theme": {"dark"}}).StatusCode; got != http.StatusSeeOther {
		t.Errorf("a token in a header: status %d", got)
	}
}

// Whoever may only read sees pages, and no action of any page.
func TestReadOnly(t *testing.T) {
	c := bare(t, guarded(t))
	b := newBrowser(t, c)
	b.login("rita", "only looking")
	token := b.token()
	wantStatus(t, b.get("/pipeline"), http.StatusOK)
	tried := 0
	for _, p := range pages {
		if p.open {
			continue
		}
		for _, r := range p.routes {
			method, path, _ := strings.Cut(r.pattern, " ")
			if method == http.MethodGet && r.role != operator {
				continue
			}
			tried++
			path = strings.NewReplacer("{", "", "}", "", "...", "").Replace(path)
			b.header.Set("X-CSRF-Token", token)
			if got := b.do(method, path, url.Values{}).StatusCode; got != http.StatusForbidden {
				t.Errorf("%s answers a reader with status %d", r.pattern, got)
			}
		}
	}
	if tried == 0 {
		t.Error("no page has an action")
	}
}

// Tries are bounded, by where they come from; the owner of a name is not kept out by them.
func TestLoginsAreLimited(t *testing.T) {
	cfg := guarded(t)
	cfg.TrustedProxies = []string{"10.0.0.0/8"}
	b := newBrowser(t, bare(t, cfg))
	b.from = "10.1.1.1:99"
	b.header.Set("X-Forwarded-For", "203.0.113.9")
	last := 0
	for range tries.Burst + 1 {
		last = b.login("olga", "wrong").StatusCode
	}
	if last != http.StatusTooManyRequests {
		t.Errorf("try %d got status %d", tries.Burst+1, last)
	}
	if got := b.login("olga", "open sesame").StatusCode; got != http.StatusTooManyRequests {
		t.Errorf("the right password past the bound got status %d", got)
	}
	b.header.Set("X-Forwarded-For", "203.0.113.10")
	if got := b.login("olga", "open sesame").StatusCode; got != http.StatusSeeOther {
		t.Errorf("from elsewhere the right password got status %d", got)
	}
}

// The cookie is for TLS alone where the browser speaks TLS, by the word of trusted
// proxies only.
func TestSecureCookie(t *testing.T) {
	cfg := guarded(t)
	cfg.TrustedProxies = []string{"10.0.0.0/8"}
	c := bare(t, cfg)
	for _, test := range []struct {
		from string
		want string
	}{{"10.1.1.1:99", "__Host-penstock"}, {"192.0.2.1:99", "penstock"}} {
		b := newBrowser(t, c)
		b.from = test.from
		b.header.Set("X-Forwarded-Proto", "https")
		for _, cookie := range cookiesOf(b.login("olga", "open sesame")) {
			if cookie.Name != test.want || cookie.Secure != (test.want != "penstock") {
				t.Errorf("from %s: cookie %s, secure %t", test.from, cookie.Name, cookie.Secure)
			}
		}
		if len(b.cookies) != 1 {
			t.Errorf("from %s: no cookie", test.from)
		}
	}
}

// Where nobody has to log in, only names of this machine lead here: a page of a stranger
// whose name was made to point to this machine gets nothing.
func TestStrangeNamesWithoutLogin(t *testing.T) {
	cfg := Defaults()
	cfg.Address = "127.0.0.1:0"
	c := bare(t, cfg)
	for host, want := range map[string]int{
		"127.0.0.1:9180": 200, "localhost:9180": 200, "[::1]:9180": 200, "localhost": 200,
		"evil.example:9180": 421, "127.0.0.1.evil.example": 421, "": 421, "192.0.2.1:9180": 421,
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/topology", nil)
		r.Host = host
		w := httptest.NewRecorder()
		c.handler.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("host %q: status %d, want %d", host, w.Code, want)
		}
	}
}

func TestNobodyIsSentElsewhere(t *testing.T) {
	for to, want := range map[string]string{
		"/topology?x=1#a": "/topology?x=1#a", "": "/", "//evil.example": "/", "/\\evil.example": "/", "https://evil.example/": "/", "javascript:alert(1)": "/",
		"evil": "/", "/login": "/", "/logout": "/", "/a\nb": "/", "/%2f/evil.example": "/%2f/evil.example", "///evil.example": "/", "\t//evil.example": "/",
	} {
		if got := inside(to); got != want {
			t.Errorf("inside(%q) = %q, want %q", to, got, want)
		}
	}
}

// An address that others reach needs a login; what is wrong is said with its key.
func TestConfig(t *testing.T) {
	ok := guarded(t)
	for _, test := range []struct {
		name   string
		change func(*Config)
		want   string // a part of the problem, empty: none
	}{
		{"loopback without login", func(c *Config) { c.Users = nil }, ""},
		{"no address", func(c *Config) { c.Address, c.Users = "", nil }, ""},
		{"public with users", func(c *Config) { c.Address = "0.0.0.0:9180" }, ""},
		{"public without login", func(c *Config) { c.Address, c.Users = "0.0.0.0:9180", nil }, "others reach this address, and nobody has to log in"},
		{"all interfaces without login", func(c *Config) { c.Address, c.Users = ":9180", nil }, "others reach this address"},
		{"a name without login", func(c *Config) { c.Address, c.Users = "console.example.com:9180", nil }, "others reach this address"},
		{"no port", func(c *Config) { c.Address = "127.0.0.1" }, "address"},
		{"plain password", func(c *Config) { c.Users[0].PasswordHash = config.NewSecret("hunter2") }, "users[0].password_hash"},
		{"hash of too much memory", func(c *Config) {
			c.Users[0].PasswordHash = config.NewSecret(strings.Replace(hashOf(t, "x").Reveal(), "m=64", "m=4194304", 1))
		}, "users[0].password_hash"},
		{"name twice", func(c *Config) { c.Users[1].Name = "olga" }, "users[1].name"},
		{"name with a space", func(c *Config) { c.Users[0].Name = "ol ga" }, "users[0].name"},
		{"short idle", func(c *Config) { c.Session.Idle = time.Second }, "session.idle"},
		{"lifetime below idle", func(c *Config) { c.Session.Lifetime = time.Hour }, "session.lifetime"},
		{"proxy", func(c *Config) { c.TrustedProxies = []string{"nginx"} }, "trusted_proxies[0]"},
		{"oidc with http", func(c *Config) { c.OIDC.Issuer = "http://login.example.com" }, "oidc.issuer"},
		{"oidc without role", func(c *Config) {
			c.OIDC.Issuer, c.OIDC.ClientID, c.OIDC.URL = "https://login.example.com", "p", "https://p.example.com"
		}, "oidc.operators"},
		{"oidc ca", func(c *Config) { c.OIDC.Issuer, c.OIDC.CAFile = "https://login.example.com", "/nowhere.pem" }, "oidc.ca_file"},
		{"half of tls", func(c *Config) { c.TLS.CertFile = "cert.pem" }, "tls.key_file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := ok
			c.Users = []User{ok.Users[0], ok.Users[1]}
			test.change(&c)
			err := c.Validate()
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Error("the problem shows the password")
			}
		})
	}
}
