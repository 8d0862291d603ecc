package deliver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/topology"
)

// BenchmarkReplay replays a million events of 1.3 KB, that compress by 4, to an HTTP
// server.
func BenchmarkReplay(b *testing.B) {
	const frames, each = 1000, 1000
	w := &replayWorld{pullWorld: newPullWorld(b, topology.Limits{Disk: 4 << 30}), cfg: destination()}
	source := rand.New(rand.NewPCG(1, 2))
	out := w.bus.NewOutbox(topology.Route)
	f := messages.NewBuilder(messages.Header{Source: "s", Format: "json", EventType: "cloud.aws.cloudtrail.iam"})
	origin := f.Origin(&messages.Origin{Pull: messages.NewPull("test"), Source: "s"})
	var noise [150]byte
	for i := range each {
		for k := range noise {
			noise[k] = byte(source.Uint32())
		}
		f.Add(messages.Event{ID: messages.NewID(noise[:]), Time: int64(i + 1), Origin: origin, Record: uint64(i), Doc: fmt.Appendf(nil, `{"n":%d,"noise":"%x","pad":%q}`, i, noise, strings.Repeat("pad", 320))})
	}
	data := f.Encode(nil)
	for i := range frames {
		if err := out.Publish(b.Context(), topology.Message{Subject: topology.EventSubject("cloud.aws.cloudtrail.iam"), ID: fmt.Sprint(i), Data: data, Events: each, Bytes: each * 1300, Source: "s"}); err != nil {
			b.Fatal(err)
		}
	}
	if err := out.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	var lines, size atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		buffer := make([]byte, 64<<10)
		for {
			n, err := r.Body.Read(buffer)
			lines.Add(int64(bytes.Count(buffer[:n], []byte{'\n'})))
			size.Add(int64(n))
			if err == io.EOF {
				return
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = w.bus.RunJobs(ctx, Replays(ReplayDeps{Bus: w.bus, Current: w.current, Open: func(context.Context, Destination, string) (sinks.Sink, error) {
			return openSink(b, "http", sinks.Deps{Destination: "test"}, func(cfg any) { cfg.(*sinks.HTTPConfig).URL = server.URL }), nil
		}}))
	}()
	defer func() { cancel(); <-ended }()
	b.ResetTimer()
	for b.Loop() {
		lines.Store(0)
		size.Store(0)
		j := w.replay(func(r *jobs.Replay) { r.Total = frames * each })
		j = w.await(j.ID, "the end", state(topology.JobDone))
		if lines.Load() != frames*each {
			b.Fatalf("%d lines: %+v", lines.Load(), j.Progress)
		}
		took := j.Ended.Sub(j.Started).Seconds()
		b.ReportMetric(frames*each/took, "events/s")
		b.ReportMetric(float64(size.Load())/took/1e6, "MB/s")
	}
}
