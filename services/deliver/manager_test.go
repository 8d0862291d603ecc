package deliver

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/penstock/penstock/messages/fault"
)

var errLate = fault.Define("test.late", fault.Retry, "")

// stage notes what the Manager does with its destinations.
type stage struct {
	mu     sync.Mutex
	events []string
	open   map[string]int
	// fail makes opening the destination a end so: an error, or a panic.
	fail any
	// stall keeps the end of a run of a destination until it is closed.
	stall map[string]chan struct{}
	late  error // what a run returns when it is stopped
	told  map[string]int
}

func newStage() *stage {
	return &stage{open: map[string]int{}, stall: map[string]chan struct{}{}, told: map[string]int{}}
}

func (s *stage) note(format string, args ...any) {
	s.events = append(s.events, fmt.Sprintf(format, args...))
}

// took returns what happened since the last call.
func (s *stage) took() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := strings.Join(s.events, " ")
	s.events = nil
	return out
}

func (s *stage) set(how any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = how
}

func (s *stage) deps() ManagerDeps {
	return ManagerDeps{
		Reserve: func(_ context.Context, d Destination) (uint64, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.note("reserve:%s", d.Name)
			return 7, nil
		},
		Tell: func(_ context.Context, d Destination, first uint64) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.told[d.Name]++; s.told[d.Name] > 1 {
				s.note("again:%s:%d", d.Name, first)
			}
			return nil
		},
		Open: func(_ context.Context, d Destination) (Opened, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if err, ok := s.fail.(error); ok && d.Name == "a" {
				return Opened{}, err
			} else if s.fail != nil && d.Name == "a" {
				panic(s.fail)
			}
			s.note("open:%s", d.Name)
			if s.open[d.Name]++; s.open[d.Name] > 1 {
				s.note("TWICE:%s", d.Name)
			}
			stall, crash := s.stall[d.Name], make(chan struct{})
			return Opened{
				Run: func(ctx context.Context) error {
					select {
					case <-ctx.Done():
					case <-crash:
					}
					if stall != nil {
						<-stall
					}
					return s.late
				},
				Close: func(context.Context) error {
					s.mu.Lock()
					defer s.mu.Unlock()
					s.open[d.Name]--
					s.note("close:%s", d.Name)
					return nil
				},
				Breaker: func() string { return "closed" },
			}, nil
		},
		Gone: func(d Destination) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.note("gone:%s", d.Name)
		},
	}
}

func dest(name string, types ...string) Destination {
	d := Defaults()
	d.Name, d.Type, d.Types = name, "test", types
	return d
}

// managing runs f beside a Manager, in a bubble.
func managing(t *testing.T, f func(t *testing.T, m *Manager, s *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newStage()
		m := NewManager(s.deps())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Run(ctx) }()
		f(t, m, s)
		cancel()
		if err := <-ended; !errors.Is(err, s.late) {
			t.Errorf("Run: %v, want %v", err, s.late)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for name, n := range s.open {
			if n != 0 {
				t.Errorf("destination %s is open %d times after Run", name, n)
			}
		}
	})
}

func expect(t *testing.T, s *stage, what, want string) {
	t.Helper()
	synctest.Wait()
	got := strings.Fields(s.took())
	slices.Sort(got)
	wanted := strings.Fields(want)
	slices.Sort(wanted)
	if !slices.Equal(got, wanted) {
		t.Errorf("%s: %v, want %v", what, got, wanted)
	}
}

func gauge(t testing.TB, g *prometheus.GaugeVec, name string) float64 {
	t.Helper()
	return read(t, g.WithLabelValues(name)).GetGauge().GetValue()
}

func states(m *Manager) string {
	var all []string
	for _, s := range m.States() {
		all = append(all, s.Destination+"="+s.State)
	}
	return strings.Join(all, " ")
}

// Nothing runs before it is known what operators have paused, or a destination would
// deliver for a moment after each restart.
func TestManagerWaitsForWhatIsPaused(t *testing.T) {
	managing(t, func(t *testing.T, m *Manager, s *stage) {
		m.Configure([]Destination{dest("a"), dest("b")})
		expect(t, s, "before it is known", "")
		if m.Health() == nil {
			t.Error("healthy before it is known what is paused")
		}
		m.Pause(map[string]bool{"a": true})
		expect(t, s, "paused from the start", "reserve:a reserve:b open:b")
		if got := states(m); got != "a=paused b=running" || m.Health() != nil {
			t.Errorf("%s, %v", got, m.Health())
		}
		m.Pause(map[string]bool{"b": true})
		expect(t, s, "the other way round", "open:a close:b")
		if up, held := gauge(t, destinationUp, "b"), gauge(t, destinationPaused, "b"); up != 0 || held != 1 {
			t.Errorf("metrics of a paused destination: up %v, paused %v", up, held)
		}
		m.Pause(nil)
		expect(t, s, "both go on", "open:b")
		if got := states(m); got != "a=running b=running" {
			t.Error(got)
		}
	})
}

