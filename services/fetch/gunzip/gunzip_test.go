package gunzip

import (
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	other "github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/services/demo/feed"
)

// decompress reads the member at the beginning of src by way of a buffer of size
// bytes.
func decompress(z *Reader, src *bufio.Reader, size int) (all []byte, err error) {
	if err := z.Reset(src); err != nil {
		return nil, err
	}
	buf, end := make([]byte, size), 0
	for {
		if len(buf)-end < MinRoom {
			copy(buf, buf[end-History:end])
			end = History
		}
		n, err := z.Fill(buf, end)
		all = append(all, buf[end:end+n]...)
		end += n
		if err != nil {
			return all, err
		}
	}
}

// pack compresses with the standard library, at a level of it.
func pack(tb testing.TB, raw []byte, level int) []byte {
	tb.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err == nil {
		_, err = w.Write(raw)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// packOtherwise compresses with the other library, whose streams are made otherwise.
func packOtherwise(tb testing.TB, raw []byte, level int) []byte {
	tb.Helper()
	var b bytes.Buffer
	w, err := other.NewWriterLevel(&b, level)
	if err == nil {
		_, err = w.Write(raw)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// contents are raw bytes of many kinds.
func contents(tb testing.TB) map[string][]byte {
	tb.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	var trail bytes.Buffer
	if err := feed.CloudTrail(feed.Options{Seed: 3, Objects: 1, RecordsPerObject: feed.Fixed(200)}).WriteJSON(&trail, 0); err != nil {
		tb.Fatal(err)
	}
	noise := make([]byte, 100_000)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	skewed := make([]byte, 100_000) // long codes for what is rare
	for i := range skewed {
		skewed[i] = byte(int(rnd.ExpFloat64() * 12))
	}
	var far bytes.Buffer // matches as far back as there may be
	for far.Len() < 200_000 {
		far.Write(noise[:History-1-far.Len()%3])
		far.WriteString(strings.Repeat("x", far.Len()%7))
	}
	var near bytes.Buffer // matches within what they write
	for n := range 3000 {
		near.WriteString(strings.Repeat(fmt.Sprintf("%04d", n)[:1+n%4], 1+n%400))
	}
	return map[string][]byte{
		"nothing": nil, "a byte": []byte("x"), "text": []byte("one record\n"),
		"trail": trail.Bytes(), "noise": noise, "skewed": skewed, "far": far.Bytes(), "near": near.Bytes(), "zeros": make([]byte, 300_000),
	}
}

// What others compress comes out as it was, whatever the sizes of buffers and reads.
func TestDecompress(t *testing.T) {
	var z Reader
	for name, raw := range contents(t) {
		for _, level := range []int{gzip.HuffmanOnly, gzip.NoCompression, 1, 4, 6, 9} {
			for _, packed := range [][]byte{pack(t, raw, level), packOtherwise(t, raw, level)} {
				for _, size := range []int{History + MinRoom, 3*History + 17} {
					src := bufio.NewReaderSize(bytes.NewReader(append(packed, "behind"...)), size)
					got, err := decompress(&z, src, size)
					if err != io.EOF || !bytes.Equal(got, raw) {
						t.Fatalf("%s, level %d, buffer of %d: %d bytes of %d, %v", name, level, size, len(got), len(raw), err)
					}
					if rest, err := io.ReadAll(src); string(rest) != "behind" || err != nil {
						t.Fatalf("%s, level %d, buffer of %d: %d bytes are left, %v", name, level, size, len(rest), err)
					}
				}
			}
		}
	}
}

// Where the reads of the input end makes no difference.
func TestSmallReads(t *testing.T) {
	var z Reader
	for name, raw := range contents(t) {
		packed := packOtherwise(t, raw, 6)
		for reads, in := range map[string]io.Reader{
			"bytes": iotest.OneByteReader(bytes.NewReader(packed)), "halves": iotest.HalfReader(bytes.NewReader(packed)),
			"errors with data": iotest.DataErrReader(bytes.NewReader(packed)),
		} {
			got, err := decompress(&z, bufio.NewReaderSize(in, 16), 2*History)
			if err != io.EOF || !bytes.Equal(got, raw) {
				t.Errorf("%s in %s: %d bytes of %d, %v", name, reads, len(got), len(raw), err)
			}
		}
	}
}

// All that is whole before the end of a truncated member comes out, and its error is
// that of the input.
func TestTruncated(t *testing.T) {
	raw := contents(t)["trail"]
	var z Reader
	outage := errors.New("outage")
	for _, packed := range [][]byte{pack(t, raw[:3000], 6), pack(t, raw[:200], gzip.HuffmanOnly), pack(t, raw[:300], gzip.NoCompression)} {
		for n := range packed {
			got, err := decompress(&z, bufio.NewReader(bytes.NewReader(packed[:n])), 2*History)
			want, wantErr := library(packed[:n])
			if n == 0 {
				wantErr = io.EOF
			}
			if !errors.Is(err, wantErr) || len(got) < len(want) || !bytes.HasPrefix(raw, got) {
				t.Fatalf("after %d of %d bytes: %d bytes, want %d; %v, want %v", n, len(packed), len(got), len(want), err, wantErr)
			}
			in := io.MultiReader(bytes.NewReader(packed[:n]), iotest.ErrReader(outage))
			if again, err := decompress(&z, bufio.NewReader(in), 2*History); !errors.Is(err, outage) || !bytes.Equal(again, got) {
				t.Fatalf("after %d of %d bytes: %d bytes and %v, want %d", n, len(packed), len(again), err, len(got))
			}
		}
	}
}

// library decompresses a member with the standard library, which is the judge: the
// other one lets some streams pass that are none.
func library(packed []byte) ([]byte, error) {
	if len(packed) >= 10 && packed[3]&reserved != 0 {
		return nil, gzip.ErrHeader // it does not look at them
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, unexpected(err)
	}
	r.Multistream(false)
	return io.ReadAll(r)
}

// member puts a DEFLATE stream into gzip whose checksum is that of raw.
func member(stream, raw []byte) []byte {
	all := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, stream...)
	all = binary.LittleEndian.AppendUint32(all, crc32.ChecksumIEEE(raw))
	return binary.LittleEndian.AppendUint32(all, uint32(len(raw)))
}

// bitsOf packs words of bits, lowest first; a word that begins with < is a code,
// highest first as codes are.
func bitsOf(words ...string) []byte {
	var all []byte
	n := 0
	for _, w := range words {
		for i := range w {
			if n%8 == 0 {
				all = append(all, 0)
			}
			if w[i] == '1' {
				all[n/8] |= 1 << (n % 8)
			}
			n++
		}
	}
	return all
}

func TestErrors(t *testing.T) {
	text := []byte("a text, a text, and again a text")
	good := pack(t, text, 6)
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	corrupt := flate.CorruptInputError(0)
	end := "0000000" // of a block of fixed codes
	tests := []struct {
		name string
		in   []byte
		want error
	}{
		{"empty", nil, io.EOF},
		{"another magic", change(0, 'P'), gzip.ErrHeader},
		{"another method", change(2, 7), gzip.ErrHeader},
		{"reserved flags", change(3, 0x40), gzip.ErrHeader},
		{"a digest of the header that is wrong", append(change(3, hasDigest)[:10], append([]byte{1, 2}, good[10:]...)...), gzip.ErrHeader},
		{"another checksum", change(len(good)-8, good[len(good)-8]+1), gzip.ErrChecksum},
		{"another length", change(len(good)-1, 1), gzip.ErrChecksum},
		{"no trailer", good[:len(good)-3], io.ErrUnexpectedEOF},
		{"the reserved type of a block", member(bitsOf("1", "11"), nil), corrupt},
		{"a stored block of two lengths", member([]byte{1, 1, 0, 1, 0, 'x'}, nil), corrupt},
		{"a reserved length", member(bitsOf("1", "10", "11000110", "00000", end), nil), corrupt},
		{"a reserved distance", member(bitsOf("1", "10", "00110001", "0000001", "11110", end), nil), corrupt},
		{"a distance before the beginning", member(bitsOf("1", "10", "00110001", "0000001", "00001", end), nil), corrupt},
		{"too many lengths", member(bitsOf("1", "01", "01111", "00000", "0000"), nil), corrupt},
		{"too many distances", member(bitsOf("1", "01", "00000", "01111", "0000"), nil), corrupt},
		{"sizes that are no code", member(bitsOf("1", "01", "00000", "00000", "0000", "100", "100", "100", "000"), nil), corrupt},
		{"a repetition of nothing", member(bitsOf("1", "01", "00000", "00000", "0000", "100", "000", "000", "000", "0", "00"), nil), corrupt},
	}
	var z Reader
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := decompress(&z, bufio.NewReader(bytes.NewReader(tt.in)), 2*History)
			if _, theirs := library(tt.in); tt.in != nil && classOf(theirs) != classOf(tt.want) {
				t.Fatalf("the library says %v", theirs)
			}
			if classOf(err) != classOf(tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			if n, again := z.Fill(make([]byte, MinRoom), 0); n != 0 || !errors.Is(again, err) {
				t.Errorf("then %d bytes and %v", n, again)
			}
		})
	}
}

// classOf tells errors apart but for where they were found.
func classOf(err error) string {
	var corrupt flate.CorruptInputError
	if errors.As(err, &corrupt) {
		return "corrupt"
	}
	return fmt.Sprint(err)
}

// Streams that few compressors make.
func TestOddStreams(t *testing.T) {
	end := "0000000"
	tests := []struct {
		name string
		in   []byte
		want string
	}{
		{"no symbols", bitsOf("1", "10", end), ""},
		{"a stored block of nothing, then text", append([]byte{0, 0, 0, 0xff, 0xff}, bitsOf("1", "10", "10010001", end)...), "a"},
		{"blocks of all kinds", append(append([]byte{0, 2, 0, 0xfd, 0xff, 'a', 'b'}, bitsOf("0", "10", "0000001", "00001", end)...), 1, 1, 0, 0xfe, 0xff, 'c'), ""},
		{"the longest match of a byte", bitsOf("1", "10", "10010001", "11000101", "00000", end), "a" + strings.Repeat("a", 258)},
	}
	var z Reader
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			theirs, err := io.ReadAll(flate.NewReader(bytes.NewReader(tt.in)))
			if tt.want == "" {
				tt.want = string(theirs)
			}
			if err != nil && tt.name != "blocks of all kinds" || string(theirs) != tt.want {
				t.Fatalf("the library makes %q of it, %v", theirs, err)
			}
			got, ours := decompress(&z, bufio.NewReader(bytes.NewReader(member(tt.in, theirs))), 2*History)
			if (err == nil) != (ours == io.EOF) || string(got) != tt.want {
				t.Errorf("%q and %v, want %q and %v", got, ours, tt.want, err)
			}
		})
	}
}

