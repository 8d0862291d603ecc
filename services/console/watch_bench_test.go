package console

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/operate/freshness"
	"github.com/penstock/penstock/services/operate/status"
	"github.com/penstock/penstock/topology"
)

// BenchmarkFirstByte measures how long pages take to begin with 10 M events in the log
// and 1,000 sources. Searches that find nothing end by their budget.
//
//	go test ./services/console -run '^$' -bench FirstByte -benchtime 20x
func BenchmarkFirstByte(b *testing.B) {
	const frames, each = 10_000, 1000
	conf := status.Configured{Sources: map[string]string{}}
	s := &sample{tried: time.Now(), seen: time.Now()}
	for i := range 1000 {
		name := fmt.Sprintf("source-%04d", i)
		conf.Sources[name] = "sqs"
		s.Sources = append(s.Sources, freshness.State{Source: name, First: time.Now(), Last: time.Now(), Usual: time.Minute, Allowed: time.Hour})
	}
	d := newDesk(b, conf)
	d.fill(frames, each)
	for d.console.now.Load() == nil {
		time.Sleep(time.Millisecond)
	}
	d.console.now.Store(s)
	for _, tt := range []struct {
		name, path string
		most       time.Duration
	}{
		{"events", "/events", 500 * time.Millisecond},
		{"found", "/events?text=" + url.QueryEscape("event 7 of"), 500 * time.Millisecond},
		{"nothing by text", "/events?text=zebra", searchTime + 500*time.Millisecond},
		{"nothing by expression", "/events?where=" + url.QueryEscape(`event.doc.n == 5000`), searchTime + 500*time.Millisecond},
		{"nothing by type", "/events?types=other.>", searchTime + 500*time.Millisecond},
		{"sources", "/sources", 100 * time.Millisecond},
	} {
		b.Run(tt.name, func(b *testing.B) {
			worst := time.Duration(0)
			for b.Loop() {
				began := time.Now()
				resp, err := http.Get(d.url + tt.path)
				if err != nil {
					b.Fatal(err)
				}
				took := time.Since(began)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					b.Fatalf("%s: %s", tt.path, resp.Status)
				}
				if worst = max(worst, took); took > tt.most {
					b.Errorf("%s began after %s, more than %s", tt.path, took, tt.most)
				}
			}
			b.ReportMetric(float64(worst.Milliseconds()), "worst-ms")
		})
	}
}

// fill stores frames that all hold the same events.
func (d *desk) fill(frames, each int) {
	d.t.Helper()
	m := messages.NewBuilder(messages.Header{Source: "source-0001", Format: "json", EventType: "cloud.aws.cloudtrail.iam"})
	o := m.Origin(&messages.Origin{Pull: messages.NewPull("bench"), Source: "source-0001", Bucket: "logs", Key: "a"})
	bytes := 0
	for i := range each {
		doc := fmt.Appendf(nil, `{"eventName":"event %d of many","n":%d,"userIdentity":{"type":"AssumedRole","arn":"arn:aws:sts::123456789012:assumed-role/app-%d/ops"},"awsRegion":"eu-west-1","id":"%x"}`, i, i, i%97, messages.NewID([]byte{byte(i), byte(i >> 8)}))
		bytes += len(doc)
		m.Add(messages.Event{ID: messages.NewID([]byte{byte(i), byte(i >> 8)}), Time: time.Now().UnixNano(), Origin: o, Record: uint64(i), Doc: doc})
	}
	data := m.Encode(nil)
	out := d.bus.NewOutbox(topology.Route)
	for i := range frames {
		if err := out.Publish(d.t.Context(), topology.Message{
			Subject: topology.EventSubject("cloud.aws.cloudtrail.iam"), ID: fmt.Sprint("bench", i), Data: data, Events: each, Bytes: bytes, Source: "source-0001",
		}); err != nil {
			d.t.Fatal(err)
		}
	}
	if err := out.Flush(d.t.Context()); err != nil {
		d.t.Fatal(err)
	}
}
