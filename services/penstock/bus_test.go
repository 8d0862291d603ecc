package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/topology"
)

// A command does not wait for ever for a penstock that has ended.
func TestCommandsWithoutServer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	store := t.TempDir()
	if err := errors.Join(listener.Close(), os.WriteFile(filepath.Join(store, topology.AccessFile), []byte("nats://"+address+"\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	defer func(d time.Duration) { answerWithin = d }(answerWithin)
	answerWithin = 50 * time.Millisecond
	for _, args := range [][]string{{"ledger"}, {"quarantine", "list"}, {"quarantine", "show", "x"}, {"topology", "show"}} {
		_, _, err := command(t, "", append(args, "--store", store)...)
		if err == nil || !strings.Contains(err.Error(), "seems to have ended: start it again") {
			t.Errorf("%v: %v", args, err)
		}
	}
}
