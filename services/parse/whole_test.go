package parse

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"weak"

	"github.com/klauspost/compress/s2"
	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/topology"
)

// fullCount is how many records full returns.
const fullCount = 40

// full returns records of one service that together are more than wholeFrom.
func full(from int) []string {
	recs := make([]string, fullCount)
	for i := range recs {
		rec := record(from+i, "s3")
		recs[i] = strings.TrimSuffix(rec, "}") + fmt.Sprintf(`,"x":"%s"}`, strings.Repeat(fmt.Sprint(from+i, " "), 2*wholeFrom/fullCount/4))
	}
	return recs
}

// withBlock is the frame with another block for the same documents, made by press.
func withBlock(t *testing.T, in topology.In[messages.View], press func(body []byte) []byte) topology.In[messages.View] {
	t.Helper()
	var f messages.Frame
	if err := proto.Unmarshal(in.Data, &f); err != nil {
		t.Fatal(err)
	}
	body, err := in.Value.Body(nil)
	if err != nil {
		t.Fatal(err)
	}
	f.Body = press(body)
	if in.Data, err = proto.Marshal(&f); err != nil {
		t.Fatal(err)
	}
	if in.Value, err = messages.DecodeFrame(in.Data); err != nil {
		t.Fatal(err)
	}
	return in
}

// pressed is the frame with a block that the stage itself would not make.
func pressed(t *testing.T, in topology.In[messages.View]) topology.In[messages.View] {
	t.Helper()
	return withBlock(t, in, func(body []byte) []byte { return s2.EncodeBest(nil, body) })
}

