package sources

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/topology"
)

var (
	errHTTPFull = fault.Define("ingest.http_full", fault.Retry,
		"none when it passes: the sender comes again; else raise limits of the source, or run more replicas")
	errHTTPBad = fault.Define("ingest.http_bad_record", fault.Reject,
		"look at what the sender sends; with on_bad: accept the good records beside it are stored")
	errHTTPTooBad = fault.Define("ingest.http_too_many_bad", fault.Reject,
		"check the format of the endpoint: the body holds more records that cannot be read than limits.max_bad; nothing of it was stored")
	errHTTPCarried = fault.Define("ingest.http_frame_too_large", fault.Reject,
		"raise max_payload of the NATS server (penstock's own configuration uses 8MB), or lower limits.max_record")
)

// httpIntakeBase is what a request in hand holds beside its records. Unit: bytes.
const httpIntakeBase = 256 << 10

// keepHTTPBad bounds what is kept of a bad record. Unit: bytes.
const keepHTTPBad = 256 << 10

// httpIntake turns a body into frames. It is pooled for its buffers; not for
// concurrent use.
type httpIntake struct {
	s     *httpSource
	frame *messages.Builder
	split *framing.Splitter
	peek  [2]*bufio.Reader
	gz    [2]*gzip.Reader
	zstd  *zstd.Decoder
	sum   hash.Hash
	made  []byte

	wire httpWire
	httpLoad
	// check, if set, judges each record, and wrap makes records of what was cut.
	check func(rec []byte) error
	wrap  func(dst, rec []byte) []byte
	// stopAtBad ends the body at its first bad record.
	stopAtBad bool
	format    string
	configured,
	skip string
	where string // which part of the body is read
	open  bool   // frame has a header
	head  []byte // the columns of the records in frame
	// charged is what is held for the records in frame, owed not yet.
	charged, owed int64
	good          int // in frame
	lengths       [4]byte
}

// httpLoad is what an intake leaves behind for the bus.
type httpLoad struct {
	origin *messages.Origin
	// format that was chosen last.
	frames []httpPiece
	bad    []httpBadRecord
	codes  map[string]uint64
	// records that were cut, bad ones included, and accepted good ones.
	records, accepted uint64
	raw, sent         int64
	skippedParts      int
	held              int64
	body              [32]byte
}

// httpPiece is an encoded frame.
type httpPiece struct {
	data    []byte
	records int
}

// httpBadRecord is a span that is no record.
type httpBadRecord struct {
	record         uint64
	offset, length int64
	bytes          []byte
	// head names the columns, where a line does: without it the span says little.
	head          []byte
	format, where string
	err           error
}

func newHTTPIntake(s *httpSource) *httpIntake {
	return &httpIntake{
		s: s, frame: messages.NewBuilder(messages.Header{}), split: framing.New(framing.Framing{}, nil, framing.Limits{}),
		sum: sha256.New(),
	}
}

// begin makes c ready for a request. What begin takes, free gives back.
func (c *httpIntake) begin(o *messages.Origin, configured string) error {
	c.httpLoad = httpLoad{origin: o}
	c.check, c.wrap, c.stopAtBad = nil, nil, false
	c.configured, c.format, c.skip, c.where = configured, "", "", ""
	c.open, c.head, c.charged, c.owed, c.good = false, nil, 0, 0, 0
	c.sum.Reset()
	c.frame.Reset(messages.Header{}) // a panic may have left records in it
	return c.hold(httpIntakeBase)
}

// end lets go of what belongs to the request.
func (c *httpIntake) end() {
	c.httpLoad, c.check, c.wrap, c.head = httpLoad{}, nil, nil, nil
	c.wire = httpWire{}
	c.split.Reset(framing.Framing{}, nil, framing.Limits{})
	c.frame.Reset(messages.Header{})
	for _, b := range c.peek {
		if b != nil {
			b.Reset(nil)
		}
	}
	if c.zstd != nil {
		_ = c.zstd.Reset(nil)
	}
	if cap(c.made) > keepHTTPBad {
		c.made = nil
	}
}

