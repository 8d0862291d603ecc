package sinks

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/golden"
	"github.com/penstock/penstock/services/internal/httpserver"
	"github.com/penstock/penstock/services/internal/probe"
	"github.com/penstock/penstock/topology"
)

func init() { harnesses["webhook_pull"] = webhookPullWorld }

// memoryLog is an event log in memory, of frames of up to four events.
type memoryLog struct {
	mu     sync.Mutex
	first  uint64
	frames [][]Event
	more   chan struct{} // closed when something is stored
	// slow, when set, is called before each event that is read.
	slow  func(ctx context.Context)
	reads int
	// behind counts the questions how far somebody is; that of number lost fails.
	behind, lost int
	// unsure tells that a read that is ended does not know how far it is.
	unsure bool
}

func newMemoryLog() *memoryLog { return &memoryLog{first: 1, more: make(chan struct{})} }

// store adds events as frames of n each.
func (l *memoryLog) store(n int, events ...Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for part := range slices.Chunk(events, n) {
		l.frames = append(l.frames, slices.Clone(part))
	}
	close(l.more)
	l.more = make(chan struct{})
}

// renew makes the log anew, as after the loss of its store.
func (l *memoryLog) renew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.first, l.frames = 1, nil
}

// trim removes the frames before a sequence.
func (l *memoryLog) trim(first uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.first = first
}

// memoryView is what of a log has some types.
type memoryView struct {
	*memoryLog

	types condition.Types
	all   []string
}

func (l *memoryLog) view(types ...string) memoryView {
	t, err := condition.ParseTypes(types)
	if err != nil {
		panic(err)
	}
	return memoryView{l, t, types}
}

func (v memoryView) Only(types []string) (EventLog, error) { return v.view(types...), nil }
func (v memoryView) Subjects() []string                    { return topology.EventSubjects(v.all) }

func (v memoryView) Bounds(_ context.Context, since time.Time) (first, at, next uint64, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	next = uint64(len(v.frames)) + 1
	if at = v.first; since.After(time.Now()) {
		at = next
	}
	return v.first, at, next, nil
}

func (v memoryView) Read(ctx context.Context, from Place, f func(Place, *Event) bool) (Place, error) {
	v.mu.Lock()
	frames, first, slow, unsure := v.frames, v.first, v.slow, v.unsure
	v.reads++
	v.mu.Unlock()
	if from.Sequence < first || from.Sequence > uint64(len(frames))+1 {
		return from, ErrLogTrimmed.New(nil, "read")
	}
	for at := from; at.Sequence <= uint64(len(frames)); at = (Place{Sequence: at.Sequence + 1}) {
		for i, e := range frames[at.Sequence-1] {
			if slow != nil {
				slow(ctx)
			}
			if ctx.Err() != nil && unsure {
				return from, errPullLog.New(context.Cause(ctx), "read")
			}
			if ctx.Err() != nil {
				return Place{at.Sequence, i}, context.Cause(ctx)
			}
			if i >= at.Index && v.types.Has(e.Type) && !f(Place{at.Sequence, i}, &e) {
				return Place{at.Sequence, i}, nil
			}
		}
	}
	return Place{Sequence: uint64(len(frames)) + 1}, nil
}

func (v memoryView) Wait(ctx context.Context, from Place) error {
	for {
		v.mu.Lock()
		more := v.more
		n := uint64(0)
		for i := from.Sequence; i >= 1 && i <= uint64(len(v.frames)); i++ {
			if v.types.Has(v.frames[i-1][0].Type) {
				n++
			}
		}
		v.mu.Unlock()
		if n > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-more:
		}
	}
}

func (v memoryView) Behind(_ context.Context, from Place) (uint64, time.Time, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.behind++; v.behind == v.lost {
		return 0, time.Time{}, errPullLog.New(nil, "answer")
	}
	return uint64(len(v.frames)) + 1 - from.Sequence, time.Now().Add(-time.Minute), nil
}

// memoryRegister is a register in memory. Several replicas may share it.
type memoryRegister struct {
	mu       sync.Mutex
	revision uint64
	entries  map[string]topology.Entry
	watchers map[chan topology.Entry]string
	// down, when set, is what every call returns.
	down error
	// put, when set, is called after each change; what it returns is answered in place
	// of the change.
	put func(ctx context.Context, value []byte) error
}

func newMemoryRegister() *memoryRegister {
	return &memoryRegister{entries: map[string]topology.Entry{}, watchers: map[chan topology.Entry]string{}}
}

func (m *memoryRegister) Get(_ context.Context, path string) (topology.Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[path]
	e.Path = path
	return e, m.down
}

func (m *memoryRegister) Put(ctx context.Context, e topology.Entry, value []byte) (topology.Entry, error) {
	now, err := m.change(e, value)
	if err == nil && m.put != nil {
		err = m.put(ctx, value)
	}
	if err != nil {
		return e, err
	}
	return now, nil
}

func (m *memoryRegister) change(e topology.Entry, value []byte) (topology.Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != nil {
		return e, m.down
	}
	if m.entries[e.Path].Revision != e.Revision {
		return e, topology.ErrEntryMoved.New(nil, "put")
	}
	m.revision++
	now := topology.Entry{Path: e.Path, Value: bytes.Clone(value), Revision: m.revision}
	m.entries[e.Path] = now
	for w, path := range m.watchers {
		if strings.HasPrefix(e.Path, path+".") {
			w <- now
		}
	}
	return now, nil
}

func (m *memoryRegister) List(_ context.Context, path string) (all []topology.Entry, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p, e := range m.entries {
		if strings.HasPrefix(p, path+".") {
			all = append(all, e)
		}
	}
	return all, m.down
}

func (m *memoryRegister) Watch(ctx context.Context, path string, f func(topology.Entry), known func()) error {
	w := make(chan topology.Entry, 100_000)
	all, _ := m.List(ctx, path)
	m.mu.Lock()
	m.watchers[w] = path
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watchers, w)
	}()
	for _, e := range all {
		f(e)
	}
	known()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-w:
			f(e)
		}
	}
}

// said is a log.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// puller is a destination at work, and one who fetches from it.
type puller struct {
	t        testing.TB
	sink     *webhookPull
	log      *memoryLog
	register *memoryRegister
	said     *said
	url, key string
	client   *http.Client
	stop     func() error
}

func startPull(t testing.TB, log *memoryLog, register *memoryRegister, change func(*WebhookPullConfig)) *puller {
	t.Helper()
	cfg := defaultWebhookPull()
	cfg.Address = "127.0.0.1:0"
	cfg.Rate = httpserver.Rate{}
	cfg.Streams = map[string][]string{"web": {"web.>"}, "all": {">"}}
	if change != nil {
		change(&cfg)
	}
	said := &said{}
	sink, err := newWebhookPull(cfg, Deps{
		Destination: "pull", Events: log.view(), Drain: 5 * time.Second,
		Log: slog.New(slog.NewJSONHandler(said, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}, register)
	if err != nil {
		t.Fatal(err)
	}
	p := &puller{t: t, said: said, sink: sink, log: log, register: register, client: &http.Client{Transport: &http.Transport{DisableCompression: true}}}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- sink.Run(ctx) }()
	p.stop = sync.OnceValue(func() error {
		cancel()
		err := <-ended
		p.client.CloseIdleConnections()
		return err
	})
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "it listens and knows the keys", func() bool { return sink.Addr() != nil && sink.book.ready() })
	p.url = "http://" + sink.Addr().String()
	return p
}

