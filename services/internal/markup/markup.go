// Package markup makes pages of templates that html/template has made safe beforehand:
// [Escaped] has it write down how each value is escaped where it stands, as in
// {{.Name | _html_template_attrescaper}}, and a [Set] executes what came of it.
//
// Why not html/template alone: it looks methods up by name while it runs. The linker
// cannot tell which those will be, and keeps every exported method of every type in the
// program, clients of AWS among them: a quarter of the binary. A Set calls the methods that
// it was told of. A test holds what it writes against what html/template writes; see
// docs/decisions/0030-image-size.md.
//
// Left out of the language of templates: break, continue, a range that assigns, numbers
// other than decimal ones, most builtin functions, maps without text as key, comparing anything
// but numbers, texts and truths, and values in scripts, styles and attributes without quotes.
// Where a Set can see it, Parse refuses it, and Execute fails where it depends on the data:
// no page is made otherwise than html/template makes it.
package markup

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"text/template/parse"
)

// Set is templates that call each other. It may be used concurrently.
type Set struct {
	trees   map[string]*parse.Tree
	funcs   map[string]reflect.Value
	methods map[method]reflect.Value
}

// method is a method that templates may call.
type method struct {
	of   reflect.Type
	name string
}

// Methods are what templates may call on values, by name: method expressions such as
// time.Time.IsZero.
type Methods map[string][]any

// Parse reads templates as Escaped writes them. It refuses one that writes a value without
// escaping it.
func Parse(text string, funcs map[string]any, methods Methods) (*Set, error) {
	trees, err := parse.Parse("pages", text, "{{", "}}", funcs, builtins, escapers)
	if err != nil {
		return nil, err
	}
	s := &Set{trees: trees, funcs: map[string]reflect.Value{}, methods: map[method]reflect.Value{}}
	for _, all := range []map[string]any{builtins, escapers, funcs} {
		for name, f := range all {
			s.funcs[name] = reflect.ValueOf(f)
			if err := returns(name, s.funcs[name].Type()); err != nil {
				return nil, err
			}
		}
	}
	for name, all := range methods {
		for _, f := range all {
			v := reflect.ValueOf(f)
			if err := returns(name, v.Type()); err != nil {
				return nil, err
			}
			s.methods[method{v.Type().In(0), name}] = v
		}
	}
	for name, tree := range trees {
		if err := s.check(tree.Root); err != nil {
			return nil, fmt.Errorf("template %s: %w", name, err)
		}
	}
	return s, nil
}

// returns refuses what does not return one value, or one and an error.
func returns(name string, f reflect.Type) error {
	if n := f.NumOut(); n == 1 || n == 2 && f.Out(1) == reflect.TypeFor[error]() {
		return nil
	}
	return fmt.Errorf("%s returns neither one value nor one and an error", name)
}

// Callable tells whether templates may call the method of type t.
func (s *Set) Callable(t reflect.Type, name string) bool {
	return s.methods[method{t, name}].IsValid()
}

// Names calls seen with each name of a field or method in the templates.
func (s *Set) Names(seen func(name string)) {
	var walk func(n parse.Node)
	all := func(names []string) {
		for _, name := range names {
			seen(name)
		}
	}
	walk = func(n parse.Node) {
		switch n := n.(type) {
		case *parse.FieldNode:
			all(n.Ident)
		case *parse.VariableNode:
			all(n.Ident[1:])
		case *parse.ChainNode:
			all(n.Field)
		}
		for _, c := range children(n) {
			walk(c)
		}
	}
	for _, t := range s.trees {
		walk(t.Root)
	}
}

// children are the nodes in a node.
func children(n parse.Node) []parse.Node {
	var all []parse.Node
	pipe := func(p *parse.PipeNode) {
		if p != nil {
			all = append(all, p)
		}
	}
	list := func(l *parse.ListNode) {
		if l != nil {
			all = append(all, l.Nodes...)
		}
	}
	branch := func(b parse.BranchNode) {
		pipe(b.Pipe)
		list(b.List)
		list(b.ElseList)
	}
	switch n := n.(type) {
	case *parse.ListNode:
		list(n)
	case *parse.ActionNode:
		pipe(n.Pipe)
	case *parse.IfNode:
		branch(n.BranchNode)
	case *parse.WithNode:
		branch(n.BranchNode)
	case *parse.RangeNode:
		branch(n.BranchNode)
	case *parse.TemplateNode:
		pipe(n.Pipe)
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			all = append(all, c.Args...)
		}
	case *parse.ChainNode:
		all = append(all, n.Node)
	}
	return all
}

