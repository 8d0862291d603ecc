package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/deliver"
	"github.com/penstock/penstock/services/internal/ledger"
	"github.com/penstock/penstock/topology"
)

// stopped is the state of a destination that no process has.
const stopped = "stopped"

// destinationStatus is what the bus, the ledger and the processes know of a destination.
type destinationStatus struct {
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
	// Events confirmed, filtered, skipped and quarantined, as far as the ledger goes back.
	Confirmed   uint64            `json:"confirmed"`
	Filtered    uint64            `json:"filtered"`
	Skipped     uint64            `json:"skipped"`
	Quarantined map[string]uint64 `json:"quarantined,omitempty"`
	// Breaker is closed, open or stopped, the worst of all processes.
	Breaker string `json:"breaker,omitempty"`
	// Control is what an operator said last.
	Control *topology.Control `json:"control,omitempty"`
	// Processes that have it, by name.
	Processes map[string]deliver.State `json:"processes,omitempty"`
}

// destinationsNow gathers the status of all destinations that anybody knows of. Without
// counts the ledger, which may be long, is not read.
func destinationsNow(ctx context.Context, bus *topology.Bus, file File, counts bool) ([]*destinationStatus, error) {
	all := map[string]*destinationStatus{}
	of := func(name string) *destinationStatus {
		if all[name] == nil {
			all[name] = &destinationStatus{Name: name, State: stopped, Processes: map[string]deliver.State{}}
		}
		return all[name]
	}
	for _, d := range file.Destinations {
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
	if err := askProcesses(ctx, bus, of); err != nil {
		return nil, err
	}
	if counts {
		fold := ledger.New()
		// What was delivered is all that is asked for here: what was expected is not.
		if err := bus.Read(ctx, topology.Span{Subject: topology.LedgerSubject(topology.Deliver)}, func(m topology.Stored) error { return addFacts(fold, m) }); err != nil {
			return nil, err
		}
		for _, d := range fold.Report().Destinations {
			if _, known := all[d.Name]; !known && d.Removed {
				continue
			}
			s := of(d.Name)
			s.Confirmed, s.Filtered, s.Skipped, s.Quarantined = d.Confirmed, d.Filtered, d.Skipped, d.Quarantined
		}
	}
	list := make([]*destinationStatus, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s := all[name]
		s.judge(waiting[name])
		list = append(list, s)
	}
	return list, nil
}

// askProcesses asks those that deliver.
func askProcesses(ctx context.Context, bus *topology.Bus, of func(name string) *destinationStatus) error {
	answers, err := bus.Ask(ctx, destinationsQuestion)
	if err != nil {
		return err
	}
	for _, data := range answers {
		var a answer
		if err := json.Unmarshal(data, &a); err != nil {
			return fmt.Errorf("a process answers what cannot be read, perhaps one of another version: %w", err)
		}
		for _, d := range a.Destinations {
			s := of(d.Destination)
			s.Type, s.Processes[a.Process] = d.Type, d
			s.Configured = s.Configured || d.State != deliver.Stopping
		}
	}
	return nil
}

// The worst counts of the states and breakers in several processes.
var (
	worseState   = map[string]int{deliver.Paused: 1, deliver.Stopping: 2, deliver.Running: 3, deliver.Starting: 4, deliver.Failing: 5}
	worseBreaker = map[string]int{"closed": 1, "open": 2, "stopped": 3}
)

// judge makes one state of what the processes say. pulled: somebody asks for frames.
func (s *destinationStatus) judge(pulled bool) {
	for _, p := range s.Processes {
		state := p.State
		if state == deliver.Running && p.Breaker != "" && p.Breaker != "closed" {
			state = deliver.Failing // it is open, and the far side takes nothing
		}
		if worseState[state] > worseState[s.State] {
			s.State = state
		}
		if worseBreaker[p.Breaker] > worseBreaker[s.Breaker] {
			s.Breaker = p.Breaker
		}
	}
	switch {
	case s.Control != nil && s.Control.Paused && (s.State == stopped || s.State == deliver.Starting):
		s.State = deliver.Paused
	case len(s.Processes) == 0 && pulled:
		s.State = deliver.Running // by one that does not answer
	}
}

// why is what there is to say about the state.
func (s *destinationStatus) why() string {
	var all []string
	if c := s.Control; c != nil && c.Paused {
		text := fmt.Sprintf("paused by %s at %s", printable(c.By), c.At.UTC().Format(time.DateTime))
		if c.Reason != "" {
			text += ": " + printable(c.Reason)
		}
		all = append(all, text)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Processes)) {
		if p := s.Processes[name]; p.Error != "" {
			all = append(all, printable(name)+": "+printable(p.Error))
		}
	}
	if !s.Configured {
		all = append(all, "not in the configuration of any process that runs")
	}
	return strings.Join(all, "; ")
}

