package messages

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Limits of a frame. A frame beyond one of the Max values is not decoded.
const (
	// MaxFrame caps the encoded frame, in bytes: the bus takes no longer message.
	MaxFrame = 8 << 20
	// MaxBody caps the documents of a frame before compression, in bytes.
	MaxBody = 64 << 20
	// MaxCount caps the events or records of a frame. It bounds what a hostile
	// frame of MaxFrame bytes can make its reader allocate for columns.
	MaxCount = 1 << 16
	// TargetCount and TargetBody are where ingest cuts frames: records, and bytes before
	// compression, whichever comes first. Fetch and parse, which have many short rows at
	// once, go on up to LargeCount and LargeBody: a thousand rows of 100 bytes are a frame so small that
	// what each costs on the bus is more than what its rows do.
	TargetCount = 1000
	LargeCount  = 8 * TargetCount
	TargetBody  = 1 << 20
	LargeBody   = 2 * TargetBody
	// MaxHead caps Header.Head, in bytes.
	MaxHead = 64 << 10
)

// LargeBodyFor returns where fetch and parse cut frames by bytes where the bus takes
// messages of up to payload bytes: LargeBody, unless a body that hardly gets smaller by
// compression would not pass.
func LargeBodyFor(payload int64) int {
	if payload < 2*LargeBody {
		return TargetBody
	}
	return LargeBody
}

// frameVersion is what Builder writes, frameKnown the newest that DecodeFrame reads: see
// messageVersion. Fields that are added keep the version; older stages keep them, too,
// and pass them on.
const (
	frameVersion = 1
	frameKnown   = 1
)

// keepMax is the largest buffer that a Builder keeps over a Reset, in bytes.
const keepMax = 4 << 20

// Field numbers of Frame, see penstock.proto.
const (
	fieldVersion     protowire.Number = 1
	fieldCount       protowire.Number = 2
	fieldSource      protowire.Number = 3
	fieldFormat      protowire.Number = 4
	fieldEventType   protowire.Number = 5
	fieldLane        protowire.Number = 6
	fieldOrigins     protowire.Number = 7
	fieldFrameNo     protowire.Number = 8
	fieldFirstRecord protowire.Number = 9
	fieldReplay      protowire.Number = 10
	fieldIDs         protowire.Number = 11
	fieldFates       protowire.Number = 12
	fieldTimes       protowire.Number = 13
	fieldOriginOf    protowire.Number = 14
	fieldRecords     protowire.Number = 15
	fieldAccounts    protowire.Number = 16
	fieldAccountOf   protowire.Number = 17
	fieldRegions     protowire.Number = 18
	fieldRegionOf    protowire.Number = 19
	fieldLengths     protowire.Number = 20
	fieldHeader      protowire.Number = 21

	fieldMessageIDs     protowire.Number = 22
	fieldMessageRecords protowire.Number = 23
	fieldMessageSent    protowire.Number = 24

	fieldBodySize protowire.Number = 30
	fieldBody     protowire.Number = 31
)

// Fate says whether an event of a frame goes on, and if not, why. What a newer
// writer may add counts as dropped.
type Fate uint8

// The fates. Stored as one byte each, so their numbers are forever.
const (
	// Live: the event goes on.
	Live Fate = iota
	// Duplicate: dedupe had seen its id.
	Duplicate
	// Filtered: a drop rule of route matched it.
	Filtered
	// Sampled: route's sampling left it out.
	Sampled
)

func (f Fate) String() string {
	switch f {
	case Live:
		return "live"
	case Duplicate:
		return "duplicate"
	case Filtered:
		return "filtered"
	case Sampled:
		return "sampled"
	}
	return "unknown"
}

// Event is one event on its way into a frame. The builder copies Doc and keeps
// the strings.
type Event struct {
	ID ID
	// Time of the event, Unix ns.
	Time int64
	// Account and Region may be empty.
	Account, Region string
	// Origin is an index that Builder.Origin returned.
	Origin uint32
	// Record is the ordinal of the event's record in its pull.
	Record uint64
	// Doc is the document, below 4 GiB.
	Doc []byte
}

