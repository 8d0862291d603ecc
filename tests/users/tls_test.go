package users

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

// authority issues certificates into a folder.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.issue("ca", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	return a
}

// issue writes NAME.pem and NAME.key.
func (a *authority) issue(name string, template, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if parent == nil {
		parent, by = template, key
	}
	template.Subject, template.SerialNumber = pkix.Name{CommonName: name}, big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	template.KeyUsage |= x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{name + ".pem": {Type: "CERTIFICATE", Bytes: der}, name + ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(a.path(file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return cert, key
}

func (a *authority) path(file string) string { return filepath.Join(a.dir, file) }

// With verify_and_map there are no passwords: who has the certificate is the user, and may
// do what that one may.
func TestCertificatesAreUsers(t *testing.T) {
	t.Parallel()
	ca, strange := newAuthority(t), newAuthority(t)
	ca.issue("server", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, ca.cert, ca.key)
	for _, r := range topology.Roles {
		ca.issue(string(r), &x509.Certificate{DNSNames: []string{string(r) + ".penstock"}}, ca.cert, ca.key)
	}
	strange.issue("admin", &x509.Certificate{DNSNames: []string{"admin.penstock"}}, strange.cert, strange.key)
	b := start(t, withStreams+"tls { cert_file: \""+ca.path("server.pem")+"\", key_file: \""+ca.path("server.key")+"\", ca_file: \""+ca.path("ca.pem")+"\", verify_and_map: true }\n", "--mtls")
	if entries, err := os.ReadDir(filepath.Join(b.dir, "users")); err != nil || len(entries) != 1 {
		t.Errorf("with certificates there is more than the users: %v, %v", entries, err)
	}

	as := func(r topology.Role, from *authority) []string {
		return []string{
			"PENSTOCK_BUS_USER=" + string(r), "PENSTOCK_BUS_CA_FILE=" + ca.path("ca.pem"),
			"PENSTOCK_BUS_CERT_FILE=" + from.path(string(r)+".pem"), "PENSTOCK_BUS_KEY_FILE=" + from.path(string(r)+".key"),
		}
	}
	url := "tls://" + b.addr
	for _, tt := range []struct {
		who  topology.Role
		from *authority
		ok   bool
		args []string
	}{
		{"admin", strange, false, []string{"topology", "apply", "--nats", url}},
		{"admin", ca, true, []string{"topology", "apply", "--nats", url}},
		{"operate", ca, true, []string{"topology", "show", "--nats", url}},
		{"operate", ca, true, []string{"jobs", "list", "--nats", url}},
	} {
		if out, errOut, code := harness.Run(t, as(tt.who, tt.from), tt.args...); (code == 0) != tt.ok {
			t.Errorf("%s %v: exit code %d: %s%s", tt.who, tt.args, code, out, errOut)
		}
	}
	if v := b.log.violations(); len(v) != 0 {
		t.Errorf("violations: %v", v)
	}
	parse := b.connect("parse", url, nats.RootCAs(ca.path("ca.pem")), nats.ClientCert(ca.path("parse.pem"), ca.path("parse.key")))
	refused := parse.refused("Publish", "penstock.parsed.0", "penstock.event.x", "penstock.record.x", "$JS.API.STREAM.PURGE.EVENTS")
	if len(refused) != 3 || refused["penstock.parsed.0"] {
		t.Errorf("the certificate of parse is refused %v", refused)
	}
	if nc, err := nats.Connect(url, nats.RootCAs(ca.path("ca.pem"))); err == nil {
		nc.Close()
		t.Error("who has no certificate gets in")
	} else if strings.Contains(err.Error(), "timeout") {
		t.Error(err)
	}
}
