package framing_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/services/internal/framing"
)

// records reads all records of in; bad spans are left out.
func records(tb testing.TB, f framing.Framing, in []byte, step int, lim framing.Limits) (recs []string, offs []int64) {
	tb.Helper()
	s := framing.New(f, chunks{bytes.NewReader(in), step}, lim)
	for {
		rec, err := s.Next()
		var bad *framing.Bad
		switch {
		case err == io.EOF:
			return recs, offs
		case errors.As(err, &bad):
		case err != nil:
			tb.Fatal(err)
		default:
			recs, offs = append(recs, string(rec)), append(offs, s.Offset())
		}
	}
}

// covers: F-8 (one event per finding), DEV-13
func TestExplode(t *testing.T) {
	many := `{"d":{"f":[` + strings.Repeat("1,", 100) + `1]}}`
	hostile := `{"x":"` + strings.Repeat("x", 1000) + `","d":{"f":[` + strings.Repeat("1,", 100) + `1]}}`
	tests := []struct {
		name, in string
		want     []string
	}{
		{"two elements", `{"a":1,"d":{"f":[{"i":1},{"i":2}],"z":3},"b":2}`, []string{`{"a":1,"d":{"f":[{"i":1}],"z":3},"b":2}`, `{"a":1,"d":{"f":[{"i":2}],"z":3},"b":2}`}},
		{"space stays, but not between elements", "{ \"d\" : {\n\"f\" : [ 1 ,\n 2 ]\n} }", []string{"{ \"d\" : {\n\"f\" : [1]\n} }", "{ \"d\" : {\n\"f\" : [2]\n} }"}},
		{"elements of all kinds", `{"d":{"f":["]",[1,2],{"f":[1,2]},null]}}`, []string{`{"d":{"f":["]"]}}`, `{"d":{"f":[[1,2]]}}`, `{"d":{"f":[{"f":[1,2]}]}}`, `{"d":{"f":[null]}}`}},
		{"one element as it came", `{"d":{"f":[ {"i":1} ]}}`, []string{`{"d":{"f":[ {"i":1} ]}}`}},
		{"none", `{"d":{"f":[ ]}}`, []string{`{"d":{"f":[ ]}}`}},
		{"no array", `{"d":{"f":{"a":[1,2]}}}`, []string{`{"d":{"f":{"a":[1,2]}}}`}},
		{"elsewhere", `{"f":[1,2],"d":[{"f":[1,2]}]}`, []string{`{"f":[1,2],"d":[{"f":[1,2]}]}`}},
		{"no object", `3 [1,2] "x"`, []string{`3`, `[1,2]`, `"x"`}},
		{"the last of equal keys", `{"d":{"f":[1,2]},"d":{"f":[3],"f":[4,5]}}`, []string{`{"d":{"f":[1,2]},"d":{"f":[3],"f":[4]}}`, `{"d":{"f":[1,2]},"d":{"f":[3],"f":[5]}}`}},
		{"several values", `{"d":{"f":[1,2]}}` + "\n" + `{"d":{"f":[3]}}{"d":{"f":[4,5]}}`, []string{`{"d":{"f":[1]}}`, `{"d":{"f":[2]}}`, `{"d":{"f":[3]}}`, `{"d":{"f":[4]}}`, `{"d":{"f":[5]}}`}},
		{"in an array", `[{"d":{"f":[1,2]}},{"d":{}}]`, []string{`{"d":{"f":[1]}}`, `{"d":{"f":[2]}}`, `{"d":{}}`}},
		{"under Records", `{"Records":[{"d":{"f":[1,2]}}]}`, []string{`{"d":{"f":[1]}}`, `{"d":{"f":[2]}}`}},
		{"broken neighbours", `{"d":{"f":[1,2]}}` + "\n" + `{"d":{"f":[1,2}}` + "\n" + `{"d":{"f":[3,4]}}`, []string{`{"d":{"f":[1]}}`, `{"d":{"f":[2]}}`, `{"d":{"f":[3]}}`, `{"d":{"f":[4]}}`}},
		{"many in a small envelope", many, slices.Repeat([]string{`{"d":{"f":[1]}}`}, 101)},
		{"what would grow without measure stays", hostile, []string{hostile}},
	}
	for _, tt := range tests {
		for _, step := range []int{1, 3, 1 << 20} {
			got, _ := records(t, framing.Framing{Explode: "d.f"}, []byte(tt.in), step, framing.Limits{})
			if !slices.Equal(got, tt.want) {
				t.Errorf("%s, reads of %d bytes: %q, want %q", tt.name, step, got, tt.want)
			}
		}
	}
}

