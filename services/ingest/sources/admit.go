package sources

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/topology"
)

var (
	errUnknownNotice = fault.Define("ingest.unknown_notification", fault.Reject,
		"if these are events, set the source's format and body: events; if they announce objects in a shape of their own, send S3's notifications instead")
	errBrokenNotice = fault.Define("ingest.broken_notification", fault.Reject,
		"find out who sends it: S3 itself always names a bucket, a key and an event; and do not let others send to the queue")
	errBucket = fault.Define("ingest.bucket_not_allowed", fault.Reject,
		"add the bucket to the source's buckets if it is yours; else close the queue's policy, somebody sends forged notifications")
	errUnreadable = fault.Define("ingest.unreadable_body", fault.Reject,
		"check the source's format against what is sent to the queue")
	errTooManyBad = fault.Define("ingest.too_many_bad_records", fault.Reject,
		"check the source's format: the rest of this message was kept in one piece")
	errTooLarge = fault.Define("ingest.body_too_large", fault.Reject,
		"send bodies of 1 MiB or less; SQS itself takes no larger ones")
	errFails = fault.Define("ingest.message_fails", fault.Reject,
		"report this as a bug of penstock, with the message; it was kept")
	errPanic = fault.Define("ingest.panic", fault.Retry,
		"report this as a bug of penstock, with the stack in the log")
)

const (
	// maxBad bounds the entries that one body makes in quarantine.
	maxBad = 100
	// maxPayload bounds a quarantined body. Unit: bytes.
	maxPayload = 4 << 20
	// headBytes is what a format is chosen by.
	headBytes = 4 << 10
)

// letter is one upstream message.
type letter struct {
	// queue and id identify it; every redelivery has the same.
	queue, id string
	body      string
	// sent is when it was sent, received when we got it. Unit: Unix ns, 0 unknown.
	sent, received int64
	// receives counts its deliveries from 1.
	receives int
	// again is another id that a message sent a second time has: that which SNS
	// gave it. "" for none. admit finds it.
	again string
	// entry of the quarantine that it comes from, nil for none.
	entry *messages.Quarantine
}

// Body says what the messages of a queue hold.
type Body string

// The kinds of bodies.
const (
	// BodyAuto: notifications by their shape; other bodies are events when the
	// source names its format, else they are quarantined.
	BodyAuto Body = "auto"
	// BodyNotifications: what announces no object is quarantined.
	BodyNotifications Body = "notifications"
	// BodyEvents: the body, or the message in its SNS envelope, holds events.
	BodyEvents Body = "events"
)

// Values implements config.Enum.
func (Body) Values() []string {
	return []string{string(BodyAuto), string(BodyNotifications), string(BodyEvents)}
}

// admission turns upstream messages into what goes on the bus. It is the part of
// a queue reader that knows no queue: a pure function of the message, so that a
// redelivery results in the same. Not for concurrent use.
type admission struct {
	source, format          string
	account, region         string
	body                    Body
	buckets, keys, skipKeys patterns
	choose                  ChooseFormat
	// frame, split and the others are kept for their buffers.
	frame   *messages.Builder
	split   *framing.Splitter
	reader  bytes.Reader
	scratch []byte
	packed  cargo
	// alone has events not share a frame with those of other messages.
	alone bool
	// most bad spans of one body are quarantined one by one; 0 is maxBad.
	most int
}

// outcome is the fate of one pull.
type outcome struct {
	origin *messages.Origin
	as     messages.Announced_As
	// code is the reason where ignored or quarantined.
	code       string
	publish    []topology.Message
	quarantine []*messages.Quarantine
	// fetched is set where the message itself held the events.
	fetched *messages.Fetched
	// cargo is set, and all but the origin is not, where the message holds events
	// that may go in a frame with those of others.
	cargo *cargo
	// body that holds this pull alone.
	body func() []byte
	// again is the pull that it was before it went to quarantine, job has it redriven.
	again []byte
	job   string
}

