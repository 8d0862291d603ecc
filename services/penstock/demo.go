package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/penstock/penstock/services/console"
	"github.com/penstock/penstock/services/deliver"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/services/internal/telemetry"
	"github.com/penstock/penstock/topology"
)

func newDemo() *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use: "demo", Args: exactly(0),
		Short: "Show penstock at work, with samples of every system and everything inside this process",
		Long: `Starts an AWS of its own with generated samples of every system: objects in S3 that
are announced in SQS or have to be listed, events in messages, and APIs to poll. All
six stages run over a NATS server inside this process, and deliver to a file. Among
the CloudTrail objects are duplicates, one with a corrupt record, a truncated one
and a missing one.

Without --once new objects keep coming until Ctrl-C. With --once the demo ends when
all is delivered, prints what became of every record, and exits with 1 when the
counts do not balance.`,
		Example: "  penstock demo\n  penstock demo --once --json | jq .ledger.total",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDemo(cmd.Context(), cmd.OutOrStdout(), o)
		},
	}
	cmd.Flags().BoolVar(&o.once, "once", false, "end when all is delivered, and check the counts")
	cmd.Flags().BoolVar(&o.json, "json", false, "with --once: print the result as JSON")
	cmd.Flags().StringVar(&o.dir, "dir", "", "folder for streams, events and log, kept afterwards (default: a temporary one)")
	cmd.Flags().Uint64Var(&o.seed, "seed", 1, "seed of the sample objects")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 3*time.Minute, "with --once: fail after this time")
	return cmd
}

type demoOptions struct {
	once, json bool
	dir        string
	seed       uint64
	timeout    time.Duration
}

// demoResult is what --json prints.
type demoResult struct {
	Balanced bool          `json:"balanced"`
	Problems []string      `json:"problems"`
	Want     feed.Counts   `json:"want"`
	Ledger   ledger.Report `json:"ledger"`
	Seconds  float64       `json:"seconds"`
}

func runDemo(ctx context.Context, out io.Writer, o demoOptions) (err error) {
	if o.json && !o.once {
		return usageError{errors.New("--json goes with --once")}
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "penstock-demo-*"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	} else if err := os.MkdirAll(o.dir, 0o750); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(o.dir, "penstock.log"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()

	world, err := cloud.Start(ctx, cloud.Options{AccessKeys: []string{demoKey}})
	if err != nil {
		return err
	}
	defer world.Close()
	story := feed.Demo(o.seed)
	if _, err := world.CreateQueue(story.Queue, nil); err != nil {
		return err
	}
	filled, err := fillWorld(ctx, world, o.seed)
	if err != nil {
		return err
	}

	file, err := demoFile(world.URL(), filled.since, o.dir)
	if err != nil {
		return err
	}
	file.Telemetry.Output = log
	if !o.once {
		file.Console.Address = demoAddress(ctx, console.DefaultAddress)
	}
	tel, err := telemetry.Setup(ctx, file.Telemetry)
	if err != nil {
		return err
	}
	defer func() { _ = tel.Shutdown(context.WithoutCancel(ctx)) }()
	stages, stopStages := context.WithCancel(ctx)
	defer stopStages()
	p := newPipeline(file, topology.Stages, tel.Log)
	if err := p.start(stages); err != nil {
		return err
	}
	health, err := telemetry.Listen(ctx, file.Telemetry.Address, telemetry.Health{Ready: p.checks(), Timeout: file.Telemetry.CheckTimeout, Level: tel.Level})
	if err != nil {
		stopStages()
		return errors.Join(err, p.wait())
	}
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	go func() { _ = health.Run(serving) }()

	d := &demo{options: o, out: out, world: world, story: story, filled: filled, fold: ledger.New(), began: time.Now()}
	if !o.json {
		if p.console != "" {
			fmt.Fprintf(out, "the console    %s\n", p.console)
		}
		fmt.Fprintf(out, "the sources    %s\nevents go to   %s\nlog            %s\nhealth         http://%s/readyz and /metrics\nlook inside    penstock status --store %s\n\n",
			world.URL(), eventsPath(o.dir), log.Name(), health.Addr(), file.Bus.Store)
	}
	// Everything is told to the ledger, and the demo only reads that.
	var watchers sync.WaitGroup
	watchers.Go(func() {
		followErr := p.buses[0].Follow(stages, topology.Span{Subject: "penstock.ledger.>"}, func(m topology.Stored) error { return addFacts(d.fold, m) })
		if followErr != nil && stages.Err() == nil {
			tel.Log.Error("the ledger cannot be followed", "err", followErr)
		}
	})
	watchers.Go(func() { d.feed(stages) })
	ended := make(chan error, 1)
	go func() { ended <- p.group.Wait() }()
	verdict := d.watch(ctx, ended)
	stopStages()
	watchers.Wait()
	return errors.Join(verdict, p.wait())
}

const demoKey = "demo"

// demoAddress is the address, or when somebody has it, a free one of its host.
func demoAddress(ctx context.Context, address string) string {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		host, _, _ := net.SplitHostPort(address)
		return net.JoinHostPort(host, "0")
	}
	_ = l.Close()
	return address
}

