// Package fetch reads the object that a notice names and cuts its records out.
//
//	penstock.notice.<source> ──▶ fetch ──▶ penstock.record.<source>
//	                        S3 ───┘ ├────▶ quarantine: what is no record, what cannot be read
//	                                └────▶ ledger: Fetched, one for each notice
//
// In:     [messages.Notice], one for each object, at least once.
// Out:    RECORDS frames of up to 8,000 records or 2 MiB, cut only by count and
// bytes, so that a second fetch of the same object makes the same frames with the
// same message ids.
// Errors: what may pass is fault.Retry and publishes nothing that a later attempt
// would cut differently; what cannot be mended here is settled here, with an
// entry in quarantine, and what was whole before goes on.
// State:  none. Any number of copies may run.
// Source: formats F-0, F-6, F-9; Amazon S3 API Reference, GetObject.
package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/framing"
	"github.com/penstock/penstock/services/internal/spare"
	"github.com/penstock/penstock/topology"
)

var (
	errBadNotice = fault.Define("fetch.bad_notice", fault.Reject,
		"the notice names no object: look at what sent it")
	errNoSource = fault.Define("fetch.no_such_source", fault.Reject,
		"put the source back into the configuration, then redrive")
	errBucket = fault.Define("fetch.bucket_not_allowed", fault.Reject,
		"add the bucket to the source's buckets if its objects shall be read, then redrive; else somebody forges notices: restrict the queue's policy")
	errMissing = fault.Define("fetch.key_missing_yet", fault.Retry,
		"none needed if the object appears; it is looked for until missing_key_wait is over")
	errNoSuchKey = fault.Define("fetch.no_such_key", fault.Reject,
		"look whether the object was deleted or has expired; redrive once it is back")
	errDeniedYet = fault.Define("fetch.access_denied_yet", fault.Retry,
		"grant the action that is named; the object is asked for again")
	errDenied = fault.Define("fetch.access_denied", fault.Reject,
		"grant the action that is named to the identity that penstock uses, then redrive")
	errBroken = fault.Define("fetch.connection_broken", fault.Retry,
		"none needed if it passes; else check the network between this machine and S3")
	errBodyCut = fault.Define("fetch.truncated_yet", fault.Retry,
		"none needed: the object is read again in case it is being written")
	errTruncated = fault.Define("fetch.truncated", fault.Reject,
		"have the object written again in full, then redrive; what was whole has gone on")
	errCorrupt = fault.Define("fetch.corrupt", fault.Reject,
		"have the object written again, then redrive; what came before the damage has gone on")
	errGarbage = fault.Define("fetch.trailing_garbage", fault.Reject,
		"look at the bytes in quarantine and mend the program that wrote them; all records before them have gone on")
	errBomb = fault.Define("fetch.bomb", fault.Reject,
		"if the object is genuine raise fetch.max_ratio, then redrive")
	errTooLarge = fault.Define("fetch.too_large", fault.Reject,
		"if the object is genuine raise fetch.max_object, then redrive")
	errTooManyBad = fault.Define("fetch.too_many_bad_records", fault.Reject,
		"check the format of the source; if it is right, raise fetch.max_bad_records, then redrive")
	errPanic = fault.Define("fetch.panic", fault.Reject,
		"report it with the object, if it may be shown; redrive after an update")
)

// Why an object is known to hold no events.
const (
	skipEmpty  = "fetch.empty"
	skipFolder = "fetch.folder"
	skipDigest = "fetch.cloudtrail_digest"
)

// S3 is what fetch calls. [*awsclient.Objects] is one.
type S3 interface {
	// GetObject gets an object from a region; "" is that of the configuration.
	GetObject(ctx context.Context, in *s3.GetObjectInput, region string) (*s3.GetObjectOutput, error)
}

