package console

import (
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/operate/quarantine"
	"github.com/penstock/penstock/topology"
)

func init() {
	register(page{
		path: "/quarantine", title: "Quarantine", nav: navRepair, order: 20, icon: "quarantine", get: getQuarantine,
		routes: []route{
			{"GET /quarantine/export", exportQuarantine, readOnly},
			{"GET /quarantine/{id}", getEntry, readOnly},
			{"GET /quarantine/redrive", askRedrive, operator},
			{"POST /quarantine/redrive", startRedrive, operator},
			{"GET /quarantine/discard", askDiscard, operator},
			{"POST /quarantine/discard", startDiscard, operator},
		},
	})
}

// Bounds of what is shown of the quarantine.
const (
	shownEntries = 50
	shownFacets  = 12
	// shownBytes of an entry are shown; an export has all of them.
	shownBytes = 16 << 10
)

// quarantinePage is a stretch of the entries that fit, and what they have in common.
type quarantinePage struct {
	Filter quarantine.Filter
	// From and To as in the form.
	From, To string
	// Query is the filter as an address has it.
	Query  string
	Facets []facet
	All    quarantine.Facets
	quarantine.Page
	// Filtered: some entries may not fit.
	Filtered bool
	// Older is the address of the next page, "" at the end; First of the first one.
	Older, First string
	Operator     bool
}

// facet is one thing that entries have in common.
type facet struct {
	Name string
	// Chosen is the value that was chosen, Without the address without that choice.
	Chosen, Without string
	Values          []facetValue
	// Left out because there are too many.
	Left int
}

type facetValue struct {
	Name    string
	Entries uint64
	Href    string
	// Percent of the entries, for a bar.
	Percent int
}

// entriesOf reads which entries are meant. It is the same in addresses and forms.
func entriesOf(r *request) (quarantine.Filter, error) {
	f := quarantine.Filter{
		Stage: r.FormValue("stage"), Source: r.FormValue("source"), Code: r.FormValue("code"),
		Destination: r.FormValue("destination"), Text: strings.TrimSpace(r.FormValue("text")),
	}
	if id := r.FormValue("id"); id != "" {
		f.IDs = []string{id}
	}
	var err error
	f.Span, err = spanOf(r)
	return f, err
}

// queryOf is the address of a filter, without ?.
func queryOf(f quarantine.Filter) url.Values {
	q := url.Values{}
	set := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	set("stage", f.Stage)
	set("source", f.Source)
	set("code", f.Code)
	set("destination", f.Destination)
	set("text", f.Text)
	for _, id := range f.IDs {
		q.Add("id", id)
	}
	set("from", formTime(f.From))
	set("to", formTime(f.To))
	return q
}

func getQuarantine(r *request) error {
	bus, err := r.bus()
	if err != nil {
		return err
	}
	f, err := entriesOf(r)
	if err != nil {
		return err
	}
	after, _ := strconv.ParseUint(r.FormValue("after"), 10, 64) // what is no number is the beginning
	p := quarantinePage{Filter: f, From: formTime(f.From), To: formTime(f.To), Operator: r.user.role == operator}
	if p.All, err = quarantine.FacetsOf(r.Context(), bus, f); err != nil {
		return err
	}
	if p.Page, err = quarantine.List(r.Context(), bus, f, shownEntries, after); err != nil {
		return err
	}
	q := queryOf(f)
	p.Query, p.Filtered = q.Encode(), len(q) > 0
	with := func(name, value string) string {
		q := queryOf(f)
		q.Del(name)
		if value != "" {
			q.Set(name, value)
		}
		return "/quarantine?" + q.Encode()
	}
	if after != 0 {
		p.First = with("", "")
	}
	if p.More {
		p.Older = with("after", strconv.FormatUint(p.Next, 10))
	}
	for _, x := range []struct {
		name, title, chosen string
		counts              []quarantine.Count
	}{
		{"code", "Reason", f.Code, p.All.ByCode},
		{"stage", "Stage", f.Stage, p.All.ByStage},
		{"source", "Source", f.Source, p.All.BySource},
		{"destination", "Destination", f.Destination, p.All.ByDestination},
	} {
		one := facet{Name: x.title, Chosen: x.chosen, Without: with(x.name, "")}
		for i, c := range x.counts {
			if c.Name == "" {
				continue
			}
			if i >= shownFacets {
				one.Left++
				continue
			}
			one.Values = append(one.Values, facetValue{c.Name, c.Entries, with(x.name, c.Name), int(100 * c.Entries / max(1, p.All.Entries))})
		}
		if len(one.Values) > 0 || one.Chosen != "" {
			p.Facets = append(p.Facets, one)
		}
	}
	return r.page("quarantine", p)
}

