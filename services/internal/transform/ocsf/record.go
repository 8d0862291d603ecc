package ocsf

import (
	"bytes"
	"net/netip"
	"strconv"
	"time"

	"github.com/penstock/penstock/services/internal/document"
)

// record is the state of one event on its way to OCSF; reused.
type record struct {
	values
	table *table
	event *Event
	buf   []byte // holds what is made
	rest  []byte // what no attribute has taken
	sub   values // of the elements of a list
	done  []byte // the whole event, where the document holds one
	// instead is the table to begin anew with.
	instead *table

	class        *class
	activity     int
	activityName string
	severity     int
}

// values are what was read from one object, and what goes out. Both point into the
// document or into record.buf; nil is what is not there.
type values struct {
	in  [][]byte
	out [][]byte
}

func (v *values) reset(in, out int) {
	v.in, v.out = empty(v.in, in), empty(v.out, out)
}

func empty(s [][]byte, n int) [][]byte {
	if cap(s) < n {
		return make([][]byte, n)
	}
	s = s[:n]
	clear(s)
	return s
}

// keepBuffer is the largest buffer that is kept for reuse, in bytes.
const keepBuffer = 1 << 20

func (r *record) reset(t *table, e *Event) {
	r.table, r.event, r.done, r.instead = t, e, nil, nil
	r.values.reset(len(t.sources), len(t.out))
	r.class, r.activity, r.activityName, r.severity = nil, 0, "", 1
	if cap(r.buf) > keepBuffer {
		r.buf = nil
	}
	if cap(r.rest) > keepBuffer {
		r.rest = nil
	}
	r.buf, r.rest = r.buf[:0], r.rest[:0]
}

// as gives the event its class and activity.
func (r *record) as(c *class, activity int) { r.class, r.activity = c, activity }

// slot of an attribute. One that no table of the format names is a mistake in it.
func (r *record) slot(path string) int {
	slot, ok := r.table.slots[path]
	if !ok {
		panic("ocsf: the table of " + r.table.product + " does not name " + path)
	}
	return slot
}

func (r *record) set(path string, v []byte) { r.out[r.slot(path)] = v }

// has tells whether an attribute is set.
func (r *record) has(path string) bool { return r.out[r.slot(path)] != nil }

// hasOne tells whether one of several slots is set.
func (r *record) hasOne(slots []int) bool {
	for _, slot := range slots {
		if r.out[slot] != nil {
			return true
		}
	}
	return false
}

// keep puts a field into unmapped that no attribute has a use for after all.
func (r *record) keep(from string) {
	v := r.get(from)
	if v == nil {
		return
	}
	r.rest = r.rest[:len(r.rest)-1]
	if len(r.rest) > 1 {
		r.rest = append(r.rest, ',')
	}
	r.rest = append(document.AppendQuoted(r.rest, from), ':')
	r.rest = append(append(r.rest, v...), '}')
}

// withdraw takes an object back that lacks what it requires.
func (r *record) withdraw(slots []int) {
	for _, slot := range slots {
		if r.out[slot] == nil {
			continue
		}
		r.out[slot] = nil
		for _, source := range r.table.from[slot] {
			r.keep(source)
		}
	}
}

// complete takes objects back that lack something, and tells whether all is there
// that the class requires.
func (r *record) complete() bool {
	for _, o := range r.table.objects {
		if r.hasOne(o.any) && !r.hasOne(o.need) {
			r.withdraw(o.any)
		}
	}
	for _, slots := range r.table.required[r.class] {
		if !r.hasOne(slots) {
			return false
		}
	}
	return true
}

func (r *record) setText(path, text string) {
	from := len(r.buf)
	r.buf = document.AppendQuoted(r.buf, text)
	r.set(path, r.buf[from:])
}

func (r *record) setInt(path string, n int) {
	from := len(r.buf)
	r.buf = strconv.AppendInt(r.buf, int64(n), 10)
	r.set(path, r.buf[from:])
}