// Source is what fetch must know of a source.
type Source struct {
	// Format is the configured one; "" finds it by key and content.
	Format string
	// Choose is that of Deps for this source alone; nil for that of all.
	Choose func(configured, key string, head []byte) (format string, f framing.Framing, skip string)
	// Allows tells whether objects of the bucket may be read. Nil allows none.
	Allows func(bucket string) bool
	// S3 makes the client; it is called when the first object is to be read, and
	// again only after it failed.
	S3 func(ctx context.Context) (S3, error)
	// FollowRegion sends requests to the region that the notice names, else to the
	// client's. Leave it out where S3 is at an address of its own.
	FollowRegion bool
}

// Deps is what fetch needs from outside.
type Deps struct {
	// Sources by name.
	Sources map[string]Source
	// Choose finds the format of an object by the configured format, its key and
	// its first bytes; skip is a reason when it is known to hold no events.
	Choose func(configured, key string, head []byte) (format string, f framing.Framing, skip string)
	Log    *slog.Logger
	// FrameBytes is where frames are cut, in bytes before compression. 0:
	// messages.LargeBody.
	FrameBytes int
}

// Fetch is the stage. Handle may be called concurrently.
type Fetch struct {
	cfg     Config
	sources map[string]*source
	log     *slog.Logger

	objects *semaphore.Weighted  // how many at once
	bytes   *semaphore.Weighted  // the buffers of all
	large   *semaphore.Weighted  // who has buffers beyond
	readers spare.Values[reader] // those not in use
	// frameBytes is where frames are cut.
	frameBytes int
	pause      time.Duration // before the first resume
}

// What an object weighs on MaxBytesInFlight: a reader's own buffers, and the
// frame that is being built. Unit: bytes.
const (
	readerWeight = 512 << 10
	wholeWeight  = 4 << 20
	// plainBuffer is how large a record's buffer may get within that.
	plainBuffer = 1 << 20
	// expected is how many bytes of buffers a stored byte of a small object costs:
	// ten of raw data, each in up to three buffers.
	expected = 30
)

// New checks cfg and makes the stage. It starts nothing.
func New(cfg Config, deps Deps) (*Fetch, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	f := &Fetch{
		cfg: cfg, log: deps.Log, sources: map[string]*source{}, pause: firstResume,
		objects: semaphore.NewWeighted(int64(cfg.MaxObjects)),
		bytes:   semaphore.NewWeighted(int64(cfg.MaxBytesInFlight)),
		large:   semaphore.NewWeighted(1),
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	for name, s := range deps.Sources {
		if s.Choose == nil {
			s.Choose = deps.Choose
		}
		f.sources[name] = &source{Source: s}
	}
	f.readers = make(spare.Values[reader], keepReaders)
	f.frameBytes = cmp.Or(deps.FrameBytes, messages.LargeBody)
	return f, nil
}

// source is a Source and its client.
type source struct {
	Source
	mu     sync.Mutex
	opened S3
	// unversioned is set once the source turned out to lack the permission to
	// read versions.
	unversioned atomic.Bool
}

func (s *source) client(ctx context.Context) (S3, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened == nil {
		c, err := s.S3(ctx)
		if err != nil {
			return nil, err
		}
		s.opened = c
	}
	return s.opened, nil
}

// Handle reads the object of one notice. It implements [topology.Handler].
func (f *Fetch) Handle(ctx context.Context, in topology.In[*messages.Notice], out topology.Outbox) error {
	began := time.Now()
	j := &job{f: f, in: in, out: out, origin: &messages.Origin{}}
	if o := in.Value.GetOrigin(); o != nil {
		j.origin = proto.CloneOf(o) // filled in with what S3 says
	}
	err := j.guarded(ctx)
	result, err := j.settle(ctx, err)
	name := j.origin.GetSource()
	objectsDone.WithLabelValues(name, result).Inc()
	objectSeconds.WithLabelValues(name).Observe(time.Since(began).Seconds())
	return err
}

// job is the work on one notice.
type job struct {
	f      *Fetch
	in     topology.In[*messages.Notice]
	out    topology.Outbox
	origin *messages.Origin
	obj    *object

	format     string
	skip       string // why there is nothing to read
	cutter     cutter
	stored     int64 // bytes read as stored, and raw
	raw        int64
	tail       *framing.Bad // what the end of the object cut, if anything
	holdsLarge bool
	// parts are those of the notice, as far as they hold; none is all.
	parts []*messages.Part
}

// guarded runs the job and makes a panic a reason to refuse this object.
func (j *job) guarded(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			j.f.log.ErrorContext(ctx, "reading an object panicked", "source", j.origin.GetSource(),
				"bucket", j.origin.GetBucket(), "key", j.origin.GetKey(), "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = errPanic.New(nil, "read %s", j.name())
		}
	}()
	return j.run(ctx)
}

