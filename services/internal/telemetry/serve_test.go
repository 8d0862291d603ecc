package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// serve runs a server until the test ends.
func serve(t testing.TB, h Health) *Server {
	t.Helper()
	s, err := Listen(t.Context(), "127.0.0.1:0", h)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

func do(t testing.TB, method, url, body string, change func(*http.Request)) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// covers: DEV-123, DEV-126, DEV-135
func TestPublicAndPrivatePaths(t *testing.T) {
	level := new(slog.LevelVar)
	s := serve(t, Health{Private: "127.0.0.1:0", Level: level})
	public, private := "http://"+s.Addr(), "http://"+s.PrivateAddr()
	tests := []struct {
		url    string
		status int
		holds  string
	}{
		{public + "/healthz", 200, `"alive"`},
		{public + "/readyz", 200, `"ready"`},
		{public + "/metrics", 200, "penstock_build_info{"},
		{public + "/metrics", 200, "\ngo_goroutines "},
		{public + "/metrics", 200, "\nprocess_resident_memory_bytes "},
		{public + "/debug/pprof/", 404, ""},
		{public + "/loglevel", 404, ""},
		{public + "/", 404, ""},
		{private + "/debug/pprof/", 200, "goroutine"},
		{private + "/debug/pprof/heap?debug=1", 200, "heap profile"},
		{private + "/loglevel", 200, `{"level":"info"}`},
		{private + "/metrics", 404, ""},
	}
	for _, tt := range tests {
		if status, body := do(t, http.MethodGet, tt.url, "", nil); status != tt.status || !strings.Contains(body, tt.holds) {
			t.Errorf("GET %s: %d %.200q, want %d with %q", tt.url, status, body, tt.status, tt.holds)
		}
	}
	if status, _ := do(t, http.MethodPost, public+"/readyz", "", nil); status != http.StatusMethodNotAllowed {
		t.Errorf("POST /readyz: %d", status)
	}
}

// covers: DEV-137
func TestLogLevelIsPut(t *testing.T) {
	otelEnv(t)
	tel, out := setup(t, nil)
	s := serve(t, Health{Private: "127.0.0.1:0", Level: tel.Level})
	url := "http://" + s.PrivateAddr() + "/loglevel"
	from := func(key, value string) func(*http.Request) {
		return func(r *http.Request) {
			if r.Header.Set(key, value); key == "Host" {
				r.Host = value
			}
		}
	}
	tests := []struct {
		name, body string
		change     func(*http.Request)
		status     int
		want       slog.Level
	}{
		{"a word", "debug\n", nil, 200, slog.LevelDebug},
		{"upper case", "WARN", nil, 200, slog.LevelWarn},
		{"no such level", "loud", nil, 400, slog.LevelWarn},
		{"nothing", "", nil, 400, slog.LevelWarn},
		{"a long body", strings.Repeat(" ", 100) + "info", nil, 400, slog.LevelWarn},
		{"a web page", "info", from("Origin", "https://example.com"), 403, slog.LevelWarn},
		{"a name that was made to point here", "info", from("Host", "evil.example.com"), 403, slog.LevelWarn},
		{"localhost", "info", from("Host", "localhost:1"), 200, slog.LevelInfo},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if status, body := do(t, http.MethodPut, url, tt.body, tt.change); status != tt.status || tel.Level.Level() != tt.want {
				t.Errorf("PUT: %d %s, level %s; want %d, %s", status, body, tel.Level.Level(), tt.status, tt.want)
			}
		})
	}
	if got := out.lines(t); len(got) != 3 || got[1]["from"] != "debug" || got[1]["to"] != "warn" {
		t.Errorf("logged %v, want each of the three switches", got)
	}
}

