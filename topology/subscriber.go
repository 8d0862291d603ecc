package topology

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/messages/fault"
)

var errSubscribe = fault.Define("bus.subscribe_failed", fault.Retry,
	"check that the stream and its consumer exist: penstock topology diff")

const (
	// pullExpiry and pullHeartbeat make a lost pull show within seconds.
	pullExpiry    = 5 * time.Second
	pullHeartbeat = time.Second
	// pullBytes bounds one pull. It must hold the largest message; together
	// pulls stay far below the client's buffer of 64 MiB, beyond which it would
	// drop messages.
	pullBytes = 8<<20 + 64<<10
	// Within one process no pull gets lost, so an idle one wakes nobody.
	ownPullExpiry    = time.Minute
	ownPullHeartbeat = 25 * time.Second
)

// pullPace is for how long a pull waits, and how often the server says that it still does.
func (b *Bus) pullPace() (expiry, heartbeat time.Duration) {
	if b.options.Own {
		return ownPullExpiry, ownPullHeartbeat
	}
	return pullExpiry, pullHeartbeat
}

// pullRequest asks a consumer for messages. Source: NATS ADR-37.
type pullRequest struct {
	Batch     int           `json:"batch"`
	MaxBytes  int           `json:"max_bytes"`
	Expires   time.Duration `json:"expires"`
	Heartbeat time.Duration `json:"idle_heartbeat"`
}

// subscriber is the Watermill subscriber for frames: it pulls from a durable
// consumer, keeps at most a window of messages in hand, shows the server signs
// of life for each while it is worked on, and sends acks without waiting. The
// stock subscribers hand out one message at a time.
//
// Messages get a context of their own, which a stop does not end: work in hand
// is finished. abandon ends it when the time for that is over.
type subscriber struct {
	bus *Bus
	c   Consumer
	sub *nats.Subscription
	// inbox is the prefix of pull replies; each pull has its own last token.
	inbox   string
	work    context.Context
	abandon context.CancelFunc
	// open ends when the subscriber is closed.
	open  context.Context
	close context.CancelFunc

	mu       sync.Mutex
	stopped  bool
	inHand   map[*delivery]struct{}
	bytes    int64
	pulls    []*pull
	nextPull int
	heard    time.Time // when the server last said anything about a pull
	epoch    uint64    // of the connection on which the pulls were sent
	settled  sync.WaitGroup
}

// pull is a request under way: how many messages it may still bring.
type pull struct {
	id   string
	left int
}

// delivery is a message in hand.
type delivery struct {
	meta  metadata
	size  int64
	reply string
	delay time.Duration // before the next attempt, when it is not acked
}

type deliveryKey struct{}

// metadata is what the reply subject of a delivered message tells.
type metadata struct {
	stream, consumer      string
	delivered, seq, queue uint64
	pending               uint64
	stored                time.Time
}

func newSubscriber(b *Bus, c Consumer) *subscriber {
	s := &subscriber{bus: b, c: c, inHand: map[*delivery]struct{}{}}
	s.work, s.abandon = context.WithCancel(context.Background())
	s.open, s.close = context.WithCancel(context.Background())
	return s
}

// Subscribe implements message.Subscriber. The consumer was fixed when the
// subscriber was made, so topic only names it in Watermill's logs.
func (s *subscriber) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	s.inbox = s.bus.nc.NewInbox()
	sub, err := s.bus.nc.SubscribeSync(s.inbox + ".*")
	if err != nil {
		return nil, errSubscribe.New(err, "subscribe to pulls of consumer %s", s.c.Durable)
	}
	if err := sub.SetPendingLimits(-1, 64<<20); err != nil {
		return nil, errSubscribe.New(err, "bound the buffer of consumer %s", s.c.Durable)
	}
	s.sub, s.heard, s.epoch = sub, time.Now(), s.bus.reconnects.Load()
	out := make(chan *message.Message)
	s.settled.Go(func() { s.receive(ctx, out) })
	s.settled.Go(func() { s.keepAlive(ctx) })
	s.pull()
	return out, nil
}

// Close implements message.Subscriber: it stops taking messages. Those in hand
// are finished; wait for them with settle.
func (s *subscriber) Close() error {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.close()
	return nil
}

// settle waits until all goroutines of the subscription have ended.
func (s *subscriber) settle() { s.settled.Wait() }

