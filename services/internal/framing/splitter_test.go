package framing_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/penstock/penstock/services/internal/framing"
)

// piece is what one call of Next gave: a record, or a bad span.
type piece struct {
	rec    string
	off    int64
	bad    string // code
	length int64
	kept   string
}

func (p piece) String() string {
	if p.bad != "" {
		return fmt.Sprintf("%d+%d %s %.60q", p.off, p.length, p.bad, p.kept)
	}
	return fmt.Sprintf("%d %.60q", p.off, p.rec)
}

// split reads r to its end. It fails when the splitter makes no progress.
func split(tb testing.TB, f framing.Framing, r io.Reader, lim framing.Limits) (pieces []piece, end error) {
	tb.Helper()
	s := framing.New(f, r, lim)
	return drain(tb, s)
}

func drain(tb testing.TB, s *framing.Splitter) (pieces []piece, end error) {
	tb.Helper()
	last, still := int64(-1), 0
	for {
		rec, err := s.Next()
		var bad *framing.Bad
		switch {
		case errors.As(err, &bad):
			pieces = append(pieces, piece{
				off: bad.Offset, bad: bad.Kind.Code, length: bad.Length, kept: string(bad.Bytes),
			})
		case err != nil:
			return pieces, err
		default:
			pieces = append(pieces, piece{rec: string(rec), off: s.Offset(), length: int64(len(rec))})
		}
		if still++; s.Offset() > last {
			last, still = s.Offset(), 0
		}
		if still > 3 {
			tb.Fatalf("no progress at offset %d", last)
		}
	}
}

var (
	lines  = framing.Framing{Kind: framing.Lines}
	values = framing.Framing{Kind: framing.Values}
	array  = framing.Framing{Kind: framing.Array}
	trail  = framing.Framing{Kind: framing.Array, Key: "Records"}
	auto   = framing.Framing{}
)

