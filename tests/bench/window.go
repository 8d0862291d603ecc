package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/penstock/penstock/services/dedupe/seen"
)

// Window is what a full dedupe window costs, measured on the table itself.
type Window struct {
	IDs int `json:"ids"`
	// Bytes an id: of the table, and of the process around it.
	TableBytes    float64 `json:"table_bytes_per_id"`
	ResidentBytes float64 `json:"resident_bytes_per_id"`
	// EmptyNS and FullNS are the CPU time to look an id up and to add it, in frames of a
	// thousand, with next to nothing in the table and with all of it; medians of rounds
	// that take turns.
	EmptyNS float64 `json:"empty_ns_per_id"`
	FullNS  float64 `json:"full_ns_per_id"`
	// LoadNS is the time to load an id at start.
	LoadNS float64 `json:"load_ns_per_id"`
}

const idBytes = 16 // of an event's id, see messages.ID

// fillIDs fills buf with ids that come nowhere else, unless by chance.
func fillIDs(buf []byte, r *rand.ChaCha8) {
	for i := 0; i < len(buf); i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], r.Uint64())
	}
}

// window fills a table with ids and compares it with an empty one.
func window(ctx context.Context, scale float64, say io.Writer) (*Window, error) {
	n := share(100_000_000, scale)
	const frame, rounds, frames = 1000, 9, 200
	limits := seen.Limits{Window: 24 * time.Hour, MaxIDs: 2 * n}
	fmt.Fprintf(say, "bench: dedupe window with %d ids\n", n)
	random := rand.NewChaCha8([32]byte{1})
	ids := make([]byte, frame*idBytes)
	debug.FreeOSMemory()
	before := memoryOf("self", "VmRSS")
	full, now := seen.New(limits), time.Now()
	w := &Window{IDs: n}
	loading := 0.0
	for range n / frame {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		fillIDs(ids, random)
		cpu := ownCPU()
		full.Load(ids, now)
		loading += ownCPU() - cpu
	}
	if full.Len() != n/frame*frame {
		return nil, fmt.Errorf("the window holds %d ids of %d", full.Len(), n)
	}
	w.LoadNS = loading / float64(n) * 1e9
	debug.FreeOSMemory()
	w.TableBytes = float64(full.Bytes()) / float64(n)
	w.ResidentBytes = (memoryOf("self", "VmRSS") - before) * (1 << 20) / float64(n)
	var empties, fulls []float64
	mark := func(s *seen.Set) float64 {
		used := 0.0
		for range frames {
			fillIDs(ids, random)
			cpu := ownCPU()
			s.Mark(ids, now, func(int) {})
			s.Commit()
			used += ownCPU() - cpu
		}
		return used / (frame * frames) * 1e9
	}
	for range rounds {
		empty := seen.New(limits)
		empty.Reserve(2 * frame * frames) // growing is no part of this
		empties = append(empties, mark(empty))
		fulls = append(fulls, mark(full))
	}
	w.EmptyNS, w.FullNS = medianOf(empties), medianOf(fulls)
	runtime.KeepAlive(full)
	return w, nil
}
