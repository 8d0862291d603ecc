package sinks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
	"github.com/penstock/penstock/services/internal/probe"
)

func init() { harnesses["splunk_hec"] = splunkHECWorld }

const hecToken = "0b5e8a3c-hec-t0ken"

// hecSent is an event as a collector reads it.
type hecSent struct {
	Time       json.Number
	Host       string
	Source     string
	Sourcetype string
	Index      *string
	Fields     map[string]string
	Event      json.RawMessage
}

// hecIndexer is one indexer with a collector: what it was given, and which requests it
// will acknowledge, by channel. It forgets an acknowledgement once it has said so.
type hecIndexer struct {
	events []hecSent
	lines  []string
	acks   map[string]map[uint64]bool
	next   map[string]uint64
	polls  int
}

// hecFarSide is a collector over TLS, with one or more indexers behind a load balancer.
type hecFarSide struct {
	*httptest.Server
	mu       sync.Mutex
	indexers []*hecIndexer
	turn     int
	// sticky: the balancer sets a cookie.
	sticky bool
	// acks: the token has acknowledgements enabled.
	acks bool
	// late is how often a question is answered with false first; below 0 for ever.
	late int
	// indexes that there are; nil for any. fromZero numbers the events with another one
	// from 0.
	indexes  []string
	fromZero bool
	// bad tells which events are refused, nil none.
	bad      func(hecSent) bool
	requests int // with events
	sizes    []int
	queries  []string
	headers  []http.Header
	// trouble answers in place of the collector when set.
	trouble func(w http.ResponseWriter, r *http.Request)
}

func newHECFarSide(tb testing.TB, indexers int) *hecFarSide {
	tb.Helper()
	f := &hecFarSide{}
	for range indexers {
		f.indexers = append(f.indexers, &hecIndexer{acks: map[string]map[uint64]bool{}, next: map[string]uint64{}})
	}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.StartTLS()
	return f
}

