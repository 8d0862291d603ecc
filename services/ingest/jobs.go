package ingest

import (
	"context"
	"encoding/hex"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/awsclient"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/known"
	"github.com/penstock/penstock/topology"
)

var (
	errNoObjects = fault.Define("backfill.source_has_no_objects", fault.Reject,
		"name a source that reads objects (sqs with notifications, or s3), or leave the bucket out to ask the source's API for a time range")
	errNotAllowed = fault.Define("backfill.bucket_not_allowed", fault.Reject,
		"name the source whose buckets it is one of, or add it to that source's buckets")
	errNoBucket = fault.Define("reconcile.no_bucket", fault.Reject,
		"name the bucket: --bucket s3://bucket/prefix; the configuration of the source does not name one alone")
	errClient = fault.Define("backfill.no_client", fault.Retry,
		"look at the aws section of the source: penstock doctor")
	errNotStored = fault.Define("backfill.not_stored", fault.Retry,
		"look at the bus: penstock topology show; nothing is lost, the job goes on from its checkpoint")

	mObjects = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_backfill_objects_total", Help: "Objects that backfills and reconciliations listed, by what was done: announced, known, not_wanted.",
	}, []string{"source", "result"})
	mBytes = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_backfill_announced_bytes_total", Help: "Bytes of the objects that backfills and reconciliations announced.",
	}, []string{"source"})
)

// Reader is a source as jobs of operators need it.
type Reader struct {
	Source sources.Source
	// Objects is how its objects are read, nil where it reads none.
	Objects sources.ObjectReader
	// Skip is why an object with a key is known to hold no events, "" when it may; nil
	// knows none.
	Skip func(key string) string
}

// Jobs does what operators have sources do beside their own work:
//
//	list, or ask the API ─▶ what the ledger does not know ─▶ while little is under way: announce ─▶ checkpoint
//
// The stream of notices is a log: a live notice waits for all that are before it. So no
// more than some are announced ahead, and none while a later stage is behind.
type Jobs struct {
	bus     *topology.Bus
	log     *slog.Logger
	readers map[string]Reader
}

// NewJobs makes what does the jobs of sources of this process.
func NewJobs(bus *topology.Bus, log *slog.Logger, readers ...Reader) *Jobs {
	j := &Jobs{bus: bus, log: log, readers: map[string]Reader{}}
	if j.log == nil {
		j.log = slog.Default()
	}
	for _, r := range readers {
		j.readers[r.Source.Name()] = r
	}
	return j
}

// Run takes up jobs until ctx ends.
func (j *Jobs) Run(ctx context.Context) error { return j.bus.RunJobs(ctx, j.Worker()) }

// Worker takes up backfills and reconciliations of the sources of this process.
func (j *Jobs) Worker() topology.JobWorker {
	return topology.JobWorker{
		Can: func(job *topology.Job) bool {
			source, ok := strings.CutPrefix(job.Needs, jobs.NeedsSource(""))
			_, has := j.readers[source]
			return ok && has && (job.Kind == jobs.KindBackfill || job.Kind == jobs.KindReconcile)
		},
		Run: func(ctx context.Context, r *topology.JobRun) error {
			if job := r.Job(); job.Kind == jobs.KindReconcile {
				return j.reconcile(ctx, r)
			}
			return j.backfill(ctx, r)
		},
		Jobs: 2,
	}
}

// open returns the reader of a source and a client for a bucket of it.
func (j *Jobs) open(ctx context.Context, spec jobs.Backfill) (Reader, *s3.Client, error) {
	r := j.readers[spec.Source]
	switch {
	case r.Objects == nil:
		return r, nil, errNoObjects.New(nil, "read s3://%s/%s as source %s", spec.Bucket, spec.Prefix, spec.Source)
	case !r.Objects.Allows(spec.Bucket):
		return r, nil, errNotAllowed.New(nil, "read s3://%s/%s as source %s", spec.Bucket, spec.Prefix, spec.Source)
	}
	client, err := awsclient.S3(ctx, r.Objects.ObjectAWS())
	if err != nil {
		return r, nil, errClient.New(err, "read s3://%s/%s as source %s", spec.Bucket, spec.Prefix, spec.Source)
	}
	return r, client, nil
}

// found is an object that may be announced.
type found struct {
	key, etag string
	size      int64
	written   time.Time
	// again is the pull of the ledger that was not finished, if there is one.
	again []byte
	// Between the one before it and this one were left out, as the source does not want
	// them or the ledger has them.
	notWanted, known uint64
}

// wanted returns the objects of a page that the source wants, and how many behind them it
// does not: empty ones, folders, and keys that it leaves out.
func (r *Reader) wanted(page []types.Object) (all []found, not uint64) {
	for i := range page {
		o := &page[i]
		f := found{key: aws.ToString(o.Key), etag: strings.Trim(aws.ToString(o.ETag), `"`), size: aws.ToInt64(o.Size), written: aws.ToTime(o.LastModified)}
		if f.size == 0 || strings.HasSuffix(f.key, "/") || !r.Objects.Takes(f.key) || r.Skip != nil && r.Skip(f.key) != "" {
			not++
			continue
		}
		f.notWanted, not = not, 0
		all = append(all, f)
	}
	return all, not
}

