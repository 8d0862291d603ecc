package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/topology"
)

// round is one process with the stage deliver that hands the whole event log to nine
// destinations, or to ten.
type round struct {
	dead string
	// seconds until the last of the nine had confirmed all.
	seconds float64
	// slowest of the nine, by kind: events/s.
	rates map[string]float64
	cpu   float64
	rss   float64 // MiB, peak
}

// The ways in which the tenth destination is dead.
const (
	alive   = "none"
	refuses = "refuses" // nobody listens
	silent  = "silent"  // connections are taken, and nothing is ever answered
)

// destinations fills an event log once and has it delivered again and again, by two
// processes at a time: one has nine destinations, the other the same nine and one that
// is dead all the while. Side by side they share what else the machine does. Two with
// nine each show how far they differ by chance.
// The log, the receivers and the other NATS run in this process; what is reported is
// the deliver process alone.
func destinations(ctx context.Context, binary, limit string, scale float64, rounds int) error {
	dir, err := os.MkdirTemp("", "penstock-bench-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	log, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: filepath.Join(dir, "log"), Disk: 8 << 30, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer log.Stop()
	n := max(1, int(200*scale)) * eventsPerFrame
	size, err := fill(ctx, log.URL(), n)
	if err != nil {
		return fmt.Errorf("fill the log: %w", err)
	}
	other, err := startOther(ctx, filepath.Join(dir, "other"))
	if err != nil {
		return err
	}
	defer other.Shutdown()
	fmt.Printf("set              destinations: %d events of %d bytes, to http × 6, syslog, file and nats\nmachine          %s\n\n", n, size, machine())
	fmt.Printf("%-8s %8s %12s %8s %10s   %s\n", "tenth", "time s", "events/s × 9", "CPU s", "peak MiB", "events/s of the slowest of a kind")
	ratios, peak := map[string][]float64{}, 0.0
	for i := range rounds {
		for _, tenth := range []string{alive, refuses, silent} {
			var pair [2]round
			g, ctx := errgroup.WithContext(ctx)
			for k, dead := range []string{alive, tenth} {
				g.Go(func() (err error) {
					pair[k], err = deliverRound(ctx, binary, limit, filepath.Join(dir, fmt.Sprintf("%d%s%d", i, tenth, k)), log.URL(), other.ClientURL(), dead, n)
					return err
				})
			}
			if err := g.Wait(); err != nil {
				return fmt.Errorf("round %d, tenth %s: %w", i, tenth, err)
			}
			for _, r := range pair {
				peak = max(peak, r.rss)
				fmt.Printf("%-8s %8.1f %12.0f %8.1f %10.0f   http %.0f, syslog %.0f, file %.0f, nats %.0f\n", r.dead, r.seconds, 9*float64(n)/r.seconds, r.cpu, r.rss,
					r.rates["http"], r.rates["syslog"], r.rates["file"], r.rates["nats"])
			}
			ratios[tenth] = append(ratios[tenth], pair[0].seconds/pair[1].seconds)
		}
	}
	for _, tenth := range []string{alive, refuses, silent} {
		slices.Sort(ratios[tenth])
		fmt.Printf("throughput of the nine, tenth %-8s %.3f of that beside it, median of %.3f\n", tenth+":", ratios[tenth][rounds/2], ratios[tenth])
	}
	fmt.Printf("most memory of a deliver process: %.0f MiB\n", peak)
	return nil
}

const eventsPerFrame = 1000

// fill stores n events of CloudTrail, and returns the mean size of their documents.
func fill(ctx context.Context, address string, n int) (int, error) {
	bus, err := topology.Connect(ctx, topology.Options{URL: address, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return 0, err
	}
	defer bus.Close()
	if _, err := bus.Apply(ctx, topology.Limits{Disk: 8 << 30}); err != nil {
		return 0, err
	}
	set := feed.CloudTrail(feed.Options{Seed: 1, Objects: n / eventsPerFrame, RecordsPerObject: feed.Fixed(eventsPerFrame), Bucket: bucket, Level: 6})
	const kind = "cloud.aws.cloudtrail.events"
	out := bus.NewOutbox(topology.Route)
	var doc []byte
	bytes := 0
	for i := range set.Len() {
		b := messages.NewBuilder(messages.Header{Source: "bench", Format: "cloudtrail", EventType: kind})
		origin := b.Origin(&messages.Origin{Pull: messages.NewPull("bench", strconv.Itoa(i)), Source: "bench", Created: time.Now().UnixNano()})
		for k := range eventsPerFrame {
			doc = set.Record(doc[:0], i, k)
			bytes += len(doc)
			b.Add(messages.Event{
				ID: messages.NewID([]byte("bench"), []byte(strconv.Itoa(i)), []byte(strconv.Itoa(k))), Time: time.Now().UnixNano(),
				Account: set.Account(i), Region: set.Region(i), Origin: origin, Record: uint64(k), Doc: doc,
			})
		}
		m := topology.Message{Subject: topology.EventSubject(kind), ID: "bench-" + strconv.Itoa(i), Data: b.Encode(nil)}
		if err := out.Publish(ctx, m); err != nil {
			return 0, err
		}
	}
	return bytes / n, out.Flush(ctx)
}

// startOther starts the NATS server that the destination nats publishes to, with a
// stream that keeps the last of what comes.
func startOther(ctx context.Context, dir string) (*server.Server, error) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: dir})
	if err != nil {
		return nil, err
	}
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		return nil, errors.New("the other NATS server does not start")
	}
	nc, err := nats.Connect(s.ClientURL())
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "BENCH", Subjects: []string{"bench.>"}, MaxBytes: 64 << 20, Duplicates: time.Second})
	return s, err
}

