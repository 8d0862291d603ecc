package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/dedupe"
	"github.com/penstock/penstock/services/deliver"
	"github.com/penstock/penstock/services/fetch"
	"github.com/penstock/penstock/services/ingest"
	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/telemetry"
	"github.com/penstock/penstock/services/operate/status"
	"github.com/penstock/penstock/services/parse"
	"github.com/penstock/penstock/services/route"
	"github.com/penstock/penstock/topology"
)

func newRun() *cobra.Command {
	path, stage, nats, watch := "penstock.yaml", "", "", false
	load := func() (File, error) {
		file, err := loadFile(path)
		if nats != "" {
			file.Bus.URL = nats
		}
		file.Telemetry.Identity = telemetry.Identity{Stage: stage}
		return file, err
	}
	cmd := &cobra.Command{
		Use: "run", Args: exactly(0),
		Short: "Run all stages with a NATS server inside, or one stage against a NATS server",
		Long: `Without --stage all six stages run in this process, each as it would alone. Without
a NATS URL, in the configuration or in --nats, a server runs inside this process
and keeps the streams in bus.store.

The first SIGTERM or Ctrl-C stops reading and finishes what is in hand, within
bus.drain_timeout; the second ends at once. Nothing is lost either way.

SIGHUP reads the configuration again, as --watch does when the file has changed:
destinations that were added, removed or changed begin, end or are opened anew, and
routes are swapped, while all else goes on. What needs a restart is named in the
log. A file with a mistake changes nothing.`,
		Example: `  penstock run --config penstock.yaml
  penstock run --config penstock.yaml --stage parse --nats nats://nats:4222
  kill -HUP "$(pidof penstock)"`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			read := lastChange(path)
			file, err := load()
			if err != nil {
				return err
			}
			stages := topology.Stages
			if stage != "" {
				if !slices.Contains(topology.Stages, topology.Stage(stage)) {
					return usageError{fmt.Errorf("--stage %q: use one of %s", stage, stageList())}
				}
				if file.Bus.URL == "" {
					return usageError{errors.New("--stage needs a NATS server that the stages share: set bus.url or --nats")}
				}
				stages = []topology.Stage{topology.Stage(stage)}
			}
			if len(file.Sources) == 0 && slices.Contains(stages, topology.Ingest) {
				return usageError{fmt.Errorf("%s has no sources: nothing would be read", path)}
			}
			again := reloading{load: load}
			if watch {
				again.watch, again.read = path, read
			}
			return runFile(cmd.Context(), file, stages, again)
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", path, "configuration file")
	cmd.Flags().StringVar(&stage, "stage", "", "run only this stage: "+stageList())
	cmd.Flags().StringVar(&nats, "nats", "", "URL of the NATS servers, instead of the configuration's")
	cmd.Flags().BoolVar(&watch, "watch", false, "look every few seconds whether the configuration file has changed, and read it again")
	return cmd
}

func stageList() string {
	names := make([]string, len(topology.Stages))
	for i, s := range topology.Stages {
		names[i] = string(s)
	}
	return strings.Join(names, ", ")
}

// runFile sets up telemetry and runs stages until ctx ends.
func runFile(ctx context.Context, file File, stages []topology.Stage, again reloading) (err error) {
	asked := again.listen() // from now on: before, a SIGHUP would end the process
	defer again.stop()
	tel, err := telemetry.Setup(ctx, file.Telemetry)
	if err != nil {
		return err
	}
	defer func() {
		if flushErr := tel.Shutdown(context.WithoutCancel(ctx)); flushErr != nil {
			tel.Log.Warn("last spans could not be sent", "err", flushErr)
		}
	}()
	p := newPipeline(file, stages, tel.Log)
	health, err := telemetry.Listen(ctx, file.Telemetry.Address, telemetry.Health{
		Ready: p.checks(), Timeout: file.Telemetry.CheckTimeout, TLS: file.Telemetry.TLS, Private: file.Telemetry.PrivateAddress, Level: tel.Level,
	})
	if err != nil {
		return err
	}
	// Health is served from before the first stage starts until the last has stopped.
	served, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	serving := make(chan error, 1)
	go func() { serving <- health.Run(served) }()
	if err := p.startSoon(ctx); err != nil {
		stopServing()
		if ctx.Err() != nil {
			err = nil // asked to stop before there was anything to finish
		}
		return errors.Join(err, <-serving)
	}
	tel.Log.Info("penstock runs", "stages", stageNames(stages), "health", health.Addr(), "sources", len(file.Sources), "destinations", len(file.Destinations))
	notify(tel.Log, "READY=1", "STATUS=runs "+stageNames(stages))
	context.AfterFunc(ctx, func() { notify(tel.Log, "STOPPING=1") })
	reloads, stopReloads := context.WithCancel(ctx)
	reloaded := make(chan struct{})
	go func() { defer close(reloaded); again.run(reloads, p, asked) }()
	err = p.wait()
	stopReloads()
	<-reloaded
	stopServing()
	return errors.Join(err, <-serving)
}

func stageNames(stages []topology.Stage) string {
	names := make([]string, len(stages))
	for i, s := range stages {
		names[i] = string(s)
	}
	return strings.Join(names, ",")
}

// pipeline is a set of stages that run in this process.
type pipeline struct {
	file     File
	stages   []topology.Stage
	log      *slog.Logger
	instance string
	embedded *topology.Embedded
	buses    []*topology.Bus
	group    *errgroup.Group
	closers  []func(context.Context) error
	// clients are those of the sources: many of them go to the same place as the same one.
	clients awsclient.Shared

	// What the health page asks about, once it is there.
	mu     sync.Mutex
	keeper *topology.Bus
	ingest *ingest.Ingest
	// destinations are those of the stage deliver, route the rules of the stage route,
	// if they run here. A reload changes both.
	destinations *deliver.Manager
	route        atomic.Pointer[route.Route]

	// overseer is there when all stages run here, console is where it serves, if it does.
	overseer *overseer
	console  string
}

func newPipeline(file File, stages []topology.Stage, log *slog.Logger) *pipeline {
	host, _ := os.Hostname()
	return &pipeline{file: file, stages: stages, log: log, instance: fmt.Sprintf("%s-%d", host, os.Getpid())}
}

// How soon a start is tried again that the bus did not let finish.
const (
	startFirst = 250 * time.Millisecond
	startLast  = 5 * time.Second
)

// startSoon starts, however long the bus is away: machines of a cluster come up in
// any order, and a server may end and begin again while a process starts. What
// waiting cannot mend is returned at once.
func (p *pipeline) startSoon(ctx context.Context) error {
	for wait := startFirst; ; wait = min(2*wait, startLast) {
		err := p.start(ctx)
		if err == nil || ctx.Err() != nil || !mayPass(p.file, err) {
			return err
		}
		p.log.Warn("the bus does not let this process start yet, trying on", "wait", wait.String(), "err", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// mayPass tells whether a start that failed with err may succeed by itself: when it
// was a server elsewhere that did not do its part.
func mayPass(file File, err error) bool {
	return file.Bus.URL != "" && strings.HasPrefix(fault.CodeOf(err), "bus.") && fault.ClassOf(err) == fault.Retry
}

// start brings the stages up: the server inside if there is one, the streams, one
// connection for each stage, and the stages in the order of the flow. They run
// until ctx ends; wait then waits for them.
func (p *pipeline) start(ctx context.Context) (err error) {
	file := p.file
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if file.Bus.URL == "" {
		// The folder's lock keeps others out, so the name can be the same at each
		// start: leases of the run before are ours at once.
		p.instance = "embedded"
		if p.embedded, err = topology.StartEmbedded(topology.EmbeddedOptions{
			Dir: file.Bus.Store, Listen: file.Bus.Listen, Disk: int64(file.Bus.Disk), SyncInterval: file.Bus.SyncInterval, Log: p.log,
		}); err != nil {
			return err
		}
	}
	keeper, err := p.connect(ctx, "keeper")
	if err != nil {
		return err
	}
	if keeper.MayApply() {
		_, err = keeper.Apply(ctx, file.Bus.limits(file.Dedupe.Lanes))
	} else {
		err = keeper.AwaitStreams(ctx)
	}
	if err != nil {
		return err
	}
	var runs []func(context.Context) error
	runs = append(runs, keeper.Keep, p.limitMemory, settle, func(ctx context.Context) error { return status.Answer(ctx, keeper, p.instance, p.stages) })
	for _, s := range p.stages {
		bus, err := p.connect(ctx, string(s))
		if err != nil {
			return err
		}
		stageRuns, err := p.stage(ctx, s, bus)
		if err != nil {
			return fmt.Errorf("stage %s: %w", s, err)
		}
		runs = append(runs, stageRuns...)
	}
	if len(p.stages) == len(topology.Stages) {
		bus, err := p.connect(ctx, "operate")
		if err != nil {
			return err
		}
		p.overseer = newOverseer(file, p.stageLog("operate"))
		runs = append(runs, func(ctx context.Context) error { return p.overseer.run(ctx, bus) })
		if file.Console.Address != "" {
			c, err := p.overseer.openConsole(true)
			if err != nil {
				return err
			}
			p.console = c.URL()
			p.log.Info("the console is open", "url", p.console)
			runs = append(runs, func(ctx context.Context) error { p.overseer.serve(ctx, c, true); return nil })
		}
	}
	// A stage that fails ends the others: a process is either whole or gone.
	p.group, ctx = errgroup.WithContext(ctx)
	for _, run := range runs {
		p.group.Go(func() error { return run(ctx) })
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keeper = keeper
	return nil
}

// stageLog names the stage where several share a process; where there is one, all
// its lines carry the name anyway.
func (p *pipeline) stageLog(stage string) *slog.Logger {
	if len(p.stages) == 1 {
		return p.log
	}
	return p.log.With("stage", stage)
}

func (p *pipeline) connect(ctx context.Context, role string) (*topology.Bus, error) {
	options := p.file.Bus.options(p.instance+"-"+role, p.stageLog(role))
	if p.embedded != nil {
		options = p.embedded.Connect(options)
		options.Own = true
	}
	bus, err := topology.Connect(ctx, options)
	if err == nil {
		p.buses = append(p.buses, bus)
	}
	return bus, err
}

// stage makes one stage and returns what has to run for it.
func (p *pipeline) stage(ctx context.Context, s topology.Stage, bus *topology.Bus) ([]func(context.Context) error, error) {
	log := p.stageLog(string(s))
	switch s {
	case topology.Ingest:
		var all []sources.Source
		var runs []func(context.Context) error
		for _, c := range p.file.Sources {
			deps := sources.Deps{
				Name: c.Name, Format: c.Format.Type, Choose: c.Format.Choose, Drain: p.file.Bus.DrainTimeout, Log: log, Bus: bus,
				NewOutbox: func() topology.Outbox { return bus.NewOutbox(topology.Ingest) },
				SQS:       func(ctx context.Context, c awsclient.Config) (sources.SQS, error) { return p.clients.SQS(ctx, c) },
			}
			source, err := sources.Catalog.Open(ctx, c.Type, c.Options, deps)
			if err != nil {
				return nil, fmt.Errorf("source %s: %w", c.Name, err)
			}
			all = append(all, source)
			runs = append(runs, rejudge(bus, source, deps))
		}
		i := ingest.New(all...)
		operators := ingest.NewJobs(bus, log, p.readers(all)...)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ingest = i
		return append(runs, i.Run, operators.Run, p.tellSources(s, bus)), nil
	case topology.Fetch:
		f, err := fetch.New(p.file.Fetch, p.fetchDeps(bus.MaxPayload(), log))
		if err != nil {
			return nil, err
		}
		return append(consume(bus, topology.FetchConsumer, messages.DecodeNotice, f.Handle), p.tellSources(s, bus)), nil
	case topology.Parse:
		lanes, err := bus.LaneCount(ctx)
		if err != nil {
			return nil, err
		}
		f, err := parse.New(p.parseConfig(bus), p.parseDeps(lanes, bus))
		if err != nil {
			return nil, err
		}
		p.closers = append(p.closers, func(context.Context) error { f.Close(); return nil })
		return append(consume(bus, topology.ParseConsumer, messages.DecodeFrame, f.Handle), p.tellSources(s, bus)), nil
	case topology.Dedupe:
		d := dedupe.New(p.file.Dedupe, log)
		return []func(context.Context) error{func(ctx context.Context) error { return d.Run(ctx, bus) }}, nil
	case topology.Route:
		r, err := route.New(route.Config{Rules: p.file.Routes}, route.Deps{Log: log})
		if err != nil {
			return nil, err
		}
		p.route.Store(r)
		return consume(bus, topology.RouteConsumer, messages.DecodeFrame, func(ctx context.Context, in topology.In[messages.View], out topology.Outbox) error {
			return p.route.Load().Handle(ctx, in, out) // the rules of now: see reload
		}), nil
	case topology.Deliver:
		return p.deliver(bus, log), nil
	}
	return nil, fmt.Errorf("no stage is called %q", s)
}

func consume[T any](bus *topology.Bus, c topology.Consumer, decode func([]byte) (T, error), h topology.Handler[T]) []func(context.Context) error {
	return []func(context.Context) error{func(ctx context.Context) error { return topology.Consume(ctx, bus, c, decode, h) }}
}

// errStarting is what the health page says of what is not there yet.
var errStarting = errors.New("starting")

// checks are what /readyz asks.
func (p *pipeline) checks() map[string]func(context.Context) error {
	now := func() (*topology.Bus, *ingest.Ingest) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.keeper, p.ingest
	}
	checks := map[string]func(context.Context) error{"bus": func(ctx context.Context) error {
		bus, _ := now()
		if bus == nil {
			return errStarting
		}
		return bus.Ready(ctx)
	}}
	if slices.Contains(p.stages, topology.Deliver) {
		checks["destinations"] = func(context.Context) error {
			p.mu.Lock()
			m := p.destinations
			p.mu.Unlock()
			if m == nil {
				return errStarting
			}
			return m.Health()
		}
	}
	if slices.Contains(p.stages, topology.Ingest) {
		for _, s := range p.file.Sources {
			checks["source "+s.Name] = func(context.Context) error {
				_, i := now()
				if i == nil {
					return errStarting
				}
				return i.Health()[s.Name]
			}
		}
	}
	return checks
}

// wait returns when all stages have stopped, and closes what they used.
func (p *pipeline) wait() error {
	err := p.group.Wait()
	p.close()
	if code := fault.CodeOf(err); err != nil && (code == "bus.drain_timeout" || code == "ingest.drain_expired") {
		return fmt.Errorf("%w: %w", errDrained, err)
	}
	return err
}

// close ends sinks, then connections, then the server: each needs the next.
func (p *pipeline) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, c := range p.closers {
		if err := c(ctx); err != nil {
			p.log.Warn("destination did not close cleanly", "err", err)
		}
	}
	for _, b := range p.buses {
		b.Close()
	}
	p.closers, p.buses = nil, nil // a start that failed may be tried again
	if p.embedded != nil {
		p.embedded.Stop()
	}
}