// entryPage is one entry with its bytes.
type entryPage struct {
	quarantine.Entry
	Operator bool
	// What is the reason without its code and what to do, which are shown beside.
	What string
	// Text of the bytes where they are text, else Hex. Left is how many are not shown.
	Text template.HTML
	Hex  string
	Left int
	// OtherView is the address of the other way to show them, "" when there is none.
	OtherView, OtherName string
	// TraceID is that of its trace, for the search of a tracing system.
	TraceID string
}

func getEntry(r *request) error {
	bus, err := r.bus()
	if err != nil {
		return err
	}
	id := r.PathValue("id")
	e, err := quarantine.Get(r.Context(), bus, id)
	if code := fault.CodeOf(err); code == "quarantine.no_entry" || code == "quarantine.ambiguous" {
		return errNotFound.New(err, "show entry %s", id)
	}
	if err != nil {
		return err
	}
	p := entryPage{Entry: e, Operator: r.user.role == operator, What: e.Reason}
	if at := strings.LastIndex(p.What, " ("+e.Code+"; fix: "); at > 0 {
		p.What = p.What[:at]
	}
	shown, as := e.Payload, r.FormValue("as")
	if as != "hex" {
		shown = readable(&e)
	}
	if len(shown) > shownBytes {
		p.Left = len(shown) - shownBytes
		shown = shown[:shownBytes]
	}
	switch {
	case as == "hex" || !isText(shown) && as != "text":
		p.Hex = hex.Dump(shown)
		p.OtherView, p.OtherName = "?as=text", "Show as text"
	default:
		p.Text, _ = pretty(shown)
		p.OtherView, p.OtherName = "?as=hex", "Show as hex"
	}
	// traceparent: version, trace id, span id, flags.
	if parts := strings.Split(e.Trace, "-"); len(parts) == 4 {
		p.TraceID = parts[1]
	}
	return r.page("entry", p)
}

// readable is what people can read of an entry: what it holds is decoded, where it is a
// message of ours.
func readable(e *quarantine.Entry) []byte {
	switch e.Holds {
	case "notice":
		if n, err := messages.DecodeNotice(e.Payload); err == nil {
			if text, err := (protojson.MarshalOptions{UseProtoNames: true}).Marshal(n); err == nil {
				return text
			}
		}
	case "frame":
		v, err := messages.DecodeFrame(e.Payload)
		if err != nil {
			break
		}
		body, err := v.Body(nil)
		if err == nil && len(body) > 0 {
			return body
		}
	}
	return e.Payload
}

// isText tells whether people can read it: UTF-8, perhaps cut in the middle of a
// character, with few control characters.
func isText(data []byte) bool {
	odd := 0
	for i := 0; i < len(data); {
		c, n := utf8.DecodeRune(data[i:])
		if c == utf8.RuneError && n == 1 && len(data)-i >= utf8.UTFMax || c < ' ' && c != '\n' && c != '\r' && c != '\t' {
			odd++
		}
		i += n
	}
	return odd*50 <= len(data)
}

// meant counts the entries that are meant, and says in words which.
func meant(r *request) (quarantine.Filter, quarantine.Facets, string, error) {
	f, err := entriesOf(r)
	if err != nil {
		return f, quarantine.Facets{}, "", err
	}
	bus, err := r.bus()
	if err != nil {
		return f, quarantine.Facets{}, "", err
	}
	all, err := quarantine.FacetsOf(r.Context(), bus, f)
	if err != nil {
		return f, all, "", err
	}
	if all.Entries == 0 {
		return f, all, "", errInput.New(nil, "find entries in quarantine: there are none that fit any more, somebody may have been faster")
	}
	return f, all, wordsOf(f), nil
}

// wordsOf says which entries a filter means.
func wordsOf(f quarantine.Filter) string {
	var parts []string
	add := func(format, value string) {
		if value != "" {
			parts = append(parts, fmt.Sprintf(format, value))
		}
	}
	add("entry %s", strings.Join(f.IDs, ", "))
	add("of stage %s", f.Stage)
	add("of source %s", f.Source)
	add("for destination %s", f.Destination)
	add("with reason %s", f.Code)
	add("with the text %q", f.Text)
	add("since %s UTC", shownTime(f.From))
	add("until %s UTC", shownTime(f.To))
	if parts == nil {
		return "all that is in quarantine"
	}
	return strings.Join(parts, " ")
}

// hiddenOf are the fields that a dialog posts: the filter and what was counted.
func hiddenOf(f quarantine.Filter, all quarantine.Facets) map[string]string {
	hidden := map[string]string{"until": strconv.FormatUint(all.Until, 10), "count": strconv.FormatUint(all.Entries, 10)}
	for name, values := range queryOf(f) {
		hidden[name] = values[0]
	}
	return hidden
}

