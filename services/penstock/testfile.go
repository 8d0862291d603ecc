package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/transform"
)

// testFile is a file of tests of a configuration.
type testFile struct {
	// Config is the configuration, relative to this file.
	Config string `yaml:"config"`
	// Env are variables for the ${...} of the configuration, before those of the process.
	Env map[string]string `yaml:"env"`
	// Files stand for files that rules name for enrichment: the name in the
	// configuration, and the file, relative to this one, that is read instead.
	Files map[string]string `yaml:"files"`
	// Tests are run one by one, each on its own.
	Tests []testCase `yaml:"tests"`

	path string
}

// testCase is what goes in and what is expected.
type testCase struct {
	Name   string      `yaml:"name"`
	Input  []testInput `yaml:"input"`
	Expect expectation `yaml:"expect"`

	node *config.Node
}

// testInput is one thing that a source gets: one of object, record and message.
type testInput struct {
	// Source is the name of a source in the configuration.
	Source string `yaml:"source"`
	// Object is one that was announced.
	Object *testObject `yaml:"object"`
	// Record is the bytes of one record, or of several as an object would hold them.
	Record *testText `yaml:"record"`
	// Message is the body of a message in the queue: notifications of objects, or events.
	Message *testText `yaml:"message"`
	// Objects are those that the notifications in Message name.
	Objects []testObject `yaml:"objects"`
}

// testText is given here, or in a file relative to this one.
type testText struct {
	Body string `yaml:"body,scalar"`
	File string `yaml:"file"`
}

// testObject is an object in a bucket.
type testObject struct {
	// Bucket may be left out where the object is announced by the test itself.
	Bucket string `yaml:"bucket"`
	Key    string `yaml:"key"`
	Body   string `yaml:"body"`
	File   string `yaml:"file"`
}

// expectation is what is to come of a test. What is not named is not looked at, but for
// quarantine: nothing is to be there that is not named.
type expectation struct {
	// Events is how many pass dedupe, before the routes.
	Events *int `yaml:"events"`
	// Duplicates is how many do not.
	Duplicates *int `yaml:"duplicates"`
	// Dropped is how many events each rule drops.
	Dropped map[string]int `yaml:"dropped"`
	// Quarantined is how many records or events are refused, by code.
	Quarantined map[string]int `yaml:"quarantined"`
	// Destinations by name.
	Destinations map[string]*expectDestination `yaml:"destinations"`

	node *config.Node
}

// expectDestination is what a destination gets.
type expectDestination struct {
	// Count of events.
	Count *int `yaml:"count,scalar"`
	// Types are all types of the events, and how many each has.
	Types map[string]int `yaml:"types"`
	// Filtered is how many events its expression leaves out.
	Filtered *int `yaml:"filtered"`
	// Where are CEL expressions that hold for every event, as the destination sees it.
	Where []string `yaml:"where"`
	// Bodies are the events as the destination writes them, in order.
	Bodies []string `yaml:"bodies"`
	// BodiesFile holds them one after the other, relative to this file.
	BodiesFile string `yaml:"bodies_file"`

	node *config.Node
}

// UnmarshalConfig implements config.Unmarshaler: the node tells the lines later.
func (c *testCase) UnmarshalConfig(n *config.Node) error {
	type plain testCase
	c.node = n
	return n.Decode((*plain)(c))
}

// UnmarshalConfig implements config.Unmarshaler.
func (e *expectation) UnmarshalConfig(n *config.Node) error {
	type plain expectation
	e.node = n
	return n.Decode((*plain)(e))
}

// UnmarshalConfig implements config.Unmarshaler.
func (e *expectDestination) UnmarshalConfig(n *config.Node) error {
	type plain expectDestination
	e.node = n
	return n.Decode((*plain)(e))
}

// Validate reports every problem, each with the key to change.
func (t testFile) Validate() error {
	var p config.Problems
	p.Need(t.Config != "", "config", "name the configuration to test, e.g. penstock.yaml")
	p.Need(len(t.Tests) > 0, "tests", "write at least one test")
	names := map[string]bool{}
	for i, c := range t.Tests {
		p.Need(c.Name != "" && !names[c.Name], fmt.Sprintf("tests[%d].name", i), "give each test a name of its own")
		names[c.Name] = true
		p.Need(len(c.Input) > 0, fmt.Sprintf("tests[%d].input", i), "give it something to read, e.g. - {source: trail, record: '{...}'}")
	}
	return p.Err()
}

