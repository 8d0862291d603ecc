package ocsf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/document"
	"github.com/penstock/penstock/services/internal/golden"
)

// samples are the events that the samples of a format become, by case.
func samples(t testing.TB, format string) map[string][]Event {
	t.Helper()
	line := regexp.MustCompile(`^\d+ type=\S+ id=\S+ time=(\S+) account="(.*)" region="(.*)" odd=`)
	all := map[string][]Event{}
	files, err := filepath.Glob("../../../parse/formats/testdata/" + format + "/*.want")
	if err != nil || len(files) == 0 {
		t.Fatalf("format %s has no samples: %v", format, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var events []Event
		for l := range strings.Lines(string(text)) {
			l = strings.TrimSuffix(l, "\n")
			if m := line.FindStringSubmatch(l); m != nil {
				e := Event{Format: format, Account: m[2], Region: m[3]}
				if at, err := time.Parse(time.RFC3339Nano, m[1]); err == nil {
					e.Time = at.UnixNano()
				}
				events = append(events, e)
				continue
			}
			if doc, ok := strings.CutPrefix(l, "  "); ok && len(events) > 0 {
				text, err := strconv.Unquote(doc)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				e := &events[len(events)-1]
				e.Doc, e.ID = []byte(text), messages.NewID([]byte(text))
			}
		}
		all[strings.TrimSuffix(filepath.Base(name), ".want")] = events
	}
	return all
}

// Every sample of a format with a table has a golden file, and what it becomes is as
// the schema says.
func TestGolden(t *testing.T) {
	m := NewMapper(false)
	for _, format := range Formats() {
		classes := 0
		for name, events := range samples(t, format) {
			t.Run(format+"/"+name, func(t *testing.T) {
				var b bytes.Buffer
				for _, e := range events {
					out, result := m.Apply([]byte("#"), &e)
					if result == Failed || result == Unmapped {
						t.Fatalf("%v: %s", result, e.Doc)
					}
					out = out[1:]
					if again, _ := NewMapper(false).Apply(nil, &e); !bytes.Equal(out, again) {
						t.Errorf("the same event became\n%s\n%s", out, again)
					}
					if fmt.Fprintln(&b, result); json.Indent(&b, out, "", "  ") != nil {
						t.Fatalf("no JSON: %s", out)
					}
					b.WriteByte('\n')
					if bytes.Contains(out, []byte(`productv2/aws/securityhub`)) {
						continue // the source's own OCSF, of its version and class
					}
					for _, bad := range checkSchema(out) {
						t.Errorf("%s\n%s", bad, out)
					}
					if result == Mapped {
						classes++
					}
				}
				if b.Len() > 0 {
					golden.Check(t, "testdata/"+format+"/"+name+".want", b.Bytes())
				}
			})
		}
		if classes == 0 {
			t.Errorf("no sample of %s has a class of its own", format)
		}
	}
}

func TestApply(t *testing.T) {
	trail := func(service, name, more string) string {
		return fmt.Sprintf(`{"eventVersion":"1.11","eventID":"e","eventTime":"2026-01-05T07:44:54Z","eventSource":%q,"eventName":%q,"userIdentity":{"type":"IAMUser","arn":"arn:u","userName":"ann","accountId":"1"},"sourceIPAddress":"192.0.2.1"%s}`, service, name, more)
	}
	tests := []struct{ name, format, doc, at, want string }{
		{"a call that creates", "cloudtrail", trail("iam.amazonaws.com", "CreateUser", ""), "type_uid", `600301`},
		{"one that reads", "cloudtrail", trail("iam.amazonaws.com", "GetUser", ""), "type_uid", `600302`},
		{"one that is read-only", "cloudtrail", trail("x", "FrobnicateThing", `,"readOnly":true`), "type_uid", `600302`},
		{"one of no known verb", "cloudtrail", trail("x", "FrobnicateThing", ""), "activity_name", `"FrobnicateThing"`},
		{"one that changes", "cloudtrail", trail("s3", "PutObject", ""), "type_uid", `600303`},
		{"a batch", "cloudtrail", trail("ecr", "BatchDeleteImage", ""), "type_uid", `600304`},
		{"a refusal", "cloudtrail", trail("s3", "GetObject", `,"errorCode":"AccessDenied"`), "status", `"Failure"`},
		{"a sign-in", "cloudtrail", trail("signin.amazonaws.com", "ConsoleLogin", `,"responseElements":{"ConsoleLogin":"Success"},"additionalEventData":{"MFAUsed":"Yes"}`), "is_mfa", `true`},
		{"its user", "cloudtrail", trail("signin.amazonaws.com", "ConsoleLogin", ""), "user.name", `"ann"`},
		{"a sign-out", "cloudtrail", trail("signin.amazonaws.com", "Logout", ""), "type_uid", `300202`},
		{"a challenge", "cloudtrail", trail("signin.amazonaws.com", "CredentialChallenge", ""), "type_uid", `300299`},
		{"a role that is taken", "cloudtrail", trail("sts.amazonaws.com", "AssumeRole", `,"requestParameters":{"roleArn":"arn:r","roleSessionName":"s"},"responseElements":{"credentials":{"accessKeyId":"ASIA"}}`), "session.credential_uid", `"ASIA"`},
		{"its name", "cloudtrail", trail("sts.amazonaws.com", "AssumeRole", `,"requestParameters":{"roleArn":"arn:r","roleSessionName":"s"}`), "user.uid", `"arn:r"`},
		{"its resources", "cloudtrail", trail("sts.amazonaws.com", "AssumeRole", `,"resources":[{"ARN":"arn:r","x":1}]`), "unmapped.resources", `[{"ARN":"arn:r","x":1}]`},
		{"resources of a call", "cloudtrail", trail("s3", "GetObject", `,"resources":[{"ARN":"arn:r","accountId":"2"}]`), "resources", `[{"owner":{"account":{"uid":"2"}},"uid":"arn:r"}]`},
		{"what is left of them", "cloudtrail", trail("s3", "GetObject", `,"resources":[{"ARN":"arn:r"},{"ARN":"arn:q","x":1}]`), "unmapped.resources", `[{},{"x":1}]`},
		{"resources without a name", "cloudtrail", trail("s3", "GetObject", `,"resources":[{"type":"t"}]`), "unmapped.resources", `[{"type":"t"}]`},
		{"a caller that is a service", "cloudtrail", strings.Replace(trail("s3", "GetObject", ""), "192.0.2.1", "ec2.amazonaws.com", 1), "src_endpoint.domain", `"ec2.amazonaws.com"`},
		{"JSON within", "cloudtrail", trail("s3", "GetObject", `,"requestID":"r","requestParameters":{"a":[1, 2]}`), "api.request.data", `{"a":[1, 2]}`},
		{"parameters of no request", "cloudtrail", trail("s3", "GetObject", `,"requestParameters":{"a":1}`), "unmapped.requestParameters", `{"a":1}`},
		{"an escaped key", "cloudtrail", strings.Replace(trail("s3", "GetObject", ""), `"eventName"`, `"\u0065ventName"`, 1), "api.operation", `"GetObject"`},
		{"no caller", "cloudtrail", `{"eventName":"GetUser"}`, "class_uid", `0`},
		{"and nothing is lost", "cloudtrail", `{"eventName":"GetUser"}`, "unmapped", `{"eventName":"GetUser"}`},
		{"a packet of another", "vpcflow", `{"srcaddr":"192.0.2.1","pkt-srcaddr":"192.0.2.9","dstaddr":"192.0.2.2"}`, "src_endpoint", `{"intermediate_ips":["192.0.2.1"],"ip":"192.0.2.9"}`},
		{"a new DNS code", "route53resolver", `{"srcaddr":"192.0.2.1","rcode":"NEW"}`, "rcode_id", `99`},
		{"a DNS alert", "route53resolver", `{"srcaddr":"192.0.2.1","firewall_rule_action":"ALERT"}`, "disposition", `"Alert"`},
		{"what it does", "route53resolver", `{"srcaddr":"192.0.2.1","firewall_rule_action":"ALERT"}`, "action", `"Observed"`},
		{"that it is one", "route53resolver", `{"srcaddr":"192.0.2.1","firewall_rule_action":"ALERT"}`, "is_alert", `true`},
		{"a port as text", "route53resolver", `{"srcaddr":"192.0.2.1","srcport":"53"}`, "src_endpoint.port", `53`},
		{"a port that is none", "route53resolver", `{"srcaddr":"192.0.2.1","srcport":"x"}`, "unmapped", `{"srcport":"x"}`},
		{"a strange method", "alb", `{"client:port":"192.0.2.1:1","request":"BREW http://x/ HTTP/1.1"}`, "type_uid", `400299`},
		{"its name", "alb", `{"client:port":"192.0.2.1:1","request":"BREW http://x/ HTTP/1.1"}`, "activity_name", `"BREW"`},
		{"a malformed request", "alb", `{"client:port":"192.0.2.1:1","request":"- http://x:80- -","elb_status_code":400}`, "http_response.code", `400`},
		{"which stays", "alb", `{"client:port":"192.0.2.1:1","request":"- http://x:80- -","elb_status_code":400}`, "unmapped.request", `"- http://x:80- -"`},
		{"a name without a protocol", "alb", `{"client:port":"192.0.2.1:1","request":"GET http://x/ HTTP/1.1","domain_name":"x"}`, "unmapped.domain_name", `"x"`},
		{"an account that is unknown", "vpcflow", `{"srcaddr":"192.0.2.1","account-id":"unknown","action":"NEW"}`, "unmapped", `{"account-id":"unknown","action":"NEW"}`},
		{"a viewer that went away", "cloudfront", `{"c-ip":"192.0.2.1","cs-method":"GET","sc-status":"000","sc-content-type":"x"}`, "http_request.http_method", `"GET"`},
		{"labels", "waf", `{"httpRequest":{"clientIp":"192.0.2.1","uri":"/"},"labels":[{"name":"a"},{"name":"b"}]}`, "metadata.labels", `["a","b"]`},
		{"headers", "waf", `{"httpRequest":{"clientIp":"192.0.2.1","uri":"/","headers":[{"name":"X-Forwarded-For","value":"192.0.2.2, 192.0.2.3"},{"name":"HOST","value":"h"}]}}`, "http_request.x_forwarded_for", `["192.0.2.2","192.0.2.3"]`},
		{"a header that lies", "waf", `{"httpRequest":{"clientIp":"192.0.2.1","uri":"/","headers":[{"name":"X-Forwarded-For","value":"unknown, 192.0.2.3"}]}}`, "http_request.http_headers", `[{"name":"X-Forwarded-For","value":"unknown, 192.0.2.3"}]`},
		{"one that CloudFront passes on", "cloudfront", `{"c-ip":"192.0.2.1","cs-method":"GET","x-forwarded-for":"192.0.2.2:80,"}`, "unmapped", `{"x-forwarded-for":"192.0.2.2:80,"}`},
		{"a port that is none", "vpcflow", `{"srcaddr":"192.0.2.1","srcport":70000}`, "unmapped", `{"srcport":70000}`},
		{"an action that is new", "waf", `{"httpRequest":{"clientIp":"192.0.2.1","uri":"/"},"action":"NEW"}`, "disposition_id", `99`},
		{"nobody", "s3access", `{"operation":"REST.GET.OBJECT","remote_ip":"192.0.2.1","bucket":"b","key":"k"}`, "actor.user.name", `"anonymous"`},
		{"S3 itself", "s3access", `{"operation":"S3.EXPIRE.OBJECT","requester":"AmazonS3"}`, "src_endpoint.svc_name", `"AmazonS3"`},
		{"severity", "guardduty", `{"arn":"a","id":"i","severity":9.1}`, "severity", `"Critical"`},
		{"an envelope", "guardduty", `{"source":"aws.guardduty","detail":{"arn":"a","severity":8,"service":{"archived":true}}}`, "status_id", `5`},
		{"what is left of it", "guardduty", `{"source":"aws.guardduty","detail":{"arn":"a","x":null,"service":{"archived":true}}}`, "unmapped", `{"source":"aws.guardduty","detail":{"service":{"archived":true}}}`},
		{"large letters", "guardduty", `{"Arn":"a","Severity":4,"Type":"t"}`, "finding_info", `{"types":["t"],"uid":"a"}`},
		{"a call as evidence", "guardduty", `{"arn":"a","service":{"action":{"awsApiCallAction":{"api":"A","serviceName":"s","remoteIpDetails":{"ipAddressV4":"192.0.2.1"}}}}}`, "evidences", `[{"api":{"operation":"A","service":{"name":"s"}},"src_endpoint":{"ip":"192.0.2.1"}}]`},
		{"a resource", "guardduty", `{"arn":"a","partition":"aws","resource":{"resourceType":"Instance","instanceDetails":{"instanceId":"i-1"}}}`, "resources", `[{"cloud_partition":"aws","type":"Instance","uid":"i-1"}]`},
		{"a workflow", "securityhub", `{"Id":"i","Severity":{"Label":"HIGH","Normalized":70},"Workflow":{"Status":"RESOLVED"}}`, "status", `"Resolved"`},
		{"what is left", "securityhub", `{"Id":"i","Severity":{"Label":"HIGH"},"Note":null,"X":{"Y":[]}}`, "unmapped", `{"Severity":{"Label":"HIGH"},"X":{"Y":[]}}`},
		{"OCSF as it is", "securityhub", `{"detail":{"findings":[{"class_uid":2003,"metadata":{"version":"1.6.0"}}]}}`, "class_uid", `2003`},
		{"OCSF without envelope", "securityhub", ` {"class_uid":2003,"metadata":{"version":"1.6.0"}} `, "metadata.version", `"1.6.0"`},
		{"observables", "route53resolver", `{"srcaddr":"192.0.2.1"}`, "observables", `[{"name":"src_endpoint.ip","type":"IP Address","type_id":2,"value":"192.0.2.1"}]`},
		{"account of the event", "route53resolver", `{"srcaddr":"192.0.2.1"}`, "cloud", `{"account":{"uid":"123456789012"},"provider":"AWS","region":"eu-west-1"}`},
		{"id of the event", "route53resolver", `{"srcaddr":"192.0.2.1"}`, "metadata.uid", `"` + messages.NewID([]byte("x")).String() + `"`},
		{"time of the event", "route53resolver", `{"srcaddr":"192.0.2.1"}`, "time", `1767599094123`},
		{"the original", "s3access", `{"operation":"a.GET","remote_ip":"192.0.2.1","raw":"a line"}`, "raw_data", `"a line"`},
		{"the document", "route53resolver", `{"srcaddr":"192.0.2.1"}`, "raw_data", `"{\"srcaddr\":\"192.0.2.1\"}"`},
	}
	m := NewMapper(true)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, result := m.Apply(nil, &Event{ID: messages.NewID([]byte("x")), Format: tt.format, Account: "123456789012", Region: "eu-west-1", Time: 1_767_599_094_123_999_999, Doc: []byte(tt.doc)})
			if result > Base {
				t.Fatal(result)
			}
			got := out
			for word := range strings.SplitSeq(tt.at, ".") {
				got = member(document.Trim(got), word)
			}
			if string(got) != tt.want {
				t.Errorf("%s is %s, want %s in\n%s", tt.at, got, tt.want, out)
			}
			if !bytes.Contains(out, []byte(`"class_uid":2003`)) {
				for _, bad := range checkSchema(out) {
					t.Errorf("%s in %s", bad, out)
				}
			}
		})
	}
}

