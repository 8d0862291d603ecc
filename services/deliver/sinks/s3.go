package sinks

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/config"
)

func init() {
	define("s3", "Stores events as objects in an S3 bucket: JSON lines, OPSWAT's syslog form, or Parquet.", defaultS3, openS3)
}

var (
	errS3Failed = fault.Define("deliver.s3_failed", fault.Retry,
		"see what the bucket answers; what was not stored is kept and tried again")
	errS3Denied = fault.Define("deliver.s3_denied", fault.Stop,
		"grant s3:PutObject and s3:AbortMultipartUpload on the bucket's objects, and kms:GenerateDataKey and kms:Decrypt on its key; or correct bucket, region, sse, storage_class or acl")
	errS3Lost = fault.Define("deliver.s3_upload_lost", fault.Retry,
		"let no lifecycle rule abort uploads that are younger than a day; the events are read from the log and stored again")
)

var (
	s3Objects = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_s3_objects_total", Help: "Objects that were stored, by how: put whole, or in parts.",
	}, []string{"destination", "how"})
	s3Bytes = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_deliver_s3_stored_bytes_total", Help: "Bytes of objects that were stored, as they are stored.",
	}, []string{"destination"})
	s3Pending = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_deliver_s3_pending_bytes", Help: "Bytes of objects in the making that are in memory and not uploaded yet.",
	}, []string{"destination"})
)

// S3Format is how an object holds events.
type S3Format string

// The formats. Source: formats F-31, F-3.
const (
	// S3JSON: a line per event: its document with event_id.
	S3JSON S3Format = "json"
	// S3Envelope: a line per event in the envelope of penstock.
	S3Envelope S3Format = "envelope"
	// S3Syslog: as json, without the braces: OPSWAT's SYSLOG form.
	S3Syslog S3Format = "syslog"
	// S3Parquet: a row per event.
	S3Parquet S3Format = "parquet"
)

// Values implements [config.Enum].
func (S3Format) Values() []string {
	return []string{string(S3JSON), string(S3Envelope), string(S3Syslog), string(S3Parquet)}
}

// S3Compression is how an object is compressed.
type S3Compression string

// The compressions.
const (
	// S3Auto: gzip for lines, zstd within parquet.
	S3Auto   S3Compression = "auto"
	S3Gzip   S3Compression = "gzip"
	S3Zstd   S3Compression = "zstd"
	S3Snappy S3Compression = "snappy"
	S3Plain  S3Compression = "none"
)

// Values implements [config.Enum].
func (S3Compression) Values() []string {
	return []string{string(S3Auto), string(S3Gzip), string(S3Zstd), string(S3Snappy), string(S3Plain)}
}

// S3SSE is the encryption that is asked for.
type S3SSE string

// The encryptions.
const (
	// S3BucketSSE: none is asked for; that of the bucket holds.
	S3BucketSSE S3SSE = "none"
	// S3ManagedSSE: by keys of S3.
	S3ManagedSSE S3SSE = "sse-s3"
	// S3KMS: by a key of KMS.
	S3KMS S3SSE = "kms"
)

// Values implements [config.Enum].
func (S3SSE) Values() []string {
	return []string{string(S3BucketSSE), string(S3ManagedSSE), string(S3KMS)}
}

// S3Checksum is the checksum that is sent along.
type S3Checksum string

// The checksums.
const (
	S3SHA256     S3Checksum = "sha256"
	S3NoChecksum S3Checksum = "none"
)

// Values implements [config.Enum].
func (S3Checksum) Values() []string { return []string{string(S3SHA256), string(S3NoChecksum)} }

