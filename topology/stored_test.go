package topology

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"
)

// A buffer may be used again once Stored was called: what was stored stays as it was. It
// is not called for what was not stored.
func TestStored(t *testing.T) {
	b := testBus(t, Limits{Disk: 1 << 30})
	const n, size = 20, 300 << 10
	free := make(chan []byte, 1)
	free <- make([]byte, size)
	var calls atomic.Int32
	out := b.NewOutbox(Fetch)
	for i := range n {
		data := <-free
		copy(data, bytes.Repeat([]byte{byte('a' + i)}, size))
		m := Message{Subject: RecordSubject("s"), ID: fmt.Sprint(i), Data: data, Stored: func() { calls.Add(1); free <- data }}
		if err := out.Publish(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if calls.Load() != n {
		t.Errorf("%d messages are stored, want %d", calls.Load(), n)
	}
	i := 0
	if err := b.Read(t.Context(), Span{Subject: RecordSubject("s")}, func(m Stored) error {
		if want := bytes.Repeat([]byte{byte('a' + i)}, size); !bytes.Equal(m.Data, want) {
			t.Errorf("message %d was changed", i)
		}
		i++
		return nil
	}); err != nil || i != n {
		t.Errorf("%d messages were read, want %d: %v", i, n, err)
	}

	never := func() { t.Error("what was not stored is called stored") }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	late := b.NewOutbox(Fetch)
	for _, m := range []Message{
		{Subject: RecordSubject("s"), ID: "late", Data: []byte("x"), Stored: never},
		{Subject: RecordSubject("s"), ID: "large", Data: make([]byte, b.MaxPayload()), Stored: never},
	} {
		err := late.Publish(ctx, m)
		if err == nil {
			err = late.Flush(ctx)
		}
		if err == nil {
			t.Errorf("message %s is stored", m.ID)
		}
	}
}
