// Package destinations gathers what the bus and the processes know of destinations, and
// has them pause and go on. Commands and the console share it.
package destinations

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/standing"
	"github.com/penstock/penstock/topology"
)

var (
	errAnswer = fault.Define("destinations.unreadable_answer", fault.Reject,
		"run the same version of penstock in all processes, or ask with the older one")
	// ErrUnknown is that of a destination that nobody knows of.
	ErrUnknown = fault.Define("destinations.unknown", fault.Reject,
		"see which there are: penstock destinations status")
)

// Stopped is the state of a destination that no process has.
const Stopped = "stopped"

// Status is what the bus, the ledger and the processes know of a destination.
type Status struct {
	Name string `json:"name"`
	Type string `json:"type,omitempty"`
	// State is running, starting, paused, failing, stopping or stopped. Of several
	// processes the worst counts. Stopped: no process has it, and it is not paused.
	State string `json:"state"`
	// Configured in a process that runs, or in the file given with --config.
	Configured bool `json:"configured"`
	// LagFrames of the event log are not confirmed; LagSeconds is the age of the oldest
	// of them, OldestUnconfirmed when that was stored.
	LagFrames         uint64     `json:"lag_frames"`
	LagSeconds        float64    `json:"lag_seconds"`
	OldestUnconfirmed *time.Time `json:"oldest_unconfirmed,omitempty"`
	// First is the sequence of the first frame that it reads, 0 when the log is not
	// kept for it.
	First uint64 `json:"first,omitempty"`
	// Events confirmed, filtered, skipped and quarantined, as far as the ledger goes
	// back. [Now] leaves them to whoever has read that.
	Confirmed   uint64            `json:"confirmed"`
	Filtered    uint64            `json:"filtered"`
	Skipped     uint64            `json:"skipped"`
	Quarantined map[string]uint64 `json:"quarantined,omitempty"`
	// Breaker is closed, open or stopped, the worst of all processes.
	Breaker string `json:"breaker,omitempty"`
	// Control is what an operator said last.
	Control *topology.Control `json:"control,omitempty"`
	// Processes that have it, by name.
	Processes map[string]standing.State `json:"processes,omitempty"`
}

// Configured is a destination of a configuration.
type Configured struct{ Name, Type string }

// New is the status of a destination of which nothing is known.
func New(name string) *Status {
	return &Status{Name: name, State: Stopped, Processes: map[string]standing.State{}}
}

// Now returns all destinations that anybody knows of, in the order of their names.
func Now(ctx context.Context, bus *topology.Bus, configured []Configured) ([]*Status, error) {
	all := map[string]*Status{}
	of := func(name string) *Status {
		if all[name] == nil {
			all[name] = New(name)
		}
		return all[name]
	}
	for _, d := range configured {
		s := of(d.Name)
		s.Type, s.Configured = d.Type, true
	}
	waiting := map[string]bool{}
	readers, err := bus.Readers(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range readers {
		s := of(r.Destination)
		s.First, s.LagFrames = r.First, r.Pending+uint64(max(0, r.InHand))
		waiting[r.Destination] = r.Waiting > 0
		if !r.Oldest.IsZero() {
			at := r.Oldest.UTC()
			s.OldestUnconfirmed, s.LagSeconds = &at, max(0, time.Since(at).Seconds())
		}
	}
	said, err := bus.Controls(ctx)
	if err != nil {
		return nil, err
	}
	for name, c := range said {
		of(name).Control = &c
	}
	if err := ask(ctx, bus, of); err != nil {
		return nil, err
	}
	list := make([]*Status, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s := all[name]
		s.judge(waiting[name])
		list = append(list, s)
	}
	return list, nil
}

// ask asks those that deliver.
func ask(ctx context.Context, bus *topology.Bus, of func(name string) *Status) error {
	answers, err := bus.Ask(ctx, standing.Question)
	if err != nil {
		return err
	}
	for _, data := range answers {
		var a standing.Answer
		if err := json.Unmarshal(data, &a); err != nil {
			return errAnswer.New(err, "read what a process says of its destinations")
		}
		for _, d := range a.Destinations {
			s := of(d.Destination)
			s.Type, s.Processes[a.Process] = d.Type, d
			s.Configured = s.Configured || d.State != standing.Stopping
		}
	}
	return nil
}

// The worst counts of the states and breakers in several processes.
var (
	worseState = map[string]int{
		standing.Paused: 1, standing.Stopping: 2, standing.Running: 3, standing.Starting: 4, standing.Failing: 5,
	}
	worseBreaker = map[string]int{standing.BreakerClosed: 1, standing.BreakerOpen: 2, standing.BreakerStopped: 3}
)

// judge makes one state of what the processes say. pulled: somebody asks for frames.
func (s *Status) judge(pulled bool) {
	for _, p := range s.Processes {
		state := p.State
		if state == standing.Running && p.Breaker != "" && p.Breaker != standing.BreakerClosed {
			state = standing.Failing // it is open, and the far side takes nothing
		}
		if worseState[state] > worseState[s.State] {
			s.State = state
		}
		if worseBreaker[p.Breaker] > worseBreaker[s.Breaker] {
			s.Breaker = p.Breaker
		}
	}
	switch {
	case s.Paused() && (s.State == Stopped || s.State == standing.Starting):
		s.State = standing.Paused
	case len(s.Processes) == 0 && pulled:
		s.State = standing.Running // by one that does not answer
	}
}

// Paused tells whether an operator wants it so, followed by all processes or not yet.
func (s *Status) Paused() bool { return s.Control != nil && s.Control.Paused }

// QuarantinedSum is how many events it refused, whatever the reason.
func (s *Status) QuarantinedSum() (n uint64) {
	for _, m := range s.Quarantined {
		n += m
	}
	return n
}

// Remarks are what there is to say about the state. They quote what operators and far
// sides said.
func (s *Status) Remarks() []string {
	var all []string
	if s.Paused() {
		text := fmt.Sprintf("paused by %s at %s", s.Control.By, s.Control.At.UTC().Format(time.DateTime))
		if s.Control.Reason != "" {
			text += ": " + s.Control.Reason
		}
		all = append(all, text)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Processes)) {
		if p := s.Processes[name]; p.Error != "" {
			all = append(all, name+": "+p.Error)
		}
	}
	if !s.Configured {
		all = append(all, "not in the configuration of any process that runs")
	}
	return all
}

// Pick finds one by its name. Errors: destinations.unknown.
func Pick(list []*Status, name string) (*Status, error) {
	known := make([]string, len(list))
	for i, s := range list {
		if s.Name == name {
			return s, nil
		}
		known[i] = s.Name
	}
	if len(known) == 0 {
		return nil, ErrUnknown.New(nil, "there is no destination %q, nor any other", name)
	}
	return nil, ErrUnknown.New(nil, "there is no destination %q; there are %s", name, strings.Join(known, ", "))
}
