package devo

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// The classes of the collector's errors. Those of definitions are the vendor's to
// mend there; here they are the user's, who wrote the override.
const (
	moduleDefinition  = "AwsModuleDefinitionError"
	serviceDefinition = "AwsServiceDefinitionException"
	inputConfig       = "AwsInputConfigurationError"
	serviceConfig     = "AwsServiceConfigurationError"
	queueTrouble      = "AwsQueueException"
)

// check is what a rule demands of a value. Where the collector's text names
// another type than it takes, ours names the right one.
type check uint8

const (
	must        check = iota // there, and not empty
	asMap                    // a mapping
	asText                   // text
	asBool                   // true or false
	asInt                    // a whole number
	asList                   // a list
	asTexts                  // text or a list
	notNegative              // 0 or more
	positive                 // more than 0
	asRegex                  // a regular expression
	required                 // a template with the placeholders it needs
	allowed                  // a template without others
	notEmpty                 // a mapping with something in it
	asTime                   // a time
	asPeriod                 // a legal period
	inputID                  // a template with {input_id}
	reachable                // a queue that can be read: found at run time
)

// section says in which services a rule holds.
type section string

const (
	common  section = "C" // events in the messages of a queue
	objects section = "S" // objects announced in a queue
	audit   section = "A" // CloudTrail's API
	logs    section = "L" // CloudWatch Logs
	metrics section = "M" // CloudWatch metrics
)

// rule is one error of the collector. Its number in this table is that of the row
// DEV-E of the features, and for ever.
type rule struct {
	sections string
	class    string
	number   int
	key      string // below module_properties where it begins with a dot
	demands  check
}

