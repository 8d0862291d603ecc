package books

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/known"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/topology"
)

// A batch of messages is folded when it has that many bytes, or when linger has passed
// since its first. Housekeeping is done every upkeep.
const (
	batchBytes = 1 << 20
	linger     = 250 * time.Millisecond
	upkeep     = time.Minute
)

// errAnew: LEDGER is not the stream that the books were folded from.
var errAnew = errors.New("the stream was made anew")

// Fold follows LEDGER until ctx ends, and answers the questions of other processes.
// What may pass is tried again. Errors: books.damaged.
func (b *Books) Fold(ctx context.Context, bus *topology.Bus) error {
	b.remember(bus)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return known.Serve(ctx, bus, b) })
	g.Go(func() error { return b.serve(ctx, bus) })
	g.Go(func() error {
		for wait := 250 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
			began := time.Now()
			err := b.foldOnce(ctx, bus, false, nil)
			switch {
			case ctx.Err() != nil:
				return nil //nolint:nilerr // asked to stop
			case fault.ClassOf(err) == fault.Stop:
				return err
			case errors.Is(err, errMoved), errors.Is(err, errAnew): // go on behind it, or anew
				continue
			}
			if time.Since(began) > time.Minute {
				wait = 250 * time.Millisecond
			}
			b.log.Warn("the ledger is not folded, trying on", "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(wait):
			}
		}
	})
	return g.Wait()
}

// CatchUp folds what is stored now. progress may be nil.
func (b *Books) CatchUp(ctx context.Context, bus *topology.Bus, progress Progress) error {
	b.remember(bus)
	for {
		err := b.foldOnce(ctx, bus, true, progress)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errMoved), errors.Is(err, errAnew):
			continue
		}
		return err
	}
}

func (b *Books) remember(bus *topology.Bus) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bus = bus
}

// foldOnce folds until something goes wrong or ctx ends, or no further than what is
// stored at the beginning.
func (b *Books) foldOnce(ctx context.Context, bus *topology.Bus, now bool, progress Progress) error {
	f, err := newFolder(ctx, b)
	if err != nil {
		return err
	}
	defer f.close()
	extent, err := f.identify(ctx, bus)
	if err != nil {
		return err
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	incoming := make(chan topology.Stored, 4)
	var readErr error // before incoming is closed
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(incoming)
		span := topology.Span{Subject: "penstock.ledger.>", FromSequence: f.position + 1}
		send := func(m topology.Stored) error {
			select {
			case incoming <- m:
				return nil
			case <-reading.Done():
				return context.Cause(reading)
			}
		}
		if now {
			readErr = bus.Read(reading, span, send)
			return
		}
		readErr = bus.Follow(reading, span, send)
	}()
	tell := func() {}
	if progress != nil {
		begin := max(f.position, extent.First-1)
		tell = func() { progress(max(f.position, begin)-begin, max(extent.Next-1, begin)-begin) }
	}
	err = f.run(ctx, bus, incoming, tell)
	stop()
	<-done
	if err == nil {
		err = readErr
	}
	return b.judge(err, errStore, "fold the ledger")
}

// identify sees that LEDGER is what the books were folded from, and begins them anew when
// it is not.
func (f *folder) identify(ctx context.Context, bus *topology.Bus) (topology.Extent, error) {
	extent, err := bus.Extent(ctx, topology.Ledger)
	if err != nil {
		return extent, err
	}
	place, err := readPlace(f.ctx, f.conn)
	if err != nil {
		return extent, err
	}
	created := extent.Created.UnixNano()
	switch {
	case place.created == created && place.position < extent.Next:
		return extent, nil
	case place.created != 0 || place.position >= extent.Next:
		if err := f.anew(ctx, place, extent); err != nil {
			return extent, err
		}
	}
	_, err = f.conn.ExecContext(f.ctx, "UPDATE place SET created = ?", created)
	return extent, err
}

