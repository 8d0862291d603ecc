package topology

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages"
)

// ledgerWriter stores the facts of a stage, many in one message: whoever comes
// while a write is under way waits for the next, so the rate of writes adapts to
// the disk.
type ledgerWriter struct {
	bus   *Bus
	stage Stage

	mu      sync.Mutex
	pending *factBatch
	writing bool
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

type factBatch struct {
	facts []*messages.Fact
	size  int
	done  chan struct{}
	err   error
}

// Facts are gathered for ledgerLinger, so that a thousand small objects do not
// make a thousand writes, and at most to ledgerBatch bytes.
const (
	ledgerLinger = 20 * time.Millisecond
	ledgerBatch  = 256 << 10
)

func newLedgerWriter(b *Bus, s Stage) *ledgerWriter {
	w := &ledgerWriter{bus: b, stage: s}
	// A batch serves many callers: it must not end with one caller's context.
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// add returns once the facts are stored.
func (w *ledgerWriter) add(ctx context.Context, facts []*messages.Fact) error {
	size := 0
	for _, f := range facts {
		size += proto.Size(f) + 4
	}
	w.mu.Lock()
	if w.pending == nil || w.pending.size+size > ledgerBatch && w.pending.size > 0 {
		if w.pending != nil {
			w.start(w.pending)
		}
		w.pending = &factBatch{done: make(chan struct{})}
	}
	batch := w.pending
	batch.facts = append(batch.facts, facts...)
	batch.size += size
	if !w.writing {
		w.writing = true
		w.wg.Go(w.write)
	}
	w.mu.Unlock()
	select {
	case <-batch.done:
		return batch.err
	case <-ctx.Done():
		return errPublish.New(context.Cause(ctx), "store ledger facts")
	}
}

// write stores the pending batch after the linger, and goes on while there is one.
func (w *ledgerWriter) write() {
	for {
		select {
		case <-time.After(ledgerLinger):
		case <-w.ctx.Done():
		}
		w.mu.Lock()
		batch := w.pending
		w.pending = nil
		if batch == nil {
			w.writing = false
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		w.store(batch)
	}
}

// start stores a batch that is full already, beside the one that lingers.
func (w *ledgerWriter) start(batch *factBatch) { w.wg.Go(func() { w.store(batch) }) }

func (w *ledgerWriter) store(batch *factBatch) {
	data := messages.EncodeFacts(&messages.Facts{Version: 1, Stage: string(w.stage), Facts: batch.facts})
	sum := sha256.Sum256(data)
	batch.err = w.bus.storeSlow(w.ctx, Message{Subject: LedgerSubject(w.stage), ID: hex.EncodeToString(sum[:16]), Data: data})
	close(batch.done)
}

// close gives up what is not stored yet: its callers get an error.
func (w *ledgerWriter) close() {
	w.cancel()
	w.wg.Wait()
}
