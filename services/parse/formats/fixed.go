package formats

import (
	"bytes"

	"github.com/penstock/penstock/services/internal/framing"
)

// This file reads lines whose fields are known by their place, since the files have
// no header: those of S3 and of load balancers. The lists of fields grow at the end.

// fixedLayout is one kind of line.
type fixedLayout struct {
	what    string // for errors, e.g. "an S3 access log line"
	event   string // the event type
	columns []column
	// least is how many fields the oldest lines have.
	least int
	// bare: quotes and brackets mean nothing.
	bare bool
	// parseTime reads the value of the column with slot 0.
	parseTime func([]byte) (int64, bool)
}

// The slots of the values that are read from a record.
const (
	fixedTime = iota
	fixedRegion
	fixedSlots
)

// fixedField describes a field of a layout.
type fixedField struct {
	name string
	sort fixedSort
}

// fixedSort is what the values of a field are. A number that is none shows that the
// line is not of the layout.
type fixedSort uint8

const (
	word fixedSort = iota
	amount
	when
	where
)

// newFixed makes a layout.
func newFixed(what, event string, least int, parseTime func([]byte) (int64, bool), fields []fixedField) *fixedLayout {
	l := &fixedLayout{what: what, event: event, least: least, parseTime: parseTime}
	for _, f := range fields {
		c := column{name: f.name, key: newKey(f.name), slot: -1, numeric: f.sort == amount}
		switch f.sort {
		case when:
			c.slot = fixedTime
		case where:
			c.slot = fixedRegion
		case word, amount:
		}
		l.columns = append(l.columns, c)
	}
	return l
}

// fixed decodes lines of fixed layouts. Not for concurrent use.
//
//   - document: a field per column; "-" leaves its field out. What comes behind the
//     columns that we know is column_<n>, counted from 1; a line with very many of
//     them is refused.
//   - id: none of its own: one request can make several records.
//
// A field stands in double quotes or brackets, or ends at the next space. Quotes
// within quotes come with a backslash; pairs without one are taken as part of the
// field where that is the only way to read the line.
type fixed struct {
	keepRaw bool
	// layout chooses by the line.
	layout func(line []byte) *fixedLayout
	w      fieldWriter
	found  [fixedSlots][]byte
	// extra are the columns behind those of extraOf.
	extra   []column
	extraOf *fixedLayout
	region  names
	news    []News
}

// Decode implements Decoder.
func (f *fixed) Decode(rec []byte, d *Doc) error {
	line := bytes.TrimRight(rec, " \r")
	l := f.layout(line)
	*d = Doc{Type: l.event, Made: true}
	f.w.begin()
	f.found, f.news = [fixedSlots][]byte{}, f.news[:0]
	n := 0
	for rest := line; len(rest) > 0; n++ {
		var value []byte
		if l.bare {
			end := nextSpace(rest, 0)
			value, rest = rest[:end], behind(rest, end)
		} else {
			var ok bool
			if value, rest, ok = nextToken(rest); !ok {
				return errLine.New(nil, "read %s of %d bytes: the quotes or brackets of field %d do not match", l.what, len(rec), n+1)
			}
		}
		if n == len(l.columns)+maxExtra { // the end of each field may be looked for up to the end of the line
			return errColumns.New(nil, "read %s of %d bytes: it has more than %d fields", l.what, len(rec), n)
		}
		c := f.column(l, n)
		if isDash(value) {
			continue
		}
		if c.numeric && !isNumber(value) {
			return errLine.New(nil, "read %s of %d bytes: field %d, %s, is no number", l.what, len(rec), n+1, c.name)
		}
		f.w.add(c, value)
		if c.slot >= 0 {
			f.found[c.slot] = value
		}
		if c.unknown && len(f.news) < maxNews {
			f.news = append(f.news, News{NewsColumn, c.name})
		}
	}
	if n < l.least {
		return errColumns.New(nil, "read %s of %d fields: there are at least %d", l.what, n, l.least)
	}
	if f.keepRaw {
		f.w.raw(rec)
	}
	d.Body = f.w.end()
	d.Odd |= f.w.odd()
	d.New = f.news
	if text := f.found[fixedTime]; len(text) == 0 {
		d.Odd |= NoTime
	} else if d.Time, d.HasTime = l.parseTime(text); !d.HasTime {
		d.Odd |= BadTime
	}
	d.Region = f.region.of(f.found[fixedRegion])
	return nil
}

// column returns the column of field n.
func (f *fixed) column(l *fixedLayout, n int) *column {
	if n < len(l.columns) {
		return &l.columns[n]
	}
	if f.extraOf != l {
		f.extraOf, f.extra = l, f.extra[:0]
	}
	for i := len(l.columns) + len(f.extra); i <= n; i++ {
		f.extra = append(f.extra, extraColumn(i))
	}
	return &f.extra[n-len(l.columns)]
}

// extraColumn is a column that we do not know.
func extraColumn(index int) column {
	name := columnName(index)
	return column{name: name, key: newKey(name), slot: -1, unknown: true}
}

// maxExtra is how many columns that we do not know a line may have, far more than
// any log has got at a time.
const maxExtra = 64

// nextToken cuts the first field off a line: "…", […] or up to the next space. ok is
// false when its end is missing.
func nextToken(line []byte) (value, rest []byte, ok bool) {
	switch line[0] {
	case '"':
		end := closing(line)
		if end < 0 {
			return nil, nil, false
		}
		return line[1:end], behind(line, end+1), true
	case '[':
		end := bytes.IndexByte(line, ']')
		if end < 0 {
			return nil, nil, false
		}
		if end+1 == len(line) || line[end+1] == ' ' {
			return line[1:end], behind(line, end+1), true
		}
	}
	end := nextSpace(line, 0)
	return line[:end], behind(line, end), bytes.IndexByte(line[:end], '"') < 0
}

// behind is line from i on, without the space that is there.
func behind(line []byte, i int) []byte {
	if i < len(line) {
		i++
	}
	return line[i:]
}

// closing returns the index of the quote that ends the field whose quote begins
// line, -1 for none. Such a quote has a space or the end behind it, no backslash
// before it unless there is no other, and leaves quotes in pairs on both sides.
func closing(line []byte) int {
	escaped, inner := -1, 0
	for i := 1; ; i++ {
		n := bytes.IndexByte(line[i:], '"')
		if n < 0 {
			return escaped
		}
		i += n
		slashes := 0
		for line[i-1-slashes] == '\\' {
			slashes++
		}
		ends := i+1 == len(line) || line[i+1] == ' ' && !stray(line[i+2:])
		switch {
		case slashes%2 == 1:
			if ends && escaped < 0 && inner%2 == 0 {
				escaped = i
			}
			continue
		case ends && inner%2 == 0:
			return i
		}
		inner++
	}
}

// stray tells whether the first field of line has a quote where none should be.
func stray(line []byte) bool {
	return len(line) > 0 && line[0] != '"' && bytes.IndexByte(line[:nextSpace(line, 0)], '"') >= 0
}

// lines is the framing of plain lines.
var lines = framing.Framing{Kind: framing.Lines}
