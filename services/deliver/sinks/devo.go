package sinks

import (
	"context"
	"sync"
	"time"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/probe"
	"github.com/penstock/penstock/services/internal/tag"
)

func init() {
	define("devo", "Writes tagged lines to Devo, or to its in-house relay.", defaultDevo, openDevo)
}

// DevoTransport carries lines.
type DevoTransport string

// Values implements [config.Enum].
func (DevoTransport) Values() []string { return []string{string(OverTLS), string(OverTCP)} }

// DevoConfig configures the devo sink.
type DevoConfig struct {
	// Address of Devo's collector, host and port, e.g. collector-eu.devo.io:443, or of a relay. Required.
	Address string `yaml:"address"`
	// Relay says that the address is an in-house relay, which may do without a client certificate and without TLS.
	Relay bool `yaml:"relay"`
	// Transport: tls, or tcp for a relay.
	Transport DevoTransport `yaml:"transport"`
	// Format of the message: document, or envelope (with penstock's id, type, time, source, account and region).
	Format Format `yaml:"format"`
	// Facility by its name, e.g. user.
	Facility Facility `yaml:"facility"`
	// Severity by its name, e.g. info.
	Severity Severity `yaml:"severity"`
	// Host that events are said to come from: fixed text, or one of {hostname} (of this machine), {type}, {source}, {account} and {region} of the event.
	Host string `yaml:"host"`
	// Gzip compresses each batch. Devo's collector takes it; see that a relay does.
	Gzip bool `yaml:"gzip"`
	// Batch bounds what is written at once.
	Batch Limits `yaml:"batch"`

	StreamConfig `yaml:",inline"`
}

func defaultDevo() DevoConfig {
	return DevoConfig{
		Transport: DevoTransport(OverTLS), Format: Document, Facility: "user", Severity: "info", Host: "{hostname}",
		Batch:        Limits{Events: 5000, Bytes: config.MiB, Age: 200 * time.Millisecond},
		StreamConfig: defaultStream(),
	}
}

// Validate reports every problem, each with the key to change.
func (c DevoConfig) Validate() error {
	var p config.Problems
	needAddress(&p, "address", c.Address, "collector-eu.devo.io:443")
	plain := c.Transport == DevoTransport(OverTCP)
	p.Need(!plain || c.Relay, "transport", "use tls: Devo takes nothing else; tcp is for an in-house relay, with relay: true")
	p.Need(plain || c.Relay || c.TLS.CertFile != "", "tls.cert_file", "name the client certificate and its key: Devo hands them out under Administration, Credentials")
	fieldProblems(&p, "host", c.Host, mostHost)
	p.In("batch", c.Batch.Validate())
	c.StreamConfig.problems(&p, plain)
	return p.Err()
}

// devoSink writes lines. What counts as confirmed, in which order and how often events
// come, and what is kept in memory, is that of [stream].
//
// Devo takes messages with line feeds when their length stands before them. That is
// never needed here, as each document is put on one line.
type devoSink struct {
	cfg      DevoConfig
	priority string
	host     field
	tags     func(source string) *tag.Resolver
	known    sync.Map // resolvers by source
	stream   *stream
}

func openDevo(_ context.Context, cfg DevoConfig, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s, err := newStream(deps, cfg.Address, cfg.Transport == DevoTransport(OverTCP), cfg.Gzip, cfg.StreamConfig)
	if err != nil {
		return nil, err
	}
	return &devoSink{
		cfg: cfg, priority: priority(cfg.Facility, cfg.Severity), host: newField(cfg.Host, mostHost, printable),
		tags: deps.Tags, stream: s,
	}, nil
}

func (s *devoSink) Limits() Limits { return s.cfg.Batch }

// Append writes one line. Source: formats F-22.
func (s *devoSink) Append(dst []byte, e *Event) []byte {
	dst = appendStamp(append(dst, s.priority...), e.Time)
	dst = s.host.append(append(dst, ' '), e)
	t := tag.Event{Table: e.Type, Account: e.Account, Region: e.Region}
	if e.Format == "ocsf" { // a route has written the document anew
		t.Version = e.Format
	}
	dst = s.resolver(e.Source).AppendTag(append(dst, ' '), t)
	return s.cfg.Format.appendLine(append(dst, ": "...), e)
}

// resolver finds how the events of a source are tagged, once.
func (s *devoSink) resolver(source string) *tag.Resolver {
	if r, ok := s.known.Load(source); ok {
		return r.(*tag.Resolver)
	}
	var r *tag.Resolver
	if s.tags != nil {
		r = s.tags(source)
	}
	if r == nil { // a source that is gone, or of another process
		r = tag.NewResolver(tag.Config{}, source)
	}
	s.known.Store(source, r)
	return r
}

// Deliver writes the events of b to a connection.
func (s *devoSink) Deliver(ctx context.Context, b Batch) Result {
	return s.stream.deliver(ctx, b, tooLarge(s.stream.name, b, int(s.cfg.MaxMessage), unlined))
}

func (s *devoSink) Close() error {
	s.stream.close()
	return nil
}

// Probe implements [probe.Prober].
func (c DevoConfig) Probe(ctx context.Context) []probe.Finding {
	s, err := newStream(Deps{Destination: "doctor"}, c.Address, c.Transport == DevoTransport(OverTCP), c.Gzip, c.StreamConfig)
	if err != nil {
		return []probe.Finding{probe.Error("open", c.Address, err)}
	}
	return s.probe(ctx, c.StreamConfig)
}
