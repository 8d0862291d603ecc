// Package upgrade tries new stages on what older ones have left on the bus, and the two
// side by side.
//
// testdata/before holds a recording: every stream, bucket and consumer of a run of the
// release before, message by message. Make it anew with
//
//	PENSTOCK_RECORD_WITH=/path/to/penstock-of-before go test ./tests/upgrade -run TestRecord
package upgrade

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/demo/feed"
	"github.com/penstock/penstock/tests/harness"
	"github.com/penstock/penstock/topology"
)

func TestMain(m *testing.M) { harness.Main(m) }

const recordWith = "PENSTOCK_RECORD_WITH"

// recording is what a run has left on the bus.
type recording struct {
	// Objects are what it read, EventIDs the events in them, duplicates included.
	Objects  []object `json:"objects"`
	EventIDs []string `json:"event_ids"`
	Streams  []stream `json:"streams"`
}

type object struct {
	Key  string `json:"key"`
	Body []byte `json:"body"`
}

type stream struct {
	Config    jetstream.StreamConfig     `json:"config"`
	Consumers []jetstream.ConsumerConfig `json:"consumers,omitempty"`
	Messages  []message                  `json:"messages"`
}

type message struct {
	Sequence uint64      `json:"sequence"`
	Subject  string      `json:"subject"`
	Header   nats.Header `json:"header,omitempty"`
	Data     []byte      `json:"data"`
}

const file = "testdata/before.json.gz"

func load(t *testing.T) recording {
	t.Helper()
	packed, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	var r recording
	if err := json.NewDecoder(z).Decode(&r); err != nil {
		t.Fatal(err)
	}
	if len(r.EventIDs) < 100 || len(r.Streams) < 10 {
		t.Fatalf("%d events in %d streams: the recording is not whole", len(r.EventIDs), len(r.Streams))
	}
	return r
}

func connect(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	var nc *nats.Conn
	harness.Await(t, time.Minute, "the server answers", func() bool {
		var err error
		nc, err = nats.Connect(url)
		return err == nil
	})
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// TestRecord runs all stages of the release before on four objects, one of which is
// announced twice and one of which has a record that is none, and keeps what is on the
// bus then.
func TestRecord(t *testing.T) {
	old := os.Getenv(recordWith)
	if old == "" {
		t.Skip(recordWith + " does not name a binary of the release before")
	}
	t.Setenv("PENSTOCK_TEST_BINARY", old)
	w := harness.NewWorld(t, nil)
	n := harness.StartNATS(t, t.TempDir())
	var all []*harness.Process
	for _, s := range topology.Stages {
		p, health := w.RunStage(s, 0, n.URL())
		harness.AwaitReady(t, p, health)
		all = append(all, p)
	}
	var r recording
	set := feed.CloudTrail(feed.Options{Seed: 61, Objects: 4, RecordsPerObject: feed.Fixed(60), DuplicateShare: 0.05, Bucket: harness.Bucket})
	for o := range set.All() {
		r.Objects = append(r.Objects, object{o.Key, o.Body})
		for _, id := range o.EventIDs {
			r.EventIDs = append(r.EventIDs, id.String())
		}
	}
	broken := object{"AWSLogs/123456789012/CloudTrail/us-east-1/2026/01/01/broken.json", []byte(`{"Records":[17]}`)}
	r.Objects = append(r.Objects, broken, r.Objects[0])
	for _, o := range r.Objects {
		if _, err := w.Cloud.Put(harness.Bucket, o.Key, cloud.Object{Body: o.Body}); err != nil {
			t.Fatal(err)
		}
	}
	r.Objects = r.Objects[:len(r.Objects)-1]
	distinct := map[string]bool{}
	for _, id := range r.EventIDs {
		distinct[id] = true
	}
	w.AwaitDelivered(time.Minute, len(distinct))
	harness.Await(t, time.Minute, "the ledger balances", func() bool {
		report, balanced := harness.Ledger(t, n.URL())
		return balanced && harness.Open(report) == 0
	})
	for _, p := range all {
		p.Signal(os.Interrupt)
		p.Wait(30 * time.Second)
	}
	js := connect(t, n.URL())
	list := js.ListStreams(t.Context())
	for info := range list.Info() {
		r.Streams = append(r.Streams, record(t, js, info))
	}
	if err := list.Err(); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err := errors.Join(json.NewEncoder(z).Encode(r), z.Close(), os.MkdirAll(filepath.Dir(file), 0o750), os.WriteFile(file, packed.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d streams in %d bytes", len(r.Streams), packed.Len())
}

func record(t *testing.T, js jetstream.JetStream, info *jetstream.StreamInfo) stream {
	t.Helper()
	s, err := js.Stream(t.Context(), info.Config.Name)
	if err != nil {
		t.Fatal(err)
	}
	out := stream{Config: info.Config}
	consumers := s.ListConsumers(t.Context())
	for c := range consumers.Info() {
		if c.Config.Durable != "" {
			out.Consumers = append(out.Consumers, c.Config)
		}
	}
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && info.State.Msgs > 0; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for k := range m.Header { // the server's own, and what makes a batch of it
			if strings.HasPrefix(k, "Nats-Batch") || k == "Nats-Expected-Last-Subject-Sequence" {
				delete(m.Header, k)
			}
		}
		out.Messages = append(out.Messages, message{m.Sequence, m.Subject, m.Header, m.Data})
	}
	return out
}

// restore makes the streams as they were, with the messages of those that keep names,
// at the sequences that they had.
func (r recording) restore(t *testing.T, js jetstream.JetStream, keep func(m message, stream string) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, s := range r.Streams {
		made, err := js.CreateStream(ctx, s.Config)
		if err != nil {
			t.Fatalf("make stream %s as it was: %v", s.Config.Name, err)
		}
		for _, c := range s.Consumers {
			if _, err := made.CreateConsumer(ctx, c); err != nil {
				t.Fatalf("make consumer %s as it was: %v", c.Durable, err)
			}
		}
		for _, m := range s.Messages {
			if !keep(m, s.Config.Name) {
				continue
			}
			info, err := made.Info(ctx)
			if err != nil {
				t.Fatal(err)
			}
			// What is gone before it leaves its sequences; those of buckets mean nothing.
			bucket := strings.HasPrefix(s.Config.Name, "KV_")
			for next := info.State.LastSeq + 1; !bucket && next < m.Sequence; next++ {
				gap, err := js.Publish(ctx, m.Subject, nil)
				if err == nil {
					err = made.DeleteMsg(ctx, gap.Sequence)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			ack, err := js.PublishMsg(ctx, &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data})
			if err != nil {
				t.Fatalf("store a message of %s as it was: %v", s.Config.Name, err)
			}
			if !bucket && ack.Sequence != m.Sequence {
				t.Fatalf("a message of %s is %d now and was %d", s.Config.Name, ack.Sequence, m.Sequence)
			}
		}
	}
}
