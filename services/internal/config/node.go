package config

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Kind tells what stands at a [Node].
type Kind uint8

// The kinds of nodes.
const (
	// Null is a key without a value.
	Null Kind = iota
	// Scalar is a single value.
	Scalar
	// List is a sequence.
	List
	// Map is a mapping.
	Map
)

func (k Kind) String() string {
	return [...]string{"nothing", "a single value", "a list", "a mapping"}[k]
}

// Node is one place in a file with what stands there: aliases followed, merge keys
// merged, references resolved. Nodes are read-only.
type Node struct {
	doc          *document
	kind         Kind
	line, column int
	parent       *Node
	key          string // in the parent, if that is a mapping
	index        int    // in the parent, if that is a list

	tag      string // of a scalar: !!str, !!int, !!float, !!bool, !!timestamp
	text     string // of a scalar, references resolved
	raw      string // of a scalar, as written
	resolved bool   // whether there was a reference in it

	items []*Node
	pairs []pair
	at    map[string]int // key → index in pairs
}

type pair struct {
	key          string
	line, column int // of the key
	value        *Node
	merged       bool // came through a merge key
}

// Kind of the node.
func (n *Node) Kind() Kind { return n.kind }

// Line in the file, from 1.
func (n *Node) Line() int { return n.line }

// Column in the line, from 1.
func (n *Node) Column() int { return n.column }

// Text of a scalar with its references resolved; it may hold a secret. Empty for
// every other kind.
func (n *Node) Text() string { return n.text }

// Keys of a mapping, in the order of the file.
func (n *Node) Keys() []string {
	keys := make([]string, len(n.pairs))
	for i, p := range n.pairs {
		keys[i] = p.key
	}
	return keys
}

// Get returns the value of a key in a mapping, nil when it is not there.
func (n *Node) Get(key string) *Node {
	if n == nil {
		return nil
	}
	if i, ok := n.at[key]; ok {
		return n.pairs[i].value
	}
	return nil
}

// Items of a list.
func (n *Node) Items() []*Node { return n.items }

// Path of the node from the top of the file, e.g. destinations[0].url.
func (n *Node) Path() string {
	if n == nil || n.parent == nil {
		return ""
	}
	if n.parent.kind == List {
		return n.parent.Path() + "[" + strconv.Itoa(n.index) + "]"
	}
	return joinPath(n.parent.Path(), keyPath(n.key))
}

var plainKey = regexp.MustCompile(`^[^.\[\]"\s]+$`)

// keyPath writes a key as a part of a path.
func keyPath(key string) string {
	if plainKey.MatchString(key) {
		return key
	}
	return "[" + strconv.Quote(short(key)) + "]"
}

// Problem makes an error that says what is wrong at n, for the return value of an
// UnmarshalConfig method. When the value came through a reference, what follows
// the first colon of why is left out: it may quote the value.
func (n *Node) Problem(why, fix string) error {
	return &Error{Problems: []Problem{n.problem(Invalid, n.discreet(why), fix)}}
}

// discreet cuts from the reason what may have come out of a variable or file, at n or
// below it.
func (n *Node) discreet(why string) string {
	if n == nil {
		return why
	}
	if n.resolved {
		why, _, _ = strings.Cut(why, ": ")
		if len(n.text) >= 4 { // shorter ones are in words by chance
			why = strings.ReplaceAll(why, n.text, n.raw)
		}
	}
	for _, item := range n.items {
		why = item.discreet(why)
	}
	for _, p := range n.pairs {
		why = p.value.discreet(why)
	}
	return why
}

func (n *Node) problem(code Code, why, fix string) Problem {
	return Problem{
		Code: code, File: n.doc.file, Line: n.line, Column: n.column,
		Path: n.Path(), Value: n.show(), Reason: why, Fix: fix,
	}
}

// userinfo is the user and password in an address, as far as the last @ of what may be
// one: a password may have more of them.
var userinfo = regexp.MustCompile(`://[^/?#\s"]*@`)

// bareUserinfo is the same at the beginning of an address that has no scheme, as those of
// NATS servers may be.
var bareUserinfo = regexp.MustCompile(`(^|,)\s*[^\s/:@",]+:[^/?#\s"]*@`)

// show returns a scalar as it is written in the file, for a message: references
// unresolved, passwords in addresses cut out. Other kinds give nothing.
func (n *Node) show() string {
	if n.kind != Scalar {
		return ""
	}
	s := short(hideUser(n.raw))
	if n.tag == "!!str" {
		return strconv.Quote(s)
	}
	return s
}

// short cuts s to what fits on a line of a message.
func short(s string) string {
	const most = 80
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most]) + "..."
}

