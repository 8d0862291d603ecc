package sinks

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/probe"
)

var (
	errStreamUnreachable = fault.Define("deliver.stream_unreachable", fault.Retry,
		"check that the receiver runs and that name, port and firewall let penstock through")
	errStreamBroken = fault.Define("deliver.stream_broken", fault.Retry,
		"nothing, when it passes: what may be lost is sent again; else see why the receiver ends connections")
	errStreamSlow = fault.Define("deliver.stream_slow", fault.Retry,
		"see why the receiver does not read, or raise timeout")
	errStreamDenied = fault.Define("deliver.stream_denied", fault.Stop,
		"correct the files under tls of the destination, its address, or what the receiver trusts")
	errStreamTooLarge = fault.Define("deliver.stream_too_large", fault.Reject,
		"raise max_message of the destination and the limit of the receiver, then redrive it")
)

var (
	streamConnections = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_deliver_stream_connections", Help: "Open connections of destinations that write streams.",
	}, []string{"destination"})
	streamConnects = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_stream_connects_total", Help: "Connections that were opened.",
	}, []string{"destination"})
	streamResent = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_stream_resent_events_total", Help: "Confirmed events that were sent again because their connection broke.",
	}, []string{"destination"})
	streamUnsent = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_deliver_stream_unsent_events", Help: "Confirmed events of connections that broke, which wait to be sent again.",
	}, []string{"destination"})
	streamAbandoned = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_stream_abandoned_events_total", Help: "Confirmed events that penstock could not send again before it stopped, or for lack of room; they may or may not have arrived.",
	}, []string{"destination"})
)

// Unconfirmed bounds what a destination keeps, in one process, to be sent again when a
// connection breaks.
type Unconfirmed struct {
	// Events of all connections together. 0 keeps none. Unit: events.
	Events int `yaml:"events"`
	// Bytes of all connections together, before compression. 0 keeps none. Unit: bytes.
	Bytes config.Bytes `yaml:"bytes"`
	// Hold is how long an event is kept, counted while the connection that it went over is whole; the time on several adds up. Unit: duration; 0 keeps none.
	Hold time.Duration `yaml:"hold"`
}

// Validate reports every problem.
func (u Unconfirmed) Validate() error {
	var p config.Problems
	p.Need(u.Events >= 0 && u.Events <= 10_000_000, "events", "use 0 to 10000000 events, e.g. 50000")
	p.Need(u.Bytes >= 0 && u.Bytes <= config.GiB, "bytes", "use 0 B to 1 GiB, e.g. 8 MiB")
	p.Need(u.Hold >= 0 && u.Hold <= time.Hour, "hold", "use 0s to 1h, e.g. 1m")
	return p.Err()
}

// StreamConfig are the keys of every kind that writes to a connection without getting
// an answer.
type StreamConfig struct {
	// MaxMessage is the largest message that is sent; a larger one goes to quarantine. Unit: bytes.
	MaxMessage config.Bytes `yaml:"max_message"`
	// Timeout bounds opening a connection, each write, and how long the far side's system may acknowledge nothing more of it. Unit: duration.
	Timeout time.Duration `yaml:"timeout"`
	// Unconfirmed is kept to be sent again.
	Unconfirmed Unconfirmed `yaml:"unconfirmed"`
	// TLS settings.
	TLS TLSConfig `yaml:"tls"`
}

func defaultStream() StreamConfig {
	return StreamConfig{
		MaxMessage:  config.MiB,
		Timeout:     30 * time.Second,
		Unconfirmed: Unconfirmed{Events: 50_000, Bytes: 8 * config.MiB, Hold: time.Minute},
	}
}

// problems adds what is wrong. plain tells that TLS is not used.
func (c StreamConfig) problems(p *config.Problems, plain bool) {
	p.Need(c.MaxMessage >= 480 && c.MaxMessage <= 256*config.MiB, "max_message", "use 480 B, which every receiver takes, to 256 MiB")
	p.Need(c.Timeout > 0 && c.Timeout <= time.Hour, "timeout", "use a duration above 0s and up to 1h, e.g. 30s")
	p.In("unconfirmed", c.Unconfirmed.Validate())
	c.TLS.problems(p)
	p.Need(!plain || c.TLS == TLSConfig{}, "tls", "remove it, or set transport: tls, which it is for")
}

