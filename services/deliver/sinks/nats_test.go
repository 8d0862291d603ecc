package sinks

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	dto "github.com/prometheus/client_model/go"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/probe"
)

func init() { harnesses["nats"] = natsWorld }

const (
	natsPassword = "nats-s3cret"
	// natsSeed belongs to natsKey. It opens nothing but the servers of these tests.
	natsSeed = "SUAO4MBJWTRR652F6VBXSHMTKFDGN2QNMVU6NL4DV63CVU5FO3FE4XX754"
	natsKey  = "UCA4TDX3IQMMIOEE5ZOLU765PBHPIHIOJYRPUHBS3KTX6N2NA4WBJL6H"
)

// natsOptions are those of a server on a port of its own, with a user who may do all.
func natsOptions(t testing.TB) *server.Options {
	t.Helper()
	return &server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, MaxPayload: 1 << 20,
		JetStream: true, StoreDir: t.TempDir(), Users: []*server.User{{Username: "u", Password: natsPassword}},
	}
}

// startNATS starts a server; its port stays in the options, for the next start.
func startNATS(t testing.TB, o *server.Options) *server.Server {
	t.Helper()
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the NATS server does not start")
	}
	_, port, err := net.SplitHostPort(s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(port, &o.Port); err != nil {
		t.Fatal(err)
	}
	return s
}

