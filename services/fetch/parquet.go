package fetch

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/document"
	"github.com/penstock/penstock/services/internal/framing"
)

// A parquet file is read from its end: the footer tells where the columns are. A
// small one is taken whole; of a larger one ranges are asked for, a window per
// column. Each row becomes a record, a JSON object.
//
// The library trusts what a file says about its sizes. So the footer and each page
// are checked before it sees them, and pages are unpacked once for that: what a
// hostile file can cost is bounded by parquetMemory.
//
// Source: Apache Parquet format 2.11, file format, page headers, encodings.

var (
	errParquet = fault.Define("fetch.parquet_unsupported", fault.Reject,
		"have the file written without encryption, with snappy, gzip, zstd or no compression inside, and not compressed as a whole; then redrive")
	errParquetSize = fault.Define("fetch.parquet_too_large", fault.Reject,
		"have the file written with smaller pages and fewer columns, e.g. pages of 1 MiB; rows before that have gone on")
)

// Limits of parquet files.
const (
	// parquetWhole is up to which size a file is taken whole. Unit: bytes.
	parquetWhole = 1 << 20
	// parquetPlain is how much memory a file may take within what was reserved for
	// its object; parquetMemory how much with the right to large buffers, which one
	// object has at a time. Unit: bytes.
	parquetPlain  = 2 << 20
	parquetMemory = 256 << 20
	// parquetWindows is what the windows of all columns take. Unit: bytes.
	parquetWindows = 8 << 20
	// maxFooter is the largest footer. Unit: bytes.
	maxFooter = 8 << 20
	// rowWeight is what a row counts towards MaxObject besides its bytes.
	rowWeight = 16
)

const (
	parquetMagic     = "PAR1"
	parquetEncrypted = "PARE"
)

// isParquet tells whether a parquet file begins with head: its magic, and then
// what no text has.
func isParquet(head []byte) bool {
	const magic = len(parquetMagic)
	return len(head) >= magic && (string(head[:magic]) == parquetMagic || string(head[:magic]) == parquetEncrypted) &&
		bytes.IndexByte(head, 0) >= 0
}

// parquet reads a parquet file and publishes its rows.
func (j *job) parquet(ctx context.Context, src *source, r *reader) error {
	if r.dec.r != io.Reader(r.dec.stored) {
		return errParquet.New(nil, "read %s: the parquet file is compressed as a whole", j.name())
	}
	p, err := j.openParquet(ctx, r)
	if err != nil {
		return j.judge(err)
	}
	defer p.close()
	var skip string
	if j.format, _, skip = src.Choose(src.Format, j.origin.GetKey(), p.columnsHead()); skip != "" {
		j.skip = skip
		return nil
	}
	j.pickFormat()
	j.cutter.begin(j, r.frame)
	return j.finish(ctx, j.rows(ctx, r, p))
}

