package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/penstock/penstock/messages/fault"
)

// heads are the headings of a page of a level: "##" or "###".
func heads(t *testing.T, page, level string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "docs", "runbooks", page))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(data)) {
		if head, ok := strings.CutPrefix(line, level+" "); ok {
			all = append(all, strings.TrimSpace(head))
		}
	}
	return all
}

// Only what a stage works on may come into quarantine: stageFaults. Of these,
// neverQuarantined are faults of class reject that only tell a caller, a sender or an
// operator that what they asked for cannot be: nothing was taken, nothing is kept.
var (
	stageFaults      = regexp.MustCompile(`^(aws|bus|condition|deliver|enrich|fetch|framing|ingest|messages|parse|route)\.`)
	neverQuarantined = regexp.MustCompile(`^(ingest\.hec_|ingest\.http_|ingest\.redrive_|ingest\.(no_time_range|range_too_long|span_open)$` +
		`|deliver\.(pull_|replay_|consumer_|bad_cursor$|log_trimmed$)|messages\.bad_(facts|quarantine)$|bus\.(no_job|job_[a-z]+|nobody_serves)$)`)
)

// Every reason for which something may be in quarantine has its chapter.
//
// covers: pain 4
func TestRunbookOfQuarantineIsWhole(t *testing.T) {
	chapters := heads(t, "quarantine.md", "###")
	known := map[string]bool{}
	for _, k := range fault.All() {
		known[k.Code] = true
		may := k.Class == fault.Reject && stageFaults.MatchString(k.Code) && !neverQuarantined.MatchString(k.Code)
		if may && !slices.Contains(chapters, k.Code) {
			t.Errorf("docs/runbooks/quarantine.md has no chapter %s: what it means, what to do, with which command", k.Code)
		}
	}
	for _, c := range chapters {
		if !known[c] {
			t.Errorf("docs/runbooks/quarantine.md has a chapter on %s, which is no error of penstock", c)
		}
	}
}

// ruleFile is a file of alert rules for Prometheus.
type ruleFile struct {
	Groups []struct {
		Rules []struct {
			Alert       string
			Expr        string
			Labels      map[string]string
			Annotations map[string]string
		}
	}
}

// metricName finds the metrics in a query; a histogram's have a suffix.
var metricName = regexp.MustCompile(`penstock_[a-z0-9_]+`)

func checkMetrics(t *testing.T, where, query string, defined []metric) {
	t.Helper()
	for _, name := range metricName.FindAllString(query, -1) {
		if !slices.ContainsFunc(defined, func(m metric) bool {
			return m.name == name || m.kind == "histogram" && slices.Contains([]string{m.name + "_bucket", m.name + "_sum", m.name + "_count"}, name)
		}) {
			t.Errorf("%s asks for %s, which is no metric of penstock", where, name)
		}
	}
}

// Every alert asks for metrics that there are, and has its chapter.
//
// covers: design section 8
func TestAlertsHaveTheirRunbook(t *testing.T) {
	path := filepath.Join("..", "..", "deploy", "prometheus", "penstock.rules.yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file ruleFile
	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	defined, chapters := definedMetrics(t), heads(t, "alarms.md", "###")
	var alerts []string
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			alerts = append(alerts, r.Alert)
			checkMetrics(t, "alert "+r.Alert, r.Expr, defined)
			if want := "docs/runbooks/alarms.md#" + strings.ToLower(r.Alert); r.Annotations["runbook"] != want {
				t.Errorf("alert %s: runbook is %q, want %q", r.Alert, r.Annotations["runbook"], want)
			}
			if r.Annotations["summary"] == "" || r.Labels["severity"] == "" {
				t.Errorf("alert %s has no summary or no severity", r.Alert)
			}
		}
	}
	slices.Sort(alerts)
	slices.Sort(chapters)
	if !slices.Equal(alerts, chapters) {
		t.Errorf("alerts %q\nchapters %q", alerts, chapters)
	}
	tool, err := promtool()
	if err != nil {
		t.Skip("promtool (Debian: prometheus) is not here to read the rules; .ci/run receivers gets it")
	}
	for _, args := range [][]string{{"check", "rules", path}, {"test", "rules", filepath.Join(filepath.Dir(path), "penstock.rules.test.yaml")}} {
		if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// The dashboard asks for metrics that there are, and its panels do not overlap.
//
// covers: design section 8
func TestDashboardShowsMetricsThatThereAre(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "deploy", "grafana", "penstock.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			GridPos struct{ H, W, X, Y int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(data, &board); err != nil {
		t.Fatal(err)
	}
	defined, taken := definedMetrics(t), map[[2]int]string{}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			checkMetrics(t, "panel "+p.Title, target.Expr, defined)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q lies over %q, or beyond the edge", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
	if len(board.Panels) < 20 {
		t.Errorf("the dashboard has %d panels only", len(board.Panels))
	}
}

