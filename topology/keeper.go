package topology

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

var (
	streamBytes = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_bus_stream_bytes", Help: "Bytes a stream holds. Only the process that keeps the streams reports it.",
	}, []string{"stream"})
	streamLimit = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_bus_stream_limit_bytes", Help: "Bytes a stream may hold.",
	}, []string{"stream"})
	streamHeld = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_bus_stream_held_messages", Help: "Messages of a stream that the keeper may not trim yet.",
	}, []string{"stream"})
	trimmed = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_bus_trimmed_messages_total", Help: "Messages of history that the keeper removed.",
	}, []string{"stream"})
)

// The keeper trims above fullAt of a stream's bytes down to trimTo: early enough
// that a burst finds room, so rarely that history is not thrown away for nothing.
const (
	fullAt     = 0.80
	trimTo     = 0.70
	keeperTick = time.Second
)

// Keep runs the keeper until ctx ends. Every process may call it: one of them
// does the work.
func (b *Bus) Keep(ctx context.Context) error {
	group := &leases{bus: b, group: "keeper", list: func() []string { return []string{"streams"} }, me: b.options.Name, run: func(ctx context.Context, _ *lease) error {
		return b.keeper(ctx)
	}}
	return group.keep(ctx)
}

func (b *Bus) keeper(ctx context.Context) error {
	kick := make(chan struct{}, 1)
	full, err := b.nc.Subscribe(fullSubject+"*", func(*nats.Msg) {
		select {
		case kick <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return errConnect.New(err, "listen for full streams")
	}
	defer func() { _ = full.Unsubscribe() }()
	tick := time.NewTicker(keeperTick)
	defer tick.Stop()
	for {
		for _, s := range Flow {
			if err := b.trim(ctx, s, time.Now()); err != nil && ctx.Err() == nil {
				b.log.Warn("stream could not be trimmed, trying on", "stream", s.Name, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-kick:
			// Lanes that were told of it too need a moment to move their positions.
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

// trim removes history of one stream that is too old or too much, never what is
// held.
func (b *Bus) trim(ctx context.Context, s Stream, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	stream, err := b.js.Stream(ctx, s.Name)
	if err != nil {
		return err
	}
	info := stream.CachedInfo()
	state := info.State
	streamBytes.WithLabelValues(s.Name).Set(float64(state.Bytes))
	streamLimit.WithLabelValues(s.Name).Set(float64(info.Config.MaxBytes))
	if state.Msgs == 0 || s.Hold == HoldAll && now.Sub(state.FirstTime) < s.Keep {
		return nil
	}
	// The stream's last sequence was read before the consumers are asked: a
	// consumer that then has nothing left has all up to it.
	floor, err := b.floor(ctx, s, stream, state.LastSeq)
	if err != nil {
		return err
	}
	streamHeld.WithLabelValues(s.Name).Set(float64(state.LastSeq - min(floor, state.LastSeq)))
	to := uint64(0) // the last sequence to remove
	limit := float64(info.Config.MaxBytes)
	if s.History > 0 {
		limit = min(limit, float64(s.History)/trimTo)
	}
	if limit > 0 && float64(state.Bytes) > fullAt*limit && s.Hold != HoldAll {
		part := (float64(state.Bytes) - trimTo*limit) / float64(state.Bytes)
		to = state.FirstSeq - 1 + uint64(math.Ceil(part*float64(state.LastSeq-state.FirstSeq+1)))
	}
	keep, err := time.ParseDuration(info.Config.Metadata[metaKeep])
	if err != nil {
		keep = s.Keep
	}
	if cutoff := now.Add(-keep); state.FirstTime.Before(cutoff) {
		old, err := b.lastBefore(ctx, stream, state, cutoff)
		if err != nil {
			return err
		}
		to = max(to, old)
	}
	if to = min(to, floor); to < state.FirstSeq {
		return nil
	}
	// Purge takes the first sequence that stays.
	if err := stream.Purge(ctx, jetstream.WithPurgeSequence(to+1)); err != nil {
		return err
	}
	trimmed.WithLabelValues(s.Name).Add(float64(to + 1 - state.FirstSeq))
	b.log.Debug("stream trimmed", "stream", s.Name, "up_to", to, "floor", floor)
	return nil
}

// floor is the last sequence that nobody needs any more.
func (b *Bus) floor(ctx context.Context, s Stream, stream jetstream.Stream, last uint64) (uint64, error) {
	floor := last
	if s.Hold == HoldNothing {
		return floor, nil
	}
	list := stream.ListConsumers(ctx)
	for c := range list.Info() {
		switch {
		case c.Config.Durable == "": // readers of history hold nothing
		case c.NumPending == 0 && c.NumAckPending == 0:
			// It has all that matches its filter, even if that is nothing.
		default:
			floor = min(floor, c.AckFloor.Stream)
		}
	}
	if err := list.Err(); err != nil {
		return 0, err
	}
	if s.Hold != HoldLanes {
		return floor, nil
	}
	lanes, err := b.LaneCount(ctx)
	if err != nil {
		return 0, err
	}
	kv, err := b.js.KeyValue(ctx, leaseBucket)
	if err != nil {
		return 0, err
	}
	for i := range lanes {
		entry, err := kv.Get(ctx, "lane."+strconv.FormatUint(uint64(i), 10))
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return 0, nil // a lane that nobody had yet needs everything
		}
		if err != nil {
			return 0, err
		}
		var v leaseValue
		if err := json.Unmarshal(entry.Value(), &v); err != nil {
			return 0, err
		}
		if s.Name == Parsed {
			floor = min(floor, v.Input)
		} else if v.Output > 0 {
			// The lane's last message stays: the next publish is checked against it.
			floor = min(floor, v.Output-1)
		} else {
			// No snapshot yet covers what the lane may have put out.
			last, err := b.last(ctx, UniqueSubject(i))
			if err != nil {
				return 0, err
			}
			if last != nil {
				return 0, nil
			}
		}
	}
	return floor, nil
}

// lastBefore finds the last sequence stored before cutoff, by halving.
func (b *Bus) lastBefore(ctx context.Context, stream jetstream.Stream, state jetstream.StreamState, cutoff time.Time) (uint64, error) {
	if state.LastTime.Before(cutoff) {
		return state.LastSeq, nil
	}
	low, high := state.FirstSeq, state.LastSeq // low is before the cutoff, high is not
	for high-low > 1 {
		mid := low + (high-low)/2
		// A gap is as old as the next message that is there.
		m, err := stream.GetMsg(ctx, mid, jetstream.WithGetMsgSubject(">"))
		if err != nil {
			return 0, err
		}
		if m.Time.Before(cutoff) {
			low = max(mid, min(m.Sequence, high-1))
		} else {
			high = mid
		}
	}
	return low, nil
}
