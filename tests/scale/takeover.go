package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/topology"
)

// Takeover is the result of one round.
type Takeover struct {
	// Lanes that the killed process owned.
	Lanes int `json:"lanes"`
	// FirstSeconds and LastSeconds are from the kill until the first, and the last, of
	// its lanes has put out a frame that was stored in PARSED after the kill.
	FirstSeconds float64 `json:"first_lane_seconds"`
	LastSeconds  float64 `json:"last_lane_seconds"`
	// CPUSeconds of the process that took them, meanwhile.
	CPUSeconds float64 `json:"cpu_seconds"`
	// IDs that it holds afterwards, and its memory.
	IDs        int64   `json:"ids"`
	RSS        int64   `json:"rss_bytes"`
	PeakRSS    int64   `json:"peak_rss_bytes"`
	BytesPerID float64 `json:"rss_bytes_per_id"`
	PeakPerID  float64 `json:"peak_rss_bytes_per_id"`
}

// Takeovers is what takeover prints.
type Takeovers struct {
	Machine string `json:"machine"`
	IDs     int    `json:"ids"`
	Lanes   int    `json:"lanes"`
	// StartSeconds is from the start of the two processes until both own lanes that
	// are restored.
	StartSeconds float64    `json:"start_seconds"`
	Rounds       []Takeover `json:"rounds"`
}

// takeover fills the window with ids, runs two processes of dedupe under light
// traffic, and kills one of them, round after round.
func takeover(ctx context.Context, w *world, ids, lanes, rounds int, profile string) error {
	r := Takeovers{IDs: ids, Lanes: lanes}
	if err := w.serve(ctx, topology.Limits{Disk: 40 << 30, Lanes: uint32(lanes)}); err != nil {
		return err
	}
	began := time.Now()
	if err := fill(ctx, w.bus, ids, lanes); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "scale: %d ids stored in %.1f s\n", ids, time.Since(began).Seconds())
	traffic, stop := context.WithCancel(ctx)
	defer stop()
	out := newProgress(lanes)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { trickle(traffic, w.bus, lanes) })
	wg.Go(func() {
		_ = w.bus.Follow(traffic, topology.Span{Subject: "penstock.unique.>"}, func(m topology.Stored) error { out.saw(m); return nil })
	})
	defer stop()
	extra := fmt.Sprintf("dedupe: {lanes: %d, max_ids: %d}\n", lanes, ids+ids/5)
	began = time.Now()
	two := make([]*process, 2)
	for i := range two {
		var err error
		if two[i], err = w.stage(topology.Dedupe, i, extra); err != nil {
			return err
		}
	}
	settled := func() bool {
		owned := 0.0
		for _, p := range two {
			n := p.metric("penstock_dedupe_lanes_owned", "")
			if n == 0 {
				return false
			}
			owned += n
		}
		return owned == float64(lanes)
	}
	for round := range rounds {
		if err := await(ctx, "both own lanes", settled); err != nil {
			return err
		}
		if round == 0 {
			r.StartSeconds = time.Since(began).Seconds()
		}
		// All lanes flow before one is killed.
		now := time.Now()
		if err := await(ctx, "all lanes flow", func() bool { _, _, n := out.since(now, nil); return n == lanes }); err != nil {
			return err
		}
		victim, heir := two[round%2], two[1-round%2]
		var theirs []int
		for lane := range lanes {
			if victim.metric("penstock_dedupe_ids", fmt.Sprintf("lane=\"%d\"", lane)) > 0 {
				theirs = append(theirs, lane)
			}
		}
		before := heir.cpu()
		if profile != "" && round == 0 {
			wg.Go(func() { profileTo(heir, profile) })
		}
		w.kill(victim)
		now = time.Now()
		if err := await(ctx, "its lanes flow again", func() bool { _, _, n := out.since(now, theirs); return n == len(theirs) }); err != nil {
			return err
		}
		first, last, _ := out.since(now, theirs)
		t := Takeover{Lanes: len(theirs), FirstSeconds: first.Seconds(), LastSeconds: last.Seconds(), CPUSeconds: (heir.cpu() - before).Seconds()}
		t.IDs = int64(heir.metric("penstock_dedupe_ids", ""))
		t.RSS, t.PeakRSS = heir.rss()
		t.BytesPerID, t.PeakPerID = float64(t.RSS)/float64(t.IDs), float64(t.PeakRSS)/float64(t.IDs)
		r.Rounds = append(r.Rounds, t)
		fmt.Fprintf(os.Stderr, "scale: round %d: %d lanes, %.1f to %.1f s, %.1f B an id (peak %.1f)\n", round, t.Lanes, t.FirstSeconds, t.LastSeconds, t.BytesPerID, t.PeakPerID)
		if round < rounds-1 {
			var err error
			if two[round%2], err = w.stage(topology.Dedupe, 10+round, extra); err != nil {
				return err
			}
		}
	}
	r.Machine = machine()
	return printJSON(r)
}