// eventually polls for what other goroutines do in their own time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("waited too long until %s", what)
		case <-tick.C:
		}
	}
}

// add makes a consumer that the destination knows.
func (p *puller) add(name string, streams ...string) string {
	p.t.Helper()
	key, err := p.sink.consumers.Add(p.t.Context(), name, streams, time.Time{})
	if err != nil {
		p.t.Fatal(err)
	}
	eventually(p.t, "the key is known", func() bool { _, ok := p.sink.book.find(key); return ok })
	return key
}

// pullReply is an answer.
type pullReply struct {
	status       int
	header       http.Header
	trailer      http.Header
	body         string
	cursor, more string
}

func (r pullReply) code() string {
	var e pullError
	_ = json.Unmarshal([]byte(r.body), &e)
	return e.Error.Code
}

// rows returns the n of each row.
func (r pullReply) rows(t testing.TB) (all []int) {
	t.Helper()
	for line := range strings.Lines(r.body) {
		var row struct {
			ID string
			N  *int
		}
		if err := json.Unmarshal([]byte(line), &row); err != nil || row.N == nil || row.ID != messages.NewID(fmt.Append(nil, *row.N)).String() {
			t.Fatalf("row %q: %v", line, err)
		}
		all = append(all, *row.N)
	}
	return all
}

func (p *puller) ask(method, path, key string, change func(*http.Request)) (pullReply, error) {
	r, err := http.NewRequestWithContext(p.t.Context(), method, p.url+path, http.NoBody)
	if err != nil {
		return pullReply{}, err
	}
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	if change != nil {
		change(r)
	}
	a, err := p.client.Do(r)
	if err != nil {
		return pullReply{}, err
	}
	defer func() { _ = a.Body.Close() }()
	body, err := io.ReadAll(a.Body)
	out := pullReply{a.StatusCode, a.Header, a.Trailer, string(body), a.Header.Get("Penstock-Cursor"), a.Header.Get("Penstock-More")}
	return out, err
}

func (p *puller) get(path string) pullReply {
	p.t.Helper()
	a, err := p.ask(http.MethodGet, path, p.key, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return a
}

// want gets a path and compares status and rows.
func (p *puller) want(path string, status int, rows ...int) pullReply {
	p.t.Helper()
	a := p.get(path)
	if a.status != status || status == 200 && !slices.Equal(a.rows(p.t), rows) {
		p.t.Fatalf("GET %s: %d %s, want %d %v", path, a.status, a.body, status, rows)
	}
	return a
}

// events makes n events from a number on, of a type.
func events(eventType string, first, n int) []Event {
	all := make([]Event, n)
	for i := range all {
		all[i] = *event(first+i, fmt.Sprintf(`{"n":%d}`, first+i))
		all[i].Type = eventType
	}
	return all
}

// loggedSink is the sink with a log into which the events come before they are
// delivered, as in penstock.
type loggedSink struct {
	*webhookPull

	log  *memoryLog
	mu   *sync.Mutex
	seen map[messages.ID]bool
}

func (s loggedSink) Append(dst []byte, e *Event) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.seen[e.ID] {
		s.seen[e.ID] = true
		kept := *e
		kept.Doc = bytes.Clone(e.Doc)
		s.log.store(1, kept)
	}
	return s.webhookPull.Append(dst, e)
}

func webhookPullWorld(t *testing.T) *world {
	log := newMemoryLog()
	p := startPull(t, log, newMemoryRegister(), func(c *WebhookPullConfig) { c.Rows = RowsEnvelope })
	p.key = p.add("siem")
	var lines []string
	cursor := ""
	return &world{
		sink: loggedSink{p.sink, log, &sync.Mutex{}, map[messages.ID]bool{}},
		received: func() []string {
			for {
				a := p.get("/v1/streams/all?limit=100" + cursor)
				if a.status == http.StatusNoContent {
					return lines
				}
				if a.status != http.StatusOK {
					t.Fatalf("%d %s", a.status, a.body)
				}
				lines = append(lines, strings.Split(strings.TrimSuffix(a.body, "\n"), "\n")...)
				cursor = "&ack=" + a.cursor
			}
		},
		cannot: map[string]string{
			"outage":    "it calls nobody: consumers come when they can",
			"denial":    "it calls nobody; see TestPullKeys for the other way round",
			"hang":      "it calls nobody; see TestPullSlowReader",
			"throttle":  "it calls nobody; see TestPullRate",
			"cut":       "it calls nobody; see TestPullCutAnswer",
			"partial":   "consumers refuse nothing: they acknowledge",
			"untrusted": "it calls nobody",
		},
		done: func() {
			if err := p.stop(); err != nil {
				t.Error(err)
			}
		},
	}
}

// Rows come in pages, and again until they are acknowledged; each key and stream has a
// position of its own.
// covers: F-30, CEN-10, CEN-11, CEN-18, CEN-19, LIM-18, LIM-19, LIM-22
func TestPullPages(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
	p.key = p.add("one")
	other := p.add("two")
	p.want("/v1/streams/web", 204)
	p.log.store(4, events("web.allow", 0, 6)...)
	p.log.store(4, events("mail", 6, 1)...)
	p.log.store(4, events("web.block", 7, 3)...)

	a := p.want("/v1/streams/web?limit=4", 200, 0, 1, 2, 3)
	if a.more != "true" || a.header.Get("Content-Type") != "application/x-ndjson" || a.cursor != "0000000000020000000" {
		t.Errorf("more %q, cursor %q, type %q", a.more, a.cursor, a.header.Get("Content-Type"))
	}
	again := p.want("/v1/streams/web?limit=5", 200, 0, 1, 2, 3, 4)
	if again.cursor <= a.cursor || again.cursor != "0000000000020000001" {
		t.Errorf("cursor %q after %q", again.cursor, a.cursor)
	}
	b := p.want("/v1/streams/web?ack="+a.cursor, 200, 4, 5, 7, 8, 9)
	if b.more != "false" {
		t.Errorf("more %q", b.more)
	}
	p.want("/v1/streams/web?ack="+a.cursor, 200, 4, 5, 7, 8, 9) // a call that got lost is repeated
	p.want("/v1/streams/web?ack="+b.cursor, 204)
	p.want("/v1/streams/web", 204)
	p.want("/v1/streams/all?limit=3", 200, 0, 1, 2)
	p.key = other
	p.want("/v1/streams/web?limit=1", 200, 0)
}

