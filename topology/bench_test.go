package topology

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync/atomic"
	"testing"
)

// BenchmarkHop is one hop of a frame: published, stored with fsync, delivered,
// handled, acked.
func BenchmarkHop(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 256 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			bus := testBus(b, Limits{Disk: 16 << 30})
			data := make([]byte, size)
			_, _ = rand.Read(data)
			var handled atomic.Int64
			all := make(chan struct{})
			n := int64(b.N)
			run(b, func(ctx context.Context) error {
				return Consume(ctx, bus, ParseConsumer, raw, func(_ context.Context, in In[[]byte], _ Outbox) error {
					if len(in.Data) != size {
						b.Errorf("got %d bytes", len(in.Data))
					}
					if handled.Add(1) == n {
						close(all)
					}
					return nil
				})
			})
			run(b, bus.Keep)
			b.SetBytes(int64(size))
			b.ResetTimer()
			out := bus.NewOutbox(Fetch)
			for i := range b.N {
				if err := out.Publish(b.Context(), Message{Subject: RecordSubject("s"), ID: fmt.Sprint(i), Data: data}); err != nil {
					b.Fatal(err)
				}
			}
			if err := out.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
			<-all
		})
	}
}
