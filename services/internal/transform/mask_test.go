package transform

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/penstock/penstock/services/internal/config"
)

const testKey = "0123456789abcdef"

// hashOf is what a hash mask writes for a text.
func hashOf(text string) string {
	mac := hmac.New(sha256.New, []byte(testKey))
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

func TestMask(t *testing.T) {
	h := func(s string) string { return `"` + hashOf(s) + `"` }
	tests := []struct {
		name, fields, in, want string
		redact                 bool
	}{
		{"a field", "a", `{"a":"x","b":"y"}`, `{"a":` + h("x") + `,"b":"y"}`, false},
		{"redacted", "a", `{"a":"x","b":"y"}`, `{"a":"[redacted]","b":"y"}`, true},
		{"nested, all else untouched", "u.name", "{ \"u\" : { \"name\" : \"ann\" , \"id\":1.50 },\n\"z\":[1, 2]}", "{ \"u\" : { \"name\" : " + h("ann") + " , \"id\":1.50 },\n\"z\":[1, 2]}", false},
		{"absent", "x.y", `{"a":1}`, ``, false},
		{"null hides nothing", "a", `{"a":null}`, ``, true},
		{"numbers as written", "a", `{"a":12.50}`, `{"a":` + h("12.50") + `}`, false},
		{"the same text in a string and a number", "a,b", `{"a":12,"b":"12"}`, `{"a":` + h("12") + `,"b":` + h("12") + `}`, false},
		{"escapes do not make another value", "a,b", `{"a":"\u0061\/","b":"a/"}`, `{"a":` + h("a/") + `,"b":` + h("a/") + `}`, false},
		{"an object as a whole, on one line", "a", "{\"a\":{ \"k\": [1,\n2] }}", `{"a":` + h(`{"k":[1,2]}`) + `}`, false},
		{"each element of a list", "a", `{"a":["x","y",["z"]]}`, `{"a":[` + h("x") + `,` + h("y") + `,[` + h("z") + `]]}`, false},
		{"through a list", "r.arn", `{"r":[{"arn":"1","k":2},{"arn":"3"}]}`, `{"r":[{"arn":` + h("1") + `,"k":2},{"arn":` + h("3") + `}]}`, false},
		{"any key", "r.*.ip", `{"r":{"a":{"ip":"1"},"b":{"ip":"2","x":3}}}`, `{"r":{"a":{"ip":` + h("1") + `},"b":{"ip":` + h("2") + `,"x":3}}}`, false},
		{"any key and a named one", "r.*.ip,r.a.x", `{"r":{"a":{"ip":"1","x":"2"},"b":{"x":"3"}}}`, `{"r":{"a":{"ip":` + h("1") + `,"x":` + h("2") + `},"b":{"x":"3"}}}`, false},
		{"a dot in a key", `a\.b`, `{"a.b":"x","a":{"b":"y"}}`, `{"a.b":` + h("x") + `,"a":{"b":"y"}}`, false},
		{"an escaped key hides nothing", "name", `{"n\u0061me":"x"}`, `{"n\u0061me":` + h("x") + `}`, false},
		{"a key twice", "a", `{"a":"x","a":"y"}`, `{"a":` + h("x") + `,"a":` + h("y") + `}`, false},
		{"a scalar where an object is expected", "a.b", `{"a":"x"}`, ``, false},
		{"no object at all", "a", `["x"]`, ``, false},
		{"space around", "a", " {\"a\":\"x\"}\n", `{"a":` + h("x") + `}`, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := &Mask{Fields: strings.Split(tt.fields, ","), Method: Hash, Key: config.NewSecret(testKey)}
			if tt.redact {
				cfg.Method, cfg.Key = Redact, config.Secret{}
			}
			if err := cfg.Validate(); err != nil {
				t.Fatal(err)
			}
			out, masked, ok := NewMasker(*cfg).Apply([]byte("#"), []byte(tt.in))
			if !ok || masked != (tt.want != "") {
				t.Fatalf("masked %v, understood %v", masked, ok)
			}
			if masked && string(out) != "#"+tt.want {
				t.Errorf("got  %s\nwant #%s", out, tt.want)
			}
		})
	}
}