// Acknowledged is only what was served, for this key and stream, and never backwards.
func TestPullAcks(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
	p.key = p.add("one")
	p.log.store(4, events("web.allow", 0, 8)...)
	first := p.want("/v1/streams/web?limit=2", 200, 0, 1)
	second := p.want("/v1/streams/web?limit=3&ack="+first.cursor, 200, 2, 3, 4)
	future := Place{Sequence: 2, Index: 3}.String()
	for _, bad := range []string{future, Place{Sequence: 1}.String(), Place{Sequence: 1 << 40}.String(), "43", "x", "-000000000010000000", "", strings.Repeat("9", 27), "000000000001999999９"} {
		if a := p.get("/v1/streams/web?ack=" + url.QueryEscape(bad)); a.status != 400 || a.code() != "deliver.pull_bad_ack" {
			t.Errorf("ack=%s: %d %s", bad, a.status, a.body)
		}
	}
	// What was served for another stream was not served for this one.
	p.want("/v1/streams/all?limit=8", 200, 0, 1, 2, 3, 4, 5, 6, 7)
	if a := p.get("/v1/streams/web?ack=" + Place{Sequence: 3}.String()); a.status != 400 {
		t.Errorf("a foreign ack: %d", a.status)
	}
	// Acknowledged without fetching, in the query or as a form.
	if a, err := p.ask(http.MethodPost, "/v1/streams/web/ack?ack="+second.cursor, p.key, nil); err != nil || a.status != 204 || a.cursor != second.cursor {
		t.Errorf("%d %s, %v", a.status, a.body, err)
	}
	a, err := p.ask(http.MethodPost, "/v1/streams/web/ack", p.key, func(r *http.Request) {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		form := "ack=" + second.cursor
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(form)), int64(len(form))
	})
	if err != nil || a.status != 204 {
		t.Errorf("%d %s, %v", a.status, a.body, err)
	}
	if a, err := p.ask(http.MethodPost, "/v1/streams/web/ack", p.key, nil); err != nil || a.status != 400 {
		t.Errorf("an ack of nothing: %d, %v", a.status, err)
	}
	p.want("/v1/streams/web", 200, 5, 6, 7)
}

// An operator's rewind goes before what a consumer acknowledges of what it got before.
func TestPullRewind(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
	p.key = p.add("one")
	p.log.store(4, events("web.allow", 0, 8)...)
	a := p.want("/v1/streams/web?limit=6", 200, 0, 1, 2, 3, 4, 5)
	p.want("/v1/streams/web?limit=1&ack="+a.cursor, 200, 6)
	must(t, p.sink.consumers.Rewind(t.Context(), "one", "web", Place{Sequence: 1, Index: 2}))
	b := p.want("/v1/streams/web?limit=2&ack="+a.cursor, 200, 2, 3)
	p.want("/v1/streams/web?limit=2&ack="+b.cursor, 200, 4, 5)
	must(t, p.sink.consumers.Rewind(t.Context(), "one", "web", Place{Sequence: 3}))
	p.want("/v1/streams/web?ack="+b.cursor, 204)
	if err := p.sink.consumers.Rewind(t.Context(), "nobody", "web", Place{}); err == nil {
		t.Error("nobody was rewound")
	}
}

// The form of Censornet's own webhook gets what it knows: a list, all of it, once.
// covers: CEN-12, CEN-15, CEN-16, CEN-20
func TestPullCompatible(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), func(c *WebhookPullConfig) { c.Limits.Rows, c.Limits.MaxRows = 2, 3 })
	key := p.add("old")
	numbers := func(a pullReply) (all []int) {
		t.Helper()
		var rows []struct{ N int }
		if err := json.Unmarshal([]byte(a.body), &rows); err != nil || a.status != 200 || a.header.Get("Content-Type") != "application/json" {
			t.Fatalf("%d %q: %v", a.status, a.body, err)
		}
		for _, r := range rows {
			all = append(all, r.N)
		}
		return all
	}
	if got := numbers(p.get("/v1/streams?product=web&key=" + key)); len(got) != 0 {
		t.Errorf("got %v of nothing", got)
	}
	p.log.store(4, events("web.allow", 0, 3000)...)
	a := p.get("/v1/streams/?product=web&key=" + key)
	if got := numbers(a); len(got) != 3000 || got[2999] != 2999 {
		t.Errorf("got %d", len(got))
	}
	if a.trailer.Get("Penstock-Cursor") != (Place{Sequence: 751}).String() || a.trailer.Get("Penstock-More") != "false" {
		t.Errorf("trailer %v", a.trailer)
	}
	if got := numbers(p.get("/v1/streams?product=web&key=" + key)); len(got) != 0 {
		t.Errorf("got %v twice", got)
	}
	p.log.store(4, events("web.allow", 3000, 1)...)
	if got := numbers(p.get("/v1/streams?product=web&auto_ack=0&limit=1&key=" + key)); !slices.Equal(got, []int{3000}) {
		t.Errorf("got %v", got)
	}
	if got := numbers(p.get("/v1/streams/web?product=web&format=json&auto_ack=1&key=" + key)); !slices.Equal(got, []int{3000}) {
		t.Errorf("got %v", got)
	}
	p.key = key
	p.want("/v1/streams/web", 204)
	if a := p.get("/v1/streams/web?product=mail"); a.status != 404 {
		t.Errorf("two streams: %d", a.status)
	}
}

