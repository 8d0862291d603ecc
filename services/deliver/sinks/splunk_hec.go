package sinks

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/probe"
)

func init() {
	define("splunk_hec", "Sends to Splunk's HTTP Event Collector, with indexer acknowledgement where it is offered.", defaultSplunkHEC, openSplunkHEC)
}

var (
	errHECForeign = fault.Define("deliver.splunk_hec_not_hec", fault.Stop,
		"correct url of the destination: what answers there is no HTTP Event Collector, or something between takes the body away")
	errHECDenied = fault.Define("deliver.splunk_hec_denied", fault.Stop,
		"correct token of the destination, or enable the token, and HTTP Event Collector in its global settings, in Splunk")
	errHECIndex = fault.Define("deliver.splunk_hec_index", fault.Stop,
		"create the index in Splunk and let the token write to it, or correct index of the destination")
	errHECIndexOfEvent = fault.Define("deliver.splunk_hec_index_of_event", fault.Reject,
		"create the index that the event leads to and let the token write to it, then redrive")
	errHECNoAcks = fault.Define("deliver.splunk_hec_no_acks", fault.Stop,
		"enable indexer acknowledgement for the token in Splunk, or set ack to auto or off")
	errHECChannel = fault.Define("deliver.splunk_hec_channel", fault.Stop,
		"set ack to auto or on, as the token has indexer acknowledgement enabled; a proxy between must pass the header X-Splunk-Request-Channel on")
	errHECUnacknowledged = fault.Define("deliver.splunk_hec_unacknowledged", fault.Retry,
		"see that the load balancer keeps a client at one indexer by a cookie, and that the indexing queues of Splunk are not blocked; the events are sent again")
	errHECRejected = fault.Define("deliver.splunk_hec_rejected", fault.Reject,
		"see why Splunk refuses this event, then redrive it")
)

var (
	hecAcks = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_deliver_splunk_hec_acks", Help: "1 while Splunk acknowledges what it has indexed, 0 when events count as delivered once they are accepted.",
	}, []string{"destination"})
	hecUnacknowledged = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_splunk_hec_unacknowledged_total", Help: "Requests that Splunk accepted and did not acknowledge in time; their events were sent again.",
	}, []string{"destination"})
	hecAckSeconds = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "penstock_deliver_splunk_hec_ack_seconds", Help: "Time from the acceptance of a batch to its acknowledgement.",
		Buckets: []float64{1, 2, 4, 8, 16, 30, 60, 120, 300, 600},
	}, []string{"destination"})
)

const (
	// The pause between questions for acknowledgements doubles from the first to the
	// last: indexers take seconds, and Splunk advises to ask about every ten.
	hecPollMin = time.Second
	hecPollMax = 10 * time.Second
	// mostAcks bounds the answer to such a question, in bytes.
	mostAcks = 4 << 20
	// Bounds of what load balancers may have us keep.
	hecCookies     = 8
	hecCookieBytes = 4 << 10
)

// HECEndpoint is the way into Splunk.
type HECEndpoint string

// The endpoints.
const (
	// HECEvent takes events with metadata each.
	HECEvent HECEndpoint = "event"
	// HECRaw takes lines; metadata are those of the request.
	HECRaw HECEndpoint = "raw"
)

// Values implements [config.Enum].
func (HECEndpoint) Values() []string { return []string{string(HECEvent), string(HECRaw)} }

// HECAck says whether events wait for indexer acknowledgement.
type HECAck string

// The ways.
const (
	// HECAckAuto waits where Splunk offers it.
	HECAckAuto HECAck = "auto"
	// HECAckOn never calls anything delivered that was not acknowledged.
	HECAckOn HECAck = "on"
	// HECAckOff does not wait.
	HECAckOff HECAck = "off"
)

// Values implements [config.Enum].
func (HECAck) Values() []string {
	return []string{string(HECAckAuto), string(HECAckOn), string(HECAckOff)}
}

