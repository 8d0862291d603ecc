package faults

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/tests/harness"
)

// size of a run.
type size struct {
	faults int
	// most is when a run begins no more faults, so that it ends in time on a machine
	// that is slow; the plan is the same everywhere.
	most time.Duration
	// every so often an object with so many records is put.
	every   time.Duration
	records []int
	clocks  bool
	// settle is how long the next fault waits, at most, for what the last one has left
	// behind to be caught up with.
	settle time.Duration
	// slow says that faults are drawn as well after which half a minute is waited.
	slow bool
}

var (
	tiny    = size{faults: 3, most: 15 * time.Second, every: 150 * time.Millisecond, records: []int{1, 20, 60, 150, 5, 100}}
	short   = size{faults: 18, most: 75 * time.Second, every: 150 * time.Millisecond, records: []int{1, 20, 60, 150, 5, 100}}
	longRun = size{faults: 24, most: 4 * time.Minute, every: 150 * time.Millisecond, records: []int{1, 40, 120, 400, 5, 200}, settle: 15 * time.Second, clocks: true, slow: true}
)

// TestFaults runs one plan under load, and with PENSTOCK_FAULTS=long one after the
// other for half an hour (PENSTOCK_FAULTS_FOR).
func TestFaults(t *testing.T) {
	beside(t)
	first := seed(t)
	switch {
	case few():
		run(t, first, tiny)
		return
	case !long():
		run(t, first, short)
		return
	}
	span := 30 * time.Minute
	if v := os.Getenv("PENSTOCK_FAULTS_FOR"); v != "" {
		var err error
		if span, err = time.ParseDuration(v); err != nil {
			t.Fatalf("PENSTOCK_FAULTS_FOR: %v", err)
		}
	}
	began := time.Now()
	for i := uint64(0); time.Since(began) < span; i++ {
		ok := t.Run(fmt.Sprintf("seed %d", first+i), func(t *testing.T) {
			run(t, first+i, longRun)
		})
		if !ok {
			return // the plans behind it would only hide what went wrong
		}
	}
}

// run executes the plan of a seed under load and checks everything.
func run(t *testing.T, seed uint64, how size) {
	t.Helper()
	again := fmt.Sprintf("PENSTOCK_SEED=%d go test -count=1 -v -run TestFaults$ ./tests/faults", seed)
	switch {
	case long(): // this plan alone
		again = "PENSTOCK_FAULTS=long PENSTOCK_FAULTS_FOR=1s " + again
	case !few():
		again = "PENSTOCK_FAULTS=short " + again
	}
	t.Logf("repeat with: %s", again)
	// Such a clock is to be had on one kind of machine, and takes a build of its own.
	clocks := how.clocks && runtime.GOOS+"/"+runtime.GOARCH == "linux/amd64" && os.Getenv("PENSTOCK_FAULTS_CLOCKS") != "off"
	s := newStand(t, clocks)
	var possible []kind
	only := os.Getenv("PENSTOCK_FAULTS_ONLY") // kinds, separated by commas: to look into one
	for _, k := range kinds() {
		if only != "" && !slices.Contains(strings.Split(only, ","), k.name) {
			continue
		}
		if why := s.missing[k.needs]; why != "" {
			t.Logf("left out: %s (%s)", k.name, why)
			continue
		}
		if k.slow && !how.slow {
			t.Logf("left out: %s (takes half a minute, is part of the long run)", k.name)
			continue
		}
		possible = append(possible, k)
	}
	steps := plan(seed, how.faults, possible)
	t.Logf("the plan of seed %d:%s", seed, lines(steps))
	stop := make(chan struct{})
	loaded := make(chan struct{})
	go func() { defer close(loaded); s.load(seed, how, stop) }()
	harness.Await(t, time.Minute, "events flow", func() bool { return s.w.Sink.Distinct() > 0 })
	results := s.execute(steps, how)
	close(stop)
	<-loaded
	for i := range results {
		results[i].line.Seed = seed
		results[i].line.Through, results[i].line.Caught = s.track.times(results[i].mark)
	}
	end := s.check(t)
	for i := range results { // what was late has come by now, or the check has failed
		results[i].line.Through, results[i].line.Caught = s.track.times(results[i].mark)
		report(t, results[i].line)
	}
	end.Seed, end.Faults, end.Seconds, end.LeftOut = seed, len(results), time.Since(s.began).Seconds(), s.missing
	report(t, end)
	s.kill()
}

