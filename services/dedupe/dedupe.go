// Package dedupe lets each event pass once.
//
//	penstock.parsed.<lane> ──▶ dedupe ──▶ penstock.unique.<lane>
//	                                 └──▶ penstock.seen.<lane>
//
// In:     frames of one lane, in order, from the position that the lane's last
// output recorded.
// Out:    the same frames, one for one, with the duplicates marked. Output,
// position and new ids are one publish that a stale owner of the lane is refused.
// Errors: none of its own; what the bus reports ends the lane, and whoever owns
// it next goes on where it stopped.
// Frames that a replay has made meet no ids but those of the same replay: theirs are
// looked up, and kept, in a form of their own.
// State:  the ids of the window, in memory, rebuilt on take-over from SEEN and the
// end of UNIQUE. A lane has one owner at a time; lanes are shared over replicas.
// Source: formats F-0 (dedupe id).
package dedupe

import (
	"context"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/dedupe/seen"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/topology"
)

var (
	eventsTotal = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_dedupe_events_total", Help: "Events that passed dedupe, by verdict: unique or duplicate.",
	}, []string{"verdict"})
	idsHeld = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_dedupe_ids", Help: "Ids that a lane remembers.",
	}, []string{"lane"})
	bytesHeld = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_dedupe_bytes", Help: "Memory that the ids of a lane take.",
	}, []string{"lane"})
	windowSeconds = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_dedupe_window_seconds", Help: "How far back a lane surely finds duplicates. Less than the configured window when max_ids bites.",
	}, []string{"lane"})
)

// Config configures the dedupe stage.
type Config struct {
	// Window is how long an event id is remembered. Unit: duration.
	Window time.Duration `yaml:"window"`
	// MaxIDs bounds the ids that all lanes together remember; about 30 bytes of
	// memory each. When it bites, the effective window is shorter: a metric and a
	// warning tell.
	MaxIDs int `yaml:"max_ids"`
	// Lanes is into how many parts the ids are divided, up to 256, fixed when the
	// streams are made. As many replicas can share the work; but each lane has
	// frames of its own, so more lanes make smaller frames, which cost more. 0: one
	// with the NATS server inside penstock, where there is one replica, else 8.
	Lanes uint32 `yaml:"lanes"`
}

// Defaults returns the configuration of an empty dedupe section.
func Defaults() Config { return Config{Window: 24 * time.Hour, MaxIDs: 8_000_000} }

// Validate reports every problem, each with the key to change.
func (c Config) Validate() error {
	var p config.Problems
	p.Need(c.Window >= time.Minute && c.Window <= 30*24*time.Hour, "window", "use a duration from 1m to 720h")
	p.Need(c.MaxIDs >= 1000, "max_ids", "use 1000 ids or more")
	p.Need(c.Lanes <= 256, "lanes", "use up to 256 lanes, or 0 to have it chosen")
	return p.Err()
}

// held is what the ids of all lanes of this process take, in bytes.
var held atomic.Int64

// Held returns the memory that the ids of this process take, in bytes: all of it
// is needed, which the garbage collector's limit has to know.
func Held() int64 { return held.Load() }

// Dedupe is the stage.
type Dedupe struct {
	cfg Config
	log *slog.Logger
	now func() time.Time
}

// New makes the stage. It starts nothing.
func New(cfg Config, log *slog.Logger) *Dedupe {
	if log == nil {
		log = slog.Default()
	}
	return &Dedupe{cfg: cfg, log: log, now: time.Now}
}

// Run works on the lanes that fall to this process until ctx ends.
func (d *Dedupe) Run(ctx context.Context, bus *topology.Bus) error {
	lanes, err := bus.LaneCount(ctx)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // asked to stop before it began
	}
	if err != nil {
		return err
	}
	return bus.Lanes(ctx, d.cfg.Window, func(n uint32) topology.LaneWork { return d.open(n, lanes) })
}