// SplunkHECConfig configures the splunk_hec sink.
//
// In index, source, sourcetype and host {type}, {source}, {format}, {account} and {region}
// stand for what is known of the event, and {hostname} for the name of the machine.
type SplunkHECConfig struct {
	// URL of the collector without path, or with what stands before /services/collector: http or https, e.g. https://splunk.example.com:8088. Required.
	URL string `yaml:"url"`
	// Token of the collector. Required.
	Token config.Secret `yaml:"token"`
	// Endpoint: event (each event with its own metadata) or raw (lines; index, source, sourcetype and host must then be without what differs between events, and penstock's id is not sent).
	Endpoint HECEndpoint `yaml:"endpoint"`
	// Ack: auto (wait for indexer acknowledgement where the token has it), on (stop where it is not offered) or off (accepted is delivered).
	Ack HECAck `yaml:"ack"`
	// AckTimeout is how long an acknowledgement is waited for before the events are sent again. Unit: duration.
	AckTimeout time.Duration `yaml:"ack_timeout"`
	// Index of an event; in what comes from the event, other characters than a-z, 0-9, _ and - become _. Empty: that of the token.
	Index string `yaml:"index"`
	// Source of an event as Splunk shows it. Empty: that of the token.
	Source string `yaml:"source"`
	// Sourcetype of an event; {sourcetype} stands for the name that the Splunk Add-on for AWS has for the format where the document is as that expects it, else for penstock:<format>. Empty: that of the token.
	Sourcetype string `yaml:"sourcetype"`
	// Host of an event as Splunk shows it. Empty: the address of the collector.
	Host string `yaml:"host"`
	// Batch bounds one request.
	Batch Limits `yaml:"batch"`

	HTTPClient `yaml:",inline"`
}

func defaultSplunkHEC() SplunkHECConfig {
	return SplunkHECConfig{
		Endpoint:   HECEvent,
		Ack:        HECAckAuto,
		AckTimeout: 5 * time.Minute,
		Source:     "{source}",
		Sourcetype: "{sourcetype}",
		Host:       "{hostname}",
		Batch:      Limits{Events: 5000, Bytes: config.MiB, Age: 200 * time.Millisecond},
		HTTPClient: HTTPClient{Gzip: true, Timeout: 30 * time.Second},
	}
}

// hecSourcetypes are the names that the Splunk Add-on for AWS has for documents that
// AWS writes as JSON and penstock passes on as they are. The add-on reads flow logs and
// access logs as lines of text, so for these its names would hide the fields.
// Source: Splunk Add-on for AWS, Source types; for WAF the name that apps for it use.
var hecSourcetypes = map[string]string{
	"cloudtrail":  "aws:cloudtrail",
	"cwlogs":      "aws:cloudwatchlogs",
	"eventbridge": "aws:firehose:cloudwatchevents",
	"guardduty":   "aws:cloudwatch:guardduty",
	"securityhub": "aws:securityhub:finding",
	"waf":         "aws:waf",
}

// hecPlaceholders are all that a pattern may have.
func hecPlaceholders(more ...string) []string {
	return append(append([]string{"hostname"}, eventPlaceholders...), more...)
}

// Validate reports every problem, each with the key to change.
func (c SplunkHECConfig) Validate() error {
	var p config.Problems
	needURL(&p, "url", c.URL)
	p.Need(!strings.Contains(c.URL, "/services/collector"), "url", "leave out /services/collector and what follows it; endpoint chooses that")
	p.Need(!strings.ContainsAny(c.URL, "?#"), "url", "leave out what begins with ? or #")
	p.Need(!c.Token.IsZero() && oneLine(c.Token) && !strings.ContainsAny(c.Token.Reveal(), " \t"), "token",
		"set the token, one word without Splunk before it, e.g. ${file:/run/secrets/hec}")
	p.Need(c.AckTimeout >= 10*time.Second && c.AckTimeout <= time.Hour, "ack_timeout", "use 10s to 1h, e.g. 5m")
	for _, m := range c.metadata() {
		pat, err := parsePattern(m.value, m.placeholders...)
		if err != nil {
			p.Add(m.key, err.Error(), "write text with any of {"+strings.Join(m.placeholders, "}, {")+"}")
		}
		if c.Endpoint == HECRaw && pat.fixed("hostname", "x").varies() {
			p.Add(m.key, "the raw endpoint has no metadata for single events", "write it without placeholders but {hostname}, or leave it empty, or use endpoint: event")
		}
	}
	p.In("batch", c.Batch.Validate())
	c.HTTPClient.problems(&p, true)
	return p.Err()
}

type hecMetadata struct {
	key, value   string
	placeholders []string
}

