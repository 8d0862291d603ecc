package formats

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// record is a CloudTrail record of common size and shape, number n of a feed.
func record(n int) []byte {
	return fmt.Appendf(nil, `{"eventVersion":"1.11","userIdentity":{"type":"AssumedRole","principalId":"AROAEXAMPLEEXAMPLEXYZ:session-%[1]d","arn":"arn:aws:sts::123456789012:assumed-role/deploy-role/session-%[1]d","accountId":"123456789012","accessKeyId":"ASIAEXAMPLEEXAMPLE01","sessionContext":{"sessionIssuer":{"type":"Role","principalId":"AROAEXAMPLEEXAMPLEXYZ","arn":"arn:aws:iam::123456789012:role/deploy-role","accountId":"123456789012","userName":"deploy-role"},"attributes":{"creationDate":"2026-01-05T07:00:00Z","mfaAuthenticated":"false"}}},"eventTime":"2026-01-05T07:44:%02[2]dZ","eventSource":"%[3]s.amazonaws.com","eventName":"GetObject","awsRegion":"us-east-1","sourceIPAddress":"192.0.2.%[4]d","userAgent":"[aws-cli/2.15.30 md/awscrt#0.20.5 ua/2.0 os/linux#5.10 md/arch#x86_64 lang/python#3.11.8]","requestParameters":{"bucketName":"log-bucket-a","Host":"log-bucket-a.s3.us-east-1.amazonaws.com","key":"data/part-%08[1]d.parquet"},"responseElements":null,"additionalEventData":{"SignatureVersion":"SigV4","CipherSuite":"TLS_AES_128_GCM_SHA256","bytesTransferredIn":0,"bytesTransferredOut":%[5]d,"AuthenticationMethod":"AuthHeader","x-amz-id-2":"q1Z7exampleexampleexampleexampleexampleexample="},"requestID":"REQ%013[1]d","eventID":"00000000-0000-4000-8000-%012[1]d","readOnly":true,"resources":[{"type":"AWS::S3::Object","ARN":"arn:aws:s3:::log-bucket-a/data/part-%08[1]d.parquet"}],"eventType":"AwsApiCall","managementEvent":false,"recipientAccountId":"123456789012","eventCategory":"Data","tlsDetails":{"tlsVersion":"TLSv1.3","cipherSuite":"TLS_AES_128_GCM_SHA256","clientProvidedHostHeader":"log-bucket-a.s3.us-east-1.amazonaws.com"}}`,
		n, n%60, []string{"s3", "iam", "sts", "ec2", "kms"}[n%5], n%250, n*7919)
}

var paths = [][]string{{"a"}, {"b", "c"}, {"b", "d"}, {"e.f"}, {"b"}, {"f", firstOf, "g"}, {"f", firstOf}, {"b", firstOf, firstOf, "c"}, {firstOf, "a"}}

// wanted does what scanner does, by way of encoding/json.
func wanted(t *testing.T, rec []byte) []string {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(rec))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	out := make([]string, len(paths))
	for i, p := range paths {
		at := v
		for _, key := range p {
			if key == firstOf {
				list, _ := at.([]any)
				if at = nil; len(list) > 0 {
					at = list[0]
				}
				continue
			}
			m, _ := at.(map[string]any)
			at = m[key]
		}
		switch at := at.(type) {
		case string:
			out[i] = "text " + at
		case json.Number:
			out[i] = "number " + at.String()
		}
	}
	return out
}

// got renders what s found in rec.
func (s *scanner) got(rec []byte) []string {
	out := make([]string, len(s.found))
	for i, f := range s.found {
		switch f.kind {
		case text:
			v := rec[f.start:f.end]
			if f.escaped {
				v = unescape(nil, v)
			}
			out[i] = "text " + string(v)
		case number:
			out[i] = "number " + string(rec[f.start:f.end])
		case absent, other:
		}
	}
	return out
}