func eventsPath(dir string) string { return filepath.Join(dir, "events.ndjson") }

//go:embed demo.yaml
var demoSources []byte

// demoScale is how many events there are of each system, about.
const demoScale = 1000

// apiSources are the sources of the demo that no system of feed stands behind.
var apiSources = []string{"cloudtrail-api", "cloudwatch-logs", "cloudwatch-metrics", "guardduty-api"}

// demoWorld is what the demo reads, besides the story.
type demoWorld struct {
	systems []feed.System
	since   time.Time
	// unique are the events that the systems and the APIs hold.
	unique int
}

// fillWorld fills the queues, buckets and APIs. In the end all can be read at once.
func fillWorld(ctx context.Context, world *cloud.Cloud, seed uint64) (*demoWorld, error) {
	now := time.Now().Truncate(time.Minute)
	w := &demoWorld{systems: feed.Systems(seed, demoScale), since: now.Add(-30 * time.Minute)}
	for i := range w.systems {
		if err := w.systems[i].Install(ctx, world); err != nil {
			return nil, err
		}
		w.unique += w.systems[i].Events
	}
	watched, err := feed.FillAPIs(world, seed, w.since, now.Add(-10*time.Minute))
	if err != nil {
		return nil, err
	}
	w.unique += watched.LogEvents + watched.Points + watched.Findings
	w.unique += feed.FillTrail(world, seed, demoScale/2, w.since.Add(time.Minute))
	return w, nil
}

// demoFile is the configuration that a user would write for the demo's world.
func demoFile(endpoint string, since time.Time, dir string) (File, error) {
	file := defaults()
	file.Bus.Store = filepath.Join(dir, "streams")
	file.Bus.Disk = 2 * config.GiB
	// The object that a notice announces and that is not there is waited for no
	// longer than somebody who watches would.
	file.Fetch.MissingKeyWait = 3 * time.Second
	env := func(name string) (string, bool) {
		switch name {
		case "DEMO_ENDPOINT":
			return endpoint, true
		case "DEMO_SINCE":
			return since.UTC().Format(time.RFC3339), true
		}
		return "", false
	}
	if err := config.Parse("demo.yaml", demoSources, &file, env); err != nil {
		return file, err
	}
	for i := range file.Sources {
		if sqs, ok := file.Sources[i].Options.(*sources.SQSConfig); ok {
			sqs.WaitTime = 2 * time.Second // so that it stops soon
		}
	}

	options, _ := sinks.Catalog.Defaults("file")
	fileSink, ok := options.(*sinks.FileConfig)
	if !ok {
		panic("the destination kind file has other options")
	}
	fileSink.Path = eventsPath(dir)
	destination := deliver.Defaults()
	destination.Name, destination.Type, destination.Options = "archive", "file", fileSink
	file.Destinations = []deliver.Destination{destination}

	file.Telemetry.Address = "127.0.0.1:0"
	file.Telemetry.LogFormat = "json"
	return file, nil
}

// demo feeds the world and watches the ledger.
type demo struct {
	options demoOptions
	out     io.Writer
	world   *cloud.Cloud
	story   *feed.Scenario
	filled  *demoWorld
	fold    *ledger.Fold
	began   time.Time

	mu     sync.Mutex
	fed    bool
	failed error
}

// feed tells the story step by step, and goes on with new objects unless --once.
func (d *demo) feed(ctx context.Context) {
	fail := func(err error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if ctx.Err() == nil {
			d.failed = err
		}
	}
	for i := range d.story.Steps {
		if err := feed.InstallStep(ctx, d.world, d.story, i); err != nil {
			fail(err)
			return
		}
	}
	d.mu.Lock()
	d.fed = true
	d.mu.Unlock()
	if d.options.once {
		return
	}
	// More of the same until somebody stops it: a small object or two a second.
	more := moreOf(d.options.seed, 1<<20)
	if err := d.world.Notify(d.story.Bucket, cloud.Notification{Queue: d.story.Queue}); err != nil {
		fail(err)
		return
	}
	tick := time.NewTicker(700 * time.Millisecond)
	defer tick.Stop()
	for o := range more.All() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := d.world.Put(o.Bucket, o.Key, cloud.Object{Body: o.Body}); err != nil {
			fail(err)
			return
		}
	}
}

