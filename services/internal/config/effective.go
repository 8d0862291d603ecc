package config

import (
	"bytes"
	"encoding"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Effective writes v as the YAML that gives it: every key with its value, defaults
// included. Secrets that are set are "[redacted]", passwords in addresses too.
// Without those, reading the result over anything gives v again.
func Effective(v any) ([]byte, error) {
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(encode(reflect.ValueOf(v))); err != nil {
		return nil, errInvalid.New(err, "write the effective configuration")
	}
	return out.Bytes(), enc.Close()
}

func encode(x reflect.Value) *yaml.Node {
	if s, ok := plainText(x); ok {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: strings.ReplaceAll(s, "${", "$${"), Style: quoting(s)}
	}
	switch x.Kind() {
	case reflect.Pointer, reflect.Interface:
		if x.IsNil() {
			return nil
		}
		return encode(x.Elem())
	case reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		encodeFields(n, x)
		return n
	case reflect.Slice, reflect.Array:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for i := range x.Len() {
			n.Content = append(n.Content, orNull(encode(x.Index(i))))
		}
		return n
	case reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		keys := x.MapKeys()
		sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
		for _, k := range keys {
			n.Content = append(n.Content, keyNode(k.String()), orNull(encode(x.MapIndex(k))))
		}
		return n
	case reflect.Bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(x.Bool())}
	case reflect.Float32, reflect.Float64:
		s := number(x)
		if !strings.ContainsAny(s, ".e") {
			s += ".0"
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!float", Value: s}
	default:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: number(x)}
	}
}

func encodeFields(n *yaml.Node, x reflect.Value) {
	l := layoutOf(x.Type())
	for _, f := range l.fields {
		addField(n, f.name, x.FieldByIndex(f.index))
	}
	if l.kind == nil {
		return
	}
	if options := x.FieldByIndex(l.kind); !options.IsNil() {
		encodeFields(n, reflect.Indirect(options.Elem()))
	}
}

func addField(n *yaml.Node, key string, value reflect.Value) {
	if v := encode(value); v != nil { // a pointer to nothing is left out
		n.Content = append(n.Content, keyNode(key), v)
	}
}

func keyNode(key string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key, Style: quoting(key)}
}

func orNull(n *yaml.Node) *yaml.Node {
	if n == nil {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
	}
	return n
}

// oldBool is what YAML 1.1 reads as true or false, and other programs still do.
var oldBool = regexp.MustCompile(`^(?i:y|n|yes|no|on|off)$`)

// quoting quotes what would be read as something other than text.
func quoting(s string) yaml.Style {
	plain := yaml.Node{Kind: yaml.ScalarNode, Value: s}
	if plain.ShortTag() != "!!str" || s == "" || oldBool.MatchString(s) {
		return yaml.DoubleQuotedStyle
	}
	return 0
}

// plainText returns values that a file has as text, in the form that is read back.
func plainText(x reflect.Value) (string, bool) {
	if !x.IsValid() {
		return "", false
	}
	switch t := x.Type(); {
	case t == secretType:
		if x.Interface().(Secret).IsZero() {
			return "", true
		}
		return redacted, true
	case t == durationType:
		return formatDuration(time.Duration(x.Int())), true
	case x.Kind() == reflect.Pointer || x.Kind() == reflect.Interface:
		return "", false
	case x.CanInterface():
		m, ok := x.Interface().(encoding.TextMarshaler)
		if !ok && x.CanAddr() {
			m, ok = x.Addr().Interface().(encoding.TextMarshaler)
		}
		if ok {
			text, err := m.MarshalText()
			return hideUser(string(text)), err == nil
		}
	}
	if x.Kind() == reflect.String {
		return hideUser(x.String()), true
	}
	return "", false
}

// hideUser hides what addresses hold beside where they lead: users, passwords, and the
// values of a query, which may be a token or a signature.
func hideUser(s string) string {
	s = bareUserinfo.ReplaceAllString(userinfo.ReplaceAllString(s, "://"+redacted+"@"), "${1}"+redacted+"@")
	return addressWithQuery.ReplaceAllStringFunc(s, func(address string) string {
		at := strings.IndexByte(address, '?')
		return address[:at] + queryValue.ReplaceAllString(address[at:], "${1}"+redacted)
	})
}

var (
	// addressWithQuery is an address with a query; without a scheme only as a whole text,
	// which conditions and patterns do not look like.
	addressWithQuery = regexp.MustCompile(`://[^\s"?]*\?[^\s"]*|^[A-Za-z0-9.:-]+/[^\s"?]*\?[^\s"]*=[^\s"]*$`)
	// queryValue is a value of a query, or a query that is nothing but a value.
	queryValue = regexp.MustCompile(`(\?(?:[^=&#\s]*=)?|&[^=&#\s]*=)[^&#\s]+`)
)

func number(x reflect.Value) string {
	switch {
	case x.CanInt():
		return strconv.FormatInt(x.Int(), 10)
	case x.CanUint():
		return strconv.FormatUint(x.Uint(), 10)
	}
	return strconv.FormatFloat(x.Float(), 'g', -1, 64)
}
