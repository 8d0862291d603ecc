package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What only the file as a whole can tell is checked as well, all at once.
// covers: DEV-64, DEV-124
func TestFileIsCheckedAsAWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "penstock.yaml")
	text := `dedupe: {window: 4h}
sources:
  - name: a
    type: s3
    bucket: logs-a
    look_back: 5h
    format: clodtrail
  - name: a
    type: http
    address: 127.0.0.1:8088
    auth: {none: true}
    endpoints:
      - {path: /in, kind: json, format: nothing}
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := loadFile(path)
	if err == nil {
		t.Fatal("a wrong file is taken")
	}
	for _, want := range []string{"sources[0].look_back", "cloudtrail", "sources[1].name", "endpoints[0].format"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not told of: %v", want, err)
		}
	}
}
