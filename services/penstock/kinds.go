package main

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/ingest/sources"
	"github.com/penstock/penstock/services/parse/formats"
)

// examples hold a part of a configuration for each kind of source and
// destination. A test loads each.
//
//go:embed examples
var examples embed.FS

// kind is what can be said of a source, a format or a destination.
type kind struct {
	Name    string      `json:"name"`
	Doc     string      `json:"description"`
	Keys    []kindKey   `json:"keys,omitempty"`
	Example string      `json:"example,omitempty"`
	Sample  *kindSample `json:"sample,omitempty"`
}

// kindKey is a key of the configuration.
type kindKey struct {
	Name    string `json:"name"`
	Default any    `json:"default,omitempty"`
	Doc     string `json:"description"`
}

// kindSample is a piece of an object of a format.
type kindSample struct {
	Key  string `json:"key,omitempty"`
	Data string `json:"data"`
}

// group is a set of kinds that a command lists.
type group struct {
	// name of the command, and of the list in the configuration.
	name, one string
	names     func() []string
	doc       func(string) string
}

var groups = []group{
	{"sources", "source", sources.Catalog.Names, sources.Catalog.Doc},
	{"formats", "format", formats.Names, formats.About},
	{"destinations", "destination", sinks.Catalog.Names, sinks.Catalog.Doc},
}

// newKinds makes the commands sources, formats and destinations.
func newKinds() []*cobra.Command {
	var all []*cobra.Command
	for _, g := range groups {
		asJSON := false
		cmd := &cobra.Command{
			Use: g.name + " [NAME]", Args: atMostOne,
			Short: "List the kinds of " + g.name + ", or show the keys of one and an example",
			Example: fmt.Sprintf("  penstock %s\n  penstock %s %s", g.name, g.name,
				map[string]string{"sources": "sqs", "formats": "cloudtrail", "destinations": "http"}[g.name]),
			ValidArgs: g.names(),
			RunE: func(cmd *cobra.Command, args []string) error {
				if len(args) == 1 && !slices.Contains(g.names(), args[0]) {
					return usageError{fmt.Errorf("there is no %s %q; there are %s", g.one, args[0], strings.Join(g.names(), ", "))}
				}
				out := cmd.OutOrStdout()
				if len(args) == 1 {
					k, err := g.kind(args[0])
					if err != nil {
						return err
					}
					if asJSON {
						return writeJSON(out, k)
					}
					return k.print(cmd)
				}
				list := []kind{}
				for _, name := range g.names() {
					list = append(list, kind{Name: name, Doc: g.doc(name)})
				}
				if asJSON {
					return writeJSON(out, list)
				}
				t := table(out)
				for _, k := range list {
					fmt.Fprintf(t, "%s\t%s\n", k.Name, k.Doc)
				}
				return t.Flush()
			},
		}
		cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
		if g.name == "destinations" {
			cmd.Short += "; see and steer those that run"
			cmd.Example += "\n  penstock destinations status --store penstock-data"
			cmd.AddCommand(newDestinationsStatus(), newDestinationsPause(), newDestinationsResume(), newDestinationsRemove())
		}
		all = append(all, cmd)
	}
	return all
}

// node is a part of the JSON Schema.
type node struct {
	Title       string          `json:"title"`
	Description string          `json:"description"`
	Default     any             `json:"default"`
	Properties  json.RawMessage `json:"properties"`
	Items       *node           `json:"items"`
	AnyOf       []node          `json:"anyOf"`
	OneOf       []node          `json:"oneOf"`
}

// kind tells all about one of the group.
func (g group) kind(name string) (kind, error) {
	k := kind{Name: name, Doc: g.doc(name)}
	if g.name == "formats" {
		if key, data := formats.Example(name); data != nil {
			k.Sample = &kindSample{Key: key, Data: string(data)}
		}
	} else if text, err := examples.ReadFile("examples/" + g.name + "/" + name + ".yaml"); err == nil {
		k.Example = string(text)
	}
	var top node
	if err := json.Unmarshal(schema, &top); err != nil {
		return k, err
	}
	list, err := g.nodes(top)
	if err != nil {
		return k, err
	}
	for _, n := range list {
		if n.Title != name {
			continue
		}
		k.Keys, err = keysOf(n)
		break
	}
	return k, err
}

// nodes are the kinds of the group in the schema.
func (g group) nodes(top node) ([]node, error) {
	from := g.name
	if from == "formats" {
		from = "sources"
	}
	properties, err := property(top, from)
	if err != nil || properties.Items == nil {
		return nil, err
	}
	list := properties.Items.OneOf
	if g.name != "formats" || len(list) == 0 {
		return list, nil
	}
	format, err := property(list[0], "format")
	if err != nil || len(format.AnyOf) < 2 {
		return nil, err
	}
	return format.AnyOf[1].OneOf, nil
}

func property(n node, name string) (p node, err error) {
	var all map[string]node
	err = json.Unmarshal(n.Properties, &all)
	return all[name], err
}

// keysOf reads the properties in their order.
func keysOf(n node) ([]kindKey, error) {
	if len(n.Properties) == 0 {
		return nil, nil
	}
	var all map[string]node
	if err := json.Unmarshal(n.Properties, &all); err != nil {
		return nil, err
	}
	var keys []kindKey
	d := json.NewDecoder(bytes.NewReader(n.Properties))
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		name, _ := token.(string)
		switch name {
		case "type": // it is the name of the kind
		default:
			p := all[name]
			keys = append(keys, kindKey{name, p.Default, p.Description})
		}
	}
	return keys, nil
}

// print writes k for people.
func (k kind) print(cmd *cobra.Command) error {
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "%s\n\n", k.Doc)
	if len(k.Keys) > 0 {
		fmt.Fprintln(out, "Keys:")
		for _, key := range k.Keys {
			fmt.Fprintf(out, "  %s", key.Name)
			if key.Default != nil && key.Default != "" {
				text, _ := json.Marshal(key.Default)
				fmt.Fprintf(out, " (default %s)", text)
			}
			fmt.Fprintf(out, "\n      %s\n", wrap(strings.TrimPrefix(key.Doc, "`"+key.Name+"` "), 72, "\n      "))
		}
		fmt.Fprintln(out)
	}
	if k.Example != "" {
		fmt.Fprintf(out, "Example:\n\n%s\n", k.Example)
	}
	if k.Sample == nil {
		return nil
	}
	return k.Sample.print(cmd, k.Name)
}

// print shows the sample, and what the stages make of it.
func (s *kindSample) print(cmd *cobra.Command, format string) error {
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "A sample:\n\n")
	const most = 1500
	text := s.Data
	if len(text) > most {
		text = text[:most] + "…"
	}
	if !utf8.ValidString(text) {
		text = "(not text)"
	}
	fmt.Fprintf(out, "  %s\n\nbecomes:\n\n", strings.ReplaceAll(printable(strings.TrimRight(text, "\n")), "\n", "\n  "))
	t := trial{setting: formats.Setting{Type: format}, key: s.Key, limit: 3, out: out, log: io.Discard}
	path, err := spool(strings.NewReader(s.Data))
	if err != nil {
		return err
	}
	defer remove(path)
	if err := t.run(cmd.Context(), path, nil); err != nil && !errors.Is(err, errSilent) {
		return err
	}
	return nil
}

// wrap breaks text into lines of about width characters.
func wrap(text string, width int, brk string) string {
	var b strings.Builder
	at := 0
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case at+1+n > width:
			b.WriteString(brk)
			at = 0
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	return b.String()
}
