// Package config reads the configuration file: strict YAML over defaults, with
// every problem reported at once. It is generic: the program composes the struct
// of the file from the structs that the stages own.
//
// A file is decoded over the values that the target struct already holds, its
// defaults. Mappings merge into them, lists and single values replace them. Zero
// is a value, never "unset"; a key without a value is a problem for a single value
// and means "as it is" for a mapping or list. Then every struct that has a method
// Validate() error is asked, from the outside in.
//
// Keys come from yaml tags: `yaml:"name"`. `yaml:",inline"` puts the keys of a
// struct among those of the one around it, `yaml:"-"` keeps a field out,
// `yaml:"name,scalar"` lets the whole struct be written as the value of this one
// key, and `yaml:",kind"` is explained at [Kinds].
//
// Values may hold references: ${NAME} is an environment variable, ${NAME:-text}
// has text for when it is unset or empty, ${file:/path} is the content of a file
// without the newline at its end, and $${ stands for ${ itself. References are
// resolved in values only, after the YAML was read: what they bring in is never
// read as YAML.
//
// Keys at the top level that begin with x- are ignored; they are a place for
// anchors.
package config

import (
	"io"
	"os"
	"path/filepath"
	"reflect"

	"github.com/penstock/penstock/messages/fault"
)

// Limits of a document.
const (
	maxDocument = 1 * MiB
	maxFile     = 64 * KiB // of a ${file:...} reference
	maxDepth    = 64       // of mappings and lists in each other
	maxNodes    = 50_000   // with every alias written out
	maxKey      = 256      // bytes
	maxProblems = 200      // that are reported
)

var errUnreadable = fault.Define("config.unreadable", fault.Stop,
	"check that the file exists and may be read by the user that penstock runs as")

// Load reads the file at path over the defaults in into, a pointer to a struct.
// env looks up environment variables; nil is [os.LookupEnv]. Relative paths in
// ${file:...} count from the folder of the file. The error is an [*Error] when the
// content is at fault.
func Load(path string, into any, env func(string) (string, bool)) error {
	f, err := os.Open(path)
	if err != nil {
		return errUnreadable.New(err, "open the configuration")
	}
	defer f.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(f, int64(maxDocument)+1))
	if err != nil {
		return errUnreadable.New(err, "read the configuration")
	}
	return Parse(path, data, into, env)
}

// Parse is [Load] for data that was read already; name stands in the problems and
// gives the folder for relative paths. After an error the content of into is not
// defined.
func Parse(name string, data []byte, into any, env ...func(string) (string, bool)) error {
	target := reflect.ValueOf(into)
	if target.Kind() != reflect.Pointer || target.IsNil() || target.Elem().Kind() != reflect.Struct {
		panic("config: Parse needs a pointer to a struct")
	}
	d := &document{file: name, dir: filepath.Dir(name), env: os.LookupEnv}
	for _, e := range env {
		if e != nil {
			d.env = e
		}
	}
	root, ok := d.read(data)
	if ok {
		decoder{doc: d}.decode(target.Elem(), root)
		v := validator{doc: d}
		v.walk(target.Elem(), place{node: root}, 0)
	}
	return d.err()
}

// Check validates v, which need not come from a file, as Parse does after
// decoding: for defaults and for what is put together by the program.
func Check(v any) error {
	d := &document{}
	val := validator{doc: d}
	val.walk(reflect.ValueOf(v), place{}, 0)
	return d.err()
}

// document is one file while it is read.
type document struct {
	file     string
	dir      string
	env      func(string) (string, bool)
	nodes    int
	problems []Problem
	// excused are paths of which a problem is known already, so that a second one
	// (a misspelt key is also a missing one) would only distract.
	excused map[string]bool
}

// report adds a problem at n, which may be nil. The path of p is relative to n.
func (d *document) report(n *Node, p Problem) {
	p.File = d.file
	if n != nil {
		p.Line, p.Column = n.line, n.column
		p.Path = joinPath(n.Path(), p.Path)
	}
	d.add(p)
}

// add keeps a problem. A file with thousands of them is the wrong file.
func (d *document) add(p Problem) {
	if len(d.problems) < 10*maxProblems {
		d.problems = append(d.problems, p)
	}
}

// crowded reports whether add takes no more.
func (d *document) crowded() bool { return len(d.problems) >= 10*maxProblems }

func (d *document) excuse(path string) {
	if d.excused == nil {
		d.excused = map[string]bool{}
	}
	if len(d.excused) < 10*maxProblems {
		d.excused[path] = true
	}
}

func (d *document) err() error {
	if len(d.problems) == 0 {
		return nil
	}
	for i := range d.problems {
		d.problems[i].Reason = d.problems[i].reason()
	}
	e := newError(d.problems)
	if more := len(e.Problems) - maxProblems; more > 0 {
		last := e.Problems[maxProblems]
		e.Problems = append(e.Problems[:maxProblems:maxProblems], Problem{
			Code: TooLarge, File: d.file, Line: last.Line, Column: last.Column,
			Reason: "more problems follow that are not listed", Fix: "mend those above first",
		})
	}
	return e
}
