package console

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/penstock/penstock/services/operate/status"
	"github.com/penstock/penstock/topology"
)

func init() {
	register(page{path: "/topology", title: "Topology", nav: navSystem, order: 80, icon: "topology", get: getTopology, routes: []route{
		{"GET /topology/table", func(r *request) error { return r.fragment("topology-table", r.c.topologyView()) }, readOnly},
	}})
	register(page{path: "/settings", title: "Settings", nav: navSystem, order: 90, icon: "settings", get: getSettings})
	register(page{path: "/audit", title: "Audit", nav: navSystem, order: 100, icon: "audit", get: getAudit})
}

// topologyView is what the streams hold.
type topologyView struct {
	Known     bool
	Streams   []streamView
	Bytes     uint64
	Limit     int64
	Processes []status.Process
}

type streamView struct {
	topology.StreamState
	From, To string
	Share    int
	Full     bool
	Kept     time.Duration
}

// topologyView is the view of the last sample. It asks nobody.
func (c *Console) topologyView() topologyView {
	now := c.latest()
	if now == nil || now.seen.IsZero() {
		return topologyView{}
	}
	v := topologyView{Known: true, Processes: now.Processes}
	for _, s := range now.Logs {
		sv := streamView{StreamState: s, Share: share(s.Bytes, s.MaxBytes)}
		sv.Full = sv.Share >= 95
		sv.Kept, _ = time.ParseDuration(s.Keep) // zero: it does not say
		for _, f := range topology.Flow {
			if f.Name == s.Stream {
				sv.From, sv.To = stageNames(f.From), stageNames(f.To)
			}
		}
		v.Bytes += s.Bytes
		v.Limit += s.MaxBytes
		v.Streams = append(v.Streams, sv)
	}
	return v
}

func stageNames(stages []topology.Stage) string {
	if len(stages) == len(topology.Stages) {
		return "all stages"
	}
	names := make([]string, len(stages))
	for i, s := range stages {
		names[i] = string(s)
	}
	return strings.Join(names, ", ")
}

func getTopology(r *request) error { return r.page("topology", r.c.topologyView()) }

// settingsView is the configuration that counts, by its sections.
type settingsView struct {
	Sections []section
	Error    string
}

type section struct {
	Name  string
	Lines []settingLine
	// Items are the entries of a list, e.g. sources: each can be opened.
	Items []settingItem
}

type settingItem struct {
	Name, Type string
	Lines      []settingLine
}

// settingLine is a line of YAML, in pieces so that the page can tell them apart.
type settingLine struct {
	Indent, Key, Rest string
	Secret            bool
}

var settingForm = regexp.MustCompile(`^([\s-]*)([\w./@*-]+:)?(.*)$`)

func getSettings(r *request) error {
	var v settingsView
	if r.c.deps.Effective == nil {
		return r.page("settings", v)
	}
	data, err := r.c.deps.Effective()
	if err != nil {
		return err
	}
	v.Sections = sections(string(data))
	return r.page("settings", v)
}

// sections reads the YAML that config.Effective writes.
func sections(text string) (all []section) {
	item := "" // how the entries of the list of this section begin
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		m := settingForm.FindStringSubmatch(line)
		l := settingLine{m[1], m[2], m[3], strings.Contains(m[3], "[redacted]")}
		if m[1] == "" && m[2] != "" {
			all = append(all, section{Name: strings.TrimSuffix(m[2], ":")})
			item = ""
			if strings.TrimSpace(m[3]) == "" { // its own line says no more than the heading
				continue
			}
		}
		if len(all) == 0 {
			continue
		}
		s := &all[len(all)-1]
		if item == "" && len(s.Lines) == 0 && strings.HasSuffix(m[1], "- ") {
			item = m[1]
		}
		if item == "" {
			s.Lines = append(s.Lines, l)
			continue
		}
		if m[1] == item {
			s.Items = append(s.Items, settingItem{})
		}
		i := &s.Items[len(s.Items)-1]
		if len(m[1]) == len(item) {
			switch m[2] {
			case "name:":
				i.Name = strings.TrimSpace(m[3])
			case "type:":
				i.Type = strings.TrimSpace(m[3])
			}
		}
		i.Lines = append(i.Lines, l)
	}
	return all
}

// auditView is a page of the audit, newest first.
type auditView struct {
	Deeds                 []topology.Deed
	Action, By, Text, Via string
	Actions, Users        []string
	// Older is the query of the next page, Read how many deeds were looked at.
	Older int
	First bool
	Total int
	Cut   bool
}

// Bounds of the audit: what is looked through at one time, and what a page shows.
const (
	auditScan = 20_000
	auditPage = 50
)

// getAudit reads the audit from its end. It is short: people write it.
func getAudit(r *request) error {
	bus, err := r.bus()
	if err != nil {
		return err
	}
	v := auditView{
		Action: cut(r.FormValue("action"), 100), By: cut(r.FormValue("by"), 200), Via: cut(r.FormValue("via"), 20), Text: cut(strings.TrimSpace(r.FormValue("text")), 200),
	}
	skip, _ := strconv.Atoi(r.FormValue("skip"))
	skip = max(0, skip)
	var all []topology.Deed // the last auditScan
	err = bus.ReadAudit(r.Context(), time.Time{}, func(d topology.Deed) bool {
		if len(all) == 2*auditScan {
			all = slices.Delete(all, 0, auditScan)
			v.Cut = true
		}
		all = append(all, d)
		return true
	})
	if err != nil {
		return err
	}
	actions, users := map[string]bool{}, map[string]bool{}
	text := strings.ToLower(v.Text)
	for _, d := range slices.Backward(all) {
		actions[d.Action], users[d.By] = true, true
		if v.Action != "" && d.Action != v.Action || v.By != "" && d.By != v.By || v.Via != "" && d.Via != v.Via ||
			text != "" && !strings.Contains(strings.ToLower(strings.Join([]string{d.Action, d.What, d.Reason, d.Job, d.By, d.Result}, "\n")), text) {
			continue
		}
		v.Total++
		if v.Total > skip && len(v.Deeds) < auditPage {
			v.Deeds = append(v.Deeds, d)
		}
	}
	v.Actions, v.Users = sortedKeys(actions), sortedKeys(users)
	v.First = skip == 0
	if skip+len(v.Deeds) < v.Total {
		v.Older = skip + len(v.Deeds)
	}
	return r.page("audit", v)
}

func sortedKeys(m map[string]bool) []string {
	var keys []string
	for k := range m {
		if k != "" {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}
