package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/jobs"
	"github.com/penstock/penstock/services/operate/backfill"
	"github.com/penstock/penstock/services/operate/books"
	"github.com/penstock/penstock/services/operate/reconcile"
	"github.com/penstock/penstock/services/operate/replay"
	"github.com/penstock/penstock/topology"
)

// How jobs are started: a form, what it would concern, the question with that count, the
// job.
//
//	/replays/new/replay ──▶ count (checks the form) ──▶ counting (live) ──▶ start (asks back) ──▶ /replays/<id>
func init() {
	register(page{
		path: "/replays", title: "New replay", routes: []route{
			{"GET /replays/new", newReplay, operator},
			{"GET /replays/new/replay", newReplay, operator},
			{"GET /replays/new/replay/count", countReplay, operator},
			{"GET /replays/new/replay/counting", countingReplay, operator},
			{"GET /replays/new/replay/start", askReplay, operator},
			{"POST /replays/new/replay/start", startReplay, operator},
		},
	})
	register(page{
		path: "/replays", title: "New re-parse", routes: []route{
			{"GET /replays/new/reparse", newReparse, operator},
			{"GET /replays/new/reparse/count", countReparse, operator},
			{"GET /replays/new/reparse/counting", countingReparse, operator},
			{"GET /replays/new/reparse/start", askReparse, operator},
			{"POST /replays/new/reparse/start", startReparse, operator},
		},
	})
	register(page{
		path: "/replays", title: "New backfill", routes: []route{
			{"GET /replays/new/backfill", newBackfill, operator},
			{"POST /replays/new/backfill/count", countBackfill, operator},
			{"GET /replays/{id}/backfill", askBackfill, operator},
			{"POST /replays/{id}/backfill", startBackfill, operator},
		},
	})
	register(page{
		path: "/replays", title: "New reconciliation", routes: []route{
			{"GET /replays/new/reconcile", newReconcile, operator},
			{"GET /replays/new/reconcile/start", askReconcile, operator},
			{"POST /replays/new/reconcile/start", startReconcile, operator},
			{"GET /replays/{id}/requeue", askRequeue, operator},
			{"POST /replays/{id}/requeue", startRequeue, operator},
		},
	})
}

// startForm is a form that starts a job, as it was filled in.
type startForm struct {
	// Kind is replay, reparse, backfill or reconcile.
	Kind string
	*eventQuery
	Destination, Rate, Bucket, Prefix, Grace string
	Options                                  map[string]bool
	// Mended: it was wrong before, and the page says so still.
	Mended bool
	// What there is to choose from.
	Destinations, Sources []string
	// kinds of the sources, by their names, as far as they are configured.
	kinds map[string]string
}

// Address of the form with a part behind it.
func (f startForm) Address(part string) string {
	return "/replays/new/" + f.Kind + part + "?" + f.query().Encode()
}

func (f startForm) query() url.Values {
	q := f.values()
	for name, s := range map[string]string{"destination": f.Destination, "rate": f.Rate, "bucket": f.Bucket, "prefix": f.Prefix, "grace": f.Grace} {
		if s != "" {
			q.Set(name, s)
		}
	}
	for name, on := range f.Options {
		if on {
			q.Set(name, "1")
		}
	}
	return q
}

// formOf reads a form, from an address or from what was posted.
func formOf(r *request, kind string) startForm {
	_ = r.FormValue("") // has r.Form filled in
	f := startForm{Kind: kind, eventQuery: readQuery(r.Form), Options: map[string]bool{}}
	get := func(name string) string { return strings.TrimSpace(r.FormValue(name)) }
	f.Destination, f.Rate, f.Bucket, f.Prefix, f.Grace = get("destination"), get("rate"), get("bucket"), r.FormValue("prefix"), get("grace")
	for _, name := range []string{"digests", "requeue", "skip_known"} {
		f.Options[name] = r.FormValue(name) != ""
	}
	f.kinds = r.c.configured().Sources
	f.Sources = r.c.sourceNames()
	names := maps.Clone(r.c.configured().Destinations)
	if names == nil {
		names = map[string]string{}
	}
	for _, d := range r.c.last().Destinations {
		names[d.Name] = d.Type
	}
	f.Destinations = slices.Sorted(maps.Keys(names))
	return f
}

