package messages

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"unicode/utf8"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/penstock/penstock/messages/fault"
)

var errFrame = fault.Define("messages.bad_frame", fault.Reject,
	"the message is damaged or not from penstock: look at its bytes with penstock quarantine show, and at who else writes to the stream")

// View reads an encoded frame in place: it points into the frame's bytes and
// copies nothing. Reads may run concurrently, SetFate may not. A View is valid as
// long as the bytes that it was made of are neither changed nor reused; copies of
// a View share them.
type View struct {
	encoded []byte
	count   int

	source, format, eventType, replay []byte
	lane, frameNo                     uint32
	firstRecord                       uint64

	ids, fates []byte
	// Columns as the content of their packed fields.
	times, originOf, records, accountOf, regionOf, lengths []byte
	origins, accounts, regions                             int

	head     []byte
	bodySize uint64

	messageIDs, messageRecords, messageSent []byte
	body                                    []byte
}

// DecodeFrame checks the frame in b and returns a view of it. b must stay as it
// is while the view is used. Fields that it does not know are left alone.
//
// Errors are faults of class Reject: messages.bad_frame for bytes that are no
// frame, whose columns do not fit its count, or that break a limit, and
// messages.newer_version. It allocates nothing, except for a column that another
// writer cut in pieces.
func DecodeFrame(b []byte) (View, error) {
	v := View{encoded: b}
	if len(b) > MaxFrame {
		return View{}, errFrame.New(nil, "read a frame of %d bytes, more than %d", len(b), MaxFrame)
	}
	version, err := v.scan()
	if err != nil {
		return View{}, errFrame.New(err, "read a frame of %d bytes", len(b))
	}
	if err := checkVersion(errFrame, "frame", version, frameKnown); err != nil {
		return View{}, err
	}
	if err := v.check(); err != nil {
		return View{}, errFrame.New(err, "read a frame of %d bytes", len(b))
	}
	return v, nil
}

// minOrigin is the size of an origin that has a pull and nothing else. Demanding
// it keeps what Origins allocates in proportion to the frame.
const minOrigin = 2 + len(ID{})

var errUTF8 = errors.New("a text field is not UTF-8")

// field is one top-level field of a message.
type field struct {
	num protowire.Number
	typ protowire.Type
	// raw is the whole field, val the content of a bytes field.
	raw, val []byte
	// n is the value of a varint field.
	n uint64
}

// nextField cuts the first field off b.
func nextField(b []byte) (f field, rest []byte, err error) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return f, nil, protowire.ParseError(n)
	}
	f.num, f.typ = num, typ
	var m int
	switch typ {
	case protowire.VarintType:
		f.n, m = protowire.ConsumeVarint(b[n:])
	case protowire.BytesType:
		f.val, m = protowire.ConsumeBytes(b[n:])
	default:
		m = protowire.ConsumeFieldValue(num, typ, b[n:])
	}
	if m < 0 {
		return f, nil, protowire.ParseError(m)
	}
	f.raw = b[: n+m : n+m]
	return f, b[n+m:], nil
}

// scan walks over the fields once and notes where they are. Of a field that comes
// several times the last one holds, columns are strung together, as protobuf
// rules. A field with an unexpected wire type is one that we do not know.
func (v *View) scan() (version uint32, err error) {
	var f field
	for rest := v.encoded; len(rest) > 0; {
		if f, rest, err = nextField(rest); err != nil {
			return 0, err
		}
		if f.num > protowire.MaxValidNumber {
			return 0, fmt.Errorf("field number %d is out of range", f.num)
		}
		switch f.typ {
		case protowire.VarintType:
			if f.num == fieldVersion {
				version = uint32(f.n) // protobuf cuts to 32 bits, too
				continue
			}
			v.scanVarint(f)
		case protowire.BytesType:
			if err := v.scanBytes(f); err != nil {
				return 0, err
			}
		default: // none of our fields
		}
	}
	return version, nil
}

// scanVarint cuts numbers to 32 bits where protobuf does.
func (v *View) scanVarint(f field) {
	switch f.num {
	case fieldCount:
		v.count = int(uint32(f.n))
	case fieldLane:
		v.lane = uint32(f.n)
	case fieldFrameNo:
		v.frameNo = uint32(f.n)
	case fieldFirstRecord:
		v.firstRecord = f.n
	case fieldBodySize:
		v.bodySize = f.n
	default: // one element of a column that is not packed
		if col := v.column(f.num); col != nil {
			_, _, n := protowire.ConsumeTag(f.raw)
			addPiece(col, f.raw[n:])
		}
	}
}

