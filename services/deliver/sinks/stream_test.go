package sinks

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/probe"
)

// authority issues certificates for tests.
type authority struct {
	folder string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{folder: t.TempDir()}
	a.key, a.cert = a.issue(t, "ca")
	return a
}

// issue writes <name>.pem and <name>.key.
func (a *authority) issue(t testing.TB, name string) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		template.IsCA, template.KeyUsage = true, template.KeyUsage|x509.KeyUsageCertSign
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	must(t, os.WriteFile(a.path(name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(a.path(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return key, cert
}

func (a *authority) path(name string) string { return filepath.Join(a.folder, name) }

// client is how one shows the certificate "client".
func (a *authority) client() TLSConfig {
	return TLSConfig{CAFile: a.path("ca.pem"), CertFile: a.path("client.pem"), KeyFile: a.path("client.key")}
}

// streamSide is a real receiver of streams, with TLS and client certificates unless it
// is plain.
type streamSide struct {
	t       testing.TB
	address string
	trust   *authority
	plain   bool
	// next reads one message.
	next func(r *bufio.Reader) (string, error)

	mu       sync.Mutex
	changed  *sync.Cond
	listener net.Listener
	conns    map[*sideConn]struct{}
	running  sync.WaitGroup
	messages []string
	accepted int
	mute     bool           // new connections get no handshake
	deaf     bool           // nothing is read
	refuse   *x509.CertPool // trusted in place of the authority
	cutAfter int            // bytes that each connection may still send; -1 all
	shut     bool           // connections are closed right after the handshake
	pace     time.Duration  // between reads of 8 KiB; 0 reads all there is
	idle     time.Duration  // after which a connection is closed; 0 never
}

type sideConn struct {
	side *streamSide
	*net.TCPConn
	left int
}

// Read counts what comes, stops while the side is deaf, and resets what is to be cut.
func (c *sideConn) Read(p []byte) (int, error) {
	s := c.side
	s.mu.Lock()
	for s.deaf && s.has(c) {
		s.changed.Wait()
	}
	most := len(p)
	if s.cutAfter >= 0 {
		if c.left < 0 {
			c.left = s.cutAfter
		}
		if c.left == 0 {
			s.mu.Unlock()
			c.reset()
			return 0, net.ErrClosed
		}
		most = min(most, c.left)
	}
	pace := s.pace
	if s.idle > 0 {
		_ = c.SetReadDeadline(time.Now().Add(s.idle))
	}
	s.mu.Unlock()
	if pace > 0 {
		_ = c.SetReadBuffer(16 << 10)
		most = min(most, 8<<10)
		<-time.After(pace)
	}
	n, err := c.TCPConn.Read(p[:most])
	if c.left > 0 {
		c.left -= n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.deaf && s.has(c) { // it was in the middle of reading
		s.changed.Wait()
	}
	if !s.has(c) {
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *sideConn) reset() {
	_ = c.SetLinger(0)
	_ = c.TCPConn.Close()
}

func (s *streamSide) has(c *sideConn) bool {
	_, ok := s.conns[c]
	return ok
}

func octets(r *bufio.Reader) (string, error) {
	head, err := r.ReadString(' ')
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(head, " "))
	if err != nil || n < 1 || n > 1<<24 {
		return "", fmt.Errorf("length %q", head)
	}
	buf := make([]byte, n)
	_, err = io.ReadFull(r, buf)
	return string(buf), err
}

func lines(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

func newStreamSide(t testing.TB, plain bool, next func(*bufio.Reader) (string, error)) *streamSide {
	t.Helper()
	s := &streamSide{t: t, address: "127.0.0.1:0", plain: plain, next: next, conns: map[*sideConn]struct{}{}, cutAfter: -1}
	s.changed = sync.NewCond(&s.mu)
	s.trust = newAuthority(t)
	s.trust.issue(t, "server")
	s.trust.issue(t, "client")
	s.listen()
	s.address = s.listener.Addr().String()
	return s
}

func (s *streamSide) listen() {
	s.t.Helper()
	l, err := net.Listen("tcp", s.address)
	must(s.t, err)
	s.mu.Lock()
	s.listener = l
	s.mu.Unlock()
	pair, err := tls.LoadX509KeyPair(s.trust.path("server.pem"), s.trust.path("server.key"))
	must(s.t, err)
	own := x509.NewCertPool()
	own.AddCert(s.trust.cert)
	settings := &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
	settings.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		c := settings.Clone()
		if c.ClientCAs = own; s.refuse != nil {
			c.ClientCAs = s.refuse
		}
		return c, nil
	}
	s.running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c := &sideConn{side: s, TCPConn: conn.(*net.TCPConn), left: -1}
			s.mu.Lock()
			s.conns[c] = struct{}{}
			s.accepted++
			s.changed.Broadcast()
			s.mu.Unlock()
			s.running.Go(func() { s.serve(c, settings) })
		}
	})
}

func (s *streamSide) serve(c *sideConn, settings *tls.Config) {
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.changed.Broadcast()
		s.mu.Unlock()
		_ = c.TCPConn.Close()
	}()
	var conn net.Conn = c
	s.mu.Lock()
	for s.mute && s.has(c) {
		s.changed.Wait()
	}
	shut := s.shut
	s.mu.Unlock()
	if !s.plain {
		secure := tls.Server(c, settings)
		if secure.Handshake() != nil {
			return
		}
		defer secure.Close()
		conn = secure
	}
	if shut {
		return
	}
	r := bufio.NewReaderSize(conn, 64<<10)
	for {
		m, err := s.next(r)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.messages = append(s.messages, m)
		s.changed.Broadcast()
		s.mu.Unlock()
	}
}

// set changes how the side behaves.
func (s *streamSide) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	s.changed.Broadcast()
}

