package formats

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/penstock/penstock/messages/fault"
)

const (
	s3Line  = `79a59df900b949e55d96a1e698fbacedfd6e09d98eacf8f8d5218e7cd47ef2be example-bucket [05/Jan/2026:07:44:54 +0000] 192.0.2.3 - 3E57427F33A59F07 REST.GET.OBJECT photos/puppy.jpg "GET /photos/puppy.jpg HTTP/1.1" 200 - 2662992 3462992 70 10 "-" "curl/8.5.0" - s9lzHYrFp76= SigV4 ECDHE-RSA-AES128-GCM-SHA256 AuthHeader example-bucket.s3.us-west-1.amazonaws.com TLSv1.3 - - us-west-1`
	albLine = `https 2026-01-05T07:44:54.186641Z app/my-loadbalancer/50dc6c495c0c9188 192.0.2.39:57496 198.51.100.1:80 0.086 0.048 0.037 200 200 0 57 "GET https://www.example.org:443/ HTTP/1.1" "curl/8.5.0" ECDHE-RSA-AES128-GCM-SHA256 TLSv1.2 arn:aws:elasticloadbalancing:us-east-2:123456789012:targetgroup/my-targets/73e2d6bc24d8a067 "Root=1-58337281-1d84f3d73c47ec4e58577259" "www.example.org" "-" 1 2026-01-05T07:44:54.100000Z "forward" "-" "-" "198.51.100.1:80" "200" "-" "-" TID_1234abcd5678ef90`
	nlbLine = `tls 2.0 2026-01-05T07:44:54 net/my-lb/c6e77e28c25b2234 g3d4b5e8bb8464cd 192.0.2.131:2817 198.51.100.185:443 5 2 98 246 - - - ECDHE-RSA-AES128-SHA tlsv12 - www.example.org h2 h2 "h2","http/1.1" 2026-01-05T07:44:49`
	elbLine = `2026-01-05T07:44:54.945958Z my-loadbalancer 192.0.2.131:2817 198.51.100.1:80 0.000073 0.001048 0.000057 200 200 0 29 "GET http://www.example.org:80/ HTTP/1.1" "curl/8.5.0" - -`
)

