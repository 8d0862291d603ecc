package fetch

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"
	"github.com/parquet-go/parquet-go/deprecated"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/framing"
)

// flow is a row as VPC flow logs have them.
type flow struct {
	Version   int32   `parquet:"version"`
	Account   string  `parquet:"account_id,dict"`
	SrcAddr   *string `parquet:"srcaddr,optional"`
	SrcPort   *int32  `parquet:"srcport,optional"`
	Bytes     int64   `parquet:"bytes,delta"`
	Start     int64   `parquet:"start"`
	LogStatus string  `parquet:"log_status,dict"`
}

func flows(n int) []flow {
	rows := make([]flow, n)
	for i := range rows {
		addr, port := fmt.Sprintf("192.0.2.%d", i%250), int32(i%65536)
		rows[i] = flow{Version: 2, Account: "123456789012", Bytes: 1<<53 + int64(i), Start: 1767600000 + int64(i), LogStatus: "NODATA"}
		if i%3 > 0 {
			rows[i].SrcAddr, rows[i].SrcPort, rows[i].LogStatus = &addr, &port, "OK"
		}
	}
	return rows
}

func (f *flow) json() string {
	var b strings.Builder
	fmt.Fprintf(&b, `{"version":%d,"account_id":%q`, f.Version, f.Account)
	if f.SrcAddr != nil {
		fmt.Fprintf(&b, `,"srcaddr":%q,"srcport":%d`, *f.SrcAddr, *f.SrcPort)
	}
	fmt.Fprintf(&b, `,"bytes":%d,"start":%d,"log_status":%q}`, f.Bytes, f.Start, f.LogStatus)
	return b.String()
}