// setDefault sets the text of an attribute that has none.
func (r *record) setDefault(path, text string) {
	if r.out[r.slot(path)] == nil {
		r.setText(path, text)
	}
}

// setCaption sets an attribute with an id and its caption beside it.
func (r *record) setCaption(id, name string, n int, caption string) {
	r.setInt(id, n)
	r.setText(name, caption)
}

// get returns the raw value of a field, nil where it is not there.
func (r *record) get(from string) []byte {
	k, ok := r.table.names[from]
	if !ok {
		panic("ocsf: the table of " + r.table.product + " does not read " + from)
	}
	return r.in[k]
}

// text returns a field as text, "" for what is neither text nor a number.
func (r *record) text(from string) string { return textOf(r.get(from)) }

func textOf(v []byte) string {
	switch document.KindOf(v) {
	case document.String:
		v = v[1 : len(v)-1]
		if bytes.IndexByte(v, '\\') < 0 {
			return string(v)
		}
		return string(document.AppendUnquoted(nil, v))
	case document.Number, document.Bool:
		return string(v)
	case document.None, document.Object, document.Array, document.Null:
	}
	return ""
}

// walk reads the members of an object into v and appends those that no attribute
// takes to rest.
func (r *record) walk(rest, object []byte, at *node, v *values) ([]byte, bool) {
	rest = append(rest, '{')
	first := len(rest)
	c := document.Members(object)
	for {
		key, start, end, more := c.Next()
		if !more {
			break
		}
		value := object[start:end]
		if isNull(value) {
			continue
		}
		mark := len(rest)
		if mark > first {
			rest = append(rest, ',')
		}
		rest = append(append(append(rest, '"'), key...), '"', ':')
		next := at.child(key)
		left := true
		if next == nil {
			rest = append(rest, value...)
		} else {
			var ok bool
			if rest, left, ok = r.take(rest, value, next, v); !ok {
				return rest, false
			}
		}
		if !left {
			rest = rest[:mark]
		}
	}
	return append(rest, '}'), !c.Bad()
}

// take reads one value and appends what is left of it.
func (r *record) take(rest, value []byte, at *node, v *values) (_ []byte, left, ok bool) {
	taken := at.taken
	if at.source > 0 && v.in[at.source-1] == nil {
		v.in[at.source-1] = value
		for _, u := range at.uses {
			if v.out[u.slot] != nil {
				continue
			}
			if made := r.convert(value, u.as); made != nil {
				v.out[u.slot], taken = made, true
			}
		}
	}
	kind := document.KindOf(value)
	mark := len(rest)
	switch {
	case at.each != nil && kind == document.Array:
		var left []byte
		if made := r.list(value, at.each, &left); made != nil && v.out[at.each.slot] == nil {
			v.out[at.each.slot] = made
			return append(rest, left...), len(left) > 0, true
		}
	case kind == document.Object && at.children != nil:
		if rest, ok = r.walk(rest, value, at, v); !ok {
			return rest, false, false
		}
		if taken {
			return rest[:mark], false, true
		}
		return rest, len(rest)-mark > len("{}"), true
	case kind == document.Array && at.only != nil:
		c := document.Members(value)
		_, start, end, more := c.Next()
		if _, _, _, two := c.Next(); more && !two && document.KindOf(value[start:end]) == document.Object {
			rest = append(rest, '[')
			if rest, ok = r.walk(rest, value[start:end], at.only, v); !ok {
				return rest, false, false
			}
			return append(rest, ']'), len(rest)-mark > len("[{}"), true
		}
	}
	if taken {
		return rest, false, true
	}
	return append(rest, value...), true, true
}

