package config

import (
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// place is where a value stands: its node, or where it would stand if the file
// had it.
type place struct {
	node *Node  // nil when the file does not have it
	near *Node  // the node next above
	path string // from the top
}

func (p place) key(name string) place {
	return p.down(p.node.Get(name), keyPath(name))
}

func (p place) item(i int) place {
	var n *Node
	if p.node != nil && i < len(p.node.items) {
		n = p.node.items[i]
	}
	return p.down(n, "["+strconv.Itoa(i)+"]")
}

func (p place) down(n *Node, rel string) place {
	near := p.near
	if p.node != nil {
		near = p.node
	}
	return place{node: n, near: near, path: joinPath(p.path, rel)}
}

// validator calls the methods Validate of a value and all that it holds.
type validator struct {
	doc *document
}

func (v validator) walk(x reflect.Value, at place, depth int) {
	for x.IsValid() && (x.Kind() == reflect.Pointer || x.Kind() == reflect.Interface) {
		if x.IsNil() || depth > maxDepth {
			return
		}
		depth++
		x = x.Elem()
	}
	if !x.IsValid() || depth > maxDepth || x.Type() == secretType {
		return
	}
	if !x.CanAddr() { // so that methods of the pointer are found
		y := reflect.New(x.Type()).Elem()
		y.Set(x)
		x = y
	}
	switch x.Kind() {
	case reflect.Struct:
		v.structs(x, at, depth)
	case reflect.Slice, reflect.Array:
		v.call(x, at)
		for i := range x.Len() {
			v.walk(x.Index(i), at.item(i), depth+1)
		}
	case reflect.Map:
		v.call(x, at)
		if x.Type().Key().Kind() != reflect.String {
			return
		}
		keys := x.MapKeys()
		sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
		for _, k := range keys {
			v.walk(x.MapIndex(k), at.key(k.String()), depth+1)
		}
	default:
		v.call(x, at)
	}
}

func (v validator) structs(x reflect.Value, at place, depth int) {
	var options reflect.Value
	var l layout
	if foreign(x.Type()) {
		v.call(x, at)
		return
	}
	l = layoutOf(x.Type())
	if l.kind != nil { // before Validate, which may look at the options
		options = fillKind(x, l, func(code Code, why string) {
			v.report(x, at, Problem{Code: code, Path: "type", Reason: why, Fix: choose("", l.kinds(x).Names())})
		})
	}
	v.call(x, at)
	v.inlined(x, at)
	for _, f := range l.fields {
		v.walk(x.FieldByIndex(f.index), at.key(f.name), depth+1)
	}
	if options.IsValid() {
		v.walk(options, at, depth+1)
	}
}

// inlined calls Validate of the structs whose keys stand among those of x.
func (v validator) inlined(x reflect.Value, at place) {
	for i := range x.NumField() {
		sf := x.Type().Field(i)
		tag, tagged := sf.Tag.Lookup("yaml")
		_, flags, _ := strings.Cut(tag, ",")
		if sf.Type.Kind() != reflect.Struct || !sf.IsExported() {
			continue
		}
		if strings.Contains(flags, "inline") || sf.Anonymous && !tagged {
			v.call(x.Field(i), at)
			v.inlined(x.Field(i), at)
		}
	}
}

// foreign types are structs that no file has: without a tag of ours in them, from
// packages like time and regexp.
func foreign(t reflect.Type) bool {
	for i := range t.NumField() {
		if _, tagged := t.Field(i).Tag.Lookup("yaml"); tagged || t.Field(i).Anonymous {
			return false
		}
	}
	return true
}

// call asks x itself.
func (v validator) call(x reflect.Value, at place) {
	if !x.Addr().CanInterface() {
		return
	}
	c, ok := x.Addr().Interface().(interface{ Validate() error })
	if !ok {
		return
	}
	for _, p := range problemsIn(c.Validate()) {
		v.report(x, at, p)
	}
}

// report puts a problem that x found into its place in the file.
func (v validator) report(x reflect.Value, at place, p Problem) {
	spot := at
	value, known := x, true
	for _, step := range steps(p.Path) {
		if step.item >= 0 {
			spot = spot.item(step.item)
		} else {
			spot = spot.key(step.key)
		}
		if known {
			value, known = child(value, step)
		}
	}
	for path := spot.path; ; {
		if v.doc.excused[path] {
			return
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			break
		}
		path = path[:cut]
	}
	p.File, p.Path = v.doc.file, spot.path
	n := spot.node
	if n == nil {
		n = spot.near
	}
	if n != nil {
		p.Line, p.Column = n.line, n.column
	}
	known = known && spot.path != at.path
	switch {
	case spot.node != nil && known && sensitive(value.Type()):
		if spot.node.kind == Scalar {
			p.Value = redacted
		}
	case spot.node != nil && known:
		p.Value = spot.node.show()
	}
	if p.Reason == "" {
		p.Code, p.Reason = reason(spot, value, known)
	}
	p.Reason = spot.node.discreet(p.Reason)
	v.doc.add(p)
}

// reason says what is wrong where Validate only named the key.
func reason(at place, value reflect.Value, known bool) (Code, string) {
	empty := known && (value.IsZero() || (value.Kind() == reflect.Slice || value.Kind() == reflect.Map) && value.Len() == 0)
	switch {
	case at.node == nil && (empty || !known):
		return Missing, "missing"
	case at.node == nil && !sensitive(value.Type()):
		if s, ok := plainText(value); ok {
			return Invalid, "the default " + short(s) + " is not acceptable here"
		}
		return Invalid, "the default is not acceptable here"
	case empty && (at.node == nil || at.node.kind != Scalar || at.node.text == ""):
		return Missing, "is empty"
	}
	return Invalid, "not acceptable"
}

// sensitive types hold a [Secret] as themselves, or as what they point to or list.
func sensitive(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		return sensitive(t.Elem())
	default:
		return t == secretType
	}
}

