package formats

import (
	"bytes"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("cef", "ArcSight CEF and QRadar LEEF lines, with a syslog header or without.", shape{
		framing: func([]byte) framing.Framing { return framing.Framing{Kind: framing.Lines} },
		sniff:   isCEF,
	}, func() CEFConfig { return CEFConfig{Fields: defaultFields()} }, openCEF)
}

// CEFConfig configures the format cef. Fields are named as the keys of the extension
// (src, act, cs1Label), or vendor, product, device_version, signature_id, name and
// severity.
type CEFConfig struct {
	// EventTypeProduct puts the vendor and the product behind the event type.
	EventTypeProduct bool         `yaml:"event_type_product"`
	Fields           FieldsConfig `yaml:",inline"`
}

// Validate reports every problem, each with the key to change.
func (c CEFConfig) Validate() error {
	var p config.Problems
	p.In("", c.Fields.Validate())
	p.Need(!c.EventTypeProduct || c.Fields.EventTypeField == "", "event_type_product", "leave it out where event_type_field is set")
	return p.Err()
}

func openCEF(c CEFConfig, deps Deps) (Format, error) {
	return Format{New: func() Decoder { return newCEF(c, deps) }, Base: c.Fields.base("cef", deps), Grows: 3}, nil
}

// The fields of the headers, in their order.
var (
	cefHeader  = [...]string{"cef_version", "vendor", "product", "device_version", "signature_id", "name", "severity"}
	leefHeader = [...]string{"leef_version", "vendor", "product", "device_version", "signature_id"}
)

// cef decodes lines of CEF and LEEF.
//
//   - document: the fields of the header; extension, an object of its keys as they
//     are, labels of custom fields among them; syslog, an object of what a syslog
//     header before it says. Empty fields are left out. Values are text without
//     their escapes, where numbers does not say otherwise.
//   - id: as configured, else none.
//   - time: rt, else end, else start, of LEEF devTime; else that of the syslog
//     header; or as configured.
//   - type: cef.<source>, or as configured.
//
// Of equal keys the later ones have a number behind their names.
//
// Source: ArcSight Common Event Format, versions 0 and 1; QRadar Log Event
// Extended Format, versions 1.0 and 2.0.
type cef struct {
	config CEFConfig
	fields *fields
	line   syslogLine
	w      fieldWriter
	header [len(cefHeader)]column
	leef   [len(leefHeader)]column
	keys   [][]byte
	texts  [][]byte // buffers of the fields of the header, without escapes
	value  []byte
	word   []byte
	kept   [fieldSlots][]byte

	times                                              [3][]byte // rt, end, start
	extension, log, stamp, host, facility, logSeverity column
}

func newCEF(c CEFConfig, deps Deps) *cef {
	f := newFields("cef", c.Fields, deps)
	d := &cef{config: c, fields: f, line: syslogLine{zone: f.clock.zone}, texts: make([][]byte, len(cefHeader))}
	copy(d.header[:], newColumns(cefHeader[:], f.slot))
	copy(d.leef[:], newColumns(leefHeader[:], f.slot))
	none := newColumns([]string{"extension", "syslog", "timestamp", "host", "facility", "severity"}, func(string) (int, bool) { return -1, false })
	d.extension, d.log, d.stamp, d.host, d.facility, d.logSeverity = none[0], none[1], none[2], none[3], none[4], none[5]
	return d
}

// Start implements Starter.
func (c *cef) Start(h Head) error {
	c.line.observed = observedAt(h)
	return nil
}

// cefStart returns where CEF or LEEF begins in a line, -1 when it does not.
func cefStart(rec []byte) (at int, leef bool) {
	const near = 512 // bytes, of a syslog header
	head := rec[:min(len(rec), near)]
	for from := 0; ; {
		n := bytes.Index(head[from:], []byte("EF:"))
		if n < 0 {
			return -1, false
		}
		at = from + n
		if at >= 1 && head[at-1] == 'C' && (at == 1 || head[at-2] == ' ' || head[at-2] == ':') {
			return at - 1, false
		}
		if at >= 2 && head[at-1] == 'E' && head[at-2] == 'L' && (at == 2 || head[at-3] == ' ' || head[at-3] == ':') {
			return at - 2, true
		}
		from = at + 1
	}
}

