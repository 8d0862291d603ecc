package ocsf

import (
	"maps"
	"slices"
	"strings"

	"github.com/penstock/penstock/services/internal/document"
)

// kind is the form that an attribute has.
type kind uint8

const (
	// text is a string; numbers and booleans are quoted. "" is left out.
	text kind = iota
	integer
	boolean
	// address is an IP address.
	address
	// port is an integer of 16 bits.
	port
	// instant is milliseconds since 1970, of a time in RFC 3339.
	instant
	// seconds is milliseconds since 1970, of seconds.
	seconds
	// anything is JSON as it is.
	anything
	// texts is a list of strings; a single one becomes a list of one.
	texts
	// looking is a field without attribute that finish reads; it stays in unmapped.
	looking
	// taking is a field without attribute that finish puts into attributes.
	taking
)

// field says which attribute comes from which field. Of several fields for one
// attribute the first in the document counts. A word of from that ends in [0] stands
// for the one element of a list.
type field struct {
	to, from string
	as       kind
	// each makes a list of objects; need are attributes of which each has one.
	each []field
	need []string
}

// mapping is the table of one format.
type mapping struct {
	formats []string
	// product is metadata.product.name where the document does not tell.
	product  string
	profiles []string
	fields   []field
	// sets are attributes that finish sets, beside those of fields and header.
	sets []string
	// under are the places where the object may stand that fields describe; "" is the
	// document itself.
	under []string
	// capital tells that the keys may have large first letters.
	capital bool
	// finish gives the event its class and sets what takes a decision. Without a class
	// it becomes a Base Event.
	finish func(r *record)
}

// headers are the attributes that header, observe and Apply set.
var headers = []string{
	"activity_id", "activity_name", "category_name", "category_uid", "class_name", "class_uid", "cloud.account.uid", "cloud.provider", "cloud.region",
	"metadata.product.name", "metadata.product.vendor_name", "metadata.profiles", "metadata.uid", "metadata.version",
	"observables", "raw_data", "severity", "severity_id", "status", "status_id", "time", "type_name", "type_uid", "unmapped",
}

// node is a place in a document.
type node struct {
	children map[string]*node
	only     *node // the one element of a list
	source   int   // 1 + number among the fields that are read, 0 for none
	uses     []use
	taken    bool // all of it goes into attributes, by way of finish
	each     *list
}

type use struct {
	slot int
	as   kind
}

func (n *node) child(key []byte) *node {
	if c := n.children[string(key)]; c != nil || n.children == nil {
		return c
	}
	for _, b := range key {
		if b == '\\' {
			return n.children[string(document.AppendUnquoted(nil, key))]
		}
	}
	return nil
}

// shape is what is read and what is written of one object.
type shape struct {
	root    *node
	sources []string
	names   map[string]int // number of a source
	out     [][]string     // attributes, as the words of their paths, in the order in which they are written
	slots   map[string]int // number of an attribute
	from    [][]string     // the fields of an attribute
}

// list is a list of objects.
type list struct {
	shape
	slot int
	need []int
}

// table is a mapping, compiled.
type table struct {
	shape
	product  string
	profiles []byte
	finish   func(*record)
	// required are, by class, lists of slots of which one must be set.
	required map[*class][][]int
	// objects are those that require something once they are there.
	objects []objectSlots
}

type objectSlots struct{ any, need []int }

type tables map[string]*table

func (t tables) names() []string { return slices.Sorted(maps.Keys(t)) }

// known has a table for each format.
var known = tables{}

// define adds the table of formats.
func define(m mapping) *table {
	t := &table{product: m.product, finish: m.finish, required: map[*class][][]int{}}
	t.profiles = []byte(`["` + strings.Join(m.profiles, `","`) + `"]`)
	if m.under == nil {
		m.under = []string{""}
	}
	t.compile(m.fields, append(slices.Clone(headers), m.sets...), m.under, m.capital)
	for _, c := range classes {
		for _, path := range c.required {
			t.required[c] = append(t.required[c], t.group("", path))
		}
		for _, paths := range c.oneOf {
			t.required[c] = append(t.required[c], t.group("", paths...))
		}
	}
	for _, o := range objects {
		if all := t.group("", o.path); len(all) > 0 {
			t.objects = append(t.objects, objectSlots{all, t.group(o.path+".", o.need...)})
		}
	}
	for _, format := range m.formats {
		if known[format] != nil {
			panic("ocsf: the format " + format + " has two tables")
		}
		known[format] = t
	}
	return t
}

// group returns the slots of attributes and of all below them.
func (s *shape) group(above string, paths ...string) (slots []int) {
	for slot, words := range s.out {
		path := strings.Join(words, ".")
		for _, p := range paths {
			if path == above+p || strings.HasPrefix(path, above+p+".") {
				slots = append(slots, slot)
			}
		}
	}
	return slots
}

func (s *shape) compile(fields []field, sets, under []string, capital bool) {
	s.root, s.names, s.slots = &node{}, map[string]int{}, map[string]int{}
	paths := slices.Clone(sets)
	for _, f := range fields {
		if f.to != "" {
			paths = append(paths, f.to)
		}
	}
	for _, p := range paths {
		s.out = append(s.out, strings.Split(p, "."))
	}
	slices.SortFunc(s.out, slices.Compare)
	s.out = slices.CompactFunc(s.out, slices.Equal)
	for slot, words := range s.out {
		s.slots[strings.Join(words, ".")] = slot
	}
	s.from = make([][]string, len(s.out))
	for _, f := range fields {
		if f.to != "" {
			s.from[s.slots[f.to]] = append(s.from[s.slots[f.to]], f.from)
		}
		if _, ok := s.names[f.from]; !ok {
			s.names[f.from] = len(s.sources)
			s.sources = append(s.sources, f.from)
		}
		for _, place := range under {
			s.read(place, f, false)
			if capital {
				s.read(place, f, true)
			}
		}
	}
}

// read puts a field into the tree.
func (s *shape) read(place string, f field, capital bool) {
	n := s.root
	if place != "" {
		n = n.at(place, false)
	}
	n = n.at(f.from, capital)
	n.source = s.names[f.from] + 1
	if f.each != nil {
		l := &list{slot: s.slots[f.to]}
		l.compile(f.each, nil, []string{""}, false)
		for _, name := range f.need {
			l.need = append(l.need, l.slots[name])
		}
		n.each = l
		return
	}
	switch {
	case f.to != "":
		n.uses = append(n.uses, use{s.slots[f.to], f.as})
	case f.as == taking:
		n.taken = true
	}
}

// at returns the node at a path, which it makes if need be. Dots in keys are written
// as \. there.
func (n *node) at(path string, capital bool) *node {
	for _, word := range strings.Split(path, ".") {
		name, one := strings.CutSuffix(word, "[0]")
		if capital {
			name = strings.ToUpper(name[:1]) + name[1:]
		}
		if n.children == nil {
			n.children = map[string]*node{}
		}
		if n.children[name] == nil {
			n.children[name] = &node{}
		}
		if n = n.children[name]; one {
			if n.only == nil {
				n.only = &node{}
			}
			n = n.only
		}
	}
	return n
}