// S3Config configures the s3 sink.
type S3Config struct {
	// Bucket to store to. Required.
	Bucket string `yaml:"bucket"`
	// Prefix that all keys begin with, e.g. siem/tenant-a. A slash is put behind it.
	Prefix string `yaml:"prefix"`
	// Key of an object behind the prefix, without an ending. {type}, {source}, {account}, {region}, {yyyy}, {MM}, {dd}, {HH}, {mm} and {id} are filled in. Events with different folders go to different objects; time in the last part is that of the first event of the object, which has to have {id} there.
	Key string `yaml:"key"`
	// Format of an object: json (a line per event, its document with event_id), envelope (a line with penstock's id, type, time, source, account and region), syslog (as json without braces) or parquet.
	Format S3Format `yaml:"format"`
	// Compression: auto (gzip; within parquet zstd), gzip, zstd, snappy (within parquet) or none.
	Compression S3Compression `yaml:"compression"`
	// Batch bounds the events of an object, before compression. With an age of 0s each batch is an object of its own.
	Batch Limits `yaml:"batch"`
	// ObjectBytes completes an object before it grows larger, as it is stored. Unit: bytes.
	ObjectBytes config.Bytes `yaml:"object_bytes"`
	// SSE asks for encryption by sse-s3 or kms; with none that of the bucket holds.
	SSE S3SSE `yaml:"sse"`
	// KMSKeyID is the key for kms: id, ARN or alias. Empty: the one that AWS manages.
	KMSKeyID string `yaml:"kms_key_id"`
	// BucketKey lets S3 ask KMS less often.
	BucketKey bool `yaml:"bucket_key"`
	// StorageClass of the objects, e.g. STANDARD_IA. Empty: STANDARD.
	StorageClass string `yaml:"storage_class"`
	// ACL is empty or bucket-owner-full-control, for buckets of other accounts that still have ACLs.
	ACL string `yaml:"acl"`
	// Checksum that S3 checks and keeps: sha256, or none for services that do not know it.
	Checksum S3Checksum `yaml:"checksum"`
	// Timeout bounds one call, repeats included. Unit: duration.
	Timeout time.Duration `yaml:"timeout"`
	// AWS is the access to the bucket.
	AWS awsclient.Config `yaml:"aws"`
}

func defaultS3() S3Config {
	return S3Config{
		Key: "{yyyy}/{MM}/{dd}/{HH}{mm}-{id}", Format: S3JSON, Compression: S3Auto,
		Batch:       Limits{Events: 1_000_000, Bytes: 256 * config.MiB, Age: 5 * time.Minute},
		ObjectBytes: 64 * config.MiB, SSE: S3BucketSSE, Checksum: S3SHA256, Timeout: time.Minute,
	}
}

// storageClasses are those that an object can be put into.
var storageClasses = []types.StorageClass{
	types.StorageClassStandard, types.StorageClassStandardIa, types.StorageClassOnezoneIa, types.StorageClassIntelligentTiering,
	types.StorageClassGlacierIr, types.StorageClassGlacier, types.StorageClassDeepArchive, types.StorageClassReducedRedundancy,
	types.StorageClassExpressOnezone, types.StorageClassOutposts, types.StorageClassSnow,
}

// Validate reports every problem, each with the key to change.
func (c S3Config) Validate() error {
	var p config.Problems
	p.Need(goodBucket(c.Bucket), "bucket", "set the name of a bucket, without s3://, arn: or a key")
	p.Need(!strings.ContainsAny(c.Prefix, "{}"), "prefix", "put what is filled in into key")
	if _, err := parseKey(c.Prefix, c.Key); err != nil {
		p.Add("key", err.Error(), "use e.g. {account}/{yyyy}/{MM}/{dd}/{HH}{mm}-{id}")
	}
	lines := c.Format != S3Parquet
	p.Need(!lines || c.Compression != S3Snappy, "compression", "use gzip, zstd or none with lines; snappy goes with parquet")
	p.In("batch", c.Batch.Validate())
	p.Need(c.ObjectBytes >= config.MiB && c.ObjectBytes <= 16<<30, "object_bytes", "use 1 MiB to 16 GiB, e.g. 64 MiB")
	p.Need(c.SSE == S3KMS || c.KMSKeyID == "", "kms_key_id", "set sse to kms, or remove it")
	p.Need(c.SSE == S3KMS || !c.BucketKey, "bucket_key", "set sse to kms, or remove it")
	p.Need(c.StorageClass == "" || slices.Contains(storageClasses, types.StorageClass(c.StorageClass)), "storage_class", "use a storage class of S3, e.g. STANDARD_IA")
	p.Need(c.ACL == "" || c.ACL == string(types.ObjectCannedACLBucketOwnerFullControl), "acl", "use bucket-owner-full-control, or leave it out")
	p.Need(c.Timeout >= time.Second/10 && c.Timeout <= time.Hour, "timeout", "use 100ms to 1h, e.g. 1m")
	return p.Err()
}

