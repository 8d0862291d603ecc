// Package parse makes events of raw records.
//
//	penstock.record.<source> ──▶ parse ──▶ penstock.parsed.<lane>
//
// In:     frames of raw records of one format, at least once.
// Out:    frames of events of one source, event type and dedupe lane. Events of
// several inputs are merged; an input is done when all its events are stored.
// Errors: a record that is not of its format (parse.bad_json,
// parse.not_an_object, parse.record_too_large) is quarantined alone. A frame of a
// format that is not known here (parse.unknown_format) or that is damaged
// (parse.bad_frame, messages.bad_frame) is rejected as a whole.
// State:  none. Any number of copies may run. Events that come twice, because an
// attempt failed half way, are told apart by dedupe.
// Source: design §5, formats F-0.
package parse

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/spare"
	"github.com/penstock/penstock/services/internal/tag"
	"github.com/penstock/penstock/services/parse/formats"
	"github.com/penstock/penstock/topology"
)

var (
	errFormat = fault.Define("parse.unknown_format", fault.Reject,
		"upgrade the process that parses to the release of those that fetch and ingest, then redrive the frame from quarantine")
	errFrame = fault.Define("parse.bad_frame", fault.Reject,
		"the frame is damaged or was not made for this stage: look at who else writes to RECORDS")
	errSetup = fault.Define("parse.setup", fault.Stop,
		"report this as a bug of penstock: the stage was made with parts missing")
)

// Config configures the stage.
type Config struct {
	// GroupEvents closes a group. Unit: events.
	GroupEvents int `yaml:"group_events"`
	// GroupBytes closes a group. Unit: bytes of documents before compression. A
	// single larger event makes a group of its own.
	GroupBytes config.Bytes `yaml:"group_bytes"`
	// Linger closes a group that has waited this long for more. Unit: duration.
	Linger time.Duration `yaml:"linger"`
	// ThinLinger is Linger for groups of fewer than ThinEvents events.
	ThinLinger time.Duration `yaml:"thin_linger"`
	// ThinEvents is from how many events on a group is not thin. Unit: events.
	ThinEvents int `yaml:"thin_events"`
	// Idle closes all groups when everything in hand waits for them and nothing
	// more has come for this long. Unit: duration.
	Idle time.Duration `yaml:"idle"`
	// Memory bounds the records in hand and the frames on their way to the bus;
	// one frame is always let in. Unit: bytes.
	Memory config.Bytes `yaml:"memory"`
	// MaxEventTypes bounds the event types that documents may bring up. What comes
	// after is <base>.other. Unit: event types.
	MaxEventTypes int `yaml:"max_event_types"`
	// BodyWindow is within what time two equal events in messages of one queue,
	// without an id of their own, are taken for one that was sent twice. 0: never.
	// Unit: duration.
	BodyWindow time.Duration `yaml:"body_window"`
}

// Defaults returns the configuration of a file that says nothing.
func Defaults() Config {
	return Config{
		GroupEvents: messages.LargeCount, GroupBytes: messages.LargeBody,
		Linger: 50 * time.Millisecond, ThinLinger: 200 * time.Millisecond, ThinEvents: 250, Idle: 20 * time.Millisecond,
		Memory: 16 << 20, MaxEventTypes: formats.DefaultTypes, BodyWindow: 5 * time.Minute,
	}
}

// Validate reports every problem, each with the key to change.
func (c Config) Validate() error {
	var p config.Problems
	p.Need(c.GroupEvents >= 1 && c.GroupEvents <= messages.MaxCount, "group_events", "use 1 to 65536 events")
	p.Need(c.GroupBytes >= 1 && c.GroupBytes <= messages.MaxFrame/2, "group_bytes", "use 1 B to 4 MiB")
	p.Need(c.Linger >= 0 && c.Linger <= 10*time.Second, "linger", "use 0s to 10s")
	p.Need(c.ThinLinger >= c.Linger && c.ThinLinger <= 10*time.Second, "thin_linger", "use linger to 10s")
	p.Need(c.ThinEvents >= 0, "thin_events", "use 0 or more events")
	p.Need(c.Idle >= 0 && c.Idle <= 10*time.Second, "idle", "use 0s to 10s")
	p.Need(c.Memory >= 1<<20, "memory", "use 1 MiB or more")
	p.Need(c.MaxEventTypes >= 1, "max_event_types", "use 1 or more")
	p.Need(c.BodyWindow >= 0, "body_window", "use 0s or more")
	return p.Err()
}

