package quarantine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/operate/destinations"
	"github.com/penstock/penstock/topology"
)

var (
	// ErrNothing is that of a filter that no entry fits.
	ErrNothing = fault.Define("quarantine.nothing_fits", fault.Reject,
		"list what there is, and by what it can be told apart: penstock quarantine list --facets")
	errNoReason = fault.Define("quarantine.no_reason", fault.Reject,
		"say why: what is discarded is gone for ever, and the audit shall tell later who decided that and for what reason")
	errRate = fault.Define("quarantine.bad_rate", fault.Reject, "use 0 for no limit, or a positive number of entries a second")
)

// Bounds of one step of a job: what is on its way when the process dies is done again.
const (
	stepEntries = 256
	// stepAsks are those of them that a source judges, one after the other.
	stepAsks  = 32
	stepBytes = 8 << 20
	// noticeBytes of refused records travel with one notice at most.
	noticeBytes = 512 << 10
	// mostReasons are kept why entries stay.
	mostReasons = 3
	// askTimeout is how long a source may take to judge an entry.
	askTimeout = 30 * time.Second
	// knownFor is how long it is believed which destinations and sources there are, and
	// what was sent to a destination again.
	knownFor = 30 * time.Second
	// mostSent bounds what is remembered of that. Unit: messages; 32 bytes each.
	mostSent = 4 << 20
)

// published is called between the publishing and the deleting; tests die there.
var published = func() error { return nil }

// Check tells what is wrong with what a job is to do.
func Check(kind string, spec Redrive, reason string) error {
	if spec.Rate < 0 {
		return errRate.New(nil, "%s at %g entries a second", kind, spec.Rate)
	}
	if kind == jobs.KindDiscard && strings.TrimSpace(reason) == "" {
		return errNoReason.New(nil, "discard entries of the quarantine")
	}
	return nil
}

// What says in words which entries a filter means.
func What(f Filter) string {
	var all []string
	add := func(name, value string) {
		if value != "" {
			all = append(all, name+" "+value)
		}
	}
	if n := len(f.IDs); n == 1 {
		add("id", f.IDs[0])
	} else if n > 1 {
		add("ids", fmt.Sprintf("%s and %d more", f.IDs[0], n-1))
	}
	add("stage", f.Stage)
	add("source", f.Source)
	add("code", f.Code)
	add("destination", f.Destination)
	if f.Text != "" {
		add("text", fmt.Sprintf("%q", f.Text))
	}
	if !f.From.IsZero() {
		add("from", f.From.UTC().Format(time.RFC3339))
	}
	if !f.To.IsZero() {
		add("to", f.To.UTC().Format(time.RFC3339))
	}
	if len(all) == 0 {
		return "all entries of the quarantine"
	}
	return "entries of the quarantine: " + strings.Join(all, ", ")
}

func start(ctx context.Context, bus *topology.Bus, kind string, spec Redrive, by, via, reason string) (topology.Job, error) {
	if err := Check(kind, spec, reason); err != nil {
		return topology.Job{}, err
	}
	f, err := facets(ctx, bus, spec.Entries, spec.Until)
	if err != nil {
		return topology.Job{}, err
	}
	if f.Entries == 0 {
		return topology.Job{}, ErrNothing.New(nil, "%s %s", kind, What(spec.Entries))
	}
	if spec.Until == 0 {
		spec.Until = f.Until
	}
	what := kind + " " + What(spec.Entries)
	if spec.AllowOnce {
		what += ", limits lifted for this time"
	}
	if err := bus.WriteAudit(ctx, topology.Deed{By: by, Via: via, Action: "quarantine." + kind, What: what, Count: f.Entries, Reason: reason}); err != nil {
		return topology.Job{}, err
	}
	return bus.AddJob(ctx, topology.Job{
		Kind: kind, Spec: jobs.Write(spec), Needs: jobs.NeedsOperate, By: by, What: what, Reason: reason,
		Progress: topology.Progress{Total: f.Entries, Unit: "entries"},
	})
}

// checkpoint is where a job goes on.
type checkpoint struct {
	// Next is the first sequence that was not looked at.
	Next uint64 `json:"next"`
}

// worker does one job.
type worker struct {
	bus     *topology.Bus
	run     *topology.JobRun
	kind    string
	spec    Redrive
	build   *builder
	matcher *matcher
	next    uint64

	progress topology.Progress
	reasons  []string // why entries stay
	derived  uint64
	due      time.Time // of the next entry, where there is a rate

	dests     map[string]string // why a destination cannot be sent to, "" where it can
	destsAt   time.Time
	sources   map[string]map[string]bool // by stage: what the processes have; none where none answers
	sourcesAt time.Time
	sent      map[string]*sentSet
}

