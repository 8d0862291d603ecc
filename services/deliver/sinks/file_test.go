package sinks

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
)

// fullDisk takes so many bytes and no more.
type fullDisk struct {
	handle
	room int
}

func (d *fullDisk) Write(p []byte) (int, error) {
	n := min(len(p), d.room)
	d.room -= n
	if _, err := d.handle.Write(p[:n]); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

// failing is a file whose operations fail while they are set to.
type failing struct {
	handle
	sync, truncate error
}

func (f *failing) Sync() error {
	if f.sync != nil {
		return f.sync
	}
	return f.handle.Sync()
}

func (f *failing) Truncate(size int64) error {
	if f.truncate != nil {
		return f.truncate
	}
	return f.handle.Truncate(size)
}

func fileSinkAt(t *testing.T, path string, change func(*FileConfig)) *fileSink {
	t.Helper()
	cfg := defaultFile()
	cfg.Path, cfg.Format = path, Document
	if change != nil {
		change(&cfg)
	}
	s, err := openFile(t.Context(), cfg, Deps{Destination: "disk"})
	must(t, err)
	return s.(*fileSink)
}

func send(t *testing.T, s *fileSink, docs ...string) {
	t.Helper()
	mustDeliver(t, s, batchOf(s, 0, docs...))
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return string(data)
}

func TestFileIsMadeWithItsFolders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "{destination}-x.ndjson")
	s := fileSinkAt(t, path, nil)
	send(t, s, `{"n":1}`)
	must(t, s.Close())
	info, err := os.Stat(strings.ReplaceAll(path, "{destination}", "disk"))
	must(t, err)
	if info.Mode().Perm()&^0o640 != 0 || info.Mode().Perm()&0o600 != 0o600 {
		t.Errorf("permissions %v", info.Mode())
	}
}

func TestFileAfterACrash(t *testing.T) {
	tests := []struct{ name, before, want string }{
		{"a torn last line is cut off", "{\"a\":1}\n{\"b\":", "{\"a\":1}\n{\"n\":1}\n"},
		{"whole lines stay", "{\"a\":1}\n{\"b\":2}\n", "{\"a\":1}\n{\"b\":2}\n{\"n\":1}\n"},
		{"only a torn line", `{"a`, "{\"n\":1}\n"},
		{"a long torn line", "{}\n" + strings.Repeat("x", 300_000), "{}\n{\"n\":1}\n"},
		{"empty", "", "{\"n\":1}\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f.ndjson")
			must(t, os.WriteFile(path, []byte(tt.before), 0o600))
			s := fileSinkAt(t, path, nil)
			send(t, s, `{"n":1}`)
			must(t, s.Close())
			if got := content(t, path); got != tt.want {
				t.Errorf("file has %q, want %q", got, tt.want)
			}
		})
	}
}

func TestFileThatIsNotOurs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "video.bin")
	f, err := os.Create(path)
	must(t, err)
	must(t, f.Truncate(mostTorn+1)) // sparse, and no line break in it
	must(t, f.Close())
	s := fileSinkAt(t, path, nil)
	if res := s.Deliver(t.Context(), batchOf(s, 0, `{}`)); res.Verdict != Stop || fault.CodeOf(res.Err) != "deliver.file_foreign" {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
	must(t, s.Close())
	if info, _ := os.Stat(path); info.Size() != mostTorn+1 {
		t.Error("the foreign file was cut")
	}
	device := fileSinkAt(t, os.DevNull, nil)
	if res := device.Deliver(t.Context(), batchOf(device, 0, `{}`)); res.Verdict != Stop {
		t.Errorf("a device: %v: %v", res.Verdict, res.Err)
	}
	must(t, device.Close())
}

func TestFileDenied(t *testing.T) {
	s := fileSinkAt(t, filepath.Join(t.TempDir(), "x"), nil)
	for _, err := range []error{fs.ErrPermission, syscall.EROFS, syscall.EISDIR} {
		if res := s.failed(&fs.PathError{Op: "open", Path: "x", Err: err}); res.Verdict != Stop || fault.ClassOf(res.Err) != fault.Stop {
			t.Errorf("%v: %v", err, res.Verdict)
		}
	}
	folder := fileSinkAt(t, t.TempDir(), nil)
	if res := folder.Deliver(t.Context(), batchOf(folder, 0, `{}`)); res.Verdict != Stop {
		t.Errorf("a folder: %v: %v", res.Verdict, res.Err)
	}
}