// Deps is what the stage needs from the process.
type Deps struct {
	// NewOutbox makes an outbox for a frame that merges several inputs.
	NewOutbox func() topology.Outbox
	// Lanes is the number of dedupe lanes, as fixed in the topology.
	Lanes uint32
	// Window is how many inputs are merged before groups go out early: at most as
	// many as the bus hands over at once. With half as many, some are decoded
	// while others are stored.
	Window int
	// Settings are the formats of the sources, by the name of the source. One that
	// is not here has the defaults of its format.
	Settings map[string]formats.Setting
	// Tags say how sources name their tables, by the name of the source. Events of
	// one that is not here have the types that its formats make.
	Tags map[string]*tag.Config
}

// keepInputs is how many inputs are kept between uses, without their bodies.
const keepInputs = 8

// Parse is the stage.
type Parse struct {
	config   Config
	lanes    uint32
	settings map[string]formats.Setting
	tags     map[string]*tag.Config
	types    *formats.Types
	grouper  *grouper
	inputs   spare.Values[input] // those not in use

	mu    sync.RWMutex
	feeds map[feedKey]*feed
}

// New makes the stage. It starts nothing.
func New(c Config, deps Deps) (*Parse, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if deps.NewOutbox == nil || deps.Lanes == 0 || deps.Window < 1 {
		return nil, errSetup.New(nil, "make the stage parse for %d lanes and a window of %d", deps.Lanes, deps.Window)
	}
	p := &Parse{
		config: c, lanes: deps.Lanes, settings: deps.Settings, tags: deps.Tags, types: formats.NewTypes(c.MaxEventTypes),
		feeds: map[feedKey]*feed{}, inputs: make(spare.Values[input], keepInputs),
	}
	p.grouper = newGrouper(c, deps, p.release)
	for source, set := range deps.Settings { // a wrong one is found at start-up
		if set.Type == "" || set.Type == formats.Auto {
			continue
		}
		if _, err := p.feed(context.Background(), source, set.Type); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Close waits for what Handle has left behind when its context ended. Handle is
// not called after Close.
func (p *Parse) Close() { p.grouper.close() }

// feedKey names a feed.
type feedKey struct{ source, format string }

// feed is what one format of one source needs.
type feed struct {
	format   formats.Format
	decoders sync.Pool // formats.Decoder

	records, events, bytes prometheus.Counter
	odd                    [len(formats.Oddities)]prometheus.Counter
	drift                  drift
}

// maxFeeds bounds the feeds that are kept. There are as many as sources, unless
// somebody else writes to RECORDS.
const maxFeeds = 4096

// feed returns the feed of a frame, made at its first one.
func (p *Parse) feed(ctx context.Context, source, format string) (*feed, error) {
	key := feedKey{source, format}
	p.mu.RLock()
	f := p.feeds[key]
	p.mu.RUnlock()
	if f != nil {
		return f, nil
	}
	if !formats.Known(format) {
		return nil, errFormat.New(nil, "read a frame of format %q", format)
	}
	var options any
	if set := p.settings[source]; set.Type == format {
		options = set.Options
	}
	opened, err := formats.Open(ctx, format, options, formats.Deps{Source: source, Types: p.types, Tag: p.tags[source]})
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.feeds[key]; f != nil {
		return f, nil
	}
	if len(p.feeds) >= maxFeeds {
		source = "other"
	}
	f = &feed{
		format:  opened,
		records: recordsTotal.WithLabelValues(source, format),
		events:  eventsTotal.WithLabelValues(source, format),
		bytes:   bytesTotal.WithLabelValues(source, format),
	}
	for i, kind := range formats.Oddities {
		f.odd[i] = oddTotal.WithLabelValues(source, format, kind)
	}
	f.decoders.New = func() any { return opened.New() }
	if len(p.feeds) < maxFeeds {
		p.feeds[key] = f
	}
	return f, nil
}

// Handle parses one frame of records. It returns when all events are stored. It
// implements topology.Handler.
func (p *Parse) Handle(ctx context.Context, msg topology.In[messages.View], out topology.Outbox) error {
	v := &msg.Value
	f, err := p.feed(ctx, v.Source(), v.Format())
	if err != nil {
		return err
	}
	size := need(v.BodySize(), v.Len(), v.Head(), f.format.Grows)
	leave, err := p.grouper.enter(ctx, size)
	if err != nil {
		return err
	}
	defer leave()
	in := p.inputs.Take(func() *input { return &input{} })
	in.refs.Store(1)
	in.budget = size
	defer p.release(in)
	if err := in.read(ctx, v); err != nil {
		return err
	}
	dec := f.decoders.Get().(formats.Decoder) //nolint:forcetypeassert // nothing else is in it
	in.decode(p, f.format, dec)
	f.decoders.Put(dec)
	f.count(in, v)
	if in.whole {
		p.shrink(in)
	}
	typesKnown.Set(float64(p.types.Len()))

	t := p.grouper.add(in)
	refused := in.quarantine(ctx, &msg, out)
	if err := p.grouper.wait(ctx, t); err != nil {
		return err
	}
	if refused != nil {
		return refused
	}
	in.facts(v, f, out)
	return nil
}

// need is about how many bytes records and documents of a frame take, of a format
// that makes documents grows times larger. Each document may repeat all names of
// the header, however short its record is.
func need(body, records int, head []byte, grows int) int64 {
	each := 0
	if grows > 0 && len(head) > 0 {
		each = 16 // the marks around the values of a very short record
		for _, c := range head {
			switch {
			case c < ' ', c == '"', c == '\\':
				each += len(`\u0000`)
			default:
				each++
			}
		}
	}
	return int64(body)*int64(1+grows) + int64(records)*int64(each)
}

// shrink gives up the body of an input whose block goes on as it is: nobody will read it
// here again.
func (p *Parse) shrink(in *input) {
	bodies.Give(in.body)
	in.body = nil
	if spare := in.budget - int64(len(in.block)); spare > 0 {
		in.budget -= spare
		p.grouper.giveBack(spare)
	}
}

// release gives up one reference to in, and puts it back with the last one.
func (p *Parse) release(in *input) {
	if in.refs.Add(-1) > 0 {
		return
	}
	p.grouper.giveBack(in.budget)
	in.reset()
	p.inputs.Give(in)
}

// count adds in to the metrics.
func (f *feed) count(in *input, v *messages.View) {
	f.records.Add(float64(v.Len()))
	f.events.Add(float64(len(in.events)))
	f.bytes.Add(float64(v.BodySize()))
	for i, n := range in.odd {
		if n > 0 {
			f.odd[i].Add(float64(n))
		}
	}
	for _, b := range in.bad {
		quarantinedTotal.WithLabelValues(in.source, fault.CodeOf(b.err)).Inc()
	}
}

// facts tells the ledger about a frame, nothing of one of nothing.
func (in *input) facts(v *messages.View, f *feed, out topology.Outbox) {
	if len(in.origins) == 0 {
		return
	}
	parsed := &messages.Parsed{
		Pull: in.origins[0].GetPull(), FrameNo: v.FrameNo(), Records: uint64(v.Len()), Events: uint64(len(in.events)),
	}
	if len(in.bad) > 0 {
		parsed.Quarantined = map[string]uint64{}
		for _, b := range in.bad {
			parsed.Quarantined[fault.CodeOf(b.err)]++
		}
	}
	if len(in.news) > 0 {
		parsed.Drift = f.drift.tell(in)
	}
	if in.several() {
		in.announce(v, out)
	}
	out.Fact(&messages.Fact{Kind: &messages.Fact_Parsed{Parsed: parsed}})
}

// announce says of a frame of several messages what ingest says of it once it is
// stored. Ingest may end before it has: then the messages come again among others,
// as another pull, and nobody else would know of this one.
func (in *input) announce(v *messages.View, out topology.Outbox) {
	o := in.origins[0]
	announced := &messages.Announced{
		Origin: o, As: messages.Announced_AS_EVENTS, Messages: uint32(len(in.columns.MessageSent)), MessageIds: bytes.Clone(in.messageIDs),
	}
	if v.Len() > len(in.columns.MessageSent) {
		announced.MessageRecords = slices.Clone(in.columns.MessageRecords)
	}
	out.Fact(&messages.Fact{Kind: &messages.Fact_Announced{Announced: announced}})
	out.Fact(&messages.Fact{Kind: &messages.Fact_Fetched{Fetched: &messages.Fetched{
		Pull: o.GetPull(), Source: o.GetSource(), Frames: 1, Records: uint64(v.Len()), End: messages.Fetched_END_COMPLETE,
		Bytes: uint64(v.BodySize()), RawBytes: uint64(v.BodySize()),
	}}})
}

// quarantineAtOnce bounds the bad records of one frame that are stored at once.
const quarantineAtOnce = 16

// quarantine keeps the bad records, each alone.
func (in *input) quarantine(ctx context.Context, msg *topology.In[messages.View], out topology.Outbox) error {
	if len(in.bad) == 0 {
		return nil
	}
	var g errgroup.Group
	g.SetLimit(quarantineAtOnce)
	for i := range in.bad {
		b := &in.bad[i]
		origin, record := in.origin(b)
		q := &messages.Quarantine{
			Stage: string(topology.Parse), Source: in.source, Format: in.format,
			Code: fault.CodeOf(b.err), Reason: b.err.Error(),
			Origin: origin, Record: record, Records: 1,
			Offset: -1, Length: int64(b.to - b.from), Payload: in.body[b.from:b.to],
			Holds: messages.Quarantine_HOLDS_RECORD, Attempts: uint32(msg.Attempt), Subject: msg.Subject, Header: in.head,
			Replay: in.replay,
		}
		g.Go(func() error { return out.Quarantine(ctx, q) })
	}
	return g.Wait()
}
