package sinks

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
)

func init() {
	define("file", "Appends events as newline-delimited JSON to a file, with rotation.", defaultFile, openFile)
}

var (
	errFile = fault.Define("deliver.file_failed", fault.Retry,
		"make room on the disk, and see that it works; delivery goes on by itself")
	errFileDenied = fault.Define("deliver.file_denied", fault.Stop,
		"let the user that penstock runs as write to the path, or correct the path")
	errFileBusy = fault.Define("deliver.file_busy", fault.Retry,
		"give each penstock process and each destination a path of its own")
	errFileForeign = fault.Define("deliver.file_foreign", fault.Stop,
		"move the file away, or choose another path: it is not one that penstock wrote")
)

const (
	// mostTorn bounds a last line that was cut by a crash, in bytes.
	mostTorn = 64 << 20
	// stampFormat goes into the names of rotated files.
	stampFormat = "20060102T150405.000000000Z"
	partSuffix  = ".gz.part"
)

// FileConfig configures the file sink.
type FileConfig struct {
	// Path of the file; {destination} stands for the name of the destination. Missing folders are made. One process writes a path at a time. Required.
	Path string `yaml:"path"`
	// Format of a line: envelope (with penstock's id, type, time, source, account and region) or document.
	Format Format `yaml:"format"`
	// Batch bounds what is written, and made durable, at once.
	Batch Limits `yaml:"batch"`
	// RotateBytes starts a new file before this one grows larger; 0 never does. Unit: bytes.
	RotateBytes config.Bytes `yaml:"rotate_bytes"`
	// RotateAge starts a new file when this one is that old and not empty; 0 never does. Unit: duration.
	RotateAge time.Duration `yaml:"rotate_age"`
	// Gzip compresses rotated files.
	Gzip bool `yaml:"gzip"`
}

func defaultFile() FileConfig {
	return FileConfig{
		Format:      Envelope,
		Batch:       Limits{Events: 10_000, Bytes: 4 * config.MiB, Age: time.Second},
		RotateBytes: 256 * config.MiB,
		RotateAge:   24 * time.Hour,
	}
}

var placeholder = regexp.MustCompile(`\{[^}]*\}`)

// Validate reports every problem, each with the key to change.
func (c FileConfig) Validate() error {
	var p config.Problems
	p.Need(c.Path != "" && !strings.HasSuffix(c.Path, "/"), "path", "set the file to write to, e.g. /var/lib/penstock/{destination}.ndjson")
	for _, name := range placeholder.FindAllString(c.Path, -1) {
		p.Need(name == "{destination}", "path", "use no placeholder but {destination}")
	}
	p.In("batch", c.Batch.Validate())
	p.Need(c.RotateBytes >= 0, "rotate_bytes", "use 0 for never, or a size, e.g. 256 MiB")
	p.Need(c.RotateAge >= 0, "rotate_age", "use 0s for never, or a duration, e.g. 24h")
	return p.Err()
}

// handle is what the sink needs of an [os.File]; tests put a full disk there.
type handle interface {
	io.Writer
	io.Closer
	Sync() error
	Truncate(size int64) error
}

// fileSink appends batches to one file. A batch is confirmed after fsync; what
// could not be written and synced whole is cut off again, so that a file holds
// whole batches, and after a crash whole lines.
type fileSink struct {
	cfg  FileConfig
	path string
	name string
	log  *slog.Logger
	wrap func(handle) handle

	stop    chan struct{} // closed by Close: compression gives up
	zippers sync.WaitGroup
	zipping sync.Mutex

	users int // guarded by openFiles

	mu    sync.Mutex
	file  handle // nil while closed
	info  fs.FileInfo
	size  int64 // of confirmed batches
	dirty bool  // the file on disk may be longer than size
	timer *time.Timer
	shut  bool
}

func openFile(_ context.Context, cfg FileConfig, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	log := deps.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &fileSink{
		cfg: cfg, name: deps.Destination, log: log, stop: make(chan struct{}), users: 1,
		path: strings.ReplaceAll(cfg.Path, "{destination}", deps.Destination),
		wrap: func(h handle) handle { return h },
	}
	openFiles.Lock()
	defer openFiles.Unlock()
	if open := openFiles.byName[s.name]; deps.Replay != "" && open != nil && open.cfg == cfg {
		open.users++
		return open, nil
	}
	openFiles.byName[s.name] = s
	return s, nil
}

// openFiles are the sinks by the names of their destinations: a file has one writer, so
// that a replay has to share that of the live events.
var openFiles = struct {
	sync.Mutex
	byName map[string]*fileSink
}{byName: map[string]*fileSink{}}

