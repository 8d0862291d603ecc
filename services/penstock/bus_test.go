package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
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
		if err == nil || !strings.Contains(err.Error(), "seems to have ended: start it again") || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// A command that follows a job ends when the server does: one inside penstock has another
// port when it begins again.
func TestFollowedJobOfServerThatEnds(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	defer func(d time.Duration) { answerWithin = d }(answerWithin)
	answerWithin = 300 * time.Millisecond
	follow := map[string]func(*topology.Bus, topology.Job) error{
		"backfill": func(bus *topology.Bus, j topology.Job) error {
			_, err := (&follower{bus: bus, out: io.Discard}).follow(t.Context(), j)
			return err
		},
		"replay": func(bus *topology.Bus, j topology.Job) error {
			stuck := topology.JobWorker{Can: func(*topology.Job) bool { return true }, Run: func(context.Context, *topology.JobRun) error {
				<-t.Context().Done() // e.g. waits until what it published is stored
				return nil
			}}
			return watchJob(t.Context(), io.Discard, io.Discard, bus, j, []topology.JobWorker{stuck}, false)
		},
	}
	for name, follow := range follow {
		t.Run(name, func(t *testing.T) {
			server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: 256 << 20, Log: quiet})
			if err != nil {
				t.Fatal(err)
			}
			bus, err := topology.Connect(t.Context(), server.Connect(topology.Options{Log: quiet}))
			if err != nil {
				t.Fatal(err)
			}
			defer bus.Close()
			if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 256 << 20}); err != nil {
				t.Fatal(err)
			}
			j, err := bus.AddJob(t.Context(), topology.Job{Kind: "backfill", Needs: "ingest nobody"})
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- follow(bus, j) }()
			server.Stop()
			select {
			case err := <-done:
				if !errors.Is(err, errBusGone) || !strings.Contains(err.Error(), "penstock jobs follow "+j.ID) {
					t.Errorf("it ends with: %v", err)
				}
			case <-time.After(time.Minute):
				t.Fatal("it waits for ever")
			}
		})
	}
}

// What a job has found so far is not what it was to find: one that is paused, or gone, is
// not waited for, and is an error.
func TestFollowedJobThatIsPausedOrGone(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	server, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: t.TempDir(), Disk: 256 << 20, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	bus, err := topology.Connect(t.Context(), server.Connect(topology.Options{Log: quiet}))
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	j, err := bus.AddJob(t.Context(), topology.Job{Kind: "backfill", Needs: "ingest nobody"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bus.PauseJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f := follower{bus: bus, out: io.Discard, quiet: true}
	if _, err := f.follow(ctx, j); err == nil || !strings.Contains(err.Error(), "penstock jobs resume "+j.ID) {
		t.Errorf("paused: %v", err)
	}
	j.ID = "20260101-nobody"
	if _, err := f.follow(ctx, j); !errors.Is(err, errJobGone) {
		t.Errorf("gone: %v", err)
	}
}

// Where the bus takes less, fetch and parse cut frames that surely pass.
func TestFramesFitTheBus(t *testing.T) {
	for _, c := range []struct {
		payload int64
		want    int
	}{{1 << 20, messages.TargetBody}, {4<<20 - 1, messages.TargetBody}, {4 << 20, messages.LargeBody}, {8 << 20, messages.LargeBody}} {
		p := &pipeline{}
		if got := p.fetchDeps(c.payload, nil).FrameBytes; got != c.want {
			t.Errorf("frames of %d bytes for messages of %d, want %d", got, c.payload, c.want)
		}
	}
}
