package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/topology"
)

func newConsumers() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "consumers",
		Short: "Manage who may fetch events from destinations of kind webhook_pull",
		Long: `Destinations of kind webhook_pull serve events to consumers that fetch them by HTTP.
Each consumer has a key, and a position in each stream that moves when it
acknowledges what it got.`,
	}
	cmd.AddCommand(newConsumersAdd(), newConsumersList(), newConsumersRevoke(), newConsumersRewind())
	return cmd
}

// consumerFlags are the flags of all commands about consumers.
type consumerFlags struct {
	busFlags
	destination string
}

func (f *consumerFlags) add(cmd *cobra.Command) {
	f.busFlags.add(cmd)
	cmd.Flags().StringVarP(&f.destination, "destination", "d", "", "name of the destination; with --config only needed when several are of kind webhook_pull")
}

// audit writes down what is about to be done to a consumer.
func (f *consumerFlags) audit(ctx context.Context, bus *topology.Bus, action, what string) error {
	return bus.WriteAudit(ctx, topology.Deed{By: operator(), Via: "command", Action: action, What: f.destination + ": " + what, Count: 1})
}

// open finds the bus and the destination. Options are nil where no configuration
// tells them.
func (f *consumerFlags) open(ctx context.Context) (*topology.Bus, *sinks.Consumers, *sinks.WebhookPullConfig, error) {
	bus, file, err := f.connect(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	options, err := f.choose(file)
	if err != nil {
		bus.Close()
		return nil, nil, nil, err
	}
	return bus, sinks.NewConsumers(bus.Consumers(), f.destination), options, nil
}

// choose checks the destination against the configuration, or takes it from there.
func (f *consumerFlags) choose(file File) (*sinks.WebhookPullConfig, error) {
	all := map[string]*sinks.WebhookPullConfig{}
	for _, d := range file.Destinations {
		if options, ok := d.Options.(*sinks.WebhookPullConfig); ok {
			all[d.Name] = options
		}
	}
	names := slices.Sorted(maps.Keys(all))
	switch {
	case f.config == "" && f.destination == "":
		return nil, usageError{errors.New("name the destination with --destination, or the configuration with --config")}
	case f.config == "":
		return nil, nil
	case len(names) == 0:
		return nil, usageError{fmt.Errorf("%s has no destination of kind webhook_pull", f.config)}
	case f.destination == "" && len(names) > 1:
		return nil, usageError{fmt.Errorf("name one of the destinations %s with --destination", listed(names))}
	case f.destination == "":
		f.destination = names[0]
	case all[f.destination] == nil:
		return nil, usageError{fmt.Errorf("%s has no destination %q of kind webhook_pull; there are %s", f.config, f.destination, listed(names))}
	}
	return all[f.destination], nil
}

// known checks streams against the configuration, where there is one.
func (f *consumerFlags) known(options *sinks.WebhookPullConfig, streams []string) error {
	if options == nil {
		return nil
	}
	all := options.StreamNames()
	for _, s := range streams {
		if !slices.Contains(all, s) {
			return usageError{fmt.Errorf("destination %s has no stream %q; there are %s", f.destination, s, listed(all))}
		}
	}
	return nil
}

func newConsumersAdd() *cobra.Command {
	var flags consumerFlags
	var streams []string
	expires, asJSON := "", false
	cmd := &cobra.Command{
		Use: "add NAME", Args: exactly(1),
		Short: "Make a consumer and print its key, once",
		Long: `Makes a consumer and prints its key, which penstock keeps only as a hash: who loses
it needs a new one. After "revoke", the same name may be added again; its new key goes
on where the old one was.`,
		Example: "  penstock consumers add siem --destination pull --store penstock-data\n  penstock consumers add partner --streams web,email --expires 2160h --config penstock.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			until, err := expiry(expires, time.Now())
			if err != nil {
				return err
			}
			bus, consumers, options, err := flags.open(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			if err := flags.known(options, streams); err != nil {
				return err
			}
			if err := flags.audit(cmd.Context(), bus, "consumer.add", args[0]); err != nil {
				return err
			}
			key, err := consumers.Add(cmd.Context(), args[0], streams, until)
			if fault.CodeOf(err) == "deliver.consumer_name" {
				err = usageError{err}
			}
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), struct {
					Destination string    `json:"destination"`
					Name        string    `json:"name"`
					Key         string    `json:"key"`
					Streams     []string  `json:"streams,omitempty"`
					Expires     time.Time `json:"expires,omitzero"`
				}{flags.destination, args[0], key, streams, until.UTC()})
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "This is the key of %s. It is not shown again.\n", args[0])
			_, err = fmt.Fprintln(cmd.OutOrStdout(), key)
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().StringSliceVar(&streams, "streams", nil, "streams that may be fetched, separated by commas; without it all")
	cmd.Flags().StringVar(&expires, "expires", "", "when the key ends to be good: a duration from now, e.g. 2160h, or a time, e.g. 2027-01-31T00:00:00Z; without it never")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// expiry reads a duration from now or a time.
func expiry(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	at, err := time.Parse(time.RFC3339, s)
	if d, durationErr := time.ParseDuration(s); durationErr == nil {
		at, err = now.Add(d).Truncate(time.Second), nil
	}
	if err != nil || !at.After(now) {
		return at, usageError{fmt.Errorf("--expires %q: use a duration, e.g. 2160h, or a time to come, e.g. 2027-01-31T00:00:00Z", s)}
	}
	return at, nil
}

// consumerState is a line of the list.
type consumerState struct {
	Name    string    `json:"name"`
	State   string    `json:"state"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
	Revoked time.Time `json:"revoked,omitzero"`
	// Streams that the key is good for; none means all.
	Streams   []string        `json:"streams,omitempty"`
	Positions []positionState `json:"positions"`
}

type positionState struct {
	Stream string      `json:"stream"`
	Acked  sinks.Place `json:"acknowledged"`
	Served sinks.Place `json:"served"`
	// Frames and Events are those that are not acknowledged; Events is nil when it was
	// not asked for. Lag is the age of the oldest of them.
	Frames uint64  `json:"behind_frames"`
	Events *uint64 `json:"behind_events,omitempty"`
	Lag    float64 `json:"lag_seconds"`
	// Gone tells that the log does not have all of them any more.
	Gone    bool      `json:"gone"`
	Busy    bool      `json:"busy"`
	Seen    time.Time `json:"last_seen,omitzero"`
	Address string    `json:"address,omitempty"`
}

func newConsumersList() *cobra.Command {
	var flags consumerFlags
	var asJSON, count bool
	cmd := &cobra.Command{
		Use: "list", Args: exactly(0),
		Short: "List consumers with their positions and how far they are behind",
		Long: `Lists consumers, and for each stream that they have fetched how far they are: frames
of the log that they have not acknowledged, and the age of the oldest. With --count
those frames are read and their events counted. "gone" means that the log does not have
all of them any more: the consumer is answered with 410 until it goes on behind the gap.`,
		Example: "  penstock consumers list --destination pull --store penstock-data\n  penstock consumers list --config penstock.yaml --count --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			bus, consumers, _, err := flags.open(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			all, err := consumers.List(cmd.Context())
			if err != nil {
				return err
			}
			states := []consumerState{}
			for _, c := range all {
				s, err := consumerStateOf(cmd.Context(), bus, c, count)
				if err != nil {
					return err
				}
				states = append(states, s)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), states)
			}
			if len(states) == 0 {
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "destination %s has no consumers\n", flags.destination)
				return err
			}
			return printConsumers(cmd, states, count)
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&count, "count", false, "count the events, too: reads what is not acknowledged")
	return cmd
}

func consumerStateOf(ctx context.Context, bus *topology.Bus, c sinks.Standing, count bool) (consumerState, error) {
	s := consumerState{Name: c.Name, State: "active", Created: c.Created, Expires: c.Expires, Revoked: c.Revoked, Streams: c.Streams, Positions: []positionState{}}
	switch {
	case !c.Revoked.IsZero():
		s.State = "revoked"
	case !c.Expires.IsZero() && !time.Now().Before(c.Expires):
		s.State = "expired"
	}
	for _, stream := range slices.Sorted(maps.Keys(c.Positions)) {
		p := c.Positions[stream]
		history := bus.History(topology.Events, p.Subjects)
		first, next, err := history.Bounds(ctx)
		if err != nil {
			return s, err
		}
		frames, oldest, err := history.Pending(ctx, p.Acked.Sequence)
		if err != nil {
			return s, err
		}
		at := positionState{
			Stream: stream, Acked: p.Acked, Served: p.Served, Frames: frames, Gone: p.Acked.Sequence < first,
			Busy: p.Holder != "", Seen: p.Seen, Address: p.Address,
		}
		if frames > 0 {
			at.Lag = max(0, time.Since(oldest).Seconds())
		}
		if count {
			n, err := countEvents(ctx, history, p.Acked, next)
			if err != nil {
				return s, err
			}
			at.Events = &n
		}
		s.Positions = append(s.Positions, at)
	}
	return s, nil
}

// countEvents counts what is live at and behind a place, before expressions are asked.
func countEvents(ctx context.Context, history *topology.History, from sinks.Place, until uint64) (n uint64, err error) {
	err = history.Read(ctx, from.Sequence, until, func(m topology.Stored) (bool, error) {
		v, err := messages.DecodeFrame(m.Data)
		if err != nil {
			return true, nil //nolint:nilerr // it is in quarantine, and nobody is served it
		}
		first := 0
		if m.Sequence == from.Sequence {
			first = from.Index
		}
		for i := first; i < v.Len(); i++ {
			if v.Fate(i) == messages.Live {
				n++
			}
		}
		return true, nil
	})
	return n, err
}

func printConsumers(cmd *cobra.Command, states []consumerState, count bool) error {
	t := table(cmd.OutOrStdout())
	head := "NAME\tSTATE\tMAY FETCH\tSTREAM\tBEHIND\tOLDEST\tLAST SEEN\tADDRESS\tREMARKS"
	if count {
		head = strings.Replace(head, "BEHIND", "BEHIND\tEVENTS", 1)
	}
	fmt.Fprintln(t, head)
	for _, c := range states {
		may := "all"
		if len(c.Streams) > 0 {
			may = strings.Join(c.Streams, ",")
		}
		if len(c.Positions) == 0 {
			fmt.Fprintf(t, "%s\t%s\t%s\t-\n", c.Name, c.State, may)
		}
		for _, p := range c.Positions {
			behind, age, seen, remarks := plural(int(min(p.Frames, 1<<53)), "frame", "frames"), "-", "-", []string{}
			if count {
				behind += "\t" + strconv.FormatUint(*p.Events, 10)
			}
			if p.Frames > 0 {
				age = time.Duration(p.Lag * float64(time.Second)).Round(time.Second).String()
			}
			if !p.Seen.IsZero() {
				seen = p.Seen.UTC().Format(time.DateTime)
			}
			if p.Gone {
				remarks = append(remarks, "gone")
			}
			if p.Busy {
				remarks = append(remarks, "being answered")
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, c.State, may, p.Stream, behind, age, seen, orDash(printable(p.Address)), orDash(listed(remarks)))
		}
	}
	return t.Flush()
}

func newConsumersRevoke() *cobra.Command {
	var flags consumerFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "revoke NAME", Args: exactly(1),
		Short: "Make the key of a consumer worthless, in all processes within seconds",
		Long: `Makes the key of a consumer worthless, in all processes within seconds; what is being
answered to it ends, too. Its positions stay: "add" with the same name makes a new key
that goes on there.`,
		Example: "  penstock consumers revoke partner --destination pull --store penstock-data",
		RunE: func(cmd *cobra.Command, args []string) error {
			bus, consumers, _, err := flags.open(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			if err := flags.audit(cmd.Context(), bus, "consumer.revoke", args[0]); err != nil {
				return err
			}
			if err := consumers.Revoke(cmd.Context(), args[0]); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), map[string]string{"destination": flags.destination, "name": args[0], "state": "revoked"})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "the key of %s is revoked\n", args[0])
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newConsumersRewind() *cobra.Command {
	var flags consumerFlags
	var streams []string
	to, asJSON := "", false
	cmd := &cobra.Command{
		Use: "rewind NAME --to TIME|CURSOR", Args: exactly(1),
		Short: "Move the positions of a consumer, back or ahead",
		Long: `Moves the positions of a consumer, so that it gets again what is stored from there
on, or passes over what it has not got. What it acknowledges of pages that it got before
is passed over, so that it need not be told. A request that is being answered ends
with 409.`,
		Example: "  penstock consumers rewind siem --destination pull --to 2h --store penstock-data\n  penstock consumers rewind siem --to 2026-11-20T08:00:00Z --stream web --config penstock.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if to == "" {
				return usageError{errors.New("say where to with --to")}
			}
			bus, consumers, options, err := flags.open(cmd.Context())
			if err != nil {
				return err
			}
			defer bus.Close()
			if err := flags.known(options, streams); err != nil {
				return err
			}
			all, err := consumers.List(cmd.Context())
			if err != nil {
				return err
			}
			i := slices.IndexFunc(all, func(c sinks.Standing) bool { return c.Name == args[0] })
			if i < 0 {
				return fmt.Errorf("destination %s has no consumer %q; see penstock consumers list", flags.destination, args[0])
			}
			if len(streams) == 0 {
				streams = slices.Sorted(maps.Keys(all[i].Positions))
			}
			if len(streams) == 0 {
				return usageError{fmt.Errorf("%s has not fetched anything yet: name the stream with --stream", args[0])}
			}
			type movedTo struct {
				Stream string `json:"stream"`
				Place  string `json:"place"`
			}
			moved := []movedTo{}
			for _, stream := range streams {
				place, err := placeOf(cmd.Context(), bus.History(topology.Events, all[i].Positions[stream].Subjects), to, time.Now())
				if err != nil {
					return err
				}
				if err := flags.audit(cmd.Context(), bus, "consumer.rewind", fmt.Sprintf("%s to %s in stream %s", args[0], place, stream)); err != nil {
					return err
				}
				if err := consumers.Rewind(cmd.Context(), args[0], stream, place); err != nil {
					return err
				}
				moved = append(moved, movedTo{stream, place.String()})
				if asJSON {
					continue
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s goes on at %s in stream %s\n", args[0], place, stream); err != nil {
					return err
				}
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), moved)
			}
			return nil
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&to, "to", "", "a time (2026-11-20T08:00:00Z), a duration back from now (2h), oldest, now, or a cursor")
	cmd.Flags().StringSliceVar(&streams, "stream", nil, "only these streams; without it all that were fetched")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// placeOf finds the place in the log that is meant.
func placeOf(ctx context.Context, history *topology.History, to string, now time.Time) (sinks.Place, error) {
	first, next, err := history.Bounds(ctx)
	if err != nil {
		return sinks.Place{}, err
	}
	since, err := time.Parse(time.RFC3339, to)
	if d, durationErr := time.ParseDuration(to); durationErr == nil && d >= 0 {
		since, err = now.Add(-d), nil
	}
	switch {
	case to == "oldest":
		return sinks.Place{Sequence: first}, nil
	case to == "now":
		return sinks.Place{Sequence: next}, nil
	case err == nil:
		at, found, err := history.Since(ctx, since)
		if !found {
			at = next
		}
		return sinks.Place{Sequence: at}, err
	}
	place, err := sinks.ParsePlace(to)
	if err != nil {
		return place, usageError{fmt.Errorf("--to %q: use a time as 2026-11-20T08:00:00Z, a duration back from now as 2h, oldest, now, or a cursor", to)}
	}
	if place.Sequence < first || place.Sequence > next {
		return place, usageError{fmt.Errorf("--to %s: the log holds %s to %s", to, sinks.Place{Sequence: first}, sinks.Place{Sequence: next})}
	}
	return place, nil
}
