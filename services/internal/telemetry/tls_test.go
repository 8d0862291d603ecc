package telemetry

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
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/httpserver"
)

// selfSigned writes a certificate that is its own authority, and its key.
func selfSigned(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "penstock"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", secret)
}

// Health and metrics are served over TLS, to those alone who have a client
// certificate where one is required; profiles stay on loopback without.
func TestPublicAddressOverTLS(t *testing.T) {
	cert, key := selfSigned(t)
	s := serve(t, Health{TLS: httpserver.TLS{CertFile: cert, KeyFile: key, ClientCAFile: cert, RequireClientCert: true}})
	authorities := x509.NewCertPool()
	data, err := os.ReadFile(cert)
	if err != nil || !authorities.AppendCertsFromPEM(data) {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	get := func(scheme string, c *tls.Config) (int, error) {
		transport := &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+"://"+s.Addr()+"/metrics", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := transport.RoundTrip(r)
		if err != nil {
			return 0, err
		}
		return answer.StatusCode, answer.Body.Close()
	}
	if status, err := get("https", &tls.Config{RootCAs: authorities, Certificates: []tls.Certificate{pair}}); status != http.StatusOK || err != nil {
		t.Errorf("with a client certificate: %d, %v", status, err)
	}
	if status, err := get("https", &tls.Config{RootCAs: authorities}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("without one: %d, %v", status, err)
	}
	if status, err := get("http", nil); err != nil || status != http.StatusBadRequest {
		t.Errorf("without TLS: %d, %v", status, err)
	}
	_, err = Listen(t.Context(), "127.0.0.1:0", Health{TLS: httpserver.TLS{CertFile: key, KeyFile: cert}})
	if fault.CodeOf(err) != "telemetry.bad_certificate" {
		t.Errorf("with the files the wrong way round: %v", err)
	}
}