// load puts objects until stop is closed.
func (s *stand) load(seed uint64, how size, stop <-chan struct{}) {
	set := feed.CloudTrail(feed.Options{Seed: seed, Objects: 1 << 20, RecordsPerObject: feed.Sizes(how.records...), DuplicateShare: 0.03, Bucket: harness.Bucket})
	tick := time.NewTicker(how.every)
	defer tick.Stop()
	for o := range set.All() {
		s.track.put(o)
		if _, err := s.w.Cloud.Put(o.Bucket, o.Key, cloud.Object{Body: o.Body}); err != nil {
			s.t.Errorf("put %s: %v", o.Key, err)
			return
		}
		select {
		case <-tick.C:
		case <-stop:
			return
		}
	}
}

// result is a fault that was injected, and its end.
type result struct {
	line faultLine
	mark *mark
}

// resume is how long all may take to flow again. What is slower is a failure.
const resume = 90 * time.Second

func (s *stand) execute(steps []step, how size) (results []result) {
	s.t.Helper()
	by := map[string]kind{}
	for _, k := range kinds() {
		by[k.name] = k
	}
	began := time.Now()
	rushed := false
	for _, f := range steps {
		if time.Since(began) > how.most {
			s.note("the time is over: the plan ends before step %d", f.N)
			break
		}
		if !rushed {
			pause(s.t, f.Pause)
		}
		at := time.Since(s.began)
		s.note("%s %s for %s, with %d events at the sink", f.Kind, f.Target, f.For, s.w.Sink.Distinct())
		end := by[f.Kind].do(s, f)
		pause(s.t, f.For)
		lasted := time.Since(s.began) - at
		marked := s.track.ended()
		note := end()
		if note != "" {
			s.note("  %s %s: %s", f.Kind, f.Target, note)
		}
		r := result{line: faultLine{Type: "fault", Step: f.N, Kind: f.Kind, Target: f.Target, At: at.Seconds(), For: lasted.Seconds(), Alone: !rushed && !f.Rush, Note: note}, mark: marked}
		results = append(results, r)
		if f.Rush {
			rushed = true
			continue
		}
		late := time.NewTimer(resume)
		select {
		case <-marked.changed:
			through, _ := s.track.times(marked)
			s.note("  all flows again %.2f s after the end of %s %s", through, f.Kind, f.Target)
		case <-late.C:
			s.t.Errorf("%s after the end of %s %s nothing new is at the sink", resume, f.Kind, f.Target)
			s.note("  nothing flows %s after the end of %s %s", resume, f.Kind, f.Target)
			return results
		case <-s.t.Context().Done():
			s.t.Fatal("the test ended")
		}
		late.Stop()
		if how.settle > 0 {
			select {
			case <-marked.all:
				results[len(results)-1].line.CaughtAlone = !rushed
			case <-time.After(how.settle):
			}
		}
		s.alive()
		rushed = false
	}
	return results
}

