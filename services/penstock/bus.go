package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/topology"
)

// busOptions tells how to reach the bus of a configuration.
func (b Bus) options(name string, log *slog.Logger) topology.Options {
	return topology.Options{
		URL: b.URL, User: b.User, Password: b.Password.Reveal(), Token: b.Token.Reveal(), CredsFile: b.CredsFile,
		CAFile: b.CAFile, CertFile: b.CertFile, KeyFile: b.KeyFile, Name: name,
		PublishWindow: int64(b.PublishWindow), AckWait: b.AckWait, GiveUpAfter: b.GiveUpAfter, Drain: b.DrainTimeout, Log: log,
	}
}

// busFlags are the flags of commands that talk to a bus that is running.
type busFlags struct {
	config, nats, store string
}

func (f *busFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "configuration file: its bus section says where the streams are")
	cmd.Flags().StringVar(&f.nats, "nats", "", "URL of the NATS servers, instead of the configuration's")
	cmd.Flags().StringVar(&f.store, "store", "", "folder of a penstock that runs on this machine with the server inside it")
}

// answerWithin is how long a command waits for a server that does not answer.
var answerWithin = 10 * time.Second

// connect finds the bus: by URL, by the folder of a running penstock, or by the
// configuration, in this order.
func (f *busFlags) connect(ctx context.Context) (*topology.Bus, File, error) {
	file := defaults()
	if f.config != "" {
		var err error
		if file, err = loadFile(f.config); err != nil {
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
	}
	log := slog.New(slog.DiscardHandler) // a command answers, it does not log
	wait, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	bus, err := topology.Connect(wait, file.Bus.options(fmt.Sprintf("penstock-command-%d", os.Getpid()), log))
	if err != nil && inside && ctx.Err() == nil {
		err = fmt.Errorf("%w; the penstock that ran in %s seems to have ended: start it again", err, file.Bus.Store)
	}
	return bus, file, err
}