// Members follow one another; a match does not reach into the one before.
func TestMembers(t *testing.T) {
	src := bufio.NewReader(bytes.NewReader(append(pack(t, []byte("first"), 6), member(bitsOf("1", "10", "0000001", "00000", "0000000"), nil)...)))
	var z Reader
	buf := make([]byte, 2*History)
	if err := z.Reset(src); err != nil {
		t.Fatal(err)
	}
	n, err := z.Fill(buf, 0)
	if string(buf[:n]) != "first" || err != io.EOF {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	if err := z.Reset(src); err != nil {
		t.Fatal(err)
	}
	if m, err := z.Fill(buf, n); m != 0 || classOf(err) != "corrupt" {
		t.Errorf("%q, %v", buf[n:n+m], err)
	}
}

// Headers may say more than anybody reads.
func TestHeaders(t *testing.T) {
	var z Reader
	for _, size := range []int{0, 1, 510, 511, 512, 600} {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		w.Name, w.Comment = strings.Repeat("n", size), strings.Repeat("c", size)
		w.Extra = bytes.Repeat([]byte{7}, 100*size)
		_, _ = w.Write([]byte("text"))
		_ = w.Close()
		want, wantErr := library(b.Bytes())
		if wantErr == nil {
			wantErr = io.EOF
		}
		got, err := decompress(&z, bufio.NewReader(&b), 2*History)
		if !errors.Is(err, wantErr) || !bytes.Equal(got, want) {
			t.Errorf("texts of %d bytes: %q and %v, want %q and %v", size, got, err, want, wantErr)
		}
	}
}

// Whatever comes in: what the standard library decompresses comes out the same, and
// what it refuses is refused. What comes out of a broken one is not made up.
func FuzzReader(f *testing.F) {
	for _, raw := range contents(f) {
		for _, level := range []int{gzip.HuffmanOnly, gzip.NoCompression, 1, 6} {
			raw := raw[:min(len(raw), 3000)]
			packed := pack(f, raw, level)
			f.Add(packed)
			f.Add(packOtherwise(f, raw, level))
			f.Add(packed[:len(packed)/2])
			for i := range 8 {
				broken := bytes.Clone(packed)
				broken[(len(broken)-1)*i/8] ^= 1 << i
				f.Add(broken)
			}
		}
	}
	f.Add(append([]byte{0x1f, 0x8b, 8, hasDigest | hasExtra | hasName | hasComment, 0, 0, 0, 0, 0, 0, 40, 0}, make([]byte, 60)...))
	f.Add(packOtherwise(f, contents(f)["trail"][:150_000], 6)) // larger than the buffers
	f.Fuzz(func(t *testing.T, packed []byte) {
		want, wantErr := library(packed)
		var z Reader
		got, err := decompress(&z, bufio.NewReaderSize(bytes.NewReader(packed), 16+len(packed)%200), History+MinRoom+len(packed)%5000)
		if wantErr == nil {
			if err != io.EOF || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes and %v, want %d", len(got), err, len(want))
			}
			return
		}
		if err == io.EOF && len(packed) > 0 {
			t.Fatalf("no error, want %v", wantErr)
		}
		if n := min(len(got), len(want)); !bytes.Equal(got[:n], want[:n]) {
			t.Fatalf("%d bytes that are not those of the library", len(got))
		}
		if class := classOf(wantErr); (class == gzip.ErrHeader.Error() || class == gzip.ErrChecksum.Error()) && classOf(err) != class {
			t.Fatalf("%v, want %v", err, wantErr)
		}
	})
}