// promtool is where .ci/run puts it, or in the path.
func promtool() (string, error) {
	if cache, err := os.UserCacheDir(); err == nil {
		if tool, err := exec.LookPath(filepath.Join(cache, "penstock-receivers", "bin", "promtool")); err == nil {
			return tool, nil
		}
	}
	return exec.LookPath("promtool")
}

// Commands in the guides and runbooks of operators are commands that there are, with the
// flags that they have.
func TestCommandsInRunbooksAreCommands(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join("..", "..", "docs", "runbooks", "*.md"))
	if err != nil || len(pages) < 2 {
		t.Fatal(pages, err)
	}
	pages = append(pages, filepath.Join("..", "..", "docs", "guides", "operating.md"), filepath.Join("..", "..", "README.md"))
	inline, n := regexp.MustCompile("`(?:\\./)?penstock ([^`]+)`"), 0
	for _, page := range pages {
		data, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for _, m := range inline.FindAllStringSubmatch(strings.ReplaceAll(string(data), "\n", " "), -1) {
			lines = append(lines, m[1])
		}
		for line := range strings.Lines(string(data)) {
			if command, ok := strings.CutPrefix(strings.TrimPrefix(strings.TrimSpace(line), "./"), "penstock "); ok && strings.HasPrefix(line, "    ") {
				lines = append(lines, command)
			}
		}
		for _, line := range lines {
			n++
			checkCommand(t, filepath.Base(page), line)
		}
	}
	if n < 50 {
		t.Errorf("only %d commands found: the search is broken", n)
	}
}

// checkCommand finds the command of a line and its flags.
func checkCommand(t *testing.T, page, line string) {
	t.Helper()
	line, _, _ = strings.Cut(line, "|")
	line, _, _ = strings.Cut(line, "  ") // what stands behind explains it
	var words []string
	for _, w := range strings.Fields(line) {
		if w == "…" || w == "#" || w == ">" || w == "&" {
			continue
		}
		words = append(words, strings.TrimRight(w, ",.;:"))
	}
	cmd, _, err := newRoot().Find(words)
	if err != nil || cmd.Name() == "penstock" {
		t.Errorf("%s: %q is no command: %v", page, line, err)
		return
	}
	if slices.Contains([]string{"sources", "formats", "destinations"}, words[0]) && cmd.Name() == words[0] {
		if _, _, err := command(t, "", words...); err != nil { // a word that is no command is taken for a kind
			t.Errorf("%s: %q: %v", page, line, err)
		}
	}
	for _, w := range words {
		name, isFlag := strings.CutPrefix(w, "--")
		name, _, _ = strings.Cut(name, "=")
		if isFlag && cmd.Flags().Lookup(name) == nil && cmd.InheritedFlags().Lookup(name) == nil {
			t.Errorf("%s: %q has no flag --%s", page, line, name)
		}
	}
}
