package topology

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// Every stored message costs the disk a sync, however small it is. Small messages
// of one stream that come while such a write is under way are therefore stored
// together, as one atomic batch with one sync: a group commit. A batch costs the
// server some files of its own, about as much as ten syncs, so a few messages go
// one by one; and a frame is large enough to be worth a sync.
const (
	groupMessage  = 32 << 10 // bytes of a message that may be grouped
	groupLeast    = 12
	groupMessages = 256
)

// Headers of JetStream's atomic batches. Source: NATS ADR-50.
const (
	headerBatchID       = "Nats-Batch-Id"
	headerBatchSequence = "Nats-Batch-Sequence"
	headerBatchCommit   = "Nats-Batch-Commit"
)

// errNotGrouped asks for a message to be stored by itself.
var errNotGrouped = errors.New("not stored in a group")

// committer groups the small messages of one stream.
type committer struct {
	bus *Bus

	mu      sync.Mutex
	pending []*groupedMessage
	busy    bool
}

type groupedMessage struct {
	msg  *nats.Msg
	done chan error
}

// committerOf returns the committer of a stream.
func (b *Bus) committerOf(stream string) *committer {
	b.committersMu.Lock()
	defer b.committersMu.Unlock()
	c := b.committers[stream]
	if c == nil {
		c = &committer{bus: b}
		b.committers[stream] = c
	}
	return c
}

// storeGrouped is store for messages whose sequence nobody asks for.
func (b *Bus) storeGrouped(ctx context.Context, msg *nats.Msg) error {
	if len(msg.Data) > groupMessage {
		_, err := b.store(ctx, msg)
		return err
	}
	g := &groupedMessage{msg: msg, done: make(chan error, 1)}
	c := b.committerOf(streamOf(msg.Subject))
	c.mu.Lock()
	c.pending = append(c.pending, g)
	start := !c.busy
	c.busy = true
	c.mu.Unlock()
	if start {
		go c.run()
	}
	select {
	case err := <-g.done:
		if !errors.Is(err, errNotGrouped) {
			return err
		}
	case <-ctx.Done():
		return errPublish.New(context.Cause(ctx), "publish to %s", msg.Subject)
	}
	_, err := b.store(ctx, msg)
	return err
}

// run stores what is pending until nothing is. What the server does not take is
// stored by its own caller: there, each has its own fate, retries and backpressure.
func (c *committer) run() {
	for {
		c.mu.Lock()
		n := min(len(c.pending), groupMessages)
		group := c.pending[:n:n]
		c.pending = c.pending[n:]
		if n == 0 {
			c.pending, c.busy = nil, false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		if n < groupLeast {
			c.each(group)
			continue
		}
		err := errNotGrouped
		if c.bus.storeBatch(group) == nil {
			err = nil
			for _, g := range group {
				countPublished(g.msg)
			}
		}
		for _, g := range group {
			g.done <- err
		}
	}
}

// each stores a few messages side by side and waits for them, so that those that
// come meanwhile may make a group.
func (c *committer) each(group []*groupedMessage) {
	var wg sync.WaitGroup
	for _, g := range group {
		wg.Go(func() {
			if _, err := c.bus.publish(c.bus.life, g.msg); err != nil {
				g.done <- errNotGrouped
				return
			}
			countPublished(g.msg)
			g.done <- nil
		})
	}
	wg.Wait()
}

// storeBatch stores a group atomically. An error says nothing about what is
// stored: their message ids make storing them again harmless.
func (b *Bus) storeBatch(group []*groupedMessage) error {
	id := nuid.Next()
	ctx, cancel := context.WithTimeout(b.life, 10*time.Second)
	defer cancel()
	defer func() { // who stores a message by itself stores it as it was
		for _, g := range group {
			delete(g.msg.Header, headerBatchID)
			delete(g.msg.Header, headerBatchSequence)
			delete(g.msg.Header, headerBatchCommit)
		}
	}()
	ids, numbers := []string{id}, make([]string, len(group))
	for i, g := range group {
		numbers[i] = strconv.Itoa(i + 1)
		g.msg.Header[headerBatchID] = ids
		g.msg.Header[headerBatchSequence] = numbers[i : i+1 : i+1]
		if i < len(group)-1 {
			if err := b.nc.PublishMsg(g.msg); err != nil {
				return err
			}
			continue
		}
		g.msg.Header[headerBatchCommit] = []string{"1"}
		answer, err := b.nc.RequestMsgWithContext(ctx, g.msg)
		if err != nil {
			return err
		}
		var ack struct {
			Error *jetstream.APIError `json:"error"`
			Count int                 `json:"count"`
		}
		if err := json.Unmarshal(answer.Data, &ack); err != nil {
			return err
		}
		if ack.Error != nil {
			return ack.Error
		}
		if ack.Count != len(group) {
			return errPublish.New(nil, "commit %d messages, the server counts %d", len(group), ack.Count)
		}
	}
	return nil
}
