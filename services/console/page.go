package console

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/topology"
)

var (
	// errBus makes the page that says that the bus does not answer.
	errBus = fault.Define("console.no_bus", fault.Retry,
		"check that the NATS server runs and that this console can reach it; the page tries again by itself")
	// errNotFound makes the answer 404.
	errNotFound = fault.Define("console.not_found", fault.Reject,
		"go back to the list: what you look for has ended, has been removed, or is no longer kept")
	// errInput makes the answer 422, with the text for the person who typed it.
	errInput = fault.Define("console.bad_input", fault.Reject,
		"correct the field that is named and send it again")
	// errRole makes the answer 403.
	errRole = fault.Define("console.not_allowed", fault.Reject,
		"log in as somebody with the role operator")
)

// group is a part of the navigation.
type group string

const (
	navNone   group = "" // not in the navigation
	navWatch  group = "Watch"
	navRepair group = "Repair"
	navSystem group = "System"
)

// Roles as pages name them.
const (
	readOnly = ReadOnly
	operator = Operator
)

// handler answers a request. Its error becomes a page, or for htmx a notice: one that
// is errNotFound, errInput, errRole or errBus with its status, any other fault as 500 (502
// where it may pass) with what to do about it.
type handler func(*request) error

// page is registered in init. Its template has the same name as its Go file.
type page struct {
	path, title string
	nav         group
	order       int
	// icon is the name of one in icons.
	icon   string
	get    handler
	routes []route
	// open to those who are not logged in.
	open bool
}

// route belongs to a page: a fragment, a dialog, an action. All that is not GET needs the
// role operator whatever is said, and is checked against forgery.
type route struct {
	pattern string // method and path, as in http.ServeMux
	do      handler
	role    Role // empty: readOnly
}

var pages []page

func register(p page) { pages = append(pages, p) }

// request is one request and its answer.
type request struct {
	*http.Request
	c    *Console
	w    http.ResponseWriter
	p    page
	user user
	csrf string
	// base is the context of the connection: without the bound on the time of a page.
	base context.Context
	// room is where it has a place, nil once that is given free.
	room chan struct{}
}

// user is who asks.
type user struct {
	name string
	role Role
}

// view is what templates get: . of a page or fragment.
type view struct {
	Data any
	// Operator tells whether actions are to be shown.
	Operator bool
	User     string
	CSRF     string
}

func (r *request) view(data any) view {
	return view{Data: data, Operator: r.user.role == Operator, User: r.user.name, CSRF: r.csrf}
}

// htmx tells whether a part of a page asks, not a person.
func (r *request) htmx() bool { return r.Header.Get("HX-Request") == "true" }

// bus returns the connection, or errBus when it has not been there yet.
func (r *request) bus() (*topology.Bus, error) {
	if b := r.c.deps.Bus(); b != nil {
		return b, nil
	}
	return nil, errBus.New(nil, "make this page: there is no connection to the bus yet")
}

// page answers with a whole page: the template inside the layout.
func (r *request) page(name string, data any) error {
	return r.pageAs(http.StatusOK, r.p.title, name, data)
}

// titled is page with a title of its own, e.g. the name of what it shows.
func (r *request) titled(title, name string, data any) error {
	return r.pageAs(http.StatusOK, title, name, data)
}

// frame is what the layout gets.
type frame struct {
	view
	Title, Theme, Path string
	Groups             []navGroup
	Body               template.HTML
	Notice             *notice
	Guarded            bool
	Role               Role
	Version            string
	BusDown            bool
	Bare               bool // without navigation: the login
}

type navGroup struct {
	Name  group
	Items []navItem
}

type navItem struct {
	Path, Title, Icon string
	Current           bool
}

func (r *request) pageAs(status int, title, name string, data any) error {
	v := r.view(data)
	body, err := r.c.render(name, v)
	if err != nil {
		return err
	}
	f := frame{
		view: v, Title: title, Theme: r.theme(), Path: r.URL.Path, Groups: r.nav(), Body: body, Notice: r.flash(),
		Guarded: r.c.gate.cfg.guarded(), Role: r.user.role, Version: r.c.deps.Version, Bare: r.user.name == "",
	}
	f.BusDown = r.c.away() && name != "failure" // the page of an error says so itself
	out, err := templates.Execute("layout", f)
	if err != nil {
		return errTemplate.New(err, "make the page %s", name)
	}
	r.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	r.w.WriteHeader(status)
	_, _ = io.WriteString(r.w, out) // a browser that has gone needs no page
	return nil
}

