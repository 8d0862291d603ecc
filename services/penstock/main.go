// Command penstock collects security and audit logs: every event, once, from
// where vendors leave it to where it is worked with, with proof that nothing is
// missing.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/telemetry"
	"github.com/penstock/penstock/topology"
)

// Exit codes. They are part of the interface: scripts look at them.
const (
	exitOK         = 0
	exitFailed     = 1   // the work failed, or the books do not balance
	exitUsage      = 2   // the command line or the configuration is wrong
	exitDrain      = 3   // stopped, but work in hand had to be given back
	exitInterrupts = 130 // ended by a second signal
)

// usageError marks what the user typed or wrote wrong.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// errSilent is a failure that was reported already.
var errSilent = errors.New("")

// errDrained is a stop that had to give work back.
var errDrained = errors.New("stopped, but not all work in hand could be finished; it is given back and nothing is lost")

func main() {
	topology.ProgramVersion = telemetry.BuildInfo().Version
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		s := <-signals
		fmt.Fprintf(os.Stderr, "\npenstock: %s: finishing what is in hand; once more ends at once\n", s)
		cancel(fmt.Errorf("signal %s", s))
		<-signals
		os.Exit(exitInterrupts)
	}()
	root := newRoot()
	err := root.ExecuteContext(ctx)
	if err != nil && strings.HasPrefix(err.Error(), "unknown command") { // cobra has no type for it
		err = usageError{err}
	}
	if err != nil && !errors.Is(err, errSilent) {
		// It may quote what a far side or an event says.
		fmt.Fprintln(os.Stderr, "penstock:", printable(err.Error()))
	}
	os.Exit(exitCode(err))
}

func exitCode(err error) int {
	var usage usageError
	var conf *config.Error
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage), errors.As(err, &conf):
		return exitUsage
	case errors.Is(err, errDrained):
		return exitDrain
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "penstock",
		Short: "Collect security and audit logs: every event, once, and prove it",
		Long: `penstock takes events from where vendors leave them (queues, buckets, APIs) or
from who sends them by HTTP, to where they are worked with, through six stages
over NATS JetStream:

  ingest → fetch → parse → dedupe → route → deliver

Exit codes: 0 done; 1 failed, or the books do not balance; 2 wrong command line
or configuration; 3 stopped, but work in hand was given back; 130 ended by a
second signal.`,
		Example: `  penstock demo                       see it work, with nothing but this program
  penstock parse flow.log.gz          see what a file becomes
  penstock config init > penstock.yaml
  penstock config check penstock.yaml
  penstock doctor --config penstock.yaml
  penstock run --config penstock.yaml`,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	root.AddCommand(newRun(), newDemo(), newEndpoint(), newConfig(), newTopology(), newParse(), newTest(), newLedger(), newTrace(), newQuarantine(), newBackfill(), newReconcile(), newAudit(), newConsumers(), newHealth(), newDoctor(), newConsole(), newVersion())
	root.AddCommand(newReplay(), newJobs(), newStatus(), newTop(), newTail(), newFreshness())
	root.AddCommand(newKinds()...)
	finish(root)
	return root
}

// exactly is cobra.ExactArgs with our exit code.
func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("%s takes %s, got %d; see %s --help", cmd.CommandPath(), plural(n, "argument", "arguments"), len(args), cmd.CommandPath())}
		}
		return nil
	}
}

func atMostOne(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usageError{fmt.Errorf("%s takes at most one argument, got %d; see %s --help", cmd.CommandPath(), len(args), cmd.CommandPath())}
	}
	return nil
}
