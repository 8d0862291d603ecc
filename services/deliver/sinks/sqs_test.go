package sinks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
)

func init() { harnesses["sqs"] = sqsWorld }

func openedSQS(t testing.TB, cfg SQSConfig) *sqsSink {
	t.Helper()
	s, err := openSQS(t.Context(), cfg, Deps{Destination: "queue"})
	if err != nil {
		t.Fatal(err)
	}
	return s.(*sqsSink)
}

// sqsQueue makes a queue and the configuration to send to it.
func sqsQueue(t testing.TB, c *cloud.Cloud, name string) SQSConfig {
	t.Helper()
	url, err := c.CreateQueue(name, nil)
	must(t, err)
	cfg := defaultSQS()
	cfg.QueueURL, cfg.AWS, cfg.Timeout = url, awsAt(c.URL()), 2*time.Second
	return cfg
}

// sqsWorld sends to a FIFO queue, which drops what comes twice.
func sqsWorld(t *testing.T) *world {
	c := newCloud(t, cloud.Options{})
	s := openedSQS(t, sqsQueue(t, c, "out.fifo"))
	var other *cloud.Cloud
	return &world{
		sink: s,
		received: func() []string {
			var all []string
			for _, m := range c.Messages("out.fifo") {
				all = append(all, strings.Replace(m.Body, `"event_type":`, `"type":`, 1))
			}
			return all
		},
		secrets:  []string{awsSecret},
		outage:   func() func() { return when(c, cloud.Fault{Status: 500}) },
		denial:   func() func() { return when(c, cloud.Fault{Code: "AccessDenied"}) },
		hang:     func() func() { return when(c, cloud.Fault{Hang: true}) },
		throttle: func() func() { return when(c, cloud.Fault{Code: "RequestThrottled", RetryAfter: "7"}) },
		// The messages are stored, and the answer is lost.
		cut: func() func() { return when(c, cloud.Fault{Cut: -1}) },
		partial: func() func() {
			return when(c, cloud.Fault{Refuse: func(body string) string {
				if third(body) {
					return "InvalidMessageContents"
				}
				return ""
			}})
		},
		untrusted: func() (Sink, func() bool) {
			other = newCloud(t, cloud.Options{TLS: selfSigned()})
			return openedSQS(t, sqsQueue(t, other, "out")), func() bool { return len(other.Messages("out")) > 0 }
		},
		hangs: 15 * time.Second,
		done: func() {
			c.Close()
			if other != nil {
				other.Close()
			}
		},
	}
}

// numbered encodes n events, each by an edit of the plain one.
func numbered(s Sink, n int, edit func(i int, e *Event)) Batch {
	var data []byte
	var items []Item
	for i := range n {
		e := event(i, plain(i, 1)[0])
		if edit != nil {
			edit(i, e)
		}
		start := len(data)
		data = s.Append(data, e)
		items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
	}
	return NewBatch(data, items)
}

// One event a message, with its attributes, in calls of ten at the same time.
// covers: F-29, VOI-1, VOI-5, VOI-28, CEN-23, LIM-26
func TestSQSSends(t *testing.T) {
	c := newCloud(t, cloud.Options{})
	defer c.Close()
	s := openedSQS(t, sqsQueue(t, c, "out"))
	mustDeliver(t, s, numbered(s, 995, nil))
	all := c.Messages("out")
	seen := map[string]bool{}
	for _, m := range all {
		seen[m.Attributes["penstock_id"]] = true
		if m.Attributes["event_type"] != "a.b" || m.Attributes["source"] != "src" || len(m.Attributes) != 3 || m.Group != "" || m.Dedup != "" {
			t.Fatalf("%+v", m)
		}
	}
	if len(all) != 995 || len(seen) != 995 || c.Calls("SendMessageBatch") != 100 {
		t.Errorf("%d messages, %d ids, %d calls", len(all), len(seen), c.Calls("SendMessageBatch"))
	}
}