// Header is what all events or records of a frame have in common.
type Header struct {
	Source, Format, EventType, Replay string
	Lane, FrameNo                     uint32
	// FirstRecord is the ordinal of the first record. RECORDS only.
	FirstRecord uint64
	// Head is the line that names the columns of the records, at most MaxHead
	// bytes; nil where the format has none. RECORDS only. The builder keeps it.
	Head []byte
}

// Builder makes one frame after the other, either of events (Add) or of raw
// records (AddRecord), not of both. It keeps its buffers, so that adding
// allocates nothing once they have grown. Not for concurrent use.
//
// The caller cuts frames at TargetCount and TargetBody or LargeCount and LargeBody; the builder itself does
// not refuse what is beyond MaxCount, MaxBody or MaxFrame. Strings that are not
// UTF-8 are made so with U+FFFD, as protobuf demands it.
type Builder struct {
	h     Header
	count int

	// origins holds their encoded fields; pulls is in step with it.
	origins []byte
	pulls   []byte
	ends    []int
	byPull  map[string]uint32
	last    uint32

	// Columns, each as the content of its packed field.
	ids, times, originOf, records, accountOf, regionOf, lengths []byte
	accounts, regions                                           dictionary
	// Of messages: perMessage counts their records.
	messageIDs, messageSent []byte
	perMessage              []uint32
	lastSent                int64
	lastTime                int64
	// lastRecord is the ordinal written last, nextRecord that of the next AddRecord.
	lastRecord, nextRecord uint64
	gaps                   bool

	body []byte
	// stored are the blocks of AddBlock, and of what was added before one of them,
	// storedSize the bytes in them before compression.
	stored     [][]byte
	storedSize int
}

// scratches hold compressed bodies while the rest of their frame is written. Only who
// encodes at the moment has one, so builders that wait hold none. A sync.Pool would give
// them away at each run of the garbage collector.
var scratches = make(chan []byte, 2)

func takeScratch(size int) []byte {
	select {
	case buf := <-scratches:
		if cap(buf) >= size {
			return buf[:0]
		}
	default:
	}
	if whole := s2.MaxEncodedLen(LargeBody); size > whole/8 && size < whole {
		size = whole // so that it fits the next time, too
	}
	return make([]byte, 0, size)
}

func giveScratch(buf []byte) {
	if cap(buf) > keepMax {
		return
	}
	select {
	case scratches <- buf:
	default:
	}
}

// NewBuilder returns a builder of frames, the first of them with header h.
func NewBuilder(h Header) *Builder {
	b := &Builder{}
	b.Reset(h)
	return b
}

// Reset begins the next frame. Buffers above 4 MiB are given back, so that one
// huge record does not cost its memory for ever.
func (b *Builder) Reset(h Header) {
	b.h, b.count = h, 0
	b.origins, b.pulls, b.ends, b.last = reuse(b.origins), reuse(b.pulls), b.ends[:0], 0
	clear(b.byPull)
	for _, col := range []*[]byte{
		&b.ids, &b.times, &b.originOf, &b.records, &b.accountOf, &b.regionOf, &b.lengths, &b.body,
	} {
		*col = reuse(*col)
	}
	b.accounts.reset()
	b.regions.reset()
	b.messageIDs, b.messageSent, b.perMessage, b.lastSent = reuse(b.messageIDs), reuse(b.messageSent), b.perMessage[:0], 0
	b.lastTime, b.lastRecord, b.nextRecord, b.gaps = 0, 0, h.FirstRecord, false
	clear(b.stored)
	b.stored, b.storedSize = b.stored[:0], 0
}

func reuse(buf []byte) []byte {
	if cap(buf) > keepMax {
		return nil
	}
	return buf[:0]
}

// Len returns how many events or records were added.
func (b *Builder) Len() int { return b.count }