// kick ends all connections without a word.
func (s *streamSide) kick() {
	s.set(func() {
		for c := range s.conns {
			delete(s.conns, c)
			c.reset()
		}
	})
}

// await waits until ok holds, which is called with the lock.
func (s *streamSide) await(what string, ok func() bool) {
	s.t.Helper()
	timer := time.AfterFunc(20*time.Second, func() { s.set(func() {}) })
	defer timer.Stop()
	end := time.Now().Add(20 * time.Second)
	s.mu.Lock()
	defer s.mu.Unlock()
	for !ok() {
		if time.Now().After(end) {
			s.t.Fatalf("waited in vain: %s", what)
		}
		s.changed.Wait()
	}
}

// down stops listening and ends all connections, until up.
func (s *streamSide) down() (up func()) {
	_ = s.listener.Close()
	s.kick()
	return s.listen
}

func (s *streamSide) close() {
	s.set(func() { s.mute, s.deaf = false, false })
	_ = s.listener.Close()
	s.kick()
	s.running.Wait()
}

// distinct are the messages that came, each once: what was sent again is the same.
func (s *streamSide) distinct(text func(message string) string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	seen := map[string]bool{}
	for _, m := range s.messages {
		if m = text(m); !seen[m] {
			seen[m] = true
			out = append(out, m)
		}
	}
	return out
}

// confirming notes which events were confirmed.
type confirming struct {
	Sink
	side *streamSide
	ids  map[string]bool
}

func (c *confirming) Deliver(ctx context.Context, b Batch) Result {
	res := c.Sink.Deliver(ctx, b)
	if res.Verdict == Done {
		c.side.set(func() {
			for i := range b.Len() {
				c.ids[b.ID(i).String()] = true
			}
		})
	}
	return res
}

// arrived waits for the confirmed events: they are with the far side's system, which
// gives them to the receiver when it asks.
func (c *confirming) arrived() {
	next := 0
	c.side.await("all that was confirmed", func() bool {
		for ; next < len(c.side.messages); next++ {
			for _, part := range strings.Split(c.side.messages[next], `"`) {
				delete(c.ids, part)
			}
		}
		return len(c.ids) == 0
	})
}