// needAddress checks a host with a port.
func needAddress(p *config.Problems, key, address, example string) {
	host, port, err := net.SplitHostPort(address)
	n, bad := strconv.ParseUint(port, 10, 16)
	p.Need(err == nil && host != "" && bad == nil && n > 0, key, "set host and port, e.g. "+example)
}

// keepAlive finds out within half a minute that a silent far side is gone.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

const (
	// settling is how long a new connection has to live, beside two round trips, before
	// anything is written to it. A server says after the handshake of TLS 1.3 that it
	// does not like our certificate, and some close without a word.
	settling = 250 * time.Millisecond
	// farewell is how long closing waits for the far side to have read all.
	farewell = 5 * time.Second
	// mostResendWait is the longest pause before events are sent again. After twice as
	// long without, there is none.
	mostResendWait = 30 * time.Second
	// mostPoll is the longest pause between questions for acknowledgement.
	mostPoll = 5 * time.Millisecond
)

// stream writes batches to a pool of connections whose far side gives no answers.
//
// Confirmed: a batch is done when all its bytes are written, the kernel of the far
// side has acknowledged them (on Linux; elsewhere when they are written), and the
// connection is whole at that moment. Then they are in that system's memory, which the
// receiver may not have read yet. So the last of what was confirmed is kept, within
// the bounds of [Unconfirmed], and sent again when the connection ends in any way that
// penstock did not ask for; nobody has to deliver anything for that. What was sent again
// has left of its time what it has not spent on whole connections: a far side that ends
// idle connections does not get the same for ever.
// Lost is what both the far side, and penstock before it has sent it again, take down
// with them, and what is older than the bounds.
//
// Order: the events of a batch are in order. Batches that are sent concurrently are on
// connections of their own and may overtake each other. What is sent again stands
// before the next batch of that connection.
//
// Repeated: a batch whose connection broke is repeated as a whole, with what was kept.
//
// Memory: Unconfirmed.Bytes for all connections, and as much again while what was lost
// with one is on its way and others confirm more.
type stream struct {
	name, address string
	tls           *tls.Config // nil without TLS
	timeout       time.Duration
	keep          Unconfirmed
	gzip          bool
	log           *slog.Logger
	settling      time.Duration
	farewell      time.Duration

	ctx       context.Context //nolint:containedctx // of what no caller waits for; ends with close
	cancel    context.CancelFunc
	resenders sync.WaitGroup
	watchers  sync.WaitGroup
	zippers   sync.Pool

	mu        sync.Mutex
	idle      []*streamConn // the last is used next
	all       map[*streamConn]struct{}
	tail      []chunk // of whole connections, in the order in which it went out
	held      amount  // of tail
	expiry    *time.Timer
	lost      []chunk // of connections that broke, oldest first
	owed      amount  // of lost, and of what senders have taken of it
	resending bool
	resent    time.Time     // when that was tried last
	pause     time.Duration // before the next attempt
	closed    bool
}

// chunk is what was kept of one batch.
type chunk struct {
	data   []byte
	events int
	on     *streamConn   // that it went over
	since  time.Time     // when
	lived  time.Duration // on whole connections before
}

// amount of what is kept.
type amount struct{ bytes, events int }

func (a *amount) add(x chunk)  { a.bytes, a.events = a.bytes+len(x.data), a.events+x.events }
func (a *amount) take(x chunk) { a.bytes, a.events = a.bytes-len(x.data), a.events-x.events }

// fits tells whether there is room for x in what is kept.
func (u Unconfirmed) fits(a amount, x chunk) bool {
	return a.bytes+len(x.data) <= int(u.Bytes) && a.events+x.events <= u.Events
}