// read turns a document into nodes. It reports what is wrong and returns false
// when there is nothing left to decode.
func (d *document) read(data []byte) (*Node, bool) {
	if len(data) > int(maxDocument) {
		d.report(nil, Problem{Code: TooLarge, Reason: "the file is larger than " + maxDocument.String(), Fix: "split off what is not configuration"})
		return nil, false
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var top yaml.Node
	switch err := decodeYAML(dec, &top); {
	case errors.Is(err, io.EOF):
		return &Node{doc: d, kind: Map, line: 1, column: 1}, true // an empty file: all defaults
	case err != nil:
		d.syntax(data, err)
		return nil, false
	}
	var second yaml.Node
	switch err := decodeYAML(dec, &second); {
	case err == nil:
		d.add(Problem{
			Code: Syntax, File: d.file, Line: second.Line, Column: second.Column,
			Reason: "a second document begins", Fix: "keep one document in the file and remove the line ---",
		})
	case !errors.Is(err, io.EOF):
		d.syntax(data, err)
	}
	b := builder{doc: d, open: map[*yaml.Node]bool{}}
	root := b.build(top.Content[0], &Node{}, 0)
	switch {
	case root == nil:
		return nil, false
	case root.kind == Null:
		root.kind = Map
	case root.kind != Map:
		d.report(root, Problem{Code: WrongType, Reason: "the file is " + root.kind.String() + ", not a mapping", Fix: "begin with a key, e.g. sources:"})
		return nil, false
	}
	return root, true
}

// decodeYAML keeps a panic of the YAML package on hostile input from ending the
// program.
func decodeYAML(dec *yaml.Decoder, into *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("yaml: the document cannot be read")
		}
	}()
	return dec.Decode(into)
}

var (
	yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)
	// The parser's messages count lines from 0, the scanner's from 1.
	yamlParser = regexp.MustCompile(`^(did not find expected (node content|key|[',<-])|found (duplicate|incompatible|undefined))`)
	yamlAnchor = regexp.MustCompile(`unknown anchor '([^']+)'`)
	tabIndent  = regexp.MustCompile(`(?m)^ *\t`)
)

// syntax reports an error of the YAML package, which has its place in its text.
func (d *document) syntax(data []byte, err error) {
	p := Problem{Code: Syntax, File: d.file, Reason: "not YAML: " + err.Error(), Fix: "check indentation, quotes and colons around this line"}
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		p.Line, _ = strconv.Atoi(m[1])
		if m[1] == "" || yamlParser.MatchString(m[2]) {
			p.Line++
		}
		p.Column = 1
		p.Reason = "not YAML: " + m[2]
	}
	if bytes.Contains(data, []byte("${")) {
		p.Fix += `; inside of { } and [ ] a reference needs quotes: "${NAME}"`
	}
	place := func(at int) {
		p.Line = 1 + bytes.Count(data[:at], []byte("\n"))
		p.Column = at - bytes.LastIndexByte(data[:at], '\n')
	}
	if at := tabIndent.FindIndex(data); at != nil {
		place(at[1] - 1)
		p.Reason, p.Fix = "the line is indented with a tab", "indent with spaces"
	}
	if m := yamlAnchor.FindStringSubmatch(err.Error()); m != nil {
		if at := bytes.Index(data, []byte("*"+m[1])); at >= 0 {
			place(at)
			p.Fix = "put &" + m[1] + " before the value that is meant, further up, or write the text in quotes"
		}
	}
	d.add(p)
}

// builder writes YAML nodes out as a tree.
type builder struct {
	doc  *document
	open map[*yaml.Node]bool // anchors that are being written out
	full bool                // the limit was met and reported
}

// build returns nil for what cannot be used; that is reported.
func (b *builder) build(y *yaml.Node, n *Node, depth int) *Node {
	n.doc, n.line, n.column = b.doc, y.Line, y.Column
	if !b.room(n, depth) {
		return nil
	}
	if y.Kind == yaml.AliasNode {
		return b.alias(y, n, depth)
	}
	if y.Style&yaml.TaggedStyle != 0 && !strings.HasPrefix(y.ShortTag(), "!!") || y.ShortTag() == "!!binary" {
		b.doc.report(n, Problem{Code: Syntax, Reason: "the tag " + short(y.Tag) + " is not understood", Fix: "remove the tag"})
		return nil
	}
	switch y.Kind {
	case yaml.MappingNode:
		n.kind, n.at = Map, make(map[string]int, len(y.Content)/2)
		b.mapping(y, n, depth)
	case yaml.SequenceNode:
		n.kind = List
		for i, item := range y.Content {
			// An item that cannot be used leaves its place, so that paths stay right.
			child := b.build(item, &Node{parent: n, index: i}, depth+1)
			if child == nil {
				child = &Node{doc: b.doc, parent: n, index: i, line: item.Line, column: item.Column}
				b.doc.excuse(child.Path())
			}
			n.items = append(n.items, child)
		}
	default:
		n.kind, n.tag, n.raw, n.text = Scalar, y.ShortTag(), y.Value, y.Value
		if n.tag == "!!null" {
			n.kind = Null
			return n
		}
		b.resolve(n)
	}
	return n
}