// watch prints a line a second, or a bar on a terminal, until the demo is over.
func (d *demo) watch(ctx context.Context, ended <-chan error) error {
	var bar *progressbar.ProgressBar
	if f, ok := d.out.(*os.File); ok && term.IsTerminal(int(f.Fd())) && d.options.once && !d.options.json {
		bar = progressbar.NewOptions(d.unique(), progressbar.OptionSetDescription("delivered"), progressbar.OptionShowCount(),
			progressbar.OptionSetItsString("events"), progressbar.OptionShowIts(), progressbar.OptionSetWidth(30), progressbar.OptionThrottle(100*time.Millisecond))
	}
	timeout := time.NewTimer(d.options.timeout)
	if !d.options.once {
		timeout.Stop()
	}
	defer timeout.Stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	lastLine, lastDelivered := time.Now(), uint64(0)
	for {
		select {
		case <-ctx.Done():
			if d.options.once {
				return errors.New("interrupted before all was delivered")
			}
			fmt.Fprintln(d.out)
			r := d.fold.Report()
			if r.Balanced {
				return printReport(d.out, r, false)
			}
			// What was under way when it was stopped is no trouble.
			r.Problems = nil
			return printSums(d.out, r)
		case err := <-ended:
			if err == nil {
				err = errors.New("the stages ended before the demo did")
			}
			return err
		case <-timeout.C:
			r := d.fold.Report()
			if err := printReport(d.out, r, true); err != nil {
				return err
			}
			return fmt.Errorf("not all was delivered within %s", d.options.timeout)
		case <-tick.C:
		}
		d.mu.Lock()
		fed, failed := d.fed, d.failed
		d.mu.Unlock()
		if failed != nil {
			return failed
		}
		r := d.fold.Report()
		delivered := confirmed(r)
		switch {
		case bar != nil:
			_ = bar.Set(int(min(delivered, uint64(d.unique()))))
		case !d.options.json && time.Since(lastLine) >= time.Second:
			rate := float64(delivered-lastDelivered) / time.Since(lastLine).Seconds()
			fmt.Fprintf(d.out, "%5.0fs  objects %d  records %d  unique %d  duplicates %d  quarantined %d  delivered %d  (%.0f/s)\n",
				time.Since(d.began).Seconds(), r.Total.Pulls, r.Total.Records, r.Total.Unique, r.Total.Duplicates, sum(r.Total.Quarantined)+sum(r.Total.PullsQuarantined), delivered, rate)
			lastLine, lastDelivered = time.Now(), delivered
		}
		if d.options.once && fed && d.settled(r) {
			if bar != nil {
				_ = bar.Finish()
				fmt.Fprintln(d.out)
			}
			return d.finish(r)
		}
	}
}

func confirmed(r ledger.Report) (n uint64) {
	for _, d := range r.Destinations {
		n += d.Confirmed
	}
	return n
}

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

// settled: the queue is empty, every message has been announced and nothing is
// under way any more.
func (d *demo) settled(r ledger.Report) bool {
	for _, name := range append(d.queues(), d.story.Queue) {
		if q := d.world.Queue(name); q.Visible+q.InFlight+q.Delayed > 0 {
			return false
		}
	}
	return r.Total.Open == 0 && r.Balanced && r.Total.Unique >= uint64(d.unique()) && confirmed(r) == r.Total.Logged
}

func (d *demo) queues() []string {
	var names []string
	for i := range d.filled.systems {
		if q := d.filled.systems[i].Queue; q != "" {
			names = append(names, q)
		}
	}
	return names
}

// unique is how many different events there are in all.
func (d *demo) unique() int { return d.story.Want.Unique + d.filled.unique }

// finish prints the result and compares it with what was fed.
func (d *demo) finish(r ledger.Report) error {
	want := d.story.Want
	problems := append([]string{}, r.Problems...)
	compare := func(what string, got uint64, want int) {
		if got != uint64(max(0, want)) {
			problems = append(problems, fmt.Sprintf("%s: %d, but %d were fed", what, got, want))
		}
	}
	// How often an API gives the same event depends on when it is asked.
	if got, least := r.Total.Duplicates, uint64(want.Duplicates); got < least {
		problems = append(problems, fmt.Sprintf("duplicates: %d, but at least %d were fed", got, least))
	}
	compare("unique events", r.Total.Unique, d.unique())
	compare("delivered", confirmed(r), d.unique())
	refused := 0
	for _, n := range want.Quarantined {
		refused += n
	}
	compare("quarantined", sum(r.Total.Quarantined)+sum(r.Total.PullsQuarantined), refused)
	balanced := r.Balanced && len(problems) == 0
	if d.options.json {
		if err := writeJSON(d.out, demoResult{balanced, problems, want, r, time.Since(d.began).Seconds()}); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(d.out, "\n%d sources; mishaps among what was fed: %v\n", len(d.filled.systems)+len(apiSources)+1, slices.Sorted(maps.Keys(want.Quarantined)))
		if err := printReport(d.out, r, false); err != nil {
			return err
		}
		for _, p := range problems[len(r.Problems):] {
			fmt.Fprintln(d.out, "problem:", p)
		}
	}
	if !balanced {
		return errSilent
	}
	return nil
}
