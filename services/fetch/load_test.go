package fetch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/topology"
)

// sink is an Outbox that keeps nothing.
type sink struct {
	topology.Recorder
	mu     sync.Mutex
	frames int
	bytes  int
	each   func()
}

func (s *sink) Publish(_ context.Context, m topology.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frames++
	s.bytes += len(m.Data)
	if s.each != nil {
		s.each()
	}
	return nil
}

func heapInUse() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64() + sample[1].Value.Uint64()
}

// Memory does not grow with the object. covers: pain 8.
func TestMemoryStaysFlat(t *testing.T) {
	const chunks, records = 220, 1000 // 300 MB
	set := feed.CloudTrail(feed.Options{Seed: 7, Objects: 1, RecordsPerObject: feed.Fixed(records)})
	var chunk bytes.Buffer
	if err := set.WriteJSON(&chunk, 0); err != nil {
		t.Fatal(err)
	}
	body := strings.TrimSuffix(strings.TrimPrefix(chunk.String(), `{"Records":[`), `]}`)
	first, middle, last := pack(t, `{"Records":[`+body), pack(t, ","+body), pack(t, `]}`)
	object := cloud.Object{Size: int64(len(first) + (chunks-1)*len(middle) + len(last)), Write: func(w io.Writer) error {
		_, err := w.Write(first)
		for i := 1; i < chunks && err == nil; i++ {
			_, err = w.Write(middle)
		}
		if err == nil {
			_, err = w.Write(last)
		}
		return err
	}}
	s := newStage(t, nil)
	put(t, s.cloud, "k", object)
	runtime.GC()
	before, most := heapInUse(), uint64(0)
	out := &sink{}
	out.each = func() { most = max(most, heapInUse()) }
	if err := s.Handle(t.Context(), notice("trail", "k"), out); err != nil {
		t.Fatal(err)
	}
	fetched := out.Facts()[0].GetFetched()
	if fetched.GetRecords() != chunks*records || fetched.GetRawBytes() < 250e6 || fetched.GetEnd() != messages.Fetched_END_COMPLETE {
		t.Fatalf("%d records of %d, %d bytes", fetched.GetRecords(), chunks*records, fetched.GetRawBytes())
	}
	grown := int64(most) - int64(before)
	t.Logf("%d MB in %d frames, heap grew by %d MiB at most", fetched.GetRawBytes()/1e6, out.frames, grown>>20)
	if grown > 32<<20 {
		t.Errorf("heap grew by %d MiB", grown>>20)
	}
}

// BenchmarkFetch reads objects of 2,000 CloudTrail records through HTTP, gunzips
// and splits them, and encodes the frames. MB/s are those of the raw records; the
// S3 endpoint runs in the same process and is in the figures.
func BenchmarkFetch(b *testing.B) {
	const records = 2000
	set := feed.CloudTrail(feed.Options{Seed: 1, Objects: 4, RecordsPerObject: feed.Fixed(records)})
	s := newStage(b, nil)
	raw := int64(0)
	for i := range set.Len() {
		o := set.Object(i)
		put(b, s.cloud, fmt.Sprintf("k%d", i), cloud.Object{Body: o.Body})
		var n counter
		if err := set.WriteJSON(&n, i); err != nil {
			b.Fatal(err)
		}
		raw += int64(n)
	}
	b.SetBytes(raw / int64(set.Len()))
	b.ReportAllocs()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	i := 0
	for b.Loop() {
		out := &sink{}
		in := notice("trail", fmt.Sprintf("k%d", i%set.Len()))
		if err := s.Handle(b.Context(), in, out); err != nil {
			b.Fatal(err)
		}
		if f := out.Facts()[0].GetFetched(); f.GetRecords() != records || out.frames < 2 {
			b.Fatalf("%d records in %d frames", f.GetRecords(), out.frames)
		}
		i++
	}
	runtime.ReadMemStats(&after)
	n := float64(b.N) * records
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/n, "allocs/record")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/record")
}

// BenchmarkFetchSmall reads objects of 5 records, four at a time.
func BenchmarkFetchSmall(b *testing.B) {
	set := feed.CloudTrail(feed.Options{Seed: 1, Objects: 64, RecordsPerObject: feed.Fixed(5)})
	s := newStage(b, nil)
	for i := range set.Len() {
		put(b, s.cloud, fmt.Sprintf("k%d", i), cloud.Object{Body: set.Object(i).Body})
	}
	b.ReportAllocs()
	var i atomic.Int64
	b.SetParallelism(2)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			out := &sink{}
			in := notice("trail", fmt.Sprintf("k%d", int(i.Add(1))%set.Len()))
			in.Value.Size = 2000
			if err := s.Handle(b.Context(), in, out); err != nil {
				b.Error(err)
				return
			}
			if f := out.Facts()[0].GetFetched(); f.GetRecords() != 5 {
				b.Errorf("%d records", f.GetRecords())
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "objects/s")
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

var _ io.Writer = (*counter)(nil)
