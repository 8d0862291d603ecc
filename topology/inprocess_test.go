package topology

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
)

// covers: design section 3: in-process connections must not stall in chains of several hops.
func TestChainInProcess(t *testing.T) {
	b := testBus(t, Limits{})
	const hops, n = 5, 64
	inboxes := make([]string, hops+1)
	for i := range inboxes {
		inboxes[i] = fmt.Sprintf("chain.%d", i)
	}
	for i := range hops {
		sub, err := b.nc.SubscribeSync(inboxes[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := sub.SetPendingLimits(-1, -1); err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				m, err := sub.NextMsgWithContext(t.Context())
				if err != nil || b.nc.Publish(inboxes[i+1], m.Data) != nil {
					return
				}
			}
		}()
	}
	var got, wrong atomic.Int64
	want := bytes.Repeat([]byte("penstock "), 1<<20/9)
	last, err := b.nc.SubscribeSync(inboxes[hops])
	if err != nil {
		t.Fatal(err)
	}
	if err := last.SetPendingLimits(-1, -1); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			m, err := last.NextMsgWithContext(t.Context())
			if err != nil {
				return
			}
			if !bytes.Equal(m.Data, want) {
				wrong.Add(1)
			}
			got.Add(1)
		}
	}()
	var publishers sync.WaitGroup
	for range 4 {
		publishers.Go(func() {
			for range n / 4 {
				if err := b.nc.Publish(inboxes[0], want); err != nil {
					t.Error(err)
				}
			}
		})
	}
	publishers.Wait()
	await(t, "all have passed", func() bool { return got.Load() == n })
	if wrong.Load() > 0 {
		t.Errorf("%d of %d messages have changed on their way", wrong.Load(), n)
	}
}

// What was read ahead arrives in order and whole, and before the error that ended it.
func TestReadAhead(t *testing.T) {
	server, client := net.Pipe()
	c := &readAhead{Conn: client}
	c.changed.L = &c.mu
	go c.fill()
	var want []byte
	for i := range 2000 {
		size := 1 + rand.IntN(100)
		if i%50 == 0 {
			size = aheadChunk + rand.IntN(3*aheadChunk)
		}
		data := bytes.Repeat([]byte{byte(i)}, size)
		want = append(want, data...)
		if _, err := server.Write(data); err != nil { // nobody reads yet, and nobody waits
			t.Fatal(err)
		}
	}
	c.mu.Lock()
	if most := 2 * len(want); c.held > most {
		t.Errorf("%d bytes are held for %d", c.held, len(want))
	}
	c.mu.Unlock()
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes were read, want %d: %v", len(got), len(want), err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %d, %v", n, err)
	}
	if c.held != 0 || c.queue != nil {
		t.Errorf("%d bytes are held after the end", c.held)
	}
}

// What waits to be read is bounded: then the writer waits.
func TestReadAheadIsBounded(t *testing.T) {
	server, client := net.Pipe()
	c := &readAhead{Conn: client}
	c.changed.L = &c.mu
	go c.fill()
	const total = aheadBytes + 8*aheadChunk
	var written atomic.Int64
	go func() {
		data := make([]byte, aheadChunk)
		for written.Load() < total {
			if _, err := server.Write(data); err != nil {
				return
			}
			written.Add(int64(len(data)))
		}
		_ = server.Close()
	}()
	await(t, "all that may wait waits", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.held == aheadBytes
	})
	if n := written.Load(); n > aheadBytes+aheadChunk {
		t.Errorf("%d bytes were taken, want at most %d", n, aheadBytes+aheadChunk)
	}
	n, err := io.Copy(io.Discard, c)
	if err != nil || n != total {
		t.Errorf("%d bytes were read, want %d: %v", n, total, err)
	}
}

// A connection that is closed while nobody reads keeps nothing, and no goroutine.
func TestReadAheadCloses(t *testing.T) {
	server, client := net.Pipe()
	c := &readAhead{Conn: client}
	c.changed.L = &c.mu
	filled := make(chan struct{})
	go func() {
		c.fill()
		close(filled)
	}()
	go func() {
		data := make([]byte, aheadChunk)
		for {
			if _, err := server.Write(data); err != nil {
				return
			}
		}
	}()
	await(t, "all that may wait waits", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.held == aheadBytes
	})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-filled:
	case <-time.After(10 * time.Second):
		t.Error("the goroutine that reads ahead outlives the connection")
	}
}