func (c SplunkHECConfig) metadata() []hecMetadata {
	return []hecMetadata{
		{"host", c.Host, hecPlaceholders()},
		{"source", c.Source, hecPlaceholders()},
		{"sourcetype", c.Sourcetype, hecPlaceholders("sourcetype")},
		{"index", c.Index, hecPlaceholders()},
	}
}

// splunkHEC sends batches to the HTTP Event Collector of Splunk.
//
// Confirmed: with acknowledgements when Splunk says that the events are indexed (and
// replicated, where the index is); Deliver waits for that, so concurrency bounds what
// waits and is what throughput depends on. Without, when Splunk has accepted the
// request, which is before it stores anything: a crash there may lose events, and only
// with acknowledgements penstock would notice.
//
// Order: none between requests; within one that of the batch.
//
// Repeats: whatever was not confirmed is sent again with the same penstock_id, by which
// a search can drop repeats: Splunk itself keeps every copy. An acknowledgement that
// does not come counts as not known, so that events may be there twice, but are not
// missing.
//
// Each of the requests at one time has a channel of its own, with the cookies of the
// load balancer, so that an indexer is asked for what it was given and for nothing else;
// numbers of acknowledgements of two indexers cannot be mixed up. Nothing but that is
// kept: the memory is that of the batches in hand.
//
// Source: formats F-25; Splunk, Format events for HTTP Event Collector; About HTTP Event
// Collector Indexer Acknowledgment; Troubleshoot HTTP Event Collector (status codes).
type splunkHEC struct {
	*httpClient
	cfg     SplunkHECConfig
	url     *url.URL
	ackURL  *url.URL
	asker   *httpClient // as httpClient, but does not compress
	meta    []hecKey
	varying bool // the index differs between events
	log     *slog.Logger
	pollMin time.Duration
	pollMax time.Duration

	// acks is what was last seen of acknowledgements.
	acks atomic.Int32

	mu   sync.Mutex
	free []*hecChannel
}

// What is known of acknowledgements.
const (
	hecAcksUnknown = iota
	hecAcksOffered
	hecAcksAbsent
)

// hecKey is a key of an event's metadata.
type hecKey struct {
	start   string // `"host":"`
	pattern pattern
	clean   func(dst []byte, value string) []byte
}

func openSplunkHEC(_ context.Context, cfg SplunkHECConfig, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	base, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, errHTTPAddress.New(nil, "open destination %s", deps.Destination) // not reached: validated
	}
	if base.Path == "" {
		base.Path = "/" // else JoinPath makes a path without it
	}
	client, err := newHTTPClient(deps.Destination, cfg.HTTPClient, HTTPAuth{})
	if err != nil {
		return nil, err
	}
	client.authorise("Splunk", cfg.Token.Reveal())
	client.header.Set("Content-Type", "application/json")
	s := &splunkHEC{
		httpClient: client, cfg: cfg, log: deps.Log, pollMin: hecPollMin, pollMax: hecPollMax,
		url:    base.JoinPath("services/collector", string(cfg.Endpoint)),
		ackURL: base.JoinPath("services/collector/ack"),
		asker:  &httpClient{name: client.name, timeout: client.timeout, header: client.header, secrets: client.secrets, transport: client.transport},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.prepare()
	return s, nil
}

// prepare makes what is the same for all events.
func (s *splunkHEC) prepare() {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "penstock"
	}
	query := url.Values{}
	for _, m := range s.cfg.metadata() {
		p, _ := parsePattern(m.value, m.placeholders...) // validated
		p = p.fixed("hostname", hostname)
		if len(p) == 0 {
			continue
		}
		if s.cfg.Endpoint == HECRaw {
			query.Set(m.key, p.String())
			continue
		}
		for i := range p {
			p[i].text = string(appendEscaped(nil, p[i].text))
		}
		k := hecKey{start: `"` + m.key + `":"`, pattern: p, clean: appendEscaped}
		if m.key == "index" {
			s.varying, k.clean = p.varies(), appendIndexWord
		}
		s.meta = append(s.meta, k)
	}
	s.url.RawQuery = query.Encode()
}

