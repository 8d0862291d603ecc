package ingest

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/known"
	"github.com/penstock/penstock/topology"
)

// defaultGrace is how long an object may take to be announced and finished.
const defaultGrace = 10 * time.Minute

// reconcile does a job of that kind.
func (j *Jobs) reconcile(ctx context.Context, r *topology.JobRun) error {
	job := r.Job()
	spec, err := jobs.Read[jobs.Reconcile](&job)
	if err != nil {
		return err
	}
	at, err := jobs.ReadCheckpoint[reconciled](&job)
	if err != nil {
		return err
	}
	if objects := j.readers[spec.Source].Objects; spec.Bucket == "" && objects != nil {
		if spec.Bucket, spec.Prefix = objects.Whole(); spec.Bucket == "" {
			return errNoBucket.New(nil, "compare the objects of source %s", spec.Source)
		}
	}
	reader, client, err := j.open(ctx, spec.Backfill)
	if err != nil {
		return err
	}
	if spec.Grace <= 0 {
		spec.Grace = defaultGrace
	}
	if spec.To.IsZero() {
		spec.To = job.At
	}
	c := &comparing{j: j, r: r, job: job.ID, spec: spec, at: at, reader: reader, out: j.announcer(job.ID, spec.Backfill)}
	if err := c.restore(ctx); err != nil {
		return err
	}
	if spec.Digests {
		err = (&proving{comparing: c, client: client}).run(ctx)
	} else {
		walk := &sources.Walk{Client: client, Bucket: spec.Bucket, Prefix: spec.Prefix, From: spec.From, To: spec.To}
		err = walk.Run(ctx, at.Place, func(page []types.Object, _ int, next sources.Place) error { return c.page(ctx, page, next) })
	}
	return errors.Join(err, c.save(context.WithoutCancel(ctx)))
}

// reconciled is how far a reconciliation is: its checkpoint. The report is stored apart.
type reconciled struct {
	sources.Place
	// Folder of digest files that is being read, and what was read last of its chains.
	Chains string                `json:"chains,omitempty"`
	Links  map[string]*chainLink `json:"links,omitempty"`
	// Sums of the report, without its findings.
	Sums jobs.Report `json:"sums"`
	// Part of the report that is written, and how many findings it has by now.
	Part     int `json:"part"`
	Findings int `json:"findings"`
}

// comparing is a reconciliation.
type comparing struct {
	j      *Jobs
	r      *topology.JobRun
	job    string
	spec   jobs.Reconcile
	at     reconciled
	reader Reader
	out    *announcer
	// part holds the findings of at.Part, bytes what they take.
	part  []jobs.Finding
	bytes int
	saved time.Time
}

// restore reads the part of the report that was being written.
func (c *comparing) restore(ctx context.Context) error {
	if c.at.Sums.States == nil {
		c.at.Sums.States = map[string]uint64{}
	}
	if c.at.Part == 0 {
		c.at.Part = 1 // 0 holds the sums
		return nil
	}
	parts, err := c.j.bus.Report(ctx, c.job)
	if err != nil || len(parts) <= c.at.Part {
		return err
	}
	var was jobs.Report
	if err := json.Unmarshal(parts[c.at.Part], &was); err != nil {
		return nil //nolint:nilerr // what cannot be read is written anew
	}
	c.part = was.Findings[:min(len(was.Findings), c.at.Findings)] // those behind the checkpoint come again
	for i := range c.part {
		c.bytes += size(&c.part[i])
	}
	return nil
}

func size(f *jobs.Finding) int {
	data, _ := json.Marshal(f) // cannot fail
	return len(data) + 1
}

// find notes what is wrong.
func (c *comparing) find(ctx context.Context, f jobs.Finding) error {
	n := size(&f)
	if c.bytes+n > topology.ReportPart && len(c.part) > 0 {
		if c.at.Part+1 >= topology.ReportParts {
			c.at.Sums.Cut++
			return nil
		}
		if err := c.savePart(ctx); err != nil {
			return err
		}
		c.at.Part, c.part, c.bytes = c.at.Part+1, nil, 0
	}
	c.part, c.bytes = append(c.part, f), c.bytes+n
	return nil
}

func (c *comparing) savePart(ctx context.Context) error {
	data, err := json.Marshal(jobs.Report{Findings: c.part})
	if err != nil {
		return err // numbers and texts: it does not happen
	}
	return c.j.bus.SaveReport(ctx, c.job, c.at.Part, data)
}

