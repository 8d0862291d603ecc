package formats

import (
	"bytes"
	"regexp"
	"strings"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("cloudfront", "AWS CloudFront standard logs, legacy and v2: W3C, JSON or parquet.", shape{
		framing: cloudFrontFraming,
		sniff:   isCloudFront,
	}, func() CloudFrontConfig { return CloudFrontConfig{} }, openCloudFront)
}

// CloudFrontConfig configures the format cloudfront.
type CloudFrontConfig struct {
	// Columns names the columns of lines that come without a #Fields line, with
	// spaces between them: "date time x-edge-location cs(Host)". A #Fields line in
	// the file wins. Default: such lines are refused.
	Columns string `yaml:"columns"`
	// Delimiter stands between the fields of a line, one character. Default: a tab,
	// in lines without a tab a space.
	Delimiter string `yaml:"delimiter"`
	// KeepRaw adds the line itself to each document, under the key raw.
	KeepRaw bool `yaml:"keep_raw"`
}

// Validate reports every problem, each with the key to change.
func (c CloudFrontConfig) Validate() error {
	var p config.Problems
	p.Need(len(c.Delimiter) <= 1 && c.Delimiter != "\n" && c.Delimiter != "%", "delimiter", "use one ASCII character, e.g. \"\\t\"")
	return p.Err()
}

const cloudFrontType = "cloud.aws.cloudfront.access"

// kindCloudFront begins the ids of CloudFront records, however they arrive.
var kindCloudFront = []byte("cloudfront")

// The slots of the values that are read from a record.
const (
	cfDate = iota
	cfTime
	cfMillis
	cfSeconds
	cfID
	cfSlots
)

// cloudFrontFields are the known fields by their plain names.
// Source: Amazon CloudFront Developer Guide, standard log file fields, legacy and
// v2, and real-time log fields, of which v2 has some.
var cloudFrontFields = func() map[string]column {
	const (
		names = "x-edge-location c-ip cs-method cs(Host) cs-uri-stem sc-status cs(Referer) cs(User-Agent) cs-uri-query cs(Cookie) " +
			"x-edge-result-type x-host-header cs-protocol x-forwarded-for ssl-protocol ssl-cipher x-edge-response-result-type " +
			"cs-protocol-version fle-status fle-encrypted-fields x-edge-detailed-result-type sc-content-type " +
			"DistributionId c-country cs-accept-encoding cs-accept cache-behavior-path-pattern cs-headers cs-header-names " +
			"primary-distribution-id primary-distribution-dns-name distribution-tenant-id connection-id"
		numbers = "sc-bytes cs-bytes time-taken c-port time-to-first-byte sc-content-len sc-range-start sc-range-end " +
			"origin-fbl origin-lbl asn cs-headers-count"
	)
	fields := map[string]column{}
	add := func(name string, slot int, numeric bool) {
		fields[cloudFrontPlain(name)] = column{name: name, slot: slot, numeric: numeric}
	}
	for name := range strings.FieldsSeq(names) {
		add(name, -1, false)
	}
	for name := range strings.FieldsSeq(numbers) {
		add(name, -1, true)
	}
	add("date", cfDate, false)
	add("time", cfTime, false)
	add("timestamp(ms)", cfMillis, true)
	add("timestamp", cfSeconds, true)
	add("x-edge-request-id", cfID, false)
	return fields
}()

// cloudFrontPlain makes one name of those that a field has in different files:
// cs(User-Agent), cs(user-agent) and cs_user_agent.
func cloudFrontPlain(name string) string {
	return strings.ReplaceAll(cloudFrontMarks.Replace(strings.ToLower(name)), "--", "-")
}

var cloudFrontMarks = strings.NewReplacer("(", "-", ")", "", "_", "-")

// cloudFrontName is the name of a column as the documentation writes it.
func cloudFrontName(name string) string {
	if c, ok := cloudFrontFields[cloudFrontPlain(name)]; ok {
		return c.name
	}
	return name
}

func cloudFrontField(name string) (slot int, numeric bool) {
	if c, ok := cloudFrontFields[cloudFrontPlain(name)]; ok {
		return c.slot, c.numeric
	}
	return -1, false
}

// encodedField holds the values that were percent-encoded, as they were.
const encodedField = "encoded"

var encodedKey = newKey(encodedField)

