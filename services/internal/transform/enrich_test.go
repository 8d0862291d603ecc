package transform

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
	dto "github.com/prometheus/client_model/go"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
)

// writeDatabase writes a database with the records for their networks.
func writeDatabase(t testing.TB, name, kind string, records map[string]mmdbtype.Map) string {
	t.Helper()
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: kind, IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	for network, record := range records {
		_, n, err := net.ParseCIDR(network)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Insert(n, record); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if _, err := tree.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return write(t, name, b.String())
}

// write puts a file into place as a whole.
func write(t testing.TB, name, content string) string {
	t.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(t.TempDir(), name)
	}
	if err := os.WriteFile(name+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
	return name
}

func english(name string) mmdbtype.Map {
	return mmdbtype.Map{"en": mmdbtype.String(name), "de": mmdbtype.String("x")}
}

func city(country, name string) mmdbtype.Map {
	return mmdbtype.Map{
		"continent":    mmdbtype.Map{"code": mmdbtype.String("EU"), "names": english("Europe")},
		"country":      mmdbtype.Map{"iso_code": mmdbtype.String(country), "names": english("Country")},
		"subdivisions": mmdbtype.Slice{mmdbtype.Map{"iso_code": mmdbtype.String("ZZ"), "names": english("Region")}},
		"city":         mmdbtype.Map{"names": english(name)},
		"location":     mmdbtype.Map{"latitude": mmdbtype.Float64(52.5), "longitude": mmdbtype.Float64(-13), "time_zone": mmdbtype.String("Europe/Berlin")},
	}
}

func geoOf(t testing.TB) *GeoIP {
	t.Helper()
	return &GeoIP{MaxSize: config.MiB, Databases: []string{
		writeDatabase(t, "city.mmdb", "GeoLite2-City", map[string]mmdbtype.Map{"192.0.2.0/24": city("DE", `Stadt "A"`), "2001:db8::/32": city("FR", "B"), "198.51.100.0/25": {}}),
		writeDatabase(t, "asn.mmdb", "GeoLite2-ASN", map[string]mmdbtype.Map{
			"192.0.2.0/25":   {"autonomous_system_number": mmdbtype.Uint32(64496), "autonomous_system_organization": mmdbtype.String("Example")},
			"203.0.113.0/24": {"autonomous_system_number": mmdbtype.Uint32(64511)},
		}),
	}}
}

func enricherOf(t testing.TB, cfg Enrich) *Enricher {
	t.Helper()
	if cfg.CheckEvery == 0 {
		cfg.CheckEvery = time.Hour
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	e, err := NewEnricher(cfg, NewFiles(nil))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestGeoIP(t *testing.T) {
	e := enricherOf(t, Enrich{Fields: []string{"client", "ip"}, GeoIP: geoOf(t)})
	const (
		berlin = `"continent_code":"EU","country_iso_code":"DE","country_name":"Country","region_iso_code":"DE-ZZ","region_name":"Region","city_name":"Stadt \"A\"","location":{"lat":52.5,"lon":-13},"timezone":"Europe/Berlin"`
		as     = `,"asn":64496,"organization":"Example"`
	)
	tests := []struct {
		name, in, want string
		outcome        Outcome
	}{
		{"both databases", `{"ip":"192.0.2.1","n":1}`, `{"ip":"192.0.2.1","n":1,"penstock":{"geo":{` + berlin + as + `}}}`, Added},
		{"one of them", `{"ip":"192.0.2.200"}`, `{"ip":"192.0.2.200","penstock":{"geo":{` + berlin + `}}}`, Added},
		{"the other one", `{"ip":"203.0.113.7"}`, `{"ip":"203.0.113.7","penstock":{"geo":{"asn":64511}}}`, Added},
		{"with a port", `{"ip":"192.0.2.200:443"}`, `{"ip":"192.0.2.200:443","penstock":{"geo":{` + berlin + `}}}`, Added},
		{"IPv4 in IPv6", `{"ip":"::ffff:203.0.113.7"}`, `{"ip":"::ffff:203.0.113.7","penstock":{"geo":{"asn":64511}}}`, Added},
		{"IPv6 with a port", `{"ip":"[2001:db8::1]:443"}`, `{"ip":"[2001:db8::1]:443","penstock":{"geo":{` + strings.NewReplacer(`Stadt \"A\"`, "B", "DE", "FR").Replace(berlin) + `}}}`, Added},
		{"the first field that is known", `{"ip":"203.0.113.7","client":"10.0.0.1"}`, `{"ip":"203.0.113.7","client":"10.0.0.1","penstock":{"geo":{"asn":64511}}}`, Added},
		{"the first of a list", `{"ip":["10.0.0.1","203.0.113.7","192.0.2.1"]}`, `{"ip":["10.0.0.1","203.0.113.7","192.0.2.1"],"penstock":{"geo":{"asn":64511}}}`, Added},
		{"into what is there", "{\"penstock\" : { \"a\":1 } , \"ip\":\"203.0.113.7\"}", "{\"penstock\" : { \"a\":1,\"geo\":{\"asn\":64511} } , \"ip\":\"203.0.113.7\"}", Added},
		{"in the place of what is there", `{"penstock":{"geo":{"x":[1]},"b":2},"ip":"203.0.113.7"}`, `{"penstock":{"geo":{"asn":64511},"b":2},"ip":"203.0.113.7"}`, Added},
		{"an escaped key", `{"\u0069p":"203.0.113.7"}`, `{"\u0069p":"203.0.113.7","penstock":{"geo":{"asn":64511}}}`, Added},
		{"space at the end", "{\"ip\":\"203.0.113.7\"\n}\n", "{\"ip\":\"203.0.113.7\",\"penstock\":{\"geo\":{\"asn\":64511}}\n}", Added},
		{"absent", `{"x":1}`, "", Absent},
		{"private", `{"ip":"10.1.2.3"}`, "", Skipped},
		{"between carriers", `{"ip":"100.64.0.1"}`, "", Skipped},
		{"local", `{"ip":"fe80::1%eth0"}`, "", Skipped},
		{"no address", `{"ip":"AWS Internal"}`, "", Skipped},
		{"no text", `{"ip":{"a":1}}`, "", Skipped},
		{"in no database", `{"ip":"8.8.8.8"}`, "", Unknown},
		{"an empty record", `{"ip":"198.51.100.1"}`, "", Unknown},
		{"something in the way", `{"penstock":"x","ip":"203.0.113.7"}`, "", Conflict},
		{"no object", `["203.0.113.7"]`, "", Absent},
		{"no JSON", `{"x":1`, "", Failed},
		{"no JSON behind the field", `{"ip":"203.0.113.7" "x":1}`, "", Failed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 { // from the database and from the cache
				out, outcome := e.Apply([]byte("#"), []byte(tt.in))
				if outcome != tt.outcome {
					t.Fatalf("outcome %v, want %v", outcome, tt.outcome)
				}
				if outcome == Added && string(out) != "#"+tt.want {
					t.Errorf("got  %s\nwant #%s", out, tt.want)
				}
			}
		})
	}
}

func TestTable(t *testing.T) {
	const csvText = "\ufeffaccount_id,owner,stage,note\n123456789012,\"Ops, \"\"EU\"\"\",prod,\n210987654321,web,,x\n,nobody,dev,y\nAbC,last,,\nÄÖ,umlaut,,\n210987654321,web2,dev,x\n"
	const jsonText = ` [{"account_id":123456789012,"owner":"ops","tags":[1, {"a":null}],"stage":null},{"owner":"web","account_id":"210987654321"}] `
	tests := []struct {
		name, file, text string
		cfg              Table
		in, want         string
		outcome          Outcome
	}{
		{"csv", "a.csv", csvText, Table{}, `{"id":"123456789012"}`, `{"id":"123456789012","penstock":{"a":{"owner":"Ops, \"EU\"","stage":"prod"}}}`, Added},
		{"a number", "a.csv", csvText, Table{}, `{"id":123456789012}`, `{"id":123456789012,"penstock":{"a":{"owner":"Ops, \"EU\"","stage":"prod"}}}`, Added},
		{"the last row", "a.csv", csvText, Table{}, `{"id":"210987654321"}`, `{"id":"210987654321","penstock":{"a":{"owner":"web2","stage":"dev","note":"x"}}}`, Added},
		{"chosen columns", "a.csv", csvText, Table{Columns: []string{"stage"}}, `{"id":"210987654321"}`, `{"id":"210987654321","penstock":{"a":{"stage":"dev"}}}`, Added},
		{"case counts", "a.csv", csvText, Table{}, `{"id":"aBc"}`, "", Unknown},
		{"case folded", "a.csv", csvText, Table{FoldCase: true}, `{"id":"aBc"}`, `{"id":"aBc","penstock":{"a":{"owner":"last"}}}`, Added},
		{"beyond ASCII", "a.csv", csvText, Table{FoldCase: true}, `{"id":"\u00e4ö"}`, `{"id":"\u00e4ö","penstock":{"a":{"owner":"umlaut"}}}`, Added},
		{"nothing", "a.csv", csvText, Table{FoldCase: true}, `{"id":""}`, "", Unknown},
		{"null", "a.csv", csvText, Table{}, `{"id":null}`, "", Skipped},
		{"json", "b.json", jsonText, Table{}, `{"id":"123456789012"}`, `{"id":"123456789012","penstock":{"b":{"owner":"ops","tags":[1, {"a":null}]}}}`, Added},
		{"json, a text", "b.json", jsonText, Table{}, `{"id":"210987654321"}`, `{"id":"210987654321","penstock":{"b":{"owner":"web"}}}`, Added},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := tt.cfg
			cfg.SetDefaults()
			cfg.File, cfg.Key = write(t, tt.file, tt.text), "account_id"
			e := enricherOf(t, Enrich{Fields: []string{"id"}, Table: &cfg})
			out, outcome := e.Apply(nil, []byte(tt.in))
			if outcome != tt.outcome || outcome == Added && string(out) != tt.want {
				t.Errorf("%v, %s\nwant %v, %s", outcome, out, tt.outcome, tt.want)
			}
		})
	}
}

