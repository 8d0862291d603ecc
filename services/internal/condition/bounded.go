package condition

import (
	"math"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/functions"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/ext"
)

// maxText bounds the text that one call of a function makes, in bytes. The cost limit
// counts a call as a step, and after it was made: replacing "" by a field that has
// 100 KB makes 10 GB at once.
const maxText = 1 << 20

var errText = types.NewErr("text too long")

// boundedStrings is the extension of strings with bounds on what makes text longer than
// its arguments.
func boundedStrings() ([]cel.EnvOption, error) {
	plain, err := cel.NewEnv(ext.Strings())
	if err != nil {
		return nil, err
	}
	known := map[string]functions.FunctionOp{}
	for _, name := range []string{"replace", "join", "format"} {
		all, err := plain.Functions()[name].Bindings()
		if err != nil {
			return nil, err
		}
		for _, o := range all {
			known[o.Operator] = callOf(o)
		}
	}
	bounded := func(overload string, size func(args []ref.Val) float64) cel.OverloadOpt {
		call := known[overload]
		return cel.FunctionBinding(func(args ...ref.Val) ref.Val {
			if size(args) > maxText {
				return errText
			}
			return call(args...)
		})
	}
	text, list := cel.StringType, cel.ListType(cel.StringType)
	return []cel.EnvOption{
		ext.Strings(),
		cel.Function("replace",
			cel.MemberOverload("string_replace_string_string", []*cel.Type{text, text, text}, text, bounded("string_replace_string_string", replacedSize)),
			cel.MemberOverload("string_replace_string_string_int", []*cel.Type{text, text, text, cel.IntType}, text, bounded("string_replace_string_string_int", replacedSize))),
		cel.Function("join",
			cel.MemberOverload("list_join", []*cel.Type{list}, text, bounded("list_join", joinedSize)),
			cel.MemberOverload("list_join_string", []*cel.Type{list, text}, text, bounded("list_join_string", joinedSize))),
		cel.Function("format",
			cel.MemberOverload("string_format", []*cel.Type{text, cel.ListType(cel.DynType)}, text, bounded("string_format", func(args []ref.Val) float64 {
				return sizeOf(args[0], maxText) + sizeOf(args[1], maxText)
			}))),
	}, nil
}

func callOf(o *functions.Overload) functions.FunctionOp {
	switch {
	case o.Unary != nil:
		return func(args ...ref.Val) ref.Val { return o.Unary(args[0]) }
	case o.Binary != nil:
		return func(args ...ref.Val) ref.Val { return o.Binary(args[0], args[1]) }
	}
	return o.Function
}

// replacedSize is how long a text can get: there are no more places than the text has
// room for what is replaced.
func replacedSize(args []ref.Val) float64 {
	text, old, with := sizeOf(args[0], math.MaxInt32), sizeOf(args[1], math.MaxInt32), sizeOf(args[2], math.MaxInt32)
	if with <= old {
		return 0 // it gets no longer
	}
	places := text / max(1, old)
	if old == 0 {
		places++
	}
	if len(args) > 3 {
		if n, ok := args[3].(types.Int); ok && n >= 0 {
			places = min(places, float64(n))
		}
	}
	return text + places*(with-old)
}

func joinedSize(args []ref.Val) float64 {
	size := sizeOf(args[0], maxText)
	if list, ok := args[0].(traits.Lister); ok && len(args) > 1 {
		if n, ok := list.Size().(types.Int); ok {
			size += float64(n) * sizeOf(args[1], maxText)
		}
	}
	return size
}

// sizeOf is about how many bytes a value has as text; it stops at more than most.
func sizeOf(v ref.Val, most float64) (size float64) {
	switch v := v.(type) {
	case types.String:
		return float64(len(v))
	case types.Bytes:
		return float64(len(v))
	case traits.Mapper:
		for it := v.Iterator(); it.HasNext() == types.True && size <= most; {
			key := it.Next()
			size += 4 + sizeOf(key, most) + sizeOf(v.Get(key), most-size)
		}
		return size
	case traits.Lister:
		for it := v.Iterator(); it.HasNext() == types.True && size <= most; {
			size += 2 + sizeOf(it.Next(), most-size)
		}
		return size
	}
	return 32
}
