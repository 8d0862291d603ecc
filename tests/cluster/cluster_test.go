//go:build linux

// Package cluster runs penstock over a NATS cluster of three nodes on hosts of their
// own, kills, cuts off, upgrades and confuses the nodes under load, and then checks the
// event log event by event against the input.
//
// It needs root, for network namespaces, and runs when PENSTOCK_CLUSTER is set.
package cluster

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

func TestMain(m *testing.M) { harness.Main(m) }

// seed makes a run repeatable: PENSTOCK_SEED=7.
func seed(t *testing.T) *rand.Rand {
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
	return rand.New(rand.NewPCG(s, 1))
}

// site is a cluster with penstock on a host beside it.
type site struct {
	*harness.World
	t       *testing.T
	rng     *rand.Rand
	network *harness.Network
	cluster *harness.Cluster
	app     *harness.Host
	program string
	stages  map[topology.Stage]*harness.Process
	clocks  map[topology.Stage]*harness.Clock

	// ids are all that were ever put, unique how many of them are different.
	ids    []string
	unique int
	// done is closed when the load has ended; closing stop ends it sooner.
	done, stop chan struct{}
}

// start brings all up. With clocks, those of the nodes and of the stages can be shifted.
func start(t *testing.T, clocks bool) *site {
	t.Helper()
	if os.Getenv("PENSTOCK_CLUSTER") == "" {
		t.Skip("runs when PENSTOCK_CLUSTER is set, as root")
	}
	n := harness.NewNetwork(t)
	s := &site{t: t, rng: seed(t), network: n, stages: map[topology.Stage]*harness.Process{}, clocks: map[topology.Stage]*harness.Clock{}}
	if clocks {
		s.program = harness.ClockBinary(t)
	}
	s.app = n.Host("app")
	s.cluster = harness.StartCluster(t, n, harness.ClusterOptions{Clocks: clocks})
	s.World = harness.NewWorldIn(t, n, nil)
	s.Bus = "  ack_wait: 5s\n  replicas: 3\n"
	for _, stage := range topology.Stages {
		if clocks {
			s.clocks[stage] = harness.NewClock(t)
		}
		s.run(stage)
	}
	return s
}

// run starts a stage on the host app.
func (s *site) run(stage topology.Stage) {
	s.t.Helper()
	var env []string
	if c := s.clocks[stage]; c != nil {
		env = c.Env()
	}
	p, health := s.RunStageOn(s.app, s.program, stage, 0, s.cluster.URL(), env...)
	harness.AwaitReady(s.t, p, health)
	s.stages[stage] = p
}

// load begins to put objects, one every 100 ms, so that faults meet a system at work.
func (s *site) load(objects int) {
	set := feed.CloudTrail(feed.Options{Seed: s.rng.Uint64(), Objects: objects, RecordsPerObject: feed.Sizes(1, 40, 300, 1500), DuplicateShare: 0.03, Bucket: harness.Bucket})
	s.unique += set.Unique()
	done, stop := make(chan struct{}), make(chan struct{})
	s.done, s.stop = done, stop
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for o := range set.All() {
			if _, err := s.Cloud.Put(o.Bucket, o.Key, cloud.Object{Body: o.Body}); err != nil {
				s.t.Errorf("put %s: %v", o.Key, err)
				return
			}
			for _, id := range o.EventIDs {
				s.ids = append(s.ids, id.String())
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			case <-s.t.Context().Done():
				return
			}
		}
	}()
}

// enough ends the load before all of it is put.
func (s *site) enough() {
	close(s.stop)
	<-s.done
	distinct := map[string]bool{}
	for _, id := range s.ids {
		distinct[id] = true
	}
	s.unique = len(distinct)
}