func TestBadFiles(t *testing.T) {
	tests := []struct{ name, file, text, want string }{
		{"csv without the key", "a.csv", "a,b\n1,2\n", `no column "id"`},
		{"csv without a column", "a.csv", "id,b\n1,2\n", `no column "wanted"`},
		{"empty", "a.csv", "", "the first line names the columns"},
		{"a column twice", "a.csv", "id,wanted,wanted\n1,2,3\n", `the column "wanted" twice`},
		{"ragged", "a.csv", "id,wanted\n1,2\n3\n", "record on line 3: wrong number of fields"},
		{"too many rows", "a.csv", "id,wanted\n1,2\n2,2\n3,2\n4,2\n", "more than max_rows, 3"},
		{"too large", "a.csv", "id,wanted\n" + strings.Repeat("x", 2000) + ",2\n", "more than max_size, 1024"},
		{"no JSON", "a.json", `[{"id":1},`, "unexpected end of JSON input"},
		{"no list", "a.json", `{"id":1}`, "no JSON array of objects"},
		{"no object", "a.json", `[{"id":1},2]`, "element 2 is no object"},
		{"no key", "a.json", `[{"id":null}]`, `element 1 has no "id"`},
		{"no database", "a.mmdb", "id", "invalid MaxMind DB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := Enrich{Fields: []string{"x"}, CheckEvery: time.Hour, Table: &Table{Key: "id", Columns: []string{"wanted"}, MaxRows: 3, MaxSize: 1024}}
			if strings.HasSuffix(tt.file, "json") {
				cfg.Table.Columns = nil
			}
			name := write(t, tt.file, tt.text)
			if cfg.Table.File = name; strings.HasSuffix(name, "mmdb") {
				cfg.Table, cfg.GeoIP = nil, &GeoIP{Databases: []string{name}, MaxSize: 1024}
			}
			_, err := NewEnricher(cfg, NewFiles(nil))
			if err == nil || !strings.Contains(err.Error(), tt.want) || fault.CodeOf(err) != "enrich.unreadable" || fault.ClassOf(err) != fault.Stop {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
	flat := writeDatabase(t, "flat.mmdb", "Other", map[string]mmdbtype.Map{"192.0.2.0/24": {"country": mmdbtype.String("DE")}})
	if _, err := NewEnricher(Enrich{Fields: []string{"x"}, CheckEvery: time.Hour, GeoIP: &GeoIP{Databases: []string{flat}, MaxSize: config.MiB}}, NewFiles(nil)); err == nil || !strings.Contains(err.Error(), "a database of type Other is not laid out as GeoIP2") {
		t.Errorf("another layout: %v", err)
	}
	if _, err := NewEnricher(Enrich{Fields: []string{"x"}, CheckEvery: time.Hour, Table: &Table{File: t.TempDir() + "/absent.csv", Key: "id", MaxRows: 1, MaxSize: 1}}, NewFiles(nil)); fault.CodeOf(err) != "enrich.unreadable" {
		t.Errorf("an absent file: %v", err)
	}
}

// A small file cannot become much in memory, nor in a document.
func TestTablesThatGrow(t *testing.T) {
	load := func(text string, size config.Bytes) (*Enricher, error) {
		cfg := Enrich{Fields: []string{"x"}, Target: "t", CheckEvery: time.Hour, Table: &Table{File: write(t, "a.csv", text), Key: "id", MaxRows: 10_000, MaxSize: size}}
		return NewEnricher(cfg, NewFiles(nil))
	}
	var rows strings.Builder
	fmt.Fprintf(&rows, "id,%s\n", strings.Repeat("n", 4000))
	for i := range 1000 {
		fmt.Fprintf(&rows, "%d,v\n", i)
	}
	for text, want := range map[string]string{
		rows.String(): "more than 8 times max_size in memory",
		"id,a\nkey," + strings.Repeat("v", 70_000) + "\n": `the row of "key" takes 70008 bytes as JSON, more than 65536`,
	} {
		if _, err := load(text, 100_000); err == nil || !strings.Contains(err.Error(), want) || fault.CodeOf(err) != "enrich.unreadable" {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	e, err := load("id,,a,\nkey,1,2,3\n", 100)
	if err != nil {
		t.Fatal(err)
	}
	if out, result := e.Apply(nil, []byte(`{"x":"key"}`)); result != Added || string(out) != `{"x":"key","t":{"a":"2"}}` {
		t.Errorf("columns without a name: %s, %s", result, out)
	}
}

// A record beyond reason is not added.
func TestRecordThatGrows(t *testing.T) {
	name := writeDatabase(t, "asn.mmdb", "GeoLite2-ASN", map[string]mmdbtype.Map{
		"192.0.2.0/24":   {"autonomous_system_organization": mmdbtype.String(strings.Repeat("x", 10_000))},
		"203.0.113.0/24": {"autonomous_system_organization": mmdbtype.String("Example")},
	})
	e := enricherOf(t, Enrich{Fields: []string{"a"}, GeoIP: &GeoIP{Databases: []string{name}, MaxSize: config.MiB}})
	for addr, want := range map[string]Outcome{"192.0.2.1": Unknown, "203.0.113.1": Added} {
		if _, got := e.Apply(nil, []byte(`{"a":"`+addr+`"}`)); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

// A tree without data, each of whose nodes leads to the next by both ways, has 2^128
// paths: looking for the first record takes all of them.
func TestDatabaseThatLeadsNowhere(t *testing.T) {
	const levels = 128
	tree := func() []byte {
		var b []byte
		for i := range levels {
			to := byte(i + 1)
			b = append(b, 0, 0, to, 0, 0, to) // the last leads to node_count: no data
		}
		b = append(b, make([]byte, 16)...)
		b = append(b, "\xab\xcd\xefMaxMind.com"...)
		text := func(s string) { b = append(append(b, 0x40|byte(len(s))), s...) }
		b = append(b, 0xe9)
		text("node_count")
		b = append(b, 0xc1, levels)
		text("record_size")
		b = append(b, 0xa1, 24)
		text("ip_version")
		b = append(b, 0xa1, 6)
		text("database_type")
		text("Test")
		text("languages")
		b = append(b, 0x00, 0x04)
		text("binary_format_major_version")
		b = append(b, 0xa1, 2)
		text("binary_format_minor_version")
		b = append(b, 0xa0)
		text("build_epoch")
		b = append(b, 0x01, 0x02, 1)
		text("description")
		b = append(b, 0xe0)
		return b
	}
	done := make(chan error, 1)
	go func() {
		_, _, err := readDatabase(tree())
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it is still being read")
	}
}

// A changed file is read again; a bad one leaves the one before in use.
func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		files := NewFiles(slog.New(slog.NewTextHandler(&log, nil)))
		name := write(t, "t.csv", "id,v\n1,old\n")
		cfg := Enrich{Fields: []string{"id"}, Target: "got", CheckEvery: 10 * time.Second, Table: &Table{File: name, Key: "id", MaxRows: 10, MaxSize: 1000}}
		e, err := NewEnricher(cfg, files)
		if err != nil {
			t.Fatal(err)
		}
		twin, err := NewEnricher(cfg, files)
		if err != nil {
			t.Fatal(err)
		}
		if e.know.(*lookup).rows != twin.know.(*lookup).rows {
			t.Error("two rules that name the same file have read it twice")
		}
		check := func(when, want string) {
			t.Helper()
			out, _ := e.Apply(nil, []byte(`{"id":1}`))
			if string(out) != `{"id":1,"got":{"v":"`+want+`"}}` {
				t.Errorf("%s: %s, want %s", when, out, want)
			}
		}
		failed := func() float64 {
			var m dto.Metric
			if err := fileLoads.WithLabelValues(name, "failed").Write(&m); err != nil {
				t.Fatal(err)
			}
			return m.GetCounter().GetValue()
		}
		check("at first", "old")
		write(t, name, "id,v\n1,new and longer\n")
		check("before the next look", "old")
		time.Sleep(11 * time.Second)
		check("after it", "new and longer")
		write(t, name, "id,v\n1")
		time.Sleep(11 * time.Second)
		check("with a bad file", "new and longer")
		time.Sleep(11 * time.Second)
		check("and later", "new and longer")
		if n := strings.Count(log.String(), "file for enrichment is bad"); n != 1 || failed() != 1 {
			t.Errorf("reported %d times, counted %v:\n%s", n, failed(), log.String())
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Second)
		check("without the file", "new and longer")
		time.Sleep(11 * time.Second)
		check("and later", "new and longer")
		if failed() != 2 {
			t.Errorf("counted %v", failed())
		}
		write(t, name, "id,v\n1,back\n")
		time.Sleep(11 * time.Second)
		check("when it is back", "back")
	})
}

func TestGeoReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		record := func(n uint32) map[string]mmdbtype.Map {
			return map[string]mmdbtype.Map{"192.0.2.0/24": {"autonomous_system_number": mmdbtype.Uint32(n)}}
		}
		name := writeDatabase(t, "a.mmdb", "GeoLite2-ASN", record(1))
		e := enricherOf(t, Enrich{Fields: []string{"ip"}, Target: "as", CheckEvery: 10 * time.Second, GeoIP: &GeoIP{Databases: []string{name}, MaxSize: config.MiB}})
		for _, want := range []uint32{1, 2} {
			out, _ := e.Apply(nil, []byte(`{"ip":"192.0.2.1"}`))
			if string(out) != fmt.Sprintf(`{"ip":"192.0.2.1","as":{"asn":%d}}`, want) {
				t.Errorf("%s, want %d", out, want)
			}
			writeDatabase(t, name, "GeoLite2-ASN", record(2))
			time.Sleep(11 * time.Second)
		}
	})
}

func TestEnrichConfig(t *testing.T) {
	geo := &GeoIP{Databases: []string{"a.mmdb"}, MaxSize: 1}
	table := &Table{File: "a.csv", Key: "k", MaxSize: 1, MaxRows: 1}
	tests := []struct {
		name, want string
		cfg        Enrich
	}{
		{"no field", "fields: not acceptable; fix: name at least one", Enrich{GeoIP: geo}},
		{"an empty word", "fields[1]: a key between two dots", Enrich{Fields: []string{"a", "a."}, GeoIP: geo}},
		{"a bad target", "target: a key between two dots", Enrich{Fields: []string{"a"}, Target: ".a", GeoIP: geo}},
		{"neither", "use exactly one of geoip and table", Enrich{Fields: []string{"a"}}},
		{"both", "use exactly one of geoip and table", Enrich{Fields: []string{"a"}, GeoIP: geo, Table: table}},
		{"no database", "geoip.databases: not acceptable; fix: name 1 to 4", Enrich{Fields: []string{"a"}, GeoIP: &GeoIP{MaxSize: 1}}},
		{"another file", "table.file: not acceptable; fix: name a file that ends in .csv or .json", Enrich{Fields: []string{"a"}, Table: &Table{File: "a.txt", Key: "k", MaxSize: 1, MaxRows: 1}}},
		{"no key", "table.key: not acceptable; fix: name the column", Enrich{Fields: []string{"a"}, Table: &Table{File: "a.csv", MaxSize: 1, MaxRows: 1}}},
		{"the key as a column", "table.columns[0]: not acceptable; fix: name a column other", Enrich{Fields: []string{"a"}, Table: &Table{File: "a.csv", Key: "k", Columns: []string{"k"}, MaxSize: 1, MaxRows: 1}}},
		{"too often", "check_every: not acceptable; fix: use 1s", Enrich{Fields: []string{"a"}, GeoIP: geo, CheckEvery: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.cfg.CheckEvery == 0 {
				tt.cfg.CheckEvery = time.Minute
			}
			if err := tt.cfg.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

// FuzzEnrich: what is added is there, and all else is as it was.
func FuzzEnrich(f *testing.F) {
	f.Add([]byte(`{"a":{"id":1},"x":[1,2]}`))
	f.Add([]byte(`{"a":[{"id":"1"},{"id":2}],"in":{"got":null,"b":{}}}`))
	f.Add([]byte("{ \"in\" : 7, \"a\":{\"\\u0069d\":true}, \"z\":\"" + strings.Repeat("long ", 3000) + "\"}"))
	e := enricherOf(f, Enrich{Fields: []string{"a.id"}, Target: "in.got", Table: &Table{File: write(f, "a.csv", "id,v\n1,x\n2,x\ntrue,x\n"), Key: "id", MaxSize: 1000, MaxRows: 10}})
	f.Fuzz(func(t *testing.T, doc []byte) {
		out, outcome := e.Apply(nil, doc)
		if !json.Valid(doc) || outcome != Added {
			return
		}
		var want, got map[string]any
		if json.Unmarshal(doc, &want) != nil || json.Unmarshal(out, &got) != nil {
			t.Fatalf("%q became %q", doc, out)
		}
		in, _ := want["in"].(map[string]any)
		if in == nil {
			in = map[string]any{}
			want["in"] = in
		}
		in["got"] = map[string]any{"v": "x"}
		a, errA := json.Marshal(want)
		b, errB := json.Marshal(got)
		if errA != nil || errB != nil || !bytes.Equal(a, b) && !bytes.Contains(doc, []byte(`\`)) && bytes.Count(doc, []byte(`"in"`)) <= 1 && bytes.Count(doc, []byte(`"got"`)) <= 1 {
			t.Fatalf("%q became %q", doc, out)
		}
	})
}

func BenchmarkEnrich(b *testing.B) {
	doc := fmt.Appendf(nil, `{"n":1,"eventName":"GetUser","userIdentity":{"type":"IAMUser","userName":"user-1","accountId":"123456789012"},"sourceIPAddress":"192.0.2.1","requestParameters":{"key":%q},"readOnly":true}`, strings.Repeat("k", 900))
	for name, cfg := range map[string]Enrich{
		"geoip": {Fields: []string{"sourceIPAddress"}, GeoIP: geoOf(b)},
		"table": {Fields: []string{"userIdentity.accountId"}, Table: &Table{File: write(b, "a.csv", "id,owner\n123456789012,ops\n"), Key: "id", FoldCase: true, MaxRows: 10, MaxSize: 1000}},
	} {
		b.Run(name, func(b *testing.B) {
			e := enricherOf(b, cfg)
			var out []byte
			b.SetBytes(int64(len(doc)))
			b.ReportAllocs()
			for b.Loop() {
				var outcome Outcome
				if out, outcome = e.Apply(out[:0], doc); outcome != Added {
					b.Fatal(outcome)
				}
			}
		})
	}
}