func run(ctx context.Context, bus *topology.Bus, r *topology.JobRun) error {
	j := r.Job()
	spec, err := jobs.Read[Redrive](&j)
	if err != nil {
		return err
	}
	at, err := jobs.ReadCheckpoint[checkpoint](&j)
	if err != nil {
		return err
	}
	lanes := sync.OnceValues(func() (uint32, error) { return bus.LaneCount(ctx) })
	w := &worker{
		bus: bus, run: r, kind: j.Kind, spec: spec, matcher: newMatcher(spec.Entries), next: at.Next, progress: j.Progress,
		build: &builder{job: j.ID, lanes: func(context.Context) (uint32, error) { return lanes() }}, sent: map[string]*sentSet{},
	}
	w.progress.Unit = "entries"
	for w.next < spec.Until {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := w.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// step takes up some entries, and returns once they are settled and that is durable.
func (w *worker) step(ctx context.Context) error {
	most := stepEntries
	if w.spec.Rate > 0 {
		most = max(1, min(most, int(w.spec.Rate)))
	}
	var entries []stored
	size, asks := 0, 0
	next := w.spec.Until
	if err := forward(ctx, w.bus, w.matcher, w.next, w.spec.Until, func(s stored) bool {
		entries = append(entries, s)
		size += len(s.GetPayload())
		if s.GetStage() == string(topology.Ingest) {
			asks++
		}
		if len(entries) == most || size >= stepBytes || asks == stepAsks {
			next = s.sequence + 1
			return false
		}
		return true
	}); err != nil {
		return err
	}
	if err := w.pace(ctx, len(entries)); err != nil {
		return err
	}
	// What was begun is finished, so that an operator who stops the job finds no
	// entry in between.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*askTimeout)
	defer cancel()
	var gone []stored
	var err error
	if w.kind == jobs.KindDiscard {
		gone = entries
	} else if gone, err = w.redrive(work, entries); err != nil {
		return err
	}
	if err := published(); err != nil {
		return err
	}
	if err := w.resolve(work, gone); err != nil {
		return err
	}
	w.next = next
	w.progress.Done += uint64(len(entries))
	w.progress.Failed += uint64(len(entries) - len(gone))
	w.progress.Bytes += uint64(size)
	w.progress.Note = w.note()
	return w.run.Save(work, w.progress, checkpoint{w.next})
}

// pace waits until n more entries are due.
func (w *worker) pace(ctx context.Context, n int) error {
	if w.spec.Rate <= 0 || n == 0 {
		return nil
	}
	now := time.Now()
	if w.due.Before(now) {
		w.due = now
	}
	wait := time.NewTimer(time.Until(w.due))
	defer wait.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-wait.C:
	}
	w.due = w.due.Add(time.Duration(float64(n) / w.spec.Rate * float64(time.Second)))
	return nil
}

// note says what there is to say.
func (w *worker) note() string {
	var all []string
	if len(w.reasons) > 0 {
		all = append(all, "stay in quarantine: "+strings.Join(w.reasons, "; "))
	}
	if w.derived > 0 {
		all = append(all, fmt.Sprintf("%d of an older penstock had no event id and got one made from their origin", w.derived))
	}
	return strings.Join(all, "; ")
}

// stays notes why an entry stays.
func (w *worker) stays(reason string) {
	if len(w.reasons) < mostReasons && !slices.Contains(w.reasons, reason) {
		w.reasons = append(w.reasons, reason)
	}
}

// redrive sends entries on their ways, and returns those that got there once that is
// durable.
func (w *worker) redrive(ctx context.Context, entries []stored) ([]stored, error) {
	if err := w.look(ctx, entries); err != nil {
		return nil, err
	}
	outs := map[string]topology.Outbox{}
	send := func(stage string, m made) error {
		out := outs[stage]
		if out == nil {
			out = w.bus.NewOutbox(topology.Stage(stage))
			outs[stage] = out
		}
		for _, one := range m.messages {
			if err := out.Publish(ctx, one); err != nil {
				return err
			}
		}
		for _, f := range m.facts {
			out.Fact(f)
		}
		if m.derived {
			w.derived++
		}
		return nil
	}
	var gone []stored
	var reread []stored
	for _, s := range entries {
		way, why := wayOf(s.Quarantine)
		if why == "" {
			why = w.absent(s.Quarantine, way)
		}
		if why != "" {
			w.stays(why)
			continue
		}
		var m made
		var err error
		switch way {
		case asked:
			why, err = w.ask(ctx, s.Quarantine)
		case notice:
			reread = append(reread, s)
			continue
		case again:
			var done bool
			if done, err = w.wasSent(ctx, s); done {
				break
			}
			fallthrough
		default:
			if err == nil {
				m, err = w.build.build(ctx, s.Quarantine, way)
			}
		}
		if err == nil && why == "" {
			err = send(s.GetStage(), m)
		}
		switch {
		case err != nil && fault.ClassOf(err) != fault.Reject:
			return nil, err
		case err != nil:
			why = err.Error()
		}
		if why != "" {
			w.stays(why)
			continue
		}
		gone = append(gone, s)
	}
	for _, group := range groups(reread) {
		err := send(string(topology.Fetch), w.build.notices(group.entries, group.parts, group.allow(w.spec.AllowOnce)))
		switch {
		case err == nil:
			gone = append(gone, group.stored...)
		case fault.ClassOf(err) == fault.Reject:
			w.stays(err.Error())
		default:
			return nil, err
		}
	}
	for _, out := range outs {
		if err := out.Flush(ctx); err != nil {
			return nil, err
		}
	}
	return gone, nil
}

// group is entries that one reading of an object serves.
type group struct {
	key     string
	stored  []stored
	entries []*messages.Quarantine
	parts   []*messages.Part
	size    int
}

// groups puts together what is of one object: it is read once for all of them.
func groups(entries []stored) []*group {
	var all []*group
	open := map[string]*group{}
	for _, s := range entries {
		parts := partsOf(s.Quarantine)
		size := 0
		for _, p := range parts {
			size += len(p.GetPayload())
		}
		key := fmt.Sprintf("%x|%s|%s", s.GetOrigin().GetPull(), s.GetOrigin().GetEtag(), s.GetFormat())
		g := open[key]
		if g == nil || len(parts) == 0 || g.size+size > noticeBytes {
			g = &group{key: key}
			all = append(all, g)
			if len(parts) > 0 {
				open[key] = g
			}
		}
		g.stored, g.entries, g.parts, g.size = append(g.stored, s), append(g.entries, s.Quarantine), append(g.parts, parts...), g.size+size
	}
	return all
}

// allow are the codes of limits that are lifted for the group.
func (g *group) allow(once bool) []string {
	var codes []string
	for _, q := range g.entries {
		if n, err := noticeOf(q); err == nil { // what was lifted stays so for what failed otherwise
			codes = append(codes, n.GetAllow()...)
		}
		if once && Liftable(q.GetCode()) {
			codes = append(codes, q.GetCode())
		}
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// ask has the process that has the source judge an entry anew. It returns why the entry
// stays.
func (w *worker) ask(ctx context.Context, q *messages.Quarantine) (string, error) {
	r := jobs.Rejudge{Job: w.run.Job().ID, Allow: w.spec.AllowOnce && Liftable(q.GetCode()), Entry: q}
	answer, err := w.bus.Request(ctx, jobs.RejudgeOf(q.GetSource()), r.Encode(), askTimeout)
	switch {
	case errors.Is(err, topology.ErrNobody):
		return "no process that ingests has source " + q.GetSource() + ": start one, or put the source back into the configuration", nil
	case err != nil:
		return "", err
	}
	return string(answer), nil
}

// look finds out which destinations and sources there are.
func (w *worker) look(ctx context.Context, entries []stored) error {
	needs := func(stages ...string) bool {
		return slices.ContainsFunc(entries, func(s stored) bool { return slices.Contains(stages, s.GetStage()) })
	}
	if needs(string(topology.Deliver)) && time.Since(w.destsAt) > knownFor {
		all, err := destinations.Now(ctx, w.bus, nil)
		if err != nil {
			return err
		}
		answered := slices.ContainsFunc(all, func(s *destinations.Status) bool { return len(s.Processes) > 0 })
		w.dests = map[string]string{}
		for _, s := range all {
			switch {
			case s.First == 0, !s.Configured && answered:
				w.dests[s.Name] = "destination " + s.Name + " is in the configuration of no process any more: put it back, then redrive; or discard the entry"
			case slices.ContainsFunc(processes(s), func(f bool) bool { return f }):
				w.dests[s.Name] = "destination " + s.Name + " fetches events itself from places of its own: nothing can be sent to it again"
			default:
				w.dests[s.Name] = ""
			}
		}
		w.destsAt = time.Now()
	}
	if needs(string(topology.Fetch), string(topology.Parse), string(topology.Route)) && time.Since(w.sourcesAt) > knownFor {
		answers, err := w.bus.Ask(ctx, jobs.SourcesQuestion)
		if err != nil {
			return err
		}
		w.sources = map[string]map[string]bool{}
		for _, a := range answers {
			stage, names, ok := jobs.ReadSources(a)
			if !ok {
				continue
			}
			if w.sources[stage] == nil {
				w.sources[stage] = map[string]bool{}
			}
			for _, name := range names {
				w.sources[stage][name] = true
			}
		}
		w.sourcesAt = time.Now()
	}
	return nil
}

// processes tells of each that has a destination whether others fetch from it.
func processes(s *destinations.Status) []bool {
	var all []bool
	for _, p := range s.Processes {
		all = append(all, p.Fetched)
	}
	return all
}

// absent says why an entry cannot go where it is to go, because that is no longer there.
func (w *worker) absent(q *messages.Quarantine, way way) string {
	stage := ""
	switch way {
	case again:
		why, known := w.dests[topology.DestinationToken(q.GetDestination())]
		if own, ok := w.dests[q.GetDestination()]; ok {
			why, known = own, true
		}
		if !known {
			return "destination " + q.GetDestination() + " is not there any more: put it back into the configuration, then redrive; or discard the entry"
		}
		return why
	case notice:
		stage = string(topology.Fetch)
	case records:
		stage = string(topology.Parse)
	case blocked, asked, frame, parsed:
		return ""
	}
	if names := w.sources[stage]; names != nil && !names[q.GetSource()] {
		return "source " + q.GetSource() + " is in the configuration of no process of stage " + stage + " any more: put it back, then redrive; or discard the entry"
	}
	return ""
}

// sentSet is what was sent again to one destination, as hashes of the ids of messages.
type sentSet struct {
	at   time.Time
	from time.Time
	ids  map[uint64]time.Time
}

// wasSent tells whether an entry was sent to its destination longer ago than the server
// remembers ids, by somebody who did not get to delete it. Behind the event log there is
// no dedupe any more.
func (w *worker) wasSent(ctx context.Context, q stored) (bool, error) {
	from := q.at
	s := w.sent[q.GetDestination()]
	if s == nil || time.Since(s.at) > knownFor || from.Before(s.from) {
		s = &sentSet{at: time.Now(), from: from, ids: map[uint64]time.Time{}}
		err := w.bus.IDs(ctx, topology.Span{Subject: topology.AgainSubject(q.GetDestination()), From: from}, func(m topology.Stored) error {
			if strings.HasPrefix(m.ID, "q/") && len(s.ids) < mostSent {
				s.ids[hashOf(m.ID)] = m.Time
			}
			return nil
		})
		if err != nil {
			return false, err
		}
		w.sent[q.GetDestination()] = s
	}
	// One that was sent before it went to quarantine was refused again since, e.g. when it
	// was replayed.
	return s.ids[hashOf(messageID(q.GetId()))].After(q.at), nil
}

func hashOf(id string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id))
	return h.Sum64()
}

// deleteAtOnce is how many entries are deleted side by side.
const deleteAtOnce = 16

// resolve tells the ledger that entries are gone, and deletes them. In this order: done
// again it counts once, and left out it would be missed.
func (w *worker) resolve(ctx context.Context, entries []stored) error {
	how := messages.Resolved_HOW_REDRIVEN
	if w.kind == jobs.KindDiscard {
		how = messages.Resolved_HOW_DISCARDED
	}
	outs := map[string]topology.Outbox{}
	for _, s := range entries {
		stage := cmp.Or(s.GetStage(), string(topology.Ingest))
		if !slices.Contains(topology.Stages, topology.Stage(stage)) {
			stage = string(topology.Ingest) // of a newer penstock
		}
		if outs[stage] == nil {
			outs[stage] = w.bus.NewOutbox(topology.Stage(stage))
		}
		outs[stage].Fact(&messages.Fact{Kind: &messages.Fact_Resolved{Resolved: &messages.Resolved{
			Entry: s.GetId(), Pull: s.GetOrigin().GetPull(), Stage: s.GetStage(), Code: s.GetCode(), Destination: s.GetDestination(),
			Records: s.GetRecords(), How: how, Job: w.run.Job().ID,
		}}})
	}
	for _, out := range outs {
		if err := out.Flush(ctx); err != nil {
			return err
		}
	}
	var g errgroup.Group
	g.SetLimit(deleteAtOnce)
	for _, s := range entries {
		g.Go(func() error {
			_, err := w.bus.Unquarantine(ctx, s.sequence)
			return err
		})
	}
	return g.Wait()
}