// covers: F-29, VOI-25, VOI-28
func TestSQSFIFO(t *testing.T) {
	c := newCloud(t, cloud.Options{})
	defer c.Close()
	cfg := sqsQueue(t, c, "out.fifo")
	cfg.GroupID = "{source}/{account}"
	s := openedSQS(t, cfg)
	b := numbered(s, 100, func(i int, e *Event) { e.Source = fmt.Sprintf("s é%d", i%3) })
	mustDeliver(t, s, b)
	mustDeliver(t, s, b) // the queue drops what it has
	all := c.Messages("out.fifo")
	for i, m := range all {
		if want := fmt.Sprintf("s___%d/123456789012", i%3); m.Group != want || m.Dedup != b.ID(i).String() {
			t.Fatalf("message %d: group %q, want %q, id %s", i, m.Group, want, m.Dedup)
		}
	}
	if len(all) != 100 {
		t.Errorf("%d messages", len(all))
	}
}

// When an event of a group is not taken, those behind it in later calls are not sent
// before it; other groups go on.
// covers: F-29
func TestSQSKeepsOrder(t *testing.T) {
	c := newCloud(t, cloud.Options{})
	defer c.Close()
	s := openedSQS(t, sqsQueue(t, c, "out.fifo"))
	calls := 0
	c.SetFault(func(op, _, _ string) cloud.Fault {
		if op == "SendMessageBatch" {
			if calls++; calls == 2 {
				return cloud.Fault{FailEntries: 1}
			}
		}
		return cloud.Fault{}
	})
	b := numbered(s, 60, func(i int, e *Event) { e.Source = fmt.Sprintf("s%d", i%2) })
	res := s.Deliver(t.Context(), b)
	if res.Verdict != Done || len(res.Items) != 1+20 { // number 10, and the even ones from 20 on
		t.Fatalf("%v with %d exceptions: %v", res.Verdict, len(res.Items), res.Err)
	}
	for i, x := range res.Items {
		want := 18 + 2*i
		if i == 0 {
			want = 10
		}
		if x.Index != want || x.Verdict != Retry {
			t.Fatalf("exception %d is %d: %v", i, x.Index, x.Verdict)
		}
	}
}

// Each message is judged by itself: what is wrong with it, with the queue, or passes.
// covers: F-29, CEN-22, VOI-29, LIM-20
func TestSQSJudges(t *testing.T) {
	tests := []struct {
		code    string
		verdict Verdict // of the one message
		want    string
	}{
		{"InvalidMessageContents", Reject, "deliver.sqs_rejected"},
		{"InvalidParameterValue", Reject, "deliver.sqs_rejected"},
		{"RequestThrottled", Retry, "deliver.sqs_failed"},
		{"InternalError", Retry, "deliver.sqs_failed"},
		{"AccessDenied", Stop, "deliver.sqs_denied"},
		{"KmsDisabled", Stop, "deliver.sqs_denied"},
	}
	for _, tt := range tests {
		t.Run(tt.code, func(t *testing.T) {
			c := newCloud(t, cloud.Options{})
			defer c.Close()
			s := openedSQS(t, sqsQueue(t, c, "out"))
			b := numbered(s, 10, nil)
			bad := string(readSQSBody(b, 3))
			c.SetFault(func(string, string, string) cloud.Fault {
				return cloud.Fault{Refuse: func(body string) string {
					if body == bad {
						return tt.code
					}
					return ""
				}}
			})
			res := s.Deliver(t.Context(), b)
			if len(c.Messages("out")) != 9 {
				t.Errorf("%d messages", len(c.Messages("out")))
			}
			if tt.verdict == Stop {
				if res.Verdict != Stop || len(res.Items) != 9 || fault.CodeOf(res.Err) != tt.want || res.Items[0].Verdict != Done {
					t.Errorf("%+v", res)
				}
				return
			}
			if res.Verdict != Done || len(res.Items) != 1 || res.Items[0].Index != 3 || res.Items[0].Verdict != tt.verdict || fault.CodeOf(res.Items[0].Err) != tt.want {
				t.Errorf("%+v", res)
			}
		})
	}
}

func readSQSBody(b Batch, i int) []byte {
	m := readSQS(b, i)
	return []byte(m.body)
}

