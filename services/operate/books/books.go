// Package books keeps the ledger's sums in a SQLite database, so that what became of
// every object and message is known without reading all facts again.
//
//	LEDGER ──▶ books ──▶ <dir>/books.db
//
// A transaction holds the sums together with the position up to which they are folded:
// so a fact counts once, wherever the process ends. Several processes may read the
// database, and even fold it: whoever finds that another was faster goes on behind it.
package books

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/topology"
)

// File is the name of the database in its folder.
const File = "books.db"

var (
	errOpen = fault.Define("books.open_failed", fault.Retry,
		"check that the folder of the books exists, may be written, and is on a disk of this machine with room")
	errDamaged = fault.Define("books.damaged", fault.Stop,
		"move books.db, and books.db-wal and books.db-shm beside it, out of its folder and start again: the books are made anew from the facts that LEDGER still keeps (7 days)")
	errNewer = fault.Define("books.newer", fault.Stop,
		"a newer penstock wrote the books: use that version; or move books.db out of its folder, and they are made anew from the facts that LEDGER still keeps (7 days)")
	errStore = fault.Define("books.store_failed", fault.Retry,
		"check that the disk with the books has room and works; folding goes on where it was as soon as it does")
	errRead = fault.Define("books.read_failed", fault.Retry,
		"check that the books can be read: penstock ledger")
	// ErrUnknown is that of something that the books do not have.
	ErrUnknown = fault.Define("books.unknown", fault.Reject,
		"check the name; what is older than the books are kept is not in them: penstock ledger shows since when")
)

// Grace is how long a pull may be unbalanced before something is wrong with it: its
// events are under way. While a destination lags, what is waiting for it has longer.
const Grace = 15 * time.Minute

// overdue is the time since before which a pull must be unbalanced to be overdue.
func (b *Books) overdue(now time.Time) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	limit := now.Add(-Grace)
	// A pull is unbalanced from when it was read, a little before its events are logged.
	if lag := b.oldest.Add(-time.Minute); !b.oldest.IsZero() && lag.Before(limit) {
		limit = lag
	}
	return limit.UnixNano()
}