// newStream opens nothing. Errors: deliver.tls_setup.
func newStream(deps Deps, address string, plain, gzip bool, c StreamConfig) (*stream, error) {
	s := &stream{
		name: deps.Destination, address: address, timeout: c.Timeout, keep: c.Unconfirmed, gzip: gzip, log: deps.Log,
		settling: settling, farewell: farewell, all: map[*streamConn]struct{}{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if !plain {
		t, err := c.TLS.client(deps.Destination)
		if err != nil {
			return nil, err
		}
		if t.ServerName == "" {
			t.ServerName, _, _ = net.SplitHostPort(address) // validated
		}
		t.DynamicRecordSizingDisabled = true // no first byte is waited for
		s.tls = t
	}
	s.zippers.New = func() any { return new(zipper) }
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// streamConn is one connection. A goroutine watches for its end.
type streamConn struct {
	net.Conn // with TLS, if there is one
	tcp      *net.TCPConn
	raw      syscall.RawConn
	dead     chan struct{} // closed after err is set
	left     chan struct{} // closed after leftErr is set: our side is closed, or cannot be
	leftErr  error

	// Guarded by stream.mu.
	err     error
	leaving bool // our side is being closed
}

// deliver writes the events of b but for those in refused, which are by rising index.
func (s *stream) deliver(ctx context.Context, b Batch, refused []Exception) Result {
	data, events := b.Bytes(), b.Len()-len(refused)
	if len(refused) > 0 {
		data = without(b, refused)
	}
	if events == 0 {
		return Result{Items: refused}
	}
	if err := s.send(ctx, data, s.kept(b, refused, data)); err != nil {
		res := s.judge(ctx, err)
		res.Items = refused
		return res
	}
	return Result{Items: refused}
}

// tooLarge finds the events with more than most bytes; size tells how many an event has
// without its framing.
func tooLarge(name string, b Batch, most int, size func(event []byte) int) []Exception {
	var refused []Exception
	for i := range b.Len() {
		e := b.Event(i)
		if len(e) <= most {
			continue
		}
		if n := size(e); n > most {
			refused = append(refused, Exception{Index: i, Verdict: Reject, Err: errStreamTooLarge.New(nil,
				"send a message of %d bytes to destination %s, which takes %d", n, name, most)})
		}
	}
	return refused
}

// without copies the events that are not refused side by side.
func without(b Batch, refused []Exception) []byte {
	var data []byte
	for i := range b.Len() {
		if len(refused) > 0 && refused[0].Index == i {
			refused = refused[1:]
			continue
		}
		data = append(data, b.Event(i)...)
	}
	return data
}

// kept is the end of data that fits the bounds; it still points into data.
func (s *stream) kept(b Batch, refused []Exception, data []byte) chunk {
	events := b.Len() - len(refused)
	switch {
	case s.keep.Hold == 0 || s.keep.Events == 0:
		return chunk{}
	case len(data) <= int(s.keep.Bytes) && events <= s.keep.Events:
		return chunk{data: data, events: events}
	}
	size, n, next := 0, 0, len(refused)-1
	for i := b.Len() - 1; i >= 0; i-- {
		if next >= 0 && refused[next].Index == i {
			next--
			continue
		}
		long := len(b.Event(i))
		if n == s.keep.Events || size+long > int(s.keep.Bytes) {
			break
		}
		size, n = size+long, n+1
	}
	return chunk{data: data[len(data)-size:], events: n}
}

// judge makes a verdict of an error of send.
func (s *stream) judge(ctx context.Context, err error) Result {
	if ctx.Err() != nil {
		return Result{Verdict: Retry, Err: errStreamBroken.New(context.Cause(ctx), "deliver to destination %s at %s", s.name, s.address)}
	}
	verdict := Retry
	if fault.ClassOf(err) == fault.Stop {
		verdict = Stop
	}
	return Result{Verdict: verdict, Err: err}
}

// send writes what was lost and then data on one connection, and waits until it is
// acknowledged. Own is the part of data to keep. Errors are faults, unless ctx ended.
func (s *stream) send(ctx context.Context, data []byte, own chunk) error {
	if data == nil && !s.owes() {
		return nil
	}
	c, err := s.take(ctx)
	if err != nil {
		return err
	}
	lost := s.takeLost()
	whole, err := s.write(ctx, c, lost, data)
	if err == nil {
		err = s.acknowledged(ctx, c)
	}
	if err == nil {
		err = s.confirm(c, lost, own)
	}
	if err == nil {
		return nil
	}
	s.giveBack(lost)
	if whole && ctx.Err() != nil && s.putBack(c) {
		return err // not the connection's fault
	}
	if !errors.Is(err, errStreamSlow) && ctx.Err() == nil {
		// Why a write fails is known to who reads: there may be an alert.
		select {
		case <-c.dead:
		case <-time.After(time.Second):
		}
	}
	s.die(c, err)
	return s.why(c)
}

// why is the fault for what has ended a connection.
func (s *stream) why(c *streamConn) error {
	err := c.err
	var known *fault.Error
	switch {
	case errors.As(err, &known):
		return err
	case distrusts(err):
		return errStreamDenied.New(foreign(err), "deliver to destination %s at %s", s.name, c.RemoteAddr())
	case err == io.EOF:
		err = errors.New("the far side closed the connection")
	default:
		err = foreign(err)
	}
	return errStreamBroken.New(err, "deliver to destination %s at %s", s.name, c.RemoteAddr())
}

// foreign is an error that may quote the far side, made fit to be shown.
func foreign(err error) error { return errors.New((&httpClient{}).sanitise(err.Error())) }

// take returns a connection that nobody else uses.
func (s *stream) take(ctx context.Context) (*streamConn, error) {
	s.mu.Lock()
	if n := len(s.idle); n > 0 {
		c := s.idle[n-1]
		s.idle = s.idle[:n-1]
		s.mu.Unlock()
		return c, nil
	}
	s.mu.Unlock()
	return s.open(ctx)
}

// open makes a connection that has lived for a moment. Errors are faults, unless ctx
// ended.
func (s *stream) open(ctx context.Context) (*streamConn, error) {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	began := time.Now()
	conn, err := (&net.Dialer{KeepAliveConfig: keepAlive}).DialContext(ctx, "tcp", s.address)
	if err != nil {
		return nil, s.unopened(caller, err)
	}
	trip := time.Since(began)
	tcp := conn.(*net.TCPConn) // what dialling tcp returns
	raw, err := tcp.SyscallConn()
	if err != nil {
		_ = tcp.Close()
		return nil, s.unopened(caller, err)
	}
	c := &streamConn{Conn: tcp, tcp: tcp, raw: raw, dead: make(chan struct{}), left: make(chan struct{})}
	version := "none"
	if s.tls != nil {
		secure := tls.Client(tcp, s.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = tcp.Close()
			return nil, s.unopened(caller, err)
		}
		c.Conn, version = secure, tls.VersionName(secure.ConnectionState().Version)
	}
	s.mu.Lock()
	s.all[c] = struct{}{}
	s.mu.Unlock()
	streamConnections.WithLabelValues(s.name).Inc()
	s.watchers.Go(func() { s.watch(c) })
	settled := time.NewTimer(s.settling + 2*trip)
	defer settled.Stop()
	select {
	case <-settled.C:
	case <-c.dead:
		if c.err == io.EOF {
			return nil, errStreamBroken.New(errors.New("the far side closed it again before anything was written; it may want another certificate"),
				"connect destination %s to %s", s.name, s.address)
		}
		return nil, s.why(c)
	case <-caller.Done():
		s.die(c, context.Cause(caller))
		return nil, context.Cause(caller)
	}
	streamConnects.WithLabelValues(s.name).Inc()
	s.log.Info("connection opened", "address", s.address, "peer", tcp.RemoteAddr().String(), "local", tcp.LocalAddr().String(), "tls", version)
	return c, nil
}

// unopened is the fault for a connection that could not be made.
func (s *stream) unopened(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var plain tls.RecordHeaderError
	if distrusts(err) || errors.As(err, &plain) {
		return errStreamDenied.New(foreign(err), "connect destination %s to %s", s.name, s.address)
	}
	return errStreamUnreachable.New(foreign(err), "connect destination %s to %s", s.name, s.address)
}

// watch reads until the connection ends. What a receiver says means nothing.
func (s *stream) watch(c *streamConn) {
	buf := make([]byte, 512)
	for {
		if _, err := c.Read(buf); err != nil {
			s.die(c, s.ending(c, err))
			return
		}
	}
}

// ending is why a connection ended, given what its reader got. The system tells of a
// reset only once, so whoever closes our side may have been told instead.
func (s *stream) ending(c *streamConn, err error) error {
	s.mu.Lock()
	leaving := c.leaving
	s.mu.Unlock()
	if leaving && err == io.EOF {
		if <-c.left; c.leftErr != nil {
			return c.leftErr
		}
	}
	return err
}

// write writes all that was lost, then data. Whole tells whether what went out ends
// where an event ends, so that more may follow.
func (s *stream) write(ctx context.Context, c *streamConn, lost []chunk, data []byte) (whole bool, err error) {
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.SetWriteDeadline(time.Unix(1, 0))
		close(expired)
	})
	defer func() {
		if !stop() {
			<-expired // it must not hit the next write
		}
	}()
	whole = true
	one := func(data []byte) error {
		if err := c.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if s.gzip {
			z := s.zippers.Get().(*zipper)
			defer s.zippers.Put(z)
			data = z.zip(data)
		}
		whole = false
		_, err := c.Write(data)
		whole = err == nil
		var slow net.Error
		if errors.As(err, &slow) && slow.Timeout() && ctx.Err() == nil {
			return errStreamSlow.New(nil, "write to destination %s at %s within %v", s.name, s.address, s.timeout)
		}
		return err
	}
	for _, x := range lost {
		if err := one(x.data); err != nil {
			return whole, err
		}
	}
	if len(data) > 0 {
		err = one(data)
	}
	return whole, err
}

// acknowledged waits until the far side's kernel has all that was written. A slow one
// may take its time: with what was lost there may be much more than a batch.
func (s *stream) acknowledged(ctx context.Context, c *streamConn) error {
	var end time.Time
	least := math.MaxInt
	pause := 50 * time.Microsecond
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for {
		n, whole, err := unacknowledged(c.raw)
		switch {
		case err != nil:
			return err
		case !whole:
			return io.EOF
		case n == 0:
			return nil
		case n < least:
			least, end = n, time.Now().Add(s.timeout)
		case time.Now().After(end):
			return errStreamSlow.New(nil, "have %d bytes acknowledged by destination %s at %s within %v", n, s.name, s.address, s.timeout)
		}
		timer.Reset(pause)
		pause = min(2*pause, mostPoll)
		select {
		case <-timer.C:
		case <-c.dead:
			return io.EOF // the reason is in c
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// confirm keeps a copy of what went out, and gives the connection back, unless it has
// died meanwhile.
func (s *stream) confirm(c *streamConn, lost []chunk, own chunk) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	now := time.Now()
	for _, x := range lost {
		s.owed.take(x)
		s.room(x)
		s.retain(c, now, x)
		streamResent.WithLabelValues(s.name).Add(float64(x.events))
	}
	if own.events > 0 {
		own.data = append(s.room(own), own.data...)
		s.retain(c, now, own)
	}
	s.count()
	s.idle = append(s.idle, c)
	return nil
}

// retain adds to what is kept, for which there must be room. Called with mu.
func (s *stream) retain(c *streamConn, now time.Time, x chunk) {
	x.on, x.since = c, now
	s.tail = append(s.tail, x)
	s.held.add(x)
	s.arm()
}

// room drops the oldest until x fits, and returns a buffer to use again. Called with mu.
func (s *stream) room(x chunk) (spare []byte) {
	for len(s.tail) > 0 && !s.keep.fits(s.held, x) {
		oldest := s.tail[0]
		s.tail[0] = chunk{}
		s.tail = s.tail[1:]
		s.held.take(oldest)
		spare = oldest.data[:0]
	}
	if cap(spare) > 2*len(x.data) {
		return nil // else little would be kept in much memory
	}
	return spare
}

// arm sees to it that what is kept is forgotten in time, or an eighth of it later.
// Called with mu.
func (s *stream) arm() {
	if s.expiry == nil && len(s.tail) > 0 && !s.closed {
		s.expiry = time.AfterFunc(max(s.keep.Hold/8, time.Millisecond), s.forget)
	}
}

// forget frees what has been kept for long enough.
func (s *stream) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.tail = slices.DeleteFunc(s.tail, func(x chunk) bool {
		old := x.lived+now.Sub(x.since) >= s.keep.Hold
		if old {
			s.held.take(x)
		}
		return old
	})
	s.expiry = nil
	s.arm()
}

// part takes what was kept of a connection out of tail. Called with mu.
func (s *stream) part(c *streamConn) (lost []chunk) {
	now := time.Now()
	s.tail = slices.DeleteFunc(s.tail, func(x chunk) bool {
		if x.on != c {
			return false
		}
		s.held.take(x)
		x.on, x.lived = nil, x.lived+now.Sub(x.since)
		if x.lived < s.keep.Hold {
			lost = append(lost, x)
		}
		return true
	})
	return lost
}

// putBack gives a connection back; false when it is dead.
func (s *stream) putBack(c *streamConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.err != nil {
		return false
	}
	s.idle = append(s.idle, c)
	return true
}

// die ends a connection, for the first reason that is given. What was kept of it is to
// be sent again, unless the far side has read all that there will be.
func (s *stream) die(c *streamConn, err error) {
	s.mu.Lock()
	if c.err != nil {
		s.mu.Unlock()
		return
	}
	c.err = err
	lost := s.part(c)
	if c.leaving && err == io.EOF {
		lost = nil
	}
	var events amount
	for _, x := range lost {
		s.owed.add(x)
		events.add(x)
	}
	s.lose(append(s.lost, lost...))
	delete(s.all, c)
	for i, x := range s.idle {
		if x == c {
			s.idle = append(s.idle[:i], s.idle[i+1:]...)
			break
		}
	}
	leaving := c.leaving
	close(c.dead)
	s.mu.Unlock()
	streamConnections.WithLabelValues(s.name).Dec()
	if !leaving || err != io.EOF {
		_ = c.tcp.SetLinger(0) // what the kernel still holds is sent again anyway
	}
	_ = c.tcp.Close()
	switch {
	case leaving:
	case len(lost) > 0:
		s.log.Warn("connection ended; its last events are sent again", "address", s.address, "events", events.events, "err", foreign(err))
	default:
		s.log.Info("connection ended", "address", s.address, "err", foreign(err))
	}
}

// lose replaces what is to be sent again, and sees to it. Called with mu.
func (s *stream) lose(lost []chunk) {
	s.lost = lost
	events := 0
	for len(s.lost) > 0 && !s.keep.fits(s.owed, chunk{}) {
		events += s.lost[0].events
		s.owed.take(s.lost[0])
		s.lost = s.lost[1:]
	}
	s.abandon(events)
	s.count()
	if len(s.lost) > 0 && !s.resending && !s.closed {
		s.resending = true
		s.resenders.Go(s.resend)
	}
}

// abandon tells of confirmed events that are not sent again.
func (s *stream) abandon(events int) {
	if events > 0 {
		streamAbandoned.WithLabelValues(s.name).Add(float64(events))
		s.log.Error("the last events may be lost: their connection broke and they could not be sent again", "address", s.address, "events", events)
	}
}

// count shows what is to be sent again. Called with mu.
func (s *stream) count() { streamUnsent.WithLabelValues(s.name).Set(float64(s.owed.events)) }

func (s *stream) owes() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.lost) > 0
}

