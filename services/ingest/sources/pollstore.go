package sources

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/topology"
)

var errPageTooLarge = fault.Define("ingest.record_too_large", fault.Reject,
	"raise max_payload of the NATS servers, up to 8 MB")

// Reasons for which pollers leave records out, as they are counted.
const (
	// whyOtherRegion: the record is of another region than that asked for.
	whyOtherRegion = "other_region"
	// whyEventName: its name is on the list of those to be dropped.
	whyEventName = "event_name"
	// whyEventSource: its source is not on the list of those wanted.
	whyEventSource = "event_source"
)

// page is what one answer brought, or a part of a long one. It is the unit that the
// ledger balances.
type page struct {
	// api and resource name what was asked, e.g. "cloudtrail:LookupEvents" and a log
	// group or the bounds of a time slot. The api is required.
	api, resource string
	// region that was asked; account where it is not the configured one.
	region, account string
	// created is a time that is the same when the page is read again, e.g. the
	// beginning of the window asked for: ids of rows without one of their own may
	// hang on it. Zero where nothing can be read again.
	created time.Time
	// format is the decoder of the records. Required.
	format string
	// records, each whole. They must not change before store has returned.
	records [][]byte
	// dropped counts what was read and left out as the configuration wants it, by
	// reason.
	dropped map[string]uint64
	// bad are parts of the answer that are no records.
	bad []badPart
	// size of the answer as it came. Unit: bytes; 0 is that of the records.
	size int64
	// salt tells pages apart that must not be taken for the same although they hold
	// the same, e.g. the number of a call.
	salt string
	// unrepeatable: it cannot be read again. Then its facts are stored before its
	// records, so that what a crash loses shows in the ledger.
	unrepeatable bool
}

// badPart is a stretch of an answer that goes to quarantine.
type badPart struct {
	bytes []byte
	err   error // a fault
}

// pull is one run over what is new of a shard.
type pull struct {
	*caller
	// tick for which it runs, a multiple of the period.
	tick  time.Time
	shard shard

	// Counts for the statistics.
	mu      sync.Mutex
	records uint64
	dropped map[string]uint64
	refused uint64
	bytes   int64
	pages   int
}

var pageFrames = sync.Pool{New: func() any { return messages.NewBuilder(messages.Header{}) }}

// store returns nil once the page is durable. A page without anything is nothing.
//
// The pull id is made of what the page says, so that the same page read again makes
// the same frames, which the bus and the ledger know, and one that differs, because
// late records came in between, is another pull whose old records dedupe drops.
func (p *pull) store(ctx context.Context, pg *page) (err error) {
	all := uint64(len(pg.records)+len(pg.bad)) + sumOf(pg.dropped)
	if all == 0 {
		return nil
	}
	ctx, span := p.s.tracer.Start(ctx, "ingest", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("penstock.source", p.s.deps.Name), attribute.String("penstock.api", pg.api),
		attribute.Int("messaging.batch.message_count", len(pg.records)),
	))
	defer func() {
		if err != nil {
			span.SetStatus(codes.Error, fault.CodeOf(err))
		}
		span.End()
	}()
	if p.again != nil {
		pg.salt += "\x00" + p.again.job
	}
	w := p.write(pg)
	if pg.unrepeatable {
		facts := p.s.deps.NewOutbox()
		w.tell(facts)
		if err := facts.Flush(ctx); err != nil {
			return errBusy.New(err, "announce a page of %s", pg.api)
		}
	}
	out := p.s.deps.NewOutbox()
	if err := w.send(ctx, out); err != nil {
		return errBusy.New(err, "store a page of %s", pg.api)
	}
	if !pg.unrepeatable {
		w.tell(out)
	}
	if err := out.Flush(ctx); err != nil {
		return errBusy.New(err, "store a page of %s", pg.api)
	}
	p.count(pg, w)
	return nil
}

