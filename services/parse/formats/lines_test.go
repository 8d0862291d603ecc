package formats

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestLinesConfigValidate(t *testing.T) {
	tests := []struct {
		pattern string
		ok      bool
	}{
		{"", true},
		{`^(?P<a>\S+)`, true},
		{`^(?P<a>\S+`, false},
		{`^(\S+)`, false},
		{"(?P<a>" + strings.Repeat("x", maxPattern) + ")", false},
	}
	for _, tt := range tests {
		err := LinesConfig{Pattern: tt.pattern, Fields: defaultFields()}.Validate()
		if (err == nil) != tt.ok || err != nil && !strings.Contains(err.Error(), "pattern") {
			t.Errorf("%.40s: %v", tt.pattern, err)
		}
	}
	if err := (LinesConfig{}).Validate(); err == nil {
		t.Error("the fields are not checked")
	}
}

// The message of a document is the line, as far as it is UTF-8.
func FuzzLines(f *testing.F) {
	f.Add([]byte("plain text\twith \"quotes\" and \\ and \x00 and é"))
	f.Add([]byte("2026-01-05 10:00:00 ERROR \xff"))
	f.Add([]byte(""))
	dec := open(f, "lines", LinesConfig{Fields: defaultFields()}, Deps{})
	re := regexp.MustCompile(`^(?P<a>\S*) (?P<b>.*)$`)
	with := newLines(LinesConfig{Pattern: re.String(), Fields: defaultFields()}, re, Deps{Types: NewTypes(0)})
	f.Fuzz(func(t *testing.T, rec []byte) {
		var d Doc
		if err := dec.Decode(rec, &d); err != nil {
			t.Fatal(err)
		}
		var got struct{ Message, A, B string }
		if err := json.Unmarshal(d.Body, &got); err != nil || utf8.Valid(rec) && got.Message != string(rec) || utf8.Valid(rec) != (d.Odd == 0) {
			t.Fatalf("%q became %q, %v, %v", rec, d.Body, d.Odd, err)
		}
		if err := with.Decode(rec, &d); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(d.Body, &got); err != nil {
			t.Fatal(err)
		}
		if m := re.FindSubmatch(rec); m != nil && utf8.Valid(rec) && (got.A != string(m[1]) || got.B != string(m[2])) {
			t.Fatalf("%q became %q", rec, d.Body)
		}
	})
}

func BenchmarkLines(b *testing.B) {
	decodeAll(b, open(b, "lines", nil, Deps{}), umbrellaRows())
}