func TestReadyNamesWhatFails(t *testing.T) {
	var bus atomic.Pointer[string]
	down := "no responders"
	bus.Store(&down)
	s := serve(t, Health{Ready: map[string]func(context.Context) error{
		"topology": func(context.Context) error { return errors.New("stream EVENTS is missing") },
		"bus":      func(context.Context) error { return errors.New(*bus.Load()) },
		"fine":     func(context.Context) error { return nil },
	}})
	status, body := do(t, http.MethodGet, "http://"+s.Addr()+"/readyz", "", nil)
	var got struct {
		Status   string
		Failures []failure
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	want := []failure{{"bus", "no responders"}, {"topology", "stream EVENTS is missing"}}
	if status != 503 || got.Status != "not ready" || len(got.Failures) != 2 || got.Failures[0] != want[0] || got.Failures[1] != want[1] {
		t.Errorf("GET /readyz: %d %s, want 503 with %v", status, body, want)
	}
}

func TestChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs int
		hang := make(chan struct{})
		c := newChecks(map[string]func(context.Context) error{
			"a polite": func(ctx context.Context) error { runs++; <-ctx.Done(); return errors.New("gave up politely") },
			"b hangs":  func(context.Context) error { <-hang; return nil },
			"c ok":     func(context.Context) error { return nil },
		}, 0)
		says := func(want ...string) {
			t.Helper()
			var got []string
			for _, f := range c.probe(t.Context()) {
				got = append(got, f.Check+": "+f.Error)
			}
			if strings.Join(got, "; ") != strings.Join(want, "; ") {
				t.Errorf("probe = %q, want %q", got, want)
			}
		}
		start := time.Now()
		says("a polite: gave up politely", "b hangs: no answer within 2.1s")
		if took := time.Since(start); took != 2100*time.Millisecond {
			t.Errorf("probe took %s, want 2.1s for all checks together", took)
		}
		says("a polite: gave up politely", "b hangs: no answer within 2.1s")
		if runs != 1 {
			t.Errorf("%d runs within a second, want 1", runs)
		}
		time.Sleep(3 * time.Second) // fake time
		says("a polite: gave up politely", "b hangs: no answer for 7s")
		close(hang)
		time.Sleep(3 * time.Second) // fake time
		says("a polite: gave up politely")
		if runs != 3 {
			t.Errorf("%d runs, want 3", runs)
		}
		start = time.Now()
		c.stop(time.Minute)
		if took := time.Since(start); took != 0 {
			t.Errorf("stop waited %s for nothing", took)
		}
	})
}

func TestStopDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		c := newChecks(map[string]func(context.Context) error{"x": func(context.Context) error { <-hang; return nil }}, time.Second)
		c.probe(t.Context())
		start := time.Now()
		c.stop(3 * time.Second)
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("stop took %s, want 3s", took)
		}
		close(hang)
	})
}

func TestAddressesThatAreRefused(t *testing.T) {
	taken := serve(t, Health{})
	tests := []struct {
		name, addr string
		h          Health
		want       error
	}{
		{"in use", taken.Addr(), Health{}, errTaken},
		{"private in use", "127.0.0.1:0", Health{Private: taken.Addr()}, errTaken},
		{"private on every interface", "127.0.0.1:0", Health{Private: ":0"}, errPublic},
		{"not of this machine", "192.0.2.1:1", Health{}, errListen},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := Serve(t.Context(), tt.addr, tt.h); !errors.Is(err, tt.want) {
				t.Errorf("Serve: %v, want %v", err, tt.want)
			}
		})
	}
}

// A public address that was opened before the private one was refused is closed.
func TestBothAddressesOrNone(t *testing.T) {
	free, err := Listen(t.Context(), "127.0.0.1:0", Health{})
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr()
	if err := free.public.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Serve(t.Context(), addr, Health{Private: ":0"}); !errors.Is(err, errPublic) {
		t.Fatalf("Serve: %v", err)
	}
	again, err := Listen(t.Context(), addr, Health{})
	if err != nil {
		t.Fatalf("the address is still held: %v", err)
	}
	if err := again.public.Close(); err != nil {
		t.Error(err)
	}
}

func TestServeNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Serve(ctx, "", Health{}); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// A request in hand ends before Run returns.
func TestRequestsInHandEnd(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s, err := Listen(t.Context(), "127.0.0.1:0", Health{Ready: map[string]func(context.Context) error{
		"slow": func(context.Context) error { close(entered); <-leave; return nil },
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done, answered := make(chan error, 1), make(chan int, 1)
	go func() { done <- s.Run(ctx) }()
	go func() {
		status, _ := do(t, http.MethodGet, "http://"+s.Addr()+"/readyz", "", nil)
		answered <- status
	}()
	<-entered
	cancel()
	close(leave)
	if status := <-answered; status != 200 {
		t.Errorf("the request in hand got %d", status)
	}
	http.DefaultClient.CloseIdleConnections()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
