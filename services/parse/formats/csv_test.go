package formats

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/penstock/penstock/services/internal/framing"
)

// What encoding/csv reads, and how many columns there are.
func TestCSVDelimiters(t *testing.T) {
	tests := []struct{ name, header, rec, want string }{
		{"comma", "a,b", "1,2", `{"a":"1","b":"2"}`},
		{"semicolon", "a;b", "1;2,3", `{"a":"1","b":"2,3"}`},
		{"tab", "a\tb", "1\t2;3", `{"a":"1","b":"2;3"}`},
		{"bar", "a|b", "1|2", `{"a":"1","b":"2"}`},
		{"in quotes it counts for nothing", `"a,b,c";d`, "1;2", `{"a,b,c":"1","d":"2"}`},
		{"one column", "a", "1", `{"a":"1"}`},
		{"space around a quoted cell", "a,b", ` "1" , 2`, `{"a":"1","b":" 2"}`},
		{"carriage return in a cell", "a,b", "\"1\r\n2\",3", `{"a":"1\r\n2","b":"3"}`},
	}
	for _, tt := range tests {
		dec := open(t, "csv", CSVConfig{Fields: defaultFields()}, Deps{})
		if err := begin(dec, "", []byte(tt.header)); err != nil {
			t.Fatal(err)
		}
		var d Doc
		if err := dec.Decode([]byte(tt.rec), &d); err != nil || string(d.Body) != tt.want {
			t.Errorf("%s: %s, %v, want %s", tt.name, d.Body, err, tt.want)
		}
	}
	// Configured columns: each row tells by how many cells it has.
	dec := open(t, "csv", CSVConfig{Columns: []string{"a", "b"}, Fields: defaultFields()}, Deps{})
	for _, tt := range []struct{ rec, want string }{
		{"1,2", `{"a":"1","b":"2"}`}, {"1;2,3,4", `{"a":"1","b":"2,3,4"}`}, {`"1,2"|3`, `{"a":"1,2","b":"3"}`}, {"1\t2", `{"a":"1","b":"2"}`},
	} {
		var d Doc
		if err := begin(dec, "", nil); err != nil {
			t.Fatal(err)
		}
		if err := dec.Decode([]byte(tt.rec), &d); err != nil || string(d.Body) != tt.want {
			t.Errorf("%s: %s, %v, want %s", tt.rec, d.Body, err, tt.want)
		}
	}
}

// A field may have several meanings, also where its cell has doubled quotes.
func TestCSVFields(t *testing.T) {
	c := CSVConfig{Fields: FieldsConfig{IDField: "a", AccountField: "a", RegionField: "b", EventTypeField: "a", TimeUnit: RFC3339, EventType: "x"}}
	dec := open(t, "csv", c, Deps{})
	if err := begin(dec, "", []byte("a,b")); err != nil {
		t.Fatal(err)
	}
	var d Doc
	if err := dec.Decode([]byte(`"A ""1""","B ""2"""`), &d); err != nil || !d.HasID || d.Account != `A "1"` || d.Region != `B "2"` || d.Type != "x.a__1_" {
		t.Errorf("%s, %v", d.render(), err)
	}
}

func TestFieldsTimes(t *testing.T) {
	tests := []struct {
		unit               TimeUnit
		layout, zone, time string
		want               string
	}{
		{RFC3339, "", "", "2026-01-05T10:00:00.5+01:00", "2026-01-05T09:00:00.5Z"},
		{RFC3339, "", "", "2026-01-05 10:00:00.123456789", "2026-01-05T10:00:00.123456789Z"},
		{RFC3339, "", "Europe/Berlin", "2026-07-05 10:00:00.5", "2026-07-05T08:00:00.5Z"},
		{RFC3339, "", "Europe/Berlin", "2026-07-05 10:00:00Z", "2026-07-05T10:00:00Z"},
		{RFC3339, "", "", "2026-01-05", ""},
		{RFC3339, "", "", "2026-02-30 10:00:00", ""},
		{Milliseconds, "", "", "1767607200500", "2026-01-05T10:00:00.5Z"},
		{Milliseconds, "", "", "2026-01-05 10:00:00", ""},
		{RFC3339, "02/Jan/2006:15:04:05 -0700", "", "05/Jan/2026:10:00:00 +0100", "2026-01-05T09:00:00Z"},
		{RFC3339, "02.01.2006 15:04", "Europe/Berlin", "05.01.2026 10:00", "2026-01-05T09:00:00Z"},
		{RFC3339, "2006", "", "1500", ""},
		{RFC3339, "2006", "", strings.Repeat("x", 100), ""},
	}
	for _, tt := range tests {
		c := FieldsConfig{TimeField: "t", TimeUnit: tt.unit, TimeLayout: tt.layout, TimeZone: tt.zone}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		dec := open(t, "csv", CSVConfig{Columns: []string{"t"}, Fields: c}, Deps{})
		want := "time=" + tt.want + " "
		if tt.want == "" {
			want = `odd=bad_time`
		}
		var d Doc
		if err := begin(dec, "", nil); err != nil {
			t.Fatal(err)
		}
		if err := dec.Decode([]byte(tt.time), &d); err != nil || !strings.Contains(d.render(), want) {
			t.Errorf("%+v: %s, %v", tt, d.render(), err)
		}
	}
}