func TestMaskRemoves(t *testing.T) {
	tests := []struct{ name, fields, in, want string }{
		{"the first", "a", `{"a":"x","b":"y"}`, `{"b":"y"}`},
		{"the last", "b", `{"a":"x", "b":"y"}`, `{"a":"x"}`},
		{"one between", "b", `{"a":1,"b":2,"c":3}`, `{"a":1,"c":3}`},
		{"the only one", "a", `{ "a" : "x" }`, `{ }`},
		{"all", "*", `{"a":1,"b":{"c":2}}`, `{}`},
		{"each second", "b,d", `{"a":1,"b":2,"c":3,"d":4,"e":5}`, `{"a":1,"c":3,"e":5}`},
		{"two at the beginning", "a,b", "{\"a\":1 ,\n\"b\":2 , \"c\":3}", `{ "c":3}`},
		{"beside one that is walked", "a,u.name", `{"a":1,"u":{"name":"x","id":2},"z":0}`, `{"u":{"id":2},"z":0}`},
		{"null and lists as well", "a,b", `{"a":null,"b":["x",{"y":1}],"c":3}`, `{"c":3}`},
		{"within a list", "r.arn", `{"r":[{"arn":"1","k":2},{"arn":"3"},4]}`, `{"r":[{"k":2},{},4]}`},
		{"twice the same key", "a", `{"a":"x","b":0,"a":"y"}`, `{"b":0}`},
		{"an escaped key", "name", `{"n\u0061me":"x"}`, `{}`},
		{"absent", "x", `{"a":1}`, ``},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, changed, ok := NewMasker(Mask{Fields: strings.Split(tt.fields, ","), Method: Remove}).Apply([]byte("#"), []byte(tt.in))
			if !ok || changed != (tt.want != "") {
				t.Fatalf("changed %v, understood %v", changed, ok)
			}
			if changed && string(out) != "#"+tt.want {
				t.Errorf("got  %s\nwant #%s", out, tt.want)
			}
		})
	}
	if out, _, ok := NewMasker(Mask{Fields: []string{"a"}, Method: Remove}).Apply(nil, []byte(`{"a":"x" "b":1}`)); ok {
		t.Errorf("what is no JSON went on as %q", out)
	}
}

// FuzzRemove: what is left is what encoding/json leaves when it deletes the fields.
func FuzzRemove(f *testing.F) {
	f.Add([]byte(`{"u":{"name":"secret"},"a":1,"other":[1,{"name":"x"}]}`))
	f.Add([]byte("{ \"a\" : [ ] , \"u\": [{\"n\\u0061me\":{}, \"x\":1},2] }"))
	f.Add([]byte(`{"z":"` + strings.Repeat("long ", 3000) + `","a":1}`))
	m := NewMasker(Mask{Fields: []string{"u.name", "a"}, Method: Remove})
	f.Fuzz(func(t *testing.T, doc []byte) {
		out, changed, ok := m.Apply(nil, doc)
		if !json.Valid(doc) || !ok || !changed {
			return
		}
		var want, got any
		if json.Unmarshal(doc, &want) != nil || json.Unmarshal(out, &got) != nil {
			t.Fatalf("%q became %q", doc, out)
		}
		want = withoutIn(want, "a", "u", "name")
		a, errA := json.Marshal(want)
		b, errB := json.Marshal(got)
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Fatalf("%q became %q", doc, out)
		}
	})
}

// without deletes a key of what encoding/json decoded, through lists.
func without(v any, key string) any {
	switch x := v.(type) {
	case []any:
		for i := range x {
			x[i] = without(x[i], key)
		}
	case map[string]any:
		delete(x, key)
	}
	return v
}

