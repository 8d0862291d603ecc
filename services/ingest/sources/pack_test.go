package sources

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/demo/cloud"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/topology"
)

// frames decodes what was stored: the message ids of each frame, or that of its
// origin where it has one message, and the records.
func frames(t *testing.T, bus *topology.Recorder) (ids [][]string, records []string) {
	t.Helper()
	for _, m := range bus.Messages() {
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		origins, err := v.Origins()
		if err != nil {
			t.Fatal(err)
		}
		var of []string
		for rest := v.MessageIDs(); len(rest) > 0; rest = rest[16:] {
			of = append(of, messages.UUID(rest).String())
		}
		if len(of) == 0 {
			of = []string{origins[0].GetMessageId()}
		}
		ids = append(ids, of)
		var c messages.Columns
		body, err := v.Body(nil)
		if err = errors.Join(err, v.Columns(&c)); err != nil {
			t.Fatal(err)
		}
		for _, n := range c.Lengths {
			records = append(records, string(body[:n]))
			body = body[n:]
		}
	}
	slices.Sort(records)
	return ids, records
}

func events(c *SQSConfig, d *Deps) { c.Body, d.Format = BodyEvents, "json" }

func numbered(n int) (bodies []string) {
	for i := range n {
		bodies = append(bodies, fmt.Sprintf(`{"n":%d}`, 1000+i))
	}
	return bodies
}

// covers: CEN-21, LIM-4, F-5 (delete only after the publish ack), VOI-5. Messages of several
// receive calls share a frame, and are deleted ten at a time once it is stored.
func TestMessagesShareFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bodies := numbered(125)
		q := newEventQueue(bodies...)
		r := run(t, q, newGate(false), events)
		synctest.Wait()
		pass(60 * time.Millisecond)
		if all, visible := q.left(); all != 125 || visible != 0 || q.count("delete") != 0 {
			t.Fatalf("before the flush: %d messages, %d visible, %d deletes", all, visible, q.count("delete"))
		}
		r.expect(t, "in flight", mInFlight.WithLabelValues(r.Name()), 125)
		close(r.gate.open)
		synctest.Wait()
		if all, _ := q.left(); all != 0 {
			t.Fatalf("%d messages left", all)
		}
		ids, records := frames(t, r.bus)
		if len(ids) != 1 || len(ids[0]) != 125 || ids[0][0] != uuidOf(0) || ids[0][124] != uuidOf(124) || !slices.Equal(records, bodies) {
			t.Errorf("%d frames, %d records, ids %v", len(ids), len(records), ids)
		}
		if full := len(q.sizes); full != 13 {
			t.Errorf("%d delete calls, want 13: %v", full, q.sizes)
		}
		facts := r.bus.Facts()
		a, f := facts[0].GetAnnounced(), facts[1].GetFetched()
		if len(facts) != 2 || a.GetMessages() != 125 || a.GetOrigin().GetQueue() == "" || a.GetOrigin().GetMessageId() != "" ||
			f.GetRecords() != 125 || f.GetFrames() != 1 || string(f.GetPull()) != string(a.GetOrigin().GetPull()) {
			t.Errorf("facts %v", facts)
		}
		r.expect(t, "events", mAnnounced.WithLabelValues(r.Name(), "events"), 125)
		r.expect(t, "in flight", mInFlight.WithLabelValues(r.Name()), 0)
		r.expect(t, "in flight bytes", mInFlightBytes.WithLabelValues(r.Name()), 0)
	})
}

// A message that comes alone goes out at once and is a pull of its own; one of a
// stream waits for others, but not longer than the linger.
func TestLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newEventQueue(`{"n":1}`)
		r := run(t, q, newGate(true), events)
		synctest.Wait()
		ids, _ := frames(t, r.bus)
		if len(ids) != 1 || ids[0][0] != uuidOf(0) {
			t.Fatalf("frames %v after no time", ids)
		}
		if a := r.bus.Facts()[0].GetAnnounced(); a.GetMessages() != 0 || a.GetOrigin().GetMessageId() != uuidOf(0) ||
			string(a.GetOrigin().GetPull()) != string(messages.MessagePull(r.cfg.QueueURL, uuidOf(0), 0)) {
			t.Errorf("announced %v", a)
		}
		for i := range 10 {
			q.send(fmt.Sprintf(`{"m":%d}`, i))
			pass(10 * time.Millisecond)
		}
		pass(50 * time.Millisecond)
		ids, records := frames(t, r.bus)
		if len(ids) < 3 || len(ids) > 4 || len(records) != 11 {
			t.Errorf("%d frames of %d records in 100 ms of a message every 10 ms", len(ids)-1, len(records)-1)
		}
	})
}

