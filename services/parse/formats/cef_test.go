package formats

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestCEFConfigValidate(t *testing.T) {
	c := CEFConfig{EventTypeProduct: true, Fields: defaultFields()}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	c.Fields.EventTypeField = "act"
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "event_type_product") {
		t.Error(err)
	}
}

func TestCEFManyPairs(t *testing.T) {
	dec := open(t, "cef", nil, Deps{})
	var d Doc
	if err := dec.Decode([]byte("CEF:0|V|P|1|2|n|3|"+strings.Repeat("a=b ", 5000)), &d); err != nil {
		t.Fatal(err)
	}
	var got struct{ Extension map[string]string }
	if err := json.Unmarshal(d.Body, &got); err != nil || len(got.Extension) > maxPairs || !strings.HasSuffix(string(d.Body), `b a=b"}}`) {
		t.Errorf("%d pairs, %v, %.100s", len(got.Extension), err, d.Body[len(d.Body)-50:])
	}
}

// What is taken makes JSON, and pairs that are written with their escapes come back.
func FuzzCEF(f *testing.F) {
	f.Add("V|x", "a value", "b=c\\d\ne", []byte("CEF:0|V|P|1|2|n|3|src=192.0.2.1 msg=a b=c\\=d cs1Label=x"))
	f.Add("", "x", "", []byte("<13>Jan  5 17:48:41 gw LEEF:2.0|V|P|1|2|^|a=b^c=d"))
	f.Add("é", "=", "|", []byte("CEF:0|\\||\\\\|\xff|||| = == a== \\"))
	f.Add("", "", "", []byte("LEEF:1.0|||||\t=\ta=\t\x00"))
	dec := open(f, "cef", nil, Deps{})
	f.Fuzz(func(t *testing.T, vendor, one, two string, rec []byte) {
		var d Doc
		if dec.Decode(rec, &d) == nil && (!json.Valid(d.Body) || !utf8.Valid(d.Body)) {
			t.Fatalf("%q became %q", rec, d.Body)
		}
		for _, s := range []string{vendor, one, two} {
			if !utf8.ValidString(s) || strings.ContainsAny(s, "\r") {
				return
			}
		}
		head := strings.NewReplacer(`\`, `\\`, `|`, `\|`).Replace(vendor)
		escape := strings.NewReplacer(`\`, `\\`, `=`, `\=`, "\n", `\n`)
		line := fmt.Sprintf("CEF:0|%s|P|1|2|n|3|one=%s two.x=%s three=3", head, escape.Replace(one), escape.Replace(two))
		if err := dec.Decode([]byte(line), &d); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		var got struct {
			Vendor    string
			Extension map[string]string
		}
		if err := json.Unmarshal(d.Body, &got); err != nil || got.Vendor != vendor || len(got.Extension) != 3 ||
			got.Extension["one"] != strings.TrimRight(one, " ") || got.Extension["two.x"] != strings.TrimRight(two, " ") || got.Extension["three"] != "3" {
			t.Fatalf("%q became %s, %v", line, d.Body, err)
		}
	})
}

func BenchmarkCEF(b *testing.B) {
	recs := make([][]byte, 1000)
	for i := range recs {
		recs[i] = fmt.Appendf(nil, `CEF:0|Security|threatmanager|1.0|100|worm successfully stopped|10|src=192.0.2.%d dst=198.51.100.2 spt=%d rt=1767635321123 msg=Detected a threat. No action needed. cs1Label=Policy name cs1=Default \= all request=http://www.example.net/?a=b&c=d act=blocked`, i%250, i)
	}
	decodeAll(b, open(b, "cef", nil, Deps{}), recs)
}
