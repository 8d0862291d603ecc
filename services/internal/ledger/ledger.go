// Package ledger adds up the facts of all stages, so that it can be said of every
// object and message that was announced what became of each of its records.
//
//	records cut = skipped + quarantined + unique + duplicates
//	events logged = unique - dropped by rule
//	events logged, of a destination's types = confirmed + filtered + skipped + quarantined there
//
// A fact may come several times and in any order, and counts once; penstock.proto
// says by what. A record is at most one event.
package ledger

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/topology"
)

// Fold adds up facts. Its methods may be called concurrently.
//
// It keeps some hundred bytes for each pull, and a bit for each frame. While
// a pull is under way, it keeps two bits for each of its records as well. Once the
// pull has been routed to the last record, those shrink to runs. With a [Store] all
// that has not changed for a while is there, and not in memory.
type Fold struct {
	mu   sync.Mutex
	kept kept
	now  int64 // when the facts that are being added were stored, Unix ns; 0 unknown
	// gaps are when the first message behind each gap of the ledger was stored, forgot is
	// up to when pulls were deleted; Unix ns.
	gaps   []int64
	forgot int64
	pulls  map[messages.ID]*pull
	order  []*pull // by first sight; not with a store
	sets   map[string]*frames
	// resolved entries of the quarantine; with a store only those it does not have yet.
	resolved map[string]Resolution
	dests    map[string]*destination
	inDest   []*destination // by first sight
	types    map[string]int
	inType   []string
	names    map[string]string
	// facts by stage, and how many of them were of no kind that we know.
	facts  map[string]uint64
	unread uint64
}

// destination is one reader of the event log.
type destination struct {
	name  string
	index int
	known bool // it has said what it reads
	types []string
	first uint64
	// lists are all lists of types that it ever had, removed that it is gone.
	lists   [][]string
	removed bool
	frames  uint64    // of EVENTS that it settled
	reading []reading // by type, 0 where it was not asked yet
	dirty   bool
}

// New returns an empty fold.
func New() *Fold {
	return &Fold{
		pulls: map[messages.ID]*pull{}, sets: map[string]*frames{}, resolved: map[string]Resolution{}, dests: map[string]*destination{},
		types: map[string]int{}, names: map[string]string{}, facts: map[string]uint64{},
	}
}

// Add adds the facts of a stage.
func (f *Fold) Add(stage string, facts *messages.Facts) { f.AddAt(time.Time{}, stage, facts) }

// AddAt adds the facts of a stage that were stored at a time.
func (f *Fold) AddAt(stored time.Time, stage string, facts *messages.Facts) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = 0
	if !stored.IsZero() {
		f.now = stored.UnixNano()
	}
	f.facts[f.name(stage)] += uint64(len(facts.GetFacts()))
	for _, fact := range facts.GetFacts() {
		switch kind := fact.GetKind().(type) {
		case *messages.Fact_Announced:
			f.announced(kind.Announced)
		case *messages.Fact_Fetched:
			f.fetched(kind.Fetched)
		case *messages.Fact_Parsed:
			p := f.pull(kind.Parsed.GetPull())
			p.at[parsed].add(f.now)
			p.addParsed(kind.Parsed)
			p.close()
		case *messages.Fact_Routed:
			f.addRouted(kind.Routed)
		case *messages.Fact_Delivered:
			f.addDelivered(kind.Delivered)
		case *messages.Fact_Destination:
			if f.destination(kind.Destination.GetName()).says(kind.Destination) {
				f.kept.rejudge = true
			}
		case *messages.Fact_Resolved:
			f.addResolved(kind.Resolved)
		default:
			f.unread++
		}
	}
}

// pull returns the state of the pull with this id, new or not.
func (f *Fold) pull(id []byte) *pull {
	var key messages.ID
	if len(id) == len(key) {
		key = messages.ID(id)
	} else {
		key = messages.NewID(id)
	}
	p := f.pulls[key]
	if p == nil && f.kept.store != nil {
		p = f.load(key)
	}
	if p == nil {
		p = &pull{key: key, open: &progress{}}
		f.pulls[key] = p
		if f.kept.store == nil {
			f.order = append(f.order, p)
		}
	}
	f.touch(p)
	return p
}

