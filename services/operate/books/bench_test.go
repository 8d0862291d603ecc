package books

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/topology"
)

// load makes the facts of groups of pulls that are under way at the same time, as
// messages of LEDGER of about 64 KiB.
type load struct {
	writer
	// group pulls share frames, each has records in frames of records, which become
	// events of kinds types in 8 lanes. They go to 3 destinations.
	group, records, frames, kinds int
	next                          int
	messages                      uint64
}

func (l *load) batch() (all []topology.Stored, facts int) {
	l.facts = l.facts[:0]
	pulls := make([][]byte, l.group)
	for i := range pulls {
		l.next++
		key := fmt.Sprintf("AWSLogs/123456789012/CloudTrail/eu-west-1/2026/11/21/123456789012_CloudTrail_eu-west-1_20261121T%08dZ_abcdefgh.json.gz", l.next)
		pulls[i] = messages.NewPull(key)
		l.add(&messages.Announced{As: messages.Announced_AS_OBJECT, Origin: &messages.Origin{
			Pull: pulls[i], Source: "trail" + strconv.Itoa(l.next%20), Bucket: "company-security-logs", Key: key, Etag: "0123456789abcdef0123456789abcdef",
			Queue: "https://sqs.eu-west-1.amazonaws.com/123456789012/notices", MessageId: fmt.Sprintf("aaaaaaaa-bbbb-cccc-dddd-%012d", l.next), Created: 1, Received: 2,
		}})
		l.add(&messages.Fetched{Pull: pulls[i], Source: "trail", Frames: uint32(l.frames), Records: uint64(l.records), Bytes: 1, RawBytes: 10, End: messages.Fetched_END_COMPLETE})
		for f := range l.frames {
			l.add(&messages.Parsed{Pull: pulls[i], FrameNo: uint32(f), Records: uint64(l.records / l.frames), Events: uint64(l.records / l.frames)})
		}
	}
	parts := 8 * l.kinds
	for part := range parts {
		l.sequence++
		routed := &messages.Routed{Lane: uint32(part % 8), Sequence: l.sequence, EventType: "cloud.aws.cloudtrail.type" + strconv.Itoa(part/8)}
		delivered := [3]*messages.Delivered{}
		for d := range delivered {
			delivered[d] = &messages.Delivered{Destination: "destination" + strconv.Itoa(d), Sequence: l.sequence, EventType: routed.EventType}
		}
		for i, pull := range pulls {
			var unique []int64
			for o, last := (part+i)%parts, 0; o < l.records; o += parts {
				unique = append(unique, int64(o-last))
				last = o
			}
			if len(unique) == 0 {
				continue
			}
			routed.Pulls = append(routed.Pulls, &messages.RoutedPull{Pull: pull, Unique: unique})
			for d := range delivered {
				delivered[d].Pulls = append(delivered[d].Pulls, &messages.DeliveredPull{Pull: pull, Confirmed: uint64(len(unique))})
			}
		}
		l.add(routed)
		for d := range delivered {
			l.add(delivered[d])
		}
	}
	l.r.Shuffle(len(l.facts), func(i, j int) { l.facts[i], l.facts[j] = l.facts[j], l.facts[i] })
	for i := 0; i < len(l.facts); i += 40 {
		l.messages++
		part := l.facts[i:min(i+40, len(l.facts))]
		all = append(all, topology.Stored{
			Sequence: l.messages, Time: time.Unix(1_700_000_000, int64(l.messages)*1e6),
			Data: messages.EncodeFacts(&messages.Facts{Version: 1, Stage: "test", Facts: part}),
		})
	}
	return all, len(l.facts)
}

// BenchmarkFold folds facts that come as fast as they can. It must reach 20,000 a second,
// within 64 MiB for the whole process, generator and SQLite included.
func BenchmarkFold(b *testing.B) {
	for name, shape := range map[string]load{
		"large_objects": {group: 10, records: 2000, frames: 2, kinds: 3},
		"small_objects": {group: 200, records: 5, frames: 1, kinds: 1},
		"one_message":   {group: 1, records: 1, frames: 1, kinds: 1},
	} {
		b.Run(name, func(b *testing.B) {
			l := shape
			l.r = rand.New(rand.NewPCG(1, 1))
			books := openBooks(b, b.TempDir(), Options{})
			f, err := newFolder(b.Context(), books)
			if err != nil {
				b.Fatal(err)
			}
			defer f.close()
			for d := range 3 {
				l.add(&messages.Destination{Name: "destination" + strconv.Itoa(d), First: 1})
			}
			l.messages++
			if err := f.add([]topology.Stored{{Sequence: 1, Time: time.Unix(1, 0), Data: messages.EncodeFacts(&messages.Facts{Version: 1, Facts: l.facts})}}); err != nil {
				b.Fatal(err)
			}
			var folding time.Duration
			cpu := 0.0
			facts, most := 0, 0
			for facts < b.N {
				var batch []topology.Stored
				size := 0
				for size < batchBytes && facts < b.N {
					more, n := l.batch()
					facts += n
					batch = append(batch, more...)
					for _, m := range more {
						size += len(m.Data)
					}
				}
				began, used := time.Now(), cpuSeconds()
				if err := f.add(batch); err != nil {
					b.Fatal(err)
				}
				folding += time.Since(began)
				cpu += cpuSeconds() - used
				most = max(most, resident())
			}
			s, err := books.Summary(b.Context())
			if err != nil || !s.Balanced || s.Total.Pulls != l.next {
				b.Fatalf("%v: %d pulls of %d, %q", err, s.Total.Pulls, l.next, s.Problems)
			}
			b.ReportMetric(float64(facts)/folding.Seconds(), "facts/s")
			b.ReportMetric(float64(facts)/cpu, "facts/cpu-s") // what it would be with a core of its own
			b.ReportMetric(float64(l.next)/folding.Seconds(), "pulls/s")
			b.ReportMetric(float64(most)/1024, "MiB")
			b.ReportMetric(float64(s.Bytes)/float64(l.next), "B/pull")
		})
	}
}

// resident is the memory of this process, in KiB, 0 where it cannot be told.
func resident() (kib int) {
	data, _ := os.ReadFile("/proc/self/status")
	if _, rest, ok := bytes.Cut(data, []byte("VmRSS:")); ok {
		_, _ = fmt.Sscan(string(rest), &kib)
	}
	return kib
}
