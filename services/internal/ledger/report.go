package ledger

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/messages"
)

// Report is what the facts add up to.
type Report struct {
	// Balanced: nothing is missing and nothing is too much. Open pulls are neither.
	Balanced bool `json:"balanced"`
	// Problems says in sentences what does not add up; at most maxProblems and one
	// that tells how many more there are.
	Problems []string `json:"problems"`
	Total    Total    `json:"total"`
	// Destinations and Pulls are in the order in which they were first heard of.
	Destinations []Destination `json:"destinations"`
	Pulls        []Pull        `json:"pulls"`
	// Facts that were read, by stage, and those of an unknown kind among them.
	Facts  map[string]uint64 `json:"facts"`
	Unread uint64            `json:"facts_unread,omitempty"`
}

const maxProblems = 100

// Counts are of records and events, of one pull or of all.
type Counts struct {
	// Records that were cut, and the events that they became.
	Records uint64 `json:"records"`
	Events  uint64 `json:"events"`
	// Unique events passed dedupe, duplicates did not.
	Unique     uint64 `json:"unique"`
	Duplicates uint64 `json:"duplicates"`
	// Logged events entered the event log: unique ones that no rule dropped.
	Logged uint64 `json:"logged"`
	// Dropped events by rule, skipped records by reason, and the records that fetch
	// and parse quarantined, by code.
	Dropped     map[string]uint64 `json:"dropped,omitempty"`
	Skipped     map[string]uint64 `json:"skipped,omitempty"`
	Quarantined map[string]uint64 `json:"quarantined,omitempty"`
	// Republished events came to route again, as after a crash of parse, and were
	// dropped by dedupe. Twice are those that it let pass again: always a problem.
	Republished uint64 `json:"republished,omitempty"`
	Twice       uint64 `json:"twice,omitempty"`
	// Missing records or events went into a stage and not out of it. Extra ones
	// came out and did not go in.
	Missing uint64 `json:"missing"`
	Extra   uint64 `json:"extra,omitempty"`
}

// Total is the sum of all pulls.
type Total struct {
	Pulls int `json:"pulls"`
	// Open pulls are announced and not yet fetched to their end, unbalanced ones
	// have problems.
	Open       int `json:"open"`
	Unbalanced int `json:"unbalanced"`
	// Partial pulls are those of which not all facts are kept.
	Partial int `json:"partial,omitempty"`
	// Announced counts pulls by what they were announced as, Ended those fetched by
	// how that ended.
	Announced map[string]uint64 `json:"announced"`
	Ended     map[string]uint64 `json:"ended"`
	// PullsSkipped and PullsQuarantined count whole messages and objects by code;
	// of a truncated object the rest is in quarantine.
	PullsSkipped     map[string]uint64 `json:"pulls_skipped,omitempty"`
	PullsQuarantined map[string]uint64 `json:"pulls_quarantined,omitempty"`
	// Bytes as stored upstream, RawBytes after decompression.
	Bytes    uint64 `json:"bytes"`
	RawBytes uint64 `json:"raw_bytes"`
	// Redriven and discarded records, of those quarantined at any stage.
	Redriven  uint64 `json:"redriven,omitempty"`
	Discarded uint64 `json:"discarded,omitempty"`
	Counts
}

// State of a pull.
type State string

// The states.
const (
	Open       State = "open"
	Balanced   State = "balanced"
	Unbalanced State = "unbalanced"
	// Partial: facts about it are lost, so that nothing can be said.
	Partial State = "partial"
)

// Pull is the balance of one announcement of one thing.
type Pull struct {
	// Pull is the id, 32 hex digits.
	Pull   string `json:"pull"`
	Source string `json:"source"`
	// Origin is the address of the object, or the id of the message.
	Origin string `json:"origin"`
	// Messages is how many upstream messages are one pull, where they are several.
	Messages uint32 `json:"messages,omitempty"`
	State    State  `json:"state"`
	// As is what it was announced as, End how fetching it ended, "" before, and
	// Code the reason of either, where there is one.
	As   string `json:"as"`
	End  string `json:"end,omitempty"`
	Code string `json:"code,omitempty"`
	// Frames of records that were stored, and those that were parsed.
	Frames       uint32 `json:"frames"`
	ParsedFrames uint32 `json:"parsed_frames"`
	Bytes        uint64 `json:"bytes"`
	RawBytes     uint64 `json:"raw_bytes"`
	Counts
	Destinations []Settled `json:"destinations,omitempty"`
	// Replays are what was delivered again, by replay.
	Replays []Settled `json:"replays,omitempty"`
	// Resolved entries of the quarantine: of what was quarantined, that much was
	// redriven or discarded.
	Resolved []Resolved `json:"resolved,omitempty"`
	Problems []string   `json:"problems,omitempty"`
	// Again is the pull that this one repeats, Job the job that did so. Only is the one
	// destination that its events went to, where it is not all.
	Again string `json:"again,omitempty"`
	Job   string `json:"job,omitempty"`
	Only  string `json:"only,omitempty"`
	// Stages say when facts of the stages were stored, where that is known; First and
	// Last are of all of them. Since is since when it is unbalanced.
	Stages []Times   `json:"stages,omitempty"`
	First  time.Time `json:"first,omitzero"`
	Last   time.Time `json:"last,omitzero"`
	Since  time.Time `json:"since,omitzero"`
}

