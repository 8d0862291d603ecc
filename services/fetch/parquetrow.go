package fetch

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"strconv"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/penstock/penstock/services/internal/document"
)

var (
	errRowTooLarge = errors.New("the row is too large")
	errRow         = errors.New("the columns of a row do not fit together")
)

// maxParquetFixed is the longest value of a type of fixed length. Unit: bytes.
const maxParquetFixed = 4 << 10

// valueCursor reads the values of a column, one by one.
type valueCursor struct {
	r     parquet.ColumnChunkValueReader
	buf   [64]parquet.Value
	i, n  int
	taken bool // a value of this row
}

func (c *valueCursor) begin(r parquet.ColumnChunkValueReader) { c.r, c.i, c.n = r, 0, 0 }

func (c *valueCursor) end() {
	if c.r != nil {
		_ = c.r.Close()
		c.r = nil
	}
}

// peek returns the next value, which stays the next one. It is valid until the
// value behind it is asked for.
func (c *valueCursor) peek() (*parquet.Value, error) {
	if c.i == c.n {
		n, err := c.r.ReadValues(c.buf[:])
		if n == 0 {
			if err == nil {
				err = io.ErrNoProgress
			}
			return nil, err
		}
		c.i, c.n = 0, n
	}
	return &c.buf[c.i], nil
}

// take steps over the value that peek returned.
func (c *valueCursor) take() { c.i, c.taken = c.i+1, true }

// more tells whether the next value continues a list of level rep.
func (c *valueCursor) more(rep int) (bool, error) {
	v, err := c.peek()
	if err == io.EOF {
		return false, nil
	}
	return err == nil && v.RepetitionLevel() >= rep, err
}

// rowNode is a node of the schema.
type rowNode struct {
	key                []byte // `"name":`
	optional, repeated bool
	rep, def           int // the levels at which it is there
	from, to           int // its leaves
	kids               []*rowNode
	// list: the node is there to hold elements, and so is its only kid.
	list bool
	// table: a list of keys and values, the keys are texts.
	table bool
	// write appends the value of a leaf.
	write func(dst []byte, v *parquet.Value) []byte
}

// rowWriter writes rows as JSON objects: null columns are left out, nested ones are
// objects and arrays, integers are exact, times are RFC 3339 in UTC, decimals are
// numbers as they are, bytes that are no text are base64.
type rowWriter struct {
	columns []*parquetColumn
	root    *rowNode
	buf     []byte
	limit   int
}

// plan prepares for rows of a schema.
func (w *rowWriter) plan(schema *parquet.Schema) (err error) {
	leaf := 0
	w.root, err = planNode(schema, "", 0, 0, &leaf)
	if err == nil && leaf != len(w.columns) {
		err = errRow
	}
	return err
}

func planNode(n parquet.Node, name string, rep, def int, leaf *int) (*rowNode, error) {
	r := &rowNode{key: append(document.AppendQuoted(nil, name), ':'), optional: n.Optional(), repeated: n.Repeated(), from: *leaf}
	if r.optional || r.repeated {
		def++
	}
	if r.repeated {
		rep++
	}
	r.rep, r.def = rep, def
	if n.Leaf() {
		*leaf++
		r.to = *leaf
		if t := n.Type(); t.Kind() == parquet.FixedLenByteArray && t.Length() > maxParquetFixed {
			return nil, fmt.Errorf("column %q has values of %d bytes", name, t.Length())
		}
		r.write = valueWriter(n.Type())
		return r, nil
	}
	for _, f := range n.Fields() {
		kid, err := planNode(f, f.Name(), rep, def, leaf)
		if err != nil {
			return nil, err
		}
		r.kids = append(r.kids, kid)
	}
	if r.to = *leaf; r.to == r.from {
		return nil, fmt.Errorf("column %q is a group of nothing", name)
	}
	r.nest(n, name)
	return r, nil
}

// nest finds the lists and maps. Source: Apache Parquet format, logical types.
func (r *rowNode) nest(n parquet.Node, name string) {
	logical := n.Type().LogicalType()
	if logical == nil || len(r.kids) != 1 || !r.kids[0].repeated {
		return
	}
	kid, below := r.kids[0], n.Fields()[0]
	switch logical.Value.(type) {
	case *format.ListType:
		r.list = true
		inner := below.Name()
		kid.list = !below.Leaf() && len(kid.kids) == 1 && !kid.kids[0].repeated && inner != "array" && inner != name+"_tuple"
	case *format.MapType:
		if len(kid.kids) == 2 && isTextKey(below.Fields()[0]) {
			r.list, kid.table = true, true
		}
	}
}

