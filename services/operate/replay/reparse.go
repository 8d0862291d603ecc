package replay

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/selection"
	"github.com/penstock/penstock/topology"
)

// recordFilters are the filters of RECORDS for sources; none means all.
func recordFilters(sources []string) []string {
	var filters []string
	for _, s := range sources {
		filters = append(filters, topology.RecordSubject(s))
	}
	return filters
}

// wanted picks what of RECORDS is parsed again.
type wanted struct {
	sources []string
	object  selection.Object
}

func pick(r jobs.Reparse) (wanted, error) {
	object, err := selection.ParseObject(r.Object)
	if err == nil {
		err = checkSpan(r.Span)
	}
	if err == nil && r.Rate < 0 {
		err = errRate.New(nil, "parse %g records a second", r.Rate)
	}
	return wanted{r.Sources, object}, err
}

// origin is that of a frame that is meant, nil of another one: what an earlier job has made
// is not parsed again, as what it was made of is.
func (w wanted) origin(v *messages.View) (*messages.Origin, error) {
	if v.Replay() != "" || v.Len() == 0 || len(w.sources) > 0 && !slices.Contains(w.sources, v.Source()) {
		return nil, nil
	}
	origins, err := v.Origins()
	if err != nil || len(origins) != 1 || !w.object.Has(origins[0]) {
		return nil, err
	}
	return origins[0], nil
}

// CountRecords counts the records that [StartReparse] is about; ByType has their formats.
func CountRecords(ctx context.Context, bus *topology.Bus, r jobs.Reparse, progress func(done, total uint64)) (Counts, error) {
	w, err := pick(r)
	if err != nil {
		return Counts{}, err
	}
	s, err := locate(ctx, bus, topology.Records, r.Span)
	if err != nil {
		return Counts{}, err
	}
	c := Counts{ByType: map[string]uint64{}, FirstSequence: s.first, Until: s.until, Gone: s.gone}
	told := time.Now()
	err = bus.History(topology.Records, recordFilters(r.Sources)).Scan(ctx, s.first, s.until, false, func(m topology.Stored) (bool, error) {
		if now := time.Now(); progress != nil && now.Sub(told) > progressEvery {
			told = now
			progress(m.Sequence-s.first, s.until-s.first)
		}
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			return true, nil //nolint:nilerr // parse puts it into quarantine
		}
		if o, err := w.origin(&v); o == nil || err != nil {
			return true, nil //nolint:nilerr // as above
		}
		c.Events += uint64(v.Len())
		c.Bytes += uint64(v.BodySize())
		c.Frames++
		c.ByType[v.Format()] += uint64(v.Len())
		if c.First.IsZero() {
			c.First = m.Time.UTC()
		}
		c.Last = m.Time.UTC()
		return true, nil
	})
	return c, err
}

// IntoReparse has a job concern just what was counted.
func (c *Counts) IntoReparse(r *jobs.Reparse) {
	r.First, r.Until, r.Total, r.Bytes = c.FirstSequence, c.Until, c.Events, c.Bytes
}

// StartReparse stores the job and writes down who had it made and why; via is console or
// command. r has the counts of [Counts.IntoReparse], else the span is looked up now.
func StartReparse(ctx context.Context, bus *topology.Bus, r jobs.Reparse, by, via, reason string) (topology.Job, error) {
	if _, err := pick(r); err != nil {
		return topology.Job{}, err
	}
	if r.Destination != "" {
		if _, err := Destination(ctx, bus, r.Destination); err != nil {
			return topology.Job{}, err
		}
	}
	if r.Until == 0 {
		s, err := locate(ctx, bus, topology.Records, r.Span)
		if err != nil {
			return topology.Job{}, err
		}
		r.First, r.Until = s.first, s.until
	}
	if r.First >= r.Until {
		return topology.Job{}, ErrEmpty.New(nil, "parse again %s", WhatRecords(r))
	}
	j := topology.Job{
		ID: topology.NewJobID(), Kind: jobs.KindReparse, Spec: jobs.Write(r), Needs: jobs.NeedsOperate, By: by,
		What: WhatRecords(r), Reason: reason, Progress: topology.Progress{Total: r.Total, Unit: "records"},
	}
	if err := bus.WriteAudit(ctx, topology.Deed{By: by, Via: via, Action: "reparse.start", What: j.What, Count: r.Total, Reason: reason, Job: j.ID}); err != nil {
		return topology.Job{}, err
	}
	return bus.AddJob(ctx, j)
}

