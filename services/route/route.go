// Package route applies rules to events and puts them into the event log.
//
//	penstock.unique.<lane> ──▶ route ──▶ penstock.event.<event type>
//
// In:     one frame of events of one type and lane, duplicates marked, at least
// once.
// Out:    the same frame with what the rules drop marked; nothing when no event
// is left; one frame per type when set_type divides it. One Routed fact per
// frame.
// Errors: messages.bad_frame is rejected. A document that a mask does not
// understand goes to quarantine (route.mask_failed) and is counted as dropped by
// that rule. Expressions that cannot be evaluated are counted and pass the event.
// State:  none. Any number of copies may run.
//
// Without a rule for its type a frame is forwarded unread.
//
// Source: design section 5.
package route

import (
	"context"
	"encoding/binary"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/transform"
	"github.com/penstock/penstock/topology"
)

var (
	errMask = fault.Define("route.mask_failed", fault.Reject,
		"see what is wrong with the document; mend the format's decoder or change the mask, then redrive it")

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

	mu   sync.Mutex
	told time.Time
}

// rule is one compiled rule.
type rule struct {
	Rule
	types condition.Types
	where *condition.Condition
	// below is the share of a sample as a bound on the first 8 bytes of an id.
	below uint64
	all   bool // keep 1
	mask  *transform.Masker
}

// New compiles the rules and starts nothing. The error names every problem.
func New(cfg Config, deps Deps) (*Route, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	r := &Route{log: deps.Log}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.work.New = func() any { return new(work) }
	r.builders.New = func() any { return messages.NewBuilder(messages.Header{}) }
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
		if c.Mask != nil {
			one.mask = transform.NewMasker(*c.Mask)
		}
		r.rules = append(r.rules, one)
	}
	return r, nil
}

// Handle judges one frame.
func (r *Route) Handle(ctx context.Context, in topology.In[messages.View], out topology.Outbox) error {
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
	if r.concerned(v.EventType()) {
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
		err = out.Publish(ctx, topology.Message{Subject: topology.EventSubject(v.EventType()), ID: w.id(), Data: v.Encoded()})
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

	columns messages.Columns
	body    []byte
	read    bool // body holds the documents

	// types are the types that events of this frame got, the frame's own first;
	// typeOf has one entry per event, or none while all have the frame's own.
	types  []string
	typeOf []int

	// masked holds rewritten documents, docs their places; none has length 0.
	masked []byte
	docs   []span

	rewritten bool
	// droppedBy is 1 + the rule that dropped an event, 0 for none.
	droppedBy []int
	errors    []int // by rule
	hidden    []int // by rule
}

type span struct{ from, to int }

const keepScratch = 8 << 20

func (w *work) reset(r *Route, in *topology.In[messages.View], v *messages.View) {
	if cap(w.body) > keepScratch {
		w.body = nil
	}
	if cap(w.masked) > keepScratch {
		w.masked = nil
	}
	n := v.Len()
	*w = work{
		route: r, in: in, v: v, lane: laneOf(in.Subject, v.Lane()),
		columns: w.columns, body: w.body, types: append(w.types[:0], v.EventType()), typeOf: w.typeOf[:0],
		masked: w.masked[:0], docs: w.docs[:0],
		droppedBy: zeros(w.droppedBy, n), errors: zeros(w.errors, len(r.rules)), hidden: zeros(w.hidden, len(r.rules)),
	}
}

// zeros returns n zeros in s, if they fit.
func zeros(s []int, n int) []int {
	if cap(s) < n {
		return make([]int, n)
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

// id is the message id of what this frame becomes.
func (w *work) id() string {
	return "u" + strconv.FormatUint(uint64(w.lane), 10) + "/" + strconv.FormatUint(w.in.Sequence, 10)
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
		if r.mask != nil || r.where != nil && r.where.NeedsDoc() {
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
		case r.mask != nil:
			if !w.hide(i, k, e) {
				w.drop(i, k, messages.Filtered)
				return w.quarantine(ctx, out, i, place, r)
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

// hide masks the document of event i; false when it is not understood.
func (w *work) hide(i, rule int, e *condition.Event) bool {
	from := len(w.masked)
	var masked, ok bool
	w.masked, masked, ok = w.route.rules[rule].mask.Apply(w.masked, e.Doc)
	if !ok || !masked {
		w.masked = w.masked[:from]
		return ok
	}
	if len(w.docs) == 0 {
		if n := w.v.Len(); cap(w.docs) >= n {
			w.docs = w.docs[:n]
			clear(w.docs)
		} else {
			w.docs = make([]span, n)
		}
	}
	w.docs[i] = span{from, len(w.masked)}
	e.Doc = w.masked[from:]
	w.hidden[rule]++
	w.rewritten = true
	return true
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

// quarantine keeps an event whose document a mask does not understand. The entry
// holds it unmasked, as the streams before this one do.
func (w *work) quarantine(ctx context.Context, out topology.Outbox, i int, place span, r *rule) error {
	origins, err := w.v.Origins()
	if err != nil {
		return err
	}
	return out.Quarantine(ctx, &messages.Quarantine{
		Stage: string(topology.Route), Source: w.v.Source(), Code: errMask.Code,
		Reason: errMask.New(nil, "apply the mask of rule %s: the document is not valid JSON", r.Name).Error(),
		Origin: origins[w.columns.OriginOf[i]], Record: w.columns.Records[i], Records: 1, Offset: -1, Length: -1,
		Payload: append([]byte(nil), w.body[place.from:place.to]...), Holds: messages.Quarantine_HOLDS_EVENT,
		Attempts: uint32(w.in.Attempt),
		Subject:  w.in.Subject, Format: w.v.Format(),
	})
}

// rebuild publishes the live events in new frames, one per type, in the order in
// which they stand. Message ids are the same at each attempt.
func (w *work) rebuild(ctx context.Context, origins []*messages.Origin, out topology.Outbox) error {
	if err := w.document(span{}, &condition.Event{}); err != nil {
		return err
	}
	b := w.route.builders.Get().(*messages.Builder)
	defer w.route.builders.Put(b)
	for k, name := range w.types {
		base := w.id()
		if k > 0 {
			base += "/" + name
		}
		part := 0
		head := messages.Header{Source: w.v.Source(), Format: w.v.Format(), EventType: name, Replay: w.v.Replay(), Lane: w.v.Lane()}
		b.Reset(head)
		flush := func() error {
			if b.Len() == 0 {
				return nil
			}
			id := base
			if part > 0 {
				id += "." + strconv.Itoa(part)
			}
			part++
			m := topology.Message{Subject: topology.EventSubject(name), ID: id, Data: b.Encode(nil)}
			b.Reset(head)
			return out.Publish(ctx, m)
		}
		at := 0
		for i := range w.v.Len() {
			doc := w.body[at : at+int(w.columns.Lengths[i])]
			at += int(w.columns.Lengths[i])
			if w.v.Fate(i) != messages.Live || len(w.typeOf) > 0 && w.typeOf[i] != k || len(w.typeOf) == 0 && k > 0 {
				continue
			}
			if len(w.docs) > 0 && w.docs[i].to > 0 {
				doc = w.masked[w.docs[i].from:w.docs[i].to]
			}
			if b.Len() > 0 && b.BodySize()+len(doc) > partBytes {
				if err := flush(); err != nil {
					return err
				}
			}
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
		r.log.Warn("expression of a rule could not be evaluated; the events pass", "rule", rule, "events", n)
	}
}
