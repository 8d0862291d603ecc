package formats

import (
	"bytes"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("opswat", "OPSWAT and MetaDefender IT Access device and account logs, as JSON or in the SYSLOG form.", shape{
		framing: opswatFraming,
		sniff:   isOPSWAT,
	}, func() OPSWATConfig { return OPSWATConfig{EventType: opswatType} }, openOPSWAT)
}

var errOPSWAT = fault.Define("parse.not_opswat", fault.Reject,
	"look at the record in quarantine; if it is another format than the source names, set the source's format and redrive it")

// OPSWATConfig configures the format opswat.
type OPSWATConfig struct {
	// Account of all records: the tenant. The records do not name it.
	Account string `yaml:"account"`
	// VendorProduct is added to each document as vendor_product, where it is set,
	// e.g. MetaDefender IT Access.
	VendorProduct string `yaml:"vendor_product"`
	// EventType is what comes before .device.<log_type> and .account.<log_type>.
	EventType string `yaml:"event_type"`
	// Extract adds what the free text of details tells: details_text, without the
	// spaces around it; exempt_hours; client_version; license_percent.
	Extract bool `yaml:"extract"`
	// KeepRaw adds the record itself to each document, under the key raw.
	KeepRaw bool `yaml:"keep_raw"`
}

// Validate reports every problem, each with the key to change.
func (c OPSWATConfig) Validate() error {
	var p config.Problems
	needEventType(&p, c.EventType)
	p.Need(c.EventType != "", "event_type", "name the first words of the event types, e.g. opswat")
	p.Need(len(c.Account) <= maxNameSize, "account", "use at most 128 bytes")
	p.Need(len(c.VendorProduct) <= maxNameSize, "vendor_product", "use at most 128 bytes")
	return p.Err()
}

const opswatType = "opswat"

// The slots of the values that are read from a record. Those from opProduct on are
// only looked for, so that none is added twice.
const (
	opTime = iota
	opType
	opLogType
	opDetails
	opEvent
	opEmail
	opProduct
	opText
	opHours
	opClient
	opLicense
	opRaw
	opSlots
)

var opswatPaths = [opSlots][]string{
	opTime:    {"timestamp"},
	opType:    {"type"},
	opLogType: {"log_type"},
	opDetails: {"details"},
	opEvent:   {"event"},
	opEmail:   {"admin_email"},
	opProduct: {"vendor_product"},
	opText:    {"details_text"},
	opHours:   {"exempt_hours"},
	opClient:  {"client_version"},
	opLicense: {"license_percent"},
	opRaw:     {rawField},
}

// opswatExtra are the keys of the fields that are added.
var opswatExtra = func() (keys [opSlots]fieldKey) {
	for slot, path := range opswatPaths {
		keys[slot] = newKey(path[0])
	}
	return keys
}()

// opswatKeys are the keys that the vendor's records have. Source: formats F-2.
var opswatKeys = []string{
	"type", "timestamp", "last_seen", "log_type", "details", "device_id", "device_name", "device_username", "device_group",
	"event", "admin_name", "admin_email",
}

func openOPSWAT(c OPSWATConfig, deps Deps) (Format, error) {
	return Format{New: func() Decoder { return newOPSWAT(c, deps) }, Base: c.EventType, Grows: 3}, nil
}

// opswat decodes device and account records.
//
//   - document: a JSON record as it is; a line of the SYSLOG form with braces
//     around it, or, where that is no JSON, its pairs with their escapes mended.
//     Keys that nobody documents are kept. Further keys only as configured.
//   - type: opswat.device.<log_type> or opswat.account.<log_type>. Without a type
//     the record is an account's when it has an event or an admin_email.
//   - time: timestamp.
//   - id: none of its own.
//   - account: as configured; the record does not tell.
//
// A syslog header before a record is stepped over.
//
// Source: formats F-2, F-3.
type opswat struct {
	config OPSWATConfig
	scan   *scanner
	types  *typeNamer
	line   syslogLine
	text   []byte // the document, where it is not the record
	word   []byte
	w      fieldWriter
}

func newOPSWAT(c OPSWATConfig, deps Deps) *opswat {
	return &opswat{config: c, scan: newScanner(opswatPaths[:]...), types: newTypeNamer(deps.Types, c.EventType)}
}

