// Package route applies rules to events and puts them into the event log.
//
//	penstock.unique.<lane> ──▶ route ──▶ penstock.event.<event type>
//
// In:     one frame of events of one type and lane, duplicates marked, at least
// once.
// Out:    the same frame with what the rules drop marked; nothing when no event
// is left; one frame per type when set_type divides it, and one more for what ocsf
// has written, whose format is "ocsf". One Routed fact per frame.
// Errors: messages.bad_frame is rejected. A document that a rule cannot change goes to
// quarantine as it came (route.mask_failed, route.enrich_failed, route.ocsf_failed,
// route.too_large) and is counted as dropped by that rule. Expressions that cannot be
// evaluated are counted; a mask then masks, and any other rule does not concern the event.
// State:  the files of enrichment, in memory. Any number of copies may run.
//
// Rules apply in order, each to the document as the one before has left it.
//
// Without a rule for its type a frame is forwarded unread. One that is there again for
// one destination alone goes to penstock.again.<destination>, which nobody else reads.
//
// Source: design section 5.
package route

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash"
	"hash/fnv"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/semaphore"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/transform"
	"github.com/penstock/penstock/services/internal/transform/ocsf"
	"github.com/penstock/penstock/topology"
)

var (
	errMask = fault.Define("route.mask_failed", fault.Reject,
		"see what is wrong with the document; mend the format's decoder or change the mask, then redrive it")
	errEnrich = fault.Define("route.enrich_failed", fault.Reject,
		"see what is wrong with the document; mend the format's decoder, or the types that the rule concerns, then redrive it")
	errOCSF = fault.Define("route.ocsf_failed", fault.Reject,
		"see what is wrong with the document; mend the format's decoder, or the types that the rule concerns, then redrive it")
	errGrown = fault.Define("route.too_large", fault.Reject,
		"leave out of the rule what adds so much, e.g. raw_data, or except such events by the rule's types or where; then redrive it")

	framesRouted = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_route_frames_total", Help: "Frames judged: forwarded as they were, rewritten, or dropped because no event was left.",
	}, []string{"result"})
	eventsRouted = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_route_events_total", Help: "Events put into the event log, by source.",
	}, []string{"source"})
	duplicatesSeen = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_route_duplicates_total", Help: "Events that dedupe had marked as duplicates, by source.",
	}, []string{"source"})
	eventsDropped = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_route_dropped_total", Help: "Events dropped, by rule.",
	}, []string{"rule"})
	eventsMasked = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_route_masked_total", Help: "Events in which a field was masked, by rule.",
	}, []string{"rule"})
	eventsEnriched = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_route_enriched_total", Help: "Events that a rule was to enrich, by rule and result: added, unknown, absent, skipped (no public address), conflict, failed.",
	}, []string{"rule", "result"})
	eventsOCSF = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_route_ocsf_total", Help: "Events that a rule was to write as OCSF, by rule and result: mapped, base_event, no_mapping, failed.",
	}, []string{"rule", "result"})
	conditionErrors = promauto.NewCounterVec(prometheus.CounterOpts{
		Name: "penstock_route_condition_errors_total", Help: "Events for which the expression of a rule could not be evaluated.",
	}, []string{"rule"})
)

// earlier is the name under which events are counted that were dropped before
// route saw them.
const earlier = "earlier"

// partBytes is where a rewritten frame is cut, in bytes before compression: what
// a mask writes may be longer than what it hides.
const partBytes = 4 << 20

// openBytes bounds the documents of frames that stand open at a time, for rules to look
// into them, in bytes as they came; one frame is always let in. What rules write comes on
// top. The bus bounds frames in hand as they are compressed, which says little.
const openBytes = 16 << 20

// mostDoc is the largest document that fits a frame of its own for certain, in bytes,
// as it is or after compression.
const mostDoc = messages.MaxFrame - 128<<10

// Deps is what Route gets from the process.
type Deps struct {
	// Log may be nil.
	Log *slog.Logger
}

// Route is the stage. Handle may be called concurrently.
type Route struct {
	rules []rule
	log   *slog.Logger
	work  sync.Pool
	// builders make new frames; reused.
	builders sync.Pool
	// opened is what is left of openBytes.
	opened *semaphore.Weighted

	mu   sync.Mutex
	told time.Time
}