// check refuses what is not escaped, and what exec does not know.
func (s *Set) check(n parse.Node) error {
	switch n := n.(type) {
	case *parse.ActionNode:
		if len(n.Pipe.Decl) > 0 {
			break
		}
		last := n.Pipe.Cmds[len(n.Pipe.Cmds)-1]
		id, ok := last.Args[0].(*parse.IdentifierNode)
		if !ok || !final[id.Ident] || len(last.Args) != 1 || len(n.Pipe.Cmds) == 1 {
			return fmt.Errorf("%s is not escaped", n)
		}
	case *parse.RangeNode:
		if n.Pipe.IsAssign {
			return fmt.Errorf("range %s is not known here: declare variables of its own with :=", n.Pipe)
		}
	case *parse.PipeNode:
		for i, c := range n.Cmds {
			if err := s.checkCommand(c, i > 0); err != nil {
				return err
			}
		}
	case *parse.NumberNode:
		if strings.Trim(n.Text, "+-0123456789.eE") != "" {
			return fmt.Errorf("%s is not known here: write it with digits", n)
		}
	case *parse.TemplateNode:
		if s.trees[n.Name] == nil {
			return fmt.Errorf("there is no template %s", n.Name)
		}
	case *parse.BreakNode, *parse.ContinueNode:
		return fmt.Errorf("%s is not known here", n)
	}
	for _, c := range children(n) {
		if err := s.check(c); err != nil {
			return err
		}
	}
	return nil
}

// checkCommand refuses functions with more or fewer arguments than they take. What comes
// through a pipe is one.
func (s *Set) checkCommand(c *parse.CommandNode, piped bool) error {
	for i, a := range c.Args {
		id, ok := a.(*parse.IdentifierNode)
		if !ok {
			continue
		}
		f, n := s.funcs[id.Ident].Type(), 0
		if i == 0 {
			n = len(c.Args) - 1
			if piped {
				n++
			}
		}
		if fixed := f.NumIn(); f.IsVariadic() && n < fixed-1 || !f.IsVariadic() && n != fixed {
			if f.IsVariadic() {
				fixed--
			}
			return fmt.Errorf("%s: %s takes %d arguments, not %d", c, id, fixed, n)
		}
	}
	if _, ok := c.Args[0].(*parse.NilNode); ok {
		return fmt.Errorf("%s: nothing is to be done with nil", c)
	}
	return nil
}

// Execute writes the template with that name, or nothing when there is an error.
func (s *Set) Execute(name string, data any) (out string, err error) {
	tree := s.trees[name]
	if tree == nil {
		return "", fmt.Errorf("there is no template %s", name)
	}
	e := &exec{set: s, name: name}
	defer func() {
		switch p := recover().(type) {
		case nil:
		case problem:
			out, err = "", fmt.Errorf("template %s: %w", e.name, p.err)
		default:
			panic(p)
		}
	}()
	dot := reflect.ValueOf(data)
	e.vars = []variable{{"$", dot}}
	e.walk(dot, tree.Root)
	return e.out.String(), nil
}

// problem ends an execution.
type problem struct{ err error }

func fail(format string, args ...any) { panic(problem{fmt.Errorf(format, args...)}) }

// variable is a variable of a template.
type variable struct {
	name  string
	value reflect.Value
}

// exec is one execution.
type exec struct {
	set   *Set
	name  string // of the template in hand
	out   bytes.Buffer
	vars  []variable
	depth int
}

// deepest bounds templates that call themselves.
const deepest = 100

