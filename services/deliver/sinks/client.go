package sinks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http/httpproxy"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
)

var (
	errHTTPUnreachable = fault.Define("deliver.http_unreachable", fault.Retry,
		"check that the server runs and that name, port, proxy and firewall let penstock through")
	errHTTPBusy = fault.Define("deliver.http_busy", fault.Retry,
		"nothing, when it passes; else give the server more room or lower concurrency")
	errHTTPDenied = fault.Define("deliver.http_denied", fault.Stop,
		"renew the token, password or client certificate of the destination, or its permissions at the far side")
	errHTTPAddress = fault.Define("deliver.http_wrong_request", fault.Stop,
		"correct url, method, headers, content_type or gzip of the destination: the server refuses the kind of request, whatever is in it")
	errHTTPTooLarge = fault.Define("deliver.http_too_large", fault.Reject,
		"raise the server's limit on bodies, or lower batch.bytes")
	errHTTPRejected = fault.Define("deliver.http_rejected", fault.Reject,
		"see why the server refuses this event, then redrive it")
	errHTTPSlow = errors.New("no full answer within the timeout")
)

const (
	// mostAnswer bounds what is read of an answer that says nothing of single events,
	// in bytes.
	mostAnswer = 64 << 10
	// mostSnippet bounds what an error shows of it, in bytes.
	mostSnippet = 120
	// mostAfter bounds what Retry-After may ask for.
	mostAfter = time.Hour
)

// HTTPClient are the keys of every kind that speaks HTTP.
type HTTPClient struct {
	// Headers are sent along. Their values are treated as secrets.
	Headers map[string]config.Secret `yaml:"headers"`
	// Gzip compresses the body.
	Gzip bool `yaml:"gzip"`
	// Timeout bounds one request from dial to the last byte of the answer. Unit: duration.
	Timeout time.Duration `yaml:"timeout"`
	// TLS settings for https.
	TLS TLSConfig `yaml:"tls"`
}

// HTTPAuth are the keys of kinds with the usual credentials of HTTP.
type HTTPAuth struct {
	// BearerToken is sent as "Authorization: Bearer ...".
	BearerToken config.Secret `yaml:"bearer_token"`
	// Username and Password are sent as basic authentication.
	Username string `yaml:"username"`
	// Password belongs to Username.
	Password config.Secret `yaml:"password"`
}

// ownHeaders are set by the sinks themselves.
var ownHeaders = map[string]bool{
	"Content-Type": true, "Content-Length": true, "Content-Encoding": true, "Transfer-Encoding": true,
	"Idempotency-Key": true, "Host": true, "Connection": true, "Expect": true,
}

// problems adds what is wrong. authorised tells that another key sets Authorization.
func (c HTTPClient) problems(p *config.Problems, authorised bool) {
	for name, value := range c.Headers {
		key := "headers." + name
		p.Need(httpguts.ValidHeaderFieldName(name), key, "use letters, digits and - in the name of a header")
		p.Need(!ownHeaders[http.CanonicalHeaderKey(name)], key, "leave this header to penstock; content type and compression have keys of their own")
		p.Need(oneLine(value), key, "use one line of text; a secret from a file may end in a line break too many")
		p.Need(!authorised || http.CanonicalHeaderKey(name) != "Authorization", key, "use one of this header and the keys for credentials")
	}
	p.Need(c.Timeout > 0 && c.Timeout <= time.Hour, "timeout", "use a duration above 0s and up to 1h, e.g. 30s")
	c.TLS.problems(p)
}

func (c HTTPAuth) problems(p *config.Problems) {
	p.Need(c.BearerToken.IsZero() || c.Username == "", "bearer_token", "use either bearer_token or username with password")
	p.Need(oneLine(c.BearerToken), "bearer_token", "use one line of text; a secret from a file may end in a line break too many")
	p.Need(c.Password.IsZero() || c.Username != "", "username", "set the user of the password")
	p.Need(!strings.Contains(c.Username, ":"), "username", "use a name without a colon")
}

func (c HTTPAuth) given() bool { return !c.BearerToken.IsZero() || c.Username != "" }

func oneLine(s config.Secret) bool { return httpguts.ValidHeaderFieldValue(s.Reveal()) }

// needURL checks an address that requests go to.
func needURL(p *config.Problems, key, address string) {
	u, err := url.Parse(address)
	p.Need(err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "", key, "set an address with http or https, e.g. https://example.com/in")
	p.Need(err != nil || u.User == nil, key, "take user and password out of the address; there are keys for them")
}

// roundTripper is what a client needs of an [http.Transport].
type roundTripper interface {
	http.RoundTripper
	CloseIdleConnections()
}

