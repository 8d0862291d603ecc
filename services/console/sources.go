package console

import (
	"cmp"
	"html/template"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/services/operate/books"
	"github.com/penstock/penstock/services/operate/freshness"
)

func init() {
	register(page{
		path: "/sources", title: "Sources", nav: navWatch, order: 20, icon: "source", get: getSources,
		routes: []route{
			{pattern: "GET /sources/list", do: getSourceList},
			{pattern: "GET /sources/{name}", do: getSource},
			{pattern: "GET /sources/{name}/state", do: getSourceState},
		},
	})
}

// Limits of the pages of sources.
const (
	sourcesAtOnce = 100
	mostDrift     = 50
)

// sourceRow is one source. All its text is safe to be shown as text.
type sourceRow struct {
	Name, Type, Link string
	// State is the first of sourceStates that holds, Kind its colour.
	State, Kind string
	Fresh       freshness.State
	// Sums are what the books say of it, where Counted.
	Sums    ledger.Total
	Counted bool
	// Refused records, and whole objects or messages of which nothing could be read;
	// Left are records and events that were left out on purpose, LeftWhole whole objects
	// and messages.
	Refused, RefusedWhole, Left, LeftWhole uint64
	// UnbalancedSince is since when something does not add up.
	UnbalancedSince time.Time
	Destinations    []settledRow
	// Drift is how many unknown things were met.
	Drift      int
	Configured bool
}

type settledRow struct {
	ledger.Settled
	Refused uint64
	Link    string
}

// sourceState is a state of a source.
type sourceState struct{ Name, Kind, Meaning string }

// sourceStates are all, the worst first.
var sourceStates = []sourceState{
	{"silent", "bad", "brings nothing for longer than it should"},
	{"unbalanced", "bad", "what came in does not add up with what went out"},
	{"drift", "warn", "brings columns, types or versions that its format does not know"},
	{"nothing yet", "warn", "is configured, and has brought nothing so far"},
	{"learning", "info", "its usual gap is not known yet"},
	{"fresh", "ok", "brings events as usual"},
	{"unknown", "off", "nobody watches how fresh it is"},
}

// rank of a state: that of the worst is 0.
func rank(state string) int {
	return slices.IndexFunc(sourceStates, func(s sourceState) bool { return s.Name == state })
}

// sourceRows are all sources that are configured or were seen.
func (r *request) sourceRows() []*sourceRow {
	now, kinds := r.c.last(), r.c.configured().Sources
	balances, _ := r.balances()
	fresh, drift, names := map[string]freshness.State{}, map[string]int{}, map[string]bool{}
	for _, s := range now.Sources {
		fresh[s.Source], names[s.Source] = s, true
	}
	for _, d := range now.Drift {
		drift[d.Source]++
	}
	for name := range kinds {
		names[name] = true
	}
	for name := range balances {
		names[name] = true
	}
	rows := make([]*sourceRow, 0, len(names))
	for name := range names {
		kind, configured := kinds[name]
		row := &sourceRow{
			Name: legible(name, 100), Type: kind, Link: "/sources/" + url.PathEscape(name),
			Fresh: fresh[name], Drift: drift[name], Configured: configured,
		}
		if b, ok := balances[name]; ok {
			row.count(b)
		}
		_, watched := fresh[name]
		row.judge(watched)
		rows = append(rows, row)
	}
	return rows
}

// count takes over what the books say.
func (s *sourceRow) count(b books.SourceBalance) {
	s.Counted, s.Sums = true, b.Total
	s.Refused, s.RefusedWhole = sumOf(b.Total.Quarantined), sumOf(b.Total.PullsQuarantined)
	s.Left, s.LeftWhole = sumOf(b.Total.Skipped)+sumOf(b.Total.Dropped), sumOf(b.Total.PullsSkipped)
	// What is open for a short while is under way.
	if !b.Since.IsZero() && time.Since(b.Since) > books.Grace {
		s.UnbalancedSince = b.Since
	}
	for _, d := range b.Destinations {
		s.Destinations = append(s.Destinations, settledRow{d, sumOf(d.Quarantined), "/destinations/" + url.PathEscape(d.Name)})
	}
}

