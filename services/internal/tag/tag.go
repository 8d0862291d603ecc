// Package tag names the tables that events land in, as Devo's collector does.
//
//	word of the event type ──▶ table (penstock's event type) ──▶ tag
//
// A tag has dotted levels: the table, then what is different for each event, e.g.
// cloud.aws.cloudtrail.iam and .123456789012.us-east-1.1.prod-1. The event type of
// an event is its table, so there are only as many as there are tables. parse asks
// [Names] for it; a destination that needs the whole tag makes it at delivery with
// a [Resolver], of the event type and the columns.
//
// In:     the [Config] of a source.
// Out:    tables and tags.
// Errors: those of [Config.Validate].
// State:  none. Everything may be used concurrently.
// Source: features DEV-24 to DEV-31, DEV-64 to DEV-67, DEV-80, DEV-81; formats F-22.
package tag

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"

	"github.com/penstock/penstock/services/internal/config"
)

// Config names the tables of one source. The zero value gives the table that is
// documented for each format.
type Config struct {
	// AutoEventType tells events apart: true makes a table for each event type, e.g.
	// cloud.aws.cloudtrail.iam; false puts all into the one of the format, e.g.
	// cloud.aws.cloudtrail.events. Formats whose tables are fixed do not change.
	AutoEventType bool `yaml:"auto_event_type"`
	// Tag replaces tag_base and may leave out placeholders: without {event_type}
	// there is one table, without the others nothing stands behind it.
	Tag string `yaml:"tag"`
	// TagBase is the form of the tag. It must have {event_type}, {account_id},
	// {region_id} and {format_version}, and may have {environment} and
	// {service_name}. Default: the table of the format, then account, region,
	// version and environment.
	TagBase string `yaml:"tag_base"`
	// Environment ends the tag, e.g. prod-1. It is no part of the table.
	Environment string `yaml:"environment"`
	// EventTypeDefault is the event type when auto_event_type is false, and when the
	// rules below find none.
	EventTypeDefault string `yaml:"event_type_default"`
	// EventTypeSourceFieldName is the path of the field that the event type is taken
	// from, keys with dots between them. It needs auto_event_type.
	EventTypeSourceFieldName string `yaml:"event_type_source_field_name"`
	// EventTypeExtractingRegex has one group, which is the event type within the
	// field's value. Without it the whole value is.
	EventTypeExtractingRegex string `yaml:"event_type_extracting_regex"`
	// EventTypeFileRegexPatterns tell the event type by the key of the object. The
	// first that matches holds. They need auto_event_type.
	EventTypeFileRegexPatterns []FilePattern `yaml:"event_type_file_regex_patterns"`
	// EventTypeProcessorMapping treats single event types in another way.
	EventTypeProcessorMapping map[string]Processor `yaml:"event_type_processor_mapping"`
	// IsAWSService says that events have an account and a region. Set it to false
	// for others: then tag_base needs neither.
	IsAWSService *bool `yaml:"is_aws_service"`
}

// FilePattern gives objects an event type.
type FilePattern struct {
	// EventType of the objects.
	EventType string `yaml:"event_type"`
	// Regex that their keys match somewhere.
	Regex string `yaml:"regex"`
}

// Processor treats the events of one type.
type Processor struct {
	// Format that reads these events, instead of the source's.
	Format string `yaml:"format"`
	// Tagging is the form of their tag, as tag has it.
	Tagging string `yaml:"tagging"`
}

// aws tells whether account and region belong into a tag_base.
func (c *Config) aws() bool { return c.IsAWSService == nil || *c.IsAWSService }

