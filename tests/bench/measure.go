package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
)

// Contender is a program that does the work of a set.
type Contender struct {
	Name string
	// Binary is a build of penstock; "" is the floor.
	Binary string
}

// Result is one contender's run of one set.
type Result struct {
	Set       string `json:"set"`
	Contender string `json:"contender"`
	// Pieces are objects or messages.
	Pieces  int `json:"pieces"`
	Records int `json:"records"`
	// Received events: unique ones, unless the floor did it.
	Received int64 `json:"received"`
	// Seconds from the first announcement to the last event's confirmation.
	Seconds float64 `json:"seconds"`
	// CPU of the process, user and system, in the same time; CPUTotal has its start and
	// its end as well.
	CPU      float64 `json:"cpu_seconds"`
	CPUTotal float64 `json:"cpu_seconds_total"`
	User     float64 `json:"user_seconds_total"`
	System   float64 `json:"system_seconds_total"`
	// EndpointCPU is what this process used meanwhile: the S3 and SQS endpoint, the
	// sender and the HTTP receiver.
	EndpointCPU float64 `json:"endpoint_cpu_seconds"`
	// Mallocs and AllocBytes are allocations of the process in the same time as CPU.
	Mallocs    float64 `json:"mallocs"`
	AllocBytes float64 `json:"alloc_bytes"`
	PeakRSSMiB float64 `json:"peak_rss_mib"`
	RawBytes   int64   `json:"raw_bytes"`
}

// PerMillion is the CPU time of a million events, in seconds.
func (r Result) PerMillion() float64 { return r.CPU / float64(r.Records) * 1e6 }

// TotalPerMillion is the same with the process's start and end.
func (r Result) TotalPerMillion() float64 { return r.CPUTotal / float64(r.Records) * 1e6 }

// Rate is in events a second.
func (r Result) Rate() float64 { return float64(r.Records) / r.Seconds }

// MallocsPerEvent counts allocations.
func (r Result) MallocsPerEvent() float64 { return r.Mallocs / float64(r.Records) }

// Options are what runs have in common.
type Options struct {
	// Store is the folder for penstock's streams; "" is a temporary one for each run.
	Store string
	// Extra is YAML that is added to penstock's configuration.
	Extra string
	// Profile is a file for a CPU profile; "" is none.
	Profile string
}

// site is what a contender reads from and writes to.
type site struct {
	aws      *cloud.Cloud
	queueURL string
	sink     *sink
	dir      string
}

// openSite puts the objects of w there, without a word to anybody: the sender of notices
// is not to be measured, and nothing is to be done before the contender is ready.
func openSite(ctx context.Context, w *Work, seen func(body []byte)) (_ *site, err error) {
	s := &site{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.dir, err = os.MkdirTemp("", "penstock-bench-*"); err != nil {
		return nil, err
	}
	if s.aws, err = cloud.Start(ctx, cloud.Options{}); err != nil {
		return nil, err
	}
	if s.queueURL, err = s.aws.CreateQueue(queue, nil); err != nil {
		return nil, err
	}
	if err := s.aws.CreateBucket(bucket, cloud.BucketOptions{}); err != nil {
		return nil, err
	}
	for i, body := range w.Objects {
		if _, err := s.aws.Put(bucket, w.Keys[i], cloud.Object{Body: body, Quiet: true}); err != nil {
			return nil, err
		}
	}
	s.sink, err = startSink(seen)
	return s, err
}

func (s *site) close() {
	if s.sink != nil {
		s.sink.close()
	}
	if s.aws != nil {
		s.aws.Close()
	}
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}

// start runs a contender on the site.
func (s *site) start(ctx context.Context, set Set, w *Work, c Contender, o Options) (*process, error) {
	health, private, err := twoAddrs()
	if err != nil {
		return nil, err
	}
	credentials := []string{"AWS_ACCESS_KEY_ID=bench", "AWS_SECRET_ACCESS_KEY=bench", "AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true"}
	if c.Binary == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, self)
		cmd.Env = slices.Concat(os.Environ(), credentials, []string{floorEnv(set, len(w.Bodies) > 0, s.queueURL, s.aws.URL(), s.sink.url, health)})
		return start(ctx, cmd, health, health)
	}
	store := o.Store
	if store == "" {
		store = filepath.Join(s.dir, "store")
	}
	yaml := fmt.Sprintf(`bus: {store: %q, disk: 8GiB}
sources:
  - {name: bench, type: sqs, queue_url: %q, bucket_aws: {endpoint_url: %q, path_style: true}, %s}
destinations:
  - {name: web, type: http, url: %q}
telemetry: {address: %q, private_address: %q, log_level: warn, log_format: json}
%s
`, store, s.queueURL, s.aws.URL(), set.Source, s.sink.url, health, private, o.Extra)
	config := filepath.Join(s.dir, "penstock.yaml")
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, c.Binary, "run", "--config", config) //nolint:gosec // the program to measure
	cmd.Env = append(os.Environ(), credentials...)
	return start(ctx, cmd, health, private)
}