// covers: F-0 (limits, a bad record never fails its object), F-9.
func TestSplit(t *testing.T) {
	const (
		syntax = "!framing.bad_json "
		large  = "!framing.record_too_large "
		cut    = "!framing.truncated "
		none   = "!framing.no_array "
	)
	x, limit := strings.Repeat("x", 300), 200
	tests := []struct {
		name string
		f    framing.Framing
		in   string
		want []string // records; a bad span as its code and bytes
	}{
		{"lines", lines, "a,b\r\nc\n\n\r\nd", []string{"a,b", "c", "d"}},
		{"byte order mark before lines", lines, "\ufeffa\nb\n", []string{"a", "b"}},
		{"no lines", lines, "", nil},
		{"long line", lines, "a\n" + x + "\nb\n" + x[:limit] + "\n", []string{"a", large + x[:limit+1], "b", x[:limit]}},
		{"long last line", lines, "a\n" + x, []string{"a", large + x[:limit+1]}},

		{"NDJSON", values, `{"a":1}` + "\n" + `{"a":2}` + "\r\n\n", []string{`{"a":1}`, `{"a":2}`}},
		{"concatenated values", values, `{"a":1}{"a":2}[3]"x"4 5null`, []string{`{"a":1}`, `{"a":2}`, `[3]`, `"x"`, `4`, `5`, `null`}},
		{"number at the end", values, `""1`, []string{`""`, `1`}},
		{"number cut at the end", values, `1 -`, []string{`1`, cut + `-`}},
		{"pretty-printed values", values, "{\n  \"a\": [\n    1\n  ]\n}\n{\n  \"a\": {}\n}\n", []string{"{\n  \"a\": [\n    1\n  ]\n}", "{\n  \"a\": {}\n}"}},
		{"values after commas and record separators", values, "\x1e{\"a\":1}\n,{\"a\":2}", []string{`{"a":1}`, `{"a":2}`}},
		{"broken value on a line", values, `{"a":1}` + "\n" + `{"a":oops` + "\n" + `{"a":3}` + "\n", []string{`{"a":1}`, syntax + `{"a":oops`, `{"a":3}`}},
		{"line cut in a string", values, `{"a":"one"}` + "\n" + `{"a":"tw` + "\n" + `{"a":"three"}` + "\n", []string{`{"a":"one"}`, syntax + `{"a":"tw`, `{"a":"three"}`}},
		{"line without its last bracket", values, `{"a":{"b":1}` + "\n" + `{"a":2}`, []string{syntax + `{"a":{"b":1}`, `{"a":2}`}},
		{"broken pretty-printed value", values, "{\n  \"a\": [1,\n  \"b\": 2\n}\n{\n  \"a\": 3\n}\n", []string{syntax + "{\n  \"a\": [1,\n  \"b\": 2\n}", "{\n  \"a\": 3\n}"}},
		{"bad token between concatenated values", values, `{"a":1}{"a":x,"b":[{}]}{"a":3}`, []string{`{"a":1}`, syntax + `{"a":x,"b":[{}]}`, `{"a":3}`}},
		{"text between values", values, `{"a":1} and {"b":2}` + "\n" + `{"a":3}`, []string{`{"a":1}`, syntax + `and {"b":2}`, `{"a":3}`}},
		{"text is one bad span", values, "May  1 host app: hello\nMay  2 host app: bye\n", []string{syntax + "May  1 host app: hello\nMay  2 host app: bye"}},
		{"value cut at the end", values, `{"a":1}` + "\n" + `{"a":`, []string{`{"a":1}`, cut + `{"a":`}},

		{"array", array, ` [ {"a":1} , 2,"x" ,[] ] `, []string{`{"a":1}`, `2`, `"x"`, `[]`}},
		{"empty array", array, `[]`, nil},
		{"array under a key", trail, `{"x":{"Records":[0]},"Records":[{"a":1},{"a":2}],"y":[{}]}`, []string{`{"a":1}`, `{"a":2}`}},
		{"null array", trail, `{"Records":null}`, nil},
		{"two objects no comma", trail, `{"Records":[{"a":1}]}{"Records":[{"a":2}]}`, []string{`{"a":1}`, `{"a":2}`}},
		{"top-level array instead", trail, `[{"a":1}]`, []string{`{"a":1}`}},
		{"no array", trail, ` {"a":{"Records":[1]}} `, []string{none}},
		{"no array behind broken keys", trail, `{"a":x,"Records":1}`, []string{syntax + `x`, none}},
		{"broken up to the end", trail, `{"Records":[{"a":1},{"a":"x"y"}]}`, []string{`{"a":1}`, syntax + `{"a":"x"y"}]}`}},
		{"array that follows an object without one", trail, `{"b":1},{"a":1},{"a":2}]}`, []string{none, syntax + `,{"a":1}`, `{"a":2}`}},
		{"array cut in a record", trail, `{"Records":[{"a":1},{"a"`, []string{`{"a":1}`, cut + `{"a"`}},
		{"array cut between records", trail, `{"Records":[{"a":1},`, []string{`{"a":1}`, cut}},
		{"object cut behind the array", trail, `{"Records":[{"a":1}]`, []string{`{"a":1}`, cut}},
		{"bad token", trail, `{"Records":[{"a":1},{"a":nope,"b":[{"a":7},{"a":8}]},{"a":3}]}`, []string{`{"a":1}`, syntax + `{"a":nope,"b":[{"a":7},{"a":8}]}`, `{"a":3}`}},
		{"bad token in the first record", trail, `{"Records":[{"a":01,"b":"},{"},{"a":3}]}`, []string{syntax + `{"a":01,"b":"},{"}`, `{"a":3}`}},
		{"bad token in the last record", trail, `{"Records":[{"a":1},{"a":+1}]}`, []string{`{"a":1}`, syntax + `{"a":+1}`}},
		{"trailing comma", trail, `{"Records":[{"a":1,},{"a":2}]}`, []string{syntax + `{"a":1,}`, `{"a":2}`}},
		{"missing comma", trail, `{"Records":[{"a":1 "b":2},{"a":2}]}`, []string{syntax + `{"a":1 "b":2}`, `{"a":2}`}},
		{"missing comma between records", trail, `{"Records":[{"a":1}{"a":2}]}`, []string{`{"a":1}`, `{"a":2}`}},
		{"missing bracket", trail, `{"Records":[{"a":{"b":1},{"a":2},{"a":3}]}`, []string{syntax + `{"a":{"b":1}`, `{"a":2}`, `{"a":3}`}},
		{"bracket too many", trail, `{"Records":[{"a":1}},{"a":2}]}`, []string{`{"a":1}`, syntax + `}`, `{"a":2}`}},
		{"wrong bracket", trail, `{"Records":[{"a":1],{"a":2}]}`, []string{syntax + `{"a":1]`, `{"a":2}`}},
		{"record cut in a string", trail, `{"Records":[{"a":"one"},{"a":"tw,{"a":"three"}]}`, []string{`{"a":"one"}`, syntax + `{"a":"tw`, `{"a":"three"}`}},
		{"record cut in a key", trail, `{"Records":[{"a":"one"},{"a":1,"b,{"a":"three"}]}`, []string{`{"a":"one"}`, syntax + `{"a":1,"b`, `{"a":"three"}`}},
		{"quote inside a string", trail, `{"Records":[{"a":"o"ne"},{"a":"two"}]}`, []string{syntax + `{"a":"o"ne"}`, `{"a":"two"}`}},
		{"control characters in a string", trail, `{"Records":[{"a":"` + "\t\x00x\ty\tz\tv\tw" + `"},{"b":2}]}`, []string{syntax + `{"a":"` + "\t\x00x\ty\tz\tv\tw" + `"}`, `{"b":2}`}},
		{"line feed in a string", values, `{"a":"x` + "\n" + `y"}{"b":2}`, []string{syntax + `{"a":"x` + "\n" + `y"}`, `{"b":2}`}},
		{"garbage between records", trail, `{"Records":[{"a":1},@@@@,{"a":2}]}`, []string{`{"a":1}`, syntax + `@@@@`, `{"a":2}`}},
		{"other first keys behind a broken record without one", trail, `{"Records":[{x},{"a":1},{"b":2}]}`, []string{syntax + `{x}`, `{"a":1}`, `{"b":2}`}},
		{"broken key before the array", trail, `{"a":"x" "b":tru,"Records":[{"a":1}]}`, []string{syntax + `tru`, `{"a":1}`}},
		{"text before the object", trail, `HTTP/1.1 200 OK`, []string{syntax + `HTTP/1.1 200 OK`}},
		{"text behind the object", trail, `{"Records":[{"a":1}]} trailing`, []string{`{"a":1}`, syntax + `trailing`}},
		{"invalid UTF-8 passes", trail, "{\"Records\":[{\"a\":\"\xff\xfe\"}]}", []string{"{\"a\":\"\xff\xfe\"}"}},
		{"duplicate keys pass", trail, `{"Records":[{"a":1,"a":2}]}`, []string{`{"a":1,"a":2}`}},
		{"brackets and quotes in strings", trail, `{"Records":[{"a":"}],[{\"\\"},{"a":"\\\\\""}]}`, []string{`{"a":"}],[{\"\\"}`, `{"a":"\\\\\""}`}},
		{"large record", trail, `{"Records":[{"a":1},{"a":"` + x + `"},{"a":3}]}`, []string{`{"a":1}`, large + `{"a":"` + x[:limit-5], `{"a":3}`}},
		{"records at the limit", trail, `[{"a":"` + x[:limit-8] + `"},{"a":"` + x[:limit-7] + `"},{"a":3}]`, []string{`{"a":"` + x[:limit-8] + `"}`, large + `{"a":"` + x[:limit-7] + `"}`, `{"a":3}`}},
		{"bad token and a bracket too many", trail, `[{"a":01}},{"a":2}]`, []string{syntax + `{"a":01}}`, `{"a":2}`}},
		{"nested objects that begin like records", trail, `[{"a":1},{"a":"x"y",b:{"a":2},c:[{"a":3}]},{"a":4}]`, []string{`{"a":1}`, syntax + `{"a":"x"y",b:{"a":2},c:[{"a":3}]}`, `{"a":4}`}},
		{"large broken record", trail, `{"Records":[{"a":1},{"a":"` + x + `"]},{"a":3}]}`, []string{`{"a":1}`, large + `{"a":"` + x[:limit-5], `{"a":3}`}},
		{"large record cut", trail, `{"Records":[{"a":"` + x, []string{large + `{"a":"` + x[:limit-5], cut}},

		{"auto: array", auto, ` [{"a":1}]`, []string{`{"a":1}`}},
		{"auto: records", auto, `{"x":"y","Records":[{"a":1}]}`, []string{`{"a":1}`}},
		{"auto: another array first", auto, `{"x":[],"Records":[]}`, []string{`{"x":[],"Records":[]}`}},
		{"auto: lines", auto, `{"a":1}` + "\n" + `{"a":2}`, []string{`{"a":1}`, `{"a":2}`}},
		{"auto: nothing", auto, " \n", nil},
	}
	readers := map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r },
		"bytes": iotest.OneByteReader,
		"last":  iotest.DataErrReader,
	}
	for _, tt := range tests {
		for how, reader := range readers {
			t.Run(tt.name+"/"+how, func(t *testing.T) {
				pieces, err := split(t, tt.f, reader(strings.NewReader(tt.in)), framing.Limits{Record: int64(limit)})
				if err != io.EOF {
					t.Fatalf("ended with %v", err)
				}
				var got []string
				for _, p := range pieces {
					if p.bad == "" {
						got = append(got, p.rec)
					} else {
						got = append(got, "!"+p.bad+" "+p.kept)
					}
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("got  %q\nwant %q", got, tt.want)
				}
				check(t, tt.in, pieces)
			})
		}
	}
}

