package sinks

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
	"github.com/penstock/penstock/services/internal/probe"
)

func init() { harnesses["opensearch"] = openSearchWorld }

const bulkKey = "VnVhQ2ZHY0JDZGJrU-s3cr3t"

// bulkSource is what an index keeps of an event.
type bulkSource struct {
	Timestamp string `json:"@timestamp"`
	Event     struct{ ID, Dataset string }
	Cloud     struct {
		Account struct{ ID string }
		Region  string
	}
	Penstock struct {
		Source   string
		Document json.RawMessage
	}
	Message *string
}

// bulkFarSide is a cluster over TLS that keeps what is created, by index and id.
type bulkFarSide struct {
	*httptest.Server
	mu      sync.Mutex
	docs    map[string]string // by index/id
	order   []string
	queries []string
	headers []http.Header
	bodies  [][]byte
	// refuse answers for an event in place of creating it when it returns a status.
	refuse func(index string, source *bulkSource) (int, bulkError)
	// trouble answers in place of the cluster when set.
	trouble func(w http.ResponseWriter, r *http.Request)
}

func newBulkFarSide(tb testing.TB) *bulkFarSide {
	tb.Helper()
	f := &bulkFarSide{docs: map[string]string{}}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.StartTLS()
	return f
}

func (f *bulkFarSide) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	trouble := f.trouble
	f.mu.Unlock()
	if trouble != nil {
		trouble(w, r)
		return
	}
	body, err := plainBody(r)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.queries, f.headers, f.bodies = append(f.queries, r.URL.RawQuery), append(f.headers, r.Header), append(f.bodies, body)
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/_bulk":
		f.bulk(w, body)
	case "/":
		_, _ = io.WriteString(w, `{"name":"n1","version":{"distribution":"opensearch","number":"2.19.0"}}`)
	case "/_ingest/pipeline/there":
		_, _ = io.WriteString(w, `{"there":{}}`)
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{}`)
	}
}

func (f *bulkFarSide) bulk(w http.ResponseWriter, body []byte) {
	if !bytes.HasSuffix(body, []byte("\n")) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":{"type":"illegal_argument_exception","reason":"The bulk request must be terminated by a newline [\\n]"},"status":400}`)
		return
	}
	var items []string
	failed := false
	lines := bufio.NewScanner(bytes.NewReader(body))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var action struct {
			Create *struct {
				Index string `json:"_index"`
				ID    string `json:"_id"`
			}
		}
		var source bulkSource
		if json.Unmarshal(lines.Bytes(), &action) != nil || action.Create == nil || !lines.Scan() || json.Unmarshal(lines.Bytes(), &source) != nil {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":{"type":"illegal_argument_exception","reason":"Malformed action/metadata line"},"status":400}`)
			return
		}
		status, why := http.StatusCreated, bulkError{}
		place := action.Create.Index + "/" + action.Create.ID
		if f.refuse != nil {
			if s, e := f.refuse(action.Create.Index, &source); s != 0 {
				status, why = s, e
			}
		}
		if _, there := f.docs[place]; there && status == http.StatusCreated {
			status, why = http.StatusConflict, bulkError{Type: "version_conflict_engine_exception", Reason: "[x]: version conflict, document already exists"}
		}
		if status >= 400 {
			failed = true
			text, _ := json.Marshal(map[string]any{"type": why.Type, "reason": why.Reason})
			items = append(items, fmt.Sprintf(`{"create":{"status":%d,"error":%s}}`, status, text))
			continue
		}
		f.docs[place] = lines.Text()
		f.order = append(f.order, place)
		items = append(items, fmt.Sprintf(`{"create":{"status":%d}}`, status))
	}
	_, _ = fmt.Fprintf(w, `{"errors":%v,"items":[%s]}`, failed, strings.Join(items, ","))
}

func (f *bulkFarSide) when(trouble func(w http.ResponseWriter, r *http.Request)) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.trouble = trouble
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.trouble = nil
	}
}

// envelopes are the events in the form that the conformance suite reads.
func (f *bulkFarSide) envelopes() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for _, place := range f.order {
		var s bulkSource
		_ = json.Unmarshal([]byte(f.docs[place]), &s)
		doc := s.Penstock.Document
		if s.Message != nil {
			doc = json.RawMessage(*s.Message)
		}
		var compact bytes.Buffer
		_ = json.Compact(&compact, doc)
		lines = append(lines, fmt.Sprintf(`{"id":%q,"type":%q,"time":%q,"source":%q,"account":%q,"region":%q,"event":%s}`,
			s.Event.ID, s.Event.Dataset, s.Timestamp, s.Penstock.Source, s.Cloud.Account.ID, s.Cloud.Region, compact.String()))
	}
	return lines
}

