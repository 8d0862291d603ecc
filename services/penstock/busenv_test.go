package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The environment wins over the configuration, and flags over the environment; a bad
// value is the user's mistake and says so.
func TestBusEnvironment(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	config := write("penstock.yaml", "bus: {url: \"nats://file:4222\", user: somebody, password: in-the-file}\n")
	password := write("password", "of-the-role\n")
	tests := []struct {
		name  string
		env   map[string]string
		check func(Bus) bool
		err   string
	}{
		{"nothing is said", nil, func(b Bus) bool {
			return b.URL == "nats://file:4222" && b.User == "somebody" && b.Password.Reveal() == "in-the-file"
		}, ""},
		{"set to nothing", map[string]string{envBusURL: "", envBusUser: "", envBusPassword: ""}, func(b Bus) bool { return b.URL == "nats://file:4222" && b.User == "somebody" }, ""},
		{"all is said", map[string]string{
			envBusURL: "tls://a:4222,tls://b:4222", envBusUser: "fetch", envBusPassword: password, envBusCA: "/ca", envBusCert: "/crt", envBusKey: "/key", envBusReplicas: "3",
		}, func(b Bus) bool {
			return b.URL == "tls://a:4222,tls://b:4222" && b.User == "fetch" && b.Password.Reveal() == "of-the-role" &&
				b.CAFile == "/ca" && b.CertFile == "/crt" && b.KeyFile == "/key" && b.Replicas == 3
		}, ""},
		{"no such file", map[string]string{envBusPassword: filepath.Join(dir, "absent")}, nil, envBusPassword},
		{"replicas in words", map[string]string{envBusReplicas: "three"}, nil, envBusReplicas},
		{"two replicas", map[string]string{envBusReplicas: "2"}, nil, "bus.replicas"},
		{"half a certificate", map[string]string{envBusCert: "/crt"}, nil, "bus.key_file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			file, err := loadFile(config)
			switch {
			case tt.err == "" && (err != nil || !tt.check(file.Bus)):
				t.Errorf("got %+v, %v", file.Bus, err)
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err) || exitCode(err) != exitUsage):
				t.Errorf("got the error %v, exit code %d; want one about %s, exit code %d", err, exitCode(err), tt.err, exitUsage)
			}
		})
	}
	t.Run("flags win", func(t *testing.T) {
		t.Setenv(envBusURL, "nats://127.0.0.1:1")
		err := execute("topology", "show", "--store", filepath.Join(dir, "no-store"))
		if err == nil || !strings.Contains(err.Error(), "no-store") {
			t.Errorf("with --store: %v", err)
		}
	})
}
