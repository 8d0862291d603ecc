package formats

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/framing"
)

// covers: DEV-23, DEV-60, DEV-119, LIM-12, F-18, F-20
func TestUmbrellaTypeByFolder(t *testing.T) {
	dns := `"2026-01-05 17:48:41","h","h","192.0.2.1","","Allowed","1 (A)","NOERROR","example.org.",""`
	many := dns + strings.Repeat(`,""`, 15)
	tests := []struct{ key, rec, want string }{
		{"dnslogs/2026-01-05/2026-01-05-17-40-a1b2.csv.gz", dns, "dns"},
		{"p/q/dnslogs/2026-01-05/2026-01-05-17-40.csv.gz", dns, "dns"},
		{"iplogs/2026-01-05/x.csv.gz", dns, "ip"},
		{"proxylogs/2026-01-05/x.csv.gz", many, "proxy"},
		{"firewalllogs/2026-01-05/x.csv.gz", many, "firewall"},
		{"firewallogs/2026-01-05/x.csv.gz", many, "firewall"},
		{"cloudfirewalllogs/2026-01-05/x.csv.gz", many, "firewall"},
		{"cdfwlogs/2026-01-05/x.csv.gz", many, "firewall"},
		{"intrusionlogs/2026-01-05/x.csv.gz", many, "intrusion"},
		{"dlplogs/2026-01-05/x.csv.gz", many, "dlp"},
		{"auditlogs/2026-01-05/x.csv.gz", `"1",` + dns, "audit"},
		{"vpnlogs/2026-01-05/x.csv.gz", dns, "vpn"},
		{"ravpnlogs/2026-01-05/x.csv.gz", dns, "vpn"},
		{"ztnalogs/2026-01-05/x.csv.gz", dns, "ztna"},
		{"DNSlogs/2026-01-05/x.csv.gz", dns, "dns"},
		{"otherlogs/2026-01-05/x.csv.gz", dns, "unknown"},
		{"dnslogs/x.csv.gz", dns, "dns"}, // by its looks
		{"x.csv", dns, "dns"},
		{"", `"2026-01-05 17:48:41","a","b"`, "unknown"},
	}
	for _, tt := range tests {
		for _, devo := range []bool{false, true} {
			dec := open(t, "umbrella", UmbrellaConfig{EventType: umbrellaType, DevoTypes: devo}, Deps{})
			if err := begin(dec, tt.key, nil); err != nil {
				t.Fatal(err)
			}
			want := umbrellaType + "." + tt.want
			if devo && tt.want != "dns" && tt.want != "ip" && tt.want != "proxy" {
				want = "sig.cisco.umbrella.unknown"
			}
			var d Doc
			if err := dec.Decode([]byte(tt.rec), &d); err != nil || d.Type != want {
				t.Errorf("%s, Devo's types %v: %s, %v, want %s", tt.key, devo, d.Type, err, want)
			}
		}
	}
}

// Every column of every type has its name, and what no version has one by its place.
// covers: DEV-121, F-18, F-19, F-20
func TestUmbrellaColumns(t *testing.T) {
	counts := map[string]int{"dnslogs": 16, "iplogs": 7, "proxylogs": 49, "firewalllogs": 16, "intrusionlogs": 17, "dlplogs": 25, "auditlogs": 9}
	for folder, want := range counts {
		kind := umbrellaFolders[folder]
		if len(kind.columns) != want || kind.least > want {
			t.Errorf("%s has %d columns, at least %d, want %d", folder, len(kind.columns), kind.least, want)
		}
		dec := open(t, "umbrella", nil, Deps{})
		if err := begin(dec, folder+"/2026-01-05/x.csv.gz", nil); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{kind.least, want, want + 15} { // the first version, the last known one, one to come
			cells := make([]string, n)
			var names []string
			for i := range cells {
				cells[i] = fmt.Sprintf(`"v%d"`, i+1)
				if i < want {
					names = append(names, kind.columns[i])
				} else {
					names = append(names, fmt.Sprintf("column%d", i+1))
				}
				if i == slices.Index(kind.columns, "timestamp") {
					cells[i] = `"2026-01-05 17:48:41"`
				}
			}
			var d Doc
			if err := dec.Decode([]byte(strings.Join(cells, ",")), &d); err != nil || !d.HasTime || d.HasID != (kind.id != "") {
				t.Fatalf("%s of %d cells: %s, %v", folder, n, d.render(), err)
			}
			var doc map[string]string
			if err := json.Unmarshal(d.Body, &doc); err != nil || len(doc) != n {
				t.Fatalf("%s of %d cells: %s, %v", folder, n, d.Body, err)
			}
			for i, name := range names {
				if doc[name] != strings.Trim(cells[i], `"`) {
					t.Errorf("%s: %s is %q, want %s", folder, name, doc[name], cells[i])
				}
			}
			cells = cells[:kind.least-1]
			if err := dec.Decode([]byte(strings.Join(cells, ",")), &d); !errors.Is(err, errColumns) {
				t.Errorf("%s of %d cells: %v", folder, len(cells), err)
			}
		}
	}
}

