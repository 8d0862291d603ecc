package faults

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

// kind is a way to fail.
type kind struct {
	name string
	// what it is, for docs/reliability.md.
	what        string
	targets     []string
	least, most time.Duration
	// often is how many cards of a deck it is; 0 is 1.
	often int
	// slow kinds cost half a minute each.
	slow bool
	// needs is what of stand.missing it cannot do without.
	needs string
	// do begins the fault. What it returns ends it, and says what is worth to know.
	do func(s *stand, f step) (end func() string)
}

const ms = time.Millisecond

// processes are the slots that run all the while.
func processes() (names []string) {
	for _, stage := range topology.Stages {
		for i := range replicas[stage] {
			names = append(names, fmt.Sprintf("%s/%d", stage, i))
		}
	}
	return names
}

func stageNames() (names []string) {
	for _, stage := range topology.Stages {
		names = append(names, string(stage))
	}
	return names
}

// networks are the slots' to NATS, and those to what is outside as often as all these.
func networks() []string {
	names := processes()
	for range len(names) / 4 {
		names = append(names, "s3", "sqs", "web", outQueue)
	}
	return names
}

// kinds is every way to fail that there is.
func kinds() []kind {
	all := []kind{
		{name: "none", what: "nothing, to compare with", targets: []string{"-"}, least: 500 * ms, most: 1500 * ms, do: func(*stand, step) func() string {
			return func() string { return "" }
		}},
		{name: "kill", what: "kill -9 of a stage's process, started again", targets: processes(), most: 600 * ms, often: 3, do: kill},
		{name: "kill all copies", what: "kill -9 of all processes of a stage", targets: stageNames(), most: 600 * ms, do: killAll},
		{name: "power cut", what: "kill -9 of every process and of NATS at once", targets: []string{"all"}, most: 600 * ms, do: powerCut},
		{name: "kill NATS", what: "kill -9 of the NATS server", targets: []string{"nats"}, most: 1500 * ms, often: 2, do: func(s *stand, _ step) func() string {
			s.nats.Kill()
			return func() string { s.nats.Restart(); return "" }
		}},
		{name: "restart NATS", what: "the NATS server is stopped in order and started", targets: []string{"nats"}, most: 500 * ms, do: func(s *stand, _ step) func() string {
			s.nats.Stop()
			return func() string { s.nats.Restart(); return "" }
		}},
		{name: "stop", what: "SIGSTOP of a process for longer than its lease and ack_wait, then SIGCONT", targets: processes(), least: 7 * time.Second, most: 10 * time.Second, do: freeze},
		{name: "stop NATS", what: "SIGSTOP of the NATS server, then SIGCONT", targets: []string{"nats"}, least: 2 * time.Second, most: 9 * time.Second, do: func(s *stand, _ step) func() string {
			s.nats.Signal(syscall.SIGSTOP)
			return func() string { s.nats.Signal(syscall.SIGCONT); return "" }
		}},
		{name: "restart", what: "SIGTERM in mid-flow, started again", targets: processes(), most: 300 * ms, often: 2, do: restart},
		{name: "scale", what: "one more copy of a stage for a while", targets: stageNames(), least: 3 * time.Second, most: 6 * time.Second, do: scale},
		{name: "little memory", what: "a stage runs with GOMEMLIMIT=48MiB", targets: processes(), least: 2 * time.Second, most: 4 * time.Second, do: littleMemory},
		{name: "out of memory", what: "a control group without room: the kernel kills the process", targets: processes(), least: 2 * time.Second, most: 4 * time.Second, needs: "cage", do: outOfMemory},
		{name: "NATS disk full", what: "no byte left on the disk of the streams", targets: []string{"nats"}, least: 2 * time.Second, most: 5 * time.Second, needs: "disk", do: storeFull},
		{name: "file disk full", what: "no byte left on the disk of the destination file", targets: []string{"file"}, least: 2 * time.Second, most: 4 * time.Second, needs: "disk", do: func(s *stand, _ step) func() string {
			s.files.Full()
			return func() string { s.files.Free(); return s.awaitFile() }
		}},
		{name: "file read-only", what: "the file system of the destination file becomes read-only", targets: []string{"deliver"}, least: 2 * time.Second, most: 4 * time.Second, needs: "disk", slow: true, do: readOnly},
		{name: "S3 errors", what: "500, 503, slow answers, bodies cut or ended early", targets: []string{"s3"}, least: 3 * time.Second, most: 6 * time.Second, do: s3Errors},
		{name: "SQS errors", what: "500, lost answers, duplicates, reordering, deletes that fail", targets: []string{"sqs"}, least: 3 * time.Second, most: 6 * time.Second, do: sqsErrors},
		{name: "SQS handles expire", what: "every delete is refused: the handle has expired", targets: []string{"sqs"}, least: 2 * time.Second, most: 4 * time.Second, do: handlesExpire},
		{name: "sink errors", what: "429, 500, hanging, cut connections", targets: []string{"web"}, least: 3 * time.Second, most: 6 * time.Second, do: webErrors},
		{name: "queue errors", what: "batches refused in part or whole, lost answers", targets: []string{outQueue}, least: 3 * time.Second, most: 6 * time.Second, do: queueErrors},
		{name: "clock", what: "a process' wall clock jumps by up to ten minutes, and back", targets: append(processes(), "all"), least: 2 * time.Second, most: 5 * time.Second, needs: "clock", often: 2, do: jump},
		{name: "clock of NATS", what: "the server's wall clock jumps by up to ten minutes, and back", targets: []string{"nats"}, least: 2 * time.Second, most: 5 * time.Second, needs: "clock", do: jump},
	}
	net := func(name, what string, least, most time.Duration, trouble func(rng *rand.Rand) harness.Trouble) {
		all = append(all, kind{name: name, what: what, targets: networks(), least: least, most: most, do: func(s *stand, f step) func() string {
			p := s.nets[f.Target]
			p.Set(trouble(rand.New(rand.NewPCG(f.Draw, 6))))
			return func() string { p.Heal(); return "" }
		}})
	}
	net("delay", "each piece takes up to half a second longer", 2*time.Second, 4*time.Second, func(rng *rand.Rand) harness.Trouble {
		return harness.Trouble{Delay: between(rng, 20*ms, 250*ms), Jitter: between(rng, 0, 250*ms)}
	})
	net("loss", "pieces are held back as if lost and sent again", 2*time.Second, 5*time.Second, func(rng *rand.Rand) harness.Trouble {
		return harness.Trouble{Stall: 0.05 + 0.2*rng.Float64(), StallFor: between(rng, 200*ms, 1200*ms)}
	})
	net("cut", "connections are reset and refused", 500*ms, 6*time.Second, func(*rand.Rand) harness.Trouble { return harness.Trouble{Refuse: true} })
	net("silence", "nothing passes and nobody is told", time.Second, 12*time.Second, func(*rand.Rand) harness.Trouble { return harness.Trouble{Silent: true} })
	net("drip", "a few kilobytes a second pass", 2*time.Second, 4*time.Second, func(rng *rand.Rand) harness.Trouble {
		return harness.Trouble{Rate: 2<<10 + rng.IntN(60<<10)}
	})
	return append(all,
		kind{name: "half-open", what: "open connections die without a word, new ones pass", targets: networks(), most: 500 * ms, do: func(s *stand, f step) func() string {
			n := s.nets[f.Target].Forget()
			return func() string { return fmt.Sprintf("%d connections", n) }
		}},
		kind{name: "reset", what: "connections are reset in the middle of a frame", targets: networks(), most: 500 * ms, do: func(s *stand, f step) func() string {
			n := s.nets[f.Target].Reset(1 + int64(f.Draw%5000))
			return func() string { return fmt.Sprintf("%d connections", n) }
		}},
	)
}