// withoutIn does the same for the objects of a list at the top.
func withoutIn(v any, key, in, inner string) any {
	if list, ok := v.([]any); ok {
		for i := range list {
			list[i] = withoutIn(list[i], key, in, inner)
		}
	}
	if object, ok := v.(map[string]any); ok {
		delete(object, key)
		if held, has := object[in]; has {
			object[in] = without(held, inner)
		}
	}
	return v
}

func TestMaskRefusesWhatItDoesNotUnderstand(t *testing.T) {
	m := NewMasker(Mask{Fields: []string{"a.b", "c"}, Method: Redact})
	for _, doc := range []string{``, `{`, `{"a":{"b":"x"`, `{"a":{"b" "x"}}`, `{"a" : }`, `{"c":"x"} {"c":"y"}`, `{"c":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`, `t{"c":"x"}`, `null{"c":"x"}`, `1,{"c":"x"}`} {
		if out, _, ok := m.Apply(nil, []byte(doc)); ok {
			t.Errorf("%.40q went on as %.40q", doc, out)
		}
	}
}

// FuzzMask: in a valid document the masked field holds the mask and all else is
// as it was; what is not understood is not let through.
func FuzzMask(f *testing.F) {
	f.Add([]byte(`{"u":{"name":"secret"},"other":[1,{"name":"x"}]}`))
	f.Add([]byte(`{"u":[{"n\u0061me":{"deep":["secret"]}},{"name":[1,null,[true]]}],"u":1}`))
	f.Add([]byte(`{"u":{"name":"` + strings.Repeat("long ", 3000) + `"}}`))
	m := NewMasker(Mask{Fields: []string{"u.name"}, Method: Redact})
	f.Fuzz(func(t *testing.T, doc []byte) {
		out, masked, ok := m.Apply(nil, doc)
		if !json.Valid(doc) {
			return
		}
		if !ok {
			if bytes.Count(doc, []byte("[")) <= mostDepth {
				t.Fatalf("%q was not understood", doc)
			}
			return
		}
		if !masked {
			out = doc
		}
		var want, got any
		if json.Unmarshal(doc, &want) != nil || json.Unmarshal(out, &got) != nil {
			t.Fatalf("%q became %q", doc, out)
		}
		object, isObject := want.(map[string]any)
		if !isObject {
			return
		}
		object["u"] = expected(object["u"], false)
		if object["u"] == nil {
			delete(object, "u")
		}
		a, errA := json.Marshal(want)
		b, errB := json.Marshal(strip(got))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Fatalf("%q became %q", doc, out)
		}
	})
}

// strip removes a null u, as the expectation does.
func strip(v any) any {
	if o, ok := v.(map[string]any); ok && o["u"] == nil {
		delete(o, "u")
	}
	return v
}

// expected masks what encoding/json decoded.
func expected(v any, leaf bool) any {
	switch x := v.(type) {
	case nil:
		return nil
	case []any:
		for i := range x {
			x[i] = expected(x[i], leaf)
		}
		return x
	case map[string]any:
		if leaf {
			return "[redacted]"
		}
		if name, ok := x["name"]; ok {
			x["name"] = expected(name, true)
		}
		return x
	}
	if leaf {
		return "[redacted]"
	}
	return v
}

func BenchmarkMask(b *testing.B) {
	m := NewMasker(Mask{Fields: []string{"userIdentity.userName", "sourceIPAddress", "resources.ARN"}, Method: Hash, Key: config.NewSecret(testKey)})
	doc := fmt.Appendf(nil, `{"n":1,"eventName":"GetUser","userIdentity":{"type":"IAMUser","userName":"user-1"},"sourceIPAddress":"192.0.2.1","requestParameters":{"key":%q},"readOnly":true}`, strings.Repeat("k", 900))
	var out []byte
	b.SetBytes(int64(len(doc)))
	b.ReportAllocs()
	for b.Loop() {
		var masked bool
		if out, masked, _ = m.Apply(out[:0], doc); !masked {
			b.Fatal("nothing masked")
		}
	}
}
