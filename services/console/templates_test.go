package console

import (
	"bytes"
	"fmt"
	"html/template"
	"os"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/services/internal/golden"
	"github.com/penstock/penstock/services/internal/markup"
)

// TestEscapedTemplatesAreInDate: html/template says how each value is escaped.
func TestEscapedTemplatesAreInDate(t *testing.T) {
	text, err := markup.Escaped(os.DirFS("templates"), "*.html", pageFuncs)
	if err != nil {
		t.Fatal(err)
	}
	golden.Check(t, "escaped.tmpl", []byte(text))
}

// TestMain lets each page that any test asks for be made by html/template too.
func TestMain(m *testing.M) {
	w := newWatched()
	templates = w
	code := m.Run()
	for _, wrong := range w.wrong {
		fmt.Println("FAIL:", wrong)
		code = max(code, 1)
	}
	os.Exit(code)
}

// watched makes pages as the console does, and compares them with those of html/template.
type watched struct {
	maker
	pinned    *markup.Set // its functions do not look at the clock
	reference *template.Template
	names     map[string]bool // of fields and methods in templates

	mu    sync.Mutex
	seen  map[reflect.Type]bool
	wrong []string
}

func newWatched() *watched {
	funcs := template.FuncMap{}
	for name, f := range pageFuncs {
		funcs[name] = f
	}
	funcs["ago"] = funcs["at"]
	pinned, err := markup.Parse(escapedPages, funcs, pageMethods)
	if err != nil {
		panic(err)
	}
	w := &watched{
		maker: templates, pinned: pinned, names: map[string]bool{}, seen: map[reflect.Type]bool{},
		reference: template.Must(template.New("").Funcs(funcs).ParseGlob("templates/*.html")),
	}
	pinned.Names(func(name string) { w.names[name] = true })
	return w
}

func (w *watched) Execute(name string, data any) (string, error) {
	got, err := w.pinned.Execute(name, data)
	var want bytes.Buffer
	wantErr := w.reference.ExecuteTemplate(&want, name, data)
	w.mu.Lock()
	switch {
	case (err == nil) != (wantErr == nil):
		w.wrong = append(w.wrong, fmt.Sprintf("%s: ends with %v, with html/template %v", name, err, wantErr))
	case err == nil && got != want.String():
		w.wrong = append(w.wrong, fmt.Sprintf("%s differs from html/template: %s", name, firstDifference(got, want.String())))
	}
	w.methods(reflect.ValueOf(data), reflect.TypeOf(data))
	w.mu.Unlock()
	return w.maker.Execute(name, data)
}

func firstDifference(got, want string) string {
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	cut := func(s string) string { return s[max(0, i-60):min(len(s), i+60)] }
	return fmt.Sprintf("got …%s…, want …%s…", cut(got), cut(want))
}

// notCalled are methods with a name that fields of other types have in templates.
var notCalled = map[string]bool{"time.Time.Format": true, "time.Time.In": true, "console.Role.Values": true}

// methods finds the methods of the types of data that a template could call, in branches that
// no test takes too, and that the console does not know.
func (w *watched) methods(v reflect.Value, t reflect.Type) {
	if t == nil {
		return
	}
	if t.Kind() == reflect.Interface {
		if v.IsValid() && !v.IsNil() {
			w.methods(v.Elem(), v.Elem().Type())
		}
		return
	}
	if v.IsValid() && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map) && v.IsNil() {
		v = reflect.Value{}
	}
	known := w.seen[t]
	w.seen[t] = true
	if !known && t.Kind() != reflect.Pointer {
		own := map[string]bool{} // those that a value has too, not only what points to one
		for i := range t.NumMethod() {
			own[t.Method(i).Name] = true
		}
		for i := range reflect.PointerTo(t).NumMethod() {
			m := reflect.PointerTo(t).Method(i)
			name := m.Name
			if w.names[name] && !notCalled[t.String()+"."+name] && !w.pinned.Callable(t, name) && (own[name] || !w.pinned.Callable(reflect.PointerTo(t), name)) {
				w.wrong = append(w.wrong, fmt.Sprintf("a template may call %s.%s: add it to pageMethods", t, name))
			}
		}
	}
	switch t.Kind() {
	case reflect.Pointer:
		var e reflect.Value
		if v.IsValid() {
			e = v.Elem()
		}
		if !known || e.IsValid() {
			w.methods(e, t.Elem())
		}
	case reflect.Struct:
		if t == reflect.TypeFor[time.Time]() || known && !v.IsValid() {
			return
		}
		for i := range t.NumField() {
			f := t.Field(i)
			if !f.IsExported() && !f.Anonymous {
				continue
			}
			var e reflect.Value
			if v.IsValid() {
				e = v.Field(i)
			}
			if e.IsValid() && !e.CanInterface() {
				e = reflect.Value{}
			}
			if !w.seen[f.Type] || f.Type.Kind() == reflect.Interface {
				w.methods(e, f.Type)
			}
		}
	case reflect.Slice, reflect.Array, reflect.Map:
		if !w.seen[t.Elem()] {
			w.methods(reflect.Value{}, t.Elem())
		}
		if v.IsValid() && t.Kind() == reflect.Map && t.Elem().Kind() == reflect.Interface {
			for _, e := range v.Seq2() {
				w.methods(e, t.Elem())
			}
		}
	default:
	}
}