// nav is the navigation with the page that is shown marked.
func (r *request) nav() []navGroup {
	sorted := slices.Clone(pages)
	slices.SortStableFunc(sorted, func(a, b page) int { return a.order - b.order })
	var groups []navGroup
	for _, name := range []group{navWatch, navRepair, navSystem} {
		g := navGroup{Name: name}
		for _, p := range sorted {
			if p.nav == name {
				g.Items = append(g.Items, navItem{p.path, p.title, p.icon, r.URL.Path == p.path || strings.HasPrefix(r.URL.Path, p.path+"/")})
			}
		}
		if len(g.Items) > 0 {
			groups = append(groups, g)
		}
	}
	return groups
}

// theme is what the person chose: light, dark, or auto for that of the system.
func (r *request) theme() string {
	if c, err := r.Cookie("theme"); err == nil && (c.Value == "light" || c.Value == "dark") {
		return c.Value
	}
	return "auto"
}

// fragment answers with a part of a page.
func (r *request) fragment(name string, data any) error {
	html, err := r.c.render(name, r.view(data))
	if err != nil {
		return err
	}
	r.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = r.w.Write([]byte(html)) // a browser that has gone needs no page
	return nil
}

// json answers with data for a script of ours: the plots.
func (r *request) json(data any) error {
	out, err := json.Marshal(data)
	if err != nil {
		return errTemplate.New(err, "write data")
	}
	r.w.Header().Set("Content-Type", "application/json")
	_, _ = r.w.Write(out)
	return nil
}

// render is what fragment would send.
func (c *Console) render(name string, v view) (template.HTML, error) {
	out, err := templates.Execute(name, v)
	if err != nil {
		return "", errTemplate.New(err, "make %s", name)
	}
	return template.HTML(out), nil //nolint:gosec // escaped as html/template says
}

// confirm asks back before an action.
type confirm struct {
	Title, Text string
	// Count is how many things it concerns, in Unit, e.g. 1234 and "entries"; shown large.
	// No Unit: none is shown.
	Count uint64
	Unit  string
	// Action is where it is posted; empty: the path of the question.
	Action string
	// Hidden fields that are posted with it: what the count was made of.
	Hidden map[string]string
	Fields []field
	Verb   string
	// Danger: what it does cannot be undone.
	Danger bool
}

// field is an input of a dialog.
type field struct {
	Name, Label, Type, Value, Hint string // Type as in HTML: text, number, checkbox; or select
	Required                       bool
	Options                        []string
}

// confirm answers with the dialog, or as a page where there is no script.
func (r *request) confirm(ask confirm) error {
	if ask.Action == "" {
		ask.Action = r.URL.Path
	}
	if r.htmx() {
		return r.fragment("confirm", ask)
	}
	return r.titled(ask.Title, "confirm-page", ask)
}

// deed writes down what the user is about to do. By, Via and At are filled in. Do so
// before the deed; when it fails, do nothing.
func (r *request) deed(d topology.Deed) error {
	bus, err := r.bus()
	if err != nil {
		return err
	}
	d.By, d.Via = r.user.name, "console"
	return bus.WriteAudit(r.Context(), d)
}

// notice is what is told after an action.
type notice struct {
	Kind string `json:"kind"` // ok or error
	Text string `json:"text"`
}

// flashCookie carries a notice over to the next page.
const flashCookie = "penstock_notice"

