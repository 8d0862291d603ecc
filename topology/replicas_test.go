package topology

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// replicasCluster starts three servers that are one cluster.
func replicasCluster(t *testing.T) (nodes []*server.Server, url string) {
	t.Helper()
	var routes, urls []string
	ports := make([]int, 3)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = l.Addr().(*net.TCPAddr).Port
		_ = l.Close()
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[i]))
	}
	for i, port := range ports {
		s, err := server.NewServer(&server.Options{
			ServerName: fmt.Sprint("n", i), Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
			JetStreamMaxStore: 1 << 30, JetStreamMaxMemory: 16 << 20, MaxPayload: 8 << 20,
			Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port}, Routes: server.RoutesFromStr(strings.Join(routes, ",")),
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { endNode(t, s) })
		nodes = append(nodes, s)
		urls = append(urls, s.ClientURL())
	}
	for _, s := range nodes {
		if !s.ReadyForConnections(20 * time.Second) {
			t.Fatal("a node takes no connections")
		}
	}
	return nodes, strings.Join(urls, ",")
}

// endNode stops a node. A shutdown that never ends has been seen: it fails the test, and
// not all tests behind it.
func endNode(t *testing.T, s *server.Server) {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Shutdown()
		s.WaitForShutdown()
	}()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	select {
	case <-ended:
	case <-limit.C:
		t.Errorf("node %s does not end", s.Name())
	}
}