func (e *exec) walk(dot reflect.Value, n parse.Node) {
	switch n := n.(type) {
	case *parse.ListNode:
		if n == nil {
			return
		}
		for _, c := range n.Nodes {
			e.walk(dot, c)
		}
	case *parse.TextNode:
		e.out.Write(n.Text)
	case *parse.ActionNode:
		if v := e.pipe(dot, n.Pipe); len(n.Pipe.Decl) == 0 {
			e.out.WriteString(v.String()) // escapers return text
		}
	case *parse.IfNode:
		e.branch(dot, &n.BranchNode, false)
	case *parse.WithNode:
		e.branch(dot, &n.BranchNode, true)
	case *parse.RangeNode:
		e.rangeOver(dot, n)
	case *parse.TemplateNode:
		e.call(dot, n)
	default:
		fail("%s: not known here", n)
	}
}

// branch is if, or with.
func (e *exec) branch(dot reflect.Value, n *parse.BranchNode, with bool) {
	defer e.pop(len(e.vars))
	v := e.pipe(dot, n.Pipe)
	switch {
	case !truth(v):
		e.walk(dot, n.ElseList)
	case with:
		e.walk(v, n.List)
	default:
		e.walk(dot, n.List)
	}
}

func (e *exec) pop(to int) { e.vars = e.vars[:to] }

func (e *exec) rangeOver(dot reflect.Value, n *parse.RangeNode) {
	defer e.pop(len(e.vars))
	v, _ := indirect(e.pipe(dot, n.Pipe))
	inside := len(e.vars)
	one := func(key, value reflect.Value) {
		if d := len(n.Pipe.Decl); d > 0 {
			e.vars[inside-1].value = value
			if d > 1 {
				e.vars[inside-2].value = key
			}
		}
		e.walk(value, n.List)
		e.pop(inside)
	}
	count := 0
	switch v.Kind() {
	case reflect.Slice, reflect.Array:
		for count = 0; count < v.Len(); count++ {
			one(reflect.ValueOf(count), v.Index(count))
		}
	case reflect.Map:
		if v.Type().Key().Kind() != reflect.String {
			fail("%s: cannot go over a %s", n.Pipe, v.Type())
		}
		for _, k := range sortedKeys(v) {
			one(k, v.MapIndex(k))
			count++
		}
	case reflect.Invalid:
	default:
		fail("%s: cannot go over a %s", n.Pipe, v.Type())
	}
	if count == 0 {
		e.walk(dot, n.ElseList)
	}
}

func (e *exec) call(dot reflect.Value, n *parse.TemplateNode) {
	if e.depth++; e.depth > deepest {
		fail("%s: templates call each other more than %d deep", n, deepest)
	}
	var data reflect.Value
	if n.Pipe != nil {
		data = e.pipe(dot, n.Pipe)
	}
	vars, name := e.vars, e.name
	e.vars, e.name = []variable{{"$", data}}, n.Name
	e.walk(data, e.set.trees[n.Name].Root)
	e.vars, e.name = vars, name
	e.depth--
}

// pipe evaluates commands, each of which gets what the one before it returned.
func (e *exec) pipe(dot reflect.Value, n *parse.PipeNode) reflect.Value {
	var v reflect.Value
	for i, c := range n.Cmds {
		var last *reflect.Value
		if i > 0 {
			before := v
			last = &before
		}
		v = e.command(dot, c, last)
		if v.Kind() == reflect.Interface && v.NumMethod() == 0 {
			v = v.Elem()
		}
	}
	for _, d := range n.Decl {
		if n.IsAssign {
			*e.variable(d.Ident[0]) = v
		} else {
			e.vars = append(e.vars, variable{d.Ident[0], v})
		}
	}
	return v
}

func (e *exec) variable(name string) *reflect.Value {
	for i := len(e.vars) - 1; i >= 0; i-- {
		if e.vars[i].name == name {
			return &e.vars[i].value
		}
	}
	fail("there is no variable %s", name)
	return nil
}