// streamWorld puts the troubles of a receiver of streams together.
func streamWorld(f *streamSide, inner Sink, text func(string) string, untrusted func() Sink) *world {
	s := &confirming{Sink: inner, side: f, ids: map[string]bool{}}
	return &world{
		sink: s,
		received: func() []string {
			s.arrived()
			return f.distinct(text)
		},
		outage: f.down,
		denial: func() func() {
			f.set(func() { f.refuse = x509.NewCertPool() })
			return func() { f.set(func() { f.refuse = nil }) }
		},
		hang: func() func() {
			f.set(func() { f.mute = true })
			return func() {
				f.set(func() { f.mute = false })
				f.kick()
			}
		},
		hangs: 15 * time.Second,
		cut: func() func() {
			f.set(func() { f.cutAfter = 100_000 })
			return func() { f.set(func() { f.cutAfter = -1 }) }
		},
		untrusted: func() (Sink, func() bool) {
			return untrusted(), func() bool { return len(f.distinct(text)) > 0 }
		},
		cannot: map[string]string{
			"throttle": "a receiver can do no more than not read, which is a hang",
			"partial":  "a receiver says nothing about what it got",
		},
		done: f.close,
	}
}

// openStream opens a syslog sink towards f that does not wait long.
func openStream(t testing.TB, f *streamSide, change func(*SyslogConfig)) *syslogSink {
	t.Helper()
	cfg := defaultSyslog()
	cfg.Address, cfg.TLS, cfg.Format = f.address, f.trust.client(), Envelope
	if f.plain {
		cfg.Transport, cfg.TLS = OverTCP, TLSConfig{}
	}
	if change != nil {
		change(&cfg)
	}
	must(t, cfg.Validate())
	s, err := openSyslog(context.Background(), cfg, Deps{Destination: "stream", Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	return s.(*syslogSink)
}

// only counts the messages of event n.
func only(messages []string, n int) int {
	count := 0
	for _, m := range messages {
		if strings.Contains(m, fmt.Sprintf(`"n":%d,`, n)) {
			count++
		}
	}
	return count
}

// A connection that breaks after its events were confirmed: they are sent again, though
// nothing else is delivered.
// covers: F-22, SYS-16, peers section 3 pain 23
func TestStreamSendsAgain(t *testing.T) {
	for _, bare := range []bool{false, true} {
		t.Run(fmt.Sprint("bare ", bare), func(t *testing.T) {
			f := newStreamSide(t, bare, octets)
			defer f.close()
			s := openStream(t, f, nil)
			defer s.Close()
			mustDeliver(t, s, batchOf(s, 0, plain(0, 3)...))
			f.await("the first", func() bool { return len(f.messages) == 3 })
			f.set(func() { f.deaf = true }) // confirmed, and never read
			mustDeliver(t, s, batchOf(s, 3, plain(3, 2)...))
			f.kick()
			f.set(func() { f.deaf = false })
			f.await("the last events", func() bool { return only(f.messages, 4) == 1 })
			f.set(func() {
				for i, want := range []int{2, 2, 2, 1, 1} {
					if got := only(f.messages, i); got != want {
						t.Errorf("event %d came %d times, want %d", i, got, want)
					}
				}
			})
		})
	}
}

// What is kept is bounded by events, bytes and age.
func TestStreamKeepsWithinBounds(t *testing.T) {
	f := newStreamSide(t, true, octets)
	defer f.close()
	size := func(s Sink) config.Bytes { return config.Bytes(len(batchOf(s, 0, plain(0, 1)...).Bytes())) }
	tests := []struct {
		name   string
		change func(*SyslogConfig)
		again  []int // of the events 0 to 9, which come in batches of 4, 4 and 2
	}{
		{"all", func(*SyslogConfig) {}, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}},
		{"events", func(c *SyslogConfig) { c.Unconfirmed.Events = 6 }, []int{4, 5, 6, 7, 8, 9}},
		{"part of a batch", func(c *SyslogConfig) { c.Unconfirmed.Events = 1 }, []int{9}},
		{"bytes", func(c *SyslogConfig) { c.Unconfirmed.Bytes = 3 * size(openStream(t, f, nil)) }, []int{8, 9}},
		{"no events", func(c *SyslogConfig) { c.Unconfirmed.Events = 0 }, nil},
		{"no bytes", func(c *SyslogConfig) { c.Unconfirmed.Bytes = 0 }, nil},
		{"no time", func(c *SyslogConfig) { c.Unconfirmed.Hold = 0 }, nil},
		{"age", func(c *SyslogConfig) { c.Unconfirmed.Hold = time.Nanosecond }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := openStream(t, f, tt.change)
			defer s.Close()
			mustDeliver(t, s, batchOf(s, 0, plain(0, 4)...))
			mustDeliver(t, s, batchOf(s, 4, plain(4, 4)...))
			mustDeliver(t, s, batchOf(s, 8, plain(8, 2)...))
			f.await("all", func() bool { return len(f.messages) == 10 })
			f.set(func() { f.messages = nil })
			f.kick()
			mustDeliverEventually(t, s, batchOf(s, 10, plain(10, 1)...))
			f.await("the next", func() bool { return len(f.messages) == 1+len(tt.again) })
			f.set(func() {
				for i := range 10 {
					want := 0
					if slices.Contains(tt.again, i) {
						want = 1
					}
					if got := only(f.messages, i); got != want {
						t.Errorf("event %d came %d times, want %d", i, got, want)
					}
				}
				f.messages = nil
			})
		})
	}
}

