package sinks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/net/http/httpguts"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
)

func init() {
	define("http", "POSTs batches as newline-delimited JSON.", defaultHTTP, openHTTP)
}

var (
	errHTTPUnreachable = fault.Define("deliver.http_unreachable", fault.Retry,
		"check that the server runs and that name, port, proxy and firewall let penstock through")
	errHTTPBusy = fault.Define("deliver.http_busy", fault.Retry,
		"nothing, when it passes; else give the server more room or lower concurrency")
	errHTTPDenied = fault.Define("deliver.http_denied", fault.Stop,
		"renew the token, password or client certificate of the destination, or its permissions at the far side")
	errHTTPAddress = fault.Define("deliver.http_wrong_request", fault.Stop,
		"correct url, method, content_type or gzip of the destination: the server refuses the kind of request, whatever is in it")
	errHTTPTooLarge = fault.Define("deliver.http_too_large", fault.Reject,
		"raise the server's limit on bodies, or lower batch.bytes")
	errHTTPRejected = fault.Define("deliver.http_rejected", fault.Reject,
		"see why the server refuses this event, then redrive it")
	errHTTPSetup = fault.Define("deliver.http_setup", fault.Stop,
		"correct the files named under tls of the destination")
	errHTTPSlow = errors.New("no full answer within the timeout")
)

const (
	// mostAnswer bounds what is read of an answer, in bytes.
	mostAnswer = 64 << 10
	// mostSnippet bounds what an error shows of it, in bytes.
	mostSnippet = 120
	// mostAfter bounds what Retry-After may ask for.
	mostAfter = time.Hour
)

// HTTPConfig configures the http sink.
type HTTPConfig struct {
	// URL receives one request per batch: http or https, without user and password. Required.
	URL string `yaml:"url"`
	// Method of the request: POST or PUT.
	Method string `yaml:"method"`
	// Format of a line: envelope (with penstock's id, type, time, source, account and region) or document.
	Format Format `yaml:"format"`
	// Batch bounds one request.
	Batch Limits `yaml:"batch"`
	// ContentType of the request.
	ContentType string `yaml:"content_type"`
	// Headers are sent along. Their values are treated as secrets.
	Headers map[string]config.Secret `yaml:"headers"`
	// BearerToken is sent as "Authorization: Bearer ...".
	BearerToken config.Secret `yaml:"bearer_token"`
	// Username and Password are sent as basic authentication.
	Username string `yaml:"username"`
	// Password belongs to Username.
	Password config.Secret `yaml:"password"`
	// Gzip compresses the body.
	Gzip bool `yaml:"gzip"`
	// Timeout bounds one request from dial to the last byte of the answer. Unit: duration.
	Timeout time.Duration `yaml:"timeout"`
	// TLS settings for https.
	TLS TLSConfig `yaml:"tls"`
}

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

func defaultHTTP() HTTPConfig {
	return HTTPConfig{
		Method:      http.MethodPost,
		Format:      Envelope,
		Batch:       Limits{Events: 1000, Bytes: config.MiB, Age: time.Second},
		ContentType: "application/x-ndjson",
		Timeout:     30 * time.Second,
	}
}

// Headers that the sink sets itself.
var ownHeaders = map[string]bool{
	"Content-Type": true, "Content-Length": true, "Content-Encoding": true, "Transfer-Encoding": true,
	"Idempotency-Key": true, "Host": true, "Connection": true, "Expect": true,
}

// Validate reports every problem, each with the key to change.
func (c HTTPConfig) Validate() error {
	var p config.Problems
	u, err := url.Parse(c.URL)
	p.Need(err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "", "url", "set the address to POST to, e.g. https://example.com/in")
	p.Need(err != nil || u.User == nil, "url", "take user and password out of the address; use username and password")
	p.Need(c.Method == http.MethodPost || c.Method == http.MethodPut, "method", "use POST or PUT")
	p.In("batch", c.Batch.Validate())
	p.Need(c.ContentType != "" && httpguts.ValidHeaderFieldValue(c.ContentType), "content_type", "use a media type, e.g. application/x-ndjson")
	for name, value := range c.Headers {
		key := "headers." + name
		p.Need(httpguts.ValidHeaderFieldName(name), key, "use letters, digits and - in the name of a header")
		p.Need(!ownHeaders[http.CanonicalHeaderKey(name)], key, "leave this header to penstock; content type and compression have keys of their own")
		p.Need(httpguts.ValidHeaderFieldValue(value.Reveal()), key, "use one line of text; a secret from a file may end in a line break too many")
		if http.CanonicalHeaderKey(name) == "Authorization" {
			p.Need(c.BearerToken.IsZero() && c.Username == "", key, "use one of this header, bearer_token, and username with password")
		}
	}
	p.Need(c.BearerToken.IsZero() || c.Username == "", "bearer_token", "use either bearer_token or username with password")
	p.Need(httpguts.ValidHeaderFieldValue(c.BearerToken.Reveal()), "bearer_token", "use one line of text; a secret from a file may end in a line break too many")
	p.Need(c.Password.IsZero() || c.Username != "", "username", "set the user of the password")
	p.Need(!strings.Contains(c.Username, ":"), "username", "use a name without a colon")
	p.Need(c.Timeout > 0 && c.Timeout <= time.Hour, "timeout", "use a duration above 0s and up to 1h, e.g. 30s")
	p.Need((c.TLS.CertFile == "") == (c.TLS.KeyFile == ""), "tls.key_file", "set both cert_file and key_file, or neither")
	return p.Err()
}