// isTextKey tells whether a node always has a value, written as a JSON string.
func isTextKey(n parquet.Node) bool {
	if !n.Leaf() || n.Optional() || n.Repeated() || n.Type().Kind() != parquet.ByteArray {
		return false
	}
	logical := n.Type().LogicalType()
	if logical == nil {
		return true
	}
	switch logical.Value.(type) {
	case *format.StringType, *format.EnumType:
		return true
	}
	return false
}

// next reads a row.
func (w *rowWriter) next() ([]byte, error) {
	for _, c := range w.columns {
		v, err := c.cursor.peek()
		if err == io.EOF {
			err = errRow
		}
		if err != nil {
			return nil, err
		}
		if v.RepetitionLevel() != 0 {
			return nil, errRow
		}
		c.cursor.taken = false
	}
	w.buf = w.buf[:0]
	if cap(w.buf) > plainBuffer {
		w.buf = nil
	}
	if err := w.object(w.root); err != nil {
		return nil, err
	}
	if len(w.buf) > w.limit {
		return nil, errRowTooLarge // all of it was read
	}
	return w.buf, nil
}

// drain steps over what is left of a row.
func (w *rowWriter) drain() error {
	for _, c := range w.columns {
		if !c.cursor.taken {
			if _, err := c.cursor.peek(); err != nil {
				return noEOF(err)
			}
			c.cursor.take()
		}
		for {
			more, err := c.cursor.more(1)
			if err != nil {
				return err
			}
			if !more {
				break
			}
			c.cursor.take()
		}
	}
	return nil
}

// object writes the kids of a group.
func (w *rowWriter) object(n *rowNode) error {
	w.buf = append(w.buf, '{')
	first := true
	for _, kid := range n.kids {
		start := len(w.buf)
		if !first {
			w.buf = append(w.buf, ',')
		}
		w.buf = append(w.buf, kid.key...)
		there, err := w.node(kid)
		if err != nil {
			return err
		}
		if !there {
			w.buf = w.buf[:start]
			continue
		}
		first = false
	}
	w.buf = append(w.buf, '}')
	return nil
}

// node writes the value of a node, if it is there.
func (w *rowWriter) node(n *rowNode) (there bool, err error) {
	if len(w.buf) > w.limit {
		return false, errRowTooLarge
	}
	v, err := w.columns[n.from].cursor.peek()
	if err != nil {
		return false, noEOF(err)
	}
	switch absent := v.DefinitionLevel() < n.def; {
	case n.repeated:
		return true, w.array(n, absent)
	case absent && n.optional:
		return false, w.step(n)
	case absent:
		return false, errRow
	}
	return true, w.value(n)
}

// step steps over one absent value in each leaf below n.
func (w *rowWriter) step(n *rowNode) error {
	for _, c := range w.columns[n.from:n.to] {
		if _, err := c.cursor.peek(); err != nil {
			return noEOF(err)
		}
		c.cursor.take()
	}
	return nil
}

// array writes the elements of a repeated node.
func (w *rowWriter) array(n *rowNode, empty bool) error {
	opening, closing := byte('['), byte(']')
	if n.table {
		opening, closing = '{', '}'
	}
	w.buf = append(w.buf, opening)
	if empty {
		w.buf = append(w.buf, closing)
		return w.step(n)
	}
	for first := true; ; first = false {
		if !first {
			w.buf = append(w.buf, ',')
		}
		var err error
		switch {
		case n.table:
			err = w.entry(n)
		case n.list:
			var there bool
			if there, err = w.node(n.kids[0]); err == nil && !there {
				w.buf = append(w.buf, "null"...)
			}
		default:
			err = w.value(n)
		}
		if err != nil {
			return err
		}
		if len(w.buf) > w.limit {
			return errRowTooLarge
		}
		more, err := w.columns[n.from].cursor.more(n.rep)
		if err != nil {
			return err
		}
		if !more {
			w.buf = append(w.buf, closing)
			return nil
		}
	}
}

