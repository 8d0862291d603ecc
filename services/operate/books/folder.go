package books

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"hash/fnv"
	"slices"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/topology"
)

// sums are the balance of a source.
type sums struct {
	Total        ledger.Total               `json:"total"`
	Destinations map[string]*ledger.Settled `json:"destinations"`
	last         int64
	dirty        bool
}

func (s *sums) add(p *ledger.Pull, times uint64) {
	s.Total.Add(p, times)
	for i := range p.Destinations {
		d := &p.Destinations[i]
		has := s.Destinations[d.Name]
		if has == nil {
			has = &ledger.Settled{Name: d.Name}
			s.Destinations[d.Name] = has
		}
		has.Add(d, times)
	}
	s.dirty = true
}

// cacheBytes bounds the pulls that the fold keeps in memory, roughly.
const cacheBytes = 4 << 20

// A transaction ends when it has changed that many pulls, after the message that did.
const maxChanged = 3000

// errMoved: another process folds the same books, and was faster.
var errMoved = errors.New("another process has folded on")

// folder is the fold with all that it has in memory. After an error it is of no use, and
// made anew from the database.
type folder struct {
	b     *Books
	ctx   context.Context // without an end: a transaction is short
	conn  *sql.Conn
	open  bool // a transaction is under way
	stmts map[string]*sql.Stmt
	fails func() error // of tests: before each statement
	fold  *ledger.Fold

	position uint64 // that is committed
	at       int64  // when the message of the transaction under way was stored
	turned   int64
	balanced bool
	sums     map[string]*sums
}

// placeRow is the one row of table place.
type placeRow struct {
	position                    uint64
	at, created, turned, forgot int64
	facts                       string
	unread                      uint64
}

type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func readPlace(ctx context.Context, q queryer) (p placeRow, err error) {
	err = q.QueryRowContext(ctx, "SELECT position, at, created, turned, forgot, facts, unread FROM place").
		Scan(&p.position, &p.at, &p.created, &p.turned, &p.forgot, &p.facts, &p.unread)
	return p, err
}

// readSaved reads what a fold begins with.
func readSaved(ctx context.Context, q queryer) (s ledger.Saved, p placeRow, err error) {
	if p, err = readPlace(ctx, q); err != nil {
		return s, p, err
	}
	if err := json.Unmarshal([]byte(p.facts), &s.Facts); err != nil {
		return s, p, err
	}
	s.Unread, s.Forgot = p.unread, timeOf(p.forgot)
	if err := q.QueryRowContext(ctx, "SELECT coalesce(max(row), 0) + 1 FROM pulls").Scan(&s.Next); err != nil {
		return s, p, err
	}
	err = each(ctx, q, "SELECT state FROM destinations ORDER BY id", func(r *sql.Rows) error {
		var state []byte
		err := r.Scan(&state)
		s.Destinations = append(s.Destinations, state)
		return err
	})
	if err != nil {
		return s, p, err
	}
	err = each(ctx, q, "SELECT name FROM types ORDER BY id", func(r *sql.Rows) error {
		var name string
		err := r.Scan(&name)
		s.Types = append(s.Types, name)
		return err
	})
	if err != nil {
		return s, p, err
	}
	gaps, err := readGaps(ctx, q)
	for _, g := range gaps {
		s.Gaps = append(s.Gaps, g.At)
	}
	return s, p, err
}

func readGaps(ctx context.Context, q queryer) (gaps []Gap, err error) {
	err = each(ctx, q, "SELECT first, last, at FROM gaps ORDER BY first", func(r *sql.Rows) error {
		var g Gap
		var at int64
		err := r.Scan(&g.First, &g.Last, &at)
		g.At = timeOf(at)
		gaps = append(gaps, g)
		return err
	})
	return gaps, err
}

func readSums(ctx context.Context, q queryer) (map[string]*sums, error) {
	all := map[string]*sums{}
	err := each(ctx, q, "SELECT source, last, sums FROM sums", func(r *sql.Rows) error {
		var source string
		var data []byte
		s := &sums{Destinations: map[string]*ledger.Settled{}}
		if err := r.Scan(&source, &s.last, &data); err != nil {
			return err
		}
		all[source] = s
		return json.Unmarshal(data, s)
	})
	return all, err
}

