package destinations

import (
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/services/internal/standing"
	"github.com/penstock/penstock/topology"
)

// Of what several processes say, the worst counts; a pause shows once all follow it.
func TestStatusOfSeveralProcesses(t *testing.T) {
	at := time.Date(2026, 5, 1, 10, 0, 0, 0, time.UTC)
	on, off := &topology.Control{Paused: true, By: "op@host", At: at, Reason: "move"}, &topology.Control{By: "op@host", At: at}
	running := standing.State{State: standing.Running, Breaker: "closed"}
	failing := standing.State{State: standing.Failing, Error: "no such file"}
	paused := standing.State{State: standing.Paused}
	for _, tt := range []struct {
		name    string
		says    []standing.State
		control *topology.Control
		pulled  bool
		state   string
		breaker string
		why     string
	}{
		{"none", nil, nil, false, "stopped", "", "not in the configuration"},
		{"none, paused", nil, on, false, "paused", "", "paused by op@host at 2026-05-01 10:00:00: move"},
		{"one that does not answer", nil, off, true, "running", "", ""},
		{"both run", []standing.State{running, running}, nil, true, "running", "closed", ""},
		{"one fails", []standing.State{running, failing}, nil, true, "failing", "closed", "p1: no such file"},
		{"one fails first", []standing.State{failing, running}, nil, true, "failing", "closed", "p0: no such file"},
		{"far side down", []standing.State{{State: standing.Running, Breaker: "open"}, running}, nil, true, "failing", "open", ""},
		{"denied", []standing.State{{State: standing.Running, Breaker: "open"}, {State: standing.Running, Breaker: "stopped"}}, nil, true, "failing", "stopped", ""},
		{"one still finishes", []standing.State{paused, running}, on, true, "running", "closed", "paused by"},
		{"all follow", []standing.State{paused, paused}, on, false, "paused", "", "paused by"},
		{"one is let go", []standing.State{{State: standing.Stopping, Breaker: "closed"}}, nil, true, "stopping", "closed", ""},
		{"one is let go while it is to pause", []standing.State{{State: standing.Stopping, Breaker: "closed"}, paused}, on, true, "stopping", "closed", "paused by"},
		{"begins", []standing.State{{State: standing.Starting}}, nil, false, "starting", "", ""},
		{"begins, paused", []standing.State{{State: standing.Starting}}, on, false, "paused", "", "paused by"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := Status{State: Stopped, Control: tt.control, Processes: map[string]standing.State{}, Configured: len(tt.says) > 0}
			for i, p := range tt.says {
				s.Processes["p"+string(rune('0'+i))] = p
			}
			s.judge(tt.pulled)
			if s.State != tt.state || s.Breaker != tt.breaker || !strings.Contains(strings.Join(s.Remarks(), "; "), tt.why) {
				t.Errorf("state %q, breaker %q, %q; want %q, %q, %q", s.State, s.Breaker, strings.Join(s.Remarks(), "; "), tt.state, tt.breaker, tt.why)
			}
		})
	}
}
