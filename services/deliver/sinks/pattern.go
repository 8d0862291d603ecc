package sinks

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/penstock/penstock/services/internal/document"
)

// pattern is a text with placeholders, e.g. logs-{type}-{yyyy}.{MM}, for what is
// known of an event.
type pattern []patternPart

// patternPart is a text, or a placeholder where name is not "".
type patternPart struct{ text, name string }

// The placeholders. Those of dates are written as in the prefixes of S3 sources.
var (
	eventPlaceholders = []string{"type", "source", "format", "account", "region"}
	datePlaceholders  = []string{"yyyy", "MM", "dd", "HH"}
)

const maxPattern = 512 // bytes

// parsePattern reads a pattern with placeholders of the given names.
func parsePattern(s string, names ...string) (pattern, error) {
	if len(s) > maxPattern {
		return nil, fmt.Errorf("it has more than %d characters", maxPattern)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, errors.New("it is not one line of text")
	}
	var p pattern
	for s != "" {
		open := strings.IndexAny(s, "{}")
		if open < 0 {
			return append(p, patternPart{text: s}), nil
		}
		if open > 0 {
			p = append(p, patternPart{text: s[:open]})
		}
		name, rest, closed := strings.Cut(s[open+1:], "}")
		if s[open] == '}' || !closed {
			return nil, errors.New("a brace has no partner")
		}
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("there is no placeholder {%s}", name)
		}
		p, s = append(p, patternPart{name: name}), rest
	}
	return p, nil
}

// varies tells whether the pattern differs from event to event.
func (p pattern) varies() bool {
	return slices.ContainsFunc(p, func(part patternPart) bool { return part.name != "" })
}

// fixed puts text in the place of a placeholder.
func (p pattern) fixed(name, text string) pattern {
	out := slices.Clone(p)
	for i := range out {
		if out[i].name == name {
			out[i] = patternPart{text: text}
		}
	}
	return out
}

// text of a pattern without placeholders.
func (p pattern) String() string {
	var b strings.Builder
	for _, part := range p {
		b.WriteString(part.text)
	}
	return b.String()
}

// append adds the pattern filled in for e. What comes from the event goes through
// clean; at is the time that dates are of, in UTC.
func (p pattern) append(dst []byte, e *Event, at time.Time, clean func(dst []byte, value string) []byte) []byte {
	for i := range p {
		switch part := &p[i]; part.name {
		case "":
			dst = append(dst, part.text...)
		case "type":
			dst = clean(dst, e.Type)
		case "source":
			dst = clean(dst, e.Source)
		case "format":
			dst = clean(dst, e.Format)
		case "account":
			dst = clean(dst, e.Account)
		case "region":
			dst = clean(dst, e.Region)
		case "yyyy":
			dst = at.AppendFormat(dst, "2006")
		case "MM":
			dst = at.AppendFormat(dst, "01")
		case "dd":
			dst = at.AppendFormat(dst, "02")
		case "HH":
			dst = at.AppendFormat(dst, "15")
		}
	}
	return dst
}

// appendEscaped adds s as it stands between the quotes of a JSON string.
func appendEscaped(dst []byte, s string) []byte {
	n := len(dst)
	dst = document.AppendQuoted(dst, s)
	copy(dst[n:], dst[n+1:len(dst)-1])
	return dst[:len(dst)-2]
}

// plainByte tells which bytes stand in a JSON string as they are.
var plainByte = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= ' ' && c != '"' && c != '\\'
	}
	return t
}()

// appendQuotedDoc adds doc, which is valid UTF-8, as a JSON string.
func appendQuotedDoc(dst, doc []byte) []byte {
	const digits = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i, c := range doc {
		if plainByte[c] {
			continue
		}
		dst = append(dst, doc[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, `\n`...)
		case '\r':
			dst = append(dst, `\r`...)
		case '\t':
			dst = append(dst, `\t`...)
		default:
			dst = append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
	}
	return append(append(dst, doc[from:]...), '"')
}
