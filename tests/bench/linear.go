package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"runtime"

	"github.com/klauspost/compress/gzip"

	"github.com/penstock/penstock/services/demo/feed"
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

// lines measures all of them. Scale shortens each and leaves out what would be too much.
func lines(ctx context.Context, c Contender, o Options, scale float64, say io.Writer) ([]Line, error) {
	var all []Line
	for _, one := range []func(context.Context, Contender, Options, float64, io.Writer) (Line, error){
		lineOfEvents, lineOfSources, lineOfDestinations, lineOfTypes,
	} {
		l, err := one(ctx, c, o, scale, say)
		if err != nil {
			return all, fmt.Errorf("line of %s: %w", l.Unit, err)
		}
		fmt.Fprintf(say, "bench: line of %s: ± %.0f %%\n", l.Unit, l.spread()*100)
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

// lineOfDestinations sends the same to ever more destinations.
func lineOfDestinations(ctx context.Context, c Contender, o Options, scale float64, say io.Writer) (Line, error) {
	l := Line{Name: "Destinations", Unit: "destinations", Note: "CPU of one destination more: what all of them cost above the first, divided by their number; after 20,000 events to warm up"}
	w, err := even.Make(max(70, 520*scale) / 1000)
	if err != nil {
		return l, err
	}
	var cells []cell
	for _, n := range []int{1, 2, 5, 10, 20} {
		o.Destinations, o.Warm = n, 20
		cells = append(cells, cell{n, even, w, o})
	}
	points, err := inTurn(ctx, c, cells, l.Unit, say)
	if err != nil {
		return l, err
	}
	for _, p := range points[1:] {
		p.CPU = (p.CPU - points[0].CPU) / (p.X - 1)
		l.Points = append(l.Points, p)
	}
	return l, nil
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
