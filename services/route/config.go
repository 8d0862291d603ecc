package route

import (
	"fmt"
	"strings"

	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/transform"
)

// Config configures the route stage.
type Config struct {
	// Rules are applied to each event in this order, until one drops it. None passes everything.
	Rules []Rule `yaml:"routes"`
}

// Defaults has no rules.
func Defaults() Config { return Config{} }

// Rule is one rule: which events it concerns, and exactly one of drop, sample,
// mask, enrich, ocsf and set_type.
type Rule struct {
	// Name of the rule, under which what it drops is counted. Required and unique.
	Name string `yaml:"name"`
	// Types of events it concerns, with the wildcards of NATS: * is one word, > at the end one or more. Empty means all.
	Types []string `yaml:"types"`
	// Where is a CEL expression over event.id, type, time, source, account, region and doc; the rule concerns events for which it is true. Empty means all.
	Where string `yaml:"where"`
	// Drop drops the events.
	Drop bool `yaml:"drop"`
	// Sample keeps a share of the events and drops the others.
	Sample *Sample `yaml:"sample"`
	// Mask hides fields of the documents.
	Mask *transform.Mask `yaml:"mask"`
	// Enrich adds what is known about a value, from GeoIP databases or lookup tables.
	Enrich *transform.Enrich `yaml:"enrich"`
	// OCSF writes the documents of AWS formats as events of the Open Cybersecurity Schema Framework; true, or a mapping. Masks on their fields go before it.
	OCSF *OCSF `yaml:"ocsf"`
	// SetType gives the events another type; {type} and {source} stand for what they had.
	SetType string `yaml:"set_type"`
}

// Sample keeps a share of events. The id decides, so that the same event always
// has the same fate; of two sample rules the smaller share wins.
type Sample struct {
	// Keep is the share to keep. Range: 0 to 1.
	Keep float64 `yaml:"keep"`
}

// OCSF writes documents as OCSF.
type OCSF struct {
	// Enabled is there so that ocsf: true can be written. It cannot be false: leave the rule out instead.
	Enabled bool `yaml:"enabled,scalar"`
	// RawData keeps the document as it was, as text in raw_data.
	RawData bool `yaml:"raw_data"`
}

// SetDefaults implements [config.Defaulter].
func (o *OCSF) SetDefaults() { o.Enabled = true }

// Validate reports every problem, each with the key to change.
func (o OCSF) Validate() error {
	var p config.Problems
	p.Need(o.Enabled, "enabled", "use true, or remove the rule")
	return p.Err()
}

// Validate reports every problem, each with the key to change.
func (c Config) Validate() error {
	var p config.Problems
	names := map[string]int{}
	for i, r := range c.Rules {
		at := fmt.Sprintf("routes[%d]", i)
		p.In(at, r.Validate())
		if first, taken := names[r.Name]; taken && r.Name != "" {
			p.Add(at+".name", fmt.Sprintf("routes[%d] has this name already", first), "use a name of its own for each rule")
		} else {
			names[r.Name] = i
		}
	}
	return p.Err()
}

// Validate reports every problem, each with the key to change.
func (r Rule) Validate() error {
	var p config.Problems
	p.Need(r.Name != "" && len(r.Name) <= 64, "name", "use a name of 1 to 64 bytes, e.g. drop-health-checks")
	if _, err := condition.ParseTypes(r.Types); err != nil {
		why, fix := condition.Explain(err)
		p.Add("types", why, fix)
	}
	if r.Where != "" {
		if _, err := condition.Compile(r.Where); err != nil {
			why, fix := condition.Explain(err)
			p.Add("where", why, fix)
		}
	}
	actions := 0
	for _, set := range []bool{r.Drop, r.Sample != nil, r.Mask != nil, r.Enrich != nil, r.OCSF != nil, r.SetType != ""} {
		if set {
			actions++
		}
	}
	p.Need(actions == 1, "", "use exactly one of drop: true, sample, mask, enrich, ocsf and set_type in a rule")
	if r.Sample != nil {
		p.Need(r.Sample.Keep >= 0 && r.Sample.Keep <= 1, "sample.keep", "use a share from 0 to 1, e.g. 0.1")
	}
	if r.Mask != nil {
		p.In("mask", r.Mask.Validate())
	}
	if r.Enrich != nil {
		p.In("enrich", r.Enrich.Validate())
	}
	if r.OCSF != nil {
		p.In("ocsf", r.OCSF.Validate())
	}
	if r.SetType != "" {
		p.Need(condition.IsType(expand(r.SetType, "t", "s")), "set_type", "use dotted words of letters, digits, - and _; {type} and {source} may stand in them")
	}
	return p.Err()
}

// expand fills in the placeholders of set_type.
func expand(template, eventType, source string) string {
	return strings.NewReplacer("{type}", eventType, "{source}", source).Replace(template)
}
