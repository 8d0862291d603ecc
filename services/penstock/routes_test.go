package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The routes name each server with one password, which stays until somebody asks for
// another.
func TestRoutes(t *testing.T) {
	dir := t.TempDir()
	write := func(more ...string) string {
		t.Helper()
		args := append([]string{"topology", "routes", "--dir", dir, "--node", "a", "--node", "b:7222", "--node", "c"}, more...)
		if err := execute(args...); err != nil {
			t.Fatal(err)
		}
		conf, err := os.ReadFile(filepath.Join(dir, routesFile))
		if err != nil {
			t.Fatal(err)
		}
		return string(conf)
	}
	conf := write()
	m := routePassword.FindStringSubmatch(conf)
	if m == nil {
		t.Fatalf("no password in:\n%s", conf)
	}
	for _, node := range []string{"a:6222", "b:7222", "c:6222"} {
		if !strings.Contains(conf, `"nats-route://route:`+m[1]+"@"+node+`"`) {
			t.Errorf("no route to %s in:\n%s", node, conf)
		}
	}
	if again := write(); again != conf {
		t.Errorf("a second run wrote:\n%s\nafter:\n%s", again, conf)
	}
	if again := write("--rotate"); strings.Contains(again, m[1]) {
		t.Error("--rotate kept the password")
	}
	for _, wrong := range [][]string{
		{"--dir", dir, "--node", "a", "--node", "b"},
		{"--node", "a", "--node", "b", "--node", "c"},
		{"--dir", dir, "--node", "a\"", "--node", "b", "--node", "c"},
		{"--dir", dir, "--name", "a b", "--node", "a", "--node", "b", "--node", "c"},
	} {
		if code := exitCode(execute(append([]string{"topology", "routes"}, wrong...)...)); code != exitUsage {
			t.Errorf("%v: exit code %d, want %d", wrong, code, exitUsage)
		}
	}
}
