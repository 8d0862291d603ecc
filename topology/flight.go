package topology

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// A lane's outputs are stored in order, each under the condition that the one before it is
// the last: that is what keeps a stale owner out. Waiting for each would bound a lane by
// the time of a sync and of a round trip. Where the lane is the only one, the condition
// can be told without waiting, as the message id of the one before; so several are under
// way, and all behind one that fails fail with it.
//
// None of this moves the position of the lane: that is done when an output has landed.
const (
	// flightMost bounds the outputs under way, flightBytes their bytes.
	flightMost  = 8
	flightBytes = 4 << 20
	// flightPause is after how long without a new frame those under way are waited for.
	flightPause = 5 * time.Millisecond
)

// flight is an output on its way into UNIQUE.
type flight struct {
	msg    *nats.Msg
	ticket *ticket // nil when it could not be sent
	input  uint64
	fresh  []byte
}

// depart publishes an output behind those under way, without waiting for it.
func (l *Lane) depart(ctx context.Context, msg *nats.Msg, input uint64, fresh []byte) error {
	l.refused = false
	// Behind one that was refused all are, and so would this be: they go first.
	for len(l.flights) > 0 && (l.refused || len(l.flights) >= flightMost || l.flying+len(msg.Data) > flightBytes) {
		if err := l.land(ctx); err != nil {
			return err
		}
	}
	msg.Header[nats.ExpectedLastMsgIdHdr] = []string{l.lastID}
	t, err := l.bus.send(msg)
	if err != nil {
		t = nil // no connection: it is tried again when its turn has come
	}
	l.flights = append(l.flights, flight{msg, t, input, append([]byte(nil), fresh...)})
	l.flying += len(msg.Data)
	l.lastID = msg.Header.Get(nats.MsgIdHdr)
	return nil
}

// land waits for the oldest output under way and moves the lane's position behind it. One
// that failed is stored again, and those behind it, which the server has refused for that,
// in their turn; their message ids make that harmless where they were stored after all.
func (l *Lane) land(ctx context.Context) error {
	f := &l.flights[0]
	seq, err := l.landed(ctx, f)
	if err != nil {
		return err
	}
	l.output, l.input = seq, f.input
	l.fresh = append(l.fresh, f.fresh...)
	l.flying -= len(f.msg.Data)
	*f = flight{}
	if l.flights = l.flights[1:]; len(l.flights) == 0 {
		l.flights = nil
	}
	return nil
}

func (l *Lane) landed(ctx context.Context, f *flight) (uint64, error) {
	if t := f.ticket; t != nil {
		f.ticket = nil
		seq, err := t.wait(ctx)
		if err == nil {
			countPublished(f.msg)
			return seq, nil
		}
		if ctx.Err() != nil {
			return 0, errPublish.New(context.Cause(ctx), "publish to %s", f.msg.Subject)
		}
		// It is stored again, which tells what is wrong.
	}
	l.refused = true
	return l.unstuck(ctx, func() (uint64, error) { return l.bus.store(ctx, f.msg) })
}

// landAll waits for all outputs under way.
func (l *Lane) landAll(ctx context.Context) error {
	for len(l.flights) > 0 {
		if err := l.land(ctx); err != nil {
			return err
		}
	}
	return nil
}

// ditch gives up on what is under way: the lane is lost, or taken up anew from its last
// output that was stored.
func (l *Lane) ditch() {
	for _, f := range l.flights {
		if f.ticket != nil {
			f.ticket.drop()
		}
	}
	l.flights, l.flying = nil, 0
}

// unstuck stores an output. UNIQUE is trimmed up to the last snapshot, so a lane that waits
// for room there takes one: nobody else can.
func (l *Lane) unstuck(ctx context.Context, store func() (uint64, error)) (seq uint64, err error) {
	stored := make(chan struct{})
	go func() {
		defer close(stored)
		seq, err = store()
	}()
	stuck := time.NewTimer(laneStuck)
	defer stuck.Stop()
	select {
	case <-stored:
		return seq, err
	case <-stuck.C:
	}
	// What the snapshot takes, only land and commit change, and they wait here.
	snapshotErr := l.saveLanded(ctx)
	<-stored
	return seq, errors.Join(err, snapshotErr)
}

// outputID is the message id of a lane's output.
func outputID(lane uint32, input uint64) string { return fmt.Sprintf("d%d/%d", lane, input) }
