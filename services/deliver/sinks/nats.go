package sinks

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/probe"
)

func init() {
	define("nats", "Publishes each event to a subject of a NATS system, for other programs.", defaultNATS, openNATS)
}

var (
	errNATSUnreachable = fault.Define("deliver.nats_unreachable", fault.Retry,
		"check that the NATS servers run, and that name, port and firewall let penstock through")
	errNATSDenied = fault.Define("deliver.nats_denied", fault.Stop,
		"renew the credentials or the certificate, or let the user publish to the subject and subscribe to _INBOX.>")
	errNATSNoStream = fault.Define("deliver.nats_no_stream", fault.Stop,
		"make a stream that takes the subject, correct subject of the destination, or set jetstream: false if nothing is to be kept")
	errNATSNoJetStream = fault.Define("deliver.nats_no_jetstream", fault.Stop,
		"turn JetStream on, at the server and for the account, or set jetstream: false if nothing is to be kept")
	errNATSSealed = fault.Define("deliver.nats_stream_sealed", fault.Stop,
		"let another stream take the subject: this one takes no more messages")
	errNATSBusy = fault.Define("deliver.nats_busy", fault.Retry,
		"nothing, when it passes; else see that the stream has a leader and room: max_bytes, max_msgs, discard policy, the disk, the limits of the account")
	errNATSTooLarge = fault.Define("deliver.nats_too_large", fault.Reject,
		"raise max_payload of the server or max_msg_size of the stream, then redrive the event")
	errNATSRejected = fault.Define("deliver.nats_rejected", fault.Reject,
		"see why the stream refuses this event, then redrive it")
	errNATSSlow = errors.New("no acknowledgement within the timeout")
	errNATSLost = errors.New("the connection was lost before the acknowledgement")
)

var natsDuplicates = promauto.NewCounterVec(prometheus.CounterOpts{
	Name: "penstock_deliver_nats_duplicates_total", Help: "Events that a stream had already, and did not store again.",
}, []string{"destination"})

// JetStream's error codes, as the server documents them in its errors.json.
const (
	natsAccountExceeded = 10002
	natsHeaderTooLarge  = 10097
	natsMessageTooLarge = 10054
	natsNoAccount       = 10035
	natsNotForAccount   = 10039
	natsNotEnabled      = 10076
	natsSealed          = 10109
	natsStreamNotFound  = 10059
)

// NATSConfig configures the nats sink.
type NATSConfig struct {
	// URL of the servers, separated by commas, e.g. tls://a.example.com:4222,tls://b.example.com:4222. Others of their cluster are found. Required.
	URL string `yaml:"url"`
	// Subject of an event; {type}, {source}, {format}, {account} and {region} stand for what is known of it. The first word is fixed. Required.
	Subject string `yaml:"subject"`
	// JetStream confirms an event when a stream has stored it. Without, nobody keeps what nobody reads.
	JetStream bool `yaml:"jetstream"`
	// Format of a message: envelope (with penstock's id, type, time, source, account and region) or document. The headers tell the same either way.
	Format Format `yaml:"format"`
	// Batch bounds what is published before the acknowledgements are waited for.
	Batch Limits `yaml:"batch"`
	// Timeout bounds one batch, from connecting to the last acknowledgement. Unit: duration.
	Timeout time.Duration `yaml:"timeout"`
	// CredsFile holds a user's JWT and key, as nsc writes it. It is read at each connection.
	CredsFile string `yaml:"creds_file"`
	// NKeyFile holds the seed of a user's nkey. It is read at each connection.
	NKeyFile string `yaml:"nkey_file"`
	// User and Password authenticate.
	User string `yaml:"user"`
	// Password belongs to User.
	Password config.Secret `yaml:"password"`
	// Token authenticates.
	Token config.Secret `yaml:"token"`
	// TLS settings. TLS is used when a URL begins with tls:// or wss://, a setting is made here, or the server asks for it.
	TLS TLSConfig `yaml:"tls"`
}