// receive turns messages from the server into Watermill messages until the
// subscription ends, and gives back what it can no longer hand out.
func (s *subscriber) receive(ctx context.Context, out chan<- *message.Message) {
	defer close(out)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(s.open, cancel) //nolint:contextcheck // the subscriber has a life of its own
	defer stop()
	defer func() { _ = s.sub.Unsubscribe() }()
	next, ignore := s.listen(ctx)
	defer func() { ignore() }()
	for {
		if next.Err() != nil {
			ignore()
			next, ignore = s.listen(ctx) //nolint:fatcontext // of ctx each time, not of the one before
		}
		msg, err := s.sub.NextMsgWithContext(next)
		s.mu.Lock()
		done := s.stopped || ctx.Err() != nil
		s.mu.Unlock()
		if done {
			s.giveBack(msg)
			return
		}
		switch {
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
			s.checkPulls()
			continue
		case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrBadSubscription):
			return
		case err != nil:
			s.bus.log.Warn("bus subscription reports an error", "consumer", s.c.Durable, "err", err)
			continue
		}
		if status := msg.Header.Get("Status"); status != "" && len(msg.Data) == 0 {
			s.status(ctx, msg, status)
			continue
		}
		d, err := s.accept(msg)
		if err != nil {
			s.bus.log.Error("bus delivered a message without metadata", "consumer", s.c.Durable, "err", err)
			continue
		}
		wm := s.wrap(msg, d)
		select {
		case out <- wm:
		case <-ctx.Done():
			wm.Nack()
			s.giveBack(nil)
			return
		}
	}
}

// listen returns a context for the messages of the next while: one for each message would
// cost more than the message.
func (s *subscriber) listen(ctx context.Context) (context.Context, context.CancelFunc) {
	_, heartbeat := s.bus.pullPace()
	s.mu.Lock()
	epoch := s.epoch
	s.mu.Unlock()
	return s.bus.listen(ctx, heartbeat, epoch)
}

// giveBack returns msg and all that the server has sent to this subscription and
// nobody got, so that another replica gets it now and not after the ack wait. It
// ends the subscription in a way that loses nothing of what is under way.
func (s *subscriber) giveBack(msg *nats.Msg) {
	if err := s.sub.Drain(); err != nil {
		return // no connection: the ack wait does it
	}
	deadline := time.Now().Add(2 * time.Second)
	for {
		if msg != nil && msg.Header.Get("Status") == "" && msg.Reply != "" {
			_ = s.bus.nc.Publish(msg.Reply, []byte("-NAK"))
		}
		var err error
		msg, err = s.sub.NextMsg(100 * time.Millisecond)
		if err != nil && (!errors.Is(err, nats.ErrTimeout) || !s.sub.IsValid() || time.Now().After(deadline)) {
			return
		}
	}
}

func (s *subscriber) accept(msg *nats.Msg) (*delivery, error) {
	meta, err := parseReply(msg.Reply)
	if err != nil {
		return nil, err
	}
	d := &delivery{meta: meta, reply: msg.Reply, size: int64(len(msg.Data))}
	s.mu.Lock()
	s.heard = time.Now()
	if len(s.pulls) > 0 {
		if s.pulls[0].left--; s.pulls[0].left <= 0 {
			s.pulls = s.pulls[1:]
		}
	}
	s.inHand[d] = struct{}{}
	s.bytes += d.size
	s.mu.Unlock()
	s.pull()
	return d, nil
}

// wrap makes the Watermill message and settles with the server once Watermill
// has acked or nacked it.
func (s *subscriber) wrap(msg *nats.Msg, d *delivery) *message.Message {
	id := msg.Header.Get(headerUUID)
	ctx := extractTrace(context.WithValue(s.work, deliveryKey{}, d), msg.Header)
	wm := message.NewMessageWithContext(ctx, id, msg.Data)
	for k, v := range msg.Header {
		if k != headerUUID && len(v) > 0 { // of a header with several values the first, as HTTP does
			wm.Metadata[k] = v[0]
		}
	}
	wm.Metadata[metaSubject] = msg.Subject
	s.settled.Go(func() {
		answer := []byte("+ACK")
		select {
		case <-wm.Acked():
		case <-wm.Nacked():
			answer = []byte("-NAK")
			if d.delay > 0 {
				answer = fmt.Appendf(nil, `-NAK {"delay": %d}`, d.delay.Nanoseconds())
			}
		}
		// Not confirmed: a lost ack costs a redelivery, which every stage stands.
		_ = s.bus.nc.Publish(d.reply, answer)
		s.mu.Lock()
		delete(s.inHand, d)
		s.bytes -= d.size
		s.mu.Unlock()
		s.pull()
	})
	return wm
}