// The offset of each part is that of the value, and the splitter can be used again
// in the middle of one.
func TestExplodeOffsetAndReset(t *testing.T) {
	in := `{"f":[0]}{"f":[1,2]}{"f":[3]}`
	if _, offs := records(t, framing.Framing{Explode: "f"}, []byte(in), 5, framing.Limits{}); !slices.Equal(offs, []int64{0, 9, 9, 20}) {
		t.Errorf("offsets %v", offs)
	}
	s := framing.New(framing.Framing{Explode: "f"}, strings.NewReader(`{"f":[1,2,3]}`), framing.Limits{})
	if rec, err := s.Next(); err != nil || string(rec) != `{"f":[1]}` {
		t.Fatalf("%q, %v", rec, err)
	}
	s.Reset(framing.Framing{}, strings.NewReader(`{"f":[4,5]}`), framing.Limits{})
	if rec, err := s.Next(); err != nil || string(rec) != `{"f":[4,5]}` {
		t.Errorf("after Reset: %q, %v", rec, err)
	}
}

// A value above the first buffer is taken apart in place, with one buffer more,
// which is asked for.
func TestExplodeMemory(t *testing.T) {
	element := `{"i":"` + strings.Repeat("x", 60<<10) + `"}`
	in := `{"a":1,"f":[` + element + `,` + element + `,` + element + `,` + element + `],"b":2}`
	asked := 0
	lim := framing.Limits{Grow: func(size int) error { asked = max(asked, size); return nil }}
	got, _ := records(t, framing.Framing{Explode: "f"}, []byte(in), 4096, lim)
	if want := `{"a":1,"f":[` + element + `],"b":2}`; !slices.Equal(got, []string{want, want, want, want}) {
		t.Fatalf("%d records", len(got))
	}
	if asked < 2*len(in) || asked > 8*len(in) {
		t.Errorf("asked for %d bytes for a value of %d", asked, len(in))
	}
	no := errors.New("no room")
	s := framing.New(framing.Framing{Explode: "f"}, strings.NewReader(in), framing.Limits{Grow: func(size int) error {
		if size > 2*len(in) {
			return no
		}
		return nil
	}})
	if _, err := s.Next(); !errors.Is(err, no) {
		t.Errorf("got %v, want what Grow said", err)
	}
	if _, err := s.Next(); !errors.Is(err, no) {
		t.Errorf("then %v, want it again", err)
	}
}

// Each part is what encoding/json makes of the value with one element, all
// elements come, and what is not taken apart is the same as without Explode.
func FuzzExplode(f *testing.F) {
	f.Add([]byte(`{"a":1,"d":{"f":[{"i":1},{"i":2}],"z":3},"b":2}`), uint16(1))
	f.Add([]byte(`{"d":{"f":[1,2]},"d":{"f":[3],"f":[4,"\u0066]"]}} {"d":{"f":[`+strings.Repeat("7,", 9000)+`8]}}`), uint16(4096))
	f.Add([]byte(`{"x":"`+strings.Repeat("long ", 30<<10)+`","d":{"f":["`+strings.Repeat("long ", 9000)+`","y"]}}`), uint16(9999))
	f.Add([]byte("[{\"d\" : {\"f\":[\n1,2 ]}}\n,{\"d\":{\"f\":[}}]"), uint16(3))
	f.Fuzz(func(t *testing.T, in []byte, step uint16) {
		plain, _ := records(t, framing.Framing{}, in, 1+int(step), framing.Limits{})
		parts, _ := records(t, framing.Framing{Explode: "d.f"}, in, 1+int(step), framing.Limits{})
		for _, value := range plain {
			var whole struct {
				D struct {
					F []json.RawMessage `json:"f"`
				} `json:"d"`
			}
			// encoding/json folds the case of keys, and merges equal ones.
			if err := json.Unmarshal([]byte(value), &whole); err != nil || strings.ContainsAny(value, `DF\`) ||
				strings.Count(value, `"d"`) > 1 || strings.Count(value, `"f"`) > 1 {
				return
			}
			n := len(whole.D.F)
			if len(parts) > 0 && parts[0] == value { // one element, none, or too many
				if around := len(value) - len(bytes.Join(asBytes(whole.D.F), []byte(","))); n > 1 && n*(around+2) <= 8*len(value) {
					t.Fatalf("%.200q stays in one piece", value)
				}
				parts = parts[1:]
				continue
			}
			if n < 2 || len(parts) < n {
				t.Fatalf("%d parts are left for %d elements of %.200q", len(parts), n, value)
			}
			for i, part := range parts[:n] {
				if err := json.Unmarshal([]byte(part), &whole); err != nil {
					t.Fatalf("part %.200q: %v", part, err)
				}
				if len(whole.D.F) != 1 || len(part) > len(value) {
					t.Fatalf("part %d of %.200q is %.200q", i, value, part)
				}
				if !strings.Contains(value, string(whole.D.F[0])) {
					t.Fatalf("part %d of %.200q has an element of its own: %.200q", i, value, part)
				}
			}
			parts = parts[n:]
		}
		if len(parts) != 0 {
			t.Fatalf("%d parts too many", len(parts))
		}
	})
}

func asBytes(all []json.RawMessage) [][]byte {
	out := make([][]byte, len(all))
	for i, v := range all {
		out[i] = v
	}
	return out
}