func defaultNATS() NATSConfig {
	return NATSConfig{
		JetStream: true,
		Format:    Document,
		Batch:     Limits{Events: 1000, Bytes: config.MiB, Age: 200 * time.Millisecond},
		Timeout:   10 * time.Second,
	}
}

// Validate reports every problem, each with the key to change.
func (c NATSConfig) Validate() error {
	var p config.Problems
	for _, address := range c.servers() {
		u, err := url.Parse(address)
		p.Need(err == nil && slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) && u.Host != "", "url", "set addresses with nats or tls, e.g. tls://nats.example.com:4222")
		p.Need(err != nil || u.User == nil, "url", "take user and password out of the address; there are keys for them")
	}
	_, err := c.subject()
	p.Need(err == nil, "subject", "use words with dots between them, e.g. siem.{type}: "+fmt.Sprint(err))
	p.Need(c.Format == Envelope || c.Format == Document, "format", "use envelope or document")
	p.In("batch", c.Batch.Validate())
	p.Need(c.Timeout > 0 && c.Timeout <= time.Hour, "timeout", "use a duration above 0s and up to 1h, e.g. 10s")
	ways := 0
	for _, given := range []bool{c.CredsFile != "", c.NKeyFile != "", c.User != "", !c.Token.IsZero()} {
		if given {
			ways++
		}
	}
	p.Need(ways <= 1, "creds_file", "use one of creds_file, nkey_file, user with password, and token")
	p.Need(c.Password.IsZero() || c.User != "", "user", "set the user of the password")
	c.TLS.problems(&p)
	return p.Err()
}

func (c NATSConfig) servers() []string {
	all := strings.Split(c.URL, ",")
	for i := range all {
		all[i] = strings.TrimSpace(all[i])
	}
	return all
}

// subject reads the pattern of subjects. The first word is fixed, so that the words
// that are not for events cannot come up: those of penstock's own bus, where an event
// that is published would be read again and published again, and those of the server.
func (c NATSConfig) subject() (pattern, error) {
	p, err := parsePattern(c.Subject, eventPlaceholders...)
	if err != nil {
		return nil, err
	}
	for i, word := range strings.Split(c.Subject, ".") {
		plain := word
		for _, name := range eventPlaceholders {
			plain = strings.ReplaceAll(plain, "{"+name+"}", "")
		}
		switch {
		case word == "":
			return nil, errors.New("a word is empty")
		case strings.ContainsFunc(plain, func(r rune) bool { return r <= ' ' || r > '~' || r == '*' || r == '>' }):
			return nil, errors.New("words have no spaces and no wildcards, and are of ASCII")
		case i == 0 && plain != word:
			return nil, errors.New("the first word is fixed")
		case i == 0 && word == "penstock":
			return nil, errors.New("subjects that begin with penstock are those of penstock's own bus")
		case i == 0 && (word[0] == '$' || word == "_INBOX"):
			return nil, errors.New("subjects that begin with $ or _INBOX are those of the servers")
		}
	}
	return p, nil
}

// natsSink publishes each event as a message of its own.
//
// With jetstream, an event is confirmed when the stream has acknowledged that it has
// stored the message, as durably as its replicas and sync interval make it. Without, it
// is confirmed when the server has taken it: who is not subscribed at that moment
// misses it.
//
// Messages of a batch are published one right after the other, and the
// acknowledgements waited for together. In flight are at most the batches that are
// being delivered. Within a batch the order is kept; batches overtake each other, and
// what is repeated comes late.
//
// What was not acknowledged is published again with the same Nats-Msg-Id, which is the
// id of the event: within its duplicate window the stream stores it once. After an
// outage that lasts longer than the window, events of the last moments before it may be
// there twice.
//
// Memory: besides the batches, a few hundred bytes for each of their events while its
// acknowledgement is awaited.
//
// Source: NATS documentation, "Headers" and "Model Deep Dive"; ADR-4 and ADR-22 of
// nats-architecture-and-design.
type natsSink struct {
	cfg     NATSConfig
	name    string
	subject pattern
	quiet   *httpClient // for its way with foreign text
	options []nats.Option

	connecting chan struct{} // held by who makes the connection
	mu         sync.Mutex
	conn       *natsConn // nil before the first delivery and after Close
}