// WhatRecords says in words what is parsed again.
func WhatRecords(r jobs.Reparse) string {
	what := "records"
	if len(r.Sources) > 0 {
		what += " of source " + strings.Join(r.Sources, ", ")
	}
	if r.Object != "" {
		what += " of " + r.Object
	}
	what += " stored " + spanText(r.Span) + ", parsed again"
	if r.Destination == "" {
		return what + " for all destinations"
	}
	return what + " for " + r.Destination
}

// Workers are what a process that operates does for replays.
func Workers(bus *topology.Bus) []topology.JobWorker {
	return []topology.JobWorker{{
		Can: func(j *topology.Job) bool { return j.Kind == jobs.KindReparse && j.Needs == jobs.NeedsOperate },
		Run: func(ctx context.Context, run *topology.JobRun) error { return reparse(ctx, bus, run) },
	}}
}

// reparsed is where a job goes on.
type reparsed struct {
	Next  uint64 `json:"next"` // sequence of RECORDS
	Done  uint64 `json:"done"`
	Bytes uint64 `json:"bytes"`
}

// copied is what there is of a pull so far.
type copied struct {
	source         string
	frames         uint32
	records, bytes uint64
	changed        bool
}

// reparseEvery is after how many frames what was done is stored.
const reparseEvery = 64

// reparse copies frames of RECORDS, as pulls of their own: parse, dedupe and route take
// them as any others, apart from those that are live.
func reparse(ctx context.Context, bus *topology.Bus, run *topology.JobRun) error {
	j := run.Job()
	spec, err := jobs.Read[jobs.Reparse](&j)
	if err != nil {
		return err
	}
	at, err := jobs.ReadCheckpoint[reparsed](&j)
	if err != nil {
		return err
	}
	w, err := pick(spec)
	if err != nil {
		return err
	}
	c := copier{bus: bus, run: run, spec: spec, wanted: w, replay: messages.Replay{Job: j.ID, Destination: spec.Destination}.String(), at: at, pulls: map[string]*copied{}}
	h := bus.History(topology.Records, recordFilters(spec.Sources))
	// How much there is of a pull so far, when another process has begun.
	if err := h.Scan(ctx, spec.First, at.Next, false, func(m topology.Stored) (bool, error) {
		if v, o := c.meant(m); o != nil {
			c.note(v, c.pull(o), false)
		}
		return true, nil
	}); err != nil {
		return err
	}
	c.next(max(spec.First, at.Next))
	began, before, frames := time.Now(), c.at.Done, 0
	err = h.Scan(ctx, c.at.Next, spec.Until, false, func(m topology.Stored) (bool, error) {
		if err := c.frame(ctx, m); err != nil {
			return false, err
		}
		if frames++; frames%reparseEvery == 0 {
			if err := c.save(ctx); err != nil {
				return false, err
			}
		}
		if spec.Rate > 0 {
			due := began.Add(time.Duration(float64(c.at.Done-before) / spec.Rate * float64(time.Second)))
			select {
			case <-time.After(time.Until(due)):
			case <-ctx.Done():
			}
		}
		return true, context.Cause(ctx)
	})
	if err == nil {
		c.next(spec.Until)
		if c.at.Done < spec.Total {
			c.missing = fmt.Sprintf("%d records of those counted are gone: RECORDS has let go of them before their turn", spec.Total-c.at.Done)
		}
	}
	if saveErr := c.save(context.WithoutCancel(ctx)); err == nil {
		err = saveErr
	}
	return err
}

// copier is a job in hand.
type copier struct {
	bus    *topology.Bus
	run    *topology.JobRun
	spec   jobs.Reparse
	wanted wanted
	replay string
	at     reparsed
	// pulls are those that were copied, by their new ids.
	pulls   map[string]*copied
	builder *messages.Builder
	columns messages.Columns
	body    []byte
	out     topology.Outbox
	missing string // says what was not there any more, at the end
}

func (c *copier) next(sequence uint64) { c.at.Next = sequence }

// meant is the frame of a message, with the origin of one that is meant.
func (c *copier) meant(m topology.Stored) (*messages.View, *messages.Origin) {
	v, err := messages.DecodeFrame(m.Data)
	if err != nil {
		return nil, nil // parse has put it into quarantine
	}
	o, err := c.wanted.origin(&v)
	if err != nil {
		return nil, nil
	}
	return &v, o
}

