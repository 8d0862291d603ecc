package console

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/services/operate/status"
	"github.com/penstock/penstock/topology"
)

// A stranger whose address is past its bound does not use up the tries of the name, so
// that its owner still gets in from elsewhere.
//
// covers: design section 8
func TestAStrangerCannotKeepAnOwnerOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := bare(t, guarded(t))
		stranger, owner := newBrowser(t, c), newBrowser(t, c)
		stranger.from = "192.0.2.66:4321"
		for range 2 * triesNamed.Burst {
			stranger.login("olga", "guess")
		}
		wantStatus(t, owner.login("olga", "open sesame"), http.StatusSeeOther)
	})
}

// Whoever has one network of IPv6 has 2^64 addresses: the tries are those of the network.
func TestTriesOfANetworkAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBrowser(t, bare(t, guarded(t)))
		last := 0
		for i := range tries.Burst + 1 {
			b.from = "[2001:db8:1:2::" + string(rune('a'+i%6)) + string(rune('0'+i%10)) + "]:99"
			last = b.login("olga", "guess").StatusCode
		}
		if last != http.StatusTooManyRequests {
			t.Errorf("try %d out of one network got status %d", tries.Burst+1, last)
		}
		b.from = "[2001:db8:1:3::1]:99"
		wantStatus(t, b.login("olga", "open sesame"), http.StatusSeeOther)
	})
}

// What is live ends with the login: when somebody logs out, and when the session is over.
func TestStreamsEndWithTheLogin(t *testing.T) {
	for name, end := range map[string]func(b *browser){
		"log out": func(b *browser) { wantStatus(t, b.post("/logout", nil), http.StatusSeeOther) },
		"expiry":  func(*browser) { time.Sleep(2 * time.Hour) },
	} {
		synctest.Test(t, func(t *testing.T) {
			cfg := guarded(t)
			cfg.Session = Session{Idle: time.Hour, Lifetime: time.Hour}
			c := bare(t, cfg)
			b := newBrowser(t, c)
			b.login("olga", "open sesame")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var ended atomic.Bool
			go func() {
				r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/pipeline/live", nil)
				r.Host = "127.0.0.1:9180"
				r.Header.Set("Accept", "text/event-stream")
				r.AddCookie(&http.Cookie{Name: "penstock", Value: b.cookies["penstock"]})
				c.handler.ServeHTTP(deaf{httptest.NewRecorder()}, r)
				ended.Store(true)
			}()
			time.Sleep(3 * beatEvery)
			synctest.Wait()
			if ended.Load() {
				t.Fatalf("%s: the stream ended before", name)
			}
			end(b)
			time.Sleep(2 * beatEvery)
			synctest.Wait()
			if !ended.Load() {
				t.Errorf("%s: the stream goes on", name)
			}
		})
	}
}

// deaf is a client without a connection.
type deaf struct{ *httptest.ResponseRecorder }

func (deaf) SetWriteDeadline(time.Time) error { return nil }
func (deaf) SetReadDeadline(time.Time) error  { return nil }

// A stream lives longer than a request may take to come in.
func TestStreamsOutliveTheTimeOfARequest(t *testing.T) {
	c := bare(t, open(t))
	server := httptest.NewUnstartedServer(c.handler)
	server.Config.ReadTimeout = 200 * time.Millisecond
	server.Start()
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/pipeline/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r) //nolint:bodyclose // it is closed, but read elsewhere
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for some := make([]byte, 1024); ; {
			if _, err := answer.Body.Read(some); err != nil {
				return
			}
		}
	}()
	select {
	case <-ended:
		t.Error("the stream ended")
	case <-time.After(time.Second): // five times as long
	}
}

// Those who are not logged in take no room from those who are, whatever they wait for.
func TestStrangersTakeNoRoom(t *testing.T) {
	hold := make(chan struct{})
	idp := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hold }))
	defer idp.Close()
	cfg := guarded(t)
	cfg.OIDC.Issuer, cfg.OIDC.ClientID, cfg.OIDC.URL, cfg.OIDC.ReadOnly = idp.URL, "console", "https://penstock.example.com", []string{"*"}
	c := bare(t, cfg)
	owner := newBrowser(t, c)
	owner.login("olga", "open sesame")
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer func() { cancel(); close(hold); all.Wait() }()
	for range 2 * maxRequests {
		all.Go(func() {
			r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/login/oidc", nil)
			r.Host = "127.0.0.1:9180"
			c.handler.ServeHTTP(httptest.NewRecorder(), r)
		})
	}
	await(t, func() bool { return len(c.lobby) == maxStrangers || len(c.room) == maxRequests })
	wantStatus(t, owner.get("/topology"), http.StatusOK)
}

