package security

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/tests/harness"
)

// malice is a far side that tells everybody what it was told, with a status of its choice.
type malice struct {
	*httptest.Server
	status   atomic.Int64
	requests atomic.Int64
	mu       sync.Mutex
	seen     map[string]bool // first words of paths
}

// startMalice starts one that ends with the test.
func startMalice(t testing.TB) *malice {
	t.Helper()
	m := &malice{seen: map[string]bool{}}
	m.status.Store(http.StatusUnauthorized)
	m.Server = httptest.NewServer(m)
	t.Cleanup(m.Close)
	return m
}

// ServeHTTP implements http.Handler. What came is in the body, in headers and where a
// redirect leads to.
func (m *malice) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.requests.Add(1)
	m.mu.Lock()
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if first == "" && strings.Contains(r.Header.Get("Content-Type"), "amz-json") {
		first = "POST amz"
	}
	m.seen[first] = true
	m.mu.Unlock()
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	var told strings.Builder
	for name, values := range r.Header {
		for _, value := range values {
			fmt.Fprintf(&told, "%s: %s; ", name, value)
			if name != "Authorization" && len(value) < 200 {
				w.Header().Set("X-Echo-"+name, value)
			}
		}
	}
	secret := r.Header.Get("Authorization") + r.Header.Get("X-Amz-Security-Token")
	text := "you said " + secret + " at " + r.URL.String() + " with " + told.String()
	status := int(m.status.Load())
	switch {
	case status >= 300 && status < 400:
		w.Header().Set("Location", "/again?told="+strings.ReplaceAll(secret, " ", "+")+"&"+r.URL.RawQuery)
	case strings.Contains(r.Header.Get("Content-Type"), "amz-json"):
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.Header().Set("X-Amzn-Errortype", "AccessDeniedException")
		text = fmt.Sprintf(`{"__type":"AccessDeniedException","message":%q}`, text)
	case r.Header.Get("X-Amz-Date") != "":
		w.Header().Set("Content-Type", "application/xml")
		text = "<Error><Code>AccessDenied</Code><Message>" + strings.NewReplacer("<", "", "&", "").Replace(text) + "</Message></Error>"
	case strings.Contains(r.URL.Path, "services/collector"):
		text = fmt.Sprintf(`{"text":%q,"code":4}`, text)
	case strings.Contains(r.URL.Path, "_bulk") && status < 300:
		text = fmt.Sprintf(`{"errors":true,"items":[{"create":{"status":400,"error":{"type":%q,"reason":%q}}}]}`, secret, text)
	}
	if first == "streaming" && status < 300 {
		text = "rows" // what a source brings is stored as it is
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+" "+string(body))
}

// await waits until somebody asked for each of the paths that begin with these words.
func (m *malice) await(t testing.TB, most time.Duration, status int, words []string) {
	t.Helper()
	missing := words
	defer func() {
		if len(missing) > 0 {
			t.Logf("with status %d nobody asked for %q", status, missing)
		}
	}()
	harness.Await(t, most, fmt.Sprintf("all talk to a far side that answers %d", status), func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		missing = slices.DeleteFunc(slices.Clone(words), func(word string) bool { return m.seen[word] })
		return len(missing) == 0
	})
}

// startProxy is an HTTP proxy that lets nobody through and tells what it was told.
func startProxy(t testing.TB) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, r.Header.Get("Proxy-Authorization")+r.Header.Get("Authorization")+r.URL.String(), http.StatusProxyAuthRequired)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// listen takes connections for one conversation each until the test ends.
func listen(t testing.TB, talk func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer func() { mu.Lock(); delete(open, c); mu.Unlock(); _ = c.Close() }()
				talk(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// startMail is a mail server that refuses every login and tells what was said.
func startMail(t testing.TB, dir string) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return listen(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		_, _ = io.WriteString(c, "220 mail.example.com ESMTP\r\n")
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			line = strings.TrimSpace(line)
			switch word := strings.ToUpper(line); {
			case strings.HasPrefix(word, "EHLO"):
				_, _ = io.WriteString(c, "250-mail.example.com\r\n250-STARTTLS\r\n250 AUTH PLAIN LOGIN\r\n")
			case strings.HasPrefix(word, "STARTTLS"):
				_, _ = io.WriteString(c, "220 go\r\n")
				c = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
				in = bufio.NewReader(c)
			case strings.HasPrefix(word, "QUIT"):
				_, _ = io.WriteString(c, "221 bye\r\n")
				return
			default:
				_, _ = io.WriteString(c, "535 5.7.8 you said "+line+"\r\n")
			}
		}
	})
}

// startBus is a NATS server that refuses everybody and tells what was said.
func startBus(t testing.TB) string {
	t.Helper()
	return listen(t, func(c net.Conn) {
		_, _ = io.WriteString(c, `INFO {"server_id":"x","server_name":"x","version":"2.10.0","proto":1,"host":"127.0.0.1","port":4222,"headers":true,"auth_required":true,"max_payload":1048576,"jetstream":true}`+"\r\n")
		in := bufio.NewReader(c)
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, "-ERR 'Authorization Violation: you said "+strings.ReplaceAll(strings.TrimSpace(line), "'", "")+"'\r\n")
		_, _ = io.ReadAll(in)
	})
}