// httpClient sends bodies and judges what comes back: what all kinds that speak HTTP
// share. Methods may be called concurrently, but for authorise and hide.
type httpClient struct {
	name      string
	timeout   time.Duration
	gzip      bool
	header    http.Header // every request carries it
	secrets   []string    // no error shows them
	transport roundTripper
	zippers   sync.Pool
}

// newHTTPClient makes a client; Errors: deliver.tls_setup.
func newHTTPClient(destination string, cfg HTTPClient, auth HTTPAuth) (*httpClient, error) {
	tlsConfig, err := cfg.TLS.client(destination)
	if err != nil {
		return nil, err
	}
	c := &httpClient{name: destination, timeout: cfg.Timeout, gzip: cfg.Gzip, header: http.Header{}}
	c.transport = &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           dialBulk,
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
	c.zippers.New = func() any { return new(zipper) }
	c.header.Set("User-Agent", "penstock")
	for name, value := range cfg.Headers {
		c.header.Set(name, value.Reveal())
		c.hide(value.Reveal())
		if _, word, ok := strings.Cut(value.Reveal(), " "); ok {
			c.hide(word) // the token after "Bearer" or "Splunk"
		}
	}
	if !auth.BearerToken.IsZero() {
		c.authorise("Bearer", auth.BearerToken.Reveal())
	}
	c.hideProxies()
	if auth.Username != "" {
		c.authorise("Basic", base64.StdEncoding.EncodeToString([]byte(auth.Username+":"+auth.Password.Reveal())))
		c.hide(auth.Password.Reveal())
	}
	return c, nil
}

// authorise sets the header Authorization.
func (c *httpClient) authorise(scheme, secret string) {
	c.header.Set("Authorization", scheme+" "+secret)
	c.hide(secret)
}

// hide keeps words out of errors. The longest goes first, as it may begin with another.
func (c *httpClient) hide(words ...string) {
	c.secrets = append(c.secrets, words...)
	slices.SortFunc(c.secrets, func(a, b string) int { return len(b) - len(a) })
}

// hideQuery keeps the values in the query of an address out of errors.
func (c *httpClient) hideQuery(u *url.URL) {
	for _, values := range u.Query() {
		c.hide(values...)
	}
	c.hide(u.RawQuery)
}

