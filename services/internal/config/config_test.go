package config_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
)

// fileConfig is a small configuration with one of everything.
type fileConfig struct {
	// Bus is how the stages reach each other.
	Bus busConfig `yaml:"bus"`
	// Sources are read all at once.
	Sources []sourceConfig `yaml:"sources"`
	// Rates of the APIs. Unit: requests per second.
	Rates map[string]float64 `yaml:"rates"`
	// Labels are put on every event.
	Labels map[string]string `yaml:"labels"`
	// Streams of the bus by name.
	Streams map[string]streamConfig `yaml:"streams"`
	// Extra is kept as it is.
	Extra any `yaml:"extra"`
}

type streamConfig struct {
	// Age of the oldest message. Unit: duration.
	Age time.Duration `yaml:"age"`
	// Size of the stream on disk. Unit: size.
	Size config.Bytes `yaml:"size"`
}

type busConfig struct {
	// URL of the server. Required.
	URL string `yaml:"url"`
	// Port of the server. Range: 1 to 65535.
	Port uint16 `yaml:"port"`
	// Linger bounds the wait for a full frame. Unit: duration.
	Linger time.Duration `yaml:"linger"`
	// Budget bounds what is in flight. Unit: size.
	Budget config.Bytes `yaml:"budget"`
	// Sync stores every message at once.
	Sync bool `yaml:"sync"`
	// Lanes of the dedupe stage.
	Lanes int `yaml:"lanes"`
	// Level of the log.
	Level slog.Level `yaml:"level"`
	// Token is sent to the server.
	Token config.Secret `yaml:"token"`
	// Full says what happens when the disk is full.
	Full policy `yaml:"full"`
	// TLS turns on encryption.
	TLS *tlsConfig `yaml:"tls"`
}

type policy string

func (policy) Values() []string { return []string{"hold", "skip"} }

type tlsConfig struct {
	// CA is a file of certificates, as PEM.
	CA string `yaml:"ca"`
	// MinVersion of the protocol.
	MinVersion string `yaml:"min_version"`
}

func (c *tlsConfig) SetDefaults() { c.MinVersion = "1.3" }

// Validate has a pointer receiver, busConfig's a value receiver: both are called.
func (c *tlsConfig) Validate() error {
	var p config.Problems
	p.Need(c.CA != "", "ca", "name the file, e.g. /etc/penstock/ca.pem")
	return p.Err()
}

func (c busConfig) Validate() error {
	var p config.Problems
	p.Need(c.URL != "", "url", "set the address of the server, e.g. nats://localhost:4222")
	if c.URL != "" && !strings.Contains(c.URL, "://") {
		p.Add("url", "not an address", "write scheme://host, e.g. nats://localhost:4222")
	}
	p.Need(c.Linger > 0, "linger", "use a positive duration, e.g. 50ms")
	p.Need(c.Lanes >= 1, "lanes", "use 1 or more lanes")
	p.Need(c.Token.Reveal() != "guess", "token", "use a longer token")
	return p.Err()
}

type sourceConfig struct {
	// Name of the source. Required.
	Name string `yaml:"name"`
	// Pattern selects keys. A regular expression.
	Pattern pattern `yaml:"pattern"`
	// Networks that may send.
	Networks []netip.Prefix `yaml:"networks"`
	// Window of time.
	Window window `yaml:"window"`
}

func (c sourceConfig) Validate() error {
	var p config.Problems
	p.Need(c.Name != "", "name", "give the source a name")
	return p.Err()
}

// pattern decodes itself from text.
type pattern struct{ re *regexp.Regexp }

func (p *pattern) UnmarshalConfig(n *config.Node) error {
	var s string
	if err := n.Decode(&s); err != nil {
		return err
	}
	re, err := regexp.Compile(s)
	if err != nil {
		return n.Problem("not a regular expression: "+err.Error(), "see https://pkg.go.dev/regexp/syntax")
	}
	p.re = re
	return nil
}

