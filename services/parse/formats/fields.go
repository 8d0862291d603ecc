package formats

import (
	"strings"
	"time"
	_ "time/tzdata" // the images have none

	"github.com/penstock/penstock/services/internal/config"
)

// FieldsConfig tells what the fields of a text format mean. "" means that records
// do not have it.
type FieldsConfig struct {
	// IDField is the field of the natural id. Records with the same one are
	// duplicates. Without it, the place of a record in its object or the content of
	// its message makes the id.
	IDField string `yaml:"id_field"`
	// IDSpace is within what the natural id is unique. Sources that may bring the
	// same events need the same one. Default: the name of the source.
	IDSpace string `yaml:"id_space"`
	// TimeField is the field of the event time.
	TimeField string `yaml:"time_field"`
	// TimeUnit is how the time is written: rfc3339, or s, ms, us, ns since 1970.
	// With rfc3339 the zone may be missing.
	TimeUnit TimeUnit `yaml:"time_unit"`
	// TimeLayout is how the time is written where it is neither, as Go writes
	// layouts: what 2006-01-02 15:04:05 would be in that form.
	TimeLayout string `yaml:"time_layout"`
	// TimeZone of times that do not tell theirs, e.g. Europe/Berlin. Default: UTC.
	TimeZone string `yaml:"time_zone"`
	// EventType of all records, or what comes before the value of EventTypeField.
	// Small letters, digits, -, _ and dots. Default: <format>.<source>.
	EventType string `yaml:"event_type"`
	// EventTypeField is the field of what comes after EventType and a dot.
	EventTypeField string `yaml:"event_type_field"`
	// AccountField is the field of the account.
	AccountField string `yaml:"account_field"`
	// RegionField is the field of the region.
	RegionField string `yaml:"region_field"`
	// Numbers are the fields whose values are written as numbers, as they are,
	// where they are numbers; * stands for all. Others are text.
	Numbers []string `yaml:"numbers"`
	// KeepRaw adds the record itself to each document, under the key raw.
	KeepRaw bool `yaml:"keep_raw"`
}

func defaultFields() FieldsConfig { return FieldsConfig{TimeUnit: RFC3339} }

// Validate reports every problem, each with the key to change.
func (c FieldsConfig) Validate() error {
	var p config.Problems
	if _, ok := digitsBelow[c.TimeUnit]; !ok {
		p.Need(c.TimeUnit == RFC3339, "time_unit", "use rfc3339, s, ms, us or ns")
	}
	if _, err := time.LoadLocation(c.TimeZone); err != nil {
		p.Need(false, "time_zone", "use a name of the IANA time zone database, e.g. Europe/Berlin")
	}
	p.Need(c.TimeLayout == "" || strings.ContainsAny(c.TimeLayout, "0123456789"), "time_layout",
		"write the time 2006-01-02 15:04:05 in that form, e.g. 02/Jan/2006:15:04:05 -0700")
	p.Need(c.TimeLayout == "" || c.TimeUnit == RFC3339, "time_layout", "leave time_unit out: the layout says how the time is written")
	needEventType(&p, c.EventType)
	return p.Err()
}

// needEventType checks the fixed part of an event type.
func needEventType(p *config.Problems, eventType string) {
	p.Need(eventType == string(appendWords(nil, []byte(eventType), len(eventType))), "event_type",
		"use words of a-z, 0-9, - and _ with single dots between them, e.g. app.login")
	p.Need(len(eventType) <= maxTypeSize, "event_type", "use at most 64 bytes")
}

// The slots of the values that are read from a record.
const (
	fieldID = iota
	fieldTime
	fieldType
	fieldAccount
	fieldRegion
	fieldSlots
)

// fields applies a FieldsConfig to records. Not for concurrent use.
type fields struct {
	config           FieldsConfig
	kind, space      []byte
	base             string
	clock            clock
	types            *typeNamer
	accounts, places names
	numbers          map[string]bool
	all              bool // fields are numbers where they can be
	named            bool // some field means something
	id               [3][]byte
	// values are those of the slots in the record at hand. Set begins anew.
	values [fieldSlots][]byte
}