// covers: F-0 (a bad record never fails the others), pain 3. What cannot share a
// frame goes its own way: its neighbours are one frame all the same.
func TestPoisonAmongEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		big := `{"big":"` + strings.Repeat("x", maxCargo) + `"}`
		q := newEventQueue(`{"n":1}`, `nobody`, `{"n":2}`, `{"n":`, "digest", `{"n":3}{"n":4}`, big, `{"panic":1}`, `{"n":5}`, `{"n":6} {"n":`)
		r := run(t, q, newGate(true), func(c *SQSConfig, d *Deps) {
			events(c, d)
			c.MaxReceives = 1
			d.Choose = func(configured, key string, head []byte) (string, framing.Framing, string) {
				if strings.Contains(string(head), "panic") {
					panic("x")
				}
				return chooseAuto(configured, key, head)
			}
		})
		pass(time.Second)
		if all, _ := q.left(); all != 0 {
			t.Fatalf("%d messages left", all)
		}
		ids, records := frames(t, r.bus)
		slices.SortFunc(ids, func(a, b []string) int { return len(b) - len(a) })
		want := []string{uuidOf(0), uuidOf(2), uuidOf(5), uuidOf(8)}
		slices.SortFunc(ids[1:], func(a, b []string) int { return strings.Compare(b[0], a[0]) })
		alone := []string{uuidOf(6), uuidOf(9)}
		slices.Sort(alone)
		if len(ids) != 3 || !slices.Equal(ids[0], want) || !slices.Equal(ids[1], alone[1:]) || !slices.Equal(ids[2], alone[:1]) || len(records) != 7 {
			t.Errorf("frames %v, %d records", ids, len(records))
		}
		var bad []string
		for _, b := range r.bus.Quarantined() {
			bad = append(bad, b.GetOrigin().GetMessageId()+" "+b.GetCode())
			if string(b.GetOrigin().GetPull()) != string(messages.MessagePull(r.cfg.QueueURL, b.GetOrigin().GetMessageId(), 0)) {
				t.Errorf("entry %v has another pull than its message", b)
			}
		}
		slices.Sort(bad)
		wantBad := []string{uuidOf(1) + " ingest.unreadable_body", uuidOf(3) + " ingest.unreadable_body", uuidOf(7) + " ingest.message_fails", uuidOf(9) + " framing.truncated"}
		slices.Sort(wantBad)
		if !slices.Equal(bad, wantBad) {
			t.Errorf("quarantined %q, want %q", bad, wantBad)
		}
		got := map[string]int{}
		for _, as := range r.announced() {
			got[strings.Fields(as + " ")[len(strings.Fields(as))-1]]++
		}
		if got["digest"] != 1 || got["AS_EVENTS"] != 3 {
			t.Errorf("announced %q", r.announced())
		}
	})
}

// once is an outbox that cannot ever store a frame of several messages.
type once struct{ *topology.Recorder }

func (o once) Publish(ctx context.Context, m topology.Message) error {
	if v, err := messages.DecodeFrame(m.Data); err == nil && len(v.MessageIDs()) > 0 || strings.Contains(string(m.Data), "poison") {
		return errNeverFits.New(nil, "publish")
	}
	return o.Recorder.Publish(ctx, m)
}

// covers: pain 3. A frame that the bus will never take is stored message by
// message; the one at fault is kept in quarantine.
func TestFrameNeverStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newEventQueue(`{"n":1}`, `"poison"`, `{"n":2}`)
		bus := &topology.Recorder{}
		run(t, q, newGate(true), func(c *SQSConfig, d *Deps) {
			events(c, d)
			d.NewOutbox = func() topology.Outbox { return once{bus} }
		})
		pass(time.Second)
		if all, _ := q.left(); all != 0 {
			t.Fatalf("%d messages left", all)
		}
		ids, _ := frames(t, bus)
		if len(ids) != 2 || len(bus.Quarantined()) != 1 || bus.Quarantined()[0].GetOrigin().GetMessageId() != uuidOf(1) {
			t.Errorf("frames %v, quarantined %v", ids, bus.Quarantined())
		}
	})
}

