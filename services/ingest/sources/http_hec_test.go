package sources

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/topology"
)

// splunk is what a client of the HTTP Event Collector reads of an answer.
type splunk struct {
	Text   string  `json:"text"`
	Code   int     `json:"code"`
	Number *uint64 `json:"invalid-event-number"`
	AckID  *int64  `json:"ackId"`
}

func (a httpAnswer) splunk(t *testing.T) splunk {
	t.Helper()
	var s splunk
	if err := json.Unmarshal([]byte(a.body), &s); err != nil {
		t.Fatalf("%s: %v", a, err)
	}
	return s
}

// covers: F-25 (as an input), CEN-3: the answers that Splunk documents.
func TestHECAnswers(t *testing.T) {
	const good, two = `{"event":"a"}`, `{"event":"a"}{"event":{"b":1}}`
	basic := base64.StdEncoding.EncodeToString([]byte("splunk:" + tokenA))
	event := hecPath + "/event"
	tests := []struct {
		name, path, body string
		header           []string
		status, code     int
		text             string
		number           int // -1: none
		rows             []string
	}{
		{"one event", event, good, nil, 200, 0, "Success", -1, []string{good}},
		{"the short path", hecPath, good, nil, 200, 0, "Success", -1, []string{good}},
		{"the versioned path", event + "/1.0", good, nil, 200, 0, "Success", -1, []string{good}},
		{"several in a row", event, two, nil, 200, 0, "Success", -1, []string{`{"event":"a"}`, `{"event":{"b":1}}`}},
		{"several on lines", event, "{\"event\":1}\r\n\n{\"event\":[2]}\n", nil, 200, 0, "Success", -1, []string{`{"event":1}`, `{"event":[2]}`}},
		{"an array", event, `[{"event":1},{"event":2}]`, nil, 200, 0, "Success", -1, []string{`{"event":1}`, `{"event":2}`}},
		{
			"all fields", event, `{"time":1433188255.500,"host":"h","source":"s","sourcetype":"t","index":"i","event":"x","fields":{"a":"b","c":["d"],"e":1}}`, nil, 200, 0, "Success", -1,
			[]string{`{"time":1433188255.500,"host":"h","source":"s","sourcetype":"t","index":"i","event":"x","fields":{"a":"b","c":["d"],"e":1}}`},
		},
		{"gzip", event, zipped(t, good), []string{"Content-Encoding", "gzip"}, 200, 0, "Success", -1, []string{good}},
		{"token as a password", event, good, []string{"Authorization", "Basic " + basic}, 200, 0, "Success", -1, []string{good}},

		{"no token", event, good, []string{"Authorization", ""}, 401, 2, "Token is required", -1, nil},
		{"bearer", event, good, []string{"Authorization", "Bearer " + tokenA}, 401, 3, "Invalid authorization", -1, nil},
		{"bare token", event, good, []string{"Authorization", tokenA}, 401, 3, "Invalid authorization", -1, nil},
		{"wrong token", event, good, []string{"Authorization", "Splunk 00000000-0000-0000-0000-000000000000"}, 403, 4, "Invalid token", -1, nil},
		{"token in the query", event + "?token=" + tokenA, good, []string{"Authorization", ""}, 400, 16, "Query string authorization is not enabled", -1, nil},
		{"wrong token in the query", event + "?token=x", good, []string{"Authorization", ""}, 403, 4, "Invalid token", -1, nil},
		{"no data", event, "", nil, 400, 5, "No data", -1, nil},
		{"blank", event, " \r\n ", nil, 400, 5, "No data", -1, nil},
		{"no JSON", event, "hello", nil, 400, 6, "Invalid data format", 0, nil},
		{"text", event, `"hello"`, nil, 400, 6, "Invalid data format", 0, nil},
		{"no event", event, `{"host":"h"}`, nil, 400, 12, "Event field is required", 0, nil},
		{"null event", event, `{"event":null}`, nil, 400, 12, "Event field is required", 0, nil},
		{"blank event", event, `{"event":""}`, nil, 400, 13, "Event field cannot be blank", 0, nil},
		{"nested fields", event, `{"event":"x","fields":{"a":{"b":1}}}`, nil, 400, 15, "Error in handling indexed fields", 0, nil},
		{"fields in an array", event, `{"event":"x","fields":["a"]}`, nil, 400, 6, "Invalid data format", 0, nil},
		{"broken gzip", event, zipped(t, good)[:20], []string{"Content-Encoding", "gzip"}, 400, 6, "Invalid data format", -1, nil},
		{"too large", event, strings.Repeat(" ", 17<<20), nil, 413, 413, "Request Entity Too Large", -1, nil},
		{"another encoding", event, good, []string{"Content-Encoding", "br"}, 415, 415, "Unsupported Media Type", -1, nil},
		{"another path", hecPath + "/mint", good, nil, 404, 404, "The requested URL was not found on this server.", -1, nil},
		{"acknowledgements are off", hecPath + "/ack?channel=11111111-2222-3333-4444-555555555555", `{"acks":[0]}`, nil, 400, 14, "ACK is disabled", -1, nil},

		{"raw", hecPath + "/raw", "one\r\n\n \ntwo \"x\"\t\\", nil, 200, 0, "Success", -1, []string{`{"event":"one"}`, `{"event":"two \"x\"\t\\"}`}},
		{
			"raw with what the query says", hecPath + "/raw/1.0?host=h%22&source=s&sourcetype=t&index=i&time=12.5&channel=x", "one\n", nil, 200, 0, "Success", -1,
			[]string{`{"host":"h\"","source":"s","sourcetype":"t","index":"i","time":"12.5","event":"one"}`},
		},
		{"raw, not UTF-8", hecPath + "/raw", "a\xffb", nil, 200, 0, "Success", -1, []string{"{\"event\":\"a\uFFFDb\"}"}},
		{"raw, nothing", hecPath + "/raw", "\n \n", nil, 400, 5, "No data", -1, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := listenHTTP(t, nil)
			got := r.post(tt.path, tt.body, tt.header...)
			s := got.splunk(t)
			if got.status != tt.status || s.Code != tt.code || s.Text != tt.text || s.AckID != nil {
				t.Errorf("answer %s, want %d %d %s", got, tt.status, tt.code, tt.text)
			}
			if (s.Number != nil) != (tt.number >= 0) || s.Number != nil && *s.Number != uint64(tt.number) {
				t.Errorf("answer %s, want event %d", got, tt.number)
			}
			if rows := r.rows(); !slices.Equal(rows, tt.rows) {
				t.Errorf("stored %q", rows)
			}
			for _, f := range r.frames() {
				if f.format != formatHEC || f.origin.GetResource() != hecPath {
					t.Errorf("format %s, origin %v", f.format, f.origin)
				}
			}
			r.balance()
		})
	}
}