func hecSay(w http.ResponseWriter, status, code int, more string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"text":%q,"code":%d%s}`, hecText[code]+" "+secretPayload, code, more)
}

func plainBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Header.Get("Content-Encoding") != "gzip" {
		return body, err
	}
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func (f *hecFarSide) serve(w http.ResponseWriter, r *http.Request) {
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
	f.headers = append(f.headers, r.Header)
	switch r.Header.Get("Authorization") {
	case "Splunk " + hecToken:
	case "":
		hecSay(w, http.StatusUnauthorized, hecTokenRequired, "")
		return
	default:
		hecSay(w, http.StatusForbidden, hecTokenInvalid, "")
		return
	}
	indexer := f.route(w, r)
	channel := r.Header.Get("X-Splunk-Request-Channel")
	switch {
	case f.acks && channel == "":
		hecSay(w, http.StatusBadRequest, hecNoChannel, "")
	case r.URL.Path == "/services/collector/ack":
		f.ack(w, indexer, channel, body)
	case len(body) == 0:
		hecSay(w, http.StatusBadRequest, hecNoData, "")
	case r.URL.Path == "/services/collector/raw":
		f.requests++
		f.queries = append(f.queries, r.URL.RawQuery)
		indexer.lines = append(indexer.lines, strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")...)
		f.accept(w, indexer, channel)
	case r.URL.Path == "/services/collector/event":
		f.requests++
		f.sizes = append(f.sizes, len(body))
		if f.take(w, indexer, body) {
			f.accept(w, indexer, channel)
		}
	default:
		http.NotFound(w, r)
	}
}

// route chooses an indexer: that of the cookie, or the next.
func (f *hecFarSide) route(w http.ResponseWriter, r *http.Request) *hecIndexer {
	if c, err := r.Cookie("AWSALB"); err == nil && f.sticky {
		var i int
		_, _ = fmt.Sscan(c.Value, &i)
		return f.indexers[i]
	}
	i := f.turn % len(f.indexers)
	f.turn++
	if f.sticky {
		http.SetCookie(w, &http.Cookie{Name: "AWSALB", Value: fmt.Sprint(i), Path: "/"})
	}
	return f.indexers[i]
}

// take stores events up to the first bad one, as Splunk does.
func (f *hecFarSide) take(w http.ResponseWriter, indexer *hecIndexer, body []byte) bool {
	d := json.NewDecoder(bytes.NewReader(body))
	for n := 0; ; n++ {
		var e hecSent
		if err := d.Decode(&e); err == io.EOF {
			return true
		} else if err != nil || f.bad != nil && f.bad(e) {
			hecSay(w, http.StatusBadRequest, hecDataFormat, fmt.Sprintf(`,"invalid-event-number":%d`, n))
			return false
		}
		if len(e.Event) == 0 || string(e.Event) == "null" {
			hecSay(w, http.StatusBadRequest, hecEventRequired, fmt.Sprintf(`,"invalid-event-number":%d`, n))
			return false
		}
		if string(e.Event) == `""` {
			hecSay(w, http.StatusBadRequest, hecEventBlank, fmt.Sprintf(`,"invalid-event-number":%d`, n))
			return false
		}
		if e.Index != nil && f.indexes != nil && !slices.Contains(f.indexes, *e.Index) {
			number := n + 1
			if f.fromZero {
				number = n
			}
			hecSay(w, http.StatusBadRequest, hecIncorrectIndex, fmt.Sprintf(`,"invalid-event-number":%d`, number))
			return false
		}
		indexer.events = append(indexer.events, e)
	}
}

func (f *hecFarSide) accept(w http.ResponseWriter, indexer *hecIndexer, channel string) {
	if !f.acks {
		hecSay(w, http.StatusOK, 0, "")
		return
	}
	id := indexer.next[channel]
	indexer.next[channel]++
	if indexer.acks[channel] == nil {
		indexer.acks[channel] = map[uint64]bool{}
	}
	indexer.acks[channel][id] = true
	hecSay(w, http.StatusOK, 0, fmt.Sprintf(`,"ackId":%d`, id))
}

func (f *hecFarSide) ack(w http.ResponseWriter, indexer *hecIndexer, channel string, body []byte) {
	if !f.acks {
		hecSay(w, http.StatusBadRequest, hecAckDisabled, "")
		return
	}
	var asked struct{ Acks []uint64 }
	if json.Unmarshal(body, &asked) != nil {
		hecSay(w, http.StatusBadRequest, hecDataFormat, "")
		return
	}
	indexer.polls++
	acks := map[string]bool{}
	for _, id := range asked.Acks {
		acks[fmt.Sprint(id)] = false
		if f.late == 0 && indexer.acks[channel][id] {
			acks[fmt.Sprint(id)] = true
			delete(indexer.acks[channel], id)
		}
	}
	if f.late > 0 {
		f.late--
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"acks": acks})
}

func (f *hecFarSide) when(trouble func(w http.ResponseWriter, r *http.Request)) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.trouble = trouble
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.trouble = nil
	}
}

// change changes the far side between requests.
func (f *hecFarSide) change(how func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	how()
}

func (f *hecFarSide) events() []hecSent {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []hecSent
	for _, i := range f.indexers {
		all = append(all, i.events...)
	}
	return all
}

// envelopes are the events in the form that the conformance suite reads.
func (f *hecFarSide) envelopes() []string {
	var lines []string
	for _, e := range f.events() {
		seconds, _ := time.ParseDuration(e.Time.String() + "s")
		lines = append(lines, fmt.Sprintf(`{"id":%q,"type":%q,"time":%q,"source":%q,"account":%q,"region":%q,"event":%s}`,
			e.Fields["penstock_id"], e.Fields["penstock_type"], time.Unix(0, 0).Add(seconds).UTC().Format(time.RFC3339Nano), e.Source,
			e.Fields["penstock_account"], e.Fields["penstock_region"], e.Event))
	}
	return lines
}

// ids are the numbers of events by how often they are there.
func (f *hecFarSide) numbers() map[int]int {
	out := map[int]int{}
	for _, e := range f.events() {
		var doc struct{ N int }
		_ = json.Unmarshal(e.Event, &doc)
		out[doc.N]++
	}
	return out
}

func (f *hecFarSide) config(t *testing.T) SplunkHECConfig {
	t.Helper()
	cfg := defaultSplunkHEC()
	cfg.URL, cfg.Token = f.URL, config.NewSecret(hecToken)
	cfg.TLS.CAFile = trustIn(t, f.Server)
	cfg.Timeout = 2 * time.Second
	return cfg
}

// trustIn writes the certificate of a server where ca_file finds it.
func trustIn(t *testing.T, s *httptest.Server) string {
	t.Helper()
	return (&farSide{Server: s}).trust(t)
}

func openHEC(t *testing.T, cfg SplunkHECConfig, deps Deps) *splunkHEC {
	t.Helper()
	deps.Destination = t.Name()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	opened, err := openSplunkHEC(t.Context(), cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	s := opened.(*splunkHEC)
	s.pollMin, s.pollMax = time.Millisecond, 4*time.Millisecond
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func splunkHECWorld(t *testing.T) *world {
	f := newHECFarSide(t, 1)
	f.acks, f.late = true, 1
	cfg := f.config(t)
	s := openHEC(t, cfg, Deps{})
	// Every answer tries to give secrets away.
	status := func(code int) func() func() {
		return func() func() {
			return f.when(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Retry-After", "7")
				w.WriteHeader(code)
				_, _ = fmt.Fprintf(w, "no: %s", r.Header.Get("Authorization"))
			})
		}
	}
	return &world{
		sink:     s,
		received: f.envelopes,
		secrets:  []string{hecToken},
		outage:   status(http.StatusInternalServerError),
		throttle: status(http.StatusServiceUnavailable),
		denial: func() func() {
			return f.when(func(w http.ResponseWriter, _ *http.Request) { hecSay(w, http.StatusForbidden, hecTokenDisabled, "") })
		},
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
			f.bad = func(e hecSent) bool { return third(fmt.Sprintf(`{"event":%s}`, e.Event)) }
			return func() { f.bad = nil }
		},
		untrusted: func() (Sink, func() bool) {
			cfg := cfg
			cfg.TLS.CAFile = ""
			return openHEC(t, cfg, Deps{}), func() bool { return len(f.events()) > 0 }
		},
		done: f.Close,
	}
}

// TestHECForms pins what events look like.
//
// covers: F-25, LIM-26
func TestHECForms(t *testing.T) {
	events := []*Event{
		event(1, `{"eventName":"ListBuckets"}`),
		{ID: messages.NewID([]byte("x")), Doc: []byte("[1,\n2]")},
		{
			ID: messages.NewID([]byte("y")), Type: "quo\"te", Source: "back\\slash", Format: "cloudtrail", Account: "line\nbreak", Region: "\xff",
			Time: 1_767_599_094_999_999_999, Doc: []byte(`{"ä":"<>&"}`),
		},
		{ID: messages.NewID([]byte("z")), Format: "vpcflow", Type: "cloud.aws.vpc.ACCEPT", Time: -1, Doc: []byte(`"text"`)},
	}
	for name, change := range map[string]func(*SplunkHECConfig){
		"default": func(c *SplunkHECConfig) { c.Host = "penstock-1" },
		"templates": func(c *SplunkHECConfig) {
			c.Host, c.Index, c.Source, c.Sourcetype = "{account}", "aws_{type}", `s3:"{source}"`, "{format}:{region}"
		},
		"bare": func(c *SplunkHECConfig) { c.Host, c.Source, c.Sourcetype = "", "", "" },
		"raw": func(c *SplunkHECConfig) {
			c.Endpoint, c.Source, c.Sourcetype = HECRaw, "penstock", "_json"
		},
	} {
		cfg := defaultSplunkHEC()
		cfg.URL, cfg.Token = "https://splunk.example.com:8088", config.NewSecret("x")
		change(&cfg)
		s := openHEC(t, cfg, Deps{})
		var out []byte
		for _, e := range events {
			out = s.Append(out, e)
		}
		golden.Check(t, "testdata/splunk_hec/"+name+".json", out)
	}
}

func TestHECSeconds(t *testing.T) {
	for ns, want := range map[int64]string{
		1_767_599_094_000_000_000: "1767599094.000", 1_767_599_094_120_000_001: "1767599094.120", 1_767_599_094_999_999_999: "1767599094.999",
		1: "0.000", 1_000_000: "0.001", -1: "-0.001", -1_000_000_000: "-1.000", 9_223_372_036_854_775_807: "9223372036.854",
		-9_223_372_036_854_775_808: "-9223372036.855",
	} {
		if got := string(appendSeconds(nil, ns)); got != want {
			t.Errorf("%d: %s, want %s", ns, got, want)
		}
	}
}

func TestHECStatus(t *testing.T) {
	// covers: F-25
	tests := []struct {
		status  int
		body    string
		verdict Verdict
		code    string
	}{
		{200, `{"text":"Success","code":0}`, Done, ""},
		{200, `<html>welcome</html>`, Stop, "deliver.splunk_hec_not_hec"},
		{200, `{"text":"HEC is healthy","code":17}`, Stop, "deliver.splunk_hec_not_hec"},
		{200, `{}`, Stop, "deliver.splunk_hec_not_hec"},
		{204, ``, Stop, "deliver.splunk_hec_not_hec"},
		{302, ``, Stop, "deliver.http_wrong_request"},
		{403, `{"text":"Token disabled","code":1}`, Stop, "deliver.splunk_hec_denied"},
		{401, `{"text":"Token is required","code":2}`, Stop, "deliver.splunk_hec_denied"},
		{401, `{"text":"Invalid authorization","code":3}`, Stop, "deliver.splunk_hec_denied"},
		{403, `{"text":"Invalid token","code":4}`, Stop, "deliver.splunk_hec_denied"},
		{403, `Forbidden`, Stop, "deliver.http_denied"},
		{400, `{"text":"No data","code":5}`, Stop, "deliver.splunk_hec_not_hec"},
		{400, `{"text":"Invalid data format","code":6}`, Split, "deliver.splunk_hec_rejected"},
		{400, `{"text":"Invalid data format","code":6,"invalid-event-number":99}`, Split, "deliver.splunk_hec_rejected"},
		{400, `{"text":"Invalid data format","code":6,"invalid-event-number":-1}`, Split, "deliver.splunk_hec_rejected"},
		{400, `{"text":"Incorrect index","code":7,"invalid-event-number":1}`, Stop, "deliver.splunk_hec_index"},
		{500, `{"text":"Internal server error","code":8}`, Retry, "deliver.http_busy"},
		{503, `{"text":"Server is busy","code":9}`, Retry, "deliver.http_busy"},
		{400, `{"text":"Data channel is missing","code":10}`, Stop, "deliver.splunk_hec_channel"},
		{400, `{"text":"Invalid data channel","code":11}`, Stop, "deliver.splunk_hec_channel"},
		{400, `{"text":"ACK is disabled","code":14}`, Stop, "deliver.splunk_hec_no_acks"},
		{503, `{"text":"HEC is unhealthy, queues are full","code":18}`, Retry, "deliver.http_busy"},
		{503, `{"text":"Server is shutting down","code":23}`, Retry, "deliver.http_busy"},
		{429, `{"text":"Queue is at capacity","code":26}`, Retry, "deliver.http_busy"},
		{400, `{"text":"something new","code":77}`, Split, "deliver.http_rejected"},
		{400, `bad`, Split, "deliver.http_rejected"},
		{404, `The requested URL was not found on this server.`, Stop, "deliver.http_wrong_request"},
		{413, `{"text":"Content length too large","code":27}`, TooLarge, "deliver.http_too_large"},
	}
	f := newHECFarSide(t, 1)
	defer f.Close()
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.status, tt.body), func(t *testing.T) {
			s := openHEC(t, f.config(t), Deps{})
			defer f.when(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			})()
			res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 3)...))
			if res.Verdict != tt.verdict || len(res.Items) != 0 {
				t.Errorf("%v %v, want %v: %v", res.Verdict, res.Items, tt.verdict, res.Err)
			}
			if tt.code != "" && fault.CodeOf(res.Err) != tt.code {
				t.Errorf("code %s, want %s", fault.CodeOf(res.Err), tt.code)
			}
		})
	}
}

// A batch with bad events: those before one are there once and are not sent again, the
// bad ones are refused one by one, the rest follows in the same call.
//
// covers: F-25, peers pain 20 and section 6 "Splunk HEC"
func TestHECRefusesSingleEvents(t *testing.T) {
	for _, tt := range []struct {
		name     string
		bad      []int
		n        int
		requests int
	}{
		{"none", nil, 10, 1},
		{"one in the middle", []int{4}, 10, 3},
		{"the first", []int{0}, 10, 3},
		{"the last", []int{9}, 10, 1},
		{"two side by side", []int{4, 5}, 10, 5},
		{"the only one", []int{0}, 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newHECFarSide(t, 1)
			defer f.Close()
			f.bad = func(e hecSent) bool {
				var doc struct{ N int }
				_ = json.Unmarshal(e.Event, &doc)
				return slices.Contains(tt.bad, doc.N)
			}
			cfg := f.config(t)
			cfg.Ack = HECAckOff
			s := openHEC(t, cfg, Deps{})
			res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, tt.n)...))
			if res.Verdict != Done || len(res.Items) != len(tt.bad) {
				t.Fatalf("%+v", res)
			}
			for i, x := range res.Items {
				if x.Index != tt.bad[i] || x.Verdict != Reject || fault.CodeOf(x.Err) != "deliver.splunk_hec_rejected" || strings.Contains(x.Err.Error(), secretPayload) {
					t.Errorf("%+v", x)
				}
			}
			got := f.numbers()
			for i := range tt.n {
				want := 1
				if slices.Contains(tt.bad, i) {
					want = 0
				}
				if got[i] != want {
					t.Errorf("event %d is there %d times, want %d", i, got[i], want)
				}
			}
			if f.requests != tt.requests {
				t.Errorf("%d requests, want %d", f.requests, tt.requests)
			}
		})
	}
}

// A batch of bad events only goes over the wire about log n times, not n times.
func TestHECRefusesAll(t *testing.T) {
	f := newHECFarSide(t, 1)
	defer f.Close()
	f.bad = func(hecSent) bool { return true }
	cfg := f.config(t)
	cfg.Ack = HECAckOff
	s := openHEC(t, cfg, Deps{})
	b := batchOf(s, 0, plain(0, 512)...)
	if res := s.Deliver(t.Context(), b); res.Verdict != Done || len(res.Items) != 512 {
		t.Fatalf("%v with %d exceptions: %v", res.Verdict, len(res.Items), res.Err)
	}
	sum := 0
	for _, n := range f.sizes {
		sum += n
	}
	if times := sum / len(b.Bytes()); times > 10 {
		t.Errorf("the batch went over the wire %d times", times)
	}
}

// With acknowledgements a refusal comes without a number to ask for, so what stands
// before the bad event is sent again: more than once, but never unacknowledged.
func TestHECRefusesWithAcks(t *testing.T) {
	f := newHECFarSide(t, 1)
	defer f.Close()
	f.acks = true
	f.bad = func(e hecSent) bool { return third(fmt.Sprintf(`{"event":%s}`, e.Event)) }
	s := openHEC(t, f.config(t), Deps{})
	res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 20)...))
	if res.Verdict != Done || len(res.Items) != 7 {
		t.Fatalf("%+v", res)
	}
	got := f.numbers()
	for i := range 20 {
		if there := got[i] > 0; there == (i%3 == 0) {
			t.Errorf("event %d is there %d times", i, got[i])
		}
	}
	for _, i := range f.indexers {
		for _, open := range i.acks {
			if len(open) > 0 {
				t.Errorf("%d requests were never asked for", len(open))
			}
		}
	}
}

func TestHECStopsInTheMiddle(t *testing.T) {
	f := newHECFarSide(t, 1)
	defer f.Close()
	cfg := f.config(t)
	cfg.Ack = HECAckOff
	s := openHEC(t, cfg, Deps{})
	calls := 0
	defer f.when(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if calls++; calls == 1 {
			hecSay(w, http.StatusBadRequest, hecDataFormat, `,"invalid-event-number":2`)
			return
		}
		w.Header().Set("Retry-After", "3")
		hecSay(w, http.StatusServiceUnavailable, hecBusy, `,"invalid-event-number":2`)
	})()
	res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 9)...))
	var got []string
	for _, x := range res.Items {
		got = append(got, fmt.Sprintf("%d %v", x.Index, x.Verdict))
	}
	// 0 and 1 were taken before the bad one; 3 and perhaps 4 before the server was busy.
	if want := []string{"0 done", "1 done", "2 reject", "3 done"}; res.Verdict != Retry || res.After != 3*time.Second || !slices.Equal(got, want) {
		t.Errorf("%v after %v with %v, want %v", res.Verdict, res.After, got, want)
	}
}

func TestHECIndex(t *testing.T) {
	for _, fromZero := range []bool{false, true} {
		for _, acks := range []bool{false, true} {
			t.Run(fmt.Sprint("fromZero=", fromZero, ",acks=", acks), func(t *testing.T) {
				f := newHECFarSide(t, 1)
				defer f.Close()
				f.indexes, f.fromZero, f.acks = []string{"aws_0", "aws_1", "aws_2"}, fromZero, acks
				cfg := f.config(t)
				cfg.Index = "aws_{region}"
				s := openHEC(t, cfg, Deps{})
				var data []byte
				var items []Item
				for i, region := range []string{"0", "1", "9", "2", "8", "7", "0"} {
					e := event(i, plain(i, 1)[0])
					e.Region = region
					start := len(data)
					data = s.Append(data, e)
					items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
				}
				res := s.Deliver(t.Context(), NewBatch(data, items))
				var refused []int
				for _, x := range res.Items {
					if x.Verdict == Reject && fault.CodeOf(x.Err) == "deliver.splunk_hec_index_of_event" {
						refused = append(refused, x.Index)
					}
				}
				if res.Verdict != Done || !slices.Equal(refused, []int{2, 4, 5}) {
					t.Fatalf("%v, refused %v: %+v", res.Verdict, refused, res)
				}
				got := f.numbers()
				for i := range 7 {
					if there := got[i] > 0; there == slices.Contains(refused, i) {
						t.Errorf("event %d is there %d times", i, got[i])
					}
				}
			})
		}
	}
}

// An acknowledgement that does not come is not known to be a loss nor a success: the
// same events are sent again with the same ids.
//
// covers: F-25, peers pain 19
func TestHECAckThatDoesNotCome(t *testing.T) {
	f := newHECFarSide(t, 1)
	defer f.Close()
	f.acks, f.late = true, -1
	s := openHEC(t, f.config(t), Deps{})
	s.cfg.AckTimeout = 30 * time.Millisecond
	b := batchOf(s, 0, plain(0, 3)...)
	before := valueOf(t, hecUnacknowledged.WithLabelValues(s.name))
	res := s.Deliver(t.Context(), b)
	if res.Verdict != Retry || fault.CodeOf(res.Err) != "deliver.splunk_hec_unacknowledged" {
		t.Fatalf("%v: %v", res.Verdict, res.Err)
	}
	if n := valueOf(t, hecUnacknowledged.WithLabelValues(s.name)) - before; n != 1 {
		t.Errorf("%v requests counted", n)
	}
	f.change(func() { f.late = 0 })
	s.cfg.AckTimeout = time.Minute
	mustDeliver(t, s, b)
	ids := map[string]int{}
	for _, e := range f.events() {
		ids[e.Fields["penstock_id"]]++
	}
	if len(ids) != 3 || ids[b.ID(0).String()] != 2 {
		t.Errorf("ids %v", ids)
	}
	// The numbers of a channel on which something was left open are not used again.
	channels := map[string]bool{}
	for _, h := range f.headers {
		channels[h.Get("X-Splunk-Request-Channel")] = true
	}
	if len(channels) != 2 {
		t.Errorf("channels %v", channels)
	}
}

func TestHECAckOutage(t *testing.T) {
	// What fails while waiting is asked again; the events are not sent again.
	f := newHECFarSide(t, 1)
	defer f.Close()
	f.acks = true
	s := openHEC(t, f.config(t), Deps{})
	polls := 0
	f.when(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/ack") {
			f.when(nil)
			f.serve(w, r)
			f.when(func(w http.ResponseWriter, r *http.Request) {
				switch polls++; polls {
				case 1:
					w.WriteHeader(http.StatusBadGateway)
				case 2:
					hecSay(w, http.StatusBadRequest, hecBadChannel, "")
				case 3:
					panic(http.ErrAbortHandler)
				default:
					f.when(nil)
					f.serve(w, r)
				}
			})
		}
	})
	mustDeliver(t, s, batchOf(s, 0, plain(0, 3)...))
	if f.requests != 1 || polls < 4 {
		t.Errorf("%d requests, %d questions", f.requests, polls)
	}
}

// covers: peers section 6 "Splunk HEC": never silently "200 = delivered"
func TestHECAckOn(t *testing.T) {
	f := newHECFarSide(t, 1)
	defer f.Close()
	cfg := f.config(t)
	cfg.Ack = HECAckOn
	s := openHEC(t, cfg, Deps{})
	b := batchOf(s, 0, plain(0, 3)...)
	for range 3 {
		if res := s.Deliver(t.Context(), b); res.Verdict != Stop || fault.CodeOf(res.Err) != "deliver.splunk_hec_no_acks" {
			t.Fatalf("%v: %v", res.Verdict, res.Err)
		}
	}
	if f.requests != 0 {
		t.Errorf("%d requests with events that nobody would acknowledge", f.requests)
	}
	f.change(func() { f.acks = true })
	mustDeliver(t, s, b)
	// Somebody switches acknowledgements off.
	f.change(func() { f.acks = false })
	for range 3 {
		if res := s.Deliver(t.Context(), b); res.Verdict != Stop || fault.CodeOf(res.Err) != "deliver.splunk_hec_no_acks" {
			t.Fatalf("%v: %v", res.Verdict, res.Err)
		}
	}
	if f.requests != 2 {
		t.Errorf("%d requests with events, want the one acknowledged and the one that showed the change", f.requests)
	}
}

func TestHECAckAuto(t *testing.T) {
	f := newHECFarSide(t, 1)
	defer f.Close()
	var out bytes.Buffer
	s := openHEC(t, f.config(t), Deps{Log: slog.New(slog.NewTextHandler(&out, nil))})
	mustDeliver(t, s, batchOf(s, 0, plain(0, 3)...))
	mustDeliver(t, s, batchOf(s, 3, plain(3, 3)...))
	if strings.Count(out.String(), "level=WARN") != 1 || valueOf(t, hecAcks.WithLabelValues(s.name)) != 0 {
		t.Errorf("log %q", out.String())
	}
	f.change(func() { f.acks = true })
	mustDeliver(t, s, batchOf(s, 6, plain(6, 3)...))
	if f.indexers[0].polls == 0 || valueOf(t, hecAcks.WithLabelValues(s.name)) != 1 {
		t.Error("does not notice that acknowledgements are offered now")
	}
	// Switched off between acceptance and question: not known, so sent again.
	f.when(func(w http.ResponseWriter, r *http.Request) {
		f.when(nil)
		f.serve(w, r)
		f.change(func() { f.acks = false })
	})
	if res := s.Deliver(t.Context(), batchOf(s, 9, plain(9, 1)...)); res.Verdict != Retry {
		t.Errorf("%v: %v", res.Verdict, res.Err)
	}
	mustDeliver(t, s, batchOf(s, 9, plain(9, 1)...))
	if strings.Count(out.String(), "level=WARN") != 2 {
		t.Errorf("log %q", out.String())
	}
}

// Indexers behind a balancer number requests each for itself. What one was given only
// that one is asked for: by the cookie, and without one at least nothing is taken for
// acknowledged that another has.
//
// covers: peers pain 19
func TestHECBalancer(t *testing.T) {
	for _, sticky := range []bool{true, false} {
		t.Run(fmt.Sprint("sticky=", sticky), func(t *testing.T) {
			f := newHECFarSide(t, 3)
			defer f.Close()
			f.acks, f.sticky = true, sticky
			s := openHEC(t, f.config(t), Deps{})
			var wg sync.WaitGroup
			for i := range 6 {
				wg.Go(func() {
					for j := range 5 {
						first := (i*5 + j) * 4
						if res := s.Deliver(t.Context(), batchOf(s, first, plain(first, 4)...)); res.Verdict != Done {
							t.Errorf("%v: %v", res.Verdict, res.Err)
						}
					}
				})
			}
			wg.Wait()
			if got := f.numbers(); len(got) != 120 {
				t.Errorf("%d events", len(got))
			}
			polls := 0
			for _, i := range f.indexers {
				polls += i.polls
				for channel, open := range i.acks {
					if len(open) > 0 {
						t.Errorf("channel %s has %d requests that nobody knows to be indexed", channel, len(open))
					}
				}
			}
			if sticky && polls != 30 {
				t.Errorf("%d questions for 30 requests", polls)
			}
		})
	}
}

// A batch in parts, which a balancer without cookies gives to several indexers: two of
// them may give the parts one number. An answer about it confirms neither.
func TestHECNumbersOfTwoIndexers(t *testing.T) {
	f := newHECFarSide(t, 2)
	defer f.Close()
	f.acks = true
	f.bad = func(e hecSent) bool { return string(e.Event) == `{"n":2}` }
	s := openHEC(t, f.config(t), Deps{})
	b := batchOf(s, 0, `{"n":0}`, `{"n":1}`, `{"n":2}`, `{"n":3}`, `{"n":4}`)
	res := s.Deliver(t.Context(), b)
	if res.Verdict != Retry || fault.CodeOf(res.Err) != "deliver.splunk_hec_unacknowledged" || len(res.Items) != 1 || res.Items[0].Index != 2 {
		t.Fatalf("%+v", res)
	}
	settle(t, s, b.data, b.items, 5, func(id messages.ID, v Verdict) {
		if (v == Reject) != (id == b.ID(2)) {
			t.Errorf("event %s: %v", id, v)
		}
	})
}

func TestHECCookiesAreBounded(t *testing.T) {
	var c hecChannel
	for i := range 100 {
		c.keep(http.Header{"Set-Cookie": {fmt.Sprintf("n%d=v; Path=/", i), "big=" + strings.Repeat("x", 5000), "same=" + fmt.Sprint(i)}})
	}
	if len(c.cookies) != hecCookies {
		t.Errorf("%d cookies", len(c.cookies))
	}
	for _, cookie := range c.cookies {
		if cookie.Name == "big" || cookie.Name == "same" && cookie.Value != "99" {
			t.Errorf("%+v", cookie)
		}
	}
}

func TestHECRaw(t *testing.T) {
	f := newHECFarSide(t, 1)
	defer f.Close()
	f.acks = true
	cfg := f.config(t)
	cfg.Endpoint, cfg.Source, cfg.Sourcetype, cfg.Index, cfg.Host = HECRaw, "penstock & co", "_json", "main", "{hostname}"
	s := openHEC(t, cfg, Deps{})
	mustDeliver(t, s, batchOf(s, 0, `{"n":0}`, "{\n\"n\": 1}"))
	hostname, _ := os.Hostname()
	if want := []string{`{"n":0}`, `{"n":1}`}; !slices.Equal(f.indexers[0].lines, want) {
		t.Errorf("lines %q", f.indexers[0].lines)
	}
	if want := "host=" + hostname + "&index=main&source=penstock+%26+co&sourcetype=_json"; f.queries[0] != want {
		t.Errorf("query %s, want %s", f.queries[0], want)
	}
}

func TestHECRequest(t *testing.T) {
	f := newHECFarSide(t, 1)
	defer f.Close()
	cfg := f.config(t)
	s := openHEC(t, cfg, Deps{})
	mustDeliver(t, s, batchOf(s, 0, plain(0, 3)...))
	h := f.headers[0]
	if h.Get("Content-Type") != "application/json" || h.Get("Content-Encoding") != "gzip" || len(h.Get("X-Splunk-Request-Channel")) != 36 {
		t.Errorf("header %v", h)
	}
	cfg.Ack, cfg.Gzip = HECAckOff, false
	s = openHEC(t, cfg, Deps{})
	mustDeliver(t, s, batchOf(s, 3, plain(3, 3)...))
	if h := f.headers[1]; h.Get("Content-Encoding") != "" || h.Get("X-Splunk-Request-Channel") != "" {
		t.Errorf("header %v", h)
	}
	f.change(func() { f.acks = true })
	if res := s.Deliver(t.Context(), batchOf(s, 6, plain(6, 3)...)); res.Verdict != Stop || !errors.Is(res.Err, errHECChannel) {
		t.Errorf("%v: %v", res.Verdict, res.Err)
	}
}

func TestHECConfig(t *testing.T) {
	tests := []struct {
		key    string
		change func(*SplunkHECConfig)
	}{
		{"url", func(c *SplunkHECConfig) { c.URL = "" }},
		{"url", func(c *SplunkHECConfig) { c.URL = "https://x:8088/services/collector/event" }},
		{"url", func(c *SplunkHECConfig) { c.URL = "https://x:8088/?channel=1" }},
		{"token", func(c *SplunkHECConfig) { c.Token = config.Secret{} }},
		{"token", func(c *SplunkHECConfig) { c.Token = config.NewSecret("Splunk abc") }},
		{"token", func(c *SplunkHECConfig) { c.Token = config.NewSecret("abc\n") }},
		{"ack_timeout", func(c *SplunkHECConfig) { c.AckTimeout = 0 }},
		{"index", func(c *SplunkHECConfig) { c.Index = "{type" }},
		{"index", func(c *SplunkHECConfig) { c.Index = "{sourcetype}" }},
		{"source", func(c *SplunkHECConfig) { c.Source = "{id}" }},
		{"sourcetype", func(c *SplunkHECConfig) { c.Sourcetype = "a\nb" }},
		{"host", func(c *SplunkHECConfig) { c.Host = strings.Repeat("x", 1000) }},
		{"source", func(c *SplunkHECConfig) { c.Endpoint, c.Sourcetype = HECRaw, "" }},
		{"sourcetype", func(c *SplunkHECConfig) { c.Endpoint, c.Source = HECRaw, "" }},
		{"batch.events", func(c *SplunkHECConfig) { c.Batch.Events = 0 }},
		{"headers.authorization", func(c *SplunkHECConfig) {
			c.Headers = map[string]config.Secret{"authorization": config.NewSecret("x")}
		}},
		{"timeout", func(c *SplunkHECConfig) { c.Timeout = 0 }},
		{"tls.key_file", func(c *SplunkHECConfig) { c.TLS.CertFile = "x" }},
	}
	for _, tt := range tests {
		cfg := defaultSplunkHEC()
		cfg.URL, cfg.Token = "https://splunk.example.com:8088", config.NewSecret("abc")
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), tt.key+": ") {
			t.Errorf("%s: got %v", tt.key, err)
		}
	}
}

func TestHECProbe(t *testing.T) {
	f := newHECFarSide(t, 1)
	defer f.Close()
	worst := func(cfg SplunkHECConfig) (probe.Level, []probe.Finding) {
		level := probe.OK
		all := cfg.Probe(t.Context())
		for _, x := range all {
			if x.Level == probe.Fail || x.Level == probe.Warn && level == probe.OK {
				level = x.Level
			}
			if strings.Contains(fmt.Sprint(x), hecToken) {
				t.Errorf("%v shows the token", x)
			}
		}
		return level, all
	}
	cfg := f.config(t)
	want := func(name string, cfg SplunkHECConfig, level probe.Level) {
		t.Helper()
		if got, all := worst(cfg); got != level || len(all) == 0 {
			t.Errorf("%s: %v, want %v: %v", name, got, level, all)
		}
	}
	want("no acks, auto", cfg, probe.Warn)
	cfg.Ack = HECAckOff
	want("no acks, off", cfg, probe.OK)
	cfg.Ack = HECAckOn
	want("no acks, on", cfg, probe.Fail)
	f.change(func() { f.acks = true })
	want("acks, on", cfg, probe.OK)
	wrong := cfg
	wrong.Token = config.NewSecret("another")
	want("wrong token", wrong, probe.Fail)
	wrong = cfg
	wrong.URL += "/elsewhere"
	want("wrong path", wrong, probe.Fail)
	wrong = cfg
	wrong.TLS.CAFile = ""
	want("untrusted", wrong, probe.Fail)
	if len(f.events()) != 0 {
		t.Error("an event was sent")
	}
}

// FuzzHEC: what is written is one object that a collector reads back, with nothing of
// the event in another place.
func FuzzHEC(f *testing.F) {
	f.Add("a.b", "src", "cloudtrail", "123456789012", `{"a": "b"}`, int64(1_767_599_094_120_000_000))
	f.Add("\x00\"", "\xff", "}{", `"`, "{\n\"a\":\n[1,\r\n\"x\"]}", int64(-1))
	f.Add("", "", "", "", `"`+strings.Repeat("long ", 3000)+`"`, int64(0))
	cfg := defaultSplunkHEC()
	cfg.URL, cfg.Token, cfg.Index = "https://splunk.example.com:8088", config.NewSecret("x"), "i_{type}"
	opened, err := openSplunkHEC(context.Background(), cfg, Deps{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, typ, source, format, account, doc string, at int64) {
		if !json.Valid([]byte(doc)) {
			return
		}
		doc = strings.ToValidUTF8(doc, "?")
		line := opened.Append(nil, &Event{Type: typ, Source: source, Format: format, Account: account, Time: at, Doc: []byte(doc)})
		if bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Fatalf("%q is not one line", line)
		}
		var got hecSent
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&got); err != nil || d.More() {
			t.Fatalf("%q: %v", line, err)
		}
		valid := func(s string) string { return strings.ToValidUTF8(s, "") }
		same := func(got, want string) bool {
			return strings.ReplaceAll(got, "\uFFFD", "") == strings.ReplaceAll(valid(want), "\uFFFD", "")
		}
		if !same(got.Source, source) || !same(got.Fields["penstock_type"], typ) || !same(got.Fields["penstock_account"], account) {
			t.Fatalf("%q", line)
		}
		for _, c := range *got.Index {
			if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789_-", c) {
				t.Fatalf("index %q", *got.Index)
			}
		}
		var want, have bytes.Buffer
		if json.Compact(&want, []byte(doc)) != nil || json.Compact(&have, got.Event) != nil || want.String() != have.String() {
			t.Fatalf("document %q of %q", got.Event, doc)
		}
	})
}

