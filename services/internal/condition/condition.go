// Package condition says which events something concerns: by event type, with
// the wildcards of NATS, and by a CEL expression over the event.
//
// An expression sees these variables:
//
//	event.id       string     32 hex digits
//	event.type     string     dotted event type
//	event.time     timestamp
//	event.source   string     configured name of the source
//	event.account  string     "" when unknown
//	event.region   string     "" when unknown
//	event.doc      dyn        the document: JSON objects as maps, numbers as int
//	                          where they are whole and fit, else as double
//
// Of two equal keys in a document the last one counts.
// Source: the Common Expression Language, with its strings and optional-types
// extensions.
package condition

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/interpreter"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
)

// CostLimit bounds one evaluation, in CEL's cost units (about one a step). A
// plain comparison costs below 10; what needs this much is a loop in a loop.
const CostLimit = 200_000

var (
	errSyntax = fault.Define("condition.bad_expression", fault.Stop,
		"mend the expression at the line and column named; event.id, type, time, source, account, region and doc are known")
	errEval = fault.Define("condition.evaluation_failed", fault.Reject,
		"guard fields that may be absent with has(), e.g. has(event.doc.user) && event.doc.user == \"x\"")
)

// Event is what an expression looks at.
type Event struct {
	ID              messages.ID
	Type, Source    string
	Account, Region string
	// Time in Unix ns.
	Time int64
	// Doc may be nil when the condition does not need it.
	Doc []byte
}

// Condition is one compiled expression. Methods may be called concurrently.
type Condition struct {
	program  cel.Program
	needsDoc bool
}

const docVariable = "event.doc"

// environment is made on first use: it takes milliseconds and most
// configurations have no expression.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	strings, err := boundedStrings()
	if err != nil {
		return nil, err
	}
	return cel.NewEnv(append(strings,
		cel.Variable("event.id", cel.StringType),
		cel.Variable("event.type", cel.StringType),
		cel.Variable("event.time", cel.TimestampType),
		cel.Variable("event.source", cel.StringType),
		cel.Variable("event.account", cel.StringType),
		cel.Variable("event.region", cel.StringType),
		cel.Variable(docVariable, cel.DynType),
		cel.OptionalTypes(),
		cel.ASTValidators(cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateRegexLiterals()),
	)...)
})

// Compile checks expression, which must give a bool. The error names line and
// column of everything that is wrong (condition.bad_expression).
func Compile(expression string) (*Condition, error) {
	env, err := environment()
	if err != nil {
		return nil, errSyntax.New(err, "set up CEL")
	}
	ast, mistakes := check(env, expression)
	if len(mistakes) > 0 {
		var all []string
		for _, m := range mistakes {
			all = append(all, m.String())
		}
		return nil, errSyntax.New(nil, "compile %q: %s", expression, strings.Join(all, "; "))
	}
	program, err := env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(CostLimit))
	if err != nil {
		return nil, errSyntax.New(err, "compile %q: it cannot be planned", expression)
	}
	c := &Condition{program: program}
	for _, r := range ast.NativeRep().ReferenceMap() {
		c.needsDoc = c.needsDoc || r.Name == docVariable
	}
	return c, nil
}

// Explain takes an error of this package apart for a report on a configuration:
// what is wrong and how to mend it.
func Explain(err error) (why, fix string) {
	var f *fault.Error
	if !errors.As(err, &f) {
		return err.Error(), ""
	}
	return f.Doing, f.Kind.Fix
}

// Mistake is something wrong in an expression.
type Mistake struct {
	// Line and Column count from 1, Column in characters; both are 0 for what concerns the
	// expression as a whole.
	Line, Column int
	What         string
}

func (m Mistake) String() string {
	if m.Line == 0 {
		return m.What
	}
	return fmt.Sprintf("line %d, column %d: %s", m.Line, m.Column, m.What)
}

// Mistakes returns what Compile would refuse an expression for; none when it is good.
func Mistakes(expression string) []Mistake {
	env, err := environment()
	if err != nil {
		return []Mistake{{What: err.Error()}}
	}
	_, all := check(env, expression)
	return all
}

func check(env *cel.Env, expression string) (*cel.Ast, []Mistake) {
	ast, issues := env.Compile(expression)
	if issues.Err() != nil {
		var all []Mistake
		for _, e := range issues.Errors() {
			all = append(all, Mistake{Line: e.Location.Line(), Column: max(1, e.Location.Column()+1), What: e.Message})
		}
		return nil, all
	}
	if out := ast.OutputType(); !out.IsExactType(cel.BoolType) && !out.IsExactType(cel.DynType) {
		return nil, []Mistake{{What: fmt.Sprintf("it gives %s, not a bool", out)}}
	}
	if tooHeavy(ast.NativeRep()) {
		return nil, []Mistake{{What: "it puts the same into lists over and over again, which takes too long to compare"}}
	}
	return ast, nil
}

// NeedsDoc reports whether the expression mentions event.doc.
func (c *Condition) NeedsDoc() bool { return c.needsDoc }

// Match evaluates the expression. Errors (condition.evaluation_failed) come from
// fields that are absent, operations on the wrong type, and the cost limit. They
// name no values.
func (c *Condition) Match(e *Event) (bool, error) {
	vars := activations.Get().(*activation)
	vars.event = e
	out, _, err := c.program.Eval(vars)
	vars.event = nil
	activations.Put(vars)
	if err != nil {
		return false, errEval.New(nil, "evaluate a condition: %s", reason(err))
	}
	b, ok := out.(types.Bool)
	if !ok {
		return false, errEval.New(nil, "evaluate a condition: it gave %s, not a bool", out.Type().TypeName())
	}
	return bool(b), nil
}

// reason keeps the words of CEL that hold no data: its messages on conversions
// quote the value.
func reason(err error) string {
	text := err.Error()
	for _, known := range []string{"no such key", "no such overload", "no such attribute", "actual cost limit exceeded", "index out of bounds", "division by zero", "nested too deep", "modulus by zero", "overflow", "text too long"} {
		if strings.Contains(text, known) {
			return known
		}
	}
	return "a value does not fit"
}

// activation resolves the variables from an event.
type activation struct{ event *Event }

var activations = sync.Pool{New: func() any { return new(activation) }}

var _ interpreter.Activation = (*activation)(nil)

// Parent implements [interpreter.Activation].
func (a *activation) Parent() interpreter.Activation { return nil }

// ResolveName implements [interpreter.Activation].
func (a *activation) ResolveName(name string) (any, bool) {
	switch name {
	case "event.id":
		return types.String(a.event.ID.String()), true
	case "event.type":
		return types.String(a.event.Type), true
	case "event.time":
		return types.Timestamp{Time: time.Unix(0, a.event.Time).UTC()}, true
	case "event.source":
		return types.String(a.event.Source), true
	case "event.account":
		return types.String(a.event.Account), true
	case "event.region":
		return types.String(a.event.Region), true
	case docVariable:
		var v ref.Val = valueOf(a.event.Doc)
		return v, true
	}
	return nil, false
}
