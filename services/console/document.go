package console

import (
	"bytes"
	"fmt"
	"html/template"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of what is shown of one document.
const (
	mostDocument = 256 << 10 // bytes of the document; the rest is in the download
	mostIndent   = 24        // levels; deeper ones are not moved in any more
)

// pretty lays a JSON document out, with a class for each kind of token, and tells whether
// it was cut. What is no JSON comes out as the text that it is. All that comes from the
// document passes writeText.
func pretty(doc []byte) (page template.HTML, cut bool) {
	if len(doc) > mostDocument {
		doc, cut = doc[:mostDocument], true
	}
	var b strings.Builder
	b.Grow(2 * len(doc))
	depth := 0
	line := func() {
		b.WriteByte('\n')
		b.WriteString(strings.Repeat("  ", min(depth, mostIndent)))
	}
	for i := 0; i < len(doc); {
		c := doc[i]
		switch c {
		case ' ', '\t', '\r', '\n':
			i++
		case '{', '[':
			b.WriteByte(c)
			i = skipSpace(doc, i+1)
			if i < len(doc) && (doc[i] == '}' || doc[i] == ']') {
				b.WriteByte(doc[i])
				i++
				continue
			}
			depth++
			line()
		case '}', ']':
			depth = max(0, depth-1)
			line()
			b.WriteByte(c)
			i++
		case ',':
			b.WriteByte(c)
			line()
			i++
		case ':':
			b.WriteString(": ")
			i++
		default:
			end := tokenEnd(doc, i)
			class := "num"
			switch next := skipSpace(doc, end); {
			case c == '"' && next < len(doc) && doc[next] == ':':
				class = "key"
			case c == '"':
				class = "str"
			case c == 't' || c == 'f' || c == 'n':
				class = "lit"
			}
			b.WriteString(`<span class="j-` + class + `">`)
			writeText(&b, doc[i:end])
			b.WriteString(`</span>`)
			i = end
		}
	}
	return template.HTML(b.String()), cut //nolint:gosec // of our own tags and what writeText has escaped
}

func skipSpace(doc []byte, i int) int {
	for i < len(doc) && (doc[i] == ' ' || doc[i] == '\t' || doc[i] == '\r' || doc[i] == '\n') {
		i++
	}
	return i
}

// tokenEnd is the end of a string, a number or a word that begins at i.
func tokenEnd(doc []byte, i int) int {
	if doc[i] != '"' {
		if n := bytes.IndexAny(doc[i+1:], " \t\r\n{}[],:\""); n >= 0 {
			return i + 1 + n
		}
		return len(doc)
	}
	for i++; i < len(doc); i++ {
		switch doc[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(doc)
}

// writeText writes text for HTML: escaped, and with what cannot be seen made visible.
func writeText(b *strings.Builder, text []byte) {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == '<':
			b.WriteString("&lt;")
		case r == '>':
			b.WriteString("&gt;")
		case r == '&':
			b.WriteString("&amp;")
		case r == '"':
			b.WriteString("&#34;")
		case r == '\'':
			b.WriteString("&#39;")
		case hidden(r) && r != '\n' && r != '\t':
			b.WriteString(escaped(r))
		default:
			b.WriteRune(r)
		}
		text = text[size:]
	}
}

// hidden tells whether a character shows nothing, or changes how others are shown: a
// control character, one that turns the direction of writing, one without width.
func hidden(r rune) bool { return r != ' ' && !unicode.IsPrint(r) }

func escaped(r rune) string {
	if r > 0xFFFF {
		return fmt.Sprintf(`\U%08x`, r)
	}
	return fmt.Sprintf(`\u%04x`, r)
}

// legible is text of a stranger for one line of a page: what is hidden in it is made
// visible, and what is longer than most bytes is cut. HTML is left to the template.
func legible(text string, most int) string {
	cut := len(text) > most
	if cut {
		text = text[:most]
		for i := 0; i < utf8.UTFMax && text != "" && !utf8.ValidString(text[max(0, len(text)-utf8.UTFMax):]); i++ {
			text = text[:len(text)-1] // a character that was cut in two
		}
	}
	clean := func(r rune) bool { return hidden(r) }
	if strings.IndexFunc(text, clean) >= 0 {
		var b strings.Builder
		for _, r := range text {
			switch {
			case r == '\n' || r == '\t' || r == '\r':
				b.WriteByte(' ')
			case hidden(r):
				b.WriteString(escaped(r))
			default:
				b.WriteRune(r)
			}
		}
		text = b.String()
	}
	if cut {
		text += "…"
	}
	return text
}

// glimpse is a part of a document for a line of a list: around what was searched for, or
// what its first fields are.
type glimpse struct{ Before, Match, After string }

// width of a glimpse, in bytes.
const width = 180

// firstFields are the fields of an object that hold a text, a number or a word, as many as
// fit; "" for what is no object or has none. Objects and lists in it are passed over, and
// so are times and versions, which tell events apart the least.
func firstFields(doc []byte) string {
	doc = doc[:min(len(doc), 16<<10)]
	i := skipSpace(doc, 0)
	if i >= len(doc) || doc[i] != '{' {
		return ""
	}
	var out []byte
	var key []byte
	depth := 0
	for i++; i < len(doc) && len(out) < width; {
		switch c := doc[i]; c {
		case '{', '[':
			depth++
			i++
		case '}', ']':
			depth--
			i++
		case ' ', '\t', '\r', '\n', ',', ':':
			i++
		default:
			end := tokenEnd(doc, i)
			next := skipSpace(doc, end)
			text := bytes.Trim(doc[i:end], `"`)
			switch {
			case depth > 0:
			case depth < 0:
				return legible(string(out), width)
			case c == '"' && next < len(doc) && doc[next] == ':':
				key = text
			case dull(key):
			case len(key) > 0 && len(text) > 0 && !bytes.Equal(text, []byte("null")):
				if len(out) > 0 {
					out = append(out, " · "...)
				}
				out = append(append(append(out, key...), ": "...), text[:min(len(text), 80)]...)
				key = nil
			}
			i = end
		}
	}
	return legible(string(out), width)
}

// dull tells whether a field says little about an event.
func dull(key []byte) bool {
	return indexFold(key, []byte("version")) >= 0 || indexFold(key, []byte("time")) >= 0
}

func glimpseOf(doc []byte, text string) glimpse {
	at := -1
	if text != "" {
		at = indexFold(doc[:min(len(doc), mostDocument)], []byte(text))
	}
	if at < 0 {
		if fields := firstFields(doc); fields != "" {
			return glimpse{Before: fields}
		}
		return glimpse{Before: legible(string(doc[:min(len(doc), width+4)]), width)}
	}
	from := max(0, at-width/3)
	for from > 0 && from < at && !utf8.RuneStart(doc[from]) {
		from++
	}
	end := min(len(doc), at+len(text))
	g := glimpse{
		Before: legible(string(doc[from:at]), width), Match: legible(string(doc[at:end]), width),
		After: legible(string(doc[end:min(len(doc), end+width+4)]), width),
	}
	if from > 0 {
		g.Before = "…" + g.Before
	}
	return g
}

// indexFold finds text whatever the case of its ASCII letters; -1 when it is not there.
func indexFold(doc, text []byte) int {
	for i := 0; i+len(text) <= len(doc); i++ {
		if lower(doc[i]) == lower(text[0]) && bytes.EqualFold(doc[i:i+len(text)], text) {
			return i
		}
	}
	return -1
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}
