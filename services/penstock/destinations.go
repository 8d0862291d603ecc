package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/deliver"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/standing"
	"github.com/penstock/penstock/topology"
)

// deliver makes what runs the destinations of this process.
func (p *pipeline) deliver(bus *topology.Bus, log *slog.Logger) []func(context.Context) error {
	m := deliver.NewManager(deliver.ManagerDeps{
		Reserve: func(ctx context.Context, d deliver.Destination) (uint64, error) { return bus.Begin(ctx, reader(d)) },
		Tell: func(ctx context.Context, d deliver.Destination, first uint64) error {
			return tellLedger(ctx, bus, &messages.Destination{Name: d.Name, Types: d.Types, First: first})
		},
		Open: func(ctx context.Context, d deliver.Destination) (deliver.Opened, error) {
			return p.open(ctx, d, bus, log.With("destination", d.Name))
		},
		Idle: func(ctx context.Context, d deliver.Destination) { bus.WatchLag(ctx, reader(d)) },
		Gone: func(d deliver.Destination) { topology.ForgetLag(reader(d)) },
		Log:  log,
	})
	configured := p.file.Destinations
	m.Configure(configured)
	p.mu.Lock()
	p.destinations = m
	p.mu.Unlock()
	return []func(context.Context) error{
		m.Run,
		func(ctx context.Context) error {
			bus.FollowControls(ctx, func(said map[string]topology.Control) { m.Pause(paused(said)) })
			return nil
		},
		func(ctx context.Context) error {
			return bus.Answer(ctx, standing.Question, func() []byte {
				data, _ := json.Marshal(standing.Answer{Process: p.instance, Destinations: m.States()}) // cannot fail
				return data
			})
		},
		func(ctx context.Context) error { return bus.RunJobs(ctx, p.replays(bus, m.Current, log)) },
		func(ctx context.Context) error {
			p.warnOfForgotten(ctx, bus, configured)
			return nil
		},
	}
}

func paused(said map[string]topology.Control) map[string]bool {
	names := map[string]bool{}
	for name, c := range said {
		names[name] = c.Paused
	}
	return names
}

// reader is the reader of the event log for a destination.
func reader(d deliver.Destination) topology.Consumer {
	return topology.DeliverConsumer(d.Name, d.Types, d.Start())
}

// tellLedger tells the ledger what a destination reads, so that it knows what to expect.
func tellLedger(ctx context.Context, bus *topology.Bus, d *messages.Destination) error {
	d.Time = time.Now().UnixNano()
	out := bus.NewOutbox(topology.Deliver)
	out.Fact(&messages.Fact{Kind: &messages.Fact_Destination{Destination: d}})
	return out.Flush(ctx)
}

// replays sends events once more to destinations that current knows.
func (p *pipeline) replays(bus *topology.Bus, current func(string) (deliver.Destination, bool, bool), log *slog.Logger) topology.JobWorker {
	return deliver.Replays(deliver.ReplayDeps{
		Bus: bus, Current: current, Log: log,
		Open: func(ctx context.Context, d deliver.Destination, job string) (sinks.Sink, error) {
			return p.openSink(ctx, d, bus, log.With("destination", d.Name, "job", job), job)
		},
	})
}

// openSink opens the sink of a destination, once more for a replay.
func (p *pipeline) openSink(ctx context.Context, c deliver.Destination, bus *topology.Bus, log *slog.Logger, job string) (sinks.Sink, error) {
	events, err := deliver.NewEventLog(c, bus)
	if err != nil {
		return nil, err
	}
	return sinks.Catalog.Open(ctx, c.Type, c.Options, sinks.Deps{
		Destination: c.Name, Log: log, Bus: bus, Events: events, Drain: c.DrainTimeout, Tags: p.tags(), Replay: job,
	})
}

// open opens one destination.
func (p *pipeline) open(ctx context.Context, c deliver.Destination, bus *topology.Bus, log *slog.Logger) (deliver.Opened, error) {
	sink, err := p.openSink(ctx, c, bus, log, "")
	if err != nil {
		return deliver.Opened{}, err
	}
	consumer := reader(c)
	if patient, ok := sink.(sinks.Patient); ok {
		consumer.Window, consumer.WindowBytes = max(consumer.Window, patient.Frames()), 16<<20
	}
	d, err := deliver.New(c, sink, deliver.Deps{Log: log, Window: consumer.Window, WindowBytes: consumer.WindowBytes})
	if err != nil {
		return deliver.Opened{}, errors.Join(err, sink.Close())
	}
	o := deliver.Opened{
		Run: func(ctx context.Context) error {
			// What stands still in front of a dead destination need not be waited for.
			defer context.AfterFunc(ctx, d.Drain)()
			return topology.Consume(ctx, bus, consumer, messages.DecodeFrame, d.Handle)
		},
		Close:   d.Close,
		Breaker: d.Breaker,
	}
	if server, ok := sink.(sinks.Server); ok {
		o.Serve = server.Run
	}
	return o, nil
}

// warnOfForgotten tells of readers for which the event log is kept, though nobody has
// their destination in its configuration any more. Another process may have it.
func (p *pipeline) warnOfForgotten(ctx context.Context, bus *topology.Bus, configured []deliver.Destination) {
	readers, err := bus.Readers(ctx)
	if err != nil {
		return // whoever needs the bus will say so
	}
	for _, r := range readers {
		if slices.ContainsFunc(configured, func(d deliver.Destination) bool { return d.Name == r.Destination }) {
			continue
		}
		p.log.Warn("the event log is kept for a destination that is not in the configuration; put it back, or let go of it",
			"destination", r.Destination, "let_go", "penstock destinations remove "+r.Destination, "frames", r.Pending+uint64(max(0, r.InHand)))
	}
}

// listed is a list in a sentence.
func listed(list []string) string { return strings.Join(list, ", ") }