// BodySize returns the bytes of all documents so far, before compression.
func (b *Builder) BodySize() int { return b.storedSize + len(b.body) }

// manyNames is from where on a map finds a name faster than looking at each.
const manyNames = 8

// Origin returns the index of o in this frame, for Event.Origin. The same pull
// gives the same index; what else differs in a later o is not looked at. A frame
// needs at least one origin; records belong to the first.
func (b *Builder) Origin(o *Origin) uint32 {
	n := uint32(len(b.ends))
	if n > 0 && bytes.Equal(b.pull(b.last), o.GetPull()) {
		return b.last
	}
	if n > manyNames {
		if i, ok := b.byPull[string(o.GetPull())]; ok {
			b.last = i
			return i
		}
	} else {
		for i := range n {
			if bytes.Equal(b.pull(i), o.GetPull()) {
				b.last = i
				return i
			}
		}
	}
	b.pulls = append(b.pulls, o.GetPull()...)
	b.ends = append(b.ends, len(b.pulls))
	b.origins = protowire.AppendTag(b.origins, fieldOrigins, protowire.BytesType)
	at := len(b.origins)
	b.origins = appendMessage(b.origins, o)
	b.origins = insertLength(b.origins, at)
	b.last = n
	switch {
	case n == manyNames: // the map is for this one and all before
		if b.byPull == nil {
			b.byPull = make(map[string]uint32, 4*manyNames)
		}
		for i := range n + 1 {
			b.byPull[string(b.pull(i))] = i
		}
	case n > manyNames:
		b.byPull[string(o.GetPull())] = n
	}
	return n
}

func (b *Builder) pull(i uint32) []byte {
	start := 0
	if i > 0 {
		start = b.ends[i-1]
	}
	return b.pulls[start:b.ends[i]]
}

// insertLength puts the length of buf[at:] as a varint before it.
func insertLength(buf []byte, at int) []byte {
	n := len(buf) - at
	buf = protowire.AppendVarint(buf, uint64(n))
	width := len(buf) - at - n
	copy(buf[at+width:], buf[at:at+n])
	protowire.AppendVarint(buf[:at], uint64(n))
	return buf
}

// Add adds an event.
func (b *Builder) Add(e Event) {
	b.body = append(b.room(len(e.Doc)), e.Doc...)
	b.AddStored(e, len(e.Doc))
}

// AddBlock adds the documents of the events that AddStored adds next, or has added last,
// as they stand compressed in another frame (View.Block). The builder keeps block until
// the next Reset.
func (b *Builder) AddBlock(block []byte, size int) {
	b.seal()
	b.stored = append(b.stored, block)
	b.storedSize += size
}

// seal makes a block of the documents so far, so that another can follow.
func (b *Builder) seal() {
	if len(b.body) == 0 {
		return
	}
	b.stored = append(b.stored, s2.Encode(nil, b.body))
	b.storedSize += len(b.body)
	b.body = b.body[:0]
}

// AddStored adds an event whose document, of size bytes, is in a block of AddBlock; Doc is
// not looked at.
func (b *Builder) AddStored(e Event, size int) {
	b.ids = append(b.ids, e.ID[:]...)
	b.times = appendDelta(b.times, e.Time-b.lastTime)
	b.lastTime = e.Time
	b.originOf = appendVarint(b.originOf, uint64(e.Origin))
	b.records = appendDelta(b.records, int64(e.Record-b.lastRecord)) // differences wrap, and back again
	b.lastRecord = e.Record
	b.accountOf = appendVarint(b.accountOf, uint64(b.accounts.of(e.Account)))
	b.regionOf = appendVarint(b.regionOf, uint64(b.regions.of(e.Region)))
	b.lengths = appendVarint(b.lengths, uint64(size))
	b.count++
}

