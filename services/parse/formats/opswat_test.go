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

// Every documented log_type has its own event type; whole values count, others pass.
// covers: OPC-14, OPC-15, OPC-16, OPC-17, OPC-18, OPC-20, OPC-29, MDA-3, MDA-4, MDA-17, F-2
func TestOPSWATTypes(t *testing.T) {
	types := map[string]string{
		"Device": "compliant noncompliant allow_device_access block_device_access deleted added critical_found process_scan_infection_found " +
			"critical_cleared report_no_threat exempt_all unexempt access_granted access_revoked unknown_device_detected unseen deleted_user",
		"Account": "config logon logout license_left",
	}
	dec := open(t, "opswat", nil, Deps{})
	for kind, all := range types {
		for _, logType := range append(strings.Fields(all), "brand_new") {
			more := `,"device_id":"d"`
			if kind == "Account" {
				more = `,"event":"admin logged off"`
			}
			for _, with := range []string{`,"type":"` + kind + `"`, ""} {
				var d Doc
				rec := `{"timestamp":"2026-01-05T08:55:12.279Z","log_type":"` + logType + `"` + with + more + `}`
				want := "opswat." + strings.ToLower(kind) + "." + logType
				if err := dec.Decode([]byte(rec), &d); err != nil || d.Type != want || d.Odd != 0 || !d.HasTime || d.HasID {
					t.Errorf("%s: %s, %v, %v, want %s", rec, d.Type, d.Odd, err, want)
				}
				if d.Made || string(d.Body) != rec {
					t.Errorf("%s: the document is %s", rec, d.Body)
				}
			}
		}
	}
}

// covers: MDA-9, MDA-10, MDA-11, MDA-13, LIM-25, F-3
func TestOPSWATPairs(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"JSON", `"log_type":"x","details":"a, b (c) $0 "`, `{"log_type":"x","details":"a, b (c) $0 "}`},
		{"carriage return and comma at the end", "\"log_type\":\"x\",\r", `{"log_type":"x"}`},
		{"escapes", `"log_type":"x","details":"a \"b\" \\ \u00e9 \n"`, `{"log_type":"x","details":"a \"b\" \\ \u00e9 \n"}`},
		{"bare quotes", `"log_type":"x","details":"a "b" c","device_id":"d"`, `{"log_type":"x","details":"a \"b\" c","device_id":"d"}`},
		{"quotes and commas as between pairs", `"log_type":"x","details":"a","b","c":"d","device_id":"d"`, `{"log_type":"x","details":"a\",\"b\",\"c\":\"d","device_id":"d"}`},
		{"bare quote at the end of a value", `"log_type":"x","details":"said "a"","device_id":"d"`, `{"log_type":"x","details":"said \"a\"","device_id":"d"}`},
		{"bare quote at the end of the line", `"log_type":"x","details":"said "a""`, `{"log_type":"x","details":"said \"a\""}`},
		{"paths of Windows", `"log_type":"x","details":"C:\Users\a","device_name":"D:\"`, `{"log_type":"x","details":"C:\\Users\\a","device_name":"D:\\"}`},
		{"unknown key before a bare quote", `"new":"x","log_type":"a "b""`, `{"new":"x","log_type":"a \"b\""}`},
		{"tab", "\"log_type\":\"x\",\"details\":\"a\tb\"", `{"log_type":"x","details":"a\tb"}`},
		{"space before", "  \"log_type\":\"x\"", `{"log_type":"x"}`},
	}
	dec := open(t, "opswat", nil, Deps{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var d Doc
			if err := dec.Decode([]byte(tt.in), &d); err != nil {
				t.Fatal(err)
			}
			if !d.Made || string(d.Body) != tt.want || !json.Valid(d.Body) {
				t.Errorf("got  %s\nwant %s", d.Body, tt.want)
			}
		})
	}
}

