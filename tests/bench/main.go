// Command bench measures the whole pipeline, as one process with every stage and
// the NATS server inside, durable at each hop: CloudTrail objects announced
// through SQS, delivered as NDJSON over HTTP.
//
// The S3 and SQS endpoint and the HTTP receiver run in this process; what is
// reported is the penstock process alone, as the operating system accounts for it.
// On a shared machine only ratios of runs side by side mean anything.
//
//	go run ./tests/bench -set million     1 M events in 500 objects
//	go run ./tests/bench -set huge        one object of 500 k records
//	go run ./tests/bench -set tiny        20 k objects of 5 records
//	go run ./tests/bench -set paced       latency at a fixed rate
//	go run ./tests/bench -set sqs         300 k events in as many SQS messages
//	go run ./tests/bench -set latency     latency at half of what a part of the set million takes
//	go run ./tests/bench -set destinations -rounds 3
//	                                      200 k stored events to ten destinations, one of them dead
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
)

// Result is one run.
type Result struct {
	Set     string `json:"set"`
	Objects int    `json:"objects"`
	Records int    `json:"records"`
	Unique  int    `json:"unique"`
	// RawBytes before compression.
	RawBytes int64   `json:"raw_bytes"`
	Seconds  float64 `json:"seconds"`
	// CPUSeconds of the penstock process, user and system, start and stop included.
	CPUSeconds       float64 `json:"cpu_seconds"`
	UserSeconds      float64 `json:"user_seconds"`
	SystemSeconds    float64 `json:"system_seconds"`
	CPUPerMillion    float64 `json:"cpu_seconds_per_million_events"`
	EventsPerSecond  float64 `json:"events_per_second"`
	ObjectsPerSecond float64 `json:"objects_per_second"`
	MBPerSecond      float64 `json:"mb_per_second"`
	PeakRSSMiB       float64 `json:"peak_rss_mib"`
	// Latency from an object's creation to the confirmation of its events.
	P50 float64 `json:"latency_p50_seconds"`
	P99 float64 `json:"latency_p99_seconds"`
	// EndpointCPU is what this process used meanwhile: the S3 and SQS endpoint, the
	// sender and the HTTP receiver.
	EndpointCPU float64 `json:"endpoint_cpu_seconds"`
	// Received events; more than Unique means that some came twice.
	Received int64  `json:"received"`
	Machine  string `json:"machine"`
}

func main() {
	set := flag.String("set", "million", "million, huge, tiny, paced, sqs, latency or destinations")
	binary := flag.String("binary", "", "penstock to measure; empty builds it from this tree")
	scale := flag.Float64("scale", 1, "fraction of the set, for a short run")
	rate := flag.Float64("rate", 25, "objects a second of the set paced")
	rounds := flag.Int("rounds", 3, "rounds of the set destinations")
	limit := flag.String("memlimit", "", "GOMEMLIMIT of penstock in the set destinations; empty: what it sets itself")
	asJSON := flag.Bool("json", false, "print JSON")
	profile := flag.String("profile", "", "write a CPU profile of penstock to this file")
	lanes := flag.Int("lanes", 0, "dedupe lanes; 0: the default")
	floor := flag.Bool("floor", false, "measure a plain loop that receives, gets, gunzips, splits, reads the id and posts, with no promise at all")
	keep := flag.String("store", "", "folder for the streams; empty: a temporary one")
	timeout := flag.Duration("timeout", 15*time.Minute, "give up after this time")
	flag.Parse()
	if os.Getenv(floorRole) != "" {
		if err := floorLoop(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "floor:", err)
			os.Exit(1)
		}
		return
	}
	if *floor {
		*set, *binary = *set+" (floor)", floorBinary
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	if *set == "destinations" {
		if err := destinations(ctx, *binary, *limit, *scale, *rounds); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if *set == "latency" {
		full, err := run(ctx, "million", *binary, *scale*0.3, *rate, "", "", *lanes)
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		*set, *rate = "paced", full.ObjectsPerSecond/2
		fmt.Fprintf(os.Stderr, "bench: full load is %.1f objects/s, %.0f events/s; now half of it\n", full.ObjectsPerSecond, full.EventsPerSecond)
	}
	r, err := run(ctx, *set, *binary, *scale, *rate, *profile, *keep, *lanes)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if *asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		_ = e.Encode(r)
		return
	}
	fmt.Printf(`set              %s: %d objects, %d records, %d unique
machine          %s
time             %.1f s
events/s         %.0f
objects/s        %.0f
raw MB/s         %.0f
CPU              %.1f s (%.1f user, %.1f system)
CPU s/1 M events %.2f
peak RSS         %.0f MiB
latency p50/p99  %.3f s / %.3f s (object created to confirmed)
endpoint CPU     %.1f s
received         %d
`, r.Set, r.Objects, r.Records, r.Unique, r.Machine, r.Seconds, r.EventsPerSecond, r.ObjectsPerSecond, r.MBPerSecond,
		r.CPUSeconds, r.UserSeconds, r.SystemSeconds, r.CPUPerMillion, r.PeakRSSMiB, r.P50, r.P99, r.EndpointCPU, r.Received)
}

