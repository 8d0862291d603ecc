package replay

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/topology"
)

// storeRecords stores a frame of records.
func storeRecords(t *testing.T, bus *topology.Bus, id, source string, data []byte) {
	t.Helper()
	out := bus.NewOutbox(topology.Ingest)
	if err := out.Publish(t.Context(), topology.Message{Subject: topology.RecordSubject(source), ID: id, Data: data}); err != nil {
		t.Fatal(err)
	}
	if err := out.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// operate takes up what is to be parsed again until the test ends.
func operate(t *testing.T, bus *topology.Bus) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = bus.RunJobs(ctx, Workers(bus)[0])
	}()
	t.Cleanup(func() { cancel(); <-ended })
}

// over waits until a job is over.
func over(t *testing.T, bus *topology.Bus, id string) topology.Job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var j topology.Job
	bus.FollowJobs(ctx, func(all []topology.Job) {
		if i := slices.IndexFunc(all, func(j topology.Job) bool { return j.ID == id }); i >= 0 && all[i].Over() {
			j = all[i]
			cancel()
		}
	})
	if !j.Over() {
		t.Fatalf("job %s does not end", id)
	}
	return j
}

// copies are the frames of records that a job has made.
func copies(t *testing.T, bus *topology.Bus, job string) []messages.View {
	t.Helper()
	var all []messages.View
	if err := bus.Read(t.Context(), topology.Span{Subject: "penstock.record.>"}, func(m topology.Stored) error {
		v, err := messages.DecodeFrame(slices.Clone(m.Data))
		if err == nil && messages.ParseReplay(v.Replay()).Job == job {
			all = append(all, v)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// Records of several messages that are one pull stay with their messages: the ids of
// events come of them, so that a copy without them would meet others in dedupe.
func TestReparseKeepsMessages(t *testing.T) {
	bus := testLog(t, 256<<20)
	b := messages.NewBuilder(messages.Header{Source: "q", Format: "json"})
	b.Origin(&messages.Origin{Pull: messages.NewPull("batch"), Source: "q", Queue: "https://sqs/q"})
	for i := range 3 {
		b.Message(messages.UUID{15: byte(i + 1)}, int64(i+1)*1e9)
		for n := range i + 1 {
			b.AddRecord(fmt.Appendf(nil, `{"message":%d,"n":%d}`, i, n))
		}
	}
	storeRecords(t, bus, "1", "q", b.Encode(nil))
	operate(t, bus)
	j, err := StartReparse(t.Context(), bus, jobs.Reparse{}, "op", "command", "")
	if err != nil {
		t.Fatal(err)
	}
	if j = over(t, bus, j.ID); j.State != topology.JobDone || j.Progress.Done != 6 {
		t.Fatalf("%+v", j)
	}
	original, err := messages.DecodeFrame(b.Encode(nil))
	if err != nil {
		t.Fatal(err)
	}
	var want, got messages.Columns
	if err := original.Columns(&want); err != nil {
		t.Fatal(err)
	}
	made := copies(t, bus, j.ID)
	if len(made) != 1 {
		t.Fatalf("%d copies", len(made))
	}
	if err := made[0].Columns(&got); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(made[0].MessageIDs(), original.MessageIDs()) || !slices.Equal(got.MessageRecords, want.MessageRecords) ||
		!slices.Equal(got.MessageSent, want.MessageSent) || !slices.Equal(got.Records, want.Records) {
		t.Errorf("messages %x of %v records, sent %v; want %x of %v, sent %v", made[0].MessageIDs(), got.MessageRecords, got.MessageSent, original.MessageIDs(), want.MessageRecords, want.MessageSent)
	}
}

// Records that RECORDS has let go of before their turn are said to be missing.
func TestReparseTellsWhatIsGone(t *testing.T) {
	bus := testLog(t, 256<<20)
	for i := range 2 {
		b := messages.NewBuilder(messages.Header{Source: "s", Format: "json"})
		b.Origin(&messages.Origin{Pull: messages.NewPull("test", fmt.Sprint(i)), Source: "s", Bucket: "logs", Key: fmt.Sprint(i)})
		b.AddRecord([]byte(`{"n":1}`))
		storeRecords(t, bus, fmt.Sprint(i), "s", b.Encode(nil))
	}
	c, err := CountRecords(t.Context(), bus, jobs.Reparse{}, nil)
	if err != nil || c.Events != 2 {
		t.Fatalf("%+v, %v", c, err)
	}
	var spec jobs.Reparse
	c.IntoReparse(&spec)
	if err := bus.Trim(t.Context(), topology.Records, 2); err != nil {
		t.Fatal(err)
	}
	j, err := StartReparse(t.Context(), bus, spec, "op", "command", "")
	if err != nil {
		t.Fatal(err)
	}
	operate(t, bus)
	if j = over(t, bus, j.ID); j.Progress.Done != 1 || !strings.HasPrefix(j.Progress.Note, "1 records of those counted are gone") {
		t.Errorf("%+v", j.Progress)
	}
}