// Rows of one DLP event are different events, the same row is one; intrusion and
// audit rows go by their id alone.
// covers: F-20
func TestUmbrellaIDs(t *testing.T) {
	id := func(folder string, cells ...string) messages.ID {
		t.Helper()
		dec := open(t, "umbrella", nil, Deps{})
		if err := begin(dec, folder+"/2026-01-05/x.csv.gz", nil); err != nil {
			t.Fatal(err)
		}
		row := make([]string, 17)
		copy(row, cells)
		var d Doc
		if err := dec.Decode([]byte(`"`+strings.Join(row, `","`)+`"`), &d); err != nil || !d.HasID {
			t.Fatalf("%s, %v", d.render(), err)
		}
		return d.ID
	}
	const at = "2026-01-05 17:48:41"
	once, again, other := id("dlplogs", at, "", "e-1", "a"), id("dlplogs", at, "", "e-1", "a"), id("dlplogs", at, "", "e-1", "b")
	if once != again || once == other {
		t.Error("rows of one DLP event are not told apart, or a row from itself")
	}
	if id("auditlogs", "e-1", at, "a") != id("auditlogs", "e-1", at, "b") || id("auditlogs", "e-1", at) == id("auditlogs", "e-2", at) {
		t.Error("audit rows do not go by their id")
	}
	ips := make([]string, 12)
	ips[0], ips[11] = at, "e-1"
	if id("intrusionlogs", ips...) != id("intrusionlogs", append(ips, "192.0.2.1")...) || id("intrusionlogs", ips...) == id("auditlogs", "e-1", at) {
		t.Error("intrusion rows do not go by their event id")
	}
}

// The folder says the type, also of a file with a header; the header says it where
// there is no folder.
// covers: F-18 (optional header), DEV-119
func TestUmbrellaHeaderAndFolder(t *testing.T) {
	tests := []struct{ key, header, want string }{
		{"vpnlogs/2026-01-05/x", "Timestamp,Connect Time,Identity", "type=sig.cisco.umbrella.vpn "},
		{"otherlogs/2026-01-05/x", "Timestamp,Connect Time,Identity", "type=sig.cisco.umbrella.unknown "},
		{"", "Timestamp,Connect Time,Identity", "type=sig.cisco.umbrella.unknown "},
		{"", "Timestamp,Source IP,Source Port,Destination IP,Destination Port,Categories", "type=sig.cisco.umbrella.ip "},
		{"dnslogs/2026-01-05/x", "Timestamp,Source IP,Source Port", "type=sig.cisco.umbrella.dns "},
		{"vpnlogs/2026-01-05/x", "Timestamp,Connect Time,Identity", "type=sig.cisco.umbrella.vpn "},
	}
	dec := open(t, "umbrella", nil, Deps{})
	for _, tt := range tests {
		if err := begin(dec, tt.key, []byte(tt.header)); err != nil {
			t.Fatal(err)
		}
		var d Doc
		if err := dec.Decode([]byte(`"2026-01-05 17:48:41","a","b"`), &d); err != nil || !strings.HasPrefix(d.render(), tt.want) || !d.HasTime {
			t.Errorf("%+v: %s, %v", tt, d.render(), err)
		}
	}
	if err := begin(dec, "", []byte(`timestamp,"x`)); !errors.Is(err, errNoHeader) {
		t.Errorf("a broken header: %v", err)
	}
}

