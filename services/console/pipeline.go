package console

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/services/operate/status"
	"github.com/penstock/penstock/topology"
)

func init() {
	register(page{
		path: "/pipeline", title: "Pipeline", nav: navWatch, order: 10, icon: "pipeline", get: getPipeline,
		routes: []route{
			{"GET /pipeline/live", func(r *request) error { return r.follow("pipeline") }, readOnly},
			{"GET /pipeline/plots", getPlots, readOnly},
		},
	})
}

// lateAfter is from when on a stage that has work before it is said to lag.
const lateAfter = 60.0

// pipelineView is what the picture shows.
type pipelineView struct {
	// Known: the pipeline has been seen.
	Known                 bool
	Seen                  time.Time
	Healthy               bool
	Problems              []problemView
	More                  int // problems that are not listed
	Stages                []stageView
	Sources, Destinations endView
	// In and Delivered are events a second; Quarantined entries that wait.
	In, Delivered    float64
	InLine, OutLine  string
	Oldest           float64 // seconds that the last destination is behind
	OldestAt         string
	Quarantined      uint64
	LogFrames, Bytes uint64
	LogSince         time.Time
	Processes        []status.Process
}

type stageView struct {
	status.Stage
	Title, Does, State, Kind string
	// Spark is the rate of the last minutes, as points of a line on 120 by 28.
	Spark string
	// Stream is what the stage writes, with what the next one has not read.
	Stream                  string
	Waiting                 uint64
	Moves                   bool
	ErrorRate, Quarantining float64
}

// endView counts what is at an end of the pipeline.
type endView struct {
	All, Good int
	Bad       []string // in words: "1 silent"
}

type problemView struct {
	status.Problem
	Link string
}

// does says of each stage what it is there for.
var does = map[string]string{
	"ingest": "takes notices and records in", "fetch": "reads objects", "parse": "makes events of records",
	"dedupe": "lets each event pass once", "route": "applies the rules", "deliver": "sends to destinations",
}

// writes is the stream behind each stage.
var writes = map[string]string{
	"ingest": topology.Notices, "fetch": topology.Records, "parse": topology.Parsed, "dedupe": topology.Unique, "route": topology.Events,
}

const maxProblems = 12

// pipeline is the view of the last sample. It asks nobody.
func (c *Console) pipeline() pipelineView {
	now := c.latest()
	if now == nil || now.seen.IsZero() {
		return pipelineView{}
	}
	v := pipelineView{Known: true, Seen: now.seen, Healthy: now.Healthy, Processes: now.Processes}
	past := c.history.span(15*time.Minute, 60)
	for i, name := range topology.Stages {
		st := stageView{Stage: now.stage(string(name)), Title: capital(string(name)), Does: does[string(name)], Stream: writes[string(name)]}
		st.Spark = spark(past, func(p point) float32 { return p.values[i][measureOut] })
		if len(past) > 0 {
			st.ErrorRate = float64(past[len(past)-1].values[i][measureErrors])
		}
		st.Moves = st.OutRate > 0 || st.InRate > 0
		switch {
		case st.Processes == 0:
			st.State = "stopped"
		case st.LagSeconds > lateAfter:
			st.State = "lagging"
		case st.Moves:
			st.State = "flowing"
		default:
			st.State = "idle"
		}
		v.Stages = append(v.Stages, st)
	}
	// What waits before a stage is what its lag says.
	for i := range v.Stages[:len(v.Stages)-1] {
		v.Stages[i].Waiting = v.Stages[i+1].LagFrames
	}
	v.In = v.Stages[2].OutRate // events there are from parse on
	for _, s := range now.Streams {
		switch s.Name {
		case topology.Events:
			v.LogFrames, v.Bytes, v.LogSince = s.Messages, s.Bytes, s.Oldest
		case topology.Quarantine:
			v.Quarantined = s.Messages
		}
	}
	states := map[string]int{}
	for _, d := range now.Destinations {
		v.Delivered += d.Rate
		if d.LagSeconds > v.Oldest {
			v.Oldest, v.OldestAt = d.LagSeconds, d.Name
		}
		v.Destinations.All++
		if d.State == "running" {
			v.Destinations.Good++
		} else {
			states[d.State]++
		}
	}
	v.Destinations.Bad = words(states)
	states = map[string]int{}
	for _, s := range now.Sources {
		v.Sources.All++
		if s.Silent {
			states["silent"]++
		} else {
			v.Sources.Good++
		}
	}
	v.Sources.Bad = words(states)
	v.InLine = spark(past, func(p point) float32 { return p.values[2][measureOut] })
	v.OutLine = spark(past, func(p point) float32 { return p.delivered })
	for _, p := range now.Problems {
		if len(v.Problems) == maxProblems {
			v.More = len(now.Problems) - maxProblems
			break
		}
		v.Problems = append(v.Problems, problemView{p, linkOf(p)})
	}
	return v
}

