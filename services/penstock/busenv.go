package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/penstock/penstock/services/internal/config"
)

// Environment variables that say where the bus is, and who one is there. They win over
// the configuration, so that all processes can share one file and each has its own
// user; flags win over them.
const (
	envBusURL      = "PENSTOCK_BUS_URL"
	envBusUser     = "PENSTOCK_BUS_USER"
	envBusPassword = "PENSTOCK_BUS_PASSWORD_FILE" //nolint:gosec // a name
	envBusCA       = "PENSTOCK_BUS_CA_FILE"
	envBusCert     = "PENSTOCK_BUS_CERT_FILE"
	envBusKey      = "PENSTOCK_BUS_KEY_FILE"
	envBusReplicas = "PENSTOCK_BUS_REPLICAS"
)

// fromEnvironment puts what the environment says of the bus in place of what the
// configuration does. A variable that is set to nothing says nothing.
func (b *Bus) fromEnvironment(lookup func(string) (string, bool)) error {
	said := false
	set := func(name string, to *string) bool {
		value, _ := lookup(name)
		if value != "" {
			*to, said = value, true
		}
		return value != ""
	}
	set(envBusURL, &b.URL)
	set(envBusUser, &b.User)
	set(envBusCA, &b.CAFile)
	set(envBusCert, &b.CertFile)
	set(envBusKey, &b.KeyFile)
	var file, replicas string
	if set(envBusPassword, &file) {
		password, err := os.ReadFile(file)
		if err != nil {
			return usageError{fmt.Errorf("%s: %w; name a file that this user may read, or unset the variable", envBusPassword, err)}
		}
		b.Password = config.NewSecret(strings.TrimSpace(string(password)))
	}
	if set(envBusReplicas, &replicas) {
		n, err := strconv.Atoi(replicas)
		if err != nil {
			return usageError{fmt.Errorf("%s=%q: use 1, 3 or 5", envBusReplicas, replicas)}
		}
		b.Replicas = n
	}
	if !said {
		return nil
	}
	var p config.Problems
	p.In("bus", b.Validate())
	if err := p.Err(); err != nil {
		return fmt.Errorf("with the environment variables PENSTOCK_BUS_*: %w", err)
	}
	return nil
}