// mustDeliverEventually is mustDeliver for when a connection may just be found dead.
func mustDeliverEventually(t *testing.T, s Sink, b Batch) {
	t.Helper()
	var res Result
	for range 100 {
		if res = s.Deliver(t.Context(), b); res.Verdict == Done {
			return
		}
		if res.Verdict != Retry {
			break
		}
	}
	t.Fatalf("got %v: %v", res.Verdict, res.Err)
}

// A peer that takes connections and reads nothing holds nobody for longer than the
// timeout, and gets nothing more.
// covers: peers section 3 pain 23
func TestStreamHangingPeer(t *testing.T) {
	for _, bare := range []bool{false, true} {
		t.Run(fmt.Sprint("bare ", bare), func(t *testing.T) {
			f := newStreamSide(t, bare, octets)
			defer f.close()
			s := openStream(t, f, func(c *SyslogConfig) { c.Timeout, c.Unconfirmed.Bytes = 400*time.Millisecond, config.MiB })
			defer s.Close()
			mustDeliver(t, s, batchOf(s, 0, docsOf(0, 1, 10)...))
			f.set(func() { f.deaf = true })
			began := time.Now()
			var res Result
			for i := 0; i < 100 && res.Verdict == Done; i++ { // what the buffers of both systems take
				res = s.Deliver(t.Context(), batchOf(s, 1+i, docsOf(1+i, 1, 900_000)...))
			}
			if res.Verdict != Retry || fault.CodeOf(res.Err) != "deliver.stream_slow" {
				t.Fatalf("got %v: %v", res.Verdict, res.Err)
			}
			if took := time.Since(began); took > time.Minute {
				t.Errorf("took %v", took)
			}
			s.stream.mu.Lock()
			if len(s.stream.idle) > 0 {
				t.Error("the connection is used again")
			}
			s.stream.mu.Unlock()
			f.set(func() { f.deaf = false })
			f.kick()
		})
	}
}

// A far side that is slow, but reads, gets all that was lost: its timeout is for nothing
// being acknowledged, not for all.
func TestStreamSlowPeer(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells what is acknowledged")
	}
	f := newStreamSide(t, true, octets)
	defer f.close()
	s := openStream(t, f, func(c *SyslogConfig) { c.Timeout = 300 * time.Millisecond })
	defer s.Close()
	f.set(func() { f.pace = 25 * time.Millisecond })
	mustDeliver(t, s, batchOf(s, 0, plain(0, 1)...))
	s.stream.mu.Lock()
	must(t, s.stream.idle[0].tcp.SetWriteBuffer(1<<20)) // so that writing does not wait
	s.stream.mu.Unlock()
	mustDeliver(t, s, batchOf(s, 1, docsOf(1, 1, 200_000)...)) // 600 ms
	f.set(func() {
		if f.pace = 0; f.accepted != 1 {
			t.Errorf("%d connections", f.accepted)
		}
	})
}

