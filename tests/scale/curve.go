package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/topology"
)

// Point is one stage with so many replicas.
type Point struct {
	Stage    string `json:"stage"`
	Replicas int    `json:"replicas"`
	Events   int    `json:"events"`
	// Seconds until its input was empty, and the CPU time of all replicas without that
	// of their start.
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpu_seconds"`
	// PerSecond is by the clock, PerCPU by the CPU time of the stage alone: how many
	// events of its lag it takes away for each second of it.
	PerSecond     float64 `json:"events_per_second"`
	PerCPU        float64 `json:"events_per_cpu_second"`
	CPUPerMillion float64 `json:"cpu_seconds_per_million_events"`
}

// Curve is what curve prints.
type Curve struct {
	Machine string  `json:"machine"`
	Lanes   int     `json:"lanes"`
	Points  []Point `json:"points"`
	// BytesPerEvent that each stream holds, or has held.
	BytesPerEvent map[string]float64 `json:"bytes_per_event"`
}

const perObject = 2000

// curve has the stages work one after the other, each on what the one before has stored:
// nothing else runs meanwhile but the server, the endpoint and the receiver. Each replica
// has one processor at most.
func curve(ctx context.Context, w *world, stages []string, replicas string, events, lanes int) error {
	c := Curve{Lanes: lanes}
	aws, err := cloud.Start(ctx, cloud.Options{})
	if err != nil {
		return err
	}
	defer aws.Close()
	if err := aws.CreateBucket("scale", cloud.BucketOptions{}); err != nil {
		return err
	}
	set := feed.CloudTrail(feed.Options{Seed: 3, Objects: max(1, events/perObject), RecordsPerObject: feed.Fixed(perObject), DuplicateShare: 0.01, Bucket: "scale", Level: 6})
	for o := range set.All() {
		if _, err := aws.Put(o.Bucket, o.Key, cloud.Object{Body: o.Body, Quiet: true}); err != nil {
			return err
		}
	}
	for _, text := range strings.Split(replicas, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("%q replicas: use a number", text)
		}
		points, err := pass(ctx, w, aws, set, n, lanes)
		if err != nil {
			return fmt.Errorf("with %d replicas: %w", n, err)
		}
		for _, p := range points {
			for _, s := range stages {
				if p.Stage == s {
					c.Points = append(c.Points, p)
				}
			}
		}
	}
	states, err := w.bus.Show(ctx)
	if err != nil {
		return err
	}
	c.BytesPerEvent = map[string]float64{}
	for _, s := range states {
		// What the keeper has trimmed was as large.
		if s.Messages > 0 {
			c.BytesPerEvent[s.Stream] = float64(s.Bytes) / float64(s.Messages) * float64(s.Last) / float64(set.Len()*perObject)
		}
	}
	c.Machine = machine()
	if err := printJSON(c); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "\n| stage | replicas | events/s | CPU s per 1 M events | lag drained: events per CPU s |\n|---|---|---|---|---|")
	for _, s := range stages {
		for _, p := range c.Points {
			if p.Stage == s {
				fmt.Fprintf(os.Stderr, "| %s | %d | %.0f | %.2f | %.0f |\n", p.Stage, p.Replicas, p.PerSecond, p.CPUPerMillion, p.PerCPU)
			}
		}
	}
	return nil
}