func (j *job) name() string { return "s3://" + j.origin.GetBucket() + "/" + j.origin.GetKey() }

// run does the work as far as it goes.
func (j *job) run(ctx context.Context) error {
	f, o := j.f, j.origin
	src := f.sources[o.GetSource()]
	switch {
	case o.GetBucket() == "" || o.GetKey() == "" || len(o.GetPull()) == 0:
		return errBadNotice.New(nil, "read a notice of source %q", o.GetSource())
	case src == nil:
		return errNoSource.New(nil, "read %s for source %q", j.name(), o.GetSource())
	case src.Allows == nil || !src.Allows(o.GetBucket()):
		return errBucket.New(nil, "read %s for source %s", j.name(), o.GetSource())
	case strings.HasSuffix(o.GetKey(), "/"):
		j.skip = skipFolder
		return nil
	}
	if _, _, j.skip = src.Choose(src.Format, o.GetKey(), nil); j.skip != "" {
		return nil
	}

	release, err := f.reserve(ctx, j.in.Value.GetSize())
	if err != nil {
		return err
	}
	defer release()
	defer func() {
		if j.holdsLarge {
			f.large.Release(1)
		}
	}()

	obj, err := f.open(ctx, src, j.in.Value, o)
	if err != nil {
		return j.explain(err)
	}
	j.obj = obj
	defer obj.close()
	j.pick()
	if obj.size == 0 {
		j.skip = skipEmpty
		return nil
	}
	r := f.readers.Take(newReader)
	back := false
	defer func() {
		j.stored = obj.read
		if !back { // a panic: the reader is still ours
			j.raw = r.dec.raw
		}
		storedBytes.WithLabelValues(o.GetSource()).Add(float64(j.stored))
		rawBytes.WithLabelValues(o.GetSource()).Add(float64(j.raw))
	}()
	err = j.read(ctx, src, r)
	j.raw, back = r.dec.raw, true // before another object gets the reader
	r.release()                   // not after a panic, which may have left it in any state
	f.readers.Give(r)
	return err
}

// keepReaders is how many readers are kept between uses.
const keepReaders = 4

// reserve waits until there is room for another object whose stored size is
// claimed to be size, 0 when unknown.
func (f *Fetch) reserve(ctx context.Context, size int64) (release func(), err error) {
	weight := int64(wholeWeight)
	if size > 0 && size < wholeWeight/expected {
		weight = min(weight, readerWeight+expected*size)
	}
	if err := f.objects.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	if err := f.bytes.Acquire(ctx, weight); err != nil {
		f.objects.Release(1)
		return nil, err
	}
	inFlightBytes.Add(float64(weight))
	return func() {
		inFlightBytes.Sub(float64(weight))
		f.bytes.Release(weight)
		f.objects.Release(1)
	}, nil
}

// enlarge waits for the right to buffers beyond what was reserved, which one
// object has at a time. Who has it waits for nothing here, so nobody is stuck.
func (j *job) enlarge(ctx context.Context) error {
	if j.holdsLarge {
		return nil
	}
	if err := j.f.large.Acquire(ctx, 1); err != nil {
		return err
	}
	j.holdsLarge = true
	return nil
}

