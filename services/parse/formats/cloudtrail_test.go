package formats

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
)

func open(t testing.TB, name string, options any, deps Deps) Decoder {
	t.Helper()
	if deps.Types == nil {
		deps.Types = NewTypes(0)
	}
	if deps.Source == "" {
		deps.Source = "feed"
	}
	f, err := Open(t.Context(), name, options, deps)
	if err != nil {
		t.Fatal(err)
	}
	return f.New()
}

// String renders the oddities, e.g. "no_id,bad_time".
func (o Odd) String() string {
	var all []string
	for i, name := range Oddities {
		if o&(1<<i) != 0 {
			all = append(all, name)
		}
	}
	return strings.Join(all, ",")
}

// render writes d as a line.
func (d *Doc) render() string {
	id, at := "none", "none"
	if d.HasID {
		id = d.ID.String()
	}
	if d.HasTime {
		at = time.Unix(0, d.Time).UTC().Format(time.RFC3339Nano)
	}
	return fmt.Sprintf("type=%s id=%s time=%s account=%q region=%q odd=%s", d.Type, id, at, d.Account, d.Region, d.Odd)
}

// covers: F-9, F-0 (ids, unknown fields and types), DEV-12
func TestCloudTrail(t *testing.T) {
	id := func(s string) string { return "id=" + messages.NewID([]byte("cloudtrail"), []byte(s)).String() }
	tests := []struct {
		name, rec string
		has       string // words of the rendered Doc
	}{
		{
			"all fields", string(record(1)),
			"type=cloud.aws.cloudtrail.iam " + id("00000000-0000-4000-8000-000000000001") + ` time=2026-01-05T07:44:01Z account="123456789012" region="us-east-1" odd=`,
		},
		{"empty object", `{}`, `type=cloud.aws.cloudtrail.unknown id=none time=none account="" region="" odd=no_id,no_time,no_type`},
		{"space around", " \n{\"eventID\":\"a\"}\r\n", id("a")},
		{"escapes in values", `{"event\u0049D":"\u0061\/\"","eventSource":"s\u0033.amazonaws.com"}`, "type=cloud.aws.cloudtrail.s3 " + id(`a/"`)},
		{"the last of equal keys holds", `{"eventID":"a","awsRegion":"r1","eventID":"b","awsRegion":"r2"}`, id("b") + ` time=none account="" region="r2"`},
		{"a later null holds", `{"eventID":"a","eventID":null}`, "id=none"},
		{"keys below do not count", `{"x":{"eventID":"a"},"resources":[{"eventID":"b"}]}`, "id=none"},
		{"empty id", `{"eventID":""}`, "id=none"},
		{"id of another type", `{"eventID":7}`, "id=none"},
		{"id is an object", `{"eventID":{"a":1}}`, "id=none"},
		{"shared id is no id", `{"sharedEventID":"a"}`, "id=none"},
		{"account of the recipient", `{"recipientAccountId":"111111111111","userIdentity":{"accountId":"222222222222"}}`, `account="111111111111"`},
		{"account of the user", `{"userIdentity":{"accountId":"222222222222"}}`, `account="222222222222"`},
		{"account of the last user", `{"userIdentity":{"accountId":"1"},"userIdentity":{"type":"Root"}}`, `account=""`},
		{"account as number", `{"recipientAccountId":123456789012}`, `account="123456789012"`},
		{"account deeper down does not count", `{"userIdentity":{"sessionContext":{"sessionIssuer":{"accountId":"1"}}}}`, `account=""`},
		{"absurd account", `{"recipientAccountId":"` + strings.Repeat("1", 129) + `","userIdentity":{"accountId":"2"}}`, `account="2"`},
		{"account that is not UTF-8", "{\"recipientAccountId\":\"1\xff\"}", "account=\"1\uFFFD\" region=\"\" odd=no_id,no_time,no_type,bad_utf8"},
		{"bad time", `{"eventTime":"yesterday"}`, "odd=no_id,bad_time"},
		{"time as number", `{"eventTime":1767599094}`, "time=none account=\"\" region=\"\" odd=no_id,bad_time"},
		{"time with fraction and offset", `{"eventTime":"2026-01-05T07:44:54.25+01:00"}`, "time=2026-01-05T06:44:54.25Z"},
		{"source without dots", `{"eventSource":"signin"}`, "type=cloud.aws.cloudtrail.signin "},
		{"source of another type", `{"eventSource":["s3"]}`, "type=cloud.aws.cloudtrail.unknown "},
		{"hostile source", `{"eventSource":"A b*>\u0000é.x"}`, "type=cloud.aws.cloudtrail.a_b_____ "},
		{"source of dots", `{"eventSource":"..."}`, "type=cloud.aws.cloudtrail.unknown "},
		{"long source", `{"eventSource":"` + strings.Repeat("x", 5000) + `"}`, "type=cloud.aws.cloudtrail." + strings.Repeat("x", 64) + " "},
		{"newer minor version", `{"eventVersion":"1.99"}`, "odd=no_id,no_time,no_type"},
		{"newer major version", `{"eventVersion":"2.0"}`, "odd=no_id,no_time,no_type,new_version"},
		{"unknown fields", `{"eventID":"a","new":{"deep":[1,2,{"x":null}]}}`, id("a")},
		{"insight", `{"insightDetails":{"eventSource":"ssm.amazonaws.com"}}`, "type=cloud.aws.cloudtrail.insight "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dec := open(t, "cloudtrail", nil, Deps{})
			var d Doc
			if err := dec.Decode([]byte(tt.rec), &d); err != nil {
				t.Fatal(err)
			}
			if got := d.render(); !strings.Contains(got, tt.has) {
				t.Errorf("got %s\nwant %s in it", got, tt.has)
			}
			if string(d.Body) != strings.Trim(tt.rec, " \r\n") {
				t.Errorf("body is %q, want the record unchanged", d.Body)
			}
		})
	}
}