// A far side that ends idle connections gets what was kept again, but not for ever: its
// time on whole connections adds up.
// covers: peers section 3 pain 23
func TestStreamIdleTimeout(t *testing.T) {
	f := newStreamSide(t, true, octets)
	defer f.close()
	const idle = 400 * time.Millisecond
	f.set(func() { f.idle = idle })
	s := openStream(t, f, func(c *SyslogConfig) { c.Unconfirmed.Hold = 2 * idle })
	defer s.Close()
	mustDeliver(t, s, batchOf(s, 0, plain(0, 5)...))
	eventually(t, "nothing is kept any more", func() bool {
		s.stream.mu.Lock()
		defer s.stream.mu.Unlock()
		return len(s.stream.all) == 0 && !s.stream.resending
	})
	f.set(func() {
		if got := only(f.messages, 4); got < 2 || got > 3 {
			t.Errorf("the event came %d times", got)
		}
	})
}

// A far side that takes all and breaks the connection each time, as a proxy does with
// nobody behind it, is not flooded with what was kept.
func TestStreamFlappingPeer(t *testing.T) {
	f := newStreamSide(t, true, octets)
	defer f.close()
	s := openStream(t, f, nil)
	s.stream.settling = 0
	f.set(func() { f.idle = 10 * time.Millisecond })
	mustDeliverEventually(t, s, batchOf(s, 0, plain(0, 5)...))
	<-time.After(2500 * time.Millisecond)
	f.set(func() {
		if got := only(f.messages, 4); got < 3 || got > 5 {
			t.Errorf("the event came %d times", got)
		}
		f.idle = 0
	})
	must(t, s.Close())
}

// What is kept is bounded for all connections together, and all of it is sent again,
// also when they break together and break once more.
func TestStreamKeepsOfAllConnections(t *testing.T) {
	f := newStreamSide(t, true, octets)
	defer f.close()
	s := openStream(t, f, func(c *SyslogConfig) { c.Unconfirmed.Events = 500 })
	defer s.Close()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if res := s.Deliver(t.Context(), batchOf(s, i*100, plain(i*100, 100)...)); res.Verdict != Done {
				t.Errorf("got %v: %v", res.Verdict, res.Err)
			}
		})
	}
	wg.Wait()
	f.await("all", func() bool { return len(f.messages) == 800 })
	for round := range 2 {
		f.set(func() { f.messages = nil })
		f.kick()
		eventually(t, "it is sent again", func() bool {
			s.stream.mu.Lock()
			defer s.stream.mu.Unlock()
			return !s.stream.resending && s.stream.held.events == 500
		})
		f.await("it comes", func() bool { return len(f.messages) >= 500 })
		if got := len(f.distinct(envelopeOf)); got != 500 {
			t.Errorf("round %d: %d events came again, want 500", round, got)
		}
	}
}

// What ended before anything was written costs neither the connection nor repetitions.
func TestStreamCancelledBeforeWriting(t *testing.T) {
	f := newStreamSide(t, false, octets)
	defer f.close()
	s := openStream(t, f, nil)
	defer s.Close()
	mustDeliver(t, s, batchOf(s, 0, plain(0, 1)...))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if res := s.Deliver(ctx, batchOf(s, 1, plain(1, 1)...)); res.Verdict != Retry {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
	mustDeliver(t, s, batchOf(s, 2, plain(2, 1)...))
	f.await("the last", func() bool { return only(f.messages, 2) == 1 })
	f.set(func() {
		if f.accepted != 1 || only(f.messages, 0) != 1 {
			t.Errorf("%d connections, the first event came %d times", f.accepted, only(f.messages, 0))
		}
	})
}

// Closing ends though the far side, after it broke the connection, takes what is sent
// again and reads nothing of it.
func TestStreamClosesWhileNothingIsRead(t *testing.T) {
	f := newStreamSide(t, true, octets)
	defer f.close()
	s := openStream(t, f, nil)
	s.stream.farewell = time.Second
	for i := range 3 {
		mustDeliver(t, s, batchOf(s, i, docsOf(i, 1, 900_000)...))
	}
	f.await("all", func() bool { return len(f.messages) == 3 })
	s.stream.cancel() // so that nothing is sent again before
	up := f.down()
	eventually(t, "the end is seen", s.stream.owes)
	f.set(func() { f.deaf = true })
	up()
	began := time.Now()
	must(t, s.Close())
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}

// Several connections whose far side reads nothing are left at the same time.
func TestStreamClosesManyThatHang(t *testing.T) {
	f := newStreamSide(t, false, octets)
	defer f.close()
	s := openStream(t, f, nil)
	s.stream.farewell = 200 * time.Millisecond
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() { s.Deliver(t.Context(), batchOf(s, i, docsOf(i, 1, 100_000)...)) })
	}
	wg.Wait()
	f.set(func() { f.deaf = true })
	s.stream.mu.Lock()
	for c := range s.stream.all { // what a write that was given up may leave behind
		must(t, c.tcp.SetWriteBuffer(4<<10))
		must(t, c.tcp.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
		for junk := make([]byte, 1<<20); ; {
			if _, err := c.tcp.Write(junk); err != nil {
				break
			}
		}
	}
	s.stream.mu.Unlock()
	began := time.Now()
	must(t, s.Close())
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}