// deliverRound runs one process until the nine have confirmed n events each.
func deliverRound(ctx context.Context, binary, limit, dir, log, other, dead string, n int) (r round, err error) {
	r = round{dead: dead, rates: map[string]float64{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return r, err
	}
	tag := filepath.Base(dir)
	var yaml strings.Builder
	names := map[string]string{} // kind by name
	add := func(kind, rest string) {
		name := fmt.Sprintf("%s-%s-%d", kind, tag, len(names))
		names[name] = kind
		fmt.Fprintf(&yaml, "  - {name: %s, type: %s, %s}\n", name, kind, rest)
	}
	var receivers []*sink
	for range 6 {
		s, err := startSink(nil)
		if err != nil {
			return r, err
		}
		defer s.close()
		receivers = append(receivers, s)
		add("http", fmt.Sprintf("url: %q", s.url))
	}
	drain, err := startDrain()
	if err != nil {
		return r, err
	}
	defer drain.Close() //nolint:errcheck // only listens
	add("syslog", fmt.Sprintf("address: %q, transport: tcp", drain.Addr()))
	add("file", fmt.Sprintf("path: %q", filepath.Join(dir, "events.ndjson")))
	add("nats", fmt.Sprintf("url: %q, subject: bench.events", other))
	switch dead {
	case refuses, silent:
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return r, err
		}
		if dead == refuses {
			_ = l.Close()
		} else {
			defer l.Close() //nolint:errcheck // only listens
		}
		fmt.Fprintf(&yaml, "  - {name: dead-%s, type: http, url: \"http://%s/\"}\n", tag, l.Addr())
	}
	health, private, err := twoAddrs()
	if err != nil {
		return r, err
	}
	config := filepath.Join(dir, "penstock.yaml")
	if err := os.WriteFile(config, []byte(deliverConfig(log, yaml.String(), health, private)), 0o600); err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, binary, "run", "--stage", "deliver", "--config", config) //nolint:gosec // the program to measure
	if limit != "" {
		cmd.Env = append(os.Environ(), "GOMEMLIMIT="+limit)
	}
	began := time.Now()
	p, err := start(ctx, cmd, health, private)
	if err != nil {
		return r, err
	}
	defer p.kill()
	took := map[string]float64{}
	if err := p.await(ctx, func() bool {
		var metrics bytes.Buffer
		if get("http://"+health+"/metrics", &metrics) != nil {
			return false
		}
		for name, confirmed := range confirmedBy(&metrics) {
			if names[name] != "" && confirmed >= n && took[name] == 0 {
				took[name] = time.Since(began).Seconds()
			}
		}
		return len(took) == len(names)
	}); err != nil {
		return r, fmt.Errorf("%d of %d destinations have all: %w", len(took), len(names), err)
	}
	for name, seconds := range took {
		r.seconds = max(r.seconds, seconds)
		rate := float64(n) / seconds
		if was := r.rates[names[name]]; was == 0 || rate < was {
			r.rates[names[name]] = rate
		}
	}
	for _, s := range receivers {
		if got := s.lines.Load(); got != int64(n) {
			return r, fmt.Errorf("an http receiver has %d events of %d", got, n)
		}
	}
	r.rss = p.memory("VmHWM")
	// With somebody who never answers, what is being sent may outlast the drain.
	if _, _, err := p.stop(); err != nil && dead != silent {
		return r, err
	}
	r.cpu = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	return r, os.RemoveAll(dir)
}

// deliverConfig is the configuration of a process with the stage deliver. log is the URL of
// the NATS server, with user and password, destinations are YAML.
func deliverConfig(log, destinations, health, private string) string {
	u, err := url.Parse(log)
	if err != nil {
		panic(err) // it is our own server's
	}
	password, _ := u.User.Password()
	return fmt.Sprintf("bus: {url: \"nats://%s\", user: %q, password: %q, disk: 8GiB}\ndestinations:\n%stelemetry: {address: %q, private_address: %q, log_level: error}\n",
		u.Host, u.User.Username(), password, destinations, health, private)
}

// confirmedBy reads how many events each destination has confirmed.
func confirmedBy(metrics io.Reader) map[string]int {
	out := map[string]int{}
	lines := bufio.NewScanner(metrics)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), `penstock_deliver_events_confirmed_total{destination="`)
		if !ok {
			continue
		}
		name, value, _ := strings.Cut(rest, `"} `)
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			out[name] = int(n)
		}
	}
	return out
}

// startDrain takes connections and reads what comes.
func startDrain() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(io.Discard, c)
				_ = c.Close()
			}()
		}
	}()
	return l, nil
}
