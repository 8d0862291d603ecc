package ingest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/known"
	"github.com/penstock/penstock/topology"
)

var errNoAPI = fault.Define("backfill.source_has_no_api", fault.Reject,
	"name a source that can be asked for a time range (cloudtrail_api, cloudwatch_logs, cloudwatch_metrics, guardduty), or a bucket: s3://bucket/prefix")

// backfilled is how far a backfill is: its checkpoint.
type backfilled struct {
	sources.Place
	// Piece of an API that was read last.
	Piece string `json:"piece,omitempty"`
	// Done objects were announced or counted, or pieces read; Bytes are theirs.
	Done  uint64 `json:"done"`
	Bytes uint64 `json:"bytes"`
	// Known were left out because the ledger has them, NotWanted because the source has
	// it so.
	Known     uint64 `json:"known,omitempty"`
	NotWanted uint64 `json:"not_wanted,omitempty"`
	Records   uint64 `json:"records,omitempty"`
}

// backfill does a job of that kind.
func (j *Jobs) backfill(ctx context.Context, r *topology.JobRun) error {
	job := r.Job()
	spec, err := jobs.Read[jobs.Backfill](&job)
	if err != nil {
		return err
	}
	at, err := jobs.ReadCheckpoint[backfilled](&job)
	if err != nil {
		return err
	}
	if spec.Bucket == "" {
		return j.timeRange(ctx, r, job.ID, spec, at)
	}
	reader, client, err := j.open(ctx, spec)
	if err != nil {
		return err
	}
	b := &backfilling{j: j, r: r, spec: spec, at: at, reader: reader, out: j.announcer(job.ID, spec)}
	b.out.ease.Tell = func() { r.Report(b.progress()) }
	walk := &sources.Walk{Client: client, Bucket: spec.Bucket, Prefix: spec.Prefix, From: spec.From, To: spec.To}
	if walk.To.IsZero() {
		walk.To = job.At // what is written from now on comes live
	}
	err = walk.Run(ctx, at.Place, func(page []types.Object, _ int, next sources.Place) error { return b.page(ctx, page, next) })
	return errors.Join(err, b.save(context.WithoutCancel(ctx)))
}

// backfilling is a backfill of a bucket.
type backfilling struct {
	j      *Jobs
	r      *topology.JobRun
	spec   jobs.Backfill
	at     backfilled
	reader Reader
	out    *announcer
	saved  time.Time
}

// page does one page of the listing.
func (b *backfilling) page(ctx context.Context, page []types.Object, next sources.Place) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	objects, notWanted := b.reader.wanted(page)
	knows := uint64(0)
	if b.spec.SkipKnown && len(objects) > 0 {
		all, _, err := b.j.ask(ctx, b.spec, objects)
		if err != nil {
			return err
		}
		left, passed := objects[:0], uint64(0)
		for i, o := range objects {
			if all[i].State == known.Complete {
				knows, passed = knows+1, passed+o.notWanted
				continue
			}
			o.known, o.notWanted = knows, o.notWanted+passed
			left, knows, passed = append(left, o), 0, 0
		}
		objects, notWanted = left, notWanted+passed
	}
	for len(objects) > 0 {
		n := len(objects)
		if !b.spec.Count {
			var err error
			if n, err = b.out.some(ctx, objects); err != nil {
				return err
			}
		}
		for _, o := range objects[:n] {
			b.at.Bytes += uint64(max(0, o.size))
			b.passed(o.known, o.notWanted)
		}
		b.at.Done += uint64(n)
		b.at.Place = sources.Place{Folder: next.Folder, After: objects[n-1].key}
		if objects = objects[n:]; len(objects) > 0 {
			if err := b.tell(ctx); err != nil {
				return err
			}
		}
	}
	b.at.Place = next
	b.passed(knows, notWanted)
	return b.tell(ctx)
}

// passed counts what was left out.
func (b *backfilling) passed(known, notWanted uint64) {
	b.at.Known, b.at.NotWanted = b.at.Known+known, b.at.NotWanted+notWanted
	mObjects.WithLabelValues(b.spec.Source, "known").Add(float64(known))
	mObjects.WithLabelValues(b.spec.Source, "not_wanted").Add(float64(notWanted))
}

// tell says how far the job is, and now and then stores it.
func (b *backfilling) tell(ctx context.Context) error {
	if time.Since(b.saved) >= saveEvery {
		return b.save(ctx)
	}
	b.r.Report(b.progress())
	return nil
}

func (b *backfilling) save(ctx context.Context) error {
	b.saved = time.Now()
	return b.r.Save(ctx, b.progress(), b.at)
}

func (b *backfilling) progress() topology.Progress {
	p := topology.Progress{Done: b.at.Done, Total: b.spec.Total, Unit: "objects", Skipped: b.at.Known + b.at.NotWanted, Bytes: b.at.Bytes}
	if p.Total > 0 {
		p.Total = max(p.Total, p.Done)
	}
	if b.at.Known > 0 {
		p.Note = fmt.Sprintf("%d complete already", b.at.Known)
	}
	if behind := b.out.ease.Behind; behind != "" && !b.spec.Count {
		if p.Note != "" {
			p.Note += "; "
		}
		p.Note += "waits for " + behind
	}
	return p
}

// errCounted ends a job that only counts.
var errCounted = errors.New("counted")

// timeRange reads a time range of an API.
func (j *Jobs) timeRange(ctx context.Context, r *topology.JobRun, job string, spec jobs.Backfill, at backfilled) error {
	source, ok := j.readers[spec.Source].Source.(sources.Ranged)
	if !ok {
		return errNoAPI.New(nil, "ask source %s for a time range", spec.Source)
	}
	to := spec.To
	if started := r.Job().At; to.IsZero() || to.After(started) {
		to = started
	}
	ease := j.bus.Ease()
	p := topology.Progress{Unit: "pieces", Bytes: at.Bytes, Done: at.Done}
	missing := ""
	next := time.Now()
	err := source.Range(ctx, sources.Range{
		From: spec.From, To: to, Job: job, After: at.Piece,
		Plan: func(pieces int, gone string) error {
			p.Total, missing, p.Note = uint64(pieces), gone, gone
			r.Report(p)
			if spec.Count {
				return errCounted
			}
			return nil
		},
		Wait: func(ctx context.Context, most float64) error {
			if spec.Rate > 0 {
				most = min(most, spec.Rate)
			}
			paced := pace{rate: most, next: next}
			if _, err := paced.take(ctx, 1); err != nil {
				return err
			}
			paced.took(1)
			next = paced.next
			_, err := ease.Wait(ctx)
			return err
		},
		Done: func(piece string, done int, records, bytes uint64) error {
			at.Piece, at.Done, at.Records, at.Bytes = piece, uint64(done), at.Records+records, at.Bytes+bytes
			p.Done, p.Bytes = at.Done, at.Bytes
			p.Note = fmt.Sprintf("%d records", at.Records)
			if missing != "" {
				p.Note += "; not to be had: " + missing
			}
			return r.Save(ctx, p, at)
		},
	})
	if errors.Is(err, errCounted) {
		return r.Save(ctx, p, at)
	}
	return err
}