var scans = []string{
	`{}`, `[]`, `0`, ` "x" `, `null`, `true`, `false`, "\t{\r\n\"a\" : \"v\" , \"z\":[ ] }\n",
	`{"a":"v","b":{"c":1,"d":"x"},"e.f":-0.5e+10}`,
	`{"a":"v","a":"w"}`, `{"a":"v","a":null}`, `{"a":"v","a":[]}`, `{"b":{"c":"v"},"b":{"d":"w"}}`, `{"b":{"c":"v"},"b":7}`,
	`{"b":{"c":1,"c":{"c":2}}}`, `{"z":{"a":1,"b":{"c":2}}}`, `[{"a":1}]`, `{"b":[{"c":1}]}`, `{"b":{"z":{"c":1}}}`,
	`{"\u0061":"escaped key","b":{"\u0063":"\ud83d\ude00\n\"\\\/\b\f\r\t"}}`, `{"a":"\ud800","b":{"c":"\ud800\u0041","d":"\udc00\ud800\udc00"}}`,
	`{"a":"` + strings.Repeat("long ", 100) + `","b":{"c":"` + strings.Repeat(`\\`, 9) + `"}}`,
	"{\"a\":\"\xff\xfe\",\"b\":{\"c\":\"é\"}}", `{"a\"":1,"a":2}`, `{"":1}`,
	`{"f":[{"g":1},{"g":2}]}`, `{"f":[7,{"g":2}],"a":1}`, `{"f":[],"a":"v"}`, `{"f":[[{"g":1}],{"g":2}]}`, `{"f":["x"],"f":{"g":1}}`, `{"f":{"g":1}}`,
	`{"f":[{"x":[1,{"g":5}],"g":3,"g":"4"}],"b":[[{"c":1},2]]}`, `{"f":[{}],"b":{"c":1,"x":[{"c":2}]}}`, `[{"a":1},{"a":2}]`, `[[{"a":1}]]`, `{"f":[{"g":1}],"f":[{"h":1}]}`,
	// not valid
	``, ` `, `{`, `[`, `"`, `"\`, `"\u`, `"\u12`, `{"a`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, `[1`, `[1,`, `tru`, `nul`, `-`, `1.`, `1e`, `1e+`,
	`{"a":1,}`, `[1,]`, `{,}`, `[,]`, `{]`, `[}`, `{"a":1]`, `[1}`, `{"a" 1}`, `{a:1}`, `{'a':1}`, `01`, `-01`, `+1`, `.5`, `1.e1`, `--1`,
	`truex`, `nulll`, `1 2`, `{}{}`, `"a" "b"`, "\"\x01\"", "\"12345678\x1f\"", "\"a\nb\"", `"\x"`, `"\u12g4"`, `{"a":1}x`, "\ufeff{}", "\x00", `NaN`, `Infinity`,
}

// The scanner agrees with encoding/json on what is valid and on the values.
// covers: F-9
func TestScanAgreesWithEncodingJSON(t *testing.T) {
	s := newScanner(paths...)
	for _, rec := range scans {
		check(t, s, []byte(rec))
	}
	// Every cut of a whole record, and every byte of it replaced by a hostile one.
	rec := []byte(`{"a":"v\u00e9\n","b":{"c":[1,-2.5e3,{"x":null}],"d":true},"e.f":"12345678901234567890","f":[{"g":[{}]},{"g":2}]}`)
	for i := range rec {
		check(t, s, rec[:i])
		for _, c := range []byte("\"\\{}[]:,x0-. \n\x01\x80") {
			mutant := bytes.Clone(rec)
			mutant[i] = c
			check(t, s, mutant)
		}
	}
}

func check(t *testing.T, s *scanner, rec []byte) {
	t.Helper()
	start, end, why, at := s.scan(rec)
	if valid := json.Valid(rec); valid != (why == "") {
		t.Fatalf("scan of %q says %q at %d, json.Valid says %v", rec, why, at, valid)
	}
	if why != "" {
		if at < 0 || at > len(rec) {
			t.Fatalf("scan of %q: %q at offset %d of %d", rec, why, at, len(rec))
		}
		return
	}
	if want := bytes.Trim(rec, " \t\r\n"); string(rec[start:end]) != string(want) {
		t.Fatalf("scan of %q: value is %q, want %q", rec, rec[start:end], want)
	}
	// encoding/json replaces what is not UTF-8, the scanner leaves it.
	if got, want := s.got(rec), wanted(t, rec); s.valid(rec) && strings.Join(got, "|") != strings.Join(want, "|") {
		t.Fatalf("scan of %q found %q, want %q", rec, got, want)
	}
}

func TestScanDepth(t *testing.T) {
	s := newScanner(paths...)
	for _, depth := range []int{63, 64, 65, 128, maxDepth, maxDepth + 1} {
		check(t, s, []byte(strings.Repeat("[", depth)+strings.Repeat("]", depth)))
		check(t, s, []byte(strings.Repeat(`{"b":`, depth)+"1"+strings.Repeat("}", depth)))
		check(t, s, []byte(strings.Repeat(`{"b":[`, depth/2)+"1"+strings.Repeat("]}", depth/2)))
	}
}

func TestScanTellsWhereAndWhy(t *testing.T) {
	s := newScanner(paths...)
	tests := []struct {
		rec string
		why string
		at  int
	}{
		{`{"a":1`, "the value ends too early", 6},
		{`{"a":"x`, "the value ends too early", 7},
		{"{\"a\":\"x\ny\"}", "a control character stands unescaped in a string", 7},
		{`{"a":"12345678\q"}`, "the escape is malformed", 14},
		{`{"a":tru}`, "a value is expected", 5},
		{`{"a":01}`, "the number is malformed", 5},
		{`{"a":1 "b":2}`, "a comma or the end of the container is expected", 7},
		{`{"a" 1}`, "a colon is expected after the key", 5},
		{`{"a":1,}`, "a key in quotes is expected", 7},
		{`{} {}`, "nothing may follow the value", 3},
	}
	for _, tt := range tests {
		if _, _, why, at := s.scan([]byte(tt.rec)); why != tt.why || at != tt.at {
			t.Errorf("%s: %q at %d, want %q at %d", tt.rec, why, at, tt.why, tt.at)
		}
	}
}

func FuzzScan(f *testing.F) {
	for _, rec := range scans {
		f.Add([]byte(rec))
	}
	f.Add(record(1))
	s := newScanner(paths...)
	f.Fuzz(func(t *testing.T, rec []byte) { check(t, s, rec) })
}

func BenchmarkScan(b *testing.B) {
	recs := make([][]byte, 1000)
	size := 0
	for i := range recs {
		recs[i] = record(i)
		size += len(recs[i])
	}
	s := newScanner(paths...)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		for _, rec := range recs {
			if _, end, why, _ := s.scan(rec); why != "" || end != len(rec) {
				b.Fatal(why)
			}
		}
	}
}
