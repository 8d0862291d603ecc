package tag

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// placeholders are all that a template may have. Source: features DEV-25.
var placeholders = [...]string{"event_type", "account_id", "region_id", "format_version", "environment", "service_name"}

// placed are those that stand behind the table: they differ from event to event, or
// from one installation to the next.
var placed = []string{"account_id", "region_id", "format_version", "environment"}

// template is a form of tags, level by level.
type template []level

// level is the parts between two dots.
type level []part

// part is a text, or a placeholder where name is not "".
type part struct{ text, name string }

// Bounds of a template.
const (
	maxTemplate = 512 // bytes
	maxWord     = 64  // bytes of a value
)

// parse reads a template.
func parse(s string) (template, error) {
	if len(s) > maxTemplate {
		return nil, fmt.Errorf("it has more than %d characters", maxTemplate)
	}
	var t template
	for _, text := range strings.Split(s, ".") {
		l, err := parseLevel(text)
		if err != nil {
			return nil, err
		}
		t = append(t, l)
	}
	return t, nil
}

func parseLevel(s string) (level, error) {
	if s == "" {
		return nil, errors.New("a level between two dots is empty")
	}
	var l level
	for s != "" {
		open := strings.IndexByte(s, '{')
		if open < 0 {
			open = len(s)
		}
		for i := range open {
			if !literal(s[i]) {
				return nil, fmt.Errorf("%q is not allowed in a tag", s[i])
			}
		}
		if open > 0 {
			l = append(l, part{text: s[:open]})
		}
		if s = s[open:]; s == "" {
			break
		}
		name, rest, closed := strings.Cut(s[1:], "}")
		if !closed {
			return nil, errors.New("a placeholder is not closed")
		}
		if !slices.Contains(placeholders[:], name) {
			return nil, fmt.Errorf("there is no placeholder {%s}", name)
		}
		l, s = append(l, part{name: name}), rest
	}
	return l, nil
}

// literal tells whether c may stand in a tag.
func literal(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

// compile makes a template that was checked, with the name of the service in it;
// nil for "".
func compile(s, service string) template {
	if s == "" {
		return nil
	}
	t, err := parse(s)
	if err != nil {
		panic("tag: a template was not validated: " + err.Error())
	}
	for _, l := range t {
		for i, p := range l {
			if p.name == "service_name" {
				l[i] = part{text: string(appendWord(nil, service))}
			}
		}
	}
	return t
}

// count tells how often a placeholder is there.
func (t template) count(name string) int {
	n := 0
	for _, l := range t {
		for _, p := range l {
			if p.name == name {
				n++
			}
		}
	}
	return n
}

// place tells whether l is no level of the table.
func (l level) place() bool {
	return slices.ContainsFunc(l, func(p part) bool { return slices.Contains(placed, p.name) })
}

// hasTable tells whether there is a level of the table.
func (t template) hasTable() bool {
	return slices.ContainsFunc(t, func(l level) bool { return !l.place() })
}

// hides tells whether a placeholder stands in a level that is not of the table.
func (t template) hides(name string) bool {
	return slices.ContainsFunc(t, func(l level) bool { return l.place() && template{l}.count(name) > 0 })
}

// table returns the table of an event type's word.
func (t template) table(word string) string {
	var b []byte
	for _, l := range t {
		if l.place() {
			continue
		}
		if len(b) > 0 {
			b = append(b, '.')
		}
		for _, p := range l {
			b = append(b, p.text...)
			if p.name == "event_type" {
				b = appendWord(b, word)
			}
		}
	}
	return string(b)
}

// around returns what stands before and behind the event type in tables; has tells
// whether there is one.
func (t template) around() (before, after string, has bool) {
	const mark = "\x00"
	if t.count("event_type") == 0 {
		return t.table(""), "", false
	}
	marked := make(template, len(t))
	for i, l := range t {
		marked[i] = slices.Clone(l)
		for j, p := range l {
			if p.name == "event_type" {
				marked[i][j] = part{text: mark}
			}
		}
	}
	return strings.Cut(marked.table(""), mark)
}

// appendTag appends the whole tag. A level of nothing but a missing environment is
// left out.
func (t template) appendTag(dst []byte, word, environment string, e Event) []byte {
	start := len(dst)
	for _, l := range t {
		if environment == "" && len(l) == 1 && l[0].name == "environment" {
			continue
		}
		if len(dst) > start {
			dst = append(dst, '.')
		}
		for _, p := range l {
			switch p.name {
			case "":
				dst = append(dst, p.text...)
			case "event_type":
				dst = appendWord(dst, word)
			case "account_id":
				dst = appendWord(dst, e.Account)
			case "region_id":
				dst = appendWord(dst, e.Region)
			case "format_version":
				dst = appendWord(dst, e.version())
			case "environment":
				dst = append(dst, environment...)
			}
		}
	}
	return dst
}

// appendWord appends v as one level: small letters, digits, - and _, anything else
// as _, at most 64 bytes; "unknown" for nothing. Source: features DEV-26.
func appendWord(dst []byte, v string) []byte {
	if v == "" {
		return append(dst, unknown...)
	}
	for i := range min(len(v), maxWord) {
		c := v[i]
		switch {
		case !literal(c):
			c = '_'
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		}
		dst = append(dst, c)
	}
	return dst
}