const bucket, queue = "bench-trail", "bench"

func options(set string, scale, rate float64) (feed.Options, error) {
	o := feed.Options{Seed: 1, DuplicateShare: 0.01, Bucket: bucket, Level: 6}
	n := func(objects int) int { return max(1, int(float64(objects)*scale)) }
	switch set {
	case "million":
		o.Objects, o.RecordsPerObject = n(500), feed.Fixed(2000)
	case "huge":
		o.Objects, o.RecordsPerObject = 1, feed.Fixed(n(500_000))
	case "tiny":
		o.Objects, o.RecordsPerObject = n(20_000), feed.Fixed(5)
	case "paced":
		o.Objects, o.RecordsPerObject = n(int(rate*30)), feed.Fixed(2000)
	case setSQS:
		o.Objects, o.RecordsPerObject = n(300_000), feed.Fixed(1) // messages, in fact
	default:
		return o, fmt.Errorf("no set is called %q", set)
	}
	return o, nil
}

func run(ctx context.Context, name, binary string, scale, rate float64, profile, store string, lanes int) (_ Result, err error) {
	r := Result{Set: name, Machine: machine()}
	name, isFloor := strings.CutSuffix(name, " (floor)")
	o, err := options(name, scale, rate)
	if err != nil {
		return r, err
	}
	dir, err := os.MkdirTemp("", "penstock-bench-*")
	if err != nil {
		return r, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if store == "" {
		store = filepath.Join(dir, "store")
	}
	if binary == "" {
		binary = filepath.Join(dir, "penstock")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "./services/penstock").CombinedOutput(); err != nil { //nolint:gosec // our own tree
			return r, fmt.Errorf("build penstock: %w\n%s", err, out)
		}
	}
	aws, err := cloud.Start(ctx, cloud.Options{})
	if err != nil {
		return r, err
	}
	defer aws.Close()
	queueURL, err := aws.CreateQueue(queue, nil)
	if err != nil {
		return r, err
	}
	if err := aws.CreateBucket(bucket, cloud.BucketOptions{}); err != nil {
		return r, err
	}
	inBodies := name == setSQS
	if inBodies && isFloor {
		return r, errors.New("the floor reads objects, not events in messages")
	}
	set := feed.CloudTrail(o)
	fmt.Fprintf(os.Stderr, "bench: generating %d objects\n", set.Len())
	var objects []cloud.Object
	if !inBodies {
		objects = make([]cloud.Object, set.Len())
	}
	for i := range objects {
		if set.Records(i) > 50_000 {
			var b bytes.Buffer
			if err := set.WriteGzip(&b, i); err != nil {
				return r, err
			}
			objects[i].Body = b.Bytes()
		} else {
			objects[i].Body = set.Object(i).Body
		}
		r.Records += set.Records(i)
		if i == 0 {
			r.RawBytes = rawSize(set, i) / int64(set.Records(i))
		}
	}
	r.RawBytes *= int64(r.Records)
	r.Objects, r.Unique = set.Len(), set.Unique()
	var bodies []string
	if inBodies {
		bodies = make([]string, o.Objects)
		for i := range bodies {
			bodies[i] = voice(i)
			r.RawBytes += int64(len(bodies[i]))
		}
		r.Records, r.Unique = len(bodies), len(bodies)
	}
	wanted := r.Unique
	if isFloor {
		wanted = r.Records // it knows no duplicates
	}

	sink, err := startSink()
	if err != nil {
		return r, err
	}
	defer sink.close()
	health, private, err := twoAddrs()
	if err != nil {
		return r, err
	}
	config := filepath.Join(dir, "penstock.yaml")
	extra := ""
	if lanes > 0 {
		extra = fmt.Sprintf("\ndedupe: {lanes: %d}", lanes)
	}
	source := fmt.Sprintf("buckets: [%s], wait_time: 5s, bucket_aws: {endpoint_url: %q, path_style: true}", bucket, aws.URL())
	if inBodies {
		source = "body: events, format: {type: voiso}, wait_time: 1s, max_receivers: 16"
	}
	yaml := fmt.Sprintf(`bus: {store: %q, disk: 8GiB}%s
sources:
  - {name: bench, type: sqs, queue_url: %q, %s}
destinations:
  - {name: web, type: http, url: %q}
telemetry: {address: %q, private_address: %q, log_level: warn, log_format: json}
`, store, extra, queueURL, source, sink.url, health, private)
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		return r, err
	}
	if isFloor {
		if binary, err = os.Executable(); err != nil {
			return r, err
		}
	}
	cmd := exec.CommandContext(ctx, binary, "run", "--config", config) //nolint:gosec // the program to measure
	if isFloor {
		cmd = exec.CommandContext(ctx, binary)
		cmd.Env = append(cmd.Env, floorRole+"="+queueURL+"|"+aws.URL()+"|"+sink.url+"|"+health)
	}
	cmd.Env = append(append(cmd.Env, os.Environ()...), "AWS_ACCESS_KEY_ID=bench", "AWS_SECRET_ACCESS_KEY=bench", "AWS_REGION=us-east-1", "AWS_EC2_METADATA_DISABLED=true")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return r, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := await(ctx, ended, func() bool { return get("http://"+health+"/readyz", io.Discard) == nil }); err != nil {
		return r, fmt.Errorf("penstock did not become ready: %w", err)
	}
	profiled := make(chan error, 1)
	if profile != "" {
		go func() { profiled <- writeProfile(private, profile) }()
	} else {
		profiled <- nil
	}
	// Objects first, notices when all is there, so that the sender is not measured.
	for i, obj := range objects {
		obj.Quiet = true
		if _, err := aws.Put(bucket, set.Key(i), obj); err != nil {
			return r, err
		}
	}
	runtime.GC()
	fmt.Fprintf(os.Stderr, "bench: running\n")
	began, before := time.Now(), cpuSeconds()
	if inBodies {
		go send(aws, bodies)
	} else {
		go announce(ctx, aws, set, objects, name == "paced", rate)
	}
	if err := await(ctx, ended, func() bool { return sink.lines.Load() >= int64(wanted) }); err != nil {
		return r, fmt.Errorf("%d of %d events arrived: %w", sink.lines.Load(), wanted, err)
	}
	r.Seconds = time.Since(began).Seconds()
	r.EndpointCPU = cpuSeconds() - before
	var metrics bytes.Buffer
	if !isFloor {
		if err := get("http://"+health+"/metrics", &metrics); err != nil {
			return r, err
		}
	}
	r.P50, r.P99 = quantile(metrics.String(), 0.5), quantile(metrics.String(), 0.99)
	if err := <-profiled; err != nil {
		return r, fmt.Errorf("profile: %w", err)
	}
	r.PeakRSSMiB = peakRSS(cmd.Process.Pid)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return r, err
	}
	if err := <-ended; err != nil {
		return r, fmt.Errorf("penstock ended badly: %w", err)
	}
	r.UserSeconds, r.SystemSeconds = cmd.ProcessState.UserTime().Seconds(), cmd.ProcessState.SystemTime().Seconds()
	r.CPUSeconds = r.UserSeconds + r.SystemSeconds
	r.Received = sink.lines.Load()
	r.CPUPerMillion = r.CPUSeconds / float64(r.Records) * 1e6
	r.EventsPerSecond = float64(r.Records) / r.Seconds
	r.ObjectsPerSecond = float64(r.Objects) / r.Seconds
	r.MBPerSecond = float64(r.RawBytes) / r.Seconds / 1e6
	return r, nil
}

