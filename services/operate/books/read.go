package books

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/known"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/topology"
)

// view is the books at one moment: what is read through it fits together.
type view struct {
	ctx  context.Context
	tx   *sql.Tx
	fold *ledger.Fold // nil until needed
	// changes of sums without a new position, up to when it was made.
	changes int
}

// look calls f with a view.
func (b *Books) look(ctx context.Context, what string, f func(v *view) error) error {
	b.mu.Lock()
	changes := b.changes
	b.mu.Unlock()
	tx, err := b.r.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return b.judge(err, errRead, "read %s from the books", what)
	}
	defer func() { _ = tx.Rollback() }()
	return b.judge(f(&view{ctx: ctx, tx: tx, changes: changes}), errRead, "read %s from the books", what)
}

// judge returns a fold that makes balances.
func (v *view) judge() (*ledger.Fold, error) {
	if v.fold != nil {
		return v.fold, nil
	}
	saved, _, err := readSaved(v.ctx, v.tx)
	if err != nil {
		return nil, err
	}
	v.fold, err = ledger.NewOn(v, saved, 0)
	return v.fold, err
}

// Pull implements [ledger.Store].
func (v *view) Pull(id messages.ID) (row int64, state []byte, err error) {
	return onePull(v.tx.QueryRowContext(v.ctx, "SELECT row, data FROM pulls WHERE pull = ?", id[:]))
}

// Page implements [ledger.Store].
func (v *view) Page(set string, page uint64) ([]byte, error) {
	return onePage(v.tx.QueryRowContext(v.ctx, "SELECT bits FROM frames WHERE part = ? AND page = ?", set, int64(page)))
}

// HasEntry implements [ledger.Store].
func (v *view) HasEntry(string) (bool, error) { return false, nil }

// found is a pull that was read.
type found struct {
	row    int64
	pull   ledger.Pull
	origin *messages.Origin
}

// pulls reads those of a query for row, pull and data.
func (v *view) pulls(query string, args ...any) (all []found, err error) {
	fold, err := v.judge()
	if err != nil {
		return nil, err
	}
	err = each(v.ctx, v.tx, query, func(r *sql.Rows) error {
		var f found
		var id, data []byte
		err := r.Scan(&f.row, &id, &data)
		if err == nil {
			f.pull, f.origin, err = fold.Balance(messages.ID(id), data)
		}
		all = append(all, f)
		return err
	}, args...)
	return all, err
}

// allSums returns the sums by source as they are at a position. They are shared: for
// reading only.
func (b *Books) allSums(v *view, position uint64) (map[string]*sums, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sums != nil && b.sumsAt == position {
		return b.sums, nil
	}
	all, err := readSums(v.ctx, v.tx)
	if err == nil && v.changes == b.changes { // else the view may be older than what was deleted
		b.sums, b.sumsAt = all, position
	}
	return all, err
}

// forgetSums is for what changes sums without a new position.
func (b *Books) forgetSums() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sums = nil
	b.changes++
}

