package ledger

import (
	"slices"

	"github.com/penstock/penstock/messages"
)

// counts are numbers by code, rule or reason.
type counts map[string]uint64

// add adds more to c, which may be nil.
func (c *counts) add(more map[string]uint64) {
	if *c == nil && len(more) > 0 {
		*c = make(counts, len(more))
	}
	for k, n := range more {
		(*c)[k] += n
	}
}

// subtract takes away what was added before.
func (c *counts) subtract(less map[string]uint64) {
	for k, n := range less {
		if (*c)[k] -= n; (*c)[k] == 0 {
			delete(*c, k)
		}
	}
}

func (c counts) sum() (n uint64) {
	for _, x := range c {
		n += x
	}
	return n
}

// pull is what is known of one announcement.
type pull struct {
	key            messages.ID
	source, origin string

	announced bool
	as        messages.Announced_As
	asCode    string
	messages  uint32 // how many it is, 0 for one

	fetched bool
	end     messages.Fetched_End
	endCode string
	frames  uint32
	cut     uint64 // records, those refused by fetch included
	refused counts
	bytes   uint64
	// rawBytes after decompression.
	rawBytes uint64

	parsedFrames        uint32
	parsed, events      uint64
	skipped, unparsable counts
	unique, duplicate   uint64
	republished, twice  uint64
	dropped             counts
	logged              []typed
	settled             []settled
	open                *progress // nil once every record is accounted for
	closed              closed    // what is left of it then

	// again is the pull that it repeats, job who does so.
	again []byte
	job   string
	// at is when the facts of the stages before deliver were stored.
	at       [announcedToRouted]between
	resolved []Resolved

	// The rest is there with a store only.
	row        int64
	details    []byte // an encoded messages.Origin
	messageIDs []byte // not written yet
	since      int64  // unbalanced since, Unix ns; 0 when it is not
	used       bool   // changed since it was written
	touched    int64  // when the first fact of that was stored
	before     *Pull
}

// Stages before deliver that leave facts of a pull.
const (
	announced = iota
	fetched
	parsed
	routed
	announcedToRouted
)

// between is the time of the first and of the last fact, Unix ns.
type between struct{ first, last int64 }

func (b *between) add(now int64) {
	if now == 0 {
		return
	}
	if b.first == 0 || now < b.first {
		b.first = now
	}
	b.last = max(b.last, now)
}

func (b *between) merge(more between) {
	b.add(more.first)
	b.add(more.last)
}

// progress is what is needed only while a pull is under way.
type progress struct {
	frames map[uint32]*messages.Parsed // nil for those of a pull that was closed before
	// unique and duplicate have no ordinal in common: what was unique once stays
	// so when its frame comes again.
	unique, duplicate ordinals
}

// closed are the sets of progress, packed. Both the frames and the ordinals are
// mostly all there are, and pack to a few bytes.
type closed struct{ frames, routed, duplicate []byte }

// typed counts the events of a type that entered the event log.
type typed struct {
	eventType int
	n         int64
}

// settled is what a destination did with the events of a pull, the first time or for
// a replay.
type settled struct {
	destination                  int
	replay                       string
	at                           between
	confirmed, filtered, skipped uint64
	quarantined                  counts
}

func (s *settled) sum() uint64 { return s.confirmed + s.filtered + s.skipped + s.quarantined.sum() }

// addParsed counts once by frame. Where the same frame was parsed to different
// ends, as after a redrive, the one with more events holds.
func (p *pull) addParsed(n *messages.Parsed) {
	p.reopen()
	if before, known := p.open.frames[n.GetFrameNo()]; known {
		if before == nil || n.GetEvents() <= before.GetEvents() {
			return
		}
		p.parsedFrames--
		p.parsed -= before.GetRecords()
		p.events -= before.GetEvents()
		p.skipped.subtract(before.GetSkipped())
		p.unparsable.subtract(before.GetQuarantined())
	}
	if p.open.frames == nil {
		p.open.frames = map[uint32]*messages.Parsed{}
	}
	p.open.frames[n.GetFrameNo()] = &messages.Parsed{ // without samples of drift
		FrameNo: n.GetFrameNo(), Records: n.GetRecords(), Events: n.GetEvents(), Skipped: n.GetSkipped(), Quarantined: n.GetQuarantined(),
	}
	p.parsedFrames++
	p.parsed += n.GetRecords()
	p.events += n.GetEvents()
	p.skipped.add(n.GetSkipped())
	p.unparsable.add(n.GetQuarantined())
}

// addRouted is called once by frame; the same ordinal may come in several.
func (p *pull) addRouted(n *messages.RoutedPull) {
	p.reopen()
	known := p.open
	var at uint64
	for _, d := range n.GetUnique() {
		at += uint64(d) // differences wrap, and back again
		switch {
		case !known.unique.add(at):
			p.twice++
			p.republished++
		case known.duplicate.remove(at): // a repeat of its frame was heard of first
			p.duplicate--
			p.unique++
			p.republished++
		default:
			p.unique++
		}
	}
	at = 0
	for _, d := range n.GetDuplicate() {
		at += uint64(d) // differences wrap, and back again
		if known.unique.has(at) || !known.duplicate.add(at) {
			p.republished++
			continue
		}
		p.duplicate++
	}
	p.dropped.add(n.GetDropped())
}

