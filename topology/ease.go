package topology

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages/fault"
)

var (
	errEase = fault.Define("bus.backlog_unknown", fault.Retry,
		"check that the server answers, and that its user may look at consumers: penstock topology show")

	easeWaits = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_backfill_wait_seconds_total", Help: "Time for which backfills waited for the pipeline, by the stage that was behind.",
	}, []string{"stage"})
)

// Ease tells when there is little under way between ingest and the destinations, so that
// work which can wait may be begun: the streams are logs, and what is live waits for all
// that is before it. It goes by time: what is before a stage, divided by what the stage
// gets through in a second, is how long it takes to pass. The sum over all stages is kept
// near easeDelay, however fast they are, for all processes together. Not for concurrent
// use.
type Ease struct {
	bus    *Bus
	stages map[string]*easeStage
	looked time.Time
	// slowest is the destination that takes longest, of those that get on.
	slowest easeStage
	// base is by how much PARSED is ahead of UNIQUE while dedupe has nothing to do.
	base  int64
	based bool
	// Behind is the stage for which Wait waits; "" for none.
	Behind string
	// Tell is called while Wait waits, after Behind was set; may be nil.
	Tell func()
}

// easeStage is what a stage has before it, and how fast it is.
type easeStage struct {
	name string
	// ahead is how many messages there are before it, those in hand included; few of
	// them are no matter, and many are too many in any case.
	ahead, few, many uint64
	// done are what it got through by some times of the last second or so.
	done []easeSample
	// moved is when it was last seen to get on.
	moved time.Time
}

type easeSample struct {
	at   time.Time
	done uint64
}

// saw notes what a stage has before it, and what it got through by now.
func (s *easeStage) saw(ahead, done uint64, now time.Time) {
	s.ahead = ahead
	if n := len(s.done); n == 0 || s.done[n-1].done != done {
		s.moved = now
	}
	s.done = append(s.done, easeSample{now, done})
	for len(s.done) > 2 && now.Sub(s.done[1].at) > easeSpan {
		s.done = s.done[1:]
	}
}

// delay is how long it takes to pass what is before the stage.
func (s *easeStage) delay() time.Duration {
	if s.ahead <= s.few || len(s.done) == 0 {
		return 0
	}
	first, last := s.done[0], s.done[len(s.done)-1]
	if s.ahead > s.many || last.done <= first.done {
		return easeForever
	}
	perSecond := float64(last.done-first.done) / last.at.Sub(first.at).Seconds()
	return time.Duration(float64(s.ahead) / perSecond * float64(time.Second))
}

// EaseNotices bounds the notices that may be under way, however fast they are fetched.
const EaseNotices = 64

const (
	// easeDelay is how long what is live may be held up by all that is before it.
	easeDelay   = time.Second
	easeForever = time.Hour
	// easeSpan is over which the speed of a stage is measured.
	easeSpan  = 2 * time.Second
	easeFirst = 5 * time.Millisecond
	easeLast  = 100 * time.Millisecond
	// easeLook is how often destinations are looked at, easeStuck how long one does not
	// get on before it is left out: it is down, and nothing is to wait for it.
	easeLook  = 100 * time.Millisecond
	easeStuck = 30 * time.Second
)

// Ease returns a new measure.
func (b *Bus) Ease() *Ease { return &Ease{bus: b, stages: map[string]*easeStage{}} }

func (e *Ease) stage(name string, few, many uint64) *easeStage {
	s := e.stages[name]
	if s == nil {
		s = &easeStage{name: name, few: few, many: many}
		e.stages[name] = s
	}
	return s
}

// Wait returns when little is under way, with how many notices are: fewer than
// EaseNotices. Errors: bus.backlog_unknown, and the cause of ctx.
func (e *Ease) Wait(ctx context.Context) (notices uint64, err error) {
	began := time.Now()
	for wait := easeFirst; ; wait = min(2*wait, easeLast) {
		notices, behind, err := e.now(ctx)
		if err != nil {
			return 0, err
		}
		if e.Behind = behind; behind == "" {
			return notices, nil
		}
		if e.Tell != nil {
			e.Tell()
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return 0, context.Cause(ctx)
		case <-t.C:
		}
		easeWaits.WithLabelValues(easeLabel(behind)).Add(time.Since(began).Seconds())
		began = time.Now()
	}
}

// easeLabel is the stage alone: destinations have their own metrics.
func easeLabel(behind string) string {
	stage, _, _ := strings.Cut(behind, " ")
	return stage
}

