package markup

import (
	"html/template"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// places has a value in each kind of place that pages of the console have.
const places = `{{define "page"}}<p title="{{.V}}" data-x='{{.V}}'>{{.V}}</p><a href="{{.V}}">a</a><a href="/x/{{.V}}/y?q={{.V}}&r={{print .V "+"}}#{{.V}}">b</a>
<a href="/z?{{.U}}">c</a><textarea>{{.V}}</textarea><title>{{.V}}</title>{{.H}}{{template "inner" .}}{{end}}
{{define "inner"}}{{range $i, $v := .L}}{{if $i}}, {{end}}{{$v | up}}{{else}}none{{end}}{{with index .M "k"}}{{.}}{{else}}no k{{end}}{{range $k, $v := .M}}{{$k}}={{$v}};{{end}}
{{if and .N (gt .N 3) (not .E)}}many{{else if eq .N 1 2 3}}few {{len .L}}{{else}}{{.N}}{{end}}{{.At.IsZero}}{{.P}}{{.E}}{{.M.k}}{{.A}}{{$x := 1}}{{range .L}}{{$x = .}}{{end}}{{$x}}{{end}}`

type page struct {
	V string
	U template.URL
	H template.HTML
	L []string
	M map[string]string
	N uint8
	E error
	A any
	P *int
	t
}

type t struct{ At time.Time }

var funcs = map[string]any{"up": strings.ToUpper}

func sets(tb testing.TB, text string) (*Set, *template.Template) {
	tb.Helper()
	escaped, err := Escaped(fstest.MapFS{"x.html": {Data: []byte(text)}}, "*.html", funcs)
	if err != nil {
		tb.Fatal(err)
	}
	set, err := Parse(escaped, funcs, Methods{"IsZero": {time.Time.IsZero}})
	if err != nil {
		tb.Fatal(err)
	}
	return set, template.Must(template.New("").Funcs(funcs).Parse(text))
}

// FuzzLikeHTMLTemplate: whatever values are, pages are those of html/template.
func FuzzLikeHTMLTemplate(f *testing.F) {
	for _, v := range []string{
		"", "plain", `"><script>alert(1)</script>`, "' onclick='x", "javascript:alert(1)", "JaVaScRiPt:x", "https://x.example/a?b=c&d=%2f%zz", "//x/y:z",
		"a+b & c=d;#?[]()!*'", "\x00\xff\u2028</textarea></title>", "mailto:a@b", "data:text/html,x", "{{.}}", strings.Repeat("<&>", 5000),
	} {
		f.Add(v, uint8(len(v)%5))
	}
	set, reference := sets(f, places)
	f.Fuzz(func(t *testing.T, v string, n uint8) {
		data := page{V: v, U: template.URL(v), H: "<b>ok</b>", N: n, A: v, M: map[string]string{"k": v, v: "v", "b": "c"}}
		if n%2 == 0 {
			data.L, data.P = []string{v, "x"}, new(int)
		}
		var want strings.Builder
		if err := reference.ExecuteTemplate(&want, "page", data); err != nil {
			t.Fatal(err)
		}
		got, err := set.Execute("page", data)
		if err != nil {
			t.Fatal(err)
		}
		if got != want.String() {
			t.Errorf("got\n%s\nwant\n%s", got, want.String())
		}
	})
}

func TestRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{{define "x"}}{{.}}{{end}}`:                                                      "is not escaped",
		`{{define "x"}}{{_html_template_htmlescaper .}}{{end}}`:                           "is not escaped",
		`{{define "x"}}{{if .}}{{. | print}}{{end}}{{end}}`:                               "is not escaped",
		`{{define "x"}}{{template "y"}}{{end}}`:                                           "no template y",
		`{{define "x"}}{{range .}}{{break}}{{end}}{{end}}`:                                "not known",
		`{{define "x"}}{{unknown . | _html_template_htmlescaper}}{{end}}`:                 "unknown",
		`{{define "x"}}{{. | _html_template_htmlescaper | print}}{{end}}`:                 "is not escaped",
		`{{define "x"}}{{. | _html_template_urlfilter}}{{end}}`:                           "is not escaped",
		`{{define "x"}}{{. | _html_template_urlnormalizer}}{{end}}`:                       "is not escaped",
		`{{define "x"}}{{$x := 1}}{{range $x = .}}{{end}}{{end}}`:                         "with :=",
		`{{define "x"}}{{eq 1 | _html_template_htmlescaper}}{{end}}`:                      "takes 2 arguments",
		`{{define "x"}}{{if index . 1 2}}{{end}}{{end}}`:                                  "takes 2 arguments",
		`{{define "x"}}{{if eq (and) .}}{{end}}{{end}}`:                                   "and takes 1 argument",
		`{{define "x"}}{{with nil}}{{end}}{{end}}`:                                        "nil",
		`{{define "x"}}{{if eq . 0x1}}{{end}}{{end}}`:                                     "write it with digits",
		`{{define "x"}}{{with $y := .}}{{$y}}{{end}}{{end}}`:                              "is not escaped",
		`{{define "x"}}{{range .}}{{else}}{{print .}}{{end}}{{end}}{{define "y"}}{{end}}`: "is not escaped",
	} {
		if _, err := Parse(text, nil, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestFails(t *testing.T) {
	for text, want := range map[string]string{
		`{{.At.Year | _html_template_htmlescaper}}`:   "no Year, or no method",
		`{{.Nope | _html_template_htmlescaper}}`:      "has no Nope",
		`{{.P.X | _html_template_htmlescaper}}`:       "X of nothing",
		`{{index .L 1 | _html_template_htmlescaper}}`: "no place 1 in 0",
		`{{if lt .V 1}}{{end}}`:                       "cannot be compared",
		`{{up .N | _html_template_htmlescaper}}`:      "uint8 is no string",
		`{{.H | _html_template_attrescaper}}`:         "between tags only",
		`{{panics | _html_template_htmlescaper}}`:     "panics panicked: on purpose",
		`{{range .Ints}}{{end}}`:                      "cannot go over a map[int]string",
		`{{template "x" .}}`:                          "more than 100 deep",
	} {
		set, err := Parse(`{{define "x"}}before`+text+`{{end}}`, oddFuncs, nil)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if out, err := set.Execute("x", everything{}); err == nil || out != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v, want %q", text, out, err, want)
		}
	}
}

// TestParseRefusesFunctions that return what a template has no use for.
func TestParseRefusesFunctions(t *testing.T) {
	for _, f := range []any{func() {}, func() (int, int) { return 1, 2 }, time.Time.Date} {
		if _, err := Parse("", nil, Methods{"Odd": {f}}); err == nil {
			t.Errorf("a method %T is taken", f)
		}
		if _, err := Parse("", map[string]any{"odd": f}, nil); err == nil {
			t.Errorf("a function %T is taken", f)
		}
	}
}

// TestEscapedRefuses what html/template cannot escape, or escapes with what a Set does not have.
func TestEscapedRefuses(t *testing.T) {
	for text, want := range map[string]string{
		`<p title="`:                           "ends in a non-text context",
		`<p {{if .}}title="{{end}}>`:           "branches end in different contexts",
		`<script>var x = {{.}}</script>`:       "_html_template_jsvalescaper",
		`<p style="color: {{.}}">`:             "_html_template_cssvaluefilter",
		`<p title={{.}}>`:                      "_html_template_nospaceescaper",
		`<img srcset="{{.}}">`:                 "_html_template_srcsetescaper",
		`<p {{.}}="x">`:                        "_html_template_htmlnamefilter",
		`<p title="{{template "inner" .}}">`:   "no template inner",
		`{{range .}}{{break}}{{end}}`:          "not known",
		`{{printf "%d" .}}`:                    "printf",
		`<a href="{{.}}">{{template "a"}}</a>`: `"a"`,
	} {
		text := `{{define "page"}}` + text + `{{end}}{{define "inner"}}{{.}}{{end}}`
		if _, err := Escaped(fstest.MapFS{"x.html": {Data: []byte(text)}}, "*.html", funcs); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