// The same records come out of every shape that an object may have; the order of
// keys and of records counts for nothing.
// covers: OPC-6, OPC-13, OPC-21, OPC-23, MDA-2, MDA-5, MDA-6, MDA-15, MDA-16, MDA-18, MDA-20
func TestOPSWATShapes(t *testing.T) {
	pretty := "{\n  \"log_type\": \"unseen\",\n  \"device_id\": \"host-1-1767612345\",\n  \"device_group\": \"Default\",\n  \"details\": \"{x\",\n  \"timestamp\": \"2026-01-05T08:55:12.279Z\",\n  \"type\": \"Device\"\n}"
	account := `{"timestamp":"2026-01-05T08:55:11.279Z","type":"Account","admin_email":"a@example.org","details":"x","log_type":"logon"}`
	one := strings.NewReplacer("\n", "", "  ", "", ": ", ":").Replace(pretty)
	header := "<134>1 2026-01-05T09:00:00Z gw opswat - - - "
	want := "[opswat.device.unseen 1767603312279000000 opswat.account.logon 1767603311279000000]"
	for name, in := range map[string]string{
		"values":             pretty + "\n" + account + "\n",
		"nothing between":    one + account,
		"array":              "[" + pretty + ",\r\n" + account + "]",
		"NDJSON":             one + "\n" + account + "\n",
		"SYSLOG form":        one[1:len(one)-1] + "\n" + account[1:len(account)-1] + "\n",
		"byte order mark":    "\ufeff" + one[1:len(one)-1] + "\r\n" + account[1:len(account)-1],
		"real syslog":        header + one[1:len(one)-1] + "\n" + header + account + "\n",
		"behind empty lines": "\n\n " + pretty + "\n\n\n" + account,
	} {
		format, f, _ := Choose(Auto, "logs/x", []byte(in))
		if format != "opswat" {
			t.Errorf("%s is taken for %s", name, format)
			continue
		}
		dec := open(t, "opswat", nil, Deps{})
		split := framing.New(f, strings.NewReader(in), framing.Limits{})
		var got []any
		for rec, err := split.Next(); err == nil; rec, err = split.Next() {
			var d Doc
			if err := dec.Decode(rec, &d); err != nil || d.HasID {
				t.Errorf("%s: %q: %v", name, rec, err)
			}
			got = append(got, d.Type, d.Time)
		}
		if fmt.Sprint(got) != want {
			t.Errorf("%s: %v, want %s", name, got, want)
		}
	}
}

// covers: OPC-19, MDA-7, MDA-8, MDA-12, MDA-14
func TestOPSWATExtract(t *testing.T) {
	tests := []struct{ logType, details, want string }{
		{"exempt_all", "exempted by A(a@example.org)24 hour(s)", `"exempt_hours":24`},
		{"exempt_all", "exempted for 1 hour(s), then 2 hour(s)", `"exempt_hours":1`},
		{"exempt_all", "hour(s) of darkness, 0.5 hours", `"exempt_hours":0.5`},
		{"exempt_all", "for ever", ""},
		{"unexempt", "unexempted after 24 hour(s)", ""},
		{"license_left", "License left: [15] %", `"license_percent":15`},
		{"license_left", "7.5% left", `"license_percent":7.5`},
		{"license_left", "[x] %", ""},
		{"added", "Device h-1.2 was added, client version 7.6.312.0 $0", `"client_version":"7.6.312.0"`},
		{"added", "Device was added with v7.6.3 $0", `"client_version":"7.6.3"`},
		{"added", "Device 17 was added $0", ""},
		{"added", "1.2.3.4.5", ""},
	}
	dec := open(t, "opswat", OPSWATConfig{EventType: opswatType, Extract: true}, Deps{})
	for _, tt := range tests {
		rec := `{"log_type":"` + tt.logType + `","details":" ` + tt.details + `  "}`
		want := strings.TrimSuffix(rec, "}") + `,"details_text":"` + tt.details + `"`
		if tt.want != "" {
			want += "," + tt.want
		}
		var d Doc
		if err := dec.Decode([]byte(rec), &d); err != nil || string(d.Body) != want+"}" {
			t.Errorf("got  %s, %v\nwant %s}", d.Body, err, want)
		}
	}
}