// explain decides how long to go on with an object that S3 does not give.
func (j *job) explain(err error) error {
	f := j.f
	switch {
	case errors.Is(err, awsclient.NoSuchKey):
		// Created a moment ago, it may not be there for everybody yet; or it is
		// gone. Source: formats F-6.
		if time.Since(j.in.Stored) < f.cfg.MissingKeyWait {
			return errMissing.New(err, "get %s", j.name())
		}
		return errNoSuchKey.New(err, "get %s, %s after its notice", j.name(), f.cfg.MissingKeyWait)
	case errors.Is(err, awsclient.ObjectDenied), errors.Is(err, awsclient.ObjectKeyDenied):
		if j.in.Attempt < f.cfg.DeniedAttempts {
			return errDeniedYet.New(err, "get %s", j.name())
		}
		return errDenied.New(err, "get %s in %d attempts", j.name(), j.in.Attempt)
	}
	return err
}

// settle ends the job: with the ledger's fact when nothing more will come of this
// notice, else with an error that brings it back.
func (j *job) settle(ctx context.Context, err error) (result string, _ error) {
	if ctx.Err() != nil {
		return "stopped", context.Cause(ctx) // nobody's fault, and nothing to conclude from
	}
	fact := &messages.Fetched{
		Pull: j.origin.GetPull(), Source: j.origin.GetSource(), End: messages.Fetched_END_COMPLETE,
		Bytes: uint64(j.stored), RawBytes: uint64(j.raw),
	}
	result = "complete"
	switch {
	case err != nil && fault.ClassOf(err) != fault.Reject:
		return "retried", err
	case err != nil:
		if qErr := j.refuse(ctx, err); qErr != nil {
			return "retried", qErr
		}
		fact.Code = fault.CodeOf(err)
		fact.End, result = messages.Fetched_END_TRUNCATED, "truncated"
		if j.cutter.frames == 0 {
			fact.End, result = messages.Fetched_END_QUARANTINED, "quarantined"
		}
	case j.skip != "":
		fact.End, fact.Code, result = messages.Fetched_END_SKIPPED, j.skip, "skipped"
	case j.cutter.frames == 0 && len(j.cutter.refused) > 0:
		fact.End, fact.Code, result = messages.Fetched_END_QUARANTINED, j.cutter.lastCode, "quarantined"
	}
	fact.Frames, fact.Records, fact.Quarantined = j.cutter.frames, j.cutter.ordinal-j.cutter.unwanted, j.cutter.refused
	j.out.Fact(&messages.Fact{Kind: &messages.Fact_Fetched{Fetched: fact}})
	return result, nil
}

// refuse puts the object into quarantine, from where it could not be read on: as
// the notice, which can be redriven, or as the record that its end cut.
func (j *job) refuse(ctx context.Context, cause error) error {
	q := &messages.Quarantine{
		Code: fault.CodeOf(cause), Reason: cause.Error(), Origin: j.origin, Record: j.cutter.ordinal, Offset: -1, Length: -1,
		Payload: j.in.Data, Holds: messages.Quarantine_HOLDS_NOTICE, Subject: j.in.Subject, Format: j.format,
		Attempts: uint32(j.in.Attempt),
	}
	if len(q.Payload) == 0 {
		q.Payload = messages.EncodeNotice(j.in.Value)
	}
	if j.raw > 0 {
		q.Offset = j.raw
	}
	if t := j.tail; t != nil {
		q.Offset, q.Length = t.Offset, t.Length
		if t.Length > 0 {
			q.Records = 1
			if len(j.parts) == 0 { // else the notice says what else is wanted, and the object has the bytes
				q.Payload, q.Holds, q.Cut = t.Bytes, messages.Quarantine_HOLDS_BYTES, int64(len(t.Bytes)) < t.Length
			}
			j.cutter.refuse(q.Code)
		}
	}
	j.f.log.WarnContext(ctx, "object goes to quarantine", "source", j.origin.GetSource(), "bucket", j.origin.GetBucket(),
		"key", j.origin.GetKey(), "code", q.Code, "records_before", q.Record, "attempt", j.in.Attempt, "err", cause)
	return j.out.Quarantine(ctx, q)
}
