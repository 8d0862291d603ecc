package sources

import (
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/topology"
)

// chooseAuto stands for the formats: it takes the configured name, or json, and
// leaves the framing to the bytes.
func chooseAuto(configured, _ string, head []byte) (string, framing.Framing, string) {
	switch {
	case strings.HasPrefix(string(head), "digest"):
		return "cloudtrail", framing.Framing{}, "digest"
	case strings.HasPrefix(string(head), "nobody"):
		return "", framing.Framing{}, ""
	case configured == "" || configured == "auto":
		configured = "json"
	case configured == "lines":
		return configured, framing.Framing{Kind: framing.Lines}, ""
	}
	return configured, framing.Framing{Kind: framing.Auto}, ""
}

func admitter(body Body, format string, buckets ...string) *admission {
	return &admission{
		source: "src", format: format, body: body, buckets: buckets, choose: chooseAuto,
		frame: messages.NewBuilder(messages.Header{}), split: framing.New(framing.Framing{}, nil, framing.Limits{}),
	}
}

func letterOf(body string) *letter {
	return &letter{queue: "https://q/1/logs", id: "m-1", body: body, sent: 7, received: 8, receives: 1}
}

func s3Event(records ...string) string { return `{"Records":[` + strings.Join(records, ",") + `]}` }

func created(bucket, key string) string {
	return fmt.Sprintf(`{"eventVersion":"2.1","eventName":"ObjectCreated:Put","eventTime":"2026-01-05T00:00:10Z","awsRegion":"eu-west-1",`+
		`"s3":{"bucket":{"name":%q},"object":{"key":%q,"size":12,"eTag":"e","versionId":"v","sequencer":"0A"}}}`, bucket, key)
}

func snsOf(message string) string {
	return fmt.Sprintf(`{"Type":"Notification","MessageId":"i","TopicArn":"t","Message":%q}`, message)
}