// Decode implements Decoder.
func (c *cef) Decode(rec []byte, d *Doc) error {
	at, leef := cefStart(bytes.TrimPrefix(rec, []byte("\ufeff")))
	if at < 0 {
		return errLine.New(nil, "read a line of CEF, %d bytes: CEF: and LEEF: are not in it", len(rec))
	}
	line := bytes.TrimPrefix(rec, []byte("\ufeff"))
	c.line.stamp, c.line.hasTime, c.line.host, c.line.priority = nil, false, nil, -1
	if at > 0 {
		// What is before it may be any header; what is not one is no matter.
		if c.line.parse(line[:at]) != "" {
			c.line.stamp, c.line.hasTime, c.line.host, c.line.priority = nil, false, nil, -1
		}
	}
	c.fields.begin(d)
	c.w.begin()
	c.times = [3][]byte{}
	columns, name := c.header[:], "CEF"
	if leef {
		columns, name = c.leef[:], "LEEF"
	}
	rest, ok := c.head(line[at+len(name)+1:], columns)
	if !ok {
		return errLine.New(nil, "read a line of %s, %d bytes: its header has not all of its %d fields", name, len(rec), len(columns))
	}
	c.keys = c.keys[:0]
	c.w.object(c.extension.key)
	if leef {
		c.leefPairs(rest)
	} else {
		c.pairs(rest)
	}
	c.w.close()
	c.syslog()
	if c.config.Fields.KeepRaw {
		c.w.raw(rec)
	}
	d.Body = c.w.end()
	d.Odd |= c.w.odd()
	c.fields.finish(d)
	c.finish(d)
	return nil
}

// head writes the fields of the header, which end in bars, and returns the rest.
func (c *cef) head(b []byte, columns []column) (rest []byte, ok bool) {
	for i := range columns {
		v := c.texts[i][:0]
		n := 0
		for ; n < len(b) && b[n] != '|'; n++ {
			if b[n] == '\\' && n+1 < len(b) && (b[n+1] == '|' || b[n+1] == '\\') {
				n++
			}
			v = append(v, b[n])
		}
		c.texts[i] = v
		if n == len(b) && i < len(columns)-1 {
			return nil, false
		}
		b = b[min(n+1, len(b)):]
		if len(v) > 0 {
			c.w.add(&columns[i], v)
			c.fields.set(columns[i].slot, v)
		}
	}
	return b, true
}

// maxPairs bounds the pairs of an extension. What is beyond is a part of the last
// value.
const maxPairs = 512

// pairs writes the extension of CEF: key=value pairs with spaces between them.
// Values may have spaces, so a value ends before the key of the next pair.
func (c *cef) pairs(b []byte) {
	key, from, ok := nextKey(b, 0)
	if !ok {
		if b = bytes.TrimSpace(b); len(b) > 0 {
			c.pair([]byte(messageField), b, true)
		}
		return
	}
	if before := bytes.TrimSpace(b[:from-len(key)-1]); len(before) > 0 {
		c.pair([]byte(messageField), before, true)
	}
	for len(c.keys) < maxPairs-1 {
		next, at, ok := nextKey(b, from)
		if !ok {
			break
		}
		c.pair(key, bytes.TrimRight(b[from:at-len(next)-1], " "), true)
		key, from = next, at
	}
	c.pair(key, bytes.TrimRight(b[from:], " "), true)
}

// nextKey finds the next key at from or behind it; at is behind its equals sign. A
// key is a word of letters, digits and some signs, with a space before it.
func nextKey(b []byte, from int) (key []byte, at int, ok bool) {
	for i := from; ; i++ {
		n := bytes.IndexByte(b[i:], '=')
		if n < 0 {
			return nil, 0, false
		}
		i += n
		start := i
		for start > from && isKeyByte(b[start-1]) {
			start--
		}
		if start < i && (start == 0 || b[start-1] == ' ' || b[start-1] == '|') {
			return b[start:i], i + 1, true
		}
	}
}

func isKeyByte(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || c-'0' <= 9 || c == '_' || c == '.' || c == '-' || c == '[' || c == ']'
}

// leefPairs writes the attributes of LEEF: tabs between them, or what the header
// of version 2.0 says, as one character or as its number (x09, 0x09).
func (c *cef) leefPairs(b []byte) {
	comma := []byte{'\t'}
	if bytes.HasPrefix(c.texts[0], []byte("2")) {
		if n := bytes.IndexByte(b, '|'); n >= 0 && n <= 6 && bytes.IndexByte(b[:n], '=') < 0 {
			if n > 0 {
				comma = leefComma(b[:n])
			}
			b = b[n+1:]
		}
	}
	for len(b) > 0 {
		v := b
		if n := bytes.Index(b, comma); n >= 0 && len(c.keys) < maxPairs-1 {
			v, b = b[:n], b[n+len(comma):]
		} else {
			b = nil
		}
		n := bytes.IndexByte(v, '=')
		if n <= 0 {
			if v = bytes.TrimSpace(v); len(v) > 0 {
				c.pair([]byte(messageField), v, false)
			}
			continue
		}
		c.pair(bytes.TrimSpace(v[:n]), v[n+1:], false)
	}
}

