package messages

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

// benchEvents makes n events of 800 bytes that compress like CloudTrail does,
// some 3 to 4 times.
func benchEvents(n int) []Event {
	r := rand.New(rand.NewPCG(7, 7))
	events := make([]Event, n)
	for i := range events {
		doc := fmt.Sprintf(`{"eventVersion":"1.11","eventID":"%016x%016x","eventTime":"2024-05-01T00:%02d:%02dZ","awsRegion":"eu-central-1",`+
			`"eventSource":"iam.amazonaws.com","eventName":"GetRole","sourceIPAddress":"10.%d.%d.%d","requestID":"%016x",`+
			`"userIdentity":{"type":"AssumedRole","principalId":"AROA%016X:s","arn":"arn:aws:sts::111122223333:assumed-role/app/%d"},`,
			r.Uint64(), r.Uint64(), i/60%60, i%60, r.IntN(256), r.IntN(256), r.IntN(256), r.Uint64(), r.Uint64(), r.IntN(1000))
		pad := 0
		for len(doc) < 780 {
			doc += fmt.Sprintf(`"k%d":"%s%x",`, pad, strings.Repeat("value ", 5), r.Uint32())
			pad++
		}
		doc = (doc + strings.Repeat(" ", 20))[:799] + "}"
		events[i] = Event{
			ID: NewID(fmt.Append(nil, i)), Time: 1_714_521_600_000_000_000 + int64(i)*1_000_000_000, Account: []string{"111122223333", "444455556666"}[i/250%2],
			Region: "eu-central-1", Record: uint64(i), Doc: []byte(doc),
		}
	}
	return events
}

func benchFrame(n int) []byte {
	b := NewBuilder(Header{Source: "trail", Format: "cloudtrail", EventType: "cloud.aws.cloudtrail.iam", Lane: 3})
	o := b.Origin(testOrigin(0))
	for _, e := range benchEvents(n) {
		e.Origin = o
		b.Add(e)
	}
	return b.Encode(nil)
}

// allocated returns the bytes that do allocates.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

const benchCount, benchBytes = 500, 500 * 800

func BenchmarkBuild(b *testing.B) {
	events, origin := benchEvents(benchCount), testOrigin(0)
	builder := NewBuilder(Header{})
	h := Header{Source: "trail", Format: "cloudtrail", EventType: "cloud.aws.cloudtrail.iam", Lane: 3}
	b.SetBytes(benchBytes)
	b.ReportAllocs()
	for b.Loop() {
		builder.Reset(h)
		builder.Origin(origin)
		for i := range events {
			builder.Add(events[i])
		}
		if builder.BodySize() != benchBytes {
			b.Fatal("wrong size")
		}
	}
}

func BenchmarkBuildAndEncode(b *testing.B) {
	for _, fresh := range []bool{false, true} {
		b.Run(map[bool]string{false: "into_reused", true: "into_fresh"}[fresh], func(b *testing.B) {
			events, origin := benchEvents(benchCount), testOrigin(0)
			builder := NewBuilder(Header{})
			h := Header{Source: "trail", Format: "cloudtrail", EventType: "cloud.aws.cloudtrail.iam", Lane: 3}
			want := len(benchFrame(benchCount))
			var dst []byte
			b.SetBytes(benchBytes)
			b.ReportAllocs()
			for b.Loop() {
				builder.Reset(h)
				builder.Origin(origin)
				for i := range events {
					builder.Add(events[i])
				}
				if fresh {
					dst = nil
				}
				if dst = builder.Encode(dst[:0]); len(dst) != want {
					b.Fatalf("%d bytes, want %d", len(dst), want)
				}
			}
			b.ReportMetric(float64(benchBytes)/float64(want), "ratio")
		})
	}
}

// BenchmarkMark is what dedupe does with a frame, without the lookup.
func BenchmarkMark(b *testing.B) {
	encoded := benchFrame(benchCount)
	b.SetBytes(int64(len(encoded)))
	b.ReportAllocs()
	for b.Loop() {
		v, err := DecodeFrame(encoded)
		if err != nil {
			b.Fatal(err)
		}
		for i := range v.Len() {
			fate := Live
			if id := v.ID(i); id[0] == 0xff {
				fate = Duplicate
			}
			v.SetFate(i, fate)
		}
		if live := v.Live(); live == 0 || live == benchCount {
			b.Fatalf("%d live", live)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	encoded := benchFrame(benchCount)
	b.SetBytes(int64(len(encoded)))
	b.ReportAllocs()
	for b.Loop() {
		if v, err := DecodeFrame(encoded); err != nil || v.Len() != benchCount {
			b.Fatal(err)
		}
	}
}

func BenchmarkColumns(b *testing.B) {
	v, err := DecodeFrame(benchFrame(benchCount))
	if err != nil {
		b.Fatal(err)
	}
	var c Columns
	b.ReportAllocs()
	for b.Loop() {
		if err := v.Columns(&c); err != nil || c.Lengths[benchCount-1] != 800 {
			b.Fatal(err)
		}
	}
}

func BenchmarkBody(b *testing.B) {
	v, err := DecodeFrame(benchFrame(benchCount))
	if err != nil {
		b.Fatal(err)
	}
	var body []byte
	b.SetBytes(benchBytes)
	b.ReportAllocs()
	for b.Loop() {
		if body, err = v.Body(body); err != nil || len(body) != benchBytes {
			b.Fatal(err)
		}
	}
}