// rules are the collector's errors, from 1. Source: features, appendix A.
var rules = [...]rule{
	1:  {"CSAL", moduleDefinition, 1, ".", must},
	2:  {"CSAL", moduleDefinition, 2, ".", asMap},
	3:  {"CAL", moduleDefinition, 3, ".tag_base", must},
	4:  {"CAL", moduleDefinition, 4, ".tag_base", asText},
	5:  {"CA", moduleDefinition, 5, ".tag_base", required},
	6:  {"CAL", moduleDefinition, 6, ".tag_base", allowed},
	7:  {"CA", moduleDefinition, 7, ".event_type_default", must},
	8:  {"CA", moduleDefinition, 8, ".event_type_default", asText},
	9:  {"C", moduleDefinition, 26, ".event_type_source_field_name", must},
	10: {"C", moduleDefinition, 27, ".event_type_source_field_name", asText},
	11: {"C", moduleDefinition, 26, ".event_type_extracting_regex", must},
	12: {"C", moduleDefinition, 27, ".event_type_extracting_regex", asText},
	13: {"C", moduleDefinition, 5, ".event_type_extracting_regex", asRegex},
	14: {"C", moduleDefinition, 7, ".enable_auto_event_type", must},
	15: {"C", moduleDefinition, 8, ".enable_auto_event_type", asBool},
	16: {"C", moduleDefinition, 9, ".enable_auto_event_type_config_key", must},
	17: {"C", moduleDefinition, 10, ".enable_auto_event_type_config_key", asText},
	18: {"C", moduleDefinition, 31, ".event_type_processor_mapping", asMap},
	19: {"C", moduleDefinition, 32, ".event_type_processor_mapping", notEmpty},
	20: {"C", moduleDefinition, 33, ".event_type_processor_mapping.*.processor_class", must},
	21: {"C", moduleDefinition, 34, ".event_type_processor_mapping.*.processor_class", asText},
	22: {"C", moduleDefinition, 35, ".event_type_processor_mapping.*.tagging", must},
	23: {"C", moduleDefinition, 36, ".event_type_processor_mapping.*.tagging", asText},
	24: {"CS", moduleDefinition, 10, ".sqs_queue_custom_name_key", must},
	25: {"CS", moduleDefinition, 11, ".sqs_queue_custom_name_key", asText},
	26: {"CS", moduleDefinition, 12, ".sqs_queue_required_default_name", asBool},
	27: {"CS", moduleDefinition, 13, ".sqs_queue_default_name", must},
	28: {"CS", moduleDefinition, 14, ".sqs_queue_default_name", asText},
	29: {"CS", moduleDefinition, 15, ".sqs_queue_default_name", inputID},
	30: {"CSALM", inputConfig, 1, "inputs", must},
	31: {"CSAL", inputConfig, 2, "inputs", asMap},
	32: {"CSALM", serviceConfig, 1, "services", must},
	33: {"CSAL", serviceConfig, 2, "services", asMap},
	34: {"CSAL", serviceConfig, 3, "tag", asText},
	35: {"CS", serviceConfig, 4, queueKey, must},
	36: {"CS", serviceConfig, 5, queueKey, asText},
	37: {"CS", serviceConfig, 6, queueKey, asText},
	38: {"CS", serviceConfig, 7, "auto_event_type", asBool},
	39: {"S", moduleDefinition, 10, ".start_time_regex", must},
	40: {"S", moduleDefinition, 11, ".start_time_regex", asText},
	41: {"S", moduleDefinition, 12, ".start_time_regex", asRegex},
	42: {"S", moduleDefinition, 21, ".sqs_s3_processor_properties", must},
	43: {"S", moduleDefinition, 22, ".sqs_s3_processor_properties", asMap},
	44: {"S", moduleDefinition, 26, ".sqs_s3_processor_properties.class_name", must},
	45: {"S", moduleDefinition, 27, ".sqs_s3_processor_properties.class_name", asText},
	46: {"S", serviceConfig, 7, "start_time", asText},
	47: {"S", serviceConfig, 8, "start_time", asTime},
	48: {"S", queueTrouble, 0, queueKey, reachable},
	49: {"A", moduleDefinition, 9, ".enable_auto_event_type", must},
	50: {"A", moduleDefinition, 10, ".enable_auto_event_type", asBool},
	51: {"A", moduleDefinition, 11, ".enable_auto_event_type_config_key", must},
	52: {"A", moduleDefinition, 12, ".enable_auto_event_type_config_key", asText},
	53: {"A", moduleDefinition, 13, ".start_time_regex", must},
	54: {"A", moduleDefinition, 14, ".start_time_regex", asText},
	55: {"A", moduleDefinition, 15, ".start_time_regex", asRegex},
	56: {"A", moduleDefinition, 16, ".gap_until_now_in_minutes", must},
	57: {"A", moduleDefinition, 17, ".gap_until_now_in_minutes", asInt},
	58: {"A", moduleDefinition, 18, ".gap_until_now_in_minutes", notNegative},
	59: {"A", moduleDefinition, 19, ".time_slot_in_hours", must},
	60: {"A", moduleDefinition, 20, ".time_slot_in_hours", asInt},
	61: {"A", moduleDefinition, 21, ".time_slot_in_hours", positive},
	62: {"A", moduleDefinition, 22, ".sources", must},
	63: {"A", moduleDefinition, 23, ".sources", asTexts},
	64: {"A", serviceConfig, 4, "sources", asTexts},
	65: {"A", serviceConfig, 5, "gap_until_now_in_minutes", asInt},
	66: {"A", serviceConfig, 6, "start_time", asText},
	67: {"A", serviceConfig, 7, "start_time", asTime},
	68: {"A", serviceConfig, 8, "drop_event_names", asList},
	69: {"A", serviceConfig, 9, "auto_event_type", asBool},
	70: {"A", serviceConfig, 10, "time_slot_in_hours", asInt},
	71: {"L", inputConfig, 0, "requests_per_second", must},
	72: {"L", serviceDefinition, 5, ".tag_base", required},
	73: {"L", moduleDefinition, 7, ".start_time_regex", must},
	74: {"L", moduleDefinition, 8, ".start_time_regex", asText},
	75: {"L", moduleDefinition, 9, ".start_time_regex", asRegex},
	76: {"L", serviceConfig, 43, "use_first_optimized_retrieval", asBool},
	77: {"L", serviceConfig, 1, "log_group", must},
	78: {"L", serviceConfig, 1, "log_group", asText},
	79: {"L", serviceConfig, 2, "start_time", asText},
	80: {"L", serviceConfig, 1, "start_time", asTime},
	81: {"M", serviceDefinition, 1, ".", must},
	82: {"M", serviceDefinition, 2, ".", asMap},
	83: {"M", serviceDefinition, 5, ".tag_base", must},
	84: {"M", serviceDefinition, 6, ".tag_base", asText},
	85: {"M", serviceDefinition, 1, ".metric_namespace", must},
	86: {"M", serviceDefinition, 1, ".metric_namespace", asList},
	87: {"M", inputConfig, 1, "inputs", asMap},
	88: {"M", serviceConfig, 8, "services", asMap},
	89: {"M", serviceConfig, 8, "tag", asText},
	90: {"M", serviceConfig, 0, "metric_namespaces", must},
	91: {"M", serviceConfig, 0, "metric_namespaces", asList},
	92: {"M", serviceConfig, 1, "request_period_in_seconds", asPeriod},
	93: {"M", serviceConfig, 4, "start_time", asText},
	94: {"M", serviceConfig, 4, "start_time", asTime},
}

