package sinks

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
)

func init() {
	define("stdout", "Prints events as newline-delimited JSON; for trying things out.", defaultStdout, openStdout)
}

var (
	errStdout       = fault.Define("deliver.stdout_failed", fault.Retry, "see that what reads the output of penstock runs and keeps up")
	errStdoutClosed = fault.Define("deliver.stdout_closed", fault.Stop, "start penstock again with an output that is read")
)

// StdoutConfig configures the stdout sink.
type StdoutConfig struct {
	// Format of a line: envelope (with penstock's id, type, time, source, account and region) or document.
	Format Format `yaml:"format"`
	// Batch bounds what is printed at once.
	Batch Limits `yaml:"batch"`
}

func defaultStdout() StdoutConfig {
	return StdoutConfig{Format: Envelope, Batch: Limits{Events: 1000, Bytes: 256 * config.KiB, Age: 200 * time.Millisecond}}
}

// Validate reports every problem.
func (c StdoutConfig) Validate() error {
	var p config.Problems
	p.In("batch", c.Batch.Validate())
	return p.Err()
}

type stdoutSink struct {
	cfg  StdoutConfig
	name string
	mu   sync.Mutex
	w    io.Writer
}

func openStdout(_ context.Context, cfg StdoutConfig, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	w := deps.Stdout
	if w == nil {
		w = os.Stdout
	}
	return &stdoutSink{cfg: cfg, name: deps.Destination, w: w}, nil
}

func (s *stdoutSink) Limits() Limits { return s.cfg.Batch }

func (s *stdoutSink) Append(dst []byte, e *Event) []byte { return s.cfg.Format.appendLine(dst, e) }

// Deliver writes whole batches, one at a time. A reader that has stopped reading
// blocks it beyond the end of ctx: a write to a pipe cannot be taken back.
func (s *stdoutSink) Deliver(ctx context.Context, b Batch) Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return Result{Verdict: Retry, Err: errStdout.New(context.Cause(ctx), "print for destination %s", s.name)}
	}
	_, err := s.w.Write(b.Bytes())
	switch {
	case err == nil:
		return Result{}
	case errors.Is(err, syscall.EPIPE), errors.Is(err, os.ErrClosed), errors.Is(err, io.ErrClosedPipe):
		return Result{Verdict: Stop, Err: errStdoutClosed.New(err, "print for destination %s", s.name)}
	}
	return Result{Verdict: Retry, Err: errStdout.New(err, "print for destination %s", s.name)}
}

func (s *stdoutSink) Close() error { return nil }
