package parse

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/document"
	"github.com/penstock/penstock/services/parse/formats"
)

// place makes ids for the records of one origin that have no natural id.
// Source: formats F-0, dedupe id.
type place struct {
	origin          *messages.Origin
	window          time.Duration
	bucket, key     []byte
	state           []byte // version or etag: which content of the key
	queue, message  []byte
	sent            int64  // when the message was sent, Unix ns
	account, region string // what the key tells
	looked          bool   // whether it was asked
	canonical       []byte
	// parts and numbers are what goes into an id.
	parts   [4][]byte
	numbers [16]byte
	// stem makes the ids of an object's records, when stemmed.
	stem    messages.Stem
	stemmed bool
}

// newID is called by way of a variable: inlined here, messages.NewID would put its
// buffer on the heap for each record. Callers keep the slice that they pass.
var newID = messages.NewID

// keepCanonical is the largest buffer for canonical bodies that is kept, bytes.
const keepCanonical = 64 << 10

// reset makes p the place of o. window is that of Config.BodyWindow.
func (p *place) reset(o *messages.Origin, window time.Duration) {
	if cap(p.canonical) > keepCanonical {
		p.canonical = nil
	}
	*p = place{
		origin: o, window: window, canonical: p.canonical, stem: p.stem, sent: o.GetCreated(),
		bucket: append(p.bucket[:0], o.GetBucket()...), key: append(p.key[:0], o.GetKey()...),
		state: append(p.state[:0], o.GetVersion()...),
		queue: append(p.queue[:0], o.GetQueue()...), message: append(p.message[:0], o.GetMessageId()...),
	}
	// A bucket without versions overwrites its version "null".
	if v := o.GetVersion(); v == "" || v == "null" {
		p.state = append(p.state[:0], o.GetEtag()...)
	}
}

// turn goes on to the next of several messages.
func (p *place) turn(id messages.UUID, sent int64) {
	p.message, p.sent = id.AppendText(p.message[:0]), sent
}

// id returns the id of a record. The ordinal is that in its message, where several
// messages are one origin.
//
//   - In an object: bucket, key, version or etag, and the ordinal. Equal records
//     at different ordinals are different events. Without version and etag the
//     document itself tells contents of the key apart.
//   - In a message: queue, canonical body, ordinal, and the stretch of time in
//     which the message was sent, of the length of BodyWindow. So a producer that
//     sends a message again is caught, and two equal events of different hours
//     are two. With a BodyWindow of 0: queue, message id and ordinal.
//   - In the answer of an API or the body of a request: the pull and the ordinal.
//
// Where the format says that the content is the identity, because its rows come
// by several ways and again and again: format and canonical document.
func (p *place) id(record uint64, d *formats.Doc, format []byte) messages.ID {
	doc := d.Body
	ordinal, stretch := p.numbers[:8], p.numbers[8:]
	binary.BigEndian.PutUint64(ordinal, record)
	switch {
	case d.ByContent:
		p.canonical = appendCanonical(p.canonical[:0], doc, 0)
		p.parts = [...][]byte{format, p.canonical, nil, nil}
		return newID(p.parts[:2]...)
	case p.origin.GetApi() != "":
		p.parts = [...][]byte{p.origin.GetPull(), ordinal, nil, nil}
		return newID(p.parts[:2]...)
	case len(p.key) > 0 && len(p.state) > 0:
		if !p.stemmed {
			p.stem.Reset(p.bucket, p.key, p.state)
			p.stemmed = true
		}
		return p.stem.ID(ordinal)
	case len(p.key) > 0:
		p.parts = [...][]byte{p.bucket, p.key, doc, ordinal}
	case p.window <= 0:
		p.parts = [...][]byte{p.queue, p.message, ordinal, nil}
		return newID(p.parts[:3]...)
	default:
		binary.BigEndian.PutUint64(stretch, uint64(p.sent/int64(p.window)))
		p.canonical = appendCanonical(p.canonical[:0], doc, 0)
		p.parts = [...][]byte{p.queue, p.canonical, stretch, ordinal}
	}
	return newID(p.parts[:]...)
}

// observed is the time of events whose own time is not known: when penstock first
// saw the thing.
func (p *place) observed() int64 {
	switch {
	case p.origin.GetReceived() != 0:
		return p.origin.GetReceived()
	case p.sent != 0:
		return p.sent
	}
	return time.Now().UnixNano()
}

// fill gives d the account and region that the key tells, else the source, where
// the record does not.
func (p *place) fill(d *formats.Doc, f formats.Format) {
	if d.Account != "" && d.Region != "" {
		return
	}
	if !p.looked {
		if f.Place != nil {
			p.account, p.region = f.Place(p.origin.GetKey())
		}
		p.account, p.region = cmp.Or(p.account, p.origin.GetAccount()), cmp.Or(p.region, p.origin.GetRegion())
		p.looked = true
	}
	if d.Account == "" {
		d.Account = p.account
	}
	if d.Region == "" {
		d.Region = p.region
	}
}

// maxCanonical is how deep keys are sorted. What is nested deeper is taken as it
// stands: each level may cost a copy of what is in it.
const maxCanonical = 64

// appendCanonical appends the valid JSON value v without space between tokens and
// with the keys of objects in order; numbers and strings stay as written.
func appendCanonical(dst, v []byte, depth int) []byte {
	kind := document.KindOf(v)
	if depth == maxCanonical || kind != document.Object && kind != document.Array {
		return document.AppendLine(dst, v)
	}
	type member struct{ key, value []byte }
	var members []member
	for c := document.Members(v); ; {
		key, start, end, ok := c.Next()
		if !ok {
			break
		}
		members = append(members, member{key, v[start:end]})
	}
	if kind == document.Object {
		slices.SortStableFunc(members, func(a, b member) int { return bytes.Compare(a.key, b.key) })
	}
	dst = append(dst, v[0])
	for i, m := range members {
		if i > 0 {
			dst = append(dst, ',')
		}
		if kind == document.Object {
			dst = append(append(append(dst, '"'), m.key...), '"', ':')
		}
		dst = appendCanonical(dst, m.value, depth+1)
	}
	return append(dst, v[0]+2) // '{'+2 is '}' and '['+2 is ']'
}