// newFields makes the fields of a source's records of format kind.
func newFields(kind string, c FieldsConfig, deps Deps) *fields {
	f := &fields{config: c, kind: []byte(kind), base: c.base(kind, deps), space: []byte(c.IDSpace), clock: newClock(c), numbers: map[string]bool{}}
	if c.IDSpace == "" {
		f.space = []byte(deps.Source)
	}
	f.types = newTypeNamer(deps.Types, f.base)
	for _, name := range c.Numbers {
		f.numbers[name] = true
	}
	f.all = f.numbers["*"]
	f.named = c.IDField+c.TimeField+c.EventTypeField+c.AccountField+c.RegionField != ""
	return f
}

// base is the event type of records of format kind, or what theirs begin with.
func (c *FieldsConfig) base(kind string, deps Deps) string {
	if c.EventType != "" {
		return c.EventType
	}
	return string(appendWords([]byte(kind+"."), []byte(strings.ReplaceAll(deps.Source, ".", "_")), maxTypeSize))
}

// slot tells what a field means, for newColumns.
func (f *fields) slot(name string) (slot int, numeric bool) { return f.slotOf([]byte(name)) }

// slotOf is slot for a name of a record.
func (f *fields) slotOf(name []byte) (slot int, numeric bool) {
	slot = -1
	if f.named && len(name) > 0 {
		c := &f.config
		switch string(name) {
		case c.IDField:
			slot = fieldID
		case c.TimeField:
			slot = fieldTime
		case c.EventTypeField:
			slot = fieldType
		case c.AccountField:
			slot = fieldAccount
		case c.RegionField:
			slot = fieldRegion
		}
	}
	return slot, f.all || len(f.numbers) > 0 && f.numbers[string(name)]
}

// set notes the value of a slot, and of others that the same field stands for.
func (f *fields) set(slot int, v []byte) {
	if slot < 0 {
		return
	}
	f.values[slot] = v
	c := &f.config
	all := [...]string{c.IDField, c.TimeField, c.EventTypeField, c.AccountField, c.RegionField}
	for i := slot + 1; i < fieldSlots; i++ {
		if all[i] == all[slot] {
			f.values[i] = v
		}
	}
}

// begin forgets the values of the record before.
func (f *fields) begin(d *Doc) {
	f.values = [fieldSlots][]byte{}
	*d = Doc{Made: true, Type: f.base}
}

// finish reads the values into d.
func (f *fields) finish(d *Doc) {
	c := &f.config
	if c.IDField != "" {
		if id := f.values[fieldID]; len(id) > 0 {
			f.id = [...][]byte{f.kind, f.space, id}
			d.ID, d.HasID = newID(f.id[:]...), true
		} else {
			d.Odd |= NoID
		}
	}
	if c.TimeField != "" {
		if v := f.values[fieldTime]; len(v) == 0 {
			d.Odd |= NoTime
		} else if d.Time, d.HasTime = f.clock.read(v); !d.HasTime {
			d.Odd |= BadTime
		}
	}
	if c.EventTypeField != "" {
		var odd Odd
		d.Type, odd = f.types.of(f.values[fieldType])
		d.Odd |= odd
	}
	if c.AccountField != "" {
		d.Account = f.accounts.of(f.values[fieldAccount])
	}
	if c.RegionField != "" {
		d.Region = f.places.of(f.values[fieldRegion])
	}
}

// clock reads times as a FieldsConfig says.
type clock struct {
	unit   TimeUnit
	below  int
	layout string
	zone   *time.Location
}

func newClock(c FieldsConfig) clock {
	zone, err := time.LoadLocation(c.TimeZone)
	if err != nil { // not reached with a checked configuration
		zone = time.UTC
	}
	return clock{unit: c.TimeUnit, below: digitsBelow[c.TimeUnit], layout: c.TimeLayout, zone: zone}
}

// maxTime is the longest text that is read as a time. Unit: bytes.
const maxTime = 64

func (c *clock) read(v []byte) (ns int64, ok bool) {
	switch {
	case len(v) > maxTime:
		return 0, false
	case c.layout != "":
		at, err := time.ParseInLocation(c.layout, string(v), c.zone)
		if err != nil || at.Year() < 1678 || at.Year() > 2261 {
			return 0, false
		}
		return at.UnixNano(), true
	case c.unit != RFC3339:
		return parseEpoch(v, c.below)
	}
	if ns, ok = parseTime(v); ok {
		return ns, true
	}
	if ns, ok = parseZoneless(v); ok {
		return inZone(ns, c.zone), true
	}
	return 0, false
}
