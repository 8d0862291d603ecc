package formats

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/framing"
)

// objectFormats are the formats whose documents are the records.
var objectFormats = []string{
	"censornet", "cwlogs", "cwmetrics", "eventbridge", "guardduty", "networkfirewall", "route53resolver", "securityhub", "voiso", "waf",
}

// samples are the records in the cases of a format that can be cut.
func samples(tb testing.TB, name string) (recs [][]byte) {
	tb.Helper()
	cases, _ := filepath.Glob("testdata/" + name + "/*.in")
	for _, in := range cases {
		data, err := os.ReadFile(in)
		if err != nil {
			tb.Fatal(err)
		}
		split := framing.New(shapes[name].framing(data), bytes.NewReader(data), framing.Limits{})
		for {
			rec, err := split.Next()
			var bad *framing.Bad
			if errors.As(err, &bad) {
				recs = append(recs, bad.Bytes)
				continue
			}
			if err != nil {
				break
			}
			recs = append(recs, bytes.Clone(rec))
		}
	}
	return recs
}

// good are the samples that dec takes.
func good(tb testing.TB, name string, dec Decoder) (recs [][]byte) {
	tb.Helper()
	var d Doc
	for _, rec := range samples(tb, name) {
		if dec.Decode(rec, &d) == nil {
			recs = append(recs, rec)
		}
	}
	if len(recs) < 5 {
		tb.Fatalf("only %d good records among the cases of %s", len(recs), name)
	}
	return recs
}

// fuzzObjects tries the decoder of a format: it takes exactly what is JSON (and an
// object, unless it says otherwise), leaves the document as it is, and what it reads
// depends on the values alone: neither on the space between them nor on the records
// before.
func fuzzObjects(f *testing.F, name string, anything bool) {
	f.Helper()
	for _, rec := range samples(f, name) {
		f.Add(rec)
	}
	for _, rec := range scans[:20] {
		f.Add([]byte(rec))
	}
	dec, fresh := open(f, name, nil, Deps{}), open(f, name, nil, Deps{})
	known, _ := Open(f.Context(), name, nil, Deps{Source: "feed", Types: NewTypes(0)})
	f.Fuzz(func(t *testing.T, rec []byte) {
		var d, again Doc
		err := dec.Decode(rec, &d)
		body := bytes.Trim(rec, " \t\r\n")
		if valid := json.Valid(rec) && (anything || body[0] == '{'); valid != (err == nil) {
			t.Fatalf("Decode says %v, encoding/json %v", err, valid)
		}
		if err != nil {
			return
		}
		if d.Made || !bytes.Equal(d.Body, body) || !bytes.Equal(rec[d.Offset:d.Offset+len(d.Body)], body) {
			t.Fatalf("body is %q", d.Body)
		}
		if !strings.HasPrefix(d.Type, known.Base+".") || len(d.Type) > 100 || strings.ContainsAny(d.Type, " *>\x00/:") || strings.Contains(d.Type, "..") {
			t.Fatalf("type %q", d.Type)
		}
		if d.HasID != (d.ID != messages.ID{}) || d.HasID && d.Odd&NoID != 0 || d.HasID && d.ByContent {
			t.Fatalf("id %v, %+v", d.ID, d)
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, rec); err != nil {
			t.Fatal(err)
		}
		if err := fresh.Decode(compact.Bytes(), &again); err != nil {
			t.Fatal(err)
		}
		if d.ID != again.ID || d.Time != again.Time || d.HasTime != again.HasTime || d.Type != again.Type ||
			d.Account != again.Account || d.Region != again.Region || d.Odd != again.Odd {
			t.Fatalf("%s\nwithout space: %s", d.render(), again.render())
		}
	})
}

