package formats

import (
	"fmt"
	"strings"
	"testing"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/tag"
)

// typeOf decodes rec as a record of a source with these tags.
func typeOf(t *testing.T, format string, c tag.Config, key, rec string) (string, Odd) {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	dec := open(t, format, nil, Deps{Tag: &c})
	if err := begin(dec, key, nil); err != nil {
		t.Fatal(err)
	}
	var d Doc
	if err := dec.Decode([]byte(rec), &d); err != nil {
		t.Fatal(err)
	}
	return d.Type, d.Odd
}

const (
	ebRecord    = `{"id":"a","detail-type":"x","source":"aws.ssm","time":"2026-01-05T07:44:54Z","detail":{"level":"High"}}`
	trailRecord = `{"eventID":"a","eventTime":"2026-01-05T07:44:54Z","eventSource":"iam.amazonaws.com","eventName":"CreateUser"}`
	vpcRecord   = "2 123456789012 eni-0 192.0.2.1 192.0.2.2 1 2 6 1 1 1767599094 1767599095 ACCEPT OK"
)

// The table that each source had with Devo's collector, without auto_event_type and
// with it.
// covers: DEV-5, DEV-11, DEV-12, DEV-13, DEV-15, DEV-16, DEV-18, DEV-20, DEV-21, DEV-22, DEV-24, DEV-66, F-22
func TestTables(t *testing.T) {
	tests := []struct{ format, rec, plain, auto string }{
		{"eventbridge", ebRecord, "cloud.aws.cloudwatch.events", "cloud.aws.cloudwatch.ssm"},
		{"eventbridge", `{"a":1}`, "cloud.aws.cloudwatch.events", "cloud.aws.cloudwatch.unknown"},
		{"securityhub", `{"Id":"f","UpdatedAt":"2026-01-05T07:44:54Z"}`, "cloud.aws.securityhub.findings", "cloud.aws.securityhub.findings"},
		{"cloudtrail", trailRecord, "cloud.aws.cloudtrail.events", "cloud.aws.cloudtrail.iam"},
		{"cwmetrics", `{"namespace":"n","metric":"m","timestamp":"2026-01-05T07:44:54Z"}`, "cloud.aws.cloudwatch.metrics", "cloud.aws.cloudwatch.metrics"},
		{"cwlogs", `{"eventId":"a","timestamp":1}`, "cloud.aws.cloudwatch.logs", "cloud.aws.cloudwatch.logs"},
		{"vpcflow", vpcRecord, "cloud.aws.vpc.unknown", "cloud.aws.vpc.flow"},
		{"cloudfront", `{"date":"2026-01-05","time":"21:02:31","x-edge-location":"LAX1","x-edge-request-id":"r"}`, "cloud.aws.cloudfront.unknown", "cloud.aws.cloudfront.access"},
		{"guardduty", `{"id":"a","updatedAt":"2026-01-05T07:44:54Z"}`, "cloud.aws.guardduty.findings", "cloud.aws.guardduty.findings"},
		{"waf", `{"timestamp":1,"action":"BLOCK"}`, "cloud.aws.waf.logs", "cloud.aws.waf.block"},
		{"route53resolver", `{"query_timestamp":"2026-01-05T07:44:54Z"}`, "cloud.aws.route53.resolver", "cloud.aws.route53.resolver"},
		{"networkfirewall", `{"event":{"event_type":"tls"}}`, "cloud.aws.networkfirewall.logs", "cloud.aws.networkfirewall.tls"},
		{"voiso", `{"type":"user","event":"user_added"}`, "voiso.user.user_added", "voiso.user.user_added"},
		{"censornet", `{"product":"web","final_action":"Allow"}`, "censornet.web.allow", "censornet.web.allow"},
		{"json", `{"a":1}`, "json.feed", "json.feed"},
	}
	for _, tt := range tests {
		if got, odd := typeOf(t, tt.format, tag.Config{}, "", tt.rec); got != tt.plain || odd&TypeLimit != 0 {
			t.Errorf("%s: %s (%s), want %s", tt.format, got, odd, tt.plain)
		}
		if got, _ := typeOf(t, tt.format, tag.Config{AutoEventType: true}, "", tt.rec); got != tt.auto {
			t.Errorf("%s with auto_event_type: %s, want %s", tt.format, got, tt.auto)
		}
	}
}

