package formats

import (
	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("hec", "Events of Splunk's HTTP Event Collector, each with its time, host, source, sourcetype, index and fields.", shape{
		framing: hecFraming,
	}, func() HECConfig { return HECConfig{} }, openHEC)
}

// HECConfig configures the format hec. It has no keys.
type HECConfig struct{}

// hecType is the event type without the sourcetype.
const hecType = "hec"

// The slots of the values that are read from a record.
const (
	hecTime = iota
	hecSourcetype
)

var hecPaths = [...][]string{
	hecTime:       {"time"},
	hecSourcetype: {"sourcetype"},
}

func openHEC(_ HECConfig, deps Deps) (Format, error) {
	return Format{New: func() Decoder {
		return &hec{scan: newScanner(hecPaths[:]...), types: newTypeNamer(deps.Types, hecType)}
	}, Base: hecType}, nil
}

// hec decodes what clients of the HTTP Event Collector send: the document is the
// whole object, so that nothing of it is lost; what was logged is its "event".
//
//   - id: none of its own. Equal events are different ones, as in Splunk.
//   - time: "time", seconds since 1970 with a fraction, as a number or as text.
//     Numbers that are too large for seconds are read as ms, us or ns, which many
//     clients send.
//   - type: hec.<sourcetype>.
//   - account and region: none.
//
// Source: formats F-25; Splunk, Format events for HTTP Event Collector.
type hec struct {
	scan  *scanner
	types *typeNamer
}

// Decode implements Decoder.
func (h *hec) Decode(rec []byte, d *Doc) error {
	s := h.scan
	start, end, why, at := s.scan(rec)
	if why != "" {
		return badJSON(rec, why, at)
	}
	if rec[start] != '{' {
		return errObject.New(nil, "read an event of %d bytes for the HTTP Event Collector: it is no JSON object", len(rec))
	}
	*d = Doc{Body: rec[start:end], Offset: start}
	if s.found[hecTime].kind == absent {
		d.Odd |= NoTime
	} else if d.Time, d.HasTime = hecInstant(s.value(rec, hecTime)); !d.HasTime {
		d.Odd |= BadTime
	}
	var odd Odd
	d.Type, odd = h.types.of(s.textAt(rec, hecSourcetype))
	d.Odd |= odd
	if !s.valid(rec) {
		d.Odd |= BadUTF8
	}
	return nil
}

// hecInstant reads seconds, or a finer unit that the number of digits gives away.
func hecInstant(v []byte) (ns int64, ok bool) {
	below := digitsBelow[Seconds]
	switch n := run(v, 0); {
	case n >= 18:
		below = digitsBelow[Nanoseconds]
	case n >= 15:
		below = digitsBelow[Microseconds]
	case n >= 12:
		below = digitsBelow[Milliseconds]
	}
	return parseEpoch(v, below)
}

// hecFraming: objects one after the other, with anything or nothing between them.
// An array of them is taken as well.
func hecFraming(head []byte) framing.Framing {
	if b := trimSpace(head); len(b) > 0 && b[0] == '[' {
		return framing.Framing{Kind: framing.Array}
	}
	return framing.Framing{Kind: framing.Values}
}
