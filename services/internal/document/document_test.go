package document

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestAppendValid(t *testing.T) {
	// covers: DEV-143
	tests := []struct {
		name, in, want string
		replaced       int
	}{
		{"valid text stays", "a\u00e4\U0001F600", "a\u00e4\U0001F600", 0},
		{"a real U+FFFD is not counted", "\uFFFD", "\uFFFD", 0},
		{"each bad byte counts", "a\xff\xfeb", "a\uFFFD\uFFFDb", 2},
		{"a cut rune at the end", "x\xe2\x82", "x\uFFFD\uFFFD", 2},
		{"a surrogate half in UTF-8", "\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD", 3},
		{"nothing", "", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, n := AppendValid([]byte("<"), []byte(tt.in))
			if string(got) != "<"+tt.want || n != tt.replaced {
				t.Errorf("AppendValid(%q) = %q, %d; want %q, %d", tt.in, got, n, "<"+tt.want, tt.replaced)
			}
		})
	}
}

func TestAppendLine(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"pretty-printed", "{\r\n  \"a\": [1,\n\t2],\n \"b c\": \"x  y\"\n}\n", `{"a":[1,2],"b c":"x  y"}`},
		{"escaped quote before a space", `{"a": "\" ", "b": "\\" }`, `{"a":"\" ","b":"\\"}`},
		{"raw line break in a string", "{\"a\": \"x\r\ny\"}", `{"a":"x\r\ny"}`},
		{"string without end keeps its bytes", "{\"a\": \"x y\nz", `{"a":"x y\nz`},
		{"nothing", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := AppendLine(nil, []byte(tt.in)); string(got) != tt.want {
				t.Errorf("AppendLine(%q) = %q, want %q", tt.in, got, tt.want)
			}
		})
	}
}

func TestMembers(t *testing.T) {
	tests := []struct {
		name, in, want string
		bad            bool
	}{
		{"object", `{"a":1, "b" : {"x":["}"]} ,"c":"\"","d":null}`, `a=1 b={"x":["}"]} c="\"" d=null`, false},
		{"array", `[1,"a",[2],{"b":3}, true]`, `=1 ="a" =[2] ={"b":3} =true`, false},
		{"empty object", `{ }`, ``, false},
		{"empty array", `[]`, ``, false},
		{"no value", `{"a"}`, ``, true},
		{"no key", `{1:2}`, ``, true},
		{"no comma", `{"a":1 "b":2}`, `a=1`, true},
		{"cut", `{"a":1,"b":{"c":`, `a=1`, true},
		{"trailing comma", `[1,]`, `=1`, true},
		{"a number", `12`, ``, true},
		{"nothing", ``, ``, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			c := Members([]byte(tt.in))
			for {
				key, start, end, ok := c.Next()
				if !ok {
					break
				}
				got = append(got, string(key)+"="+tt.in[start:end])
			}
			if s := strings.Join(got, " "); s != tt.want || c.Bad() != tt.bad {
				t.Errorf("got %q, bad %v; want %q, %v", s, c.Bad(), tt.want, tt.bad)
			}
			if !tt.bad && c.End() != len(tt.in) {
				t.Errorf("ended at %d of %d", c.End(), len(tt.in))
			}
		})
	}
}

func TestDepth(t *testing.T) {
	for in, want := range map[string]int{`1`: 0, `"[{"`: 0, `[]`: 1, `{"a":[{"b":"}"}],"c":{}}`: 3, `[[1],[[2]]]`: 3, `["`: 1} {
		if got := Depth([]byte(in)); got != want {
			t.Errorf("Depth(%s) = %d, want %d", in, got, want)
		}
	}
}

func TestWhole(t *testing.T) {
	for in, want := range map[string]bool{`1`: true, `"a"`: true, `{"a":[1]}`: true, `true`: true, ``: false, `{"a"`: false, `t{"a":1}`: false, `1 2`: false, `"a"b`: false, ` 1`: false} {
		if got := Whole([]byte(in)); got != want {
			t.Errorf("Whole(%s) = %v, want %v", in, got, want)
		}
	}
}

// FuzzStrings: what is quoted can be read by encoding/json and by us, and comes
// back as it was, but for bytes that are not UTF-8.
func FuzzStrings(f *testing.F) {
	f.Add("plain")
	f.Add("\" \\ \n \r \t \x00 \x1f \u2028 \U0001F600 \xff")
	f.Fuzz(func(t *testing.T, s string) {
		quoted := AppendQuoted(nil, s)
		want := strings.ToValidUTF8(s, "\uFFFD")
		if valid, _ := AppendValid(nil, []byte(s)); !utf8.ValidString(s) {
			want = string(valid) // one mark for each byte, not for each run
		}
		var std string
		if err := json.Unmarshal(quoted, &std); err != nil || std != want {
			t.Fatalf("encoding/json reads %q as %q: %v", quoted, std, err)
		}
		if own := AppendUnquoted(nil, quoted[1:len(quoted)-1]); string(own) != want {
			t.Fatalf("AppendUnquoted(%q) = %q, want %q", quoted, own, want)
		}
	})
}

// FuzzDocument: a valid document keeps its meaning on one line, its members are
// those that encoding/json sees, and an invalid one is survived.
func FuzzDocument(f *testing.F) {
	for _, s := range []string{
		"{\n \"a\" : [ 1 , { \"b\" : \"c d\" } ],\r\n \"\\u0061\": \"\\ud83d\\ude00\\\"\" }", `[]`, `{"a":`, `"x`, `{"a":"\\"}`, " 1 ",
		`{"big":"` + strings.Repeat("x", 5000) + `"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		line := AppendLine(nil, doc)
		if bytes.ContainsAny(line, "\r\n") {
			t.Fatalf("%q is not one line", line)
		}
		c := Members(Trim(doc))
		members := 0
		for {
			_, start, end, ok := c.Next()
			if !ok {
				break
			}
			if end <= start || end > len(doc) {
				t.Fatalf("member at %d to %d of %q", start, end, doc)
			}
			members++
		}
		if !json.Valid(doc) {
			return
		}
		var want bytes.Buffer
		if err := json.Compact(&want, doc); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(line, want.Bytes()) {
			t.Fatalf("AppendLine = %q, want %q", line, want.Bytes())
		}
		var list []json.RawMessage
		if KindOf(Trim(doc)) == Array {
			if err := json.Unmarshal(doc, &list); err != nil || len(list) != members || c.Bad() {
				t.Fatalf("%d members of %q, want %d; %v", members, doc, len(list), err)
			}
		}
		var obj map[string]json.RawMessage
		if KindOf(Trim(doc)) == Object {
			if err := json.Unmarshal(doc, &obj); err != nil || len(obj) > members || c.Bad() {
				t.Fatalf("%d members of %q, want %d or more; %v", members, doc, len(obj), err)
			}
		}
	})
}