func openCloudFront(c CloudFrontConfig, _ Deps) (Format, error) {
	reserved := []string{encodedField}
	if c.KeepRaw {
		reserved = append(reserved, rawField)
	}
	made := func(names []string) []column {
		for i, name := range names {
			names[i] = cloudFrontName(name)
		}
		cols := newColumns(names, cloudFrontField, reserved...)
		for i, name := range names {
			_, known := cloudFrontFields[cloudFrontPlain(name)]
			cols[i].unknown = !known
		}
		return cols
	}
	parse := func(header []byte) ([]column, error) {
		header = bytes.TrimPrefix(header, []byte("#Fields:"))
		names := strings.Fields(string(header))
		if len(names) == 0 {
			return nil, errNoHeader.New(nil, "read CloudFront lines: the #Fields line names no columns")
		}
		return made(names), nil
	}
	return Format{
		New: func() Decoder {
			f := &cloudFront{config: c, headers: headers[[]column]{parse: parse}}
			if c.Columns != "" {
				f.without, _ = parse([]byte(c.Columns))
			}
			f.rows = newRowReader(func(key string) column { return made([]string{key})[0] })
			f.field = f.value
			f.other = func(c *column, value []byte) { f.meet(c); f.w.json(c.key, value) }
			return f
		},
		Place: func(key string) (string, string) { return awsPlace(key, "CloudFront") },
		Base:  "cloud.aws.cloudfront", Table: "cloud.aws.cloudfront.unknown", // features DEV-21
		Grows: 4,
	}, nil
}

// cloudFront decodes records of standard logs.
//
//   - document: a field per column, with the names of the documentation whatever
//     the file calls them; "-" leaves its field out. Percent-encoding is undone
//     once; the values as they were are under "encoded".
//   - id: x-edge-request-id.
//   - time: timestamp(ms), timestamp, else date and time.
//   - type: cloud.aws.cloudfront.access.
//   - account: the key's, in v2. Legacy logs do not tell.
//
// sc-status is text, because 000 is one.
//
// Source: formats F-11, F-12; Amazon CloudFront Developer Guide, standard logs.
type cloudFront struct {
	config  CloudFrontConfig
	headers headers[[]column]
	rows    *rowReader
	// without is the layout of lines without a header, nil for none.
	without []column

	columns []column
	w       fieldWriter
	found   [cfSlots][]byte
	// encoded are the fields of this record that were encoded; texts has their
	// values one after the other, each up to to.
	encoded []encodedValue
	texts   []byte
	decoded []byte
	clock   []byte
	field   func(c *column, v []byte)
	other   func(c *column, v []byte)
	id      [2][]byte
	news    []News
}

type encodedValue struct {
	column *column
	to     int
}

// Start implements Starter.
func (f *cloudFront) Start(h Head) (err error) {
	f.columns = f.without
	if len(h.Columns) > 0 {
		f.columns, err = f.headers.of(h.Columns)
	}
	return err
}

// Decode implements Decoder.
func (f *cloudFront) Decode(rec []byte, d *Doc) error {
	*d = Doc{Type: cloudFrontType, Made: true}
	f.w.begin()
	f.encoded, f.texts, f.news = f.encoded[:0], f.texts[:0], f.news[:0]
	for i := range f.found {
		f.found[i] = f.found[i][:0]
	}
	var err error
	if isObject(rec) {
		d.Odd, err = f.rows.read(rec, f.field, f.other)
	} else {
		err = f.line(rec)
	}
	if err != nil {
		return err
	}
	if len(f.encoded) > 0 {
		f.w.object(encodedKey)
		from := 0
		for _, e := range f.encoded {
			f.w.text(e.column.key, f.texts[from:e.to])
			from = e.to
		}
		f.w.close()
	}
	if f.config.KeepRaw {
		f.w.raw(rec)
	}
	d.Body = f.w.end()
	d.Odd |= f.w.odd()
	d.New = f.news
	f.time(d)
	if id := f.found[cfID]; len(id) > 0 {
		f.id = [...][]byte{kindCloudFront, id}
		d.ID, d.HasID = newID(f.id[:]...), true
	} else if f.promises(cfID) {
		d.Odd |= NoID
	}
	return nil
}

// promises tells whether the header names the field of a slot. In v2 fields are
// chosen.
func (f *cloudFront) promises(slot int) bool {
	for i := range f.columns {
		if f.columns[i].slot == slot {
			return true
		}
	}
	return false
}

// line reads a line of a W3C file.
func (f *cloudFront) line(rec []byte) error {
	if len(f.columns) == 0 {
		return errNoHeader.New(nil, "read a CloudFront line of %d bytes: no #Fields line came before it", len(rec))
	}
	delimiter := byte('\t')
	switch {
	case f.config.Delimiter != "":
		delimiter = f.config.Delimiter[0]
	case bytes.IndexByte(rec, '\t') < 0:
		delimiter = ' '
	}
	rest := bytes.TrimSuffix(rec, []byte("\r"))
	last := len(f.columns) - 1
	clean := plainBut(rest, delimiter)
	percent := nextPercent(rest, 0)
	at := 0 // where in the line rest begins
	for i := range f.columns {
		value := rest
		if end := bytes.IndexByte(rest, delimiter); end >= 0 {
			value, rest = rest[:end], rest[end+1:]
			if i == last && len(rest) > 0 { // a delimiter at the end is harmless
				return f.refuse(rec, delimiter)
			}
		} else if i != last {
			return f.refuse(rec, delimiter)
		}
		c := &f.columns[i]
		encoded := percent < at+len(value)
		if !clean || encoded || c.unknown {
			f.value(c, value)
		} else if !isDash(value) {
			f.find(c, value)
			f.w.addPlain(c, value)
		}
		if at += len(value) + 1; encoded {
			percent = nextPercent(rec, at)
		}
	}
	return nil
}