// goodBucket tells whether a name can be that of a bucket. Source: Amazon S3 User
// Guide, bucket naming rules.
func goodBucket(name string) bool {
	return len(name) >= 3 && len(name) <= 63 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") == "" &&
		strings.Trim(name[:1]+name[len(name)-1:], ".-") == name[:1]+name[len(name)-1:]
}

func (c S3Config) compression() S3Compression {
	switch {
	case c.Compression != S3Auto:
		return c.Compression
	case c.Format == S3Parquet:
		return S3Zstd
	}
	return S3Gzip
}

// ending of the keys, and the media type.
func (c S3Config) ending() (ending, media string) {
	ending, media = ".json", "application/x-ndjson"
	switch c.Format {
	case S3Parquet:
		return ".parquet", "application/vnd.apache.parquet"
	case S3Syslog:
		ending, media = ".log", "text/plain; charset=utf-8"
	case S3JSON, S3Envelope:
	}
	switch c.compression() {
	case S3Gzip:
		return ending + ".gz", "application/gzip"
	case S3Zstd:
		return ending + ".zst", "application/zstd"
	case S3Auto, S3Snappy, S3Plain:
	}
	return ending, media
}

const (
	// partBytes of an upload in parts: S3 wants 5 MiB or more, others want them equal.
	partBytes = 8 << 20
	// mostOpen bounds the objects that are being filled, and twice that those that are
	// not stored yet.
	mostOpen = 64
	// mostOfS3 bounds the bytes of all objects in the making of a destination that are in
	// memory, mostOfAllS3 those of all such destinations of a process.
	mostOfS3    = 32 << 20
	mostOfAllS3 = 48 << 20
	// atOnce bounds the calls that are made at the same time.
	atOnce = 8
	// pieceBytes and pieceEvents bound what the sink is given at once.
	pieceBytes  = 4 * config.MiB
	pieceEvents = 20_000
	// pieceAge is how long events wait before the sink is given them, at most.
	pieceAge = 30 * time.Second
)

// s3Sink gathers batches in objects. Each batch is compressed by itself, so that several
// are at the same time, and put behind what the object has: a gzip file may have many
// members and a zstd file many frames. An object that has grown to 8 MiB is uploaded in
// parts while it grows; a smaller one is put whole. So memory is bounded, however large
// the objects are: by 32 MiB of what is not uploaded, of all such destinations of a
// process together 48 MiB, and one batch per call. Where that is reached, the oldest
// object is completed early.
//
// Confirmed is an event when S3 has said that its object is stored. Until then the batch
// is held, and its bytes are here only: when they are lost, its events are read from
// the log again.
//
// Within an object, events stand in the order of batches as they were given; with
// concurrency 1 that is the order of the log.
//
// An object that is put whole has its name from its events (their ids, in order, and the
// time of the first) and the name of the destination: stored again it replaces itself,
// and neither another one nor one of a destination that writes to the same place. The name
// of an object in parts has to be known before its end is, and two objects may begin
// alike and hold different events: it has a name of its own for each upload. When a
// process ends after an object was stored and before that was confirmed to the log, its
// events are stored again, most likely in other objects: event_id tells. Parts of an
// object that is given up are removed; those of a process that crashed stay until a
// lifecycle rule of the bucket removes them, and cannot be seen as an object.
type s3Sink struct {
	cfg     S3Config
	name    string
	client  *s3.Client
	layout  *keyLayout
	log     *slog.Logger
	encoder *s3Encoder

	ctx     context.Context //nolint:containedctx // of uploads, which outlive the call that begins them
	cancel  context.CancelFunc
	uploads sync.WaitGroup
	leaves  sync.Once
	calls   chan struct{} // has a place for each call to S3
	pending atomic.Int64  // bytes of all objects that are in memory
	turn    atomic.Int64  // of the last object

	mu      sync.Mutex
	changed chan struct{}          // closed and replaced when an object moves on
	open    map[string]*s3Object   // by partition
	objects map[*s3Object]struct{} // open ones and those that are not stored yet
}

