package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/standing"
)

var (
	errNotOpen = fault.Define("deliver.not_open", fault.Retry,
		"mend what is named; the destination is opened again by itself, and the event log keeps its events until then")
	errManaged = fault.Define("deliver.panicked", fault.Retry,
		"report it: it is a mistake in penstock; the destination is opened again")
	errEnded = fault.Define("deliver.ended", fault.Retry,
		"see the log for why the destination ended; it is opened again")

	destinationUp = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_deliver_destination_up", Help: "1 while a destination is open in this process and takes part in delivery; 0 while it is paused or cannot be opened.",
	}, []string{"destination"})
	destinationPaused = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_deliver_destination_paused", Help: "1 while an operator has a destination paused.",
	}, []string{"destination"})
	destinationFailures = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_destination_failures_total", Help: "Times that a destination could not be opened or ended by itself, by code.",
	}, []string{"destination", "code"})
)

// ManagerDeps is what the Manager gets from the process.
type ManagerDeps struct {
	// Reserve sees to it that the event log is kept for a destination, whether it can be
	// opened or not, and returns the first sequence that it reads.
	Reserve func(ctx context.Context, d Destination) (first uint64, err error)
	// Tell tells the ledger what a destination reads, and from where on. It is repeated
	// now and then.
	Tell func(ctx context.Context, d Destination, first uint64) error
	// Open opens a destination and starts nothing. ctx lives until it is closed.
	Open func(ctx context.Context, d Destination) (Opened, error)
	// Idle is called while nothing is read for a destination and returns when ctx has
	// ended. It may be nil.
	Idle func(ctx context.Context, d Destination)
	// Gone is called when a destination that is no longer wanted has stopped. It may be
	// nil.
	Gone func(d Destination)
	// Log may be nil.
	Log *slog.Logger
}

// Opened is a destination that is ready to run.
type Opened struct {
	// Run delivers until ctx ends; then it finishes what is in hand, or gives it back.
	Run func(ctx context.Context) error
	// Serve is what runs beside it, nil for nothing. When either ends, so does the other.
	Serve func(ctx context.Context) error
	// Close is called once, after Run.
	Close func(ctx context.Context) error
	// Breaker is the state of the circuit breaker: closed, open or stopped.
	Breaker func() string
}

// States of a destination in a process.
const (
	Starting = standing.Starting
	Running  = standing.Running
	Paused   = standing.Paused
	Failing  = standing.Failing
	Stopping = standing.Stopping
)

// State is how a destination is in this process.
type State = standing.State

// Manager runs a set of destinations, each by itself: one that cannot be opened, or
// panics, is tried again with growing pauses, and concerns no other. The set may
// change and destinations may be paused while it runs. One whose configuration changes
// is drained, closed and opened anew on the same place in the event log.
//
// Methods may be called concurrently.
type Manager struct {
	deps ManagerDeps
	log  *slog.Logger

	mu      sync.Mutex
	changed chan struct{}
	// paused are the names of those that are not to run; nil while that is not known.
	paused map[string]bool
	all    map[string]*managed
	drains []error
	wg     sync.WaitGroup
}

// NewManager wires; it starts nothing.
func NewManager(deps ManagerDeps) *Manager {
	m := &Manager{deps: deps, log: deps.Log, changed: make(chan struct{}, 1), all: map[string]*managed{}}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	return m
}

// managed is one destination. Manager.mu guards it.
type managed struct {
	m    *Manager
	name string
	log  *slog.Logger

	cfg    Destination
	wanted bool
	paused bool
	// first is what Reserve returned for cfg, 0 before that.
	first uint64
	// end ends the present turn: something has changed.
	end     context.CancelFunc
	runs    bool // its goroutine does
	state   string
	since   time.Time
	err     error
	breaker func() string
}

// Changes are the names of destinations by what a new configuration did to them.
type Changes struct {
	Added, Removed, Changed []string
}

// Any reports whether there is one.
func (c Changes) Any() bool { return len(c.Added)+len(c.Removed)+len(c.Changed) > 0 }

