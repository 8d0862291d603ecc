package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/services/deliver"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/route"
	"github.com/penstock/penstock/topology"
)

var (
	configReloads = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_config_reloads_total", Help: "Times that the configuration was read again, by result: ok, or bad when it has mistakes and nothing was changed.",
	}, []string{"result"})
	configGood = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "penstock_config_last_reload_successful", Help: "0 when the configuration file as it was read last has mistakes, else 1.",
	})
	configRestart = promauto.NewGauge(prometheus.GaugeOpts{
		Name: "penstock_config_restart_needed", Help: "1 when the configuration has changes that only a restart takes over.",
	})
)

func init() { configGood.Set(1) }

// watchEvery is how often --watch looks at the file.
var watchEvery = 2 * time.Second

// reloading is how the configuration is read again while stages run.
type reloading struct {
	// load reads and checks it.
	load func() (File, error)
	// watch is the file whose changes are looked for, "" for none.
	watch string
	// read is how that was when the stages that run were configured by it.
	read fileChange

	signals chan os.Signal
}

// listen begins to take SIGHUP.
func (r *reloading) listen() <-chan os.Signal {
	r.signals = make(chan os.Signal, 1)
	signal.Notify(r.signals, syscall.SIGHUP)
	return r.signals
}

func (r *reloading) stop() { signal.Stop(r.signals) }

// run reads the configuration again whenever it is asked to, until ctx ends.
func (r *reloading) run(ctx context.Context, p *pipeline, asked <-chan os.Signal) {
	var look <-chan time.Time
	file := watched{read: r.read}
	if r.watch != "" {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		look = tick.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
		case <-look:
			if !file.look(lastChange(r.watch)) {
				continue
			}
		}
		file = watched{read: lastChange(r.watch)}
		p.reload(r.load)
	}
}

// watched is a file that is looked at now and then.
type watched struct {
	// read is how it was when it was last read, seen how it is otherwise since.
	read, seen fileChange
}

// look says whether the file is to be read again: it has changed, and stayed so for two
// looks. One that is being written may be a configuration by itself, without its end.
func (w *watched) look(now fileChange) bool {
	again := now != w.read && now == w.seen && now != fileChange{}
	w.seen = now
	return again
}

// fileChange tells two states of a file apart. A link is followed, as of a ConfigMap.
type fileChange struct {
	at   time.Time
	size int64
}

func lastChange(path string) fileChange {
	info, err := os.Stat(path)
	if err != nil {
		return fileChange{} // it is being replaced, and not read before it is there
	}
	return fileChange{info.ModTime(), info.Size()}
}

// reload reads the configuration and takes over what can be taken over. With a mistake
// in it nothing changes.
func (p *pipeline) reload(load func() (File, error)) {
	next, err := load()
	var rules *route.Route
	if err == nil && p.route.Load() != nil {
		rules, err = route.New(route.Config{Rules: next.Routes}, route.Deps{Log: p.stageLog(string(topology.Route))})
	}
	if err != nil {
		var all *config.Error
		problems := []string{err.Error()}
		if errors.As(err, &all) {
			problems = problems[:0]
			for _, one := range all.Problems {
				problems = append(problems, one.String())
			}
		}
		p.log.Error("configuration has mistakes; all goes on as it was", "problems", problems)
		configReloads.WithLabelValues("bad").Inc()
		configGood.Set(0)
		return
	}
	done := []any{}
	if rules != nil && !reflect.DeepEqual(p.file.Routes, next.Routes) {
		p.route.Store(rules)
		done = append(done, "routes", len(next.Routes))
	}
	p.mu.Lock()
	m := p.destinations
	p.mu.Unlock()
	var changes deliver.Changes
	if m != nil {
		changes = m.Configure(next.Destinations)
		for _, list := range []struct {
			what  string
			names []string
		}{{"added", changes.Added}, {"changed", changes.Changed}, {"removed", changes.Removed}} {
			if len(list.names) > 0 {
				done = append(done, slog.String(list.what, listed(list.names)))
			}
		}
	}
	p.file.Routes, p.file.Destinations = next.Routes, next.Destinations
	if p.overseer != nil { // the console shows what counts
		file := p.file
		p.overseer.shown.Store(&file)
	}
	p.log.Info("configuration was read again", done...)
	for _, name := range changes.Removed {
		p.log.Warn("the event log is still kept for a destination that was taken out of the configuration; when it will not come back, let go of it",
			"destination", name, "let_go", "penstock destinations remove "+name)
	}
	restart := p.needRestart(next)
	configRestart.Set(float64(min(1, len(restart))))
	configReloads.WithLabelValues("ok").Inc()
	configGood.Set(1)
	if len(restart) > 0 {
		p.log.Warn("configuration has changes that only a restart takes over", "sections", listed(restart))
	}
}

// needRestart names the sections that differ from those that run, and that concern
// stages of this process.
func (p *pipeline) needRestart(next File) []string {
	var all []string
	differs := func(section string, is, wanted any, stages ...topology.Stage) {
		concerned := len(stages) == 0 || slices.ContainsFunc(stages, func(s topology.Stage) bool { return slices.Contains(p.stages, s) })
		if concerned && !reflect.DeepEqual(is, wanted) {
			all = append(all, section)
		}
	}
	is := p.file
	differs("bus", is.Bus, next.Bus)
	differs("sources", is.Sources, next.Sources, topology.Ingest, topology.Fetch, topology.Parse, topology.Deliver)
	differs("fetch", is.Fetch, next.Fetch, topology.Fetch)
	differs("parse", is.Parse, next.Parse, topology.Parse)
	differs("dedupe", is.Dedupe, next.Dedupe, topology.Dedupe)
	if len(p.stages) == len(topology.Stages) {
		differs("ledger", is.Ledger, next.Ledger)
		differs("console", is.Console, next.Console)
	}
	is.Telemetry.Output, is.Telemetry.Identity = next.Telemetry.Output, next.Telemetry.Identity
	differs("telemetry", is.Telemetry, next.Telemetry)
	return all
}