// announce sends a notice for each object, as one S3 event message each.
func announce(ctx context.Context, aws *cloud.Cloud, set *feed.Set, objects []cloud.Object, paced bool, rate float64) {
	var batch []string
	tick := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer tick.Stop()
	for i, o := range objects {
		batch = append(batch, string(cloud.Message(cloud.Direct, cloud.Event{
			Name: "ObjectCreated:Put", Bucket: bucket, Key: set.Key(i), Region: aws.Region(), Size: int64(len(o.Body)), Time: time.Now(),
		})))
		if !paced && len(batch) < 100 && i < len(objects)-1 {
			continue
		}
		if _, err := aws.Send(queue, batch...); err != nil {
			fmt.Fprintln(os.Stderr, "bench: send:", err)
			return
		}
		batch = batch[:0]
		if paced {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}
}

// setSQS is the set of events in message bodies.
const setSQS = "sqs"

// voice is the i-th event of a telephone system, as one message holds it. Source:
// formats F-1.
func voice(i int) string {
	return fmt.Sprintf(`{"timestamp":"2026-01-05T12:%02d:%02d.%02dZ","type":"user","event":"user_added","callcenter":"tenant-%d","params":{"who":"op%d@example.org",`+
		`"user":"user%d@example.org","access_group":"agent","session":"%08x-%d"}}`, i/6000%60, i/100%60, i%100, i%3, i%9, i, uint32(i)*2654435761, i)
}

// send puts the bodies into the queue.
func send(aws *cloud.Cloud, bodies []string) {
	for batch := range slices.Chunk(bodies, 1000) {
		if _, err := aws.Send(queue, batch...); err != nil {
			fmt.Fprintln(os.Stderr, "bench: send:", err)
			return
		}
	}
}

// cpuSeconds is what this process has used, user and system.
func cpuSeconds() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// peakRSS is the most memory that a process has had so far, in MiB. What the system
// tells of a process that has ended is of no use: that begins with what its parent, this
// program, had when it started it. Source: proc(5), VmHWM; getrusage(2).
func peakRSS(pid int) float64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // absent elsewhere than on Linux: 0
	_, rest, _ := strings.Cut(string(data), "VmHWM:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0
	}
	kib, _ := strconv.ParseFloat(fields[0], 64) // 0 says that it is not known
	return kib / 1024
}

