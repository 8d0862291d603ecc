package telemetry

import (
	"errors"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/services/internal/config"
)

func TestDefaultsAreValid(t *testing.T) {
	if err := Defaults().Validate(); err != nil {
		t.Errorf("Defaults().Validate() = %v", err)
	}
}

// covers: DEV-124
func TestValidateNamesEveryKey(t *testing.T) {
	tests := []struct {
		name string
		c    Config
		keys string
	}{
		{"zero value", Config{}, "log_level log_format check_timeout flush_timeout"},
		{"no port", Config{LogLevel: "INFO", LogFormat: "json", Address: "8080", PrivateAddress: "localhost:", CheckTimeout: 1, FlushTimeout: 1}, "address private_address"},
		{"ratio above one", Config{LogLevel: "warn", LogFormat: "text", SampleRatio: 1.5, CheckTimeout: 1, FlushTimeout: 1}, "sample_ratio"},
		{"negative", Config{LogLevel: "error", LogFormat: "auto", SampleRatio: -1, CheckTimeout: -time.Second, FlushTimeout: 1}, "sample_ratio check_timeout"},
		{"unknown level", Config{LogLevel: "loud", LogFormat: "auto", CheckTimeout: 1, FlushTimeout: 1}, "log_level"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var e *config.Error
			if !errors.As(tt.c.Validate(), &e) {
				t.Fatal("Validate found nothing")
			}
			var keys []string
			for _, p := range e.Problems {
				keys = append(keys, p.Path)
				if p.Fix == "" {
					t.Errorf("%s: no fix", p.Path)
				}
			}
			if got := strings.Join(keys, " "); got != tt.keys {
				t.Errorf("keys = %s, want %s", got, tt.keys)
			}
		})
	}
}

func TestBuild(t *testing.T) {
	vcs := &debug.BuildInfo{Main: debug.Module{Version: "v0.0.0-20260101"}, Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "abc"}, {Key: "vcs.modified", Value: "true"},
	}}
	tests := []struct {
		name            string
		info            *debug.BuildInfo
		version, commit string
		want            Build
	}{
		{"from the repository", vcs, "", "", Build{Version: "v0.0.0-20260101", Commit: "abc", Modified: true}},
		{"from the linker", vcs, "v1", "def", Build{Version: "v1", Commit: "def", Modified: true}},
		{"in a test", &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "", "", Build{Version: "devel", Commit: "unknown"}},
		{"stripped", nil, "", "", Build{Version: "devel", Commit: "unknown"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := buildOf(tt.info, tt.version, tt.commit)
			if !strings.HasPrefix(got.Go, "go1.") {
				t.Errorf("Go = %q", got.Go)
			}
			if got.Go = ""; got != tt.want {
				t.Errorf("buildOf = %+v, want %+v", got, tt.want)
			}
		})
	}
}
