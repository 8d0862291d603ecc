package config

import (
	"encoding"
	"errors"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Unmarshaler is a type that decodes itself, from the node of its value. An error
// becomes a problem at that node; what [Node.Decode] and [Node.Problem] return
// keeps its own place. The methods Validate of the fields are called by the engine
// later; fields should carry the same yaml tags as the keys, so that problems find
// their lines.
type Unmarshaler interface {
	UnmarshalConfig(n *Node) error
}

// Decode decodes n strictly into a pointer of any type, over what is there. With
// several pointers to structs each takes its own keys of one mapping, and a key
// that none of them has is a problem. The error is an [*Error].
func (n *Node) Decode(into ...any) error {
	d := decoder{doc: &document{file: n.doc.file}}
	targets := make([]reflect.Value, len(into))
	for i, p := range into {
		v := reflect.ValueOf(p)
		if v.Kind() != reflect.Pointer || v.IsNil() {
			panic("config: Decode needs pointers")
		}
		targets[i] = v.Elem()
	}
	if len(targets) == 1 {
		d.decode(targets[0], n)
	} else {
		d.structs(targets, n)
	}
	for path := range d.doc.excused {
		n.doc.excuse(path)
	}
	return d.doc.err()
}

var (
	durationType    = reflect.TypeFor[time.Duration]()
	secretType      = reflect.TypeFor[Secret]()
	bytesType       = reflect.TypeFor[Bytes]()
	unmarshalerType = reflect.TypeFor[Unmarshaler]()
	textType        = reflect.TypeFor[encoding.TextUnmarshaler]()
	enumType        = reflect.TypeFor[Enum]()
)

// decoder moves nodes into values.
type decoder struct {
	doc *document
}

// refuse reports that the value at n cannot be used.
func (d decoder) refuse(n *Node, code Code, why, fix string) {
	d.doc.excuse(n.Path())
	d.doc.add(n.problem(code, why, fix))
}

// fresh makes a value with its own defaults.
func fresh(t reflect.Type) reflect.Value {
	v := reflect.New(t)
	if f, ok := v.Interface().(Defaulter); ok {
		f.SetDefaults()
	}
	return v.Elem()
}

// decode decodes n over v, which is addressable.
func (d decoder) decode(v reflect.Value, n *Node) {
	t := v.Type()
	switch {
	case t.Kind() == reflect.Pointer:
		if n.kind == Null {
			return
		}
		if v.IsNil() {
			v.Set(fresh(t.Elem()).Addr())
		}
		d.decode(v.Elem(), n)
	case t == secretType:
		d.secret(v, n)
	case v.Addr().Type().Implements(unmarshalerType):
		d.unmarshaler(v, n)
	case t == durationType:
		d.duration(v, n)
	case v.Addr().Type().Implements(textType):
		d.text(v, n)
	default:
		d.plain(v, n)
	}
}

// plain decodes by the kind of the Go type.
func (d decoder) plain(v reflect.Value, n *Node) {
	switch v.Kind() {
	case reflect.Struct:
		d.structs([]reflect.Value{v}, n)
	case reflect.Slice:
		d.slice(v, n)
	case reflect.Map:
		d.mapping(v, n)
	case reflect.String:
		d.string(v, n)
	case reflect.Bool:
		d.bool(v, n)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		d.int(v, n)
	case reflect.Float32, reflect.Float64:
		d.float(v, n)
	case reflect.Interface:
		if v.NumMethod() > 0 {
			panic("config: a field of type " + v.Type().String() + " cannot be decoded")
		}
		if x := generic(n); x != nil {
			v.Set(reflect.ValueOf(x))
		}
	default:
		panic("config: a field of type " + v.Type().String() + " cannot be decoded")
	}
}

// scalar tells whether n is a single value and reports when it is not. Want is
// e.g. "a whole number", example a value, which may be empty.
func (d decoder) scalar(n *Node, want, example string) bool {
	if example != "" {
		example = ", e.g. " + example
	}
	switch {
	case n.kind == Null:
		d.refuse(n, Missing, "has no value", "write "+want+example+", or remove the line")
	case n.kind != Scalar:
		d.refuse(n, WrongType, "must be "+want+", is "+n.kind.String(), "write "+want+example)
	case n.resolved && n.text == "" && want != "text":
		d.refuse(n, Missing, "is empty once the reference is resolved", "write "+want+example)
	default:
		return true
	}
	return false
}

func (d decoder) secret(v reflect.Value, n *Node) {
	if n.kind == Scalar {
		v.Set(reflect.ValueOf(NewSecret(n.text)))
		return
	}
	d.scalar(n, "text", "${file:/run/secrets/name}")
}

// unmarshaler calls UnmarshalConfig and puts what it says in its place.
func (d decoder) unmarshaler(v reflect.Value, n *Node) {
	err := v.Addr().Interface().(Unmarshaler).UnmarshalConfig(n)
	for _, p := range problemsIn(err) {
		if p.File != "" || p.Line > 0 { // from Decode or Problem: it has its place
			d.doc.add(p)
			continue
		}
		at := n.problem(p.Code, n.discreet(p.reason()), p.Fix)
		if sub := n.find(p.Path); sub != nil && p.Path != "" {
			at.Line, at.Column, at.Value = sub.line, sub.column, ""
		}
		at.Path = joinPath(at.Path, p.Path)
		d.doc.excuse(at.Path)
		d.doc.add(at)
	}
}

func (d decoder) text(v reflect.Value, n *Node) {
	want, example := "text", ""
	if v.Type() == bytesType {
		want, example = "a size", "64 MiB"
	}
	if !d.scalar(n, want, example) {
		return
	}
	err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.text))
	switch {
	case err == nil:
	case errors.Is(err, errBytesRange):
		d.refuse(n, OutOfRange, err.Error(), "use a smaller size")
	case v.Type() == bytesType:
		d.refuse(n, WrongType, err.Error(), "write a number and a unit, e.g. 64 MiB or 1.5 GB")
	case n.resolved:
		d.refuse(n, Invalid, "the value that the reference gives is not valid", "check the variable or file")
	default:
		d.refuse(n, Invalid, "not valid: "+err.Error(), "look the key up in the configuration reference")
	}
}

