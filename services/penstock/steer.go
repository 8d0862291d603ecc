package main

import (
	"bufio"
	"context"
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
	"github.com/penstock/penstock/services/operate/destinations"
	"github.com/penstock/penstock/topology"
)

// destinationsNow gathers the status of all destinations that anybody knows of. Without
// counts the ledger, which may be long, is not read.
func destinationsNow(ctx context.Context, bus *topology.Bus, file File, counts bool) ([]*destinations.Status, error) {
	list, err := destinations.Now(ctx, bus, configuredDestinations(file))
	if err != nil || !counts {
		return list, err
	}
	fold := ledger.New()
	// What was delivered is all that is asked for here: what was expected is not.
	if err := bus.Read(ctx, topology.Span{Subject: topology.LedgerSubject(topology.Deliver)}, func(m topology.Stored) error { return addFacts(fold, m) }); err != nil {
		return nil, err
	}
	for _, d := range fold.Report().Destinations {
		i := slices.IndexFunc(list, func(s *destinations.Status) bool { return s.Name == d.Name })
		if i < 0 && d.Removed {
			continue
		}
		if i < 0 {
			list = append(list, destinations.New(d.Name))
			i = len(list) - 1
		}
		s := list[i]
		s.Confirmed, s.Filtered, s.Skipped, s.Quarantined = d.Confirmed, d.Filtered, d.Skipped, d.Quarantined
	}
	slices.SortFunc(list, func(a, b *destinations.Status) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// configuredDestinations are those of a configuration.
func configuredDestinations(file File) []destinations.Configured {
	var all []destinations.Configured
	for _, d := range file.Destinations {
		all = append(all, destinations.Configured{Name: d.Name, Type: d.Type})
	}
	return all
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
				list = slices.DeleteFunc(list, func(s *destinations.Status) bool { return !slices.Contains(args, s.Name) })
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

func printStatus(w io.Writer, list []*destinations.Status) error {
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
			s.Confirmed, s.QuarantinedSum(), orDash(s.Breaker), orDash(printable(strings.Join(s.Remarks(), "; "))))
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
func pick(list []*destinations.Status, name string) (*destinations.Status, error) {
	s, err := destinations.Pick(list, name)
	if err != nil {
		err = usageError{err}
	}
	return s, err
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
	reason, asJSON := "", false
	cmd := &cobra.Command{
		Use: "pause NAME", Args: exactly(1),
		Short: "Stop delivering to a destination; the event log keeps all for it",
		Long: `All processes stop delivering to the destination within seconds: what is in hand is
finished or given back, and nothing more is read. Its place in the event log stays,
and the log is kept from there on, so that a long pause fills bus.disk. Other
destinations go on. A pause holds over restarts, until: penstock destinations resume.`,
		Example: `  penstock destinations pause siem --reason "index migration, CHG-1234" --store penstock-data`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return steer(cmd, &flags, topology.Control{Destination: args[0], Paused: true, Reason: reason}, asJSON)
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who look at the status")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newDestinationsResume() *cobra.Command {
	var flags busFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "resume NAME", Args: exactly(1),
		Short:   "Go on with a destination that was paused, where it was",
		Example: "  penstock destinations resume siem --store penstock-data",
		RunE: func(cmd *cobra.Command, args []string) error {
			return steer(cmd, &flags, topology.Control{Destination: args[0]}, asJSON)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// steerWithin is how long pause and resume wait for the processes to follow.
var steerWithin = 15 * time.Second

// steer stores what an operator says, and waits until the processes follow.
func steer(cmd *cobra.Command, flags *busFlags, c topology.Control, asJSON bool) error {
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
	if err := destinations.Say(ctx, bus, list, c, "command"); err != nil {
		return err
	}
	followed, err := destinations.Follow(ctx, bus, c, steerWithin)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), struct {
			topology.Control

			// Processes that have it, Behind of them those that still finish what is in hand.
			Processes int `json:"processes"`
			Behind    int `json:"behind"`
		}{c, followed.Processes, followed.Behind})
	}
	wanted, how := "goes on", "in "+plural(followed.Processes, "process", "processes")
	if c.Paused {
		wanted = "is paused"
	}
	switch {
	case followed.Processes == 0:
		wanted, how = wanted+";", "no process that runs has it"
	case followed.Behind > 0:
		wanted, how = wanted+";", plural(followed.Behind, "process still finishes", "processes still finish")+" what is in hand"
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "destination %s %s %s\n", c.Destination, wanted, how)
	return err
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func newDestinationsRemove() *cobra.Command {
	var flags busFlags
	var yes, asJSON bool
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
			return removeDestination(cmd, bus, file, args[0], yes, asJSON)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask back")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func removeDestination(cmd *cobra.Command, bus *topology.Bus, file File, name string, yes, asJSON bool) error {
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
		ask := out
		if asJSON {
			ask = cmd.ErrOrStderr()
		}
		fmt.Fprintf(ask, "Remove destination %s? %s. [y/N] ", name, what)
		line, _ := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 1024)).ReadString('\n')
		if word := strings.ToLower(strings.TrimSpace(line)); word != "y" && word != "yes" {
			return usageError{fmt.Errorf("destination %s was not removed: say y, or use --yes", name)}
		}
	}
	if err := bus.WriteAudit(ctx, topology.Deed{By: operator(), Via: "command", Action: "destination.remove", What: name, Count: s.LagFrames}); err != nil {
		return err
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
	if asJSON {
		return writeJSON(out, map[string]any{"destination": name, "removed": true, "frames_not_delivered": s.LagFrames})
	}
	_, err = fmt.Fprintf(out, "destination %s is removed; %s\n", name, what)
	return err
}
