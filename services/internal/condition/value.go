package condition

import (
	"errors"
	"reflect"
	"strconv"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"

	"github.com/penstock/penstock/services/internal/document"
)

// mostDepth bounds the nesting of what is decoded or compared as a whole, which
// is done recursively.
const mostDepth = 64

// valueOf gives CEL a JSON value. Scalars are read, an object stays text in
// which fields are looked up, an array becomes a list of such values.
func valueOf(v []byte) ref.Val {
	v = document.Trim(v)
	switch document.KindOf(v) {
	case document.Object:
		return &object{raw: v}
	case document.Array:
		if document.Depth(v) > mostDepth {
			return tooDeep()
		}
		return listOf(v)
	case document.String:
		if len(v) < 2 {
			break
		}
		return types.String(document.AppendUnquoted(nil, v[1:len(v)-1]))
	case document.Number:
		if n, err := strconv.ParseInt(string(v), 10, 64); err == nil {
			return types.Int(n)
		}
		if f, err := strconv.ParseFloat(string(v), 64); err == nil {
			return types.Double(f)
		}
	case document.Bool:
		return types.Bool(v[0] == 't')
	case document.Null:
		return types.NullValue
	case document.None:
	}
	return types.NewErr("the document is not JSON")
}

func tooDeep() ref.Val { return types.NewErr("the document is nested too deep") }

func listOf(v []byte) ref.Val {
	var list []ref.Val
	c := document.Members(v)
	for {
		_, start, end, ok := c.Next()
		if !ok {
			break
		}
		list = append(list, valueOf(v[start:end]))
	}
	return types.NewRefValList(types.DefaultTypeAdapter, list)
}

// object is a JSON object as a CEL map. A field is looked up by scanning, which
// for the few fields that a rule reads is far cheaper than decoding all. What
// needs the whole (loops, equality) decodes it once. An object is used by one
// evaluation only, so by one goroutine.
type object struct {
	raw     []byte
	decoded traits.Mapper
}

var _ traits.Mapper = (*object)(nil)

// Find implements [traits.Mapper].
func (o *object) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok {
		return nil, false
	}
	var found []byte
	var room [64]byte
	c := document.Members(o.raw)
	for {
		k, start, end, ok := c.Next()
		if !ok {
			break
		}
		if string(k) == string(name) || len(k) > len(name) && string(document.AppendUnquoted(room[:0], k)) == string(name) {
			found = o.raw[start:end]
		}
	}
	if found == nil {
		return nil, false
	}
	return valueOf(found), true
}

// Get implements [traits.Indexer].
func (o *object) Get(key ref.Val) ref.Val {
	if v, ok := o.Find(key); ok {
		return v
	}
	return types.NewErr("no such key: %v", key)
}

// Contains implements [traits.Container].
func (o *object) Contains(key ref.Val) ref.Val {
	_, ok := o.Find(key)
	return types.Bool(ok)
}

func (o *object) all() traits.Mapper {
	if o.decoded == nil {
		m := map[ref.Val]ref.Val{}
		c := document.Members(o.raw)
		for {
			k, start, end, ok := c.Next()
			if !ok {
				break
			}
			m[types.String(document.AppendUnquoted(nil, k))] = valueOf(o.raw[start:end])
		}
		o.decoded = types.NewRefValMap(types.DefaultTypeAdapter, m)
	}
	return o.decoded
}

// Iterator implements [traits.Iterable].
func (o *object) Iterator() traits.Iterator { return o.all().Iterator() }

// Size implements [traits.Sizer].
func (o *object) Size() ref.Val { return o.all().Size() }

// Equal implements [ref.Val].
func (o *object) Equal(other ref.Val) ref.Val {
	if document.Depth(o.raw) > mostDepth {
		return tooDeep()
	}
	return o.all().Equal(other)
}

// Type implements [ref.Val].
func (o *object) Type() ref.Type { return types.MapType }

// Value implements [ref.Val].
func (o *object) Value() any { return o.all().Value() }

// ConvertToType implements [ref.Val].
func (o *object) ConvertToType(t ref.Type) ref.Val { return o.all().ConvertToType(t) }

// ConvertToNative implements [ref.Val].
func (o *object) ConvertToNative(t reflect.Type) (any, error) {
	if t == nil || document.Depth(o.raw) > mostDepth {
		return nil, errors.New("cannot be converted")
	}
	return o.all().ConvertToNative(t)
}
