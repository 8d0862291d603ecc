package main

import (
	"fmt"
	"strings"
)

// tables are those of the page, by name, in Markdown.
func tables(r *Report) map[string]string {
	return map[string]string{
		"targets": targetTable(r), "peers": peerTable(r), "sets": setTable(r), "sizing": sizeTable(r), "settings": settingTable(r),
	}
}

// table joins rows; the first is the head.
func table(rows [][]string) string {
	var b strings.Builder
	for i, row := range rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			b.WriteString("|" + strings.Repeat("---|", len(row)) + "\n")
		}
	}
	return b.String()
}

func targetTable(r *Report) string {
	rows := [][]string{{"what", "goal", "measured"}}
	for _, t := range r.targets() {
		seen := t.Seen
		if !t.Met {
			seen += ", **missed**"
		}
		rows = append(rows, []string{t.What, t.Goal, seen})
	}
	return table(rows) + "\n" + r.origins() + ".\n"
}

func peerTable(r *Report) string {
	rows := [][]string{{"system", "machine", "durable between stages, deduped, replayable", "CPU s for 1 M events", "by the plain loop there", "events/s", "peak MiB"}}
	if p := r.find("million"); p != nil {
		for _, name := range []string{floorName, penstockName} {
			of := func(value func(Result) float64) float64 { return median(p.of(name, value)) }
			durable, label := "no", "plain loop"
			if name == penstockName {
				durable, label = "yes", "**penstock**, all six stages"
			}
			rows = append(rows, []string{
				label, "this one", durable, fmt.Sprintf("%.1f", of(Result.PerMillion)), fmt.Sprintf("%.1f", p.ratio(name, floorName)),
				thousands(of(Result.Rate)), fmt.Sprintf("%.0f", of(func(r Result) float64 { return r.PeakRSSMiB })),
			})
		}
	}
	for i, o := range peers {
		name := o.name
		if i == 0 {
			name = "plain loop"
		}
		rows = append(rows, []string{name, "the other", o.durable, fmt.Sprintf("%.1f", o.cpu), fmt.Sprintf("%.1f", o.cpu/peers[0].cpu), thousands(o.rate), fmt.Sprintf("%.0f", o.rss)})
	}
	return table(rows)
}

func setTable(r *Report) string {
	rows := [][]string{{
		"set", "what", "CPU s for 1 M events, ready to done", "the same, whole process", "by its floor",
		"events/s", "objects or messages/s", "allocations an event", "peak MiB",
	}}
	for _, p := range r.Pairs {
		set, err := setNamed(p.Set)
		if err != nil || r.find(p.Set) == nil {
			continue // a set of another release
		}
		of := func(value func(Result) float64) float64 { return median(p.of(penstockName, value)) }
		ratio := fmt.Sprintf("%.2f", p.ratio(penstockName, floorName))
		if len(p.of(bareName, Result.Rate)) > 0 {
			ratio += fmt.Sprintf("; %.2f by one that posts bare lines", p.ratio(penstockName, bareName))
		}
		rows = append(rows, []string{
			p.Set, set.About, fmt.Sprintf("%.1f", of(Result.PerMillion)), fmt.Sprintf("%.1f", of(Result.TotalPerMillion)), ratio, thousands(of(Result.Rate)),
			thousands(of(func(r Result) float64 { return float64(r.Pieces) / r.Seconds })), fmt.Sprintf("%.2f", of(Result.MallocsPerEvent)),
			fmt.Sprintf("%.0f", of(func(r Result) float64 { return r.PeakRSSMiB })),
		})
	}
	return table(rows)
}

func sizeTable(r *Report) string {
	rows := [][]string{{
		"set", "bytes an event, before compression", "cores for 1,000 events/s", "cores for 100 GB a day",
		"bytes an event: read", "stored, all streams", "sent",
	}}
	for _, p := range r.Pairs {
		if r.find(p.Set) == nil {
			continue
		}
		of := func(value func(Result) float64) float64 { return median(p.of(penstockName, value)) }
		each := func(total func(Result) int64) float64 {
			return of(func(r Result) float64 { return float64(total(r)) / float64(r.Records) })
		}
		raw, cpu := each(func(r Result) int64 { return r.RawBytes }), of(Result.PerMillion)
		rows = append(rows, []string{
			p.Set, thousands(raw), fmt.Sprintf("%.3f", cpu/1000), fmt.Sprintf("%.3f", 100e9/raw*cpu/1e6/86400),
			thousands(each(func(r Result) int64 { return r.ReadBytes })), thousands(each(func(r Result) int64 { return r.DiskBytes })),
			thousands(each(func(r Result) int64 { return r.SentBytes })),
		})
	}
	return table(rows)
}

func settingTable(r *Report) string {
	rows := [][]string{{"setting", "what it means", "CPU by that of the default", "events/s by those of the default", "peak MiB"}}
	if r.Settings == nil {
		return "Not measured.\n"
	}
	of := func(name string, value func(Result) float64) float64 { return median(r.Settings.of(name, value)) }
	for _, s := range settings {
		if len(r.Settings.of(s.name, Result.Rate)) == 0 {
			continue
		}
		rows = append(rows, []string{
			"`" + s.name + "`", s.about, fmt.Sprintf("%.2f", r.Settings.ratio(s.name, settings[0].name)),
			fmt.Sprintf("%.2f", of(s.name, Result.Rate)/of(settings[0].name, Result.Rate)),
			fmt.Sprintf("%.0f", of(s.name, func(r Result) float64 { return r.PeakRSSMiB })),
		})
	}
	return table(rows)
}

// thousands is a whole number with commas.
func thousands(v float64) string {
	text := fmt.Sprintf("%.0f", v)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