// check that records and spans are disjoint, in order, inside the input, and
// what the input holds there.
func check(tb testing.TB, in string, pieces []piece) {
	tb.Helper()
	end := int64(0)
	for _, p := range pieces {
		if p.off < end || p.length < 0 || p.off+p.length > int64(len(in)) {
			tb.Fatalf("piece %v begins before %d or ends behind %d", p, end, len(in))
		}
		end = p.off + p.length
		span := in[p.off:end]
		if p.bad == "" && p.rec != span {
			tb.Fatalf("record at %d is %.80q, the input holds %.80q", p.off, p.rec, span)
		}
		if p.bad != "" && !strings.HasPrefix(span, p.kept) {
			tb.Fatalf("span at %d is %.80q, the input holds %.80q", p.off, p.kept, span)
		}
		if p.length == 0 && p.bad != framing.ErrTruncated.Code {
			tb.Fatalf("piece %v is empty", p)
		}
	}
}

func TestTooDeep(t *testing.T) {
	in := `[{"a":1},{"a":` + strings.Repeat(`{"a":`, 600) + `1` + strings.Repeat("}", 601) + `,{"a":2}]`
	pieces, err := split(t, array, strings.NewReader(in), framing.Limits{})
	if err != io.EOF || len(pieces) != 3 || pieces[1].bad != framing.ErrTooDeep.Code || pieces[2].rec != `{"a":2}` {
		t.Fatalf("got %v, %v", pieces, err)
	}
	// The deepest allowed nesting is no trouble.
	in = strings.Repeat("[", 513) + strings.Repeat("]", 513) // one is the array of the records
	if pieces, err = split(t, array, strings.NewReader(in), framing.Limits{}); err != io.EOF || len(pieces) != 1 || pieces[0].bad != "" {
		t.Fatalf("got %v, %v", pieces, err)
	}
}