// Decode implements Decoder.
func (o *opswat) Decode(rec []byte, d *Doc) error {
	*d = Doc{}
	inner := rec[space(rec, 0):]
	if len(inner) > 0 && inner[0] == '<' {
		if o.line.parse(inner) != "" {
			return errOPSWAT.New(nil, "read an OPSWAT record of %d bytes: it begins like syslog, but is none", len(rec))
		}
		inner = o.line.message[space(o.line.message, 0):]
	}
	inner = bytes.TrimRight(inner, " \t\r\n")
	switch {
	case len(inner) > 0 && inner[0] == '{':
		if d.Body, d.Offset = inner, cap(rec)-cap(inner); !o.object(inner) {
			_, _, why, at := o.scan.scan(inner)
			return badJSON(rec, why, d.Offset+at)
		}
	case len(inner) > 0 && inner[0] == '"':
		if err := o.pairs(rec, inner); err != nil {
			return err
		}
		d.Body, d.Made = o.text, true
	default:
		return errOPSWAT.New(nil, "read an OPSWAT record of %d bytes: it begins neither as an object nor as a pair in quotes", len(rec))
	}
	doc, s := d.Body, o.scan
	if s.found[opLogType].kind != text && s.found[opTime].kind != text {
		return errOPSWAT.New(nil, "read an OPSWAT record of %d bytes: it has neither log_type nor timestamp", len(rec))
	}
	o.event(doc, d)
	if !s.valid(doc) {
		d.Odd |= BadUTF8
	}
	d.Account = o.config.Account
	if o.config.VendorProduct != "" || o.config.Extract || o.config.KeepRaw {
		d.Body, d.Offset, d.Made = o.extra(rec, doc), 0, true
		d.Odd |= o.w.odd()
	}
	return nil
}

// object reads b into the scanner, and tells whether it is JSON.
func (o *opswat) object(b []byte) bool {
	_, _, why, _ := o.scan.scan(b)
	return why == ""
}

// event reads time and type of the document that was scanned.
func (o *opswat) event(doc []byte, d *Doc) {
	s := o.scan
	if v := s.textAt(doc, opTime); len(v) == 0 {
		d.Odd |= NoTime
	} else if d.Time, d.HasTime = parseZoneless(v); !d.HasTime {
		d.Odd |= BadTime
	}
	o.word = append(o.word[:0], s.textAt(doc, opType)...)
	if len(o.word) == 0 {
		if s.found[opEvent].kind != absent || s.found[opEmail].kind != absent {
			o.word = append(o.word, "account"...)
		} else {
			o.word = append(o.word, "device"...)
		}
	}
	o.word = append(o.word, '.')
	if v := s.textAt(doc, opLogType); len(v) > 0 {
		o.word = append(o.word, v...)
	} else {
		o.word = append(o.word, "unknown"...)
		d.Odd |= NoType
	}
	var odd Odd
	d.Type, odd = o.types.of(o.word)
	d.Odd |= odd
}

// pairs makes a document of a line of the SYSLOG form, in o.text, and scans it.
func (o *opswat) pairs(rec, line []byte) error {
	line = bytes.TrimRight(line, ", \t\r\n")
	o.text = append(append(append(o.text[:0], '{'), line...), '}')
	if o.object(o.text) {
		return nil
	}
	o.w.begin()
	for rest := line; ; {
		n := bytes.IndexByte(rest[1:], '"') + 1
		if n < 2 || !bytes.HasPrefix(rest[n:], []byte(`":"`)) || isEscaped(rest[1:n]) {
			return errOPSWAT.New(nil, "read a line of OPSWAT's SYSLOG form, %d bytes: no key in quotes and value stand at byte %d", len(rec), len(line)-len(rest))
		}
		key, v := rest[1:n], rest[n+3:]
		end := valueEnd(v)
		if end < 0 {
			return errOPSWAT.New(nil, "read a line of OPSWAT's SYSLOG form, %d bytes: its last value is not closed", len(rec))
		}
		o.w.nameless(key, 0, '"')
		if value := v[:end]; o.escaped(value) {
			o.w.buf = append(append(o.w.buf, value...), '"', ',')
		} else {
			o.w.quoted(value)
		}
		if end == len(v)-1 {
			break
		}
		rest = v[end+2:]
	}
	o.text = append(o.text[:0], o.w.end()...)
	if !o.object(o.text) { // not reached: each part is JSON
		return errOPSWAT.New(nil, "read a line of OPSWAT's SYSLOG form, %d bytes: it has no pairs", len(rec))
	}
	return nil
}

func isEscaped(key []byte) bool { return bytes.IndexByte(key, '\\') >= 0 }

// escaped tells whether v is what can stand between the quotes of a JSON string.
func (o *opswat) escaped(v []byte) bool {
	quoted := append(append(append(o.text[:0], '"'), v...), '"')
	o.text = quoted
	end, _, _ := readText(quoted, 1)
	return end == len(quoted)-1
}

// valueEnd returns the index of the quote that ends the value at the beginning of
// v: the first that is followed by the end of the line, or by a comma and a known
// key. -1 when there is none.
func valueEnd(v []byte) int {
	for i := 0; ; i++ {
		n := bytes.IndexByte(v[i:], '"')
		if n < 0 {
			return -1
		}
		if i += n; i == len(v)-1 {
			return i
		}
		if next, ok := bytes.CutPrefix(v[i+1:], []byte(`,"`)); ok {
			for _, key := range opswatKeys {
				if len(next) > len(key)+2 && string(next[:len(key)]) == key && bytes.HasPrefix(next[len(key):], []byte(`":"`)) {
					return i
				}
			}
		}
	}
}

