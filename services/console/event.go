package console

import (
	"encoding/hex"
	"errors"
	"html/template"
	"net/url"
	"strconv"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/operate/books"
	"github.com/penstock/penstock/services/operate/eventlog"
	"github.com/penstock/penstock/topology"
)

// eventPage shows one event. All its text is safe to be shown as text.
type eventPage struct {
	Place, ID, Type, Source, Format, Account, Region, Replay string
	Time, Stored                                             time.Time
	Frame                                                    uint64
	Index                                                    int
	Record                                                   uint64
	Doc                                                      template.HTML
	Bytes                                                    int
	Cut                                                      bool
	Origin                                                   []fact
	// Object names what it came from, as traces and replays are asked for; "" when it
	// has no name. ObjectQuery, SourceQuery and ReplayQuery are parts of addresses.
	Object                                       string
	ObjectQuery, SourceQuery, ReplayQuery, Trace template.URL
}

// fact is a line of a list of what is known.
type fact struct {
	Name, Value string
	// At is used instead of Value where it is set.
	At time.Time
}

// eventAt finds the event that the address names.
func eventAt(r *request) (eventlog.Found, error) {
	bus, err := r.bus()
	if err != nil {
		return eventlog.Found{}, err
	}
	place, err := eventlog.ParsePlace(r.PathValue("place"))
	if err != nil || place == (eventlog.Place{}) {
		return eventlog.Found{}, errNotFound.New(err, "there is no event at this place")
	}
	found, err := eventlog.New(bus).At(r.Context(), place)
	if errors.Is(err, eventlog.ErrGone) {
		err = errNotFound.New(nil, "the event %s is not in the log, or not any more: older ones are at the destinations only", place)
	}
	return found, err
}

func getEvent(r *request) error {
	found, err := eventAt(r)
	if err != nil {
		return err
	}
	p := eventPage{
		Place: found.Place.String(), ID: found.ID, Type: legible(found.Type, 300), Source: legible(found.Source, 200), Format: legible(found.Format, 100),
		Account: legible(found.Account, 100), Region: legible(found.Region, 60), Replay: legible(found.Replay, 100),
		Time: found.Time.UTC(), Stored: found.Stored.UTC(), Frame: found.Place.Sequence, Index: found.Place.Index, Record: found.Record,
		Bytes: len(found.Doc), Trace: address(url.Values{"what": {found.ID}}),
		SourceQuery: address(url.Values{"source": {found.Source}}),
	}
	p.Doc, p.Cut = pretty(found.Doc)
	if o := found.Origin; o != nil {
		p.Origin = originFacts(o)
		p.Object = nameOf(o)
	}
	if p.Object != "" {
		p.Trace = address(url.Values{"what": {p.Object}})
		p.ObjectQuery = address(url.Values{"object": {p.Object}})
		p.ReplayQuery = p.ObjectQuery
	}
	p.Object = legible(p.Object, 1200)
	return r.page("event", p)
}

// nameOf is what one can ask for an origin by: the address of its object, or the id of
// its message.
func nameOf(o *messages.Origin) string {
	if o.GetBucket() != "" {
		return "s3://" + o.GetBucket() + "/" + o.GetKey()
	}
	return o.GetMessageId()
}

// originFacts are what is known of where events came from.
func originFacts(o *messages.Origin) []fact {
	var all []fact
	add := func(name, value string) {
		if value != "" {
			all = append(all, fact{Name: name, Value: legible(value, 1200)})
		}
	}
	at := func(name string, ns int64) {
		if ns > 0 {
			all = append(all, fact{Name: name, At: time.Unix(0, ns).UTC()})
		}
	}
	add("Bucket", o.GetBucket())
	add("Key", o.GetKey())
	add("Version", o.GetVersion())
	add("ETag", o.GetEtag())
	add("Queue", o.GetQueue())
	add("Message", o.GetMessageId())
	add("API", o.GetApi())
	add("Asked for", o.GetResource())
	add("Account", o.GetAccount())
	add("Region", o.GetRegion())
	at("Created", o.GetCreated())
	at("Received", o.GetReceived())
	add("Pull", hex.EncodeToString(o.GetPull()))
	return all
}

// downloadDocument sends the document as it is.
func downloadDocument(r *request) error {
	found, err := eventAt(r)
	if err != nil {
		return err
	}
	h := r.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Disposition", `attachment; filename="event-`+found.ID+`.json"`)
	h.Set("Content-Length", strconv.Itoa(len(found.Doc)))
	h.Set("Cache-Control", "no-store")
	_, _ = r.w.Write(found.Doc) // who asked has gone
	return nil
}

// journey is what became of what an event came from, and of its frame.
type journey struct {
	Steps []step
	// Settled says which destinations have done with the frame of the event.
	Settled []topology.Settled
	Pull    string
	State   string
	// Problems of the pull; Missing says why there is no journey.
	Problems []string
	Missing  string
}

type step struct {
	books.Step
	// Took is since the step before, "" where that is not known.
	Took string
}

// getJourney answers with the journey: the books may take a moment, so it comes behind
// the page.
func getJourney(r *request) error {
	found, err := eventAt(r)
	if err != nil {
		return err
	}
	bus, err := r.bus()
	if err != nil {
		return err
	}
	var j journey
	if j.Settled, err = bus.Settled(r.Context(), found.Place.Sequence, found.Type); err != nil {
		return err
	}
	j.Pull = hex.EncodeToString(found.Origin.GetPull())
	ledger := r.books()
	if ledger == nil || j.Pull == "" {
		j.Missing = "No process keeps the ledger's books, so the journey is not known. See: penstock trace " + found.ID
		return r.fragment("event-journey", j)
	}
	trail, err := ledger.Pull(r.Context(), j.Pull)
	switch {
	case errors.Is(err, books.ErrUnknown):
		j.Missing = "The ledger does not know this event's object yet, or not any more."
	case err != nil:
		j.Missing = "The ledger does not answer: " + legible(err.Error(), 400)
	}
	j.State = string(trail.Pull.State)
	for _, p := range trail.Pull.Problems {
		j.Problems = append(j.Problems, legible(p, 400))
	}
	var last time.Time
	for _, s := range trail.Steps {
		s.What, s.Destination = legible(s.What, 500), legible(s.Destination, 100)
		one := step{Step: s}
		if !last.IsZero() && !s.At.IsZero() && s.At.After(last) {
			one.Took = dur(s.At.Sub(last))
		}
		if !s.At.IsZero() {
			last = s.At
		}
		j.Steps = append(j.Steps, one)
	}
	return r.fragment("event-journey", j)
}