// hold takes n bytes of what all requests together may hold. It never waits: who
// holds some must not wait for more.
func (c *httpIntake) hold(n int64) error {
	if !c.s.room.TryAcquire(n) {
		return errHTTPFull.New(nil, "hold %d more bytes of a request", n)
	}
	c.held += n
	mInFlightBytes.WithLabelValues(c.s.deps.Name).Add(float64(n))
	return nil
}

func (c *httpIntake) giveBack(n int64) {
	c.held -= n
	c.s.release(n)
}

func (s *httpSource) release(n int64) {
	s.room.Release(n)
	mInFlightBytes.WithLabelValues(s.deps.Name).Sub(float64(n))
}

// choose finds the format of what begins with head.
func (c *httpIntake) choose(head []byte) (framing.Framing, error) {
	format, f, skip := c.s.deps.Choose(c.configured, "", head)
	if format == "" {
		return f, errHTTPBad.New(nil, "read a body: no format fits")
	}
	if format != c.format {
		if err := c.flush(); err != nil {
			return f, err
		}
		c.format = format
	}
	c.skip = skip
	return f, nil
}

// whole reads a body that is no form.
func (c *httpIntake) whole(body io.Reader) error {
	r, head, err := c.peeked(body, 0)
	if err != nil {
		return err
	}
	if len(head) == 0 {
		return nil
	}
	f, err := c.choose(head)
	if err != nil || c.skip != "" {
		return err
	}
	return c.cut(f, r)
}

// cut takes records until r ends. An error refuses the request.
func (c *httpIntake) cut(f framing.Framing, r io.Reader) error {
	limits := &c.s.cfg.Limits
	var grown int64
	c.split.Reset(f, r, framing.Limits{Record: int64(limits.MaxRecord), Keep: keepHTTPBad, Grow: func(size int) error {
		if err := c.hold(int64(size)); err != nil {
			return err
		}
		c.giveBack(grown)
		grown = int64(size)
		return nil
	}})
	defer func() { c.giveBack(grown) }()
	for {
		rec, err := c.split.Next()
		if err == nil {
			if err := c.record(rec); err != nil {
				return err
			}
			continue
		}
		if err == io.EOF {
			return nil
		}
		var bad *framing.Bad
		if !errors.As(err, &bad) {
			return err
		}
		if bad.Length == 0 {
			bad.Bytes = nil
		}
		if err := c.refuse(bad.Offset, bad.Length, bad.Bytes, bad.Kind.New(nil, "cut record %d of a request: %s%s, %d bytes at offset %d",
			c.records, c.where, bad.Reason, bad.Length, bad.Offset)); err != nil {
			return err
		}
	}
}

// errEnough ends a body of which the rest is refused.
var errHTTPEnough = errors.New("enough")

// refuse notes a bad span, which takes an ordinal of its own.
func (c *httpIntake) refuse(offset, length int64, span []byte, err error) error {
	if len(c.bad) >= c.s.cfg.Limits.MaxBad {
		return errHTTPTooBad.New(err, "read a body with more than %d bad records", c.s.cfg.Limits.MaxBad)
	}
	span = span[:min(len(span), keepHTTPBad)]
	head := bytes.Clone(c.split.Header())
	if err := c.hold(int64(len(span)+len(head)) + 512); err != nil {
		return err
	}
	c.bad = append(c.bad, httpBadRecord{
		record: c.records, offset: offset, length: length, bytes: span, head: head, format: c.format, where: c.where, err: err,
	})
	if c.codes == nil {
		c.codes = map[string]uint64{}
	}
	c.codes[fault.CodeOf(err)]++
	c.count(span)
	if c.open {
		c.frame.Skip(1)
	}
	if c.stopAtBad {
		return errHTTPEnough
	}
	return c.rows()
}

