package topology

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
)

var (
	errConnect = fault.Define("bus.connect_failed", fault.Retry,
		"check that the NATS server runs at that address, that JetStream is on, and that the credentials are right")
	errRefused = fault.Define("bus.refused", fault.Stop,
		"check bus.user and bus.password, the token, the credentials file or the client's certificate against the server's users")
	errNotPermitted = fault.Define("bus.not_permitted", fault.Stop,
		"write the users anew with this version of penstock, and have the NATS servers read them: penstock topology users --dir …, nats-server --signal reload")
	errNoTopology = fault.Define("bus.no_topology", fault.Stop,
		"create the streams first: penstock topology apply")
)

// Options tell how to reach the bus.
type Options struct {
	// URL of the NATS servers, separated by commas.
	URL string
	// CredsFile, User, Password and Token authenticate; all may be empty.
	CredsFile, User, Password, Token string
	// InboxPrefix is what the subjects of answers begin with. Empty: that of the role
	// that User names, else the one that all NATS clients share.
	InboxPrefix string
	// CAFile, CertFile and KeyFile set up TLS; all may be empty.
	CAFile, CertFile, KeyFile string
	// Name is shown in the server's connection list and owns leases: unique
	// among running processes, best the same after a restart.
	Name string
	// PublishWindow bounds the bytes of messages that are published and not yet
	// confirmed; a larger message goes alone. Default 4 MiB.
	PublishWindow int64
	// AckWait is how long the bus waits for a sign of life before it delivers a
	// message again. Default 30 s.
	AckWait time.Duration
	// GiveUpAfter is how long a message that meets only retryable errors is
	// tried before it is quarantined. Default 6 h.
	GiveUpAfter time.Duration
	// Remembered is for how long the server surely knows a message id: somewhat
	// less than its duplicate window. Default 4 min.
	Remembered time.Duration
	// Own: the server is inside this process. It does not go away alone, so signs of
	// life need not come often, and nobody takes over from us while it lives.
	Own bool
	// Drain bounds the time for which a stop waits for work in hand. Default 10 s.
	Drain time.Duration
	// Log gets what the bus has to say. Default slog.Default().
	Log *slog.Logger
	// inside reaches the server in this process; nil where there is none.
	inside nats.InProcessConnProvider
}

// user is the name by which the server knows us, "" when there is none.
func (o *Options) user() string {
	if o.User == "" {
		if u, err := url.Parse(strings.Split(o.URL, ",")[0]); err == nil {
			return u.User.Username()
		}
	}
	return o.User
}

// Bus is a connection of one stage to the streams.
type Bus struct {
	options Options
	nc      *nats.Conn
	js      jetstream.JetStream
	window  *semaphore.Weighted
	log     *slog.Logger
	slow    *slowPublisher
	ledger  map[Stage]*ledgerWriter
	// allowed is what the server lets our user do; nil is all, or not known.
	allowed *Permissions
	// reconnects counts how often the connection came back: pulls that were under way
	// on the one before are answered no more.
	reconnects atomic.Uint64
	// conn ends when the connection has come back; then there is another. connMu guards
	// both.
	connMu  sync.Mutex
	conn    context.Context
	connEnd context.CancelFunc
	acks    acks
	// life ends when the bus is closed.
	life context.Context
	end  context.CancelFunc

	committersMu sync.Mutex
	committers   map[string]*committer

	bucketsMu sync.Mutex
	buckets   map[string]jetstream.KeyValue
	budgets   map[string]*Budget
}