// covers: F-5 (detection order), F-6 (fates), DEV-55, DEV-58, LIM-11, VOI-1, VOI-5.
func TestAdmit(t *testing.T) {
	const (
		obj  = "AS_OBJECT"
		evt  = "AS_EVENTS"
		test = "AS_TEST"
		ign  = "AS_IGNORED"
		quar = "AS_QUARANTINED"
	)
	tests := []struct {
		name string
		a    *admission
		body string
		want []string // as and code of each outcome
	}{
		{"allowed bucket", admitter(BodyNotifications, "", "logs-*"), s3Event(created("logs-a", "k")), []string{obj}},
		{"forged bucket", admitter(BodyNotifications, "", "logs-*"), s3Event(created("secrets", "k")), []string{quar + " ingest.bucket_not_allowed"}},
		{"no list allows nothing", admitter(BodyAuto, "json"), s3Event(created("logs-a", "k")), []string{quar + " ingest.bucket_not_allowed"}},
		{"written star allows all", admitter(BodyAuto, "", "*"), s3Event(created("secrets", "k")), []string{obj}},
		{
			"each record its own fate", admitter(BodyAuto, "", "logs-a"),
			s3Event(created("logs-a", "k"), created("forged", "k"), `{"eventName":"ObjectRemoved:Delete","s3":{}}`, `{}`, created("logs-a", "k2")),
			[]string{obj, quar + " ingest.bucket_not_allowed", ign + " object_removed", quar + " ingest.broken_notification", obj},
		},
		{"test event", admitter(BodyNotifications, "", "b"), `{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"b"}`, []string{test}},
		{"no records", admitter(BodyAuto, "cloudtrail", "b"), `{"Records":[]}`, []string{quar + " ingest.unknown_notification"}},
		{"unknown shape", admitter(BodyNotifications, "json", "b"), `{"a":1}`, []string{quar + " ingest.unknown_notification"}},
		{"auto without a format", admitter(BodyAuto, "auto", "b"), `{"a":1}`, []string{quar + " ingest.unknown_notification"}},
		{"auto with a format", admitter(BodyAuto, "json", "b"), `{"a":1}`, []string{evt}},
		{"auto, garbage with a format", admitter(BodyAuto, "json", "b"), `hello`, []string{quar + " ingest.unreadable_body"}},
		{"auto, envelope with an event", admitter(BodyAuto, "json", "b"), snsOf(`{"a":1}`), []string{evt}},
		{"auto, subscription", admitter(BodyAuto, "json", "b"), `{"Type":"SubscriptionConfirmation","SubscribeURL":"u"}`, []string{quar + " ingest.unknown_notification"}},
		{"events that look like a notification", admitter(BodyEvents, "auto"), s3Event(created("logs-a", "k")), []string{evt}},
		{"events in an envelope", admitter(BodyEvents, "auto"), snsOf(`{"a":1}`), []string{evt}},
		{"events of no format", admitter(BodyEvents, "auto"), `nobody knows`, []string{quar + " ingest.unreadable_body"}},
		{"known to hold none", admitter(BodyEvents, "auto"), `digest`, []string{ign + " digest"}},
		{"blank", admitter(BodyEvents, "auto"), " \n", []string{evt}},
		{"too large", admitter(BodyEvents, "auto"), strings.Repeat(" ", maxBody+1), []string{quar + " ingest.body_too_large"}},
	}
	filtered := admitter(BodyNotifications, "", "*")
	filtered.keys, filtered.skipKeys = patterns{"AWSLogs/*"}, patterns{"*.tmp"}
	tests = append(tests, struct {
		name string
		a    *admission
		body string
		want []string
	}{
		"key filters", filtered, s3Event(created("bbb", "AWSLogs/x.gz"), created("bbb", "other/x.gz"), created("bbb", "AWSLogs/x.tmp")),
		[]string{obj, ign + " key_filtered", ign + " key_filtered"},
	})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := letterOf(tt.body)
			outcomes := tt.a.admit(l)
			var got []string
			for i, o := range outcomes {
				got = append(got, strings.TrimSpace(o.as.String()+" "+o.code))
				if want := messages.NewPull("sqs", l.queue, l.id, fmt.Sprint(i)); string(o.origin.GetPull()) != string(want) {
					t.Errorf("outcome %d has pull %x, want %x", i, o.origin.GetPull(), want)
				}
				if o.origin.GetSource() != "src" || o.origin.GetMessageId() != l.id || o.origin.GetReceived() != 8 {
					t.Errorf("outcome %d has origin %v", i, o.origin)
				}
				if (o.as == messages.Announced_AS_QUARANTINED) != (len(o.quarantine) == 1) {
					t.Errorf("outcome %d is %s with %d entries", i, o.as, len(o.quarantine))
				}
				if o.as == messages.Announced_AS_QUARANTINED {
					checkAgain(t, tt.a, &o)
				}
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// checkAgain: what a quarantined body says when it is sent once more alone.
func checkAgain(t *testing.T, a *admission, o *outcome) {
	t.Helper()
	q := o.quarantine[0]
	if q.GetCut() || q.GetHolds() != messages.Quarantine_HOLDS_SQS_BODY || q.GetLength() != int64(len(q.GetPayload())) {
		t.Fatalf("entry %v has no whole body", q.GetCode())
	}
	again := a.admit(letterOf(string(q.GetPayload())))
	if len(again) != 1 || again[0].as != o.as {
		t.Errorf("%.200q results in %d outcomes", q.GetPayload(), len(again))
	}
}

func TestNoticeOnTheBus(t *testing.T) {
	body := s3Event(created("logs", "a+b%2B.gz"))
	o := admitter(BodyAuto, "", "logs").admit(letterOf(body))[0]
	if len(o.publish) != 1 || o.publish[0].Subject != topology.NoticeSubject("src") ||
		o.publish[0].ID != hex.EncodeToString(o.origin.GetPull()) {
		t.Fatalf("published %+v", o.publish)
	}
	got, err := messages.DecodeNotice(o.publish[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	want := &messages.Notice{
		Version: 1, Size: 12, Sequencer: "0A", Region: "eu-west-1",
		Origin: &messages.Origin{
			Pull: messages.NewPull("sqs", "https://q/1/logs", "m-1", "0"), Source: "src", Bucket: "logs", Key: "a b+.gz", Version: "v", Etag: "e",
			Queue: "https://q/1/logs", MessageId: "m-1", Created: 1767571210000000000, Received: 8,
			Region: "eu-west-1",
		},
	}
	if !proto.Equal(got, want) {
		t.Errorf("notice %v, want %v", got, want)
	}
}

// covers: VOI-5, CEN-23, F-0 (a bad record never fails the others).
func TestEventsInBody(t *testing.T) {
	tests := []struct {
		name, format, body string
		records            []string // in all frames, with their ordinals
		frames             int
		bad                []string // ordinal, offset, length, payload
	}{
		{"one value", "json", ` {"a":1}`, []string{`0 {"a":1}`}, 1, nil},
		{"values", "json", `{"a":1}{"b":2} {"c":3}`, []string{`0 {"a":1}`, `1 {"b":2}`, `2 {"c":3}`}, 1, nil},
		{"lines of values", "json", "{\"a\":1}\n{\"b\":2}\n", []string{`0 {"a":1}`, `1 {"b":2}`}, 1, nil},
		{"array", "json", `[{"a":1},{"b":2}]`, []string{`0 {"a":1}`, `1 {"b":2}`}, 1, nil},
		{"lines", "lines", "one\ntwo", []string{`0 one`, `1 two`}, 1, nil},
		{"blank", "json", "\n", nil, 0, nil},
		{"empty array", "json", "[]", nil, 0, nil},
		{"in an envelope", "json", snsOf(`{"a":1}{"b":2}`), []string{`0 {"a":1}`, `1 {"b":2}`}, 1, nil},
		{
			"bad one in the middle", "json", "{\"a\":1}\n{\"b\":]\n{\"c\":3}\n",
			[]string{`0 {"a":1}`, `2 {"c":3}`},
			1,
			[]string{`1 at 8: {"b":]`},
		},
		{"bad one first", "json", "{\"b\":]\n{\"c\":3}\n", []string{`1 {"c":3}`}, 1, []string{`0 at 0: {"b":]`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := admitter(BodyEvents, tt.format)
			outcomes := a.admit(letterOf(tt.body))
			if len(outcomes) != 1 || outcomes[0].as != messages.Announced_AS_EVENTS {
				t.Fatalf("outcomes %+v", outcomes)
			}
			o := outcomes[0]
			if got := recordsOf(t, &o); !reflect.DeepEqual(got, tt.records) || len(o.publish) != tt.frames {
				t.Errorf("%d frames of %q, want %d of %q", len(o.publish), got, tt.frames, tt.records)
			}
			var bad []string
			for _, q := range o.quarantine {
				bad = append(bad, fmt.Sprintf("%d at %d: %s", q.GetRecord(), q.GetOffset(), strings.TrimSpace(string(q.GetPayload()))))
				if q.GetHolds() != messages.Quarantine_HOLDS_BYTES || q.GetRecords() != 1 || q.GetCode() != framing.ErrSyntax.Code {
					t.Errorf("entry %v", q)
				}
			}
			if !reflect.DeepEqual(bad, tt.bad) {
				t.Errorf("quarantined %q, want %q", bad, tt.bad)
			}
			f := o.fetched
			end := messages.Fetched_END_COMPLETE
			if len(tt.records) == 0 {
				end = messages.Fetched_END_SKIPPED
			}
			if int(f.GetFrames()) != tt.frames || int(f.GetRecords()) != len(tt.records)+len(tt.bad) || f.GetEnd() != end ||
				int(f.GetQuarantined()[framing.ErrSyntax.Code]) != len(tt.bad) || int(f.GetBytes()) != len(tt.body) {
				t.Errorf("fetched %v", f)
			}
		})
	}
}

// recordsOf decodes the frames of o.
func recordsOf(t testing.TB, o *outcome) []string {
	t.Helper()
	var records []string
	for i, m := range o.publish {
		if want := fmt.Sprintf("%x/%d", o.origin.GetPull(), i); m.ID != want || m.Subject != topology.RecordSubject("src") {
			t.Fatalf("frame %d is %s on %s, want %s", i, m.ID, m.Subject, want)
		}
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if int(v.FrameNo()) != i || v.Source() != "src" || v.Len() == 0 {
			t.Fatalf("frame %d: number %d, source %s, %d records", i, v.FrameNo(), v.Source(), v.Len())
		}
		origins, err := v.Origins()
		if err != nil || len(origins) != 1 || !proto.Equal(origins[0], o.origin) {
			t.Fatalf("frame %d has origins %v (%v)", i, origins, err)
		}
		var c messages.Columns
		if err := v.Columns(&c); err != nil {
			t.Fatal(err)
		}
		body, err := v.Body(nil)
		if err != nil {
			t.Fatal(err)
		}
		for n, length := range c.Lengths {
			records = append(records, fmt.Sprintf("%d %s", c.Records[n], body[:length]))
			body = body[length:]
		}
	}
	return records
}

func TestFramesOfOneBody(t *testing.T) {
	t.Run("by count", func(t *testing.T) {
		var b strings.Builder
		for i := range 2500 {
			fmt.Fprintf(&b, "{\"n\":%d}\n", i)
		}
		a := admitter(BodyEvents, "json")
		o, again := a.admit(letterOf(b.String()))[0], a.admit(letterOf(b.String()))[0]
		if len(o.publish) != 3 || len(recordsOf(t, &o)) != 2500 {
			t.Errorf("%d frames, want 3 of 2500 records", len(o.publish))
		}
		if !reflect.DeepEqual(o.publish, again.publish) {
			t.Error("a redelivery makes other frames")
		}
	})
	t.Run("bad spans are bounded", func(t *testing.T) {
		body := "{\"a\":1}\n" + strings.Repeat("{\"b\":]\n", 500)
		o := admitter(BodyEvents, "json").admit(letterOf(body))[0]
		if len(o.quarantine) != maxBad {
			t.Fatalf("%d entries, want %d", len(o.quarantine), maxBad)
		}
		last := o.quarantine[maxBad-1]
		if last.GetCode() != "ingest.too_many_bad_records" || last.GetOffset()+last.GetLength() != int64(len(body)) {
			t.Errorf("the rest is %s, %d bytes from %d of %d", last.GetCode(), last.GetLength(), last.GetOffset(), len(body))
		}
		kept := int64(len(`{"a":1}`))
		for _, q := range o.quarantine {
			kept += q.GetLength()
		}
		if missing := int64(len(body)) - kept; missing < 0 || missing > maxBad { // line feeds between them
			t.Errorf("%d of %d bytes are kept nowhere", missing, len(body))
		}
	})
	t.Run("after a panic", func(t *testing.T) {
		a := admitter(BodyEvents, "json")
		a.frame.Reset(messages.Header{Source: "other"})
		a.frame.AddRecord([]byte("left behind"))
		o := a.admit(letterOf(`{"a":1}`))[0]
		if got := recordsOf(t, &o); len(got) != 1 || got[0] != `0 {"a":1}` {
			t.Errorf("records %q", got)
		}
	})
}

func BenchmarkAdmit(b *testing.B) {
	for name, body := range map[string]string{"notice": s3Event(created("logs", "AWSLogs/1/CloudTrail/x.json.gz")), "event": `{"type":"app_login","event":"ip_changed"}`} {
		b.Run(name, func(b *testing.B) {
			a, l := admitter(BodyAuto, "json", "logs"), letterOf(body)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if o := a.admit(l); len(o) != 1 || len(o[0].publish) != 1 {
					b.Fatalf("outcomes %+v", o)
				}
			}
		})
	}
}