func (p pattern) MarshalText() ([]byte, error) {
	if p.re == nil {
		return nil, nil
	}
	return []byte(p.re.String()), nil
}

func (pattern) DescribeConfig() (schema, words string) {
	return `{"type": "string", "format": "regex"}`, "regular expression"
}

// window has its keys in two structs.
type window struct {
	From from `yaml:",inline"`
	To   to   `yaml:",inline"`
}

type from struct {
	// Begin of the window. Unit: duration before now.
	Begin time.Duration `yaml:"begin"`
}

type to struct {
	// End of the window. Unit: duration before now.
	End time.Duration `yaml:"end"`
}

func (t to) Validate() error {
	var p config.Problems
	p.Need(t.End >= 0, "end", "use 0 or more")
	return p.Err()
}

func (w *window) UnmarshalConfig(n *config.Node) error { return n.Decode(&w.From, &w.To) }

func defaults() fileConfig {
	return fileConfig{
		Bus:    busConfig{Port: 4222, Linger: 50 * time.Millisecond, Budget: 16 * config.MiB, Sync: true, Lanes: 8, Full: "hold"},
		Rates:  map[string]float64{"lookup": 2},
		Labels: map[string]string{},
		Streams: map[string]streamConfig{
			"EVENTS": {Age: 72 * time.Hour, Size: config.GiB},
		},
	}
}

func vars(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1], true
			}
		}
		return "", false
	}
}