func openNATS(_ context.Context, cfg NATSConfig, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &natsSink{cfg: cfg, name: deps.Destination, quiet: &httpClient{}, connecting: make(chan struct{}, 1)}
	s.quiet.hide(cfg.Password.Reveal(), cfg.Token.Reveal())
	var err error
	if s.subject, err = cfg.subject(); err != nil {
		return nil, errNATSNoStream.New(nil, "open destination %s", s.name) // not reached: validated
	}
	s.options = []nats.Option{
		nats.Name("penstock destination " + s.name), nats.Timeout(min(cfg.Timeout, 5*time.Second)), nats.FlusherTimeout(cfg.Timeout),
		nats.MaxReconnects(-1), nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		nats.PingInterval(10 * time.Second), nats.MaxPingsOutstanding(2),
		// What is published without a connection is to fail: it is retried with its id.
		nats.ReconnectBufSize(-1),
	}
	if cfg.TLS != (TLSConfig{}) || slices.ContainsFunc(cfg.servers(), func(u string) bool { return strings.HasPrefix(u, "tls:") || strings.HasPrefix(u, "wss:") }) {
		secure, err := cfg.TLS.client(s.name)
		if err != nil {
			return nil, err
		}
		s.options = append(s.options, nats.Secure(secure))
	}
	switch {
	case cfg.CredsFile != "":
		s.options = append(s.options, nats.UserCredentials(cfg.CredsFile))
	case cfg.NKeyFile != "":
		nkey, err := nats.NkeyOptionFromSeed(cfg.NKeyFile)
		if err != nil {
			return nil, errNATSDenied.New(err, "read the nkey of destination %s", s.name)
		}
		s.options = append(s.options, nkey)
	case cfg.User != "":
		s.options = append(s.options, nats.UserInfo(cfg.User, cfg.Password.Reveal()))
	case !cfg.Token.IsZero():
		s.options = append(s.options, nats.Token(cfg.Token.Reveal()))
	}
	return s, nil
}

func (s *natsSink) Limits() Limits { return s.cfg.Batch }

// The fields that Append puts before the document, each behind its length.
const (
	natsSubject = iota
	natsType
	natsSource
	natsAccount
	natsRegion
	natsTime
	natsReplay
	natsFields
)

// Append writes what Deliver makes a message of.
func (s *natsSink) Append(dst []byte, e *Event) []byte {
	var room [256]byte
	subject := room[:0]
	for i := range s.subject {
		clean := natsWord
		if s.subject[i].name == "type" {
			clean = natsWords
		}
		subject = s.subject[i:i+1].append(subject, e, time.Time{}, clean)
	}
	dst = binary.AppendUvarint(dst, uint64(len(subject)))
	dst = append(dst, subject...)
	for _, field := range []string{e.Type, e.Source, e.Account, e.Region} {
		dst = binary.AppendUvarint(dst, uint64(len(field)))
		dst = append(dst, field...)
	}
	at := room[:0]
	if e.Time != 0 {
		at = time.Unix(0, e.Time).UTC().AppendFormat(at, time.RFC3339Nano)
	}
	dst = binary.AppendUvarint(dst, uint64(len(at)))
	dst = append(dst, at...)
	dst = binary.AppendUvarint(dst, uint64(len(e.Replay)))
	dst = append(dst, e.Replay...)
	dst = s.cfg.Format.appendLine(dst, e)
	return dst[:len(dst)-1] // without the line break
}

// natsLongest bounds what one placeholder becomes, in bytes: a server takes no more
// than 4 KiB as a line.
const natsLongest = 200

// natsWord makes one word of a subject of a value.
func natsWord(dst []byte, value string) []byte {
	if value == "" {
		return append(dst, "unknown"...)
	}
	for i := range min(len(value), natsLongest) {
		c := value[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' {
			dst = append(dst, c)
		} else {
			dst = append(dst, '_')
		}
	}
	return dst
}