// roundTripper is what the sink needs of an [http.Transport].
type roundTripper interface {
	http.RoundTripper
	CloseIdleConnections()
}

type httpSink struct {
	cfg       HTTPConfig
	name      string
	host      string
	url       *url.URL
	header    http.Header
	secrets   []string
	transport roundTripper
	zippers   sync.Pool
}

func openHTTP(_ context.Context, cfg HTTPConfig, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, errHTTPAddress.New(nil, "open destination %s", deps.Destination) // not reached: validated
	}
	tlsConfig, err := cfg.TLS.client(deps.Destination)
	if err != nil {
		return nil, err
	}
	s := &httpSink{cfg: cfg, name: deps.Destination, host: u.Host, url: u, header: http.Header{}}
	s.transport = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       tlsConfig,
		TLSHandshakeTimeout:   10 * time.Second,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       90 * time.Second,
		ResponseHeaderTimeout: cfg.Timeout,
		// Bodies are large and each has a connection of its own: HTTP/2 would only
		// squeeze them through one.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		// An answer is read as it is: its length is what is bounded.
		DisableCompression:     true,
		WriteBufferSize:        64 << 10,
		MaxResponseHeaderBytes: 64 << 10,
	}
	s.zippers.New = func() any { return new(zipper) }
	s.setHeader()
	return s, nil
}

// setHeader prepares what every request carries, and the list of words that no
// error may show.
func (s *httpSink) setHeader() {
	s.header.Set("User-Agent", "penstock")
	s.header.Set("Content-Type", s.cfg.ContentType)
	if s.cfg.Gzip {
		s.header.Set("Content-Encoding", "gzip")
	}
	for name, value := range s.cfg.Headers {
		s.header.Set(name, value.Reveal())
		s.secrets = append(s.secrets, value.Reveal())
		if _, word, ok := strings.Cut(value.Reveal(), " "); ok {
			s.secrets = append(s.secrets, word) // the token after "Bearer" or "Splunk"
		}
	}
	if !s.cfg.BearerToken.IsZero() {
		s.header.Set("Authorization", "Bearer "+s.cfg.BearerToken.Reveal())
		s.secrets = append(s.secrets, s.cfg.BearerToken.Reveal())
	}
	if s.cfg.Username != "" {
		pair := base64.StdEncoding.EncodeToString([]byte(s.cfg.Username + ":" + s.cfg.Password.Reveal()))
		s.header.Set("Authorization", "Basic "+pair)
		s.secrets = append(s.secrets, pair, s.cfg.Password.Reveal())
	}
	for _, values := range s.url.Query() {
		s.secrets = append(s.secrets, values...)
	}
	s.secrets = append(s.secrets, s.url.RawQuery)
}

func (c TLSConfig) client(destination string) (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, errHTTPSetup.New(err, "read tls.ca_file of destination %s", destination)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errHTTPSetup.New(nil, "find a PEM certificate in tls.ca_file of destination %s", destination)
		}
	}
	if c.CertFile != "" {
		if _, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile); err != nil {
			return nil, errHTTPSetup.New(err, "read the client certificate of destination %s", destination)
		}
		// Read again for each connection, so that a renewed one needs no restart.
		out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			return &pair, err
		}
	}
	return out, nil
}

func (s *httpSink) Limits() Limits { return s.cfg.Batch }

func (s *httpSink) Append(dst []byte, e *Event) []byte { return s.cfg.Format.appendLine(dst, e) }