// covers: DEV-34 (secrets by reference), design §7.
func TestParse(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "token"), "s3cret\n")
	write(t, filepath.Join(dir, "crlf"), "two\nlines\r\n")
	full := func(change func(c *fileConfig)) fileConfig {
		c := defaults()
		c.Bus.URL = "nats://h"
		change(&c)
		return c
	}
	const url = "bus:\n  url: nats://h\n"
	tests := []struct {
		name string
		yaml string
		want fileConfig
	}{
		{"defaults stay", url, full(func(*fileConfig) {})},
		{"zero is a value", url + "  sync: false\n  port: 0\n", full(func(c *fileConfig) { c.Bus.Sync, c.Bus.Port = false, 0 })},
		{"flow style and comments", "{bus: {url: nats://h, lanes: 1_6}} # JSON is YAML", full(func(c *fileConfig) { c.Bus.Lanes = 16 })},
		{"every scalar", url + "  port: 0x10\n  linger: 1d2h\n  budget: 1.5GB\n  lanes: +3\n  level: warn\n  full: skip\n", full(func(c *fileConfig) {
			c.Bus.Port, c.Bus.Linger, c.Bus.Budget, c.Bus.Lanes = 16, 26*time.Hour, 1.5e9, 3
			c.Bus.Level, c.Bus.Full = slog.LevelWarn, "skip"
		})},
		{"text may look like a number", url + "labels: {account: 012345678901, zip: \"true\", at: 2024-01-02}\n", full(func(c *fileConfig) {
			c.Labels = map[string]string{"account": "012345678901", "zip": "true", "at": "2024-01-02"}
		})},
		{"mappings merge", url + "rates: {list: 5.5, x.y: 1}\n", full(func(c *fileConfig) {
			c.Rates = map[string]float64{"lookup": 2, "list": 5.5, "x.y": 1}
		})},
		{"mappings merge in mappings", url + "streams: {EVENTS: {age: 1h}, SEEN: {age: 2h}}\n", full(func(c *fileConfig) {
			c.Streams = map[string]streamConfig{"EVENTS": {Age: time.Hour, Size: config.GiB}, "SEEN": {Age: 2 * time.Hour}}
		})},
		{"a bare key leaves a mapping or list as it is", url + "  tls:\nsources:\nrates:\n", full(func(*fileConfig) {})},
		{"what the engine makes has its defaults", url + "  tls: {ca: x}\n", full(func(c *fileConfig) { c.Bus.TLS = &tlsConfig{CA: "x", MinVersion: "1.3"} })},
		{"keys in two structs", url + "sources: [{name: a, networks: [10.0.0.0/8], window: {begin: 2h, end: 1h}}]\n", full(func(c *fileConfig) {
			c.Sources = []sourceConfig{{
				Name: "a", Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
				Window: window{From: from{2 * time.Hour}, To: to{time.Hour}},
			}}
		})},
		{"any", url + "extra: {a: [1, 2.5, true, x, null]}\n", full(func(c *fileConfig) {
			c.Extra = map[string]any{"a": []any{int64(1), 2.5, true, "x", nil}}
		})},
		{"anchors and merge keys", "x-b: &b {url: nats://h, lanes: 4}\nbus:\n  lanes: 5\n  <<: *b\n", full(func(c *fileConfig) { c.Bus.Lanes = 5 })},
		{"a list of merge keys", "x-b: [&b {url: nats://h}, &c {url: nats://no, lanes: 4}]\nbus:\n  <<: [*b, *c]\n", full(func(c *fileConfig) { c.Bus.Lanes = 4 })},
		{"variables", "bus:\n  url: ${SCHEME}://${HOST:-h}\n  port: ${PORT}\n  sync: \"${SYNC}\"\n  budget: ${EMPTY:-1 KiB}\n", full(func(c *fileConfig) {
			c.Bus.Port, c.Bus.Sync, c.Bus.Budget = 99, false, config.KiB
		})},
		{"what a variable brings is not YAML", url + "labels: {a: \"${EVIL}\"}\n", full(func(c *fileConfig) {
			c.Labels = map[string]string{"a": "x\nbus: {url: y} ${PORT}"}
		})},
		{"an empty variable is a value", url + "labels: {a: \"${EMPTY}\"}\n", full(func(c *fileConfig) { c.Labels = map[string]string{"a": ""} })},
		{"literals", url + "labels:\n  a: $${PORT}\n  b: $$x$\n  c: \"$$${PORT}-${PORT}\"\n", full(func(c *fileConfig) {
			c.Labels = map[string]string{"a": "${PORT}", "b": "$$x$", "c": "$${PORT}-99"}
		})},
		{"files", url + "  token: ${file:token}\nlabels:\n  a: <${file:" + dir + "/crlf}>\n", full(func(c *fileConfig) {
			c.Bus.Token, c.Labels = config.NewSecret("s3cret"), map[string]string{"a": "<two\nlines>"}
		})},
	}
	env := vars("SCHEME", "nats", "PORT", "99", "SYNC", "false", "EMPTY", "", "EVIL", "x\nbus: {url: y} ${PORT}")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := defaults()
			if err := config.Parse(filepath.Join(dir, "penstock.yaml"), []byte(tt.yaml), &got, env); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

// Each file in testdata/problems has its messages beside it.
// covers: DEV-148 to DEV-160, DEV-162
func TestProblems(t *testing.T) {
	files, err := filepath.Glob("testdata/problems/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d cases: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c := defaults()
			err = config.Parse("penstock.yaml", data, &c, vars("PORT", "eighty", "SECRET", "hunter2", "EMPTY", ""))
			if err == nil {
				t.Fatal("no problem was found")
			}
			if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "eighty") {
				t.Errorf("a secret, or the value of a variable, is in %s", err)
			}
			golden.Check(t, strings.TrimSuffix(file, ".yaml")+".want", []byte(err.Error()+"\n"))
		})
	}
}