func words(states map[string]int) []string {
	var out []string
	for state, n := range states {
		out = append(out, fmt.Sprintf("%d %s", n, state))
	}
	slices.Sort(out)
	return out
}

// linkOf is the page on which a problem is worked on.
func linkOf(p status.Problem) string {
	to := map[string]string{
		"source": "/sources", "drift": "/sources", "destination": "/destinations", "job": "/replays", "quarantine": "/quarantine", "stream": "/topology", "stage": "/topology",
	}[p.Area]
	for _, known := range pages {
		if known.path == to {
			return to
		}
	}
	return ""
}

// spark is a line on 120 by 28, "" when there is nothing to draw.
func spark(points []point, of func(point) float32) string {
	if len(points) < 2 {
		return ""
	}
	var most float32
	for _, p := range points {
		most = max(most, of(p))
	}
	var b strings.Builder
	for i, p := range points {
		y := float32(27)
		if most > 0 {
			y = 27 - 25*of(p)/most
		}
		fmt.Fprintf(&b, "%.1f,%.1f ", float64(i)*120/float64(len(points)-1), y)
	}
	return b.String()
}

func getPipeline(r *request) error { return r.page("pipeline", r.c.pipeline()) }

// spans that plots show.
var spans = map[string]time.Duration{"15m": 15 * time.Minute, "1h": time.Hour, "2h": 2 * time.Hour, "6h": 6 * time.Hour, "24h": 24 * time.Hour}

// plots is what the script draws.
type plots struct {
	// From and To bound the axis of time, in Unix seconds.
	From  int64           `json:"from"`
	To    int64           `json:"to"`
	Time  []int64         `json:"time"`
	Plots map[string]plot `json:"plots"`
}

type plot struct {
	Unit   string   `json:"unit"`
	Series []series `json:"series"`
}

type series struct {
	Label  string    `json:"label"`
	Values []float32 `json:"values"`
}

// maxPoints of one line: more than a screen shows.
const maxPoints = 360

func getPlots(r *request) error {
	d, ok := spans[r.FormValue("span")]
	if !ok {
		d = 15 * time.Minute
	}
	points := r.c.history.span(d, maxPoints)
	now := time.Now()
	out := plots{From: now.Add(-d).Unix(), To: now.Unix(), Time: make([]int64, len(points)), Plots: map[string]plot{}}
	for i, p := range points {
		out.Time[i] = p.at
	}
	line := func(label string, of func(point) float32) series {
		s := series{label, make([]float32, len(points))}
		for i, p := range points {
			s.Values[i] = float32(math.Round(float64(of(p))*1000) / 1000)
		}
		return s
	}
	stages := func(measure int) (all []series) {
		for i, name := range topology.Stages {
			all = append(all, line(string(name), func(p point) float32 { return p.values[i][measure] }))
		}
		return all
	}
	out.Plots["events"] = plot{"events/s", []series{
		line("parsed", func(p point) float32 { return p.values[2][measureOut] }),
		line("unique", func(p point) float32 { return p.values[3][measureOut] }),
		line("logged", func(p point) float32 { return p.values[4][measureOut] }),
		line("delivered", func(p point) float32 { return p.delivered }),
	}}
	out.Plots["lag"] = plot{"s", stages(measureLag)}
	out.Plots["bytes"] = plot{"B/s", stages(measureBytes)}
	out.Plots["errors"] = plot{"per s", append(stages(measureErrors), line("quarantined", func(p point) float32 { return p.quarantined }))}
	return r.json(out)
}
