package console

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/services/internal/standing"
	"github.com/penstock/penstock/services/operate/destinations"
	"github.com/penstock/penstock/topology"
)

func init() {
	register(page{
		path: "/destinations", title: "Destinations", nav: navWatch, order: 30, icon: "destination", get: getDestinations,
		routes: []route{
			{pattern: "GET /destinations/list", do: getDestinationList},
			{pattern: "GET /destinations/{name}", do: getDestination},
			{pattern: "GET /destinations/{name}/state", do: getDestinationState},
			{pattern: "GET /destinations/{name}/pause", do: askPause, role: operator},
			{pattern: "POST /destinations/{name}/pause", do: pauseDestination, role: operator},
			{pattern: "GET /destinations/{name}/resume", do: askResume, role: operator},
			{pattern: "POST /destinations/{name}/resume", do: resumeDestination, role: operator},
		},
	})
}

// Limits of the pages of destinations.
const (
	destinationsFresh = 2 * time.Second // what was asked for is good for all who look
	mostReason        = 500             // bytes
	followWithin      = 4 * time.Second // processes usually follow at once
	mostRemark        = 400             // bytes
)

// destinationRow is one destination. All its text is safe to be shown as text.
type destinationRow struct {
	*destinations.Status
	// Link is its page.
	Link string
	// Lag in events as the log counts them, where HasEvents.
	LagEvents uint64
	HasEvents bool
	// Counted: the counts come from the books.
	Counted       bool
	Waiting       uint64
	Refused       uint64
	Rate          float64
	Remarks       []string
	Processes     []processRow
	ReplayQuery   template.URL
	MayPause      bool
	MayResume     bool
	Kind          string // of the state, for its colour: ok, warn, bad, off
	RefusedByCode []codeCount
	Types         []string
	RefusedQuery  template.URL
}

type processRow struct {
	Name string
	standing.State
	Error string
}

// stateKind is how much a state asks for attention.
func stateKind(state string) string {
	switch state {
	case standing.Running:
		return "ok"
	case standing.Failing:
		return "bad"
	case standing.Paused, standing.Starting, standing.Stopping:
		return "warn"
	}
	return "off"
}

// destinationsNow asks the processes, at most every destinationsFresh.
func (r *request) destinationsNow() ([]*destinations.Status, error) {
	bus, err := r.bus()
	if err != nil {
		return nil, err
	}
	return r.c.looks.destinations.get(r.Context(), destinationsFresh, func(ctx context.Context) ([]*destinations.Status, error) {
		var configured []destinations.Configured
		for name, kind := range r.c.configured().Destinations {
			configured = append(configured, destinations.Configured{Name: name, Type: kind})
		}
		return destinations.Now(ctx, bus, configured)
	})
}

