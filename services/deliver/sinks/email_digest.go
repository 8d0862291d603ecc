package sinks

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/messages"
)

const (
	// mostMailGroups bounds the groups that are kept apart; all others share one.
	mostMailGroups = 256
	// mostMailsTold bounds the lines that are known to have been mailed.
	mostMailsTold = 20_000
	// hurryFor is how long after Hurry events count as held when it was called: their
	// batches may have been on their way.
	hurryFor = time.Second
)

// mailTicket is one batch that waits for its mails.
type mailTicket struct {
	left     int // events that are held
	verdicts []Verdict
	stop     error // why of each verdict
	retry    error
	reject   error
	parts    []*mailPart
	gone     bool          // nobody waits for it any more
	done     chan struct{} // closed when left is 0
}

// settle gives the events of a part their verdict.
func (p *mailPart) settle(v Verdict, err error) {
	t := p.ticket
	for _, i := range p.events {
		t.verdicts[i] = v
	}
	switch v {
	case Stop:
		t.stop = err
	case Retry:
		t.retry = err
	case Reject:
		t.reject = err
	case Done, Split, TooLarge:
	}
	if t.left -= len(p.events); t.left == 0 {
		close(t.done)
	}
}

// result puts the verdicts together. What is not done or refused is read again from
// the log by whole frames, so one error says it for all.
func (t *mailTicket) result() Result {
	var res Result
	switch {
	case t.stop != nil:
		res.Verdict, res.Err = Stop, t.stop
	case t.retry != nil:
		res.Verdict, res.Err = Retry, t.retry
	case t.reject != nil && !slices.Contains(t.verdicts, Done):
		return Result{Verdict: Reject, Err: t.reject}
	}
	for i, v := range t.verdicts {
		switch {
		case v == res.Verdict:
		case v == Reject:
			res.Items = append(res.Items, Exception{Index: i, Verdict: v, Err: t.reject})
		case v == Retry:
			res.Items = append(res.Items, Exception{Index: i, Verdict: v, Err: t.retry})
		default:
			res.Items = append(res.Items, Exception{Index: i, Verdict: v})
		}
	}
	return res
}

// mailPart is the events of one batch in one digest.
type mailPart struct {
	ticket *mailTicket
	group  *mailGroup
	// letter is set once the digest is on its way.
	letter *mailLetter
	events []int32
	ids    idSum
	// listed are the lines that they are on.
	listed []mailListing
}

type mailListing struct {
	line  *mailLine
	count int
}

// mailLine is events that say the same.
type mailLine struct {
	mailNote
	// first and last are the times of the events, in Unix ns, 0 for unknown.
	first, last int64
	count       int
	// shown tells that the mail has this line, and not only its count.
	shown bool
}

// spans widens the times of a line.
func (l *mailLine) spans(first, last int64) {
	if l.first == 0 || first != 0 && first < l.first {
		l.first = first
	}
	l.last = max(l.last, last)
}

// mailMark tells notes apart that say something else.
type mailMark [16]byte

func (n *mailNote) mark() mailMark {
	sum := sha256.Sum256([]byte(n.kind + "\x00" + n.who + "\x00" + n.details))
	return mailMark(sum[:16])
}

// mailPile is events of one group: the first different ones as lines, the rest as a count.
type mailPile struct {
	lines map[mailMark]*mailLine
	order []*mailLine // as they came
	count int
	ids   idSum
	// source of all events; mixed when they have several.
	source string
	mixed  bool
}

// add counts an event and returns its line, nil when there is no room for one.
func (p *mailPile) add(n *mailNote, m mailMark, id messages.ID, most int) *mailLine {
	p.mixed = p.mixed || p.count > 0 && p.source != n.source
	p.source = n.source
	p.count++
	p.ids.add(id)
	l := p.lines[m]
	if l == nil {
		if len(p.lines) >= most {
			return nil
		}
		if p.lines == nil {
			p.lines = map[mailMark]*mailLine{}
		}
		l = &mailLine{mailNote: *n, first: n.time, last: n.time}
		p.lines[m] = l
		p.order = append(p.order, l)
	}
	l.count++
	l.spans(n.time, n.time)
	return l
}

