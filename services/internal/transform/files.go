package transform

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages/fault"
)

var (
	errFile = fault.Define("enrich.unreadable", fault.Stop,
		"check that the file is there, may be read, is whole and within the limits of the rule")

	fileLoads = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_enrich_loads_total", Help: "Times that a file for enrichment was read, by file and result: loaded, or failed and the one before is kept.",
	}, []string{"file", "result"})
	fileEntries = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_enrich_entries", Help: "Rows of a table, or nodes of a database, that are in use.",
	}, []string{"file"})
	fileLoaded = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_enrich_loaded_timestamp_seconds", Help: "When the file in use was read.",
	}, []string{"file"})
)

// Files are the files that enrichment reads. Rules that name the same file in the
// same way share it.
type Files struct {
	log *slog.Logger

	mu   sync.Mutex
	open map[string]any
}

// NewFiles opens nothing yet. Log may be nil.
func NewFiles(log *slog.Logger) *Files {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Files{log: log, open: map[string]any{}}
}

// file is one file as it was read last. A user of it who comes after the time for a
// look has passed takes the look, and reads the file if it has changed; meanwhile all
// others go on with the old one. So no goroutine is needed that somebody has to stop.
type file[T any] struct {
	name  string
	limit int64
	every time.Duration
	read  func([]byte) (T, int, error)
	log   *slog.Logger

	content atomic.Pointer[T]
	next    atomic.Int64 // Unix ns of the next look
	looking sync.Mutex
	seen    os.FileInfo // what was read last, whether it was good or not
}

// open returns the file of that name and kind, and reads it if it is the first to ask.
func open[T any](files *Files, kind, name string, limit int64, every time.Duration, read func([]byte) (T, int, error)) (*file[T], error) {
	files.mu.Lock()
	defer files.mu.Unlock()
	id := fmt.Sprintf("%s %d %s %s", kind, limit, every, name)
	if f, ok := files.open[id].(*file[T]); ok {
		return f, nil
	}
	f := &file[T]{name: name, limit: limit, every: every, read: read, log: files.log}
	f.next.Store(time.Now().Add(every).UnixNano())
	if err := f.load(); err != nil {
		return nil, errFile.New(err, "read %s for enrichment", name)
	}
	files.open[id] = f
	return f, nil
}

// get returns the content of the file.
func (f *file[T]) get() T {
	if now, next := time.Now().UnixNano(), f.next.Load(); now >= next && f.next.CompareAndSwap(next, now+int64(f.every)) {
		f.look()
	}
	return *f.content.Load()
}

// look reads the file again if it has changed. One that is bad is reported once.
func (f *file[T]) look() {
	if !f.looking.TryLock() {
		return // reading it takes longer than the time between two looks
	}
	defer f.looking.Unlock()
	info, err := os.Stat(f.name)
	switch {
	case err != nil && f.seen == nil:
		return // it was reported
	case err == nil && f.seen != nil && os.SameFile(info, f.seen) && info.Size() == f.seen.Size() && info.ModTime().Equal(f.seen.ModTime()):
		return
	}
	if err := f.load(); err != nil {
		fileLoads.WithLabelValues(f.name, "failed").Inc()
		f.log.Error("file for enrichment is bad; the one before stays in use", "file", f.name, "err", errFile.New(err, "read %s again", f.name))
		return
	}
	f.log.Info("file for enrichment was read again", "file", f.name)
}

// load reads the file and puts it in place of the one before.
func (f *file[T]) load() error {
	f.seen = nil
	in, err := os.Open(f.name)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	before, err := in.Stat()
	if err != nil {
		return err
	}
	if !before.Mode().IsRegular() {
		return fmt.Errorf("%s is no file", f.name)
	}
	f.seen = before
	if before.Size() > f.limit {
		return fmt.Errorf("it has %d bytes, more than max_size, %d", before.Size(), f.limit)
	}
	data, err := io.ReadAll(io.LimitReader(in, f.limit+1))
	if err != nil {
		return err
	}
	if int64(len(data)) > f.limit {
		return fmt.Errorf("it has more bytes than max_size, %d", f.limit)
	}
	if after, err := in.Stat(); err != nil || after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
		f.seen = nil
		return errors.New("it changed while it was read; it is read again at the next look")
	}
	content, entries, err := f.read(data)
	if err != nil {
		return err
	}
	f.content.Store(&content)
	fileLoads.WithLabelValues(f.name, "loaded").Inc()
	fileEntries.WithLabelValues(f.name).Set(float64(entries))
	fileLoaded.WithLabelValues(f.name).SetToCurrentTime()
	return nil
}