// Validate reports every problem, each with the key to change.
// Source: features DEV-25, DEV-151 to DEV-159.
func (c Config) Validate() error {
	var p config.Problems
	form(&p, "tag", c.Tag, nil)
	need := []string{"event_type", "account_id", "region_id", "format_version"}
	if !c.aws() {
		need = []string{"event_type", "format_version"}
	}
	form(&p, "tag_base", c.TagBase, need)
	if c.Tag != "" && c.TagBase != "" {
		p.Add("tag_base", "tag replaces it", "remove one of tag and tag_base")
	}
	word(&p, "environment", c.Environment)
	word(&p, "event_type_default", c.EventTypeDefault)
	p.Need(c.EventTypeSourceFieldName == "" || c.AutoEventType, "event_type_source_field_name", "set auto_event_type: true, which it needs")
	p.Need(strings.Count(c.EventTypeSourceFieldName, ".") < maxSteps, "event_type_source_field_name", "use a path of at most 16 keys")
	if c.EventTypeExtractingRegex != "" {
		p.Need(c.EventTypeSourceFieldName != "", "event_type_source_field_name", "name the field that event_type_extracting_regex is for, e.g. source")
		if re := pattern(&p, "event_type_extracting_regex", c.EventTypeExtractingRegex); re != nil {
			p.Need(re.NumSubexp() >= 1, "event_type_extracting_regex", `put what is the event type into a group, e.g. aws\.(.+)`)
		}
	}
	p.Need(len(c.EventTypeFileRegexPatterns) == 0 || c.AutoEventType, "event_type_file_regex_patterns", "set auto_event_type: true, which they need")
	for i, f := range c.EventTypeFileRegexPatterns {
		key := fmt.Sprintf("event_type_file_regex_patterns[%d].", i)
		p.Need(f.EventType != "", key+"event_type", "name the event type, e.g. flow")
		word(&p, key+"event_type", f.EventType)
		p.Need(f.Regex != "", key+"regex", "give a regular expression for keys, e.g. /vpcflowlogs/")
		pattern(&p, key+"regex", f.Regex)
	}
	p.Need(c.EventTypeProcessorMapping == nil || len(c.EventTypeProcessorMapping) > 0, "event_type_processor_mapping", "list event types, or remove the key")
	for name, m := range c.EventTypeProcessorMapping {
		key := "event_type_processor_mapping." + name
		word(&p, key, name)
		p.Need(m.Format != "" || m.Tagging != "", key, "set format, tagging or both")
		form(&p, key+".tagging", m.Tagging, nil)
	}
	return p.Err()
}

// maxSteps bounds the keys of a path; it is that of the formats.
const maxSteps = 16

// word checks one level of a tag.
func word(p *config.Problems, key, v string) {
	p.Need(v == "" || v == string(appendWord(nil, v)) && len(v) <= maxWord, key, "use a-z, 0-9, - and _, at most 64 of them")
}

// pattern checks a regular expression, and says where it is wrong.
func pattern(p *config.Problems, key, expr string) *regexp.Regexp {
	re, err := regexp.Compile(expr)
	if err == nil {
		return re
	}
	why := err.Error()
	if bad, ok := err.(*syntax.Error); ok { //nolint:errorlint // Compile returns it as it is
		at := max(0, strings.LastIndex(expr, bad.Expr))
		why = fmt.Sprintf("%s at character %d", bad.Code, at+1)
	}
	p.Add(key, "no regular expression: "+why, "write it in the syntax of RE2")
	return nil
}

// form checks a template.
func form(p *config.Problems, key, v string, need []string) {
	if v == "" {
		return
	}
	t, err := parse(v)
	if err != nil {
		p.Add(key, err.Error(), "write dotted levels of letters, digits, - and _; the placeholders are {"+strings.Join(placeholders[:], "}, {")+"}")
		return
	}
	for _, name := range need {
		p.Need(t.count(name) > 0, key, "add {"+name+"}: {"+strings.Join(need, "}, {")+"} must all be there")
	}
	p.Need(t.count("event_type") <= 1, key, "use {event_type} once")
	p.Need(!t.hides("event_type"), key, "put {event_type} into a level without account, region, version and environment")
	p.Need(t.hasTable(), key, "begin with the table: there must be a level without account, region, version and environment")
}

// form is the template of the source, "" for those of the formats.
func (c *Config) form() string {
	if c.Tag != "" {
		return c.Tag
	}
	return c.TagBase
}