func newDestinationsStatus() *cobra.Command {
	var flags busFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status [NAME]...", Args: cobra.ArbitraryArgs,
		Short: "Show how each destination is and how far behind",
		Long: `Shows every destination that a process that runs, the configuration (with --config)
or the bus knows: its state, what waits for it in the event log, and what it has
confirmed and refused as far as the ledger goes back.

States: running; starting; paused by an operator; failing, when it cannot be opened
or takes nothing; stopping, when it was taken out of the configuration and finishes
what is in hand; stopped, when no process has it. The event log is kept for all but
those of which LAG is "-".`,
		Example: "  penstock destinations status --store penstock-data\n  penstock destinations status siem --nats nats://nats:4222 --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			bus, file, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			list, err := destinationsNow(cmd.Context(), bus, file, true)
			if err != nil {
				return err
			}
			for _, name := range args {
				if _, err := pick(list, name); err != nil {
					return err
				}
			}
			if len(args) > 0 {
				list = slices.DeleteFunc(list, func(s *destinationStatus) bool { return !slices.Contains(args, s.Name) })
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			return printStatus(cmd.OutOrStdout(), list)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printStatus(w io.Writer, list []*destinationStatus) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "there are no destinations")
		return err
	}
	t := table(w)
	fmt.Fprintln(t, "NAME\tTYPE\tSTATE\tLAG\tOLDEST\tCONFIRMED\tQUARANTINED\tBREAKER\tREMARKS")
	for _, s := range list {
		lag, age := "-", "-"
		if s.First > 0 {
			lag = plural(int(min(s.LagFrames, math.MaxInt)), "frame", "frames")
		}
		if s.OldestUnconfirmed != nil {
			age = time.Duration(s.LagSeconds * float64(time.Second)).Round(time.Second).String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\n", printable(s.Name), orDash(s.Type), s.State, lag, age,
			s.Confirmed, sum(s.Quarantined), orDash(s.Breaker), orDash(s.why()))
	}
	return t.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// pick finds one by its name.
func pick(list []*destinationStatus, name string) (*destinationStatus, error) {
	known := make([]string, len(list))
	for i, s := range list {
		if s.Name == name {
			return s, nil
		}
		known[i] = s.Name
	}
	if len(known) == 0 {
		return nil, usageError{fmt.Errorf("there is no destination %q, nor any other", name)}
	}
	return nil, usageError{fmt.Errorf("there is no destination %q; there are %s", name, listed(known))}
}

// operator is who gives a command, for the record.
func operator() string {
	name, host := "unknown", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return name + "@" + host
}

