package sinks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/document"
	"github.com/penstock/penstock/services/internal/probe"
)

func init() {
	define("opensearch", "Indexes events in OpenSearch or Elasticsearch by the bulk API, each once by its id.", defaultOpenSearch, openOpenSearch)
}

var (
	errBulkForeign = fault.Define("deliver.opensearch_not_bulk", fault.Stop,
		"correct urls of the destination: what answers there is no bulk API of OpenSearch or Elasticsearch")
	errBulkSetup = fault.Define("deliver.opensearch_setup", fault.Stop,
		"mend at the cluster what the reason names: the index, the ingest pipeline or the limit on shards; or correct index and pipeline of the destination")
	errBulkDenied = fault.Define("deliver.opensearch_denied", fault.Stop,
		"grant create_doc and auto_configure (OpenSearch: indices:data/write/bulk*, indices:data/write/index and indices:admin/create) on the index to the user of the destination, or correct its credentials")
	errBulkBusy = fault.Define("deliver.opensearch_busy", fault.Retry,
		"nothing, when it passes; else see the cluster's disk space, write blocks, write queues and shards, or lower concurrency")
	errBulkBroken = fault.Define("deliver.opensearch_broken_answer", fault.Retry,
		"see what cuts the answers of the cluster off; what was not judged is sent again, and is not stored twice")
	errBulkRejected = fault.Define("deliver.opensearch_rejected", fault.Reject,
		"mend the mapping or the ingest pipeline that the reason names, then redrive; with document: string no field of a document can be in conflict")
)

var bulkRepeats = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "penstock_deliver_opensearch_repeats_total", Help: "Events that were there already when they were sent again.",
}, []string{"destination"})

const (
	// mostIndexName is how long the name of an index may be, in bytes.
	mostIndexName = 255
	// avoidFor is how long an address that failed is avoided.
	avoidFor = 30 * time.Second
	// mostBulkItem is what is read of an answer for each event, in bytes, on average.
	mostBulkItem = 1 << 10
)

// DocumentForm is where the document of an event goes.
type DocumentForm string

// The forms.
const (
	// DocumentString: in message, as text.
	DocumentString DocumentForm = "string"
	// DocumentObject: in penstock.document, as an object.
	DocumentObject DocumentForm = "object"
	// DocumentRoot: its members beside those of penstock.
	DocumentRoot DocumentForm = "root"
)

// Values implements [config.Enum].
func (DocumentForm) Values() []string {
	return []string{string(DocumentString), string(DocumentObject), string(DocumentRoot)}
}

// AWSService is the name that requests are signed for.
type AWSService string

// The services.
const (
	// AWSOpenSearch is a domain of Amazon OpenSearch Service.
	AWSOpenSearch AWSService = "es"
	// AWSServerless is a collection of Amazon OpenSearch Serverless.
	AWSServerless AWSService = "aoss"
)

// Values implements [config.Enum].
func (AWSService) Values() []string { return []string{string(AWSOpenSearch), string(AWSServerless)} }

// OpenSearchAWS says who signs requests to Amazon OpenSearch Service.
type OpenSearchAWS struct {
	// Service: es (a domain) or aoss (a serverless collection of type search; one of type time series takes no ids).
	Service AWSService `yaml:"service"`

	awsclient.Config `yaml:",inline"`
}

// SetDefaults implements [config.Defaulter].
func (c *OpenSearchAWS) SetDefaults() { c.Service = AWSOpenSearch }

// OpenSearchConfig configures the opensearch sink.
type OpenSearchConfig struct {
	// URLs of the nodes, or of a balancer before them: http or https, without user and password. They take turns; one that fails is avoided for half a minute. Required.
	URLs []string `yaml:"urls"`
	// Index, data stream or alias to write to. {type}, {source}, {format}, {account} and {region} stand for what is known of the event (in small letters, other characters as _, unknown for nothing), {yyyy}, {MM}, {dd} and {HH} for its time in UTC.
	Index string `yaml:"index"`
	// Document: string (in the field message, as text), object (in the field penstock.document) or root (its members beside penstock's own fields; those with the names of penstock's fields go to penstock.document). The latter two add a field to the mapping for each key that documents have.
	Document DocumentForm `yaml:"document"`
	// Pipeline is the ingest pipeline to go through. Empty: that of the index.
	Pipeline string `yaml:"pipeline"`
	// APIKey is the encoded key of Elasticsearch, sent as "Authorization: ApiKey ...".
	APIKey config.Secret `yaml:"api_key"`
	// AWS signs the requests for Amazon OpenSearch Service.
	AWS *OpenSearchAWS `yaml:"aws"`
	// Batch bounds one request.
	Batch Limits `yaml:"batch"`

	HTTPAuth   `yaml:",inline"`
	HTTPClient `yaml:",inline"`
}