// Configure says which destinations there are from now on, and returns what that
// changes. It does not wait for it. Those that fail are tried again at once.
func (m *Manager) Configure(list []Destination) Changes {
	m.mu.Lock()
	defer m.mu.Unlock()
	var c Changes
	named := map[string]bool{}
	for _, d := range list {
		named[d.Name] = true
		s := m.all[d.Name]
		switch {
		case s == nil:
			s = &managed{m: m, name: d.Name, log: m.log.With("destination", d.Name), end: func() {}, state: Starting, since: time.Now()}
			m.all[d.Name] = s
			c.Added = append(c.Added, d.Name)
		case !s.wanted: // it is still on its way out
			c.Added = append(c.Added, d.Name)
		case !reflect.DeepEqual(s.cfg, d):
			c.Changed = append(c.Changed, d.Name)
		case s.state == Failing:
			s.end()
			continue
		default:
			continue
		}
		s.cfg, s.wanted, s.first, s.paused = d, true, 0, m.paused[d.Name]
		s.end()
	}
	for name, s := range m.all {
		if !s.wanted || named[name] {
			continue
		}
		s.wanted = false
		s.end()
		c.Removed = append(c.Removed, name)
		if !s.runs {
			delete(m.all, name)
		}
	}
	slices.Sort(c.Removed)
	m.kick()
	return c
}

// Pause says which destinations are not to run. Until it was called once, none does.
func (m *Manager) Pause(names map[string]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = maps.Clone(names)
	if m.paused == nil {
		m.paused = map[string]bool{}
	}
	for name, s := range m.all {
		if s.paused != m.paused[name] {
			s.paused = m.paused[name]
			s.end()
		}
	}
	m.kick()
}

func (m *Manager) kick() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// Run runs the destinations until ctx ends, and returns when all have stopped. Its
// errors are those of destinations that could not finish what they had in hand.
func (m *Manager) Run(ctx context.Context) error {
	for {
		m.start(ctx)
		select {
		case <-m.changed:
			continue
		case <-ctx.Done():
		}
		m.wg.Wait()
		m.mu.Lock()
		defer m.mu.Unlock()
		return errors.Join(m.drains...)
	}
}

// start starts those that are new.
func (m *Manager) start(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paused == nil {
		return
	}
	for _, s := range m.all {
		if !s.runs && s.wanted {
			s.runs = true
			m.wg.Go(func() { s.run(ctx) })
		}
	}
}

// Current is the configuration of a destination that this process has, and whether it is
// paused; ok is false when it has it not, or not any more.
func (m *Manager) Current(name string) (d Destination, paused, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.all[name]
	if s == nil || !s.wanted || m.paused == nil {
		return Destination{}, false, false
	}
	return s.cfg, s.paused, true
}

// Health is nil when every destination runs or is paused.
func (m *Manager) Health() error {
	var all []string
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paused == nil {
		return errors.New("it is not known yet what operators have paused")
	}
	for _, name := range slices.Sorted(maps.Keys(m.all)) {
		switch s := m.all[name]; {
		case !s.wanted:
		case s.state == Starting:
			all = append(all, "destination "+name+": starting")
		case s.state == Failing:
			all = append(all, "destination "+name+": "+s.err.Error())
		}
	}
	if len(all) > 0 {
		return errors.New(strings.Join(all, "\n"))
	}
	return nil
}

// States returns how each destination is, in the order of their names. One that is not
// wanted any more is among them until it has stopped.
func (m *Manager) States() []State {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := []State{}
	for _, name := range slices.Sorted(maps.Keys(m.all)) {
		s := m.all[name]
		one := State{
			Destination: name, Type: s.cfg.Type, Types: s.cfg.Types, Where: s.cfg.Where, Fetched: sinks.Fetched(s.cfg.Type), State: s.state, Since: s.since,
		}
		if !s.wanted {
			one.State = Stopping
		}
		if s.err != nil {
			one.Error = s.err.Error()
		}
		if s.breaker != nil {
			one.Breaker = s.breaker()
		}
		all = append(all, one)
	}
	return all
}

// turn is what a destination has to do until something changes.
type turn struct {
	cfg    Destination
	paused bool
	first  uint64
}