// fill stores ids in SEEN, in blocks as dedupe writes them.
func fill(ctx context.Context, bus *topology.Bus, ids, lanes int) error {
	const block = 64 << 10
	out := bus.NewOutbox(topology.Dedupe)
	for n := 0; n*block < ids; n++ {
		data := make([]byte, 16*min(block, ids-n*block))
		_, _ = rand.Read(data) // never fails (crypto/rand)
		if err := out.Publish(ctx, topology.Message{Subject: topology.SeenSubject(uint32(n % lanes)), ID: fmt.Sprint("fill", n), Data: data}); err != nil {
			return err
		}
	}
	return out.Flush(ctx)
}

// trickle sends each lane a small frame ten times a second.
func trickle(ctx context.Context, bus *topology.Bus, lanes int) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	b := messages.NewBuilder(messages.Header{})
	for n := uint64(0); ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		out := bus.NewOutbox(topology.Parse)
		for lane := range uint32(lanes) {
			b.Reset(messages.Header{Source: "scale", Format: "json", EventType: "scale.event", Lane: lane})
			b.Origin(&messages.Origin{Pull: messages.NewPull("scale", fmt.Sprint(n, lane)), Source: "scale"})
			for i := range uint64(20) {
				id := messages.NewID(binary.LittleEndian.AppendUint64(nil, n), binary.LittleEndian.AppendUint64(nil, i), []byte{byte(lane)})
				b.Add(messages.Event{ID: id, Time: time.Now().UnixNano(), Record: i, Doc: []byte(`{}`)})
			}
			if out.Publish(ctx, topology.Message{Subject: topology.ParsedSubject(lane), ID: fmt.Sprintf("feed%d/%d", lane, n), Data: b.Encode(nil)}) != nil {
				return
			}
		}
		if out.Flush(ctx) != nil {
			return
		}
	}
}

// progress is when each lane has put out something.
type progress struct {
	mu   sync.Mutex
	seen map[string][]time.Time
	of   map[string]int
}

func newProgress(lanes int) *progress {
	p := &progress{seen: map[string][]time.Time{}, of: map[string]int{}}
	for lane := range lanes {
		p.of[topology.UniqueSubject(uint32(lane))] = lane
	}
	return p
}

func (p *progress) saw(m topology.Stored) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := append(p.seen[m.Subject], m.Time)
	p.seen[m.Subject] = s[max(0, len(s)-1000):]
}

// since says how long after a time the first and the last of lanes (nil: all) put
// something out, and how many have. Server and program have the same clock.
func (p *progress) since(t time.Time, lanes []int) (first, last time.Duration, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for subject, times := range p.seen {
		if lanes != nil && !slices.Contains(lanes, p.of[subject]) {
			continue
		}
		i := slices.IndexFunc(times, func(at time.Time) bool { return at.After(t) })
		if i < 0 {
			continue
		}
		after := times[i].Sub(t)
		if n == 0 || after < first {
			first = after
		}
		last = max(last, after)
		n++
	}
	return first, last, n
}

func profileTo(p *process, path string) {
	c := http.Client{Timeout: 30 * time.Second}
	answer, err := c.Get("http://" + p.private + "/debug/pprof/profile?seconds=10") //nolint:noctx // bounded by the client
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale: profile:", err)
		return
	}
	defer func() { _ = answer.Body.Close() }()
	f, err := os.Create(path) //nolint:gosec // the user's file
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale: profile:", err)
		return
	}
	defer func() { _ = f.Close() }()
	_, _ = f.ReadFrom(answer.Body)
}
