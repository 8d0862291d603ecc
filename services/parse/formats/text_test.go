package formats

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/penstock/penstock/services/internal/document"
)

// covers: DEV-143, F-0 (numbers as written)
func TestFieldWriter(t *testing.T) {
	k := newKey("a")
	tests := []struct {
		name  string
		write func(w *fieldWriter)
		want  string
		odd   Odd
	}{
		{"nothing", func(*fieldWriter) {}, `{}`, 0},
		{"text", func(w *fieldWriter) { w.text(k, []byte("x y")) }, `{"a":"x y"}`, 0},
		{"empty text", func(w *fieldWriter) { w.text(k, nil) }, `{"a":""}`, 0},
		{"escapes", func(w *fieldWriter) { w.text(k, []byte("q\" b\\ n\n r\r t\t z\x00 d\x7f")) }, `{"a":"q\" b\\ n\n r\r t\t z\u0000 d` + "\x7f" + `"}`, 0},
		{"letters of two to four bytes", func(w *fieldWriter) { w.text(k, []byte("é€😀")) }, `{"a":"é€😀"}`, 0},
		{"not UTF-8", func(w *fieldWriter) { w.text(k, []byte("ab\xff\xc3(c")) }, "{\"a\":\"ab\uFFFD\uFFFD(c\"}", BadUTF8},
		{"half a surrogate", func(w *fieldWriter) { w.text(k, []byte("\xed\xa0\x80")) }, "{\"a\":\"\uFFFD\uFFFD\uFFFD\"}", BadUTF8},
		{"number", func(w *fieldWriter) { w.number(k, []byte("12345678901234567890.10")) }, `{"a":12345678901234567890.10}`, 0},
		{"leading zeros are no number", func(w *fieldWriter) { w.number(k, []byte("007")) }, `{"a":"007"}`, 0},
		{"sign alone is no number", func(w *fieldWriter) { w.number(k, []byte("-")) }, `{"a":"-"}`, 0},
		{"hexadecimal is no number", func(w *fieldWriter) { w.number(k, []byte("0x1f")) }, `{"a":"0x1f"}`, 0},
		{"plus is no number", func(w *fieldWriter) { w.number(k, []byte("+1")) }, `{"a":"+1"}`, 0},
		{"a number of forty digits", func(w *fieldWriter) { w.number(k, bytes.Repeat([]byte("1"), 40)) }, `{"a":` + strings.Repeat("1", 40) + `}`, 0},
		{"no longer one", func(w *fieldWriter) { w.number(k, bytes.Repeat([]byte("1"), 41)) }, `{"a":"` + strings.Repeat("1", 41) + `"}`, 0},
		{"object", func(w *fieldWriter) {
			w.object(k)
			w.text(k, []byte("x"))
			w.close()
			w.number(newKey("b"), []byte("1"))
		}, `{"a":{"a":"x"},"b":1}`, 0},
		{"empty object", func(w *fieldWriter) { w.object(k); w.close() }, `{"a":{}}`, 0},
		{"json", func(w *fieldWriter) { w.json(k, []byte(`[1,null]`)) }, `{"a":[1,null]}`, 0},
		{"the line", func(w *fieldWriter) { w.raw([]byte(`a "b"`)) }, `{"raw":"a \"b\""}`, 0},
		{"odd name", func(w *fieldWriter) { w.text(newKey("a\"\xff"), []byte("x")) }, "{\"a\\\"\uFFFD\":\"x\"}", 0},
	}
	var w fieldWriter
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.begin()
			tt.write(&w)
			got := w.end()
			if string(got) != tt.want || w.odd() != tt.odd {
				t.Errorf("got %s %s\nwant %s %s", got, w.odd(), tt.want, tt.odd)
			}
			if !json.Valid(got) || !utf8.Valid(got) {
				t.Error("it is no JSON")
			}
		})
	}
}

func TestNewColumns(t *testing.T) {
	cols := newColumns([]string{"a", "b", "a", "", "raw", "a_2", "n\xff"}, func(name string) (int, bool) {
		if name == "a" {
			return 0, true
		}
		return -1, false
	}, rawField)
	want := []string{"a", "b", "a_2", "column_4", "raw_2", "a_2_2", "n\uFFFD"}
	for i, c := range cols {
		if c.name != want[i] || string(c.key) != `"`+want[i]+`":"` {
			t.Errorf("column %d is %q with key %s, want %q", i, c.name, c.key, want[i])
		}
		if (c.slot == 0) != (i == 0) {
			t.Errorf("column %d has slot %d", i, c.slot)
		}
	}
}

func TestHeadersRemember(t *testing.T) {
	parsed := 0
	h := headers[string]{parse: func(b []byte) (string, error) {
		if parsed++; len(b) == 0 {
			return "", errors.New("none")
		}
		return string(b), nil
	}}
	header := []byte("one")
	for range 3 {
		if got, err := h.of(header); got != "one" || err != nil {
			t.Fatal(got, err)
		}
		if _, err := h.of(nil); err == nil {
			t.Fatal("the error is forgotten")
		}
	}
	if parsed != 2 {
		t.Errorf("parsed %d times", parsed)
	}
	copy(header, "two") // the caller's buffer moves on
	if got, _ := h.of(header); got != "two" {
		t.Errorf("got %q", got)
	}
	for i := range 3 * maxHeaders {
		if _, err := h.of([]byte{byte(i), 1}); err != nil || len(h.known) > maxHeaders {
			t.Fatal(err, len(h.known))
		}
	}
}

