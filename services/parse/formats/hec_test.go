package formats

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// covers: F-25 (as an input)
func TestHEC(t *testing.T) {
	tests := []struct{ name, rec, has string }{
		{"seconds with ms", `{"time":1433188255.500,"sourcetype":"syslog","event":"x"}`, `type=hec.syslog id=none time=2015-06-01T19:50:55.5Z account="" region="" odd=`},
		{"time as text", `{"time":"1433188255.5","sourcetype":"syslog","event":"x"}`, "time=2015-06-01T19:50:55.5Z"},
		{"milliseconds", `{"time":1433188255500,"event":"x"}`, "time=2015-06-01T19:50:55.5Z"},
		{"microseconds", `{"time":1433188255500000,"event":"x"}`, "time=2015-06-01T19:50:55.5Z"},
		{"nanoseconds", `{"time":1433188255500000000,"event":"x"}`, "time=2015-06-01T19:50:55.5Z"},
		{"exponent", `{"time":1.4331882555e9,"event":"x"}`, "time=2015-06-01T19:50:55.5Z"},
		{"sourcetype with a colon", `{"sourcetype":"aws:cloudtrail","event":"x"}`, "type=hec.aws_cloudtrail "},
		{"sourcetype with a dot", `{"sourcetype":"Cisco.ASA","event":"x"}`, "type=hec.cisco.asa "},
		{"no sourcetype", `{"event":{"sourcetype":"inner","time":1}}`, "type=hec.unknown id=none time=none account=\"\" region=\"\" odd=no_time,no_type"},
		{"sourcetype of another kind", `{"sourcetype":7,"event":"x"}`, "type=hec.unknown "},
		{"time of another kind", `{"time":{"a":1},"event":"x"}`, "odd=bad_time"},
		{"no time", `{"event":"x","sourcetype":"a"}`, "odd=no_time"},
		{"not UTF-8", "{\"time\":1,\"sourcetype\":\"a\",\"event\":\"\xff\"}", "odd=bad_utf8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var d Doc
			if err := open(t, "hec", nil, Deps{}).Decode([]byte(tt.rec), &d); err != nil {
				t.Fatal(err)
			}
			if got := d.render(); !strings.Contains(got, tt.has) {
				t.Errorf("got %s\nwant %s in it", got, tt.has)
			}
			if string(d.Body) != tt.rec {
				t.Errorf("body is %q, want the record unchanged", d.Body)
			}
		})
	}
	for _, rec := range []string{``, `"x"`, `[]`, `{"event":}`, `{"event":"x"} 1`} {
		var d Doc
		if err := open(t, "hec", nil, Deps{}).Decode([]byte(rec), &d); err == nil {
			t.Errorf("%q was read as %s", rec, d.render())
		}
	}
}

// Every JSON object is an event with its bytes unchanged, and nothing else is.
func FuzzHEC(f *testing.F) {
	for _, rec := range scans {
		f.Add([]byte(rec))
	}
	f.Add([]byte(`{"time":1433188255.500,"host":"h","sourcetype":"a:b","event":{"a":1},"fields":{"x":"y"}}`))
	dec := open(f, "hec", nil, Deps{})
	f.Fuzz(func(t *testing.T, rec []byte) {
		var d Doc
		err := dec.Decode(rec, &d)
		body := bytes.Trim(rec, " \t\r\n")
		object := json.Valid(rec) && bytes.HasPrefix(body, []byte("{"))
		if object != (err == nil) {
			t.Fatalf("Decode says %v", err)
		}
		if err != nil {
			return
		}
		if !bytes.Equal(d.Body, body) || !strings.HasPrefix(d.Type, "hec.") || d.HasID || d.Account != "" {
			t.Fatalf("%s, body %q", d.render(), d.Body)
		}
	})
}

func BenchmarkHEC(b *testing.B) {
	rec := []byte(`{"time":1767599094.123,"host":"web-1","source":"/var/log/auth.log","sourcetype":"linux_secure","index":"main","event":"` + strings.Repeat("x", 300) + `"}`)
	dec := open(b, "hec", nil, Deps{})
	b.SetBytes(int64(len(rec)))
	b.ReportAllocs()
	var d Doc
	for b.Loop() {
		if err := dec.Decode(rec, &d); err != nil || !d.HasTime {
			b.Fatal(err)
		}
	}
}
