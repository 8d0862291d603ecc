package parse

import (
	"context"
	"slices"
	"sync/atomic"

	"github.com/klauspost/compress/s2"
	"go.opentelemetry.io/otel/trace"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/spare"
	"github.com/penstock/penstock/services/parse/formats"
)

// event is an event on its way into a group. Its document is text[from:to] of its
// input, where text is made or body.
type event struct {
	id              messages.ID
	time            int64
	account, region string
	record          uint64
	origin          uint32
	bucket          uint32 // number of type × lanes + lane
	from, to        uint32
	made            bool
}

// bad is a record that was refused.
type bad struct {
	record   uint64
	origin   uint32
	from, to uint32
	err      error
	// message is its number and ordinal the place in it, where several messages are
	// the origin.
	message int
	ordinal uint64
}

// input is one frame of records in hand, from its decoding until its events are
// in encoded groups. Inputs are pooled. Once the grouper has one it is only read.
type input struct {
	source, format, replay string
	span                   trace.SpanContext
	// block is body as it came. Where whole is set the documents of all events are the
	// body, all in one bucket: the block goes on as it is, and body is gone.
	block      []byte
	bytes      int64 // of body
	whole      bool
	body       []byte
	name       []byte // of the format
	made       []byte // documents that are no slices of body
	head       []byte
	messageIDs []byte
	columns    messages.Columns
	origins    []*messages.Origin
	events     []event
	bad        []bad
	odd        [len(formats.Oddities)]int
	news       []met
	places     []place

	// types are the event types by number, index the numbers.
	types []string
	index map[string]uint32
	// order is the events bucket by bucket: bucket b is order[starts[b]:starts[b+1]].
	order  []uint32
	starts []uint32

	// budget is what is held of the grouper's bytes for this input.
	budget int64
	// refs counts the groups not yet encoded, and Handle. At 0 the input is free.
	refs atomic.Int32
}

// keepEvents is the largest number of events that is kept room for.
const keepEvents = 1 << 13

// bodies are the buffers of bodies, and of documents that were made, that no input uses.
var bodies = spare.Buffers{Most: 8 << 20}

// reset makes in ready for another frame.
func (in *input) reset() {
	bodies.Give(in.body)
	bodies.Give(in.made)
	in.body, in.made = nil, nil
	if cap(in.events) > keepEvents {
		*in = input{}
	}
	clear(in.events)
	clear(in.bad)
	clear(in.index)
	in.origins, in.events, in.bad, in.types = nil, in.events[:0], in.bad[:0], in.types[:0]
	in.head, in.messageIDs = nil, nil
	in.block, in.whole = nil, false
	in.odd, in.news, in.budget = [len(formats.Oddities)]int{}, in.news[:0], 0
}

// read takes the records out of v. ctx gives the span.
func (in *input) read(ctx context.Context, v *messages.View) (err error) {
	in.source, in.format, in.replay = v.Source(), v.Format(), v.Replay()
	in.name = append(in.name[:0], in.format...)
	in.span = trace.SpanContextFromContext(ctx)
	if in.origins, err = v.Origins(); err != nil {
		return err
	}
	if err = v.Columns(&in.columns); err != nil {
		return err
	}
	in.body = bodies.Take(v.BodySize())
	body, err := v.Body(in.body)
	if err != nil {
		return err
	}
	if len(body) != v.BodySize() {
		return errFrame.New(nil, "read a frame of %d records: it has no body", v.Len())
	}
	in.bytes = int64(len(body))
	in.body, in.block, in.head, in.messageIDs = body, v.Block(), v.Head(), v.MessageIDs()
	return nil
}

// several tells whether the origin of in is several messages.
func (in *input) several() bool { return len(in.messageIDs) > 0 }

// letters counts through the messages of an input.
type letters struct {
	next    int // number of the next message
	left    uint32
	ordinal uint64
}

// step goes on to the next record, and turns at to its message.
func (l *letters) step(in *input, at *place) {
	l.ordinal++
	if l.left == 0 {
		at.turn(messages.UUID(in.messageIDs[l.next*len(messages.UUID{}):]), in.columns.MessageSent[l.next])
		l.left, l.ordinal = in.columns.MessageRecords[l.next], 0
		l.next++
	}
	l.left--
}

// origin is where a bad record came from, and its ordinal there: of several
// messages the one that held it.
func (in *input) origin(b *bad) (*messages.Origin, uint64) {
	o := in.origins[b.origin]
	if !in.several() {
		return o, b.record
	}
	id := messages.UUID(in.messageIDs[b.message*len(messages.UUID{}):]).String()
	return &messages.Origin{
		Pull: messages.MessagePull(o.GetQueue(), id, 0), Source: o.GetSource(), Queue: o.GetQueue(), MessageId: id,
		Created: in.columns.MessageSent[b.message], Received: o.GetReceived(), Account: o.GetAccount(), Region: o.GetRegion(),
	}, b.ordinal
}

// doc is the document of e.
func (in *input) doc(e *event) []byte {
	if e.made {
		return in.made[e.from:e.to]
	}
	return in.body[e.from:e.to]
}

