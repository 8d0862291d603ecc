package catalog_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/catalog"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
)

// The catalogs of a package that has sinks and one that has formats. In a stage
// each Define stands in the init function of the file of its part.

type sink interface{ deliver() string }

type sinkFunc func() string

func (f sinkFunc) deliver() string { return f() }

type deps struct{ host string }

var sinks = catalog.New[deps, sink]("destination")

type httpConfig struct {
	// URL receives one POST per batch. Required.
	URL string `yaml:"url"`
	// Timeout bounds one POST. Unit: duration.
	Timeout time.Duration `yaml:"timeout"`
	// Key is sent as a bearer token.
	Key config.Secret `yaml:"key"`
}

func (c httpConfig) Validate() error {
	var p config.Problems
	p.Need(strings.HasPrefix(c.URL, "http"), "url", "set the address to POST to, e.g. https://example.com/in")
	p.Need(c.Timeout > 0, "timeout", "use a positive duration, e.g. 10s")
	p.Need(len(c.Key.Reveal()) != 5, "key", "use a longer key")
	return p.Err()
}

type fileConfig struct {
	// Path of the file. Required.
	Path string `yaml:"path"`
}

func init() {
	catalog.Define(sinks, "http", "POSTs batches.", func() httpConfig { return httpConfig{Timeout: 10 * time.Second} },
		func(_ context.Context, c httpConfig, d deps) (sink, error) {
			return sinkFunc(func() string { return fmt.Sprint("POST ", c.URL, " ", c.Timeout, " from ", d.host) }), nil
		})
	catalog.Define(sinks, "file", "Writes lines to a file.", func() fileConfig { return fileConfig{} },
		func(_ context.Context, c fileConfig, _ deps) (sink, error) {
			return nil, errors.New("open " + c.Path)
		})
}

// destination is an item of `destinations:`. Its common keys and those of its type
// stand in one mapping.
type destination struct {
	// Name of the destination. Required.
	Name string `yaml:"name"`
	// Type of the destination.
	Type string `yaml:"type"`
	// Options are the keys of the type.
	Options any `yaml:",kind"`
	// Paused keeps it from delivering.
	Paused bool `yaml:"paused"`
}

func (destination) Kinds() config.Kinds { return sinks }

func (d destination) Validate() error {
	var p config.Problems
	p.Need(d.Name != "", "name", "give the destination a name")
	return p.Err()
}

var formats = catalog.New[struct{}, string]("format")

type csvConfig struct {
	// Comma separates the columns.
	Comma string `yaml:"comma"`
}

func init() {
	catalog.Define(formats, "csv", "Comma-separated values.", func() csvConfig { return csvConfig{Comma: ","} },
		func(_ context.Context, c csvConfig, _ struct{}) (string, error) { return "csv" + c.Comma, nil })
	catalog.Define(formats, "auto", "Looks at the content.", func() struct{} { return struct{}{} },
		func(context.Context, struct{}, struct{}) (string, error) { return "auto", nil })
}

// format is either a name or a mapping: `format: csv`, `format: {type: csv, comma: ;}`.
type format struct {
	// Type of the format.
	Type string `yaml:"type,scalar"`
	// Options are the keys of the type.
	Options any `yaml:",kind"`
}

func (format) Kinds() config.Kinds { return formats }

// file is all of the configuration. Unless the file says another one, the format
// is auto, for the file and for every source.
type file struct {
	// Format of all that has none of its own.
	Format format `yaml:"format"`
	// Sources to read.
	Sources []source `yaml:"sources"`
	// Destinations to write to.
	Destinations []destination `yaml:"destinations"`
}

type source struct {
	// URL of the queue. Required.
	URL string `yaml:"url"`
	// Format of the records.
	Format format `yaml:"format"`
}

func (s *source) SetDefaults() { s.Format.Type = "auto" }

func defaults() file { return file{Format: format{Type: "auto"}} }

func parse(text string) (file, error) {
	c := defaults()
	err := config.Parse("p.yaml", []byte(text), &c)
	return c, err
}