// appendIndexWord adds v in the characters that the name of an index may have.
func appendIndexWord(dst []byte, v string) []byte {
	for i := range len(v) {
		c := v[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-':
		default:
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

func (s *splunkHEC) Limits() Limits { return s.cfg.Batch }

func (s *splunkHEC) Close() error {
	s.close()
	return nil
}

// Append writes the object of one event, or its line for the raw endpoint. An event
// without a time gets that of its arrival from Splunk.
func (s *splunkHEC) Append(dst []byte, e *Event) []byte {
	if s.cfg.Endpoint == HECRaw {
		return append(appendDoc(dst, e.Doc), '\n')
	}
	dst = append(dst, '{')
	if e.Time != 0 {
		dst = append(appendSeconds(append(dst, `"time":`...), e.Time), ',')
	}
	for i := range s.meta {
		k, start := &s.meta[i], len(dst)
		dst = append(dst, k.start...)
		begin := len(dst)
		dst = k.append(dst, e)
		if len(dst) == begin { // what is not known is left to the token
			dst = dst[:start]
			continue
		}
		dst = append(dst, `",`...)
	}
	dst = append(dst, `"fields":{"penstock_id":"`...)
	dst = append(hex.AppendEncode(dst, e.ID[:]), '"')
	dst = appendHECField(dst, `,"penstock_type":`, e.Type)
	dst = appendHECField(dst, `,"penstock_account":`, e.Account)
	dst = appendHECField(dst, `,"penstock_region":`, e.Region)
	dst = appendHECField(dst, `,"penstock_replay":`, e.Replay)
	dst = append(dst, `},"event":`...)
	return append(appendDoc(dst, e.Doc), "}\n"...)
}

func (k *hecKey) append(dst []byte, e *Event) []byte {
	for i := range k.pattern {
		if part := k.pattern[i : i+1]; part[0].name == "sourcetype" {
			dst = appendSourcetype(dst, e.Format)
		} else {
			dst = part.append(dst, e, time.Time{}, k.clean)
		}
	}
	return dst
}

func appendSourcetype(dst []byte, format string) []byte {
	if name, ok := hecSourcetypes[format]; ok {
		return append(dst, name...)
	}
	dst = append(dst, "penstock"...)
	if format == "" {
		return dst
	}
	return appendEscaped(append(dst, ':'), format)
}

func appendHECField(dst []byte, key, value string) []byte {
	if value == "" {
		return dst
	}
	dst = append(append(dst, key...), '"')
	return append(appendEscaped(dst, value), '"')
}

// appendSeconds adds a time in Unix ns as seconds with three decimals, rounded down.
func appendSeconds(dst []byte, ns int64) []byte {
	ms := ns / 1e6
	if ns%1e6 < 0 {
		ms--
	}
	if ms < 0 {
		dst, ms = append(dst, '-'), -ms
	}
	dst = strconv.AppendInt(dst, ms/1000, 10)
	ms %= 1000
	return append(dst, '.', byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10))
}

// hecChannel is what goes with one request at a time: Splunk numbers requests by
// channel.
type hecChannel struct {
	id      string
	cookies []*http.Cookie
}

// channel takes one that nothing is open on.
func (s *splunkHEC) channel() *hecChannel {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		c := s.free[n-1]
		s.free = s.free[:n-1]
		return c
	}
	var id messages.UUID
	_, _ = rand.Read(id[:]) // never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return &hecChannel{id: id.String()}
}

func (s *splunkHEC) release(c *hecChannel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, c)
}

// keep takes the cookies of an answer over: they lead to the same indexer again.
func (c *hecChannel) keep(header http.Header) {
	for _, cookie := range (&http.Response{Header: header}).Cookies() {
		if len(cookie.Name)+len(cookie.Value) > hecCookieBytes {
			continue
		}
		at := -1
		for i := range c.cookies {
			if c.cookies[i].Name == cookie.Name {
				at = i
			}
		}
		switch {
		case at >= 0:
			c.cookies[at] = cookie
		case len(c.cookies) < hecCookies:
			c.cookies = append(c.cookies, cookie)
		}
	}
}

// header of a request on the channel.
func (s *splunkHEC) headerOn(c *hecChannel) http.Header {
	if s.cfg.Ack == HECAckOff && s.cfg.Endpoint != HECRaw {
		return nil
	}
	h := http.Header{"X-Splunk-Request-Channel": {c.id}}
	if len(c.cookies) > 0 {
		r := http.Request{Header: h}
		for _, cookie := range c.cookies {
			r.AddCookie(cookie)
		}
	}
	return h
}