const metaSubject = "penstock_subject"

// pull asks for as many messages as the window has room for, when that is half
// of it or nothing is under way: few requests, and no gap between them.
func (s *subscriber) pull() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || s.bytes >= s.c.WindowBytes && len(s.inHand) > 0 {
		return
	}
	asked := 0
	for _, p := range s.pulls {
		asked += p.left
	}
	room := s.c.Window - len(s.inHand) - asked
	if room <= 0 || asked > 0 && room < (s.c.Window+1)/2 || len(s.pulls) >= 2 {
		return
	}
	s.nextPull++
	p := &pull{id: strconv.Itoa(s.nextPull), left: room}
	expiry, heartbeat := s.bus.pullPace()
	request, _ := json.Marshal(pullRequest{room, pullBytes, expiry, heartbeat}) // cannot fail
	if err := s.bus.nc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+s.c.Stream+"."+s.c.Durable, s.inbox+"."+p.id, request); err != nil {
		return // no connection: checkPulls asks again
	}
	s.pulls = append(s.pulls, p)
}

// status handles what the server says about a pull.
func (s *subscriber) status(ctx context.Context, msg *nats.Msg, status string) {
	id := msg.Subject[strings.LastIndexByte(msg.Subject, '.')+1:]
	s.mu.Lock()
	s.heard = time.Now()
	if status == "100" { // idle heartbeat
		s.mu.Unlock()
		return
	}
	for i, p := range s.pulls {
		if p.id == id {
			s.pulls = append(s.pulls[:i:i], s.pulls[i+1:]...)
			break
		}
	}
	s.mu.Unlock()
	switch description := msg.Header.Get("Description"); {
	case status == "408", status == "409" && (strings.Contains(description, "Completed") || strings.Contains(description, "MaxBytes")):
	case status == "409" && strings.Contains(description, "Deleted"), status == "503", status == "404":
		if err := s.bus.ensureConsumer(ctx, s.c); err != nil && ctx.Err() == nil {
			s.bus.log.Warn("consumer is not to be had, trying on", "consumer", s.c.Durable, "status", status, "err", err)
		}
		s.pause(ctx)
	default:
		s.bus.log.Debug("pull ended", "consumer", s.c.Durable, "status", status, "description", description)
		s.pause(ctx)
	}
	s.pull()
}

func (s *subscriber) pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(100*time.Millisecond + rand.N(200*time.Millisecond)): //nolint:gosec // jitter
	}
}

// checkPulls forgets pulls of an earlier connection and those of which nothing was
// heard for three heartbeats (a server went away with them), and asks anew.
func (s *subscriber) checkPulls() {
	s.mu.Lock()
	epoch := s.bus.reconnects.Load()
	_, heartbeat := s.bus.pullPace()
	if len(s.pulls) > 0 && (time.Since(s.heard) > 3*heartbeat || s.epoch != epoch) {
		s.pulls = nil
	}
	s.epoch = epoch
	s.mu.Unlock()
	s.pull()
}

// keepAlive tells the server three times an ack wait that messages in hand are
// worked on. It goes on after ctx has ended, until nothing is in hand.
func (s *subscriber) keepAlive(ctx context.Context) {
	tick := time.NewTicker(s.bus.options.AckWait / 3)
	defer tick.Stop()
	stopping := ctx.Done()
	for {
		select {
		case <-tick.C:
		case <-stopping:
			stopping = nil
			tick.Reset(min(100*time.Millisecond, s.bus.options.AckWait/3))
		}
		s.mu.Lock()
		for d := range s.inHand {
			_ = s.bus.nc.Publish(d.reply, []byte("+WPI"))
		}
		idle := len(s.inHand) == 0
		s.mu.Unlock()
		if idle && ctx.Err() != nil {
			return
		}
	}
}

