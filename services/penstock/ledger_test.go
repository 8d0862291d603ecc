package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/operate/books"
	"github.com/penstock/penstock/topology"
)

// The books are found wherever they are: in what the ledger has, in the process that
// keeps them, and in what a penstock that has ended left behind.
// covers: design promise 4
func TestLedgerAndTrace(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	store := t.TempDir()
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: store, Disk: 256 << 20, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	bus, err := topology.Connect(t.Context(), server.Connect(topology.Options{Log: quiet}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bus.Close)
	if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	out := bus.NewOutbox(topology.Ingest)
	for _, key := range []string{"open.json", "evil\x1b[31m.json"} {
		out.Fact(&messages.Fact{Kind: &messages.Fact_Announced{Announced: &messages.Announced{
			Origin: &messages.Origin{Pull: messages.NewPull(key), Source: "trail", Bucket: "logs", Key: key}, As: messages.Announced_AS_OBJECT,
		}}})
	}
	out.Fact(&messages.Fact{Kind: &messages.Fact_Fetched{Fetched: &messages.Fetched{Pull: messages.NewPull("open.json"), Records: 3, End: messages.Fetched_END_COMPLETE}}})
	if err := out.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask := func(t *testing.T) {
		t.Helper()
		stdout, _, err := command(t, "", "ledger", "--json", "--pulls", "--store", store)
		var all balances
		if !errors.Is(err, errSilent) || json.Unmarshal([]byte(stdout), &all) != nil {
			t.Fatalf("%v: %s", err, stdout)
		}
		if all.Balanced || all.Total.Pulls != 2 || all.Total.Open != 1 || len(all.Pulls) != 2 || len(all.Sources) != 1 || len(all.Problems) != 1 {
			t.Errorf("%s", stdout)
		}
		for _, tt := range []struct {
			args string
			want string
			err  bool
		}{
			{"ledger", "the books do NOT balance\nso since ", true},
			{"ledger", "; none for longer than 15 minutes: what is under way does not balance yet", true},
			{"ledger --state open", "open ", false},
			{"ledger --state overdue", "STATE", false},
			{"ledger --object OPEN.json --from 1h", "3 of 3 records were fetched, but not parsed", true},
			{"ledger --object nothing", "STATE", false},
			{"trace s3://logs/open.json", "complete: 3 records in 0 frames", true},
		} {
			stdout, _, err := command(t, "", append(strings.Fields(tt.args), "--store", store)...)
			if !strings.Contains(stdout, tt.want) || errors.Is(err, errSilent) != tt.err || err != nil && !tt.err || strings.Contains(stdout, "\x1b") {
				t.Errorf("%s: %v\n%s", tt.args, err, stdout)
			}
		}
		if _, _, err := command(t, "", "trace", "s3://logs/none", "--store", store); !errors.Is(err, books.ErrUnknown) {
			t.Errorf("trace of nothing: %v", err)
		}
	}
	t.Run("nobody keeps them", ask)

	b, err := books.Open(t.Context(), filepath.Join(store, "ledger"), books.Options{Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Fold(ctx, bus) }()
	for wait := time.After(time.Minute); ; {
		if _, err := books.Ask(bus).Summary(t.Context()); err == nil {
			break
		}
		select {
		case <-wait:
			t.Fatal("nobody answers")
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Run("a process keeps them", ask)
	cancel()
	if err := errors.Join(<-done, b.Close()); err != nil {
		t.Fatal(err)
	}
	bus.Close()
	server.Stop()
	defer func(d time.Duration) { answerWithin = d }(answerWithin)
	answerWithin = 50 * time.Millisecond
	t.Run("penstock has ended", ask)

	for _, args := range []string{"ledger --state odd", "ledger --from yesterday", "ledger --limit 0", "trace", "trace x --to never"} {
		var usage usageError
		if _, _, err := command(t, "", strings.Fields(args)...); !errors.As(err, &usage) {
			t.Errorf("%s: %v", args, err)
		}
	}
}