// What the bus does not take is given back, and comes again in another frame with
// other messages; nothing is received meanwhile.
func TestFrameNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newEventQueue(numbered(3)...)
		g := newGate(true)
		g.fail(errors.New("no responders"))
		r := run(t, q, g, events)
		synctest.Wait()
		if all, visible := q.left(); all != 3 || visible != 0 {
			t.Errorf("%d left, %d visible: given back without a pause", all, visible)
		}
		pass(10 * time.Minute)
		if n := q.count("receive"); n < 8 || n > 150 {
			t.Errorf("%d receive calls in 10 min", n)
		}
		stored := len(r.bus.Messages()) // by attempts whose flush failed
		g.fail(nil)
		q.send(`{"n":"new"}`)
		pass(2 * time.Minute)
		if all, _ := q.left(); all != 0 || len(r.bus.Messages()) <= stored {
			t.Errorf("%d messages left, %d frames", all, len(r.bus.Messages())-stored)
		}
		seen := map[string]bool{}
		for _, m := range r.bus.Messages() {
			seen[m.ID] = true
		}
		if len(seen) > 3 {
			t.Errorf("%d message ids: the same messages in a frame must have the same", len(seen))
		}
		r.expect(t, "in flight", mInFlight.WithLabelValues(r.Name()), 0)
	})
}

// covers: VOI-28, LIM-10, DEV-48. Of a message group nothing overtakes a message that failed.
func TestGroupOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newEventQueue(`{"a":1}`, `{"panic":"a2"}`, `{"a":3}`, `{"b":1}`, `{"b":2}`)
		for i, m := range q.waiting {
			m.group = "aaabb"[i : i+1]
		}
		var mended atomic.Bool
		r := run(t, q, newGate(true), func(c *SQSConfig, d *Deps) {
			events(c, d)
			c.QueueURL += ".fifo"
			d.Choose = func(configured, key string, head []byte) (string, framing.Framing, string) {
				if !mended.Load() && strings.Contains(string(head), "panic") {
					panic("x")
				}
				return chooseAuto(configured, key, head)
			}
		})
		synctest.Wait()
		if _, records := frames(t, r.bus); !slices.Equal(records, []string{`{"a":1}`, `{"b":1}`, `{"b":2}`}) {
			t.Errorf("stored %q", records)
		}
		if all, visible := q.left(); all != 2 || visible != 0 {
			t.Errorf("%d messages left, %d visible", all, visible)
		}
		mended.Store(true)
		pass(time.Minute)
		ids, _ := frames(t, r.bus)
		if all, _ := q.left(); all != 0 || !slices.Equal(ids[len(ids)-1], []string{uuidOf(1), uuidOf(2)}) {
			t.Errorf("%d messages left, frames %v", all, ids)
		}
	})
}

// Deletions that fail in part are repeated; those whose receipt is void come again
// and are known then.
func TestPartOfDeletesFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newEventQueue(numbered(25)...)
		left := map[string]int{uuidOf(3): 2, uuidOf(12): 1}
		q.keep = func(id string) bool { left[id]--; return left[id] >= 0 }
		r := run(t, q, newGate(true), events)
		pass(10 * time.Second)
		if all, _ := q.left(); all != 0 {
			t.Errorf("%d messages left", all)
		}
		q.mu.Lock()
		q.stale = true
		q.mu.Unlock()
		q.send(`{"n":1}`, `{"n":2}`)
		pass(time.Second)
		q.mu.Lock()
		q.stale = false
		q.mu.Unlock()
		pass(3 * time.Minute)
		_, records := frames(t, r.bus)
		if all, _ := q.left(); all != 0 || len(records) != 27 {
			t.Errorf("%d messages left, %d records stored", all, len(records))
		}
		r.expect(t, "redelivered", mRedelivered.WithLabelValues(r.Name()), 2)
	})
}