// docsOf makes documents of a size.
func docsOf(first, n, size int) []string {
	docs := make([]string, n)
	for i := range docs {
		docs[i] = fmt.Sprintf(`{"n":%d,"pad":%q}`, first+i, strings.Repeat("x", size))
	}
	return docs
}

// The wait for acknowledgement ends with the context, and does not cost the connection.
func TestStreamCancelledWhileWaiting(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells what is acknowledged")
	}
	f := newStreamSide(t, true, octets)
	defer f.close()
	s := openStream(t, f, nil)
	defer s.Close()
	mustDeliver(t, s, batchOf(s, 0, plain(0, 1)...))
	f.set(func() { f.deaf = true })
	// Fill the far side's buffer, so that something stays with us.
	n := 1
	for ; ; n++ {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		res := s.Deliver(ctx, batchOf(s, n, docsOf(n, 1, 64<<10)...))
		cancel()
		if res.Verdict != Done {
			if res.Verdict != Retry || !errors.Is(res.Err, context.DeadlineExceeded) {
				t.Fatalf("got %v: %v", res.Verdict, res.Err)
			}
			break
		}
	}
	f.set(func() { f.deaf = false })
	mustDeliver(t, s, batchOf(s, n, docsOf(n, 1, 64<<10)...))
	f.await("the event", func() bool { return only(f.messages, n) >= 1 })
	f.set(func() {
		if f.accepted != 1 {
			t.Errorf("%d connections", f.accepted)
		}
	})
}

// An idle connection that the far side ends is not written to.
func TestStreamSeesTheEnd(t *testing.T) {
	f := newStreamSide(t, false, octets)
	defer f.close()
	s := openStream(t, f, func(c *SyslogConfig) { c.Unconfirmed.Events = 0 })
	defer s.Close()
	mustDeliver(t, s, batchOf(s, 0, plain(0, 1)...))
	f.await("the first", func() bool { return len(f.messages) == 1 })
	s.stream.mu.Lock()
	c := s.stream.idle[0]
	s.stream.mu.Unlock()
	f.kick()
	<-c.dead
	mustDeliver(t, s, batchOf(s, 1, plain(1, 1)...)) // at the first attempt
	f.await("the second", func() bool { return len(f.messages) == 2 })
}

// A receiver that lets one in and then closes without a word, as some do that want
// another certificate, confirms nothing.
func TestStreamShutsTheDoor(t *testing.T) {
	f := newStreamSide(t, true, octets)
	defer f.close()
	f.set(func() { f.shut = true })
	s := openStream(t, f, nil)
	defer s.Close()
	for range 3 {
		if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 1)...)); res.Verdict != Retry || fault.CodeOf(res.Err) != "deliver.stream_broken" {
			t.Errorf("got %v: %v", res.Verdict, res.Err)
		}
	}
}

// A TLS destination that meets a server without TLS, and the other way round.
func TestStreamWrongTransport(t *testing.T) {
	secure, bare := newStreamSide(t, false, octets), newStreamSide(t, true, func(*bufio.Reader) (string, error) { return "", io.EOF })
	defer secure.close()
	defer bare.close()
	s := openStream(t, secure, func(c *SyslogConfig) { c.Transport, c.TLS = OverTCP, TLSConfig{} })
	defer s.Close()
	if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 100)...)); res.Verdict == Done {
		t.Error("a TLS server has confirmed plain text")
	}
	s = openStream(t, bare, func(c *SyslogConfig) { c.Transport, c.TLS = OverTLS, secure.trust.client() })
	defer s.Close()
	if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 1)...)); res.Verdict != Retry && res.Verdict != Stop {
		t.Errorf("got %v: %v", res.Verdict, res.Err)
	}
}