// Deliver sends a batch, in several requests if events of it are refused, and waits for
// the acknowledgements.
func (s *splunkHEC) Deliver(ctx context.Context, b Batch) Result {
	c := s.channel()
	if s.cfg.Ack == HECAckOn && s.acks.Load() != hecAcksOffered {
		// Asking costs nothing; events that are accepted and never acknowledged would
		// be sent over and over.
		if res := s.askWhether(ctx, c); res.Verdict != Done {
			return res
		}
	}
	d := hecDelivery{s: s, b: b, c: c, todo: []hecSpan{{0, b.Len()}}}
	res := d.send(ctx)
	if res.Verdict == Done && d.await(ctx, &res) {
		s.release(c) // nothing is open on it; after trouble another one takes another way
	}
	return d.result(res)
}

// hecSpan is a stretch of a batch.
type hecSpan struct{ from, to int }

// hecWait is a request that was accepted.
type hecWait struct {
	span hecSpan
	id   uint64
}

// hecDelivery is one call of Deliver.
type hecDelivery struct {
	s    *splunkHEC
	b    Batch
	c    *hecChannel
	todo []hecSpan // what remains to be sent, the last next
	wait []hecWait
	// judged has the verdict on each event, Retry for none yet; nil while all are of
	// one mind. errs has the reasons of those that are refused.
	judged []Verdict
	errs   map[int]error
}

// send works todo off. The result is Done when all was accepted or refused for good.
func (d *hecDelivery) send(ctx context.Context) Result {
	for len(d.todo) > 0 {
		p := d.todo[len(d.todo)-1]
		d.todo = d.todo[:len(d.todo)-1]
		if p.from >= p.to {
			continue
		}
		items := d.b.items[p.from:p.to]
		r := call{method: http.MethodPost, url: d.s.url, header: d.s.headerOn(d.c), body: d.b.data[items[0].Start:items[len(items)-1].End]}
		a, res, ok := d.s.do(ctx, r)
		if !ok {
			return res
		}
		if d.s.cfg.Ack != HECAckOff {
			d.c.keep(a.header)
		}
		if res := d.judge(p, r, a); res.Verdict != Done {
			return res
		}
	}
	return Result{}
}

// hecAnswer is what Splunk says to a request.
type hecAnswer struct {
	Code    *int    `json:"code"`
	Invalid *int    `json:"invalid-event-number"`
	AckID   *uint64 `json:"ackId"`
}

// Codes of answers. Source: Splunk, Troubleshoot HTTP Event Collector.
const (
	hecTokenDisabled  = 1
	hecTokenRequired  = 2
	hecAuthorization  = 3
	hecTokenInvalid   = 4
	hecNoData         = 5
	hecDataFormat     = 6
	hecIncorrectIndex = 7
	hecBusy           = 9
	hecNoChannel      = 10
	hecBadChannel     = 11
	hecEventRequired  = 12
	hecEventBlank     = 13
	hecAckDisabled    = 14
)

// hecText is what the codes mean. The text of an answer is not shown: it is foreign.
var hecText = map[int]string{ //nolint:gosec // no credentials, but what is said about them
	hecTokenDisabled: "the token is disabled", hecTokenRequired: "a token is required", hecAuthorization: "the authorization is not valid",
	hecTokenInvalid: "the token is not valid", hecNoData: "no data", hecDataFormat: "the format is not valid", hecIncorrectIndex: "incorrect index",
	hecBusy: "the server is busy", hecNoChannel: "the channel is missing", hecBadChannel: "the channel is not valid",
	hecEventRequired: "there is no event", hecEventBlank: "the event is blank", hecAckDisabled: "acknowledgement is disabled",
}

func readHEC(body []byte) (out hecAnswer, code int) {
	if json.Unmarshal(body, &out) != nil || out.Code == nil {
		return hecAnswer{}, -1
	}
	return out, *out.Code
}

// because makes the result for an answer; with a code its text is ours.
func (s *splunkHEC) because(r call, a answer, code int, verdict Verdict, kind *fault.Kind) Result {
	return s.httpClient.because(r, coded(a, code), verdict, kind)
}

// coded is a with our own words in the place of the text.
func coded(a answer, code int) answer {
	if code >= 0 {
		a.body = []byte(strings.TrimSpace("code " + strconv.Itoa(code) + " " + hecText[code]))
	}
	return a
}

