package console

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"math"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/services/internal/markup"
	"github.com/penstock/penstock/services/operate/destinations"
	"github.com/penstock/penstock/topology"
)

var errTemplate = fault.Define("console.template", fault.Reject,
	"report it: it is a mistake in penstock, and the log has more")

//go:embed static
var staticFiles embed.FS

// asset is a file that pages load: its address changes with its content, so that
// browsers may keep it for ever.
type asset struct {
	hash, kind  string
	data, small []byte // as it is, and gzipped
}

// assets are made when a browser asks for the first time: most processes serve none.
var assets = sync.OnceValue(loadAssets)

// loadAssets panics when what is built in cannot be read.
func loadAssets() map[string]asset {
	all := map[string]asset{}
	files, err := fs.ReadDir(staticFiles, "static")
	if err != nil {
		panic(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".LICENSE") {
			continue
		}
		data, err := staticFiles.ReadFile("static/" + f.Name())
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(data)
		kind := map[string]string{".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}[path.Ext(f.Name())]
		if kind == "" {
			kind = mime.TypeByExtension(path.Ext(f.Name()))
		}
		var small bytes.Buffer
		w, _ := gzip.NewWriterLevel(&small, gzip.BestCompression) // the level is right
		_, _ = w.Write(data)
		_ = w.Close()
		all[f.Name()] = asset{hex.EncodeToString(sum[:6]), kind, data, small.Bytes()}
	}
	return all
}

func assetPath(name string) (string, error) {
	a, ok := assets()[name]
	if !ok {
		return "", fmt.Errorf("no asset %s", name)
	}
	return "/static/" + a.hash + "/" + name, nil
}

func serveAsset(w http.ResponseWriter, r *http.Request) {
	a, ok := assets()[r.PathValue("name")]
	if !ok || a.hash != r.PathValue("hash") {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", a.kind)
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Vary", "Accept-Encoding")
	data := a.data
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") && len(a.small) < len(a.data) {
		h.Set("Content-Encoding", "gzip")
		data = a.small
	}
	h.Set("Content-Length", strconv.Itoa(len(data)))
	_, _ = w.Write(data) // a browser that has gone needs no more
}

// pageFuncs are what templates call.
var pageFuncs = map[string]any{
	"asset": assetPath, "icon": icon,
	"num": num, "brief": brief, "rate": rate, "bytes": size, "percent": percent, "share": share,
	"dur": dur, "seconds": func(s float64) string { return dur(time.Duration(s * float64(time.Second))) },
	"ago": func(t time.Time) template.HTML { return when(t, true) }, "at": func(t time.Time) template.HTML { return when(t, false) },
	"plural": plural, "badge": badge, "lines": lines, "dict": dict, "query": query, "path": url.PathEscape,
	"stamp":   func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
	"legible": legible, "sumof": sumCounts, "timefield": timeField,
	"has": strings.Contains, "join": strings.Join, "upper": capital,
}

// pageMethods are the methods that templates call. A test finds those that lack.
var pageMethods = markup.Methods{
	"Address":     {sourcesPage.Address, startForm.Address},
	"After":       {time.Time.After},
	"Amount":      {jobView.Amount, jobPage.Amount},
	"Any":         {(*eventQuery).Any, startForm.Any},
	"Before":      {sourcesPage.Before, time.Time.Before},
	"Chosen":      {(*eventQuery).Chosen, startForm.Chosen},
	"Counted":     {jobView.Counted, jobPage.Counted},
	"IsZero":      {time.Time.IsZero},
	"Lasts":       {(*eventQuery).Lasts, startForm.Lasts},
	"Left":        {(*topology.Job).Left, jobView.Left, jobPage.Left},
	"Name":        {(*ledger.Pull).Name},
	"Next":        {sourcesPage.Next},
	"Over":        {(*topology.Job).Over, jobView.Over, jobPage.Over},
	"Percent":     {jobView.Percent, jobPage.Percent},
	"Query":       {(*eventQuery).Query, startForm.Query},
	"Rates":       {(*eventQuery).Rates, startForm.Rates},
	"Remarks":     {(*destinations.Status).Remarks},
	"ReplayQuery": {(*eventQuery).ReplayQuery, startForm.ReplayQuery},
	"Shape":       {jobList.Shape, jobView.Shape, jobPage.Shape},
	"Silent":      {(*topology.Job).Silent, (*jobView).Silent, (*jobPage).Silent},
	"States":      {sourcesPage.States},
	"Status":      {jobView.Status, jobPage.Status},
	"StreamQuery": {(*eventQuery).StreamQuery, startForm.StreamQuery},
	"Title":       {jobView.Title, jobPage.Title},
	"Tone":        {jobView.Tone, jobPage.Tone},
	"Took":        {jobView.Took, jobPage.Took},
	"Verbs":       {jobView.Verbs, jobPage.Verbs},
	"View":        {jobView.View, jobPage.View},
}

//go:generate env UPDATE_GOLDEN=1 go test -count=1 -run ^TestEscapedTemplatesAreInDate$ .

// escapedPages are the files in templates with the escaping that html/template wrote
// into them: what a browser gets is made of this.
//
//go:embed escaped.tmpl
var escapedPages string

// maker makes a page or a part of one; in tests, so that what it made is looked at.
type maker interface {
	Execute(name string, data any) (string, error)
}

// templates has the templates of all pages in one set: names begin with that of the page.
var templates maker = pageSet(sync.OnceValue(func() *markup.Set {
	set, err := markup.Parse(escapedPages, pageFuncs, pageMethods)
	if err != nil {
		panic(err)
	}
	return set
}))

// pageSet parses what is built in when the first page is made: it takes some MiB.
type pageSet func() *markup.Set

func (s pageSet) Execute(name string, data any) (string, error) { return s().Execute(name, data) }

// num prints a whole number with separators: 1,234,567.
func num(v any) string {
	s := fmt.Sprint(v)
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "-", s[1:]
	}
	if strings.Trim(s, "0123456789") != "" {
		return sign + s
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return sign + s
}

// rate prints a number a second with three places: 0, 0.25, 12.3, 1,230, 45.6 k, 1.23 M.
func rate(v float64) string {
	switch a := math.Abs(v); {
	case a < 0.005 || math.IsNaN(v):
		return "0"
	case a < 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case a < 99.95:
		return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0")
	case a < 9999.5:
		return num(int64(math.Round(v)))
	case a < 999_950:
		return strconv.FormatFloat(v/1e3, 'f', 1, 64) + " k"
	case a < 999_995_000:
		return strconv.FormatFloat(v/1e6, 'f', 2, 64) + " M"
	}
	return strconv.FormatFloat(v/1e9, 'f', 2, 64) + " G"
}

// brief prints a count where there is little room: 9,999, 16.6 k, 1.23 M.
func brief(n uint64) string {
	if n < 10_000 {
		return num(n)
	}
	return rate(float64(n))
}

// size prints bytes in units of 1024.
func size(v any) string {
	n, _ := strconv.ParseFloat(fmt.Sprint(v), 64)
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for ; math.Abs(n) >= 1023.5 && i < len(units)-1; i++ {
		n /= 1024
	}
	if i == 0 || n >= 99.5 {
		return strconv.FormatFloat(n, 'f', 0, 64) + " " + units[i]
	}
	return strconv.FormatFloat(n, 'f', 1, 64) + " " + units[i]
}

// share is part of whole in whole percent, for the value of a meter.
func share(part, whole any) int {
	p, _ := strconv.ParseFloat(fmt.Sprint(part), 64)
	w, _ := strconv.ParseFloat(fmt.Sprint(whole), 64)
	if w <= 0 {
		return 0
	}
	return int(min(100, max(0, math.Round(100*p/w))))
}

func percent(part, whole any) string { return strconv.Itoa(share(part, whole)) + " %" }

// dur prints a duration with its two largest units: 350ms, 4.2s, 3m 12s, 2h 5m, 4d 3h.
func dur(d time.Duration) string {
	switch {
	case d < 0:
		return "-" + dur(-d)
	case d == 0:
		return "0s"
	case d < time.Second:
		return strconv.FormatInt(max(1, d.Milliseconds()), 10) + "ms"
	case d < 10*time.Second:
		return strings.TrimSuffix(strconv.FormatFloat(d.Seconds(), 'f', 1, 64), ".0") + "s"
	case d < time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "s"
	}
	two := func(big, small time.Duration, a, b string) string {
		if rest := d % big / small; rest > 0 {
			return fmt.Sprintf("%d%s %d%s", d/big, a, rest, b)
		}
		return fmt.Sprintf("%d%s", d/big, a)
	}
	switch {
	case d < time.Hour:
		return two(time.Minute, time.Second, "m", "s")
	case d < 24*time.Hour:
		return two(time.Hour, time.Minute, "h", "m")
	}
	return two(24*time.Hour, time.Hour, "d", "h")
}

// when prints a time, as it was or as how long ago that is; the page shows the other on
// hovering, and in the zone of the browser.
func when(t time.Time, relative bool) template.HTML {
	if t.IsZero() {
		return `<span class="muted">–</span>`
	}
	t = t.UTC()
	text := t.Format("2006-01-02 15:04:05")
	if relative {
		switch d := time.Since(t); {
		case d < -time.Second:
			text = "in " + dur(-d)
		case d < time.Second:
			text = "now"
		default:
			text = dur(d) + " ago"
		}
	}
	return template.HTML(`<time datetime="` + t.Format(time.RFC3339Nano) + `" title="` + t.Format("2006-01-02 15:04:05.000") + ` UTC">` + text + `</time>`) //nolint:gosec // digits only
}

// plural prints a number with its noun: 1 entry, 2,000 entries.
func plural(n any, one, many string) string {
	if s := num(n); s != "1" {
		return s + " " + many
	}
	return "1 " + one
}

// badges say how good a state is: in words and in colour.
var badges = map[string]string{
	"running": "ok", "ok": "ok", "healthy": "ok", "done": "ok", "balanced": "ok", "confirmed": "ok", "closed": "ok", "fresh": "ok", "flowing": "ok",
	"starting": "info", "waiting": "info", "stopping": "info", "half-open": "info", "learning": "info", "open": "info", "operator": "info",
	"paused": "warn", "warning": "warn", "late": "warn", "lagging": "warn", "duplicate": "off", "filtered": "off",
	"failing": "bad", "failed": "bad", "error": "bad", "silent": "bad", "unbalanced": "bad", "quarantined": "bad", "missing": "bad",
	"stopped": "off", "cancelled": "off", "idle": "off", "unknown": "off", "read-only": "off",
}

// badge shows a state; a second word says how good it is, where the state alone does not:
// ok, info, warn, bad or off.
func badge(state string, kind ...string) template.HTML {
	k := badges[state]
	if len(kind) > 0 {
		k = kind[0]
	}
	switch k {
	case "ok", "info", "warn", "bad":
	default:
		k = "off"
	}
	return template.HTML(`<span class="badge ` + k + `">` + markup.Escape(state) + `</span>`) //nolint:gosec // escaped
}

func lines(s string) []string { return strings.Split(strings.TrimRight(s, "\n"), "\n") }

// capital writes the first letter large.
func capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// dict makes the data of a template that takes several values: key, value, …
func dict(pairs ...any) (map[string]any, error) {
	m := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		key, ok := pairs[i].(string)
		if !ok {
			return nil, fmt.Errorf("key %v is no text", pairs[i])
		}
		m[key] = pairs[i+1]
	}
	return m, nil
}

// query makes the query of an address out of key, value, …; empty values are left out.
func query(pairs ...any) template.URL {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if v := fmt.Sprint(pairs[i+1]); v != "" && v != "0" {
			q.Set(fmt.Sprint(pairs[i]), v)
		}
	}
	return template.URL(q.Encode()) //nolint:gosec // encoded
}