// queueKey stands for whatever key names the queue.
const queueKey = "sqs_queue_name"

// optional are keys of users that a service may leave out: the collector demands
// those that are not here.
var optional = []string{"tag", "auto_event_type", "start_time", "sources", "gap_until_now_in_minutes", "drop_event_names", "time_slot_in_hours", "use_first_optimized_retrieval", "request_period_in_seconds"}

// code is ours: unique, where the collector's numbers are not.
func code(number int) string { return fmt.Sprintf("PSK-%d", 1000+number) }

// add reports that rule number is broken at path. why is what a parser said.
func (r *reader) add(number, line int, path string, why ...string) {
	d := &rules[number]
	text, fix := d.says(path)
	if len(why) > 0 {
		text += ": " + strings.Join(why, ", ")
	}
	internal := d.class == moduleDefinition || d.class == serviceDefinition
	if internal {
		fix += "; it is in a definition, so leave module_properties out unless you know it well"
	}
	r.problems = append(r.problems, Problem{Code: code(number), Class: d.class, Number: d.number, Line: line, Text: text, Fix: fix, Internal: internal})
}

// says is what the collector would have printed, and what to do about it.
func (d *rule) says(path string) (text, fix string) {
	property := `"` + path + `" property `
	switch d.demands {
	case must:
		return `"` + path + `" mandatory property is missing or empty`, "add it" + example(d.key)
	case asMap:
		return property + "must be a dictionary", "write keys and values below it"
	case asText:
		return property + "must be a string", "write text" + example(d.key)
	case asBool:
		return property + "must be a boolean", "write true or false"
	case asInt:
		return property + "must be an integer", "write a whole number" + example(d.key)
	case asList:
		return property + "must be a list", "write a list" + example(d.key)
	case asTexts:
		return property + `exists but with wrong format, only "str" or "list" values are allowed`, "write text or a list" + example(d.key)
	case notNegative:
		return property + "can not be a negative value", "use 0 or more"
	case positive:
		return property + "can not be 0 or a negative value", "use 1 or more"
	case asRegex:
		return property + "is not a valid regular expression", "mend the expression"
	case required:
		return property + "must have {event_type}, {account_id}, {region_id} and {format_version} placeholders", "add those that are missing"
	case allowed:
		return property + `is containing some unexpected placeholders, the allowed ones are: ["event_type", "account_id", "region_id", "format_version", "environment", "service_name"]`, "take the others out"
	case notEmpty:
		return `"` + path + `" exists but it is empty.`, "fill it, or leave it out"
	case asTime:
		return `The property "` + path + `" from configuration is having a wrong format, expected: YYYY-mm-ddTHH:MM:SSZ`, "write a time as 2026-01-05T00:00:00Z"
	case asPeriod:
		return `When a service uses "metrics" type, the property "request_period_in_seconds" must have one of the following values: 1, 5, 10, 30, 60, or any multiple of 60`, "use one of them"
	case inputID:
		return property + "must have {input_id} placeholder", "add {input_id}"
	case reachable:
		return `Queue "` + path + `" is not available`, "check its name, region and policy with penstock doctor"
	}
	return "", ""
}