// each calls f for every row.
func each(ctx context.Context, q queryer, query string, f func(*sql.Rows) error, args ...any) error {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// newFolder reads what there is.
func newFolder(ctx context.Context, b *Books) (*folder, error) {
	f := &folder{b: b, ctx: context.WithoutCancel(ctx), stmts: map[string]*sql.Stmt{}}
	var err error
	if f.conn, err = b.w.Conn(ctx); err != nil {
		return nil, b.judge(err, errStore, "open the books")
	}
	if err := f.read(); err != nil {
		f.close()
		return nil, b.judge(err, errDamaged, "read the books")
	}
	return f, nil
}

func (f *folder) read() error {
	if err := f.lock(); err != nil {
		return f.b.judge(err, errStore, "read the books")
	}
	defer f.rollback()
	saved, place, err := readSaved(f.ctx, f.conn)
	if err != nil {
		return err
	}
	if f.sums, err = readSums(f.ctx, f.conn); err != nil {
		return err
	}
	f.fold, err = ledger.NewOn(f, saved, cacheBytes)
	f.position, f.turned, f.balanced = place.position, place.turned, f.unbalanced() == 0
	return err
}

// close gives up what is not committed.
func (f *folder) close() {
	for _, s := range f.stmts {
		_ = s.Close()
	}
	f.rollback()
	_ = f.conn.Close()
}

func (f *folder) unbalanced() (n int) {
	for _, s := range f.sums {
		n += s.Total.Unbalanced
	}
	return n
}

// stmt prepares a statement once for all transactions.
func (f *folder) stmt(query string) (*sql.Stmt, error) {
	s := f.stmts[query]
	if s == nil {
		var err error
		if s, err = f.conn.PrepareContext(f.ctx, query); err != nil {
			return nil, err
		}
		f.stmts[query] = s
	}
	return s, nil
}

func (f *folder) exec(query string, args ...any) error {
	if f.fails != nil {
		if err := f.fails(); err != nil {
			return err
		}
	}
	s, err := f.stmt(query)
	if err != nil {
		return err
	}
	_, err = s.ExecContext(f.ctx, args...)
	return err
}

// begin begins a transaction that may write, unless somebody else has moved the position.
func (f *folder) begin() error {
	if err := f.lock(); err != nil {
		return err
	}
	s, err := f.stmt("SELECT position FROM place")
	if err != nil {
		return err
	}
	var position uint64
	if err := s.QueryRowContext(f.ctx).Scan(&position); err != nil {
		return err
	}
	if position != f.position {
		return errMoved
	}
	return nil
}

func (f *folder) lock() error {
	_, err := f.conn.ExecContext(f.ctx, "BEGIN IMMEDIATE")
	f.open = err == nil
	return err
}

func (f *folder) rollback() {
	if f.open {
		f.open = false
		_, _ = f.conn.ExecContext(f.ctx, "ROLLBACK") // else closing the connection does
	}
}

// add folds messages of LEDGER, in order and all of one stream, in as many transactions
// as they need. After an error the folder is of no use any more.
func (f *folder) add(batch []topology.Stored) error {
	for len(batch) > 0 {
		n, err := f.transaction(batch)
		if err != nil {
			f.rollback()
			return err
		}
		batch = batch[n:]
	}
	return nil
}

// transaction folds some of the messages and returns how many.
func (f *folder) transaction(batch []topology.Stored) (int, error) {
	if err := f.begin(); err != nil {
		return 0, err
	}
	position, n, facts := f.position, 0, 0
	for n < len(batch) && f.fold.Changed() < maxChanged {
		m := &batch[n]
		n++
		if m.Sequence <= position {
			continue
		}
		f.at = m.Time.UnixNano()
		if m.Sequence > position+1 {
			if err := f.gap(position+1, m.Sequence-1); err != nil {
				return 0, err
			}
		}
		position = m.Sequence
		said, err := messages.DecodeFacts(m.Data)
		if err != nil {
			// It was stored like that, and will not get better: the books go on without it.
			f.b.log.Error("facts of the ledger cannot be read", "sequence", m.Sequence, "subject", m.Subject, "err", err)
			factsUnread.Inc()
			continue
		}
		facts += len(said.GetFacts())
		f.fold.AddAt(m.Time, said.GetStage(), said)
	}
	if position == f.position {
		f.rollback()
		return n, nil
	}
	rejudge, err := f.fold.Flush(f)
	if err != nil {
		return 0, err
	}
	if rejudge {
		if err := f.rejudge(); err != nil {
			return 0, err
		}
	}
	if err := f.commit(position); err != nil {
		return 0, err
	}
	factsFolded.Add(float64(facts))
	return n, nil
}

// gap notes that messages are missing.
func (f *folder) gap(first, last uint64) error {
	if first > 1 {
		f.b.log.Error("facts were trimmed from LEDGER before they were folded; of what they are about the balance cannot be told",
			"first", first, "last", last)
	}
	f.fold.Gap(timeOf(f.at))
	err := f.exec("INSERT INTO gaps VALUES (?, ?, ?)", int64(first), int64(last), f.at)
	return err
}

// commit stores the sums and the position.
func (f *folder) commit(position uint64) error {
	if err := f.writeSums(); err != nil {
		return err
	}
	if balanced := f.unbalanced() == 0; balanced != f.balanced || f.turned == 0 {
		f.balanced, f.turned = balanced, f.at
	}
	byStage, unread := f.fold.Facts()
	facts, err := json.Marshal(byStage)
	if err != nil {
		return err
	}
	if err := f.exec("UPDATE place SET position = ?, at = ?, turned = ?, facts = ?, unread = ?",
		int64(position), f.at, f.turned, string(facts), int64(unread)); err != nil {
		return err
	}
	if err := f.end(); err != nil {
		return err
	}
	f.position = position
	return nil
}

func (f *folder) writeSums() error {
	for source, s := range f.sums {
		if !s.dirty {
			continue
		}
		data, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if err := f.exec("INSERT INTO sums VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET last = excluded.last, sums = excluded.sums", source, s.last, data); err != nil {
			return err
		}
		s.dirty = false
	}
	return nil
}

// end commits the transaction.
func (f *folder) end() error {
	_, err := f.conn.ExecContext(f.ctx, "COMMIT")
	if err == nil {
		f.open = false
	}
	return err
}

// source returns the sums of one.
func (f *folder) source(name string) *sums {
	s := f.sums[name]
	if s == nil {
		s = &sums{Destinations: map[string]*ledger.Settled{}}
		f.sums[name] = s
	}
	return s
}

// rejudge makes all balances and sums anew: what is expected has changed.
func (f *folder) rejudge() error {
	for _, s := range f.sums {
		last := s.last
		*s = sums{Destinations: map[string]*ledger.Settled{}, last: last, dirty: true}
	}
	type changed struct {
		row   int64
		state int
		since int64
		data  []byte
	}
	var row int64
	for more := true; more; {
		more = false
		var all []changed
		err := each(f.ctx, f.conn, "SELECT row, pull, state, data FROM pulls WHERE row > ? ORDER BY row LIMIT 500", func(r *sql.Rows) error {
			var pull, data []byte
			var state int
			if err := r.Scan(&row, &pull, &state, &data); err != nil {
				return err
			}
			more = true
			p, written, err := f.fold.Judge(messages.ID(pull), data, timeOf(f.at))
			if err != nil {
				return err
			}
			f.source(p.Source).add(&p, 1)
			if now := states[p.State]; written != nil || now != state {
				if written == nil {
					written = slices.Clone(data)
				}
				all = append(all, changed{row, now, unixOf(p.Since), written})
			}
			return nil
		}, row)
		if err != nil {
			return err
		}
		for _, c := range all {
			if err := f.exec("UPDATE pulls SET state = ?, since = ?, data = ? WHERE row = ?", c.state, c.since, c.data, c.row); err != nil {
				return err
			}
		}
	}
	return nil
}

// Pull implements [ledger.Store].
func (f *folder) Pull(id messages.ID) (row int64, state []byte, err error) {
	s, err := f.stmt("SELECT row, data FROM pulls WHERE pull = ?")
	if err != nil {
		return 0, nil, err
	}
	return onePull(s.QueryRowContext(f.ctx, id[:]))
}

func onePull(r *sql.Row) (row int64, state []byte, err error) {
	err = r.Scan(&row, &state)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil, nil
	}
	return row, state, err
}

