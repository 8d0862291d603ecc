package topology

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/penstock/penstock/messages/fault"
)

var (
	errApply = fault.Define("bus.apply_failed", fault.Retry,
		"check that the NATS user may manage streams, and that its account has room for the disk budget")
	errLanes = fault.Define("bus.lanes_changed", fault.Stop,
		"set dedupe.lanes to the number with which the streams were made, or move to new streams: docs/scaling.md says how, without loss")
	errInPlace = fault.Define("bus.not_in_place", fault.Stop,
		"the server cannot change this while the stream is there: put the setting back, or move to new streams, as docs/guides/upgrading.md says")
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
	metaTable = "penstock.table"
)

// tableVersion grows with every change of [Flow], of the buckets and of what a stream is
// made with. A process of before that starts beside newer ones must not take back what
// they need: it leaves streams alone that bear a higher number. The first that bore one
// at all is 2.
const tableVersion = 2

// clockSlack is by how much any two clocks of servers and stages may differ, or one may
// jump, without an event entering the log twice.
const clockSlack = 5 * time.Minute

// window is for how long a stream knows message ids. Its leader measures that by its own
// clock, and the one after it by another. Behind the event log nobody looks for duplicates
// any more, so it has slack for two clocks that are wrong: the leader's, and that of a
// stage which decides whether the server can still know an id.
func (l Limits) window(s Stream) time.Duration {
	if s.Name == Events {
		return l.DuplicateWindow + 2*clockSlack
	}
	return l.DuplicateWindow
}

func (l Limits) config(s Stream) jetstream.StreamConfig {
	// A full stream refuses: that is the backpressure. Only the keeper trims.
	discard := jetstream.DiscardNew
	if s.Hold == HoldNothing && len(s.To) == 0 {
		// Its keeper may not be there at all, and no stage is to wait for that: what the
		// keeper would remove at the next moment goes by itself.
		discard = jetstream.DiscardOld
	}
	return jetstream.StreamConfig{
		Name:        s.Name,
		Description: "penstock: " + stageNames(s.From) + " → " + stageNames(s.To),
		Subjects:    s.Subjects,
		Retention:   jetstream.LimitsPolicy,
		Storage:     jetstream.FileStorage,
		Discard:     discard,
		MaxBytes:    l.Disk / 1000 * s.Share,
		MaxMsgs:     -1,
		MaxMsgSize:  -1,
		Replicas:    l.Replicas,
		Duplicates:  l.window(s),
		AllowDirect: true,
		// Small messages are stored in groups, with one sync for all.
		AllowAtomicPublish: true,
		Metadata:           map[string]string{metaKeep: l.keep(s).String(), metaLanes: strconv.FormatUint(uint64(l.Lanes), 10), metaTable: strconv.Itoa(tableVersion)},
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

// Diff compares the streams, buckets and consumers of the server with the table and the
// limits. Where those of the server are of a newer penstock, that is the only difference:
// they serve this one as well.
func (b *Bus) Diff(ctx context.Context, l Limits) ([]Difference, error) {
	diffs, _, err := b.diff(ctx, l.withDefaults())
	return diffs, err
}

// diff also tells whether the streams are of a newer penstock.
func (b *Bus) diff(ctx context.Context, l Limits) (diffs []Difference, ahead bool, err error) {
	add := func(stream, field string, is, want any) {
		if i, w := fmt.Sprint(is), fmt.Sprint(want); i != w {
			diffs = append(diffs, Difference{stream, field, i, w})
		}
	}
	for _, s := range Flow {
		want := l.config(s)
		is, err := b.streamConfig(ctx, s.Name)
		if err != nil {
			return nil, false, err
		}
		if is == nil {
			add(s.Name, "stream", "absent", "present")
			continue
		}
		if newer(is) {
			return []Difference{{s.Name, "table", is.Metadata[metaTable], want.Metadata[metaTable]}}, true, nil
		}
		add(s.Name, "subjects", is.Subjects, want.Subjects)
		add(s.Name, "retention", is.Retention, want.Retention)
		add(s.Name, "storage", is.Storage, want.Storage)
		add(s.Name, "discard", is.Discard, want.Discard)
		add(s.Name, "max_bytes", is.MaxBytes, want.MaxBytes)
		add(s.Name, "max_age", is.MaxAge, want.MaxAge)
		add(s.Name, "replicas", is.Replicas, want.Replicas)
		add(s.Name, "duplicate_window", is.Duplicates, want.Duplicates)
		add(s.Name, "atomic_publish", is.AllowAtomicPublish, want.AllowAtomicPublish)
		add(s.Name, "keep", is.Metadata[metaKeep], want.Metadata[metaKeep])
		add(s.Name, "lanes", is.Metadata[metaLanes], want.Metadata[metaLanes])
		add(s.Name, "table", is.Metadata[metaTable], want.Metadata[metaTable])
	}
	for _, kv := range buckets {
		is, err := b.streamConfig(ctx, "KV_"+kv.name)
		switch {
		case err != nil:
			return nil, false, err
		case is == nil:
			add(kv.name, "bucket", "absent", "present")
			continue
		}
		add(kv.name, "storage", is.Storage, jetstream.FileStorage)
		add(kv.name, "max_bytes", is.MaxBytes, kv.bytes)
		add(kv.name, "replicas", is.Replicas, l.Replicas)
	}
	for _, c := range []Consumer{FetchConsumer, ParseConsumer, RouteConsumer} {
		stream, err := b.streamConfig(ctx, c.Stream)
		if err != nil {
			return nil, false, err
		}
		if stream == nil {
			continue // its consumer comes with it
		}
		consumer, err := b.js.Consumer(ctx, c.Stream, c.Durable)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			add(c.Stream, "consumer "+c.Durable, "absent", "present")
			continue
		}
		if err != nil {
			return nil, false, errConnect.New(err, "look up consumer %s", c.Durable)
		}
		is, want := consumer.CachedInfo().Config, b.consumerConfig(c)
		add(c.Stream, "consumer "+c.Durable+" ack_wait", is.AckWait, want.AckWait)
		add(c.Stream, "consumer "+c.Durable+" max_ack_pending", is.MaxAckPending, want.MaxAckPending)
		add(c.Stream, "consumer "+c.Durable+" filters", is.FilterSubjects, want.FilterSubjects)
	}
	return diffs, false, nil
}

// newer tells whether a stream was made or changed by a penstock whose table is newer.
func newer(is *jetstream.StreamConfig) bool {
	n, err := strconv.Atoi(is.Metadata[metaTable])
	return err == nil && n > tableVersion
}

// streamConfig is that of a stream, nil when it is not there.
func (b *Bus) streamConfig(ctx context.Context, name string) (*jetstream.StreamConfig, error) {
	stream, err := b.js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, errConnect.New(err, "look up stream %s", name)
	}
	return &stream.CachedInfo().Config, nil
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
	{jobBucket, "penstock: jobs of operators, and how far they are", 8 << 20},
	{reportBucket, "penstock: what jobs have found", (keepReports + 2) * ReportParts * (ReportPart + 1024)},
}