// natsWords keeps the dots of a value.
func natsWords(dst []byte, value string) []byte {
	value = value[:min(len(value), natsLongest)]
	for {
		word, rest, more := strings.Cut(value, ".")
		dst = natsWord(dst, word)
		if !more {
			return dst
		}
		dst, value = append(dst, '.'), rest
	}
}

// message reads what Append has written.
func (s *natsSink) message(id messages.ID, item []byte) *nats.Msg {
	var fields [natsFields]string
	for i := range fields {
		n, size := binary.Uvarint(item)
		fields[i] = string(item[size : size+int(n)])
		item = item[size+int(n):]
	}
	text := id.String()
	once := text
	if fields[natsReplay] != "" {
		once += "@" + fields[natsReplay] // the server is not to take it for a repetition
	}
	values := [...]string{once, text, fields[natsType], fields[natsSource], fields[natsAccount], fields[natsRegion], fields[natsTime], fields[natsReplay]}
	header := make(nats.Header, len(values))
	for i, name := range [...]string{nats.MsgIdHdr, "Penstock-Id", "Penstock-Type", "Penstock-Source", "Penstock-Account", "Penstock-Region", "Penstock-Time", headerReplay} {
		if values[i] != "" {
			header[name] = values[i : i+1 : i+1]
		}
	}
	return &nats.Msg{Subject: fields[natsSubject], Header: header, Data: item}
}

// natsConn is a connection, which finds its way back by itself after an outage.
type natsConn struct {
	*nats.Conn
	js     jetstream.JetStream
	dialer natsDialer

	mu sync.Mutex
	// turned is closed and replaced when something has happened to the connection.
	turned chan struct{}
	// lost counts disconnections.
	lost int
	// denied is the last thing that the user may not do.
	denied error
}

// turn notes what has happened and wakes who waits.
func (c *natsConn) turn(what func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	what()
	close(c.turned)
	c.turned = make(chan struct{})
}

// watch returns what is so now, and a channel that is closed when that changes.
func (c *natsConn) watch() (lost int, turned <-chan struct{}, denied error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost, c.turned, c.denied
}

// natsDialer makes the network connections of one natsConn, and knows the last, so that
// what blocks on it can be ended.
type natsDialer struct {
	mu   sync.Mutex
	dial func(network, address string) (net.Conn, error)
	conn net.Conn
}

// Dial implements [nats.CustomDialer].
func (d *natsDialer) Dial(network, address string) (net.Conn, error) {
	d.mu.Lock()
	dial := d.dial
	d.mu.Unlock()
	conn, err := dial(network, address)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = conn
	return conn, err
}

// cut breaks the connection.
func (d *natsDialer) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn != nil {
		_ = d.conn.Close()
	}
}

// connected returns the connection, and makes it if there is none. While it is broken
// it waits for it to be mended.
func (s *natsSink) connected(ctx context.Context) (*natsConn, error) {
	if c := s.current(); c != nil && c.IsConnected() {
		return c, nil
	}
	select {
	case s.connecting <- struct{}{}:
		defer func() { <-s.connecting }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for c := s.current(); c != nil && !c.IsClosed(); {
		_, turned, _ := c.watch()
		if c.IsConnected() {
			return c, nil
		}
		select {
		case <-turned:
		case <-ctx.Done():
			if err := c.LastError(); err != nil && distrusts(err) {
				return nil, err
			}
			return nil, context.Cause(ctx)
		}
	}
	c, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = c
	return c, nil
}

func (s *natsSink) current() *natsConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn
}