func parquetOf[T any](tb testing.TB, rows []T, perGroup int, options ...parquet.WriterOption) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := parquet.NewGenericWriter[T](&b, options...)
	for part := range slices.Chunk(rows, max(perGroup, 1)) {
		if _, err := w.Write(part); err != nil {
			tb.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// Every codec, page version and size of file gives the same records, row by row
// and in order, with ordinals that do not depend on the attempt.
// covers: F-21 (parquet), F-12 (parquet), DEV-56
func TestParquet(t *testing.T) {
	rows := flows(5000)
	s := newStage(t, func(c *Config) { c.MaxRatio = 1000 })
	for _, codec := range []compress.Codec{&parquet.Uncompressed, &parquet.Snappy, &parquet.Gzip, &parquet.Zstd} {
		for version := 1; version <= 2; version++ {
			t.Run(fmt.Sprintf("%s v%d", codec, version), func(t *testing.T) {
				body := parquetOf(t, rows, 1700, parquet.Compression(codec), parquet.DataPageVersion(version), parquet.PageBufferSize(4096))
				key := fmt.Sprintf("flows/%s/%d.log.parquet", codec, version)
				put(t, s.cloud, key, cloud.Object{Body: body})
				got := s.handle(t, notice("trailjson", key))
				if got.err != nil || len(got.refused) > 0 {
					t.Fatal(got.err, got.refused)
				}
				if len(got.records) != len(rows) || got.fetched.GetEnd() != messages.Fetched_END_COMPLETE {
					t.Fatalf("%d records, %v", len(got.records), got.fetched)
				}
				for i := range rows {
					if got.records[i] != rows[i].json() || got.places[i] != uint64(i) {
						t.Fatalf("record %d is %s, want %s", got.places[i], got.records[i], rows[i].json())
					}
				}
				again := s.handle(t, notice("trailjson", key))
				if !slices.Equal(again.ids, got.ids) || !slices.Equal(again.frames, got.frames) {
					t.Error("another attempt cuts other frames")
				}
			})
		}
	}
}

// A file that is not small is read in ranges.
func TestParquetInRanges(t *testing.T) {
	rows := flows(150_000)
	body := parquetOf(t, rows, 40_000, parquet.Compression(&parquet.Uncompressed), parquet.PageBufferSize(64<<10))
	if len(body) < 2*parquetWhole {
		t.Fatalf("the file has only %d bytes", len(body))
	}
	s := newStage(t, nil)
	put(t, s.cloud, "flows/large.parquet", cloud.Object{Body: body})
	in := notice("trailjson", "flows/large.parquet")
	in.Value.Size = int64(len(body))
	got := s.handle(t, in)
	if got.err != nil || len(got.records) != len(rows) {
		t.Fatalf("%d records (%v)", len(got.records), got.err)
	}
	for i := range rows {
		if got.records[i] != rows[i].json() {
			t.Fatalf("record %d is %s, want %s", i, got.records[i], rows[i].json())
		}
	}
}

type nested struct {
	Name  string            `parquet:"name"`
	Tags  map[string]string `parquet:"tags,optional"`
	List  []int32           `parquet:"list,list"`
	Plain []string          `parquet:"plain"`
	Deep  []struct {
		A *int64   `parquet:"a,optional"`
		B []string `parquet:"b,list"`
	} `parquet:"deep"`
	Inner *struct {
		X *bool   `parquet:"x,optional"`
		Y float64 `parquet:"y"`
	} `parquet:"inner,optional"`
}

type types struct {
	Bool    bool             `parquet:"bool"`
	Int     int64            `parquet:"int"`
	Uint    uint64           `parquet:"uint"`
	Small   uint32           `parquet:"small"`
	Float   float32          `parquet:"float"`
	Double  float64          `parquet:"double"`
	Text    string           `parquet:"text"`
	Bytes   []byte           `parquet:"bytes"`
	UUID    [16]byte         `parquet:"uuid,uuid"`
	Day     int32            `parquet:"day,date"`
	Millis  time.Time        `parquet:"millis,timestamp(millisecond)"`
	Micros  int64            `parquet:"micros,timestamp(microsecond)"`
	Nanos   int64            `parquet:"nanos,timestamp(nanosecond)"`
	Old     deprecated.Int96 `parquet:"old"`
	Price   int64            `parquet:"price,decimal(2:18)"`
	JSON    string           `parquet:"json,json"`
	Enum    string           `parquet:"enum,enum"`
	TimeOf  int64            `parquet:"time_of,time(microsecond)"`
	Missing *int64           `parquet:"missing,optional"`
}

func TestParquetValues(t *testing.T) {
	s := newStage(t, nil)
	yes, n := true, int64(7)
	deep := nested{Name: "a\"b", Tags: map[string]string{"k": "v\n"}, List: []int32{1, 2}, Plain: []string{"x"}}
	deep.Deep = append(deep.Deep, struct {
		A *int64   `parquet:"a,optional"`
		B []string `parquet:"b,list"`
	}{A: &n, B: []string{"p", "q"}}, struct {
		A *int64   `parquet:"a,optional"`
		B []string `parquet:"b,list"`
	}{})
	deep.Inner = &struct {
		X *bool   `parquet:"x,optional"`
		Y float64 `parquet:"y"`
	}{&yes, 0.5}
	tests := []struct {
		name string
		body []byte
		want []string
	}{
		{"nested", parquetOf(t, []nested{deep, {Name: "empty"}, deep}, 2), []string{
			`{"name":"a\"b","tags":{"k":"v\n"},"list":[1,2],"plain":["x"],"deep":[{"a":7,"b":["p","q"]},{"b":[]}],"inner":{"x":true,"y":0.5}}`,
			`{"name":"empty","list":[],"plain":[],"deep":[]}`,
			`{"name":"a\"b","tags":{"k":"v\n"},"list":[1,2],"plain":["x"],"deep":[{"a":7,"b":["p","q"]},{"b":[]}],"inner":{"x":true,"y":0.5}}`,
		}},
		{"types", parquetOf(t, []types{{
			Bool: true, Int: math.MinInt64, Uint: math.MaxUint64, Small: math.MaxUint32, Float: 0.1, Double: math.Inf(-1),
			Text: "é\x01", Bytes: []byte{0xff, 0}, UUID: [16]byte{0: 1, 15: 2}, Day: 20458,
			Millis: time.Date(2026, 1, 5, 7, 44, 54, 123e6, time.UTC), Micros: 1767599094123456, Nanos: -1,
			Old: deprecated.Int96{0, 0, 2440589}, Price: -5, JSON: `{"a":[1]}`, Enum: "E", TimeOf: 3600e6 + 1,
		}}, 1), []string{
			`{"bool":true,"int":-9223372036854775808,"uint":18446744073709551615,"small":4294967295,"float":0.1,"double":"-Inf",` +
				`"text":"é\u0001","bytes":"/wA=","uuid":"01000000-0000-0000-0000-000000000002","day":"2026-01-05",` +
				`"millis":"2026-01-05T07:44:54.123Z","micros":"2026-01-05T07:44:54.123456Z","nanos":"1969-12-31T23:59:59.999999999Z",` +
				`"old":"1970-01-02T00:00:00Z","price":-0.05,"json":{"a":[1]},"enum":"E","time_of":"01:00:00.000001"}`,
		}},
		{"no rows", parquetOf(t, []flow{}, 1), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			put(t, s.cloud, "p/"+tt.name, cloud.Object{Body: tt.body})
			got := s.handle(t, notice("trailjson", "p/"+tt.name))
			if got.err != nil || len(got.refused) > 0 {
				t.Fatal(got.err, got.refused)
			}
			if !slices.Equal(got.records, tt.want) {
				t.Errorf("got  %s\nwant %s", got.records, tt.want)
			}
			for _, r := range got.records {
				if !json.Valid([]byte(r)) {
					t.Errorf("%s is no JSON", r)
				}
			}
		})
	}
}

// The format is chosen by the names of the columns.
func TestParquetChoosesByColumns(t *testing.T) {
	s := newStage(t, nil)
	var head string
	src := s.sources["trailjson"]
	src.Choose = func(_, key string, b []byte) (string, framing.Framing, string) {
		if head = string(b); strings.Contains(key, "skip") && b != nil {
			return "x", framing.Framing{}, "x.skipped"
		}
		return "x", framing.Framing{}, ""
	}
	body := parquetOf(t, flows(1), 1)
	put(t, s.cloud, "k.parquet", cloud.Object{Body: body})
	put(t, s.cloud, "skip.parquet", cloud.Object{Body: body})
	if got := s.handle(t, notice("trailjson", "k.parquet")); got.err != nil || len(got.records) != 1 {
		t.Fatal(got.err, got.records)
	}
	if want := `{"version":null,"account_id":null,"srcaddr":null,"srcport":null,"bytes":null,"start":null,"log_status":null}`; head != want {
		t.Errorf("the choice saw %s", head)
	}
	if got := s.handle(t, notice("trailjson", "skip.parquet")); got.err != nil || len(got.records) != 0 || got.fetched.GetCode() != "x.skipped" {
		t.Error(got.err, got.fetched)
	}
}

// covers: F-0 (a bad record never fails its object), issue: truncated parquet
func TestParquetBad(t *testing.T) {
	rows := flows(3000)
	whole := parquetOf(t, rows, 1000, parquet.Compression(&parquet.Snappy), parquet.PageBufferSize(2048))
	damaged := bytes.Clone(whole)
	at := len(damaged) * 2 / 3
	copy(damaged[at:], bytes.Repeat([]byte{0xff}, 400))
	wrongSize := bytes.Clone(whole)
	copy(wrongSize[len(wrongSize)-8:], "\xff\xff\xff\x7f")
	encrypted := append(bytes.Clone(whole[:len(whole)-4]), "PARE"...)
	tests := []struct {
		name, code string
		body       []byte
		records    int // at least
		all        bool
	}{
		{"truncated", "fetch.truncated", whole[:len(whole)-100], 0, false},
		{"only its beginning", "fetch.truncated", whole[:600], 0, false},
		{"damaged in the middle", "fetch.corrupt", damaged, 1000, false},
		{"footer larger than the file", "fetch.corrupt", wrongSize, 0, false},
		{"footer encrypted", "fetch.parquet_unsupported", encrypted, 0, false},
		{"within gzip", "fetch.parquet_unsupported", pack(t, string(whole)), 0, false},
		{"brotli inside", "fetch.parquet_unsupported", parquetOf(t, rows, 1000, parquet.Compression(&parquet.Brotli)), 0, false},
		{"text that begins like one", "", []byte("PAR1 is no parquet file\n"), 0, true},
	}
	s := newStage(t, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			put(t, s.cloud, "bad/"+tt.name, cloud.Object{Body: tt.body})
			in := notice("trailjson", "bad/"+tt.name)
			in.Attempt = 9
			got := s.handle(t, in)
			if got.err != nil || len(got.records) < tt.records {
				t.Fatalf("%d records, %v", len(got.records), got.err)
			}
			for i, r := range got.records {
				if r != rows[i].json() {
					t.Fatalf("record %d is %s", i, r)
				}
			}
			if !tt.all && (len(got.refused) != 1 || got.refused[0].GetCode() != tt.code || got.refused[0].GetHolds() != messages.Quarantine_HOLDS_NOTICE) {
				t.Errorf("refused %v, want %s", got.refused, tt.code)
			}
		})
	}
}