// Closing lets the far side read all that was confirmed, and tries once more what it
// has not.
func TestStreamCloses(t *testing.T) {
	f := newStreamSide(t, false, octets)
	defer f.close()
	s := openStream(t, f, nil)
	const n = 20_000
	for i := 0; i < n; i += 1000 {
		mustDeliver(t, s, batchOf(s, i, plain(i, 1000)...))
	}
	must(t, s.Close())
	if got := len(f.distinct(envelopeOf)); got != n {
		t.Errorf("%d events after Close, want %d", got, n)
	}

	s = openStream(t, f, nil)
	mustDeliver(t, s, batchOf(s, n, plain(n, 1)...))
	f.set(func() { f.deaf = true })
	mustDeliver(t, s, batchOf(s, n+1, plain(n+1, 4)...))
	up := f.down()
	f.set(func() { f.deaf = false })
	up()
	must(t, s.Close())
	if got := len(f.distinct(envelopeOf)); got != n+5 {
		t.Errorf("%d events after Close, want %d", got, n+5)
	}
}

// What could not be sent again before the end is counted.
func TestStreamTellsWhatItAbandons(t *testing.T) {
	f := newStreamSide(t, false, octets)
	defer f.close()
	var out bytes.Buffer
	cfg := defaultSyslog()
	cfg.Address, cfg.TLS = f.address, f.trust.client()
	opened, err := openSyslog(t.Context(), cfg, Deps{Destination: "abandoned", Log: slog.New(slog.NewTextHandler(&out, nil))})
	must(t, err)
	s := opened.(*syslogSink)
	mustDeliver(t, s, batchOf(s, 0, plain(0, 5)...))
	f.down()
	must(t, s.Close())
	if !strings.Contains(out.String(), "level=ERROR") || !strings.Contains(out.String(), "events=5") {
		t.Errorf("the log says\n%s", out.String())
	}
	if strings.Contains(out.String(), secretPayload) {
		t.Error("the log shows payload")
	}
}

// A far side that does not close its side is not waited for without end.
func TestStreamClosesWithoutTheFarSide(t *testing.T) {
	f := newStreamSide(t, false, octets)
	defer f.close()
	var mu sync.Mutex
	var out bytes.Buffer
	s := openStream(t, f, nil)
	s.stream.farewell, s.stream.log = 300*time.Millisecond, newLog(&mu, &out)
	mustDeliver(t, s, batchOf(s, 0, plain(0, 5)...))
	f.set(func() { f.deaf = true })
	began := time.Now()
	must(t, s.Close())
	if took := time.Since(began); took < s.stream.farewell || took > 30*time.Second {
		t.Errorf("took %v", took)
	}
	if !strings.Contains(out.String(), "does not close its side") {
		t.Errorf("the log says\n%s", out.String())
	}
}

// Batches that are sent at the same time have connections of their own, which are used
// again.
func TestStreamPool(t *testing.T) {
	f := newStreamSide(t, false, octets)
	defer f.close()
	s := openStream(t, f, nil)
	defer s.Close()
	for round := range 3 {
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				first := (round*4 + i) * 100
				if res := s.Deliver(t.Context(), batchOf(s, first, plain(first, 100)...)); res.Verdict != Done {
					t.Errorf("got %v: %v", res.Verdict, res.Err)
				}
			})
		}
		wg.Wait()
	}
	f.await("all", func() bool { return len(f.messages) == 1200 })
	f.set(func() {
		if f.accepted > 4 {
			t.Errorf("%d connections for 4 batches at a time", f.accepted)
		}
	})
}