// Page implements [ledger.Store].
func (f *folder) Page(set string, page uint64) (bits []byte, err error) {
	s, err := f.stmt("SELECT bits FROM frames WHERE part = ? AND page = ?")
	if err != nil {
		return nil, err
	}
	return onePage(s.QueryRowContext(f.ctx, set, int64(page)))
}

func onePage(r *sql.Row) (bits []byte, err error) {
	err = r.Scan(&bits)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return bits, err
}

// HasEntry implements [ledger.Store].
func (f *folder) HasEntry(entry string) (bool, error) {
	s, err := f.stmt("SELECT count(*) FROM entries WHERE entry = ?")
	if err != nil {
		return false, err
	}
	var n int
	err = s.QueryRowContext(f.ctx, entry).Scan(&n)
	return n > 0, err
}

// WritePull implements [ledger.Writer].
func (f *folder) WritePull(r *ledger.Row) error {
	now := f.source(r.After.Source)
	now.add(&r.After, 1)
	last := unixOf(r.After.Last)
	now.last = max(now.last, last)
	var err error
	if r.Before != nil {
		f.source(r.Before.Source).add(r.Before, ledger.Minus)
		err = f.exec("UPDATE pulls SET source = ?, state = ?, last = ?, since = ?, origin = ?, object = ?, message = ?, again = ?, data = ? WHERE row = ?",
			r.After.Source, states[r.After.State], last, unixOf(r.After.Since), r.After.Origin, objectOf(r.Origin), messageOf(r.Origin), nullBlob(r.Again), r.State, r.Row)
	} else {
		err = f.exec("INSERT INTO pulls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", r.Row, r.ID[:], r.After.Source, states[r.After.State],
			unixOf(r.After.First), last, unixOf(r.After.Since), r.After.Origin, objectOf(r.Origin), messageOf(r.Origin), nullBlob(r.Again), r.State)
	}
	if err == nil && len(r.MessageIDs) > 0 {
		err = f.exec("INSERT INTO messages VALUES (?, ?) ON CONFLICT DO UPDATE SET ids = excluded.ids", r.Row, r.MessageIDs)
	}
	return err
}