// A row above the limit goes alone, whatever it is made of.
func TestParquetLargeRow(t *testing.T) {
	type row struct {
		ID   int64    `parquet:"id"`
		Text string   `parquet:"text"`
		List []string `parquet:"list,list"`
		Last int64    `parquet:"last"`
	}
	huge := row{ID: 2, Text: "x", List: slices.Repeat([]string{"0123456789"}, 9000), Last: 2}
	long := row{ID: 4, Text: strings.Repeat("y", 50<<10), Last: 4}
	s := newStage(t, nil) // records of 20 KiB
	put(t, s.cloud, "rows", cloud.Object{Body: parquetOf(t, []row{{ID: 1, Last: 1}, huge, {ID: 3, Last: 3}, long, {ID: 5, Last: 5}}, 2)})
	got := s.handle(t, notice("trailjson", "rows"))
	want := []string{`{"id":1,"text":"","list":[],"last":1}`, `{"id":3,"text":"","list":[],"last":3}`, `{"id":5,"text":"","list":[],"last":5}`}
	if got.err != nil || !slices.Equal(got.records, want) || !slices.Equal(got.places, []uint64{0, 2, 4}) {
		t.Fatalf("%v %s at %v", got.err, got.records, got.places)
	}
	if len(got.refused) != 2 || got.refused[0].GetCode() != framing.ErrTooLarge.Code || got.refused[1].GetRecord() != 3 {
		t.Errorf("refused %v", got.refused)
	}
}