// connect makes a connection to one of the servers.
func (s *natsSink) connect(ctx context.Context) (*natsConn, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	c := &natsConn{turned: make(chan struct{})}
	dialer := net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	c.dialer.dial = func(network, address string) (net.Conn, error) { return dialer.DialContext(ctx, network, address) }
	options := slices.Concat(s.options, []nats.Option{
		nats.SetCustomDialer(&c.dialer),
		nats.DisconnectErrHandler(func(*nats.Conn, error) { c.turn(func() { c.lost++ }) }),
		nats.ReconnectHandler(func(*nats.Conn) { c.turn(func() {}) }),
		nats.ClosedHandler(func(*nats.Conn) { c.turn(func() { c.lost++ }) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				c.turn(func() { c.denied = err })
			}
		}),
	})
	stop := context.AfterFunc(ctx, c.dialer.cut)
	nc, err := nats.Connect(s.cfg.URL, options...)
	stop()
	if err != nil {
		return nil, err
	}
	c.dialer.mu.Lock()
	c.dialer.dial = dialer.Dial // from now on it belongs to no delivery
	c.dialer.mu.Unlock()
	c.Conn = nc
	// A batch is the window, and bounds what is pending; the time ends what nobody waits
	// for any more.
	c.js, err = jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(1<<30), jetstream.WithPublishAsyncTimeout(s.cfg.Timeout))
	if err != nil {
		nc.Close()
		return nil, err
	}
	return c, nil
}

// Close frees the connection.
func (s *natsSink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
	return nil
}

// Deliver publishes all of b and waits for what becomes of it.
func (s *natsSink) Deliver(ctx context.Context, b Batch) Result {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.Timeout, errNATSSlow)
	defer cancel()
	c, err := s.connected(ctx)
	if err != nil {
		return s.broken(ctx, err)
	}
	if s.cfg.JetStream {
		return s.store(ctx, c, b)
	}
	return s.pass(ctx, c, b)
}

func (s *natsSink) doing() string { return "publish to destination " + s.name }

// foreign makes an error with a text from outside.
func (s *natsSink) foreign(kind *fault.Kind, err error, subject string) error {
	doing := s.doing()
	if subject != "" {
		doing += ", subject " + s.quiet.sanitise(subject)
	}
	return kind.New(errors.New(s.quiet.sanitise(err.Error())), "%s", doing)
}

// broken judges what keeps from publishing at all.
func (s *natsSink) broken(ctx context.Context, err error) Result {
	switch {
	case distrusts(err), errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked),
		errors.Is(err, nats.ErrAccountAuthExpired), errors.Is(err, nats.ErrNkeysNotSupported), errors.Is(err, nats.ErrSecureConnWanted),
		errors.Is(err, nats.ErrSecureConnRequired), errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		return Result{Verdict: Stop, Err: s.foreign(errNATSDenied, err, "")}
	case ctx.Err() != nil:
		return Result{Verdict: Retry, Err: errNATSUnreachable.New(context.Cause(ctx), "%s", s.doing())}
	}
	return Result{Verdict: Retry, Err: s.foreign(errNATSUnreachable, err, "")}
}

// pass publishes without JetStream: what a server answers a ping for, it has taken.
func (s *natsSink) pass(ctx context.Context, c *natsConn, b Batch) Result {
	before := c.LastError()
	judged := make([]natsFate, b.Len())
	stop := context.AfterFunc(ctx, c.dialer.cut)
	defer stop()
	for i := range judged {
		m := s.message(b.ID(i), b.Event(i))
		if err := c.PublishMsg(m); errors.Is(err, nats.ErrMaxPayload) {
			judged[i] = natsFate{Reject, s.foreign(errNATSTooLarge, err, m.Subject)}
		} else if err != nil {
			return s.broken(ctx, err)
		}
	}
	if err := c.FlushWithContext(ctx); err != nil {
		return s.broken(ctx, err)
	}
	// What the user may not do is told before the answer to the ping.
	if err := c.LastError(); !errors.Is(err, before) && errors.Is(err, nats.ErrPermissionViolation) {
		return Result{Verdict: Stop, Err: s.foreign(errNATSDenied, err, "")}
	}
	return natsResult(judged)
}

// natsFate is what became of one event.
type natsFate struct {
	verdict Verdict
	err     error
}

// natsWatch is what a delivery looks out for while it waits for acknowledgements.
type natsWatch struct {
	lost   int
	denied error
	turned <-chan struct{}
	asked  *natsFate // why nobody answers, once somebody was asked
	over   *natsFate // what becomes of the rest, once no more is waited for
}