// general judges answers that do not speak of single events.
func (s *splunkHEC) general(r call, a answer, code int) Result {
	switch code {
	case hecTokenDisabled, hecTokenRequired, hecAuthorization, hecTokenInvalid:
		return s.because(r, a, code, Stop, errHECDenied)
	case hecNoChannel, hecBadChannel:
		return s.because(r, a, code, Stop, errHECChannel)
	case hecAckDisabled:
		return s.because(r, a, code, Stop, errHECNoAcks)
	case hecNoData: // there was some
		return s.because(r, a, code, Stop, errHECForeign)
	}
	return s.httpClient.judge(r, coded(a, code))
}

// judge takes note of the answer to the request with p and lines up what is to be sent
// again at once. The result is Done when the work may go on.
func (d *hecDelivery) judge(p hecSpan, r call, a answer) Result {
	s := d.s
	said, code := readHEC(a.body)
	if a.ok() {
		if code != 0 || a.long {
			return s.because(r, a, code, Stop, errHECForeign)
		}
		return d.accepted(p, r, said.AckID)
	}
	n := p.to - p.from
	at := -1 // the first event that was not taken, in p
	if said.Invalid != nil && *said.Invalid >= 0 && *said.Invalid <= n {
		at = *said.Invalid
	}
	switch code {
	case hecDataFormat, hecEventRequired, hecEventBlank:
		if s.cfg.Endpoint == HECRaw || at < 0 || at >= n {
			return s.because(r, a, code, Split, errHECRejected)
		}
		d.refuse(p.from+at, s.because(r, a, code, Reject, errHECRejected).Err)
		d.part(p, p.from+at, p.from+at+1)
		return Result{}
	case hecIncorrectIndex:
		return d.misplaced(p, r, a, at)
	case hecBusy:
		// The number may count from 0 or from 1: one event too many is sent again.
		if at > 1 && !s.waits() {
			d.settle(hecSpan{p.from, p.from + at - 1})
		}
	}
	return s.general(r, a, code)
}

// misplaced deals with an event whose index does not take it. With one index for all
// that is a mistake in the configuration; else only the event is refused. Splunk counts
// from 1 here, and from 0 for other codes; others count from 0 always. So the event is
// sent alone before it is judged, which may repeat it.
func (d *hecDelivery) misplaced(p hecSpan, r call, a answer, at int) Result {
	s := d.s
	switch {
	case !s.varying:
		return s.because(r, a, hecIncorrectIndex, Stop, errHECIndex)
	case p.to-p.from == 1:
		d.refuse(p.from, s.because(r, a, hecIncorrectIndex, Reject, errHECIndexOfEvent).Err)
		return Result{}
	case at < 0:
		return s.because(r, a, hecIncorrectIndex, Split, errHECIndexOfEvent)
	}
	one := p.from + max(0, at-1)
	d.part(p, one, one+1)
	d.todo = append(d.todo, hecSpan{one, one + 1})
	return Result{}
}

// part settles what Splunk took before the event at from, unless that is to be
// acknowledged, and lines up what is behind to: in halves, so that a batch of nothing
// but bad events does not go over the wire once for each.
func (d *hecDelivery) part(p hecSpan, from, to int) {
	half := to + (p.to-to+1)/2
	d.todo = append(d.todo, hecSpan{half, p.to}, hecSpan{to, half})
	if before := (hecSpan{p.from, from}); d.s.waits() {
		d.todo = append(d.todo, before) // a refusal comes without a number to ask for
	} else {
		d.settle(before)
	}
}

// waits tells whether events are delivered only when they are acknowledged, as far as
// is known.
func (s *splunkHEC) waits() bool {
	return s.cfg.Ack != HECAckOff && s.acks.Load() != hecAcksAbsent
}

func (d *hecDelivery) accepted(p hecSpan, r call, id *uint64) Result {
	s := d.s
	switch {
	case s.cfg.Ack == HECAckOff:
	case id != nil:
		s.learn(hecAcksOffered)
		for _, w := range d.wait {
			if w.id == *id { // of two indexers: which of them an answer is about cannot be told
				return Result{Verdict: Retry, Err: errHECUnacknowledged.New(nil, "%s: two requests have one number", s.doing(r))}
			}
		}
		d.wait = append(d.wait, hecWait{p, *id})
		return Result{}
	case s.cfg.Ack == HECAckOn:
		s.learn(hecAcksAbsent)
		return Result{Verdict: Stop, Err: errHECNoAcks.New(nil, "%s: accepted, but not to be acknowledged", s.doing(r))}
	default:
		s.learn(hecAcksAbsent)
	}
	d.settle(p)
	return Result{}
}