// FuzzHECAnswer: no answer, whatever it is, gets an event lost: without code 0 and 2xx
// nothing is Done that the far side has not numbered as taken.
func FuzzHECAnswer(f *testing.F) {
	f.Add(200, `{"text":"Success","code":0}`)
	f.Add(400, `{"text":"x","code":6,"invalid-event-number":2}`)
	f.Add(400, `{"text":"x","code":7,"invalid-event-number":18446744073709551615}`)
	f.Add(503, `{"code":9,"invalid-event-number":3}`)
	f.Add(200, `{"code":0,"ackId":-1}`)
	cfg := defaultSplunkHEC()
	cfg.URL, cfg.Token, cfg.Index = "https://splunk.example.com:8088", config.NewSecret("x"), "i_{type}"
	f.Fuzz(func(t *testing.T, status int, body string) {
		if status < 200 || status > 599 {
			return
		}
		opened, err := openSplunkHEC(t.Context(), cfg, Deps{})
		if err != nil {
			t.Fatal(err)
		}
		s := opened.(*splunkHEC)
		b := batchOf(s, 0, plain(0, 4)...)
		d := hecDelivery{s: s, b: b}
		s.acks.Store(hecAcksAbsent)
		res := d.judge(hecSpan{0, 4}, call{method: "POST", url: s.url}, answer{status: status, header: http.Header{}, body: []byte(body)})
		left := map[int]bool{}
		for _, p := range d.todo {
			for i := p.from; i < p.to; i++ {
				left[i] = true
			}
		}
		_, code := readHEC([]byte(body))
		if len(d.judged) == 0 && len(d.wait) == 0 && res.Verdict == Done && len(left) < 4 && !(status < 300 && code == 0) {
			t.Fatalf("status %d, %q: nothing says what became of %d events", status, body, 4-len(left))
		}
		if out := d.result(res); res.Verdict != Done && out.Err == nil {
			t.Fatalf("%v without an error", res.Verdict)
		}
	})
}

