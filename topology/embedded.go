package topology

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/crypto/bcrypt"

	"github.com/penstock/penstock/messages/fault"
)

var errEmbedded = fault.Define("bus.embedded_failed", fault.Stop,
	"check that the store directory is writable, on a disk with room, and that no other penstock uses it")

// EmbeddedOptions set up the server inside the process.
type EmbeddedOptions struct {
	// Dir holds the streams. Required.
	Dir string
	// Listen is the loopback address, host:port; port 0 takes a free one.
	Listen string
	// Disk bounds the bytes of all streams together.
	Disk int64
	// SyncInterval relaxes fsync: 0 means always, after every write.
	SyncInterval time.Duration
	Log          *slog.Logger
}

// Embedded is a NATS server with JetStream inside this process, with a password made anew
// at each start. The stages in this process reach it without the network, other commands
// over loopback TCP.
type Embedded struct {
	server   *server.Server
	password string
	lock     *os.File
	url      string
	stop     func()
}

const embeddedUser = "penstock"

// AccessFile is the file in the store directory that holds the URL, password
// included, readable by its owner alone: commands on this machine read it.
const AccessFile = "access.url"

// StartEmbedded starts the server and returns when it takes connections.
func StartEmbedded(o EmbeddedOptions) (*Embedded, error) {
	var secret [16]byte
	_, _ = rand.Read(secret[:]) // never fails (crypto/rand)
	return startWithPassword(o, hex.EncodeToString(secret[:]))
}

func startWithPassword(o EmbeddedOptions, password string) (*Embedded, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, errEmbedded.New(err, "make the store directory %s", o.Dir)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, errEmbedded.New(err, "lock the store directory %s", o.Dir)
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	addr, err := net.ResolveTCPAddr("tcp", o.Listen)
	if err != nil {
		_ = lock.Close()
		return nil, errEmbedded.New(err, "resolve the listen address %q", o.Listen)
	}
	port := addr.Port
	if port == 0 {
		port = server.RANDOM_PORT
	}
	e := &Embedded{password: password, lock: lock, stop: func() {}}
	// The server keeps only a hash; for a password of 128 random bits the least
	// cost is plenty.
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		_ = lock.Close()
		return nil, errEmbedded.New(err, "hash the password of the embedded NATS server")
	}
	opts := &server.Options{
		ServerName: "penstock-embedded", Host: addr.IP.String(), Port: port, DontListen: false,
		NoSigs: true, NoLog: false, MaxPayload: 8 << 20, MaxPending: 128 << 20,
		Username: embeddedUser, Password: string(hash),
		JetStream: true, StoreDir: o.Dir, JetStreamMaxStore: o.Disk + o.Disk/8 + 96<<20, // and the buckets
		JetStreamMaxMemory: 64 << 20,
		SyncAlways:         o.SyncInterval == 0, SyncInterval: o.SyncInterval,
		WriteDeadline: 30 * time.Second,
	}
	if opts.SyncInterval == 0 {
		opts.SyncInterval = 2 * time.Minute // what SyncAlways leaves: the index files
	}
	if e.server, err = server.NewServer(opts); err != nil {
		_ = lock.Close()
		return nil, errEmbedded.New(err, "set up the embedded NATS server")
	}
	logged := &serverLog{log: o.Log}
	e.server.SetLoggerV2(logged, false, false, false)
	e.server.Start()
	if !e.server.ReadyForConnections(2 * time.Minute) {
		e.server.Shutdown()
		_ = lock.Close()
		return nil, errEmbedded.New(logged.last(), "start the embedded NATS server on %s", o.Listen)
	}
	if !e.server.JetStreamEnabled() {
		e.server.Shutdown()
		_ = lock.Close()
		return nil, errEmbedded.New(logged.last(), "open the streams in %s", o.Dir)
	}
	e.url = fmt.Sprintf("nats://%s:%s@%s", embeddedUser, e.password, e.server.Addr())
	if err := os.WriteFile(filepath.Join(o.Dir, AccessFile), []byte(e.url+"\n"), 0o600); err != nil {
		e.Stop()
		return nil, errEmbedded.New(err, "write %s", AccessFile)
	}
	ctx, stop := context.WithCancel(context.Background())
	var forgetting sync.WaitGroup
	forgetting.Go(func() { forgetBlocks(ctx, e.server, o.Log) })
	e.stop = func() {
		stop()
		forgetting.Wait()
	}
	return e, nil
}

// Connect fills in how to reach this server.
func (e *Embedded) Connect(o Options) Options {
	o.URL, o.User, o.Password = "nats://"+e.server.Addr().String(), embeddedUser, e.password
	o.inside = inProcess{e.server}
	return o
}

// URL reaches this server, password included: for processes that are trusted
// with the streams.
func (e *Embedded) URL() string { return e.url }

// Stop ends the server. What it confirmed before is on disk.
func (e *Embedded) Stop() {
	e.stop()
	e.server.Shutdown()
	e.server.WaitForShutdown()
	_ = e.lock.Close()
}

// serverLog passes the server's words to slog. Its notices are about start-up
// and are of no use to somebody who did not start a server: Debug.
type serverLog struct {
	log   *slog.Logger
	error atomic.Pointer[string]
}

func (l *serverLog) Noticef(f string, v ...any) {
	l.log.Debug("embedded nats", "text", strings.TrimSpace(fmt.Sprintf(f, v...)))
}

func (l *serverLog) Debugf(string, ...any) {}
func (l *serverLog) Tracef(string, ...any) {}
func (l *serverLog) Warnf(f string, v ...any) {
	l.log.Warn("embedded nats", "text", strings.TrimSpace(fmt.Sprintf(f, v...)))
}

func (l *serverLog) Errorf(f string, v ...any) {
	s := strings.TrimSpace(fmt.Sprintf(f, v...))
	l.error.Store(&s)
	l.log.Error("embedded nats", "text", s)
}

func (l *serverLog) Fatalf(f string, v ...any) { l.Errorf(f, v...) }

func (l *serverLog) last() error {
	if s := l.error.Load(); s != nil {
		return errors.New(*s)
	}
	return errors.New("the server did not become ready")
}