// learn takes note of whether Splunk acknowledges, and says so when that changes.
func (s *splunkHEC) learn(now int32) {
	if s.acks.Swap(now) == now {
		return
	}
	if now == hecAcksOffered {
		hecAcks.WithLabelValues(s.name).Set(1)
		s.log.Info("splunk acknowledges what it has indexed; batches wait for that")
		return
	}
	hecAcks.WithLabelValues(s.name).Set(0)
	if s.cfg.Ack == HECAckAuto {
		s.log.Warn("splunk offers no indexer acknowledgement for this token; events count as delivered once they are accepted")
	}
}

// askWhether finds out whether the token has acknowledgements enabled, without sending
// an event.
func (s *splunkHEC) askWhether(ctx context.Context, c *hecChannel) Result {
	_, res := s.ask(ctx, c, []hecWait{{}})
	if res.Verdict == Done {
		s.learn(hecAcksOffered)
	}
	return res
}

// ask asks which requests are acknowledged.
func (s *splunkHEC) ask(ctx context.Context, c *hecChannel, wait []hecWait) (map[uint64]bool, Result) {
	body := []byte(`{"acks":[`)
	for i, w := range wait {
		if i > 0 {
			body = append(body, ',')
		}
		body = strconv.AppendUint(body, w.id, 10)
	}
	r := call{method: http.MethodPost, url: s.ackURL, header: s.headerOn(c), body: append(body, `]}`...), most: mostAcks}
	a, res, ok := s.asker.do(ctx, r)
	if !ok {
		return nil, res
	}
	c.keep(a.header)
	if !a.ok() {
		_, code := readHEC(a.body)
		return nil, s.general(r, a, code)
	}
	var said struct {
		Acks map[uint64]bool `json:"acks"`
	}
	if json.Unmarshal(a.body, &said) != nil || said.Acks == nil {
		return nil, s.because(r, a, -1, Stop, errHECForeign)
	}
	return said.Acks, Result{}
}

// await asks until all that was accepted is acknowledged, and reports whether it is.
// Else res says why not.
func (d *hecDelivery) await(ctx context.Context, res *Result) bool {
	if len(d.wait) == 0 {
		return true
	}
	s, began := d.s, time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.AckTimeout, errHECLate)
	defer cancel()
	var last error // why asking did not work
	for pause := s.pollMin; ; pause = min(2*pause, s.pollMax) {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			d.late(ctx, res, last)
			return false
		}
		acked, said := s.ask(ctx, d.c, d.wait)
		if said.Verdict == Stop && !errors.Is(said.Err, errHECChannel) {
			*res = said
			if errors.Is(said.Err, errHECNoAcks) && s.cfg.Ack == HECAckAuto { // switched off just now
				*res = Result{Verdict: Retry, Err: errHECUnacknowledged.New(nil, "%s", s.doing(call{method: http.MethodPost, url: s.ackURL}))}
			}
			return false
		}
		// An indexer that was restarted, or another one, does not know the channel:
		// as with an outage, it may be another one the next time.
		last = said.Err
		left := d.wait[:0]
		for _, w := range d.wait {
			if acked[w.id] {
				d.settle(w.span)
			} else {
				left = append(left, w)
			}
		}
		if d.wait = left; len(left) == 0 {
			hecAckSeconds.WithLabelValues(s.name).Observe(time.Since(began).Seconds())
			return true
		}
		pause = max(pause, min(said.After, s.cfg.AckTimeout))
	}
}

var errHECLate = errors.New("no acknowledgement within ack_timeout")

// late makes the result when the wait has ended without acknowledgements.
func (d *hecDelivery) late(ctx context.Context, res *Result, last error) {
	cause := context.Cause(ctx)
	if errors.Is(cause, errHECLate) {
		hecUnacknowledged.WithLabelValues(d.s.name).Add(float64(len(d.wait)))
		if last != nil {
			cause = errors.New(cause.Error() + "; the last question: " + last.Error())
		}
	}
	*res = Result{Verdict: Retry, Err: errHECUnacknowledged.New(cause, "wait for %d requests to destination %s to be indexed", len(d.wait), d.s.name)}
}