func (d decoder) duration(v reflect.Value, n *Node) {
	if !d.scalar(n, "a duration", "30s") {
		return
	}
	dur, err := parseDuration(n.text)
	if err != nil {
		fix := "write a number and a unit: ms, s, m, h or d, e.g. 30s or 1h30m"
		if _, numErr := strconv.ParseFloat(n.text, 64); numErr == nil && !n.resolved {
			fix = "add a unit: " + n.text + "s for seconds, also ms, m, h and d"
		}
		d.refuse(n, WrongType, "not a duration", fix)
		return
	}
	v.SetInt(int64(dur))
}

// parseDuration reads what [time.ParseDuration] reads, after days: 14d, 1d12h.
func parseDuration(s string) (time.Duration, error) {
	days, rest, found := strings.Cut(s, "d")
	if !found {
		return time.ParseDuration(s)
	}
	n, err := strconv.ParseUint(days, 10, 31)
	if err != nil || n > 106_751 { // 292 years: what fits
		return 0, errors.New("not a number of days")
	}
	dur := time.Duration(n) * 24 * time.Hour
	if rest == "" {
		return dur, nil
	}
	more, err := time.ParseDuration(rest)
	if err != nil || more < 0 || strings.HasPrefix(rest, "+") || strings.HasPrefix(rest, "-") || dur+more < 0 {
		return 0, errors.New("not a duration after the days")
	}
	return dur + more, nil
}

// formatDuration writes what parseDuration reads, without zero parts at the end.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func (d decoder) string(v reflect.Value, n *Node) {
	if !d.scalar(n, "text", "") {
		return
	}
	if n.tag == "!!bool" && !n.resolved {
		d.refuse(n, WrongType, "must be text, is true or false", "put it in quotes if the word is meant")
		return
	}
	if v.Type().Implements(enumType) {
		if values := reflect.Zero(v.Type()).Interface().(Enum).Values(); !slices.Contains(values, n.text) {
			guess := n.text
			if n.resolved {
				guess = ""
			}
			d.refuse(n, Invalid, "not one of "+strings.Join(values, ", "), choose(guess, values))
			return
		}
	}
	v.SetString(n.text)
}

func (d decoder) bool(v reflect.Value, n *Node) {
	if !d.scalar(n, "true or false", "true") {
		return
	}
	b, err := strconv.ParseBool(strings.ToLower(n.text))
	if err != nil || len(n.text) < 4 || n.tag != "!!bool" && !n.resolved {
		d.refuse(n, WrongType, "not true or false", "write true or false, without quotes")
		return
	}
	v.SetBool(b)
}