// done ends an action: the notice is shown on the page at the path, or on the same
// page when to is empty, whose parts with hx-trigger="refresh from:body" load again.
func (r *request) done(text, to string) error {
	n := notice{"ok", text}
	if to == "" && r.htmx() {
		r.trigger(map[string]any{"notice": n, "refresh": true, "closeDialog": true})
		r.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	if to == "" {
		to = "/"
		if at, err := url.Parse(r.Referer()); err == nil {
			to = inside(at.RequestURI())
		}
	}
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	r.c.gate.setCookie(r.w, r.Request, flashCookie, base64.RawURLEncoding.EncodeToString(data), "/", 60)
	if r.htmx() {
		r.w.Header().Set("HX-Redirect", to)
		r.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	http.Redirect(r.w, r.Request, to, http.StatusSeeOther)
	return nil
}

// trigger has events happen in the page.
func (r *request) trigger(events map[string]any) {
	data, err := json.Marshal(events)
	if err != nil {
		return
	}
	// A header is ASCII.
	var ascii strings.Builder
	for _, c := range string(data) {
		if c < utf8.RuneSelf {
			ascii.WriteRune(c)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, c) {
			fmt.Fprintf(&ascii, `\u%04x`, unit)
		}
	}
	r.w.Header().Set("HX-Trigger", ascii.String())
}

// flash takes the notice that an action left behind.
func (r *request) flash() *notice {
	c, err := r.Cookie(flashCookie)
	if err != nil {
		return nil
	}
	r.c.gate.setCookie(r.w, r.Request, flashCookie, "", "/", -1)
	data, err := base64.RawURLEncoding.DecodeString(c.Value)
	var n notice
	if err != nil || len(data) > 2048 || json.Unmarshal(data, &n) != nil || n.Text == "" {
		return nil
	}
	return &n
}

// failure is what the page of an error shows.
type failure struct {
	Status           int
	Title, What, Fix string
	Code             string
	Again            bool // the page tries again by itself
}

// fail answers with an error: as a page, or for htmx as a notice.
func (r *request) fail(err error) {
	f := failure{Status: http.StatusInternalServerError, Title: "This did not work", What: err.Error(), Code: fault.CodeOf(err)}
	var known *fault.Error
	if errors.As(err, &known) {
		f.What, f.Fix = plain(known)
		if r.user.name == "" { // strangers learn no more than they must
			f.What, f.Fix = known.Doing, known.Kind.Fix
		}
	}
	switch {
	case errors.Is(err, errNotFound):
		f.Status, f.Title = http.StatusNotFound, "Not found"
	case errors.Is(err, errInput):
		f.Status, f.Title = http.StatusUnprocessableEntity, "Please correct this"
	case errors.Is(err, errRole), errors.Is(err, errForged), errors.Is(err, errNoRole), errors.Is(err, errRefused):
		f.Status, f.Title = http.StatusForbidden, "Not allowed"
	case errors.Is(err, errLimited):
		f.Status, f.Title = http.StatusTooManyRequests, "Too many tries"
		r.w.Header().Set("Retry-After", "60")
	case errors.Is(err, errBus), errors.Is(err, errBusy):
		f.Status, f.Title, f.Again = http.StatusServiceUnavailable, "The bus does not answer", true
		if errors.Is(err, errBusy) {
			f.Title = "Busy"
		}
	case r.c.away() && fault.ClassOf(err) == fault.Retry:
		f.Status, f.Title, f.Again = http.StatusServiceUnavailable, "The bus does not answer", true
	case errors.Is(err, context.DeadlineExceeded):
		f.Status, f.Title, f.Again = http.StatusGatewayTimeout, "This took too long", true
	case fault.ClassOf(err) == fault.Retry:
		f.Status, f.Title, f.Again = http.StatusBadGateway, "This did not work just now", true
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		f.Status, f.Title = http.StatusRequestEntityTooLarge, "Too large"
	}
	if f.Status >= 500 && !errors.Is(err, errBus) { // that is told once, when it is lost
		r.c.log.Warn("a page of the console failed", "path", r.URL.Path, "status", f.Status, "err", err)
	}
	f.Again = f.Again && r.Method == http.MethodGet
	if r.htmx() {
		text := f.Title + ": " + f.What
		if f.Fix != "" {
			text += " — " + f.Fix
		}
		r.trigger(map[string]any{"notice": notice{"error", cut(text, 1500)}})
		http.Error(r.w, f.Title, f.Status)
		return
	}
	if strings.Contains(r.Header.Get("Accept"), "application/json") || strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		http.Error(r.w, f.Title, f.Status)
		return
	}
	title := f.Title
	if r.p.title != "" {
		title = r.p.title
	}
	if err := r.pageAs(f.Status, title, "failure", f); err != nil {
		r.c.log.Error("the page of an error could not be made", "err", err)
		http.Error(r.w, f.Title, f.Status)
	}
}

// away tells whether the bus did not answer when it was last asked. Before that it is
// not known.
func (c *Console) away() bool {
	now := c.latest()
	return now != nil && now.err != nil
}

// plain is an error in two parts: what happened, and what to do.
func plain(e *fault.Error) (what, fix string) {
	what = e.Doing
	var cause *fault.Error
	switch {
	case errors.As(e.Cause, &cause):
		because, more := plain(cause)
		return what + ": " + because, cmp.Or(more, e.Kind.Fix)
	case e.Cause != nil:
		what += ": " + e.Cause.Error()
	}
	return what, e.Kind.Fix
}

// setTheme stores what the person chose.
func setTheme(r *request) error {
	theme := r.PostFormValue("theme")
	if theme != "light" && theme != "dark" && theme != "auto" {
		return errInput.New(nil, "choose a theme: light, dark or auto")
	}
	r.c.gate.setCookie(r.w, r.Request, "theme", theme, "/", int((365 * 24 * time.Hour).Seconds()))
	if r.htmx() {
		r.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	to := "/"
	if at, err := url.Parse(r.Referer()); err == nil {
		to = inside(at.RequestURI())
	}
	http.Redirect(r.w, r.Request, to, http.StatusSeeOther)
	return nil
}