func (v *View) scanBytes(f field) error {
	var text *[]byte
	switch f.num {
	case fieldSource:
		text = &v.source
	case fieldFormat:
		text = &v.format
	case fieldEventType:
		text = &v.eventType
	case fieldReplay:
		text = &v.replay
	case fieldAccounts:
		v.accounts++
		text = &f.val
	case fieldRegions:
		v.regions++
		text = &f.val
	case fieldOrigins:
		if len(f.val) < minOrigin {
			return fmt.Errorf("origin %d has %d bytes, too few to name a pull", v.origins, len(f.val))
		}
		v.origins++
	case fieldIDs:
		v.ids = f.val
	case fieldFates:
		v.fates = f.val
	case fieldHeader:
		v.head = f.val
	case fieldMessageIDs:
		v.messageIDs = f.val
	case fieldBody:
		v.body = f.val
	default:
		if col := v.column(f.num); col != nil {
			addPiece(col, f.val)
		}
	}
	if text == nil {
		return nil
	}
	*text = f.val
	if !utf8.Valid(f.val) {
		return errUTF8
	}
	return nil
}

func (v *View) column(num protowire.Number) *[]byte {
	switch num {
	case fieldTimes:
		return &v.times
	case fieldOriginOf:
		return &v.originOf
	case fieldRecords:
		return &v.records
	case fieldAccountOf:
		return &v.accountOf
	case fieldRegionOf:
		return &v.regionOf
	case fieldLengths:
		return &v.lengths
	case fieldMessageRecords:
		return &v.messageRecords
	case fieldMessageSent:
		return &v.messageSent
	default:
		return nil
	}
}

// addPiece adds to a column. The first piece stays where it is in the frame; the
// limit on its capacity makes the second one move both.
func addPiece(col *[]byte, piece []byte) {
	if len(*col) == 0 {
		*col = piece[:len(piece):len(piece)]
		return
	}
	*col = append(*col, piece...)
}

// check holds the columns against the count, and the sizes against each other.
func (v *View) check() error {
	n := v.count
	if n > MaxCount {
		return fmt.Errorf("%d events, more than %d", n, MaxCount)
	}
	if len(v.ids) != 0 && len(v.ids) != n*len(ID{}) {
		return fmt.Errorf("%d bytes of ids for %d events", len(v.ids), n)
	}
	if len(v.fates) != len(v.ids)/len(ID{}) {
		return fmt.Errorf("%d fates for %d ids", len(v.fates), len(v.ids)/len(ID{}))
	}
	if v.origins > max(n, 1) || v.accounts > n || v.regions > n {
		return fmt.Errorf("%d origins, %d accounts and %d regions for %d events", v.origins, v.accounts, v.regions, n)
	}
	if v.origins == 0 && n > 0 {
		return errors.New("no origin")
	}
	events := len(v.ids) != 0
	if len(v.head) > MaxHead {
		return fmt.Errorf("a header of %d bytes, more than %d", len(v.head), MaxHead)
	}
	for _, c := range [...]struct {
		name      string
		col       []byte
		must, may bool
	}{
		{"times", v.times, events, events},
		{"records", v.records, events, true},
		{"origin_of", v.originOf, v.origins > 1, true},
		{"account_of", v.accountOf, v.accounts > 1, true},
		{"region_of", v.regionOf, v.regions > 1, true},
	} {
		if err := checkColumn(c.name, c.col, n, c.must, c.may); err != nil {
			return err
		}
	}
	if err := v.checkMessages(); err != nil {
		return err
	}
	return v.checkBody()
}

// checkMessages holds the columns of the messages against each other.
func (v *View) checkMessages() error {
	n := len(v.messageIDs) / len(UUID{})
	switch {
	case len(v.messageIDs)+len(v.messageRecords)+len(v.messageSent) == 0:
		return nil
	case len(v.messageIDs)%len(UUID{}) != 0:
		return fmt.Errorf("%d bytes of message ids", len(v.messageIDs))
	case len(v.ids) != 0 || v.origins != 1 || len(v.records) != 0:
		return errors.New("messages in a frame of events, of several origins or with records left out")
	case n > v.count:
		return fmt.Errorf("%d messages for %d records", n, v.count)
	}
	if err := checkColumn("message_records", v.messageRecords, n, n != v.count, true); err != nil {
		return err
	}
	if err := checkColumn("message_sent", v.messageSent, n, true, true); err != nil {
		return err
	}
	if len(v.messageRecords) == 0 {
		return nil
	}
	sum := uint64(0)
	for col := v.messageRecords; len(col) > 0; {
		records, w := consumeVarint(col)
		if w < 0 {
			return fmt.Errorf("column message_records: %w", protowire.ParseError(w))
		}
		if uint32(records) == 0 {
			return errors.New("a message without records")
		}
		sum += uint64(uint32(records)) // protobuf cuts to 32 bits, too
		col = col[w:]
	}
	if sum != uint64(v.count) {
		return fmt.Errorf("%d records in messages, of %d", sum, v.count)
	}
	return nil
}