// count adds a record or bad span to the sum that tells bodies apart. How a form
// is divided does not count: each attempt has a boundary of its own.
func (c *httpIntake) count(rec []byte) {
	binary.BigEndian.PutUint32(c.lengths[:], uint32(len(rec)))
	c.sum.Write(c.lengths[:])
	c.sum.Write(rec)
	c.records++
}

func (c *httpIntake) rows() error {
	if c.records > uint64(c.s.cfg.Limits.MaxRows) {
		return errHTTPTooLarge.New(nil, "read a body of more than %d records", c.s.cfg.Limits.MaxRows)
	}
	return nil
}

// record adds a record to the frame.
func (c *httpIntake) record(rec []byte) error {
	if c.check != nil {
		if err := c.check(rec); err != nil {
			return c.refuse(c.split.Offset(), int64(len(rec)), bytes.Clone(rec[:min(len(rec), keepHTTPBad)]), err)
		}
	}
	if c.wrap != nil {
		if len(bytes.TrimSpace(rec)) == 0 {
			return nil
		}
		c.made = c.wrap(c.made[:0], rec)
		rec = c.made
	}
	columns := c.split.Header()
	if c.good > 0 && (c.frame.BodySize()+len(rec) > messages.TargetBody || !bytes.Equal(columns, c.head)) {
		if err := c.flush(); err != nil {
			return err
		}
	}
	if !c.open {
		c.head = slices.Clone(columns)
		c.frame.Reset(messages.Header{
			Source: c.origin.GetSource(), Format: c.format, FrameNo: uint32(len(c.frames)), FirstRecord: c.records, Head: c.head,
		})
		c.frame.Origin(c.origin)
		c.open = true
	}
	if c.owed += int64(len(rec)); c.owed >= 64<<10 {
		if err := c.hold(c.owed); err != nil {
			return err
		}
		c.charged, c.owed = c.charged+c.owed, 0
	}
	c.frame.AddRecord(rec)
	c.good++
	c.accepted++
	c.count(rec)
	if c.good == messages.TargetCount {
		if err := c.flush(); err != nil {
			return err
		}
	}
	return c.rows()
}

// flush encodes the frame.
func (c *httpIntake) flush() error {
	if c.good == 0 {
		return nil
	}
	data := c.frame.Encode(nil)
	if err := c.hold(int64(len(data))); err != nil {
		return err
	}
	c.giveBack(c.charged)
	c.frames = append(c.frames, httpPiece{data: data, records: c.good})
	c.charged, c.owed, c.good, c.open = 0, 0, 0, false
	return nil
}

// newHTTPPull is a pull that nothing else has.
func newHTTPPull() []byte {
	pull := make([]byte, len(messages.ID{}))
	_, _ = rand.Read(pull) // it does not fail
	return pull
}

// seal gives the request its pull, once all of it is known. The key, if there is
// one, and what is in the body make it the same for every attempt of the sender;
// with the body in it, a key that is used again for something else loses nothing.
// For others it is unique, unless the bus has not yet told what it did with an
// earlier attempt.
func (c *httpIntake) seal(e *httpEndpoint, who httpCaller, key string, now time.Time) {
	o := c.origin
	c.sum.Write([]byte(e.path))
	c.sum.Sum(c.body[:0])
	var pull []byte
	switch body, before := string(c.body[:]), c.s.again.get(c.body); {
	case key != "":
		pull = messages.NewPull("http", o.GetSource(), e.path, who.name, key, body)
	case before != nil:
		pull = before
	case e.SameBodyWindow > 0:
		stretch := strconv.FormatInt(now.UnixNano()/int64(e.SameBodyWindow), 10)
		pull = messages.NewPull("http", o.GetSource(), e.path, "same body", stretch, body)
	default:
		return
	}
	// The frames were encoded before: there the pull stands once, in the head, and
	// what stands for it is random.
	for _, f := range c.frames {
		if at := bytes.Index(f.data, o.GetPull()); at >= 0 {
			copy(f.data[at:], pull)
		}
	}
	o.Pull = pull
}

