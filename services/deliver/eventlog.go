package deliver

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/topology"
)

var framesUnreadable = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "penstock_deliver_log_unreadable_frames_total",
	Help: "Frames that cannot be decoded and were passed over by who reads the log of a destination by position. The destination's own consumer puts them into quarantine.",
}, []string{"destination"})

// EventLog is the event log as a destination sees it. It implements [sinks.EventLog].
type EventLog struct {
	lens    *lens
	bus     *topology.Bus
	types   []string
	history *topology.History
}

// NewEventLog reads the log for a destination whose configuration is good.
func NewEventLog(cfg Destination, bus *topology.Bus) (*EventLog, error) {
	l, err := newLens(cfg)
	if err != nil {
		return nil, err
	}
	return newEventLog(&l, bus, cfg.Types), nil
}

func newEventLog(l *lens, bus *topology.Bus, types []string) *EventLog {
	return &EventLog{lens: l, bus: bus, types: types, history: bus.History(topology.Events, topology.EventSubjects(types))}
}

// Only implements [sinks.EventLog].
func (l *EventLog) Only(types []string) (sinks.EventLog, error) {
	if _, err := condition.ParseTypes(types); err != nil {
		return nil, err
	}
	if len(types) == 0 {
		return l, nil
	}
	if len(l.types) == 0 {
		return newEventLog(l.lens, l.bus, types), nil
	}
	both, ok := condition.Narrow(l.types, types)
	if !ok {
		return nil, sinks.ErrNoTypes.New(nil, "read %s of destination %s, which has %s", strings.Join(types, ", "), l.lens.destination, strings.Join(l.types, ", "))
	}
	return newEventLog(l.lens, l.bus, both), nil
}

// Subjects implements [sinks.EventLog].
func (l *EventLog) Subjects() []string { return topology.EventSubjects(l.types) }

// Bounds implements [sinks.EventLog].
func (l *EventLog) Bounds(ctx context.Context, since time.Time) (first, at, next uint64, err error) {
	if first, next, err = l.history.Bounds(ctx); err != nil {
		return 0, 0, 0, err
	}
	if since.IsZero() {
		return first, first, next, nil
	}
	at, found, err := l.history.Since(ctx, since)
	if !found {
		at = next
	}
	return first, at, next, err
}

// keptEvery is after how many frames a reader makes sure that the keeper has not
// trimmed what it was about to read.
const keptEvery = 64

// passage is how far one Read is.
type passage struct {
	log *EventLog
	f   func(sinks.Place, *sinks.Event) bool
	at  sinks.Place
	// known is up to where nothing was trimmed before it was read, gap that a frame
	// after that does not follow the one before: it has another type, or is gone.
	known  uint64
	gap    bool
	frames int
}

// Read implements [sinks.EventLog].
func (l *EventLog) Read(ctx context.Context, from sinks.Place, f func(sinks.Place, *sinks.Event) bool) (sinks.Place, error) {
	first, next, err := l.history.Bounds(ctx)
	switch {
	case err != nil:
		return from, err
	case from.Sequence < first:
		return from, sinks.ErrLogTrimmed.New(nil, "read the log of destination %s at %d, which begins at %d", l.lens.destination, from.Sequence, first)
	case from.Sequence > next:
		return from, sinks.ErrLogTrimmed.New(nil, "read the log of destination %s at %d, which ends at %d: it was made anew", l.lens.destination, from.Sequence, next)
	}
	r := &passage{log: l, f: f, at: from, known: from.Sequence}
	more := true
	err = l.history.Read(ctx, from.Sequence, next, func(m topology.Stored) (bool, error) {
		if r.frames++; r.frames%keptEvery == 0 {
			if err := r.kept(ctx); err != nil {
				return false, err
			}
		}
		r.gap = r.gap || m.Sequence != r.at.Sequence
		more = r.frame(m)
		return more, nil
	})
	// Behind the last frame there may have been others that are gone.
	r.gap = r.gap || err == nil && more && r.at.Sequence != next
	// Asked also when ctx has ended: what was handed over until then counts.
	if keptErr := r.kept(context.WithoutCancel(ctx)); keptErr != nil {
		return from, errors.Join(keptErr, err)
	}
	if err == nil && more {
		r.at = sinks.Place{Sequence: next}
	}
	return r.at, err
}

// kept makes sure that what was passed since the last time had not been trimmed.
func (r *passage) kept(ctx context.Context) error {
	if !r.gap {
		r.known = r.at.Sequence
		return nil
	}
	first, _, err := r.log.history.Bounds(ctx)
	if err != nil {
		return err
	}
	if first > r.known {
		return sinks.ErrLogTrimmed.New(nil, "read the log of destination %s at %d, which begins at %d by now", r.log.lens.destination, r.known, first)
	}
	r.known, r.gap = r.at.Sequence, false
	return nil
}

// frame hands over the events of a frame and returns whether to go on.
func (r *passage) frame(m topology.Stored) bool {
	l, index := r.log.lens, 0
	if m.Sequence == r.at.Sequence {
		index = r.at.Index
	}
	behind := sinks.Place{Sequence: m.Sequence + 1}
	s := takeScratch()
	defer giveScratch(s)
	v, err := messages.DecodeFrame(m.Data)
	if err == nil {
		err = s.read(&v, true)
	}
	if err != nil {
		framesUnreadable.WithLabelValues(l.destination).Inc()
		r.at = behind
		return true
	}
	more := true
	l.each(&v, s, l.leftOut(&v, s), index, func(i int, e *sinks.Event) bool {
		if e == nil {
			return true // a mask does not understand it; it is in quarantine
		}
		at := sinks.Place{Sequence: m.Sequence, Index: i}
		if more = r.f(at, e); !more {
			behind = at
		}
		return more
	})
	r.at = behind
	return more
}

// Wait implements [sinks.EventLog].
func (l *EventLog) Wait(ctx context.Context, from sinks.Place) error {
	return l.history.Wait(ctx, from.Sequence)
}

// Behind implements [sinks.EventLog].
func (l *EventLog) Behind(ctx context.Context, from sinks.Place) (uint64, time.Time, error) {
	return l.history.Pending(ctx, from.Sequence)
}