// run takes turns until the destination is not wanted any more.
func (s *managed) run(ctx context.Context) {
	for {
		t, during, end, ok := s.next(ctx)
		if !ok {
			return
		}
		if t.paused {
			s.rest(during, t)
		} else {
			s.serve(ctx, during, t)
		}
		end()
	}
}

func (s *managed) next(ctx context.Context) (t turn, during context.Context, end context.CancelFunc, ok bool) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if !s.wanted || ctx.Err() != nil {
		s.runs = false
		if !s.wanted {
			delete(s.m.all, s.name)
			destinationUp.DeleteLabelValues(s.name)
			destinationPaused.DeleteLabelValues(s.name)
			if s.m.deps.Gone != nil {
				s.m.deps.Gone(s.cfg)
			}
		}
		return t, nil, nil, false
	}
	during, end = context.WithCancel(ctx)
	s.end = end
	return turn{s.cfg, s.paused, s.first}, during, end, true
}

func (s *managed) set(state string, err error, breaker func() string) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.state != state {
		s.since = time.Now()
	}
	s.state, s.err, s.breaker = state, err, breaker
	gauge := func(on bool) float64 {
		if on {
			return 1
		}
		return 0
	}
	destinationUp.WithLabelValues(s.name).Set(gauge(state == Running))
	destinationPaused.WithLabelValues(s.name).Set(gauge(state == Paused))
}

// reserve has the event log kept for the destination and the ledger know of it, unless
// that was done.
func (s *managed) reserve(ctx context.Context, t *turn) error {
	if t.first > 0 {
		return nil
	}
	first, err := s.m.deps.Reserve(ctx, t.cfg)
	if err == nil {
		err = s.m.deps.Tell(ctx, t.cfg, first)
	}
	if err != nil {
		return err
	}
	t.first = first
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if reflect.DeepEqual(s.cfg, t.cfg) {
		s.first = first
	}
	return nil
}

// tellEvery is how often the ledger is told again: it forgets what is old.
const tellEvery = time.Hour

// again tells the ledger now and then until ctx ends.
func (s *managed) again(ctx context.Context, t turn) {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.m.deps.Tell(ctx, t.cfg, t.first); err != nil && ctx.Err() == nil {
			s.log.Warn("the ledger could not be told again what the destination reads", "err", err)
		}
	}
}

// rest waits for the end of a pause. The event log is kept for the destination all
// the while, also when it is new.
func (s *managed) rest(during context.Context, t turn) {
	s.set(Paused, nil, nil)
	s.log.Info("destination is paused; the event log keeps its events")
	for n := 1; during.Err() == nil && t.first == 0; n++ {
		if err := s.guard(func() error { return s.reserve(during, &t) }); err != nil && during.Err() == nil {
			s.log.Warn("the event log could not be reserved for a destination that is paused, trying on", "err", err)
			pause(during, reopen.after(n))
		}
	}
	var idle sync.WaitGroup
	defer idle.Wait()
	idle.Go(func() { s.again(during, t) })
	s.idle(during, t)
	<-during.Done()
}

func (s *managed) idle(ctx context.Context, t turn) {
	if s.m.deps.Idle != nil {
		s.m.deps.Idle(ctx, t.cfg)
	}
}

// reopen bounds the pauses between attempts to open a destination.
var reopen = Backoff{Initial: 500 * time.Millisecond, Max: time.Minute}

// longRun is for how long a destination must have run to count as one that did.
const longRun = time.Minute

