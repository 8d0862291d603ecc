package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

func TestMain(m *testing.M) { harness.Main(m) }

// replica is a process of dedupe under test.
type replica struct {
	*harness.Process
	health string
}

func startDedupe(t *testing.T, nats string, n int) replica {
	t.Helper()
	health := harness.FreeAddr(t)
	path := fmt.Sprintf("%s/dedupe-%d.yaml", t.TempDir(), n)
	yaml := fmt.Sprintf("bus: {url: %q, disk: 1GiB, drain_timeout: 5s}\ndedupe: {lanes: 8}\ntelemetry: {address: %q, private_address: \"\", log_format: json}\n", nats, health)
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	p := harness.Start(t, fmt.Sprintf("dedupe-%d", n), nil, "run", "--config", path, "--stage", "dedupe")
	harness.AwaitReady(t, p, health)
	return replica{p, health}
}

// owns is how many lanes a replica says that it owns.
func (r replica) owns() int {
	p := process{health: r.health}
	return int(p.metric("penstock_dedupe_lanes_owned", ""))
}

// Replicas of dedupe come, go, and die while frames come in all lanes, many of them with
// ids that came before: each id is live once, and lanes are shared evenly.
// covers: DEV-52
func TestLanesMoveBetweenProcesses(t *testing.T) {
	t.Parallel()
	n := harness.StartNATS(t, t.TempDir())
	bus := harness.Connect(t, n.URL())
	const lanes = 8
	if _, err := bus.Apply(t.Context(), topology.Limits{Disk: 1 << 30, Lanes: lanes}); err != nil {
		t.Fatal(err)
	}
	feeding, stop := context.WithCancel(t.Context())
	var feeder sync.WaitGroup
	rounds := 0
	feeder.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ; feeding.Err() == nil; rounds++ {
			out := bus.NewOutbox(topology.Parse)
			for lane := range uint32(lanes) {
				// Half of the ids of a round come again in the next.
				if err := out.Publish(t.Context(), topology.Message{
					Subject: topology.ParsedSubject(lane), ID: fmt.Sprintf("%d/%d", lane, rounds), Data: overlapping(lane, rounds),
				}); err != nil {
					t.Error(err)
					return
				}
			}
			if err := out.Flush(t.Context()); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-feeding.Done():
			case <-tick.C:
			}
		}
	})
	defer feeder.Wait()
	defer stop()
	shared := func(what string, all ...replica) {
		t.Helper()
		began := time.Now()
		harness.Await(t, 2*time.Minute, "lanes are shared "+what, func() bool {
			sum := 0
			for _, r := range all {
				own := r.owns()
				if own < lanes/len(all) || own > (lanes+len(all)-1)/len(all) {
					return false
				}
				sum += own
			}
			return sum == lanes
		})
		t.Logf("%.1f s until lanes are shared %s", time.Since(began).Seconds(), what)
	}
	a := startDedupe(t, n.URL(), 0)
	shared("by one", a)
	b := startDedupe(t, n.URL(), 1)
	shared("by two", a, b)
	c, d := startDedupe(t, n.URL(), 2), startDedupe(t, n.URL(), 3)
	shared("by four", a, b, c, d)
	b.Signal(os.Interrupt)
	if code := b.Wait(time.Minute); code != 0 {
		t.Errorf("dedupe ended with %d", code)
	}
	shared("after one has ended", a, c, d)
	c.Kill()
	shared("after kill -9", a, d)
	stop()
	feeder.Wait()
	want := rounds * lanes
	live := map[messages.ID]int{}
	harness.Await(t, time.Minute, "all frames have passed", func() bool {
		clear(live)
		frames := 0
		if err := bus.Read(t.Context(), topology.Span{Subject: "penstock.unique.>"}, func(m topology.Stored) error {
			v, err := messages.DecodeFrame(m.Data)
			if err != nil {
				return err
			}
			if v.Len() > 0 { // others carry positions
				frames++
			}
			for i := range v.Len() {
				if v.Fate(i) == messages.Live {
					live[v.ID(i)]++
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return frames >= want
	})
	if distinct := lanes * (rounds + 1) * fresh; len(live) != distinct {
		t.Errorf("%d ids passed, want %d", len(live), distinct)
	}
	twice := 0
	for _, n := range live {
		if n > 1 {
			twice++
		}
	}
	if twice > 0 {
		t.Errorf("%d ids passed more than once", twice)
	}
	t.Logf("%d frames, %d ids, each once", want, len(live))
}

// fresh is how many ids of a round come for the first time, but in the first, which has
// as many again.
const fresh = 20

func overlapping(lane uint32, round int) []byte {
	b := messages.NewBuilder(messages.Header{Source: "scale", Format: "json", EventType: "scale.event", Lane: lane})
	o := b.Origin(&messages.Origin{Pull: messages.NewPull("scale", fmt.Sprint(lane, round)), Source: "scale"})
	for i := range 2 * fresh {
		id := messages.NewID([]byte(fmt.Sprint(lane, " ", round*fresh+i)))
		b.Add(messages.Event{ID: id, Origin: o, Record: uint64(i), Doc: []byte(strings.Repeat(" ", i) + "{}")})
	}
	return b.Encode(nil)
}
