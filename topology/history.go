package topology

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// History is a stream as a log that is read by position: without a consumer, without
// acks, and without holding anything back from the keeper. Its methods may be called
// concurrently.
type History struct {
	bus     *Bus
	stream  string
	filters []string

	mu     sync.Mutex
	handle jetstream.Stream
}

// History reads messages of a stream of [Flow] with subjects that fit one of the
// filters; none means all, but what is for one destination alone.
func (b *Bus) History(stream string, filters []string) *History {
	h := &History{bus: b, stream: stream, filters: distinct(filters)}
	if len(h.filters) == 0 {
		for _, s := range Flow {
			if s.Name == stream {
				h.filters = s.Subjects[:1]
			}
		}
	}
	return h
}

// distinct leaves out filters that another one covers.
func distinct(filters []string) []string {
	var kept []string
	for i, f := range filters {
		covered := false
		for j, other := range filters {
			covered = covered || i != j && covers(other, f) && (!covers(f, other) || j < i)
		}
		if !covered {
			kept = append(kept, f)
		}
	}
	return kept
}

// covers tells whether every subject that fits filter b fits a.
func covers(a, b string) bool {
	for {
		wordA, restA, moreA := strings.Cut(a, ".")
		wordB, restB, moreB := strings.Cut(b, ".")
		switch {
		case wordA == ">":
			return true
		case wordB == ">", wordA != "*" && wordA != wordB, moreA != moreB:
			return false
		case !moreA:
			return true
		}
		a, b = restA, restB
	}
}

func (h *History) open(ctx context.Context) (jetstream.Stream, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.handle != nil {
		return h.handle, nil
	}
	s, err := h.bus.js.Stream(ctx, h.stream)
	if err != nil {
		return nil, errRead.New(err, "look up stream %s", h.stream)
	}
	h.handle = s
	return s, nil
}

// Bounds are the first sequence that is kept and the one behind the last, whatever
// the subjects.
func (h *History) Bounds(ctx context.Context) (first, next uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	s, err := h.open(ctx)
	if err != nil {
		return 0, 0, err
	}
	info, err := s.Info(ctx)
	if err != nil {
		return 0, 0, errRead.New(err, "look up stream %s", h.stream)
	}
	return max(1, info.State.FirstSeq), info.State.LastSeq + 1, nil
}

// historyTimeout bounds one question to the server.
const historyTimeout = 10 * time.Second

// head is the first message of one filter at or after the place that is read.
type head struct {
	known bool
	none  bool
	m     Stored
}

// Read calls f for the messages from a sequence on, in order, as far as before
// sequence until, and for no other than those that are stored when it asks for them.
// It stops when f returns false. Only the messages that are handed over are fetched,
// one for each filter at a time.
func (h *History) Read(ctx context.Context, from, until uint64, f func(Stored) (bool, error)) error {
	heads := make([]head, len(h.filters))
	for from < until {
		next := -1
		for i, subject := range h.filters {
			// A filter that another overlaps may show what has been read.
			if hd := &heads[i]; !hd.none && (!hd.known || hd.m.Sequence < from) {
				m, ok, err := h.get(ctx, from, subject)
				if err != nil {
					return err
				}
				*hd = head{known: true, none: !ok || m.Sequence >= until, m: m}
			}
			if !heads[i].none && (next < 0 || heads[i].m.Sequence < heads[next].m.Sequence) {
				next = i
			}
		}
		if next < 0 {
			return nil
		}
		m := heads[next].m
		heads[next] = head{}
		more, err := f(m)
		if err != nil || !more {
			return err
		}
		from = m.Sequence + 1
	}
	return nil
}

// scanBatch is how many headers one pull of [History.Scan] asks for.
const scanBatch = 512

// Scan calls f for the messages from a sequence on, in order, as far as before sequence
// until, until f returns false. It streams them, which for a long stretch is far faster
// than Read; with headersOnly they come without data. What is trimmed meanwhile is
// passed over.
func (h *History) Scan(ctx context.Context, from, until uint64, headersOnly bool, f func(Stored) (bool, error)) error {
	if from = max(1, from); from >= until {
		return nil
	}
	r := h.reader(from, time.Time{})
	r.headersOnly = headersOnly
	if headersOnly {
		r.batch = scanBatch
	}
	end := errors.New("end")
	err := h.bus.read(ctx, r, func(m Stored) error {
		if m.Sequence >= until {
			return end
		}
		more, err := f(m)
		if err == nil && (!more || m.Sequence == until-1) {
			err = end
		}
		return err
	})
	if errors.Is(err, end) {
		return nil
	}
	return err
}

// Get returns the first message at or after a sequence, false when there is none.
func (h *History) Get(ctx context.Context, from uint64) (m Stored, found bool, err error) {
	err = h.Read(ctx, from, math.MaxUint64, func(at Stored) (bool, error) {
		m, found = at, true
		return false, nil
	})
	return m, found, err
}

