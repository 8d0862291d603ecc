package config

// Kinds is a closed set of kinds of one thing, each with its own keys: what
// `type:` selects from in a list of sources or destinations. Every
// [catalog.Catalog] is one.
//
// A struct takes part by a method Kinds and two fields, one for the name of the
// kind and one for its keys:
//
//	type Destination struct {
//		// Name of the destination.
//		Name string `yaml:"name"`
//		// Type selects the kind of destination.
//		Type string `yaml:"type"`
//		// Options are the keys of that kind.
//		Options any `yaml:",kind"`
//	}
//
//	func (Destination) Kinds() config.Kinds { return known }
//
// The keys of the kind stand in the same mapping as the common ones. Options
// gets a pointer to the struct of the kind, defaults first. With
// `yaml:"type,scalar"` the whole struct may also be written as the bare name.
//
// [catalog.Catalog]: https://pkg.go.dev/github.com/penstock/penstock/services/internal/catalog
type Kinds interface {
	// What one of them is, e.g. "destination".
	What() string
	// Names in the order of the alphabet.
	Names() []string
	// Doc is one sentence about the kind.
	Doc(name string) string
	// Defaults returns a pointer to a new struct of the kind with its defaults.
	Defaults(name string) (any, bool)
}

// Kinded is a struct whose keys depend on its kind. See [Kinds].
type Kinded interface {
	Kinds() Kinds
}

// Enum is a string type with a fixed set of values, which the engine checks.
type Enum interface {
	Values() []string
}

// Defaulter fills a new value before the file is decoded over it. The engine
// calls it for what it makes itself: entries of lists and mappings and nil
// pointers. The struct given to [Parse] comes with its defaults.
type Defaulter interface {
	SetDefaults()
}