// Summary implements [Reader].
func (b *Books) Summary(ctx context.Context) (s Summary, err error) {
	err = b.look(ctx, "the summary", func(v *view) error {
		place, err := readPlace(ctx, v.tx)
		if err != nil {
			return err
		}
		fold, err := v.judge()
		if err != nil {
			return err
		}
		all, err := b.allSums(v, place.position)
		if err != nil {
			return err
		}
		s.Total = ledger.Total{Announced: map[string]uint64{}, Ended: map[string]uint64{}}
		s.Destinations, s.Problems = fold.Destinations()
		s.Problems, s.Destinations = append([]string{}, s.Problems...), append([]ledger.Destination{}, s.Destinations...)
		at := map[string]int{}
		for i, d := range s.Destinations {
			at[d.Name] = i
		}
		for _, source := range all {
			s.Total.Join(&source.Total)
			for name, d := range source.Destinations {
				if i, ok := at[name]; ok {
					s.Destinations[i].Add(d, 1)
				}
			}
		}
		s.Facts, s.Unread = fold.Facts()
		s.Position, s.At = place.position, timeOf(place.at)
		s.Balanced, s.Since = s.Total.Unbalanced == 0 && len(s.Problems) == 0, timeOf(place.turned)
		var since, first int64
		if err := v.tx.QueryRowContext(ctx, "SELECT coalesce(min(since), 0) FROM pulls WHERE since > 0").Scan(&since); err != nil {
			return err
		}
		if since != 0 {
			s.Since = timeOf(since)
		}
		if err := v.tx.QueryRowContext(ctx, "SELECT count(*) FROM pulls WHERE since > 0 AND since < ?", b.overdue(time.Now())).Scan(&s.Overdue); err != nil {
			return err
		}
		if err := v.tx.QueryRowContext(ctx, "SELECT coalesce(min(first), 0) FROM pulls").Scan(&first); err != nil {
			return err
		}
		s.From = timeOf(first)
		if s.Gaps, err = readGaps(ctx, v.tx); err != nil {
			return err
		}
		for _, g := range s.Gaps {
			if g.First > 1 {
				s.Problems = append(s.Problems, fmt.Sprintf(
					"%d messages of LEDGER (%d to %d) were trimmed before they were folded; of what was announced before %s the balance cannot always be told",
					g.Last-g.First+1, g.First, g.Last, g.At.Format(time.RFC3339)))
			}
		}
		s.Bytes, _, err = sizes(ctx, v.tx)
		return err
	})
	if err != nil {
		return Summary{}, err
	}
	s.Behind, err = b.behind(ctx, s.Position)
	return s, err
}

// behind is how many messages there are after a position, 0 where the bus was never seen.
func (b *Books) behind(ctx context.Context, position uint64) (uint64, error) {
	b.mu.Lock()
	bus := b.bus
	b.mu.Unlock()
	if bus == nil {
		return 0, nil
	}
	extent, err := bus.Extent(ctx, topology.Ledger)
	if err != nil || extent.Next == 0 || extent.Next-1 < position {
		return 0, err
	}
	return extent.Next - 1 - position, nil
}

// Sources implements [Reader].
func (b *Books) Sources(ctx context.Context) (all []SourceBalance, err error) {
	err = b.look(ctx, "the sources", func(v *view) error {
		place, err := readPlace(ctx, v.tx)
		if err != nil {
			return err
		}
		sums, err := b.allSums(v, place.position)
		if err != nil {
			return err
		}
		since := map[string]int64{}
		err = each(ctx, v.tx, "SELECT source, min(since) FROM pulls WHERE since > 0 GROUP BY source", func(r *sql.Rows) error {
			var source string
			var at int64
			err := r.Scan(&source, &at)
			since[source] = at
			return err
		})
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(sums)) {
			s := sums[name]
			if s.Total.Pulls == 0 {
				continue
			}
			of := SourceBalance{Source: name, Total: s.Total, Last: timeOf(s.last), Since: timeOf(since[name])}
			for _, d := range slices.Sorted(maps.Keys(s.Destinations)) {
				of.Destinations = append(of.Destinations, *s.Destinations[d])
			}
			all = append(all, of)
		}
		return nil
	})
	return all, err
}

// A search for text looks at that many pulls at a time, until it has enough or
// searchTime has passed.
const (
	searchRows = 20_000
	searchTime = 2 * time.Second
)

// Pulls implements [Reader].
func (b *Books) Pulls(ctx context.Context, f Filter) (p Page, err error) {
	limit := f.Limit
	if limit <= 0 {
		limit = 100
	}
	limit = min(limit, MaxPulls)
	before := int64(1<<63 - 1)
	if f.After != "" {
		if before, err = strconv.ParseInt(f.After, 10, 64); err != nil {
			return p, ErrUnknown.New(nil, "go on after %.40q", f.After)
		}
	}
	where, args, err := f.where(b.overdue(time.Now()))
	if err != nil {
		return p, err
	}
	p.Pulls = []ledger.Pull{}
	began := time.Now()
	err = b.look(ctx, "pulls", func(v *view) error {
		for before > 1 {
			after := int64(0)
			if f.Text != "" { // the others have an index
				var top int64
				if err := v.tx.QueryRowContext(ctx, "SELECT coalesce(max(row), 0) FROM pulls").Scan(&top); err != nil {
					return err
				}
				before = min(before, top+1)
				after = max(0, before-1-searchRows)
			}
			all, err := v.pulls("SELECT row, pull, data FROM pulls WHERE row < ? AND row > ?"+where+" ORDER BY row DESC LIMIT ?",
				slices.Concat([]any{before, after}, args, []any{limit - len(p.Pulls)})...)
			if err != nil {
				return err
			}
			for i := range all {
				p.Pulls = append(p.Pulls, all[i].pull)
				before = all[i].row
			}
			if len(p.Pulls) == limit {
				break
			}
			before = after + 1
			if time.Since(began) > searchTime {
				break
			}
		}
		if before > 1 {
			p.Next = strconv.FormatInt(before, 10)
		}
		return nil
	})
	return p, err
}