func (f *bulkFarSide) config(t *testing.T) OpenSearchConfig {
	t.Helper()
	cfg := defaultOpenSearch()
	cfg.URLs = []string{f.URL}
	cfg.APIKey = config.NewSecret(bulkKey)
	cfg.TLS.CAFile = trustIn(t, f.Server)
	cfg.Timeout = 2 * time.Second
	return cfg
}

func openBulk(t *testing.T, cfg OpenSearchConfig) *openSearch {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	opened, err := openOpenSearch(t.Context(), cfg, Deps{Destination: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = opened.Close() })
	return opened.(*openSearch)
}

// number of an event by its document.
func (s *bulkSource) number() int {
	var doc struct{ N int }
	_ = json.Unmarshal([]byte(*s.Message), &doc)
	return doc.N
}

func mappingError(*bulkSource) bulkError {
	return bulkError{Type: "mapper_parsing_exception", Reason: "failed to parse field [n] of type [date] in document with id 'x'. Preview of field's value: '" + secretPayload + "'"}
}

func openSearchWorld(t *testing.T) *world {
	f := newBulkFarSide(t)
	cfg := f.config(t)
	s := openBulk(t, cfg)
	// Every answer tries to give secrets and payload away.
	status := func(code int, kind string) func() func() {
		return func() func() {
			return f.when(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Retry-After", "7")
				w.WriteHeader(code)
				_, _ = fmt.Fprintf(w, `{"error":{"type":%q,"reason":"no \"%s\" for %s"},"status":%d}`, kind, secretPayload, r.Header.Get("Authorization"), code)
			})
		}
	}
	return &world{
		sink:     s,
		received: f.envelopes,
		secrets:  []string{bulkKey},
		outage:   status(http.StatusServiceUnavailable, "master_not_discovered_exception"),
		throttle: status(http.StatusTooManyRequests, "es_rejected_execution_exception"),
		denial:   status(http.StatusForbidden, "security_exception"),
		hang: func() func() {
			release := make(chan struct{})
			heal := f.when(func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				<-release
			})
			return func() { heal(); close(release) }
		},
		hangs: 15 * time.Second,
		cut: func() func() {
			return f.when(func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.ReadFull(r.Body, make([]byte, 10_000))
				panic(http.ErrAbortHandler)
			})
		},
		partial: func() func() {
			f.refuse = func(_ string, s *bulkSource) (int, bulkError) {
				if s.number()%3 == 0 {
					return http.StatusBadRequest, mappingError(s)
				}
				return 0, bulkError{}
			}
			return func() { f.refuse = nil }
		},
		untrusted: func() (Sink, func() bool) {
			cfg := cfg
			cfg.TLS.CAFile = ""
			return openBulk(t, cfg), func() bool { return len(f.envelopes()) > 0 }
		},
		done: f.Close,
	}
}

// covers: F-26, LIM-26
func TestOpenSearchForms(t *testing.T) {
	events := []*Event{
		event(1, `{"eventName":"ListBuckets","message":"m"}`),
		{ID: messages.NewID([]byte("x")), Doc: []byte("[1,\n2]")},
		{
			ID: messages.NewID([]byte("y")), Type: "Quo\"te *", Source: "back\\slash", Format: "CloudTrail/1", Account: "line\nbreak",
			Time: 1_767_599_094_999_999_999, Doc: []byte("\n{\"event\": {\"id\":\n 7}, \"@timestamp\":\"then\",\n\"ä\":\"<>&\\n\\u0000\", \"penstock\":null }\n"),
		},
		{ID: messages.NewID([]byte("z")), Format: "vpcflow", Region: "eu-west-1", Time: 1, Doc: []byte(`{}`)},
		{ID: messages.NewID([]byte("w"))},
	}
	for name, change := range map[string]func(*OpenSearchConfig){
		"string": func(*OpenSearchConfig) {},
		"object": func(c *OpenSearchConfig) {
			c.Document, c.Index = DocumentObject, "aws-{account}-{type}-{yyyy}.{MM}.{dd}t{HH}"
		},
		"root": func(c *OpenSearchConfig) { c.Document, c.Index = DocumentRoot, "events" },
	} {
		cfg := defaultOpenSearch()
		cfg.URLs = []string{"https://opensearch.example.com:9200"}
		change(&cfg)
		s := openBulk(t, cfg)
		s.now = func() time.Time { return time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC) }
		var out []byte
		for _, e := range events {
			out = s.Append(out, e)
		}
		for i, line := range strings.Split(strings.TrimSuffix(string(out), "\n"), "\n") {
			if !json.Valid([]byte(line)) {
				t.Errorf("%s: line %d is no JSON: %s", name, i+1, line)
			}
		}
		golden.Check(t, "testdata/opensearch/"+name+".ndjson", out)
	}
}

