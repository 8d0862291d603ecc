package formats

import (
	"regexp"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("lines", "Any text, a record a line; a pattern may take fields out of it.", shape{
		framing: func([]byte) framing.Framing { return framing.Framing{Kind: framing.Lines} },
		sniff:   isLines,
	}, func() LinesConfig { return LinesConfig{Fields: defaultFields(), Unmatched: Keep} }, openLines)
}

// LinesConfig configures the format lines.
type LinesConfig struct {
	// Pattern is a regular expression (RE2) whose named groups become fields, e.g.
	// ^(?P<time>\S+) (?P<host>\S+) (?P<text>.*)$. A group that took no part in the
	// match has no field. The line itself is the field message, unless a group has
	// that name.
	Pattern string `yaml:"pattern"`
	// Unmatched says what becomes of lines that the pattern does not match: keep
	// makes events of them that have the message only, refuse quarantines them.
	Unmatched Unmatched    `yaml:"unmatched"`
	Fields    FieldsConfig `yaml:",inline"`
}

// Unmatched says what becomes of a line that the pattern does not match.
type Unmatched string

// What becomes of it.
const (
	Keep   Unmatched = "keep"
	Refuse Unmatched = "refuse"
)

// Values lists what the configuration may hold.
func (Unmatched) Values() []string { return []string{string(Keep), string(Refuse)} }

// maxPattern bounds what a pattern may cost. Unit: bytes.
const maxPattern = 4 << 10

// Validate reports every problem, each with the key to change.
func (c LinesConfig) Validate() error {
	var p config.Problems
	p.In("", c.Fields.Validate())
	re, err := regexp.Compile(c.Pattern)
	switch {
	case len(c.Pattern) > maxPattern:
		p.Add("pattern", "it is longer than 4096 bytes", "write a shorter one")
	case err != nil:
		p.Add("pattern", err.Error(), "write a regular expression of RE2, e.g. ^(?P<time>\\S+) (?P<text>.*)$")
	case c.Pattern != "" && len(groupNames(re)) == 0:
		p.Add("pattern", "no group has a name", "name the groups that are to be fields, e.g. (?P<host>\\S+)")
	}
	return p.Err()
}

func groupNames(re *regexp.Regexp) (names []string) {
	for _, name := range re.SubexpNames() {
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

const messageField = "message"

func openLines(c LinesConfig, deps Deps) (Format, error) {
	var re *regexp.Regexp
	if c.Pattern != "" {
		var err error
		if re, err = regexp.Compile(c.Pattern); err != nil {
			return Format{}, errLine.New(err, "open the format lines: read its pattern")
		}
	}
	return Format{New: func() Decoder { return newLines(c, re, deps) }, Base: c.Fields.base("lines", deps), Grows: 3}, nil
}

// lineDecoder decodes lines of text.
//
//   - document: message, the line, and a field per named group of the pattern.
//   - id, time, type, account, region: as configured, of the fields.
//
// Only a pattern allocates, once for a line that it matches.
type lineDecoder struct {
	config  LinesConfig
	re      *regexp.Regexp
	fields  *fields
	groups  []lineGroup
	message column
	keep    bool // no group is called message
	w       fieldWriter
}

type lineGroup struct {
	column
	index int
}

func newLines(c LinesConfig, re *regexp.Regexp, deps Deps) *lineDecoder {
	l := &lineDecoder{config: c, re: re, fields: newFields("lines", c.Fields, deps), keep: true}
	l.message = newColumns([]string{messageField}, l.fields.slot)[0]
	if re == nil {
		return l
	}
	used := map[string]bool{}
	var reserved []string
	if c.Fields.KeepRaw {
		reserved = append(reserved, rawField)
	}
	for i, name := range re.SubexpNames() {
		if name == "" || used[name] { // of groups of one name the first
			continue
		}
		used[name] = true
		l.keep = l.keep && name != messageField
		l.groups = append(l.groups, lineGroup{newColumns([]string{name}, l.fields.slot, reserved...)[0], i})
	}
	return l
}

// Decode implements Decoder.
func (l *lineDecoder) Decode(rec []byte, d *Doc) error {
	var match []int
	if l.re != nil {
		if match = l.re.FindSubmatchIndex(rec); match == nil && l.config.Unmatched == Refuse {
			return errLine.New(nil, "read a line of %d bytes: the pattern does not match it", len(rec))
		}
	}
	l.fields.begin(d)
	l.w.begin()
	if l.keep || match == nil {
		l.w.add(&l.message, rec)
		l.fields.set(l.message.slot, rec)
	}
	if match != nil {
		for i := range l.groups {
			g := &l.groups[i]
			if from := match[2*g.index]; from >= 0 {
				v := rec[from:match[2*g.index+1]]
				l.w.add(&g.column, v)
				l.fields.set(g.slot, v)
			}
		}
	}
	if l.config.Fields.KeepRaw {
		l.w.raw(rec)
	}
	d.Body = l.w.end()
	d.Odd |= l.w.odd()
	l.fields.finish(d)
	return nil
}

// isLines goes by the name of the object, where no other format takes it.
func isLines(key string, head []byte) bool {
	return hasExtension(key, ".log", ".txt") && !isJSON(head) && isText(head) &&
		!claimed(key, head) && !isSyslog(key, head)
}
