package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestNotifySystemd plays systemd: it is told when all stages run, and when they stop.
func TestNotifySystemd(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", at)
	told := func() string {
		if err := socket.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		n, _, err := socket.ReadFromUnix(buf)
		if err != nil {
			t.Fatalf("nothing came: %v", err)
		}
		return string(buf[:n])
	}

	config := filepath.Join(dir, "penstock.yaml")
	if err := os.WriteFile(config, []byte(`
bus: {store: `+filepath.Join(dir, "data")+`, disk: 64 MiB}
sources: [{name: in, type: http, address: "127.0.0.1:0", auth: none, endpoints: [{path: /in, kind: json}]}]
destinations: [{name: out, type: file, path: `+filepath.Join(dir, "out.ndjson")+`}]
telemetry: {address: "", private_address: ""}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() {
		cmd := newRun()
		cmd.SetArgs([]string{"--config", config})
		ended <- cmd.ExecuteContext(ctx)
	}()
	first := make(chan string, 1)
	go func() { first <- told() }()
	select {
	case lines := <-first:
		if !strings.HasPrefix(lines, "READY=1\nSTATUS=") {
			t.Errorf("told %q first, want READY=1 and a status", lines)
		}
	case err := <-ended:
		t.Fatalf("ended at once: %v", err)
	}
	stop()
	if lines := told(); lines != "STOPPING=1" {
		t.Errorf("told %q at the end, want STOPPING=1", lines)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestNotifyNobody: without a socket nothing is told, and one that is gone harms nothing.
func TestNotifyNobody(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	notify(slog.New(slog.DiscardHandler), "READY=1")
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	var text strings.Builder
	notify(slog.New(slog.NewTextHandler(&text, nil)), "READY=1")
	if !strings.Contains(text.String(), "systemd could not be told") {
		t.Errorf("logged %q", text.String())
	}
}
