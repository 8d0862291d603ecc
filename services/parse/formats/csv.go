package formats

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("csv", "Any CSV or TSV whose columns are named, by its header or by the configuration.", shape{
		framing:   csvFraming,
		sniff:     isCSV,
		configure: configureCSV,
	}, func() CSVConfig { return CSVConfig{Fields: defaultFields()} }, openCSV)
}

// CSVConfig configures the format csv.
type CSVConfig struct {
	// Delimiter between cells: one character, or tab. Default: of comma, semicolon,
	// tab and bar the one that fits.
	Delimiter string `yaml:"delimiter"`
	// Columns are the names of the columns, for files without a header. Then the
	// first line is a record like the others.
	Columns []string `yaml:"columns"`
	// Ragged takes rows with fewer and with more cells than there are columns:
	// what is missing is left out, what is too much is column_<n>.
	Ragged bool `yaml:"ragged"`
	// SkipEmpty leaves out the fields of empty cells.
	SkipEmpty bool         `yaml:"skip_empty"`
	Fields    FieldsConfig `yaml:",inline"`
}

// Validate reports every problem, each with the key to change.
func (c CSVConfig) Validate() error {
	var p config.Problems
	p.In("", c.Fields.Validate())
	p.Need(c.Delimiter == "tab" || len(c.Delimiter) <= 1, "delimiter", `use one ASCII character, e.g. ";", or tab`)
	p.Need(c.Delimiter != `"` && c.Delimiter != "\n" && c.Delimiter != "\r", "delimiter", "use a character that is no quote and no line end")
	p.Need(len(c.Columns) <= maxColumns, "columns", "name at most 4096 columns")
	return p.Err()
}

// comma is the byte between cells, 0 for one to be found out.
func (c *CSVConfig) comma() byte {
	switch {
	case c.Delimiter == "tab":
		return '\t'
	case c.Delimiter != "":
		return c.Delimiter[0]
	}
	return 0
}

func configureCSV(options any, f framing.Framing) framing.Framing {
	c, ok := options.(*CSVConfig)
	if !ok {
		return f
	}
	if f.Comma = c.comma(); len(c.Columns) > 0 {
		f.Header = framing.NoHeader
	}
	return f
}

func openCSV(c CSVConfig, deps Deps) (Format, error) {
	grows := 4
	if c.Fields.KeepRaw {
		grows++
	}
	return Format{
		New: func() Decoder { return newCSV(c, deps) }, Base: c.Fields.base("csv", deps), Grows: grows,
	}, nil
}

// csvDecoder decodes rows of CSV.
//
//   - document: a field per cell, named by its column. A name that comes twice gets
//     a number behind it, a column without a name is column_<n>.
//   - id, time, type, account, region: as configured.
//
// A row with broken quotes, or with another number of cells than there are
// columns, is refused alone.
//
// Source: RFC 4180.
type csvDecoder struct {
	config  CSVConfig
	fields  *fields
	headers headers[*csvLayout]
	fixed   *csvLayout // of the configured columns, nil without
	layout  *csvLayout

	cells cells
	w     fieldWriter
	kept  [fieldSlots][]byte
}

// csvLayout is what a header says.
type csvLayout struct {
	header  []byte // nil for configured columns
	comma   byte   // 0 when each row has to tell
	columns []column
	extra   []column // of the cells behind them, as far as rows had any
}

// column is that of cell i.
func (l *csvLayout) column(i int) *column {
	if i < len(l.columns) {
		return &l.columns[i]
	}
	return &l.extra[i-len(l.columns)]
}

func newCSV(c CSVConfig, deps Deps) *csvDecoder {
	d := &csvDecoder{config: c, fields: newFields("csv", c.Fields, deps)}
	d.headers.parse = d.read
	if len(c.Columns) > 0 {
		d.fixed = &csvLayout{comma: c.comma(), columns: d.columns(c.Columns)}
	}
	return d
}

func (c *csvDecoder) columns(names []string, reserved ...string) []column {
	if c.config.Fields.KeepRaw {
		reserved = append(reserved, rawField)
	}
	return newColumns(names, c.fields.slot, reserved...)
}

// grow makes columns for rows with more cells than the header names, more of them
// at once so that it is seldom called.
func (c *csvDecoder) grow(l *csvLayout, count int) {
	var names, used []string
	for i := range l.columns {
		used = append(used, l.columns[i].name)
	}
	for i := len(l.columns); i < min(2*count, maxColumns); i++ {
		names = append(names, columnName(i))
	}
	l.extra = c.columns(names, used...)
}

// read makes a layout of a header.
func (c *csvDecoder) read(header []byte) (*csvLayout, error) {
	cut := cells{comma: c.config.comma()}
	if why := noHeader(header, &cut); why != "" {
		return nil, errNoHeader.New(nil, "read the header of a CSV file, %d bytes: %s", len(header), why)
	}
	names := cut.texts()
	for i, name := range names {
		names[i] = strings.TrimSpace(name)
	}
	return &csvLayout{header: bytes.Clone(header), comma: cut.comma, columns: c.columns(names)}, nil
}