// Calls that fail as a whole.
// covers: F-29, VOI-29
func TestSQSCallFails(t *testing.T) {
	tests := map[string]struct {
		fault   cloud.Fault
		verdict Verdict
		code    string
	}{
		"no queue":    {cloud.Fault{Code: "QueueDoesNotExist"}, Stop, "deliver.sqs_denied"},
		"KMS":         {cloud.Fault{Status: 400, Code: "KmsDisabled"}, Stop, "deliver.sqs_denied"},
		"bad request": {cloud.Fault{Status: 400, Code: "InvalidAddress"}, Stop, "deliver.sqs_denied"},
		"outage":      {cloud.Fault{Status: 500}, Retry, "deliver.sqs_failed"},
		"throttled":   {cloud.Fault{Status: 400, Code: "RequestThrottled"}, Retry, "deliver.sqs_failed"},
		"contents":    {cloud.Fault{Status: 400, Code: "InvalidMessageContents"}, Done, "deliver.sqs_rejected"},
		"too long":    {cloud.Fault{Status: 400, Code: "BatchRequestTooLong"}, Done, "deliver.sqs_too_large"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := newCloud(t, cloud.Options{})
			defer c.Close()
			s := openedSQS(t, sqsQueue(t, c, "out"))
			defer when(c, tt.fault)()
			res := s.Deliver(t.Context(), numbered(s, 10, nil))
			err := res.Err
			if tt.verdict == Done { // each by itself
				if len(res.Items) != 10 || res.Items[9].Verdict != Reject {
					t.Fatalf("%+v", res)
				}
				err = res.Items[9].Err
			}
			if res.Verdict != tt.verdict || fault.CodeOf(err) != tt.code {
				t.Errorf("%v: %v", res.Verdict, err)
			}
		})
	}
}

// An event that is too large is refused alone, or stored with a pointer to it.
// covers: F-29, CEN-24, LIM-23
func TestSQSOversize(t *testing.T) {
	for _, how := range []Oversize{OversizeReject, OversizeS3} {
		t.Run(string(how), func(t *testing.T) {
			c := newCloud(t, cloud.Options{})
			defer c.Close()
			cfg := sqsQueue(t, c, "out")
			cfg.MaxMessageBytes, cfg.Format = 4*config.KiB, SQSRow
			if cfg.Oversize = how; how == OversizeS3 {
				cfg.OverflowBucket = "out"
			}
			s := openedSQS(t, cfg)
			large := `{"n":1,"x":"` + strings.Repeat("x", 5000) + `"}`
			b := numbered(s, 3, func(i int, e *Event) {
				if i == 1 {
					e.Doc = []byte(large)
				}
			})
			res := s.Deliver(t.Context(), b)
			all := c.Messages("out")
			if how == OversizeReject {
				if res.Verdict != Done || len(res.Items) != 1 || res.Items[0].Index != 1 || fault.CodeOf(res.Items[0].Err) != "deliver.sqs_too_large" || len(all) != 2 {
					t.Errorf("%+v, %d messages", res, len(all))
				}
				return
			}
			sum := sha256.Sum256([]byte(large))
			key := "penstock-overflow/" + b.ID(1).String() + ".json"
			want := fmt.Sprintf(`{"penstock_overflow":{"bucket":"out","key":"%s","sha256":"%s","size":%d}}`, key, hex.EncodeToString(sum[:]), len(large))
			o, _ := c.Get("out", key)
			if res.Verdict != Done || len(res.Items) > 0 || len(all) != 3 || all[1].Body != want || string(o.Body) != large || all[1].Attributes["penstock_id"] != b.ID(1).String() {
				t.Errorf("%+v\n%+v", res, all[1])
			}
		})
	}
}

// While the bucket for what is too large fails, only those events wait.
func TestSQSOverflowFails(t *testing.T) {
	for code, verdict := range map[string]Verdict{"AccessDenied": Stop, "SlowDown": Retry} {
		c := newCloud(t, cloud.Options{})
		cfg := sqsQueue(t, c, "out")
		cfg.MaxMessageBytes, cfg.Oversize, cfg.OverflowBucket = config.KiB, OversizeS3, "out"
		s := openedSQS(t, cfg)
		c.SetFault(func(op, _, _ string) cloud.Fault {
			if op == "PutObject" {
				return cloud.Fault{Code: code}
			}
			return cloud.Fault{}
		})
		res := s.Deliver(t.Context(), numbered(s, 3, func(i int, e *Event) {
			if i == 1 {
				e.Doc = fmt.Appendf(nil, `{"n":1,"x":%q}`, strings.Repeat("x", 5000))
			}
		}))
		if len(c.Messages("out")) != 2 || (verdict == Stop) != (res.Verdict == Stop) || verdict == Retry && (len(res.Items) != 1 || res.Items[0].Verdict != Retry) {
			t.Errorf("%s: %+v", code, res)
		}
		c.Close()
	}
}

