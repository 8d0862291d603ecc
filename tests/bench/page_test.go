package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/penstock/penstock/tests/harness"
)

// docs/performance.md and its plots show the committed report, and nothing else.
func TestPage(t *testing.T) {
	r, err := load(filepath.Join("testdata", "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := pages(r, filepath.Join(harness.Root(), "docs", "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 6 {
		t.Errorf("%d files, want the page and five plots", len(files))
	}
	for path, want := range files {
		is, err := os.ReadFile(path)
		if err == nil && string(is) == want {
			continue
		}
		if os.Getenv("UPDATE_GOLDEN") == "" {
			t.Errorf("%s does not show the report; run: go run ./tests/bench -plot tests/bench/testdata/report.json", filepath.Base(path))
			continue
		}
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
