package parse

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/parse/formats"
	"github.com/penstock/penstock/topology"
)

const testQueue = "https://sqs.example.org/123456789012/q"

// letterOf is an SQS message with records.
type letterOf struct {
	n       int
	records []string
}

func (l letterOf) id() messages.UUID {
	return messages.UUID(messages.NewPull("letter", fmt.Sprint(l.n)))
}
func (l letterOf) sent() int64 { return 1_767_599_000_000_000_000 + int64(l.n)*1_000_000 }

// alone is the message in a frame of its own.
func (l letterOf) alone(t *testing.T) topology.In[messages.View] {
	t.Helper()
	id := l.id().String()
	return frame(t, messages.Header{Source: "voice", Format: "json"}, &messages.Origin{
		Pull: messages.MessagePull(testQueue, id, 0), Source: "voice", Queue: testQueue, MessageId: id, Created: l.sent(), Received: 5,
	}, l.records...)
}

// together are several messages in one frame.
func together(t *testing.T, all ...letterOf) topology.In[messages.View] {
	t.Helper()
	b := messages.NewBuilder(messages.Header{Source: "voice", Format: "json"})
	var ids []byte
	for _, l := range all {
		id := l.id()
		ids = append(ids, id[:]...)
		b.Message(id, l.sent())
		for _, r := range l.records {
			b.AddRecord([]byte(r))
		}
	}
	b.Origin(&messages.Origin{Pull: messages.BatchPull(testQueue, ids), Source: "voice", Queue: testQueue, Created: all[0].sent(), Received: 5})
	data := b.Encode(nil)
	v, err := messages.DecodeFrame(data)
	if err != nil {
		t.Fatal(err)
	}
	return topology.In[messages.View]{Value: v, Data: data, Subject: topology.RecordSubject("voice"), Attempt: 1}
}

// copying keeps what is quarantined: its payload is in a buffer that is used again.
type copying struct{ *topology.Recorder }

func (c copying) Quarantine(ctx context.Context, q *messages.Quarantine) error {
	return c.Recorder.Quarantine(ctx, proto.CloneOf(q))
}

// An event is the same event, and a bad record the same entry in quarantine, in
// whatever company its message comes.
// covers: F-5 (MessageId), F-0 (dedupe id), F-4
func TestMessagesTogetherAreAsAlone(t *testing.T) {
	all := []letterOf{
		{1, []string{`{"event_type":"a","n":1}`}},
		{2, []string{`{"n":1}`, `{"n":`, `{"n":1}`}},
		{3, []string{`{"n":2}`}},
		{4, []string{`[`, `{"n":3}`}},
	}
	for _, window := range []string{"window", "no window"} {
		t.Run(window, func(t *testing.T) {
			c := Defaults()
			if window == "no window" {
				c.BodyWindow = 0
			}
			type result struct {
				ids         []messages.ID
				quarantined []*messages.Quarantine
				facts       []*messages.Fact
			}
			handle := func(frames ...topology.In[messages.View]) (r result) {
				b, rec := &bus{}, copying{&topology.Recorder{}}
				p, err := New(c, Deps{NewOutbox: b.outbox, Lanes: lanes, Window: 1, Settings: map[string]formats.Setting{}})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(p.Close)
				for _, f := range frames {
					if err := p.Handle(t.Context(), f, rec); err != nil {
						t.Fatal(err)
					}
				}
				for _, e := range b.events(t) {
					r.ids = append(r.ids, e.id)
				}
				slices.SortFunc(r.ids, func(a, b messages.ID) int { return bytes.Compare(a[:], b[:]) })
				r.quarantined, r.facts = rec.Quarantined(), rec.Facts()
				slices.SortFunc(r.quarantined, func(a, b *messages.Quarantine) int {
					return bytes.Compare([]byte(a.GetOrigin().GetMessageId()), []byte(b.GetOrigin().GetMessageId()))
				})
				return r
			}
			var single []topology.In[messages.View]
			for _, l := range all {
				single = append(single, l.alone(t))
			}
			alone := handle(single...)
			if len(alone.ids) != 5 || len(alone.quarantined) != 2 {
				t.Fatalf("%d events, %d quarantined: the case itself is wrong", len(alone.ids), len(alone.quarantined))
			}
			batch := handle(together(t, all...))
			other := handle(together(t, all[2], all[0]), together(t, all[3], all[1]))
			for name, got := range map[string]result{"one frame": batch, "other frames": other} {
				if !slices.Equal(got.ids, alone.ids) {
					t.Errorf("%s: ids %v, want %v", name, got.ids, alone.ids)
				}
				if !slices.EqualFunc(got.quarantined, alone.quarantined, func(a, b *messages.Quarantine) bool { return proto.Equal(a, b) }) {
					t.Errorf("%s: quarantined\n%v\nwant\n%v", name, got.quarantined, alone.quarantined)
				}
			}
			if len(batch.facts) != 3 {
				t.Fatalf("facts %v", batch.facts)
			}
			a, f, p := batch.facts[0].GetAnnounced(), batch.facts[1].GetFetched(), batch.facts[2].GetParsed()
			pull := a.GetOrigin().GetPull()
			if a.GetMessages() != 4 || len(a.GetMessageIds()) != 64 || !slices.Equal(a.GetMessageRecords(), []uint32{1, 3, 1, 2}) ||
				a.GetAs() != messages.Announced_AS_EVENTS || !bytes.Equal(pull, f.GetPull()) || !bytes.Equal(pull, p.GetPull()) ||
				f.GetRecords() != 7 || f.GetFrames() != 1 || p.GetRecords() != 7 || p.GetEvents() != 5 {
				t.Errorf("facts %v", batch.facts)
			}
		})
	}
}