func TestOpenSearchIndexName(t *testing.T) {
	cfg := defaultOpenSearch()
	cfg.URLs, cfg.Index = []string{"https://opensearch.example.com"}, "a-{type}-{source}"
	s := openBulk(t, cfg)
	for typ, want := range map[string]string{
		"":                       "a-unknown-s",
		"cloud.aws.CloudTrail":   "a-cloud.aws.cloudtrail-s",
		`\/*?"<>| ,#:`:           "a-____________-s",
		"ä":                      "a-__-s",
		strings.Repeat("x", 400): "a-" + strings.Repeat("x", 253),
	} {
		var action struct {
			Create struct {
				Index string `json:"_index"`
			}
		}
		line, _, _ := bytes.Cut(s.Append(nil, &Event{Type: typ, Source: "s", Time: 1}), []byte("\n"))
		if err := json.Unmarshal(line, &action); err != nil || action.Create.Index != want {
			t.Errorf("%q: %q, want %q (%v)", typ, action.Create.Index, want, err)
		}
	}
}

// What each error means: for the event, for all events, or for now.
//
// covers: F-26, peers pain 20 and section 6 "OpenSearch / Elasticsearch bulk"
func TestOpenSearchItems(t *testing.T) {
	tests := []struct {
		name    string
		status  int
		why     bulkError
		verdict Verdict
		code    string
		shows   string
	}{
		{"created", 201, bulkError{}, Done, "", ""},
		{"there already", 409, bulkError{"version_conflict_engine_exception", "[x]: version conflict, document already exists (current version [1])"}, Done, "", ""},
		{"mapping", 400, mappingError(nil), Reject, "deliver.opensearch_rejected", "mapper_parsing_exception: failed to parse field [n] of type [date] in document with id"},
		{"mapping of version 8", 400, bulkError{"document_parsing_exception", "[1:5] failed to parse field [n] of type [long] in document with id 'x'. Preview of field's value: 'it's " + secretPayload + "'"}, Reject, "deliver.opensearch_rejected", "[1:5] failed to parse field [n] of type [long]"},
		{"strict mapping", 400, bulkError{"strict_dynamic_mapping_exception", "mapping set to strict, dynamic introduction of [n] within [_doc] is not allowed"}, Reject, "deliver.opensearch_rejected", "dynamic introduction of [n]"},
		{"too many fields", 400, bulkError{"illegal_argument_exception", "Limit of total fields [1000] has been exceeded while adding new fields [1]"}, Reject, "deliver.opensearch_rejected", "Limit of total fields [1000]"},
		{"a pipeline fails on the event", 400, bulkError{"illegal_argument_exception", "unable to parse date [" + secretPayload + "]"}, Reject, "deliver.opensearch_rejected", "unable to parse date [...]"},
		{"strange type", 400, bulkError{secretPayload, secretPayload}, Reject, "deliver.opensearch_rejected", "no known type"},
		{"no pipeline", 400, bulkError{"illegal_argument_exception", "pipeline with id [p] does not exist"}, Stop, "deliver.opensearch_setup", ""},
		{"no index", 404, bulkError{"index_not_found_exception", "no such index [logs] and [action.auto_create_index] is [false]"}, Stop, "deliver.opensearch_setup", "no such index [logs]"},
		{"closed index", 400, bulkError{"index_closed_exception", "closed"}, Stop, "deliver.opensearch_setup", ""},
		{"no more shards", 400, bulkError{"validation_exception", "Validation Failed: 1: this action would add [2] shards, but this cluster currently has [1000]/[1000] maximum normal shards open;"}, Stop, "deliver.opensearch_setup", ""},
		{"no more shards, older", 400, bulkError{"illegal_argument_exception", "Validation Failed: 1: this action would add [2] total shards"}, Stop, "deliver.opensearch_setup", ""},
		{"ids are not taken", 400, bulkError{"illegal_argument_exception", "Document ID is not supported in create/index operation request"}, Stop, "deliver.opensearch_setup", ""},
		{"no permission", 403, bulkError{"security_exception", "action [indices:data/write/bulk[s]] is unauthorized for user [penstock]"}, Stop, "deliver.opensearch_denied", ""},
		{"disk is full", 403, bulkError{"cluster_block_exception", "index [logs] blocked by: [FORBIDDEN/12/index read-only / allow delete (api)];"}, Retry, "deliver.opensearch_busy", "FORBIDDEN/12"},
		{"disk is full, newer", 429, bulkError{"cluster_block_exception", "index [logs] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark, index has read-only-allow-delete block];"}, Retry, "deliver.opensearch_busy", ""},
		{"queue is full", 429, bulkError{"es_rejected_execution_exception", "rejected execution of coordinating operation"}, Retry, "deliver.opensearch_busy", ""},
		{"no shard", 503, bulkError{"unavailable_shards_exception", "[logs][0] primary shard is not active"}, Retry, "deliver.opensearch_busy", ""},
		{"memory", 429, bulkError{"circuit_breaking_exception", "[parent] Data too large"}, Retry, "deliver.opensearch_busy", ""},
		{"server error", 500, bulkError{"illegal_state_exception", "x"}, Retry, "deliver.opensearch_busy", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newBulkFarSide(t)
			defer f.Close()
			s := openBulk(t, f.config(t))
			f.refuse = func(_ string, s *bulkSource) (int, bulkError) {
				if s.number() == 1 && tt.status != 201 {
					return tt.status, tt.why
				}
				return 0, bulkError{}
			}
			res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 3)...))
			got, err := res.Verdict, res.Err
			for _, x := range res.Items {
				switch {
				case x.Index == 1:
					got, err = x.Verdict, x.Err
				case x.Verdict != Done:
					t.Errorf("event %d: %v", x.Index, x.Verdict)
				}
			}
			if res.Verdict != Done && len(res.Items) != 2 {
				t.Errorf("the other events: %+v", res.Items)
			}
			if got != tt.verdict || tt.code != "" && fault.CodeOf(err) != tt.code {
				t.Fatalf("%v, want %v %s: %v", got, tt.verdict, tt.code, err)
			}
			if err != nil && (strings.Contains(err.Error(), secretPayload) || !strings.Contains(err.Error(), tt.shows)) {
				t.Errorf("error %q, want %q in it", err, tt.shows)
			}
		})
	}
}

