package fetch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go/format"
)

// Limits of what a footer and pages may claim.
const (
	maxFooterItems = 200_000 // elements of all lists of a footer
	maxThriftDepth = 24
	maxPageHeader  = 1 << 20  // bytes, statistics included
	maxPage        = 32 << 20 // bytes, before and after compression
	maxPageValues  = 4 << 20
	// maxPrefixed bounds what a page of values that share their beginnings may get
	// when they are made whole. Unit: bytes.
	maxPrefixed = 256 << 20
)

var errThrift = errors.New("malformed structure")

// thrift steps over structures in the compact protocol without making anything of
// them. Source: Apache Thrift, compact protocol encoding.
type thrift struct {
	data  []byte
	at    int
	items int // elements of lists so far
	depth int
}

// The types of fields and elements.
const (
	thriftTrue = iota + 1
	thriftFalse
	thriftByte
	thriftI16
	thriftI32
	thriftI64
	thriftDouble
	thriftBinary
	thriftList
	thriftSet
	thriftMap
	thriftStruct
)

// structure reads a structure. field gets each field that is a number or a truth
// value, with those of structures within as 100*outer+inner.
func (t *thrift) structure(field func(id int, v int64)) error { return t.fields(0, field) }

func (t *thrift) fields(outer int, field func(id int, v int64)) error {
	if t.depth++; t.depth > maxThriftDepth {
		return errThrift
	}
	defer func() { t.depth-- }()
	for id := 0; ; {
		b, err := t.byte()
		if err != nil || b == 0 {
			return err
		}
		if delta := int(b >> 4); delta > 0 {
			id += delta
		} else {
			v, err := t.varint()
			if err != nil {
				return err
			}
			id = int(int16(v)) // that is its size
		}
		kind := b & 15
		if outer < 100 && kind == thriftStruct && id >= 0 && id < 100 {
			err = t.fields(100*id, field)
		} else {
			err = t.value(kind, func(v int64) {
				if field != nil {
					field(outer+id, v)
				}
			})
		}
		if err != nil {
			return err
		}
	}
}

// value reads a value.
func (t *thrift) value(kind byte, number func(v int64)) error {
	switch kind {
	case thriftTrue, thriftFalse:
		number(int64(2 - kind))
		return nil
	case thriftByte:
		b, err := t.byte()
		number(int64(int8(b))) // that is its size
		return err
	case thriftI16, thriftI32, thriftI64:
		v, err := t.varint()
		number(v)
		return err
	case thriftDouble:
		return t.skip(8)
	case thriftBinary:
		n, err := t.uvarint()
		if err != nil {
			return err
		}
		return t.skip(n)
	case thriftList, thriftSet:
		return t.list()
	case thriftMap:
		return t.dictionary()
	case thriftStruct:
		return t.fields(100_000, nil)
	}
	return errThrift
}

func (t *thrift) list() error {
	b, err := t.byte()
	if err != nil {
		return err
	}
	n := uint64(b >> 4)
	if n == 15 {
		if n, err = t.uvarint(); err != nil {
			return err
		}
	}
	return t.elements(n, b&15)
}

func (t *thrift) dictionary() error {
	n, err := t.uvarint()
	if err != nil || n == 0 {
		return err
	}
	kinds, err := t.byte()
	if err != nil {
		return err
	}
	for range n {
		if err := t.elements(1, kinds>>4); err != nil {
			return err
		}
		if err := t.elements(1, kinds&15); err != nil {
			return err
		}
	}
	return nil
}

// elements reads n elements.
func (t *thrift) elements(n uint64, kind byte) error {
	if n > uint64(len(t.data)-t.at) || t.items+int(n) > maxFooterItems {
		return fmt.Errorf("a list of %d elements: %w", n, errThrift)
	}
	if t.depth++; t.depth > maxThriftDepth {
		return errThrift
	}
	defer func() { t.depth-- }()
	t.items += int(n)
	for range n {
		if kind == thriftTrue || kind == thriftFalse { // in lists they have a byte
			kind = thriftByte
		}
		if err := t.value(kind, func(int64) {}); err != nil {
			return err
		}
	}
	return nil
}

func (t *thrift) byte() (byte, error) {
	if t.at >= len(t.data) {
		return 0, io.ErrUnexpectedEOF
	}
	t.at++
	return t.data[t.at-1], nil
}