func stopNATS(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

// natsClient is a client beside the sink.
func natsClient(t testing.TB, address string, options ...nats.Option) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := nats.Connect(address, append([]nats.Option{
		nats.UserInfo("u", natsPassword), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

// natsStream makes a stream for siem.>.
func natsStream(t testing.TB, js jetstream.JetStream, change func(*jetstream.StreamConfig)) jetstream.Stream {
	t.Helper()
	cfg := jetstream.StreamConfig{Name: "SIEM", Subjects: []string{"siem.>"}, Storage: jetstream.FileStorage}
	if change != nil {
		change(&cfg)
	}
	stream, err := js.CreateStream(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// natsStored are the messages of the stream.
func natsStored(t testing.TB, js jetstream.JetStream) []*jetstream.RawStreamMsg {
	t.Helper()
	stream, err := js.Stream(context.Background(), "SIEM")
	if err != nil {
		t.Fatal(err)
	}
	info := stream.CachedInfo()
	var out []*jetstream.RawStreamMsg
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && info.State.Msgs > 0; seq++ {
		m, err := stream.GetMsg(context.Background(), seq)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// natsWire stands between the sink and a server.
type natsWire struct {
	net.Listener
	target string
	wait   sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
	held   chan struct{} // closed when the wire lets through again, nil while it does
	cut    atomic.Int64  // breaks connections after so many bytes to the server, 0 never
}

func newNATSWire(t testing.TB, target string) *natsWire {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &natsWire{Listener: l, target: target, conns: map[net.Conn]bool{}}
	w.wait.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", target)
			if err != nil || !w.keep(near, far) {
				_ = near.Close()
				continue
			}
			w.wait.Go(func() { w.copy(far, near, &w.cut) })
			w.wait.Go(func() { w.copy(near, far, nil) })
		}
	})
	return w
}

func (w *natsWire) keep(conns ...net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range conns {
		w.conns[c] = true
	}
	return !w.closed
}

func (w *natsWire) copy(to, from net.Conn, cut *atomic.Int64) {
	defer to.Close()
	defer from.Close()
	buf, sum := make([]byte, 32<<10), int64(0)
	for {
		n, err := from.Read(buf)
		w.mu.Lock()
		held := w.held
		w.mu.Unlock()
		if held != nil {
			<-held
		}
		sum += int64(n)
		if cut != nil && cut.Load() > 0 && sum > cut.Load() {
			return
		}
		if _, writeErr := to.Write(buf[:n]); err != nil || writeErr != nil {
			return
		}
	}
}

// hold keeps everything back until what it returns is called.
func (w *natsWire) hold() func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	held := make(chan struct{})
	w.held = held
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.held = nil
		close(held)
	}
}

func (w *natsWire) close() {
	_ = w.Close()
	w.mu.Lock()
	w.closed = true
	for c := range w.conns {
		_ = c.Close()
	}
	w.mu.Unlock()
	w.wait.Wait()
}

// natsSecure is a certificate for 127.0.0.1 and the file that vouches for it.
func natsSecure(t *testing.T) (*tls.Config, string) {
	t.Helper()
	f := &farSide{Server: httptest.NewTLSServer(nil)}
	defer f.Close()
	return &tls.Config{Certificates: f.TLS.Certificates, MinVersion: tls.VersionTLS12}, f.trust(t)
}

func natsWorld(t *testing.T) *world {
	o := natsOptions(t)
	config, ca := natsSecure(t)
	o.TLSConfig, o.TLS = config, true
	far := startNATS(t, o)
	address := func() string { return "tls://" + far.Addr().String() }
	nc, js := natsClient(t, address(), nats.RootCAs(ca), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	natsStream(t, js, nil)
	w := newNATSWire(t, far.Addr().String())
	cfg := natsTo(w)
	cfg.URL = "tls://" + w.Addr().String()
	cfg.TLS.CAFile = ca
	s, err := openNATS(t.Context(), cfg, Deps{Destination: "other"})
	must(t, err)
	var mu sync.Mutex
	var answered []string // by who stands in for the stream
	lines := func() []string {
		mu.Lock()
		defer mu.Unlock()
		if answered != nil {
			return answered
		}
		var out []string
		for _, m := range natsStored(t, js) {
			out = append(out, string(m.Data))
		}
		return out
	}
	reload := func(change func(*server.Options)) {
		next := o.Clone()
		change(next)
		must(t, far.ReloadOptions(next))
	}
	return &world{
		sink:     s,
		received: lines,
		secrets:  []string{natsPassword},
		outage: func() func() {
			stopNATS(far)
			return func() { far = startNATS(t, o) }
		},
		denial: func() func() {
			reload(func(o *server.Options) { o.Users = []*server.User{{Username: "u", Password: "another"}} })
			return func() { reload(func(*server.Options) {}) }
		},
		hang:  w.hold,
		hangs: 15 * time.Second,
		cut: func() func() {
			w.cut.Store(100_000)
			return func() { w.cut.Store(0) }
		},
		// No stream refuses by content; who answers here does it in its words.
		partial: func() func() {
			must(t, js.DeleteStream(t.Context(), "SIEM"))
			answered = []string{}
			sub, err := nc.Subscribe("siem.>", func(m *nats.Msg) {
				mu.Lock()
				defer mu.Unlock()
				if third(string(m.Data)) {
					_ = m.Respond([]byte(`{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"},"stream":"SIEM","seq":0}`))
					return
				}
				answered = append(answered, string(m.Data))
				_ = m.Respond(fmt.Appendf(nil, `{"stream":"SIEM","seq":%d}`, len(answered)))
			})
			must(t, err)
			must(t, nc.Flush())
			return func() { _ = sub.Unsubscribe() }
		},
		untrusted: func() (Sink, func() bool) {
			cfg := cfg
			cfg.TLS.CAFile = ""
			s, err := openNATS(t.Context(), cfg, Deps{Destination: "other"})
			must(t, err)
			return s, func() bool { return len(lines()) > 0 }
		},
		cannot: map[string]string{"throttle": "NATS names no time to come back at; a full stream is in TestNATSRefusals"},
		done: func() {
			nc.Close()
			w.close()
			stopNATS(far)
		},
	}
}

// natsTo is a configuration that leads over w.
func natsTo(w *natsWire) NATSConfig {
	cfg := defaultNATS()
	cfg.URL, cfg.Subject, cfg.Format = "nats://"+w.Addr().String(), "siem.{type}", Envelope
	cfg.User, cfg.Password = "u", config.NewSecret(natsPassword)
	cfg.Timeout = 3 * time.Second
	return cfg
}

// openNATSTo opens a sink to a server.
func openNATSTo(t testing.TB, address string, change func(*NATSConfig)) *natsSink {
	t.Helper()
	cfg := defaultNATS()
	cfg.URL, cfg.Subject = "nats://"+address, "siem.{type}"
	cfg.User, cfg.Password = "u", config.NewSecret(natsPassword)
	cfg.Timeout = 5 * time.Second
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := openNATS(context.Background(), cfg, Deps{Destination: "other"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.(*natsSink)
}

// natsBeside is a server with a stream, and a client of it.
func natsBeside(t testing.TB, change func(*server.Options)) (*server.Server, *nats.Conn, jetstream.JetStream) {
	t.Helper()
	o := natsOptions(t)
	if change != nil {
		change(o)
	}
	far := startNATS(t, o)
	t.Cleanup(func() { stopNATS(far) })
	nc, js := natsClient(t, far.ClientURL())
	t.Cleanup(nc.Close)
	return far, nc, js
}

func TestNATSMessage(t *testing.T) {
	// covers: LIM-26
	far, _, js := natsBeside(t, nil)
	natsStream(t, js, nil)
	for format, body := range map[Format]string{
		Document: `{"n":1}`,
		Envelope: `{"id":"90482185c6b482899037fad837562cb8","type":"a.b","time":"2026-01-05T07:44:54.12Z","source":"src","account":"123456789012","region":"eu-west-1","event":{"n":1}}`,
	} {
		t.Run(string(format), func(t *testing.T) {
			stream, err := js.Stream(t.Context(), "SIEM")
			must(t, err)
			must(t, stream.Purge(t.Context()))
			s := openNATSTo(t, far.Addr().String(), func(c *NATSConfig) {
				c.Format, c.Subject = format, "siem."+string(format)+".{account}.x-{region}.{type}"
			})
			e, bare := event(1, `{"n":1}`), &Event{ID: event(int(format[0]), "").ID, Type: "..é x.>", Doc: []byte(`1`)}
			if format == Envelope { // another id: the stream remembers the first
				e.ID[0]++
				body = strings.Replace(body, "9048", "9148", 1)
			}
			data := s.Append(nil, e)
			middle := len(data)
			data = s.Append(data, bare)
			mustDeliver(t, s, NewBatch(data, []Item{{ID: e.ID, End: middle}, {ID: bare.ID, Start: middle, End: len(data)}}))
			got := natsStored(t, js)
			if len(got) != 2 {
				t.Fatalf("%d messages", len(got))
			}
			if m := got[0]; m.Subject != "siem."+string(format)+".123456789012.x-eu-west-1.a.b" || string(m.Data) != body {
				t.Errorf("subject %s, body %s", m.Subject, m.Data)
			}
			want := nats.Header{
				"Nats-Msg-Id": {e.ID.String()}, "Penstock-Id": {e.ID.String()}, "Penstock-Type": {"a.b"}, "Penstock-Source": {"src"},
				"Penstock-Account": {"123456789012"}, "Penstock-Region": {"eu-west-1"}, "Penstock-Time": {"2026-01-05T07:44:54.12Z"},
			}
			if fmt.Sprint(got[0].Header) != fmt.Sprint(want) {
				t.Errorf("header %v, want %v", got[0].Header, want)
			}
			if m := got[1]; m.Subject != "siem."+string(format)+".unknown.x-unknown.unknown.unknown.___x._" || len(m.Header) != 3 {
				t.Errorf("subject %s, header %v", m.Subject, m.Header)
			}
		})
	}
}

// What was not acknowledged is published again, and within its window the stream
// stores it once.
func TestNATSSlowAcks(t *testing.T) {
	far, _, js := natsBeside(t, nil)
	natsStream(t, js, nil)
	w := newNATSWire(t, far.Addr().String())
	defer w.close()
	s := openNATSTo(t, w.Addr().String(), nil)
	mustDeliver(t, s, batchOf(s, 0, plain(0, 1)...))

	let := w.hold() // slower than usual, but not too slow
	time.AfterFunc(200*time.Millisecond, let)
	mustDeliver(t, s, batchOf(s, 1, plain(1, 100)...))

	let = w.hold()
	s.cfg.Timeout = 100 * time.Millisecond
	b := batchOf(s, 101, plain(101, 100)...)
	if res := s.Deliver(t.Context(), b); res.Verdict != Retry || fault.CodeOf(res.Err) != "deliver.nats_unreachable" {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
	s.cfg.Timeout = 5 * time.Second
	let()
	duplicates := func() float64 {
		var m dto.Metric
		must(t, natsDuplicates.WithLabelValues("other").Write(&m))
		return m.GetCounter().GetValue()
	}
	before := duplicates()
	mustDeliver(t, s, b)
	if n := duplicates() - before; n != 100 {
		t.Errorf("%v duplicates were counted, want 100", n)
	}
	if n := len(natsStored(t, js)); n != 201 {
		t.Errorf("%d messages are stored, want 201", n)
	}
}

func TestNATSRefusals(t *testing.T) {
	tests := []struct {
		name    string
		server  func(*server.Options)
		stream  func(*jetstream.StreamConfig) // nil: no stream
		sink    func(*NATSConfig)
		docs    []string
		verdict Verdict
		items   string // index and verdict of each exception
		code    string
		mend    func(*testing.T, jetstream.JetStream) // after which all is taken
	}{
		{name: "no stream takes the subject", docs: plain(0, 3), verdict: Stop, code: "deliver.nats_no_stream", mend: func(t *testing.T, js jetstream.JetStream) {
			t.Helper()
			natsStream(t, js, nil)
		}},
		{
			name: "no JetStream", server: func(o *server.Options) { o.JetStream = false },
			docs: plain(0, 3), verdict: Stop, code: "deliver.nats_no_jetstream",
		},
		{
			name: "the stream is full", stream: func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 2, jetstream.DiscardNew },
			docs: plain(0, 3), verdict: Retry, items: "0 done, 1 done", code: "deliver.nats_busy", mend: func(t *testing.T, js jetstream.JetStream) {
				t.Helper()
				_, err := js.UpdateStream(t.Context(), jetstream.StreamConfig{Name: "SIEM", Subjects: []string{"siem.>"}, MaxMsgs: 100, Discard: jetstream.DiscardNew})
				must(t, err)
			},
		},
		{
			name: "too large for the stream", stream: func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1000 },
			docs: []string{"1", `"` + strings.Repeat("x", 1000) + `"`, "2"}, items: "1 reject", code: "deliver.nats_too_large",
		},
		{
			name: "too large for the server", stream: func(*jetstream.StreamConfig) {}, server: func(o *server.Options) { o.MaxPayload = 1000 },
			docs: []string{"1", `"` + strings.Repeat("x", 1000) + `"`, "2"}, items: "1 reject", code: "deliver.nats_too_large",
		},
		{
			name: "too large without JetStream", sink: func(c *NATSConfig) { c.JetStream = false }, server: func(o *server.Options) { o.MaxPayload = 1000 },
			docs: []string{"1", `"` + strings.Repeat("x", 1000) + `"`, "2"}, items: "1 reject", code: "deliver.nats_too_large",
		},
		{name: "may not publish", stream: func(*jetstream.StreamConfig) {}, server: natsMayPublish("other.>"), docs: plain(0, 3), verdict: Stop, code: "deliver.nats_denied"},
		{name: "may not publish without JetStream", sink: func(c *NATSConfig) { c.JetStream = false }, server: natsMayPublish("other.>"), docs: plain(0, 3), verdict: Stop, code: "deliver.nats_denied"},
		{name: "may not ask for the stream", server: natsMayPublish("siem.>"), docs: plain(0, 3), verdict: Stop, code: "deliver.nats_no_stream"},
		{name: "wrong password", stream: func(*jetstream.StreamConfig) {}, sink: func(c *NATSConfig) { c.Password = config.NewSecret("no") }, docs: plain(0, 1), verdict: Stop, code: "deliver.nats_denied"},
		{name: "no credentials file", sink: func(c *NATSConfig) {
			c.User, c.Password, c.CredsFile = "", config.Secret{}, "absent.creds"
		}, docs: plain(0, 1), verdict: Stop, code: "deliver.nats_denied"},
		{
			name: "the stream is sealed", stream: func(*jetstream.StreamConfig) {}, docs: plain(0, 2), verdict: Stop, code: "deliver.nats_stream_sealed",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			far, _, js := natsBeside(t, func(o *server.Options) {
				o.Users = append(o.Users, &server.User{Username: "sink", Password: natsPassword})
				if tt.server != nil {
					tt.server(o)
				}
			})
			if tt.stream != nil {
				natsStream(t, js, tt.stream)
			}
			if tt.name == "the stream is sealed" {
				_, err := js.UpdateStream(t.Context(), jetstream.StreamConfig{Name: "SIEM", Subjects: []string{"siem.>"}, Sealed: true})
				must(t, err)
			}
			s := openNATSTo(t, far.Addr().String(), func(c *NATSConfig) {
				c.User = "sink"
				if tt.sink != nil {
					tt.sink(c)
				}
			})
			b := batchOf(s, 0, tt.docs...)
			res := s.Deliver(t.Context(), b)
			err := res.Err
			var items []string
			for _, x := range res.Items {
				items = append(items, fmt.Sprint(x.Index, " ", x.Verdict))
				if x.Err != nil {
					err = x.Err
				}
			}
			if res.Verdict != tt.verdict || strings.Join(items, ", ") != tt.items || fault.CodeOf(err) != tt.code {
				t.Errorf("got %v, %v: %v", res.Verdict, items, err)
			}
			if tt.mend != nil {
				tt.mend(t, js)
				mustDeliver(t, s, b)
			}
		})
	}
}

// natsMayPublish lets the user of the sink publish to some subjects only.
func natsMayPublish(subjects ...string) func(*server.Options) {
	return func(o *server.Options) {
		o.Users[1].Permissions = &server.Permissions{Publish: &server.SubjectPermission{Allow: subjects}}
	}
}

// Somebody who answers requests on the subject is no stream.
func TestNATSForeignAnswer(t *testing.T) {
	far, nc, _ := natsBeside(t, nil)
	_, err := nc.Subscribe("siem.>", func(m *nats.Msg) { _ = m.Respond([]byte("pleased to meet you")) })
	must(t, err)
	must(t, nc.Flush())
	s := openNATSTo(t, far.Addr().String(), nil)
	if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 1)...)); res.Verdict != Stop || fault.CodeOf(res.Err) != "deliver.nats_no_stream" {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
}

func TestNATSWithoutJetStream(t *testing.T) {
	far, nc, _ := natsBeside(t, func(o *server.Options) { o.JetStream = false })
	got, err := nc.SubscribeSync("siem.>")
	must(t, err)
	must(t, nc.Flush())
	s := openNATSTo(t, far.Addr().String(), func(c *NATSConfig) { c.JetStream = false })
	mustDeliver(t, s, batchOf(s, 0, plain(0, 50)...))
	for i := range 50 {
		m, err := got.NextMsg(5 * time.Second)
		must(t, err)
		var doc struct{ N int }
		must(t, json.Unmarshal(m.Data, &doc))
		if doc.N != i || m.Subject != "siem.a.b" || m.Header.Get("Penstock-Type") != "a.b" {
			t.Fatalf("message %d: %s %v %s", i, m.Subject, m.Header, m.Data)
		}
	}
}

func TestNATSCredentials(t *testing.T) {
	far, _, js := natsBeside(t, func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: natsKey}} })
	natsStream(t, js, nil)
	seed := filepath.Join(t.TempDir(), "user.nk")
	must(t, os.WriteFile(seed, []byte(natsSeed+"\n"), 0o600))
	s := openNATSTo(t, far.Addr().String(), func(c *NATSConfig) { c.User, c.Password, c.NKeyFile = "", config.Secret{}, seed })
	mustDeliver(t, s, batchOf(s, 0, plain(0, 1)...))
	cfg := s.cfg
	cfg.NKeyFile = "absent"
	if _, err := openNATS(t.Context(), cfg, Deps{}); fault.CodeOf(err) != "deliver.nats_denied" {
		t.Errorf("got %v", err)
	}

	o := natsOptions(t)
	o.Users, o.Authorization = nil, natsPassword
	byToken := startNATS(t, o)
	defer stopNATS(byToken)
	for given, want := range map[string]Verdict{natsPassword: Done, "another": Stop} {
		s := openNATSTo(t, byToken.Addr().String(), func(c *NATSConfig) {
			c.User, c.Password, c.Token, c.JetStream = "", config.Secret{}, config.NewSecret(given), false
		})
		if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 1)...)); res.Verdict != want {
			t.Errorf("got %v, want %v: %v", res.Verdict, want, res.Err)
		}
	}
}