// covers: CEN-9, CEN-13, CEN-33
func TestPullKeys(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), func(c *WebhookPullConfig) { c.FailureRate = httpserver.Rate{} })
	key, webOnly := p.add("one"), p.add("two", "web")
	expired, err := p.sink.consumers.Add(t.Context(), "three", nil, time.Now().Add(-time.Second))
	must(t, err)
	eventually(t, "the key is known", func() bool { _, ok := p.sink.book.find(expired); return ok })
	if len(key) != keyLength || !strings.HasPrefix(key, "penstock_") || key[9:25] == webOnly[9:25] {
		t.Errorf("keys %q and %q", key, webOnly)
	}
	for path, e := range p.register.entries {
		if strings.Contains(string(e.Value), key[26:]) {
			t.Errorf("%s holds the key", path)
		}
	}
	for _, tt := range []struct {
		name, key, path string
		status          int
		code            string
	}{
		{"good", key, "/v1/streams/web", 204, ""},
		{"one stream", webOnly, "/v1/streams/web", 204, ""},
		{"another stream", webOnly, "/v1/streams/all", 403, "deliver.pull_not_allowed"},
		{"no such stream", key, "/v1/streams/none", 404, "deliver.pull_no_stream"},
		{"nothing below", key, "/v1/streams/web/other", 404, "deliver.pull_no_stream"},
		{"no key", "", "/v1/streams/web", 401, "deliver.pull_key_missing"},
		{"no key, no stream", "", "/v1/streams/none", 401, "deliver.pull_key_missing"},
		{"unknown", strings.Replace(key, "penstock_", "penstock_f", 1)[:keyLength], "/v1/streams/web", 401, "deliver.pull_key_unknown"},
		{"one digit off", key[:keyLength-1] + string('a'+('f'-key[keyLength-1])%6), "/v1/streams/web", 401, "deliver.pull_key_unknown"},
		{"longer", key + "0", "/v1/streams/web", 401, "deliver.pull_key_unknown"},
		{"the id alone", key[:26], "/v1/streams/web", 401, "deliver.pull_key_unknown"},
		{"expired", expired, "/v1/streams/web", 401, "deliver.pull_key_expired"},
		{"in the query", "", "/v1/streams/web?key=" + key, 204, ""},
		{"twice", key, "/v1/streams/web?key=" + key, 401, "deliver.pull_key_missing"},
		{"twice in the query", "", "/v1/streams/web?key=" + key + "&key=" + key, 401, "deliver.pull_key_missing"},
		{"elsewhere", key, "/v2/streams/web", 404, "deliver.pull_no_stream"},
		{"beside", key, "/v1/streamsweb", 404, "deliver.pull_no_stream"},
	} {
		p.key = tt.key
		a := p.get(tt.path)
		if a.status != tt.status || a.code() != tt.code || (a.status == 401) != (a.header.Get("WWW-Authenticate") != "") {
			t.Errorf("%s: %d %s", tt.name, a.status, a.body)
		}
		if strings.Contains(a.body, key[26:]) {
			t.Errorf("%s: the answer shows the key", tt.name)
		}
	}
	a, err := p.ask(http.MethodGet, "/v1/streams/web", "", func(r *http.Request) { r.SetBasicAuth("one", key) })
	if err != nil || a.status != 401 {
		t.Errorf("basic: %d, %v", a.status, err)
	}
	if _, err := p.sink.consumers.Add(t.Context(), "one", nil, time.Time{}); err == nil {
		t.Error("added twice")
	}
	must(t, p.sink.consumers.Revoke(t.Context(), "one"))
	p.key = key
	eventually(t, "the key is worthless", func() bool { return p.get("/v1/streams/web").status == 401 })
	p.key = p.add("one")
	p.want("/v1/streams/web", 204)
	if err := p.sink.consumers.Revoke(t.Context(), "nobody"); err == nil {
		t.Error("nobody was revoked")
	}
	if _, err := p.sink.consumers.Add(t.Context(), "a b", nil, time.Time{}); err == nil {
		t.Error("a name with a space")
	}
	must(t, p.stop())
	if text := p.said.String(); !strings.Contains(text, "listens") || strings.Contains(text, key[26:]) {
		t.Errorf("the log shows a key:\n%s", text)
	}
	all, err := p.sink.consumers.List(t.Context())
	if err != nil || len(all) != 3 || all[0].Name != "one" || all[0].Positions["web"].Address != "127.0.0.1" || all[0].Positions["web"].Seen.IsZero() {
		t.Errorf("listed %+v, %v", all, err)
	}
}

// A request waits for events, holds its position meanwhile, and ends when the process
// stops.
// covers: CEN-16
func TestPullWait(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
	p.key = p.add("one")
	answers := make(chan pullReply, 1)
	held := func() bool {
		e, _ := p.register.Get(t.Context(), p.sink.consumers.positionPath("one", "web"))
		return strings.Contains(string(e.Value), `"holder"`)
	}
	wait := func() {
		eventually(t, "the position is free", func() bool { return !held() })
		go func() {
			a, err := p.ask(http.MethodGet, "/v1/streams/web?wait=50", p.key, nil)
			if err != nil {
				t.Error(err)
			}
			answers <- a
		}()
		eventually(t, "the position is held", held)
	}
	wait()
	if a := p.get("/v1/streams/web"); a.status != 409 || a.code() != "deliver.pull_key_in_use" || a.header.Get("Retry-After") == "" {
		t.Errorf("a second connection: %d %s", a.status, a.body)
	}
	p.want("/v1/streams/all", 204) // another stream is another position
	p.log.store(4, events("mail", 0, 1)...)
	p.log.store(4, events("web.allow", 1, 1)...)
	if a := <-answers; a.status != 200 || !slices.Equal(a.rows(t), []int{1}) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := p.want("/v1/streams/web?auto_ack=1&wait=50", 200, 1); a.more != "false" {
		t.Errorf("more %q", a.more)
	}
	wait()
	must(t, p.stop())
	if a := <-answers; a.status != 204 {
		t.Errorf("at the end: %d %s", a.status, a.body)
	}
}

// A replica that dies with a position leaves it held; others take it when it has not
// been heard of for long enough.
func TestPullHolderDies(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
	p.key = p.add("one")
	p.log.store(4, events("web.allow", 0, 2)...)
	p.want("/v1/streams/web", 200, 0, 1)
	path := p.sink.consumers.positionPath("one", "web")
	e, err := p.register.Get(t.Context(), path)
	must(t, err)
	var at Position
	must(t, json.Unmarshal(e.Value, &at))
	at.Holder = "gone"
	value, _ := json.Marshal(at)
	_, err = p.register.Put(t.Context(), e, value)
	must(t, err)
	if a := p.get("/v1/streams/web"); a.status != 409 {
		t.Errorf("while it may live: %d", a.status)
	}
	p.sink.book.mu.Lock()
	s := p.sink.book.positions[path]
	s.at = s.at.Add(-holdExpiry)
	p.sink.book.positions[path] = s
	p.sink.book.mu.Unlock()
	p.want("/v1/streams/web", 200, 0, 1)
}

// Events that left the log before they were fetched are no silent loss.
// covers: CEN-5, CEN-17, LIM-17
func TestPullTrimmed(t *testing.T) {
	for _, way := range []string{"from", "ack"} {
		p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
		p.key = p.add("one")
		p.log.store(4, events("web.allow", 0, 16)...)
		p.want("/v1/streams/web?limit=2", 200, 0, 1)
		p.log.trim(3)
		a := p.get("/v1/streams/web")
		var body pullError
		must(t, json.Unmarshal([]byte(a.body), &body))
		if a.status != 410 || body.Error.Code != "deliver.pull_gone_too_long" || body.Oldest == nil || *body.Oldest != (Place{Sequence: 3}) {
			t.Fatalf("%d %s", a.status, a.body)
		}
		p.want("/v1/streams/web", 410) // it stays until the consumer decides
		if way == "from" {
			a = p.want("/v1/streams/web?limit=2&from=oldest", 200, 8, 9)
		} else {
			a = p.want("/v1/streams/web?limit=2&ack="+body.Oldest.String(), 200, 8, 9)
		}
		if gap := a.header.Get("Penstock-Gap"); gap != "0000000000010000000-0000000000030000000" {
			t.Errorf("gap %q", gap)
		}
		// From says nothing while there is a position.
		p.want("/v1/streams/web?limit=1&from=oldest&ack="+a.cursor, 200, 10)
	}
}