// Times are when the first and the last fact of a stage were stored.
type Times struct {
	Stage string    `json:"stage"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

// Resolved is what became of quarantined records.
type Resolved struct {
	Stage       string `json:"stage"`
	Code        string `json:"code"`
	Destination string `json:"destination,omitempty"`
	Redriven    uint64 `json:"redriven"`
	Discarded   uint64 `json:"discarded"`
}

// Settled is what a destination owes and has done, for one pull or for all.
type Settled struct {
	Name string `json:"name"`
	// Expected events are those logged of the types that it reads or ever read.
	Expected uint64 `json:"expected"`
	// Confirmed by the sink, filtered by the destination's expression, skipped as too
	// old for its max_backlog, quarantined by code.
	Confirmed   uint64            `json:"confirmed"`
	Filtered    uint64            `json:"filtered"`
	Skipped     uint64            `json:"skipped,omitempty"`
	Quarantined map[string]uint64 `json:"quarantined,omitempty"`
	// Waiting events are not settled, and belong to open pulls.
	Waiting uint64 `json:"waiting,omitempty"`
	// Before counts events not settled by a destination that did not begin at the
	// start of the event log, or of types that it did not always read: they may all be
	// older than it or than the change is, so that nothing is said about missing ones.
	Before uint64 `json:"before,omitempty"`
	// Abandoned events were not settled when the destination was removed, or came later.
	Abandoned uint64 `json:"abandoned,omitempty"`
	// Missing events are not settled and ought to be; extra ones were settled
	// beyond what the event log has.
	Missing uint64 `json:"missing"`
	Extra   uint64 `json:"extra,omitempty"`
	// Replay is the job that had it delivered again, "" for the first time. First and Last
	// are when the facts were stored. Only a pull has these.
	Replay string    `json:"replay,omitempty"`
	First  time.Time `json:"first,omitzero"`
	Last   time.Time `json:"last,omitzero"`
}

// Destination is the balance of one destination over all pulls.
type Destination struct {
	Settled
	// Types it reads, empty for all, and the first EVENTS sequence.
	Types []string `json:"types"`
	First uint64   `json:"first"`
	// Removed: it is gone, and nothing is expected of it.
	Removed bool `json:"removed,omitempty"`
	// Frames of EVENTS that it settled.
	Frames uint64 `json:"frames"`
}

// Report adds up all that was added so far.
func (f *Fold) Report() Report {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := Report{
		Problems: []string{}, Pulls: make([]Pull, 0, len(f.order)), Destinations: make([]Destination, len(f.inDest)),
		Facts: maps.Clone(f.facts), Unread: f.unread,
		Total: Total{Announced: map[string]uint64{}, Ended: map[string]uint64{}},
	}
	for i, d := range f.inDest {
		r.Destinations[i] = d.report()
		if problem := d.problem(); problem != "" {
			r.Problems = append(r.Problems, problem)
		}
	}
	more := 0
	for _, p := range f.order {
		b := f.balance(p)
		r.Total.Add(&b, 1)
		for i := range b.Destinations {
			at := slices.IndexFunc(r.Destinations, func(d Destination) bool { return d.Name == b.Destinations[i].Name })
			r.Destinations[at].Add(&b.Destinations[i], 1)
		}
		r.Pulls = append(r.Pulls, b)
		for _, problem := range b.Problems {
			if len(r.Problems) < maxProblems {
				r.Problems = append(r.Problems, b.Name()+": "+problem)
				continue
			}
			more++
		}
	}
	r.Balanced = len(r.Problems) == 0
	if more > 0 {
		r.Problems = append(r.Problems, fmt.Sprintf("and %d more of the kind; see the pulls that are unbalanced", more))
	}
	return r
}

// report is all of a destination but the sums.
func (d *destination) report() Destination {
	return Destination{Settled: Settled{Name: d.name}, Types: append([]string{}, d.types...), First: d.first, Removed: d.removed, Frames: d.frames}
}

// problem is that of a destination that is not known. One that was only replayed to, e.g.
// with --to-file, reads nothing by itself and misses nothing.
func (d *destination) problem() string {
	if d.known || d.frames == 0 {
		return ""
	}
	return fmt.Sprintf("destination %s has settled events, but never said which it reads: what it misses cannot be told", d.name)
}

// Name says which pull, for a sentence.
func (b *Pull) Name() string {
	what := b.Origin
	if what == "" {
		what = "something"
	}
	if b.Source != "" {
		what += " of source " + b.Source
	}
	return what + " (pull " + b.Pull + ")"
}

// balance compares what went into each stage with what came out.
func (f *Fold) balance(p *pull) Pull { return f.balanced(p, f.lost(p)) }

// written is the balance as it was written last, and is in sums: what was unbalanced then
// stays so until it is judged again, whatever was forgotten since.
func (f *Fold) written(p *pull) Pull { return f.balanced(p, p.since == 0 && f.lost(p)) }

// balanced is the balance of a pull about which facts may be lost.
func (f *Fold) balanced(p *pull, lost bool) Pull {
	b := Pull{
		Pull: p.key.String(), Source: p.source, Origin: p.origin, Messages: p.messages, State: Balanced, As: label(p.as.String(), "AS_"), Code: p.endCode,
		Frames: p.frames, ParsedFrames: p.parsedFrames, Bytes: p.bytes, RawBytes: p.rawBytes,
		Counts: Counts{
			Records: p.cut, Events: p.events, Unique: p.unique, Duplicates: p.duplicate, Republished: p.republished, Twice: p.twice,
			Dropped: maps.Clone(p.dropped), Skipped: maps.Clone(p.skipped),
		},
	}
	var quarantined counts
	quarantined.add(p.refused)
	quarantined.add(p.unparsable)
	b.Quarantined = quarantined
	for _, t := range p.logged {
		b.Logged += uint64(max(t.n, 0))
	}
	if p.fetched {
		b.End = label(p.end.String(), "END_")
	}
	if b.Code == "" {
		b.Code = p.asCode
	}
	// Of a pull that was given up, or is under way, only parse knows the records.
	if !p.fetched || p.end == messages.Fetched_END_QUARANTINED {
		b.Records = max(p.cut, p.parsed+p.refused.sum())
	}
	switch {
	case !p.announced && p.past():
		b.As = ""
	case !p.announced:
		b.As = ""
		b.problem("it was worked on, but never announced")
	case !p.fetched && !p.ends():
		b.State = Open
	}
	if p.fetched {
		b.passed(p)
	}
	if p.twice > 0 {
		b.problem("%s entered the event log again", plural(p.twice, "event"))
	}
	by := messages.ParseReplay(p.job)
	b.Again, b.Job, b.Only = hex.EncodeToString(p.again), by.Job, by.Destination
	for _, d := range f.inDest {
		if b.Only == "" || b.Only == d.name {
			b.settle(p, d, f)
		}
	}
	if len(b.Problems) > 0 {
		b.State = Unbalanced
		if lost {
			b.isPartial()
		}
	}
	b.Resolved = slices.Clone(p.resolved)
	b.times(p)
	for i := range p.settled {
		if s := &p.settled[i]; s.replay != "" {
			b.Replays = append(b.Replays, s.report(f.inDest[s.destination].name))
		}
	}
	return b
}

// report is what was settled, as it is shown.
func (s *settled) report(destination string) Settled {
	return Settled{
		Name: destination, Replay: s.replay, Confirmed: s.confirmed, Filtered: s.filtered, Skipped: s.skipped, Quarantined: maps.Clone(s.quarantined),
		First: timeOf(s.at.first), Last: timeOf(s.at.last),
	}
}

// stageNames are those of the stages before deliver.
var stageNames = [announcedToRouted]string{"ingest", "fetch", "parse", "route"}

// times fills in when which stage was.
func (b *Pull) times(p *pull) {
	var all between
	for i, at := range p.at {
		if at.first != 0 {
			b.Stages = append(b.Stages, Times{stageNames[i], timeOf(at.first), timeOf(at.last)})
			all.merge(at)
		}
	}
	for i := range p.settled {
		all.merge(p.settled[i].at)
	}
	b.First, b.Last, b.Since = timeOf(all.first), timeOf(all.last), timeOf(p.since)
}

func timeOf(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

// LateFacts is for how long after a gap facts come of what was announced before it.
const LateFacts = 7 * 24 * time.Hour

// lost tells whether facts about a pull may be lost.
func (f *Fold) lost(p *pull) bool {
	first := p.first()
	if f.forgot != 0 && !p.announced && first < f.forgot+int64(LateFacts) {
		return true
	}
	return first != 0 && slices.ContainsFunc(f.gaps, func(gap int64) bool {
		return first < gap || !p.announced && first < gap+int64(LateFacts)
	})
}

// first is when the first fact was stored.
func (p *pull) first() int64 {
	var all between
	for _, at := range p.at {
		all.merge(at)
	}
	for i := range p.settled {
		all.merge(p.settled[i].at)
	}
	return all.first
}

// isPartial takes back what cannot be told.
func (b *Pull) isPartial() {
	b.State, b.Problems, b.Missing, b.Extra = Partial, nil, 0, 0
	for i := range b.Destinations {
		b.Destinations[i].Missing, b.Destinations[i].Extra = 0, 0
	}
}

// ends tells whether the announcement is all there is to it.
func (p *pull) ends() bool {
	switch p.as {
	case messages.Announced_AS_TEST, messages.Announced_AS_IGNORED, messages.Announced_AS_QUARANTINED:
		return true
	case messages.Announced_AS_UNKNOWN, messages.Announced_AS_OBJECT, messages.Announced_AS_EVENTS:
	}
	return false
}

// passed follows the records from fetch to the event log.
func (b *Pull) passed(p *pull) {
	b.compare(b.Records, p.parsed+p.refused.sum(), func(missing, extra uint64) {
		if missing > 0 {
			b.problem("%d of %s were fetched, but not parsed; of %s parse has seen %d",
				missing, plural(b.Records, "record"), plural(uint64(p.frames), "frame"), p.parsedFrames)
			return
		}
		b.problem("%s were parsed and %d refused of %d that were fetched", plural(p.parsed, "record"), p.refused.sum(), p.cut)
	})
	b.compare(p.parsed, p.events+p.skipped.sum()+p.unparsable.sum(), func(missing, extra uint64) {
		if missing > 0 {
			b.problem("%s went into parse and became neither event, nor skipped, nor quarantined", plural(missing, "record"))
			return
		}
		b.problem("parse made %s more than it got records", plural(extra, "event"))
	})
	b.compare(p.events, p.unique+p.duplicate, func(missing, extra uint64) {
		if missing > 0 {
			b.problem("%d of %s were parsed, but not routed", missing, plural(p.events, "event"))
			return
		}
		b.problem("%s were routed, but not parsed", plural(extra, "event"))
	})
}

// compare notes the difference between what went in and what came out.
func (b *Pull) compare(in, out uint64, say func(missing, extra uint64)) {
	switch {
	case in > out:
		b.Missing += in - out
		say(in-out, 0)
	case out > in:
		b.Extra += out - in
		say(0, out-in)
	}
}

// settle compares what a destination did with what the event log has for it.
func (b *Pull) settle(p *pull, d *destination, f *Fold) {
	s := Settled{Name: d.name}
	var expected int64
	changed := false
	for _, t := range p.logged {
		if w := f.wants(d, t.eventType); w != never {
			expected += t.n
			changed = changed || w == sometimes
		}
	}
	var done uint64
	for i := range p.settled {
		if has := &p.settled[i]; has.destination == d.index && has.replay == "" {
			s = has.report(d.name)
			done = has.sum()
		}
	}
	s.Expected = uint64(max(expected, 0))
	if s.Expected == 0 && done == 0 {
		return
	}
	switch {
	case !d.known: // the report says so once
	case s.Expected > done && d.removed:
		s.Abandoned = s.Expected - done
	case s.Expected > done && b.State == Open:
		s.Waiting = s.Expected - done
	case s.Expected > done && (d.first > 1 || changed):
		s.Before = s.Expected - done
	case s.Expected > done:
		s.Missing = s.Expected - done
		b.problem("destination %s has settled %d of %s", d.name, done, plural(s.Expected, "event"))
	case len(d.lists) == 0: // of one that is gone for longer than facts are kept
	case done > s.Expected && b.State != Open:
		s.Extra = done - s.Expected
		b.problem("destination %s has settled %s, but the event log has %d for it", d.name, plural(done, "event"), s.Expected)
	}
	b.Destinations = append(b.Destinations, s)
}

func (b *Pull) problem(format string, args ...any) {
	b.Problems = append(b.Problems, fmt.Sprintf(format, args...))
}

// Minus as the times of Add takes away what was added before.
const Minus = ^uint64(0)

// Add adds a pull, times 1 or [Minus].
func (t *Total) Add(b *Pull, times uint64) {
	t.Pulls += int(times)
	switch b.State {
	case Open:
		t.Open += int(times)
	case Unbalanced:
		t.Unbalanced += int(times)
	case Partial:
		t.Partial += int(times)
	case Balanced:
	}
	if b.As != "" {
		count(&t.Announced, b.As, "", times)
	}
	if b.End != "" {
		count(&t.Ended, b.End, "", times)
	}
	switch {
	case b.End == "quarantined" || b.End == "truncated":
		count(&t.PullsQuarantined, b.Code, b.End, times)
	case b.End == "skipped":
		count(&t.PullsSkipped, b.Code, b.End, times)
	case b.End != "":
	case b.As == "quarantined":
		count(&t.PullsQuarantined, b.Code, b.As, times)
	case b.As == "test" || b.As == "ignored":
		count(&t.PullsSkipped, b.Code, b.As, times)
	}
	t.Bytes += b.Bytes * times
	t.RawBytes += b.RawBytes * times
	t.Counts.add(&b.Counts, times)
	for _, r := range b.Resolved {
		t.Redriven += r.Redriven * times
		t.Discarded += r.Discarded * times
	}
}

// Join adds the totals of other pulls.
func (t *Total) Join(n *Total) {
	t.Pulls += n.Pulls
	t.Open += n.Open
	t.Unbalanced += n.Unbalanced
	t.Partial += n.Partial
	t.Bytes += n.Bytes
	t.RawBytes += n.RawBytes
	t.Redriven += n.Redriven
	t.Discarded += n.Discarded
	t.Counts.add(&n.Counts, 1)
	addTimes(&t.Announced, n.Announced, 1)
	addTimes(&t.Ended, n.Ended, 1)
	addTimes(&t.PullsSkipped, n.PullsSkipped, 1)
	addTimes(&t.PullsQuarantined, n.PullsQuarantined, 1)
}

// count counts one by code, or by word where there is no code.
func count(m *map[string]uint64, code, word string, times uint64) {
	if code == "" {
		code = word
	}
	addTimes(m, map[string]uint64{code: 1}, times)
}

// addTimes adds more to m, which may be nil. What comes to nothing is left out.
func addTimes(m *map[string]uint64, more map[string]uint64, times uint64) {
	if *m == nil && len(more) > 0 {
		*m = make(map[string]uint64, len(more))
	}
	for k, n := range more {
		if (*m)[k] += n * times; (*m)[k] == 0 {
			delete(*m, k)
		}
	}
}

func (c *Counts) add(n *Counts, times uint64) {
	c.Records += n.Records * times
	c.Events += n.Events * times
	c.Unique += n.Unique * times
	c.Duplicates += n.Duplicates * times
	c.Logged += n.Logged * times
	c.Republished += n.Republished * times
	c.Twice += n.Twice * times
	c.Missing += n.Missing * times
	c.Extra += n.Extra * times
	addTimes(&c.Dropped, n.Dropped, times)
	addTimes(&c.Skipped, n.Skipped, times)
	addTimes(&c.Quarantined, n.Quarantined, times)
}

// Add adds what was settled of other events, times 1 or [Minus].
func (s *Settled) Add(n *Settled, times uint64) {
	s.Expected += n.Expected * times
	s.Confirmed += n.Confirmed * times
	s.Filtered += n.Filtered * times
	s.Skipped += n.Skipped * times
	s.Waiting += n.Waiting * times
	s.Before += n.Before * times
	s.Abandoned += n.Abandoned * times
	s.Missing += n.Missing * times
	s.Extra += n.Extra * times
	addTimes(&s.Quarantined, n.Quarantined, times)
}

// label turns AS_OBJECT into object.
func label(enum, prefix string) string { return strings.ToLower(strings.TrimPrefix(enum, prefix)) }

func plural(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