// example shows what a value may look like.
func example(key string) string {
	values := map[string]string{
		"inputs": "inputs: {aws: {credentials: …, services: …}}", "services": "services: {service-events-all: {regions: [eu-west-1]}}",
		queueKey: "cloudwatch_sqs_queue_name: events.fifo", "log_group": "log_group: /aws/lambda/example", "metric_namespaces": "metric_namespaces: [AWS/EC2]",
		"requests_per_second": "requests_per_second: 5", "start_time": `start_time: "2026-01-05T00:00:00Z"`, "sources": "sources: [iam.amazonaws.com]",
		"drop_event_names": "drop_event_names: [Decrypt]", "time_slot_in_hours": "time_slot_in_hours: 1", "gap_until_now_in_minutes": "gap_until_now_in_minutes: 15",
	}
	if v, ok := values[key]; ok {
		return ", e.g. " + v
	}
	return ""
}

// section tells which rules hold for one type of a service, "" for none.
func (s *Service) section(kind string) section {
	t, ok := s.target(kind)
	switch {
	case !ok:
		return ""
	case t.source == "cloudtrail_api":
		return audit
	case t.source == "cloudwatch_metrics":
		return metrics
	case t.source == "cloudwatch_logs":
		return logs
	case t.source != "sqs":
		return ""
	case t.format == "eventbridge" || t.format == "securityhub":
		return common
	}
	return objects
}

// service checks one service by the rules of its sections.
func (r *reader) service(in *Input, s *Service, at string) {
	var done []int
	for _, kind := range s.types() {
		where := s.section(kind)
		if where == "" {
			continue
		}
		for n := range rules {
			d := &rules[n]
			if d.class == "" || !strings.Contains(d.sections, string(where)) || slices.Contains(done, n) {
				continue
			}
			done = append(done, n)
			r.rule(in, s, n, at)
		}
	}
}

// rule checks one rule.
func (r *reader) rule(in *Input, s *Service, n int, at string) {
	d := &rules[n]
	switch {
	case d.key == "inputs" || d.key == "services" || n == 37 || d.demands == reachable:
		return // checked elsewhere; 37 says again what 36 says
	case d.key == "requests_per_second":
		if in.RequestsPerSecond == "" && absent(s.get(d.key)) {
			r.add(n, s.Line, "requests_per_second")
		}
		return
	case strings.HasPrefix(d.key, "."):
		r.definition(s, n, at)
		return
	}
	key, value := d.key, (*yaml.Node)(nil)
	if key == queueKey {
		if found, v := s.queue(); found != "" {
			key, value = found, v
		}
	} else {
		value = s.get(key)
	}
	if key == "log_group" && value == nil {
		value = s.get("log_groups")
	}
	if value == nil && (d.demands != must || slices.Contains(optional, key)) {
		return
	}
	r.value(n, value, s.node, at+"."+key, s.Line)
}

// definition checks a rule about module_properties, where a service has them.
func (r *reader) definition(s *Service, n int, at string) {
	properties := s.get("module_properties")
	if properties == nil {
		return
	}
	at += ".module_properties"
	path := strings.Split(strings.TrimPrefix(rules[n].key, "."), ".")
	if path[0] == "" {
		r.value(n, properties, s.node, at, s.Line)
		return
	}
	if !isMap(properties) || len(properties.Content) == 0 {
		return // told by another rule
	}
	r.below(n, properties, at, path)
}