// parseReply reads the metadata in the reply subject of a JetStream message.
// Source: NATS ADR-15, both forms:
// $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<ns>.<pending>
// $JS.ACK.<domain>.<account>.<stream>.…  .<pending>[.<token>]
func parseReply(reply string) (metadata, error) {
	var room [12]string
	t := room[:0]
	for part := range strings.SplitSeq(reply, ".") {
		t = append(t, part)
	}
	if len(t) < 9 || t[0] != "$JS" || t[1] != "ACK" {
		return metadata{}, fmt.Errorf("reply subject %q is none of JetStream's", reply)
	}
	t = t[2:]
	if len(t) > 7 {
		t = t[2:]
	}
	if len(t) < 7 {
		return metadata{}, fmt.Errorf("reply subject %q is none of JetStream's", reply)
	}
	m := metadata{stream: t[0], consumer: t[1]}
	var ns uint64
	for i, to := range []*uint64{&m.delivered, &m.seq, &m.queue, &ns, &m.pending} {
		n, err := strconv.ParseUint(t[2+i], 10, 64)
		if err != nil {
			return metadata{}, fmt.Errorf("reply subject %q: %w", reply, err)
		}
		*to = n
	}
	m.stored = time.Unix(0, int64(ns))
	return m, nil
}

// ensureConsumer creates the durable consumer, or brings it up to date. Where it
// begins to read was settled when it was made.
func (b *Bus) ensureConsumer(ctx context.Context, c Consumer) error {
	_, err := b.Begin(ctx, c)
	return err
}

// Begin makes sure of the durable consumer and returns the first sequence of the
// stream that it reads.
func (b *Bus) Begin(ctx context.Context, c Consumer) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cfg := b.consumerConfig(c)
	existing, lookErr := b.js.Consumer(ctx, c.Stream, c.Durable)
	switch {
	case lookErr == nil:
		old := existing.CachedInfo().Config
		cfg.DeliverPolicy, cfg.OptStartSeq = old.DeliverPolicy, old.OptStartSeq
	case errors.Is(lookErr, jetstream.ErrStreamNotFound):
		return 0, errNoTopology.New(lookErr, "create consumer %s", c.Durable)
	default:
		first, err := b.startSequence(ctx, c)
		if err != nil {
			return 0, err
		}
		if first > 1 {
			cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, first
		}
	}
	var err error
	if create := "$JS.API.CONSUMER.CREATE." + c.Stream + "." + c.Durable; b.may(create) {
		_, err = b.js.CreateOrUpdateConsumer(ctx, c.Stream, cfg)
	} else {
		err = errNotPermitted.New(nil, "publish to %s", create)
	}
	if err != nil && lookErr != nil {
		// Another replica may have made it a moment ago.
		if existing, againErr := b.js.Consumer(ctx, c.Stream, c.Durable); againErr == nil {
			return max(1, existing.CachedInfo().Config.OptStartSeq), nil
		}
		return 0, errSubscribe.New(errors.Join(err, lookErr), "create consumer %s", c.Durable)
	}
	if lookErr != nil {
		b.log.Info("consumer begins", "consumer", c.Durable, "first", max(1, cfg.OptStartSeq))
	}
	// A stage may be forbidden to change consumers, but then it must be as wanted.
	if err != nil && !slices.Equal(existing.CachedInfo().Config.FilterSubjects, cfg.FilterSubjects) {
		return 0, errSubscribe.New(err, "change what consumer %s reads", c.Durable)
	}
	return max(1, cfg.OptStartSeq), nil
}

// startSequence is the first sequence that a consumer reads which is made now.
func (b *Bus) startSequence(ctx context.Context, c Consumer) (uint64, error) {
	h := b.History(c.Stream, nil)
	first, next, err := h.Bounds(ctx)
	switch {
	case err != nil:
		return 0, err
	case c.Start.Sequence > 0:
		return max(first, c.Start.Sequence), nil
	case !c.Start.Now && c.Start.Time.IsZero():
		return first, nil
	}
	if !c.Start.Now {
		if at, ok, err := h.Since(ctx, c.Start.Time); err != nil || ok {
			return at, err
		}
	}
	return next, nil
}

func (b *Bus) consumerConfig(c Consumer) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:     c.Durable,
		Description: "penstock " + string(c.Stage),
		AckPolicy:   jetstream.AckExplicitPolicy,
		AckWait:     b.options.AckWait,
		// We decide ourselves when to give up, so that the reason is kept.
		MaxDeliver:     -1,
		MaxAckPending:  max(1024, 4*c.Window), // of all copies together
		FilterSubjects: c.Filters,
		DeliverPolicy:  jetstream.DeliverAllPolicy,
		ReplayPolicy:   jetstream.ReplayInstantPolicy,
		MaxWaiting:     512,
	}
}