// rule is one compiled rule.
type rule struct {
	Rule
	types condition.Types
	where *condition.Condition
	// below is the share of a sample as a bound on the first 8 bytes of an id.
	below  uint64
	all    bool // keep 1
	mask   *transform.Masker
	enrich *transform.Enricher
	ocsf   *ocsf.Mapper
}

// New compiles the rules, reads the files that they name, and starts nothing. The error
// names every problem of the rules, or the first file that is bad.
func New(cfg Config, deps Deps) (*Route, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r := &Route{log: deps.Log, opened: semaphore.NewWeighted(openBytes)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.work.New = func() any { return new(work) }
	r.builders.New = func() any { return messages.NewBuilder(messages.Header{}) }
	files := transform.NewFiles(r.log)
	for _, c := range cfg.Rules {
		one := rule{Rule: c}
		var err error
		if one.types, err = condition.ParseTypes(c.Types); err != nil {
			return nil, err
		}
		if c.Where != "" {
			if one.where, err = condition.Compile(c.Where); err != nil {
				return nil, err
			}
		}
		if c.Sample != nil {
			one.all = c.Sample.Keep >= 1
			one.below = uint64(c.Sample.Keep * (1 << 63) * 2)
		}
		switch {
		case c.Mask != nil:
			one.mask = transform.NewMasker(*c.Mask)
		case c.Enrich != nil:
			if one.enrich, err = transform.NewEnricher(*c.Enrich, files); err != nil {
				return nil, err
			}
		case c.OCSF != nil:
			one.ocsf = ocsf.NewMapper(c.OCSF.RawData)
		}
		r.rules = append(r.rules, one)
	}
	return r, nil
}

// Handle judges one frame.
func (r *Route) Handle(ctx context.Context, in topology.In[messages.View], out topology.Outbox) error {
	concerned := r.concerned(in.Value.EventType())
	if concerned {
		size := int64(min(in.Value.BodySize(), openBytes))
		if err := r.opened.Acquire(ctx, size); err != nil {
			return context.Cause(ctx)
		}
		defer r.opened.Release(size)
	}
	w := r.work.Get().(*work)
	defer func() {
		w.in, w.v = nil, nil
		r.work.Put(w)
	}()
	v := in.Value
	w.reset(r, &in, &v)
	if err := v.Columns(&w.columns); err != nil {
		return err
	}
	if concerned {
		if err := w.judge(ctx, out); err != nil {
			return err
		}
	}
	origins, err := v.Origins()
	if err != nil {
		return err
	}
	fact, duplicate := w.fact(origins)
	live := v.Live()
	switch {
	case live == 0:
		framesRouted.WithLabelValues("dropped").Inc()
	case w.rewritten:
		framesRouted.WithLabelValues("rewritten").Inc()
		err = w.rebuild(ctx, origins, out)
	default:
		framesRouted.WithLabelValues("forwarded").Inc()
		err = out.Publish(ctx, w.message(v.EventType(), w.forwardedID(), v.Encoded(), live, w.liveBytes()))
	}
	if err != nil {
		return err
	}
	out.Fact(fact)
	eventsRouted.WithLabelValues(v.Source()).Add(float64(live))
	duplicatesSeen.WithLabelValues(v.Source()).Add(float64(duplicate))
	w.count()
	return nil
}

// message is a frame of the event log, with what its headers say.
func (w *work) message(eventType, id string, data []byte, events, bytes int) topology.Message {
	m := topology.Message{Subject: topology.EventSubject(eventType), ID: id, Data: data, Events: events, Bytes: bytes, Source: w.v.Source()}
	if again := messages.ParseReplay(w.v.Replay()); again.Destination != "" {
		m.Subject = topology.AgainSubject(again.Destination)
	}
	return m
}

// liveBytes are those of the documents of live events, before compression.
func (w *work) liveBytes() int {
	if w.v.Live() == w.v.Len() {
		return w.v.BodySize()
	}
	sum := 0
	for i, n := range w.columns.Lengths {
		if w.v.Fate(i) == messages.Live {
			sum += int(n)
		}
	}
	return sum
}

// concerned reports whether a rule may concern events of a type.
func (r *Route) concerned(eventType string) bool {
	for i := range r.rules {
		if r.rules[i].types.Has(eventType) {
			return true
		}
	}
	return false
}

// work is the state of one frame; reused.
type work struct {
	route *Route
	in    *topology.In[messages.View]
	v     *messages.View
	lane  uint32
	// entered is how many events were live when the frame came.
	entered int

	columns messages.Columns
	body    []byte
	read    bool // body holds the documents

	// types are the types that events of this frame got, the frame's own first;
	// typeOf has one entry per event, or none while all have the frame's own.
	types  []string
	typeOf []int

	// changed holds rewritten documents, docs their places; none has length 0.
	changed []byte
	docs    []span
	// inOCSF tells which events are OCSF now; it has no entries while none is.
	inOCSF []bool

	rewritten bool
	// droppedBy is 1 + the rule that dropped an event, 0 for none.
	droppedBy []int
	errors    []int // by rule
	hidden    []int // by rule
	// results of enrich and ocsf, by rule.
	results [][mostResults]int
}

// mostResults bounds the results that enrich and ocsf have.
const mostResults = 6

type span struct{ from, to int }

const keepScratch = 8 << 20

func (w *work) reset(r *Route, in *topology.In[messages.View], v *messages.View) {
	if cap(w.body) > keepScratch {
		w.body = nil
	}
	if cap(w.changed) > keepScratch {
		w.changed = nil
	}
	if cap(w.results) < len(r.rules) {
		w.results = make([][mostResults]int, len(r.rules))
	}
	w.results = w.results[:len(r.rules)]
	clear(w.results)
	n := v.Len()
	*w = work{
		route: r, in: in, v: v, lane: laneOf(in.Subject, v.Lane()), entered: v.Live(),
		columns: w.columns, body: w.body, types: append(w.types[:0], v.EventType()), typeOf: w.typeOf[:0],
		changed: w.changed[:0], docs: w.docs[:0], inOCSF: w.inOCSF[:0], results: w.results,
		droppedBy: zeros(w.droppedBy, n), errors: zeros(w.errors, len(r.rules)), hidden: zeros(w.hidden, len(r.rules)),
	}
}

// zeros returns n zeros in s, if they fit.
func zeros[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	s = s[:n]
	clear(s)
	return s
}

// laneOf takes the lane from penstock.unique.<lane>.
func laneOf(subject string, otherwise uint32) uint32 {
	if lane, err := strconv.ParseUint(subject[strings.LastIndexByte(subject, '.')+1:], 10, 32); err == nil {
		return uint32(lane)
	}
	return otherwise
}

// id is the message id of what this frame becomes, when all events are in one message
// that were live when it came.
func (w *work) id() string {
	return "u" + strconv.FormatUint(uint64(w.lane), 10) + "/" + strconv.FormatUint(w.in.Sequence, 10)
}

// forwardedID is the message id of the frame itself, with what the rules drop marked.
func (w *work) forwardedID() string {
	if w.v.Live() == w.entered {
		return w.id()
	}
	set := newEventSet()
	for i := range w.v.Len() {
		if w.v.Fate(i) == messages.Live {
			set.add(i)
		}
	}
	return set.name(w.id(), w.entered)
}

// eventSet names the events that are in a message. Between two attempts at a frame the
// rules may become others, or a file that they look values up in; if an id did not say
// which events it stands for, a message of the later attempt would be taken for one of
// the earlier that holds fewer, and events would be lost. So they come twice at worst.
type eventSet struct {
	hash hash.Hash64
	n    int
}

func newEventSet() eventSet { return eventSet{hash: fnv.New64a()} }

func (s *eventSet) add(event int) {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(event)) // below messages.MaxCount
	_, _ = s.hash.Write(b[:])                       // cannot fail
	s.n++
}