func askRedrive(r *request) error {
	f, all, words, err := meant(r)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("Each entry goes to the stage that refused it, and leaves the quarantine: %s. They stand for %s. "+
		"What fails again comes back as a new entry, with one more attempt.", words, plural(all.Records, "record", "records"))
	if all.Blocked > 0 {
		text += fmt.Sprintf(" %s of them cannot be sent again as they are, and stay.", num(all.Blocked))
	}
	fields := []field{
		{Name: "rate", Label: "At most, entries a second", Type: "number", Hint: "empty: as fast as the pipeline takes them"},
	}
	if all.Liftable > 0 {
		fields = append(fields, field{
			Name: "allow_once", Label: fmt.Sprintf("Allow once: lift the limit that %s went over", plural(all.Liftable, "entry", "entries")), Type: "checkbox", Value: "1",
		})
	}
	fields = append(fields, field{Name: "reason", Label: "Reason (for the audit)", Type: "text"})
	return r.confirm(confirm{
		Title: "Redrive " + plural(all.Entries, "entry", "entries") + "?", Text: text, Count: all.Entries, Unit: unitOf(all.Entries, "entries"),
		Hidden: hiddenOf(f, all), Fields: fields, Verb: "Redrive",
	})
}

func startRedrive(r *request) error {
	spec, err := redriveOf(r)
	if err != nil {
		return err
	}
	bus, err := r.bus()
	if err != nil {
		return err
	}
	j, err := quarantine.StartRedrive(r.Context(), bus, spec, r.user.name, "console", r.FormValue("reason"))
	if err != nil {
		return asInput(err)
	}
	return r.done("The redrive has begun.", "/replays/"+j.ID)
}

// redriveOf reads what the dialog posted.
func redriveOf(r *request) (quarantine.Redrive, error) {
	f, err := entriesOf(r)
	if err != nil {
		return quarantine.Redrive{}, err
	}
	spec := quarantine.Redrive{Entries: f, AllowOnce: r.FormValue("allow_once") != ""}
	if spec.Until, err = strconv.ParseUint(r.FormValue("until"), 10, 64); err != nil {
		return spec, errInput.New(nil, "begin: the count that was shown is missing; open the dialog again")
	}
	spec.Rate, err = rateOf(r)
	return spec, err
}

func askDiscard(r *request) error {
	f, all, words, err := meant(r)
	if err != nil {
		return err
	}
	return r.confirm(confirm{
		Title: "Discard " + plural(all.Entries, "entry", "entries") + "?",
		Text:  fmt.Sprintf("They are thrown away for good: %s. They stand for %s, which no destination gets. Export them first if they may be needed.", words, plural(all.Records, "record", "records")),
		Count: all.Entries, Unit: unitOf(all.Entries, "entries"), Hidden: hiddenOf(f, all), Verb: "Discard", Danger: true,
		Fields: []field{{Name: "reason", Label: "Reason (for the audit)", Type: "text", Required: true}},
	})
}

func startDiscard(r *request) error {
	spec, err := redriveOf(r)
	if err != nil {
		return err
	}
	reason := strings.TrimSpace(r.FormValue("reason"))
	if reason == "" {
		return errInput.New(nil, "discard: say why in the field Reason")
	}
	bus, err := r.bus()
	if err != nil {
		return err
	}
	j, err := quarantine.StartDiscard(r.Context(), bus, spec, r.user.name, "console", reason)
	if err != nil {
		return asInput(err)
	}
	return r.done("The entries are being discarded.", "/replays/"+j.ID)
}

// exportQuarantine sends the entries as a file. What people take away is written down.
func exportQuarantine(r *request) error {
	f, all, words, err := meant(r)
	if err != nil {
		return err
	}
	if err := r.deed(topology.Deed{Action: "quarantine.export", What: words, Count: all.Entries}); err != nil {
		return err
	}
	bus, err := r.bus()
	if err != nil {
		return err
	}
	h := r.w.Header()
	h.Set("Content-Type", "application/x-ndjson")
	h.Set("Content-Disposition", `attachment; filename="quarantine-`+time.Now().UTC().Format("20060102-150405")+`.ndjson"`)
	control := http.NewResponseController(r.w)
	untimed(control)
	_, err = quarantine.Export(r.base, bus, f, &unhurried{r.w, control})
	if err != nil { // the answer has begun: the file ends early, and the browser has to see that
		r.c.log.Warn("an export broke off", "err", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// unhurried gives a client time for each part of a long answer, not for all of it.
type unhurried struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (u *unhurried) Write(p []byte) (int, error) {
	if err := u.control.SetWriteDeadline(time.Now().Add(writeTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return u.ResponseWriter.Write(p)
}
