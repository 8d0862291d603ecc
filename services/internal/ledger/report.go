package ledger

import (
	"fmt"
	"maps"
	"strings"

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
	Counts
}

// State of a pull.
type State string

// The states.
const (
	Open       State = "open"
	Balanced   State = "balanced"
	Unbalanced State = "unbalanced"
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
	Problems     []string  `json:"problems,omitempty"`
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
		Total: Total{Pulls: len(f.order), Announced: map[string]uint64{}, Ended: map[string]uint64{}},
	}
	// wanted[d][t]: whether destination d reads events of type t.
	wanted := make([][]reading, len(f.inDest))
	for i, d := range f.inDest {
		r.Destinations[i] = Destination{Settled: Settled{Name: d.name}, Types: append([]string{}, d.types...), First: d.first, Removed: d.removed, Frames: d.seen.count()}
		wanted[i] = make([]reading, len(f.inType))
		for t, name := range f.inType {
			wanted[i][t] = d.reads(name)
		}
		if !d.known {
			r.Problems = append(r.Problems, fmt.Sprintf(
				"destination %s has settled events, but never said which it reads: what it misses cannot be told", d.name))
		}
	}
	more := 0
	for _, p := range f.order {
		b := f.balance(p, wanted)
		r.add(p, &b)
		r.Pulls = append(r.Pulls, b)
		for _, problem := range b.Problems {
			if len(r.Problems) < maxProblems {
				r.Problems = append(r.Problems, b.name()+": "+problem)
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

// name says which pull, for a sentence.
func (b *Pull) name() string {
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
func (f *Fold) balance(p *pull, wanted [][]reading) Pull {
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
	for i, d := range f.inDest {
		b.settle(p, d, wanted[i])
	}
	if len(b.Problems) > 0 {
		b.State = Unbalanced
	}
	return b
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
func (b *Pull) settle(p *pull, d *destination, wanted []reading) {
	s := Settled{Name: d.name}
	var expected int64
	changed := false
	for _, t := range p.logged {
		if w := wanted[t.eventType]; w != never {
			expected += t.n
			changed = changed || w == sometimes
		}
	}
	s.Expected = uint64(max(expected, 0))
	var done uint64
	for i := range p.settled {
		if has := &p.settled[i]; has.destination == d.index {
			s.Confirmed, s.Filtered, s.Skipped, s.Quarantined = has.confirmed, has.filtered, has.skipped, maps.Clone(has.quarantined)
			done = has.sum()
		}
	}
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

// add adds a pull to the totals.
func (r *Report) add(p *pull, b *Pull) {
	t := &r.Total
	switch b.State {
	case Open:
		t.Open++
	case Unbalanced:
		t.Unbalanced++
	case Balanced:
	}
	if p.announced {
		t.Announced[b.As]++
	}
	if p.fetched {
		t.Ended[b.End]++
	}
	switch {
	case p.fetched && (p.end == messages.Fetched_END_QUARANTINED || p.end == messages.Fetched_END_TRUNCATED):
		count(&t.PullsQuarantined, p.endCode, b.End)
	case p.fetched && p.end == messages.Fetched_END_SKIPPED:
		count(&t.PullsSkipped, p.endCode, b.End)
	case p.fetched:
	case p.as == messages.Announced_AS_QUARANTINED:
		count(&t.PullsQuarantined, p.asCode, b.As)
	case p.ends():
		count(&t.PullsSkipped, p.asCode, b.As)
	}
	t.Bytes += b.Bytes
	t.RawBytes += b.RawBytes
	t.add(&b.Counts)
	for i := range b.Destinations {
		for j := range r.Destinations {
			if r.Destinations[j].Name == b.Destinations[i].Name {
				r.Destinations[j].add(&b.Destinations[i])
			}
		}
	}
}

// count counts one by code, or by word where there is no code.
func count(m *map[string]uint64, code, word string) {
	if code == "" {
		code = word
	}
	(*counts)(m).add(map[string]uint64{code: 1})
}

func (c *Counts) add(n *Counts) {
	c.Records += n.Records
	c.Events += n.Events
	c.Unique += n.Unique
	c.Duplicates += n.Duplicates
	c.Logged += n.Logged
	c.Republished += n.Republished
	c.Twice += n.Twice
	c.Missing += n.Missing
	c.Extra += n.Extra
	(*counts)(&c.Dropped).add(n.Dropped)
	(*counts)(&c.Skipped).add(n.Skipped)
	(*counts)(&c.Quarantined).add(n.Quarantined)
}

func (s *Settled) add(n *Settled) {
	s.Expected += n.Expected
	s.Confirmed += n.Confirmed
	s.Filtered += n.Filtered
	s.Skipped += n.Skipped
	s.Waiting += n.Waiting
	s.Before += n.Before
	s.Abandoned += n.Abandoned
	s.Missing += n.Missing
	s.Extra += n.Extra
	(*counts)(&s.Quarantined).add(n.Quarantined)
}

// label turns AS_OBJECT into object.
func label(enum, prefix string) string { return strings.ToLower(strings.TrimPrefix(enum, prefix)) }

func plural(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