// checkColumn holds the number of varints in col against n.
func checkColumn(name string, col []byte, n int, must, may bool) error {
	if len(col) == 0 {
		if must && n > 0 {
			return fmt.Errorf("no column %s", name)
		}
		return nil
	}
	if !may {
		return fmt.Errorf("a column %s, which raw records do not have", name)
	}
	if col[len(col)-1] >= 0x80 {
		return fmt.Errorf("column %s ends within a number", name)
	}
	if got := countVarints(col); got != n {
		return fmt.Errorf("%d entries in column %s for %d events", got, name, n)
	}
	return nil
}

// countVarints counts the bytes that end a varint.
func countVarints(col []byte) int {
	n := 0
	for len(col) >= 8 {
		n += bits.OnesCount64(^binary.LittleEndian.Uint64(col) & 0x8080808080808080)
		col = col[8:]
	}
	for _, c := range col {
		if c < 0x80 {
			n++
		}
	}
	return n
}

func (v *View) checkBody() error {
	if v.bodySize > MaxBody {
		return fmt.Errorf("a body of %d bytes, more than %d", v.bodySize, MaxBody)
	}
	sum, n := uint64(0), 0
	for col := v.lengths; len(col) > 0; n++ {
		length, w := consumeVarint(col)
		if w < 0 {
			return fmt.Errorf("column lengths: %w", protowire.ParseError(w))
		}
		sum += uint64(uint32(length)) // protobuf cuts to 32 bits, too
		col = col[w:]
	}
	if n != v.count {
		return fmt.Errorf("%d entries in column lengths for %d events", n, v.count)
	}
	if sum != v.bodySize {
		return fmt.Errorf("documents of %d bytes in a body of %d", sum, v.bodySize)
	}
	if len(v.body) == 0 {
		if v.bodySize > 0 && v.Live() > 0 {
			return fmt.Errorf("no body, but %d events are live", v.Live())
		}
		return nil
	}
	size, err := s2.DecodedLen(v.body)
	if err != nil {
		return fmt.Errorf("body: %w", err)
	}
	if uint64(size) != v.bodySize {
		return fmt.Errorf("a body of %d bytes, announced as %d", size, v.bodySize)
	}
	return nil
}

// consumeVarint is protowire.ConsumeVarint with the common cases inlined.
func consumeVarint(b []byte) (uint64, int) {
	if b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	if len(b) > 1 && b[1] < 0x80 {
		return uint64(b[0]&0x7f) | uint64(b[1])<<7, 2
	}
	return protowire.ConsumeVarint(b)
}

// Len returns the number of events or records.
func (v *View) Len() int { return v.count }

// Source returns the configured name of the source. Like the other texts it is a
// fresh copy: ask once per frame.
func (v *View) Source() string { return string(v.source) }

// Format returns the name of the decoder.
func (v *View) Format() string { return string(v.format) }

// EventType returns the type of every event, "" for raw records.
func (v *View) EventType() string { return string(v.eventType) }

// Replay returns the id of the replay job that made the frame, "" for live ones.
func (v *View) Replay() string { return string(v.replay) }

// Lane returns the dedupe lane of every event, 0 for raw records.
func (v *View) Lane() uint32 { return v.lane }

// FrameNo returns the number of the frame in its pull. RECORDS only.
func (v *View) FrameNo() uint32 { return v.frameNo }

// FirstRecord returns the ordinal of the first record. RECORDS only.
func (v *View) FirstRecord() uint64 { return v.firstRecord }

// Head returns the line that names the columns of the records, nil where there is
// none: a slice of the frame. RECORDS only.
func (v *View) Head() []byte { return v.head }

// BodySize returns the bytes of all documents before compression, also where the
// body was left away.
func (v *View) BodySize() int { return int(v.bodySize) } // at most MaxBody

