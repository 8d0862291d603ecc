// Package faults kills, cuts, starves and confuses what penstock consists of and
// depends on, under load, and then checks the event log and each destination event by
// event against the input, and that the books balance.
//
// A plan of faults is drawn from a seed and printed; PENSTOCK_SEED repeats it. See
// docs/reliability.md for what the faults are and what they have shown.
package faults

import (
	"flag"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/tests/harness"
)

func TestMain(m *testing.M) { flag.Parse(); harness.Main(m) }

// seed makes a run repeatable: PENSTOCK_SEED=7 go test ./tests/faults.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if v := os.Getenv("PENSTOCK_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("PENSTOCK_SEED: %v", err)
		}
		s = n
	}
	t.Logf("seed %d: repeat with PENSTOCK_SEED=%d", s, s)
	return s
}

// How much is done: PENSTOCK_FAULTS=long takes half an hour, PENSTOCK_FAULTS=short, as
// in .ci/run, three minutes. Without it there are only a few faults.
func long() bool { return os.Getenv("PENSTOCK_FAULTS") == "long" }

// beside lets short tests of this package share the time in which they wait.
func beside(t *testing.T) {
	t.Helper()
	if !long() {
		t.Parallel()
	}
}

func few() bool { return !long() && os.Getenv("PENSTOCK_FAULTS") != "short" }

// load puts objects all the while, so that faults meet a system at work.
type load struct {
	ids  []string
	done chan struct{}
}