// log notes events that entered the event log.
func (p *pull) log(eventType int, n int64) {
	if n == 0 {
		return
	}
	for i := range p.logged {
		if p.logged[i].eventType == eventType {
			p.logged[i].n += n
			return
		}
	}
	p.logged = append(p.logged, typed{eventType, n})
}

// maxReplays bounds for how many replays a pull says one by one what they did with it.
const maxReplays = 50

// addDelivered is called once by frame, destination and replay.
func (p *pull) addDelivered(destination int, replay string, now int64, n *messages.DeliveredPull) {
	i := slices.IndexFunc(p.settled, func(s settled) bool { return s.destination == destination && s.replay == replay })
	if i < 0 {
		if replay != "" && len(p.settled) >= maxReplays {
			return
		}
		i = len(p.settled)
		p.settled = append(p.settled, settled{destination: destination, replay: replay})
	}
	p.settled[i].at.add(now)
	p.settled[i].add(n)
}

// own makes what was settled for the job that p is a pull of the first time: it is that for
// p alone. The job may tell of p after its first events were delivered.
func (p *pull) own() {
	job := messages.ParseReplay(p.job).Job
	if job == "" {
		return
	}
	for i := 0; i < len(p.settled); i++ {
		s := p.settled[i]
		if s.replay != job {
			continue
		}
		first := slices.IndexFunc(p.settled, func(o settled) bool { return o.destination == s.destination && o.replay == "" })
		if first < 0 {
			p.settled[i].replay = ""
			continue
		}
		into := &p.settled[first]
		into.at.merge(s.at)
		into.confirmed, into.filtered, into.skipped = into.confirmed+s.confirmed, into.filtered+s.filtered, into.skipped+s.skipped
		into.quarantined.add(s.quarantined)
		p.settled = slices.Delete(p.settled, i, i+1)
		i--
	}
}

// maxResolved bounds for how many kinds of entries a pull says what became of them.
const maxResolved = 50

// past tells whether nothing is known of p but what was done with it long after: it was sent
// again, or what was in quarantine came to an end, when the ledger had forgotten the rest.
func (p *pull) past() bool {
	return !p.fetched && p.parsedFrames == 0 && p.parsed == 0 && p.unique+p.duplicate == 0 &&
		!slices.ContainsFunc(p.settled, func(s settled) bool { return s.replay == "" })
}

// addResolved is called once by entry.
func (p *pull) addResolved(n *messages.Resolved) {
	i := slices.IndexFunc(p.resolved, func(r Resolved) bool {
		return r.Stage == n.GetStage() && r.Code == n.GetCode() && r.Destination == n.GetDestination()
	})
	if i < 0 {
		if len(p.resolved) >= maxResolved {
			return
		}
		i = len(p.resolved)
		p.resolved = append(p.resolved, Resolved{Stage: n.GetStage(), Code: n.GetCode(), Destination: n.GetDestination()})
	}
	switch r := &p.resolved[i]; n.GetHow() {
	case messages.Resolved_HOW_REDRIVEN:
		r.Redriven += max(1, n.GetRecords())
	case messages.Resolved_HOW_DISCARDED:
		r.Discarded += max(1, n.GetRecords())
	case messages.Resolved_HOW_UNKNOWN:
	}
}

func (s *settled) add(n *messages.DeliveredPull) {
	s.confirmed += n.GetConfirmed()
	s.filtered += n.GetFiltered()
	s.skipped += n.GetSkipped()
	s.quarantined.add(n.GetQuarantined())
}

// close packs the sets of a pull when every one of its records is an event that
// was routed, or was skipped: then all that is to come is repeats, which are few.
// What was quarantined may be redriven, so such a pull stays as it is.
func (p *pull) close() {
	if p.open == nil || !p.fetched {
		return
	}
	if p.cut != p.parsed || p.parsed != p.events+p.skipped.sum() || p.events != p.unique+p.duplicate {
		return
	}
	frames, routed := &ordinals{}, &p.open.unique
	for no := range p.open.frames {
		frames.add(uint64(no))
	}
	p.closed = closed{frames: frames.pack(), duplicate: p.open.duplicate.pack()}
	p.open.duplicate.each(func(n uint64) { routed.add(n) })
	p.closed.routed = routed.pack()
	p.open = nil
}

// reopen is the reverse of close.
func (p *pull) reopen() {
	if p.open != nil {
		return
	}
	p.open = &progress{frames: map[uint32]*messages.Parsed{}, unique: *unpack(p.closed.routed), duplicate: *unpack(p.closed.duplicate)}
	unpack(p.closed.frames).each(func(no uint64) { p.open.frames[uint32(no)] = nil })
	p.open.duplicate.each(func(n uint64) { p.open.unique.remove(n) })
	p.closed = closed{}
}