// drop takes the events of a part out again.
func (p *mailPile) drop(gone *mailPart) {
	p.count -= len(gone.events)
	p.ids.leave(gone.ids)
	for _, x := range gone.listed {
		if x.line.count -= x.count; x.line.count == 0 {
			delete(p.lines, x.line.mark())
			p.order = slices.DeleteFunc(p.order, func(l *mailLine) bool { return l == x.line })
		}
	}
}

// absorb adds what other holds.
func (p *mailPile) absorb(other *mailPile, most int) {
	if p.count == 0 {
		*p = *other
		return
	}
	p.mixed = p.mixed || other.mixed || other.count > 0 && p.source != other.source
	p.count += other.count
	p.ids.join(other.ids)
	for m, l := range other.lines {
		switch mine := p.lines[m]; {
		case mine != nil:
			mine.count += l.count
			mine.spans(l.first, l.last)
		case len(p.lines) < most:
			p.lines[m] = l
			p.order = append(p.order, l)
		}
	}
}

// idSum is the sum of ids, which is the same in whatever order they came.
type idSum struct{ high, low uint64 }

func (s *idSum) add(id messages.ID) {
	s.join(idSum{binary.BigEndian.Uint64(id[:8]), binary.BigEndian.Uint64(id[8:])})
}

func (s *idSum) join(t idSum) {
	var carry uint64
	s.low, carry = bits.Add64(s.low, t.low, 0)
	s.high, _ = bits.Add64(s.high, t.high, carry)
}

func (s *idSum) leave(t idSum) {
	var borrow uint64
	s.low, borrow = bits.Sub64(s.low, t.low, 0)
	s.high, _ = bits.Sub64(s.high, t.high, borrow)
}

// mailGroup is the events that come in one mail.
type mailGroup struct {
	key    string
	labels []string // "source: opswat", in the order of group_by
	// fresh are events that are held; again are confirmed ones that repeat what was
	// mailed.
	fresh, again mailPile
	parts        []*mailPart
	// since is when the first of fresh came, last when the group was last mailed.
	since, last time.Time
	// told is when what was mailed last.
	told map[mailMark]time.Time
}

// mailSection is what a letter has of one group.
type mailSection struct {
	group        *mailGroup
	fresh, again mailPile
	parts        []*mailPart
}

// mailLetter is a mail that is on its way.
type mailLetter struct {
	sections []mailSection
	raw      []byte
	// to are the recipients that have neither taken nor refused it; taken tells that
	// one has taken it.
	to      []string
	taken   bool
	created time.Time

	sending bool
	tries   int
	// tried is when the last attempt failed, next when the next may begin.
	tried, next time.Time
}

// digests are the groups and what is due when. A lock of the sink guards them.
type digests struct {
	config EmailConfig
	groups map[string]*mailGroup
	told   int // marks in all groups
	letter *mailLetter
	// failing is why the server does not take the letter, for now.
	failing error
	hurried time.Time
	// sent are the times of the mails of the last hour.
	sent []time.Time
	// capped tells that digests wait for the hour to pass.
	capped bool
	// resume is when counts that nobody waits for may bring a mail again, after the
	// server took none.
	resume time.Time
}

func newDigests(cfg EmailConfig) digests {
	return digests{config: cfg, groups: map[string]*mailGroup{}}
}

