package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/topology"
)

// Where the files of penstock topology certificates are, in the folder of each name.
const (
	authorityFolder = "ca"
	serverFolder    = "nats"
	caFile          = "ca.crt"
	certFile        = "tls.crt"
	certKeyFile     = "tls.key"
)

// authorityYears is how long the authority is valid. Who wants to replace it sooner
// removes its folder.
const authorityYears = 10

// early is what certificates are valid before they are made: clocks differ.
const early = time.Hour

type certificatesFlags struct {
	dir    string
	hosts  []string
	valid  time.Duration
	rotate bool
	asJSON bool
}

// certificateOf is a certificate as the command reports it.
type certificateOf struct {
	Name  string    `json:"name"`
	File  string    `json:"file"`
	Until time.Time `json:"until"`
	New   bool      `json:"new"`
}

func newTopologyCertificates() *cobra.Command {
	flags := certificatesFlags{valid: 365 * 24 * time.Hour}
	cmd := &cobra.Command{
		Use: "certificates", Args: exactly(0),
		Short: "Make a private authority, and certificates for NATS and each of its users",
		Long: `Makes an authority of its own, a certificate for the NATS servers, and one for each
role that connects to them. Then there are, for nobody else to read:

  DIR/ca/ca.crt, tls.key             the authority; keep the key where no process runs
  DIR/nats/tls.crt, tls.key, ca.crt  for the servers
  DIR/ROLE/tls.crt, tls.key, ca.crt  for a role: bus.cert_file, bus.key_file, bus.ca_file

A role's certificate is called ROLE.penstock, which "topology users --mtls" expects.
What is there and still good for a third of its time is kept, so that it is safe to
repeat; repeat it at least that often, then restart what uses them. --rotate makes all
but the authority anew.

It is there so that TLS is not left out for want of certificates. Where you have an
authority of your own (a cloud's, Vault, cert-manager, step-ca), take that: it can
revoke, and its key is guarded.`,
		Example: `  penstock topology certificates --dir certificates --host nats --host nats.example.com
  penstock topology certificates --dir certificates --host nats --rotate --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			made, err := flags.run(time.Now())
			if err != nil {
				return err
			}
			if flags.asJSON {
				return writeJSON(cmd.OutOrStdout(), made)
			}
			t := table(cmd.OutOrStdout())
			fmt.Fprintln(t, "CERTIFICATE\tSTATE\tUNTIL\tFILE")
			for _, c := range made {
				state := "kept"
				if c.New {
					state = "new"
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", c.Name, state, c.Until.UTC().Format(time.DateOnly), c.File)
			}
			return t.Flush()
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.dir, "dir", "", "folder for the certificates")
	f.StringSliceVar(&flags.hosts, "host", nil, "a name or an address by which clients reach the servers; repeat it for more")
	f.DurationVar(&flags.valid, "valid", flags.valid, "how long certificates are valid, but for the authority's")
	f.BoolVar(&flags.rotate, "rotate", false, "make all certificates anew, but for the authority's")
	f.BoolVar(&flags.asJSON, "json", false, "print JSON")
	return cmd
}

// run makes what is missing or will soon be over.
func (f *certificatesFlags) run(now time.Time) ([]certificateOf, error) {
	switch {
	case f.dir == "":
		return nil, usageError{errors.New("say with --dir where to put the certificates")}
	case len(f.hosts) == 0:
		return nil, usageError{errors.New("say with --host by which names clients reach the servers, e.g. --host nats")}
	case f.valid < time.Hour:
		return nil, usageError{fmt.Errorf("--valid %s: use 1h or more", f.valid)}
	}
	authority, made, err := f.authority(now)
	if err != nil {
		return nil, err
	}
	all := []certificateOf{made}
	made, err = f.leaf(now, authority, serverFolder, f.hosts, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth) // a server is the client of another
	if err != nil {
		return nil, err
	}
	all = append(all, made)
	for _, role := range topology.Roles {
		made, err := f.leaf(now, authority, string(role), []string{string(role) + ".penstock"}, x509.ExtKeyUsageClientAuth)
		if err != nil {
			return nil, err
		}
		all = append(all, made)
	}
	return all, nil
}

// pair is a certificate and its key.
type pair struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// authority reads the authority, or makes it.
func (f *certificatesFlags) authority(now time.Time) (pair, certificateOf, error) {
	path := filepath.Join(f.dir, authorityFolder, caFile)
	keyPath := filepath.Join(f.dir, authorityFolder, certKeyFile)
	found, err := readPair(path, keyPath)
	if err != nil {
		return pair{}, certificateOf{}, err
	}
	if found.cert != nil {
		if now.After(found.cert.NotAfter) {
			return pair{}, certificateOf{}, fmt.Errorf("the authority in %s has been over since %s: remove that folder, and have all take the new one",
				filepath.Dir(path), found.cert.NotAfter.UTC().Format(time.DateOnly))
		}
		return found, certificateOf{Name: found.cert.Subject.CommonName, File: path, Until: found.cert.NotAfter}, nil
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "penstock authority"},
		NotBefore: now.Add(-early), NotAfter: now.AddDate(authorityYears, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	made, err := issue(template, pair{}, path, keyPath)
	if err != nil {
		return pair{}, certificateOf{}, err
	}
	return made, certificateOf{Name: made.cert.Subject.CommonName, File: path, Until: made.cert.NotAfter, New: true}, nil
}

// leaf keeps the certificate in a folder, or makes one. Whoever has it trusts the
// authority.
func (f *certificatesFlags) leaf(now time.Time, authority pair, folder string, names []string, usage ...x509.ExtKeyUsage) (certificateOf, error) {
	path := filepath.Join(f.dir, folder, certFile)
	keyPath := filepath.Join(f.dir, folder, certKeyFile)
	trust := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.cert.Raw})
	if err := replaceFile(filepath.Join(f.dir, folder, caFile), string(trust), -1, -1); err != nil {
		return certificateOf{}, fmt.Errorf("write the authority's certificate: %w", err)
	}
	found, err := readPair(path, keyPath)
	if err != nil {
		return certificateOf{}, err
	}
	if !f.rotate && found.cert != nil && found.serves(now, authority, names) {
		return certificateOf{Name: names[0], File: path, Until: found.cert.NotAfter}, nil
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: names[0]},
		NotBefore: now.Add(-early), NotAfter: now.Add(f.valid),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage, BasicConstraintsValid: true,
	}
	if template.NotAfter.After(authority.cert.NotAfter) {
		template.NotAfter = authority.cert.NotAfter
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	made, err := issue(template, authority, path, keyPath)
	if err != nil {
		return certificateOf{}, err
	}
	return certificateOf{Name: names[0], File: path, Until: made.cert.NotAfter, New: true}, nil
}

// serves tells whether a certificate is of the authority, for all names, and good for
// another third of its time.
func (p pair) serves(now time.Time, authority pair, names []string) bool {
	left := p.cert.NotAfter.Sub(now)
	if p.cert.CheckSignatureFrom(authority.cert) != nil || left < p.cert.NotAfter.Sub(p.cert.NotBefore)/3 {
		return false
	}
	return !slices.ContainsFunc(names, func(name string) bool { return p.cert.VerifyHostname(name) != nil })
}

// issue makes a key and its certificate, signed by an authority or, without one, by
// itself. The key is written first: one without a certificate is made again.
func issue(template *x509.Certificate, authority pair, path, keyPath string) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return pair{}, err
	}
	if authority.cert == nil {
		authority = pair{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, authority.cert, key.Public(), authority.key)
	if err != nil {
		return pair{}, fmt.Errorf("make the certificate %s: %w", path, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return pair{}, fmt.Errorf("make the certificate %s: %w", path, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return pair{}, fmt.Errorf("make the key of %s: %w", path, err)
	}
	for _, file := range []struct {
		path, kind string
		der        []byte
	}{{keyPath, "PRIVATE KEY", keyDER}, {path, "CERTIFICATE", der}} {
		if err := replaceFile(file.path, string(pem.EncodeToMemory(&pem.Block{Type: file.kind, Bytes: file.der})), -1, -1); err != nil {
			return pair{}, fmt.Errorf("write a certificate: %w", err)
		}
	}
	return pair{cert, key}, nil
}

// readPair reads a certificate and its key; an empty pair when one of them is missing or
// they do not belong together, as after a stop between the two.
func readPair(path, keyPath string) (pair, error) {
	certDER, err := readPEM(path, "CERTIFICATE")
	if err != nil || certDER == nil {
		return pair{}, err
	}
	keyDER, err := readPEM(keyPath, "PRIVATE KEY")
	if err != nil || keyDER == nil {
		return pair{}, err
	}
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return pair{}, fmt.Errorf("read the certificate %s: %w; remove it to have a new one made", path, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return pair{}, fmt.Errorf("read the key %s: %w; remove it to have a new one made", keyPath, err)
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok || !signer.PublicKey.Equal(cert.PublicKey) {
		return pair{}, nil
	}
	return pair{cert, signer}, nil
}

func readPEM(path, kind string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a certificate: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s has no %s in PEM: remove it to have a new one made", path, strings.ToLower(kind))
	}
	return block.Bytes, nil
}