func TestErrorValue(t *testing.T) {
	c := defaults()
	err := config.Parse("p.yaml", []byte("bus:\n  url: x\n  portt: 1\n"), &c)
	var list *config.Error
	if !errors.As(err, &list) || len(list.Problems) != 2 {
		t.Fatalf("%v", err)
	}
	got, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"problems":[{"code":"config.invalid_value","file":"p.yaml","line":2,"column":8,"path":"bus.url","value":"\"x\"","reason":"not an address","fix":"write scheme://host, e.g. nats://localhost:4222"},` +
		`{"code":"config.unknown_key","file":"p.yaml","line":3,"column":3,"path":"bus.portt","reason":"unknown key","fix":"did you mean port?"}]}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if fault.CodeOf(list) != "config.invalid" || fault.ClassOf(list) != fault.Stop {
		t.Errorf("code %s, class %s", fault.CodeOf(list), fault.ClassOf(list))
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	c := defaults()
	if err := config.Load(filepath.Join(dir, "none.yaml"), &c, nil); fault.CodeOf(err) != "config.unreadable" || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	file := filepath.Join(dir, "penstock.yaml")
	write(t, file, "bus: {url: \"${PENSTOCK_TEST_URL}\"}")
	t.Setenv("PENSTOCK_TEST_URL", "nats://h")
	if err := config.Load(file, &c, nil); err != nil || c.Bus.URL != "nats://h" {
		t.Errorf("%q, %v", c.Bus.URL, err)
	}
	write(t, file, strings.Repeat("# too much\n", 100_000))
	if err := config.Load(file, &c, nil); !strings.Contains(fmt.Sprint(err), "larger than 1 MiB") {
		t.Errorf("a large file: %v", err)
	}
}

func TestFileReferences(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "large"), strings.Repeat("hunter2 ", 9000))
	write(t, filepath.Join(dir, "binary"), "hunter2\xff")
	for ref, why := range map[string]string{
		"none": "cannot be read: no such file", "large": "is larger than 64 KiB", "binary": "is not text in UTF-8", ".": "is not a plain file",
	} {
		c := defaults()
		err := config.Parse(filepath.Join(dir, "p.yaml"), []byte("bus: {url: a://b, token: \"${file:"+ref+"}\"}"), &c)
		if err == nil || !strings.Contains(err.Error(), "the file "+filepath.Join(dir, ref)+" "+why) {
			t.Errorf("%s: the error does not name the file: %v", ref, err)
		}
		if strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%s: the content is in the error: %v", ref, err)
		}
	}
}

// Aliases inside of anchors grow without bound unless they are counted.
func TestBombs(t *testing.T) {
	var aliases, merges, strangers strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&strangers, "%s%d: 1\n", strings.Repeat("k", 200), i)
	}
	aliases.WriteString("x-a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	merges.WriteString("x-a0: &a0 {k: v}\n")
	for i := 1; i < 30; i++ {
		fmt.Fprintf(&aliases, "x-a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), i-1)
		fmt.Fprintf(&merges, "x-a%d: &a%d {<<: [%s*a%d]}\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), i-1)
	}
	tests := []struct{ name, doc, want string }{
		{"aliases", aliases.String(), "too much with all aliases written out"},
		{"merges", merges.String(), "too much with all aliases written out"},
		{"depth", "extra: " + strings.Repeat("[", 100) + strings.Repeat("]", 100), "nested too deep"},
		{"deep keys", "extra: " + strings.Repeat("{"+strings.Repeat("k", 250)+": ", 70) + strings.Repeat("}", 70), "nested too deep"},
		{"many", "extra: [" + strings.Repeat("a,", 250_000) + "]", "too much with all aliases written out"},
		{"no end", "x-a: &a [*a]\n", "the anchor &a contains itself"},
		{"no end <<", "x-a: &a {b: &b {<<: *a}}\n", "the anchor &a contains itself"},
		{"long key", strings.Repeat("k", 300) + ": 1\n", "a key is longer than 256 bytes"},
		{"deep beyond YAML", strings.Repeat("[", 20_000), "exceeded max depth"},
		{"strangers", strangers.String(), "more problems follow"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := defaults()
			err := config.Parse("p.yaml", []byte(tt.doc), &c)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%.500v", err)
			}
			if n := len(err.Error()); n > 200_000 {
				t.Errorf("an error of %d bytes", n)
			}
		})
	}
}

