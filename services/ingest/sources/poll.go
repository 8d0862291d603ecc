package sources

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"hash/fnv"
	"log/slog"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/topology"
)

// Pollers read what has to be asked for: the APIs of AWS, and webhooks. A kind of
// poller is a file that says two things, see [poller]: which shards there are, and
// how what is new of one shard is read. All else is here:
//
//	plan ─▶ shards ─▶ leases over replicas ─▶ at each tick: pull ─▶ call… ─▶ store ─▶ move the cursor
//
//   - poll.go: which shard is pulled when, and where.
//   - pollcall.go: calls within a rate that replicas share; what is tried again.
//   - pollstore.go: records to frames and facts; the cursor.
//
// A shard that is pulled twice, because a process died or lost its lease in the
// middle, results in the same frames, or in frames whose events dedupe knows.

var (
	errPlan = fault.Define("ingest.plan_failed", fault.Retry,
		"look at the reason; the source goes on with what it knew of")
	errPull = fault.Define("ingest.pull_failed", fault.Retry,
		"look at the reason; the pull is tried again from its cursor, nothing is lost")
	errNoBus = fault.Define("ingest.no_bus", fault.Stop,
		"report this as a bug of penstock: a poller was opened without a bus for its cursors")
	errNoPlan = fault.Define("ingest.not_planned_yet", fault.Retry,
		"wait for the first answer of the API; if none comes, check the network and the endpoint")
	errPageGone = fault.Define("ingest.page_token_expired", fault.Retry,
		"none needed: the pull begins again at its cursor, and what comes twice is dropped")
)

// PollConfig is what all pollers have in common.
type PollConfig struct {
	// Period between pulls. Pulls begin at its multiples, e.g. at each full minute,
	// plus the jitter. Unit: duration, 1s to 24h.
	Period time.Duration `yaml:"period"`
	// Jitter spreads the pulls of a source over this time after each tick. The same
	// thing is pulled at the same moment each time. More than half of the period
	// counts as that. Unit: duration.
	Jitter time.Duration `yaml:"jitter"`
	// RequestsPerSecond that all replicas together make at most, for each account,
	// region and API. 0 is the quota that the API is known to have. Unit: calls a
	// second.
	RequestsPerSecond float64 `yaml:"requests_per_second"`
	// Parallel is how many pulls a replica runs at the same time. Range: 1 to 64.
	Parallel int `yaml:"parallel"`
	// Account is what is read: the AWS account id, or the name of the tenant. Events
	// that do not tell theirs get it, and it tells shared rates apart. Empty: as
	// the role's ARN tells.
	Account string `yaml:"account"`

	// who tells the callers apart whose account is not known. See of.
	who string
}

// of completes c for calls by way of a.
func (c PollConfig) of(a awsclient.Config) PollConfig {
	c.Account = cmp.Or(c.Account, accountOf(a))
	c.who = cmp.Or(a.AccessKey, a.Profile)
	return c
}

func defaultPoll(period time.Duration) PollConfig {
	return PollConfig{Period: period, Jitter: period / 10, Parallel: 4}
}

// check adds what is wrong to p.
func (c PollConfig) check(p *config.Problems) {
	p.Need(c.Period >= time.Second && c.Period <= 24*time.Hour, "period", "use 1s to 24h, e.g. 60s")
	p.Need(c.Jitter >= 0, "jitter", "use 0s or more, e.g. 6s")
	p.Need(c.RequestsPerSecond >= 0 && c.RequestsPerSecond <= 10000, "requests_per_second", "use 0 for the API's quota, or up to 10000 calls a second")
	p.Need(c.Parallel >= 1 && c.Parallel <= 64, "parallel", "use 1 to 64 pulls")
	p.Need(len(c.Account) <= 128, "account", "use 128 characters at most")
}

// poller is one kind of API source. Its methods may be called concurrently.
type poller interface {
	// plan says what there is to be pulled. It is called in each process, at the
	// start and at each tick, and must come to the same in all of them soon. After
	// an error the shards of before go on.
	plan(ctx context.Context, c *caller) (plan, error)
	// pull reads what is new of one shard: it takes the cursor ([caller.position]),
	// calls ([caller.call]), stores each page ([pull.store]) and then moves the
	// cursor. It must be safe to begin again from the cursor at any point. An error
	// has it tried again after a pause; ingest.page_token_expired at once.
	pull(ctx context.Context, p *pull) error
}