// A cluster of three whose servers are restarted one after the other, the leader of the
// stream among them, takes every event once.
func TestNATSCluster(t *testing.T) {
	t.Parallel() // it waits for elections
	options := make([]*server.Options, 3)
	servers := make([]*server.Server, 3)
	var routes []string
	for range options {
		routes = append(routes, "nats-route://"+freeAddress(t))
	}
	for i := range options {
		o := natsOptions(t)
		o.ServerName = fmt.Sprint("n", i)
		_, port, _ := net.SplitHostPort(strings.TrimPrefix(routes[i], "nats-route://"))
		o.Cluster = server.ClusterOpts{Name: "c", Host: "127.0.0.1"}
		_, err := fmt.Sscan(port, &o.Cluster.Port)
		must(t, err)
		o.Routes = server.RoutesFromStr(strings.Join(routes, ","))
		options[i] = o
	}
	var wg sync.WaitGroup
	for i := range options {
		wg.Go(func() { servers[i] = startNATS(t, options[i]) })
	}
	wg.Wait()
	defer func() {
		for _, s := range servers {
			stopNATS(s)
		}
	}()
	nc, js := natsClient(t, servers[0].ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	defer nc.Close()
	natsUntil(t, func() bool {
		_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "SIEM", Subjects: []string{"siem.>"}, Replicas: 3})
		return err == nil
	})
	// One address is enough: the others are found.
	s := openNATSTo(t, servers[0].Addr().String(), func(c *NATSConfig) { c.Format = Envelope })
	n := 0
	publish := func(stop <-chan struct{}) {
		for {
			b := batchOf(s, n, plain(n, 20)...)
			natsUntil(t, func() bool {
				res := s.Deliver(t.Context(), b)
				if res.Verdict != Done && res.Verdict != Retry {
					t.Errorf("got %v: %v", res.Verdict, res.Err)
				}
				return res.Verdict == Done
			})
			n += 20
			select {
			case <-stop:
				return
			default:
			}
		}
	}
	none := make(chan struct{})
	close(none)
	publish(none)
	for i := range servers {
		stop := make(chan struct{})
		wg.Go(func() { publish(stop) })
		stopNATS(servers[i])
		servers[i] = startNATS(t, options[i])
		natsUntil(t, func() bool { return servers[i].JetStreamIsCurrent() })
		close(stop)
		wg.Wait()
	}
	w := &world{received: func() []string {
		var lines []string
		natsUntil(t, func() bool {
			lines = nil
			stream, err := js.Stream(t.Context(), "SIEM")
			if err != nil {
				return false
			}
			for seq := uint64(1); seq <= stream.CachedInfo().State.LastSeq; seq++ {
				m, err := stream.GetMsg(t.Context(), seq)
				if err != nil {
					return false
				}
				lines = append(lines, string(m.Data))
			}
			return true
		})
		return lines
	}}
	expect(t, w, n)
}