// Validate reports every problem, each with the key to change.
func (i testInput) Validate() error {
	var p config.Problems
	p.Need(i.Source != "", "source", "name a source of the configuration")
	given := 0
	for _, set := range []bool{i.Object != nil, i.Record != nil, i.Message != nil} {
		if set {
			given++
		}
	}
	p.Need(given == 1, "", "use exactly one of object, record and message in an input")
	p.Need(i.Message != nil || len(i.Objects) == 0, "objects", "use it with message, whose notifications name the objects")
	if i.Object != nil {
		p.Need(i.Object.Key != "", "object.key", "give the key of the object: formats and tables go by it")
	}
	for k, o := range i.Objects {
		p.Need(o.Bucket != "" && o.Key != "", fmt.Sprintf("objects[%d]", k), "give bucket and key as the notification names them")
	}
	return p.Err()
}

// Validate reports every problem, each with the key to change.
func (t testText) Validate() error {
	var p config.Problems
	p.Need((t.Body == "") != (t.File == ""), "", "use exactly one of body and file")
	return p.Err()
}

// Validate reports every problem, each with the key to change.
func (o testObject) Validate() error {
	var p config.Problems
	p.Need(o.Body == "" || o.File == "", "file", "use one of body and file")
	return p.Err()
}

// Validate reports every problem, each with the key to change.
func (e expectDestination) Validate() error {
	var p config.Problems
	for i, w := range e.Where {
		if _, err := condition.Compile(w); err != nil {
			why, fix := condition.Explain(err)
			p.Add(fmt.Sprintf("where[%d]", i), why, fix)
		}
	}
	p.Need(e.Bodies == nil || e.BodiesFile == "", "bodies_file", "use one of bodies and bodies_file")
	return p.Err()
}

// loadTests reads a file of tests and the configuration that it is about. Problems of
// either are a config.Error.
func loadTests(path string) (testFile, File, error) {
	t := testFile{path: path}
	if _, err := os.Stat(path); err != nil {
		return t, File{}, usageError{fmt.Errorf("%w; see penstock test --help for what it holds", err)}
	}
	if err := config.Load(path, &t, os.LookupEnv); err != nil {
		return t, File{}, err
	}
	file := defaults()
	err := config.Load(t.relative(t.Config), &file, func(name string) (string, bool) {
		if v, ok := t.Env[name]; ok {
			return v, true
		}
		return os.LookupEnv(name)
	})
	var wrong *config.Error
	if err != nil && !errors.As(err, &wrong) {
		err = usageError{fmt.Errorf("%s: config: %w", path, err)}
	}
	if err != nil {
		return t, file, err
	}
	for i := range file.Routes {
		if e := file.Routes[i].Enrich; e != nil {
			t.replaceFiles(e)
		}
	}
	return t, file, t.fits(&file)
}

// relative is the place of a file that this one names.
func (t *testFile) relative(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(t.path), name)
}

// replaceFiles puts the files of the test in the place of those of a rule.
func (t *testFile) replaceFiles(e *transform.Enrich) {
	instead := func(name *string) {
		if to, ok := t.Files[*name]; ok {
			*name = t.relative(to)
		}
	}
	if e.Table != nil {
		target := e.TargetPath() // it may go by the name of the file
		instead(&e.Table.File)
		e.Target = target
	}
	if e.GeoIP != nil {
		for i := range e.GeoIP.Databases {
			instead(&e.GeoIP.Databases[i])
		}
	}
}

// fits tells whether the names in the tests are in the configuration.
func (t *testFile) fits(file *File) error {
	known := map[string]*Source{}
	for i := range file.Sources {
		known[file.Sources[i].Name] = &file.Sources[i]
	}
	rules, destinations := map[string]bool{}, map[string]bool{}
	for _, r := range file.Routes {
		rules[r.Name] = true
	}
	for _, d := range file.Destinations {
		destinations[d.Name] = true
	}
	var all []config.Problem
	add := func(n *config.Node, why, fix string) {
		var e *config.Error
		if errors.As(n.Problem(why, fix), &e) {
			for _, p := range e.Problems {
				p.File = t.path
				all = append(all, p)
			}
		}
	}
	for i := range t.Tests {
		c := &t.Tests[i]
		for k, in := range c.Input {
			n := c.node.Get("input").Items()[k]
			source := known[in.Source]
			if source == nil {
				add(n.Get("source"), "there is no such source in "+t.Config, "name one of its sources")
				continue
			}
			if _, queue := source.Options.(*sources.SQSConfig); in.Message != nil && !queue {
				add(n.Get("message"), "the source is no queue", "use record, or object where it reads a bucket")
			}
		}
		for name := range c.Expect.Dropped {
			if !rules[name] {
				add(c.Expect.node.Get("dropped").Get(name), "there is no such rule in "+t.Config, "name one of its routes")
			}
		}
		for name := range c.Expect.Destinations {
			if !destinations[name] {
				add(c.Expect.node.Get("destinations").Get(name), "there is no such destination in "+t.Config, "name one of its destinations")
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	return &config.Error{Problems: all}
}
