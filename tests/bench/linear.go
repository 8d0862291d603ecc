package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/topology"
)

// Line is the CPU time of an event against a number of something.
type Line struct {
	Name string `json:"name"`
	// Unit of X, in the plural.
	Unit   string  `json:"unit"`
	Points []Point `json:"points"`
	// Note says what is measured, where that is not obvious.
	Note string `json:"note"`
}

// Point is one measurement.
type Point struct {
	X float64 `json:"x"`
	// CPU time of an event, in µs: of each destination, in the line of destinations.
	CPU float64 `json:"cpu_us_per_event"`
	// Runs that CPU is the median of.
	Runs int `json:"runs"`
}

// spread is how far the dearest point is above the cheapest, as a share of their middle,
// halved: 0.1 is ± 10 %.
func (l Line) spread() float64 {
	least, most := math.Inf(1), 0.0
	for _, p := range l.Points {
		least, most = min(least, p.CPU), max(most, p.CPU)
	}
	return (most - least) / (most + least)
}

// lines measures those that are named in only, "" being all, and keeps what there is of
// the others. Scale shortens each and leaves out what would be too much.
func lines(ctx context.Context, c Contender, o Options, scale float64, only string, all []Line, say io.Writer) ([]Line, error) {
	known := []struct {
		name    string
		measure func(context.Context, Contender, Options, float64, io.Writer) (Line, error)
	}{{"events", lineOfEvents}, {"sources", lineOfSources}, {"destinations", lineOfDestinations}, {"types", lineOfTypes}}
	for _, one := range known {
		if only != "" && one.name != only {
			continue
		}
		l, err := one.measure(ctx, c, o, scale, say)
		if err != nil {
			return all, fmt.Errorf("line of %s: %w", one.name, err)
		}
		fmt.Fprintf(say, "bench: line of %s: ± %.0f %%\n", l.Unit, l.spread()*100)
		if i := slices.IndexFunc(all, func(old Line) bool { return old.Unit == l.Unit }); i >= 0 {
			all[i] = l
			continue
		}
		all = append(all, l)
	}
	return all, nil
}

// lineOfEvents has one process deliver ever more events, one lot after the other. What
// start-up costs is outside: the CPU time of a lot is that from its announcement until
// it is done, in a process that has delivered 20,000 events before.
func lineOfEvents(ctx context.Context, c Contender, o Options, scale float64, say io.Writer) (Line, error) {
	l := Line{Name: "Events", Unit: "events", Note: "lots of one process, after 20,000 events to warm up; CPU from a lot's announcement until it is done"}
	const records = 2000
	type lot struct{ objects, runs int }
	lots := []lot{{10, 1}, {5, 7}, {50, 3}}
	for n := 500; n <= int(5000*scale); n *= 10 {
		lots = append(lots, lot{n, 1})
	}
	total := 0
	for _, t := range lots {
		total += t.objects * t.runs
	}
	fmt.Fprintf(say, "bench: generating %d events\n", total*records)
	w, err := trail(total, records, 0.01)(1)
	if err != nil {
		return l, err
	}
	set := feed.CloudTrail(feed.Options{Seed: 1, Objects: total, RecordsPerObject: feed.Fixed(records), DuplicateShare: 0.01, Bucket: bucket})
	s, err := openSite(ctx, w, o, nil)
	if err != nil {
		return l, err
	}
	defer s.close()
	million, err := setNamed("million")
	if err != nil {
		return l, err
	}
	p, err := s.start(ctx, million, w, c, o)
	if err != nil {
		return l, err
	}
	defer p.kill()
	runtime.GC()
	from, wanted := 0, int64(0)
	for i, t := range lots {
		var used []float64
		for range t.runs {
			part := &Work{Keys: w.Keys[from : from+t.objects], Objects: w.Objects[from : from+t.objects]}
			for k := range t.objects {
				for _, dup := range set.EventIDs(from + k) {
					if !dup {
						wanted++
					}
				}
			}
			from += t.objects
			before, err := p.cpu()
			if err != nil {
				return l, err
			}
			if err := s.announce(part); err != nil {
				return l, err
			}
			if err := p.await(ctx, func() bool { return s.received() >= wanted }); err != nil {
				return l, fmt.Errorf("%d of %d events arrived: %w", s.received(), wanted, err)
			}
			after, err := p.cpu()
			if err != nil {
				return l, err
			}
			used = append(used, (after-before)/float64(t.objects*records)*1e6)
		}
		if i == 0 {
			continue // to warm up
		}
		l.Points = append(l.Points, Point{X: float64(t.objects * records), CPU: medianOf(used), Runs: t.runs})
		fmt.Fprintf(say, "bench: %d events: %.2f µs an event\n", t.objects*records, l.Points[len(l.Points)-1].CPU)
	}
	_, _, err = p.stop()
	return l, err
}