func TestFileTroubleLeavesWholeBatches(t *testing.T) {
	broken := errors.New("input/output error")
	tests := []struct {
		name string
		wrap func(h handle) handle
	}{
		{"disk full", func(h handle) handle { return &fullDisk{h, 4} }},
		{"fsync fails", func(h handle) handle { return &failing{handle: h, sync: broken} }},
		{"fsync fails, and so does cutting off", func(h handle) handle { return &failing{handle: h, sync: broken, truncate: broken} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f.ndjson")
			s := fileSinkAt(t, path, nil)
			send(t, s, `{"n":1}`)
			good := s.file
			s.file = tt.wrap(good)
			b := batchOf(s, 0, `{"n":2}`, `{"n":3}`)
			if res := s.Deliver(t.Context(), b); res.Verdict != Retry || fault.CodeOf(res.Err) != "deliver.file_failed" {
				t.Errorf("got %v: %v", res.Verdict, res.Err)
			}
			if s.file != nil {
				s.file = good
			}
			mustDeliver(t, s, b)
			must(t, s.Close())
			if got := content(t, path); got != "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n" {
				t.Errorf("file has %q", got)
			}
		})
	}
}

func TestFileIsWrittenByOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.ndjson")
	first, second := fileSinkAt(t, path, nil), fileSinkAt(t, path, nil)
	send(t, first, `{"n":1}`)
	if res := second.Deliver(t.Context(), batchOf(second, 0, `{}`)); res.Verdict != Retry || fault.CodeOf(res.Err) != "deliver.file_busy" {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
	must(t, first.Close())
	send(t, second, `{"n":2}`)
	must(t, second.Close())
	if got := content(t, path); got != "{\"n\":1}\n{\"n\":2}\n" {
		t.Errorf("file has %q", got)
	}
}

func TestFileMovedAway(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "f.ndjson")
	s := fileSinkAt(t, path, nil)
	send(t, s, `{"n":1}`)
	must(t, os.Rename(path, path+".1")) // as logrotate does
	send(t, s, `{"n":2}`)
	must(t, os.Remove(path))
	send(t, s, `{"n":3}`)
	must(t, s.Close())
	if a, b := content(t, path+".1"), content(t, path); a != "{\"n\":1}\n" || b != "{\"n\":3}\n" {
		t.Errorf("files have %q and %q", a, b)
	}
}

// all returns the lines of all files in a folder by ending, compressed or not.
func all(t *testing.T, folder string) (lines []string, names []string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
		f, err := os.Open(filepath.Join(folder, e.Name()))
		must(t, err)
		var r io.Reader = f
		if strings.HasSuffix(e.Name(), ".gz") {
			r, err = gzip.NewReader(f)
			must(t, err)
		}
		data, err := io.ReadAll(r)
		must(t, err)
		must(t, f.Close())
		lines = append(lines, strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")...)
	}
	return lines, names
}

func TestFileRotation(t *testing.T) {
	for _, zip := range []bool{false, true} {
		folder := t.TempDir()
		path := filepath.Join(folder, "f.ndjson")
		s := fileSinkAt(t, path, func(c *FileConfig) { c.RotateBytes, c.Gzip = 20, zip })
		for range 6 {
			send(t, s, `{"n":1}`) // 8 bytes: two in a file
		}
		s.zippers.Wait() // what Close would give up
		must(t, s.Close())
		lines, names := all(t, folder)
		if len(lines) != 6 || len(names) != 3 {
			t.Errorf("gzip %v: %d lines in %v", zip, len(lines), names)
		}
		zipped := 0
		for _, n := range names {
			if strings.HasSuffix(n, ".gz") {
				zipped++
			}
		}
		if want := map[bool]int{false: 0, true: 2}[zip]; zipped != want {
			t.Errorf("gzip %v: %v", zip, names)
		}
	}
}