// below looks for the value at path, over every key at a *.
func (r *reader) below(n int, parent *yaml.Node, at string, path []string) {
	if path[0] == "*" {
		for k, v := range pairs(parent) {
			if isMap(v) {
				r.below(n, v, at+"."+k.Value, path[1:])
			}
		}
		return
	}
	value := get(parent, path[0])
	at += "." + path[0]
	if len(path) > 1 {
		if value != nil && isMap(value) {
			r.below(n, value, at, path[1:])
		}
		return
	}
	mapped := path[0] == "event_type_processor_mapping"
	if value == nil && (rules[n].demands != must || mapped) {
		return // optional, or told by another rule
	}
	r.value(n, value, parent, at, parent.Line)
}

// value checks one value. Empty ones are only told of as missing.
func (r *reader) value(n int, value, parent *yaml.Node, at string, fallback int) {
	d := &rules[n]
	where := fallback
	if value != nil {
		where = line(value, parent)
	}
	if d.demands == must {
		if absent(value) {
			r.add(n, where, at)
		}
		return
	}
	if d.demands == notEmpty {
		if value != nil && isMap(value) && len(value.Content) == 0 {
			r.add(n, where, at)
		}
		return
	}
	if absent(value) {
		return
	}
	if ok, why := d.holds(value); !ok {
		if why != "" {
			r.add(n, where, at, why)
		} else {
			r.add(n, where, at)
		}
	}
}

var (
	placeholder = regexp.MustCompile(`\{([^{}]*)\}`)
	needed      = []string{"event_type", "account_id", "region_id", "format_version"}
	known       = append(slices.Clone(needed), "environment", "service_name")
)

// holds tells whether value is as demanded. A value of the wrong type is told of by
// the rule about types alone.
func (d *rule) holds(value *yaml.Node) (ok bool, why string) {
	number, numberErr := strconv.ParseInt(value.Value, 10, 64)
	switch d.demands {
	case asMap:
		return isMap(value), ""
	case asText:
		return isText(value) || value.Kind == yaml.ScalarNode && value.Tag == "!!timestamp", ""
	case asBool:
		return isBool(value), ""
	case asInt:
		return isInt(value), ""
	case asList:
		return isList(value), ""
	case asTexts:
		return isText(value) || isList(value), ""
	case notNegative:
		return numberErr != nil || number >= 0, ""
	case positive:
		return numberErr != nil || number > 0, ""
	case asPeriod:
		return numberErr == nil && (number == 1 || number == 5 || number == 10 || number == 30 || number > 0 && number%60 == 0), ""
	case asTime:
		if !isText(value) && value.Tag != "!!timestamp" {
			return true, ""
		}
		_, err := time.Parse(time.RFC3339, value.Value)
		return err == nil, ""
	case asRegex:
		return regexOK(value)
	case required:
		var missing []string
		for _, name := range needed {
			if isText(value) && !strings.Contains(value.Value, "{"+name+"}") {
				missing = append(missing, "{"+name+"}")
			}
		}
		return len(missing) == 0, strings.Join(missing, ", ")
	case allowed:
		return placeholdersOK(value)
	case inputID:
		return !isText(value) || strings.Contains(value.Value, "{input_id}"), ""
	default:
		return true, ""
	}
}

func regexOK(value *yaml.Node) (ok bool, why string) {
	if !isText(value) {
		return true, ""
	}
	_, err := syntax.Parse(value.Value, syntax.Perl)
	if err == nil {
		return true, ""
	}
	at := ""
	if bad, is := err.(*syntax.Error); is { //nolint:errorlint // Parse returns nothing else
		at = fmt.Sprintf(" at character %d", 1+strings.Index(value.Value, bad.Expr))
	}
	return false, err.Error() + at
}

func placeholdersOK(value *yaml.Node) (ok bool, why string) {
	if !isText(value) {
		return true, ""
	}
	var bad []string
	for _, m := range placeholder.FindAllStringSubmatch(value.Value, -1) {
		if !slices.Contains(known, m[1]) {
			bad = append(bad, m[0])
		}
	}
	if rest := placeholder.ReplaceAllString(value.Value, ""); strings.ContainsAny(rest, "{}") {
		bad = append(bad, "a brace without its partner")
	}
	return len(bad) == 0, strings.Join(bad, ", ")
}
