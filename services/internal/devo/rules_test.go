package devo

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// sound is a collector's configuration in which nothing is wrong, for one section.
func sound(s section) map[string]any {
	service := map[string]any{"regions": []string{"eu-west-1"}, "tag": "my.app.table", "start_time": "2026-01-05T00:00:00Z"}
	definition := map[string]any{
		"tag_base":                     "cloud.aws.x.{event_type}.{account_id}.{region_id}.{format_version}",
		"event_type_default":           "events",
		"event_type_source_field_name": "source", "event_type_extracting_regex": `aws\.(.+)`,
		"enable_auto_event_type": true, "enable_auto_event_type_config_key": "auto_event_type",
		"event_type_processor_mapping": map[string]any{"a": map[string]any{"processor_class": "A", "tagging": "x.y"}},
		"sqs_queue_custom_name_key":    "name_key", "sqs_queue_required_default_name": true, "sqs_queue_default_name": "q-{input_id}",
		"start_time_regex": `^\d{4}`, "sqs_s3_processor_properties": map[string]any{"class_name": "A"},
		"gap_until_now_in_minutes": 15, "time_slot_in_hours": 1, "sources": "all_sources", "metric_namespace": []string{"AWS/EC2"},
	}
	service["module_properties"] = definition
	name := "service-events-all"
	switch s {
	case common:
		service["cloudwatch_sqs_queue_name"], service["auto_event_type"] = "events.fifo", true
	case objects:
		name, service["types"], service["vpc_sqs_queue_name"] = "non-cloudwatch-logs", []string{"flowlogs"}, "flow"
		service["auto_event_type"] = true
	case audit:
		name, service["types"] = "audit-events-all", []string{"audits_api"}
		service["auto_event_type"], service["sources"], service["drop_event_names"] = true, []string{"iam.amazonaws.com"}, []string{"Decrypt"}
		service["gap_until_now_in_minutes"], service["time_slot_in_hours"] = 15, 1
	case logs:
		name, service["types"], service["log_group"], service["use_first_optimized_retrieval"] = "custom_service", []string{"logs"}, "/", true
	case metrics:
		name, service["metric_namespaces"], service["request_period_in_seconds"] = "metrics-all", []string{"AWS/EC2"}, 60
	}
	return map[string]any{"inputs": map[string]any{"aws": map[string]any{
		"id": "1", "enabled": true, "requests_per_second": 5,
		"credentials": map[string]any{"access_key": "AKIDEXAMPLE", "access_secret": "example"},
		"services":    map[string]any{name: service},
	}}}
}

// at returns the mapping that holds the key of a rule, and the key.
func at(top map[string]any, d *rule) (map[string]any, string) {
	input := top["inputs"].(map[string]any)["aws"].(map[string]any)
	var service map[string]any
	for _, s := range input["services"].(map[string]any) {
		service = s.(map[string]any)
	}
	switch d.key {
	case "inputs":
		return top, "inputs"
	case "services", "requests_per_second":
		return input, d.key
	case queueKey:
		for key := range service {
			if strings.HasSuffix(key, "sqs_queue_name") {
				return service, key
			}
		}
	}
	path := strings.Split(strings.TrimPrefix(d.key, "."), ".")
	if !strings.HasPrefix(d.key, ".") {
		return service, d.key
	}
	if path[0] == "" {
		return service, "module_properties"
	}
	in := service["module_properties"].(map[string]any)
	for len(path) > 1 {
		name := path[0]
		if name == "*" {
			name = "a"
		}
		in, path = in[name].(map[string]any), path[1:]
	}
	return in, path[0]
}

// broken is a value that breaks what a rule demands and nothing else.
func broken(d *rule) any {
	switch d.demands {
	case must:
		return ""
	case asMap, asTexts, asInt:
		return 1.5
	case asText, asBool:
		return 7
	case asList:
		return "text"
	case notNegative:
		return -1
	case positive:
		return 0
	case asRegex:
		return "a(b"
	case required:
		return "cloud.aws.{event_type}.{account_id}.{region_id}"
	case allowed:
		return "cloud.{event_type}.{account_id}.{region_id}.{format_version}.{colour}"
	case notEmpty:
		return map[string]any{}
	case asTime:
		return "yesterday"
	case asPeriod:
		return 45
	case inputID:
		return "queue"
	default:
		return nil
	}
}