func sumOf(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

// judge finds the worst state that holds. watched: somebody knows how fresh it is.
func (s *sourceRow) judge(watched bool) {
	f := &s.Fresh
	switch {
	case f.Silent:
		s.State = "silent"
	case !s.UnbalancedSince.IsZero():
		s.State = "unbalanced"
	case s.Drift > 0:
		s.State = "drift"
	case !watched && !s.Counted && !s.Configured || !watched && s.Counted:
		s.State = "unknown"
	case f.Last.IsZero():
		s.State = "nothing yet"
	case f.Usual == 0 && f.Setting != freshness.Off && f.Allowed == 0:
		s.State = "learning"
	default:
		s.State = "fresh"
	}
	s.Kind = sourceStates[rank(s.State)].Kind
}

// sourcesPage is a part of the list.
type sourcesPage struct {
	Query, State, Sort string
	Rows               []*sourceRow
	// Found sources fit, Total there are. Number counts pages from 1 to Pages.
	Found, Total, Number, Pages int
	// ByState says how many there are of each.
	ByState []stateCount
	Counted bool
	Watched bool
}

type stateCount struct {
	sourceState
	Count int
}

// Address is that of another page of the same list.
func (p sourcesPage) Address(number int) template.URL {
	v := url.Values{}
	for name, s := range map[string]string{"q": p.Query, "state": p.State, "sort": p.Sort} {
		if s != "" {
			v.Set(name, s)
		}
	}
	if number > 1 {
		v.Set("page", strconv.Itoa(number))
	}
	return "?" + address(v)
}

// Next and Before are the numbers of the pages around.
func (p sourcesPage) Next() int   { return p.Number + 1 }
func (p sourcesPage) Before() int { return p.Number - 1 }

// States are for the choice of one.
func (p sourcesPage) States() []sourceState { return sourceStates }

// sourceOrders compare two sources; those that are equal go by their names.
var sourceOrders = map[string]func(a, b *sourceRow) int{
	"":        func(a, b *sourceRow) int { return cmp.Compare(rank(a.State), rank(b.State)) },
	"name":    func(_, _ *sourceRow) int { return 0 },
	"last":    func(a, b *sourceRow) int { return a.Fresh.Last.Compare(b.Fresh.Last) },
	"records": func(a, b *sourceRow) int { return cmp.Compare(b.Sums.Records, a.Sums.Records) },
	"open":    func(a, b *sourceRow) int { return cmp.Compare(b.Sums.Open, a.Sums.Open) },
	"refused": func(a, b *sourceRow) int { return cmp.Compare(b.Refused+b.RefusedWhole, a.Refused+a.RefusedWhole) },
}

// sourcesPage reads the query and finds the part that is meant.
func (r *request) sourcesPage() (sourcesPage, error) {
	if _, err := r.bus(); err != nil && len(r.c.last().Sources) == 0 {
		return sourcesPage{}, err
	}
	v := r.URL.Query()
	p := sourcesPage{Query: strings.TrimSpace(v.Get("q")), State: v.Get("state"), Sort: v.Get("sort")}
	order, ok := sourceOrders[p.Sort]
	if len(p.Query) > 200 || !ok || p.State != "" && rank(p.State) < 0 {
		return p, errInput.New(nil, "search sources: the text is too long, or the state or the order is none of the list")
	}
	all := r.sourceRows()
	p.Total = len(all)
	byState := map[string]int{}
	rows := all[:0]
	q := strings.ToLower(p.Query)
	for _, row := range all {
		byState[row.State]++
		p.Counted, p.Watched = p.Counted || row.Counted, p.Watched || !row.Fresh.First.IsZero()
		fits := q == "" || strings.Contains(strings.ToLower(row.Name), q) || strings.Contains(strings.ToLower(row.Type), q)
		if fits && (p.State == "" || p.State == row.State) {
			rows = append(rows, row)
		}
	}
	for _, s := range sourceStates {
		if n := byState[s.Name]; n > 0 {
			p.ByState = append(p.ByState, stateCount{s, n})
		}
	}
	slices.SortFunc(rows, func(a, b *sourceRow) int {
		return cmp.Or(order(a, b), strings.Compare(a.Name, b.Name))
	})
	p.Found, p.Pages = len(rows), max(1, (len(rows)+sourcesAtOnce-1)/sourcesAtOnce)
	p.Number, _ = strconv.Atoi(v.Get("page"))
	p.Number = min(max(1, p.Number), p.Pages)
	from := (p.Number - 1) * sourcesAtOnce
	p.Rows = rows[from:min(len(rows), from+sourcesAtOnce)]
	return p, nil
}

func getSources(r *request) error {
	p, err := r.sourcesPage()
	if err != nil {
		return err
	}
	return r.page("sources", p)
}

func getSourceList(r *request) error {
	p, err := r.sourcesPage()
	if err != nil {
		return err
	}
	return r.fragment("source-list", p)
}

// sourcePage is one source.
type sourcePage struct {
	*sourceRow
	Meaning string
	Drifts  []driftRow
	// Counts are sums with their reasons.
	Refusals, Lefts []codeCount
	// Problems are in sentences.
	Problems []string
	// SourceQuery is the part of an address that means the source.
	SourceQuery template.URL
}

// driftRow is something that a format does not know.
type driftRow struct {
	freshness.Drift
	Sample string
}

func (r *request) sourcePage() (sourcePage, error) {
	if _, err := r.bus(); err != nil && len(r.c.last().Sources) == 0 {
		return sourcePage{}, err
	}
	name := r.PathValue("name")
	link := "/sources/" + url.PathEscape(name)
	rows := r.sourceRows()
	i := slices.IndexFunc(rows, func(s *sourceRow) bool { return s.Link == link })
	if i < 0 {
		return sourcePage{}, errNotFound.New(nil, "there is no source %q", legible(name, 100))
	}
	p := sourcePage{sourceRow: rows[i], SourceQuery: address(url.Values{"source": {name}})}
	p.Meaning = sourceStates[rank(p.State)].Meaning
	for _, d := range r.c.last().Drift {
		if d.Source != name || len(p.Drifts) == mostDrift {
			continue
		}
		row := driftRow{d, legible(d.Sample, 2<<10)}
		row.Name, row.Format = legible(d.Name, 200), legible(d.Format, 60)
		p.Drifts = append(p.Drifts, row)
	}
	t := p.Sums
	p.Refusals = append(counts(t.PullsQuarantined), counts(t.Quarantined)...)
	p.Lefts = append(append(counts(t.PullsSkipped), counts(t.Skipped)...), counts(t.Dropped)...)
	for _, problem := range r.c.last().Problems {
		if problem.Area == "source" && problem.Name == name {
			p.Problems = append(p.Problems, legible(problem.What+": "+problem.Fix, 500))
		}
	}
	return p, nil
}

// codeCount is how many there are of a reason.
type codeCount struct {
	Code  string
	Count uint64
}

func counts(m map[string]uint64) []codeCount {
	var all []codeCount
	for _, code := range slices.Sorted(maps.Keys(m)) {
		all = append(all, codeCount{legible(code, 100), m[code]})
	}
	return all
}

func getSource(r *request) error {
	p, err := r.sourcePage()
	if err != nil {
		return err
	}
	return r.titled("Source "+p.Name, "source", p)
}

func getSourceState(r *request) error {
	p, err := r.sourcePage()
	if err != nil {
		return err
	}
	return r.fragment("source-state", p)
}