func TestDestinations(t *testing.T) {
	c, err := parse(`
destinations:
- {name: a, type: http, url: "https://a", key: hunter2}
- name: b
  type: file
  path: /tmp/b
  paused: true
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []destination{
		{Name: "a", Type: "http", Options: &httpConfig{URL: "https://a", Timeout: 10 * time.Second, Key: config.NewSecret("hunter2")}},
		{Name: "b", Type: "file", Options: &fileConfig{Path: "/tmp/b"}, Paused: true},
	}
	if !reflect.DeepEqual(c.Destinations, want) {
		t.Errorf("got  %+v\nwant %+v", c.Destinations, want)
	}
	part, err := sinks.Open(t.Context(), c.Destinations[0].Type, c.Destinations[0].Options, deps{host: "h"})
	if err != nil || part.deliver() != "POST https://a 10s from h" {
		t.Errorf("%v, %v", part, err)
	}
	if _, err := sinks.Open(t.Context(), "file", *want[1].Options.(*fileConfig), deps{}); fmt.Sprint(err) != "open /tmp/b" {
		t.Errorf("opened with a value: %v", err)
	}
	shown, err := config.Effective(c)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "testdata/effective.yaml", shown)
}

func TestFormat(t *testing.T) {
	tests := []struct {
		yaml         string
		whole, first string // formats as opened
	}{
		{"sources: [{url: a}]", "auto", "auto"},
		{"format: csv\nsources: [{url: a, format: csv}]", "csv,", "csv,"},
		{"format: {type: csv, comma: ;}\nsources: [{url: a, format: {comma: \"|\", type: csv}}]", "csv;", "csv|"},
		{"format: {}\nsources: [{url: a, format: }]", "auto", "auto"},
	}
	open := func(f format) string {
		s, err := formats.Open(t.Context(), f.Type, f.Options, struct{}{})
		if err != nil {
			t.Error(err)
		}
		return s
	}
	for _, tt := range tests {
		c, err := parse(tt.yaml)
		if err != nil {
			t.Errorf("%s: %v", tt.yaml, err)
			continue
		}
		if whole, first := open(c.Format), open(c.Sources[0].Format); whole != tt.whole || first != tt.first {
			t.Errorf("%s: got %s and %s", tt.yaml, whole, first)
		}
	}
}

// What the program sets stays for its own type, and goes with it.
func TestFormatSetBefore(t *testing.T) {
	for text, want := range map[string]string{"": "csv;", "format: csv": "csv;", "format: {comma: x}": "csvx", "format: auto": "auto"} {
		c := file{Format: format{Type: "csv", Options: &csvConfig{Comma: ";"}}}
		if err := config.Parse("p.yaml", []byte(text), &c); err != nil {
			t.Fatal(err)
		}
		if got, err := formats.Open(t.Context(), c.Format.Type, c.Format.Options, struct{}{}); err != nil || got != want {
			t.Errorf("%q: %s, %v, want %s", text, got, err, want)
		}
	}
}

// covers: DEV-148, DEV-162
func TestProblems(t *testing.T) {
	tests := []struct{ yaml, want string }{
		{
			"destinations: [{name: a, type: http, url: x, path: y}]",
			"p.yaml:1:43: destinations[0].url: \"x\": not acceptable; fix: set the address to POST to, e.g. https://example.com/in\n" +
				"p.yaml:1:46: destinations[0].path: unknown key; fix: use one of key, name, paused, timeout, type, url",
		},
		{
			"destinations: [{name: a, type: http, url: http://x, key: short}]",
			"p.yaml:1:58: destinations[0].key: [redacted]: not acceptable; fix: use a longer key",
		},
		{
			"destinations: [{type: htpp, url: x}]",
			"p.yaml:1:16: destinations[0].name: missing; fix: give the destination a name\n" +
				"p.yaml:1:23: destinations[0].type: \"htpp\": not a type of destination; fix: did you mean http?",
		},
		{
			"destinations: [{name: a, type: kafka}, {name: b}, {name: c, type: [x]}, b]",
			"p.yaml:1:32: destinations[0].type: \"kafka\": not a type of destination; fix: use one of file, http\n" +
				"p.yaml:1:40: destinations[1].type: missing: the type of the destination; fix: use one of file, http\n" +
				"p.yaml:1:67: destinations[2].type: must be text, is a list; fix: write text\n" +
				"p.yaml:1:73: destinations[3]: \"b\": must be a mapping, is a single value; fix: write key: value, each on a line of its own",
		},
		{
			"format: cvs\nsources: [{url: a, format: {type: auto, comma: ;}}]",
			"p.yaml:1:9: format: \"cvs\": not a type of format; fix: did you mean csv?\n" +
				"p.yaml:2:41: sources[0].format.comma: unknown key; fix: use one of type",
		},
		{"format: [csv]", "p.yaml:1:9: format: must be a mapping, is a list; fix: write key: value, each on a line of its own"},
	}
	for _, tt := range tests {
		if _, err := parse(tt.yaml); fmt.Sprint(err) != tt.want {
			t.Errorf("%s:\ngot  %v\nwant %v", tt.yaml, err, tt.want)
		}
	}
}

func TestSchemaAndReference(t *testing.T) {
	docs, err := config.ReadDocs(".")
	if err != nil {
		t.Fatal(err)
	}
	text, err := config.Schema(defaults(), docs)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "testdata/schema.json", text)
	reference, err := config.Markdown(defaults(), docs)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "testdata/reference.md", reference)

	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("test.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("test.json")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		yaml string
		ok   bool
	}{
		{"destinations: [{name: a, type: http, url: https://a}, {name: b, type: file, path: x, paused: true}]", true},
		{"format: csv", true},
		{"format: {type: csv, comma: ;}", true},
		{"format: {comma: ;}", false}, // of the default, auto, that is no key
		{"format: {}", true},
		{"format: cvs", false},
		{"destinations: [{name: a, type: http, url: https://a, path: x}]", false},
		{"destinations: [{name: a, type: kafka}]", false},
		{"destinations: [{name: a, url: https://a}]", false},
		{"destinations: [{name: a, type: file}]", false},
	}
	for _, tt := range tests {
		var v any
		if err := yaml.Unmarshal([]byte(tt.yaml), &v); err != nil {
			t.Fatal(err)
		}
		js, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(js))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(instance); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.yaml, err)
		}
	}
}

func TestCatalog(t *testing.T) {
	if got := sinks.Names(); !reflect.DeepEqual(got, []string{"file", "http"}) || sinks.Doc("http") != "POSTs batches." || sinks.What() != "destination" {
		t.Errorf("%v, %q", got, sinks.Doc("http"))
	}
	one, _ := sinks.Defaults("http")
	one.(*httpConfig).Timeout = 1
	if two, ok := sinks.Defaults("http"); !ok || two.(*httpConfig).Timeout != 10*time.Second {
		t.Errorf("the defaults changed: %+v", two)
	}
	if none, ok := sinks.Defaults("kafka"); ok || none != nil {
		t.Errorf("defaults of nothing: %v", none)
	}
	for name, want := range map[string]string{"kafka": "catalog.unknown_kind", "file": "catalog.config_type"} {
		for _, cfg := range []any{&httpConfig{}, nil, (*fileConfig)(nil)} {
			if part, err := sinks.Open(t.Context(), name, cfg, deps{}); part != nil || fault.CodeOf(err) != want {
				t.Errorf("open %s with %T: %v", name, cfg, err)
			}
		}
	}
}

func TestDefineRefuses(t *testing.T) {
	define := func(name, doc string) {
		catalog.Define(sinks, name, doc, func() fileConfig { return fileConfig{} },
			func(context.Context, fileConfig, deps) (sink, error) { return nil, nil })
	}
	for _, bad := range [][2]string{{"http", "Again."}, {"Big", "Has a capital."}, {"", "Has no name."}, {"quiet", ""}} {
		t.Run(bad[0], func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("Define did not panic")
				}
			}()
			define(bad[0], bad[1])
		})
	}
}
