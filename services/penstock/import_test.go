package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is made of a collector's configuration can be used as it is, but for secrets.
// covers: DEV-10, DEV-63, DEV-68
func TestImportDevo(t *testing.T) {
	const collector = "../internal/devo/testdata/collector.yaml"
	text, notes, err := command(t, "", "config", "import", "devo", collector)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"SECOND_ACCESS_SECRET", "SECOND_ACCOUNT"} {
		if !strings.Contains(text, "#   "+name+"\n") {
			t.Errorf("the head does not say to set %s", name)
		}
		t.Setenv(name, "123456789012")
	}
	path := filepath.Join(t.TempDir(), "penstock.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := loadFile(path)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if len(file.Sources) != 13 {
		t.Errorf("%d sources", len(file.Sources))
	}
	if !strings.Contains(notes, collector+":") {
		t.Errorf("notes without a place: %s", notes)
	}
}

func TestImportDevoRefusesWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "collector.yaml")
	if err := os.WriteFile(path, []byte("inputs:\n  aws:\n    services: {metrics-all: {request_period_in_seconds: 45}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := command(t, "", "config", "import", "devo", path)
	if exitCode(err) != exitUsage || !strings.Contains(err.Error(), "line 3: PSK-1092") {
		t.Errorf("got %v", err)
	}
	if _, _, err := command(t, "", "config", "import", "devo", "/nowhere"); exitCode(err) != exitUsage {
		t.Errorf("got %v", err)
	}
}