// Positions behind the end of a log that was made anew are gone, too, and the consumer
// gets on as behind a gap.
func TestPullLogMadeAnew(t *testing.T) {
	for _, way := range []string{"from=oldest", "ack=" + Place{Sequence: 1}.String(), "from=oldest&auto_ack=1"} {
		p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
		p.key = p.add("one")
		p.log.store(1, events("web.allow", 0, 16)...)
		p.want("/v1/streams/web?auto_ack=1&limit=15", 200, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
		p.want("/v1/streams/web", 200, 15)
		p.log.renew()
		p.log.store(1, events("web.allow", 20, 4)...)
		p.want("/v1/streams/web", 410)
		a := p.want("/v1/streams/web?limit=2&"+way, 200, 20, 21)
		if a.header.Get("Penstock-Gap") == "" {
			t.Errorf("%s: no gap", way)
		}
		p.want("/v1/streams/web?limit=2&ack="+a.cursor, 200, 22, 23)
		// What the old log served was not served by this one.
		if a := p.get("/v1/streams/web?ack=" + Place{Sequence: 9}.String()); a.status != 400 {
			t.Errorf("%s: an ack of what never was served: %d", way, a.status)
		}
	}
}

// Who has nothing to fetch for long does not fall behind what the log keeps.
func TestPullQuietStream(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
	p.key = p.add("one")
	p.want("/v1/streams/web", 204)
	p.log.store(1, events("web.allow", 0, 2)...)
	a := p.want("/v1/streams/web", 200, 0, 1)
	p.want("/v1/streams/web?ack="+a.cursor, 204)
	p.log.store(1, events("mail", 0, 100)...)
	// Who goes on to acknowledge what it got last is right.
	p.want("/v1/streams/web?ack="+a.cursor, 204)
	p.log.trim(103)
	p.want("/v1/streams/web?ack="+a.cursor, 204)
	p.log.store(1, events("web.allow", 2, 1)...)
	p.want("/v1/streams/web?ack="+a.cursor, 200, 2)
	p.want("/v1/streams/web", 200, 2)
}

// A new consumer begins some time back, or where it says.
// covers: CEN-14
func TestPullBegins(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
	p.log.store(2, events("web.allow", 0, 4)...)
	p.key = p.add("one")
	p.want("/v1/streams/web", 200, 0, 1, 2, 3)
	p.key = p.add("two")
	p.want("/v1/streams/web?from=now", 204)
	p.key = p.add("three")
	p.want("/v1/streams/web?from=oldest&limit=1", 200, 0)
	p.key = p.add("four")
	p.want("/v1/streams/web?from="+url.QueryEscape(time.Now().Add(time.Hour).Format(time.RFC3339)), 204)
}

func TestPullRate(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), func(c *WebhookPullConfig) {
		c.Rate = httpserver.Rate{PerSecond: 0.01, Burst: 2}
		c.FailureRate = httpserver.Rate{PerSecond: 0.01, Burst: 3}
	})
	p.key = p.add("one")
	other := p.add("two")
	p.want("/v1/streams/web", 204)
	p.want("/v1/streams/web", 204)
	a := p.get("/v1/streams/web")
	if after, err := strconv.Atoi(a.header.Get("Retry-After")); a.status != 429 || a.code() != "deliver.pull_rate" || err != nil || after < 90 || after > 100 {
		t.Errorf("%d %s, Retry-After %q", a.status, a.body, a.header.Get("Retry-After"))
	}
	p.key = "penstock_wrong"
	for i, status := range []int{401, 401, 401, 429, 429} {
		if a := p.get("/v1/streams/web"); a.status != status {
			t.Errorf("wrong key %d: %d, want %d", i, a.status, status)
		}
	}
	p.key = other // from the same address
	p.want("/v1/streams/web", 204)
}

func TestPullLimits(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), func(c *WebhookPullConfig) {
		c.Limits.Rows, c.Limits.MaxRows, c.Limits.Requests = 3, 5, 1
		c.Limits.Page, c.Limits.InFlight = config.KiB, config.KiB
	})
	p.key = p.add("one")
	other := p.add("two")
	p.log.store(4, events("web.allow", 0, 8)...)
	large := *event(8, `{"n":8,"pad":"`+strings.Repeat("x", 5000)+`"}`)
	large.Type = "web.allow"
	p.log.store(4, large)
	p.want("/v1/streams/web", 200, 0, 1, 2)
	a := p.want("/v1/streams/web?limit=100", 200, 0, 1, 2, 3, 4)
	a = p.want("/v1/streams/web?limit=100&ack="+a.cursor, 200, 5, 6, 7) // the large one has no room
	if a.more != "true" {
		t.Errorf("more %q", a.more)
	}
	a = p.want("/v1/streams/web?limit=100&ack="+a.cursor, 200, 8) // but comes alone
	// While one request waits, there is no place for another.
	taken := func() bool {
		if !p.sink.places.TryAcquire(1) {
			return true
		}
		p.sink.places.Release(1)
		return false
	}
	eventually(t, "the place is free", func() bool { return !taken() })
	done := make(chan struct{})
	go func() {
		defer close(done)
		if a, err := p.ask(http.MethodGet, "/v1/streams/web?wait=50&ack="+a.cursor, p.key, nil); err != nil || a.status != 200 {
			t.Errorf("%d, %v", a.status, err)
		}
	}()
	eventually(t, "the place is taken", taken)
	if a, err := p.ask(http.MethodGet, "/v1/streams/all", other, nil); err != nil || a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %s, %v", a.status, a.body, err)
	}
	p.log.store(1, events("web.allow", 9, 1)...)
	<-done
}

// Whatever a stranger sends, the answer is one of the documented ones.
func TestPullHostile(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), func(c *WebhookPullConfig) { c.FailureRate = httpserver.Rate{} })
	p.key = p.add("one")
	p.log.store(1, events("web.allow", 0, 1)...)
	for _, tt := range []struct {
		query  string
		status int
	}{
		{"limit=x", 400},
		{"limit=-1", 400},
		{"limit=0", 400},
		{"limit=1&limit=2", 400},
		{"limit=99999999999999999999", 400},
		{"format=xml", 400},
		{"wait=-1", 400},
		{"wait=1e9", 400},
		{"auto_ack=perhaps", 400},
		{"from=yesterday", 400},
		{"a=%zz", 400},
		{"a;b", 400},
		{"unknown=1&limit=1", 200},
		{"product=web", 200},
		{"product=../web", 404},
	} {
		if a := p.get("/v1/streams/web?" + tt.query); a.status != tt.status {
			t.Errorf("%s: %d %s, want %d", tt.query, a.status, a.body, tt.status)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodHead, http.MethodOptions, "BREW"} {
		a, err := p.ask(method, "/v1/streams/web", p.key, nil)
		if err != nil || a.status != 405 || a.header.Get("Allow") != "GET" {
			t.Errorf("%s: %d, %v", method, a.status, err)
		}
	}
	a, err := p.ask(http.MethodGet, "/v1/streams/web", p.key, func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("x")) })
	if err != nil || a.status != 400 {
		t.Errorf("a body: %d, %v", a.status, err)
	}
	a, err = p.ask(http.MethodPost, "/v1/streams/web/ack", p.key, func(r *http.Request) {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Body = io.NopCloser(io.LimitReader(endless{}, 1<<20))
	})
	if err == nil && a.status != 400 {
		t.Errorf("a huge form: %d", a.status)
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		if a, err := p.ask(method, "/healthz", "", nil); err != nil || a.status != 200 {
			t.Errorf("%s of health: %d, %v", method, a.status, err)
		}
	}
	p.register.mu.Lock()
	p.register.down = errPullLog.New(nil, "answer")
	p.register.mu.Unlock()
	if a := p.get("/v1/streams/web"); a.status != 503 || a.code() != "deliver.pull_log_unavailable" {
		t.Errorf("without a bus: %d %s", a.status, a.body)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'a'
	}
	return len(b), nil
}