func TestOpenSearchWhole(t *testing.T) {
	tests := []struct {
		status  int
		body    string
		verdict Verdict
		code    string
	}{
		{200, `{"errors":false}`, Done, ""},
		{200, `{"took":1,"errors":false,"items":[{"create":{"status":201}`, Done, ""}, // errors says it
		{200, `<html>welcome</html>`, Stop, "deliver.opensearch_not_bulk"},
		{200, ``, Stop, "deliver.opensearch_not_bulk"},
		{200, `{}`, Stop, "deliver.opensearch_not_bulk"},
		{200, `{"errors":true}`, Stop, "deliver.opensearch_not_bulk"},
		{200, `{"errors":true,"items":[{"create":{"status":201}},{"create":{"sta`, Retry, "deliver.opensearch_broken_answer"},
		{200, `{"errors":true,"items":[{"create":{"status":201}},{"create":{"status":429}}]}`, Retry, "deliver.opensearch_busy"},
		{200, `{"errors":true,"items":[7,{},{"create":null}]}`, Retry, "deliver.opensearch_busy"},
		{301, ``, Stop, "deliver.http_wrong_request"},
		{400, `{"error":{"type":"illegal_argument_exception","reason":"Malformed action/metadata line [1]"},"status":400}`, Split, "deliver.opensearch_rejected"},
		{400, `{"error":{"type":"illegal_argument_exception","reason":"request [/_bulk] contains unrecognized parameter: [x]"},"status":400}`, Stop, "deliver.opensearch_setup"},
		{401, `{"error":{"type":"security_exception","reason":"unable to authenticate user"},"status":401}`, Stop, "deliver.opensearch_denied"},
		{401, `Unauthorized`, Stop, "deliver.http_denied"},
		{403, `{"Message":"User: anonymous is not authorized to perform: es:ESHttpPost"}`, Stop, "deliver.http_denied"},
		{403, `{"error":{"type":"cluster_block_exception","reason":"index [x] blocked by: [FORBIDDEN/12/index read-only / allow delete (api)];"},"status":403}`, Retry, "deliver.opensearch_busy"},
		{404, `{"error":"no handler found for uri [/x/_bulk]"}`, Stop, "deliver.http_wrong_request"},
		{405, `{"error":"Incorrect HTTP method","status":405}`, Stop, "deliver.http_wrong_request"},
		{409, `{"error":{"type":"resource_already_exists_exception","reason":"index [x] already exists"},"status":409}`, Retry, "deliver.opensearch_busy"},
		{413, `Request Entity Too Large`, TooLarge, "deliver.http_too_large"},
		{413, `{"error":{"type":"x_content_parse_exception","reason":"too large"},"status":413}`, TooLarge, "deliver.http_too_large"},
		{429, `{"error":{"type":"circuit_breaking_exception","reason":"[parent] Data too large"},"status":429}`, Retry, "deliver.opensearch_busy"},
		{429, `429 Too Many Requests /_bulk`, Retry, "deliver.http_busy"},
		{502, `bad gateway`, Retry, "deliver.http_busy"},
		{503, `{"error":{"type":"cluster_manager_not_discovered_exception","reason":null},"status":503}`, Retry, "deliver.opensearch_busy"},
	}
	f := newBulkFarSide(t)
	defer f.Close()
	s := openBulk(t, f.config(t))
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.status, tt.body), func(t *testing.T) {
			defer f.when(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			})()
			res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 3)...))
			if res.Verdict != tt.verdict || tt.code != "" && fault.CodeOf(res.Err) != tt.code {
				t.Errorf("%v %s, want %v %s: %v", res.Verdict, fault.CodeOf(res.Err), tt.verdict, tt.code, res.Err)
			}
		})
	}
}

