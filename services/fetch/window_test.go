package fetch

import (
	"bytes"
	"io"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// A reader that waits for its next object does not hold the history of the last one, which
// for zstd may be 32 MiB.
func TestReadersWaitWithoutHistory(t *testing.T) {
	const window = 16 << 20
	var stored bytes.Buffer
	z, err := zstd.NewWriter(&stored, zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * window / (1 << 20) { // longer than the window
		if _, err := z.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	before := live()
	r := newReader()
	o := &object{body: io.NopCloser(&stored), size: int64(stored.Len())}
	enlarged := false
	if err := r.dec.reset(o, Defaults(), func() error { enlarged = true; return nil }); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, r); n != 2*window || err != nil || !enlarged {
		t.Fatalf("%d bytes were read, want %d: %v", n, 2*window, err)
	}
	r.release()
	if after := live(); after > before+window/4 {
		t.Errorf("a reader that waits holds %d bytes", after-before)
	}
	runtime.KeepAlive(r)
}

// live returns the bytes of objects that are in use.
func live() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
