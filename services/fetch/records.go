package fetch

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strconv"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/fetch/gunzip"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/services/internal/spare"
	"github.com/penstock/penstock/topology"
)

// headSize is how much of an object the choice of its format may look at, after
// decompression. Unit: bytes.
const headSize = 4 << 10

// keepBad is how much of a bad record goes to quarantine. Unit: bytes.
const keepBad = 1 << 20

// reader is all that reading one object needs, reused for the next.
type reader struct {
	dec     decoder
	head    [headSize + gunzip.MinRoom]byte
	n       int   // bytes in head
	next    int   // the first of them not handed out yet
	headErr error // what the decoder said behind head
	split   *framing.Splitter
	frame   *messages.Builder
}

func newReader() *reader {
	return &reader{
		split: framing.New(framing.Framing{}, nil, framing.Limits{}),
		frame: messages.NewBuilder(messages.Header{}),
	}
}

func (r *reader) release() {
	r.dec.release()
	r.split.Reset(framing.Framing{}, nil, framing.Limits{})
	r.frame.Reset(messages.Header{})
}

// peek reads the first bytes; Fill gives them again.
func (r *reader) peek() []byte {
	r.n, r.next, r.headErr = 0, 0, nil
	for r.n < headSize && r.headErr == nil {
		var n int
		n, r.headErr = r.dec.Fill(r.head[:], r.n)
		r.n += n
	}
	return r.head[:min(r.n, headSize)]
}

// Fill implements framing.Filler: what the decoder gives, from the first byte on.
func (r *reader) Fill(buf []byte, end int) (int, error) {
	if r.next < r.n {
		n := copy(buf[end:], r.head[r.next:r.n])
		r.next += n
		return n, nil
	}
	if r.headErr != nil {
		return 0, r.headErr
	}
	return r.dec.Fill(buf, end)
}

// Read implements io.Reader, for what is not compressed as a whole.
func (r *reader) Read(p []byte) (int, error) { return r.Fill(p, 0) }

// read cuts the object into records and publishes them.
func (j *job) read(ctx context.Context, src *source, r *reader) error {
	f, o := j.f, j.origin
	enlarge := func() error { return j.enlarge(ctx) }
	cfg := j.lifted(f.cfg)
	if err := r.dec.reset(j.obj, cfg, enlarge); err != nil {
		return j.judge(err)
	}
	head := r.peek()
	if len(head) == 0 && r.headErr == io.EOF {
		j.skip = skipEmpty
		return nil
	}
	if isParquet(head) {
		return j.parquet(ctx, src, r)
	}
	format, fr, skip := src.Choose(src.Format, o.GetKey(), head)
	if j.format, j.skip = format, skip; skip != "" {
		return nil
	}
	j.pickFormat()
	limits := framing.Limits{Record: int64(cfg.MaxRecord), Keep: keepBad, Grow: func(size int) error {
		if size <= plainBuffer {
			return nil
		}
		return enlarge()
	}}
	if fr.Kind == framing.Lines || fr.Kind == framing.CSV {
		limits.Record = int64(cfg.MaxLine)
	}
	r.split.ResetTo(fr, r, limits)
	j.cutter.begin(j, r.frame)

	err := j.cut(ctx, r.split)
	if err == nil && r.dec.trailing {
		err = j.trailing(ctx, &r.dec)
	}
	return j.finish(ctx, err)
}

// finish publishes the last frame, unless another attempt will read on.
func (j *job) finish(ctx context.Context, err error) error {
	if err == nil || fault.ClassOf(err) == fault.Reject {
		if flushErr := j.cutter.flush(ctx); flushErr != nil {
			return flushErr
		}
	}
	return err
}