func FuzzCensornet(f *testing.F)       { fuzzObjects(f, "censornet", false) }
func FuzzCWLogs(f *testing.F)          { fuzzObjects(f, "cwlogs", false) }
func FuzzCWMetrics(f *testing.F)       { fuzzObjects(f, "cwmetrics", false) }
func FuzzEventBridge(f *testing.F)     { fuzzObjects(f, "eventbridge", true) }
func FuzzGuardDuty(f *testing.F)       { fuzzObjects(f, "guardduty", false) }
func FuzzNetworkFirewall(f *testing.F) { fuzzObjects(f, "networkfirewall", false) }
func FuzzRoute53Resolver(f *testing.F) { fuzzObjects(f, "route53resolver", false) }
func FuzzSecurityHub(f *testing.F)     { fuzzObjects(f, "securityhub", false) }
func FuzzVoiso(f *testing.F)           { fuzzObjects(f, "voiso", false) }
func FuzzWAF(f *testing.F)             { fuzzObjects(f, "waf", false) }

func TestObjectsDoNotAllocate(t *testing.T) {
	for _, name := range objectFormats {
		dec := open(t, name, nil, Deps{})
		recs := good(t, name, dec)
		var d Doc
		if n := testing.AllocsPerRun(20, func() {
			for _, rec := range recs {
				if err := dec.Decode(rec, &d); err != nil {
					t.Fatal(err)
				}
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations for %d records, want none", name, n, len(recs))
		}
	}
}

func BenchmarkObjects(b *testing.B) {
	for _, name := range objectFormats {
		b.Run(name, func(b *testing.B) {
			dec := open(b, name, nil, Deps{})
			recs := good(b, name, dec)
			size := 0
			for _, rec := range recs {
				size += len(rec)
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			var d Doc
			for b.Loop() {
				for _, rec := range recs {
					if err := dec.Decode(rec, &d); err != nil || len(d.Body) == 0 {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// JSON lines with an id, a time and an event type to find.
func BenchmarkJSON(b *testing.B) {
	recs := make([][]byte, 1000)
	size := 0
	for i := range recs {
		recs[i] = record(i)
		size += len(recs[i])
	}
	dec := open(b, "json", JSONConfig{IDField: "eventID", TimeField: "eventTime", TimeUnit: RFC3339, EventTypeField: "eventSource"}, Deps{})
	b.SetBytes(int64(size))
	b.ReportAllocs()
	var d Doc
	for b.Loop() {
		for _, rec := range recs {
			if err := dec.Decode(rec, &d); err != nil || !d.HasID || !d.HasTime {
				b.Fatalf("%v %+v", err, d)
			}
		}
	}
}

// A finding is updated in place. Where the time of the update is missing, its id
// alone would make duplicates of all updates.
// covers: F-8, F-13, F-14
func TestFindingsWithoutUpdate(t *testing.T) {
	const envelope = `{"id":"e","detail-type":"x","source":"aws.guardduty","time":"2026-01-05T07:44:54Z","detail":{"id":"f","service":{"count":3}}}`
	for _, tt := range []struct {
		format, rec string
		want        messages.ID
	}{
		{"guardduty", `{"id":"f","service":{"count":3}}`, messages.ID{}},
		{"guardduty", `{"Id":"f","UpdatedAt":null}`, messages.ID{}},
		{"guardduty", envelope, messages.NewID(kindEventBridge, []byte("e"))},
		{"eventbridge", envelope, messages.NewID(kindEventBridge, []byte("e"))},
		{"securityhub", `{"Id":"f","ProductArn":"p"}`, messages.ID{}},
		{"securityhub", `{"id":"e","detail-type":"Security Hub Findings - Imported","time":"2026-01-05T07:44:54Z","detail":{"findings":[{"Id":"f","ProductArn":"p"}]}}`, messages.ID{}},
	} {
		var d Doc
		if err := open(t, tt.format, nil, Deps{}).Decode([]byte(tt.rec), &d); err != nil {
			t.Fatal(err)
		}
		if d.ID != tt.want || d.HasID != (tt.want != messages.ID{}) || d.HasID == (d.Odd&NoID != 0) {
			t.Errorf("%s: %s: %s", tt.format, tt.rec, d.render())
		}
	}
}