// s3Sinks is how many are open.
var s3Sinks atomic.Int64

// mostPending is the share of this sink of what may be in memory. Unit: bytes.
func (s *s3Sink) mostPending() int64 {
	return min(mostOfS3, mostOfAllS3/max(1, s3Sinks.Load()))
}

func openS3(ctx context.Context, cfg S3Config, deps Deps) (Sink, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	layout, err := parseKey(cfg.Prefix, cfg.Key)
	if err != nil {
		return nil, errS3Denied.New(err, "open destination %s", deps.Destination) // not reached: validated
	}
	client, err := awsclient.S3(ctx, cfg.AWS)
	if err != nil {
		return nil, err
	}
	log := deps.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &s3Sink{
		cfg: cfg, name: deps.Destination, client: s3.New(client.Options(), func(o *s3.Options) { o.Retryer = aws.NopRetryer{} }), layout: layout, log: log, encoder: newS3Encoder(cfg),
		changed: make(chan struct{}), open: map[string]*s3Object{}, objects: map[*s3Object]struct{}{}, calls: make(chan struct{}, atOnce),
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s3Sinks.Add(1)
	return s, nil
}

// Limits of what the sink is given at once; objects gather many.
func (s *s3Sink) Limits() Limits {
	l := s.cfg.Batch
	if l.Age > 0 {
		l.Events, l.Bytes, l.Age = min(l.Events, pieceEvents), min(l.Bytes, pieceBytes), min(l.Age/2, pieceAge)
	}
	return l
}

// Frames implements [Patient].
func (s *s3Sink) Frames() int { return 4096 }

// Hurry implements [Patient].
func (s *s3Sink) Hurry() {
	s.mu.Lock()
	all := s.sealing(len(s.open))
	for o := range s.objects {
		o.poke()
	}
	s.mu.Unlock()
	for _, o := range all {
		o.seal()
	}
}

// Append writes the partition with its length, the time, and then the event as it is
// stored or, for parquet, its columns.
func (s *s3Sink) Append(dst []byte, e *Event) []byte {
	partition := s.layout.partition(e)
	dst = appendLong(dst, partition)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.Time))
	return s.encoder.append(dst, e)
}

