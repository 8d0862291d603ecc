package main

import (
	"cmp"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Report is everything that is measured.
type Report struct {
	// Origin of the part that was measured last.
	Origin
	// Parts are where each part comes from: they may have been measured one by one.
	Parts map[string]Origin `json:"parts"`
	// Pairs are the runs of the sets, penstock and the floors in turn.
	Pairs  []*Pair  `json:"pairs,omitempty"`
	Idle   *Idle    `json:"idle,omitempty"`
	Steady *Latency `json:"steady,omitempty"`
	Half   *Load    `json:"half_load,omitempty"`
	Window *Window  `json:"window,omitempty"`
	Lines  []Line   `json:"lines,omitempty"`
	// Settings are runs of a part of the set million with one setting changed.
	Settings *Pair `json:"settings,omitempty"`

	// line is the one that the part linear measures; "" are all.
	line string
}

// Origin says what was measured, when and where.
type Origin struct {
	Time time.Time `json:"time"`
	// Commit of the tree, see [commit].
	Commit string `json:"commit"`
	// Machine as the operating system tells.
	Machine string `json:"machine"`
	// Scale is the fraction of the work; 1 is all of it.
	Scale float64 `json:"scale"`
}

// String has no time of day: that says nothing to a reader.
func (o Origin) String() string {
	text := fmt.Sprintf("%s, commit %s, %s", o.Machine, o.Commit, o.Time.Format(time.DateOnly))
	if o.Scale != 1 {
		text += fmt.Sprintf(", scale %.3g", o.Scale)
	}
	return text
}

// origins are the different ones, each with its parts where there are several.
func (r *Report) origins() string {
	var texts []string
	names := map[string][]string{}
	for _, part := range parts() {
		o, measured := r.Parts[part]
		if !measured {
			continue
		}
		if text := o.String(); len(names[text]) == 0 {
			texts = append(texts, text)
		}
		names[o.String()] = append(names[o.String()], part)
	}
	if len(texts) == 1 {
		return texts[0]
	}
	for i, text := range texts {
		texts[i] = text + ": " + strings.Join(names[text], ", ")
	}
	return strings.Join(texts, "; ")
}

// The parts of a report besides the sets, which go by their names.
const (
	partIdle     = "idle"
	partSteady   = "steady"
	partHalf     = "latency"
	partWindow   = "window"
	partLinear   = "linear"
	partSettings = "settings"
)

// parts are all of them, in their order.
func parts() []string {
	var names []string
	for _, s := range sets {
		names = append(names, s.Name)
	}
	return append(names, partIdle, partSteady, partHalf, partWindow, partLinear, partSettings)
}

// penstockName is the build under measurement.
const penstockName = "penstock"

// fill measures the parts that are wanted, and keeps the others as they are. It saves
// after each, so that a run that is broken off is not for nothing.
func (r *Report) fill(ctx context.Context, wanted []string, binary, file string, scale float64, rounds int, say io.Writer) error {
	r.Origin = Origin{Machine: machine(), Scale: scale, Commit: r.Commit}
	c := Contender{Name: penstockName, Binary: binary}
	for i, part := range wanted {
		fmt.Fprintf(say, "bench: %s, part %s (%d of %d)\n", time.Now().UTC().Format(time.TimeOnly), part, i+1, len(wanted))
		var err error
		switch part {
		case partIdle:
			r.Idle, err = idle(ctx, c, Options{}, scale, say)
		case partSteady:
			r.Steady, err = steady(ctx, c, Options{}, scale, say)
		case partHalf:
			r.Half, err = halfLoad(ctx, c, Options{}, scale, say)
		case partWindow:
			r.Window, err = window(ctx, scale, say)
		case partLinear:
			r.Lines, err = lines(ctx, c, Options{}, scale, r.line, r.Lines, say)
		case partSettings:
			r.Settings, err = turn(ctx, binary, scale, rounds, say)
		default:
			err = r.pair(ctx, part, c, scale, rounds, say)
		}
		if err != nil {
			return fmt.Errorf("part %s: %w", part, err)
		}
		r.Time = time.Now().UTC().Truncate(time.Second)
		if r.Parts == nil {
			r.Parts = map[string]Origin{}
		}
		r.Parts[part] = r.Origin
		if err := r.save(file); err != nil {
			return err
		}
	}
	return nil
}

// pair measures a set beside its floor, and beside the bare one where rows are made
// documents.
func (r *Report) pair(ctx context.Context, name string, c Contender, scale float64, rounds int, say io.Writer) error {
	set, err := setNamed(name)
	if err != nil {
		return err
	}
	p, err := takeTurns(ctx, set, scale, rounds, append(floors(set), c), Options{}, say)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(r.Pairs, func(p *Pair) bool { return p.Set == name })
	if i < 0 {
		r.Pairs = append(r.Pairs, p)
		return nil
	}
	r.Pairs[i] = p
	return nil
}

// find returns the runs of a set, nil when there are none.
func (r *Report) find(set string) *Pair {
	for _, p := range r.Pairs {
		if p.Set == set && len(p.of(penstockName, Result.Rate)) > 0 {
			return p
		}
	}
	return nil
}

func (r *Report) save(file string) error {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644) //nolint:gosec // for anybody to read
}

// load reads a report; one that is not there is empty.
func load(file string) (*Report, error) {
	r := &Report{}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return r, nil
}