// cell is one measurement of a line: so many of what grows.
type cell struct {
	x   int
	set Set
	w   *Work
	o   Options
}

// inTurn measures all cells in three rounds, beginning with another one each time, and
// returns the median CPU time of an event of each, in µs.
func inTurn(ctx context.Context, c Contender, cells []cell, unit string, say io.Writer) ([]Point, error) {
	const runs = 3
	used := make([][]float64, len(cells))
	for i := range runs {
		for k := range cells {
			k = (i + k) % len(cells)
			r, err := measure(ctx, cells[k].set, cells[k].w, c, cells[k].o)
			if err != nil {
				return nil, fmt.Errorf("%d %s: %w", cells[k].x, unit, err)
			}
			used[k] = append(used[k], r.PerMillion())
			fmt.Fprintf(say, "bench: round %d, %d %s: %.2f µs an event\n", i+1, cells[k].x, unit, r.PerMillion())
		}
	}
	points := make([]Point, len(cells))
	for k := range cells {
		points[k] = Point{X: float64(cells[k].x), CPU: medianOf(used[k]), Runs: runs}
	}
	return points, nil
}

// lineOfSources divides the same objects among ever more sources.
func lineOfSources(ctx context.Context, c Contender, o Options, scale float64, say io.Writer) (Line, error) {
	const most = 200
	l := Line{Name: "Sources", Unit: "sources", Note: "the same objects of 1,000 events, divided among queues of their own, after 200 objects to warm up"}
	w, err := even.Make(max(2*most, 1000*scale) / 1000)
	if err != nil {
		return l, err
	}
	var cells []cell
	for _, n := range []int{1, 10, 50, most} {
		o.Sources, o.Warm = n, most
		cells = append(cells, cell{n, even, w, o})
	}
	l.Points, err = inTurn(ctx, c, cells, l.Unit, say)
	return l, err
}