// covers: F-29
func TestSQSCallsStayBelowTheLimit(t *testing.T) {
	c := newCloud(t, cloud.Options{})
	defer c.Close()
	s := openedSQS(t, sqsQueue(t, c, "out"))
	mustDeliver(t, s, numbered(s, 20, func(i int, e *Event) { e.Doc = fmt.Appendf(nil, `{"n":%d,"x":%q}`, i, strings.Repeat("x", 100_000)) }))
	if n := c.Calls("SendMessageBatch"); n != 10 || len(c.Messages("out")) != 20 { // two of them fit
		t.Errorf("%d calls, %d messages", n, len(c.Messages("out")))
	}
}

// covers: F-29, VOI-21, VOI-27, CEN-37
func TestSQSGolden(t *testing.T) {
	docs := []string{
		`{"timestamp":"2026-01-05T10:11:12.12Z","type":"allowed_ip","event":"ip_added","callcenter":"tenant-a","params":{"who":"op1@example.org","access_group":"supervisor","ip":"192.0.2.0/28"}}`,
		"{\n  \"utc_timestamp\": \"2026-01-05 12:20:24.010832\",\n  \"final_action\": \"Allow\"\n}",
		"{\"odd\":\"a\uFFFFb\uFFFEc\U0001F600\"}",
	}
	for _, format := range []SQSFormat{SQSEvent, SQSRow, SQSVoiso} {
		cfg := defaultSQS()
		cfg.QueueURL, cfg.Format = "https://sqs.eu-west-1.amazonaws.com/123456789012/q.fifo", format
		p, err := parsePattern(cfg.GroupID, groupPlaceholders...)
		must(t, err)
		s := &sqsSink{cfg: cfg, group: p}
		var out bytes.Buffer
		b := numbered(s, len(docs), func(i int, e *Event) {
			if e.Doc = []byte(docs[i]); i == 2 {
				e.Time, e.Type = 0, "odd\x01"
			}
		})
		for i := range docs {
			m := readSQS(b, i)
			fmt.Fprintf(&out, "group %s\n", m.group)
			attributes := s.attributes(&m)
			for _, name := range []string{"penstock_id", "event_type", "source", "format_version"} {
				if v, ok := attributes[name]; ok {
					fmt.Fprintf(&out, "%s: %s\n", name, *v.StringValue)
				}
			}
			fmt.Fprintf(&out, "%s\n\n", m.body)
		}
		golden.Check(t, "testdata/sqs/"+string(format)+".want", out.Bytes())
	}
}

// What goes out is what SQS takes, and the rest of the text stays.
// covers: F-29
func FuzzSQSLegal(f *testing.F) {
	for _, text := range []string{"", "a\tb\r\n", "\x00", "\uFFFE\uFFFF\uFFFD", "é\U0010FFFF", "\xef\xbf"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if !utf8.ValidString(text) {
			return // no document
		}
		legal, n := appendLegal(nil, []byte(text))
		if !isLegal(legal) || isLegal([]byte(text)) != (n == 0) || utf8.RuneCount(legal) != utf8.RuneCountInString(text) || n == 0 && string(legal) != text {
			t.Errorf("%q became %q with %d", text, legal, n)
		}
		for _, r := range string(legal) {
			if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r > 0xFFFD && r < 0x10000 || r > 0xD7FF && r < 0xE000 {
				t.Errorf("%q holds %U", legal, r)
			}
		}
	})
}

