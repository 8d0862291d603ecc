package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Cluster is a NATS cluster of real servers, each a process on a host of its own.
type Cluster struct {
	t       testing.TB
	Network *Network
	Nodes   []*Node
}

// Node is a server of a cluster.
type Node struct {
	*Process
	*Host

	cluster *Cluster
	dir     string
	clock   *Clock
}

// ClusterOptions change what a cluster is. The zero value is three nodes.
type ClusterOptions struct {
	Nodes int
	// Clocks gives each node a clock that can be shifted.
	Clocks bool
}

// Passwords of the cluster are no secrets: it lives in the test's own network.
const clusterConfig = `server_name: %[1]s
listen: "%[2]s:4222"
http: "%[2]s:8222"
max_payload: 8MB
max_pending: 128MB
jetstream { store_dir: %[3]q, sync_interval: always, max_file_store: 8GB, max_memory_store: 64MB }
lame_duck_grace_period: "500ms"
lame_duck_duration: "30s"
accounts {
  BUS: { jetstream: enabled, users: [ { user: penstock, password: penstock } ] }
  SYS: { users: [ { user: sys, password: sys } ] }
}
system_account: SYS
no_auth_user: penstock
cluster {
  name: test
  listen: "%[2]s:6222"
  routes: [ %[4]s ]
  ping_interval: "2s"
}
`