func (f *Fold) destination(name string) *destination {
	d := f.dests[name]
	if d == nil {
		d = &destination{name: name, index: len(f.inDest), dirty: true}
		f.dests[name] = d
		f.inDest = append(f.inDest, d)
	}
	return d
}

// typeOf numbers the event types.
func (f *Fold) typeOf(eventType string) int {
	i, ok := f.types[eventType]
	if !ok {
		i = len(f.inType)
		f.types[eventType] = i
		f.inType = append(f.inType, eventType)
	}
	return i
}

// name keeps one copy of a text that comes with many facts.
func (f *Fold) name(s string) string {
	if known, ok := f.names[s]; ok {
		return known
	}
	f.names[s] = s
	return s
}

// asRank orders what an upstream message was announced as: where its redelivery
// was judged otherwise, e.g. after a change of the allow-list, what led further
// holds, in whatever order the facts come.
var asRank = map[messages.Announced_As]int{
	messages.Announced_AS_TEST: 1, messages.Announced_AS_IGNORED: 2, messages.Announced_AS_QUARANTINED: 3,
	messages.Announced_AS_OBJECT: 4, messages.Announced_AS_EVENTS: 5,
}

func (f *Fold) announced(a *messages.Announced) {
	p := f.pull(a.GetOrigin().GetPull())
	p.at[announced].add(f.now)
	if len(a.GetMessageIds()) > 0 && f.kept.store != nil {
		p.messageIDs = a.GetMessageIds()
	}
	if p.announced && asRank[a.GetAs()] <= asRank[p.as] {
		return
	}
	p.announced, p.as, p.asCode = true, a.GetAs(), f.name(a.GetCode())
	p.source, p.origin, p.messages = f.name(a.GetOrigin().GetSource()), originName(a), a.GetMessages()
	p.again, p.job = bytes.Clone(a.GetAgain()), a.GetJob()
	p.own()
	if f.kept.store != nil {
		p.details = detailsOf(a.GetOrigin())
	}
}

// originName is what a person would call it.
func originName(a *messages.Announced) string {
	o := a.GetOrigin()
	if a.GetMessages() > 1 {
		return fmt.Sprintf("%d messages", a.GetMessages())
	}
	if o.GetBucket() == "" && o.GetKey() == "" && o.GetMessageId() == "" && o.GetApi() != "" {
		return strings.TrimSpace(o.GetApi() + " " + o.GetResource())
	}
	if o.GetBucket() == "" && o.GetKey() == "" {
		return "message " + o.GetMessageId()
	}
	name := "s3://" + o.GetBucket() + "/" + o.GetKey()
	if o.GetVersion() != "" {
		name += "?versionId=" + o.GetVersion()
	}
	return name
}

// endRank: where a pull was read several times, the most complete reading holds.
var endRank = map[messages.Fetched_End]int{
	messages.Fetched_END_QUARANTINED: 1, messages.Fetched_END_TRUNCATED: 2, messages.Fetched_END_SKIPPED: 3, messages.Fetched_END_COMPLETE: 4,
}

func (f *Fold) fetched(n *messages.Fetched) {
	p := f.pull(n.GetPull())
	p.at[fetched].add(f.now)
	if p.fetched {
		rank, before := endRank[n.GetEnd()], endRank[p.end]
		if rank < before || rank == before && n.GetRecords() <= p.cut {
			return
		}
	}
	p.fetched, p.end, p.endCode = true, n.GetEnd(), f.name(n.GetCode())
	p.frames, p.cut, p.bytes, p.rawBytes = n.GetFrames(), n.GetRecords(), n.GetBytes(), n.GetRawBytes()
	p.refused = n.GetQuarantined()
	if p.source == "" {
		p.source = f.name(n.GetSource())
	}
	p.close()
}