// BenchmarkReader decompresses an object of 2,000 CloudTrail records, beside the
// library that did it before, from the buffer of a reader and from memory.
func BenchmarkReader(b *testing.B) {
	set := feed.CloudTrail(feed.Options{Seed: 1, Objects: 1, RecordsPerObject: feed.Fixed(2000)})
	var trail bytes.Buffer
	if err := set.WriteJSON(&trail, 0); err != nil {
		b.Fatal(err)
	}
	zlib := pack(b, trail.Bytes(), 6)
	buf, in := make([]byte, 256<<10), bufio.NewReaderSize(nil, 64<<10)
	small, err := library(set.Object(0).Body)
	if err != nil {
		b.Fatal(err)
	}
	small = pack(b, small[:7000], 6)
	for _, packed := range []struct {
		name  string
		bytes []byte
		raw   int
	}{{"large", zlib, trail.Len()}, {"blocks of 64 KiB", set.Object(0).Body, trail.Len()}, {"five records", small, 7000}} {
		b.Run(packed.name, func(b *testing.B) {
			b.Run("ours", func(b *testing.B) {
				b.SetBytes(int64(packed.raw))
				var z Reader
				for b.Loop() {
					in.Reset(bytes.NewReader(packed.bytes))
					if err := z.Reset(in); err != nil {
						b.Fatal(err)
					}
					total, end := 0, 0
					for err == nil {
						if len(buf)-end < MinRoom {
							copy(buf, buf[end-History:end])
							end = History
						}
						var n int
						n, err = z.Fill(buf, end)
						total, end = total+n, end+n
					}
					if err != io.EOF || total != packed.raw {
						b.Fatal(total, err)
					}
					err = nil
				}
			})
			for name, memory := range map[string]bool{"library": false, "library from memory": true} {
				b.Run(name, func(b *testing.B) {
					b.SetBytes(int64(packed.raw))
					var z other.Reader
					for b.Loop() {
						var r io.Reader = bytes.NewReader(packed.bytes)
						if !memory {
							in.Reset(r)
							r = in
						}
						if err := z.Reset(r); err != nil {
							b.Fatal(err)
						}
						total := 0
						for err == nil {
							var n int
							n, err = z.Read(buf)
							total += n
						}
						if err != io.EOF || total != packed.raw {
							b.Fatal(total, err)
						}
						err = nil
					}
				})
			}
		})
	}
}