// Preview is what [Bus.Apply] would change, and its error when that cannot be.
func (b *Bus) Preview(ctx context.Context, l Limits) ([]Difference, error) {
	diffs, ahead, err := b.preview(ctx, l.withDefaults())
	if ahead {
		return nil, err
	}
	return diffs, err
}

func (b *Bus) preview(ctx context.Context, l Limits) (diffs []Difference, ahead bool, err error) {
	if diffs, ahead, err = b.diff(ctx, l); err != nil {
		return nil, false, err
	}
	if ahead {
		b.log.Warn("the streams are those of a newer penstock, and stay as they are", "table", diffs[0].Is, "known", diffs[0].Want)
	}
	return diffs, ahead, inPlace(diffs)
}

// Apply creates the streams, buckets and consumers, or brings them up to date, and
// returns what it changed. Nothing is changed when something cannot be: the number of
// lanes (ids of one lane would be looked for in another), where and how a stream is
// stored. What a newer penstock has brought up to date is left as it is.
//
// Processes that read and write meanwhile notice nothing: each change is one that the
// server makes in place.
//
// While a cluster chooses its leaders it tries on for a while.
func (b *Bus) Apply(ctx context.Context, l Limits) ([]Difference, error) {
	deadline := time.Now().Add(applyPatience)
	for {
		diffs, err := b.apply(ctx, l)
		if err == nil || !noLeader(err) || ctx.Err() != nil || time.Now().After(deadline) {
			return diffs, err
		}
		b.log.Warn("the streams cannot be changed yet, trying on", "err", err)
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Second):
		}
	}
}

// applyPatience is how long Apply waits for the leaders of a cluster.
const applyPatience = 30 * time.Second

// noLeader tells whether a question failed because nobody leads what it is about, as yet.
func noLeader(err error) bool {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api.Code == 503
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse)
}

func (b *Bus) apply(ctx context.Context, l Limits) ([]Difference, error) {
	l = l.withDefaults()
	diffs, ahead, err := b.preview(ctx, l)
	if err != nil || ahead {
		return nil, err
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
			return nil, errApply.New(err, "create or update the bucket %s", kv.name)
		}
	}
	for _, c := range []Consumer{FetchConsumer, ParseConsumer, RouteConsumer} {
		if err := b.ensureConsumer(ctx, c); err != nil {
			return nil, err
		}
	}
	return diffs, nil
}

// inPlace returns an error when the server could not make one of the changes while the
// stream is there.
func inPlace(diffs []Difference) error {
	for _, d := range diffs {
		switch {
		case d.Field == "lanes" && d.Is != "":
			return errLanes.New(nil, "stream %s was made with %s dedupe lanes, the configuration says %s", d.Stream, d.Is, d.Want)
		case d.Field == "storage" || d.Field == "retention":
			return errInPlace.New(nil, "stream %s has %s %s and is to have %s", d.Stream, d.Field, d.Is, d.Want)
		}
	}
	return nil
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
			Stream: s.Name, Subjects: strings.Join(s.Subjects, ", "), Messages: info.State.Msgs, Bytes: info.State.Bytes, MaxBytes: info.Config.MaxBytes,
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