// check waits until all is delivered and compares the event log and each destination
// with the input, event by event, and asks whether the books balance.
func (s *stand) check(t *testing.T) runLine {
	t.Helper()
	different, ids := s.track.sent()
	s.note("the faults are over: %d events were put, %d are at the sink", different, s.w.Sink.Distinct())
	s.alive()
	soon := time.Now().Add(3 * time.Minute)
	for s.w.Sink.Distinct() < different && time.Now().Before(soon) {
		pause(t, 100*ms)
	}
	wanted := make(map[string]bool, different)
	for _, id := range ids {
		wanted[messages.NewID([]byte("cloudtrail"), []byte(id)).String()] = true
	}
	end := runLine{
		Type: "run", Date: time.Now().UTC().Format(time.DateOnly), Race: harness.Race(), Cores: runtime.NumCPU(), Memory: memory(), Go: runtime.Version(),
		System: runtime.GOOS + "/" + runtime.GOARCH, Load: loadAverage(), Objects: s.track.objects(), Events: different,
	}
	for { // the other destinations are at it as well
		end.Sinks = map[string]sinkLine{}
		whole := true
		for name, got := range s.delivered() {
			var line sinkLine
			for id := range wanted {
				if got[id] == 0 {
					line.Lost++
				}
			}
			for id, n := range got {
				line.Events++
				line.Repeats += n - 1
				if !wanted[id] {
					line.Strange++
				}
			}
			end.Sinks[name] = line
			whole = whole && line.Lost == 0
		}
		if whole || time.Now().After(soon) {
			break
		}
		pause(t, time.Second)
	}
	for name, line := range end.Sinks {
		if line.Lost > 0 || line.Strange > 0 {
			t.Errorf("destination %s: %d events are missing, %d were never sent", name, line.Lost, line.Strange)
		}
	}
	bus := harness.Connect(t, s.nats.URL())
	log := harness.Log(t, bus)
	harness.Verify(t, log, ids)
	live := map[string]bool{}
	for id, n := range log {
		live[id.String()] = true
		end.Twice += n - 1
		if !wanted[id.String()] {
			end.Strange++
		}
	}
	for id := range wanted {
		if !live[id] {
			end.Lost++
		}
	}
	quarantined := harness.Quarantined(t, bus)
	for _, n := range quarantined {
		end.Quarantined += n
	}
	if len(quarantined) != 0 {
		t.Errorf("in quarantine: %v", quarantined)
	}
	var books map[string]any
	for soon := time.Now().Add(time.Minute); ; pause(t, 500*ms) {
		var balanced bool
		books, balanced = harness.Ledger(t, s.nats.URL())
		if end.Balanced = balanced && harness.Open(books) == 0; end.Balanced || time.Now().After(soon) {
			break
		}
	}
	if !end.Balanced {
		t.Errorf("the ledger does not balance: %v", books["total"])
	}
	left := func() int { q := s.w.Cloud.Queue(harness.QueueName); return q.Visible + q.InFlight + q.Delayed }
	harness.Await(t, time.Minute, "the queue is empty", func() bool { return left() == 0 })
	s.alive()
	return end
}

// kill ends all at once: a run has nothing more to say after its check.
func (s *stand) kill() {
	for _, p := range s.slots {
		p.Kill()
	}
	s.nats.Kill()
}

func memory() float64 {
	text, _ := os.ReadFile("/proc/meminfo")
	var kib float64
	_, _ = fmt.Sscanf(string(text), "MemTotal: %f kB", &kib)
	return float64(int(kib/(1<<20)*10)) / 10
}

func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(text))[:min(3, len(strings.Fields(string(text))))], " ")
}

// The same seed always gives the same plan, and another seed another.
func TestPlansRepeat(t *testing.T) {
	all := kinds()
	if one, two := lines(plan(7, 60, all)), lines(plan(7, 60, all)); one != two {
		t.Errorf("two plans of one seed differ:\n%s\n%s", one, two)
	}
	if lines(plan(7, 60, all)) == lines(plan(8, 60, all)) {
		t.Error("two seeds have one plan")
	}
	met := map[string]bool{}
	for _, s := range plan(rand.Uint64(), 2*len(all), all) {
		met[s.Kind] = true
	}
	if len(met) != len(all) {
		t.Errorf("a plan of %d faults has %d of %d kinds", 2*len(all), len(met), len(all))
	}
}
