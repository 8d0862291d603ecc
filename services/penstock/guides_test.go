package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each configuration in the guides loads as it is printed.
// covers: VOI-3, VOI-4, CEN-6, CEN-7, CEN-9, CEN-10, CEN-25
func TestGuides(t *testing.T) {
	guides, _ := filepath.Glob("../../docs/guides/*.md")
	if len(guides) == 0 {
		t.Fatal("no guides")
	}
	for _, guide := range guides {
		text, err := os.ReadFile(guide)
		if err != nil {
			t.Fatal(err)
		}
		for n, block := range strings.Split(string(text), "```yaml\n")[1:] {
			block, _, _ = strings.Cut(block, "```")
			if !strings.HasPrefix(block, "sources:") && !strings.Contains(block, "\nsources:") && !strings.HasPrefix(block, "console:") {
				continue // a part of one
			}
			for _, secret := range strings.Split(block, "${")[1:] {
				name, _, _ := strings.Cut(secret, "}")
				name, _, _ = strings.Cut(name, ":-")
				value := exampleSecret
				if strings.Contains(name, "HASH") {
					value = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHRzb21lc2FsdA$Ju6dzCmDYCnXcNSYdHXmFHBq0mHmMTjSCWYRKMkzUQc"
				}
				t.Setenv(name, value)
			}
			path := filepath.Join(t.TempDir(), "penstock.yaml")
			if err := os.WriteFile(path, []byte(block), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := loadFile(path); err != nil {
				t.Errorf("%s, configuration %d does not load: %v", filepath.Base(guide), n+1, err)
			}
		}
	}
}
