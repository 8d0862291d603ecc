package sinks

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// receiver returns the path of a real receiver, which `.ci/run receivers` installs.
// Without it the test skips.
func receiver(t *testing.T, name string) string {
	t.Helper()
	if cache, err := os.UserCacheDir(); err == nil {
		path := filepath.Join(cache, "penstock-receivers", "bin", name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed; `.ci/run receivers` does that", name)
	}
	return path
}