// take adds a selected event. It returns false for one that need not be held, as it
// repeats what was mailed.
func (d *digests) take(t *mailTicket, index int, id messages.ID, n mailNote, now time.Time) bool {
	g := d.groupOf(&n, now)
	m := n.mark()
	if at, ok := g.told[m]; ok && now.Sub(at) < d.config.RepeatInterval {
		g.again.add(&n, m, id, d.config.MaxListed)
		return false
	}
	if len(g.parts) == 0 {
		g.since = now
	}
	var p *mailPart
	for _, mine := range t.parts {
		if mine.group == g {
			p = mine
		}
	}
	if p == nil {
		p = &mailPart{ticket: t, group: g}
		t.parts = append(t.parts, p)
		g.parts = append(g.parts, p)
	}
	p.events = append(p.events, int32(index))
	p.ids.add(id)
	t.left++
	if l := g.fresh.add(&n, m, id, d.config.MaxListed); l != nil {
		if last := len(p.listed) - 1; last >= 0 && p.listed[last].line == l {
			p.listed[last].count++
		} else {
			p.listed = append(p.listed, mailListing{l, 1})
		}
	}
	return true
}

// groupOf finds or makes the group of an event.
func (d *digests) groupOf(n *mailNote, now time.Time) *mailGroup {
	var labels []string
	for _, by := range d.config.GroupBy {
		value := ""
		switch by {
		case EmailBySource:
			value = n.source
		case EmailByType:
			value = n.kind
		case EmailByAccount:
			value = n.account
		case EmailByRegion:
			value = n.region
		}
		if value != "" {
			labels = append(labels, string(by)+": "+value)
		}
	}
	key := strings.Join(labels, "\n")
	if g := d.groups[key]; g != nil {
		return g
	}
	if len(d.groups) >= mostMailGroups {
		d.forget(now)
	}
	if len(d.groups) >= mostMailGroups {
		key, labels = "all others", []string{"all others"}
		if g := d.groups[key]; g != nil {
			return g
		}
	}
	g := &mailGroup{key: key, labels: labels}
	d.groups[key] = g
	return g
}

// forget drops what there is no need to know any more.
func (d *digests) forget(now time.Time) {
	for key, g := range d.groups {
		for m, at := range g.told {
			if now.Sub(at) >= d.config.RepeatInterval {
				delete(g.told, m)
				d.told--
			}
		}
		if len(g.parts) == 0 && g.again.count == 0 && len(g.told) == 0 && now.Sub(g.last) >= d.config.GroupInterval && !d.sends(g) {
			delete(d.groups, key)
		}
	}
}

func (d *digests) sends(g *mailGroup) bool {
	return d.letter != nil && slices.ContainsFunc(d.letter.sections, func(s mailSection) bool { return s.group == g })
}

// due is when a group is to be mailed; false: there is nothing to mail.
func (d *digests) due(g *mailGroup) (time.Time, bool) {
	switch {
	case len(g.parts) > 0:
		if !g.since.After(d.hurried.Add(hurryFor)) {
			return g.since, true
		}
		at := g.since.Add(d.config.GroupWait)
		if next := g.last.Add(d.config.GroupInterval); next.After(at) {
			at = next
		}
		return at, true
	case g.again.count > 0:
		at := g.last.Add(d.config.RepeatInterval)
		if d.resume.After(at) {
			at = d.resume
		}
		return at, true
	}
	return time.Time{}, false
}

// next returns the letter to send now, or for how long there is none.
func (d *digests) next(now time.Time) (*mailLetter, time.Duration) {
	if l := d.letter; l != nil {
		if l.next.After(now) && !d.hurried.After(l.tried) {
			return nil, l.next.Sub(now)
		}
		l.sending = true
		return l, 0
	}
	type dated struct {
		group *mailGroup
		at    time.Time
	}
	var due []dated
	wait := time.Hour
	for _, g := range d.groups {
		at, ok := d.due(g)
		switch {
		case ok && !at.After(now):
			due = append(due, dated{g, at})
		case ok:
			wait = min(wait, at.Sub(now))
		}
	}
	if len(due) == 0 {
		return nil, wait
	}
	d.sent = slices.DeleteFunc(d.sent, func(at time.Time) bool { return now.Sub(at) >= time.Hour })
	free := d.config.MaxPerHour - len(d.sent)
	if d.capped = free <= 0; d.capped {
		return nil, d.sent[0].Add(time.Hour).Sub(now)
	}
	slices.SortFunc(due, func(a, b dated) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return strings.Compare(a.group.key, b.group.key)
	})
	if len(due) <= free {
		due = due[:1]
	}
	l := &mailLetter{to: slices.Clone(d.config.To), created: now, sending: true}
	for _, x := range due {
		g := x.group
		l.sections = append(l.sections, mailSection{group: g, fresh: g.fresh, again: g.again, parts: g.parts})
		for _, p := range g.parts {
			p.letter = l
		}
		g.fresh, g.again, g.parts = mailPile{}, mailPile{}, nil
	}
	d.letter = l
	return l, 0
}