// plan is the work there is.
type plan struct {
	shards []shard
	// again is when to plan anew; 0 is at the next tick. It is also done when a
	// shard that is pulled once has been.
	again time.Duration
}

// shard is what one process pulls at a time, e.g. a log group, or an hour of a
// region.
type shard struct {
	// name is unique in its source, and the same in each process. It may be shown.
	name string
	// once: a piece of work that has an end. It begins when it is planned and is not
	// pulled again after pull has returned nil; soon the plan has to leave it out.
	once bool
	// data is the poller's own.
	data any
}

// leaseGroups is how many leases a source needs at most: each holds the shards
// whose names fall to it, and there may be thousands of shards.
const leaseGroups = 16

// pageRestarts is how often in a row a walk over pages begins anew at once.
const pageRestarts = 3

// stopPause is the longest pause after an error that somebody has to mend.
const stopPause = 5 * time.Minute

// polling is a poller as a [Source].
type polling struct {
	kind   poller
	cfg    PollConfig
	deps   Deps
	log    *slog.Logger
	tracer trace.Tracer
	slots  chan struct{} // one for each pull at work
	health *pollHealth

	mu     sync.Mutex
	groups map[string][]shard // by lease group, in the order of the plan
	// changed is closed when groups has been replaced.
	changed chan struct{}
	replan  chan struct{}
	started bool
}

// openPoller makes a source of a poller. cfg has been validated; pollers of AWS give
// cfg.of(their access).
func openPoller(deps Deps, cfg PollConfig, kind poller) (Source, error) {
	if deps.Bus == nil {
		return nil, errNoBus.New(nil, "open source %s", deps.Name)
	}
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	if deps.Drain <= 0 {
		deps.Drain = 20 * time.Second
	}
	log := deps.Log.With("source", deps.Name)
	return &polling{
		kind: kind, cfg: cfg, deps: deps, log: log, tracer: otel.Tracer("github.com/penstock/penstock/services/ingest/sources"),
		slots: make(chan struct{}, cfg.Parallel), health: newPollHealth(deps.Name, cfg.Period, log),
		groups: map[string][]shard{}, changed: make(chan struct{}), replan: make(chan struct{}, 1),
	}, nil
}

// Name implements Source.
func (s *polling) Name() string { return s.deps.Name }

// Health implements Source: the error of the plan, or of a shard when none of those
// that this process pulls can be read.
func (s *polling) Health() error { return s.health.err() }

// Run implements Source.
func (s *polling) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { s.planning(ctx) })
	return s.deps.Bus.Share(ctx, "poll-"+s.deps.Name, s.names, s.own)
}

// names are the lease groups that have shards.
func (s *polling) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.groups))
	for g := range s.groups {
		names = append(names, g)
	}
	return names
}

// groupOf tells the lease group of a shard.
func groupOf(name string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return strconv.FormatUint(uint64(h.Sum32()%leaseGroups), 10)
}

// planning keeps the plan up to date until ctx ends.
func (s *polling) planning(ctx context.Context) {
	var again backoff
	for ctx.Err() == nil {
		c := s.caller(ctx, "")
		p, err := s.safePlan(ctx, c)
		wait := p.again
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.health.planned(ctx, errPlan.New(err, "plan what to pull"))
			if wait = again.next(); fault.ClassOf(err) == fault.Stop {
				wait = max(wait, 10*time.Second)
			}
		default:
			again = backoff{}
			s.health.planned(ctx, nil)
			s.adopt(ctx, p.shards)
			if wait <= 0 {
				wait = time.Until(s.tick("", time.Now()).at)
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-s.replan:
		}
		t.Stop()
	}
}

func (s *polling) safePlan(ctx context.Context, c *caller) (p plan, err error) {
	defer s.recovered(ctx, "plan", &err)
	return s.kind.plan(ctx, c)
}

// recovered turns a panic into an error.
func (s *polling) recovered(ctx context.Context, doing string, err *error) {
	if r := recover(); r != nil {
		*err = errPanic.New(nil, "%s: %s", doing, panicText(r))
		s.log.ErrorContext(ctx, "a poller failed", "doing", doing, "err", *err, "stack", string(debug.Stack()))
	}
}

