package sources

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/topology"
)

const (
	// maxCargo is the largest message that shares a frame, in bytes and records.
	maxCargo        = messages.TargetBody / 4
	maxCargoRecords = messages.TargetCount / 4
	// flyingMost is how many frames are on their way to the bus before those that
	// are not full wait for them.
	flyingMost = 8
)

// cargo is the records of one message on their way into a frame. It is valid until
// its admission goes on.
type cargo struct {
	id     messages.UUID
	format string
	// text is the records one after the other, ends where each ends.
	text []byte
	ends []int
	// bytes of the message's body, and without its envelopes.
	bytes, rawBytes uint64
}

// cargo returns the records of a message that may share a frame: few, all of them
// good, and of a message whose id is a UUID. Nil for another message.
func (a *admission) cargo(l *letter, format string, f framing.Framing, inner []byte) *cargo {
	id, ok := messages.ParseUUID(l.id)
	if !ok || a.alone || len(inner) > maxCargo {
		return nil
	}
	c := &a.packed
	c.id, c.format, c.text, c.ends, c.bytes, c.rawBytes = id, format, c.text[:0], c.ends[:0], uint64(len(l.body)), uint64(len(inner))
	a.reader.Reset(inner)
	a.split.Reset(f, &a.reader, framing.Limits{})
	for {
		rec, err := a.split.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || len(c.ends) == maxCargoRecords || a.split.Header() != nil {
			return nil
		}
		c.text = append(c.text, rec...)
		c.ends = append(c.ends, len(c.text))
	}
	if len(c.ends) == 0 || len(c.text) > maxCargo {
		return nil
	}
	return c
}

// parcel is a frame in the making, of the events of many messages.
type parcel struct {
	format string
	frame  *messages.Builder
	posts  []*post
	// bytes and rawBytes of the messages.
	bytes, rawBytes uint64
	began           time.Time
	timer           *time.Timer
}

// packer puts the events of messages into frames. A frame goes out when it is full,
// and when it has waited for more for long enough. A batch that came alone does not
// wait, unless so many frames are on their way that waiting costs nothing.
//
// Methods may be called concurrently.
type packer struct {
	s    *sqsSource
	idle sync.Pool // *messages.Builder
	wg   sync.WaitGroup

	mu     sync.Mutex
	open   map[string]*parcel // by format
	flying int
	latest time.Time // when a batch with events came last
}

func newPacker(s *sqsSource) *packer {
	k := &packer{s: s, open: map[string]*parcel{}}
	k.idle.New = func() any { return messages.NewBuilder(messages.Header{}) }
	return k
}

// add puts the records of p into a frame, which work bounds.
func (k *packer) add(work context.Context, p *post, c *cargo) {
	k.mu.Lock()
	defer k.mu.Unlock()
	o := k.open[c.format]
	if o != nil && (o.frame.Len()+len(c.ends) > messages.TargetCount || o.frame.BodySize()+len(c.text) > messages.TargetBody) {
		k.shut(work, o)
		o = nil
	}
	if o == nil {
		o = &parcel{format: c.format, frame: k.idle.Get().(*messages.Builder), began: time.Now()} //nolint:forcetypeassert // nothing else is in it
		o.frame.Reset(messages.Header{Source: k.s.deps.Name, Format: c.format})
		o.timer = time.AfterFunc(k.s.cfg.Linger, func() { k.expire(work, o) })
		k.open[c.format] = o
	}
	o.frame.Message(c.id, p.sent)
	from := 0
	for _, end := range c.ends {
		o.frame.AddRecord(c.text[from:end])
		from = end
	}
	o.posts = append(o.posts, p)
	p.packed = true
	o.bytes += c.bytes
	o.rawBytes += c.rawBytes
	if o.frame.Len() == messages.TargetCount {
		k.shut(work, o)
	}
}

// received tells that a batch with events came, and whether it was full.
func (k *packer) received(work context.Context, full bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	alone := !full && now.Sub(k.latest) >= k.s.cfg.Linger
	k.latest = now
	if !alone || k.flying >= flyingMost {
		return
	}
	for _, o := range k.open {
		k.shut(work, o)
	}
}