// command evaluates one command; last is what comes through the pipe, nil for nothing.
func (e *exec) command(dot reflect.Value, c *parse.CommandNode, last *reflect.Value) reflect.Value {
	args := c.Args[1:]
	switch n := c.Args[0].(type) {
	case *parse.IdentifierNode:
		return e.function(dot, n.Ident, args, last)
	case *parse.FieldNode:
		return e.fields(dot, dot, n.Ident, args, last)
	case *parse.ChainNode:
		return e.fields(dot, e.value(dot, n.Node), n.Field, args, last)
	case *parse.VariableNode:
		if len(n.Ident) > 1 {
			return e.fields(dot, *e.variable(n.Ident[0]), n.Ident[1:], args, last)
		}
	}
	if len(args) > 0 || last != nil {
		fail("%s: cannot give arguments to this", c)
	}
	return e.value(dot, c.Args[0])
}

// value evaluates what stands for itself.
func (e *exec) value(dot reflect.Value, n parse.Node) reflect.Value {
	switch n := n.(type) {
	case *parse.DotNode:
		return dot
	case *parse.PipeNode:
		return e.pipe(dot, n)
	case *parse.FieldNode:
		return e.fields(dot, dot, n.Ident, nil, nil)
	case *parse.ChainNode:
		return e.fields(dot, e.value(dot, n.Node), n.Field, nil, nil)
	case *parse.IdentifierNode:
		return e.function(dot, n.Ident, nil, nil)
	case *parse.VariableNode:
		v := *e.variable(n.Ident[0])
		if len(n.Ident) == 1 {
			return v
		}
		return e.fields(dot, v, n.Ident[1:], nil, nil)
	case *parse.StringNode:
		return reflect.ValueOf(n.Text)
	case *parse.BoolNode:
		return reflect.ValueOf(n.True)
	case *parse.NumberNode:
		return number(n)
	case *parse.NilNode:
		return reflect.Value{}
	}
	fail("%s: not known here", n)
	return reflect.Value{}
}

// fields goes from v along names; the last may be a method with arguments.
func (e *exec) fields(dot, v reflect.Value, names []string, args []parse.Node, last *reflect.Value) reflect.Value {
	for _, name := range names[:len(names)-1] {
		v = e.field(dot, v, name, nil, nil)
	}
	return e.field(dot, v, names[len(names)-1], args, last)
}

func (e *exec) field(dot, of reflect.Value, name string, args []parse.Node, last *reflect.Value) reflect.Value {
	if !of.IsValid() {
		return reflect.Value{} // as html/template: nothing of nothing
	}
	v, isNil := indirect(of)
	if v.Kind() == reflect.Interface && isNil {
		fail("%s of nothing", name)
	}
	if v.CanAddr() {
		if m, ok := e.set.methods[method{reflect.PointerTo(v.Type()), name}]; ok {
			return e.apply(dot, m, name, v.Addr(), args, last)
		}
	}
	if m, ok := e.set.methods[method{v.Type(), name}]; ok {
		return e.apply(dot, m, name, v, args, last)
	}
	if len(args) > 0 || last != nil {
		fail("%s of %s is no method that templates may call", name, v.Type())
	}
	switch v.Kind() {
	case reflect.Struct:
		f, ok := v.Type().FieldByName(name)
		if !ok || !f.IsExported() {
			break
		}
		got, err := v.FieldByIndexErr(f.Index)
		if err != nil {
			fail("%s: %w", name, err)
		}
		return got
	case reflect.Map:
		if v.Type().Key().Kind() == reflect.String {
			return v.MapIndex(reflect.ValueOf(name).Convert(v.Type().Key()))
		}
	case reflect.Pointer:
		fail("%s of nothing", name)
	default:
	}
	fail("%s has no %s, or no method that templates may call", v.Type(), name)
	return reflect.Value{}
}

func (e *exec) function(dot reflect.Value, name string, args []parse.Node, last *reflect.Value) reflect.Value {
	if name == "and" || name == "or" {
		var v reflect.Value
		for _, a := range args {
			if v = e.value(dot, a); truth(v) == (name == "or") {
				return v
			}
		}
		if last != nil {
			v = *last
		}
		return v
	}
	return e.apply(dot, e.set.funcs[name], name, reflect.Value{}, args, last)
}

