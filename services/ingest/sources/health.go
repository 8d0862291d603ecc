package sources

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
)

// patience is how often in a row a call may fail of what passes by itself before
// that is logged.
const patience = 3

// health keeps which calls of a source work. A change is logged once, the rest
// is metrics. Source: features DEV-161.
type health struct {
	source, queue string
	log           *slog.Logger

	mu     sync.Mutex
	faults map[string]trouble
}

type trouble struct {
	code   string
	err    error
	since  time.Time
	times  int // with this code in a row
	logged bool
}

func newHealth(source, queue string, log *slog.Logger) *health {
	mUp.WithLabelValues(source).Set(0)
	return &health{source: source, queue: queue, log: log, faults: map[string]trouble{
		callReceive: {code: errNoAnswer.Code, err: errNoAnswer.New(nil, "call %s on %s", callReceive, queue), since: time.Now()},
	}}
}

// failed notes that call was refused or got no answer.
func (h *health) failed(ctx context.Context, call string, cause error) {
	cause = awsclient.Explain(cause)
	code := fault.CodeOf(cause)
	err := errSQS.New(cause, "call %s on %s", call, h.queue)
	mCallErrors.WithLabelValues(h.source, call, code).Inc()
	mUp.WithLabelValues(h.source).Set(0)
	level, enough := slog.LevelWarn, patience
	if fault.ClassOf(cause) == fault.Stop { // somebody must change something
		level, enough = slog.LevelError, 1
	}
	h.mu.Lock()
	t := h.faults[call]
	if t.since.IsZero() {
		t.since = time.Now()
	}
	if t.code != code {
		t.code, t.times = code, 0
	}
	t.err = err
	t.times++
	tell := t.times == enough
	t.logged = t.logged || tell
	h.faults[call] = t
	h.mu.Unlock()
	if tell {
		h.log.Log(ctx, level, "the source refuses a call; it is tried again", "call", call, "code", code, "err", err)
	}
}

// worked notes that call was answered.
func (h *health) worked(ctx context.Context, call string) {
	h.mu.Lock()
	before := h.faults[call]
	delete(h.faults, call)
	if len(h.faults) == 0 {
		mUp.WithLabelValues(h.source).Set(1)
	}
	h.mu.Unlock()
	if before.logged {
		h.log.InfoContext(ctx, "the source takes the call again", "call", call, "code", before.code,
			"down_seconds", time.Since(before.since).Seconds())
	}
}

// err is the trouble there is, that of receiving before others; nil for none.
func (h *health) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, call := range []string{callReceive, callDelete, callChange} {
		if t, down := h.faults[call]; down {
			return t.err
		}
	}
	return nil
}
