package markup

import (
	"errors"
	"html/template"
	"math"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// odd are templates whose meaning is easy to get wrong, or that are not known here.
var odd = []string{
	// variables and scopes
	`{{$x := 1}}{{if .V}}{{$x = 2}}{{$x := 3}}{{$x}}{{end}}{{$x}}`,
	`{{$x := "a"}}{{range $x = .L}}{{$x}}{{$.N}}{{end}}{{$x}}`,
	`{{$i := 7}}{{$x := 8}}{{range $i, $x = .L}}{{$i}}{{$x}}{{end}}{{$i}}{{$x}}`,
	`{{range .L}}{{$x := .}}{{$x}}{{range $.L}}{{$x}}{{.}}{{$x = "z"}}{{end}}{{$x}}{{end}}`,
	`{{with $v := .V}}{{$v}}{{$.N}}{{else with $m := .M}}{{$m.k}}{{else}}none{{end}}`,
	`{{if $v := .A}}{{$v}}{{else if $w := .V}}{{$w}}{{end}}`,
	`{{template "inner" $x := .V}}{{$x}}`,
	`{{$.V}}{{with .L}}{{$.V}}{{end}}`,
	`{{$x := 1}}{{$y := 2}}{{$z := 3}}{{range $x = .L}}{{$x}}{{$y}}{{$z}}{{end}}`, `{{range $ = .L}}{{$}}{{end}}`,
	// ranges
	`{{range $i, $v := .L}}{{if $i}}{{break}}{{end}}{{$v}}{{end}}`,
	`{{range .L}}{{continue}}{{end}}`,
	`{{range 3}}{{.}}{{end}}`, `{{range $i := .N}}{{$i}}{{end}}`,
	`{{range $k, $v := .Ints}}{{$k}}{{$v}},{{end}}`, `{{range $k, $v := .Bools}}{{$k}}{{$v}},{{end}}`,
	`{{range $k, $v := .Mixed}}{{$k}}{{$v}},{{end}}`, `{{range $v := .M}}{{$v}},{{end}}`,
	`{{range .P}}x{{else}}none{{end}}`, `{{range .A}}{{.}}{{end}}`, `{{range nil}}{{end}}`, `{{range .V}}{{.}}{{end}}`,
	// comparisons
	`{{eq .F .F}}{{lt .F 1.0}}{{le .F 1.0}}{{gt .F 1.0}}{{ge .F 1.0}}{{ne .F .F}}`,
	`{{eq .P .Q}}`, `{{eq .P 0}}`, `{{eq .P nil}}`, `{{eq .None nil}}{{eq nil nil}}`, `{{eq 1}}`, `{{eq .N 1 "a"}}`, `{{lt true false}}`, `{{eq true .B}}`,
	`{{eq .N -1}}{{lt .N -1}}{{gt -1 .N}}{{eq .I .N}}{{le .I .N}}`, `{{eq 1.0 1}}`, `{{eq .At .At}}`, `{{eq .K "a"}}`, `{{not .P}}{{not nil}}`,
	// numbers
	`{{eq 0xe 14}}`, `{{0xe}}`, `{{'e'}}`, `{{eq 'e' 101}}`, `{{eq 0x1p4 16.0}}`, `{{1e3}}`, `{{1i}}`, `{{18446744073709551615}}`, `{{-1}}`, `{{0b11}}`, `{{1_000}}`, `{{.Add 0x10}}`,
	`{{true}}`, `{{nil}}`, `{{"q\"'<"}}`, "{{`raw`}}", `{{print 1 2.5 "x" true nil}}`,
	// functions and methods
	`{{and}}`, `{{or}}`, `{{or "" .V}}{{and .V .N}}{{.V | and 1}}{{.V | or ""}}{{and 1 nil}}`, `{{index .L}}`, `{{index .L 0 0}}`, `{{index .M .V}}`, `{{index .Ints 3}}`, `{{index .L .N}}`,
	`{{printf "%d" .N}}`, `{{println .N}}`, `{{slice .V 1}}`, `{{html .V}}`, `{{urlquery .V}}`, `{{js .V}}`, `{{call .Fn}}`, `{{.Fn}}`,
	`{{up .K}}`, `{{named "a"}}`, `{{named .V}}`, `{{.Add 1}}`, `{{2 | .Add}}`, `{{.Add .N}}`, `{{.At.IsZero}}`, `{{.Ptr}}`, `{{.Q.X}}`, `{{.Panics}}`, `{{panics}}`, `{{fails}}`,
	`{{up .V .V}}`, `{{.V | up | up}}`, `{{(up .V)}}`, `{{(.M).k}}`, `{{.M.none}}`, `{{.M.none.none}}`, `{{.Any.V}}`, `{{.Nope}}`, `{{len .V}}{{len .L}}{{len .M}}`, `{{len .N}}`, `{{len nil}}`, `{{len .P}}`,
	// places
	`<p title="{{.H}}">`, `<textarea>{{.H}}</textarea>`, `<title>{{bold .V}}</title>`, `<p title="{{bold .V}}">`, `{{bold .V}}`, `<p title={{.V}}>`, `<p {{.V}}>`, `<p {{.V}}="x">`, `<{{.V}}>`,
	`<script>var x = {{.V}}</script>`, `<script>var x = "{{.V}}"</script>`, `<p onclick="f({{.V}})">`, `<p style="color: {{.V}}">`, `<style>p { color: {{.V}} }</style>`,
	`<img srcset="{{.V}}">`, `<a href={{.V}}>`, `<a href="{{.U}}">`, `<a href="x{{.U}}">`, `<a href="/?a={{.U}}">`, `<a href="{{.H}}">`, `<!-- {{.V}} -->{{.V}}`, `<a href="javascript:{{.V}}">`, `<iframe srcdoc="{{.V}}">`,
	`<p title="{{template "inner" .}}">`, `<a href="{{template "inner" .}}">`, `<p title="`, `{{if .V}}<p title="{{end}}">`, `<a href="{{if .V}}/x?{{else}}/y{{end}}{{.V}}">`, `<a href="{{with .V}}{{.}}{{else}}/x{{end}}">`,
	`<p title="{{.P}}" data-x="{{.E}}" class="{{.B}}">{{.E}}{{.P}}{{.Fn}}`, `<a href="{{.E}}">{{.C}}{{.J}}`, `<p title="{{.C}}">{{print .H}}{{print .C .J}}`,
	// text
	`{ {{- .V -}} }`, `{{"{{"}}{{.V}}`, "{{- /* no */ -}} x {{/* no */}}", "  {{- .V}}\n\t{{.V -}}  ", `{{block "b" .}}{{.V}}{{end}}`, `{{template "none" .}}`, `{{template "inner"}}`,
	`{{define "x"}}{{end}}`, ``, `{{end}}`, `{{.V | _html_template_urlfilter}}`, `{{_html_template_htmlescaper .V}}`, `{{.V | _html_template_htmlescaper}}`,
}

// everything is data of every kind that may stand in a page, and some that may not.
type everything struct {
	page
	F     float64
	I     int64
	B     bool
	K     kind
	Q     *int
	C     template.CSS
	J     template.JS
	Any   any
	None  any
	Ints  map[int]string
	Bools map[bool]string
	Mixed map[any]string
	Fn    func() string
}

type kind string

// Add, Ptr and Panics are methods that the set is told of.
func (e everything) Add(n int64) int64 { return e.I + n }
func (e *everything) Ptr() string      { return "of " + e.V }
func (e everything) Panics() string    { panic(e.V) }

var oddFuncs = map[string]any{
	"up":     strings.ToUpper,
	"bold":   func(s string) template.HTML { return template.HTML("<b>" + template.HTMLEscapeString(s) + "</b>") },
	"named":  func(k kind) string { return string(k) },
	"panics": func() string { panic("on purpose") },
	"fails":  func() (string, error) { return "not this", errors.New("on purpose") },
}

var oddMethods = Methods{
	"IsZero": {time.Time.IsZero}, "Add": {everything.Add, (*everything).Add}, "Ptr": {(*everything).Ptr}, "Panics": {everything.Panics},
}

// FuzzTemplates: whatever a template says, it is refused, or fails, or makes what html/template
// makes of it.
func FuzzTemplates(f *testing.F) {
	for i, text := range odd {
		f.Add(text, []string{"plain", `"><script>'&+`, "", "javascript:x"}[i%4])
		f.Add(text, "a b&c=d")
	}
	f.Fuzz(func(t *testing.T, text, v string) {
		if strings.Contains(text, "page") {
			t.Skip("it calls itself: html/template goes 100,000 deep before it fails")
		}
		text = `{{define "page"}}` + text + "{{end}}\n" + `{{define "inner"}}<{{.}}>{{end}}`
		escaped, err := Escaped(fstest.MapFS{"x.html": {Data: []byte(text)}}, "*.html", oddFuncs)
		if err != nil {
			return // refused
		}
		set, err := Parse(escaped, oddFuncs, oddMethods)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, escaped)
		}
		one := 1
		for _, data := range []everything{{}, {
			page: page{V: v, U: template.URL(v), H: "<b>&amp;</b>", N: 3, A: v, P: new(int), E: errors.New(v), L: []string{v, "x"}, M: map[string]string{"k": v, v: "v", "b": "c"}},
			F:    math.NaN(), I: -3, B: true, K: kind(v), Q: &one, C: template.CSS(v), J: template.JS(v), Any: everything{page: page{V: v}},
			Ints: map[int]string{3: "c", -1: v, 20: "b"}, Bools: map[bool]string{true: "t", false: v}, Mixed: map[any]string{1: "a", "a": v, true: "b"},
			Fn: func() string { return v },
		}} {
			got, err := set.Execute("page", &data)
			if err != nil {
				if got != "" {
					t.Errorf("%s fails with %v, and half a page: %s", text, err, got)
				}
				continue
			}
			var want strings.Builder
			if err := template.Must(template.New("").Funcs(oddFuncs).Parse(text)).ExecuteTemplate(&want, "page", &data); err != nil {
				t.Errorf("%s makes %q, html/template fails: %v", text, got, err)
			} else if got != want.String() {
				t.Errorf("%s makes\n%s\nhtml/template\n%s", text, got, want.String())
			}
		}
	})
}
