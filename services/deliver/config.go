package deliver

import (
	"fmt"
	"regexp"
	"time"

	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/transform"
	"github.com/penstock/penstock/topology"
)

// Destination configures one destination.
type Destination struct {
	// Name of the destination: 1 to 64 letters, digits, - and _. Its position in the event log is kept under this name. Required.
	Name string `yaml:"name"`
	// Type selects the kind of destination. Required.
	Type string `yaml:"type"`
	// Types of events to deliver, with the wildcards of NATS: * is one word, > at the end one or more. Empty means all.
	Types []string `yaml:"types"`
	// Where is a CEL expression over event.id, type, time, source, account, region and doc; events for which it is false are left out and counted. Empty means all.
	Where string `yaml:"where"`
	// Begin is where in the event log a new destination begins: oldest (all that is kept), now (what comes from now on) or a time as in RFC 3339, e.g. 2026-05-01T00:00:00Z. It has no effect on one that was there before.
	Begin string `yaml:"start"`
	// Mask hides fields of the documents from this destination. What a rule of routes masks is hidden from all.
	Mask []transform.Mask `yaml:"mask"`
	// Concurrency caps the batches that are sent at the same time. Unit: batches.
	Concurrency int `yaml:"concurrency"`
	// AdaptiveConcurrency sends fewer batches at the same time while the destination gets slower or throttles, and up to the cap while it does not. Else always up to the cap.
	AdaptiveConcurrency bool `yaml:"adaptive_concurrency"`
	// Backoff is how long a failed batch waits before it is sent again.
	Backoff Backoff `yaml:"backoff"`
	// MaxBacklog says what becomes of events that a destination does not take for long.
	MaxBacklog MaxBacklog `yaml:"max_backlog"`
	// MaxInHand caps the encoded bytes that wait to be confirmed, in one process; 0 is 8 MiB, and less where more than two destinations run in the process: such ones have 20 MiB together. Unit: bytes.
	MaxInHand config.Bytes `yaml:"max_in_hand"`
	// DrainTimeout is how long batches that are being sent may take to end when penstock stops. Unit: duration.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// Options are the keys of the kind.
	Options any `yaml:",kind"`
}

// Backoff bounds the pauses between attempts. They double, with a jitter down to the
// half; what the far side asks for goes before.
type Backoff struct {
	// Initial is the pause after the first failure. Unit: duration.
	Initial time.Duration `yaml:"initial"`
	// Max is the longest pause. Unit: duration.
	Max time.Duration `yaml:"max"`
}

// MaxBacklog bounds how old events get in front of a destination.
type MaxBacklog struct {
	// Age of an event in the log from which on Policy holds; 0 is never. Unit: duration.
	Age time.Duration `yaml:"age"`
	// Policy is hold (keep everything: when the log is full, the whole pipeline waits) or skip (go on without the events; they are counted in the ledger and stay in the log for a replay, as long as that keeps them).
	Policy BacklogPolicy `yaml:"policy"`
}

// BacklogPolicy is what becomes of events that are too old.
type BacklogPolicy string

// The policies.
const (
	Hold BacklogPolicy = "hold"
	Skip BacklogPolicy = "skip"
)

// Values implements [config.Enum].
func (BacklogPolicy) Values() []string { return []string{string(Hold), string(Skip)} }

// Words for where a new destination begins.
const (
	startOldest = "oldest"
	startNow    = "now"
)

// Start is where in the event log the destination begins when it is new.
func (d Destination) Start() topology.Start {
	if d.Begin == startNow {
		return topology.Start{Now: true}
	}
	at, err := time.Parse(time.RFC3339, d.Begin)
	if err != nil {
		return topology.Start{} // oldest: Validate refuses all else
	}
	return topology.Start{Time: at}
}

// Defaults is a destination of which nothing is said.
func Defaults() Destination {
	return Destination{
		Begin: startOldest, Concurrency: 8, AdaptiveConcurrency: true, Backoff: Backoff{Initial: 500 * time.Millisecond, Max: time.Minute},
		MaxBacklog: MaxBacklog{Policy: Hold}, DrainTimeout: 8 * time.Second,
	}
}

// SetDefaults implements [config.Defaulter].
func (d *Destination) SetDefaults() { *d = Defaults() }

// Kinds implements [config.Kinded].
func (Destination) Kinds() config.Kinds { return sinks.Catalog }

var goodName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// Validate reports every problem, each with the key to change.
func (d Destination) Validate() error {
	var p config.Problems
	p.Need(goodName.MatchString(d.Name), "name", "use 1 to 64 letters, digits, - and _")
	p.Need(d.Type != "", "type", "name the kind of destination, e.g. http")
	_, err := time.Parse(time.RFC3339, d.Begin)
	p.Need(err == nil || d.Begin == startOldest || d.Begin == startNow, "start", "use oldest, now, or a time as in RFC 3339, e.g. 2026-05-01T00:00:00Z")
	if _, err := condition.ParseTypes(d.Types); err != nil {
		why, fix := condition.Explain(err)
		p.Add("types", why, fix)
	}
	if d.Where != "" {
		if _, err := condition.Compile(d.Where); err != nil {
			why, fix := condition.Explain(err)
			p.Add("where", why, fix)
		}
	}
	for i, m := range d.Mask {
		p.In(fmt.Sprintf("mask[%d]", i), m.Validate())
	}
	p.Need(d.Concurrency >= 1 && d.Concurrency <= 256, "concurrency", "use 1 to 256 batches, e.g. 4")
	p.Need(d.Backoff.Initial > 0 && d.Backoff.Initial <= d.Backoff.Max, "backoff.initial", "use a duration above 0s and up to backoff.max, e.g. 500ms")
	p.Need(d.Backoff.Max <= time.Hour, "backoff.max", "use up to 1h, e.g. 1m")
	p.Need(d.MaxBacklog.Age >= 0, "max_backlog.age", "use 0s for never, or a duration, e.g. 48h")
	p.Need(d.MaxBacklog.Policy == Hold || d.MaxBacklog.Policy == Skip, "max_backlog.policy", "use hold or skip")
	p.Need(d.MaxBacklog.Policy != Skip || d.MaxBacklog.Age > 0, "max_backlog.age", "set the age from which on events are skipped, e.g. 48h")
	p.Need(d.MaxInHand == 0 || d.MaxInHand >= config.MiB, "max_in_hand", "use 0 for a share of what all have, or 1 MiB or more, e.g. 8 MiB")
	p.Need(d.DrainTimeout >= 0 && d.DrainTimeout <= 10*time.Minute, "drain_timeout", "use 0s to 10m, e.g. 10s")
	return p.Err()
}
