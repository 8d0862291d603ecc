package httpserver

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
)

// TLS configures TLS of a listener. Files are read again when they change.
type TLS struct {
	// CertFile holds the certificate and its chain, as PEM. Empty: no TLS.
	CertFile string `yaml:"cert_file"`
	// KeyFile holds the key of CertFile, as PEM.
	KeyFile string `yaml:"key_file"`
	// ClientCAFile holds the authorities, as PEM, whose client certificates are
	// accepted. Empty: no client certificates.
	ClientCAFile string `yaml:"client_ca_file"`
	// RequireClientCert ends connections without such a certificate at once, those
	// that ask for health included.
	RequireClientCert bool `yaml:"require_client_cert"`
}

// Problems adds what is wrong, under the key tls.
func (c TLS) Problems(p *config.Problems) {
	p.Need((c.CertFile == "") == (c.KeyFile == ""), "tls.key_file", "set cert_file and key_file together")
	p.Need(c.ClientCAFile == "" || c.CertFile != "", "tls.cert_file", "client certificates need TLS: set cert_file and key_file")
	p.Need(!c.RequireClientCert || c.ClientCAFile != "", "tls.client_ca_file", "name the authorities whose client certificates are required")
}

// Certificates are those of a listener, read again when their files change. A
// change that cannot be used is logged, and the old ones stay.
type Certificates struct {
	cfg TLS
	bad *fault.Kind
	log *slog.Logger

	mu     sync.Mutex
	files  [3]stamp
	config *tls.Config
}

// stamp tells whether a file has changed.
type stamp struct {
	at   time.Time
	size int64
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if path == "" || err != nil {
		return stamp{}
	}
	return stamp{info.ModTime(), info.Size()}
}

// OpenCertificates reads the files. Errors: those of bad.
func OpenCertificates(cfg TLS, bad *fault.Kind, log *slog.Logger) (*Certificates, error) {
	c := &Certificates{cfg: cfg, bad: bad, log: log, files: stamps(cfg)}
	var err error
	c.config, err = c.read()
	return c, err
}

func stamps(cfg TLS) [3]stamp {
	return [3]stamp{stampOf(cfg.CertFile), stampOf(cfg.KeyFile), stampOf(cfg.ClientCAFile)}
}

// Server is the configuration of the listener.
func (c *Certificates) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current(), nil },
	}
}

// current is asked at each handshake. It stays the same while the files do, and
// with it the keys of its session tickets.
func (c *Certificates) current() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := stamps(c.cfg)
	if now == c.files {
		return c.config
	}
	c.files = now
	fresh, err := c.read()
	if err != nil {
		c.log.Error("the new certificate cannot be used; the old one stays", "err", err)
		return c.config
	}
	c.log.Info("the certificate was read again", "file", c.cfg.CertFile)
	c.config = fresh
	return c.config
}

func (c *Certificates) read() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.cfg.CertFile, c.cfg.KeyFile)
	if err != nil {
		return nil, c.bad.New(err, "read the certificate %s and its key", c.cfg.CertFile)
	}
	out := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, Certificates: []tls.Certificate{pair},
	}
	if c.cfg.ClientCAFile == "" {
		return out, nil
	}
	pem, err := os.ReadFile(c.cfg.ClientCAFile)
	if err != nil {
		return nil, c.bad.New(err, "read the authorities in %s", c.cfg.ClientCAFile)
	}
	out.ClientCAs = x509.NewCertPool()
	if !out.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, c.bad.New(nil, "find a certificate in %s", c.cfg.ClientCAFile)
	}
	out.ClientAuth = tls.VerifyClientCertIfGiven
	if c.cfg.RequireClientCert {
		out.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return out, nil
}