// name is id for a message with all events, and one of its own for some of them.
func (s *eventSet) name(id string, all int) string {
	if s.n == all {
		return id
	}
	return id + "#" + strconv.FormatUint(s.hash.Sum64(), 16)
}

// judge applies the rules to the live events.
func (w *work) judge(ctx context.Context, out topology.Outbox) error {
	e := condition.Event{Type: w.v.EventType(), Source: w.v.Source()}
	at := 0
	for i := range w.v.Len() {
		from := at
		at += int(w.columns.Lengths[i])
		if w.v.Fate(i) != messages.Live {
			continue
		}
		e.ID, e.Time, e.Type = w.v.ID(i), w.columns.Times[i], w.types[0]
		e.Account = named(w.columns.Accounts, w.columns.AccountOf, i)
		e.Region = named(w.columns.Regions, w.columns.RegionOf, i)
		e.Doc = nil
		if err := w.event(ctx, out, i, span{from, at}, &e); err != nil {
			return err
		}
	}
	return nil
}

func named(names []string, of []uint32, i int) string {
	if i < len(of) && int(of[i]) < len(names) {
		return names[of[i]]
	}
	return ""
}

// event takes one event through the rules.
func (w *work) event(ctx context.Context, out topology.Outbox, i int, place span, e *condition.Event) error {
	for k := range w.route.rules {
		r := &w.route.rules[k]
		if !r.types.Has(e.Type) {
			continue
		}
		if r.changes() || r.where != nil && r.where.NeedsDoc() {
			if err := w.document(place, e); err != nil {
				return err
			}
		}
		if r.where != nil {
			concerned, err := r.where.Match(e)
			if err != nil {
				w.errors[k]++
				// A mask that cannot tell masks: the event passes, and nothing leaks.
				concerned = r.mask != nil
			}
			if !concerned {
				continue
			}
		}
		switch {
		case r.Drop:
			w.drop(i, k, messages.Filtered)
			return nil
		case r.Sample != nil:
			if id := e.ID; !r.all && binary.BigEndian.Uint64(id[:8]) >= r.below {
				w.drop(i, k, messages.Sampled)
				return nil
			}
		case r.changes():
			if kind := w.change(i, k, e); kind != nil {
				w.drop(i, k, messages.Filtered)
				return w.quarantine(ctx, out, i, place, r, kind, e)
			}
		default:
			e.Type = w.setType(i, expand(r.SetType, e.Type, e.Source))
		}
	}
	return nil
}