func (t *thrift) uvarint() (uint64, error) {
	v, n := binary.Uvarint(t.data[t.at:])
	switch {
	case n == 0:
		return 0, io.ErrUnexpectedEOF
	case n < 0:
		return 0, errThrift
	}
	t.at += n
	return v, nil
}

func (t *thrift) varint() (int64, error) {
	v, err := t.uvarint()
	return int64(v>>1) ^ -int64(v&1), err // zigzag
}

func (t *thrift) skip(n uint64) error {
	if n > uint64(len(t.data)-t.at) {
		return io.ErrUnexpectedEOF
	}
	t.at += int(n)
	return nil
}

// The kinds of pages.
const (
	dataPage       = 0
	dictionaryPage = 2
	dataPageV2     = 3
)

// pageHeader is what a page says about itself.
type pageHeader struct {
	kind                     int64
	uncompressed, compressed int64
	values                   int64
	encoding                 int64
	levelEncodings           [2]int64 // repetition, definition
	levels                   [2]int64 // their bytes, in V2
	packed                   bool     // V2: the values are compressed
	length                   int      // of the header itself
}

// parse reads the header that begins b. The error is io.ErrUnexpectedEOF when b may
// be too short for it.
func (h *pageHeader) parse(b []byte) error {
	*h = pageHeader{packed: true, levelEncodings: [2]int64{rleEncoding, rleEncoding}}
	t := thrift{data: b}
	err := t.structure(func(id int, v int64) {
		switch id {
		case 1:
			h.kind = v
		case 2:
			h.uncompressed = v
		case 3:
			h.compressed = v
		case 501, 701, 801:
			h.values = v
		case 502, 702, 804:
			h.encoding = v
		case 503:
			h.levelEncodings[1] = v
		case 504:
			h.levelEncodings[0] = v
		case 805:
			h.levels[1] = v
		case 806:
			h.levels[0] = v
		case 807:
			h.packed = v != 0
		}
	})
	if err != nil {
		return err
	}
	h.length = t.at
	if h.uncompressed < 0 || h.compressed < 0 || h.values < 0 || h.levels[0] < 0 || h.levels[1] < 0 ||
		h.levels[0]+h.levels[1] > min(h.compressed, h.uncompressed) {
		return errThrift
	}
	return nil
}

// The encodings that matter here.
const (
	plainEncoding      = 0
	plainDictEncoding  = 2
	rleEncoding        = 3
	deltaEncoding      = 5
	deltaBytesEncoding = 6
	prefixEncoding     = 7
	dictEncoding       = 8
	splitEncoding      = 9
)

var errPage = errors.New("a page does not hold what it says")

// pageChecker unpacks pages to see that they are as large as they say. Not for
// concurrent use.
type pageChecker struct {
	gz   *gzip.Reader
	zstd *zstd.Decoder
	buf  []byte
}

func knownCodec(c format.CompressionCodec) bool {
	switch c {
	case format.Uncompressed, format.Snappy, format.Gzip, format.Zstd:
		return true
	default:
		return false
	}
}

// check checks the page with header h and that body.
func (p *pageChecker) check(h *pageHeader, c *parquetColumn, body []byte) error {
	switch h.kind {
	case dataPage, dictionaryPage:
		raw, err := p.unpack(c.codec, body, h.uncompressed)
		if err != nil {
			return err
		}
		if h.kind == dictionaryPage {
			if h.encoding != plainEncoding && h.encoding != plainDictEncoding {
				return errPage
			}
			return nil // the values must be in it
		}
		for i, highest := range [...]int{c.rep, c.def} {
			if highest == 0 {
				continue
			}
			if h.levelEncodings[i] != rleEncoding || len(raw) < 4 {
				return errPage
			}
			n := int64(binary.LittleEndian.Uint32(raw))
			if n > int64(len(raw)-4) {
				return errPage
			}
			if err := checkRuns(raw[4:4+n], bitsFor(highest), h.values); err != nil {
				return err
			}
			raw = raw[4+n:]
		}
		return checkValues(h, raw)
	case dataPageV2:
		levels := body[:h.levels[0]+h.levels[1]]
		codec := c.codec
		if !h.packed {
			codec = format.Uncompressed
		}
		raw, err := p.unpack(codec, body[len(levels):], h.uncompressed-int64(len(levels)))
		if err != nil {
			return err
		}
		if err := checkRuns(levels[:h.levels[0]], bitsFor(c.rep), h.values); err != nil {
			return err
		}
		if err := checkRuns(levels[h.levels[0]:], bitsFor(c.def), h.values); err != nil {
			return err
		}
		return checkValues(h, raw)
	}
	return fmt.Errorf("a page of kind %d: %w", h.kind, errPage)
}

