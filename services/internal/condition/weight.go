package condition

import (
	celast "github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"
)

// maxWeight bounds how many times over an expression may put what it looks at into lists
// and maps. These share their elements, so that lists of lists of the same, made by one
// map() behind another, cost no memory and few steps; but comparing two of them walks each
// path through them, and nothing ends that before it is done.
const maxWeight = 256

// scale weighs the values of an expression: a value in the event weighs 1, a constant
// nothing, a list what its elements do and 1 more. How often a loop goes round does not
// count: that the cost limit bounds.
type scale struct {
	ast      *celast.AST
	heaviest float64
}

// tooHeavy tells whether an expression makes a value that must not be compared.
func tooHeavy(a *celast.AST) bool {
	s := scale{ast: a}
	s.weigh(a.Expr(), nil)
	return s.heaviest > maxWeight
}

// weigh returns the weight of e, where vars are those of the loops around it.
func (s *scale) weigh(e celast.Expr, vars map[string]float64) (w float64) {
	defer func() { s.heaviest = max(s.heaviest, w) }()
	switch e.Kind() {
	case celast.IdentKind:
		if known, ok := vars[e.AsIdent()]; ok {
			return known
		}
		return 1
	case celast.SelectKind:
		w = s.weigh(e.AsSelect().Operand(), vars)
	case celast.CallKind:
		c := e.AsCall()
		if c.IsMemberFunction() {
			w = s.weigh(c.Target(), vars)
		}
		for _, arg := range c.Args() {
			w += s.weigh(arg, vars)
		}
	case celast.ListKind:
		w = 1
		for _, one := range e.AsList().Elements() {
			w += s.weigh(one, vars)
		}
	case celast.MapKind:
		w = 1
		for _, one := range e.AsMap().Entries() {
			w += s.weigh(one.AsMapEntry().Key(), vars) + s.weigh(one.AsMapEntry().Value(), vars)
		}
	case celast.StructKind:
		w = 1
		for _, one := range e.AsStruct().Fields() {
			w += s.weigh(one.AsStructField().Value(), vars)
		}
	case celast.ComprehensionKind:
		c := e.AsComprehension()
		inner := make(map[string]float64, len(vars)+3)
		for name, known := range vars {
			inner[name] = known
		}
		inner[c.IterVar()] = s.weigh(c.IterRange(), vars)
		if c.HasIterVar2() {
			inner[c.IterVar2()] = inner[c.IterVar()]
		}
		inner[c.AccuVar()] = s.weigh(c.AccuInit(), vars)
		s.weigh(c.LoopCondition(), inner)
		inner[c.AccuVar()] = s.weigh(c.LoopStep(), inner)
		w = s.weigh(c.Result(), inner)
	default: // a literal weighs nothing
	}
	switch s.ast.GetType(e.ID()).Kind() {
	case types.BoolKind, types.IntKind, types.UintKind, types.DoubleKind, types.TimestampKind, types.DurationKind, types.StringKind:
		return min(w, 1) // whatever it was made of
	default:
		return w
	}
}