func TestNextToken(t *testing.T) {
	tests := []struct {
		line, value, rest string
		ok                bool
	}{
		{`a b`, `a`, `b`, true},
		{`a`, `a`, ``, true},
		{`"a b" c`, `a b`, `c`, true},
		{`"a b"`, `a b`, ``, true},
		{`"" c`, ``, `c`, true},
		{`"a \"b\" c" d`, `a \"b\" c`, `d`, true},
		{`"a \\" d`, `a \\`, `d`, true},
		{`"a \" d`, `a \`, `d`, true},
		{`"a \" b" d`, `a \" b`, `d`, true},
		{`"agent "7" (x)" - x`, `agent "7" (x)`, `- x`, true},
		{`"a"b" c`, ``, ``, false},
		{`"GET / HTTP/1.1 "curl" - -`, ``, ``, false},
		{`"a`, ``, ``, false},
		{`"`, ``, ``, false},
		{`a"b c`, `a"b`, `c`, false},
		{`[a b] c`, `a b`, `c`, true},
		{`[2001:db8::1]:80 c`, `[2001:db8::1]:80`, `c`, true},
		{`[a`, ``, ``, false},
	}
	for _, tt := range tests {
		value, rest, ok := nextToken([]byte(tt.line))
		if ok != tt.ok || ok && (string(value) != tt.value || string(rest) != tt.rest) {
			t.Errorf("%s: %q, %q, %v, want %q, %q, %v", tt.line, value, rest, ok, tt.value, tt.rest, tt.ok)
		}
	}
}

func TestParseCommonTime(t *testing.T) {
	tests := []struct {
		text string
		want int64
		ok   bool
	}{
		{"05/Jan/2026:07:44:54 +0000", 1767599094e9, true},
		{"05/Dec/2026:07:44:54 -0130", 1796462094e9, true},
		{"05/jan/2026:07:44:54 +0000", 0, false},
		{"05/anF/2026:07:44:54 +0000", 0, false},
		{"32/Jan/2026:07:44:54 +0000", 0, false},
		{"05/Jan/2026:07:44:54", 0, false},
		{"05/Jan/2026:07:44:54 0000+", 0, false},
	}
	for _, tt := range tests {
		if got, ok := parseCommonTime([]byte(tt.text)); got != tt.want || ok != tt.ok {
			t.Errorf("%s: %d, %v, want %d, %v", tt.text, got, ok, tt.want, tt.ok)
		}
	}
}

func TestPlaceOfS3AccessAndELB(t *testing.T) {
	tests := []struct {
		place           func(string) (string, string)
		key             string
		account, region string
	}{
		{s3AccessPlace, "logs/123456789012/us-west-2/example-bucket/2026/01/05/2026-01-05-07-45-00-E123456789ABCDEF", "123456789012", "us-west-2"},
		{s3AccessPlace, "logs123456789012/us-west-2/example-bucket/2026/01/05/2026-01-05-07-45-00-E123456789ABCDEF", "123456789012", "us-west-2"},
		{s3AccessPlace, "logs/2026-01-05-07-45-00-E123456789ABCDEF", "", ""},
		{s3AccessPlace, "a/b/c/d/e/f/g", "", ""},
		{func(key string) (string, string) { return awsPlace(key, elbFolder) }, "p/AWSLogs/123456789012/elasticloadbalancing/us-east-2/2026/01/05/x.log.gz", "123456789012", "us-east-2"},
	}
	for _, tt := range tests {
		if account, region := tt.place(tt.key); account != tt.account || region != tt.region {
			t.Errorf("%s: %q, %q, want %q, %q", tt.key, account, region, tt.account, tt.region)
		}
	}
}

// Each kind knows its own lines and keys, and none of the others'.
func TestChooseFixed(t *testing.T) {
	const folder = "AWSLogs/123456789012/elasticloadbalancing/us-east-2/2026/01/05/"
	tests := []struct{ key, head, format string }{
		{"", s3Line, "s3access"},
		{"", albLine, "alb"},
		{"", nlbLine, "nlb"},
		{"", elbLine, "elb_classic"},
		{folder + "123456789012_elasticloadbalancing_us-east-2_app.my-loadbalancer.50dc6c495c0c9188_20260105T0745Z_192.0.2.17_1a2b3c4d.log.gz", "", "alb"},
		{folder + "conn_log.123456789012_elasticloadbalancing_us-east-2_app.my-loadbalancer.50dc6c495c0c9188_20260105T0745Z_192.0.2.17_1a2b3c4d.log.gz", "", "alb"},
		{folder + "123456789012_elasticloadbalancing_us-east-2_net.my-lb.c6e77e28c25b2234_20260105T0745Z_1a2b3c4d.log.gz", "", "nlb"},
		{folder + "123456789012_elasticloadbalancing_us-east-2_my-loadbalancer_20260105T2340Z_192.0.2.50_20sg8hgm.log", "", "elb_classic"},
		{"2026-01-05-07-45-00-E123456789ABCDEF", "", ""},
		{folder + "health_check_log_123456789012_elasticloadbalancing_us-east-2_app.x", "", ""},
		{"", strings.Replace(s3Line, "[", "", 1), ""},
		{"", "https 2026-01-05T07:44:54.186641Z something else", ""},
		{"", "2026-01-05T07:44:54Z INFO main: 1 2 3 started with a: b", ""},
	}
	for _, tt := range tests {
		format, f, _ := Choose(Auto, tt.key, []byte(tt.head+"\n"))
		switch format {
		case "s3access", "alb", "nlb", "elb_classic":
			if format != tt.format || f != lines {
				t.Errorf("%s%s: %s, %+v, want %s", tt.key, tt.head, format, f, tt.format)
			}
		default:
			if tt.format != "" {
				t.Errorf("%s%s: %s, want %s", tt.key, tt.head, format, tt.format)
			}
		}
	}
}

// Whatever the line, the document is JSON in UTF-8, and its texts, put together
// again, are in the line.
func FuzzFixed(f *testing.F) {
	for _, line := range []string{s3Line, albLine, nlbLine, elbLine, s3Line + " \xff \"a \\\"\" [b", strings.Replace(albLine, "curl", strings.Repeat("long ", 30000), 1)} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, rec []byte) {
		if bytes.ContainsAny(rec, "\n") {
			return
		}
		for _, name := range []string{"alb", "elb_classic", "nlb", "s3access"} {
			dec := open(t, name, nil, Deps{})
			var d Doc
			if err := dec.Decode(rec, &d); err != nil {
				continue
			}
			if !utf8.Valid(d.Body) || !utf8.Valid(rec) && d.Odd&BadUTF8 == 0 {
				t.Fatalf("odd %s", d.Odd)
			}
			clean, length := string([]rune(string(rec))), 0
			for key, v := range fieldsOf(t, d.Body) {
				if !strings.Contains(clean, v) && utf8.Valid(rec) {
					t.Fatalf("%s: %q is not in the line", key, v)
				}
				length += len(v)
			}
			if length > len(clean) {
				t.Fatalf("%d bytes of values from a line of %d", length, len(clean))
			}
		}
	})
}

func BenchmarkFixed(b *testing.B) {
	for _, bb := range []struct{ name, line string }{{"s3access", s3Line}, {"alb", albLine}, {"nlb", nlbLine}, {"elb_classic", elbLine}} {
		b.Run(bb.name, func(b *testing.B) {
			recs := make([][]byte, 1000)
			size := 0
			for i := range recs {
				recs[i] = []byte(strings.Replace(bb.line, "192.0.2", fmt.Sprintf("192.0.%d", i%250), 1))
				size += len(recs[i]) + 1
			}
			dec := open(b, bb.name, nil, Deps{})
			b.SetBytes(int64(size))
			b.ReportAllocs()
			var d Doc
			for b.Loop() {
				for _, rec := range recs {
					if err := dec.Decode(rec, &d); err != nil || !d.HasTime || d.Odd != 0 {
						b.Fatalf("%v %+v", err, d)
					}
				}
			}
			b.ReportMetric(float64(len(recs))*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}

// Lines grow at their end, but not without bound: a line of thousands of fields is
// none, and costs no more than others of its length.
// covers: F-0
func TestFixedHasABoundOfFields(t *testing.T) {
	dec := open(t, "alb", nil, Deps{})
	var d Doc
	if err := dec.Decode([]byte(albLine+strings.Repeat(" x", maxExtra/2)), &d); err != nil || fieldsOf(t, d.Body)["column_40"] != "x" {
		t.Errorf("%s, %v", d.Body, err)
	}
	fields := strings.Repeat(` "a\"`, 10_000) // the end of each is looked for up to the end of the line
	if err := dec.Decode([]byte(albLine+fields), &d); fault.CodeOf(err) != "parse.wrong_columns" {
		t.Errorf("a line of 10,000 fields more gives %v", err)
	}
}