func appendLong(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// cutLong takes a text off the front of b, which Append wrote.
func cutLong(b []byte) (text, rest []byte) {
	n, size := binary.Uvarint(b)
	end := size + int(n)
	return b[size:end], b[end:]
}

// s3Group is the events of a batch that go to one object.
type s3Group struct {
	partition   string
	at          []int    // places in the batch
	events      [][]byte // in step, as they are stored or as columns
	raw         int64
	first, last int64 // times in Unix ns; 0 when none is known
	// stamp is the time of the first event, now when it has none.
	stamp  int64
	ids    []byte
	member []byte // compressed lines
}

// s3Groups parts a batch by partition.
func s3Groups(b Batch) []*s3Group {
	var all []*s3Group
	var last *s3Group
	known := map[string]*s3Group{}
	for i := range b.items {
		partition, rest := cutLong(b.Event(i))
		if last == nil || last.partition != string(partition) {
			if last = known[string(partition)]; last == nil {
				last = &s3Group{partition: string(partition)}
				known[last.partition] = last
				all = append(all, last)
			}
		}
		at := int64(binary.LittleEndian.Uint64(rest))
		last.add(i, b.items[i].ID[:], at, rest[8:])
	}
	return all
}

func (g *s3Group) add(i int, id []byte, at int64, event []byte) {
	if len(g.at) == 0 {
		g.stamp = cmp.Or(at, time.Now().UnixNano())
	}
	g.at, g.events, g.raw, g.ids = append(g.at, i), append(g.events, event), g.raw+int64(len(event)), append(g.ids, id...)
	if at != 0 {
		g.last = max(cmp.Or(g.last, math.MinInt64), at)
		g.first = min(cmp.Or(g.first, math.MaxInt64), at)
	}
}

// Deliver puts b into objects and waits until they are stored. While an object cannot be
// uploaded that is tried first, and b is not taken when it fails again.
func (s *s3Sink) Deliver(ctx context.Context, b Batch) Result {
	if ctx.Err() != nil {
		return s.failed(context.Cause(ctx))
	}
	each := make([]*Result, b.Len())
	parts := s3Groups(b)
	if s.cfg.Batch.Age == 0 {
		s.store(ctx, parts, each)
		return combined(each)
	}
	if err := s.room(ctx); err != nil {
		return s.failed(err)
	}
	into := make([]*s3Object, len(parts))
	for i, g := range parts {
		s.encoder.compress(g)
		var err error
		if into[i], err = s.put(ctx, g); err != nil {
			res := s.failed(err)
			for _, rest := range parts[i:] {
				rest.judge(each, &res)
			}
			if i == 0 {
				return res
			}
			break
		}
	}
	for _, g := range parts {
		g.events, g.member = nil, nil
	}
	b.Release()
	for i, g := range parts {
		if into[i] == nil {
			continue
		}
		if err := into[i].wait(ctx); err != nil {
			res := s.failed(err)
			g.judge(each, &res)
		}
	}
	return combined(each)
}

func (g *s3Group) judge(each []*Result, res *Result) {
	for _, i := range g.at {
		each[i] = res
	}
}

// store makes an object of each group, at once.
func (s *s3Sink) store(ctx context.Context, parts []*s3Group, each []*Result) {
	for _, g := range parts {
		s.encoder.compress(g)
		o := s.object(g)
		o.add(g)
		if err := o.storeWhole(ctx); err != nil {
			res := s.failed(err)
			g.judge(each, &res)
		}
		o.forget()
	}
}

// room waits until nothing fails and there is room for more. What fails is tried at
// once. It returns why it fails still, or why ctx ended.
func (s *s3Sink) room(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var sealed []*s3Object
		failing := s.failing()
		switch {
		case failing != nil:
			failing.poke()
		case s.pending.Load() < s.mostPending() && len(s.objects) < 2*mostOpen:
			return nil
		default:
			sealed = s.sealing(1)
		}
		tries, changed := 0, s.changed
		if failing != nil {
			tries = failing.tries
		}
		s.mu.Unlock()
		for _, o := range sealed {
			o.seal()
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
		s.mu.Lock()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case failing != nil && failing.tries > tries && failing.err != nil:
			return failing.err
		}
	}
}

// failing is an object whose upload has failed, the oldest one; nil when there is none.
func (s *s3Sink) failing() *s3Object {
	var oldest *s3Object
	for o := range s.objects {
		if o.err != nil && (oldest == nil || o.turn < oldest.turn) {
			oldest = o
		}
	}
	return oldest
}

// sealing takes the n oldest objects out of those that are being filled. The caller
// holds the lock, and seals them without it.
func (s *s3Sink) sealing(n int) []*s3Object {
	if n <= 0 {
		return nil
	}
	all := make([]*s3Object, 0, len(s.open))
	for _, o := range s.open {
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b *s3Object) int { return cmp.Compare(a.turn, b.turn) })
	all = all[:min(n, len(all))]
	for _, o := range all {
		delete(s.open, o.partition)
	}
	return all
}

// put adds a group to the object that is being filled.
func (s *s3Sink) put(ctx context.Context, g *s3Group) (*s3Object, error) {
	for {
		if err := s.room(ctx); err != nil {
			return nil, err
		}
		o, sealed := s.filling(g)
		for _, old := range sealed {
			old.seal()
		}
		if o.add(g) {
			return o, nil
		}
		s.leave(o)
		o.seal()
	}
}

// filling returns the object for g, on which one more waits, and older ones that have to
// make place for it.
func (s *s3Sink) filling(g *s3Group) (*s3Object, []*s3Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sealed []*s3Object
	o := s.open[g.partition]
	if o == nil {
		sealed = s.sealing(len(s.open) - mostOpen + 1)
		o = s.object(g)
		s.open[g.partition] = o
		s.objects[o] = struct{}{}
		o.ctx, o.cancel = context.WithCancel(s.ctx)
		s.uploads.Go(o.run)
	}
	o.holders++
	return o, sealed
}