// document reads the body when it is first asked for.
func (w *work) document(place span, e *condition.Event) error {
	if !w.read {
		body, err := w.v.Body(w.body[:0])
		if err != nil {
			return err
		}
		w.body, w.read = body, true
	}
	if e.Doc == nil {
		e.Doc = w.body[place.from:place.to]
	}
	return nil
}

func (w *work) drop(i, rule int, fate messages.Fate) {
	w.v.SetFate(i, fate)
	w.droppedBy[i] = rule + 1
}

// changes tells whether a rule changes documents.
func (r *rule) changes() bool { return r.mask != nil || r.enrich != nil || r.ocsf != nil }

// change applies a rule to the document of event i. It returns the fault when the
// document is not understood, or does not fit a frame any more.
func (w *work) change(i, rule int, e *condition.Event) *fault.Kind {
	r := &w.route.rules[rule]
	from := len(w.changed)
	var changed bool
	var failed *fault.Kind
	switch {
	case r.mask != nil:
		var ok bool
		if w.changed, changed, ok = r.mask.Apply(w.changed, e.Doc); !ok {
			failed = errMask
		} else if changed {
			w.hidden[rule]++
		}
	case r.enrich != nil:
		var result transform.Outcome
		w.changed, result = r.enrich.Apply(w.changed, e.Doc)
		w.results[rule][result]++
		if changed = result == transform.Added; result == transform.Failed {
			failed = errEnrich
		}
	case len(w.inOCSF) > 0 && w.inOCSF[i]: // a rule before has written it
	default:
		in := ocsf.Event{ID: e.ID, Format: w.v.Format(), Account: e.Account, Region: e.Region, Time: e.Time, Doc: e.Doc}
		var result ocsf.Result
		w.changed, result = r.ocsf.Apply(w.changed, &in)
		w.results[rule][result]++
		switch result {
		case ocsf.Mapped, ocsf.Base:
			changed = true
			if len(w.inOCSF) == 0 {
				w.inOCSF = zeros(w.inOCSF, w.v.Len())
			}
			w.inOCSF[i] = true
		case ocsf.Unmapped:
		case ocsf.Failed:
			failed = errOCSF
		}
	}
	if !changed || failed != nil {
		w.changed = w.changed[:from]
		return failed
	}
	// What a hash writes compresses worse than what was there, so that a document may
	// grow by becoming shorter.
	if doc := w.changed[from:]; len(doc) > mostDoc && len(s2.Encode(nil, doc)) > mostDoc {
		w.changed = w.changed[:from]
		return errGrown
	}
	if len(w.docs) == 0 {
		w.docs = zeros(w.docs, w.v.Len())
	}
	w.docs[i] = span{from, len(w.changed)}
	e.Doc = w.changed[from:]
	w.rewritten = true
	return nil
}