// where is the filter as SQL: it names the conditions of the indexes that it can use.
func (f *Filter) where(overdue int64) (sql string, args []any, err error) {
	add := func(condition string, values ...any) {
		sql += " AND " + condition
		args = append(args, values...)
	}
	if f.Source != "" {
		add("source = ?", f.Source)
	}
	if f.State != "" {
		state, ok := states[f.State]
		if !ok {
			return "", nil, ErrUnknown.New(nil, "look for pulls in state %.40q: the states are balanced, open, unbalanced and partial", f.State)
		}
		add("state = ?", state)
		if f.State != ledger.Balanced {
			add("state <> 1")
		}
	}
	if f.Overdue {
		add("since > 0 AND since < ?", overdue)
	}
	if !f.From.IsZero() {
		add("first >= ?", f.From.UnixNano())
	}
	if !f.To.IsZero() {
		add("first < ?", f.To.UnixNano())
	}
	if f.Text != "" {
		add("instr(lower(origin), ?) > 0", strings.Map(lowerASCII, f.Text))
	}
	return sql, args, nil
}

// lowerASCII is what lower does in SQLite.
func lowerASCII(r rune) rune {
	if r >= 'A' && r <= 'Z' {
		return r + 'a' - 'A'
	}
	return r
}

// onePull reads one by its id.
func (v *view) onePull(id string) (found, error) {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) != len(messages.ID{}) {
		return found{}, ErrUnknown.New(nil, "look for pull %.40q: an id has 32 hex digits", id)
	}
	all, err := v.pulls("SELECT row, pull, data FROM pulls WHERE pull = ?", raw)
	if err == nil && len(all) == 0 {
		err = ErrUnknown.New(nil, "look for pull %s", id)
	}
	if err != nil {
		return found{}, err
	}
	return all[0], nil
}

// Pull implements [Reader].
func (b *Books) Pull(ctx context.Context, id string) (t Trail, err error) {
	err = b.look(ctx, "a pull", func(v *view) error {
		f, err := v.onePull(id)
		if err == nil {
			t, err = v.trail(f)
		}
		return err
	})
	return t, err
}

// Settled implements [Reader].
func (b *Books) Settled(ctx context.Context, eventType string, sequence uint64) (all []SettledFrame, err error) {
	err = b.look(ctx, "what is settled", func(v *view) error {
		fold, err := v.judge()
		if err != nil {
			return err
		}
		known, _ := fold.Destinations()
		for _, d := range known {
			done, err := fold.SettledFrame(d.Name, sequence)
			if err != nil {
				return err
			}
			if done || fold.Reads(d.Name, eventType) && sequence >= d.First {
				all = append(all, SettledFrame{d.Name, done})
			}
		}
		return nil
	})
	return all, err
}

// Known implements [known.Ledger].
func (b *Books) Known(ctx context.Context, q known.Question) (all []known.Of, behind uint64, err error) {
	var position uint64
	err = b.look(ctx, "objects", func(v *view) error {
		place, err := readPlace(ctx, v.tx)
		if err != nil {
			return err
		}
		position = place.position
		for i := range q.Objects {
			of, err := v.known(q.Bucket, &q.Objects[i])
			if err != nil {
				return err
			}
			all = append(all, of)
		}
		return nil
	})
	if err == nil {
		behind, err = b.behind(ctx, position)
	}
	return all, behind, err
}

// knownRank orders what pulls of one object say: what led furthest holds.
var knownRank = map[known.State]int{
	known.Never: 0, known.Changed: 1, known.Open: 2, known.Quarantined: 3, known.Truncated: 4, known.Complete: 5,
}

