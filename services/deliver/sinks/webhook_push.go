package sinks

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/document"
	"github.com/penstock/penstock/services/internal/probe"
)

func init() {
	define("webhook_push", "POSTs signed webhooks as Standard Webhooks describes them, one event or an array at a time.", defaultWebhookPush, openWebhookPush)
}

var errWebhookGone = fault.Define("deliver.webhook_gone", fault.Stop,
	"remove the destination, or correct its url: the receiver says that it wants no more of these webhooks")

const (
	// Header names as the specification writes them.
	webhookID        = "webhook-id"
	webhookTimestamp = "webhook-timestamp"
	webhookSignature = "webhook-signature"

	webhookSecretPrefix = "whsec_"
	// webhookRest is how long a receiver that said 410 is left alone.
	webhookRest = time.Hour
)

// WebhookPushConfig configures the webhook_push sink.
type WebhookPushConfig struct {
	// URL of the receiver: http or https, without user and password. Required.
	URL string `yaml:"url"`
	// Secrets sign each request, all of them at once, so that a key can be replaced while receivers still know the old one. Each is whsec_ and the base64 of 24 to 64 random bytes. 1 to 8. Required.
	Secrets []config.Secret `yaml:"secrets"`
	// OnePerRequest sends each event as a request of its own, with one JSON object as the body. False: a body is a JSON array with the events of a batch.
	OnePerRequest bool `yaml:"one_per_request"`
	// Batch bounds one request. With one_per_request batch.events is 1.
	Batch Limits `yaml:"batch"`

	HTTPAuth   `yaml:",inline"`
	HTTPClient `yaml:",inline"`
}

func defaultWebhookPush() WebhookPushConfig {
	return WebhookPushConfig{
		OnePerRequest: true,
		Batch:         Limits{Events: 1, Bytes: config.MiB, Age: time.Second},
		HTTPClient:    HTTPClient{Timeout: 30 * time.Second},
	}
}

// Validate reports every problem, each with the key to change.
func (c WebhookPushConfig) Validate() error {
	var p config.Problems
	needURL(&p, "url", c.URL)
	p.Need(len(c.Secrets) >= 1 && len(c.Secrets) <= 8, "secrets", "list 1 to 8 secrets; make one with: echo whsec_$(openssl rand -base64 32)")
	for i, secret := range c.Secrets {
		_, ok := webhookKey(secret)
		p.Need(ok, "secrets["+strconv.Itoa(i)+"]", "use whsec_ and the base64 of 24 to 64 bytes; make one with: echo whsec_$(openssl rand -base64 32)")
	}
	p.In("batch", c.Batch.Validate())
	p.Need(!c.OnePerRequest || c.Batch.Events == 1, "batch.events", "use 1, or set one_per_request to false for arrays of events")
	// The signature is over the body as the receiver reads it, which with a coding
	// may be before or after the decoding.
	p.Need(!c.Gzip, "gzip", "leave it out: receivers could not tell which bytes are signed")
	for name := range c.Headers {
		p.Need(!strings.HasPrefix(strings.ToLower(name), "webhook-"), "headers."+name, "leave the headers of Standard Webhooks to penstock")
	}
	c.HTTPAuth.problems(&p)
	c.HTTPClient.problems(&p, c.HTTPAuth.given())
	return p.Err()
}

// webhookKey is the key in a secret. Source: Standard Webhooks 1.0.0, signature scheme.
func webhookKey(secret config.Secret) ([]byte, bool) {
	text, ok := strings.CutPrefix(secret.Reveal(), webhookSecretPrefix)
	if !ok {
		return nil, false
	}
	key, err := base64.StdEncoding.DecodeString(text)
	return key, err == nil && len(key) >= 24 && len(key) <= 64
}

// webhookPush sends webhooks.
//
//   - An event is confirmed when the answer to its request is 2xx.
//   - webhook-id is the id of the event, or made of the ids in the array. It stays
//     the same when the request is sent again, the timestamp and with it the
//     signature do not. A receiver drops what it knows by webhook-id; of arrays that
//     were cut anew after a restart, by the id of each event.
//   - No order: requests run side by side.
//   - No redirect is followed.
//   - After 410 the receiver is left alone for an hour, while nothing is lost.
//   - Memory: a batch for each request that is under way.
//
// Source: Standard Webhooks 1.0.0.
type webhookPush struct {
	*httpClient
	cfg  WebhookPushConfig
	url  *url.URL
	keys [][]byte

	mu   sync.Mutex
	rest time.Time // until then nothing is sent
	gone error     // why
}