func (s *httpSink) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// Deliver sends one request. The connection pool may still read the body after
// it has an answer; Deliver waits for that, as the bytes are the caller's.
func (s *httpSink) Deliver(ctx context.Context, b Batch) Result {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.Timeout, errHTTPSlow)
	defer cancel()
	data := b.Bytes()
	if s.cfg.Gzip {
		z := s.zippers.Get().(*zipper)
		defer s.zippers.Put(z)
		data = z.zip(data)
	}
	body := &payload{data: data}
	defer body.readers.Wait()
	defer cancel() // before the wait: it ends what still reads
	req := (&http.Request{
		Method: s.cfg.Method, URL: s.url, Host: s.url.Host, Header: s.header.Clone(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: body.reader(), ContentLength: int64(len(data)),
		GetBody: func() (io.ReadCloser, error) { return body.reader(), nil },
	}).WithContext(ctx)
	req.Header.Set("Idempotency-Key", key(b))

	resp, err := s.transport.RoundTrip(req)
	if err != nil {
		return s.broken(ctx, err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing was written
	answer, err := io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
	if err != nil && resp.StatusCode < 300 {
		// It said yes and then broke off: whether it has stored all is not known.
		return s.broken(ctx, err)
	}
	return s.judge(resp, answer)
}

// key is the same for the same events in the same order. Source: the IETF draft
// on the Idempotency-Key header.
func key(b Batch) string {
	h := sha256.New()
	for i := range b.items {
		h.Write(b.items[i].ID[:])
	}
	var sum [sha256.Size]byte
	return hex.EncodeToString(h.Sum(sum[:0])[:16])
}

// broken judges a request without a full answer.
func (s *httpSink) broken(ctx context.Context, err error) Result {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	doing := fmt.Sprintf("%s to destination %s at %s", s.cfg.Method, s.name, s.host)
	var verify *tls.CertificateVerificationError
	if errors.As(err, &verify) || refusesUs(err) {
		return Result{Verdict: Stop, Err: errHTTPDenied.New(errors.New(s.sanitise(err.Error())), "%s", doing)}
	}
	if !errors.Is(err, errHTTPSlow) && ctx.Err() == nil {
		err = errors.New(s.sanitise(err.Error()))
	}
	return Result{Verdict: Retry, Err: errHTTPUnreachable.New(err, "%s", doing)}
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

// judge turns the status into a verdict. Statuses that speak of the request as
// such and not of what is in it (wrong address, method or media type) stop the
// destination: they would otherwise send every event into quarantine.
// Source: RFC 9110 section 15; formats F-28.
func (s *httpSink) judge(resp *http.Response, answer []byte) Result {
	code := resp.StatusCode
	if code >= 200 && code < 300 {
		return Result{}
	}
	verdict, kind := Split, errHTTPRejected
	switch {
	case code >= 500, code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests:
		verdict, kind = Retry, errHTTPBusy
	case code == http.StatusRequestEntityTooLarge:
		verdict, kind = TooLarge, errHTTPTooLarge
	case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusProxyAuthRequired:
		verdict, kind = Stop, errHTTPDenied
	case code < 400, code == http.StatusNotFound, code == http.StatusMethodNotAllowed, code == http.StatusNotAcceptable,
		code == http.StatusGone, code == http.StatusLengthRequired, code == http.StatusRequestURITooLong,
		code == http.StatusUnsupportedMediaType, code == http.StatusMisdirectedRequest, code == http.StatusUpgradeRequired:
		verdict, kind = Stop, errHTTPAddress
	}
	var cause error
	if text := s.sanitise(string(answer)); text != "" {
		cause = errors.New("it says: " + text)
	}
	r := Result{Verdict: verdict, Err: kind.New(cause, "%s to destination %s at %s: status %d", s.cfg.Method, s.name, s.host, code)}
	if verdict == Retry {
		r.After = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	return r
}

// retryAfter reads both forms of the header, at most mostAfter. Source: RFC 9110
// section 10.2.3.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if n, err := strconv.ParseUint(value, 10, 32); err == nil {
		return min(time.Duration(n)*time.Second, mostAfter)
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(0, at.Sub(now)), mostAfter)
}

// sanitise makes foreign text fit for an error: secrets out, printable ASCII
// only, short.
func (s *httpSink) sanitise(text string) string {
	for _, secret := range s.secrets {
		if len(secret) >= 3 {
			text = strings.ReplaceAll(text, secret, "[redacted]")
		}
	}
	out := make([]byte, 0, mostSnippet)
	for i := 0; i < len(text) && len(out) < mostSnippet; i++ {
		c := text[i]
		if c <= ' ' || c > '~' {
			c = ' '
		}
		if c != ' ' || len(out) > 0 && out[len(out)-1] != ' ' {
			out = append(out, c)
		}
	}
	return strings.TrimSpace(string(out))
}

// payload is a body that knows who still reads it.
type payload struct {
	data    []byte
	readers sync.WaitGroup
}

func (p *payload) reader() io.ReadCloser {
	p.readers.Add(1)
	return &payloadReader{Reader: bytes.NewReader(p.data), done: sync.OnceFunc(p.readers.Done)}
}

type payloadReader struct {
	*bytes.Reader
	done func()
}

func (r *payloadReader) Close() error {
	r.done()
	return nil
}

// zipper compresses into a buffer that it keeps.
type zipper struct {
	buf bytes.Buffer
	w   *gzip.Writer
}

func (z *zipper) zip(data []byte) []byte {
	z.buf.Reset()
	if z.w == nil {
		z.w, _ = gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is valid
	}
	z.w.Reset(&z.buf)
	_, _ = z.w.Write(data) // a bytes.Buffer takes all
	_ = z.w.Close()
	return z.buf.Bytes()
}