// ID returns the id of event i. It panics for raw records, which have none.
func (v *View) ID(i int) ID { return ID(v.ids[i*len(ID{}):]) }

// AppendSeenIDs appends the ids under which dedupe remembers the events, 16 bytes each:
// their own, or of a frame that a replay has made, ones that follow from the replay as
// well, so that they meet none but those of the same replay.
func (v *View) AppendSeenIDs(dst []byte) []byte {
	if len(v.replay) == 0 {
		return append(dst, v.ids...)
	}
	for at := 0; at < len(v.ids); at += len(ID{}) {
		id := NewID(v.replay, v.ids[at:at+len(ID{})])
		dst = append(dst, id[:]...)
	}
	return dst
}

// MessageIDs returns the ids of the SQS messages that the records came in, 16 bytes
// each: a slice of the frame, empty where the origin is not several messages.
// RECORDS only.
func (v *View) MessageIDs() []byte { return v.messageIDs }

// Fate returns the fate of event i. Raw records are Live.
func (v *View) Fate(i int) Fate {
	if len(v.fates) == 0 && i < v.count {
		return Live
	}
	return Fate(v.fates[i])
}

// SetFate changes the fate of event i, in the encoded frame itself. It panics for
// raw records, which have none.
func (v *View) SetFate(i int, f Fate) { v.fates[i] = byte(f) }

// Live counts the events whose fate is Live.
func (v *View) Live() int {
	if len(v.fates) == 0 {
		return v.count
	}
	return bytes.Count(v.fates, []byte{byte(Live)})
}

// Origins decodes the origins. It allocates for each.
func (v *View) Origins() ([]*Origin, error) {
	all := make([]*Origin, 0, v.origins)
	for rest := v.encoded; len(rest) > 0 && len(all) < v.origins; {
		f, more, err := nextField(rest)
		if err != nil {
			return nil, errFrame.New(err, "read the origins of a frame")
		}
		rest = more
		if f.num != fieldOrigins || f.typ != protowire.BytesType {
			continue
		}
		o, err := DecodeOrigin(f.val)
		if err != nil {
			return nil, errFrame.New(err, "read origin %d of a frame", len(all))
		}
		all = append(all, o)
	}
	return all, nil
}

// Columns is what a frame says about each of its events, in plain slices that
// View.Columns fills anew and reuses.
type Columns struct {
	// Times are Unix ns, zero for raw records.
	Times []int64
	// OriginOf are indexes into what View.Origins returns.
	OriginOf []uint32
	// Records are ordinals in the pull.
	Records []uint64
	// AccountOf and RegionOf are indexes into Accounts and Regions, which have at
	// least one entry, if need be "".
	AccountOf, RegionOf []uint32
	Accounts, Regions   []string
	// Lengths of the documents in the body, in bytes.
	Lengths []uint32
	// MessageRecords and MessageSent have an entry for each of View.MessageIDs: how
	// many of the records, in order, are those of the message, and when it was
	// sent, Unix ns.
	MessageRecords []uint32
	MessageSent    []int64
}

// Columns decodes all columns into c, each to Len entries. It allocates nothing
// when c has the room and was filled from frames of the same accounts and
// regions before. After an error c holds nothing useful.
func (v *View) Columns(c *Columns) error {
	n := v.count
	c.Times, c.Records = resize(c.Times, n), resize(c.Records, n)
	c.OriginOf, c.AccountOf, c.RegionOf = resize(c.OriginOf, n), resize(c.AccountOf, n), resize(c.RegionOf, n)
	c.Lengths = resize(c.Lengths, n)
	v.dictionaries(c)

	bad := ""
	keep := func(name string, ok bool) {
		if !ok && bad == "" {
			bad = name
		}
	}
	if len(v.times) == 0 {
		clear(c.Times)
	} else {
		keep("times", deltas(c.Times, v.times))
	}
	if len(v.records) == 0 {
		for i := range c.Records {
			c.Records[i] = v.firstRecord + uint64(i)
		}
	} else {
		keep("records", deltas(c.Records, v.records))
	}
	keep("origin_of", indexes(c.OriginOf, v.originOf, v.origins))
	keep("account_of", indexes(c.AccountOf, v.accountOf, len(c.Accounts)))
	keep("region_of", indexes(c.RegionOf, v.regionOf, len(c.Regions)))
	keep("lengths", numbers(c.Lengths, v.lengths))
	v.messages(c, keep)
	if bad != "" {
		return errFrame.New(nil, "read column %s of a frame: a number is malformed or out of range", bad)
	}
	return nil
}

