package harness

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Sink is an HTTP receiver of NDJSON that remembers how often each event came.
type Sink struct {
	URL string
	// Fault answers instead of the sink when it returns true. It may be nil, and
	// may be changed with SetFault.
	fault  atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	server *http.Server

	mu  sync.Mutex
	ids map[string]int
	// replayed are events that came once more, by replay and id.
	replayed map[string]map[string]int
	events   int
	bytes    int64
	posts    int
	arrived  func(id string)
}

// StartSink starts a receiver that ends with the test.
func StartSink(t testing.TB) *Sink {
	t.Helper()
	return StartSinkAt(t, "127.0.0.1")
}

// StartSinkAt starts a receiver at an address.
func StartSinkAt(t testing.TB, addr string) *Sink {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	s := &Sink{URL: "http://" + l.Addr().String() + "/in", ids: map[string]int{}, replayed: map[string]map[string]int{}}
	s.server = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.server.Serve(l) }()
	t.Cleanup(func() { _ = s.server.Close(); <-ended })
	return s
}

// SetFault replaces the fault. nil: none.
func (s *Sink) SetFault(f func(http.ResponseWriter, *http.Request) bool) {
	if f == nil {
		s.fault.Store(nil)
		return
	}
	s.fault.Store(&f)
}

// OnArrival has f called for each event that comes for the first time. f must not call
// the sink.
func (s *Sink) OnArrival(f func(id string)) { s.mu.Lock(); defer s.mu.Unlock(); s.arrived = f }

// IDs returns how often each event came.
func (s *Sink) IDs() map[string]int { s.mu.Lock(); defer s.mu.Unlock(); return maps.Clone(s.ids) }

// ServeHTTP implements http.Handler.
func (s *Sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f := s.fault.Load(); f != nil && (*f)(w, r) {
		return
	}
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		body = z
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return // the sender cut it: not received
	}
	var ids []string
	replays := map[string][]string{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var event struct {
			ID     string          `json:"id"`
			Replay string          `json:"replay"`
			Event  json.RawMessage `json:"event"`
		}
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil || event.ID == "" || len(event.Event) == 0 {
			http.Error(w, "bad line", http.StatusBadRequest)
			return
		}
		if event.Replay != "" {
			replays[event.Replay] = append(replays[event.Replay], event.ID)
			continue
		}
		ids = append(ids, event.ID)
	}
	s.mu.Lock()
	for _, id := range ids {
		if s.ids[id]++; s.ids[id] == 1 && s.arrived != nil {
			s.arrived(id)
		}
	}
	for replay, ids := range replays {
		if s.replayed[replay] == nil {
			s.replayed[replay] = map[string]int{}
		}
		for _, id := range ids {
			s.replayed[replay][id]++
		}
	}
	s.events += len(ids)
	s.bytes += int64(len(data))
	s.posts++
	s.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

// Distinct returns how many different events came.
func (s *Sink) Distinct() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.ids) }

// Events returns how many events came, repeats included.
func (s *Sink) Events() int { s.mu.Lock(); defer s.mu.Unlock(); return s.events }

// Replayed returns how often each event came for a replay.
func (s *Sink) Replayed(replay string) map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.replayed[replay])
}

// AllReplayed returns how often each event came for any replay.
func (s *Sink) AllReplayed() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]int{}
	for _, ids := range s.replayed {
		for id, n := range ids {
			all[id] += n
		}
	}
	return all
}

// Has tells how often an event came.
func (s *Sink) Has(id string) int { s.mu.Lock(); defer s.mu.Unlock(); return s.ids[id] }