// check fills in Wrong, and tells whether the form can be used. needs are the fields that
// must not be empty.
func (f startForm) check(needs ...string) bool {
	f.eventQuery.check()
	for _, name := range needs {
		if f.query().Get(name) == "" {
			f.Wrong[name] = "choose one"
		}
	}
	if _, err := parseRate(f.Rate); err != nil {
		f.Wrong["rate"] = "use a number above 0, or leave it empty"
	}
	for name, s := range map[string]string{"bucket": f.Bucket, "prefix": f.Prefix, "destination": f.Destination} {
		if len(s) > 2048 {
			f.Wrong[name] = "use at most 2,048 bytes"
		}
	}
	if d, err := time.ParseDuration(f.Grace); f.Grace != "" && (err != nil || d <= 0) {
		f.Wrong["grace"] = "use a duration, e.g. 10m or 1h"
	}
	if kind := f.kinds[f.Source]; f.Bucket == "" && (f.Kind == jobs.KindReconcile || f.Kind == jobs.KindBackfill && (kind == "s3" || kind == "sqs")) {
		f.Wrong["bucket"] = "name the bucket that it reads"
	}
	if from, ok := readTime(f.From); ok && from.After(time.Now()) {
		f.Wrong["from"] = "it is in the future"
	}
	return len(f.Wrong) == 0
}

// parseRate reads how many a second; empty is 0, without a bound.
func parseRate(s string) (float64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(n) || math.IsInf(n, 0) || n <= 0 {
		return 0, errInput.New(nil, "read the rate %q: use a number above 0, or leave it empty", cut(s, 40))
	}
	return n, nil
}

// refuse answers a form that cannot be used with the form, and what is wrong with it.
func (r *request) refuse(f startForm) error {
	r.w.Header().Set("HX-Retarget", "#start-form")
	r.w.Header().Set("HX-Reswap", "outerHTML")
	return r.fragment("start-form", f)
}

// countedPage is what there is of what is meant.
type countedPage struct {
	Form startForm
	replay.Counts
	Unit   string
	ByType []part
	Left   int
	// Why nothing can be started, "" when it can.
	Why, Fix string
	Start    string
}

const shownTypes = 10

// count follows how much there is, and then says it.
func (r *request) count(f startForm, unit string, counted func(ctx context.Context, bus *topology.Bus, progress func(done, total uint64)) (replay.Counts, error)) error {
	bus, err := r.bus()
	if err != nil {
		return err
	}
	return r.stream(func(ctx context.Context, send func(event, html string) error) error {
		var broken error
		last := time.Time{}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		c, err := counted(ctx, bus, func(done, total uint64) {
			if time.Since(last) < jobTick || broken != nil {
				return
			}
			last = time.Now()
			if broken = r.send(send, "progress", "count-progress", [2]uint64{done, total}); broken != nil {
				cancel() // nobody waits for the count
			}
		})
		if broken != nil {
			return broken
		}
		p := countedPage{Form: f, Counts: c, Unit: unit}
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			p.Why, p.Fix = explain(err)
		}
		for name, n := range c.ByType {
			p.ByType = append(p.ByType, part{name, n})
		}
		slices.SortFunc(p.ByType, func(a, b part) int {
			return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Name, b.Name))
		})
		if p.Left = len(p.ByType) - shownTypes; p.Left > 0 {
			p.ByType = p.ByType[:shownTypes]
		}
		q := f.query()
		for name, n := range map[string]uint64{"count": c.Events, "bytes": c.Bytes, "first": c.FirstSequence, "until": c.Until} {
			q.Set(name, strconv.FormatUint(n, 10))
		}
		p.Start = "/replays/new/" + f.Kind + "/start?" + q.Encode()
		return r.send(send, "counted", "counted", p)
	})
}

// countsOf reads what was counted, as the address of the question has it.
func countsOf(r *request) (c replay.Counts, err error) {
	for name, to := range map[string]*uint64{"count": &c.Events, "bytes": &c.Bytes, "first": &c.FirstSequence, "until": &c.Until} {
		if *to, err = strconv.ParseUint(r.FormValue(name), 10, 64); err != nil {
			return c, errInput.New(nil, "begin: the count is missing; count first")
		}
	}
	return c, nil
}

// hidden are the fields of a question: all that was in its address.
func (r *request) hidden() map[string]string {
	all := map[string]string{}
	for name, values := range r.URL.Query() {
		all[name] = values[0]
	}
	return all
}

var reasonField = field{Name: "reason", Label: "Reason (for the audit)", Type: "text"}

func newReplay(r *request) error { return r.page("start", formOf(r, jobs.KindReplay)) }

func countReplay(r *request) error {
	f := formOf(r, jobs.KindReplay)
	if !f.check("destination") {
		return r.refuse(f)
	}
	f.Mended = r.FormValue("mended") != ""
	return r.fragment("counting", f)
}

