package sources

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/topology"
)

// voice is a Voiso event, as one message holds it. Source: formats F-1.
func voice(i int) string {
	return fmt.Sprintf(`{"timestamp":"2026-01-05T12:%02d:%02d.%03dZ","type":"agent_status","event":"changed","callcenter":"example-cc","params":{"user":"agent.%04d@example.org",`+
		`"session":"%08x-%d","from":"available","to":"busy","ip":"192.0.2.%d","reason":"call %d of the day"}}`, i/60%60, i%60, i%1000, i%5000, i*2654435761, i, i%250, i%90)
}

// BenchmarkSQSBodies is a backlog of messages with one event each, through HTTP and
// the real SDK, to an outbox that stores at once. The endpoint runs in the same
// process: its CPU time is in that of a message.
func BenchmarkSQSBodies(b *testing.B) {
	const backlog = 50_000
	c, err := cloud.Start(b.Context(), cloud.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	cfg := defaultSQS()
	cfg.Body = BodyEvents
	cfg.AWS = awsclient.Config{Region: c.Region(), AccessKey: "AKIATEST", SecretKey: config.NewSecret("secret")}
	bodies := make([]string, backlog)
	size := 0
	for i := range bodies {
		bodies[i] = voice(i)
		size += len(bodies[i])
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	var used time.Duration
	for n := 0; b.Loop(); n++ {
		b.StopTimer()
		name := fmt.Sprintf("voice-%d", n)
		if cfg.QueueURL, err = c.CreateQueue(name, nil); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Send(name, bodies...); err != nil {
			b.Fatal(err)
		}
		bus := &topology.Recorder{}
		src, err := openSQS(b.Context(), cfg, Deps{
			Name: "bench", Format: "json", Choose: chooseAuto, NewOutbox: func() topology.Outbox { return bus },
		})
		if err != nil {
			b.Fatal(err)
		}
		before := cpuTime()
		b.StartTimer()
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- src.Run(ctx) }()
		if err := c.Wait(ctx, func() bool { return settled(c.Queue(name)) }); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		used += cpuTime() - before
		cancel()
		c.Close() // ends the polls
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		if got := recordsIn(b, bus); got != backlog {
			b.Fatalf("%d records in %d frames, want %d", got, len(bus.Messages()), backlog)
		}
		b.ReportMetric(float64(backlog)/float64(len(bus.Messages())), "messages/frame")
		if c, err = cloud.Start(b.Context(), cloud.Options{}); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(c.Close)
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N)*backlog/b.Elapsed().Seconds(), "messages/s")
	b.ReportMetric(float64(used.Microseconds())/float64(b.N*backlog), "cpu-µs/message")
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
