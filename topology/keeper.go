package topology

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
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
	// keeperCalm is how often streams are looked at that do not change.
	keeperCalm = 5 * time.Second
	// keeperSure is how often they are looked at where all of them together have as many
	// bytes as before.
	keeperSure = 30 * time.Second
	// yieldAt is from where on replays hold nothing back: they send what has got
	// there before, and a full log would stop what is live.
	yieldAt = 0.90
)

// keeperGroup is what the keys of keepers' leases begin with.
const keeperGroup = "keeper"

// Keep trims streams until ctx ends. Every process may call it: for each stream one that
// may trim it does the work, or one for all of them when they may trim all.
func (b *Bus) Keep(ctx context.Context) error {
	var mine []Stream
	for _, s := range Flow {
		if b.may("$JS.API.STREAM.PURGE." + s.Name) {
			mine = append(mine, s)
		}
	}
	if len(mine) == len(Flow) {
		return b.hold(ctx, keeperGroup+".streams", func(ctx context.Context) error { return b.keeper(ctx, mine) })
	}
	var wg sync.WaitGroup
	for _, s := range mine {
		wg.Go(func() {
			_ = b.hold(ctx, keeperGroup+"."+s.Name, func(ctx context.Context) error { return b.keeper(ctx, []Stream{s}) }) // nil
		})
	}
	wg.Wait()
	return nil
}

