package framing_test

import (
	"bytes"
	"encoding/csv"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/penstock/penstock/services/internal/framing"
)

var rows = framing.Framing{Kind: framing.CSV}

// covers: F-18 (cells in quotes, a broken one costs its line), F-20 (audit rows span lines)
func TestRows(t *testing.T) {
	const (
		quote = "!framing.bad_quote "
		large = "!framing.record_too_large "
	)
	const limit = 200
	x := strings.Repeat("x", limit)
	comma := framing.Framing{Kind: framing.CSV, Comma: ','}
	first := framing.Framing{Kind: framing.CSV, Header: framing.FirstLine}
	tests := []struct {
		name string
		f    framing.Framing
		in   string
		want []string
	}{
		{"plain", rows, "a,b\r\nc,d\n\n\r\ne", []string{"a,b", "c,d", "e"}},
		{"nothing", rows, "\n\r\n", nil},
		{"quotes", rows, `"a","b"` + "\n" + `"c", "d"` + "\n", []string{`"a","b"`, `"c", "d"`}},
		{"line feeds in a cell", rows, "\"a\",\"b\nc\r\n\nd\",e\r\n\"f\"\n", []string{"\"a\",\"b\nc\r\n\nd\",e", `"f"`}},
		{"line feeds in several cells", rows, "1,\"\n\",\"\n\"\n2,x\n", []string{"1,\"\n\",\"\n\"", "2,x"}},
		{"doubled quotes over lines", rows, "\"a \"\"b\n\"\"c\"\" d\"\"\"\ne\n", []string{"\"a \"\"b\n\"\"c\"\" d\"\"\"", "e"}},
		{"space before and behind a cell over lines", rows, "a, \"b\nc\" ,d\ne\n", []string{"a, \"b\nc\" ,d", "e"}},
		{"cell over lines at the end", rows, "a,\"b\nc\"", []string{"a,\"b\nc\""}},
		{"row over lines without a line feed at the end", rows, "a,\"b\nc\",d", []string{"a,\"b\nc\",d"}},
		{"quote within a cell without quotes", rows, `5" disk,b` + "\n" + `c,6" disk` + "\n", []string{`5" disk,b`, `c,6" disk`}},
		{"another delimiter does not begin a cell", comma, "a;\"b\nc\n", []string{"a;\"b", "c"}},
		{"any delimiter", rows, "a;\"b\nc\"\td|\"e\nf\"\n", []string{"a;\"b\nc\"\td|\"e\nf\""}},
		{"quotes in a cell, an even number", rows, `"a "b" c"` + "\n1\n", []string{`"a "b" c"`, "1"}},
		{"quote in a cell", rows, `"a " c","b"` + "\n1\n", []string{`"a " c","b"`, "1"}},
		{"quote not closed", rows, `"a","b` + "\n" + `"c","d"` + "\n" + `"e"` + "\n", []string{quote + `"a","b`, `"c","d"`, `"e"`}},
		{"quote not closed, nothing quoted behind it", rows, "a,\"b\nc,d\ne,f", []string{quote + "a,\"b", "c,d", "e,f"}},
		{"quote not closed on the last line", rows, "a\nb,\"c", []string{"a", quote + `b,"c`}},
		{"quote not closed and one too many", rows, `"a"x,"b` + "\n1\n", []string{quote + `"a"x,"b`, "1"}},
		{"quote not closed for longer than a row may be", rows, "a,\"b\n" + x[:limit/2] + "\n" + x[:limit/2] + "\n\"c\"\n", []string{quote + `a,"b`, x[:limit/2], x[:limit/2], `"c"`}},
		{"every line is broken", rows, strings.Repeat("\"a\n", 4), []string{quote + `"a`, quote + `"a`, quote + `"a`, quote + `"a`}},
		{"row as long as allowed", rows, "\"" + x[:limit-4] + "\n\"\nb\n", []string{"\"" + x[:limit-4] + "\n\"", "b"}},
		{"row longer than allowed", rows, "\"" + x[:limit-2] + "\n\"\nb\n", []string{quote + "\"" + x[:limit-2], quote + `"`, "b"}},
		{"line longer than allowed", rows, "\"" + x + "\n\"b\"\n", []string{large + "\"" + x, `"b"`}},
		{"byte order mark", rows, "\ufeff\"a\nb\"\nc", []string{"\"a\nb\"", "c"}},
		{"header", first, "x,y\n\"a\nb\",1\n", []string{"\"a\nb\",1"}},
	}
	readers := map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r },
		"bytes": iotest.OneByteReader,
		"last":  iotest.DataErrReader,
	}
	for _, tt := range tests {
		for how, reader := range readers {
			t.Run(tt.name+"/"+how, func(t *testing.T) {
				pieces, err := split(t, tt.f, reader(strings.NewReader(tt.in)), framing.Limits{Record: limit})
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

// A forgotten quote holds back no more than a megabyte, and costs one line of a
// large file.
func TestForgottenQuoteIsBounded(t *testing.T) {
	const n = 100_000
	in := "a,\"b\n" + strings.Repeat("0123456789,0123456789,0123456789\n", n)
	largest := 0
	pieces, err := split(t, rows, strings.NewReader(in), framing.Limits{Grow: func(size int) error {
		largest = max(largest, size)
		return nil
	}})
	if err != io.EOF || len(pieces) != n+1 || pieces[0].bad != framing.ErrQuote.Code || pieces[n].bad != "" {
		t.Fatalf("%d pieces, %v, %v", len(pieces), pieces[0], err)
	}
	if largest > 4<<20 {
		t.Errorf("the buffer grew to %d bytes", largest)
	}
}

// Every byte of the input is in a record, in a bad span, or separates lines; reads
// of any size give the same; and what is valid for encoding/csv is cut alike.
func FuzzRows(f *testing.F) {
	var big bytes.Buffer
	for i := range 4000 {
		big.WriteString(`"2026-01-05 17:48:41","host ""` + strings.Repeat("z", i%97) + "\"\"\",\"a\nb\"\n")
	}
	f.Add(big.Bytes(), uint16(4096), byte(0)) // larger than the buffer
	f.Add([]byte("a,\"b\nc\"\r\n\"d\n\"e\"\n\n\"f"), uint16(1), byte(','))
	f.Add([]byte("\ufeff\"a\" , \"b \"\" \n\"x\";\"\n5\" disk\t\"a\"b\n"), uint16(3), byte('\t'))
	f.Add([]byte("x\n\"\"\"\n\"\",\"\n\"\r\n\r\""), uint16(2), byte(','))
	f.Fuzz(func(t *testing.T, in []byte, step uint16, comma byte) {
		if bytes.IndexByte([]byte("\x00,;\t|"), comma) < 0 {
			comma = ','
		}
		fr := framing.Framing{Kind: framing.CSV, Comma: comma}
		lim := framing.Limits{Record: 500, Keep: 100}
		whole, err := split(t, fr, bytes.NewReader(in), lim)
		if err != io.EOF {
			t.Fatalf("ended with %v", err)
		}
		check(t, string(in), whole)
		at := int64(len(in)) - int64(len(bytes.TrimPrefix(in, []byte("\ufeff"))))
		for _, p := range append(whole, piece{off: int64(len(in))}) {
			if between := in[at:p.off]; len(bytes.Trim(between, "\r\n")) > 0 {
				t.Fatalf("%q stands between records", between)
			}
			at = p.off + p.length
		}
		parts, err := split(t, fr, chunks{bytes.NewReader(in), 1 + int(step)}, lim)
		if err != io.EOF || !slices.Equal(whole, parts) {
			t.Fatalf("%q\nin one read: %v\nin reads of %d: %v, %v", in, whole, 1+step, parts, err)
		}
		compareRows(t, fr, in)
	})
}

// compareRows with encoding/csv where the input is valid for it.
func compareRows(t *testing.T, f framing.Framing, in []byte) {
	t.Helper()
	if f.Comma == 0 || bytes.Count(in, []byte("\r")) != bytes.Count(in, []byte("\r\n")) {
		return // encoding/csv drops a carriage return at the end of its input
	}
	read := func(in []byte) ([][]string, error) {
		r := csv.NewReader(bytes.NewReader(in))
		r.Comma, r.FieldsPerRecord = rune(f.Comma), -1
		return r.ReadAll()
	}
	in = bytes.TrimPrefix(in, []byte("\ufeff"))
	want, err := read(in)
	if err != nil {
		return
	}
	got, err := split(t, f, bytes.NewReader(in), framing.Limits{})
	if err != io.EOF || len(got) != len(want) {
		t.Fatalf("%q: got %d rows, %v, want %d: %v", in, len(got), err, len(want), got)
	}
	for i := range got {
		row, err := read([]byte(got[i].rec))
		if err != nil || len(row) != 1 || !reflect.DeepEqual(row[0], want[i]) {
			t.Fatalf("%q: row %d is %v, want %q", in, i, got[i], want[i])
		}
	}
}

func BenchmarkRows(b *testing.B) {
	line := `"2026-01-05 17:48:41","host-17","host-17,Site A,Net A","192.0.2.100","203.0.113.33","Blocked","1 (A)","NOERROR","www.example.net.","Chat,Photo Sharing","Roaming Computers","Roaming Computers,Sites,Networks","Chat"` + "\n"
	in := strings.Repeat(line, 10_000)
	s := framing.New(rows, nil, framing.Limits{})
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		s.Reset(rows, strings.NewReader(in), framing.Limits{})
		n := 0
		for _, err := s.Next(); err == nil; _, err = s.Next() {
			n++
		}
		if n != 10_000 {
			b.Fatal(n)
		}
	}
}