// covers: F-5 (SNS MessageId). What SNS sends twice, as two messages of the queue,
// is stored once.
func TestSNSRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		envelope := func(id, message string) string {
			return fmt.Sprintf(`{"Type":"Notification","MessageId":%q,"TopicArn":"arn:aws:sns:eu-west-1:123456789012:t","Message":%q}`, id, message)
		}
		q := newEventQueue(envelope("s-1", `{"n":1}`), envelope("s-2", `{"n":1}`))
		r := run(t, q, newGate(true), events)
		synctest.Wait()
		q.send(envelope("s-1", `{"n":1}`))
		pass(time.Second)
		if _, records := frames(t, r.bus); len(records) != 2 {
			t.Errorf("%d records, want 2", len(records))
		}
		if all, _ := q.left(); all != 0 {
			t.Errorf("%d messages left", all)
		}
	})
}

// Stopping sends away what waits for more, and waits for it.
func TestDrainOfFrames(t *testing.T) {
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			q := newEventQueue(numbered(30)...)
			r := run(t, q, newGate(false), func(c *SQSConfig, d *Deps) {
				events(c, d)
				c.Linger, c.WaitTime = time.Second, time.Second
			})
			synctest.Wait()
			if !fails {
				go func() { <-time.After(30 * time.Second); close(r.gate.open) }()
			}
			err := r.stop()
			all, visible := q.left()
			if !fails && (err != nil || all != 0) {
				t.Errorf("run: %v; %d messages left", err, all)
			}
			if fails && (fault.CodeOf(err) != "ingest.drain_expired" || all != 30 || visible != 30) {
				t.Errorf("run: %v; %d messages left, %d visible, want 30 and 30", err, all, visible)
			}
		})
	}
}

// What waits for a bus that takes nothing is kept from other readers, up to the
// room there is.
func TestFramesWaitForTheBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newEventQueue(numbered(500)...)
		r := run(t, q, newGate(false), func(c *SQSConfig, d *Deps) {
			events(c, d)
			c.MaxInFlight, c.MaxReceivers = 100, 4
		})
		pass(time.Hour)
		if _, visible := q.left(); visible != 400 {
			t.Errorf("%d messages are visible to others, want the 400 that have no room", visible)
		}
		if n := q.count("extend"); n < 10*58 || n > 10*62 {
			t.Errorf("visibility of 10 batches extended %d times in an hour, want one a minute each", n)
		}
		close(r.gate.open)
		pass(time.Minute)
		if all, _ := q.left(); all != 0 {
			t.Errorf("%d messages left", all)
		}
	})
}

// farQueue answers every call after a while, as one at the other end of a network
// does, and has messages until all are handed out.
type farQueue struct {
	SQS
	mu           sync.Mutex
	out, deleted int
	all          int
	done         time.Time
}

const farAway = 15 * time.Millisecond

func (q *farQueue) ReceiveMessage(ctx context.Context, in *sqs.ReceiveMessageInput, _ ...func(*sqs.Options)) (*sqs.ReceiveMessageOutput, error) {
	<-time.After(farAway)
	q.mu.Lock()
	out := &sqs.ReceiveMessageOutput{}
	for range min(int(in.MaxNumberOfMessages), q.all-q.out) {
		id := uuidOf(q.out)
		out.Messages = append(out.Messages, types.Message{MessageId: &id, ReceiptHandle: &id, Body: aws.String(voice(q.out))})
		q.out++
	}
	q.mu.Unlock()
	if len(out.Messages) == 0 && !pause(ctx, time.Duration(in.WaitTimeSeconds)*time.Second) {
		return nil, ctx.Err()
	}
	return out, nil
}

func (q *farQueue) DeleteMessageBatch(_ context.Context, in *sqs.DeleteMessageBatchInput, _ ...func(*sqs.Options)) (*sqs.DeleteMessageBatchOutput, error) {
	<-time.After(farAway)
	q.mu.Lock()
	defer q.mu.Unlock()
	out := &sqs.DeleteMessageBatchOutput{}
	for _, e := range in.Entries {
		out.Successful = append(out.Successful, types.DeleteMessageBatchResultEntry{Id: e.Id})
	}
	if q.deleted += len(in.Entries); q.deleted == q.all {
		q.done = time.Now()
	}
	return out, nil
}