func defaultOpenSearch() OpenSearchConfig {
	return OpenSearchConfig{
		// By format, not by type: each index costs shards, and there are types by the
		// hundred.
		Index: "logs-penstock.{format}-default",
		// Documents of all sorts in one index as objects would make a field of each of
		// their keys, up to the limit of the index, and after that be refused; and two
		// of one name and different kinds are refused at once.
		Document:   DocumentString,
		Batch:      Limits{Events: 5000, Bytes: 4 * config.MiB, Age: time.Second},
		HTTPClient: HTTPClient{Gzip: true, Timeout: time.Minute},
	}
}

// Validate reports every problem, each with the key to change.
func (c OpenSearchConfig) Validate() error {
	var p config.Problems
	p.Need(len(c.URLs) > 0, "urls", "set at least one address, e.g. [https://opensearch.example.com:9200]")
	for i, u := range c.URLs {
		key := fmt.Sprintf("urls[%d]", i)
		needURL(&p, key, u)
		p.Need(!strings.ContainsAny(u, "?#") && !strings.Contains(u, "_bulk"), key, "leave out _bulk and what begins with ? or #")
	}
	c.indexProblems(&p)
	p.Need(!strings.ContainsAny(c.Pipeline, " ,/?#&\n"), "pipeline", "write the id of one ingest pipeline")
	p.In("batch", c.Batch.Validate())
	c.HTTPAuth.problems(&p)
	ways := 0
	for _, given := range []bool{c.HTTPAuth.given(), !c.APIKey.IsZero(), c.AWS != nil} {
		if given {
			ways++
		}
	}
	p.Need(ways <= 1, "api_key", "use one of api_key, bearer_token, username with password, and aws")
	p.Need(oneLine(c.APIKey) && !strings.ContainsAny(c.APIKey.Reveal(), " :"), "api_key",
		"use the encoded form of the key, one word; a secret from a file may end in a line break too many")
	if c.AWS != nil {
		p.In("aws", c.AWS.Config.Validate())
		p.Need(c.AWS.EndpointURL == "", "aws.endpoint_url", "remove it; urls has the address")
	}
	c.HTTPClient.problems(&p, ways > 0)
	return p.Err()
}

func (c OpenSearchConfig) indexProblems(p *config.Problems) {
	const fix = "write a name such as logs-penstock.{format}-default or events-{yyyy}.{MM}.{dd}"
	pat, err := parsePattern(c.Index, append(eventPlaceholders, datePlaceholders...)...)
	if err != nil {
		p.Add("index", err.Error(), fix)
		return
	}
	p.Need(len(pat) > 0 && pat[0].name == "" && isIndexStart(pat[0].text[0]), "index", fix+"; it begins with a small letter or a digit")
	for _, part := range pat {
		if string(appendIndexName(nil, part.text)) != part.text && part.name == "" {
			p.Add("index", "the name of an index has small letters and none of \\ / * ? \" < > | # : , or space", fix)
			return
		}
	}
}