// commit is the short id of what a binary was built from, with a plus when the tree
// differed: as the Go tool has noted in it, or, where that is turned off, that of the
// tree here when it was built from that.
func commit(ctx context.Context, binary string, here bool) string {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return "unknown" // whatever it is, it is measured
	}
	id, differs := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			id = s.Value[:min(7, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			differs = "+"
		}
	}
	if id != "" || !here {
		return cmp.Or(id, "unknown") + differs
	}
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty=+", "--match=").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// Target is a goal of the specification, and what came of it.
type Target struct {
	What, Goal, Seen string
	Met              bool
}

// targets compares what has been measured with the goals.
func (r *Report) targets() []Target {
	var all []Target
	most := func(what, format string, seen, goal float64) {
		all = append(all, Target{what, "≤ " + fmt.Sprintf(format, goal), fmt.Sprintf(format, seen), seen <= goal})
	}
	least := func(what, format string, seen, goal float64) {
		all = append(all, Target{what, "≥ " + fmt.Sprintf(format, goal), fmt.Sprintf(format, seen), seen >= goal})
	}
	of := func(p *Pair, value func(Result) float64) float64 { return median(p.of(penstockName, value)) }
	rss := func(r Result) float64 { return r.PeakRSSMiB }
	if p := r.find("million"); p != nil {
		most("1 M events: CPU s, ready to done", "%.1f", of(p, Result.PerMillion), 10)
		least("1 M events: events/s", "%.0f", of(p, Result.Rate), 110_000)
		most("1 M events: peak MiB", "%.0f", of(p, rss), 300)
		most("1 M events: allocations an event", "%.2f", of(p, Result.MallocsPerEvent), 0.2)
	}
	if p := r.find("huge"); p != nil {
		most("one object of 500 k records: peak MiB", "%.0f", of(p, rss), 300)
	}
	if p := r.find("tiny"); p != nil {
		least("objects of 5 records: objects/s", "%.0f", of(p, func(r Result) float64 { return float64(r.Pieces) / r.Seconds }), 1300)
		most("objects of 5 records: CPU ms an object", "%.2f", of(p, func(r Result) float64 { return r.CPU / float64(r.Pieces) * 1000 }), 1.1)
	}
	for _, s := range sets {
		if p := r.find(s.Name); p != nil && s.Limit > 0 {
			most(s.Name+": CPU by that of its floor", "%.2f", p.ratio(penstockName, floorName), s.Limit)
		}
	}
	if w := r.Window; w != nil {
		most(fmt.Sprintf("window of %.3g M ids: bytes an id", float64(w.IDs)/1e6), "%.1f", w.ResidentBytes, 40)
		if p := r.find("million"); p != nil {
			most("the same: CPU of the pipeline above that with an empty window, %", "%.1f", (w.FullNS-w.EmptyNS)/(of(p, Result.PerMillion)*10), 10)
		}
	}
	if l := r.Half; l != nil {
		most("latency at half load: p50 ms", "%.0f", l.P50*1000, 250)
		most("latency at half load: p99 ms", "%.0f", l.P99*1000, 1500)
	}
	if l := r.Steady; l != nil {
		most("latency at one event a second: p99 ms", "%.0f", l.P99*1000, 400)
	}
	if i := r.Idle; i != nil {
		most("idle: % of a core", "%.2f", i.CPU*100, 0.5)
		most("idle: MiB", "%.0f", i.RSSMiB, 60)
	}
	for _, l := range r.Lines {
		first, last := l.Points[0].X, l.Points[len(l.Points)-1].X
		most(fmt.Sprintf("CPU of an event from %.0f to %.0f %s: ± %%", first, last, l.Unit), "%.0f", l.spread()*100, 10)
	}
	return all
}

// print shows the targets, then each set.
func (r *Report) print(to io.Writer) {
	fmt.Fprintf(to, "\n%s\n\n%-72s %12s %12s\n", r.origins(), "target", "goal", "measured")
	for _, t := range r.targets() {
		mark := ""
		if !t.Met {
			mark = "  MISSED"
		}
		fmt.Fprintf(to, "%-72s %12s %12s%s\n", t.What, t.Goal, t.Seen, mark)
	}
	if len(r.Pairs) == 0 {
		return
	}
	fmt.Fprintf(to, "\n%-12s %10s %12s %10s %10s %10s %10s %10s\n", "set", "CPU s/1 M", "events/s", "by floor", "by bare", "allocs", "peak MiB", "total CPU")
	for _, p := range r.Pairs {
		if r.find(p.Set) == nil {
			continue
		}
		of := func(value func(Result) float64) float64 { return median(p.of(penstockName, value)) }
		bare := "–"
		if len(p.of(bareName, Result.Rate)) > 0 {
			bare = fmt.Sprintf("%.2f", p.ratio(penstockName, bareName))
		}
		fmt.Fprintf(to, "%-12s %10.2f %12.0f %10.2f %10s %10.2f %10.0f %10.2f\n", p.Set, of(Result.PerMillion), of(Result.Rate),
			p.ratio(penstockName, floorName), bare, of(Result.MallocsPerEvent), of(func(r Result) float64 { return r.PeakRSSMiB }), of(Result.TotalPerMillion))
	}
}

// choose are the parts that a list names; empty means all.
func choose(list string) ([]string, error) {
	if list == "" {
		return parts(), nil
	}
	wanted := strings.Split(list, ",")
	for _, name := range wanted {
		if !slices.Contains(parts(), name) {
			return nil, fmt.Errorf("no part is called %q; there are %s", name, strings.Join(parts(), ", "))
		}
	}
	slices.SortFunc(wanted, func(a, b string) int { return cmp.Compare(slices.Index(parts(), a), slices.Index(parts(), b)) })
	return wanted, nil
}
