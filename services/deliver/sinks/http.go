package sinks

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/penstock/penstock/services/internal/config"
)

func init() {
	define("http", "POSTs batches as newline-delimited JSON.", defaultHTTP, openHTTP)
}

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

	HTTPAuth   `yaml:",inline"`
	HTTPClient `yaml:",inline"`
}

func defaultHTTP() HTTPConfig {
	return HTTPConfig{
		Method:      http.MethodPost,
		Format:      Envelope,
		Batch:       Limits{Events: 1000, Bytes: config.MiB, Age: 200 * time.Millisecond},
		ContentType: "application/x-ndjson",
		HTTPClient:  HTTPClient{Timeout: 30 * time.Second},
	}
}

// Validate reports every problem, each with the key to change.
func (c HTTPConfig) Validate() error {
	var p config.Problems
	needURL(&p, "url", c.URL)
	p.Need(c.Method == http.MethodPost || c.Method == http.MethodPut, "method", "use POST or PUT")
	p.In("batch", c.Batch.Validate())
	p.Need(c.ContentType != "" && httpguts.ValidHeaderFieldValue(c.ContentType), "content_type", "use a media type, e.g. application/x-ndjson")
	c.HTTPAuth.problems(&p)
	c.HTTPClient.problems(&p, c.HTTPAuth.given())
	return p.Err()
}

type httpSink struct {
	*httpClient
	cfg HTTPConfig
	url *url.URL
}

func openHTTP(_ context.Context, cfg HTTPConfig, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, errHTTPAddress.New(nil, "open destination %s", deps.Destination) // not reached: validated
	}
	client, err := newHTTPClient(deps.Destination, cfg.HTTPClient, cfg.HTTPAuth)
	if err != nil {
		return nil, err
	}
	client.header.Set("Content-Type", cfg.ContentType)
	client.hideQuery(u)
	return &httpSink{httpClient: client, cfg: cfg, url: u}, nil
}

func (s *httpSink) Limits() Limits { return s.cfg.Batch }

func (s *httpSink) Append(dst []byte, e *Event) []byte { return s.cfg.Format.appendLine(dst, e) }

func (s *httpSink) Close() error {
	s.close()
	return nil
}

// Deliver sends one request.
func (s *httpSink) Deliver(ctx context.Context, b Batch) Result {
	r := call{method: s.cfg.Method, url: s.url, body: b.Bytes(), header: replayed(http.Header{"Idempotency-Key": {key(b)}}, b)}
	a, res, ok := s.do(ctx, r)
	if !ok {
		return res
	}
	return s.judge(r, a)
}