// natsUntil asks again and again, for as long as the test may take.
func natsUntil(t testing.TB, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("it does not come to that")
		}
	}
}

func TestNATSProbe(t *testing.T) {
	far, _, js := natsBeside(t, nil)
	s := openNATSTo(t, far.Addr().String(), nil)
	last := func(c NATSConfig) probe.Finding {
		all := c.Probe(t.Context())
		return all[len(all)-1]
	}
	if f := last(s.cfg); f.Level != probe.Fail || f.Code != "deliver.nats_no_stream" {
		t.Errorf("got %+v", f)
	}
	natsStream(t, js, nil)
	for _, subject := range []string{"siem.{type}", "siem.{source}.x", "siem.a", "siem.{account}-{region}.{type}.y"} {
		cfg := s.cfg
		cfg.Subject = subject
		if f := last(cfg); f.Level != probe.OK || !strings.Contains(f.Detail, "SIEM") {
			t.Errorf("%s: got %+v", subject, f)
		}
	}
	cfg := s.cfg
	cfg.Password = config.NewSecret("no")
	if f := last(cfg); f.Level != probe.Fail || f.Code != "deliver.nats_denied" {
		t.Errorf("got %+v", f)
	}
	if n := len(natsStored(t, js)); n != 0 {
		t.Errorf("the probe left %d messages", n)
	}
}

