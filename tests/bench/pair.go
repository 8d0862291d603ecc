package main

import (
	"context"
	"fmt"
	"io"
	"slices"
)

// The contenders that promise nothing.
const (
	floorName = "floor"
	bareName  = "bare floor"
)

// floors are those of a set.
func floors(set Set) []Contender {
	all := []Contender{{Name: floorName}}
	if set.Layout != nil {
		all = append(all, Contender{Name: bareName, Bare: true})
	}
	return all
}

// Pair is some contenders' runs of one set, taken in turn.
type Pair struct {
	Set     string   `json:"set"`
	Scale   float64  `json:"scale"`
	Machine string   `json:"machine"`
	Results []Result `json:"results"`
}

// takeTurns has all contenders do the set once in each round, beginning with another one
// each time, so that what else the machine does meets them alike.
func takeTurns(ctx context.Context, set Set, scale float64, rounds int, contenders []Contender, o Options, say io.Writer) (*Pair, error) {
	fmt.Fprintf(say, "bench: generating %s × %.2g: %s\n", set.Name, scale, set.About)
	w, err := set.Make(scale)
	if err != nil {
		return nil, err
	}
	p := &Pair{Set: set.Name, Scale: scale, Machine: machine()}
	for i := range rounds {
		for k := range contenders {
			c := contenders[(i+k)%len(contenders)]
			r, err := measure(ctx, set, w, c, o)
			if err != nil {
				return p, err
			}
			fmt.Fprintf(say, "bench: %s round %d, %-11s %6.2f CPU s per 1 M events, %8.0f events/s, %4.0f MiB, %.2f allocations an event\n",
				set.Name, i+1, c.Name+":", r.PerMillion(), r.Rate(), r.PeakRSSMiB, r.MallocsPerEvent())
			p.Results = append(p.Results, r)
		}
	}
	return p, nil
}

// of returns the values of a contender, sorted; [0] is the least.
func (p *Pair) of(contender string, value func(Result) float64) []float64 {
	var all []float64
	for _, r := range p.Results {
		if r.Contender == contender {
			all = append(all, value(r))
		}
	}
	slices.Sort(all)
	return all
}

// median is 0 when there is none.
func median(sorted []float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// medianOf sorts.
func medianOf(values []float64) float64 {
	slices.Sort(values)
	return median(values)
}

// ratio is the medians' CPU of one contender by that of another.
func (p *Pair) ratio(of, by string) float64 {
	return median(p.of(of, Result.PerMillion)) / median(p.of(by, Result.PerMillion))
}

// contenders are those that have results, in their order.
func (p *Pair) contenders() []string {
	var names []string
	for _, r := range p.Results {
		if !slices.Contains(names, r.Contender) {
			names = append(names, r.Contender)
		}
	}
	return names
}

// print shows medians with the least and the most of all rounds.
func (p *Pair) print(to io.Writer) {
	names := p.contenders()
	if len(names) == 0 {
		return
	}
	rounds := len(p.of(names[len(names)-1], Result.Rate)) // -check has floors before and after
	fmt.Fprintf(to, "\nset %s × %.2g, %s\nmedian (least–most) of %d rounds, taken in turn\n\n", p.Set, p.Scale, p.Machine, rounds)
	rows := []struct {
		name, format string
		value        func(Result) float64
	}{
		{"CPU s per 1 M events, ready to done", "%.2f", Result.PerMillion},
		{"CPU s per 1 M events, whole process", "%.2f", Result.TotalPerMillion},
		{"events/s", "%.0f", Result.Rate},
		{"pieces/s (objects or messages)", "%.0f", func(r Result) float64 { return float64(r.Pieces) / r.Seconds }},
		{"raw MB/s", "%.0f", func(r Result) float64 { return float64(r.RawBytes) / r.Seconds / 1e6 }},
		{"bytes posted an event", "%.0f", func(r Result) float64 { return float64(r.SentBytes) / float64(r.Received) }},
		{"allocations an event", "%.3f", Result.MallocsPerEvent},
		{"allocated bytes an event", "%.0f", func(r Result) float64 { return r.AllocBytes / float64(r.Records) }},
		{"peak RSS MiB", "%.0f", func(r Result) float64 { return r.PeakRSSMiB }},
		{"endpoint CPU s per 1 M events", "%.2f", func(r Result) float64 { return r.EndpointCPU / float64(r.Records) * 1e6 }},
	}
	fmt.Fprintf(to, "%-38s", "")
	for _, name := range names {
		fmt.Fprintf(to, " %26s", name)
	}
	fmt.Fprintln(to)
	for _, row := range rows {
		fmt.Fprintf(to, "%-38s", row.name)
		for _, name := range names {
			v := p.of(name, row.value)
			fmt.Fprintf(to, " %26s", fmt.Sprintf(row.format+" ("+row.format+"–"+row.format+")", median(v), v[0], v[len(v)-1]))
		}
		fmt.Fprintln(to)
	}
	for i, by := range names {
		for _, of := range names[i+1:] {
			fmt.Fprintf(to, "CPU of %s by that of %s, ready to done: %.3f\n", of, by, p.ratio(of, by))
		}
	}
}