// An e-mail address that the provider has not verified gives neither a role nor a name.
func TestUnverifiedMail(t *testing.T) {
	o := OIDC{RoleClaim: "email", NameClaim: "email", Operators: []string{"boss@example.com"}}
	for _, tt := range []struct {
		claims map[string]any
		in     bool
	}{
		{map[string]any{"email": "boss@example.com"}, true},
		{map[string]any{"email": "boss@example.com", "email_verified": true}, true},
		{map[string]any{"email": "boss@example.com", "email_verified": "true"}, true},
		{map[string]any{"email": "boss@example.com", "email_verified": false}, false},
		{map[string]any{"email": "boss@example.com", "email_verified": "false"}, false},
	} {
		role, in := o.role(tt.claims)
		name := o.name(tt.claims, "u-1")
		if in != tt.in || in && role != Operator || (name == "boss@example.com") != tt.in {
			t.Errorf("%v: in %t as %q, %s", tt.claims, in, role, name)
		}
	}
}

// What the log has no more of a time range is said: where a part was trimmed, where all
// of it was, and where the log is empty by now. A log that was never trimmed lacks nothing.
//
// covers: design section 6
func TestWhatIsGoneIsSaid(t *testing.T) {
	d := newDesk(t, status.Configured{})
	d.store(event{kind: "cloud.aws", doc: `{"n":"frame-first"}`}, event{kind: "cloud.aws", doc: `{"n":"frame-second"}`}, event{kind: "cloud.aws", doc: `{"n":"frame-third"}`})
	const said = "The log has a part of this time range no more"
	hour := time.Now().Add(-time.Hour).UTC().Format("2006-01-02T15:04:05")
	wants := func(path string, want bool) string {
		t.Helper()
		code, page := d.get(path)
		if code != http.StatusOK || strings.Contains(page, said) != want {
			t.Errorf("%s: status %d, said %t, want %t", path, code, !want, want)
		}
		return page
	}
	for _, query := range []string{"?from=" + hour, "?last=24h", "?to=2020-01-01", ""} {
		wants("/events"+query, false)
	}
	if err := d.bus.Trim(t.Context(), topology.Events, 3); err != nil {
		t.Fatal(err)
	}
	for _, query := range []string{"?from=" + hour, "?last=24h", "?from=2020-01-01&to=2020-01-02"} {
		if page := wants("/events"+query, true); !strings.Contains(query, "to=") && (!strings.Contains(page, "frame-third") || strings.Contains(page, "frame-second")) {
			t.Errorf("%s: what is left is not shown", query)
		}
	}
	_, oldest, err := d.bus.History(topology.Events, nil).Pending(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	wants("/events?from="+url.QueryEscape(oldest.Add(time.Millisecond).Format(time.RFC3339Nano)), false)
	if err := d.bus.Trim(t.Context(), topology.Events, 4); err != nil {
		t.Fatal(err)
	}
	for _, query := range []string{"?from=" + hour, "?last=24h", "?from=2020-01-01&to=2020-01-02"} {
		wants("/events"+query, true)
	}
	if code, page := d.get("/events/1.0"); code != http.StatusNotFound || !strings.Contains(page, "not any more") {
		t.Errorf("an event that is gone: status %d", code)
	}
}

// An address with anything in the place of a name or an id is answered as one that does
// not exist, and no page panics or says that it is penstock's fault.
func TestOddAddresses(t *testing.T) {
	d := newDesk(t, status.Configured{})
	for _, path := range []string{"/sources/", "/destinations/", "/events/", "/quarantine/", "/ledger/pulls/", "/replays/"} {
		for _, odd := range []string{"%2F", "a%2Fb", "%00", "*", "%3E", "%2A.%3E", "..%2F..", "%20", "a%20b", "%FF", "%0d%0aX-A:%20b", "18446744073709551615.0", "-1.-1", "0.0", "1.99999999999999999999", strings.Repeat("x", 5000)} {
			for _, more := range []string{"", "/pause", "/live", "/journey"} {
				code, page := d.get(path + odd + more)
				if code >= 500 || code < 400 || strings.Contains(page, "has a mistake") {
					t.Errorf("%s%.30s%s: status %d", path, odd, more, code)
				}
			}
		}
	}
}

// What people type as a reason is bounded: it is kept as long as the audit.
func TestReasonsAreBounded(t *testing.T) {
	d := newDesk(t, status.Configured{})
	j, err := d.bus.AddJob(t.Context(), topology.Job{Kind: "reparse", Spec: []byte(`{}`), Needs: "operate", By: "olga", What: "all"})
	if err != nil {
		t.Fatal(err)
	}
	path := "/replays/" + j.ID + "/pause"
	if code, text := d.act(path, url.Values{"reason": {strings.Repeat("r", 100<<10)}}); code != http.StatusUnprocessableEntity {
		t.Errorf("a reason of 100 KiB: status %d %.300s", code, text)
	}
	if j, err = d.bus.Job(t.Context(), j.ID); err != nil || j.Wanted != topology.WantRun {
		t.Errorf("it was done nevertheless: %s, %v", j.Wanted, err)
	}
	if code, text := d.act(path, url.Values{"reason": {"short"}}); code >= 400 {
		t.Errorf("a short reason: status %d %.300s", code, text)
	}
}

// Many who search at once wait for each other: their searches take no more memory and
// processors than a few.
func TestSearchesAreBounded(t *testing.T) {
	d := newDesk(t, status.Configured{})
	d.store(event{kind: "cloud.aws", doc: `{}`})
	for range maxSearches {
		d.console.searches <- struct{}{}
	}
	type answer struct {
		code int
		page string
	}
	answers := make(chan answer, 1)
	go func() {
		code, page := d.get("/events?text=x")
		answers <- answer{code, page}
	}()
	await(t, func() bool { return len(d.console.room) == 1 })
	select {
	case a := <-answers:
		t.Fatalf("one too many got status %d", a.code)
	case <-time.After(300 * time.Millisecond): // a search takes some
	}
	<-d.console.searches
	if a := <-answers; a.code != http.StatusOK {
		t.Errorf("in its turn: status %d %.300s", a.code, a.page)
	}
}

// Connections that ask for nothing are bounded, and those that come behind them are served
// once some have gone.
func TestConnectionsAreBounded(t *testing.T) {
	c := served(t, open(t))
	var idle []net.Conn
	var dialer net.Dialer
	defer func() {
		for _, conn := range idle {
			conn.Close()
		}
	}()
	for range maxConnections {
		conn, err := dialer.DialContext(t.Context(), "tcp", c.Addr())
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	answered := make(chan int, 1)
	go func() {
		r, err := http.Get(c.URL() + "/topology") //nolint:noctx // it ends with the test
		if err != nil {
			answered <- 0
			return
		}
		r.Body.Close()
		answered <- r.StatusCode
	}()
	select {
	case code := <-answered:
		t.Fatalf("one too many got status %d", code)
	case <-time.After(300 * time.Millisecond): // a page takes some
	}
	for _, conn := range idle[:8] {
		conn.Close()
	}
	if code := <-answered; code != http.StatusOK {
		t.Errorf("once there is room: status %d", code)
	}
}

// A page of another site may link here, and have nothing fetched in the background.
func TestOtherSitesFetchNothing(t *testing.T) {
	b := newBrowser(t, bare(t, open(t)))
	for _, tt := range []struct {
		site, mode string
		want       int
	}{
		{"cross-site", "navigate", http.StatusOK},
		{"cross-site", "no-cors", http.StatusForbidden},
		{"cross-site", "cors", http.StatusForbidden},
		{"same-origin", "cors", http.StatusOK},
		{"none", "navigate", http.StatusOK},
		{"", "", http.StatusOK},
	} {
		b.header.Set("Sec-Fetch-Site", tt.site)
		b.header.Set("Sec-Fetch-Mode", tt.mode)
		if got := b.get("/topology").StatusCode; got != tt.want {
			t.Errorf("%s, %s: status %d, want %d", tt.site, tt.mode, got, tt.want)
		}
	}
}
