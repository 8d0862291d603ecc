package formats

import (
	"strings"
	"testing"

	"github.com/penstock/penstock/services/internal/framing"
)

// covers: F-9 (key, skip rules), F-6 (not mistaken for it), DEV-51, F-18 (folders, other objects), MDA-20, OPC-6
func TestChoose(t *testing.T) {
	const (
		key     = "p/AWSLogs/123456789012/CloudTrail/us-east-1/2026/01/05/x.json.gz"
		insight = "AWSLogs/123456789012/CloudTrail-Insight/us-east-1/2026/01/05/x.json.gz"
		digest  = "AWSLogs/123456789012/CloudTrail-Digest/us-east-1/2026/01/05/x.json.gz"

		trail   = `{"Records":[{"eventVersion":"1.11","userIdentity":{"type":"IAMUser"},"eventTime":"2026-01-05T07:44:54Z","eventSource":"s3.amazonaws.com","eventID":"x"}]}`
		bare    = `{"eventVersion":"1.11","userIdentity":{"type":"IAMUser"},"eventTime":"2026-01-05T07:44:54Z","eventSource":"s3.amazonaws.com"}`
		s3      = `{"Records":[{"eventVersion":"2.1","eventSource":"aws:s3","awsRegion":"us-east-1","eventTime":"2026-01-05T00:00:10.000Z","eventName":"ObjectCreated:Put","s3":{}}]}`
		digests = `{"awsAccountId":"123456789012","digestStartTime":"2026-01-05T00:00:00Z","logFiles":[]}`
		other   = `{"Records":[{"a":1}]}`
		control = `{"messageType":"CONTROL_MESSAGE","owner":"CloudwatchLogs","logGroup":"","logStream":"","logEvents":[{"id":"","message":"Checking"}]}`
		opswat  = `"log_type":"config","details":"x","type":"Account","timestamp":"2026-01-05T11:19:41.629Z"` + "\n"
		dns     = `"2026-01-05 17:48:41","h","h","192.0.2.1","","Allowed","1 (A)","NOERROR","example.org.",""`
	)
	array := framing.Framing{Kind: framing.Array, Key: "Records"}
	auto := framing.Framing{Kind: framing.Auto}
	findings := framing.Framing{Kind: framing.Auto, Explode: "detail.findings"}
	logEvents := framing.Framing{Kind: framing.Auto, Explode: "logEvents"}
	rows := framing.Framing{Kind: framing.CSV, Comma: ','}
	text := framing.Framing{Kind: framing.Lines}
	tests := []struct {
		name, configured, key, head string
		format                      string
		framing                     framing.Framing
		skip                        string
	}{
		{"configured wins over key and head", "json", key, trail, "json", auto, ""},
		{"configured cloudtrail", "cloudtrail", "x", `{"a":1}`, "cloudtrail", array, ""},
		{"configured cloudtrail, bare records", "cloudtrail", "", bare, "cloudtrail", auto, ""},
		{"configured cloudtrail, digest", "cloudtrail", digest, digests, "cloudtrail", array, "parse.cloudtrail_digest"},
		{"configured json reads digests", "json", digest, digests, "json", auto, ""},
		{"unknown name", "nonsense", key, trail, "nonsense", framing.Framing{}, ""},
		{"by key", "", key, "", "cloudtrail", array, ""},
		{"auto by key", "auto", key, "", "cloudtrail", array, ""},
		{"insight by key", "", insight, "", "cloudtrail", array, ""},
		{"digest by key", "", digest, "", "cloudtrail", array, "parse.cloudtrail_digest"},
		{"digest by head", "", "x.json.gz", digests, "cloudtrail", array, "parse.cloudtrail_digest"},
		{"by head", "", "x.json.gz", trail, "cloudtrail", array, ""},
		{"by head with space", "", "", " {\n \"Records\" : [ {\n \"eventVersion\" : \"1.0\", \"eventName\":\"x\" ,\"eventID\" : 1", "cloudtrail", array, ""},
		{"by head, bare", "", "", bare, "cloudtrail", auto, ""},
		{"by head, array", "", "", "[" + bare + "]", "cloudtrail", auto, ""},
		{"by head with byte order mark", "", "", "\ufeff" + trail, "cloudtrail", array, ""},
		{"by head that is cut", "", "", trail[:len(trail)-30], "cloudtrail", array, ""},
		{"head cut in a long value", "", "", strings.Replace(trail, "IAMUser", strings.Repeat("x", 5000), 1)[:4096], "json", auto, ""},
		{"notification of S3", "", "", s3, "json", auto, ""},
		{"other records", "", "", other, "json", auto, ""},
		{"Umbrella by folder", "", "p/dnslogs/2026-01-05/2026-01-05-17-40-a1b2.csv.gz", "", "umbrella", rows, ""},
		{"Umbrella by row", "", "x.csv.gz", dns, "umbrella", rows, ""},
		{"Umbrella by header", "", "x.csv.gz", `"ID","Time","Email","User","Type","Action","Logged in from","Before","After"` + "\n", "umbrella", framing.Framing{Kind: framing.CSV, Comma: ',', Header: framing.FirstLine}, ""},
		{"Umbrella's test file", "umbrella", "p/README_FROM_UMBRELLA.txt", "hello", "umbrella", rows, "parse.umbrella_readme"},
		{"JSON in Umbrella's folder", "", "p/dnslogs/2026-01-05/x", `{"a":1}`, "json", auto, ""},
		{"OPSWAT", "", "x.json", "{\n\"log_type\": \"exempt_all\",\n\"device_id\": \"d\",\n\"details\": \"x\",\n\"type\": \"Device\",\n\"timestamp\": \"2026-01-05T08:55:12.279Z\"\n}", "opswat", framing.Framing{Kind: framing.Values}, ""},
		{"OPSWAT, array", "", "x.json", `[{"log_type":"logon","event":"x","details":"x","timestamp":"x"}]`, "opswat", framing.Framing{Kind: framing.Array}, ""},
		{"OPSWAT, SYSLOG form", "", "x.log", opswat, "opswat", text, ""},
		{"OPSWAT, SYSLOG form, broken", "", "x.log", strings.Replace(opswat, "x", `C:\x "y"`, 1), "opswat", text, ""},
		{"OPSWAT, real syslog header", "", "x.log", "<134>Jan  5 11:20:41 gw opswat: " + opswat, "opswat", text, ""},
		{"other type than OPSWAT's", "", "", `{"log_type":"x","event":"x","details":"x","timestamp":"x","type":"cloud"}`, "json", auto, ""},
		{"CEF", "", "x.log", "CEF:0|V|P|1|2|n|3|src=192.0.2.1", "cef", text, ""},
		{"CEF with a syslog header", "", "", "<134>Jan  5 17:48:41 gw1 CEF:0|V|P|1|2|n|3|src=192.0.2.1", "cef", text, ""},
		{"LEEF", "", "", "LEEF:1.0|V|P|1|2|src=192.0.2.1", "cef", text, ""},
		{"JSON about CEF", "", "", `{"a":" CEF:0|V|P|1|2|n|3|"}`, "json", auto, ""},
		{"syslog, RFC 5424", "", "", "<34>1 2026-01-05T22:14:15.003Z host1 su - ID47 - x", "syslog", text, ""},
		{"syslog, RFC 3164", "", "x.txt", "<34>Oct 11 22:14:15 host1 su: x", "syslog", text, ""},
		{"syslog without priority", "", "messages.log", "Oct 11 22:14:15 host1 su: x", "syslog", text, ""},
		{"text with a time", "", "", "2026-01-05T22:14:15Z something happened: x y", "json", auto, ""},
		{"CSV by name", "", "p/Export.CSV.gz", "a,b\n1,2\n", "csv", framing.Framing{Kind: framing.CSV, Header: framing.FirstLine}, ""},
		{"CSV by name, empty", "", "x.tsv", "", "csv", framing.Framing{Kind: framing.CSV, Header: framing.FirstLine}, ""},
		{"CSV without a header", "csv", "", "1,2\n3,4\n", "csv", framing.Framing{Kind: framing.CSV}, ""},
		{"Umbrella in an object called CSV", "", "x.csv", dns, "umbrella", rows, ""},
		{"JSON in an object called CSV", "", "x.csv", `{"a":1}`, "json", auto, ""},
		{"binary in an object called CSV", "", "x.csv", "a\x00b", "json", auto, ""},
		{"lines by name", "", "p/app.log.gz", "hello\n", "lines", text, ""},
		{"JSON in an object called log", "", "p/app.log", ` {"a":1}`, "json", auto, ""},
		{"CloudTrail in an object called log", "", "x.log", trail, "cloudtrail", array, ""},
		{"text", "", "", "hello", "json", auto, ""},
		{"nothing", "", "", "", "json", auto, ""},
		{"event of EventBridge", "", "", `{"version":"0","id":"a","detail-type":"x","source":"aws.ec2","detail":{}}`, "eventbridge", auto, ""},
		{"event of EventBridge, cut in its detail", "", "", `{"id":"a","detail-type":"x","source":"aws.ec2","detail":{"a":"`, "eventbridge", auto, ""},
		{"event that has no envelope", "", "", `{"detail":{},"source":"x"}`, "json", auto, ""},
		{"CloudTrail record in an event", "", "", `{"detail-type":"AWS API Call via CloudTrail","source":"aws.s3","detail":` + bare + `}`, "eventbridge", auto, ""},
		{"Security Hub event", "", "", `{"detail-type":"Security Hub Findings - Imported","source":"aws.securityhub","detail":{"findings":[]}}`, "securityhub", findings, ""},
		{"Security Hub finding", "", "", `{"SchemaVersion":"2018-10-08","Id":"f","ProductArn":"a","AwsAccountId":"1"}`, "json", auto, ""},
		{"Security Hub finding, enough of it", "", "", `{"SchemaVersion":"2018-10-08","Id":"f","ProductArn":"a","AwsAccountId":"1","UpdatedAt":"x"}`, "securityhub", findings, ""},
		{"configured eventbridge keeps Security Hub events whole", "eventbridge", "", `{"detail-type":"x","source":"aws.securityhub","detail":{}}`, "eventbridge", auto, ""},
		{"GuardDuty event", "", "", `{"detail-type":"GuardDuty Finding","source":"aws.guardduty","detail":{}}`, "guardduty", auto, ""},
		{"GuardDuty export by key", "", "AWSLogs/123456789012/GuardDuty/us-east-1/2026/01/05/x.jsonl.gz", "", "guardduty", auto, ""},
		{"GuardDuty finding", "", "", `{"schemaVersion":"2.0","arn":"arn:aws:guardduty:us-east-1:1:detector/d/finding/f"}`, "guardduty", auto, ""},
		{"GuardDuty findings of the API", "", "", `{"findings":[{"arn":"arn:aws:guardduty:us-east-1:1:detector/d/finding/f"}]}`, "guardduty", framing.Framing{Kind: framing.Array, Key: "findings"}, ""},
		{"other findings", "", "", `{"findings":[{"arn":"arn:aws:inspector2:us-east-1:1:finding/f"}]}`, "json", auto, ""},
		{"CloudWatch Logs event", "", "", `{"logGroup":"g","logStreamName":"s","eventId":"1","timestamp":1,"ingestionTime":2,"message":"m"}`, "cwlogs", logEvents, ""},
		{"CloudWatch Logs subscription", "", "", `{"messageType":"DATA_MESSAGE","owner":"1","logGroup":"g","logStream":"s","logEvents":[]}`, "cwlogs", logEvents, ""},
		{"CloudWatch Logs control message", "", "", control, "cwlogs", logEvents, "parse.cwlogs_control"},
		{"control message before others", "", "", control + "\n" + control, "cwlogs", logEvents, ""},
		{"control message that may go on", "", "", control + strings.Repeat(" ", 4096), "cwlogs", logEvents, ""},
		{"control message that is cut", "", "", control[:len(control)-1], "cwlogs", logEvents, ""},
		{"metric of the API", "", "", `{"namespace":"AWS/EC2","metric":"m","dimensions":{},"stat":"Sum","period":60,"value":1,"timestamp":"x"}`, "cwmetrics", auto, ""},
		{"metric of a stream", "", "", `{"metric_stream_name":"s","namespace":"AWS/EC2","metric_name":"m","dimensions":{},"timestamp":1}`, "cwmetrics", auto, ""},
		{"measurements of somebody else", "", "", `{"metric":"m","timestamp":1,"value":2,"namespace":"n"}`, "json", auto, ""},
		{"Voiso", "", "", `{"timestamp":"x","type":"user","event":"user_added","callcenter":"t","params":{}}`, "voiso", auto, ""},
		{"event with parameters of somebody else", "", "", `{"timestamp":"x","type":"user","event":"user_added","params":{}}`, "json", auto, ""},
		{"Censornet", "", "", `{"utc_timestamp":"x","tz_offset":0,"samaccountname":"u"}`, "censornet", auto, ""},
		{"a row with a time of somebody else", "", "", `{"utc_timestamp":"x","tz_offset":0,"user":"u"}`, "json", auto, ""},
		{"WAF by key", "", "AWSLogs/123456789012/WAFLogs/cloudfront/acl/2026/01/05/00/00/x.log.gz", "", "waf", auto, ""},
		{"WAF", "", "", `{"timestamp":1,"formatVersion":1,"webaclId":"a","terminatingRuleId":"r","action":"ALLOW","httpRequest":{}}`, "waf", auto, ""},
		{"resolver query by key", "", "AWSLogs/123456789012/vpcdnsquerylogs/vpc-1/2026/01/05/x.log.gz", "", "route53resolver", auto, ""},
		{"resolver query", "", "", `{"version":"1.1","query_timestamp":"x","query_name":"a.","query_type":"A","query_class":"IN"}`, "route53resolver", auto, ""},
		{"firewall by key", "", "AWSLogs/123456789012/network-firewall/flow/us-east-1/fw/2026/01/05/00/x.log.gz", "", "networkfirewall", auto, ""},
		{"firewall", "", "", `{"firewall_name":"fw","availability_zone":"us-east-1a","event_timestamp":"1","event":{}}`, "networkfirewall", auto, ""},
		{"broken", "", "", `{"Records":[{"eventVersion`, "json", auto, ""},
		{"broken escape at the end", "", "", `{"a\`, "json", auto, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			format, f, skip := Choose(tt.configured, tt.key, []byte(tt.head))
			if format != tt.format || f != tt.framing || skip != tt.skip {
				t.Errorf("got %s, %+v, %q, want %s, %+v, %q", format, f, skip, tt.format, tt.framing, tt.skip)
			}
		})
	}
}

// Whatever the first bytes are, the answer is a known format, and the same for
// more of the same object once the format is known by its own.
func FuzzChoose(f *testing.F) {
	f.Add("", []byte(`{"Records":[{"eventVersion":"1.0","eventName":"x","eventID":"y"}]}`))
	f.Add("AWSLogs/1/CloudTrail/r/x", []byte(`{"a":{"b":[1,"\"",{}]},"awsAccountId":1,"digestStartTime":2}`))
	f.Add("", []byte("[{\"a\\"))
	f.Fuzz(func(t *testing.T, key string, head []byte) {
		format, framing, skip := Choose("", key, head)
		if _, known := shapes[format]; !known || skip != "" && shapes[format].skip == nil {
			t.Fatalf("format %q, skip %q", format, skip)
		}
		again, framingAgain, skipAgain := Choose(format, key, head)
		if again != format || framing != framingAgain || skip != skipAgain {
			t.Fatalf("%s, %+v, %q by itself, but %s, %+v, %q when configured", format, framing, skip, again, framingAgain, skipAgain)
		}
	})
}

// Options may say where records are.
func TestSettingChoose(t *testing.T) {
	tests := []struct {
		name    string
		setting Setting
		head    string
		format  string
		framing framing.Framing
	}{
		{"no options", Setting{Type: "csv"}, "a,b\n", "csv", framing.Framing{Kind: framing.CSV, Header: framing.FirstLine}},
		{"columns", Setting{Type: "csv", Options: &CSVConfig{Columns: []string{"a"}}}, "a,b\n", "csv", framing.Framing{Kind: framing.CSV}},
		{"delimiter", Setting{Type: "csv", Options: &CSVConfig{Delimiter: "tab"}}, "a,b\n", "csv", framing.Framing{Kind: framing.CSV, Comma: '\t', Header: framing.FirstLine}},
		{"options of another format", Setting{Type: "json", Options: &JSONConfig{}}, "{}", "json", framing.Framing{}},
		{"found out", Setting{Type: Auto, Options: &noKeys{}}, "<34>1 2026-01-05T22:14:15.003Z host1 su - ID47 - x", "syslog", framing.Framing{Kind: framing.Lines}},
	}
	for _, tt := range tests {
		format, f, _ := tt.setting.Choose(tt.setting.Type, "", []byte(tt.head))
		if format != tt.format || f != tt.framing {
			t.Errorf("%s: %s, %+v, want %s, %+v", tt.name, format, f, tt.format, tt.framing)
		}
	}
}