// extra returns the document doc, which is an object, with what is configured to be
// added to it.
func (o *opswat) extra(rec, doc []byte) []byte {
	s := o.scan
	w := &o.w
	w.buf, w.bad = append(w.buf[:0], doc[:len(doc)-1]...), false
	w.buf = bytes.TrimRight(w.buf, " \t\r\n")
	if w.buf[len(w.buf)-1] != '{' {
		w.buf = append(w.buf, ',')
	}
	add := func(slot int, v []byte) {
		if len(v) > 0 && s.found[slot].kind == absent {
			w.add(&column{key: opswatExtra[slot], numeric: slot == opHours || slot == opLicense}, v)
		}
	}
	if o.config.Extract {
		details := bytes.Trim(s.textAt(doc, opDetails), " \t\r\n")
		add(opText, details)
		hours, license, client := []byte(nil), []byte(nil), []byte(nil)
		switch logType := s.found[opLogType]; string(doc[logType.start:logType.end]) {
		case "exempt_all":
			hours = numberBefore(details, []byte("hour"))
		case "license_left":
			license = numberBefore(details, []byte("%"))
		case "added":
			client = versionIn(details)
		}
		add(opHours, hours)
		add(opLicense, license)
		add(opClient, client)
	}
	add(opProduct, []byte(o.config.VendorProduct))
	if o.config.KeepRaw {
		add(opRaw, rec)
	}
	return w.end()
}

// numberBefore returns the number that stands before word, with spaces and brackets
// between them: 24 hour(s), [15] %. nil when there is none.
func numberBefore(b, word []byte) []byte {
	for from := 0; ; {
		n := bytes.Index(b[from:], word)
		if n < 0 {
			return nil
		}
		end := from + n
		from = end + len(word)
		for end > 0 && (b[end-1] == ' ' || b[end-1] == ']' || b[end-1] == ')') {
			end--
		}
		start := end
		for start > 0 && (b[start-1]-'0' <= 9 || b[start-1] == '.' && start < end) {
			start--
		}
		if v := b[start:end]; isNumber(v) {
			return v
		}
	}
}

// versionIn returns the first version number in b, of two to four parts and behind
// the word version where there is one. nil when there is none.
func versionIn(b []byte) []byte {
	if n := bytes.Index(bytes.ToLower(b), []byte("version")); n >= 0 {
		b = b[n:]
	}
	for i := 0; i < len(b); {
		if b[i]-'0' > 9 {
			i++
			continue
		}
		end, parts := i, 1
		for end < len(b) && (b[end]-'0' <= 9 || b[end] == '.' && end+1 < len(b) && b[end+1]-'0' <= 9) {
			if b[end] == '.' {
				parts++
			}
			end++
		}
		alone := (i == 0 || !isKeyByte(b[i-1]) || b[i-1]|0x20 == 'v') && (end == len(b) || !isKeyByte(b[end]) || b[end] == '.')
		if parts >= 2 && parts <= 4 && alone {
			return b[i:end]
		}
		i = end
	}
	return nil
}

func opswatFraming(head []byte) framing.Framing {
	head = trimSpace(head)
	switch {
	case len(head) == 0 || head[0] == '{':
		return framing.Framing{Kind: framing.Values}
	case head[0] == '[':
		return framing.Framing{Kind: framing.Array}
	}
	return framing.Framing{Kind: framing.Lines}
}

// isOPSWAT goes by the keys of the first record, in either form.
func isOPSWAT(_ string, head []byte) bool {
	hits, logType, foreign := 0, false, false
	see := func(key string, rest []byte) bool {
		for _, known := range opswatKeys {
			if key == known {
				hits++
			}
		}
		switch key {
		case "log_type":
			logType = true
		case "type":
			foreign = foreign || !bytes.HasPrefix(rest, []byte(`"Device"`)) && !bytes.HasPrefix(rest, []byte(`"Account"`))
		}
		return true
	}
	head = trimSpace(head)
	if len(head) > 0 && head[0] == '<' {
		var s syslogLine
		row, _, _ := bytes.Cut(head, []byte{'\n'})
		if s.parse(row) != "" {
			return false
		}
		head = trimSpace(s.message)
	}
	if len(head) > 0 && head[0] == '"' {
		row, _, _ := bytes.Cut(head, []byte{'\n'})
		line := make([]byte, 0, len(row)+1)
		peek(append(append(line, '{'), row...), see)
		if hits < 4 || !logType {
			hits, logType, foreign = 0, false, false
			for _, key := range opswatKeys { // the pairs may be no JSON
				if n := bytes.Index(row, []byte(`"`+key+`":"`)); n >= 0 && (n == 0 || row[n-1] == ',') {
					see(key, row[n+len(key)+3:])
				}
			}
		}
	} else {
		rec, wrapped := first(head)
		if wrapped {
			return false
		}
		peek(rec, see)
	}
	return hits >= 4 && logType && !foreign
}
