package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every kind tells what it is, which keys it has, and shows an example that works.
func TestKinds(t *testing.T) {
	for _, g := range groups {
		out, _, err := command(t, "", g.name)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range g.names() {
			if !strings.Contains(out, name) {
				t.Errorf("penstock %s does not list %s", g.name, name)
			}
			k, err := g.kind(name)
			if err != nil {
				t.Fatal(err)
			}
			if g.name == "formats" {
				if k.Sample == nil {
					t.Errorf("format %s has no sample: add a case to services/parse/formats/testdata/%s that needs no settings", name, name)
				}
			} else {
				if len(k.Keys) < 2 {
					t.Errorf("%s %s shows %d keys", g.one, name, len(k.Keys))
				}
				checkExample(t, g, k)
			}
			if page, _, err := command(t, "", g.name, name); err != nil || !strings.Contains(page, k.Doc) {
				t.Errorf("penstock %s %s: %v\n%s", g.name, name, err, page)
			}
		}
	}
}

// exampleSecret stands for every secret in examples and guides; it is also one of
// Standard Webhooks.
const exampleSecret = "whsec_ZXhhbXBsZSBvZiBhIHNlY3JldCBvZiAzMiBieXRlcyE="

// checkExample loads an example as a configuration.
func checkExample(t *testing.T, g group, k kind) {
	t.Helper()
	if k.Example == "" {
		t.Errorf("%s %s has no example: add services/penstock/examples/%s/%s.yaml", g.one, k.Name, g.name, k.Name)
		return
	}
	path := filepath.Join(t.TempDir(), "penstock.yaml")
	text := k.Example
	for _, secret := range strings.Split(text, "${")[1:] {
		name, _, _ := strings.Cut(secret, "}")
		t.Setenv(name, exampleSecret)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := loadFile(path)
	if err != nil {
		t.Errorf("the example of %s %s does not load: %v", g.one, k.Name, err)
	}
	if n := len(file.Sources) + len(file.Destinations); n != 1 {
		t.Errorf("the example of %s %s configures %d things", g.one, k.Name, n)
	}
}

func TestKindsRefuseUnknownNames(t *testing.T) {
	_, _, err := command(t, "", "formats", "cloudtail")
	if exitCode(err) != exitUsage || !strings.Contains(err.Error(), "cloudtrail") {
		t.Errorf("got %v", err)
	}
}
