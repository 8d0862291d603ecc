package topology

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A stream acknowledges a message on its reply subject. Each message gets a subject that
// no other ever had: what is late, or comes twice, is then nobody's. nats.go's own way is
// the same, and makes timers, channels and decoders for each message. Source: NATS
// ADR-22.

var (
	errNoAck  = errors.New("no acknowledgement in time")
	errLostBy = errors.New("the connection was lost before the acknowledgement came")
)

// ackTimeout is how long an acknowledgement is waited for.
const ackTimeout = 20 * time.Second

// acks are the acknowledgements that are waited for on a connection.
type acks struct {
	mu     sync.Mutex
	prefix string // of reply subjects; "" before the first
	last   uint64 // number of the last reply subject
	due    map[string]*ticket
	spare  []*ticket
}

// spareTickets bounds those that are kept to be used again.
const spareTickets = 256

// ticket is the right to an acknowledgement. Who has one calls wait or drop, once.
type ticket struct {
	bus   *Bus
	reply string
	// conn ends when the connection has come back after the message was sent.
	conn   <-chan struct{}
	answer chan acknowledged
	timer  *time.Timer
}

type acknowledged struct {
	seq uint64
	err error
}

// send publishes msg and returns the right to its acknowledgement. It sets msg's reply
// subject and does not keep msg.
func (b *Bus) send(msg *nats.Msg) (*ticket, error) {
	t, err := b.ticket()
	if err != nil {
		return nil, err
	}
	msg.Reply = t.reply
	if err := b.nc.PublishMsg(msg); err != nil {
		t.drop()
		return nil, err
	}
	return t, nil
}

func (b *Bus) ticket() (*ticket, error) {
	b.connMu.Lock()
	conn := b.conn.Done() // before the message is sent: a connection after that is another
	b.connMu.Unlock()
	a := &b.acks
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.prefix == "" {
		prefix := b.nc.NewInbox() + "."
		if _, err := b.nc.Subscribe(prefix+"*", a.take); err != nil {
			return nil, err
		}
		a.prefix, a.due = prefix, map[string]*ticket{}
	}
	var t *ticket
	if n := len(a.spare); n > 0 {
		t, a.spare = a.spare[n-1], a.spare[:n-1]
	} else {
		t = &ticket{bus: b, answer: make(chan acknowledged, 1), timer: time.NewTimer(ackTimeout)}
		t.timer.Stop()
	}
	a.last++
	var room [64]byte
	t.reply, t.conn = string(strconv.AppendUint(append(room[:0], a.prefix...), a.last, 36)), conn
	a.due[t.reply] = t
	return t, nil
}

// take hands an acknowledgement to who waits for it, if anybody does.
func (a *acks) take(m *nats.Msg) {
	var got acknowledged
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
		got.err = jetstream.ErrNoStreamResponse
	} else {
		got.seq, got.err = readAck(m.Data)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.due[m.Subject]; t != nil {
		delete(a.due, m.Subject)
		t.answer <- got // has room: a subject is answered once
	}
}

// readAck returns the sequence of what was stored, or why it was not.
func readAck(data []byte) (uint64, error) {
	// As the server writes it, but for the names. All else is read by its decoder.
	if rest, ok := bytes.CutPrefix(data, []byte(`{"stream":"`)); ok && !bytes.Contains(rest, []byte(`"error"`)) {
		if stream, rest, ok := bytes.Cut(rest, []byte(`","seq":`)); ok && len(stream) > 0 {
			if end := bytes.IndexAny(rest, ",}"); end > 0 {
				if seq, err := strconv.ParseUint(string(rest[:end]), 10, 64); err == nil && seq > 0 {
					return seq, nil
				}
			}
		}
	}
	var ack struct {
		Error  *jetstream.APIError `json:"error"`
		Stream string              `json:"stream"`
		Seq    uint64              `json:"seq"`
	}
	switch err := json.Unmarshal(data, &ack); {
	case err != nil, ack.Error == nil && ack.Stream == "":
		return 0, jetstream.ErrInvalidJSAck
	case ack.Error != nil:
		return 0, ack.Error
	}
	return ack.Seq, nil
}

// wait returns the sequence that the message got. An error says nothing about whether it
// was stored.
func (t *ticket) wait(ctx context.Context) (uint64, error) {
	defer t.drop()
	t.timer.Reset(ackTimeout)
	select {
	case got := <-t.answer:
		return got.seq, got.err
	case <-t.conn:
		return 0, errLostBy
	case <-t.timer.C:
		return 0, errNoAck
	case <-t.bus.life.Done():
		return 0, nats.ErrConnectionClosed
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// drop gives the right up: an acknowledgement that is still to come goes nowhere.
func (t *ticket) drop() {
	t.timer.Stop()
	a := &t.bus.acks
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.due, t.reply)
	select {
	case <-t.answer:
	default:
	}
	if len(a.spare) < spareTickets {
		a.spare = append(a.spare, t)
	}
}