// messages fills the columns of the messages.
func (v *View) messages(c *Columns, keep func(name string, ok bool)) {
	n := len(v.messageIDs) / len(UUID{})
	c.MessageRecords, c.MessageSent = resize(c.MessageRecords, n), resize(c.MessageSent, n)
	if n == 0 {
		return
	}
	if len(v.messageRecords) == 0 {
		for i := range c.MessageRecords {
			c.MessageRecords[i] = 1
		}
	} else {
		keep("message_records", numbers(c.MessageRecords, v.messageRecords))
	}
	keep("message_sent", deltas(c.MessageSent, v.messageSent))
	for i := range c.MessageSent {
		c.MessageSent[i] *= 1e6
	}
}

// dictionaries fills the accounts and regions. A name that stood in its place
// before is taken over instead of being copied out of the frame again.
func (v *View) dictionaries(c *Columns) {
	accounts, regions := c.Accounts[:0], c.Regions[:0]
	if v.accounts+v.regions > 0 {
		for rest := v.encoded; len(rest) > 0; {
			f, more, err := nextField(rest)
			if err != nil {
				break // not reached: scan came through
			}
			rest = more
			switch {
			case f.typ != protowire.BytesType:
			case f.num == fieldAccounts:
				accounts = appendName(accounts, f.val)
			case f.num == fieldRegions:
				regions = appendName(regions, f.val)
			}
		}
	}
	if len(accounts) == 0 {
		accounts = append(accounts, "")
	}
	if len(regions) == 0 {
		regions = append(regions, "")
	}
	c.Accounts, c.Regions = accounts, regions
}

func appendName(names []string, name []byte) []string {
	if n := len(names); n < cap(names) {
		if before := names[:n+1]; before[n] == string(name) {
			return before
		}
	}
	return append(names, string(name))
}

func resize[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}

// numbers decodes len(dst) uint32s; check has seen that so many are there.
func numbers(dst []uint32, col []byte) bool {
	for i := range dst {
		if len(col) == 0 {
			return false
		}
		x, w := consumeVarint(col)
		if w < 0 {
			return false
		}
		dst[i] = uint32(x) // protobuf cuts to 32 bits, too
		col = col[w:]
	}
	return len(col) == 0
}

// indexes decodes numbers below limit. An absent column is all zeros.
func indexes(dst []uint32, col []byte, limit int) bool {
	if len(col) == 0 {
		clear(dst)
		return true
	}
	if !numbers(dst, col) {
		return false
	}
	for _, x := range dst {
		if uint64(x) >= uint64(limit) {
			return false
		}
	}
	return true
}

// deltas decodes sums of sint64 differences, which may wrap.
func deltas[T int64 | uint64](dst []T, col []byte) bool {
	var last T
	for i := range dst {
		if len(col) == 0 {
			return false
		}
		x, w := consumeVarint(col)
		if w < 0 {
			return false
		}
		last += T(protowire.DecodeZigZag(x)) // wraps on purpose
		dst[i] = last
		col = col[w:]
	}
	return len(col) == 0
}

// Block returns the documents as they stand in the frame, one S2 block; nil where the
// frame has none.
func (v *View) Block() []byte { return v.body }

// Body decompresses the documents over dst, whose content is lost, and returns
// them one after the other; a fresh buffer of just BodySize bytes where dst has
// not the room. A frame without body gives nil.
func (v *View) Body(dst []byte) ([]byte, error) {
	if len(v.body) == 0 {
		return nil, nil
	}
	body, err := s2.Decode(dst, v.body)
	if err != nil {
		return nil, errFrame.New(err, "decompress the %d byte body of a frame", len(v.body))
	}
	return body, nil
}

// Encoded returns the frame as it is now, with the fates that were set. It is
// what DecodeFrame was given, not a copy.
func (v *View) Encoded() []byte { return v.encoded }

// WithoutBody appends the frame as it is now, without its body, to dst: for
// frames whose events were all dropped. Lengths and body_size stay. A frame that
// still has live events with bytes cannot be read that way.
func (v *View) WithoutBody(dst []byte) []byte {
	for rest := v.encoded; len(rest) > 0; {
		f, more, err := nextField(rest)
		if err != nil {
			break // not reached: scan came through
		}
		rest = more
		if f.num != fieldBody || f.typ != protowire.BytesType {
			dst = append(dst, f.raw...)
		}
	}
	return dst
}