func kill(s *stand, f step) func() string {
	p := s.slots[f.Target]
	p.Kill()
	return func() string { p.launch(); return "" }
}

func (s *stand) of(stage string) (list []*slot) {
	for _, p := range s.slots {
		if string(p.stage) == stage {
			list = append(list, p)
		}
	}
	return list
}

func killAll(s *stand, f step) func() string {
	list := s.of(f.Target)
	for _, p := range list {
		p.Kill()
	}
	return func() string {
		for _, p := range list {
			p.launch()
		}
		return ""
	}
}

func powerCut(s *stand, _ step) func() string {
	var all sync.WaitGroup
	all.Go(s.nats.Kill)
	for _, p := range s.slots {
		all.Go(p.Kill)
	}
	all.Wait()
	return func() string {
		s.nats.Restart()
		for _, p := range s.slots {
			p.launch()
		}
		return ""
	}
}

func freeze(s *stand, f step) func() string {
	p := s.slots[f.Target]
	before := fenced(p)
	p.Signal(syscall.SIGSTOP)
	return func() string {
		p.Signal(syscall.SIGCONT)
		if p.stage != topology.Dedupe {
			return ""
		}
		// It wakes up with lanes that are another's: what it still wants to store is
		// refused. The check at the end tells whether that was so, this only says when.
		woken := time.Now()
		for time.Since(woken) < 10*time.Second {
			if fenced(p) > before {
				return "fenced off its lanes"
			}
			pause(s.t, 100*ms)
		}
		return "had no lanes"
	}
}

