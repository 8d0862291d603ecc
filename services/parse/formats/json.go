package formats

import (
	"strings"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("json", "Any JSON: one value a line, values one after the other, or an array.", shape{
		framing: func([]byte) framing.Framing { return framing.Framing{Kind: framing.Auto} },
	}, defaultJSON, openJSON)
}

// JSONConfig configures the format json. A path is the keys from the top of the
// document down, with dots between them (detail.id); a dot within a key is
// written \. and paths do not lead through arrays. "" means that records do not
// have it.
type JSONConfig struct {
	// IDField is the path of the natural id, text or a number. Records with the
	// same one are duplicates. Without it, the place of a record in its object
	// or the content of its message makes the id.
	IDField string `yaml:"id_field"`
	// IDSpace is within what the natural id is unique. Sources that may bring the
	// same events need the same one. Default: the name of the source.
	IDSpace string `yaml:"id_space"`
	// TimeField is the path of the event time.
	TimeField string `yaml:"time_field"`
	// TimeUnit is how the time is written: rfc3339, or s, ms, us, ns since 1970.
	TimeUnit TimeUnit `yaml:"time_unit"`
	// EventType of all records, or what comes before the value at EventTypeField.
	// Small letters, digits, -, _ and dots. Default: json.<source>.
	EventType string `yaml:"event_type"`
	// EventTypeField is the path of what comes after EventType and a dot.
	EventTypeField string `yaml:"event_type_field"`
	// AccountField is the path of the account.
	AccountField string `yaml:"account_field"`
	// RegionField is the path of the region.
	RegionField string `yaml:"region_field"`
}

func defaultJSON() JSONConfig { return JSONConfig{TimeUnit: RFC3339} }

// Validate reports every problem, each with the key to change.
func (c JSONConfig) Validate() error {
	var p config.Problems
	for _, f := range []struct{ key, path string }{
		{"id_field", c.IDField},
		{"time_field", c.TimeField},
		{"event_type_field", c.EventTypeField},
		{"account_field", c.AccountField},
		{"region_field", c.RegionField},
	} {
		p.Need(len(splitPath(f.path)) <= maxSteps, f.key, "use a path of at most 16 keys")
	}
	if _, ok := digitsBelow[c.TimeUnit]; !ok {
		p.Need(c.TimeUnit == RFC3339, "time_unit", "use rfc3339, s, ms, us or ns")
	}
	p.Need(c.EventType == string(appendWords(nil, []byte(c.EventType), len(c.EventType))), "event_type",
		"use words of a-z, 0-9, - and _ with single dots between them, e.g. app.login")
	p.Need(len(c.EventType) <= maxTypeSize, "event_type", "use at most 64 bytes")
	return p.Err()
}

// The slots of the values that are read from a record.
const (
	jsonID = iota
	jsonTime
	jsonType
	jsonAccount
	jsonRegion
	jsonSlots
)

func openJSON(c JSONConfig, deps Deps) (Format, error) {
	base := c.EventType
	if base == "" {
		base = string(appendWords([]byte("json."), []byte(strings.ReplaceAll(deps.Source, ".", "_")), maxTypeSize))
	}
	space := c.IDSpace
	if space == "" {
		space = deps.Source
	}
	paths := make([][]string, jsonSlots)
	for slot, path := range []string{c.IDField, c.TimeField, c.EventTypeField, c.AccountField, c.RegionField} {
		paths[slot] = splitPath(path)
	}
	return Format{New: func() Decoder {
		return &jsonDecoder{
			scan: newScanner(paths...), types: newTypeNamer(deps.Types, base), config: c, base: base,
			space: []byte(space), below: digitsBelow[c.TimeUnit],
		}
	}, Base: base}, nil
}

// splitPath cuts a path at its dots; nil for "".
func splitPath(path string) []string {
	if path == "" {
		return nil
	}
	steps := []string{""}
	for i := 0; i < len(path); i++ {
		last := &steps[len(steps)-1]
		switch {
		case path[i] == '\\' && i+1 < len(path) && path[i+1] == '.':
			i++
			*last += "."
		case path[i] == '.':
			steps = append(steps, "")
		default:
			*last += path[i : i+1]
		}
	}
	return steps
}

// jsonDecoder takes any JSON value for a record, not only objects: a number or a
// text in a list of events is an event without fields.
type jsonDecoder struct {
	scan             *scanner
	types            *typeNamer
	config           JSONConfig
	base             string
	space            []byte
	below            int
	accounts, places names
	id               [3][]byte
}

// kindJSON begins the ids of records with a natural id.
var kindJSON = []byte("json")

// Decode implements Decoder.
func (j *jsonDecoder) Decode(rec []byte, d *Doc) error {
	s := j.scan
	start, end, why, at := s.scan(rec)
	if why != "" {
		return badJSON(rec, why, at)
	}
	*d = Doc{Body: rec[start:end], Offset: start, Type: j.base}
	if j.config.IDField != "" {
		if id := s.value(rec, jsonID); len(id) > 0 {
			j.id = [...][]byte{kindJSON, j.space, id}
			d.ID, d.HasID = newID(j.id[:]...), true
		} else {
			d.Odd |= NoID
		}
	}
	if j.config.TimeField != "" {
		j.time(rec, d)
	}
	if j.config.EventTypeField != "" {
		var odd Odd
		d.Type, odd = j.types.of(s.value(rec, jsonType))
		d.Odd |= odd
	}
	if j.config.AccountField != "" {
		d.Account = j.accounts.of(s.value(rec, jsonAccount))
	}
	if j.config.RegionField != "" {
		d.Region = j.places.of(s.value(rec, jsonRegion))
	}
	if !s.valid(rec) {
		d.Odd |= BadUTF8
	}
	return nil
}

func (j *jsonDecoder) time(rec []byte, d *Doc) {
	s := j.scan
	if s.found[jsonTime].kind == absent {
		d.Odd |= NoTime
		return
	}
	if j.config.TimeUnit == RFC3339 {
		d.Time, d.HasTime = parseTime(s.textAt(rec, jsonTime))
	} else {
		d.Time, d.HasTime = parseEpoch(s.value(rec, jsonTime), j.below)
	}
	if !d.HasTime {
		d.Odd |= BadTime
	}
}
