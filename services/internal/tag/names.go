package tag

import (
	"regexp"
	"strings"
)

// Names gives the events of one format of a source their tables. Methods may be
// called concurrently.
type Names struct {
	base   string
	single string
	form   template // nil for the format's own tables
	// How the word is found where auto_event_type asks for it.
	field    []string
	regex    *regexp.Regexp
	files    []filePattern
	fallback string

	mapping map[string]mapped
}

type filePattern struct {
	word  string
	regex *regexp.Regexp
}

type mapped struct {
	form   template
	format string
}

// unknown is the event type of what has none, and the value of an empty level.
const unknown = "unknown"

// NewNames makes the names for a format. base is what the format's event types begin
// with; table is the one that they have without auto_event_type, "" where they are
// always told apart. service is the name of the source. c must be valid.
func NewNames(c Config, service, base, table string) *Names {
	n := &Names{base: base, form: compile(c.form(), service), fallback: c.EventTypeDefault}
	if n.fallback == "" {
		n.fallback = unknown
	}
	for name, m := range c.EventTypeProcessorMapping {
		if n.mapping == nil {
			n.mapping = map[string]mapped{}
		}
		n.mapping[name] = mapped{compile(m.Tagging, service), m.Format}
	}
	switch {
	case c.AutoEventType:
		n.field = path(c.EventTypeSourceFieldName)
		if c.EventTypeExtractingRegex != "" {
			n.regex = regexp.MustCompile(c.EventTypeExtractingRegex)
		}
		for _, f := range c.EventTypeFileRegexPatterns {
			n.files = append(n.files, filePattern{f.EventType, regexp.MustCompile(f.Regex)})
		}
	case c.EventTypeDefault != "":
		n.single = c.EventTypeDefault
	case table != "":
		n.single = strings.TrimPrefix(table, base+".")
	}
	return n
}

// Single is the word of all event types, "" where they are told apart.
func (n *Names) Single() string { return n.single }

// Own tells whether the format's own event types are the tables.
func (n *Names) Own() bool {
	return n.single == "" && n.form == nil && n.field == nil && n.files == nil && n.mapping == nil
}

// Field is the path of the field that tells the word, nil for none.
func (n *Names) Field() []string { return n.field }

// FromField returns the word in the value of that field. It is no word yet, see
// AppendTable.
func (n *Names) FromField(value string) string {
	if n.regex != nil {
		groups := n.regex.FindStringSubmatch(value)
		if groups == nil {
			return n.fallback
		}
		value = groups[1]
	}
	if value == "" {
		return n.fallback
	}
	return value
}

// FromKey returns the word for the objects of key, "" where no rule goes by keys.
func (n *Names) FromKey(key string) string {
	for _, f := range n.files {
		if f.regex.MatchString(key) {
			return f.word
		}
	}
	if n.files != nil {
		return n.fallback
	}
	return ""
}

// Word returns the word of an event type that the format has made.
func (n *Names) Word(eventType string) string {
	return strings.TrimPrefix(strings.TrimPrefix(eventType, n.base), ".")
}

// Table returns the table for a word: letters become small, and what is neither
// letter nor digit, - nor _ becomes _. The dots of words of the format stay where
// the format's own tables are used.
func (n *Names) Table(word string) string {
	form := n.form
	if n.mapping != nil {
		if m, ok := n.mapping[string(appendWord(nil, word))]; ok && m.form != nil {
			form = m.form
		}
	}
	switch {
	case form != nil && word == "":
		return form.table(n.fallback)
	case form != nil:
		return form.table(word)
	case word == "" && n.base != "": // a format with one event type
		return n.base
	}
	table := []byte(n.base)
	for level := range strings.SplitSeq(word, ".") {
		if len(table) > 0 {
			table = append(table, '.')
		}
		table = appendWord(table, level)
	}
	return string(table)
}

// Format returns the format that reads events of a word, "" for the source's own.
func (n *Names) Format(word string) string {
	if n.mapping == nil {
		return ""
	}
	return n.mapping[string(appendWord(nil, word))].format
}

// Formats are all that Format can return, in no order.
func (n *Names) Formats() []string {
	var all []string
	for _, m := range n.mapping {
		if m.format != "" {
			all = append(all, m.format)
		}
	}
	return all
}

// path cuts a path at its dots; nil for "".
func path(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ".")
}