// adopt replaces the shards.
func (s *polling) adopt(ctx context.Context, shards []shard) {
	groups := map[string][]shard{}
	for _, sh := range shards {
		g := groupOf(sh.name)
		groups[g] = append(groups[g], sh)
	}
	mPollShards.WithLabelValues(s.deps.Name).Set(float64(len(shards)))
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started { // Source: features DEV-84, DEV-85
		s.started = true
		s.log.InfoContext(ctx, "the source is set up", "shards", len(shards), "period", s.cfg.Period.String())
	}
	s.groups = groups
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *polling) planNow() {
	select {
	case s.replan <- struct{}{}:
	default:
	}
}

// shardsOf returns the shards of a group, and what is closed when they change.
func (s *polling) shardsOf(group string) ([]shard, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.groups[group], s.changed
}

// tick is when a shard is pulled: at is aligned plus what of the jitter is the
// shard's, base the multiple of the period.
type tick struct{ at, base time.Time }

// tick returns the first tick of a shard after t.
func (s *polling) tick(name string, t time.Time) tick {
	var offset time.Duration
	if jitter := min(s.cfg.Jitter, s.cfg.Period/2); jitter > 0 {
		h := fnv.New64a()
		_, _ = h.Write([]byte(s.deps.Name + "\x00" + name))
		offset = time.Duration(h.Sum64() % uint64(jitter))
	}
	base := t.Add(-offset).Truncate(s.cfg.Period).Add(s.cfg.Period)
	return tick{at: base.Add(offset), base: base}
}

// turn is how it stands with one shard that this process pulls.
type turn struct {
	shard   shard
	next    tick
	working bool
	done    bool // it was to be pulled once, and was
	planned bool
	fails   backoff
	restart int
}

// ended is what became of a pull.
type ended struct {
	turn   *turn
	took   time.Duration
	stored bool // something, before err
	err    error
}

// own pulls the shards of a lease group until ctx ends.
func (s *polling) own(ctx context.Context, group string) error {
	turns := map[string]*turn{}
	results := make(chan ended)
	working := 0
	defer func() {
		for ; working > 0; working-- {
			<-results
		}
		for name := range turns {
			s.health.forget(name)
		}
	}()
	for ctx.Err() == nil {
		shards, changed := s.shardsOf(group)
		now := time.Now()
		for _, t := range turns {
			t.planned = false
		}
		for _, sh := range shards {
			t := turns[sh.name]
			if t == nil {
				t = &turn{next: tick{at: now, base: now.Truncate(s.cfg.Period)}}
				turns[sh.name] = t
			}
			t.shard, t.planned = sh, true
		}
		wait := time.Minute
		for name, t := range turns {
			switch {
			case t.working:
			case !t.planned:
				delete(turns, name)
				s.health.forget(name)
			}
		}
		for _, sh := range shards { // in the order of the plan
			t := turns[sh.name]
			if t.working || t.done {
				continue
			}
			if working == s.cfg.Parallel {
				break // the next result goes on; thousands of them need not wait in memory
			}
			if d := t.next.at.Sub(now); d > 0 {
				wait = min(wait, d)
				continue
			}
			t.working = true
			working++
			go func(base time.Time) { // t is the loop's
				e := ended{turn: t}
				e.took, e.stored, e.err = s.work(ctx, sh, base)
				results <- e
			}(t.next.base)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		case e := <-results:
			working--
			s.settle(ctx, e)
		}
		timer.Stop()
	}
	return nil
}