func countingReplay(r *request) error {
	f := formOf(r, jobs.KindReplay)
	if !f.check("destination") {
		return errInput.New(nil, "count: the form is not filled in as it should be")
	}
	return r.count(f, "events", func(ctx context.Context, bus *topology.Bus, progress func(done, total uint64)) (replay.Counts, error) {
		lens, err := replay.Destination(ctx, bus, f.Destination)
		if err != nil {
			return replay.Counts{}, err
		}
		return replay.CountFor(ctx, bus, f.events(time.Now()), lens, progress)
	})
}

func replayOf(r *request) (jobs.Replay, error) {
	f := formOf(r, jobs.KindReplay)
	if !f.check("destination") {
		return jobs.Replay{}, errInput.New(nil, "begin: the form is not filled in as it should be; count again")
	}
	spec := jobs.Replay{Events: f.events(time.Now()), Destination: f.Destination}
	c, err := countsOf(r)
	if err != nil {
		return spec, err
	}
	c.Into(&spec)
	spec.Rate, err = parseRate(f.Rate)
	return spec, err
}

func askReplay(r *request) error {
	spec, err := replayOf(r)
	if err != nil {
		return err
	}
	return r.confirm(confirm{
		Title: "Replay " + plural(spec.Total, "event", "events") + " to " + spec.Destination + "?",
		Text: "The destination gets them once more, " + size(spec.Bytes) + " before compression, marked with the id of the replay. " +
			"Live events go on beside them." + rateText(spec.Rate, "events"),
		Count: spec.Total, Unit: unitOf(spec.Total, "events"), Hidden: r.hidden(), Fields: []field{reasonField}, Verb: "Start replay",
	})
}

func rateText(rate float64, unit string) string {
	if rate == 0 {
		return ""
	}
	return fmt.Sprintf(" At most %g %s a second.", rate, unit)
}

func startReplay(r *request) error {
	spec, err := replayOf(r)
	if err != nil {
		return err
	}
	bus, err := r.bus()
	if err != nil {
		return err
	}
	if _, err := replay.Destination(r.Context(), bus, spec.Destination); err != nil {
		return asInput(err)
	}
	j, err := replay.Start(r.Context(), bus, spec, r.user.name, "console", r.FormValue("reason"))
	if err != nil {
		return asInput(err)
	}
	return r.done("The replay has begun.", "/replays/"+j.ID)
}

// explain takes an error apart: what happened, and what to do about it.
func explain(err error) (what, fix string) {
	var known *fault.Error
	if !errors.As(err, &known) {
		return err.Error(), ""
	}
	return plain(known)
}

// asInput is an error that a person can mend by another entry.
func asInput(err error) error {
	if fault.ClassOf(err) != fault.Reject {
		return err
	}
	why, fix := explain(err)
	return errInput.New(nil, "%s: %s", why, fix)
}

func newReparse(r *request) error { return r.page("start", formOf(r, jobs.KindReparse)) }

func countReparse(r *request) error {
	f := formOf(r, jobs.KindReparse)
	if !f.check() {
		return r.refuse(f)
	}
	f.Mended = r.FormValue("mended") != ""
	return r.fragment("counting", f)
}

func reparseOf(f startForm) jobs.Reparse {
	e := f.events(time.Now())
	rate, _ := parseRate(f.Rate) // checked before
	return jobs.Reparse{Span: e.Span, Sources: e.Sources, Object: e.Object, Destination: f.Destination, Rate: rate}
}

func countingReparse(r *request) error {
	f := formOf(r, jobs.KindReparse)
	if !f.check() {
		return errInput.New(nil, "count: the form is not filled in as it should be")
	}
	return r.count(f, "records", func(ctx context.Context, bus *topology.Bus, progress func(done, total uint64)) (replay.Counts, error) {
		return replay.CountRecords(ctx, bus, reparseOf(f), progress)
	})
}

func reparseSpec(r *request) (jobs.Reparse, error) {
	f := formOf(r, jobs.KindReparse)
	if !f.check() {
		return jobs.Reparse{}, errInput.New(nil, "begin: the form is not filled in as it should be; count again")
	}
	spec := reparseOf(f)
	c, err := countsOf(r)
	spec.First, spec.Until, spec.Total, spec.Bytes = c.FirstSequence, c.Until, c.Events, c.Bytes
	return spec, err
}