func TestNATSConfig(t *testing.T) {
	for _, subject := range []string{"siem", "siem.{type}", "siem.x-{source}_{region}.{account}.{type}.end", "events.$weird"} {
		cfg := defaultNATS()
		cfg.URL, cfg.Subject = "nats://a:4222, tls://b:4222", subject
		must(t, cfg.Validate())
	}
	tests := []struct {
		key    string
		change func(*NATSConfig)
	}{
		{"url", func(c *NATSConfig) { c.URL = "" }},
		{"url", func(c *NATSConfig) { c.URL = "nats://a,http://b" }},
		{"url", func(c *NATSConfig) { c.URL = "nats://u:p@a" }},
		{"subject", func(c *NATSConfig) { c.Subject = "" }},
		{"subject", func(c *NATSConfig) { c.Subject = "penstock.event.{type}" }},
		{"subject", func(c *NATSConfig) { c.Subject = "penstock" }},
		{"subject", func(c *NATSConfig) { c.Subject = "{source}.x" }},
		{"subject", func(c *NATSConfig) { c.Subject = "pen{source}.x" }},
		{"subject", func(c *NATSConfig) { c.Subject = "$JS.API.x" }},
		{"subject", func(c *NATSConfig) { c.Subject = "_INBOX.x" }},
		{"subject", func(c *NATSConfig) { c.Subject = "a..b" }},
		{"subject", func(c *NATSConfig) { c.Subject = "a.b." }},
		{"subject", func(c *NATSConfig) { c.Subject = "a.*" }},
		{"subject", func(c *NATSConfig) { c.Subject = "a.>" }},
		{"subject", func(c *NATSConfig) { c.Subject = "a.b c" }},
		{"subject", func(c *NATSConfig) { c.Subject = "a.{id}" }},
		{"subject", func(c *NATSConfig) { c.Subject = "a.{type" }},
		{"format", func(c *NATSConfig) { c.Format = "" }},
		{"batch.events", func(c *NATSConfig) { c.Batch.Events = 0 }},
		{"timeout", func(c *NATSConfig) { c.Timeout = 0 }},
		{"creds_file", func(c *NATSConfig) { c.CredsFile, c.User = "x", "u" }},
		{"creds_file", func(c *NATSConfig) { c.NKeyFile, c.Token = "x", config.NewSecret("t") }},
		{"user", func(c *NATSConfig) { c.Password = config.NewSecret("p") }},
		{"tls.key_file", func(c *NATSConfig) { c.TLS.CertFile = "x" }},
	}
	for _, tt := range tests {
		cfg := defaultNATS()
		cfg.URL, cfg.Subject = "nats://a:4222", "siem.{type}"
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), tt.key+": ") {
			t.Errorf("%s: got %v", tt.key, err)
		}
	}
}