// The listener has TLS, asks for client certificates if told to, and believes proxies
// that it knows.
func TestPullTLS(t *testing.T) {
	authority := newAuthority(t)
	authority.issue(t, "server")
	authority.issue(t, "client")
	p := startPull(t, newMemoryLog(), newMemoryRegister(), func(c *WebhookPullConfig) {
		c.TLS = httpserver.TLS{
			CertFile: authority.path("server.pem"), KeyFile: authority.path("server.key"),
			ClientCAFile: authority.path("ca.pem"), RequireClientCert: true,
		}
		c.TrustedProxies = []string{"127.0.0.1"}
	})
	p.key = p.add("one")
	if a, err := p.ask(http.MethodGet, "/v1/streams/web", p.key, nil); err == nil && a.status != 400 {
		t.Errorf("plain HTTP was answered: %d", a.status)
	}
	p.url = strings.Replace(p.url, "http:", "https:", 1)
	for _, h2 := range []bool{false, true} {
		stranger, err := TLSConfig{CAFile: authority.path("ca.pem")}.client("test")
		must(t, err)
		p.client = &http.Client{Transport: &http.Transport{TLSClientConfig: stranger, ForceAttemptHTTP2: h2}}
		if _, err := p.ask(http.MethodGet, "/healthz", "", nil); err == nil {
			t.Error("a client without a certificate was answered")
		}
		known, err := authority.client().client("test")
		must(t, err)
		p.client = &http.Client{Transport: &http.Transport{TLSClientConfig: known, ForceAttemptHTTP2: h2}}
		p.log.store(1, events("web.allow", 0, 1)...)
		a, err := p.ask(http.MethodGet, "/v1/streams/web?wait=10&limit=0&auto_ack=1", p.key, func(r *http.Request) {
			r.Header.Set("X-Forwarded-For", "203.0.113.9, 198.51.100.7")
		})
		if err != nil || a.status != 200 || a.trailer.Get("Penstock-Cursor") == "" {
			t.Errorf("HTTP/2 %v: %d %s, %v", h2, a.status, a.body, err)
		}
		p.client.CloseIdleConnections()
	}
	all, err := p.sink.consumers.List(t.Context())
	if err != nil || all[0].Positions["web"].Address != "198.51.100.7" {
		t.Errorf("listed %+v, %v", all, err)
	}
}

// All who wait for the same event get it, though there is room for one page at a time.
func TestPullManyWait(t *testing.T) {
	const many = 40
	p := startPull(t, newMemoryLog(), newMemoryRegister(), func(c *WebhookPullConfig) {
		c.Limits.Page, c.Limits.InFlight = config.MiB, config.MiB
	})
	var waiting sync.WaitGroup
	for i := range many {
		key := p.add(fmt.Sprint("consumer", i))
		waiting.Go(func() {
			a, err := p.ask(http.MethodGet, "/v1/streams/web?wait=50", key, nil)
			if err != nil || a.status != 200 || !slices.Equal(a.rows(t), []int{0}) {
				t.Errorf("%d %s, %v", a.status, a.body, err)
			}
		})
	}
	eventually(t, "all wait", func() bool {
		all, err := p.sink.consumers.List(t.Context())
		held := 0
		for _, c := range all {
			if c.Positions["web"].Holder != "" {
				held++
			}
		}
		return err == nil && held == many
	})
	p.log.store(1, events("web.allow", 0, 1)...)
	waiting.Wait()
}

func TestPullLag(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
	p.key = p.add("lagging")
	p.log.store(1, events("web.allow", 0, 3)...)
	p.want("/v1/streams/web?limit=1", 200, 0)
	var frames float64
	var shown map[[2]string]bool
	eventually(t, "the lag is seen", func() bool {
		shown = p.sink.lags(t.Context(), shown)
		frames = gaugeOf(t, pullBehind.WithLabelValues("pull", "web", "lagging"))
		return frames == 3
	})
	if age := gaugeOf(t, pullOldest.WithLabelValues("pull", "web", "lagging")); age < 59 || age > 120 {
		t.Errorf("age %v", age)
	}
	// What was seen before the bus failed is not forgotten, so that it can go.
	p.want("/v1/streams/all?limit=1", 200, 0)
	eventually(t, "both positions are known", func() bool { return len(p.sink.book.standing()) == 2 })
	p.log.mu.Lock()
	p.log.behind, p.log.lost = 0, 2
	p.log.mu.Unlock()
	if shown = p.sink.lags(t.Context(), nil); len(shown) != 1 {
		t.Errorf("shown %v", shown)
	}
	must(t, p.sink.consumers.Revoke(t.Context(), "lagging"))
	eventually(t, "it is gone", func() bool { shown = p.sink.lags(t.Context(), shown); return len(shown) == 0 })
}

func gaugeOf(t *testing.T, g prometheus.Metric) float64 {
	t.Helper()
	var m dto.Metric
	must(t, g.Write(&m))
	return m.GetGauge().GetValue()
}

func TestPullProbe(t *testing.T) {
	cfg := defaultWebhookPull()
	cfg.Address = "127.0.0.1:0"
	if all := cfg.Probe(t.Context()); len(all) != 1 || all[0].Level != probe.OK {
		t.Errorf("found %+v", all)
	}
	p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
	cfg.Address = p.sink.Addr().String()
	if all := cfg.Probe(t.Context()); len(all) != 1 || all[0].Level != probe.Warn {
		t.Errorf("found %+v", all)
	}
	cfg.TLS = httpserver.TLS{CertFile: "none.pem", KeyFile: "none.key"}
	if all := cfg.Probe(t.Context()); len(all) != 1 || all[0].Level != probe.Fail || all[0].Code != "deliver.pull_certificate" {
		t.Errorf("found %+v", all)
	}
	// What cannot be opened says so.
	second := p.sink.cfg
	second.Address = cfg.Address
	s, err := newWebhookPull(second, Deps{Destination: "second", Events: p.log.view()}, p.register)
	must(t, err)
	if err := s.Run(t.Context()); fault.CodeOf(err) != "deliver.pull_cannot_listen" {
		t.Errorf("run: %v", err)
	}
	if _, err := openWebhookPull(t.Context(), second, Deps{Destination: "third"}); fault.CodeOf(err) != "deliver.pull_no_log" {
		t.Errorf("without a bus: %v", err)
	}
}

