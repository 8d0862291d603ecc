package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/topology"
)

// Servers and roles with these certificates trust each other, and nobody else.
func TestCertificates(t *testing.T) {
	now := time.Now()
	dir, other := t.TempDir(), t.TempDir()
	certificatesIn(t, dir, now)
	certificatesIn(t, other, now)
	for _, role := range topology.Roles {
		if err := handshake(t, dir, "nats", dir, string(role), now); err != nil {
			t.Errorf("%s is not let in: %v", role, err)
		}
	}
	refused := map[string]error{
		"a role of another authority": handshake(t, dir, "nats", other, "fetch", now),
		"nobody":                      handshake(t, dir, "nats", "", "", now),
		"a role in place of a server": handshake(t, dir, "fetch", dir, "parse", now),
		"after its time":              handshake(t, dir, "nats", dir, "fetch", now.Add(400*24*time.Hour)),
	}
	for who, err := range refused {
		if err == nil {
			t.Errorf("%s was let in", who)
		}
	}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has the mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// What is good is kept, what is not is made again, and the authority stays.
func TestCertificatesAgain(t *testing.T) {
	now, dir := time.Now(), t.TempDir()
	made := func(f certificatesFlags, now time.Time) (names []string) {
		t.Helper()
		f.dir = dir
		if f.hosts == nil {
			f.hosts = []string{"nats"}
		}
		if f.valid == 0 {
			f.valid = 90 * 24 * time.Hour
		}
		all, err := f.run(now)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range all {
			if c.New {
				names = append(names, c.Name)
			}
		}
		return names
	}
	all := len(topology.Roles) + 2
	if n := len(made(certificatesFlags{}, now)); n != all {
		t.Errorf("made %d certificates at first, want %d", n, all)
	}
	if names := made(certificatesFlags{}, now.Add(59*24*time.Hour)); names != nil {
		t.Errorf("made %v anew, though they were good for a third of their time", names)
	}
	if names := made(certificatesFlags{hosts: []string{"nats", "10.0.0.7"}}, now); strings.Join(names, " ") != "nats" {
		t.Errorf("for another host: made %v anew, want that of the servers", names)
	}
	if n := len(made(certificatesFlags{rotate: true}, now)); n != all-1 {
		t.Errorf("--rotate: made %d anew, want all but the authority", n)
	}
	if n := len(made(certificatesFlags{}, now.Add(61*24*time.Hour))); n != all-1 {
		t.Errorf("near their end: made %d anew, want all but the authority", n)
	}
	// A stop between key and certificate leaves a pair that does not fit.
	key, err := os.ReadFile(filepath.Join(dir, "parse", certKeyFile))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "fetch", certKeyFile), key, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if names := made(certificatesFlags{}, now.Add(61*24*time.Hour)); strings.Join(names, " ") != "fetch.penstock" {
		t.Errorf("after a stop in the middle: made %v anew, want fetch.penstock", names)
	}
	for _, wrong := range [][]string{
		{"topology", "certificates", "--host", "nats"},
		{"topology", "certificates", "--dir", dir},
		{"topology", "certificates", "--dir", dir, "--host", "nats", "--valid", "1s"},
	} {
		if code := exitCode(execute(wrong...)); code != exitUsage {
			t.Errorf("%v: exit code %d, want %d", wrong, code, exitUsage)
		}
	}
}

func certificatesIn(t *testing.T, dir string, now time.Time) {
	t.Helper()
	f := certificatesFlags{dir: dir, hosts: []string{"nats", "127.0.0.1"}, valid: 365 * 24 * time.Hour}
	if _, err := f.run(now); err != nil {
		t.Fatal(err)
	}
}

// handshake connects a client with the files of one folder to a server with those of
// another, as NATS does with verify: true, and returns why that fails.
func handshake(t *testing.T, serverDir, serverName, clientDir, clientName string, now time.Time) error {
	t.Helper()
	load := func(dir, name string) (tls.Certificate, *x509.CertPool) {
		cert, err := tls.LoadX509KeyPair(filepath.Join(dir, name, certFile), filepath.Join(dir, name, certKeyFile))
		if err != nil {
			t.Fatal(err)
		}
		ca, err := os.ReadFile(filepath.Join(dir, name, caFile))
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(ca) {
			t.Fatal("no authority in ", name)
		}
		return cert, pool
	}
	clock := func() time.Time { return now }
	cert, trusted := load(serverDir, serverName)
	a, b := net.Pipe()
	server := tls.Server(a, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientCAs: trusted, ClientAuth: tls.RequireAndVerifyClientCert, Time: clock})
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "nats", RootCAs: trusted, Time: clock}
	if clientName != "" {
		cert, pool := load(clientDir, clientName)
		config.Certificates = []tls.Certificate{cert}
		if clientDir == serverDir {
			config.RootCAs = pool
		}
	}
	client := tls.Client(b, config)
	done := make(chan error, 1)
	go func() {
		err := server.Handshake()
		_ = a.Close()
		done <- err
	}()
	err := client.Handshake()
	_ = b.Close()
	return errors.Join(err, <-done)
}