// setType notes the new type of event i.
func (w *work) setType(i int, name string) string {
	k := -1
	for j, t := range w.types {
		if t == name {
			k = j
		}
	}
	if k < 0 {
		k = len(w.types)
		w.types = append(w.types, name)
	}
	if len(w.typeOf) == 0 {
		w.typeOf = zeros(w.typeOf, w.v.Len())
	}
	w.typeOf[i] = k
	w.rewritten = true
	return w.types[k]
}

// quarantine keeps an event whose document a rule does not understand. The entry
// holds it as it came, unmasked, as the streams before this one do.
func (w *work) quarantine(ctx context.Context, out topology.Outbox, i int, place span, r *rule, kind *fault.Kind, e *condition.Event) error {
	origins, err := w.v.Origins()
	if err != nil {
		return err
	}
	why := "it is not valid JSON"
	if kind == errGrown {
		why = "what becomes of it does not fit a frame"
	}
	// The type is that with which the event came: a redrive takes it through all rules.
	return out.Quarantine(ctx, &messages.Quarantine{
		EventId: bytes.Clone(e.ID[:]), EventType: w.types[0], EventTime: e.Time, Account: e.Account, Region: e.Region,
		Stage: string(topology.Route), Source: w.v.Source(), Code: kind.Code,
		Reason: kind.New(nil, "apply rule %s to a document of %d bytes: %s", r.Name, place.to-place.from, why).Error(),
		Origin: origins[w.columns.OriginOf[i]], Record: w.columns.Records[i], Records: 1, Offset: -1, Length: -1,
		Payload: append([]byte(nil), w.body[place.from:place.to]...), Holds: messages.Quarantine_HOLDS_EVENT,
		Attempts: uint32(w.in.Attempt),
		Subject:  w.in.Subject, Format: w.v.Format(), Replay: w.v.Replay(),
	})
}

// formatOCSF is the format of frames whose documents ocsf has written.
const formatOCSF = "ocsf"

// rebuild publishes the live events in new frames, one per type, and one per type for
// those that are OCSF now, in the order in which they stand. Message ids are the same
// at each attempt that divides the events in the same way.
func (w *work) rebuild(ctx context.Context, origins []*messages.Origin, out topology.Outbox) error {
	if err := w.document(span{}, &condition.Event{}); err != nil {
		return err
	}
	b := w.route.builders.Get().(*messages.Builder)
	defer w.route.builders.Put(b)
	formats := []string{w.v.Format()}
	if len(w.inOCSF) > 0 {
		formats = append(formats, formatOCSF)
	}
	for n := range len(w.types) * len(formats) {
		k, inOCSF := n/len(formats), n%len(formats) == 1
		name, format := w.types[k], formats[n%len(formats)]
		base := w.id()
		if k > 0 {
			base += "/" + name
		}
		if inOCSF {
			base += "+" + format // no type has a + in it
		}
		set := newEventSet()
		head := messages.Header{Source: w.v.Source(), Format: format, EventType: name, Replay: w.v.Replay(), Lane: w.v.Lane()}
		b.Reset(head)
		flush := func() error {
			if b.Len() == 0 {
				return nil
			}
			m := w.message(name, set.name(base, w.entered), b.Encode(nil), b.Len(), b.BodySize())
			b.Reset(head)
			set = newEventSet()
			return out.Publish(ctx, m)
		}
		at := 0
		for i := range w.v.Len() {
			doc := w.body[at : at+int(w.columns.Lengths[i])]
			at += int(w.columns.Lengths[i])
			if w.v.Fate(i) != messages.Live || len(w.typeOf) > 0 && w.typeOf[i] != k || len(w.typeOf) == 0 && k > 0 {
				continue
			}
			if len(w.inOCSF) > 0 && w.inOCSF[i] != inOCSF {
				continue
			}
			if len(w.docs) > 0 && w.docs[i].to > 0 {
				doc = w.changed[w.docs[i].from:w.docs[i].to]
			}
			if b.Len() > 0 && b.BodySize()+len(doc) > partBytes {
				if err := flush(); err != nil {
					return err
				}
			}
			set.add(i)
			b.Add(messages.Event{
				ID: w.v.ID(i), Time: w.columns.Times[i],
				Account: named(w.columns.Accounts, w.columns.AccountOf, i), Region: named(w.columns.Regions, w.columns.RegionOf, i),
				Origin: b.Origin(origins[w.columns.OriginOf[i]]), Record: w.columns.Records[i], Doc: doc,
			})
		}
		if err := flush(); err != nil {
			return err
		}
	}
	return nil
}