func TestRefuses(t *testing.T) {
	m := NewMapper(false)
	for _, doc := range []string{``, `[]`, `"x"`, `{`, `{"eventName":}`, `{"a" 1}`, `{} {}`} {
		if out, result := m.Apply(nil, &Event{Format: "cloudtrail", Doc: []byte(doc)}); result != Failed {
			t.Errorf("%q: %v, %s", doc, result, out)
		}
	}
	if _, result := m.Apply(nil, &Event{Format: "json", Doc: []byte(`{}`)}); result != Unmapped {
		t.Errorf("a format without a table: %v", result)
	}
	if !slices.Contains(Formats(), "cloudtrail") {
		t.Error(Formats())
	}
}

// Every value of a sample is somewhere in what becomes of it, but for those that have
// another form there.
func TestNothingIsLost(t *testing.T) {
	changed := regexp.MustCompile(`^(action|createdAt|CreatedAt|updatedAt|UpdatedAt|eventFirstSeen|eventLastSeen|creationDate|start|end|timestamp|MFAUsed|flow-direction|firewall_rule_action|rcode|account-id|request|request_uri|httpVersion|client:port|target:port|backend:port|x-forwarded-for|dstport)$`)
	m := NewMapper(false)
	for _, format := range Formats() {
		for name, events := range samples(t, format) {
			for _, e := range events {
				out, _ := m.Apply(nil, &e)
				var check func(key string, v []byte)
				check = func(key string, v []byte) {
					switch document.KindOf(v) {
					case document.Object, document.Array:
						c := document.Members(v)
						for {
							k, start, end, more := c.Next()
							if !more {
								return
							}
							check(string(k), v[start:end])
						}
					case document.String, document.Number, document.Bool, document.None, document.Null:
						if text := strings.Trim(string(v), `"`); !changed.MatchString(key) && text != "null" && !bytes.Contains(out, []byte(text)) {
							t.Errorf("%s/%s: %s, %s, is not in\n%s", format, name, key, v, out)
						}
					}
				}
				if !bytes.Contains(out, []byte("productv2")) {
					check("", document.Trim(e.Doc))
				}
			}
		}
	}
}

