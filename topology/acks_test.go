package topology

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestAcknowledgementsAreRead(t *testing.T) {
	tests := []struct {
		data string
		seq  uint64
		err  error
	}{
		{`{"stream":"RECORDS","seq":17}`, 17, nil},
		{`{"stream":"RECORDS","domain":"hub","seq":18446744073709551615}`, 1<<64 - 1, nil},
		{`{"stream":"RECORDS","seq":17,"duplicate": true}`, 17, nil},
		{`{"stream":"RECORDS", "seq": 17, "batch":"x","count":2}`, 17, nil},
		{`{"seq":17,"stream":"RECORDS"}`, 17, nil},
		{`{"stream":"","seq":17}`, 0, jetstream.ErrInvalidJSAck},
		{`{"seq":17}`, 0, jetstream.ErrInvalidJSAck},
		{`{"stream":"RECORDS","seq":17`, 0, jetstream.ErrInvalidJSAck},
		{`+OK`, 0, jetstream.ErrInvalidJSAck},
		{``, 0, jetstream.ErrInvalidJSAck},
	}
	for _, tt := range tests {
		if seq, err := readAck([]byte(tt.data)); !errors.Is(err, tt.err) || err == nil && seq != tt.seq {
			t.Errorf("%s: %d, %v", tt.data, seq, err)
		}
	}
	_, err := readAck([]byte(`{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 7"},"stream":"RECORDS","seq":0}`))
	if apiCode(err) != codeWrongLastSequence {
		t.Errorf("a refusal: %v", err)
	}
}

func TestAcknowledgementIsOfItsMessage(t *testing.T) {
	b := testBus(t, Limits{})
	send := func(subject, id string) *ticket {
		t.Helper()
		c, err := b.send(toNATS(t.Context(), Message{Subject: subject, ID: id, Data: []byte("x")}))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	one, two, nowhere := send(RecordSubject("s"), "1"), send(RecordSubject("s"), "2"), send("elsewhere", "3")
	late := one.reply
	send(RecordSubject("s"), "4").drop() // its acknowledgement goes nowhere
	if seq, err := two.wait(t.Context()); seq != 2 || err != nil {
		t.Errorf("the second: %d, %v", seq, err)
	}
	if seq, err := one.wait(t.Context()); seq != 1 || err != nil {
		t.Errorf("the first: %d, %v", seq, err)
	}
	if _, err := nowhere.wait(t.Context()); !errors.Is(err, jetstream.ErrNoStreamResponse) {
		t.Errorf("to no stream: %v", err)
	}
	if seq, err := send(RecordSubject("s"), "1").wait(t.Context()); seq != 1 || err != nil {
		t.Errorf("the first again: %d, %v", seq, err)
	}
	again := send(RecordSubject("s"), "5")
	b.acks.take(&nats.Msg{Subject: late, Data: []byte(`{"stream":"RECORDS","seq":99}`)}) // twice, or late: nobody's
	if seq, err := again.wait(t.Context()); seq != 4 || err != nil {
		t.Errorf("beside a late acknowledgement: %d, %v", seq, err)
	}
	stopped, stop := context.WithCancelCause(t.Context())
	stop(errHandedOver)
	silent, err := b.nc.Subscribe("silent", func(*nats.Msg) {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Unsubscribe() }()
	if _, err := send("silent", "6").wait(stopped); !errors.Is(err, errHandedOver) {
		t.Errorf("after a stop: %v", err)
	}
	b.acks.mu.Lock()
	defer b.acks.mu.Unlock()
	if len(b.acks.due) != 0 {
		t.Errorf("%d acknowledgements are waited for by nobody", len(b.acks.due))
	}
}

// A frame on its way over one stream costs so many allocations: of ours, of the client
// and of the server together.
func TestAllocationsOfAHop(t *testing.T) {
	const frames, most = 400, 110
	bus := testBus(t, Limits{Disk: 1 << 30})
	data := make([]byte, 2*groupMessage)
	_, _ = rand.Read(data)
	var handled atomic.Int64
	all := make(chan struct{}, 1)
	run(t, func(ctx context.Context) error {
		return Consume(ctx, bus, ParseConsumer, raw, func(context.Context, In[[]byte], Outbox) error {
			if handled.Add(1)%frames == 0 {
				all <- struct{}{}
			}
			return nil
		})
	})
	lot := func(name string) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		out := bus.NewOutbox(Fetch)
		for i := range frames {
			if err := out.Publish(t.Context(), Message{Subject: RecordSubject("s"), ID: fmt.Sprint(name, i), Data: data}); err != nil {
				t.Fatal(err)
			}
		}
		if err := out.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-all
		runtime.ReadMemStats(&after)
		return (after.Mallocs - before.Mallocs) / frames
	}
	lot("warm ")
	if n := lot("lot "); n > most {
		t.Errorf("%d allocations a frame, want at most %d", n, most)
	} else {
		t.Logf("%d allocations a frame", n)
	}
}

// Who waits for an acknowledgement that cannot come any more is told so at once, and not
// after the time that one is waited for.
func TestAcknowledgementThatCannotCome(t *testing.T) {
	b := testBus(t, Limits{})
	silent, err := b.nc.Subscribe("silent", func(*nats.Msg) {})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Unsubscribe() }()
	send := func() *ticket {
		t.Helper()
		c, err := b.send(toNATS(t.Context(), Message{Subject: "silent", ID: "1", Data: []byte("x")}))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	lost := send()
	if err := b.nc.ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	if _, err := lost.wait(t.Context()); !errors.Is(err, errLostBy) {
		t.Errorf("once the connection is another: %v", err)
	}
	msg := toNATS(t.Context(), Message{Subject: RecordSubject("s"), ID: "2", Data: []byte("x")})
	if seq, err := b.store(t.Context(), msg); seq != 1 || err != nil {
		t.Errorf("over the new connection: %d, %v", seq, err)
	}
	last := send()
	b.Close()
	if _, err := last.wait(t.Context()); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("once the bus is closed: %v", err)
	}
	if _, err := b.publish(t.Context(), msg); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("on a closed bus: %v", err)
	}
	b.acks.mu.Lock()
	defer b.acks.mu.Unlock()
	if len(b.acks.due) != 0 {
		t.Errorf("%d acknowledgements are waited for by nobody", len(b.acks.due))
	}
}