func TestSQSProblems(t *testing.T) {
	tests := []struct {
		name   string
		change func(*SQSConfig)
		want   string // empty: none
	}{
		{"nothing but a queue", func(*SQSConfig) {}, ""},
		{"no queue", func(c *SQSConfig) { c.QueueURL = "" }, "queue_url: missing"},
		{"a name", func(c *SQSConfig) { c.QueueURL = "events" }, "queue_url: "},
		{"no calls", func(c *SQSConfig) { c.Calls = 0 }, "calls: "},
		{"too large", func(c *SQSConfig) { c.MaxMessageBytes = 2 * config.MiB }, "max_message_bytes: "},
		{"no group", func(c *SQSConfig) { c.GroupID = "" }, "group_id: "},
		{"no such placeholder", func(c *SQSConfig) { c.GroupID = "{tenant}" }, "group_id: there is no placeholder"},
		{"no bucket", func(c *SQSConfig) { c.Oversize = OversizeS3 }, "overflow_bucket: "},
		{"a bucket", func(c *SQSConfig) { c.Oversize, c.OverflowBucket = OversizeS3, "logs" }, ""},
		{"a bucket too many", func(c *SQSConfig) { c.OverflowBucket = "logs" }, "overflow_bucket: "},
		{"a slash", func(c *SQSConfig) { c.OverflowPrefix = "/a" }, "overflow_prefix: "},
		{"no time", func(c *SQSConfig) { c.Timeout = 0 }, "timeout: "},
		{"half a key pair", func(c *SQSConfig) { c.AWS.AccessKey = "a" }, "aws.access_secret: missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := defaultSQS()
			c.QueueURL = "https://sqs.eu-west-1.amazonaws.com/123456789012/q"
			tt.change(&c)
			got := fmt.Sprint(config.Check(c))
			if tt.want == "" && got != "<nil>" || !strings.Contains(got, tt.want) {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// Where some have to be tried again, others are refused, and somebody has to act, each
// event keeps what became of it.
func TestCombined(t *testing.T) {
	retry, stop, reject := &Result{Verdict: Retry, After: time.Second}, &Result{Verdict: Stop}, &Result{Verdict: Reject}
	tests := []struct {
		name  string
		each  []*Result
		whole Verdict
		items []Verdict // by place, Done where there is no exception
	}{
		{"all done", []*Result{nil, nil}, Done, nil},
		{"one again", []*Result{nil, retry}, Done, []Verdict{Done, Retry}},
		{"all again", []*Result{retry, retry}, Retry, nil},
		{"refused and again", []*Result{reject, retry}, Done, []Verdict{Reject, Retry}},
		{"all refused", []*Result{reject}, Done, []Verdict{Reject}},
		{"stopped", []*Result{nil, stop, retry, reject}, Stop, []Verdict{Done, Stop, Stop, Reject}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := combined(tt.each)
			if got.Verdict != tt.whole || slices.Contains(tt.each, retry) != (got.After == time.Second) {
				t.Fatalf("%+v", got)
			}
			next := 0
			for i := range tt.each {
				v := got.Verdict
				if next < len(got.Items) && got.Items[next].Index == i {
					v = got.Items[next].Verdict
					next++
				}
				want := got.Verdict
				if i < len(tt.items) {
					want = tt.items[i]
				}
				if v != want {
					t.Errorf("event %d: %v, want %v", i, v, want)
				}
			}
			for _, x := range got.Items {
				if x.Verdict == Stop {
					t.Errorf("%+v", got)
				}
			}
		})
	}
}

func BenchmarkSQS(b *testing.B) {
	// The least of a queue.
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			Entries []struct{ ID string }
		}
		_ = json.NewDecoder(r.Body).Decode(&in)
		var out struct {
			Successful []map[string]string
		}
		for _, e := range in.Entries {
			out.Successful = append(out.Successful, map[string]string{"Id": e.ID, "MessageId": "m"})
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		_ = json.NewEncoder(w).Encode(out)
	}))
	defer server.Close()
	cfg := defaultSQS()
	cfg.QueueURL, cfg.AWS = server.URL+"/123456789012/q", awsAt(server.URL)
	s := openedSQS(b, cfg)
	defer s.Close()
	events := make([]*Event, 1000)
	size := 0
	for i, doc := range s3Trails(len(events)) {
		events[i] = event(i, "")
		events[i].Doc = doc
		size += len(doc)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	var data []byte
	var items []Item
	began, rounds := time.Now(), 0
	for b.Loop() {
		rounds++
		data, items = data[:0], items[:0]
		for _, e := range events {
			start := len(data)
			data = s.Append(data, e)
			items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
		}
		if res := s.Deliver(context.Background(), NewBatch(data, items)); res.Verdict != Done || len(res.Items) > 0 {
			b.Fatalf("%v: %v", res.Verdict, res.Err)
		}
	}
	b.ReportMetric(float64(rounds*len(events))/time.Since(began).Seconds(), "events/s")
}