func TestFileRotationByAge(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "f.ndjson")
	must(t, os.WriteFile(path, []byte("{\"n\":0}\n"), 0o600))
	old := time.Now().Add(-2 * time.Hour)
	must(t, os.Chtimes(path, old, old))
	s := fileSinkAt(t, path, func(c *FileConfig) { c.RotateAge = time.Hour })
	send(t, s, `{"n":1}`)
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() { // the timer has fired when the file is renamed
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("an old file is not rotated")
		}
	}
	send(t, s, `{"n":2}`)
	must(t, s.Close())
	if lines, names := all(t, folder); len(lines) != 3 || len(names) != 2 {
		t.Errorf("%d lines in %v", len(lines), names)
	}
}

// Compression that a crash has cut off is done by the next run, and files that
// only look similar are let alone.
func TestFileCompressesLeftovers(t *testing.T) {
	folder := t.TempDir()
	leftover := filepath.Join(folder, "f-20260105T101112.000000001Z.ndjson")
	must(t, os.WriteFile(leftover, []byte("{\"n\":0}\n"), 0o600))
	must(t, os.WriteFile(leftover+partSuffix, []byte("half"), 0o600))
	foreign := filepath.Join(folder, "f-notes.ndjson")
	must(t, os.WriteFile(foreign, []byte("mine\n"), 0o600))
	s := fileSinkAt(t, filepath.Join(folder, "f.ndjson"), func(c *FileConfig) { c.Gzip = true })
	send(t, s, `{"n":1}`)
	s.zippers.Wait()
	must(t, s.Close())
	lines, names := all(t, folder)
	if want := "f-20260105T101112.000000001Z.ndjson.gz f-notes.ndjson f.ndjson"; strings.Join(names, " ") != want || len(lines) != 3 {
		t.Errorf("%d lines in %v, want %s", len(lines), names, want)
	}
}

func TestFileThatCannotBeRotatedGoesOn(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "d")
	path := filepath.Join(folder, "f.ndjson")
	s := fileSinkAt(t, path, func(c *FileConfig) { c.RotateBytes = 1 })
	send(t, s, `{"n":1}`)
	s.path = filepath.Join(folder, "f.ndjson") + string(filepath.Separator) // rename of this fails
	s.rotate()
	s.path = path
	send(t, s, `{"n":2}`)
	must(t, s.Close())
	if lines, _ := all(t, folder); len(lines) != 2 {
		t.Errorf("%d lines", len(lines))
	}
}

func TestFileConfig(t *testing.T) {
	tests := []struct {
		key    string
		change func(*FileConfig)
	}{
		{"path", func(c *FileConfig) { c.Path = "" }},
		{"path", func(c *FileConfig) { c.Path = "/data/" }},
		{"path", func(c *FileConfig) { c.Path = "/data/{date}.ndjson" }},
		{"batch.events", func(c *FileConfig) { c.Batch.Events = -1 }},
		{"rotate_bytes", func(c *FileConfig) { c.RotateBytes = -1 }},
		{"rotate_age", func(c *FileConfig) { c.RotateAge = -1 }},
	}
	for _, tt := range tests {
		cfg := defaultFile()
		cfg.Path = "/data/{destination}.ndjson"
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), tt.key+": ") {
			t.Errorf("%s: got %v", tt.key, err)
		}
	}
}

func BenchmarkFile(b *testing.B) {
	cfg := defaultFile()
	cfg.Path, cfg.RotateBytes = filepath.Join(b.TempDir(), "f"), 64*config.MiB
	s, err := openFile(b.Context(), cfg, Deps{Destination: "bench"})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	docs := make([]string, 2800)
	for i := range docs {
		docs[i] = trailEvent
	}
	batch := batchOf(s, 0, docs...)
	b.SetBytes(int64(len(batch.Bytes())))
	for b.Loop() {
		if res := s.Deliver(b.Context(), batch); res.Verdict != Done {
			b.Fatal(res.Err)
		}
	}
}
