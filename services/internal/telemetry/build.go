package telemetry

import (
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Set by the linker where the build cannot see the repository, as in an image:
// -ldflags "-X github.com/penstock/penstock/services/internal/telemetry.version=v1.2.3".
var version, commit string

// Build tells which program this is.
type Build struct {
	// Version is a tag such as v1.2.3, a pseudo-version, or "devel".
	Version string `json:"version"`
	// Commit is the revision, "unknown" when the build did not see it.
	Commit string `json:"commit"`
	// Modified is true when files were changed after the commit.
	Modified bool `json:"modified"`
	// Go is the version of the compiler.
	Go string `json:"go"`
}

// BuildInfo reads what the Go command and the linker left in the program.
func BuildInfo() Build {
	info, _ := debug.ReadBuildInfo()
	return buildOf(info, version, commit)
}

func buildOf(info *debug.BuildInfo, version, commit string) Build {
	b := Build{Version: version, Commit: commit, Go: runtime.Version()}
	if info != nil {
		if b.Version == "" && info.Main.Version != "(devel)" {
			b.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision" && b.Commit == "":
				b.Commit = s.Value
			case s.Key == "vcs.modified":
				b.Modified = s.Value == "true"
			}
		}
	}
	if b.Version == "" {
		b.Version = "devel"
	}
	if b.Commit == "" {
		b.Commit = "unknown"
	}
	return b
}

func init() {
	b := BuildInfo()
	promauto.NewGauge(prometheus.GaugeOpts{
		Name:        "penstock_build_info",
		Help:        "1, labelled with what this program was built from.",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "go": b.Go},
	}).Set(1)
}