// get returns the first message at or after a sequence whose subject fits.
func (h *History) get(ctx context.Context, from uint64, subject string) (Stored, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	s, err := h.open(ctx)
	if err != nil {
		return Stored{}, false, err
	}
	m, err := s.GetMsg(ctx, max(1, from), jetstream.WithGetMsgSubject(subject))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return h.getFromLeader(ctx, from, subject)
	}
	if err != nil {
		return Stored{}, false, errRead.New(err, "read %s at %d", subject, from)
	}
	stored := Stored{Subject: m.Subject, Sequence: m.Sequence, Time: m.Time, Data: m.Data}
	stored.read(m.Header)
	return stored, true, nil
}

// getFromLeader asks the leader of the stream. Any replica answers a direct get; one
// that lags knows the beginning of the log, so what it finds is right, but not that
// there is nothing more: who believed it would pass over events.
func (h *History) getFromLeader(ctx context.Context, from uint64, subject string) (Stored, bool, error) {
	m, found, err := h.bus.leaderGet(ctx, h.stream, map[string]any{"seq": max(1, from), "next_by_subj": subject})
	if err != nil {
		return Stored{}, false, errRead.New(err, "read %s at %d", subject, from)
	}
	return m, found, nil
}

// reader makes a reader of the headers from a sequence on, or when that is 0 from a
// time on.
func (h *History) reader(from uint64, since time.Time) *orderedReader {
	return &orderedReader{bus: h.bus, subject: h.filters[0], filters: h.filters, next: from, from: since, headersOnly: true}
}

// Since is the sequence of the first message that was stored at or after a time, and
// false when there is none.
func (h *History) Since(ctx context.Context, t time.Time) (uint64, bool, error) {
	m, n, err := h.first(ctx, h.reader(0, t))
	return m.Sequence, n > 0, err
}

// Pending counts the messages at and after a sequence, and says when the first of them
// was stored.
func (h *History) Pending(ctx context.Context, from uint64) (n uint64, oldest time.Time, err error) {
	m, n, err := h.first(ctx, h.reader(max(1, from), time.Time{}))
	return n, m.Time, err
}

// first returns the first message of a reader and how many there are.
func (h *History) first(ctx context.Context, r *orderedReader) (Stored, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	// The reader may live on a server that lags behind: the leader has the last word.
	last, err := h.bus.lastFor(ctx, h.stream, h.filters, r.from)
	if err != nil {
		return Stored{}, 0, err
	}
	if err := r.open(ctx); err != nil {
		return Stored{}, 0, err
	}
	defer r.Close()
	n := r.pending
	for n > 0 || last > 0 && r.next <= last {
		msg, meta, err := r.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return Stored{}, 0, errRead.New(context.Cause(ctx), "read %s", r.subject)
		case errors.Is(err, errIdle):
			if n = min(n, r.pending); r.consumer != "" && r.idle(ctx) {
				// Trimmed meanwhile, unless it only lags.
				if now, err := h.bus.lastFor(ctx, h.stream, h.filters, r.from); err != nil || now < max(1, r.next) {
					return Stored{}, 0, err
				}
			}
		case err != nil:
			return Stored{}, 0, err
		default:
			return storedOf(msg, meta), max(1, n), nil
		}
	}
	return Stored{}, 0, nil
}

// Wait returns nil as soon as there is a message at or after a sequence, and the cause
// of ctx when that ends before.
func (h *History) Wait(ctx context.Context, from uint64) error {
	r := h.reader(max(1, from), time.Time{})
	defer r.Close()
	for {
		_, _, err := r.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errIdle):
		default:
			return err
		}
	}
}

// Follow calls f for the messages from a sequence on, those to come included, until ctx
// ends (its cause is returned) or f returns an error. idle (may be nil) is called about
// once a second while nothing comes; its error ends it as well.
func (h *History) Follow(ctx context.Context, from uint64, f func(Stored) error, idle func() error) error {
	r := h.reader(max(1, from), time.Time{})
	r.headersOnly = false
	defer r.Close()
	for {
		msg, meta, err := r.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errIdle):
			if idle != nil {
				err = idle()
			} else {
				err = nil
			}
		case err == nil:
			err = f(storedOf(msg, meta))
		}
		if err != nil {
			return err
		}
	}
}

// Trim removes what a stream has before a sequence, whoever still needs it: for tests, and
// for those who know.
func (b *Bus) Trim(ctx context.Context, stream string, before uint64) error {
	s, err := b.js.Stream(ctx, stream)
	if err == nil {
		err = s.Purge(ctx, jetstream.WithPurgeSequence(before))
	}
	if err != nil {
		return errRead.New(err, "trim stream %s up to %d", stream, before)
	}
	return nil
}
