package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/topology"
)

// busOptions tells how to reach the bus of a configuration.
func (b Bus) options(name string, log *slog.Logger) topology.Options {
	return topology.Options{
		URL: b.URL, User: b.User, InboxPrefix: b.InboxPrefix, Password: b.Password.Reveal(), Token: b.Token.Reveal(), CredsFile: b.CredsFile,
		CAFile: b.CAFile, CertFile: b.CertFile, KeyFile: b.KeyFile, Name: name,
		PublishWindow: int64(b.PublishWindow), AckWait: b.AckWait, GiveUpAfter: b.GiveUpAfter, Drain: b.DrainTimeout, Log: log,
	}
}

// busFlags are the flags of commands that talk to a bus that is running.
type busFlags struct {
	config, nats, store string
	// wait is for how long, 0 for answerWithin.
	wait time.Duration
}

func (f *busFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "configuration file: its bus section says where the streams are")
	cmd.Flags().StringVar(&f.nats, "nats", "", "URL of the NATS servers, instead of the configuration's")
	cmd.Flags().StringVar(&f.store, "store", "", "folder of a penstock that runs on this machine with the server inside it")
}

// answerWithin is how long a command waits for a server that does not answer.
var answerWithin = 10 * time.Second

// connect finds the bus: by URL, by the folder of a running penstock, by the
// environment, or by the configuration, in this order.
func (f *busFlags) connect(ctx context.Context) (*topology.Bus, File, error) {
	file := defaults()
	if f.config != "" {
		var err error
		if file, err = loadFile(f.config); err != nil {
			return nil, file, err
		}
	} else if f.store == "" {
		if err := file.Bus.fromEnvironment(os.LookupEnv); err != nil {
			return nil, file, err
		}
	}
	if f.nats != "" {
		file.Bus.URL = f.nats
	}
	if f.store != "" {
		file.Bus.URL, file.Bus.Store = "", f.store
	}
	inside := file.Bus.URL == ""
	if inside {
		access, err := os.ReadFile(filepath.Join(file.Bus.Store, topology.AccessFile))
		if err != nil {
			return nil, file, usageError{fmt.Errorf("no penstock with a server inside seems to run in %s (%w); start it, or name the servers with --nats", file.Bus.Store, err)}
		}
		// Compared with the configuration, it is still the server inside penstock.
		file.Dedupe.Lanes = file.Bus.limits(file.Dedupe.Lanes).Lanes
		file.Bus.URL = strings.TrimSpace(string(access))
		if err := refused(ctx, file.Bus.URL); err != nil { // no need to wait for a server of this machine
			return nil, file, fmt.Errorf("connect to the bus: %w; the penstock that ran in %s seems to have ended: start it again, or name the servers with --nats", err, file.Bus.Store)
		}
	}
	log := slog.New(slog.DiscardHandler) // a command answers, it does not log
	wait, cancel := context.WithTimeout(ctx, cmp.Or(f.wait, answerWithin))
	defer cancel()
	bus, err := topology.Connect(wait, file.Bus.options(fmt.Sprintf("penstock-command-%d", os.Getpid()), log))
	if err != nil && inside && ctx.Err() == nil {
		err = fmt.Errorf("%w; the penstock that ran in %s seems to have ended: start it again", err, file.Bus.Store)
	}
	return bus, file, err
}

var errBusGone = errors.New("the server of the bus answers no more: it has ended, or listens elsewhere since it began again")

// whileAnswering returns a context that ends with errBusGone when the server has not
// answered for answerWithin. Without it what waits for news would wait for ever: a server
// inside penstock may have another port after a restart.
func whileAnswering(ctx context.Context, bus *topology.Bus) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	within := answerWithin
	go func() {
		tick := time.NewTicker(within / 10)
		defer tick.Stop()
		for last := time.Now(); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			probe, end := context.WithTimeout(ctx, within/2)
			_, err := bus.Extent(probe, topology.Ledger)
			end()
			switch {
			case err == nil:
				last = time.Now()
			case time.Since(last) > within:
				cancel(errBusGone)
				return
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// jobKept says of a job that was being followed how to come back to it.
func jobKept(job *topology.Job) error {
	return fmt.Errorf("%w; job %s is kept there, and goes on once it runs: penstock jobs follow %s", errBusGone, job.ID, job.ID)
}

// refused returns the error when nothing listens at an address, and nil when something
// does or that cannot be told.
func refused(ctx context.Context, address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return nil //nolint:nilerr // who connects says what is wrong with it
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", u.Host)
	if err == nil {
		return conn.Close()
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return nil
}