// A renewed certificate is used for the next connection; a refused one stops.
func TestStreamClientCertificate(t *testing.T) {
	f := newStreamSide(t, false, octets)
	defer f.close()
	other := newAuthority(t)
	other.issue(t, "client")
	mine := f.trust.client()
	good, err := os.ReadFile(mine.CertFile)
	must(t, err)
	goodKey, err := os.ReadFile(mine.KeyFile)
	must(t, err)
	put := func(cert, key []byte) {
		must(t, os.WriteFile(mine.CertFile, cert, 0o600))
		must(t, os.WriteFile(mine.KeyFile, key, 0o600))
	}
	bad, err := os.ReadFile(other.path("client.pem"))
	must(t, err)
	badKey, err := os.ReadFile(other.path("client.key"))
	must(t, err)
	s := openStream(t, f, nil)
	defer s.Close()
	put(bad, badKey)
	for range 5 {
		if res := s.Deliver(t.Context(), batchOf(s, 0, plain(0, 1)...)); res.Verdict != Stop || fault.CodeOf(res.Err) != "deliver.stream_denied" {
			t.Errorf("got %v: %v", res.Verdict, res.Err)
		}
	}
	put(good, goodKey)
	mustDeliver(t, s, batchOf(s, 0, plain(0, 1)...))
}

// covers: DEV-130, DEV-140
func TestStreamProbe(t *testing.T) {
	f, bare := newStreamSide(t, false, octets), newStreamSide(t, true, octets)
	defer f.close()
	defer bare.close()
	good := defaultSyslog()
	good.Address, good.TLS = f.address, f.trust.client()
	other := newAuthority(t)
	other.issue(t, "client")
	tests := []struct {
		name   string
		change func(*SyslogConfig)
		want   []string // level and check
	}{
		{"good", func(*SyslogConfig) {}, []string{"ok certificate", "ok resolve", "ok TLS", "ok session"}},
		{"plain", func(c *SyslogConfig) { c.Address, c.Transport, c.TLS = bare.address, OverTCP, TLSConfig{} }, []string{"ok resolve", "ok connect", "ok session"}},
		{"udp", func(c *SyslogConfig) { c.Transport, c.TLS = OverUDP, TLSConfig{} }, []string{"warn address"}},
		{"no file", func(c *SyslogConfig) { c.TLS.CAFile = "absent" }, []string{"fail open"}},
		{"no name", func(c *SyslogConfig) { c.Address = "absent.invalid:6514" }, []string{"ok certificate", "fail resolve"}},
		{"nobody", func(c *SyslogConfig) { c.Address = "127.0.0.1:1" }, []string{"ok certificate", "ok resolve", "fail connect"}},
		{"no trust", func(c *SyslogConfig) { c.TLS.CAFile = "" }, []string{"ok certificate", "ok resolve", "fail TLS"}},
		{"refused", func(c *SyslogConfig) {
			c.TLS.CertFile, c.TLS.KeyFile = other.path("client.pem"), other.path("client.key")
		}, []string{"ok certificate", "ok resolve", "ok TLS", "fail session"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good
			tt.change(&cfg)
			var got []string
			for _, f := range cfg.Probe(t.Context()) {
				got = append(got, string(f.Level)+" "+f.Check)
				if f.Level == probe.Fail && f.Fix == "" {
					t.Errorf("no fix for %+v", f)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
	}
	devo := defaultDevo()
	devo.Address, devo.TLS = f.address, f.trust.client()
	if got := devo.Probe(t.Context()); len(got) != 4 || got[3].Level != probe.OK {
		t.Errorf("found %+v", got)
	}
	devo.TLS.CAFile = "absent"
	if got := devo.Probe(t.Context()); len(got) != 1 || got[0].Level != probe.Fail {
		t.Errorf("found %+v", got)
	}
	f.set(func() {
		if len(f.messages) > 0 {
			t.Errorf("trying it has sent %q", f.messages)
		}
	})
}

// unzipped reads one gzip member after the other, each with many lines.
func unzipped() func(r *bufio.Reader) (string, error) {
	var mu sync.Mutex
	waiting := map[*bufio.Reader][]string{}
	return func(r *bufio.Reader) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if len(waiting[r]) == 0 {
			mu.Unlock()
			text, err := member(r)
			mu.Lock()
			if err != nil {
				return "", err
			}
			waiting[r] = strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		}
		line := waiting[r][0]
		waiting[r] = waiting[r][1:]
		return line, nil
	}
}

func member(r *bufio.Reader) (string, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return "", err
	}
	z.Multistream(false)
	text, err := io.ReadAll(z)
	return string(text), err
}