// room returns body with room for n more bytes. What is no longer small grows in few
// steps, instead of being copied again and again, and never beyond a whole frame.
func (b *Builder) room(n int) []byte {
	const small = 64 << 10
	if size := len(b.body) + n; size > cap(b.body) && size > small && size <= LargeBody {
		return append(make([]byte, 0, min(4*size, LargeBody)), b.body...)
	}
	return b.body
}

// AddRecord adds a raw record, with the ordinal after the one before.
func (b *Builder) AddRecord(doc []byte) {
	b.gaps = b.gaps || b.count > 0 && b.nextRecord != b.lastRecord+1
	b.records = appendDelta(b.records, int64(b.nextRecord-b.lastRecord)) // differences wrap, and back again
	b.lastRecord = b.nextRecord
	b.nextRecord++
	b.lengths = appendVarint(b.lengths, uint64(len(doc)))
	b.body = append(b.room(len(doc)), doc...)
	b.count++
	if n := len(b.perMessage); n > 0 {
		b.perMessage[n-1]++
	}
}

// Message begins the records of one SQS message: those that are added until the
// next call. Where it is called, it is called before the first record, and every
// message has a record. Sent is in Unix ns, of which milliseconds are kept.
func (b *Builder) Message(id UUID, sent int64) {
	b.messageIDs = append(b.messageIDs, id[:]...)
	ms := sent / 1e6
	b.messageSent = appendDelta(b.messageSent, ms-b.lastSent)
	b.lastSent = ms
	b.perMessage = append(b.perMessage, 0)
}

// Alone forgets the messages: of a frame that got only one, which its origin names.
func (b *Builder) Alone() {
	b.messageIDs, b.messageSent, b.perMessage = b.messageIDs[:0], b.messageSent[:0], b.perMessage[:0]
}

// MessageIDs returns the ids so far, as View.MessageIDs does, until the next change.
func (b *Builder) MessageIDs() []byte { return b.messageIDs }

// Skip leaves out n ordinals before the next AddRecord: those of records that
// were cut but refused.
func (b *Builder) Skip(n uint64) {
	b.nextRecord += n
	if b.count == 0 {
		b.h.FirstRecord = b.nextRecord
	}
}

// Encode appends the frame's bytes to dst: what proto.Marshal makes of the same
// Frame. Where dst has no room for the worst case it grows to just what is
// needed. It may be called again, also after more was added.
func (b *Builder) Encode(dst []byte) []byte {
	if len(b.stored) == 0 && len(b.body) > 0 && cap(dst)-len(dst) >= b.headSize()+s2.MaxEncodedLen(len(b.body)) {
		return b.appendBody(b.appendHead(dst))
	}
	return b.EncodeInto(func(size int) []byte { return slices.Grow(dst, size) })
}

// EncodeInto is Encode into what room returns: a buffer that has room for size bytes more,
// which is all that is needed. It is called once.
func (b *Builder) EncodeInto(room func(size int) []byte) []byte {
	if len(b.stored) > 0 {
		b.seal()
		return b.encode(room, b.stored, b.storedSize)
	}
	if len(b.body) == 0 {
		return b.encode(room, nil, 0)
	}
	scratch := takeScratch(s2.MaxEncodedLen(len(b.body)))
	defer giveScratch(scratch)
	return b.encode(room, [][]byte{s2.Encode(scratch, b.body)}, len(b.body))
}

// encode appends a frame whose documents, of size bytes, stand in blocks.
func (b *Builder) encode(room func(size int) []byte, blocks [][]byte, size int) []byte {
	need := b.headSize()
	for _, block := range blocks {
		need += len(block)
	}
	dst := b.appendHead(room(need))
	if size == 0 {
		return dst
	}
	dst = appendUint(dst, fieldBodySize, uint64(size))
	return appendBlocks(dst, blocks)
}