// anew puts what there is aside and empties the books: sequences of a new stream mean
// other messages.
func (f *folder) anew(ctx context.Context, place placeRow, extent topology.Extent) error {
	aside := filepath.Join(f.b.dir, "books-until-"+time.Now().UTC().Format("20060102T150405")+".db")
	old, _ := filepath.Glob(filepath.Join(f.b.dir, "books-until-*.db"))
	for _, name := range old { // one is enough
		_ = os.Remove(name) //nolint:gosec // the pattern keeps it within our folder
	}
	if _, err := f.conn.ExecContext(ctx, "VACUUM INTO ?", aside); err != nil {
		return fmt.Errorf("put the books aside as %s: %w", aside, err)
	}
	f.b.log.Warn("the stream LEDGER was made anew: the books begin anew as well, what they were is put aside",
		"folded", place.position, "last", extent.Next-1, "made", extent.Created, "aside", aside)
	if err := f.begin(); err != nil {
		return err
	}
	for _, t := range tables {
		if _, err := f.conn.ExecContext(f.ctx, "DELETE FROM "+t); err != nil { //nolint:gosec // the names are ours
			return err
		}
	}
	if _, err := f.conn.ExecContext(f.ctx, "UPDATE place SET position = 0, at = 0, created = 0, turned = 0, forgot = 0, facts = '{}', unread = 0"); err != nil {
		return err
	}
	if err := f.end(); err != nil {
		return err
	}
	f.b.forgetSums()
	return f.read()
}