// A cluster that has just started has no leader yet: Apply waits for one. A keeper that
// hears nothing of a consumer trims nothing that it may need, and a reader of history
// whose server is away holds nothing.
func TestClusterWithANodeAway(t *testing.T) {
	t.Parallel()
	nodes, url := replicasCluster(t)
	b, err := Connect(t.Context(), Options{URL: url, Name: "test", Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if _, err := b.Apply(t.Context(), Limits{Disk: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	t.Run("replicas are raised while it runs", func(t *testing.T) {
		publish(t, b, Message{Subject: EventSubject("a.x"), ID: "1", Data: []byte("frame")})
		if _, err := b.Apply(t.Context(), Limits{Disk: 64 << 20, Replicas: 3}); err != nil {
			t.Fatal(err)
		}
		for _, s := range Flow {
			await(t, s.Name+" has three replicas that are up to date", func() bool {
				stream, err := b.js.Stream(t.Context(), s.Name)
				if err != nil {
					return false
				}
				c := stream.CachedInfo().Cluster
				if c == nil || c.Leader == "" || len(c.Replicas) != 2 {
					return false
				}
				for _, r := range c.Replicas {
					if !r.Current {
						return false
					}
				}
				return true
			})
		}
		await(t, "the consumer of route has followed", func() bool {
			consumer, err := b.js.Consumer(t.Context(), Unique, RouteConsumer.Durable)
			if err != nil {
				return false
			}
			c := consumer.CachedInfo().Cluster // nil until its group has formed
			return c != nil && len(c.Replicas) == 2
		})
		if s := stream(t, b, Events); s.Msgs != 1 {
			t.Errorf("the event log has %d frames, want 1", s.Msgs)
		}
	})
	// Consumers with one replica, on the node that goes away.
	away := nodes[2]
	on := func(name, durable string) {
		t.Helper()
		await(t, name+" is on "+away.Name(), func() bool {
			c, err := b.js.CreateOrUpdateConsumer(t.Context(), Events, jetstream.ConsumerConfig{Name: name, Durable: durable, Replicas: 1, AckPolicy: jetstream.AckExplicitPolicy})
			if err != nil {
				return false
			}
			if group := c.CachedInfo().Cluster; group != nil && group.Leader == away.Name() {
				return true
			}
			return b.js.DeleteConsumer(t.Context(), Events, name) != nil
		})
	}
	floor := func() uint64 {
		t.Helper()
		var at uint64
		await(t, "the consumers are listed", func() bool {
			s, err := b.js.Stream(t.Context(), Events)
			if err != nil {
				return false
			}
			at, _, err = b.floor(t.Context(), row(Events), s.CachedInfo(), 1)
			return err == nil
		})
		return at
	}
	reader := readerName()
	on(reader, "")
	if at := floor(); at != 1 {
		t.Fatalf("a reader of history holds the log at %d", at)
	}
	on("slow", "slow")
	if at := floor(); at != 0 {
		t.Fatalf("a consumer that has read nothing holds the log at %d", at)
	}
	endNode(t, away)
	missing := func(name string) bool {
		_, missing, err := b.consumersOf(t.Context(), Events)
		return err == nil && strings.Contains(strings.Join(missing, " "), name)
	}
	await(t, "the consumer is missing", func() bool { return missing("slow") })
	if at := floor(); at != 0 {
		t.Errorf("a consumer of which nothing is heard holds the log at %d", at)
	}
	await(t, "the consumer is deleted", func() bool { return b.js.DeleteConsumer(t.Context(), Events, "slow") == nil || !missing("slow") })
	await(t, "only the reader is missing", func() bool { return missing(reader) && !missing("slow") })
	if at := floor(); at != 1 {
		t.Errorf("a reader of history that is away holds the log at %d", at)
	}
}

// What is last of a lane is told together with the place up to which that is certain.
func TestLastUpTo(t *testing.T) {
	t.Parallel()
	b := testBus(t, Limits{Lanes: 3})
	check := func(lane uint32, last, upTo uint64) {
		t.Helper()
		l, u, err := b.lastUpTo(t.Context(), ParsedSubject(lane), "penstock.parsed.*")
		if err != nil || l != last || u != upTo {
			t.Errorf("lane %d: last %d up to %d, %v; want %d up to %d", lane, l, u, err, last, upTo)
		}
	}
	check(0, 0, 0)
	publish(t, b, Message{Subject: ParsedSubject(1), ID: "1", Data: []byte("a")})
	publish(t, b, Message{Subject: ParsedSubject(2), ID: "2", Data: []byte("b")})
	check(1, 1, 2)
	check(2, 2, 2)
	check(0, 0, 2)
}

// A lane that was shown less of its ids than its snapshots have is not worked on.
func TestLaneWantsAllThatItHasSeen(t *testing.T) {
	t.Parallel()
	b := testBus(t, Limits{})
	l := &Lane{bus: b, number: 1}
	publish(t, b, Message{Subject: SeenSubject(1), ID: "1", Data: []byte("a")})
	publish(t, b, Message{Subject: SeenSubject(1), ID: "2", Data: []byte("b")})
	for _, c := range []struct {
		what        string
		read, until uint64
		window      time.Duration
		complete    bool
	}{
		{"all was read", 2, 2, time.Hour, true},
		{"more was read", 2, 1, time.Hour, true},
		{"the last is missing", 1, 2, time.Hour, false},
		{"the last is lost, where nobody can lag", 2, 3, time.Hour, true},
		{"the last is older than the window", 1, 2, time.Nanosecond, true},
	} {
		if err := l.complete(t.Context(), Seen, c.read, c.until, c.window); (err == nil) != c.complete {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if err := b.Trim(t.Context(), Seen, 3); err != nil {
		t.Fatal(err)
	}
	if err := l.complete(t.Context(), Seen, 0, 2, time.Hour); err != nil {
		t.Errorf("what is trimmed is waited for: %v", err)
	}
}

// A server answers for streams that nobody leads any more: that is no answer.
func TestAnswers(t *testing.T) {
	t.Parallel()
	b := testBus(t, Limits{})
	say := "" // is replaced below, before each question
	sub, err := b.nc.Subscribe("test.info", func(m *nats.Msg) { _ = m.Respond([]byte(say)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sub.Unsubscribe() })
	for answer, ok := range map[string]bool{
		`{"config":{}}`:                        true, // no cluster
		`{"cluster":{"leader":"n1"}}`:          true,
		`{"cluster":{"name":"c"}}`:             false,
		`{"error":{"code":404}}`:               true,
		`{"error":{"code":503}}`:               false,
		`no JSON`:                              false,
		`{"cluster":{"leader":""},"config":0}`: false,
	} {
		say = answer
		if got := b.answers("test.info"); got != ok {
			t.Errorf("%s: %t, want %t", answer, got, ok)
		}
	}
	if b.answers("test.nobody") {
		t.Error("nobody has answered")
	}
	if !b.answers("$JS.API.STREAM.INFO." + Notices) {
		t.Error("the server has not answered")
	}
}
