package console

import (
	"encoding/json"
	"html"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

var ownTag = regexp.MustCompile(`</?span( class="j-(key|str|num|lit)")?>`)

// covers: design section 8, pain 14
func TestPretty(t *testing.T) {
	for _, tt := range []struct{ name, doc, want string }{
		{"object", `{"a":1,"b":[true,null],"c":{}}`, "{\n  \"a\": 1,\n  \"b\": [\n    true,\n    null\n  ],\n  \"c\": {}\n}"},
		{"numbers stay as they are", `[1e400,12345678901234567890]`, "[\n  1e400,\n  12345678901234567890\n]"},
		{"twice the same key", `{"a":1,"a":2}`, "{\n  \"a\": 1,\n  \"a\": 2\n}"},
		{"escapes", `{"a":"\"}{,"}`, "{\n  \"a\": \"\\\"}{,\"\n}"},
		{"no JSON", `hello <b>`, "hello<b>"},
		{"not closed", `{"a":"b`, "{\n  \"a\": \"b"},
		{"hidden", "[\"a\u202eb\u200bc\x1b\"]", "[\n  \"a\\u202eb\\u200bc\\u001b\"\n]"},
		{"empty", ``, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			page, cut := pretty([]byte(tt.doc))
			if got := html.UnescapeString(ownTag.ReplaceAllString(string(page), "")); got != tt.want || cut {
				t.Errorf("got %q, cut %v; want %q", got, cut, tt.want)
			}
		})
	}
}

// What a stranger writes never becomes a tag, whatever it is, and stays bounded.
func FuzzPretty(f *testing.F) {
	f.Add([]byte(`{"</span><script>alert(1)</script>":"<img src=x onerror=alert(1)>'\""}`))
	f.Add([]byte(strings.Repeat(`{"a":[`, 2000)))
	f.Add([]byte("\xff\xfe<\u2028>"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		page, _ := pretty(doc)
		if rest := ownTag.ReplaceAllString(string(page), ""); strings.ContainsAny(rest, "<>\"'") {
			t.Fatalf("a tag or a quote of %q gets through: %q", doc, rest)
		}
		if !utf8.ValidString(string(page)) || len(page) > 64+len(doc)*(64+2*mostIndent) {
			t.Fatalf("%d bytes became %d", len(doc), len(page))
		}
		// What was JSON still says the same.
		if json.Valid(doc) && utf8.Valid(doc) {
			back := html.UnescapeString(ownTag.ReplaceAllString(string(page), ""))
			if !json.Valid([]byte(back)) && !strings.Contains(back, `\U`) {
				t.Fatalf("%q became %q", doc, back)
			}
		}
	})
}

func TestPrettyIsBounded(t *testing.T) {
	page, cut := pretty([]byte(`"` + strings.Repeat("x", 2*mostDocument) + `"`))
	if !cut || len(page) > mostDocument+100 {
		t.Errorf("cut %v, %d bytes", cut, len(page))
	}
}

func TestGlimpse(t *testing.T) {
	long := `{"a":"` + strings.Repeat("ä", 200) + `NeeDle` + strings.Repeat("ö", 200) + `"}`
	for _, tt := range []struct {
		name, doc, text      string
		before, match, after string
	}{
		{"fields", `{"eventVersion":"1.11","eventTime":"2026-05-01T10:00:00Z","v":"1.1","user":{"name":"x","l":[1]},"list":[{"a":1}],"name":"Cre\"ate","n":-1.5,"no":null,"ok":true}`, "", `v: 1.1 · name: Cre\"ate · n: -1.5 · ok: true`, "", ""},
		{"no fields", `{"a":{"b":1}}`, "", `{"a":{"b":1}}`, "", ""},
		{"a list", `[{"a":1}]`, "", `[{"a":1}]`, "", ""},
		{"broken", `{"a":"b}}}}`, "", "a: b}}}}", "", ""},
		{"found", `{"user":"Ann"}`, "ANN", `{"user":"`, "Ann", `"}`},
		{"not found", `{"a":1}`, "zzz", `a: 1`, "", ""},
		{"lines become one", "a\n\tb", "", `a  b`, "", ""},
		{"direction", "a\u202eb", "", `a\u202eb`, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if g := glimpseOf([]byte(tt.doc), tt.text); g != (glimpse{tt.before, tt.match, tt.after}) {
				t.Errorf("got %+v", g)
			}
		})
	}
	g := glimpseOf([]byte(long), "needle")
	if g.Match != "NeeDle" || !strings.HasPrefix(g.Before, "…ä") || !strings.HasSuffix(g.After, "ö…") || len(g.Before)+len(g.After) > 400 {
		t.Errorf("got %+v", g)
	}
}