func (s *stream) takeLost() []chunk {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := s.lost
	s.lost = nil
	return lost
}

// giveBack notes that what was taken is still to be sent.
func (s *stream) giveBack(lost []chunk) {
	if len(lost) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose(append(lost, s.lost...))
}

// resend sends what was lost, unless a delivery has done so first. The first time is at
// once. Then it takes more and more time: a far side may let one in, acknowledge all and
// break the connection again and again, as a proxy does that has nobody behind it.
func (s *stream) resend() {
	for {
		s.mu.Lock()
		if len(s.lost) == 0 || s.closed {
			s.resending = false
			s.mu.Unlock()
			return
		}
		if time.Since(s.resent) > 2*mostResendWait {
			s.pause = 0
		}
		pause := s.pause
		s.pause = min(max(2*pause, time.Second), mostResendWait)
		s.mu.Unlock()
		if pause > 0 {
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
				continue
			}
		}
		err := s.send(s.ctx, nil, chunk{})
		s.mu.Lock()
		s.resent = time.Now()
		s.mu.Unlock()
		if err != nil {
			s.log.Debug("events cannot be sent again yet", "address", s.address, "err", err)
		}
	}
}

// close lets the far side read to the end of each connection, which it shows by closing
// its side. What was kept of those that end otherwise is tried once more.
func (s *stream) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.resenders.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), s.farewell)
	defer cancel()
	s.leave(ctx)
	if s.owes() {
		if err := s.send(ctx, nil, chunk{}); err != nil {
			s.log.Debug("events cannot be sent again", "address", s.address, "err", err)
		}
		s.leave(ctx)
	}
	s.watchers.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expiry != nil {
		s.expiry.Stop()
	}
	s.abandon(s.owed.events)
	s.lost, s.owed = nil, amount{}
	s.count()
}