func askReparse(r *request) error {
	spec, err := reparseSpec(r)
	if err != nil {
		return err
	}
	to := "all destinations get the events that come of them"
	if spec.Destination != "" {
		to = "destination " + spec.Destination + " alone gets the events that come of them"
	}
	return r.confirm(confirm{
		Title: "Parse " + plural(spec.Total, "record", "records") + " again?",
		Text:  "The records go through parse as it is now, and " + to + ", marked with the id of the job, even if they got them before." + rateText(spec.Rate, "records"),
		Count: spec.Total, Unit: unitOf(spec.Total, "records"), Hidden: r.hidden(), Fields: []field{reasonField}, Verb: "Start re-parse",
	})
}

func startReparse(r *request) error {
	spec, err := reparseSpec(r)
	if err != nil {
		return err
	}
	bus, err := r.bus()
	if err != nil {
		return err
	}
	j, err := replay.StartReparse(r.Context(), bus, spec, r.user.name, "console", r.FormValue("reason"))
	if err != nil {
		return asInput(err)
	}
	return r.done("The re-parse has begun.", "/replays/"+j.ID)
}

func newBackfill(r *request) error {
	return r.page("start", r.withBucket(formOf(r, jobs.KindBackfill)))
}

// withBucket fills in the bucket that a source has read last, where none is named.
func (r *request) withBucket(f startForm) startForm {
	b := r.books()
	if f.Source == "" || f.Bucket != "" || b == nil {
		return f
	}
	last, err := b.Pulls(r.Context(), books.Filter{Source: f.Source, Text: "s3://", Limit: 1})
	if err != nil || len(last.Pulls) == 0 {
		return f // it is a help, and no more
	}
	if object, ok := strings.CutPrefix(last.Pulls[0].Origin, "s3://"); ok {
		f.Bucket, _, _ = strings.Cut(object, "/")
	}
	return f
}

func backfillOf(f startForm) jobs.Backfill {
	e := f.events(time.Now())
	rate, _ := parseRate(f.Rate) // checked before
	return jobs.Backfill{Source: f.Source, Span: e.Span, Bucket: f.Bucket, Prefix: f.Prefix, Rate: rate, SkipKnown: f.Options["skip_known"]}
}

// countBackfill has the source's process list what there is, as a job of its own: that may
// take long, and only that process can.
func countBackfill(r *request) error {
	f := formOf(r, jobs.KindBackfill)
	if !f.check("source") {
		return r.refuse(f)
	}
	bus, err := r.bus()
	if err != nil {
		return err
	}
	spec := backfillOf(f)
	spec.Count = true
	j, err := backfill.Start(r.Context(), bus, spec, r.user.name, "console", "")
	if err != nil {
		return asInput(err)
	}
	return r.done("It is being counted; nothing is announced yet.", "/replays/"+j.ID)
}

// countedBackfill is what a job has counted.
func countedBackfill(r *request) (*topology.Bus, jobs.Backfill, error) {
	bus, j, err := oneJob(r)
	if err != nil {
		return bus, jobs.Backfill{}, err
	}
	spec, err := jobs.Read[jobs.Backfill](&j)
	if err != nil {
		return bus, spec, err
	}
	if j.Kind != jobs.KindBackfill || !spec.Count || j.State != topology.JobDone {
		return bus, spec, errInput.New(nil, "start a backfill: job %s has counted nothing", j.ID)
	}
	spec.Count, spec.Total, spec.TotalBytes = false, j.Progress.Done, j.Progress.Bytes
	return bus, spec, nil
}

func askBackfill(r *request) error {
	_, spec, err := countedBackfill(r)
	if err != nil {
		return err
	}
	text := "They are read behind what comes live: " + backfill.What(spec) + "."
	if spec.TotalBytes > 0 {
		text += " They have " + size(spec.TotalBytes) + " as they are stored."
	}
	return r.confirm(confirm{
		Title: "Backfill " + plural(spec.Total, "object", "objects") + "?", Text: text + " What came before and is still remembered counts as a duplicate.",
		Count: spec.Total, Unit: unitOf(spec.Total, "objects"), Fields: []field{reasonField}, Verb: "Start backfill",
	})
}

func startBackfill(r *request) error {
	bus, spec, err := countedBackfill(r)
	if err != nil {
		return err
	}
	j, err := backfill.Start(r.Context(), bus, spec, r.user.name, "console", r.FormValue("reason"))
	if err != nil {
		return asInput(err)
	}
	return r.done("The backfill has begun.", "/replays/"+j.ID)
}

func newReconcile(r *request) error {
	return r.page("start", r.withBucket(formOf(r, jobs.KindReconcile)))
}