func openWebhookPush(_ context.Context, cfg WebhookPushConfig, deps Deps) (Sink, error) {
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
	client.header.Set("Content-Type", "application/json")
	client.hideQuery(u)
	s := &webhookPush{httpClient: client, cfg: cfg, url: u}
	for _, secret := range cfg.Secrets {
		key, _ := webhookKey(secret) // validated
		s.keys = append(s.keys, key)
		client.hide(secret.Reveal(), strings.TrimPrefix(secret.Reveal(), webhookSecretPrefix))
	}
	return s, nil
}

func (s *webhookPush) Limits() Limits { return s.cfg.Batch }

// Append writes the payload that the specification recommends, with penstock's id,
// source, account and region beside it. In an array it begins with a comma.
func (s *webhookPush) Append(dst []byte, e *Event) []byte {
	if !s.cfg.OnePerRequest {
		dst = append(dst, ',')
	}
	dst = append(dst, `{"type":`...)
	dst = document.AppendQuoted(dst, e.Type)
	dst = append(dst, `,"timestamp":`...)
	if e.Time == 0 {
		dst = append(dst, `null`...)
	} else {
		dst = append(dst, '"')
		dst = time.Unix(0, e.Time).UTC().AppendFormat(dst, time.RFC3339Nano)
		dst = append(dst, '"')
	}
	dst = append(dst, `,"id":"`...)
	dst = hex.AppendEncode(dst, e.ID[:])
	dst = append(dst, `","source":`...)
	dst = document.AppendQuoted(dst, e.Source)
	dst = append(dst, `,"account":`...)
	dst = document.AppendQuoted(dst, e.Account)
	dst = append(dst, `,"region":`...)
	dst = document.AppendQuoted(dst, e.Region)
	dst = appendReplay(dst, e)
	dst = append(dst, `,"data":`...)
	return append(appendDoc(dst, e.Doc), '}')
}

func (s *webhookPush) Close() error {
	s.close()
	return nil
}

// Deliver sends one request.
func (s *webhookPush) Deliver(ctx context.Context, b Batch) Result {
	if res, resting := s.resting(); resting {
		return res
	}
	r := call{method: http.MethodPost, url: s.url, body: b.Bytes()}
	id := b.ID(0).String()
	if b.Replay() != "" {
		id += "_" + b.Replay() // as an id of its own it is not taken for a repetition
	}
	if !s.cfg.OnePerRequest {
		id = key(b)
		array := webhookArrays.Get().(*bytes.Buffer)
		defer webhookArrays.Put(array)
		array.Reset()
		array.WriteByte('[')
		array.Write(b.Bytes()[1:])
		array.WriteByte(']')
		r.body = array.Bytes()
	}
	r.header = replayed(s.signed(id, time.Now(), r.body), b)
	a, res, ok := s.do(ctx, r)
	if !ok {
		return res
	}
	if a.status == http.StatusGone {
		return s.retire(r, a)
	}
	return s.judge(r, a)
}

// webhookArrays holds the bodies that are an array.
var webhookArrays = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// signed are the headers of a request. Source: Standard Webhooks 1.0.0, webhook headers.
func (s *webhookPush) signed(id string, now time.Time, body []byte) http.Header {
	stamp := strconv.FormatInt(now.Unix(), 10)
	var signatures []byte
	var sum [sha256.Size]byte
	for i, key := range s.keys {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(id + "." + stamp + "."))
		h.Write(body)
		if i > 0 {
			signatures = append(signatures, ' ')
		}
		signatures = base64.StdEncoding.AppendEncode(append(signatures, "v1,"...), h.Sum(sum[:0]))
	}
	return http.Header{webhookID: {id}, webhookTimestamp: {stamp}, webhookSignature: {string(signatures)}}
}

// retire notes that the receiver wants no more.
func (s *webhookPush) retire(r call, a answer) Result {
	res := s.because(r, a, Stop, errWebhookGone)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rest, s.gone = time.Now().Add(webhookRest), res.Err
	return res
}

func (s *webhookPush) resting() (Result, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !time.Now().Before(s.rest) {
		return Result{}, false
	}
	return Result{Verdict: Stop, Err: s.gone}, true
}

// Probe implements [probe.Prober]: the way there and one HEAD request, as nothing can
// be tried with a POST that is no webhook.
func (c WebhookPushConfig) Probe(ctx context.Context) []probe.Finding {
	return HTTPConfig{
		URL: c.URL, Method: http.MethodPost, Format: Envelope, Batch: c.Batch, ContentType: "application/json",
		HTTPAuth: c.HTTPAuth, HTTPClient: c.HTTPClient,
	}.Probe(ctx)
}