// A bad event among good ones: quarantined alone, or refused as Splunk does, with
// what comes before it stored.
func TestHECBadEvent(t *testing.T) {
	const body = `{"event":"a"}{"event":"b"}{"event":""}{"event":"d"}`
	t.Run("accept", func(t *testing.T) {
		r := listenHTTP(t, nil)
		got := r.post(hecPath, body)
		if got.status != 200 || got.splunk(t).Code != 0 || got.header.Get("Penstock-Quarantined") != "1" {
			t.Errorf("answer %s %v", got, got.header)
		}
		if rows := r.rows(); !slices.Equal(rows, []string{`{"event":"a"}`, `{"event":"b"}`, `{"event":"d"}`}) {
			t.Errorf("stored %q", rows)
		}
		q := r.bus.Quarantined()
		if len(q) != 1 || q[0].GetRecord() != 2 || string(q[0].GetPayload()) != `{"event":""}` || q[0].GetCode() != "ingest.hec_event_blank" || q[0].GetOffset() != 26 {
			t.Errorf("quarantined %v", q)
		}
		r.balance()
	})
	t.Run("refuse", func(t *testing.T) {
		r := listenHTTP(t, func(c *HTTPConfig, _ *Deps) { c.Endpoints[2].OnBad = BadRefuse })
		got := r.post(hecPath, body)
		if s := got.splunk(t); got.status != 400 || s.Code != 13 || s.Number == nil || *s.Number != 2 {
			t.Errorf("answer %s", got)
		}
		if rows := r.rows(); !slices.Equal(rows, []string{`{"event":"a"}`, `{"event":"b"}`}) || len(r.bus.Quarantined()) != 0 {
			t.Errorf("stored %q, quarantined %v", rows, r.bus.Quarantined())
		}
		r.balance()
		// A client that knows the protocol goes on behind the bad one.
		if got := r.post(hecPath, `{"event":"d"}`); got.status != 200 {
			t.Errorf("answer %s", got)
		}
		if got := r.post(hecPath, `{"nothing":1}{"event":"d"}`); got.status != 400 || *got.splunk(t).Number != 0 || len(r.rows()) != 3 {
			t.Errorf("answer %s", got)
		}
		r.balance()
	})
}

