package formats

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/penstock/penstock/services/internal/framing"
)

const flowLine = "2 123456789012 eni-0a1b2c3d4e5f60718 192.0.2.10 198.51.100.7 49152 443 6 10 8400 1767600000 1767600058 ACCEPT OK"

func TestVPCSlot(t *testing.T) {
	tests := []struct {
		key  string
		want int64
	}{
		{"AWSLogs/1/123456789012_vpcflowlogs_us-east-1_fl-0a1b_20260105T0805Z_0123abcd.log.gz", 1767600300e9},
		{"123456789012_vpcflowlogs_us-east-1_fl-0a1b_20261305T0805Z_0123abcd.log.gz", 0},
		{"20260105T0805Z_x", 0},
		{"x_20260105T0805", 0},
		{"", 0},
	}
	for _, tt := range tests {
		if got := vpcSlot(tt.key); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.key, got, tt.want)
		}
	}
}

// covers: DEV-19, F-21 (keys, hive prefixes, header, parquet)
func TestChooseVPCFlow(t *testing.T) {
	lines := framing.Framing{Kind: framing.Lines}
	header := framing.Framing{Kind: framing.Lines, Header: framing.FirstLine}
	tests := []struct {
		name, key, head, format string
		framing                 framing.Framing
	}{
		{"by key", "AWSLogs/123456789012/vpcflowlogs/us-east-1/2026/01/05/x.log.gz", vpcDefault + "\n" + flowLine, "vpcflow", header},
		{"by key, hive", "AWSLogs/aws-account-id=123456789012/aws-service=vpcflowlogs/aws-region=r/x.log.gz", vpcDefault, "vpcflow", header},
		{"by key, no header", "AWSLogs/123456789012/vpcflowlogs/us-east-1/x", flowLine, "vpcflow", lines},
		{"by header", "", "srcaddr dstaddr bytes vpc-id ecs-task-id\r\n", "vpcflow", header},
		{"by header with byte order mark", "", "\ufeff" + vpcDefault + "\n", "vpcflow", header},
		{"by columns of a parquet file", "x.parquet", `{"version":null,"account_id":null,"interface_id":null,"srcaddr":null,"dstaddr":null,"srcport":null}`, "vpcflow", values},
		{"rows", "", `{"interface-id":"eni-1","srcaddr":"192.0.2.1","dstaddr":"192.0.2.2","log-status":"OK"}`, "vpcflow", values},
		{"a few words are no header", "", "version start end type\nx", "json", framing.Framing{Kind: framing.Auto}},
		{"a sentence", "", "the action of type end", "json", framing.Framing{Kind: framing.Auto}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			format, f, _ := Choose(Auto, tt.key, []byte(tt.head))
			if format != "vpcflow" && tt.format == "json" {
				return // whoever takes plain text
			}
			if format != tt.format || f != tt.framing {
				t.Errorf("got %s, %+v, want %s, %+v", format, f, tt.format, tt.framing)
			}
		})
	}
}

// covers: DEV-148, F-21
func TestVPCFlowConfig(t *testing.T) {
	for columns, good := range map[string]bool{
		"": true, "srcaddr dstaddr": true, "srcaddr new-field": true,
		"srcaddr, dstaddr": false, "${srcaddr}": false, "foo bar": false, "Srcaddr": false,
	} {
		if err := (VPCFlowConfig{Columns: columns}).Validate(); (err == nil) != good {
			t.Errorf("columns %q: %v", columns, err)
		}
	}
}

// A header that is none refuses the records of the frame, and the next frame is
// read again.
// covers: F-21 (header, lines without one), DEV-20
func TestVPCFlowHeaders(t *testing.T) {
	dec := open(t, "vpcflow", nil, Deps{})
	var d Doc
	for range 2 {
		if err := begin(dec, "", []byte("no header at all!")); err == nil {
			t.Fatal("no error")
		}
		if err := begin(dec, "", []byte("dstaddr srcaddr")); err != nil {
			t.Fatal(err)
		}
		if err := dec.Decode([]byte("192.0.2.1 192.0.2.2"), &d); err != nil || string(d.Body) != `{"dstaddr":"192.0.2.1","srcaddr":"192.0.2.2"}` {
			t.Fatalf("%v, %s", err, d.Body)
		}
		if err := begin(dec, "", nil); err != nil {
			t.Fatal(err)
		}
		if err := dec.Decode([]byte(flowLine), &d); err != nil || d.Account != "123456789012" || d.Type != "cloud.aws.vpc.flow" {
			t.Fatalf("%v, %s, %s", err, d.Type, d.Body)
		}
	}
}