// send hands o to out. What can never be stored is quarantined instead.
func (o *outcome) send(ctx context.Context, out topology.Outbox) error {
	for _, m := range o.publish {
		err := out.Publish(ctx, m)
		if err != nil && fault.ClassOf(err) == fault.Reject {
			o.refuse(err)
			break
		}
		if err != nil {
			return err
		}
	}
	for _, q := range o.quarantine {
		if err := out.Quarantine(ctx, q); err != nil {
			return err
		}
	}
	out.Fact(&messages.Fact{Kind: &messages.Fact_Announced{
		Announced: &messages.Announced{Origin: o.origin, As: o.as, Code: o.code, Again: o.again, Job: o.job},
	}})
	if o.fetched != nil {
		out.Fact(&messages.Fact{Kind: &messages.Fact_Fetched{Fetched: o.fetched}})
	}
	return nil
}

// refuse turns o into a quarantined one, as a whole.
func (o *outcome) refuse(err error) {
	payload := o.body()
	length := int64(len(payload))
	cut := len(payload) > maxPayload
	if cut {
		payload = payload[:maxPayload]
	}
	o.as, o.code = messages.Announced_AS_QUARANTINED, fault.CodeOf(err)
	o.publish, o.fetched = nil, nil
	o.quarantine = []*messages.Quarantine{{
		Stage: string(topology.Ingest), Source: o.origin.GetSource(), Code: o.code, Reason: err.Error(),
		Origin: o.origin, Offset: 0, Length: length, Payload: payload, Cut: cut,
		Holds: messages.Quarantine_HOLDS_SQS_BODY,
	}}
}

func (a *admission) outcome(l *letter, index int, body func() []byte) outcome {
	if l.entry != nil {
		return outcome{origin: a.rejudged(l.entry, index), body: body}
	}
	return outcome{
		origin: &messages.Origin{
			Pull:   messages.MessagePull(l.queue, l.id, index),
			Source: a.source, Queue: l.queue, MessageId: l.id, Created: l.sent, Received: l.received,
			Account: a.account, Region: a.region,
		},
		body: body,
	}
}

// quick returns the events of a message that is plainly nothing but events which may
// share a frame; nil for another message, which admit judges.
func (a *admission) quick(l *letter) *cargo {
	if a.alone || len(l.body) > maxCargo {
		return nil
	}
	body := append(a.scratch[:0], l.body...)
	a.scratch = body
	switch {
	case a.body == BodyEvents && !bytes.Contains(body, snsKind):
	case a.body == BodyAuto && a.named() && !mayAnnounce(body):
	default:
		return nil
	}
	format, f, skip := a.choose(a.format, "", body[:min(len(body), headBytes)])
	if skip != "" || format == "" {
		return nil
	}
	return a.cargo(l, format, f, body)
}

// snsKind is in every SNS envelope.
var snsKind = []byte("Notification")

// admit judges one message. The result has at least one outcome, and refers to
// nothing that changes.
func (a *admission) admit(l *letter) []outcome {
	body := []byte(l.body)
	asIs := func() []byte { return body }
	if len(body) > maxBody {
		o := a.outcome(l, 0, asIs)
		o.refuse(errTooLarge.New(nil, "read message %s of %d bytes", l.id, len(body)))
		return []outcome{o}
	}
	if a.body == BodyEvents {
		inner := body
		// Only SNS envelopes matter here; do not take every event apart for them.
		if bytes.Contains(body, snsKind) {
			n := readNotice(body)
			inner, l.again = n.inner, n.id
		}
		return []outcome{a.events(l, body, inner)}
	}

	if a.body == BodyAuto && a.named() && !mayAnnounce(body) {
		return []outcome{a.events(l, body, body)}
	}
	n := readNotice(body)
	l.again = n.id
	if n.records == nil {
		if a.body == BodyAuto && a.named() {
			return []outcome{a.events(l, body, n.inner)}
		}
		o := a.outcome(l, 0, asIs)
		o.refuse(errUnknownNotice.New(nil, "read the notification in message %s: %s", l.id, n.why))
		return []outcome{o}
	}
	outcomes := make([]outcome, len(n.records))
	for i := range n.records {
		outcomes[i] = a.notice(l, i, &n.records[i])
	}
	return outcomes
}