// decode makes events of the records, and notes the bad ones.
func (in *input) decode(p *Parse, f formats.Format, dec formats.Decoder) {
	if len(in.places) < len(in.origins) {
		in.places = make([]place, len(in.origins))
	}
	for i, o := range in.origins {
		in.places[i].reset(o, p.config.BodyWindow)
	}
	if in.index == nil {
		in.index = map[string]uint32{}
	}
	var (
		d      formats.Doc
		last   string
		number uint32
		from   uint32
		letter letters
	)
	refused := in.start(dec)
	in.events = slices.Grow(in.events, len(in.columns.Lengths))
	cut := false // a document is not just its record
	for i, size := range in.columns.Lengths {
		origin, record := in.columns.OriginOf[i], in.columns.Records[i]
		to := from + size
		rec := in.body[from:to]
		at, ordinal := &in.places[origin], record
		if in.several() {
			letter.step(in, at)
			ordinal = letter.ordinal
		}
		err := refused
		if err == nil {
			err = dec.Decode(rec, &d)
		}
		if err == nil && len(d.Body) > tooLarge {
			err = checkSize(d.Body)
		}
		if err != nil {
			in.bad = append(in.bad, bad{record, origin, from, to, err, letter.next - 1, ordinal})
			from = to
			continue
		}
		if !d.HasID {
			d.ID = at.id(ordinal, &d, in.name)
		}
		if !d.HasTime {
			d.Time = at.observed()
		}
		if len(d.New) > 0 {
			in.meet(d.New, from, to)
		}
		at.fill(&d, f)
		for odd := d.Odd; odd != 0; odd &= odd - 1 {
			in.odd[odd.First()]++
		}
		if d.Type != last || len(in.types) == 0 {
			last, number = d.Type, in.number(d.Type)
		}
		cut = cut || d.Made || d.Offset != 0 || len(d.Body) != len(rec)
		start := from + uint32(d.Offset)
		if d.Made {
			start = uint32(len(in.made))
			in.keep(d.Body, len(in.columns.Lengths)-i)
		}
		in.events = append(in.events, event{
			id: d.ID, time: d.Time, account: d.Account, region: d.Region, record: record, origin: origin,
			bucket: number*p.lanes + d.ID.Lane(p.lanes), from: start, to: start + uint32(len(d.Body)), made: d.Made,
		})
		from = to
	}
	in.sort(p.lanes)
	in.whole = !cut && len(in.bad) == 0 && len(in.news) == 0 && in.fits(&p.config)
}

// wholeFrom is from how many bytes of documents on a block goes on as it is. Smaller ones
// are worth to be compressed together with others. Unit: bytes.
const wholeFrom = 128 << 10

// fits tells whether the documents can be those of a group: of one bucket, enough and not
// too much, also as they are compressed. The block may be that of a foreign writer, and
// several that are larger than their documents would be more than the bus carries.
func (in *input) fits(c *Config) bool {
	n := len(in.events)
	if n == 0 || n > c.GroupEvents || len(in.body) < wholeFrom || len(in.body) > int(c.GroupBytes) ||
		len(in.block) > s2.MaxEncodedLen(len(in.body)) {
		return false
	}
	b := in.events[0].bucket
	return in.starts[b+1]-in.starts[b] == uint32(n)
}

// keep keeps a document that is no slice of body. left is how many records are left, this
// one included: their documents will be about as long as those before, so that there is
// room for them all in one step, within what is held for this input.
func (in *input) keep(doc []byte, left int) {
	if need := len(in.made) + len(doc); need > cap(in.made) {
		each := need / (len(in.events) + 1)
		room := min(int64(need)+int64(each)*int64(left), in.budget-int64(len(in.body)))
		room = max(room, int64(need)+int64(need)/4) // as append does where the guess was wrong
		made := append(bodies.Take(int(room)), in.made...)
		bodies.Give(in.made)
		in.made = made
	}
	in.made = append(in.made, doc...)
}

// start tells the decoder what it is about to read.
func (in *input) start(dec formats.Decoder) error {
	s, ok := dec.(formats.Starter)
	if !ok || len(in.origins) == 0 {
		return nil
	}
	return s.Start(formats.Head{Key: in.origins[0].GetKey(), Columns: in.head, Origin: in.origins[0]})
}

// number returns the number of an event type in this input.
func (in *input) number(name string) uint32 {
	n, ok := in.index[name]
	if !ok {
		n = uint32(len(in.types))
		in.types = append(in.types, name)
		in.index[name] = n
	}
	return n
}

// sort puts the events in the order of their buckets, by counting.
func (in *input) sort(lanes uint32) {
	buckets := len(in.types) * int(lanes)
	in.starts = slices.Grow(in.starts[:0], buckets+1)[:buckets+1]
	clear(in.starts)
	for i := range in.events {
		in.starts[in.events[i].bucket]++
	}
	sum := uint32(0)
	for b, n := range in.starts {
		sum += n
		in.starts[b] = sum // the end of the bucket, for now
	}
	in.order = slices.Grow(in.order[:0], len(in.events))[:len(in.events)]
	for i := len(in.events) - 1; i >= 0; i-- {
		b := in.events[i].bucket
		in.starts[b]--
		in.order[in.starts[b]] = uint32(i)
	}
}

// tooLarge is from how many bytes on a document is looked at closer: only above
// it can a frame of one event be more than messages.MaxFrame.
const tooLarge = messages.MaxFrame - frameOverhead

// frameOverhead bounds what a frame of one event has besides its document.
const frameOverhead = 16 << 10

var errTooLarge = fault.Define("parse.record_too_large", fault.Reject,
	"lower the record limit of the source so that fetch keeps such records by reference, or have smaller ones written")

// checkSize refuses a document that does not fit into a frame.
func checkSize(doc []byte) error {
	if n := len(s2.Encode(nil, doc)); n > tooLarge {
		return errTooLarge.New(nil, "fit a record of %d bytes, %d compressed, into a frame of %d", len(doc), n, messages.MaxFrame)
	}
	return nil
}
