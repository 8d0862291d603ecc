package main

import (
	"context"
	"log/slog"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/fetch"
	"github.com/penstock/penstock/services/ingest"
	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/tag"
	"github.com/penstock/penstock/services/parse"
	"github.com/penstock/penstock/services/parse/formats"
	"github.com/penstock/penstock/topology"
)

// fetchDeps tells fetch how to read the buckets of each source.
func (p *pipeline) fetchDeps(payload int64, log *slog.Logger) fetch.Deps {
	deps := fetch.Deps{
		Sources: map[string]fetch.Source{}, Choose: formats.Choose, Log: log, FrameBytes: messages.LargeBodyFor(payload),
	}
	for _, s := range p.file.Sources {
		reader, ok := s.Options.(sources.ObjectReader)
		if !ok {
			continue // its notices name no objects
		}
		aws := reader.ObjectAWS()
		deps.Sources[s.Name] = fetch.Source{
			Format: s.Format.Type, Choose: s.Format.Choose,
			Allows: reader.Allows,
			S3: func(ctx context.Context) (fetch.S3, error) {
				client, err := p.clients.S3(ctx, aws)
				if err != nil {
					return nil, err
				}
				return awsclient.NewObjects(client), nil
			},
			FollowRegion: aws.EndpointURL == "",
		}
	}
	return deps
}

// readers tells how operators can have sources read what is older than they are.
func (p *pipeline) readers(all []sources.Source) []ingest.Reader {
	readers := make([]ingest.Reader, len(all))
	for i, s := range p.file.Sources {
		readers[i].Source = all[i]
		readers[i].Objects, _ = s.Options.(sources.ObjectReader)
		readers[i].Skip = func(key string) string {
			_, _, skip := s.Format.Choose(s.Format.Type, key, nil)
			return skip
		}
	}
	return readers
}

// tags tells how the events of each source are tagged for Devo.
func (p *pipeline) tags() func(source string) *tag.Resolver {
	known := map[string]*tag.Resolver{}
	for _, s := range p.file.Sources {
		known[s.Name] = tag.NewResolver(s.Tag, s.Name)
	}
	return func(source string) *tag.Resolver {
		if r := known[source]; r != nil {
			return r
		}
		return tag.NewResolver(tag.Config{}, source) // one that the configuration has no more
	}
}

// parseConfig is the configuration of parse, as far as the bus takes such frames.
func (p *pipeline) parseConfig(bus *topology.Bus) parse.Config {
	c := p.file.Parse
	if most := messages.LargeBodyFor(bus.MaxPayload()); most < messages.LargeBody {
		c.GroupBytes = min(c.GroupBytes, config.Bytes(most))
	}
	return c
}

// parseDeps tells parse the format options of each source.
func (p *pipeline) parseDeps(lanes uint32, bus *topology.Bus) parse.Deps {
	deps := parse.Deps{
		NewOutbox: func() topology.Outbox { return bus.NewOutbox(topology.Parse) },
		Lanes:     lanes, Window: topology.ParseConsumer.Window / 2, Settings: map[string]formats.Setting{},
		Tags: map[string]*tag.Config{},
	}
	for _, s := range p.file.Sources {
		deps.Settings[s.Name], deps.Tags[s.Name] = s.Format, &s.Tag
	}
	return deps
}
