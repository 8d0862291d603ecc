package sources

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages/fault"
)

var (
	mPollCalls = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_poll_calls_total", Help: "Calls to polled APIs that were answered.",
	}, []string{"source", "api"})
	mPollCallTime = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "penstock_poll_call_seconds", Help: "Time of calls to polled APIs, failed ones included.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"source", "api"})
	mPollThrottled = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_poll_throttled_total", Help: "Calls that were throttled by the far side, each followed by a pause of all replicas.",
	}, []string{"source", "api"})
	mPollTime = promauto.NewHistogramVec(prometheus.HistogramOpts{
		Name: "penstock_poll_pull_seconds", Help: "Time of pulls from their tick to the last cursor.",
		Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600},
	}, []string{"source"})
	mPollLate = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_poll_late_total", Help: "Pulls that took longer than the period, so that the next began without a wait.",
	}, []string{"source"})
	mPollRestarts = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_poll_restarts_total", Help: "Pulls that began again at their cursor because a page token had expired.",
	}, []string{"source"})
	mPollRecords = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_poll_records_total", Help: "Records stored, repeated ones included.",
	}, []string{"source"})
	mPollBytes = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_poll_bytes_total", Help: "Bytes of the answers that were stored.",
	}, []string{"source"})
	mPollDropped = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_poll_dropped_total", Help: "Records that were left out as the configuration wants it, by reason.",
	}, []string{"source", "reason"})
	mPollShards = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_poll_shards", Help: "Things to pull, over all replicas.",
	}, []string{"source"})
	mPollFailing = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_poll_shards_failing", Help: "Things that this replica pulls and cannot read.",
	}, []string{"source"})
	mPollGaps = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_poll_gaps_total", Help: "Stretches of time whose data the far side no longer has, or may not have given.",
	}, []string{"source"})
	mPollUntil = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_poll_read_until_seconds", Help: "The time up to which everything was read, the oldest of what this replica pulled. Unix time.",
	}, []string{"source"})
)

// report logs what a pull came to, and tells whether that was anything. Source:
// features DEV-87 to DEV-93.
func (p *pull) report(ctx context.Context, took time.Duration, err error) bool {
	p.caller.mu.Lock()
	responses := p.responses
	p.caller.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	dropped := sumOf(p.dropped)
	level := slog.LevelInfo
	if p.records == 0 && err == nil {
		level = slog.LevelDebug
	}
	attrs := []slog.Attr{
		slog.Int("responses", responses), slog.Int("pages", p.pages), slog.Uint64("records", p.records),
		slog.Uint64("generated", p.records-dropped-p.refused), slog.Uint64("dropped", dropped-p.dropped[whyOtherRegion]),
		slog.Uint64("other_region", p.dropped[whyOtherRegion]), slog.Uint64("quarantined", p.refused), slog.Int64("bytes", p.bytes),
		slog.Float64("elapsed_seconds", took.Seconds()),
	}
	if p.records > 0 {
		attrs = append(attrs, slog.Float64("avg_ms_per_record", float64(took.Milliseconds())/float64(p.records)))
	}
	if err == nil && !p.shard.once {
		attrs = append(attrs, slog.Float64("wait_seconds", max(0, time.Until(p.s.tick(p.shard.name, time.Now()).at).Seconds())))
	}
	p.log.LogAttrs(ctx, level, "pull done", attrs...)
	return p.pages > 0
}

// reached notes up to when a shard has been read, for the metrics.
func (c *caller) reached(t time.Time) { c.s.health.reached(c.shard, t) }

// gap notes that data of a stretch of time is not to be had any more. It is logged
// as an error: a person should know. Source: features CEN-5, CEN-17.
func (c *caller) gap(ctx context.Context, from, to time.Time, why string) {
	mPollGaps.WithLabelValues(c.s.deps.Name).Inc()
	c.log.ErrorContext(ctx, "there is a gap in what could be read", "from", from.UTC(), "to", to.UTC(),
		"hours", to.Sub(from).Hours(), "reason", why)
}

// pollHealth keeps what can be read. A change is logged once, the rest is metrics.
type pollHealth struct {
	source string
	log    *slog.Logger

	mu     sync.Mutex
	plan   error
	asked  bool // a plan was made, or tried
	shards map[string]*shardHealth
	// done is when a shard that could be read came to its end, as time slots do. For
	// so long as grace it tells that not all is failing.
	done  time.Time
	grace time.Duration
}