// A refused or broken range is asked for again, and an object that changes in the
// middle is not mixed with another.
func TestParquetRangesResume(t *testing.T) {
	rows := flows(100_000)
	body := parquetOf(t, rows, 50_000, parquet.Compression(&parquet.Uncompressed))
	s := newStage(t, nil)
	var n atomic.Int32
	put(t, s.cloud, "k", cloud.Object{Body: body})
	s.cloud.SetFault(func(op, _, _ string) cloud.Fault {
		switch n.Add(1) {
		case 4:
			return cloud.Fault{Status: 503}
		case 6:
			return cloud.Fault{Cut: 1000}
		}
		return cloud.Fault{}
	})
	got := s.handle(t, notice("trailjson", "k"))
	if got.err != nil || len(got.records) != len(rows) {
		t.Fatalf("%d records, %v", len(got.records), got.err)
	}
	n.Store(0)
	s.cloud.SetFault(func(op, _, _ string) cloud.Fault {
		if n.Add(1) == 5 {
			put(t, s.cloud, "k", cloud.Object{Body: append(bytes.Clone(body), 0)})
		}
		return cloud.Fault{}
	})
	if got := s.handle(t, notice("trailjson", "k")); fault.CodeOf(got.err) != "fetch.connection_broken" || len(got.refused) > 0 {
		t.Errorf("an object that changed: %v, %v", got.err, got.refused)
	}
}

