// Package catalog keeps the kinds of one thing, e.g. of destinations: what each
// is called, what it is for, how it is configured and how it is opened. Adding a
// kind is one file with one [Define].
package catalog

import (
	"context"
	"regexp"
	"sort"

	"github.com/penstock/penstock/messages/fault"
)

var (
	errUnknown = fault.Define("catalog.unknown_kind", fault.Stop,
		"use one of the names that the command `penstock sources|formats|destinations` lists")
	errConfigType = fault.Define("catalog.config_type", fault.Stop,
		"report this as a bug of penstock: a part was opened with the configuration of another one")
)

// Catalog holds the kinds of one thing. Part is what opening one gives; Deps is
// what every Open needs from the process. Define all kinds in init functions;
// after that methods may be called concurrently.
//
// A Catalog is a [config.Kinds], so that a struct can refer to it from its method
// Kinds; there the decoding of `type:` is described.
//
// [config.Kinds]: https://pkg.go.dev/github.com/penstock/penstock/services/internal/config#Kinds
type Catalog[Deps, Part any] struct {
	what  string
	kinds map[string]kind[Deps, Part]
}

type kind[Deps, Part any] struct {
	doc      string
	defaults func() any
	open     func(ctx context.Context, cfg any, deps Deps) (Part, error)
}

// New makes an empty catalog. What names one part in messages, e.g. "destination".
func New[Deps, Part any](what string) *Catalog[Deps, Part] {
	return &Catalog[Deps, Part]{what: what, kinds: map[string]kind[Deps, Part]{}}
}

var goodName = regexp.MustCompile(`^[a-z][a-z0-9_-]*$`)

// Define adds a kind. Doc is one sentence. Defaults returns the configuration of
// a part whose file says nothing; it must not share memory between calls. Open
// gets a decoded and validated configuration. Define panics when the name is
// taken or not of the form a-z, 0-9, _ and -, or when the doc is empty: mistakes
// in the program, found at start-up.
func Define[C any, Deps, Part any](c *Catalog[Deps, Part], name, doc string, defaults func() C,
	open func(ctx context.Context, cfg C, deps Deps) (Part, error),
) {
	_, taken := c.kinds[name]
	switch {
	case taken:
		panic("catalog: " + c.what + " " + name + " is defined twice")
	case !goodName.MatchString(name):
		panic("catalog: " + c.what + " name " + name + " is not made of a-z, 0-9, _ and -")
	case doc == "":
		panic("catalog: " + c.what + " " + name + " has no doc")
	}
	c.kinds[name] = kind[Deps, Part]{
		doc:      doc,
		defaults: func() any { cfg := defaults(); return &cfg },
		open: func(ctx context.Context, cfg any, deps Deps) (Part, error) {
			switch cfg := cfg.(type) {
			case C:
				return open(ctx, cfg, deps)
			case *C:
				if cfg != nil {
					return open(ctx, *cfg, deps)
				}
			}
			var none Part
			return none, errConfigType.New(nil, "open %s %s with a %T", c.what, name, cfg)
		},
	}
}

// What one part is called.
func (c *Catalog[Deps, Part]) What() string { return c.what }

// Names of all kinds, in the order of the alphabet.
func (c *Catalog[Deps, Part]) Names() []string {
	names := make([]string, 0, len(c.kinds))
	for name := range c.kinds {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// Doc is the sentence about a kind, empty for a name that is not there.
func (c *Catalog[Deps, Part]) Doc(name string) string { return c.kinds[name].doc }

// Defaults returns a pointer to a new configuration with the defaults of a kind.
func (c *Catalog[Deps, Part]) Defaults(name string) (any, bool) {
	k, ok := c.kinds[name]
	if !ok {
		return nil, false
	}
	return k.defaults(), true
}

// Open opens a part. Cfg is the configuration of that kind or a pointer to it.
// Errors are those of the kind, and fault.Stop for a name that is not there.
func (c *Catalog[Deps, Part]) Open(ctx context.Context, name string, cfg any, deps Deps) (Part, error) {
	k, ok := c.kinds[name]
	if !ok {
		var none Part
		return none, errUnknown.New(nil, "open %s of the unknown type %q", c.what, name)
	}
	return k.open(ctx, cfg, deps)
}