// hideProxies keeps out of errors who we are to the proxies of the environment.
func (c *httpClient) hideProxies() {
	proxies := httpproxy.FromEnvironment()
	for _, address := range []string{proxies.HTTPProxy, proxies.HTTPSProxy} {
		u, err := url.Parse(address)
		if err != nil || u.User == nil {
			continue
		}
		password, _ := u.User.Password()
		c.hide(password, base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
	}
}

func (c *httpClient) close() { c.transport.CloseIdleConnections() }

// call is one request.
type call struct {
	method string
	url    *url.URL
	// header is added to that of the client; nil adds none.
	header http.Header
	body   []byte
	// most bounds what is read of the answer, in bytes; 0 is mostAnswer.
	most int64
}

// answer is a whole answer, as far as it was to be read.
type answer struct {
	status int
	header http.Header
	body   []byte
	// long tells that the body is longer than what was read of it.
	long bool
}

func (a answer) ok() bool { return a.status >= 200 && a.status < 300 }

// do sends one request, compressed if so configured. Without a whole answer ok is
// false and res says why. The connection pool may still read the body after it has
// an answer; do waits for that, as the bytes are the caller's.
func (c *httpClient) do(ctx context.Context, r call) (a answer, res Result, ok bool) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, errHTTPSlow)
	defer cancel()
	header := c.header.Clone()
	for name, values := range r.header {
		header[name] = values
	}
	data := r.body
	if c.gzip && len(data) > 0 {
		z := c.zippers.Get().(*zipper)
		defer c.zippers.Put(z)
		data = z.zip(data)
		header.Set("Content-Encoding", "gzip")
	}
	req := (&http.Request{
		Method: r.method, URL: r.url, Host: r.url.Host, Header: header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	if len(data) > 0 {
		body := &payload{data: data}
		defer body.readers.Wait()
		defer cancel() // before the wait: it ends what still reads
		req.Body, req.ContentLength = body.reader(), int64(len(data))
		req.GetBody = func() (io.ReadCloser, error) { return body.reader(), nil }
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return a, c.broken(ctx, r, err), false
	}
	defer resp.Body.Close() //nolint:errcheck // nothing was written
	most := r.most
	if most == 0 {
		most = mostAnswer
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil && resp.StatusCode < 300 {
		// It said yes and then broke off: whether it has stored all is not known.
		return a, c.broken(ctx, r, err), false
	}
	a = answer{status: resp.StatusCode, header: resp.Header, body: text, long: int64(len(text)) > most}
	if a.long {
		a.body = text[:most]
	}
	return a, Result{}, true
}

// key is the same for the same events in the same order. Source: the IETF draft
// on the Idempotency-Key header.
func key(b Batch) string {
	h := sha256.New()
	for i := range b.items {
		h.Write(b.items[i].ID[:])
	}
	h.Write([]byte(b.replay))
	var sum [sha256.Size]byte
	return hex.EncodeToString(h.Sum(sum[:0])[:16])
}

// headerReplay names the replay that a request belongs to.
const headerReplay = "Penstock-Replay"

// replayed adds the header of a replay to those of a request.
func replayed(h http.Header, b Batch) http.Header {
	if b.replay != "" {
		h.Set(headerReplay, b.replay)
	}
	return h
}

// doing says what a call does, for errors.
func (c *httpClient) doing(r call) string {
	return fmt.Sprintf("%s to destination %s at %s", r.method, c.name, r.url.Host)
}

// broken judges a request without a full answer.
func (c *httpClient) broken(ctx context.Context, r call, err error) Result {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if distrusts(err) {
		return Result{Verdict: Stop, Err: errHTTPDenied.New(errors.New(c.sanitise(err.Error())), "%s", c.doing(r))}
	}
	if !errors.Is(err, errHTTPSlow) && ctx.Err() == nil {
		err = errors.New(c.sanitise(err.Error()))
	}
	return Result{Verdict: Retry, Err: errHTTPUnreachable.New(err, "%s", c.doing(r))}
}

// judge turns the status of an answer into a verdict on all events of the request.
// Statuses that speak of the request as such and not of what is in it (wrong address,
// method or media type) stop the destination: they would otherwise send every event
// into quarantine.
// Source: RFC 9110 section 15; formats F-28.
func (c *httpClient) judge(r call, a answer) Result {
	if a.ok() {
		return Result{}
	}
	code := a.status
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
		code == http.StatusUnsupportedMediaType, code == http.StatusMisdirectedRequest, code == http.StatusUpgradeRequired,
		code == http.StatusRequestHeaderFieldsTooLarge, code == http.StatusBadRequest && r.url.Scheme == "http" && wantsTLS(a.body):
		verdict, kind = Stop, errHTTPAddress
	}
	return c.because(r, a, verdict, kind)
}

// wantsTLS tells whether a server says that it was spoken to without TLS, in the words of
// nginx, Go or Apache.
func wantsTLS(body []byte) bool {
	for _, said := range []string{"HTTP request was sent to HTTPS port", "HTTP request to an HTTPS server", "plain HTTP to an SSL-enabled server port"} {
		if bytes.Contains(body, []byte(said)) {
			return true
		}
	}
	return false
}

// because makes the result for an answer that is judged.
func (c *httpClient) because(r call, a answer, verdict Verdict, kind *fault.Kind) Result {
	var cause error
	if text := c.sanitise(string(a.body)); text != "" {
		cause = errors.New("it says: " + text)
	}
	res := Result{Verdict: verdict, Err: kind.New(cause, "%s: status %d", c.doing(r), a.status)}
	if verdict == Retry {
		res.After = retryAfter(a.header.Get("Retry-After"), time.Now())
	}
	return res
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
func (c *httpClient) sanitise(text string) string {
	for _, secret := range c.secrets {
		if len(secret) >= 3 {
			text = strings.ReplaceAll(text, secret, "[redacted]")
		}
	}
	out := make([]byte, 0, mostSnippet)
	for i := 0; i < len(text) && len(out) < mostSnippet; i++ {
		b := text[i]
		if b <= ' ' || b > '~' {
			b = ' '
		}
		if b != ' ' || len(out) > 0 && out[len(out)-1] != ' ' {
			out = append(out, b)
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

// dialBulk connects as the standard library does.
func dialBulk(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		return bulkConn{tcp}, nil
	}
	return conn, nil
}

// bulkConn hands a payload to the kernel where it stands. net/http would copy it through
// 32 KiB, with a system call for each: 45,000 of them for a million events of CloudTrail.
type bulkConn struct{ *net.TCPConn }

// ReadFrom implements io.ReaderFrom, which is how net/http writes a body without TLS.
func (c bulkConn) ReadFrom(r io.Reader) (int64, error) {
	if limited, ok := r.(*io.LimitedReader); ok {
		if p, ok := limited.R.(*payloadReader); ok && int64(p.Len()) <= limited.N {
			n, err := p.WriteTo(c.TCPConn)
			limited.N -= n
			return n, err
		}
	}
	return c.TCPConn.ReadFrom(r)
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
