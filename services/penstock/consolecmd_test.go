package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"

	"github.com/penstock/penstock/topology"
)

func TestConsoleHash(t *testing.T) {
	for _, test := range []struct {
		in   string
		code int
	}{
		{"correct horse\n", exitOK}, {"correct horse\r\nsecond line\n", exitOK}, {"correct horse", exitOK}, {"short\n", exitUsage}, {"", exitUsage},
	} {
		var out strings.Builder
		root := newRoot()
		root.SetArgs([]string{"console", "hash"})
		root.SetIn(strings.NewReader(test.in))
		root.SetOut(&out)
		err := root.ExecuteContext(t.Context())
		if exitCode(err) != test.code {
			t.Errorf("%q: %v", test.in, err)
		}
		if fits, _ := argon2id.ComparePasswordAndHash("correct horse", strings.TrimSpace(out.String())); fits != (test.code == exitOK) {
			t.Errorf("%q: the hash %q fits: %t", test.in, out.String(), fits)
		}
	}
}

// A console that others reach needs people who log in, on the command line, too.
func TestConsoleIsGuarded(t *testing.T) {
	root := newRoot()
	root.SetArgs([]string{"console", "--nats", "nats://127.0.0.1:1", "--address", "0.0.0.0:0"})
	if err := root.ExecuteContext(t.Context()); exitCode(err) != exitUsage || !strings.Contains(err.Error(), "nobody has to log in") {
		t.Errorf("%v", err)
	}
}

// The console opens before the server inside a penstock on this machine answers, and
// finds it again when it comes back at another address.
//
// covers: design section 8
func TestConsoleFindsThePenstockBesideIt(t *testing.T) {
	dir := t.TempDir()
	quiet := slog.New(slog.DiscardHandler)
	begin := func() *topology.Embedded {
		t.Helper()
		server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: dir, Disk: 512 << 20, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		bus, err := topology.Connect(t.Context(), server.Connect(topology.Options{Name: "test", Log: quiet}))
		if err != nil {
			t.Fatal(err)
		}
		defer bus.Close()
		if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 512 << 20}); err != nil {
			t.Fatal(err)
		}
		return server
	}
	// An address of a run before, at which nobody answers.
	access := filepath.Join(dir, topology.AccessFile)
	if err := os.WriteFile(access, []byte("nats://127.0.0.1:1"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := defaults()
	file.Bus.Store, file.Telemetry.Address, file.Telemetry.PrivateAddress = dir, "", ""
	file.Telemetry.Output = io.Discard
	free, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // for its number only
	if err != nil {
		t.Fatal(err)
	}
	file.Console.Address = free.Addr().String()
	free.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- runConsole(ctx, file, true) }()
	shows := func(want string) {
		t.Helper()
		page := ""
		for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) { // between two looks
			r, err := http.Get("http://" + file.Console.Address + "/topology") //nolint:noctx // it ends with the test
			if err != nil {
				continue
			}
			data, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if page = string(data); strings.Contains(page, want) {
				return
			}
		}
		t.Fatalf("the console never shows %q: %s", want, page)
	}
	shows("The bus does not answer")
	server := begin()
	shows("penstock.event.")
	shows("none: console")
	server.Stop()
	shows("The bus does not answer")
	server = begin()
	defer server.Stop()
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(50 * time.Millisecond) { // between two looks
		r, err := http.Get("http://" + file.Console.Address + "/bus") //nolint:noctx // it ends with the test
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if strings.TrimSpace(string(data)) == "" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the server that came back was never found")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
