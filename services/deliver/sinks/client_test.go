package sinks

import (
	"encoding/base64"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
)

// An address with the wrong scheme is a mistake in the configuration, which takes no
// event to quarantine.
func TestHTTPToPortOfHTTPS(t *testing.T) {
	f := httptest.NewUnstartedServer(http.NotFoundHandler())
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.StartTLS()
	defer f.Close()
	cfg := defaultHTTP()
	cfg.URL = "http://" + f.Listener.Addr().String()
	s, err := openHTTP(t.Context(), cfg, Deps{Destination: "hook"})
	must(t, err)
	defer s.Close()
	if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 3)...)); res.Verdict != Stop || fault.CodeOf(res.Err) != "deliver.http_wrong_request" {
		t.Errorf("%v: %v", res.Verdict, res.Err)
	}
}

// So is a header that is too long for the server.
func TestHTTPHeaderTooLong(t *testing.T) {
	f := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusRequestHeaderFieldsTooLarge)
	}))
	defer f.Close()
	cfg := defaultHTTP()
	cfg.URL = f.URL
	s, err := openHTTP(t.Context(), cfg, Deps{Destination: "hook"})
	must(t, err)
	defer s.Close()
	if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 3)...)); res.Verdict != Stop {
		t.Errorf("%v: %v", res.Verdict, res.Err)
	}
}

// A secret that begins as another one does not show its end.
func TestSecretsWithOneBeginning(t *testing.T) {
	c, err := newHTTPClient("hook", HTTPClient{Headers: map[string]config.Secret{"X-A": config.NewSecret("s3cr3t")}}, HTTPAuth{BearerToken: config.NewSecret("s3cr3t-and-more")})
	must(t, err)
	if got := c.sanitise("no: s3cr3t-and-more, s3cr3t"); got != "no: [redacted], [redacted]" {
		t.Errorf("got %q", got)
	}
}

// Who we are to a proxy is in no error, whatever the proxy says back.
func TestProxyPasswordsAreHidden(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://u:CANARY@127.0.0.1:1")
	c, err := newHTTPClient("d", HTTPClient{Timeout: time.Second}, HTTPAuth{})
	if err != nil {
		t.Fatal(err)
	}
	said := "you are " + base64.StdEncoding.EncodeToString([]byte("u:CANARY")) + " with CANARY"
	if got := c.sanitise(said); got != "you are [redacted] with [redacted]" {
		t.Error(got)
	}
}
