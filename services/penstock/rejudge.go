package main

import (
	"context"
	"errors"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/topology"
)

// rejudge answers those who want what a source refused to be judged anew. The answer is
// empty once what came of it is durable, else it says why nothing can come of it.
func rejudge(bus *topology.Bus, s sources.Source, deps sources.Deps) func(context.Context) error {
	return func(ctx context.Context) error {
		return bus.Serve(ctx, jobs.RejudgeOf(deps.Name), func(ctx context.Context, data []byte) ([]byte, error) {
			r, err := jobs.DecodeRejudge(data)
			if err == nil {
				out := bus.NewRedriveOutbox(topology.Ingest, max(1, r.Entry.GetAttempts()))
				err = errors.Join(sources.Rejudge(ctx, s, deps, r, out), out.Flush(ctx))
			}
			if err != nil && fault.ClassOf(err) == fault.Reject {
				return []byte(err.Error()), nil
			}
			return nil, err
		})
	}
}

// tellSources answers those who want to know which sources a stage has here.
func (p *pipeline) tellSources(stage topology.Stage, bus *topology.Bus) func(context.Context) error {
	names := make([]string, len(p.file.Sources))
	for i, s := range p.file.Sources {
		names[i] = s.Name
	}
	return func(ctx context.Context) error {
		return bus.Answer(ctx, jobs.SourcesQuestion, func() []byte { return jobs.WriteSources(string(stage), names) })
	}
}
