package condition

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
)

func sample() *Event {
	return &Event{
		ID: messages.NewID([]byte("a")), Type: "cloud.aws.cloudtrail.iam", Source: "trail", Account: "123456789012", Region: "eu-west-1",
		Time: 1_767_599_094_000_000_000,
		Doc: []byte(`{"eventName":"GetUser", "n": 3, "f": 1.5, "big": 9007199254740993, "ok":true, "none":null,
			"twice":"first","twice":"last", "\u0065scaped":"\u00e4",
			"user":{"name":"ann","groups":["a","b"],"deep":{"x":1}}, "list":[{"k":1},{"k":2}]}`),
	}
}

func TestMatch(t *testing.T) {
	tests := []struct {
		where string
		want  bool
		doc   bool
		fails string
	}{
		{`event.type == "cloud.aws.cloudtrail.iam" && event.type.startsWith("cloud.")`, true, false, ""},
		{`event.region in ["us-east-1", "eu-west-1"] && event.account == "123456789012" && event.source == "trail"`, true, false, ""},
		{`event.time < timestamp("2026-01-05T07:44:54Z")`, false, false, ""},
		{`event.time == timestamp("2026-01-05T07:44:54Z") && event.time.getHours("Europe/Berlin") == 8`, true, false, ""},
		{`event.id.size() == 32`, true, false, ""},
		{`event.doc.eventName.startsWith("Get")`, true, true, ""},
		{`event.doc.user.name == "ann" && event.doc["user"]["deep"].x == 1`, true, true, ""},
		{`event.doc.n > 2 && event.doc.n == 3.0 && event.doc.f == 1.5 && event.doc.big == 9007199254740993`, true, true, ""},
		{`event.doc.ok`, true, true, ""},
		{`event.doc.none == null`, true, true, ""},
		{`event.doc.twice == "last"`, true, true, ""},
		{`event.doc.escaped == "\u00e4"`, true, true, ""},
		{`"b" in event.doc.user.groups && "name" in event.doc.user && event.doc.list[1].k == 2`, true, true, ""},
		{`event.doc.list.exists(e, e.k == 2) && event.doc.user.exists(k, k == "deep")`, true, true, ""},
		{`event.doc.user.deep == {"x": 1} && size(event.doc.user) == 3`, true, true, ""},
		{`has(event.doc.user.name) && !has(event.doc.user.age) && !has(event.doc.absent)`, true, true, ""},
		{`event.doc.?absent.?x.orValue("d") == "d" && event.doc.?user.?name.orValue("") == "ann"`, true, true, ""},
		{`event.doc.absent == 1`, false, true, "no such key"},
		{`event.doc.user > 3`, false, true, "no such overload"},
		{`event.doc.eventName`, false, true, "not a bool"},
		{`int(event.doc.eventName) == 1`, false, true, "a value does not fit"},
		{`event.doc.list[7].k == 2`, false, true, "index out of bounds"},
		{`[1,2,3,4,5,6,7,8,9,10,11,12].all(a, [1,2,3,4,5,6,7,8,9,10,11,12].all(b, [1,2,3,4,5,6,7,8,9,10,11,12].all(c, [1,2,3,4,5,6,7,8,9,10,11,12].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, event.doc.n + a + b + c + d + e < 1000)))))`, false, true, "actual cost limit exceeded"},
	}
	for _, tt := range tests {
		t.Run(tt.where, func(t *testing.T) {
			c, err := Compile(tt.where)
			if err != nil {
				t.Fatal(err)
			}
			if c.NeedsDoc() != tt.doc {
				t.Errorf("NeedsDoc = %v", c.NeedsDoc())
			}
			got, err := c.Match(sample())
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) || fault.CodeOf(err) != "condition.evaluation_failed" {
					t.Fatalf("got %v, %v; want an error with %q", got, err, tt.fails)
				}
				if strings.Contains(err.Error(), "GetUser") || strings.Contains(err.Error(), "ann") {
					t.Errorf("the error shows data: %v", err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("got %v, %v; want %v", got, err, tt.want)
			}
		})
	}
}

func TestMatchSurvivesBadDocuments(t *testing.T) {
	c, err := Compile(`event.doc.a.b == 1`)
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range []string{``, `"`, `{"a":`, `{"a":{"b":x}}`, `[1]`, `{"a":-}`, `nul`} {
		if got, err := c.Match(&Event{Doc: []byte(doc)}); got || err == nil {
			t.Errorf("%q: got %v, %v; want an error", doc, got, err)
		}
	}
}

func TestMatchIsBoundedInDepth(t *testing.T) {
	c, err := Compile(`event.doc.a == event.doc.b`)
	if err != nil {
		t.Fatal(err)
	}
	for _, brackets := range [][2]string{{"[", "]"}, {`{"k":`, "}"}} {
		deep := func(n int) string { return strings.Repeat(brackets[0], n) + "1" + strings.Repeat(brackets[1], n) }
		if ok, err := c.Match(&Event{Doc: []byte(`{"a":` + deep(50) + `,"b":` + deep(50) + `}`)}); !ok || err != nil {
			t.Errorf("50 levels of %s: %v, %v", brackets[0], ok, err)
		}
		if ok, err := c.Match(&Event{Doc: []byte(`{"a":` + deep(1_000_000) + `,"b":` + deep(1_000_000) + `}`)}); ok {
			t.Errorf("a million levels of %s are equal: %v", brackets[0], err)
		}
	}
}

