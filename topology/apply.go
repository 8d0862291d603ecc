package topology

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/messages/fault"
)

var (
	errApply = fault.Define("bus.apply_failed", fault.Retry,
		"check that the NATS user may manage streams, and that its account has room for the disk budget")
	errLanes = fault.Define("bus.lanes_changed", fault.Stop,
		"keep the number of lanes with which the streams were made, or start with an empty store")
)

// Limits size the streams.
type Limits struct {
	// Disk is the budget of all streams together, in bytes. Default 16 GiB.
	Disk int64
	// Replicas of every stream: 1, 3 or 5. Default 1.
	Replicas int
	// Lanes of dedupe, fixed when the streams are made. Default 8.
	Lanes uint32
	// Keep overrides how long streams keep history, by stream name.
	Keep map[string]time.Duration
	// DuplicateWindow is how long the server knows a message id. Default 5 min.
	DuplicateWindow time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.Disk == 0 {
		l.Disk = 16 << 30
	}
	if l.Replicas == 0 {
		l.Replicas = 1
	}
	if l.Lanes == 0 {
		l.Lanes = 8
	}
	if l.DuplicateWindow == 0 {
		l.DuplicateWindow = 5 * time.Minute
	}
	return l
}

func (l Limits) keep(s Stream) time.Duration {
	if k, ok := l.Keep[s.Name]; ok {
		return k
	}
	return s.Keep
}

// Keys under which a stream's settings travel, for those who only connect.
const (
	metaKeep  = "penstock.keep"
	metaLanes = "penstock.lanes"
)

func (l Limits) config(s Stream) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        s.Name,
		Description: "penstock: " + stageNames(s.From) + " → " + stageNames(s.To),
		Subjects:    []string{s.Subjects},
		Retention:   jetstream.LimitsPolicy,
		Storage:     jetstream.FileStorage,
		// A full stream refuses: that is the backpressure. Only the keeper trims.
		Discard:     jetstream.DiscardNew,
		MaxBytes:    l.Disk / 1000 * s.Share,
		MaxMsgs:     -1,
		MaxMsgSize:  -1,
		Replicas:    l.Replicas,
		Duplicates:  l.DuplicateWindow,
		AllowDirect: true,
		// Small messages are stored in groups, with one sync for all.
		AllowAtomicPublish: true,
		Metadata:           map[string]string{metaKeep: l.keep(s).String(), metaLanes: strconv.FormatUint(uint64(l.Lanes), 10)},
	}
}

func stageNames(stages []Stage) string {
	names := make([]string, len(stages))
	for i, s := range stages {
		names[i] = string(s)
	}
	if len(names) == 0 {
		return "operators"
	}
	return strings.Join(names, ", ")
}

// Difference is one setting of a stream that is not as the table says.
type Difference struct {
	Stream string `json:"stream"`
	Field  string `json:"field"`
	Is     string `json:"is"`
	Want   string `json:"want"`
}

// Diff compares the streams of the server with the table and the limits.
func (b *Bus) Diff(ctx context.Context, l Limits) ([]Difference, error) {
	l = l.withDefaults()
	var diffs []Difference
	for _, s := range Flow {
		want := l.config(s)
		stream, err := b.js.Stream(ctx, s.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			diffs = append(diffs, Difference{s.Name, "stream", "absent", "present"})
			continue
		}
		if err != nil {
			return nil, errConnect.New(err, "look up stream %s", s.Name)
		}
		is := stream.CachedInfo().Config
		add := func(field string, is, want any) {
			if i, w := fmt.Sprint(is), fmt.Sprint(want); i != w {
				diffs = append(diffs, Difference{s.Name, field, i, w})
			}
		}
		add("subjects", is.Subjects, want.Subjects)
		add("retention", is.Retention, want.Retention)
		add("storage", is.Storage, want.Storage)
		add("discard", is.Discard, want.Discard)
		add("max_bytes", is.MaxBytes, want.MaxBytes)
		add("max_age", is.MaxAge, want.MaxAge)
		add("replicas", is.Replicas, want.Replicas)
		add("duplicate_window", is.Duplicates, want.Duplicates)
		add("atomic_publish", is.AllowAtomicPublish, want.AllowAtomicPublish)
		add("keep", is.Metadata[metaKeep], want.Metadata[metaKeep])
		add("lanes", is.Metadata[metaLanes], want.Metadata[metaLanes])
	}
	return diffs, nil
}