// mark returns what puts the report back to what it is now: what is done again after an
// error must not count twice.
func (c *comparing) mark() (undo func()) {
	at, _ := json.Marshal(c.at) // numbers and texts
	part, bytes := c.part, c.bytes
	return func() {
		c.at = reconciled{}
		_ = json.Unmarshal(at, &c.at)
		c.part, c.bytes = part, bytes
	}
}

// page compares one page of the listing.
func (c *comparing) page(ctx context.Context, page []types.Object, next sources.Place) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	undo := c.mark()
	objects, not := c.reader.wanted(page)
	for _, o := range objects {
		not += o.notWanted
	}
	c.at.Sums.NotWanted += not
	mObjects.WithLabelValues(c.spec.Source, "not_wanted").Add(float64(not))
	if err := c.compare(ctx, c.spec.Bucket, objects); err != nil {
		undo()
		return err
	}
	c.at.Place = next
	return c.tell(ctx)
}

// missing are the states that stand for something that is not there, and whether the
// object is announced again: what is in quarantine has to be redriven from there, and what
// was cut would be cut again.
var missing = map[known.State]bool{
	known.Never: true, known.Open: true, known.Changed: true, known.Truncated: false, known.Quarantined: false,
}

// compare asks the ledger for objects, notes those that are not complete, and announces
// them again when that is asked for.
func (c *comparing) compare(ctx context.Context, bucket string, objects []found) error {
	if len(objects) == 0 {
		return nil
	}
	spec := c.spec.Backfill
	spec.Bucket = bucket
	all, behind, err := c.j.ask(ctx, spec, objects)
	if err != nil {
		return err
	}
	s := &c.at.Sums
	s.Behind = behind
	young := time.Now().Add(-c.spec.Grace)
	var again []found
	for i, o := range objects {
		of := all[i]
		s.Objects++
		s.Bytes += uint64(max(0, o.size))
		requeue, wrong := missing[of.State]
		switch {
		case !wrong:
			s.States[string(of.State)]++
			continue
		case of.State == known.Never && o.written.After(young), of.State == known.Open && of.Announced.After(young),
			of.State == known.Changed && o.written.After(young):
			s.UnderWay++
			continue
		}
		s.States[string(of.State)]++
		s.Missing++
		f := jobs.Finding{
			What: string(of.State), Bucket: bucket, Key: o.key, ETag: o.etag, Size: o.size, Written: o.written, Pull: of.Pull, Code: of.Code,
		}
		if of.State == known.Changed {
			f.Detail = "it was read with the ETag " + of.ETag
		}
		if f.Requeued = requeue && c.spec.Requeue; f.Requeued {
			o.again, _ = hex.DecodeString(of.Pull)
			again = append(again, o)
			s.Requeued++
		}
		if err := c.find(ctx, f); err != nil {
			return err
		}
	}
	c.out.bucket = bucket
	for len(again) > 0 {
		n, err := c.out.some(ctx, again)
		if err != nil {
			return err
		}
		again = again[n:]
		if len(again) > 0 {
			c.r.Report(c.progress())
		}
	}
	return nil
}

func (c *comparing) tell(ctx context.Context) error {
	if time.Since(c.saved) >= saveEvery {
		return c.save(ctx)
	}
	c.r.Report(c.progress())
	return nil
}

// save stores the report and then the checkpoint.
func (c *comparing) save(ctx context.Context) error {
	c.saved = time.Now()
	c.at.Findings = len(c.part)
	if err := c.saveReport(ctx); err != nil {
		return err
	}
	return c.r.Save(ctx, c.progress(), c.at)
}

func (c *comparing) saveReport(ctx context.Context) error {
	sums, err := json.Marshal(c.at.Sums)
	if err != nil {
		return err // numbers: it does not happen
	}
	if err := c.j.bus.SaveReport(ctx, c.job, 0, sums); err != nil {
		return err
	}
	if len(c.part) == 0 {
		return nil
	}
	return c.savePart(ctx)
}

func (c *comparing) progress() topology.Progress {
	s := &c.at.Sums
	p := topology.Progress{
		Done: s.Objects + s.UnderWay, Total: c.spec.Total, Unit: "objects", Failed: s.Missing, Skipped: s.NotWanted, Bytes: s.Bytes,
	}
	if c.spec.Digests && s.Digests != nil {
		p.Done, p.Unit = s.Digests.LogFiles, "log files"
		for _, n := range s.Digests.Bad {
			p.Failed += n
		}
	}
	return p
}