// An answer that is longer than what is read of it is judged as far as it goes, so that
// what is sent again gets less each time.
func TestOpenSearchLongAnswer(t *testing.T) {
	f := newBulkFarSide(t)
	defer f.Close()
	s := openBulk(t, f.config(t))
	s.most = 2000
	f.refuse = func(_ string, s *bulkSource) (int, bulkError) {
		if s.number() == 0 {
			return 400, bulkError{Type: "mapper_parsing_exception", Reason: strings.Repeat("r", 700)}
		}
		return 0, bulkError{}
	}
	b := batchOf(s, 0, plain(0, 100)...)
	res := s.Deliver(t.Context(), b)
	if res.Verdict != Retry || fault.CodeOf(res.Err) != "deliver.opensearch_broken_answer" || len(res.Items) < 20 || res.Items[0].Verdict != Reject {
		t.Fatalf("%v with %d exceptions: %v", res.Verdict, len(res.Items), res.Err)
	}
	refused := 0
	settle(t, s, b.data, b.items, 20, func(_ messages.ID, v Verdict) {
		if v == Reject {
			refused++
		}
	})
	if refused != 1 || len(f.docs) != 99 {
		t.Errorf("%d refused, %d there", refused, len(f.docs))
	}
}

// Only what did not get through is sent again, and what got through before is no error.
func TestOpenSearchSendsOnlyTheRest(t *testing.T) {
	f := newBulkFarSide(t)
	defer f.Close()
	s := openBulk(t, f.config(t))
	busy := true
	f.refuse = func(_ string, s *bulkSource) (int, bulkError) {
		if busy && s.number()%2 == 1 {
			return 429, bulkError{Type: "es_rejected_execution_exception", Reason: "full"}
		}
		return 0, bulkError{}
	}
	b := batchOf(s, 0, plain(0, 10)...)
	settle(t, s, b.data, b.items, 2, func(messages.ID, Verdict) {
		f.mu.Lock()
		defer f.mu.Unlock()
		busy = false
	})
	if n := bytes.Count(f.bodies[1], []byte(`{"create"`)); n != 5 || len(f.docs) != 10 {
		t.Errorf("%d events in the second request, %d there", n, len(f.docs))
	}
	before := valueOf(t, bulkRepeats.WithLabelValues(s.name))
	mustDeliver(t, s, b)
	if got := valueOf(t, bulkRepeats.WithLabelValues(s.name)) - before; got != 10 {
		t.Errorf("%v repeats counted", got)
	}
	// All at once: an outage, not a success with exceptions.
	busy = true
	f.docs = map[string]string{}
	f.refuse = func(string, *bulkSource) (int, bulkError) { return 429, bulkError{Type: "x_exception"} }
	if res := s.Deliver(t.Context(), b); res.Verdict != Retry || len(res.Items) != 0 {
		t.Errorf("%+v", res)
	}
}

func TestOpenSearchRequest(t *testing.T) {
	f := newBulkFarSide(t)
	defer f.Close()
	cfg := f.config(t)
	cfg.Pipeline = "geo"
	s := openBulk(t, cfg)
	mustDeliver(t, s, batchOf(s, 0, plain(0, 3)...))
	h := f.headers[0]
	if h.Get("Content-Type") != "application/x-ndjson" || h.Get("Content-Encoding") != "gzip" || h.Get("Authorization") != "ApiKey "+bulkKey {
		t.Errorf("header %v", h)
	}
	if want := "filter_path=errors%2Cerror%2Cstatus%2Citems.%2A.status%2Citems.%2A.error.type%2Citems.%2A.error.reason&pipeline=geo"; f.queries[0] != want {
		t.Errorf("query %s", f.queries[0])
	}
}