// leave ends our side of all connections and waits for the far side to do the same.
func (s *stream) leave(ctx context.Context) {
	s.mu.Lock()
	var all []*streamConn
	for c := range s.all {
		c.leaving = true
		all = append(all, c)
	}
	s.idle = nil
	s.mu.Unlock()
	var leaving sync.WaitGroup
	defer leaving.Wait()
	for _, c := range all {
		leaving.Go(func() { // one whose buffers are full takes 5 s
			if secure, ok := c.Conn.(*tls.Conn); ok {
				c.leftErr = secure.CloseWrite()
			}
			if c.leftErr == nil {
				c.leftErr = c.tcp.CloseWrite()
			}
			close(c.left)
			if c.leftErr != nil {
				s.die(c, c.leftErr)
			}
		})
	}
	for _, c := range all {
		select {
		case <-c.dead:
		case <-ctx.Done():
			s.log.Warn("the far side does not close its side, so it is not known whether it has read all", "address", s.address)
			s.die(c, io.EOF)
		}
	}
}

// probe opens a connection, as a delivery would, and closes it.
func (s *stream) probe(ctx context.Context, c StreamConfig) []probe.Finding {
	defer s.close()
	var all []probe.Finding
	if c.TLS.CertFile != "" {
		all = append(all, probe.Certificate(c.TLS.CertFile, c.TLS.KeyFile))
	}
	host, port, _ := net.SplitHostPort(s.address) // validated
	addresses, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return append(all, probe.Bad("resolve", host, err.Error(), "check the name and the name server"))
	}
	all = append(all, probe.Good("resolve", host, strings.Join(addresses[:min(len(addresses), 8)], ", ")))
	u := &url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}
	if s.tls != nil {
		u.Scheme = "https"
	}
	f := probe.Reach(ctx, u, s.tls)
	if all = append(all, f); f.Level == probe.Fail {
		return all
	}
	opened, err := s.open(ctx)
	if err != nil {
		return append(all, probe.Error("session", s.address, err))
	}
	s.mu.Lock()
	s.idle = append(s.idle, opened)
	s.mu.Unlock()
	return append(all, probe.Good("session", s.address, "it stays open; that events are taken shows at the receiver only"))
}