// count adds a stored page to the statistics.
func (p *pull) count(pg *page, w *written) {
	name := p.s.deps.Name
	mPollRecords.WithLabelValues(name).Add(float64(len(pg.records)))
	mPollBytes.WithLabelValues(name).Add(float64(w.fetched.GetBytes()))
	mAnnounced.WithLabelValues(name, "events").Inc()
	for why, n := range pg.dropped {
		mPollDropped.WithLabelValues(name, why).Add(float64(n))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pages++
	p.records += w.fetched.GetRecords()
	p.refused += sumOf(w.fetched.GetQuarantined())
	p.bytes += int64(w.fetched.GetBytes())
	for why, n := range pg.dropped {
		if p.dropped == nil {
			p.dropped = map[string]uint64{}
		}
		p.dropped[why] += n
	}
}

func sumOf(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

// written is a page as it goes on the bus.
type written struct {
	source     string
	job        string
	origin     *messages.Origin
	frames     []topology.Message
	quarantine []*messages.Quarantine
	fetched    *messages.Fetched
	parsed     *messages.Parsed
}

// messageHeader is what a message has room for beside a frame: its ids and its trace.
// The server counts them. Unit: bytes.
const messageHeader = 1024

// write makes frames of a page.
func (p *pull) write(pg *page) *written {
	origin := &messages.Origin{
		Pull: pg.pull(p.s.deps.Name), Source: p.s.deps.Name, Received: time.Now().UnixNano(),
		Api: pg.api, Resource: pg.resource, Region: pg.region, Account: pg.account,
	}
	if origin.Account == "" {
		origin.Account = p.s.cfg.Account
	}
	if !pg.created.IsZero() {
		origin.Created = pg.created.UnixNano()
	}
	w := &written{source: p.s.deps.Name, origin: origin, fetched: &messages.Fetched{
		Pull: origin.GetPull(), Source: p.s.deps.Name, End: messages.Fetched_END_COMPLETE,
	}}
	if p.again != nil {
		w.job = p.again.job
	}
	raw := w.cut(pg, p.s.deps.Bus.MaxPayload()-messageHeader)
	next := uint64(len(pg.records))
	for _, b := range pg.bad {
		w.refuse(next, 1, b.bytes, messages.Quarantine_HOLDS_BYTES, pg.format, b.err)
		raw += int64(len(b.bytes))
		next++
	}
	size := pg.size
	if size == 0 {
		size = raw
	}
	f := w.fetched
	f.Bytes, f.RawBytes = uint64(size), uint64(size)
	if dropped := sumOf(pg.dropped); dropped > 0 {
		// To the ledger these are records of one more frame, which parse would have
		// skipped.
		w.parsed = &messages.Parsed{Pull: origin.GetPull(), FrameNo: f.GetFrames(), Records: dropped, Skipped: pg.dropped}
		f.Frames++
		next += dropped
	}
	f.Records = next
	return w
}

// pull is the id of a page: what was asked and what came.
func (pg *page) pull(source string) []byte {
	h := sha256.New()
	var n [8]byte
	add := func(b []byte) {
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		_, _ = h.Write(n[:])
		_, _ = h.Write(b)
	}
	for _, r := range pg.records {
		add(r)
	}
	for _, b := range pg.bad {
		add([]byte("bad"))
		add(b.bytes)
	}
	reasons := make([]string, 0, len(pg.dropped))
	for why, k := range pg.dropped {
		reasons = append(reasons, why+"="+strconv.FormatUint(k, 10))
	}
	slices.Sort(reasons)
	for _, why := range reasons {
		add([]byte(why))
	}
	return messages.NewPull("api", source, pg.api, pg.region, pg.account, pg.resource, pg.salt, string(h.Sum(nil)))
}

// cut makes frames of the records and returns their bytes. What is larger than most,
// the bus never takes.
func (w *written) cut(pg *page, most int64) (raw int64) {
	b := pageFrames.Get().(*messages.Builder) //nolint:forcetypeassert // nothing else is in it
	defer pageFrames.Put(b)
	id := hex.EncodeToString(w.origin.GetPull()) + "/"
	first := 0
	flush := func(end int) {
		if end == first {
			return
		}
		no := w.fetched.GetFrames()
		data := b.Encode(nil)
		if int64(len(data)) > most {
			w.refuse(uint64(first), uint64(end-first), data, messages.Quarantine_HOLDS_FRAME, pg.format,
				errPageTooLarge.New(nil, "publish a frame of %d bytes of %s, the server takes %d", len(data), pg.api, most))
		} else {
			w.frames = append(w.frames, topology.Message{
				Subject: topology.RecordSubject(w.source), ID: id + strconv.FormatUint(uint64(no), 10), Data: data,
			})
		}
		w.fetched.Frames++
		first = end
	}
	for i, rec := range pg.records {
		raw += int64(len(rec))
		if i > first && (b.BodySize()+len(rec) > messages.TargetBody || i-first == messages.TargetCount) {
			flush(i)
		}
		if i == first {
			b.Reset(messages.Header{Source: w.source, Format: pg.format, FrameNo: w.fetched.GetFrames(), FirstRecord: uint64(first)})
			b.Origin(w.origin)
		}
		b.AddRecord(rec)
	}
	flush(len(pg.records))
	b.Reset(messages.Header{})
	return raw
}

// refuse quarantines n records.
func (w *written) refuse(record, n uint64, payload []byte, holds messages.Quarantine_Holds, format string, err error) {
	code := fault.CodeOf(err)
	length := int64(len(payload))
	cut := len(payload) > maxPayload
	if cut {
		payload = payload[:maxPayload]
	}
	w.quarantine = append(w.quarantine, &messages.Quarantine{
		Stage: string(topology.Ingest), Source: w.source, Code: code, Reason: err.Error(), Origin: w.origin, Record: record, Records: n,
		Offset: -1, Length: length, Payload: payload, Cut: cut, Holds: holds, Format: format,
	})
	if w.fetched.Quarantined == nil {
		w.fetched.Quarantined = map[string]uint64{}
	}
	w.fetched.Quarantined[code] += n
}

// send hands the frames and what is refused to out.
func (w *written) send(ctx context.Context, out topology.Outbox) error {
	for _, m := range w.frames {
		if err := out.Publish(ctx, m); err != nil {
			return err
		}
	}
	for _, q := range w.quarantine {
		if err := out.Quarantine(ctx, q); err != nil {
			return err
		}
	}
	return nil
}

// tell hands the facts to out.
func (w *written) tell(out topology.Outbox) {
	out.Fact(&messages.Fact{Kind: &messages.Fact_Announced{Announced: &messages.Announced{Origin: w.origin, As: messages.Announced_AS_EVENTS, Job: w.job}}})
	out.Fact(&messages.Fact{Kind: &messages.Fact_Fetched{Fetched: w.fetched}})
	if w.parsed != nil {
		out.Fact(&messages.Fact{Kind: &messages.Fact_Parsed{Parsed: w.parsed}})
	}
}