func TestOpenSearchTakesTurns(t *testing.T) {
	var all []*bulkFarSide
	cfg := defaultOpenSearch()
	for range 3 {
		f := &bulkFarSide{docs: map[string]string{}}
		f.Server = httptest.NewServer(http.HandlerFunc(f.serve))
		defer f.Close()
		all = append(all, f)
		cfg.URLs = append(cfg.URLs, f.URL)
	}
	s := openBulk(t, cfg)
	now := time.Now()
	s.now = func() time.Time { return now }
	calls := func() (n []int) {
		for _, f := range all {
			n = append(n, len(f.bodies))
		}
		return n
	}
	for i := range 6 {
		mustDeliver(t, s, batchOf(s, i, plain(i, 1)...))
	}
	if got := calls(); !slices.Equal(got, []int{2, 2, 2}) {
		t.Fatalf("requests %v", got)
	}
	heal := all[1].when(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusBadGateway)
	})
	failed := 0
	for i := range 9 {
		if res := s.Deliver(t.Context(), batchOf(s, i, plain(i, 1)...)); res.Verdict != Done {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d requests failed while one address is down, want the one that showed it", failed)
	}
	heal()
	now = now.Add(avoidFor)
	before := len(all[1].bodies)
	for i := range 3 {
		mustDeliver(t, s, batchOf(s, i, plain(i, 1)...))
	}
	if len(all[1].bodies) != before+1 {
		t.Error("the address is not used again")
	}
	// With all of them down, none is given up.
	for _, f := range all {
		f.Close()
	}
	for range 6 {
		if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 1)...)); res.Verdict != Retry {
			t.Errorf("%v: %v", res.Verdict, res.Err)
		}
	}
}

// What is signed is the request as it goes out, and the secret does not show.
func TestOpenSearchAWS(t *testing.T) {
	f := newBulkFarSide(t)
	defer f.Close()
	key := aws.Credentials{AccessKeyID: "AKIAEXAMPLE", SecretAccessKey: "aws-s3cr3t", SessionToken: "aws-t0ken"}
	cfg := f.config(t)
	cfg.APIKey = config.Secret{}
	cfg.AWS = &OpenSearchAWS{Service: AWSServerless, Config: awsclient.Config{
		Region: "eu-west-1", AccessKey: key.AccessKeyID, SecretKey: config.NewSecret(key.SecretAccessKey), SessionToken: config.NewSecret(key.SessionToken),
	}}
	s := openBulk(t, cfg)
	defer f.when(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		sum := fmt.Sprintf("%x", sha256.Sum256(body))
		at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
		if err != nil || r.Header.Get("X-Amz-Content-Sha256") != sum {
			t.Errorf("time %v, hash %s of a body with %s", err, r.Header.Get("X-Amz-Content-Sha256"), sum)
		}
		again := r.Clone(r.Context())
		again.URL.Scheme, again.URL.Host = "https", r.Host
		again.Header.Del("Authorization")
		if err := v4.NewSigner().SignHTTP(r.Context(), key, again, sum, "aoss", "eu-west-1", at); err != nil {
			t.Error(err)
		}
		if got, want := r.Header.Get("Authorization"), again.Header.Get("Authorization"); got != want || !strings.Contains(got, "/eu-west-1/aoss/aws4_request") {
			t.Errorf("signature %q, want %q", got, want)
		}
		if strings.Contains(fmt.Sprint(r.Header), key.SecretAccessKey) {
			t.Error("the secret went out")
		}
		_, _ = io.WriteString(w, `{"errors":false}`)
	})()
	mustDeliver(t, s, batchOf(s, 0, plain(0, 3)...))
}

func TestOpenSearchAWSWithoutCredentials(t *testing.T) {
	f := newBulkFarSide(t)
	defer f.Close()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CONFIG_FILE", "absent")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "absent")
	cfg := f.config(t)
	cfg.APIKey = config.Secret{}
	cfg.AWS = &OpenSearchAWS{Service: AWSOpenSearch, Config: awsclient.Config{Region: "eu-west-1"}}
	s := openBulk(t, cfg)
	if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 3)...)); res.Verdict != Stop || fault.CodeOf(res.Err) != "deliver.opensearch_denied" {
		t.Errorf("%v: %v", res.Verdict, res.Err)
	}
	cfg.AWS.Region = ""
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	if _, err := openOpenSearch(t.Context(), cfg, Deps{}); fault.CodeOf(err) != "aws.no_region" {
		t.Errorf("no region: %v", err)
	}
	if all := cfg.Probe(t.Context()); len(all) != 1 || all[0].Level != probe.Fail {
		t.Errorf("%v", all)
	}
}

