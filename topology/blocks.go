package topology

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"
	"unsafe"

	"github.com/nats-io/nats-server/v2/server"
)

// NATS server 2.15 keeps each block of a stream, 8 MiB, in memory for ten seconds after it
// was last written or read, and has no setting for that. At 100,000 events a second this
// is more than half a GiB for nothing: what reads a stream at the pace at which it is
// written is done with a full block at once. So in the server inside this process a block
// that is full is given up blockKept after its last use instead. The block that is being written stays
// as the server has it: else each write of a slow stream would read it again.
//
// And blocks are smaller than the server would have them, as long as a stream does not
// become too many files by it: what is held of each stream is whole blocks, and their
// buffers are copied three times while they grow to 8 MiB.
//
// The server shows none of this to others, hence reflection. Where its insides are not as
// expected, it keeps its ten seconds, and TestBlocksAreForgotten fails. Source: decision
// 0034; nats-server 2.15.2, server/filestore.go.
const (
	blockKept = 250 * time.Millisecond
	// blockCheck is how often full blocks are looked for while there are some, blockCalm
	// while there are none.
	blockCheck = 100 * time.Millisecond
	blockCalm  = time.Second
)

// Sizes of blocks, in bytes: those of the buffers that the server keeps for reuse. mostBlocks
// is about how many of them a full stream has at most.
const (
	smallBlock  = 1 << 20
	mediumBlock = 4 << 20
	mostBlocks  = 1 << 14
)

// forgetBlocks gives up full blocks until ctx ends.
func forgetBlocks(ctx context.Context, s *server.Server, log *slog.Logger) {
	check := time.NewTimer(blockCalm)
	defer check.Stop()
	found := time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-check.C:
		}
		n, err := forgetFull(s)
		if err != nil {
			log.Debug("blocks of streams stay in memory for as long as the server likes", "err", err)
			return
		}
		if n > 0 {
			found = time.Now()
		}
		if time.Since(found) < 2*blockCalm {
			check.Reset(blockCheck)
		} else {
			check.Reset(blockCalm)
		}
	}
}

var errInsides = errors.New("the server's insides are not as expected")

// forgetFull has full blocks that were not told so before be given up soon, and returns
// how many these are.
func forgetFull(s *server.Server) (n int, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errInsides, r)
		}
	}()
	account := s.GlobalAccount()
	if account == nil {
		return 0, nil
	}
	inside := at(reflect.ValueOf(account).Elem(), "js")
	if inside.IsNil() {
		return 0, nil // shut down
	}
	var streams, stores []reflect.Value
	locked(inside.Elem(), func() {
		for all := at(inside.Elem(), "streams").MapRange(); all.Next(); {
			streams = append(streams, all.Value().Elem())
		}
	})
	for _, stream := range streams {
		locked(stream, func() {
			if store := at(stream, "store"); !store.IsNil() {
				stores = append(stores, store.Elem().Elem())
			}
		})
	}
	for _, store := range stores {
		locked(store, func() {
			shrinkBlocks(store)
			blocks := at(store, "blks")
			// The last is being written. Those before it were told, up to a known one.
			for i := blocks.Len() - 2; i >= 0; i-- {
				if !forget(blocks.Index(i).Elem()) {
					break
				}
				n++
			}
		})
	}
	return n, nil
}

// shrinkBlocks has the blocks that a store begins from now on be small.
func shrinkBlocks(store reflect.Value) {
	limit := at(at(at(store, "cfg"), "StreamConfig"), "MaxBytes").Interface().(int64)
	size := at(at(store, "fcfg"), "BlockSize").Addr().Interface().(*uint64)
	for _, small := range [...]uint64{smallBlock, mediumBlock} {
		if *size > small && limit > 0 && limit/int64(small) <= mostBlocks {
			*size = small
		}
	}
}

// forget shortens the time for which a block is kept, unless it is short already.
func forget(block reflect.Value) (changed bool) {
	locked(block, func() {
		kept := at(block, "cexp").Addr().Interface().(*time.Duration)
		if changed = *kept != blockKept; !changed {
			return
		}
		*kept = blockKept
		if timer := *at(block, "ctmr").Addr().Interface().(**time.Timer); timer != nil {
			timer.Reset(blockKept) // it looks again by itself when the block was used since
		}
	})
	return changed
}

// locked calls f under the lock of a value of the server.
func locked(v reflect.Value, f func()) {
	mu := at(v, "mu").Addr().Interface().(*sync.RWMutex)
	mu.Lock()
	defer mu.Unlock()
	f()
}

// at returns a field of a struct of the server, which may be unexported, as one that can
// be used and set.
func at(v reflect.Value, name string) reflect.Value {
	f := v.FieldByName(name)
	if !f.IsValid() {
		panic(fmt.Sprintf("%s has no %s", v.Type(), name))
	}
	return reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem() //nolint:gosec // see above: there is no other way
}
