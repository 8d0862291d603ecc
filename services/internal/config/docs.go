package config

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"

	"github.com/penstock/penstock/messages/fault"
)

var errDocs = fault.Define("config.docs", fault.Reject,
	"write a doc comment for every field of a configuration struct, and give every such struct a name")

// Docs holds the doc comments of struct fields, by import path, type and field.
type Docs map[string]string

// ReadDocs reads the doc comments of all struct fields in the Go files of the
// folders. A folder that ends in /... stands for all below it too. The folders
// must lie in a Go module. It needs the source: it is for generators and tests.
func ReadDocs(dirs ...string) (Docs, error) {
	docs := Docs{}
	for _, dir := range dirs {
		top, all := strings.CutSuffix(dir, "/...")
		if err := docs.readTree(top, all); err != nil {
			return nil, errDocs.New(err, "read the doc comments in %s", dir)
		}
	}
	return docs, nil
}

func (docs Docs) readTree(top string, all bool) error {
	return filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || !d.IsDir():
			return err
		case p != top && (!all || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		}
		return docs.readDir(p)
	})
}

func (docs Docs) readDir(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		return err
	}
	importPath, err := importPathOf(dir)
	if err != nil {
		return err
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		// Package reflect calls a command's package main, and the tests' one _test.
		pkg := importPath
		switch {
		case f.Name.Name == "main":
			pkg = "main"
		case strings.HasSuffix(f.Name.Name, "_test"):
			pkg += "_test"
		}
		docs.readFile(pkg, f)
	}
	return nil
}

func (docs Docs) readFile(pkg string, f *ast.File) {
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		st, ok := spec.Type.(*ast.StructType)
		if !ok {
			return true
		}
		for _, field := range st.Fields.List {
			text := field.Doc.Text()
			if text == "" {
				text = field.Comment.Text()
			}
			for _, name := range field.Names {
				docs[pkg+"."+spec.Name.Name+"."+name.Name] = strings.TrimSpace(text)
			}
		}
		return true
	})
}

var moduleLine = regexp.MustCompile(`(?m)^module\s+"?([^\s"]+)`)

// importPathOf finds the go.mod above dir.
func importPathOf(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		mod, err := os.ReadFile(filepath.Join(at, "go.mod"))
		if err != nil {
			if at == filepath.Dir(at) {
				return "", err
			}
			continue
		}
		rel, err := filepath.Rel(at, dir)
		if err != nil {
			return "", err
		}
		m := moduleLine.FindSubmatch(mod)
		if m == nil {
			return "", fs.ErrInvalid
		}
		return path.Join(string(m[1]), filepath.ToSlash(rel)), nil
	}
}

// of returns the comment on a field in the words of the file: the key in place of
// the name of the Go field.
func (docs Docs) of(f field) string {
	typeName, _, _ := strings.Cut(f.owner.Name(), "[") // without type parameters
	text := docs[f.owner.PkgPath()+"."+typeName+"."+f.goName]
	if rest, ok := strings.CutPrefix(text, f.goName+" "); ok {
		text = "`" + f.name + "` " + rest
	}
	return text
}

// required is the sentence in a doc comment that makes a key required in the schema.
var required = regexp.MustCompile(`(^|\s)Required\.(\s|$)`)

// Option changes what [Schema] and [Markdown] write around the keys.
type Option func(*heading)

type heading struct {
	title, intro, id string
}

// Title sets the title, "Configuration" if it is not given.
func Title(s string) Option { return func(h *heading) { h.title = s } }

// Intro sets the text below the title.
func Intro(s string) Option { return func(h *heading) { h.intro = s } }

// ID sets the $id of the schema.
func ID(url string) Option { return func(h *heading) { h.id = url } }

func headingOf(opts []Option) heading {
	h := heading{title: "Configuration"}
	for _, o := range opts {
		o(&h)
	}
	return h
}

// shape describes one value of a configuration: what [Schema] and [Markdown] print.
type shape struct {
	typ    reflect.Type
	what   what
	words  string // type in a few words
	raw    string // JSON Schema of a type that describes itself
	fields []shapeField
	elem   *shape
	values []string // that an enum, or the keys of a mapping of enums, may have
	scalar *shape   // of the key that may stand for all of a struct
	kinds  []variant
	kindOf string // what the kinds are kinds of
}

// plural of the words for the type.
func (s *shape) plural() string {
	switch {
	case s.what == isText || s.what == isString || s.what == isBool || s.what == isSelf || s.scalar != nil || s.elem != nil:
		return s.words
	}
	return s.words + "s"
}

type what uint8

const (
	isText what = iota
	isString
	isEnum
	isSecret
	isBool
	isInt
	isFloat
	isDuration
	isBytes
	isAny
	isSelf // describes itself
	isList
	isMap
	isStruct
)

type shapeField struct {
	key      string
	doc      string
	required bool
	fallback reflect.Value // the default
	shape    *shape
}

type variant struct {
	name, doc string
	fields    []shapeField
}

var describedType = reflect.TypeFor[Described]()

