package config

import (
	"reflect"
	"slices"
	"strings"
)

// field is one key of a struct.
type field struct {
	name   string
	index  []int        // for reflect's FieldByIndex, through inline structs
	typ    reflect.Type // of the field
	owner  reflect.Type // the struct that declares it, for its doc comment
	goName string
}

// layout is what the engine knows of a struct type.
type layout struct {
	fields []field
	scalar int   // index in fields of the key that may stand for all, -1
	kind   []int // the field for the options of the kind, nil when there is none
	typ    int   // index in fields of the key "type" of a kinded struct, -1
}

func (l layout) find(name string) (field, bool) {
	for _, f := range l.fields {
		if f.name == name {
			return f, true
		}
	}
	return field{}, false
}

var kindedType = reflect.TypeFor[Kinded]()

// layoutOf reads the yaml tags of a struct. It panics on tags that make no sense:
// mistakes in the program, which every test that decodes the struct finds.
func layoutOf(t reflect.Type) layout {
	l := layout{scalar: -1, typ: -1}
	l.collect(t, nil)
	for i, f := range l.fields {
		for _, g := range l.fields[:i] {
			if f.name == g.name {
				panic("config: " + t.String() + " has the key " + f.name + " twice")
			}
		}
		if f.name == "type" {
			l.typ = i
		}
	}
	if l.kind != nil {
		if !t.Implements(kindedType) || l.typ < 0 || l.fields[l.typ].typ.Kind() != reflect.String {
			panic("config: " + t.String() + " has a field for a kind, but no method Kinds or no string with the key type")
		}
	}
	return l
}

func (l *layout) collect(t reflect.Type, at []int) {
	for i := range t.NumField() {
		sf := t.Field(i)
		tag, tagged := sf.Tag.Lookup("yaml")
		name, rest, _ := strings.Cut(tag, ",")
		var flags []string
		if rest != "" {
			flags = strings.Split(rest, ",")
		}
		index := append(slices.Clone(at), i)
		inline := slices.Contains(flags, "inline") || sf.Anonymous && !tagged && sf.Type.Kind() == reflect.Struct
		switch {
		case name == "-" || !sf.IsExported() && !inline:
			continue
		case slices.Contains(flags, "kind"):
			if sf.Type.Kind() != reflect.Interface || len(at) > 0 {
				panic("config: the field for a kind, " + t.String() + "." + sf.Name + ", must be of type any and not inlined")
			}
			l.kind = index
			continue
		case inline:
			if sf.Type.Kind() != reflect.Struct {
				panic("config: the inline field " + t.String() + "." + sf.Name + " must be a struct")
			}
			l.collect(sf.Type, index)
			continue
		}
		if name == "" {
			name = strings.ToLower(sf.Name)
		}
		for _, f := range flags {
			if f != "scalar" {
				panic("config: unknown flag " + f + " in the tag of " + t.String() + "." + sf.Name)
			}
			l.scalar = len(l.fields)
		}
		l.fields = append(l.fields, field{name: name, index: index, typ: sf.Type, owner: t, goName: sf.Name})
	}
}

// kinds of a kinded struct, nil for any other.
func (l layout) kinds(v reflect.Value) Kinds {
	if l.kind == nil {
		return nil
	}
	return v.Interface().(Kinded).Kinds()
}