func reconcileOf(r *request) (jobs.Reconcile, error) {
	f := formOf(r, jobs.KindReconcile)
	if !f.check("source") {
		return jobs.Reconcile{}, errInput.New(nil, "begin: %s", wrongText(f.Wrong))
	}
	grace, _ := time.ParseDuration(f.Grace) // checked before
	return jobs.Reconcile{Backfill: backfillOf(f), Digests: f.Options["digests"], Grace: grace}, nil
}

func wrongText(wrong map[string]string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(wrong)) {
		parts = append(parts, name+": "+wrong[name])
	}
	return strings.Join(parts, "; ")
}

func askReconcile(r *request) error {
	if f := formOf(r, jobs.KindReconcile); !f.check("source") {
		return r.refuse(f)
	}
	spec, err := reconcileOf(r)
	if err != nil {
		return err
	}
	if err := backfill.Check(spec.Backfill); err != nil {
		return asInput(err)
	}
	with := "its bucket's listing"
	if spec.Digests {
		with = "CloudTrail's digest files, whose hash chain and signatures are checked"
	}
	return r.confirm(confirm{
		Title: "Reconcile " + spec.Source + "?",
		Text:  "The ledger is compared with " + with + ": " + backfill.What(spec.Backfill) + ". Nothing is announced by this: the report says what is missing, and asks then.",
		Count: 1, Unit: "source", Hidden: r.hidden(), Fields: []field{reasonField}, Verb: "Compare",
	})
}

func startReconcile(r *request) error {
	spec, err := reconcileOf(r)
	if err != nil {
		return err
	}
	return r.reconcile(spec, "The comparison has begun.")
}

func (r *request) reconcile(spec jobs.Reconcile, notice string) error {
	bus, err := r.bus()
	if err != nil {
		return err
	}
	j, err := reconcile.Start(r.Context(), bus, spec, r.user.name, "console", r.FormValue("reason"))
	if err != nil {
		return asInput(err)
	}
	return r.done(notice, "/replays/"+j.ID)
}

// missingOf is what a reconciliation has found to be missing.
func missingOf(r *request) (jobs.Reconcile, jobs.Report, error) {
	bus, j, err := oneJob(r)
	if err != nil {
		return jobs.Reconcile{}, jobs.Report{}, err
	}
	spec, err := jobs.Read[jobs.Reconcile](&j)
	if err != nil {
		return spec, jobs.Report{}, err
	}
	if j.Kind != jobs.KindReconcile || j.State != topology.JobDone {
		return spec, jobs.Report{}, errInput.New(nil, "announce what is missing: job %s is no reconciliation that is done", j.ID)
	}
	report, err := reconcile.Report(r.Context(), bus, j.ID)
	return spec, report, asInput(err)
}

func askRequeue(r *request) error {
	spec, report, err := missingOf(r)
	if err != nil {
		return err
	}
	return r.confirm(confirm{
		Title: "Announce " + plural(announceable(&report), "object", "objects") + " again?",
		Text:  "They are compared once more, and what is missing then is read behind what comes live: " + backfill.What(spec.Backfill) + ".",
		Count: announceable(&report), Unit: unitOf(announceable(&report), "objects"), Fields: []field{reasonField}, Verb: "Announce again",
	})
}

func startRequeue(r *request) error {
	spec, _, err := missingOf(r)
	if err != nil {
		return err
	}
	spec.Requeue = true
	return r.reconcile(spec, "What is missing is being announced again.")
}

// spanOf reads the fields from and to.
func spanOf(r *request) (jobs.Span, error) {
	var s jobs.Span
	for name, to := range map[string]*time.Time{"from": &s.From, "to": &s.To} {
		text := strings.TrimSpace(r.FormValue(name))
		if text == "" {
			continue
		}
		at, ok := readTime(text)
		if !ok {
			return s, errInput.New(nil, "read the field %s: use a time in UTC, e.g. 2026-05-01 10:00", name)
		}
		*to = at
	}
	if !s.From.IsZero() && !s.To.IsZero() && !s.From.Before(s.To) {
		return s, errInput.New(nil, "read the field to: it is not behind the beginning, nothing can be in between")
	}
	return s, nil
}

func rateOf(r *request) (float64, error) { return parseRate(strings.TrimSpace(r.FormValue("rate"))) }

// formTime is a time as forms and addresses have it, in UTC; shownTime as sentences do.
func formTime(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format("2006-01-02T15:04:05")
}

func shownTime(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return at.UTC().Format(timeShown)
}

// timeField is what was typed as a time, as a field of a form takes it.
func timeField(text string) string {
	if at, ok := readTime(text); ok {
		return formTime(at)
	}
	return ""
}