// WritePage implements [ledger.Writer].
func (f *folder) WritePage(set string, page uint64, bits []byte) error {
	err := f.exec("INSERT INTO frames VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET at = excluded.at, bits = excluded.bits", set, int64(page), f.at, bits)
	return err
}

// WriteDestination implements [ledger.Writer].
func (f *folder) WriteDestination(index int, state []byte) error {
	err := f.exec("INSERT INTO destinations VALUES (?, ?) ON CONFLICT DO UPDATE SET state = excluded.state", index, state)
	return err
}

// WriteType implements [ledger.Writer].
func (f *folder) WriteType(index int, name string) error {
	err := f.exec("INSERT INTO types VALUES (?, ?)", index, name)
	return err
}

// WriteEntry implements [ledger.Writer].
func (f *folder) WriteEntry(entry string, r ledger.Resolution) error {
	err := f.exec("INSERT INTO entries VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", entry, f.at, r.Pull[:], int(r.GetHow()), r.GetJob())
	return err
}

// objectOf is the number by which an object is looked up, nil where there is none.
func objectOf(o *messages.Origin) any {
	if o.GetBucket() == "" && o.GetKey() == "" {
		return nil
	}
	return hash(o.GetBucket(), o.GetKey())
}

func messageOf(o *messages.Origin) any {
	if o.GetMessageId() == "" {
		return nil
	}
	return hash(o.GetMessageId())
}

// hash is short: whoever looks something up by it compares what is found.
func hash(parts ...string) int64 {
	h := fnv.New64a()
	for _, p := range parts {
		_, _ = h.Write([]byte(p))
		_, _ = h.Write([]byte{0})
	}
	return int64(h.Sum64())
}

func nullBlob(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}

func unixOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func timeOf(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