// list makes a list of objects, nil when one of them does not fit. What is left of
// them is a list as well, nil when nothing is.
func (r *record) list(value []byte, l *list, left *[]byte) []byte {
	c := document.Members(value)
	var made, rest []byte
	some := false
	for {
		_, start, end, more := c.Next()
		if !more {
			break
		}
		element := value[start:end]
		if document.KindOf(element) != document.Object {
			return nil
		}
		r.sub.reset(len(l.sources), len(l.out))
		mark := len(rest)
		rest = append(rest, ',')
		var ok bool
		if rest, ok = r.walk(rest, element, l.root, &r.sub); !ok {
			return nil
		}
		some = some || len(rest)-mark > len(",{}")
		fits := false
		for _, slot := range l.need {
			fits = fits || r.sub.out[slot] != nil
		}
		if !fits {
			return nil
		}
		made = l.write(append(made, ','), r.sub.out)
	}
	if len(made) == 0 {
		return nil
	}
	if some {
		rest[0] = '['
		*left = append(rest, ']')
	}
	made[0] = '['
	return append(made, ']')
}

// convert returns a value as the schema wants it, nil when it cannot be had.
func (r *record) convert(v []byte, as kind) []byte {
	k := document.KindOf(v)
	from := len(r.buf)
	switch as {
	case text:
		switch k {
		case document.String:
			if len(v) == len(`""`) {
				return nil
			}
			return v
		case document.Number, document.Bool:
			r.buf = append(append(append(r.buf, '"'), v...), '"')
			return r.buf[from:]
		case document.None, document.Object, document.Array, document.Null:
		}
	case address:
		if _, err := netip.ParseAddr(textOf(v)); err == nil {
			return v
		}
	case integer:
		if n, err := strconv.ParseInt(textOf(v), 10, 64); err == nil {
			r.buf = strconv.AppendInt(r.buf, n, 10)
			return r.buf[from:]
		}
	case port:
		if n, err := strconv.ParseUint(textOf(v), 10, 16); err == nil {
			r.buf = strconv.AppendUint(r.buf, n, 10)
			return r.buf[from:]
		}
	case boolean:
		switch textOf(v) {
		case "true":
			return []byte("true")
		case "false":
			return []byte("false")
		}
	case instant:
		if at, err := time.Parse(time.RFC3339, textOf(v)); err == nil {
			r.buf = strconv.AppendInt(r.buf, at.UnixMilli(), 10)
			return r.buf[from:]
		}
	case seconds:
		if n, err := strconv.ParseInt(textOf(v), 10, 64); err == nil && n >= 0 && n < 1<<40 {
			r.buf = strconv.AppendInt(r.buf, n*1000, 10)
			return r.buf[from:]
		}
	case anything:
		return v
	case texts:
		switch k {
		case document.Array:
			c := document.Members(v)
			for {
				_, start, _, more := c.Next()
				if !more {
					break
				}
				if v[start] != '"' {
					return nil
				}
			}
			return v
		case document.String:
			r.buf = append(append(append(r.buf, '['), v...), ']')
			return r.buf[from:]
		case document.None, document.Object, document.Number, document.Bool, document.Null:
		}
	case looking, taking:
	}
	return nil
}

// write appends the event.
func (r *record) write(dst []byte) []byte { return r.table.write(dst, r.out) }

// write appends an object of the attributes that are set.
func (s *shape) write(dst []byte, out [][]byte) []byte {
	dst = append(dst, '{')
	var before []string
	for slot, v := range out {
		if v == nil {
			continue
		}
		path := s.out[slot]
		same := 0
		for same < len(before) && same < len(path)-1 && before[same] == path[same] {
			same++
		}
		for i := len(before); i > same; i-- {
			dst = append(dst, '}')
		}
		if dst[len(dst)-1] != '{' {
			dst = append(dst, ',')
		}
		for i := same; i < len(path); i++ {
			dst = append(append(append(dst, '"'), path[i]...), '"', ':')
			if i < len(path)-1 {
				dst = append(dst, '{')
			}
		}
		dst = append(dst, v...)
		before = path[:len(path)-1]
	}
	for range before {
		dst = append(dst, '}')
	}
	return append(dst, '}')
}