func newDestinationsPause() *cobra.Command {
	var flags busFlags
	reason := ""
	cmd := &cobra.Command{
		Use: "pause NAME", Args: exactly(1),
		Short: "Stop delivering to a destination; the event log keeps all for it",
		Long: `All processes stop delivering to the destination within seconds: what is in hand is
finished or given back, and nothing more is read. Its place in the event log stays,
and the log is kept from there on, so that a long pause fills bus.disk. Other
destinations go on. A pause holds over restarts, until: penstock destinations resume.`,
		Example: `  penstock destinations pause siem --reason "index migration, CHG-1234" --store penstock-data`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return steer(cmd, &flags, topology.Control{Destination: args[0], Paused: true, Reason: reason})
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who look at the status")
	return cmd
}

func newDestinationsResume() *cobra.Command {
	var flags busFlags
	cmd := &cobra.Command{
		Use: "resume NAME", Args: exactly(1),
		Short:   "Go on with a destination that was paused, where it was",
		Example: "  penstock destinations resume siem --store penstock-data",
		RunE: func(cmd *cobra.Command, args []string) error {
			return steer(cmd, &flags, topology.Control{Destination: args[0]})
		},
	}
	flags.add(cmd)
	return cmd
}

// steerWithin is how long pause and resume wait for the processes to follow.
var steerWithin = 15 * time.Second

// steer stores what an operator says, and waits until the processes follow.
func steer(cmd *cobra.Command, flags *busFlags, c topology.Control) error {
	ctx := cmd.Context()
	bus, file, err := flags.connect(ctx)
	if err != nil {
		return err
	}
	defer bus.Close()
	list, err := destinationsNow(ctx, bus, file, false)
	if err != nil {
		return err
	}
	if _, err := pick(list, c.Destination); err != nil {
		return err
	}
	c.By, c.At = operator(), time.Now().UTC().Truncate(time.Second)
	if err := bus.SetControl(ctx, c); err != nil {
		return err
	}
	wanted, out := "goes on", cmd.OutOrStdout()
	if c.Paused {
		wanted = "is paused"
	}
	deadline := time.Now().Add(steerWithin)
	for {
		one := &destinationStatus{Processes: map[string]deliver.State{}}
		if err := askProcesses(ctx, bus, func(name string) *destinationStatus {
			if name == c.Destination {
				return one
			}
			return &destinationStatus{Processes: map[string]deliver.State{}}
		}); err != nil {
			return err
		}
		behind := 0
		for _, p := range one.Processes {
			if (p.State == deliver.Paused) != c.Paused {
				behind++
			}
		}
		switch {
		case len(one.Processes) == 0:
			_, err = fmt.Fprintf(out, "destination %s %s; no process that runs has it\n", c.Destination, wanted)
			return err
		case behind == 0:
			_, err = fmt.Fprintf(out, "destination %s %s in %s\n", c.Destination, wanted, plural(len(one.Processes), "process", "processes"))
			return err
		case time.Now().After(deadline):
			_, err = fmt.Fprintf(out, "destination %s %s; %s still finish what is in hand\n", c.Destination, wanted, plural(behind, "process", "processes"))
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func newDestinationsRemove() *cobra.Command {
	var flags busFlags
	var yes bool
	cmd := &cobra.Command{
		Use: "remove NAME", Args: exactly(1),
		Short: "Let go of a destination for good: its place in the event log, and what waits for it",
		Long: `Deletes the place of a destination in the event log, so that the log is not kept for
it any more, and tells the ledger to expect nothing of it. What it has not confirmed
will not be delivered to it. Take it out of the configuration first and reload: one
that a process still has, or the file given with --config, is not removed.

If a destination of that name comes back it is a new one, and begins as its key
"start" says.`,
		Example: "  penstock destinations remove old-siem --store penstock-data\n  penstock destinations remove old-siem --nats nats://nats:4222 --yes",
		RunE: func(cmd *cobra.Command, args []string) error {
			bus, file, err := flags.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			return removeDestination(cmd, bus, file, args[0], yes)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask back")
	return cmd
}

func removeDestination(cmd *cobra.Command, bus *topology.Bus, file File, name string, yes bool) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	list, err := destinationsNow(ctx, bus, file, true)
	if err != nil {
		return err
	}
	s, err := pick(list, name)
	if err != nil {
		return err
	}
	switch {
	case s.State == deliver.Stopping:
		return fmt.Errorf("destination %s still finishes what is in hand in %s: try again in a moment",
			name, listed(slices.Sorted(maps.Keys(s.Processes))))
	case len(s.Processes) > 0:
		return fmt.Errorf("destination %s is still configured in %s (%s): take it out of the configuration and send SIGHUP, or restart, then remove it",
			name, plural(len(s.Processes), "process that runs", "processes that run"), listed(slices.Sorted(maps.Keys(s.Processes))))
	case s.Configured:
		return fmt.Errorf("destination %s is still in %s: take it out, or it would begin anew at the next start", name, cmd.Flag("config").Value)
	case s.State == deliver.Running:
		return fmt.Errorf("destination %s is still read by a process that does not answer: stop that first", name)
	}
	what := "nothing waits for it"
	if s.LagFrames > 0 {
		what = plural(int(min(s.LagFrames, math.MaxInt)), "frame", "frames") + " of the event log"
		if s.OldestUnconfirmed != nil {
			what += ", the oldest of " + s.OldestUnconfirmed.Format(time.DateTime) + " UTC,"
		}
		what += " will not be delivered to it"
	}
	if !yes {
		fmt.Fprintf(out, "Remove destination %s? %s. [y/N] ", name, what)
		line, _ := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 1024)).ReadString('\n')
		if word := strings.ToLower(strings.TrimSpace(line)); word != "y" && word != "yes" {
			return usageError{fmt.Errorf("destination %s was not removed: say y, or use --yes", name)}
		}
	}
	// The ledger is told last: when this breaks off, it is repeated as a whole.
	if err := bus.RemoveReader(ctx, name); err != nil {
		return err
	}
	if err := bus.ForgetControl(ctx, name); err != nil {
		return err
	}
	if err := tellLedger(ctx, bus, &messages.Destination{Name: name, Removed: true}); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "destination %s is removed; %s\n", name, what)
	return err
}