// covers: DEV-34
func TestSecretIsNeverShown(t *testing.T) {
	type holder struct {
		S      config.Secret
		hidden config.Secret
		P      *config.Secret
		M      map[string]config.Secret
	}
	s := config.NewSecret("hunter2")
	h := holder{S: s, hidden: s, P: &s, M: map[string]config.Secret{"k": s}}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t"} {
		fmt.Fprintf(&out, verb+" "+verb+"\n", s, h)
	}
	js, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(js)
	for _, l := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(l).InfoContext(context.Background(), "x", "secret", s, "holder", h)
	}
	shown, err := config.Effective(struct {
		S config.Secret `yaml:"s"`
		E config.Secret `yaml:"e"`
	}{S: s})
	if err != nil {
		t.Fatal(err)
	}
	if want := "s: '[redacted]'\ne: \"\"\n"; string(shown) != want {
		t.Errorf("effective %q, want %q", shown, want)
	}
	out.Write(shown)
	text := out.String()
	for _, leak := range []string{"hunter2", fmt.Sprintf("%x", "hunter2"), fmt.Sprintf("%X", "hunter2")} {
		if strings.Contains(text, leak) {
			t.Errorf("%q is in %s", leak, text)
		}
	}
	if s.Reveal() != "hunter2" || !s.Equal(config.NewSecret("hunter2")) || s.Equal(config.NewSecret("hunter3")) || s.IsZero() {
		t.Error("the secret itself is lost")
	}
}

func TestBytes(t *testing.T) {
	tests := []struct {
		in   string
		want config.Bytes
		out  string // empty: an error
	}{
		{"0", 0, "0 B"},
		{"1048576", config.MiB, "1 MiB"},
		{"64 MiB", 64 * config.MiB, "64 MiB"},
		{"64mib", 64 * config.MiB, "64 MiB"},
		{"1.5GB", 1_500_000_000, "1500 MB"},
		{"0.5 KiB", 512, "512 B"},
		{" 10 kB ", 10_000, "10 kB"},
		{"8388607 TiB", 8388607 * config.TiB, "8388607 TiB"},
		{"9223372036854775807", 1<<63 - 1, "9223372036854775807 B"},
		{"8388608 TiB", 0, ""},
		{"64M", 0, ""},
		{"-1", 0, ""},
		{"1e3", 0, ""},
		{"1/2 MiB", 0, ""},
		{"1.2.3 B", 0, ""},
		{"MiB", 0, ""},
		{"", 0, ""},
		{".", 0, ""},
		{strings.Repeat("1", 500), 0, ""},
	}
	for _, tt := range tests {
		got, err := config.ParseBytes(tt.in)
		if got != tt.want || (err == nil) != (tt.out != "") {
			t.Errorf("ParseBytes(%q) = %d, %v, want %d", tt.in, got, err, tt.want)
		}
		if err == nil && got.String() != tt.out {
			t.Errorf("%q prints as %q, want %q", tt.in, got, tt.out)
		}
	}
}

func TestEffective(t *testing.T) {
	c := defaults()
	in := "bus: {url: \"nats://user:hunter2@h\", token: hunter2, tls: {ca: a}}\n" +
		"labels: {no: \"yes\", price: \"12\", ref: \"$${X}\", \"a: b\": \"multi\\nline \"}\nsources: [{name: a, pattern: ^a+$, networks: [10.0.0.0/8]}]\nextra: [1, {b: null}]\n"
	if err := config.Parse("p.yaml", []byte(in), &c); err != nil {
		t.Fatal(err)
	}
	got, err := config.Effective(c)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "testdata/effective.yaml", got)
	var again fileConfig
	if err := config.Parse("p.yaml", got, &again); err != nil {
		t.Fatalf("the effective configuration is not valid: %v", err)
	}
	c.Bus.URL, c.Bus.Token = again.Bus.URL, again.Bus.Token // redacted
	if !reflect.DeepEqual(c, again) {
		t.Errorf("read back\n%+v, want\n%+v", again, c)
	}
}

