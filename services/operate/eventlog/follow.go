package eventlog

import (
	"context"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/selection"
	"github.com/penstock/penstock/topology"
)

// tellEvery is how often who follows is told what was left out, when nothing else comes.
const tellEvery = time.Second

// Follow calls f for events that are stored from now on (from e.From on, if that is
// set; e.To means nothing here), at most rate a second (0: all), until ctx ends or f returns an error.
// leftOut is how many events there were since the last call that were not shown because of
// the rate; where an expression, a text or an object is asked for these were not looked
// at, so some of them would not have fit. It is also told with no event (nil), at most once a second.
// f keeps the event, but for its document.
func (l *Log) Follow(ctx context.Context, e jobs.Events, rate float64, f func(e *Found, leftOut uint64) error) error {
	if _, err := selection.New(e); err != nil {
		return err
	}
	h := l.bus.History(topology.Events, topology.EventSubjects(e.Types))
	first, end, err := bounds(ctx, h, jobs.Span{From: e.From})
	if err != nil {
		return err
	}
	if e.From.IsZero() {
		first = end
	}
	return l.FollowAfter(ctx, e, Place{Sequence: first}, rate, f)
}

// End is the place behind all that is stored.
func (l *Log) End(ctx context.Context) (Place, error) {
	_, end, err := l.bus.History(topology.Events, nil).Bounds(ctx)
	return Place{Sequence: end}, err
}

// FollowAfter is Follow from a place on.
func (l *Log) FollowAfter(ctx context.Context, e jobs.Events, from Place, rate float64, f func(e *Found, leftOut uint64) error) error {
	sel, err := selection.New(e)
	if err != nil {
		return err
	}
	w := follower{sel: sel, rate: newBucket(rate), f: f, told: time.Now()}
	return l.bus.History(topology.Events, sel.Subjects()).Follow(ctx, from.Sequence, w.frame, w.tell)
}

// follower shows what is stored.
type follower struct {
	sel     *selection.Selection
	room    selection.Scratch
	rate    *bucket
	f       func(*Found, uint64) error
	leftOut uint64
	told    time.Time
}

func (w *follower) frame(m topology.Stored) error {
	v, err := messages.DecodeFrame(m.Data)
	if err != nil {
		return nil //nolint:nilerr // deliver has put it into quarantine; it hides no other
	}
	// What will not be shown is not unpacked: who follows must cost the pipeline nothing.
	if !w.rate.has() {
		if w.sel.HasSource(v.Source()) {
			w.leftOut += uint64(v.Live())
		}
		return w.tell()
	}
	var stop error
	_, err = w.sel.Each(&v, &w.room, true, func(e *selection.Event) bool {
		if !w.rate.take() {
			w.leftOut++
			return true
		}
		shown := found(m, e)
		left := w.leftOut
		w.leftOut, w.told = 0, time.Now()
		stop = w.f(&shown, left)
		return stop == nil
	})
	if stop != nil || err != nil {
		return stop // a frame that cannot be read hides no other
	}
	return w.tell()
}

// tell says what was left out, at most once in a while.
func (w *follower) tell() error {
	if w.leftOut == 0 || time.Since(w.told) < tellEvery {
		return nil
	}
	left := w.leftOut
	w.leftOut, w.told = 0, time.Now()
	return w.f(nil, left)
}

// bucket lets so many a second through, a second's worth at once.
type bucket struct {
	rate, left float64
	at         time.Time
}

// newBucket makes one that is full; nil lets all through.
func newBucket(rate float64) *bucket {
	if rate <= 0 {
		return nil
	}
	return &bucket{rate: rate, left: max(1, rate), at: time.Now()}
}

func (b *bucket) has() bool {
	if b == nil {
		return true
	}
	now := time.Now()
	b.left = min(max(1, b.rate), b.left+b.rate*now.Sub(b.at).Seconds())
	b.at = now
	return b.left >= 1
}

func (b *bucket) take() bool {
	if b == nil {
		return true
	}
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}
