package formats

import (
	"bytes"
	"strings"
	"time"
)

// cells cuts rows of CSV. Not for concurrent use.
//
// A cell may stand in double quotes, with spaces before and behind them, and then
// holds anything; a double quote in it is written twice. Other cells are taken as
// they stand, spaces and all.
//
// Source: RFC 4180; formats F-18 for the spaces.
type cells struct {
	comma   byte
	row     []byte
	list    []cell
	scratch []byte
}

// cell is row[start:end], without its quotes; doubled when quotes in it are.
type cell struct {
	start, end int
	doubled    bool
}

// cut reads row. When why is not "", it says what is wrong at byte at.
func (c *cells) cut(row []byte) (why string, at int) {
	c.row, c.list = row, c.list[:0]
	for i := 0; ; i++ {
		start := i
		for i < len(row) && row[i] == ' ' && c.comma != ' ' {
			i++
		}
		var one cell
		if i < len(row) && row[i] == '"' {
			one.start = i + 1
			for i++; ; i++ {
				n := bytes.IndexByte(row[i:], '"')
				if n < 0 {
					return "a double quote is not closed", one.start - 1
				}
				if i += n + 1; i == len(row) || row[i] != '"' {
					break
				}
				one.doubled = true
			}
			one.end = i - 1
			for i < len(row) && row[i] == ' ' && c.comma != ' ' {
				i++
			}
			if i < len(row) && row[i] != c.comma {
				return "text follows the quote that closes a cell", i
			}
		} else {
			n := bytes.IndexByte(row[i:], c.comma)
			if i += n; n < 0 {
				i = len(row)
			}
			one.start, one.end = start, i
		}
		if len(c.list) == maxColumns {
			return "there are more cells than any header names", i
		}
		if c.list = append(c.list, one); i == len(row) {
			return "", 0
		}
	}
}

// at returns the content of a cell, nil for one that is not there. It is valid
// until the next call for a cell with doubled quotes, and the next cut.
func (c *cells) at(i int) []byte {
	if i < 0 || i >= len(c.list) {
		return nil
	}
	one := &c.list[i]
	v := c.row[one.start:one.end]
	if !one.doubled {
		return v
	}
	c.scratch = c.scratch[:0]
	for {
		n := bytes.IndexByte(v, '"')
		if n < 0 {
			c.scratch = append(c.scratch, v...)
			return c.scratch
		}
		c.scratch = append(c.scratch, v[:n+1]...)
		v = v[n+2:]
	}
}

// texts returns all cells as strings.
func (c *cells) texts() []string {
	all := make([]string, len(c.list))
	for i := range all {
		all[i] = string(c.at(i))
	}
	return all
}

// commas are what may stand between cells when nobody says.
const commas = ",;\t|"

// sniffComma returns what most likely stands between the cells of a row: of what
// may, the one that comes most often outside of quotes; a comma when none does.
func sniffComma(row []byte) byte {
	var counts [len(commas)]int
	inQuotes := false
	for _, b := range row {
		if b == '"' {
			inQuotes = !inQuotes
			continue
		}
		if i := strings.IndexByte(commas, b); i >= 0 && !inQuotes {
			counts[i]++
		}
	}
	best := 0
	for i, n := range counts {
		if n > counts[best] {
			best = i
		}
	}
	return commas[best]
}

// firstRow returns the first row of head, and whether its end is in head.
func firstRow(head []byte) (row []byte, whole bool) {
	head = trimSpace(head)
	for from := 0; ; {
		n := bytes.IndexByte(head[from:], '\n')
		if n < 0 {
			return head, false
		}
		if from += n + 1; bytes.Count(head[:from], []byte{'"'})%2 == 0 {
			return bytes.TrimRight(head[:from], "\r\n"), true
		}
	}
}

// parseZoneless reads a time without a zone (2026-01-05 17:48:41, with T or a space
// and any fraction) as UTC, and one with a zone as it says.
func parseZoneless(b []byte) (ns int64, ok bool) {
	const size = len("2006-01-02T15:04:05")
	var zoned [size + 12]byte
	if len(b) < size || len(b) >= len(zoned) {
		return parseTime(b)
	}
	for _, c := range b[size:] {
		if c-'0' > 9 && c != '.' {
			return parseTime(b)
		}
	}
	n := copy(zoned[:], b)
	zoned[n] = 'Z'
	return parseTime(zoned[:n+1])
}

// inZone takes ns, which was read as UTC, for a local time in zone.
func inZone(ns int64, zone *time.Location) int64 {
	if zone == nil || zone == time.UTC {
		return ns
	}
	at := time.Unix(0, ns).UTC()
	return time.Date(at.Year(), at.Month(), at.Day(), at.Hour(), at.Minute(), at.Second(), at.Nanosecond(), zone).UnixNano()
}
