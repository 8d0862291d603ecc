package main

import (
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/services/deliver"
	"github.com/penstock/penstock/topology"
)

// Of what several processes say, the worst counts; a pause shows once all follow it.
func TestStatusOfSeveralProcesses(t *testing.T) {
	at := time.Date(2026, 5, 1, 10, 0, 0, 0, time.UTC)
	on, off := &topology.Control{Paused: true, By: "op@host", At: at, Reason: "move\x1b[31m"}, &topology.Control{By: "op@host", At: at}
	running := deliver.State{State: deliver.Running, Breaker: "closed"}
	failing := deliver.State{State: deliver.Failing, Error: "no such file"}
	paused := deliver.State{State: deliver.Paused}
	for _, tt := range []struct {
		name    string
		says    []deliver.State
		control *topology.Control
		pulled  bool
		state   string
		breaker string
		why     string
	}{
		{"none", nil, nil, false, "stopped", "", "not in the configuration"},
		{"none, paused", nil, on, false, "paused", "", "paused by op@host at 2026-05-01 10:00:00: move·[31m"},
		{"one that does not answer", nil, off, true, "running", "", ""},
		{"both run", []deliver.State{running, running}, nil, true, "running", "closed", ""},
		{"one fails", []deliver.State{running, failing}, nil, true, "failing", "closed", "p1: no such file"},
		{"one fails first", []deliver.State{failing, running}, nil, true, "failing", "closed", "p0: no such file"},
		{"far side down", []deliver.State{{State: deliver.Running, Breaker: "open"}, running}, nil, true, "failing", "open", ""},
		{"denied", []deliver.State{{State: deliver.Running, Breaker: "open"}, {State: deliver.Running, Breaker: "stopped"}}, nil, true, "failing", "stopped", ""},
		{"one still finishes", []deliver.State{paused, running}, on, true, "running", "closed", "paused by"},
		{"all follow", []deliver.State{paused, paused}, on, false, "paused", "", "paused by"},
		{"one is let go", []deliver.State{{State: deliver.Stopping, Breaker: "closed"}}, nil, true, "stopping", "closed", ""},
		{"one is let go while it is to pause", []deliver.State{{State: deliver.Stopping, Breaker: "closed"}, paused}, on, true, "stopping", "closed", "paused by"},
		{"begins", []deliver.State{{State: deliver.Starting}}, nil, false, "starting", "", ""},
		{"begins, paused", []deliver.State{{State: deliver.Starting}}, on, false, "paused", "", "paused by"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := destinationStatus{State: stopped, Control: tt.control, Processes: map[string]deliver.State{}, Configured: len(tt.says) > 0}
			for i, p := range tt.says {
				s.Processes["p"+string(rune('0'+i))] = p
			}
			s.judge(tt.pulled)
			if s.State != tt.state || s.Breaker != tt.breaker || !strings.Contains(s.why(), tt.why) {
				t.Errorf("state %q, breaker %q, %q; want %q, %q, %q", s.State, s.Breaker, s.why(), tt.state, tt.breaker, tt.why)
			}
		})
	}
}

func TestPick(t *testing.T) {
	list := []*destinationStatus{{Name: "a"}, {Name: "b"}}
	if s, err := pick(list, "b"); err != nil || s != list[1] {
		t.Errorf("%v, %v", s, err)
	}
	for _, l := range [][]*destinationStatus{list, nil} {
		if _, err := pick(l, "c"); exitCode(err) != exitUsage || !strings.Contains(err.Error(), `"c"`) {
			t.Errorf("%v", err)
		}
	}
}
