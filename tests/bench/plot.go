package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// peer is another system, as it was measured with the same work on another machine
// of two cores.
type peer struct {
	name    string
	durable string // durable between stages, deduped, replayable
	cpu     float64
	rate    float64
	rss     float64
}

// peers are figures of the issue that set the goals: 1 M CloudTrail events in 500 gzip
// objects announced through SQS, delivered as NDJSON over HTTP, median of three runs.
var peers = []peer{
	{"floor of that machine", "no", 5.8, 164_000, 17},
	{"OpenTelemetry Collector (awss3receiver)", "no", 25.9, 53_000, 249},
	{"Substation", "no", 34.6, 45_000, 151},
	{"Redpanda Connect", "no", 55.6, 33_000, 524},
	{"Filebeat (aws-s3)", "no", 61.7, 27_000, 222},
}

// plots are the files of a report, by name.
func plots(r *Report) map[string]string {
	all := map[string]string{}
	// under says where a plot's figures come from; where its parts differ, of the first.
	under := func(parts ...string) string {
		text := r.Parts[parts[0]].String()
		if slices.ContainsFunc(parts, func(p string) bool { return r.Parts[p].String() != text }) {
			text += " for " + parts[0] + "; the page tells of the others"
		}
		return text
	}
	if p := r.find("million"); p != nil {
		list := []bar{{"floor", 1, "c1", "1.0"}}
		ratio := p.ratio(penstockName, floorName)
		list = append(list, bar{"penstock, durable and deduped", ratio, "c0", fmt.Sprintf("%.1f", ratio)})
		for _, other := range peers[1:] {
			name, _, _ := strings.Cut(other.name, " (")
			v := other.cpu / peers[0].cpu
			list = append(list, bar{name, v, "c1", fmt.Sprintf("%.1f", v)})
		}
		all["performance-systems.svg"] = bars("CPU time for 1 M CloudTrail events", "Each system's by that of a plain loop on its own machine; only penstock stores, dedupes and can replay", "penstock: "+under("million"),
			"times the CPU of the plain loop", list, 0, "")
	}
	var ratios, memory []bar
	var names []string
	for _, p := range r.Pairs {
		if r.find(p.Set) == nil {
			continue
		}
		v, rss := p.ratio(penstockName, floorName), median(p.of(penstockName, func(r Result) float64 { return r.PeakRSSMiB }))
		class := "c1"
		if set, err := setNamed(p.Set); err == nil && set.Limit > 0 {
			class = "c0"
		}
		names = append(names, p.Set)
		ratios = append(ratios, bar{p.Set, v, class, fmt.Sprintf("%.2f", v)})
		memory = append(memory, bar{p.Set, rss, "c0", fmt.Sprintf("%.0f MiB", rss)})
	}
	if len(ratios) > 0 {
		all["performance-sets.svg"] = bars("CPU time of each set", "By that of its floor, a plain loop that does the same work and promises nothing; the goal is that of the blue ones", under(names...),
			"times the CPU of its floor", ratios, 2.5, "goal 2.5")
		all["performance-memory.svg"] = bars("Peak memory", "All stages and the NATS server in one process", under(names...), "resident memory, MiB", memory, 300, "goal 300")
	}
	if r.Half != nil || r.Steady != nil {
		all["performance-latency.svg"] = plotLatency(r, under(partHalf, partSteady))
	}
	if len(r.Lines) > 0 {
		all["performance-linear.svg"] = plotLines(r.Lines, under(partLinear))
	}
	return all
}