func TestCompileErrors(t *testing.T) {
	tests := []struct{ where, want string }{
		{`event.tpye == "x"`, "line 1, column 1: undeclared reference to 'event'"},
		{"event.type ==\n  1", "line 1, column 12: found no matching overload"},
		{"event.type == \"a\" &&\n  ", "line 2"},
		{`event.type`, "it gives string, not a bool"},
		{`event.type.matches("(")`, "invalid matches argument"},
		{``, "line 1"},
	}
	for _, tt := range tests {
		t.Run(tt.where, func(t *testing.T) {
			_, err := Compile(tt.where)
			if err == nil || !strings.Contains(err.Error(), tt.want) || fault.ClassOf(err) != fault.Stop {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestTypes(t *testing.T) {
	tests := []struct {
		patterns []string
		typ      string
		want     bool
	}{
		{nil, "a.b", true},
		{[]string{"a.b"}, "a.b", true},
		{[]string{"a.b"}, "a.b.c", false},
		{[]string{"a.b"}, "a", false},
		{[]string{"a.*"}, "a.b", true},
		{[]string{"a.*"}, "a.b.c", false},
		{[]string{"a.*.c"}, "a.b.c", true},
		{[]string{"a.>"}, "a.b.c", true},
		{[]string{"a.>"}, "a", false},
		{[]string{">"}, "a", true},
		{[]string{"x", "a.b"}, "a.b", true},
		{[]string{"ab"}, "a", false},
	}
	for _, tt := range tests {
		types, err := ParseTypes(tt.patterns)
		if err != nil {
			t.Fatal(err)
		}
		if got := types.Has(tt.typ); got != tt.want {
			t.Errorf("%v has %q = %v", tt.patterns, tt.typ, got)
		}
	}
	for _, bad := range []string{"", "a..b", "a.>.b", ">a", "a b", "a.*b", ".a"} {
		if _, err := ParseTypes([]string{bad}); err == nil {
			t.Errorf("pattern %q was taken", bad)
		}
	}
	if !IsType("a.b-c_1") || IsType("a.*") || IsType("") || IsType("a..b") {
		t.Error("IsType is wrong")
	}
}

// FuzzLookup: a field of a valid document is what encoding/json finds there.
func FuzzLookup(f *testing.F) {
	f.Add([]byte(`{"a":"x","\u0061":"y","b":[1,{"a":"\ud83d\ude00"}]}`))
	f.Add([]byte(`{"a":"` + strings.Repeat("long ", 2000) + `"}`))
	c, err := Compile(`event.doc.a == event.doc.expect`)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		_, _ = c.Match(&Event{Doc: doc}) // whatever it is, it does not panic
		var m map[string]any
		if json.Unmarshal(doc, &m) != nil {
			return
		}
		want, ok := m["a"].(string)
		if !ok || strings.ContainsRune(want, '\uFFFD') {
			return
		}
		m = map[string]any{"expect": want, "a": want}
		pair, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		tail := strings.TrimSpace(string(doc))
		both := string(pair[:len(pair)-1]) + "," + tail[1:] // the document's own "a" comes last
		if strings.Contains(string(doc), "expect") {
			return
		}
		if got, err := c.Match(&Event{Doc: []byte(both)}); err != nil || !got {
			t.Fatalf("%q: %v, %v", both, got, err)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	for _, bm := range []struct{ name, where string }{
		{"columns", `event.region == "eu-west-1" && event.type.startsWith("cloud.")`},
		{"document", `event.doc.user.name == "ann" && event.doc.eventName.startsWith("Get")`},
	} {
		b.Run(bm.name, func(b *testing.B) {
			c, err := Compile(bm.where)
			if err != nil {
				b.Fatal(err)
			}
			e := sample()
			b.ReportAllocs()
			for b.Loop() {
				if ok, err := c.Match(e); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}

func TestMistakes(t *testing.T) {
	for _, tt := range []struct {
		where string
		want  []Mistake
	}{
		{`event.region == "eu"`, nil},
		{`event.type`, []Mistake{{What: "it gives string, not a bool"}}},
		{"event.region == \"ä\" &&\n  event.tpye == 1", []Mistake{{2, 3, "undeclared reference to 'event' (in container '')"}}},
	} {
		got := Mistakes(tt.where)
		if len(got) != len(tt.want) {
			t.Errorf("%s: got %v", tt.where, got)
			continue
		}
		for i, m := range got {
			if m != tt.want[i] {
				t.Errorf("%s: got %+v, want %+v", tt.where, m, tt.want[i])
			}
		}
	}
}