// Every error of the collector is found, alone, with the class and number that it
// prints, a code that is unique, and the line.
// covers: DEV-148..160, DEV-162, DEV-163, LIM-15, DEV-E1..36, DEV-E38..47, DEV-E49..94
func TestRules(t *testing.T) {
	for n := range rules {
		d := &rules[n]
		if d.class == "" || d.demands == reachable || n == 37 {
			continue
		}
		for _, s := range d.sections {
			top := sound(section(s))
			file, _ := json.MarshalIndent(top, "", " ")
			if _, err := Read(file); err != nil {
				t.Fatalf("section %c: nothing is wrong, but: %v", s, err)
			}
			in, key := at(top, d)
			if _, ok := in[key]; !ok {
				t.Fatalf("DEV-E%d: no key %s", n, key)
			}
			in[key] = broken(d)
			file, _ = json.MarshalIndent(top, "", " ")
			_, err := Read(file)
			var all Errors
			if !errors.As(err, &all) {
				t.Errorf("DEV-E%d in section %c is not found: %s: %v", n, s, key, in[key])
				continue
			}
			// Where two sections have the same rule, either may tell.
			if len(all) != 1 || all[0].Class != d.class && rules[n].key != "inputs" && rules[n].key != "services" {
				t.Errorf("DEV-E%d in section %c: %v", n, s, all)
				continue
			}
			p := all[0]
			want := strings.Split(string(file), "\n")[p.Line-1]
			if p.Text == "" || p.Fix == "" || !strings.Contains(want, key) && !strings.Contains(p.Text, "missing") {
				t.Errorf("DEV-E%d in section %c: line %d is %q: %v", n, s, p.Line, want, p)
			}
			if s := map[string]bool{moduleDefinition: true, serviceDefinition: true}; s[d.class] != p.Internal {
				t.Errorf("DEV-E%d: internal %v", n, p.Internal)
			}
		}
	}
	codes := map[string]bool{}
	for n := 1; n < len(rules); n++ {
		if codes[code(n)] {
			t.Errorf("code %s is not unique", code(n))
		}
		codes[code(n)] = true
	}
}

// What is wrong is told all at once, by line.
// covers: DEV-124, DEV-156
func TestAllProblemsAtOnce(t *testing.T) {
	_, err := Read([]byte(`inputs:
  aws:
    services:
      metrics-all:
        request_period_in_seconds: 45
      audit-events-all:
        types: [audits_api]
        gap_until_now_in_minutes: soon
        module_properties:
          start_time_regex: "a(b"
`))
	var all Errors
	if !errors.As(err, &all) {
		t.Fatal(err)
	}
	lines := map[int]string{}
	for _, p := range all {
		lines[p.Line] += p.String() + "\n"
	}
	for line, want := range map[int]string{5: "1, 5, 10, 30, 60", 8: "must be an integer", 10: "at character"} {
		if !strings.Contains(lines[line], want) {
			t.Errorf("line %d: %q, want %q", line, lines[line], want)
		}
	}
	if got := slices.Sorted(maps.Keys(lines)); !slices.IsSorted(got) || !strings.Contains(err.Error(), fmt.Sprint("line ", got[0])) {
		t.Errorf("lines %v: %v", got, err)
	}
}

func TestNotEvenAMapping(t *testing.T) {
	for _, text := range []string{"", "[1]", "a: [", "x"} {
		if _, err := Read([]byte(text)); err == nil {
			t.Errorf("%q is read", text)
		}
	}
	if _, err := Read(make([]byte, maxFile+1)); err == nil {
		t.Error("a file of any size is read")
	}
}

func FuzzRead(f *testing.F) {
	for _, s := range []section{common, objects, audit, logs, metrics} {
		text, _ := json.Marshal(sound(s))
		f.Add(text)
	}
	f.Add([]byte("inputs: &a\n  x: *a\n"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		if c, _ := Read(data); c != nil {
			_, _, _ = c.Convert()
		}
	})
}
