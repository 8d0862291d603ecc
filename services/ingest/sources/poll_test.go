package sources

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/topology"
)

// pollServer is a real NATS server for cursors, leases and budgets, and for what
// pollers store.
type pollServer struct {
	*topology.Embedded
	dir string
}

func newPollServer(t testing.TB) *pollServer {
	t.Helper()
	s := &pollServer{dir: t.TempDir()}
	s.start(t)
	if _, err := s.connect(t, "setup").Apply(t.Context(), topology.Limits{Disk: 128 << 20, Lanes: 1}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *pollServer) start(t testing.TB) {
	t.Helper()
	e, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: s.dir, Disk: 128 << 20, Log: pollLog()})
	if err != nil {
		t.Fatal(err)
	}
	s.Embedded = e
	t.Cleanup(e.Stop)
}

func pollLog() *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// connect is the bus of one process.
func (s *pollServer) connect(t testing.TB, name string) *topology.Bus {
	t.Helper()
	b, err := topology.Connect(t.Context(), s.Connect(topology.Options{Name: name, Log: pollLog()}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// deps are those of a source in a process of its own.
func (s *pollServer) deps(t testing.TB, process string) Deps {
	t.Helper()
	bus := s.connect(t, process)
	return Deps{
		Name: "poll", Bus: bus, Log: pollLog().With("process", process), Drain: 5 * time.Second, Choose: chooseAuto,
		NewOutbox: func() topology.Outbox { return bus.NewOutbox(topology.Ingest) },
	}
}

// stored is what pollers have put on the bus.
type stored struct {
	records []string
	origins []*messages.Origin
	report  ledger.Report
	// pulls by id.
	pulls map[string]ledger.Pull
}

// distinct returns the records without repeats, in order.
func (s *stored) distinct() []string {
	d := slices.Clone(s.records)
	slices.Sort(d)
	return slices.Compact(d)
}

func (s *pollServer) stored(t testing.TB) *stored {
	t.Helper()
	out := &stored{pulls: map[string]ledger.Pull{}}
	bus := s.connect(t, "reader")
	if err := bus.Read(t.Context(), topology.Span{Subject: "penstock.record.>"}, func(m topology.Stored) error {
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			return err
		}
		var c messages.Columns
		body, err := v.Body(nil)
		if err = errors.Join(err, v.Columns(&c)); err != nil {
			return err
		}
		for _, n := range c.Lengths {
			out.records = append(out.records, string(body[:n]))
			body = body[n:]
		}
		origins, err := v.Origins()
		out.origins = append(out.origins, origins...)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	fold := ledger.New()
	if err := bus.Read(t.Context(), topology.Span{Subject: "penstock.ledger.>"}, func(m topology.Stored) error {
		facts, err := messages.DecodeFacts(m.Data)
		if err == nil {
			fold.Add("ingest", facts)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	out.report = fold.Report()
	for _, p := range out.report.Pulls {
		out.pulls[p.Pull] = p
	}
	return out
}

// begin runs a source until the test ends or stop is called.
func begin(t testing.TB, s Source) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return stop
}

// eventually waits for what comes about in its own time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	giveUp := time.NewTimer(2 * time.Minute)
	defer giveUp.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-giveUp.C:
			t.Fatalf("waited too long for: %s", what)
		case <-tick.C:
		}
	}
}

// counter is a poller that hands out numbers: each shard has some, a page at a time.
type counter struct {
	shards, numbers, page int
	// before is asked before each page is stored and before each cursor is moved.
	before func(shard string, n int, what string) error

	mu     sync.Mutex
	pulled map[string][]string // by shard, processes
	me     string
}

type counterCursor struct{ Next int }

func (c *counter) plan(context.Context, *caller) (plan, error) {
	var p plan
	for i := range c.shards {
		p.shards = append(p.shards, shard{name: fmt.Sprintf("shard %d", i), data: i})
	}
	return p, nil
}

func (c *counter) pull(ctx context.Context, p *pull) error {
	c.mu.Lock()
	if c.pulled == nil {
		c.pulled = map[string][]string{}
	}
	c.pulled[p.shard.name] = append(c.pulled[p.shard.name], c.me)
	c.mu.Unlock()
	pos, err := p.position(ctx, "")
	if err != nil {
		return err
	}
	var at counterCursor
	pos.read(&at)
	for at.Next < c.numbers && !p.stopped() {
		pg := &page{api: "test:Count", resource: p.shard.name, format: "json", created: time.Unix(1767600000, 0)}
		if err := p.call(ctx, target{api: "test:Count", rate: 1000}, func(context.Context) error {
			for n := at.Next; n < min(at.Next+c.page, c.numbers); n++ {
				pg.records = append(pg.records, fmt.Appendf(nil, `{"shard":%q,"n":%d}`, p.shard.name, n))
			}
			return nil
		}); err != nil {
			return err
		}
		if err := c.ask(p.shard.name, at.Next, "store"); err != nil {
			return err
		}
		if err := p.store(ctx, pg); err != nil {
			return err
		}
		at.Next += len(pg.records)
		if err := c.ask(p.shard.name, at.Next, "move"); err != nil {
			return err
		}
		if err := pos.move(ctx, at); err != nil {
			return err
		}
	}
	return nil
}

func (c *counter) ask(shard string, n int, what string) error {
	if c.before == nil {
		return nil
	}
	return c.before(shard, n, what)
}

func (c *counter) want() int { return c.shards * c.numbers }

func fastPoll() PollConfig { return PollConfig{Period: time.Second, Parallel: 4} }

// covers: DEV-3, DEV-84, DEV-96, LIM-1, LIM-3: a poller that dies between any two
// steps goes on at its cursor; what it stores twice is the same frame.
func TestPollDiesBetweenSteps(t *testing.T) {
	t.Parallel()
	server := newPollServer(t)
	var n atomic.Int64
	died := errors.New("died")
	kind := &counter{shards: 3, numbers: 40, page: 7, before: func(string, int, string) error {
		if i := n.Add(1); i%3 == 0 && i < 30 {
			return died
		}
		return nil
	}}
	s, err := openPoller(server.deps(t, "a"), fastPoll(), kind)
	if err != nil {
		t.Fatal(err)
	}
	stop := begin(t, s)
	eventually(t, "all is stored", func() bool { return len(server.stored(t).distinct()) == kind.want() })
	if err := stop(); err != nil {
		t.Error(err)
	}
	got := server.stored(t)
	// The server knows the ids of frames that come again.
	if len(got.records) != kind.want() {
		t.Errorf("%d records are on the bus, want %d", len(got.records), kind.want())
	}
	for _, p := range got.report.Pulls {
		if p.As != "events" || p.End != "complete" || p.Records == 0 {
			t.Errorf("pull %+v", p)
		}
	}
	if want := 3 * 6; len(got.report.Pulls) != want {
		t.Errorf("%d pulls, want one a page: %d", len(got.report.Pulls), want)
	}
	for _, o := range got.origins {
		if o.GetApi() != "test:Count" || !strings.HasPrefix(o.GetResource(), "shard ") || o.GetCreated() != 1767600000e9 {
			t.Errorf("origin %v", o)
		}
	}
}

// covers: DEV-3, DEV-105, DEV-110, LIM-1, LIM-2: two replicas share the shards, the
// cursor outlives both and the server, and nothing is read from the start again.
func TestPollReplicasAndRestart(t *testing.T) {
	t.Parallel()
	server := newPollServer(t)
	var a, b *counter
	open := func(process string) (*counter, func() error) {
		kind := &counter{shards: 12, numbers: 10, page: 5, me: process}
		s, err := openPoller(server.deps(t, process), fastPoll(), kind)
		if err != nil {
			t.Fatal(err)
		}
		return kind, begin(t, s)
	}
	a, stopA := open("a")
	b, stopB := open("b")
	busy := func(c *counter) int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.pulled) }
	eventually(t, "both have pulled, and all is stored", func() bool {
		return busy(a) > 0 && busy(b) > 0 && len(server.stored(t).distinct()) == a.want()
	})
	if err := errors.Join(stopA(), stopB()); err != nil {
		t.Error(err)
	}
	before := len(server.stored(t).records)
	server.Stop()
	server.start(t)
	again := &counter{shards: 12, numbers: 11, page: 5, me: "c"}
	s, err := openPoller(server.deps(t, "c"), fastPoll(), again)
	if err != nil {
		t.Fatal(err)
	}
	begin(t, s)
	eventually(t, "the new ones are stored", func() bool { return len(server.stored(t).distinct()) == again.want() })
	if got := len(server.stored(t).records); got != before+12 {
		t.Errorf("%d records after the restart, want %d: the cursors were lost", got, before+12)
	}
}

// A stale owner, whose lease has passed to another process while it was out, cannot
// put the cursor back.
func TestPollFenced(t *testing.T) {
	t.Parallel()
	server := newPollServer(t)
	bus := server.connect(t, "other")
	at := func() *topology.Cursor {
		c, err := bus.Cursor(t.Context(), "poll", "shard 0")
		if err != nil {
			t.Error(err)
		}
		return c
	}
	var once sync.Once
	kind := &counter{shards: 1, numbers: 10, page: 5, before: func(_ string, _ int, what string) error {
		if what == "move" {
			once.Do(func() {
				if err := at().Set(t.Context(), []byte(`{"Next":8}`)); err != nil {
					t.Error(err)
				}
			})
		}
		return nil
	}}
	s, err := openPoller(server.deps(t, "a"), fastPoll(), kind)
	if err != nil {
		t.Fatal(err)
	}
	stop := begin(t, s)
	eventually(t, "it has gone on from the newer cursor", func() bool { return string(at().Value()) == `{"Next":10}` })
	if err := stop(); err != nil {
		t.Error(err)
	}
	// 0 to 4 stored by the stale one, 8 and 9 after it had seen the other's cursor.
	if got := len(server.stored(t).records); got != 7 {
		t.Errorf("%d records, want 7", got)
	}
}

// covers: F-10 errors, DEV-161: throttling in every form is waited for, and what
// only a person can mend is said and tried again.
func TestPollCallErrors(t *testing.T) {
	t.Parallel()
	response := func(status int, header, value string, err error) error {
		r := &http.Response{StatusCode: status, Header: http.Header{}}
		if header != "" {
			r.Header.Set(header, value)
		}
		return &smithy.OperationError{ServiceID: "Test", OperationName: "Count", Err: &smithyhttp.ResponseError{Response: &smithyhttp.Response{Response: r}, Err: err}}
	}
	api := func(code string) error { return &smithy.GenericAPIError{Code: code, Message: "no"} }
	tests := []struct {
		name  string
		err   error
		calls int // made in all, when the error comes twice and then no more
		want  error
	}{
		{"ThrottlingException", response(400, "", "", api("ThrottlingException")), 3, nil},
		{"Throttling", response(400, "", "", api("Throttling")), 3, nil},
		{"RequestLimitExceeded", response(400, "", "", api("RequestLimitExceeded")), 3, nil},
		{"TooManyRequestsException", response(429, "", "", api("TooManyRequestsException")), 3, nil},
		{"LimitExceededException", response(400, "", "", api("LimitExceededException")), 3, nil},
		{"429 of another code", response(429, "", "", api("SomethingElse")), 3, nil},
		{"503 with Retry-After", response(503, "Retry-After", "1", api("ServiceUnavailableException")), 3, nil},
		{"500", response(500, "", "", api("InternalFailure")), 3, nil},
		{"expired credentials", response(400, "", "", api("ExpiredTokenException")), 1, awsclient.BadCredentials},
		{"denied", response(400, "", "", api("AccessDeniedException")), 1, awsclient.AccessDenied},
		{"clock", response(400, "", "", api("RequestTimeTooSkewed")), 1, awsclient.WrongClock},
		{"page token", response(400, "", "", api("InvalidNextTokenException")), 1, errPageGone},
		{"page token in words", response(400, "", "", &smithy.GenericAPIError{Code: "InvalidParameterException", Message: "The specified nextToken is invalid."}), 1, errPageGone},
		{"wrong request", response(400, "", "", api("InvalidTimeRangeException")), 1, awsclient.Refused},
	}
	server := newPollServer(t)
	for i, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s, err := openPoller(server.deps(t, "a"), fastPoll(), &counter{})
			if err != nil {
				t.Fatal(err)
			}
			calls := 0
			err = s.(*polling).caller(t.Context(), "x").call(t.Context(), target{api: fmt.Sprintf("test:%d", i), rate: 1000}, func(context.Context) error {
				if calls++; calls <= 2 {
					return tc.err
				}
				return nil
			})
			if !errors.Is(err, tc.want) || calls != tc.calls {
				t.Errorf("%d calls, %v; want %d, %v", calls, err, tc.calls, tc.want)
			}
		})
	}
}

func TestReadRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, " 7 ": 7 * time.Second, "-1": 0, "soon": 0, "99999999": longestRetryAfter,
		"Mon, 05 Jan 2026 12:00:30 GMT": 30 * time.Second, "Mon, 05 Jan 2026 11:00:00 GMT": 0,
	} {
		if got := readRetryAfter(in, now); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

// A source whose shards all fail is not ready, one of which some work is.
func TestPollHealth(t *testing.T) {
	t.Parallel()
	server := newPollServer(t)
	var broken atomic.Int64
	broken.Store(2)
	denied := awsclient.AccessDenied.New(nil, "call Test Count")
	kind := &counter{shards: 2, numbers: 1, page: 1, before: func(shard string, _ int, _ string) error {
		if shard < fmt.Sprintf("shard %d", broken.Load()) {
			return denied
		}
		return nil
	}}
	s, err := openPoller(server.deps(t, "a"), fastPoll(), kind)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Health(); !errors.Is(err, errNoPlan) {
		t.Errorf("before the first plan: %v", err)
	}
	begin(t, s)
	eventually(t, "denied everywhere", func() bool { return errors.Is(s.Health(), awsclient.AccessDenied) })
	broken.Store(1)
	eventually(t, "one works", func() bool { return s.Health() == nil })
}

// covers: DEV-82, DEV-102: pulls begin at multiples of the period, spread by a
// jitter that is the same each time.
func TestPollTicks(t *testing.T) {
	s := &polling{cfg: PollConfig{Period: time.Minute, Jitter: 6 * time.Second}, deps: Deps{Name: "x"}}
	now := time.Date(2026, 1, 5, 12, 0, 36, 266_007_000, time.UTC)
	seen := map[time.Duration]bool{}
	for i := range 50 {
		name := fmt.Sprintf("shard %d", i)
		first := s.tick(name, now)
		offset := first.at.Sub(first.base)
		if first.base.Second() != 0 || offset < 0 || offset >= s.cfg.Jitter || !first.at.After(now) || first.at.Sub(now) > time.Minute {
			t.Errorf("%s: tick %+v", name, first)
		}
		if next := s.tick(name, first.at); next.at.Sub(first.at) != time.Minute {
			t.Errorf("%s: the tick after %v is %v", name, first.at, next.at)
		}
		seen[offset] = true
	}
	if len(seen) < 25 {
		t.Errorf("%d different moments for 50 shards", len(seen))
	}
}

// covers: DEV-85, DEV-87, DEV-88, DEV-89, DEV-93, DEV-94: what a pull came to is in one line, and
// the set-up in another.
func TestPollStatistics(t *testing.T) {
	t.Parallel()
	server := newPollServer(t)
	log := newLines()
	deps := server.deps(t, "a")
	deps.Log = slog.New(log)
	s, err := openPoller(deps, fastPoll(), &counter{shards: 1, numbers: 20, page: 8})
	if err != nil {
		t.Fatal(err)
	}
	begin(t, s)
	eventually(t, "the line is there", func() bool {
		return len(log.with("level=INFO", "pull done", `shard="shard 0"`, "responses=3 ", "pages=3 ", "records=20 ", "generated=20 ", "dropped=0 ",
			"other_region=0 ", "bytes=", "elapsed_seconds=", "avg_ms_per_record=", "wait_seconds=")) == 1
	})
	if n := len(log.with("level=INFO", "the source is set up", "shards=1", "period=1s")); n != 1 {
		t.Errorf("%d lines on the set-up", n)
	}
}

// A record that fits into a message of the bus, but not with its header, goes to
// quarantine, and nothing waits for it.
func TestPollRecordAtTheLimit(t *testing.T) {
	server := newPollServer(t)
	deps := server.deps(t, "a")
	src, err := openPoller(deps, fastPoll(), &counter{})
	if err != nil {
		t.Fatal(err)
	}
	s, _ := src.(*polling)
	p := &pull{caller: s.caller(t.Context(), "x")}
	most := int(deps.Bus.MaxPayload())
	bytes := make([]byte, most)
	_, _ = rand.Read(bytes)
	pg := &page{api: "test:Large", format: "json", records: [][]byte{bytes[:most-5000]}}
	over := len(p.write(pg).frames[0].Data) - len(pg.records[0])
	pg.records[0] = bytes[:most-over-10]
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.store(ctx, pg); err != nil {
		t.Fatal(err)
	}
	if q := quarantined(t, server); len(q) != 1 || q[0].GetCode() != errPageTooLarge.Code {
		t.Errorf("quarantined %d", len(q))
	}
}

// covers: DEV-89, DEV-90: after a pull that took longer than the period the next one begins at
// once, with a warning; else at the next tick.
func TestPollLate(t *testing.T) {
	log := newLines()
	s := &polling{
		cfg: PollConfig{Period: time.Minute}, deps: Deps{Name: "late"}, log: slog.New(log), health: newPollHealth("late", time.Minute, pollLog()),
		replan: make(chan struct{}, 1),
	}
	for _, tc := range []struct {
		took time.Duration
		late bool
	}{{59 * time.Second, false}, {61 * time.Second, true}} {
		x := &turn{shard: shard{name: "x"}, working: true}
		s.settle(t.Context(), ended{turn: x, took: tc.took})
		if now := !x.next.at.After(time.Now()); now != tc.late || x.working {
			t.Errorf("after %v the next pull begins at %v", tc.took, x.next.at)
		}
		if warned := len(log.with("level=WARN", "took longer than the period")) > 0; warned != tc.late {
			t.Errorf("after %v: warned %v", tc.took, warned)
		}
	}
	// A piece of work that has an end is not pulled again, and a failed one is.
	x := &turn{shard: shard{name: "slot", once: true}, working: true}
	s.settle(t.Context(), ended{turn: x, err: errors.New("no")})
	if x.done || !x.next.at.After(time.Now()) {
		t.Errorf("after an error: %+v", x)
	}
	if s.settle(t.Context(), ended{turn: x}); !x.done {
		t.Error("a slot that was read is read again")
	}
}