// unpack decompresses b, which must give no more than size bytes. The result is
// valid until the next unpack.
func (p *pageChecker) unpack(codec format.CompressionCodec, b []byte, size int64) ([]byte, error) {
	var r io.Reader
	switch codec {
	case format.Uncompressed:
		if int64(len(b)) > size {
			return nil, errPage
		}
		return b, nil
	case format.Snappy:
		if n, err := snappy.DecodedLen(b); err != nil || int64(n) > size {
			return nil, errors.Join(errPage, err)
		}
		p.room(size)
		return snappy.Decode(p.buf[:cap(p.buf)], b)
	case format.Gzip:
		if p.gz == nil {
			p.gz = new(gzip.Reader)
		}
		if err := p.gz.Reset(bytes.NewReader(b)); err != nil {
			return nil, err
		}
		r = p.gz
	case format.Zstd:
		if p.zstd == nil {
			var err error
			p.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
			if err != nil {
				return nil, err
			}
		}
		if len(b) == 0 {
			return nil, nil
		}
		if err := p.zstd.Reset(bytes.NewReader(b)); err != nil {
			return nil, err
		}
		r = p.zstd
	default:
		return nil, errPage
	}
	p.room(size)
	n, err := io.ReadFull(r, p.buf[:size])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF { // as io.ReadFull says
		return nil, err
	}
	if err == nil {
		var more [1]byte
		if k, err := io.ReadFull(r, more[:]); k > 0 || err != io.EOF {
			return nil, errPage
		}
	}
	return p.buf[:n], nil
}

func (p *pageChecker) room(size int64) {
	if int64(cap(p.buf)) < size {
		p.buf = make([]byte, size)
	}
	p.buf = p.buf[:cap(p.buf)]
}

// checkValues checks that the values of a page are no more than it says.
func checkValues(h *pageHeader, raw []byte) error {
	if len(raw) == 0 {
		return nil // nulls only
	}
	switch h.encoding {
	case plainEncoding, splitEncoding:
		return nil
	case plainDictEncoding, dictEncoding:
		return checkRuns(raw[1:], int(raw[0]), h.values)
	case rleEncoding:
		if len(raw) < 4 {
			return errPage
		}
		return checkRuns(raw[4:], 1, h.values)
	case deltaEncoding, deltaBytesEncoding:
		return checkDelta(h, raw)
	case prefixEncoding:
		if h.values*int64(len(raw)) > maxPrefixed {
			return fmt.Errorf("values that share their beginnings, too many for one page: %w", errPage)
		}
		return checkDelta(h, raw)
	}
	return fmt.Errorf("values of encoding %d: %w", h.encoding, errPage)
}

// checkDelta checks the header of values that are written as differences.
func checkDelta(h *pageHeader, raw []byte) error {
	t := thrift{data: raw}
	block, err := t.uvarint()
	if err != nil {
		return err
	}
	minis, err := t.uvarint()
	if err != nil {
		return err
	}
	total, err := t.uvarint()
	if err != nil {
		return err
	}
	if block > 1<<16 || minis == 0 || minis > block || total > uint64(h.values) { // not negative
		return errPage
	}
	return nil
}

// checkRuns checks that runs of numbers of so many bits are not many more than
// values. Source: Apache Parquet format, RLE/bit-packing hybrid.
func checkRuns(b []byte, width int, values int64) error {
	if width > 32 {
		return errPage
	}
	most := uint64(values) + 512 // not negative; groups of eight are filled up
	bytesOf := (width + 7) / 8
	for sum := uint64(0); len(b) > 0; {
		head, n := binary.Uvarint(b)
		if n <= 0 {
			return errPage
		}
		b = b[n:]
		count, size := head>>1, uint64(bytesOf) // small
		if count > most {
			return errPage
		}
		if head&1 != 0 {
			size = count * uint64(width) // small
			count *= 8
		}
		if sum += count; count > most || sum > most {
			return errPage
		}
		if head&1 != 0 && size > uint64(len(b)) {
			return nil // cut: the library says so, or reads what is there
		}
		b = b[min(size, uint64(len(b))):]
	}
	return nil
}

// bitsFor is how many bits numbers up to highest take.
func bitsFor(highest int) int {
	n := 0
	for ; highest > 0; highest >>= 1 {
		n++
	}
	return n
}