// named tells whether the source names a format of events.
func (a *admission) named() bool { return a.format != "" && a.format != "auto" }

// notice judges one record of a notification.
func (a *admission) notice(l *letter, index int, n *named) outcome {
	o := a.outcome(l, index, n.body)
	if n.verdict != broken && len(n.key) <= maxKey {
		o.origin.Bucket, o.origin.Key, o.origin.Version, o.origin.Etag = n.bucket, n.key, n.version, n.etag
	}
	if n.created != 0 {
		o.origin.Created = n.created
	}
	if n.region != "" {
		o.origin.Region = n.region
	}
	switch {
	case n.verdict == test:
		o.as = messages.Announced_AS_TEST
	case n.verdict == ignored:
		o.as, o.code = messages.Announced_AS_IGNORED, n.why
	case n.verdict == unknown:
		o.refuse(errUnknownNotice.New(nil, "read record %d of the notification in message %s: %s", index, l.id, n.why))
	case n.verdict == broken:
		o.refuse(errBrokenNotice.New(nil, "read record %d of the notification in message %s: %s", index, l.id, n.why))
	case !a.buckets.match(n.bucket):
		o.refuse(errBucket.New(nil, "admit record %d of the notification in message %s: bucket %q is not on the list", index, l.id, n.bucket))
	case len(a.keys) > 0 && !a.keys.match(n.key), a.skipKeys.match(n.key):
		o.as, o.code = messages.Announced_AS_IGNORED, whyFiltered
	default:
		o.as = messages.Announced_AS_OBJECT
		o.publish = []topology.Message{{
			Subject: topology.NoticeSubject(a.source), ID: hex.EncodeToString(o.origin.GetPull()),
			Data: messages.EncodeNotice(&messages.Notice{
				Origin: o.origin, Size: max(n.size, 0), Sequencer: n.sequencer, Region: n.region,
			}),
		}}
	}
	return o
}

// events cuts the events out of inner, which is the body or what its envelopes
// held, into frames of raw records. Frames are cut by count, bytes and bad
// records only, so that a redelivery makes the same ones.
func (a *admission) events(l *letter, body, inner []byte) outcome {
	o := a.outcome(l, 0, func() []byte { return body })
	format, f, skip := a.choose(a.format, "", inner[:min(len(inner), headBytes)])
	if skip != "" {
		o.as, o.code = messages.Announced_AS_IGNORED, skip
		return o
	}
	if format == "" {
		o.refuse(errUnreadable.New(nil, "read the events in message %s: no format fits", l.id))
		return o
	}
	if o.cargo = a.cargo(l, format, f, inner); o.cargo != nil {
		return o
	}
	c := cutter{a: a, o: &o, format: format}
	c.cut(f, l, inner)
	if len(o.quarantine) > 0 && c.good == 0 {
		o.refuse(errUnreadable.New(nil, "read the events in message %s: it holds no record of format %s", l.id, format))
		return o
	}
	o.as = messages.Announced_AS_EVENTS
	o.fetched = &messages.Fetched{
		Pull: o.origin.GetPull(), Source: a.source, Frames: c.frames, Records: c.next,
		Bytes: uint64(len(body)), RawBytes: uint64(len(inner)),
		End: messages.Fetched_END_COMPLETE, Quarantined: c.codes,
	}
	if c.next == 0 {
		o.fetched.End, o.fetched.Code = messages.Fetched_END_SKIPPED, whyNothing
	}
	return o
}

// cutter collects the records of one message into frames.
type cutter struct {
	a      *admission
	o      *outcome
	format string
	frames uint32
	head   []byte // of the frame in hand
	// next is the ordinal of the next record, good how many were not bad.
	next, good uint64
	codes      map[string]uint64
}