// serve opens the destination and runs it until during ends, as often as it takes.
func (s *managed) serve(ctx, during context.Context, t turn) {
	s.set(Starting, nil, nil)
	// The ledger forgets also what cannot be opened, or ends again and again.
	var telling sync.WaitGroup
	defer telling.Wait()
	tell := sync.OnceFunc(func() { telling.Go(func() { s.again(during, t) }) })
	for n := 1; ; n++ {
		began := time.Now()
		err := s.guard(func() error { return s.reserve(during, &t) })
		if err == nil {
			tell()
			err = s.once(ctx, during, t)
		} else {
			err = unless(during, err)
		}
		if during.Err() != nil {
			s.ended(ctx, err)
			return
		}
		if err == nil {
			err = errEnded.New(nil, "run destination %s", s.name)
		}
		if time.Since(began) > longRun {
			n = 1
		}
		wait := reopen.after(n)
		s.set(Failing, err, nil)
		destinationFailures.WithLabelValues(s.name, fault.CodeOf(err)).Inc()
		s.log.Error("destination fails, trying on; the event log keeps its events", "attempt", n, "pause", wait.String(), "err", err)
		waiting, cancel := context.WithTimeout(during, wait)
		s.idle(waiting, t)
		<-waiting.Done()
		cancel()
		if during.Err() != nil {
			return
		}
	}
}

// ended notes an error with which a destination stopped when it was asked to.
func (s *managed) ended(ctx context.Context, err error) {
	if err == nil {
		return
	}
	s.log.Warn("destination did not finish what was in hand; it is given back and nothing is lost", "err", err)
	if ctx.Err() != nil {
		s.m.mu.Lock()
		defer s.m.mu.Unlock()
		s.m.drains = append(s.m.drains, fmt.Errorf("destination %s: %w", s.name, err))
	}
}

// once opens the destination, runs it and closes it. After during has ended its error
// is that of a run that could not finish what was in hand.
func (s *managed) once(ctx, during context.Context, t turn) error {
	// What is in hand is delivered after during has ended, so the destination lives in
	// a context that ends only when it was closed.
	life, die := context.WithCancel(context.WithoutCancel(during))
	defer die()
	interrupt := context.AfterFunc(during, die)
	var o Opened
	if err := s.guard(func() (err error) {
		o, err = s.m.deps.Open(life, t.cfg)
		return err
	}); err != nil {
		if !errors.As(err, new(*fault.Error)) {
			err = errNotOpen.New(err, "open destination %s", s.name)
		}
		return unless(during, err)
	}
	defer s.close(ctx, o)
	if !interrupt() { // asked to stop meanwhile
		return nil
	}
	s.set(Running, nil, o.Breaker)
	s.log.Info("destination runs")
	return s.both(during, o)
}

// both runs the destination and what it has to serve beside that.
func (s *managed) both(during context.Context, o Opened) error {
	either, cancel := context.WithCancel(during)
	defer cancel()
	var served error
	var serving sync.WaitGroup
	if o.Serve != nil {
		serving.Go(func() {
			defer cancel()
			served = s.guard(func() error { return o.Serve(either) })
		})
	}
	err := s.guard(func() error { return o.Run(either) })
	cancel()
	serving.Wait()
	return errors.Join(err, unless(during, served))
}

// unless returns err while ctx lives: an error after that says no more than that.
func unless(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // asked to stop
	}
	return err
}

// closeTimeout bounds the closing of a destination when the process stops.
const closeTimeout = 10 * time.Second

// close waits for what is still being sent, for ever unless the process stops: two of
// one name would step on each other's feet.
func (s *managed) close(ctx context.Context, o Opened) {
	closing, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	late := time.AfterFunc(closeTimeout, func() {
		if ctx.Err() != nil {
			cancel(context.DeadlineExceeded)
			return
		}
		s.log.Warn("destination does not close; it is waited for")
	})
	defer late.Stop()
	defer context.AfterFunc(ctx, func() { late.Reset(closeTimeout) })()
	if err := s.guard(func() error { return o.Close(closing) }); err != nil {
		s.log.Warn("destination did not close cleanly", "err", err)
	}
}

// guard makes an error of a panic.
func (s *managed) guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errManaged.New(nil, "run destination %s: %T", s.name, p)
			s.log.Error("destination panicked", "err", err, "stack", string(debug.Stack()))
		}
	}()
	return f()
}

// Breaker is the state of the circuit breaker: closed while all goes through, open
// while one batch at a time is tried, stopped while somebody has to act.
func (d *Deliver) Breaker() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return [...]string{closed: "closed", open: "open", stopped: "stopped"}[d.breaker.state]
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
