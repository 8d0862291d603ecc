package console

import (
	"context"
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/internal/selection"
	"github.com/penstock/penstock/services/operate/eventlog"
	"github.com/penstock/penstock/topology"
)

func init() {
	register(page{
		path: "/events", title: "Events", nav: navWatch, order: 40, icon: "events", get: getEvents,
		routes: []route{
			{pattern: "GET /events/more", do: getMoreEvents},
			{pattern: "GET /events/check", do: checkExpression},
			{pattern: "GET /events/live", do: getLiveEvents},
			{pattern: "GET /events/stream", do: streamEvents},
			{pattern: "GET /events/{place}", do: getEvent},
			{pattern: "GET /events/{place}/journey", do: getJourney},
			{pattern: "GET /events/{place}/document", do: downloadDocument},
		},
	})
}

// Limits of the search.
const (
	eventsAtOnce = 50
	// eventsOnPage is how many rows one page grows to; then the next page begins.
	eventsOnPage = 1000
	// searchTime bounds how long one page of results is looked for; what is older comes
	// with the next.
	searchTime   = 1500 * time.Millisecond
	searchFrames = 4000
	findTime     = 8 * time.Second // for an event by its id
	mostTyped    = 4 << 10         // bytes of one field
	mostTypes    = 20
	liveRate     = 5 // events a second when nothing is said
	mostLiveRate = 50
)

// eventQuery is what the form of the events page says, as it was typed.
type eventQuery struct {
	Last, From, To, Types, Source, Object, Text, Where, ID, Rate string
	// Wrong says what is wrong with a field, by its name.
	Wrong map[string]string
	// Mistakes are those of Where.
	Mistakes []mistake
}

// mistake is one of an expression, with the line that it is in and the blanks that bring
// a mark below its place.
type mistake struct {
	condition.Mistake
	Source, Blanks string
}

// lasts are the spans that can be chosen by name.
var lasts = []option{{"", "any time"}, {"15m", "last 15 minutes"}, {"1h", "last hour"}, {"6h", "last 6 hours"}, {"24h", "last 24 hours"}, {"72h", "last 3 days"}}

// option is one of a select.
type option struct{ Value, Label string }

// Lasts are for the template.
func (q *eventQuery) Lasts() []option { return lasts }

// Rates are for the template.
func (q *eventQuery) Rates() []option {
	return []option{{"1", "1 a second"}, {"5", "5 a second"}, {"20", "20 a second"}, {"50", "50 a second"}}
}

// Any tells whether anything but the newest events is asked for.
func (q *eventQuery) Any() bool { return len(q.values()) > 0 }

func readQuery(v url.Values) *eventQuery {
	get := func(name string) string { return strings.TrimSpace(v.Get(name)) }
	return &eventQuery{
		Last: get("last"), From: get("from"), To: get("to"), Types: get("types"), Source: get("source"), Object: get("object"),
		Text: v.Get("text"), Where: get("where"), ID: get("id"), Rate: get("rate"), Wrong: map[string]string{},
	}
}

// values are those that say something, for addresses.
func (q *eventQuery) values() url.Values {
	v := url.Values{}
	for name, s := range map[string]string{
		"last": q.Last, "from": q.From, "to": q.To, "types": q.Types, "source": q.Source, "object": q.Object, "text": q.Text, "where": q.Where,
	} {
		if s != "" {
			v.Set(name, s)
		}
	}
	return v
}

// Query is the part of an address behind ?, for the template.
func (q *eventQuery) Query() template.URL { return address(q.values()) }

// ReplayQuery is what the form that starts a replay is filled in with.
func (q *eventQuery) ReplayQuery() template.URL {
	e := q.events(time.Now())
	v := q.values()
	v.Del("last")
	for name, at := range map[string]time.Time{"from": e.From, "to": e.To} {
		if v.Del(name); !at.IsZero() {
			v.Set(name, at.Format(time.RFC3339))
		}
	}
	return address(v)
}

// address is the part of an address behind ?.
func address(v url.Values) template.URL { return template.URL(v.Encode()) } //nolint:gosec // encoded

// StreamQuery is that of what is followed live.
func (q *eventQuery) StreamQuery() template.URL {
	v := q.values()
	for _, name := range []string{"last", "from", "to"} {
		v.Del(name)
	}
	v.Set("rate", strconv.Itoa(q.rate()))
	return address(v)
}