// appendBlocks appends the body: one S2 block that stands for blocks, none of them empty,
// one after the other. A block refers to nothing before it, so theirs can be strung
// together behind one length.
func appendBlocks(dst []byte, blocks [][]byte) []byte {
	total, size := uint64(0), 0
	for _, block := range blocks {
		n, width := binary.Uvarint(block)
		total += n
		size += len(block) - width
	}
	size += protowire.SizeVarint(total)
	dst = protowire.AppendTag(dst, fieldBody, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(size))
	dst = protowire.AppendVarint(dst, total)
	for _, block := range blocks {
		_, width := binary.Uvarint(block)
		dst = append(dst, block[width:]...)
	}
	return dst
}

// headSize bounds the size of all but the body's content from above.
func (b *Builder) headSize() int {
	const perField = 16 // tag and length or value, at most
	n := utf8Max * (len(b.h.Source) + len(b.h.Format) + len(b.h.EventType) + len(b.h.Replay))
	n += len(b.origins) + len(b.ids) + b.count + len(b.times) + len(b.originOf) + len(b.records) +
		len(b.accountOf) + len(b.regionOf) + len(b.lengths)
	n += b.accounts.size + perField*len(b.accounts.names) + b.regions.size + perField*len(b.regions.names)
	n += len(b.messageIDs) + len(b.messageSent) + binary.MaxVarintLen32*len(b.perMessage)
	return n + len(b.h.Head) + perField*int(fieldBody)
}

func (b *Builder) appendHead(dst []byte) []byte {
	dst = appendUint(dst, fieldVersion, frameVersion)
	dst = appendUint(dst, fieldCount, uint64(b.count))
	dst = appendString(dst, fieldSource, b.h.Source)
	dst = appendString(dst, fieldFormat, b.h.Format)
	dst = appendString(dst, fieldEventType, b.h.EventType)
	dst = appendUint(dst, fieldLane, uint64(b.h.Lane))
	dst = append(dst, b.origins...)
	dst = appendUint(dst, fieldFrameNo, uint64(b.h.FrameNo))
	dst = appendUint(dst, fieldFirstRecord, b.h.FirstRecord)
	dst = appendString(dst, fieldReplay, b.h.Replay)
	events := len(b.ids) > 0
	if events {
		dst = appendBytes(dst, fieldIDs, b.ids)
		dst = protowire.AppendTag(dst, fieldFates, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(b.count))
		at := len(dst)
		dst = slices.Grow(dst, b.count)[:at+b.count]
		clear(dst[at:]) // all live
		dst = appendBytes(dst, fieldTimes, b.times)
		if len(b.ends) > 1 {
			dst = appendBytes(dst, fieldOriginOf, b.originOf)
		}
	}
	if events || b.gaps {
		dst = appendBytes(dst, fieldRecords, b.records)
	}
	dst = b.accounts.append(dst, fieldAccounts, fieldAccountOf, b.accountOf)
	dst = b.regions.append(dst, fieldRegions, fieldRegionOf, b.regionOf)
	dst = appendBytes(dst, fieldLengths, b.lengths)
	dst = appendBytes(dst, fieldHeader, b.h.Head)
	dst = appendBytes(dst, fieldMessageIDs, b.messageIDs)
	dst = appendPerMessage(dst, b.perMessage)
	return appendBytes(dst, fieldMessageSent, b.messageSent)
}

// appendPerMessage appends the column message_records, unless each has one.
func appendPerMessage(dst []byte, records []uint32) []byte {
	size, ones := 0, true
	for _, n := range records {
		size += protowire.SizeVarint(uint64(n))
		ones = ones && n == 1
	}
	if ones {
		return dst
	}
	dst = protowire.AppendTag(dst, fieldMessageRecords, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(size))
	for _, n := range records {
		dst = appendVarint(dst, uint64(n))
	}
	return dst
}

