package sources

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, next: 1}
	a.key = newKey(t)
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// issue returns a certificate and its key, as PEM.
func (a *authority) issue(subject pkix.Name, uri string) (cert, key []byte) {
	a.t.Helper()
	k := newKey(a.t)
	a.next++
	c := &x509.Certificate{
		SerialNumber: big.NewInt(a.next), Subject: subject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			a.t.Fatal(err)
		}
		c.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &k.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// put writes a file whose time is not that of the one before.
func put(t *testing.T, path string, data []byte, at time.Time) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// Certificates of clients count by their names, and all files are read again when
// they change.
func TestHTTPTLS(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile, caFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")
	servers, clients, strangers := newAuthority(t, "servers"), newAuthority(t, "clients"), newAuthority(t, "strangers")
	began := time.Now().Add(-time.Minute)
	place := func(at time.Time, name string, ca *authority) {
		cert, key := servers.issue(pkix.Name{CommonName: name}, "")
		put(t, certFile, cert, at)
		put(t, keyFile, key, at)
		put(t, caFile, ca.pem(), at)
	}
	place(began, "first", clients)
	r := listenHTTP(t, func(c *HTTPConfig, _ *Deps) {
		c.TLS = HTTPTLS{CertFile: certFile, KeyFile: keyFile, ClientCAFile: caFile}
		c.Auth = HTTPAuth{ClientSubjects: []string{"CN=agent-*,O=Example", "spiffe://example.org/agents/*"}}
		c.Endpoints = []HTTPEndpoint{httpAt(HTTPJSON, "/in"), httpAt(HTTPHEC, "")}
	})
	r.url = "https://" + r.Addr().String()
	// as returns a client with a certificate, and the name of the server's.
	as := func(ca *authority, subject pkix.Name, uri string) (status int, server string, err error) {
		t.Helper()
		pool := x509.NewCertPool()
		pool.AddCert(servers.cert)
		cfg := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
		if ca != nil {
			cert, key := ca.issue(subject, uri)
			pair, err := tls.X509KeyPair(cert, key)
			if err != nil {
				t.Fatal(err)
			}
			// Whatever the server asks for, also where it would refuse it.
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
		defer transport.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/in", strings.NewReader(`{"a":1}`))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 2 {
			t.Errorf("spoke %s", resp.Proto)
		}
		return resp.StatusCode, resp.TLS.PeerCertificates[0].Subject.CommonName, nil
	}
	agent := pkix.Name{CommonName: "agent-1", Organization: []string{"Example"}}
	for _, tt := range []struct {
		name    string
		ca      *authority
		subject pkix.Name
		uri     string
		status  int // 0: the connection fails
	}{
		{"by subject", clients, agent, "", 202},
		{"by URI", clients, pkix.Name{CommonName: "x"}, "spiffe://example.org/agents/7", 202},
		{"another subject", clients, pkix.Name{CommonName: "agent-1", Organization: []string{"Elsewhere"}}, "", 403},
		{"another URI", clients, pkix.Name{CommonName: "x"}, "spiffe://example.org/admins/7", 403},
		{"none", nil, agent, "", 401},
		{"of another authority", strangers, agent, "", 0},
	} {
		status, server, err := as(tt.ca, tt.subject, tt.uri)
		if status != tt.status || (err == nil) != (tt.status > 0) || err == nil && server != "first" {
			t.Errorf("%s: status %d of %q, %v; want %d", tt.name, status, server, err, tt.status)
		}
	}
	place(began.Add(time.Second), "second", strangers)
	if status, server, err := as(strangers, agent, ""); status != 202 || server != "second" || err != nil {
		t.Errorf("after the change: status %d of %q, %v", status, server, err)
	}
	if _, _, err := as(clients, agent, ""); err == nil {
		t.Error("after the change the old authority is still trusted")
	}
	put(t, certFile, []byte("garbage"), began.Add(2*time.Second))
	if status, server, err := as(strangers, agent, ""); status != 202 || server != "second" || err != nil {
		t.Errorf("after a change that is none: status %d of %q, %v", status, server, err)
	}
	if got, err := http.Get("http://" + r.Addr().String() + "/in"); err != nil || got.StatusCode != 400 {
		t.Errorf("without TLS: %v, %v", got, err)
	} else {
		_ = got.Body.Close()
	}
	r.cfg.TLS.RequireClientCert = true
	cfg := r.cfg
	put(t, certFile, []byte("garbage"), began.Add(3*time.Second))
	if _, err := openHTTP(t.Context(), cfg, r.deps); err == nil || !strings.Contains(err.Error(), errHTTPCertificate.Code) {
		t.Errorf("opened with garbage for a certificate: %v", err)
	}
}