// cut hands on record after record. A bad span is settled only when it is clear
// that not the object's early end made it bad.
func (j *job) cut(ctx context.Context, s *framing.Splitter) error {
	var held *framing.Bad
	for {
		if held == nil && j.past(j.cutter.ordinal) {
			return nil
		}
		rec, err := s.Next()
		bad := asBad(err)
		switch {
		case bad != nil && bad.Kind == framing.ErrTruncated:
			if held == nil || bad.Length > 0 {
				if badErr := j.bad(ctx, held, s.Keys(), false); badErr != nil || j.skip != "" {
					return badErr
				}
				held = bad
			}
			j.tail = held // or what was bad up to the end
			continue      // to what ended it
		case err == io.EOF && j.tail != nil:
			return j.judge(io.ErrUnexpectedEOF)
		case err != nil && bad == nil && err != io.EOF:
			j.tail = held
			return j.judge(err)
		}
		if badErr := j.bad(ctx, held, s.Keys(), err == io.EOF); badErr != nil || j.skip != "" || err == io.EOF {
			return badErr
		}
		if held = bad; bad == nil {
			if err := j.cutter.add(ctx, rec, s.Header(), s.Offset()); err != nil {
				return err
			}
		}
	}
}

// asBad is errors.As, which allocates, for errors only.
func asBad(err error) *framing.Bad {
	if err == nil {
		return nil
	}
	var bad *framing.Bad
	errors.As(err, &bad)
	return bad
}

// bad settles a bad span, if there is one. last says that the object ends there.
func (j *job) bad(ctx context.Context, b *framing.Bad, keys []string, last bool) error {
	if b == nil {
		return nil
	}
	if b.Kind == framing.ErrNoArray {
		if slices.Contains(keys, "digestStartTime") && slices.Contains(keys, "awsAccountId") {
			j.skip = skipDigest // Source: formats F-9
			return nil
		}
		if last && j.cutter.ordinal == 0 {
			return b.Kind.New(nil, "read %s: %s", j.name(), b.Reason)
		}
	}
	return j.cutter.bad(ctx, b)
}

// judge says what an error in the middle of the object means.
func (j *job) judge(err error) error {
	if j.obj.err != nil {
		return j.obj.err // whatever was made of it: the object itself does not end there
	}
	var known *fault.Error
	if errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	kind := errCorrupt
	if errors.Is(err, io.ErrUnexpectedEOF) {
		kind = errTruncated
	}
	if j.in.Attempt <= j.f.cfg.TruncatedRetries {
		kind = errBodyCut
	}
	return kind.New(err, "read %s", j.name())
}

// trailing settles what follows the last gzip member.
func (j *job) trailing(ctx context.Context, d *decoder) error {
	at := j.obj.position(d.stored)
	head, n, err := d.garbage(keepBad)
	if err != nil || n == 0 {
		return err
	}
	if !j.wants(j.cutter.ordinal) {
		return nil
	}
	reason := errGarbage.New(nil, "read %s: %d bytes that are not gzip follow byte %d of the stored object", j.name(), n, at)
	return j.out.Quarantine(ctx, &messages.Quarantine{
		Code: errGarbage.Code, Reason: reason.Error(), Origin: j.origin, Record: j.cutter.ordinal, Offset: -1, Length: n,
		Payload: head, Cut: int64(len(head)) < n, Holds: messages.Quarantine_HOLDS_BYTES,
		Subject: j.in.Subject, Format: j.format, Attempts: uint32(j.in.Attempt),
	})
}

// cutter collects records into frames and publishes them. The cuts depend on
// nothing but the records, so that every attempt makes the same frames.
type cutter struct {
	job   *job
	frame *messages.Builder
	open  bool // frame has a header
	pull  string
	topic string
	// header of the records in frame.
	header []byte

	frames   uint32
	first    uint64 // ordinal of the first record in frame
	ordinal  uint64 // of the next record
	unwanted uint64 // records that are in no part that is wanted
	maxBad   int
	refused  map[string]uint64
	lastCode string
	badOnes  int
}

func (c *cutter) begin(j *job, frame *messages.Builder) {
	*c = cutter{job: j, frame: frame, maxBad: j.lifted(j.f.cfg).MaxBadRecords, pull: hex.EncodeToString(j.origin.GetPull()) + "/", topic: topology.RecordSubject(j.origin.GetSource())}
}