// accepted notes that the server has taken the letter.
func (d *digests) accepted(l *mailLetter, now time.Time) {
	d.sent = append(d.sent, now)
	for i := range l.sections {
		s := &l.sections[i]
		s.group.last = now
		for _, p := range []*mailPile{&s.fresh, &s.again} {
			for m, l := range p.lines {
				if l.shown {
					d.tell(s.group, m, now)
				}
			}
		}
	}
	d.close(l, Done, nil)
}

// tell remembers that something was mailed. When too much is to be remembered, what
// is not may be mailed again.
func (d *digests) tell(g *mailGroup, m mailMark, now time.Time) {
	if d.config.RepeatInterval == 0 {
		return
	}
	if _, known := g.told[m]; !known {
		if d.told >= mostMailsTold {
			d.forget(now)
		}
		if d.told >= mostMailsTold {
			return
		}
		d.told++
	}
	if g.told == nil {
		g.told = map[mailMark]time.Time{}
	}
	g.told[m] = now
}

// close gives the events of the letter their verdict.
func (d *digests) close(l *mailLetter, v Verdict, err error) {
	for i := range l.sections {
		for _, p := range l.sections[i].parts {
			p.settle(v, err)
		}
	}
	d.letter, d.failing = nil, nil
}

// giveBack gives all that is held back to the log.
func (d *digests) giveBack(v Verdict, err error, now time.Time) {
	d.resume = now.Add(emailPatience)
	d.keepRepeats(d.letter)
	d.close(d.letter, v, err)
	for _, g := range d.groups {
		for _, p := range g.parts {
			p.settle(v, err)
		}
		g.fresh, g.parts = mailPile{}, nil
	}
}

// keepRepeats puts the repeats of a letter that will not be sent back into their
// groups: their events were confirmed.
func (d *digests) keepRepeats(l *mailLetter) {
	for i := range l.sections {
		s := &l.sections[i]
		s.group.again.absorb(&s.again, d.config.MaxListed)
	}
}

// abandon lets go of a batch that nobody waits for any more; its events come again.
// What is being sent goes on, what waits for another attempt with no other batch does not.
func (d *digests) abandon(t *mailTicket) {
	t.gone = true
	for _, p := range t.parts {
		if p.letter == nil {
			p.group.fresh.drop(p)
			p.group.parts = slices.DeleteFunc(p.group.parts, func(x *mailPart) bool { return x == p })
		}
	}
	if l := d.letter; l != nil && !l.sending {
		d.dropOrphan(l)
	}
}

// dropOrphan gives up a letter that failed and that no batch waits for any more.
func (d *digests) dropOrphan(l *mailLetter) {
	if l.taken {
		return
	}
	parts := 0
	for i := range l.sections {
		for _, p := range l.sections[i].parts {
			if parts++; !p.ticket.gone {
				return
			}
		}
	}
	if parts > 0 {
		d.keepRepeats(l)
		d.letter, d.failing = nil, nil
	}
}

// mailPause is the pause after the nth failure of a letter, n from 1: doubling, with
// a jitter down to the half.
func mailPause(n int) time.Duration {
	pause := time.Minute
	if n < 7 {
		pause = time.Second << (n - 1)
	}
	return pause/2 + rand.N(pause/2+1) //nolint:gosec // no secret depends on it
}