// plotLatency draws how many events had come after a time.
func plotLatency(r *Report, under string) string {
	d := newDrawing(820, 430, "Latency", "From an object's creation to the confirmation of its events", under)
	p := &panel{drawing: d, left: 70, top: 128, width: 700, height: 240, least: 10, most: 3000, end: 100}
	type curve struct {
		*Latency
		name, class string
	}
	var curves []curve
	add := func(l *Latency, name, class string) {
		if l != nil && len(l.Curve) == 101 {
			curves = append(curves, curve{l, name, class})
			p.least, p.most = min(p.least, max(1, l.Curve[0]*1000)), max(p.most, l.Max*1100)
		}
	}
	if r.Half != nil {
		add(&r.Half.Latency, "half of full load", "0")
	}
	add(r.Steady, "one event a second", "2")
	var xs []float64
	for e := 0; e < 6; e++ {
		for _, f := range []float64{1, 2, 5} {
			if v := f * math.Pow(10, float64(e)); v >= p.least*0.999 && v <= p.most*1.001 {
				xs = append(xs, v)
			}
		}
	}
	p.axes(xs, []float64{0, 25, 50, 75, 100}, "latency, ms", "% of events")
	for i, c := range curves {
		var points []float64
		for q, v := range c.Curve {
			points = append(points, max(p.least, v*1000), float64(q))
		}
		p.curve("s"+c.class, points...)
		x := 70 + float64(i)*350
		d.rect("c"+c.class, x, 80, 14, 10)
		d.text(x+20, 90, "", "start", fmt.Sprintf("%s: p50 %.0f ms, p99 %.0f ms", c.name, c.P50*1000, c.P99*1000))
	}
	return d.String()
}

// plotLines draws a panel for each line, with a band of ± 10 %.
func plotLines(lines []Line, under string) string {
	d := newDrawing(820, 80+250*float64((len(lines)+1)/2), "CPU time of an event against what grows", "The band is ± 10 % around the middle of all points", under)
	for i, l := range lines {
		least, most := math.Inf(1), 0.0
		for _, point := range l.Points {
			least, most = min(least, point.CPU), max(most, point.CPU)
		}
		ticks := ticksTo(most * 1.15)
		p := &panel{
			drawing: d, left: 70 + 400*float64(i%2), top: 122 + 250*float64(i/2), width: 310, height: 150,
			least: l.Points[0].X, most: l.Points[len(l.Points)-1].X, end: ticks[len(ticks)-1],
		}
		middle := (least + most) / 2
		d.rect("band", p.left, p.y(middle*1.1), p.width, p.y(middle*0.9)-p.y(middle*1.1))
		var xs, points []float64
		for _, point := range l.Points {
			xs, points = append(xs, point.X), append(points, point.X, point.CPU)
		}
		yName := "µs an event"
		if l.Unit == "destinations" {
			yName = "µs an event, for each destination more"
		}
		p.axes(xs, ticks, l.Unit, yName)
		p.curve("s0", points...)
		for _, point := range l.Points {
			d.put(`<circle class="c0" cx="%v" cy="%v" r="4"/>`+"\n", p.x(point.X), p.y(point.CPU))
		}
	}
	return d.String()
}

// The marks in the page between which a table stands.
func marks(name string) (begin, end string) {
	return "<!-- " + name + ": written by go run ./tests/bench -plot tests/bench/testdata/report.json -->\n", "<!-- end of " + name + " -->\n"
}

// pages returns the files that a report makes, by path: the page doc with its tables,
// and the plots beside it.
func pages(r *Report, doc string) (map[string]string, error) {
	files := map[string]string{}
	for name, text := range plots(r) {
		files[filepath.Join(filepath.Dir(doc), "images", name)] = text
	}
	page, err := os.ReadFile(doc)
	if err != nil {
		return nil, err
	}
	text := string(page)
	for name, table := range tables(r) {
		begin, end := marks(name)
		before, rest, ok := strings.Cut(text, begin)
		_, after, ended := strings.Cut(rest, end)
		if !ok || !ended {
			return nil, fmt.Errorf("%s has no place for the table %s: put these lines into it:\n%s%s", doc, name, begin, end)
		}
		text = before + begin + table + end + after
	}
	files[doc] = text
	return files, nil
}

// publish writes what a report makes.
func publish(report, doc string) error {
	r, err := load(report)
	if err != nil {
		return err
	}
	files, err := pages(r, doc)
	if err != nil {
		return err
	}
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil { //nolint:gosec // for anybody to read
			return err
		}
	}
	return nil
}