// apply calls a function, or a method of a receiver that is valid.
func (e *exec) apply(dot reflect.Value, f reflect.Value, name string, receiver reflect.Value, args []parse.Node, last *reflect.Value) reflect.Value {
	t := f.Type()
	var in []reflect.Value
	want := func() reflect.Type {
		switch i := len(in); {
		case t.IsVariadic() && i >= t.NumIn()-1:
			return t.In(t.NumIn() - 1).Elem()
		case i < t.NumIn():
			return t.In(i)
		}
		fail("%s takes %d arguments", name, t.NumIn())
		return nil
	}
	if receiver.IsValid() {
		in = append(in, receiver)
	}
	for _, a := range args {
		w := want()
		if number, ok := a.(*parse.NumberNode); ok {
			in = append(in, constant(number, w))
			continue
		}
		in = append(in, fit(e.value(dot, a), w, name))
	}
	if last != nil {
		in = append(in, fit(*last, want(), name))
	}
	if fixed := t.NumIn(); len(in) < fixed && (!t.IsVariadic() || len(in) < fixed-1) {
		fail("%s takes %d arguments", name, fixed)
	}
	out := called(f, in, name)
	if len(out) > 1 && !out[1].IsNil() {
		err, _ := out[1].Interface().(error)
		fail("%s: %w", name, err)
	}
	return out[0]
}

// called calls f. Its panic ends the page, not more.
func called(f reflect.Value, in []reflect.Value, name string) []reflect.Value {
	defer func() {
		if cause := recover(); cause != nil {
			fail("%s panicked: %v", name, cause)
		}
	}()
	return f.Call(in)
}

// number is a number as it is written: 1.0 is one with a point.
func number(n *parse.NumberNode) reflect.Value {
	switch {
	case n.IsFloat && strings.ContainsAny(n.Text, ".eE"):
		return reflect.ValueOf(n.Float64)
	case n.IsInt:
		return reflect.ValueOf(int(n.Int64))
	}
	fail("%s: not known here", n)
	return reflect.Value{}
}

// constant makes a number of the type that is wanted.
func constant(n *parse.NumberNode, t reflect.Type) reflect.Value {
	v := reflect.New(t).Elem()
	switch {
	case t.Kind() == reflect.Interface:
		return number(n)
	case v.CanInt() && n.IsInt && !v.OverflowInt(n.Int64):
		v.SetInt(n.Int64)
	case v.CanUint() && n.IsUint && !v.OverflowUint(n.Uint64):
		v.SetUint(n.Uint64)
	case v.CanFloat() && n.IsFloat:
		v.SetFloat(n.Float64)
	default:
		fail("%s is no %s", n, t)
	}
	return v
}

// fit makes v what an argument of type t takes.
func fit(v reflect.Value, t reflect.Type, name string) reflect.Value {
	if !v.IsValid() {
		switch t.Kind() {
		case reflect.Interface, reflect.Pointer, reflect.Map, reflect.Slice:
			return reflect.Zero(t)
		default:
			fail("%s: nothing is no %s", name, t)
		}
	}
	if v.Type().AssignableTo(t) {
		return v
	}
	if v.Kind() == reflect.Interface && !v.IsNil() {
		if v = v.Elem(); v.Type().AssignableTo(t) {
			return v
		}
	}
	switch {
	case v.Kind() == reflect.Pointer && !v.IsNil() && v.Type().Elem().AssignableTo(t):
		return v.Elem()
	case v.CanAddr() && reflect.PointerTo(v.Type()).AssignableTo(t):
		return v.Addr()
	}
	fail("%s: %s is no %s", name, v.Type(), t)
	return v
}

// indirect goes through pointers and interfaces, and stops at one that is nil.
func indirect(v reflect.Value) (_ reflect.Value, isNil bool) {
	for ; v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface; v = v.Elem() {
		if v.IsNil() {
			return v, true
		}
	}
	return v, false
}

var errKinds = errors.New("these cannot be compared")

// Escape writes text as html/template does between tags.
func Escape(text string) string { return replacer.Replace(text) }

var replacer = strings.NewReplacer("\x00", "\uFFFD", `"`, "&#34;", "&", "&amp;", "'", "&#39;", "+", "&#43;", "<", "&lt;", ">", "&gt;")