// add takes a record that begins at offset of the raw object and has its columns
// named by header.
func (c *cutter) add(ctx context.Context, rec, header []byte, offset int64) error {
	if c.passesOver() {
		return nil
	}
	full := c.frame.BodySize()+len(rec) > c.job.f.frameBytes || !bytes.Equal(header, c.header)
	if c.frame.Len() > 0 && c.open && full {
		if err := c.flush(ctx); err != nil {
			return err
		}
	}
	if !c.open {
		j := c.job
		c.header = header
		c.frame.Reset(messages.Header{
			Source: j.origin.GetSource(), Format: j.format, FrameNo: c.frames, FirstRecord: c.ordinal, Head: header,
		})
		c.frame.Origin(j.origin)
		c.open, c.first = true, c.ordinal
	}
	c.frame.AddRecord(rec)
	c.ordinal++
	if len(rec) > c.job.f.frameBytes {
		return c.lone(ctx, rec, offset)
	}
	if c.frame.Len() >= messages.LargeCount {
		return c.flush(ctx)
	}
	return nil
}

// lone publishes a frame of one huge record. The bus may not take it even then.
func (c *cutter) lone(ctx context.Context, rec []byte, offset int64) error {
	data := c.frame.EncodeInto(encoded.Take)
	var err error
	if len(data) <= messages.MaxFrame {
		err = c.publish(ctx, data)
		if err == nil || fault.ClassOf(err) != fault.Reject {
			return err
		}
	}
	c.open = false
	c.ordinal--
	return c.bad(ctx, &framing.Bad{
		Offset: offset, Length: int64(len(rec)), Bytes: slices.Clone(rec[:min(len(rec), keepBad)]),
		Kind: framing.ErrTooLarge, Reason: "the record is larger than what the bus carries",
	})
}

// flush publishes the frame that is being built, if any.
func (c *cutter) flush(ctx context.Context) error {
	if !c.open || c.frame.Len() == 0 {
		return nil
	}
	return c.publish(ctx, c.frame.EncodeInto(encoded.Take))
}

// encoded are buffers of frames that are stored.
var encoded = spare.Buffers{Most: 4 << 20}

// publish stores a frame. Its id says from which ordinal to which its records are, so
// that where another attempt or another release cuts differently the one is not taken
// for the other.
func (c *cutter) publish(ctx context.Context, data []byte) error {
	err := c.job.out.Publish(ctx, topology.Message{
		Subject: c.topic, ID: c.pull + strconv.FormatUint(c.first, 10) + "-" + strconv.FormatUint(c.ordinal, 10), Data: data,
		Stored: func() { encoded.Give(data) },
	})
	if err != nil {
		return err
	}
	recordsCut.WithLabelValues(c.job.origin.GetSource()).Add(float64(c.frame.Len()))
	c.frames++
	c.open = false
	return nil
}

// bad quarantines a span that is not a record.
func (c *cutter) bad(ctx context.Context, b *framing.Bad) error {
	j := c.job
	if c.passesOver() {
		return nil
	}
	if c.badOnes++; c.badOnes > c.maxBad {
		j.tail = b
		return errTooManyBad.New(nil, "read %s: more than %d", j.name(), c.maxBad)
	}
	record := c.ordinal
	c.refuse(b.Kind.Code)
	return j.out.Quarantine(ctx, &messages.Quarantine{
		Code: b.Kind.Code, Reason: b.Kind.New(nil, "record %d of %s: %s", record, j.name(), b.Reason).Error(), Origin: j.origin,
		Record: record, Records: 1, Offset: b.Offset, Length: b.Length, Payload: b.Bytes, Cut: int64(len(b.Bytes)) < b.Length,
		Holds: holds(b), Subject: j.in.Subject, Format: j.format, Attempts: uint32(j.in.Attempt),
	})
}

// holds tells whether the span is one whole record, or some stretch.
func holds(b *framing.Bad) messages.Quarantine_Holds {
	if b.Kind == framing.ErrTooLarge {
		return messages.Quarantine_HOLDS_RECORD
	}
	return messages.Quarantine_HOLDS_BYTES
}

// refuse counts a record that goes to quarantine.
func (c *cutter) refuse(code string) {
	if c.refused == nil {
		c.refused = map[string]uint64{}
	}
	c.refused[code]++
	c.lastCode = code
	c.ordinal++
	if c.open {
		c.frame.Skip(1)
	}
}