func BenchmarkSplunkHEC(b *testing.B) {
	for _, zip := range []bool{false, true} {
		b.Run(fmt.Sprintf("gzip=%v", zip), func(b *testing.B) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				_, _ = io.WriteString(w, `{"text":"Success","code":0}`)
			}))
			defer srv.Close()
			cfg := defaultSplunkHEC()
			cfg.URL, cfg.Token, cfg.Gzip = srv.URL, config.NewSecret("x"), zip
			opened, err := openSplunkHEC(context.Background(), cfg, Deps{Destination: "bench"})
			if err != nil {
				b.Fatal(err)
			}
			defer opened.Close()
			benchmarkBatches(b, opened)
		})
	}
}

// benchmarkBatches writes and delivers batches of about 1 MB.
func benchmarkBatches(b *testing.B, s Sink) {
	b.Helper()
	e := event(0, trailEvent)
	e.Format = "cloudtrail"
	const n = 700
	var data []byte
	items := make([]Item, 0, n)
	fill := func() Batch {
		data, items = data[:0], items[:0]
		for range n {
			start := len(data)
			data = s.Append(data, e)
			items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
		}
		return NewBatch(data, items)
	}
	b.SetBytes(int64(len(fill().Bytes())))
	b.ReportAllocs()
	calls := 0
	before := cpuSeconds()
	for b.Loop() {
		calls++
		if res := s.Deliver(b.Context(), fill()); res.Verdict != Done {
			b.Fatal(res.Err)
		}
	}
	events := float64(calls) * n
	b.ReportMetric(events/b.Elapsed().Seconds(), "events/s")
	if spent := cpuSeconds() - before; spent > 0 {
		b.ReportMetric(events/spent, "events/cpu-s")
	}
}

// valueOf reads a counter or a gauge.
func valueOf(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.GetCounter().GetValue() + out.GetGauge().GetValue()
}