// rows hands on row after row.
func (j *job) rows(ctx context.Context, r *reader, p *parquetFile) error {
	for !j.past(j.cutter.ordinal) {
		row, err := p.next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return j.judge(err)
		case row == nil:
			err = j.cutter.bad(ctx, &framing.Bad{
				Offset: -1, Length: p.rowSize, Bytes: slices.Clone(p.row.buf[:min(len(p.row.buf), keepBad)]),
				Kind: framing.ErrTooLarge, Reason: "the row is larger than allowed",
			})
		default:
			if r.dec.raw += int64(len(row)) + rowWeight; r.dec.raw > r.dec.maxRaw {
				return errTooLarge.New(nil, "read more than %d bytes of rows of %s", r.dec.maxRaw, j.name())
			}
			err = j.cutter.add(ctx, row, nil, -1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parquetFile is an open parquet file. It implements io.ReaderAt for the library,
// which gets nothing that was not checked.
type parquetFile struct {
	obj     *object
	name    string
	enlarge func() error
	size    int64
	whole   []byte // the file, if it is small
	footer  []byte // with the eight bytes behind it
	file    *parquet.File

	columns []*parquetColumn // the leaves of the schema
	group   int              // of rows, the next one
	left    int64            // rows of this one
	regions []*parquetColumn // the columns of this group in the order of the file
	pages   pageChecker

	// err is why something was refused to the library, which may hide it.
	err error

	mem   int64 // what the open pages take, about
	held  int64 // what the file itself takes
	large bool

	row     rowWriter
	rowSize int64 // of the last row that was too large, as far as it was written
}

// parquetColumn is a leaf of the schema, with its part of the group in hand.
type parquetColumn struct {
	cursor   valueCursor
	rep, def int // the highest levels
	from, to int64
	pageAt   int64
	page     []byte // header and body of the page that may be read
	window   []byte // what was read of the object, when it is not in memory
	windowAt int64
	codec    format.CompressionCodec
	values   int64 // in the chunk
	dict     int64 // memory of the dictionary, and of the page
	pageMem  int64
}

// openParquet reads and checks the footer.
func (j *job) openParquet(ctx context.Context, r *reader) (p *parquetFile, err error) {
	o := j.obj
	p = &parquetFile{obj: o, name: j.name(), size: o.size, enlarge: func() error { return j.enlarge(ctx) }}
	p.row.limit = int(j.lifted(j.f.cfg).MaxRecord)
	defer p.recover(&err)
	if o.size < 0 || o.size <= parquetWhole {
		if p.whole, err = io.ReadAll(io.LimitReader(r, parquetWhole+1)); err != nil {
			return nil, err
		}
		if r.dec.raw = 0; len(p.whole) > parquetWhole {
			return nil, errParquetSize.New(nil, "read %s: its size is not known beforehand", p.name)
		}
		p.size = int64(len(p.whole))
		p.held = p.size
	} else {
		r.dec.raw = 0
		o.close() // the rest comes in ranges
	}
	if err := p.readFooter(); err != nil {
		return nil, err
	}
	p.file, err = parquet.OpenFile(p, p.size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true),
		parquet.FileReadMode(parquet.ReadModeSync), parquet.ReadBufferSize(16<<10))
	if err != nil {
		return nil, err
	}
	schema := p.file.Schema()
	paths := schema.Columns()
	if len(paths) == 0 {
		return nil, errParquet.New(nil, "read %s: it has no columns", p.name)
	}
	for _, path := range paths {
		leaf, _ := schema.Lookup(path...)
		p.columns = append(p.columns, &parquetColumn{rep: leaf.MaxRepetitionLevel, def: leaf.MaxDefinitionLevel})
	}
	p.row.columns = p.columns
	return p, p.row.plan(schema)
}

// recover makes a panic of the library an error about the file.
func (p *parquetFile) recover(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("read parquet: %v", r)
	}
	if *err != nil && p.err != nil {
		*err = p.err
	}
}

// readFooter reads the footer and checks what it would cost to decode it.
func (p *parquetFile) readFooter() error {
	const tail = 8 // its size, and the magic
	var end [tail]byte
	if p.size < 4+tail {
		return io.ErrUnexpectedEOF
	}
	if err := p.read(end[:], p.size-tail); err != nil {
		return err
	}
	switch string(end[4:]) {
	case parquetMagic:
	case parquetEncrypted:
		return errParquet.New(nil, "read %s: its footer is encrypted", p.name)
	default:
		return io.ErrUnexpectedEOF // it is written last
	}
	size := int64(binary.LittleEndian.Uint32(end[:]))
	switch {
	case size > p.size-4-tail:
		return fmt.Errorf("a footer of %d bytes in a file of %d", size, p.size)
	case size > maxFooter:
		return errParquetSize.New(nil, "read %s: its footer has %d bytes, at most %d are read", p.name, size, maxFooter)
	}
	if size > parquetWhole/4 {
		if err := p.grow(); err != nil {
			return err
		}
	}
	p.footer = make([]byte, size+tail)
	if err := p.read(p.footer, p.size-size-tail); err != nil {
		return err
	}
	t := thrift{data: p.footer[:size]}
	if err := t.structure(nil); err != nil {
		return fmt.Errorf("read the footer: %w", err)
	}
	if t.items > maxFooterItems/16 {
		return p.grow()
	}
	return nil
}

// grow asks for the right to large buffers.
func (p *parquetFile) grow() error {
	if p.large {
		return nil
	}
	p.large = true
	return p.enlarge()
}

// use accounts for n more bytes of memory.
func (p *parquetFile) use(n int64) error {
	p.mem += n
	switch {
	case p.mem > parquetMemory:
		return errParquetSize.New(nil, "read %s: its open pages take more than %d bytes of memory", p.name, parquetMemory)
	case p.held+p.mem > parquetPlain:
		return p.grow()
	}
	return nil
}

// columnsHead is what the choice of the format gets to see: the first bytes of an
// object with the names of the columns.
func (p *parquetFile) columnsHead() []byte {
	head := []byte{'{'}
	for i, f := range p.file.Schema().Fields() {
		if i > 0 {
			head = append(head, ',')
		}
		head = append(document.AppendQuoted(head, f.Name()), ":null"...)
		if len(head) > 8*headSize {
			break
		}
	}
	return append(head, '}')
}

// next returns the next row, valid until the next call; nil for one that is too
// large, io.EOF behind the last one.
func (p *parquetFile) next() (row []byte, err error) {
	defer p.recover(&err)
	for p.left == 0 {
		if err := p.leave(); err != nil {
			return nil, err
		}
		groups := p.file.RowGroups()
		if p.group == len(groups) {
			return nil, io.EOF
		}
		if err := p.enter(groups[p.group], &p.file.Metadata().RowGroups[p.group]); err != nil {
			return nil, err
		}
		p.group++
	}
	p.left--
	row, err = p.row.next()
	if errors.Is(err, errRowTooLarge) {
		p.rowSize = int64(len(p.row.buf))
		err = p.row.drain()
	}
	if err == nil && len(p.row.buf) > plainBuffer {
		err = p.grow()
	}
	return row, err
}

// enter begins a group of rows.
func (p *parquetFile) enter(g parquet.RowGroup, meta *format.RowGroup) error {
	chunks := g.ColumnChunks()
	if len(chunks) != len(p.columns) || len(meta.Columns) != len(p.columns) || meta.NumRows < 0 {
		return fmt.Errorf("row group %d has %d columns of %d", p.group, len(chunks), len(p.columns))
	}
	p.left, p.mem = meta.NumRows, 0
	p.regions = p.regions[:0]
	for i, c := range p.columns {
		m := &meta.Columns[i].MetaData
		c.from = m.DataPageOffset
		if m.DictionaryPageOffset != 0 {
			c.from = m.DictionaryPageOffset
		}
		c.to = c.from + m.TotalCompressedSize
		c.codec, c.values = m.Codec, m.NumValues
		c.page, c.pageAt, c.dict, c.pageMem = nil, 0, 0, 0
		if c.window != nil {
			c.window, c.windowAt = c.window[:0], 0
		}
		if c.from < int64(len(parquetMagic)) || c.to < c.from || c.to > p.size-int64(len(p.footer)) || c.values < 0 || meta.Columns[i].FilePath != "" {
			return fmt.Errorf("column %d of row group %d is not within the file", i, p.group)
		}
		if !knownCodec(c.codec) {
			return errParquet.New(nil, "read %s: its columns are compressed with %v", p.name, c.codec)
		}
		p.regions = append(p.regions, c)
	}
	slices.SortFunc(p.regions, func(a, b *parquetColumn) int { return int(min(max(a.from-b.from, -1), 1)) })
	for i, c := range p.regions[1:] {
		if before := p.regions[i]; c.from < before.to {
			return fmt.Errorf("columns of row group %d overlap", p.group)
		}
	}
	for i, c := range p.columns {
		c.cursor.begin(parquet.NewColumnChunkValueReader(chunks[i]))
	}
	return nil
}

// leave ends a group of rows.
func (p *parquetFile) leave() error {
	for i, c := range p.columns {
		if c.cursor.r == nil {
			continue
		}
		if _, err := c.cursor.peek(); err != io.EOF {
			if err == nil {
				err = fmt.Errorf("column %d of row group %d has more values than rows", i, p.group-1)
			}
			return err
		}
		c.cursor.end()
	}
	return nil
}

func (p *parquetFile) close() {
	for _, c := range p.columns {
		c.cursor.end()
	}
}

// read reads from the object.
func (p *parquetFile) read(b []byte, at int64) error {
	if at < 0 || at+int64(len(b)) > p.size {
		return io.ErrUnexpectedEOF
	}
	if p.whole != nil {
		copy(b, p.whole[at:])
		return nil
	}
	return p.obj.readRange(b, at)
}

// ReadAt implements io.ReaderAt, for what the library may see: the magic, the
// footer, and pages that were checked. It may give less than asked for.
func (p *parquetFile) ReadAt(b []byte, at int64) (int, error) {
	footer := p.size - int64(len(p.footer))
	switch {
	case at < 0 || at >= p.size:
		return 0, io.EOF
	case at < int64(len(parquetMagic)):
		return copy(b, parquetMagic[at:]), nil
	case at >= footer:
		return copy(b, p.footer[at-footer:]), nil
	}
	i, found := slices.BinarySearchFunc(p.regions, at, func(c *parquetColumn, at int64) int { return int(min(max(c.from-at, -1), 1)) })
	if !found {
		i--
	}
	if i < 0 || at >= p.regions[i].to {
		return 0, parquet.ErrCorrupted
	}
	c := p.regions[i]
	if at < c.pageAt || at >= c.pageAt+int64(len(c.page)) {
		if p.err = p.load(c, at); p.err != nil {
			return 0, p.err
		}
	}
	return copy(b, c.page[at-c.pageAt:]), nil
}

// load reads and checks the page that begins at at.
func (p *parquetFile) load(c *parquetColumn, at int64) error {
	if at != c.from && at != c.pageAt+int64(len(c.page)) {
		return parquet.ErrCorrupted
	}
	p.mem -= c.pageMem
	c.page, c.pageMem = nil, 0
	var h pageHeader
	for size := int64(4 << 10); ; size *= 16 {
		head, err := p.view(c, at, min(size, c.to-at))
		if err != nil {
			return err
		}
		if err = h.parse(head); err == nil {
			break
		}
		if err != io.ErrUnexpectedEOF || int64(len(head)) == c.to-at || size > maxPageHeader { // never wrapped
			return fmt.Errorf("read a page header: %w", err)
		}
	}
	length := int64(h.length) + h.compressed
	if length > c.to-at || h.values > c.values && h.kind != dictionaryPage {
		return fmt.Errorf("a page of %d bytes and %d values is larger than its column", length, h.values)
	}
	if h.uncompressed > maxPage || h.compressed > maxPage || h.values > maxPageValues {
		return errParquetSize.New(nil, "read %s: a page has %d bytes and %d values", p.name, h.uncompressed, h.values)
	}
	const perValue = 12 // levels, indexes or offsets
	mem := h.compressed + 2*h.uncompressed + perValue*h.values
	if err := p.use(mem); err != nil {
		return err
	}
	if h.kind == dictionaryPage {
		p.mem -= c.dict
		c.dict = mem
	} else {
		c.pageMem = mem
	}
	page, err := p.view(c, at, length)
	if err != nil {
		return err
	}
	if err := p.pages.check(&h, c, page[h.length:]); err != nil {
		return fmt.Errorf("check a page: %w", err)
	}
	c.page, c.pageAt = page, at
	return nil
}

// view returns n bytes of a column from at on, valid until the next view of it.
func (p *parquetFile) view(c *parquetColumn, at, n int64) ([]byte, error) {
	if p.whole != nil {
		return p.whole[at : at+n : at+n], nil
	}
	if at >= c.windowAt && at+n <= c.windowAt+int64(len(c.window)) {
		return c.window[at-c.windowAt:][:n:n], nil
	}
	size := min(max(n, max(parquetWindows/int64(len(p.columns)), 64<<10)), c.to-at)
	if err := p.use(max(size-int64(cap(c.window)), 0)); err != nil {
		return nil, err
	}
	have := 0
	if at >= c.windowAt && at < c.windowAt+int64(len(c.window)) {
		have = copy(c.window, c.window[at-c.windowAt:])
	}
	c.window = slices.Grow(c.window[:have], int(size)-have)[:size]
	c.windowAt = at
	if err := p.read(c.window[have:], at+int64(have)); err != nil {
		return nil, err
	}
	return c.window[:n:n], nil
}