func FuzzNATSSubject(f *testing.F) {
	cfg := defaultNATS()
	cfg.URL, cfg.Subject = "nats://a", "siem.{source}.{type}.{account}-{region}"
	opened, err := openNATS(f.Context(), cfg, Deps{})
	if err != nil {
		f.Fatal(err)
	}
	s := opened.(*natsSink)
	f.Add("a.b", "src", "1", "eu", "{}")
	f.Add(".>.*..", " \r\n", "\x00", "é", strings.Repeat("x", 70_000))
	f.Add(strings.Repeat(".", 1000), strings.Repeat("y", 1000), "", "", "")
	f.Fuzz(func(t *testing.T, kind, source, account, region, doc string) {
		e := &Event{Type: kind, Source: source, Account: account, Region: region, Doc: []byte(doc)}
		m := s.message(e.ID, s.Append(nil, e))
		words := strings.Split(m.Subject, ".")
		if words[0] != "siem" || len(words) < 4 || len(m.Subject) > 4000 {
			t.Fatalf("subject %q", m.Subject)
		}
		for _, word := range words {
			if strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" || word == "" {
				t.Fatalf("subject %q", m.Subject)
			}
		}
		if m.Header.Get("Penstock-Type") != kind || m.Header.Get("Penstock-Source") != source || len(doc) > 0 && !strings.ContainsAny(doc, "\r\n") && string(m.Data) != doc {
			t.Fatalf("message %v %q", m.Header, m.Data)
		}
	})
}

