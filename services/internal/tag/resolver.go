package tag

import "strings"

// Event is what the tag of an event is made of.
type Event struct {
	// Table is the event type.
	Table string
	// Account and Region are "" where they are not known.
	Account, Region string
	// Version of the format, "" for 1.
	Version string
}

func (e *Event) version() string {
	if e.Version == "" {
		return "1"
	}
	return e.Version
}

// Resolver makes the tags of the events of one source. Methods may be called
// concurrently.
type Resolver struct {
	environment string
	// forms are those that the source has beside the formats' own.
	forms []resolved
}

// resolved is a template and how its tables look.
type resolved struct {
	form          template
	before, after string
	open          bool   // the word stands between before and after
	word          string // else it is this one
}

// NewResolver makes the resolver of a source. service is its name. c must be valid.
func NewResolver(c Config, service string) *Resolver {
	r := &Resolver{environment: c.Environment}
	add := func(s, word string) {
		form := compile(s, service)
		if form == nil {
			return
		}
		to := resolved{form: form, word: word}
		if to.before, to.after, to.open = form.around(); to.open && word != "" {
			to.before, to.after, to.open = form.table(word), "", false
		}
		r.forms = append(r.forms, to)
	}
	for word, m := range c.EventTypeProcessorMapping {
		add(m.Tagging, word)
	}
	add(c.form(), "")
	return r
}

// AppendTag appends the tag of an event. A table that the source's configuration
// does not explain (a route may have changed it) is followed by account, region,
// version and environment. Source: formats F-22.
func (r *Resolver) AppendTag(dst []byte, e Event) []byte {
	for i := range r.forms {
		if word, ok := r.forms[i].match(e.Table); ok {
			return r.forms[i].form.appendTag(dst, word, r.environment, e)
		}
	}
	start := len(dst)
	for level := range strings.SplitSeq(e.Table, ".") {
		if len(dst) > start {
			dst = append(dst, '.')
		}
		dst = appendLevel(dst, level)
	}
	dst = appendWord(append(dst, '.'), e.Account)
	dst = appendWord(append(dst, '.'), e.Region)
	dst = appendWord(append(dst, '.'), e.version())
	if r.environment != "" {
		dst = append(append(dst, '.'), r.environment...)
	}
	return dst
}

// match returns the word that makes table of the form.
func (f *resolved) match(table string) (word string, ok bool) {
	if !f.open {
		return f.word, table == f.before
	}
	if len(table) <= len(f.before)+len(f.after) || !strings.HasPrefix(table, f.before) || !strings.HasSuffix(table, f.after) {
		return "", false
	}
	word = table[len(f.before) : len(table)-len(f.after)]
	return word, !strings.Contains(word, ".")
}

// appendLevel is appendWord for a level of a table, whose large letters stay.
func appendLevel(dst []byte, v string) []byte {
	if v == "" {
		return append(dst, unknown...)
	}
	for i := range len(v) {
		c := v[i]
		if !literal(c) {
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}