// store publishes to a stream and waits for the acknowledgements.
func (s *natsSink) store(ctx context.Context, c *natsConn, b Batch) Result {
	var w natsWatch
	w.lost, w.turned, w.denied = c.watch()
	judged := make([]natsFate, b.Len())
	futures := make([]jetstream.PubAckFuture, b.Len())
	stop := context.AfterFunc(ctx, c.dialer.cut) // it would end no write by itself
	for i := range futures {
		m := s.message(b.ID(i), b.Event(i))
		f, err := c.js.PublishMsgAsync(m, jetstream.WithRetryAttempts(0)) // a message is read but once: b is the caller's
		switch {
		case errors.Is(err, nats.ErrMaxPayload):
			judged[i] = natsFate{Reject, s.foreign(errNATSTooLarge, err, m.Subject)}
			continue
		case err != nil:
			res := s.broken(ctx, err)
			for j := i; j < len(judged); j++ {
				judged[j] = natsFate{res.Verdict, res.Err}
			}
		}
		if err != nil {
			break
		}
		futures[i] = f
	}
	stop()
	for i, f := range futures {
		if f != nil {
			judged[i] = s.await(ctx, c, f, &w)
		}
	}
	return natsResult(judged)
}

// await waits for the acknowledgement of one event.
func (s *natsSink) await(ctx context.Context, c *natsConn, f jetstream.PubAckFuture, w *natsWatch) natsFate {
	for w.over == nil {
		select {
		case ack := <-f.Ok():
			return s.stored(ack)
		case err := <-f.Err():
			return s.refused(ctx, c, err, f.Msg().Subject, w)
		case <-w.turned:
			s.look(c, w)
		case <-ctx.Done():
			w.over = &natsFate{Retry, errNATSUnreachable.New(context.Cause(ctx), "%s", s.doing())}
		}
	}
	select {
	case ack := <-f.Ok():
		return s.stored(ack)
	case err := <-f.Err():
		return s.refused(ctx, c, err, f.Msg().Subject, w)
	default:
		return *w.over
	}
}

// look sees what has happened to the connection.
func (s *natsSink) look(c *natsConn, w *natsWatch) {
	lost, turned, denied := c.watch()
	switch {
	case lost != w.lost:
		w.over = &natsFate{Retry, errNATSUnreachable.New(errNATSLost, "%s", s.doing())}
	case denied != nil && !errors.Is(denied, w.denied):
		w.over = &natsFate{Stop, s.foreign(errNATSDenied, denied, "")}
	}
	w.turned = turned
}

func (s *natsSink) stored(ack *jetstream.PubAck) natsFate {
	if ack.Duplicate {
		natsDuplicates.WithLabelValues(s.name).Inc()
	}
	return natsFate{}
}

// refused judges what came in place of an acknowledgement.
func (s *natsSink) refused(ctx context.Context, c *natsConn, err error, subject string, w *natsWatch) natsFate {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		if w.asked == nil {
			fate := s.ask(ctx, c, subject)
			w.asked = &fate
		}
		return *w.asked
	case errors.Is(err, jetstream.ErrInvalidJSAck):
		return natsFate{Stop, errNATSNoStream.New(errors.New("somebody else than a stream answers"), "%s, subject %s", s.doing(), s.quiet.sanitise(subject))}
	case errors.Is(err, jetstream.ErrAsyncPublishTimeout):
		return natsFate{Retry, errNATSUnreachable.New(errNATSSlow, "%s", s.doing())}
	case !errors.As(err, &api):
		return natsFate{Retry, s.foreign(errNATSUnreachable, err, "")}
	}
	verdict, kind := Retry, errNATSBusy
	switch code := api.ErrorCode; {
	case code == natsMessageTooLarge, code == natsHeaderTooLarge:
		verdict, kind = Reject, errNATSTooLarge
	case code == natsNotEnabled, code == natsNotForAccount, code == natsNoAccount:
		verdict, kind = Stop, errNATSNoJetStream
	case code == natsStreamNotFound:
		verdict, kind = Stop, errNATSNoStream
	case code == natsSealed:
		verdict, kind = Stop, errNATSSealed
	case code == natsAccountExceeded, api.Code == 409, api.Code == 429, api.Code >= 500:
	default:
		verdict, kind = Reject, errNATSRejected
	}
	return natsFate{verdict, s.foreign(kind, api, subject)}
}