// flowing waits until the sink gets events again, and says how long that took.
func (s *site) flowing(after string) {
	s.t.Helper()
	began, before := time.Now(), s.Sink.Distinct()
	harness.Await(s.t, time.Minute, "events flow after: "+after, func() bool {
		return s.Sink.Distinct() > before || before == s.unique
	})
	s.t.Logf("%s: events flow again after %s, %d at the sink", after, time.Since(began).Round(10*time.Millisecond), s.Sink.Distinct())
}

// busy waits until so many more events are at the sink: the next fault meets it at work.
func (s *site) busy(more int) {
	s.t.Helper()
	want := min(s.Sink.Distinct()+more, s.unique)
	harness.Await(s.t, time.Minute, "events flow", func() bool { return s.Sink.Distinct() >= want })
}

// check ends every run: all delivered, the log right event by event, the books balanced.
func (s *site) check() {
	s.t.Helper()
	<-s.done
	s.AwaitDelivered(2*time.Minute, s.unique)
	bus := harness.Connect(s.t, s.cluster.URL())
	harness.Verify(s.t, harness.Log(s.t, bus), s.ids)
	if q := harness.Quarantined(s.t, bus); len(q) != 0 {
		s.t.Errorf("in quarantine: %v", q)
	}
	harness.Await(s.t, time.Minute, "the ledger balances", func() bool {
		report, balanced := harness.Ledger(s.t, s.cluster.URL())
		return balanced && harness.Open(report) == 0
	})
	s.t.Logf("at the sink: %d events, %d of them more than once", s.Sink.Events(), s.Sink.Events()-s.Sink.Distinct())
	s.replicated()
}

// replicated fails unless every stream of penstock has three replicas.
func (s *site) replicated() {
	s.t.Helper()
	bus := harness.Connect(s.t, s.cluster.URL())
	var diffs []topology.Difference
	harness.Await(s.t, time.Minute, "every stream to be looked at", func() (ok bool) {
		var err error
		diffs, err = bus.Diff(s.t.Context(), topology.Limits{Replicas: 3, Disk: 2 << 30})
		return err == nil // a node that is just back may be asked, and answer late
	})
	for _, d := range diffs {
		if d.Field == "replicas" || d.Field == "stream" {
			s.t.Errorf("stream %s: %s is %s, want %s", d.Stream, d.Field, d.Is, d.Want)
		}
	}
}

