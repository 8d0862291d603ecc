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
	"strings"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
)

// Contender is a program that does the work of a set.
type Contender struct {
	Name string
	// Binary is a build of penstock; "" is the floor.
	Binary string
	// Bare floors post lines of text as they are, instead of the lines that penstock
	// makes of them.
	Bare bool
	// Env and Extra, which is YAML, are settings of penstock beside the defaults.
	Env   []string
	Extra string
	// Bus are more settings of the bus, each after a comma.
	Bus string
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
	// RawBytes are the events before compression, ReadBytes the objects or bodies,
	// DiskBytes what was written to disk, and SentBytes what the receiver got.
	RawBytes  int64 `json:"raw_bytes"`
	ReadBytes int64 `json:"read_bytes"`
	DiskBytes int64 `json:"disk_bytes"`
	SentBytes int64 `json:"sent_bytes"`
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
	// Heap is a file for a heap profile when all is done; "" is none.
	Heap string
	// Sources share the work, each with a queue of its own; 0 is 1. Destinations get all
	// of it, each one; 0 is 1. The floor knows one of each.
	Sources, Destinations int
	// Warm pieces come first and count for nothing, of a set whose pieces are alike: what
	// each source, type and destination costs once is not to be divided by the number of
	// events.
	Warm int
}

// site is what a contender reads from and writes to.
type site struct {
	aws    *cloud.Cloud
	queues []string // URLs
	sinks  []*sink
	dir    string
}

// openSite puts the objects of w there, without a word to anybody: the sender of notices
// is not to be measured, and nothing is to be done before the contender is ready.
func openSite(ctx context.Context, w *Work, o Options, seen func(body []byte)) (_ *site, err error) {
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
	for i := range max(1, o.Sources) {
		url, err := s.aws.CreateQueue(queueName(i), nil)
		if err != nil {
			return nil, err
		}
		s.queues = append(s.queues, url)
	}
	if err := s.aws.CreateBucket(bucket, cloud.BucketOptions{}); err != nil {
		return nil, err
	}
	if err := s.put(w); err != nil {
		return nil, err
	}
	for range max(1, o.Destinations) {
		to, err := startSink(seen)
		if err != nil {
			return nil, err
		}
		s.sinks = append(s.sinks, to)
	}
	return s, nil
}

// put stores the objects of w.
func (s *site) put(w *Work) error {
	for i, body := range w.Objects {
		if _, err := s.aws.Put(bucket, w.Keys[i], cloud.Object{Body: body, Quiet: true}); err != nil {
			return err
		}
	}
	return nil
}

func queueName(i int) string { return fmt.Sprintf("bench-%d", i) }

func (s *site) close() {
	for _, to := range s.sinks {
		to.close()
	}
	if s.aws != nil {
		s.aws.Close()
	}
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}

// received is how many events each sink has, at least.
func (s *site) received() int64 {
	least := s.sinks[0].lines.Load()
	for _, to := range s.sinks[1:] {
		least = min(least, to.lines.Load())
	}
	return least
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
		cmd := exec.CommandContext(ctx, self) //nolint:gosec // this program
		cmd.Env = slices.Concat(os.Environ(), credentials, []string{floorEnv(set, c.Bare, len(w.Bodies) > 0, s.queues[0], s.aws.URL(), s.sinks[0].url, health)})
		return start(ctx, cmd, health, health)
	}
	store := o.Store
	if store == "" {
		store = filepath.Join(s.dir, "store")
	}
	var yaml strings.Builder
	fmt.Fprintf(&yaml, "bus: {store: %q, disk: 8GiB%s}\nsources:\n", store, c.Bus)
	for i, url := range s.queues {
		fmt.Fprintf(&yaml, "  - {name: bench-%d, type: sqs, queue_url: %q, bucket_aws: {endpoint_url: %q, path_style: true}, %s}\n", i, url, s.aws.URL(), set.Source)
	}
	yaml.WriteString("destinations:\n")
	for i, to := range s.sinks {
		fmt.Fprintf(&yaml, "  - {name: web-%d, type: http, url: %q}\n", i, to.url)
	}
	fmt.Fprintf(&yaml, "telemetry: {address: %q, private_address: %q, log_level: warn, log_format: json}\n%s\n%s\n", health, private, o.Extra, c.Extra)
	config := filepath.Join(s.dir, "penstock.yaml")
	if err := os.WriteFile(config, []byte(yaml.String()), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, c.Binary, "run", "--config", config) //nolint:gosec // the program to measure
	cmd.Env = slices.Concat(os.Environ(), credentials, c.Env)
	return start(ctx, cmd, health, private)
}

// measure has one contender do the work once.
func measure(ctx context.Context, set Set, w *Work, c Contender, o Options) (r Result, err error) {
	s, err := openSite(ctx, w, o, nil)
	if err != nil {
		return r, err
	}
	defer s.close()
	p, err := s.start(ctx, set, w, c, o)
	if err != nil {
		return r, err
	}
	defer p.kill()
	warm, w := w.divide(o.Warm)
	if err := s.announce(warm); err != nil {
		return r, err
	}
	if err := p.await(ctx, func() bool { return s.received() >= int64(warm.Unique) }); err != nil {
		return r, fmt.Errorf("set %s, %s: %d of %d events to warm up arrived: %w", set.Name, c.Name, s.received(), warm.Unique, err)
	}
	wanted := int64(warm.Unique + w.Unique)
	if c.Binary == "" {
		wanted = int64(warm.Records + w.Records) // it knows no duplicates
	}
	r = Result{Set: set.Name, Contender: c.Name, Pieces: w.Pieces(), Records: w.Records, RawBytes: w.Raw, ReadBytes: w.Packed()}
	profiled := make(chan error, 1)
	if o.Profile == "" {
		profiled <- nil
	} else {
		go func() { profiled <- p.profile(o.Profile, "profile?seconds=8") }()
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
	err = p.await(ctx, func() bool { return s.received() >= wanted })
	r.Received = s.received()
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
	r.PeakRSSMiB, r.DiskBytes = p.memory("VmHWM"), p.written()
	for _, to := range s.sinks {
		r.SentBytes += to.bytes.Load()
	}
	if err := errors.Join(<-sent, <-profiled); err != nil {
		return r, err
	}
	if o.Heap != "" {
		if err := p.profile(o.Heap, "heap"); err != nil {
			return r, err
		}
	}
	if r.User, r.System, err = p.stop(); err != nil {
		return r, err
	}
	r.CPUTotal = r.User + r.System
	if r.Received = s.received(); r.Received != wanted {
		return r, fmt.Errorf("set %s, %s: %d events arrived, want %d", set.Name, c.Name, r.Received, wanted)
	}
	return r, nil
}

// announce sends all that there is, to all sources alike: a notice for each object, or
// the events.
func (s *site) announce(w *Work) error {
	batches := make([][]string, len(s.queues))
	for i := range w.Pieces() {
		q := i % len(batches)
		batches[q] = append(batches[q], s.message(w, i, time.Now()))
		if len(batches[q]) < 100 && i < w.Pieces()-len(batches) {
			continue
		}
		if _, err := s.aws.Send(queueName(q), batches[q]...); err != nil {
			return err
		}
		batches[q] = batches[q][:0]
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