type shardHealth struct {
	err    error
	code   string
	times  int
	since  time.Time
	logged bool
	worked bool
	until  time.Time
}

func newPollHealth(source string, period time.Duration, log *slog.Logger) *pollHealth {
	mUp.WithLabelValues(source).Set(0)
	return &pollHealth{source: source, log: log, shards: map[string]*shardHealth{}, grace: 2*period + time.Minute, plan: errNoPlan.New(nil, "plan what to pull")}
}

func (h *pollHealth) planned(ctx context.Context, err error) {
	h.mu.Lock()
	before, first := h.plan, !h.asked
	h.plan, h.asked = err, true
	h.tell()
	h.mu.Unlock()
	switch {
	case err != nil && (before == nil || first || fault.CodeOf(cause(err)) != fault.CodeOf(cause(before))):
		h.log.Log(ctx, levelOf(err), "it is not known what to pull; tried again", "err", err)
	case err == nil && before != nil && !first:
		h.log.InfoContext(ctx, "it is known again what to pull")
	}
}

// cause is what is behind the outermost fault.
func cause(err error) error {
	if f, ok := err.(*fault.Error); ok && f.Cause != nil { //nolint:errorlint // the outermost
		return f.Cause
	}
	return err
}

func levelOf(err error) slog.Level {
	if fault.ClassOf(cause(err)) == fault.Stop { // somebody must change something
		return slog.LevelError
	}
	return slog.LevelWarn
}

func (h *pollHealth) of(shard string) *shardHealth {
	s := h.shards[shard]
	if s == nil {
		s = &shardHealth{}
		h.shards[shard] = s
	}
	return s
}

func (h *pollHealth) failed(ctx context.Context, shard string, err error) {
	code := fault.CodeOf(cause(err))
	enough := patience
	if fault.ClassOf(cause(err)) == fault.Stop {
		enough = 1
	}
	h.mu.Lock()
	s := h.of(shard)
	if s.err == nil {
		s.since = time.Now()
	}
	if s.code != code {
		s.code, s.times = code, 0
	}
	s.err = err
	s.times++
	tell := s.times == enough
	s.logged = s.logged || tell
	h.tell()
	h.mu.Unlock()
	if tell {
		h.log.Log(ctx, levelOf(err), "a pull fails; it is tried again from its cursor", "shard", shard, "code", code, "err", err)
	}
}

func (h *pollHealth) worked(ctx context.Context, shard string) {
	h.mu.Lock()
	s := h.of(shard)
	before := *s
	s.err, s.code, s.times, s.logged, s.worked = nil, "", 0, false, true
	h.tell()
	h.mu.Unlock()
	if before.logged {
		h.log.InfoContext(ctx, "the pull works again", "shard", shard, "code", before.code, "down_seconds", time.Since(before.since).Seconds())
	}
}

func (h *pollHealth) forget(shard string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.shards[shard]; s != nil && s.worked && s.err == nil {
		h.done = time.Now()
	}
	delete(h.shards, shard)
	h.tell()
}

func (h *pollHealth) reached(shard string, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.of(shard).until = t
	h.tell()
}

// tell sets the gauges. h.mu is held.
func (h *pollHealth) tell() {
	failing, until := 0, time.Time{}
	for _, s := range h.shards {
		if s.err != nil {
			failing++
		}
		if !s.until.IsZero() && (until.IsZero() || s.until.Before(until)) {
			until = s.until
		}
	}
	mPollFailing.WithLabelValues(h.source).Set(float64(failing))
	if !until.IsZero() {
		mPollUntil.WithLabelValues(h.source).Set(float64(until.UnixMilli()) / 1000)
	}
	up := 0.0
	if h.plan == nil && (failing == 0 || failing < len(h.shards) || h.lately()) {
		up = 1
	}
	mUp.WithLabelValues(h.source).Set(up)
}

// lately tells whether a shard that is not there any more could be read a short while
// ago. h.mu is held.
func (h *pollHealth) lately() bool { return time.Since(h.done) < h.grace }

func (h *pollHealth) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.plan != nil {
		return h.plan
	}
	if h.lately() {
		return nil
	}
	var failing error
	for _, name := range slices.SortedFunc(maps.Keys(h.shards), strings.Compare) {
		s := h.shards[name]
		if s.err == nil {
			return nil
		}
		if failing == nil {
			failing = s.err
		}
	}
	return failing
}
