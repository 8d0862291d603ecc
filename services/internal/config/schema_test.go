package config_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
)

func docs(t *testing.T) config.Docs {
	t.Helper()
	d, err := config.ReadDocs(".")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSchema(t *testing.T) {
	text, err := config.Schema(defaults(), docs(t), config.Title("Test"), config.ID("https://example.com/test.json"))
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "testdata/schema.json", text)
	schema := compile(t, text)
	tests := []struct {
		name string
		yaml string
		ok   bool
	}{
		{"least", "bus: {url: a://b}", true},
		{"all", "bus: {url: a://b, port: 1, linger: 1d2h3m, budget: 1.5 GB, sync: false, lanes: 0x10, level: warn, token: x, full: skip, tls: {ca: x}}\n" +
			"sources: [{name: a, pattern: ^a$, networks: [\"::/0\"], window: {begin: 1h}}]\nrates: {a: 1, b: 2.5}\nlabels: {a: 012345678901}\nextra: {x: [1]}\n", true},
		{"references", "bus: {url: \"${A}\", port: \"${A}\", linger: \"${A}\", budget: \"${A}\", sync: \"${A}\", full: \"${A:-hold}\", token: \"${file:/x}\", tls: {ca: \"${A}\"}}\nrates: {a: \"${B}\"}", true},
		{"bare keys", "bus: {url: a://b, tls: }\nsources:\nrates:\n", true},
		{"zeroes", "bus: {url: a://b, port: 0, linger: 0, budget: 0, lanes: 0}", true},
		{"a place for anchors", "x-a: &a {url: a://b}\nbus: *a\n", true},
		{"required", "bus: {}", false},
		{"unknown", "bus: {url: a://b, prot: 1}", false},
		{"unknown at the top", "buss: {}", false},
		{"number", "bus: {url: a://b, lanes: many}", false},
		{"range", "bus: {url: a://b, port: 70000}", false},
		{"negative", "bus: {url: a://b, port: -1}", false},
		{"bool", "bus: {url: a://b, sync: \"yes\"}", false},
		{"duration without a unit", "bus: {url: a://b, linger: 5}", false},
		{"duration", "bus: {url: a://b, linger: soon}", false},
		{"size", "bus: {url: a://b, budget: 64M}", false},
		{"enum", "bus: {url: a://b, full: never}", false},
		{"list", "bus: {url: a://b}\nsources: {name: a}", false},
		{"mapping", "bus: {url: a://b}\nrates: [1]", false},
		{"text", "bus: {url: [a]}", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := schema.Validate(instance(t, tt.yaml)); (err == nil) != tt.ok {
				t.Errorf("the schema says %v", err)
			}
			c := defaults()
			env := func(string) (string, bool) { return "", false }
			if tt.name == "references" || tt.name == "zeroes" {
				return // the engine sees through them, and Validate refuses zeroes
			}
			if err := config.Parse("p.yaml", []byte(tt.yaml), &c, env); (err == nil) != tt.ok {
				t.Errorf("the engine says %v", err)
			}
		})
	}
}

// What the schema calls a default must be one that the engine takes.
func TestSchemaDefaults(t *testing.T) {
	text, err := config.Schema(defaults(), docs(t))
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Properties struct {
			Bus struct {
				Properties map[string]struct {
					Default json.RawMessage `json:"default"`
				} `json:"properties"`
			} `json:"bus"`
		} `json:"properties"`
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	for key, p := range schema.Properties.Bus.Properties {
		if p.Default == nil {
			continue
		}
		var c fileConfig
		c.Bus = busConfig{URL: "a://b", Linger: 1, Lanes: 1}
		if err := config.Parse("p.yaml", []byte("bus: {"+key+": "+string(p.Default)+"}"), &c); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestMarkdown(t *testing.T) {
	text, err := config.Markdown(defaults(), docs(t), config.Title("Test"), config.Intro("Every key."))
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "testdata/reference.md", text)
}

func TestDocsAreNeeded(t *testing.T) {
	type silent struct {
		Said string `yaml:"said"` // Said has a comment at the end of the line.
		Not  string `yaml:"not"`
	}
	_, err := config.Schema(silent{}, docs(t))
	if fault.CodeOf(err) != "config.docs" || !strings.Contains(err.Error(), "silent.Not") || strings.Contains(err.Error(), "silent.Said") {
		t.Errorf("%v", err)
	}
	if _, err := config.ReadDocs(filepath.Join(t.TempDir(), "none")); fault.CodeOf(err) != "config.docs" {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func TestReadDocsBelow(t *testing.T) {
	top := t.TempDir()
	write(t, filepath.Join(top, "go.mod"), "module example.com/m\n")
	for _, dir := range []string{"a/b", "a/testdata", "a/.hidden"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o750); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(top, dir, "x.go"), "package x\n\ntype T struct {\n\t// F is\n\t// here.\n\tF, G int\n}\n")
	}
	d, err := config.ReadDocs(top + "/...")
	if err != nil {
		t.Fatal(err)
	}
	if len(d) != 2 || d["example.com/m/a/b.T.F"] != "F is\nhere." || d["example.com/m/a/b.T.G"] == "" {
		t.Errorf("%q", d)
	}
}

func compile(t *testing.T, text []byte) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("test.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("test.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func instance(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	js, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jsonschema.UnmarshalJSON(bytes.NewReader(js))
	if err != nil {
		t.Fatal(err)
	}
	return out
}