func TestFieldWriterAllocatesNothing(t *testing.T) {
	var w fieldWriter
	k, v := newKey("name"), []byte("some \"text\" \xff")
	if n := testing.AllocsPerRun(100, func() {
		w.begin()
		w.text(k, v)
		w.number(k, []byte("12"))
		w.raw(v)
		w.end()
	}); n != 0 {
		t.Errorf("%v allocations a record", n)
	}
}

// Whatever the bytes are, the document is JSON, and the text comes back, replaced
// only where it is not UTF-8.
func FuzzFieldWriter(f *testing.F) {
	f.Add([]byte("plain"), []byte("12"))
	f.Add([]byte("q\"\\\x00\xff\n"), []byte("-0.5e+3"))
	f.Add(bytes.Repeat([]byte("long é "), 2000), []byte("01"))
	f.Fuzz(func(t *testing.T, text, number []byte) {
		var w fieldWriter
		w.begin()
		w.text(newKey("t"), text)
		w.number(newKey("n"), number)
		w.text(newKey(string(text)+"x"), nil)
		doc := w.end()
		var got map[string]any
		dec := json.NewDecoder(bytes.NewReader(doc))
		dec.UseNumber()
		if err := dec.Decode(&got); err != nil || !utf8.Valid(doc) {
			t.Fatalf("%q: %v", doc, err)
		}
		if got["t"] != string([]rune(string(text))) {
			t.Fatalf("text %q became %q", text, got["t"])
		}
		n := got["n"]
		if num, ok := n.(json.Number); ok {
			n = num.String()
		}
		if n != string([]rune(string(number))) {
			t.Fatalf("number %q became %v", number, n)
		}
	})
}

// However fields are named, none stands twice in a document: readers would see only
// one of them.
func TestFieldsStandOnce(t *testing.T) {
	fields := func() FieldsConfig { return FieldsConfig{TimeUnit: RFC3339, KeepRaw: true} }
	for _, tt := range []struct {
		format, key, columns, rec string
		options                   any
	}{
		{"csv", "", "a,column_3,raw", "1,2,3,4,5", CSVConfig{Ragged: true, Fields: fields()}},
		{"csv", "", "a,column_4,column_3", "1,2,3,4,5", CSVConfig{Ragged: true, Fields: fields()}},
		{"umbrella", "dnslogs/2026-01-05/a.csv", `"Timestamp","column4","column5"`, `"2026-01-05 17:48:41","a","b","c","d"`, nil},
		{"umbrella", "dnslogs/2026-01-05/a.csv", `"Timestamp","column3",""`, `"2026-01-05 17:48:41","a","b"`, nil},
		{"lines", "", "", "abc def", LinesConfig{Pattern: `^(?P<raw>\S+)`, Unmatched: Keep, Fields: fields()}},
		{"cef", "", "", "CEF:0|v|p|1|2|n|5|" + strings.Repeat("a=1 ", 300), nil},
	} {
		dec := open(t, tt.format, tt.options, Deps{})
		if err := begin(dec, tt.key, []byte(tt.columns)); err != nil {
			t.Fatal(err)
		}
		var d Doc
		if err := dec.Decode([]byte(tt.rec), &d); err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for body := d.Body; body != nil; {
			c := document.Members(body)
			for body = nil; ; {
				key, start, end, ok := c.Next()
				if !ok {
					break
				}
				if seen[string(key)] {
					t.Fatalf("%s: %s stands twice in %s", tt.format, key, d.Body)
				}
				seen[string(key)] = true
				if string(key) == "extension" {
					body = d.Body[start:end]
				}
			}
		}
	}
}

// A header of equal names costs no more than another one: a file may have a header
// before each line.
func TestColumnsOfOneName(t *testing.T) {
	names := make([]string, maxColumns)
	for i := range names {
		names[i] = "a"
	}
	none := func(string) (int, bool) { return -1, false }
	if n := testing.AllocsPerRun(1, func() { newColumns(names, none) }); n > 10*maxColumns {
		t.Errorf("%v allocations for %d columns", n, maxColumns)
	}
	cols := newColumns([]string{"a", "a", "a_2", "a", "a_2"}, none)
	var got []string
	for _, c := range cols {
		got = append(got, c.name)
	}
	if want := "a a_2 a_2_2 a_3 a_2_3"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

// What plainBut lets pass needs no escapes, and rows as they commonly are pass.
func FuzzPlainBut(f *testing.F) {
	for _, row := range []string{"", "a\tb c\t-\thttps://e.org/x%20y\t1", "\t\t\t\t\t\t\t\t \t!", `"a","b ""c""",""`, "a\\b\tc", "a\x1f\tb\tcdefgh", "é\tabcdefg", "a\t\"b\"", "abcdefgh\n"} {
		f.Add([]byte(row), byte('\t'))
		f.Add([]byte(row), byte('"'))
	}
	f.Fuzz(func(t *testing.T, row []byte, separator byte) {
		for value := range bytes.SplitSeq(row, []byte{separator}) {
			if plainBut(row, separator) && plain(value) < len(value) {
				t.Errorf("%q passes, with %q in it", row, value)
			}
		}
	})
}

func TestPlainBut(t *testing.T) {
	for _, row := range []string{"", "x", "2026-01-05\t17:48:41\tLHR50-P1\t-\t\t!", "\t\t\t\t\t\t\t\t\t"} {
		if !plainBut([]byte(row), '\t') {
			t.Errorf("%q does not pass", row)
		}
	}
	for i := range 20 {
		for _, c := range []byte{0, '\n', '"', '\\', 0x7f + 1, 0xff} {
			row := bytes.Repeat([]byte{'a'}, 20)
			row[i] = c
			if plainBut(row, '\t') {
				t.Errorf("%q passes", row)
			}
		}
	}
}
