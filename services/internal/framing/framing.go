// Package framing cuts records out of a stream of bytes without decoding them.
//
//	bytes ──▶ framing ──▶ records (slices of the input) and spans that are none
//
// In:     any [io.Reader]; its length does not matter, memory is bounded by
// [Limits.Record].
// Out:    every record in order, byte for byte as it came, and a [*Bad] for each
// stretch that is not a record. Both tell their offset; together with the
// separators, headers and directives they cover the input.
// Errors: those of the reader, after all that was whole has come out.
// State:  one buffer, reused. A [Splitter] is not safe for concurrent use.
//
// JSON is checked for structure: strings, brackets, commas, colons, the grammar
// of numbers and literals. Escapes and UTF-8 are not looked at; the decoder of
// the format does that. Broken JSON costs the record it is in: the splitter goes
// on at the next plausible record and always makes progress.
//
// Source: RFC 8259 (JSON), RFC 7464 (RS as separator), formats F-0 and F-9.
package framing

import (
	"fmt"

	"github.com/penstock/penstock/messages/fault"
)

// Kind tells how records follow one another.
type Kind uint8

// The kinds. The zero Kind is Auto.
const (
	// Auto looks at the first bytes: '[' is a top-level array, '{' whose first
	// array stands under "Records" is that array, anything else is Values.
	Auto Kind = iota
	// Lines ends a record at each line feed. A carriage return before it is cut
	// off, empty lines are none.
	Lines
	// Values is JSON values one after the other: a line each (NDJSON), with
	// nothing between them, or pretty-printed over many lines.
	Values
	// Array is the elements of the array under Framing.Key of the top-level
	// object. Other keys are stepped over. Several top-level objects may follow
	// one another. A top-level array is taken as well.
	Array
	// CSV is lines in which a line feed between double quotes ends nothing. A quote
	// that is never closed costs the line it is in.
	CSV
)

func (k Kind) String() string {
	switch k {
	case Auto:
		return "auto"
	case Lines:
		return "lines"
	case Values:
		return "values"
	case Array:
		return "array"
	case CSV:
		return "csv"
	}
	return "unknown"
}

// Framing tells where the records are.
type Framing struct {
	Kind Kind
	// Key of the array in the top-level object, for Kind Array; "" means that
	// the top level is the array.
	Key string
	// Comma stands between the cells of a row, for Kind CSV; 0 means any of comma,
	// semicolon, tab and bar.
	Comma byte
	// Header tells which lines are no records. For Kinds Lines and CSV.
	Header Header
	// Explode is the path of an array within each value, its keys with dots
	// between them: a value whose array has several elements becomes a record per
	// element, each the whole value with only that element. "" for none.
	Explode string
}

// Header tells where the names of the columns stand.
type Header uint8

// The headers. What is a header or a directive is no record and no bad span.
const (
	// NoHeader: every line is a record.
	NoHeader Header = iota
	// FirstLine: the first line that is not empty is the header.
	FirstLine
	// Directives: lines that begin with # are directives. The last one that begins
	// with "#Fields:" is the header.
	Directives
)

// MaxHeader is the longest header line that is taken for one. Unit: bytes.
const MaxHeader = 64 << 10

// Limits bound what a hostile input can cost. Zero means the default.
type Limits struct {
	// Record is the largest record. Unit: bytes. Default: 16 MiB.
	Record int64
	// Keep is how much of a bad span is kept in Bad.Bytes. Unit: bytes.
	// Default: 1 MiB.
	Keep int64
	// Depth is how deep arrays and objects may nest, 1 to 512. Default: 512.
	Depth int
	// Grow is asked before the buffer grows beyond its first size; size is the
	// new one in bytes. It may wait. Its error ends the splitter.
	Grow func(size int) error
}

// The defaults of Limits.
const (
	DefaultRecord = 16 << 20
	DefaultKeep   = 1 << 20
	MaxDepth      = 512
)

func (l Limits) withDefaults() Limits {
	if l.Record <= 0 {
		l.Record = DefaultRecord
	}
	if l.Keep <= 0 {
		l.Keep = DefaultKeep
	}
	if l.Depth <= 0 || l.Depth > MaxDepth {
		l.Depth = MaxDepth
	}
	return l
}

// What can be wrong with a span.
var (
	// ErrSyntax: not JSON.
	ErrSyntax = fault.Define("framing.bad_json", fault.Reject,
		"look at the bytes in quarantine and mend the program that wrote them")
	// ErrTooLarge: a record above Limits.Record.
	ErrTooLarge = fault.Define("framing.record_too_large", fault.Reject,
		"raise the record limit of the source, or read the record from its object by offset and length")
	// ErrTooDeep: nested beyond Limits.Depth.
	ErrTooDeep = fault.Define("framing.too_deep", fault.Reject,
		"look at the bytes in quarantine: no known format nests this deep")
	// ErrTruncated: the input ended inside a record or before its array was closed.
	ErrTruncated = fault.Define("framing.truncated", fault.Reject,
		"have the object written again in full; redrive it then")
	// ErrHeader: a header line above MaxHeader.
	ErrHeader = fault.Define("framing.header_too_large", fault.Reject,
		"check the format of the source: the line that should name the columns is longer than any known one")
	// ErrNoArray: the top-level object ended without the array.
	ErrNoArray = fault.Define("framing.no_array", fault.Reject,
		"check the format of the source: the object does not have the array that this format keeps its records in")
)

// Bad is a stretch of the input that is not a record. It ends nothing: call Next
// again.
type Bad struct {
	// Offset of its first byte in the input.
	Offset int64
	// Length in bytes. 0 when something is missing, not wrong (ErrTruncated
	// between records).
	Length int64
	// Bytes of the span, a copy, cut to Limits.Keep; nil with ErrNoArray.
	Bytes []byte
	// Reason in words.
	Reason string
	// Kind is one of the Err variables of this package.
	Kind *fault.Kind
}

func (b *Bad) Error() string {
	return fmt.Sprintf("%s, %d bytes at offset %d (%s)", b.Reason, b.Length, b.Offset, b.Kind.Code)
}

// Unwrap lets errors.Is find the kind.
func (b *Bad) Unwrap() error { return b.Kind }