// Connect opens a connection and waits until it is up or ctx ends. Afterwards it
// reconnects by itself for as long as it lives.
func Connect(ctx context.Context, o Options) (*Bus, error) {
	if o.PublishWindow == 0 {
		o.PublishWindow = 4 << 20
	}
	if o.AckWait == 0 {
		o.AckWait = 30 * time.Second
	}
	if o.GiveUpAfter == 0 {
		o.GiveUpAfter = 6 * time.Hour
	}
	if o.Remembered == 0 {
		o.Remembered = 4 * time.Minute
	}
	if o.Drain == 0 {
		o.Drain = 10 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Name == "" {
		host, _ := os.Hostname()
		o.Name = fmt.Sprintf("penstock-%s-%d", host, os.Getpid())
	}
	b := &Bus{options: o, log: o.Log, window: semaphore.NewWeighted(o.PublishWindow), ledger: map[Stage]*ledgerWriter{}, committers: map[string]*committer{}}
	b.life, b.end = context.WithCancel(context.Background())
	b.conn, b.connEnd = context.WithCancel(context.Background())
	opts := []nats.Option{
		nats.Name(o.Name), nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond), nats.ReconnectJitter(250*time.Millisecond, time.Second),
		// Who is refused tries on, too: users may be written anew just now. Else the connection
		// would be closed for good, and its stage stand still in a process that lives on.
		nats.IgnoreAuthErrorAbort(),
		// A connection that died without a word is noticed after 10 to 15 seconds.
		nats.Timeout(5 * time.Second), nats.PingInterval(pingInterval(o.Own)), nats.MaxPingsOutstanding(2),
		// A subscription that is read by hand makes room for so many messages, 8 bytes each,
		// when it is made; pulls ask for far fewer.
		nats.SyncQueueLen(8192),
		// What was published while there is no connection is retried by us, with
		// its message id; a client-side buffer would only delay the news.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				b.log.Warn("bus connection lost, reconnecting", "err", err)
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) {
			b.reconnects.Add(1)
			b.connMu.Lock()
			b.connEnd()
			b.conn, b.connEnd = context.WithCancel(context.Background())
			b.connMu.Unlock()
			b.log.Info("bus connection is back", "server", c.ConnectedServerName())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			subject, messages, bytes := "", 0, 0
			if s != nil {
				subject = s.Subject
				messages, bytes, _ = s.Pending()
			}
			if errors.Is(err, nats.ErrPermissionViolation) {
				b.refusal(err)
				return
			}
			b.log.Error("bus reports an error", "subject", subject, "pending_messages", messages, "pending_bytes", bytes, "err", err)
		}),
	}
	if role := roleOf(o.user()); o.InboxPrefix == "" && role != "" {
		o.InboxPrefix = role.Inbox()
	}
	if o.InboxPrefix != "" {
		opts = append(opts, nats.CustomInboxPrefix(o.InboxPrefix))
	}
	if o.User != "" {
		opts = append(opts, nats.UserInfo(o.User, o.Password))
	}
	if o.Token != "" {
		opts = append(opts, nats.Token(o.Token))
	}
	if o.CredsFile != "" {
		opts = append(opts, nats.UserCredentials(o.CredsFile))
	}
	if o.CAFile != "" {
		opts = append(opts, nats.RootCAs(o.CAFile))
	}
	if o.CertFile != "" {
		opts = append(opts, nats.ClientCert(o.CertFile, o.KeyFile))
	}
	if o.inside != nil {
		opts = append(opts, nats.InProcessServer(o.inside))
	}
	began, told := time.Now(), false
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 3*time.Second) {
		nc, err := nats.Connect(o.URL, opts...)
		err = withoutURL(err)
		if err == nil {
			b.nc = nc
			break
		}
		if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrInvalidConnection) {
			return nil, errRefused.New(err, "connect to the bus at %s", redactURL(o.URL))
		}
		if !told && time.Since(began) > 5*time.Second {
			told = true
			b.log.Warn("the bus does not answer yet, trying on", "url", redactURL(o.URL), "err", err)
		}
		select {
		case <-ctx.Done():
			return nil, errConnect.New(fmt.Errorf("%w; %w", err, context.Cause(ctx)), "connect to the bus at %s", redactURL(o.URL))
		case <-time.After(wait):
		}
	}
	var err error
	if b.js, err = jetstream.New(b.nc); err != nil {
		b.nc.Close()
		return nil, errConnect.New(err, "open JetStream")
	}
	if b.slow, err = newSlowPublisher(b); err != nil {
		b.nc.Close()
		return nil, errConnect.New(err, "open the publisher of quarantine and ledger")
	}
	for _, s := range Stages {
		b.ledger[s] = newLedgerWriter(b, s)
	}
	b.learn(ctx)
	if !o.Own { // that has no other to turn to
		go b.attend()
	}
	return b, nil
}

// pingInterval is how often the connection is tried.
func pingInterval(own bool) time.Duration {
	if own {
		return time.Minute
	}
	return 5 * time.Second
}

// listen returns a context that ends with ctx, after a while, and when the connection has
// come back since it was that of epoch: what waits for an answer on the one before gets none.
func (b *Bus) listen(ctx context.Context, while time.Duration, epoch uint64) (context.Context, context.CancelFunc) {
	wait, cancel := context.WithTimeout(ctx, while)
	b.connMu.Lock()
	conn := b.conn
	b.connMu.Unlock()
	stop := context.AfterFunc(conn, cancel)
	if b.reconnects.Load() != epoch {
		cancel()
	}
	return wait, func() {
		stop()
		cancel()
	}
}

// learn asks the server what our user may do. Who gets no answer tries, and sees.
func (b *Bus) learn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := b.nc.RequestWithContext(ctx, "$SYS.REQ.USER.INFO", nil)
	if err != nil {
		return
	}
	type list struct {
		Allow []string `json:"allow"`
		Deny  []string `json:"deny"`
	}
	var info struct {
		Data struct {
			Permissions *struct {
				Publish list `json:"publish"`
			} `json:"permissions"`
		} `json:"data"`
	}
	if json.Unmarshal(m.Data, &info) != nil || info.Data.Permissions == nil {
		return
	}
	p := info.Data.Permissions.Publish
	if len(p.Allow)+len(p.Deny) == 0 {
		return
	}
	if len(p.Allow) == 0 {
		p.Allow = []string{">"}
	}
	b.allowed = &Permissions{Publish: p.Allow, Deny: p.Deny}
}