func TestCSVConfigValidate(t *testing.T) {
	bad := CSVConfig{Delimiter: "::", Columns: make([]string, maxColumns+1), Fields: FieldsConfig{
		TimeUnit: "h", TimeZone: "Nowhere/Land", TimeLayout: "yyyy", EventType: "A b",
	}}
	err := bad.Validate()
	for _, key := range []string{"delimiter", "columns", "time_unit", "time_zone", "time_layout", "event_type"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%v, want %s in it", err, key)
		}
	}
	for _, c := range []CSVConfig{{Fields: defaultFields()}, {Delimiter: "tab", Fields: defaultFields()}, {Delimiter: ":", Fields: defaultFields()}} {
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
	}
	if err := (CSVConfig{Delimiter: `"`, Fields: defaultFields()}).Validate(); err == nil {
		t.Error("a quote may be no delimiter")
	}
}

// A bad file costs memory and time in proportion to its size.
func TestCSVManyCells(t *testing.T) {
	dec := open(t, "csv", CSVConfig{Ragged: true, Fields: defaultFields()}, Deps{})
	if err := begin(dec, "", []byte("a,b")); err != nil {
		t.Fatal(err)
	}
	var d Doc
	if err := dec.Decode([]byte(strings.Repeat(",", maxColumns)), &d); !errors.Is(err, errLine) {
		t.Errorf("a row of too many cells: %v", err)
	}
	if err := dec.Decode([]byte(strings.Repeat(",", maxColumns-1)), &d); err != nil {
		t.Errorf("a row of as many cells as are allowed: %v", err)
	}
	if err := begin(dec, "", []byte(strings.Repeat("a,", maxColumns))); !errors.Is(err, errNoHeader) {
		t.Errorf("a header of too many cells: %v", err)
	}
	huge := "x," + strings.Repeat("y", 1<<20)
	if err := begin(dec, "", []byte("a,b")); err != nil {
		t.Fatal(err)
	}
	if err := dec.Decode([]byte(huge), &d); err != nil || len(d.Body) != len(huge)+len(`{"a":"","b":""}`)-1 {
		t.Errorf("a huge cell: %d bytes, %v", len(d.Body), err)
	}
}

// What encoding/csv reads from an object comes out cell by cell under the names of
// the columns, through the splitter; and no object makes anything but JSON.
func FuzzCSV(f *testing.F) {
	f.Add([]byte("a,b\n1,\"2 \"\"3\"\"\n\"4\n5\",6\r\n"), false)
	f.Add([]byte("a,a,,raw\n1,2,3,\xff\n\"x\n"), true)
	f.Add([]byte("\ufeff\"a \";b\n1;2\n"), true)
	f.Add([]byte("2026-01-05 10:00:00,b\n{\"a\":1}\n"), false)
	f.Fuzz(func(t *testing.T, in []byte, ragged bool) {
		set := Setting{Type: "csv", Options: &CSVConfig{Delimiter: ",", Ragged: ragged, Fields: defaultFields()}}
		_, fr, _ := set.Choose("csv", "", in)
		dec := open(t, "csv", set.Options, Deps{})
		var got []string
		whole := true
		split := framing.New(fr, bytes.NewReader(in), framing.Limits{})
		for {
			rec, err := split.Next()
			var bad *framing.Bad
			if errors.As(err, &bad) {
				whole = false
				continue
			}
			if err != nil {
				break
			}
			var d Doc
			if err = begin(dec, "", split.Header()); err == nil {
				err = dec.Decode(rec, &d)
			}
			if err != nil {
				whole = false
				continue
			}
			if !json.Valid(d.Body) || !utf8.Valid(d.Body) {
				t.Fatalf("%q", d.Body)
			}
			got = append(got, fmt.Sprint(texts(t, d.Body)))
		}
		body := bytes.TrimPrefix(in, []byte("\ufeff"))
		rows, err := csv.NewReader(bytes.NewReader(body)).ReadAll()
		if !whole || err != nil || !utf8.Valid(in) || bytes.IndexByte(in, '\r') >= 0 || len(rows) == 0 || bytes.HasPrefix(body, []byte(" ")) {
			return
		}
		var want []string
		for _, row := range rows[1:] {
			want = append(want, fmt.Sprint(row))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%q became %q, want %q", in, got, want)
		}
	})
}

func BenchmarkCSV(b *testing.B) {
	dec := open(b, "csv", CSVConfig{Fields: FieldsConfig{TimeField: "timestamp", TimeUnit: RFC3339}}, Deps{})
	header := "timestamp,identity,identities,internal_ip,external_ip,action,type,code,domain,categories,identity_type,identity_types,blocked"
	if err := begin(dec, "", []byte(header)); err != nil {
		b.Fatal(err)
	}
	decodeAll(b, dec, umbrellaRows())
}
