package config

import (
	"encoding/json"
	"sort"
	"strconv"
	"strings"
)

// Markdown writes a reference of every key of a file that is decoded over v: one
// table for each mapping, and one for each kind. The error names fields without a
// doc comment.
func Markdown(v any, docs Docs, opts ...Option) ([]byte, error) {
	top, err := survey(v, docs)
	if err != nil {
		return nil, err
	}
	h := headingOf(opts)
	w := &manual{told: map[string]string{}}
	w.line("# " + h.title)
	if h.intro != "" {
		w.line("", h.intro)
	}
	w.section("", top, "")
	return []byte(w.String()), nil
}

// manual writes sections in the order of the keys, each after the one that
// names it.
type manual struct {
	strings.Builder
	told map[string]string // where each set of kinds stands
}

func (w *manual) line(lines ...string) {
	for _, l := range lines {
		w.WriteString(l + "\n")
	}
}

// section writes the tables of the mapping at path, and of those below.
func (w *manual) section(path string, s *shape, doc string) {
	if path != "" {
		w.line("", "## `"+path+"`", "")
		w.line(plainDoc(doc))
	}
	w.table(s.fields)
	if s.scalar != nil {
		for _, f := range s.fields {
			if f.shape == s.scalar {
				w.line("", "The value of `"+f.key+"` may stand for the whole mapping.")
			}
		}
	}
	w.below(path, s.fields)
	if first, told := w.told[s.kindOf]; told {
		w.line("", "The types are those of `"+first+"`.")
		return
	}
	if s.kinds != nil {
		w.told[s.kindOf] = path
	}
	for _, k := range s.kinds {
		w.line("", "### `"+path+"` with `type: "+k.name+"`", "", k.doc)
		w.table(k.fields)
		w.below(path, k.fields)
	}
}

// below writes the sections of the mappings among fields.
func (w *manual) below(path string, fields []shapeField) {
	for _, f := range fields {
		at := joinPath(path, f.key)
		inner := f.shape
		for inner.what == isList || inner.what == isMap {
			if inner.what == isList {
				at += "[]" //nolint:perfsprint // seldom more than one turn
			} else {
				at += ".<name>"
			}
			inner = inner.elem
		}
		if inner.what == isStruct {
			w.section(at, inner, f.doc)
		}
	}
}

func (w *manual) table(fields []shapeField) {
	if len(fields) == 0 {
		return
	}
	w.line("", "| key | type | default | meaning |", "|---|---|---|---|")
	for _, f := range fields {
		w.line("| `" + f.key + "` | " + cell(f.typeText()) + " | " + f.defaultText() + " | " + cell(f.doc) + " |")
	}
}

func (f shapeField) typeText() string {
	s := f.shape
	for s.elem != nil {
		s = s.elem
	}
	switch {
	case s.scalar == nil && len(s.values) > 0 && len(s.values) <= 12:
		return f.shape.words + ": `" + strings.Join(s.values, "`, `") + "`"
	case s.what == isInt && s.typ.Bits() < 64:
		least, most := limits(s.typ)
		return f.shape.words + ", " + least + " to " + most
	}
	return f.shape.words
}

func (f shapeField) defaultText() string {
	d, ok := f.defaultJSON()
	if f.shape.scalar != nil {
		for _, inner := range f.shape.fields {
			if inner.shape == f.shape.scalar {
				return inner.defaultText()
			}
		}
	}
	switch {
	case f.required:
		return "required"
	case !ok:
		return ""
	}
	if s, isText := d.(string); isText {
		return "`" + cell(s) + "`"
	}
	text, err := json.Marshal(d)
	if err != nil {
		return ""
	}
	if len(text) > 60 {
		return strconv.Itoa(f.fallback.Len()) + " entries"
	}
	return "`" + cell(string(text)) + "`"
}

// cell puts text into one cell of a table.
func cell(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", `\|`)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