// ask finds out why nobody takes a subject: there is no stream for it, or the one there
// is has no leader just now.
func (s *natsSink) ask(ctx context.Context, c *natsConn, subject string) natsFate {
	_, _, before := c.watch()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	stream, err := c.js.StreamNameBySubject(ctx, subject)
	_, _, denied := c.watch()
	switch {
	case err == nil:
		return natsFate{Retry, s.foreign(errNATSBusy, errors.New("stream "+stream+" does not answer"), subject)}
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return natsFate{Stop, s.foreign(errNATSNoStream, err, subject)}
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return natsFate{Stop, s.foreign(errNATSNoJetStream, err, subject)}
	case denied != nil && !errors.Is(denied, before):
		return natsFate{Stop, s.foreign(errNATSNoStream, errors.New("nobody answers, and the user may not ask JetStream for the stream"), subject)}
	}
	return natsFate{Retry, s.foreign(errNATSBusy, err, subject)}
}

// natsResult puts together what became of the events of a batch. What is to be repeated
// stands for the rest, unless something was rejected: that would mean that nobody has
// looked at the rest.
func natsResult(judged []natsFate) Result {
	var rest natsFate
	rejected := false
	for _, f := range judged {
		rejected = rejected || f.verdict == Reject
		if f.verdict == Stop && rest.verdict != Stop || f.verdict == Retry && rest.verdict == Done {
			rest = f
		}
	}
	if rest.verdict == Retry && rejected {
		rest = natsFate{}
	}
	res := Result{Verdict: rest.verdict, Err: rest.err}
	for i, f := range judged {
		if f.verdict != rest.verdict {
			res.Items = append(res.Items, Exception{Index: i, Verdict: f.verdict, Err: f.err})
		}
	}
	return res
}

// Probe implements [probe.Prober]: it connects, and with jetstream asks which stream
// takes the subjects. Whether the user may publish shows with the first delivery.
func (c NATSConfig) Probe(ctx context.Context) []probe.Finding {
	opened, err := openNATS(ctx, c, Deps{Destination: "doctor"})
	if err != nil {
		return []probe.Finding{probe.Error("open", c.URL, err)}
	}
	s, _ := opened.(*natsSink)
	defer s.Close() //nolint:errcheck // frees the connection
	var all []probe.Finding
	if c.TLS.CertFile != "" {
		all = append(all, probe.Certificate(c.TLS.CertFile, c.TLS.KeyFile))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, errNATSSlow)
	defer cancel()
	conn, err := s.connected(ctx)
	if err != nil {
		return append(all, probe.Error("connect", c.URL, s.broken(ctx, err).Err))
	}
	all = append(all, probe.Good("connect", c.URL, fmt.Sprintf("server %s, version %s, messages up to %d bytes", conn.ConnectedServerName(), conn.ConnectedServerVersion(), conn.MaxPayload())))
	if !c.JetStream {
		return all
	}
	filter := s.filter()
	if stream, err := conn.js.StreamNameBySubject(ctx, filter); err == nil {
		return append(all, probe.Good("stream", filter, "stream "+stream+" takes it"))
	}
	return append(all, probe.Error("stream", filter, s.ask(ctx, conn, filter).err))
}

// filter is a subject with wildcards that all subjects of events match.
func (s *natsSink) filter() string {
	words := strings.Split(s.cfg.Subject, ".")
	for i, word := range words {
		switch {
		case strings.Contains(word, "{type}"): // any number of words
			return strings.Join(append(words[:i], ">"), ".")
		case strings.Contains(word, "{"):
			words[i] = "*"
		}
	}
	return strings.Join(words, ".")
}