func TestKeys(t *testing.T) {
	in := `{"awsAccountId":"1","digestStartTime":"x","logFiles":[{"s3Bucket":"b"}]}`
	s := framing.New(trail, strings.NewReader(in), framing.Limits{})
	_, err := s.Next()
	if !errors.Is(err, framing.ErrNoArray) {
		t.Fatalf("got %v, want no array", err)
	}
	if got := s.Keys(); !slices.Equal(got, []string{"awsAccountId", "digestStartTime", "logFiles"}) {
		t.Fatalf("keys are %q", got)
	}
	if _, err := s.Next(); err != io.EOF || s.Offset() != int64(len(in)) {
		t.Fatalf("ended with %v at %d, want EOF at %d", err, s.Offset(), len(in))
	}
}

// The reader's error comes after all that was whole, and after the part of a
// record that it cut.
func TestReaderFails(t *testing.T) {
	lost := errors.New("connection lost")
	for _, f := range []framing.Framing{trail, values, lines, auto} {
		in := `{"Records":[{"a":1},{"a":2},{"a"`
		want := []string{`{"a":1}`, `{"a":2}`}
		if f.Kind == framing.Values || f.Kind == framing.Lines {
			in, want = "{\"a\":1}\n{\"a\":2}\n12", []string{`{"a":1}`, `{"a":2}`}
		}
		pieces, err := split(t, f, io.MultiReader(strings.NewReader(in), iotest.ErrReader(lost)), framing.Limits{})
		if !errors.Is(err, lost) || len(pieces) != 3 || pieces[0].rec != want[0] || pieces[1].rec != want[1] || pieces[2].bad != framing.ErrTruncated.Code {
			t.Errorf("%v: got %v, %v", f.Kind, pieces, err)
		}
	}
}