// What changes is closed before it is opened anew, and the others go on.
// covers: DEV-139
func TestManagerAppliesDifferences(t *testing.T) {
	managing(t, func(t *testing.T, m *Manager, s *stage) {
		m.Pause(nil)
		got := m.Configure([]Destination{dest("a"), dest("b"), dest("c")})
		if want := (Changes{Added: []string{"a", "b", "c"}}); !reflect.DeepEqual(got, want) {
			t.Errorf("%+v", got)
		}
		expect(t, s, "three are added", "reserve:a open:a reserve:b open:b reserve:c open:c")
		if got := m.Configure([]Destination{dest("c"), dest("a"), dest("b")}); got.Any() {
			t.Errorf("another order changes %+v", got)
		}
		expect(t, s, "another order", "")
		got = m.Configure([]Destination{dest("a"), dest("b", "x.>"), dest("d")})
		if want := (Changes{Added: []string{"d"}, Changed: []string{"b"}, Removed: []string{"c"}}); !reflect.DeepEqual(got, want) {
			t.Errorf("%+v", got)
		}
		expect(t, s, "one of each", "close:b reserve:b again:b:7 open:b close:c gone:c reserve:d open:d")
		if got := states(m); got != "a=running b=running d=running" {
			t.Error(got)
		}
	})
}

// One that comes back while the old one still finishes its work waits for that.
func TestManagerNeverOpensTwice(t *testing.T) {
	managing(t, func(t *testing.T, m *Manager, s *stage) {
		stall := make(chan struct{})
		s.stall["a"] = stall
		m.Pause(nil)
		m.Configure([]Destination{dest("a")})
		expect(t, s, "begins", "reserve:a open:a")
		m.Configure(nil)
		expect(t, s, "finishes", "")
		if got := states(m); got != "a=stopping" || m.Health() != nil {
			t.Errorf("%s, %v", got, m.Health())
		}
		if got := m.Configure([]Destination{dest("a", "x")}); len(got.Added) != 1 {
			t.Errorf("%+v", got)
		}
		m.Pause(map[string]bool{"a": true})
		m.Pause(nil)
		expect(t, s, "still finishes", "")
		close(stall)
		expect(t, s, "begins anew", "close:a reserve:a again:a:7 open:a")
		if n := m.States(); len(n) != 1 || n[0].State != Running {
			t.Errorf("%+v", n)
		}
	})
}

// One that cannot be opened, or panics, is tried again, with its events reserved, and
// concerns no other.
func TestManagerTriesAgain(t *testing.T) {
	for name, how := range map[string]any{"error": errors.New("no such file"), "fault": errBad.New(nil, "open"), "panic": "boom"} {
		t.Run(name, func(t *testing.T) {
			managing(t, func(t *testing.T, m *Manager, s *stage) {
				s.set(how)
				m.Pause(nil)
				m.Configure([]Destination{dest("a"), dest("b")})
				expect(t, s, "one fails", "reserve:a reserve:b open:b")
				if got := states(m); got != "a=failing b=running" {
					t.Error(got)
				}
				err := m.Health()
				if err == nil || !strings.Contains(err.Error(), "destination a: ") || strings.Contains(err.Error(), "destination b") {
					t.Errorf("health: %v", err)
				}
				code := map[string]string{"error": "deliver.not_open", "fault": "test.bad", "panic": "deliver.panicked"}[name]
				if n := read(t, destinationFailures.WithLabelValues("a", code)).GetCounter().GetValue(); n < 1 {
					t.Errorf("no failure of code %s was counted", code)
				}
				time.Sleep(10 * time.Minute)
				expect(t, s, "it still does", "")
				s.set(nil)
				time.Sleep(2 * time.Minute)
				expect(t, s, "mended", "open:a")
				if m.Health() != nil || gauge(t, destinationUp, "a") != 1 {
					t.Errorf("mended: %v", m.Health())
				}
			})
		})
	}
}