func BenchmarkNATS(b *testing.B) {
	for _, stream := range []bool{true, false} {
		b.Run(fmt.Sprintf("jetstream=%v", stream), func(b *testing.B) {
			far, _, js := natsBeside(b, nil)
			natsStream(b, js, func(c *jetstream.StreamConfig) { c.Duplicates, c.MaxBytes = 100*time.Millisecond, 64<<20 })
			s := openNATSTo(b, far.Addr().String(), func(c *NATSConfig) { c.JetStream = stream })
			const n = 700
			e := event(0, trailEvent)
			data, items := make([]byte, 0, 4<<20), make([]Item, 0, n)
			b.SetBytes(n * int64(len(trailEvent)))
			b.ReportAllocs()
			calls := 0
			for b.Loop() {
				data, items = data[:0], items[:0]
				for range n {
					start := len(data)
					e.ID[0]++
					if e.ID[0] == 0 {
						e.ID[1]++
						if e.ID[1] == 0 {
							e.ID[2]++
						}
					}
					data = s.Append(data, e)
					items = append(items, Item{ID: e.ID, Start: start, End: len(data)})
				}
				calls++
				if res := s.Deliver(b.Context(), NewBatch(data, items)); res.Verdict != Done {
					b.Fatal(res.Err)
				}
			}
			if stream {
				if got, err := js.Stream(b.Context(), "SIEM"); err != nil || got.CachedInfo().State.LastSeq != uint64(calls*n) {
					b.Fatalf("%v, %v", got.CachedInfo().State, err)
				}
			}
			b.ReportMetric(float64(calls)*n/b.Elapsed().Seconds(), "events/s")
		})
	}
}