// leave tells that one less waits for o. An object that nobody waits for is given up.
func (s *s3Sink) leave(o *s3Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.holders--; o.holders > 0 {
		return
	}
	if s.open[o.partition] == o {
		delete(s.open, o.partition)
	}
	o.cancel()
}

// wake lets all look again who wait for a change. The caller holds the lock.
func (s *s3Sink) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Close gives up what nobody waits for any more.
func (s *s3Sink) Close() error {
	s.cancel()
	s.uploads.Wait()
	s.leaves.Do(func() { s3Sinks.Add(-1) })
	return nil
}

// failed judges an error of a call to S3, of a context, or of an object.
func (s *s3Sink) failed(err error) Result {
	var known *fault.Error
	if errors.As(err, &known) && (known.Kind == errS3Failed || known.Kind == errS3Denied || known.Kind == errS3Lost) {
		res := Result{Verdict: Retry, Err: err, After: askedFor(err)}
		if known.Kind == errS3Denied {
			res.Verdict = Stop
		}
		return res
	}
	return s.failed(s.explain(err, "store objects"))
}

// explain makes a fault of an error of a call. What concerns all objects alike stops
// the destination; of the rest, whatever may pass is tried again.
func (s *s3Sink) explain(err error, doing string) error {
	const where = "%s in bucket %s for destination %s"
	known := awsclient.Explain(err)
	kind := errS3Failed
	switch {
	case lostUpload(err):
		kind = errS3Lost
	case fault.ClassOf(known) == fault.Stop, errors.Is(known, awsclient.ObjectDenied), errors.Is(known, awsclient.ObjectKeyDenied),
		errors.Is(known, awsclient.NoSuchBucket), errors.Is(known, awsclient.WrongRegion), errors.Is(known, awsclient.Refused),
		errors.Is(known, awsclient.NoSuchKey):
		kind = errS3Denied
	}
	return kind.New(known, where, doing, s.cfg.Bucket, s.name)
}

// lostUpload tells whether the upload, or a part of it, is not there any more, so that it
// can only be begun again. Source: Amazon S3 API Reference, CompleteMultipartUpload.
func lostUpload(err error) bool {
	var api smithy.APIError
	return errors.As(err, &api) && slices.Contains([]string{"NoSuchUpload", "InvalidPart", "InvalidPartOrder", "EntityTooSmall", "BadDigest", "XAmzContentSHA256Mismatch"}, api.ErrorCode())
}

// askedFor is how long the answer behind err asks to be left alone.
func askedFor(err error) time.Duration {
	var response *smithyhttp.ResponseError
	if !errors.As(err, &response) || response.Response == nil || response.Response.Response == nil {
		return 0
	}
	return retryAfter(response.Response.Header.Get("Retry-After"), time.Now())
}