// measure has one contender do the work once.
func measure(ctx context.Context, set Set, w *Work, c Contender, o Options) (r Result, err error) {
	s, err := openSite(ctx, w, nil)
	if err != nil {
		return r, err
	}
	defer s.close()
	p, err := s.start(ctx, set, w, c, o)
	if err != nil {
		return r, err
	}
	defer p.kill()
	wanted := int64(w.Unique)
	if c.Binary == "" {
		wanted = int64(w.Records) // it knows no duplicates
	}
	r = Result{Set: set.Name, Contender: c.Name, Pieces: w.Pieces(), Records: w.Records, RawBytes: w.Raw}
	profiled := make(chan error, 1)
	profiled <- nil
	if o.Profile != "" {
		<-profiled
		go func() { profiled <- p.profile(o.Profile, 8) }()
	}
	runtime.GC()
	before, err := p.allocated()
	if err != nil {
		return r, err
	}
	cpu, err := p.cpu()
	if err != nil {
		return r, err
	}
	began, own := time.Now(), ownCPU()
	sent := make(chan error, 1)
	go func() { sent <- s.announce(w) }()
	err = p.await(ctx, func() bool { return s.sink.lines.Load() >= wanted })
	r.Received = s.sink.lines.Load()
	if err != nil {
		return r, fmt.Errorf("set %s, %s: %d of %d events arrived: %w", set.Name, c.Name, r.Received, wanted, err)
	}
	r.Seconds, r.EndpointCPU = time.Since(began).Seconds(), ownCPU()-own
	now, err := p.cpu()
	if err != nil {
		return r, err
	}
	r.CPU = now - cpu
	after, err := p.allocated()
	if err != nil {
		return r, err
	}
	r.Mallocs, r.AllocBytes = after.mallocs-before.mallocs, after.bytes-before.bytes
	r.PeakRSSMiB = p.memory("VmHWM")
	if err := errors.Join(<-sent, <-profiled); err != nil {
		return r, err
	}
	if r.User, r.System, err = p.stop(); err != nil {
		return r, err
	}
	r.CPUTotal = r.User + r.System
	if r.Received = s.sink.lines.Load(); r.Received != wanted {
		return r, fmt.Errorf("set %s, %s: %d events arrived, want %d", set.Name, c.Name, r.Received, wanted)
	}
	return r, nil
}

// announce sends all that there is: a notice for each object, or the events.
func (s *site) announce(w *Work) error {
	for i := 0; i < w.Pieces(); i += 100 {
		batch := make([]string, 0, 100)
		for k := i; k < min(i+100, w.Pieces()); k++ {
			batch = append(batch, s.message(w, k, time.Now()))
		}
		if _, err := s.aws.Send(queue, batch...); err != nil {
			return err
		}
	}
	return nil
}

// message is the one that brings piece i.
func (s *site) message(w *Work, i int, created time.Time) string {
	if len(w.Bodies) > 0 {
		return w.Bodies[i]
	}
	return string(cloud.Message(cloud.Direct, cloud.Event{
		Name: "ObjectCreated:Put", Bucket: bucket, Key: w.Keys[i], Region: s.aws.Region(), Size: int64(len(w.Objects[i])), Time: created,
	}))
}
