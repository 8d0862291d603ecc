package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// routesFile is the file of penstock topology routes, below its folder.
const routesFile = "nats/cluster.conf"

var (
	nodeForm      = regexp.MustCompile(`^[A-Za-z0-9._-]+(:[0-9]{1,5})?$`)
	routePassword = regexp.MustCompile(`password: "([A-Za-z0-9_-]{20,})"`)
)

func newTopologyRoutes() *cobra.Command {
	dir, name, nodes, rotate, asJSON := "", "penstock", []string(nil), false, false
	cmd := &cobra.Command{
		Use: "routes", Args: exactly(0),
		Short: "Write how the servers of a NATS cluster reach each other, with a password",
		Long: `Writes DIR/nats/cluster.conf for the nats.conf of each server of a cluster: where the
others are, and a password that they ask of each other. Nobody else may read it. A
password that is there is kept, so that it is safe to repeat.`,
		Example: "  penstock topology routes --dir /etc/penstock/users --node nats-1 --node nats-2 --node nats-3",
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case dir == "":
				return usageError{errors.New("say with --dir where to put the file")}
			case len(nodes) < 3:
				return usageError{errors.New("name each server with --node: a cluster has 3 or more")}
			case !regexp.MustCompile(`^[A-Za-z0-9_-]+$`).MatchString(name):
				return usageError{fmt.Errorf("--name %q: use letters, digits, - and _", name)}
			}
			for _, node := range nodes {
				if !nodeForm.MatchString(node) {
					return usageError{fmt.Errorf("--node %q: use a host, or host:port", node)}
				}
			}
			path := filepath.Join(dir, routesFile)
			password, made := "", false
			if old, err := os.ReadFile(path); err == nil && !rotate {
				if m := routePassword.FindSubmatch(old); m != nil {
					password = string(m[1])
				}
			}
			if password == "" {
				random := make([]byte, 30)
				if _, err := rand.Read(random); err != nil {
					return err
				}
				password, made = base64.RawURLEncoding.EncodeToString(random), true
			}
			if err := replaceFile(path, routesConf(name, password, nodes), -1, -1); err != nil {
				return fmt.Errorf("write the routes: %w", err)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), map[string]any{"file": path, "name": name, "nodes": nodes, "new": made})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s has the routes of %d servers\n", path, len(nodes))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", "folder for the file, that of topology users")
	f.StringVar(&name, "name", name, "name of the cluster")
	f.StringSliceVar(&nodes, "node", nil, "a server, host or host:port, port 6222 if none is said; repeat it for each")
	f.BoolVar(&rotate, "rotate", false, "make a new password")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// routesConf is the part of a nats.conf that all servers of a cluster share.
func routesConf(name, password string, nodes []string) string {
	var b strings.Builder
	b.WriteString("# Written by penstock topology routes: repeat it rather than change this.\n")
	fmt.Fprintf(&b, "cluster {\n  name: %s\n  listen: \"0.0.0.0:6222\"\n  no_advertise: true\n", name)
	fmt.Fprintf(&b, "  authorization { user: route, password: %q, timeout: 5 }\n  routes: [\n", password)
	for _, node := range nodes {
		if !strings.Contains(node, ":") {
			node += ":6222"
		}
		fmt.Fprintf(&b, "    \"nats-route://route:%s@%s\"\n", password, node)
	}
	b.WriteString("  ]\n}\n")
	return b.String()
}