func (f *Fold) addRouted(r *messages.Routed) {
	if !f.set("route " + strconv.FormatUint(uint64(r.GetLane()), 10)).add(r.GetSequence()) {
		return
	}
	eventType := f.typeOf(r.GetEventType())
	for _, rp := range r.GetPulls() {
		p := f.pull(rp.GetPull())
		p.at[routed].add(f.now)
		p.addRouted(rp)
		logged := int64(len(rp.GetUnique())) - int64(counts(rp.GetDropped()).sum())
		for retyped, n := range rp.GetRetyped() {
			p.log(f.typeOf(retyped), int64(n))
			logged -= int64(n)
		}
		p.log(eventType, logged)
		p.close()
	}
}

// deliveredSet names the set of EVENTS sequences that a destination has settled, for
// the first time or for a replay.
func deliveredSet(destination, replay string) string {
	if replay == "" {
		return "deliver " + destination
	}
	return "replay " + replay + " " + destination
}

func (f *Fold) addDelivered(n *messages.Delivered) {
	d := f.destination(n.GetDestination())
	if !f.set(deliveredSet(d.name, n.GetReplay())).add(n.GetSequence()) {
		return
	}
	if n.GetReplay() == "" {
		d.frames++
		d.dirty = true
	}
	for _, dp := range n.GetPulls() {
		p := f.pull(dp.GetPull())
		p.addDelivered(d.index, n.GetReplay(), f.now, dp)
		p.own()
	}
}

// Resolution is how an entry of the quarantine came to an end.
type Resolution struct {
	Pull messages.ID
	*messages.Resolved
	At time.Time
}

func (f *Fold) addResolved(r *messages.Resolved) {
	if f.knowsEntry(r.GetEntry()) {
		return
	}
	p := f.pull(r.GetPull())
	f.resolved[r.GetEntry()] = Resolution{Pull: p.key, Resolved: r, At: timeOf(f.now)}
	p.addResolved(r)
}

// says takes note of what a destination reads, or that it is gone, and returns whether
// that is news.
func (d *destination) says(n *messages.Destination) bool {
	news := !d.known || d.removed != n.GetRemoved()
	d.known, d.removed = true, n.GetRemoved()
	if !d.removed {
		news = news || d.first != n.GetFirst() || !slices.Equal(d.types, n.GetTypes())
		d.types, d.first = n.GetTypes(), n.GetFirst()
		if !slices.ContainsFunc(d.lists, func(l []string) bool { return slices.Equal(l, d.types) }) {
			d.lists = append(d.lists, d.types)
			d.reading = nil
			news = true
		}
	}
	d.dirty = d.dirty || news
	return news
}

// reading says whether a destination reads events of a type.
type reading uint8

const (
	unasked reading = iota
	never
	// sometimes: it was changed, and nobody knows which were logged before.
	sometimes
	always
)

// reads tells whether the destination asked for events of a type.
func (d *destination) reads(eventType string) reading {
	subject, n := topology.EventSubject(eventType), 0
	for _, types := range d.lists {
		if len(types) == 0 || slices.ContainsFunc(types, func(t string) bool { return matches("penstock.event."+t, subject) }) {
			n++
		}
	}
	switch {
	case n == 0:
		return never
	case n < len(d.lists):
		return sometimes
	}
	return always
}

// wants is reads for a type of the fold, remembered.
func (f *Fold) wants(d *destination, eventType int) reading {
	for len(d.reading) <= eventType {
		d.reading = append(d.reading, unasked)
	}
	if d.reading[eventType] == unasked {
		d.reading[eventType] = d.reads(f.inType[eventType])
	}
	return d.reading[eventType]
}

// matches goes by the wildcards of NATS: * for one token, > for one or more at the end.
func matches(pattern, subject string) bool {
	for {
		want, pattern2, more := strings.Cut(pattern, ".")
		if want == ">" && !more {
			return true
		}
		got, subject2, left := strings.Cut(subject, ".")
		if want != "*" && want != got || more != left {
			return false
		}
		if !more {
			return true
		}
		pattern, subject = pattern2, subject2
	}
}
