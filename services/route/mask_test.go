package route

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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
			out, masked, ok := newMask(cfg).apply([]byte("#"), []byte(tt.in))
			if !ok || masked != (tt.want != "") {
				t.Fatalf("masked %v, understood %v", masked, ok)
			}
			if masked && string(out) != "#"+tt.want {
				t.Errorf("got  %s\nwant #%s", out, tt.want)
			}
		})
	}
}

func TestMaskRefusesWhatItDoesNotUnderstand(t *testing.T) {
	m := newMask(&Mask{Fields: []string{"a.b", "c"}, Method: Redact})
	for _, doc := range []string{``, `{`, `{"a":{"b":"x"`, `{"a":{"b" "x"}}`, `{"a" : }`, `{"c":"x"} {"c":"y"}`, `{"c":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`, `t{"c":"x"}`, `null{"c":"x"}`, `1,{"c":"x"}`} {
		if out, _, ok := m.apply(nil, []byte(doc)); ok {
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
	m := newMask(&Mask{Fields: []string{"u.name"}, Method: Redact})
	f.Fuzz(func(t *testing.T, doc []byte) {
		out, masked, ok := m.apply(nil, doc)
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
	m := newMask(&Mask{Fields: []string{"userIdentity.userName", "sourceIPAddress", "resources.ARN"}, Method: Hash, Key: config.NewSecret(testKey)})
	doc := []byte(trailDoc(1))
	var out []byte
	b.SetBytes(int64(len(doc)))
	b.ReportAllocs()
	for b.Loop() {
		var masked bool
		if out, masked, _ = m.apply(out[:0], doc); !masked {
			b.Fatal("nothing masked")
		}
	}
}
