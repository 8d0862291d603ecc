package formats

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/framing"
)

const cloudFrontHeader = "#Fields: date time x-edge-location sc-bytes c-ip cs-method cs(Host) cs-uri-stem sc-status cs(Referer) cs(User-Agent) cs-uri-query cs(Cookie) x-edge-result-type x-edge-request-id x-host-header cs-protocol cs-bytes time-taken"

// covers: DEV-19, DEV-59, F-11, F-12
func TestChooseCloudFront(t *testing.T) {
	lines := framing.Framing{Kind: framing.Lines, Header: framing.Directives}
	tests := []struct {
		name, key, head, format string
		framing                 framing.Framing
	}{
		{"by key", "logs/EMLARXS9EXAMPLE.2026-01-05-20.a1b2c3d4.gz", "", "cloudfront", lines},
		{"by key, v2", "AWSLogs/123456789012/CloudFront/EMLARXS9EXAMPLE.2026-01-05-20.a1b2c3d4.parquet", `{"date":null}`, "cloudfront", values},
		{"by fields", "x", "#Version: 1.0\r\n" + cloudFrontHeader + "\r\n", "cloudfront", lines},
		{"rows", "x", `{"date":"2026-01-05","x-edge-location":"LAX1","x-edge-request-id":"R"}`, "cloudfront", values},
		{"columns of a parquet file", "x.parquet", `{"date":null,"x_edge_location":null,"x_edge_request_id":null}`, "cloudfront", values},
		{"W3C of another server", "x.log", "#Software: Server\n#Fields: date time cs(User-Agent) sc-status\n", "", lines},
		{"one key is not enough", "x", `{"x-edge-location":"LAX1","c-ip":1}`, "json", framing.Framing{Kind: framing.Auto}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			format, f, _ := Choose(Auto, tt.key, []byte(tt.head))
			if tt.format == "" && format != "cloudfront" {
				return
			}
			if format != tt.format || f != tt.framing {
				t.Errorf("got %s, %+v, want %s, %+v", format, f, tt.format, tt.framing)
			}
		})
	}
}

// The id is that of the request, so that legacy, v2 and parquet logs of one request
// are one event.
// covers: F-11, F-12, DEV-21
func TestCloudFrontID(t *testing.T) {
	want := messages.NewID([]byte("cloudfront"), []byte("R1=="))
	var d Doc
	for _, tt := range []struct{ columns, rec string }{
		{"#Fields: date time x-edge-request-id", "2026-01-05\t21:02:31\tR1=="},
		{"#Fields: x-edge-request-id", "R1=="},
		{"", `{"x-edge-request-id":"R1=="}`},
		{"", `{"x_edge_request_id":"R1\u003d="}`},
	} {
		dec := openFrame(t, "cloudfront", tt.columns)
		if err := dec.Decode([]byte(tt.rec), &d); err != nil || !d.HasID || d.ID != want {
			t.Errorf("%s: id %v (%v)", tt.rec, d.ID, err)
		}
	}
}

func TestCloudFrontName(t *testing.T) {
	for in, want := range map[string]string{
		"cs(User-Agent)": "cs(User-Agent)", "cs(user-agent)": "cs(User-Agent)", "cs_user_agent": "cs(User-Agent)",
		"cs_uri_stem": "cs-uri-stem", "timestamp_ms": "timestamp(ms)", "distributionid": "DistributionId", "New_Field": "New_Field",
	} {
		if got := cloudFrontName(in); got != want {
			t.Errorf("%s is %s, want %s", in, got, want)
		}
	}
}

// covers: F-11 (percent-encoding)
func TestAppendUnescaped(t *testing.T) {
	for in, want := range map[string]string{
		"a%20b": "a b", "%2520": "%20", "100%": "100%", "%zz%2": "%zz%2", "%": "%", "%41%4g": "A%4g", "%c3%A9": "é", "": "",
	} {
		if got := string(appendUnescaped(nil, []byte(in))); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

// Every field of a line comes back under its name, decoded once, and as it was
// where that changed it.
func FuzzCloudFront(f *testing.F) {
	f.Add("#Fields: date time x-edge-request-id cs(User-Agent)", []byte("2026-01-05\t21:02:31\tR1\tMozilla/5.0%20(X11)"))
	f.Add("date cs_user_agent encoded raw", []byte("%25\t%ff%\t\xff\t-\t"))
	f.Add("date time", []byte("2026-01-05\t"+strings.Repeat("long%20", 30000)))
	f.Fuzz(func(t *testing.T, columns string, rec []byte) {
		dec := open(t, "cloudfront", CloudFrontConfig{KeepRaw: true, Delimiter: "\t"}, Deps{})
		if err := begin(dec, "", []byte(columns)); err != nil || bytes.ContainsAny(rec, "\n") {
			return
		}
		var d Doc
		if err := dec.Decode(rec, &d); err != nil || isObject(rec) {
			return
		}
		got := fieldsOf(t, d.Body)
		encoded := map[string]string{}
		if text, ok := got[encodedField]; ok {
			encoded = fieldsOf(t, []byte(text))
		}
		if !utf8.Valid(d.Body) || (d.Odd&BadUTF8 == 0) != utf8.Valid(rec) {
			t.Fatalf("odd %s", d.Odd)
		}
		names := strings.Fields(strings.TrimPrefix(columns, "#Fields:"))
		for i, name := range names {
			names[i] = cloudFrontName(name)
		}
		fields := strings.Split(strings.TrimSuffix(string(rec), "\r"), "\t")
		for i, c := range newColumns(names, cloudFrontField, encodedField, rawField) {
			want := string(appendUnescaped(nil, []byte(fields[i])))
			if v, ok := got[c.name]; ok != (fields[i] != "-") || ok && v != string([]rune(want)) {
				t.Fatalf("%s is %q, want %q", c.name, v, want)
			}
			if v, ok := encoded[c.name]; ok != (want != fields[i]) || ok && v != string([]rune(fields[i])) {
				t.Fatalf("%s was %q, want %q", c.name, v, fields[i])
			}
		}
	})
}

func BenchmarkCloudFront(b *testing.B) {
	recs := make([][]byte, 1000)
	size := 0
	for i := range recs {
		recs[i] = fmt.Appendf(nil, "2026-01-05\t21:02:31\tLAX1\t%d\t192.0.2.%d\tGET\td111111abcdef8.cloudfront.net\t/index.html\t200\t-\tMozilla/5.0%%20(X11;%%20Linux%%20x86_64)\t-\t-\tHit\tREQID%016d==\td111111abcdef8.cloudfront.net\thttps\t23\t0.001",
			i, i%250, i)
		size += len(recs[i]) + 1
	}
	dec := openFrame(b, "cloudfront", cloudFrontHeader)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	var d Doc
	for b.Loop() {
		for _, rec := range recs {
			if err := dec.Decode(rec, &d); err != nil || !d.HasTime || !d.HasID || d.Odd != 0 {
				b.Fatalf("%v %+v", err, d)
			}
		}
	}
	b.ReportMetric(float64(len(recs))*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
}
