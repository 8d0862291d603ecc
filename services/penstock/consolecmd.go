package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/alexedwards/argon2id"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/console"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/telemetry"
	"github.com/penstock/penstock/services/operate/books"
	"github.com/penstock/penstock/services/operate/status"
	"github.com/penstock/penstock/topology"
)

func newConsole() *cobra.Command {
	var flags busFlags
	address, login := "", os.Getenv(envConsoleLogin)
	cmd := &cobra.Command{
		Use: "console", Args: exactly(0),
		Short: "Serve the pages in which people watch a pipeline and operate it",
		Long: `Serves the console, and looks after the pipeline where no process with all stages
does: it keeps the books of the ledger, watches how fresh sources are, and does the
jobs that need no stage.

It listens on 127.0.0.1:9180, where only this machine gets in, unless --address or
console.address says otherwise. Where others get in, people have to log in: see the
section console of the configuration, and "penstock console hash". For a first login
without these, --login makes a password for the user "operator", which "penstock console
password" prints. It starts without NATS and goes on by itself when that answers.

A penstock run with all stages in one process serves the console itself when
console.address is set.`,
		Example: "  penstock console --nats nats://nats:4222\n  penstock console --store penstock-data\n  penstock console --config penstock.yaml --address 0.0.0.0:9180",
		RunE: func(cmd *cobra.Command, _ []string) error {
			file := defaults()
			if flags.config != "" {
				var err error
				if file, err = loadFile(flags.config); err != nil {
					return err
				}
			} else if flags.store == "" {
				if err := file.Bus.fromEnvironment(os.LookupEnv); err != nil {
					return err
				}
			}
			if flags.nats != "" {
				file.Bus.URL = flags.nats
			}
			if flags.store != "" {
				file.Bus.URL, file.Bus.Store = "", flags.store
			}
			if address != "" {
				file.Console.Address = address
			}
			if login != "" {
				users, err := loginUsers(login)
				if err != nil {
					return err
				}
				file.Console.Users = append(file.Console.Users, users...)
			}
			return runConsole(cmd.Context(), file, flags.config != "")
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&address, "address", "", "listen on host:port, instead of the configuration's console.address")
	cmd.Flags().StringVar(&login, "login", login, "let in also who has the password in this folder; it is made when there is none")
	cmd.AddCommand(newConsoleHash(), newConsolePassword())
	return cmd
}

// runConsole serves the console until ctx ends.
func runConsole(ctx context.Context, file File, configured bool) (err error) {
	inside := file.Bus.URL == ""
	if inside {
		if _, err := accessOf(file.Bus.Store); err != nil {
			return err
		}
	}
	file.Telemetry.Identity = telemetry.Identity{Stage: "console"}
	tel, err := telemetry.Setup(ctx, file.Telemetry)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Shutdown(context.WithoutCancel(ctx))) }()
	o := newOverseer(file, tel.Log)
	c, err := o.openConsole(configured)
	if err != nil {
		return err
	}
	health, err := telemetry.Listen(ctx, file.Telemetry.Address, telemetry.Health{
		Ready:   map[string]func(context.Context) error{"bus": o.ready},
		Timeout: file.Telemetry.CheckTimeout, TLS: file.Telemetry.TLS, Private: file.Telemetry.PrivateAddress, Level: tel.Level,
	})
	if fault.CodeOf(err) == "telemetry.address_in_use" { // beside a penstock run of the same configuration
		tel.Log.Warn("health and metrics of the console are not served", "err", err)
	} else if err != nil {
		return err
	}
	tel.Log.Info("the console is open", "url", c.URL())
	group, ctx := errgroup.WithContext(ctx)
	if health != nil {
		group.Go(func() error { return health.Run(ctx) })
	}
	group.Go(func() error { return c.Run(ctx) })
	group.Go(func() error {
		if inside { // the process with all stages looks after it
			o.follow(ctx)
			return nil
		}
		bus := connectSoon(ctx, file.Bus, tel.Log)
		if bus == nil {
			return nil
		}
		defer bus.Close()
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return o.run(ctx, bus) })
		group.Go(func() error { return bus.Keep(ctx) }) // what no stage reads
		group.Go(func() error { o.answer(ctx, bus); return nil })
		return group.Wait()
	})
	return group.Wait()
}

// ready returns nil when the bus answers.
func (o *overseer) ready(ctx context.Context) error {
	if bus := o.bus.Load(); bus != nil {
		return bus.Ready(ctx)
	}
	return errStarting
}

// follow keeps a connection to the server inside a penstock on this machine until ctx
// ends: at each start that may have another address.
func (o *overseer) follow(ctx context.Context) {
	look := time.NewTicker(2 * time.Second)
	defer look.Stop()
	for ctx.Err() == nil {
		at, _ := accessOf(o.file.Bus.Store)
		bus := connectSoon(ctx, o.file.Bus, o.log)
		if bus == nil {
			return
		}
		o.bus.Store(bus)
		known, stop := context.WithCancel(ctx)
		var told sync.WaitGroup
		told.Go(func() { o.answer(known, bus) })
		for now := at; now == at && ctx.Err() == nil; {
			select {
			case <-ctx.Done():
			case <-look.C:
				if found, err := accessOf(o.file.Bus.Store); err == nil {
					now = found
				}
			}
		}
		stop()
		told.Wait()
		bus.Close()
	}
}

