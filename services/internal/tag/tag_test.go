package tag

import (
	"strings"
	"testing"

	"github.com/penstock/penstock/services/internal/config"
)

func no() *bool { f := false; return &f }

// covers: DEV-25, DEV-27, DEV-31, DEV-66, DEV-67, DEV-151, DEV-156, DEV-157, DEV-159
func TestValidate(t *testing.T) {
	const all = "a.{event_type}.{account_id}.{region_id}.{format_version}"
	tests := []struct {
		name string
		c    Config
		want []string // keys, and what is said about them
	}{
		{"nothing", Config{}, nil},
		{"everything", Config{
			AutoEventType: true, TagBase: all + ".{environment}.{service_name}", Environment: "prod-1", EventTypeDefault: "other",
			EventTypeSourceFieldName: "a.b", EventTypeExtractingRegex: `aws\.(.+)`,
			EventTypeFileRegexPatterns: []FilePattern{{"flow", "/vpcflowlogs/"}},
			EventTypeProcessorMapping:  map[string]Processor{"iam": {Tagging: "my.security", Format: "json"}},
		}, nil},
		{"tag without placeholders", Config{Tag: "my.App_1.x-y"}, nil},
		{"tag with some", Config{Tag: "my.{event_type}.{environment}"}, nil},
		{"placeholders within a level", Config{TagBase: "a.x-{event_type}.{account_id}-{region_id}.v{format_version}"}, nil},
		{"each that is missing", Config{TagBase: "a.b"}, []string{"tag_base: add {event_type}", "tag_base: add {account_id}", "tag_base: add {region_id}", "tag_base: add {format_version}"}},
		{"one that is missing", Config{TagBase: "a.{event_type}.{account_id}.{format_version}"}, []string{"add {region_id}"}},
		{"not of AWS", Config{TagBase: "a.{event_type}.{format_version}", IsAWSService: no()}, nil},
		{"not of AWS, but a version", Config{TagBase: "a.{event_type}", IsAWSService: no()}, []string{"add {format_version}"}},
		{"unknown placeholder", Config{TagBase: all + ".{zone}"}, []string{"tag_base: there is no placeholder {zone}"}},
		{"empty placeholder", Config{Tag: "a.{}"}, []string{"tag: there is no placeholder {}"}},
		{"not closed", Config{Tag: "a.{event_type"}, []string{"tag: a placeholder is not closed"}},
		{"never opened", Config{Tag: "a.event_type}"}, []string{`tag: '}' is not allowed`}},
		{"empty level", Config{Tag: "a..b"}, []string{"tag: a level between two dots is empty"}},
		{"dot at the end", Config{TagBase: all + "."}, []string{"tag_base: a level between two dots is empty"}},
		{"space", Config{Tag: "a b"}, []string{`tag: ' ' is not allowed`}},
		{"wildcard", Config{Tag: "a.>"}, []string{`tag: '>' is not allowed`}},
		{"too long", Config{Tag: strings.Repeat("a", 513)}, []string{"tag: it has more than 512"}},
		{"event type twice", Config{Tag: "a.{event_type}.{event_type}"}, []string{"tag: use {event_type} once"}},
		{"event type in a level of the place", Config{Tag: "a.{event_type}-{region_id}"}, []string{"tag: put {event_type} into a level without"}},
		{"no table", Config{Tag: "{account_id}.{region_id}"}, []string{"tag: begin with the table"}},
		{"tag and tag_base", Config{Tag: "a", TagBase: all}, []string{"tag_base: tag replaces it"}},
		{"environment", Config{Environment: "Prod 1"}, []string{"environment: use a-z"}},
		{"default with a dot", Config{EventTypeDefault: "a.b"}, []string{"event_type_default: use a-z"}},
		{"field without auto_event_type", Config{EventTypeSourceFieldName: "a"}, []string{"event_type_source_field_name: set auto_event_type"}},
		{"regex without a field", Config{AutoEventType: true, EventTypeExtractingRegex: "(a)"}, []string{"event_type_source_field_name: name the field"}},
		{"regex without a group", Config{AutoEventType: true, EventTypeSourceFieldName: "a", EventTypeExtractingRegex: "a"}, []string{"event_type_extracting_regex: put what is the event type into a group"}},
		{"broken regex", Config{AutoEventType: true, EventTypeSourceFieldName: "a", EventTypeExtractingRegex: `aws\.(.*)[z-a]`}, []string{"event_type_extracting_regex: no regular expression: invalid character class range at character 11"}},
		{"file patterns", Config{EventTypeFileRegexPatterns: []FilePattern{{"", "("}, {"A", ""}}}, []string{
			"event_type_file_regex_patterns: set auto_event_type", "event_type_file_regex_patterns[0].event_type: name the event type",
			"event_type_file_regex_patterns[0].regex: no regular expression", "event_type_file_regex_patterns[1].event_type: use a-z", "event_type_file_regex_patterns[1].regex: give a regular",
		}},
		{"empty mapping", Config{EventTypeProcessorMapping: map[string]Processor{}}, []string{"event_type_processor_mapping: list event types"}},
		{"mapping", Config{EventTypeProcessorMapping: map[string]Processor{"A": {}, "b": {Tagging: "{x}"}}}, []string{
			"event_type_processor_mapping.A: use a-z", "event_type_processor_mapping.A: set format, tagging or both", "event_type_processor_mapping.b.tagging: there is no placeholder {x}",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.c.Validate()
			if (err == nil) != (len(tt.want) == 0) {
				t.Fatalf("got %v", err)
			}
			for _, want := range tt.want {
				key, says, _ := strings.Cut(want, ": ")
				if says == "" {
					key, says = "", want
				}
				found := false
				for line := range strings.Lines(err.Error()) {
					found = found || strings.HasPrefix(line, key+": ") && strings.Contains(line, says) || key == "" && strings.Contains(line, says)
				}
				if !found {
					t.Errorf("got %v\nwant %s", err, want)
				}
			}
		})
	}
}

// The keys are those that users of the collector know.
// covers: DEV-63, DEV-66, DEV-67, DEV-80, DEV-81
func TestConfigFromFile(t *testing.T) {
	var c Config
	text := `
auto_event_type: true
tag_base: "my.{event_type}.{account_id}.{region_id}.{format_version}.{environment}"
environment: prod-1
event_type_default: other
event_type_source_field_name: source
event_type_extracting_regex: 'aws\.(.+)'
event_type_file_regex_patterns:
  - {event_type: flow, regex: /vpcflowlogs/}
event_type_processor_mapping:
  iam: {tagging: my.security}
is_aws_service: true
`
	if err := config.Parse("x.yaml", []byte(text), &c); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"auto_event_type: sure", "tag: [a]", "tag: 'a b'"} {
		if err := config.Parse("x.yaml", []byte(text), &Config{}); err == nil || !strings.Contains(err.Error(), "x.yaml:1") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
