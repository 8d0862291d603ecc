package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/charmbracelet/lipgloss"
	"github.com/charmbracelet/x/ansi"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/penstock/penstock/services/operate/status"
)

func newTop() *cobra.Command {
	var flags busFlags
	var once, asJSON bool
	every := 2 * time.Second
	cmd := &cobra.Command{
		Use: "top", Args: exactly(0),
		Short: "Watch stages, lag, rates, destinations and problems in the terminal",
		Long: `Shows the pipeline as it works, until q or Ctrl-C. Without a terminal, with --once
or --json it looks for a moment, prints what it saw and ends.

Keys: q ends; p stops and goes on; the arrow keys move through what does not fit.`,
		Example: `  penstock top --store penstock-data
  penstock top --every 5s --nats nats://nats:4222
  penstock top --once --config penstock.yaml
  penstock top --json --store penstock-data`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 500*time.Millisecond {
				return usageError{errors.New("--every: use 500ms or more")}
			}
			bus, file, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			configured := configuredIn(file)
			out, ok := cmd.OutOrStdout().(*os.File)
			if once || asJSON || !ok || !term.IsTerminal(int(out.Fd())) || !term.IsTerminal(int(os.Stdin.Fd())) {
				s, err := ratesOf(cmd.Context(), bus, configured, min(every, 2*time.Second))
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(cmd.OutOrStdout(), s)
				}
				return printTop(cmd.OutOrStdout(), s)
			}
			look := func() (status.Snapshot, error) {
				ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
				defer cancel()
				return status.Now(ctx, bus, configured)
			}
			m := &topModel{look: look, every: every, colour: coloured(out)}
			_, err = tea.NewProgram(m, tea.WithAltScreen(), tea.WithContext(cmd.Context()), tea.WithoutSignalHandler()).Run()
			if cmd.Context().Err() != nil || errors.Is(err, tea.ErrInterrupted) {
				return nil // Ctrl-C is how it ends
			}
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().DurationVar(&every, "every", every, "how often to look")
	cmd.Flags().BoolVar(&once, "once", false, "look for a moment, print one plain table and end")
	cmd.Flags().BoolVar(&asJSON, "json", false, "look for a moment, print JSON and end")
	return cmd
}

// printTop prints what top shows, plain.
func printTop(w io.Writer, s status.Snapshot) error {
	_, err := io.WriteString(w, strings.Join(topLines(s, func(string, string) string { return "" }), "\n")+"\n")
	return err
}

// topModel is what the terminal shows.
type topModel struct {
	look   func() (status.Snapshot, error)
	every  time.Duration
	colour bool

	now, before   *status.Snapshot
	err           error
	paused        bool
	width, height int
	top           int // the first line shown
}

type (
	topLooked struct {
		snapshot status.Snapshot
		err      error
	}
	topTick struct{}
)

// Init implements tea.Model.
func (m *topModel) Init() tea.Cmd { return m.lookNow }

func (m *topModel) lookNow() tea.Msg {
	s, err := m.look()
	return topLooked{s, err}
}

// Update implements tea.Model.
func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyMsg:
		switch msg.String() {
		case "q", "ctrl+c", "esc":
			return m, tea.Quit
		case "p", " ":
			m.paused = !m.paused
		case "down", "j":
			m.top++
		case "up", "k":
			m.top = max(0, m.top-1)
		case "pgdown":
			m.top += max(1, m.height-3)
		case "pgup":
			m.top = max(0, m.top-max(1, m.height-3))
		}
	case topLooked:
		if m.err = msg.err; msg.err == nil {
			s := msg.snapshot
			if m.now != nil {
				s.Rates(m.now)
			}
			m.before, m.now = m.now, &s
		}
		wait := m.every
		if m.before == nil {
			wait = time.Second // rates need two looks
		}
		return m, tea.Tick(wait, func(time.Time) tea.Msg { return topTick{} })
	case topTick:
		if m.paused {
			return m, tea.Tick(m.every, func(time.Time) tea.Msg { return topTick{} })
		}
		return m, m.lookNow
	}
	return m, nil
}

// View implements tea.Model.
func (m *topModel) View() string {
	width, height := m.width, m.height
	if width <= 0 || height <= 0 {
		width, height = 80, 24
	}
	style := func(string, string) string { return "" }
	if m.colour {
		style = topColour
	}
	var lines []string
	switch {
	case m.now != nil:
		lines = topLines(*m.now, style)
	case m.err == nil:
		lines = []string{"asking the processes …"}
	}
	if m.err != nil {
		lines = append([]string{"cannot look: " + flat(m.err.Error())}, lines...)
	}
	room := max(1, height-1)
	m.top = min(m.top, max(0, len(lines)-room))
	shown := lines[m.top:min(len(lines), m.top+room)]
	foot := "q ends · p stops and goes on"
	if m.paused {
		foot = "STOPPED · p goes on · q ends"
	}
	if n := len(lines) - m.top - len(shown); n > 0 {
		foot += fmt.Sprintf(" · ↓ %d more lines", n)
	}
	for len(shown) < room {
		shown = append(shown, "")
	}
	out := make([]string, 0, height)
	for _, l := range append(shown, foot) {
		out = append(out, ansi.Truncate(l, width, "…"))
	}
	return strings.Join(out, "\n")
}