func (d decoder) int(v reflect.Value, n *Node) {
	if !d.scalar(n, "a whole number", "8") {
		return
	}
	var err error
	text := n.text
	digits := strings.TrimLeft(text, "+-")
	switch {
	case len(digits) > 1 && digits[0] == '0' && digits[1] >= '0' && digits[1] <= '9':
		d.refuse(n, WrongType, "a number that begins with 0 can be read in two ways", "write it without the 0, or 0o for an octal number")
		return
	case v.CanInt():
		var i int64
		if i, err = strconv.ParseInt(text, 0, v.Type().Bits()); err == nil {
			v.SetInt(i)
		}
	default:
		var u uint64
		if u, err = strconv.ParseUint(strings.TrimPrefix(text, "+"), 0, v.Type().Bits()); err == nil {
			v.SetUint(u)
		} else if _, negative := strconv.ParseInt(text, 0, 64); negative == nil {
			err = strconv.ErrRange
		}
	}
	switch {
	case errors.Is(err, strconv.ErrRange):
		least, most := limits(v.Type())
		d.refuse(n, OutOfRange, "does not fit", "use a whole number from "+least+" to "+most)
	case err != nil:
		d.refuse(n, WrongType, "not a whole number", "write e.g. 8")
	case n.tag == "!!str" && !n.resolved:
		d.refuse(n, WrongType, "must be a whole number, is text", "remove the quotes")
	}
}

// limits of an integer type, as text.
func limits(t reflect.Type) (least, most string) {
	bits := t.Bits()
	if reflect.Zero(t).CanInt() {
		return strconv.FormatInt(math.MinInt64>>(64-bits), 10), strconv.FormatInt(math.MaxInt64>>(64-bits), 10)
	}
	return "0", strconv.FormatUint(math.MaxUint64>>(64-bits), 10)
}

func (d decoder) float(v reflect.Value, n *Node) {
	if !d.scalar(n, "a number", "0.5") {
		return
	}
	f, err := strconv.ParseFloat(n.text, v.Type().Bits())
	switch {
	case errors.Is(err, strconv.ErrRange), err == nil && (math.IsInf(f, 0) || math.IsNaN(f)):
		d.refuse(n, OutOfRange, "does not fit", "use a smaller number")
	case err != nil, n.tag == "!!str" && !n.resolved:
		d.refuse(n, WrongType, "not a number", "write e.g. 0.5, without quotes")
	default:
		v.SetFloat(f)
	}
}

// slice replaces what is there.
func (d decoder) slice(v reflect.Value, n *Node) {
	switch n.kind {
	case Null:
		return
	case List:
	default:
		d.refuse(n, WrongType, "must be a list, is "+n.kind.String(), "begin each item with a dash on a line of its own, or write [one, two]")
		return
	}
	list := reflect.MakeSlice(v.Type(), 0, len(n.items))
	for _, item := range n.items {
		elem := fresh(v.Type().Elem())
		d.decode(elem, item)
		list = reflect.Append(list, elem)
	}
	v.Set(list)
}

// mapping adds to and changes what is there.
func (d decoder) mapping(v reflect.Value, n *Node) {
	t := v.Type()
	if t.Key().Kind() != reflect.String {
		panic("config: a field of type " + t.String() + " cannot be decoded: keys are strings")
	}
	switch n.kind {
	case Null:
		return
	case Map:
	default:
		d.refuse(n, WrongType, "must be a mapping, is "+n.kind.String(), "write key: value on a line of its own")
		return
	}
	m := reflect.MakeMap(t)
	if !v.IsNil() {
		for it := v.MapRange(); it.Next(); {
			m.SetMapIndex(it.Key(), it.Value())
		}
	}
	for _, p := range n.pairs {
		key := reflect.New(t.Key()).Elem()
		key.SetString(p.key)
		if t.Key().Implements(enumType) {
			if values := key.Interface().(Enum).Values(); !slices.Contains(values, p.key) {
				d.unknown(n, p, values)
				continue
			}
		}
		elem := fresh(t.Elem())
		if old := m.MapIndex(key); old.IsValid() {
			elem.Set(old)
		}
		d.decode(elem, p.value)
		m.SetMapIndex(key, elem)
	}
	v.Set(m)
}

// unknown reports a key that nothing reads. Its value may be a secret under a
// misspelt name and is not shown.
func (d decoder) unknown(n *Node, p pair, names []string) {
	if d.doc.crowded() {
		return
	}
	meant := nearest(p.key, names)
	if meant != "" && n.Get(meant) == nil {
		d.doc.excuse(joinPath(n.Path(), keyPath(meant)))
	}
	d.doc.add(Problem{
		Code: UnknownKey, File: d.doc.file, Line: p.line, Column: p.column,
		Path: joinPath(n.Path(), keyPath(p.key)), Reason: "unknown key", Fix: choose(p.key, names),
	})
}

