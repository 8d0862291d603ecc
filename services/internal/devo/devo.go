// Package devo reads the configuration of Devo's AWS collector and turns it into
// one of penstock.
//
//	collector file (YAML or JSON) ──Read──▶ Collector ──Convert──▶ penstock.yaml + notes
//
// In:     the file of the collector, with inputs, credentials, services, types,
// regions, queues and tags; module definitions where a service overrides them.
// Out:    configuration text, and a note for everything that could not be carried
// over, with its line.
// Errors: [Errors], all that is wrong in the file, each with the class, number and
// text that the collector would have printed and a code of ours that is unique.
// State:  none.
// Source: features DEV-11 to DEV-23, DEV-63 to DEV-81, DEV-148 to DEV-163, DEV-E1
// to DEV-E94.
package devo

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile is the largest configuration that is read, in bytes.
const maxFile = 4 << 20

// Problem is one thing wrong in a file.
type Problem struct {
	// Code is ours: one for each kind of problem, for ever.
	Code string
	// Class and Number are what the collector prints. Several problems have the
	// same.
	Class  string
	Number int
	// Line in the file, from 1.
	Line int
	// Text says what is wrong, Fix what to do about it.
	Text, Fix string
	// Internal problems are in a definition, not in what users write.
	Internal bool
}

func (p Problem) String() string {
	return fmt.Sprintf("line %d: %s: %s[%d]: %s; fix: %s", p.Line, p.Code, p.Class, p.Number, p.Text, p.Fix)
}

// Errors are all problems of a file, by line.
type Errors []Problem

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, p := range e {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Collector is the configuration of a collector.
type Collector struct {
	// ID and Name of the collector, "" where it has none.
	ID, Name string
	Debug    bool
	Inputs   []Input
	Outputs  []Output
	// senders are global settings that hold for each output that has none of its own,
	// by the key of an output.
	senders map[string]string
	// rest are keys that mean nothing to penstock.
	rest []leftover
}

// Input is an account that is collected from.
type Input struct {
	Name, ID          string
	Enabled           bool
	RequestsPerSecond string
	Credentials       map[string]string
	Services          []Service
	Line              int
}

// Service is one service of an input.
type Service struct {
	Name    string
	Enabled bool
	Line    int
	node    *yaml.Node
	used    map[string]bool
}

// Output is where the collector sends to.
type Output struct {
	Name, Type string
	Config     map[string]string
	Line       int
}

type leftover struct {
	line int
	path string
}

// Read reads the configuration of a collector. The error is [Errors], or one that
// says that data is neither YAML nor JSON.
func Read(data []byte) (*Collector, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("the file has %d bytes, more than %d", len(data), maxFile)
	}
	var top yaml.Node
	if err := yaml.Unmarshal(data, &top); err != nil {
		return nil, fmt.Errorf("the file is neither YAML nor JSON: %w", err)
	}
	if top.Kind != yaml.DocumentNode || len(top.Content) != 1 || top.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("the file should be a mapping with inputs")
	}
	r := &reader{}
	c := &Collector{senders: map[string]string{}}
	root := top.Content[0]
	for key, value := range pairs(root) {
		switch key.Value {
		case "globals", "global_overrides":
			r.globals(c, key.Value, value)
		case "inputs", "outputs":
		default:
			c.rest = append(c.rest, leftover{key.Line, key.Value})
		}
	}
	r.inputs(c, root)
	r.outputs(c, root)
	if len(r.problems) > 0 {
		sort.SliceStable(r.problems, func(i, k int) bool { return r.problems[i].Line < r.problems[k].Line })
		return c, r.problems
	}
	return c, nil
}

// reader collects problems.
type reader struct{ problems Errors }

// pairs yields the keys and values of a mapping.
func pairs(n *yaml.Node) func(func(key, value *yaml.Node) bool) {
	return func(yield func(key, value *yaml.Node) bool) {
		if n == nil || n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if !yield(n.Content[i], follow(n.Content[i+1])) {
				return
			}
		}
	}
}