// settle notes that events are delivered.
func (d *hecDelivery) settle(p hecSpan) {
	if d.judged == nil && p.from == 0 && p.to == d.b.Len() {
		return // the result says it
	}
	d.open()
	for i := p.from; i < p.to; i++ {
		d.judged[i] = Done
	}
}

// refuse notes that Splunk will never take an event.
func (d *hecDelivery) refuse(i int, err error) {
	d.open()
	d.judged[i], d.errs[i] = Reject, err
}

// open makes room for verdicts on single events.
func (d *hecDelivery) open() {
	if d.judged != nil {
		return
	}
	d.judged, d.errs = make([]Verdict, d.b.Len()), map[int]error{}
	for i := range d.judged {
		d.judged[i] = Retry
	}
}

// result adds the verdicts on single events to that on all others. A batch that is to
// be split is split as a whole: what is judged of it is found out again.
func (d *hecDelivery) result(res Result) Result {
	if res.Verdict == Split || res.Verdict == TooLarge {
		return res
	}
	for i, v := range d.judged {
		if v != Retry && v != res.Verdict {
			res.Items = append(res.Items, Exception{Index: i, Verdict: v, Err: d.errs[i]})
		}
	}
	return res
}

// Probe implements [probe.Prober]: a request without events shows whether the token is
// good, and a question for acknowledgements whether they are offered. Neither changes
// anything.
func (c SplunkHECConfig) Probe(ctx context.Context) []probe.Finding {
	opened, err := openSplunkHEC(ctx, c, Deps{Destination: "doctor"})
	if err != nil {
		return []probe.Finding{probe.Error("open", c.URL, err)}
	}
	s, _ := opened.(*splunkHEC)
	defer s.Close() //nolint:errcheck // frees connections
	all, ok := c.reach(ctx, s.url)
	if !ok {
		return all
	}
	channel := s.channel()
	r := call{method: http.MethodPost, url: s.url, header: s.headerOn(channel)}
	shown := s.url.Scheme + "://" + s.url.Host + s.url.Path
	a, res, answered := s.asker.do(ctx, r)
	if !answered {
		return append(all, probe.Error("token", shown, res.Err))
	}
	switch _, code := readHEC(a.body); {
	case code == hecNoData:
		all = append(all, probe.Good("token", shown, "the collector takes the token"))
	case code < 0 && a.status < 500:
		return append(all, probe.Error("token", shown, s.because(r, a, code, Stop, errHECForeign).Err))
	default:
		if res := s.general(r, a, code); res.Verdict != Done {
			return append(all, probe.Error("token", shown, res.Err))
		}
		all = append(all, probe.Doubt("token", shown, "a request without events was taken, which a collector of Splunk refuses", "look whether url leads to a collector"))
	}
	if c.Ack == HECAckOff {
		return all
	}
	switch res := s.askWhether(ctx, channel); {
	case res.Verdict == Done:
		return append(all, probe.Good("acknowledgement", s.ackURL.Path, "batches wait until Splunk has indexed them"))
	case c.Ack == HECAckAuto && res.Verdict == Stop:
		return append(all, probe.Doubt("acknowledgement", s.ackURL.Path, "not offered for this token: events count as delivered once they are accepted", "enable indexer acknowledgement for the token where Splunk offers it"))
	default:
		return append(all, probe.Error("acknowledgement", s.ackURL.Path, res.Err))
	}
}

// reach tries the way to a server, unless a proxy stands in it, and looks at the client
// certificate. It reports false when the server cannot be reached.
func (c HTTPClient) reach(ctx context.Context, u *url.URL) ([]probe.Finding, bool) {
	var all []probe.Finding
	if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: u}); err == nil && proxy == nil {
		tlsConfig, err := c.TLS.client("doctor")
		if err != nil {
			return []probe.Finding{probe.Error("tls", u.Host, err)}, false
		}
		f := probe.Reach(ctx, u, tlsConfig)
		if all = append(all, f); f.Level == probe.Fail {
			return all, false
		}
	}
	if c.TLS.CertFile != "" {
		all = append(all, probe.Certificate(c.TLS.CertFile, c.TLS.KeyFile))
	}
	return all, true
}