// expire sends o away when it has lingered.
func (k *packer) expire(work context.Context, o *parcel) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open[o.format] == o && k.flying < flyingMost {
		k.shut(work, o)
	}
}

// landed is called when a frame is settled: those that have waited for it go out.
func (k *packer) landed(work context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.flying--
	for _, o := range k.open {
		if k.flying < flyingMost && time.Since(o.began) >= k.s.cfg.Linger {
			k.shut(work, o)
		}
	}
}

// drain sends away what is open, and waits until all is settled. Nothing is added
// meanwhile.
func (k *packer) drain(work context.Context) {
	k.mu.Lock()
	for _, o := range k.open {
		k.shut(work, o)
	}
	k.mu.Unlock()
	k.wg.Wait()
}

// shut sends o away. It is called under the lock.
func (k *packer) shut(work context.Context, o *parcel) {
	delete(k.open, o.format)
	o.timer.Stop()
	k.flying++
	k.wg.Go(func() {
		defer k.landed(work)
		defer func() {
			if p := recover(); p != nil {
				_ = k.s.failed(work, p, o.posts)
			}
		}()
		_ = k.s.settle(work, o.posts, func(ctx context.Context) error { return k.store(ctx, o) })
		k.idle.Put(o.frame)
	})
}

// store publishes the frame of o. A frame that the bus will never take is stored
// message by message, so that one of them cannot keep the others back.
func (k *packer) store(ctx context.Context, o *parcel) error {
	out := k.s.deps.NewOutbox()
	m, facts := k.message(o)
	err := out.Publish(ctx, m)
	if err == nil {
		for _, f := range facts {
			out.Fact(f)
		}
		err = out.Flush(ctx)
	}
	if err != nil && fault.ClassOf(err) == fault.Reject {
		return k.storeAlone(ctx, o.posts)
	}
	if err != nil {
		return errBusy.New(err, "store %d messages", len(o.posts))
	}
	for _, p := range o.posts {
		if p.again != "" {
			k.s.recent.add(p.again)
		}
	}
	k.s.m.events.Add(float64(len(o.posts)))
	return nil
}

// message returns what is published of o, and what the ledger is told. Several
// messages are one pull; the ids are in the frame.
func (k *packer) message(o *parcel) (topology.Message, []*messages.Fact) {
	first := o.posts[0]
	origin := &messages.Origin{
		Source: k.s.deps.Name, Queue: first.queue, Created: first.sent, Received: first.received,
		Account: k.s.account, Region: k.s.region,
	}
	announced := &messages.Announced{Origin: origin, As: messages.Announced_AS_EVENTS}
	fetched := &messages.Fetched{
		Source: origin.GetSource(), Frames: 1, Records: uint64(o.frame.Len()), End: messages.Fetched_END_COMPLETE,
		Bytes: uint64(o.frame.BodySize()), RawBytes: uint64(o.frame.BodySize()), // as parse says it
	}
	if len(o.posts) == 1 {
		origin.Pull, origin.MessageId = messages.MessagePull(first.queue, first.id, 0), first.id
		fetched.Bytes, fetched.RawBytes = o.bytes, o.rawBytes
		o.frame.Alone()
	} else {
		origin.Pull = messages.BatchPull(first.queue, o.frame.MessageIDs())
		announced.Messages = uint32(len(o.posts))
	}
	fetched.Pull = origin.GetPull()
	o.frame.Origin(origin)
	m := topology.Message{
		Subject: topology.RecordSubject(origin.GetSource()), ID: hex.EncodeToString(origin.GetPull()) + "/0", Data: o.frame.Encode(nil),
	}
	return m, []*messages.Fact{
		{Kind: &messages.Fact_Announced{Announced: announced}},
		{Kind: &messages.Fact_Fetched{Fetched: fetched}},
	}
}

// storeAlone stores each message by itself.
func (k *packer) storeAlone(ctx context.Context, posts []*post) error {
	a := k.s.admission()
	a.alone = true
	var outcomes []outcome
	for _, p := range posts {
		_, some := k.s.judge(ctx, a, p)
		outcomes = append(outcomes, some...)
	}
	return k.s.store(ctx, posts, outcomes)
}