func pass(ctx context.Context, w *world, aws *cloud.Cloud, set *feed.Set, n, lanes int) ([]Point, error) {
	if err := w.serve(ctx, topology.Limits{Disk: 40 << 30, Lanes: uint32(lanes)}); err != nil {
		return nil, err
	}
	sink, err := startSink()
	if err != nil {
		return nil, err
	}
	defer sink.close()
	name := fmt.Sprintf("scale-%d", n)
	queue, err := aws.CreateQueue(name, nil)
	if err != nil {
		return nil, err
	}
	records := 0
	for i := range set.Len() {
		if _, err := aws.Send(name, string(cloud.Message(cloud.Direct, cloud.Event{
			Name: "ObjectCreated:Put", Bucket: "scale", Key: set.Key(i), Region: aws.Region(), Size: 1, Time: time.Now(),
		}))); err != nil {
			return nil, err
		}
		records += set.Records(i)
	}
	extra := fmt.Sprintf(`dedupe: {lanes: %d}
sources:
  - {name: scale, type: sqs, queue_url: %q, buckets: [scale], wait_time: 1s, bucket_aws: {endpoint_url: %q, path_style: true}}
destinations:
  - {name: web, type: http, url: %q}
`, lanes, queue, aws.URL(), sink.url)

	stored := func(stream string) int {
		states, err := w.bus.Show(ctx)
		if err != nil {
			return 0
		}
		for _, s := range states {
			if s.Stream == stream {
				return int(s.Last)
			}
		}
		return 0
	}
	settled := func(stream, consumer string, total int) func() float64 {
		return func() float64 {
			states, err := w.bus.Show(ctx)
			if err != nil {
				return 0
			}
			for _, s := range states {
				for _, c := range s.Consumers {
					if s.Stream == stream && c.Consumer == consumer {
						return 1 - float64(c.Pending+uint64(c.InHand))/float64(total)
					}
				}
			}
			return 0
		}
	}
	var points []Point
	step := func(stage topology.Stage, replicas int, done func() float64) error {
		p, err := w.drain(ctx, stage, replicas, extra, done)
		p.Events = records
		p.PerSecond, p.PerCPU = float64(records)/p.Seconds, float64(records)/p.CPUSeconds
		p.CPUPerMillion = p.CPUSeconds / float64(records) * 1e6
		points = append(points, p)
		fmt.Fprintf(os.Stderr, "scale: %s × %d: %.0f events/s, %.2f CPU s per 1 M events\n", stage, replicas, p.PerSecond, p.CPUPerMillion)
		return err
	}
	if err := step(topology.Ingest, 1, func() float64 { return float64(stored(topology.Notices)) / float64(set.Len()) }); err != nil {
		return nil, err
	}
	if err := step(topology.Fetch, n, settled(topology.Notices, "fetch", set.Len())); err != nil {
		return nil, err
	}
	if err := step(topology.Parse, n, settled(topology.Records, "parse", stored(topology.Records))); err != nil {
		return nil, err
	}
	frames := stored(topology.Parsed)
	if err := step(topology.Dedupe, n, func() float64 { return float64(stored(topology.Unique)) / float64(frames) }); err != nil {
		return nil, err
	}
	if err := step(topology.Route, 1, settled(topology.Unique, "route", stored(topology.Unique))); err != nil {
		return nil, err
	}
	err = step(topology.Deliver, n, func() float64 { return float64(sink.lines.Load()) / float64(set.Unique()) })
	return points, err
}

// drain starts replicas of a stage, waits until its input is empty, and stops them. done
// says how much of it is, from 0 to 1.
func (w *world) drain(ctx context.Context, stage topology.Stage, replicas int, extra string, done func() float64) (Point, error) {
	p := Point{Stage: string(stage), Replicas: replicas}
	var all []*process
	for i := range replicas {
		r, err := w.stage(stage, i, extra, "GOMAXPROCS=1")
		if err != nil {
			return p, err
		}
		all = append(all, r)
	}
	cpu := func() (sum time.Duration) {
		for _, r := range all {
			sum += r.cpu()
		}
		return sum
	}
	if err := await(ctx, string(stage)+" begins", func() bool { return done() > 0 }); err != nil {
		return p, err
	}
	first, began := done(), time.Now()
	if err := await(ctx, string(stage)+" has done all", func() bool { return done() >= 1 }); err != nil {
		return p, err
	}
	// What was done before the clock started is added in proportion; what a replica takes
	// to start, and would take on any day once, is taken off.
	p.Seconds, p.CPUSeconds = time.Since(began).Seconds()/max(0.1, 1-first), cpu().Seconds()
	idle, err := w.stage(stage, replicas, extra, "GOMAXPROCS=1")
	if err != nil {
		return p, err
	}
	if err := await(ctx, "one more is ready", idle.ready); err != nil {
		return p, err
	}
	p.CPUSeconds -= float64(replicas) * idle.cpu().Seconds()
	w.kill(idle)
	for _, r := range all {
		if err := w.end(r); err != nil {
			return p, fmt.Errorf("%s ended badly: %w", r.name, err)
		}
	}
	return p, nil
}

// sinkServer counts lines.
type sinkServer struct {
	url    string
	lines  atomic.Int64
	server *http.Server
}

func startSink() (*sinkServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sinkServer{url: "http://" + l.Addr().String()}
	s.server = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(r.Body)
			if err != nil {
				return
			}
			body = z
		}
		buf, n := make([]byte, 64<<10), int64(0)
		for {
			k, err := body.Read(buf)
			n += int64(strings.Count(string(buf[:k]), "\n"))
			if err != nil {
				break
			}
		}
		s.lines.Add(n)
	})}
	go func() { _ = s.server.Serve(l) }()
	return s, nil
}

func (s *sinkServer) close() { _ = s.server.Close() }