// Receivers, frames and deletions keep up with 20,000 messages a second at a queue
// that takes 15 ms for each call and a bus that takes 30 ms for each frame: in the
// bubble's time, in which only waiting counts.
func TestFarQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &farQueue{all: 60_000}
		g := newGate(true)
		g.slow = 30 * time.Millisecond
		began := time.Now()
		r := run(t, nil, g, func(c *SQSConfig, d *Deps) {
			events(c, d)
			c.Receivers, c.MaxReceivers, c.WaitTime = 2, 48, time.Second
			d.SQS = func(context.Context, awsclient.Config) (SQS, error) { return q, nil }
		})
		pass(30 * time.Second)
		if q.deleted != q.all {
			t.Fatalf("%d of %d messages deleted", q.deleted, q.all)
		}
		took := q.done.Sub(began)
		if took > 3*time.Second {
			t.Errorf("%d messages took %s", q.all, took)
		}
		ids, records := frames(t, r.bus)
		if len(records) != q.all {
			t.Errorf("%d records, want %d", len(records), q.all)
		}
		t.Logf("%d messages in %s, %d frames", q.all, took, len(ids))
	})
}

// A queue of events through HTTP and the real SDK: duplicates, lost answers and
// failing deletes. Every event is stored, and everything is deleted.
func TestRoughQueueOfEvents(t *testing.T) {
	var n sync.Map
	l := runLive(t, func(c *SQSConfig, d *Deps) {
		c.Receivers, c.MaxReceivers = 4, 8
		events(c, d)
	})
	l.SetFault(func(op, _, _ string) cloud.Fault {
		v, _ := n.LoadOrStore(op, new(tally))
		switch i := v.(*tally).next(); {
		case op == "ReceiveMessage" && i%11 == 0:
			return cloud.Fault{Cut: -1} // handed out, never arrived
		case op == "ReceiveMessage":
			return cloud.Fault{Duplicate: i%3 == 0, Shuffle: true}
		case op == "DeleteMessageBatch" && i%4 == 0:
			return cloud.Fault{FailEntries: 3}
		case op == "DeleteMessageBatch" && i%5 == 0:
			return cloud.Fault{Status: 500}
		}
		return cloud.Fault{}
	})
	const count = 1200
	bodies := make([]string, count)
	for i := range bodies {
		bodies[i] = voice(i)
	}
	if _, err := l.Send("logs", bodies...); err != nil {
		t.Fatal(err)
	}
	l.until(t, "all deleted", func(s cloud.QueueState) bool { return s.Sent >= count && settled(s) })
	if err := l.stop(); err != nil {
		t.Errorf("run: %v", err)
	}
	ids, records := frames(t, l.bus)
	slices.Sort(bodies)
	if got := slices.Compact(records); !slices.Equal(got, bodies) {
		t.Errorf("%d different records, want %d", len(got), count)
	}
	t.Logf("%d frames for %d messages", len(ids), count)
}

type tally struct {
	mu sync.Mutex
	n  int
}

func (c *tally) next() int { c.mu.Lock(); defer c.mu.Unlock(); c.n++; return c.n }

// FuzzQuick: a body that goes the quick way is one that the slow way takes for the
// same events.
func FuzzQuick(f *testing.F) {
	for _, s := range []string{voice(1), `{"a":1}{"b":2}`, "[]", `{"Records":[]}`, `{"Type":"Notification","Message":"{}"}`, `{"\u0052ecords":[{"s3":{}}]}`, ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		for _, kind := range []Body{BodyAuto, BodyEvents} {
			quick, slow := admitter(kind, "json", "logs"), admitter(kind, "json", "logs")
			l := &letter{queue: "q", id: uuidOf(0), body: body, sent: 7, received: 8, receives: 1}
			c := quick.quick(l)
			if c == nil {
				continue
			}
			o := slow.admit(l)
			if len(o) != 1 || o[0].cargo == nil || string(o[0].cargo.text) != string(c.text) || !slices.Equal(o[0].cargo.ends, c.ends) || o[0].cargo.format != c.format {
				t.Fatalf("body %q: quick %q, slow %+v", body, c.text, o)
			}
		}
	})
}
