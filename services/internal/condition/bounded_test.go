package condition

import (
	"runtime"
	"strings"
	"testing"
)

// Few bytes of an expression cannot make many of memory: anybody who may look at events
// can write one, and it is evaluated beside the pipeline.
func TestExpressionsCannotMakeLongTexts(t *testing.T) {
	ten := strings.Repeat("a", 10)
	long := strings.Repeat("a", 1<<20)
	for name, expression := range map[string]string{
		"replace, again and again": `event.account` + strings.Repeat(`.replace("a","`+ten+`")`, 8) + ` == ""`,
		"replace, all at once":     `event.doc.long.replace("a", "` + strings.Repeat("b", 300) + `") == ""`,
		"replace nothing":          `event.doc.long.replace("", event.doc.long) == ""`,
		"replace, constants":       `"` + ten + `"` + strings.Repeat(`.replace("a","`+ten+`")`, 7) + ` == ""`,
		"join":                     `[event.account]` + strings.Repeat(`.map(a, [a,a,a,a,a,a,a,a,a,a].join(a))`, 8) + `[0] == ""`,
		"format":                   `[event.account]` + strings.Repeat(`.map(a, "%s%s%s%s%s%s%s%s%s%s".format([a,a,a,a,a,a,a,a,a,a]))`, 8) + `[0] == ""`,
		"format, precision":        `"%.200000000f".format([1.0]) == ""`,
		"quote":                    `[event.doc.long]` + strings.Repeat(`.map(a, strings.quote(a))`, 8) + `[0] == ""`,
		"split":                    `event.doc.long.split("").map(a, event.doc.long.split("")).size() == 0`,
		"list":                     `[[1,2,3,4,5,6,7,8,9]]` + strings.Repeat(`.map(a, a+a+a+a+a+a+a+a+a+a)`, 7) + `.size() == 0`,
		"concatenation":            `[event.account]` + strings.Repeat(`.map(a, a+a+a+a+a+a+a+a+a+a)`, 8) + `[0] == ""`,
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c, err := Compile(expression)
			if err == nil {
				_, err = c.Match(&Event{Account: ten, Doc: []byte(`{"long":"` + long + `"}`)})
			}
			runtime.ReadMemStats(&after)
			if used := after.TotalAlloc - before.TotalAlloc; used > 100<<20 {
				t.Errorf("it used %d MiB (%v)", used>>20, err)
			} else {
				t.Logf("%d MiB (%v)", used>>20, err)
			}
		})
	}
}

// Within their bounds the functions do what they do in CEL.
func TestBoundedFunctions(t *testing.T) {
	for _, expression := range []string{
		`"a-b-c".replace("-", "+") == "a+b+c"`, `"a-b-c".replace("-", "+", 1) == "a+b-c"`, `"ab".replace("", "-") == "-a-b-"`,
		`["a", "b"].join() == "ab"`, `["a", "b"].join("-") == "a-b"`, `"%s is %d".format([event.account, 7]) == "acme is 7"`,
		`event.doc.list.join(",") == "x,y"`, `event.doc.text.replace("x", event.doc.text) == "xxxx"`,
	} {
		c, err := Compile(expression)
		if err != nil {
			t.Errorf("%s: %v", expression, err)
			continue
		}
		ok, err := c.Match(&Event{Account: "acme", Doc: []byte(`{"list":["x","y"],"text":"xx"}`)})
		if !ok || err != nil {
			t.Errorf("%s: %t, %v", expression, ok, err)
		}
	}
}

// Lists that share what is in them over and over again are refused: nothing would end
// their comparison. What people write is not.
func TestHeavyExpressions(t *testing.T) {
	again := func(step string, n int) string { return `[[event.account]]` + strings.Repeat(step, n) }
	ten, sum, entry := `.map(a, [a,a,a,a,a,a,a,a,a,a])`, `.map(a, a+a+a+a+a+a+a+a+a+a)`, `.map(a, [{"x": a, "y": a, "z": a}])`
	for _, expression := range []string{
		again(ten, 20) + ` == ` + again(ten, 20), again(ten, 20) + `.exists(a, [a] == [a])`, again(sum, 20) + `[0] == []`,
		again(entry, 20) + ` == []`, `[` + again(ten, 20) + ` == []].exists(x, x)`, again(ten, 9) + ` in [[]]`,
		`[` + again(ten, 20) + `].map(a, a == a)[0]`, `google.protobuf.ListValue{values: ` + again(ten, 20) + `} == []`, again(`.filter(a, [a,a,a,a] == [a]).map(a, [a,a,a,a])`, 20) + ` == []`,
	} {
		if _, err := Compile(expression); err == nil {
			t.Errorf("not refused: %.100s", expression)
		}
	}
	many := strings.TrimSuffix(strings.Repeat(`"AKIAEXAMPLE", `, 1000), ", ")
	for _, expression := range []string{
		`event.account in [` + many + `]`, `event.doc.items.map(i, i.name).exists(n, n in [` + many + `])`,
		`event.doc.a.filter(x, x.b == 1 && x.c == 2).filter(x, x.d != "e").map(x, [x.f, x.g]).all(p, p[0] == p[1])`,
		`event.doc.a.exists(x, x.b.exists(y, y.c.exists(z, z.d == x.e && z.d == y.f)))`,
		strings.Repeat(`event.type.startsWith("a") || event.doc.b.exists(x, x == 1) || `, 100) + `false`,
		`event.doc.?a.orValue({}).?b.orValue([]).map(x, {"k": x.k, "v": x.v}).size() > 3`,
	} {
		if _, err := Compile(expression); err != nil {
			t.Errorf("%.100s: %v", expression, err)
		}
	}
}
