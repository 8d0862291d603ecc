package config

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"strings"
)

// Schema writes a JSON Schema (draft 2020-12) of a file that is decoded over v.
// Descriptions come from the doc comments, defaults from v. A key whose comment
// has the sentence "Required." and whose default is empty is required. Kinds are
// told apart by `type`, each with its own keys. Every value may be a reference.
// The error names fields without a doc comment. Source: JSON Schema 2020-12.
func Schema(v any, docs Docs, opts ...Option) ([]byte, error) {
	top, err := survey(v, docs)
	if err != nil {
		return nil, err
	}
	h := headingOf(opts)
	out := object{{"$schema", "https://json-schema.org/draft/2020-12/schema"}}
	if h.id != "" {
		out = append(out, member{"$id", h.id})
	}
	out = append(out, member{"title", h.title})
	if h.intro != "" {
		out = append(out, member{"description", h.intro})
	}
	out = append(out, top.schema()...)
	out = append(out, member{"patternProperties", object{{"^x-", object{}}}})
	compact, err := json.Marshal(out)
	if err != nil {
		return nil, errDocs.New(err, "write the schema")
	}
	var b bytes.Buffer
	if err := json.Indent(&b, compact, "", "  "); err != nil {
		return nil, errDocs.New(err, "write the schema")
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// object is a JSON object that keeps its order.
type object []member

type member struct {
	key   string
	value any
}

// MarshalJSON implements [json.Marshaler].
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		key, err := marshal(m.key)
		if err != nil {
			return nil, err
		}
		value, err := marshal(m.value)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// marshal leaves < and > as they are, for people.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimRight(b.Bytes(), "\n"), err
}

const (
	hasReference    = `\$\{`
	durationPattern = `^[+-]?([0-9]+d)?([0-9.]+(ns|us|µs|ms|s|m|h))*$|^0$|` + hasReference
	bytesPattern    = `^\s*[0-9.]+\s*([kKmMgGtT][iI]?[bB]|[bB])?\s*$|` + hasReference
)

var reference = object{{"type", "string"}, {"pattern", hasReference}}

// schema returns the keywords for a value of this shape.
func (s *shape) schema() object {
	switch s.what {
	case isString:
		return object{{"type", []string{"string", "number"}}}
	case isEnum:
		return object{{"anyOf", []any{object{{"enum", s.values}}, reference}}}
	case isSecret:
		return object{{"type", []string{"string", "number", "boolean"}}, {"writeOnly", true}}
	case isBool:
		return object{{"type", []string{"boolean", "string"}}, {"pattern", hasReference}}
	case isInt:
		out := object{{"type", []string{"integer", "string"}}, {"pattern", hasReference}}
		if zero := reflect.Zero(s.typ); zero.CanUint() {
			out = append(out, member{"minimum", 0})
		}
		if bits := s.typ.Bits(); bits < 64 { // larger ones do not survive in JSON
			least, most := limits(s.typ)
			out = append(out[:2:2], member{"minimum", json.Number(least)}, member{"maximum", json.Number(most)})
		}
		return out
	case isFloat:
		return object{{"type", []string{"number", "string"}}, {"pattern", hasReference}}
	case isDuration:
		return object{{"type", []string{"string", "integer"}}, {"pattern", durationPattern}, {"minimum", 0}, {"maximum", 0}}
	case isBytes:
		return object{{"type", []string{"string", "integer"}}, {"pattern", bytesPattern}, {"minimum", 0}, {"maximum", json.Number(limit64)}}
	case isAny:
		return object{}
	case isSelf:
		var out map[string]any
		if err := json.Unmarshal([]byte(s.raw), &out); err != nil {
			panic("config: " + s.typ.String() + " describes itself with what is not a JSON object")
		}
		keys := object{}
		for _, k := range sortedKeys(out) {
			keys = append(keys, member{k, out[k]})
		}
		return keys
	case isList:
		return object{{"type", []string{"array", "null"}}, {"items", s.elem.schema()}}
	case isMap:
		out := object{{"type", []string{"object", "null"}}, {"additionalProperties", s.elem.schema()}}
		if s.values != nil {
			out = append(out, member{"propertyNames", object{{"enum", s.values}}})
		}
		return out
	case isStruct:
		return s.structSchema()
	default:
		return object{{"type", []string{"string", "number", "boolean"}}}
	}
}

const limit64 = "9223372036854775807"

func (s *shape) structSchema() object {
	if s.kinds == nil {
		out := mappingSchema(s.fields, "")
		if s.scalar != nil {
			return object{{"anyOf", []any{s.scalar.schema(), out}}}
		}
		return out
	}
	var each []any
	var names []string
	for _, k := range s.kinds {
		names = append(names, k.name)
		each = append(each, append(object{{"title", k.name}, {"description", k.doc}},
			mappingSchema(append(append([]shapeField(nil), s.fields...), k.fields...), k.name)...))
	}
	if s.scalar != nil {
		return object{{"anyOf", []any{
			object{{"enum", names}},
			object{{"oneOf", each}},
		}}}
	}
	return object{{"oneOf", each}}
}

// mappingSchema describes the keys of a mapping. Kind fixes the key type, if set.
func mappingSchema(fields []shapeField, kind string) object {
	props, needed := object{}, []string{}
	for _, f := range fields {
		one := object{{"description", plainDoc(f.doc)}}
		switch {
		case f.key == "type" && kind != "":
			one = append(one, member{"const", kind})
			// Without the key it is the kind that the default names.
			if f.fallback.String() != kind {
				needed = append(needed, f.key)
			}
		default:
			one = append(one, f.shape.schema()...)
			if d, ok := f.defaultJSON(); ok {
				one = append(one, member{"default", d})
			}
			if f.required {
				needed = append(needed, f.key)
			}
		}
		props = append(props, member{f.key, one})
	}
	out := object{{"type", []string{"object", "null"}}, {"properties", props}, {"additionalProperties", false}}
	if kind != "" {
		out[0].value = "object"
	}
	if len(needed) > 0 {
		out[0].value = "object" // a bare key leaves them out
		out = append(out, member{"required", needed})
	}
	return out
}

// plainDoc makes one paragraph a line of a comment.
func plainDoc(doc string) string {
	paragraphs := strings.Split(doc, "\n\n")
	for i, p := range paragraphs {
		paragraphs[i] = strings.Join(strings.Fields(p), " ")
	}
	return strings.Join(paragraphs, "\n\n")
}

// defaultJSON returns the default unless it is an empty text, list or mapping, or
// a mapping whose keys have their own ones.
func (f shapeField) defaultJSON() (any, bool) {
	v := f.fallback
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		if v.IsNil() {
			return nil, false
		}
		v = v.Elem()
	}
	switch f.shape.what {
	case isSecret:
		return nil, false
	case isStruct:
		return nil, false
	case isList, isMap:
		if v.Len() == 0 {
			return nil, false
		}
	case isInt, isFloat:
		if v.CanFloat() && (math.IsInf(v.Float(), 0) || math.IsNaN(v.Float())) {
			return nil, false
		}
		return json.Number(number(v)), true
	case isBool:
		return v.Bool(), true
	default: // as text, below
	}
	if s, ok := plainText(v); ok {
		return s, s != ""
	}
	var out any
	if err := encode(v).Decode(&out); err != nil {
		return nil, false
	}
	return out, true
}