// StartCluster starts a cluster and waits until it has a leader.
func StartCluster(t testing.TB, network *Network, o ClusterOptions) *Cluster {
	t.Helper()
	c := &Cluster{t: t, Network: network}
	nodes := o.Nodes
	if nodes == 0 {
		nodes = 3
	}
	var routes []string
	for i := range nodes {
		n := &Node{Host: network.Host(fmt.Sprintf("nats-%d", i+1)), cluster: c, dir: filepath.Join(t.TempDir(), fmt.Sprint("nats-", i+1))}
		if o.Clocks {
			n.clock = NewClock(t)
		}
		c.Nodes = append(c.Nodes, n)
		routes = append(routes, fmt.Sprintf("%q", "nats://"+n.Addr+":6222"))
	}
	for _, n := range c.Nodes {
		if err := os.MkdirAll(n.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf(clusterConfig, n.Host.Name, n.Addr, filepath.Join(n.dir, "store"), strings.Join(routes, ", "))
		if err := os.WriteFile(filepath.Join(n.dir, "nats.conf"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.Nodes {
		n.Start()
	}
	c.AwaitHealthy()
	return c
}

// URL names all nodes, as penstock's bus.url does.
func (c *Cluster) URL() string {
	urls := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		urls[i] = n.URL()
	}
	return strings.Join(urls, ",")
}

// AwaitHealthy waits until every node that runs says that it is up to date in all.
func (c *Cluster) AwaitHealthy() {
	c.t.Helper()
	for _, n := range c.Nodes {
		if n.Process != nil && n.Running() {
			n.AwaitHealthy()
		}
	}
}

// Start starts the node, with what it had stored.
func (n *Node) Start() {
	n.cluster.t.Helper()
	program, env := ServerBinary(n.cluster.t), []string(nil)
	if n.clock != nil {
		program, env = ClockServer(n.cluster.t), n.clock.Env()
	}
	n.Process = n.StartProgram(n.Host.Name, env, program, "-c", filepath.Join(n.dir, "nats.conf"))
}

// URL of the node for clients.
func (n *Node) URL() string { return "nats://" + n.Addr + ":4222" }

// Clock is that of the node, when the cluster has clocks.
func (n *Node) Clock() *Clock { return n.clock }

// Healthy asks the node whether it is up to date in all that it takes part in.
func (n *Node) Healthy() bool {
	client := http.Client{Timeout: 2 * time.Second}
	r, err := client.Get("http://" + n.Addr + ":8222/healthz")
	if err != nil {
		return false
	}
	_ = r.Body.Close()
	return r.StatusCode == http.StatusOK
}

// AwaitHealthy waits for Healthy.
func (n *Node) AwaitHealthy() {
	n.cluster.t.Helper()
	Await(n.cluster.t, time.Minute, n.Host.Name+" is healthy", n.Healthy)
}

// LameDuck has the node hand over its leaders and clients, and end, as before an upgrade.
func (n *Node) LameDuck() {
	n.cluster.t.Helper()
	n.Signal(syscall.SIGUSR2)
	n.Wait(time.Minute)
}

// System opens a connection of the system account to the nodes given, all by default.
func (c *Cluster) System(nodes ...*Node) *nats.Conn {
	c.t.Helper()
	return c.dial(nodes, nats.UserInfo("sys", "sys"))
}

// Dial opens a plain connection to the nodes given, all by default.
func (c *Cluster) Dial(nodes ...*Node) *nats.Conn {
	c.t.Helper()
	return c.dial(nodes)
}

func (c *Cluster) dial(nodes []*Node, opts ...nats.Option) *nats.Conn {
	c.t.Helper()
	if len(nodes) == 0 {
		nodes = c.Nodes
	}
	urls := make([]string, len(nodes))
	for i, n := range nodes {
		urls[i] = n.URL()
	}
	var nc *nats.Conn
	Await(c.t, 30*time.Second, "a node lets us in", func() (ok bool) {
		var err error
		nc, err = nats.Connect(strings.Join(urls, ","), append(opts, nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.Timeout(2*time.Second))...)
		return err == nil
	})
	c.t.Cleanup(nc.Close)
	return nc
}

// Leaders tells which node leads each stream and, as "stream/consumer", each durable
// consumer. What has no leader now is left out.
func (c *Cluster) Leaders(nc *nats.Conn) map[string]string {
	c.t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	leaders := map[string]string{}
	streams := js.ListStreams(ctx)
	for s := range streams.Info() {
		if s.Cluster == nil || s.Cluster.Leader == "" {
			continue
		}
		leaders[s.Config.Name] = s.Cluster.Leader
		stream, err := js.Stream(ctx, s.Config.Name)
		if err != nil {
			continue
		}
		for k := range stream.ListConsumers(ctx).Info() {
			if k.Config.Durable != "" && k.Cluster != nil && k.Cluster.Leader != "" {
				leaders[s.Config.Name+"/"+k.Config.Durable] = k.Cluster.Leader
			}
		}
	}
	return leaders
}

// StepDown has the leader of a stream, or of a consumer as "stream/consumer", step down.
// It returns whether one did.
func (c *Cluster) StepDown(nc *nats.Conn, what string) bool {
	c.t.Helper()
	subject := "$JS.API.STREAM.LEADER.STEPDOWN." + what
	if stream, consumer, ok := strings.Cut(what, "/"); ok {
		subject = "$JS.API.CONSUMER.LEADER.STEPDOWN." + stream + "." + consumer
	}
	return c.ask(nc, subject)
}

// StepDownMeta has the leader of the cluster itself step down. nc is of [Cluster.System].
func (c *Cluster) StepDownMeta(nc *nats.Conn) bool {
	c.t.Helper()
	return c.ask(nc, "$JS.API.META.LEADER.STEPDOWN")
}

func (c *Cluster) ask(nc *nats.Conn, subject string) bool {
	c.t.Helper()
	answer, err := nc.Request(subject, nil, 5*time.Second)
	if err != nil {
		c.t.Logf("%s: %v", subject, err)
		return false
	}
	var said struct {
		Success bool            `json:"success"`
		Error   json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal(answer.Data, &said); err != nil || !said.Success {
		c.t.Logf("%s: %s", subject, answer.Data)
		return false
	}
	return true
}

// Node returns the node of a name.
func (c *Cluster) Node(name string) *Node {
	c.t.Helper()
	for _, n := range c.Nodes {
		if n.Host.Name == name {
			return n
		}
	}
	c.t.Fatalf("there is no node %q", name)
	return nil
}

// Leading returns the node that leads a stream.
func (c *Cluster) Leading(nc *nats.Conn, stream string) *Node {
	c.t.Helper()
	name := ""
	Await(c.t, 30*time.Second, "stream "+stream+" has a leader", func() bool {
		name = c.Leaders(nc)[stream]
		return name != ""
	})
	return c.Node(name)
}