// leave gives up one use, and tells whether it was the last.
func (s *fileSink) leave() bool {
	openFiles.Lock()
	defer openFiles.Unlock()
	s.users--
	if s.users == 0 && openFiles.byName[s.name] == s {
		delete(openFiles.byName, s.name)
	}
	return s.users == 0
}

func (s *fileSink) Limits() Limits { return s.cfg.Batch }

func (s *fileSink) Append(dst []byte, e *Event) []byte { return s.cfg.Format.appendLine(dst, e) }

// Deliver appends b and syncs it. Calls take turns.
func (s *fileSink) Deliver(ctx context.Context, b Batch) Result {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return Result{Verdict: Retry, Err: errFile.New(context.Cause(ctx), "write to the file of destination %s", s.name)}
	}
	data := b.Bytes()
	if s.file != nil && s.cfg.RotateBytes > 0 && s.size > 0 && s.size+int64(len(data)) > int64(s.cfg.RotateBytes) {
		s.rotate()
	}
	if s.file != nil && !s.there() {
		s.release() // somebody moved it away: it is theirs
	}
	if s.file == nil {
		if err := s.open(); err != nil {
			return s.failed(err)
		}
	}
	if _, err := s.file.Write(data); err != nil {
		s.undo()
		return s.failed(err)
	}
	// After a failed fsync the system may have forgotten what was not written, and
	// the next one succeeds: so it is all written again.
	if err := s.file.Sync(); err != nil {
		s.undo()
		return s.failed(err)
	}
	s.size += int64(len(data))
	return Result{}
}

// there reports whether the path still leads to the open file.
func (s *fileSink) there() bool {
	info, err := os.Stat(s.path)
	return err == nil && os.SameFile(info, s.info)
}

func (s *fileSink) failed(err error) Result {
	r := Result{Verdict: Retry}
	var known *fault.Error
	switch {
	case errors.As(err, &known):
		r.Err = err
		if known.Kind.Class == fault.Stop {
			r.Verdict = Stop
		}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EISDIR):
		r.Verdict, r.Err = Stop, errFileDenied.New(err, "write to the file of destination %s", s.name)
	default:
		r.Err = errFile.New(err, "write to the file of destination %s", s.name)
	}
	return r
}

// undo cuts off what was not confirmed.
func (s *fileSink) undo() {
	if s.file.Truncate(s.size) == nil {
		return
	}
	s.dirty = true
	s.release()
}

func (s *fileSink) release() {
	_ = s.file.Close() // all that counts is synced
	s.file = nil
	if s.timer != nil {
		s.timer.Stop()
	}
}

// open opens or makes the file, takes its lock and cuts off what a crash or a
// failed write left behind.
func (s *fileSink) open() error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o640) //nolint:gosec // the group may read what is delivered
	if err != nil {
		return err
	}
	size, since, err := s.adopt(f)
	if err != nil {
		_ = f.Close()
		return err
	}
	s.file, s.size, s.dirty = s.wrap(f), size, false
	syncFolder(filepath.Dir(s.path))
	if s.cfg.RotateAge > 0 {
		s.timer = time.AfterFunc(time.Until(since.Add(s.cfg.RotateAge)), s.grownOld)
	}
	if s.cfg.Gzip {
		s.zippers.Go(s.compressRotated)
	}
	return nil
}

// adopt makes f ours and returns its size and an estimate of when it was begun.
func (s *fileSink) adopt(f *os.File) (int64, time.Time, error) {
	if err := lock(f); err != nil {
		return 0, time.Time{}, errFileBusy.New(err, "lock the file of destination %s", s.name)
	}
	info, err := f.Stat()
	if err != nil {
		return 0, time.Time{}, err
	}
	// Who held the lock may have rotated the file while we opened it.
	if there, err := os.Stat(s.path); err != nil || !os.SameFile(info, there) {
		return 0, time.Time{}, errFileBusy.New(err, "open the file of destination %s", s.name)
	}
	if !info.Mode().IsRegular() {
		return 0, time.Time{}, errFileForeign.New(nil, "write to the file of destination %s: it is no regular file", s.name)
	}
	end := info.Size()
	if s.dirty && s.info != nil && os.SameFile(info, s.info) {
		end = min(end, s.size)
	}
	whole, err := lastLine(f, end)
	if err != nil {
		return 0, time.Time{}, err
	}
	if whole < 0 {
		return 0, time.Time{}, errFileForeign.New(nil, "find a line in the last %d bytes of the file of destination %s", mostTorn, s.name)
	}
	if whole < info.Size() {
		s.log.Warn("cut off what was not confirmed", "bytes", info.Size()-whole)
		if err := f.Truncate(whole); err != nil {
			return 0, time.Time{}, err
		}
		if err := f.Sync(); err != nil {
			return 0, time.Time{}, err
		}
	}
	s.info = info
	since := time.Now()
	if whole > 0 {
		since = info.ModTime()
	}
	return whole, since, nil
}