// Lane makes the work on one of lanes lanes, for who brings its frames and stores its
// output without a bus. Close it.
func (d *Dedupe) Lane(n, lanes uint32) topology.LaneWork { return d.open(n, lanes) }

func (d *Dedupe) open(n, lanes uint32) *lane {
	label := prometheus.Labels{"lane": strconv.FormatUint(uint64(n), 10)}
	return &lane{
		stage: d, number: n,
		set:    seen.New(seen.Limits{Window: d.cfg.Window, MaxIDs: max(1, d.cfg.MaxIDs/int(lanes))}),
		unique: eventsTotal.WithLabelValues("unique"), duplicate: eventsTotal.WithLabelValues("duplicate"),
		ids: idsHeld.With(label), bytes: bytesHeld.With(label), window: windowSeconds.With(label),
	}
}

// lane is the work on one lane.
type lane struct {
	stage  *Dedupe
	number uint32
	set    *seen.Set
	size   int64
	short  bool // the window is shorter than configured, and that was said

	unique, duplicate  prometheus.Counter
	ids, bytes, window prometheus.Gauge

	frameIDs, fresh []byte
	output          []byte
}

// Close implements topology.LaneWork.
func (l *lane) Close() {
	held.Add(-l.size)
	l.size = 0
	l.ids.Set(0)
	l.bytes.Set(0)
}

// Restore implements topology.LaneWork.
func (l *lane) Restore(ids []byte, at time.Time) {
	l.set.Load(ids, at)
	l.weigh()
}

// Reserve implements topology.LaneReserver.
func (l *lane) Reserve(ids int) {
	l.set.Reserve(ids)
	l.weigh()
}

// weigh says what the ids take: the limit of the garbage collector follows it.
func (l *lane) weigh() {
	l.ids.Set(float64(l.set.Len()))
	size := l.set.Bytes()
	l.bytes.Set(float64(size))
	held.Add(size - l.size)
	l.size = size
}

// Frame implements topology.LaneWork. What it marked stays marked only when the
// output is stored.
func (l *lane) Frame(ctx context.Context, in topology.In[messages.View], commit func(ctx context.Context, output, fresh []byte) error) error {
	v, now := &in.Value, l.stage.now()
	n := v.Len()
	l.frameIDs = l.frameIDs[:0]
	l.frameIDs = v.AppendSeenIDs(l.frameIDs)
	dups := l.set.Mark(l.frameIDs, now, func(i int) { v.SetFate(i, messages.Duplicate) })
	fresh := l.frameIDs
	if dups > 0 {
		l.fresh = l.fresh[:0]
		for i := range n {
			if v.Fate(i) != messages.Duplicate {
				l.fresh = append(l.fresh, l.frameIDs[16*i:16*i+16]...)
			}
		}
		fresh = l.fresh
	}
	output := v.Encoded()
	if dups == n && n > 0 {
		// Nobody will read these documents: an object that was announced again
		// costs its ids and not its bytes.
		l.output = v.WithoutBody(l.output[:0])
		output = l.output
	}
	if err := commit(ctx, output, fresh); err != nil {
		l.set.Discard()
		return err
	}
	l.set.Commit()
	l.unique.Add(float64(n - dups))
	l.duplicate.Add(float64(dups))
	l.report(now)
	return nil
}

func (l *lane) report(now time.Time) {
	window := l.set.Window(now)
	l.weigh()
	l.window.Set(window.Seconds())
	if short := window < l.stage.cfg.Window; short != l.short {
		l.short = short
		if short {
			l.stage.log.Warn("dedupe window is shorter than configured: max_ids bites",
				"lane", l.number, "window", window.String(), "configured", l.stage.cfg.Window.String(), "max_ids", l.stage.cfg.MaxIDs)
		} else {
			l.stage.log.Info("dedupe window is as configured again", "lane", l.number)
		}
	}
}