// run folds what comes in until that ends or ctx does.
func (f *folder) run(ctx context.Context, bus *topology.Bus, incoming <-chan topology.Stored, tell func()) error {
	tick := time.NewTicker(upkeep)
	defer tick.Stop()
	due := time.NewTimer(linger)
	due.Stop()
	var batch []topology.Stored
	size := 0
	flush := func() error {
		err := f.add(batch)
		clear(batch)
		batch, size = batch[:0], 0
		tell()
		return err
	}
	if err := f.upkeep(ctx, bus); err != nil {
		return err
	}
	tell()
	for {
		select {
		case m, ok := <-incoming:
			if !ok {
				return flush()
			}
			if len(batch) == 0 {
				due.Reset(linger)
			}
			batch = append(batch, m)
			if size += len(m.Data); size < batchBytes {
				continue
			}
			due.Stop()
			if err := flush(); err != nil {
				return err
			}
		case <-due.C:
			if err := flush(); err != nil {
				return err
			}
		case <-tick.C:
			if err := f.upkeep(ctx, bus); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// upkeep looks whether the stream is still the same, forgets what is too old or too much,
// and tells the metrics.
func (f *folder) upkeep(ctx context.Context, bus *topology.Bus) error {
	extent, err := bus.Extent(ctx, topology.Ledger)
	if err == nil {
		place, err := readPlace(f.ctx, f.conn)
		if err != nil {
			return err
		}
		if extent.Created.UnixNano() != place.created || place.position >= extent.Next {
			return errAnew
		}
		messagesBehind.Set(float64(extent.Next - 1 - place.position))
	}
	f.b.lags(ctx, bus)
	if err := f.prune(ctx, time.Now()); err != nil {
		return err
	}
	var overdue int
	if err := f.conn.QueryRowContext(f.ctx, "SELECT count(*) FROM pulls WHERE since > 0 AND since < ?", f.b.overdue(time.Now())).Scan(&overdue); err != nil {
		return err
	}
	pullsUnbalanced.Set(float64(overdue))
	pullsUnsettled.Set(float64(f.unbalanced()))
	size, _, err := sizes(f.ctx, f.conn)
	if err != nil {
		return err
	}
	booksBytes.Set(float64(size))
	gaps, err := readGaps(f.ctx, f.conn)
	if err != nil {
		return err
	}
	lost := uint64(0)
	for _, g := range gaps {
		if g.First > 1 {
			lost += g.Last - g.First + 1
		}
	}
	messagesLost.Set(float64(lost))
	return nil
}

// sizes are the bytes of the database and those of them that are in use.
func sizes(ctx context.Context, q queryer) (size, used int64, err error) {
	var page, pages, free int64
	err = errors.Join(
		q.QueryRowContext(ctx, "PRAGMA page_size").Scan(&page),
		q.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages),
		q.QueryRowContext(ctx, "PRAGMA freelist_count").Scan(&free))
	return page * pages, page * (pages - free), err
}

// Frames are forgotten keepFrames after the last of their page was settled, but never
// the last pages: they say which facts are repetitions of what was counted.
const (
	keepFrames = 3 * 24 * time.Hour
	keepPages  = 16
)

// pruneBatch is how many pulls are deleted in one transaction.
const pruneBatch = 500

// prune deletes what is too old, and the oldest while there is too much.
func (f *folder) prune(ctx context.Context, now time.Time) error {
	old := now.Add(-f.b.o.KeepFor).UnixNano()
	for ctx.Err() == nil {
		n, err := f.delete("SELECT row, pull, last, data FROM pulls WHERE first < ? AND last < ? ORDER BY first LIMIT ?", old, old, pruneBatch)
		if err != nil {
			return err
		}
		if n < pruneBatch {
			break
		}
	}
	for ctx.Err() == nil {
		_, used, err := sizes(f.ctx, f.conn)
		if err != nil {
			return err
		}
		if used <= f.b.o.KeepBytes {
			break
		}
		n, err := f.delete("SELECT row, pull, last, data FROM pulls ORDER BY row LIMIT ?", pruneBatch)
		if err != nil || n == 0 {
			return err
		}
	}
	_, err := f.conn.ExecContext(f.ctx, `DELETE FROM frames WHERE at < ? AND page + ? < (SELECT max(o.page) FROM frames o WHERE o.part = frames.part)`,
		now.Add(-keepFrames).UnixNano(), keepPages)
	if err == nil {
		// Sets of replays have no pages that follow.
		_, err = f.conn.ExecContext(f.ctx, `DELETE FROM frames WHERE at < ? AND part LIKE 'replay %'`, old)
	}
	if err == nil {
		_, err = f.conn.ExecContext(f.ctx, "DELETE FROM entries WHERE at < ?", old)
	}
	if err == nil {
		// A gap is over when no pull is kept of which it may have swallowed facts.
		_, err = f.conn.ExecContext(f.ctx, "DELETE FROM gaps WHERE at < ?1 AND at + ?2 <= coalesce((SELECT min(first) FROM pulls), at + ?2)",
			old, int64(ledger.LateFacts))
	}
	return err
}

// delete deletes the pulls of a query, and takes them out of the sums.
func (f *folder) delete(query string, args ...any) (int, error) {
	if err := f.begin(); err != nil {
		return 0, err
	}
	defer f.rollback()
	type gone struct {
		row    int64
		source string
		p      ledger.Pull
	}
	var all []gone
	var ids []messages.ID
	until := int64(0)
	err := each(f.ctx, f.conn, query, func(r *sql.Rows) error {
		var row, last int64
		var pull, data []byte
		if err := r.Scan(&row, &pull, &last, &data); err != nil {
			return err
		}
		p, _, err := f.fold.Balance(messages.ID(pull), data)
		if err != nil {
			return err
		}
		until = max(until, last)
		all, ids = append(all, gone{row, p.Source, p}), append(ids, messages.ID(pull))
		return nil
	}, args...)
	if err != nil || len(all) == 0 {
		return 0, err
	}
	for i := range all {
		f.source(all[i].source).add(&all[i].p, ledger.Minus)
		for _, q := range []string{"DELETE FROM pulls WHERE row = ?", "DELETE FROM messages WHERE row = ?"} {
			if err := f.exec(q, all[i].row); err != nil {
				return 0, err
			}
		}
	}
	if err := f.writeSums(); err != nil {
		return 0, err
	}
	if err := f.exec("UPDATE place SET forgot = max(forgot, ?)", until); err != nil {
		return 0, err
	}
	if err := f.end(); err != nil {
		return 0, err
	}
	f.fold.Forgot(timeOf(until), ids)
	f.b.forgetSums()
	return len(all), nil
}