// destinationRows are all destinations with what the books say of them.
func (r *request) destinationRows() ([]destinationRow, error) {
	list, err := r.destinationsNow()
	if err != nil {
		return nil, err
	}
	summary, counted := r.summary()
	rates := r.c.destinationRates()
	rows := make([]destinationRow, 0, len(list))
	for _, s := range list {
		row := destinationRow{
			Status: s, Link: "/destinations/" + url.PathEscape(s.Name), Rate: rates[s.Name], Kind: stateKind(s.State),
			ReplayQuery: address(url.Values{"destination": {s.Name}}), RefusedQuery: address(url.Values{"destination": {s.Name}}),
			MayPause: !s.Paused(), MayResume: s.Paused(),
		}
		for _, remark := range s.Remarks() {
			row.Remarks = append(row.Remarks, legible(remark, mostRemark))
		}
		for name, p := range s.Processes {
			row.Processes = append(row.Processes, processRow{legible(name, 100), p, legible(p.Error, mostRemark)})
		}
		slices.SortFunc(row.Processes, func(a, b processRow) int { return strings.Compare(a.Name, b.Name) })
		for _, d := range summary.Destinations {
			if d.Name != s.Name || !counted {
				continue
			}
			row.Counted, row.Types, row.Waiting = true, d.Types, d.Waiting
			c := *s // what all who look share stays as it is
			c.Confirmed, c.Filtered, c.Skipped, c.Quarantined = d.Confirmed, d.Filtered, d.Skipped, d.Quarantined
			row.Status, row.Refused = &c, c.QuarantinedSum()
			row.RefusedByCode = counts(d.Quarantined)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

type destinationsPage struct{ Rows []destinationRow }

func getDestinations(r *request) error {
	rows, err := r.destinationRows()
	if err != nil {
		return err
	}
	return r.page("destinations", destinationsPage{rows})
}

func getDestinationList(r *request) error {
	rows, err := r.destinationRows()
	if err != nil {
		return err
	}
	return r.fragment("destination-list", destinationsPage{rows})
}

// destinationOf finds the one that the address names, with its lag in events.
func destinationOf(r *request) (destinationRow, error) {
	rows, err := r.destinationRows()
	if err != nil {
		return destinationRow{}, err
	}
	name := r.PathValue("name")
	i := slices.IndexFunc(rows, func(d destinationRow) bool { return d.Name == name })
	if i < 0 {
		return destinationRow{}, errNotFound.New(nil, "there is no destination %q", legible(name, 100))
	}
	return rows[i], nil
}

func getDestination(r *request) error {
	row, err := destinationOf(r)
	if err != nil {
		return err
	}
	r.countLag(&row)
	return r.titled("Destination "+row.Name, "destination", row)
}

func getDestinationState(r *request) error {
	row, err := destinationOf(r)
	if err != nil {
		return err
	}
	r.countLag(&row)
	return r.fragment("destination-state", row)
}

// countLag counts the events that wait, from the headers of the log, if that is quick.
func (r *request) countLag(row *destinationRow) {
	bus, err := r.bus()
	if err != nil || row.First == 0 {
		return
	}
	if row.LagFrames == 0 {
		row.HasEvents = true
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	n, _, err := bus.Unconfirmed(ctx, row.Name)
	row.LagEvents, row.HasEvents = n, err == nil
}

// askPause asks back, and says what will wait.
func askPause(r *request) error {
	row, err := destinationOf(r)
	if err != nil {
		return err
	}
	if row.Paused() {
		return errInput.New(nil, "%s", already(row.Status))
	}
	return r.confirm(confirm{
		Title: "Pause " + row.Name + "?",
		Text:  concerns(row) + ". Its place in the event log stays, and the log is kept for it from there on: a long pause fills the disk. Other destinations go on.",
		Count: row.LagFrames, Unit: "frames wait for it now", Verb: "Pause",
		Fields: []field{{Name: "reason", Label: "Reason", Type: "text", Hint: "for those who look at it later, e.g. index migration, CHG-1234", Required: true}},
	})
}

// concerns says which processes follow.
func concerns(row destinationRow) string {
	switch n := len(row.Processes); n {
	case 0:
		return "No process that runs has it"
	case 1:
		return "1 process delivers to it"
	default:
		return fmt.Sprintf("%d processes deliver to it", n)
	}
}

func askResume(r *request) error {
	row, err := destinationOf(r)
	if err != nil {
		return err
	}
	if !row.Paused() {
		return errInput.New(nil, "%s", already(row.Status))
	}
	return r.confirm(confirm{
		Title: "Go on with " + row.Name + "?", Text: concerns(row) + ". It goes on where it was.",
		Count: row.LagFrames, Unit: "frames wait for it", Verb: "Resume",
		Fields: []field{{Name: "reason", Label: "Reason", Type: "text", Hint: "may be left empty"}},
	})
}

func pauseDestination(r *request) error  { return steerDestination(r, true) }
func resumeDestination(r *request) error { return steerDestination(r, false) }

// already says that somebody was faster.
func already(s *destinations.Status) string {
	if s.Paused() {
		return fmt.Sprintf("%s was paused by %s at %s", s.Name, legible(s.Control.By, 100), s.Control.At.UTC().Format(time.DateTime))
	}
	if s.Control != nil {
		return fmt.Sprintf("%s goes on already, by %s at %s", s.Name, legible(s.Control.By, 100), s.Control.At.UTC().Format(time.DateTime))
	}
	return s.Name + " is not paused"
}

// steerDestination says so to all processes, and waits a moment for them to follow.
func steerDestination(r *request, pause bool) error {
	bus, err := r.bus()
	if err != nil {
		return err
	}
	reason := strings.TrimSpace(r.PostFormValue("reason"))
	switch {
	case pause && reason == "":
		return errInput.New(nil, "say why %s is to be paused", r.PathValue("name"))
	case len(reason) > mostReason:
		return errInput.New(nil, "use at most %d bytes for the reason", mostReason)
	}
	r.c.looks.destinations.forget()
	list, err := r.destinationsNow()
	if err != nil {
		return err
	}
	c := topology.Control{Destination: r.PathValue("name"), Paused: pause, By: r.user.name, At: time.Now().UTC().Truncate(time.Second), Reason: reason}
	s, err := destinations.Pick(list, c.Destination)
	if errors.Is(err, destinations.ErrUnknown) {
		return errNotFound.New(nil, "there is no destination %q", legible(c.Destination, 100))
	}
	if err != nil {
		return err
	}
	// Somebody else may have been faster: what they said and why is not written over.
	if s.Paused() == pause {
		return errInput.New(nil, "%s", already(s))
	}
	if err := destinations.Say(r.Context(), bus, list, c, "console"); err != nil {
		return err
	}
	followed, err := destinations.Follow(r.Context(), bus, c, followWithin)
	r.c.looks.destinations.forget()
	if err != nil {
		return err
	}
	what := s.Name + " goes on"
	if pause {
		what = s.Name + " is paused"
	}
	switch {
	case followed.Processes == 0:
		what += "; no process that runs has it."
	case followed.Behind > 0:
		what += fmt.Sprintf("; %d of %d processes still finish what is in hand.", followed.Behind, followed.Processes)
	default:
		what += "."
	}
	return r.done(what, "")
}
