package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// The floor is this program in another role; in tests it is the test's program.
func TestMain(m *testing.M) {
	if os.Getenv(floorRole) != "" {
		exit(runFloor(context.Background()))
	}
	os.Exit(m.Run())
}

// A run counts what the floor delivers, and what it used.
func TestMeasure(t *testing.T) {
	set, err := setNamed("vpc")
	if err != nil {
		t.Fatal(err)
	}
	w, err := set.Make(0.02)
	if err != nil {
		t.Fatal(err)
	}
	r, err := measure(t.Context(), set, w, Contender{Name: floorName}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Received != int64(w.Records) || r.Records != 20_000 || r.Pieces != 2 {
		t.Errorf("%d of %d records in %d objects arrived, want 20000 in 2", r.Received, r.Records, r.Pieces)
	}
	if r.CPU <= 0 || r.CPUTotal < r.CPU || r.Seconds <= 0 || r.Mallocs <= 0 || r.PeakRSSMiB <= 0 {
		t.Errorf("a run uses something: %+v", r)
	}
	if r.ReadBytes <= 0 || r.RawBytes <= r.ReadBytes || r.SentBytes <= r.RawBytes {
		t.Errorf("documents are larger than rows, and those than what is read: %+v", r)
	}
	bare, err := measure(t.Context(), set, w, Contender{Name: bareName, Bare: true}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if bare.SentBytes >= bare.RawBytes {
		t.Errorf("%d bytes were sent, want the %d of the rows without the heads", bare.SentBytes, bare.RawBytes)
	}
}

// Events are timed from their own object's creation; the first objects are not.
func TestStopwatch(t *testing.T) {
	id := func(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }
	s := &stopwatch{object: map[eventID]int32{}, created: make([]atomic.Int64, 3), warm: 1}
	for i := range 3 {
		s.object[eventID([]byte(id(i)))] = int32(i)
	}
	now := time.Now()
	s.created[0].Store(now.UnixNano())
	s.created[1].Store(now.Add(-time.Minute).UnixNano())
	s.see([]byte(`{"eventID":"` + id(0) + `"}` + "\n" + `{"eventID":"` + id(1) + `"}` + "\n"))
	if len(s.times) != 1 || s.times[0] < time.Minute || s.times[0] > 2*time.Minute || s.odd != nil {
		t.Errorf("times are %v (%v), want a minute", s.times, s.odd)
	}
	s.see([]byte(`{"eventID":"` + id(2) + `"}` + "\n"))
	if s.odd == nil || len(s.times) != 1 {
		t.Error("an event of an object that was not announced was timed")
	}
}

func TestPair(t *testing.T) {
	p := &Pair{}
	for i, cpu := range []float64{3, 1, 2, 20, 4, 6} {
		c := floorName
		if i >= 3 {
			c = penstockName
		}
		p.Results = append(p.Results, Result{Contender: c, Records: 1e6, CPU: cpu, Seconds: 1})
	}
	if v := p.of(floorName, Result.PerMillion); !slices.Equal(v, []float64{1, 2, 3}) || p.ratio(penstockName, floorName) != 3 {
		t.Errorf("the floor has %v, penstock %v times that; want 1 2 3 and 3", v, p.ratio(penstockName, floorName))
	}
}

// A goal is missed by what is above it, and by what is below it.
func TestTargets(t *testing.T) {
	r := &Report{
		Pairs: []*Pair{{Set: "million", Results: []Result{
			{Contender: floorName, Records: 1e6, CPU: 4, Seconds: 1},
			{Contender: penstockName, Records: 1e6, CPU: 9, Seconds: 10, PeakRSSMiB: 310},
		}}},
		Lines: []Line{{Unit: "sources", Points: []Point{{X: 1, CPU: 10}, {X: 200, CPU: 12}}}},
	}
	met := map[string]bool{}
	for _, target := range r.targets() {
		met[target.What] = target.Met
	}
	want := map[string]bool{
		"1 M events: CPU s, ready to done": true, "1 M events: events/s": false, "1 M events: peak MiB": false,
		"1 M events: allocations an event": true, "CPU of an event from 1 to 200 sources: ± %": true,
	}
	for what, is := range want {
		if got, found := met[what]; !found || got != is {
			t.Errorf("%s: met %v (listed: %v), want %v", what, got, found, is)
		}
	}
}

// Plots keep all that they show inside, and escape texts.
func TestBars(t *testing.T) {
	text := bars("a < b", "note", "under", "unit", []bar{{"one", 1, "c0", "1"}, {"most", 7.9, "c1", "7.9"}}, 2.5, "goal")
	if !strings.Contains(text, "a &lt; b") || strings.Contains(text, "%!") || strings.Contains(text, "NaN") {
		t.Errorf("bad SVG:\n%s", text)
	}
	for _, most := range []float64{0, 0.3, 1, 7.9, 9, 10, 14, 99, 355, 1001} {
		ticks := ticksTo(most)
		if n := len(ticks); n < 2 || n > 9 || ticks[n-1] < most*0.99 {
			t.Errorf("ticks to %v are %v", most, ticks)
		}
	}
}