// lastLine returns the place after the last line break before end; -1 when there
// is none within mostTorn bytes.
func lastLine(r io.ReaderAt, end int64) (int64, error) {
	const step = 64 << 10
	buf := make([]byte, step)
	for at := end; at > 0; {
		n := min(step, at)
		at -= n
		if _, err := r.ReadAt(buf[:n], at); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return at + int64(i) + 1, nil
		}
		if end-at >= mostTorn {
			return -1, nil
		}
	}
	return 0, nil
}

func (s *fileSink) grownOld() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut || s.file == nil {
		return
	}
	if s.size > 0 {
		s.rotate()
	} else {
		s.timer = time.AfterFunc(s.cfg.RotateAge, s.grownOld)
	}
}

// rotate renames the file; the next batch begins a new one. If that cannot be
// done, writing goes on in the old one.
func (s *fileSink) rotate() {
	if !s.there() {
		s.release()
		return
	}
	ext := filepath.Ext(s.path)
	stem := strings.TrimSuffix(s.path, ext)
	at := time.Now().UTC()
	name := ""
	for {
		name = stem + "-" + at.Format(stampFormat) + ext
		_, plain := os.Lstat(name)
		_, zipped := os.Lstat(name + ".gz")
		if errors.Is(plain, fs.ErrNotExist) && errors.Is(zipped, fs.ErrNotExist) {
			break
		}
		if plain != nil && !errors.Is(plain, fs.ErrNotExist) {
			break // Rename will say why
		}
		at = at.Add(time.Nanosecond)
	}
	if err := os.Rename(s.path, name); err != nil {
		s.log.Warn("file cannot be rotated", "err", err)
		return
	}
	syncFolder(filepath.Dir(s.path))
	s.release()
	s.size = 0
	if s.cfg.Gzip {
		s.zippers.Go(s.compressRotated)
	}
}

// rotated lists the rotated files with the given ending.
func (s *fileSink) rotated(ending string) []string {
	ext := filepath.Ext(s.path)
	stem := filepath.Base(strings.TrimSuffix(s.path, ext)) + "-"
	entries, _ := os.ReadDir(filepath.Dir(s.path)) // what cannot be listed is seen at the next rotation
	var names []string
	for _, e := range entries {
		stamp, ok := strings.CutPrefix(e.Name(), stem)
		if !ok {
			continue
		}
		if stamp, ok = strings.CutSuffix(stamp, ext+ending); !ok {
			continue
		}
		if _, err := time.Parse(stampFormat, stamp); err == nil {
			names = append(names, filepath.Join(filepath.Dir(s.path), e.Name()))
		}
	}
	return names
}

// compressRotated compresses all rotated files that are not yet, those of an
// earlier run included.
func (s *fileSink) compressRotated() {
	s.zipping.Lock()
	defer s.zipping.Unlock()
	for _, name := range s.rotated(partSuffix) {
		_ = os.Remove(name) // begun and not finished; overwritten otherwise
	}
	for _, name := range s.rotated("") {
		if err := s.compress(name); err != nil && !errors.Is(err, errClosing) {
			s.log.Warn("rotated file stays uncompressed", "err", err)
		}
	}
}

var errClosing = errors.New("the destination is closing")

// compress replaces the file by a compressed one, which is durable before the
// file goes.
func (s *fileSink) compress(name string) (err error) {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	part := name + partSuffix
	out, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640) //nolint:gosec // the group may read what is delivered
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = out.Close()
			_ = os.Remove(part)
		}
	}()
	z := gzip.NewWriter(out)
	if _, err = io.Copy(z, &untilClosed{in, s.stop}); err != nil {
		return err
	}
	if err = z.Close(); err != nil {
		return err
	}
	if err = out.Sync(); err != nil {
		return err
	}
	if err = out.Close(); err != nil {
		return err
	}
	if err = os.Rename(part, name+".gz"); err != nil {
		return err
	}
	syncFolder(filepath.Dir(name))
	return os.Remove(name)
}

type untilClosed struct {
	r    io.Reader
	stop <-chan struct{}
}

func (u *untilClosed) Read(p []byte) (int, error) {
	select {
	case <-u.stop:
		return 0, errClosing
	default:
		return u.r.Read(p)
	}
}

// Close releases the file. Compression that is under way is given up; the next
// run does it.
func (s *fileSink) Close() error {
	if !s.leave() {
		return nil
	}
	s.mu.Lock()
	s.shut = true
	if s.file != nil {
		s.release()
	}
	s.mu.Unlock()
	close(s.stop)
	s.zippers.Wait()
	return nil
}

// syncFolder makes names in a folder durable. Not every system can; what is at
// stake is the name, not the content.
func syncFolder(path string) {
	if d, err := os.Open(path); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
}
