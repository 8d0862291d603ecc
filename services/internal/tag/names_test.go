package tag

import (
	"slices"
	"strings"
	"testing"
)

// covers: DEV-24, DEV-25, DEV-26, DEV-27, DEV-29, DEV-30
func TestNames(t *testing.T) {
	const base, table = "cloud.aws.cloudtrail", "cloud.aws.cloudtrail.events"
	tests := []struct {
		name              string
		c                 Config
		base, table, word string
		single, want      string
	}{
		{"documented table", Config{}, base, table, "iam", "events", "cloud.aws.cloudtrail.iam"},
		{"told apart", Config{AutoEventType: true}, base, table, "iam", "", "cloud.aws.cloudtrail.iam"},
		{"always told apart", Config{}, "voiso", "", "user.user_added", "", "voiso.user.user_added"},
		{"sanitised", Config{AutoEventType: true}, base, table, "A b/c:é", "", "cloud.aws.cloudtrail.a_b_c___"},
		{"long", Config{AutoEventType: true}, base, table, strings.Repeat("x", 100), "", "cloud.aws.cloudtrail." + strings.Repeat("x", 64)},
		{"one event type", Config{AutoEventType: true}, "json.feed", "", "", "", "json.feed"},
		{"one event type and a template", Config{AutoEventType: true, Tag: "a.{event_type}", EventTypeDefault: "all"}, "json.feed", "", "", "", "a.all"},
		{"no base", Config{AutoEventType: true}, "", "", "a.b", "", "a.b"},
		{"large letters of the template stay", Config{Tag: "My.App.{event_type}"}, base, table, "IAM", "events", "My.App.iam"},
		{"behind the event type", Config{TagBase: "a.{account_id}.{event_type}.{region_id}.z.{format_version}"}, base, table, "iam", "events", "a.iam.z"},
		{"within a level", Config{Tag: "a.x-{event_type}-y.{region_id}"}, base, table, "iam", "events", "a.x-iam-y"},
		{"service", Config{Tag: "a.{service_name}.{event_type}"}, base, table, "iam", "events", "a.my_feed.iam"},
		{"dots of an event type", Config{Tag: "a.{event_type}"}, "voiso", "", "user.user_added", "", "a.user_user_added"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.c.Validate(); err != nil {
				t.Fatal(err)
			}
			n := NewNames(tt.c, "My.Feed", tt.base, tt.table)
			if n.Single() != tt.single || n.Table(tt.word) != tt.want {
				t.Errorf("single %q, table %q, want %q, %q", n.Single(), n.Table(tt.word), tt.single, tt.want)
			}
		})
	}
	if !NewNames(Config{AutoEventType: true}, "s", base, table).Own() || !NewNames(Config{}, "s", "voiso", "").Own() ||
		NewNames(Config{}, "s", base, table).Own() || NewNames(Config{Tag: "a"}, "s", "voiso", "").Own() {
		t.Error("Own is wrong")
	}
}

