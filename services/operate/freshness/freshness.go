// Package freshness learns how often each source brings something, and tells when one is
// silent for longer than it should be. It gathers what formats met and did not know, too.
package freshness

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/topology"
)

var errState = fault.Define("freshness.bad_state", fault.Reject,
	"none needed: what was learned of the sources is learned anew")

var (
	silenceSeconds = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_source_silence_seconds", Help: "For how long a source has brought nothing, as the process sees it that looks after the pipeline.",
	}, []string{"source"})
	usualSeconds = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_source_usual_gap_seconds", Help: "The usual gap between two batches of a source, as it was learned; 0 while too little is known.",
	}, []string{"source"})
	silentNow = promauto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "penstock_source_silent", Help: "1 while a source is silent for longer than it should be, else 0.",
	}, []string{"source"})
)

// State is how fresh a source is.
type State struct {
	Source string `json:"source"`
	// Last is when it last brought something, First when it was first seen.
	Last  time.Time `json:"last,omitzero"`
	First time.Time `json:"first,omitzero"`
	// Silence is for how long it has brought nothing; Usual is the usual gap between two
	// batches, Allowed the silence beyond which it is an alarm. 0: not known (yet), or off.
	Silence time.Duration `json:"silence_ns"`
	Usual   time.Duration `json:"usual_gap_ns"`
	Allowed time.Duration `json:"allowed_ns"`
	// Samples is from how many gaps that was learned.
	Samples int `json:"samples"`
	// Setting is auto, off, or the duration that the configuration says.
	Setting string `json:"setting"`
	Silent  bool   `json:"silent"`
	// Since is when it became silent.
	Since time.Time `json:"since,omitzero"`
	// Announced things and Records since First, as far as this was followed.
	Announced uint64 `json:"announced"`
	Records   uint64 `json:"records"`
}