// ask has the ledger say what it knows of objects.
func (j *Jobs) ask(ctx context.Context, spec jobs.Backfill, objects []found) (all []known.Of, behind uint64, err error) {
	q := known.Question{Source: spec.Source, Bucket: spec.Bucket, Objects: make([]known.Object, len(objects))}
	for i, o := range objects {
		q.Objects[i] = known.Object{Key: o.key, ETag: o.etag}
	}
	return known.Ask(ctx, j.bus, q)
}

// Bounds of what one job has under way.
const (
	// aheadBytes of objects may be announced and not yet read, as far as it is known; one
	// that is larger is announced alone.
	aheadBytes = 8 << 20
	// saveEvery is how often the checkpoint is stored.
	saveEvery = time.Second
)

// announcer announces objects when there is little under way.
type announcer struct {
	bus         *topology.Bus
	job, source string
	bucket      string
	ease        *topology.Ease
	pace        pace
	// sizes are those of the latest objects announced, the last at the end.
	sizes []int64
}

func (j *Jobs) announcer(job string, spec jobs.Backfill) *announcer {
	return &announcer{bus: j.bus, job: job, source: spec.Source, bucket: spec.Bucket, ease: j.bus.Ease(), pace: pace{rate: spec.Rate}}
}

// some waits until objects may be announced, announces the first of them, and returns how
// many once they are durable.
func (a *announcer) some(ctx context.Context, objects []found) (int, error) {
	n, err := a.room(ctx, objects)
	if err != nil {
		return 0, err
	}
	out := a.bus.NewOutbox(topology.Ingest)
	var bytes int64
	for _, o := range objects[:n] {
		origin := &messages.Origin{
			// The same when it is announced again after a crash, another in another job.
			Pull:   messages.NewPull("backfill", a.job, a.bucket, o.key, o.etag, strconv.FormatInt(o.written.Unix(), 10)),
			Source: a.source, Bucket: a.bucket, Key: o.key, Etag: o.etag, Created: o.written.UnixNano(), Received: time.Now().UnixNano(),
		}
		if err := out.Publish(ctx, topology.Message{
			Subject: topology.NoticeSubject(a.source), ID: hex.EncodeToString(origin.GetPull()),
			Data: messages.EncodeNotice(&messages.Notice{Origin: origin, Size: o.size}),
		}); err != nil {
			return 0, errNotStored.New(err, "announce s3://%s/%s", a.bucket, o.key)
		}
		out.Fact(&messages.Fact{Kind: &messages.Fact_Announced{
			Announced: &messages.Announced{Origin: origin, As: messages.Announced_AS_OBJECT, Again: o.again, Job: a.job},
		}})
		bytes += o.size
		a.sizes = append(a.sizes, o.size)
	}
	if err := out.Flush(ctx); err != nil {
		return 0, errNotStored.New(err, "announce objects of s3://%s", a.bucket)
	}
	a.sizes = a.sizes[max(0, len(a.sizes)-topology.EaseNotices):]
	mObjects.WithLabelValues(a.source, "announced").Add(float64(n))
	mBytes.WithLabelValues(a.source).Add(float64(bytes))
	return n, nil
}

// room waits until at least one object may be announced, and returns how many may.
func (a *announcer) room(ctx context.Context, objects []found) (int, error) {
	allowed, err := a.pace.take(ctx, len(objects))
	if err != nil {
		return 0, err
	}
	for {
		under, err := a.ease.Wait(ctx)
		if err != nil {
			return 0, err
		}
		var bytes int64 // of ours that are under way at most
		for _, size := range a.sizes[max(0, len(a.sizes)-int(under)):] {
			bytes += size
		}
		n := 0
		for _, o := range objects[:min(allowed, max(0, topology.EaseNotices-int(under)))] {
			if bytes += o.size; bytes > aheadBytes && (n > 0 || under > 0) {
				break
			}
			n++
		}
		if n > 0 {
			a.pace.took(n)
			return n, nil
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// pace spreads work over time. Zero rates do not.
type pace struct {
	rate float64 // a second
	next time.Time
}

// take waits until something may be done, and returns how much of n at most.
func (p *pace) take(ctx context.Context, n int) (int, error) {
	if p.rate <= 0 {
		return n, nil
	}
	now := time.Now()
	if p.next.Before(now.Add(-time.Second)) {
		p.next = now // what was not done is not made up for
	}
	if wait := p.next.Sub(now); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-t.C:
		}
	}
	return max(1, min(n, int(p.rate/10))), nil
}

func (p *pace) took(n int) {
	if p.rate > 0 {
		p.next = p.next.Add(time.Duration(float64(n) / p.rate * float64(time.Second)))
	}
}