// follow leads from an alias to what it stands for.
func follow(n *yaml.Node) *yaml.Node {
	for range 8 {
		if n == nil || n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return nil
}

// get returns the value of a key, nil where there is none.
func get(n *yaml.Node, key string) *yaml.Node {
	for k, v := range pairs(n) {
		if k.Value == key {
			return v
		}
	}
	return nil
}

// line is that of the value, or of the mapping that lacks it.
func line(value, parent *yaml.Node) int {
	switch {
	case value != nil:
		return value.Line
	case parent != nil:
		return parent.Line
	}
	return 1
}

// What a value is.
func absent(n *yaml.Node) bool {
	if n == nil || n.Tag == "!!null" {
		return true
	}
	return n.Kind == yaml.ScalarNode && n.Value == "" || n.Kind != yaml.ScalarNode && len(n.Content) == 0
}
func isMap(n *yaml.Node) bool  { return n.Kind == yaml.MappingNode }
func isList(n *yaml.Node) bool { return n.Kind == yaml.SequenceNode }
func isText(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!str" }
func isBool(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!bool" }
func isInt(n *yaml.Node) bool  { return n.Kind == yaml.ScalarNode && n.Tag == "!!int" }

// texts are the values of a list of text, or of one text.
func texts(n *yaml.Node) []string {
	switch {
	case n == nil || n.Tag == "!!null":
		return nil
	case n.Kind == yaml.ScalarNode:
		return []string{n.Value}
	}
	var out []string
	for _, item := range n.Content {
		if item = follow(item); item != nil && item.Kind == yaml.ScalarNode {
			out = append(out, item.Value)
		}
	}
	return out
}

func (r *reader) globals(c *Collector, name string, n *yaml.Node) {
	for key, value := range pairs(n) {
		switch key.Value {
		case "debug":
			c.Debug = value.Value == "true"
		case "id":
			c.ID = value.Value
		case "name":
			c.Name = value.Value
		case "sender_concurrent_connections":
			c.senders[concurrentKey] = value.Value
		case "devo_sender_threshold_for_using_gzip_in_transport_layer":
			c.senders[gzipKey] = value.Value
		default:
			c.rest = append(c.rest, leftover{key.Line, name + "." + key.Value})
		}
	}
}

func (r *reader) inputs(c *Collector, root *yaml.Node) {
	inputs := get(root, "inputs")
	if !r.mapping(inputs, root, "inputs", 30) {
		return
	}
	for key, value := range pairs(inputs) {
		path := "inputs." + key.Value
		if !r.mapping(value, inputs, path, 30) {
			continue
		}
		in := Input{Name: key.Value, Enabled: true, Credentials: map[string]string{}, Line: key.Line}
		for k, v := range pairs(value) {
			switch k.Value {
			case "id":
				in.ID = v.Value
			case "enabled":
				in.Enabled = v.Value != "false"
			case "requests_per_second", "request_per_second":
				in.RequestsPerSecond = v.Value
			case "credentials":
				for name, secret := range pairs(v) {
					in.Credentials[name.Value] = secret.Value
				}
			case "services":
			default:
				c.rest = append(c.rest, leftover{k.Line, path + "." + k.Value})
			}
		}
		services := get(value, "services")
		if !r.mapping(services, value, path+".services", 32) {
			continue
		}
		for k, v := range pairs(services) {
			s := Service{Name: k.Value, Enabled: true, Line: k.Line, node: v, used: map[string]bool{}}
			at := path + ".services." + k.Value
			if !absent(v) && !isMap(v) {
				r.add(33, v.Line, at)
				continue
			}
			if off := s.get("enabled"); off != nil && off.Value == "false" {
				s.Enabled = false
			}
			r.service(&in, &s, at)
			in.Services = append(in.Services, s)
		}
		c.Inputs = append(c.Inputs, in)
	}
}

// mapping reports a mapping that is missing, by rule number, or none, by the next.
func (r *reader) mapping(n, parent *yaml.Node, path string, number int) bool {
	switch {
	case absent(n):
		r.add(number, line(n, parent), path)
		return false
	case !isMap(n):
		r.add(number+1, n.Line, path)
		return false
	}
	return true
}

func (r *reader) outputs(c *Collector, root *yaml.Node) {
	for key, value := range pairs(get(root, "outputs")) {
		o := Output{Name: key.Value, Config: map[string]string{}, Line: key.Line}
		for k, v := range pairs(value) {
			switch k.Value {
			case "type":
				o.Type = v.Value
			case "config":
				for name, text := range pairs(v) {
					o.Config[name.Value] = text.Value
				}
			default:
				c.rest = append(c.rest, leftover{k.Line, "outputs." + key.Value + "." + k.Value})
			}
		}
		c.Outputs = append(c.Outputs, o)
	}
}

// get returns a value of the service and notes that it was looked at.
func (s *Service) get(key string) *yaml.Node {
	s.used[key] = true
	return get(s.node, key)
}

// queue returns the queue of the service, whatever the key is called that names it.
// Where there are several, that with one of words in it.
func (s *Service) queue(words ...string) (key string, n *yaml.Node) {
	for k, v := range pairs(s.node) {
		if !strings.HasSuffix(k.Value, "sqs_queue_name") && k.Value != "queue_name" && k.Value != "sqs_queue" {
			continue
		}
		s.used[k.Value] = true
		has := slices.ContainsFunc(words, func(word string) bool { return strings.Contains(k.Value, word) })
		if key == "" || has {
			key, n = k.Value, v
		}
	}
	return key, n
}

// types are the types that a service is asked for, at least one, if only "".
func (s *Service) types() []string {
	if all := texts(s.get("types")); len(all) > 0 {
		return all
	}
	return []string{defaultTypes[s.Name]}
}