// covers: F-25 (indexer acknowledgement)
func TestHECAcks(t *testing.T) {
	const channel = "11111111-2222-3333-4444-5555555555aF"
	r := listenHTTP(t, func(c *HTTPConfig, _ *Deps) { c.Endpoints[2].Acknowledge = true })
	for _, tt := range []struct {
		path, channel string
		code          int
	}{
		{hecPath, "", 10},
		{hecPath, "abc", 11},
		{hecPath + "/raw", "", 10},
		{hecPath + "/ack", "", 10},
		{hecPath + "/ack", "zz111111-2222-3333-4444-555555555555", 11},
	} {
		if got := r.post(tt.path, `{"event":"a"}`, "X-Splunk-Request-Channel", tt.channel); got.status != 400 || got.splunk(t).Code != tt.code {
			t.Errorf("%s with channel %q: %s", tt.path, tt.channel, got)
		}
	}
	for want := range int64(3) {
		header := []string{"X-Splunk-Request-Channel", channel}
		path := hecPath
		if want == 2 {
			path, header = hecPath+"/raw?channel="+channel, nil
		}
		got := r.post(path, `{"event":"a"}`, header...)
		if s := got.splunk(t); got.status != 200 || s.AckID == nil || *s.AckID != want {
			t.Errorf("answer %s, want ackId %d", got, want)
		}
	}
	if got := r.post(hecPath+"/ack", `{"acks":[0,1,2]}`, "X-Splunk-Request-Channel", channel); got.body != `{"acks":{"0":true,"1":true,"2":true}}` || got.status != 200 {
		t.Errorf("answer %s", got)
	}
	for _, body := range []string{"", "{}", `{"acks":1}`, `{"acks":["a"]}`, `[0]`, `{"acks":[0]`, `{"acks":[0]} x`} {
		if got := r.post(hecPath+"/ack", body, "X-Splunk-Request-Channel", channel); got.status != 400 || got.splunk(t).Code != 6 {
			t.Errorf("%q: %s", body, got)
		}
	}
	if got := r.post(hecPath+"/ack", `{"acks":[0]}`, "X-Splunk-Request-Channel", channel, "Authorization", ""); got.status != 401 {
		t.Errorf("answer %s", got)
	}
	if got := r.send(http.MethodGet, hecPath+"/ack", ""); got.status != 405 {
		t.Errorf("answer %s", got)
	}
}

func TestHECHealth(t *testing.T) {
	r := listenHTTP(t, nil)
	for _, header := range [][]string{nil, {"Authorization", ""}} {
		got := r.send(http.MethodGet, hecPath+"/health/1.0", "", header...)
		if s := got.splunk(t); got.status != 200 || s.Code != 17 || s.Text != "HEC is healthy" {
			t.Errorf("answer %s", got)
		}
	}
	if got := r.send(http.MethodGet, hecPath+"/health", "", "Authorization", "Splunk x"); got.status != 400 || got.splunk(t).Code != 21 {
		t.Errorf("answer %s", got)
	}
	r.stopping.Store(true)
	if got := r.send(http.MethodGet, hecPath+"/health", ""); got.status != 503 || got.splunk(t).Code != 23 {
		t.Errorf("answer %s", got)
	}
	if got := r.post(hecPath, `{"event":"a"}`); got.status != 503 || got.splunk(t).Code != 23 || got.header.Get("Retry-After") == "" {
		t.Errorf("answer %s", got)
	}
}