// fact says what became of each event, by pull.
func (w *work) fact(origins []*messages.Origin) (fact *messages.Fact, duplicate int) {
	n := w.v.Len()
	// One block for all ordinals: first how many of each kind a pull has.
	counts := make([]struct{ unique, duplicate int }, len(origins))
	for i := range n {
		if w.v.Fate(i) == messages.Duplicate {
			counts[w.columns.OriginOf[i]].duplicate++
		} else {
			counts[w.columns.OriginOf[i]].unique++
		}
	}
	block := make([]int64, 0, n)
	pulls := make([]messages.RoutedPull, len(origins))
	routed := &messages.Routed{Lane: w.lane, Sequence: w.in.Sequence, EventType: w.v.EventType(), Source: w.v.Source(), Pulls: make([]*messages.RoutedPull, 0, len(origins))}
	last := make([]struct{ unique, duplicate uint64 }, len(origins))
	for k := range pulls {
		p := &pulls[k]
		p.Pull = origins[k].GetPull()
		if counts[k].unique+counts[k].duplicate > 0 {
			routed.Pulls = append(routed.Pulls, p)
		}
		at := len(block)
		block = block[:at+counts[k].unique+counts[k].duplicate]
		p.Unique = block[at : at : at+counts[k].unique]
		p.Duplicate = block[at+counts[k].unique : at+counts[k].unique : len(block)]
		duplicate += counts[k].duplicate
	}
	for i := range n {
		k, record := w.columns.OriginOf[i], w.columns.Records[i]
		p, fate := &pulls[k], w.v.Fate(i)
		if fate == messages.Duplicate {
			p.Duplicate = append(p.Duplicate, int64(record-last[k].duplicate)) // wraps on purpose
			last[k].duplicate = record
			continue
		}
		p.Unique = append(p.Unique, int64(record-last[k].unique)) // wraps on purpose
		last[k].unique = record
		if fate != messages.Live {
			if p.Dropped == nil {
				p.Dropped = map[string]uint64{}
			}
			p.Dropped[w.nameOf(i)]++
			continue
		}
		if len(w.typeOf) > 0 && w.typeOf[i] > 0 {
			if p.Retyped == nil {
				p.Retyped = map[string]uint64{}
			}
			p.Retyped[w.types[w.typeOf[i]]]++
		}
	}
	return &messages.Fact{Kind: &messages.Fact_Routed{Routed: routed}}, duplicate
}

// nameOf is the rule that dropped event i.
func (w *work) nameOf(i int) string {
	if by := w.droppedBy[i]; by > 0 {
		return w.route.rules[by-1].Name
	}
	return earlier
}

// count adds to the metrics, once the frame is through.
func (w *work) count() {
	if len(w.route.rules) == 0 {
		return
	}
	dropped := make([]int, len(w.route.rules))
	for _, by := range w.droppedBy {
		if by > 0 {
			dropped[by-1]++
		}
	}
	for k := range w.route.rules {
		name := w.route.rules[k].Name
		if dropped[k] > 0 {
			eventsDropped.WithLabelValues(name).Add(float64(dropped[k]))
		}
		if w.hidden[k] > 0 {
			eventsMasked.WithLabelValues(name).Add(float64(w.hidden[k]))
		}
		for n, events := range w.results[k] {
			switch {
			case events == 0:
			case w.route.rules[k].enrich != nil:
				eventsEnriched.WithLabelValues(name, transform.Outcome(n).String()).Add(float64(events))
			default:
				eventsOCSF.WithLabelValues(name, ocsf.Result(n).String()).Add(float64(events))
			}
		}
		if w.errors[k] > 0 {
			conditionErrors.WithLabelValues(name).Add(float64(w.errors[k]))
			w.route.tell(name, w.errors[k])
		}
	}
}

// tell logs expressions that fail, at most once a minute.
func (r *Route) tell(rule string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.told) >= time.Minute {
		r.told = now
		r.log.Warn("expression of a rule could not be evaluated; a mask masks, any other rule passes the events", "rule", rule, "events", n)
	}
}