func (c *cutter) cut(f framing.Framing, l *letter, body []byte) {
	c.a.frame.Reset(messages.Header{}) // a panic may have left records in it
	split := c.a.split
	split.Reset(f, bytes.NewReader(body), framing.Limits{})
	for {
		rec, err := split.Next()
		if err == nil {
			c.record(rec)
			continue
		}
		if errors.Is(err, io.EOF) {
			break
		}
		var bad *framing.Bad
		if !errors.As(err, &bad) {
			from := span(body, split.Offset(), int64(len(body)))
			c.bad(split.Offset(), from, errUnreadable.New(err, "cut record %d of message %s", c.next, l.id))
			break
		}
		if len(c.o.quarantine) == cmp.Or(c.a.most, maxBad)-1 {
			rest := span(body, bad.Offset, int64(len(body)))
			c.bad(bad.Offset, rest, errTooManyBad.New(bad, "cut record %d of message %s", c.next, l.id))
			break
		}
		c.bad(bad.Offset, span(body, bad.Offset, bad.Length), bad.Kind.New(nil, "cut record %d of message %s: %s, %d bytes at offset %d",
			c.next, l.id, bad.Reason, bad.Length, bad.Offset))
	}
	c.flush()
}

// span returns the bytes from offset on, as far as they are there.
func span(body []byte, offset, length int64) []byte {
	from := min(max(offset, 0), int64(len(body)))
	return body[from : from+min(max(length, 0), int64(len(body))-from)]
}

func (c *cutter) record(rec []byte) {
	b := c.a.frame
	head := c.a.split.Header()
	if b.Len() > 0 && (b.BodySize()+len(rec) > messages.TargetBody || !bytes.Equal(head, c.head)) {
		c.flush()
	}
	if b.Len() == 0 {
		c.head = head
		b.Reset(messages.Header{Source: c.a.source, Format: c.format, FrameNo: c.frames, FirstRecord: c.next, Head: head})
		b.Origin(c.o.origin)
	}
	b.AddRecord(rec)
	c.next++
	c.good++
	if b.Len() == messages.TargetCount {
		c.flush()
	}
}

// bad quarantines a span, which takes an ordinal of its own.
func (c *cutter) bad(offset int64, bytes []byte, err error) {
	code := fault.CodeOf(err)
	c.o.quarantine = append(c.o.quarantine, &messages.Quarantine{
		Stage: string(topology.Ingest), Source: c.a.source, Code: code, Reason: err.Error(), Origin: c.o.origin,
		Record: c.next, Records: 1, Offset: offset, Length: int64(len(bytes)), Payload: bytes,
		Holds: messages.Quarantine_HOLDS_BYTES, Format: c.format, Header: c.a.split.Header(),
	})
	if c.codes == nil {
		c.codes = map[string]uint64{}
	}
	c.codes[code]++
	c.next++
	if b := c.a.frame; b.Len() > 0 {
		b.Skip(1)
	}
}

func (c *cutter) flush() {
	b := c.a.frame
	if b.Len() == 0 {
		return
	}
	c.o.publish = append(c.o.publish, topology.Message{
		Subject: topology.RecordSubject(c.a.source),
		ID:      hex.EncodeToString(c.o.origin.GetPull()) + "/" + strconv.FormatUint(uint64(c.frames), 10),
		Data:    b.Encode(nil),
	})
	c.frames++
	b.Reset(messages.Header{})
}

// patterns are names in which '*' stands for any run of characters, '/' included,
// and '?' for one.
type patterns []string

func (p patterns) match(s string) bool {
	for _, pattern := range p {
		if glob(pattern, s) {
			return true
		}
	}
	return false
}

// glob takes time proportional to len(pattern)*len(s) at worst: it goes back to
// the last star only.
func glob(pattern, s string) bool {
	p, i, star, from := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			from++
			p, i = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

func unixMilli(ms string) int64 {
	v, err := strconv.ParseInt(ms, 10, 64)
	if err != nil || v < 0 {
		return 0
	}
	return time.UnixMilli(v).UnixNano()
}
