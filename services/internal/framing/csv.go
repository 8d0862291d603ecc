package framing

import (
	"bytes"
	"io"

	"github.com/penstock/penstock/messages/fault"
)

// ErrQuote is a row in which a double quote is never closed.
var ErrQuote = fault.Define("framing.bad_quote", fault.Reject,
	"look at the bytes in quarantine and mend the program that wrote them: a double quote within a quoted cell is written twice")

// maxRow bounds a row of several lines: a quote that nothing closes up to there is
// taken for one that was forgotten. Unit: bytes.
const maxRow = 1 << 20

// row reads a row of CSV: a line, and those behind it while a quoted cell is open.
//
// In a row of several lines all quotes must be right. Where one is wrong, or none
// closes the cell, the first line alone is bad, and the next row begins behind it:
// a forgotten quote costs its line and not the rest of the input. A line with an
// even number of quotes is a row, right or not: the decoder looks closer.
//
// Source: RFC 4180.
func (s *Splitter) row() ([]byte, error) {
	line, err := s.line()
	if err != nil || bytes.Count(line, []byte{'"'})%2 == 0 {
		return line, err
	}
	q := quotes{comma: s.f.Comma}
	q.run(line)
	if q.at != quoted {
		return line, nil // a quote within a cell that is not quoted
	}
	q.strict = true
	length, next := len(line), s.pos-s.start // next is behind the line feed
	limit := int(min(maxRow, s.lim.Record))
	for n := next; s.at != atEnd && !q.wrong && n < limit; {
		bound, _ := s.window(int64(limit))
		n += q.run(s.buf[s.start+n : bound])
		switch {
		case q.at == ended:
			s.pos = s.start + n + 1
			return bytes.TrimSuffix(s.buf[s.start:s.start+n:s.start+n], []byte{'\r'}), nil
		case q.wrong, n >= limit, s.more():
		case s.err != io.EOF:
			return nil, s.cut()
		case q.at == quoted:
			q.wrong = true
		default:
			s.at, s.pos = atEnd, s.end
			return s.buf[s.start:s.pos:s.pos], nil
		}
	}
	s.pos = s.start + next
	return nil, &Bad{
		Offset: s.off, Length: int64(length), Bytes: s.head(length),
		Kind: ErrQuote, Reason: "a double quote is not closed",
	}
}

// quotes follows the double quotes of a row, at any byte of which it may stop.
type quotes struct {
	comma  byte // between cells; 0 for any of , ; | and tab
	strict bool // run stops where a quote is wrong
	at     cell
	wrong  bool // something followed a closing quote; it was taken for a part of the cell
}

// cell is where in a cell quotes stands.
type cell uint8

const (
	fresh   cell = iota // before its first byte, spaces aside
	bare                // in a cell without quotes
	quoted              // between the quotes
	closing             // behind a quote that closes the cell, or is doubled
	closed              // behind spaces behind that
	ended               // at the line feed that ends the row
)

// run reads on and returns how many bytes it has read: all of b, or up to the
// line feed that ends the row, or to what makes a quote wrong.
func (q *quotes) run(b []byte) int {
	for i := 0; i < len(b); i++ {
		c := b[i]
		switch {
		case q.at == quoted:
			n := bytes.IndexByte(b[i:], '"')
			if n < 0 {
				return len(b)
			}
			i += n
			q.at = closing
		case c == '\n':
			q.at = ended
			return i
		case c == q.comma, q.comma == 0 && (c == ',' || c == ';' || c == '\t' || c == '|'):
			q.at = fresh
		case c == '"' && (q.at == fresh || q.at == closing):
			q.at = quoted
		case q.at == fresh && c != ' ':
			q.at = bare
		case q.at == closing && (c == ' ' || c == '\r'):
			q.at = closed
		case q.at >= closing && c != ' ' && c != '\r':
			if q.at, q.wrong = quoted, true; q.strict {
				return i
			}
			i-- // which may be a quote
		}
	}
	return len(b)
}