// fenced is how often a process had to give something up that another has taken over.
func fenced(p *slot) int {
	return strings.Count(p.Log(), "lease was taken over") + strings.Count(p.Log(), "lane left")
}

func restart(s *stand, f step) func() string {
	p := s.slots[f.Target]
	p.end()
	return func() string { p.launch(); return "" }
}

func scale(s *stand, f step) func() string {
	p := s.start(topology.Stage(f.Target), 9)
	return func() string {
		p.end()
		delete(s.slots, p.name)
		s.nets[p.name].Close()
		delete(s.nets, p.name)
		return ""
	}
}

func littleMemory(s *stand, f step) func() string {
	p := s.slots[f.Target]
	p.Kill()
	p.launch("GOMEMLIMIT=48MiB")
	return func() string { p.end(); p.launch(); return "" }
}

func outOfMemory(s *stand, f step) func() string {
	p := s.slots[f.Target]
	cage, why := harness.NewCage(s.t)
	if cage == nil {
		s.t.Errorf("a control group was to be had before: %s", why)
		return func() string { return why }
	}
	p.Kill()
	p.launch("GOGC=off") // or it would live within what it has
	if err := cage.Add(p.Process); err != nil {
		s.t.Error(err)
	}
	harness.AwaitReady(s.t, p.Process, p.addr)
	if err := cage.Squeeze(1 << 20); err != nil {
		s.t.Error(err)
	}
	return func() string {
		note := "killed by the kernel"
		if p.Running() {
			note = "not killed"
			p.Kill()
		}
		p.launch()
		if err := cage.Squeeze(-1); err != nil {
			s.t.Error(err)
		}
		return note
	}
}

// storeFull fills the disk of the streams. A nats-server whose write has failed does
// not try that stream again until it is restarted, so an operator, or who supervises
// it, has to do that once there is room.
func storeFull(s *stand, _ step) func() string {
	s.store.Full()
	return func() string {
		s.store.Free()
		m := s.track.ended()
		select {
		case <-m.changed:
			return "flows again by itself"
		case <-time.After(6 * time.Second):
		}
		s.nats.Kill()
		s.nats.Restart()
		return "NATS restarted"
	}
}

// awaitFile waits until the destination file takes something again.
func (s *stand) awaitFile() string {
	was, from := s.fileBytes(), time.Now()
	harness.Await(s.t, time.Minute, "the file grows again", func() bool { return s.fileBytes() > was })
	return fmt.Sprintf("the file grew after %.1f s", time.Since(from).Seconds())
}

func readOnly(s *stand, f step) func() string {
	list := s.of(f.Target)
	for _, p := range list {
		p.end()
	}
	if err := s.files.ReadOnly(true); err != nil {
		s.t.Error(err)
	}
	for _, p := range list {
		p.launch()
	}
	return func() string {
		if err := s.files.ReadOnly(false); err != nil {
			s.t.Error(err)
		}
		return s.awaitFile()
	}
}

// dice is drawn from by requests that come at the same time.
func dice(f step) func(n int) int {
	rng := rand.New(rand.NewPCG(f.Draw, 7))
	var mu sync.Mutex
	return func(n int) int { mu.Lock(); defer mu.Unlock(); return rng.IntN(n) }
}