func rawSize(set *feed.Set, i int) int64 {
	n := int64(0)
	for k := range min(set.Records(i), 2000) {
		n += int64(len(set.Record(nil, i, k))) + 1
	}
	return n * int64(set.Records(i)) / int64(min(set.Records(i), 2000))
}

func await(ctx context.Context, ended <-chan error, ok func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			return errors.Join(errors.New("penstock ended"), err)
		case <-tick.C:
		}
	}
	return nil
}

func get(url string, to io.Writer) error {
	response, err := http.Get(url) //nolint:gosec,noctx // loopback, bounded by the caller
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	_, err = io.Copy(to, response.Body)
	return err
}

func writeProfile(private, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(get("http://"+private+"/debug/pprof/profile?seconds=8", f), f.Close())
}

func twoAddrs() (a, b string, err error) {
	one, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	two, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", errors.Join(err, one.Close())
	}
	return one.Addr().String(), two.Addr().String(), errors.Join(one.Close(), two.Close())
}

// sink counts lines and keeps nothing.
type sink struct {
	url    string
	lines  atomic.Int64
	server *http.Server
}

func startSink() (*sink, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sink{url: "http://" + l.Addr().String() + "/"}
	s.server = &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buf, n := make([]byte, 256<<10), int64(0)
		for {
			k, err := r.Body.Read(buf)
			n += int64(bytes.Count(buf[:k], []byte{'\n'}))
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return
			}
		}
		s.lines.Add(n)
		w.WriteHeader(http.StatusNoContent)
	})}
	go func() { _ = s.server.Serve(l) }()
	return s, nil
}

func (s *sink) close() { _ = s.server.Close() }

// latencyMetric is the histogram of deliver from an object's creation to the
// confirmation of its events.
const latencyMetric = "penstock_deliver_latency_seconds"

// quantile reads a quantile off a Prometheus histogram in text form, between the
// bounds of its bucket.
func quantile(text string, q float64) float64 {
	type bucket struct{ bound, count float64 }
	sums := map[float64]float64{}
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), latencyMetric+"_bucket{")
		if !ok {
			continue
		}
		_, after, _ := strings.Cut(rest, `le="`)
		le, after, _ := strings.Cut(after, `"`)
		bound, err := strconv.ParseFloat(le, 64)
		if err != nil {
			continue
		}
		count, err := strconv.ParseFloat(strings.TrimSpace(after[strings.LastIndexByte(after, ' ')+1:]), 64)
		if err == nil {
			sums[bound] += count
		}
	}
	var buckets []bucket
	for bound, count := range sums {
		buckets = append(buckets, bucket{bound, count})
	}
	slices.SortFunc(buckets, func(a, b bucket) int { return int(math.Copysign(1, a.bound-b.bound)) })
	if len(buckets) == 0 || buckets[len(buckets)-1].count == 0 {
		return 0
	}
	want := q * buckets[len(buckets)-1].count
	low, before := 0.0, 0.0
	for _, b := range buckets {
		if b.count >= want {
			if math.IsInf(b.bound, 1) {
				return low
			}
			return low + (b.bound-low)*(want-before)/(b.count-before)
		}
		low, before = b.bound, b.count
	}
	return low
}

func machine() string {
	cpu := "unknown CPU"
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d × %s, %s/%s, %s", runtime.NumCPU(), cpu, runtime.GOOS, runtime.GOARCH, runtime.Version())
}
