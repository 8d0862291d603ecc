package markup

import (
	"cmp"
	"errors"
	"fmt"
	"html/template"
	"math"
	"reflect"
	"slices"
	"strings"
)

// builtins are the functions that every template knows; what and and or do is in exec.
var builtins = map[string]any{
	"and": func(first any, _ ...any) any { return first },
	"or":  func(first any, _ ...any) any { return first },
	"not": func(v any) bool { return !truth(reflect.ValueOf(v)) },
	"eq":  equal,
	"ne": func(a, b any) (bool, error) {
		same, err := equal(a, b)
		return !same, err
	},
	"lt": func(a, b any) (bool, error) { return ordered(a, b, func(c int) bool { return c < 0 }) },
	"le": func(a, b any) (bool, error) { return ordered(a, b, func(c int) bool { return c <= 0 }) },
	"gt": func(a, b any) (bool, error) { return ordered(a, b, func(c int) bool { return c > 0 }) },
	"ge": func(a, b any) (bool, error) { return ordered(a, b, func(c int) bool { return c >= 0 }) },
	"len": func(v any) (int, error) {
		switch r, _ := indirect(reflect.ValueOf(v)); r.Kind() {
		case reflect.String, reflect.Slice, reflect.Array, reflect.Map:
			return r.Len(), nil
		default:
			return 0, fmt.Errorf("a %T has no length", v)
		}
	},
	"index": index,
	"print": fmt.Sprint,
}

// truth tells whether a value counts as true: not empty, not zero, not nil.
func truth(v reflect.Value) bool {
	if !v.IsValid() {
		return false
	}
	yes, _ := template.IsTrue(v.Interface())
	return yes
}

// basic makes one of int64, uint64, float64, string and bool of a value. What points to
// one is none, nor is what is not a number.
func basic(v any) (any, error) {
	r := reflect.ValueOf(v)
	switch {
	case !r.IsValid():
	case r.CanInt():
		return r.Int(), nil
	case r.CanUint():
		return r.Uint(), nil
	case r.CanFloat() && !math.IsNaN(r.Float()):
		return r.Float(), nil
	case r.Kind() == reflect.String:
		return r.String(), nil
	case r.Kind() == reflect.Bool:
		return r.Bool(), nil
	}
	return nil, errKinds
}

// compare is below, above or zero. Numbers of both signs may be compared, not those with a point to those without.
func compare(a, b any) (int, error) {
	x, err := basic(a)
	if err != nil {
		return 0, err
	}
	y, err := basic(b)
	if err != nil {
		return 0, err
	}
	switch x := x.(type) {
	case int64:
		switch y := y.(type) {
		case int64:
			return cmp.Compare(x, y), nil
		case uint64:
			if x < 0 {
				return -1, nil
			}
			return cmp.Compare(uint64(x), y), nil
		}
	case uint64:
		switch y := y.(type) {
		case uint64:
			return cmp.Compare(x, y), nil
		case int64:
			if y < 0 {
				return 1, nil
			}
			return cmp.Compare(x, uint64(y)), nil
		}
	case float64:
		if y, ok := y.(float64); ok {
			return cmp.Compare(x, y), nil
		}
	case string:
		if y, ok := y.(string); ok {
			return cmp.Compare(x, y), nil
		}
	case bool:
		if y, ok := y.(bool); ok {
			if x == y {
				return 0, nil
			}
			return 1, nil // equal only asks whether they differ
		}
	}
	return 0, errKinds
}

// equal tells whether a is one of the others. Nothing, as of a key that a map lacks, is only like nothing.
func equal(a, first any, others ...any) (bool, error) {
	for _, b := range append([]any{first}, others...) {
		if a == nil || b == nil {
			if a == nil && b == nil {
				return true, nil
			}
			if _, err := basic(cmp.Or(a, b)); err != nil {
				return false, err // a pointer may be nothing, too
			}
			continue
		}
		c, err := compare(a, b)
		if err != nil || c == 0 {
			return err == nil, err
		}
	}
	return false, nil
}