// answer has the console listed among the processes, with no stage, until ctx ends.
func (o *overseer) answer(ctx context.Context, bus *topology.Bus) {
	host, _ := os.Hostname()
	if err := status.Answer(ctx, bus, fmt.Sprintf("%s-%d-console", host, os.Getpid()), nil); err != nil && ctx.Err() == nil {
		o.log.Warn("the console is not listed among the processes", "err", err)
	}
}

// accessOf is how to reach the server inside a penstock that runs on this machine.
func accessOf(store string) (string, error) {
	access, err := os.ReadFile(filepath.Join(store, topology.AccessFile))
	if err != nil {
		return "", usageError{fmt.Errorf("no penstock with a server inside seems to run in %s (%w); start it, or name the servers with --nats", store, err)}
	}
	return strings.TrimSpace(string(access)), nil
}

// connectSoon connects to the bus, however long that takes; nil when ctx ends first.
func connectSoon(ctx context.Context, b Bus, log *slog.Logger) *topology.Bus {
	inside := b.URL == ""
	for {
		var err error
		if inside { // it is written anew at each start
			b.URL, err = accessOf(b.Store)
		}
		if err == nil {
			wait, cancel := context.WithTimeout(ctx, answerWithin)
			bus, connectErr := topology.Connect(wait, b.options(fmt.Sprintf("penstock-console-%d", os.Getpid()), log))
			cancel()
			if connectErr == nil {
				return bus
			}
			err = connectErr
		}
		if ctx.Err() != nil {
			return nil
		}
		log.Warn("the bus does not answer, trying on; the console says so, too", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// openConsole opens the listener of the console; its Run serves. What it shows is what
// the overseer has by then. Without a configuration file it shows no settings.
func (o *overseer) openConsole(configured bool) (*console.Console, error) {
	deps := console.Deps{
		Bus: o.bus.Load,
		Books: func() books.Reader {
			if b := o.books.Load(); b != nil {
				return b
			}
			if bus := o.bus.Load(); bus != nil { // another process may keep them
				return books.Ask(bus)
			}
			return nil
		},
		Configured: o.configured,
		Version:    telemetry.BuildInfo().Version, Log: o.log,
	}
	if configured {
		deps.Effective = func() ([]byte, error) { return config.Effective(*o.shown.Load()) }
	}
	return console.New(o.file.Console, deps)
}

// configured is what the configuration says of sources and destinations.
func (o *overseer) configured() status.Configured {
	c := status.Configured{Sources: map[string]string{}, Destinations: map[string]string{}}
	file := o.shown.Load()
	for _, s := range file.Sources {
		c.Sources[s.Name] = s.Type
	}
	for _, d := range file.Destinations {
		c.Destinations[d.Name] = d.Type
	}
	return c
}

// hashParams are those of RFC 9106, section 4, for where memory is scarce: 64 MiB and three
// rounds.
var hashParams = argon2id.Params{Memory: 64 << 10, Iterations: 3, Parallelism: 4, SaltLength: 16, KeyLength: 32}

// leastPassword is what NIST SP 800-63B asks for at least, in characters.
const leastPassword = 8

func newConsoleHash() *cobra.Command {
	return &cobra.Command{
		Use: "hash", Args: exactly(0),
		Short: "Ask for a password and print its argon2id hash, for console.users",
		Long: `Asks twice for a password on the terminal, where it is not shown, and prints its
argon2id hash for the configuration. From a pipe it reads the first line.`,
		Example: "  penstock console hash\n  head -c 18 /dev/urandom | base64 | tee password.txt | penstock console hash",
		RunE: func(cmd *cobra.Command, _ []string) error {
			password, err := readPassword(cmd.InOrStdin(), cmd.ErrOrStderr())
			if err != nil {
				return usageError{err}
			}
			if len([]rune(password)) < leastPassword {
				return usageError{fmt.Errorf("the password has %d characters: use %d or more", len([]rune(password)), leastPassword)}
			}
			hash, err := argon2id.CreateHash(password, &hashParams)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), hash)
			return err
		},
	}
}

// readPassword asks on a terminal, and reads the first line of all else.
func readPassword(in io.Reader, prompt io.Writer) (string, error) {
	file, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		line, err := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read the password: %w", err)
		}
		return strings.TrimRight(line, "\r\n"), nil
	}
	ask := func(what string) (string, error) {
		fmt.Fprint(prompt, what)
		defer fmt.Fprintln(prompt)
		p, err := term.ReadPassword(int(file.Fd()))
		return string(p), err
	}
	first, err := ask("Password: ")
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	again, err := ask("Again: ")
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	if first != again {
		return "", errors.New("the two passwords differ: nothing was made")
	}
	return first, nil
}
