package topology

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
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
	errNoTopology = fault.Define("bus.no_topology", fault.Stop,
		"create the streams first: penstock topology apply")
)

// Options tell how to reach the bus.
type Options struct {
	// URL of the NATS servers, separated by commas.
	URL string
	// CredsFile, User, Password and Token authenticate; all may be empty.
	CredsFile, User, Password, Token string
	// CAFile, CertFile and KeyFile set up TLS; all may be empty.
	CAFile, CertFile, KeyFile string
	// Name is shown in the server's connection list and owns leases: unique
	// among running processes, best the same after a restart.
	Name string
	// PublishWindow bounds the bytes of messages that are published and not yet
	// confirmed. Default 8 MiB.
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
	// Drain bounds the time for which a stop waits for work in hand. Default 10 s.
	Drain time.Duration
	// Log gets what the bus has to say. Default slog.Default().
	Log *slog.Logger
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
		o.PublishWindow = 8 << 20
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
	opts := []nats.Option{
		nats.Name(o.Name), nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond), nats.ReconnectJitter(250*time.Millisecond, time.Second),
		nats.Timeout(5 * time.Second), nats.PingInterval(10 * time.Second), nats.MaxPingsOutstanding(3),
		// What was published while there is no connection is retried by us, with
		// its message id; a client-side buffer would only delay the news.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				b.log.Warn("bus connection lost, reconnecting", "err", err)
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) { b.log.Info("bus connection is back", "server", c.ConnectedServerName()) }),
		nats.ErrorHandler(func(_ *nats.Conn, s *nats.Subscription, err error) {
			subject, messages, bytes := "", 0, 0
			if s != nil {
				subject = s.Subject
				messages, bytes, _ = s.Pending()
			}
			b.log.Error("bus reports an error", "subject", subject, "pending_messages", messages, "pending_bytes", bytes, "err", err)
		}),
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
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 3*time.Second) {
		nc, err := nats.Connect(o.URL, opts...)
		if err == nil {
			b.nc = nc
			break
		}
		if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrInvalidConnection) {
			return nil, errConnect.New(err, "connect to the bus at %s", redactURL(o.URL))
		}
		select {
		case <-ctx.Done():
			return nil, errConnect.New(errors.Join(err, context.Cause(ctx)), "connect to the bus at %s", redactURL(o.URL))
		case <-time.After(wait):
		}
	}
	var err error
	if b.js, err = jetstream.New(b.nc, jetstream.WithPublishAsyncMaxPending(4096), jetstream.WithPublishAsyncTimeout(20*time.Second)); err != nil {
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
	return b, nil
}

// redactURL hides what may be a password in the user part of a server URL.
func redactURL(urls string) string {
	parts := strings.Split(urls, ",")
	for i, u := range parts {
		if at := strings.LastIndex(u, "@"); at >= 0 {
			scheme, _, _ := strings.Cut(u, "://")
			parts[i] = scheme + "://[redacted]@" + u[at+1:]
		}
	}
	return strings.Join(parts, ",")
}

// MaxPayload is the largest message that the server takes, in bytes.
func (b *Bus) MaxPayload() int64 { return min(b.nc.MaxPayload(), messages.MaxFrame) }

// Ready returns nil when the server answers and the streams are there.
func (b *Bus) Ready(ctx context.Context) error {
	for _, s := range Flow {
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
	return watermill.NewSlogLoggerWithLevelMapping(b.log, map[slog.Level]slog.Level{slog.LevelInfo: slog.LevelDebug})
}
