package harness

import "testing"

// StartBinary is Start with another penstock: that of another release.
func StartBinary(t testing.TB, path, name string, env []string, args ...string) *Process {
	t.Helper()
	return launch(t, name, env, path, args...)
}