// covers: F-18 (organisation of managed buckets), DEV-61
func TestUmbrellaPlace(t *testing.T) {
	tests := []struct{ key, want string }{
		{"7654321_0123456789abcdef/dnslogs/2026-01-05/x.csv.gz", "7654321"},
		{"p/7654321_0123456789abcdef/dnslogs/2026-01-05/x.csv.gz", "7654321"},
		{"org_0123456789abcdef/dnslogs/2026-01-05/x.csv.gz", ""},
		{"1_2/dnslogs/2026-01-05/x.csv.gz", ""},
		{"dnslogs/2026-01-05/x.csv.gz", ""},
		{"7654321_0123456789abcdef/x.csv.gz", ""},
		{"2026-01-05/x", ""},
		{"/2026-01-05/x", ""},
		{"", ""},
	}
	for _, tt := range tests {
		if account, region := umbrellaPlace(tt.key); account != tt.want || region != "" {
			t.Errorf("%s: %q, %q, want %q", tt.key, account, region, tt.want)
		}
	}
}

// covers: F-18, DEV-119
func TestUmbrellaSniff(t *testing.T) {
	row := `"2026-01-05 17:48:41","h","h","192.0.2.1","","Allowed","1 (A)","NOERROR","example.org.",""` + "\n"
	tests := []struct {
		name, key, head string
		want            bool
	}{
		{"folder", "p/dnslogs/2026-01-05/2026-01-05-17-40-a1b2.csv.gz", "", true},
		{"folder and row", "dnslogs/2026-01-05/x", row, true},
		{"folder, but JSON", "dnslogs/2026-01-05/x", `{"a":1}`, false},
		{"other folder", "applogs/2026-01-05/x", "", false},
		{"folder without a date", "dnslogs/x.log", "", false},
		{"row", "x", row, true},
		{"row without quotes", "x", strings.ReplaceAll(row, `"`, ""), false},
		{"row of other quoted CSV", "x", `"2026-01-05 17:48:41","a","b","c"` + "\n", false},
		{"header of other CSV", "x", "timestamp,user,action,source ip,bytes\n", false},
		{"header", "x", `"Timestamp","Most Granular Identity","Identities","Internal Ip","External Ip","Action","Query Type","Response Code","Domain","Categories"` + "\n", true},
		{"OPSWAT's lines", "x", `"log_type":"config","details":"x","type":"Account","timestamp":"2026-01-05T11:19:41.629Z"` + "\n", false},
		{"JSON text", "x", `"2026-01-05 17:48:41"`, false},
		{"nothing", "x", "", false},
		{"line feeds", "x", "\n\n", false},
		{"broken quotes", "x", `"2026-01-05 17:48:41","` + "\n", false},
		{"long cut row", "x", strings.TrimSuffix(row, "\n") + `,"` + strings.Repeat("x", 2000), false},
	}
	for _, tt := range tests {
		if got := isUmbrella(tt.key, []byte(tt.head)); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	if f := umbrellaFraming([]byte(row)); f != (framing.Framing{Kind: framing.CSV, Comma: ','}) {
		t.Errorf("a file without header: %+v", f)
	}
}

func TestUmbrellaConfigValidate(t *testing.T) {
	if err := (UmbrellaConfig{EventType: umbrellaType}).Validate(); err != nil {
		t.Error(err)
	}
	err := UmbrellaConfig{EventType: "A b", Account: strings.Repeat("x", 200)}.Validate()
	if err == nil || !strings.Contains(err.Error(), "event_type") || !strings.Contains(err.Error(), "account") {
		t.Error(err)
	}
}

// What encoding/csv reads comes out cell by cell, in order and as it was; what is
// refused makes no document; documents are JSON.
func FuzzUmbrella(f *testing.F) {
	f.Add("dnslogs/2026-01-05/x", "", []byte(`"2026-01-05 17:48:41","a ""b""","a, ""b"",c", "192.0.2.1","","Allowed","1 (A)","NOERROR","e.",""`))
	f.Add("auditlogs/2026-01-05/x", "", []byte("\"1\",\"2026-01-05 17:48:41\",\"\",\"\",\"\",\"\",\"\",\"a: b\nc: \xff\",\"\""))
	f.Add("", "timestamp,raw,Raw,a.b,,raw", []byte(`2026-01-05 17:48:41,1,,"2" , 3,x,y`))
	f.Add("", "", []byte(`"2026-01-05 20:32:46","h","192.0.2.1","0","198.51.100.7","445","x",1,2`))
	plainly := newUmbrella(UmbrellaConfig{EventType: umbrellaType, KeepRaw: true})
	lists := newUmbrella(UmbrellaConfig{EventType: umbrellaType, Lists: true})
	f.Fuzz(func(t *testing.T, key, header string, rec []byte) {
		var d, e Doc
		if begin(plainly, key, []byte(header)) != nil || plainly.Decode(rec, &d) != nil {
			return
		}
		if !json.Valid(d.Body) || !utf8.Valid(d.Body) {
			t.Fatalf("%q is no JSON", d.Body)
		}
		if begin(lists, key, []byte(header)) != nil || lists.Decode(rec, &e) != nil || !json.Valid(e.Body) {
			t.Fatalf("with lists: %q", e.Body)
		}
		r := csv.NewReader(bytes.NewReader(rec))
		row, err := r.Read()
		if err != nil || !utf8.Valid(rec) || r.InputOffset() != int64(len(rec)) || bytes.IndexByte(rec, '\r') >= 0 || bytes.HasSuffix(rec, []byte("\n")) {
			return // rows come without the line break behind them: FuzzRows
		}
		var want []string
		for _, cell := range row {
			if cell != "" {
				want = append(want, cell)
			}
		}
		got := texts(t, d.Body)
		if fmt.Sprint(got) != fmt.Sprint(append(want, string(rec))) {
			t.Fatalf("%q became %q, want %q and the row", rec, got, want)
		}
	})
}

// texts are the values of the object doc, in order; numbers as written.
func texts(t *testing.T, doc []byte) (all []string) {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	for i := 0; ; i++ {
		tok, err := dec.Token()
		if err != nil {
			return all
		}
		if _, delim := tok.(json.Delim); !delim && i%2 == 0 {
			all = append(all, fmt.Sprint(tok))
		}
	}
}

func umbrellaRows() [][]byte {
	rows := make([][]byte, 1000)
	for i := range rows {
		rows[i] = fmt.Appendf(nil, `"2026-01-05 17:%02d:%02d","host-%d","host-%d,Site A,Net A","192.0.2.%d","203.0.113.33","Blocked","1 (A)","NOERROR","www.example.net.","Chat,Photo Sharing","Roaming Computers","Roaming Computers,Sites,Networks","Chat"`,
			i/60%60, i%60, i, i, i%250)
	}
	return rows
}

func BenchmarkUmbrellaDNS(b *testing.B) {
	dec := newUmbrella(UmbrellaConfig{EventType: umbrellaType})
	if err := begin(dec, "dnslogs/2026-01-05/x.csv.gz", nil); err != nil {
		b.Fatal(err)
	}
	decodeAll(b, dec, umbrellaRows())
}

// decodeAll decodes recs over and over, and fails when it allocates for each.
func decodeAll(b *testing.B, dec Decoder, recs [][]byte) {
	b.Helper()
	size := 0
	for _, rec := range recs {
		size += len(rec)
	}
	var d Doc
	if n := testing.AllocsPerRun(10, func() {
		for _, rec := range recs {
			if err := dec.Decode(rec, &d); err != nil {
				b.Fatal(err)
			}
		}
	}); n > float64(len(recs)/100) {
		b.Errorf("%.0f allocations for %d records", n, len(recs))
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		for _, rec := range recs {
			if err := dec.Decode(rec, &d); err != nil || d.Type == "" {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.N*len(recs))/b.Elapsed().Seconds(), "records/s")
}

// covers: F-18
func TestReadmeIsSkippedByAuto(t *testing.T) {
	for _, key := range []string{"1234567_0123456789abcdef/README_FROM_UMBRELLA.txt", "dnslogs/2026-01-05/README_FROM_UMBRELLA.txt"} {
		format, _, skip := Choose(Auto, key, []byte("This bucket is ready.\n"))
		if format != "umbrella" || skip != skipCodeReadme {
			t.Errorf("%s: %s, %q", key, format, skip)
		}
	}
}

// Rows of other programs are not taken for Umbrella's: those of IP logs have two
// addresses, those of the proxy an action or a URL.
func TestRowsOfOthersAreNotUmbrella(t *testing.T) {
	for row, want := range map[string]string{
		`"2026-01-01 00:00:00","host-a","GET","200","/x","512","y"`:                                      "csv",
		`"2026-01-01 00:00:00"` + strings.Repeat(`,""`, 22):                                              "csv",
		`"2026-01-05 20:32:46","host-17","192.0.2.1","61095","2001:db8::1","0","Test"`:                   "umbrella",
		`"2026-01-05 20:32:46","a","","","","","","http://www.example.net/"` + strings.Repeat(`,""`, 15): "umbrella",
	} {
		if got, _, _ := Choose(Auto, "x/app.csv", []byte(row+"\n")); got != want {
			t.Errorf("%s: %s, want %s", row, got, want)
		}
	}
}