// What a footer or a page claims costs nothing before it is checked.
func TestThriftIsBounded(t *testing.T) {
	tests := map[string][]byte{
		"list of 2^31 structures": {0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07},
		"text of 2^31 bytes":      {0x18, 0xff, 0xff, 0xff, 0xff, 0x07},
		"deep":                    bytes.Repeat([]byte{0x1c}, 100_000),
		"deep lists":              bytes.Repeat([]byte{0x19, 0x19}, 100_000),
		"endless number":          bytes.Repeat([]byte{0x16, 0xff}, 40),
		"unknown type":            {0x1f, 0},
		"cut":                     {0x15},
	}
	for name, data := range tests {
		th := thrift{data: data}
		if err := th.structure(nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestCheckRuns(t *testing.T) {
	tests := []struct {
		name   string
		data   []byte
		width  int
		values int64
		ok     bool
	}{
		{"one run", []byte{20, 1}, 1, 10, true},
		{"run of 2^31", []byte{0xfe, 0xff, 0xff, 0xff, 0x0f, 1}, 1, 10, false},
		{"many runs", bytes.Repeat([]byte{0xfe, 0xff, 0x3f, 1}, 1000), 1, 1 << 20, false},
		{"bits", []byte{3, 0xff, 0xff}, 8, 8, true},
		{"bits of 2^61+1 groups", append(binary.AppendUvarint(nil, (1<<61+1)<<1|1), 0xff), 8, 8, false},
		{"too wide", []byte{3}, 33, 8, false},
		{"nothing", nil, 0, 0, true},
		{"malformed", bytes.Repeat([]byte{0xff}, 12), 1, 8, false},
	}
	for _, tt := range tests {
		if err := checkRuns(tt.data, tt.width, tt.values); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// A page that gets larger than it says is refused before it has grown.
func TestUnpackIsBounded(t *testing.T) {
	const size = 64 << 20
	zeros := make([]byte, size)
	var p pageChecker
	for _, codec := range []compress.Codec{&parquet.Uncompressed, &parquet.Snappy, &parquet.Gzip, &parquet.Zstd} {
		packed, err := codec.Encode(nil, zeros)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.unpack(codec.CompressionCodec(), packed, 1000); err == nil {
			t.Errorf("%s: no error", codec)
		}
		if len(p.buf) > 1<<20 {
			t.Errorf("%s: a buffer of %d bytes", codec, len(p.buf))
		}
		small, err := codec.Encode(nil, zeros[:1000])
		if err != nil {
			t.Fatal(err)
		}
		if got, err := p.unpack(codec.CompressionCodec(), small, 1000); err != nil || !bytes.Equal(got, zeros[:1000]) {
			t.Errorf("%s: %d bytes, %v", codec, len(got), err)
		}
	}
}

// Whatever the bytes, reading ends, in bounded memory, and rows are JSON.
func FuzzParquet(f *testing.F) {
	for version := 1; version <= 2; version++ {
		f.Add(parquetOf(f, flows(20), 7, parquet.DataPageVersion(version), parquet.Compression(&parquet.Snappy)), uint16(0), byte(0))
	}
	f.Add(parquetOf(f, []nested{{Name: "a", Tags: map[string]string{"k": "v"}, List: []int32{1}}, {}}, 1, parquet.Compression(&parquet.Gzip)), uint16(90), byte(7))
	f.Add(parquetOf(f, []types{{Text: "x"}}, 1), uint16(20), byte(0xff))
	cfg := Defaults()
	f.Fuzz(func(t *testing.T, data []byte, at uint16, flip byte) {
		if data = bytes.Clone(data); len(data) > 0 {
			data[int(at)%len(data)] ^= flip
		}
		o := &object{ctx: t.Context(), size: int64(len(data)), body: io.NopCloser(bytes.NewReader(data))}
		if len(data) > parquetWhole {
			return
		}
		j := &job{f: &Fetch{cfg: cfg}, obj: o, origin: &messages.Origin{}, holdsLarge: true}
		r := newReader()
		if err := r.dec.reset(o, cfg, func() error { return nil }); err != nil {
			return
		}
		r.peek()
		p, err := j.openParquet(t.Context(), r)
		if err != nil {
			return
		}
		defer p.close()
		for range 10_000 {
			row, err := p.next()
			if err != nil {
				return
			}
			if row != nil && !json.Valid(row) {
				t.Fatalf("%q is no JSON", row)
			}
		}
	})
}

func BenchmarkParquet(b *testing.B) {
	for _, codec := range []compress.Codec{&parquet.Snappy, &parquet.Gzip} {
		b.Run(codec.String(), func(b *testing.B) {
			rows := flows(50_000)
			body := parquetOf(b, rows, 25_000, parquet.Compression(codec))
			cfg := Defaults()
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				o := &object{ctx: b.Context(), size: int64(len(body)), body: io.NopCloser(bytes.NewReader(body))}
				j := &job{f: &Fetch{cfg: cfg}, obj: o, origin: &messages.Origin{}, holdsLarge: true}
				r := newReader()
				if err := r.dec.reset(o, cfg, func() error { return nil }); err != nil {
					b.Fatal(err)
				}
				p, err := j.openParquet(b.Context(), r)
				if err != nil {
					b.Fatal(err)
				}
				for n = 0; ; n++ {
					if _, err := p.next(); err == io.EOF {
						break
					} else if err != nil {
						b.Fatal(err)
					}
				}
				if p.close(); n != len(rows) {
					b.Fatalf("%d rows", n)
				}
			}
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