// buckets are the key-value buckets beside the streams.
var buckets = []struct {
	name, what string
	bytes      int64
}{
	{leaseBucket, "penstock: who does what, and how far it is", 8 << 20},
	{cursorBucket, "penstock: how far sources have read", 16 << 20},
	{consumerBucket, "penstock: who fetches events from destinations, and how far they are", 4 << 20},
	{budgetBucket, "penstock: what is left of rates that processes share", 1 << 20},
	{controlBucket, "penstock: what operators have said about destinations", 1 << 20},
}

// Apply creates the streams, or brings them up to date, and returns what it
// changed. The number of lanes is refused to change: ids of one lane would be
// looked for in another.
func (b *Bus) Apply(ctx context.Context, l Limits) ([]Difference, error) {
	l = l.withDefaults()
	diffs, err := b.Diff(ctx, l)
	if err != nil {
		return nil, err
	}
	for _, d := range diffs {
		if d.Field == "lanes" && d.Is != "" {
			return nil, errLanes.New(nil, "stream %s was made with %s dedupe lanes, the configuration says %s", d.Stream, d.Is, d.Want)
		}
	}
	for _, s := range Flow {
		if _, err := b.js.CreateOrUpdateStream(ctx, l.config(s)); err != nil {
			return nil, errApply.New(err, "create or update stream %s", s.Name)
		}
	}
	for _, kv := range buckets {
		if _, err := b.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: kv.name, Description: kv.what, History: 1, Storage: jetstream.FileStorage, Replicas: l.Replicas, MaxBytes: kv.bytes,
		}); err != nil {
			return nil, errApply.New(err, "create the bucket %s", kv.name)
		}
	}
	for _, c := range []Consumer{FetchConsumer, ParseConsumer, RouteConsumer} {
		if err := b.ensureConsumer(ctx, c); err != nil {
			return nil, err
		}
	}
	return diffs, nil
}

// StreamState is what a stream holds now.
type StreamState struct {
	Stream    string          `json:"stream"`
	Subjects  string          `json:"subjects"`
	Messages  uint64          `json:"messages"`
	Bytes     uint64          `json:"bytes"`
	MaxBytes  int64           `json:"max_bytes"`
	Keep      string          `json:"keep"`
	First     uint64          `json:"first"`
	Last      uint64          `json:"last"`
	FirstTime time.Time       `json:"first_time"`
	Consumers []ConsumerState `json:"consumers,omitempty"`
}

// ConsumerState is how far a durable consumer is.
type ConsumerState struct {
	Consumer string   `json:"consumer"`
	Filters  []string `json:"filters,omitempty"`
	AckFloor uint64   `json:"ack_floor"`
	InHand   int      `json:"in_hand"`
	Pending  uint64   `json:"pending"`
	Waiting  int      `json:"waiting_pulls"`
}

// Show returns the state of every stream of the table that exists.
func (b *Bus) Show(ctx context.Context) ([]StreamState, error) {
	var states []StreamState
	for _, s := range Flow {
		stream, err := b.js.Stream(ctx, s.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return nil, errConnect.New(err, "look up stream %s", s.Name)
		}
		info := stream.CachedInfo()
		state := StreamState{
			Stream: s.Name, Subjects: s.Subjects, Messages: info.State.Msgs, Bytes: info.State.Bytes, MaxBytes: info.Config.MaxBytes,
			Keep: info.Config.Metadata[metaKeep], First: info.State.FirstSeq, Last: info.State.LastSeq, FirstTime: info.State.FirstTime,
		}
		list := stream.ListConsumers(ctx)
		for c := range list.Info() {
			if c.Config.Durable == "" {
				continue
			}
			state.Consumers = append(state.Consumers, ConsumerState{
				Consumer: c.Config.Durable, Filters: c.Config.FilterSubjects, AckFloor: c.AckFloor.Stream,
				InHand: c.NumAckPending, Pending: c.NumPending, Waiting: c.NumWaiting,
			})
		}
		if err := list.Err(); err != nil {
			return nil, errConnect.New(err, "list the consumers of %s", s.Name)
		}
		states = append(states, state)
	}
	return states, nil
}