func TestPullGzip(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
	p.key = p.add("one")
	p.log.store(100, events("web.allow", 0, 1000)...)
	plain := p.get("/v1/streams/web")
	for _, query := range []string{"limit=1000", "limit=0&auto_ack=1"} {
		a, err := p.ask(http.MethodGet, "/v1/streams/web?"+query, p.key, func(r *http.Request) {
			r.Header.Set("Accept-Encoding", "br, gzip;q=0.5")
		})
		must(t, err)
		z, err := gzip.NewReader(strings.NewReader(a.body))
		must(t, err)
		body, err := io.ReadAll(z)
		if err != nil || string(body) != plain.body || a.header.Get("Content-Encoding") != "gzip" || len(a.body) > len(plain.body)/2 {
			t.Errorf("%s: %d bytes for %d, %v", query, len(a.body), len(plain.body), err)
		}
	}
	for accept, want := range map[string]bool{
		"": false, "gzip": true, "GZIP": true, "gzip;q=0": false, "*": true, "*;q=0": false, "gzip;q=0, *": false, "br": false, "identity, x-gzip": true, "gzip;q=x": false,
	} {
		if got := takesGzip([]string{accept}); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
}

// Who does not read is cut after a while, and its memory freed; what it did not get
// comes again.
func TestPullSlowReader(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), func(c *WebhookPullConfig) { c.Timeouts.Stall = 50 * time.Millisecond })
	p.key = p.add("one")
	pad := strings.Repeat("x", 100_000)
	for i := range 300 {
		e := *event(i, fmt.Sprintf(`{"n":%d,"pad":%q}`, i, pad))
		e.Type = "web.allow"
		p.log.store(1, e)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+"/v1/streams/web?limit=0&auto_ack=1", http.NoBody)
	must(t, err)
	r.Header.Set("Authorization", "Bearer "+p.key)
	a, err := p.client.Do(r)
	must(t, err)
	eventually(t, "the answer was cut", func() bool {
		e, _ := p.register.Get(t.Context(), p.sink.consumers.positionPath("one", "web"))
		return !strings.Contains(string(e.Value), `"holder"`)
	})
	n, err := io.Copy(io.Discard, a.Body)
	_ = a.Body.Close()
	if err == nil || n > 20<<20 {
		t.Errorf("read %d bytes of a cut answer, %v", n, err)
	}
	if a := p.get("/v1/streams/web?limit=1"); a.status != 200 || !strings.HasPrefix(a.body[strings.Index(a.body, `"n"`):], `"n":0,`) {
		t.Errorf("%d %.80s", a.status, a.body)
	}
}

// An answer that breaks in the middle does not look like a whole one, and its rows
// come again.
func TestPullCutAnswer(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
	p.key = p.add("one")
	p.log.store(1000, events("web.allow", 0, 20_000)...)
	n := 0
	p.log.slow = func(context.Context) {
		if n++; n == 10_000 {
			p.log.trim(21) // what is read now is gone
			panic("the log breaks")
		}
	}
	if a, err := p.ask(http.MethodGet, "/v1/streams?product=web&key="+p.key, "", nil); err == nil {
		t.Errorf("a cut answer is whole: %d, %d bytes", a.status, len(a.body))
	}
	p.log.slow = nil
	p.log.trim(1)
	p.want("/v1/streams/web?limit=1", 200, 0)
}

// What was read when time is up is served, and a stretch without rows is passed.
func TestPullReadTime(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), func(c *WebhookPullConfig) { c.Timeouts.Read = 30 * time.Millisecond })
	p.key = p.add("one")
	p.log.store(1, events("mail", 0, 100)...)
	p.log.store(1, events("web.allow", 100, 1)...)
	n := 0
	p.log.slow = func(ctx context.Context) {
		if n++; n%60 == 0 {
			<-ctx.Done()
		}
	}
	a := p.get("/v1/streams/web")
	if a.status != 204 || a.more != "true" || a.cursor != (Place{Sequence: 60}).String() {
		t.Errorf("%d, more %q, cursor %q", a.status, a.more, a.cursor)
	}
	p.want("/v1/streams/web", 200, 100)
	n = 0
	must(t, p.sink.consumers.Rewind(t.Context(), "one", "web", Place{Sequence: 1}))
	p.want("/v1/streams/web?wait=10", 200, 100) // goes on reading while there is time
}

// A look that ends before it finds something takes nothing back: what was served
// before may be acknowledged.
func TestPullServedStays(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), func(c *WebhookPullConfig) { c.Timeouts.Read = 30 * time.Millisecond })
	p.key = p.add("one")
	p.log.store(1, events("mail", 0, 100)...)
	p.log.store(1, events("web.allow", 100, 2)...)
	a := p.want("/v1/streams/web?limit=1", 200, 100)
	n := 0
	p.log.slow = func(ctx context.Context) {
		if n++; n == 60 {
			<-ctx.Done()
		}
	}
	p.want("/v1/streams/web", 204)
	p.want("/v1/streams/web?ack="+a.cursor, 200, 101)
}

// Rows are not served with a cursor that lies before them.
func TestPullUnsure(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), func(c *WebhookPullConfig) { c.Timeouts.Read = 30 * time.Millisecond })
	p.key = p.add("one")
	p.log.store(1, events("web.allow", 0, 10)...)
	n := 0
	p.log.unsure = true
	p.log.slow = func(ctx context.Context) {
		if n++; n == 5 {
			<-ctx.Done()
		}
	}
	p.want("/v1/streams/web", 503)
	p.want("/v1/streams/web", 200, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
}

// When the answer to a change gets lost, the position is given back all the same.
func TestPullLostAnswer(t *testing.T) {
	register := newMemoryRegister()
	p := startPull(t, newMemoryLog(), register, nil)
	p.key = p.add("one")
	p.log.store(1, events("web.allow", 0, 2)...)
	n := 0
	register.put = func(context.Context, []byte) error {
		if n++; n == 2 { // the first takes the position, the second notes what is served
			return errPullLog.New(nil, "answer")
		}
		return nil
	}
	p.want("/v1/streams/web", 503)
	p.want("/v1/streams/web", 200, 0, 1)
}

// A beat that is under way when an answer ends does not keep the position.
func TestPullBeatUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		register, log := newMemoryRegister(), newMemoryLog()
		cfg := defaultWebhookPull()
		cfg.Address, cfg.Streams = "127.0.0.1:0", map[string][]string{"web": {"web.>"}}
		s, err := newWebhookPull(cfg, Deps{Destination: "pull", Events: log.view()}, register)
		must(t, err)
		key, err := s.consumers.Add(t.Context(), "one", nil, time.Time{})
		must(t, err)
		for _, e := range register.entries {
			s.book.saw(e, time.Now())
		}
		who, ok := s.book.find(key)
		if !ok {
			t.Fatal("the key is not known")
		}
		x := &pullExchange{s: s, who: who, stream: "web", events: s.streams["web"], began: time.Now()}
		h, err := x.take(t.Context(), true)
		must(t, err)
		register.put = func(ctx context.Context, value []byte) error {
			if !bytes.Contains(value, []byte(`"beat"`)) || !bytes.Contains(value, []byte(`"holder"`)) {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
				return nil
			}
		}
		ctx, lose := context.WithCancelCause(t.Context())
		kept := make(chan struct{})
		go func() {
			defer close(kept)
			h.keep(ctx, lose)
		}()
		time.Sleep(holdRenew + time.Second/2)
		lose(nil)
		<-kept
		must(t, h.release(t.Context(), func(*Position) {}))
		e, err := register.Get(t.Context(), s.consumers.positionPath("one", "web"))
		must(t, err)
		if strings.Contains(string(e.Value), `"holder"`) {
			t.Errorf("still held: %s", e.Value)
		}
	})
}