// Described is for types with an UnmarshalConfig method whose values do not look
// like their fields: what to write about them.
type Described interface {
	// DescribeConfig returns a JSON Schema of the values and a few words for people.
	DescribeConfig() (schema, words string)
}

// surveyor makes shapes from types and default values.
type surveyor struct {
	docs    Docs
	missing []string
	open    []reflect.Type
}

func survey(v any, docs Docs) (*shape, error) {
	s := &surveyor{docs: docs}
	out := s.shape(reflect.Indirect(reflect.ValueOf(v)))
	if len(s.missing) > 0 {
		return nil, errDocs.New(nil, "describe the configuration: without a doc comment: %s", strings.Join(s.missing, ", "))
	}
	return out, nil
}

// shape describes the type of v, whose value holds the defaults.
func (s *surveyor) shape(v reflect.Value) *shape {
	t := v.Type()
	p := reflect.PointerTo(t)
	switch {
	case t.Kind() == reflect.Pointer:
		if v.IsNil() {
			return s.shape(fresh(t.Elem()))
		}
		return s.shape(v.Elem())
	case t == secretType:
		return &shape{typ: t, what: isSecret, words: "secret"}
	case p.Implements(describedType):
		schema, words := reflect.New(t).Interface().(Described).DescribeConfig()
		return &shape{typ: t, what: isSelf, words: words, raw: schema}
	case p.Implements(unmarshalerType) && (t.Kind() != reflect.Struct || foreign(t)):
		return &shape{typ: t, what: isSelf, words: "value", raw: "{}"}
	case t == durationType:
		return &shape{typ: t, what: isDuration, words: "duration"}
	case t == bytesType:
		return &shape{typ: t, what: isBytes, words: "size"}
	case p.Implements(textType):
		return &shape{typ: t, what: isText, words: "text"}
	}
	switch t.Kind() {
	case reflect.Struct:
		return s.structs(v)
	case reflect.Slice:
		elem := s.shape(fresh(t.Elem()))
		return &shape{typ: t, what: isList, words: "list of " + elem.plural(), elem: elem}
	case reflect.Map:
		elem := s.shape(fresh(t.Elem()))
		out := &shape{typ: t, what: isMap, words: "mapping to " + elem.plural(), elem: elem}
		if t.Key().Implements(enumType) {
			out.values = reflect.Zero(t.Key()).Interface().(Enum).Values()
		}
		return out
	case reflect.String:
		if t.Implements(enumType) {
			return &shape{typ: t, what: isEnum, words: "word", values: reflect.Zero(t).Interface().(Enum).Values()}
		}
		return &shape{typ: t, what: isString, words: "text"}
	case reflect.Bool:
		return &shape{typ: t, what: isBool, words: "true or false"}
	case reflect.Float32, reflect.Float64:
		return &shape{typ: t, what: isFloat, words: "number"}
	case reflect.Interface:
		return &shape{typ: t, what: isAny, words: "value"}
	default:
		return &shape{typ: t, what: isInt, words: "whole number"}
	}
}

func (s *surveyor) structs(v reflect.Value) *shape {
	t := v.Type()
	for _, outer := range s.open {
		if outer == t {
			panic("config: " + t.String() + " contains itself")
		}
	}
	s.open = append(s.open, t)
	defer func() { s.open = s.open[:len(s.open)-1] }()

	l := layoutOf(t)
	out := &shape{typ: t, what: isStruct, words: "mapping", fields: s.fields(v, l)}
	if l.scalar >= 0 {
		out.scalar = out.fields[l.scalar].shape
		out.words = out.scalar.words + " or mapping"
	}
	kinds := l.kinds(v)
	if kinds == nil {
		return out
	}
	out.kindOf = kinds.What()
	out.words = kinds.What()
	out.fields[l.typ].shape = &shape{typ: out.fields[l.typ].shape.typ, what: isEnum, words: "word", values: kinds.Names()}
	out.fields[l.typ].required = out.fields[l.typ].fallback.IsZero()
	if l.scalar == l.typ {
		out.scalar, out.words = out.fields[l.typ].shape, "word or mapping"
	}
	for _, name := range kinds.Names() {
		options, _ := kinds.Defaults(name)
		o := reflect.ValueOf(options).Elem()
		own := s.fields(o, layoutOf(o.Type()))
		for _, f := range own {
			if _, taken := l.find(f.key); taken {
				panic("config: the key " + f.key + " of the " + kinds.What() + " type " + name + " is also one of " + t.String())
			}
		}
		out.kinds = append(out.kinds, variant{name: name, doc: kinds.Doc(name), fields: own})
	}
	return out
}

func (s *surveyor) fields(v reflect.Value, l layout) []shapeField {
	out := make([]shapeField, len(l.fields))
	for i, f := range l.fields {
		doc := s.docs.of(f)
		if doc == "" {
			s.missing = append(s.missing, f.owner.String()+"."+f.goName)
		}
		fv := v.FieldByIndex(f.index)
		out[i] = shapeField{
			key: f.name, doc: doc, fallback: fv, shape: s.shape(fv),
			required: required.MatchString(doc) && fv.IsZero(),
		}
	}
	return out
}