func TestHECQueryToken(t *testing.T) {
	r := listenHTTP(t, func(c *HTTPConfig, _ *Deps) { c.Endpoints[2].QueryToken = true })
	if got := r.post(hecPath+"?token="+tokenA, `{"event":"a"}`, "Authorization", ""); got.status != 200 {
		t.Errorf("answer %s", got)
	}
	if got := r.post(hecPath+"?token=x", `{"event":"a"}`, "Authorization", ""); got.status != 403 {
		t.Errorf("answer %s", got)
	}
}

func TestHECRate(t *testing.T) {
	r := listenHTTP(t, func(c *HTTPConfig, _ *Deps) { c.RatePerCaller = HTTPRate{PerSecond: 0.01, Burst: 1} })
	if got := r.post(hecPath, `{"event":"a"}`); got.status != 200 {
		t.Errorf("answer %s", got)
	}
	if got := r.post(hecPath, `{"event":"a"}`); got.status != 429 || got.splunk(t).Code != 26 || got.header.Get("Retry-After") == "" {
		t.Errorf("answer %s", got)
	}
}

// factsSince are the facts behind the first so many, and behind the first messages.
func factsSince(t *testing.T, r *httpRig, facts, sent int) []*messages.Fact {
	t.Helper()
	var bus topology.Recorder
	for _, m := range r.bus.Messages()[sent:] {
		if err := bus.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	return append(factsOf(t, &bus), r.bus.Facts()[facts:]...)
}

// Whatever comes is answered, nothing of it is lost between frames and quarantine,
// and the ledger says the same.
func FuzzHTTPBodies(f *testing.F) {
	body, mediaType := formOf(f, [4]string{"data", "rows.json", ndjson, "{\"a\":1}\n{\"a\":}\n"}, [4]string{"x", "", "", "[1,2"})
	f.Add("/form", mediaType, "", body)
	f.Add("/form", "multipart/form-data; boundary=b", "", "--b\r\n\r\n{}\r\n--b\r\nContent-")
	f.Add("/in", "application/json", "", `{"event":1}{"event":`)
	f.Add("/in", "", "gzip", zipped(f, strings.Repeat("{\"a\":1}\n", 5000)))
	f.Add(hecPath, "", "", `{"event":"a"}{"event":""}{"fields":{"a":{}},"event":1}`)
	f.Add(hecPath+"/raw?host=x", "", "", "a\nb\xff\n")
	f.Add("/in", "", "zstd", "\x28\xb5\x2f\xfd\x00\x00\x00")
	r := listenHTTP(f, func(c *HTTPConfig, _ *Deps) { c.Limits.MaxRatio = 20 })
	f.Fuzz(func(t *testing.T, path, mediaType, encoding, body string) {
		if path != "/form" && path != "/in" && !strings.HasPrefix(path, hecPath) {
			return
		}
		facts, sent, kept := len(r.bus.Facts()), len(r.bus.Messages()), len(r.bus.Quarantined())
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+path, strings.NewReader(body))
		if err != nil {
			return
		}
		req.Header["Content-Type"], req.Header["Content-Encoding"] = []string{mediaType}, []string{encoding}
		req.Header.Set("Authorization", "Bearer "+tokenA)
		if strings.HasPrefix(path, hecPath) {
			req.Header.Set("Authorization", "Splunk "+tokenA)
		}
		resp, err := r.client.Do(req)
		if err != nil {
			return // a header that no client sends
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode >= 500 {
			t.Fatalf("status %d", resp.StatusCode)
		}
		newFacts, newSent, newKept := factsSince(t, r, facts, sent), r.bus.Messages()[sent:], r.bus.Quarantined()[kept:]
		balanceOf(t, newFacts, framesOf(t, newSent), newKept)
		if resp.StatusCode < 300 && len(newFacts) == 0 && len(newSent) > 0 || resp.StatusCode == 413 && len(newFacts) > 0 {
			t.Fatalf("status %d with %d facts", resp.StatusCode, len(newFacts))
		}
		for _, m := range newFacts {
			if a, ok := m.GetKind().(*messages.Fact_Announced); ok && len(a.Announced.GetOrigin().GetPull()) != len(messages.ID{}) {
				t.Fatalf("origin %v", a.Announced.GetOrigin())
			}
		}
	})
}