func (s *stand) cloud(fault cloud.FaultFunc) func() string {
	s.setCloud(fault)
	return func() string { s.setCloud(nil); return "" }
}

func s3Errors(s *stand, f step) func() string {
	draw := dice(f)
	return s.cloud(func(op, _, _ string) cloud.Fault {
		if op != "GetObject" {
			return cloud.Fault{}
		}
		switch d := draw(100); {
		case d < 12:
			return cloud.Fault{Status: 500}
		case d < 24:
			return cloud.Fault{Status: 503}
		case d < 36:
			return cloud.Fault{Cut: int64(1 + draw(30_000))}
		case d < 46:
			return cloud.Fault{Cut: int64(1 + draw(30_000)), CutClean: true}
		case d < 56:
			return cloud.Fault{Delay: time.Duration(draw(800)) * ms}
		}
		return cloud.Fault{}
	})
}

func sqsErrors(s *stand, f step) func() string {
	draw := dice(f)
	return s.cloud(func(op, name, _ string) cloud.Fault {
		if name == outQueue {
			return cloud.Fault{}
		}
		d := draw(100)
		switch {
		case op == "ReceiveMessage" && d < 15:
			return cloud.Fault{Status: 500}
		case op == "ReceiveMessage" && d < 25:
			return cloud.Fault{Cut: -1}
		case op == "ReceiveMessage" && d < 70:
			return cloud.Fault{Duplicate: true, Shuffle: true}
		case op == "DeleteMessageBatch" && d < 20:
			return cloud.Fault{Status: 500}
		case op == "DeleteMessageBatch" && d < 40:
			return cloud.Fault{FailEntries: 1 + draw(3)}
		case op == "DeleteMessageBatch" && d < 55:
			return cloud.Fault{Cut: -1}
		}
		return cloud.Fault{}
	})
}

func handlesExpire(s *stand, _ step) func() string {
	return s.cloud(func(op, name, _ string) cloud.Fault {
		if name == outQueue || op != "DeleteMessageBatch" && op != "DeleteMessage" {
			return cloud.Fault{}
		}
		return cloud.Fault{Status: http.StatusBadRequest, FailEntries: 10, Code: "ReceiptHandleIsInvalid", Message: "The receipt handle has expired."}
	})
}

func queueErrors(s *stand, f step) func() string {
	draw := dice(f)
	return s.cloud(func(op, name, _ string) cloud.Fault {
		if name != outQueue || op != "SendMessageBatch" {
			return cloud.Fault{}
		}
		switch d := draw(100); {
		case d < 15:
			return cloud.Fault{Status: 500}
		case d < 25:
			return cloud.Fault{Status: 503}
		case d < 50:
			return cloud.Fault{FailEntries: 1 + draw(5)}
		case d < 65:
			return cloud.Fault{Cut: -1}
		}
		return cloud.Fault{}
	})
}

func webErrors(s *stand, f step) func() string {
	draw := dice(f)
	s.setWeb(func(rw http.ResponseWriter, r *http.Request) bool {
		switch d := draw(100); {
		case d < 15:
			rw.Header().Set("Retry-After", "1")
			rw.WriteHeader(http.StatusTooManyRequests)
		case d < 35:
			rw.WriteHeader(http.StatusInternalServerError)
		case d < 45:
			select {
			case <-r.Context().Done():
			case <-time.After(5 * time.Second):
			}
		case d < 60:
			panic(http.ErrAbortHandler)
		default:
			return false
		}
		return true
	})
	return func() string { s.setWeb(nil); return "" }
}

func jump(s *stand, f step) func() string {
	rng := rand.New(rand.NewPCG(f.Draw, 8))
	names := []string{f.Target}
	if f.Target == "all" {
		names = processes()
	}
	shifts := make([]time.Duration, len(names))
	for i, name := range names {
		shifts[i] = (time.Duration(rng.Int64N(int64(20*time.Minute))) - 10*time.Minute).Truncate(time.Second)
		s.clocks[name].Shift(shifts[i])
	}
	return func() string {
		for i, name := range names {
			s.clocks[name].Shift(-shifts[i])
		}
		return "by " + shifts[0].String()
	}
}