// now measures once. behind is the stage that takes longest, when all together take too
// long.
func (e *Ease) now(ctx context.Context) (notices uint64, behind string, err error) {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	for _, c := range []struct {
		Consumer
		few, many uint64
	}{{FetchConsumer, 4, EaseNotices - 1}, {ParseConsumer, 8, 512}, {RouteConsumer, 16, 2048}} {
		ahead, done, err := e.bus.ahead(ctx, c.Consumer)
		if err != nil {
			return 0, "", err
		}
		e.stage(string(c.Stage), c.few, c.many).saw(ahead, done, time.Now())
		if c.Stage == Fetch {
			notices = ahead
		}
	}
	parsed, done, err := e.parsed(ctx)
	if err != nil {
		return 0, "", err
	}
	e.stage(string(Dedupe), 16, 2048).saw(parsed, done, time.Now())
	if time.Since(e.looked) > easeLook {
		if err := e.look(ctx); err != nil {
			return 0, "", err
		}
	}
	var sum, longest time.Duration
	slowest := ""
	for _, s := range []*easeStage{e.stages[string(Fetch)], e.stages[string(Parse)], e.stages[string(Dedupe)], e.stages[string(Route)], &e.slowest} {
		d := s.delay()
		if sum += d; d > longest {
			longest, slowest = d, s.name
		}
	}
	if sum > easeDelay {
		return notices, slowest, nil
	}
	return notices, "", nil
}

// ahead is how many messages there are before a consumer, those in hand included, and how
// many it is done with.
func (b *Bus) ahead(ctx context.Context, c Consumer) (ahead, done uint64, err error) {
	consumer, err := b.js.Consumer(ctx, c.Stream, c.Durable)
	if err != nil {
		return 0, 0, errEase.New(err, "look up the consumer %s", c.Durable)
	}
	ahead, done = settledBy(consumer.CachedInfo())
	return ahead, done, nil
}

func settledBy(info *jetstream.ConsumerInfo) (ahead, done uint64) {
	hand := uint64(max(0, info.NumAckPending))
	return info.NumPending + hand, info.Delivered.Consumer - min(hand, info.Delivered.Consumer)
}

// look finds out what destinations have before them.
func (e *Ease) look(ctx context.Context) error {
	stream, err := e.bus.js.Stream(ctx, Events)
	if err != nil {
		return errEase.New(err, "look up stream %s", Events)
	}
	e.slowest = easeStage{}
	now := time.Now()
	list := stream.ListConsumers(ctx)
	for info := range list.Info() {
		name, ok := strings.CutPrefix(info.Config.Durable, deliverPrefix)
		if !ok {
			continue
		}
		name = "destination " + name
		_, known := e.stages[name]
		s := e.stage(name, 16, 4096)
		ahead, done := settledBy(info)
		s.saw(ahead, done, now)
		if !known && info.NumWaiting == 0 && info.NumAckPending == 0 {
			s.moved = time.Time{} // nobody reads for it: it is paused, or its process has ended
		}
		if now.Sub(s.moved) < easeStuck && s.delay() >= e.slowest.delay() {
			e.slowest = *s
		}
	}
	if err := list.Err(); err != nil {
		return errEase.New(err, "list the consumers of %s", Events)
	}
	e.looked = now
	return nil
}

// parsed is about how many frames there are before dedupe, which has no consumer that
// could be asked. Each frame in makes one out, so what PARSED is ahead of UNIQUE tells it,
// but for the frames that only carry a position; when it looks like many, the lanes' own
// positions are looked at.
func (e *Ease) parsed(ctx context.Context) (ahead, done uint64, err error) {
	in, err := e.bus.lastSequence(ctx, Parsed)
	if err != nil {
		return 0, 0, err
	}
	done, err = e.bus.lastSequence(ctx, Unique)
	if err != nil {
		return 0, 0, err
	}
	diff := int64(in) - int64(done)
	if e.based && diff-e.base <= easeSurely {
		e.base = min(e.base, diff)
		return uint64(diff - e.base), done, nil
	}
	if ahead, err = e.bus.lanesBehind(ctx); err != nil {
		return 0, 0, err
	}
	e.base, e.based = diff-int64(ahead), true
	return ahead, done, nil
}

// easeSurely is up to how many frames before dedupe are believed without a closer look.
const easeSurely = 256

// lanesBehind is about how many frames the lanes of dedupe have before them: by what their
// owners say, or for those that nobody owns, by their last snapshot.
func (b *Bus) lanesBehind(ctx context.Context) (uint64, error) {
	lanes, err := b.LaneCount(ctx)
	if err != nil {
		return 0, err
	}
	var sum uint64
	for lane := range lanes {
		answer, err := b.Request(ctx, laneRequest(lane), nil, time.Second)
		if err == nil {
			n, err := strconv.ParseUint(string(answer), 10, 64)
			if err != nil {
				return 0, errEase.New(err, "ask how far lane %d is", lane)
			}
			sum += n
			continue
		}
		last, err := b.lastSequence(ctx, Parsed)
		if err != nil {
			return 0, err
		}
		done, err := b.laneDone(ctx, lane)
		if err != nil {
			return 0, errEase.New(err, "look how far lane %d is", lane)
		}
		if last > done {
			// A lane has every so manieth of the frames between.
			sum += (last-done)/uint64(lanes) + 1
		}
	}
	return sum, nil
}

// laneDone is the position in PARSED up to which a lane is done by its last snapshot.
func (b *Bus) laneDone(ctx context.Context, lane uint32) (uint64, error) {
	kv, err := b.bucket(ctx, leaseBucket)
	if err != nil {
		return 0, err
	}
	e, err := kv.Get(ctx, laneGroup+"."+strconv.FormatUint(uint64(lane), 10))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var v leaseValue
	err = json.Unmarshal(e.Value(), &v)
	return v.Input, err
}