// Drift is something that a format met and does not know.
type Drift struct {
	Format string `json:"format"`
	Source string `json:"source"`
	// Kind is column, type or version; Name is which.
	Kind    string    `json:"kind"`
	Name    string    `json:"name"`
	Records uint64    `json:"records"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	// Sample is the beginning of a record with it.
	Sample string `json:"sample,omitempty"`
}

// Settings of a source's silence, besides a duration.
const (
	Auto = "auto"
	Off  = "off"
)

// IsSetting tells whether a setting is one: auto, off, or a duration of a second or more.
func IsSetting(s string) bool {
	d, err := time.ParseDuration(s)
	return s == "" || s == Auto || s == Off || err == nil && d >= time.Second
}

// Config is what the configuration says of the sources.
type Config struct {
	// Silence by source: auto, off or a duration. A source that is not here has left the
	// configuration: it is no alarm. nil: all that is ever seen are auto.
	Silence map[string]string
	// Process is the name of this one.
	Process string
	Log     *slog.Logger
}

// Limits of what is kept. What comes above is left out: somebody writes nonsense.
const (
	maxSources = 10_000
	maxDrift   = 500
	// maxSamples bounds the samples of drift together, in bytes.
	maxSamples = 256 << 10
	maxSample  = 2 << 10
)

// Watch follows the facts of the ledger. Methods may be called concurrently.
type Watch struct {
	bus     *topology.Bus
	process string
	log     *slog.Logger

	mu      sync.Mutex
	silence map[string]string
	started time.Time
	// caughtUp: the facts of now are known, so that silence means something.
	caughtUp bool
	state    kept
	changed  bool
	shown    map[string]bool // on the metrics page
}

// kept is what outlives the process.
type kept struct {
	// Next is the sequence of LEDGER that is read next.
	Next    uint64             `json:"next"`
	Sources map[string]*source `json:"sources"`
	Drift   map[string]*Drift  `json:"drift"`
}

// source is one of them.
type source struct {
	rhythm

	Announced uint64    `json:"announced"`
	Records   uint64    `json:"records"`
	Silent    bool      `json:"silent,omitempty"`
	Since     time.Time `json:"since,omitzero"`
}

// New makes one; Run runs it.
func New(bus *topology.Bus, c Config) *Watch {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Watch{bus: bus, process: c.Process, log: c.Log, silence: c.Silence, state: newKept(), shown: map[string]bool{}}
}

func newKept() kept { return kept{Sources: map[string]*source{}, Drift: map[string]*Drift{}} }

// Configure says what the configuration says now.
func (w *Watch) Configure(silence map[string]string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silence = maps.Clone(silence)
}

// How often silence is looked at, and what was learned is stored.
const (
	lookEvery = 5 * time.Second
	saveEvery = 30 * time.Second
	// learnFrom is how far back the ledger is read the first time.
	learnFrom = 24 * time.Hour
	// fresh is how old a fact may be that shows that there are no others behind it.
	fresh = 5 * time.Second
)

// question asks who watches.
const question = "freshness"

// Run follows the facts until ctx ends, keeps what was learned over restarts, and answers
// [Ask]. Trouble with the bus is logged, and it goes on.
func (w *Watch) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		_ = w.bus.Answer(ctx, question, w.answer) // ends with ctx; else commands read what was stored
	})
	wg.Go(func() { w.look(ctx) })
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return nil // asked to stop
		}
		w.log.Warn("the freshness of sources is not to be had, trying on", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// follow reads what was learned, and then the facts.
func (w *Watch) follow(ctx context.Context) error {
	cursor, err := w.bus.Cursor(ctx, "penstock", "freshness")
	if err != nil {
		return err
	}
	next, err := w.load(ctx, cursor)
	if err != nil {
		return err
	}
	saving := time.Now()
	defer func() { w.save(context.WithoutCancel(ctx), cursor) }()
	tick := func() {
		if time.Since(saving) >= saveEvery {
			saving = time.Now()
			w.save(ctx, cursor)
		}
	}
	return w.facts().Follow(ctx, next, func(m topology.Stored) error {
		w.add(m)
		tick()
		return nil
	}, func() error {
		w.mu.Lock()
		w.caughtUp = true
		w.mu.Unlock()
		tick()
		return nil
	})
}

func (w *Watch) facts() *topology.History {
	return w.bus.History(topology.Ledger, []string{topology.LedgerSubject(topology.Ingest), topology.LedgerSubject(topology.Fetch), topology.LedgerSubject(topology.Parse)})
}

// load takes over what was stored, and returns where to go on in the ledger.
func (w *Watch) load(ctx context.Context, cursor *topology.Cursor) (uint64, error) {
	first, end, err := w.facts().Bounds(ctx)
	if err != nil {
		return 0, err
	}
	state, err := decode(cursor.Value())
	if err != nil {
		w.log.Warn("what was learned of the sources cannot be read, learning anew", "err", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.started = time.Now()
	if state.Next > end {
		w.log.Warn("the ledger was made anew: what was learned of the sources stays", "position", state.Next, "end", end)
		state.Next = end
	}
	if state.Next > w.state.Next || state.Next > 0 && w.state.Next > end {
		w.state = state
	}
	if w.state.Next == 0 {
		at, found, err := w.facts().Since(ctx, time.Now().Add(-learnFrom))
		if err != nil {
			return 0, err
		}
		if w.state.Next = at; !found {
			w.state.Next = end
		}
	}
	return max(first, w.state.Next), nil
}

// save stores what was learned. Of several processes the one that is furthest wins.
func (w *Watch) save(ctx context.Context, cursor *topology.Cursor) {
	w.mu.Lock()
	data, next, changed := w.state.encode(), w.state.Next, w.changed
	w.changed = false
	w.mu.Unlock()
	if !changed {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := cursor.Set(ctx, data)
	if errors.Is(err, topology.ErrCursorMoved) {
		if err = cursor.Load(ctx); err == nil {
			if other, decodeErr := decode(cursor.Value()); decodeErr == nil && other.Next >= next {
				return
			}
			err = cursor.Set(ctx, data)
		}
	}
	if err != nil {
		w.log.Warn("what was learned of the sources cannot be stored, trying again", "err", err)
		w.mu.Lock()
		w.changed = true
		w.mu.Unlock()
	}
}

// encode writes the state: compressed, since a thousand sources are a message.
func (k *kept) encode() []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if err := json.NewEncoder(z).Encode(k); err != nil {
		panic(fmt.Sprintf("the state of freshness cannot be written: %v", err)) // a mistake of ours
	}
	_ = z.Close() // a buffer
	return out.Bytes()
}

// decode reads a state; nothing is an empty one.
func decode(data []byte) (kept, error) {
	k := newKept()
	if len(data) == 0 {
		return k, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return k, errState.New(err, "read what was learned of the sources")
	}
	const most = 64 << 20
	if err := json.NewDecoder(io.LimitReader(z, most)).Decode(&k); err != nil {
		return newKept(), errState.New(err, "read what was learned of the sources")
	}
	for name, s := range k.Sources {
		if s == nil || !s.Last.IsZero() && (len(s.Gaps) != buckets || len(s.Hours) != hoursOfWeek) {
			delete(k.Sources, name) // of another version
		}
	}
	if k.Sources == nil || k.Drift == nil {
		k.Sources, k.Drift = map[string]*source{}, map[string]*Drift{}
	}
	return k, nil
}

// add takes the facts of one message of the ledger.
func (w *Watch) add(m topology.Stored) {
	facts, err := messages.DecodeFacts(m.Data)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state.Next, w.changed = m.Sequence+1, true
	if time.Since(m.Time) < fresh {
		w.caughtUp = true
	}
	if err != nil {
		return // the books tell of it
	}
	for _, f := range facts.GetFacts() {
		switch f := f.GetKind().(type) {
		case *messages.Fact_Announced:
			w.announced(f.Announced, facts.GetStage(), m.Time)
		case *messages.Fact_Fetched:
			// What is read once more is nothing new; of that ingest and fetch tell alone.
			if s := w.state.Sources[f.Fetched.GetSource()]; s != nil && facts.GetStage() != string(topology.Parse) {
				s.Records += f.Fetched.GetRecords()
			}
		case *messages.Fact_Parsed:
			for _, d := range f.Parsed.GetDrift() {
				w.drift(d, m.Time)
			}
		}
	}
}

// announced notes a batch. What an operator has read once more, or a backfill brings, does
// not show that the source is alive; nor do tests and removals.
func (w *Watch) announced(a *messages.Announced, stage string, at time.Time) {
	if stage != string(topology.Ingest) || a.GetJob() != "" || len(a.GetAgain()) > 0 {
		return
	}
	switch a.GetAs() {
	case messages.Announced_AS_TEST, messages.Announced_AS_IGNORED, messages.Announced_AS_UNKNOWN:
		return
	case messages.Announced_AS_OBJECT, messages.Announced_AS_EVENTS, messages.Announced_AS_QUARANTINED:
	}
	name := a.GetOrigin().GetSource()
	s := w.state.Sources[name]
	if s == nil {
		if len(w.state.Sources) >= maxSources {
			return
		}
		s = &source{}
		w.state.Sources[name] = s
	}
	s.batch(at.UTC())
	s.Announced += uint64(max(1, a.GetMessages()))
}

// drift notes something new in a format.
func (w *Watch) drift(d *messages.Drift, at time.Time) {
	key := d.GetSource() + "\x00" + d.GetFormat() + "\x00" + d.GetKind() + "\x00" + d.GetName()
	known := w.state.Drift[key]
	if known == nil {
		if len(w.state.Drift) >= maxDrift {
			w.forgetDrift()
		}
		known = &Drift{Format: d.GetFormat(), Source: d.GetSource(), Kind: d.GetKind(), Name: d.GetName(), First: at.UTC()}
		w.state.Drift[key] = known
		w.log.Warn("records have something that their format does not know; they go on as they are",
			"source", known.Source, "format", known.Format, "kind", known.Kind, "name", known.Name)
	}
	known.Records += d.GetRecords()
	known.Last = at.UTC()
	if s := d.GetSample(); len(s) > 0 {
		known.Sample = string(bytes.ToValidUTF8(s[:min(len(s), maxSample)], []byte("\uFFFD")))
	}
	w.trimSamples()
}

// forgetDrift makes room for one more.
func (w *Watch) forgetDrift() {
	oldest := ""
	for key, d := range w.state.Drift {
		if oldest == "" || d.Last.Before(w.state.Drift[oldest].Last) {
			oldest = key
		}
	}
	delete(w.state.Drift, oldest)
}

// trimSamples bounds the bytes of samples: those that were met last stay.
func (w *Watch) trimSamples() {
	sum := 0
	for _, d := range w.state.Drift {
		sum += len(d.Sample)
	}
	if sum <= maxSamples {
		return
	}
	all := byLast(w.state.Drift)
	for i := len(all) - 1; i >= 0 && sum > maxSamples; i-- {
		sum -= len(all[i].Sample)
		all[i].Sample = ""
	}
}

func byLast(all map[string]*Drift) []*Drift {
	return slices.SortedFunc(maps.Values(all), func(a, b *Drift) int {
		return cmp.Or(b.Last.Compare(a.Last), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Format, b.Format), cmp.Compare(a.Name, b.Name))
	})
}

// look looks for silence until ctx ends.
func (w *Watch) look(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.judge(time.Now())
		}
	}
}

// judge says for each source whether it is silent, in the log and in the metrics.
func (w *Watch) judge(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.caughtUp {
		return
	}
	for name := range w.silence {
		if w.state.Sources[name] == nil && len(w.state.Sources) < maxSources {
			w.state.Sources[name] = &source{}
		}
	}
	here := map[string]bool{}
	for name, s := range w.state.Sources {
		st := w.stateOf(name, s, now)
		if st.Setting == "" {
			s.Silent, s.Since = false, time.Time{}
			continue
		}
		here[name] = true
		switch {
		case st.Silent && !s.Silent:
			s.Silent, s.Since, w.changed = true, now.UTC(), true
			w.log.Warn("source is silent", "source", name, "silence", st.Silence.Round(time.Second).String(), "usual_gap", st.Usual.String(), "allowed", st.Allowed.Round(time.Second).String())
		case !st.Silent && s.Silent:
			s.Silent, s.Since, w.changed = false, time.Time{}, true
			w.log.Info("source is not silent any more", "source", name)
		}
		silenceSeconds.WithLabelValues(name).Set(st.Silence.Seconds())
		usualSeconds.WithLabelValues(name).Set(st.Usual.Seconds())
		silentNow.WithLabelValues(name).Set(map[bool]float64{true: 1}[st.Silent])
	}
	for name := range w.shown {
		if !here[name] {
			silenceSeconds.DeleteLabelValues(name)
			usualSeconds.DeleteLabelValues(name)
			silentNow.DeleteLabelValues(name)
		}
	}
	w.shown = here
}

// stateOf judges one source. Called with mu. Setting is "" for one that is not configured.
func (w *Watch) stateOf(name string, s *source, now time.Time) State {
	st := State{
		Source: name, Last: s.Last, First: s.First, Usual: s.usual(), Samples: s.Samples, Setting: Auto, Since: s.Since,
		Announced: s.Announced, Records: s.Records,
	}
	if w.silence != nil {
		setting, ok := w.silence[name]
		if !ok {
			st.Setting = ""
		} else if setting != "" {
			st.Setting = setting
		}
	}
	// While nobody watched, nothing is known: only what was silent before still is.
	from := w.started
	if s.Last.After(from) || s.Silent && !s.Last.IsZero() {
		from = s.Last
	}
	if !s.Last.IsZero() {
		st.Silence = max(0, now.Sub(s.Last))
	}
	switch st.Setting {
	case "", Off:
	case Auto:
		st.Allowed = s.allowed(now)
	default:
		st.Allowed, _ = time.ParseDuration(st.Setting) // checked with the configuration
	}
	st.Silent = w.caughtUp && st.Allowed > 0 && now.Sub(from) > st.Allowed
	if !st.Silent {
		st.Since = time.Time{}
	}
	return st
}

// States returns how all configured sources are, by name.
func (w *Watch) States() []State {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	all := make([]State, 0, len(w.state.Sources))
	for _, name := range slices.Sorted(maps.Keys(w.state.Sources)) {
		if st := w.stateOf(name, w.state.Sources[name], now); st.Setting != "" {
			all = append(all, st)
		}
	}
	return all
}

// Drift returns what was met, what was met last first.
func (w *Watch) Drift() []Drift {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]Drift, 0, len(w.state.Drift))
	for _, d := range byLast(w.state.Drift) {
		all = append(all, *d)
	}
	return all
}

// Answer is what the process that watches says.
type Answer struct {
	Process string  `json:"process"`
	Sources []State `json:"sources"`
	Drift   []Drift `json:"drift"`
	// Next is how far it has read the ledger.
	Next uint64 `json:"next"`
}

func (w *Watch) answer() []byte {
	a := Answer{Process: w.process, Sources: w.States(), Drift: w.Drift()}
	w.mu.Lock()
	a.Next = w.state.Next
	w.mu.Unlock()
	data, _ := json.Marshal(a) // cannot fail
	return data
}

// Ask asks the process that watches; of several the one that has read most of the ledger.
// false when there is none.
func Ask(ctx context.Context, bus *topology.Bus) (a Answer, found bool, err error) {
	answers, err := bus.Ask(ctx, question)
	if err != nil {
		return a, false, err
	}
	for _, data := range answers {
		var one Answer
		if json.Unmarshal(data, &one) == nil && (!found || one.Next > a.Next) {
			a, found = one, true
		}
	}
	return a, found, nil
}