// appendBody compresses straight into dst, which has the room.
func (b *Builder) appendBody(dst []byte) []byte {
	if len(b.body) == 0 {
		return dst
	}
	dst = appendUint(dst, fieldBodySize, uint64(len(b.body)))
	dst = protowire.AppendTag(dst, fieldBody, protowire.BytesType)
	// The length comes first and is not known yet: leave room for the likely
	// width and move the block where it turns out otherwise.
	room := protowire.SizeVarint(uint64(len(b.body) / 4))
	at := len(dst)
	block := s2.Encode(dst[at+room:cap(dst)], b.body)
	width := protowire.SizeVarint(uint64(len(block)))
	end := at + width + len(block)
	copy(dst[at+width:end], block)
	protowire.AppendVarint(dst[:at], uint64(len(block)))
	return dst[:end]
}

// appendDelta appends a sint64.
func appendDelta(dst []byte, d int64) []byte { return appendVarint(dst, protowire.EncodeZigZag(d)) }

// appendVarint is protowire.AppendVarint with the common case inlined.
func appendVarint(dst []byte, v uint64) []byte {
	if v < 0x80 {
		return append(dst, byte(v))
	}
	return protowire.AppendVarint(dst, v)
}

// appendUint appends a field unless it has the default value.
func appendUint(dst []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, field, protowire.VarintType), v)
}

// appendString appends a field unless it has the default value.
func appendString(dst []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return dst
	}
	return protowire.AppendString(protowire.AppendTag(dst, field, protowire.BytesType), toUTF8(s))
}

// appendBytes appends a field unless it has the default value.
func appendBytes(dst []byte, field protowire.Number, p []byte) []byte {
	if len(p) == 0 {
		return dst
	}
	return protowire.AppendBytes(protowire.AppendTag(dst, field, protowire.BytesType), p)
}

// utf8Max is how much longer toUTF8 can make a text: U+FFFD takes three bytes.
const utf8Max = 3

// toUTF8 returns s itself where it is UTF-8.
func toUTF8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// dictionary numbers the few different accounts or regions of a frame.
type dictionary struct {
	names []string
	index map[string]uint32
	last  uint32
	size  int // an upper bound of the names' bytes as UTF-8
}

func (d *dictionary) reset() {
	clear(d.names)
	clear(d.index)
	d.names, d.last, d.size = d.names[:0], 0, 0
}

// of returns the number of s, a new one where s is new.
func (d *dictionary) of(s string) uint32 {
	n := uint32(len(d.names))
	if n > 0 && d.names[d.last] == s {
		return d.last
	}
	if n > manyNames {
		if i, ok := d.index[s]; ok {
			d.last = i
			return i
		}
	} else if i := slices.Index(d.names, s); i >= 0 {
		d.last = uint32(i)
		return d.last
	}
	d.names = append(d.names, s)
	d.size += utf8Max * len(s)
	d.last = n
	switch {
	case n == manyNames:
		if d.index == nil {
			d.index = make(map[string]uint32, 4*manyNames)
		}
		for i, name := range d.names {
			d.index[name] = uint32(i)
		}
	case n > manyNames:
		d.index[s] = n
	}
	return n
}

// append writes the names and, where there are several, the column that picks
// from them. A lone empty name is the default and needs no bytes.
func (d *dictionary) append(dst []byte, names, column protowire.Number, of []byte) []byte {
	if len(d.names) == 1 && d.names[0] == "" {
		return dst
	}
	for _, s := range d.names {
		dst = protowire.AppendString(protowire.AppendTag(dst, names, protowire.BytesType), toUTF8(s))
	}
	if len(d.names) < 2 {
		return dst
	}
	return appendBytes(dst, column, of)
}

var deterministic = proto.MarshalOptions{Deterministic: true}

// appendMessage marshals m, which can fail for nothing but a string that is not
// UTF-8; then those are mended in a copy.
func appendMessage(dst []byte, m proto.Message) []byte {
	if out, err := deterministic.MarshalAppend(dst, m); err == nil {
		return out
	}
	fixed := proto.Clone(m)
	mendUTF8(fixed.ProtoReflect())
	out, err := deterministic.MarshalAppend(dst, fixed)
	if err != nil {
		panic("messages: marshal: " + err.Error()) // not reached: our messages have no required fields
	}
	return out
}
