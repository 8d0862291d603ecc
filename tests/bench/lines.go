package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"github.com/penstock/penstock/messages"
)

// This file is what the floor knows of rows of text: how the line that penstock delivers
// of one looks, byte by byte. It is as plain as generated rows allow: nothing in them has
// to be escaped, none is cut, and no header changes in the middle of an object.

// Layout is how the rows of a set become lines.
type Layout struct {
	// Type of the events.
	Type string
	// Columns are their names as penstock has them, with spaces between them; a number is
	// marked by #. Separator stands between cells, in quotes when Quoted.
	Columns   string
	Separator byte
	Quoted    bool
	// Encoded values are percent-encoded, and stand in the document both ways.
	Encoded bool
	// Kind begins the ids that are made of column ID; "" makes them of the object and the
	// ordinal of the row.
	Kind string
	ID   int
	// Account is the column of the account, -1 for none: then it is that of the queue.
	Account int
	// Region is the part of the key that tells it, counted from 0; -1 for none: then it is
	// that of the queue.
	Region int
	// Time appends the time of a row.
	Time func(dst []byte, cells [][]byte) []byte
}

// lineMaker makes lines. Not for concurrent use.
type lineMaker struct {
	*Layout
	texts, numbers [][]byte // what begins each column, as the one and as the other
	between        []byte   // cells
	cells          [][]byte
	begins         []byte // of all lines, behind the id
	account        []byte // what stands behind the time of all lines
	region         string
	ends           []byte // what stands behind the account of all lines of this object
	stem           messages.Stem
	ordinal        uint64
	encoded        []int
	decoded        []byte
}

// source is how penstock's source is called.
const source = "bench-0"

// newLineMaker makes the lines of what a queue of an account and region announces.
func newLineMaker(l *Layout, account, region string) *lineMaker {
	r := &lineMaker{
		Layout: l, region: region, between: []byte{l.Separator},
		begins: []byte(`","type":"` + l.Type + `","time":"`), account: []byte(`,"source":"` + source + `","account":"`),
	}
	if l.Account < 0 {
		r.account = append(r.account, account...)
	}
	if l.Quoted {
		r.between = []byte{'"', l.Separator, '"'}
	}
	for name := range strings.FieldsSeq(l.Columns) {
		name, number := strings.CutSuffix(name, "#")
		r.texts = append(r.texts, []byte(`"`+name+`":"`))
		if number {
			r.numbers = append(r.numbers, []byte(`"`+name+`":`))
		} else {
			r.numbers = append(r.numbers, nil)
		}
	}
	return r
}

// begin begins an object.
func (r *lineMaker) begin(bucket, key, etag string) {
	region := r.region
	if r.Region >= 0 {
		region = strings.Split(key, "/")[r.Region]
	}
	r.ends = []byte(`","region":"` + region + `","event":{`)
	r.ordinal = 0
	if r.Kind == "" {
		r.stem.Reset([]byte(bucket), []byte(key), []byte(strings.Trim(etag, `"`)))
	} else {
		r.stem.Reset([]byte(r.Kind))
	}
}

// line appends the line of a row.
func (r *lineMaker) line(dst, row []byte) []byte {
	if r.Quoted {
		row = row[1 : len(row)-1]
	}
	r.cells = r.cells[:0]
	for range len(r.texts) - 1 {
		end := bytes.Index(row, r.between)
		r.cells = append(r.cells, row[:end])
		row = row[end+len(r.between):]
	}
	r.cells = append(r.cells, row)

	var id messages.ID
	if r.Kind == "" {
		var ordinal [8]byte
		binary.BigEndian.PutUint64(ordinal[:], r.ordinal)
		id = r.stem.ID(ordinal[:])
		r.ordinal++
	} else {
		id = r.stem.ID(r.cells[r.ID])
	}
	dst = hex.AppendEncode(append(dst, `{"id":"`...), id[:])
	dst = r.Time(append(dst, r.begins...), r.cells)
	dst = append(dst, r.account...)
	if r.Account >= 0 {
		dst = append(dst, r.cells[r.Account]...)
	}
	dst = r.document(append(dst, r.ends...))
	return append(dst, '}', '\n')
}

// document appends a JSON object of the cells, behind its brace, without those that are
// empty or "-".
func (r *lineMaker) document(dst []byte) []byte {
	r.encoded = r.encoded[:0]
	for i, cell := range r.cells {
		switch {
		case len(cell) == 0, len(cell) == 1 && cell[0] == '-':
			continue
		case r.numbers[i] != nil:
			dst = append(append(append(dst, r.numbers[i]...), cell...), ',')
			continue
		case r.Encoded && bytes.IndexByte(cell, '%') >= 0:
			r.encoded = append(r.encoded, i)
			cell = r.decode(cell)
		}
		dst = append(append(append(dst, r.texts[i]...), cell...), '"', ',')
	}
	if len(r.encoded) > 0 {
		dst = append(dst, `"encoded":{`...)
		for _, i := range r.encoded {
			dst = append(append(append(dst, r.texts[i]...), r.cells[i]...), '"', ',')
		}
		dst[len(dst)-1] = '}'
		dst = append(dst, ',')
	}
	dst[len(dst)-1] = '}'
	return dst
}

// decode undoes percent-encoding.
func (r *lineMaker) decode(cell []byte) []byte {
	r.decoded = r.decoded[:0]
	for {
		at := bytes.IndexByte(cell, '%')
		if at < 0 {
			r.decoded = append(r.decoded, cell...)
			return r.decoded
		}
		c, _ := strconv.ParseUint(string(cell[at+1:at+3]), 16, 8)
		r.decoded = append(append(r.decoded, cell[:at]...), byte(c))
		cell = cell[at+3:]
	}
}

// seconds reads a time in a column, in seconds since 1970.
func seconds(column int) func(dst []byte, cells [][]byte) []byte {
	return func(dst []byte, cells [][]byte) []byte {
		n := int64(0)
		for _, c := range cells[column] {
			n = n*10 + int64(c-'0')
		}
		return append(time.Unix(n, 0).UTC().AppendFormat(dst, time.RFC3339), '"')
	}
}

// dateAndTime takes the first two columns for date and time.
func dateAndTime(dst []byte, cells [][]byte) []byte {
	return append(append(append(append(dst, cells[0]...), 'T'), cells[1]...), 'Z', '"')
}

// zoneless takes the first column for date and time, with a space between them.
func zoneless(dst []byte, cells [][]byte) []byte {
	c := cells[0]
	return append(append(append(append(dst, c[:len("2006-01-02")]...), 'T'), c[len("2006-01-02 "):]...), 'Z', '"')
}
