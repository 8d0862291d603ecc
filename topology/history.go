package topology

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
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
// filters; none means all.
func (b *Bus) History(stream string, filters []string) *History {
	h := &History{bus: b, stream: stream, filters: distinct(filters)}
	if len(h.filters) == 0 {
		for _, s := range Flow {
			if s.Name == stream {
				h.filters = []string{s.Subjects}
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
	return Stored{Subject: m.Subject, Sequence: m.Sequence, Time: m.Time, ID: m.Header.Get(nats.MsgIdHdr), Data: m.Data}, true, nil
}

// getFromLeader asks the leader of the stream. Any replica answers a direct get; one
// that lags knows the beginning of the log, so what it finds is right, but not that
// there is nothing more: who believed it would pass over events.
func (h *History) getFromLeader(ctx context.Context, from uint64, subject string) (Stored, bool, error) {
	request, _ := json.Marshal(map[string]any{"seq": max(1, from), "next_by_subj": subject}) // cannot fail
	reply, err := h.bus.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+h.stream, request)
	if err != nil {
		return Stored{}, false, errRead.New(err, "read %s at %d", subject, from)
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	if err := json.Unmarshal(reply.Data, &answer); err != nil {
		return Stored{}, false, errRead.New(err, "read %s at %d", subject, from)
	}
	switch m := answer.Message; {
	case answer.Error == nil && m.Seq > 0:
		return Stored{Subject: m.Subject, Sequence: m.Seq, Time: m.Time, Data: m.Data}, true, nil
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return Stored{}, false, nil
	case answer.Error != nil:
		return Stored{}, false, errRead.New(answer.Error, "read %s at %d", subject, from)
	}
	return Stored{}, false, errRead.New(nil, "read %s at %d: the server's answer has no message", subject, from)
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
	if err := r.open(ctx); err != nil {
		return Stored{}, 0, err
	}
	defer r.Close()
	n := r.pending
	for n > 0 {
		msg, meta, err := r.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return Stored{}, 0, errRead.New(context.Cause(ctx), "read %s", r.subject)
		case errors.Is(err, errIdle):
			if n = min(n, r.pending); r.consumer != "" && r.idle(ctx) {
				return Stored{}, 0, nil // trimmed meanwhile
			}
		case err != nil:
			return Stored{}, 0, err
		default:
			return storedOf(msg, meta), n, nil
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
