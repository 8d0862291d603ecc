package topology

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// orderedReader reads a subject in order, from a sequence on, without acks. It
// makes a consumer in the server's memory, and a new one at the right place
// whenever that one is lost or a message is missing.
//
// nats.go has such a reader, whose buffer counts messages, heartbeats among them:
// while a lane waits for its output to be stored it overflows, drops messages and
// begins anew, dozens of times a second.
type orderedReader struct {
	bus     *Bus
	subject string
	// filters are what of its stream is read, instead of the subject alone.
	filters []string
	// next is the lowest sequence that has not been read; while it is 0, from is
	// when to begin, and the zero time is the first message kept.
	next uint64
	from time.Time
	// headersOnly leaves the data out.
	headersOnly bool
	// pause is after how long Next returns errIdle. Default [pullHeartbeat].
	pause time.Duration
	// batch is how many messages one pull asks for; 0 is readBatch.
	batch int
	// pending is how many messages there were when the consumer was made.
	pending uint64
	// opened (may be nil) is told that number once, before the first message.
	opened func(pending uint64)

	consumer string // "" when it has to be made
	sub      *nats.Subscription
	inbox    string // of pull replies; each pull has its own last token
	pulls    int
	left     int    // messages that the pull under way may still bring
	queue    uint64 // consumer sequence of the last message
	heard    time.Time
	epoch    uint64 // of the connection on which the consumer was made
}

// readBatch is how many messages one pull asks for.
const readBatch = 16

var errIdle = errors.New("nothing to read yet")

// Next returns the next message, or errIdle when none comes for a while or ctx ends.
func (r *orderedReader) Next(ctx context.Context) (*nats.Msg, metadata, error) {
	wait, cancel := ctx, context.CancelFunc(nil)
	defer func() {
		if cancel != nil {
			cancel()
		}
	}()
	for {
		if cancel == nil && !r.ready() {
			epoch := r.epoch
			if r.consumer == "" {
				epoch = r.bus.reconnects.Load()
			}
			wait, cancel = r.bus.listen(ctx, cmp.Or(r.pause, pullHeartbeat), epoch) //nolint:fatcontext // of ctx, once
		}
		if r.consumer == "" {
			if err := r.open(wait); err != nil {
				if wait.Err() != nil {
					err = errIdle
				}
				return nil, metadata{}, err
			}
		}
		if r.left == 0 {
			if err := r.pull(); err != nil {
				return nil, metadata{}, err
			}
		}
		msg, err := r.sub.NextMsgWithContext(wait)
		switch {
		case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrBadSubscription):
			return nil, metadata{}, errRead.New(err, "read %s", r.subject)
		case err != nil:
			if _, heartbeat := r.bus.pullPace(); time.Since(r.heard) > 3*heartbeat || r.epoch != r.bus.reconnects.Load() {
				r.Close() // a server went away with our consumer, or with our pull
			}
			return nil, metadata{}, errIdle
		}
		r.heard = time.Now()
		if status := msg.Header.Get("Status"); status != "" && len(msg.Data) == 0 {
			if status == "100" {
				continue
			}
			// A pull says that it is over also when it has brought all: of one before
			// the one under way that means nothing.
			if msg.Subject == r.reply() {
				r.left = 0
			}
			if d := msg.Header.Get("Description"); status == "404" || status == "503" || strings.Contains(d, "Deleted") {
				r.Close()
				return nil, metadata{}, errIdle
			}
			continue
		}
		meta, err := parseReply(msg.Reply)
		if err != nil {
			return nil, metadata{}, errRead.New(err, "read %s", r.subject)
		}
		if meta.queue != r.queue+1 {
			r.Close() // one is missing: begin anew behind the last
			continue
		}
		r.queue, r.next = meta.queue, meta.seq+1
		if r.left > 0 {
			r.left--
		}
		return msg, meta, nil
	}
}

// ready tells whether a message is there that need not be waited for.
func (r *orderedReader) ready() bool {
	if r.consumer == "" {
		return false
	}
	n, _, err := r.sub.Pending()
	return err == nil && n > 0
}

func (r *orderedReader) open(ctx context.Context) error {
	stream, epoch := streamOf(r.subject), r.bus.reconnects.Load()
	cfg := jetstream.ConsumerConfig{
		Name: readerName(), Description: "penstock: reads " + r.subject, AckPolicy: jetstream.AckNonePolicy, FilterSubject: r.subject,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(1, r.next),
		InactiveThreshold: 30 * time.Second, MemoryStorage: true, Replicas: 1, MaxDeliver: 1, HeadersOnly: r.headersOnly,
	}
	if len(r.filters) > 0 {
		cfg.FilterSubject, cfg.FilterSubjects = "", r.filters
	}
	if r.next == 0 && !r.from.IsZero() {
		cfg.DeliverPolicy, cfg.OptStartSeq, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, 0, &r.from
	}
	c, err := r.bus.js.CreateConsumer(ctx, stream, cfg)
	if err != nil {
		return errRead.New(err, "read %s", r.subject)
	}
	inbox := r.bus.nc.NewInbox()
	sub, err := r.bus.nc.SubscribeSync(inbox + ".*")
	if err != nil {
		return errRead.New(err, "read %s", r.subject)
	}
	if err := sub.SetPendingLimits(-1, 64<<20); err != nil {
		return errRead.New(err, "read %s", r.subject)
	}
	r.inbox = inbox
	r.consumer, r.sub, r.left, r.queue, r.heard, r.epoch = c.CachedInfo().Name, sub, 0, 0, time.Now(), epoch
	r.pending = c.CachedInfo().NumPending
	if r.opened != nil {
		r.opened(r.pending)
		r.opened = nil
	}
	return nil
}

// idle asks the server whether there is nothing left to read.
func (r *orderedReader) idle(ctx context.Context) bool {
	c, err := r.bus.js.Consumer(ctx, streamOf(r.subject), r.consumer)
	return err == nil && c.CachedInfo().NumPending == 0 && c.CachedInfo().Delivered.Consumer == r.queue
}

// reply is where the pull under way is answered.
func (r *orderedReader) reply() string { return r.inbox + "." + strconv.Itoa(r.pulls) }

func (r *orderedReader) pull() error {
	r.pulls++
	batch := r.batch
	if batch == 0 {
		batch = readBatch
	}
	expiry, heartbeat := r.bus.pullPace()
	request, _ := json.Marshal(pullRequest{batch, pullBytes, expiry, heartbeat}) // cannot fail
	err := r.bus.nc.PublishRequest("$JS.API.CONSUMER.MSG.NEXT."+streamOf(r.subject)+"."+r.consumer, r.reply(), request)
	if err != nil {
		return errRead.New(err, "read %s", r.subject)
	}
	r.left = batch
	return nil
}

// Close ends the consumer. Next begins anew.
func (r *orderedReader) Close() {
	if r.consumer == "" {
		return
	}
	_ = r.sub.Unsubscribe()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = r.bus.js.DeleteConsumer(ctx, streamOf(r.subject), r.consumer) // else it ends by itself
	r.consumer = ""
}