// hold does work while a lease is ours: again and again, until ctx ends. Unlike [leases]
// it asks for the key now and then, and needs no right to make a consumer. Two that hold
// the same for a moment must do no harm.
func (b *Bus) hold(ctx context.Context, key string, work func(context.Context) error) error {
	h := &held{bus: b, key: key}
	renew := leaseRenew
	if b.options.Own {
		renew = leaseExpiry - time.Second // two that hold it for a moment do no harm
	}
	tick := time.NewTicker(renew)
	defer tick.Stop()
	var run sync.WaitGroup
	end := func() {}
	defer func() { end(); run.Wait(); h.leave(ctx) }()
	working := false
	for {
		mine, err := h.renew(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			b.log.Warn("a lease is not to be had, trying on", "key", key, "err", err)
		case mine && !working:
			working = true
			inner, stop := context.WithCancel(ctx)
			end = stop
			run.Go(func() {
				if err := work(inner); err != nil && inner.Err() == nil {
					b.log.Error("leased work ended with an error", "key", key, "err", err)
				}
			})
		case !mine && working && err == nil:
			end()
			run.Wait()
			working = false
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// held is a lease that is asked for.
type held struct {
	bus      *Bus
	key      string
	value    leaseValue
	revision uint64
	since    time.Time // when the key was seen to change
	mine     bool      // as of the last write
}

// renew tells whether the lease is ours, and takes it when it is free.
func (h *held) renew(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := h.bus.bucket(ctx, leaseBucket)
	if err != nil {
		return false, errLease.New(err, "open the bucket %s", leaseBucket)
	}
	if h.mine { // nobody else writes what is ours, or the write says so
		if mine, err := h.write(ctx, kv); err != nil || mine {
			return mine, err
		}
	}
	entry, err := kv.Get(ctx, h.key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		h.value, h.revision = leaseValue{}, 0
	case err != nil:
		return false, errLease.New(err, "look at the lease %s", h.key)
	default:
		if entry.Revision() != h.revision {
			h.revision, h.since = entry.Revision(), time.Now()
		}
		h.value = leaseValue{}
		_ = json.Unmarshal(entry.Value(), &h.value) // what cannot be read is nobody's
	}
	if me := h.bus.options.Name; h.value.Owner != "" && h.value.Owner != me && time.Since(h.since) < leaseExpiry {
		return false, nil
	}
	return h.write(ctx, kv)
}

// write writes the key anew, as ours, unless it has changed since we saw it.
func (h *held) write(ctx context.Context, kv jetstream.KeyValue) (mine bool, err error) {
	defer func() { h.mine = mine }()
	next := h.value
	next.Owner = h.bus.options.Name
	next.Beat++
	data, _ := json.Marshal(next) // cannot fail
	var revision uint64
	if h.revision == 0 {
		revision, err = kv.Create(ctx, h.key, data)
	} else {
		revision, err = kv.Update(ctx, h.key, data, h.revision)
	}
	if err != nil {
		if apiCode(err) == codeWrongLastSequence || errors.Is(err, jetstream.ErrKeyExists) {
			return false, nil // somebody was faster
		}
		return false, errLease.New(err, "take the lease %s", h.key)
	}
	h.value, h.revision, h.since = next, revision, time.Now()
	return true, nil
}

// leave gives the lease back, so that another need not wait.
func (h *held) leave(ctx context.Context) {
	if h.value.Owner != h.bus.options.Name {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if kv, err := h.bus.bucket(ctx, leaseBucket); err == nil {
		next := h.value
		next.Owner = ""
		data, _ := json.Marshal(next) // cannot fail
		_, _ = kv.Update(ctx, h.key, data, h.revision)
	}
}

// keeper trims streams until ctx ends.
func (b *Bus) keeper(ctx context.Context, streams []Stream) error {
	kick := make(chan struct{}, 1)
	events := false
	for _, s := range streams {
		full, err := b.nc.Subscribe(fullSubject+s.Name, func(*nats.Msg) {
			select {
			case kick <- struct{}{}:
			default:
			}
		})
		if err != nil {
			return errConnect.New(err, "listen for full streams")
		}
		defer func() { _ = full.Unsubscribe() }()
		events = events || s.Name == Events
	}
	tick := time.NewTimer(keeperTick)
	defer tick.Stop()
	var tidied time.Time
	was := map[string]uint64{} // the last sequence of each
	var calm idleBytes
	for {
		if events && time.Since(tidied) > replaysEvery {
			tidied = time.Now()
			stream, err := b.js.Stream(ctx, Events)
			if err == nil {
				err = b.tidyReplays(ctx, stream)
			}
			if err != nil && ctx.Err() == nil {
				b.log.Warn("readers of replays could not be looked at, trying on", "err", err)
			}
		}
		wait := keeperCalm
		infos, err := b.infos(ctx, streams)
		if err != nil && ctx.Err() == nil {
			b.log.Warn("streams could not be looked at, trying on", "err", err)
		}
		for _, s := range streams {
			info := infos[s.Name]
			if info == nil {
				wait = keeperTick
				continue
			}
			if err := b.trimOf(ctx, s, info, time.Now()); err != nil && ctx.Err() == nil {
				b.log.Warn("stream could not be trimmed, trying on", "stream", s.Name, "err", err)
				wait = keeperTick
			}
			if info.State.LastSeq != was[s.Name] {
				wait, was[s.Name] = keeperTick, info.State.LastSeq
			}
		}
		for again := true; again; {
			tick.Reset(wait)
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
				again = wait == keeperCalm && calm.passOver(b.usedBytes(ctx), time.Now())
			case <-kick:
				again = false
				// Lanes that were told of it too need a moment to move their positions.
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(100 * time.Millisecond):
				}
			}
		}
	}
}

// idleBytes tells which looks at all streams are spared: those while they have as many
// bytes together as at the look before. To ask for that costs a small part of a look.
type idleBytes struct {
	used   uint64
	looked time.Time
}

func (i *idleBytes) passOver(used uint64, now time.Time) bool {
	if used > 0 && used == i.used && now.Sub(i.looked) < keeperSure {
		return true
	}
	i.used, i.looked = used, now
	return false
}

// usedBytes are those of all streams on a server inside of this process, 0 where they are
// not known.
func (b *Bus) usedBytes(ctx context.Context) uint64 {
	if !b.options.Own {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	info, err := b.js.AccountInfo(ctx)
	if err != nil {
		return 0 // then the streams are looked at
	}
	return info.Store
}

// infos looks at streams, by name. Those that could not be looked at are not in it. Where
// one server has all streams, it is asked once.
func (b *Bus) infos(ctx context.Context, streams []Stream) (map[string]*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	infos := map[string]*jetstream.StreamInfo{}
	if b.options.Own {
		list := b.js.ListStreams(ctx, jetstream.WithStreamListSubject("penstock.>"))
		for info := range list.Info() {
			infos[info.Config.Name] = info
		}
		return infos, list.Err()
	}
	var errs []error
	for _, s := range streams {
		stream, err := b.js.Stream(ctx, s.Name)
		if err != nil {
			errs = append(errs, fmt.Errorf("stream %s: %w", s.Name, err))
			continue
		}
		infos[s.Name] = stream.CachedInfo()
	}
	return infos, errors.Join(errs...)
}

// trim looks at one stream and trims it.
func (b *Bus) trim(ctx context.Context, s Stream, now time.Time) error {
	infos, err := b.infos(ctx, []Stream{s})
	if err != nil {
		return err
	}
	return b.trimOf(ctx, s, infos[s.Name], now)
}

// trimOf removes history of one stream that is too old or too much, never what is
// held.
func (b *Bus) trimOf(ctx context.Context, s Stream, info *jetstream.StreamInfo, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	state := info.State
	streamBytes.WithLabelValues(s.Name).Set(float64(state.Bytes))
	streamLimit.WithLabelValues(s.Name).Set(float64(info.Config.MaxBytes))
	if state.Msgs == 0 || s.Hold == HoldAll && now.Sub(state.FirstTime) < s.Keep {
		return nil
	}
	// The stream's last sequence was read before the consumers are asked: a
	// consumer that then has nothing left has all up to it, as far as its server knows.
	floor, idle, err := b.floor(ctx, s, info, state.LastSeq)
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
		old, err := b.lastBefore(ctx, s.Name, state, cutoff)
		if err != nil {
			return err
		}
		to = max(to, old)
	}
	if to = min(to, floor); to < state.FirstSeq {
		return nil
	}
	// That server may lag behind the stream: before what is behind the consumer goes, the
	// stream's leader has to say that nothing of it is for the consumer.
	for _, c := range idle {
		if info.Config.Replicas > 1 && c.AckFloor.Stream < to {
			first, err := b.firstFor(ctx, s.Name, c, c.AckFloor.Stream)
			if err != nil {
				return err
			}
			if first > 0 {
				to = min(to, first-1)
			}
		}
	}
	if to < state.FirstSeq {
		return nil
	}
	// Purge takes the first sequence that stays.
	stream, err := b.js.Stream(ctx, s.Name)
	if err != nil {
		return err
	}
	if err := stream.Purge(ctx, jetstream.WithPurgeSequence(to+1)); err != nil {
		return err
	}
	trimmed.WithLabelValues(s.Name).Add(float64(to + 1 - state.FirstSeq))
	b.log.Debug("stream trimmed", "stream", s.Name, "up_to", to, "floor", floor)
	return nil
}

// floor is the last sequence that nobody needs any more, by what the consumers say. idle
// are those that say they have all, of what they read of the stream.
func (b *Bus) floor(ctx context.Context, s Stream, info *jetstream.StreamInfo, last uint64) (floor uint64, idle []*jetstream.ConsumerInfo, err error) {
	floor = last
	if s.Hold == HoldNothing {
		return floor, nil, nil
	}
	crowded := info.Config.MaxBytes > 0 && float64(info.State.Bytes) > yieldAt*float64(info.Config.MaxBytes)
	consumers, missing, err := b.consumersOf(ctx, s.Name)
	if err != nil {
		return 0, nil, err
	}
	for _, name := range missing {
		if holds(name) {
			return 0, nil, nil // nobody knows what it still needs
		}
	}
	for _, c := range consumers {
		switch {
		case c.Config.Durable == "": // readers of history hold nothing
		case crowded && s.Name == Events && strings.HasPrefix(c.Config.Durable, replayPrefix):
			b.log.Warn("the event log is nearly full: it is not kept for a replay", "consumer", c.Config.Durable)
		case c.NumPending == 0 && c.NumAckPending == 0 && !readsAll(c, s):
			// It has all that matches its filter, even if that is nothing.
			idle = append(idle, c)
		default:
			floor = min(floor, c.AckFloor.Stream)
		}
	}
	if s.Hold != HoldLanes {
		return floor, idle, nil
	}
	lanes, err := b.LaneCount(ctx)
	if err != nil {
		return 0, nil, err
	}
	kv, err := b.bucket(ctx, leaseBucket)
	if err != nil {
		return 0, nil, err
	}
	for i := range lanes {
		entry, err := kv.Get(ctx, laneGroup+"."+strconv.FormatUint(uint64(i), 10))
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return 0, nil, nil // a lane that nobody had yet needs everything
		}
		if err != nil {
			return 0, nil, err
		}
		var v leaseValue
		if err := json.Unmarshal(entry.Value(), &v); err != nil {
			return 0, nil, err
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
				return 0, nil, err
			}
			if last != nil {
				return 0, nil, nil
			}
		}
	}
	return floor, idle, nil
}

// lastBefore finds the last sequence stored before cutoff, by halving.
func (b *Bus) lastBefore(ctx context.Context, name string, state jetstream.StreamState, cutoff time.Time) (uint64, error) {
	if state.LastTime.Before(cutoff) {
		return state.LastSeq, nil
	}
	stream, err := b.js.Stream(ctx, name)
	if err != nil {
		return 0, err
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