func TestCheck(t *testing.T) {
	c := defaults()
	c.Bus.TLS = &tlsConfig{}
	c.Bus.URL = "x"
	err := config.Check(c)
	want := "bus.url: not an address; fix: write scheme://host, e.g. nats://localhost:4222\nbus.tls.ca: missing; fix: name the file, e.g. /etc/penstock/ca.pem"
	if fmt.Sprint(err) != want {
		t.Errorf("got  %v\nwant %v", err, want)
	}
	c.Bus.TLS, c.Bus.URL = nil, "a://b"
	if err := config.Check(c); err != nil {
		t.Error(err)
	}
}

// Common is embedded: its Validate is also the one of the struct around it.
type Common struct {
	// Name of it.
	Name string `yaml:"name"`
}

func (c Common) Validate() error {
	var p config.Problems
	p.Need(c.Name != "", "name", "give it a name")
	return p.Err()
}

func TestEmbedded(t *testing.T) {
	var c struct {
		Common
		// Size of it.
		Size int `yaml:"size"`
	}
	err := config.Parse("p.yaml", []byte("size: 1\n"), &c)
	if want := "p.yaml:1:1: name: missing; fix: give it a name"; fmt.Sprint(err) != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if err := config.Parse("p.yaml", []byte("size: 1\nname: x\n"), &c); err != nil || c.Name != "x" || c.Size != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Whatever the file holds: no panic, an error of bounded size, and what is
// accepted survives being written and read again.
func FuzzParse(f *testing.F) {
	f.Add("bus: {url: nats://h, port: 1}\nlabels: {a: ${HOME:-x}, b: $${}\n")
	f.Add("x-a: &a {url: x://y}\nbus: {<<: *a, linger: 1d1s, budget: 1.5 GB, tls: {ca: x}}\nextra: [1, 1.5, true, null, ~, {}]\n")
	f.Add("sources:\n- {name: \"a\\tb\", pattern: '(', networks: ['::/0']}\n- ? [a]\n  : b\n")
	f.Add("labels: {a: |\n  b\n c: >-\n  d}\n---\n")
	f.Add("bus: {url: a://b}\n# " + strings.Repeat("x", 5_000) + "\nlabels: {k: " + strings.Repeat("y", 5_000) + "}\n")
	f.Fuzz(func(t *testing.T, doc string) {
		c := defaults()
		if err := config.Parse("p.yaml", []byte(doc), &c, vars()); err != nil {
			var list *config.Error
			if !errors.As(err, &list) || len(list.Problems) == 0 || len(list.Problems) > 201 {
				t.Fatalf("not a list of problems: %v", err)
			}
			return
		}
		shown, err := config.Effective(c)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(shown), "[redacted]") {
			return
		}
		var again fileConfig
		if err := config.Parse("p.yaml", shown, &again, vars()); err != nil {
			t.Fatalf("%v in\n%s", err, shown)
		}
		twice, err := config.Effective(again)
		if err != nil || string(twice) != string(shown) {
			t.Fatalf("%v: first\n%s\nthen\n%s", err, shown, twice)
		}
	})
}

func FuzzBytes(f *testing.F) {
	f.Add("1.5 GB")
	f.Add("9223372036854775807")
	f.Fuzz(func(t *testing.T, s string) {
		b, err := config.ParseBytes(s)
		if err != nil {
			return
		}
		if again, err := config.ParseBytes(b.String()); err != nil || again != b || b < 0 {
			t.Fatalf("%q gives %d, written as %q gives %d, %v", s, b, b, again, err)
		}
	})
}
