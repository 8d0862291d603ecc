package sources

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/penstock/penstock/messages/fault"
)

var errHTTPCertificate = fault.Define("ingest.http_certificate", fault.Stop,
	"correct the files named under tls of the source: PEM, a key that belongs to the certificate, readable by the user that penstock runs as")

// httpCertificates are those of a listener, read again when their files change. A
// change that cannot be used is logged, and the old ones stay.
type httpCertificates struct {
	cfg HTTPTLS
	log *slog.Logger

	mu     sync.Mutex
	files  [3]httpStamp
	config *tls.Config
}

// httpStamp tells whether a file has changed.
type httpStamp struct {
	at   time.Time
	size int64
}

func httpStampOf(path string) httpStamp {
	info, err := os.Stat(path)
	if path == "" || err != nil {
		return httpStamp{}
	}
	return httpStamp{info.ModTime(), info.Size()}
}

func openHTTPCertificates(cfg HTTPTLS, log *slog.Logger) (*httpCertificates, error) {
	c := &httpCertificates{cfg: cfg, log: log, files: httpStamps(cfg)}
	var err error
	c.config, err = c.read()
	return c, err
}

func httpStamps(cfg HTTPTLS) [3]httpStamp {
	return [3]httpStamp{httpStampOf(cfg.CertFile), httpStampOf(cfg.KeyFile), httpStampOf(cfg.ClientCAFile)}
}

// server is the configuration of the listener.
func (c *httpCertificates) server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current(), nil },
	}
}

// current is asked at each handshake. It stays the same while the files do, and
// with it the keys of its session tickets.
func (c *httpCertificates) current() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := httpStamps(c.cfg)
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

func (c *httpCertificates) read() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.cfg.CertFile, c.cfg.KeyFile)
	if err != nil {
		return nil, errHTTPCertificate.New(err, "read the certificate %s and its key", c.cfg.CertFile)
	}
	out := &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, Certificates: []tls.Certificate{pair},
	}
	if c.cfg.ClientCAFile == "" {
		return out, nil
	}
	pem, err := os.ReadFile(c.cfg.ClientCAFile)
	if err != nil {
		return nil, errHTTPCertificate.New(err, "read the authorities in %s", c.cfg.ClientCAFile)
	}
	out.ClientCAs = x509.NewCertPool()
	if !out.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, errHTTPCertificate.New(nil, "find a certificate in %s", c.cfg.ClientCAFile)
	}
	out.ClientAuth = tls.VerifyClientCertIfGiven
	if c.cfg.RequireClientCert {
		out.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return out, nil
}