func (q *eventQuery) rate() int {
	n, err := strconv.Atoi(q.Rate)
	if err != nil || n < 1 {
		return liveRate
	}
	return min(n, mostLiveRate)
}

// Chosen is the rate that counts, for the template.
func (q *eventQuery) Chosen() string { return strconv.Itoa(q.rate()) }

// timeForms are what a time may look like: those of browsers, and RFC 3339.
var timeForms = []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"}

// readTime reads a time in UTC where it says nothing else.
func readTime(s string) (time.Time, bool) {
	for _, form := range timeForms {
		if at, err := time.Parse(form, s); err == nil {
			return at.UTC(), true
		}
	}
	return time.Time{}, false
}

var idForm = regexp.MustCompile(`^[0-9a-fA-F]{32}$`)

// check fills in Wrong and Mistakes, and tells whether there are none.
func (q *eventQuery) check() bool {
	for name, s := range map[string]string{
		"types": q.Types, "source": q.Source, "object": q.Object, "text": q.Text, "where": q.Where, "from": q.From, "to": q.To, "id": q.ID,
	} {
		if len(s) > mostTyped {
			q.Wrong[name] = "use at most 4,096 bytes"
		}
	}
	if len(q.Wrong) > 0 {
		return false // what is too long is not looked into
	}
	times := map[string]time.Time{}
	for name, s := range map[string]string{"from": q.From, "to": q.To} {
		if at, ok := readTime(s); s != "" && !ok {
			q.Wrong[name] = "use a time in UTC, e.g. 2026-05-01 10:00"
		} else {
			times[name] = at
		}
	}
	if from, to := times["from"], times["to"]; !from.IsZero() && !to.IsZero() && !from.Before(to) {
		q.Wrong["to"] = "it is not behind the beginning: nothing can be in between"
	}
	if q.Last != "" && !slices.ContainsFunc(lasts, func(o option) bool { return o.Value == q.Last }) {
		q.Wrong["last"] = "choose one of the list"
	}
	types := q.types()
	if _, err := condition.ParseTypes(types); err != nil {
		why, fix := condition.Explain(err)
		q.Wrong["types"] = legible(why+": "+fix, 400)
	} else if len(types) > mostTypes {
		q.Wrong["types"] = "use at most " + strconv.Itoa(mostTypes)
	}
	if _, err := selection.ParseObject(q.Object); err != nil {
		why, fix := condition.Explain(err)
		q.Wrong["object"] = legible(why+": "+fix, 400)
	}
	if q.ID != "" && !idForm.MatchString(q.ID) {
		q.Wrong["id"] = "an id has 32 hex digits"
	}
	if q.Where != "" {
		if q.Mistakes = mistakesOf(q.Where); len(q.Mistakes) > 0 {
			q.Wrong["where"] = "the expression cannot be used"
		}
	}
	return len(q.Wrong) == 0
}

// mistakesOf finds what is wrong in an expression, and shows where.
func mistakesOf(where string) []mistake {
	var all []mistake
	lines := strings.Split(strings.ReplaceAll(where, "\r\n", "\n"), "\n")
	for _, m := range condition.Mistakes(where) {
		one := mistake{Mistake: m}
		one.What = legible(plainer(m.What), 300)
		if m.Line >= 1 && m.Line <= len(lines) {
			line := []rune(lines[m.Line-1])
			at := min(m.Column-1, len(line))
			from := max(0, at-60)
			one.Source = legible(string(line[from:min(len(line), at+40)]), 400)
			one.Blanks = strings.Repeat(" ", len([]rune(legible(string(line[from:at]), 400))))
		}
		if all = append(all, one); len(all) == 5 {
			break
		}
	}
	return all
}

// plainer shortens what the parser of CEL says: it lists all that could have followed.
func plainer(what string) string {
	what, _, _ = strings.Cut(strings.TrimPrefix(what, "Syntax error: "), " expecting ")
	for _, words := range []string{"mismatched input ", "extraneous input ", "no viable alternative at input "} {
		what = strings.Replace(what, words, "did not expect ", 1)
	}
	return strings.ReplaceAll(what, "'<EOF>'", "the end here: something is missing")
}