// structs distributes the keys of n over the targets.
func (d decoder) structs(targets []reflect.Value, n *Node) {
	if n.kind == Null {
		return
	}
	if len(targets) == 1 && n.kind == Scalar {
		v := targets[0]
		if l := layoutOf(v.Type()); l.scalar >= 0 {
			f := l.fields[l.scalar]
			d.decode(v.FieldByIndex(f.index), n)
			d.kind(v, l, n)
			return
		}
	}
	if n.kind != Map {
		d.refuse(n, WrongType, "must be a mapping, is "+n.kind.String(), "write key: value, each on a line of its own")
		return
	}
	var names []string
	to := map[string]reflect.Value{}
	lenient := false
	add := func(v reflect.Value, l layout) {
		for _, f := range l.fields {
			if _, twice := to[f.name]; twice {
				panic("config: the key " + f.name + " of " + v.Type().String() + " stands twice in one mapping")
			}
			names = append(names, f.name)
			to[f.name] = v.FieldByIndex(f.index)
		}
	}
	for _, v := range targets {
		l := layoutOf(v.Type())
		add(v, l)
		if l.kind == nil {
			continue
		}
		if t := n.Get("type"); t != nil {
			d.decode(v.FieldByIndex(l.fields[l.typ].index), t)
		}
		if options := d.kind(v, l, n); options.IsValid() {
			add(options, layoutOf(options.Type()))
		} else {
			lenient = true // the keys of an unknown kind are not known
		}
	}
	for _, p := range n.pairs {
		switch field, ok := to[p.key]; {
		case ok:
			d.decode(field, p.value)
		case n.parent == nil && strings.HasPrefix(p.key, "x-") || lenient:
		default:
			d.unknown(n, p, names)
		}
	}
}

// kind fills the field for the options of a kinded struct whose type is known and
// returns the struct in it, and reports a type that is missing or unknown.
func (d decoder) kind(v reflect.Value, l layout, n *Node) reflect.Value {
	kinds := l.kinds(v)
	if kinds == nil {
		return reflect.Value{}
	}
	name := v.FieldByIndex(l.fields[l.typ].index).String()
	at, key := n, "type"
	if t := n.Get("type"); t != nil {
		at, key = t, ""
	} else if n.kind == Scalar {
		key = ""
	}
	return fillKind(v, l, func(code Code, why string) {
		p := at.problem(code, why, choose(name, kinds.Names()))
		if at.resolved {
			p.Fix = choose("", kinds.Names())
		}
		p.Path = joinPath(p.Path, key)
		if d.doc.excused[p.Path] {
			return
		}
		d.doc.excuse(p.Path)
		d.doc.add(p)
	})
}

// fillKind makes the options of a kinded struct, unless those of its kind are there.
func fillKind(v reflect.Value, l layout, report func(code Code, why string)) reflect.Value {
	kinds := l.kinds(v)
	name := v.FieldByIndex(l.fields[l.typ].index).String()
	options, ok := kinds.Defaults(name)
	switch {
	case name == "":
		report(Missing, "missing: the type of the "+kinds.What())
		return reflect.Value{}
	case !ok:
		report(Invalid, "not a type of "+kinds.What())
		return reflect.Value{}
	}
	slot := v.FieldByIndex(l.kind)
	if slot.IsNil() || slot.Elem().Type() != reflect.TypeOf(options) {
		if !slot.CanSet() {
			return reflect.ValueOf(options).Elem()
		}
		slot.Set(reflect.ValueOf(options))
	}
	return slot.Elem().Elem()
}

// generic decodes for a field of type any.
func generic(n *Node) any {
	switch n.kind {
	case Map:
		m := make(map[string]any, len(n.pairs))
		for _, p := range n.pairs {
			m[p.key] = generic(p.value)
		}
		return m
	case List:
		list := make([]any, len(n.items))
		for i, item := range n.items {
			list[i] = generic(item)
		}
		return list
	case Null:
		return nil
	case Scalar: // by its tag, below
	}
	switch n.tag {
	case "!!bool":
		return strings.EqualFold(n.text, "true")
	case "!!int":
		if i, err := strconv.ParseInt(n.text, 0, 64); err == nil {
			return i
		}
	case "!!float":
		if f, err := strconv.ParseFloat(n.text, 64); err == nil && !math.IsInf(f, 0) && !math.IsNaN(f) {
			return f
		}
	}
	return n.text
}