func TestOpenSearchConfig(t *testing.T) {
	tests := []struct {
		key    string
		change func(*OpenSearchConfig)
	}{
		{"urls", func(c *OpenSearchConfig) { c.URLs = nil }},
		{"urls[1]", func(c *OpenSearchConfig) { c.URLs = append(c.URLs, "ftp://x") }},
		{"urls[0]", func(c *OpenSearchConfig) { c.URLs[0] = "https://u:p@x/" }},
		{"urls[0]", func(c *OpenSearchConfig) { c.URLs[0] = "https://x/_bulk" }},
		{"index", func(c *OpenSearchConfig) { c.Index = "" }},
		{"index", func(c *OpenSearchConfig) { c.Index = "{type}" }},
		{"index", func(c *OpenSearchConfig) { c.Index = "_x" }},
		{"index", func(c *OpenSearchConfig) { c.Index = "Logs" }},
		{"index", func(c *OpenSearchConfig) { c.Index = "a b" }},
		{"index", func(c *OpenSearchConfig) { c.Index = "a-{day}" }},
		{"pipeline", func(c *OpenSearchConfig) { c.Pipeline = "a,b" }},
		{"api_key", func(c *OpenSearchConfig) { c.APIKey = config.NewSecret("id:key") }},
		{"api_key", func(c *OpenSearchConfig) { c.APIKey, c.Username = config.NewSecret("x"), "u" }},
		{"api_key", func(c *OpenSearchConfig) { c.BearerToken, c.AWS = config.NewSecret("x"), &OpenSearchAWS{} }},
		{"username", func(c *OpenSearchConfig) { c.Password = config.NewSecret("x") }},
		{"aws.region", func(c *OpenSearchConfig) { c.AWS = &OpenSearchAWS{Config: awsclient.Config{Region: "a b"}} }},
		{"aws.endpoint_url", func(c *OpenSearchConfig) {
			c.AWS = &OpenSearchAWS{Config: awsclient.Config{EndpointURL: "http://localhost"}}
		}},
		{"batch.bytes", func(c *OpenSearchConfig) { c.Batch.Bytes = 0 }},
		{"headers.authorization", func(c *OpenSearchConfig) {
			c.Headers, c.APIKey = map[string]config.Secret{"authorization": config.NewSecret("x")}, config.NewSecret("y")
		}},
		{"timeout", func(c *OpenSearchConfig) { c.Timeout = 0 }},
	}
	for _, tt := range tests {
		cfg := defaultOpenSearch()
		cfg.URLs = []string{"https://opensearch.example.com:9200"}
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), tt.key+": ") {
			t.Errorf("%s: got %v", tt.key, err)
		}
	}
}

