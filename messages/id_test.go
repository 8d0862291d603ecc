package messages

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"testing"
)

// Stored ids and the ledger depend on these bytes: a change here loses the dedupe
// window of every running installation. covers: F-0
func TestIDsAreFixedForever(t *testing.T) {
	long := bytes.Repeat([]byte("0123456789"), 100)
	tests := []struct {
		name  string
		parts [][]byte
		want  string
	}{
		{"no parts", nil, "e3b0c44298fc1c149afbf4c8996fb924"},
		{"one empty part", [][]byte{{}}, "3e7077fd2f66d689e0cee6a7cf5b37bf"},
		{"natural id", [][]byte{[]byte("cloudtrail"), []byte("6a7e2b9c-1f4d-4c8a-9e2b-3d5f7a9c1e4b")}, "7c0ac6689d7053670b2a77ffd985b766"},
		{"object and ordinal", [][]byte{[]byte("logs"), []byte("a/b.json.gz"), []byte("v1"), []byte("17")}, "69a46220ebfa3df21a4f653dcbff3796"},
		{"longer than the buffer on the stack", [][]byte{long, long}, "916afee7d7086a84f8c7cfc8f26b6710"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := NewID(tt.parts...).String(); got != tt.want {
				t.Errorf("NewID = %s, want %s", got, tt.want)
			}
			texts := make([]string, len(tt.parts))
			for i, p := range tt.parts {
				texts[i] = string(p)
			}
			if got := hex.EncodeToString(NewPull(texts...)); got != tt.want {
				t.Errorf("NewPull = %s, want %s", got, tt.want)
			}
		})
	}
}

func TestIDsTellPartsApart(t *testing.T) {
	sets := [][]string{
		{},
		{""},
		{"", ""},
		{"ab", "c"},
		{"a", "bc"},
		{"abc"},
		{"abc", ""},
		{"", "abc"},
		{"a\x00\x00\x00\x00\x00\x00\x00\x00\x01"},
		{"a", ""},
		{"a"},
	}
	seen := map[string][]string{}
	for _, set := range sets {
		pull := string(NewPull(set...))
		if other, taken := seen[pull]; taken {
			t.Errorf("%q and %q have one pull", set, other)
		}
		seen[pull] = set
	}
}

func TestNewIDAllocatesNothing(t *testing.T) {
	parts := [4][]byte{[]byte("bucket"), bytes.Repeat([]byte("k"), 120), []byte("etag"), []byte("123")}
	var id ID
	if n := testing.AllocsPerRun(100, func() { id = NewID(parts[0], parts[1], parts[2], parts[3]) }); n != 0 {
		t.Errorf("NewID allocates %v times", n)
	}
	if id != NewID(parts[:]...) {
		t.Error("NewID depends on how its parts are passed")
	}
}

func TestLanesAreEvenAndStable(t *testing.T) {
	if got := NewID([]byte("x")).Lane(0); got != 0 {
		t.Errorf("lane of 0 lanes = %d", got)
	}
	const lanes, ids = 8, 16_000
	var count [lanes]int
	for i := range ids {
		count[NewID(fmt.Append(nil, i)).Lane(lanes)]++
	}
	for lane, n := range count {
		if n < ids/lanes*9/10 || n > ids/lanes*11/10 {
			t.Errorf("lane %d has %d of %d ids", lane, n, ids)
		}
	}
	id := ID{12: 1, 13: 2, 14: 3, 15: 4} // dedupe keeps state by lane
	if got, want := id.Lane(1000), uint32(0x01020304%1000); got != want {
		t.Errorf("lane = %d, want %d", got, want)
	}
}

// A stem makes the same ids, whatever it made before.
func TestStem(t *testing.T) {
	var s Stem
	for _, parts := range [][][]byte{
		{},
		{[]byte("bucket"), []byte("a key"), nil},
		{bytes.Repeat([]byte("long "), 100)},
		{[]byte("ab")},
	} {
		if len(parts) > 0 { // the zero Stem has none
			s.Reset(parts...)
		}
		for _, rest := range []string{"", "1", "a long rest " + fmt.Sprint(parts)} {
			if got, want := s.ID([]byte(rest)), NewID(append(parts[:len(parts):len(parts)], []byte(rest))...); got != want {
				t.Errorf("%q and %q: %s, want %s", parts, rest, got, want)
			}
		}
	}
	ordinal := make([]byte, 8)
	if n := testing.AllocsPerRun(10, func() { s.ID(ordinal) }); n > 0 {
		t.Errorf("%v allocations an id", n)
	}
}

func BenchmarkStem(b *testing.B) {
	parts := [][]byte{
		[]byte("log-bucket"), []byte("3e7077fd2f66d689e0cee6a7cf5b37bf"),
		[]byte("AWSLogs/123456789012/vpcflowlogs/us-east-1/2026/01/05/123456789012_vpcflowlogs_us-east-1_fl-0123456789abcdef0_20260105T0805Z_0a1b2c3d.log.gz"),
	}
	all, ordinal := append(parts, make([]byte, 8)), make([]byte, 8)
	b.Run("whole", func(b *testing.B) {
		for b.Loop() {
			NewID(all...)
		}
	})
	b.Run("stem", func(b *testing.B) {
		var s Stem
		s.Reset(parts...)
		b.ReportAllocs()
		for b.Loop() {
			s.ID(ordinal)
		}
	})
}

func BenchmarkNewID(b *testing.B) {
	kind, id := []byte("cloudtrail"), []byte("6a7e2b9c-1f4d-4c8a-9e2b-3d5f7a9c1e4b")
	want := NewID(kind, id)
	b.ReportAllocs()
	for b.Loop() {
		if NewID(kind, id) != want {
			b.Fatal("the id changes")
		}
	}
}
