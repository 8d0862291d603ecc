package sinks

import (
	"strings"
	"testing"
)

// rsyslog and syslog-ng are what Devo's relay and its customers use; both take its
// lines.
// covers: F-22, DEV-128, DEV-142, SYS-16
func TestDevoReal(t *testing.T) {
	t.Parallel() // it waits for daemons
	for name, daemon := range map[string]func(t *testing.T) *syslogd{
		"rsyslog": rsyslogd, "syslog-ng": func(t *testing.T) *syslogd { return syslogNG(t, LineFeed) },
	} {
		t.Run(name, func(t *testing.T) {
			d := daemon(t)
			cfg := defaultDevo()
			cfg.Address, cfg.TLS = d.address, d.trust.client()
			cfg.Unconfirmed.Bytes *= 8
			s, err := openDevo(t.Context(), cfg, Deps{Destination: "real"})
			must(t, err)
			survives(t, d, s, func(event []byte) string { return strings.TrimSuffix(string(event), "\n") })
		})
	}
}