// may tells whether our user may publish to a subject.
func (b *Bus) may(subject string) bool { return b.allowed == nil || b.allowed.May(subject) }

// MayApply tells whether our user may create the streams.
func (b *Bus) MayApply() bool {
	for _, s := range Flow {
		if !b.may("$JS.API.STREAM.CREATE." + s.Name) {
			return false
		}
	}
	return true
}

// bucketsReady returns nil when the buckets and consumers are there that our user may look
// at, and not make.
func (b *Bus) bucketsReady(ctx context.Context) error {
	for _, kv := range buckets {
		if !b.may("$JS.API.STREAM.INFO.KV_" + kv.name) {
			continue
		}
		if _, err := b.bucket(ctx, kv.name); err != nil {
			return errNoTopology.New(err, "look up the bucket %s", kv.name)
		}
	}
	for _, c := range fixed { // made last, for those who may not make them
		at := c.Stream + "." + c.Durable
		if !b.may("$JS.API.CONSUMER.MSG.NEXT."+at) || b.may("$JS.API.CONSUMER.CREATE."+at) {
			continue
		}
		if _, err := b.js.Consumer(ctx, c.Stream, c.Durable); err != nil {
			return errNoTopology.New(err, "look up consumer %s", c.Durable)
		}
	}
	return nil
}

// AwaitStreams waits until somebody else has created the streams, or ctx ends.
func (b *Bus) AwaitStreams(ctx context.Context) error {
	for wait, told := 100*time.Millisecond, false; ; wait = min(2*wait, 2*time.Second) {
		err := errors.Join(b.Ready(ctx), b.bucketsReady(ctx))
		if err == nil {
			if told {
				b.log.Info("the streams are there")
			}
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		if !told {
			told = true
			b.log.Warn("the streams are not there yet, and this user may not create them: waiting until the user admin does: penstock topology apply", "err", err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// refusal says who may not do what, and how to mend it.
func (b *Bus) refusal(err error) {
	user := cmp.Or(b.options.user(), "of this connection")
	b.log.Error("the NATS user may not do what penstock needs", "user", user, "code", errNotPermitted.Code, "err", errNotPermitted.New(err, "use the bus as user %s", user))
}

// redactURL hides what may be a password in the user part of a server URL.
func redactURL(urls string) string {
	parts := strings.Split(urls, ",")
	for i, u := range parts {
		if at := strings.LastIndex(u, "@"); at >= 0 {
			scheme, _, found := strings.Cut(u, "://")
			if found {
				scheme += "://"
			} else {
				scheme = "" // all before the @ may be a token
			}
			parts[i] = scheme + "[redacted]@" + u[at+1:]
		}
	}
	return strings.Join(parts, ",")
}

// withoutURL is what is wrong with a URL without the URL, which may hold a password.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// MaxPayload is the largest message that the server takes, in bytes.
func (b *Bus) MaxPayload() int64 { return min(b.nc.MaxPayload(), messages.MaxFrame) }

// Ready returns nil when the server answers and the streams are there, as far as our user
// may look.
func (b *Bus) Ready(ctx context.Context) error {
	for _, s := range Flow {
		if !b.may("$JS.API.STREAM.INFO." + s.Name) {
			continue // none of our business
		}
		if _, err := b.js.Stream(ctx, s.Name); err != nil {
			if errors.Is(err, jetstream.ErrStreamNotFound) {
				return errNoTopology.New(err, "look up stream %s", s.Name)
			}
			return errConnect.New(err, "look up stream %s", s.Name)
		}
	}
	return nil
}

// Close ends the connection. Whatever still runs on it fails.
func (b *Bus) Close() {
	for _, w := range b.ledger {
		w.close()
	}
	b.end()
	b.nc.Close()
}

// watermillLog passes Watermill's words on, one level lower: its Info is our Debug.
func (b *Bus) watermillLog() watermill.LoggerAdapter {
	return watermillLog{watermill.NewSlogLoggerWithLevelMapping(b.log, map[slog.Level]slog.Level{slog.LevelInfo: slog.LevelDebug}), b.log}
}

// watermillLog leaves out what nobody wants to read before it is put together: Watermill
// has two lines to say about each message.
type watermillLog struct {
	watermill.LoggerAdapter
	log *slog.Logger
}

// Trace implements watermill.LoggerAdapter.
func (l watermillLog) Trace(msg string, fields watermill.LogFields) {
	if l.log.Enabled(context.Background(), watermill.LevelTrace) {
		l.LoggerAdapter.Trace(msg, fields)
	}
}

// With implements watermill.LoggerAdapter.
func (l watermillLog) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return watermillLog{l.LoggerAdapter.With(fields), l.log}
}
