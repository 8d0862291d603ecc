package topology

import (
	"context"
	"time"
)

// Extent is how far a stream reaches.
type Extent struct {
	// Created is when the stream was made: another time, another stream, whose
	// sequences begin anew.
	Created time.Time
	// First is the first sequence that is kept, Next the one behind the last.
	First, Next uint64
}

// Extent asks how far a stream of [Flow] reaches. Errors: bus.read_failed.
func (b *Bus) Extent(ctx context.Context, stream string) (Extent, error) {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	s, err := b.js.Stream(ctx, stream)
	if err != nil {
		return Extent{}, errRead.New(err, "look up stream %s", stream)
	}
	info := s.CachedInfo()
	return Extent{Created: info.Created.UTC(), First: max(1, info.State.FirstSeq), Next: info.State.LastSeq + 1}, nil
}