// settle decides when a shard is pulled next.
func (s *polling) settle(ctx context.Context, e ended) {
	t := e.turn
	t.working = false
	now := time.Now()
	if e.err != nil && ctx.Err() == nil {
		wait := time.Duration(0)
		switch {
		case errors.Is(e.err, errPageGone) && t.restart < pageRestarts:
			t.restart++
			mPollRestarts.WithLabelValues(s.deps.Name).Inc()
			s.log.InfoContext(ctx, "a page token has expired; the pull begins again at its cursor", "shard", t.shard.name)
		case errors.Is(e.err, topology.ErrCursorMoved):
			// Somebody else is at it, or was: not a fault of anybody.
			wait = time.Second
			s.log.DebugContext(ctx, "a cursor was moved by another process", "shard", t.shard.name)
		default:
			if e.stored { // it gets on
				t.fails = backoff{}
			}
			if wait = t.fails.next(); fault.ClassOf(e.err) == fault.Stop {
				wait = min(wait*20, stopPause)
			}
			s.health.failed(ctx, t.shard.name, errPull.New(e.err, "pull %s", t.shard.name))
		}
		t.next.at = now.Add(wait)
		return
	}
	if ctx.Err() != nil {
		return
	}
	s.health.worked(ctx, t.shard.name)
	t.fails, t.restart = backoff{}, 0
	if t.shard.once {
		t.done = true
		s.planNow()
		return
	}
	if e.took > s.cfg.Period { // Source: features DEV-90
		mPollLate.WithLabelValues(s.deps.Name).Inc()
		s.log.WarnContext(ctx, "the last pull took longer than the period; the next begins without a wait", "shard", t.shard.name,
			"took_seconds", e.took.Seconds(), "period", s.cfg.Period.String())
		t.next = tick{at: now, base: now.Truncate(s.cfg.Period)}
		return
	}
	t.next = s.tick(t.shard.name, now)
}

// work runs one pull within the limits of the process.
func (s *polling) work(ctx context.Context, sh shard, base time.Time) (took time.Duration, stored bool, err error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return 0, false, context.Cause(ctx)
	}
	// What was received goes on to be stored when the source has to stop.
	work, end := outlive(ctx, s.deps.Drain, errDrain.New(nil, "finish the pull of %s", sh.name))
	defer end()
	p := &pull{caller: s.caller(ctx, sh.name), shard: sh, tick: base}
	began := time.Now()
	defer func() {
		took = time.Since(began)
		mPollTime.WithLabelValues(s.deps.Name).Observe(took.Seconds())
		stored = p.report(work, took, err)
	}()
	defer s.recovered(work, "pull "+sh.name, &err)
	return 0, false, s.kind.pull(work, p)
}

// caller is what a poller has to work with while it plans, and, as part of a
// [pull], while it pulls. Methods may be called concurrently.
type caller struct {
	s *polling
	// stopping ends when nothing new may be begun.
	stopping context.Context //nolint:containedctx // of one piece of work, as its own type
	shard    string
	log      *slog.Logger
	// again is set while a stretch of time is read once more.
	again *again

	mu        sync.Mutex
	responses int
}

func (s *polling) caller(ctx context.Context, shard string) *caller {
	log := s.log
	if shard != "" {
		log = log.With("shard", shard)
	}
	return &caller{s: s, stopping: ctx, shard: shard, log: log}
}

// stopped tells whether to leave off at the next good place: the source is to end,
// or the shard goes to another process. Calls are refused from then on.
func (c *caller) stopped() bool { return c.stopping.Err() != nil }

// position is a cursor, a JSON value of the poller's.
type position struct {
	cursor *topology.Cursor
}

// position reads the cursor of a thing, by any name that is unique in the source;
// "" is that of the shard.
func (c *caller) position(ctx context.Context, name string) (*position, error) {
	cur, err := c.s.deps.Bus.Cursor(ctx, c.s.deps.Name, cmp.Or(name, c.shard))
	if err != nil {
		return nil, err
	}
	return &position{cursor: cur}, nil
}

// read decodes the cursor into v; false when there is none yet. One that cannot be
// read counts as none: what is read again is dropped by dedupe.
func (p *position) read(v any) bool {
	return p.cursor.Value() != nil && json.Unmarshal(p.cursor.Value(), v) == nil
}

// move stores the cursor, after what it passes is durable. bus.cursor_moved when
// another process has moved it since: hand that error on.
func (p *position) move(ctx context.Context, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return p.cursor.Set(ctx, data)
}

// update moves the cursor by a change that does not mind what others have done in
// between, e.g. adding to a set. change gets v freshly read, which is a pointer; it
// tells whether anything is to be stored.
func (p *position) update(ctx context.Context, v any, change func(known bool) bool) error {
	for {
		if !change(p.read(v)) {
			return nil
		}
		err := p.move(ctx, v)
		if !errors.Is(err, topology.ErrCursorMoved) {
			return err
		}
		if err := p.cursor.Load(ctx); err != nil {
			return err
		}
	}
}
