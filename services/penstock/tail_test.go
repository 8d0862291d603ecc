package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/operate/eventlog"
	"github.com/penstock/penstock/services/operate/freshness"
	"github.com/penstock/penstock/services/operate/status"
)

func hostile() *eventlog.Found {
	return &eventlog.Found{
		Place: eventlog.Place{Sequence: 7, Index: 3}, ID: "ab", Type: "web.allow", Source: "web", Account: "acme\x1b[2J", Region: "eu",
		Time: time.Date(2026, 1, 5, 7, 44, 54, 0, time.UTC), Origin: &messages.Origin{Bucket: "b", Key: "k"},
		Doc: []byte("{\"a\":\"\x1b]0;title\x07\u009b31m\u202e\",\n\"b\":\"\u4e16\u754c\"}"),
	}
}

// covers: design section 8
func TestTailLeavesTheTerminalAlone(t *testing.T) {
	for _, colour := range []bool{false, true} {
		var out, errOut strings.Builder
		p := newEventPrinter(&out, &errOut, false, false)
		p.colour, p.width = colour, 120
		if err := p.event(hostile()); err != nil {
			t.Fatal(err)
		}
		line := strings.TrimSuffix(out.String(), "\n")
		if plain := ansi.Strip(line); plain != strings.ReplaceAll(plain, "\x1b", "") || strings.ContainsAny(plain, "\x07\u009b\u202e\n") || ansi.StringWidth(line) > 120 {
			t.Errorf("%q", line)
		}
		if got := strings.Count(line, "\x1b["); colour != (got > 0) || strings.Contains(line, "[2J") && strings.Contains(line, "\x1b[2J") {
			t.Errorf("colour %v: %d escapes in %q", colour, got, line)
		}
		if !strings.Contains(line, "2026-01-05T07:44:54.000Z") || !strings.Contains(line, "web.allow") {
			t.Errorf("%q", line)
		}
	}
	var out, errOut strings.Builder
	p := newEventPrinter(&out, &errOut, true, false)
	if err := p.event(hostile()); err != nil {
		t.Fatal(err)
	}
	if err := p.event(&eventlog.Found{Doc: []byte("no JSON")}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines of NDJSON", len(lines))
	}
	if strings.ContainsAny(lines[0], "\x1b\x07\u009b\u202e") {
		t.Errorf("%q", lines[0])
	}
	var e struct {
		Place, Object string
		Doc           json.RawMessage
	}
	if err := json.Unmarshal([]byte(lines[1]), &e); err != nil || string(e.Doc) != `"no JSON"` {
		t.Errorf("%s, %v", e.Doc, err)
	}
}

// What is escaped in JSON for the terminal's sake is the same text afterwards.
func TestHarmless(t *testing.T) {
	text := "a\u009bb\u202ec\u007f\U000E0001\U0001F600"
	data, _ := json.Marshal(text)
	var back string
	if err := json.Unmarshal(harmless(data), &back); err != nil || back != text {
		t.Errorf("%q, %v", back, err)
	}
}

func TestMoment(t *testing.T) {
	now := time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC)
	if at, err := moment("2h", now); err != nil || !at.Equal(now.Add(-2*time.Hour)) {
		t.Errorf("%v, %v", at, err)
	}
	if at, err := moment("2026-01-01T00:00:00Z", now); err != nil || at.Day() != 1 {
		t.Errorf("%v, %v", at, err)
	}
	for _, s := range []string{"", "-2h", "yesterday"} {
		if _, err := moment(s, now); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

func busySnapshot() status.Snapshot {
	s := status.Snapshot{At: time.Now(), Processes: make([]status.Process, 3)}
	for i := range 9 {
		s.Problems = append(s.Problems, status.Problem{Severity: status.Error, What: fmt.Sprintf("destination d%d takes nothing: \x1b[31mrefused\x1b[0m %s", i, strings.Repeat("long ", 40)), Fix: "mend it"})
	}
	for _, name := range []string{"ingest", "fetch", "parse", "dedupe", "route", "deliver"} {
		s.Stages = append(s.Stages, status.Stage{Name: name, Processes: 12, In: 1 << 60, Out: 1 << 60, InRate: 1e9, OutRate: 123456, BytesRate: 1e12, LagFrames: 1 << 40, LagSeconds: 1e6, Errors: 1 << 40, Quarantined: 1 << 20})
	}
	for i := range 20 {
		s.Destinations = append(s.Destinations, status.Destination{Name: fmt.Sprint("destination-with-a-very-long-name-", i), State: "running", Delivered: 1 << 50})
		s.Sources = append(s.Sources, freshness.State{Source: fmt.Sprint("s", i), Silence: 1e6 * time.Second, Usual: time.Hour, Allowed: time.Hour, Silent: i == 7, Last: time.Now(), Setting: "auto"})
	}
	return s
}

// At 80 by 24 nothing is wider or higher than the screen, and all can be reached.
func TestTopFits(t *testing.T) {
	m := &topModel{width: 80, height: 24, colour: true}
	s := busySnapshot()
	m.now = &s
	seen := ""
	for range 10 {
		view := m.View()
		seen += view
		lines := strings.Split(view, "\n")
		if len(lines) != 24 {
			t.Fatalf("%d lines", len(lines))
		}
		for _, l := range lines {
			if ansi.StringWidth(l) > 80 {
				t.Errorf("%d columns: %q", ansi.StringWidth(l), l)
			}
		}
		m.top += 20
	}
	for _, want := range []string{"NOT HEALTHY", "deliver ", "destination-with-a-very-lon…", "s7 ", "silent"} {
		if !strings.Contains(ansi.Strip(seen), want) {
			t.Errorf("%q is nowhere", want)
		}
	}
	for _, row := range topLines(s, func(string, string) string { return "" })[9:18] {
		if w := ansi.StringWidth(row); w > 80 {
			t.Errorf("%d columns in the table: %q", w, row)
		}
	}
	var out strings.Builder
	if err := printTop(&out, s); err != nil || strings.Contains(out.String(), "\x1b") {
		t.Errorf("%q, %v", out.String(), err)
	}
	out.Reset()
	if err := printSnapshot(&out, s); err != nil || strings.Contains(out.String(), "\x1b") {
		t.Errorf("%q, %v", out.String(), err)
	}
}