func TestNamesOfTypes(t *testing.T) {
	n := NewNames(Config{
		AutoEventType: true, EventTypeSourceFieldName: "a.b", EventTypeExtractingRegex: `^aws\.(.*)`, EventTypeDefault: "other",
		EventTypeFileRegexPatterns: []FilePattern{{"x", "^x/"}, {"y", "/"}},
		EventTypeProcessorMapping:  map[string]Processor{"iam": {Tagging: "my.security.{event_type}"}, "kms": {Format: "json"}},
	}, "s", "cloud.aws", "")
	if !slices.Equal(n.Field(), []string{"a", "b"}) || !slices.Equal(n.Formats(), []string{"json"}) {
		t.Errorf("field %v, formats %v", n.Field(), n.Formats())
	}
	for in, want := range map[string]string{"aws.s3": "s3", "aws.": "other", "": "other", "gcp.x": "other"} {
		if got := n.FromField(in); got != want {
			t.Errorf("field %q: %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{"x/a": "x", "z/a": "y", "a": "other"} {
		if got := n.FromKey(in); got != want {
			t.Errorf("key %q: %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{"IAM": "my.security.iam", "kms": "cloud.aws.kms"} {
		if got := n.Table(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	if n.Format("KMS") != "json" || n.Format("iam") != "" || n.Word("cloud.aws.a.b") != "a.b" || n.Word("cloud.aws") != "" {
		t.Error("Format or Word is wrong")
	}
}

// The tag of an event, from its table and its columns.
// covers: DEV-26, DEV-80, DEV-28, DEV-31, F-22
func TestResolver(t *testing.T) {
	const base = "cloud.aws.cloudtrail.{event_type}.{account_id}.{region_id}.{format_version}.{environment}"
	trail := func(word string) Event {
		return Event{Table: "cloud.aws.cloudtrail." + word, Account: "123456789012", Region: "us-east-1"}
	}
	tests := []struct {
		name string
		c    Config
		e    Event
		want string
	}{
		{"as the collector shows it", Config{Environment: "prod-1"}, trail("iam"), "cloud.aws.cloudtrail.iam.123456789012.us-east-1.1.prod-1"},
		{"no environment, no dot", Config{}, Event{Table: "cloud.aws.cloudwatch.metrics", Account: "123456789012", Region: "us-east-2"}, "cloud.aws.cloudwatch.metrics.123456789012.us-east-2.1"},
		{"nothing known", Config{}, Event{Table: "sig.cisco.umbrella.dns"}, "sig.cisco.umbrella.dns.unknown.unknown.1"},
		{"version", Config{}, Event{Table: "a.b", Account: "1", Region: "r", Version: "ocsf"}, "a.b.1.r.ocsf"},
		{"tag_base is the same", Config{TagBase: base, Environment: "prod-1"}, trail("s3"), "cloud.aws.cloudtrail.s3.123456789012.us-east-1.1.prod-1"},
		{"tag_base without its environment", Config{TagBase: base}, trail("s3"), "cloud.aws.cloudtrail.s3.123456789012.us-east-1.1"},
		{"another order", Config{TagBase: "{region_id}.my.{event_type}.x.{account_id}.v{format_version}.{environment}-{service_name}", Environment: "e"}, Event{Table: "my.iam.x", Account: "1", Region: "r"}, "r.my.iam.x.1.v1.e-feed"},
		{"tag is all", Config{Tag: "my.app.trail", Environment: "prod-1"}, Event{Table: "my.app.trail", Account: "1"}, "my.app.trail"},
		{"tag with a placeholder", Config{Tag: "my.app.{event_type}.{account_id}"}, Event{Table: "my.app.iam", Account: "Tenant A"}, "my.app.iam.tenant_a"},
		{"values are sanitised", Config{}, Event{Table: "a", Account: "Call.Center é", Region: "EU WEST"}, "a.call_center___.eu_west.1"},
		{"tag of one type", Config{TagBase: base, EventTypeProcessorMapping: map[string]Processor{"iam": {Tagging: "my.security.{event_type}.{region_id}"}}}, Event{Table: "my.security.iam", Region: "r"}, "my.security.iam.r"},
		{"tag of one type, whole", Config{EventTypeProcessorMapping: map[string]Processor{"iam": {Tagging: "my.security"}}}, Event{Table: "my.security", Region: "r"}, "my.security"},
		{"the others of its source", Config{EventTypeProcessorMapping: map[string]Processor{"iam": {Tagging: "my.security"}}}, trail("s3"), "cloud.aws.cloudtrail.s3.123456789012.us-east-1.1"},
		{"a table that a route has made", Config{Tag: "my.app.{event_type}"}, Event{Table: "other.table", Account: "1", Region: "r"}, "other.table.1.r.1"},
		{"a table with more levels", Config{Tag: "my.{event_type}"}, Event{Table: "my.a.b", Account: "1", Region: "r"}, "my.a.b.1.r.1"},
		{"a hostile table", Config{}, Event{Table: "a..B c", Account: "1", Region: "r"}, "a.unknown.B_c.1.r.1"},
		{"no table", Config{}, Event{Account: "1", Region: "r"}, "unknown.1.r.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.c.Validate(); err != nil {
				t.Fatal(err)
			}
			if got := string(NewResolver(tt.c, "feed").AppendTag([]byte("x"), tt.e)); got != "x"+tt.want {
				t.Errorf("%s, want %s", got[1:], tt.want)
			}
		})
	}
}

// What parse names and a destination makes of it belong together: the tag begins
// with the levels of the table in their order, all levels are legal, and the account
// never gets into the table.
func FuzzTag(f *testing.F) {
	f.Add("a.{event_type}.{account_id}.{region_id}.{format_version}.{environment}", "iam", "123456789012", "us-east-1", "prod-1")
	f.Add("{region_id}.{event_type}", "A b", "", "", "")
	f.Add("x", "", "é", "r.r", "")
	f.Add("", "a.b", "1", "2", "e")
	f.Fuzz(func(t *testing.T, form, word, account, region, environment string) {
		c := Config{Tag: form, Environment: environment, AutoEventType: true}
		if c.Validate() != nil {
			return
		}
		const mark = "zz9account9zz"
		table := NewNames(c, "feed", "cloud.aws.x", "").Table(word)
		got := string(NewResolver(c, "feed").AppendTag(nil, Event{Table: table, Account: mark + account, Region: region}))
		levels := strings.Split(got, ".")
		for _, l := range levels {
			if l == "" || strings.ContainsFunc(l, func(r rune) bool { return r > 0x7f || !literal(byte(r)) }) {
				t.Fatalf("tag %q has the level %q", got, l)
			}
		}
		if strings.Contains(table, mark) && !strings.Contains(form+word, mark) {
			t.Fatalf("table %q holds the account", table)
		}
		if strings.Contains(form, "{account_id}") || form == "" {
			if !strings.Contains(got, mark) {
				t.Fatalf("tag %q of %q lacks the account", got, form)
			}
		}
		at := 0
		for _, want := range strings.Split(table, ".") {
			for at < len(levels) && levels[at] != want {
				at++
			}
			if at == len(levels) {
				t.Fatalf("tag %q lacks %q of the table %q", got, want, table)
			}
			at++
		}
	})
}

func BenchmarkAppendTag(b *testing.B) {
	r := NewResolver(Config{TagBase: "my.{event_type}.{account_id}.{region_id}.{format_version}.{environment}", Environment: "prod-1"}, "feed")
	e := Event{Table: "my.iam", Account: "123456789012", Region: "us-east-1"}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		if buf = r.AppendTag(buf[:0], e); len(buf) != len("my.iam.123456789012.us-east-1.1.prod-1") {
			b.Fatalf("%s", buf)
		}
	}
}