// call makes a place for one call and bounds it.
func (s *s3Sink) call(ctx context.Context, f func(context.Context) error) error {
	select {
	case s.calls <- struct{}{}:
		defer func() { <-s.calls }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return callAWS(ctx, s.cfg.Timeout, f)
}

// callAWS bounds a call and repeats it twice where that may help. The retries of the SDK
// would not tell what the far side asks for.
func callAWS(ctx context.Context, timeout time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errHTTPSlow)
	defer cancel()
	for pause := 100 * time.Millisecond; ; pause *= 3 {
		err := f(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil && !errors.Is(context.Cause(ctx), errHTTPSlow):
			return context.Cause(ctx)
		case ctx.Err() != nil || pause > 500*time.Millisecond || fault.ClassOf(awsclient.Explain(err)) != fault.Retry || askedFor(err) > 0:
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

// headers are what both ways to make an object ask for.
type s3Headers struct {
	media *string
	sse   types.ServerSideEncryption
	key   *string
	less  *bool
	class types.StorageClass
	acl   types.ObjectCannedACL
	sum   types.ChecksumAlgorithm
}

func (c S3Config) headers() s3Headers {
	var h s3Headers
	_, media := c.ending()
	h.media = &media
	switch c.SSE {
	case S3ManagedSSE:
		h.sse = types.ServerSideEncryptionAes256
	case S3KMS:
		h.sse = types.ServerSideEncryptionAwsKms
		if c.KMSKeyID != "" {
			h.key = &c.KMSKeyID
		}
		if c.BucketKey {
			h.less = &c.BucketKey
		}
	case S3BucketSSE:
	}
	h.class, h.acl = types.StorageClass(c.StorageClass), types.ObjectCannedACL(c.ACL)
	if c.Checksum == S3SHA256 {
		h.sum = types.ChecksumAlgorithmSha256
	}
	return h
}

// sum is the checksum of data as S3 wants it, nil for none.
func (c S3Config) sum(data []byte) *string {
	if c.Checksum != S3SHA256 {
		return nil
	}
	sum := sha256.Sum256(data)
	return aws.String(base64.StdEncoding.EncodeToString(sum[:]))
}

// begin begins an upload in parts.
func (s *s3Sink) begin(ctx context.Context, key string) (string, error) {
	h := s.cfg.headers()
	upload := ""
	err := s.call(ctx, func(ctx context.Context) error {
		out, err := s.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
			Bucket: &s.cfg.Bucket, Key: &key, ContentType: h.media, ServerSideEncryption: h.sse, SSEKMSKeyId: h.key, BucketKeyEnabled: h.less,
			StorageClass: h.class, ACL: h.acl, ChecksumAlgorithm: h.sum,
		})
		if err == nil {
			upload = aws.ToString(out.UploadId)
		}
		return err
	})
	return upload, err
}

// putWhole stores an object by one call.
func (s *s3Sink) putWhole(ctx context.Context, key string, body []byte, metadata map[string]string) error {
	h := s.cfg.headers()
	sum := s.cfg.sum(body)
	return s.call(ctx, func(ctx context.Context) error {
		_, err := s.client.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &s.cfg.Bucket, Key: &key, Body: bytes.NewReader(body), ContentLength: aws.Int64(int64(len(body))), ContentType: h.media,
			ServerSideEncryption: h.sse, SSEKMSKeyId: h.key, BucketKeyEnabled: h.less, StorageClass: h.class, ACL: h.acl,
			Metadata: metadata, ChecksumSHA256: sum,
		})
		return err
	})
}

// uploadPart stores one part.
func (s *s3Sink) uploadPart(ctx context.Context, key, upload string, n int32, body []byte) (types.CompletedPart, error) {
	done := types.CompletedPart{PartNumber: &n, ChecksumSHA256: s.cfg.sum(body)}
	err := s.call(ctx, func(ctx context.Context) error {
		out, err := s.client.UploadPart(ctx, &s3.UploadPartInput{
			Bucket: &s.cfg.Bucket, Key: &key, UploadId: &upload, PartNumber: &n, Body: bytes.NewReader(body),
			ContentLength: aws.Int64(int64(len(body))), ChecksumSHA256: done.ChecksumSHA256,
		})
		if err == nil {
			done.ETag = out.ETag
		}
		return err
	})
	return done, err
}

// complete makes an object of the parts. One that is not there any more was perhaps made
// by a call whose answer was lost: nobody else uses its key.
func (s *s3Sink) complete(ctx context.Context, key, upload string, parts []types.CompletedPart) error {
	return s.call(ctx, func(ctx context.Context) error {
		_, err := s.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
			Bucket: &s.cfg.Bucket, Key: &key, UploadId: &upload, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
		})
		if !lostUpload(err) {
			return err
		}
		if _, there := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.cfg.Bucket, Key: &key}); there == nil {
			return nil
		}
		return err
	})
}

// abort removes the parts of an upload, as far as that can be done.
func (s *s3Sink) abort(ctx context.Context, key, upload string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(s.cfg.Timeout, 10*time.Second))
	defer cancel()
	_, err := s.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &s.cfg.Bucket, Key: &key, UploadId: &upload})
	return err
}

// objectMetadata of an object that is put whole. Source: formats F-31.
func objectMetadata(count, first, last int64, content []byte) map[string]string {
	m := map[string]string{"event-count": strconv.FormatInt(count, 10), "sha256": hex.EncodeToString(content)}
	if first != 0 {
		m["first-event-time"] = time.Unix(0, first).UTC().Format(time.RFC3339Nano)
		m["last-event-time"] = time.Unix(0, last).UTC().Format(time.RFC3339Nano)
	}
	return m
}
