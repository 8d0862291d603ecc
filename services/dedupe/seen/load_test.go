package seen

import (
	"crypto/rand"
	"testing"
	"time"
)

// BenchmarkTakeOver is what the take-over of a lane costs: an eighth of 50 M ids.
func BenchmarkTakeOver(b *testing.B) {
	const ids, block = 6_250_000, 64 << 10
	data := make([]byte, block*idSize)
	now := time.Now()
	for b.Loop() {
		s := New(Limits{Window: 24 * time.Hour, MaxIDs: ids * 2})
		s.Reserve(ids)
		b.StopTimer()
		n := 0
		for n < ids {
			_, _ = rand.Read(data) // never fails (crypto/rand)
			b.StartTimer()
			s.Load(data, now)
			b.StopTimer()
			n += block
		}
		if s.Len() != n {
			b.Fatalf("%d ids, want %d", s.Len(), n)
		}
		b.StartTimer()
		b.ReportMetric(float64(s.Bytes())/float64(n), "B/id")
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/ids, "ns/id")
}