func (q *eventQuery) types() []string {
	return strings.FieldsFunc(q.Types, func(r rune) bool { return r == ' ' || r == ',' || r == '\n' || r == '\t' || r == '\r' })
}

// events is what is meant, once it is checked.
func (q *eventQuery) events(now time.Time) jobs.Events {
	e := jobs.Events{Types: q.types(), Object: q.Object, Text: q.Text, Where: q.Where}
	if q.Source != "" {
		e.Sources = []string{q.Source}
	}
	if d, err := time.ParseDuration(q.Last); err == nil {
		e.From = now.Add(-d).UTC().Truncate(time.Second)
	}
	if at, ok := readTime(q.From); ok {
		e.From = at
	}
	if at, ok := readTime(q.To); ok {
		e.To = at
	}
	return e
}

// eventRow is one event in a list. All its text is safe to be shown as text.
type eventRow struct {
	Place, Source, Account, Region, Replay string
	Type                                   []string // its words
	Time, Stored                           time.Time
	Doc                                    glimpse
}

func rowOf(f *eventlog.Found, text string) eventRow {
	return eventRow{
		Place: f.Place.String(), Type: strings.Split(legible(f.Type, 200), "."), Source: legible(f.Source, 100), Account: legible(f.Account, 60), Region: legible(f.Region, 40),
		Replay: legible(f.Replay, 60), Time: f.Time.UTC(), Stored: f.Stored.UTC(), Doc: glimpseOf(f.Doc, text),
	}
}

// eventList is a stretch of what was found.
type eventList struct {
	Query *eventQuery
	Rows  []eventRow
	// Shown are the rows of the page with these.
	Shown int
	// More is the query for those that are older; Append tells whether they still go on
	// this page.
	More   template.URL
	Append bool
	// Note says how far was looked.
	eventlog.Page
	// Cut: the search ended because its time was up, not because it was full.
	Cut  bool
	Took time.Duration
	// Gone is the part of the time range that the log has no more.
	Gone *gone
	// Oldest is when the oldest frame of the log was stored, at the end of what there is;
	// Whole, when nothing was ever trimmed.
	Oldest time.Time
	Whole  bool
}

type gone struct{ From, To time.Time }

// eventsPage is what the page shows.
type eventsPage struct {
	Query   *eventQuery
	List    *eventList
	Sources []string
	// Live: what comes is followed.
	Live bool
	// Notice is said above the list.
	Notice string
}

func getEvents(r *request) error {
	bus, err := r.bus()
	if err != nil {
		return err
	}
	p := eventsPage{Query: readQuery(r.URL.Query()), Sources: r.c.sourceNames()}
	if !p.Query.check() {
		return r.page("events", p)
	}
	if p.Query.ID != "" {
		return findEvent(r, bus, p)
	}
	if p.List, err = searchEvents(r, bus, p.Query); err != nil {
		return err
	}
	return r.page("events", p)
}

// turn waits until few enough search the log; done lets the next one in.
func (r *request) turn() (done func(), err error) {
	select {
	case r.c.searches <- struct{}{}:
		return func() { <-r.c.searches }, nil
	case <-r.Context().Done():
		return nil, errBusy.New(context.Cause(r.Context()), "search the event log")
	}
}

// searchEvents looks for one stretch of events.
func searchEvents(r *request, bus *topology.Bus, q *eventQuery) (*eventList, error) {
	done, err := r.turn()
	if err != nil {
		return nil, err
	}
	defer done()
	before, err := eventlog.ParsePlace(r.URL.Query().Get("before"))
	if err != nil {
		return nil, errInput.New(err, "go on with the search")
	}
	shown, _ := strconv.Atoi(r.URL.Query().Get("shown"))
	began := time.Now()
	e := q.events(began)
	if at, ok := readTime(r.URL.Query().Get("since")); ok {
		e.From = at // the beginning stays where it was on the first page
	}
	list := &eventList{Query: q}
	list.Page, err = eventlog.New(bus).Search(r.Context(), e, before, eventsAtOnce, eventlog.Budget{Frames: searchFrames, Time: searchTime})
	if err != nil {
		return nil, err
	}
	list.Took = time.Since(began).Round(10 * time.Millisecond)
	for i := range list.Events {
		list.Rows = append(list.Rows, rowOf(&list.Events[i], q.Text))
	}
	list.Events = nil // the documents are not needed any more
	list.Shown = max(0, shown) + len(list.Rows)
	list.Cut = list.Page.More && len(list.Rows) < eventsAtOnce
	if list.Page.More {
		v := q.values()
		v.Set("before", list.Next.String())
		if q.Last != "" {
			v.Set("since", e.From.Format(time.RFC3339Nano))
		}
		if list.Append = list.Shown < eventsOnPage; list.Append {
			v.Set("shown", strconv.Itoa(list.Shown))
		}
		list.More = address(v)
	}
	if list.Kept.IsZero() && (list.Page.More || !e.From.IsZero()) {
		return list, nil // the end of the log is not in sight
	}
	log := bus.History(topology.Events, nil)
	first, _, err := log.Bounds(r.Context())
	if err != nil {
		return nil, err
	}
	list.Whole = first == 1
	if !list.Kept.IsZero() && e.From.Before(list.Kept) && !list.Whole {
		list.Gone = &gone{e.From, list.Kept}
	}
	if !list.Page.More {
		_, oldest, err := log.Pending(r.Context(), first)
		if err != nil {
			return nil, err
		}
		list.Oldest = oldest.UTC()
	}
	return list, nil
}