// room counts one more node and reports once when the limits are met.
func (b *builder) room(at *Node, depth int) bool {
	if b.doc.nodes++; !b.full && (b.doc.nodes > maxNodes || depth > maxDepth) {
		b.full = true
		b.doc.report(at, Problem{
			Code: TooLarge, Reason: "nested too deep, or too much with all aliases written out",
			Fix: "use fewer levels and fewer aliases inside of anchors",
		})
	}
	return !b.full
}

func (b *builder) alias(y *yaml.Node, n *Node, depth int) *Node {
	if b.open[y.Alias] {
		b.doc.report(n, Problem{Code: Syntax, Reason: "the anchor &" + short(y.Value) + " contains itself", Fix: "write the inner one out"})
		return nil
	}
	b.open[y.Alias] = true
	defer delete(b.open, y.Alias)
	return b.build(y.Alias, n, depth+1)
}

// mapping fills n with the pairs of y, the merged ones after its own.
func (b *builder) mapping(y *yaml.Node, n *Node, depth int) {
	var merges []*yaml.Node
	for i := 0; i+1 < len(y.Content); i += 2 {
		k, v := y.Content[i], y.Content[i+1]
		if k.Kind == yaml.AliasNode {
			k = k.Alias
		}
		at := &Node{doc: b.doc, parent: n.parent, key: n.key, index: n.index, line: k.Line, column: k.Column}
		switch {
		case k.Kind != yaml.ScalarNode:
			b.doc.report(at, Problem{Code: Syntax, Reason: "a key is " + kindOf(k).String(), Fix: "use a plain word as the key"})
			continue
		case len(k.Value) > maxKey:
			b.doc.report(at, Problem{Code: TooLarge, Reason: "a key is longer than " + strconv.Itoa(maxKey) + " bytes", Fix: "shorten the key"})
			continue
		case k.ShortTag() == "!!merge":
			merges = append(merges, v)
			continue
		}
		if first, twice := n.at[k.Value]; twice {
			b.doc.report(at, Problem{
				Code: RepeatedKey, Path: keyPath(k.Value),
				Reason: "the key stands here again, first on line " + strconv.Itoa(n.pairs[first].line), Fix: "keep one of them",
			})
			continue
		}
		b.add(n, k, v, depth, false)
	}
	for _, m := range merges {
		b.merge(m, n, depth)
	}
}

func (b *builder) add(n *Node, k, v *yaml.Node, depth int, merged bool) {
	child := b.build(v, &Node{parent: n, key: k.Value}, depth+1)
	if child == nil {
		b.doc.excuse(joinPath(n.Path(), keyPath(k.Value)))
		return
	}
	n.at[k.Value] = len(n.pairs)
	n.pairs = append(n.pairs, pair{key: k.Value, line: k.Line, column: k.Column, value: child, merged: merged})
}

// merge adds the pairs of the mapping or mappings behind a merge key that n does
// not have itself.
func (b *builder) merge(y *yaml.Node, n *Node, depth int) {
	at := &Node{doc: b.doc, parent: n.parent, key: n.key, index: n.index, line: y.Line, column: y.Column}
	if !b.room(at, depth) {
		return
	}
	switch y.Kind {
	case yaml.AliasNode:
		if b.open[y.Alias] {
			b.doc.report(at, Problem{Code: Syntax, Reason: "the anchor &" + short(y.Value) + " contains itself", Fix: "write the inner one out"})
			return
		}
		b.open[y.Alias] = true
		defer delete(b.open, y.Alias)
		b.merge(y.Alias, n, depth+1)
	case yaml.SequenceNode:
		for _, m := range y.Content {
			b.merge(m, n, depth+1)
		}
	case yaml.MappingNode:
		var inner []*yaml.Node
		for i := 0; i+1 < len(y.Content); i += 2 {
			k, v := y.Content[i], y.Content[i+1]
			if !b.room(at, depth) {
				return
			}
			if k.ShortTag() == "!!merge" {
				inner = append(inner, v)
				continue
			}
			if _, has := n.at[k.Value]; !has && k.Kind == yaml.ScalarNode && len(k.Value) <= maxKey {
				b.add(n, k, v, depth, true)
			}
		}
		for _, m := range inner {
			b.merge(m, n, depth+1)
		}
	default:
		b.doc.report(at, Problem{Code: Syntax, Reason: "a merge key needs a mapping", Fix: "write <<: *name with the name of an anchor"})
	}
}

func kindOf(y *yaml.Node) Kind {
	switch y.Kind {
	case yaml.MappingNode:
		return Map
	case yaml.SequenceNode:
		return List
	default:
		return Scalar
	}
}