// FuzzApply: what comes out is as the schema says, whatever goes in.
func FuzzApply(f *testing.F) {
	for k, format := range Formats() {
		for _, events := range samples(f, format) {
			for _, e := range events {
				f.Add(k, e.Doc)
			}
		}
	}
	f.Add(0, []byte(`{"request":"`+strings.Repeat("long ", 3000)+`"}`))
	m := NewMapper(false)
	f.Fuzz(func(t *testing.T, k int, doc []byte) {
		formats := Formats()
		format := formats[uint(k)%uint(len(formats))]
		out, result := m.Apply(nil, &Event{Format: format, Doc: doc})
		if !json.Valid(doc) || result > Base {
			return
		}
		if !json.Valid(out) {
			t.Fatalf("%s: %q became %q", format, doc, out)
		}
		if format == "securityhub" && bytes.Contains(doc, []byte("class_uid")) || bytes.Contains(doc, []byte(`""`)) {
			return // the source's own OCSF; a key or a value that says nothing
		}
		for _, bad := range checkSchema(out) {
			t.Fatalf("%s: %q became %q: %s", format, doc, out, bad)
		}
	})
}

func BenchmarkApply(b *testing.B) {
	for _, format := range []string{"cloudtrail", "vpcflow", "alb"} {
		b.Run(format, func(b *testing.B) {
			name := map[string]string{"cloudtrail": "log_file", "vpcflow": "custom_order_versions_2_to_10", "alb": "https"}[format]
			e := samples(b, format)[name][0]
			m := NewMapper(false)
			var out []byte
			b.SetBytes(int64(len(e.Doc)))
			b.ReportAllocs()
			for b.Loop() {
				var result Result
				if out, result = m.Apply(out[:0], &e); result != Mapped {
					b.Fatal(result)
				}
			}
		})
	}
}