// entry writes an entry of a map.
func (w *rowWriter) entry(n *rowNode) error {
	if _, err := w.node(n.kids[0]); err != nil {
		return err
	}
	w.buf = append(w.buf, ':')
	there, err := w.node(n.kids[1])
	if err == nil && !there {
		w.buf = append(w.buf, "null"...)
	}
	return err
}

// value writes the value of a node that is there.
func (w *rowWriter) value(n *rowNode) error {
	switch {
	case n.write != nil:
		c := &w.columns[n.from].cursor
		v, err := c.peek()
		if err != nil {
			return noEOF(err)
		}
		if v.IsNull() {
			return errRow
		}
		w.buf = n.write(w.buf, v)
		c.take()
		return nil
	case n.list:
		_, err := w.node(n.kids[0])
		return err
	}
	return w.object(n)
}

func noEOF(err error) error {
	if err == io.EOF {
		return errRow
	}
	return err
}

// valueWriter returns what writes values of a type.
func valueWriter(t parquet.Type) func([]byte, *parquet.Value) []byte {
	if logical := t.LogicalType(); logical != nil {
		if w := logicalWriter(t, logical.Value); w != nil {
			return w
		}
	}
	switch t.Kind() {
	case parquet.Boolean:
		return func(dst []byte, v *parquet.Value) []byte { return strconv.AppendBool(dst, v.Boolean()) }
	case parquet.Int32:
		return func(dst []byte, v *parquet.Value) []byte { return strconv.AppendInt(dst, int64(v.Int32()), 10) }
	case parquet.Int64:
		return func(dst []byte, v *parquet.Value) []byte { return strconv.AppendInt(dst, v.Int64(), 10) }
	case parquet.Int96:
		return appendInt96
	case parquet.Float:
		return func(dst []byte, v *parquet.Value) []byte { return appendFloat(dst, float64(v.Float()), 32) }
	case parquet.Double:
		return func(dst []byte, v *parquet.Value) []byte { return appendFloat(dst, v.Double(), 64) }
	case parquet.ByteArray: // older writers do not say which bytes are texts
		return func(dst []byte, v *parquet.Value) []byte {
			if b := v.ByteArray(); !utf8.Valid(b) {
				return appendBase64(dst, b)
			}
			return appendText(dst, v)
		}
	default:
		return func(dst []byte, v *parquet.Value) []byte { return appendBase64(dst, v.ByteArray()) }
	}
}

// logicalWriter is valueWriter for a logical type, nil for those of no matter.
func logicalWriter(t parquet.Type, logical format.LogicalTypeValue) func([]byte, *parquet.Value) []byte {
	kind := t.Kind()
	switch l := logical.(type) {
	case *format.StringType, *format.EnumType:
		if kind == parquet.ByteArray {
			return appendText
		}
	case *format.JsonType:
		return func(dst []byte, v *parquet.Value) []byte {
			if b := v.ByteArray(); json.Valid(b) {
				return append(dst, b...)
			}
			return appendText(dst, v)
		}
	case *format.UUIDType:
		if kind == parquet.FixedLenByteArray && t.Length() == 16 {
			return appendUUID
		}
	case *format.DateType:
		if kind == parquet.Int32 {
			return func(dst []byte, v *parquet.Value) []byte {
				return time.Unix(int64(v.Int32())*86400, 0).UTC().AppendFormat(dst, `"2006-01-02"`)
			}
		}
	case *format.TimestampType:
		if unit := unitOf(l.Unit); kind == parquet.Int64 && unit > 0 {
			return func(dst []byte, v *parquet.Value) []byte { return appendInstant(dst, v.Int64(), unit) }
		}
	case *format.TimeType:
		if unit := unitOf(l.Unit); unit > 0 && (kind == parquet.Int32 || kind == parquet.Int64) {
			return func(dst []byte, v *parquet.Value) []byte {
				n := int64(v.Int32())
				if kind == parquet.Int64 {
					n = v.Int64()
				}
				return time.Unix(n/unit, n%unit*(1e9/unit)).UTC().AppendFormat(dst, `"15:04:05.999999999"`)
			}
		}
	case *format.IntType:
		switch {
		case l.IsSigned:
		case kind == parquet.Int32:
			return func(dst []byte, v *parquet.Value) []byte { return strconv.AppendUint(dst, uint64(v.Uint32()), 10) }
		case kind == parquet.Int64:
			return func(dst []byte, v *parquet.Value) []byte { return strconv.AppendUint(dst, v.Uint64(), 10) }
		}
	case *format.DecimalType:
		if l.Scale >= 0 && l.Scale <= 128 {
			return decimalWriter(kind, int(l.Scale))
		}
	}
	return nil
}