// A huge field is no reason to refuse a line.
func TestVPCFlowHugeField(t *testing.T) {
	dec := openFrame(t, "vpcflow", "version srcaddr dstaddr end")
	var d Doc
	huge := strings.Repeat("x", 1<<20)
	if err := dec.Decode([]byte("2 "+huge+" 192.0.2.1 1767600000"), &d); err != nil {
		t.Fatal(err)
	}
	if got := fieldsOf(t, d.Body); got["srcaddr"] != huge || !d.HasTime {
		t.Error("the field is not whole")
	}
}

// Every field of a line comes back from the document under its name, and a line is
// taken only when it has as many as the header.
func FuzzVPCFlow(f *testing.F) {
	f.Add(vpcDefault, []byte(flowLine))
	f.Add(vpcDefault, []byte("2 unknown eni-1 - - - - - - - 1767600120 1767600179 - NODATA"))
	f.Add("version srcaddr dstaddr end", []byte("5 "+strings.Repeat("long", 40000)+" \xff\"\\ 1767600000"))
	f.Add("srcaddr srcaddr raw end", []byte("a b c d"))
	f.Add(vpcDefault, []byte(`{"version":2,"account_id":"1","sta\u0072t":1767600120,"x":[1,"]"],"y":null,"z":"\ud800"}`))
	f.Fuzz(func(t *testing.T, columns string, rec []byte) {
		dec := open(t, "vpcflow", VPCFlowConfig{KeepRaw: true}, Deps{})
		if err := begin(dec, "", []byte(columns)); err != nil || columns == "" || bytes.ContainsAny(rec, "\n") {
			return
		}
		var d Doc
		if err := dec.Decode(rec, &d); err != nil {
			return
		}
		got := fieldsOf(t, d.Body)
		if got[rawField] != strings.ToValidUTF8(string(rec), "\uFFFD") && utf8.Valid(rec) {
			t.Fatalf("raw is %q", got[rawField])
		}
		if isObject(rec) {
			if !json.Valid(rec) {
				t.Fatalf("took %q", rec)
			}
			return
		}
		if !utf8.Valid(d.Body) || (d.Odd&BadUTF8 == 0) != utf8.Valid(rec) {
			t.Fatalf("odd %s", d.Odd)
		}
		names := newColumns(strings.Split(strings.TrimRight(columns, " \t\r"), " "), vpcField, rawField)
		fields := strings.Split(strings.TrimRight(string(rec), " \r"), " ")
		if len(fields) != len(names) {
			t.Fatalf("%d fields for %d columns: %q", len(fields), len(names), d.Body)
		}
		present := 1
		for i, c := range names {
			want := string([]rune(fields[i]))
			if v, ok := got[c.name]; ok != (want != "-") || ok && v != want {
				t.Fatalf("%s is %q, want %q", c.name, v, want)
			}
			if want != "-" {
				present++
			}
		}
		if len(got) != present {
			t.Fatalf("%d fields, want %d", len(got), present)
		}
	})
}

func BenchmarkVPCFlow(b *testing.B) {
	const lines = 1000
	recs := make([][]byte, lines)
	size := 0
	for i := range recs {
		recs[i] = fmt.Appendf(nil, "2 123456789012 eni-0a1b2c3d4e5f6%04d 192.0.2.%d 198.51.100.%d %d 443 6 %d %d 17676%05d 17676%05d ACCEPT OK",
			i, i%250, i%200, 1024+i, i+1, 840*i, i, i+58)
		size += len(recs[i]) + 1
	}
	dec := openFrame(b, "vpcflow", vpcDefault)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	var d Doc
	for b.Loop() {
		for _, rec := range recs {
			if err := dec.Decode(rec, &d); err != nil || !d.HasTime || d.Odd != 0 || d.Account != "123456789012" {
				b.Fatalf("%v %+v", err, d)
			}
		}
	}
	b.ReportMetric(lines*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
}