// topColour is the colour of a word: states and severities have one, beside their text.
func topColour(kind, word string) string {
	switch {
	case kind == "head":
		return "8"
	case word == status.Error, word == "failing", word == "stopped", word == "NOT HEALTHY":
		return "1"
	case word == status.Warning, word == "paused", word == "starting", word == "stopping":
		return "3"
	case word == "running", word == "healthy":
		return "2"
	}
	return ""
}

// topLines lays a snapshot out; but for texts, 80 columns will do.
func topLines(s status.Snapshot, colour func(kind, word string) string) []string {
	paint := func(kind, word, text string) string {
		if c := colour(kind, word); c != "" {
			return lipgloss.NewStyle().Foreground(lipgloss.Color(c)).Render(text)
		}
		return text
	}
	name := func(text string, w int) string {
		return pad(ansi.Truncate(flat(text), w, "…"), w)
	}
	state := "healthy"
	if !s.Healthy {
		state = "NOT HEALTHY"
	}
	lines := []string{paint("state", state, headline(s)), ""}
	for i, p := range s.Problems {
		if i == mostProblems {
			lines = append(lines, fmt.Sprintf("        and %d more: penstock status", len(s.Problems)-i))
			break
		}
		lines = append(lines, paint("severity", p.Severity, pad(strings.ToUpper(p.Severity), 8))+flat(p.What))
	}
	if len(s.Problems) > 0 {
		lines = append(lines, "")
	}
	lines = append(lines, paint("head", "", fmt.Sprintf("%-8s %4s %10s %10s %10s %8s %8s %8s %6s", "STAGE", "PROC", "IN/s", "OUT/s", "BYTES/s", "WAITING", "LAG", "ERRORS", "QUAR")))
	for _, st := range s.Stages {
		lines = append(lines, fmt.Sprintf("%-8s %4d %10s %10s %10s %8s %8s %8s %6s", st.Name, st.Processes, rateOf(st.InRate), rateOf(st.OutRate),
			size(uint64(st.BytesRate)), short(st.LagFrames), lagOf(st.LagSeconds), short(st.Errors), short(st.Quarantined)))
	}
	if len(s.Destinations) > 0 {
		lines = append(lines, "", paint("head", "", fmt.Sprintf("%-28s %-9s %10s %10s %8s %8s", "DESTINATION", "STATE", "OUT/s", "DELIVERED", "WAITING", "LAG")))
		for _, d := range s.Destinations {
			lines = append(lines, name(d.Name, 28)+" "+paint("state", d.State, pad(d.State, 9))+fmt.Sprintf(" %10s %10s %8s %8s",
				rateOf(d.Rate), short(d.Delivered), short(d.LagFrames), lagOf(d.LagSeconds)))
		}
	}
	if len(s.Sources) > 0 {
		lines = append(lines, "", paint("head", "", fmt.Sprintf("%-28s %-9s %10s %10s %12s", "SOURCE", "STATE", "SILENT FOR", "USUAL GAP", "ALARM AFTER")))
		for _, src := range worstFirst(s.Sources, mostSources) {
			state := "fresh"
			switch {
			case src.Silent:
				state = "silent"
			case src.Last.IsZero():
				state = "nothing"
			}
			f := strings.Split(sourceLine(src), "\t")
			lines = append(lines, name(src.Source, 28)+" "+paint("state", map[bool]string{true: status.Error}[src.Silent], pad(state, 9))+
				fmt.Sprintf(" %10s %10s %12s", strings.TrimSuffix(f[2], " !"), f[3], f[4]))
		}
	}
	running := false
	for _, j := range s.Jobs {
		if !running {
			lines, running = append(lines, "", paint("head", "", fmt.Sprintf("%-16s %-9s %10s %8s  %s", "JOB", "STATE", "DONE", "LEFT", "WHAT"))), true
		}
		done := short(j.Progress.Done)
		if j.Progress.Total > 0 {
			done = fmt.Sprintf("%d %%", min(100, 100*j.Progress.Done/j.Progress.Total))
		}
		left := "-"
		if d := j.Left(); d > 0 {
			left = shortAge(d)
		}
		lines = append(lines, fmt.Sprintf("%-16s %-9s %10s %8s  %s", j.ID, j.State, done, left, flat(j.What)))
	}
	return lines
}

// mostProblems is how many problems are on the screen.
const mostProblems = 6

// pad fills up to w columns, whatever the width of letters.
func pad(s string, w int) string {
	return s + strings.Repeat(" ", max(0, w-ansi.StringWidth(s)))
}

func rateOf(r float64) string {
	switch {
	case r <= 0:
		return "-"
	case r < 10:
		return fmt.Sprintf("%.1f", r)
	}
	return short(uint64(r))
}

// short writes a number in at most six places.
func short(n uint64) string {
	if n < 100_000 {
		return strconv.FormatUint(n, 10)
	}
	v := float64(n) / 1e3
	for _, unit := range "kMGT" {
		if v < 999.95 {
			return fmt.Sprintf("%.1f%c", v, unit)
		}
		v /= 1e3
	}
	return fmt.Sprintf("%.0fP", v)
}