// noHeader cuts a row, and says why it does not name columns; "" when it may.
func noHeader(row []byte, cut *cells) (why string) {
	if row = trimSpace(row); isJSON(row) || !isText(row) {
		return "it is JSON, or no text"
	}
	if cut.comma == 0 {
		cut.comma = sniffComma(row)
	}
	if why, at := cut.cut(row); why != "" {
		return why + " at byte " + strconv.Itoa(at)
	}
	for i := range cut.list {
		v := cut.at(i)
		if _, isTime := parseZoneless(v); isTime || isNumber(v) {
			return "cell " + strconv.Itoa(i+1) + " is a time or a number, so it is a record"
		}
	}
	return ""
}

// isText tells whether what begins with head may be text.
func isText(head []byte) bool { return bytes.IndexByte(head[:min(len(head), 512)], 0) < 0 }

// csvFraming takes the first line for the header, unless that is a record: then it
// is one of those that are refused for want of a header.
func csvFraming(head []byte) framing.Framing {
	f := framing.Framing{Kind: framing.CSV, Header: framing.FirstLine}
	row, whole := firstRow(head)
	if whole && noHeader(row, &cells{}) != "" {
		f.Header = framing.NoHeader
	}
	return f
}

// Start implements Starter.
func (c *csvDecoder) Start(h Head) (err error) {
	if c.layout = c.fixed; c.layout == nil {
		if len(h.Columns) == 0 {
			return errNoHeader.New(nil, "read rows of CSV: they came without a header")
		}
		c.layout, err = c.headers.of(h.Columns)
	}
	return err
}

// Decode implements Decoder.
func (c *csvDecoder) Decode(rec []byte, d *Doc) error {
	l := c.layout
	if l == nil {
		return errNoHeader.New(nil, "read a row of CSV: it came without a header")
	}
	if l.header != nil && bytes.Equal(rec, l.header) {
		return errHeaderLine.New(nil, "read a row of CSV: it is the header again, with %d columns", len(l.columns))
	}
	if err := c.cut(rec, l); err != nil {
		return err
	}
	count := len(c.cells.list)
	if count != len(l.columns) {
		if !c.config.Ragged {
			return errColumns.New(nil, "read a row of CSV, %d bytes: it has %d cells, there are %d columns", len(rec), count, len(l.columns))
		}
		if count > len(l.columns)+len(l.extra) {
			c.grow(l, count)
		}
	}
	c.fields.begin(d)
	c.w.begin()
	for i := range count {
		v, col := c.cells.at(i), l.column(i)
		if len(v) == 0 && c.config.SkipEmpty {
			continue
		}
		c.w.add(col, v)
		if col.slot >= 0 {
			if c.cells.list[i].doubled {
				c.kept[col.slot] = append(c.kept[col.slot][:0], v...)
				v = c.kept[col.slot]
			}
			c.fields.set(col.slot, v)
		}
	}
	if c.config.Fields.KeepRaw {
		c.w.raw(rec)
	}
	d.Body = c.w.end()
	d.Odd |= c.w.odd()
	c.fields.finish(d)
	return nil
}

// cut cuts a row with the delimiter of the layout, or with that which gives as
// many cells as there are columns.
func (c *csvDecoder) cut(rec []byte, l *csvLayout) error {
	if c.cells.comma = l.comma; l.comma == 0 {
		c.cells.comma = sniffComma(rec)
	}
	why, at := c.cells.cut(rec)
	if l.comma == 0 && (why != "" || len(c.cells.list) != len(l.columns)) {
		for i := range len(commas) {
			other := cells{comma: commas[i], list: c.cells.list, scratch: c.cells.scratch}
			if w, _ := other.cut(rec); w == "" && len(other.list) == len(l.columns) {
				c.cells = other
				return nil
			}
		}
		why, at = c.cells.cut(rec)
	}
	if why != "" {
		return errLine.New(nil, "read a row of CSV, %d bytes: %s, at byte %d", len(rec), why, at)
	}
	return nil
}

// isCSV goes by the name of the object, where no other format takes it for its own.
func isCSV(key string, head []byte) bool {
	return hasExtension(key, ".csv", ".tsv") && !isJSON(head) && isText(head) && !claimed(key, head)
}

// hasExtension tells whether the name of an object ends in one of some extensions,
// that of a compression aside.
func hasExtension(key string, extensions ...string) bool {
	name := strings.ToLower(key[strings.LastIndexByte(key, '/')+1:])
	for _, packed := range []string{".gz", ".zst", ".bz2"} {
		name = strings.TrimSuffix(name, packed)
	}
	for _, e := range extensions {
		if strings.HasSuffix(name, e) {
			return true
		}
	}
	return false
}

// weak are the formats whose marks are so common that they yield to all others.
var weak = map[string]bool{"csv": true, "lines": true, "syslog": true}

// claimed tells whether a format that is not weak takes the object for its own.
func claimed(key string, head []byte) bool {
	for name, sh := range shapes {
		if !weak[name] && sh.sniff != nil && sh.sniff(key, head) {
			return true
		}
	}
	return false
}
