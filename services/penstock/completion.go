package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/operate/freshness"
	"github.com/penstock/penstock/services/parse/formats"
	"github.com/penstock/penstock/topology"
)

// completeWithin bounds how long a shell waits for names that only the bus knows.
const completeWithin = 2 * time.Second

// wordsOf tells what words there are for an argument or a flag.
type wordsOf func(ctx context.Context, bus *topology.Bus, file File) []string

// What flags of these names want, in all commands that have them.
var flagNames = map[string]wordsOf{
	"destination": destinationNames, "to-destination": destinationNames, "source": sourceNames, "sources": sourceNames,
	"type": typeNames, "types": typeNames, "event-type": typeNames, "job": jobNames,
}

// What the arguments of these commands want, by the command's path.
var argNames = map[string]wordsOf{
	"destinations status": destinationNames, "destinations pause": destinationNames, "destinations resume": destinationNames,
	"destinations remove": destinationNames, "tail": typeNames, "reconcile": sourceNames, "backfill": sourceNames,
	"jobs show": jobNames, "jobs pause": jobNames, "jobs resume": jobNames, "jobs cancel": jobNames, "jobs follow": jobNames,
	"replay show": jobNames, "replay pause": jobNames, "replay resume": jobNames, "replay cancel": jobNames,
}

// What flags of these names want that needs no bus.
var fixedNames = map[string]func() []string{
	"stage":  func() []string { return strings.Split(stageList(), ", ") },
	"format": formats.Names,
}

// finish adds to all commands below root what they have in common: what a shell may ask
// for, and an error for a word that a group of commands does not know.
func finish(root *cobra.Command) {
	for _, cmd := range commandsBelow(root) {
		if cmd.HasSubCommands() && !cmd.Runnable() {
			strictGroup(cmd)
		}
		path := strings.TrimPrefix(cmd.CommandPath(), root.Name()+" ")
		if of := argNames[path]; of != nil && cmd.ValidArgsFunction == nil {
			cmd.ValidArgsFunction = completion(of)
		}
		for name, of := range flagNames {
			if cmd.Flags().Lookup(name) != nil {
				_ = cmd.RegisterFlagCompletionFunc(name, completion(of)) // one that a command has made itself stays
			}
		}
		for name, of := range fixedNames {
			if cmd.Flags().Lookup(name) != nil {
				_ = cmd.RegisterFlagCompletionFunc(name, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
					return of(), cobra.ShellCompDirectiveNoFileComp
				})
			}
		}
		if f := cmd.Flags().Lookup("config"); f != nil {
			_ = cmd.MarkFlagFilename("config", "yaml", "yml")
		}
		if f := cmd.Flags().Lookup("store"); f != nil {
			_ = cmd.MarkFlagDirname("store")
		}
	}
}

// strictGroup lets a group of commands refuse a word that it does not know: cobra shows its help
// and is content.
func strictGroup(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := ""
		if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
			hint = "; did you mean " + listed(like) + "?"
		}
		return usageError{fmt.Errorf("%s has no command %q%s; see %s --help", cmd.CommandPath(), args[0], hint, cmd.CommandPath())}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.SuggestionsMinimumDistance = 2
}

// commandsBelow are all commands that penstock itself has, groups of them included.
func commandsBelow(cmd *cobra.Command) (all []*cobra.Command) {
	for _, c := range cmd.Commands() {
		if c.Name() == "completion" || c.Name() == "help" {
			continue // cobra's own
		}
		all = append(all, c)
		all = append(all, commandsBelow(c)...)
	}
	return all
}

// completion asks the bus that the flags of a command name; without one there is nothing
// to offer.
func completion(of wordsOf) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(contextOf(cmd)), completeWithin)
		defer cancel()
		var flags busFlags
		for name, to := range map[string]*string{"config": &flags.config, "nats": &flags.nats, "store": &flags.store} {
			if f := cmd.Flags().Lookup(name); f != nil {
				*to = f.Value.String()
			}
		}
		bus, file, err := flags.connect(ctx)
		if err != nil {
			bus = nil
		} else {
			defer bus.Close()
		}
		var fits []string
		for _, name := range of(ctx, bus, file) {
			// What strangers named must not run in a shell, nor control it.
			if strings.HasPrefix(name, begun) && !slices.Contains(args, name) && printable(name) == name && !strings.ContainsAny(name, "\n\t `$\"'\\;&|<>()") {
				fits = append(fits, name)
			}
		}
		return fits, cobra.ShellCompDirectiveNoFileComp
	}
}

func contextOf(cmd *cobra.Command) context.Context {
	if ctx := cmd.Context(); ctx != nil {
		return ctx
	}
	return context.Background()
}

func destinationNames(ctx context.Context, bus *topology.Bus, file File) []string {
	all := map[string]bool{}
	for _, d := range file.Destinations {
		all[d.Name] = true
	}
	if bus != nil {
		readers, _ := bus.Readers(ctx) // what is not to be had is not offered
		for _, r := range readers {
			all[r.Destination] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

func sourceNames(ctx context.Context, bus *topology.Bus, file File) []string {
	all := map[string]bool{}
	for _, s := range file.Sources {
		all[s.Name] = true
	}
	if bus != nil {
		a, _, _ := freshness.Ask(ctx, bus)
		for _, s := range a.Sources {
			all[s.Source] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

func typeNames(ctx context.Context, bus *topology.Bus, _ File) []string {
	if bus == nil {
		return nil
	}
	types, _ := bus.EventTypes(ctx)
	return slices.Sorted(maps.Keys(types))
}

func jobNames(ctx context.Context, bus *topology.Bus, _ File) (ids []string) {
	if bus == nil {
		return nil
	}
	jobs, _ := bus.Jobs(ctx)
	for _, j := range jobs {
		ids = append(ids, j.ID)
	}
	return ids
}