// fetched is what the ledger is told about a request.
func (l *httpLoad) fetched() *messages.Fetched {
	return &messages.Fetched{
		Pull: l.origin.GetPull(), Source: l.origin.GetSource(), Frames: uint32(len(l.frames)), Records: l.records,
		Bytes: uint64(l.sent), RawBytes: uint64(l.raw), End: messages.Fetched_END_COMPLETE, Quarantined: l.codes,
	}
}

// store hands a request to the bus. It returns nil once all of it is durable. The
// announcement goes before everything else: should the process die in between, the
// ledger knows of a request that was not finished. It is a message of its own, as
// facts in an outbox linger for others, and the sender waits.
func (l *httpLoad) store(ctx context.Context, out topology.Outbox) error {
	o := l.origin
	announced := &messages.Facts{Stage: string(topology.Ingest), Facts: []*messages.Fact{{Kind: &messages.Fact_Announced{
		Announced: &messages.Announced{Origin: o, As: messages.Announced_AS_EVENTS},
	}}}}
	err := out.Publish(ctx, topology.Message{
		Subject: topology.LedgerSubject(topology.Ingest), ID: hex.EncodeToString(o.GetPull()) + "/announced",
		Data: messages.EncodeFacts(announced),
	})
	if err != nil {
		return err
	}
	if err := out.Flush(ctx); err != nil {
		return err
	}
	fact := l.fetched()
	id := hex.EncodeToString(o.GetPull()) + "/"
	var g errgroup.Group
	g.SetLimit(16)
	for n, f := range l.frames {
		err := out.Publish(ctx, topology.Message{
			Subject: topology.RecordSubject(o.GetSource()), ID: id + strconv.Itoa(n), Data: f.data,
		})
		if err != nil && fault.ClassOf(err) == fault.Reject {
			fact.Frames--
			err = l.keep(ctx, out, &g, fact, f, err)
		}
		if err != nil {
			return errors.Join(err, g.Wait())
		}
	}
	for _, b := range l.bad {
		q := &messages.Quarantine{
			Stage: string(topology.Ingest), Source: o.GetSource(), Code: fault.CodeOf(b.err), Reason: b.err.Error(), Origin: o,
			Record: b.record, Records: 1, Offset: b.offset, Length: b.length, Payload: b.bytes,
			Cut: int64(len(b.bytes)) < b.length, Holds: messages.Quarantine_HOLDS_BYTES, Format: b.format, Header: b.head,
		}
		g.Go(func() error { return out.Quarantine(ctx, q) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	out.Fact(&messages.Fact{Kind: &messages.Fact_Fetched{Fetched: fact}})
	return out.Flush(ctx)
}

// keep quarantines a frame that the bus will never take.
func (l *httpLoad) keep(ctx context.Context, out topology.Outbox, g *errgroup.Group, fact *messages.Fetched, f httpPiece, cause error) error {
	v, err := messages.DecodeFrame(f.data)
	if err != nil {
		return err
	}
	err = errHTTPCarried.New(cause, "store %d records of a request", f.records)
	if fact.Quarantined == nil {
		fact.Quarantined = map[string]uint64{}
	}
	fact.Quarantined[errHTTPCarried.Code] += uint64(f.records)
	q := &messages.Quarantine{
		Stage: string(topology.Ingest), Source: l.origin.GetSource(), Code: errHTTPCarried.Code, Reason: err.Error(), Origin: l.origin,
		Record: v.FirstRecord(), Records: uint64(f.records), Offset: -1, Length: int64(v.BodySize()), Payload: f.data,
		Holds: messages.Quarantine_HOLDS_FRAME, Format: v.Format(), Subject: topology.RecordSubject(l.origin.GetSource()),
	}
	g.Go(func() error { return out.Quarantine(ctx, q) })
	return nil
}
