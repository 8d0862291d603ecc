package sinks

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"strings"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
)

var errTLSSetup = fault.Define("deliver.tls_setup", fault.Stop,
	"correct the files named under tls of the destination")

// TLSConfig says whom to trust and how to identify oneself.
type TLSConfig struct {
	// CAFile holds PEM certificates to trust in place of the system's.
	CAFile string `yaml:"ca_file"`
	// CertFile holds the PEM client certificate and its chain. It is read at each new connection.
	CertFile string `yaml:"cert_file"`
	// KeyFile holds the PEM key of CertFile.
	KeyFile string `yaml:"key_file"`
	// ServerName overrides the name that the server's certificate must carry.
	ServerName string `yaml:"server_name"`
}

func (c TLSConfig) problems(p *config.Problems) {
	p.Need((c.CertFile == "") == (c.KeyFile == ""), "tls.key_file", "set both cert_file and key_file, or neither")
}

// client makes the settings of a connection to a server. Errors: deliver.tls_setup.
func (c TLSConfig) client(destination string) (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, errTLSSetup.New(err, "read tls.ca_file of destination %s", destination)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errTLSSetup.New(nil, "find a PEM certificate in tls.ca_file of destination %s", destination)
		}
	}
	if c.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile); err != nil {
			return nil, errTLSSetup.New(err, "read the client certificate of destination %s", destination)
		}
		// Read again for each connection, so that a renewed one needs no restart.
		out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			return &pair, err
		}
	}
	return out, nil
}

// distrusts reports whether a connection failed because one side does not trust the
// other's certificate, which does not pass by itself.
func distrusts(err error) bool {
	var verify *tls.CertificateVerificationError
	return errors.As(err, &verify) || refusesUs(err)
}

// refusesUs reports whether the server ended the handshake because of our
// certificate. The alert's type is not exported by crypto/tls.
func refusesUs(err error) bool {
	var remote *net.OpError
	if !errors.As(err, &remote) || remote.Op != "remote error" {
		return false
	}
	text := remote.Err.Error()
	return strings.Contains(text, "certificate") || strings.Contains(text, "access denied")
}