// documents returns the documents of all frames by the ordinals of their records, and the
// blocks of the frames.
func documents(t *testing.T, b *bus) (docs map[uint64]string, blocks [][]byte) {
	t.Helper()
	docs = map[uint64]string{}
	var c messages.Columns
	for _, m := range b.messages() {
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Columns(&c); err != nil {
			t.Fatal(err)
		}
		body, err := v.Body(nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, size := range c.Lengths {
			if _, twice := docs[c.Records[i]]; twice {
				t.Errorf("record %d came twice", c.Records[i])
			}
			docs[c.Records[i]] = string(body[:size])
			body = body[size:]
		}
		blocks = append(blocks, v.Block())
	}
	return docs, blocks
}

// What one input brings for one group goes on compressed as it came; what does not is
// compressed anew. Either way every event has its document.
func TestBlocksGoOn(t *testing.T) {
	odd := full(0)
	odd[7] = record(7, "iam")
	broken := full(0)
	broken[3] = `{"eventID":`
	padded := full(0)
	padded[fullCount-1] = "  " + padded[fullCount-1]
	small := full(0)
	for i := range small {
		small[i] = record(i, "s3")
	}
	limited := Defaults()
	limited.GroupEvents = fullCount - 1
	for _, c := range []struct {
		name   string
		recs   []string
		config Config
		whole  bool
	}{
		{"one type", full(0), Defaults(), true},
		{"two types", odd, Defaults(), false},
		{"a bad record", broken, Defaults(), false},
		{"a document that is less than its record", padded, Defaults(), false},
		{"little", small, Defaults(), false},
		{"more than a group", full(0), limited, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &bus{}
			p, err := New(c.config, Deps{NewOutbox: b.outbox, Lanes: 1, Window: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			msg := pressed(t, frame(t, trail(0, 0), origin(1), c.recs...))
			if err := p.Handle(t.Context(), msg, &topology.Recorder{}); err != nil {
				t.Fatal(err)
			}
			docs, blocks := documents(t, b)
			same := slices.ContainsFunc(blocks, func(block []byte) bool { return bytes.Equal(block, msg.Value.Block()) })
			if same != c.whole {
				t.Errorf("the block went on as it was: %v, want %v", same, c.whole)
			}
			for i, rec := range c.recs {
				want := strings.TrimSpace(rec)
				if !strings.HasSuffix(want, "}") {
					want = ""
				}
				if docs[uint64(i)] != want {
					t.Errorf("record %d has another document: %.60q", i, docs[uint64(i)])
				}
			}
			if p.grouper.used != 0 {
				t.Errorf("%d bytes are held after all was stored", p.grouper.used)
			}
		})
	}
}

// Blocks of several inputs share a frame as long as they fit, and are never divided.
func TestBlocksAreStrungTogether(t *testing.T) {
	const inputs = 7
	c := Defaults()
	c.GroupEvents = 3*fullCount + fullCount/2
	b := &bus{}
	p, err := New(c, Deps{NewOutbox: b.outbox, Lanes: 1, Window: inputs + 1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	want := map[uint64]string{}
	var wg sync.WaitGroup
	for i := range inputs {
		recs := full(i * fullCount)
		for k, rec := range recs {
			want[uint64(i*fullCount+k)] = rec
		}
		msg := frame(t, trail(uint32(i), uint64(i*fullCount)), origin(1), recs...)
		wg.Go(func() {
			if err := p.Handle(t.Context(), msg, &topology.Recorder{}); err != nil {
				t.Error(err)
			}
		})
	}
	few := []string{record(inputs*fullCount, "s3"), record(inputs*fullCount+1, "s3")} // compressed anew, among blocks
	for k, rec := range few {
		want[uint64(inputs*fullCount+k)] = rec
	}
	msg := frame(t, trail(inputs, inputs*fullCount), origin(1), few...)
	wg.Go(func() {
		if err := p.Handle(t.Context(), msg, &topology.Recorder{}); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	if got, _ := documents(t, b); !maps.Equal(got, want) {
		t.Errorf("%d documents, not the %d that came", len(got), len(want))
	}
	if frames := len(b.messages()); frames < 3 || frames > 4 {
		t.Errorf("%d frames for %d inputs of which three fit into one", frames, inputs)
	}
}

// A group that could not be stored comes again with all its documents, although the first
// attempt gave up the body.
func TestBlocksComeAgain(t *testing.T) {
	var failed atomic.Bool
	b := &bus{}
	b.flush = func(context.Context) error {
		if failed.CompareAndSwap(false, true) {
			return errors.New("not now")
		}
		return nil
	}
	p, err := New(Defaults(), Deps{NewOutbox: b.outbox, Lanes: 1, Window: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	recs := full(0)
	msg := frame(t, trail(0, 0), origin(1), recs...)
	if err := p.Handle(t.Context(), msg, &topology.Recorder{}); err == nil {
		t.Fatal("no error, although the bus had one")
	}
	if err := p.Handle(t.Context(), msg, &topology.Recorder{}); err != nil {
		t.Fatal(err)
	}
	got, _ := documents(t, b)
	for i, rec := range recs {
		if got[uint64(i)] != rec {
			t.Errorf("record %d has another document: %.60q", i, got[uint64(i)])
		}
	}
}

// BenchmarkBlocks is BenchmarkHandle where all events are of one table and lane, as they
// are by default.
func BenchmarkBlocks(b *testing.B) {
	const window, size = 16, 750
	var frames, stored atomic.Int64
	p, err := New(Defaults(), Deps{
		NewOutbox: func() topology.Outbox { return &count{frames: &frames, bytes: &stored} }, Lanes: 1, Window: window,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	inputs := make([]topology.In[messages.View], window)
	total := 0
	for i := range inputs {
		recs := make([]string, size)
		for k := range recs {
			recs[k] = longRecord(8 * k)
			total += len(recs[k])
		}
		inputs[i] = frame(b, trail(0, 0), origin(i), recs...)
	}
	b.SetBytes(int64(total))
	b.ReportAllocs()
	for b.Loop() {
		var wg sync.WaitGroup
		for _, msg := range inputs {
			wg.Go(func() {
				if err := p.Handle(b.Context(), msg, &topology.Recorder{}); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/window/size, "ns/event")
}

// inflated is the frame with a block of one literal for each byte, six times its documents:
// nothing that the stage makes, but it can be read.
func inflated(t *testing.T, in topology.In[messages.View]) topology.In[messages.View] {
	t.Helper()
	return withBlock(t, in, func(body []byte) []byte {
		block := binary.AppendUvarint(nil, uint64(len(body)))
		for _, c := range body {
			block = append(block, 63<<2, 0, 0, 0, 0, c)
		}
		return block
	})
}

// A block that is larger than its documents, of whoever else writes to RECORDS, does not
// go on: a group of such blocks may be more than the bus carries.
func TestInflatedBlocksAreCompressedAnew(t *testing.T) {
	b := &bus{}
	p, err := New(Defaults(), Deps{NewOutbox: b.outbox, Lanes: 1, Window: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	recs := full(0)
	msg := inflated(t, frame(t, trail(0, 0), origin(1), recs...))
	if err := p.Handle(t.Context(), msg, &topology.Recorder{}); err != nil {
		t.Fatal(err)
	}
	docs, blocks := documents(t, b)
	for _, block := range blocks {
		if len(block) > msg.Value.BodySize() {
			t.Errorf("%d bytes of documents went on as %d", msg.Value.BodySize(), len(block))
		}
	}
	for i, rec := range recs {
		if docs[uint64(i)] != rec {
			t.Errorf("record %d has another document: %.60q", i, docs[uint64(i)])
		}
	}
}

// Frames that came in are free once their group is stored, although nothing more comes:
// nobody counts them among what is held any more.
func TestBlocksAreLetGo(t *testing.T) {
	b := &bus{}
	p, err := New(Defaults(), Deps{NewOutbox: b.outbox, Lanes: 1, Window: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	came := func() weak.Pointer[byte] {
		msg := frame(t, trail(0, 0), origin(1), full(0)...)
		if err := p.Handle(t.Context(), msg, &topology.Recorder{}); err != nil {
			t.Fatal(err)
		}
		return weak.Make(&msg.Data[0])
	}()
	runtime.GC()
	if came.Value() != nil {
		t.Error("the frame is still held")
	}
}