// nextPercent returns where the next percent sign in b is from i on, len(b) if there is none.
func nextPercent(b []byte, i int) int {
	if i >= len(b) {
		return len(b)
	}
	if n := bytes.IndexByte(b[i:], '%'); n >= 0 {
		return i + n
	}
	return len(b)
}

func (f *cloudFront) refuse(rec []byte, delimiter byte) error {
	return errColumns.New(nil, "read a CloudFront line of %d fields with %q between them: its #Fields line names %d",
		bytes.Count(rec, []byte{delimiter})+1, delimiter, len(f.columns))
}

// meet notes a column that is not known.
func (f *cloudFront) meet(c *column) {
	if c.unknown && len(f.news) < maxNews {
		f.news = append(f.news, News{NewsColumn, nameOf(c.name)})
	}
}

// find keeps what is read of a record.
func (f *cloudFront) find(c *column, v []byte) {
	if c.slot >= 0 {
		f.found[c.slot] = append(f.found[c.slot], v...)
	}
}

// value takes a value.
func (f *cloudFront) value(c *column, v []byte) {
	if isDash(v) {
		return
	}
	f.meet(c)
	f.find(c, v)
	if bytes.IndexByte(v, '%') >= 0 {
		if f.decoded = appendUnescaped(f.decoded[:0], v); len(f.decoded) < len(v) {
			f.texts = append(f.texts, v...)
			f.encoded = append(f.encoded, encodedValue{c, len(f.texts)})
			bad := f.w.bad
			f.w.add(c, f.decoded)
			f.w.bad = bad // what was encoded is not odd, and it is kept
			return
		}
	}
	f.w.add(c, v)
}

// appendUnescaped undoes percent-encoding, once. What is not an escape stays.
func appendUnescaped(dst, v []byte) []byte {
	for {
		at := bytes.IndexByte(v, '%')
		if at < 0 {
			return append(dst, v...)
		}
		dst, v = append(dst, v[:at]...), v[at:]
		if len(v) >= 3 {
			if high, low := hex(v[1]), hex(v[2]); high >= 0 && low >= 0 {
				dst, v = append(dst, byte(high<<4|low)), v[3:]
				continue
			}
		}
		dst, v = append(dst, '%'), v[1:]
	}
}

// time finds the time of the event.
func (f *cloudFront) time(d *Doc) {
	date, clock := f.found[cfDate], f.found[cfTime]
	if len(date) > 0 && len(clock) > 0 {
		f.clock = append(append(append(append(f.clock[:0], date...), 'T'), clock...), 'Z')
		d.Time, d.HasTime = parseTime(f.clock)
	}
	millis, seconds := f.found[cfMillis], f.found[cfSeconds]
	if len(seconds)+len(millis) > 0 { // in v2 only
		if ns, ok := parseEpoch(seconds, digitsBelow[Seconds]); ok {
			d.Time, d.HasTime = ns, true
		}
		if ns, ok := parseEpoch(millis, digitsBelow[Milliseconds]); ok {
			d.Time, d.HasTime = ns, true
		}
	}
	switch {
	case d.HasTime:
	case len(date)+len(clock)+len(millis)+len(seconds) > 0:
		d.Odd |= BadTime
	default:
		d.Odd |= NoTime
	}
}

func cloudFrontFraming(head []byte) framing.Framing {
	if isObject(head) {
		return values
	}
	return framing.Framing{Kind: framing.Lines, Header: framing.Directives}
}

var (
	// [prefix/]<distribution id>.<YYYY-MM-DD-HH>.<unique>.gz
	cloudFrontFile = regexp.MustCompile(`^E[0-9A-Z]{6,}\.\d{4}-\d\d-\d\d-\d\d\.[0-9a-f]{8}\.(gz|parquet)$`)
	fieldsLine     = []byte("#Fields:")
)

// isCloudFront goes by the key, else by the #Fields line or the keys of a row.
func isCloudFront(key string, head []byte) bool {
	file := key[strings.LastIndexByte(key, '/')+1:]
	if strings.HasPrefix(file, "E") && cloudFrontFile.MatchString(file) || strings.Contains(key, "AWSLogs/") && strings.Contains(key, "/CloudFront/") {
		return true
	}
	if isObject(head) {
		return countKeys(head, func(key string) bool { return strings.HasPrefix(cloudFrontPlain(key), "x-edge-") }) >= 2
	}
	for line := range bytes.Lines(bytes.TrimPrefix(head, []byte("\ufeff"))) {
		switch {
		case bytes.HasPrefix(line, fieldsLine):
			return bytes.Contains(line, []byte("x-edge-"))
		case line[0] != '#':
			return false
		}
	}
	return false
}