func isIndexStart(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// appendIndexName adds v in characters that the name of an index may have; unknown for
// nothing. Source: OpenSearch documentation, Create index, naming restrictions.
func appendIndexName(dst []byte, v string) []byte {
	if v == "" {
		return append(dst, "unknown"...)
	}
	for i := range len(v) {
		c := v[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_', c == '.', c == '+':
		default:
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

// openSearch indexes batches by the bulk API.
//
// Confirmed: when the cluster has said of the event that it is created, which is after
// the primary and the replicas in sync have it in their translog (index.translog.durability
// request, the default); or that it is there already.
//
// Order: none between requests; @timestamp orders events.
//
// Repeats: each event is created under its id, so that one that is sent again is found to
// be there. That holds within an index: where a data stream or an alias has begun a new
// index meanwhile, the repeat lands there too; so does one of an event without a time
// when the day of a dated index has changed.
//
// Each event is judged by itself: what is refused for good goes to quarantine, what did
// not get through is sent again, and only that.
//
// Memory: the batches in hand and, while its answer is judged, up to 64 KiB + 1 KiB an
// event for each.
//
// Source: formats F-26; OpenSearch documentation, Bulk; Elasticsearch API, Bulk.
type openSearch struct {
	*httpClient
	cfg   OpenSearchConfig
	index pattern
	most  int64
	now   func() time.Time
	creds aws.CredentialsProvider // nil without aws

	mu    sync.Mutex
	nodes []*bulkNode
	turn  int
}

// bulkNode is one address.
type bulkNode struct {
	url   *url.URL
	until time.Time // avoided before that
}

func openOpenSearch(ctx context.Context, cfg OpenSearchConfig, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	client, err := newHTTPClient(deps.Destination, cfg.HTTPClient, cfg.HTTPAuth)
	if err != nil {
		return nil, err
	}
	client.header.Set("Content-Type", "application/x-ndjson")
	if !cfg.APIKey.IsZero() {
		client.authorise("ApiKey", cfg.APIKey.Reveal())
	}
	s := &openSearch{httpClient: client, cfg: cfg, now: time.Now, most: mostAnswer + mostBulkItem*int64(cfg.Batch.Events)}
	s.index, _ = parsePattern(cfg.Index, append(eventPlaceholders, datePlaceholders...)...) // validated
	query := url.Values{"filter_path": {"errors,error,status,items.*.status,items.*.error.type,items.*.error.reason"}}
	if cfg.Pipeline != "" {
		query.Set("pipeline", cfg.Pipeline)
	}
	for _, address := range cfg.URLs {
		u, err := url.Parse(address)
		if err != nil {
			return nil, errHTTPAddress.New(nil, "open destination %s", deps.Destination) // not reached: validated
		}
		if u.Path == "" {
			u.Path = "/" // else JoinPath makes a path without it
		}
		u = u.JoinPath("_bulk")
		u.RawQuery = query.Encode()
		s.nodes = append(s.nodes, &bulkNode{url: u})
	}
	if cfg.AWS != nil {
		if err := s.sign(ctx, *cfg.AWS); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// sign has the requests signed. Errors: those of [awsclient.Load], and aws.no_region.
func (s *openSearch) sign(ctx context.Context, c OpenSearchAWS) error {
	sdk, err := awsclient.Load(ctx, c.Config)
	if err != nil {
		return err
	}
	if sdk.Region == "" {
		return awsclient.NoRegion.New(nil, "open destination %s", s.name)
	}
	s.creds = sdk.Credentials
	s.transport = &signing{roundTripper: s.transport, creds: s.creds, signer: v4.NewSigner(), service: string(c.Service), region: sdk.Region}
	return nil
}

func (s *openSearch) Limits() Limits { return s.cfg.Batch }

func (s *openSearch) Close() error {
	s.close()
	return nil
}

// Append writes the line of the action and that of the source.
func (s *openSearch) Append(dst []byte, e *Event) []byte {
	at := time.Unix(0, e.Time).UTC()
	if e.Time == 0 { // a data stream refuses events without a time
		at = s.now().UTC()
	}
	dst = append(dst, `{"create":{"_index":"`...)
	start := len(dst)
	dst = s.index.append(dst, e, at, appendIndexName)
	if len(dst)-start > mostIndexName {
		dst = dst[:start+mostIndexName]
	}
	dst = append(dst, `","_id":"`...)
	dst = hex.AppendEncode(dst, e.ID[:])
	dst = append(dst, `"}}`+"\n"...)
	return s.appendSource(dst, e, at)
}

// appendSource writes the fields, named as the Elastic Common Schema has them.
func (s *openSearch) appendSource(dst []byte, e *Event, at time.Time) []byte {
	dst = append(dst, `{"@timestamp":"`...)
	dst = at.AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, `","event":{"id":"`...)
	dst = append(hex.AppendEncode(dst, e.ID[:]), '"')
	dst = appendMember(dst, `,"dataset":`, e.Type)
	dst = append(dst, '}')
	if e.Account != "" || e.Region != "" {
		dst = append(dst, `,"cloud":{`...)
		if e.Account != "" {
			dst = append(appendMember(append(dst, `"account":{`...), `"id":`, e.Account), '}')
		}
		if e.Account != "" && e.Region != "" {
			dst = append(dst, ',')
		}
		dst = append(appendMember(dst, `"region":`, e.Region), '}')
	}
	dst = append(dst, `,"penstock":{`...)
	dst = append(dst, `"source":`...)
	dst = document.AppendQuoted(dst, e.Source)
	dst = appendReplay(dst, e)
	doc := document.Trim(e.Doc)
	switch {
	case s.cfg.Document == DocumentString || document.KindOf(doc) != document.Object:
		// What is no object goes into message always: a field holds objects or other
		// values, not both.
		dst = append(dst, `},"message":`...)
		dst = append(appendQuotedDoc(dst, doc), '}')
	case s.cfg.Document == DocumentObject:
		dst = append(dst, `,"document":`...)
		dst = append(appendDoc(dst, doc), "}}"...)
	default:
		dst = append(appendRoot(dst, doc), '}')
	}
	return append(dst, '\n')
}

func appendMember(dst []byte, key, value string) []byte {
	if value == "" {
		return dst
	}
	return document.AppendQuoted(append(dst, key...), value)
}

// ownField tells which members of a source are penstock's own. They are compared with
// escapes unresolved; the cluster refuses an event in which one stands twice.
func ownField(key []byte) bool {
	switch string(key) {
	case "@timestamp", "event", "cloud", "penstock":
		return true
	}
	return false
}

// appendRoot writes the members of doc beside the object penstock, which is open, and
// closes that. Members with the names of penstock's own go into it, under document.
func appendRoot(dst, doc []byte) []byte {
	first := true
	for c := document.Members(doc); ; {
		key, start, end, ok := c.Next()
		if !ok {
			break
		}
		if !ownField(key) {
			continue
		}
		if first {
			dst = append(dst, `,"document":{`...)
		} else {
			dst = append(dst, ',')
		}
		first = false
		dst = appendMemberOf(dst, key, doc[start:end])
	}
	if !first {
		dst = append(dst, '}')
	}
	dst = append(dst, '}')
	for c := document.Members(doc); ; {
		key, start, end, ok := c.Next()
		if !ok {
			return dst
		}
		if !ownField(key) {
			dst = appendMemberOf(append(dst, ','), key, doc[start:end])
		}
	}
}

func appendMemberOf(dst, key, value []byte) []byte {
	dst = append(append(append(dst, '"'), key...), `":`...)
	return appendDoc(dst, value)
}

// node chooses the address for a request: the next that is not avoided, or the one whose
// time is nearest.
func (s *openSearch) node() *bulkNode {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	var best *bulkNode
	for range s.nodes {
		n := s.nodes[s.turn%len(s.nodes)]
		s.turn++
		if !n.until.After(now) {
			return n
		}
		if best == nil || n.until.Before(best.until) {
			best = n
		}
	}
	return best
}

// mark notes whether an address works.
func (s *openSearch) mark(n *bulkNode, works bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.until = time.Time{}
	if !works {
		n.until = s.now().Add(avoidFor)
	}
}

// Deliver sends one request and judges each event of it.
func (s *openSearch) Deliver(ctx context.Context, b Batch) Result {
	if s.creds != nil {
		if _, err := s.creds.Retrieve(ctx); err != nil {
			return s.unsigned(ctx, err)
		}
	}
	n := s.node()
	r := call{method: http.MethodPost, url: n.url, body: b.Bytes(), most: s.most}
	a, res, ok := s.do(ctx, r)
	if !ok {
		if ctx.Err() == nil {
			s.mark(n, false)
		}
		return res
	}
	s.mark(n, a.status < 500)
	if !a.ok() {
		return s.whole(r, a)
	}
	return s.items(r, a, b.Len())
}

// unsigned judges that there are no credentials.
func (s *openSearch) unsigned(ctx context.Context, err error) Result {
	if ctx.Err() != nil {
		return Result{Verdict: Retry, Err: errHTTPUnreachable.New(context.Cause(ctx), "get AWS credentials for destination %s", s.name)}
	}
	err = awsclient.Explain(err)
	if fault.ClassOf(err) == fault.Retry {
		return Result{Verdict: Retry, Err: err}
	}
	return Result{Verdict: Stop, Err: errBulkDenied.New(err, "get AWS credentials for destination %s", s.name)}
}

// bulkError is why an event, or a whole request, was not taken.
type bulkError struct {
	Type   string `json:"type"`
	Reason string `json:"reason"`
}

// whole judges an answer that is about the request.
func (s *openSearch) whole(r call, a answer) Result {
	var said struct {
		Error bulkError `json:"error"`
	}
	if json.Unmarshal(a.body, &said) != nil || said.Error.Type == "" {
		return s.judge(r, a) // a proxy, or a guard of AWS, says so
	}
	why := said.Error.safe()
	switch verdict, kind := bulkVerdict(a.status, said.Error); {
	case a.status == http.StatusRequestEntityTooLarge:
		return s.because(r, answer{status: a.status, header: a.header, body: []byte(why)}, TooLarge, errHTTPTooLarge)
	case verdict == Done: // a conflict, but not one of an event
		return s.because(r, answer{status: a.status, header: a.header, body: []byte(why)}, Retry, errBulkBusy)
	case verdict == Reject && a.status == http.StatusBadRequest:
		return s.because(r, answer{status: a.status, header: a.header, body: []byte(why)}, Split, errBulkRejected)
	case verdict == Reject: // about the kind of request, not about an event
		return s.judge(r, answer{status: a.status, header: a.header, body: []byte(why)})
	default:
		return s.because(r, answer{status: a.status, header: a.header, body: []byte(why)}, verdict, kind)
	}
}

// bulkVerdict judges one error. What speaks of the index, the cluster or the caller stops
// the destination or is tried again: only what speaks of the event itself is refused.
// Blocks are taken off again, by the cluster when there is room on its disks or by
// somebody, so events wait for that whatever status they have.
func bulkVerdict(status int, e bulkError) (Verdict, *fault.Kind) {
	switch e.Type {
	case "cluster_block_exception", "unavailable_shards_exception", "no_shard_available_action_exception",
		"es_rejected_execution_exception", "rejected_execution_exception", "circuit_breaking_exception",
		"process_cluster_event_timeout_exception", "master_not_discovered_exception", "cluster_manager_not_discovered_exception",
		"node_closed_exception", "node_not_connected_exception", "timeout_exception":
		return Retry, errBulkBusy
	case "security_exception":
		return Stop, errBulkDenied
	case "index_not_found_exception", "index_closed_exception", "invalid_alias_name_exception", "validation_exception",
		"action_request_validation_exception", "illegal_index_shard_state_exception":
		return Stop, errBulkSetup
	case "illegal_argument_exception":
		// That something is not there, full or not known is not the fault of the event.
		for _, sign := range []string{"pipeline with id", "this action would add", "no write index is defined", "unrecognized parameter", "Document ID is not supported"} {
			if strings.Contains(e.Reason, sign) {
				return Stop, errBulkSetup
			}
		}
	}
	switch {
	case status >= 200 && status < 300, status == http.StatusConflict:
		return Done, nil
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status >= 500, status < 400:
		return Retry, errBulkBusy
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return Stop, errBulkDenied
	case status == http.StatusNotFound:
		return Stop, errBulkSetup
	}
	return Reject, errBulkRejected
}

// safe is type and reason without what stands in the event: reasons show values between
// quotes, and those of pipelines between brackets too.
func (e bulkError) safe() string {
	reason := e.Reason
	if i := strings.IndexAny(reason, `'"`+"`"); i >= 0 {
		reason = reason[:i]
	}
	if i := strings.Index(reason, "Preview of field"); i >= 0 {
		reason = reason[:i]
	}
	switch e.Type {
	case "mapper_parsing_exception", "document_parsing_exception", "strict_dynamic_mapping_exception",
		"cluster_block_exception", "index_not_found_exception", "index_closed_exception", "security_exception":
		// Brackets hold names.
	default:
		if i := strings.IndexByte(reason, '['); i >= 0 && !strings.HasPrefix(reason, "Limit of total fields") {
			reason = reason[:i] + "[...]"
		}
	}
	for _, c := range e.Type {
		if c != '_' && (c < 'a' || c > 'z') {
			return "an error of no known type"
		}
	}
	return strings.TrimSpace(e.Type + ": " + reason)
}

// items judges a 2xx answer event by event. Without errors it is not read to its end.
func (s *openSearch) items(r call, a answer, n int) Result {
	j := bulkJudge{s: s, r: r, n: n}
	whole := document.Trim(a.body)
	failed, list, ok := bulkMembers(whole)
	if !ok && (len(whole) == 0 || whole[0] != '{') {
		return s.because(r, a, Stop, errBulkForeign)
	}
	switch {
	case ok && !failed:
		return Result{}
	case list == nil && !a.long && document.Whole(whole):
		return s.because(r, answer{status: a.status, header: a.header}, Stop, errBulkForeign)
	}
	j.run(list)
	return j.result(a)
}

// bulkMembers finds errors, and what there is of items unless errors is false.
func bulkMembers(body []byte) (failed bool, items []byte, ok bool) {
	if document.KindOf(body) != document.Object {
		return false, nil, false
	}
	for c := document.Members(body); ; {
		key, start, end, more := c.Next()
		if !more {
			break
		}
		switch string(key) {
		case "errors":
			failed, ok = string(body[start:end]) != "false", true
			if !failed {
				return false, nil, true
			}
		case "items":
			items = body[start:end]
		}
	}
	if items == nil { // cut off: what is whole of it counts
		if i := bytes.Index(body, []byte(`"items":[`)); i >= 0 {
			items = body[i+len(`"items":`):]
		}
	}
	return failed, items, ok
}

// bulkJudge collects the verdicts on the events of one request.
type bulkJudge struct {
	s *openSearch
	r call
	n int

	items   []Exception // by event
	retry   error       // why events are sent again
	stop    error       // why the destination stops
	repeats int
}

// run judges item by item, as far as the list is whole.
func (j *bulkJudge) run(list []byte) {
	j.items = make([]Exception, 0, j.n)
	if document.KindOf(list) != document.Array {
		return
	}
	for c := document.Members(list); len(j.items) < j.n; {
		_, start, end, ok := c.Next()
		if !ok {
			return
		}
		j.judge(list[start:end])
	}
}

// judge takes one item: {"create":{"status":201}}.
func (j *bulkJudge) judge(item []byte) {
	x := Exception{Index: len(j.items)}
	status, why := readBulkItem(item)
	verdict, kind := bulkVerdict(status, why)
	switch verdict {
	case Done:
		if status == http.StatusConflict {
			j.repeats++
		}
	case Stop:
		if j.stop == nil {
			j.stop = j.because(kind, status, why)
		}
		x.Verdict = Stop
	case Reject:
		x.Verdict, x.Err = Reject, j.because(kind, status, why)
	default:
		if j.retry == nil {
			j.retry = j.because(kind, status, why)
		}
		x.Verdict, x.Err = Retry, j.retry
	}
	j.items = append(j.items, x)
}

func (j *bulkJudge) because(kind *fault.Kind, status int, why bulkError) error {
	var cause error
	if why.Type != "" {
		cause = errors.New("it says: " + j.s.sanitise(why.safe()))
	}
	return kind.New(cause, "%s: status %d for an event", j.s.doing(j.r), status)
}

// readBulkItem finds status and error of an item; status 0 when there is none.
func readBulkItem(item []byte) (status int, why bulkError) {
	c := document.Members(item)
	_, start, end, ok := c.Next()
	if !ok {
		return 0, why
	}
	result := item[start:end]
	if document.KindOf(result) != document.Object {
		return 0, why
	}
	for c := document.Members(result); ; {
		key, start, end, ok := c.Next()
		if !ok {
			return status, why
		}
		switch string(key) {
		case "status":
			status, _ = strconv.Atoi(string(result[start:end]))
		case "error":
			if json.Unmarshal(result[start:end], &why) != nil { // very old ones have a text
				why = bulkError{}
			}
		}
	}
}

// result sums up. Events of which nothing was said are sent again; when any stops the
// destination, so are all that are not settled.
func (j *bulkJudge) result(a answer) Result {
	if j.repeats > 0 {
		bulkRepeats.WithLabelValues(j.s.name).Add(float64(j.repeats))
	}
	if len(j.items) < j.n && j.retry == nil {
		j.retry = errBulkBroken.New(nil, "%s: the answer tells of %d events, not of %d", j.s.doing(j.r), len(j.items), j.n)
	}
	res := Result{}
	switch {
	case j.stop != nil:
		res = Result{Verdict: Stop, Err: j.stop}
	case j.retry != nil:
		res = Result{Verdict: Retry, Err: j.retry, After: retryAfter(a.header.Get("Retry-After"), time.Now())}
	}
	for _, x := range j.items {
		if x.Verdict == res.Verdict || x.Verdict == Retry || x.Verdict == Stop {
			continue
		}
		res.Items = append(res.Items, x)
	}
	return res
}

// signing signs requests with AWS Signature Version 4.
type signing struct {
	roundTripper
	creds   aws.CredentialsProvider
	signer  *v4.Signer
	service string
	region  string
}

// RoundTrip implements [http.RoundTripper], which closes the body whatever happens.
func (s *signing) RoundTrip(r *http.Request) (*http.Response, error) {
	signed, err := s.sign(r)
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	return s.roundTripper.RoundTrip(signed)
}

// sign returns a signed copy of r, with the same body.
func (s *signing) sign(r *http.Request) (*http.Request, error) {
	ctx := r.Context()
	creds, err := s.creds.Retrieve(ctx)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	if r.GetBody != nil {
		body, err := r.GetBody()
		if err != nil {
			return nil, err
		}
		_, err = io.Copy(h, body)
		_ = body.Close()
		if err != nil {
			return nil, err
		}
	}
	sum := hex.EncodeToString(h.Sum(nil))
	r = r.Clone(ctx)
	r.Header.Set("X-Amz-Content-Sha256", sum)
	if err := s.signer.SignHTTP(ctx, creds, r, sum, s.service, s.region, time.Now()); err != nil {
		return nil, err
	}
	return r, nil
}

// Probe implements [probe.Prober]: each address is asked what it is, and the ingest
// pipeline is looked for.
func (c OpenSearchConfig) Probe(ctx context.Context) []probe.Finding {
	opened, err := openOpenSearch(ctx, c, Deps{Destination: "doctor"})
	if err != nil {
		return []probe.Finding{probe.Error("open", strings.Join(c.URLs, ", "), err)}
	}
	s, _ := opened.(*openSearch)
	defer s.Close() //nolint:errcheck // frees connections
	var all []probe.Finding
	if s.creds != nil {
		if _, err := s.creds.Retrieve(ctx); err != nil {
			return []probe.Finding{probe.Error("credentials", "aws", s.unsigned(ctx, err).Err)}
		}
	}
	for _, n := range s.nodes {
		found, ok := c.reach(ctx, n.url)
		if all = append(all, found...); ok {
			all = append(all, s.greet(ctx, n.url)...)
		}
	}
	return all
}

// greet asks one address what it is.
func (s *openSearch) greet(ctx context.Context, bulk *url.URL) []probe.Finding {
	root := *bulk
	root.RawQuery, root.Path = "", strings.TrimSuffix(bulk.Path, "_bulk")
	r := call{method: http.MethodGet, url: &root}
	a, res, ok := s.do(ctx, r)
	if !ok {
		return []probe.Finding{probe.Error("GET", root.String(), res.Err)}
	}
	var said struct {
		Version struct {
			Number       string `json:"number"`
			Distribution string `json:"distribution"`
		} `json:"version"`
	}
	var all []probe.Finding
	switch res := s.judge(r, a); {
	case a.ok() && json.Unmarshal(a.body, &said) == nil && said.Version.Number != "":
		name := "Elasticsearch"
		if said.Version.Distribution == "opensearch" {
			name = "OpenSearch"
		}
		all = append(all, probe.Good("GET", root.String(), s.sanitise(name+" "+said.Version.Number)))
	case res.Verdict == Stop && errors.Is(res.Err, errHTTPDenied):
		return []probe.Finding{probe.Error("GET", root.String(), res.Err)}
	default:
		all = append(all, probe.Doubt("GET", root.String(), "it does not tell its version", "serverless collections and others that only speak the bulk API do not; else check urls"))
	}
	if s.cfg.Pipeline == "" {
		return all
	}
	find := root.JoinPath("_ingest/pipeline", s.cfg.Pipeline)
	a, res, ok = s.do(ctx, call{method: http.MethodGet, url: find})
	switch {
	case !ok:
		return append(all, probe.Error("pipeline", find.String(), res.Err))
	case a.ok():
		return append(all, probe.Good("pipeline", find.String(), "it is there"))
	case a.status == http.StatusNotFound:
		return append(all, probe.Bad("pipeline", find.String(), "it is not there", errBulkSetup.Fix))
	}
	return append(all, probe.Doubt("pipeline", find.String(), "status "+strconv.Itoa(a.status), "whether it is there cannot be seen by this user"))
}