// Bytes that are not UTF-8 stay as they are, numbers too.
// covers: DEV-143, F-0 (numbers as written)
func TestCloudTrailLeavesBytesAlone(t *testing.T) {
	rec := []byte("{\"eventID\":\"a\xff\xfe\",\"requestParameters\":{\"n\":12345678901234567890.10,\"s\":\"\xc3\x28\"}}")
	before := bytes.Clone(rec)
	var d Doc
	if err := open(t, "cloudtrail", nil, Deps{}).Decode(rec, &d); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(d.Body, before) || d.Odd&BadUTF8 == 0 {
		t.Errorf("body %q, odd %s", d.Body, d.Odd)
	}
	if d.ID != messages.NewID([]byte("cloudtrail"), []byte("a\xff\xfe")) {
		t.Error("the id is not made of the bytes as they came")
	}
}

func TestCloudTrailRefuses(t *testing.T) {
	tests := []struct{ rec, code, says string }{
		{`{"eventID":"a",}`, "parse.bad_json", "a key in quotes is expected at byte 15"},
		{`{"eventID":"a"`, "parse.bad_json", "the value ends too early at byte 14"},
		{``, "parse.bad_json", "the value ends too early at byte 0"},
		{`[{"eventID":"a"}]`, "parse.not_an_object", "no JSON object"},
		{`"a"`, "parse.not_an_object", "no JSON object"},
		{`null`, "parse.not_an_object", "no JSON object"},
	}
	dec := open(t, "cloudtrail", nil, Deps{})
	for _, tt := range tests {
		var d Doc
		err := dec.Decode([]byte(tt.rec), &d)
		if fault.CodeOf(err) != tt.code || fault.ClassOf(err) != fault.Reject || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %s with %q", tt.rec, err, tt.code, tt.says)
		}
		if err != nil && strings.Contains(err.Error(), "eventID") {
			t.Errorf("%s: the error shows the payload: %v", tt.rec, err)
		}
	}
}

func TestCloudTrailPlace(t *testing.T) {
	tests := []struct{ key, account, region string }{
		{"AWSLogs/123456789012/CloudTrail/us-east-1/2026/01/05/x.json.gz", "123456789012", "us-east-1"},
		{"a b/AWSLogs/o-abc/123456789012/CloudTrail-Insight/eu-west-1/2026/x.json.gz", "123456789012", "eu-west-1"},
		{"AWSLogs/123456789012/CloudTrail/x", "123456789012", ""},
		{"AWSLogs/not-an-account/CloudTrail/us-east-1/x", "", ""},
		{"AWSLogs/123456789012/vpcflowlogs/us-east-1/x", "", ""},
		{"", "", ""},
	}
	for _, tt := range tests {
		if account, region := cloudTrailPlace(tt.key); account != tt.account || region != tt.region {
			t.Errorf("%s: %q, %q, want %q, %q", tt.key, account, region, tt.account, tt.region)
		}
	}
}

// Documents cannot make up event types without end.
func TestTypesAreBounded(t *testing.T) {
	types := NewTypes(10)
	dec := open(t, "cloudtrail", nil, Deps{Types: types})
	var d Doc
	refused := 0
	for i := range 1000 {
		if err := dec.Decode(fmt.Appendf(nil, `{"eventSource":"svc%d.amazonaws.com"}`, i), &d); err != nil {
			t.Fatal(err)
		}
		if d.Odd&TypeLimit != 0 {
			refused++
			if d.Type != "cloud.aws.cloudtrail.other" {
				t.Fatalf("type %s", d.Type)
			}
		}
	}
	if types.Len() != 10 || refused != 990 {
		t.Errorf("%d types, %d refused, want 10 and 990", types.Len(), refused)
	}
	if err := dec.Decode([]byte(`{"eventSource":"svc3.amazonaws.com"}`), &d); err != nil || d.Type != "cloud.aws.cloudtrail.svc3" || d.Odd&TypeLimit != 0 {
		t.Errorf("a known type became %s (%s, %v)", d.Type, d.Odd, err)
	}
}