// A reload tries at once what fails, and so does the end of a pause.
func TestManagerTriesAtOnceWhenAsked(t *testing.T) {
	managing(t, func(t *testing.T, m *Manager, s *stage) {
		s.set(errors.New("no such file"))
		m.Pause(nil)
		m.Configure([]Destination{dest("a")})
		time.Sleep(time.Hour)
		synctest.Wait()
		s.took()
		s.set(nil)
		if c := m.Configure([]Destination{dest("a")}); c.Any() {
			t.Errorf("%+v", c)
		}
		expect(t, s, "reload", "open:a")
	})
}

// What a destination serves beside its deliveries lives and ends with them, and when it
// breaks off, or panics, the destination is opened anew.
func TestManagerServesBeside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		breaks, opened := make(chan any), 0
		m := NewManager(ManagerDeps{
			Reserve: func(context.Context, Destination) (uint64, error) { return 1, nil },
			Tell:    func(context.Context, Destination, uint64) error { return nil },
			Open: func(context.Context, Destination) (Opened, error) {
				opened++
				return Opened{
					Run: func(ctx context.Context) error { <-ctx.Done(); return nil },
					Serve: func(ctx context.Context) error {
						select {
						case how := <-breaks:
							if err, ok := how.(error); ok {
								return err
							}
							panic(how)
						case <-ctx.Done():
							return ctx.Err() // of no account: it was asked to
						}
					},
					Close: func(context.Context) error { return nil }, Breaker: func() string { return "closed" },
				}, nil
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Run(ctx) }()
		m.Pause(nil)
		m.Configure([]Destination{dest("a")})
		for i, how := range []any{errOut.New(nil, "serve"), "boom"} {
			synctest.Wait()
			if opened != i+1 || m.Health() != nil {
				t.Fatalf("opened %d times, %v", opened, m.Health())
			}
			breaks <- how
			synctest.Wait()
			if m.Health() == nil {
				t.Errorf("healthy after %v", how)
			}
			time.Sleep(time.Minute)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// The ledger forgets what it was told long ago: it is told again while a destination
// runs, and while it is paused.
func TestManagerTellsAgain(t *testing.T) {
	managing(t, func(t *testing.T, m *Manager, s *stage) {
		m.Pause(map[string]bool{"b": true})
		m.Configure([]Destination{dest("a"), dest("b")})
		expect(t, s, "begin", "reserve:a open:a reserve:b")
		time.Sleep(tellEvery + time.Second)
		expect(t, s, "an hour later", "again:a:7 again:b:7")
	})
}

// One that cannot be opened for longer than the ledger keeps what it was told is told of
// again all the same, or its first deliveries would be those of a stranger.
func TestManagerTellsAgainOfWhatFails(t *testing.T) {
	managing(t, func(t *testing.T, m *Manager, s *stage) {
		s.set(errors.New("no such file"))
		m.Pause(nil)
		m.Configure([]Destination{dest("a")})
		expect(t, s, "fails", "reserve:a")
		time.Sleep(2*tellEvery + time.Minute)
		expect(t, s, "two hours later", "again:a:7 again:a:7")
		m.Configure(nil)
		expect(t, s, "let go", "gone:a")
		time.Sleep(2 * tellEvery)
		expect(t, s, "gone for good", "")
	})
}

// Work that could not be finished in time is the result of Run when the process stops.
func TestManagerReportsLateDrains(t *testing.T) {
	managing(t, func(t *testing.T, m *Manager, s *stage) {
		s.late = errLate.New(nil, "drain")
		m.Pause(nil)
		m.Configure([]Destination{dest("a")})
		expect(t, s, "runs", "reserve:a open:a")
		m.Pause(map[string]bool{"a": true})
		expect(t, s, "a late drain is no failure", "close:a")
		if got := states(m); got != "a=paused" {
			t.Error(got)
		}
		m.Pause(nil)
		synctest.Wait()
	})
}

func TestStartOf(t *testing.T) {
	at := time.Date(2026, 5, 1, 2, 0, 0, 0, time.UTC)
	for from, want := range map[string]struct {
		now bool
		at  time.Time
		ok  bool
	}{
		"oldest": {ok: true}, "now": {now: true, ok: true}, "2026-05-01T04:00:00+02:00": {at: at, ok: true},
		"yesterday": {}, "": {}, "2026-05-01": {},
	} {
		d := dest("a")
		d.Begin = from
		if got := d.Start(); got.Now != want.now || !got.Time.Equal(want.at) {
			t.Errorf("%q begins at %+v", from, got)
		}
		if err := d.Validate(); (err == nil) != want.ok {
			t.Errorf("%q: %v", from, err)
		}
	}
}
