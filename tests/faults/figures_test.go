package faults

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/tests/harness"
)

// Between these marks docs/reliability.md holds what the last long run has shown.
const (
	figuresBegin = "<!-- The last long run: written by go test ./tests/faults -run TestFigures from tests/faults/testdata/long.jsonl, see task faults. -->\n"
	figuresEnd   = "<!-- End of the last long run. -->\n"
)

// docs/reliability.md shows what the last long run has recorded, and nothing else.
// `task faults` makes a run and writes both.
func TestFigures(t *testing.T) {
	faults, runs := recorded(t, filepath.Join("testdata", "long.jsonl"))
	want := figures(faults, runs)
	path := filepath.Join(harness.Root(), "docs", "reliability.md")
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), figuresBegin)
	is, after, ended := strings.Cut(rest, figuresEnd)
	if !ok || !ended {
		t.Fatalf("%s has no place for the figures: put these lines into it:\n%s%s", path, figuresBegin, figuresEnd)
	}
	if is == want {
		return
	}
	if os.Getenv("UPDATE_GOLDEN") == "" {
		t.Fatalf("%s does not show the run that is recorded; run: UPDATE_GOLDEN=1 go test ./tests/faults -run TestFigures\n%s", path, want)
	}
	if err := os.WriteFile(path, []byte(before+figuresBegin+want+figuresEnd+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

func recorded(t *testing.T, path string) (faults []faultLine, runs []runLine) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	all := bufio.NewScanner(f)
	all.Buffer(nil, 1<<20)
	for all.Scan() {
		var is struct{ Type string }
		if err := json.Unmarshal(all.Bytes(), &is); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		var fault faultLine
		var run runLine
		switch is.Type {
		case "fault":
			err = json.Unmarshal(all.Bytes(), &fault)
			faults = append(faults, fault)
		case "run":
			err = json.Unmarshal(all.Bytes(), &run)
			runs = append(runs, run)
		default:
			t.Fatalf("%s: no line is of type %q", path, is.Type)
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	if len(faults) == 0 || len(runs) == 0 {
		t.Fatalf("%s holds no run", path)
	}
	return faults, runs
}

// figures are the tables of a run.
func figures(faults []faultLine, runs []runLine) string {
	var b strings.Builder
	first, all, seeds := runs[0], runs[0], []string{}
	all.Objects, all.Events, all.Lost, all.Twice, all.Strange, all.Quarantined, all.Faults = 0, 0, 0, 0, 0, 0, 0
	all.Sinks = map[string]sinkLine{}
	balanced := 0
	for _, r := range runs {
		seeds = append(seeds, fmt.Sprint(r.Seed))
		all.Faults += r.Faults
		all.Objects += r.Objects
		all.Events += r.Events
		all.Lost += r.Lost
		all.Twice += r.Twice
		all.Strange += r.Strange
		all.Quarantined += r.Quarantined
		if r.Balanced {
			balanced++
		}
		for name, s := range r.Sinks {
			sum := all.Sinks[name]
			all.Sinks[name] = sinkLine{sum.Events + s.Events, sum.Repeats + s.Repeats, sum.Lost + s.Lost, sum.Strange + s.Strange}
		}
	}
	race := "without the race detector"
	if first.Race {
		race = "under the race detector"
	}
	fmt.Fprintf(&b, "\n%d faults in %d runs, %.0f minutes in all from the first fault of a run to its last, on %s. %s, %d cores, %.1f GiB, %s, %s; load average at the end of a run from %s to %s.\nSeeds: %s.\n\n",
		all.Faults, len(runs), seconds(faults)/60, first.Date, first.System, first.Cores, first.Memory, first.Go, race, lowest(runs), highest(runs), strings.Join(seeds, ", "))
	b.WriteString("| events in | objects | in the log | lost | twice in the log | never sent | quarantined | balanced ledgers |\n|---|---|---|---|---|---|---|---|\n")
	fmt.Fprintf(&b, "| %d | %d | %d | %d | %d | %d | %d | %d of %d |\n\n", all.Events, all.Objects, all.Events-all.Lost, all.Lost, all.Twice, all.Strange, all.Quarantined, balanced, len(runs))
	b.WriteString("| destination | different events | lost | sent once more | never sent to penstock |\n|---|---|---|---|---|\n")
	for _, name := range []string{"web", "file", "queue"} {
		s := all.Sinks[name]
		fmt.Fprintf(&b, "| %s | %d | %d | %d (%.3f %%) | %d |\n", map[string]string{"web": "HTTP", "file": "file", "queue": "SQS"}[name], s.Events, s.Lost, s.Repeats, 100*float64(s.Repeats)/float64(max(1, s.Events)), s.Strange)
	}
	b.WriteString("\nTimes are in seconds from the end of a fault. *Flows again*: an event that was put after that end is at the HTTP destination. *Caught up*: all that was put before that end is there too. Faults that met another one are counted, but not timed.\n\n")
	b.WriteString("| what went wrong | times | timed | flows again: median | max | caught up: median | max |\n|---|---|---|---|---|---|---|\n")
	for _, k := range kinds() {
		row(&b, k.what, faults, func(f faultLine) bool { return f.Kind == k.name })
	}
	b.WriteString("\nOf these, kill -9 by stage, one process of it or all:\n\n")
	b.WriteString("| stage | times | timed | flows again: median | max | caught up: median | max |\n|---|---|---|---|---|---|---|\n")
	for _, stage := range stageNames() {
		row(&b, stage, faults, func(f faultLine) bool {
			of, _, _ := strings.Cut(f.Target, "/")
			return strings.HasPrefix(f.Kind, "kill") && of == stage
		})
	}
	b.WriteString("\n")
	return b.String()
}

// seconds is the time from the first fault of each run to the end of its last.
func seconds(faults []faultLine) (sum float64) {
	began, ended := map[uint64]float64{}, map[uint64]float64{}
	for _, f := range faults {
		if at, known := began[f.Seed]; !known || f.At < at {
			began[f.Seed] = f.At
		}
		ended[f.Seed] = max(ended[f.Seed], f.At+f.For+max(0, f.Through))
	}
	for seed := range began {
		sum += ended[seed] - began[seed]
	}
	return sum
}

// row is a line of a table about those faults that fit.
func row(b *strings.Builder, name string, faults []faultLine, fits func(faultLine) bool) {
	n := 0
	var through, caught []float64
	for _, f := range faults {
		if !fits(f) {
			continue
		}
		n++
		if f.Alone && f.Through >= 0 {
			through = append(through, f.Through)
		}
		if f.CaughtAlone && f.Caught >= 0 {
			caught = append(caught, f.Caught)
		}
	}
	fmt.Fprintf(b, "| %s | %d | %d | %s | %s |\n", name, n, len(through), spread(through), spread(caught))
}

// spread is the median and the largest of a list, as two cells of a table.
func spread(list []float64) string {
	if len(list) == 0 {
		return " | "
	}
	return fmt.Sprintf("%.1f | %.1f", median(list), slices.Max(list))
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	if n := len(list); n%2 == 0 {
		return (list[n/2-1] + list[n/2]) / 2
	}
	return list[len(list)/2]
}

// loads of the last minute when runs ended.
func loads(runs []runLine) (list []string) {
	for _, r := range runs {
		if f := strings.Fields(r.Load); len(f) > 0 {
			list = append(list, f[0])
		}
	}
	return list
}

func lowest(runs []runLine) string {
	return pick(loads(runs), func(a, b float64) bool { return a < b })
}

func highest(runs []runLine) string {
	return pick(loads(runs), func(a, b float64) bool { return a > b })
}

func pick(list []string, better func(a, b float64) bool) string {
	best, value := "unknown", math.NaN()
	for _, text := range list {
		var v float64
		if _, err := fmt.Sscanf(text, "%f", &v); err == nil && (math.IsNaN(value) || better(v, value)) {
			best, value = text, v
		}
	}
	return best
}