func TestNoProgressReader(t *testing.T) {
	if _, err := split(t, values, stuck{}, framing.Limits{}); !errors.Is(err, io.ErrNoProgress) {
		t.Fatalf("got %v", err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// A record of any size costs no more memory than the limit, and every growth of
// the buffer is asked for.
func TestMemoryIsBounded(t *testing.T) {
	const limit = 1 << 20
	filler := strings.NewReader(strings.Repeat("x", 20<<20))
	in := io.MultiReader(strings.NewReader(`{"Records":[{"a":1},{"a":"`), filler, strings.NewReader(`"},{"a":3},`),
		strings.NewReader(`{"a":"`+strings.Repeat("y", limit-8)+`"}]}`))
	largest := 0
	pieces, err := split(t, trail, in, framing.Limits{Record: limit, Keep: 100, Grow: func(n int) error {
		largest = max(largest, n)
		return nil
	}})
	if err != io.EOF || len(pieces) != 4 {
		t.Fatalf("got %d pieces, %v", len(pieces), err)
	}
	if p := pieces[1]; p.bad != framing.ErrTooLarge.Code || p.length != 20<<20+8 || len(p.kept) != 100 || p.off != 20 {
		t.Errorf("large record: %v", p)
	}
	if pieces[2].rec != `{"a":3}` || pieces[2].off != 20+20<<20+8+1 {
		t.Errorf("record behind it: %v", pieces[2])
	}
	if len(pieces[3].rec) != limit {
		t.Errorf("the largest record allowed has %d bytes", len(pieces[3].rec))
	}
	if largest > limit+256<<10 {
		t.Errorf("the buffer grew to %d bytes", largest)
	}

	refused := errors.New("no room")
	_, err = split(t, trail, strings.NewReader(`[{"a":"`+strings.Repeat("y", limit)+`"}]`),
		framing.Limits{Grow: func(int) error { return refused }})
	if !errors.Is(err, refused) {
		t.Errorf("refused growth gives %v", err)
	}
}

// Broken input of any size is stepped over in bounded memory as well.
func TestLongBadSpan(t *testing.T) {
	junk := strings.Repeat("no json here. ", 1<<20)
	in := `[{"a":1},` + junk + `,{"a":2}]`
	largest := 0
	pieces, err := split(t, array, iotest.HalfReader(strings.NewReader(in)), framing.Limits{Record: 1 << 20, Keep: 1000, Grow: func(n int) error {
		largest = max(largest, n)
		return nil
	}})
	if err != io.EOF || len(pieces) != 3 || pieces[2].rec != `{"a":2}` {
		t.Fatalf("got %v, %v", pieces, err)
	}
	if p := pieces[1]; p.length != int64(len(junk))-1 || p.kept != junk[:1000] {
		t.Errorf("span: %v, want length %d", p, len(junk)-1)
	}
	if largest != 0 {
		t.Errorf("the buffer grew to %d bytes", largest)
	}
}

func TestReset(t *testing.T) {
	s := framing.New(trail, strings.NewReader(`{"Records":[{"a":1},{"a`), framing.Limits{})
	if pieces, err := drain(t, s); err != io.EOF || len(pieces) != 2 {
		t.Fatalf("got %v, %v", pieces, err)
	}
	s.Reset(lines, strings.NewReader("x\ny"), framing.Limits{})
	pieces, err := drain(t, s)
	if err != io.EOF || len(pieces) != 2 || pieces[0].rec != "x" || pieces[1].off != 2 || len(s.Keys()) != 0 {
		t.Fatalf("got %v, %v, keys %q", pieces, err, s.Keys())
	}
}

// A record that stands over the end of the buffer comes out whole, and one
// record's bytes do not depend on what is read for the next.
func TestRecordsOverBuffers(t *testing.T) {
	var in bytes.Buffer
	var want []string
	in.WriteString(`{"Records":[`)
	for i := range 900 {
		rec := `{"n":` + strconv.Itoa(i) + `,"s":"` + strings.Repeat("\\\"", i) + `"}`
		want = append(want, rec)
		if i > 0 {
			in.WriteString(",\n")
		}
		in.WriteString(rec)
	}
	in.WriteString(`]}`)
	pieces, err := split(t, trail, iotest.HalfReader(&in), framing.Limits{})
	if err != io.EOF || len(pieces) != len(want) {
		t.Fatalf("got %d pieces, %v", len(pieces), err)
	}
	for i, p := range pieces {
		if p.rec != want[i] {
			t.Fatalf("record %d: got %.80q, want %.80q", i, p.rec, want[i])
		}
	}
}

// chunks gives at most n bytes a read.
type chunks struct {
	r io.Reader
	n int
}

// looking is a Filler that gives in in chunks and sees to it that what it gave
// before is still there.
type looking struct {
	tb    testing.TB
	in    []byte
	given int
	n     int
}

func (l *looking) Fill(buf []byte, end int) (int, error) {
	before := l.in[max(0, l.given-framing.LookBack):l.given]
	if len(buf)-end < framing.FillRoom || !bytes.HasSuffix(buf[:end], before) {
		l.tb.Fatalf("after %d bytes: a buffer of %d, %d of it used, which does not end with the last %d bytes", l.given, len(buf), end, len(before))
	}
	if l.given == len(l.in) {
		return 0, io.EOF
	}
	n := copy(buf[end:], l.in[l.given:min(len(l.in), l.given+l.n)])
	l.given += n
	return n, nil
}

func (c chunks) Read(p []byte) (int, error) { return c.r.Read(p[:min(len(p), c.n)]) }

// Header lines are no records, and name the columns of those that follow.
// covers: F-11 (map by the #Fields line), F-21 (header line)
func TestHeader(t *testing.T) {
	first := framing.Framing{Kind: framing.Lines, Header: framing.FirstLine}
	directives := framing.Framing{Kind: framing.Lines, Header: framing.Directives}
	long := strings.Repeat("x", framing.MaxHeader+1)
	tests := []struct {
		name string
		f    framing.Framing
		in   string
		want []string // header and record; a bad span as its code
	}{
		{"none", lines, "#a\nb", []string{" #a", " b"}},
		{"first line", first, "\n\na b\n1 2\n#3 4\n", []string{"a b 1 2", "a b #3 4"}},
		{"only a first line", first, "a b\n", nil},
		{"first line too long", first, long + "\n1 2\n", []string{"framing.header_too_large", " 1 2"}},
		{"no directives", directives, "1 2\n", []string{" 1 2"}},
		{"directives", directives, "#Version: 1.0\n#Fields: a b\n1 2\n3 4\n", []string{"#Fields: a b 1 2", "#Fields: a b 3 4"}},
		{"directives again", directives, "#Fields: a\n1\n#Fields: b\n2\n#Date: x\n3", []string{"#Fields: a 1", "#Fields: b 2", "#Fields: b 3"}},
		{"fields too long", directives, "#Fields: a\n1\n#Fields: " + long + "\n2\n", []string{"#Fields: a 1", "framing.header_too_large", " 2"}},
	}
	for _, tt := range tests {
		for _, n := range []int{1, 7, 1 << 20} {
			var got []string
			s := framing.New(tt.f, chunks{strings.NewReader(tt.in), n}, framing.Limits{})
			for {
				rec, err := s.Next()
				var bad *framing.Bad
				if errors.As(err, &bad) {
					got = append(got, bad.Kind.Code)
					continue
				}
				if err != nil {
					break
				}
				got = append(got, string(s.Header())+" "+string(rec))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%s, reads of %d bytes: %.200q, want %q", tt.name, n, got, tt.want)
			}
		}
	}
}

func FuzzSplit(f *testing.F) {
	var big bytes.Buffer
	big.WriteString(`{"x":{"y":[1,2]},"Records":[`)
	for i := range 4000 {
		fmt.Fprintf(&big, `{"eventVersion":"1.%d","s":"%s"},`, i, strings.Repeat("z", i%97))
	}
	big.WriteString(`{"eventVersion":null}]}`)
	for kind := range uint8(4) {
		f.Add(big.Bytes(), kind, uint16(4096)) // larger than the buffer
		f.Add([]byte(`{"Records":[{"a":1},{"a":nope,"b":[{"a":7}]},{"a":"x,{"a":3}]}`), kind, uint16(1))
		f.Add([]byte("{\"a\":1}\n{\"a\":tru\n{\"a\":3}\r\n[1,2]\n\"x\"1 2"), kind, uint16(3))
		f.Add([]byte(`[1,[2,{"a":[]}],"\"]",-1.5e+7,true,null]`), kind, uint16(2))
		f.Add([]byte(`{"a":"b" "Records":[{"a":{"a":1},{"a":2}]}{"Records":[{"a":"`), kind, uint16(5))
		f.Add([]byte(`[{"a":"`+strings.Repeat("long", 200)+`"},{"a":2}]`), kind, uint16(7))
	}
	f.Fuzz(func(t *testing.T, in []byte, kind uint8, step uint16) {
		fr := framing.Framing{Kind: framing.Kind(kind % 4)}
		if fr.Kind == framing.Array && kind&4 == 0 {
			fr.Key = "Records"
		}
		lim := framing.Limits{Record: 500, Keep: 100}
		whole, err := split(t, fr, bytes.NewReader(in), lim)
		if err != io.EOF {
			t.Fatalf("ended with %v", err)
		}
		check(t, string(in), whole)
		parts, err := split(t, fr, chunks{bytes.NewReader(in), 1 + int(step)}, lim)
		if err != io.EOF || !slices.Equal(whole, parts) {
			t.Fatalf("%q\nin one read: %v\nin reads of %d: %v, %v", in, whole, 1+step, parts, err)
		}
		back := framing.New(framing.Framing{}, nil, framing.Limits{})
		back.ResetTo(fr, &looking{tb: t, in: in, n: 1 + 50*int(step)}, lim)
		if parts, err = drain(t, back); err != io.EOF || !slices.Equal(whole, parts) {
			t.Fatalf("%q\nin one read: %v\nlooking back, in reads of %d: %v, %v", in, whole, 1+50*step, parts, err)
		}
		compare(t, fr, in)
	})
}

// compare with encoding/json where the input is valid for it.
func compare(t *testing.T, f framing.Framing, in []byte) {
	t.Helper()
	var want []json.RawMessage
	var top map[string]json.RawMessage
	switch {
	case f.Kind == framing.Array && f.Key == "":
		if json.Unmarshal(in, &want) != nil {
			return
		}
	case f.Kind == framing.Array:
		// encoding/json keeps the last of equal keys and folds case.
		if json.Unmarshal(in, &top) != nil || bytes.Count(in, []byte(`"Records"`)) != 1 ||
			json.Unmarshal(top["Records"], &want) != nil {
			return
		}
	case f.Kind == framing.Values:
		for d := json.NewDecoder(bytes.NewReader(in)); ; {
			var v json.RawMessage
			err := d.Decode(&v)
			if err == io.EOF {
				break
			}
			if err != nil {
				return
			}
			want = append(want, v)
		}
	default:
		return
	}
	got, err := split(t, f, bytes.NewReader(in), framing.Limits{})
	if err != io.EOF || len(got) != len(want) {
		t.Fatalf("%q: got %d records, %v, want %d: %v", in, len(got), err, len(want), got)
	}
	for i := range got {
		if got[i].bad != "" || got[i].rec != string(want[i]) {
			t.Fatalf("%q: record %d is %v, want %.80q", in, i, got[i], want[i])
		}
	}
}