func getMoreEvents(r *request) error {
	bus, err := r.bus()
	if err != nil {
		return err
	}
	q := readQuery(r.URL.Query())
	if !q.check() {
		return errInput.New(nil, "go on with a search that has changed")
	}
	list, err := searchEvents(r, bus, q)
	if err != nil {
		return err
	}
	return r.fragment("event-rows", list)
}

// findEvent goes to the event with an id.
func findEvent(r *request, bus *topology.Bus, p eventsPage) error {
	leave, err := r.turn()
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(r.Context(), findTime)
	defer cancel()
	var done, total uint64
	e := p.Query.events(time.Now())
	found, err := eventlog.New(bus).ByID(ctx, strings.ToLower(p.Query.ID), e.Span, func(d, t uint64) { done, total = d, t })
	switch {
	case err == nil:
		http.Redirect(r.w, r.Request, "/events/"+found.Place.String(), http.StatusSeeOther)
		return nil
	case r.Context().Err() != nil:
		return err
	case ctx.Err() != nil:
		p.Notice = "The event was not found within " + findTime.String() + ", in which " + num(done) + " of " + num(total) +
			" frames were looked at. Give a time range to look at fewer, or use: penstock trace " + p.Query.ID
	case errors.Is(err, eventlog.ErrGone), fault.ClassOf(err) == fault.Reject:
		p.Notice = "No event with this id is in the log, or in this part of it. Older ones are at the destinations only."
	default:
		return err
	}
	return r.page("events", p)
}

// checkExpression says what is wrong in an expression while it is typed.
func checkExpression(r *request) error {
	q := &eventQuery{Where: strings.TrimSpace(r.URL.Query().Get("where")), Wrong: map[string]string{}}
	q.check()
	return r.fragment("event-mistakes", q)
}

func getLiveEvents(r *request) error {
	if _, err := r.bus(); err != nil {
		return err
	}
	p := eventsPage{Query: readQuery(r.URL.Query()), Sources: r.c.sourceNames()}
	p.Query.Last, p.Query.From, p.Query.To, p.Query.ID = "", "", "", ""
	p.Live = p.Query.check()
	return r.page("events", p)
}

// streamEvents sends what comes, at most so many a second, and what was left out.
func streamEvents(r *request) error {
	bus, err := r.bus()
	if err != nil {
		return err
	}
	q := readQuery(r.URL.Query())
	if !q.check() {
		return errInput.New(nil, "follow events")
	}
	e := q.events(time.Now())
	e.Span = jobs.Span{}
	return r.stream(func(ctx context.Context, send func(event, html string) error) error {
		var shown, leftOut uint64
		return eventlog.New(bus).Follow(ctx, e, float64(q.rate()), func(f *eventlog.Found, left uint64) error {
			shown++
			leftOut += left
			row, err := r.c.render("event-row", view{Data: rowOf(f, q.Text)})
			if err != nil {
				return err
			}
			if err := send("event", string(row)); err != nil {
				return err
			}
			note := num(shown) + " shown"
			if leftOut > 0 {
				note += ", " + num(leftOut) + " left out by the rate"
			}
			return send("count", template.HTMLEscapeString(note))
		})
	})
}