// step is one part of a path: a key, or an item when that is not negative.
type step struct {
	key  string
	item int
}

var pathPart = regexp.MustCompile(`\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\]|([^.\[\]]+)`)

// steps takes a path apart.
func steps(path string) []step {
	var out []step
	for _, m := range pathPart.FindAllStringSubmatch(path, -1) {
		switch {
		case m[1] != "":
			i, err := strconv.Atoi(m[1])
			if err != nil {
				return out
			}
			out = append(out, step{item: i})
		case m[2] != "":
			key, err := strconv.Unquote(m[2])
			if err != nil {
				return out
			}
			out = append(out, step{key: key, item: -1})
		default:
			out = append(out, step{key: m[3], item: -1})
		}
	}
	return out
}

// child finds the value for a step below x.
func child(x reflect.Value, s step) (reflect.Value, bool) {
	for x.Kind() == reflect.Pointer || x.Kind() == reflect.Interface {
		if x.IsNil() {
			return reflect.Value{}, false
		}
		x = x.Elem()
	}
	switch {
	case x.Kind() == reflect.Slice && s.item >= 0 && s.item < x.Len():
		return x.Index(s.item), true
	case x.Kind() == reflect.Map && s.item < 0 && x.Type().Key().Kind() == reflect.String:
		v := x.MapIndex(reflect.ValueOf(s.key).Convert(x.Type().Key()))
		return v, v.IsValid()
	case x.Kind() == reflect.Struct && s.item < 0:
		l := layoutOf(x.Type())
		if f, ok := l.find(s.key); ok {
			return x.FieldByIndex(f.index), true
		}
		if l.kind != nil {
			return child(x.FieldByIndex(l.kind), s)
		}
	}
	return reflect.Value{}, false
}

// find finds a node by a path relative to n, nil when the file does not have it.
func (n *Node) find(path string) *Node {
	for _, s := range steps(path) {
		switch {
		case n == nil:
			return nil
		case s.item < 0:
			n = n.Get(s.key)
		case s.item < len(n.items):
			n = n.items[s.item]
		default:
			return nil
		}
	}
	return n
}