func TestOpenSearchProbe(t *testing.T) {
	f := newBulkFarSide(t)
	defer f.Close()
	cfg := f.config(t)
	levels := func(cfg OpenSearchConfig) (all []probe.Level) {
		for _, x := range cfg.Probe(t.Context()) {
			all = append(all, x.Level)
			if strings.Contains(fmt.Sprint(x), bulkKey) {
				t.Errorf("%v shows the key", x)
			}
		}
		return all
	}
	want := func(name string, cfg OpenSearchConfig, want ...probe.Level) {
		t.Helper()
		if got := levels(cfg); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	want("good", cfg, probe.OK, probe.OK)
	cfg.Pipeline = "there"
	want("pipeline", cfg, probe.OK, probe.OK, probe.OK)
	cfg.Pipeline = "absent"
	want("no pipeline", cfg, probe.OK, probe.OK, probe.Fail)
	cfg.Pipeline = ""
	heal := f.when(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	want("denied", cfg, probe.OK, probe.Fail)
	heal()
	cfg.URLs = append(cfg.URLs, f.URL+"/elsewhere")
	want("one wrong", cfg, probe.OK, probe.OK, probe.OK, probe.Warn)
	cfg.TLS.CAFile = ""
	want("untrusted", cfg, probe.Fail, probe.Fail)
	if len(f.docs) != 0 {
		t.Error("something was written")
	}
}

// FuzzBulk: two lines of JSON, with the document in one of three places and nothing of
// it lost.
func FuzzBulk(f *testing.F) {
	f.Add("a.b", "src", `{"a": "b","event":1}`, int64(1_767_599_094_120_000_000))
	f.Add("\x00\"", "\xff", "{\n\"a\":\n[1,\r\n\"x\"]}", int64(-1))
	f.Add("", "", `"`+strings.Repeat("long ", 3000)+`"`, int64(0))
	sinks := map[DocumentForm]Sink{}
	for _, form := range []DocumentForm{DocumentString, DocumentObject, DocumentRoot} {
		cfg := defaultOpenSearch()
		cfg.URLs, cfg.Document, cfg.Index = []string{"https://opensearch.example.com"}, form, "a-{type}-{yyyy}"
		opened, err := openOpenSearch(context.Background(), cfg, Deps{})
		if err != nil {
			f.Fatal(err)
		}
		sinks[form] = opened
	}
	f.Fuzz(func(t *testing.T, typ, source, doc string, at int64) {
		if !json.Valid([]byte(doc)) {
			return
		}
		doc = strings.ToValidUTF8(doc, "?")
		for form, s := range sinks {
			out := s.Append(nil, &Event{Type: typ, Source: source, Time: at, Doc: []byte(doc)})
			if bytes.Count(out, []byte("\n")) != 2 || out[len(out)-1] != '\n' {
				t.Fatalf("%q is not two lines", out)
			}
			action, line, _ := bytes.Cut(out, []byte("\n"))
			var got bulkSource
			if !json.Valid(action) {
				t.Fatalf("%q", action)
			}
			if form != DocumentRoot {
				if err := json.Unmarshal(line, &got); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
			} else if !json.Valid(line) {
				t.Fatalf("%q", line)
			}
			object := strings.HasPrefix(strings.TrimLeft(doc, " \t\r\n"), "{")
			switch {
			case got.Message != nil && strings.Trim(doc, " \t\r\n") != *got.Message:
				t.Fatalf("message %q of %q", *got.Message, doc)
			case got.Message == nil && form == DocumentString, got.Message == nil && !object && form == DocumentObject:
				t.Fatalf("no message in %q", line)
			case form == DocumentObject && object:
				var want, have bytes.Buffer
				if json.Compact(&want, []byte(doc)) != nil || json.Compact(&have, got.Penstock.Document) != nil || want.String() != have.String() {
					t.Fatalf("document %q of %q", got.Penstock.Document, doc)
				}
			}
		}
	})
}

// FuzzBulkAnswer: whatever a cluster says, an event is only done when its own item, or
// errors, says so.
func FuzzBulkAnswer(f *testing.F) {
	f.Add(`{"errors":false}`)
	f.Add(`{"errors":true,"items":[{"create":{"status":201}},{"create":{"status":400,"error":{"type":"mapper_parsing_exception","reason":"x"}}},{"create":{"status":429}}]}`)
	f.Add(`{"items":[{"create":{"status":409}`)
	f.Add(`{"errors":true,"items":[{"index":{"error":"text","status":500}},[],{}]}`)
	f.Fuzz(func(t *testing.T, body string) {
		s := &openSearch{httpClient: &httpClient{name: "fuzz"}}
		r := call{method: "POST", url: mustURL("https://opensearch.example.com/_bulk")}
		res := s.items(r, answer{status: 200, header: http.Header{}, body: []byte(body)}, 3)
		if (res.Verdict == Done) != (res.Err == nil) {
			t.Fatalf("%v with %v", res.Verdict, res.Err)
		}
		done := 0
		verdicts := []Verdict{res.Verdict, res.Verdict, res.Verdict}
		for i, x := range res.Items {
			if x.Index < 0 || x.Index > 2 || i > 0 && x.Index <= res.Items[i-1].Index || (x.Verdict == Reject) != (x.Err != nil) {
				t.Fatalf("%+v", res.Items)
			}
			verdicts[x.Index] = x.Verdict
		}
		for _, v := range verdicts {
			if v == Done {
				done++
			}
		}
		if says := strings.Count(body, "2") + strings.Count(body, "409"); done > says && !strings.Contains(body, "false") {
			t.Fatalf("%q: %d events are done", body, done)
		}
	})
}

func BenchmarkOpenSearch(b *testing.B) {
	for _, form := range []DocumentForm{DocumentString, DocumentObject} {
		for _, zip := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/gzip=%v", form, zip), func(b *testing.B) {
				srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					_, _ = io.WriteString(w, `{"errors":false,"items":[`+strings.Repeat(`{"create":{"status":201}},`, 699)+`{"create":{"status":201}}]}`)
				}))
				defer srv.Close()
				cfg := defaultOpenSearch()
				cfg.URLs, cfg.Document, cfg.Gzip = []string{srv.URL}, form, zip
				opened, err := openOpenSearch(context.Background(), cfg, Deps{Destination: "bench"})
				if err != nil {
					b.Fatal(err)
				}
				defer opened.Close()
				benchmarkBatches(b, opened)
			})
		}
	}
}

func mustURL(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

// lapsing are credentials that can be had once.
type lapsing struct{ asked atomic.Int32 }

func (l *lapsing) Retrieve(context.Context) (aws.Credentials, error) {
	if l.asked.Add(1) > 1 {
		return aws.Credentials{}, errors.New("the role cannot be assumed any more")
	}
	return aws.Credentials{AccessKeyID: "AKIAEXAMPLE", SecretAccessKey: "aws-s3cr3t"}, nil
}

// Credentials that lapse while a request is made are an answer and not a hanging sink.
func TestOpenSearchAWSCredentialsLapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := defaultOpenSearch()
		cfg.URLs = []string{"http://opensearch.example.com:9200"}
		s := openBulk(t, cfg)
		s.creds = &lapsing{}
		s.transport = &signing{roundTripper: s.transport, creds: s.creds, signer: v4.NewSigner(), service: string(AWSOpenSearch), region: "eu-west-1"}
		got := make(chan Result, 1)
		go func() { got <- s.Deliver(t.Context(), batchOf(s, 0, plain(0, 3)...)) }()
		if res := <-got; res.Verdict != Retry {
			t.Errorf("%v: %v", res.Verdict, res.Err)
		}
	})
}
