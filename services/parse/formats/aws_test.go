package formats

import (
	"encoding/json"
	"maps"
	"testing"
)

// openFrame makes a decoder and tells it about a frame.
func openFrame(t testing.TB, name, columns string) Decoder {
	t.Helper()
	dec := open(t, name, nil, Deps{})
	if err := begin(dec, "", []byte(columns)); err != nil {
		t.Fatal(err)
	}
	return dec
}

// fieldsOf reads a document: texts, and numbers as written. What is neither is as
// JSON. It fails when the document is no JSON object.
func fieldsOf(t testing.TB, doc []byte) map[string]string {
	t.Helper()
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(doc, &raw); err != nil {
		t.Fatalf("%q is no JSON object: %v", doc, err)
	}
	all := make(map[string]string, len(raw))
	for k, v := range raw {
		var text string
		if json.Unmarshal(v, &text) != nil || v[0] != '"' {
			text = string(v)
		}
		all[k] = text
	}
	return all
}

// covers: F-21, DEV-56
func TestAWSPlace(t *testing.T) {
	tests := []struct{ key, account, region string }{
		{"AWSLogs/123456789012/vpcflowlogs/us-east-1/2026/01/05/123456789012_vpcflowlogs_us-east-1_fl-0a1b_20260105T0805Z_0123abcd.log.gz", "123456789012", "us-east-1"},
		{"a b/AWSLogs/o-abc/123456789012/vpcflowlogs/us-gov-west-1/2026/x.log.gz", "123456789012", "us-gov-west-1"},
		{"AWSLogs/aws-account-id=123456789012/aws-service=vpcflowlogs/aws-region=eu-central-1/year=2026/month=01/day=05/hour=08/x.log.parquet", "123456789012", "eu-central-1"},
		{"AWSLogs/123456789012/vpcflowlogs/x", "123456789012", ""},
		{"AWSLogs/123456789012/vpcflowlogs/2026/x", "123456789012", ""},
		{"AWSLogs/not-an-account/vpcflowlogs/us-east-1/x", "", ""},
		{"AWSLogs/123456789012/CloudTrail/us-east-1/x", "", ""},
		{"", "", ""},
	}
	for _, tt := range tests {
		if account, region := awsPlace(tt.key, "vpcflowlogs"); account != tt.account || region != tt.region {
			t.Errorf("%s: %q, %q, want %q, %q", tt.key, account, region, tt.account, tt.region)
		}
	}
}

func TestTextFormatsAllocateNothing(t *testing.T) {
	tests := []struct {
		format, columns string
		recs            []string
	}{
		{"vpcflow", vpcDefault, []string{flowLine, "2 unknown eni-1 - - - - - - - 1767600120 1767600179 - NODATA", `{"version":2,"account_id":"1","start":1767600120,"x":[1]}`, flowLine + "\xff"}},
		{"cloudfront", "#Fields: date time x-edge-request-id cs(User-Agent)", []string{"2026-01-05\t21:02:31\tR1\tMozilla/5.0%20(X11)", `{"date":"2026-01-05","cs_user_agent":"a%20b","x":null}`}},
		{"s3access", "", []string{s3Line, s3Line + " more and more"}},
		{"alb", "", []string{albLine, albLine + " more"}},
		{"nlb", "", []string{nlbLine}},
		{"elb_classic", "", []string{elbLine}},
	}
	for _, tt := range tests {
		dec, columns := open(t, tt.format, nil, Deps{}), []byte(tt.columns)
		var d Doc
		if n := testing.AllocsPerRun(100, func() {
			if err := begin(dec, "", columns); err != nil {
				t.Fatal(err)
			}
			for _, rec := range tt.recs {
				if err := dec.Decode([]byte(rec), &d); err != nil {
					t.Fatal(tt.format, err)
				}
			}
		}) - float64(len(tt.recs)+1); n > 0 { // the copies of recs, and the origin
			t.Errorf("%s: %v allocations", tt.format, n)
		}
	}
}

// What a row reader takes is what encoding/json takes for an object, and each value
// comes under its key.
func FuzzRowReader(f *testing.F) {
	for _, rec := range scans {
		f.Add([]byte(rec))
	}
	f.Add([]byte(`{"a":1,"b\u0062":"x\u00e9\n","c":null,"d":[1,{"}":"]"}],"e":{},"f":true , "g" : -0.5e3}`))
	f.Fuzz(func(t *testing.T, rec []byte) {
		var w fieldWriter
		r := newRowReader(func(key string) column {
			return newColumns([]string{key}, func(string) (int, bool) { return -1, true })[0]
		})
		w.begin()
		odd, err := r.read(rec, w.add, func(c *column, v []byte) { w.json(c.key, v) })
		var want map[string]any
		if valid := json.Unmarshal(rec, &want) == nil && want != nil; valid != (err == nil) {
			t.Fatalf("read says %v, encoding/json %v", err, valid)
		}
		if err != nil || odd != 0 || want[""] != nil {
			return
		}
		maps.DeleteFunc(want, func(_ string, v any) bool { return v == nil })
		got := fieldsOf(t, w.end())
		for key, v := range want {
			text, ok := v.(string)
			if g, there := got[key]; !there || ok && g != text {
				t.Fatalf("%q is %q, want %q", key, g, v)
			}
		}
	})
}