func TestNamesAreBounded(t *testing.T) {
	var n names
	for i := range 3 * maxNames {
		if want := fmt.Sprint(i); n.of([]byte(want)) != want {
			t.Fatalf("of(%q) = %q", want, n.of([]byte(want)))
		}
	}
	if len(n.known) > maxNames {
		t.Errorf("%d names kept, want at most %d", len(n.known), maxNames)
	}
}

func TestDecodingDoesNotAllocate(t *testing.T) {
	recs := [][]byte{record(1), record(2), []byte(`{"eventID":"\u0061","eventSource":"x"}`), []byte(`{"recipientAccountId":"\u0061"}`)}
	for _, dec := range []Decoder{
		open(t, "cloudtrail", nil, Deps{}),
		open(t, "json", JSONConfig{IDField: "eventID", TimeField: "eventTime", TimeUnit: RFC3339, EventTypeField: "eventSource", AccountField: "recipientAccountId", RegionField: "awsRegion"}, Deps{}),
	} {
		var d Doc
		if n := testing.AllocsPerRun(100, func() {
			for _, rec := range recs {
				if err := dec.Decode(rec, &d); err != nil {
					t.Fatal(err)
				}
			}
		}); n != 0 {
			t.Errorf("%T: %v allocations for %d records, want none", dec, n, len(recs))
		}
	}
}

// What the decoder takes is what encoding/json takes for an object, and the
// values are the same.
func FuzzCloudTrail(f *testing.F) {
	f.Add(record(1))
	for _, rec := range scans {
		f.Add([]byte(rec))
	}
	f.Add([]byte(`{"eventID":"a","eventTime":"2026-01-05T07:44:54Z","awsRegion":"\u00e9","recipientAccountId":"1","userIdentity":{"accountId":"2"},"eventID":"b"}`))
	f.Add([]byte(`{"recipientAccountId":7,"userIdentity":{"accountId":"2"},"userIdentity":{}}`))
	dec := open(f, "cloudtrail", nil, Deps{})
	f.Fuzz(func(t *testing.T, rec []byte) {
		var d Doc
		err := dec.Decode(rec, &d)
		var want map[string]any
		j := json.NewDecoder(bytes.NewReader(rec))
		j.UseNumber()
		valid := json.Valid(rec) && j.Decode(&want) == nil && want != nil
		if valid != (err == nil) {
			t.Fatalf("Decode says %v, encoding/json %v", err, valid)
		}
		if err != nil {
			return
		}
		if !bytes.Equal(d.Body, bytes.Trim(rec, " \t\r\n")) {
			t.Fatalf("body is %q", d.Body)
		}
		if utf8.Valid(rec) != (d.Odd&BadUTF8 == 0) {
			t.Fatalf("odd is %s", d.Odd)
		}
		if !utf8.Valid(rec) {
			return // encoding/json replaces bytes, the decoder does not
		}
		if id, _ := want["eventID"].(string); d.HasID != (id != "") || d.HasID && d.ID != messages.NewID(kindCloudTrail, []byte(id)) {
			t.Fatalf("id %v of %q", d.ID, id)
		}
		name := func(v any) string {
			s, ok := v.(string)
			if n, isNumber := v.(json.Number); isNumber {
				s, ok = n.String(), true
			}
			if !ok || len(s) > maxNameSize {
				return ""
			}
			return s
		}
		account := name(want["recipientAccountId"])
		if account == "" {
			user, _ := want["userIdentity"].(map[string]any)
			account = name(user["accountId"])
		}
		if d.Account != account {
			t.Fatalf("account %q, want %q", d.Account, account)
		}
		if region, _ := want["awsRegion"].(string); d.Region != name(region) {
			t.Fatalf("region %q, want %q", d.Region, region)
		}
		if at, err := time.Parse(time.RFC3339, fmt.Sprint(want["eventTime"])); err == nil && at.Year() > 1678 && at.Year() < 2262 && d.HasTime && d.Time != at.UnixNano() {
			t.Fatalf("time %d, want %s", d.Time, at)
		}
		if !strings.HasPrefix(d.Type, "cloud.aws.cloudtrail.") || len(d.Type) > 100 || strings.ContainsAny(d.Type, " *>\x00") {
			t.Fatalf("type %q", d.Type)
		}
	})
}

func BenchmarkCloudTrail(b *testing.B) {
	recs := make([][]byte, 1000)
	size := 0
	for i := range recs {
		recs[i] = record(i)
		size += len(recs[i])
	}
	dec := open(b, "cloudtrail", nil, Deps{})
	b.SetBytes(int64(size))
	b.ReportAllocs()
	var d Doc
	for b.Loop() {
		for _, rec := range recs {
			if err := dec.Decode(rec, &d); err != nil || !d.HasID || d.Odd != 0 || d.Account != "123456789012" {
				b.Fatalf("%v %+v", err, d)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(recs)), "ns/record")
}