// leefComma reads the delimiter of a header.
func leefComma(b []byte) []byte {
	digits := bytes.TrimPrefix(bytes.TrimPrefix(b, []byte{'0'}), []byte{'x'})
	if len(digits) == len(b) || len(digits) == 0 || len(digits) > 2 {
		return b
	}
	n := rune(0)
	for _, d := range digits {
		if hex(d) < 0 {
			return b
		}
		n = n<<4 | hex(d)
	}
	return []byte{byte(n)}
}

// pair writes one key and its value.
func (c *cef) pair(key, v []byte, escaped bool) {
	written := v
	if escaped && bytes.IndexByte(v, '\\') >= 0 {
		c.value = c.value[:0]
		for i := 0; i < len(v); i++ {
			b := v[i]
			if b == '\\' && i+1 < len(v) {
				switch v[i+1] {
				case '=', '\\', '|':
					i++
					b = v[i]
				case 'n':
					i++
					b = '\n'
				case 'r':
					i++
					b = '\r'
				}
			}
			c.value = append(c.value, b)
		}
		v = c.value
	}
	slot, numeric := c.fields.slotOf(key)
	if numeric && isNumber(v) {
		c.w.nameless(key, again(c.keys, key), '"')
		c.w.buf = append(append(c.w.buf[:len(c.w.buf)-1], v...), ',')
	} else {
		c.w.nameless(key, again(c.keys, key), '"')
		c.w.quoted(v)
	}
	c.keys = append(c.keys, key)
	if slot >= 0 {
		c.kept[slot] = append(c.kept[slot][:0], v...)
		c.fields.set(slot, c.kept[slot])
	}
	switch string(key) {
	case "rt", "devTime":
		c.times[0] = written
	case "end":
		c.times[1] = written
	case "start":
		c.times[2] = written
	}
}

// syslog writes what the header before it said.
func (c *cef) syslog() {
	l := &c.line
	if l.priority < 0 && l.stamp == nil && l.host == nil {
		return
	}
	c.w.object(c.log.key)
	if l.priority >= 0 {
		c.w.priority(c.facility.key, c.logSeverity.key, l.priority)
	}
	if l.stamp != nil {
		c.w.text(c.stamp.key, l.stamp)
	}
	if l.host != nil {
		c.w.text(c.host.key, l.host)
	}
	c.w.close()
}

// finish finds the time and the type of the event, where fields are not configured.
func (c *cef) finish(d *Doc) {
	if c.config.EventTypeProduct {
		c.word = append(append(append(c.word[:0], c.texts[1]...), '.'), c.texts[2]...)
		var odd Odd
		d.Type, odd = c.fields.types.of(c.word)
		d.Odd |= odd
	}
	if c.fields.config.TimeField != "" {
		return
	}
	given := c.line.stamp != nil
	for _, v := range c.times {
		if len(v) == 0 {
			continue
		}
		given = true
		if d.Time, d.HasTime = c.time(v); d.HasTime {
			return
		}
	}
	if d.Time, d.HasTime = c.line.time, c.line.hasTime; d.HasTime {
		return
	}
	if given {
		d.Odd |= BadTime
	} else {
		d.Odd |= NoTime
	}
}

// time reads a time of the extension: ms since 1970, or MMM dd yyyy HH:mm:ss with
// fraction and zone or without, or RFC 3339.
func (c *cef) time(v []byte) (int64, bool) {
	if isDigits(v) {
		return parseEpoch(v, digitsBelow[Milliseconds])
	}
	if ns, ok := parseTime(v); ok {
		return ns, true
	}
	if ns, ok := parseZoneless(v); ok {
		return inZone(ns, c.line.zone), true
	}
	reader := syslogLine{zone: c.line.zone, observed: c.line.observed}
	ns, _, ok := reader.monthTime(v)
	return ns, ok && ns != 0
}

// isCEF goes by the first line.
func isCEF(_ string, head []byte) bool {
	row, _, _ := bytes.Cut(trimSpace(head), []byte{'\n'})
	at, leef := cefStart(row)
	if at < 0 || isJSON(head) || bytes.Count(row[at:], []byte{'|'}) < 5 {
		return false
	}
	if leef {
		at++
	}
	version := row[at+len("CEF:"):]
	return run(version, 0) > 0
}