// lineOfDestinations has a process with the stage deliver hand a stored log to ever more
// destinations. In a process with all stages the second destination would be the
// difference of two figures, each six times as large as what is looked for. It has the
// memory of such a process: by itself it would have less, and the garbage collector would
// be most of what two destinations cost.
func lineOfDestinations(ctx context.Context, c Contender, _ Options, scale float64, say io.Writer) (l Line, err error) {
	const memory = "212MiB"
	l = Line{Name: "Destinations", Unit: "destinations", Note: "CPU of each destination: the stage deliver alone, GOMEMLIMIT=" + memory + ", with a stored log of CloudTrail events and another process's NATS server; after 20,000 events to warm up"}
	dir, err := os.MkdirTemp("", "penstock-bench-*")
	if err != nil {
		return l, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	log, err := topology.StartEmbedded(topology.EmbeddedOptions{Dir: filepath.Join(dir, "log"), Disk: 8 << 30, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return l, err
	}
	defer log.Stop()
	c.Env = append(slices.Clip(c.Env), "GOMEMLIMIT="+memory)
	const warm, rounds = 20_000, 3
	events := max(50, int(200*scale)) * eventsPerFrame
	if _, err := fill(ctx, log.URL(), events); err != nil {
		return l, fmt.Errorf("fill the log: %w", err)
	}
	counts := []int{1, 2, 5, 10, 20}
	used := make([][]float64, len(counts))
	for i := range rounds {
		for k := range counts {
			k = (i + k) % len(counts)
			cpu, err := delivering(ctx, c, log.URL(), filepath.Join(dir, fmt.Sprintf("%d-%d", i, counts[k])), counts[k], warm, events)
			if err != nil {
				return l, fmt.Errorf("%d destinations: %w", counts[k], err)
			}
			used[k] = append(used[k], cpu)
			fmt.Fprintf(say, "bench: round %d, %d destinations: %.2f µs an event and destination\n", i+1, counts[k], cpu)
		}
	}
	for k, n := range counts {
		l.Points = append(l.Points, Point{X: float64(n), CPU: medianOf(used[k]), Runs: rounds})
	}
	return l, nil
}

// delivering is the CPU time, in µs, of the stage deliver for an event and a destination,
// of n that get all events of a log each. It is taken once each has had warm events.
func delivering(ctx context.Context, c Contender, log, dir string, n, warm, events int) (float64, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	s := &site{dir: dir}
	defer s.close()
	var yaml strings.Builder
	for i := range n {
		to, err := startSink(nil)
		if err != nil {
			return 0, err
		}
		s.sinks = append(s.sinks, to)
		fmt.Fprintf(&yaml, "  - {name: %q, type: http, url: %q}\n", fmt.Sprintf("web-%s-%d", filepath.Base(dir), i), to.url)
	}
	health, private, err := twoAddrs()
	if err != nil {
		return 0, err
	}
	config := filepath.Join(dir, "penstock.yaml")
	if err := os.WriteFile(config, []byte(deliverConfig(log, yaml.String(), health, private)), 0o600); err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, c.Binary, "run", "--stage", "deliver", "--config", config) //nolint:gosec // the program to measure
	cmd.Env = append(os.Environ(), c.Env...)
	p, err := start(ctx, cmd, health, private)
	if err != nil {
		return 0, err
	}
	defer p.kill()
	sum := func() (all int64) {
		for _, to := range s.sinks {
			all += to.lines.Load()
		}
		return all
	}
	if err := p.await(ctx, func() bool { return s.received() >= int64(warm) }); err != nil {
		return 0, err
	}
	before, had := 0.0, sum()
	if before, err = p.cpu(); err != nil {
		return 0, err
	}
	if err := p.await(ctx, func() bool { return s.received() >= int64(events) }); err != nil {
		return 0, fmt.Errorf("%d of %d events arrived: %w", s.received(), events, err)
	}
	after, err := p.cpu()
	if err != nil {
		return 0, err
	}
	if left := sum() - had; left < int64(n)*int64(events)/5 {
		return 0, fmt.Errorf("only %d events came after those to warm up: make scale larger", left)
	}
	cpu := (after - before) / float64(sum()-had) * 1e6
	_, _, err = p.stop()
	return cpu, err
}

// lineOfTypes gives the same events ever more types.
func lineOfTypes(ctx context.Context, c Contender, o Options, scale float64, say io.Writer) (Line, error) {
	l := Line{Name: "Event types", Unit: "event types", Note: "JSON lines of 300 bytes, 5,000 in an object, after 10 objects to warm up"}
	o.Warm = 10
	var cells []cell
	for _, n := range []int{1, 10, 100, 500} {
		set, w, err := typed(max(50, int(210*scale)), 5000, n)
		if err != nil {
			return l, err
		}
		cells = append(cells, cell{n, set, w, o})
	}
	var err error
	l.Points, err = inTurn(ctx, c, cells, l.Unit, say)
	return l, err
}

// typed makes objects of JSON lines with so many event types, evenly.
func typed(objects, each, types int) (Set, *Work, error) {
	set := Set{
		Name: "typed", About: "JSON lines",
		Source: readObjects + ", format: {type: json, id_field: id, time_field: ts, event_type: bench, event_type_field: kind}, auto_event_type: true",
	}
	w := &Work{}
	n := 0
	for i := range objects {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		for range each {
			k, err := fmt.Fprintf(z, `{"id":"%016x%08x","ts":"2026-01-05T12:%02d:%02dZ","kind":"kind-%03d","user":"user-%d","address":"198.18.%d.%d","session":"%016x","text":"%s"}`+"\n",
				uint64(n)*0x9e3779b97f4a7c15, n, n/60%60, n%60, n%types, n%97, n>>8&255, n&255, uint64(n)*0xd6e8feb86659fd93,
				"a line of an application that says what it has done, to whom and why, in about so many words")
			if err != nil {
				return set, nil, err
			}
			w.Raw += int64(k)
			n++
		}
		if err := z.Close(); err != nil {
			return set, nil, err
		}
		w.Keys, w.Objects = append(w.Keys, fmt.Sprintf("app/%05d.ndjson.gz", i)), append(w.Objects, packed.Bytes())
	}
	w.Records, w.Unique = n, n
	return set, w, nil
}