// When the connection to the server inside comes back, what waits on the one before asks
// anew at once: signs of life are too rare there to be waited for.
func TestOwnPullsOutliveTheirConnection(t *testing.T) {
	e := testServer(t, t.TempDir(), 256<<20)
	b := testConnect(t, e, Options{Name: "a", Own: true})
	if _, err := b.Apply(t.Context(), Limits{Disk: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	got, followed := make(chan uint64, 16), make(chan uint64, 16)
	run(t, func(ctx context.Context) error {
		return Consume(ctx, b, RouteConsumer, raw, func(_ context.Context, in In[[]byte], _ Outbox) error {
			got <- in.Sequence
			return nil
		})
	})
	run(t, func(ctx context.Context) error {
		if err := b.Follow(ctx, Span{Subject: UniqueSubject(0)}, func(m Stored) error {
			followed <- m.Sequence
			return nil
		}); ctx.Err() == nil {
			return err
		}
		return nil
	})
	inside, ok := b.options.inside.(inProcess)
	if !ok {
		t.Fatal("the bus is not reached in process")
	}
	other := testConnect(t, e, Options{Name: "b"})
	for i := range 2 {
		back := b.reconnects.Load()
		if i == 1 {
			id, err := b.nc.GetClientID()
			if err == nil {
				err = inside.server.DisconnectClientByID(id)
			}
			if err != nil {
				t.Fatal(err)
			}
			await(t, "the connection is lost", func() bool { return !b.nc.IsConnected() || b.reconnects.Load() > back })
		}
		// Nobody is there to get it, so the server forgets the pulls.
		publish(t, other, Message{Subject: UniqueSubject(0), ID: fmt.Sprint(i), Data: []byte("x")})
		if i == 1 {
			await(t, "the connection is back", func() bool { return b.reconnects.Load() > back })
		}
		for who, c := range map[string]chan uint64{"consumer": got, "reader": followed} {
			select {
			case <-c:
			case <-time.After(12 * time.Second):
				t.Errorf("message %d did not get to the %s soon", i, who)
			}
		}
	}
}

// The insides of the NATS server are as forgetFull expects, and full blocks go.
func TestBlocksAreForgotten(t *testing.T) {
	b := testBus(t, Limits{Disk: 1 << 30})
	out := b.NewOutbox(Route)
	body := make([]byte, 1<<20)
	for i := range body {
		body[i] = byte(rand.Uint32())
	}
	frames := messages.NewBuilder(messages.Header{Source: "s", EventType: "a.b"})
	o := frames.Origin(&messages.Origin{Source: "s", Pull: []byte("p")})
	frames.Add(messages.Event{ID: messages.ID{1}, Origin: o, Doc: body})
	data := frames.Encode(nil)
	inside, ok := b.options.inside.(inProcess)
	if !ok {
		t.Fatal("the bus is not reached in process")
	}
	if _, err := forgetFull(inside.server); err != nil {
		t.Fatal(err)
	}
	const n = 40
	for i := range n {
		if err := out.Publish(t.Context(), Message{Subject: EventSubject("a.b"), ID: fmt.Sprint(i), Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	read := 0
	if err := b.Read(t.Context(), Span{Subject: "penstock.event.>"}, func(Stored) error { read++; return nil }); err != nil || read != n {
		t.Fatalf("%d frames were read, want %d: %v", read, n, err)
	}
	if _, err := forgetFull(inside.server); err != nil {
		t.Fatal(err)
	}
	if n, err := forgetFull(inside.server); n > 0 || err != nil {
		t.Errorf("%d blocks were told twice, %v", n, err)
	}
	account := reflect.ValueOf(inside.server.GlobalAccount()).Elem()
	stream := at(at(account, "js").Elem(), "streams").MapIndex(reflect.ValueOf(Events)).Elem()
	store := at(stream, "store").Elem().Elem()
	await(t, "full blocks are out of memory", func() bool {
		full, held := 0, 0
		locked(store, func() {
			blocks := at(store, "blks")
			for i := range blocks.Len() - 1 {
				block := blocks.Index(i).Elem()
				locked(block, func() {
					full++
					if !at(block, "cache").IsNil() || !at(at(block, "ecache"), "strong").IsNil() {
						held++
					}
				})
			}
		})
		return full >= n-1 && held == 0 // each in a block of its own, since blocks are small
	})
}