// lags notes how far behind destinations are.
func (b *Books) lags(ctx context.Context, bus *topology.Bus) {
	readers, err := bus.Readers(ctx)
	if err != nil {
		return // as before
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.oldest = time.Time{}
	for _, r := range readers {
		if !r.Oldest.IsZero() && (b.oldest.IsZero() || r.Oldest.Before(b.oldest)) {
			b.oldest = r.Oldest
		}
	}
}

// Options of the books. The zero value has the defaults.
type Options struct {
	// KeepFor is how long pulls are kept after the last fact about them. Default 90 days.
	KeepFor time.Duration
	// KeepBytes bounds the database; the oldest pulls go first. Default 1 GiB.
	KeepBytes int64
	Log       *slog.Logger
}

// Books is the database. Methods may be called concurrently, Fold and CatchUp one at a
// time.
type Books struct {
	o   Options
	dir string
	log *slog.Logger
	w   *sql.DB // one connection: it folds
	r   *sql.DB

	mu  sync.Mutex
	bus *topology.Bus // that was folded last, nil before
	// oldest frame that a destination has not confirmed, when that was stored.
	oldest time.Time
	// sums as they were at a position, nil when they were not read yet.
	sums   map[string]*sums
	sumsAt uint64
	// changes counts those of sums without a new position.
	changes int
}

// applicationID marks our databases: "pstk". schemaVersion is of the tables.
const (
	applicationID = 0x7073746b
	schemaVersion = 1
)

// schema: times are Unix ns. The state of pulls is that of package ledger; the columns
// beside it are what pulls are looked up by. Messages are looked for by reading an index
// from one end to the other, which takes a moment: to be written in the order of their
// hashes would cost more with each pull than the rest of it.
const schema = `
CREATE TABLE place (id INTEGER PRIMARY KEY CHECK (id = 1), position INTEGER NOT NULL, at INTEGER NOT NULL,
	created INTEGER NOT NULL, turned INTEGER NOT NULL, forgot INTEGER NOT NULL, facts TEXT NOT NULL, unread INTEGER NOT NULL);
INSERT INTO place VALUES (1, 0, 0, 0, 0, 0, '{}', 0);
CREATE TABLE gaps (first INTEGER NOT NULL, last INTEGER NOT NULL, at INTEGER NOT NULL);
CREATE TABLE pulls (row INTEGER PRIMARY KEY, pull BLOB NOT NULL, source TEXT NOT NULL, state INTEGER NOT NULL, first INTEGER NOT NULL,
	last INTEGER NOT NULL, since INTEGER NOT NULL, origin TEXT NOT NULL, object INTEGER, message INTEGER, again BLOB, data BLOB NOT NULL);
CREATE UNIQUE INDEX pulls_pull ON pulls (pull);
CREATE INDEX pulls_source ON pulls (source, row);
CREATE INDEX pulls_first ON pulls (first, message);
CREATE INDEX pulls_object ON pulls (object) WHERE object IS NOT NULL;
CREATE INDEX pulls_again ON pulls (again) WHERE again IS NOT NULL;
CREATE INDEX pulls_since ON pulls (since, source) WHERE since > 0;
CREATE INDEX pulls_state ON pulls (state, row) WHERE state <> 1;
CREATE TABLE messages (row INTEGER PRIMARY KEY, ids BLOB NOT NULL);
CREATE TABLE frames (part TEXT NOT NULL, page INTEGER NOT NULL, at INTEGER NOT NULL, bits BLOB NOT NULL, PRIMARY KEY (part, page)) WITHOUT ROWID;
CREATE TABLE entries (entry TEXT PRIMARY KEY, at INTEGER NOT NULL, pull BLOB NOT NULL, how INTEGER NOT NULL, job TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX entries_at ON entries (at);
CREATE TABLE destinations (id INTEGER PRIMARY KEY, state BLOB NOT NULL);
CREATE TABLE types (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE sums (source TEXT PRIMARY KEY, last INTEGER NOT NULL, sums BLOB NOT NULL) WITHOUT ROWID;
`

// tables are all that a ledger made anew empties.
var tables = []string{"gaps", "pulls", "messages", "frames", "entries", "destinations", "types", "sums"}

// Caches of SQLite, in KiB: they are outside of Go's heap. Readers are few, and rare.
const (
	writeCache = 4 << 10
	readCache  = 1 << 10
	readers    = 3
)

// Open opens the database in a folder, and makes both when they are not there. Errors:
// books.open_failed, books.damaged, books.newer.
func Open(ctx context.Context, dir string, o Options) (*Books, error) {
	b, err := open(dir, o)
	if err != nil {
		return nil, err
	}
	if err := b.prepare(ctx); err != nil {
		_ = b.Close()
		return nil, err
	}
	return b, nil
}

// OpenReadOnly opens books that another process keeps. Errors: as Open.
func OpenReadOnly(ctx context.Context, dir string) (*Books, error) {
	if _, err := os.Stat(filepath.Join(dir, File)); err != nil {
		return nil, errOpen.New(err, "open the books in %s", dir)
	}
	b, err := open(dir, Options{})
	if err != nil {
		return nil, err
	}
	if err := b.w.Close(); err != nil {
		return nil, errOpen.New(err, "open the books in %s", dir)
	}
	b.w = nil
	if err := b.check(ctx, b.r); err != nil {
		_ = b.Close()
		return nil, err
	}
	return b, nil
}

func open(dir string, o Options) (*Books, error) {
	if o.KeepFor == 0 {
		o.KeepFor = 90 * 24 * time.Hour
	}
	if o.KeepBytes == 0 {
		o.KeepBytes = 1 << 30
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil { //nolint:gosec // the operator names it
		return nil, errOpen.New(err, "open the books in %s", dir)
	}
	b := &Books{o: o, dir: dir, log: o.Log}
	var err error
	if b.w, err = sql.Open("sqlite", dsn(dir, "_txlock=immediate", "_pragma="+pragma("cache_size", -writeCache), "_pragma="+pragma("journal_mode", "WAL"),
		"_pragma="+pragma("wal_autocheckpoint", 2000), "_pragma="+pragma("journal_size_limit", 16<<20), "_pragma="+pragma("temp_store", "MEMORY"))); err != nil {
		return nil, errOpen.New(err, "open the books in %s", dir)
	}
	b.w.SetMaxOpenConns(1)
	if b.r, err = sql.Open("sqlite", dsn(dir, "_pragma="+pragma("cache_size", -readCache), "_pragma="+pragma("query_only", 1))); err != nil {
		return nil, errOpen.New(err, "open the books in %s", dir)
	}
	b.r.SetMaxOpenConns(readers)
	b.r.SetConnMaxIdleTime(time.Minute)
	return b, nil
}

// dsn names the database. A commit need not be on the disk at once: what a power cut
// takes away takes its position with it, and is folded again.
func dsn(dir string, options ...string) string {
	options = append(options, "_pragma="+pragma("busy_timeout", 10_000), "_pragma="+pragma("synchronous", "NORMAL"))
	return "file:" + (&url.URL{Path: filepath.Join(dir, File)}).EscapedPath() + "?" + strings.Join(options, "&")
}

func pragma(name string, value any) string { return fmt.Sprintf("%s(%v)", name, value) }

// check tells whether the database is ours, and of our time; fresh, whether it is empty.
func (b *Books) check(ctx context.Context, db *sql.DB) error {
	_, err := b.version(ctx, db)
	return err
}

func (b *Books) version(ctx context.Context, db *sql.DB) (int, error) {
	var id, version, objects int
	for q, into := range map[string]*int{
		"PRAGMA application_id": &id, "PRAGMA user_version": &version, "SELECT count(*) FROM sqlite_schema": &objects,
	} {
		if err := db.QueryRowContext(ctx, q).Scan(into); err != nil {
			return 0, b.judge(err, errOpen, "open the books in %s", b.dir)
		}
	}
	switch {
	case objects == 0:
		return 0, nil
	case id != applicationID:
		return 0, errDamaged.New(errors.New("it is a database of something else"), "open the books in %s", b.dir)
	case version > schemaVersion:
		return 0, errNewer.New(fmt.Errorf("they have version %d, this penstock knows %d", version, schemaVersion), "open the books in %s", b.dir)
	}
	return version, nil
}

// prepare makes the tables where there are none.
func (b *Books) prepare(ctx context.Context) error {
	version, err := b.version(ctx, b.w)
	if err != nil || version == schemaVersion {
		return err
	}
	tx, err := b.w.BeginTx(ctx, nil)
	if err != nil {
		return b.judge(err, errOpen, "open the books in %s", b.dir)
	}
	defer func() { _ = tx.Rollback() }()
	// Another process may have been faster.
	var objects int
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&objects); err != nil || objects > 0 {
		return b.judge(err, errOpen, "open the books in %s", b.dir)
	}
	for _, q := range []string{schema, "PRAGMA application_id = " + strconv.Itoa(applicationID), "PRAGMA user_version = " + strconv.Itoa(schemaVersion)} {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return b.judge(err, errOpen, "make the books in %s", b.dir)
		}
	}
	return b.judge(tx.Commit(), errOpen, "make the books in %s", b.dir)
}

// judge makes a fault of an error of the database, nil of none.
func (b *Books) judge(err error, kind *fault.Kind, format string, args ...any) error {
	if err == nil {
		return nil
	}
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	if errors.Is(err, ledger.ErrState) {
		return errDamaged.New(err, format, args...)
	}
	var e *sqlite.Error
	if errors.As(err, &e) {
		switch e.Code() & 0xff {
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return errDamaged.New(err, format, args...)
		}
	}
	return kind.New(err, format, args...)
}

// Close ends the books. Fold must have returned.
func (b *Books) Close() error {
	var err error
	if b.w != nil {
		err = b.w.Close()
	}
	if b.r != nil {
		err = errors.Join(err, b.r.Close())
	}
	return err
}

// states are those of pulls as the table has them.
var states = map[ledger.State]int{ledger.Balanced: 1, ledger.Open: 2, ledger.Unbalanced: 3, ledger.Partial: 4}