// What may befall a node befalls each of them, or the one whom it hurts most.
func TestNodes(t *testing.T) {
	s := start(t, false)
	bus := s.cluster.Dial()
	befalls := func(name string, objects int, f func(t *testing.T)) {
		if t.Failed() {
			return // what is lost or doubled by now spoils what follows
		}
		t.Run(name, func(t *testing.T) {
			outer := s.t
			s.t = t
			defer func() { s.t = outer }()
			s.load(objects)
			f(t)
			s.check()
		})
	}

	befalls("killed", 60, func(t *testing.T) {
		for _, i := range s.rng.Perm(3) {
			s.busy(1000)
			node := s.cluster.Nodes[i]
			t.Logf("kill -9 %s, which leads %d streams and consumers, with %d events at the sink", node.Host.Name, s.leads(bus, node), s.Sink.Distinct())
			node.Kill()
			s.flowing("kill -9 of " + node.Host.Name)
			node.Start()
			s.cluster.AwaitHealthy()
		}
	})

	// The others lose sight of the node that leads the event log. Its clients do not:
	// what they say to it leads nowhere.
	befalls("cut off", 60, func(t *testing.T) {
		s.busy(1000)
		node := s.cluster.Leading(bus, topology.Events)
		t.Logf("cut off %s, which leads %d streams and consumers", node.Host.Name, s.leads(bus, node))
		for _, other := range s.cluster.Nodes {
			if other != node {
				s.network.Cut(node.Host, other.Host)
			}
		}
		s.flowing("cut off of " + node.Host.Name)
		s.busy(3000)
		for _, other := range s.cluster.Nodes {
			if other != node {
				s.network.Heal(node.Host, other.Host)
			}
		}
		s.cluster.AwaitHealthy()
	})

	befalls("leaders moved", 40, func(t *testing.T) {
		system := s.cluster.System()
		moved := 0
		for range 2 {
			s.busy(1000)
			for what := range s.cluster.Leaders(bus) {
				if s.cluster.StepDown(bus, what) {
					moved++
				}
			}
			if s.cluster.StepDownMeta(system) {
				moved++
			}
			s.flowing("all leaders moved")
		}
		t.Logf("%d leaders moved", moved)
		if moved < 20 {
			t.Errorf("only %d leaders could be moved", moved)
		}
	})

	befalls("upgraded one after the other", 60, func(t *testing.T) {
		for _, node := range s.cluster.Nodes {
			s.busy(500)
			node.LameDuck()
			node.Start()
			s.cluster.AwaitHealthy()
			s.flowing("upgrade of " + node.Host.Name)
		}
	})

	// A replica of dedupe owns lanes and loses sight of all nodes. It finds out late that
	// they are no longer its own.
	befalls("hidden from an owner of lanes", 60, func(t *testing.T) {
		far := s.network.Host("far")
		p, health := s.RunStageOn(far, s.program, topology.Dedupe, 1, s.cluster.URL())
		harness.AwaitReady(t, p, health)
		harness.Await(t, time.Minute, "the replica owns lanes", func() bool { return strings.Contains(p.Log(), "lane taken") })
		s.busy(500)
		taken := func() int { return strings.Count(s.stages[topology.Dedupe].Log(), "lane taken") }
		before := taken()
		s.network.Isolate(far)
		s.flowing("an owner of lanes is cut off")
		harness.Await(t, time.Minute, "the other replica takes the lanes", func() bool { return taken() > before })
		s.busy(500)
		s.network.Rejoin(far)
		s.busy(500)
	})
}

// leads is how many streams and durable consumers a node leads.
func (s *site) leads(nc *nats.Conn, node *harness.Node) int {
	n := 0
	for _, leader := range s.cluster.Leaders(nc) {
		if leader == node.Host.Name {
			n++
		}
	}
	return n
}

// Nobody's clock is right: nodes and stages are up to five minutes apart, and clocks jump
// forwards and backwards under load, while leaders move and a stage dies.
func TestClocks(t *testing.T) {
	s := start(t, true)
	bus := s.cluster.Dial()
	const most = 150 * time.Second
	set := func(c *harness.Clock, to time.Duration) { c.Shift(to - c.By()) }
	set(s.cluster.Nodes[0].Clock(), most)
	set(s.cluster.Nodes[1].Clock(), -most)
	// The server counts by its clock how long a message is in somebody's hand: where that
	// was put back, what a dead stage held comes again later by as much. So there is
	// something new until the last round is over.
	s.load(5000)
	for round := range 4 {
		s.busy(1000)
		for _, n := range s.cluster.Nodes {
			set(n.Clock(), time.Duration(s.rng.Int64N(int64(2*most)))-most)
		}
		for _, c := range s.clocks {
			set(c, time.Duration(s.rng.Int64N(int64(2*most)))-most)
		}
		// The server that knows the message ids of what route has published is another
		// now, by whose clock they are older; and what route had not acknowledged comes
		// again.
		s.stages[topology.Route].Kill()
		for _, stream := range []string{topology.Unique, topology.Events} {
			s.cluster.StepDown(bus, stream)
		}
		s.run(topology.Route)
		s.flowing(fmt.Sprint("clocks jump, round ", round+1))
	}
	for _, n := range s.cluster.Nodes {
		t.Logf("the clock of %s is wrong by %s", n.Host.Name, n.Clock().By().Round(time.Second))
	}
	s.enough()
	for _, n := range s.cluster.Nodes { // what was in a dead stage's hand is due now
		set(n.Clock(), 2*most)
	}
	s.check()
}