// known tells what became of an object.
func (v *view) known(bucket string, o *known.Object) (best known.Of, err error) {
	best.State = known.Never
	all, err := v.object(bucket, o.Key, maxKnown)
	parts := map[string][]known.Of{} // by the pull that they repeat
	for i := range all {
		if p := &all[i].pull; isPart(p) {
			parts[p.Again] = append(parts[p.Again], all[i].of())
		}
	}
	for i := range all {
		f := &all[i]
		of := f.of()
		if of.State == known.Never || isPart(&f.pull) {
			continue
		}
		if of.State == known.Complete && len(f.pull.Quarantined) > 0 {
			of = redriven(of, parts)
		}
		if !sameContent(o, f.origin) {
			of.State = known.Changed
		}
		if knownRank[of.State] > knownRank[best.State] {
			best = of
		}
	}
	return best, err
}

func (f *found) of() known.Of {
	return known.Of{State: stateOf(&f.pull), Pull: f.pull.Pull, Announced: f.pull.First, Code: f.pull.Code, Records: f.pull.Records, ETag: f.origin.GetEtag()}
}

// isPart tells whether a pull has records of another one only, as after a redrive: of the
// object it says nothing.
func isPart(p *ledger.Pull) bool { return p.Again != "" && p.As == "events" }

// redriven is what became of a pull whose records have left the quarantine: they are pulls
// of their own, and may have come back.
func redriven(of known.Of, parts map[string][]known.Of) known.Of {
	mine := parts[of.Pull]
	delete(parts, of.Pull)
	for _, part := range mine {
		if part.State == known.Complete {
			part = redriven(part, parts)
		}
		if part.State != known.Complete {
			return part
		}
	}
	return of
}

// maxKnown bounds the pulls that are looked at to tell what became of an object: each record
// that was redriven alone is one.
const maxKnown = 1000

// maxObject bounds the pulls of one object that are looked at, the latest ones.
const maxObject = 100

// object returns the pulls of an object, newest first.
func (v *view) object(bucket, key string, limit int) (all []found, err error) {
	all, err = v.pulls("SELECT row, pull, data FROM pulls WHERE object = ? ORDER BY row DESC LIMIT ?", hash(bucket, key), limit)
	return slices.DeleteFunc(all, func(f found) bool { return f.origin.GetBucket() != bucket || f.origin.GetKey() != key }), err
}

// sameContent tells whether a pull may have read what the bucket has now: by the version
// where both know it, else by the ETag.
func sameContent(o *known.Object, origin *messages.Origin) bool {
	tag := func(s string) string { return strings.Trim(s, `"`) }
	switch {
	case o.Version != "" && origin.GetVersion() != "":
		return o.Version == origin.GetVersion()
	case o.ETag != "" && origin.GetEtag() != "":
		return tag(o.ETag) == tag(origin.GetEtag())
	}
	return true
}

// stateOf says in the words of a reconciliation what became of a pull.
func stateOf(p *ledger.Pull) known.State {
	switch p.End {
	case "quarantined":
		return known.Quarantined
	case "truncated":
		return known.Truncated
	case "skipped":
		return known.Complete
	case "complete":
		// What waits for a destination is in the event log: to read it again would not help.
		logged := p.State == ledger.Unbalanced && p.As != "" && p.Missing+p.Extra == 0
		if p.State != ledger.Balanced && !logged {
			return known.Open
		}
		if inQuarantine(p) > 0 {
			return known.Quarantined
		}
		return known.Complete
	}
	switch p.As {
	case "quarantined":
		return known.Quarantined
	case "ignored", "test":
		return known.Never // e.g. that it was removed, before it was written again
	}
	return known.Open
}

// inQuarantine is how many records fetch and parse have there and nobody has taken out.
func inQuarantine(p *ledger.Pull) uint64 {
	var in, out uint64
	for _, n := range p.Quarantined {
		in += n
	}
	for _, r := range p.Resolved {
		if r.Stage == string(topology.Fetch) || r.Stage == string(topology.Parse) {
			out += r.Redriven + r.Discarded
		}
	}
	return in - min(in, out)
}