// pull is the new id of a pull: the same at each attempt of the job.
func (c *copier) pull(o *messages.Origin) []byte {
	return messages.NewPull("reparse", c.run.Job().ID, hex.EncodeToString(o.GetPull()))
}

func (c *copier) note(v *messages.View, pull []byte, changed bool) {
	p := c.pulls[string(pull)]
	if p == nil {
		p = &copied{source: v.Source()}
		c.pulls[string(pull)] = p
	}
	p.frames++
	p.records += uint64(v.Len())
	p.bytes += uint64(v.BodySize())
	p.changed = p.changed || changed
}

// frame copies one.
func (c *copier) frame(ctx context.Context, m topology.Stored) error {
	v, o := c.meant(m)
	if o == nil {
		c.next(m.Sequence + 1)
		return nil
	}
	if err := v.Columns(&c.columns); err != nil {
		return nil //nolint:nilerr // parse has put it into quarantine
	}
	body, err := v.Body(c.body[:0])
	if err != nil {
		return nil //nolint:nilerr // as above
	}
	if c.body = body; cap(body) > 8<<20 {
		c.body = nil
	}
	// Of a pull perhaps not all frames are meant: those that are have numbers of their own.
	pull, number := c.pull(o), uint32(0)
	if p := c.pulls[string(pull)]; p != nil {
		number = p.frames
	}
	head := messages.Header{Source: v.Source(), Format: v.Format(), Replay: c.replay, FrameNo: number, FirstRecord: c.columns.Records[0], Head: v.Head()}
	if c.builder == nil {
		c.builder = messages.NewBuilder(head)
	}
	c.builder.Reset(head)
	again := proto.Clone(o).(*messages.Origin) //nolint:forcetypeassert // what was cloned
	again.Pull = pull
	c.builder.Origin(again)
	at, next := 0, head.FirstRecord
	message, left := 0, uint32(0) // of several messages that are one pull
	for i, length := range c.columns.Lengths {
		if left == 0 && message < len(c.columns.MessageRecords) {
			id := messages.UUID(v.MessageIDs()[message*len(messages.UUID{}):])
			c.builder.Message(id, c.columns.MessageSent[message])
			left = c.columns.MessageRecords[message]
			message++
		}
		left--
		if record := c.columns.Records[i]; record != next {
			c.builder.Skip(record - next)
			next = record
		}
		c.builder.AddRecord(body[at : at+int(length)])
		at += int(length)
		next++
	}
	if c.out == nil {
		c.out = c.bus.NewOutbox(topology.Fetch)
	}
	if err := c.out.Publish(ctx, topology.Message{
		Subject: topology.RecordSubject(head.Source), ID: fmt.Sprintf("rp/%s/%d", c.run.Job().ID, m.Sequence), Data: c.builder.Encode(nil),
	}); err != nil {
		return err
	}
	if number == 0 {
		c.out.Fact(&messages.Fact{Kind: &messages.Fact_Announced{Announced: &messages.Announced{
			Origin: again, As: messages.Announced_AS_EVENTS, Again: o.GetPull(), Job: c.replay,
		}}})
	}
	c.note(v, pull, true)
	c.at.Done += uint64(v.Len())
	c.at.Bytes += uint64(v.BodySize())
	c.next(m.Sequence + 1)
	return nil
}

// save makes what was copied durable, with what the ledger is to know of it, and then the
// place to go on at.
func (c *copier) save(ctx context.Context) error {
	if c.out == nil {
		c.out = c.bus.NewOutbox(topology.Fetch)
	}
	for pull, p := range c.pulls {
		if !p.changed {
			continue
		}
		p.changed = false
		// The last one holds: more frames of the pull may follow.
		c.out.Fact(&messages.Fact{Kind: &messages.Fact_Fetched{Fetched: &messages.Fetched{
			Pull: []byte(pull), Source: p.source, Frames: p.frames, Records: p.records, RawBytes: p.bytes, End: messages.Fetched_END_COMPLETE,
		}}})
	}
	if err := c.out.Flush(ctx); err != nil {
		return err
	}
	c.out = nil
	return c.run.Save(ctx, topology.Progress{Done: c.at.Done, Total: c.spec.Total, Unit: "records", Bytes: c.at.Bytes, Note: c.missing}, c.at)
}