// covers: DEV-25, DEV-27, DEV-28, DEV-29, DEV-30, DEV-67, DEV-81
func TestTablesOfASource(t *testing.T) {
	const base = "my.app.{event_type}.{account_id}.{region_id}.{format_version}.{environment}"
	tests := []struct {
		name        string
		c           tag.Config
		format, key string
		rec, want   string
	}{
		{"tag", tag.Config{Tag: "my.app.trail"}, "cloudtrail", "", trailRecord, "my.app.trail"},
		{"tag, whatever the event type", tag.Config{Tag: "my.app.trail", AutoEventType: true}, "cloudtrail", "", trailRecord, "my.app.trail"},
		{"tag with the event type", tag.Config{Tag: "my.{event_type}.trail", AutoEventType: true}, "cloudtrail", "", trailRecord, "my.iam.trail"},
		{"tag_base", tag.Config{TagBase: base, AutoEventType: true}, "cloudtrail", "", trailRecord, "my.app.iam"},
		{"tag_base without auto_event_type", tag.Config{TagBase: base}, "cloudtrail", "", trailRecord, "my.app.events"},
		{"tag_base, dots in the event type", tag.Config{TagBase: base}, "voiso", "", `{"type":"user","event":"user_added"}`, "my.app.user_user_added"},
		{"tag_base of a format with one type", tag.Config{TagBase: base}, "json", "", `{}`, "my.app.unknown"},
		{"name of the service", tag.Config{TagBase: "my.{service_name}.{event_type}.{account_id}.{region_id}.{format_version}"}, "cloudtrail", "", trailRecord, "my.feed.events"},
		{"default event type", tag.Config{EventTypeDefault: "all"}, "cloudtrail", "", trailRecord, "cloud.aws.cloudtrail.all"},
		{"default event type of what is always told apart", tag.Config{EventTypeDefault: "all"}, "voiso", "", `{"type":"user","event":"user_added"}`, "voiso.all"},
		{"field", tag.Config{AutoEventType: true, EventTypeSourceFieldName: "eventName"}, "cloudtrail", "", trailRecord, "cloud.aws.cloudtrail.createuser"},
		{"field and regex", tag.Config{AutoEventType: true, EventTypeSourceFieldName: "eventName", EventTypeExtractingRegex: "^(Create|Delete)"}, "cloudtrail", "", trailRecord, "cloud.aws.cloudtrail.create"},
		{"field down a path", tag.Config{AutoEventType: true, EventTypeSourceFieldName: "detail.level"}, "eventbridge", "", ebRecord, "cloud.aws.cloudwatch.high"},
		{"regex that does not match", tag.Config{AutoEventType: true, EventTypeSourceFieldName: "eventName", EventTypeExtractingRegex: "^(Put)"}, "cloudtrail", "", trailRecord, "cloud.aws.cloudtrail.unknown"},
		{"regex that does not match, default", tag.Config{AutoEventType: true, EventTypeSourceFieldName: "eventName", EventTypeExtractingRegex: "^(Put)", EventTypeDefault: "rest"}, "cloudtrail", "", trailRecord, "cloud.aws.cloudtrail.rest"},
		{"no such field", tag.Config{AutoEventType: true, EventTypeSourceFieldName: "nothing", EventTypeDefault: "rest"}, "cloudtrail", "", trailRecord, "cloud.aws.cloudtrail.rest"},
		{"key", tag.Config{AutoEventType: true, EventTypeFileRegexPatterns: []tag.FilePattern{{EventType: "a", Regex: "^x/"}, {EventType: "flow2", Regex: "vpcflowlogs"}, {EventType: "c", Regex: "."}}}, "vpcflow", "AWSLogs/123456789012/vpcflowlogs/x", vpcRecord, "cloud.aws.vpc.flow2"},
		{"key that matches nothing", tag.Config{AutoEventType: true, EventTypeFileRegexPatterns: []tag.FilePattern{{EventType: "a", Regex: "^x/"}}, EventTypeDefault: "rest"}, "vpcflow", "y", vpcRecord, "cloud.aws.vpc.rest"},
		{"tag of one type", tag.Config{AutoEventType: true, EventTypeProcessorMapping: map[string]tag.Processor{"iam": {Tagging: "my.security"}}}, "cloudtrail", "", trailRecord, "my.security"},
		{"tag of another type", tag.Config{AutoEventType: true, EventTypeProcessorMapping: map[string]tag.Processor{"s3": {Tagging: "my.security"}}}, "cloudtrail", "", trailRecord, "cloud.aws.cloudtrail.iam"},
		{"rules for types of a format that has one", tag.Config{AutoEventType: true, EventTypeProcessorMapping: map[string]tag.Processor{"iam": {Tagging: "my.security"}}}, "json", "", `{}`, "json.feed"},
		{"hostile event type", tag.Config{TagBase: base, AutoEventType: true, EventTypeSourceFieldName: "x"}, "json", "", `{"x":"A *.>\u0000é` + strings.Repeat("z", 200) + `"}`, "my.app.a_______" + strings.Repeat("z", 56)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, _ := typeOf(t, tt.format, tt.c, tt.key, tt.rec); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// Another format can read the events of one type: id, time and account are its own.
// covers: DEV-28
func TestProcessorOfAType(t *testing.T) {
	rec := []byte(`{"id":"e","detail-type":"Security Hub Findings - Imported","source":"aws.securityhub","account":"1","time":"2026-01-05T07:44:54Z","detail":{"id":"x","accountId":"2","updatedAt":"2026-01-05T08:00:00Z"}}`)
	c := tag.Config{AutoEventType: true, EventTypeProcessorMapping: map[string]tag.Processor{"securityhub": {Format: "guardduty", Tagging: "my.findings"}}}
	dec := open(t, "eventbridge", nil, Deps{Tag: &c})
	var d Doc
	if err := dec.Decode(rec, &d); err != nil {
		t.Fatal(err)
	}
	if d.Type != "my.findings" || d.Account != "2" || d.ID != messages.NewID(kindGuardDuty, []byte("x"), []byte("2026-01-05T08:00:00Z")) {
		t.Errorf("%s", d.render())
	}
	if err := dec.Decode([]byte(ebRecord), &d); err != nil || d.Type != "cloud.aws.cloudwatch.ssm" || d.ID != messages.NewID(kindEventBridge, []byte("a")) {
		t.Errorf("%s, %v", d.render(), err)
	}
	c.AutoEventType, c.EventTypeDefault = false, "securityhub"
	if err := open(t, "eventbridge", nil, Deps{Tag: &c}).Decode(rec, &d); err != nil || d.Type != "my.findings" || d.Account != "2" {
		t.Errorf("without auto_event_type: %s, %v", d.render(), err)
	}
	c.EventTypeProcessorMapping["securityhub"] = tag.Processor{Format: "nonsense"}
	_, err := Open(t.Context(), "eventbridge", nil, Deps{Source: "feed", Types: NewTypes(0), Tag: &c})
	if fault.CodeOf(err) != "parse.bad_processor" {
		t.Errorf("an unknown format gives %v", err)
	}
}

// A format of one type that cannot be read from a source harms no event.
// covers: DEV-28, F-0
func TestProcessorThatCannotStart(t *testing.T) {
	dec := open(t, "eventbridge", nil, Deps{Tag: &tag.Config{
		AutoEventType: true, EventTypeProcessorMapping: map[string]tag.Processor{"ssm": {Format: "csv"}},
	}})
	if err := begin(dec, "", nil); err != nil {
		t.Fatalf("rows of csv without a header refuse all events: %v", err)
	}
	var d Doc
	if err := dec.Decode([]byte(ebRecord), &d); err != nil || d.Type != "cloud.aws.cloudwatch.ssm" || !d.HasID {
		t.Errorf("%s, %v", d.render(), err)
	}
}

// However many words documents bring up, the tables are bounded; words that nobody
// sees take no room.
func TestTablesAreBounded(t *testing.T) {
	for _, field := range []string{"", "eventSource"} {
		types := NewTypes(10)
		dec := open(t, "cloudtrail", nil, Deps{Types: types, Tag: &tag.Config{
			AutoEventType: true, EventTypeSourceFieldName: field, Tag: "my.{event_type}",
		}})
		var d Doc
		limited := 0
		for i := range 3 * maxWords {
			if err := dec.Decode(fmt.Appendf(nil, `{"eventSource":"svc%d"}`, i), &d); err != nil {
				t.Fatal(err)
			}
			if d.Odd&TypeLimit != 0 {
				limited++
			}
		}
		if types.Len() > 10 || limited < 3*maxWords-10 || d.Type != "my.other" {
			t.Errorf("field %q: %d types, %d limited, the last one %s", field, types.Len(), limited, d.Type)
		}
	}
	types := NewTypes(10)
	dec := open(t, "cloudtrail", nil, Deps{Types: types, Tag: &tag.Config{}})
	var d Doc
	for i := range 100 {
		if err := dec.Decode(fmt.Appendf(nil, `{"eventSource":"svc%d"}`, i), &d); err != nil || d.Odd&TypeLimit != 0 || d.Type != cloudTrailTable {
			t.Fatalf("%s, %v", d.render(), err)
		}
	}
	if types.Len() != 0 {
		t.Errorf("%d types for one table", types.Len())
	}
}

func TestTablesDoNotAllocate(t *testing.T) {
	for _, c := range []tag.Config{
		{}, {AutoEventType: true, Tag: "my.{event_type}"}, {AutoEventType: true, EventTypeSourceFieldName: "eventName", EventTypeExtractingRegex: "(.)"},
	} {
		dec := open(t, "cloudtrail", nil, Deps{Tag: &c})
		rec := record(1)
		var d Doc
		if n := testing.AllocsPerRun(100, func() {
			if err := dec.Decode(rec, &d); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%+v: %v allocations", c, n)
		}
	}
}