// covers: OPC-22, MDA-1
func TestOPSWATTenantAndProduct(t *testing.T) {
	dec := open(t, "opswat", OPSWATConfig{EventType: "x.y", Account: "tenant-a", VendorProduct: "MetaDefender IT Access"}, Deps{})
	var d Doc
	if err := dec.Decode([]byte(`{"log_type":"added"}`), &d); err != nil || d.Account != "tenant-a" || d.Type != "x.y.device.added" ||
		string(d.Body) != `{"log_type":"added","vendor_product":"MetaDefender IT Access"}` {
		t.Errorf("%s %s, %v", d.render(), d.Body, err)
	}
	long := strings.Repeat("x", 200)
	err := OPSWATConfig{EventType: "A", Account: long, VendorProduct: long}.Validate()
	for _, key := range []string{"event_type", "account", "vendor_product"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%v, want %s in it", err, key)
		}
	}
}

// A JSON object stays as it is, any document is JSON, and what is added to it comes
// behind what was there.
func FuzzOPSWAT(f *testing.F) {
	f.Add([]byte(`{"log_type":"exempt_all","details":"24 hour(s) "}`))
	f.Add([]byte(`"log_type":"x","details":"a "b\" \q C:\","device_id":"d"`))
	f.Add([]byte("<134>Jan  5 11:20:41 gw opswat: \"log_type\":\"added\",\"details\":\"\xff version 1.2\""))
	f.Add([]byte(`<34>1 2026-01-05T22:14:15.003Z h a - - [x y="z"] {"timestamp":"x", } `))
	plainly := open(f, "opswat", nil, Deps{})
	all := open(f, "opswat", OPSWATConfig{EventType: opswatType, VendorProduct: "p", Extract: true, KeepRaw: true}, Deps{})
	f.Fuzz(func(t *testing.T, rec []byte) {
		var d, e Doc
		err := plainly.Decode(rec, &d)
		if again := all.Decode(rec, &e); (err == nil) != (again == nil) {
			t.Fatalf("%v with extras, %v without", again, err)
		}
		if err != nil {
			return
		}
		if !json.Valid(d.Body) || !json.Valid(e.Body) || d.Type != e.Type || d.Time != e.Time {
			t.Fatalf("%s\n%s", d.Body, e.Body)
		}
		if !d.Made && !bytes.Equal(d.Body, rec[d.Offset:d.Offset+len(d.Body)]) {
			t.Fatalf("%q is not at %d", d.Body, d.Offset)
		}
		if open := bytes.TrimRight(d.Body[:len(d.Body)-1], " \t\r\n"); !bytes.HasPrefix(e.Body, open) {
			t.Fatalf("%s\ndoes not begin with\n%s", e.Body, open)
		}
		if utf8.Valid(rec) && (!utf8.Valid(e.Body) || d.Odd&BadUTF8 != 0) {
			t.Fatalf("%q, odd %v", e.Body, d.Odd)
		}
	})
}

func BenchmarkOPSWAT(b *testing.B) {
	var objects, pairs [][]byte
	for i := range 1000 {
		line := fmt.Sprintf(`"log_type":"exempt_all","device_name":"host-%d","device_id":"d-%06d","last_seen":"2026-01-05T08:55:12.279Z","device_group":"Default","details":"Device host-17 was exempted by Admin One(admin1@example.org)24 hour(s)","type":"Device","device_username":"user-a","timestamp":"2026-01-05T08:55:12.279Z"`, i, i)
		pairs = append(pairs, []byte(line))
		objects = append(objects, []byte("{"+line+"}"))
	}
	b.Run("json", func(b *testing.B) {
		dec := open(b, "opswat", nil, Deps{})
		decodeAll(b, dec, objects)
	})
	b.Run("syslog_form", func(b *testing.B) { decodeAll(b, open(b, "opswat", nil, Deps{}), pairs) })
	b.Run("extract", func(b *testing.B) {
		decodeAll(b, open(b, "opswat", OPSWATConfig{EventType: opswatType, Extract: true, VendorProduct: "p"}, Deps{}), pairs)
	})
}