func ordered(a, b any, is func(int) bool) (bool, error) {
	if _, ok := a.(bool); ok {
		return false, errKinds
	}
	c, err := compare(a, b)
	return err == nil && is(c), err
}

// index is what a slice or a map has at a place.
func index(of any, place any) (any, error) {
	v, _ := indirect(reflect.ValueOf(of))
	p := reflect.ValueOf(place)
	switch v.Kind() {
	case reflect.Slice, reflect.Array, reflect.String:
		if !p.IsValid() || !p.CanInt() || p.Int() < 0 || p.Int() >= int64(v.Len()) {
			return nil, fmt.Errorf("no place %v in %d", place, v.Len())
		}
		return v.Index(int(p.Int())).Interface(), nil
	case reflect.Map:
		if !p.IsValid() || p.Kind() != v.Type().Key().Kind() {
			return nil, fmt.Errorf("%v is no key of a %T", place, of)
		}
		if got := v.MapIndex(p.Convert(v.Type().Key())); got.IsValid() {
			return got.Interface(), nil
		}
		return reflect.Zero(v.Type().Elem()).Interface(), nil
	default:
		return nil, fmt.Errorf("a %T has no places", of)
	}
}

// sortedKeys are the keys of a map in the order of their text.
func sortedKeys(m reflect.Value) []reflect.Value {
	keys := m.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	return keys
}

// final are the escapers after which a value may stand in a page.
var final = map[string]bool{
	"_html_template_htmlescaper": true, "_html_template_attrescaper": true, "_html_template_rcdataescaper": true,
}

// escapers do what those of html/template with the same names do. Where no tags may stand they
// refuse template.HTML: html/template cuts its tags out.
var escapers = map[string]any{
	"_html_template_htmlescaper": func(args ...any) string {
		if h, ok := only(args).(template.HTML); ok {
			return string(h)
		}
		return Escape(text(args))
	},
	"_html_template_attrescaper":   untagged,
	"_html_template_rcdataescaper": untagged,
	"_html_template_urlfilter": func(args ...any) string {
		s := text(args)
		if _, ok := only(args).(template.URL); ok {
			return s
		}
		if scheme, _, ok := strings.Cut(s, ":"); ok && !strings.Contains(scheme, "/") {
			if !slices.ContainsFunc([]string{"http", "https", "mailto"}, func(known string) bool { return strings.EqualFold(scheme, known) }) {
				return "#ZgotmplZ"
			}
		}
		return s
	},
	"_html_template_urlnormalizer": func(args ...any) string { return inURL(text(args), true) },
	"_html_template_urlescaper": func(args ...any) string {
		_, whole := only(args).(template.URL)
		return inURL(text(args), whole)
	},
}

// untagged escapes what may have no tags.
func untagged(args ...any) (string, error) {
	if _, ok := only(args).(template.HTML); ok {
		return "", errors.New("template.HTML may stand between tags only")
	}
	return Escape(text(args)), nil
}

// only is the one argument that there is, nil for none or several.
func only(args []any) any {
	if len(args) != 1 {
		return nil
	}
	v := reflect.ValueOf(args[0])
	for v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	if !v.IsValid() {
		return nil
	}
	return v.Interface()
}

// text is what values look like; nothing for nil.
func text(args []any) string {
	if s, ok := only(args).(string); ok {
		return s
	}
	var shown []any
	for _, a := range args {
		if a == nil {
			continue
		}
		v := reflect.ValueOf(a)
		for v.Kind() == reflect.Pointer && !v.IsNil() && !speaks(v) {
			v = v.Elem()
		}
		shown = append(shown, v.Interface())
	}
	return fmt.Sprint(shown...)
}

// speaks tells whether a value has a text of its own.
func speaks(v reflect.Value) bool {
	switch v.Interface().(type) {
	case fmt.Stringer, error:
		return true
	}
	return false
}

// inURL escapes what stands in an address. In a whole one, what structures it stays.
func inURL(s string, whole bool) string {
	const hex = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~", c) >= 0,
			whole && strings.IndexByte("!#$&*+,/:;=?@[]", c) >= 0,
			whole && c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			b.WriteByte(c)
		default:
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}