func startLoad(t *testing.T, w *harness.World, set *feed.Set, every time.Duration) *load {
	t.Helper()
	l := &load{done: make(chan struct{})}
	go func() {
		defer close(l.done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for o := range set.All() {
			if _, err := w.Cloud.Put(o.Bucket, o.Key, cloud.Object{Body: o.Body}); err != nil {
				t.Errorf("put %s: %v", o.Key, err)
				return
			}
			for _, id := range o.EventIDs {
				l.ids = append(l.ids, id.String())
			}
			select {
			case <-tick.C:
			case <-t.Context().Done():
				return
			}
		}
	}()
	return l
}

// check ends every run: all delivered, the log right event by event, the books
// balanced.
func check(t *testing.T, w *harness.World, url string, set *feed.Set, l *load) {
	t.Helper()
	<-l.done
	w.AwaitDelivered(3*time.Minute, set.Unique())
	bus := harness.Connect(t, url)
	harness.Verify(t, harness.Log(t, bus), l.ids)
	if q := harness.Quarantined(t, bus); len(q) != 0 {
		t.Errorf("in quarantine: %v", q)
	}
	var report map[string]any
	harness.Await(t, time.Minute, "the ledger balances", func() bool {
		var balanced bool
		report, balanced = harness.Ledger(t, url)
		open := harness.Open(report)
		return balanced && open == 0
	})
	t.Logf("at the sink: %d events, %d of them more than once", w.Sink.Events(), w.Sink.Events()-w.Sink.Distinct())
}

// The all-in-one process, server included, is killed again and again.
func TestKillAllInOne(t *testing.T) {
	beside(t)
	rng := rand.New(rand.NewPCG(seed(t), 2))
	w := harness.NewWorld(t, nil)
	w.Bus = "  ack_wait: 3s\n"
	p := w.RunAll()
	objects, kills := 40, 4
	switch {
	case long():
		objects, kills = 200, 25
	case few():
		objects, kills = 15, 1
	}
	set := feed.CloudTrail(feed.Options{Seed: rng.Uint64(), Objects: objects, RecordsPerObject: feed.Sizes(10, 600, 3000), DuplicateShare: 0.03, Bucket: harness.Bucket})
	l := startLoad(t, w, set, 100*time.Millisecond)
	for range kills {
		pause(t, time.Duration(300+rng.IntN(1500))*time.Millisecond)
		t.Logf("kill -9 with %d events at the sink", w.Sink.Distinct())
		p.Kill()
		p = w.RunAll()
	}
	check(t, w, w.StoreURL(), set, l)
}

// S3 answers 500 and 503 and cuts bodies, SQS doubles, reorders and fails, the
// sink answers 429 and 500, cuts and hangs.
// covers: VOI-30, VOI-28
func TestEverythingOutsideMisbehaves(t *testing.T) {
	if few() {
		t.Skip("takes half a minute: PENSTOCK_FAULTS=short")
	}
	beside(t)
	rng := rand.New(rand.NewPCG(seed(t), 4))
	objects := 50
	if long() {
		objects = 500
	}
	set := feed.CloudTrail(feed.Options{Seed: rng.Uint64(), Objects: objects, RecordsPerObject: feed.Sizes(5, 300, 2000), DuplicateShare: 0.03, Bucket: harness.Bucket})
	var mu sync.Mutex // from here on the faults draw from rng, each on its request's goroutine
	draw := func(n int) int { mu.Lock(); defer mu.Unlock(); return rng.IntN(n) }
	w := harness.NewWorld(t, nil)
	w.Bus = "  ack_wait: 5s\n"
	w.Destination = "    timeout: 2s\n"
	var calm atomic.Bool
	counts := map[string]int{}
	hit := func(what string) { mu.Lock(); counts[what]++; mu.Unlock() }
	w.Cloud.SetFault(func(op, _, _ string) cloud.Fault {
		if calm.Load() {
			return cloud.Fault{}
		}
		d := draw(100)
		switch op {
		case "GetObject":
			switch {
			case d < 8:
				hit("s3 500")
				return cloud.Fault{Status: 500}
			case d < 16:
				hit("s3 503")
				return cloud.Fault{Status: 503}
			case d < 24:
				hit("s3 body cut")
				return cloud.Fault{Cut: int64(1 + draw(60_000))}
			case d < 30:
				hit("s3 body ends early")
				return cloud.Fault{Cut: int64(1 + draw(60_000)), CutClean: true}
			case d < 33:
				hit("s3 slow")
				return cloud.Fault{Delay: time.Duration(draw(800)) * time.Millisecond}
			}
		case "ReceiveMessage":
			switch {
			case d < 10:
				hit("sqs 500")
				return cloud.Fault{Status: 500}
			case d < 15:
				hit("sqs answer lost")
				return cloud.Fault{Cut: -1}
			case d < 45:
				hit("sqs duplicates")
				return cloud.Fault{Duplicate: true, Shuffle: true}
			}
		case "DeleteMessageBatch":
			switch {
			case d < 15:
				hit("sqs delete 500")
				return cloud.Fault{Status: 500}
			case d < 30:
				hit("sqs delete in part")
				return cloud.Fault{FailEntries: 1 + draw(3)}
			case d < 40:
				hit("sqs delete answer lost")
				return cloud.Fault{Cut: -1}
			}
		}
		return cloud.Fault{}
	})
	w.Sink.SetFault(func(rw http.ResponseWriter, r *http.Request) bool {
		if calm.Load() {
			return false
		}
		switch d := draw(100); {
		case d < 10:
			hit("sink 429")
			rw.Header().Set("Retry-After", "1")
			rw.WriteHeader(http.StatusTooManyRequests)
		case d < 20:
			hit("sink 500")
			rw.WriteHeader(http.StatusInternalServerError)
		case d < 25:
			hit("sink hangs")
			select {
			case <-r.Context().Done():
			case <-time.After(5 * time.Second):
			}
		case d < 32:
			hit("sink cuts")
			panic(http.ErrAbortHandler)
		default:
			return false
		}
		return true
	})
	w.RunAll()
	l := startLoad(t, w, set, 100*time.Millisecond)
	<-l.done
	pause(t, 8*time.Second)
	calm.Store(true)
	check(t, w, w.StoreURL(), set, l)
	mu.Lock()
	defer mu.Unlock()
	t.Logf("faults: %v", counts)
	if len(counts) < 10 {
		t.Errorf("only %d kinds of faults were met: %v", len(counts), counts)
	}
}

// pause lets the system work for a while: a fault suite is about moments.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal("the test ended")
	}
}