// An answer that is under way when its key is revoked is cut, and has nothing in it
// but rows.
func TestPullRevokedUnderWay(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), nil)
	p.key = p.add("one")
	p.log.store(1000, events("web.allow", 0, 20_000)...)
	n := 0
	p.log.slow = func(context.Context) {
		if n++; n == 15_000 {
			must(t, p.sink.consumers.Revoke(t.Context(), "one"))
			eventually(t, "the key is worthless", func() bool { _, ok := p.sink.book.find(p.key); return !ok })
		}
	}
	a, err := p.ask(http.MethodGet, "/v1/streams/web?limit=0&auto_ack=1", p.key, nil)
	if err == nil || strings.Contains(a.body, "error") {
		t.Errorf("a cut answer is whole: %d, … %s", a.status, a.body[max(0, len(a.body)-200):])
	}
}

// Who asks and asks and does not read the answers is cut, key or no key.
func TestPullNeverReads(t *testing.T) {
	p := startPull(t, newMemoryLog(), newMemoryRegister(), func(c *WebhookPullConfig) { c.Timeouts.Stall = 50 * time.Millisecond })
	for _, path := range []string{"/healthz", "/v1/streams/web", "/"} {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", p.sink.Addr().String())
		must(t, err)
		must(t, c.SetDeadline(time.Now().Add(20*time.Second)))
		asked := bytes.Repeat([]byte("GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"), 1000)
		for err == nil {
			_, err = c.Write(asked)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection stays", path)
		}
		_ = c.Close()
	}
}

func TestPullRows(t *testing.T) {
	docs := []string{
		`{"utc_timestamp":"2026-01-05 12:20:24.010832","final_action":"Allow"}`,
		`{}`,
		` { } `,
		"{\n  \"a\": 1,\n  \"b\": [\"x\\n\", null]\n}",
		`{"id":7,"a":1}`,
		`{"\u0069d":7,"a":{"id":1}}`,
		`{"a":{"id":1}}`,
		`["not","an","object"]`,
		`"text"`,
		``,
	}
	var out []byte
	for _, rows := range []PullRows{RowsWithID, RowsEnvelope, RowsDocument} {
		out = append(out, "# "+string(rows)+"\n"...)
		for _, doc := range docs {
			line := rows.appendRow(nil, event(1, doc))
			if !json.Valid(line) || bytes.ContainsAny(line, "\r\n") {
				t.Errorf("%s: %q becomes %q", rows, doc, line)
			}
			out = append(append(out, line...), '\n')
		}
	}
	golden.Check(t, "testdata/webhook_pull.ndjson", out)
}

func FuzzPullRow(f *testing.F) {
	f.Add([]byte(`{"a":1}`))
	f.Add([]byte(`{"id":"` + strings.Repeat("x", 100_000) + `"}`))
	f.Add([]byte("{\n\"\\u0069d\":1}"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		if !json.Valid(doc) {
			return
		}
		e := event(1, string(doc))
		line := RowsWithID.appendRow([]byte("before"), e)[len("before"):]
		var row map[string]json.RawMessage
		if err := json.Unmarshal(line, &row); err != nil || bytes.ContainsAny(line, "\r\n") {
			t.Fatalf("%q becomes %q: %v", doc, line, err)
		}
		own := strconv.Quote(e.ID.String())
		if string(row["id"]) != own && string(row["penstock_id"]) != own {
			t.Fatalf("%q becomes %q without the id", doc, line)
		}
	})
}

func FuzzParsePlace(f *testing.F) {
	f.Add("0000000000020000001")
	f.Add("184467440737095516150065536")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePlace(s)
		if err != nil {
			return
		}
		q, err := ParsePlace(p.String())
		if err != nil || p != q {
			t.Fatalf("%q: %+v becomes %q and %+v, %v", s, p, p.String(), q, err)
		}
	})
}

func TestPlaceOrder(t *testing.T) {
	places := []Place{{}, {1, 0}, {1, 65_536}, {2, 3}, {10, 0}, {999_999_999_999, 9}}
	for i, p := range places[1:] {
		if before := places[i]; !before.Before(p) || p.Before(before) || p.String() <= before.String() {
			t.Errorf("%s and %s", before, p)
		}
	}
}

func TestWebhookPullConfig(t *testing.T) {
	tests := []struct {
		key    string
		change func(*WebhookPullConfig)
	}{
		{"address", func(c *WebhookPullConfig) { c.Address = "" }},
		{"address", func(c *WebhookPullConfig) { c.Address = "127.0.0.1" }},
		{"tls.cert_file", func(c *WebhookPullConfig) { c.Address = ":8090" }},
		{"tls.key_file", func(c *WebhookPullConfig) { c.TLS.CertFile = "crt" }},
		{"tls.client_ca_file", func(c *WebhookPullConfig) {
			c.TLS = httpserver.TLS{CertFile: "a", KeyFile: "b", RequireClientCert: true}
		}},
		{"trusted_proxies[0]", func(c *WebhookPullConfig) { c.TrustedProxies = []string{"10.0.0.0/99"} }},
		{"streams.a b", func(c *WebhookPullConfig) { c.Streams = map[string][]string{"a b": {">"}} }},
		{"streams.web", func(c *WebhookPullConfig) { c.Streams = map[string][]string{"web": nil} }},
		{"streams.web", func(c *WebhookPullConfig) { c.Streams = map[string][]string{"web": {"a..b"}} }},
		{"streams.web", func(c *WebhookPullConfig) { c.Streams = map[string][]string{"web": {"a.>", "*.b"}} }},
		{"rows", func(c *WebhookPullConfig) { c.Rows = "csv" }},
		{"first_window", func(c *WebhookPullConfig) { c.FirstWindow = -1 }},
		{"rate.per_second", func(c *WebhookPullConfig) { c.Rate.PerSecond = -1 }},
		{"failure_rate.burst", func(c *WebhookPullConfig) { c.FailureRate.Burst = -1 }},
		{"limits.rows", func(c *WebhookPullConfig) { c.Limits.Rows = c.Limits.MaxRows + 1 }},
		{"limits.page", func(c *WebhookPullConfig) { c.Limits.Page = 1 }},
		{"limits.in_flight", func(c *WebhookPullConfig) { c.Limits.InFlight = config.MiB }},
		{"limits.requests", func(c *WebhookPullConfig) { c.Limits.Requests = 0 }},
		{"limits.connections", func(c *WebhookPullConfig) { c.Limits.Connections = 0 }},
		{"timeouts.wait", func(c *WebhookPullConfig) { c.Timeouts.Wait = 0 }},
	}
	for _, tt := range tests {
		cfg := defaultWebhookPull()
		cfg.Address = "127.0.0.1:8090"
		must(t, cfg.Validate())
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), tt.key+": ") {
			t.Errorf("%s: got %v", tt.key, err)
		}
	}
	cfg := defaultWebhookPull()
	cfg.Address, cfg.Plaintext = ":8090", true
	must(t, cfg.Validate())
}

func BenchmarkPullRow(b *testing.B) {
	e := event(1, trailEvent)
	b.SetBytes(int64(len(trailEvent)))
	b.ReportAllocs()
	var dst []byte
	for b.Loop() {
		if dst = RowsWithID.appendRow(dst[:0], e); len(dst) < len(trailEvent) {
			b.Fatal("too short")
		}
	}
}