// unitOf is how many of a unit are a second, 0 for an unknown one.
func unitOf(u format.TimeUnit) int64 {
	switch u.Value.(type) {
	case *format.MilliSeconds:
		return 1e3
	case *format.MicroSeconds:
		return 1e6
	case *format.NanoSeconds:
		return 1e9
	}
	return 0
}

// appendInstant appends n units since 1970 as RFC 3339. Times that do not say
// whether they are UTC are taken for it.
func appendInstant(dst []byte, n, unit int64) []byte {
	seconds, rest := n/unit, n%unit
	if rest < 0 {
		seconds, rest = seconds-1, rest+unit
	}
	at := time.Unix(seconds, rest*(1e9/unit)).UTC()
	if at.Year() < 0 || at.Year() > 9999 {
		return strconv.AppendInt(dst, n, 10)
	}
	return at.AppendFormat(dst, `"2006-01-02T15:04:05.999999999Z"`)
}

// appendInt96 appends a time as older writers store it: nanoseconds of the day,
// and the Julian day.
func appendInt96(dst []byte, v *parquet.Value) []byte {
	const epoch = 2440588 // the Julian day of 1970-01-01
	w := v.Int96()
	nanos := int64(uint64(w[1])<<32 | uint64(w[0])) // as stored
	at := time.Unix((int64(w[2])-epoch)*86400, 0).UTC().Add(time.Duration(nanos))
	return at.AppendFormat(dst, `"2006-01-02T15:04:05.999999999Z"`)
}

func appendFloat(dst []byte, f float64, bits int) []byte {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return strconv.AppendQuote(dst, strconv.FormatFloat(f, 'g', -1, bits))
	}
	return strconv.AppendFloat(dst, f, 'g', -1, bits)
}

func appendText(dst []byte, v *parquet.Value) []byte {
	b := v.ByteArray()
	return document.AppendQuoted(dst, unsafe.String(unsafe.SliceData(b), len(b))) //nolint:gosec // read at once, then dropped
}

func appendBase64(dst, b []byte) []byte {
	return append(base64.StdEncoding.AppendEncode(append(dst, '"'), b), '"')
}

func appendUUID(dst []byte, v *parquet.Value) []byte {
	b := v.ByteArray()
	dst = append(dst, '"')
	for i, n := range [...]int{4, 6, 8, 10, 16} {
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, b[[...]int{0, 4, 6, 8, 10}[i]:n])
	}
	return append(dst, '"')
}

// decimalWriter writes decimals with all their digits.
func decimalWriter(kind parquet.Kind, scale int) func([]byte, *parquet.Value) []byte {
	var number big.Int
	return func(dst []byte, v *parquet.Value) []byte {
		switch kind {
		case parquet.Int32:
			number.SetInt64(int64(v.Int32()))
		case parquet.Int64:
			number.SetInt64(v.Int64())
		case parquet.ByteArray, parquet.FixedLenByteArray:
			b := v.ByteArray()
			if len(b) > 64 {
				return appendBase64(dst, b)
			}
			number.SetBytes(b)
			if len(b) > 0 && b[0] >= 0x80 { // two's complement, big endian
				number.Sub(&number, new(big.Int).Lsh(big.NewInt(1), uint(8*len(b))))
			}
		default:
			return strconv.AppendInt(dst, v.Int64(), 10)
		}
		if number.Sign() < 0 {
			dst = append(dst, '-')
			number.Neg(&number)
		}
		text := number.Append(nil, 10)
		for len(text) <= scale {
			text = append([]byte{'0'}, text...)
		}
		dst = append(dst, text[:len(text)-scale]...)
		if scale > 0 {
			dst = append(append(dst, '.'), text[len(text)-scale:]...)
		}
		return dst
	}
}
